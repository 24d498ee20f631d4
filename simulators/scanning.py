"""An instrument that scans: any simulator under one scanner, with its clock, its stage and its faults.

Time is simulated: it passes by the dwell times of frames, sub-scans and exposures and by the ways between
them, and the drift goes on in all of them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from simulators.faults import FaultConfig, magnified_at, slips_at, under_way
from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.simulator import Curve, Exposure, Image, Refused, Scan, Simulator, Truth
from streamer.messages import Frame, Outcome, OutcomeStatus, PairNm, Request, ScanGeometry

Float32 = NDArray[np.float32]
Simulated = TypeVar("Simulated", bound=Simulator)

ELEMENTARY_CHARGE_C = 1.602176634e-19
MAX_SCAN_PX = 4096 * 4096
MIN_DWELL_TIME_US, MAX_DWELL_TIME_US = 0.01, 60e6
COIL_NODES = 17  # of the truth's coil field along each axis
TORN_AT = 0.6  # of a torn frame, as much was written


class ScanningConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every scanning instrument is set by; each of them adds its own.

    Attributes
    ----------
    rows, cols
        Size of a frame in pixels.
    field_of_view_nm
        Width of a frame; pixels are square.
    rotation_deg
        Scan rotation, from x to the fast axis; x right, y down.
    dwell_time_us
        Time the probe spends on one pixel.
    beam_current_pa
        For the dose; 0 for a probe that is not a beam of electrons.
    stage_reach_nm
        How far a request may move the stage along x and y, either way. 0 is a stage that does not move.
    stage_error_nm
        Sd of the error of such a move along each axis.
    travel_um_per_s
        How fast the probe goes to where it is asked to; 0 is at once.
    settle_s
        How long it then waits.
    reach_nm
        How far from the middle of the scan the probe can be sent along x and y; requests beyond are
        refused.
    queue_length
        How many requests may wait while one is done; the next one is refused.
    seed
        Of specimen, distortion and noise: the same seed gives the same frames, byte for byte.
    faults
        What goes wrong, and when.
    distortion
        How far the scan is from perfect.
    """

    table: ClassVar[str] = "instrument"
    limits: ClassVar[dict[str, tuple[float, float]]] = {}
    records_both_ways: ClassVar[bool] = False
    has_tip: ClassVar[bool] = False

    rows: int = 512
    cols: int = 512
    field_of_view_nm: float = 6.3
    rotation_deg: float = 0.0
    dwell_time_us: float = 1.0
    beam_current_pa: float = 60.0
    stage_reach_nm: float = 0.0
    stage_error_nm: float = 0.02
    travel_um_per_s: float = 0.0
    settle_s: float = 0.0
    reach_nm: float = 1e6
    queue_length: int = 64
    seed: int = 0
    faults: tuple[FaultConfig, ...] = ()
    distortion: ScanDistortionConfig = ScanDistortionConfig()

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            if not 8 <= getattr(self, name) <= 4096:
                raise ValueError(f"{self.table}.{name} is {getattr(self, name)}; it takes 8 to 4096")
        for name, (least, most) in (_LIMITS | self.limits).items():
            if not least <= getattr(self, name) <= most:
                value = getattr(self, name)
                raise ValueError(f"{self.table}.{name} is {value}; it takes {least:g} to {most:g}")
        if self.seed < 0:
            raise ValueError(f"{self.table}.seed is {self.seed}; it takes 0 and above")
        self.distortion.check(self.field_of_view_nm)
        if self.distortion.both_ways and not self.records_both_ways:
            raise ValueError(
                f"{self.table}.distortion.both_ways is true; this instrument records one way: leave it out"
            )
        if not self.has_tip and any(fault.kind == "tip" for fault in self.faults):
            raise ValueError(
                f"{self.table}.faults: a fault is a tip; an electron beam has none: leave it out"
            )

    @property
    def geometry(self) -> ScanGeometry:
        """The raster of a full frame, around ``(0, 0)``."""
        height_nm = self.field_of_view_nm * self.rows / self.cols
        return ScanGeometry(
            shape=(self.rows, self.cols),
            field_of_view_nm=(self.field_of_view_nm, height_nm),
            rotation_rad=math.radians(self.rotation_deg),
        )

    def electrons(self, exposure_us: float) -> float:
        """Electrons of the beam in a time."""
        return self.beam_current_pa * 1e-18 * exposure_us / ELEMENTARY_CHARGE_C

    def seeds(self) -> list[np.random.SeedSequence]:
        """Make seeds of specimen, distortion, noise, stage and faults: one never moves another's draws."""
        return np.random.SeedSequence(self.seed).spawn(5)


