"""Symmetric matrices at half the cost: BLAS fills one triangle, and the other is its mirror image."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk
from torch import Tensor

_BLOCK = 32  # rows and columns that the quickest memory holds twice


def gram(matrix: Tensor) -> Tensor:
    """Multiply ``matrix.T @ matrix``, shape ``(n, m)`` in and ``(m, m)`` out, float64 on the CPU."""
    if matrix.device.type != "cpu" or matrix.dtype != torch.float64:
        return (matrix.T @ matrix).cpu().double()
    # A copy where torch would have put it: what its libraries make of numbers depends, in the last digit,
    # on how memory is aligned, and a restart would not find the same digits again.
    return torch.tensor(mirrored(dsyrk(1.0, matrix.numpy().T)))


@njit(cache=True)
def mirrored(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Copy the upper triangle of a matrix onto its lower one, block by block; the same matrix."""
    count = len(upper)
    for first in range(0, count, _BLOCK):
        for second in range(first, count, _BLOCK):
            for j in range(second, min(second + _BLOCK, count)):
                for i in range(first, min(first + _BLOCK, j)):
                    upper[j, i] = upper[i, j]
    return upper
