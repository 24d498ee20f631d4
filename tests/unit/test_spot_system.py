"""The columns' equations are solved as a dense solver would, and neighbours are those within reach."""

from __future__ import annotations

import numpy as np
import pytest

from models.spot_system import in_bands, marginal, neighbours, solved


@pytest.mark.parametrize("reach", [0.7, 3.0, 40.0])
def test_neighbours_are_all_that_are_within_reach(reach: float) -> None:
    rng = np.random.default_rng(1)
    places = rng.uniform(-5, 30, (150, 2))
    places = places[in_bands(places, reach)]
    first, other, back = neighbours(places, reach)
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    for i in range(len(places)):
        mine = other[first[i] : first[i + 1]]
        assert sorted(mine) == list(np.flatnonzero(apart[i] <= reach))
        assert all(other[back[first[i] : first[i + 1]]] == i)
    np.testing.assert_array_equal(back[back], np.arange(len(other)))


def test_steps_solve_the_whole_system_with_the_width() -> None:
    rng = np.random.default_rng(2)
    places = rng.uniform(0, 10, (40, 2))
    places = places[in_bands(places, 2.0)]
    first, other, _ = neighbours(places, 2.0)
    n = len(places)
    slopes = rng.normal(size=(4 * n, 3 * n + 1)) * np.sqrt(0.02)
    whole = slopes.T @ slopes + np.eye(3 * n + 1) * 3
    info = np.stack([whole[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] for i in range(n)])
    between = np.zeros((len(other), 3, 3))
    dense = np.zeros_like(whole)
    for i in range(n):
        dense[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = info[i]
        for e in range(first[i], first[i + 1]):
            j = other[e]
            between[e] = whole[3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
            dense[3 * i : 3 * i + 3, 3 * j : 3 * j + 3] = between[e]
    dense[-1] = dense[:, -1] = whole[-1]
    score = rng.normal(size=3 * n + 1)
    step, wider = solved(
        info, score[:-1].reshape(n, 3), between, first, other,
        whole[-1, :-1].reshape(n, 3), (whole[-1, -1], score[-1]), 1e-10, 200,
    )  # fmt: skip
    exact = np.linalg.solve(dense, score)
    np.testing.assert_allclose(step.ravel(), exact[:-1], atol=1e-8)
    assert wider == pytest.approx(exact[-1], abs=1e-8)


def test_a_pair_is_known_as_the_inverse_of_its_information_says() -> None:
    rng = np.random.default_rng(3)
    slopes = rng.normal(size=(30, 6))
    whole = slopes.T @ slopes
    info = np.stack([whole[:3, :3], whole[3:, 3:]])
    between = np.stack([whole[:3, 3:], whole[3:, :3]])
    first, other = np.array([0, 1, 2]), np.array([1, 0])
    covariance = np.empty((2, 3, 3))
    marginal(info, between, first, other, covariance, 0, 2)
    exact = np.linalg.inv(whole)
    np.testing.assert_allclose(covariance, np.stack([exact[:3, :3], exact[3:, 3:]]), rtol=1e-9)
