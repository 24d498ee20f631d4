"""How far the sds of pose are to be stretched, so that intervals cover what they say.

The noise that a model learns is independent for each component; what is left of a real window, such as a
displaced neighbour, is not, and the posterior is somewhat too sure. One factor for all angles and one for all
shifts, from windows whose pose is known, makes up for it.

Axes: N window, Z latent, K class.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.rvae import RVAE

Float64 = NDArray[np.float64]

_FEWEST = 50  # windows of known pose
_RANGE = (0.2, 5.0)
_QUANTILES = ((0.6827, 1.0), (0.95, 1.96))  # share of a normal, and within how many sds


def calibrate_pose(
    model: RVAE,
    windows_NCHW: NDArray[np.float32],
    class_N: NDArray[np.int64],
    symmetry_K: tuple[int, ...],
    angle_N: Float64,
    shift_N2: Float64 | None = None,
) -> None:
    """Set the model's temperatures of angle and shift; its weights stay.

    Where fewer than 50 windows have a known pose, the sd stays as the posterior has it.

    Parameters
    ----------
    model
        Trained.
    windows_NCHW
        That training never saw.
    class_N
        What each shows; -1 is not known, and not looked at.
    symmetry_K
        For each class the turns that leave it as it is; 0 where its angle is not asked for.
    angle_N
        True turn in rad, up to a direction for each class; NaN is not known.
    shift_N2
        True shift ``(x, y)`` in half windows; NaN is not known.
    """
    model.angle_temperature.fill_(1.0)
    model.shift_temperature.fill_(1.0)
    parts = [model.posterior(part) for part in torch.from_numpy(windows_NCHW).split(512)]  # type: ignore[no-untyped-call]
    angle, angle_sd, shift, shift_sd = (
        torch.cat(column).double().numpy()
        for column in zip(*((p.angle_N, p.angle_sd_N, p.shift_N2, p.shift_sd_N2) for p in parts), strict=True)
    )
    if model.rotation:
        error = angle_errors(angle, angle_N, class_N, symmetry_K)
        model.angle_temperature.fill_(_temperature(error / angle_sd))
    if model.shift and shift_N2 is not None:
        model.shift_temperature.fill_(_temperature((shift - shift_N2) / shift_sd))


def angle_errors(
    angle_N: Float64, true_N: Float64, class_N: NDArray[np.int64], symmetry_K: tuple[int, ...]
) -> Float64:
    """Say how far angles are off, in rad, up to each class's symmetry and zero; NaN where not known."""
    error_N = np.full(len(angle_N), np.nan)
    for kind, fold in enumerate(symmetry_K):
        chosen = (class_N == kind) & np.isfinite(true_N)
        if fold and chosen.any():
            away = np.exp(1j * fold * (angle_N[chosen] - true_N[chosen]))
            error_N[chosen] = np.angle(away / away.mean()) / fold
    return error_N


def _temperature(in_sds: Float64) -> float:
    """Stretch sds so that both intervals cover as nearly as one factor can."""
    known = np.abs(in_sds[np.isfinite(in_sds)])
    if known.size < _FEWEST:
        return 1.0
    factors = [np.quantile(known, share) / sds for share, sds in _QUANTILES]
    return float(np.clip(np.sqrt(factors[0] * factors[1]), *_RANGE))
