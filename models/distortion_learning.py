"""Learn how large and how smooth a scan's distortions are, from a few frames, off the hot path.

The marginal likelihood of a model that is linear in its weights needs the observations only once: they
enter by their Gram matrix. A trial of other hyperparameters then costs one Cholesky factor of the
weights' size, and its gradient follows in closed form (MacKay 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from models.distortion_gp import DistortionGP, Hyperparameters, Observations, ScanModel
from models.scan_basis import Float64, ScanBasis

_AMPLITUDE_SPREAD, _LENGTH_SPREAD = 2.0, 0.5  # sd of the logarithms, about what they start from
_RANGE = math.log(20.0)  # no amplitude moves further from its start
_LENGTHS = ("coil_length", "warp_length")
_DYNAMIC_VARIANCE = 1.0  # px²: what hum and drift may do in a frame is asked of the frame alone
_LEAST_HUM_PX = 0.02
_ROUNDS = 2  # the first says which observations to believe, and how large the jitter is
_MOST_TRIALS = 60
_LOG_STEP = 1e-4
_OUTLIER_NATS = math.log(10.0)  # a place that is not believed lies anywhere within ten pixels
_FRAMES_FOR_TIME = 6  # fewer say nothing of how lasting a distortion is
_TIMESCALES = (0.1, 0.3, 1.0, 3.0, 10.0)  # in units of what it is taken for


def learn_hyperparameters(
    scan: ScanModel, frames: Sequence[Observations], start: Hyperparameters | None = None
) -> Hyperparameters:
    """Find the hyperparameters under which some frames are most likely.

    Parameters
    ----------
    scan
        How the frames were scanned.
    frames
        Observations of frames that follow each other, one or a few; more cost time and tell little.
    start
        What to begin with, and to stay near where the frames say nothing.

    Raises
    ------
    ValueError
        If there are no frames, or none of them holds observations.

    Notes
    -----
    With six frames and more, how lasting the distortion is is learnt as well, at the price of filtering
    them five times.

    Give the result to ``DistortionGP.with_hyperparameters``: that makes another GP and leaves the one in
    use as it is, so a swap is one assignment, between two frames.
    """
    if not any(len(frame) for frame in frames):
        raise ValueError("there is no frame with observations to learn from; give one or more")
    found = start or Hyperparameters()
    for _ in range(_ROUNDS):
        found = _round(scan, [frame for frame in frames if len(frame)], found)
    return _with_timescale(scan, frames, found) if len(frames) >= _FRAMES_FOR_TIME else found


def _with_timescale(
    scan: ScanModel, frames: Sequence[Observations], hyper: Hyperparameters
) -> Hyperparameters:
    """Choose the timescale under which the frames were best foreseen from each other."""
    tried = [
        msgspec.structs.replace(hyper, timescale_frames=hyper.timescale_frames * factor)
        for factor in _TIMESCALES
    ]
    return max(tried, key=lambda trial: _foreseen(scan, frames, trial))


def _foreseen(scan: ScanModel, frames: Sequence[Observations], hyper: Hyperparameters) -> float:
    gp = DistortionGP(scan, hyper)
    total = 0.0
    for frame in frames:
        gp.predict()
        update = gp.observe(frame)
        if update.used:
            total += update.used * update.log_evidence - update.gated * _OUTLIER_NATS
    return total


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What all frames tell of the static weights, hum and drift marginalised."""

    gram: Tensor  # (2, s, s)
    gradient: Tensor  # (2, s), at weights of zero


def _round(scan: ScanModel, frames: list[Observations], start: Hyperparameters) -> Hyperparameters:
    gp = DistortionGP(scan, start)
    seen = [_teach(gp, frame) for frame in frames]
    hum = [pair for pair, _ in seen]
    learnt = msgspec.structs.replace(start, jitter_px=gp.jitter_px)
    if gp.basis.dynamic_start:
        grams = torch.stack([evidence.gram for _, evidence in seen]).sum(0)
        gradients = torch.stack([evidence.gradient for _, evidence in seen]).sum(0)
        learnt = _Search(gp.basis, _Evidence(grams, gradients), learnt).best()
    if "hum" not in gp.basis.blocks:
        return learnt
    row, col = np.maximum(np.sqrt(np.mean(np.square(hum), axis=0) / 2), _LEAST_HUM_PX)
    amplitude = {**learnt.amplitude_px, "hum": (float(row), float(col))}
    return msgspec.structs.replace(learnt, amplitude_px=amplitude)


