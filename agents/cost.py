"""What a measurement costs: the way to it, settling, and the exposure; and tours through several.

A choice weighs the logarithm of what a candidate promises against that of the time it takes,
``log a - w log(1 + t_move / t0 + t_dwell / t0)``: with ``w`` = 1 it is the largest gain in a unit of time
(Snoek, Larochelle and Adams, Practical Bayesian Optimization of Machine Learning Algorithms, NeurIPS 2012,
section 3.2), with less the way counts less, with 0 not at all.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


class CostConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What time is worth to the agent: the ``[agent.cost]`` table.

    Attributes
    ----------
    weight
        How much the time of a measurement counts against what it promises; 0 not at all, 1 looks for the
        largest gain in a unit of time.
    travel_nm_per_s
        Speed at which the beam or the tip goes from one place to the next.
    settle_s
        Time that it needs to come to rest there.
    reference_s
        The time ``t0`` beside which a way is long; 0 takes what every measurement takes anyway, settling and
        ``agent.dwell_time_us``.
    dwell_noise_part
        Expose so long that the counting noise is this part of what the model is unsure of there; 0 exposes
        everywhere for ``agent.dwell_time_us``.
    min_dwell_time_us, max_dwell_time_us
        Limits of an exposure that is chosen so.
    """

    weight: float = 0.0
    travel_nm_per_s: float = 1000.0
    settle_s: float = 0.0
    reference_s: float = 0.0
    dwell_noise_part: float = 0.0
    min_dwell_time_us: float = 1_000.0
    max_dwell_time_us: float = 1_000_000.0

    def __post_init__(self) -> None:
        limits = {"weight": 100.0, "settle_s": 1e6, "reference_s": 1e6, "dwell_noise_part": 10.0}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"agent.cost.{name} is {getattr(self, name)}; it takes 0 to {most:g}")
        for name in ("travel_nm_per_s", "min_dwell_time_us", "max_dwell_time_us"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"agent.cost.{name} is {getattr(self, name)}; it takes numbers above 0")
        if self.min_dwell_time_us > self.max_dwell_time_us:
            raise ValueError(
                f"agent.cost.min_dwell_time_us is {self.min_dwell_time_us}; it takes no more than "
                f"max_dwell_time_us, {self.max_dwell_time_us}"
            )


def way_nm(from_nm: Float64 | None, places_nm: Float64) -> Float64:
    """Say how far places ``(m, 2)`` are from where the beam is, shape ``(m,)``; 0 where nobody knows."""
    if from_nm is None:
        return np.zeros(len(places_nm))
    distance_nm: Float64 = np.hypot(*(places_nm - from_nm).T)
    return distance_nm


def log_cost(
    way_nm: Float64, dwell_time_us: Float64 | float, config: CostConfig, usual_time_us: float
) -> Float64:
    """Say what to take off the logarithm of an acquisition for the time that a measurement takes.

    Parameters
    ----------
    way_nm
        From where the beam is to each candidate, shape ``(m,)``.
    dwell_time_us
        Exposure of each.
    config
        Weight, speed and settling.
    usual_time_us
        Exposure of a usual measurement: with the settling it is ``t0``, unless that is configured.

    Returns
    -------
    cost
        ``w log(1 + t_move / t0 + t_dwell / t0)``, shape ``(m,)``, natural logarithm. A beam that stays where
        it is need not settle.
    """
    reference_s = config.reference_s or config.settle_s + 1e-6 * usual_time_us
    move_s = np.where(way_nm > 0, config.settle_s, 0.0) + way_nm / config.travel_nm_per_s
    cost: Float64 = config.weight * np.log1p((move_s + 1e-6 * np.asarray(dwell_time_us)) / reference_s)
    return cost


def dwell_time_us(sd: Float64, noise_us: float, config: CostConfig) -> Float64:
    """Choose exposures by what there is to be learnt.

    The variance of counting falls as 1/T. A value whose noise has the sd ``r·sd`` leaves of what was unsure,
    ``sd``, the part ``r / sqrt(1 + r²)`` (one observation in equation 2.26 of Rasmussen and Williams,
    Gaussian Processes for Machine Learning, 2006): exposing longer is spent on what is known by then.

    Parameters
    ----------
    sd
        What the model is unsure of at each candidate, shape ``(m,)``, in the unit of the objective.
    noise_us
        Variance of counting times exposure, in its unit squared and microseconds.
    config
        The part ``r``, and the limits.

    Returns
    -------
    dwell_time_us
        Whole microseconds, shape ``(m,)``.
    """
    with np.errstate(divide="ignore"):
        wanted_us = noise_us / (config.dwell_noise_part * sd) ** 2
    rounded_us: Float64 = np.rint(np.clip(wanted_us, config.min_dwell_time_us, config.max_dwell_time_us))
    return rounded_us


def tour(from_nm: Float64 | None, places_nm: Float64) -> list[int]:
    """Order places so that the way through them is short: each next the nearest, then 2-opt.

    2-opt turns parts of the way round as long as that shortens it (Croes, A method for solving
    traveling-salesman problems, Operations Research 6, 791, 1958). It need not come back.

    Parameters
    ----------
    from_nm
        Where the beam is, ``(x, y)``; None begins at the first place.
    places_nm
        Shape ``(n, 2)``.

    Returns
    -------
    order
        Of all the places; of equals the first.
    """
    n = len(places_nm)
    nodes = np.concatenate([places_nm[:1] if from_nm is None else from_nm[None], places_nm])
    apart = np.hypot(*(nodes[:, None] - nodes[None]).transpose(2, 0, 1))
    left, order = list(range(1, n + 1)), [0]
    while left:
        nearest = min(left, key=lambda node: float(apart[order[-1], node]))
        left.remove(nearest)
        order.append(nearest)
    while _turn_a_part_round(order, apart):
        pass
    return [node - 1 for node in order[1:]]


def _turn_a_part_round(order: list[int], apart: Float64) -> bool:
    """Turn the first part round that shortens the way; was there one? Its start stays the start."""
    n = len(order)
    for i in range(1, n - 1):
        for j in range(i + 1, n):
            before, after = order[i - 1], order[j + 1] if j + 1 < n else None
            now = apart[before, order[i]] + (0.0 if after is None else apart[order[j], after])
            then = apart[before, order[j]] + (0.0 if after is None else apart[order[i], after])
            if then < now - 1e-12 * (1 + now):
                order[i : j + 1] = order[i : j + 1][::-1]
                return True
    return False
