"""What the instrument may be asked to do: deny by default, refuse and never clip; the dose ledger.

Doses are electrons. A beam of ``beam_current_pa`` gives 6.2415e6 electrons a second and picoampere.
The ledger counts in square cells of the specimen, so that it follows the drift.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import product
from typing import Any

import msgspec

from streamer.messages import (
    Frame,
    Outcome,
    PairNm,
    Patches,
    Registration,
    Request,
    ScanGeometry,
    Suggestion,
)

ELECTRONS_PER_S_PA = 1e-12 / 1.602176634e-19
Cell = tuple[int, int]
MOST_CELLS = 100_000
# Ids, and what is known by them, are remembered for so many suggestions: a checkpoint must stay small.
MOST_IDS = 5_000


def forget_oldest(known: dict[str, Any], most: int) -> None:
    """Let go of what was put in first, until no more than this is left."""
    while len(known) > most:
        del known[next(iter(known))]


class EnvelopeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of what may be asked; everything outside is refused.

    Attributes
    ----------
    beam_current_pa
        For the dose; 0 for an instrument without electrons.
    margin_nm
        Distance that a position keeps from the edge of the last frame.
    min_dwell_time_us, max_dwell_time_us
        Exposure of a spectrum or dwell time of a sub-scan pixel.
    max_rate_per_s
        Granted requests a second, over the last second.
    max_dose_e
        Electrons in total, frames included.
    cell_nm
        Edge of a cell of the dose ledger, on the specimen.
    max_dose_e_per_cell
        Electrons in one cell, frames included.
    max_pending
        Requests under way at once.
    max_stage_move_nm
        How far along one axis the specimen stage may be sent from where it was at the start of the
        session; 0 for nowhere. ``separate`` needs about a fifth of the field.
    """

    beam_current_pa: float = 60.0
    margin_nm: float = 0.0
    min_dwell_time_us: float = 0.1
    max_dwell_time_us: float = 1_000_000.0
    max_rate_per_s: float = 50.0
    max_dose_e: float = 1e12
    cell_nm: float = 0.1
    max_dose_e_per_cell: float = 2e9
    max_pending: int = 16
    max_stage_move_nm: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "beam_current_pa",
            "margin_nm",
            "max_dose_e",
            "max_dose_e_per_cell",
            "max_stage_move_nm",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"envelope.{name} is {getattr(self, name)}; it takes 0 and above")
        for name in ("min_dwell_time_us", "max_dwell_time_us", "max_rate_per_s", "cell_nm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"envelope.{name} is {getattr(self, name)}; it takes numbers above 0")
        if self.min_dwell_time_us > self.max_dwell_time_us:
            raise ValueError(
                f"envelope.min_dwell_time_us is {self.min_dwell_time_us}; it takes no more than "
                f"max_dwell_time_us, {self.max_dwell_time_us}"
            )
        if not 1 <= self.max_pending <= 10_000:
            raise ValueError(f"envelope.max_pending is {self.max_pending}; it takes 1 to 10000")


class RefusedError(Exception):
    """A suggestion outside the envelope.

    Attributes
    ----------
    reason
        A short fixed word, the label of a counter.
    detail
        The same with numbers, for the agent and the operator.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Veto(msgspec.Struct, frozen=True):
    """A place where a person wants nothing more measured.

    Attributes
    ----------
    position_nm, radius_nm
        On the specimen, ``(x, y)``.
    registration_revision
        Which registration the position speaks of.
    """

    position_nm: PairNm
    radius_nm: float
    registration_revision: int


class EnvelopeState(msgspec.Struct, frozen=True):
    """Everything that an envelope has learnt in a session; see ``Envelope.state``."""

    total_e: float
    everywhere_e: float
    cells_e: list[tuple[int, int, float]]
    pending: list[Request]
    seen: list[str]
    vetoes: list[Veto]
    geometry: ScanGeometry | None
    registration: Registration
    clock_s: float
    batches_e_per_nm2: float = 0.0


class Dose(msgspec.Struct, frozen=True):
    """Electrons of one request.

    Attributes
    ----------
    total_e
        Of all of it.
    cells_e
        The most that each touched cell may get: together they can be more than the total.
    """

    total_e: float
    cells_e: dict[Cell, float]


class DoseLedger:
    """Electrons given and reserved, in total and in each cell of the specimen.

    Parameters
    ----------
    cell_nm
        Edge of a cell.
    """

    def __init__(self, cell_nm: float) -> None:
        self.cell_nm = cell_nm
        self.total_e = 0.0
        self.cells_e: dict[Cell, float] = {}
        self.everywhere_e = 0.0

    def cell_of(self, position_nm: PairNm) -> Cell:
        """Name the cell that a specimen position ``(x, y)`` lies in."""
        return math.floor(position_nm[0] / self.cell_nm), math.floor(position_nm[1] / self.cell_nm)

    def cell_dose_e(self, cell: Cell) -> float:
        """Electrons in one cell, those of the frames included."""
        return self.cells_e.get(cell, 0.0) + self.everywhere_e

    def add_frame(self, dose_e_per_nm2: float, area_nm2: float) -> None:
        """Add a frame. It counts in every cell, also outside the field: never too little."""
        self.total_e += dose_e_per_nm2 * area_nm2
        self.everywhere_e += dose_e_per_nm2 * self.cell_nm**2

    def add(self, dose: Dose, times: float = 1.0) -> None:
        """Add a dose; -1 times gives a reservation back."""
        for cell, electrons in dose.cells_e.items():
            self.cells_e[cell] = self.cells_e.get(cell, 0.0) + times * electrons
        self.total_e += times * dose.total_e


class Envelope:
    """Decides on every suggestion; knows what is under way.

    Parameters
    ----------
    config
        The limits.
    """

    def __init__(self, config: EnvelopeConfig) -> None:
        self.config = config
        self.ledger = DoseLedger(config.cell_nm)
        self.pending: dict[str, Request] = {}
        self.vetoes: list[Veto] = []
        self._geometry: ScanGeometry | None = None
        self._registration = Registration()
        self._clock_s = 0.0  # of the instrument, when it last said something
        self._batches_e_per_nm2 = 0.0  # counted of patches whose frame is still to come
        self._seen: dict[str, None] = {}
        self._granted_at_s: deque[float] = deque()

    def state(self) -> EnvelopeState:
        """Give all that was learnt, so that another envelope can go on from here."""
        return EnvelopeState(
            total_e=self.ledger.total_e,
            everywhere_e=self.ledger.everywhere_e,
            cells_e=[(*cell, electrons) for cell, electrons in self.ledger.cells_e.items()],
            pending=list(self.pending.values()),
            seen=list(self._seen),
            vetoes=list(self.vetoes),
            geometry=self._geometry,
            registration=self._registration,
            clock_s=self._clock_s,
            batches_e_per_nm2=self._batches_e_per_nm2,
        )

    def restore(self, state: EnvelopeState) -> None:
        """Go on from what another envelope had learnt."""
        self.ledger.total_e = state.total_e
        self.ledger.everywhere_e = state.everywhere_e
        self.ledger.cells_e = {(row, col): electrons for row, col, electrons in state.cells_e}
        self.pending = {request.id: request for request in state.pending}
        self.vetoes = list(state.vetoes)
        self._seen = dict.fromkeys(state.seen)
        self._geometry = state.geometry
        self._registration = state.registration
        self._clock_s = state.clock_s
        self._batches_e_per_nm2 = state.batches_e_per_nm2

    @property
    def registration(self) -> Registration:
        """Where the specimen was in the latest corrected frame."""
        return self._registration

    @property
    def clock_s(self) -> float:
        """Instrument clock when it last said something: the drift is carried on until then."""
        return self._clock_s

    def observe_frame(self, frame: Frame, missed: int = 0) -> None:
        """Count the dose of a frame as acquired and take its field as the bounds.

        Parameters
        ----------
        frame
            As it came.
        missed
            Numbers left empty before it: frames that were begun and broken off, or never arrived. They
            are taken to have given as much.

        The frame of a scan whose patches came before it has the same dose: it is counted once.
        """
        self._clock_s = frame.acquired_at_s
        if frame.request_id is not None:  # its dose was reserved with the request
            return
        width, height = frame.geometry.field_of_view_nm
        beam_e = self._electrons(frame.dwell_time_us) * math.prod(frame.geometry.shape)
        # Whoever does not tell the dose of a frame is not taken to have given none.
        dose_e_per_nm2 = max(frame.dose_e_per_nm2, beam_e / (width * height))
        counted_e_per_nm2 = min(self._batches_e_per_nm2, dose_e_per_nm2)
        self._batches_e_per_nm2 = 0.0
        self.ledger.add_frame((1 + missed) * dose_e_per_nm2 - counted_e_per_nm2, width * height)
        self._geometry = frame.geometry

    def observe_patches(self, patches: Patches, missed: int = 0) -> None:
        """Count the dose of a batch that a detector delivered, and take its scan's field as the bounds.

        Parameters
        ----------
        patches
            As they came.
        missed
            As of a frame: batches that never came are taken to have given as much.
        """
        self._clock_s = patches.acquired_at_s
        if patches.request_id is not None:
            return
        width, height = patches.geometry.field_of_view_nm
        each_e = max(patches.dose_e, self._electrons(patches.dwell_time_us))
        dose_e_per_nm2 = (1 + missed) * len(patches.windows) * each_e / (width * height)
        self.ledger.add_frame(dose_e_per_nm2, width * height)
        self._batches_e_per_nm2 += dose_e_per_nm2
        self._geometry = patches.geometry

    def observe_registration(self, registration: Registration) -> None:
        """Take the drift of the latest corrected frame."""
        self._registration = registration

    def review(self, suggestion: Suggestion, now_s: float) -> Request:
        """Grant a suggestion as a Request; nothing is reserved before ``grant``.

        Parameters
        ----------
        suggestion
            From the agent.
        now_s
            Monotonic clock, for the rate.

        Raises
        ------
        RefusedError
            If any limit is broken.
        """
        if suggestion.id in self._seen:
            raise RefusedError("duplicate id", f"{suggestion.id} was suggested before")
        scan_position_nm = self._check_place(suggestion)
        self._check_stage(suggestion)
        self._check_vetoes(suggestion)
        self._check_exposure(suggestion)
        self._check_rate(now_s)
        dose = self._dose_of(suggestion)
        self._check_dose(dose)
        return Request(
            session=suggestion.session,
            id=suggestion.id,
            action=suggestion.action,
            scan_position_nm=scan_position_nm,
            position_nm=suggestion.position_nm,
            dwell_time_us=suggestion.dwell_time_us,
            field_of_view_nm=suggestion.field_of_view_nm,
            shape=suggestion.shape,
            rotation_rad=suggestion.rotation_rad,
            stage_nm=suggestion.stage_nm,
            dose_e=dose.total_e,
        )

    def note(self, identifier: str) -> None:
        """Take an id that was suggested, granted or not: it is never granted again."""
        self._seen[identifier] = None
        forget_oldest(self._seen, MOST_IDS)

    def grant(self, request: Request, now_s: float | None = None) -> None:
        """Reserve the dose of a request that goes to the instrument.

        Parameters
        ----------
        request
            As ``review`` made it, or as the journal has it.
        now_s
            Monotonic clock of the grant, for the rate; None for one of an earlier process.
        """
        self.note(request.id)
        self.ledger.add(self._dose_of(request))
        self.pending[request.id] = request
        if now_s is not None:
            self._granted_at_s.append(now_s)

    def veto(self, position_nm: PairNm, radius_nm: float) -> None:
        """Grant nothing more around a specimen position ``(x, y)`` of the present registration."""
        self.vetoes.append(Veto(position_nm, radius_nm, self._registration.revision))

    def settle(self, outcome: Outcome) -> Outcome:
        """Say where on the specimen the measurement of an outcome was; ``release`` then closes it.

        Raises
        ------
        RefusedError
            ``unknown id`` for an outcome that nobody asked for, or that came before.
        """
        if outcome.id not in self.pending:
            raise RefusedError("unknown id", f"no request {outcome.id} is under way")
        if outcome.scan_position_nm is None:
            return outcome
        middle_s = (outcome.started_at_s + outcome.ended_at_s) / 2
        position_nm = self._registration.specimen_position_nm(
            outcome.scan_position_nm, self._geometry, middle_s
        )
        return msgspec.structs.replace(outcome, position_nm=position_nm)

    def release(self, outcome: Outcome) -> bool:
        """Close the request of an outcome; False where none is under way.

        The reserved dose stays as given, unless the outcome says that nothing was measured, or that it
        was more.
        """
        request = self.pending.pop(outcome.id, None)
        if request is None:
            return False
        self._clock_s = max(self._clock_s, outcome.ended_at_s)
        dose = self._dose_of(request)
        if outcome.status in ("refused", "skipped"):
            self.ledger.add(dose, -1.0)
        elif outcome.dose_e > dose.total_e > 0:
            self.ledger.add(dose, outcome.dose_e / dose.total_e - 1.0)
        return True

    def _check_vetoes(self, suggestion: Suggestion) -> None:
        for veto in self.vetoes:
            away_nm = math.dist(veto.position_nm, suggestion.position_nm)
            if veto.registration_revision == suggestion.registration_revision and away_nm <= veto.radius_nm:
                raise RefusedError("vetoed", f"nothing is measured within {veto.radius_nm:g} nm of there")

    def _check_place(self, suggestion: Suggestion) -> PairNm:
        if self._geometry is None:
            raise RefusedError("no frame yet", "the field is not known before the first frame")
        if suggestion.registration_revision != self._registration.revision:
            raise RefusedError(
                "stale registration",
                f"positions of reference {suggestion.registration_revision}; it is now "
                f"{self._registration.revision}",
            )
        if not all(math.isfinite(v) for v in suggestion.position_nm):
            raise RefusedError("not finite", f"position {suggestion.position_nm}")
        position_nm = self._registration.scan_position_nm(
            suggestion.position_nm, self._geometry, self._clock_s
        )
        half_w, half_h = ((v / 2) for v in suggestion.field_of_view_nm or (0.0, 0.0))
        is_scan = suggestion.field_of_view_nm is not None
        if not (math.isfinite(half_w + half_h) and (min(half_w, half_h) > 0 or not is_scan)):
            raise RefusedError("not finite", f"field of view {suggestion.field_of_view_nm}")
        turned_rad = suggestion.rotation_rad
        if turned_rad is None:
            turned_rad = self._geometry.rotation_rad
        cos, sin = math.cos(turned_rad), math.sin(turned_rad)
        corners = [
            (
                position_nm[0] + sx * half_w * cos - sy * half_h * sin,
                position_nm[1] + sx * half_w * sin + sy * half_h * cos,
            )
            for sx, sy in product((-1, 1), repeat=2)
        ]
        if not all(self._is_inside(corner) for corner in corners):
            x, y = position_nm
            raise RefusedError("outside field", f"scan position ({x:.3f}, {y:.3f}) nm")
        return position_nm

    def _is_inside(self, scan_position_nm: PairNm) -> bool:
        assert self._geometry is not None
        (row, col) = self._geometry.to_px([scan_position_nm])[0]  # type: ignore[arg-type]
        height_nm, width_nm = self._geometry.pixel_size_nm
        rows, cols = self._geometry.shape
        margin_rows, margin_cols = self.config.margin_nm / height_nm, self.config.margin_nm / width_nm
        rounding = 1e-3  # a scan of the whole field ends exactly on its edge
        return bool(
            margin_rows - 0.5 - rounding <= row <= rows - 0.5 - margin_rows + rounding
            and margin_cols - 0.5 - rounding <= col <= cols - 0.5 - margin_cols + rounding
        )

    def _check_stage(self, suggestion: Suggestion) -> None:
        most_nm = self.config.max_stage_move_nm
        if suggestion.stage_nm is not None and not max(map(abs, suggestion.stage_nm)) <= most_nm:
            raise RefusedError(
                "stage move",
                f"to {suggestion.stage_nm} nm; envelope.max_stage_move_nm allows {most_nm:g}",
            )

    def _check_exposure(self, suggestion: Suggestion) -> None:
        low, high = self.config.min_dwell_time_us, self.config.max_dwell_time_us
        if not low <= suggestion.dwell_time_us <= high:
            raise RefusedError("dwell time", f"{suggestion.dwell_time_us} µs; it takes {low} to {high}")
        if suggestion.shape is not None and not all(1 <= n <= 4096 for n in suggestion.shape):
            raise RefusedError("scan shape", f"{suggestion.shape}; it takes 1 to 4096")
        cells = math.prod(edge / self.config.cell_nm + 1 for edge in suggestion.field_of_view_nm or ())
        if cells > MOST_CELLS:
            raise RefusedError(
                "scan size",
                f"{suggestion.field_of_view_nm} nm is {cells:.3g} cells of the dose ledger; it takes "
                f"{MOST_CELLS}: choose a larger envelope.cell_nm",
            )

    def _check_rate(self, now_s: float) -> None:
        while self._granted_at_s and self._granted_at_s[0] <= now_s - 1.0:
            self._granted_at_s.popleft()
        if len(self._granted_at_s) + 1 > self.config.max_rate_per_s:
            raise RefusedError("rate", f"more than {self.config.max_rate_per_s} requests a second")
        if len(self.pending) >= self.config.max_pending:
            raise RefusedError("pending", f"{len(self.pending)} requests are under way")

    def _electrons(self, dwell_time_us: float) -> float:
        return ELECTRONS_PER_S_PA * self.config.beam_current_pa * dwell_time_us * 1e-6

    def _dose_of(self, suggestion: Suggestion | Request) -> Dose:
        """Electrons that the request would give, in total and to each cell."""
        electrons = self._electrons(suggestion.dwell_time_us)
        if suggestion.shape is None or suggestion.field_of_view_nm is None:
            return Dose(electrons, {self.ledger.cell_of(suggestion.position_nm): electrons})
        x, y = (p - s for p, s in zip(suggestion.position_nm, suggestion.stage_nm or (0.0, 0.0), strict=True))
        width, height = suggestion.field_of_view_nm
        total_e = electrons * math.prod(suggestion.shape)
        first = self.ledger.cell_of((x - width / 2, y - height / 2))
        last = self.ledger.cell_of((x + width / 2, y + height / 2))
        # A cell that the scan touches is taken to lie in it as far as it can.
        side = self.config.cell_nm
        inside = min(side / width, 1.0) * min(side / height, 1.0)
        cells = product(range(first[0], last[0] + 1), range(first[1], last[1] + 1))
        return Dose(total_e, dict.fromkeys(cells, total_e * inside))

    def _check_dose(self, dose: Dose) -> None:
        total_e = self.ledger.total_e + dose.total_e
        if not total_e <= self.config.max_dose_e:  # also where it is NaN
            raise RefusedError("total dose", f"{total_e:.3g} e; it takes {self.config.max_dose_e:.3g}")
        for cell, electrons in dose.cells_e.items():
            cell_e = self.ledger.cell_dose_e(cell) + electrons
            if not cell_e <= self.config.max_dose_e_per_cell:
                raise RefusedError(
                    "cell dose",
                    f"{cell_e:.3g} e in a cell of {self.config.cell_nm:g} nm; "
                    f"it takes {self.config.max_dose_e_per_cell:.3g}",
                )
