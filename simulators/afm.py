"""A fast atomic force microscope over rods that assemble while they are scanned, every one of them known.

The image is the grey-scale dilation of the scene by the tip, written down exactly: of a rod with a round
section under a round tip that goes over into a cone it is a formula, and of many rods it is the highest of
theirs. So each pixel is computed where the tip really was. The rods move while the frame goes on, block of
rows by block of rows. On top: a feedback that follows with a lag and lets go of falling edges, noise, rows
that lie higher or lower, and scars along the fast axis. ``distortion.both_ways`` gives trace and retrace.

Left out: steps and roughness of the face (mica is flat), forces of the tip on the rods, and how they yield.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from simulators.faults import reach
from simulators.rods import MAX_STEPS, Assembly, RodsConfig, order_parameter
from simulators.scan_distortion import BeamPath
from simulators.scanning import ScanningConfig, ScanningInstrument
from simulators.simulator import Curve, Exposure, Image, Refused, Scan, Truth
from streamer.messages import PairNm

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

LEAST_BLOCKS = 8  # of a frame, between which the rods move
BLUNT = 2.0  # a changed tip is as many times as blunt, and has a second apex:
GHOST_LENGTHS = 0.4  # so far away, in lengths of a rod
GHOST_HIGHER_NM = 0.4
STREAK_ROWS = 3.0  # in which the height of a row is forgotten
MAX_ROD_AREAS = 30_000  # that have room on the face: a step of so many takes half a second


class AfmConfig(ScanningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The microscope; ``rods`` and ``distortion`` are tables of their own.

    What is not listed here is in ``simulators.scanning.ScanningConfig``. With 256 pixels of 15 us a line
    takes 4 ms and a frame a second.

    Attributes
    ----------
    tip_radius_nm, tip_half_angle_deg
        A sphere, and the cone that it goes over into.
    feedback_us
        Time in which the feedback makes up for all but 1/e of an error. 0 follows at once.
    parachuting
        How many times as long it takes where the face falls: the tip lets go, and the error has a limit.
    height_noise_nm
        Sd of the noise of a pixel at ``dwell_time_us``; it falls with the square root of the time.
    streak_nm
        Sd of the height at which rows lie; a row remembers the ones before.
    scars
        Expected number of dashes along the fast axis in a full frame, where the tip lost the face.
    scar_nm
        Mean height of a dash, up or down.
    rods
        What is on the face.
    """

    table: ClassVar[str] = "afm"
    has_tip: ClassVar[bool] = True
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "field_of_view_nm": (20.0, 5000.0),
        "stage_reach_nm": (0.0, 1000.0),
        "tip_radius_nm": (0.5, 100.0),
        "tip_half_angle_deg": (1.0, 60.0),
        "feedback_us": (0.0, 1e5),
        "parachuting": (1.0, 20.0),
        "height_noise_nm": (0.0, 10.0),
        "streak_nm": (0.0, 10.0),
        "scars": (0.0, 1000.0),
        "scar_nm": (0.0, 100.0),
    }
    records_both_ways: ClassVar[bool] = True

    rows: int = 256
    cols: int = 256
    field_of_view_nm: float = 200.0
    dwell_time_us: float = 15.0
    beam_current_pa: float = 0.0
    travel_um_per_s: float = 100.0
    settle_s: float = 0.005
    reach_nm: float = 5000.0
    tip_radius_nm: float = 2.0
    tip_half_angle_deg: float = 15.0
    feedback_us: float = 8.0
    parachuting: float = 2.0
    height_noise_nm: float = 0.08
    streak_nm: float = 0.05
    scars: float = 2.0
    scar_nm: float = 0.8
    rods: RodsConfig = RodsConfig()

    def __post_init__(self) -> None:
        ScanningConfig.__post_init__(self)
        lower, upper = _face(self)
        most = math.prod(high - low for low, high in zip(lower, upper, strict=True)) / self.rods.area_nm2
        if most > MAX_ROD_AREAS:
            raise ValueError(
                f"afm.rods.length_nm is {self.rods.length_nm:g}: {most:.0f} of these rods have room on this "
                f"field; it takes up to {MAX_ROD_AREAS}: longer rods, or a smaller field"
            )


