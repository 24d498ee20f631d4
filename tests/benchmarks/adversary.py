"""Random and adversarial suggestions against the envelope: does anything outside get through?

A world knows where its specimen, its stage and its beam really are. It moves and magnifies, loses the
specimen, is restarted, answers requests, and suggests what may and what may not be done: edges a rounding
apart, NaN and denormals, turned scans, ids used before, doses at their limit. The envelope is told what a
streamer is told. A judge who shares no code with it, written from the table of limits in
``docs/guides/limits.md``, says of each suggestion which limits it keeps; what lies on one within rounding
may be decided either way.

``--json`` prints one object on the last line; ``--quick`` tries 20,000 instead of a million.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import msgspec
import numpy as np

from streamer.codec import pack, unpack
from streamer.envelope import Envelope, EnvelopeConfig, EnvelopeState, RefusedError
from streamer.messages import (
    Control,
    Distortion,
    Frame,
    Outcome,
    Registration,
    Request,
    ScanGeometry,
    Suggestion,
)

E_PER_US_PA = 1e-18 / 1.602176634e-19  # electrons in a microsecond of a picoampere
NEAR = 1e-9  # relative rounding
NEAR_NM = 2e-6  # two areas that are so near touch or not
A_WORLD = 400  # suggestions in each
SEED = 1

Pair = tuple[float, float]
Cell = tuple[int, int]
Forbidden = tuple[list[complex], float, str]  # corners, how far around, and the word that refuses


# -- a judge who shares no code with the envelope --------------------------------------------------------


def turned(size: Pair, rotation_rad: float, middle: complex) -> list[complex]:
    """Corners of a turned rectangle, x + iy."""
    u, v = size[0] / 2, size[1] / 2
    turn = complex(math.cos(rotation_rad), math.sin(rotation_rad))
    return [middle + turn * complex(a * u, b * v) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))]


def clipped(shape: list[complex], low: complex, high: complex) -> list[complex]:
    """The part of a convex shape, or of a line, in an upright box (Sutherland and Hodgman 1974)."""
    for turn, bound in ((1, high.real), (-1, -low.real), (-1j, high.imag), (1j, -low.imag)):
        kept: list[complex] = []
        for a, b in zip(shape, shape[1:] + shape[:1], strict=True):
            da, db = (turn * a).real - bound, (turn * b).real - bound
            if da <= 0:
                kept.append(a)
            if (da < 0 < db) or (db < 0 < da):
                kept.append(a + (b - a) * (da / (da - db)))
        shape = kept
        if not shape:
            break
    return shape


def extent(shape: list[complex]) -> float:
    """Area of a polygon, or length of a line there and back halved."""
    if len(shape) < 2:
        return 0.0
    pairs = list(zip(shape, shape[1:] + shape[:1], strict=True))
    area = abs(sum((a.conjugate() * b).imag for a, b in pairs)) / 2
    return area if len(shape) > 2 else abs(shape[1] - shape[0])


def to_line(place: complex, a: complex, b: complex) -> float:
    """Distance of a place from the line between a and b."""
    if a == b:
        return abs(place - a)
    along = ((place - a) / (b - a)).real
    return abs(place - (a + (b - a) * min(max(along, 0.0), 1.0)))


def winds_around(polygon: list[complex], place: complex) -> bool:
    """Does the polygon turn once around the place?"""
    angles = sum(
        math.atan2(((b - place) / (a - place)).imag, ((b - place) / (a - place)).real)
        for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True)
        if a != place
    )
    return abs(angles) > math.pi


def gap(corners: list[complex], polygon: list[complex]) -> float:
    """Distance of two areas; 0 where they share a place."""
    sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
    edges = list(zip(polygon, polygon[1:] + polygon[:1], strict=True))
    far = min(abs(c - p) for c in corners for p in polygon)
    near = min(
        min(min(to_line(c, a, b) for c in corners) for a, b in edges),
        min(min(to_line(p, a, b) for p in polygon) for a, b in sides),
        far,
    )
    if near <= NEAR_NM / 4:
        return near
    if winds_around(polygon, corners[0]) or (len(corners) > 2 and winds_around(corners, polygon[0])):
        return 0.0
    for a, b in sides:
        for c, d in edges:
            if b == a:
                continue
            one, other = (c - a) / (b - a), (d - a) / (b - a)
            if one.imag * other.imag < 0:
                at = one.real + (other.real - one.real) * one.imag / (one.imag - other.imag)
                if 0 <= at <= 1:
                    return 0.0
    return near


@dataclass
class Given:
    """A request under way, as the judge keeps it."""

    request: Request
    place: complex  # on the specimen, as it was when the session began
    true_e: dict[Cell, float]
    counted_e: dict[Cell, float]
    total_e: float
    scan_nm: Pair
    stage_nm: Pair


class Judge:
    """Says of a suggestion which limits it keeps (1), breaks (-1), or meets within rounding (0)."""

    def __init__(self, config: EnvelopeConfig) -> None:
        self.config = config
        self.total_e = 0.0
        self.frames_e = 0.0
        self.more_e = 0.0  # that may be counted in every cell as well
        self.true_e: dict[Cell, float] = {}
        self.counted_e: dict[Cell, float] = {}
        self.visited_s: list[tuple[list[complex], float]] = []
        self.all_visited_s = -math.inf
        # Corners where they were when the session began, and how far around: placed, and lost with the jumps
        # that were known of when they were placed.
        self.areas = [
            ([complex(*c) for c in area], 0.0, "forbidden area") for area in config.forbidden_areas_nm
        ]
        self.lost: list[tuple[Forbidden, complex]] = []
        self.jumped = 0j
        self.under_way: dict[str, Given] = {}
        self.said: set[str] = set()
        self.granted_at_s: list[float] = []
        self.last_nm: Pair | None = None

    # what it is told

    def lose(self, jump: complex) -> None:
        """The specimen is not found again: it is by this elsewhere, and nobody knows."""
        self.lost += [(area, self.jumped) for area in self.areas]
        self.areas = []
        self.jumped += jump
        # On the edge of a cell a dose is counted in both, and truly in neither: the bounds part here.
        self.frames_e += max(self.true_e.values(), default=0.0)
        self.more_e += max(self.counted_e.values(), default=0.0) - max(self.true_e.values(), default=0.0)
        self.true_e, self.counted_e = {}, {}
        for given in self.under_way.values():
            self.book(given, 1.0)
            self.total_e -= given.total_e
        self.all_visited_s = max([self.all_visited_s, *(at for _, at in self.visited_s)])
        self.visited_s = []

    def book(self, given: Given, times: float) -> None:
        """Count a dose, or give it back."""
        self.total_e += times * given.total_e
        for mine, its in ((self.true_e, given.true_e), (self.counted_e, given.counted_e)):
            for cell, electrons in its.items():
                mine[cell] = mine.get(cell, 0.0) + times * electrons

    # what it says

    def verdict(self, world: World, asked: Suggestion, now_s: float) -> dict[str, int]:
        """Judge a suggestion, limit by limit; the dose only where all else is kept."""
        found = self._simple(world, asked, now_s)
        if -1 in found.values():
            return found
        place = world.on_specimen(asked.position_nm, world.stage_of(asked))
        corners = (
            [place]
            if asked.shape is None
            else turned(asked.field_of_view_nm, world.rotation_of(asked), place)
        )  # type: ignore[arg-type]
        found |= self._areas([corner - self.jumped for corner in corners])
        given = self.given(world, asked, place)
        found["total dose"] = _within(self.total_e + given.total_e, self.config.max_dose_e)
        most = max(
            (self.frames_e + self.true_e.get(c, 0.0) + e for c, e in given.true_e.items()), default=0.0
        )
        found["cell dose"] = _within(most, self.config.max_dose_e_per_cell)
        if found["cell dose"] == 1:  # what counts as touched may be more than what is
            used_e = self.frames_e + self.more_e
            most = max(used_e + self.counted_e.get(c, 0.0) + e for c, e in given.counted_e.items())
            found["cell dose"] = max(0, _within(most, self.config.max_dose_e_per_cell))
        found["revisit"] = self._visits(world, corners)
        return found

    def _simple(self, world: World, asked: Suggestion, now_s: float) -> dict[str, int]:
        config = self.config
        size = asked.field_of_view_nm
        numbers = (*asked.position_nm, *(size or (1.0, 1.0)))
        is_finite = all(math.isfinite(n) for n in numbers) and min(size or (1.0, 1.0)) > 0
        is_finite = is_finite and math.isfinite(sum(size or (0.0,)))
        dwell_us, sd_nm = asked.dwell_time_us, asked.position_sd_nm
        sd_nm = world.registration.sd_nm if math.isnan(sd_nm) else max(sd_nm, world.registration.sd_nm)
        self.granted_at_s = [at for at in self.granted_at_s if at > now_s - 1.0]
        found = {
            "duplicate id": -1 if asked.id in self.said else 1,
            "stale registration": 1 if asked.registration_revision == world.registration.revision else -1,
            "not finite": 1 if is_finite else -1,
            "dwell time": 1 if config.min_dwell_time_us <= dwell_us <= config.max_dwell_time_us else -1,
            "scan shape": 1 if all(1 <= n <= 4096 for n in asked.shape or (1, 1)) else -1,
            "rate": 1 if len(self.granted_at_s) + 1 <= config.max_rate_per_s else -1,
            "pending": 1 if len(self.under_way) < config.max_pending else -1,
            "stage move": self._stage(world, asked),
            "beam current": _limit(world.current_pa, config.max_beam_current_pa),
            "old registration": _limit(
                world.clock_s - world.registration.at_s, config.max_registration_age_s
            ),
            "uncertain position": _limit(sd_nm, config.max_position_sd_nm),
        }
        if not is_finite or max(map(abs, numbers)) > 1e10:
            return found | {"outside field": -1}
        if size is not None:
            found["scan size"] = _within((size[0] / config.cell_nm + 1) * (size[1] / config.cell_nm + 1), 1e5)
        scan_nm = world.scan_position_nm(asked.position_nm)
        found["outside field"] = self._field(world, asked, scan_nm)
        if self.last_place() is not None:
            found["step"] = _limit(math.dist(self.last_place(), scan_nm), config.max_step_nm)  # type: ignore[arg-type]
        return found

    def last_place(self) -> Pair | None:
        """Where the beam was sent last, or was."""
        return list(self.under_way.values())[-1].scan_nm if self.under_way else self.last_nm

    def _stage(self, world: World, asked: Suggestion) -> int:
        if asked.stage_nm is None:
            return 1 if world.stage_of(asked) == world.stage_registered_nm else -1
        return 1 if max(abs(v) for v in asked.stage_nm) <= self.config.max_stage_move_nm else -1

    def _field(self, world: World, asked: Suggestion, scan_nm: Pair) -> int:
        geometry = world.geometry
        size = asked.field_of_view_nm or (0.0, 0.0)
        back = complex(math.cos(geometry.rotation_rad), -math.sin(geometry.rotation_rad))
        verdict = 1
        for corner in turned(size, world.rotation_of(asked), complex(*scan_nm)):
            place = (corner - complex(*geometry.center_nm)) * back
            for at, edge, n in zip(
                (place.real, place.imag), geometry.field_of_view_nm, reversed(geometry.shape), strict=True
            ):
                most = edge / 2 - self.config.margin_nm
                beyond = abs(at) - most
                rounding = NEAR * (1 + abs(at))
                verdict = min(
                    verdict, 1 if beyond < -rounding else -1 if beyond > 1e-3 * edge / n + rounding else 0
                )
        return verdict

    def _areas(self, corners: list[complex]) -> dict[str, int]:
        found = {"forbidden area": 1, "vetoed": 1}
        if self.lost:
            found["forbidden area"] = -1
        for area, radius_nm, word in self.areas:
            apart = gap([area[0]], corners) if len(area) == 1 else gap(corners, area)
            found[word] = min(found[word], _apart(apart, radius_nm))
        return found

    def _visits(self, world: World, corners: list[complex]) -> int:
        least_s, cell, around = (
            self.config.min_revisit_s,
            self.config.cell_nm,
            self.config.revisit_distance_nm,
        )
        if not least_s:
            return 1
        verdict = _within(-(world.clock_s - self.all_visited_s), -least_s)
        under_way = [(_corners(given), math.inf) for given in self.under_way.values()]
        for other, at_s in [*self.visited_s, *under_way]:
            if world.clock_s - at_s < least_s:
                verdict = min(verdict, _share_a_cell(corners, other, cell, around))
        return verdict

    def given(self, world: World, asked: Suggestion | Request, place: complex) -> Given:
        """Count the electrons: as they fall, and as the rules have them counted."""
        each_e = E_PER_US_PA * world.current_pa * asked.dwell_time_us
        cell = self.config.cell_nm
        scan_nm, stage_nm = world.scan_position_nm(asked.position_nm), world.stage_of(asked)
        if asked.shape is None or asked.field_of_view_nm is None:
            dose = dict.fromkeys(_touched([place], cell), each_e)
            sure = dose if len(dose) == 1 else {}  # on the edge of a cell nobody can say in which
            return Given(asked, place, sure, dose, each_e, scan_nm, stage_nm)  # type: ignore[arg-type]
        rotation_rad, size, (rows, cols) = world.rotation_of(asked), asked.field_of_view_nm, asked.shape
        total_e = each_e * rows * cols
        true_e = _fallen(place, size, rotation_rad, (cols, rows), cell, each_e)
        across = cell * (abs(math.cos(rotation_rad)) + abs(math.sin(rotation_rad)))
        share = max(1 / cols, min(across / size[0], 1)) * max(1 / rows, min(across / size[1], 1))
        counted_e = dict.fromkeys(_touched(turned(size, rotation_rad, place), cell), share * total_e)
        return Given(asked, place, true_e, counted_e, total_e, scan_nm, stage_nm)  # type: ignore[arg-type]


def _within(value: float, most: float) -> int:
    rounding = NEAR * max(abs(value), abs(most)) if math.isfinite(value) and math.isfinite(most) else 0.0
    return 1 if value < most - rounding or value == most == 0 else 0 if value <= most + rounding else -1


def _limit(value: float, most: float) -> int:
    """A limit of which 0 is none."""
    return _within(value, most) if most else 1


def _apart(apart_nm: float, least_nm: float) -> int:
    return 1 if apart_nm > least_nm + NEAR_NM else -1 if apart_nm <= least_nm - NEAR * least_nm else 0


def _corners(given: Given) -> list[complex]:
    asked = given.request
    if asked.field_of_view_nm is None:
        return [given.place]
    return turned(asked.field_of_view_nm, asked.rotation_rad or 0.0, given.place)


def _cell(place: complex, cell: float) -> Cell:
    return math.floor(place.real / cell), math.floor(place.imag / cell)


def _touched(corners: list[complex], cell: float, around: float = 0.0) -> set[Cell]:
    """Cells that an area shares a place with when they are grown by ``around``, and by a rounding."""
    grown = (around + 1e-9) * (1 + 1j)
    first = _cell(complex(min(c.real for c in corners), min(c.imag for c in corners)) - grown, cell)
    last = _cell(complex(max(c.real for c in corners), max(c.imag for c in corners)) + grown, cell)
    found = set()
    for right in range(first[0], last[0] + 1):
        for down in range(first[1], last[1] + 1):
            low = cell * complex(right, down)
            if clipped(corners, low - grown, low + cell * (1 + 1j) + grown):
                found.add((right, down))
    return found


def _share_a_cell(corners: list[complex], other: list[complex], cell: float, around: float) -> int:
    """-1 if one of the cells of an area is near the other, 0 if only by rounding."""
    sure = _touched(corners, cell, -2e-9) & _touched(other, cell, around - 2e-9)
    return -1 if sure else 0 if _touched(corners, cell) & _touched(other, cell, around) else 1


def _fallen(
    place: complex, size: Pair, rotation_rad: float, n: tuple[int, int], cell: float, each_e: float
) -> dict[Cell, float]:
    """Electrons in each cell: rows and columns finer than a cell are spread, coarser ones are lines."""
    turn = complex(math.cos(rotation_rad), math.sin(rotation_rad))
    across = cell * (abs(turn.real) + abs(turn.imag))
    parts = []  # along each axis: the middles of the parts, and how wide one is
    for edge, count in zip(size, n, strict=True):
        if edge / count <= across:
            parts.append(([0.0], edge if edge > 1e-9 else 0.0))
        else:
            parts.append(([((i + 0.5) / count - 0.5) * edge for i in range(count)], 0.0))
    (us, width), (vs, height) = parts
    part_e = each_e * n[0] * n[1] / (len(us) * len(vs))
    found: dict[Cell, float] = {}
    for u in us:
        for v in vs:
            corners = turned((width, height), rotation_rad, place + turn * complex(u, v))
            shape = (
                corners if width and height else [corners[0], corners[2]] if width or height else corners[:1]
            )
            whole = extent(shape)
            parts_e: dict[Cell, float] = {}
            for at in _touched(shape, cell):
                low = cell * complex(*at)
                inside = extent(clipped(shape, low, low + cell * (1 + 1j)))
                parts_e[at] = part_e * (inside / whole if whole else 1.0)
            if sum(parts_e.values()) <= part_e * (1 + NEAR):  # else it lies on the edge of cells
                for at, electrons in parts_e.items():
                    found[at] = found.get(at, 0.0) + electrons
    return found


# -- a world that knows where everything is ----------------------------------------------------------------


@dataclass
class World:
    """A session: what really is, what the streamer is told, and what is suggested."""

    rng: np.random.Generator
    config: EnvelopeConfig = field(init=False)
    geometry: ScanGeometry = field(init=False)
    registration: Registration = field(default_factory=Registration)
    clock_s: float = 1000.0
    now_s: float = 0.0
    current_pa: float = 0.0
    number: int = 0

    def __post_init__(self) -> None:
        rng = self.rng
        self.config = a_config(rng)
        self.envelope = Envelope(self.config)
        self.judge = Judge(self.config)
        self.drift = 0j  # of the specimen now, since the first registration
        self.rate = complex(*rng.normal(0, 0.01, 2)) if rng.random() < 0.5 else 0j
        self.lost_by = 0j  # jumps that nobody saw
        self.offset = 0j  # from positions of the present registration to those of the first
        self.stage_nm: Pair = (0.0, 0.0)
        self.stage_registered_nm: Pair = (0.0, 0.0)
        self.ids = 0
        self.hits: Counter[str] = Counter()
        self.review_s = 0.0
        self.geometry = ScanGeometry(
            shape=(64, 96),
            field_of_view_nm=(6.0, 4.0),
            center_nm=tuple(rng.uniform(-3, 3, 2).tolist()),
            rotation_rad=float(rng.choice([0.0, rng.uniform(-4, 4)])),
        )
        self.frame()
        self.register(0)

    # where things are

    def scan_position_nm(self, position_nm: Pair) -> Pair:
        """Where the beam is sent for a position of the present registration."""
        ahead_s = self.clock_s - self.registration.at_s
        moved = complex(*self.registration.drift_nm) + self.rate * ahead_s
        return position_nm[0] + moved.real, position_nm[1] + moved.imag

    def on_specimen(self, position_nm: Pair, stage_nm: Pair) -> complex:
        """What a beam sent there meets: where that lay when the session began."""
        return self.met_at(self.scan_position_nm(position_nm), stage_nm)

    def met_at(self, scan_nm: Pair, stage_nm: Pair) -> complex:
        """What a beam at a place of the scan meets."""
        return complex(*scan_nm) - (self.drift - self.lost_by) - complex(*stage_nm)

    def position_of(self, place: complex) -> Pair:
        """The position, in the present registration, of a place of the specimen."""
        scan = place + self.drift - self.lost_by + complex(*self.stage_nm)
        (x, y) = self.scan_position_nm((0.0, 0.0))
        return scan.real - x, scan.imag - y

    def rotation_of(self, asked: Suggestion | Request) -> float:
        """How a scan is turned."""
        return self.geometry.rotation_rad if asked.rotation_rad is None else asked.rotation_rad

    def stage_of(self, asked: Suggestion | Request) -> Pair:
        """Where the stage is when it is this one's turn."""
        if asked.stage_nm is not None:
            return asked.stage_nm
        moves = [g.request.stage_nm for g in self.judge.under_way.values() if g.request.stage_nm is not None]
        return moves[-1] if moves else self.stage_nm

    # what happens

    def wait(self, seconds: float) -> None:
        """Time passes and the specimen drifts."""
        self.clock_s += seconds
        self.drift += self.rate * seconds

    def frame(self, *, told_pa: float = 0.0, missed: int = 0) -> None:
        """The instrument scans the field."""
        width, height = self.geometry.field_of_view_nm
        rows, cols = self.geometry.shape
        dwell_us = float(self.rng.uniform(0.1, 1.0))
        self.wait(0.1)
        frame = Frame(
            session="s",
            number=self.number,
            acquired_at_s=self.clock_s,
            image=np.zeros((1, rows, cols), np.float32),
            channels=("HAADF",),
            geometry=self.geometry,
            dwell_time_us=dwell_us,
            dose_e_per_nm2=E_PER_US_PA * told_pa * dwell_us * rows * cols / (width * height),
            stage_nm=self.stage_nm,
        )
        self.number += 1
        self.current_pa = max(told_pa, self.config.beam_current_pa)
        total_e = (1 + missed) * E_PER_US_PA * self.current_pa * dwell_us * rows * cols
        self.judge.total_e += total_e
        self.judge.frames_e += total_e / (width * height) * self.config.cell_nm**2
        self.envelope.observe_frame(frame, missed)

    def register(self, new: int = 0, *, is_lost: bool = False) -> None:
        """The correction says where the specimen is; maybe against a new reference."""
        before = self.drift - self.lost_by
        if is_lost:  # it is another place that is there now: nobody can say which
            jump = complex(*self.rng.normal(0, 1, 2))
            self.drift += jump
            self.lost_by = self.drift - before
        moved = self.drift + complex(*self.stage_nm)
        if new:
            self.offset = moved
        drift = moved - self.offset
        self.stage_registered_nm = self.stage_nm
        flat = np.zeros((2, 2, 2), np.float32)
        rows, cols = (np.zeros((2, n), np.float32) for n in (5, 5))  # of another raster: no detour to it
        distortion = Distortion(
            mode="drift-only", grid_px=flat, sd_px=flat, rows_px=rows, row_offset_px=rows, cols_px=cols,
            flags=("lost",) if is_lost else (),
        )  # fmt: skip
        self.registration = Registration(
            revision=self.registration.revision + new,
            drift_nm=(drift.real, drift.imag),
            drift_rate_nm_per_s=(self.rate.real, self.rate.imag),
            sd_nm=float(
                self.rng.choice([0.001, 0.02, self.config.max_position_sd_nm, 0.2], p=[0.8, 0.1, 0.05, 0.05])
            ),
            at_s=self.clock_s,
            distortion=distortion,
        )
        if is_lost:
            self.judge.lose(jump)
        self.envelope.observe_registration(self.registration)

    def happen(self) -> None:
        """Let something happen between two suggestions."""
        rng, judge = self.rng, self.judge
        self.now_s += float(rng.choice([0.0, 1e-3, 0.2, 1.0]))
        what = rng.choice(
            ["frame", "register", "answer", "zoom", "lose", "place", "veto", "restart", "current"],
            p=[0.09, 0.1, 0.57, 0.02, 0.014, 0.12, 0.026, 0.03, 0.03],
        )
        if what == "frame" or self.clock_s - self.registration.at_s > 7.0:
            self.frame(missed=int(rng.random() < 0.05))
            self.register()
        elif what == "register":
            self.wait(float(rng.uniform(0, 2)))
            self.frame()
            if rng.random() < 0.5:
                self.register(int(rng.random() < 0.1))
        elif what == "answer" and judge.under_way:
            for identifier in list(judge.under_way)[: int(rng.integers(1, 4))]:
                if identifier in judge.under_way:  # or it went with another
                    self.answer(identifier)
        elif what == "zoom":
            self.zoom()
        elif what == "lose":
            self.frame()
            self.register(1, is_lost=True)
        elif what == "veto" and len(judge.areas) < 6:
            self.veto()
        elif what == "place" and judge.lost:
            self.place()
        elif what == "restart":
            kept = pack(self.envelope.state())
            self.envelope = Envelope(self.config)
            self.envelope.restore(unpack(kept, EnvelopeState))
            judge.granted_at_s = []
        elif what == "current":
            limit_pa = self.config.max_beam_current_pa or 100.0
            self.frame(told_pa=float(rng.choice([0.5, 1.0, np.nextafter(1.0, 2), 1.5])) * limit_pa)
            self.register()

    def veto(self) -> None:
        """A person forbids a disc or a polygon, and maybe what is near it."""
        rng = self.rng
        middle = complex(*rng.normal(0, 1.5, 2))
        is_disc = rng.random() < 0.4
        corners = [middle] if is_disc else a_polygon(rng, middle)
        radius_nm = float(rng.uniform(0.01, 0.4)) if is_disc else float(rng.choice([0.0, 0.1]))
        said = tuple(self.position_of_registered(corner) for corner in corners)
        try:
            where: dict[str, Any] = {"position_nm": said[0]} if is_disc else {"polygon_nm": said}
            control = Control(action="veto", radius_nm=radius_nm, **where)
        except ValueError:  # two of the drawn corners lie where they cross
            return
        self.envelope.veto(control.corners_nm, control.radius_nm)
        self.judge.areas.append(([corner - self.lost_by for corner in corners], radius_nm, "vetoed"))

    def place(self) -> None:
        """A person sees how far the specimen has jumped, or that what was forbidden is gone."""
        judge, forbidden = self.judge, self.envelope.forbidden
        jumps = {self.lost_by - known for _, known in judge.lost}
        self.hits["said to be lost apart"] += forbidden.are_apart != (len(jumps) > 1)
        if len(jumps) > 1 or self.rng.random() < 0.2:
            forbidden.forget()
        else:
            (jump,), wider_nm = jumps, float(self.rng.choice([0.0, 0.05]))
            forbidden.place((jump.real, jump.imag), wider_nm)
            judge.areas += [(area, near + wider_nm, word) for (area, near, word), _ in judge.lost]
        judge.lost = []

    def position_of_registered(self, place: complex) -> Pair:
        """As ``position_of``, the stage taken to be where the registration saw it."""
        held, self.stage_nm = self.stage_nm, self.stage_registered_nm
        position_nm = self.position_of(place)
        self.stage_nm = held
        return position_nm

    def zoom(self) -> None:
        """Another field, which begins a new reference; before that comes, positions speak of the old one."""
        rng = self.rng
        x, y = self.geometry.center_nm
        self.geometry = ScanGeometry(
            shape=(64, 64) if rng.random() < 0.5 else (48, 96),
            field_of_view_nm=tuple(rng.uniform(2, 8, 2).tolist()),
            center_nm=(x + float(rng.normal(0, 0.5)), y + float(rng.normal(0, 0.5))),
            rotation_rad=float(rng.choice([0.0, math.pi / 2, rng.uniform(-4, 4)])),
        )
        self.frame()
        if rng.random() < 0.8:
            self.register(1)

    def answer(self, identifier: str) -> None:
        """The instrument says what came of a request."""
        rng, judge = self.rng, self.judge
        given = judge.under_way.pop(identifier)
        request = given.request
        status = str(
            rng.choice(["ok", "failed", "aborted", "refused", "skipped"], p=[0.6, 0.1, 0.1, 0.1, 0.1])
        )
        began_s = self.clock_s
        where: Pair | None = None
        more = float(rng.choice([0.0, 1.0, 1.7]))
        if status in ("ok", "failed", "aborted"):
            self.wait(float(rng.uniform(0, 0.5)))
            if request.stage_nm is not None:
                self.stage_nm = request.stage_nm
            off = complex(*rng.normal(0, 0.05, 2)) if rng.random() < 0.3 else 0j
            if status == "ok":
                was = complex(*self.scan_position_nm(request.position_nm)) + off
                where = (was.real, was.imag)
        outcome = Outcome(
            session="s", id=identifier, status=status, action=request.action, scan_position_nm=where,  # type: ignore[arg-type]
            dose_e=more * given.total_e, started_at_s=began_s, ended_at_s=self.clock_s,
        )  # fmt: skip
        if where is not None:  # it is the middle of the exposure by which the drift is taken
            outcome = msgspec.structs.replace(outcome, started_at_s=self.clock_s)
        self.envelope.release(self.envelope.settle(outcome))
        judge.book(given, -1.0)
        if status in ("refused", "skipped"):
            if request.stage_nm is not None:  # what was granted behind it would go elsewhere
                self.abort_all()
            return
        judge.last_nm = request.scan_position_nm if where is None else where
        place = given.place
        if where is not None:
            place = self.met_at(where, given.stage_nm)
        now = self.given_again(given, place)
        judge.book(now, max(1.0, more))
        judge.visited_s.append((_corners(now), self.clock_s))

    def given_again(self, given: Given, place: complex) -> Given:
        """The same electrons at another place."""
        each_e = given.total_e / math.prod(given.request.shape or (1, 1))
        held, self.current_pa = self.current_pa, each_e / (E_PER_US_PA * given.request.dwell_time_us)
        now = self.judge.given(self, given.request, place)
        self.current_pa = held
        return now

    def abort_all(self) -> None:
        """Nothing of what is under way is done."""
        for identifier, given in list(self.judge.under_way.items()):
            del self.judge.under_way[identifier]
            outcome = Outcome(session="s", id=identifier, status="skipped")
            self.envelope.release(self.envelope.settle(outcome))
            self.judge.book(given, -1.0)

    # what is suggested

    def suggest(self) -> None:
        """Suggest something, and hold the envelope's verdict against the judge's."""
        try:
            asked = a_suggestion(self)
        except ValueError:  # the message itself takes no such numbers
            self.hits["unsayable"] += 1
            return
        found = self.judge.verdict(self, asked, self.now_s)
        begun_s = time.thread_time()
        try:
            request = self.envelope.review(asked, self.now_s)
        except RefusedError as refusal:
            self.review_s += time.thread_time() - begun_s
            self.hits["refused"] += 1
            self.hits["needlessly refused"] += all(verdict == 1 for verdict in found.values())
            self.hits["refused for another reason"] += (
                found.get(refusal.reason, 1) == 1 and -1 not in found.values()
            )
            self.hits[f"refused: {refusal.reason}"] += 1
            self.envelope.note(asked.id)
            self.judge.said.add(asked.id)
            return
        self.review_s += time.thread_time() - begun_s
        self.hits["granted"] += 1
        self.hits["unsafe let through"] += -1 in found.values()
        self.hits["changed"] += is_changed(self, asked, request)
        self.envelope.grant(request, self.now_s)
        judge = self.judge
        judge.said.add(asked.id)
        judge.granted_at_s.append(self.now_s)
        place = self.on_specimen(asked.position_nm, self.stage_of(asked))
        turned_rad = self.rotation_of(asked)
        given = judge.given(self, msgspec.structs.replace(request, rotation_rad=turned_rad), place)
        judge.under_way[asked.id] = given
        judge.book(given, 1.0)


