"""What happens to a frame: read process() from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from models.side_by_side import usual_threads
from streamer.codec import pack, unpack
from streamer.encoders import MAIN, Encoders, Lane, Missing
from streamer.messages import Atoms, Frame, Latents, ModelRevision, Patches, StrainMap
from streamer.response_parts import as_read, in_parts
from streamer.stage import Meter, drive
from streamer.stages.check_frame import CheckConfig, CheckFrame
from streamer.stages.correct_distortion import (
    DRAWN_SIGMA_PX,
    Calibrations,
    CorrectConfig,
    CorrectDistortion,
    CorrectState,
    drawn_frames,
)
from streamer.stages.encode import EncodeConfig, WindowEncoder
from streamer.stages.find_atoms import FindConfig
from streamer.stages.find_sites import FindSites, SitesConfig
from streamer.stages.link_atoms import LinkAtoms, LinkConfig, LinkState
from streamer.weights import configured

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    from models.checkpoint import ModelCard


class PipelineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stages' configurations, each documented beside its stage.

    The size of the windows is not configured: the encoder's card says what it was trained on.

    Attributes
    ----------
    threads
        That parts of one frame may take at once; 0 takes two where there are two processors. What is found
        and said does not depend on it.
    """

    check: CheckConfig = CheckConfig()
    correct: CorrectConfig = CorrectConfig()
    sites: SitesConfig = SitesConfig()
    find: FindConfig = FindConfig()
    encode: EncodeConfig = EncodeConfig()
    link: LinkConfig = LinkConfig()
    threads: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= 64:
            raise ValueError(f"pipeline.threads is {self.threads}; it takes 0 to 64")


class Processed(msgspec.Struct, frozen=True, kw_only=True):
    """What the pipeline made of one frame, or of a batch of patches that a detector delivered.

    Attributes
    ----------
    corrected
        The frame on the specimen; None for delivered patches.
    atoms
        All columns found in it; None likewise.
    latents
        Those whose window lies in the frame, encoded and linked; of patches, each of them encoded.
    beside
        What the encoders beside the main one say of the frame.
    missing
        Those of them that had nothing to say of it.
    also
        What else was learnt from it, for the journal and whoever listens.
    """

    corrected: Frame | None
    atoms: Atoms | None
    latents: Latents
    beside: tuple[Latents, ...] = ()
    missing: tuple[Missing, ...] = ()
    also: tuple[ModelRevision | StrainMap, ...] = ()


