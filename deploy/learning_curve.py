"""How fast the best was found, and how fast chance would have found it.

The baseline of chance needs no dice: the best of ``k`` sites drawn without replacement from ``n`` is an
order statistic of a finite population (David & Nagaraja, Order Statistics, 3rd ed., section 3.7),
``P(best of k ≤ v_(i)) = C(i, k) / C(n, k)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Float64 = NDArray[np.float64]


def best_so_far(values: Float64) -> Float64:
    """Take the running maximum, shape ``(n,)``; a NaN changes nothing, and is left before the first value."""
    return np.fmax.accumulate(np.asarray(values, dtype=np.float64)) if len(values) else np.empty(0)


@dataclass(frozen=True, slots=True)
class Chance:
    """The best of ``k`` sites taken at random, for ``k`` = 1 to ``steps``.

    Attributes
    ----------
    mean, low, high
        Expectation, and the tenth and the ninetieth percentile, shape ``(steps,)``.
    """

    mean: Float64
    low: Float64
    high: Float64


def chance(site_values: Float64, steps: int) -> Chance:
    """Say what measuring sites at random would have found, exactly.

    Parameters
    ----------
    site_values
        True objective of every site, shape ``(n,)``, finite.
    steps
        Measurements; no more than there are sites.
    """
    ordered = np.sort(np.asarray(site_values, dtype=np.float64))
    n = len(ordered)
    counts = np.arange(1, min(steps, n) + 1, dtype=np.float64)[:, None]
    ranks = np.arange(1, n + 1, dtype=np.float64)[None, :]
    below = _log_choose(ranks, counts) - _log_choose(np.float64(n), counts)
    cumulative = np.where(ranks >= counts, np.exp(below), 0.0)
    cumulative[:, -1] = 1.0
    weights = np.diff(cumulative, axis=1, prepend=0.0)
    return Chance(
        mean=weights @ ordered,
        low=ordered[np.argmax(cumulative >= 0.1, axis=1)],
        high=ordered[np.argmax(cumulative >= 0.9, axis=1)],
    )


def _log_choose(n: Float64 | np.float64, k: Float64) -> Float64:
    """Logarithm of ``C(n, k)``; meaningless, but finite, where k > n."""
    rest = np.maximum(n - k, 0.0)
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(rest + 1), dtype=np.float64)


def reading_order(positions_nm: Float64, steps: int, row_nm: float = 0.1) -> NDArray[np.intp]:
    """Choose sites as a raster of so many points would meet them: row by row, evenly spread.

    Parameters
    ----------
    positions_nm
        Shape ``(n, 2)``, as ``(x, y)`` with y down.
    steps
        Measurements; no more than there are sites.
    row_nm
        Sites this close in y belong to one row.

    Returns
    -------
    indices
        Shape ``(steps,)``.
    """
    rows = np.round(positions_nm[:, 1] / row_nm)
    order = np.lexsort((positions_nm[:, 0], rows))
    picked = np.linspace(0, len(order) - 1, min(steps, len(order))).round().astype(np.intp)
    return order[picked]


def measurements_to_reach(curve: Float64, level: float) -> int | None:
    """Count the measurements until a curve first reaches a level; None if it never does."""
    reached = np.flatnonzero(np.asarray(curve) >= level)
    return int(reached[0]) + 1 if reached.size else None


def draws_to_find(n: int, good: int) -> float:
    """Expect so many draws without replacement until the first of ``good`` sites among ``n``."""
    return (n + 1) / (good + 1)