def is_changed(world: World, asked: Suggestion, request: Request) -> bool:
    """Was anything granted other than it was asked for?"""
    names = (
        "id",
        "action",
        "position_nm",
        "dwell_time_us",
        "field_of_view_nm",
        "shape",
        "rotation_rad",
        "stage_nm",
    )
    off_nm = math.dist(request.scan_position_nm, world.scan_position_nm(asked.position_nm))
    return off_nm > 1e-9 or any(getattr(asked, name) != getattr(request, name) for name in names)


def a_polygon(rng: np.random.Generator, middle: complex) -> list[complex]:
    """Draw a small one around a place, mostly with corners that point inwards."""
    n = int(rng.integers(3, 8))
    angles = np.sort(rng.uniform(0, 2 * math.pi, n))
    radii = rng.uniform(0.1, 0.8, n) * rng.choice([0.2, 1.0])
    return [complex(middle + r * np.exp(1j * a)) for r, a in zip(radii, angles, strict=True)]


def a_config(rng: np.random.Generator) -> EnvelopeConfig:
    """Draw limits of which some hinder nobody and some hinder most."""

    def maybe(value: float) -> float:
        return value if rng.random() < 0.4 else 0.0

    cell_nm = float(rng.uniform(0.15, 0.6))
    areas = []
    for _ in range(int(rng.integers(0, 3))):
        corners = a_polygon(rng, complex(*rng.normal(0, 2, 2)))
        areas.append(tuple((c.real, c.imag) for c in corners))
    made: dict[str, Any] = {
        "beam_current_pa": float(rng.uniform(1, 100)),
        "margin_nm": maybe(0.2),
        "min_dwell_time_us": 0.5,
        "max_dwell_time_us": 50_000.0,
        "max_rate_per_s": float(rng.choice([5.0, 50.0, 1e9])),
        "max_dose_e": float(10 ** rng.uniform(7, 9)),
        "cell_nm": cell_nm,
        "max_dose_e_per_cell": float(10 ** rng.uniform(6, 8)),
        "max_pending": int(rng.integers(1, 8)),
        "max_stage_move_nm": maybe(0.5),
        "max_beam_current_pa": maybe(120.0),
        "max_step_nm": maybe(float(rng.uniform(0.5, 4))),
        "min_revisit_s": maybe(float(rng.uniform(0.1, 5))),
        "revisit_distance_nm": maybe(float(rng.uniform(0, 0.3))),
        "max_registration_age_s": maybe(float(rng.uniform(0.5, 5))),
        "max_position_sd_nm": maybe(0.05),
    }
    try:
        return EnvelopeConfig(forbidden_areas_nm=tuple(areas), **made)
    except ValueError:  # two of the drawn corners lie where they cross
        return EnvelopeConfig(**made)