_LIMITS = {
    "field_of_view_nm": (1.0, 50.0),
    "rotation_deg": (-360.0, 360.0),
    "dwell_time_us": (0.01, 1e5),
    "beam_current_pa": (0.0, 1e5),
    "stage_reach_nm": (0.0, 20.0),
    "stage_error_nm": (0.0, 5.0),
    "travel_um_per_s": (0.0, 1e6),
    "settle_s": (0.0, 10.0),
    "reach_nm": (0.1, 1e6),
    "queue_length": (1, 4096),
}


class ScanningInstrument(Generic[Simulated]):
    """A simulator under a scanner; speaks the Instrument protocol.

    A probe that is sent to a place and stays there suffers the drift and the coils' non-linearity: sent to
    ``p`` it is at ``p + coil(p)``. Fly-back, settling, jitter and hum are of a moving probe and of short
    times, and not in it.

    Parameters
    ----------
    simulator
        What is scanned. Its random draws are its own.
    config
        How it is scanned.
    started_at_s
        Instrument clock at the start, seconds since the epoch; None takes the clock of this machine.

    Attributes
    ----------
    simulator, config
        As given.
    last_path
        Where the probe really was in the last frame or sub-scan, pixel by pixel; None before the first.
    """

    def __init__(
        self, simulator: Simulated, config: ScanningConfig, *, started_at_s: float | None = None
    ) -> None:
        self.simulator = simulator
        self.config = config
        self._started_at_s = time.time() if started_at_s is None else started_at_s
        _, distortion_seed, _, stage_seed, _ = config.seeds()
        self._distortion = ScanDistortion(
            config.distortion, np.random.default_rng(distortion_seed), config.geometry
        )
        self._stage_rng = np.random.default_rng(stage_seed)
        self._diary = _Diary((config.rows, config.cols))
        self._is_parked = False
        self._full_frames = 0
        self._stage_nm: PairNm = (0.0, 0.0)
        self._stage_error_nm: PairNm = (0.0, 0.0)
        self._probe_nm: PairNm = (0.0, 0.0)
        self._last_image: Float32 | None = None
        self.last_path: BeamPath | None = None

    @property
    def name(self) -> str:
        """As the simulator's."""
        return self.simulator.name

    @property
    def batches_waiting(self) -> int:
        """None: a scan has one frame, unless an instrument says otherwise."""
        return 0

    @property
    def clock_s(self) -> float:
        """Instrument clock, seconds since the epoch."""
        return self._started_at_s + self._distortion.elapsed_s

    def acquire(self) -> Frame:
        """Scan the next full frame.

        Raises
        ------
        RuntimeError
            While the beam is parked.
        """
        frame = self._scan(self._next_field(), self.config.dwell_time_us, None)
        self._full_frames += 1
        return frame

    def execute(self, request: Request) -> tuple[Outcome, Frame | None]:
        """Do what is asked; what cannot be done is answered by ``failed`` or ``refused`` and a reason."""
        if self._is_parked:
            return _undone(request, "aborted", "the beam is parked"), None
        reason = _why_not(request, self.config)
        if reason is not None:
            return _undone(request, "failed", reason), None
        if request.stage_nm is not None:
            self._move_stage(request.stage_nm)
        self._travel(request.scan_position_nm)
        started_at_s = self.clock_s
        curve = Curve(values=np.zeros(0, dtype=np.float32))
        frame: Frame | None = None
        exposure_us = request.dwell_time_us
        try:
            if request.field_of_view_nm is not None and request.shape is not None:
                turned = request.rotation_rad
                geometry = ScanGeometry(
                    shape=request.shape,
                    field_of_view_nm=request.field_of_view_nm,
                    center_nm=request.scan_position_nm,
                    rotation_rad=self.config.geometry.rotation_rad if turned is None else turned,
                )
                frame = self._scan(geometry, request.dwell_time_us, request.id)
                exposure_us *= math.prod(request.shape)
            else:
                curve = self._expose(request.scan_position_nm, request.dwell_time_us)
        except Refused as refusal:
            return _undone(request, "refused", str(refusal)), None
        outcome = Outcome(
            session=request.session,
            id=request.id,
            status="ok",
            action=request.action,
            scan_position_nm=request.scan_position_nm,
            dwell_time_us=request.dwell_time_us,
            dose_e=self.config.electrons(exposure_us),
            started_at_s=started_at_s,
            ended_at_s=self.clock_s,
            spectrum=curve.values if frame is None else None,
            energy_offset_ev=curve.energy_offset_ev,
            energy_step_ev=curve.energy_step_ev,
            bias_v=curve.bias_v,
        )
        return outcome, frame

    def park(self) -> None:
        """Park the beam: no dose, no frames and no spectra until ``go``."""
        self._is_parked = True

    def go(self, parked_s: float) -> None:
        """Take the beam back to work; the specimen has drifted for ``parked_s``."""
        self._is_parked = False
        if parked_s > 0:
            self._wait(parked_s)

    def truth(self) -> Truth:
        """Everything that an analysis can be judged by.

        Returns
        -------
        arrays
            The simulator's, and for each frame, sub-scans too, in the order of their numbers: ``drift_nm``
            ``(frames, 2)``, mean over the rows, ``stage_nm`` and ``stage_error_nm`` ``(frames, 2)``,
            commanded and beyond it, ``frame_rotation_rad`` and ``frame_acquired_at_s`` ``(frames,)``; and
            where the beam was minus where the raster has it, ``(row, col)`` in pixels, in parts that add
            up: ``row_offset_px`` ``(frames, 2, rows)``, ``column_offset_px`` ``(frames, 2, cols)`` and
            ``coil_px`` ``(frames, 2, 17, 17)`` on nodes from the first to the last pixel, with
            ``row_drift_nm`` ``(frames, rows, 2)``; NaN for scans of another shape than the frames.
            ``pixel_size_nm``, ``field_of_view_nm`` ``(width, height)``, ``rotation_rad``, ``scan_path``
            and ``seed``.
        """
        config, diary = self.config, self._diary
        return {
            **diary.arrays(),
            **self.simulator.truth(),
            "frame_acquired_at_s": self._started_at_s + np.array(diary.ended_s, dtype=np.float64),
            "pixel_size_nm": np.array(config.geometry.pixel_size_nm[0]),
            "field_of_view_nm": np.array(config.geometry.field_of_view_nm),
            "rotation_rad": np.array(config.geometry.rotation_rad),
            "scan_path": np.array(config.distortion.scan_path),
            "seed": np.array(config.seed),
        }

    def _next_field(self) -> ScanGeometry:
        """Let happen what comes before the next full frame, and say its raster.

        Raises
        ------
        RuntimeError
            While the beam is parked.
        """
        if self._is_parked:
            raise RuntimeError("the beam is parked; let it go first")
        for step_nm in slips_at(self.config.faults, self._full_frames):
            self._distortion.jump(step_nm)
        factor = magnified_at(self.config.faults, self._full_frames)
        width_nm, height_nm = self.config.geometry.field_of_view_nm
        return replace(self.config.geometry, field_of_view_nm=(width_nm * factor, height_nm * factor))

    def _scan(self, geometry: ScanGeometry, dwell_time_us: float, request_id: str | None) -> Frame:
        scan = self._begin(geometry, dwell_time_us)
        return self._frame(scan, self.simulator.acquire_image(scan), request_id)

    def _begin(self, geometry: ScanGeometry, dwell_time_us: float) -> Scan:
        """Move the probe over a raster."""
        path = self._distortion.scan(geometry, dwell_time_us, self._stage_nm, self._stage_error_nm)
        self.last_path = path
        faults = under_way(self.config.faults, self._full_frames)
        return Scan(path=path, dwell_time_us=dwell_time_us, faults=faults)

    def _frame(self, scan: Scan, image: Image, request_id: str | None) -> Frame:
        path, geometry = scan.path, scan.path.geometry
        self._diary.note(path)
        electrons = self.config.electrons(scan.dwell_time_us * math.prod(geometry.shape))
        return Frame(
            session="",
            number=0,
            acquired_at_s=self._started_at_s + path.ended_s,
            image=self._torn(image) if "torn" in scan.faults else self._whole(image),
            channels=image.channels,
            geometry=geometry,
            dwell_time_us=scan.dwell_time_us,
            dose_e_per_nm2=electrons / math.prod(geometry.field_of_view_nm),
            scan_path=path.scan_path,
            request_id=request_id,
            stage_nm=path.stage_nm,
        )

    def _whole(self, image: Image) -> Float32:
        self._last_image = image.values
        return image.values

    def _torn(self, image: Image) -> Float32:
        """Keep what the buffer held before where the frame was not written."""
        torn = np.zeros_like(image.values)
        if self._last_image is not None and self._last_image.shape == torn.shape:
            torn[:] = self._last_image
        written = round(TORN_AT * torn.shape[1])
        torn[:, :written] = image.values[:, :written]
        return torn

    def _expose(self, scan_position_nm: PairNm, dwell_time_us: float) -> Curve:
        """Expose where the probe is sent; its place is that of the middle of the exposure."""
        half_s = dwell_time_us * 1e-6 / 2
        self._distortion.wait(half_s)
        drift_nm = self._distortion.drift_nm
        self._distortion.wait(half_s)
        off_nm = self._distortion.parked_offset_nm(scan_position_nm)
        moved_nm = np.array(drift_nm) + self._stage_nm + self._stage_error_nm
        x, y = np.array(scan_position_nm) + off_nm - moved_nm
        faults = under_way(self.config.faults, self._full_frames)
        return self.simulator.acquire_curve(
            Exposure(position_nm=(float(x), float(y)), dwell_time_us=dwell_time_us, faults=faults)
        )

    def _move_stage(self, stage_nm: PairNm) -> None:
        """Go there as well as the stage can; where it already stands it does not stir."""
        if stage_nm != self._stage_nm:
            x, y = self.config.stage_error_nm * self._stage_rng.standard_normal(2)
            self._stage_nm, self._stage_error_nm = stage_nm, (float(x), float(y))

    def _travel(self, to_nm: PairNm) -> None:
        """Take the time that the probe needs to get there."""
        way_um = math.dist(self._probe_nm, to_nm) / 1000
        self._probe_nm = to_nm
        speed = self.config.travel_um_per_s
        if (took_s := self.config.settle_s + (way_um / speed if speed else 0.0)) > 0:
            self._wait(took_s)

    def _wait(self, seconds: float) -> None:
        self._distortion.wait(seconds)
        self.simulator.step(seconds)


