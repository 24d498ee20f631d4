"""The distortion as an exact GP with gpytorch's kernels: what the online one is judged by."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from models.distortion_gp import Hyperparameters, Observations, ScanModel
from models.scan_basis import Float64, ScanBasis

_WARP_PX = 10.0


def exact_mean(
    scan: ScanModel,
    hyper: Hyperparameters,
    seen: list[Observations],
    places_px: Float64,
) -> Float64:
    """Posterior mean ``(n, 2)`` at places of a static distortion, by one refit to all that was seen."""
    return exact_posterior(scan, hyper, seen, places_px)[0]


def exact_posterior(
    scan: ScanModel,
    hyper: Hyperparameters,
    seen: list[Observations],
    places_px: Float64,
) -> tuple[Float64, Float64]:
    """Posterior mean and sd, ``(n, 2)`` each, at places of a static distortion."""
    positions = torch.from_numpy(np.concatenate([frame.positions_px for frame in seen]))
    displacement = np.concatenate([frame.displacement_px for frame in seen])
    variance = np.concatenate([frame.variance_px2 for frame in seen]) + 1e-4
    places = torch.from_numpy(places_px)
    mean, sd = np.empty(places_px.shape), np.empty(places_px.shape)
    for axis in range(2):
        noisy = _covariance(scan, hyper, axis, positions, positions) + torch.diag(
            torch.from_numpy(variance[:, axis])
        )
        lower = torch.linalg.cholesky(noisy)
        weights = torch.cholesky_solve(torch.from_numpy(displacement[:, axis, None].copy()), lower)
        shared = _covariance(scan, hyper, axis, places, positions)
        mean[:, axis] = (shared @ weights)[:, 0].numpy()
        told = torch.linalg.solve_triangular(lower, shared.T, upper=False).square().sum(0)
        prior = _covariance(scan, hyper, axis, places, places).diagonal()
        sd[:, axis] = (prior - told).clamp_min(0).sqrt().numpy()
    return mean, sd


def _covariance(scan: ScanModel, hyper: Hyperparameters, axis: int, first: Tensor, second: Tensor) -> Tensor:
    """Kernel between places ``(n, 2)`` and ``(m, 2)``: Matérn ones exact, the rest by their few features."""
    amplitude = {name: pair[axis] for name, pair in hyper.amplitude_px.items()}
    basis = ScanBasis(scan)
    prior = basis.prior_variance(hyper)[axis]
    for name in ("coil", "flyback", "settle"):
        prior[basis.blocks[name]] = 0
    found = (basis.features(first) * prior) @ basis.features(second).T
    shape = torch.tensor(scan.shape, dtype=torch.float64)
    unit = [(2 * places + 1) / shape - 1 for places in (first, second)]
    found += amplitude["coil"] ** 2 * _matern(hyper.coil_length, *unit)
    for column, name in ((0, "settle"), (1, "flyback")):
        warped = [torch.log1p(places[:, column, None] / _WARP_PX) for places in (first, second)]
        found += amplitude[name] ** 2 * _matern(hyper.warp_length, *warped)
    return found


def _matern(length: float, first: Tensor, second: Tensor) -> Tensor:
    with warnings.catch_warnings():  # its import compiles a function in a way that torch gave up
        warnings.simplefilter("ignore", DeprecationWarning)
        from gpytorch.kernels import MaternKernel
    kernel = MaternKernel(nu=2.5).double()
    kernel.lengthscale = length
    with torch.no_grad():
        return kernel(first, second).to_dense()
