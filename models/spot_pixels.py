"""Sums over the pixels of Gaussian spots, compiled.

A spot is the product of a profile along the rows and one along the columns, so that nearly all sums over its
pixels are one multiplication and addition a pixel. Profiles are computed once for a place and a width. They
have as many pixels for each spot, 0 beyond its reach: loops of one length, which processors like. So planes
spots are drawn on are wider than the image, by the length of a profile; what lies there weighs nothing.

No function here holds the lock of Python. Those with ``begin`` and ``end`` do a part of rows or spots. Rows
of a scratch array are taken by number: unpacked, they would count as strided, and be done a pixel at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

REACH = 3.5  # widths from its middle, at which a spot ends: 0.2 % of its height
_LANES = 8  # pixels that are computed at once: a profile is a multiple
_ROWS_AT_ONCE = 8  # of blocks of the background, which are many more rows high
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def length_of(sigma_px: float) -> int:
    """Say how many pixels a profile has."""
    return _LANES * math.ceil((2 * REACH * sigma_px + 2) / _LANES)


@dataclass(frozen=True, slots=True, eq=False)
class Profiles:
    """Spots along rows and columns, in this order on the first axis of all.

    Attributes
    ----------
    first
        Pixel at which a profile begins, shape ``(2, n)``.
    bell
        Of height 1, shape ``(2, n, length)``.
    away
        Distance from the middle, in widths, of the same shape.
    """

    first: Int64
    bell: Float32
    away: Float32

    @classmethod
    def of(cls, spots: Float64, sigma_px: Float64) -> Profiles:
        """Compute them for spots ``(row, col, amplitude)`` of these widths along rows and columns."""
        shape = (2, len(spots), length_of(float(sigma_px.max())))
        made = cls(
            np.empty(shape[:2], dtype=np.int64),
            np.empty(shape, dtype=np.float32),
            np.empty(shape, dtype=np.float32),
        )
        _fill_profiles(spots, sigma_px, made.first, made.bell, made.away)
        return made


@njit(cache=True, nogil=True, inline="always")
def _exponential(x: np.float32) -> np.float32:
    """``exp(x)`` for -7 to 0, to 3e-6 of it: a series that, unlike the library's, runs in lanes."""
    t = x * np.float32(1 / 32)
    series = np.float32(1 / 6) + t * (np.float32(1 / 24) + t * np.float32(1 / 120))
    series = np.float32(1) + t * (np.float32(1) + t * (np.float32(0.5) + t * series))
    series *= series
    series *= series
    series *= series
    series *= series
    return series * series


@njit(cache=True, nogil=True, fastmath=_FAST)
def _fill_profiles(spots: Float64, sigma: Float64, first: Int64, bell: Float32, away: Float32) -> None:
    reach, nothing = np.float32(REACH), np.float32(0)
    for axis in range(2):
        step = np.float32(1 / sigma[axis])
        for i in range(len(spots)):
            begin = max(0, math.ceil(spots[i, axis] - REACH * sigma[axis]))
            first[axis, i] = begin
            offset = np.float32((begin - spots[i, axis]) / sigma[axis])
            bells, distances = bell[axis, i], away[axis, i]
            for k in range(len(bells)):
                distance = offset + step * np.float32(k)
                height = _exponential(np.float32(-0.5) * distance * distance)
                distances[k] = distance
                bells[k] = height if abs(distance) <= reach else nothing


@njit(cache=True, nogil=True, fastmath=_FAST)
def draw(drawn: Float32, spots: Float64, first: Int64, bell: Float32, begin: int, end: int) -> None:
    """Draw all spots on some rows of an empty plane."""
    length = bell.shape[2]
    drawn[begin:end] = 0
    for i in range(len(spots)):
        top, left = first[0, i], first[1, i]
        along = bell[1, i]
        for r in range(max(top, begin), min(top + length, end)):
            height = np.float32(spots[i, 2]) * bell[0, i, r - top]
            line = drawn[r, left : left + length]
            for k in range(length):
                line[k] += height * along[k]


@njit(cache=True, nogil=True, fastmath=_FAST)
def draw_growth(
    growth: Float32, spots: Float64, first: Int64, bell: Float32, away: Float32, begin: int, end: int
) -> None:
    """Draw by how much spots change with the logarithm of their width, on some rows of an empty plane."""
    length = bell.shape[2]
    wide = np.empty(length, dtype=np.float32)
    growth[begin:end] = 0
    for i in range(len(spots)):
        top, left = first[0, i], first[1, i]
        along, aside = bell[1, i], away[1, i]
        for k in range(length):
            wide[k] = along[k] * aside[k] * aside[k]
        for r in range(max(top, begin), min(top + length, end)):
            height = np.float32(spots[i, 2]) * bell[0, i, r - top]
            taller = height * away[0, i, r - top] * away[0, i, r - top]
            line = growth[r, left : left + length]
            for k in range(length):
                line[k] += taller * along[k] + height * wide[k]


