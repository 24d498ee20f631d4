"""What the measurements so far say of a place not yet measured: a Gaussian process.

The features of a place are its latents and its position; the kernel adds one of each,
``s_z · Matérn-5/2(latents, one length each) + s_x · Matérn-5/2(position)``, so that atoms teach about
their like anywhere and about their neighbours whatever these look like. BoTorch finds the
hyperparameters, off the ask path; forecasts are the closed form with them, which takes no torch.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from agents import lazy_botorch

Float64 = NDArray[np.float64]

# Counting noise is not all: a model exact to 1 % of the spread would chase the rest.
MIN_NOISE_VARIANCE = 1e-4
# Candidates forecast together: the arrays of 500 observations and so many stay in the cache.
AT_ONCE = 128
MAX_FIT_STEPS = 60


@dataclass(frozen=True, slots=True, eq=False)
class Hyperparameters:
    """Of the kernel, in units of the scaled features and of the standardised objective.

    Attributes
    ----------
    mean
        Constant mean.
    latent_variance, position_variance
        ``s_z`` and ``s_x``.
    latent_lengths
        Length scale of each latent, shape ``(d,)``.
    position_length
        Length scale of the position, of both axes.
    """

    mean: float
    latent_variance: float
    latent_lengths: Float64
    position_variance: float
    position_length: float

    @classmethod
    def before_any_fit(cls, latent_dim: int) -> Hyperparameters:
        """Start from the modes of the priors: what is alike in its latents has a like objective."""
        return cls(0.0, 1.0, np.full(latent_dim, math.sqrt(latent_dim)), 0.1, 0.5)

    @property
    def is_finite(self) -> bool:
        """Is every one of them a number?"""
        return all(math.isfinite(value) for values in self.parameters().values() for value in values)

    def parameters(self) -> dict[str, list[float]]:
        """Name them all, bit for bit."""
        return {
            "mean": [self.mean],
            "latent_variance": [self.latent_variance],
            "latent_lengths": self.latent_lengths.tolist(),
            "position_variance": [self.position_variance],
            "position_length": [self.position_length],
        }

    @classmethod
    def of_parameters(cls, parameters: dict[str, list[float]]) -> Hyperparameters:
        """Make them again from ``parameters()``.

        Raises
        ------
        ValueError
            If a name is missing, too many, or has not one value.
        """
        numbers = dict(parameters)
        lengths = numbers.pop("latent_lengths", None)
        names = {"mean", "latent_variance", "position_variance", "position_length"}
        if lengths is None or set(numbers) != names or any(len(value) != 1 for value in numbers.values()):
            raise ValueError(
                f"a model revision has the parameters {sorted(parameters)}; "
                f"it takes one each of {', '.join(sorted(names))}, and latent_lengths"
            )
        return cls(
            latent_lengths=np.array(lengths, dtype=np.float64),
            **{name: value for name, (value,) in numbers.items()},
        )

    def covariance(self, x: Float64, other: Float64) -> Float64:
        """Covariance between places ``(n, d + 2)`` and ``(m, d + 2)``, shape ``(n, m)``."""
        d = self.latent_lengths.size
        by_latents = matern_52(
            _square_distance(x[:, :d] / self.latent_lengths, other[:, :d] / self.latent_lengths)
        )
        by_place = matern_52(
            _square_distance(x[:, d:] / self.position_length, other[:, d:] / self.position_length)
        )
        return self.latent_variance * by_latents + self.position_variance * by_place


def matern_52(square_distance: Float64) -> Float64:
    """Matérn covariance of smoothness 5/2: ``(1 + s + s²/3) exp(-s)`` with ``s = √5 · distance``.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, equation 4.17.
    """
    s = np.sqrt(5.0 * square_distance)
    covariance: Float64 = (1.0 + s + s * s / 3.0) * np.exp(-s)
    return covariance


def _square_distance(x: Float64, other: Float64) -> Float64:
    square: Float64 = (x * x).sum(axis=1)[:, None] + (other * other).sum(axis=1)[None, :] - 2.0 * x @ other.T
    np.maximum(square, 0.0, out=square)
    return square


class Surrogate:
    """Gaussian process over latents and position, with the measured noise of each observation.

    Parameters
    ----------
    latent_dim
        Number of latents; the features of a place are these and its ``(x, y)``, all scaled to order 1.

    Attributes
    ----------
    hyperparameters
        As fitted last.
    revision
        Counts the fits.
    """

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim
        self.hyperparameters = Hyperparameters.before_any_fit(latent_dim)
        self.revision = 0
        self.tell(np.zeros((0, latent_dim + 2)), np.zeros(0), np.zeros(0))

    @property
    def size(self) -> int:
        """How many observations it knows."""
        return self._y.size

    def tell(self, x: Float64, y: Float64, variance: Float64) -> None:
        """Take these observations in the place of all earlier ones.

        Parameters
        ----------
        x
            Features, shape ``(n, latent_dim + 2)``.
        y, variance
            Objective and its measured variance, shape ``(n,)``, in its unit and unit squared.
        """
        self._x = x
        self._told_y, self._told_variance = y, variance
        self._offset = float(y.mean()) if y.size else 0.0
        spread = float(y.std(ddof=1)) if y.size > 1 else 0.0
        self._unit = spread or float(np.sqrt(variance.mean() if y.size else 0.0)) or 1.0
        self._y = (y - self._offset) / self._unit
        self._noise = np.maximum(variance / self._unit**2, MIN_NOISE_VARIANCE)

    def posterior(self, x: Float64, pending: Float64 | None = None) -> tuple[Float64, Float64]:
        """Forecast the objective.

        Parameters
        ----------
        x
            Features of the places asked about, shape ``(m, latent_dim + 2)``.
        pending
            Places whose outcomes are still to come, shape ``(p, latent_dim + 2)``: taken as if they would
            come as forecast, which leaves the mean as it is and lowers the sd around them.

        Returns
        -------
        mean, sd
            Of the objective without counting noise, shape ``(m,)``, in its unit; NaN where the
            hyperparameters make no covariance.
        """
        n = self.size
        known, noise = self._x, self._noise
        if pending is not None and len(pending):
            known = np.concatenate([known, pending])
            typical = float(np.median(noise)) if n else MIN_NOISE_VARIANCE
            noise = np.concatenate([noise, np.full(len(pending), typical)])
        theta = self.hyperparameters
        prior_variance = theta.latent_variance + theta.position_variance
        if not len(known):
            return self._in_unit(np.full(len(x), theta.mean), np.full(len(x), prior_variance))
        try:
            factor = cholesky(theta.covariance(known, known) + np.diag(noise), lower=True, check_finite=False)
        except LinAlgError:
            return np.full(len(x), np.nan), np.full(len(x), np.nan)
        # The pending places come last, so the first n rows are those of the observations alone.
        residual = (
            solve_triangular(factor[:n, :n], self._y - theta.mean, lower=True, check_finite=False)
            if n
            else self._y
        )
        mean, variance = np.full(len(x), theta.mean), np.full(len(x), prior_variance)
        for first in range(0, len(x), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            explained = solve_triangular(
                factor, theta.covariance(known, x[part]), lower=True, check_finite=False
            )
            mean[part] += explained[:n].T @ residual
            variance[part] -= (explained * explained).sum(axis=0)
        return self._in_unit(mean, variance)

    def _in_unit(self, mean: Float64, variance: Float64) -> tuple[Float64, Float64]:
        sd = np.sqrt(np.maximum(variance, 1e-12))
        return self._offset + self._unit * mean, self._unit * sd

    def best_known(self) -> float:
        """Say the largest posterior mean among the observed places; noise alone makes no best."""
        mean, _ = self.posterior(self._x)
        return float(mean.max())

    def refit(self, size: int | None = None) -> None:
        """Find the hyperparameters that the observations and the priors make most probable.

        By BoTorch's L-BFGS from where the last fit ended; deterministic, for nothing is drawn. Where it
        finds no finite numbers, those of the last fit stay.

        Parameters
        ----------
        size
            Fit to the first so many observations; None takes all.
        """
        lazy_botorch.load()
        found = _fit(self._of_the_first(self.size if size is None else size).botorch_model())
        self.revision += 1
        if found.is_finite:
            self.hyperparameters = found

    def _of_the_first(self, size: int) -> Surrogate:
        """Make what it was when it had been told no more."""
        earlier = Surrogate(self.latent_dim)
        earlier.hyperparameters = self.hyperparameters
        earlier.tell(self._x[:size], self._told_y[:size], self._told_variance[:size])
        return earlier

    def botorch_model(self) -> Any:
        """Make the same process as a BoTorch ``SingleTaskGP`` on the standardised objective, float64."""
        lazy_botorch.load()
        import torch
        from botorch.models import SingleTaskGP

        model = SingleTaskGP(
            torch.from_numpy(self._x),
            torch.from_numpy(self._y)[:, None],
            torch.from_numpy(self._noise)[:, None],
            covar_module=_kernel(self.hyperparameters),
            outcome_transform=None,
        )
        model.mean_module.initialize(constant=self.hyperparameters.mean)
        return model.double()


def _kernel(start: Hyperparameters) -> Any:
    """Build the sum of two Matérn kernels, with priors, at these hyperparameters."""
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import MaternKernel, ScaleKernel
    from gpytorch.priors import LogNormalPrior

    d = start.latent_lengths.size
    by_latents = ScaleKernel(
        MaternKernel(
            nu=2.5,
            ard_num_dims=d,
            active_dims=tuple(range(d)),
            # Wide, and growing with √d as distances do (Hvarfner et al., ICML 2024).
            lengthscale_prior=LogNormalPrior(0.35 + 0.5 * math.log(d), 1.7),
            lengthscale_constraint=GreaterThan(0.025),
        ),
        outputscale_prior=LogNormalPrior(0.0, 1.0),
    )
    by_place = ScaleKernel(
        MaternKernel(
            nu=2.5,
            active_dims=(d, d + 1),
            lengthscale_prior=LogNormalPrior(math.log(0.5), 1.0),
            lengthscale_constraint=GreaterThan(0.01),
        ),
        outputscale_prior=LogNormalPrior(math.log(0.1), 1.0),
    )
    by_latents.double()
    by_place.double()
    by_latents.outputscale = start.latent_variance
    by_latents.base_kernel.lengthscale = start.latent_lengths
    by_place.outputscale = start.position_variance
    by_place.base_kernel.lengthscale = start.position_length
    return by_latents + by_place


def _fit(model: Any) -> Hyperparameters:
    """Fit by maximum a posteriori; read the hyperparameters off."""
    from botorch.exceptions.warnings import OptimizationWarning
    from botorch.optim.fit import fit_gpytorch_mll_scipy
    from gpytorch.mlls import ExactMarginalLogLikelihood

    model.train()
    with warnings.catch_warnings():
        # The step limit is meant: the next fit goes on from there.
        warnings.simplefilter("ignore", OptimizationWarning)
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        fit_gpytorch_mll_scipy(mll, options={"maxiter": MAX_FIT_STEPS})
    by_latents, by_place = model.covar_module.kernels
    return Hyperparameters(
        mean=float(model.mean_module.constant.item()),
        latent_variance=float(by_latents.outputscale.item()),
        latent_lengths=by_latents.base_kernel.lengthscale.detach().numpy().reshape(-1).copy(),
        position_variance=float(by_place.outputscale.item()),
        position_length=float(by_place.base_kernel.lengthscale.item()),
    )
