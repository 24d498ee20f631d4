"""Columns drawn at known places are fitted there, as exactly as the counts allow, and each says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.column_fit import JointFit, NoiseLaw, fit_jointly, likeliest_sigma

Array = NDArray[np.float64]
SIGMA = 3.0
SHAPE = (110, 118)
COUNTS = NoiseLaw()


def square(step: float, shape: tuple[int, int] = SHAPE, beyond: float = 0.0) -> Array:
    """Places on a grid a little turned, so that it meets the pixels everywhere between them."""
    i, j = np.meshgrid(np.arange(-40, 41), np.arange(-40, 41), indexing="ij")
    turn = np.array([[math.cos(0.13), math.sin(0.13)], [-math.sin(0.13), math.cos(0.13)]])
    places: Array = step * np.stack([i.ravel(), j.ravel()], axis=1) @ turn + np.array(shape) / 2
    return places[inside(places, -beyond, shape)]


def inside(places: Array, margin: float, shape: tuple[int, int] = SHAPE) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = np.all((places >= margin) & (places <= np.array(shape) - 1 - margin), axis=1)
    return kept


def drawn(
    places: Array, heights: Array, level: float = 6.0, sigma: float = SIGMA, shape: tuple[int, int] = SHAPE
) -> Array:
    """Expected counts."""
    down, along = (
        np.exp(-((np.arange(n) - places[:, axis, None]) ** 2) / (2 * sigma**2))
        for axis, n in enumerate(shape)
    )
    image: Array = level + (down * heights[:, None]).T @ along
    return image


def counted(expected: Array, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.poisson(expected).astype(np.float32)


def bound(places: Array, heights: Array, level: float = 6.0, sigma: float = SIGMA) -> Array:
    """Smallest covariance of each place that counts allow, all else unknown, from the whole information."""
    down, along = (
        np.exp(-((np.arange(n) - places[:, axis, None]) ** 2) / (2 * sigma**2))
        for axis, n in enumerate(SHAPE)
    )
    far = [(np.arange(n) - places[:, axis, None]) / sigma**2 for axis, n in enumerate(SHAPE)]
    parts = [
        (heights[:, None] * down * far[0], along),
        (heights[:, None] * down, along * far[1]),
        (down, along),
    ]
    slopes = [np.einsum("nr,nc->nrc", *part).reshape(len(places), -1) for part in parts]
    slopes.append(np.ones((1, math.prod(SHAPE))))
    all_slopes = np.concatenate(slopes)
    weight = 1 / drawn(places, heights, level, sigma).ravel()
    covariance = np.linalg.inv((all_slopes * weight) @ all_slopes.T)
    n = len(places)
    own = np.arange(n)
    return np.stack([[covariance[own + a * n, own + b * n] for a in (0, 1)] for b in (0, 1)]).transpose(
        2, 0, 1
    )


def z_score(fit: JointFit, places: Array, which: NDArray[np.bool_]) -> float:
    """RMS of the errors in units of what is said of them; 1 where it is true."""
    error = (fit.positions_px - places)[which]
    squares = np.einsum("ni,nij,nj->n", error, np.linalg.inv(fit.covariance_px2[which]), error)
    return math.sqrt(float(squares.mean()) / 2)


@pytest.mark.parametrize("step", [30.0, 12.0, 9.0])
def test_errors_reach_the_bound_of_the_counts_and_are_said(step: float) -> None:
    rng = np.random.default_rng(1)
    places = square(step, beyond=10.0)
    heights = 60 * np.exp(rng.normal(0, 0.15, len(places)))
    judged = inside(places, 2 * SIGMA)
    expected = drawn(places, heights)
    errors, scores = [], []
    for _ in range(600 // np.count_nonzero(judged) + 3):
        near = places + rng.normal(0, 0.1 * SIGMA, places.shape)
        fit = fit_jointly(counted(expected, rng), near, np.full(len(places), 40.0), (SIGMA, SIGMA), COUNTS)
        errors.append((fit.positions_px - places)[judged])
        scores.append(z_score(fit, places, judged))
    least = bound(places, heights)[judged]
    ratio = math.sqrt(float(np.mean(np.square(errors))) / (float(np.einsum("nii->n", least).mean()) / 2))
    assert 0.92 < ratio < 1.1
    assert 0.9 < math.sqrt(float(np.mean(np.square(scores)))) < 1.1


def test_without_noise_places_heights_and_background_are_exact() -> None:
    places = square(14.0)
    heights = np.linspace(40, 80, len(places))
    image = drawn(places, heights, level=20.0).astype(np.float32)
    near = places + np.random.default_rng(2).normal(0, 0.3, places.shape)
    fit = fit_jointly(
        image, near, np.ones(len(places)), (SIGMA, SIGMA), COUNTS, is_width_free=False, iterations=6
    )
    whole = inside(places, 3 * SIGMA)
    assert fit.good.all()
    np.testing.assert_allclose(fit.positions_px[whole], places[whole], atol=0.01)
    np.testing.assert_allclose(fit.amplitude[whole], heights[whole], rtol=0.02)
    np.testing.assert_allclose(fit.background[whole], 20.0, atol=0.7)


def test_the_common_width_is_found_from_a_third_off_where_columns_overlap() -> None:
    places = square(9.0, beyond=9.0)
    image = counted(drawn(places, np.full(len(places), 60.0)), np.random.default_rng(3))
    sigma = likeliest_sigma(image, places, np.ones(len(places)), (2.0, 2.0))
    assert sigma == pytest.approx((SIGMA, SIGMA), rel=0.08)


def test_the_common_width_is_fitted() -> None:
    places = square(14.0)
    image = counted(drawn(places, np.full(len(places), 60.0)), np.random.default_rng(4))
    fit = fit_jointly(image, places, np.ones(len(places)), (0.9 * SIGMA, 0.9 * SIGMA), COUNTS)
    assert fit.sigma_px[0] == pytest.approx(SIGMA, rel=0.05)


def test_two_threads_give_the_bits_of_one() -> None:
    places = square(9.0)
    image = counted(drawn(places, np.full(len(places), 60.0)), np.random.default_rng(6))
    near = places[::-1] + 0.4
    one, two = (
        fit_jointly(image, near, np.ones(len(places)), (2.7, 2.7), COUNTS, threads=threads)
        for threads in (1, 2)
    )
    for name in ("positions_px", "covariance_px2", "amplitude", "background", "chi2", "sigma_px"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    sigmas = [
        likeliest_sigma(image, near, np.ones(len(places)), (2.7, 2.7), threads=threads) for threads in (1, 2)
    ]
    assert sigmas[0] == sigmas[1]


def test_columns_come_back_in_the_order_of_their_candidates() -> None:
    places = square(14.0)
    image = counted(drawn(places, np.full(len(places), 60.0)), np.random.default_rng(8))
    order = np.random.default_rng(9).permutation(len(places))
    fit = fit_jointly(image, places[order], np.ones(len(places)), (SIGMA, SIGMA), COUNTS)
    assert np.abs(fit.positions_px - places[order]).max() < SIGMA


def test_columns_beyond_the_edge_do_not_draw_those_inside() -> None:
    rng = np.random.default_rng(5)
    all_places = square(9.0, beyond=12.0)
    expected = drawn(all_places, np.full(len(all_places), 60.0))
    places = square(9.0)
    at_edge = inside(places, 4.0) & ~inside(places, 8.0)
    errors = [
        (
            fit_jointly(counted(expected, rng), places, np.full(len(places), 60.0), (SIGMA, SIGMA), COUNTS)
            .positions_px - places
        )[at_edge]
        for _ in range(4)
    ]  # fmt: skip
    assert np.abs(np.mean(errors, axis=0)).max() < 1.0
    assert math.sqrt(float(np.mean(np.square(errors)))) < 0.6


def test_dead_hot_and_missing_pixels_do_not_throw_columns_off() -> None:
    places = square(14.0)
    heights = np.full(len(places), 60.0)
    image = counted(drawn(places, heights), np.random.default_rng(7))
    clean = fit_jointly(image, places, heights, (SIGMA, SIGMA), COUNTS)
    spoilt = image.copy()
    spoilt[40, 41], spoilt[52, 77], spoilt[80, 20] = 6e4, 0.0, np.nan
    spoilt[61, :] = np.inf
    fit = fit_jointly(spoilt, places, heights, (SIGMA, SIGMA), COUNTS)
    sd = np.sqrt(np.einsum("nii->n", fit.covariance_px2) / 2)
    assert np.isfinite(fit.positions_px).all()
    assert (np.hypot(*(fit.positions_px - clean.positions_px).T) < 4 * sd).all()
    assert np.hypot(*(fit.positions_px - clean.positions_px).T).max() < 0.6


def test_two_columns_taken_for_one_are_doubted_and_leave_the_others_alone() -> None:
    places = square(16.0)
    pair = int(np.argmin(np.hypot(*(places - np.array(SHAPE) / 2).T)))
    heights = np.full(len(places), 60.0)
    twin = places[pair] + np.array([4.0, 4.0])
    image = counted(drawn(np.vstack([places, twin]), np.append(heights, 60.0)), np.random.default_rng(9))
    whole = counted(drawn(places, heights), np.random.default_rng(9))
    fit, alone = (fit_jointly(one, places, heights, (SIGMA, SIGMA), COUNTS) for one in (image, whole))
    others = np.arange(len(places)) != pair
    assert np.abs(fit.positions_px - places)[others].max() < 0.6
    variance, usual = (float(np.trace(each.covariance_px2[pair])) for each in (fit, alone))
    assert not fit.good[pair] or variance > 2 * usual


def test_a_candidate_without_a_column_stays_where_it_is_and_is_not_sure() -> None:
    places = square(16.0)
    heights = np.full(len(places), 60.0)
    image = counted(drawn(places, heights), np.random.default_rng(11))
    nothing = places.mean(axis=0) + np.array([8.0, 8.0])
    fit = fit_jointly(image, np.vstack([places, nothing]), np.append(heights, 60.0), (SIGMA, SIGMA), COUNTS)
    assert fit.amplitude[-1] < 15
    assert np.trace(fit.covariance_px2[-1]) > 10 * np.median(np.einsum("nii->n", fit.covariance_px2))
    assert np.hypot(*(fit.positions_px[-1] - nothing)) < 1.5 * SIGMA


def test_more_counts_make_positions_surer() -> None:
    places = square(14.0)
    rng = np.random.default_rng(13)
    dim, bright = (
        fit_jointly(counted(drawn(places, np.full(len(places), h)), rng), places, np.ones(len(places)),
                    (SIGMA, SIGMA), COUNTS)
        for h in (30.0, 300.0)
    )  # fmt: skip
    assert np.median(bright.covariance_px2[:, 0, 0]) < 0.2 * np.median(dim.covariance_px2[:, 0, 0])


def test_an_image_in_another_unit_gives_the_same_places() -> None:
    places = square(14.0)
    image = counted(drawn(places, np.full(len(places), 60.0)), np.random.default_rng(15))
    one = fit_jointly(image, places, np.ones(len(places)), (SIGMA, SIGMA), COUNTS)
    law = NoiseLaw(constant=-0.04 * 3.0, gain=0.04, floor=0.1 * 0.04**2)
    other = fit_jointly(0.04 * image + 3.0, places, np.ones(len(places)), (SIGMA, SIGMA), law)
    np.testing.assert_allclose(other.positions_px, one.positions_px, atol=2e-3)
    np.testing.assert_allclose(other.covariance_px2, one.covariance_px2, rtol=0.02, atol=1e-6)


def test_pixels_that_are_not_square_are_two_widths() -> None:
    places = square(20.0)
    down = np.exp(-((np.arange(SHAPE[0]) - places[:, 0, None]) ** 2) / (2 * 4.0**2))
    along = np.exp(-((np.arange(SHAPE[1]) - places[:, 1, None]) ** 2) / (2 * 2.0**2))
    image = (5 + 80 * down.T @ along).astype(np.float32)
    fit = fit_jointly(image, places + 0.3, np.ones(len(places)), (4.0, 2.0), COUNTS, iterations=4)
    whole = inside(places, 10.0)
    np.testing.assert_allclose(fit.positions_px[whole], places[whole], atol=0.02)
    assert np.median(fit.covariance_px2[:, 0, 0]) > 2 * np.median(fit.covariance_px2[:, 1, 1])


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (40, 3)])
def test_the_smallest_images_will_do(shape: tuple[int, int]) -> None:
    image = np.ones(shape, dtype=np.float32)
    fit = fit_jointly(image, np.array([[0.0, 0.0]]), np.ones(1), (1.0, 1.0), COUNTS)
    assert np.isfinite(fit.positions_px).all()
    assert np.isfinite(fit.covariance_px2).all()


@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan])
def test_a_constant_or_missing_image_gives_its_candidates_back(fill: float) -> None:
    image = np.full(SHAPE, fill, dtype=np.float32)
    places = square(20.0)
    fit = fit_jointly(image, places, np.ones(len(places)), (SIGMA, SIGMA), COUNTS)
    assert np.abs(fit.positions_px - places)[inside(places, 2 * SIGMA)].max() < 0.1
    assert np.isfinite(fit.covariance_px2).all()


def test_no_candidates_are_no_columns() -> None:
    fit = fit_jointly(np.ones(SHAPE, dtype=np.float32), np.empty((0, 2)), np.empty(0), (2.0, 2.0), COUNTS)
    assert fit.positions_px.shape == (0, 2)
    assert fit.covariance_px2.shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image": np.ones((3, 4, 5), np.float32)}, r"image has shape \(3, 4, 5\)"),
        ({"heights": np.ones(2)}, "heights has shape"),
        ({"sigma_px": (0.0, 1.0)}, "sigma_px is"),
        ({"candidates_px": np.full((3, 2), np.nan)}, "not finite"),
        ({"iterations": 0}, "iterations is 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(change: dict[str, object], text: str) -> None:
    given = {
        "image": np.ones(SHAPE, np.float32), "candidates_px": np.ones((3, 2)), "heights": np.ones(3),
        "sigma_px": (2.0, 2.0), "noise": COUNTS,
    }  # fmt: skip
    with pytest.raises(ValueError, match=text):
        fit_jointly(**(given | change))  # type: ignore[arg-type]


def test_a_variance_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="floor must be above 0"):
        NoiseLaw(constant=1.0, gain=0.0, floor=0.0)
