"""What a scanned beam does instead of what it is told, all of it known.

Conventions are those of ``streamer/geometry.py``: a specimen point ``s`` is found under the beam at scan
position ``s + drift_nm``. A beam offset is where the beam really is minus where the raster has it, in
pixels, component 0 along the rows' normal (slow axis), component 1 along the row (fast axis): where the
beam is too far to the right, a feature is seen too far to the left. The displacement ``D`` of a frame is
the beam offset less the drift in pixels: pixel ``p`` shows the specimen at raster place ``p + D(p)``.

The shapes are those of instruments (two exponentials, a cubic, a damped random swing), on purpose not
those that a Gaussian process would draw: a corrector must not be judged by its own assumptions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import expm

from streamer.messages import PairNm, ScanGeometry

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
ScanPath = Literal["raster", "serpentine", "sinusoidal"]


class ScanDistortionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the scan is from perfect; what is not said is absent.

    Attributes
    ----------
    drift_rate_nm_per_s
        ``(x, y)``; rate of the specimen's drift at the start.
    drift_settling_s
        The drift comes to rest exponentially in this time, as a stage does; it travels
        ``drift_rate_nm_per_s * drift_settling_s`` in all.
    drift_wander_nm_per_sqrt_s
        Random walk on top: sd along each axis after one second; it grows as the square root.
    drift_swing_nm_per_s
        A random swing on top: sd of its velocity along each axis. The specimen hangs on a spring and is
        pushed at random, so it never goes far.
    drift_swing_period_s, drift_swing_memory_s
        Period of that spring, and the time in which a push is forgotten.
    row_jitter_px, row_jitter_across_px
        Sd of the offset of a row along the fast and along the slow axis; each row has its own.
    flyback_px
        Offset of the beam at the start of a row, where it still comes back from the last one.
    flyback_decay_px
        Number of pixels in which that offset falls to 1/e.
    flyback_slow_share, flyback_slow_decay_px
        A second, slower return: its offset as a share of ``flyback_px``, and its decay.
    flyback_across
        Share of the fly-back that the slow axis sees.
    settle_px, settle_decay_rows
        Offset along the slow axis in the first row of a frame, and the rows in which it falls to 1/e.
    coil_px
        Strength of the coils' smooth non-linearity: the sd of the offset over a full frame is about
        0.45 of it along an axis. It goes with the scan position, not with the pixel of a sub-scan.
    coil_turns_with_scan
        Whether the non-linearity turns with the scan rotation, as that of the scan generator does, or
        stays with the scan coordinates, as that of the deflectors does.
    hum_px, hum_across, hum_hz
        Amplitude of the hum along the fast axis, its share along the slow one, and its frequency; a
        row has the hum of its middle. The phase runs on between frames.
    variation, variation_period_s
        Relative change of fly-back and settling, and radians over two of the coils' phases, in the
        course of a period; each frame has those of its start.
    hysteresis
        Of a piezo scanner without sensors, on a full frame: the opening between the way there and the way
        back, as a share of the way. 0.02 on small ways to 0.15 on the longest (Physik Instrumente, Piezo
        Tutorial). A smaller scan has a smaller share, in proportion.
    creep_per_decade
        Of such a scanner: what it goes on after a step, as a share of it, in every tenfold of time. 0.01 to
        0.02 (ibid.): ``x(t) = x0 (1 + creep log10(t / 0.1 s))``.
    scan_path
        ``raster``; ``serpentine``: odd rows are scanned from right to left; ``sinusoidal``: the beam
        swings along the fast axis, and pixels are equal times.
    both_ways
        Whether each row is recorded on the way back too. It then takes twice the time.
    """

    drift_rate_nm_per_s: PairNm = (0.016, 0.012)
    drift_settling_s: float = 120.0
    drift_wander_nm_per_sqrt_s: float = 0.002
    drift_swing_nm_per_s: float = 0.0
    drift_swing_period_s: float = 115.0
    drift_swing_memory_s: float = 33.0
    row_jitter_px: float = 0.15
    row_jitter_across_px: float = 0.0
    flyback_px: float = 0.5
    flyback_decay_px: float = 10.0
    flyback_slow_share: float = 0.0
    flyback_slow_decay_px: float = 130.0
    flyback_across: float = 0.0
    settle_px: float = 0.0
    settle_decay_rows: float = 28.0
    coil_px: float = 0.0
    coil_turns_with_scan: bool = True
    hum_px: float = 0.0
    hum_across: float = 0.35
    hum_hz: float = 50.0
    variation: float = 0.0
    variation_period_s: float = 150.0
    hysteresis: float = 0.0
    creep_per_decade: float = 0.0
    scan_path: ScanPath = "raster"
    both_ways: bool = False

    def __post_init__(self) -> None:
        if not all(abs(rate) <= 1e4 for rate in self.drift_rate_nm_per_s):
            raise ValueError(
                f"distortion.drift_rate_nm_per_s is {self.drift_rate_nm_per_s}; it takes -10000 to 10000"
            )
        if not 0 < self.drift_settling_s <= 1e5:
            raise ValueError(
                f"distortion.drift_settling_s is {self.drift_settling_s}; it takes above 0 to 1e5"
            )
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"distortion.{name} is {getattr(self, name)}; it takes {least:g} to {most:g}"
                )
        if self.scan_path not in ("raster", "serpentine", "sinusoidal"):
            raise ValueError(
                f"distortion.scan_path is {self.scan_path!r}; it takes raster, serpentine or sinusoidal"
            )

    def check(self, field_of_view_nm: float) -> None:
        """Refuse a drift that is out of all proportion to the field.

        Parameters
        ----------
        field_of_view_nm
            Width of a frame. Up to 20 nm may be settled, or two fields; a random drift may be up to 1 nm in a
            second, or a twentieth of the field.

        Raises
        ------
        ValueError
            With what is too much, and what would do.
        """
        travel_nm = max(20.0, 2 * field_of_view_nm)
        if not max(abs(travel) for travel in self.drift_travel_nm) <= travel_nm:
            raise ValueError(
                f"distortion.drift_rate_nm_per_s * drift_settling_s is {self.drift_travel_nm} nm in all; "
                f"it takes up to {travel_nm:g} on this field"
            )
        random_nm = max(1.0, field_of_view_nm / 20)
        for name in ("drift_wander_nm_per_sqrt_s", "drift_swing_nm_per_s"):
            if not getattr(self, name) <= random_nm:
                raise ValueError(
                    f"distortion.{name} is {getattr(self, name)}; it takes up to {random_nm:g} on this field"
                )

    @property
    def drift_travel_nm(self) -> PairNm:
        """How far the specimen settles in all, ``(x, y)``, without its wander."""
        x, y = self.drift_rate_nm_per_s
        return (x * self.drift_settling_s, y * self.drift_settling_s)

    @property
    def creep_share(self) -> float:
        """How far a scan leaves its field by creep, as a share of it: a way of one field after 100 s."""
        return 3 * self.creep_per_decade

    @property
    def drift_swing_nm(self) -> float:
        """Sd of the place that the random swing takes the specimen to, along each axis."""
        return self.drift_swing_nm_per_s * self.drift_swing_period_s / (2 * math.pi)