STRANGE = (math.nan, math.inf, -math.inf, 5e-324, -5e-324, -0.0, 1e308, -1e308, 1e10, 0.0)


def a_suggestion(world: World) -> Suggestion:
    """Draw a suggestion: mostly sound, and then up to two things about it are not."""
    rng = world.rng
    world.ids += 1
    made: dict[str, Any] = {
        "session": "s",
        "number": 0,
        "acquired_at_s": world.clock_s,
        "id": str(world.ids),
        "position_nm": a_position(world),
        "registration_revision": world.registration.revision,
        "dwell_time_us": float(10 ** rng.uniform(0, 4.6)),
        "policy": "adversary",
    }
    if rng.random() < 0.35:
        most = 0.8 if rng.random() < 0.8 else 6.0
        made |= {
            "action": "scan",
            "field_of_view_nm": tuple(rng.uniform(0.01, most, 2).tolist()),
            "shape": tuple(int(n) for n in rng.integers(1, 24, 2)),
            "dwell_time_us": float(10 ** rng.uniform(0, 3)),
        }
        if rng.random() < 0.6:
            made["rotation_rad"] = float(rng.choice([rng.uniform(-4, 4), math.pi / 2, 0.0, 1e3]))
    for _ in range(int(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]))):
        spoil(world, made)
    return Suggestion(**made)


