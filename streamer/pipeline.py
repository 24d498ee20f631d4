"""What happens to a frame: read process() from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamer.messages import Atoms, Frame, Latents
from streamer.stage import Meter, drive
from streamer.stages.check_frame import CheckConfig, CheckFrame
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion
from streamer.stages.cut_windows import CutWindows
from streamer.stages.encode import Encode, EncodeConfig
from streamer.stages.find_atoms import FindAtoms, FindConfig
from streamer.stages.link_atoms import LinkAtoms, LinkConfig

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    from models.encoder import Encoder


class PipelineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stages' configurations, each documented beside its stage.

    The size of the windows is not configured: the encoder's card says what it was trained on.
    """

    check: CheckConfig = CheckConfig()
    correct: CorrectConfig = CorrectConfig()
    find: FindConfig = FindConfig()
    encode: EncodeConfig = EncodeConfig()
    link: LinkConfig = LinkConfig()


class Processed(msgspec.Struct, frozen=True, kw_only=True):
    """What the pipeline made of one frame.

    Attributes
    ----------
    corrected
        The frame on the specimen.
    atoms
        All columns found in it.
    latents
        Those whose window lies in the frame, encoded and linked.
    """

    corrected: Frame
    atoms: Atoms
    latents: Latents


class Pipeline:
    """The stages in a row, with the state that they learn through one session.

    Parameters
    ----------
    config
        Settings of the stages.
    encoder
        A loaded model; its card sets the windows.
    """

    def __init__(self, config: PipelineConfig, encoder: Encoder) -> None:
        card = encoder.card
        self.check = CheckFrame(config.check)
        self.correct = CorrectDistortion(config.correct)
        self.find = FindAtoms(config.find)
        self.windows = CutWindows(card.window_nm, card.window_px, len(card.channels))
        self.encode = Encode(encoder)
        self.link = LinkAtoms(config.link)

    @classmethod
    def build(cls, config: PipelineConfig) -> Pipeline:
        """Load the encoder that the configuration names and put the stages together.

        Raises
        ------
        models.checkpoint.CheckpointError
            Naming the file of weights and the cure, if it is missing or not an encoder.
        """
        import torch

        from models.encoder import Encoder

        # Two pools of threads on one machine cost a factor of 100.
        torch.set_num_threads(1)
        return cls(config, Encoder.load(config.encode.weights or None))

    def warm_up(self) -> None:
        """Do what only the first frame would wait for."""
        self.link.warm_up()

    def process(self, frame: Frame, meter: Meter) -> Processed | None:
        """Take a frame to its latents; None when a stage rejected it, which the meter has counted."""
        good = drive(self.check, frame, meter)
        if good is None:
            return None
        corrected = drive(self.correct, good, meter)
        if corrected is None:
            return None
        atoms = drive(self.find, corrected, meter)
        if atoms is None:
            return None
        patches = drive(self.windows, atoms, meter)
        if patches is None:
            return None
        latents = drive(self.encode, patches, meter)
        if latents is None:
            return None
        if frame.request_id is not None:
            # A sub-scan shows a few atoms from close by: linking it would end the tracks of all others.
            latents = msgspec.structs.replace(latents, request_id=frame.request_id)
            return Processed(corrected=corrected, atoms=atoms, latents=latents)
        linked = drive(self.link, latents, meter)
        if linked is None:
            return None
        return Processed(corrected=corrected, atoms=atoms, latents=linked)
