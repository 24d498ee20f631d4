"""A piezoresponse force microscope over a layered ferrielectric film whose domains are known.

The film moves by ``simulators.landau``; the tip reads its polarisation through a resolution function, a
lock-in and a contact with an offset, and writes it with a bias. A scan gives amplitude, phase and height; a
stay at a place sweeps the bias and gives the response, a hysteresis loop, which leaves its mark.

Two clocks are an assumption, and said: under a biased tip the film switches by the fast one, elsewhere and
at rest its walls creep by the slow one. Switching under a field is faster than creep by orders of magnitude
(Merz 1954), and one relaxation time cannot be both. The fast clock fades out between three and six radii of
the tip, so that no domain is written wider than that. Walls are wider than the 0.3 nm of the material, since
a cell of the grid is nanometres: what is seen is as wide as the tip's resolution. Left out: contact
resonance, the dielectric response of walls, in-plane polarisation, an AC bias that switches, and the way back
of a line.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft

from simulators.landau import (
    ANTIFERROELECTRIC,
    FERRIELECTRIC,
    FERROELECTRIC,
    Landau,
    LandauField,
    cuinp2s6,
    electrostriction_q33,
    phases,
    stiffest,
    wave_numbers,
)
from simulators.scan_distortion import BeamPath
from simulators.scanning import ScanningConfig, ScanningInstrument
from simulators.simulator import Curve, Exposure, Image, Scan, Truth
from streamer.messages import PairNm

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

VACUUM_PERMITTIVITY = 8.8541878128e-12  # F/m
CHANNELS = ("amplitude", "phase", "height")
COARSEST_CELL = 1.5  # in units of length: walls of the working sets are then still three cells wide
REACH_RADII = 6.0  # of the tip: beyond them its field, below 1/200, switches nothing
STRONGEST_FIELD = 100.0
FINENESS = 2.5  # steps of a driven film times its steepest curvature: CuInP2S6 is stiff in strong fields
LET_GO = 3.0  # in scaled time: how long the film springs back at once when a bias ends
BLUNT = 2.0  # a changed tip is as many times wider, and double:
GHOST_SHARE = 0.35


class FilmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the film is, and how it came to be.

    Attributes
    ----------
    order
        ``FI`` ferrielectric, ``FE`` ferroelectric or ``AFE`` antiferroelectric with polar walls: working
        sets, chosen to show each; ``CuInP2S6``: the polar coefficients of that material at
        ``temperature_k``; ``own``: those in ``landau``.
    landau
        Scaled coefficients, of ``own``.
    cells
        Edge of the grid.
    extent
        How many times as wide as the longer edge of the field the film is; 1.5 fills every turned scan.
        Beyond it is bare substrate.
    length_nm
        The unit of length. Domain walls of the working sets are ``tanh(x / (2 length_nm))``: coarser than
        in the material.
    polarisation_c_per_m2
        The unit of polarisation; 0.0316 is CuInP2S6 at 293 K.
    dielectric_constant
        Of the film along the field; about 40 in CuInP2S6, an assumption.
    temperature_k
        For the coefficients of CuInP2S6 and for its electrostriction.
    thickness_nm
        Of the film.
    depolarisation
        Its unscreened part, scaled; 0 is under perfect electrodes.
    thermal
        Thermal energy, scaled.
    imprint, imprint_sd, imprint_length_nm
        Mean, sd and correlation length of the built-in field, scaled.
    disorder, disorder_length_nm
        Relative sd and correlation length of the coefficient of the polarisation's square.
    spread
        By how much of itself that coefficient changes from the film's middle to its right edge; the left one
        has the opposite. 1.2 with ``FI`` has antiferroelectric order on the left and ferroelectric on the
        right.
    domains
        ``grown`` from disorder, or ``one`` all over the film.
    growth
        For how long they came to rest, in scaled units of time.
    relaxation_s, switching_s
        The scaled unit of time at rest and under a biased tip.
    """

    order: Literal["FI", "FE", "AFE", "CuInP2S6", "own"] = "FI"
    landau: Landau = Landau()
    cells: int = 256
    extent: float = 1.1
    length_nm: float = 4.0
    polarisation_c_per_m2: float = 0.0316
    dielectric_constant: float = 40.0
    temperature_k: float = 293.0
    thickness_nm: float = 120.0
    depolarisation: float = 0.15
    thermal: float = 2e-3
    imprint: float = 0.01
    imprint_sd: float = 0.03
    imprint_length_nm: float = 24.0
    disorder: float = 0.08
    disorder_length_nm: float = 16.0
    spread: float = 0.0
    domains: Literal["grown", "one"] = "grown"
    growth: float = 100.0
    relaxation_s: float = 50.0
    switching_s: float = 0.05

    def __post_init__(self) -> None:
        for name, (least, most) in _FILM_LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"film.{name} is {getattr(self, name)}; it takes {least:g} to {most:g}")
        self.energy()  # so that a temperature without order is refused at once

    def energy(self) -> Landau:
        """Scaled coefficients of the energy."""
        if self.order == "own":
            energy = self.landau
        elif self.order == "CuInP2S6":
            energy = _scaled_cuinp2s6(self.temperature_k, self.polarisation_c_per_m2)
        else:
            energy = {"FI": FERRIELECTRIC, "FE": FERROELECTRIC, "AFE": ANTIFERROELECTRIC}[self.order]
        if not any(phase.order != "PE" for phase in phases(energy)):
            raise ValueError(
                f"film.order is {self.order!r} at {self.temperature_k:g} K, which has no order; it takes "
                "coefficients, or a temperature, with a polar or an antipolar one"
            )
        return energy


