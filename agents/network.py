"""What matters in a window, as a few numbers: a small network that is fitted together with its covariance.

Wilson et al., Deep Kernel Learning, AISTATS 2016. Its filters look at the harmonics of a window in several
turns, and what each finds is pooled over them: so a turned window gives the same numbers (Cohen and Welling,
Group Equivariant Convolutional Networks, ICML 2016). A few dozen measurements are few for a thousand weights,
and the evidence alone would let them say anything (Ober et al., The Promises and Pitfalls of Deep Kernel
Learning, UAI 2021): so weights are drawn once, and a normal prior holds each to where it began.

It is plain NumPy. At this size a step takes less time than a framework needs to begin it, the process has
neither its memory nor its seconds to start, and nothing in it depends on threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from agents.windows import PER_CHANNEL, orders

Float64 = NDArray[np.float64]

TURNS = 8
FILTERS = 16
OUTPUTS = 8
OFFSET_SD = 0.5
# Under the root of the pooled squares: without it there is no slope where a filter finds nothing.
_LEAST_SQUARE = 0.01
# Windows that are looked at together, always as many: libraries choose how to sum by the shape of a product,
# and what is said of a window must not depend on what else is looked at. What is found stays in the cache.
_AT_ONCE = 192


@dataclass(frozen=True, slots=True)
class Network:
    """From the scaled harmonics of a window to a few numbers of order 1.

    Its weights are one vector: filters ``(inputs, FILTERS)``, their offsets, and the mixture of what they
    found ``(FILTERS, OUTPUTS)``.

    Attributes
    ----------
    channels
        Of the windows.
    seed
        Of the weights that it begins with.
    """

    channels: int
    seed: int = 0

    @property
    def inputs(self) -> int:
        """How many numbers it looks at."""
        return self.channels * PER_CHANNEL

    @property
    def size(self) -> int:
        """How many weights it has."""
        return self.inputs * FILTERS + FILTERS + FILTERS * OUTPUTS

    @property
    def first(self) -> Float64:
        """The weights that it begins with, shape ``(size,)``."""
        return _first(self)

    def slope_of_prior(self, weights: Float64) -> tuple[float, Float64]:
        """Logarithm of the prior density of weights, up to a constant, and its derivative."""
        away = (weights - self.first) / _sd(self)
        return -0.5 * float(away @ away), -away / _sd(self)

    def seen(self, x: Float64, weights: Float64) -> Float64:
        """Give the numbers of windows, harmonics ``(n, inputs)``, shape ``(n, OUTPUTS)``."""
        seen = np.empty((len(x), OUTPUTS))
        block = np.zeros((_AT_ONCE, self.inputs))
        for first in range(0, len(x), _AT_ONCE):
            some = x[first : first + _AT_ONCE]
            block[: len(some)] = some
            seen[first : first + _AT_ONCE] = Pass(self, block, weights).outputs[: len(some)]
        return seen

    def split(self, weights: Float64) -> tuple[Float64, Float64, Float64]:
        """Filters, their offsets, and the mixture."""
        first, second = self.inputs * FILTERS, (self.inputs + 1) * FILTERS
        return (
            weights[:first].reshape(self.inputs, FILTERS),
            weights[first:second],
            weights[second:].reshape(FILTERS, OUTPUTS),
        )


class Pass:
    """One way through a network, and back.

    Parameters
    ----------
    network, x, weights
        As of ``Network.seen``.

    Attributes
    ----------
    outputs
        Shape ``(n, OUTPUTS)``.
    """

    def __init__(self, network: Network, x: Float64, weights: Float64) -> None:
        self._network, self._x = network, x
        filters, offsets, self._mixture = network.split(weights)
        turned = _turned(network.channels, filters).reshape(network.inputs, TURNS * FILTERS)
        self._found = (x @ turned).reshape(len(x), TURNS, FILTERS) + offsets
        self._pooled = np.sqrt(np.mean(self._found**2, axis=1) + _LEAST_SQUARE)
        self.outputs: Float64 = self._pooled @ self._mixture

    def slope(self, by_outputs: Float64) -> Float64:
        """Derivative by the weights of what has this derivative by the outputs, ``(n, OUTPUTS)``."""
        by_pooled = by_outputs @ self._mixture.T
        by_found = (by_pooled / self._pooled)[:, None, :] * self._found / TURNS
        by_turned = (self._x.T @ by_found.reshape(len(self._x), -1)).reshape(-1, TURNS, FILTERS)
        return np.concatenate(
            [
                _turned_back(self._network.channels, by_turned).ravel(),
                by_found.sum(axis=(0, 1)),
                (self._pooled.T @ by_outputs).ravel(),
            ]
        )


@lru_cache(maxsize=8)
def _first(network: Network) -> Float64:
    drawn = np.random.default_rng([network.seed, 1]).normal(size=network.size)
    drawn[network.inputs * FILTERS : (network.inputs + 1) * FILTERS] = 0.0
    first: Float64 = drawn * _sd(network)
    first.flags.writeable = False
    return first


@lru_cache(maxsize=8)
def _sd(network: Network) -> Float64:
    """Prior sd of each weight: what leaves the size of what comes in as it is."""
    sizes = (network.inputs * FILTERS, FILTERS, FILTERS * OUTPUTS)
    each: Float64 = np.repeat([1 / math.sqrt(network.inputs), OFFSET_SD, 1 / math.sqrt(FILTERS)], sizes)
    each.flags.writeable = False
    return each


@lru_cache(maxsize=8)
def _turns(channels: int) -> tuple[Float64, Float64, NDArray[np.int64]]:
    """Cosine and signed sine of each turn for each harmonic, ``(inputs, TURNS, 1)``; and its partner."""
    order = orders(channels)
    partner = np.arange(order.size)
    (cosines,) = np.nonzero(order)
    cosines, sines = cosines[::2], cosines[1::2]
    partner[cosines], partner[sines] = sines, cosines
    sign = np.zeros(order.size)
    sign[cosines], sign[sines] = -1.0, 1.0
    angle = (order[:, None] * (2 * np.pi / TURNS * np.arange(TURNS)))[..., None]
    return np.cos(angle), sign[:, None, None] * np.sin(angle), partner


def _turned(channels: int, filters: Float64) -> Float64:
    """Filters in every turn, shape ``(inputs, TURNS, FILTERS)``."""
    cos, sin, partner = _turns(channels)
    turned: Float64 = cos * filters[:, None, :] + sin * filters[partner][:, None, :]
    return turned


def _turned_back(channels: int, by_turned: Float64) -> Float64:
    """The adjoint of ``_turned``, shape ``(inputs, FILTERS)``; a partner's partner is oneself."""
    cos, sin, partner = _turns(channels)
    back: Float64 = (cos * by_turned).sum(axis=1) + (sin * by_turned).sum(axis=1)[partner]
    return back
