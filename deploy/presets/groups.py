"""Part latents into groups without labels, so that the groups can be compared with the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.special import logsumexp

from models.encoder import Encoder

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

STARTS = 10
LOOKED_AT = 0.25  # sd of the middle that counts, in half windows: one atom
ROUNDS = 200
SMALLEST_VARIANCE = 1e-4  # of latents of unit variance: no group shrinks onto a few of them


def groups_of(latents_NZ: NDArray[np.floating], count: int) -> Int64:
    """Part latents by k-means, the best of ten starts; always the same groups for the same latents."""
    data = np.asarray(latents_NZ, dtype=np.float64)
    best: tuple[float, Int64] | None = None
    for start in range(STARTS):
        centers, group = kmeans2(data, count, minit="++", rng=np.random.default_rng(start), missing="warn")
        spread = float(((data - centers[group]) ** 2).sum())
        if best is None or spread < best[0]:
            best = spread, group.astype(np.int64)
    assert best is not None
    return best[1]


def drawn_groups(encoder: Encoder, latents_NZ: NDArray[np.float32], count: int) -> Int64:
    """Part latents by k-means of what they draw upright, looked at around the middle.

    How far apart two latents lie is the model's choice, as any smooth map of them would do as well; how
    unlike what they draw is not.
    """
    drawn = encoder.decode(latents_NZ)
    edge = drawn.shape[2]
    from_middle = (np.arange(edge) - (edge - 1) / 2) / (edge / 2)
    square = from_middle[:, None] ** 2 + from_middle**2
    return groups_of((drawn * np.exp(-square / (2 * LOOKED_AT**2))).reshape(len(drawn), -1), count)


def mixture_groups(latents_NZ: NDArray[np.floating], count: int) -> Int64:
    """Part latents by a mixture of Gaussians of any shape, the likeliest of ten starts.

    Each start takes k-means++ centres and unit covariances; the latents are brought to unit variance first.
    """
    data = np.asarray(latents_NZ, dtype=np.float64)
    data = (data - data.mean(0)) / np.maximum(data.std(0), 1e-12)
    fits = [_fit(data, count, np.random.default_rng(start)) for start in range(STARTS)]
    _, responsibility_NK = max(fits, key=lambda fit: fit[0])
    groups: Int64 = responsibility_NK.argmax(1).astype(np.int64)
    return groups


def _fit(data_NZ: Float64, count: int, rng: np.random.Generator) -> tuple[float, Float64]:
    """Expectation and maximisation until nothing changes; likelihood and who belongs where."""
    _, group = kmeans2(data_NZ, count, iter=3, minit="++", rng=rng, missing="warn")
    responsibility_NK = np.eye(count)[group]
    before = -np.inf
    for _ in range(ROUNDS):
        log_NK = _log_densities(data_NZ, responsibility_NK)
        total_N = logsumexp(log_NK, axis=1)
        responsibility_NK = np.exp(log_NK - total_N[:, None])
        likelihood = float(total_N.mean())
        if likelihood - before < 1e-5:
            break
        before = likelihood
    return likelihood, responsibility_NK


def _log_densities(data_NZ: Float64, responsibility_NK: Float64) -> Float64:
    """Log of weight times density of each group, fitted to those that belong to it, shape ``(n, k)``."""
    n, dims = data_NZ.shape
    columns = []
    for share_N in responsibility_NK.T:
        weight = share_N.sum() + 1e-9
        middle = share_N @ data_NZ / weight
        centred = data_NZ - middle
        covariance = (share_N[:, None] * centred).T @ centred / weight + SMALLEST_VARIANCE * np.eye(dims)
        root = np.linalg.cholesky(covariance)
        away = np.linalg.solve(root, centred.T)
        log_root = np.log(np.diag(root)).sum()
        columns.append(np.log(weight / n) - log_root - 0.5 * (away**2).sum(0) - dims / 2 * np.log(2 * np.pi))
    return np.stack(columns, axis=1)
