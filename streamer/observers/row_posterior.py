"""Offsets of rows from what columns say of several rows at once.

A column's height and its background are fitted to the same rows that its offsets show in. So it does not
speak of one row alone: what it says couples the rows that it crosses, and all columns together give a
banded matrix. Taken row by row, the heights would be off by what the rows' own offsets did to them,
however high the dose.

The information of ``n`` rows is a band of shape ``(width, n)``: element ``[k, r]`` couples rows ``r`` and
``r + k``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_SMALLEST_PX, _LARGEST_PX = 2e-3, 4.0
_GOLDEN = (math.sqrt(5) - 1) / 2
_TRIALS = 10  # sd to 3 %
_STANDS_OUT_SD = 3.0


def product(band: Float64, values: Float64) -> Float64:
    """Multiply the matrix of a band with values ``(n,)``."""
    found: Float64 = band[0] * values
    for k in range(1, len(band)):
        found[:-k] += band[k, :-k] * values[k:]
        found[k:] += band[k, :-k] * values[:-k]
    return found


def likeliest_variance(band: Float64, score: Float64, start: float = 0.0) -> float:
    """Say how widely the offsets of rows are spread, px²; 0 where that does not stand out of the noise.

    Parameters
    ----------
    band
        Information of the rows, ``(width, n)``.
    score
        Slope of their log likelihood at offsets of 0, ``(n,)``.
    start
        What was found in the frame before: one step towards the likeliest is made from there, at a tenth
        of the cost of a search.
    """
    # The slope of the evidence at no spread: scores would have the information for their variance.
    excess = float(score @ score - band[0].sum())
    squares = float((band[0] ** 2).sum() + 2 * (band[1:] ** 2).sum())
    if excess <= _STANDS_OUT_SD * math.sqrt(2 * squares):
        return 0.0
    if start > 0:  # expectation and maximisation
        mean, variance = posterior(band, score, start)
        return float((mean**2 + variance).mean())
    low, high = 2 * math.log(_SMALLEST_PX), 2 * math.log(_LARGEST_PX)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = (_log_evidence(band, score, math.exp(at)) for at in (left, right))
    for _ in range(_TRIALS):
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = _log_evidence(band, score, math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = _log_evidence(band, score, math.exp(right))
    return math.exp((low + high) / 2)


def posterior(band: Float64, score: Float64, spread2: float) -> tuple[Float64, Float64]:
    """Say the most likely offset of each row and its variance, if offsets vary by ``spread2`` px².

    Parameters
    ----------
    band, score
        As in ``likeliest_variance``.
    """
    if spread2 <= 0:
        return np.zeros(band.shape[1]), np.zeros(band.shape[1])
    lower = _factor(band, 1 / spread2)
    return _solved(lower, score), _inverse_diagonal(lower)


@njit(cache=True)
def _factor(band: Float64, prior: float) -> Float64:
    """Cholesky factor of the band with ``prior`` on its diagonal, as a band."""
    width, count = band.shape
    lower = np.empty((width, count))
    for j in range(count):
        reach = min(width, count - j)
        for k in range(reach):
            value = band[k, j] + (prior if k == 0 else 0.0)
            for m in range(max(0, j + k - width + 1), j):
                value -= lower[j - m, m] * lower[j + k - m, m]
            # Rounding only: information is never negative, and the prior is positive.
            lower[k, j] = math.sqrt(max(value, 1e-12 * prior)) if k == 0 else value / lower[0, j]
        lower[reach:, j] = 0.0
    return lower


@njit(cache=True)
def _forward(lower: Float64, right: Float64) -> Float64:
    width, count = lower.shape
    found = right.copy()
    for j in range(count):
        found[j] /= lower[0, j]
        for k in range(1, min(width, count - j)):
            found[j + k] -= lower[k, j] * found[j]
    return found


@njit(cache=True)
def _solved(lower: Float64, right: Float64) -> Float64:
    width, count = lower.shape
    found = _forward(lower, right)
    for j in range(count - 1, -1, -1):
        for k in range(1, min(width, count - j)):
            found[j] -= lower[k, j] * found[j + k]
        found[j] /= lower[0, j]
    return found


@njit(cache=True)
def _log_evidence(band: Float64, score: Float64, spread2: float) -> float:
    """Log evidence of a spread, beside that of none."""
    lower = _factor(band, 1 / spread2)
    white = _forward(lower, score)
    log_root = 0.0
    for j in range(lower.shape[1]):
        log_root += math.log(lower[0, j])
    found: float = 0.5 * (white @ white) - log_root - 0.5 * lower.shape[1] * math.log(spread2)
    return found


@njit(cache=True)
def _inverse_diagonal(lower: Float64) -> Float64:
    """Diagonal of the inverse, by the elements of it that lie in the band (Takahashi 1973)."""
    width, count = lower.shape
    inverse = np.zeros((width, count))
    for j in range(count - 1, -1, -1):
        reach = min(width, count - j)
        for i in range(reach - 1, -1, -1):
            value = 1 / lower[0, j] if i == 0 else 0.0
            for k in range(1, reach):
                first, second = min(i, k), max(i, k)
                value -= lower[k, j] * inverse[second - first, j + first]
            inverse[i, j] = value / lower[0, j]
    diagonal: Float64 = inverse[0].copy()
    return diagonal
