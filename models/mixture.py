"""How many classes there are: mixtures of normals, merged until held-out points object.

Axes: N point, Z coordinate, M component.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 15  # of expectation maximisation after a merge
_OF_SOME_STEPS = 50  # of it where few classes are known
_LEAST_VARIANCE = 1e-4
_LEAST_SHARE = 1e-4


class Mixture(NamedTuple):
    """A mixture of normals with diagonal covariances, float64.

    Attributes
    ----------
    weight_M, mean_MZ, variance_MZ
        The weights add up to 1.
    """

    weight_M: Tensor
    mean_MZ: Tensor
    variance_MZ: Tensor

    @classmethod
    def of(cls, logit_M: Tensor, mean_MZ: Tensor, log_sd_MZ: Tensor) -> Mixture:
        """Make one from logits of weights and log sds."""
        variance_MZ = torch.exp(2 * log_sd_MZ.double()).clamp(min=_LEAST_VARIANCE)
        return cls(torch.softmax(logit_M.double(), 0), mean_MZ.double(), variance_MZ)

    def log_density(self, points_NZ: Tensor) -> Tensor:
        """Log of weight times density of each component, ``(N, M)``."""
        away = (points_NZ[:, None] - self.mean_MZ).square() / self.variance_MZ
        norm = self.variance_MZ.log() + math.log(2 * math.pi)
        return -0.5 * (away + norm).sum(2) + self.weight_M.log()

    @classmethod
    def of_classes(cls, points_NZ: Tensor, class_N: Tensor, classes: int, components: int) -> Mixture:
        """Fit a mixture to points whose classes are known; component m is of class m modulo ``classes``.

        The components of a class begin one beside the other along its longest axis.
        """
        points_NZ = points_NZ.double()
        began_NM = torch.full((len(points_NZ), components), -math.inf, dtype=torch.float64)
        told_NM = began_NM.clone()
        for kind in range(classes):
            own_N = torch.nonzero(class_N == kind)[:, 0]
            which_M = torch.arange(kind, components, classes)
            told_NM[own_N[:, None], which_M] = 0.0
            centred_NZ = points_NZ[own_N] - points_NZ[own_N].mean(0)
            longest_Z = torch.linalg.eigh(centred_NZ.T @ centred_NZ)[1][:, -1]
            rank_N = (centred_NZ @ longest_Z).argsort().argsort()
            began_NM[own_N, which_M[rank_N * len(which_M) // max(1, len(own_N))]] = 0.0
        return _fitted(began_NM.exp(), points_NZ).improved(points_NZ, told_NM=told_NM)

    @classmethod
    def of_some_classes(
        cls, mean_NZ: Tensor, variance_NZ: Tensor, class_N: Tensor, classes: int, components: int
    ) -> Mixture:
        """Fit a mixture to uncertain points; -1 is a class that is not known. Else as ``of_classes``.

        Means of points tell classes apart better than points drawn around them; so classes are found by the
        means, and the variances of the points come in afterwards.
        """
        mean_NZ, known_N = mean_NZ.double(), class_N >= 0
        began = cls.of_classes(mean_NZ[known_N], class_N[known_N], classes, components)
        is_own_NM = ~known_N[:, None] | (torch.arange(components) % classes == class_N[:, None])
        told_NM = torch.where(is_own_NM, 0.0, -math.inf).double()
        found = began.improved(mean_NZ, _OF_SOME_STEPS, told_NM)
        share_NM = torch.softmax(found.log_density(mean_NZ) + told_NM, 1)
        within_MZ = (share_NM.T @ variance_NZ.double()) / (share_NM.sum(0)[:, None] + _LEAST_SHARE)
        return found._replace(variance_MZ=found.variance_MZ + within_MZ)

    def improved(self, points_NZ: Tensor, steps: int = _STEPS, told_NM: Tensor | None = None) -> Mixture:
        """Take steps of expectation maximisation on points.

        ``told_NM`` is what else is known of whose they are: logs of likelihoods, such as of their classes.
        """
        mixture = self
        for _ in range(steps):
            log_share_NM = mixture.log_density(points_NZ)
            share_NM = torch.softmax(log_share_NM if told_NM is None else log_share_NM + told_NM, 1)
            mixture = _fitted(share_NM, points_NZ)
        return mixture

    def merged(self, first: int, second: int) -> Mixture:
        """Put two components together, keeping their joint mean and variance."""
        pair = torch.tensor([first, second])
        share = (self.weight_M[pair] / self.weight_M[pair].sum())[:, None]
        mean = (share * self.mean_MZ[pair]).sum(0)
        variance = (share * (self.variance_MZ[pair] + (self.mean_MZ[pair] - mean).square())).sum(0)
        rest = [at for at in range(len(self.weight_M)) if at not in (first, second)]
        return Mixture(
            torch.cat([self.weight_M[rest], self.weight_M[pair].sum()[None]]),
            torch.cat([self.mean_MZ[rest], mean[None]]),
            torch.cat([self.variance_MZ[rest], variance[None]]),
        )


def _fitted(share_NM: Tensor, points_NZ: Tensor) -> Mixture:
    count_M = share_NM.sum(0) + _LEAST_SHARE
    mean_MZ = (share_NM.T @ points_NZ) / count_M[:, None]
    square_MZ = (share_NM.T @ points_NZ.square()) / count_M[:, None]
    return Mixture(
        count_M / count_M.sum(), mean_MZ, (square_MZ - mean_MZ.square()).clamp(min=_LEAST_VARIANCE)
    )


def _merge_cost(mixture: Mixture) -> Tensor:
    """Say what each merge costs at most, ``(M, M)``: the rise in entropy, weighted (Runnalls, 2007)."""
    count = len(mixture.weight_M)
    cost = torch.full((count, count), math.inf, dtype=torch.float64)
    for first, second in itertools.combinations(range(count), 2):
        joint = mixture.merged(first, second)
        pair = torch.tensor([first, second])
        rise = joint.weight_M[-1] * joint.variance_MZ[-1].log().sum()
        rise -= (mixture.weight_M[pair, None] * mixture.variance_MZ[pair].log()).sum()
        cost[first, second] = rise
    return cost


def fewest(mixture: Mixture, points_NZ: Tensor, held_NZ: Tensor) -> Mixture:
    """Choose the mixture of fewest components that held-out points find as likely as the best.

    As likely is within one standard error of the difference.

    Parameters
    ----------
    mixture
        To begin with; components are merged from there.
    points_NZ, held_NZ
        To fit to, and to judge on.
    """
    points, held = points_NZ.double(), held_NZ.double()
    tried = [mixture.improved(points)]
    while len(tried[-1].weight_M) > 1:
        at = int(_merge_cost(tried[-1]).argmin())
        tried.append(tried[-1].merged(*divmod(at, len(tried[-1].weight_M))).improved(points))
    likely = torch.stack([one.log_density(held).logsumexp(1) for one in tried])
    best = int(likely.mean(1).argmax())
    worse = likely[best] - likely
    error = worse.std(1) / math.sqrt(held.shape[0])
    return [one for one, lost, sd in zip(tried, worse.mean(1), error, strict=True) if lost <= sd][-1]
