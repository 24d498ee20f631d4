"""Why an agent chose a site: what it forecast of it, and of those that would have come next.

An answer keeps the arrays that it was read from, and nothing is sorted until somebody asks why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, Float64
from agents.kernels import matern_52
from streamer.messages import PairNm

# Before the names of the second objective's parameters in a model revision.
SECOND = "second "
ALTERNATIVES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What an agent expected of a site.

    Attributes
    ----------
    position_nm, track
        As in a Suggestion.
    predicted_mean, predicted_sd
        Forecast in the unit of the objective.
    acquisition
        What the sites were ranked by: the larger, the sooner. A cost is taken off already.
    cost
        What was taken off for the time that a measurement there takes; 0 where nothing was.
    """

    position_nm: PairNm
    track: int
    predicted_mean: float
    predicted_sd: float
    acquisition: float
    cost: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why the last answer of an agent was that.

    Attributes
    ----------
    reason
        As in the Suggestion.
    offered
        How many sites it chose among.
    ranking
        The sites by what they promised, the chosen one first; empty where no model took part.
    parameters
        Of the model that ranked them, named as in a ModelRevision; empty where there was none.
    """

    reason: str
    offered: int
    ranking: tuple[Prospect, ...] = ()
    parameters: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weighed:
    """What a choice was read from.

    Attributes
    ----------
    candidates, free
        What was on offer, and which of it could be chosen, shape ``(m,)``.
    mean, sd
        Forecasts of the free ones, shape ``(m,)``, the mean times ``sign``.
    scores
        What they were ranked by, shape ``(m,)``; the largest was chosen, of equals the first.
    cost
        What was taken off for their cost, shape ``(m,)``; None for nothing.
    sign
        -1 where the smallest objective is looked for, else 1.
    parameters
        Gives those of the model, named as in a ModelRevision.
    """

    candidates: Candidates
    free: NDArray[np.int64]
    mean: Float64
    sd: Float64
    scores: Float64
    parameters: Callable[[], dict[str, list[float]]]
    cost: Float64 | None = None
    sign: float = 1.0

    def ranking(self, count: int) -> tuple[Prospect, ...]:
        """Give the best of them, best first, no more than so many; one without a score is not among them."""
        order = np.argsort(-self.scores, kind="stable")
        return tuple(self._prospect(place) for place in order[np.isfinite(self.scores[order])][:count])

    def _prospect(self, place: np.intp) -> Prospect:
        index = self.free[place]
        x_nm, y_nm = self.candidates.position_nm[index].tolist()
        return Prospect(
            position_nm=(x_nm, y_nm),
            track=int(self.candidates.track[index]),
            predicted_mean=self.sign * float(self.mean[place]),
            predicted_sd=float(self.sd[place]),
            acquisition=float(self.scores[place]),
            cost=0.0 if self.cost is None else float(self.cost[place]),
        )


def joined(*each: dict[str, list[float]]) -> dict[str, list[float]]:
    """Name the parameters of one objective, or of two, together; see ``of_objectives``."""
    first, *others = each
    return first | {SECOND + name: value for other in others for name, value in other.items()}


def of_objectives(parameters: dict[str, list[float]]) -> list[dict[str, list[float]]]:
    """Take the parameters of a ModelRevision apart: of the objective, and of a second where there is one.

    Examples
    --------
    >>> of_objectives({"noise": [0.1], "second noise": [0.2]})
    [{'noise': [0.1]}, {'noise': [0.2]}]
    """
    second = {name.removeprefix(SECOND): v for name, v in parameters.items() if name.startswith(SECOND)}
    first = {name: value for name, value in parameters.items() if not name.startswith(SECOND)}
    return [first, second] if second else [first]


def feature_weights(parameters: dict[str, list[float]]) -> dict[str, float]:
    """Say which features a model's forecasts follow.

    The weight of a feature is how much the objective changes, in the mean square, between two sites that
    differ in it alone by one unit: a latent by its spread over the field, the position by half a field. For
    a part of variance ``v`` and length ``l`` that is ``v (1 - k(1 / l))``, the variogram at one unit. Of
    several models side by side each counts by its own weight.

    Parameters
    ----------
    parameters
        Of a ModelRevision, for one objective.

    Returns
    -------
    weights
        By name, such as ``latents 1`` and ``position``; they sum to 1. Empty where the parameters are not
        those of such a model.

    Examples
    --------
    >>> feature_weights({"position variance": [2.0], "position lengths": [0.5]})
    {'position': 1.0}
    """
    weights: dict[str, float] = {}
    for name, (variance, *_) in parameters.items():
        part = name.removesuffix(" variance")
        lengths = parameters.get(f"{part} lengths")
        if part == name or lengths is None:
            continue
        model, _, own = part.rpartition(": ")
        (log_weight,) = parameters.get(f"{model}: log weight", [0.0])
        names = [own] if len(lengths) == 1 else [f"{own} {k}" for k in range(1, len(lengths) + 1)]
        change = math.exp(log_weight) * variance * (1.0 - matern_52(np.array(lengths) ** -2.0))
        for one, more in zip(names, change.tolist(), strict=True):
            weights[one] = weights.get(one, 0.0) + more
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total > 0 else {}


def model_weights(parameters: dict[str, list[float]]) -> dict[str, float]:
    """Say how far each of several models side by side is trusted, by the name of its features.

    Parameters
    ----------
    parameters
        Of a ModelRevision.

    Returns
    -------
    weights
        They sum to 1; empty where there is one model alone.

    Examples
    --------
    >>> model_weights({"position: log weight": [0.0], "position: noise": [0.1]})
    {'position': 1.0}
    """
    said = {name.removesuffix(": log weight"): value for name, value in parameters.items()}
    return {name: math.exp(value[0]) for name, value in said.items() if name not in parameters}
