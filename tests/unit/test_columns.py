"""Columns drawn at known places are found there, and rows that were moved are measured."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.row_jitter import hum_seen
from streamer.observers.columns import (
    COUNTS,
    ColumnFits,
    NoiseModel,
    drawn_px,
    fit_columns,
    fitted_sigma,
    noise_model,
    row_offsets,
    row_reach,
)

Array = NDArray[np.float64]
SIGMA = 1.9
SHAPE = (192, 192)


def grid(step: float = 14.3, shape: tuple[int, int] = SHAPE) -> Array:
    """Places on a square grid that meets the pixels everywhere between them."""
    row, col = np.meshgrid(
        np.arange(10, shape[0] - 9, step), np.arange(10, shape[1] - 9, step), indexing="ij"
    )
    return np.stack([row.ravel(), col.ravel()], axis=1)


def drawn(
    places: Array, height: float = 60.0, level: float = 6.0, jitter: Array | None = None, sigma: float = SIGMA
) -> Array:
    """Expected counts; row r was recorded at ``(r, c) + jitter[:, r]``."""
    jitter = np.zeros((2, SHAPE[0])) if jitter is None else jitter
    row = np.arange(SHAPE[0])[:, None] + jitter[0][:, None] + np.zeros(SHAPE[1])
    col = np.arange(SHAPE[1])[None, :] + jitter[1][:, None]
    image = np.full(SHAPE, level)
    for place in places:
        near = (np.abs(row - place[0]) < 12) & (np.abs(col - place[1]) < 12)
        distance2 = (row[near] - place[0]) ** 2 + (col[near] - place[1]) ** 2
        image[near] += height * np.exp(-distance2 / (2 * sigma**2))
    return image


def counted(expected: Array, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).poisson(expected).astype(np.float32)


def near(places: Array, seed: int, by_px: float = 0.3) -> Array:
    return places + np.random.default_rng(seed).normal(0, by_px, places.shape)


def errors(fits: ColumnFits, places: Array) -> Array:
    error: Array = (fits.positions_px - places)[fits.good]
    return error


def test_a_column_without_noise_is_found_wherever_it_lies_between_the_pixels() -> None:
    places = grid()
    fits = fit_columns(drawn(places).astype(np.float32), near(places, 1), SIGMA, iterations=5)
    assert fits.good.all()
    assert np.abs(errors(fits, places)).max() < 0.002
    np.testing.assert_allclose(fits.amplitude, 60, rtol=0.01)
    np.testing.assert_allclose(fits.background, 6, rtol=0.05)


def test_neighbours_that_overlap_do_not_draw_a_column_towards_them() -> None:
    places = grid(step=6.2)
    fits = fit_columns(drawn(places).astype(np.float32), near(places, 2, 0.2), SIGMA, iterations=12)
    inside = np.all((places > 20) & (places < 170), axis=1)
    assert np.abs((fits.positions_px - places)[inside]).max() < 0.02


@pytest.mark.parametrize(("height", "level"), [(12.0, 1.5), (60.0, 6.0)])
def test_the_variance_says_how_far_columns_are_from_the_truth(height: float, level: float) -> None:
    places = grid(step=11.3)
    fits = fit_columns(counted(drawn(places, height, level), 3), near(places, 4), SIGMA, iterations=3)
    z = errors(fits, places) / np.sqrt(fits.variance_px2[fits.good])
    assert fits.good.mean() > 0.98
    assert 0.85 < z.std() < 1.15
    assert np.abs(errors(fits, places).mean(axis=0)).max() < 0.03


def test_a_gap_in_the_lattice_is_not_taken_for_a_column() -> None:
    places = grid()
    present = np.arange(len(places)) % 9 != 4
    fits = fit_columns(counted(drawn(places[present]), 5), places, SIGMA)
    assert fits.good[present].mean() > 0.98
    assert fits.good[~present].sum() <= 1


def test_a_frame_without_columns_gives_no_good_ones() -> None:
    fits = fit_columns(counted(np.full(SHAPE, 6.0), 6), grid(), SIGMA)
    assert fits.good.sum() <= 2
    assert not fit_columns(np.zeros(SHAPE, dtype=np.float32), grid(), SIGMA).good.any()


def test_guesses_outside_of_the_frame_are_not_good() -> None:
    outside = np.array([[-5.0, 20.0], [20.0, 500.0], [1e9, 1e9]])
    fits = fit_columns(counted(drawn(grid()), 7), outside, SIGMA)
    assert not fits.good.any()


def test_a_single_column_at_the_border_is_fitted_with_the_part_that_is_seen() -> None:
    place = np.array([[2.3, 100.4]])
    fits = fit_columns(counted(drawn(place, 200.0), 8), place + 0.3, SIGMA, iterations=4)
    assert fits.good.all()
    assert np.abs(errors(fits, place)).max() < 0.3


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma_px is 0"):
        fit_columns(np.zeros(SHAPE, dtype=np.float32), grid(), 0)
    with pytest.raises(ValueError, match="iterations is 0"):
        fit_columns(np.zeros(SHAPE, dtype=np.float32), grid(), SIGMA, iterations=0)


def test_the_width_is_found_from_a_wrong_one() -> None:
    places = grid()
    image = counted(drawn(places, sigma=2.4), 9)
    sigma = 1.8
    for _ in range(3):
        fits = fit_columns(image, places, sigma, iterations=4)
        sigma = fitted_sigma(image, fits, sigma)
    assert sigma == pytest.approx(2.4, rel=0.02)


def test_the_width_of_no_column_is_refused() -> None:
    image = np.zeros(SHAPE, dtype=np.float32)
    with pytest.raises(ValueError, match="no column is good"):
        fitted_sigma(image, fit_columns(image, grid(), SIGMA), SIGMA)


def test_counts_are_recognised_by_their_noise() -> None:
    assert noise_model(counted(drawn(grid()), 10)) == COUNTS


def test_the_gain_of_an_image_that_is_not_counts_is_measured() -> None:
    counts = counted(drawn(grid(step=9.1), 80.0, 20.0), 11)
    noise = noise_model(3.5 * counts - 40)
    assert noise.gain == pytest.approx(3.5, rel=0.2)
    dark = noise_model(-counts)
    assert dark.gain == pytest.approx(-1, rel=0.2)


def test_the_unit_of_the_image_changes_neither_place_nor_variance() -> None:
    places = grid(step=9.1)
    counts = counted(drawn(places, 80.0, 20.0), 12)
    plain = fit_columns(counts, places, SIGMA, 3)
    scaled = 0.02 * counts - 3
    other = fit_columns(scaled, places, SIGMA, 3, noise=noise_model(scaled))
    np.testing.assert_allclose(other.positions_px, plain.positions_px, atol=0.05)
    ratio = np.median(other.variance_px2 / plain.variance_px2)
    assert 0.8 < ratio < 1.25


def test_an_image_without_noise_has_a_noise_model_that_can_be_used() -> None:
    noise = noise_model(np.full(SHAPE, 4.0, dtype=np.float32))
    assert noise.floor > 0
    fits = fit_columns(drawn(grid()).astype(np.float32), grid(), SIGMA, noise=NoiseModel(1.0, 0.0, 1.0))
    assert fits.good.all()


# -- columns whose images overlap: 2.8 sigma from their neighbours ---------------------------------

WIDE = 4.0


def honeycomb(margin_px: float, bond_px: float = 11.3) -> Array:
    """Places of a turned honeycomb on the frame and up to a margin around it."""
    turn = np.deg2rad(7.0)
    first, second = (
        bond_px * np.sqrt(3) * np.array([np.sin(turn + at), np.cos(turn + at)]) for at in (0.0, np.pi / 3)
    )
    cell = np.arange(-30, 31)
    corners = (cell[:, None, None] * first + cell[None, :, None] * second).reshape(-1, 2) + 95.2
    places = np.concatenate([corners, corners + (first + second) / 3])
    return places[np.all((places > -margin_px) & (places < np.array(SHAPE) - 1 + margin_px), axis=1)]


def overlapping(
    places: Array, seed: int | None, jitter: Array | None = None, heights: Array | None = None
) -> NDArray[np.float32]:
    """Counts of wide columns, those beyond the edges included; expected ones without a seed."""
    jitter = np.zeros((2, SHAPE[0])) if jitter is None else jitter
    heights = np.full(len(places), 60.0) if heights is None else heights
    image = np.full(SHAPE, 13.0)
    for place, height in zip(places, heights, strict=True):
        down = np.exp(-((np.arange(SHAPE[0]) + jitter[0] - place[0]) ** 2) / (2 * WIDE**2))
        along = np.arange(SHAPE[1])[None, :] + jitter[1][:, None] - place[1]
        image += height * down[:, None] * np.exp(-(along**2) / (2 * WIDE**2))
    return image.astype(np.float32) if seed is None else counted(image, seed)


def test_columns_that_overlap_are_found_at_the_edge_as_well_as_inside() -> None:
    places = honeycomb(40.0)
    image = overlapping(places, 40)
    reach = drawn_px(WIDE)
    known = places[np.all((places > -reach) & (places < np.array(SHAPE) - 1 + reach), axis=1)]
    fits = fit_columns(image, near(known, 41), WIDE, likely_heights=np.ones(len(known)))
    off = (fits.positions_px - known)[fits.good]
    at_edge = np.any((known < 12) | (known > SHAPE[0] - 13), axis=1)[fits.good]
    assert fits.good.sum() > 0.97 * np.all((known > 1) & (known < SHAPE[0] - 2), axis=1).sum()
    assert at_edge.sum() > 40
    assert off[~at_edge].std() < 0.14
    assert off[at_edge].std() < 0.19
    np.testing.assert_allclose(off.mean(axis=0), 0.0, atol=0.02)


def test_a_bright_and_a_missing_column_do_not_displace_those_that_they_overlap() -> None:
    places = honeycomb(40.0)
    heights = np.full(len(places), 60.0)
    middle = np.argsort(np.hypot(*(places - 95.0).T))
    odd = middle[[0, 40]]
    heights[odd] = (0.0, 300.0)
    image = overlapping(places, None, heights=heights)
    fits = fit_columns(image, near(places, 43), WIDE, iterations=8, likely_heights=np.ones(len(places)))
    beside = np.min(np.hypot(*(places[:, None] - places[odd]).transpose(2, 0, 1)), axis=1)
    touched = (beside > 0) & (beside < 14)
    assert touched.sum() == 6
    assert np.abs((fits.positions_px - places)[touched]).max() < 0.02
    assert not fits.good[odd[0]]
    np.testing.assert_allclose(fits.amplitude[odd[1]], 300.0, rtol=0.01)


def test_rows_are_measured_where_columns_overlap() -> None:
    places, jitter = honeycomb(40.0), jittered(44, (0.0, 0.3))
    image = overlapping(places, 45, jitter)
    fits = fit_columns(image, places, WIDE, likely_heights=np.ones(len(places)))
    rows = row_offsets(image, fits, places, WIDE, overlap=True)
    error = rows.offsets - jitter
    assert error[1].std() < 0.5 * jitter[1].std()
    assert not rows.offsets[0].any()
    np.testing.assert_allclose(rows.spread[1], 0.3, rtol=0.2)
    z = error[1, 8:-8] / np.sqrt(rows.variance[1, 8:-8])
    assert 0.75 < z.std() < 1.35


def test_no_row_is_moved_where_columns_overlap_and_rows_are_at_rest() -> None:
    places = honeycomb(40.0)
    for seed in range(3):
        image = overlapping(places, 50 + seed)
        fits = fit_columns(image, places, WIDE, likely_heights=np.ones(len(places)))
        assert not row_offsets(image, fits, places, WIDE, overlap=True).offsets.any()


def jittered(seed: int, spread: tuple[float, float] = (0.1, 0.25)) -> Array:
    return np.random.default_rng(seed).normal(0, 1, (2, SHAPE[0])) * np.array(spread)[:, None]


def test_rows_that_were_moved_are_measured_with_their_sign_and_error() -> None:
    places, jitter = grid(step=11.3), jittered(13)
    image = counted(drawn(places, jitter=jitter), 14)
    fits = fit_columns(image, places, SIGMA)
    rows = row_offsets(image, fits, places, SIGMA)
    inside = slice(8, -8)
    error = (rows.offsets - jitter)[:, inside]
    assert error[1].std() < 0.65 * jitter[1].std()
    assert error[0].std() < 0.95 * jitter[0].std()
    z = error / np.sqrt(rows.variance[:, inside])
    assert np.all((z.std(axis=1) > 0.75) & (z.std(axis=1) < 1.35))
    np.testing.assert_allclose(rows.spread, (0.1, 0.25), rtol=0.35)


def test_large_jitter_needs_the_second_look() -> None:
    places, jitter = grid(step=11.3), jittered(15, (0.0, 0.9))
    image = counted(drawn(places, 6000.0, jitter=jitter), 16)
    fits = fit_columns(image, places, SIGMA)
    once, twice = (row_offsets(image, fits, places, SIGMA, passes=passes) for passes in (1, 2))
    off = [np.median(np.abs(rows.offsets - jitter)[1, 8:-8]) for rows in (once, twice)]
    assert off[1] < 0.5 * off[0]


def test_where_no_row_was_moved_none_is_corrected() -> None:
    places = grid(step=11.3)
    for seed in range(4):
        image = counted(drawn(places), 20 + seed)
        rows = row_offsets(image, fit_columns(image, places, SIGMA), places, SIGMA)
        assert not rows.offsets.any()
        assert not rows.spread.any()


def test_what_is_known_of_the_rows_is_not_measured_again() -> None:
    hum = 0.4 * np.sin(2 * np.pi * np.arange(SHAPE[0]) / 15.2)
    known = np.stack([0 * hum, hum])
    places = grid(step=11.3)
    seen = places.copy()
    for _ in range(6):
        seen[:, 1] = places[:, 1] - np.interp(seen[:, 0], np.arange(SHAPE[0]), hum)
    image = counted(drawn(places, jitter=known), 30)
    fits = fit_columns(image, seen, SIGMA)
    assert not row_offsets(image, fits, seen, SIGMA, rows_px=known).offsets[1].any()
    assert row_offsets(image, fits, seen, SIGMA).offsets[1].any()


def test_without_columns_no_row_is_moved() -> None:
    image = counted(np.full(SHAPE, 6.0), 31)
    rows = row_offsets(image, fit_columns(image, grid(), SIGMA), grid(), SIGMA)
    assert not rows.offsets.any()
    assert np.isfinite(rows.variance).all()


@pytest.mark.parametrize("level", [3.0, 60.0, 3000.0])
def test_what_a_fit_sees_of_a_hum_is_foreseen_whatever_the_background(level: float) -> None:
    """Heights of 60 counts and no noise at all: the fits' own weights say what a column averages over."""
    places = grid(step=11.3)
    angle = 2 * np.pi / 12.0
    hum = 0.02 * np.cos(angle * np.arange(SHAPE[0]))
    fits = fit_columns(drawn(places, 60.0, level, np.stack([hum, hum])).astype(np.float32), places, SIGMA)
    reach = row_reach(fits, SIGMA)
    at = np.exp(1j * angle * places[:, 0])
    seen = -(fits.positions_px - places).T @ at.conj() * 2 / len(places) / 0.02
    expected = hum_seen(angle * SIGMA * reach[0], angle * SIGMA * reach[1])
    np.testing.assert_allclose(np.abs(seen), expected, atol=0.05)
    if level == 3.0:  # as if all pixels were alike
        assert np.abs(np.abs(seen) - hum_seen(angle * SIGMA, angle * SIGMA)).min() > 0.06


def test_without_a_good_column_a_fit_averages_as_it_is_taken_to() -> None:
    fits = fit_columns(counted(np.full(SHAPE, 6.0), 31), grid(), SIGMA)
    assert not fits.good.any()
    assert row_reach(fits, SIGMA) == (1.0, 1.0)