# -- what was true ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Diary:
    """What was true of each frame, in the order of the frames."""

    shape: tuple[int, int]
    drift_nm: list[PairNm] = field(default_factory=list)
    stage_nm: list[PairNm] = field(default_factory=list)
    stage_error_nm: list[PairNm] = field(default_factory=list)
    rotation_rad: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    fields: list[dict[str, Float32]] = field(default_factory=list)

    def note(self, path: BeamPath) -> None:
        self.drift_nm.append(path.drift_nm)
        self.stage_nm.append(path.stage_nm)
        self.stage_error_nm.append(path.stage_error_nm)
        self.rotation_rad.append(path.geometry.rotation_rad)
        self.ended_s.append(path.ended_s)
        is_whole = path.geometry.shape == self.shape
        self.fields.append(_parts(path) if is_whole else _unknown_parts(self.shape))

    def arrays(self) -> Truth:
        """One row for each frame."""
        pairs = {name: getattr(self, name) for name in ("drift_nm", "stage_nm", "stage_error_nm")}
        known: Truth = {name: np.array(rows, dtype=np.float64).reshape(-1, 2) for name, rows in pairs.items()}
        known["frame_rotation_rad"] = np.array(self.rotation_rad, dtype=np.float64)
        empty = _unknown_parts(self.shape)
        for name, part in empty.items():
            rows = np.array([fields[name] for fields in self.fields], dtype=np.float32)
            known[name] = rows.reshape(-1, *part.shape)
        return known


