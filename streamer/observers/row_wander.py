"""How far each row of a scan is off, when rows wander together and each jitters by itself.

A measured offset is a slow wander (Ornstein-Uhlenbeck, over some rows), a jitter of the row's own, and
the noise of the measurement. How large the first two are is learnt from the rows themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# What interpolation does to an offset, whatever its noise.
_LEAST_PX = 0.01
# The variances of measurements are themselves uncertain by so much.
_NOISE_FACTORS = (1.0, 1.2)
_MOST_FROM_A_ROW = 2.0
# Variances as parts of what is seen, lengths in rows over which a stage or a beam wanders.
_PARTS = (0.0, 0.02, 0.07, 0.2, 0.5, 1.0)
_LENGTHS = (4.0, 10.0, 25.0, 60.0)
_SLOW, _JITTER, _LENGTH_ROWS = np.array(
    [(0.0, jitter, 1.0) for jitter in _PARTS]
    + [(slow, jitter, length) for jitter in _PARTS for slow in _PARTS[1:] for length in _LENGTHS]
).T.copy()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wander:
    """What is known of the rows along one axis.

    Attributes
    ----------
    offset_px
        Most likely offset of each row, shape ``(rows,)``.
    variance_px2
        Its variance, shape ``(rows,)``.
    slow_px2
        Variance of the wander that rows share.
    length_rows
        Rows over which it fades to 1/e.
    jitter_px2
        Variance of each row's own.
    """

    offset_px: Float64
    variance_px2: Float64
    slow_px2: float
    length_rows: float
    jitter_px2: float


def settled(measured_px: Float64, variance_px2: Float64) -> Wander:
    """Say the rows' offsets from measurements of them; none where nothing stands out of the noise.

    The three numbers are those of the highest likelihood on a grid; they must be ``rows**1.5`` times
    as likely as no motion at all, what three free numbers cost (Schwarz 1978).

    Parameters
    ----------
    measured_px
        Shape ``(rows,)``, their mean taken off.
    variance_px2
        Of the noise of each, infinite where a row tells nothing.
    """
    rows = measured_px.size
    nothing = Wander(
        offset_px=np.zeros(rows),
        variance_px2=np.zeros(rows),
        slow_px2=0.0,
        length_rows=0.0,
        jitter_px2=0.0,
    )
    tells = np.isfinite(variance_px2)
    if np.count_nonzero(tells) < 8:
        return nothing
    # Twice what half of the rows stay below: a few wild rows do not set the scale.
    scale = 2.2 * float(np.median(measured_px[tells] ** 2))
    if scale <= 0:
        return nothing
    noise = _without_wild(measured_px, variance_px2, scale)
    found = [(factor * noise, *_likeliest(measured_px, factor * noise, scale)) for factor in _NOISE_FACTORS]
    likeliest_noise, slow, jitter, length, _ = max(found, key=lambda one: one[4])
    moving = _row_likelihoods(measured_px, likeliest_noise, slow, jitter, length)
    still = [_row_likelihoods(measured_px, one[0], 0.0, 0.0, 1.0) for one in found]
    gain = moving - max(still, key=lambda rows: float(rows.sum()))
    # No single row decides.
    if float(np.minimum(gain, _MOST_FROM_A_ROW).sum()) <= 1.5 * math.log(rows):
        return nothing
    offset, variance = _smoothed(measured_px, likeliest_noise, slow, jitter, length)
    return Wander(
        offset_px=offset, variance_px2=variance, slow_px2=slow, length_rows=length, jitter_px2=jitter
    )


def _without_wild(measured: Float64, variance: Float64, scale: float) -> Float64:
    """Raise the variance of rows that are further off than 4 standard deviations."""
    noise: Float64 = (
        variance + _LEAST_PX**2 + np.maximum(0.0, measured**2 - 16 * (scale + np.minimum(variance, scale)))
    )
    return noise


def _row_likelihoods(measured: Float64, noise: Float64, slow: float, jitter: float, length: float) -> Float64:
    """Say the log likelihood of each row, given the rows before."""
    before = np.empty((2, measured.size))
    _predicted(measured, noise, slow, jitter, length, before)
    spread = before[1] + jitter + noise
    told = np.isfinite(spread)
    spread = np.where(told, spread, 1.0)
    each: Float64 = -0.5 * ((measured - before[0]) ** 2 / spread + np.log(spread)) * told
    return each


@njit(cache=True)
def _predicted(
    measured: Float64, noise: Float64, slow: float, jitter: float, length: float, out: Float64
) -> float:
    """Say the wander at each row from the rows before, ``(2, rows)`` into ``out``; return log likelihood."""
    keep = math.exp(-1.0 / length)
    mean, variance, total, product = 0.0, slow, 0.0, 1.0
    for row in range(measured.size):
        out[0, row], out[1, row] = mean, variance
        spread = variance + jitter + noise[row]
        if np.isfinite(spread) and spread > 0:
            away = measured[row] - mean
            total -= 0.5 * away * away / spread
            # One logarithm for many rows.
            product *= spread
            if product < 1e-200 or product > 1e200:
                total -= 0.5 * math.log(product)
                product = 1.0
            mean += variance / spread * away
            variance -= variance * variance / spread
        mean *= keep
        variance = keep * keep * variance + (1 - keep * keep) * slow
    return total - 0.5 * math.log(product)


def _likeliest(measured: Float64, noise: Float64, scale: float) -> tuple[float, float, float, float]:
    """Search the grid for slow variance, jitter and length; the last is the log likelihood."""
    said = _log_likelihoods(measured, noise, scale * _SLOW, scale * _JITTER, np.exp(-1 / _LENGTH_ROWS))
    best = int(said.argmax())
    return scale * _SLOW[best], scale * _JITTER[best], _LENGTH_ROWS[best], float(said[best])


@njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _log_likelihoods(
    measured: Float64, noise: Float64, slow: Float64, jitter: Float64, keep: Float64
) -> Float64:
    """Say the log likelihood of each place of a grid: as ``_predicted``, all places at once.

    Rows follow each other, places do not: many are worked out by one instruction.
    """
    mean, variance = np.zeros_like(slow), slow.copy()
    total, product = np.zeros_like(slow), np.ones_like(slow)
    keep2, fresh = keep * keep, (1 - keep * keep) * slow
    count = 0
    for row in range(measured.size):
        if np.isfinite(noise[row]):
            here, spread = measured[row], noise[row]
            for place in range(slow.size):
                whole = variance[place] + jitter[place] + spread
                part = 1 / whole
                away = here - mean[place]
                gain = variance[place] * part
                total[place] -= 0.5 * away * away * part
                product[place] *= whole
                mean[place] = keep[place] * (mean[place] + gain * away)
                variance[place] = keep2[place] * (variance[place] - gain * variance[place]) + fresh[place]
            count += 1
            # One logarithm for some rows: variances in px are between 1e-4 and 1e4.
            if count % 32 == 0:
                total -= 0.5 * np.log(product)
                product[:] = 1.0
        else:
            mean *= keep
            variance[:] = keep2 * variance + fresh
    return total - 0.5 * np.log(product)


def _smoothed(
    measured: Float64, noise: Float64, slow: float, jitter: float, length: float
) -> tuple[Float64, Float64]:
    """Join what the rows before, the rows after and the row itself say of a row."""
    before, after = np.empty((2, measured.size)), np.empty((2, measured.size))
    _predicted(measured, noise, slow, jitter, length, before)
    _predicted(measured[::-1].copy(), noise[::-1].copy(), slow, jitter, length, after)
    after = after[:, ::-1]
    tiny = 1e-12
    # Both sides began with the same prior, which counts once.
    precision = 1 / (before[1] + tiny) + 1 / (after[1] + tiny) - 1 / (slow + tiny)
    others = (before[0] / (before[1] + tiny) + after[0] / (after[1] + tiny)) / precision
    prior = 1 / precision + jitter
    gain = prior / (prior + noise)
    return others + gain * (measured - others), prior * (1 - gain)
