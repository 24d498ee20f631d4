"""A microscope for plasmons: HAADF frames of doped nanoparticles, and energy losses wherever it is asked to.

The particles are of tin-doped In2O3: a monolayer or an array of spheres, each with a size and a doping of
its own, coupled as dipoles (``simulators.plasmons``); or one or two particles, spheres or cubes with round
edges, by boundary elements (``simulators.surface_modes``). The spectrometer's window decides what is seen:
plasmons below 5 eV, core losses above 150 eV (``simulators.core_loss``).

What is physics and what is assumed. The loss to the plasmons is quasi-static theory without free
parameters. Retardation and the substrate are left out, and so are the coupling of multipoles in monolayers
and the bulk loss of cubes. **Model assumptions**: the zero-loss peak is a Gaussian with a Lorentzian tail,
there is no plural scattering, HAADF is proportional to the thickness, every tin atom gives one free
electron, and the numbers of the specimen stand for particles such as those of arXiv:2009.09005 and
2009.08501 without being taken from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from simulators.core_loss import DENSITY_PER_NM3, LEAST_EV, core_spectra
from simulators.counting import poisson
from simulators.faults import reach
from simulators.plasmons import (
    ITO_EPSILON_INF,
    Beam,
    DipoleModes,
    Spheres,
    bulk_loss,
    drude,
    multipoles_alone,
    plasma_energy_ev,
)
from simulators.scanning import ScanningConfig, ScanningInstrument
from simulators.simulator import Curve, Exposure, Image, Scan, Truth
from simulators.surface_modes import RoundedBox, SurfaceModes, mesh
from streamer.messages import Frame

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MAX_PARTICLES = 600  # 1,800 modes: some 3 s to find them
LOW_LOSS_EV = 5.0
FWHM_PER_SD = 2 * math.sqrt(2 * math.log(2))
TRUTH_DWELL_TIME_US = 100_000.0
MAP_POINTS = 5  # energies in the window of a map
INDIUM = 49
FLAT_FACES, ROUND_FACES = 8, 2  # of a cube: 864 faces
SPHERE_FACES = 5  # around an eighth of a sphere: 600 faces


class EelsConfig(ScanningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The microscope, its spectrometer and the particles.

    What is not listed here is in ``simulators.scanning.ScanningConfig``.

    Attributes
    ----------
    arrangement
        ``monolayer``: close-packed with disorder and voids; ``array``: on a square lattice; ``dimer``: two
        beside each other along x; ``single``: one, in the middle.
    shape
        ``sphere``, or ``cube`` for one or two particles.
    radius_nm, radius_spread
        Radius of the spheres or half the edge of the cubes, and its relative sd.
    edge_nm
        Radius of a cube's edges and corners.
    pitch_nm
        Distance of neighbours in a monolayer or an array.
    gap_nm
        Between the surfaces of a dimer; the least one in a monolayer, too, where ligands are.
    disorder_nm, voids
        Of a monolayer: sd of the places along each axis, and share of the places that are empty.
    carriers_per_cm3, carriers_spread
        Free electrons, and their relative sd from particle to particle; in one and in two particles all
        are the same.
    damping_ev
        Full width of the resonances.
    epsilon_inf
        Permittivity of the bound electrons.
    beam_kv, collection_mrad
        Accelerating voltage, and half angle of the spectrometer.
    channels, energy_offset_ev, energy_step_ev
        Of the spectrometer: its window lies below 5 eV or above 150 eV.
    resolution_ev
        Full width at half height of the zero-loss peak.
    zero_loss_tail
        Share of the zero-loss peak that is in its Lorentzian tail.
    core_background_per_ev_nm
        Background of the core losses: share of the electrons in 1 eV at 400 eV for 1 nm of material.
    map_ev, map_width_ev
        Frames have a second channel, what is lost in this window; 0 has none.
    particle_counts
        HAADF counts in the middle of a particle of usual size, at ``dwell_time_us``.
    background_counts, detector_offset_counts
        HAADF counts beside the particles, with shot noise; and what the detector adds to every pixel.
    probe_sigma_nm
        Sd of the probe's intensity.
    """

    table: ClassVar[str] = "eels"
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "field_of_view_nm": (1.0, 2000.0),
        "beam_current_pa": (0.01, 1e5),
        "radius_nm": (1.0, 25.0),
        "radius_spread": (0.0, 0.2),
        "edge_nm": (0.1, 25.0),
        "pitch_nm": (3.0, 500.0),
        "gap_nm": (0.3, 100.0),
        "disorder_nm": (0.0, 10.0),
        "voids": (0.0, 0.9),
        "carriers_per_cm3": (1e19, 5e21),
        "carriers_spread": (0.0, 0.5),
        "damping_ev": (0.005, 1.0),
        "epsilon_inf": (1.0, 20.0),
        "beam_kv": (1.0, 300.0),
        "collection_mrad": (1.0, 200.0),
        "channels": (16, 8192),
        "energy_offset_ev": (-1.0, 2000.0),
        "energy_step_ev": (0.0005, 5.0),
        "resolution_ev": (0.003, 2.0),
        "zero_loss_tail": (0.0, 0.5),
        "core_background_per_ev_nm": (0.0, 1e-3),
        "map_ev": (0.0, LOW_LOSS_EV),
        "map_width_ev": (0.001, 1.0),
        "particle_counts": (0.01, 1e5),
        "background_counts": (0.0, 1e5),
        "detector_offset_counts": (0.0, 1e6),
        "probe_sigma_nm": (0.01, 2.0),
    }

    rows: int = 128
    cols: int = 128
    field_of_view_nm: float = 128.0
    dwell_time_us: float = 20.0
    beam_current_pa: float = 20.0
    arrangement: Literal["monolayer", "array", "dimer", "single"] = "monolayer"
    shape: Literal["sphere", "cube"] = "sphere"
    radius_nm: float = 6.0
    radius_spread: float = 0.06
    edge_nm: float = 1.0
    pitch_nm: float = 15.0
    gap_nm: float = 1.5
    disorder_nm: float = 1.0
    voids: float = 0.12
    carriers_per_cm3: float = 9.2e20
    carriers_spread: float = 0.08
    damping_ev: float = 0.1
    epsilon_inf: float = ITO_EPSILON_INF
    beam_kv: float = 60.0
    collection_mrad: float = 20.0
    channels: int = 256
    energy_offset_ev: float = 0.1
    energy_step_ev: float = 0.005
    resolution_ev: float = 0.03
    zero_loss_tail: float = 0.05
    core_background_per_ev_nm: float = 1e-6
    map_ev: float = 0.0
    map_width_ev: float = 0.05
    particle_counts: float = 100.0
    background_counts: float = 3.0
    detector_offset_counts: float = 10.0
    probe_sigma_nm: float = 0.2

    def __post_init__(self) -> None:
        ScanningConfig.__post_init__(self)
        first, last = self.energy_loss_ev[[0, -1]]
        if not (last <= LOW_LOSS_EV or first >= LEAST_EV):
            raise ValueError(
                f"eels: the spectrometer's window is {first:g} to {last:g} eV; it takes up to "
                f"{LOW_LOSS_EV:g} eV (plasmons) or from {LEAST_EV:g} eV (core losses), in between nothing "
                "is simulated"
            )
        if self.shape == "cube" and self.arrangement not in ("dimer", "single"):
            raise ValueError(f"eels.arrangement is {self.arrangement}; cubes take dimer or single")
        if self.shape == "cube" and self.edge_nm > self.radius_nm:
            raise ValueError(f"eels.edge_nm is {self.edge_nm}; it takes up to eels.radius_nm")
        room_nm = 2 * self.radius_nm * (1 + 2 * self.radius_spread) + self.gap_nm
        if self.arrangement in ("monolayer", "array") and self.pitch_nm < room_nm:
            raise ValueError(
                f"eels.pitch_nm is {self.pitch_nm}; particles of this size and gap take {room_nm:g} and above"
            )

    @property
    def energy_loss_ev(self) -> Float64:
        """Energy loss of each channel, shape ``(channels,)``."""
        return self.energy_offset_ev + self.energy_step_ev * np.arange(self.channels, dtype=np.float64)

    @property
    def beam(self) -> Beam:
        """The electrons."""
        return Beam(self.beam_kv, self.collection_mrad)