class PipelineState(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the stages have learnt: all that the latents of the next frames depend on.

    Attributes
    ----------
    number
        Of the last frame that was processed, rejected or not; -1 before the first.
    facts
        MessagePack of the stages' numbers; only ``Pipeline.restore`` reads it.
    arrays
        The stages' arrays by name, such as ``correct.image``. They are read-only and shared with the
        pipeline, which makes new ones when it learns: any thread may read them.
    """

    number: int
    facts: bytes
    arrays: dict[str, NDArray[Any]]


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of the stages; ``version`` changes with what any of them keeps."""

    version: int
    correct: CorrectState
    link: LinkState


_VERSION = 4


class Pipeline:
    """The stages in a row, with the state that they learn through one session.

    Parameters
    ----------
    config
        Settings of the stages.
    encoder
        A loaded model; its card sets the windows.
    calibrations
        Finds the calibration of a scan; None where there are none.
    beside
        Further encoders by their names.
    """

    def __init__(
        self,
        config: PipelineConfig,
        encoder: WindowEncoder,
        calibrations: Calibrations | None = None,
        beside: Mapping[str, WindowEncoder] | None = None,
    ) -> None:
        self.check = CheckFrame(config.check)
        self.correct = CorrectDistortion(config.correct, calibrations)
        threads = config.threads or usual_threads()
        self.find = FindSites(config.sites, config.find, threads)
        self.encoders = Encoders({MAIN: encoder} | dict(beside or {}), threads, config.encode.sending)
        self.link = LinkAtoms(config.link)
        self._number = -1

    @classmethod
    def build(cls, config: PipelineConfig, weights: Mapping[str, Path] | None = None) -> Pipeline:
        """Load the encoders that the configuration names and put the stages together.

        Parameters
        ----------
        config
            Settings of the stages.
        weights
            Where the weights of each encoder are, by its name; None takes those that are configured.

        Raises
        ------
        models.checkpoint.CheckpointError
            Naming the file of weights and the cure, if it is missing or not an encoder.
        """
        import torch

        from models.calibration import load
        from models.encoder import Encoder

        # Two pools of threads on one machine cost a factor of 100.
        torch.set_num_threads(1)
        folder = config.correct.calibrations
        paths = configured(config.encode) if weights is None else weights
        encoders = {name: Encoder.load(path) for name, path in paths.items()}
        return cls(config, encoders.pop(MAIN), partial(load, Path(folder)) if folder else None, encoders)

    def warm_up(self) -> None:
        """Do everything once: a first call takes far longer, above all where nothing is compiled yet."""
        self.correct.warm_up()
        for sigma_px in DRAWN_SIGMA_PX:
            frame = drawn_frames(sigma_px)[0]
            # Corrected frames may be written to, those that are left as they are may not.
            for image in (frame.image, frame.image.copy()):
                drive(self.find, msgspec.structs.replace(frame, image=image), _Nobody())
        self.encoders.warm_up()

    def state(self) -> PipelineState:
        """Say what was learnt, at the cost of a few numbers: arrays are shared."""
        correct, correct_arrays = self.correct.state()
        link, link_arrays = self.link.state()
        facts = _Facts(version=_VERSION, correct=correct, link=link)
        arrays = {f"correct.{name}": array for name, array in correct_arrays.items()}
        arrays |= {f"link.{name}": array for name, array in link_arrays.items()}
        return PipelineState(number=self._number, facts=pack(facts), arrays=arrays)

    def restore(self, state: PipelineState) -> None:
        """Go on from a state: the latents that follow are those of the pipeline that said it, bit for bit.

        Raises
        ------
        ValueError
            If the state is of another version or of no pipeline; this one stays as it was.
        """
        try:
            facts = unpack(state.facts, _Facts)
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"the pipeline's state cannot be read: {error}; start without it") from None
        if facts.version != _VERSION:
            raise ValueError(
                f"the pipeline's state has version {facts.version}; it takes {_VERSION}; start without it"
            )
        correct, link = self.correct.heir(), LinkAtoms(self.link.config)
        try:
            correct.restore(facts.correct, _of("correct", state.arrays))
            link.restore(facts.link, _of("link", state.arrays))
        except KeyError as error:
            raise ValueError(f"the pipeline's state lacks the array {error}; start without it") from None
        self.correct, self.link, self._number = correct, link, state.number

    def cards(self) -> dict[str, ModelCard]:
        """Give the cards of the encoders at work, by their names."""
        return self.encoders.cards()

    def use(self, lane: Lane) -> None:
        """Encode with other weights from the next frame on; call it between two frames."""
        self.encoders.use(lane)

    def process(self, frame: Frame | Patches, meter: Meter) -> Processed | None:
        """Take a frame to its latents; None when a stage rejected it, which the meter has counted."""
        self._number = frame.number
        if isinstance(frame, Patches):
            return self._process_delivered(frame, meter)
        good = drive(self.check, frame, meter)
        if good is None:
            return None
        # A phase, which wraps, cannot be resampled: a response goes through the correction in parts.
        corrected = drive(self.correct, in_parts(good), meter)
        if corrected is None:
            return None
        corrected = as_read(corrected)
        atoms = drive(self.find, corrected, meter)
        if atoms is None:
            return None
        latents = self.encoders.main_for(corrected).see(atoms, meter)
        if latents is None:
            return None
        if frame.request_id is not None:
            # A sub-scan shows a few atoms from close by: linking it would end the tracks of all others.
            answer: Latents | None = latents.without_windows(request_id=frame.request_id)
        else:
            answer = drive(self.link, latents, meter)
        if answer is None:
            return None
        beside, missing = self.encoders.see_beside(atoms, answer, meter)
        return Processed(
            corrected=corrected,
            atoms=atoms,
            latents=answer,
            beside=tuple(beside),
            missing=tuple(missing),
            also=self.correct.news(),
        )

    def _process_delivered(self, patches: Patches, meter: Meter) -> Processed | None:
        """Take windows that a detector cut to their latents: nothing is left to be found in them."""
        latents = self.encoders.see_delivered(patches, meter)
        if latents is None:
            return None
        latents = latents.without_windows(request_id=patches.request_id, is_delivered=True)
        return Processed(corrected=None, atoms=None, latents=latents)


class _Nobody:
    """Is told of nothing: a meter for what is no item."""

    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        pass


def _of(stage: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Pick the arrays of a stage, by the names that it gave them."""
    prefix = f"{stage}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