_LIMITS = {
    "drift_wander_nm_per_sqrt_s": (0.0, 1e3),
    "drift_swing_nm_per_s": (0.0, 1e3),
    "drift_swing_period_s": (1.0, 1e5),
    "drift_swing_memory_s": (0.1, 1e5),
    "row_jitter_px": (0.0, 10.0),
    "row_jitter_across_px": (0.0, 10.0),
    "flyback_px": (0.0, 50.0),
    "flyback_decay_px": (0.1, 1000.0),
    "flyback_slow_share": (0.0, 1.0),
    "flyback_slow_decay_px": (0.1, 1e4),
    "flyback_across": (-1.0, 1.0),
    "settle_px": (0.0, 50.0),
    "settle_decay_rows": (0.1, 1000.0),
    "coil_px": (0.0, 50.0),
    "hum_px": (0.0, 10.0),
    "hum_across": (-1.0, 1.0),
    "hum_hz": (0.01, 1e6),
    "variation": (0.0, 0.5),
    "variation_period_s": (0.1, 1e7),
    "hysteresis": (0.0, 0.3),
    "creep_per_decade": (0.0, 0.1),
}


Array = TypeVar("Array", bound=NDArray[Any])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BeamPath:
    """Where the beam really was during one frame.

    Attributes
    ----------
    geometry
        The raster that was asked for.
    row_drift_nm
        Drift ``(x, y)`` while each row was scanned, shape ``(rows, 2)``, float64.
    row_offset_px
        Beam offset ``(row, col)`` of each row: settling, creep, hum, jitter and the slow axis's hysteresis,
        shape ``(2, rows)``, float64.
    jitter_px
        The jitter in it, shape ``(2, rows)``, float64.
    column_offset_px
        Beam offset ``(row, col)`` of each pixel of a row in the order of scanning (fly-back, hysteresis and
        the swing of a sinusoidal path), shape ``(2, cols)``, float64; its second component counts in the
        direction in which the row is scanned. Of a ``backward`` path both go by place, from left to right.
    coil_px
        Beam offset ``(row, col)`` by the coils, shape ``(2, rows, cols)``, float64; None where there
        is none.
    scan_path
        ``raster``, ``serpentine`` or ``sinusoidal``.
    stage_nm
        Where the stage was told to be, ``(x, y)``: with it a specimen point ``s`` is found at
        ``s + drift + stage``.
    stage_error_nm
        How much further than that it went.
    started_s, ended_s
        Simulated time since the instrument was switched on.
    backward
        Where the beam was on the ways back, its pixels by place as those of the ways there; None where only
        one way is recorded.
    """

    geometry: ScanGeometry
    row_drift_nm: Float64
    row_offset_px: Float64
    jitter_px: Float64
    column_offset_px: Float64
    started_s: float
    ended_s: float
    coil_px: Float64 | None = None
    scan_path: ScanPath = "raster"
    stage_nm: PairNm = (0.0, 0.0)
    stage_error_nm: PairNm = (0.0, 0.0)
    backward: BeamPath | None = None

    @property
    def drift_nm(self) -> PairNm:
        """Mean drift of the rows, ``(x, y)``: the drift in the middle of the frame, but for the wander."""
        x, y = self.row_drift_nm.mean(axis=0)
        return (float(x), float(y))

    def row_drift_px(self) -> Float64:
        """Drift of each row and error of the stage, in pixels along ``(row, col)``, shape ``(2, rows)``."""
        origin = self.geometry.to_px(np.zeros((1, 2)))
        there = self.geometry.to_px(self.row_drift_nm + np.array(self.stage_error_nm))
        moved: Float64 = (there - origin).T
        return moved

    def beam_offset_px(self, *, jitter: bool = True) -> Float64:
        """Where the beam was minus where the raster has it, ``(row, col)``, shape ``(2, rows, cols)``.

        Parameters
        ----------
        jitter
            False leaves the jitter of the rows out: what is smooth.
        """
        rows_px = self.row_offset_px if jitter else self.row_offset_px - self.jitter_px
        offset = rows_px[:, :, None] + self.column_offset_px[:, None, :]
        if self.scan_path == "serpentine":
            offset[:, 1::2] = rows_px[:, 1::2, None] + _turned(self.column_offset_px)[:, None, :]
        if self.coil_px is not None:
            offset += self.coil_px
        return offset

    def displacement_px(self, *, jitter: bool = True) -> Float64:
        """Displacement ``D`` of the frame, ``(row, col)`` in pixels, shape ``(2, rows, cols)``, float64.

        Pixel ``p`` shows the specimen at raster place ``p + D(p)``: the beam offset less drift and
        stage error. Where the stage was told to be is known, and not in it.

        Parameters
        ----------
        jitter
            False leaves the jitter of the rows out: what is smooth.
        """
        return self.beam_offset_px(jitter=jitter) - self.row_drift_px()[:, :, None]

    def specimen_positions_nm(self) -> Float64:
        """Specimen point ``(x, y)`` under the beam at every pixel, shape ``(rows, cols, 2)``."""
        corners = self.geometry.to_nm(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        down, right = corners[1] - corners[0], corners[2] - corners[0]
        return _on_specimen(self.displacement_px(), corners[0] - np.array(self.stage_nm), down, right)

    def in_time(self, pixels: Array) -> Array:
        """Put rows of pixels into the order in which the beam comes to them, the ways back left out.

        Parameters
        ----------
        pixels
            Shape ``(rows, cols)`` or ``(rows, cols, n)``; rows that are scanned from right to left are
            turned round in a copy.
        """
        if self.scan_path != "serpentine":
            return pixels
        turned = pixels.copy()
        turned[1::2] = pixels[1::2, ::-1]
        return turned

    def rows(self, first: int, last: int) -> BeamPath:
        """Give the part of a frame from one row to before another; the first is even in a serpentine."""
        geometry, count = self.geometry, last - first
        middle_px = np.array([[(first + last - 1) / 2, (geometry.shape[1] - 1) / 2]])
        x, y = geometry.to_nm(middle_px)[0]
        width_nm, height_nm = geometry.field_of_view_nm
        part = msgspec.structs.replace(
            geometry,
            shape=(count, geometry.shape[1]),
            field_of_view_nm=(width_nm, height_nm * count / geometry.shape[0]),
            center_nm=(float(x), float(y)),
        )
        return replace(
            self,
            geometry=part,
            row_drift_nm=self.row_drift_nm[first:last],
            row_offset_px=self.row_offset_px[:, first:last],
            jitter_px=self.jitter_px[:, first:last],
            coil_px=None if self.coil_px is None else self.coil_px[:, first:last],
            backward=None,
        )

    def last_row(self, positions_nm: Float64, reach_nm: float) -> int:
        """Say at which row at the latest the beam has no specimen point within reach any more."""
        least_px = float(self.row_offset_px[0].min() + self.column_offset_px[0].min())
        least_px -= float(self.row_drift_px()[0].max())
        least_px += 0.0 if self.coil_px is None else float(self.coil_px[0].min())
        lowest_px = (
            float(self.places_px(positions_nm)[:, 0].max()) + reach_nm / self.geometry.pixel_size_nm[0]
        )
        return min(self.geometry.shape[0], max(0, math.ceil(lowest_px - least_px) + 1))

    def places_px(self, positions_nm: Float64) -> Float64:
        """Say at which raster places ``p + D(p)`` specimen points ``(x, y)`` are met, ``(n, 2)``."""
        return self.geometry.to_px(positions_nm + np.array(self.stage_nm))

    def seen_px(self, positions_nm: Float64, *, jitter: bool = True) -> Float64:
        """Say where in the frame specimen points are seen.

        Between pixels the displacement is interpolated by cubics, beyond the frame it is that of the
        edge, and the jitter is that of the nearest row.

        Parameters
        ----------
        positions_nm
            Specimen positions ``(x, y)``, shape ``(n, 2)``.
        jitter
            False says where they were seen if the rows did not jitter.

        Returns
        -------
        seen
            ``(row, col)`` in pixels, shape ``(n, 2)``; beyond the frame it is a guess.
        """
        seen = _inverse(self.displacement_px(jitter=False), self.places_px(positions_nm))
        if jitter:
            nearest = np.clip(np.rint(seen[:, 0]).astype(np.int64), 0, self.geometry.shape[0] - 1)
            seen -= self.jitter_px[:, nearest].T
        return seen


@njit(cache=True)
def _on_specimen(displacement_px: Float64, start: Float64, down: Float64, right: Float64) -> Float64:
    """Turn places of the beam into specimen points, shape ``(rows, cols, 2)``."""
    _, rows, cols = displacement_px.shape
    positions = np.empty((rows, cols, 2))
    for i in range(rows):
        for j in range(cols):
            row, col = i + displacement_px[0, i, j], j + displacement_px[1, i, j]
            for k in range(2):
                positions[i, j, k] = start[k] + row * down[k] + col * right[k]
    return positions


class ScanDistortion:
    """The scan's errors as time goes on; each call moves the time forward.

    Parameters
    ----------
    config
        How strong they are.
    rng
        For jitter and wander.
    full
        The raster that the coils' non-linearity is laid over; None takes that of each scan itself.

    Attributes
    ----------
    elapsed_s
        Simulated time since the start.
    drift_nm
        Drift ``(x, y)`` now; ``(0, 0)`` at the start.
    """

    def __init__(
        self, config: ScanDistortionConfig, rng: np.random.Generator, full: ScanGeometry | None = None
    ) -> None:
        self._config = config
        self._rng = rng
        self._full = full
        # Of their own, so that what is switched off leaves the other draws as they were.
        self._phase_rng, self._swing_rng, self._across_rng, self._backward_rng = rng.spawn(4)
        self._hum_phase = float(self._phase_rng.uniform(0, 2 * math.pi))
        self._coil_phases = self._phase_rng.uniform(0, 2 * math.pi, 4)
        self._wander_nm = np.zeros(2)
        self._swing = np.zeros((2, 2))  # place and velocity of the swing, each (x, y)
        self._swing[1] = config.drift_swing_nm_per_s * self._swing_rng.standard_normal(2)
        self._creep = _Creep(config.creep_per_decade)
        self.elapsed_s = 0.0

    @property
    def drift_nm(self) -> PairNm:
        x, y = self._settled_nm(np.array([self.elapsed_s]))[0] + self._wander_nm + self._swing[0]
        return (float(x), float(y))

    def wait(self, seconds: float) -> None:
        """Let time pass with the beam at rest, as during a spectrum."""
        self._drift_after(np.array([seconds]))

    def jump(self, step_nm: PairNm) -> None:
        """Let the specimen slip by ``(x, y)`` at once, as when a holder is touched."""
        self._wander_nm = self._wander_nm + np.array(step_nm)

    def scan(
        self,
        geometry: ScanGeometry,
        dwell_time_us: float,
        stage_nm: PairNm = (0.0, 0.0),
        stage_error_nm: PairNm = (0.0, 0.0),
    ) -> BeamPath:
        """Scan one frame.

        The drift moves from row to row and is taken as it is in the middle of each row, or of its way there
        and of its way back.
        """
        rows, cols = geometry.shape
        ways = 2 if self._config.both_ways else 1
        started_s = self.elapsed_s
        way_s = cols * dwell_time_us * 1e-6
        # Half a way ahead of the first; what is left of the last passes after it.
        steps_s = np.full(rows * ways, way_s)
        steps_s[0] = way_s / 2
        drift_nm = self._drift_after(steps_s)
        self.wait(way_s / 2)
        middle_s = started_s + way_s * (np.arange(rows * ways, dtype=np.float64) + 0.5)
        row_offset_px = self._row_offset_px(geometry, started_s, middle_s)
        jitter_px = self._jitter_px(rows, self._rng, self._across_rng)
        column_offset_px = self._column_offset_px(geometry, started_s)
        path = BeamPath(
            geometry=geometry,
            row_drift_nm=drift_nm[::ways],
            row_offset_px=row_offset_px[:, ::ways] + jitter_px,
            jitter_px=jitter_px,
            column_offset_px=column_offset_px,
            coil_px=self._coil_px(geometry, started_s) if self._config.coil_px else None,
            scan_path=self._config.scan_path,
            stage_nm=stage_nm,
            stage_error_nm=stage_error_nm,
            started_s=started_s,
            ended_s=self.elapsed_s,
        )
        if ways == 1:
            return path
        jitter_px = self._jitter_px(rows, self._backward_rng, self._backward_rng)
        backward = replace(
            path,
            row_drift_nm=drift_nm[1::2],
            row_offset_px=row_offset_px[:, 1::2] + jitter_px,
            jitter_px=jitter_px,
            column_offset_px=_turned(column_offset_px),
        )
        return replace(path, backward=backward)

    def parked_offset_nm(self, scan_position_nm: PairNm) -> PairNm:
        """Say how far from ``scan_position_nm`` a beam is that was sent there and stays, ``(x, y)``.

        It has no fly-back, settling, jitter or hum: it has waited long enough for the first two, and
        an exposure is longer than the others. The coils' non-linearity it has, and what is left of the creep
        of earlier scans; the short way to the place itself has not crept yet.
        """
        offset = self._creep.at(np.array([self.elapsed_s]))[0]
        if self._config.coil_px and self._full is not None:
            offset += self._coil_offset_nm(np.array([scan_position_nm]), self._full, self.elapsed_s)[0]
        return (float(offset[0]), float(offset[1]))

    # -- the rows and the columns --------------------------------------------------------------

    def _jitter_px(
        self, rows: int, along_rng: np.random.Generator, across_rng: np.random.Generator
    ) -> Float64:
        along = self._config.row_jitter_px * along_rng.standard_normal(rows)
        across = self._config.row_jitter_across_px * across_rng.standard_normal(rows)
        return np.stack([across, along])

    def _row_offset_px(self, geometry: ScanGeometry, started_s: float, middle_s: Float64) -> Float64:
        """Offset of each way along a row but for its jitter, shape ``(2, ways)``."""
        rows, c = geometry.shape[0], self._config
        offset = np.repeat(self._settle_px(rows, started_s), len(middle_s) // rows, axis=1)
        offset = offset + self._hum_px(middle_s)
        if c.hysteresis:
            down = np.linspace(-1, 1, len(middle_s))
            offset[0] += self._lag_px(geometry, 0, down)
        if c.creep_per_decade:
            edges_nm = geometry.to_nm(np.array([[r, (geometry.shape[1] - 1) / 2] for r in (0, rows - 1)]))
            creep_nm = self._creep.scan(edges_nm, started_s, self.elapsed_s, middle_s)
            offset += _in_pixels(geometry, creep_nm)
        return offset

    def _settle_px(self, rows: int, at_s: float) -> Float64:
        """Settling along the slow axis, shape ``(2, rows)``."""
        c = self._config
        varied = 1 + 1.25 * c.variation * math.sin(0.7 * self._variation_phase(at_s))
        settling = varied * c.settle_px * np.exp(-np.arange(rows) / c.settle_decay_rows)
        return np.stack([settling, np.zeros(rows)])

    def _hum_px(self, middle_s: Float64) -> Float64:
        c = self._config
        hum = c.hum_px * np.sin(2 * math.pi * c.hum_hz * middle_s + self._hum_phase)
        return np.stack([c.hum_across * hum, hum])

    def _column_offset_px(self, geometry: ScanGeometry, at_s: float) -> Float64:
        """Fly-back, hysteresis, and the swing of a sinusoidal path, shape ``(2, cols)``."""
        c, cols = self._config, geometry.shape[1]
        col = np.arange(cols)
        varied = c.flyback_px * (1 + c.variation * math.sin(self._variation_phase(at_s) + 0.4))
        along = varied * np.exp(-col / c.flyback_decay_px)
        if c.flyback_slow_share:
            along += varied * c.flyback_slow_share * np.exp(-col / c.flyback_slow_decay_px)
        across = c.flyback_across * along
        from_middle = col - (cols - 1) / 2
        swung = cols / 2 * np.sin(np.pi * from_middle / cols)
        if c.hysteresis:
            place = swung if c.scan_path == "sinusoidal" else from_middle
            along = along + self._lag_px(geometry, 1, 2 * place / max(cols - 1, 1))
        if c.scan_path == "sinusoidal":
            along = along + swung - from_middle
        return np.stack([across, along])

    def _lag_px(self, geometry: ScanGeometry, axis: int, place: Float64) -> Float64:
        """How far a piezo is behind on a way from place -1 to 1: half a loop of Rayleigh's law.

        Under a drive between ``-E`` and ``E`` the two branches are parabolas that meet at the ends, and
        their opening goes with ``E`` squared (Rayleigh 1887; of piezoelectrics, Damjanovic, Rep. Prog. Phys.
        61, 1267 (1998)): its share of the way goes with the way.
        """
        full = geometry if self._full is None else self._full
        way_nm, full_nm = geometry.field_of_view_nm[1 - axis], full.field_of_view_nm[1 - axis]
        opening_px = self._config.hysteresis * way_nm / full_nm * geometry.shape[axis]
        lag: Float64 = -opening_px / 2 * np.maximum(1 - place**2, 0)
        return lag

    def _variation_phase(self, at_s: float) -> float:
        return 2 * math.pi * at_s / self._config.variation_period_s

    # -- the coils -----------------------------------------------------------------------------

    def _coil_px(self, geometry: ScanGeometry, at_s: float) -> Float64:
        """Offset by the coils in the pixels of a raster, shape ``(2, rows, cols)``."""
        rows, cols = geometry.shape
        full = geometry if self._full is None else self._full
        frame = self._coil_frame(full, geometry.rotation_rad)
        # The raster's corner and its two axes in units of the full frame's half edges; it is a plane.
        corners = frame.to_px(geometry.to_nm(np.array([[0, 0], [rows, 0], [0, cols]])))
        half = np.array(full.shape) / 2
        start = (corners[0] - (np.array(full.shape) - 1) / 2) / half
        down, right = (corners[1] - corners[0]) / half / rows, (corners[2] - corners[0]) / half / cols
        offset = _coil_grid((rows, cols), start, down, right, self._phases_at(at_s))
        to_own = _between(frame, geometry)
        turned: Float64 = self._config.coil_px * np.einsum("ij,jrc->irc", to_own, offset)
        return turned

    def _coil_offset_nm(self, positions_nm: Float64, full: ScanGeometry, at_s: float) -> Float64:
        """Offset by the coils at scan positions, ``(x, y)``, shape ``(n, 2)``."""
        frame = self._coil_frame(full, full.rotation_rad)
        seen = frame.to_px(positions_nm)
        half = np.array(full.shape) / 2
        place = (seen - (np.array(full.shape) - 1) / 2) / half
        phases = self._phases_at(at_s)
        offset = np.array([_coil(v, u, phases) for v, u in place]) * self._config.coil_px
        return frame.to_nm(seen + offset) - frame.to_nm(seen)

    def _coil_frame(self, full: ScanGeometry, rotation_rad: float) -> ScanGeometry:
        """The raster that the non-linearity is laid over while the scan has a rotation."""
        turn = rotation_rad if self._config.coil_turns_with_scan else full.rotation_rad
        return msgspec.structs.replace(full, rotation_rad=turn)

    def _phases_at(self, at_s: float) -> Float64:
        w = self._variation_phase(at_s)
        step = 2 * self._config.variation
        return self._coil_phases + step * np.array([math.sin(w), w / 15, math.cos(w), 0.0])

    # -- the drift -----------------------------------------------------------------------------

    def _drift_after(self, steps_s: Float64) -> Float64:
        """Pass the steps one after the other; return the drift at the end of each, ``(n, 2)``."""
        sd_nm = self._config.drift_wander_nm_per_sqrt_s * np.sqrt(steps_s)[:, None]
        wander_nm = self._wander_nm + np.cumsum(sd_nm * self._rng.standard_normal((len(steps_s), 2)), axis=0)
        times_s = self.elapsed_s + np.cumsum(steps_s)
        self._wander_nm = wander_nm[-1]
        self.elapsed_s = float(times_s[-1])
        return self._settled_nm(times_s) + wander_nm + self._swing_after(steps_s)

    def _settled_nm(self, times_s: Float64) -> Float64:
        """Drift without its wander at some times, ``(n, 2)``."""
        progress = -np.expm1(-times_s / self._config.drift_settling_s)
        settled: Float64 = progress[:, None] * np.array(self._config.drift_travel_nm)
        return settled

    def _swing_after(self, steps_s: Float64) -> Float64:
        """Let the swing go on; return its place at the end of each step, ``(n, 2)``."""
        places = np.zeros((len(steps_s), 2))
        if not self._config.drift_swing_nm_per_s:
            return places
        noise = self._swing_rng.standard_normal((len(steps_s), 2, 2))
        different_s, which = np.unique(steps_s, return_inverse=True)
        forward = np.array([self._swing_step(step_s) for step_s in different_s.tolist()])
        _swing_on(self._swing, forward, which, noise, places)
        return places

    def _swing_step(self, step_s: float) -> Float64:
        """Transition of place and velocity over a time, and a root of the covariance of its noise.

        Shape ``(2, 2, 2)``.

        Exact for any step: at rest the covariance is known, and the noise is what the transition of
        it leaves to be filled up.
        """
        c = self._config
        omega = 2 * math.pi / c.drift_swing_period_s
        transition: Float64 = expm(
            np.array([[0.0, 1.0], [-(omega**2), -1 / c.drift_swing_memory_s]]) * step_s
        )
        rest = np.diag([c.drift_swing_nm**2, c.drift_swing_nm_per_s**2])
        values, vectors = np.linalg.eigh(rest - transition @ rest @ transition.T)
        return np.stack([transition, vectors * np.sqrt(np.maximum(values, 0.0))])


def _turned(column_offset_px: Float64) -> Float64:
    """Offsets of a row that is scanned from right to left, by place."""
    turned: Float64 = column_offset_px[:, ::-1] * np.array([[1.0], [-1.0]])
    return turned


def _in_pixels(geometry: ScanGeometry, moved_nm: Float64) -> Float64:
    """Moves ``(x, y)``, ``(n, 2)``, in pixels of a raster along ``(row, col)``, ``(2, n)``."""
    pixels: Float64 = (geometry.to_px(moved_nm) - geometry.to_px(np.zeros((1, 2)))).T
    return pixels


# -- creep -------------------------------------------------------------------------------------

CREEP_FROM_S = 0.1  # a calibrated displacement is that of so long after a step
CREEP_MOVES = 64  # that are remembered one by one


class _Creep:
    """A piezo that goes on after it was moved, by the logarithm of time, and forgets nothing at once.

    Of a step ``x0`` it has gone ``x0 share log10(1 + t / 0.1 s)`` further after a time ``t``: for long times
    what is measured after a step, and 0 at the step. Of a motion each part creeps by itself (linear
    superposition, an assumption). Only the middle of the rows is followed: of a periodic motion creep has
    next to no effect.

    Parameters
    ----------
    share
        Creep of a decade.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._moves: list[tuple[float, float, Float64]] = []  # from when to when, and how far
        self._at_nm: Float64 | None = None

    def scan(self, edges_nm: Float64, started_s: float, ended_s: float, times_s: Float64) -> Float64:
        """Go to the first row at once and to the last one steadily; say how far off it is, ``(n, 2)``."""
        first, last = edges_nm
        if self._at_nm is not None:
            self._remember(started_s, started_s, first - self._at_nm)
        self._remember(started_s, ended_s, last - first)
        self._at_nm = last
        return self.at(times_s)

    def at(self, times_s: Float64) -> Float64:
        """How far off it is at some times, ``(x, y)``, shape ``(n, 2)``."""
        off = np.zeros((len(times_s), 2))
        for start, end, moved in self._moves:
            off += self._crept(times_s - start, end - start)[:, None] * moved
        return off

    def _remember(self, start: float, end: float, moved: Float64) -> None:
        self._moves.append((start, end, moved))
        if len(self._moves) > CREEP_MOVES:  # what is long ago is one step
            (_, _, one), (_, end, other) = self._moves[:2]
            self._moves[:2] = [(end, end, one + other)]

    def _crept(self, since_s: Float64, took_s: float) -> Float64:
        """Creep of a move of 1 that began some time ago and was steady."""
        since = np.maximum(since_s, 0.0)
        if not took_s:
            gone: Float64 = self._share * np.log10(1 + since / CREEP_FROM_S)
            return gone
        rest = np.maximum(since - took_s, 0.0)
        return self._share * (_integral(since) - _integral(rest)) / took_s


def _integral(times_s: Float64) -> Float64:
    """Integral of ``log10(1 + t / 0.1 s)`` from 0."""
    t = times_s / CREEP_FROM_S
    area: Float64 = CREEP_FROM_S / math.log(10) * ((1 + t) * np.log1p(t) - t)
    return area


@njit(cache=True)
def _swing_on(swing: Float64, forward: Float64, which: Int64, noise: Float64, places: Float64) -> None:
    """Move place and velocity on, step by step, and write down the places."""
    for i in range(len(which)):
        transition, root = forward[which[i], 0], forward[which[i], 1]
        for k in range(2):
            place, velocity = swing[0, k], swing[1, k]
            for m in range(2):
                swing[m, k] = transition[m, 0] * place + transition[m, 1] * velocity
                swing[m, k] += root[m, 0] * noise[i, 0, k] + root[m, 1] * noise[i, 1, k]
            places[i, k] = swing[0, k]


def _between(one: ScanGeometry, other: ScanGeometry) -> Float64:
    """Matrix that turns an offset in pixels of one raster into pixels of another, shape ``(2, 2)``."""
    steps = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    there = other.to_px(one.to_nm(steps))
    turned: Float64 = (there[1:] - there[0]).T
    return turned


@njit(cache=True)
def _coil(v: float, u: float, phases: Float64) -> tuple[float, float]:
    """Offset ``(row, col)`` at a place; ``v`` down and ``u`` to the right go from -1 to 1 over the frame."""
    barrel = u * u + v * v - 0.55
    across = 0.3 * v * barrel + 0.4 * np.sin(1.6 * v - 2.0 * u + phases[2])
    across += 0.2 * np.sin(3.1 * u + 0.4 * v + phases[3])
    along = 0.4 * u * barrel + 0.45 * np.sin(1.9 * u + 1.5 * v + phases[0])
    along += 0.3 * np.sin(3.4 * v - 1.3 * u + phases[1])
    return across, along


@njit(cache=True)
def _coil_grid(
    shape: tuple[int, int], start: Float64, down: Float64, right: Float64, phases: Float64
) -> Float64:
    """Do it for each pixel of a raster that lies anyhow, shape ``(2, rows, cols)``."""
    rows, cols = shape
    offset = np.empty((2, rows, cols))
    for i in range(rows):
        for j in range(cols):
            v = start[0] + i * down[0] + j * right[0]
            u = start[1] + i * down[1] + j * right[1]
            offset[0, i, j], offset[1, i, j] = _coil(v, u, phases)
    return offset


# -- the inverse -------------------------------------------------------------------------------


@njit(cache=True)
def _inverse(displacement_px: Float64, places_px: Float64) -> Float64:
    """Find the pixels ``p`` with ``p + D(p)`` at some places, by fixed point, shape ``(n, 2)``."""
    seen = places_px.copy()
    for n in range(len(places_px)):
        for _ in range(60):
            row = places_px[n, 0] - _cubic(displacement_px[0], seen[n, 0], seen[n, 1])
            col = places_px[n, 1] - _cubic(displacement_px[1], seen[n, 0], seen[n, 1])
            step = abs(row - seen[n, 0]) + abs(col - seen[n, 1])
            seen[n, 0], seen[n, 1] = row, col
            if step < 1e-6:
                break
    return seen


@njit(cache=True)
def _cubic(field: Float64, row: float, col: float) -> float:
    """Interpolate by Catmull-Rom cubics; beyond the edge the value is that of the edge."""
    rows, cols = field.shape
    row, col = min(max(row, 0.0), rows - 1.0), min(max(col, 0.0), cols - 1.0)
    i, j = int(row), int(col)
    total = 0.0
    for a in range(-1, 3):
        across = 0.0
        for b in range(-1, 3):
            r, c = min(max(i + a, 0), rows - 1), min(max(j + b, 0), cols - 1)
            across += _catmull_rom(col - j - b) * field[r, c]
        total += _catmull_rom(row - i - a) * across
    return total


@njit(cache=True)
def _catmull_rom(distance: float) -> float:
    t = abs(distance)
    if t < 1:
        return 1 - 2.5 * t * t + 1.5 * t * t * t
    if t < 2:
        return 2 - 4 * t + 2.5 * t * t - 0.5 * t * t * t
    return 0.0
