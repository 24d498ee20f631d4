"""Columns that overlap, solved for together: who is near whom, and the linear system of all. Compiled.

A column has three unknowns. Their information is a block of 3 × 3 for each column, one for each pair of
neighbours, and what all share with the common width.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_LEAST_LEFT = 0.1  # of the information, where neighbours seem to take all


def in_bands(places: Float64, reach: float) -> Int64:
    """Order places by bands of rows as high as the reach, and along each by columns."""
    order: Int64 = np.lexsort((places[:, 1], np.floor(places[:, 0] / reach)))
    return order


def neighbours(places: Float64, reach: float) -> tuple[Int64, Int64, Int64]:
    """List who is within reach of whom.

    Parameters
    ----------
    places
        Ordered as by ``in_bands``, shape ``(n, 2)``.

    Returns
    -------
    first, other, back
        Neighbours of ``i`` are ``other[first[i] : first[i + 1]]``; the entry ``e`` of a pair stands again at
        ``back[e]``, seen from the other one.
    """
    band = np.floor(places[:, 0] / reach)
    count = np.zeros(len(places), dtype=np.int64)
    _pair_up(places, band, reach, count, count[:0], count[:0])
    first = np.concatenate([[0], np.cumsum(count)])
    other, back = np.empty((2, int(first[-1])), dtype=np.int64)
    _pair_up(places, band, reach, first[:-1].copy(), other, back)
    return first, other, back


@njit(cache=True, nogil=True)
def _pair_up(places: Float64, band: Float64, reach: float, place: Int64, other: Int64, back: Int64) -> None:
    """Count the neighbours of each, or list them from its place on where there is room for a list."""
    n, below = len(places), 0
    for i in range(n):
        j = i + 1
        while j < n and band[j] == band[i] and places[j, 1] - places[i, 1] <= reach:
            _note(places, i, j, reach, place, other, back)
            j += 1
        if i == 0 or band[i] != band[i - 1]:
            below = i
        # Along a band the first one that matters in the next only moves on.
        while below < n and (
            band[below] == band[i] or (band[below] == band[i] + 1 and places[below, 1] < places[i, 1] - reach)
        ):
            below += 1
        j = below
        while j < n and band[j] == band[i] + 1 and places[j, 1] - places[i, 1] <= reach:
            _note(places, i, j, reach, place, other, back)
            j += 1


@njit(cache=True, nogil=True, inline="always")
def _note(places: Float64, i: int, j: int, reach: float, place: Int64, other: Int64, back: Int64) -> None:
    down, along = places[j, 0] - places[i, 0], places[j, 1] - places[i, 1]
    if down * down + along * along <= reach * reach:
        if len(other):
            other[place[i]], other[place[j]] = j, i
            back[place[i]], back[place[j]] = place[j], place[i]
        place[i] += 1
        place[j] += 1


@njit(cache=True, nogil=True)
def basins(places: Float64, first: Int64, other: Int64, most: float, part: float, least: float) -> Float64:
    """Say how far a column may move: not nearer to a neighbour than a part of their distance."""
    basin = np.full(len(places), most)
    for i in range(len(places)):
        for e in range(first[i], first[i + 1]):
            apart = math.hypot(places[i, 0] - places[other[e], 0], places[i, 1] - places[other[e], 1])
            basin[i] = min(basin[i], max(part * apart, least))
    return basin


@njit(cache=True, nogil=True)
def solved(
    info: Float64,
    score: Float64,
    between: Float64,
    first: Int64,
    other: Int64,
    with_width: Float64,
    width: tuple[float, float],
    tolerance: float,
    most: int,
) -> tuple[Float64, float]:
    """Solve for all steps by conjugate gradients, each column's own block inverted beforehand.

    Parameters
    ----------
    info, score
        Of the columns, shapes ``(n, 3, 3)`` and ``(n, 3)``.
    between
        Blocks of the pairs in ``other``; see ``neighbours``.
    with_width
        What a column's unknowns share with the width, shape ``(n, 3)``.
    width
        Its information and score. Where it is not free its score is 0, and it is left out.
    tolerance
        Of the norm of the gradient.

    Returns
    -------
    step, wider
        Of the columns, shape ``(n, 3)``, and of the width.
    """
    n = len(score)
    inverse = np.empty((n, 3, 3))
    for i in range(n):
        safe_inverse(info[i], inverse[i])
    is_free = 0.0 if width[1] == 0.0 else 1.0
    x, r, p, y = np.zeros((n, 3)), score.copy(), np.empty((n, 3)), np.empty((n, 3))
    wide, wide_r = 0.0, width[1]
    wide_p = wide_r / width[0]
    rz = wide_r * wide_p + _towards(inverse, r, 0.0, p)
    begin = rz
    for _ in range(most):
        if not rz > tolerance * tolerance * begin:
            break
        wide_y = width[0] * wide_p + is_free * _times(
            info, between, first, other, with_width, p, is_free * wide_p, y
        )
        bend = wide_p * wide_y
        for i in range(n):
            bend += p[i, 0] * y[i, 0] + p[i, 1] * y[i, 1] + p[i, 2] * y[i, 2]
        if not bend > 0:
            break
        alpha = rz / bend
        for i in range(n):
            for a in range(3):
                x[i, a] += alpha * p[i, a]
                r[i, a] -= alpha * y[i, a]
        wide += alpha * wide_p
        wide_r -= alpha * wide_y
        before, rz = rz, wide_r * wide_r / width[0] + _length(inverse, r)
        _towards(inverse, r, rz / before, p)
        wide_p = wide_r / width[0] + (rz / before) * wide_p
    return x, wide


@njit(cache=True, nogil=True)
def _times(
    info: Float64,
    between: Float64,
    first: Int64,
    other: Int64,
    with_width: Float64,
    x: Float64,
    wide: float,
    y: Float64,
) -> float:
    """Multiply by the information of all columns; what they share with the width is returned."""
    total = 0.0
    for i in range(len(x)):
        own, shared = info[i], with_width[i]
        x0, x1, x2 = x[i, 0], x[i, 1], x[i, 2]
        total += shared[0] * x0 + shared[1] * x1 + shared[2] * x2
        y0 = shared[0] * wide + own[0, 0] * x0 + own[0, 1] * x1 + own[0, 2] * x2
        y1 = shared[1] * wide + own[1, 0] * x0 + own[1, 1] * x1 + own[1, 2] * x2
        y2 = shared[2] * wide + own[2, 0] * x0 + own[2, 1] * x1 + own[2, 2] * x2
        for e in range(first[i], first[i + 1]):
            block, j = between[e], other[e]
            x0, x1, x2 = x[j, 0], x[j, 1], x[j, 2]
            y0 += block[0, 0] * x0 + block[0, 1] * x1 + block[0, 2] * x2
            y1 += block[1, 0] * x0 + block[1, 1] * x1 + block[1, 2] * x2
            y2 += block[2, 0] * x0 + block[2, 1] * x1 + block[2, 2] * x2
        y[i, 0], y[i, 1], y[i, 2] = y0, y1, y2
    return total


@njit(cache=True, nogil=True)
def _towards(inverse: Float64, r: Float64, turn: float, p: Float64) -> float:
    """Make ``p`` the next direction, ``inverse @ r + turn * p``; give ``r @ inverse @ r``."""
    total = 0.0
    for i in range(len(r)):
        r0, r1, r2 = r[i, 0], r[i, 1], r[i, 2]
        for a in range(3):
            z = inverse[i, a, 0] * r0 + inverse[i, a, 1] * r1 + inverse[i, a, 2] * r2
            total += z * r[i, a]
            p[i, a] = z + turn * p[i, a] if turn else z
    return total


@njit(cache=True, nogil=True)
def _length(inverse: Float64, r: Float64) -> float:
    """``r @ inverse @ r``."""
    total = 0.0
    for i in range(len(r)):
        r0, r1, r2 = r[i, 0], r[i, 1], r[i, 2]
        for a in range(3):
            total += r[i, a] * (inverse[i, a, 0] * r0 + inverse[i, a, 1] * r1 + inverse[i, a, 2] * r2)
    return total


@njit(cache=True, nogil=True)
def marginal(
    info: Float64, between: Float64, first: Int64, other: Int64, covariance: Float64, begin: int, end: int
) -> None:
    """Covariance of some columns' unknowns, those of their neighbours being unknown too.

    Each neighbour takes off what both tell of it together. That its own neighbours are unknown as well, and
    that two of them share what they tell, would be the next terms of a series; they nearly cancel: within
    3 % of the inverse of the whole information down to 2.7 widths between columns, 10 % below it at 2.6.
    """
    alone, left = np.empty((2, 3, 3))
    for i in range(begin, end):
        left[:] = info[i]
        for e in range(first[i], first[i + 1]):
            safe_inverse(info[other[e]], alone)
            _take_off(left, between[e], alone)
        if not _inverse(left, covariance[i]):
            safe_inverse(_LEAST_LEFT * info[i], covariance[i])


@njit(cache=True, nogil=True, inline="always")
def _take_off(left: Float64, block: Float64, inverse: Float64) -> None:
    """Subtract ``block @ inverse @ block.T``."""
    for a in range(3):
        x0 = block[a, 0] * inverse[0, 0] + block[a, 1] * inverse[1, 0] + block[a, 2] * inverse[2, 0]
        x1 = block[a, 0] * inverse[0, 1] + block[a, 1] * inverse[1, 1] + block[a, 2] * inverse[2, 1]
        x2 = block[a, 0] * inverse[0, 2] + block[a, 1] * inverse[1, 2] + block[a, 2] * inverse[2, 2]
        for b in range(3):
            left[a, b] -= x0 * block[b, 0] + x1 * block[b, 1] + x2 * block[b, 2]


@njit(cache=True, nogil=True)
def _inverse(m: Float64, result: Float64) -> bool:
    """Invert a symmetric 3 × 3 matrix; say whether it is positive definite."""
    a = m[1, 1] * m[2, 2] - m[1, 2] * m[1, 2]
    b = m[0, 2] * m[1, 2] - m[0, 1] * m[2, 2]
    c = m[0, 1] * m[1, 2] - m[0, 2] * m[1, 1]
    determinant = m[0, 0] * a + m[0, 1] * b + m[0, 2] * c
    most = m[0, 0] * m[1, 1] * m[2, 2]
    if not (m[0, 0] > 0 and m[0, 0] * m[1, 1] > m[0, 1] * m[0, 1] and determinant > 1e-9 * most):
        return False
    result[0, 0], result[0, 1], result[0, 2] = a / determinant, b / determinant, c / determinant
    result[1, 1] = (m[0, 0] * m[2, 2] - m[0, 2] * m[0, 2]) / determinant
    result[1, 2] = (m[0, 1] * m[0, 2] - m[0, 0] * m[1, 2]) / determinant
    result[2, 2] = (m[0, 0] * m[1, 1] - m[0, 1] * m[0, 1]) / determinant
    result[1, 0], result[2, 0], result[2, 1] = result[0, 1], result[0, 2], result[1, 2]
    return True


@njit(cache=True, nogil=True)
def safe_inverse(m: Float64, result: Float64) -> None:
    """Invert a symmetric 3 × 3 matrix, or its diagonal where it is not positive definite."""
    if not _inverse(m, result):
        result[:] = 0
        for k in range(3):
            result[k, k] = 1 / max(m[k, k], 1e-30)
