"""How much a candidate promises."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, logsumexp, ndtr

Float64 = NDArray[np.float64]

# Below this 1 - |z|·Φ(z)/φ(z), about 1/z², is lost in rounding, and 1/z² is exact.
FAR_BELOW = -1e6
SURE = 1.96  # sd to either side of the mean that hold 95 %


def log_expected_improvement(mean: Float64, sd: Float64, best: float) -> Float64:
    """Logarithm of the expected improvement over ``best``, where larger is better.

    ``log E[max(f - best, 0)]`` for normal ``f``, by the stable branches of BoTorch, which it equals (Ament
    et al., Unexpected Improvements to Expected Improvement for Bayesian Optimization, NeurIPS 2023,
    equation 9): it still ranks candidates where the expected improvement itself has become 0. In NumPy, so
    that an agent that was restarted answers before BoTorch is imported, which takes seconds.

    Parameters
    ----------
    mean, sd
        Forecast of each candidate, shape ``(m,)``, in the unit of the objective; ``sd`` above 0.
    best
        Best value so far, in that unit.

    Returns
    -------
    log_ei
        Shape ``(m,)``, natural logarithm in the unit of the objective.
    """
    z = np.asarray((mean - best) / sd, dtype=np.float64)
    log_ei: Float64 = np.where(z > -1.0, _log_near(np.maximum(z, -1.0)), _log_below(np.minimum(z, -1.0)))
    return log_ei + np.log(sd)


def straddle(mean: Float64, sd: Float64, level: float) -> Float64:
    """How far a candidate's 95 % interval reaches over a level: ``1.96 sd - |mean - level|``.

    Above 0 where it is not yet sure on which side the candidate lies (Bryan et al., Active Learning for
    Identifying Function Threshold Boundaries, NIPS 2005).

    Parameters
    ----------
    mean, sd
        Forecast of each candidate, shape ``(m,)``.
    level
        In the same unit.

    Returns
    -------
    reach
        Shape ``(m,)``, in that unit; below 0 where the side is known.
    """
    return SURE * sd - np.abs(mean - level)


def log_positive_part(x: Float64) -> Float64:
    """``log(log(1 + eˣ))``: rises with ``x``, as ``log x`` far above 0 and as ``x`` far below.

    Makes a score that may be negative one that a cost can be taken from as from a logarithm; the order of
    the candidates stays as it was.
    """
    far_below = -30.0  # there log(1 + eˣ) is eˣ to the last digit
    near: Float64 = np.log(np.logaddexp(0.0, np.maximum(x, far_below)))
    return np.where(x > far_below, near, x)


def log_expected_hypervolume_improvement(
    mean: tuple[Float64, Float64], sd: tuple[Float64, Float64], front: Float64, reference: Float64
) -> Float64:
    """Logarithm of the area that a candidate is expected to add to what a front of trade-offs dominates.

    Two independent normal objectives of which more is better. Over strips of the first objective between the
    points of the front the expectation is a product of expected improvements: with ``u_i`` the first
    objectives in rising order, ``u_0`` that of the reference, and ``h_i`` the second objective that is
    already reached right of ``u_i``,

        ``Σ_i (EI₁(u_i) - EI₁(u_(i+1))) EI₂(h_i)``

    (Emmerich et al., Hypervolume-based expected improvement, CEC 2011; Yang et al., Efficient computation of
    expected hypervolume improvement, J. Global Optimization 2019). Its logarithm is by the stable
    ``log_expected_improvement`` (Ament et al. 2023).

    Parameters
    ----------
    mean, sd
        Forecast of each candidate for the first and the second objective, each shape ``(m,)``.
    front
        Points that none other dominates, shape ``(k, 2)``; those that do not dominate the reference count for
        nothing.
    reference
        Below what a value is worth nothing, shape ``(2,)``.

    Returns
    -------
    log_ehvi
        Shape ``(m,)``, in the product of both units.
    """
    above = front[(front > reference).all(axis=1)]
    above = above[np.argsort(above[:, 0], kind="stable")]
    edges = np.concatenate([reference[:1], above[:, 0]])
    reached = np.concatenate([above[:, 1], reference[1:]])
    first = [log_expected_improvement(mean[0], sd[0], edge) for edge in edges]
    strips = []
    for index, height in enumerate(reached):
        width = first[index]
        if index + 1 < len(first):
            width = width + _log_1m_exp(np.minimum(first[index + 1] - width, 0.0))
        strips.append(width + log_expected_improvement(mean[1], sd[1], height))
    total: Float64 = logsumexp(np.stack(strips), axis=0)
    return total


def joint_draw(mean: Float64, covariance: Float64, rng: np.random.Generator) -> Float64:
    """Draw values that the places may have together, for Thompson sampling.

    Each draw is one function that the measurements allow; the place where it is best is as probable as that
    the best is there (Thompson, Biometrika 1933; Kandasamy et al., Parallelised Bayesian Optimisation via
    Thompson Sampling, AISTATS 2018).

    Parameters
    ----------
    mean, covariance
        Shapes ``(k,)`` and ``(k, k)``.

    Returns
    -------
    values
        Shape ``(k,)``; NaN where the covariance is not finite.
    """
    # The square root by eigenvectors: sites that are alike make the covariance singular.
    if not np.isfinite(covariance).all():
        return np.full(mean.size, np.nan)
    size, direction = np.linalg.eigh(covariance)
    drawn: Float64 = mean + direction @ (np.sqrt(np.maximum(size, 0.0)) * rng.standard_normal(mean.size))
    return drawn


def _log_near(z: Float64) -> Float64:
    """``log(φ(z) + z Φ(z))`` as it stands."""
    logarithm: Float64 = np.log(np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) + z * ndtr(z))
    return logarithm


def _log_below(z: Float64) -> Float64:
    """The same for ``z`` of at most -1, where its two terms cancel: ``log φ(z) + log(1 - |z| Φ(z)/φ(z))``."""
    near = np.maximum(z, FAR_BELOW)
    rest = np.log(-near * erfcx(-near / math.sqrt(2))) + 0.5 * math.log(math.pi / 2)
    log_phi = -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    logarithm: Float64 = log_phi + np.where(z > FAR_BELOW, _log_1m_exp(rest), -2.0 * np.log(-z))
    return logarithm


def _log_1m_exp(x: Float64) -> Float64:
    """``log(1 - eˣ)`` for ``x`` below 0, without loss at either end."""
    is_small = x > -math.log(2)
    # 0 can come by rounding only where the caller looks elsewhere.
    near_0 = np.log(-np.expm1(np.where(is_small, np.minimum(x, -1e-16), -1.0)))
    logarithm: Float64 = np.where(is_small, near_0, np.log1p(-np.exp(np.where(is_small, -1.0, x))))
    return logarithm