# -- the particles -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Particles:
    """What is under the beam.

    Attributes
    ----------
    positions_nm
        Middles ``(x, y)``, shape ``(n, 2)``; they lie on a plane that they touch.
    radii_nm
        Radius, or half the edge of a cube, shape ``(n,)``.
    carriers_per_cm3
        Free electrons, shape ``(n,)``.
    """

    positions_nm: Float64
    radii_nm: Float64
    carriers_per_cm3: Float64


def lay_out(config: EelsConfig, rng: np.random.Generator) -> Particles:
    """Lay particles wherever the field will be.

    Raises
    ------
    ValueError
        If they would be too many to be computed.
    """
    if config.arrangement in ("single", "dimer"):
        apart = 0.0 if config.arrangement == "single" else config.radius_nm + config.gap_nm / 2
        places = np.array([[0.0, 0.0]] if not apart else [[-apart, 0.0], [apart, 0.0]])
        same = np.ones(len(places))
        return Particles(
            positions_nm=places,
            radii_nm=config.radius_nm * same,
            carriers_per_cm3=config.carriers_per_cm3 * same,
        )
    places = _lattice(config)
    if config.arrangement == "monolayer":
        places = places[rng.random(len(places)) >= config.voids]
        places = places + config.disorder_nm * rng.standard_normal(places.shape)
    if len(places) > MAX_PARTICLES:
        raise ValueError(
            f"eels: {len(places)} particles fill the field and what it drifts over; it takes up to "
            f"{MAX_PARTICLES}: a larger eels.pitch_nm or a smaller eels.field_of_view_nm"
        )
    spread = np.clip(rng.standard_normal((2, len(places))), -2, 2)
    radii = config.radius_nm * (1 + config.radius_spread * spread[0])
    sigma = math.sqrt(math.log1p(config.carriers_spread**2))
    return Particles(
        positions_nm=_apart(places, radii, config.gap_nm),
        radii_nm=radii,
        carriers_per_cm3=config.carriers_per_cm3 * np.exp(sigma * spread[1] - sigma**2 / 2),
    )


