"""Spectrum → value and variance: what a measurement is worth to the goal.

What is measured is one of a few kinds of number, each with the gradient of that number towards what was
measured; its variance follows from the noise of that: shot noise of a spectrum, or the noise that a loop
shows by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.edge_objectives import (
    BackgroundModel,
    Band,
    BandIntegral,
    Composition,
    Norm,
    PeakPosition,
    PeakRatio,
)
from agents.likeness_objectives import Novelty, Similarity
from agents.loop_objectives import LoopArea, RemanentResponse, Side, SwitchingBias
from agents.own_objective import OwnObjective
from agents.reading import (
    Float64,
    GivenValue,
    Measured,
    Reader,
    Reading,
    UnreadableSpectrum,
    WindowEv,
    check_window,
)

__all__ = ["BandConfig", "Objective", "ObjectiveConfig", "Reading", "UnreadableSpectrum"]

Kind = Literal[
    "band_integral",
    "peak_position",
    "peak_ratio",
    "composition",
    "similarity",
    "novelty",
    "loop_area",
    "coercive_bias",
    "nucleation_bias",
    "remanent_response",
    "file",
    "value",
]
SI_L_EV = (99.0, 120.0)


class BandConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of several bands: a table ``[[agent.objective.bands]]``.

    Attributes
    ----------
    name
        Of the element or the peak.
    window_ev
        Energy loss ``(from, to)``.
    background_ev
        Window before it that the background is taken from; without it there is none.
    sensitivity
        What its counts are divided by: a partial cross section or k-factor of the element, in any unit that
        all bands share.
    """

    name: str
    window_ev: WindowEv
    background_ev: WindowEv | None = None
    sensitivity: float = 1.0


class ObjectiveConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured of a spectrum or a loop; what a kind does not read is refused.

    Attributes
    ----------
    kind
        ``band_integral``: counts in ``window_ev`` above the background. ``peak_position``: energy of the
        maximum in ``window_ev``, finer than a channel. ``peak_ratio``: counts of the first of ``bands`` over
        those of the second. ``composition``: atomic fraction of the first of ``bands`` among all.
        ``similarity`` to the spectrum in ``target``, ``novelty`` against the spectra so far.
        ``loop_area``, ``coercive_bias``, ``nucleation_bias`` and ``remanent_response`` of a hysteresis
        loop. ``file``: a function of your own, in ``file``. ``value``: a number that was read elsewhere; it
        and its standard deviation come in place of a spectrum.
    label
        What a person calls it, such as ``Si L2,3``; without it, the window's energies.
    window_ev
        Energy loss ``(from, to)`` of the band, of the search for the peak, or of what is compared. Without
        it, that of the Si L2,3 edge, and all that there is to compare.
    background_model
        What lies under the edge: ``none``, ``constant``, ``linear`` or ``power_law`` (A·E⁻ʳ, the usual
        pre-edge background of EELS, by the two-area method).
    background_ev
        Pre-edge window ``(from, to)`` that the background is taken from.
    normalise
        ``none`` (counts), ``total`` (fraction of all counts) or ``reference`` (ratio to the counts in
        ``reference_ev``).
    reference_ev
        Energy window of the reference.
    peak_half_width_ev
        A parabola is fitted to this far on either side of the highest channel.
    bands
        Of a ratio two, of a composition two or more.
    counts_per_electron
        Gain of the detector: the variance of ``n`` counts is ``n`` times it.
    target
        File with the spectrum to look for: two columns, energy loss in eV and counts, as text or ``.npy``;
        or ``.msa``.
    side
        Of a loop's two branches: ``positive``, ``negative``, their ``mean`` (of biases the imprint) or
        ``half_width``.
    response_unit
        In which the instrument gives the response of a loop.
    file
        A Python file with a function ``value(spectrum, axis)`` that gives a number, or it and its variance.
    unit
        Of that number.
    """

    kind: Kind = "band_integral"
    label: str | None = None
    window_ev: WindowEv | None = None
    background_model: BackgroundModel = "power_law"
    background_ev: WindowEv = (65.0, 97.0)
    normalise: Norm = "total"
    reference_ev: WindowEv = (10.0, 40.0)
    peak_half_width_ev: float = 3.0
    bands: tuple[BandConfig, ...] = ()
    counts_per_electron: float = 1.0
    target: str = ""
    side: Side = "half_width"
    response_unit: str = "pm"
    file: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        for name in ("window_ev", "background_ev", "reference_ev"):
            if getattr(self, name) is not None:
                check_window(name, getattr(self, name))
        for name in ("peak_half_width_ev", "counts_per_electron"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"objective.{name} is {value}; it takes a number above 0")
        self._check_what_is_not_read()
        if self.kind == "band_integral":
            self._check_background(self.window_ev or SI_L_EV, self.background_ev, "")
        for name in ("target", "file"):
            if name in READS[self.kind] and not getattr(self, name):
                raise ValueError(f"objective.{name} is empty; kind {self.kind!r} takes the path of a file")
        if "bands" in READS[self.kind]:
            self._check_bands()

    def _check_what_is_not_read(self) -> None:
        unread = set(_EVERY) - {"kind", "label", *READS[self.kind]}
        for field in msgspec.structs.fields(type(self)):
            if field.name in unread and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"objective.{field.name} says nothing to the kind {self.kind!r}; it takes "
                    f"{', '.join(('label', *READS[self.kind]))}"
                )

    def _check_bands(self) -> None:
        names = [band.name for band in self.bands]
        if len(names) < 2 or (self.kind == "peak_ratio" and len(names) > 2):
            what = "two" if self.kind == "peak_ratio" else "two or more"
            raise ValueError(
                f"objective.bands has {len(names)} bands; kind {self.kind!r} takes {what}, each a table "
                "[[agent.objective.bands]]"
            )
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"objective.bands has the names {names}; it takes a name of its own for each")
        for band in self.bands:
            check_window(f"bands.{band.name}.window_ev", band.window_ev)
            if not (math.isfinite(band.sensitivity) and band.sensitivity > 0):
                raise ValueError(
                    f"objective.bands.{band.name}.sensitivity is {band.sensitivity}; it takes a number "
                    "above 0"
                )
            if band.background_ev is not None:
                check_window(f"bands.{band.name}.background_ev", band.background_ev)
                self._check_background(band.window_ev, band.background_ev, f"bands.{band.name}.")

    def _check_background(self, window_ev: WindowEv, background_ev: WindowEv, name: str) -> None:
        if self.background_model == "power_law" and not 0 < background_ev[0] < window_ev[0]:
            raise ValueError(
                f"objective.{name}background_ev is {background_ev}; a power law takes energies above 0 "
                f"and starts before window_ev, {window_ev}"
            )


# What each kind reads of the configuration.
READS: dict[Kind, tuple[str, ...]] = {
    "band_integral": (
        "window_ev", "background_model", "background_ev", "normalise", "reference_ev", "counts_per_electron",
    ),
    "peak_position": ("window_ev", "peak_half_width_ev", "counts_per_electron"),
    "peak_ratio": ("bands", "background_model", "counts_per_electron"),
    "composition": ("bands", "background_model", "counts_per_electron"),
    "similarity": ("target", "window_ev", "counts_per_electron"),
    "novelty": ("window_ev", "counts_per_electron"),
    "loop_area": ("response_unit",),
    "coercive_bias": ("side",),
    "nucleation_bias": ("side",),
    "remanent_response": ("side", "response_unit"),
    "file": ("file", "unit", "counts_per_electron"),
    "value": ("unit",),
}  # fmt: skip
_EVERY = sorted({name for names in READS.values() for name in names})


class Objective:
    """Reads spectra and loops as the configuration says.

    Parameters
    ----------
    config
        What to read.

    Raises
    ------
    ValueError
        If a file that it names cannot be used; the text names the file, its line and the cure.

    Examples
    --------
    >>> flat = np.full(256, 10, dtype=np.float32)
    >>> config = ObjectiveConfig(background_model="constant", normalise="none")
    >>> Objective(config).read(flat, energy_offset_ev=0.0, energy_step_ev=1.0).value
    0.0
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self._reader = _READERS[config.kind](config)

    @property
    def name(self) -> str:
        """Say what the value is, with its unit and the contents of the files that it comes from."""
        config, reader = self.config, self._reader
        unit = ", ".join(word for word in (config.unit or reader.unit, reader.origin) if word)
        # A file of one's own is what the label says it is.
        what = "" if config.kind == "file" and config.label else reader.what
        return " ".join(word for word in (self._label, what, f"({unit})" if unit else "") if word)

    @property
    def _label(self) -> str:
        window_ev = self.config.window_ev
        if self.config.label:
            return self.config.label
        if self.config.kind not in ("band_integral", "peak_position"):
            return self.config.bands[0].name if self.config.kind == "composition" else self._ratio
        if self.config.label is None and window_ev in (None, SI_L_EV):
            return "Si L2,3"
        low, high = window_ev or SI_L_EV
        return f"{low:g}–{high:g} eV"

    @property
    def _ratio(self) -> str:
        return "/".join(band.name for band in self.config.bands)

    @property
    def windows(self) -> tuple[tuple[str, float, float], ...]:
        """Ranges of the energies that it is read from, ``(what, from_ev, to_ev)``; none of a loop."""
        return self._reader.windows

    def read(
        self,
        spectrum: NDArray[np.floating],
        energy_offset_ev: float = 0.0,
        energy_step_ev: float = 1.0,
        bias_v: NDArray[np.floating] | None = None,
    ) -> Reading:
        """Compute the objective of one spectrum or loop.

        Parameters
        ----------
        spectrum
            Counts, shape ``(energy,)``; of a loop the response at each bias.
        energy_offset_ev, energy_step_ev
            Energy loss of channel 0 and width of a channel.
        bias_v
            Of a loop: the tip's bias in the order of the sweep, shape as ``spectrum``.

        Raises
        ------
        UnreadableSpectrum
            If a count is not finite or too large, a window is not on the energy axis, or there is nothing
            to divide by, no peak to find, or no loop that switches.
        """
        reading = self._reader.read(_measured(spectrum, energy_offset_ev, energy_step_ev, bias_v))
        if not (math.isfinite(reading.value) and math.isfinite(reading.variance)):
            raise UnreadableSpectrum(
                "too large", "the counts are too large to compute with; see the gain of the spectrometer"
            )
        return reading

    def remember(
        self,
        spectrum: NDArray[np.floating],
        energy_offset_ev: float = 0.0,
        energy_step_ev: float = 1.0,
        bias_v: NDArray[np.floating] | None = None,
    ) -> None:
        """Take note of a spectrum after it was read: what later ones are new or not new against.

        Only a novelty remembers. The same spectra in the same order leave the same memory, so a session that
        is read anew comes to the same values. Parameters as of ``read``.
        """
        if not self._reader.has_memory:
            return
        try:
            self._reader.remember(_measured(spectrum, energy_offset_ev, energy_step_ev, bias_v))
        except UnreadableSpectrum:
            return


