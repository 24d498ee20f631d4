"""Covariances of places to measure at: a sum of parts, each over some of the features.

The features of a place are what is known of it before it is measured: its latents, its position, a
descriptor that was learnt. A part has a Matérn-5/2 covariance over its own features, with its own variance
and lengths, and the parts add: atoms then teach about their like anywhere, and about their neighbours
whatever these look like.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agents.network import Network

Float64 = NDArray[np.float64]

_ROOT_5 = math.sqrt(5.0)
# Entries of a covariance that are computed together: their arrays stay in the cache.
_AT_ONCE = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Of the logarithm of a positive number: normal.

    Attributes
    ----------
    log_mean, log_sd
        Of the normal distribution.
    """

    log_mean: float
    log_sd: float

    @property
    def typical(self) -> float:
        """The number that is most probable."""
        return math.exp(self.log_mean)

    def slope(self, log_value: Float64) -> tuple[float, Float64]:
        """Logarithm of the density, up to a constant, and its derivative, at logarithms of any shape."""
        away = (log_value - self.log_mean) / self.log_sd
        return -0.5 * float(away @ away), -away / self.log_sd


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some of the features, with a covariance of their own.

    Attributes
    ----------
    name
        Such as ``latents`` or ``position``.
    columns
        First and one after the last of the features.
    lengths
        How many lengths it has: as many as features, or one that all share.
    length, variance
        What they are expected to be, for features of order 1 and an objective of variance 1.
    network
        What is made of the features before they are compared; None compares them as they are.
    """

    name: str
    columns: tuple[int, int]
    lengths: int
    length: Prior
    variance: Prior
    network: Network | None = None

    def __post_init__(self) -> None:
        if self.lengths not in (1, self.width):
            raise ValueError(f"part {self.name} has {self.lengths} lengths for {self.width} features")
        if self.network is not None and (self.lengths, self.width) != (1, self.network.inputs):
            raise ValueError(
                f"part {self.name} has {self.lengths} lengths and {self.width} features; its network takes 1 "
                f"and {self.network.inputs}"
            )

    @property
    def width(self) -> int:
        """How many features it looks at."""
        return self.columns[1] - self.columns[0]

    @property
    def weights(self) -> int:
        """How many weights its network has; 0 without one."""
        return 0 if self.network is None else self.network.size


def of_latents(first: int, last: int) -> Part:
    """A part over latents: a length each, wide, and growing with √d as distances do.

    Hvarfner et al., Vanilla Bayesian Optimization Performs Great in High Dimensions, ICML 2024.
    """
    d = last - first
    return Part(
        name="latents",
        columns=(first, last),
        lengths=d,
        length=Prior(log_mean=0.35 + 0.5 * math.log(d), log_sd=1.7),
        variance=Prior(log_mean=0.0, log_sd=1.0),
    )


def of_trend(first: int, last: int) -> Part:
    """A part over latents that hardly bends within a field: the extremes of a look are those of its worth.

    Lengths of several fields leave a Matérn covariance close to a polynomial; so it says beyond what was
    measured that what rose goes on rising, where shorter lengths go back to the mean.
    """
    d = last - first
    return Part(
        name="trend",
        columns=(first, last),
        lengths=d,
        length=Prior(log_mean=math.log(10.0) + 0.5 * math.log(d), log_sd=0.7),
        variance=Prior(log_mean=math.log(10.0), log_sd=1.5),
    )


def of_position(first: int) -> Part:
    """A part over the position ``(x, y)`` in half fields: one length, and less to say than latents."""
    return Part(
        name="position",
        columns=(first, first + 2),
        lengths=1,
        length=Prior(log_mean=math.log(0.5), log_sd=1.0),
        variance=Prior(log_mean=math.log(0.1), log_sd=1.0),
    )


def of_windows(first: int, network: Network) -> Part:
    """A part over what a network makes of a window; its weights are free, so it has one length only."""
    return Part(
        name="windows",
        columns=(first, first + network.inputs),
        lengths=1,
        length=Prior(log_mean=0.0, log_sd=1.0),
        variance=Prior(log_mean=0.0, log_sd=1.0),
        network=network,
    )


def of_each(parts: tuple[Part, ...], weights: Float64) -> Iterator[Float64]:
    """Split the weights of all networks, shape ``(w,)``: those of each part, none for most."""
    ends = np.cumsum([part.weights for part in parts]).tolist()
    return (weights[end - part.weights : end] for part, end in zip(parts, ends, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Hyperparameters:
    """Of a sum of parts, in units of the scaled features and of the standardised objective.

    Attributes
    ----------
    mean
        Constant mean.
    noise
        Variance of an observation beyond its counting noise: what the features cannot explain.
    variance
        Of each part, shape ``(parts,)``.
    lengths
        Of each part, shape ``(1,)`` or one each for its features.
    weights
        Of the networks of all parts, shape ``(w,)``.
    """

    mean: float
    noise: float
    variance: Float64
    lengths: tuple[Float64, ...]
    weights: Float64 = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def before_any_fit(cls, parts: tuple[Part, ...], noise: Prior) -> Hyperparameters:
        """Start from what is most probable."""
        return cls(
            0.0,
            noise.typical,
            np.array([part.variance.typical for part in parts]),
            tuple(np.full(part.lengths, part.length.typical) for part in parts),
            np.concatenate([np.zeros(0), *(part.network.first for part in parts if part.network)]),
        )

    @property
    def is_finite(self) -> bool:
        """Is every one of them a number?"""
        numbers = np.concatenate([[self.mean, self.noise], self.variance, *self.lengths, self.weights])
        return bool(np.isfinite(numbers).all())

    def parameters(self, parts: tuple[Part, ...]) -> dict[str, list[float]]:
        """Name them all, bit for bit."""
        named = {"mean": [self.mean], "noise": [self.noise]}
        for part, variance, lengths in zip(parts, self.variance, self.lengths, strict=True):
            named[f"{part.name} variance"] = [float(variance)]
            named[f"{part.name} lengths"] = lengths.tolist()
        for part, weights in zip(parts, of_each(parts, self.weights), strict=True):
            named |= {f"{part.name} weights": weights.tolist()} if part.network else {}
        return named

    @classmethod
    def of_parameters(cls, parameters: dict[str, list[float]], parts: tuple[Part, ...]) -> Hyperparameters:
        """Make them again from ``parameters(parts)``.

        Raises
        ------
        ValueError
            If they are not those of such parts.
        """
        sizes = {"mean": 1, "noise": 1}
        sizes |= {f"{part.name} variance": 1 for part in parts}
        sizes |= {f"{part.name} lengths": part.lengths for part in parts}
        sizes |= {f"{part.name} weights": part.weights for part in parts if part.network}
        said = {name: len(values) for name, values in parameters.items()}
        if said != sizes:
            raise ValueError(f"a model revision has the parameters {said}; the model takes {sizes}")
        return cls(
            parameters["mean"][0],
            parameters["noise"][0],
            np.array([parameters[f"{part.name} variance"][0] for part in parts]),
            tuple(np.array(parameters[f"{part.name} lengths"]) for part in parts),
            np.array([one for part in parts if part.network for one in parameters[f"{part.name} weights"]]),
        )


class Covariance:
    """A sum of parts with all its numbers.

    Parameters
    ----------
    parts, hyperparameters
        As many variances and lengths as parts.
    """

    def __init__(self, parts: tuple[Part, ...], hyperparameters: Hyperparameters) -> None:
        self.parts, self.hyperparameters = parts, hyperparameters
        self.prior_variance = float(hyperparameters.variance.sum())

    def scaled(self, x: Float64) -> list[Float64]:
        """Features of each part in its lengths, each shape ``(n, width)``, for ``between``."""
        h, scaled = self.hyperparameters, []
        for part, length, weights in zip(self.parts, h.lengths, of_each(self.parts, h.weights), strict=True):
            own = x[:, slice(*part.columns)]
            seen = own if part.network is None else part.network.seen(own, weights)
            scaled.append(np.ascontiguousarray(seen / length))
        return scaled

    def between(self, x: Float64, other: Float64) -> Float64:
        """Covariance of places ``(n, d)`` and ``(m, d)``, shape ``(n, m)``, float64."""
        return self.between_scaled(self.scaled(x), self.scaled(other))

    def between_scaled(self, ones: list[Float64], others: list[Float64]) -> Float64:
        """The same for features that ``scaled`` gave."""
        n, m = len(ones[0]), len(others[0])
        result = np.empty((n, m))
        step = max(1, _AT_ONCE // max(n, 1))
        for first in range(0, m, step):
            some = slice(first, first + step)
            block = result[:, some]
            block[:] = 0.0
            for variance, one, other in zip(self.hyperparameters.variance, ones, others, strict=True):
                block += variance * matern_52(square_distance(one, other[some]))
        return result


def square_distance(x: Float64, other: Float64) -> Float64:
    """Between places ``(n, d)`` and ``(m, d)``, shape ``(n, m)``; never below 0."""
    square: Float64 = x @ other.T
    square *= -2.0
    square += np.einsum("ij,ij->i", x, x)[:, None]
    square += np.einsum("ij,ij->i", other, other)[None, :]
    return np.maximum(square, 0.0, out=square)


def matern_52(square: Float64) -> Float64:
    """Matérn covariance of smoothness 5/2: ``(1 + s + s²/3) exp(-s)`` with ``s = √5 · distance``.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, equation 4.17.
    """
    s = np.sqrt(square)
    s *= _ROOT_5
    covariance: Float64 = np.exp(-s)
    covariance *= 1.0 + s + s * s / 3.0
    return covariance


def slope_by_log_lengths(square: Float64) -> Float64:
    """Derivative of ``matern_52`` by ``log l_k``, over ``(Δx_k / l_k)²``: ``5/3 (1 + s) exp(-s)``."""
    s = np.sqrt(square)
    s *= _ROOT_5
    slope: Float64 = np.exp(-s)
    slope *= (5.0 / 3.0) * (1.0 + s)
    return slope


def as_vector(hyperparameters: Hyperparameters) -> Float64:
    """Mean, logarithms of noise, variances and lengths, then weights, shape ``(p,)``: what a fit changes."""
    h = hyperparameters
    lengths = map(np.log, h.lengths)
    return np.concatenate([[h.mean], np.log([h.noise]), np.log(h.variance), *lengths, h.weights])


def of_vector(vector: Float64, parts: tuple[Part, ...]) -> Hyperparameters:
    """The other way round."""
    first = 2 + len(parts)
    *ends, last = np.cumsum([part.lengths for part in parts]).tolist()
    lengths = np.split(np.exp(vector[first : first + last]), ends)
    return Hyperparameters(
        float(vector[0]),
        math.exp(vector[1]),
        np.exp(vector[2:first]),
        tuple(lengths),
        vector[first + last :].copy(),
    )
