"""What the measurements so far say of places not yet measured: an exact Gaussian process.

It knows the places on offer beforehand, so it keeps what the observations say of each: one more observation
then costs one pass over them, ``O(n m)`` for ``n`` observations and ``m`` places, and forecasts cost nothing.
With ``L Lᵀ = K(X, X) + noise``, ``V = L⁻¹ K(X, C)`` and ``z = L⁻¹ (y - mean)``, another observation at ``x``
adds to each of them one row::

    l = L⁻¹ k(X, x)     d² = k(x, x) + noise - l·l     v = (k(x, C) - lᵀ V) / d     ζ = (y - mean - l·z) / d

and to the forecasts ``mean += ζ v`` and ``variance -= v²``. An outcome still to come is such a row with
``ζ = 0``, as if it would come as forecast: it leaves the means and lowers the variance around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from agents.kernels import Covariance, Hyperparameters, Part, Prior

Float64 = NDArray[np.float64]

# Counting noise is not all: a model exact to 1 % of the spread would chase the rest.
MIN_NOISE_VARIANCE = 1e-4
NOISE = Prior(log_mean=-6.0, log_sd=1.5)
# Candidates whose rows are made together: their arrays stay in the cache.
_AT_ONCE = 2048
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


class _Factor:
    """``L``, ``V`` and ``z`` of so many observations, with room for more.

    Attributes
    ----------
    count
        How many rows there are.
    """

    def __init__(self, lower: Float64, rows: Float64, residual: Float64) -> None:
        self.count = len(residual)
        room = 2 * self.count + 8
        self._lower = np.zeros((room, room))
        self._lower[: self.count, : self.count] = lower
        self._rows = np.empty((room, rows.shape[1]))
        self._rows[: self.count] = rows
        self._residual = np.empty(room)
        self._residual[: self.count] = residual

    @property
    def lower(self) -> Float64:
        """``L``, shape ``(n, n)``."""
        return self._lower[: self.count, : self.count]

    @property
    def rows(self) -> Float64:
        """``V``, shape ``(n, m)``."""
        return self._rows[: self.count]

    @property
    def residual(self) -> Float64:
        """``z``, shape ``(n,)``."""
        return self._residual[: self.count]

    def solved(self, right: Float64) -> Float64:
        """``L⁻¹`` times one or more columns."""
        found: Float64 = solve_triangular(self.lower, right, lower=True, check_finite=False)
        return found

    def add(self, to_known: Float64, pivot: float, row: Float64, residual: float) -> None:
        """Add the row of one more observation."""
        n = self.count
        if n == len(self._residual):
            grown = _Factor(self.lower, self.rows, self.residual)
            self._lower, self._rows, self._residual = grown._lower, grown._rows, grown._residual
        self._lower[n, :n], self._lower[n, n] = to_known, pivot
        self._rows[n], self._residual[n] = row, residual
        self.count += 1

    def shorten(self, count: int) -> None:
        """Forget all rows but the first."""
        self.count = count


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
        self._model: _Model | None = None

    # -- learn -----------------------------------------------------------------------------------------

    def tell(self, x: Float64, y: float, variance: float) -> None:
        """Take in one more observation: ``O(n m)``.

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
        elif self._model is not None:
            self._model.tell(*self._last())

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

    def adopt(self, hyperparameters: Hyperparameters, size: int, used_from: int) -> None:
        """Compute with these from now on.

        Parameters
        ----------
        hyperparameters
            Fitted to the first ``size`` observations.
        size, used_from
            Of how many observations they were to be used: the digits are those of an adoption just then.
        """
        self.hyperparameters = hyperparameters
        self.revision += 1
        self.unit = Unit.of(self.known.first(size))
        self.begun_with, self._model = max(self.begun_with, used_from), None

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

    def _ready(self) -> _Model:
        if self._model is None:
            count = self.begun_with if self.revision else len(self.known)
            begun = self.known.first(count)
            covariance = Covariance(self.parts, self.hyperparameters)
            self._model = _Model(covariance, begun.x, *self.unit.standardised(begun), self.offered)
            for index in range(count, len(self.known)):
                self._model.tell(*self._last(index))
        self._model.expect(self._expected)  # what it expects already costs nothing
        return self._model

    def _last(self, index: int = -1) -> tuple[Float64, float, float]:
        """Features, standardised objective and variance of one observation."""
        one = slice(index, index + 1 or None)
        known = Observations(self.known.x[one], self.known.y[one], self.known.variance[one])
        (value,), (noise,) = self.unit.standardised(known)
        return known.x[0], float(value), float(noise)


