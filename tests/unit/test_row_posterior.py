"""Banded algebra gives what full matrices give."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.observers.row_posterior import likeliest_variance, posterior, product

Array = NDArray[np.float64]
ROWS, WIDTH = 60, 5


def information(seed: int) -> tuple[Array, Array]:
    """A banded matrix that columns could have given, as it is and as a band."""
    rng = np.random.default_rng(seed)
    full = np.zeros((ROWS, ROWS))
    for start in rng.integers(0, ROWS - WIDTH + 1, 300):
        said = rng.normal(0, 8.0, (WIDTH, 3))
        full[start : start + WIDTH, start : start + WIDTH] += said @ said.T
    band = np.zeros((WIDTH, ROWS))
    for k in range(WIDTH):
        band[k, : ROWS - k] = np.diagonal(full, -k)
    return full, band


@pytest.mark.parametrize("spread", [0.003, 0.1, 2.0])
def test_mean_and_variance_are_those_of_the_full_matrix(spread: float) -> None:
    full, band = information(2)
    score = np.random.default_rng(4).normal(0, 30.0, ROWS)
    mean, variance = posterior(band, score, spread**2)
    covariance = np.linalg.inv(full + np.eye(ROWS) / spread**2)
    np.testing.assert_allclose(mean, covariance @ score, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(variance, covariance.diagonal(), rtol=1e-8)
    np.testing.assert_allclose(product(band, mean), full @ mean, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.5])
def test_the_spread_of_the_offsets_is_found(spread: float) -> None:
    found = []
    for seed in range(6, 26):
        full, band = information(seed)
        rng = np.random.default_rng(100 + seed)
        offsets = rng.normal(0, spread, ROWS)
        score = full @ offsets + np.linalg.cholesky(full + 1e-9 * np.eye(ROWS)) @ rng.normal(0, 1, ROWS)
        found.append(likeliest_variance(band, score))
    assert np.mean(found) == pytest.approx(spread**2, rel=0.15)


def test_steps_from_frame_to_frame_end_at_the_likeliest_spread() -> None:
    full, band = information(70)
    score = full @ np.random.default_rng(71).normal(0, 0.1, ROWS)
    searched, stepped = likeliest_variance(band, score), 0.1
    for _ in range(30):
        stepped = likeliest_variance(band, score, stepped)
    assert stepped == pytest.approx(searched, rel=0.1)


def test_noise_alone_is_no_spread() -> None:
    found = []
    for seed in range(30, 60):
        full, band = information(seed)
        noise = np.random.default_rng(200 + seed).normal(0, 1, ROWS)
        found.append(likeliest_variance(band, np.linalg.cholesky(full + 1e-9 * np.eye(ROWS)) @ noise))
    assert np.count_nonzero(found) <= 1
    assert not any(array.any() for array in posterior(band, np.ones(ROWS), 0.0))


def test_a_row_of_which_nothing_is_said_has_the_variance_of_all() -> None:
    _, band = information(60)
    for k in range(WIDTH):
        band[k, 20 - k : 21] = 0
    band[:, 20] = 0
    score = np.ones(ROWS)
    score[20] = 0
    mean, variance = posterior(band, score, 0.01)
    assert (mean[20], variance[20]) == (0.0, pytest.approx(0.01))
    assert (np.delete(variance, 20) < 0.01).all()
