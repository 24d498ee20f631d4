"""What is measured of a frame against a reference is what was put into a drawn specimen."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.observers.image_filters import displaced
from streamer.observers.registration import (
    Judgement,
    Matcher,
    RunningReference,
    judge,
    measure_rows,
    rows_as_observations,
    shrunk,
)
from tests.drawn_specimen import COLS, ROWS, columns, scan


def test_displaced_samples_a_parabola_where_it_was_asked_to() -> None:
    row, col = np.meshgrid(np.arange(20.0), np.arange(30.0), indexing="ij")
    image = (0.3 * row**2 - 0.2 * col**2 + row).astype(np.float32)
    moved = displaced(image, np.array([0.4, -1.3]))
    there = 0.3 * (row + 0.4) ** 2 - 0.2 * (col - 1.3) ** 2 + row + 0.4
    np.testing.assert_allclose(moved[4:-4, 4:-4], there[4:-4, 4:-4], atol=2e-4)


def test_displaced_by_whole_pixels_only_moves() -> None:
    image = scan()
    np.testing.assert_array_equal(displaced(image, np.array([2.0, -3.0]))[:-2, 3:], image[2:, :-3])


def test_displaced_beyond_the_edge_repeats_the_edge() -> None:
    image = scan()
    np.testing.assert_allclose(displaced(image, np.array([0.0, 5.0]))[:, -2], image[:, -1], rtol=1e-5)


def test_row_offsets_agree_with_those_that_were_drawn() -> None:
    jitter = np.random.default_rng(12).normal(0, 0.5, ROWS)
    rows = measure_rows(scan(offsets_px=jitter), scan(), np.zeros(2), 4.0)
    # Between two rows of atoms there is nothing to measure an offset by.
    brightness = scan().mean(axis=1)
    told = brightness > np.median(brightness)
    error = rows.offsets[1] + rows.mean[1] - jitter
    assert np.sqrt(np.mean(error[told] ** 2)) < 0.05
    assert np.sqrt(np.mean(error**2)) < 0.2


def test_rows_without_jitter_are_left_exactly_where_they_are() -> None:
    rng = np.random.default_rng(14)
    rows = measure_rows(scan(rng=rng), scan(rng=rng), np.zeros(2), 4.0)
    assert not rows.offsets.any()


def test_shrinking_keeps_what_is_sure_and_drops_what_is_noise() -> None:
    rng = np.random.default_rng(16)
    offsets = rng.normal(0, 1, 400)
    variance = np.where(np.arange(400) < 200, 1e-6, np.inf)
    kept = shrunk(offsets, variance)
    np.testing.assert_allclose(kept[:200], offsets[:200], rtol=1e-3)
    # Rows that tell nothing are where their neighbours say, and far from those nowhere.
    np.testing.assert_allclose(kept[220:], 0.0, atol=0.02)
    assert not shrunk(rng.normal(0, 0.1, 400), np.full(400, 0.01)).any()


def test_the_reference_averages_what_it_saw_and_takes_news_as_they_come() -> None:
    reference = RunningReference(np.zeros((4, 5), dtype=np.float32), memory_frames=8)
    reference.observe(np.full((4, 5), 2.0, dtype=np.float32), (0, 0))
    np.testing.assert_allclose(reference.predict((0, 0)), 1.0)
    # The raster moves a row down: its first row was never seen before.
    reference.observe(np.full((4, 5), 4.0, dtype=np.float32), (1, 0))
    np.testing.assert_allclose(reference.predict((1, 0))[0], 4.0)
    np.testing.assert_allclose(reference.predict((1, 0))[1:], 2.0)


def test_the_reference_forgets() -> None:
    reference = RunningReference(np.zeros((3, 3), dtype=np.float32), memory_frames=2)
    for _ in range(20):
        reference.observe(np.ones((3, 3), dtype=np.float32), (0, 0))
    assert reference.predict((0, 0)).min() > 0.999


def test_the_matcher_prefers_the_expected_one_of_equal_matches() -> None:
    row, col = np.meshgrid(np.arange(ROWS), np.arange(COLS), indexing="ij")
    waves = (np.cos(2 * np.pi * row / 16) + np.cos(2 * np.pi * col / 16)).astype(np.float32)
    matcher = Matcher((ROWS, COLS))
    for expected in ((0.0, 0.0), (16.0, 0.0), (0.0, -16.0)):
        found, match = matcher.match(waves, waves, np.array(expected), 4.0)
        np.testing.assert_allclose(found, expected, atol=0.3)
        assert match > 0.7


def test_rows_become_samples_of_the_field_with_its_sign() -> None:
    jitter = np.random.default_rng(30).normal(0, 0.5, ROWS)
    rows = measure_rows(scan((2.0, -3.0), offsets_px=jitter), scan(), np.array([2.0, -3.0]), 4.0)
    seen, left_out = rows_as_observations(rows, COLS, np.array([2.0, -3.0]))
    assert len(seen.positions_px) + left_out == ROWS
    np.testing.assert_array_equal(seen.positions_px[:, 1], (COLS - 1) / 2)
    told = seen.variance_px2[:, 1] < 0.05**2
    assert np.count_nonzero(told) > ROWS / 3
    # What appears displaced by d was recorded by a probe that stood at -d from where it was thought.
    row = seen.positions_px[told, 0].astype(int)
    np.testing.assert_allclose(seen.displacement_px[told, 1], 3.0 - jitter[row], atol=0.15)
    assert np.median(seen.displacement_px[told, 0]) == pytest.approx(-2.0, abs=0.05)


@pytest.mark.parametrize("noise", [0.1, 0.4])
def test_offsets_of_noisy_rows_have_no_bias_and_an_honest_variance(noise: float) -> None:
    scores, slopes = [], []
    for seed in (32, 34):
        rng = np.random.default_rng(seed)
        jitter = rng.normal(0, 0.5, 160)
        images = [lattice(offsets) + noise * rng.normal(size=(160, 160)) for offsets in (jitter, 0 * jitter)]
        rows = measure_rows(*(image.astype(np.float32) for image in images), np.zeros(2), 4.0)
        told = np.isfinite(rows.variance[1])
        weight = told / np.where(told, rows.variance[1] + 0.05, 1.0)
        found = rows.raw[1] + rows.mean[1]
        slopes.append((weight * found * jitter).sum() / (weight * jitter**2).sum())
        scores.append(((found - jitter) / np.sqrt(rows.variance[1]))[told])
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.15)
    assert 0.8 < np.concatenate(scores).std() < 1.25


def lattice(along: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of sigma 4 px on a tilted lattice of 24 px, unit height."""
    row, col = np.arange(160)[:, None], np.arange(160)[None, :] - along[:, None]
    image = np.zeros((160, 160))
    for i in range(-3, 11):
        for j in range(-3, 11):
            place = 24 * i + 4 * j, 24 * j - 4 * i
            image += np.exp(-((row - place[0]) ** 2 + (col - place[1]) ** 2) / 32)
    return image


