"""What a single atom scatters to an annular detector, as an image: the kernel of incoherent imaging.

A dark-field image of a thin specimen is the sum of what its atoms scatter, each of them seen by the same
probe. The atom turns the phase of the wave by ``σ V``, with a parametrised potential; the detector counts
what is then found between its angles. That count is an integral over pairs of directions in the aperture, and
all that the atom and the detector have to say in it is a small matrix: its leading vectors are a few coherent
probes whose intensities add up (Hopkins, Proc. R. Soc. A 217, 408 (1953), has the same of optical images).
So an aberration costs a few Fourier transforms, and no grid is laid over the atom: nothing depends on where
between the pixels it is.

An image cannot vary faster than ``2 α / λ`` along the specimen, whatever the specimen is: two directions
of the aperture are no further apart. So it is known everywhere when it is known on a grid twice as fine as
that needs, and a pixel is computed where its beam was, to 1e-5 of the peak (Greengard and Lee, SIAM Review
46, 443 (2004); the bell is that of Barnett, Magland and af Klinteberg, SIAM J. Sci. Comput. 41, C479 (2019)).

Left out: that the waves of neighbours are not quite incoherent (by multislice, silicon in graphene is 1 %
brighter and the carbons 4 %; of a column of atoms, all that is called channelling), the atom's depth and its
motion, inelastic scattering. Arrays are ``[row, col]`` with y down and x to the right;
frequencies are in 1/nm, angle over wavelength, without 2π.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import scipy.fft as fft
from numba import njit
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import j0, k0, k1

from simulators.multislice import POTENTIAL_V_NM2, Beam
from simulators.scan_distortion import BeamPath
from simulators.scattering_factors import coefficients
from simulators.simulator import Refused

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Complex64 = NDArray[np.complex64]
Complex128 = NDArray[np.complex128]
PairMrad = tuple[float, float]

DETECTORS_MRAD: dict[str, PairMrad] = {"HAADF": (80.0, 200.0), "MAADF": (45.0, 80.0)}

# In units of λ / α, 0.162 nm at 60 kV and 30 mrad. A round aperture's tails fall as r^-3 only: beyond the
# reach lies 1.1 % of what an atom scatters, 1e-5 of its peak a place.
REACH = 9.25
WINDOW = 50.0
GRID_STEP = 1 / 8  # half of what the band 2 α / λ needs
MOST_BLUR_NM = 2.0  # by aberrations, in ray optics
MOST_GRID_PX = 6144  # along an edge: 150 MB

RADIAL_NODES = 14  # in the aperture
RING_NODES = 48  # in the detector
TURNS = 64  # directions around a ring
KEPT = 1 - 1e-6  # of what is scattered

TAPS = 6  # an atom, or a pixel, touches 6 x 6 points of the grid
STEEPNESS = 2.3 * TAPS
BELLS = 1024  # steps between two points of the grid in which the bell is tabulated


class OpticsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes the probe.

    Angles are from x to y in the specimen, so a turned scan sees the probe turned.

    Attributes
    ----------
    voltage_kv
        Of acceleration.
    semi_angle_mrad
        Half of the angle of convergence.
    defocus_nm
        Positive is underfocus: the crossover lies behind the specimen.
    astigmatism_nm, astigmatism_deg
        Twofold astigmatism (A1, C12) and its direction.
    coma_nm, coma_deg
        Axial coma C21, which is three times B2, and its direction.
    spherical_um
        Spherical aberration of third order (C3, Cs).
    source_sigma_nm
        Sd of the source's Gaussian image on the specimen.
    """

    voltage_kv: float = 60.0
    semi_angle_mrad: float = 30.0
    defocus_nm: float = 0.0
    astigmatism_nm: float = 0.0
    astigmatism_deg: float = 0.0
    coma_nm: float = 0.0
    coma_deg: float = 0.0
    spherical_um: float = 0.0
    source_sigma_nm: float = 0.03

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"optics.{name} is {getattr(self, name)}; it takes {least:g} to {most:g}")
        if not self.blur_nm <= MOST_BLUR_NM:
            raise ValueError(
                f"optics: the aberrations blur the probe by {self.blur_nm:.2g} nm; it takes up to "
                f"{MOST_BLUR_NM:g}: take smaller ones or a smaller semi_angle_mrad"
            )

    @property
    def beam(self) -> Beam:
        """Without aberrations."""
        return Beam(voltage_kv=self.voltage_kv, semi_angle_mrad=self.semi_angle_mrad)

    @property
    def resolution_nm(self) -> float:
        """Wavelength over semi-angle; 0.61 of it is the radius of Airy's first dark ring."""
        return self.beam.wavelength_nm / (1e-3 * self.semi_angle_mrad)

    @property
    def blur_nm(self) -> float:
        """How far from the axis rays may meet the specimen."""
        angle = 1e-3 * self.semi_angle_mrad
        second_nm = abs(self.defocus_nm) + abs(self.astigmatism_nm)
        return angle * (second_nm + angle * (abs(self.coma_nm) + angle * 1e3 * abs(self.spherical_um)))

    @property
    def reach_nm(self) -> float:
        """Beyond it from an atom nothing is counted."""
        return REACH * self.resolution_nm + 1.5 * self.blur_nm + 4 * self.source_sigma_nm

    @property
    def is_round(self) -> bool:
        """Whether the probe looks the same from all sides."""
        return self.astigmatism_nm == 0 and self.coma_nm == 0

    def path_nm(self, angle: Float64, azimuth: Float64) -> Float64:
        """How much further a ray goes than in a perfect lens, ``χ λ / 2π``.

        Krivanek, Dellby and Lupini, Ultramicroscopy 78, 1 (1999), in their notation C10 = -defocus.

        Parameters
        ----------
        angle, azimuth
            Direction of the ray, in rad, any shapes.
        """
        twofold = self.astigmatism_nm * np.cos(2 * (azimuth - math.radians(self.astigmatism_deg)))
        onefold = self.coma_nm * np.cos(azimuth - math.radians(self.coma_deg))
        path: Float64 = angle**2 / 2 * (twofold - self.defocus_nm) + angle**3 / 3 * onefold
        return path + angle**4 / 4 * 1e3 * self.spherical_um


