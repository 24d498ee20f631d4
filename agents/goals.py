"""What is looked for, in the field's words, and the acquisition function that finds it.

A goal ranks the sites that may be measured. Its scores are logarithms, or rise as logarithms do, so that what
a measurement costs can be taken from them; what is added to all sites alike counts for nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agents.acquisition import (
    SURE,
    log_expected_hypervolume_improvement,
    log_expected_improvement,
    log_positive_part,
    straddle,
)
from agents.candidates import Float64
from agents.config import AgentConfig, Direction, TradeOffConfig, direction_of
from agents.pareto import front_of, reference_of
from agents.stopping import Standing

# An expected improvement below this part of the best is none to a person.
HARDLY = 1e-6
# Sites that a joint draw is made for: those with the highest upper bound.
DRAWN = 256
_UPPER = 2.0  # sd above the mean
# Of the largest sd: how finely the straddle's logarithm tells what lies around 0.
_FINE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Second:
    """What is known of a second objective, turned so that the larger is the better.

    Attributes
    ----------
    mean, sd
        Forecast of the sites that may be measured, shape ``(m,)``.
    known
        Forecasts of both objectives at the measured sites, shape ``(n, 2)``.
    """

    mean: Float64
    sd: Float64
    known: Float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """What is known of the sites that may be measured.

    Attributes
    ----------
    mean, sd
        Forecast of the objective, shape ``(m,)``; turned so that the larger is the better.
    best
        Largest forecast among the measured sites, turned likewise.
    novelty
        Of each site's window: 0 is usual, above 3 the encoder has seen nothing like it. Shape ``(m,)``.
    log_density
        Gives the logarithm of how many sites are like each, shape ``(m,)``.
    away
        Gives how unlike each is to all that was measured, in scaled latents, shape ``(m,)``; 0 of sites that
        were not compared.
    draw
        Gives what the sites with these indices may be worth together, shape ``(k,)``.
    second
        Of the second objective, where two are weighed.
    """

    mean: Float64
    sd: Float64
    best: float
    novelty: Float64
    log_density: Callable[[], Float64]
    away: Callable[[], Float64]
    draw: Callable[[NDArray[np.int64]], Float64]
    second: Second | None = None


class Goal(ABC):
    """What to look for.

    Attributes
    ----------
    direction
        Whether the largest or the smallest objective is the best, or neither.
    """

    direction: Direction = "neither"

    @property
    def sign(self) -> float:
        """What turns the objective so that larger is better."""
        return -1.0 if self.direction == "minimise" else 1.0

    @abstractmethod
    def scores(self, outlook: Outlook) -> Float64:
        """Rank the sites: how much each promises, shape ``(m,)``; NaN where the model is not finite."""

    @abstractmethod
    def reason(self, outlook: Outlook, index: int) -> str:
        """Say why this site, in the words of whoever sits at the microscope."""

    def standing(self, known: Standing, _: Callable[[], Outlook]) -> Standing:
        """Add to what is known of how far the search is what only this goal can say; see ``Standing``."""
        return known

    def forecast(self, outlook: Outlook, index: int) -> str:
        """Write what is expected of a site in its own unit."""
        return f"{self.sign * outlook.mean[index]:.3g} ± {outlook.sd[index]:.1g}"


class Improve(Goal):
    """Find the largest, or smallest, value: the largest expected improvement, by its logarithm.

    See ``log_expected_improvement`` (Ament et al., NeurIPS 2023). Of several suggestions at a time each takes
    those under way as if they had come as forecast (Ginsbourger et al., Kriging is well-suited to
    parallelize optimization, 2010).
    """

    def __init__(self, direction: Direction) -> None:
        self.direction = direction

    def scores(self, outlook: Outlook) -> Float64:
        """``log E[max(f - best, 0)]``."""
        return log_expected_improvement(outlook.mean, outlook.sd, outlook.best)

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say what is gained on what."""
        mean, sd = outlook.mean[index : index + 1], outlook.sd[index : index + 1]
        gain = math.exp(log_expected_improvement(mean, sd, outlook.best)[0])
        best = f"{self.sign * outlook.best:.3g}"
        if gain < HARDLY * abs(outlook.best):
            return f"hardly expected to improve on {best}"
        return f"expected to improve on {best} by {gain:.1g}"

    def standing(self, known: Standing, look: Callable[[], Outlook]) -> Standing:
        """Say how much the most promising site promises, and on what."""
        return replace(known, gain=lambda: _largest_gain(look()))


