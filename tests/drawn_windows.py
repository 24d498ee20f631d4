"""Windows to look at: a spot beside the middle, in any direction, as bright as is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamer.window_bytes import as_bytes

PIXELS = 12


def spots(bright: ArrayLike, seed: int = 0, noise: float = 0.02, pixels: int = PIXELS) -> NDArray[np.float32]:
    """Draw a spot as bright as this in each window, shape ``(n, 1, pixels, pixels)``."""
    rng = np.random.default_rng(seed)
    bright = np.asarray(bright)
    turn = rng.uniform(0, 2 * np.pi, bright.size)
    row, col = np.mgrid[:pixels, :pixels] - (pixels - 1) / 2
    away = (row - 3 * np.sin(turn)[:, None, None]) ** 2 + (col - 3 * np.cos(turn)[:, None, None]) ** 2
    drawn = bright[:, None, None] * np.exp(-away / 3) + noise * rng.normal(size=away.shape)
    return drawn[:, None].astype(np.float32)


def sent(windows: NDArray[np.float32]) -> dict[str, Any]:
    """Fields of ``Latents`` that carry these."""
    given, window_range = as_bytes(windows)
    return {"windows": given, "window_range": window_range}
