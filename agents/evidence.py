"""Which hyperparameters the observations and the priors make most probable.

``log p(y) = -½ rᵀ K⁻¹ r - ½ log|K| + …`` with ``r = y - mean``; its derivative by a number of the covariance
is ``-½ tr((K⁻¹ - a aᵀ) dK)`` with ``a = K⁻¹ r`` (Rasmussen and Williams, equation 5.9). L-BFGS from where the
last fit ended; nothing is drawn, so the same observations give the same numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from agents.kernels import (
    Covariance,
    Hyperparameters,
    Part,
    as_vector,
    matern_52,
    of_each,
    of_vector,
    slope_by_log_lengths,
    square_distance,
)
from agents.network import Pass
from agents.surrogate import NOISE, Observations, Unit

Float64 = NDArray[np.float64]

MOST_STEPS = 60
_MEAN_WITHIN = 5.0  # of the standardised objective
_LOG_NOISE = (math.log(1e-8), math.log(4.0))
_LOG_VARIANCE = (math.log(1e-6), math.log(1e4))
_LOG_LENGTH = (math.log(0.01), math.log(1e4))
_WEIGHT = (-1e3, 1e3)  # of a network; the prior says it better
_IMPOSSIBLE = 1e25  # what cannot be factored is nowhere near the best


def fit(known: Observations, parts: tuple[Part, ...], start: Hyperparameters) -> Hyperparameters:
    """Find the most probable hyperparameters.

    Parameters
    ----------
    known
        At least one observation.
    parts
        Of the covariance.
    start
        Where to begin.

    Returns
    -------
    hyperparameters
        ``start`` where no finite ones are found.
    """
    evidence = Evidence(known, parts)
    bounds = evidence.bounds()
    begin = np.clip(as_vector(start), *np.array(bounds).T)
    found = minimize(
        evidence.cost, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": MOST_STEPS}
    )
    best = of_vector(found.x, parts)
    return best if best.is_finite and found.fun < _IMPOSSIBLE else start


def foretold(known: Observations, parts: tuple[Part, ...], hyperparameters: Hyperparameters) -> Float64:
    """Log-likelihood of each observation given those before it, shape ``(n,)``; NaN without a covariance.

    With ``L Lᵀ = K + noise`` and ``z = L⁻¹ (y - mean)`` it is ``-½ z² - log L_ii``, up to a constant that is
    the same for every model.
    """
    value, counted = Unit.of(known).standardised(known)
    covariance = Covariance(parts, hyperparameters).between(known.x, known.x)
    try:
        factor = cholesky(covariance + np.diag(counted + hyperparameters.noise), lower=True)
    except (LinAlgError, ValueError):
        return np.full(len(known), np.nan)
    z = solve_triangular(factor, value - hyperparameters.mean, lower=True)
    each: Float64 = -0.5 * z * z - np.log(np.diag(factor))
    return each


class Evidence:
    """How probable hyperparameters are.

    Parameters
    ----------
    known, parts
        As of ``fit``.
    """

    def __init__(self, known: Observations, parts: tuple[Part, ...]) -> None:
        self._parts = parts
        self._y, self._counted = Unit.of(known).standardised(known)
        self._x = [np.ascontiguousarray(known.x[:, slice(*part.columns)]) for part in parts]

    def bounds(self) -> list[tuple[float, float]]:
        """Between what each number of a vector is looked for, in the order of ``as_vector``."""
        lengths = sum(part.lengths for part in self._parts)
        return [
            (-_MEAN_WITHIN, _MEAN_WITHIN),
            _LOG_NOISE,
            *[_LOG_VARIANCE] * len(self._parts),
            *[_LOG_LENGTH] * lengths,
            *[_WEIGHT] * sum(part.weights for part in self._parts),
        ]

    def cost(self, vector: Float64) -> tuple[float, Float64]:
        """Negative logarithm of the probability, up to a constant, and its derivative by the vector."""
        h = of_vector(vector, self._parts)
        passes = [
            None if part.network is None else Pass(part.network, x, weights)
            for part, x, weights in zip(self._parts, self._x, of_each(self._parts, h.weights), strict=True)
        ]
        seen = [x if made is None else made.outputs for x, made in zip(self._x, passes, strict=True)]
        scaled = [x / length for x, length in zip(seen, h.lengths, strict=True)]
        square = [square_distance(one, one) for one in scaled]
        parts = [variance * matern_52(s) for variance, s in zip(h.variance, square, strict=True)]
        total = sum(parts[1:], start=parts[0]) + np.diag(self._counted + h.noise)
        try:
            factor = cholesky(total, lower=True, check_finite=False)
        except LinAlgError:
            return _IMPOSSIBLE, np.zeros_like(vector)
        inverse = _symmetric(dpotri(factor, lower=1)[0])
        away = self._y - h.mean
        weight = inverse @ away
        pull = inverse - np.outer(weight, weight)
        cost = 0.5 * float(away @ weight) + float(np.log(np.diag(factor)).sum())
        slopes = [np.array([-weight.sum(), 0.5 * h.noise * float(np.trace(pull))])]
        slopes.append(np.array([0.5 * float(np.einsum("ij,ij", pull, part)) for part in parts]))
        by_weights: list[Float64] = []
        for part, variance, s, one, made, length in zip(
            self._parts, h.variance, square, scaled, passes, h.lengths, strict=True
        ):
            stretch = pull * slope_by_log_lengths(s)
            by_length = _by_log_lengths(stretch, one)
            slopes.append(0.5 * variance * (by_length if part.lengths > 1 else by_length.sum(keepdims=True)))
            if made is not None:
                by_weights.append(made.slope(-variance * _by_places(stretch, one) / length))
        slopes += by_weights
        prior, prior_slope = self._prior(vector)
        return cost - prior, np.concatenate(slopes) - prior_slope

    def _prior(self, vector: Float64) -> tuple[float, Float64]:
        slope = np.zeros_like(vector)
        number = len(self._parts)
        said, slope[1:2] = NOISE.slope(vector[1:2])
        at = 2 + number
        for index, part in enumerate(self._parts):
            more, slope[2 + index : 3 + index] = part.variance.slope(vector[2 + index : 3 + index])
            of_lengths, slope[at : at + part.lengths] = part.length.slope(vector[at : at + part.lengths])
            said, at = said + more + of_lengths, at + part.lengths
        for part in self._parts:
            if part.network is not None:
                own = slice(at, at + part.weights)
                more, slope[own] = part.network.slope_of_prior(vector[own])
                said, at = said + more, own.stop
        return said, slope


def _by_log_lengths(weight: Float64, x: Float64) -> Float64:
    """``Σ_ij w_ij (x_ik - x_jk)²`` for each feature, ``w`` symmetric, by products instead of differences."""
    squares = 2.0 * (weight.sum(axis=1) @ (x * x))
    found: Float64 = squares - 2.0 * np.einsum("ik,ik->k", x, weight @ x)
    return found


def _by_places(weight: Float64, x: Float64) -> Float64:
    """``Σ_j w_ij (x_i - x_j)``, ``w`` symmetric: minus the derivative by each place in its lengths."""
    found: Float64 = weight.sum(axis=1)[:, None] * x - weight @ x
    return found


def _symmetric(lower: Float64) -> Float64:
    """Fill the upper triangle, which LAPACK leaves alone."""
    kept = np.tril(lower)
    full: Float64 = kept + np.tril(kept, -1).T
    return full
