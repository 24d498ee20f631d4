"""Blocks of a drawn texture are found where they were displaced to."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.observers.blocks import (
    block_displacements,
    clearness,
    comparable,
    levelled,
    warped,
)

SIDE = 160
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def texture(
    field: Float64 | None = None, seed: int = 1, noise: float = 0.0, rows_px: Float64 | None = None
) -> Float32:
    """Draw bumps of 4 px where the probe was: at ``s + D(s)``, and each row at its offset."""
    rng = np.random.default_rng(seed)
    bumps = rng.uniform(-10, SIDE + 10, (400, 2))
    heights = rng.normal(0, 1, 400)
    row, col = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    down, along = np.zeros((2, SIDE, SIDE)) if field is None else np.broadcast_to(field, (2, SIDE, SIDE))
    if rows_px is not None:
        down, along = down + rows_px[0][:, None], along + rows_px[1][:, None]
    image = np.zeros((SIDE, SIDE))
    for bump, height in zip(bumps, heights, strict=True):
        image += height * np.exp(-((row + down - bump[0]) ** 2 + (col + along - bump[1]) ** 2) / 32)
    return (image / 1.4 + noise * np.random.default_rng(seed + 1000).normal(size=image.shape)).astype(
        np.float32
    )


def constant(down: float, along: float) -> Float64:
    return np.array([down, along])[:, None, None]


def bent() -> Float64:
    """A field that changes by some pixels over the image."""
    row, col = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE), indexing="ij")
    return np.stack([1.5 * np.sin(3 * row) + 0.5 * col, np.cos(2 * col + row) - 1.2 * col])


def at(field: Float64, positions: Float64) -> Float64:
    row, col = np.rint(positions).astype(int).T
    return np.broadcast_to(field, (2, SIDE, SIDE))[:, row, col].T


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, -0.4), (0.5, 0.5), (3.3, -4.6)])
def test_a_displacement_is_found_without_bias_at_a_signal_to_noise_ratio_of_ten(
    shift: tuple[float, float],
) -> None:
    errors = []
    for seed in range(3):
        blocks = block_displacements(
            texture(constant(*shift), seed, noise=0.1),
            texture(None, seed) + np.random.default_rng(90 + seed).normal(0, 0.1, (SIDE, SIDE)).astype("f4"),
            (48, 48),
        )
        assert len(blocks) > 20
        errors.append(blocks.displacement_px - shift)
    error = np.concatenate(errors)
    np.testing.assert_allclose(error.mean(axis=0), 0.0, atol=0.02)
    assert np.median(np.abs(error)) < 0.05


def test_the_variance_says_how_wrong_a_block_is() -> None:
    scores = []
    for seed in range(4):
        reference = texture(None, seed)
        reference += np.random.default_rng(seed).normal(0, 0.3, reference.shape).astype(np.float32)
        blocks = block_displacements(texture(constant(0.3, 0.1), seed, 0.3), reference, (48, 48))
        scores.append((blocks.displacement_px - [0.3, 0.1]) / np.sqrt(blocks.variance_px2))
    assert 0.8 < np.concatenate(scores).std() < 1.25


def test_a_field_that_bends_is_found_better_around_what_is_expected() -> None:
    image, reference, field = texture(bent()), texture(), bent()
    first = block_displacements(image, reference, (48, 48))
    second = block_displacements(image, reference, (48, 48), field + 0.1, reach_px=0.0)
    errors = [one.displacement_px - at(field, one.positions_px) for one in (first, second)]
    assert np.sqrt((errors[1] ** 2).mean()) < 0.03
    assert np.sqrt((errors[1] ** 2).mean()) < 0.5 * np.sqrt((errors[0] ** 2).mean())


def test_what_is_known_of_the_rows_is_taken_out_and_not_counted() -> None:
    jitter = np.random.default_rng(3).normal(0, 0.7, (2, SIDE)) * [[0.3], [1.0]]
    image = texture(constant(0.4, -0.3), rows_px=jitter)
    blocks = block_displacements(image, texture(), (48, 48), rows_px=jitter)
    without = block_displacements(image, texture(), (48, 48))
    error = np.sqrt(((blocks.displacement_px - [0.4, -0.3]) ** 2).mean())
    assert error < 0.03
    assert error < 0.5 * np.sqrt(((without.displacement_px - [0.4, -0.3]) ** 2).mean())


def test_gain_and_offset_of_the_image_do_not_matter() -> None:
    image, reference = texture(constant(0.3, 0.6)), texture()
    plain = block_displacements(image, reference, (48, 48))
    strong = block_displacements(50 * image + 700, reference, (48, 48))
    np.testing.assert_allclose(strong.displacement_px, plain.displacement_px, atol=2e-3)


def test_blocks_without_structure_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(4)
    reference = rng.normal(0, 0.1, (SIDE, SIDE)).astype(np.float32)
    reference[:, 80:] += texture()[:, 80:]
    image = rng.normal(0, 0.1, (SIDE, SIDE)).astype(np.float32)
    image[:, 80:] += texture()[:, 80:]
    blocks = block_displacements(image, reference, (32, 32), reach_px=2.0)
    assert blocks.positions_px[:, 1].min() > 64
    assert len(blocks) + blocks.blank + blocks.unmatched == 9 * 9
    assert blocks.blank + blocks.unmatched >= 27


def test_blocks_that_show_something_else_are_left_out_and_counted() -> None:
    image = texture(seed=1)
    image[:80] = texture(seed=7)[:80]
    blocks = block_displacements(image, texture(seed=1), (32, 32))
    other = blocks.positions_px[:, 0] < 50
    assert np.count_nonzero(other) <= 8
    assert blocks.blank + blocks.unmatched >= 27
    np.testing.assert_allclose(blocks.displacement_px[blocks.positions_px[:, 0] > 112], 0.0, atol=0.02)


@pytest.mark.parametrize(
    ("block", "shape", "text"),
    [
        ((8, 32), (64, 64), "blocks of"),
        ((32, 80), (64, 64), "blocks of"),
        ((32, 32), (64, 60), "take one shape"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    block: tuple[int, int], shape: tuple[int, int], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        block_displacements(np.zeros((64, 64), "f4"), np.zeros(shape, "f4"), block)


def test_an_expected_field_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected_px has shape"):
        block_displacements(texture(), texture(), (48, 48), np.zeros((2, 5, 5)))


def test_an_empty_frame_gives_no_blocks_and_no_warning() -> None:
    blocks = block_displacements(np.zeros((SIDE, SIDE), "f4"), texture(), (48, 48))
    assert len(blocks) == 0
    blocks = block_displacements(texture(), np.zeros((SIDE, SIDE), "f4"), (48, 48))
    assert len(blocks) == 0
    assert blocks.blank > 0


def test_a_warp_by_whole_pixels_only_moves() -> None:
    image = texture()
    moved = warped(image, np.broadcast_to(constant(2.0, -3.0), (2, SIDE, SIDE)))
    np.testing.assert_allclose(moved[:-2, 3:], image[2:, :-3], atol=1e-6)


def test_observations_have_the_sign_of_the_field_and_count_shared_noise() -> None:
    blocks = block_displacements(texture(constant(1.2, -0.7)), texture(), (48, 48))
    seen = blocks.observations()
    np.testing.assert_allclose(seen.displacement_px, [[1.2, -0.7]] * len(blocks), atol=0.05)
    np.testing.assert_allclose(seen.variance_px2, 1.8 * blocks.variance_px2)


def test_structure_is_clearer_than_noise() -> None:
    noise = np.random.default_rng(5).normal(size=(SIDE, SIDE)).astype(np.float32)
    assert clearness(texture()) > 10 * clearness(noise)


def test_a_phase_that_jumps_by_a_turn_is_compared_as_cosine_and_sine() -> None:
    phase = np.linspace(100, 260, SIDE)[None, :] * np.ones((SIDE, 1))
    wrapped = (np.mod(phase + 180, 360) - 180).astype(np.float32)
    images, names = comparable(wrapped[None], ("PhaseRetrace",))
    assert names == ("cos PhaseRetrace", "sin PhaseRetrace")
    assert np.abs(np.diff(wrapped)).max() > 300
    assert np.abs(np.diff(images)).max() < 0.05
    in_radians, _ = comparable(np.deg2rad(wrapped)[None], ("Phase",))
    np.testing.assert_allclose(in_radians, images, atol=1e-5)


def test_offsets_of_lines_are_levelled_and_the_specimen_is_kept() -> None:
    image = texture()
    offsets = np.random.default_rng(6).normal(0, 3, SIDE).astype(np.float32)
    inside = slice(8, -8)
    left = levelled(image + offsets[:, None]) - levelled(image)
    # What stays changes over many lines, and no block sees that.
    assert np.diff(left[inside], axis=0).std() < 0.1
    assert left[inside].std() < 0.25 * offsets.std()
    other = np.random.default_rng(7).normal(0, 3, SIDE).astype(np.float32)
    moved = texture(constant(0.8, -1.4)) + other[:, None]
    pair = [comparable(one[None], ("HeightTrace",))[0][0] for one in (moved, image + offsets[:, None])]
    blocks = block_displacements(*pair, (48, 48))
    np.testing.assert_allclose(np.median(blocks.displacement_px, axis=0), [0.8, -1.4], atol=0.05)


def test_what_is_expected_is_read_where_the_block_was_found() -> None:
    # Wrong by 3 px, on a field that changes by 5 % along the row: 0.15 px if read where it was sought.
    ramp = np.stack([np.zeros((SIDE, SIDE)), np.tile(0.05 * np.arange(SIDE), (SIDE, 1))])
    blocks = block_displacements(texture(ramp), texture(), (48, 48), ramp + constant(0.0, 3.0))
    inside = blocks.positions_px[:, 1] < SIDE - 40
    error = blocks.displacement_px[inside] - 0.05 * blocks.positions_px[inside, 1:] * [0, 1]
    np.testing.assert_allclose(error.mean(axis=0), 0.0, atol=0.04)
