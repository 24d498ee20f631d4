"""Spectrum → value and variance: what a measurement is worth to the goal.

Every objective is a number with the gradient of that number towards each channel; the variance follows
from Poisson counts by one line, ``Σ gradient² · counts``, whichever objective it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
WindowEv = tuple[float, float]
Kind = Literal["band_integral", "peak_position"]
BackgroundModel = Literal["none", "constant", "linear", "power_law"]


class UnreadableSpectrum(ValueError):
    """A spectrum that the objective cannot be computed from; the text names the window and the cure."""


class ObjectiveConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured of a spectrum.

    Attributes
    ----------
    kind
        ``band_integral``: counts in ``window_ev`` above the background. ``peak_position``: energy of the
        maximum in ``window_ev``, finer than a channel.
    label
        What a person calls it, such as ``Si L2,3``; empty takes the window's energies.
    window_ev
        Energy loss ``(from, to)`` of the band or of the search for the peak.
    background_model
        What lies under the edge: ``none``, ``constant``, ``linear`` or ``power_law`` (A·E⁻ʳ, the usual
        pre-edge background of EELS, by the two-area method). Of a band integral only.
    background_ev
        Pre-edge window ``(from, to)`` that the background is taken from.
    normalise
        ``none`` (counts), ``total`` (fraction of all counts) or ``reference`` (ratio to the counts in
        ``reference_ev``). Of a band integral only.
    reference_ev
        Energy window of the reference.
    peak_half_width_ev
        A parabola is fitted to this far on either side of the highest channel.
    counts_per_electron
        Gain of the detector: the variance of ``n`` counts is ``n`` times it.
    """

    kind: Kind = "band_integral"
    label: str = "Si L2,3"
    window_ev: WindowEv = (99.0, 120.0)
    background_model: BackgroundModel = "power_law"
    background_ev: WindowEv = (65.0, 97.0)
    normalise: Literal["none", "total", "reference"] = "total"
    reference_ev: WindowEv = (10.0, 40.0)
    peak_half_width_ev: float = 3.0
    counts_per_electron: float = 1.0

    def __post_init__(self) -> None:
        for name in ("window_ev", "background_ev", "reference_ev"):
            low, high = getattr(self, name)
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"objective.{name} is {(low, high)}; it takes two energies, the lower first")
        is_power_law = self.kind == "band_integral" and self.background_model == "power_law"
        if is_power_law and not 0 < self.background_ev[0] < self.window_ev[0]:
            raise ValueError(
                f"objective.background_ev is {self.background_ev}; a power law takes energies above 0 "
                f"and starts before window_ev, {self.window_ev}"
            )
        for name in ("peak_half_width_ev", "counts_per_electron"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"objective.{name} is {value}; it takes a number above 0")


@dataclass(frozen=True, slots=True)
class Reading:
    """A value of the objective and its variance from counting statistics."""

    value: float
    variance: float


@dataclass(frozen=True, slots=True)
class _Estimate:
    """A number and its derivative towards the counts of each channel, shape ``(energy,)``."""

    value: float
    gradient: Float64


@dataclass(frozen=True, slots=True)
class Objective:
    """Reads spectra as the configuration says.

    Examples
    --------
    >>> flat = np.full(256, 10, dtype=np.float32)
    >>> config = ObjectiveConfig(background_model="constant", normalise="none")
    >>> Objective(config).read(flat, energy_offset_ev=0.0, energy_step_ev=1.0).value
    0.0
    """

    config: ObjectiveConfig

    @property
    def name(self) -> str:
        """Say what the value is, with its unit."""
        low, high = self.config.window_ev
        what = self.config.label or f"{low:g}–{high:g} eV"
        if self.config.kind == "peak_position":
            return f"{what} peak position (eV)"
        unit = {"none": "counts", "total": "fraction of all counts", "reference": "ratio to reference"}
        return f"{what} band integral ({unit[self.config.normalise]})"

    def read(
        self, spectrum: NDArray[np.floating], *, energy_offset_ev: float, energy_step_ev: float
    ) -> Reading:
        """Compute the objective of one spectrum.

        Parameters
        ----------
        spectrum
            Counts, shape ``(energy,)``.
        energy_offset_ev, energy_step_ev
            Energy loss of channel 0 and width of a channel.

        Raises
        ------
        UnreadableSpectrum
            If a count is not finite or too large, a window is not on the energy axis, or there is nothing
            to divide by or no peak to find.
        """
        counts = np.asarray(spectrum, dtype=np.float64)
        if counts.ndim != 1 or not np.isfinite(counts).all():
            raise UnreadableSpectrum(
                "the spectrum has counts that are not finite; it takes a 1-D array of counts"
            )
        axis_ev = energy_offset_ev + energy_step_ev * np.arange(counts.size, dtype=np.float64)
        if self.config.kind == "peak_position":
            estimate = _peak_position(counts, axis_ev, self.config)
        else:
            estimate = _band_integral(counts, axis_ev, self.config)
        variance = _variance(estimate.gradient, counts, self.config.counts_per_electron)
        if not (math.isfinite(estimate.value) and math.isfinite(variance)):
            raise UnreadableSpectrum(
                "the counts are too large to compute with; see the gain of the spectrometer"
            )
        return Reading(estimate.value, variance)