def _lattice(config: EelsConfig) -> Float64:
    """Places of a hexagonal or a square lattice around the field, ``(n, 2)``, first those below."""
    geometry, distortion = config.geometry, config.distortion
    corners = geometry.to_nm(np.array([[r, c] for r in (0, config.rows) for c in (0, config.cols)]))
    wider, slips = reach(config.faults)
    moves = np.concatenate([slips, slips + np.array(distortion.drift_travel_nm)])
    looks_at = (corners[:, None] * wider - moves).reshape(-1, 2)
    # Beyond the field two neighbours still count; and the field wanders a little.
    rim_nm = 2 * config.pitch_nm + config.stage_reach_nm + 4 * distortion.drift_swing_nm
    rim_nm += distortion.creep_share * max(geometry.field_of_view_nm)
    lower, upper = looks_at.min(axis=0) - rim_nm, looks_at.max(axis=0) + rim_nm
    is_hexagonal = config.arrangement == "monolayer"
    step = config.pitch_nm * (math.sqrt(3) / 2 if is_hexagonal else 1.0)
    # Bounds first: a wrong unit must not fill the memory.
    if np.prod((upper - lower) / step) > 4 * MAX_PARTICLES / (1 - config.voids):
        raise ValueError(
            f"eels: more than {MAX_PARTICLES} particles fill the field and what it drifts over: take "
            "a larger eels.pitch_nm or a smaller eels.field_of_view_nm"
        )
    rows = np.arange(math.ceil(lower[1] / step), math.floor(upper[1] / step) + 1)
    cols = np.arange(math.ceil(lower[0] / config.pitch_nm), math.floor(upper[0] / config.pitch_nm) + 1)
    row, col = (axis.ravel() for axis in np.meshgrid(rows, cols, indexing="ij"))
    shift = 0.5 * (row % 2) if is_hexagonal else 0.0
    return np.stack([(col + shift) * config.pitch_nm, row * step], axis=1)