def _measured(
    spectrum: NDArray[np.floating],
    energy_offset_ev: float,
    energy_step_ev: float,
    bias_v: NDArray[np.floating] | None,
) -> Measured:
    values = np.asarray(spectrum, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UnreadableSpectrum(
            "not finite", "the spectrum has counts that are not finite; it takes a 1-D array of counts"
        )
    if bias_v is None:
        return Measured(values, _energies(values.size, energy_offset_ev, energy_step_ev))
    axis = np.asarray(bias_v, dtype=np.float64)
    if axis.shape != values.shape or not np.isfinite(axis).all():
        raise UnreadableSpectrum(
            "not finite", "the loop has a bias that is not finite, or not one for each response"
        )
    return Measured(values, axis, is_loop=True)


@lru_cache(maxsize=8)
def _energies(count: int, offset_ev: float, step_ev: float) -> Float64:
    energies: Float64 = offset_ev + step_ev * np.arange(count, dtype=np.float64)
    energies.flags.writeable = False
    return energies


def _bands(config: ObjectiveConfig) -> list[Band]:
    return [
        Band(
            window_ev=band.window_ev,
            background="none" if band.background_ev is None else config.background_model,
            background_ev=band.background_ev or (0.0, 0.0),
            sensitivity=band.sensitivity,
            name=f"bands.{band.name}.",
        )
        for band in config.bands
    ]


def _band_integral(config: ObjectiveConfig) -> Reader:
    band = Band(config.window_ev or SI_L_EV, config.background_model, config.background_ev)
    return BandIntegral(band, config.normalise, config.reference_ev, config.counts_per_electron)


_READERS: dict[Kind, Callable[[ObjectiveConfig], Reader]] = {
    "band_integral": _band_integral,
    "peak_position": lambda c: PeakPosition(
        c.window_ev or SI_L_EV, c.peak_half_width_ev, c.counts_per_electron
    ),
    "peak_ratio": lambda c: PeakRatio(_bands(c), c.counts_per_electron),
    "composition": lambda c: Composition(_bands(c), c.counts_per_electron),
    "similarity": lambda c: Similarity(Path(c.target), c.window_ev, c.counts_per_electron),
    "novelty": lambda c: Novelty(c.window_ev, c.counts_per_electron),
    "loop_area": lambda c: LoopArea(c.response_unit),
    "coercive_bias": lambda c: SwitchingBias(c.side),
    "nucleation_bias": lambda c: SwitchingBias(c.side, is_nucleation=True),
    "remanent_response": lambda c: RemanentResponse(c.response_unit, c.side),
    "file": lambda c: OwnObjective(Path(c.file), c.counts_per_electron),
    "value": lambda _: GivenValue(),
}