def _parts(path: BeamPath) -> dict[str, Float32]:
    """What makes up the displacement of a frame, small enough to be kept of each."""
    rows, cols = path.geometry.shape
    coil = np.zeros((2, COIL_NODES, COIL_NODES))
    if path.coil_px is not None:
        at_row, at_col = (np.linspace(0, edge - 1, COIL_NODES).round().astype(int) for edge in (rows, cols))
        coil = path.coil_px[:, at_row[:, None], at_col]
    parts = {
        "row_drift_nm": path.row_drift_nm,
        "row_offset_px": path.row_offset_px,
        "column_offset_px": path.column_offset_px,
        "coil_px": coil,
    }
    return {name: part.astype(np.float32) for name, part in parts.items()}


def _unknown_parts(shape: tuple[int, int]) -> dict[str, Float32]:
    rows, cols = shape
    shapes = {
        "row_drift_nm": (rows, 2),
        "row_offset_px": (2, rows),
        "column_offset_px": (2, cols),
        "coil_px": (2, COIL_NODES, COIL_NODES),
    }
    return {name: np.full(of, np.nan, dtype=np.float32) for name, of in shapes.items()}


# -- what cannot be done ---------------------------------------------------------------------------


def _undone(request: Request, status: OutcomeStatus, reason: str) -> Outcome:
    return Outcome(
        session=request.session, id=request.id, status=status, action=request.action, reason=reason
    )