def a_position(world: World) -> Pair:
    """Draw a position in the field, or just at one of the bounds."""
    rng, geometry, config = world.rng, world.geometry, world.config
    width, height = geometry.field_of_view_nm
    u, v = rng.uniform(-0.45, 0.45, 2) * (width, height)
    what = rng.random()
    if what < 0.15:  # an edge of the field, a rounding or a thousandth of a pixel to either side
        most = width / 2 - config.margin_nm
        u = float(rng.choice([-1, 1])) * rounded(
            rng, most + float(rng.choice([0.0, 1e-3 * width / geometry.shape[1]]))
        )
    turn = complex(math.cos(geometry.rotation_rad), math.sin(geometry.rotation_rad))
    scan = complex(*geometry.center_nm) + turn * complex(u, v)
    (x, y) = world.scan_position_nm((0.0, 0.0))
    position = (scan.real - x, scan.imag - y)
    last = world.judge.last_place()
    if 0.15 < what < 0.35 and world.judge.areas:
        area, radius_nm, _ = world.judge.areas[int(rng.integers(len(world.judge.areas)))]
        i, along = int(rng.integers(len(area))), float(rng.choice([0.0, 0.5, rng.random()]))
        a, b = area[i], area[i - 1]
        beside = radius_nm * np.exp(1j * rng.uniform(0, 7))
        position = world.position_of(a + along * (b - a) + beside + world.lost_by)
    elif 0.35 < what < 0.45 and last is not None:
        step = (config.max_step_nm or 0.1) * np.exp(1j * rng.uniform(0, 7))
        position = (last[0] - x + step.real, last[1] - y + step.imag)
    elif 0.45 < what < 0.6 and world.judge.true_e:  # where most was measured before
        cell = max(world.judge.true_e, key=world.judge.true_e.__getitem__)
        position = world.position_of(world.config.cell_nm * complex(cell[0] + 0.5, cell[1] + 0.5))
    return rounded(rng, position[0]), rounded(rng, position[1])