_FILM_LIMITS = {
    "cells": (16, 2048),
    "extent": (1.0, 10.0),
    "length_nm": (0.1, 1000.0),
    "polarisation_c_per_m2": (1e-4, 2.0),
    "dielectric_constant": (1.0, 1e4),
    "temperature_k": (1.0, 1000.0),
    "thickness_nm": (1.0, 1e4),
    "depolarisation": (0.0, 5.0),
    "thermal": (0.0, 0.1),
    "imprint": (-1.0, 1.0),
    "imprint_sd": (0.0, 1.0),
    "imprint_length_nm": (0.1, 1e4),
    "disorder": (0.0, 0.5),
    "disorder_length_nm": (0.1, 1e4),
    "spread": (-3.0, 3.0),
    "growth": (0.0, 1e4),
    "relaxation_s": (0.01, 1e9),
    "switching_s": (1e-6, 1e3),
}


def _scaled_cuinp2s6(temperature_k: float, polarisation: float) -> Landau:
    """Coefficients with a polarisation unit, and the gradient of the working sets: see ``length_nm``."""
    si = cuinp2s6(temperature_k)
    scaled = si.scaled(polarisation, si.polar_4 * polarisation**4, 1.0)
    return msgspec.structs.replace(scaled, polar_gradient=2.0, antipolar_gradient=2.0)