def _variance(gradient: Float64, counts: Float64, counts_per_electron: float) -> float:
    """Propagate Poisson noise; never below that of one electron, which an empty window would say."""
    squares = gradient * gradient
    poisson = float(squares @ np.maximum(counts, 0.0)) * counts_per_electron
    return max(poisson, float(squares.max()) * counts_per_electron**2)


def _channels(axis_ev: Float64, window_ev: WindowEv, name: str) -> slice:
    """Find the channels whose centres lie in ``[from, to)``."""
    step_ev = float(axis_ev[1] - axis_ev[0]) if axis_ev.size > 1 else 1.0
    low, high = window_ev
    first, last = (float(axis_ev[0]), float(axis_ev[-1])) if axis_ev.size else (0.0, 0.0)
    # The end is exclusive, so a window may end one step after the last channel and still be covered.
    if axis_ev.size == 0 or low < first - step_ev / 2 or high > last + step_ev:
        raise UnreadableSpectrum(
            f"objective.{name} {low:g} to {high:g} eV is not within the spectrum, {first:g} to {last:g} eV; "
            "move the window or the energy range of the spectrometer"
        )
    start, stop = np.searchsorted(axis_ev, [low, high], side="left")
    if stop <= start:
        raise UnreadableSpectrum(
            f"objective.{name} {low:g} to {high:g} eV holds no channel of {step_ev:g} eV; make it wider"
        )
    return slice(int(start), int(stop))


def _band_integral(counts: Float64, axis_ev: Float64, config: ObjectiveConfig) -> _Estimate:
    """Integrate the band above its background, and divide by the norm."""
    band = _channels(axis_ev, config.window_ev, "window_ev")
    gradient = np.zeros_like(counts)
    gradient[band] = 1.0
    value = float(counts[band].sum())
    if config.background_model != "none":
        before = _channels(axis_ev, config.background_ev, "background_ev")
        under = _BACKGROUNDS[config.background_model](counts, axis_ev, before, band)
        value -= under.value
        gradient -= under.gradient
    return _normalised(_Estimate(value, gradient), counts, axis_ev, config)


def _normalised(estimate: _Estimate, counts: Float64, axis_ev: Float64, config: ObjectiveConfig) -> _Estimate:
    """Divide by the counts of the norm; the gradient keeps the covariance of band and norm."""
    if config.normalise == "none":
        return estimate
    share = np.ones_like(counts)
    if config.normalise == "reference":
        share[:] = 0.0
        share[_channels(axis_ev, config.reference_ev, "reference_ev")] = 1.0
    norm = float(share @ counts)
    if norm <= 0:
        raise UnreadableSpectrum(f"the spectrum has no counts to normalise by ({config.normalise})")
    ratio = estimate.value / norm
    return _Estimate(ratio, (estimate.gradient - ratio * share) / norm)


def _constant_background(counts: Float64, axis_ev: Float64, before: slice, band: slice) -> _Estimate:
    """Take the mean of the pre-edge window to lie under each channel of the band."""
    gradient = np.zeros_like(counts)
    gradient[before] = (band.stop - band.start) / (before.stop - before.start)
    return _Estimate(float(gradient @ counts), gradient)


def _linear_background(counts: Float64, axis_ev: Float64, before: slice, band: slice) -> _Estimate:
    """Continue the least-squares line through the pre-edge window."""
    if before.stop - before.start < 2:
        raise UnreadableSpectrum("objective.background_ev holds one channel; a line takes two or more")
    centre = axis_ev[before].mean()
    design = np.stack([np.ones(before.stop - before.start), axis_ev[before] - centre], axis=1)
    wanted = np.array([band.stop - band.start, float((axis_ev[band] - centre).sum())])
    gradient = np.zeros_like(counts)
    gradient[before] = wanted @ np.linalg.pinv(design)
    return _Estimate(float(gradient @ counts), gradient)