@njit(cache=True, nogil=True, fastmath=_FAST)
def without_gaps(image: Float32, score: Float32, weight: Float32, begin: int, end: int) -> None:
    """Weigh every pixel of some rows alike, but those that are not finite."""
    nothing, one = np.float32(0), np.float32(1)
    for r in range(begin, end):
        for c in range(image.shape[1]):
            is_seen = abs(image[r, c]) < np.float32(np.inf)
            weight[r, c] = one if is_seen else nothing
            score[r, c] = image[r, c] if is_seen else nothing


def tents(nodes: int, cols: int) -> Float32:
    """Make what interpolates values at nodes, which span the frame, along a row: ``values @ tents``."""
    at = np.linspace(0, nodes - 1, cols)
    made: Float32 = np.maximum(1 - np.abs(at - np.arange(nodes)[:, None]), 0).astype(np.float32)
    return made


@njit(cache=True, nogil=True, inline="always")
def _node_above(row: float, rows: int, high: int) -> tuple[int, float]:
    """Row of nodes above a row of pixels, and which part of the way to the next it is."""
    at = row * (high - 1) / max(rows - 1, 1)
    above = min(int(at), high - 2)
    return above, at - above


@njit(cache=True, nogil=True, fastmath=_FAST)
def _ground(nodes: Float32, row: float, rows: int, line: Float32) -> None:
    """Interpolate between rows of nodes; see ``tents``."""
    above, part = _node_above(row, rows, len(nodes))
    upper, lower, share = nodes[above], nodes[above + 1], np.float32(part)
    for c in range(len(line)):
        line[c] = upper[c] + share * (lower[c] - upper[c])


# A division that could raise would keep the loop from being vectorised.
@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def weigh(
    image: Float32,
    drawn: Float32,
    background: Float32,
    law: tuple[float, float, float],
    clip: tuple[float, float],
    weight: Float32,
    score: Float32,
    begin: int,
    end: int,
) -> None:
    """Say of each pixel of some rows its weight and its weighted residual.

    Parameters
    ----------
    background
        At the nodes, between them along the rows; see ``tents``.
    law
        Variance at level 0, its growth, and the least.
    clip
        Residuals count up to so many standard deviations, plus a part of the spots there.
    """
    rows, cols = image.shape
    ground = np.empty(cols, dtype=np.float32)
    constant, gain, floor = np.float32(law[0]), np.float32(law[1]), np.float32(law[2])
    sds, part = np.float32(clip[0]), np.float32(clip[1])
    nothing, one = np.float32(0), np.float32(1)
    for r in range(begin, end):
        _ground(background, r, rows, ground)
        seen, spots, w, v = image[r], drawn[r], weight[r], score[r]
        for c in range(cols):
            variance = max(constant + gain * (ground[c] + spots[c]), floor)
            most = sds * np.sqrt(variance) + part * abs(spots[c])
            residual = min(max(seen[c] - ground[c] - spots[c], -most), most)
            is_seen = abs(seen[c]) < np.float32(np.inf)
            precision = one / variance
            w[c] = precision if is_seen else nothing
            v[c] = residual * precision if is_seen else nothing


@njit(cache=True, nogil=True, fastmath=_FAST)
def follow(
    level: Float32,
    factor: Float32,
    weight: Float32,
    score: Float32,
    drawn: Float32,
    growth: Float32,
    begin: int,
    end: int,
) -> tuple[float, float]:
    """Bring what is drawn, and what is left of the image, after a change of level and heights.

    Returns
    -------
    info, told
        Of the logarithm of the width, by these rows.
    """
    rows, cols = len(score), level.shape[1]
    higher, steeper = np.empty(cols, dtype=np.float32), np.empty(cols, dtype=np.float32)
    info, told = np.float64(0), np.float64(0)
    for r in range(begin, end):
        _ground(level, r, rows, higher)
        _ground(factor, r, rows, steeper)
        w, v, spots, grown = weight[r], score[r], drawn[r], growth[r]
        line_info = line_told = np.float32(0)
        for c in range(cols):
            more = steeper[c] * spots[c]
            v[c] -= w[c] * (higher[c] + more)
            spots[c] += more
            grown[c] += steeper[c] * grown[c]
            line_info += w[c] * grown[c] * grown[c]
            line_told += v[c] * grown[c]
        info += line_info
        told += line_told
    return info, told


