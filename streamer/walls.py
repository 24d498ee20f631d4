"""Points on the domain walls of a piezoresponse: where its sign changes, and how the wall runs there."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamer.messages import Float32

Float64 = NDArray[np.float64]

SMOOTHED_PX = 1.2
_BESIDE_PX = 4.0  # so far from a wall its two domains answer as they do


class Walls(NamedTuple):
    """Points on walls.

    Attributes
    ----------
    positions_px
        ``(row, col)``, shape ``(n, 2)``.
    direction_rad
        Along the wall, from columns (x) towards rows (y), 0 to π, shape ``(n,)``.
    sd_px
        Of the position across the wall, shape ``(n,)``.
    height
        The weaker response of the two domains, four pixels beside the wall, shape ``(n,)``.
    significance
        Slope of the response across the wall, in standard deviations of its noise, shape ``(n,)``.
    """

    positions_px: Float64
    direction_rad: Float64
    sd_px: Float64
    height: Float64
    significance: Float64


def wall_points(response_HW: Float32) -> Walls:
    """Find every place where a wall crosses a line between two pixels.

    Parameters
    ----------
    response_HW
        Signed response, shape ``(rows, cols)``, float32: above 0 in domains of one direction.

    Returns
    -------
    walls
        About one and a half points for each pixel that a wall is long; none for a picture with one sign.
    """
    smooth = ndimage.gaussian_filter(response_HW, SMOOTHED_PX, mode="nearest")
    positions = _crossings(smooth)
    slope = np.stack([_read(along, positions) for along in np.gradient(smooth)], axis=1)
    steepness = np.maximum(np.hypot(*slope.T), 1e-30)
    normal = slope / steepness[:, None]
    either = [np.abs(_read(smooth, positions + side * normal)) for side in (-_BESIDE_PX, _BESIDE_PX)]
    noise = _pixel_noise(response_HW)
    # White noise behind a Gaussian, and its derivative.
    level_noise = noise / (2 * math.sqrt(math.pi) * SMOOTHED_PX)
    slope_noise = noise / (math.sqrt(8 * math.pi) * SMOOTHED_PX**2)
    return Walls(
        positions_px=positions,
        direction_rad=np.arctan2(normal[:, 1], -normal[:, 0]) % math.pi,
        sd_px=level_noise / steepness,
        height=np.minimum(*either),
        significance=steepness / max(slope_noise, 1e-30),
    )


def _crossings(smooth: Float32) -> Float64:
    """Places ``(row, col)`` at which lines between neighbouring pixels cross zero, ``(n, 2)``."""
    places = []
    for axis in (0, 1):
        before, after = (smooth[:-1], smooth[1:]) if axis == 0 else (smooth[:, :-1], smooth[:, 1:])
        at = np.argwhere((before > 0) != (after > 0))
        low, high = before[at[:, 0], at[:, 1]], after[at[:, 0], at[:, 1]]
        place = at.astype(np.float64)
        place[:, axis] += low / (low - high)
        places.append(place)
    return np.concatenate(places)


def _read(picture: Float32, positions: Float64) -> Float64:
    read: Float64 = ndimage.map_coordinates(picture, positions.T, order=1, mode="nearest", output=np.float64)
    return read


def _pixel_noise(picture: Float32) -> float:
    """Standard deviation of a pixel's noise, from the twist of blocks of 2 × 2, which walls hardly have.

    Of blocks and not of pixels: a frame that was resampled has noise that neighbours share.
    """
    rows, cols = (n // 2 * 2 for n in picture.shape)
    if min(rows, cols) < 4:
        return 0.0
    block = picture[:rows, :cols].reshape(rows // 2, 2, cols // 2, 2).mean(axis=(1, 3))
    twist = block[1:, 1:] - block[1:, :-1] - block[:-1, 1:] + block[:-1, :-1]
    # The twist has twice the sd of a block, whose mean has half that of a pixel.
    return float(1.4826 * np.median(np.abs(twist)))
