"""What is put right of the pose after training, on windows whose pose is known.

Where the upright content of a model lies, and in which direction it looks, is no part of the likelihood: the
decoder may draw it beside the middle, and one content turned against the next. And the noise that a model
learns is independent for each component; what is left of a real window, such as a displaced neighbour, is
not, and the posterior is too sure of some contents. All of it depends on the content: so it is fitted as
what the decoder's last hidden layer says, linearly: the middle, the direction, and the logs of a factor for
the sds of angle and shift. And sds vary more from window to window than errors do, small ones are too small
and large ones too large: so the factor goes with a power of the sd itself, too.

Axes: N window, Z latent, K class, H number of the hidden layer and a 1, E correction as in ``models.rvae``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.rvae import LEAST_SD, LOG_FACTOR, RVAE

Float64 = NDArray[np.float64]

_FEWEST = 50  # windows of known pose
_QUANTILES = ((0.6827, 1.0), (0.95, 1.96))  # share of a normal, and within how many sds
_RIDGE = 1e-2  # of the mean square of a number of the hidden layer
_ROUNDS = 3
_FAR_RAD = 1.0  # an angle further off is another one of those that look alike, and says nothing of the zero
_LOG_NORMAL = -0.635  # mean log of the size of a normal number
_LEAST = 1e-2  # in sds: what is closer is as good as exact


class _Said(NamedTuple):
    """What a model says of the pose of windows, and what its corrections depend on."""

    hidden_NH: Float64
    angle_N: Float64
    angle_sd_N: Float64
    shift_px_N2: Float64
    shift_sd_px_N2: Float64


def calibrate_pose(
    model: RVAE,
    windows_NCHW: NDArray[np.float32],
    class_N: NDArray[np.int64],
    symmetry_K: tuple[int, ...],
    angle_N: Float64,
    shift_N2: Float64 | None = None,
) -> None:
    """Set what the model puts right of its angles and shifts; its weights stay.

    Middle, direction and how sds go with the content are fitted to the first half of the windows, how large
    sds are to the other: of specimens that the first half has not seen, they are as wide as for any other.
    Where fewer than 50 windows have a known pose, it stays as the posterior has it.

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
    model.correction_EH.zero_()
    model.sd_course_22.zero_()
    shift_px_N2 = None if shift_N2 is None else shift_N2 * (model.window_px / 2)
    said = _said_of(model, windows_NCHW)
    first_N = np.arange(len(class_N)) < len(class_N) / 2
    correction_EH = np.zeros(model.correction_EH.shape)
    if model.shift and shift_px_N2 is not None:
        correction_EH[:2] = _middle(said, shift_px_N2, first_N)
    if model.rotation:
        correction_EH[2] = _direction(said, angle_N, class_N, symmetry_K, first_N)
    model.correction_EH.copy_(torch.from_numpy(correction_EH))
    said = _said_of(model, windows_NCHW)
    course_22 = np.zeros((2, 2))
    if model.rotation:
        error_N = angle_errors(said.angle_N, angle_N, class_N, symmetry_K)
        correction_EH[3], course_22[0] = _factor(error_N, said.angle_sd_N, said.hidden_NH, first_N)
    if model.shift and shift_px_N2 is not None:
        error_N2 = (shift_px_N2 - said.shift_px_N2) * (2 / model.window_px)
        sd_N2 = said.shift_sd_px_N2 * (2 / model.window_px)
        twice_NH = said.hidden_NH.repeat(2, 0)
        correction_EH[4], course_22[1] = _factor(error_N2.ravel(), sd_N2.ravel(), twice_NH, first_N.repeat(2))
    model.correction_EH.copy_(torch.from_numpy(correction_EH))
    model.sd_course_22.copy_(torch.from_numpy(course_22))


def _said_of(model: RVAE, windows_NCHW: NDArray[np.float32]) -> _Said:
    parts = [model.posterior(part) for part in torch.from_numpy(windows_NCHW).split(512)]  # type: ignore[no-untyped-call]
    with torch.no_grad():
        hidden = torch.cat([model.hidden_of(part.mean_NZ) for part in parts]).double().numpy()
    angle, angle_sd, shift, shift_sd = (
        torch.cat(column).double().numpy()
        for column in zip(*((p.angle_N, p.angle_sd_N, p.shift_N2, p.shift_sd_N2) for p in parts), strict=True)
    )
    half_px = model.window_px / 2
    hidden_NH = np.concatenate([hidden, np.ones((len(hidden), 1))], 1)
    return _Said(hidden_NH, angle, angle_sd, shift * half_px, shift_sd * half_px)