@njit(cache=True, nogil=True, fastmath=_FAST)
def left_over(level: Float32, factor: Float32, weight: Float32, score: Float32, drawn: Float32) -> float:
    """Sum of squares that is left after such a change; nothing is changed."""
    rows, cols = len(score), level.shape[1]
    higher, steeper = np.empty(cols, dtype=np.float32), np.empty(cols, dtype=np.float32)
    total = np.float64(0)
    for r in range(rows):
        _ground(level, r, rows, higher)
        _ground(factor, r, rows, steeper)
        w, v, spots = weight[r], score[r], drawn[r]
        squares = np.float32(0)
        for c in range(cols):
            left = v[c] - w[c] * (higher[c] + steeper[c] * spots[c])
            squares += left * left
        total += squares
    return total


@njit(cache=True, nogil=True, fastmath=_FAST)
def add_blocks(
    cols: int, score: Float32, weight: Float32, drawn: Float32, sums: Float64, begin: int, end: int
) -> None:
    """Add up some rows around the nodes: weights, spots and weighted residuals, and their products.

    A pixel counts for the nodes of its corners by how near they are.
    """
    high, wide = sums.shape[1:]
    across = np.zeros((high, 5, cols), dtype=np.float32)
    few = np.empty((5, cols), dtype=np.float32)
    for first in range(begin, end, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, end)
        few[:] = 0
        for r in range(first, last):
            _add_row(score[r, :cols], weight[r, :cols], drawn[r, :cols], few)
        above, part = _node_above((first + last - 1) / 2, len(score), high)
        for k in range(5):
            _add_line(across[above, k], np.float32(1 - part), few[k])
            _add_line(across[above + 1, k], np.float32(part), few[k])
    for node in range(wide - 1):
        left = math.ceil(node * (cols - 1) / (wide - 1))
        right = cols if node == wide - 2 else math.ceil((node + 1) * (cols - 1) / (wide - 1))
        for row in range(high):
            for k in range(5):
                # Half of a stretch is nearer to either node: a tent is as good as its mean here.
                half = 0.5 * _line_sum(across[row, k, left:right])
                sums[k, row, node] += half
                sums[k, row, node + 1] += half


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_line(total: Float32, factor: np.float32, line: Float32) -> None:
    for c in range(len(total)):
        total[c] += factor * line[c]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _line_sum(line: Float32) -> np.float32:
    total = np.float32(0)
    for c in range(len(line)):
        total += line[c]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_row(score: Float32, weight: Float32, drawn: Float32, across: Float32) -> None:
    w, wt, wtt, wr, wtr = across[0], across[1], across[2], across[3], across[4]
    for c in range(len(score)):
        both = weight[c] * drawn[c]
        w[c] += weight[c]
        wt[c] += both
        wtt[c] += both * drawn[c]
        wr[c] += score[c]
        wtr[c] += score[c] * drawn[c]


@njit(cache=True, nogil=True)
def interpolate(nodes: Float64, places: Float64, last_row: float, last_col: float, value: Float64) -> None:
    """Interpolate values at nodes, which span the frame, at places; beyond the edge they stay."""
    high, wide = nodes.shape
    for i in range(len(places)):
        row = min(max(places[i, 0] / max(last_row, 1.0), 0.0), 1.0) * (high - 1)
        col = min(max(places[i, 1] / max(last_col, 1.0), 0.0), 1.0) * (wide - 1)
        r, c = min(int(row), high - 2), min(int(col), wide - 2)
        y, x = row - r, col - c
        above = (1 - x) * nodes[r, c] + x * nodes[r, c + 1]
        below = (1 - x) * nodes[r + 1, c] + x * nodes[r + 1, c + 1]
        value[i] = (1 - y) * above + y * below


