"""What an objective reads, and what it gives: a number that knows how far it may be off."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
WindowEv = tuple[float, float]


class UnreadableSpectrum(ValueError):
    """A spectrum that the objective cannot be computed from.

    Parameters
    ----------
    reason
        A short fixed phrase to count by, such as ``no peak``.
    text
        For a person: what is wrong, where, and the cure.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Reading:
    """A value of the objective and the variance of its noise."""

    value: float
    variance: float


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What came of a stay at one place.

    Attributes
    ----------
    values
        Counts of each channel, or the response at each bias, shape ``(n,)``, finite.
    axis
        Energy loss of each channel in eV, ascending; or the tip's bias in V in the order of the sweep.
    is_loop
        Whether it is a response to a bias.
    """

    values: Float64
    axis: Float64
    is_loop: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A number and its derivative towards each value that it was computed from.

    Attributes
    ----------
    value, gradient
        ``gradient`` has shape ``(n,)``.
    beyond
        Variance that the gradient does not tell of: second order, or noise of other measurements.
    """

    value: float
    gradient: Float64
    beyond: float = 0.0


class Reader(ABC):
    """Reads one kind of number.

    Attributes
    ----------
    what, unit
        Of the number, as a person says them.
    origin
        Name and contents of the file that it comes from; empty where it comes from none.
    windows
        Ranges of the axis that it is read from, ``(what, from, to)``.
    has_memory
        Whether it speaks of what came before, and is to be told of every measurement.
    """

    what: str
    unit: str
    origin = ""
    windows: tuple[tuple[str, float, float], ...] = ()
    has_memory = False

    @abstractmethod
    def read(self, measured: Measured) -> Reading:
        """Read it.

        Raises
        ------
        UnreadableSpectrum
            If it cannot be read.
        """

    def remember(self, measured: Measured) -> None:
        """Take note of what was measured, for a number that speaks of what came before."""
        return


class GivenValue(Reader):
    """Takes a value and its standard deviation, which come in place of a spectrum."""

    what = "value"
    unit = ""

    def read(self, measured: Measured) -> Reading:
        """Take them as they came."""
        pair = measured.values
        if pair.size != 2 or not pair[1] > 0:
            raise UnreadableSpectrum(
                "not a value",
                "objective.kind 'value' takes two numbers in place of a spectrum: the value, and its "
                "standard deviation above 0",
            )
        return Reading(float(pair[0]), float(pair[1] ** 2))


class SpectrumReader(Reader):
    """Reads counts, whose variance is known from the counts themselves.

    Parameters
    ----------
    counts_per_electron
        Gain of the detector: the variance of ``n`` counts is ``n`` times it.
    """

    def __init__(self, counts_per_electron: float) -> None:
        self.counts_per_electron = counts_per_electron

    @abstractmethod
    def estimate(self, counts: Float64, axis_ev: Float64) -> Estimate:
        """Compute the number and its gradient towards the counts."""

    def read(self, measured: Measured) -> Reading:
        """Read it from a spectrum; see ``Reader``."""
        if measured.is_loop:
            raise UnreadableSpectrum(
                "not a spectrum",
                f"the {self.what} is read from a spectrum of energies, and this is a loop of the tip's bias; "
                "choose loop_area, coercive_bias, nucleation_bias or remanent_response as objective.kind",
            )
        found = self.estimate(measured.values, measured.axis)
        return Reading(found.value, poisson_variance(found, measured.values, self.counts_per_electron))


def poisson_variance(estimate: Estimate, counts: Float64, counts_per_electron: float) -> float:
    """Propagate Poisson noise: ``Σ gradient² counts``, whatever the number is.

    Never below that of one electron, which an empty window would say.
    """
    squares = estimate.gradient * estimate.gradient
    poisson = float(squares @ np.maximum(counts, 0.0)) * counts_per_electron
    return max(poisson + estimate.beyond, float(squares.max()) * counts_per_electron**2)


def channels(axis_ev: Float64, window_ev: WindowEv, name: str) -> slice:
    """Find the channels whose centres lie in ``[from, to)``.

    Parameters
    ----------
    axis_ev
        Energy loss of each channel, evenly spaced.
    window_ev, name
        The window, and the name of it under ``[agent.objective]``, for the text of an error.

    Raises
    ------
    UnreadableSpectrum
        If the window is not on the axis, or between two channels.
    """
    step_ev = float(axis_ev[1] - axis_ev[0]) if axis_ev.size > 1 else 1.0
    low, high = window_ev
    first, last = (float(axis_ev[0]), float(axis_ev[-1])) if axis_ev.size else (0.0, 0.0)
    # The end is exclusive, so a window may end one step after the last channel and still be covered.
    if axis_ev.size == 0 or low < first - step_ev / 2 or high > last + step_ev:
        raise UnreadableSpectrum(
            "window off the axis",
            f"objective.{name} {low:g} to {high:g} eV is not within the spectrum, {first:g} to {last:g} eV; "
            "move the window or the energy range of the spectrometer",
        )
    start, stop = np.searchsorted(axis_ev, [low, high], side="left")
    if stop <= start:
        raise UnreadableSpectrum(
            "window too narrow",
            f"objective.{name} {low:g} to {high:g} eV holds no channel of {step_ev:g} eV; make it wider",
        )
    return slice(int(start), int(stop))


def check_window(name: str, window_ev: WindowEv) -> None:
    """Refuse a window of the configuration that is none.

    Raises
    ------
    ValueError
        Naming it.
    """
    low, high = window_ev
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"objective.{name} is {(low, high)}; it takes two energies, the lower first")