class _Model:
    """The process with all its numbers: standardised observations, and the places on offer."""

    def __init__(
        self, covariance: Covariance, x: Float64, value: Float64, noise: Float64, offered: Float64
    ) -> None:
        self._covariance = covariance
        h = covariance.hyperparameters
        self._value, self._noise = value, noise + h.noise
        self._typical_noise = float(np.median(self._noise)) if len(noise) else MIN_NOISE_VARIANCE
        self._offered = covariance.scaled(offered)
        self._places = covariance.scaled(x)  # of the rows of the factor
        try:
            within = covariance.between_scaled(self._places, self._places)
            lower = cholesky(within + np.diag(self._noise), lower=True, check_finite=False)
        except LinAlgError:
            lower = np.full((len(value), len(value)), np.nan)
        residual = solve_triangular(lower, value - h.mean, lower=True, check_finite=False)
        self._factor = _Factor(lower, np.empty((len(value), len(offered))), residual)
        self.mean = np.full(len(offered), h.mean)
        self._variance_by_known = np.full(len(offered), covariance.prior_variance)
        self.variance = self._variance_by_known
        self._expected = x[:0]
        self._forecast()

    def _forecast(self) -> None:
        """Make the rows of all observations, some candidates at a time: quicker than one after the other."""
        factor = self._factor
        # As a product with the inverse: twice as quick as to solve for each candidate.
        inverse = factor.solved(np.eye(factor.count))
        for first in range(0, len(self.mean), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            some = [one[part] for one in self._offered]
            rows = inverse @ self._covariance.between_scaled(self._places, some)
            factor.rows[:, part] = rows
            self.mean[part] += factor.residual @ rows
            self._variance_by_known[part] -= np.einsum("ij,ij->j", rows, rows)

    def tell(self, x: Float64, value: float, noise: float) -> None:
        """Add one observation; what is expected is no more."""
        self._forget_expected()
        self._value, noise = np.append(self._value, value), noise + self._covariance.hyperparameters.noise
        self._noise = np.append(self._noise, noise)
        row = self._add(self._covariance.scaled(x[None]), noise, value)
        self.mean += self._factor.residual[-1] * row
        self._variance_by_known -= row * row

    def expect(self, x: Float64) -> None:
        """Lower the variance around what is still to come, and around nothing else."""
        if not np.array_equal(self._expected, x[: len(self._expected)]):
            self._forget_expected()
        new = x[len(self._expected) :]
        self._expected = x
        if len(new) and self.variance is self._variance_by_known:
            self.variance = self.variance.copy()
        scaled = self._covariance.scaled(new)
        for index in range(len(new)):
            row = self._add([one[index : index + 1] for one in scaled], self._typical_noise, None)
            self.variance -= row * row

    def posterior(self, x: Float64) -> tuple[Float64, Float64]:
        """Mean and variance at any places, standardised."""
        covariance, factor = self._covariance, self._factor
        rows = factor.solved(covariance.between_scaled(self._places, covariance.scaled(x)))
        mean: Float64 = covariance.hyperparameters.mean + rows.T @ factor.residual
        variance: Float64 = covariance.prior_variance - np.einsum("ij,ij->j", rows, rows)
        return mean, variance

    def joint(self, x: Float64) -> tuple[Float64, Float64]:
        """Means of any places and their covariance, standardised."""
        covariance, factor, places = self._covariance, self._factor, self._covariance.scaled(x)
        rows = factor.solved(covariance.between_scaled(self._places, places))
        mean: Float64 = covariance.hyperparameters.mean + rows.T @ factor.residual
        together: Float64 = covariance.between_scaled(places, places) - rows.T @ rows
        return mean, together

    def at_known(self) -> Float64:
        """Means at the observed places, without a covariance: ``y - noise · K⁻¹ (y - mean)``."""
        n = len(self._value)
        lower, residual = self._factor.lower[:n, :n], self._factor.residual[:n]
        weight = solve_triangular(lower, residual, lower=True, trans="T", check_finite=False)
        forecast: Float64 = self._value - self._noise * weight
        return forecast

    def _forget_expected(self) -> None:
        known = len(self._value)
        self._factor.shorten(known)
        self._places = [one[:known] for one in self._places]
        self._expected = self._expected[:0]
        self.variance = self._variance_by_known

    def _add(self, place: list[Float64], noise: float, value: float | None) -> Float64:
        """Add an observation, or an expected one, which has no value; give its row of ``V``."""
        factor, covariance = self._factor, self._covariance
        to_known = factor.solved(covariance.between_scaled(self._places, place)[:, 0])
        left = covariance.prior_variance + noise - float(to_known @ to_known)
        pivot = math.sqrt(max(left, MIN_NOISE_VARIANCE)) if math.isfinite(left) else math.nan
        row: Float64 = covariance.between_scaled(place, self._offered)[0]
        row -= to_known @ factor.rows
        row /= pivot
        surprise = 0.0
        if value is not None:
            surprise = (value - covariance.hyperparameters.mean - float(to_known @ factor.residual)) / pivot
        factor.add(to_known, pivot, row, surprise)
        self._places = [np.concatenate(pair) for pair in zip(self._places, place, strict=True)]
        return row
