"""Two columns that were fitted as one, told by what the fit leaves under it.

A spot between two that touch is too short for them one way. All columns of a frame may be longer one way
(astigmatism, rows that wander), so one has to be longer than the others by far. An atom that moved while it
was scanned is, too; so two spots have to explain the pixels better than one that is smeared out evenly, which
is the smear that is most like two.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

LEAST_APART = 1.5  # widths: whether spots that are nearer are two or a smear, 60 counts do not say
_LONG_SD = 7.0  # of 20,000 simulated columns alone none reached 4.5, of recorded ones few 6; two that touch 8
_TELLING = 6  # columns, from which on they say what is usual
_LINE = np.linspace(-2.5, 2.5, 41)  # widths from the middle of a column, where its two may be
_STEP = 5 / 40
_AROUND = 2.0  # widths beyond the ends of this line that are looked at
_BETTER = 2.0  # of chi², than a smear, for which one number less is free (AIC)
_COUPLED = 5.5  # widths: as far as this what is long, two or not, makes others beside it longer
_ONE, _OTHER = np.triu_indices(len(_LINE), k=round(LEAST_APART / _STEP))
# Each even from one place on the line to another, where it ends in the middle of a step.
_SMEARS = np.stack(
    [np.clip(np.minimum(_LINE - a, b - _LINE) / _STEP + 0.5, 0, 1) for a in _LINE for b in _LINE if a < b]
)


def close_pairs(
    weight: Float32, score: Float32, spots: Float64, sigma_px: Float64, shapes: Float64
) -> tuple[Int64, Float64]:
    """Find the columns that look like two.

    Parameters
    ----------
    weight, score
        Of each pixel: its weight, and its weighted residual.
    spots
        Columns that are seen whole, ``(row, col, amplitude)``, shape ``(n, 3)``.
    sigma_px
        Width along ``(row, col)``.
    shapes
        What pixels tell of how much longer one way each is, shape ``(n, 3)``; see ``spot_pixels.tell_shape``.

    Returns
    -------
    which, places_px
        Columns, shape ``(k,)``, and where the two would be: ``(row, col)``, the higher one first, shape
        ``(k, 2, 2)``.
    """
    which: list[int] = []
    places: list[Float64] = []
    judged = np.empty((0, 2))
    for column, axis_rad in elongated(shapes):
        middle = spots[column, :2] / sigma_px
        if np.any(np.hypot(*(judged - middle).T) < _COUPLED):
            continue
        judged = np.vstack([judged, middle])
        two = two_along(weight, score, spots[column], sigma_px, axis_rad)
        if two is not None:
            which.append(column)
            places.append(two)
    return np.array(which, dtype=np.int64), np.array(places).reshape(-1, 2, 2)


def elongated(shapes: Float64) -> list[tuple[int, float]]:
    """Name the columns that are longer one way than the others by far, the surest first.

    Parameters
    ----------
    shapes
        As in ``close_pairs``.

    Returns
    -------
    found
        Of each its number, and the angle of its long axis from the direction of ``row`` to that of ``col``.
    """
    if len(shapes) < _TELLING:
        return []
    told, info = shapes[:, :2].T, np.maximum(shapes[:, 2], 1e-30)
    longer = told / info
    # Bright columns know best what is usual.
    longer -= np.median(longer[:, info >= np.median(info)], axis=1, keepdims=True)
    sds = longer * np.sqrt(info)
    sds /= np.maximum(1.4826 * np.median(np.abs(sds), axis=1, keepdims=True), 1)
    far = sds[0] ** 2 + sds[1] ** 2
    which = np.flatnonzero(far > _LONG_SD**2)
    which = which[np.argsort(-far[which], kind="stable")]
    return [(int(i), 0.5 * math.atan2(longer[1, i], longer[0, i])) for i in which]


def two_along(
    weight: Float32, score: Float32, spot: Float64, sigma_px: Float64, axis_rad: float
) -> Float64 | None:
    """Look for two spots on a line through the middle of one that was fitted.

    Parameters
    ----------
    weight, score, sigma_px
        As in ``close_pairs``.
    spot
        ``(row, col, amplitude)``.
    axis_rad
        Of the line, distances being in widths; see ``elongated``.

    Returns
    -------
    places_px
        ``(row, col)``, the higher one first, shape ``(2, 2)``, or None where a smear explains about as much
        or pixels are missing.
    """
    reach = (_LINE[-1] + _AROUND) * sigma_px
    begin = np.maximum(np.ceil(spot[:2] - reach), 0).astype(np.intp)
    end = np.floor(spot[:2] + reach).astype(np.intp) + 1
    w, v = (plane[begin[0] : end[0], begin[1] : end[1]].astype(np.float64) for plane in (weight, score))
    if not w.all():
        return None
    direction = np.array([math.cos(axis_rad), math.sin(axis_rad)])
    # Along each axis of the image a spot is a profile of its own.
    far = [(begin[axis] + np.arange(w.shape[axis]) - spot[axis]) / sigma_px[axis] for axis in (0, 1)]
    down, along = (np.exp(-0.5 * (far[axis] - _LINE[:, None] * direction[axis]) ** 2) for axis in (0, 1))
    spots = (down[:, :, None] * along[:, None, :]).reshape(len(_LINE), -1)
    pair = _best_pair(*_told(w.ravel(), v.ravel(), spots, spot[2]))
    return None if pair is None else spot[:2] + _LINE[pair, None] * direction * sigma_px


def _told(weight: Float64, score: Float64, spots: Float64, height: float) -> tuple[Float64, Float64]:
    """Say what pixels know of spots in the stead of one of this height in the middle of them.

    The level around is unknown: a fit of one spot takes the ends of two for ground.

    Returns
    -------
    told, info
        Score and information of their heights, shapes ``(m,)`` and ``(m, m)``.
    """
    score = score + weight * height * spots[len(spots) // 2]
    level, known = spots @ weight, float(weight.sum())
    told: Float64 = spots @ score - level * (score.sum() / known)
    info: Float64 = (spots * weight) @ spots.T - np.outer(level, level) / known
    return told, info


def _best_pair(told: Float64, info: Float64) -> Int64 | None:
    """Number the two spots on the line that explain most, the higher one first; None if a smear does."""
    smeared = np.maximum(_SMEARS @ told, 0) ** 2 / np.sum(_SMEARS @ info * _SMEARS, axis=1)
    own, others, shared = info[_ONE, _ONE], info[_OTHER, _OTHER], info[_ONE, _OTHER]
    height = np.stack([others * told[_ONE] - shared * told[_OTHER], own * told[_OTHER] - shared * told[_ONE]])
    height /= own * others - shared**2
    gain = np.where((height > 0).all(axis=0), height[0] * told[_ONE] + height[1] * told[_OTHER], 0)
    best = int(np.argmax(gain))
    if gain[best] < smeared.max() + _BETTER:
        return None
    pair: Int64 = np.array([_ONE[best], _OTHER[best]])[np.argsort(-height[:, best])]
    return pair
