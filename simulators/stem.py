"""A scanning transmission electron microscope that needs no column and knows its truth.

The image is incoherent: every atom adds a copy of the probe, a Gaussian as wide as the probe and its
source, with a height that goes with the atomic number to a power. Each pixel is computed where the beam
really was, so a distortion is not an interpolation. Shot noise is exact. Left out: the probe's tails and
aberrations, thickness, and what the beam does to the specimen.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from msgspec.structs import replace
from numba import njit
from numpy.typing import NDArray

from simulators.counting import poisson
from simulators.faults import reach
from simulators.scan_distortion import BeamPath
from simulators.scanning import ScanningConfig, ScanningInstrument
from simulators.sheet_spectra import SheetSpectraConfig, clean_spectra, spectrum
from simulators.simulator import Curve, Exposure, Image, Scan, Truth
from simulators.specimen import CARBON, SITE_NAMES, Specimen, SpecimenConfig, grow
from streamer.messages import PairNm

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Single atoms of Si and C at 60 kV, 30 mrad, by abTEM: a ratio of 5.03 on 80 to 200 mrad and of 3.44 on
# 45 to 80 mrad. The power depends on the detector: the usual 1.7 would be wrong by -16 % and +23 %.
Z_EXPONENT = {"HAADF": 1.91, "MAADF": 1.46}
CUT_OFF_SD = 4.5  # beyond it a column is less than 4e-5 of its height
MAX_BOXES = 2048.0  # along an edge of the field: a coarse scan over a sharp probe would take too many
MAX_SLIP_NM = 20.0
TRUTH_DWELL_TIME_US = 100_000.0


class StemConfig(ScanningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The microscope; ``specimen``, ``distortion`` and ``eels`` are tables of their own.

    What is not listed here is in ``simulators.scanning.ScanningConfig``.

    Attributes
    ----------
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
    """

    table: ClassVar[str] = "stem"
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "beam_current_pa": (0.01, 1e5),
        "carbon_counts": (0.01, 1e5),
        "background_counts": (0.0, 1e5),
        "detector_offset_counts": (0.0, 1e6),
        "probe_sigma_nm": (0.01, 0.5),
    }

    detector: Literal["HAADF", "MAADF"] = "HAADF"
    carbon_counts: float = 60.0
    background_counts: float = 3.0
    detector_offset_counts: float = 10.0
    probe_sigma_nm: float = 0.05
    specimen: SpecimenConfig = SpecimenConfig()
    eels: SheetSpectraConfig = SheetSpectraConfig()

    def __post_init__(self) -> None:
        ScanningConfig.__post_init__(self)
        for fault in self.faults:
            if not all(abs(step) <= MAX_SLIP_NM for step in fault.step_nm):
                raise ValueError(
                    f"stem.faults: step_nm is {fault.step_nm}; it takes -{MAX_SLIP_NM:g} to {MAX_SLIP_NM:g}"
                )


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


# -- the specimen under the beam ---------------------------------------------------------------


