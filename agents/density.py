"""How many sites of a frame are like one: what tells a usual kind from a freak of the image."""

from __future__ import annotations

import numpy as np

from agents.candidates import Float64
from agents.kernels import square_distance

MAX_COMPARED = 256


def log_density(latents: Float64) -> Float64:
    """Logarithm of the density of sites around each of them, in the space of their latents.

    A kernel estimate (Silverman, Density Estimation for Statistics and Data Analysis, 1986) from every so
    many-th site. The width of the kernel is the lower quartile of the distances between sites: one within a
    kind.

    Parameters
    ----------
    latents
        Scaled to order 1, shape ``(m, d)``.

    Returns
    -------
    log_density
        Shape ``(m,)``, at most 0: 0 where all sites are alike. A site that is like none has as much as if one
        in a few thousand were like it.
    """
    some = latents[:: -(-len(latents) // MAX_COMPARED)]
    apart = square_distance(some, some)[np.triu_indices(len(some), k=1)]
    width = float(np.quantile(apart, 0.25)) if apart.size else 0.0
    if width == 0.0:
        return np.zeros(len(latents))
    alike = np.exp(square_distance(latents, some) / (-2.0 * width))
    share: Float64 = alike.mean(axis=1)
    return np.log(share + 1 / (16 * MAX_COMPARED))
