"""What a window shows, as numbers that a turn of the specimen changes in a known way.

On rings around its middle the picture is taken apart into harmonics of the angle: a turn by ``a`` leaves
those of order 0, and turns the two numbers of order ``m`` by ``m a``. That is linear, and the same for every
window.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamer.messages import Float32

RINGS = 8
ORDERS = 5
# A ring of radius r pixels has about 2 pi r of them: higher orders than this part of r are not in them.
_ORDERS_PER_PX = 1.5
# Of every ring and the middle the mean; of every ring and order above 0, cosine and sine.
PER_CHANNEL = 1 + RINGS * (1 + 2 * ORDERS)


def harmonics(windows: Float32) -> Float32:
    """Take windows apart.

    Parameters
    ----------
    windows
        Shape ``(n, channel, h, w)``.

    Returns
    -------
    harmonics
        Shape ``(n, channel * PER_CHANNEL)``, float32; which is which says ``orders``. White noise in the
        pixels has the same variance in each. Those that so few pixels do not have are 0.
    """
    n, channels, height, width = windows.shape
    basis = _basis(height, width)
    return (windows.reshape(n * channels, height * width) @ basis).reshape(n, channels * PER_CHANNEL)


def orders(channels: int) -> NDArray[np.int64]:
    """Of each harmonic, shape ``(channels * PER_CHANNEL,)``; those of cosine and sine stand side by side."""
    ring = np.concatenate([[0], np.repeat(np.arange(1, ORDERS + 1), 2)])
    return np.tile(np.concatenate([[0], np.tile(ring, RINGS)]), channels).astype(np.int64)


@lru_cache(maxsize=8)
def _basis(height: int, width: int) -> Float32:
    """One column for each harmonic, each of unit length, shape ``(h * w, PER_CHANNEL)``."""
    row, col = np.mgrid[:height, :width].astype(np.float64)
    row, col = row - (height - 1) / 2, col - (width - 1) / 2
    radius, angle = np.hypot(row, col), np.arctan2(row, col)
    step = (min(height, width) - 1) / 2 / RINGS
    columns = []
    for ring in range(RINGS + 1):
        profile = np.clip(1 - np.abs(radius - ring * step) / max(step, 1.0), 0, None)
        columns.append(profile)
        for order in range(1, ORDERS + 1) if ring else ():
            is_seen = order <= _ORDERS_PER_PX * ring * step
            waves = [is_seen * profile * wave(order * angle) for wave in (np.cos, np.sin)]
            # On a square grid a flat ring has some of order 4; that is taken off.
            columns += [wave - profile * (wave.sum() / profile.sum()) for wave in waves]
    flat = np.stack(columns, axis=-1).reshape(height * width, PER_CHANNEL)
    length = np.sqrt((flat**2).sum(axis=0))
    basis: Float32 = (flat / np.where(length > 0, length, 1.0)).astype(np.float32)
    basis.flags.writeable = False
    return basis
