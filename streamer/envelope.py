"""What the instrument may be asked to do: deny by default, refuse and never clip.

Doses are electrons. A beam of ``beam_current_pa`` gives 6.2415e6 electrons a second and picoampere.
Doses, visits and forbidden areas are kept in the coordinates of the first registration, so that they follow
the drift and outlive a change of the field of view.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import msgspec

from streamer.areas import FURTHEST_NM, Rectangle, why_no_polygon
from streamer.dose_ledger import Booking, Dose, DoseLedger
from streamer.forbidden import ForbiddenAreas, ForbiddenState
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
from streamer.specimen_frame import SpecimenFrame, SpecimenFrameState
from streamer.visits import Visits, VisitsState

ELECTRONS_PER_S_PA = 1e-12 / 1.602176634e-19
MOST_CELLS = 100_000
# A scan of the whole field ends exactly on its edge, give or take the rounding.
ROUNDING_PX = 1e-3
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
    forbidden_areas_nm
        Polygons that no point and no part of a sub-scan may touch, each three corners ``(x, y)`` or more;
        in the specimen coordinates of the session's first frame, which follow the drift.
    max_beam_current_pa
        Nothing is asked for while the beam has more, by ``beam_current_pa`` or by what the latest frame
        says of its dose; 0 is without limit.
    max_step_nm
        How far the beam may go from the last place granted or visited, middle to middle, in scan
        coordinates; 0 is without limit.
    min_revisit_s
        Time between two visits of a cell of the dose ledger, by the instrument's clock; 0 for none.
    revisit_distance_nm
        A visit counts also in cells so far away along x and y.
    max_registration_age_s
        Age of the frame that last said where the specimen is, by the instrument's clock; 0 is without
        limit.
    max_position_sd_nm
        Standard deviation of the drift, and of the suggestion's position where it says one; 0 is without
        limit.
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
    forbidden_areas_nm: tuple[tuple[PairNm, ...], ...] = ()
    max_beam_current_pa: float = 0.0
    max_step_nm: float = 0.0
    min_revisit_s: float = 0.0
    revisit_distance_nm: float = 0.0
    max_registration_age_s: float = 0.0
    max_position_sd_nm: float = 0.0

    def __post_init__(self) -> None:
        for name in _FROM_0:
            if not getattr(self, name) >= 0:
                raise ValueError(f"envelope.{name} is {getattr(self, name)}; it takes 0 and above")
        for name in ("min_dwell_time_us", "max_dwell_time_us", "max_rate_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"envelope.{name} is {getattr(self, name)}; it takes numbers above 0")
        if not self.cell_nm >= 1e-6:
            raise ValueError(f"envelope.cell_nm is {self.cell_nm}; it takes 0.000001 and above")
        if self.min_dwell_time_us > self.max_dwell_time_us:
            raise ValueError(
                f"envelope.min_dwell_time_us is {self.min_dwell_time_us}; it takes no more than "
                f"max_dwell_time_us, {self.max_dwell_time_us}"
            )
        if not 1 <= self.max_pending <= 10_000:
            raise ValueError(f"envelope.max_pending is {self.max_pending}; it takes 1 to 10000")
        if not self.revisit_distance_nm <= 100 * self.cell_nm:
            raise ValueError(
                f"envelope.revisit_distance_nm is {self.revisit_distance_nm}; it takes up to 100 cells of "
                f"cell_nm, {self.cell_nm}"
            )
        for index, area in enumerate(self.forbidden_areas_nm):
            if why := why_no_polygon(area):
                raise ValueError(f"envelope.forbidden_areas_nm[{index}] {why}")


_FROM_0 = (
    "beam_current_pa",
    "margin_nm",
    "max_dose_e",
    "max_dose_e_per_cell",
    "max_stage_move_nm",
    "max_beam_current_pa",
    "max_step_nm",
    "min_revisit_s",
    "revisit_distance_nm",
    "max_registration_age_s",
    "max_position_sd_nm",
)


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


class EnvelopeState(msgspec.Struct, frozen=True):
    """Everything that an envelope has learnt in a session; see ``Envelope.state``."""

    total_e: float
    everywhere_e: float
    cells_e: list[tuple[int, int, float]]
    pending: list[Request]
    bookings: dict[str, Booking]
    seen: list[str]
    geometry: ScanGeometry | None
    registration: Registration
    specimen: SpecimenFrameState
    clock_s: float
    batches_e_per_nm2: float = 0.0
    current_pa: float = 0.0
    visited_nm: PairNm | None = None
    visits: VisitsState = VisitsState()
    forbidden: ForbiddenState = ForbiddenState()


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
        self.forbidden = ForbiddenAreas(config.forbidden_areas_nm)
        self._specimen = SpecimenFrame()
        self._bookings: dict[str, Booking] = {}  # of those pending
        self._geometry: ScanGeometry | None = None
        self._registration = Registration()
        self._clock_s = 0.0  # of the instrument, when it last said something
        self._current_pa = config.beam_current_pa
        self._batches_e_per_nm2 = 0.0  # counted of patches whose frame is still to come
        self._visited_nm: PairNm | None = None  # where the beam was last, in scan coordinates
        self._visits = Visits(config.cell_nm, config.min_revisit_s, config.revisit_distance_nm)
        self._seen: dict[str, None] = {}
        self._granted_at_s: deque[float] = deque()

    def state(self) -> EnvelopeState:
        """Give all that was learnt, so that another envelope can go on from here."""
        return EnvelopeState(
            total_e=self.ledger.total_e,
            everywhere_e=self.ledger.everywhere_e,
            cells_e=[(*cell, electrons) for cell, electrons in self.ledger.cells_e.items()],
            pending=list(self.pending.values()),
            bookings=dict(self._bookings),
            seen=list(self._seen),
            geometry=self._geometry,
            registration=self._registration,
            specimen=self._specimen.state(),
            clock_s=self._clock_s,
            batches_e_per_nm2=self._batches_e_per_nm2,
            current_pa=self._current_pa,
            visited_nm=self._visited_nm,
            visits=self._visits.state(),
            forbidden=self.forbidden.state(),
        )

    def restore(self, state: EnvelopeState) -> None:
        """Go on from what another envelope had learnt."""
        self.ledger.total_e = state.total_e
        self.ledger.everywhere_e = state.everywhere_e
        self.ledger.cells_e = {(row, col): electrons for row, col, electrons in state.cells_e}
        self.pending = {request.id: request for request in state.pending}
        self._bookings = dict(state.bookings)
        self._seen = dict.fromkeys(state.seen)
        self._geometry = state.geometry
        self._registration = state.registration
        self._specimen.restore(state.specimen)
        self._clock_s = state.clock_s
        self._batches_e_per_nm2 = state.batches_e_per_nm2
        self._current_pa = state.current_pa
        self._visited_nm = state.visited_nm
        self._visits.restore(state.visits)
        self.forbidden.restore(state.forbidden, was_lost=self._specimen.losses > 0)

    @property
    def registration(self) -> Registration:
        """Where the specimen was in the latest corrected frame."""
        return self._registration

    @property
    def clock_s(self) -> float:
        """Instrument clock when it last said something: the drift is carried on until then."""
        return self._clock_s

    # -- learn ---------------------------------------------------------------------------------

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
        pixels = math.prod(frame.geometry.shape)
        self._specimen.observe_stage(
            frame.stage_nm, frame.acquired_at_s - 1e-6 * frame.dwell_time_us * pixels
        )
        if frame.request_id is not None:  # its dose was reserved with the request
            return
        width, height = frame.geometry.field_of_view_nm
        told_e = frame.dose_e_per_nm2 * width * height / pixels
        beam_e = self._heed_current(told_e, frame.dwell_time_us)
        dose_e_per_nm2 = beam_e * pixels / (width * height)
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
        each_e = self._heed_current(patches.dose_e, patches.dwell_time_us)
        dose_e_per_nm2 = (1 + missed) * len(patches.windows) * each_e / (width * height)
        self.ledger.add_frame(dose_e_per_nm2, width * height)
        self._batches_e_per_nm2 += dose_e_per_nm2
        self._geometry = patches.geometry

    def _heed_current(self, told_e: float, dwell_time_us: float) -> float:
        """Say what one place of a raster got, and take from it what the beam gives the next ones.

        Whoever does not tell the dose is not taken to have given none.
        """
        configured_pa = self.config.beam_current_pa
        told_pa = told_e / _electrons(1.0, dwell_time_us) if dwell_time_us > 0 else 0.0
        # What is only rounding shall not make two doses of one.
        self._current_pa = told_pa if told_pa > configured_pa * (1 + 1e-9) else configured_pa
        return max(told_e, _electrons(configured_pa, dwell_time_us))

    def observe_registration(self, registration: Registration) -> PairNm:
        """Take the drift of the latest corrected frame.

        Returns
        -------
        moved_nm
            What is to be added to a position of the registration before, ``(x, y)``, to have the same place
            in this one; NaN where the specimen was lost, and nobody knows.
        """
        before_nm, losses = self._specimen.offset_nm, self._specimen.losses
        if self._specimen.observe(self._registration, registration):
            under_way = [booking.dose(self.config.cell_nm) for booking in self._bookings.values()]
            self.ledger.lose(under_way)
            self._visits.lose()
            self.forbidden.lose()
        self._registration = registration
        if self._specimen.losses > losses:
            return (math.nan, math.nan)
        x, y = (was - now for was, now in zip(before_nm, self._specimen.offset_nm, strict=True))
        return (x, y)

    def veto(self, corners_nm: tuple[PairNm, ...], radius_nm: float) -> None:
        """Grant nothing more in an area, or within a radius of it.

        Parameters
        ----------
        corners_nm
            Of a polygon, or the one of a disc: specimen positions ``(x, y)`` of the present registration.
        radius_nm
            How far around it.
        """
        held_nm = self._specimen.stage_held_nm
        self.forbidden.veto(tuple(self._specimen.place_nm(one, held_nm) for one in corners_nm), radius_nm)

    # -- answer --------------------------------------------------------------------------------

    def review(self, suggestion: Suggestion, now_s: float, *, has_waited: bool = False) -> Request:
        """Grant a suggestion as a Request; nothing is reserved before ``grant``.

        Parameters
        ----------
        suggestion
            From the agent.
        now_s
            Monotonic clock, for the rate.
        has_waited
            Whether it was reviewed before and waited for a person: its id is known then.

        Raises
        ------
        RefusedError
            If any limit is broken.
        """
        if suggestion.id in self.pending or (suggestion.id in self._seen and not has_waited):
            raise RefusedError("duplicate id", f"{suggestion.id} was suggested before")
        geometry = self._check_registration(suggestion)
        scan_position_nm = self._check_place(suggestion, geometry)
        self._check_exposure(suggestion)
        self._check_stage(suggestion)
        self._check_rate(now_s)
        booking = self._booking(suggestion)
        self._check_areas(booking.place)
        dose = booking.dose(self.config.cell_nm)
        self._check_dose(dose)
        self._check_visits(booking.place)
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
        booking = self._booking(request)
        self.ledger.add(booking.dose(self.config.cell_nm))
        self.pending[request.id] = request
        self._bookings[request.id] = booking
        if now_s is not None:
            self._granted_at_s.append(now_s)

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

        The reserved dose stays as given, where the beam really was, unless the outcome says that nothing
        was measured, or that it was more.
        """
        request = self.pending.pop(outcome.id, None)
        if request is None:
            return False
        self._clock_s = max(self._clock_s, outcome.ended_at_s)
        booking = self._bookings.pop(outcome.id)
        reserved = booking.dose(self.config.cell_nm)
        if outcome.status in ("refused", "skipped"):
            self.ledger.add(reserved, -1.0)
            return True
        self._visited_nm = _finite(outcome.scan_position_nm) or request.scan_position_nm
        if request.stage_nm is not None:  # it went there, or may have; the next frame says it
            self._specimen.observe_stage(request.stage_nm, self._clock_s)
        booking = self._where_it_was(booking, outcome)
        given = booking.dose(self.config.cell_nm)
        times = outcome.dose_e / given.total_e if outcome.dose_e > given.total_e > 0 else 1.0
        if times != 1.0 or given != reserved:
            self.ledger.add(reserved, -1.0)
            self.ledger.add(given, times)
        self._visits.note(booking.place, max(self._clock_s, outcome.ended_at_s))
        return True

    def _where_it_was(self, booking: Booking, outcome: Outcome) -> Booking:
        position_nm = _finite(outcome.position_nm)
        if position_nm is None:
            return booking
        center_nm = self._specimen.place_nm(position_nm, booking.stage_nm)
        place = msgspec.structs.replace(booking.place, center_nm=center_nm)
        return msgspec.structs.replace(booking, place=place)

    # -- the limits, one by one ----------------------------------------------------------------

    def _check_registration(self, suggestion: Suggestion) -> ScanGeometry:
        config, registration = self.config, self._registration
        if self._geometry is None:
            raise RefusedError("no frame yet", "the field is not known before the first frame")
        if suggestion.registration_revision != registration.revision:
            raise RefusedError(
                "stale registration",
                f"positions of reference {suggestion.registration_revision}; it is now "
                f"{registration.revision}",
            )
        age_s = self._clock_s - registration.at_s
        if config.max_registration_age_s and not age_s <= config.max_registration_age_s:
            raise RefusedError(
                "old registration",
                f"where the specimen is was last seen {age_s:.3g} s ago; it takes "
                f"{config.max_registration_age_s:g}",
            )
        said_nm = suggestion.position_sd_nm
        sd_nm = registration.sd_nm if math.isnan(said_nm) else max(registration.sd_nm, said_nm)
        if config.max_position_sd_nm and not sd_nm <= config.max_position_sd_nm:
            raise RefusedError(
                "uncertain position", f"known to {sd_nm:.3g} nm; it takes {config.max_position_sd_nm:g}"
            )
        return self._geometry

    def _check_place(self, suggestion: Suggestion, geometry: ScanGeometry) -> PairNm:
        if not all(math.isfinite(v) for v in suggestion.position_nm):
            raise RefusedError("not finite", f"position {suggestion.position_nm}")
        size_nm = suggestion.field_of_view_nm
        if size_nm is not None and not (math.isfinite(sum(size_nm)) and min(size_nm) > 0):
            raise RefusedError("not finite", f"field of view {size_nm}")
        if max(map(abs, suggestion.position_nm)) > FURTHEST_NM:
            raise RefusedError("outside field", f"position {suggestion.position_nm} nm")
        position_nm = self._registration.scan_position_nm(suggestion.position_nm, geometry, self._clock_s)
        scanned = Rectangle(position_nm, size_nm or (0.0, 0.0), self._rotation_of(suggestion))
        if not all(self._is_inside(corner, geometry) for corner in scanned.corners_nm):
            x, y = position_nm
            raise RefusedError("outside field", f"scan position ({x:.3f}, {y:.3f}) nm")
        self._check_step(position_nm)
        return position_nm

    def _is_inside(self, scan_position_nm: PairNm, geometry: ScanGeometry) -> bool:
        x, y = (p - c for p, c in zip(scan_position_nm, geometry.center_nm, strict=True))
        cos, sin = math.cos(geometry.rotation_rad), math.sin(geometry.rotation_rad)
        width, height = geometry.field_of_view_nm
        rows, cols = geometry.shape
        most_along = width / 2 - self.config.margin_nm + ROUNDING_PX * width / cols
        most_across = height / 2 - self.config.margin_nm + ROUNDING_PX * height / rows
        return abs(cos * x + sin * y) <= most_along and abs(cos * y - sin * x) <= most_across

    def _check_step(self, scan_position_nm: PairNm) -> None:
        most_nm = self.config.max_step_nm
        last = next(reversed(self.pending.values()), None)
        from_nm = self._visited_nm if last is None else last.scan_position_nm
        if not most_nm or from_nm is None:
            return
        step_nm = math.dist(from_nm, scan_position_nm)
        if not step_nm <= most_nm:
            raise RefusedError("step", f"{step_nm:.3g} nm from the last place; it takes {most_nm:g}")

    def _check_stage(self, suggestion: Suggestion) -> None:
        most_nm = self.config.max_stage_move_nm
        if suggestion.stage_nm is None:
            if self._stage_of(suggestion) != self._specimen.stage_held_nm:
                raise RefusedError("stage move", "the stage has moved since the frame that was decided on")
        elif not max(map(abs, suggestion.stage_nm)) <= most_nm:
            raise RefusedError(
                "stage move",
                f"to {suggestion.stage_nm} nm; envelope.max_stage_move_nm allows {most_nm:g}",
            )

    def _stage_of(self, asked: Suggestion | Request) -> PairNm:
        """Say where the stage is when it is this one's turn: in the order of the grants."""
        moves = (request.stage_nm for request in (asked, *reversed(self.pending.values())))
        return next((move for move in moves if move is not None), self._specimen.stage_nm)

    def _check_areas(self, place: Rectangle) -> None:
        if lost := self.forbidden.lost_in_words:
            raise RefusedError(
                "forbidden area",
                f"the specimen was lost, and with it where {lost} lie; say it by: probeloop control place",
            )
        area = self.forbidden.touched_by(place)
        if area is None:
            return
        if area.is_veto:
            raise RefusedError("vetoed", "it touches an area where a person wants nothing more measured")
        raise RefusedError("forbidden area", f"it touches envelope.forbidden_areas_nm[{area.index}]")

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
        most_pa = self.config.max_beam_current_pa
        if most_pa and not self._current_pa <= most_pa:
            raise RefusedError("beam current", f"{self._current_pa:.4g} pA; it takes {most_pa:g}")

    def _check_rate(self, now_s: float) -> None:
        while self._granted_at_s and self._granted_at_s[0] <= now_s - 1.0:
            self._granted_at_s.popleft()
        if len(self._granted_at_s) + 1 > self.config.max_rate_per_s:
            raise RefusedError("rate", f"more than {self.config.max_rate_per_s} requests a second")
        if len(self.pending) >= self.config.max_pending:
            raise RefusedError("pending", f"{len(self.pending)} requests are under way")

    def _rotation_of(self, asked: Suggestion | Request) -> float:
        if asked.rotation_rad is None:
            return 0.0 if self._geometry is None else self._geometry.rotation_rad
        return asked.rotation_rad

    def _booking(self, asked: Suggestion | Request) -> Booking:
        """Say where on the specimen the electrons would go, and how many."""
        stage_nm = self._stage_of(asked)
        place = Rectangle(
            self._specimen.place_nm(asked.position_nm, stage_nm),
            asked.field_of_view_nm or (0.0, 0.0),
            self._rotation_of(asked),
        )
        pixel_e = _electrons(self._current_pa, asked.dwell_time_us)
        return Booking(place, asked.shape or (1, 1), pixel_e, stage_nm)

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

    def _check_visits(self, place: Rectangle) -> None:
        under_way = [booking.place for booking in self._bookings.values()]
        if not self._visits.are_due(place, under_way, self._clock_s):
            raise RefusedError("revisit", f"less than {self.config.min_revisit_s:g} s after a visit there")


def _electrons(current_pa: float, dwell_time_us: float) -> float:
    return ELECTRONS_PER_S_PA * current_pa * dwell_time_us * 1e-6


def _finite(position_nm: PairNm | None) -> PairNm | None:
    """A position that can be reckoned with, else None."""
    is_finite = position_nm is not None and all(abs(value) <= FURTHEST_NM for value in position_nm)
    return position_nm if is_finite else None
