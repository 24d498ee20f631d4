"""Smooth, shift and judge an image, in float32 and at the cost of reading it a few times.

Every frame goes through these several times, so they are compiled; what they return agrees with the
functions of ``scipy.ndimage`` that they stand for.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamer.messages import Float32

Float64 = NDArray[np.float64]

# Sums may be taken in another order; infinities and NaN stay what they are.
REORDERED = {"reassoc", "contract", "nsz"}
_REACH_SD = 4.0
_WIDTHS_PX = (1.0, 1.5, 2.0, 3.0, 4.5)
# Rows and columns from the middle of an image that are enough to tell noise from structure.
_ENOUGH_PX = 256


def smoothed(image: Float32, sigma_px: float) -> Float32:
    """Smooth an image by a Gaussian; the edges are mirrored.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32.
    sigma_px
        Standard deviation of the Gaussian.
    """
    return smoothed_down(smoothed_along(image, sigma_px), sigma_px)


def smoothed_along(image: Float32, sigma_px: float) -> Float32:
    """Smooth each row by a Gaussian, rows kept apart; see ``smoothed``."""
    out = np.empty(image.shape, dtype=np.float32)
    _smooth_along(np.ascontiguousarray(image), _gaussian(sigma_px), out)
    return out


def smoothed_down(image: Float32, sigma_px: float) -> Float32:
    """Smooth each column by a Gaussian, columns kept apart; see ``smoothed``."""
    out = np.empty(image.shape, dtype=np.float32)
    _smooth_down(np.ascontiguousarray(image), _gaussian(sigma_px), out)
    return out


def gradients(image: Float32) -> Float32:
    """Say the gradients along (row, col) by differences of neighbours, ``(2, rows, cols)``."""
    found = np.empty((2, *image.shape), dtype=np.float32)
    _fill_gradients(np.ascontiguousarray(image), found)
    return found


def displaced(image: Float32, displacement_px: Float64) -> Float32:
    """Sample ``image`` at ``u + d`` by cubic convolution: put back what appears displaced by ``d``.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32; the edges repeat.
    displacement_px
        ``(row, col)``, shape ``(2,)`` for the whole image or ``(2, rows)`` for each row.
    """
    each = np.asarray(displacement_px, dtype=np.float64).reshape(2, -1)
    down, along = np.ascontiguousarray(np.broadcast_to(each, (2, image.shape[0])))
    # First along the rows: an offset belongs to the row in which it was scanned.
    if along.any():
        image = _moved_along(np.ascontiguousarray(image), along)
    return _moved_down(np.ascontiguousarray(image), down) if down.any() else image


def pixel_noise(image: Float32) -> float:
    """Say the standard deviation of an image's white noise, by what four neighbours do not share."""
    image = middle(image)
    corners = (image[1:, 1:] - image[1:, :-1] - image[:-1, 1:] + image[:-1, :-1]) / 2
    # Every second of these overlapping differences along each axis tells all but a little.
    size = np.abs(corners[::2, ::2]).ravel()
    half = size.size // 2
    noise = float(np.partition(size, half)[half]) / 0.6745
    # Few counts: more than half of the differences are 0.
    return noise if noise > 0 else float(corners.std())


def telling_width(image: Float32, noise: float | None = None) -> float:
    """Say how far an image is to be smoothed for its gradients to be those of the specimen, in pixels.

    The least width at which noise makes less than a fifth of their energy.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32.
    noise
        Its ``pixel_noise``, if that is known.
    """
    image = middle(image)
    noise2 = (pixel_noise(image) if noise is None else noise) ** 2
    for width in _WIDTHS_PX[:-1]:
        energy = min(float(np.vdot(one, one)) / one.size for one in gradients(smoothed(image, width)))
        if noise2 / (8 * math.pi * width**4) < 0.2 * energy:
            return width
    return _WIDTHS_PX[-1]