def _apart(places: Float64, radii: Float64, gap_nm: float) -> Float64:
    """Push particles apart that are too close."""
    places = places.copy()
    for _ in range(500):
        pairs = cKDTree(places).query_pairs(2 * radii.max(initial=0.0) + gap_nm, output_type="ndarray")
        one, other = pairs.T
        between = places[one] - places[other]
        apart = np.maximum(np.hypot(*between.T), 1e-6)
        missing = radii[one] + radii[other] + gap_nm - apart
        is_close = missing > 1e-3
        if not is_close.any():
            break
        push = (0.55 * missing / apart)[is_close, None] * between[is_close]
        np.add.at(places, one[is_close], push)
        np.add.at(places, other[is_close], -push)
    return places


# -- HAADF -------------------------------------------------------------------------------------


def thickness_nm(
    particles: Particles,
    positions_nm: Float64,
    edges_nm: Float64,
    probe_sigma_nm: float,
    weights: Float64 | float = 1.0,
) -> Float64:
    """Material under the probe.

    Parameters
    ----------
    particles
        What is there.
    positions_nm
        Probe positions ``(x, y)``, shape ``(m, 2)``.
    edges_nm
        Radius of the edges of each particle, shape ``(n,)``: that of a sphere is its radius.
    probe_sigma_nm
        Sd of the probe's intensity, taken in by three Gauss-Hermite points along each axis.
    weights
        What a nanometre of each particle counts, shape ``(n,)``.

    Returns
    -------
    thickness
        Shape ``(m,)``.
    """
    each = np.broadcast_to(weights, len(edges_nm))
    table = np.column_stack([particles.positions_nm, particles.radii_nm - edges_nm, edges_nm, each])
    thickness: Float64 = _thickness(np.ascontiguousarray(positions_nm), table, probe_sigma_nm)
    return thickness


@njit(cache=True)
def _thickness(probes: Float64, table: Float64, sigma: float) -> Float64:
    """Columns of the table: x, y, half the flat part, radius of the edge, weight."""
    steps = np.array([-np.sqrt(3.0), 0.0, np.sqrt(3.0)]) * sigma
    shares = np.array([1 / 6, 2 / 3, 1 / 6])
    total = np.zeros(len(probes))
    for i in range(len(probes)):
        for j in range(len(table)):
            flat, edge = table[j, 2], table[j, 3]
            reach_nm = flat + edge + steps[2]
            x, y = probes[i, 0] - table[j, 0], probes[i, 1] - table[j, 1]
            if abs(x) > reach_nm or abs(y) > reach_nm:
                continue
            for a in range(3):
                for b in range(3):
                    dx = max(abs(x + steps[a]) - flat, 0.0)
                    dy = max(abs(y + steps[b]) - flat, 0.0)
                    under = edge * edge - dx * dx - dy * dy
                    if under > 0:
                        total[i] += shares[a] * shares[b] * table[j, 4] * 2 * (flat + np.sqrt(under))
    return total


# -- the specimen under the beam ---------------------------------------------------------------


