"""The four scans that tell strain from distortion: turned, then with the specimen moved, then back.

From one scan direction a static strain of the specimen and a static distortion of the scan are the
same. Turned by a quarter, a distortion that goes with the raster turns and the specimen does not; what
then still looks alike about the centre of rotation is told apart by a second centre, which only a
move of the *specimen* gives: a shift of the scan takes the non-linearity of the coils along. The frames of
the session itself are the first view, at 0° and in place, so the requests are: 90° in place, 90° moved,
0° moved, and 0° back in place.
"""

from __future__ import annotations

import math

import msgspec

from streamer.messages import (
    Control,
    Outcome,
    PairNm,
    Registration,
    Request,
    ScanGeometry,
    StrainMap,
    Suggestion,
)

PREFIX = "separate-"
# Turned by how much against the session's frames, and whether the specimen is moved.
STEPS = ((math.pi / 2, False), (math.pi / 2, True), (0.0, True), (0.0, False))
NAMES = ("90° in place", "90° moved", "0° moved", "0° back in place")
_BACK = 3  # the step that moves the specimen back
_NEVER_BEGUN = ("refused", "skipped")
# Of the field, along x and y: a fifth of it in all.
MOVE = (0.16, 0.12)


def is_of_separation(identifier: str) -> bool:
    """Say whether an id belongs to one of the four scans; nobody else may use such."""
    return identifier.startswith(PREFIX)


class Separation(msgspec.Struct, frozen=True):
    """How far the four scans are; a fold over the journal.

    Attributes
    ----------
    round
        Counts how often they were asked for.
    step
        The next of the four, or 4.
    is_on
        Whether there is something to ask for or under way.
    under_way
        Id of the scan that the instrument has been asked for; empty for none.
    ended
        Which scan failed and why; empty for none. After one that moved the specimen only the last is still
        asked for, that moves it back.
    map_frames
        Frames that went into the newest map of the strain; 0 before the first.
    """

    round: int = 0
    step: int = 0
    is_on: bool = False
    under_way: str = ""
    ended: str = ""
    map_frames: int = 0

    @property
    def next_id(self) -> str:
        """Id of the scan to ask for now; empty for none."""
        is_due = self.is_on and not self.under_way and self.step < len(STEPS)
        return f"{PREFIX}{self.round}-{self.step}" if is_due else ""

    def apply(self, message: Control | Suggestion | Request | Outcome | StrainMap) -> Separation:
        """Take in a record of the journal."""
        match message:
            case Control(action="separate"):
                return Separation(
                    round=self.round + 1, is_on=True, under_way=self.under_way, map_frames=self.map_frames
                )
            case StrainMap():
                return msgspec.structs.replace(self, map_frames=message.frames)
            case Request(id=identifier) if is_of_separation(identifier):
                return msgspec.structs.replace(self, under_way=identifier)
            case Outcome(id=identifier) if is_of_separation(identifier):
                return self._settled(message)
            case _:
                return self

    def _settled(self, outcome: Outcome) -> Separation:
        if outcome.id not in (self.under_way, self.next_id):
            return self
        is_current = outcome.id.startswith(f"{PREFIX}{self.round}-")
        if not is_current:  # of a round that was begun anew meanwhile
            return msgspec.structs.replace(self, under_way="")
        if outcome.status != "ok":
            why = f"{NAMES[self.step]}: {outcome.status} {outcome.reason}".strip()
            ended = "; ".join(part for part in (self.ended, why) if part)
            # Whatever else failed, the specimen is brought back to where it was.
            is_moved = self.step == 2 or (self.step == 1 and outcome.status not in _NEVER_BEGUN)
            return msgspec.structs.replace(
                self, step=_BACK if is_moved else self.step, is_on=is_moved, under_way="", ended=ended
            )
        step = self.step + 1
        return msgspec.structs.replace(self, step=step, is_on=step < len(STEPS), under_way="")


def stage_move_nm(geometry: ScanGeometry) -> PairNm:
    """Say how far the specimen is moved for the second view, ``(x, y)``: a fifth of the field."""
    width, height = geometry.field_of_view_nm
    return (MOVE[0] * width, MOVE[1] * height)


def next_scan(
    separation: Separation,
    *,
    session: str,
    number: int,
    acquired_at_s: float,
    dwell_time_us: float,
    geometry: ScanGeometry,
    registration: Registration,
    clock_s: float,
) -> Suggestion:
    """Word the scan that is due: the raster of the session's frames, turned, with the specimen moved.

    Parameters
    ----------
    separation
        Whose ``next_id`` is not empty.
    session, number, acquired_at_s, dwell_time_us, geometry
        Those of the latest frame as acquired.
    registration
        Of the latest corrected frame.
    clock_s
        That the envelope goes by.
    """
    turn_rad, is_moved = STEPS[separation.step]
    return Suggestion(
        session=session,
        number=number,
        acquired_at_s=acquired_at_s,
        id=separation.next_id,
        action="scan",
        # Whatever the drift: the same place of the scan, or the distortion would be another one.
        position_nm=registration.specimen_position_nm(geometry.center_nm, geometry, clock_s),
        registration_revision=registration.revision,
        dwell_time_us=dwell_time_us,
        field_of_view_nm=geometry.field_of_view_nm,
        shape=geometry.shape,
        rotation_rad=geometry.rotation_rad + turn_rad,
        stage_nm=stage_move_nm(geometry) if is_moved else (0.0, 0.0),
        reason=f"to tell strain from distortion: {NAMES[separation.step]}",
        policy="separate",
    )
