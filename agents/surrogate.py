"""What the measurements so far say of places not yet measured: an exact Gaussian process.

It knows the places on offer beforehand and keeps the forecast of each, so that another observation is added
and nothing is computed anew; see ``agents.gaussian_process``. With each fit, and with other places on offer,
all begins anew, which costs ``O(n² m)`` for ``n`` observations and ``m`` places; that of a fit can be done
beforehand, in another thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.gaussian_process import MIN_NOISE_VARIANCE, GaussianProcess
from agents.kernels import Covariance, Hyperparameters, Part, Prior

Float64 = NDArray[np.float64]

NOISE = Prior(log_mean=-6.0, log_sd=1.5)
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """What was measured.

    Attributes
    ----------
    x
        Features, shape ``(n, d)``.
    y, variance
        Objective and its measured variance, shape ``(n,)``, in its unit and unit squared.
    """

    x: Float64
    y: Float64
    variance: Float64

    def __len__(self) -> int:
        return int(self.y.size)

    def with_one(self, x: Float64, y: float, variance: float) -> Observations:
        """These and one more."""
        more = (np.append(self.y, y), np.append(self.variance, variance))
        return Observations(np.concatenate([self.x, x[None]]), *more)

    def first(self, size: int) -> Observations:
        """Those that were there when there were no more than so many."""
        return Observations(self.x[:size], self.y[:size], self.variance[:size])


@dataclass(frozen=True, slots=True)
class Unit:
    """Brings an objective to mean 0 and variance 1.

    Attributes
    ----------
    offset, size
        What is taken off, and what is divided by; in the unit of the objective.
    """

    offset: float = 0.0
    size: float = 1.0

    @classmethod
    def of(cls, known: Observations) -> Unit:
        """Take mean and spread of what is known; of one alone, its noise."""
        if not len(known):
            return cls()
        spread = float(known.y.std(ddof=1)) if len(known) > 1 else 0.0
        return cls(float(known.y.mean()), spread or math.sqrt(float(known.variance.mean())) or 1.0)

    def standardised(self, known: Observations) -> tuple[Float64, Float64]:
        """Objective and variance of its noise, which is never too small to compute with."""
        noise = np.maximum(known.variance / self.size**2, MIN_NOISE_VARIANCE)
        return (known.y - self.offset) / self.size, noise


class SurrogateState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """What a surrogate knows beyond its observations and what is on offer; see ``Surrogate``."""

    hyperparameters: Hyperparameters
    unit: Unit
    revision: int
    begun_with: int


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """What a surrogate begins anew from; the model can be made anywhere, with the same result.

    Attributes
    ----------
    parts
        Of the covariance.
    known, unit
        The observations to begin with, and how they are standardised.
    offered, expected
        Features of the places on offer, and of those whose outcomes are still to come.
    """

    parts: tuple[Part, ...]
    known: Observations
    unit: Unit
    offered: Float64
    expected: Float64

    def model(self, hyperparameters: Hyperparameters) -> GaussianProcess:
        """Make the model with these hyperparameters: ``O(n² m)``."""
        covariance = Covariance(self.parts, hyperparameters)
        value, noise = self.unit.standardised(self.known)
        model = GaussianProcess(covariance, self.known.x, value, noise, self.offered)
        model.expect(self.expected)
        return model


class Surrogate:
    """Gaussian process over the places that are on offer, with the measured noise of each observation.

    Its digits follow from what it was told and in which order, never from when it was asked: it begins anew,
    from all observations at once, whenever places are offered or hyperparameters adopted, and adds those
    that come after one by one.

    Parameters
    ----------
    parts
        Of its covariance; see ``agents.kernels``.
    width
        How many features a place has; None for as many as the parts look at.

    Attributes
    ----------
    known
        What it was told.
    offered
        Features of the places on offer, shape ``(m, d)``.
    hyperparameters, unit
        As fitted last; the unit of the objective is that of the observations of the fit.
    revision
        Counts the fits.
    begun_with
        With how many observations it begins once there was a fit; the others are added.
    """

    def __init__(self, parts: tuple[Part, ...], width: int | None = None) -> None:
        self.parts = parts
        self.width = max(part.columns[1] for part in parts) if width is None else width
        self.known = Observations(np.zeros((0, self.width)), np.zeros(0), np.zeros(0))
        self.hyperparameters = Hyperparameters.before_any_fit(parts, NOISE)
        self.unit = Unit()
        self.revision = 0
        self.begun_with = 0
        self.offered = np.zeros((0, self.width))
        self._expected = np.zeros((0, self.width))
        self._model: GaussianProcess | None = None

    # -- learn -----------------------------------------------------------------------------------------

    def tell(self, x: Float64, y: float, variance: float) -> None:
        """Take in one more observation; the next answer then takes ``O(m)`` where it was expected.

        Parameters
        ----------
        x
            Features, shape ``(d,)``.
        y, variance
            Objective and its measured variance.
        """
        self.known = self.known.with_one(x, y, variance)
        if not self.revision:  # the unit changes with each, and they are few
            self._model, self.unit = None, Unit.of(self.known)

    def tell_all(self, known: Observations) -> None:
        """Take these in the place of all earlier observations."""
        self.known = known
        self._begin_anew()

    def offer(self, x: Float64) -> None:
        """Take these places, features ``(m, d)``, in the place of those that were on offer: ``O(n² m)``."""
        self.offered = x
        self._begin_anew()

    def expect(self, x: Float64) -> None:
        """Take the outcomes of these places, features ``(p, d)``, to be still to come."""
        self._expected = x

    def get_ready(self) -> None:
        """Compute beforehand what the outcomes that are expected will need; it comes out the same without.

        Nothing where all has to begin anew: until it is asked, other places may be on offer.
        """
        if self._model is not None:
            self._ready()

    def beginning(self, size: int) -> Beginning:
        """Say what it will begin from with a fit to the first ``size`` observations."""
        begun = self.known.first(max(self.begun_with, size))
        return Beginning(self.parts, begun, Unit.of(self.known.first(size)), self.offered, self._expected)

    def adopt(
        self, hyperparameters: Hyperparameters, size: int, model: GaussianProcess | None = None
    ) -> None:
        """Compute with these from now on.

        Parameters
        ----------
        hyperparameters
            Fitted to the first ``size`` observations.
        size
            Of the observations that they were fitted to: it begins with them, and adds what came after.
        model
            What ``beginning`` makes of them. It is made when it is needed where it is not given, or other
            places are on offer by now.
        """
        self.hyperparameters = hyperparameters
        self.revision += 1
        self.unit = Unit.of(self.known.first(size))
        self.begun_with = max(self.begun_with, size)
        is_ready = model is not None and model.offered is self.offered and model.begun == self.begun_with
        self._model = model if is_ready else None

    def state(self) -> SurrogateState:
        """Say what it knows beyond its observations and what is on offer."""
        return SurrogateState(
            hyperparameters=self.hyperparameters,
            unit=self.unit,
            revision=self.revision,
            begun_with=self.begun_with,
        )

    def restore(self, state: SurrogateState, known: Observations) -> None:
        """Be as the surrogate was that said this, with what it had been told; what is on offer stays."""
        self.hyperparameters, self.unit, self.revision = state.hyperparameters, state.unit, state.revision
        self.known, self.begun_with, self._model = known, state.begun_with, None

    # -- answer ----------------------------------------------------------------------------------------

    @property
    def mean(self) -> Float64:
        """Forecast of the objective at the places on offer, shape ``(m,)``, in its unit."""
        return self.unit.offset + self.unit.size * self._ready().mean

    @property
    def sd(self) -> Float64:
        """Standard deviation of that forecast without counting noise, shape ``(m,)``.

        Both are NaN where the hyperparameters make no covariance.
        """
        return self._in_unit(self._ready().variance)

    def posterior(self, x: Float64) -> tuple[Float64, Float64]:
        """Forecast mean and sd at any places, features ``(m, d)``; what is expected counts as come."""
        mean, variance = self._ready().posterior(x)
        return self.unit.offset + self.unit.size * mean, self._in_unit(variance)

    def joint(self, x: Float64) -> tuple[Float64, Float64]:
        """Forecast means of places, features ``(k, d)``, and their covariance; see ``posterior``."""
        mean, covariance = self._ready().joint(x)
        return self.unit.offset + self.unit.size * mean, self.unit.size**2 * covariance

    def at_known(self) -> Float64:
        """Forecast at the observed places, shape ``(n,)``: the objective without its noise."""
        if not len(self.known):
            return np.zeros(0)
        return self.unit.offset + self.unit.size * self._ready().at_known()

    def best_known(self) -> float:
        """Say the largest forecast among the observed places; noise alone makes no best. NaN without any."""
        return float(self.at_known().max()) if len(self.known) else math.nan

    def _in_unit(self, variance: Float64) -> Float64:
        return self.unit.size * np.sqrt(np.maximum(variance, _LEAST_VARIANCE))

    # -- the model that is computed with ----------------------------------------------------------------

    def _begin_anew(self) -> None:
        self.begun_with = len(self.known)
        self._model = None
        if not self.revision:  # there is no fit whose unit would hold
            self.unit = Unit.of(self.known)

    def _ready(self) -> GaussianProcess:
        if self._model is None:
            begun = self.known.first(self.begun_with) if self.revision else self.known
            beginning = Beginning(self.parts, begun, self.unit, self.offered, self._expected)
            self._model = beginning.model(self.hyperparameters)
        for index in range(len(self._model), len(self.known)):
            self._model.tell(*self._standardised(index))
        self._model.expect(self._expected)  # what it expects already costs nothing
        return self._model

    def _standardised(self, index: int) -> tuple[Float64, float, float]:
        """Features, standardised objective and variance of one observation."""
        one = slice(index, index + 1)
        known = Observations(self.known.x[one], self.known.y[one], self.known.variance[one])
        (value,), (noise,) = self.unit.standardised(known)
        return known.x[0], float(value), float(noise)
