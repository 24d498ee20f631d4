"""One frame of coordinates for the whole session: that of its first registration.

Positions of two registrations are not compared (``docs/concepts.md``); what was done to the specimen under
the first of them is done all the same. Drift and stage say how the second lies to the first.
"""

from __future__ import annotations

import msgspec

from streamer.geometry import Registration
from streamer.message_base import PairNm

# Moves of the stage that are remembered: a registration is told of a frame some seconds before.
MOST_MOVES = 32


class SpecimenFrameState(msgspec.Struct, frozen=True):
    """Everything in a SpecimenFrame."""

    offset_nm: PairNm = (0.0, 0.0)
    losses: int = 0
    stages: list[tuple[float, PairNm]] = []
    stage_held_nm: PairNm = (0.0, 0.0)


class SpecimenFrame:
    """Carries positions of the present registration to the coordinates of the first.

    Attributes
    ----------
    losses
        How often a registration began of which nobody knows how it lies to the one before.
    stage_held_nm
        Where the stage was in the frame that the present registration was said of: it is in its drift.
    """

    def __init__(self) -> None:
        self.losses = 0
        self._offset_nm: PairNm = (0.0, 0.0)
        self._stages: list[tuple[float, PairNm]] = []
        self.stage_held_nm: PairNm = (0.0, 0.0)

    def state(self) -> SpecimenFrameState:
        """Give all of it, to go on from."""
        return SpecimenFrameState(self._offset_nm, self.losses, list(self._stages), self.stage_held_nm)

    def restore(self, state: SpecimenFrameState) -> None:
        """Go on from what another had come to."""
        self._offset_nm, self.losses = state.offset_nm, state.losses
        self._stages, self.stage_held_nm = list(state.stages), state.stage_held_nm

    @property
    def stage_nm(self) -> PairNm:
        """Where the stage was told to be in the latest frame, ``(x, y)``."""
        return self._stages[-1][1] if self._stages else (0.0, 0.0)

    def observe_stage(self, stage_nm: PairNm, from_s: float) -> None:
        """Take where the stage was in a frame that began then, by the instrument's clock."""
        if stage_nm != self.stage_nm:
            self._stages = [*self._stages, (from_s, stage_nm)][-MOST_MOVES:]

    @property
    def offset_nm(self) -> PairNm:
        """By how much positions of the first registration are larger than those of the present one."""
        return self._offset_nm

    def observe(self, before: Registration, now: Registration) -> bool:
        """Go on to the next registration; was the specimen lost between the two?"""
        stage_nm = self._stage_at(now.at_s)
        is_lost = False
        if now.revision != before.revision and (before.at_s or before.revision):
            is_lost = _is_lost(now)
            moves = zip(
                self._offset_nm,
                now.drift_nm,
                before.drift_at(now.at_s),
                stage_nm,
                self.stage_held_nm,
                strict=True,
            )
            x, y = (offset + drift - (was + to - held) for offset, drift, was, to, held in moves)
            self._offset_nm = (x, y)
            self.losses += is_lost
        self.stage_held_nm = stage_nm
        return is_lost

    def place_nm(self, position_nm: PairNm, stage_nm: PairNm) -> PairNm:
        """Say what a beam meets that is sent to a position of the present registration.

        Parameters
        ----------
        position_nm
            ``(x, y)``.
        stage_nm
            Where the stage then is.
        """
        moves = zip(position_nm, self._offset_nm, stage_nm, self.stage_held_nm, strict=True)
        x, y = (position + offset - (to - held) for position, offset, to, held in moves)
        return (x, y)

    def _stage_at(self, at_s: float) -> PairNm:
        since = [stage_nm for from_s, stage_nm in self._stages if from_s <= at_s]
        return since[-1] if since else (0.0, 0.0)


def _is_lost(registration: Registration) -> bool:
    """A frame that shows nothing of the frames before it; ``separate`` only begins anew after such frames."""
    distortion = registration.distortion
    return distortion is not None and ("lost" in distortion.flags or distortion.mode == "separate")
