"""How far each row of a frame is displaced against a reference, each row for itself.

Directions are (row, col) in pixels. A displacement ``d`` says that a specimen point of pixel ``u``
appears in the frame at pixel ``u + d``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamer.messages import Float32
from streamer.observers.image_filters import (
    REORDERED,
    cubic,
    fill_line,
    gradients,
    middle,
    pixel_noise,
    smoothed,
    smoothed_along,
    smoothed_down,
    telling_width,
)
from streamer.observers.row_wander import settled

Float64 = NDArray[np.float64]

# Rows and their reference are smoothed by this much before they are compared.
SMOOTHING_PX = 1.0
_STEPS = 6
_AT_REST_PX = 0.02
_FIRST_SPREAD_PX = 1.0
_BESIDE_PX = 1.5
# Halves of a row are made of every other stretch of so many pixels.
_STRETCH = 16
# Fewer of a row's pixels that the reference shows as well say nothing.
_LEAST_PX = 16
# Places between two pixels at which it is worked out how alike the noise of weights and reference is.
_BETWEEN = 33
# Variances are raised by so much at most; no row's halves count for more.
_MOST_FACTOR, _WILD_RATIO = 4.0, 9.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Weights:
    """What the pixels of a reference count for, and what its noise does to that.

    Attributes
    ----------
    guides
        Its gradients ``(2, rows, cols)``, float32, where it is smoothed enough for them to be the
        specimen's.
    common
        By how much a step along each axis must be changed for the gradients that image and reference
        share, ``(2,)``.
    noise
        Factor from pixels' residuals to the noise of white pixels, ``(2,)``.
    floor
        What pixel noise adds to the square of each guide.
    shared
        What it adds to the product of a guide and the reference ``-0.5`` to ``0.5`` pixels beside it: for
        each guide a factor for that down and one for that along the rows, ``(2, 2, _BETWEEN)``.
    """

    guides: Float32
    common: Float64
    noise: Float64
    floor: float
    shared: Float64


def place_rows(
    image: Float32, reference: Float32, shift_px: Float64, most_px: float
) -> tuple[Float64, Float64]:
    """Say how far each row is displaced beyond the shift, and the variance of that.

    Where rows and reference differ, least squares would weigh that with the gradients of the
    reference. Those have noise too, which makes every step too short, on a noisy frame by half. So the
    weights are gradients of the reference smoothed further, and the length of the step is right for
    the gradients that both have in common (the instrumental variables of statistics). Read between two
    pixels, a reference of one frame still shares noise with the weights of the nearest, which would put the
    whole frame up to 0.1 px off: that is known, and taken off.

    Parameters
    ----------
    image, reference
        Shape ``(rows, cols)``, float32.
    shift_px
        Displacement of the image as a whole, ``(row, col)``.
    most_px
        Rows that seem to be off by more tell nothing.

    Returns
    -------
    offsets_px, variance_px2
        Shape ``(2, rows)`` each; the variance is infinite where a row tells nothing.
    """
    # Along the rows only: the rows of the image are independent, and blurred alike they stay alike.
    seen = smoothed_along(image, SMOOTHING_PX)
    known = smoothed_along(reference, SMOOTHING_PX)
    weights = _weights(reference, known)
    seen *= np.float32(1 / _gain(seen, known, shift_px))
    ridge = 1e-4 * float(np.vdot(weights.guides, weights.guides)) / len(image) + 1e-30
    expected = np.zeros((2, len(image)))
    spread = np.full((2, len(image)), _FIRST_SPREAD_PX**2)
    # A row without structure would go astray by itself: it first stays near 0, then near its neighbours.
    offsets, variance = _placed(seen, known, weights, shift_px, expected, spread, ridge, most_px)
    means = [_mean(o, v) for o, v in zip(offsets, variance, strict=True)]
    near = [settled(o - m, v) for o, m, v in zip(offsets, means, variance, strict=True)]
    expected = np.stack([axis.offset_px + mean for axis, mean in zip(near, means, strict=True)])
    spread = np.stack([axis.variance_px2 for axis in near]) + 0.05**2
    return _placed(seen, known, weights, shift_px, expected, spread, ridge, most_px)


def _placed(
    seen: Float32,
    known: Float32,
    weights: _Weights,
    shift_px: Float64,
    expected: Float64,
    spread: Float64,
    ridge: float,
    most_px: float,
) -> tuple[Float64, Float64]:
    shift = np.ascontiguousarray(shift_px, dtype=np.float64)
    fits = _fit_rows(
        seen,
        known,
        weights.guides,
        weights.common,
        weights.noise,
        shift,
        expected,
        spread,
        ridge,
        weights.floor,
        weights.shared,
    )
    offsets, variance = fits[:2], fits[2:4] * _halves_say(fits)[:, None]
    variance[:, (np.abs(offsets) > most_px).any(axis=0)] = np.inf
    return offsets, variance


def _weights(reference: Float32, known: Float32) -> _Weights:
    """Make weights of a reference; ``known`` is the same smoothed along its rows."""
    noise_px = pixel_noise(reference)
    width = telling_width(reference, noise_px)
    broad = smoothed_down(known, width) if width == SMOOTHING_PX else smoothed(reference, width)
    guides = gradients(broad)
    # What pixel noise adds to the energy of the weights, and to their product with the gradients.
    floor = noise_px**2 / (8 * math.pi * width**4)
    both = math.sqrt(SMOOTHING_PX**2 + width**2)
    shared = noise_px**2 / (2 * math.pi) / np.array([width**3 * both, width * both**3])
    inner = np.ascontiguousarray(middle(guides))
    own = gradients(np.ascontiguousarray(middle(known)))
    count = own[0].size
    energy = np.array([float(np.vdot(g, g)) / count for g in inner])
    product = np.array([float(np.vdot(g, h)) / count for g, h in zip(inner, own, strict=True)])
    # White noise of the pixels counts with the energy of the weights as smoothed as the pixels are.
    wide = [smoothed_along(guide, SMOOTHING_PX) for guide in inner]
    kept = 1 / (2 * math.sqrt(math.pi) * SMOOTHING_PX)
    loss = np.array([float(np.vdot(w, w)) / count for w in wide]) / (energy + 1e-30)
    return _Weights(
        guides=guides,
        common=np.maximum(product - shared, 1e-30) / np.maximum(energy - floor, 1e-30),
        noise=loss / kept,
        floor=floor,
        shared=_shared_noise(width, noise_px),
    )


def _shared_noise(width_px: float, noise_px: float) -> Float64:
    """Say the expected product of a guide with the reference beside it that white noise makes."""
    reach = math.ceil(4 * width_px) + 3
    place = np.arange(-reach, reach + 1)
    broad, narrow = (np.exp(-(place**2) / (2 * sd**2)) for sd in (width_px, SMOOTHING_PX))
    broad, narrow = broad / broad.sum(), narrow / narrow.sum()
    steep = (np.roll(broad, 1) - np.roll(broad, -1)) / 2
    table = np.empty((2, 2, _BETWEEN))
    for k, beside in enumerate(np.linspace(-0.5, 0.5, _BETWEEN)):
        first = math.floor(beside)
        down = np.zeros(place.size)
        down[reach + first - 1 : reach + first + 3] = cubic(beside - first)
        along = np.convolve(narrow, down, mode="same")
        table[:, :, k] = [[steep @ down, broad @ along], [broad @ down, steep @ along]]
    table[:, 0] *= noise_px**2
    return table


def _gain(seen: Float32, known: Float32, shift_px: Float64) -> float:
    """Say how much stronger the contrast of an image is than that of another; 1 where they are unlike.

    Both are compared with the neighbours of each row in the second, whose noise neither has: compared
    with itself, noise would count as contrast, and the gain would be too small.
    """
    beside = smoothed_down(known, _BESIDE_PX)
    beside -= _centre_tap() * known
    move = np.rint(shift_px).astype(np.int64)
    # Where both show the same part of the specimen.
    here, there = (
        tuple(slice(max(0, s * m), max(0, n + min(0, s * m))) for m, n in zip(move, known.shape, strict=True))
        for s in (1, -1)
    )
    own, other = _products(seen[here], known[there], beside[there])
    gain = other / own if own > 0 else 1.0
    return gain if gain > 0 else 1.0


def _centre_tap() -> np.float32:
    place = np.arange(-8, 9)
    weight = np.exp(-(place**2) / (2 * _BESIDE_PX**2))
    return np.float32(weight[8] / weight[2:15].sum())


@njit(cache=True, fastmath=REORDERED)
def _products(seen: Float32, known: Float32, beside: Float32) -> tuple[float, float]:
    """Sum products of ``known`` and ``seen`` with ``beside``, means taken off."""
    s = k = b = sb = kb = 0.0
    for row in range(seen.shape[0]):
        for col in range(seen.shape[1]):
            x, y, z = float(seen[row, col]), float(known[row, col]), float(beside[row, col])
            s += x
            k += y
            b += z
            sb += x * z
            kb += y * z
    n = max(seen.size, 1)
    return kb - k * b / n, sb - s * b / n


def _halves_say(fits: Float64) -> Float64:
    """Say by what the variances are too small, along each axis: halves of rows differ only by noise.

    Halves of many short stretches share what drifts along the row, as the height of a probe on a feedback
    does; the left and the right half do not.
    """
    factors = [np.ones(2)]
    for at in (4, 12):
        first, second = fits[at : at + 4], fits[at + 4 : at + 8]
        apart = first[:2] - second[:2]
        apart -= np.median(apart, axis=1, keepdims=True)
        ratio = apart**2 / (first[2:] + second[2:])
        factors.append(np.minimum(np.minimum(ratio, _WILD_RATIO).mean(axis=1), _MOST_FACTOR))
    most: Float64 = np.max(factors, axis=0)
    return most


def _mean(offsets: Float64, variance: Float64) -> float:
    """Weighted mean; 0 where no row tells anything."""
    weight = 1 / (variance + 0.1**2)
    return float((weight * offsets).sum() / max(float(weight.sum()), 1e-30))


@njit(cache=True, fastmath=REORDERED)
def _fit_rows(
    seen: Float32,
    known: Float32,
    guides: Float32,
    common: Float64,
    noise: Float64,
    shift: Float64,
    expected: Float64,
    spread: Float64,
    ridge: float,
    floor: float,
    shared: Float64,
) -> Float64:
    """Fit each row, ``(20, rows)``: offset (2) as measured without what was expected, its variance (2).

    The rest are steps and variances, as ``_judge`` says them, of parts of the row by themselves: every other
    stretch, the rest of them, the left half, and the right half.

    The point around which gradients are taken is the most likely one, given the variance ``spread`` of
    the true offset around the expected one.
    """
    rows, cols = seen.shape
    result = np.zeros((20, rows))
    result[2:4] = np.inf
    for half in range(4):
        result[6 + 4 * half : 8 + 4 * half] = 1.0
    error = np.empty(cols, dtype=np.float32)
    across, line = np.empty(cols, dtype=np.float32), np.empty(cols + 3, dtype=np.float32)
    place = np.arange(cols)
    is_first = np.empty((2, cols), dtype=np.float32)
    is_first[0], is_first[1] = (place // _STRETCH) % 2 == 0, place < cols // 2
    point, said = np.empty(2), np.empty(4)
    sums, first = np.empty(9), np.empty(9)
    for row in range(rows):
        point[:] = expected[:, row]
        at_row, at_col = -1, 0
        start, stop, top = 0, 0, 0
        for _ in range(_STEPS):
            y = row - shift[0] - point[0]
            x = -shift[1] - point[1]
            top, left = round(y), round(x)
            # What the reference never saw says nothing.
            start, stop = max(0, -left), min(cols, cols - left)
            if not 0 <= top < rows or stop - start < _LEAST_PX:
                break
            e = error[start:stop]
            _row_error(seen[row, start:stop], known, y, x + start, across, line, e)
            h, k = guides[0, top, start + left : stop + left], guides[1, top, start + left : stop + left]
            if top != at_row or left != at_col:
                at_row, at_col = top, left
                _sum_energies(h, k, sums)
            _sum_products(h, k, e, sums)
            _take_off(shared, y - top, x - left, stop - start, sums)
            _judge(sums, stop - start, common, noise, ridge, floor, False, said)
            result[0, row], result[1, row] = point[0] + said[0], point[1] + said[1]
            moved = 0.0
            for axis in range(2):
                gain = spread[axis, row] / (spread[axis, row] + said[2 + axis])
                target = expected[axis, row] + gain * (result[axis, row] - expected[axis, row])
                step = min(max(target - point[axis], -1.0), 1.0)
                point[axis] += step
                moved = max(moved, abs(step))
            if moved < _AT_REST_PX:
                break
        if not 0 <= top < rows or stop - start < _LEAST_PX:
            continue
        e = error[start:stop]
        h, k = guides[0, top, start + left : stop + left], guides[1, top, start + left : stop + left]
        _sum_shots(h, k, e, sums)
        _judge(sums, stop - start, common, noise, ridge, floor, True, said)
        result[2:4, row] = said[2:]
        for way in range(2):
            weight = is_first[way, start:stop]
            _sum_some(h, k, e, weight, first)
            count, at = int(weight.sum()), 4 + 8 * way
            _take_off(shared, y - top, x - left, count, first)
            _judge(first, count, common, noise, ridge, floor, True, result[at : at + 4, row])
            rest = stop - start - count
            _judge(sums - first, rest, common, noise, ridge, floor, True, result[at + 4 : at + 8, row])
    return result


@njit(cache=True, fastmath=REORDERED)
def _row_error(
    seen: Float32, known: Float32, y: float, x: float, across: Float32, line: Float32, error: Float32
) -> None:
    """Fill in a part of a row less the reference at ``(y, col + x)``, by cubic convolution, less its mean.

    ``across`` is scratch of a row, ``line`` of 3 pixels more.
    """
    row, left = math.floor(y), math.floor(x)
    _sum_four_rows(known, row - 1, cubic(y - row), across)
    fill_line(line[: seen.size + 3], across, left - 1)
    _subtract(seen, line, cubic(x - left), error)
    _centre(error)


# Small functions, for in a longer one the compiler does not find out that arrays are not each other.


@njit(cache=True, fastmath=REORDERED)
def _sum_four_rows(
    image: Float32, first: int, weights: tuple[float, float, float, float], out: Float32
) -> None:
    last = image.shape[0] - 1
    one, two = image[min(max(first, 0), last)], image[min(max(first + 1, 0), last)]
    three, four = image[min(max(first + 2, 0), last)], image[min(max(first + 3, 0), last)]
    a, b = np.float32(weights[0]), np.float32(weights[1])
    c, d = np.float32(weights[2]), np.float32(weights[3])
    for col in range(out.size):
        out[col] = a * one[col] + b * two[col] + c * three[col] + d * four[col]


@njit(cache=True, fastmath=REORDERED)
def _subtract(seen: Float32, line: Float32, weights: tuple[float, float, float, float], out: Float32) -> None:
    """Say a line less what four pixels of another make of each of its pixels."""
    a, b = np.float32(weights[0]), np.float32(weights[1])
    c, d = np.float32(weights[2]), np.float32(weights[3])
    for col in range(seen.size):
        there = a * line[col] + b * line[col + 1] + c * line[col + 2] + d * line[col + 3]
        out[col] = seen[col] - there


@njit(cache=True, fastmath=REORDERED)
def _centre(line: Float32) -> None:
    total = np.float32(0.0)
    for col in range(line.size):
        total += line[col]
    mean = np.float32(total / line.size)
    for col in range(line.size):
        line[col] -= mean


@njit(cache=True, fastmath=REORDERED)
def _sum_energies(h: Float32, k: Float32, sums: Float64) -> None:
    """Sum ``h h, k k, h k`` into the first three of ``sums``."""
    hh = kk = hk = np.float32(0.0)
    for col in range(h.size):
        hh += h[col] * h[col]
        kk += k[col] * k[col]
        hk += h[col] * k[col]
    sums[0], sums[1], sums[2] = hh, kk, hk


@njit(cache=True, fastmath=REORDERED)
def _sum_products(h: Float32, k: Float32, e: Float32, sums: Float64) -> None:
    """Sum ``h e, k e, e e`` into the next three."""
    he = ke = ee = np.float32(0.0)
    for col in range(h.size):
        he += h[col] * e[col]
        ke += k[col] * e[col]
        ee += e[col] * e[col]
    sums[3], sums[4], sums[5] = he, ke, ee


@njit(cache=True)
def _take_off(shared: Float64, down: float, along: float, count: int, sums: Float64) -> None:
    """Take off the products of guides and error what noise makes of them so far beside a pixel."""
    last = shared.shape[2] - 1
    for guide in range(2):
        product = float(count)
        for axis in range(2):
            at = ((down if axis == 0 else along) + 0.5) * last
            k = min(max(int(at), 0), last - 1)
            table = shared[guide, axis]
            product *= table[k] + (at - k) * (table[k + 1] - table[k])
        sums[3 + guide] += product  # the error has the reference's noise the other way round


@njit(cache=True, fastmath=REORDERED)
def _sum_shots(h: Float32, k: Float32, e: Float32, sums: Float64) -> None:
    """Sum ``h h, k k, h k`` times ``e e`` into the last three."""
    hh = kk = hk = np.float32(0.0)
    for col in range(h.size):
        he, ke = h[col] * e[col], k[col] * e[col]
        hh += he * he
        kk += ke * ke
        hk += he * ke
    sums[6], sums[7], sums[8] = hh, kk, hk


@njit(cache=True, fastmath=REORDERED)
def _sum_some(h: Float32, k: Float32, e: Float32, weight: Float32, sums: Float64) -> None:
    """Sum all nine over the columns of weight 1; the others have 0."""
    hh = kk = hk = he = ke = ee = hhee = kkee = hkee = np.float32(0.0)
    for col in range(h.size):
        g, f, d = weight[col] * h[col], weight[col] * k[col], weight[col] * e[col]
        gd, fd = g * d, f * d
        hh += g * g
        kk += f * f
        hk += g * f
        he += gd
        ke += fd
        ee += d * d
        hhee += gd * gd
        kkee += fd * fd
        hkee += gd * fd
    sums[0], sums[1], sums[2], sums[3], sums[4], sums[5] = hh, kk, hk, he, ke, ee
    sums[6], sums[7], sums[8] = hhee, kkee, hkee


@njit(cache=True)
def _judge(
    sums: Float64,
    count: int,
    common: Float64,
    noise: Float64,
    ridge: float,
    floor: float,
    is_last: bool,
    out: Float64,
) -> None:
    """Say how much further a row is displaced (2), and the variance of that by what is left then (2).

    Shot noise is largest where the gradients are, which the sandwich estimator counts in; a row without
    gradients leaves it nothing to count, but has an even share of the noise. Before the last step an
    even share is enough.
    """
    hh, kk, hk, he, ke, power = sums[0], sums[1], sums[2], sums[3], sums[4], max(sums[5], 0.0)
    # A trace of ridge: on a line of mirror symmetry one axis has no gradient, and the other still has.
    rr = max(hh - count * floor, 0.0) * common[0] + ridge
    cc = max(kk - count * floor, 0.0) * common[1] + ridge
    most = 0.99 * math.sqrt(rr * cc)
    rc = min(max(hk * math.sqrt(common[0] * common[1]), -most), most)
    determinant = rr * cc - rc * rc
    # The reference is displaced the other way than the specimen.
    out[0], out[1] = (rc * ke - cc * he) / determinant, (rc * he - rr * ke) / determinant
    even = power / max(count, 1)
    out[2] = noise[0] * cc / determinant / common[0] * even + 1e-12
    out[3] = noise[1] * rr / determinant / common[1] * even + 1e-12
    if is_last:
        nr, nc, nrc = sums[6], sums[7], sums[8]
        sandwich_r = (cc * cc * nr - 2 * cc * rc * nrc + rc * rc * nc) / determinant**2
        sandwich_c = (rr * rr * nc - 2 * rr * rc * nrc + rc * rc * nr) / determinant**2
        out[2], out[3] = max(out[2], noise[0] * sandwich_r), max(out[3], noise[1] * sandwich_c)
