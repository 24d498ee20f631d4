"""The next measurements of a trade-off, planned by BoTorch beside the work.

qLogNEHVI (Daulton et al., Parallel Bayesian Optimization of Multiple Objectives with Noisy Expected
Hypervolume Improvement, NeurIPS 2021; Ament et al. 2023 for its logarithm) averages over what the front may
be, where the fast path takes the forecasts at the measured sites for it. That is sampling, and takes a good
part of a second.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, Float64, Site
from agents.goals import Outlook
from agents.learner import Learner
from agents.pareto import dominated_by, reference_of

# Measurements between two plans, as many as are planned; and between that from which a plan is made and that
# from which on it is followed: time to make it. Fixed numbers, so that what is suggested does not depend on
# how long it took.
PLANNED = 4
FOLLOWED_AFTER = 2
SAMPLES = 64
# Sites that are weighed, and measured ones that the front is drawn at.
MOST_OFFERED = 96
MOST_MEASURED = 32
_JITTER = 1e-6  # of the largest variance, for sites that are alike
_LOADING = Lock()  # a half-imported module is none
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a plan is made of: everything, so that it can be made at any time and comes out the same.

    Attributes
    ----------
    size
        How many measurements were known.
    sites
        That may be measured, ``k`` of them.
    mean, covariance
        Of both objectives at the ``n`` measured places and then at these sites, shapes ``(2, n + k)`` and
        ``(2, n + k, n + k)``; more is better.
    reference
        Shape ``(2,)``.
    seed
        Of the draws.
    """

    size: int
    sites: list[Site]
    mean: Float64
    covariance: Float64
    reference: Float64
    seed: int


def request_of(
    outlook: Outlook,
    scores: Float64,
    candidates: Candidates,
    free: NDArray[np.int64],
    learners: Sequence[Learner],
    seed: int,
) -> Request | None:
    """Say what a plan is to be made of: the sites that promise most, and what is measured nearest the front.

    Parameters
    ----------
    outlook, scores
        On the free sites, and how they are ranked, shape ``(m,)``.
    candidates, free
        On offer, and which of them may be measured, shape ``(m,)``.
    learners
        Of both objectives.
    seed
        Of the agent.

    Returns
    -------
    request
        None where a model has no finite numbers.
    """
    assert outlook.second is not None
    offered = np.argsort(-scores, kind="stable")[:MOST_OFFERED]
    measured = np.argsort(dominated_by(outlook.second.known), kind="stable")[:MOST_MEASURED]
    sites = [candidates.site(int(index)) for index in free[offered]]
    mean, covariance = (
        np.stack(part) for part in zip(*(learner.joint(measured, sites) for learner in learners), strict=True)
    )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return None
    size = learners[0].size
    drawn = int(np.random.default_rng([seed, size]).integers(2**31))
    return Request(size, sites, mean, covariance, reference_of(outlook.second.known), drawn)


class Plans:
    """Asks for plans at fixed measurements, and says which one is followed.

    Attributes
    ----------
    requests
        The last two: one that is followed, and one that may still be under way.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._made: dict[int, Future[list[int]]] = {}
        self._is_loading = False

    def is_due(self, size: int) -> bool:
        """Is another plan due, when so many measurements are known?"""
        return not self.requests or size >= self.requests[-1].size + PLANNED

    def ask_for(self, request: Request) -> None:
        """Put down what the next plan is to be made of."""
        self.requests = [*self.requests[-1:], request]
        self._made = {one.size: self._made[one.size] for one in self.requests if one.size in self._made}

    def forget(self) -> None:
        """What was planned is of no use any more."""
        self.restore([])

    def restore(self, requests: list[Request]) -> None:
        """Be as the one that had these requests; plans are made again when they are needed."""
        self.requests, self._made = list(requests), {}

    def think(self) -> None:
        """Begin, each in a thread, the plans that were asked for; at first, to import what makes them."""
        if not self._is_loading:
            self._is_loading = True
            _in_a_thread(_load)
        for request in self.requests:
            if request.size not in self._made:
                self._made[request.size] = _in_a_thread(plan, request)

    def in_view(
        self, size: int, candidates: Candidates, free: NDArray[np.int64], apart_nm: float
    ) -> list[int]:
        """Find the planned sites among the free candidates, the best first; see ``sites``."""
        found = [candidates.find(site, apart_nm) for site in self.sites(size)]
        return [index for index in dict.fromkeys(found) if index is not None and index in free]

    def sites(self, size: int) -> list[Site]:
        """Sites to measure when so many measurements are known, the best first; waits for the plan."""
        ready = [one for one in self.requests if one.size + FOLLOWED_AFTER <= size]
        if not ready:
            return []
        request = ready[-1]
        if request.size not in self._made:
            self.think()
        return [request.sites[index] for index in self._made[request.size].result()]


def _in_a_thread(make: Callable[..., T], *arguments: Any) -> Future[T]:
    """Begin something in a thread of its own, of which nothing is left when it is done."""
    pool = ThreadPoolExecutor(1, "plan")
    begun = pool.submit(make, *arguments)
    pool.shutdown(wait=False)
    return begun


def _load() -> None:
    """Import BoTorch, which takes seconds."""
    with _LOADING:
        importlib.import_module("botorch.acquisition.multi_objective.logei")


def plan(request: Request) -> list[int]:
    """Choose the sites to measure next, as indices, the best first; each counts on those before it.

    None where rounding has left the moments without a Cholesky factor: the fast path then goes on alone.
    """
    _load()
    import torch

    try:
        with torch.no_grad():
            return _chosen(request)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return []


def _chosen(request: Request) -> list[int]:
    import torch
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.sampling.normal import SobolQMCNormalSampler

    known = request.mean.shape[1] - len(request.sites)
    rows = torch.arange(request.mean.shape[1], dtype=torch.float64)[:, None]
    acquisition = qLogNoisyExpectedHypervolumeImprovement(
        model=_model(request),
        ref_point=torch.from_numpy(request.reference),
        X_baseline=rows[:known],
        sampler=SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=request.seed),
        prune_baseline=False,
        cache_root=False,
    )
    chosen: list[int] = []
    left = list(range(len(request.sites)))
    while left and len(chosen) < PLANNED:
        acquisition.set_X_pending(rows[[known + index for index in chosen]] if chosen else None)
        values = acquisition(rows[[known + index for index in left], None]).numpy()
        chosen.append(left.pop(int(values.argmax())))
    return chosen


def _model(request: Request) -> Any:
    """Give BoTorch the forecasts as a model whose places are the rows of the moments."""
    import torch
    from botorch.models.model import Model
    from botorch.posteriors.gpytorch import GPyTorchPosterior
    from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal

    means = torch.from_numpy(request.mean)
    variance = np.einsum("aii->ai", request.covariance).max(axis=1)
    jitter = _JITTER * variance[:, None, None] * np.eye(request.mean.shape[1])
    covariances = torch.from_numpy(request.covariance + jitter)

    class Moments(Model):
        num_outputs = 2
        batch_shape = torch.Size([])

        def posterior(self, X: Any, *_: Any, **__: Any) -> Any:
            rows = X[..., 0].long()
            return GPyTorchPosterior(
                MultitaskMultivariateNormal.from_independent_mvns(
                    [
                        MultivariateNormal(mean[rows], covariance[rows[..., :, None], rows[..., None, :]])
                        for mean, covariance in zip(means, covariances, strict=True)
                    ]
                )
            )

    return Moments()