def _teach(gp: DistortionGP, seen: Observations) -> tuple[Float64, _Evidence]:
    """Show the GP a frame; return the hum's amplitude and what the frame tells of the static weights."""
    gp.predict()
    gp.observe(seen)
    gram, gradient = gp.information(seen)
    first = gp.basis.dynamic_start
    still, moving = slice(0, first), slice(first, gram.shape[-1])
    own = gram[:, moving, moving] + torch.eye(gram.shape[-1] - first, dtype=gram.dtype) / _DYNAMIC_VARIANCE
    solved = torch.linalg.solve(own, torch.cat([gram[:, moving, still], gradient[:, moving, None]], -1))
    evidence = _Evidence(
        gram[:, still, still] - gram[:, still, moving] @ solved[:, :, :-1],
        gradient[:, still] - (gram[:, still, moving] @ solved[:, :, -1:])[..., 0],
    )
    return gp.hum_amplitude_px, evidence


class _Search:
    """Maximise the evidence over logarithms of amplitudes and lengths."""

    def __init__(self, basis: ScanBasis, evidence: _Evidence, start: Hyperparameters) -> None:
        self._basis, self._evidence, self._start = basis, evidence, start
        self._names = [name for name, block in basis.blocks.items() if block.stop <= basis.dynamic_start]
        needs = {"coil_length": {"coil"}, "warp_length": {"flyback", "settle"}}
        self._lengths = [name for name in _LENGTHS if needs[name] & set(self._names)]
        self._spread = np.array(
            [_AMPLITUDE_SPREAD] * (2 * len(self._names)) + [_LENGTH_SPREAD] * len(self._lengths)
        )

    def best(self) -> Hyperparameters:
        """Find the best hyperparameters."""
        bounds = [(-_RANGE, _RANGE)] * (2 * len(self._names)) + [(-1.0, 1.0)] * len(self._lengths)
        start = np.zeros(len(self._spread))
        found = minimize(
            self._cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _MOST_TRIALS}
        )
        return self._at(found.x)

    def _at(self, change: Float64) -> Hyperparameters:
        count = len(self._names)
        factors = np.exp(change[: 2 * count]).reshape(count, 2)
        amplitude = dict(self._start.amplitude_px)
        for name, (row, col) in zip(self._names, factors.tolist(), strict=True):
            amplitude[name] = (amplitude[name][0] * row, amplitude[name][1] * col)
        lengths = {
            name: getattr(self._start, name) * math.exp(step)
            for name, step in zip(self._lengths, change[2 * count :].tolist(), strict=True)
        }
        return msgspec.structs.replace(self._start, amplitude_px=amplitude, **lengths)

    def _cost(self, change: Float64) -> tuple[float, Float64]:
        """Negative log evidence, with the prior of the hyperparameters, and its gradient."""
        first = self._basis.dynamic_start
        variance = self._variance(change)
        root = variance.sqrt()
        eye = torch.eye(first, dtype=torch.float64)
        lower = torch.linalg.cholesky(eye + root[:, :, None] * self._evidence.gram * root[:, None, :])
        inverse = torch.cholesky_inverse(lower)
        pull = root * self._evidence.gradient
        white = (inverse @ pull[:, :, None])[..., 0]  # weights in units of their prior sd
        cost = float(lower.diagonal(dim1=1, dim2=2).log().sum()) - 0.5 * float((pull * white).sum())
        by_log_variance = 0.5 * (1 - inverse.diagonal(dim1=1, dim2=2) - white**2)
        slope = [2 * by_log_variance[:, self._basis.blocks[name]].sum(1) for name in self._names]
        lengths = []
        for index in range(len(self._lengths)):
            ahead = change.copy()
            ahead[2 * len(self._names) + index] += _LOG_STEP
            lengths.append(((self._variance(ahead) / variance).log() / _LOG_STEP * by_log_variance).sum())
        gradient = np.concatenate([*(pair.numpy() for pair in slope), np.array([float(v) for v in lengths])])
        prior = change / self._spread
        return cost + 0.5 * float(prior @ prior), gradient + prior / self._spread

    def _variance(self, change: Float64) -> Tensor:
        return self._basis.prior_variance(self._at(change))[:, : self._basis.dynamic_start].clamp(min=1e-30)