def _middle(said: _Said, shift_px_N2: Float64, chosen_N: NDArray[np.bool_]) -> Float64:
    """Fit where the upright content is drawn beside the middle, ``(2, H)``: as it lies when turned back."""
    away_N2 = shift_px_N2 - said.shift_px_N2
    known_N = chosen_N & np.isfinite(away_N2).all(1)
    x, y = away_N2[known_N].T
    cos, sin = np.cos(said.angle_N[known_N]), np.sin(said.angle_N[known_N])
    back_N2 = np.stack([x * cos + y * sin, y * cos - x * sin], 1)
    return _fitted(said.hidden_NH[known_N], back_N2).T


def _direction(
    said: _Said,
    angle_N: Float64,
    class_N: NDArray[np.int64],
    symmetry_K: tuple[int, ...],
    chosen_N: NDArray[np.bool_],
) -> Float64:
    """Fit what is to be added to the angle so that all contents of a class look the same way, ``(H,)``."""
    turn_H = np.zeros(said.hidden_NH.shape[1])
    for _ in range(_ROUNDS):
        turned_N = said.angle_N + said.hidden_NH @ turn_H
        error_N = angle_errors(turned_N, angle_N, class_N, symmetry_K)
        known_N = chosen_N & (np.abs(error_N) < _FAR_RAD)
        turn_H = turn_H - _fitted(said.hidden_NH[known_N], error_N[known_N])
    return turn_H


def _factor(
    error_N: Float64, sd_N: Float64, hidden_NH: Float64, first_N: NDArray[np.bool_]
) -> tuple[Float64, Float64]:
    """Fit the log of a factor for sds: its course to typical errors, its height to the second half.

    Returns
    -------
    log_H, course_2
        What the content says of it, and how it goes with the sd itself: ``course_2 @ (log sd, 1)``.
    """
    known_N = np.isfinite(error_N)
    error_N, sd_N, hidden_NH = (part[known_N] for part in (error_N, sd_N, hidden_NH))
    first_N = first_N[known_N]
    if min(first_N.sum(), (~first_N).sum()) < _FEWEST:
        return np.zeros(hidden_NH.shape[1]), np.zeros(2)
    log_sd_N = np.log(np.maximum(sd_N, LEAST_SD))
    typical = float(np.median(log_sd_N))
    in_sds_N = np.abs(error_N) / np.exp(log_sd_N)
    wanted_N = np.log(in_sds_N + _LEAST) - _LOG_NORMAL
    log_H, slope = _course(wanted_N[first_N], log_sd_N[first_N] - typical, hidden_NH[first_N])
    said_N = np.clip(hidden_NH @ log_H, *LOG_FACTOR) + slope * (log_sd_N - typical)
    size_N = (in_sds_N / np.exp(said_N))[~first_N]
    heights = [np.log(np.quantile(size_N, share) / sds) for share, sds in _QUANTILES]
    log_H[-1] += np.mean(heights)
    return log_H, np.array([slope, -slope * typical])


def _course(wanted_N: Float64, log_sd_N: Float64, hidden_NH: Float64) -> tuple[Float64, float]:
    """Fit to content and sd together; an sd is never turned upside down."""
    both = _fitted(np.concatenate([log_sd_N[:, None], hidden_NH], 1), wanted_N)
    slope = float(np.clip(both[0], -1.0, 0.0))
    return _fitted(hidden_NH, wanted_N - slope * log_sd_N), slope


def _fitted(hidden_NH: Float64, wanted: Float64) -> Float64:
    """Fit what is wanted to the hidden layer, by least squares that would rather say nothing."""
    if len(hidden_NH) < _FEWEST:
        return np.zeros((hidden_NH.shape[1], *wanted.shape[1:]))
    penalty_H = np.full(hidden_NH.shape[1], _RIDGE * len(hidden_NH))
    penalty_H[-1] = 0
    return np.asarray(
        np.linalg.solve(hidden_NH.T @ hidden_NH + np.diag(penalty_H), hidden_NH.T @ wanted), np.float64
    )


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
