"""What stands in bands of energy loss: counts above a background, ratios of them, fractions, a peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agents.reading import (
    Estimate,
    Float64,
    SpectrumReader,
    UnreadableSpectrum,
    WindowEv,
    channels,
    poisson_variance,
)

BackgroundModel = Literal["none", "constant", "linear", "power_law"]
Norm = Literal["none", "total", "reference"]

STANDS_OUT = 3.0  # sd of a band above its background, for it to be divided by


@dataclass(frozen=True, slots=True)
class Band:
    """Counts above a background.

    Attributes
    ----------
    window_ev
        Energy loss ``(from, to)``.
    background
        What lies under the band.
    background_ev
        Where it is taken from.
    sensitivity
        What the counts are divided by.
    name
        Put before the names of the windows in the text of an error, such as ``bands.Sn.``.
    """

    window_ev: WindowEv
    background: BackgroundModel = "none"
    background_ev: WindowEv = (0.0, 0.0)
    sensitivity: float = 1.0
    name: str = ""

    def integral(self, counts: Float64, axis_ev: Float64) -> Estimate:
        """Sum the counts above the background, divided by the sensitivity."""
        band = channels(axis_ev, self.window_ev, f"{self.name}window_ev")
        gradient = np.zeros_like(counts)
        gradient[band] = 1.0
        value = float(counts[band].sum())
        if self.background != "none":
            where = f"{self.name}background_ev"
            before = channels(axis_ev, self.background_ev, where)
            under = _BACKGROUNDS[self.background](counts, axis_ev, before, band, where)
            value -= under.value
            gradient -= under.gradient
        return Estimate(value / self.sensitivity, gradient / self.sensitivity)

    def windows(self, what: str) -> list[tuple[str, float, float]]:
        """List the ranges that it is read from."""
        background = [] if self.background == "none" else [("background", *self.background_ev)]
        return [(what, *self.window_ev), *background]


class BandIntegral(SpectrumReader):
    """Counts in a band above its background, as they are or as a part of others.

    Parameters
    ----------
    band
        Where.
    normalise, reference_ev
        What it is divided by: nothing, all counts, or those of a window.
    counts_per_electron
        As of ``SpectrumReader``.
    """

    what = "band integral"

    def __init__(
        self, band: Band, normalise: Norm, reference_ev: WindowEv, counts_per_electron: float
    ) -> None:
        super().__init__(counts_per_electron)
        self._band, self._normalise, self._reference_ev = band, normalise, reference_ev
        units = {"none": "counts", "total": "fraction of all counts", "reference": "ratio to reference"}
        self.unit = units[normalise]
        reference = [("reference", *reference_ev)] if normalise == "reference" else []
        self.windows = (*band.windows("band"), *reference)

    def estimate(self, counts: Float64, axis_ev: Float64) -> Estimate:
        """Integrate the band; the gradient keeps the covariance of band and norm."""
        found = self._band.integral(counts, axis_ev)
        if self._normalise == "none":
            return found
        share = np.ones_like(counts)
        if self._normalise == "reference":
            share[:] = 0.0
            share[channels(axis_ev, self._reference_ev, "reference_ev")] = 1.0
        norm = float(share @ counts)
        if norm <= 0:
            raise UnreadableSpectrum(
                "no counts", f"the spectrum has no counts to normalise by ({self._normalise})"
            )
        ratio = found.value / norm
        return Estimate(ratio, (found.gradient - ratio * share) / norm)


class _RatioReader(SpectrumReader):
    def _check_divisor(self, divisor: Estimate, counts: Float64, who_has: str) -> None:
        """Refuse to divide by what may be noise: of such a ratio neither mean nor variance exists."""
        sd = math.sqrt(poisson_variance(divisor, counts, self.counts_per_electron))
        if divisor.value < STANDS_OUT * sd:
            raise UnreadableSpectrum(
                "nothing to divide by",
                f"{who_has} {divisor.value:.3g} ± {sd:.2g} above the background, too little to divide by; "
                "see the windows, or take a longer agent.dwell_time_us",
            )


class PeakRatio(_RatioReader):
    """Counts of one band over those of another, each above its background.

    Parameters
    ----------
    bands
        Two, the second under the line.
    counts_per_electron
        As of ``SpectrumReader``.
    """

    what = "peak ratio"
    unit = "ratio"

    def __init__(self, bands: Sequence[Band], counts_per_electron: float) -> None:
        super().__init__(counts_per_electron)
        first, second = self._first, self._second = tuple(bands)
        self.windows = (*first.windows("band"), *second.windows("band under the line"))

    def estimate(self, counts: Float64, axis_ev: Float64) -> Estimate:
        """Divide the integrals."""
        above, below = (band.integral(counts, axis_ev) for band in (self._first, self._second))
        self._check_divisor(below, counts, f"objective.{self._second.name}window_ev has")
        ratio = above.value / below.value
        return Estimate(ratio, (above.gradient - ratio * below.gradient) / below.value)


class Composition(_RatioReader):
    """Atomic fraction of the first of some elements, from their edges.

    ``c_1 = (I_1 / s_1) / Σ (I_j / s_j)`` with the integrals ``I`` above their backgrounds and sensitivities
    ``s``, partial cross sections or k-factors (Egerton, Electron Energy-Loss Spectroscopy in the Electron
    Microscope, 3rd ed., equation 4.66).

    Parameters
    ----------
    bands
        One for each element.
    counts_per_electron
        As of ``SpectrumReader``.
    """

    what = "composition"
    unit = "atomic fraction"

    def __init__(self, bands: Sequence[Band], counts_per_electron: float) -> None:
        super().__init__(counts_per_electron)
        self._bands = tuple(bands)
        self.windows = tuple(window for band in bands for window in band.windows(_element(band)))

    def estimate(self, counts: Float64, axis_ev: Float64) -> Estimate:
        """Divide the first by the sum of all."""
        found = [band.integral(counts, axis_ev) for band in self._bands]
        total = math.fsum(one.value for one in found)
        whole = np.sum([one.gradient for one in found], axis=0)
        self._check_divisor(Estimate(total, whole), counts, "the edges of objective.bands together have")
        fraction = found[0].value / total
        return Estimate(fraction, (found[0].gradient - fraction * whole) / total)


def _element(band: Band) -> str:
    return band.name.removeprefix("bands.").removesuffix(".")


class PeakPosition(SpectrumReader):
    """Energy of the maximum in a window, finer than a channel.

    Parameters
    ----------
    window_ev
        Where it is looked for.
    half_width_ev
        A parabola is fitted so far to either side of the highest channel.
    counts_per_electron
        As of ``SpectrumReader``.
    """

    what = "peak position"
    unit = "eV"

    def __init__(self, window_ev: WindowEv, half_width_ev: float, counts_per_electron: float) -> None:
        super().__init__(counts_per_electron)
        self._window_ev, self._half_width_ev = window_ev, half_width_ev
        self.windows = (("search for the peak", *window_ev),)

    def estimate(self, counts: Float64, axis_ev: Float64) -> Estimate:
        """Fit a parabola around the highest channel of the window; its vertex is the position."""
        window = channels(axis_ev, self._window_ev, "window_ev")
        step_ev = float(axis_ev[1] - axis_ev[0]) if axis_ev.size > 1 else 1.0
        reach = max(1, round(self._half_width_ev / step_ev))
        width = 2 * reach + 1
        if window.stop - window.start < width:
            raise UnreadableSpectrum(
                "window too narrow",
                f"objective.window_ev holds {window.stop - window.start} channels; "
                f"a peak takes {width}, twice peak_half_width_ev",
            )
        # The running sum over the fit's own width finds the peak where single channels are mostly noise.
        summed = np.convolve(counts[window], np.ones(width), mode="valid")
        first = window.start + int(summed.argmax())
        offset = step_ev * np.arange(-reach, reach + 1)
        rows = np.linalg.pinv(np.stack([offset * offset, offset, np.ones(width)], axis=1))
        curvature, slope, _ = rows @ counts[first : first + width]
        shift_ev = -slope / (2 * curvature) if curvature < 0 else math.inf
        if abs(shift_ev) > (reach + 1) * step_ev:
            raise UnreadableSpectrum("no peak", "the spectrum has no peak in objective.window_ev")
        gradient = np.zeros_like(counts)
        gradient[first : first + width] = (-rows[1] - 2 * shift_ev * rows[0]) / (2 * curvature)
        return Estimate(float(axis_ev[first + reach]) + float(shift_ev), gradient)


# -- backgrounds -------------------------------------------------------------------------------


def _constant_background(
    counts: Float64, axis_ev: Float64, before: slice, band: slice, where: str
) -> Estimate:
    """Take the mean of the pre-edge window to lie under each channel of the band."""
    gradient = np.zeros_like(counts)
    gradient[before] = (band.stop - band.start) / (before.stop - before.start)
    return Estimate(float(gradient @ counts), gradient)


def _linear_background(counts: Float64, axis_ev: Float64, before: slice, band: slice, where: str) -> Estimate:
    """Continue the least-squares line through the pre-edge window."""
    if before.stop - before.start < 2:
        raise UnreadableSpectrum(
            "window too narrow", f"objective.{where} holds one channel; a line takes two or more"
        )
    centre = axis_ev[before].mean()
    design = np.stack([np.ones(before.stop - before.start), axis_ev[before] - centre], axis=1)
    wanted = np.array([band.stop - band.start, float((axis_ev[band] - centre).sum())])
    gradient = np.zeros_like(counts)
    gradient[before] = wanted @ np.linalg.pinv(design)
    return Estimate(float(gradient @ counts), gradient)


def _power_law_background(
    counts: Float64, axis_ev: Float64, before: slice, band: slice, where: str
) -> Estimate:
    """Continue A·E⁻ʳ from the two halves of the pre-edge window.

    The two-area method (Egerton, Electron Energy-Loss Spectroscopy in the Electron Microscope, 3rd ed.,
    section 4.4) without its approximation: the exponent is solved for, so that a power law leaves nothing
    however wide the window is. It is kept between 0 and 8: with few counts the halves may say anything.
    """
    middle = (before.start + before.stop) // 2
    if middle == before.start:
        raise UnreadableSpectrum(
            "window too narrow", f"objective.{where} holds one channel; a power law takes two or more"
        )
    far, near = slice(before.start, middle), slice(middle, before.stop)
    n_far, n_near = (float(max(counts[part].sum(), 1.0)) for part in (far, near))
    # Elsewhere the axis may start at or below 0.
    log_ev, band_log_ev = np.log(axis_ev[before]), np.log(axis_ev[band])
    far_log_ev, near_log_ev = log_ev[: middle - before.start], log_ev[middle - before.start :]
    free, span = _exponent(far_log_ev, near_log_ev, math.log(n_far / n_near))
    exponent = min(max(free, 0.0), 8.0)
    shape, mean_log = _power_law(log_ev, exponent)
    band_shape, band_mean_log = _power_law(band_log_ev, exponent)
    # The scale comes from both halves together, so that it does not lean on the exponent alone.
    per_count = band_shape / shape
    value = per_count * float(counts[before].sum())
    gradient = np.zeros_like(counts)
    gradient[before] = per_count
    if exponent == free:
        by_exponent = value * (mean_log - band_mean_log)
        gradient[far] += by_exponent / (span * n_far)
        gradient[near] -= by_exponent / (span * n_near)
    return Estimate(value, gradient)


def _power_law(log_ev: Float64, exponent: float) -> tuple[float, float]:
    """Sum E⁻ʳ over some channels; also the mean of log E with these weights."""
    shape = np.exp(-exponent * log_ev)
    total = float(np.add.reduce(shape))
    return total, float(shape @ log_ev) / total


def _exponent(far_log_ev: Float64, near_log_ev: Float64, log_ratio: float) -> tuple[float, float]:
    """Solve ``log(Σ_far E⁻ʳ / Σ_near E⁻ʳ) = log_ratio`` for r by Newton steps; also say the slope there."""
    # As if each half were at its middle: Egerton's approximation, and near the solution.
    apart = float(near_log_ev[near_log_ev.size // 2] - far_log_ev[far_log_ev.size // 2])
    exponent = (log_ratio - math.log(far_log_ev.size / near_log_ev.size)) / apart
    exponent = min(max(exponent, -20.0), 20.0)
    for _ in range(12):
        far, far_mean = _power_law(far_log_ev, exponent)
        near, near_mean = _power_law(near_log_ev, exponent)
        step = (log_ratio - math.log(far / near)) / (near_mean - far_mean)
        exponent = min(max(exponent + step, -20.0), 20.0)
        if abs(step) < 1e-7:  # squared by the step that was just made
            break
    return exponent, near_mean - far_mean


_BACKGROUNDS: dict[str, Callable[[Float64, Float64, slice, slice, str], Estimate]] = {
    "constant": _constant_background,
    "linear": _linear_background,
    "power_law": _power_law_background,
}
