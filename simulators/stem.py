"""A scanning transmission electron microscope that needs no column and knows its truth.

The image is incoherent: every atom adds what it scatters to the detector. With ``probe = "gaussian"`` that
is a Gaussian as wide as the probe and its source, with a height that goes with the atomic number to a
power; with ``probe = "physical"`` it is the kernel of ``simulators.stem_kernels``, with the probe's tails
and aberrations. Each pixel is computed where the beam really was, so a distortion is not an interpolation
of an image. Shot noise is exact. Left out: thickness, and what neighbours do to each other's scattering.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from msgspec.structs import replace
from numba import njit
from numpy.typing import NDArray

from simulators.counting import poisson
from simulators.faults import reach
from simulators.kinetics import Kinetics, KineticsConfig, changed_atoms
from simulators.scan_distortion import BeamPath
from simulators.scanning import ScanningConfig, ScanningInstrument
from simulators.scattering_factors import SCATTERING
from simulators.sheet_spectra import SheetSpectraConfig, clean_spectra, spectrum
from simulators.simulator import Curve, Exposure, Image, Refused, Scan, Truth
from simulators.specimen import CARBON, Specimen, SpecimenConfig, grow
from simulators.stem_kernels import DETECTORS_MRAD, Kernel, OpticsConfig, add_atoms, kernel
from streamer.messages import PairNm

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Single atoms of Si and C at 60 kV, 30 mrad, by abTEM: a ratio of 5.03 on 80 to 200 mrad and of 3.44 on
# 45 to 80 mrad. The power depends on the detector: the usual 1.7 would be wrong by -16 % and +23 %.
Z_EXPONENT = {"HAADF": 1.91, "MAADF": 1.46}
CUT_OFF_SD = 4.5  # beyond it a column is less than 4e-5 of its height
STRETCH_PX = 128  # of a row is done at once
MAX_SLIP_NM = 20.0
TRUTH_DWELL_TIME_US = 100_000.0


class StemConfig(ScanningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The microscope; ``optics``, ``specimen``, ``distortion`` and ``eels`` are tables of their own.

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
    probe
        ``gaussian``: what the encoder that comes with this service was trained on. ``physical``: from
        voltage, aperture, aberrations and source, and for each element what a single atom scatters.
    probe_sigma_nm
        Of the Gaussian, the sd of its intensity, source included; 0.05 nm is 60 kV, 30 mrad, 0.03 nm of
        source.
    optics
        Of the physical probe.
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
    probe: Literal["gaussian", "physical"] = "gaussian"
    carbon_counts: float = 60.0
    background_counts: float = 3.0
    detector_offset_counts: float = 10.0
    probe_sigma_nm: float = 0.05
    optics: OpticsConfig = OpticsConfig()
    specimen: SpecimenConfig = SpecimenConfig()
    eels: SheetSpectraConfig = SheetSpectraConfig()
    kinetics: KineticsConfig = KineticsConfig()

    def __post_init__(self) -> None:
        ScanningConfig.__post_init__(self)
        if self.probe not in ("gaussian", "physical"):
            raise ValueError(f"stem.probe is {self.probe!r}; it takes gaussian or physical")
        if self.probe == "physical" and not self.optics.semi_angle_mrad < DETECTORS_MRAD[self.detector][0]:
            raise ValueError(
                f"stem.optics.semi_angle_mrad is {self.optics.semi_angle_mrad}; with {self.detector} it "
                f"takes less than {DETECTORS_MRAD[self.detector][0]:g}, where the detector begins"
            )
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
    """Gather at each pixel from the atoms around the place of its beam, all ``(row, col)`` in pixels."""
    rows, cols = image.shape
    order = np.argsort(atoms_px[:, 0])
    atom_row, atom_col = atoms_px[order, 0] / sigma_px[0], atoms_px[order, 1] / sigma_px[1]
    height = heights[order].astype(np.float32)
    place = np.empty((2, STRETCH_PX), dtype=np.float32)
    for i in range(rows):
        for start in range(0, cols, STRETCH_PX):
            end = min(cols, start + STRETCH_PX)
            moved = displacement_px[:, i, start:end]
            values = image[i, start:end]
            _add_to_stretch(values, moved, i, start, atom_row, atom_col, height, sigma_px, place)


@njit(cache=True)
def _add_to_stretch(
    values: Float32,
    displacement_px: Float64,
    i: int,
    start: int,
    atom_row: Float64,
    atom_col: Float64,
    height: Float32,
    sigma_px: Float64,
    place: Float32,
) -> None:
    """Do it for a stretch of row ``i``; atoms are sorted by row, their places are in sd of the probe.

    Lengths count from the stretch's first pixel, so that seven digits are enough.
    """
    from_row, from_col = i + displacement_px[0, 0], start + displacement_px[1, 0]
    low_row, high_row, low_slip, high_slip = 0.0, 0.0, 0.0, 0.0
    for j in range(len(values)):
        row = (i + displacement_px[0, j] - from_row) / sigma_px[0]
        slip = (displacement_px[1, j] - displacement_px[1, 0]) / sigma_px[1]
        place[0, j], place[1, j] = row, j / sigma_px[1] + slip
        low_row, high_row = min(low_row, row), max(high_row, row)
        low_slip, high_slip = min(low_slip, slip), max(high_slip, slip)
    from_row, from_col = from_row / sigma_px[0], from_col / sigma_px[1]
    first = np.searchsorted(atom_row, from_row + low_row - CUT_OFF_SD)
    last = np.searchsorted(atom_row, from_row + high_row + CUT_OFF_SD)
    for a in range(first, last):
        row, col = atom_row[a] - from_row, atom_col[a] - from_col
        left = max(0, math.ceil((col - CUT_OFF_SD - high_slip) * sigma_px[1]))
        right = min(len(values), math.floor((col + CUT_OFF_SD - low_slip) * sigma_px[1]) + 1)
        if left < right:
            rows, cols = place[0, left:right], place[1, left:right]
            _add_gaussian(values[left:right], rows, cols, (np.float32(row), np.float32(col)), height[a])


@njit(cache=True)
def _add_gaussian(
    values: Float32, rows: Float32, cols: Float32, atom: tuple[np.float32, np.float32], height: np.float32
) -> None:
    """Add ``height exp(-r² / 2)``; without a call and a branch, so that eight pixels are done at once.

    The exponential is the sixteenth power of a series that is short there: right to 2e-6.
    """
    row, col = atom
    one, half = np.float32(1), np.float32(1 / 2)
    third, fourth = np.float32(1 / 6), np.float32(1 / 24)
    fifth, sixth = np.float32(1 / 120), np.float32(1 / 720)
    for j in range(len(values)):
        down, across = rows[j] - row, cols[j] - col
        square = down * down + across * across
        x = square * np.float32(1 / 32)
        power = one - x * (one - x * (half - x * (third - x * (fourth - x * (fifth - x * sixth)))))
        for _ in range(4):
            power = power * power
        near = square < np.float32(CUT_OFF_SD * CUT_OFF_SD)
        values[j] += height * power if near else np.float32(0)


def column_heights(config: StemConfig, numbers: NDArray[np.int64]) -> Float64:
    """Expected counts at the middle of single atoms, at the configured dwell time, shape ``(n,)``."""
    heights: Float64 = config.carbon_counts * (numbers / CARBON) ** Z_EXPONENT[config.detector]
    return heights


def element_kernels(config: StemConfig, numbers: Int64, rotation_rad: float = 0.0) -> dict[int, Kernel]:
    """Make the kernels of the elements that are there, by atomic number; known ones cost nothing.

    Parameters
    ----------
    config
        Detector and optics.
    numbers
        Atomic numbers, any shape.
    rotation_rad
        Of the raster.
    """
    angles = DETECTORS_MRAD[config.detector]
    return {
        z: kernel(z, config.optics, angles, rotation_rad=rotation_rad) for z in np.unique(numbers).tolist()
    }


def add_specimen(
    image: Float32,
    positions_nm: Float64,
    numbers: Int64,
    config: StemConfig,
    path: BeamPath,
    longer: float = 1.0,
) -> None:
    """Add to an image what atoms scatter to the detector, with the configured probe.

    Parameters
    ----------
    image
        Expected counts, shape ``(rows, cols)``, float32; changed in place.
    positions_nm, numbers
        The atoms: ``(x, y)``, shape ``(n, 2)``, and atomic numbers.
    config
        Probe and detector.
    path
        Where the beam was.
    longer
        How much longer than ``dwell_time_us`` it was there.
    """
    if config.probe == "gaussian":
        heights = column_heights(config, numbers) * longer
        add_columns(image, positions_nm, heights, config.probe_sigma_nm, path)
        return
    kernels = element_kernels(config, numbers, path.geometry.rotation_rad)
    (carbon,) = element_kernels(config, np.array([CARBON])).values()
    counts = longer * config.carbon_counts / float(carbon.share.max())
    add_atoms(image, positions_nm, numbers, kernels, path, counts)


# -- the specimen under the beam ---------------------------------------------------------------


class StemSimulator:
    """A sheet of graphene, or a structure, under the beam; see ``simulators.simulator.Simulator``.

    Parameters
    ----------
    config
        Microscope, specimen and spectrometer.

    Attributes
    ----------
    specimen
        What is there, as the beam has left it.
    name
        ``simulated STEM``, and of what structure, if of one: whoever is told the name knows.

    Raises
    ------
    ValueError
        If the structure cannot be had, or is none that the probe or the kinetics know.
    """

    def __init__(self, config: StemConfig) -> None:
        self._config = config
        specimen_rng, _, self._noise_rng, _, fault_rng = (
            np.random.default_rng(seed) for seed in config.seeds()
        )
        self.specimen: Specimen = grow(config.specimen, *_sheet(config), specimen_rng)
        _require_known(self.specimen, config)
        self._facts = self.specimen.facts
        self.name = "simulated STEM" + _called(self._facts)
        # As many atoms as before, anywhere: what is left under a beam that destroyed the lattice.
        lower, upper = self.specimen.positions_nm.min(axis=0), self.specimen.positions_nm.max(axis=0)
        self._amorphous_nm: Float64 = fault_rng.uniform(lower, upper, self.specimen.positions_nm.shape)
        self._amorphous_numbers = self.specimen.numbers
        self._kinetics: Kinetics | None = None
        if config.kinetics.is_on:
            (beam_seed,) = config.seeds()[0].spawn(1)  # of its own: the other draws stay as they are
            self._kinetics = Kinetics(self.specimen, config.kinetics, np.random.default_rng(beam_seed))
        self._scans = 0

    def step(self, seconds: float) -> None:
        """Nothing happens to this sheet without the beam."""

    def acquire_image(self, scan: Scan) -> Image:
        """Count what the detector gets at each pixel, of the sheet as it is when the beam gets there."""
        config = self._config
        longer = scan.dwell_time_us / config.dwell_time_us
        expected = np.full(scan.path.geometry.shape, config.background_counts * longer, dtype=np.float32)
        is_amorphous = "amorphous" in scan.faults
        atoms_nm = self._amorphous_nm if is_amorphous else self.specimen.positions_nm
        numbers = self._amorphous_numbers if is_amorphous else self.specimen.numbers
        add_specimen(expected, atoms_nm, numbers, config, scan.path, longer)
        if "blank" in scan.faults:
            expected[:] = 0
        elif self._kinetics is not None:
            self._expose(scan, self._kinetics, None if is_amorphous else expected)
        self._scans += 1
        counts = poisson(expected, self._noise_rng) + np.float32(config.detector_offset_counts)
        return Image(values=counts[None], channels=(config.detector,))

    def acquire_curve(self, exposure: Exposure) -> Curve:
        """Count a spectrum of energy losses, of a sheet of carbon and silicon.

        Raises
        ------
        Refused
            Of any other structure: its spectra are not simulated.
        """
        if not self.specimen.is_sheet:
            raise Refused("spectra are simulated of sheets of carbon and silicon only; ask for a scan")
        eels = self._config.eels
        electrons = self._config.electrons(exposure.dwell_time_us) * ("blank" not in exposure.faults)
        counts = spectrum(self.specimen, exposure.position_nm, electrons, eels, self._noise_rng)
        if self._kinetics is not None and electrons:
            place, frame = [exposure.position_nm], self._scans - 1
            self._kinetics.expose(place, electrons, self._config.probe_sigma_nm, frame=frame)
            self.specimen = self._kinetics.specimen()
        return Curve(
            values=counts,
            energy_offset_ev=eels.energy_offset_ev,
            energy_step_ev=eels.energy_step_ev,
        )

    def _expose(self, scan: Scan, kinetics: Kinetics, expected: Float32 | None) -> None:
        """Let the beam act; pixels that it comes to after an event show the sheet after it."""
        config, path = self._config, scan.path
        longer = scan.dwell_time_us / config.dwell_time_us
        places_nm = path.in_time(path.specimen_positions_nm())
        electrons, ids = config.electrons(scan.dwell_time_us), kinetics.atom_ids()
        for event in kinetics.exposing(places_nm, electrons, config.probe_sigma_nm, frame=self._scans):
            before, after, new_ids = self.specimen, kinetics.specimen(), kinetics.atom_ids()
            if expected is not None:
                was, is_now = changed_atoms(before, ids, after, new_ids)
                old = (before.positions_nm[was], before.numbers[was])
                new = (after.positions_nm[is_now], after.numbers[is_now])
                _redraw(expected, event.place, old, new, config, path, longer)
            self.specimen, ids = after, new_ids

    def truth(self) -> Truth:
        """Give the atoms.

        Returns
        -------
        arrays
            ``positions_nm`` ``(n, 2)`` as ``(x, y)``, ``numbers``, ``site_class`` ``(n,)`` and
            ``site_names``; ``strain_nm`` ``(n, 2)``, how far the strain moved each atom; ``spectra``
            ``(n, channels)``, float32, expected counts with the beam on each atom for
            ``spectra_dwell_time_us``, with ``energy_offset_ev`` and ``energy_step_ev``. All as it is now;
            with kinetics also what ``Kinetics.truth`` gives: what happened, in which scan (counted as
            frames and sub-scans are; to a parked beam, the scan before) and at which of its pixels in time.
            Of a structure also what is known of it, a line of text each: ``structure_formula``,
            ``structure_space_group``, ``structure_name``, ``structure_source``, ``structure_history``,
            ``structure_composition`` and, as JSON, ``structure_properties``; there are ``spectra`` of sheets
            of carbon and silicon only.
        """
        specimen = self.specimen
        happened = {} if self._kinetics is None else self._kinetics.truth()
        return {
            **happened,
            "positions_nm": specimen.positions_nm,
            "strain_nm": specimen.strain_nm,
            "numbers": specimen.numbers,
            "site_class": specimen.site_class,
            "site_names": np.array(specimen.site_names),
            **{f"structure_{name}": np.array(text) for name, text in self._facts.items()},
            **(self._spectra() if specimen.is_sheet else {}),
        }

    def _spectra(self) -> Truth:
        """What a spectrometer would count on average, with the beam on each atom."""
        config, specimen = self._config, self.specimen
        electrons = config.electrons(TRUTH_DWELL_TIME_US)
        spectra = clean_spectra(specimen, specimen.positions_nm, electrons, config.eels)
        return {
            "spectra": spectra.astype(np.float32),
            "spectra_dwell_time_us": np.array(TRUTH_DWELL_TIME_US),
            "energy_offset_ev": np.array(config.eels.energy_offset_ev),
            "energy_step_ev": np.array(config.eels.energy_step_ev),
        }


def _called(facts: Mapping[str, str]) -> str:
    """Say of which structure, such as `` of MoS2 (JVASP-664)``; nothing for the sheet that is grown."""
    name, formula = facts.get("name", ""), facts.get("formula", "")
    return "".join([f" of {formula}" if formula else "", f" ({name})" if name else ""])[:150]


def _require_known(specimen: Specimen, config: StemConfig) -> None:
    """Refuse what has no physics here, before the first frame."""
    if config.kinetics.is_on and not specimen.is_sheet:
        raise ValueError(
            "stem.kinetics.is_on is true; what the beam does is known of flat sheets of carbon and silicon "
            "only: set it to false, or take another specimen.structure"
        )
    unknown = sorted({*specimen.numbers.tolist()} - {*SCATTERING})
    if unknown and config.probe != "gaussian":
        raise ValueError(
            f'stem.probe is "{config.probe}"; there is no scattering factor of element {unknown[0]} for it: '
            'set it to "gaussian", or take another specimen.structure'
        )


def _redraw(
    expected: Float32,
    place: int,
    old: tuple[Float64, Int64],
    new: tuple[Float64, Int64],
    config: StemConfig,
    path: BeamPath,
    longer: float,
) -> None:
    """Put new atoms (positions and numbers) in the place of old ones, in pixels after a place in time."""
    cols = expected.shape[1]
    first = place // cols // 2 * 2  # even, for a serpentine
    reach_nm = CUT_OFF_SD * config.probe_sigma_nm if config.probe == "gaussian" else config.optics.reach_nm
    last = path.last_row(np.concatenate([old[0], new[0]]), reach_nm)
    if last <= first:
        return
    part = path.rows(first, last)
    before, after = np.zeros((2, last - first, cols), dtype=np.float32)
    add_specimen(before, *old, config, part, longer)
    add_specimen(after, *new, config, part, longer)
    is_later = path.in_time(np.arange(first * cols, last * cols).reshape(-1, cols)) > place
    change = np.where(is_later, after - before, np.float32(0))
    # Where there is no background, what is taken away may leave -1e-6.
    expected[first:last] = np.maximum(expected[first:last] + change, 0)


class StemInstrument(ScanningInstrument[StemSimulator]):
    """A simulated STEM over a sheet of graphene or any structure.

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
    rim_nm = 0.6 if config.probe == "gaussian" else max(0.6, config.optics.reach_nm)
    rim_nm += 30 * distortion.drift_wander_nm_per_sqrt_s + 4 * distortion.drift_swing_nm
    if config.stage_reach_nm:
        rim_nm += config.stage_reach_nm + 4 * config.stage_error_nm
    # The rim has room for a few pixels anyway; only strong distortions need more.
    strong_px = 3 * distortion.coil_px + distortion.settle_px + max(0.0, distortion.flyback_px - 5.0)
    rim_nm += strong_px * pixel_nm + abs(config.specimen.strain_nm)
    rim_nm += distortion.creep_share * max(geometry.field_of_view_nm)
    lower, upper = looks_at.min(axis=0) - rim_nm, looks_at.max(axis=0) + rim_nm
    return (float(lower[0]), float(lower[1])), (float(upper[0]), float(upper[1]))
