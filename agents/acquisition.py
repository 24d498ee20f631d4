"""How much a candidate promises."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, ndtr

Float64 = NDArray[np.float64]

# Below this 1 - |z|·Φ(z)/φ(z), about 1/z², is lost in rounding, and 1/z² is exact.
FAR_BELOW = -1e6


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
