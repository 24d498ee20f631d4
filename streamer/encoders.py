"""Several encoders side by side: each looks at windows of its own, as its card asks, of the same places."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.messages import Atoms, Float32, Frame, Latents, Patches
from streamer.stage import Meter, drive
from streamer.stages.cut_windows import CutWindows
from streamer.stages.encode import Encode, FitsEncoder, WindowEncoder

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    from models.checkpoint import ModelCard

MAIN = ""
# How the names begin of shipped encoders that stand in for the main one where it knows no such frames; no
# configured name has a space.
STAND_IN = "shipped "


class Lane:
    """One encoder with the stages that its card sets.

    Parameters
    ----------
    name
        That its latents carry; empty for the main encoder. Those of one that stands in for it carry none.
    encoder
        A loaded model.
    """

    def __init__(self, name: str, encoder: WindowEncoder) -> None:
        self.name = name
        self.is_stand_in = name.startswith(STAND_IN)
        self.encoder = encoder
        self.fits = FitsEncoder.of(encoder.card)
        self.encode = Encode(encoder, MAIN if self.is_stand_in else name)
        self.cut = _cut_of(encoder.card, name)

    def warm_up(self) -> None:
        """Encode something once: a first call takes far longer."""
        card = self.encoder.card
        if self.cut is not None:
            self.cut.warm_up()
        self.encoder.encode(np.zeros((1, len(card.channels), card.window_px, card.window_px), np.float32))

    def knows(self, frame: Frame) -> bool:
        """Say whether it was trained on the first channels of a frame; ``height trace`` is one of heights."""
        have = [f"{channel} ".lower() for channel in frame.channels]
        wanted = [f"{channel} ".lower() for channel in self.encoder.card.channels]
        fits = len(have) >= len(wanted) and all(map(str.startswith, have, wanted))
        return self.cut is not None and fits

    def see(self, atoms: Atoms, meter: Meter) -> Latents | None:
        """Cut and encode the windows of a frame; None where a stage rejected it, which the meter knows."""
        if self.cut is None:
            return None
        patches = drive(self.cut, atoms, meter)
        return None if patches is None else drive(self.encode, patches, meter)


def _cut_of(card: ModelCard, name: str) -> CutWindows | None:
    """Make the stage that cuts the windows of a card; a diffraction pattern is none that could be cut."""
    if card.window_per_nm:
        return None
    cut = CutWindows(card.window_nm, card.window_px, len(card.channels), card.normalisation)
    cut.name = f"windows {name}".rstrip()
    return cut


class Missing(NamedTuple):
    """An encoder beside the main one had nothing to say of a frame, and why."""

    encoder: str
    reason: str


class Encoders:
    """The encoders of a session; the main one's latents are a frame's answer.

    Parameters
    ----------
    encoders
        By name, in the order in which delivered patches are offered to them; the main one, whose name
        is empty, among them.
    threads
        That the windows of a frame may take.
    sending
        Names of those whose windows go with their latents.
    """

    def __init__(
        self,
        encoders: Mapping[str, WindowEncoder],
        threads: int = 1,
        sending: Collection[str] = (),
    ) -> None:
        self._lanes: dict[str, Lane] = {}
        self._threads, self._sending = threads, sending
        for name, encoder in encoders.items():
            self.use(Lane(name, encoder))

    def main_for(self, frame: Frame) -> Lane:
        """Give the one whose latents are linked and decided on: for channels it does not know, a stand-in."""
        main = self._lanes[MAIN]
        if main.knows(frame):
            return main
        return next((lane for lane in self._lanes.values() if lane.is_stand_in and lane.knows(frame)), main)

    def cards(self) -> dict[str, ModelCard]:
        """Give the cards of the encoders at work, by their names."""
        return {name: lane.encoder.card for name, lane in self._lanes.items()}

    def use(self, lane: Lane) -> None:
        """Put an encoder in the place of the one of its name, from the next item on."""
        lane.encoder.threads = self._threads
        lane.encode.sends_windows = lane.encode.called in self._sending
        self._lanes[lane.name] = lane

    def warm_up(self) -> None:
        """Do everything once."""
        for lane in self._lanes.values():
            lane.warm_up()

    def see_beside(self, atoms: Atoms, answer: Latents, meter: Meter) -> tuple[list[Latents], list[Missing]]:
        """Encode the windows of all but the main encoder.

        Parameters
        ----------
        atoms
            Found in the frame.
        answer
            The main encoder's latents of it, linked: an atom has one track, whoever looks at it.
        meter
            Told the times.

        Returns
        -------
        latents, missing
            Of each encoder the one or the other.
        """
        told: list[Latents] = []
        missing: list[Missing] = []
        for lane in self._lanes.values():
            if lane.name == MAIN or lane.is_stand_in or lane.cut is None:
                continue
            quiet = _Apart(meter)
            latents = lane.see(atoms, quiet)
            if latents is None:
                missing.append(Missing(lane.name, quiet.reason))
            else:
                told.append(_as_tracked(latents, answer))
        return told, missing

    def see_delivered(self, patches: Patches, meter: Meter) -> Latents | None:
        """Encode patches that a detector delivered, by the first encoder that was trained on such."""
        lanes = self._lanes.values()
        # Where none does, it is told what the main encoder lacks: it is the one that a person chose.
        lane = next((one for one in lanes if not one.fits.why_not(patches)), self._lanes[MAIN])
        fitting = drive(lane.fits, patches, meter)
        return None if fitting is None else drive(lane.encode, fitting, meter)


class _Apart:
    """Passes times on; what one encoder rejects does not reject the frame."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.reason = ""

    def stage_took(self, stage: str, seconds: float) -> None:
        self._meter.stage_took(stage, seconds)

    def stage_rejected(self, stage: str, reason: str) -> None:
        self.reason = reason


def _as_tracked(latents: Latents, answer: Latents) -> Latents:
    """Give atoms the tracks that they have in another view of the same frame; -1 for those not in it."""
    known, wanted = _keys(answer.positions_px), _keys(latents.positions_px)
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    track = np.where(known[place] == wanted, answer.track[place], -1)
    tracked = msgspec.structs.replace(latents, track=track, request_id=answer.request_id)
    return tracked if answer.request_id is None else tracked.without_windows()


def _keys(positions_px: Float32) -> NDArray[np.int64]:
    """Make one number of each position ``(n, 2)``: the same place has the same bits."""
    return np.ascontiguousarray(positions_px).view(np.int64)[:, 0]
