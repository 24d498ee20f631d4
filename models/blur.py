"""Gaussian blur of a picture, quick for narrow kernels; beyond the edge the edge goes on."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def blurred(image: Float32, sigma_px: float | tuple[float, float], reach: float = 3.0) -> Float32:
    """Blur an image.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32.
    sigma_px
        Of the Gaussian, above 0; along ``(row, col)`` where they differ.
    reach
        Where the kernel ends, in widths.

    Returns
    -------
    blurred
        Of the same shape, float32; kernels have the sum 1.
    """
    row, col = sigma_px if isinstance(sigma_px, tuple) else (sigma_px, sigma_px)
    result = np.empty_like(image)
    blur_into(image, _half_kernel(row, reach), _half_kernel(col, reach), result)
    return result


def _half_kernel(sigma: float, reach: float) -> Float32:
    kernel = np.exp(-((np.arange(max(1, math.ceil(reach * sigma)) + 1) / sigma) ** 2) / 2)
    half: Float32 = (kernel / (2 * kernel.sum() - kernel[0])).astype(np.float32)
    return half


@njit(cache=True)
def blur_into(image: Float32, down: Float32, along: Float32, result: Float32) -> None:
    """Blur with kernels of one's own; beyond the border the image goes on as at the border.

    The rows above and below are added up while they are in the cache, then the pixels along the row.

    Parameters
    ----------
    image, result
        Shape ``(rows, cols)``, float32; not the same array.
    down, along
        Halves of the kernels across and along the rows, from their middles on.
    """
    rows, cols = image.shape
    reach = len(along) - 1
    line = np.empty(cols + 2 * reach, dtype=np.float32)
    for i in range(rows):
        middle = line[reach : reach + cols]
        middle[:] = down[0] * image[i]
        for k in range(1, len(down)):
            above, below = image[max(i - k, 0)], image[min(i + k, rows - 1)]
            for j in range(cols):
                middle[j] += down[k] * (above[j] + below[j])
        line[:reach] = middle[0]
        line[reach + cols :] = middle[cols - 1]
        out = result[i]
        out[:] = along[0] * middle
        for k in range(1, len(along)):
            left, right = line[reach - k : reach - k + cols], line[reach + k : reach + k + cols]
            for j in range(cols):
                out[j] += along[k] * (left[j] + right[j])