class EelsSimulator:
    """Plasmonic particles under the beam; see ``simulators.simulator.Simulator``.

    Parameters
    ----------
    config
        Microscope, spectrometer and particles.

    Attributes
    ----------
    particles
        What is there.
    mode_energies_ev
        Energies of the plasmons that they have together, ascending.
    loss_ev
        Energy loss of each channel.
    """

    name = "simulated EELS of plasmonic particles"

    def __init__(self, config: EelsConfig) -> None:
        self._config = config
        self.loss_ev = config.energy_loss_ev
        specimen_rng, _, self._noise_rng, _, _ = (np.random.default_rng(seed) for seed in config.seeds())
        self.particles = lay_out(config, specimen_rng)
        radii = self.particles.radii_nm
        self._edges_nm = np.full(len(radii), config.edge_nm) if config.shape == "cube" else radii
        self.mode_energies_ev, self._plasmons = _response(config, self.particles)

    def step(self, seconds: float) -> None:
        """Nothing happens to these particles."""

    def acquire_image(self, scan: Scan) -> Image:
        """Count what the annular detector gets at each pixel, and the loss in a window if one is set."""
        config = self._config
        positions = scan.path.specimen_positions_nm().reshape(-1, 2)
        longer = scan.dwell_time_us / config.dwell_time_us
        haadf = config.particle_counts / (2 * config.radius_nm) * self._thickness(positions, scan.faults)
        expected = [longer * (haadf + config.background_counts)]
        channels = ["HAADF"]
        if config.map_ev:
            expected.append(config.electrons(scan.dwell_time_us) * self._window(positions, scan.faults))
            channels.append(f"loss at {config.map_ev:g} eV")
        values = np.stack(expected).reshape(-1, *scan.path.geometry.shape).astype(np.float32)
        if "blank" in scan.faults:
            values[:] = 0
        counts = poisson(values, self._noise_rng)
        counts[0] += np.float32(config.detector_offset_counts)
        return Image(values=counts, channels=tuple(channels))

    def acquire_curve(self, exposure: Exposure) -> Curve:
        """Count a spectrum of energy losses."""
        config = self._config
        counts = self._counted(np.array([exposure.position_nm]), exposure.dwell_time_us, exposure.faults)
        return Curve(
            values=counts[0],
            energy_offset_ev=config.energy_offset_ev,
            energy_step_ev=config.energy_step_ev,
        )

    def acquire_spectra(self, scan: Scan) -> Float32:
        """Count a spectrum at every pixel, shape ``(rows, cols, channels)``, float32."""
        positions = scan.path.specimen_positions_nm().reshape(-1, 2)
        counts = self._counted(positions, scan.dwell_time_us, scan.faults)
        return counts.reshape(*scan.path.geometry.shape, -1)

    def clean_spectra(self, positions_nm: ArrayLike, electrons: float) -> Float64:
        """Say what spectra would count on average.

        Parameters
        ----------
        positions_nm
            Specimen positions ``(x, y)`` of the beam, shape ``(m, 2)``.
        electrons
            Electrons of the beam in each exposure.

        Returns
        -------
        expected
            Counts, shape ``(m, channels)``, float64.
        """
        config = self._config
        positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
        step, sd = config.energy_step_ev, config.resolution_ev / FWHM_PER_SD
        more = math.ceil(4 * sd / step)
        channel: Float64 = np.arange(-more, config.channels + more, dtype=np.float64)
        losses = config.energy_offset_ev + step * channel
        share = self._lost(positions, losses)
        if sd > 0.2 * step:  # narrower peaks are within a channel
            share = gaussian_filter1d(share, sd / step, axis=1, mode="nearest", truncate=4.0)
        share = share[:, more : more + config.channels] + self._zero_loss()
        expected: Float64 = electrons * step * share
        return expected

    def loss(self, positions_nm: ArrayLike, loss_ev: ArrayLike) -> Float64:
        """Probability per eV that a beam loses an energy to the plasmons, ``(m, energies)``: the truth."""
        positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
        return self._plasmons(positions, np.asarray(loss_ev, dtype=np.float64))

    def truth(self) -> Truth:
        """Give the particles and their plasmons.

        Returns
        -------
        arrays
            ``positions_nm`` ``(n, 2)`` as ``(x, y)``, ``radii_nm``, ``carriers_per_cm3``, ``plasma_ev``
            and ``tin_per_nm3``, ``(n,)``; ``numbers`` ``(n,)``, that of indium; ``mode_energies_ev``, of
            all of them together; ``spectra`` ``(n, channels)``, float32, expected counts with the beam
            through the middle of each particle for ``spectra_dwell_time_us``, with ``energy_offset_ev``
            and ``energy_step_ev``.
        """
        config, particles = self._config, self.particles
        spectra = self.clean_spectra(particles.positions_nm, config.electrons(TRUTH_DWELL_TIME_US))
        return {
            "positions_nm": particles.positions_nm,
            "radii_nm": particles.radii_nm,
            "carriers_per_cm3": particles.carriers_per_cm3,
            "plasma_ev": plasma_energy_ev(particles.carriers_per_cm3),
            "tin_per_nm3": particles.carriers_per_cm3 * 1e-21,
            "numbers": np.full(len(particles.radii_nm), INDIUM),
            "mode_energies_ev": self.mode_energies_ev,
            "spectra": spectra.astype(np.float32),
            "spectra_dwell_time_us": np.array(TRUTH_DWELL_TIME_US),
            "energy_offset_ev": np.array(config.energy_offset_ev),
            "energy_step_ev": np.array(config.energy_step_ev),
        }

    def _thickness(self, positions: Float64, faults: frozenset[str] = frozenset()) -> Float64:
        """Material under the probe, shape ``(m,)``; melted, it is as thick everywhere."""
        config = self._config
        under = thickness_nm(self.particles, positions, self._edges_nm, config.probe_sigma_nm)
        return np.full_like(under, under.mean()) if "amorphous" in faults else under

    def _window(self, positions: Float64, faults: frozenset[str]) -> Float64:
        """Share of the electrons in the window of the map, shape ``(m,)``."""
        config = self._config
        half = config.map_width_ev / 2
        energies = config.map_ev + half * np.linspace(-1, 1, MAP_POINTS)
        share = np.broadcast_to(_peak(config, energies), (len(positions), MAP_POINTS))
        if "amorphous" not in faults:
            share = share + self.loss(positions, energies)
        return np.asarray(share.mean(axis=1) * config.map_width_ev, dtype=np.float64)

    def _counted(self, positions: Float64, dwell_time_us: float, faults: frozenset[str]) -> Float32:
        """Spectra with shot noise, shape ``(m, channels)``."""
        electrons = self._config.electrons(dwell_time_us)
        if "blank" in faults:
            electrons = 0.0
        if "amorphous" in faults:
            expected = np.tile(
                electrons * self._config.energy_step_ev * self._zero_loss(), (len(positions), 1)
            )
        else:
            expected = self.clean_spectra(positions, electrons)
        return poisson(expected.astype(np.float32), self._noise_rng)

    def _lost(self, positions: Float64, losses: Float64) -> Float64:
        """Probability per eV of any loss, shape ``(m, energies)``."""
        if losses[0] < LOW_LOSS_EV:
            return self._plasmons(positions, losses)
        config = self._config
        thickness = self._thickness(positions)
        tin = self.particles.carriers_per_cm3 * 1e-21
        atoms = {element: density * thickness for element, density in DENSITY_PER_NM3.items()}
        atoms["Sn"] = thickness_nm(self.particles, positions, self._edges_nm, config.probe_sigma_nm, tin)
        return core_spectra(atoms, thickness, losses, config.beam, config.core_background_per_ev_nm)

    def _zero_loss(self) -> Float64:
        """Share per eV of the electrons in the zero-loss peak, shape ``(channels,)``."""
        losses = self._config.energy_loss_ev
        return _peak(self._config, losses) if losses[0] < LOW_LOSS_EV else np.zeros_like(losses)


