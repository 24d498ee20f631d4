"""How unlike the training windows a window is: 0 is usual, above 3 are three in a thousand of the training's.

Each family has statistics of its own, all logarithms, so that a factor counts alike whether a window has too
much or too little of something. They are centred and scaled on held-out windows; the novelty is the largest.

Axes: N window, C channel, H row, W column, F feature, S statistic, M order of the steerable components.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.spatial_rvae import pool, pooled_px

Float32 = NDArray[np.float32]

USUAL_SHARE = 0.997  # of the training's own kind lies below 3
MOST_NOVEL = 100.0
COMPONENTS = 40
_LEAST_UNIT = 1e-6
_LEAST_SD = 0.02  # of the log power of an order: quieter than any noise


class SpatialNovelty(NamedTuple):
    """Principal components of the pooled training windows in all quarter turns.

    A window is novel when it does not lie in the space that they span, or lies far out in it.

    Attributes
    ----------
    mean_F, components_FS, sd_S
        Centre, directions and standard deviations.
    """

    mean_F: Tensor
    components_FS: Tensor
    sd_S: Tensor

    @classmethod
    def blank(cls, channels: int, window_px: int) -> SpatialNovelty:
        """Make one of the right shapes that knows nothing."""
        features = channels * pooled_px(window_px) ** 2
        kept = min(COMPONENTS, features - 1)
        return cls(torch.zeros(features), torch.zeros(features, kept), torch.ones(kept))

    @classmethod
    def fit(cls, windows_NCHW: Tensor) -> SpatialNovelty:
        """Fit to windows ``(N, C, H, W)``, float32."""
        pooled = pool(windows_NCHW)
        turned = torch.cat([torch.rot90(pooled, k, (2, 3)).flatten(1) for k in range(4)]).double()
        mean_F = turned.mean(0)
        _, variance, components = torch.linalg.svd((turned - mean_F).T @ (turned - mean_F) / len(turned))
        kept = min(COMPONENTS, len(variance) - 1)
        return cls(
            mean_F.float(), components[:kept].T.contiguous().float(), variance[:kept].sqrt().float() + 1e-6
        )

    def statistics(self, pooled_NF: Tensor) -> Tensor:
        """Log of the residual and of the mean square score of each pooled window, shape ``(N, 2)``."""
        centred_NF = pooled_NF - self.mean_F
        scores_NS = centred_NF @ self.components_FS
        left_N = (centred_NF.square().sum(1) - scores_NS.square().sum(1)).clamp(min=1e-12)
        far_N = (scores_NS / self.sd_S).square().mean(1)
        return torch.stack([left_N.log() / 2, (far_N + 1e-12).log() / 2], 1)


class HarmonicNovelty(NamedTuple):
    """Power in each order of the steerable components, as the training windows have it.

    A window is novel when much of it lies outside the components, when the decoder does not explain what
    lies within, or when its powers are in other proportions than those of any training window. None of the
    three changes when the window is turned.

    Attributes
    ----------
    mean_M, whiten_MM
        Of the log powers, in units of the learnt noise.
    """

    mean_M: Tensor
    whiten_MM: Tensor

    @classmethod
    def blank(cls, orders: int) -> HarmonicNovelty:
        """Make one of the right shapes that knows nothing."""
        return cls(torch.zeros(orders), torch.eye(orders))

    @classmethod
    def fit(cls, log_power_NM: Tensor) -> HarmonicNovelty:
        """Fit to the log powers of training windows."""
        values = log_power_NM.double()
        mean_M = values.mean(0)
        covariance = (values - mean_M).T @ (values - mean_M) / len(values)
        covariance += _LEAST_SD**2 * torch.eye(len(mean_M), dtype=torch.float64)
        root = torch.linalg.cholesky(torch.linalg.inv(covariance))
        return cls(mean_M.float(), root.float().contiguous())


class Calibration(NamedTuple):
    """Median and spread of each statistic on held-out windows, the spread so that their largest is usual."""

    center_S: tuple[float, ...]
    unit_S: tuple[float, ...]


def calibrated(statistics_NS: NDArray[np.floating]) -> Calibration:
    """Centre and scale statistics of held-out windows.

    Each statistic's unit is a third of the way from its median to its 99.7th percentile; then all units grow
    by one factor, so that three windows in a thousand have one statistic or another above 3.

    Parameters
    ----------
    statistics_NS
        Shape ``(n, s)``; a thousand windows tell the percentile.
    """
    values = np.asarray(statistics_NS, dtype=np.float64)
    center = np.median(values, axis=0)
    unit = np.maximum((np.quantile(values, USUAL_SHARE, axis=0) - center) / 3, _LEAST_UNIT)
    largest = ((values - center) / unit).max(axis=1)
    unit *= max(1.0, float(np.quantile(largest, USUAL_SHARE)) / 3)
    return Calibration(tuple(center.tolist()), tuple(unit.tolist()))