def test_a_shift_beyond_the_frame_leaves_no_row_that_tells() -> None:
    rows = measure_rows(scan(), scan(), np.array([0.0, 3.0 * COLS]), 4.0)
    assert not rows.offsets.any()
    rows = measure_rows(scan(), scan(), np.array([-3.0 * ROWS, -3.0 * COLS]), 4.0)
    assert not rows.offsets.any()


def judged(image: NDArray[np.float32], expected: tuple[float, float] = (0.0, 0.0)) -> Judgement:
    return judge(image, scan(), Matcher((ROWS, COLS)), np.array(expected), 4.0, usual_match=0.9)


def test_a_good_frame_is_ok_also_where_it_drifted_to() -> None:
    rng = np.random.default_rng(36)
    verdict = judged(scan((3.0, -4.0), rng=rng), (2.0, -3.0))
    assert verdict.verdict == "ok"
    np.testing.assert_allclose(verdict.displacement_px, (3.0, -4.0), atol=0.3)
    assert verdict.counts == pytest.approx(1.0, abs=0.2)


def test_a_blanked_beam_is_told_from_a_lost_specimen() -> None:
    rng = np.random.default_rng(38)
    dark = judged(rng.poisson(0.3, (ROWS, COLS)).astype(np.float32))
    assert dark.verdict == "blank"
    assert dark.structure < 0.1
    assert dark.counts < 0.1
    assert judged(np.zeros((ROWS, COLS), dtype=np.float32)).verdict == "blank"
    other = columns(seed=77)
    other[:, :2] = rng.uniform(-10, 140, (len(other), 2))
    assert judged(scan(rng=rng, sites=other)).verdict == "lost"


def test_a_jump_of_thirty_pixels_is_a_jump_and_its_length_is_said() -> None:
    rng = np.random.default_rng(40)
    sites = columns()
    sites[:, :2] = np.random.default_rng(41).uniform(-60, 190, (len(sites), 2))
    reference, jumped = scan(sites=sites), scan((0.0, 30.0), rng=rng, sites=sites)
    verdict = judge(jumped, reference, Matcher((ROWS, COLS)), np.zeros(2), 4.0, usual_match=0.9)
    assert verdict.verdict == "jump"
    np.testing.assert_allclose(verdict.displacement_px, (0.0, 30.0), atol=0.5)
    assert verdict.surprise_px == pytest.approx(30.0, abs=0.5)


def test_half_the_contrast_is_still_ok() -> None:
    assert judged((0.1 * scan()).astype(np.float32)).verdict == "ok"