@njit(cache=True, nogil=True, fastmath=_FAST)
def tell(
    weight: Float32,
    score: Float32,
    shared: Float32,
    spots: Float64,
    first: Int64,
    bell: Float32,
    away: Float32,
    info: Float64,
    told: Float64,
    begin: int,
    end: int,
) -> None:
    """Say of some columns what their pixels know of them: information and score.

    ``told`` is ``(score, information shared with what changes the image by the plane shared)``.
    """
    length = bell.shape[2]
    made = np.empty((4, length), dtype=np.float32)
    tilt, square, square_tilt, square_bend = made[0], made[1], made[2], made[3]
    for i in range(begin, end):
        top, left = first[0, i], first[1, i]
        along, aside = bell[1, i], away[1, i]
        for k in range(length):
            tilt[k] = along[k] * aside[k]
        for k in range(length):
            square[k] = along[k] * along[k]
        for k in range(length):
            square_tilt[k] = square[k] * aside[k]
        for k in range(length):
            square_bend[k] = square_tilt[k] * aside[k]
        i00 = i01 = i02 = i11 = i12 = i22 = np.float32(0)
        t0 = t1 = t2 = u0 = u1 = u2 = np.float32(0)
        for r in range(top, min(top + length, len(weight))):
            a = np.float32(spots[i, 2]) * bell[0, i, r - top]
            if a == 0:
                continue
            w, v, g = (
                weight[r, left : left + length],
                score[r, left : left + length],
                shared[r, left : left + length],
            )
            s0 = s1 = s2 = v0 = v1 = g0 = g1 = np.float32(0)
            for k in range(length):
                s0 += w[k] * square[k]
                s1 += w[k] * square_tilt[k]
                s2 += w[k] * square_bend[k]
                v0 += v[k] * along[k]
                v1 += v[k] * tilt[k]
                g0 += w[k] * g[k] * along[k]
                g1 += w[k] * g[k] * tilt[k]
            y, aa = away[0, i, r - top], a * a
            i00 += aa * y * y * s0
            i01 += aa * y * s1
            i02 += aa * y * s0
            i11 += aa * s2
            i12 += aa * s1
            i22 += aa * s0
            t0 += a * y * v0
            t1 += a * v1
            t2 += a * v0
            u0 += a * y * g0
            u1 += a * g1
            u2 += a * g0
        info[i, 0, 0], info[i, 1, 1], info[i, 2, 2] = i00, i11, i22
        info[i, 0, 1] = info[i, 1, 0] = i01
        info[i, 0, 2] = info[i, 2, 0] = i02
        info[i, 1, 2] = info[i, 2, 1] = i12
        told[0, i, 0], told[0, i, 1], told[0, i, 2] = t0, t1, t2
        told[1, i, 0], told[1, i, 1], told[1, i, 2] = u0, u1, u2


@njit(cache=True, nogil=True, fastmath=_FAST)
def tell_shape(
    weight: Float32,
    score: Float32,
    spots: Float64,
    first: Int64,
    bell: Float32,
    away: Float32,
    told: Float64,
    begin: int,
    end: int,
) -> None:
    """Say of some columns what their pixels know of how much longer one way they are than the other.

    ``told`` is ``(score from row to row, score along the diagonal, information of each)``, shape ``(n, 3)``.
    Two equal spots ``d`` widths apart make one between them longer by ``d² / 8`` along their line.
    """
    length = bell.shape[2]
    made = np.empty((3, length), dtype=np.float32)
    tilt, bend, steep = made[0], made[1], made[2]
    for i in range(begin, end):
        top, left = first[0, i], first[1, i]
        along, aside = bell[1, i], away[1, i]
        for k in range(length):
            tilt[k] = along[k] * aside[k]
        for k in range(length):
            bend[k] = tilt[k] * aside[k]
        for k in range(length):
            steep[k] = tilt[k] * tilt[k]
        upright = diagonal = info = np.float32(0)
        for r in range(top, min(top + length, len(weight))):
            a = np.float32(spots[i, 2]) * bell[0, i, r - top]
            if a == 0:
                continue
            w, v = weight[r, left : left + length], score[r, left : left + length]
            v0 = v1 = v2 = s2 = np.float32(0)
            for k in range(length):
                v0 += v[k] * along[k]
                v1 += v[k] * tilt[k]
                v2 += v[k] * bend[k]
                s2 += w[k] * steep[k]
            y = away[0, i, r - top]
            upright += a * (y * y * v0 - v2)
            diagonal += a * y * v1
            info += a * a * y * y * s2
        # Around a spot pixels weigh about as much in all directions: both are known alike.
        told[i, 0], told[i, 1], told[i, 2] = upright / 2, diagonal, info


