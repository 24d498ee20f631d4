"""Fast electrons through atoms: parametrised potentials, a convergent beam, and its diffraction patterns.

What is computed is elastic and coherent: each layer of atoms turns the phase of the wave by ``σ V``, and
between layers the wave spreads (Cowley and Moodie's multislice). Around each place of the probe only a
window of the specimen is looked at, so a pattern costs two small Fourier transforms and two more for each
further layer, however large the field is. The probe moves by whole pixels with the window and by the rest
in its phase: no pattern is interpolated.

Left out: thermal diffuse and inelastic scattering (thermal motion only smears the potential), a source of
finite size, and bonds (the atoms are neutral and free). Arrays are ``[row, col]`` with y down and x to the
right, as everywhere; ``k`` is in 1/nm, angle over wavelength, without 2π.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft as fft
from numba import njit
from numpy.typing import NDArray

from simulators.scattering_factors import scattering_factor_nm
from streamer.messages import PairNm

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]
Int64 = NDArray[np.int64]

REST_ENERGY_EV = 510998.95
PLANCK_LIGHT_EV_NM = 1239.841984  # h c
BOHR_RADIUS_NM = 0.0529177211
# h² / (2π m e): potential in V over scattering amplitude in nm and its volume in nm³.
POTENTIAL_V_NM2 = PLANCK_LIGHT_EV_NM**2 / (2 * math.pi * REST_ENERGY_EV)

BAND = 2 / 3  # of the highest frequency of the grid: products of two such waves do not fold back into it
MOST_PX = 4096  # along an edge of the specimen's grid
# Atoms are laid as Gaussians on a grid twice as fine and the Gaussian is taken out again (Greengard and Lee,
# SIAM Review 46, 443 (2004)): with 13 x 13 points an atom anywhere between the pixels is right to 1e-6.
SPREAD_PX = 6
SPREAD_SD = math.sqrt(SPREAD_PX * 2 / (2 * math.pi * 1.5))
# The aperture's edge. Sharp, the area of the disc depends on how the pixels lie; a pixel wide, it cuts the
# probe's tails to the window: the centre of mass of graphene at 30 mrad, 2.56 nm, is then 1.4 % too large
# against a window of 10 nm, with half a pixel 0.2 %.
EDGE_PX = 0.5
_BATCH = 8  # patterns worked on at once: what they need stays in the cache


# -- atoms ---------------------------------------------------------------------------------------


def projected_potential(
    positions_nm: Float64,
    numbers: Int64,
    *,
    corner_nm: PairNm,
    shape: tuple[int, int],
    pixel_nm: float,
    thermal_sd_nm: float = 0.0,
) -> Float64:
    """Potential of atoms, summed along the beam, at the pixels of a grid that goes on periodically.

    Parameters
    ----------
    positions_nm
        ``(x, y)``, shape ``(n, 2)``.
    numbers
        Atomic number of each.
    corner_nm
        Where the first pixel is, ``(x, y)``.
    shape
        ``(rows, cols)``.
    pixel_nm
        Edge of a pixel; what varies faster than two pixels is left out.
    thermal_sd_nm
        Sd of the atoms' motion along each axis, which smears the potential (Debye and Waller).

    Returns
    -------
    potential
        In V nm, shape ``(rows, cols)``.
    """
    rows, cols = shape
    row_k, col_k = fft.fftfreq(rows, pixel_nm)[:, None], fft.rfftfreq(cols, pixel_nm)[None]
    square = row_k**2 + col_k**2
    total = np.zeros(square.shape, dtype=np.complex128)
    places = (np.asarray(positions_nm, dtype=np.float64) - np.array(corner_nm))[:, ::-1] / pixel_nm
    for number in np.unique(numbers):
        factor = scattering_factor_nm(int(number), np.sqrt(square))
        total += factor * _structure_factor(places[numbers == number], shape)
    total *= POTENTIAL_V_NM2 / pixel_nm**2 * np.exp(-2 * math.pi**2 * thermal_sd_nm**2 * square)
    potential: Float64 = fft.irfft2(total, s=shape, workers=1)
    return potential


def _structure_factor(places_px: Float64, shape: tuple[int, int]) -> NDArray[np.complex128]:
    """Fourier transform of points at ``(row, col)``, as ``rfft2`` orders it, to 1e-6 of one point."""
    rows, cols = shape
    fine = np.zeros((2 * rows, 2 * cols))
    _spread(fine, 2 * places_px, SPREAD_SD)
    transform = fft.rfft2(fine, workers=1)
    row_k, col_k = fft.fftfreq(rows)[:, None], fft.rfftfreq(cols)[None]
    gaussian = np.exp(-0.5 * (math.pi * SPREAD_SD) ** 2 * (row_k**2 + col_k**2))
    kept = transform[np.rint(row_k[:, 0] * rows).astype(np.int64), : cols // 2 + 1]
    factor: NDArray[np.complex128] = kept / (2 * math.pi * SPREAD_SD**2 * gaussian)
    return factor


@njit(cache=True)
def _spread(image: Float64, places: Float64, sd: float) -> None:
    """Add a Gaussian at each place, on an image that goes on periodically."""
    rows, cols = image.shape
    width = 2 * SPREAD_PX + 1
    along = np.empty(width)
    for n in range(len(places)):
        row, col = int(np.rint(places[n, 0])), int(np.rint(places[n, 1]))
        for j in range(width):
            along[j] = np.exp(-0.5 * ((col + j - SPREAD_PX - places[n, 1]) / sd) ** 2)
        for i in range(width):
            across = np.exp(-0.5 * ((row + i - SPREAD_PX - places[n, 0]) / sd) ** 2)
            at_row = (row + i - SPREAD_PX) % rows
            for j in range(width):
                image[at_row, (col + j - SPREAD_PX) % cols] += across * along[j]


# -- the beam --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """A convergent beam of electrons.

    Attributes
    ----------
    voltage_kv
        Of acceleration.
    semi_angle_mrad
        Half of the angle of convergence.
    defocus_nm
        Positive is underfocus: the crossover lies behind the specimen.
    spherical_um
        Spherical aberration of third order.
    astigmatism_nm, astigmatism_rad
        Twofold astigmatism and its direction, from x to y.
    """

    voltage_kv: float = 60.0
    semi_angle_mrad: float = 30.0
    defocus_nm: float = 0.0
    spherical_um: float = 0.0
    astigmatism_nm: float = 0.0
    astigmatism_rad: float = 0.0

    @property
    def wavelength_nm(self) -> float:
        """Relativistic de Broglie wavelength: 0.0048661 nm at 60 kV."""
        energy_ev = 1e3 * self.voltage_kv
        return PLANCK_LIGHT_EV_NM / math.sqrt(energy_ev * (energy_ev + 2 * REST_ENERGY_EV))

    @property
    def phase_per_v_nm(self) -> float:
        """Interaction σ: how far a potential turns the wave's phase, in rad / (V nm).

        ``2π m e λ / h²`` with the relativistic mass (Kirkland, Advanced Computing in Electron
        Microscopy (2010), eq. 5.6).
        """
        mass = 1 + 1e3 * self.voltage_kv / REST_ENERGY_EV
        return self.wavelength_nm * mass / POTENTIAL_V_NM2

    def aperture(self, row_k: Float64, col_k: Float64) -> NDArray[np.complex128]:
        """Wave in the aperture, ``|.|²`` summing up to 1.

        Parameters
        ----------
        row_k, col_k
            Frequencies in 1/nm along y and x, evenly spaced, shapes ``(rows,)`` and ``(cols,)``.
        """
        y, x = row_k[:, None] * self.wavelength_nm, col_k[None] * self.wavelength_nm  # rad
        angle = np.hypot(y, x)
        step = self.wavelength_nm * abs(row_k[1] - row_k[0])
        share = np.clip((1e-3 * self.semi_angle_mrad - angle) / (EDGE_PX * step) + 0.5, 0, 1)
        if not share.any():
            raise ValueError(f"semi_angle_mrad is {self.semi_angle_mrad}; it is smaller than a pixel")
        azimuth = np.arctan2(y, x) - self.astigmatism_rad
        path_nm = angle**2 / 2 * (self.astigmatism_nm * np.cos(2 * azimuth) - self.defocus_nm)
        path_nm = path_nm + angle**4 / 4 * 1e3 * self.spherical_um
        wave = share * np.exp(-2j * math.pi / self.wavelength_nm * path_nm)
        aperture: NDArray[np.complex128] = wave / math.sqrt((share**2).sum())
        return aperture


# -- the specimen ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slab:
    """A specimen cut into layers across the beam, as the wave meets it.

    Attributes
    ----------
    transmission
        What each kind of layer multiplies the wave by, shape ``(kinds, rows, cols)``, complex64.
    order
        Kind of each layer, in the order in which the beam meets them.
    layer_nm
        Distance of two layers.
    pixel_nm
        Edge of a pixel of the grid.
    corner_nm
        Where the first pixel is, ``(x, y)``; off the grid there is vacuum.
    """

    transmission: Complex64
    order: tuple[int, ...]
    layer_nm: float
    pixel_nm: float
    corner_nm: PairNm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """Atoms that the beam meets at once.

    Attributes
    ----------
    positions_nm
        ``(x, y)``, shape ``(n, 2)``.
    numbers
        Atomic number of each, shape ``(n,)``.
    """

    positions_nm: Float64
    numbers: Int64


def slab(
    layers: Sequence[Layer],
    order: Sequence[int],
    beam: Beam,
    *,
    lower_nm: PairNm,
    upper_nm: PairNm,
    pixel_nm: float,
    layer_nm: float = 0.2,
    thermal_sd_nm: float = 0.0,
) -> Slab:
    """Make ready what the beam goes through.

    Parameters
    ----------
    layers
        The different layers of atoms.
    order
        Which of them the beam meets, one after the other.
    beam
        Its voltage says how much the atoms turn the phase.
    lower_nm, upper_nm
        Corners ``(x, y)`` of the rectangle that windows will look into; a little more is made.
    pixel_nm, layer_nm, thermal_sd_nm
        As of a ``Slab`` and of ``projected_potential``.

    Raises
    ------
    ValueError
        If the grid would have more than 4096 pixels along an edge.
    """
    shape = tuple(
        fft.next_fast_len(math.ceil((upper - lower) / pixel_nm) + 1, real=True)
        for lower, upper in zip(lower_nm[::-1], upper_nm[::-1], strict=True)
    )
    if max(shape) > MOST_PX:
        raise ValueError(
            f"the specimen would be {shape[0]} x {shape[1]} pixels of {pixel_nm:g} nm; it takes up to "
            f"{MOST_PX}: take a smaller field of view or a smaller camera angle"
        )
    rows, cols = shape
    transmission = np.empty((len(layers), rows, cols), dtype=np.complex64)
    for kind, layer in enumerate(layers):
        potential = projected_potential(
            layer.positions_nm,
            layer.numbers,
            corner_nm=lower_nm,
            shape=(rows, cols),
            pixel_nm=pixel_nm,
            thermal_sd_nm=thermal_sd_nm,
        )
        transmission[kind] = np.exp(1j * beam.phase_per_v_nm * potential)
        if len(order) > 1:
            transmission[kind] = _within_band(transmission[kind])
    return Slab(
        transmission=transmission,
        order=tuple(order),
        layer_nm=layer_nm,
        pixel_nm=pixel_nm,
        corner_nm=lower_nm,
    )


def _within_band(transmission: Complex64) -> Complex64:
    """Leave out what the next product would fold back."""
    rows, cols = transmission.shape
    radius = np.hypot(fft.fftfreq(rows)[:, None], fft.fftfreq(cols)[None])
    spectrum = fft.fft2(transmission, workers=1)
    spectrum[radius > BAND / 2] = 0
    kept: Complex64 = fft.ifft2(spectrum, workers=1)
    return kept


# -- patterns --------------------------------------------------------------------------------------


class Diffraction:
    """Diffraction patterns of a specimen at any places of the probe.

    Parameters
    ----------
    slab
        The specimen.
    beam
        What it is looked at with.
    window_px
        Edge of the window and of the patterns, even. The window is ``window_px * slab.pixel_nm`` wide; a
        pixel of the pattern is 1 over that, and the highest frequency ``0.5 / slab.pixel_nm``.

    Attributes
    ----------
    slab, beam, window_px
        As given.
    k_per_nm
        Frequency of each row (along y) and of each column (along x) of a pattern, shape ``(window_px,)``;
        0 is at ``window_px // 2``.
    """

    def __init__(self, slab: Slab, beam: Beam, window_px: int = 128) -> None:
        self.slab, self.beam, self.window_px = slab, beam, window_px
        self.k_per_nm: Float64 = fft.fftshift(fft.fftfreq(window_px, slab.pixel_nm))
        k = fft.ifftshift(self.k_per_nm)
        aperture = beam.aperture(k, k)
        self._rows, self._cols = np.nonzero(aperture)
        # The probe stands in the middle of its window, not in its corner.
        sign = 1 - 2 * ((self._rows + self._cols) % 2)
        self._aperture = (sign * aperture[self._rows, self._cols]).astype(np.complex64)
        self._propagator = self._spreading(k)

    def probe(self) -> Complex64:
        """Wave of the probe in the middle of its window, ``|.|²`` summing up to 1, ``(window, window)``."""
        probe: Complex64 = self._probes(np.zeros((1, 2)))[0]
        return probe

    def patterns(self, places_nm: Float64) -> Float32:
        """Diffract at each place.

        Parameters
        ----------
        places_nm
            Specimen points ``(x, y)`` under the probe, shape ``(n, 2)``.

        Returns
        -------
        patterns
            Share of the beam's electrons in each pixel, shape ``(n, window_px, window_px)``, float32; rows
            go along y, columns along x, the undeflected beam is at ``window_px // 2``. What is scattered
            beyond the band of a thick specimen is missing in the sum.
        """
        places = np.asarray(places_nm, dtype=np.float64).reshape(-1, 2)
        seen = np.empty((len(places), self.window_px, self.window_px), dtype=np.float32)
        in_px = (places - np.array(self.slab.corner_nm))[:, ::-1] / self.slab.pixel_nm
        nearest = np.floor(in_px + 0.5)
        corners = nearest.astype(np.int64) - self.window_px // 2
        for start in range(0, len(places), _BATCH):
            part = slice(start, start + _BATCH)
            wave = self._probes(in_px[part] - nearest[part])
            _intensities(self._through(wave, corners[part]), seen[part])
        return seen

    def _probes(self, shift_px: Float64) -> Complex64:
        """Probes that are off the middle by ``(row, col)``, shape ``(n, window, window)``."""
        k = np.fft.fftfreq(self.window_px)
        turns = np.exp(-2j * math.pi * shift_px[:, :, None] * k).astype(np.complex64)
        wave = np.zeros((len(shift_px), self.window_px, self.window_px), dtype=np.complex64)
        _fill(wave, self._aperture, self._rows, self._cols, turns)
        probes: Complex64 = fft.ifft2(wave, norm="ortho", overwrite_x=True, workers=1)
        return probes

    def _through(self, wave: Complex64, corners: Int64) -> Complex64:
        """Send waves through the slab; give them as they are far behind it."""
        last = len(self.slab.order) - 1
        for layer, kind in enumerate(self.slab.order):
            _transmit(wave, self.slab.transmission[kind], corners)
            wave = fft.fft2(wave, norm="ortho", overwrite_x=True, workers=1)
            if last:  # also behind the last layer: what lies beyond the band is folded back
                _multiply(wave, self._propagator)
            if layer < last:
                wave = fft.ifft2(wave, norm="ortho", overwrite_x=True, workers=1)
        return wave

    def _spreading(self, k: Float64) -> Complex64:
        """What the way to the next layer multiplies the transformed wave by."""
        square = k[:, None] ** 2 + k[None] ** 2
        turn = np.exp(-1j * math.pi * self.beam.wavelength_nm * self.slab.layer_nm * square)
        turn[square > (BAND * 0.5 / self.slab.pixel_nm) ** 2] = 0
        spreading: Complex64 = turn.astype(np.complex64)
        return spreading


@njit(cache=True)
def _fill(wave: Complex64, aperture: Complex64, rows: Int64, cols: Int64, turns: Complex64) -> None:
    for n in range(len(wave)):
        for i in range(len(aperture)):
            wave[n, rows[i], cols[i]] = aperture[i] * turns[n, 0, rows[i]] * turns[n, 1, cols[i]]


@njit(cache=True)
def _transmit(wave: Complex64, transmission: Complex64, corners: Int64) -> None:
    """Multiply each window by what it looks at; beyond the grid there is vacuum."""
    edge = wave.shape[1]
    rows, cols = transmission.shape
    for n in range(len(wave)):
        top, left = corners[n]
        first, last = max(0, -left), min(edge, cols - left)
        for i in range(max(0, -top), min(edge, rows - top)):
            for j in range(first, last):
                wave[n, i, j] *= transmission[top + i, left + j]


@njit(cache=True)
def _multiply(wave: Complex64, factor: Complex64) -> None:
    for n in range(len(wave)):
        for i in range(wave.shape[1]):
            for j in range(wave.shape[2]):
                wave[n, i, j] *= factor[i, j]


@njit(cache=True)
def _intensities(wave: Complex64, seen: Float32) -> None:
    """Square the waves, with the undeflected beam in the middle."""
    edge = wave.shape[1]
    half = edge // 2
    for n in range(len(wave)):
        for i in range(edge):
            row = i - half if i >= half else i + half
            for j in range(half):
                value = wave[n, row, j]
                seen[n, i, j + half] = value.real * value.real + value.imag * value.imag
                value = wave[n, row, j + half]
                seen[n, i, j] = value.real * value.real + value.imag * value.imag