def _face(config: AfmConfig) -> tuple[PairNm, PairNm]:
    """Corners of a rectangle of the face that fills the field wherever drift, stage and faults take it."""
    edges = np.array([[r, c] for r in (0, config.rows) for c in (0, config.cols)])
    wider, slips = reach(config.faults)
    corners = wider * config.geometry.to_nm(edges)
    if config.stage_reach_nm:  # it may also be turned by a right angle
        corners = np.concatenate([corners, corners[:, ::-1]])
    distortion = config.distortion
    moves = np.concatenate([slips, slips + np.array(distortion.drift_travel_nm)])
    looks_at = (corners[:, None] - moves).reshape(-1, 2)
    rim_nm = (
        config.rods.length_nm + 30 * distortion.drift_wander_nm_per_sqrt_s + 4 * distortion.drift_swing_nm
    )
    rim_nm += config.stage_reach_nm + 0.02 * config.field_of_view_nm
    rim_nm += distortion.creep_share * max(config.geometry.field_of_view_nm)
    lower, upper = looks_at.min(axis=0) - rim_nm, looks_at.max(axis=0) + rim_nm
    return (float(lower[0]), float(lower[1])), (float(upper[0]), float(upper[1]))


# -- the image ---------------------------------------------------------------------------------


def tip_profile(config: AfmConfig, *, blunt: float = 1.0) -> Float64:
    """Give the numbers that the section of a rod as it is seen is made of.

    A tip of radius ``R`` rolls over a section of radius ``a``: ``sqrt((R + a)^2 - r^2) - (R - a)`` at a
    distance ``r`` of its apex from the axis, so that a rod on the face is seen ``4 sqrt(R a)`` wide. Where
    the slope is that of the cone, it is a straight line.

    Parameters
    ----------
    config
        Of tip and rods.
    blunt
        How many times as wide the tip is.

    Returns
    -------
    profile
        ``R + a``, ``R - a``, distance and height where the line begins, its slope and the distance at which
        the rod is no more seen, in nm.
    """
    tip, rod = blunt * config.tip_radius_nm, config.rods.diameter_nm / 2
    half_angle = math.radians(config.tip_half_angle_deg)
    begins = (tip + rod) * math.cos(half_angle)
    high = (tip + rod) * math.sin(half_angle) - (tip - rod)
    ends = begins + high * math.tan(half_angle) if high > 0 else 2 * math.sqrt(tip * rod)
    return np.array([tip + rod, tip - rod, begins, high, 1 / math.tan(half_angle), ends])


@njit(cache=True)
def _section(profile: Float64, square: float) -> float:
    """Height of the apex at a squared distance from a rod's axis."""
    if square < profile[2] * profile[2]:
        height = math.sqrt(profile[0] * profile[0] - square) - profile[1]
    else:
        height = profile[3] - (math.sqrt(square) - profile[2]) * profile[4]
    return max(float(height), 0.0)