@njit(cache=True, nogil=True, fastmath=_FAST)
def tell_pairs(
    weight: Float32,
    spots: Float64,
    profile_first: Int64,
    bell: Float32,
    away: Float32,
    first: Int64,
    other: Int64,
    back: Int64,
    between: Float64,
    begin: int,
    end: int,
) -> None:
    """Say what pixels that two columns share know of both: blocks of the information beside the diagonal.

    Of some columns, with those behind them in the list; see ``neighbours``.
    """
    rows, length = len(weight), bell.shape[2]
    made = np.empty((4, length), dtype=np.float32)
    both, steep, far, steep_far = made[0], made[1], made[2], made[3]
    for i in range(begin, end):
        for e in range(first[i], first[i + 1]):
            j = other[e]
            if j < i:
                continue
            z = np.zeros((3, 3), dtype=np.float32)
            top_i, top_j = profile_first[0, i], profile_first[0, j]
            left = max(profile_first[1, i], profile_first[1, j])
            skip_i, skip_j = left - profile_first[1, i], left - profile_first[1, j]
            width = length - max(skip_i, skip_j)
            for k in range(width):
                both[k] = bell[1, i, skip_i + k] * bell[1, j, skip_j + k]
            for k in range(width):
                steep[k] = both[k] * away[1, i, skip_i + k]
            for k in range(width):
                far[k] = both[k] * away[1, j, skip_j + k]
            for k in range(width):
                steep_far[k] = steep[k] * away[1, j, skip_j + k]
            for r in range(max(top_i, top_j), min(min(top_i, top_j) + length, rows)):
                a = bell[0, i, r - top_i] * bell[0, j, r - top_j]
                y, x = away[0, i, r - top_i], away[0, j, r - top_j]
                z00 = z01 = z10 = z11 = np.float32(0)
                w = weight[r, left : left + width]
                for k in range(width):
                    z00 += w[k] * both[k]
                    z10 += w[k] * steep[k]
                    z01 += w[k] * far[k]
                    z11 += w[k] * steep_far[k]
                z[0, 0] += a * y * x * z00
                z[0, 1] += a * y * z01
                z[0, 2] += a * y * z00
                z[1, 0] += a * x * z10
                z[1, 1] += a * z11
                z[1, 2] += a * z10
                z[2, 0] += a * x * z00
                z[2, 1] += a * z01
                z[2, 2] += a * z00
            product = spots[i, 2] * spots[j, 2]
            for p in range(3):
                for q in range(3):
                    between[e, p, q] = between[back[e], q, p] = product * z[p, q]


@njit(cache=True, nogil=True, fastmath=_FAST)
def misfit(
    weight: Float32,
    score: Float32,
    cols: int,
    spots: Float64,
    sigma: Float64,
    chi2: Float64,
    begin: int,
    end: int,
) -> None:
    """Mean squared residual within a width and a half of each middle, in units of the noise; 1 if unseen."""
    for i in range(begin, end):
        top, bottom = _span(spots[i, 0], 1.5 * sigma[0], len(weight))
        left, right = _span(spots[i, 1], 1.5 * sigma[1], cols)
        total, seen = 0.0, 0
        for r in range(top, bottom):
            for c in range(left, right):
                if weight[r, c] > 0:
                    total += score[r, c] * score[r, c] / weight[r, c]
                    seen += 1
        chi2[i] = total / seen if seen else 1.0


@njit(cache=True, nogil=True, inline="always")
def _span(middle: float, half: float, edge: int) -> tuple[int, int]:
    """First pixel and the one after the last within a distance, inside the frame."""
    return max(0, math.ceil(middle - half)), min(edge, math.floor(middle + half) + 1)


@njit(cache=True, nogil=True)
def binned(picture: Float32, width: int, side: int) -> Float32:
    """Add up squares of pixels of the first columns; what is left at the far edges is left out."""
    rows, cols = picture.shape[0] // side, width // side
    result = np.zeros((rows, cols), dtype=np.float32)
    line = np.empty(cols * side, dtype=np.float32)
    for r in range(rows):
        line[:] = 0
        for k in range(side):
            line += picture[r * side + k, : cols * side]
        for k in range(side):
            result[r] += line[k::side]
    return result


@njit(cache=True, nogil=True)
def tops(picture: Float32) -> Int64:
    """Pixels ``(row, col)`` above zero that are above all eight neighbours, none at the edge."""
    rows, cols = picture.shape
    found = np.empty((picture.size // 4 + 1, 2), dtype=np.int64)
    count = 0
    for r in range(1, rows - 1):
        above, here, below = picture[r - 1], picture[r], picture[r + 1]
        for c in range(1, cols - 1):
            value = here[c]
            if not (value > 0 and value >= here[c - 1] and value > here[c + 1]):
                continue
            if max(above[c - 1], above[c], above[c + 1], below[c - 1], below[c], below[c + 1]) > value:
                continue
            found[count, 0], found[count, 1] = r, c
            count += 1
    return found[:count].copy()
