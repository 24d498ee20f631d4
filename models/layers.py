"""What both families begin with: first weights from a given generator, and a scale of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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


def usable_scale(sd: Tensor, mean: Tensor) -> Tensor:
    """Take sds as scales, whatever their unit; 1 where there is nothing but rounding."""
    return torch.where(sd > 1e-6 * mean.abs(), sd, torch.where(mean != 0, mean.abs(), 1.0))