@njit(cache=True)
def _draw(
    surface: Float32,
    rows: tuple[int, int],
    displacement_px: Float64,
    most_px: Float64,
    raster: Float64,
    positions_nm: Float64,
    angles_rad: Float64,
    half_nm: float,
    profile: Float64,
    lower_nm: float,
) -> None:
    """Raise the rows of a block to what a tip over these rods would have there.

    ``raster`` is the specimen's ``(x, y)`` at its first pixel, then its steps of a row and of a column;
    ``most_px`` the least and the greatest displacement along rows and columns.
    """
    first, down, right = raster[0], raster[1], raster[2]
    area = down[0] * right[1] - down[1] * right[0]
    across_rows = np.array([right[1] / area, -right[0] / area])  # a move in nm to rows, and to columns
    across_cols = np.array([-down[1] / area, down[0] / area])
    reach = profile[5]
    cols = surface.shape[1]
    for n in range(len(angles_rad)):
        x, y = positions_nm[n, 0] - first[0], positions_nm[n, 1] - first[1]
        cos, sin = math.cos(angles_rad[n]), math.sin(angles_rad[n])
        row, col = x * across_rows[0] + y * across_rows[1], x * across_cols[0] + y * across_cols[1]
        high = half_nm * abs(cos * across_rows[0] + sin * across_rows[1])
        high += reach * math.hypot(across_rows[0], across_rows[1])
        wide = half_nm * abs(cos * across_cols[0] + sin * across_cols[1])
        wide += reach * math.hypot(across_cols[0], across_cols[1])
        top = max(rows[0], math.ceil(row - high - most_px[0, 1]))
        bottom = min(rows[1] - 1, math.floor(row + high - most_px[0, 0]))
        left = max(0, math.ceil(col - wide - most_px[1, 1]))
        last = min(cols - 1, math.floor(col + wide - most_px[1, 0]))
        for i in range(top, bottom + 1):
            for j in range(left, last + 1):
                r, c = i + displacement_px[0, i, j] - row, j + displacement_px[1, i, j] - col
                dx, dy = r * down[0] + c * right[0], r * down[1] + c * right[1]
                across = dy * cos - dx * sin
                if abs(across) >= reach:
                    continue
                beyond = max(abs(dx * cos + dy * sin) - half_nm, 0.0)
                square = across * across + beyond * beyond
                if square < reach * reach:
                    height = np.float32(_section(profile, square) - lower_nm)
                    surface[i, j] = max(surface[i, j], height)


@njit(cache=True)
def _follow(there: Float32, back: Float32, up: float, down: float, is_serpentine: bool) -> None:
    """Let the feedback follow surfaces in the order of scanning, in place.

    ``up`` and ``down`` are the shares of an error that are made up for in a pixel. ``back`` has the ways
    back, or no rows.
    """
    rows, cols = there.shape
    z = there[0, 0]
    for i in range(rows):
        is_turned = is_serpentine and i % 2 == 1
        if not is_serpentine and len(back) == 0:
            z = there[i, 0]  # it has flown back, and found the face again
        for k in range(cols):
            j = cols - 1 - k if is_turned else k
            z += np.float32(up if there[i, j] > z else down) * (there[i, j] - z)
            there[i, j] = z
        for k in range(cols if len(back) else 0):
            j = cols - 1 - k
            z += np.float32(up if back[i, j] > z else down) * (back[i, j] - z)
            back[i, j] = z


# -- what the tip met --------------------------------------------------------------------------


class _Met:
    """Where each rod was when the tip passed it in one frame.

    A rod is passed when the row of its middle is. One that lands behind the tip is not met.
    """

    def __init__(self) -> None:
        self._is_known = np.zeros(0, dtype=np.bool_)
        self._is_passed = np.zeros(0, dtype=np.bool_)
        self._state = np.zeros((0, 3))  # x, y, angle

    def look(self, assembly: Assembly, row: Float64, rows: tuple[int, int]) -> None:
        """Take the rods as they are while a block of rows is scanned; in which row is each of them seen?"""
        self._make_room(len(assembly.born_s))
        ids = assembly.ids
        is_behind = ~self._is_known[ids] & (row < rows[0]) & (rows[0] > 0)
        self._is_known[ids] = True
        self._is_passed[ids[is_behind]] = True
        coming = ~self._is_passed[ids]
        seen = ids[coming]
        self._state[seen, :2] = assembly.positions_nm[coming]
        self._state[seen, 2] = assembly.angles_rad[coming]
        self._is_passed[seen[row[coming] < rows[1]]] = True

    def passed(self) -> tuple[Int64, Float64]:
        """Identities of those that the tip has passed, and ``x, y, angle`` of each, shape ``(n, 3)``."""
        ids = np.flatnonzero(self._is_passed & ~np.isnan(self._state[:, 0]))
        return ids, self._state[ids]

    def _make_room(self, rods: int) -> None:
        more = rods - len(self._is_known)
        if more > 0:
            self._is_known = np.concatenate([self._is_known, np.zeros(more, dtype=np.bool_)])
            self._is_passed = np.concatenate([self._is_passed, np.zeros(more, dtype=np.bool_)])
            self._state = np.concatenate([self._state, np.full((more, 3), np.nan)])