def rounded(rng: np.random.Generator, value: float) -> float:
    """The same, or the next number above or below."""
    return float(rng.choice([value, np.nextafter(value, math.inf), np.nextafter(value, -math.inf)]))


def spoil(world: World, made: dict[str, Any]) -> None:
    """Put something in that is strange, or just at a limit."""
    rng, config, judge = world.rng, world.config, world.judge
    strange = float(rng.choice(STRANGE))
    is_scan = "shape" in made
    match rng.choice(
        [
            "position",
            "dwell",
            "dose",
            "dose",
            "revision",
            "id",
            "sd",
            "stage",
            "stage",
            "size",
            "shape",
            "turn",
        ]
    ):
        case "position":
            made["position_nm"] = (strange, made["position_nm"][1])
        case "dwell":
            limits = (config.min_dwell_time_us, config.max_dwell_time_us, strange, -1.0)
            made["dwell_time_us"] = rounded(rng, float(rng.choice(limits)))
        case "dose":  # just what the total, or the cell that had most, has left
            if rng.random() < 0.6:
                for name in ("action", "shape", "field_of_view_nm", "rotation_rad"):
                    made.pop(name, None)
            left_e = config.max_dose_e - judge.total_e
            if rng.random() < 0.6 and judge.counted_e:
                cell = max(judge.counted_e, key=judge.counted_e.__getitem__)
                made["position_nm"] = world.position_of(
                    config.cell_nm * complex(cell[0] + 0.5, cell[1] + 0.5)
                )
                left_e = config.max_dose_e_per_cell - judge.frames_e - judge.counted_e[cell]
            pixels = float(rng.choice([1, max(1, math.prod(made.get("shape", (1, 1))))]))
            part = float(rng.choice([1.0, 0.99999, 1.00001])) / pixels
            made["dwell_time_us"] = rounded(rng, part * left_e / (E_PER_US_PA * world.current_pa))
        case "revision":
            made["registration_revision"] += int(rng.choice([-1, 1]))
        case "id":
            made["id"] = str(
                rng.choice(list(judge.under_way) or ["1"]) if rng.random() < 0.5 else rng.integers(world.ids)
            )
        case "sd":
            made["position_sd_nm"] = rounded(rng, float(rng.choice([config.max_position_sd_nm, strange])))
        case "stage":
            most = config.max_stage_move_nm
            made["stage_nm"] = (rounded(rng, most), float(rng.choice([0.0, -most, strange, 0.2])))
        case "size" if is_scan:
            made["field_of_view_nm"] = (
                strange,
                float(rng.choice([made["field_of_view_nm"][1], strange, 0.1])),
            )
        case "shape" if is_scan:
            made["shape"] = (int(rng.choice([0, 1, -1, 4096, 4097])), made["shape"][1])
        case "turn" if is_scan:
            made["rotation_rad"] = strange
        case _:
            pass


