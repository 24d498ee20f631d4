"""How much a candidate promises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents import lazy_botorch

Float64 = NDArray[np.float64]


def log_expected_improvement(mean: Float64, sd: Float64, best: float) -> Float64:
    """Logarithm of the expected improvement over ``best``, where larger is better.

    ``log E[max(f - best, 0)]`` for normal ``f``, by BoTorch's stable branches (Ament et al., Unexpected
    Improvements to Expected Improvement for Bayesian Optimization, NeurIPS 2023): it still ranks
    candidates where the expected improvement itself has become 0.

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
    lazy_botorch.load()
    import torch
    from botorch.acquisition.analytic import _log_ei_helper

    # The acquisition class wants a model and (m, 1, d) inputs; the forecast is at hand already.
    gain = torch.from_numpy(np.ascontiguousarray((mean - best) / sd, dtype=np.float64))
    log_ei: Float64 = _log_ei_helper(gain).numpy() + np.log(sd)
    return log_ei