# -- the rods under the tip --------------------------------------------------------------------


class AfmSimulator:
    """Rods on mica under a tip; see ``simulators.simulator.Simulator``.

    Parameters
    ----------
    config
        Microscope and rods.

    Attributes
    ----------
    assembly
        What is there.
    """

    name = "simulated AFM"

    def __init__(self, config: AfmConfig) -> None:
        self._config = config
        specimen_rng, _, self._noise_rng, _, fault_rng = (
            np.random.default_rng(seed) for seed in config.seeds()
        )
        self.assembly = Assembly(config.rods, *_face(config), specimen_rng)
        angle, far = fault_rng.uniform(0, 2 * math.pi), GHOST_LENGTHS * config.rods.length_nm
        self._ghost_nm = np.array([far * math.cos(angle), far * math.sin(angle)])
        self._met: list[tuple[Int64, Float64]] = []
        self._frames: list[tuple[float, float, float]] = []
        self._back_rows: list[Float32] = []
        self._back_cols: list[Float32] = []

    def step(self, seconds: float) -> None:
        """Let the rods move, come and go."""
        self.assembly.advance(seconds)

    def acquire_image(self, scan: Scan) -> Image:
        """Scan the height in nm, row by row over the rods as they are by then; the bare face is at 0.

        With a way back, channels are ``height trace`` and ``height retrace``, both in order of place.
        """
        ways = [scan.path] if scan.path.backward is None else [scan.path, scan.path.backward]
        surfaces = np.zeros((len(ways), *scan.path.geometry.shape), dtype=np.float32)
        self._sweep(scan, ways, surfaces)
        self._note_back(scan.path)
        if "blank" in scan.faults:
            surfaces[:] = 0
        self._feed_back(scan, surfaces)
        self._spoil(scan, surfaces)
        channels = ("height",) if len(ways) == 1 else ("height trace", "height retrace")
        return Image(values=surfaces, channels=channels)

    def acquire_curve(self, exposure: Exposure) -> Curve:
        """Refuse; the time passes."""
        self.step(exposure.dwell_time_us * 1e-6)
        raise Refused("this AFM takes images only; ask for a scan")

    def truth(self) -> Truth:
        """Give the rods, as the tip met them and through their lives.

        Returns
        -------
        arrays
            A row for each rod whose middle was in a frame, frame by frame: ``rod_frame``, ``rod_id``,
            ``rod_position_nm`` ``(n, 2)`` as ``(x, y)`` of the specimen, ``rod_place_px`` ``(n, 2)``, the
            pixel ``(row, col)`` at which it is seen but for the jitter, and ``rod_angle_rad``, from x, 0 to
            pi: all when the tip passed its middle. For each rod that ever was, by its identity,
            ``rod_born_s`` and ``rod_died_s`` after the start of the first frame, infinite while it is
            there. For each frame ``frame_order``, the order parameter of its rods, ``frame_director_rad``,
            and ``frame_coverage``, the share of the whole face that rods cover at its end.
            ``rod_length_nm``, ``rod_diameter_nm`` and ``tip_radius_nm``. With ways back
            ``retrace_row_offset_px`` and ``retrace_column_offset_px``, as of the ways there.
        """
        frames = np.array(self._frames, dtype=np.float64).reshape(-1, 3)
        met = [state for _, state in self._met]
        state = np.concatenate(met) if met else np.zeros((0, 5))
        known: Truth = {
            "rod_frame": np.repeat(np.arange(len(met)), [len(one) for one in met]),
            "rod_id": np.concatenate([np.zeros(0, dtype=np.int64), *(ids for ids, _ in self._met)]),
            "rod_position_nm": state[:, :2],
            "rod_angle_rad": state[:, 2],
            "rod_place_px": state[:, 3:],
            "rod_born_s": np.array(self.assembly.born_s, dtype=np.float64),
            "rod_died_s": np.array(self.assembly.died_s, dtype=np.float64),
            "frame_order": frames[:, 0],
            "frame_director_rad": frames[:, 1],
            "frame_coverage": frames[:, 2],
            "rod_length_nm": np.array(self._config.rods.length_nm),
            "rod_diameter_nm": np.array(self._config.rods.diameter_nm),
            "tip_radius_nm": np.array(self._config.tip_radius_nm),
        }
        if self._back_rows:
            known["retrace_row_offset_px"] = np.array(self._back_rows)
            known["retrace_column_offset_px"] = np.array(self._back_cols)
        return known

    # -- a frame -------------------------------------------------------------------------------

    def _sweep(self, scan: Scan, ways: list[BeamPath], surfaces: Float32) -> None:
        """Draw block of rows by block of rows while the rods move, and write down how the tip met them."""
        path = scan.path
        rows = path.geometry.shape[0]
        seconds = path.ended_s - path.started_s
        blocks = min(rows, max(LEAST_BLOCKS, math.ceil(seconds / self._config.rods.step_s)))
        edges = np.linspace(0, rows, blocks + 1).round().astype(np.int64).tolist()
        fields = [way.displacement_px() for way in ways]
        row = np.arange(rows)
        place = np.maximum.accumulate(row + fields[0][0].mean(axis=1))  # of the middle of each row
        raster, met = _raster(path), _Met()
        most = MAX_STEPS // blocks
        for n in range(blocks):  # each block in the middle of its time
            self.assembly.advance(seconds / blocks * (0.5 if n == 0 else 1.0), most)
            block = (edges[n], edges[n + 1])
            for field, surface in zip(fields, surfaces, strict=True):
                self._draw(scan, field, raster, block, surface)
            there = path.places_px(self.assembly.positions_nm)[:, 0]
            met.look(self.assembly, np.interp(there, place, row, left=-1, right=rows), block)
        self.assembly.advance(seconds / blocks / 2, most)
        self._note(path, *met.passed())

    def _draw(
        self, scan: Scan, field: Float64, raster: Float64, block: tuple[int, int], surface: Float32
    ) -> None:
        """Draw the rods into a block of rows."""
        is_changed = "tip" in scan.faults
        profile = tip_profile(self._config, blunt=BLUNT if is_changed else 1.0)
        rods = self._config.rods
        half_nm = 0.0 if "amorphous" in scan.faults else rods.segment_nm / 2
        most_px = np.array([[part.min(), part.max()] for part in field[:, block[0] : block[1]]])
        positions_nm, angles = self.assembly.positions_nm, self.assembly.angles_rad
        _draw(surface, block, field, most_px, raster, positions_nm, angles, half_nm, profile, 0.0)
        if is_changed:  # the second apex is over a rod when the first is as far on the other side
            seen_nm = positions_nm - self._ghost_nm
            _draw(surface, block, field, most_px, raster, seen_nm, angles, half_nm, profile, GHOST_HIGHER_NM)

    def _note(self, path: BeamPath, ids: Int64, state: Float64) -> None:
        """Write down those rods whose middle is in the frame."""
        seen_px = path.seen_px(state[:, :2], jitter=False)
        last = np.array(path.geometry.shape) - 1
        is_in = ((seen_px >= 0) & (seen_px <= last)).all(axis=1)
        self._met.append((ids[is_in], np.concatenate([state, seen_px], axis=1)[is_in]))
        rods = len(self.assembly.ids) * self._config.rods.area_nm2
        self._frames.append((*order_parameter(state[is_in, 2]), rods / self.assembly.area_nm2))

    def _note_back(self, path: BeamPath) -> None:
        """Keep how the ways back of a full frame went; others are of another shape."""
        if not self._config.distortion.both_ways:
            return
        config = self._config
        rows = np.full((2, config.rows), np.nan, dtype=np.float32)
        cols = np.full((2, config.cols), np.nan, dtype=np.float32)
        if path.backward is not None and path.geometry.shape == (config.rows, config.cols):
            rows = path.backward.row_offset_px.astype(np.float32)
            cols = path.backward.column_offset_px.astype(np.float32)
        self._back_rows.append(rows)
        self._back_cols.append(cols)

    # -- feedback and noise --------------------------------------------------------------------

    def _feed_back(self, scan: Scan, surfaces: Float32) -> None:
        lag_us = self._config.feedback_us
        if not lag_us:
            return
        up = -math.expm1(-scan.dwell_time_us / lag_us)
        down = -math.expm1(-scan.dwell_time_us / (lag_us * self._config.parachuting))
        back = surfaces[1] if len(surfaces) > 1 else surfaces[0, :0]
        _follow(surfaces[0], back, up, down, scan.path.scan_path == "serpentine")

    def _spoil(self, scan: Scan, surfaces: Float32) -> None:
        """Add noise, rows that lie higher or lower, and scars."""
        config, rng = self._config, self._noise_rng
        quieter = math.sqrt(config.dwell_time_us / scan.dwell_time_us)
        noise = rng.standard_normal(surfaces.shape, dtype=np.float32)
        surfaces += np.float32(config.height_noise_nm * quieter) * noise
        rows, cols = surfaces.shape[1:]
        surfaces += _streaks(np.array(rng.standard_normal(rows)), config.streak_nm)[None, :, None]
        expected = config.scars * rows * cols / (config.rows * config.cols)
        for way, row, col, length in _scars(rng, int(rng.poisson(expected)), surfaces.shape):
            surfaces[way, row, col : col + length] += rng.laplace(0.0, config.scar_nm)


