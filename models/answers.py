"""What an inference engine says of windows, as arrays of the caller's own.

Axes: N window, Z content latent, K class, V nuisance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class Answers(NamedTuple):
    """What is said of windows; every array float32 and the caller's own.

    Attributes
    ----------
    mean_NZ, sd_NZ, angle_N, angle_sd_N, shift_N2, shift_sd_N2, class_NK, nuisance_NV, nuisance_sd_NV
        As ``models.posterior.Posterior`` has them.
    novelty_N
        0 is usual, above 3 is not.
    """

    mean_NZ: Float32
    sd_NZ: Float32
    angle_N: Float32
    angle_sd_N: Float32
    shift_N2: Float32
    shift_sd_N2: Float32
    class_NK: Float32
    nuisance_NV: Float32
    nuisance_sd_NV: Float32
    novelty_N: Float32

    @classmethod
    def room(cls, count: int, latents: int, classes: int, nuisances: int) -> Answers:
        """Make room for windows in a single allocation."""
        shapes = (latents, latents, 0, 0, 2, 2, classes, nuisances, nuisances, 0)
        whole = np.empty(count * (sum(shapes) + shapes.count(0)), dtype=np.float32)
        # A class or a nuisance that does not exist is an array of width 0, an angle has no second axis.
        flat = (False, False, True, True, False, False, False, False, False, True)
        parts, at = [], 0
        for width, is_flat in zip(shapes, flat, strict=True):
            size = count * (1 if is_flat else width)
            part = whole[at : at + size]
            parts.append(part if is_flat else part.reshape(count, width))
            at += size
        return cls(*parts)