def _largest_gain(outlook: Outlook) -> tuple[float, float]:
    gains = log_expected_improvement(outlook.mean, outlook.sd, outlook.best)
    return math.exp(gains.max()), outlook.best


class Thompson(Improve):
    """Find the largest, or smallest, value with many suggestions under way: Thompson sampling.

    Each suggestion is the best site of another function that the measurements allow; see ``joint_draw``. The
    function is drawn at the sites with the highest upper bounds, ``mean + 2 sd``.
    """

    def scores(self, outlook: Outlook) -> Float64:
        """How far the drawn value is above the best; nothing for the sites that none was drawn for."""
        bound = outlook.mean + _UPPER * outlook.sd
        some = np.sort(np.argsort(-bound, kind="stable")[:DRAWN])
        drawn = outlook.draw(some)
        scores = np.full(bound.size, -np.inf)
        scores[some] = log_positive_part((drawn - outlook.best) / (_FINE * outlook.sd.max()))
        return scores

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say what is expected there."""
        return f"the best on one of the maps that the measurements allow: {self.forecast(outlook, index)}"


class OverTheField(Goal):
    """A goal that wants to know all sites, not the best ones.

    The isolated windows of image noise are those that a model knows least, and what is measured there says
    nothing of any other site. So sites are weighted by how many are like them: the information density of
    Settles and Craven, An Analysis of Active Learning Strategies for Sequence Labeling Tasks, EMNLP 2008.

    Parameters
    ----------
    is_weighted
        By density; without, all sites count alike.
    """

    def __init__(self, *, is_weighted: bool) -> None:
        self._is_weighted = is_weighted

    def variance(self, outlook: Outlook) -> Float64:
        """``log variance + log density``: what there is to be learnt at each site."""
        return self._weighted(2.0 * np.log(outlook.sd), outlook)

    def first(self, outlook: Outlook, rng: np.random.Generator, cost: Float64 | float = 0.0) -> int:
        """Draw a site in proportion to what there is to be learnt at it, before any fit of the model.

        As the seeds of k-means++ are (Arthur and Vassilvitskii, SODA 2007). The sites of which most is to be
        learnt would all be far apart, and a fit learns from near ones how far a forecast reaches.
        """
        share = self.variance(outlook) - cost
        share = np.exp(share - share.max())
        return int(rng.choice(share.size, p=share / share.sum()))

    def _weighted(self, log_scores: Float64, outlook: Outlook) -> Float64:
        return log_scores + outlook.log_density() if self._is_weighted else log_scores


class Map(OverTheField):
    """Know the objective everywhere: the largest variance, weighted by how many sites are alike."""

    def scores(self, outlook: Outlook) -> Float64:
        """``log variance + log density``."""
        return self.variance(outlook)

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say how little is known there."""
        where = " of what many sites are like" if self._is_weighted else ""
        return f"the map is least sure{where}: {self.forecast(outlook, index)}"

    def standing(self, known: Standing, look: Callable[[], Outlook]) -> Standing:
        """Say how well the map is known."""
        return replace(known, map_sd=lambda: float(np.sqrt(np.mean(look().sd ** 2))))


class LevelSet(OverTheField):
    """Find where the objective crosses a level: the straddle, weighted by how many sites are alike.

    Parameters
    ----------
    level
        In the unit of the objective.
    is_weighted
        As of ``OverTheField``.
    """

    def __init__(self, level: float, *, is_weighted: bool) -> None:
        super().__init__(is_weighted=is_weighted)
        self.level = level

    def scores(self, outlook: Outlook) -> Float64:
        """``1.96 sd - |mean - level|``, as a logarithm where it is above 0; see ``straddle``."""
        reach = straddle(outlook.mean, outlook.sd, self.level)
        return self._weighted(log_positive_part(reach / (_FINE * outlook.sd.max())), outlook)

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say how unsure the side is."""
        told = f"{self.level:.3g}: {self.forecast(outlook, index)}"
        if abs(outlook.mean[index] - self.level) < SURE * outlook.sd[index]:
            return f"may lie on either side of {told}"
        return f"lies nearest to {told}"

    def standing(self, known: Standing, look: Callable[[], Outlook]) -> Standing:
        """Say how many sites are on one side for sure."""

        def classified() -> float:
            outlook = look()
            return float(np.mean(straddle(outlook.mean, outlook.sd, self.level) < 0))

        return replace(known, classified=classified, level=self.level)


class Discover(Goal):
    """Find what nobody has seen: novelty of the window times the doubt about its spectrum.

    The novelty is how badly the encoder's training explains a window (novelty search: Lehman and Stanley,
    Evolutionary Computation 2011). Times the sd of the forecast, so that a novel kind that was measured is
    not gone to again and again.
    """

    def scores(self, outlook: Outlook) -> Float64:
        """``log novelty + log sd``, novelty below 0 counting ever less."""
        return log_positive_part(outlook.novelty) + np.log(outlook.sd)

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say how novel it is."""
        novelty = outlook.novelty[index]
        what = f"unlike what the encoder was trained on (novelty {novelty:.1f})"
        if novelty < 3:
            what = f"the least usual of what is left (novelty {novelty:.1f})"
        return f"{what}, and its spectrum is not known: {self.forecast(outlook, index)}"