class AfmInstrument(ScanningInstrument[AfmSimulator]):
    """A simulated fast AFM over rods that assemble on mica.

    Parameters
    ----------
    config
        Microscope, rods and distortion.
    started_at_s
        As of a ``ScanningInstrument``.
    """

    config: AfmConfig

    def __init__(self, config: AfmConfig | None = None, *, started_at_s: float | None = None) -> None:
        config = AfmConfig() if config is None else config
        super().__init__(AfmSimulator(config), config, started_at_s=started_at_s)


def _raster(path: BeamPath) -> Float64:
    """Specimen ``(x, y)`` at a raster's first pixel, and its steps of a row and of a column, ``(3, 2)``."""
    nodes_nm = path.geometry.to_nm(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) - np.array(path.stage_nm)
    return np.stack([nodes_nm[0], nodes_nm[1] - nodes_nm[0], nodes_nm[2] - nodes_nm[0]])


def _streaks(noise: Float64, sd_nm: float) -> Float32:
    """Heights at which rows lie: noise that is forgotten in a few rows, shape of the argument."""
    kept = math.exp(-1 / STREAK_ROWS)
    height, heights = sd_nm * noise[0], []
    for push in noise.tolist():
        height = kept * height + math.sqrt(1 - kept**2) * sd_nm * push
        heights.append(height)
    return np.array(heights, dtype=np.float32)


def _scars(rng: np.random.Generator, number: int, shape: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Where scars are: way, row, first column, and length, a tenth of a row on the average."""
    ways, rows, cols = shape
    places = zip(
        rng.integers(ways, size=number).tolist(),
        rng.integers(rows, size=number).tolist(),
        rng.integers(cols, size=number).tolist(),
        np.ceil(rng.exponential(cols / 10, number)).astype(int).tolist(),
        strict=True,
    )
    return list(places)