def _peak(config: EelsConfig, losses: Float64) -> Float64:
    """Zero-loss peak per eV: a Gaussian, and a Lorentzian of the same width for its tail."""
    sd, half = config.resolution_ev / FWHM_PER_SD, config.resolution_ev / 2
    gaussian = np.exp(-0.5 * (losses / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
    lorentzian = half / math.pi / (losses**2 + half**2)
    peak: Float64 = (1 - config.zero_loss_tail) * gaussian + config.zero_loss_tail * lorentzian
    return peak


def _response(
    config: EelsConfig, particles: Particles
) -> tuple[Float64, Callable[[Float64, Float64], Float64]]:
    """Energies of the plasmons, and what a beam loses to them at positions and energies."""
    beam, eps = config.beam, config.epsilon_inf
    spheres = Spheres(
        positions_nm=np.column_stack([particles.positions_nm, particles.radii_nm]),
        radii_nm=particles.radii_nm,
        plasma_ev=plasma_energy_ev(particles.carriers_per_cm3),
        epsilon_inf=eps,
        damping_ev=config.damping_ev,
    )
    if config.arrangement in ("monolayer", "array"):
        modes = DipoleModes(spheres)
        return (
            modes.energies_ev,
            lambda positions, losses: (
                modes.loss(positions, losses, beam)
                + multipoles_alone(spheres, positions, losses, beam)
                + bulk_loss(spheres, positions, losses, beam)
            ),
        )
    plasma = float(spheres.plasma_ev[0])
    surface = SurfaceModes([mesh(box, *faces) for box, faces in _boxes(config, particles)])

    def lost(positions: Float64, losses: Float64) -> Float64:
        permittivity = drude(np.where(losses > 0, losses, 1.0), plasma, eps, config.damping_ev)
        loss = surface.loss(positions, losses, beam, permittivity)
        return loss + bulk_loss(spheres, positions, losses, beam) if config.shape == "sphere" else loss

    return np.sort(surface.energies_ev(plasma, eps)), lost


def _boxes(config: EelsConfig, particles: Particles) -> list[tuple[RoundedBox, tuple[int, int]]]:
    """Shapes of one or two particles, and how fine their faces are."""
    is_cube = config.shape == "cube"
    faces = (FLAT_FACES, ROUND_FACES) if is_cube else (0, SPHERE_FACES)
    return [
        (
            RoundedBox(
                half_nm=(radius,) * 3,
                edge_nm=config.edge_nm if is_cube else radius,
                position_nm=(x, y, radius),
            ),
            faces,
        )
        for (x, y), radius in zip(particles.positions_nm.tolist(), particles.radii_nm.tolist(), strict=True)
    ]


class EelsInstrument(ScanningInstrument[EelsSimulator]):
    """A simulated microscope over plasmonic particles.

    Parameters
    ----------
    config
        Microscope, particles, distortion and spectrometer.
    started_at_s
        As of a ``ScanningInstrument``.
    """

    config: EelsConfig

    def __init__(self, config: EelsConfig | None = None, *, started_at_s: float | None = None) -> None:
        config = EelsConfig() if config is None else config
        super().__init__(EelsSimulator(config), config, started_at_s=started_at_s)

    @property
    def particles(self) -> Particles:
        """What is there."""
        return self.simulator.particles

    def acquire_spectrum_image(self, dwell_time_us: float = 10_000.0) -> tuple[Frame, Float32]:
        """Scan the next full frame with a spectrum at every pixel.

        Parameters
        ----------
        dwell_time_us
            Time at each pixel.

        Returns
        -------
        frame, spectra
            The frame, and counts of the same pixels, shape ``(rows, cols, channels)``, float32.

        Raises
        ------
        RuntimeError
            While the beam is parked.
        """
        scan = self._begin(self._next_field(), dwell_time_us)
        frame = self._frame(scan, self.simulator.acquire_image(scan), None)
        spectra = self.simulator.acquire_spectra(scan)
        self._full_frames += 1
        return frame, spectra
