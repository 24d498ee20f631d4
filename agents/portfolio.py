"""Several models of the same measurements, each over its own features, and how far to trust each.

No single set of features is the best everywhere. So each model is told everything, and answers by how well
it said beforehand what was then measured: its weight is the exponential of the sum of its one-step-ahead
log-likelihoods, the older counting for less (Raftery et al., Online prediction under model uncertainty via
dynamic model averaging, Technometrics 2010). What came after a fit is judged by that fit, at the next one:
so weights change with a fit, are said with it, and cost nothing while somebody waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.evidence import fit, foretold
from agents.gaussian_process import GaussianProcess
from agents.kernels import Hyperparameters, Part, as_vector
from agents.surrogate import Beginning, Observations, Surrogate, SurrogateState

Float64 = NDArray[np.float64]

# What a log-likelihood counts after one more measurement: half after 34.
REMEMBERED = 0.98
# A model whose weight is below this part of the best has no part in the answers, until the next fit at least.
HARDLY_TRUSTED = 0.02
# Of a model that gave no likelihood: far behind, but not for good.
_WORTHLESS = -50.0


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What a fit of all models found.

    Attributes
    ----------
    hyperparameters
        One for each model.
    log_weight
        Logarithms of their weights, shape ``(models,)``; the weights sum to 1.
    processes
        What each model begins with, in its order; None of those that are hardly trusted. Empty where nothing
        was made ready.
    """

    hyperparameters: tuple[Hyperparameters, ...]
    log_weight: Float64
    processes: tuple[GaussianProcess | None, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """What a fit begins from; it can be computed anywhere, with the same result.

    Attributes
    ----------
    known
        What to fit to.
    since
        How many of them were known at the last fit: the others were foretold by it.
    parts, hyperparameters
        Of each model.
    log_weight
        As of ``Fitted``.
    beginnings
        What each model will begin from.
    """

    known: Observations
    since: int
    parts: tuple[tuple[Part, ...], ...]
    hyperparameters: tuple[Hyperparameters, ...]
    log_weight: Float64
    beginnings: tuple[Beginning, ...]

    def fitted(self) -> Fitted:
        """Fit every model, and judge what each foretold."""
        said = list(zip(self.parts, self.hyperparameters, strict=True))
        found = tuple(fit(self.known, parts, start) for parts, start in said)
        if len(said) == 1:
            return Fitted(found, np.zeros(1))
        each = np.array([foretold(self.known, parts, start) for parts, start in said])[:, self.since :]
        age = np.arange(each.shape[1])[::-1]
        gained = np.where(np.isfinite(each), each, _WORTHLESS) @ REMEMBERED**age
        return Fitted(found, _normalised(REMEMBERED ** len(age) * self.log_weight + gained))

    def made_ready(self) -> Fitted:
        """Fit every model, and make all that is needed to answer with it."""
        found = self.fitted()
        each = zip(self.beginnings, found.hyperparameters, _trust(found.log_weight), strict=True)
        return replace(found, processes=tuple(one.model(h) if trust else None for one, h, trust in each))


class PortfolioState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """What a portfolio knows beyond its observations and what is on offer; see ``Portfolio``."""

    names: tuple[str, ...]
    models: list[SurrogateState]
    log_weight: Float64
    fitted_to: int


class Portfolio:
    """Surrogates side by side, that answer as one.

    The forecast is the mixture of theirs: its mean, and its sd with what they disagree about in it.

    Parameters
    ----------
    parts
        Of the covariance of each model, by its name.
    width
        How many features a place has.

    Attributes
    ----------
    names, models
        Of the models, and they themselves.
    log_weight
        Logarithms of their weights, shape ``(models,)``.
    """

    def __init__(self, parts: Mapping[str, tuple[Part, ...]], width: int) -> None:
        self.names = tuple(parts)
        self.models = tuple(Surrogate(one, width) for one in parts.values())
        self.log_weight = _normalised(np.zeros(len(self.models)))
        self._fitted_to = 0

    @property
    def known(self) -> Observations:
        """What it was told."""
        return self.models[0].known

    @property
    def offered(self) -> Float64:
        """Features of the places on offer, shape ``(m, d)``."""
        return self.models[0].offered

    @property
    def weights(self) -> dict[str, float]:
        """How far each model is trusted, by its name; they sum to 1."""
        return dict(zip(self.names, np.exp(self.log_weight).tolist(), strict=True))

    @property
    def fitted(self) -> Fitted:
        """The fit that it computes with now; another one does not change it."""
        return Fitted(tuple(model.hyperparameters for model in self.models), self.log_weight)

    # -- learn -----------------------------------------------------------------------------------------

    def tell(self, x: Float64, y: float, variance: float) -> None:
        """Take in one more observation; see ``Surrogate``."""
        for model in self.models:
            model.tell(x, y, variance)

    def tell_all(self, known: Observations) -> None:
        """Take these in the place of all earlier observations; what was foretold was of those."""
        self.log_weight, self._fitted_to = _normalised(np.zeros(len(self.models))), 0
        for model in self.models:
            model.tell_all(known)

    def offer(self, x: Float64) -> None:
        """Take these places, features ``(m, d)``, in the place of those that were on offer."""
        for model in self.models:
            model.offer(x)

    def expect(self, x: Float64) -> None:
        """Take the outcomes of these places, features ``(p, d)``, to be still to come."""
        for model in self.models:
            model.expect(x)

    def get_ready(self) -> None:
        """Compute beforehand what the outcomes that are expected will need; see ``Surrogate.get_ready``."""
        for _, model in self._trusted():
            model.get_ready()

    def to_fit(self, size: int) -> Begun:
        """Say what a fit to the first ``size`` observations begins from."""
        return Begun(
            self.known.first(size),
            min(self._fitted_to, size),
            tuple(model.parts for model in self.models),
            tuple(model.hyperparameters for model in self.models),
            self.log_weight,
            tuple(model.beginning(size) for model in self.models),
        )

    def adopt(self, found: Fitted, size: int) -> bool:
        """Compute with a fit from now on; was any number of it new? See ``Surrogate.adopt``."""
        said = list(zip(self.models, found.hyperparameters, strict=True))
        is_new = any(
            as_vector(model.hyperparameters).tobytes() != as_vector(h).tobytes() for model, h in said
        )
        for (model, hyperparameters), ready in zip_longest(said, found.processes):
            model.adopt(hyperparameters, size, ready)
        self.log_weight, self._fitted_to = found.log_weight, size
        return is_new

    # -- answer ----------------------------------------------------------------------------------------

    @property
    def mean(self) -> Float64:
        """Forecast of the objective at the places on offer, shape ``(m,)``, in its unit."""
        return _mixed([(weight, model.mean) for weight, model in self._trusted()])

    @property
    def sd(self) -> Float64:
        """Standard deviation of that forecast without counting noise, shape ``(m,)``."""
        return _spread([(weight, model.mean, model.sd) for weight, model in self._trusted()])

    def posterior(self, x: Float64) -> tuple[Float64, Float64]:
        """Forecast mean and sd at any places, features ``(m, d)``; what is expected counts as come."""
        each = [(weight, *model.posterior(x)) for weight, model in self._trusted()]
        return _mixed([(weight, mean) for weight, mean, _ in each]), _spread(each)

    def joint(self, x: Float64) -> tuple[Float64, Float64]:
        """Forecast means of places, features ``(k, d)``, and their covariance; see ``posterior``."""
        each = [(weight, *model.joint(x)) for weight, model in self._trusted()]
        means = [(weight, mean) for weight, mean, _ in each]
        mean, covariance = _mixed(means), _mixed([(weight, one) for weight, _, one in each])
        if len(each) > 1:
            away = [(weight, one - mean) for weight, one in means]
            covariance = covariance + _mixed([(weight, np.outer(one, one)) for weight, one in away])
        return mean, covariance

    def at_known(self) -> Float64:
        """Forecast at the observed places, shape ``(n,)``: the objective without its noise."""
        return _mixed([(weight, model.at_known()) for weight, model in self._trusted()])

    def best_known(self) -> float:
        """Say the largest forecast among the observed places; noise alone makes no best. NaN without any."""
        return float(self.at_known().max()) if len(self.known) else math.nan

    def _trusted(self) -> list[tuple[float, Surrogate]]:
        """Models that take part, with weights that sum to 1: the others cost no time."""
        weights = _trust(self.log_weight)
        return [(float(one), model) for one, model in zip(weights, self.models, strict=True) if one]

    # -- say -------------------------------------------------------------------------------------------

    def parameters(self, found: Fitted | None = None) -> dict[str, list[float]]:
        """Name all numbers of a fit, by default of the present one; see ``of_parameters``."""
        found = self.fitted if found is None else found
        named: dict[str, list[float]] = {}
        for index, (name, model) in enumerate(zip(self.names, self.models, strict=True)):
            said = found.hyperparameters[index].parameters(model.parts)
            if len(self.models) > 1:
                said = {"log weight": [float(found.log_weight[index])]} | said
            named |= {self._full(name, key): value for key, value in said.items()}
        return named

    def of_parameters(self, parameters: dict[str, list[float]]) -> Fitted:
        """Make a fit again of what ``parameters`` said.

        Raises
        ------
        ValueError
            If they are not those of such models.
        """
        left, found, log_weight = dict(parameters), [], np.zeros(len(self.models))
        for index, (name, model) in enumerate(zip(self.names, self.models, strict=True)):
            start = self._full(name, "")
            own = {key[len(start) :]: left.pop(key) for key in parameters if key.startswith(start)}
            if len(self.models) > 1:
                (log_weight[index],) = own.pop("log weight", [math.nan])
            found.append(Hyperparameters.of_parameters(own, model.parts))
        if left or not np.isfinite(log_weight).all():
            raise ValueError(f"a model revision is not of the features {', '.join(self.names)}")
        return Fitted(tuple(found), log_weight)

    def _full(self, name: str, key: str) -> str:
        """Name a number of one of several models; of one alone it needs no more than its own name."""
        return f"{name}: {key}" if len(self.models) > 1 else key

    # -- live on ---------------------------------------------------------------------------------------

    def state(self) -> PortfolioState:
        """Say what it knows beyond its observations and what is on offer."""
        states = [model.state() for model in self.models]
        return PortfolioState(
            names=self.names, models=states, log_weight=self.log_weight, fitted_to=self._fitted_to
        )

    def restore(self, state: PortfolioState, known: Observations) -> None:
        """Be as the portfolio was that said this, with what it had been told; what is on offer stays.

        One of other models has nothing to say: then everything is learnt anew.
        """
        if state.names != self.names:
            self.tell_all(known)
            return
        for model, one in zip(self.models, state.models, strict=True):
            model.restore(one, known)
        self.log_weight, self._fitted_to = state.log_weight, state.fitted_to


def _normalised(log_weight: Float64) -> Float64:
    """Let the weights sum to 1, and none be so small that nothing could bring it back."""
    away = np.maximum(log_weight - log_weight.max(), _WORTHLESS)
    normalised: Float64 = away - np.log(np.exp(away).sum())
    return normalised


def _trust(log_weight: Float64) -> Float64:
    """Weights that sum to 1, those of the hardly trusted 0."""
    weight = np.exp(log_weight)
    weight = np.where(weight < HARDLY_TRUSTED * weight.max(), 0.0, weight)
    trust: Float64 = weight / weight.sum()
    return trust


def _mixed(each: Sequence[tuple[float, Float64]]) -> Float64:
    """Weighted mean; of one alone, itself bit for bit."""
    if len(each) == 1:
        return each[0][1]
    mixed: Float64 = sum((weight * one for weight, one in each[1:]), start=each[0][0] * each[0][1])
    return mixed


def _spread(each: Sequence[tuple[float, Float64, Float64]]) -> Float64:
    """Sd of a mixture by its moments: doubt of each, and what they disagree about."""
    if len(each) == 1:
        return each[0][2]
    mean = _mixed([(weight, one) for weight, one, _ in each])
    spread: Float64 = np.sqrt(_mixed([(weight, sd**2 + (one - mean) ** 2) for weight, one, sd in each]))
    return spread