def middle(image: Float32) -> Float32:
    """Cut out what is enough to tell noise from structure."""
    top, left = (max(0, (n - _ENOUGH_PX) // 2) for n in image.shape[-2:])
    return image[..., top : top + _ENOUGH_PX, left : left + _ENOUGH_PX]


def _gaussian(sigma_px: float) -> Float32:
    """Sample a Gaussian from its middle outwards, of sum 1 over both sides."""
    place = np.arange(int(_REACH_SD * sigma_px + 0.5) + 1)
    weight = np.exp(-(place**2) / (2 * sigma_px**2))
    taps: Float32 = (weight / (2 * weight.sum() - weight[0])).astype(np.float32)
    return taps


@njit(cache=True)
def _mirrored(place: int, size: int) -> int:
    """Say which pixel lies at a place beyond the edge, if the image is mirrored there."""
    place = place % (2 * size)
    return place if place < size else 2 * size - 1 - place


@njit(cache=True, fastmath=REORDERED)
def _smooth_along(image: Float32, taps: Float32, out: Float32) -> None:
    reach, cols = len(taps) - 1, image.shape[1]
    line = np.empty(cols + 2 * reach, dtype=np.float32)
    # Views, for an index that is a difference might count from the end, and takes a branch.
    here = line[reach : reach + cols]
    for row in range(image.shape[0]):
        here[:] = image[row]
        for beyond in range(reach):
            line[reach - 1 - beyond] = image[row, _mirrored(-1 - beyond, cols)]
            line[reach + cols + beyond] = image[row, _mirrored(cols + beyond, cols)]
        into = out[row]
        _scale(here, taps[0], into)
        for tap in range(1, reach + 1):
            _add_pair(line[reach - tap :], line[reach + tap :], taps[tap], into)


@njit(cache=True, fastmath=REORDERED)
def _smooth_down(image: Float32, taps: Float32, out: Float32) -> None:
    rows = image.shape[0]
    for row in range(rows):
        into = out[row]
        _scale(image[row], taps[0], into)
        for tap in range(1, len(taps)):
            above, below = image[_mirrored(row - tap, rows)], image[_mirrored(row + tap, rows)]
            _add_pair(above, below, taps[tap], into)


@njit(cache=True, fastmath=REORDERED)
def _scale(line: Float32, factor: float, out: Float32) -> None:
    for col in range(out.size):
        out[col] = factor * line[col]


@njit(cache=True, fastmath=REORDERED)
def _add_pair(one: Float32, other: Float32, factor: float, out: Float32) -> None:
    for col in range(out.size):
        out[col] += factor * (one[col] + other[col])


@njit(cache=True, fastmath=REORDERED)
def _fill_gradients(image: Float32, out: Float32) -> None:
    rows, cols = image.shape
    half, one = np.float32(0.5), np.float32(1.0)
    for row in range(rows):
        first, last = max(row - 1, 0), min(row + 1, rows - 1)
        above, below, by_row = image[first], image[last], out[0, row]
        scale = half if last - first == 2 else one
        for col in range(cols):
            by_row[col] = scale * (below[col] - above[col])
        line, by_col = image[row], out[1, row]
        by_col[0], by_col[cols - 1] = line[1] - line[0], line[cols - 1] - line[cols - 2]
        middle, after = by_col[1:], line[2:]
        for col in range(cols - 2):
            middle[col] = half * (after[col] - line[col])


@njit(cache=True)
def cubic(x: float) -> tuple[float, float, float, float]:
    """Weights of the 4 pixels around a place ``x`` in [0, 1) beyond the second (Keys 1981, eq. 15)."""
    return (
        ((-0.5 * x + 1.0) * x - 0.5) * x,
        (1.5 * x - 2.5) * x * x + 1.0,
        ((-1.5 * x + 2.0) * x + 0.5) * x,
        (0.5 * x - 0.5) * x * x,
    )


@njit(cache=True, fastmath=REORDERED)
def fill_line(out: Float32, source: Float32, left: int) -> None:
    """Fill a line with a row from column ``left`` on; its edges repeat."""
    cols, wide = source.size, out.size
    start = min(max(0, -left), wide)
    stop = max(start, min(wide, cols - left))
    out[:start] = source[0]
    into, inside = out[start:stop], source[start + left : stop + left]
    for col in range(stop - start):
        into[col] = inside[col]
    out[stop:] = source[cols - 1]


@njit(cache=True, fastmath=REORDERED)
def _moved_along(image: Float32, by: Float64) -> Float32:
    rows, cols = image.shape
    result = np.empty_like(image)
    line = np.empty(cols + 3, dtype=np.float32)
    for row in range(rows):
        whole = math.floor(by[row])
        fill_line(line, image[row], whole - 1)
        weights = cubic(by[row] - whole)
        a, b = np.float32(weights[0]), np.float32(weights[1])
        c, d = np.float32(weights[2]), np.float32(weights[3])
        into = result[row]
        for col in range(cols):
            into[col] = a * line[col] + b * line[col + 1] + c * line[col + 2] + d * line[col + 3]
    return result


@njit(cache=True, fastmath=REORDERED)
def _moved_down(image: Float32, by: Float64) -> Float32:
    rows, cols = image.shape
    result = np.empty_like(image)
    for row in range(rows):
        whole = math.floor(by[row])
        weights = cubic(by[row] - whole)
        a, b = np.float32(weights[0]), np.float32(weights[1])
        c, d = np.float32(weights[2]), np.float32(weights[3])
        first = row + whole
        one = image[min(max(first - 1, 0), rows - 1)]
        two = image[min(max(first, 0), rows - 1)]
        three = image[min(max(first + 1, 0), rows - 1)]
        four = image[min(max(first + 2, 0), rows - 1)]
        into = result[row]
        for col in range(cols):
            into[col] = a * one[col] + b * two[col] + c * three[col] + d * four[col]
    return result