class PfmConfig(ScanningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The microscope; ``film`` and ``distortion`` are tables of their own.

    What is not listed here is in ``simulators.scanning.ScanningConfig``. With 256 pixels of 2 ms a line
    takes half a second.

    Attributes
    ----------
    ac_bias_v
        Amplitude of the bias that makes the film respond.
    resolution_nm
        Width ``w`` of the tip's resolution: a wave passes by ``1 / (1 + k w / 2)^2``.
    offset_pm
        Real and imaginary part of what the contact adds to the response.
    phase_offset_rad
        Phase that the lock-in adds.
    noise_pm
        Sd of the noise of either part of the response, at ``dwell_time_us``; it falls with the square root
        of the time.
    electrostatic_pm_per_v
        What a bias on the tip adds to the response by the charge on film and cantilever.
    tip_radius_nm
        ``R`` of the field under a biased tip, ``E = E0 / (1 + r^2 / R^2)^1.5``.
    field_per_v
        Scaled field ``E0`` of one volt. A uniform film of the ferroelectric set switches at 0.385.
    bias_v, bias_offset_v
        Amplitude and middle of the bias that a stay at a place sweeps.
    bias_shape
        ``triangle``: up, down and back, a hysteresis loop; ``ramp``: up and back, which writes one way;
        ``pulse``: ``bias_v`` for the first half of the time and ``bias_offset_v`` for the second, which
        writes a domain and sees it relax.
    bias_cycles
        How many of them fill the time: with the dwell time of the stay it is the frequency.
    bias_points
        In each of them, at which the response is read.
    roughness_nm, roughness_length_nm
        Sd and correlation length of the film's height.
    terrace_nm
        Height of a terrace edge that runs through the field; a layer of CuInP2S6 is 0.65 nm.
    height_noise_nm
        Sd of the noise of the height at ``dwell_time_us``.
    """

    table: ClassVar[str] = "pfm"
    has_tip: ClassVar[bool] = True
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "field_of_view_nm": (50.0, 1e5),
        "ac_bias_v": (0.01, 20.0),
        "resolution_nm": (0.0, 1000.0),
        "phase_offset_rad": (-math.pi, math.pi),
        "noise_pm": (0.0, 1000.0),
        "electrostatic_pm_per_v": (-1000.0, 1000.0),
        "tip_radius_nm": (1.0, 1000.0),
        "field_per_v": (0.0, 100.0),
        "bias_v": (-200.0, 200.0),
        "bias_offset_v": (-200.0, 200.0),
        "bias_cycles": (1, 100),
        "bias_points": (8, 4096),
        "roughness_nm": (0.0, 100.0),
        "roughness_length_nm": (0.1, 1e4),
        "terrace_nm": (0.0, 100.0),
        "height_noise_nm": (0.0, 10.0),
    }

    rows: int = 256
    cols: int = 256
    field_of_view_nm: float = 1000.0
    dwell_time_us: float = 2000.0
    beam_current_pa: float = 0.0
    travel_um_per_s: float = 20.0
    settle_s: float = 0.05
    reach_nm: float = 5e4
    ac_bias_v: float = 1.0
    resolution_nm: float = 12.0
    offset_pm: tuple[float, float] = (1.2, 0.6)
    phase_offset_rad: float = 0.3
    noise_pm: float = 1.2
    electrostatic_pm_per_v: float = 0.4
    tip_radius_nm: float = 40.0
    field_per_v: float = 0.5
    bias_v: float = 6.0
    bias_offset_v: float = 0.0
    bias_shape: Literal["triangle", "ramp", "pulse"] = "triangle"
    bias_cycles: int = 1
    bias_points: int = 64
    roughness_nm: float = 0.15
    roughness_length_nm: float = 30.0
    terrace_nm: float = 0.65
    height_noise_nm: float = 0.05
    film: FilmConfig = FilmConfig()

    def __post_init__(self) -> None:
        ScanningConfig.__post_init__(self)
        if not all(abs(part) <= 1000 for part in self.offset_pm):
            raise ValueError(f"pfm.offset_pm is {self.offset_pm}; it takes -1000 to 1000")
        strongest = self.field_per_v * (abs(self.bias_v) + abs(self.bias_offset_v))
        if strongest > STRONGEST_FIELD:
            raise ValueError(
                f"pfm.field_per_v is {self.field_per_v}: with the bias it makes {strongest:g}; it takes up to"
                f" {STRONGEST_FIELD:g} of the scaled field, where a film switches at about 0.4"
            )
        if self.cell_nm > COARSEST_CELL * self.film.length_nm:
            cells = math.ceil(self.film.cells * self.cell_nm / (COARSEST_CELL * self.film.length_nm))
            raise ValueError(
                f"pfm.film.cells is {self.film.cells}: cells of {self.cell_nm:.3g} nm have no room for walls "
                f"of film.length_nm {self.film.length_nm:g}; it takes {cells} and above, or a length of "
                f"{self.cell_nm / COARSEST_CELL:.3g} nm"
            )

    @property
    def cell_nm(self) -> float:
        """Edge of a cell of the film's grid."""
        return self.film.extent * max(self.geometry.field_of_view_nm) / self.film.cells

    @property
    def response_pm(self) -> float:
        """Response to a film with a unit of polarisation, ``2 Q33 eps0 eps33 P V``; negative in CuInP2S6."""
        film = self.film
        q33 = electrostriction_q33(film.temperature_k)
        permittivity = VACUUM_PERMITTIVITY * film.dielectric_constant
        return 2e12 * q33 * permittivity * film.polarisation_c_per_m2 * self.ac_bias_v

    def bias(self) -> Float64:
        """The tip's bias at each point of a stay, in V, shape ``(bias_cycles * bias_points,)``."""
        turn = (np.arange(self.bias_points) + 1) / self.bias_points
        if self.bias_shape == "pulse":
            once = np.where(turn <= 0.5, self.bias_v, 0.0)
        elif self.bias_shape == "ramp":
            once = self.bias_v * (1 - np.abs(1 - 2 * turn))
        else:
            once = self.bias_v * (2 / math.pi) * np.arcsin(np.sin(2 * math.pi * turn))
        swept: Float64 = self.bias_offset_v + np.tile(once, self.bias_cycles)
        return swept


# -- the film ----------------------------------------------------------------------------------


class Weighing:
    """What a tip weighs the cells of a film with.

    Parameters
    ----------
    width
        ``w`` of its resolution, in cells.
    ghost
        Where a second apex is, ``(row, col)`` in cells from the first; None for a single tip.
    """

    def __init__(self, width: float, ghost: tuple[float, float] | None = None) -> None:
        self._width, self._ghost = width, ghost

    def transfer(self, shape: tuple[int, int]) -> NDArray[np.complex64]:
        """How waves pass, shape ``(rows, cols // 2 + 1)``; it is 1 for a uniform film."""
        passed = 1 / (1 + wave_numbers(shape, 1.0) * self._width / 2) ** 2 + 0j
        if self._ghost is not None:
            passed *= 1 - GHOST_SHARE + GHOST_SHARE * _shift(shape, *self._ghost)
        return passed.astype(np.complex64)

    def image(self, polar: Float32) -> Float32:
        """What it sees at every cell, shape of the argument."""
        waves = fft.rfft2(polar, workers=1)
        waves *= self.transfer(polar.shape)
        seen: Float32 = fft.irfft2(waves, s=polar.shape, workers=1)
        return seen

    def __call__(self, size: int, row: float, col: float) -> Float32:
        """Weights of a square's cells with the tip at a place in it, shape ``(size, size)``."""
        shape = (size, size)
        waves = np.conj(self.transfer(shape)) * _shift(shape, -row, -col)
        weights: Float64 = fft.irfft2(waves, s=shape, workers=1)
        return weights.astype(np.float32)


class Film:
    """The film: how it ages, and what a biased tip does to it.

    Places are in cells of its grid, ``(row, col)``, y and x of the specimen; its middle is at ``(0, 0)`` nm.

    Parameters
    ----------
    config
        What it is.
    cell_nm
        Edge of a cell.
    rng
        For its disorder, its growth and its thermal motion.

    Attributes
    ----------
    field
        Its orders now.
    cell_nm
        As given.
    """

    def __init__(self, config: FilmConfig, cell_nm: float, rng: np.random.Generator) -> None:
        self._config, self.cell_nm = config, cell_nm
        grown_rng, thermal_rng = rng.spawn(2)
        energy, edge = config.energy(), config.cells
        self.field = LandauField(
            energy,
            (edge, edge),
            cell=cell_nm / config.length_nm,
            depolarisation=config.depolarisation,
            thickness=config.thickness_nm / config.length_nm,
            temperature=config.thermal,
            rng=thermal_rng,
        )
        imprint = smooth_noise(edge, config.imprint_length_nm / cell_nm, grown_rng)
        disorder = smooth_noise(edge, config.disorder_length_nm / cell_nm, grown_rng)
        across = np.linspace(-1.0, 1.0, edge)[None]
        self.field.imprint = (config.imprint + config.imprint_sd * imprint).astype(np.float32)
        local = energy.polar_2 * (1 + config.disorder * disorder + config.spread * across)
        self.field.local_polar_2 = local.astype(np.float32)
        self._owed = 0.0
        self._grow(energy, grown_rng)

    def _grow(self, energy: Landau, rng: np.random.Generator) -> None:
        """Let the domains come out of nothing, or out of one."""
        config, edge = self._config, self._config.cells
        width = 3 * config.length_nm / self.cell_nm
        seeds = [0.05 * smooth_noise(edge, width, rng) for _ in range(2)]
        if config.domains == "one":
            ordered = next(phase for phase in phases(energy) if phase.order != "PE")
            seeds = [np.full((edge, edge), ordered.polar), np.full((edge, edge), ordered.antipolar)]
        elif any(phase.order == "PE" for phase in phases(energy)):  # only strong seeds grow out of it
            seeds = [np.tanh(60 * seed) * phases(energy)[0].polar for seed in seeds]
        self.field.put(seeds[0], seeds[1])
        for _ in range(round(config.growth / self.field.time_step)):
            self.field.step()

    def age(self, seconds: float) -> None:
        """Let time pass without a bias; less than a step of the field is kept for the next time."""
        self._owed += seconds / self._config.relaxation_s
        steps = int(self._owed / self.field.time_step)
        self._owed -= steps * self.field.time_step
        for _ in range(steps):
            self.field.step()

    def drive(
        self, place: tuple[float, float], radius: float, strengths: Float64, seconds: float, weigh: Weighing
    ) -> Float64:
        """Sweep the field of a tip, and leave what it wrote.

        Parameters
        ----------
        place
            Of the tip.
        radius
            Of its field, in cells.
        strengths
            Scaled field under it at each point of the sweep, shape ``(n,)``.
        seconds
            That the sweep takes.
        weigh
            What the tip weighs each cell of a window with.

        Returns
        -------
        change
            What the tip sees of the polarisation, less what it saw before, at each point, shape ``(n,)``.
        """
        edge = self._config.cells
        size = min(edge, fft.next_fast_len(2 * math.ceil(REACH_RADII * radius) + 1, real=True))
        corner = (round(place[0]) - size // 2, round(place[1]) - size // 2)
        row, col = place[0] - corner[0], place[1] - corner[1]
        far = np.hypot(np.arange(size)[:, None] - row, np.arange(size)[None] - col) / radius
        mobility = _fade(far, REACH_RADII / 2, REACH_RADII)
        span = seconds / self._config.switching_s / len(strengths)
        steps, strongest = self._steps(span, strengths)
        window = self.field.window(corner, size, mobility, span / steps, strongest)
        window.tip = tip_shape(far).astype(np.float32)
        weights = weigh(size, row, col)
        change = np.empty(len(strengths))
        for n, strength in enumerate(strengths.tolist()):
            for _ in range(steps):
                window.step(strength)
            change[n] = _weighed(weights, window.moved[0])
        for _ in range(math.ceil(LET_GO / window.time_step) if strengths[-1] else 0):
            window.step()
        self.field.join(window, corner)
        return change

    def _steps(self, span: float, strengths: Float64) -> tuple[int, float]:
        """Say in how many steps the film is driven at each point, and how strong the field is at most."""
        strongest = float(np.abs(strengths).max())
        finest = min(self.field.time_step, FINENESS / stiffest(self._config.energy(), strongest))
        return max(1, math.ceil(span / finest)), strongest


def _shift(shape: tuple[int, int], down: float, right: float) -> NDArray[np.complex128]:
    """Transfer of what looks a way further down and to the right."""
    rows, cols = fft.fftfreq(shape[0]) * down, fft.rfftfreq(shape[1]) * right
    moved: NDArray[np.complex128] = np.exp(2j * math.pi * (rows[:, None] + cols[None]))
    return moved


def smooth_noise(edge: int, width: float, rng: np.random.Generator) -> Float64:
    """Gaussian noise of unit sd with a correlation of ``width`` cells, periodic, shape ``(edge, edge)``."""
    waves = fft.rfft2(rng.standard_normal((edge, edge)), workers=1)
    waves *= np.exp(-((wave_numbers((edge, edge), 1.0) * width) ** 2) / 2)
    waves[0, 0] = 0.0
    noise: Float64 = fft.irfft2(waves, s=(edge, edge), workers=1)
    spread = float(noise.std())
    return noise / spread if spread > 0 else noise


def tip_shape(far: Float64) -> Float64:
    """Field of a biased tip at a distance in its radii, as a share of that under its apex."""
    shape: Float64 = (1 + far**2) ** -1.5
    return shape


def _weighed(weights: Float32, polar: Float32) -> float:
    """What a tip sees. Not a product of BLAS, whose last digit depends on the number of its threads."""
    return float((weights * polar).sum(dtype=np.float64))


def _fade(far: Float64, start: float, end: float) -> Float64:
    """1 up to ``start``, 0 from ``end`` on, and a half cosine between."""
    inward = np.clip((end - far) / (end - start), 0.0, 1.0)
    faded: Float64 = 0.5 - 0.5 * np.cos(math.pi * inward)
    return faded


# -- the image ---------------------------------------------------------------------------------


@njit(cache=True)
def _sample(
    maps: Float32,
    displacement_px: Float64,
    start: Float64,
    down: Float64,
    right: Float64,
    outside: Float32,
    values: Float32,
) -> None:
    """Read maps where the tip was, by cubics; between two states of the film as the rows go by.

    ``maps`` is ``(rows, cols, 4)``: response before and after, height before and after. ``values`` is
    ``(2, rows, cols)``.
    """
    high, wide = maps.shape[0] - 1, maps.shape[1] - 1
    rows, cols = values.shape[1], values.shape[2]
    zero = np.float32(0)
    for i in range(rows):
        late = np.float32((i + 0.5) / rows)
        for j in range(cols):
            r, c = i + displacement_px[0, i, j], j + displacement_px[1, i, j]
            y = start[0] + r * down[0] + c * right[0]
            x = start[1] + r * down[1] + c * right[1]
            if not (0 <= y <= high and 0 <= x <= wide):
                values[0, i, j], values[1, i, j] = outside[0], outside[1]
                continue
            top, left = int(y), int(x)
            wy, wx = _cubic_weights(np.float32(y - top)), _cubic_weights(np.float32(x - left))
            early, later, low, lower = zero, zero, zero, zero
            for m in range(4):
                row = min(max(top + m - 1, 0), high)
                for n in range(4):
                    col = min(max(left + n - 1, 0), wide)
                    weight = wy[m] * wx[n]
                    early += weight * maps[row, col, 0]
                    later += weight * maps[row, col, 1]
                    low += weight * maps[row, col, 2]
                    lower += weight * maps[row, col, 3]
            values[0, i, j] = early + late * (later - early)
            values[1, i, j] = low + late * (lower - low)


@njit(cache=True)
def _cubic_weights(t: np.float32) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Catmull-Rom weights of the cells at -1, 0, 1 and 2."""
    half, one, two, three = np.float32(0.5), np.float32(1), np.float32(2), np.float32(3)
    four, five = np.float32(4), np.float32(5)
    return (
        half * t * ((two - t) * t - one),
        half * (t * t * (three * t - five) + two),
        half * t * ((four - three * t) * t + one),
        half * t * t * (t - one),
    )


@njit(cache=True)
def _lock_in(response: Float32, noise: Float32, offset: Float32, turned: Float32, out: Float32) -> None:
    """Amplitude and phase of a response with its offset, turned by the lock-in, with noise on both parts."""
    rows, cols = response.shape
    for i in range(rows):
        for j in range(cols):
            real, imaginary = response[i, j] + offset[0], offset[1]
            x = turned[0] * real - turned[1] * imaginary + noise[0, i, j]
            y = turned[1] * real + turned[0] * imaginary + noise[1, i, j]
            out[0, i, j] = math.sqrt(x * x + y * y)
            out[1, i, j] = math.atan2(y, x)


# -- the film under the tip --------------------------------------------------------------------


class PfmSimulator:
    """A ferrielectric film under a tip; see ``simulators.simulator.Simulator``.

    Parameters
    ----------
    config
        Microscope and film.

    Attributes
    ----------
    film
        What is there.
    """

    name = "simulated PFM"

    def __init__(self, config: PfmConfig) -> None:
        self._config = config
        specimen_rng, _, self._noise_rng, _, fault_rng = (
            np.random.default_rng(seed) for seed in config.seeds()
        )
        film_rng, height_rng = specimen_rng.spawn(2)
        self.film = Film(config.film, config.cell_nm, film_rng)
        self._relief_nm = _relief(config, height_rng)
        width = config.resolution_nm / config.cell_nm
        angle = fault_rng.uniform(0, 2 * math.pi)
        apart = 2 * BLUNT * max(config.resolution_nm, config.cell_nm) / config.cell_nm
        ghost = (apart * math.sin(angle), apart * math.cos(angle))
        self._tips = {False: Weighing(width), True: Weighing(BLUNT * width, ghost)}
        self._marks: list[tuple[float, ...]] = []
        self._frames: list[tuple[float, float]] = []

    def step(self, seconds: float) -> None:
        """Let the film relax."""
        self.film.age(seconds)

    def acquire_image(self, scan: Scan) -> Image:
        """Read amplitude (pm), phase (rad) and height (nm) while the film goes on relaxing."""
        config, shape = self._config, scan.path.geometry.shape
        before = self._maps(scan.faults)
        self.film.age(scan.path.ended_s - scan.path.started_s)
        maps = np.empty((*self._relief_nm.shape, 4), dtype=np.float32)
        maps[..., 0], maps[..., 2] = before
        maps[..., 1], maps[..., 3] = self._maps(scan.faults)
        values = np.empty((2, *shape), dtype=np.float32)
        outside = np.array([0.0, -config.film.thickness_nm], dtype=np.float32)
        _sample(maps, scan.path.displacement_px(), *self._raster(scan.path), outside, values)
        self._note_frame()
        quieter = math.sqrt(config.dwell_time_us / scan.dwell_time_us)
        return Image(values=self._channels(values, quieter, scan.faults), channels=CHANNELS)

    def acquire_curve(self, exposure: Exposure) -> Curve:
        """Sweep the bias and read the in-phase response in pm; the film keeps what is written.

        The response has the sign of its phase: that of the film, ``-P`` in CuInP2S6.
        """
        bias_v = self._config.bias()
        response = self._swept(exposure, bias_v)
        return Curve(values=response.astype(np.float32), bias_v=bias_v.astype(np.float32))

    def pulse(self, position_nm: PairNm, bias_v: float, seconds: float) -> None:
        """Write with a pulse: an operator's hand on the film, beside what requests can ask for.

        Parameters
        ----------
        position_nm
            Specimen point ``(x, y)``.
        bias_v
            Of the tip while it lasts.
        seconds
            How long it lasts.
        """
        self._swept(Exposure(position_nm=position_nm, dwell_time_us=seconds * 1e6), np.full(16, bias_v))

    def truth(self) -> Truth:
        """Give the film as it is, and what became of it.

        Returns
        -------
        arrays
            On the film's grid, row along y and column along x, scaled, float32: ``polar``, ``antipolar`` and
            ``imprint`` ``(cells, cells)``; ``cell_nm``; ``film_corner_nm``, ``(x, y)`` of its first cell;
            ``response_pm`` of a unit of polarisation; ``orders``, ``order_polar`` and ``order_antipolar`` of
            the uniform phases, the most stable first. For each frame at its end ``frame_polar_mean`` and
            ``frame_up_share``, the share of the film with P above 0. For each bias that was swept
            ``mark_position_nm`` ``(marks, 2)``, ``mark_bias_v`` ``(marks, 2)``, lowest and highest,
            ``mark_seconds`` and ``mark_switched_nm2``, the area whose P changed its sign.
        """
        config, field = self._config, self.film.field
        uniform = phases(config.film.energy())
        marks = np.array(self._marks, dtype=np.float64).reshape(-1, 6)
        frames = np.array(self._frames, dtype=np.float64).reshape(-1, 2)
        return {
            "polar": field.polar,
            "antipolar": field.antipolar,
            "imprint": field.imprint,
            "cell_nm": np.array(config.cell_nm),
            "film_corner_nm": np.full(2, -(config.film.cells - 1) / 2 * config.cell_nm),
            "response_pm": np.array(config.response_pm),
            "orders": np.array([phase.order for phase in uniform]),
            "order_polar": np.array([phase.polar for phase in uniform]),
            "order_antipolar": np.array([phase.antipolar for phase in uniform]),
            "frame_polar_mean": frames[:, 0],
            "frame_up_share": frames[:, 1],
            "mark_position_nm": marks[:, :2],
            "mark_bias_v": marks[:, 2:4],
            "mark_seconds": marks[:, 4],
            "mark_switched_nm2": marks[:, 5],
        }

    # -- images --------------------------------------------------------------------------------

    def _maps(self, faults: frozenset[str]) -> tuple[Float32, Float32]:
        """Response in pm and height in nm at every cell of the film as it is now."""
        config = self._config
        polar = self.film.field.polar
        if "amorphous" in faults:
            polar = np.zeros_like(polar)
        response = np.float32(config.response_pm) * self._tips["tip" in faults].image(polar)
        q33 = electrostriction_q33(config.film.temperature_k)
        stretch = q33 * config.film.polarisation_c_per_m2**2 * config.film.thickness_nm
        return response, self._relief_nm + np.float32(stretch) * polar * polar

    def _raster(self, path: BeamPath) -> tuple[Float64, Float64, Float64]:
        """Cell of the raster's first pixel, and the steps of its rows and columns, each ``(row, col)``."""
        nodes_nm = path.geometry.to_nm(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        nodes = self._cells(nodes_nm - np.array(path.stage_nm))
        return nodes[0], nodes[1] - nodes[0], nodes[2] - nodes[0]

    def _cells(self, positions_nm: Float64) -> Float64:
        """Say in which cell ``(row, col)`` specimen points ``(x, y)`` are, shape ``(n, 2)``."""
        middle = (self._config.film.cells - 1) / 2
        cells: Float64 = positions_nm[:, ::-1] / self._config.cell_nm + middle
        return cells

    def _channels(self, values: Float32, quieter: float, faults: frozenset[str]) -> Float32:
        """Measure response and height ``(2, rows, cols)``: what the lock-in and the feedback give."""
        config = self._config
        noise = self._noise_rng.standard_normal((3, *values.shape[1:]), dtype=np.float32)
        noise[:2] *= np.float32(config.noise_pm * quieter)
        offset = np.array(config.offset_pm, dtype=np.float32)
        if "blank" in faults:
            values, offset = np.zeros_like(values), np.zeros_like(offset)
        turn = config.phase_offset_rad
        turned = np.array([math.cos(turn), math.sin(turn)], dtype=np.float32)
        channels = np.empty_like(noise)
        _lock_in(values[0], noise, offset, turned, channels)
        channels[2] = values[1] + np.float32(config.height_noise_nm * quieter) * noise[2]
        return channels

    def _note_frame(self) -> None:
        polar = self.film.field.polar
        self._frames.append((float(polar.mean()), float((polar > 0).mean())))

    # -- biases --------------------------------------------------------------------------------

    def _swept(self, exposure: Exposure, bias_v: Float64) -> Float64:
        """Sweep the bias at a place; give the in-phase response at each point in pm, noise included."""
        config = self._config
        seconds = exposure.dwell_time_us * 1e-6
        sd_pm = config.noise_pm * math.sqrt(config.dwell_time_us * len(bias_v) / exposure.dwell_time_us)
        response: Float64 = sd_pm * self._noise_rng.standard_normal(len(bias_v))
        if "blank" not in exposure.faults:
            response += config.offset_pm[0] + config.electrostatic_pm_per_v * bias_v
            row, col = self._cells(np.array([exposure.position_nm]))[0].tolist()
            if 0 <= row <= config.film.cells - 1 and 0 <= col <= config.film.cells - 1:
                response += self._film_response((row, col), exposure, bias_v)
        self.film.age(seconds)
        return response

    def _film_response(self, place: tuple[float, float], exposure: Exposure, bias_v: Float64) -> Float64:
        """Drive the film, and write down what was done to it."""
        config, field = self._config, self.film.field
        tip = self._tips["tip" in exposure.faults]
        seen = _weighed(tip(config.film.cells, *place), field.polar)
        was_up = field.polar > 0
        seconds = exposure.dwell_time_us * 1e-6
        change = self.film.drive(
            place, config.tip_radius_nm / config.cell_nm, config.field_per_v * bias_v, seconds, tip
        )
        switched_nm2 = float(((field.polar > 0) != was_up).sum()) * config.cell_nm**2
        least, most = float(bias_v.min()), float(bias_v.max())
        self._marks.append((*exposure.position_nm, least, most, seconds, switched_nm2))
        if "amorphous" in exposure.faults:
            return np.zeros(len(bias_v))
        response: Float64 = config.response_pm * (seen + change)
        return response


class PfmInstrument(ScanningInstrument[PfmSimulator]):
    """A simulated PFM over a ferrielectric film.

    Parameters
    ----------
    config
        Microscope, film and distortion.
    started_at_s
        As of a ``ScanningInstrument``.
    """

    config: PfmConfig

    def __init__(self, config: PfmConfig | None = None, *, started_at_s: float | None = None) -> None:
        config = PfmConfig() if config is None else config
        super().__init__(PfmSimulator(config), config, started_at_s=started_at_s)


def _relief(config: PfmConfig, rng: np.random.Generator) -> Float32:
    """Height of the bare film in nm: its roughness, and a terrace edge anyhow through it."""
    edge = config.film.cells
    rough = config.roughness_nm * smooth_noise(edge, config.roughness_length_nm / config.cell_nm, rng)
    angle, away = rng.uniform(0, math.pi), rng.uniform(-0.2, 0.2)
    v, u = np.mgrid[-0.5 : 0.5 : edge * 1j, -0.5 : 0.5 : edge * 1j]
    terrace = u * math.cos(angle) + v * math.sin(angle) > away
    relief: Float32 = (rough + config.terrace_nm * terrace).astype(np.float32)
    return relief
