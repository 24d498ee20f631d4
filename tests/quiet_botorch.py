"""BoTorch as the reference: imported without its warnings, and with one thread."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from agents.surrogate import Surrogate


def load() -> None:
    """Import what the tests compare with; pin torch to one thread."""
    with warnings.catch_warnings():
        # Its own imports use what torch has deprecated: nothing that a user could do about.
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in (
            "botorch.models",
            "botorch.acquisition.analytic",
            "botorch.acquisition.multi_objective.logei",
        ):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def same_model(surrogate: Surrogate) -> Any:
    """Make BoTorch's ``SingleTaskGP`` of a surrogate: standardised objective, its covariance and noise."""
    import torch
    from botorch.models import SingleTaskGP
    from gpytorch.kernels import MaternKernel, ScaleKernel

    h, kernels = surrogate.hyperparameters, []
    for part, variance, lengths in zip(surrogate.parts, h.variance, h.lengths, strict=True):
        ard = part.lengths if part.lengths > 1 else None
        matern = MaternKernel(nu=2.5, ard_num_dims=ard, active_dims=tuple(range(*part.columns)))
        kernel = ScaleKernel(matern).double()
        kernel.outputscale, kernel.base_kernel.lengthscale = float(variance), torch.from_numpy(lengths)
        kernels.append(kernel)
    value, noise = surrogate.unit.standardised(surrogate.known)
    model = SingleTaskGP(
        torch.from_numpy(surrogate.known.x),
        torch.from_numpy(value)[:, None],
        torch.from_numpy(noise + h.noise)[:, None],
        covar_module=sum(kernels[1:], start=kernels[0]),
        outcome_transform=None,
    )
    model.mean_module.initialize(constant=h.mean)
    return model.double()
