"""A scanning transmission electron microscope that needs no column and knows its truth.

The image is incoherent: every atom adds a copy of the probe, a Gaussian as wide as the probe and its
source, with a height that goes with the atomic number to a power. Each pixel is computed where the beam
really was, so a distortion is not an interpolation. Shot noise is exact. Left out: the probe's tails and
aberrations, thickness, and what the beam does to the specimen.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import replace
from numba import njit
from numpy.typing import NDArray

from simulators.counting import poisson
from simulators.eels import EelsConfig, clean_spectra, spectrum
from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.specimen import CARBON, SITE_NAMES, Specimen, SpecimenConfig, grow
from streamer.messages import Frame, Outcome, OutcomeStatus, PairNm, Request, ScanGeometry

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Single atoms of Si and C at 60 kV, 30 mrad, by abTEM: a ratio of 5.03 on 80 to 200 mrad and of 3.44 on
# 45 to 80 mrad. The power depends on the detector: the usual 1.7 would be wrong by -16 % and +23 %.
Z_EXPONENT = {"HAADF": 1.91, "MAADF": 1.46}
ELEMENTARY_CHARGE_C = 1.602176634e-19
CUT_OFF_SD = 4.5  # beyond it a column is less than 4e-5 of its height
MAX_BOXES = 2048.0  # along an edge of the field: a coarse scan over a sharp probe would take too many
MAX_SCAN_PX = 4096 * 4096
MAX_DWELL_TIME_US = 60e6
TRUTH_DWELL_TIME_US = 100_000.0
COIL_NODES = 17  # of the truth's coil field along each axis


class FaultConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that goes wrong at a full frame.

    Attributes
    ----------
    frame
        Full frame before which it happens, counted from 0.
    kind
        ``blank``: the beam is blanked; ``amorphous``: no lattice is left in what is seen; ``jump``:
        the specimen slips; ``magnify``: the field of view changes, and the frames say so.
    frames
        How many full frames a ``blank`` or ``amorphous`` lasts.
    step_nm
        Where a ``jump`` goes, ``(x, y)``.
    factor
        By how much the field of view grows with ``magnify``.
    """

    frame: int
    kind: Literal["blank", "amorphous", "jump", "magnify"]
    frames: int = 1
    step_nm: PairNm = (0.0, 0.0)
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("blank", "amorphous", "jump", "magnify"):
            raise ValueError(f"fault.kind is {self.kind!r}; it takes blank, amorphous, jump or magnify")
        for name, least in (("frame", 0), ("frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"fault.{name} is {getattr(self, name)}; it takes {least} and above")
        if not all(abs(step) <= 20 for step in self.step_nm):
            raise ValueError(f"fault.step_nm is {self.step_nm}; it takes -20 to 20")
        if not 0.1 <= self.factor <= 10:
            raise ValueError(f"fault.factor is {self.factor}; it takes 0.1 to 10")


class StemConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The microscope; ``specimen``, ``distortion`` and ``eels`` are tables of their own.

    Attributes
    ----------
    rows, cols
        Size of a frame in pixels.
    field_of_view_nm
        Width of a frame; pixels are square.
    rotation_deg
        Scan rotation, from x to the fast axis; x right, y down.
    dwell_time_us
        Time the beam spends on one pixel.
    beam_current_pa
        For the dose, and for the counts of spectra.
    detector
        ``HAADF`` (80 to 200 mrad) or ``MAADF`` (45 to 80 mrad): how much brighter heavy atoms are.
    carbon_counts
        Expected counts at the peak of a single carbon, at ``dwell_time_us``.
    background_counts
        Expected counts where there is no atom, at ``dwell_time_us``; they have shot noise.
    detector_offset_counts
        What the detector adds to every pixel, without noise.
    probe_sigma_nm
        Sd of the probe's intensity, source included; 0.05 nm is 60 kV, 30 mrad, 0.03 nm of source.
    stage_reach_nm
        How far a request may move the stage along x and y, either way; the sheet is made so large
        that it still fills the field. 0 is a stage that does not move.
    stage_error_nm
        Sd of the error of such a move along each axis.
    seed
        Of specimen, distortion and noise: the same seed gives the same frames, byte for byte.
    faults
        What goes wrong, and when.
    """

    rows: int = 512
    cols: int = 512
    field_of_view_nm: float = 6.3
    rotation_deg: float = 0.0
    dwell_time_us: float = 1.0
    beam_current_pa: float = 60.0
    detector: Literal["HAADF", "MAADF"] = "HAADF"
    carbon_counts: float = 60.0
    background_counts: float = 3.0
    detector_offset_counts: float = 10.0
    probe_sigma_nm: float = 0.05
    stage_reach_nm: float = 0.0
    stage_error_nm: float = 0.02
    seed: int = 0
    faults: tuple[FaultConfig, ...] = ()
    specimen: SpecimenConfig = SpecimenConfig()
    distortion: ScanDistortionConfig = ScanDistortionConfig()
    eels: EelsConfig = EelsConfig()

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            if not 8 <= getattr(self, name) <= 4096:
                raise ValueError(f"stem.{name} is {getattr(self, name)}; it takes 8 to 4096")
        limits = {
            "field_of_view_nm": (1.0, 50.0),
            "rotation_deg": (-360.0, 360.0),
            "dwell_time_us": (0.01, 1e5),
            "beam_current_pa": (0.01, 1e5),
            "carbon_counts": (0.01, 1e5),
            "background_counts": (0.0, 1e5),
            "detector_offset_counts": (0.0, 1e6),
            "probe_sigma_nm": (0.01, 0.5),
            "stage_reach_nm": (0.0, 20.0),
            "stage_error_nm": (0.0, 5.0),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"stem.{name} is {getattr(self, name)}; it takes {least:g} to {most:g}")
        if self.seed < 0:
            raise ValueError(f"stem.seed is {self.seed}; it takes 0 and above")

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


# -- the image ---------------------------------------------------------------------------------


def add_columns(
    image: Float32, positions_nm: Float64, heights: Float64, probe_sigma_nm: float, path: BeamPath
) -> None:
    """Add to an image what the atoms scatter, with each pixel where the beam really was.

    Parameters
    ----------
    image
        Expected counts, shape ``(rows, cols)``, float32; changed in place.
    positions_nm
        Specimen position ``(x, y)`` of each atom, shape ``(n, 2)``.
    heights
        Expected counts at the middle of each atom, shape ``(n,)``.
    probe_sigma_nm
        Sd of the Gaussian that an atom is seen as; it is cut off at 4.5 of them.
    path
        Where the beam was.
    """
    pixel_nm = np.array(path.geometry.pixel_size_nm)
    displacement_px = path.displacement_px()
    _add_columns(image, displacement_px, path.places_px(positions_nm), heights, probe_sigma_nm / pixel_nm)


@njit(cache=True)
def _add_columns(
    image: Float32, displacement_px: Float64, atoms_px: Float64, heights: Float64, sigma_px: Float64
) -> None:
    """Gather at each pixel from the atoms around the place of its beam, all ``(row, col)`` in pixels.

    Atoms lie in boxes no smaller than half the reach of one: whatever the displacement does, all that
    count are within two boxes of the place.
    """
    rows, cols = image.shape
    lower, upper = np.empty(2), np.empty(2)
    for k in range(2):
        lower[k], upper[k] = np.inf, -np.inf
    for i in range(rows):
        for j in range(cols):
            for k in range(2):
                place = (i, j)[k] + displacement_px[k, i, j]
                lower[k], upper[k] = min(lower[k], place), max(upper[k], place)
    lower -= CUT_OFF_SD * sigma_px
    upper += CUT_OFF_SD * sigma_px
    edge = np.maximum(CUT_OFF_SD * sigma_px / 2, (upper - lower) / MAX_BOXES)
    down, across = int((upper[0] - lower[0]) / edge[0]) + 1, int((upper[1] - lower[1]) / edge[1]) + 1
    first, order = _boxed(atoms_px, lower, upper, edge, down, across)
    atom_row, atom_col = atoms_px[order, 0] / sigma_px[0], atoms_px[order, 1] / sigma_px[1]
    height = heights[order]
    for i in range(rows):
        for j in range(cols):
            row, col = i + displacement_px[0, i, j], j + displacement_px[1, i, j]
            box_row, box_col = int((row - lower[0]) / edge[0]), int((col - lower[1]) / edge[1])
            left, right = max(box_col - 2, 0), min(box_col + 2, across - 1)
            row, col = row / sigma_px[0], col / sigma_px[1]
            total = 0.0
            for box in range(max(box_row - 2, 0), min(box_row + 2, down - 1) + 1):
                for a in range(first[box * across + left], first[box * across + right + 1]):
                    square = (row - atom_row[a]) ** 2 + (col - atom_col[a]) ** 2
                    if square < CUT_OFF_SD * CUT_OFF_SD:
                        total += height[a] * np.exp(-0.5 * square)
            image[i, j] += total


@njit(cache=True)
def _boxed(
    atoms_px: Float64, lower: Float64, upper: Float64, edge: Float64, down: int, across: int
) -> tuple[Int64, Int64]:
    """Sort atoms into boxes, row by row: ``order[first[b]:first[b + 1]]`` are those of box ``b``."""
    box = np.full(len(atoms_px), -1, dtype=np.int64)
    first = np.zeros(down * across + 1, dtype=np.int64)
    for a in range(len(atoms_px)):
        row, col = atoms_px[a, 0], atoms_px[a, 1]
        if lower[0] <= row <= upper[0] and lower[1] <= col <= upper[1]:
            box[a] = int((row - lower[0]) / edge[0]) * across + int((col - lower[1]) / edge[1])
            first[box[a] + 1] += 1
    for b in range(down * across):
        first[b + 1] += first[b]
    order = np.empty(first[-1], dtype=np.int64)
    free = first.copy()
    for a in range(len(atoms_px)):
        if box[a] >= 0:
            order[free[box[a]]] = a
            free[box[a]] += 1
    return first, order


def column_heights(config: StemConfig, numbers: NDArray[np.int64]) -> Float64:
    """Expected counts at the middle of single atoms, at the configured dwell time, shape ``(n,)``."""
    heights: Float64 = config.carbon_counts * (numbers / CARBON) ** Z_EXPONENT[config.detector]
    return heights


# -- the instrument ----------------------------------------------------------------------------


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

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """One row for each frame."""
        pairs = {name: getattr(self, name) for name in ("drift_nm", "stage_nm", "stage_error_nm")}
        known: dict[str, NDArray[np.generic]] = {
            name: np.array(rows, dtype=np.float64).reshape(-1, 2) for name, rows in pairs.items()
        }
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


class StemInstrument:
    """A simulated STEM over a sheet of graphene; speaks the Instrument protocol.

    Time is simulated: it passes by the dwell times of frames, sub-scans and spectra, and the drift
    goes on in all of them.

    A beam that is sent to a place and stays there (a spectrum) suffers the drift and the coils'
    non-linearity: sent to ``p`` it is at ``p + coil(p)``. Fly-back, settling, jitter and hum are of a
    moving beam and of short times, and not in it.

    Parameters
    ----------
    config
        Microscope, specimen, distortion and spectrometer.
    started_at_s
        Instrument clock at the start, seconds since the epoch; None takes the clock of this machine.

    Attributes
    ----------
    config, specimen
        What is simulated.
    last_path
        Where the beam really was in the last frame or sub-scan, pixel by pixel; None before the first.
    """

    name = "simulated STEM"

    def __init__(self, config: StemConfig | None = None, *, started_at_s: float | None = None) -> None:
        self.config = StemConfig() if config is None else config
        self._started_at_s = time.time() if started_at_s is None else started_at_s
        seeds = np.random.SeedSequence(self.config.seed).spawn(5)
        specimen_rng, distortion_rng, self._noise_rng, self._stage_rng, fault_rng = (
            np.random.default_rng(seed) for seed in seeds
        )
        self.specimen: Specimen = grow(self.config.specimen, *_sheet(self.config), specimen_rng)
        self._distortion = ScanDistortion(self.config.distortion, distortion_rng, self.config.geometry)
        self._heights = column_heights(self.config, self.specimen.numbers)
        self._diary = _Diary((self.config.rows, self.config.cols))
        self._is_parked = False
        self._full_frames = 0
        self._stage_nm: PairNm = (0.0, 0.0)
        self._stage_error_nm: PairNm = (0.0, 0.0)
        self.last_path: BeamPath | None = None
        # As many atoms as before, anywhere: what is left under a beam that destroyed the lattice.
        lower, upper = self.specimen.positions_nm.min(axis=0), self.specimen.positions_nm.max(axis=0)
        self._amorphous_nm: Float64 = fault_rng.uniform(lower, upper, self.specimen.positions_nm.shape)

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
        if self._is_parked:
            raise RuntimeError("the beam is parked; let it go first")
        factor = 1.0
        for fault in self.config.faults:
            if fault.kind == "jump" and fault.frame == self._full_frames:
                self._distortion.jump(fault.step_nm)
            if fault.kind == "magnify" and fault.frame <= self._full_frames:
                factor *= fault.factor
        width_nm, height_nm = self.config.geometry.field_of_view_nm
        geometry = replace(self.config.geometry, field_of_view_nm=(width_nm * factor, height_nm * factor))
        frame = self._scan(geometry, self.config.dwell_time_us, None)
        self._full_frames += 1
        return frame

    def execute(self, request: Request) -> tuple[Outcome, Frame | None]:
        """Take a spectrum or a sub-scan; what cannot be done is answered by ``failed`` and a reason."""
        if self._is_parked:
            return _undone(request, "aborted", "the beam is parked"), None
        reason = _why_not(request, self.config)
        if reason is not None:
            return _undone(request, "failed", reason), None
        if request.stage_nm is not None:
            self._move_stage(request.stage_nm)
        started_at_s = self.clock_s
        counts: Float32 | None = None
        frame: Frame | None = None
        exposure_us = request.dwell_time_us
        if request.field_of_view_nm is not None and request.shape is not None:
            geometry = ScanGeometry(
                shape=request.shape,
                field_of_view_nm=request.field_of_view_nm,
                center_nm=request.scan_position_nm,
                rotation_rad=(
                    self.config.geometry.rotation_rad
                    if request.rotation_rad is None
                    else request.rotation_rad
                ),
            )
            frame = self._scan(geometry, request.dwell_time_us, request.id)
            exposure_us *= math.prod(request.shape)
        else:
            counts = self._spectrum(request.scan_position_nm, request.dwell_time_us)
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
            spectrum=counts,
            energy_offset_ev=self.config.eels.energy_offset_ev,
            energy_step_ev=self.config.eels.energy_step_ev,
        )
        return outcome, frame

    def park(self) -> None:
        """Park the beam: no dose, no frames and no spectra until ``go``."""
        self._is_parked = True

    def go(self, parked_s: float) -> None:
        """Take the beam back to work; the specimen has drifted for ``parked_s``."""
        self._is_parked = False
        if parked_s > 0:
            self._distortion.wait(parked_s)

    def truth(self) -> dict[str, NDArray[np.generic]]:
        """Everything that an analysis can be judged by.

        Returns
        -------
        arrays
            ``positions_nm`` ``(n, 2)`` as ``(x, y)``, ``numbers``, ``site_class`` ``(n,)`` and
            ``site_names``; ``strain_nm`` ``(n, 2)``, how far the strain moved each atom; for each
            frame, sub-scans too, in the order of their numbers: ``drift_nm`` ``(frames, 2)``, mean over
            the rows, ``stage_nm`` and ``stage_error_nm`` ``(frames, 2)``, commanded and beyond it,
            ``frame_rotation_rad`` and ``frame_acquired_at_s`` ``(frames,)``; and where the beam was
            minus where the raster has it, ``(row, col)`` in pixels, in parts that add up:
            ``row_offset_px`` ``(frames, 2, rows)``, ``column_offset_px`` ``(frames, 2, cols)`` and
            ``coil_px`` ``(frames, 2, 17, 17)`` on nodes from the first to the last pixel, with
            ``row_drift_nm`` ``(frames, rows, 2)``; NaN for scans of another shape than the frames.
            ``spectra`` ``(n, channels)``, float32,
            expected counts with the beam on each atom for ``spectra_dwell_time_us``, with
            ``energy_offset_ev`` and ``energy_step_ev``; ``pixel_size_nm``, ``field_of_view_nm``
            ``(width, height)``, ``rotation_rad``, ``scan_path`` and ``seed``.
        """
        config, diary = self.config, self._diary
        electrons = config.electrons(TRUTH_DWELL_TIME_US)
        sites_nm = self.specimen.positions_nm
        return {
            **diary.arrays(),
            "positions_nm": sites_nm,
            "strain_nm": self.specimen.strain_nm,
            "numbers": self.specimen.numbers,
            "site_class": self.specimen.site_class,
            "site_names": np.array(SITE_NAMES),
            "frame_acquired_at_s": self._started_at_s + np.array(diary.ended_s, dtype=np.float64),
            "spectra": clean_spectra(self.specimen, sites_nm, electrons, config.eels).astype(np.float32),
            "spectra_dwell_time_us": np.array(TRUTH_DWELL_TIME_US),
            "energy_offset_ev": np.array(config.eels.energy_offset_ev),
            "energy_step_ev": np.array(config.eels.energy_step_ev),
            "pixel_size_nm": np.array(config.geometry.pixel_size_nm[0]),
            "field_of_view_nm": np.array(config.geometry.field_of_view_nm),
            "rotation_rad": np.array(config.geometry.rotation_rad),
            "scan_path": np.array(config.distortion.scan_path),
            "seed": np.array(config.seed),
        }

    def _scan(self, geometry: ScanGeometry, dwell_time_us: float, request_id: str | None) -> Frame:
        config = self.config
        path = self._distortion.scan(geometry, dwell_time_us, self._stage_nm, self._stage_error_nm)
        self._diary.note(path)
        self.last_path = path
        longer = dwell_time_us / config.dwell_time_us
        expected = np.full(geometry.shape, config.background_counts * longer, dtype=np.float32)
        is_amorphous = self._suffers("amorphous")
        atoms_nm = self._amorphous_nm if is_amorphous else self.specimen.positions_nm
        add_columns(expected, atoms_nm, self._heights * longer, config.probe_sigma_nm, path)
        if self._suffers("blank"):
            expected[:] = 0
        image = poisson(expected, self._noise_rng) + np.float32(config.detector_offset_counts)
        electrons = config.electrons(dwell_time_us * math.prod(geometry.shape))
        return Frame(
            session="",
            number=0,
            acquired_at_s=self._started_at_s + path.ended_s,
            image=image[None],
            channels=(config.detector,),
            geometry=geometry,
            dwell_time_us=dwell_time_us,
            dose_e_per_nm2=electrons / math.prod(geometry.field_of_view_nm),
            scan_path=path.scan_path,
            request_id=request_id,
            stage_nm=path.stage_nm,
        )

    def _suffers(self, kind: str) -> bool:
        """Whether a lasting fault is under way: sub-scans before its first frame suffer it already."""
        return any(
            fault.kind == kind and 0 <= self._full_frames - fault.frame < fault.frames
            for fault in self.config.faults
        )

    def _move_stage(self, stage_nm: PairNm) -> None:
        """Go there as well as the stage can; where it already stands it does not stir."""
        if stage_nm != self._stage_nm:
            x, y = self.config.stage_error_nm * self._stage_rng.standard_normal(2)
            self._stage_nm, self._stage_error_nm = stage_nm, (float(x), float(y))

    def _spectrum(self, scan_position_nm: PairNm, dwell_time_us: float) -> Float32:
        """Expose where the beam is sent; the position is that of the middle of the exposure."""
        half_s = dwell_time_us * 1e-6 / 2
        self._distortion.wait(half_s)
        drift_nm = self._distortion.drift_nm
        self._distortion.wait(half_s)
        off_nm = self._distortion.parked_offset_nm(scan_position_nm)
        moved_nm = np.array(drift_nm) + self._stage_nm + self._stage_error_nm
        x, y = np.array(scan_position_nm) + off_nm - moved_nm
        electrons = self.config.electrons(dwell_time_us)
        return spectrum(self.specimen, (float(x), float(y)), electrons, self.config.eels, self._noise_rng)


def _sheet(config: StemConfig) -> tuple[PairNm, PairNm]:
    """Corners of a sheet that fills the field wherever drift, stage and faults will take it."""
    geometry, distortion = config.geometry, config.distortion
    edges = np.array([[r, c] for r in (0, config.rows) for c in (0, config.cols)])
    corners = geometry.to_nm(edges)
    if config.stage_reach_nm:  # scans that tell strain from distortion are turned by 90 degrees
        turned = replace(geometry, rotation_rad=geometry.rotation_rad + math.pi / 2)
        corners = np.concatenate([corners, turned.to_nm(edges)])
    faults = sorted(config.faults, key=lambda fault: fault.frame)
    corners *= max(1.0, *np.cumprod([1.0, *(f.factor for f in faults if f.kind == "magnify")]))
    # A point s is seen at s + drift: the field looks at where it was less the drift.
    slips = np.cumsum([(0.0, 0.0), *(f.step_nm for f in faults if f.kind == "jump")], axis=0)
    moves = np.concatenate([slips, slips + np.array(distortion.drift_travel_nm)])
    looks_at = (corners[:, None] - moves).reshape(-1, 2)
    pixel_nm = max(geometry.pixel_size_nm)
    rim_nm = 0.6 + 30 * distortion.drift_wander_nm_per_sqrt_s + 4 * distortion.drift_swing_nm
    if config.stage_reach_nm:
        rim_nm += config.stage_reach_nm + 4 * config.stage_error_nm
    # The rim has room for a few pixels anyway; only strong distortions need more.
    strong_px = 3 * distortion.coil_px + distortion.settle_px + max(0.0, distortion.flyback_px - 5.0)
    rim_nm += strong_px * pixel_nm + abs(config.specimen.strain_nm)
    lower, upper = looks_at.min(axis=0) - rim_nm, looks_at.max(axis=0) + rim_nm
    return (float(lower[0]), float(lower[1])), (float(upper[0]), float(upper[1]))


def _undone(request: Request, status: OutcomeStatus, reason: str) -> Outcome:
    return Outcome(
        session=request.session, id=request.id, status=status, action=request.action, reason=reason
    )


def _why_not(request: Request, config: StemConfig) -> str | None:
    """Say why a request cannot be executed; None if it can."""
    reach_nm = config.stage_reach_nm
    if request.stage_nm is not None and not all(abs(place) <= reach_nm for place in request.stage_nm):
        if not reach_nm:
            return "the stage of this instrument does not move; stem.stage_reach_nm sets how far"
        return f"stage_nm takes -{reach_nm:g} to {reach_nm:g}; stem.stage_reach_nm sets how far"
    if request.rotation_rad is not None and not math.isfinite(request.rotation_rad):
        return "rotation_rad is not finite"
    if request.action not in ("spectrum", "scan"):
        return "unknown action; this instrument takes spectrum and scan"
    if not all(math.isfinite(value) for value in request.scan_position_nm):
        return "scan_position_nm is not finite"
    if not 0 < request.dwell_time_us <= MAX_DWELL_TIME_US:
        return f"dwell_time_us takes above 0 to {MAX_DWELL_TIME_US:g}"
    if request.action == "spectrum":
        return None
    if request.field_of_view_nm is None or request.shape is None:
        return "a scan takes field_of_view_nm and shape"
    if not all(0 < edge <= 100 for edge in request.field_of_view_nm):
        return "field_of_view_nm takes above 0 to 100"
    if min(request.shape) < 1 or math.prod(request.shape) > MAX_SCAN_PX:
        return f"shape takes 1 row and column to {MAX_SCAN_PX} pixels"
    return None
