"""A deep kernel as it is used at microscopes: a network and a Gaussian process on it, trained together."""

from __future__ import annotations

from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Float64 = NDArray[np.float64]

STEPS = 60
RATE = 0.01
LEAST_NOISE = 1e-4


class _Process(gpytorch.models.ExactGP):  # type: ignore[misc]
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
        super().__init__(x, y, likelihood)
        self.network = nn.Sequential(
            nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2)
        )
        self.bounds = gpytorch.utils.grid.ScaleToBounds(-1.0, 1.0)
        self.mean = gpytorch.means.ConstantMean()
        self.covariance = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))

    def forward(self, x: Tensor) -> Any:
        seen = self.bounds(self.network(x))
        return gpytorch.distributions.MultivariateNormal(self.mean(seen), self.covariance(seen))


class DeepKernel:
    """Learns what in a window matters, from the values measured so far.

    Parameters
    ----------
    windows
        Of every place, shape ``(m, pixels)``.
    seed
        Of the network's first weights.
    """

    def __init__(self, windows: Float64, seed: int) -> None:
        torch.set_num_threads(1)
        self._windows, self._seed = torch.from_numpy(windows.astype(np.float32)), seed
        self._process: Any = None

    def train(self, measured: list[int], value: Float64) -> None:
        """Train from new weights."""
        torch.manual_seed(self._seed)
        constraint = gpytorch.constraints.GreaterThan(LEAST_NOISE)
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=constraint)
        self._process = _Process(self._windows[measured], self._standard(value), likelihood)
        evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, self._process)
        optimiser = torch.optim.Adam(self._process.parameters(), lr=RATE)
        self._process.train()
        for _ in range(STEPS):
            optimiser.zero_grad()
            loss = -evidence(self._process(self._windows[measured]), self._standard(value))
            loss.backward()
            optimiser.step()
        self._process.eval()

    @torch.no_grad()
    def forecast(self, measured: list[int], value: Float64) -> tuple[Float64, Float64]:
        """Mean and sd at every place, shape ``(m,)``, with all that was measured."""
        process = self._process
        seen = process.bounds(process.network(self._windows)).double()
        covariance = process.covariance.double()
        own = seen[measured]
        noise = float(process.likelihood.noise) * torch.eye(len(measured), dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance(own).to_dense() + noise)
        rows = torch.linalg.solve_triangular(factor, covariance(own, seen).to_dense(), upper=False)
        constant = float(process.mean.constant)
        away = self._standard(value).double()[:, None] - constant
        weight = torch.linalg.solve_triangular(factor, away, upper=False)
        mean = constant + (rows.T @ weight)[:, 0]
        variance = (float(covariance.outputscale) - (rows**2).sum(dim=0)).clamp_min(1e-9)
        covariance.float()
        size = value.std() or 1.0
        return value.mean() + size * mean.numpy(), size * np.sqrt(variance.numpy())

    @staticmethod
    def _standard(value: Float64) -> Tensor:
        return torch.from_numpy(((value - value.mean()) / (value.std() or 1.0)).astype(np.float32))