def _power_law_background(counts: Float64, axis_ev: Float64, before: slice, band: slice) -> _Estimate:
    """Continue A·E⁻ʳ from the two halves of the pre-edge window.

    The two-area method (Egerton, Electron Energy-Loss Spectroscopy in the Electron Microscope, 3rd ed.,
    section 4.4) without its approximation: the exponent is solved for, so that a power law leaves nothing
    however wide the window is. It is kept between 0 and 8: with few counts the halves may say anything.
    """
    middle = (before.start + before.stop) // 2
    if middle == before.start:
        raise UnreadableSpectrum("objective.background_ev holds one channel; a power law takes two or more")
    far, near = slice(before.start, middle), slice(middle, before.stop)
    n_far, n_near = (float(max(counts[part].sum(), 1.0)) for part in (far, near))
    # Elsewhere the axis may start at or below 0.
    log_ev = np.log(np.maximum(axis_ev, axis_ev[before.start]))
    free = _exponent(log_ev[far], log_ev[near], math.log(n_far / n_near))
    exponent = min(max(free, 0.0), 8.0)
    shape, mean_log = _power_law(log_ev[before], exponent)
    band_shape, band_mean_log = _power_law(log_ev[band], exponent)
    # The scale comes from both halves together, so that it does not lean on the exponent alone.
    per_count = band_shape / shape
    value = per_count * float(counts[before].sum())
    gradient = np.zeros_like(counts)
    gradient[before] = per_count
    if exponent == free:
        by_exponent = value * (mean_log - band_mean_log)
        span = _power_law(log_ev[near], exponent)[1] - _power_law(log_ev[far], exponent)[1]
        gradient[far] += by_exponent / (span * n_far)
        gradient[near] -= by_exponent / (span * n_near)
    return _Estimate(value, gradient)


def _power_law(log_ev: Float64, exponent: float) -> tuple[float, float]:
    """Sum E⁻ʳ over some channels; also the mean of log E with these weights."""
    shape = np.exp(-exponent * log_ev)
    total = float(shape.sum())
    return total, float(shape @ log_ev) / total


def _exponent(far_log_ev: Float64, near_log_ev: Float64, log_ratio: float) -> float:
    """Solve ``log(Σ_far E⁻ʳ / Σ_near E⁻ʳ) = log_ratio`` for r by Newton steps; it rises with r."""
    exponent = 3.0
    for _ in range(8):
        far, far_mean = _power_law(far_log_ev, exponent)
        near, near_mean = _power_law(near_log_ev, exponent)
        step = (log_ratio - math.log(far / near)) / (near_mean - far_mean)
        exponent = min(max(exponent + step, -20.0), 20.0)
    return exponent


_BACKGROUNDS = {
    "constant": _constant_background,
    "linear": _linear_background,
    "power_law": _power_law_background,
}


def _peak_position(counts: Float64, axis_ev: Float64, config: ObjectiveConfig) -> _Estimate:
    """Fit a parabola around the highest channel of the window; its vertex is the position."""
    window = _channels(axis_ev, config.window_ev, "window_ev")
    step_ev = float(axis_ev[1] - axis_ev[0]) if axis_ev.size > 1 else 1.0
    reach = max(1, round(config.peak_half_width_ev / step_ev))
    width = 2 * reach + 1
    if window.stop - window.start < width:
        raise UnreadableSpectrum(
            f"objective.window_ev holds {window.stop - window.start} channels; "
            f"a peak takes {width}, twice peak_half_width_ev"
        )
    # The running sum over the fit's own width finds the peak where single channels are mostly noise.
    summed = np.convolve(counts[window], np.ones(width), mode="valid")
    first = window.start + int(summed.argmax())
    offset = step_ev * np.arange(-reach, reach + 1)
    rows = np.linalg.pinv(np.stack([offset * offset, offset, np.ones(width)], axis=1))
    curvature, slope, _ = rows @ counts[first : first + width]
    position_ev = float(axis_ev[first + reach])
    if curvature >= 0:
        raise UnreadableSpectrum("the spectrum has no peak in objective.window_ev")
    shift_ev = -slope / (2 * curvature)
    if abs(shift_ev) > (reach + 1) * step_ev:
        raise UnreadableSpectrum("the spectrum has no peak in objective.window_ev")
    gradient = np.zeros_like(counts)
    gradient[first : first + width] = (-rows[1] - 2 * shift_ev * rows[0]) / (2 * curvature)
    return _Estimate(position_ev + float(shift_ev), gradient)