class StemSimulator:
    """A sheet of graphene under the beam; see ``simulators.simulator.Simulator``.

    Parameters
    ----------
    config
        Microscope, specimen and spectrometer.

    Attributes
    ----------
    specimen
        What is there.
    """

    name = "simulated STEM"

    def __init__(self, config: StemConfig) -> None:
        self._config = config
        specimen_rng, _, self._noise_rng, _, fault_rng = (
            np.random.default_rng(seed) for seed in config.seeds()
        )
        self.specimen: Specimen = grow(config.specimen, *_sheet(config), specimen_rng)
        self._heights = column_heights(config, self.specimen.numbers)
        # As many atoms as before, anywhere: what is left under a beam that destroyed the lattice.
        lower, upper = self.specimen.positions_nm.min(axis=0), self.specimen.positions_nm.max(axis=0)
        self._amorphous_nm: Float64 = fault_rng.uniform(lower, upper, self.specimen.positions_nm.shape)

    def step(self, seconds: float) -> None:
        """Nothing happens to this sheet."""

    def acquire_image(self, scan: Scan) -> Image:
        """Count what the detector gets at each pixel."""
        config = self._config
        longer = scan.dwell_time_us / config.dwell_time_us
        expected = np.full(scan.path.geometry.shape, config.background_counts * longer, dtype=np.float32)
        atoms_nm = self._amorphous_nm if "amorphous" in scan.faults else self.specimen.positions_nm
        add_columns(expected, atoms_nm, self._heights * longer, config.probe_sigma_nm, scan.path)
        if "blank" in scan.faults:
            expected[:] = 0
        counts = poisson(expected, self._noise_rng) + np.float32(config.detector_offset_counts)
        return Image(values=counts[None], channels=(config.detector,))

    def acquire_curve(self, exposure: Exposure) -> Curve:
        """Count a spectrum of energy losses."""
        eels = self._config.eels
        electrons = self._config.electrons(exposure.dwell_time_us)
        counts = spectrum(self.specimen, exposure.position_nm, electrons, eels, self._noise_rng)
        return Curve(
            values=counts,
            energy_offset_ev=eels.energy_offset_ev,
            energy_step_ev=eels.energy_step_ev,
        )

    def truth(self) -> Truth:
        """Give the atoms.

        Returns
        -------
        arrays
            ``positions_nm`` ``(n, 2)`` as ``(x, y)``, ``numbers``, ``site_class`` ``(n,)`` and
            ``site_names``; ``strain_nm`` ``(n, 2)``, how far the strain moved each atom; ``spectra``
            ``(n, channels)``, float32, expected counts with the beam on each atom for
            ``spectra_dwell_time_us``, with ``energy_offset_ev`` and ``energy_step_ev``.
        """
        config, specimen = self._config, self.specimen
        electrons = config.electrons(TRUTH_DWELL_TIME_US)
        spectra = clean_spectra(specimen, specimen.positions_nm, electrons, config.eels)
        return {
            "positions_nm": specimen.positions_nm,
            "strain_nm": specimen.strain_nm,
            "numbers": specimen.numbers,
            "site_class": specimen.site_class,
            "site_names": np.array(SITE_NAMES),
            "spectra": spectra.astype(np.float32),
            "spectra_dwell_time_us": np.array(TRUTH_DWELL_TIME_US),
            "energy_offset_ev": np.array(config.eels.energy_offset_ev),
            "energy_step_ev": np.array(config.eels.energy_step_ev),
        }


class StemInstrument(ScanningInstrument[StemSimulator]):
    """A simulated STEM over a sheet of graphene.

    Parameters
    ----------
    config
        Microscope, specimen, distortion and spectrometer.
    started_at_s
        As of a ``ScanningInstrument``.
    """

    config: StemConfig

    def __init__(self, config: StemConfig | None = None, *, started_at_s: float | None = None) -> None:
        config = StemConfig() if config is None else config
        super().__init__(StemSimulator(config), config, started_at_s=started_at_s)

    @property
    def specimen(self) -> Specimen:
        """What is there."""
        return self.simulator.specimen


def _sheet(config: StemConfig) -> tuple[PairNm, PairNm]:
    """Corners of a sheet that fills the field wherever drift, stage and faults will take it."""
    geometry, distortion = config.geometry, config.distortion
    edges = np.array([[r, c] for r in (0, config.rows) for c in (0, config.cols)])
    corners = geometry.to_nm(edges)
    if config.stage_reach_nm:  # scans that tell strain from distortion are turned by 90 degrees
        turned = replace(geometry, rotation_rad=geometry.rotation_rad + math.pi / 2)
        corners = np.concatenate([corners, turned.to_nm(edges)])
    wider, slips = reach(config.faults)
    corners *= wider
    # A point s is seen at s + drift: the field looks at where it was less the drift.
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
