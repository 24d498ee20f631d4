"""How alike spectra are: to a target from a file, or to those that were measured before.

Both go by the cosine of the angle between two spectra taken as vectors: 1 for the same shape at whatever
exposure. Shot noise makes a vector of counts longer than the spectrum that it was drawn from; what it adds
on average is taken off, so that a short exposure does not look unlike by its noise alone.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from agents.reading import (
    Estimate,
    Float64,
    Measured,
    SpectrumReader,
    UnreadableSpectrum,
    WindowEv,
    channels,
)

# A spectrum that differs by so many sd of its noise from every kind so far is a new kind.
STANDS_OUT = 5.0
MAX_KINDS = 32
# The variance is never below this part of its second order; chosen where spectra are alike, by simulation.
LEAST = 0.75


class Similarity(SpectrumReader):
    """Cosine of the angle to a target.

    Parameters
    ----------
    target
        Path of the file; see ``read_target``.
    window_ev
        Of which part of the spectrum; None takes what both have.
    counts_per_electron
        As of ``SpectrumReader``.

    Raises
    ------
    ValueError
        If the file cannot be read.
    """

    unit = "cosine"

    def __init__(self, target: Path, window_ev: WindowEv | None, counts_per_electron: float) -> None:
        super().__init__(counts_per_electron)
        self._target_ev, self._target = read_target(target)
        self._window_ev = window_ev
        self.what = "similarity"
        self.origin = f"{target.name} {fingerprint(target.read_bytes())}"
        self.windows = () if window_ev is None else (("compared", *window_ev),)

    def estimate(self, counts: Float64, axis_ev: Float64) -> Estimate:
        """Compare the channels that target and spectrum both have."""
        part = self._shared(axis_ev)
        target = np.interp(axis_ev[part], self._target_ev, self._target)
        size = float(target @ target)
        if size <= 0:
            raise UnreadableSpectrum("no target", "the target of objective.target is 0 where it is compared")
        part_counts = counts[part]
        variance = self.counts_per_electron * np.maximum(part_counts, 0.0)
        own = _power(part_counts, variance)
        cosine = float(target @ part_counts) / math.sqrt(own * size)
        gradient = np.zeros_like(counts)
        gradient[part] = _slope(part_counts, target, own, size, cosine, self.counts_per_electron)
        first_order = float(gradient[part] ** 2 @ variance)
        noise = cosine * variance / own
        curved = _curved(part_counts / math.sqrt(own), noise, noise)
        return Estimate(cosine, gradient, _beyond(first_order, curved))

    def _shared(self, axis_ev: Float64) -> slice:
        first, last = float(self._target_ev[0]), float(self._target_ev[-1])
        if self._window_ev is not None:
            low, high = self._window_ev
            if low < first or high > last:
                raise UnreadableSpectrum(
                    "target off the axis",
                    f"objective.window_ev {low:g} to {high:g} eV is not within the target, {first:g} to "
                    f"{last:g} eV; move the window, or name another objective.target",
                )
            return channels(axis_ev, self._window_ev, "window_ev")
        start, stop = np.searchsorted(axis_ev, [first, np.nextafter(last, math.inf)], side="left")
        if stop - start < 2:
            own = f"{axis_ev[0]:g} to {axis_ev[-1]:g} eV" if axis_ev.size else "no channel"
            raise UnreadableSpectrum(
                "target off the axis",
                f"the target of objective.target goes from {first:g} to {last:g} eV and the spectrum is "
                f"{own}: they do not overlap; name a target of this range, in eV",
            )
        return slice(int(start), int(stop))


class Novelty(SpectrumReader):
    """One minus the cosine to the most similar kind of spectrum so far.

    It remembers kinds, not single spectra: what is alike within its noise is summed up, so that what it
    compares with grows less noisy. Only what was remembered before a spectrum counts for it, so the same
    spectra in the same order give the same numbers.

    Parameters
    ----------
    window_ev
        Of which part of the spectrum; None takes all of it.
    counts_per_electron
        As of ``SpectrumReader``.
    """

    what = "novelty"
    unit = "1 - cosine to the nearest before"
    has_memory = True

    def __init__(self, window_ev: WindowEv | None, counts_per_electron: float) -> None:
        super().__init__(counts_per_electron)
        self._window_ev = window_ev
        self._axis_ev = np.zeros(0)
        self._kinds = np.zeros((0, 0))  # summed counts of each kind, shape (kinds, channels of the window)
        self._powers = np.zeros(0)  # of each
        self._last: tuple[Float64, int, Estimate] | None = None  # what was read last: it is remembered next
        self.windows = () if window_ev is None else (("compared", *window_ev),)

    def estimate(self, counts: Float64, axis_ev: Float64) -> Estimate:
        """Compare with what came before."""
        if not len(self._kinds) or not np.array_equal(axis_ev, self._axis_ev):
            raise UnreadableSpectrum(
                "first of its kind", "no spectrum of this energy range came before it to compare with"
            )
        kind, found = self._nearest(counts, axis_ev)
        self._last = (counts, kind, found)
        return found

    def remember(self, measured: Measured) -> None:
        """Add a spectrum to the kind that it is most like, or begin a new kind."""
        counts, axis_ev = measured.values, measured.axis
        last, self._last = self._last, None
        part = self._part(axis_ev)
        if measured.is_loop or not (counts[part] > 0).any():
            return
        if not np.array_equal(axis_ev, self._axis_ev):
            self._axis_ev, self._kinds = axis_ev, np.zeros((0, part.stop - part.start))
            self._powers = np.zeros(0)
        if not len(self._kinds):
            self._add(counts[part])
            return
        is_known = last is not None and np.array_equal(last[0], counts)
        kind, found = last[1:] if last is not None and is_known else self._nearest(counts, axis_ev)
        sd = math.sqrt(float(found.gradient**2 @ np.maximum(counts, 0.0)) + found.beyond)
        if found.value > STANDS_OUT * sd and len(self._kinds) < MAX_KINDS:
            self._add(counts[part])
        else:
            self._kinds[kind] += counts[part]
            self._powers[kind] = self._power_of(self._kinds[kind])

    def _add(self, counts: Float64) -> None:
        self._kinds = np.concatenate([self._kinds, counts[None]])
        self._powers = np.append(self._powers, self._power_of(counts))

    def _power_of(self, counts: Float64) -> float:
        """Compute the power of a kind: as ``_power``, and never 0."""
        power = float(counts @ counts) - self.counts_per_electron * float(np.maximum(counts, 0.0).sum())
        return max(power, float(np.finfo(float).tiny))

    def _part(self, axis_ev: Float64) -> slice:
        if self._window_ev is None:
            return slice(0, axis_ev.size)
        return channels(axis_ev, self._window_ev, "window_ev")

    def _nearest(self, counts: Float64, axis_ev: Float64) -> tuple[int, Estimate]:
        """Find the kind with the largest cosine; say how novel the spectrum is beside it."""
        part, gain = self._part(axis_ev), self.counts_per_electron
        here = counts[part]
        variance = gain * np.maximum(here, 0.0)
        own = _power(here, variance)
        powers = self._powers
        cosines = self._kinds @ here / np.sqrt(own * powers)
        kind = int(cosines.argmax())
        earlier, power, cosine = self._kinds[kind], float(powers[kind]), float(cosines[kind])
        earlier_variance = gain * np.maximum(earlier, 0.0)
        gradient = np.zeros_like(counts)
        gradient[part] = -_slope(here, earlier, own, power, cosine, gain)
        of_earlier = _slope(earlier, here, power, own, cosine, gain)
        direction, noise, noise_before = here / math.sqrt(own), variance / own, earlier_variance / power
        curved = cosine**2 * (
            _curved(direction, noise, noise) + _curved(direction, noise_before, noise_before)
        ) + 2 * _curved(direction, noise, noise_before)
        first_order, by_earlier = (
            float(gradient[part] ** 2 @ variance),
            float(of_earlier**2 @ earlier_variance),
        )
        beyond = by_earlier + _beyond(first_order + by_earlier, curved)
        return kind, Estimate(1.0 - cosine, gradient, beyond)


def _power(counts: Float64, variance: Float64) -> float:
    """Sum of squares without what noise adds to it."""
    power = float(counts @ counts - variance.sum())
    if power <= 0:
        raise UnreadableSpectrum(
            "no counts",
            "the spectrum has too few counts to be compared; take a longer agent.dwell_time_us or a wider "
            "objective.window_ev",
        )
    return power


def _slope(
    counts: Float64, other: Float64, power: float, other_power: float, cosine: float, gain: float
) -> Float64:
    """Gradient of the cosine towards ``counts``."""
    slope: Float64 = other / math.sqrt(power * other_power) - (cosine / power) * (counts - gain / 2)
    return slope


def _curved(direction: Float64, one: Float64, other: Float64) -> float:
    """Variance of the second order, ``tr(H V H V') / 2`` for variances each divided by its power.

    Near a cosine of 1, where there is no other variance, the Hessian is minus the identity without what lies
    along the spectrum.
    """
    along = direction * direction
    whole = float(one @ other) - 2 * float(along @ (one * other)) + float(along @ one) * float(along @ other)
    return 0.5 * max(whole, 0.0)


def _beyond(first_order: float, curved: float) -> float:
    """Correct the variance of the first order, whose gradient is that at a noisy spectrum.

    There it is ``tr(H V H V)`` too large on average, twice what the second order adds; by chance it may be
    as small as to leave nothing.
    """
    return max(-curved, LEAST * curved - first_order)


# -- the target --------------------------------------------------------------------------------


def fingerprint(data: bytes) -> str:
    """Name the contents of a file in eight letters, so that another version of it is seen."""
    return hashlib.sha256(data).hexdigest()[:8]


def read_target(path: Path) -> tuple[Float64, Float64]:
    """Read a spectrum to compare with.

    Parameters
    ----------
    path
        Two columns, energy loss in eV and counts, as text (spaces, tabs, commas or semicolons; lines that
        begin with no number are headings) or as ``.npy`` of shape ``(n, 2)``; or an ``.msa`` file (EMSA/MAS).

    Returns
    -------
    energy_ev, counts
        Shape ``(n,)``, energies ascending.

    Raises
    ------
    ValueError
        If it is none of these; the text names the file, where it goes wrong and what would do.
    """
    try:
        table = _READERS.get(path.suffix.lower(), _read_text)(path)
    except FileNotFoundError:
        raise ValueError(f"objective.target: {path}: there is no such file") from None
    except OSError as error:
        raise ValueError(f"objective.target: {path}: cannot be read: {error.strerror or error}") from None
    if table.ndim != 2 or table.shape[1] != 2 or len(table) < 2 or not np.isfinite(table).all():
        raise ValueError(
            f"objective.target: {path} holds numbers of shape {table.shape}; it takes two columns of finite "
            "numbers, energy loss in eV and counts, and two rows or more"
        )
    order = np.argsort(table[:, 0], kind="stable")
    energy_ev, counts = table[order, 0].copy(), table[order, 1].copy()
    if (np.diff(energy_ev) <= 0).any():
        raise ValueError(f"objective.target: {path} has an energy twice; it takes one row for each energy")
    return energy_ev, counts


def _read_text(path: Path) -> Float64:
    rows: list[tuple[float, float]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        words = line.replace(",", " ").replace(";", " ").split()
        if not words or not _is_number(words[0]):
            continue  # empty, or a heading
        if len(words) < 2 or not _is_number(words[1]):
            raise ValueError(
                f"objective.target: {path}, line {number}: {line.strip()[:60]!r}; it takes two numbers, "
                "energy loss in eV and counts, with points as decimal marks"
            )
        rows.append((float(words[0]), float(words[1])))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _read_npy(path: Path) -> Float64:
    try:
        table = np.load(path, allow_pickle=False)
        return np.asarray(table, dtype=np.float64)
    except (ValueError, EOFError, TypeError) as error:
        raise ValueError(
            f"objective.target: {path}: not an array of numbers: {error}; save one of shape (n, 2)"
        ) from None


def _read_msa(path: Path) -> Float64:
    from rsciio.msa import file_reader  # takes half a second, and few need it

    try:
        signal: dict[str, Any] = file_reader(str(path))[0]
        axis, counts = signal["axes"][0], np.asarray(signal["data"], dtype=np.float64)
        scale = {"ev": 1.0, "kev": 1e3}[str(axis.get("units", "eV")).lower()]
        energy_ev = scale * (float(axis["offset"]) + float(axis["scale"]) * np.arange(counts.size))
        return np.column_stack([energy_ev, counts.ravel()])
    except OSError:
        raise
    except Exception as error:  # a foreign parser on a damaged file raises whatever it likes
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"objective.target: {path}: cannot be read as an EMSA/MAS spectrum in eV ({detail}); export it "
            "again, or as two columns of text"
        ) from error


_READERS = {".npy": _read_npy, ".msa": _read_msa, ".emsa": _read_msa}
