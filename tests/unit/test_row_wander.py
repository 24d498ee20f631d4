"""Rows that wander together are told from rows that only seem to."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.observers.row_wander import settled


def wander(rng: np.random.Generator, rows: int, sd: float, length: float) -> NDArray[np.float64]:
    keep = np.exp(-1 / length)
    path = [rng.normal(0, sd)]
    for _ in range(rows - 1):
        path.append(keep * path[-1] + np.sqrt(1 - keep**2) * rng.normal(0, sd))
    return np.array(path)


def test_a_wander_below_the_noise_of_a_row_is_found_by_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    truth = wander(rng, 400, 0.4, 25.0)
    found = settled(truth + rng.normal(0, 0.6, 400), np.full(400, 0.36))
    error = found.offset_px - truth
    assert np.sqrt((error**2).mean()) < 0.25
    assert 0.8 < (error / np.sqrt(found.variance_px2)).std() < 1.25
    assert found.slow_px2 > found.jitter_px2


def test_jitter_of_single_rows_is_kept_as_such() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(0, 0.5, 300)
    found = settled(truth + rng.normal(0, 0.1, 300), np.full(300, 0.01))
    assert np.sqrt(((found.offset_px - truth) ** 2).mean()) < 0.11
    assert found.jitter_px2 + found.slow_px2 == pytest.approx(0.25, rel=0.4)


def test_a_row_that_tells_nothing_lies_between_its_neighbours() -> None:
    rng = np.random.default_rng(5)
    truth = wander(rng, 200, 0.8, 60.0)
    variance = np.full(200, 0.0025)
    variance[90:95] = np.inf
    found = settled(truth + rng.normal(0, 0.05, 200), variance)
    np.testing.assert_allclose(found.offset_px[90:95], truth[90:95], atol=0.5)
    assert found.variance_px2[92] > found.variance_px2[50]


@pytest.mark.parametrize("seed", range(6))
def test_noise_moves_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert not settled(rng.normal(0, 0.3, 256), np.full(256, 0.09)).offset_px.any()


def test_one_wild_row_moves_nothing() -> None:
    measured = np.random.default_rng(7).normal(0, 0.1, 128)
    measured[40] = 3.0
    assert not settled(measured, np.full(128, 0.01)).offset_px.any()


def test_too_few_rows_say_nothing() -> None:
    variance = np.full(50, np.inf)
    variance[:7] = 1e-4
    assert not settled(np.ones(50), variance).offset_px.any()
    assert not settled(np.zeros(50), np.full(50, 0.01)).offset_px.any()


def test_one_row_that_is_surer_than_the_others_moves_nothing() -> None:
    measured, variance = np.random.default_rng(9).normal(0, 0.3, 128), np.full(128, 0.09)
    measured[40], variance[40] = 0.5, 1e-4
    assert not settled(measured, variance).offset_px.any()


def test_the_offsets_are_those_of_the_exact_posterior() -> None:
    rng = np.random.default_rng(11)
    truth = wander(rng, 80, 0.6, 10.0) + rng.normal(0, 0.3, 80)
    variance = rng.uniform(0.01, 0.1, 80)
    measured = truth + rng.normal(0, np.sqrt(variance))
    found = settled(measured, variance)
    rows = np.arange(80)
    prior = found.slow_px2 * np.exp(-np.abs(rows[:, None] - rows) / found.length_rows)
    prior += found.jitter_px2 * np.eye(80)
    posteriors = []
    for factor in (1.0, 1.2):  # what the variances may be too small by
        gain = prior @ np.linalg.inv(prior + np.diag(factor * (variance + 0.01**2)))
        posteriors.append((gain @ measured, np.diag(prior - gain @ prior)))
    away = [float(np.abs(mean - found.offset_px).max()) for mean, _ in posteriors]
    best = int(np.argmin(away))
    assert found.slow_px2 > 0
    assert away[best] < 1e-6
    np.testing.assert_allclose(found.variance_px2, posteriors[best][1], rtol=1e-6)
