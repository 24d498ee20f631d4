"""An exact Gaussian process over places that are known beforehand, to which observations are added.

It keeps what the observations say of each place on offer. With ``L Lᵀ = K(X, X) + noise``,
``V = L⁻¹ K(X, C)`` and ``z = L⁻¹ (y - mean)``, another observation at ``x`` adds to each of them one row::

    l = L⁻¹ k(X, x)     d² = k(x, x) + noise - l·l     v = (k(x, C) - lᵀ V) / d     ζ = (y - mean - l·z) / d

and to the forecasts ``mean += ζ v`` and ``variance -= v²``. An outcome still to come is such a row with
``ζ = 0``, as if it would come as forecast: it leaves the means and lowers the variance around it.

What costs is ``lᵀ V``, one pass over all rows: ``O(n m)`` for ``n`` observations and ``m`` places. It is made
once for a place, when it is first expected; each observation that comes after takes its own part off,
``O(m)``. So when the outcome comes, nothing is left to do that grows with the number of observations but
``O(n²)``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from agents.kernels import Covariance

Float64 = NDArray[np.float64]

# Counting noise is not all: a model exact to 1 % of the spread would chase the rest.
MIN_NOISE_VARIANCE = 1e-4
# Candidates whose rows are made together: their arrays stay in the cache.
_AT_ONCE = 2048


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

    def add(self, to_known: Float64, pivot: float, left: Float64, residual: float) -> Float64:
        """Add one more observation: ``l``, ``d``, ``d v`` and ``ζ``. Gives its row of ``V``."""
        n = self.count
        if n == len(self._residual):
            grown = _Factor(self.lower, self.rows, self.residual)
            self._lower, self._rows, self._residual = grown._lower, grown._rows, grown._residual
        self._lower[n, :n], self._lower[n, n] = to_known, pivot
        np.divide(left, pivot, out=self._rows[n])
        self._residual[n] = residual
        self.count += 1
        row: Float64 = self._rows[n]
        return row

    def shorten(self, count: int) -> None:
        """Forget all rows but the first."""
        self.count = count


class _Left:
    """What the rows of a factor leave of the covariance of one place, brought up to date row by row.

    Its digits follow from the rows and from how many of them were made together, never from when it is
    brought up to date.

    Attributes
    ----------
    place
        Scaled features, each shape ``(1, width)``.
    to_known, to_offered
        ``l`` and ``k(x, C) - lᵀ V``, shapes ``(n,)`` and ``(m,)``.
    """

    def __init__(self, place: list[Float64], to_known: Float64, to_offered: Float64) -> None:
        self.place, self.to_known, self.to_offered = place, to_known, to_offered

    def follow(self, covariance: Covariance, factor: _Factor, places: list[Float64], count: int) -> None:
        """Take off what the rows take that were added since, up to so many, of which these are the places."""
        for index in range(len(self.to_known), count):
            there = [one[index : index + 1] for one in places]
            lower = factor.lower[index]
            (shared,) = covariance.between_scaled(there, self.place)[0] - lower[:index] @ self.to_known
            self.to_known = np.append(self.to_known, shared / lower[index])
            self.to_offered -= self.to_known[index] * factor.rows[index]

    def beyond(self, covariance: Covariance, factor: _Factor, places: list[Float64]) -> _Left:
        """What is left after all further rows, taken off together: for those that soon go again."""
        known = len(self.to_known)
        if known == factor.count:
            return self
        shared = covariance.between_scaled([one[known:] for one in places], self.place)[:, 0]
        shared -= factor.lower[known:, :known] @ self.to_known
        further = solve_triangular(factor.lower[known:, known:], shared, lower=True, check_finite=False)
        to_offered = self.to_offered - further @ factor.rows[known:]
        return _Left(self.place, np.concatenate([self.to_known, further]), to_offered)


class GaussianProcess:
    """The process with all its numbers: standardised observations, and the places on offer.

    Parameters
    ----------
    covariance
        With its hyperparameters.
    x, value, noise
        Of the observations that it begins with: features ``(n, d)``, standardised objective and the variance
        of its measured noise, shape ``(n,)``.
    offered
        Features of the places on offer, shape ``(m, d)``.

    Attributes
    ----------
    offered, begun
        The same, and the number of those observations.
    mean, variance
        Standardised forecasts at the places on offer, shape ``(m,)``.
    """

    def __init__(
        self, covariance: Covariance, x: Float64, value: Float64, noise: Float64, offered: Float64
    ) -> None:
        self.offered, self.begun = offered, len(value)
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
        self._left: dict[bytes, _Left] = {}  # of the places that are expected, by their features
        self._forecast()

    def __len__(self) -> int:
        """How many observations it was told."""
        return len(self._value)

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
        left = self._left_of(x)
        self._left.pop(x.tobytes(), None)
        noise += self._covariance.hyperparameters.noise
        self._value, self._noise = np.append(self._value, value), np.append(self._noise, noise)
        row = self._add(left, noise, value)
        self.mean += self._factor.residual[-1] * row
        self._variance_by_known -= row * row

    def expect(self, x: Float64) -> None:
        """Lower the variance around what is still to come, and around nothing else."""
        if not np.array_equal(self._expected, x[: len(self._expected)]):
            self._forget_expected()
        new = x[len(self._expected) :]
        self._expected = x
        if not len(new):
            return
        self._left = {one.tobytes(): self._left_of(one) for one in x}
        if self.variance is self._variance_by_known:
            self.variance = self.variance.copy()
        for one in new:
            left = self._left[one.tobytes()].beyond(self._covariance, self._factor, self._places)
            row = self._add(left, self._typical_noise, None)
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
        n = len(self)
        lower, residual = self._factor.lower[:n, :n], self._factor.residual[:n]
        weight = solve_triangular(lower, residual, lower=True, trans="T", check_finite=False)
        forecast: Float64 = self._value - self._noise * weight
        return forecast

    def _forget_expected(self) -> None:
        known = len(self)
        self._factor.shorten(known)
        self._places = [one[:known] for one in self._places]
        self._expected = self._expected[:0]
        self.variance = self._variance_by_known

    def _left_of(self, x: Float64) -> _Left:
        """What the observations leave of the covariance of a place, features ``(d,)``."""
        left = self._left.get(x.tobytes()) or self._left_at_first(x)
        left.follow(self._covariance, self._factor, self._places, len(self))
        return left

    def _left_at_first(self, x: Float64) -> _Left:
        """What those leave of it that were there at the beginning: one pass over their rows."""
        factor, covariance, place = self._factor, self._covariance, self._covariance.scaled(x[None])
        some = slice(self.begun)
        to_begun = covariance.between_scaled([one[some] for one in self._places], place)[:, 0]
        to_known = solve_triangular(factor.lower[some, some], to_begun, lower=True, check_finite=False)
        to_offered: Float64 = covariance.between_scaled(place, self._offered)[0]
        to_offered -= to_known @ factor.rows[some]
        return _Left(place, to_known, to_offered)

    def _add(self, left: _Left, noise: float, value: float | None) -> Float64:
        """Add an observation, or an expected one, which has no value; give its row of ``V``."""
        factor, covariance, to_known = self._factor, self._covariance, left.to_known
        variance = covariance.prior_variance + noise - float(to_known @ to_known)
        pivot = math.sqrt(max(variance, MIN_NOISE_VARIANCE)) if math.isfinite(variance) else math.nan
        surprise = 0.0
        if value is not None:
            surprise = (value - covariance.hyperparameters.mean - float(to_known @ factor.residual)) / pivot
        self._places = [np.concatenate(pair) for pair in zip(self._places, left.place, strict=True)]
        return factor.add(to_known, pivot, left.to_offered, surprise)