class Match(Improve):
    """Find spectra like a target: the objective ``similarity``, maximised as in ``Improve``."""

    def __init__(self) -> None:
        super().__init__("maximise")

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say how much nearer to the target."""
        return super().reason(outlook, index).replace("improve on", "match the target better than")


class TradeOff(Goal):
    """Find the sites that are good by two objectives: what they add to the area that the front dominates.

    The front are the measured sites of which none other is better by both, as forecast. Two independent
    models; see ``log_expected_hypervolume_improvement``. Every few measurements BoTorch plans the next ones
    beside the work, with the doubt about the front itself: see ``agents.slow_path``.

    Parameters
    ----------
    config
        Which way each objective is good.
    """

    def __init__(self, config: TradeOffConfig) -> None:
        first, second = (-1.0 if way == "minimise" else 1.0 for way in (config.first, config.second))
        self.signs = (first, second)

    @property
    def sign(self) -> float:
        """What turns the first objective so that larger is better."""
        return self.signs[0]

    def scores(self, outlook: Outlook) -> Float64:
        """Logarithm of the area that is expected to be added."""
        second = outlook.second
        assert second is not None
        return log_expected_hypervolume_improvement(
            (outlook.mean, second.mean),
            (outlook.sd, second.sd),
            front_of(second.known),
            reference_of(second.known),
        )

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say what is expected of both."""
        return f"expected to add most to the trade-off: {self.forecast(outlook, index)}"

    def forecast(self, outlook: Outlook, index: int) -> str:
        """Write what is expected by both objectives."""
        assert outlook.second is not None
        mean, sd = outlook.second.mean[index], outlook.second.sd[index]
        return f"{super().forecast(outlook, index)} and {self.signs[1] * mean:.3g} ± {sd:.1g}"


class Planned(TradeOff):
    """Go to the sites that BoTorch planned for a trade-off; see ``agents.slow_path``."""

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say what is expected of both."""
        return f"planned for the trade-off: {self.forecast(outlook, index)}"


class Widen(Goal):
    """Look where the model does not: least sure, or least like what was measured, by turns.

    Parameters
    ----------
    goal
        What is looked for otherwise.
    count
        Measurements without anything better.
    is_by_distance
        Which turn it is. The variance follows from the model, whose mistake a stall may be; how unlike a site
        is does not.
    """

    def __init__(self, goal: Goal, count: int, *, is_by_distance: bool) -> None:
        self.direction = goal.direction
        self._count, self._is_by_distance = count, is_by_distance

    def scores(self, outlook: Outlook) -> Float64:
        """``log distance`` or ``log variance``."""
        if not self._is_by_distance:
            return 2.0 * np.log(outlook.sd)
        return 2.0 * np.log(np.maximum(outlook.away(), 1e-12))

    def reason(self, outlook: Outlook, index: int) -> str:
        """Say what is tried instead."""
        what = "unlike all that was measured" if self._is_by_distance else "where least is known"
        return f"nothing better in {self._count} measurements; looks {what}: {self.forecast(outlook, index)}"


def goal_of(config: AgentConfig) -> Goal:
    """Make the goal that the configuration names."""
    if config.batch == "thompson" and direction_of(config.goal) != "neither":
        return Thompson(direction_of(config.goal))
    match config.goal:
        case "maximise" | "minimise":
            return Improve(config.goal)
        case "map":
            return Map(is_weighted=config.site_weight == "density")
        case "level_set":
            level = math.nan if config.level is None else config.level
            return LevelSet(level, is_weighted=config.site_weight == "density")
        case "discover":
            return Discover()
        case "match":
            return Match()
        case "trade_off":
            return TradeOff(config.trade_off)
