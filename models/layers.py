"""First weights from a given generator: making a model leaves the global one alone."""

from __future__ import annotations

import math

import torch
from torch import nn


class _UndrawnLinear(nn.Linear):
    """A layer whose constructor draws nothing (``skip_init`` does the same, and imports sympy: 0.5 s)."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


def linear(fan_in: int, fan_out: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """Make a layer with normal weights of sd ``gain / sqrt(fan_in)`` and no bias."""
    layer = _UndrawnLinear(fan_in, fan_out)
    with torch.no_grad():
        layer.weight.normal_(0.0, gain / math.sqrt(fan_in), generator=generator)
        layer.bias.zero_()
    return layer


def normal(shape: tuple[int, ...], sd: float, generator: torch.Generator) -> nn.Parameter:
    """Make a parameter with normal entries."""
    return nn.Parameter(torch.randn(shape, generator=generator) * sd)