# -- the figures ---------------------------------------------------------------------------------------


def try_out(trials: int, seed: int = SEED) -> Counter[str]:
    """Count what became of so many suggestions, in worlds of some hundred each, and how long they took."""
    hits: Counter[str] = Counter()
    for index in range(-(-trials // A_WORLD)):
        world = World(np.random.default_rng([seed, index]))
        for _ in range(min(A_WORLD, trials - index * A_WORLD)):
            if world.rng.random() < 0.4:
                world.happen()
            world.suggest()
        hits += world.hits
        hits["review_us"] += round(1e6 * world.review_s)
    return hits


def unsafe_let_through(trials: int, seed: int = SEED) -> int:
    """Count those, of so many, that were granted outside a limit or otherwise than asked."""
    hits = try_out(trials, seed)
    return hits["unsafe let through"] + hits["changed"]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="20,000 suggestions instead of a million")
    parser.add_argument("--trials", type=int, default=0, help="how many suggestions")
    chosen = parser.parse_args()
    trials = chosen.trials or (20_000 if chosen.quick else 1_000_000)
    hits = try_out(trials)
    reviewed = hits["granted"] + hits["refused"]
    for name, count in sorted(hits.items()):
        print(f"{name:32} {count}", file=sys.stderr if chosen.json else sys.stdout)
    figures = {
        "trials": trials,
        "granted": hits["granted"],
        "unsafe_let_through": hits["unsafe let through"] + hits["changed"],
        "needlessly_refused": hits["needlessly refused"],
        "review_us": hits["review_us"] / max(reviewed, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
