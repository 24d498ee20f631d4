"""What patterns must come to, computed another way than the simulator does; how far one is from another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from simulators.multislice import Beam

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def convolved_centre_of_mass(potential: Float64, probe: ArrayLike, beam: Beam, pixel_nm: float) -> Float64:
    """Centre of mass at every pixel of a thin specimen at once, by two Fourier transforms.

    For a phase object ``<k>(R) = (σ / 2π) ∫ |ψ(r - R)|² ∇V(r) dr`` holds exactly (Ehrenfest's theorem; Müller
    et al., Nature Communications 5, 5653 (2014)).

    Parameters
    ----------
    potential
        Projected, in V nm, on a grid that goes on periodically, shape ``(rows, cols)``.
    probe
        Wave or its absolute value in the middle of a window no larger than the grid.
    beam, pixel_nm
        What it is looked at with; pixel of both.

    Returns
    -------
    centre
        ``(x, y)`` in 1/nm with the probe on each pixel, shape ``(rows, cols, 2)``.
    """
    rows, cols = potential.shape
    intensity = np.abs(np.asarray(probe)) ** 2
    edge = len(intensity)
    around = np.zeros((rows, cols))
    around[:edge, :edge] = intensity / intensity.sum()
    around = np.roll(around, (-(edge // 2), -(edge // 2)), axis=(0, 1))
    row_k, col_k = np.fft.fftfreq(rows, pixel_nm)[:, None], np.fft.rfftfreq(cols, pixel_nm)[None]
    smeared = np.fft.rfft2(potential) * np.fft.rfft2(around).conj()
    gradients = [np.fft.irfft2(2j * math.pi * k * smeared, s=(rows, cols)) for k in (col_k, row_k)]
    centre: Float64 = beam.phase_per_v_nm / (2 * math.pi) * np.stack(gradients, axis=-1)
    return centre


def turned_distance(
    first: Float32, second: Float32, *, radius_px: float | None = None
) -> tuple[float, float]:
    """Say how different two patterns are when one is turned onto the other, and by how much it was.

    Square roots of counts are compared, whose noise is the same everywhere: two draws of one pattern are
    about 0.7 counts^½ apart in a pixel that is bright.

    Parameters
    ----------
    first, second
        Shape ``(rows, cols)``, the undeflected beam in the middle.
    radius_px
        How far out they are compared; None is to the edge. The edge of the bright disc is made of pixels and
        does not turn: where the specimen scatters little, stay inside of it.

    Returns
    -------
    distance, angle_rad
        Root mean square over the disc, in counts^½; the angle from x to y that takes the first to the second.
    """
    around = [_polar(np.sqrt(pattern), radius_px) for pattern in (first, second)]
    weight = np.arange(1, len(around[0]) + 1)[:, None]  # a ring has pixels as it is long
    spectra = [np.fft.rfft(ring, axis=1) for ring in around]
    together = np.fft.irfft((weight * spectra[1] * spectra[0].conj()).sum(axis=0), n=around[0].shape[1])
    best = int(np.argmax(together))
    squares = sum(float((weight * ring**2).sum()) for ring in around) - 2 * float(together[best])
    distance = math.sqrt(max(0.0, squares) / (weight.sum() * around[0].shape[1]))
    turn = math.remainder(2 * math.pi * best / around[0].shape[1], 2 * math.pi)
    return distance, turn


def _polar(pattern: Float32, radius_px: float | None) -> Float64:
    """Rings of a pattern around its middle, one pixel apart, shape ``(rings, 360)``."""
    edge = len(pattern)
    rings = np.arange(1, int(radius_px or edge / 2 - 1) + 1)[:, None]
    angles = np.linspace(0, 2 * math.pi, 360, endpoint=False)
    places = [edge // 2 + rings * np.sin(angles), edge // 2 + rings * np.cos(angles)]
    polar: Float64 = ndimage.map_coordinates(pattern.astype(np.float64), places, order=1)
    return polar