def _why_not(request: Request, config: ScanningConfig) -> str | None:
    """Say why a request cannot be executed; None if it can."""
    reach_nm, table = config.stage_reach_nm, config.table
    if request.stage_nm is not None and not all(abs(place) <= reach_nm for place in request.stage_nm):
        if not reach_nm:
            return f"the stage of this instrument does not move; {table}.stage_reach_nm sets how far"
        return f"stage_nm takes -{reach_nm:g} to {reach_nm:g}; {table}.stage_reach_nm sets how far"
    if request.rotation_rad is not None and not math.isfinite(request.rotation_rad):
        return "rotation_rad is not finite"
    if request.action not in ("spectrum", "scan"):
        return "unknown action; this instrument takes spectrum and scan"
    if not all(math.isfinite(value) for value in request.scan_position_nm):
        return "scan_position_nm is not finite"
    if not all(abs(place) <= config.reach_nm for place in request.scan_position_nm):
        return f"scan_position_nm takes -{config.reach_nm:g} to {config.reach_nm:g}: the scanner ends there"
    if not MIN_DWELL_TIME_US <= request.dwell_time_us <= MAX_DWELL_TIME_US:
        return f"dwell_time_us takes {MIN_DWELL_TIME_US:g} to {MAX_DWELL_TIME_US:g}"
    if request.action == "spectrum":
        return None
    if request.field_of_view_nm is None or request.shape is None:
        return "a scan takes field_of_view_nm and shape"
    widest_nm = 2 * max(config.field_of_view_nm, 50.0)
    if not all(0 < edge <= widest_nm for edge in request.field_of_view_nm):
        return f"field_of_view_nm takes above 0 to {widest_nm:g}"
    half_nm = math.hypot(*request.field_of_view_nm) / 2
    if not all(abs(place) + half_nm <= config.reach_nm for place in request.scan_position_nm):
        return f"the scan leaves what the scanner reaches, -{config.reach_nm:g} to {config.reach_nm:g} nm"
    if min(request.shape) < 1 or math.prod(request.shape) > MAX_SCAN_PX:
        return f"shape takes 1 row and column to {MAX_SCAN_PX} pixels"
    return None