_LIMITS = {
    "voltage_kv": (20.0, 300.0),
    "semi_angle_mrad": (5.0, 45.0),
    "defocus_nm": (-1e3, 1e3),
    "astigmatism_nm": (-1e3, 1e3),
    "astigmatism_deg": (-360.0, 360.0),
    "coma_nm": (-1e5, 1e5),
    "coma_deg": (-360.0, 360.0),
    "spherical_um": (-1e5, 1e5),
    "source_sigma_nm": (0.0, 0.2),
}


# -- one atom ------------------------------------------------------------------------------------


def atomic_potential(number: int, radius_nm: Float64) -> Float64:
    """Potential of a free atom, summed along the beam.

    The transform of Lobato and Van Dyck's scattering factor, in closed form.

    Parameters
    ----------
    number
        Atomic number.
    radius_nm
        Distance from the nucleus across the beam, above 0, any shape.

    Returns
    -------
    potential
        In V nm.

    Raises
    ------
    ValueError
        For an element whose coefficients are not known.
    """
    total = np.zeros_like(radius_nm)
    for a, b in zip(*coefficients(number), strict=True):
        x = 2 * math.pi * 10 * radius_nm / math.sqrt(b)
        total += a / b * (k0(x) + x / 2 * k1(x))
    return 2 * math.pi * 10 * POTENTIAL_V_NM2 * total  # a / b in 1/Å is 10 / nm


def scattered_wave(number: int, beam: Beam, k_per_nm: Float64) -> Complex128:
    """Transform of ``exp(i σ V) - 1`` of one atom: what a plane wave becomes at an angle.

    Parameters
    ----------
    number
        Atomic number.
    beam
        Its voltage counts.
    k_per_nm
        Angle over wavelength, shape ``(n,)``.

    Returns
    -------
    wave
        In nm², shape ``(n,)``.
    """
    # At the nucleus V is a logarithm, far out it falls as exp(-r / 0.05 nm): nodes go with the cube.
    node, weight = np.polynomial.legendre.leggauss(800)
    root = (node + 1) / 2
    radius_nm = 1.2 * root**3
    area_nm2 = 2 * math.pi * radius_nm * 1.2 * 3 * root**2 * weight / 2
    turned = np.expm1(1j * beam.phase_per_v_nm * atomic_potential(number, radius_nm))
    wave: Complex128 = j0(2 * math.pi * k_per_nm[:, None] * radius_nm) @ (area_nm2 * turned)
    return wave


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoherentPart:
    """One of the coherent probes whose intensities add up to what an atom scatters to a detector.

    Attributes
    ----------
    order
        How often its phase turns around the aperture.
    weights
        What it multiplies the aperture by: coefficients of Chebyshev polynomials of the angle, which are laid
        from 0 to the aperture's edge; in nm.
    """

    order: int
    weights: Complex128


