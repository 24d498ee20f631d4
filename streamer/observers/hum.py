"""Whether the rows of a frame hum with the mains, and with what period."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincc

Float64 = NDArray[np.float64]

_FALSE_ALARM = 1e-4
_FINER = 8  # points of a periodogram in one line width
_SLOWEST = 8  # periods in a frame: what is slower is settling or drift
_SHORTEST_ROWS = 2.5
_AROUND = 40  # line widths over which the noise is averaged
_COHERENT = 0.6  # part of the power that frames must have in step for their phases to be used


def find_hum(offsets: Float64, rows_between: float | None = None) -> float | None:
    """Find the period of a hum in the offsets of rows.

    Parameters
    ----------
    offsets
        Of the rows of one frame, shape ``(2, rows)``, or of successive frames,
        ``(frames, 2, rows)``, in pixels, any hum still in them.
    rows_between
        Time from the start of a frame to that of the next, in rows; the number of rows if left out:
        no pause between frames. Where frames are not in step with it, each counts by itself.

    Returns
    -------
    float
        Period in rows; None unless a line stands out that noise would show once in ten thousand
        times. One frame gives it to about a thousandth, several in step to a ten thousandth.

    Raises
    ------
    ValueError
        If the shape is another one.
    """
    stack = np.asarray(offsets, dtype=np.float64)
    stack = stack[None] if stack.ndim == 2 else stack
    if stack.ndim != 3 or stack.shape[1] != 2:
        raise ValueError(f"offsets have shape {np.shape(offsets)}; (2, rows) or (frames, 2, rows) is needed")
    rows = stack.shape[2]
    stack = _without_slow(stack)
    if rows < 8 * _SLOWEST or not stack.any():
        return None
    frequency = np.arange(_FINER, rows * _FINER / _SHORTEST_ROWS) / (rows * _FINER)
    power = _relative_power(np.abs(_spectra(stack, frequency)) ** 2)
    best = int(np.where(frequency < _SLOWEST / rows, 0.0, power).argmax())
    used = stack.shape[0] * int(stack.any(axis=(0, 2)).sum())
    # A sum of `used` exponential variables; as many tries as there are independent frequencies.
    chance = float(gammaincc(used, power[best])) * rows / 2
    if chance > _FALSE_ALARM:
        return None
    found = _refined(stack, float(frequency[best]), None)
    if len(stack) > 1:
        found = _refined(stack, found, rows_between or float(rows))
    return 1 / found


def _without_slow(stack: Float64) -> Float64:
    """Take mean and slope off each frame's rows."""
    row = np.linspace(-1, 1, stack.shape[2])
    flat = stack - stack.mean(axis=2, keepdims=True)
    level: Float64 = flat - (flat @ row)[..., None] * row / (row @ row)
    return level


def _spectra(stack: Float64, frequency: Float64) -> NDArray[np.complex128]:
    """Shape ``(frames, 2, frequencies)``; each frame's phase counts from its own first row."""
    turn = np.exp(-2j * np.pi * np.outer(np.arange(stack.shape[2]), frequency))
    spectra: NDArray[np.complex128] = stack @ turn
    return spectra


def _relative_power(power: Float64) -> Float64:
    """Sum over frames and directions of the power in units of the noise around each frequency."""
    mean = power.mean(axis=0)
    total = np.zeros(power.shape[2])
    for direction in (0, 1):
        if not mean[direction].any():
            continue
        noise = np.maximum(_around(mean[direction], len(power)), _beside(mean[direction]))
        total += power[:, direction].sum(axis=0) / noise
    return total


def _around(power: Float64, averaged: int) -> Float64:
    """Mean of the noise, from the median of the power in a wide window."""
    reach = _AROUND * _FINER // 2
    step = _FINER * 4
    centres = np.arange(0, power.size, step)
    median = np.array([np.median(power[max(0, c - reach) : c + reach + 1]) for c in centres])
    # The median of a mean of n exponential variables lies below its mean by about 1 / 3n.
    mean = median / (np.log(2) if averaged == 1 else 1 - 1 / (3 * averaged))
    noise: Float64 = np.interp(np.arange(power.size), centres, np.maximum(mean, 1e-30))
    return noise


def _beside(power: Float64) -> Float64:
    """Power three to eight line widths beside, on the stronger side: a slope is no line."""
    total = np.concatenate([[0.0], np.cumsum(power)])
    place = np.arange(power.size)
    sides = []
    for first, last in ((-8, -3), (3, 8)):
        low, high = (np.clip(place + edge * _FINER, 0, power.size) for edge in (first, last))
        sides.append((total[high] - total[low]) / np.maximum(high - low, 1))
    stronger: Float64 = np.maximum(sides[0], sides[1])
    return stronger


def _refined(stack: Float64, frequency: float, rows_between: float | None) -> float:
    """Climb to the top of the line; with ``rows_between`` frames add by their phases, not their powers."""
    count, _, rows = stack.shape
    span = rows if rows_between is None else rows_between * (count - 1) + rows
    weight = 1 / np.maximum(stack.var(axis=(0, 2)), 1e-30) * stack.any(axis=(0, 2))
    # One frame alone knows the line to much better than its width: no other line is in reach.
    reach = 0.5 / rows if rows_between is None else 0.25 / rows_between
    grid = frequency + np.arange(-reach, reach, 1 / (_FINER * span))
    spectra = _spectra(stack, grid)
    if rows_between is None:
        power = np.einsum("tdf,d->f", np.abs(spectra) ** 2, weight)
    else:
        start = rows_between * np.arange(count)
        together = np.einsum("tdf,tf->df", spectra, np.exp(-2j * np.pi * np.outer(start, grid)))
        power = weight @ np.abs(together) ** 2 / count
        alone = float(np.einsum("tdf,d->f", np.abs(spectra) ** 2, weight).max())
        if power.max() < _COHERENT * alone:
            return frequency
    best = int(np.clip(power.argmax(), 1, len(grid) - 2))
    below, top, above = power[best - 1 : best + 2]
    bend = below - 2 * top + above
    shift = 0.5 * (below - above) / bend if bend < 0 else 0.0
    return float(grid[best] + np.clip(shift, -1, 1) * (grid[1] - grid[0]))
