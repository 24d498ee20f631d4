"""What a hysteresis loop says: its area, and where it switches.

A response has no counting statistics, so the noise is taken from the loop itself: from how far each point
lies off the curve through its neighbours. From there on it is as with spectra: each number comes with its
gradient towards the response at every bias, and its variance is ``sd² Σ gradient²``.

Only the last cycle of a sweep counts, as a closed loop: the first begins with whatever was there before.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agents.reading import Estimate, Float64, Measured, Reader, Reading, UnreadableSpectrum

Indices = NDArray[np.intp]
Side = Literal["positive", "negative", "mean", "half_width"]

# A point so many sd off the middle one of the five around it is a failed measurement, not noise.
STANDS_OUT = 8.0
MAX_LEFT_OUT = 0.25
LEAST_POINTS = 16
# Parts of the sweep at either end over which the response there is averaged.
END = 0.1
# Points of a branch that the line through its steepest part is fitted to.
NEAR = 4
# With more than this part of the switching between two points, the line goes through these two alone.
STEP = 0.5
# The line may be followed to so many times the distance of the outer of these points.
MAX_EXTRAPOLATED = 8.0
# The two ends of a loop that switches differ by this many sd of their difference at least.
SWITCHES = 5.0
NORMAL = 1.4826  # sd of a normal distribution over its median absolute deviation
# Beyond so many sd a point belongs to a step and not to the noise; what of the sd is left without those.
CUT, LEFT_BY_CUT, CUTS = 3.0, 0.9866, 6


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """The last cycle of a sweep.

    Attributes
    ----------
    bias_v, response
        In the order of the sweep, shape ``(n,)``; after the last point comes the first.
    rising, falling
        Indices of its branches, in the order of the sweep: from the lowest to the highest bias, and back.
    sd
        Of the noise of a response.
    """

    bias_v: Float64
    response: Float64
    rising: Indices
    falling: Indices
    sd: float

    @classmethod
    def of(cls, measured: Measured) -> Loop:
        """Take it from a measurement.

        Raises
        ------
        UnreadableSpectrum
            If there is no cycle in it, or too little of one.
        """
        start = _start_of_last_cycle(measured.axis.tobytes())
        bias_v, response = measured.axis[start:], measured.values[start:]
        sd = noise_sd(measured.values, measured.axis)
        kept = _is_in_line(response, sd)
        if kept.mean() < 1 - MAX_LEFT_OUT:
            raise UnreadableSpectrum(
                "points stand out",
                f"{(~kept).sum()} of {kept.size} points of the loop are far off their neighbours; see the "
                "contact and the fit of its resonance",
            )
        bias_v, response = bias_v[kept], response[kept]
        if bias_v.size < LEAST_POINTS:
            raise UnreadableSpectrum(
                "no loop", f"the last cycle has {bias_v.size} points; a loop takes {LEAST_POINTS} or more"
            )
        return cls(bias_v, response, *_branches(bias_v.tobytes()), sd)


class LoopReader(Reader):
    """Reads loops.

    Parameters
    ----------
    side
        Of two numbers, one for each branch: the one at positive bias, at negative bias, their mean, or half
        their difference.
    """

    def __init__(self, side: Side) -> None:
        self.side = side

    @abstractmethod
    def estimate(self, loop: Loop) -> Estimate:
        """Compute the number and its gradient towards the response."""

    def read(self, measured: Measured) -> Reading:
        """Read it from a loop; see ``Reader``."""
        if not measured.is_loop:
            raise UnreadableSpectrum(
                "not a loop",
                f"the {self.what} is read from a loop of the tip's bias, and this is a spectrum of energies; "
                "an instrument says the bias of each point in outcome.bias_v",
            )
        loop = Loop.of(measured)
        found = self.estimate(loop)
        variance = loop.sd**2 * float(found.gradient @ found.gradient) + found.beyond
        return Reading(found.value, max(variance, float(np.finfo(float).tiny)))

    def chosen(self, positive: Estimate, negative: Estimate) -> Estimate:
        """Take what ``side`` says of two numbers of a loop."""
        if self.side == "positive":
            return positive
        if self.side == "negative":
            return negative
        sign = 1.0 if self.side == "mean" else -1.0
        return Estimate(
            (positive.value + sign * negative.value) / 2,
            (positive.gradient + sign * negative.gradient) / 2,
            (positive.beyond + negative.beyond) / 4,
        )


class LoopArea(LoopReader):
    """Area within the loop, ``|∮ R dV|``: the work of switching, whichever way round it goes.

    Parameters
    ----------
    response_unit
        Of the response.
    """

    what = "loop area"

    def __init__(self, response_unit: str) -> None:
        super().__init__("mean")
        self.unit = f"{response_unit}·V"

    def estimate(self, loop: Loop) -> Estimate:
        """Sum up trapezoids around the closed loop."""
        gradient = (np.roll(loop.bias_v, -1) - np.roll(loop.bias_v, 1)) / 2
        area = float(gradient @ loop.response)
        return Estimate(abs(area), math.copysign(1.0, area) * gradient)


class SwitchingBias(LoopReader):
    """Bias at which each branch switches, ``positive`` for the rising one and ``negative`` for the falling.

    A straight line is put through the response before it switches, one through the response after, and one
    through the steepest part between them. The coercive bias is where the last is midway between the other
    two, whatever charge and contact add to the response; the nucleation bias is where it leaves the first.
    The mean of both branches is the imprint.

    Parameters
    ----------
    is_nucleation
        Nucleation instead of coercive bias.
    side
        As of ``LoopReader``.
    """

    unit = "V"

    def __init__(self, side: Side, *, is_nucleation: bool = False) -> None:
        super().__init__(side)
        name = "nucleation bias" if is_nucleation else "coercive bias"
        self.what = _of_side(side, name)
        self._is_nucleation, self._level = is_nucleation, 0.0 if is_nucleation else 0.5

    def estimate(self, loop: Loop) -> Estimate:
        """Find where the branches cross their levels."""
        return self.chosen(self._crossing(loop, loop.rising), self._crossing(loop, loop.falling))

    def _crossing(self, loop: Loop, branch: Indices) -> Estimate:
        bias_v, response = loop.bias_v[branch], loop.response[branch]
        middle = _switches_at(loop, branch)
        jump = _jump(loop, branch, middle)
        # Of a step those beside it; else those around it.
        half = 1 if jump > STEP else NEAR // 2
        near = _near(bias_v.tobytes(), middle, half)
        to_level = -(1 - self._level) * near.before - self._level * near.after
        to_level[np.arange(2 * half), np.arange(middle - half, middle + half)] += 1.0
        above = to_level @ response
        slope = float(near.slope @ above)
        shift = -float(above.mean()) / slope if slope else math.inf
        if abs(shift) > MAX_EXTRAPOLATED * near.reach_v:
            raise UnreadableSpectrum(
                "no switching", f"no {self.what}: the branches switch too slowly to say where; take loop_area"
            )
        gradient = np.zeros_like(loop.response)
        gradient[branch] = to_level.T @ (-1 / (2 * half) - shift * near.slope) / slope
        unseen = _unseen(float(bias_v[middle] - bias_v[middle - 1]), jump, self._is_nucleation)
        return Estimate(near.centre_v + shift, gradient, unseen)


class RemanentResponse(LoopReader):
    """Response at no bias, after the positive and after the negative end of the sweep.

    Parameters
    ----------
    response_unit
        Of the response.
    side
        As of ``LoopReader``.
    """

    def __init__(self, response_unit: str, side: Side) -> None:
        super().__init__(side)
        self.what = _of_side(side, "remanent response")
        self.unit = response_unit

    def estimate(self, loop: Loop) -> Estimate:
        """Fit a line through the points around no bias on each branch."""
        return self.chosen(_at_no_bias(loop, loop.falling), _at_no_bias(loop, loop.rising))


def _of_side(side: Side, what: str) -> str:
    return f"half width of the {what}" if side == "half_width" else f"{side} {what}"


def noise_sd(values: Float64, axis: Float64) -> float:
    """Estimate the noise of a curve from the curve itself.

    Each point's distance from the parabola through three neighbours has a known multiple of the noise
    (pseudo-residuals: Gasser, Sroka and Jennen-Steinmetz, Biometrika 73, 625 (1986), one order higher, since
    loops are curved). Where the curve has a step or a failed point, they are cut off.

    Parameters
    ----------
    values, axis
        Shape ``(n,)``; the axis rises and falls. Points around its turns are left out.

    Raises
    ------
    UnreadableSpectrum
        If there are not enough points in a row.
    """
    if values.size < LEAST_POINTS:
        raise UnreadableSpectrum("no loop", f"{values.size} points are too few for a loop")
    indices, weights = _third_differences(axis.tobytes())
    off = np.abs((weights * values[indices]).sum(axis=0))
    sd = NORMAL * float(np.median(off))
    for _ in range(CUTS):
        before, sd = sd, float(np.sqrt((off[off <= CUT * sd] ** 2).mean())) / LEFT_BY_CUT
        if sd == before:
            break
    return sd


# What follows from the bias alone is kept: a session sweeps all its loops alike.


@lru_cache(maxsize=16)
def _third_differences(axis: bytes) -> tuple[Indices, Float64]:
    """Find four points in a row each, and what makes of them a third difference as large as their noise.

    Returns
    -------
    indices, weights
        Both shape ``(4, k)``.
    """
    bias_v = np.frombuffer(axis)
    x = np.lib.stride_tricks.sliding_window_view(bias_v, 4)
    steps = np.diff(x, axis=1)
    is_straight = (steps > 0).all(axis=1) | (steps < 0).all(axis=1)
    if is_straight.sum() < LEAST_POINTS // 2:
        raise UnreadableSpectrum(
            "no loop", "the bias is not swept through: it does not rise or fall for four points in a row"
        )
    a, b, c = steps[is_straight].T
    # Of the third divided difference.
    weights = np.stack([-1 / (a * (a + b) * (a + b + c)), 1 / (a * b * (b + c)), -1 / ((a + b) * b * c),
                        1 / ((a + b + c) * (b + c) * c)])  # fmt: skip
    weights /= np.sqrt((weights * weights).sum(axis=0))
    return np.flatnonzero(is_straight) + np.arange(4)[:, None], weights


@lru_cache(maxsize=16)
def _start_of_last_cycle(axis: bytes) -> int:
    """Find where the last cycle begins, by the distance between its top and the one before."""
    bias_v = np.frombuffer(axis)
    if bias_v.size < LEAST_POINTS:
        raise UnreadableSpectrum(
            "no loop", f"the loop has {bias_v.size} points; it takes {LEAST_POINTS} or more"
        )
    lowest, highest = float(bias_v.min()), float(bias_v.max())
    quarter = (highest - lowest) / 4
    is_far = np.flatnonzero((bias_v < lowest + quarter) | (bias_v > highest - quarter))
    is_high = bias_v[is_far] > highest - quarter
    begins = np.flatnonzero(np.diff(is_high.astype(np.int8), prepend=0) == 1)
    if quarter <= 0 or is_high.all() or not begins.size:
        raise UnreadableSpectrum("no loop", "the bias does not change; a loop takes a sweep up and down")
    ends = np.append(begins[1:], is_high.size)
    tops = []
    for begin, end in zip(begins, ends, strict=True):
        run = is_far[begin:end][is_high[begin:end]]
        tops.append(int(run[bias_v[run].argmax()]))
    return 0 if len(tops) == 1 else bias_v.size - (tops[-1] - tops[-2])


@lru_cache(maxsize=64)
def _branches(bias: bytes) -> tuple[Indices, Indices]:
    """Find the way from the lowest to the highest bias, and back."""
    bias_v = np.frombuffer(bias)
    lowest, highest = int(bias_v.argmin()), int(bias_v.argmax())
    return _way(lowest, highest, bias_v.size), _way(highest, lowest, bias_v.size)


def _way(start: int, stop: int, size: int) -> Indices:
    """Go around from one point to another, both included."""
    return (start + np.arange((stop - start) % size + 1)) % size


@lru_cache(maxsize=16)
def _around(size: int) -> Indices:
    """Find each point of a closed loop and the two on either side of it, shape ``(size, 5)``."""
    return (np.arange(size)[:, None] + np.arange(-2, 3)) % size


def _is_in_line(response: Float64, sd: float) -> NDArray[np.bool_]:
    """Say which points are not far off the median of the five around them on the closed loop."""
    around = np.sort(response[_around(response.size)], axis=1)
    in_line: NDArray[np.bool_] = np.abs(response - around[:, 2]) <= STANDS_OUT * sd
    return in_line


def _switches_at(loop: Loop, branch: Indices) -> int:
    """Find the point of a branch before which it is at one end of the loop, and from which on at the other.

    Raises
    ------
    UnreadableSpectrum
        If the ends are not apart, or it switches too near to one of them.
    """
    response, bias_v = loop.response[branch], loop.bias_v[branch]
    room = END * float(np.abs(bias_v[-1] - bias_v[0]))
    at_start, at_stop = (response[np.abs(bias_v - end) <= room] for end in (bias_v[0], bias_v[-1]))
    start, stop = float(at_start.mean()), float(at_stop.mean())
    apart = stop - start
    if abs(apart) < SWITCHES * loop.sd * math.sqrt(1 / at_start.size + 1 / at_stop.size):
        raise UnreadableSpectrum(
            "no switching",
            f"the response is {start:.3g} at one end of the loop and {stop:.3g} at the "
            f"other, with a noise of {loop.sd:.2g}: nothing switches; take a larger bias, or loop_area",
        )
    above = (response - (start + stop) / 2) * math.copysign(1.0, apart)
    # Their sum is least where most before is below and most after is above: one crossing, however often
    # the noise crosses.
    middle = int(np.cumsum(above).argmin()) + 1
    if not NEAR <= middle <= branch.size - NEAR:
        raise UnreadableSpectrum(
            "no switching",
            "the loop switches within the last points of the sweep; take a larger bias, or loop_area",
        )
    return middle


def _line(x: Float64, at: Indices, to: Float64) -> Float64:
    """Make the matrix ``(to, n)`` from values at ``x`` to their least-squares line through ``at``."""
    off = x[at] - x[at].mean()
    matrix = np.zeros((to.size, x.size))
    matrix[:, at] = 1 / at.size + np.outer(to - x[at].mean(), off) / float(off @ off)
    return matrix


@dataclass(frozen=True, slots=True, eq=False)
class _Near:
    """Points around a switching, and what is well before and well after it, continued to them.

    Attributes
    ----------
    before, after
        Matrices that make the values of the two lines there from the response of the branch; see ``_line``.
    apart
        What makes their mean difference from it.
    centre_v, reach_v
        Mean of the points' biases, and how far from it they reach.
    slope
        What makes the slope of a line through these points from its values there.
    """

    before: Float64
    after: Float64
    apart: Float64
    centre_v: float
    reach_v: float
    slope: Float64


@lru_cache(maxsize=512)
def _near(bias: bytes, middle: int, half: int) -> _Near:
    """Take so many points on either side of a switching."""
    bias_v = np.frombuffer(bias)
    size, there_v = bias_v.size, bias_v[middle - half : middle + half]
    before = _line(bias_v, np.arange(max(middle // 2, NEAR)), there_v)
    after = _line(bias_v, np.arange(size - max((size - middle) // 2, NEAR), size), there_v)
    centre_v = float(there_v.mean())
    off_v = there_v - centre_v
    return _Near(
        before=before,
        after=after,
        apart=(after - before).mean(axis=0),
        centre_v=centre_v,
        reach_v=float(np.abs(off_v).max()),
        slope=off_v / float(off_v @ off_v),
    )


def _jump(loop: Loop, branch: Indices, middle: int) -> float:
    """Say how much of the switching is between the two points around it."""
    near, response = _near(loop.bias_v[branch].tobytes(), middle, 1), loop.response[branch]
    whole = float(near.apart @ response)
    first, last = (response[middle + k - 1] - near.before[k] @ response for k in (0, 1))
    done = float(last - first)
    return min(max(done / whole, 0.0), 1.0) if whole else 1.0


def _unseen(step_v: float, jump: float, is_nucleation: bool) -> float:
    """Variance of a crossing because nothing was measured between two points.

    If all switches between them, where it does so is not known within the step, ``step² / 12``, and the line
    through them leaves the response before up to a step too early; the more steps it takes, the better the
    line says it. The powers were chosen by simulation, for switching as the hyperbolic tangent.

    Parameters
    ----------
    step_v, jump
        Between the two points, and how much of the switching is between them.
    is_nucleation
        Whether it is the crossing with the response before.
    """
    return step_v**2 * (jump**2 / 4 if is_nucleation else jump**4 / 12)


def _at_no_bias(loop: Loop, branch: Indices) -> Estimate:
    bias_v = loop.bias_v[branch]
    if bias_v.min() > 0 or bias_v.max() < 0:
        raise UnreadableSpectrum(
            "no zero bias", "the sweep does not pass 0 V, so there is no remanent response; take loop_area"
        )
    near = branch[np.argsort(np.abs(bias_v), kind="stable")[:NEAR]]
    off = loop.bias_v[near] - loop.bias_v[near].mean()
    gradient = np.zeros_like(loop.response)
    gradient[near] = 1 / NEAR - loop.bias_v[near].mean() * off / float(off @ off)
    return Estimate(float(gradient @ loop.response), gradient)
