"""Particles on a flat face: connected regions above it, each with its middle and its long axis.

Particles that touch are one region of the face, but not of a higher level: the gap between two tops is
shallower than the face is deep, and yet deeper than the noise. So regions are followed from level to level
(the component tree of mathematical morphology), and where one falls into several that all are large and
stand clear of the noise, these are the particles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamer.messages import Float32

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

_SMOOTHED_PX = 0.7
# Levels as shares of the height of the tops: nine tenths of the rods that touch part at one of these.
_LEVELS = tuple(np.arange(0.4, 1.0, 0.03).tolist())
_CLEAR = 3.0  # standard deviations of the noise by which a part must rise above the level that cuts it off
_PART = 0.2  # of the area of a typical region at the same level is no particle
# A region up to so many times as large as one that never falls apart is one particle, whatever the noise and
# the unrest of the rows make of its ridge.
_SINGLE = 1.4


class Particles(NamedTuple):
    """Regions that are one particle each.

    Attributes
    ----------
    positions_px
        Middle ``(row, col)``, shape ``(n, 2)``.
    angle_rad
        Long axis from columns (x) towards rows (y), 0 to π, shape ``(n,)``; of a round one, any.
    length_px, width_px
        Of the rectangle with the same second moments, shape ``(n,)``.
    height
        Of the top above the face, shape ``(n,)``.
    area_share
        Area of the region against that of a typical one at the same level, shape ``(n,)``.
    is_whole
        Whether no part is cut off by the edge of the picture, shape ``(n,)``.
    """

    positions_px: Float64
    angle_rad: Float64
    length_px: Float64
    width_px: Float64
    height: Float64
    area_share: Float64
    is_whole: Bool


class _Level(NamedTuple):
    """The regions above one level, in the order of their labels from 1."""

    labels: NDArray[np.int32]
    level: float
    area: Float64
    top: Float64
    parent: Int64  # index of the region on the level below; -1 on the first


def particles(height_HW: Float32) -> Particles:
    """Find particles on a levelled face.

    Parameters
    ----------
    height_HW
        Heights above the face, which is at 0, shape ``(rows, cols)``, float32.

    Returns
    -------
    particles
        None for a bare face.
    """
    smooth = ndimage.gaussian_filter(height_HW, _SMOOTHED_PX, mode="nearest")
    noise = face_noise(height_HW) / (2 * math.sqrt(math.pi) * _SMOOTHED_PX)
    tops = typical_top(smooth, noise)
    if tops <= 0:
        return _none()
    levels: list[_Level] = []
    for share in _LEVELS:
        levels.append(_above(smooth, share * tops, levels[-1] if levels else None))
    leaves = _leaves(levels, noise)
    typical = [_single_area(*pair) for pair in zip(levels, leaves, strict=True)]
    chosen = _chosen(levels, leaves, typical)
    parts = [_measured(smooth, *each) for each in zip(levels, chosen, typical, strict=True)]
    return Particles(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def typical_top(smooth: Float32, noise: float) -> float:
    """Height of the tops: the 90th percentile of what stands clear of the face; 0 where nothing does."""
    high = smooth[smooth > max(6 * noise, 0.3 * float(smooth.max()))]
    if high.size < 9 or float(smooth.max()) <= 0:
        return 0.0
    return float(np.percentile(high, 90))


def face_noise(height_HW: Float32) -> float:
    """Standard deviation of a pixel's noise, from second differences along columns.

    Not along rows: a feedback that lags has its own noise there.
    """
    if height_HW.shape[0] < 3:
        return 0.0
    bend = height_HW[2:, ::2] - 2 * height_HW[1:-1, ::2] + height_HW[:-2, ::2]
    return float(1.4826 * np.median(np.abs(bend)) / math.sqrt(6))


def _above(smooth: Float32, level: float, below: _Level | None) -> _Level:
    labels, count = ndimage.label(smooth > level, structure=np.ones((3, 3), dtype=np.int32))
    inside = np.flatnonzero(labels)
    which = labels.ravel()[inside] - 1
    value = smooth.ravel()[inside]
    top = np.full(count, -np.inf)
    np.maximum.at(top, which, value)
    parent = np.full(count, -1, dtype=np.int64)
    if below is not None:
        parent[which] = below.labels.ravel()[inside] - 1
    return _Level(labels, level, np.bincount(which, minlength=count).astype(np.float64), top, parent)


def _chosen(levels: list[_Level], leaves: list[Int64], typical: list[float]) -> list[Bool]:
    """Mark the regions that are one particle: from below, the first that are not to be parted."""
    chosen, opened = [], np.zeros(0, dtype=bool)
    for n, level in enumerate(levels):
        comes_of_parted = np.ones(len(level.area), dtype=bool) if n == 0 else opened[level.parent]
        opened = comes_of_parted & (leaves[n] >= 2) & (level.area > _SINGLE * typical[n])
        chosen.append(comes_of_parted & ~opened & (leaves[n] >= 1))
    return chosen


def _leaves(levels: list[_Level], noise: float) -> list[Int64]:
    """Count for each region the parts that it has fallen into at the last."""
    leaves = [np.zeros(len(level.area), dtype=np.int64) for level in levels]
    for n in range(len(levels) - 1, -1, -1):
        is_last = _counts(levels[n], noise) & (leaves[n] == 0)
        leaves[n][is_last] = 1
        if n:
            np.add.at(leaves[n - 1], levels[n].parent, leaves[n])
    return leaves


def _counts(level: _Level, noise: float) -> Bool:
    """Mark the regions that are large and high enough to be a particle, or a part that is one."""
    if not len(level.area):
        return np.zeros(0, dtype=bool)
    is_large = level.area >= _PART * _weighty(level.area)
    counts: Bool = is_large & (level.top - level.level >= _CLEAR * noise)
    return counts


def _weighty(area: Float64) -> float:
    """Area of the region in which the middle pixel of all lies: specks, though many, have few."""
    order = np.sort(area)
    return float(order[np.searchsorted(np.cumsum(order), order.sum() / 2)])


def _single_area(level: _Level, leaves: Int64) -> float:
    """Area of a typical particle on a level: of the regions that never fall apart."""
    alone = level.area[leaves == 1]
    return float(np.median(alone)) if len(alone) else math.inf


def _measured(smooth: Float32, level: _Level, picked: Bool, typical: float) -> Particles:
    """Measure the picked regions of a level, weighed by their height above it."""
    if not picked.any():
        return _none()
    rows, cols = smooth.shape
    index = np.flatnonzero(np.concatenate([[False], picked])[level.labels.ravel()])
    which = (np.cumsum(picked) - 1)[level.labels.ravel()[index] - 1]
    count = int(picked.sum())
    row, col = np.divmod(index, cols)
    weight = (smooth.ravel()[index] - level.level).astype(np.float64)
    total = np.bincount(which, weight, count)
    middle = np.stack([np.bincount(which, weight * at, count) / total for at in (row, col)], axis=1)
    down, right = row - middle[which, 0], col - middle[which, 1]
    by_row, by_col, mixed = (
        np.bincount(which, weight * a * b, count) / total
        for a, b in ((down, down), (right, right), (down, right))
    )
    at_edge = (row == 0) | (row == rows - 1) | (col == 0) | (col == cols - 1)
    half_sum, half_gap = (by_row + by_col) / 2, np.hypot((by_col - by_row) / 2, mixed)
    return Particles(
        positions_px=middle,
        angle_rad=(np.arctan2(2 * mixed, by_col - by_row) / 2) % math.pi,
        length_px=np.sqrt(12 * (half_sum + half_gap)),
        width_px=np.sqrt(12 * np.maximum(half_sum - half_gap, 0)),
        height=level.top[picked],
        area_share=level.area[picked] / typical,
        is_whole=np.bincount(which, at_edge, count) == 0,
    )


def _none() -> Particles:
    empty = np.zeros(0)
    return Particles(np.zeros((0, 2)), empty, empty, empty, empty, empty, np.zeros(0, dtype=bool))
