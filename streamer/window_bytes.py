"""Windows as they travel to agents: a byte a pixel, between the smallest and the largest value of each.

The error is at most 1/510 of what a window spans, far below the noise of a live frame; 16-bit floats would
take twice the bytes, and a dtype more of every client.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.message_base import Float32

Bytes = NDArray[np.uint8]
_LARGEST = 255


def as_bytes(windows: Float32) -> tuple[Bytes, Float32]:
    """Bring windows to bytes.

    Parameters
    ----------
    windows
        Finite, shape ``(n, channel, h, w)``.

    Returns
    -------
    windows, range
        ``windows`` and ``window_range`` of Latents.
    """
    low, high = windows.min(axis=(2, 3)), windows.max(axis=(2, 3))
    span = np.where(high > low, high - low, 1.0).astype(np.float32)
    steps = (windows - low[..., None, None]) * (_LARGEST / span)[..., None, None]
    return np.rint(steps).astype(np.uint8), np.stack([low, high], axis=-1).astype(np.float32)


def as_seen(windows: Bytes, window_range: Float32) -> Float32:
    """The other way round, shape ``(n, channel, h, w)``, float32."""
    low, high = window_range[..., 0], window_range[..., 1]
    seen: Float32 = windows * ((high - low) / np.float32(_LARGEST))[..., None, None] + low[..., None, None]
    return seen