@functools.lru_cache(maxsize=64)
def coherent_parts(number: int, beam: Beam, detector_mrad: PairMrad) -> tuple[CoherentPart, ...]:
    """Take apart what an atom scatters to a detector.

    Parameters
    ----------
    number
        Atomic number.
    beam
        Voltage and semi-angle; aberrations do not count.
    detector_mrad
        Inner and outer angle.

    Raises
    ------
    ValueError
        For a detector that the undeflected beam falls on, or an element that is not known.
    """
    inner, outer = detector_mrad
    if not beam.semi_angle_mrad < inner < outer:
        raise ValueError(
            f"optics.semi_angle_mrad is {beam.semi_angle_mrad:g}; the detector of {inner:g} to {outer:g} "
            f"mrad takes less than {inner:g}"
        )
    per_mrad = 1e-3 / beam.wavelength_nm
    edge = beam.semi_angle_mrad * per_mrad
    at, weight = np.polynomial.legendre.leggauss(RING_NODES)
    ring = (inner + outer + (outer - inner) * at) / 2 * per_mrad
    share = np.sqrt(2 * math.pi * ring * weight * (outer - inner) / 2 * per_mrad)
    angle = edge * (1 + chebyshev.chebpts1(RADIAL_NODES)) / 2
    known = np.linspace(ring[0] - edge, ring[-1] + edge, 512)
    wave = CubicSpline(known, scattered_wave(number, beam, known))
    turn = 2 * math.pi * np.arange(TURNS) / TURNS
    between = np.sqrt(
        ring[:, None, None] ** 2
        + angle[:, None] ** 2
        - 2 * ring[:, None, None] * angle[:, None] * np.cos(turn)
    )
    # Around the ring, what comes of two directions differs by its turns alone: each order is on its own.
    orders = share[:, None, None] * np.fft.fft(wave(between), axis=2) / TURNS
    found = []
    for order in range(-(TURNS // 4), TURNS // 4 + 1):
        _, strength, probes = np.linalg.svd(orders[:, :, order], full_matrices=False)
        found += [(float(s), order, s * row) for s, row in zip(strength, probes, strict=True)]
    found.sort(key=lambda part: -part[0])
    gathered = np.cumsum([s**2 for s, _, _ in found])
    needed = int(np.searchsorted(gathered, KEPT * gathered[-1])) + 1
    fit = np.linalg.inv(chebyshev.chebvander(chebyshev.chebpts1(RADIAL_NODES), RADIAL_NODES - 1))
    return tuple(CoherentPart(order=m, weights=fit @ row) for _, m, row in found[:needed])


# -- the kernel ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernel:
    """What an atom scatters to a detector, for all places of the probe around it.

    Attributes
    ----------
    share
        Share of the beam's electrons, shape ``(2 n + 1, 2 n + 1)``, float64, along the raster's rows and
        columns; with the beam on the atom it is ``share[n, n]``.
    step_nm
        Distance of two of its points.
    """

    share: Float64
    step_nm: float

    @property
    def reach_nm(self) -> float:
        """Beyond it nothing is counted."""
        return (len(self.share) // 2) * self.step_nm


def probe_intensity(optics: OpticsConfig, *, rotation_rad: float = 0.0) -> Kernel:
    """Intensity of the probe, the source included, ``share`` being that of a point of the grid.

    Parameters
    ----------
    optics
        What makes it.
    rotation_rad
        Of the raster, whose rows and columns it is given along.
    """
    wave, _, _ = _aperture(optics, rotation_rad)
    intensity = np.abs(fft.ifft2(wave, norm="ortho", workers=1)) ** 2
    return _cut(intensity, optics)


def kernel(
    number: int, optics: OpticsConfig, detector_mrad: PairMrad, *, rotation_rad: float = 0.0
) -> Kernel:
    """What one atom of an element scatters to a detector.

    Parameters
    ----------
    number
        Atomic number.
    optics
        What makes the probe.
    detector_mrad
        Inner and outer angle of the detector, beyond the aperture.
    rotation_rad
        Of the raster, whose rows and columns the kernel is given along.

    Raises
    ------
    ValueError
        For a detector that the undeflected beam falls on, or an element that is not known.
    """
    return _kernel(number, optics, detector_mrad, 0.0 if optics.is_round else rotation_rad)


@functools.lru_cache(maxsize=64)
def _kernel(number: int, optics: OpticsConfig, detector_mrad: PairMrad, rotation_rad: float) -> Kernel:
    wave, radius, azimuth = _aperture(optics, rotation_rad)
    inside = np.nonzero(wave)
    radius, azimuth, amplitude = radius[inside], azimuth[inside], wave[inside]
    basis = chebyshev.chebvander(np.minimum(2 * radius - 1, 1.0), RADIAL_NODES - 1)
    step_nm = GRID_STEP * optics.resolution_nm
    intensity = np.zeros(wave.shape)
    part_wave = np.zeros_like(wave)
    for part in coherent_parts(number, optics.beam, detector_mrad):
        turned = np.exp(-1j * part.order * azimuth)
        part_wave[inside] = amplitude * turned * (basis @ part.weights)
        # Forwards: with the beam to the right of the atom, the atom is to the left of the beam.
        there = fft.fft2(part_wave, norm="ortho", workers=1)
        intensity += there.real**2 + there.imag**2
    # On the grid |wave|² sums up to 1; the parts are per area of the specimen.
    return _cut(intensity / step_nm**2, optics)


def _aperture(optics: OpticsConfig, rotation_rad: float) -> tuple[Complex128, Float64, Float64]:
    """Wave in the aperture, ``|.|²`` summing up to 1, and where: radius, 1 at the edge, and azimuth."""
    step_nm = GRID_STEP * optics.resolution_nm
    window_nm = max(WINDOW * optics.resolution_nm, 2.2 * optics.reach_nm)
    size = fft.next_fast_len(math.ceil(window_nm / step_nm))
    k = fft.fftfreq(size, GRID_STEP)  # 1 at the edge of the aperture
    radius = np.hypot(k[:, None], k[None])
    azimuth = np.arctan2(k[:, None], k[None])
    share = np.clip((1 - radius) / (k[1] - k[0]) + 0.5, 0, 1)  # an edge one pixel wide
    path_nm = optics.path_nm(1e-3 * optics.semi_angle_mrad * radius, azimuth + rotation_rad)
    wave = share * np.exp(-2j * math.pi / optics.beam.wavelength_nm * path_nm)
    return wave / np.linalg.norm(wave), radius, azimuth


def _cut(intensity: Float64, optics: OpticsConfig) -> Kernel:
    """Blur by the source, move the middle to the middle, and end softly at the reach."""
    step_nm = GRID_STEP * optics.resolution_nm
    k = fft.fftfreq(len(intensity), step_nm)
    square = k[:, None] ** 2 + k[None, : len(k) // 2 + 1] ** 2
    spectrum = fft.rfft2(intensity, workers=1)
    spectrum *= np.exp(-2 * math.pi**2 * optics.source_sigma_nm**2 * square)
    blurred = fft.irfft2(spectrum, s=intensity.shape, workers=1)
    n = math.ceil(optics.reach_nm / step_nm)
    near = np.arange(-n, n + 1)
    share = blurred[near[:, None], near[None]]
    from_edge = np.clip((n - np.hypot(near[:, None], near[None])) / (0.1 * n), 0, 1)
    share *= (1 - np.cos(math.pi * from_edge)) / 2
    return Kernel(share=share, step_nm=step_nm)


# -- many atoms ----------------------------------------------------------------------------------


def add_atoms(
    image: Float32,
    positions_nm: Float64,
    numbers: Int64,
    kernels: Mapping[int, Kernel],
    path: BeamPath,
    counts: float = 1.0,
) -> None:
    """Add to an image what the atoms scatter, with each pixel where the beam really was.

    Atoms are laid on a grid, blurred there by their kernels, and read off at the place of each pixel:
    the error is 2e-5 of the peak, whatever the places are.

    Parameters
    ----------
    image
        Expected counts, shape ``(rows, cols)``, float32; changed in place.
    positions_nm
        Specimen position ``(x, y)`` of each atom, shape ``(n, 2)``.
    numbers
        Atomic number of each, shape ``(n,)``.
    kernels
        Of each element, of the same optics, for the rotation of the path's raster.
    path
        Where the beam was.
    counts
        What multiplies the kernels: the counts if all electrons were scattered to the detector.

    Raises
    ------
    Refused
        If the field is so much wider than the probe that the grid would have more than 6144 points along an
        edge.
    """
    one = next(iter(kernels.values()))
    step_nm, reach_nm = one.step_nm, one.reach_nm
    steps = np.array(path.geometry.pixel_size_nm) / step_nm
    displacement_px = path.displacement_px()
    lower, upper = _bounds(displacement_px)
    rim = reach_nm / step_nm + TAPS
    corner = lower * steps - rim
    # In whole strides, so that the next frame, which jitters otherwise, has the same grid.
    shape = tuple(_grid_edge(extent) for extent in (upper - lower) * steps + 2 * rim)
    if max(shape) > MOST_GRID_PX:
        raise Refused(
            f"the field takes a grid of {max(shape)} points along an edge, {step_nm:.2g} nm apart; "
            f"this instrument takes {MOST_GRID_PX}: a smaller field of view"
        )
    places = path.places_px(positions_nm) * steps - corner
    inside = ((places >= TAPS) & (places < np.array(shape) - TAPS)).all(axis=1)
    bells = _bells()
    spectrum: Complex64 | None = None
    for number in np.unique(numbers[inside]).tolist():
        points = np.zeros(shape, dtype=np.float32)
        _lay(points, places[inside & (numbers == number)], bells, counts)
        part = fft.rfft2(points, workers=1)
        part *= _response(kernels[number], shape)
        spectrum = part if spectrum is None else spectrum + part
    if spectrum is None:
        return
    grid = fft.irfft2(spectrum, s=shape, overwrite_x=True, workers=1)
    _read(image, grid, displacement_px, steps, corner, bells)


def _grid_edge(extent: float) -> int:
    stride = 32 if extent < 1024 else 128
    return int(fft.next_fast_len(math.ceil(extent / stride + 0.5) * stride, real=True))


@functools.cache
def _bells() -> Float32:
    """The bell at the ``TAPS`` points around a place, for ``BELLS`` places between two points and beyond."""
    place = np.arange(BELLS + 2) / BELLS
    away = np.arange(TAPS) - (TAPS // 2 - 1) - place[:, None]
    return _bell(away).astype(np.float32)


def _bell(away: Float64) -> Float64:
    inside = np.maximum(1 - (2 * away / TAPS) ** 2, 0.0)
    bell: Float64 = np.where(inside > 0, np.exp(STEEPNESS * (np.sqrt(inside) - 1)), 0.0)
    return bell


@functools.lru_cache(maxsize=16)
def _response(kernel: Kernel, shape: tuple[int, int]) -> Complex64:
    """What the transform of points is multiplied by: the kernel's, less the two bells."""
    n = len(kernel.share) // 2
    rows, cols = shape
    wide = np.zeros(shape)
    near = np.arange(-n, n + 1)
    wide[(near % rows)[:, None], near % cols] = kernel.share
    row_f, col_f = fft.fftfreq(rows), fft.rfftfreq(cols)
    response = fft.rfft2(wide, workers=1)
    response /= _bell_transform(row_f)[:, None] ** 2 * _bell_transform(col_f) ** 2
    response[np.hypot(row_f[:, None], col_f[None]) > 2 * GRID_STEP * 1.25] = 0
    single: Complex64 = response.astype(np.complex64)
    return single


def _bell_transform(frequency: Float64) -> Float64:
    """Fourier transform of the bell; ``frequency`` is in turns between two points."""
    node, weight = np.polynomial.legendre.leggauss(64)
    away = TAPS / 2 * node
    transform: Float64 = np.cos(2 * math.pi * frequency[:, None] * away) @ (weight * _bell(away) * TAPS / 2)
    return transform


@njit(cache=True)
def _bounds(displacement_px: Float64) -> tuple[Float64, Float64]:
    """Corners of the rectangle of raster places that the beam was at, ``(row, col)`` each."""
    _, rows, cols = displacement_px.shape
    lower, upper = np.full(2, np.inf), np.full(2, -np.inf)
    for i in range(rows):
        for j in range(cols):
            row, col = i + displacement_px[0, i, j], j + displacement_px[1, i, j]
            lower[0], upper[0] = min(lower[0], row), max(upper[0], row)
            lower[1], upper[1] = min(lower[1], col), max(upper[1], col)
    return lower, upper


@njit(cache=True)
def _lay(points: Float32, places: Float64, bells: Float32, height: float) -> None:
    """Add a bell at each place of the grid."""
    down, right = np.empty(TAPS, dtype=np.float32), np.empty(TAPS, dtype=np.float32)
    for a in range(len(places)):
        row, col = int(places[a, 0]), int(places[a, 1])
        _weigh(down, places[a, 0], bells)
        _weigh(right, places[a, 1], bells)
        for p in range(TAPS):
            for q in range(TAPS):
                points[row + p - (TAPS // 2 - 1), col + q - (TAPS // 2 - 1)] += height * down[p] * right[q]


@njit(cache=True)
def _read(
    image: Float32, grid: Float32, displacement_px: Float64, steps: Float64, corner: Float64, bells: Float32
) -> None:
    """Add to each pixel what the grid is at the place of its beam.

    Most scans move a row of the image as a whole: then the grid's rows are added up but once for it. Where
    there is nothing, the error may be below 0, which no count is expected to be.
    """
    rows, cols = image.shape
    line = np.empty(grid.shape[1], dtype=np.float32)
    down, right = np.empty(TAPS, dtype=np.float32), np.empty(TAPS, dtype=np.float32)
    for i in range(rows):
        across = displacement_px[0, i]
        is_straight = (across == across[0]).all()
        if is_straight:
            _weigh(down, (i + across[0]) * steps[0] - corner[0], bells)
            _mix_rows(line, grid, int((i + across[0]) * steps[0] - corner[0]), down)
        for j in range(cols):
            col = (j + displacement_px[1, i, j]) * steps[1] - corner[1]
            _weigh(right, col, bells)
            total = np.float32(0)
            if is_straight:
                total = _at(line, np.uint64(col), right)
            else:
                row = (i + across[j]) * steps[0] - corner[0]
                _weigh(down, row, bells)
                first = np.uint64(row) - np.uint64(TAPS // 2 - 1)
                for p in range(TAPS):
                    total += down[p] * _at(grid[first + np.uint64(p)], np.uint64(col), right)
            image[i, j] += max(total, np.float32(0))


@njit(cache=True)
def _weigh(weights: Float32, place: float, bells: Float32) -> None:
    """Give the bell at the points around a place; indices are unsigned, which is quicker."""
    step = (place - np.float64(np.uint64(place))) * BELLS
    low = np.uint64(step)
    rest = np.float32(step - np.float64(low))
    for p in range(TAPS):
        weights[p] = bells[low, p] + rest * (bells[low + np.uint64(1), p] - bells[low, p])


@njit(cache=True)
def _mix_rows(line: Float32, grid: Float32, row: int, down: Float32) -> None:
    """Read off a whole row at a place between the grid's rows."""
    line[:] = 0
    for p in range(TAPS):
        above = grid[row - (TAPS // 2 - 1) + p]
        for c in range(len(line)):
            line[c] += down[p] * above[c]


@njit(cache=True)
def _at(line: Float32, col: np.uint64, right: Float32) -> np.floating:
    left = col - np.uint64(TAPS // 2 - 1)
    total = np.float32(0)
    for q in range(TAPS):
        total += right[q] * line[left + np.uint64(q)]
    return total
