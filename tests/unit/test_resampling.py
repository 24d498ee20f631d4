import numpy as np
import pytest

from models.resampling import faded, raw_places, resampled, rows_in_place, sampled


def pattern(row, col):
    return np.cos(2 * np.pi * row / 17) + np.sin(2 * np.pi * col / 13)


def frame_and_field(size=96):
    """Show what a distorted scan sees of a pattern: ``I(s)`` is the pattern at ``s + D(s)``."""
    row, col = np.mgrid[0:size, 0:size].astype(float)
    field = np.stack([1.5 * np.sin(row / 20) + 0.5, 2 * np.exp(-col / 22) - 0.3 * np.cos(row / 15)])
    return pattern(row + field[0], col + field[1]).astype(np.float32), field.astype(np.float32)


def test_resampling_puts_the_specimen_back():
    image, field = frame_and_field()
    row, col = np.mgrid[0:96, 0:96]

    error = resampled(image, field) - pattern(row, col)

    assert np.abs(image - pattern(row, col))[8:-8, 8:-8].max() > 1
    assert np.abs(error)[8:-8, 8:-8].max() < 0.02


def test_an_undistorted_frame_is_unchanged():
    image, _ = frame_and_field()

    assert np.abs(resampled(image, np.zeros((2, 96, 96), np.float32)) - image).max() < 1e-4


def test_a_shift_by_whole_pixels_is_exact_and_repeats_the_edge():
    image = np.random.default_rng(0).random((32, 48), dtype=np.float32)
    field = np.zeros((2, 32, 48), np.float32)
    field[0], field[1] = 3, -2

    found = resampled(image, field)

    assert np.abs(found[3:, :-2] - image[:-3, 2:]).max() < 1e-4
    assert np.abs(found[:3, :-2] - image[0, 2:]).max() < 1e-4


def test_a_straight_slope_is_moved_by_any_part_of_a_pixel_as_it_is():
    slope = np.broadcast_to(np.arange(32, dtype=np.float32), (32, 32))

    for part in (0.1, 0.25, 0.5, 0.8):
        found = resampled(slope, np.full((2, 32, 32), -part, np.float32))
        assert np.abs(found - slope - part)[4:-4, 4:-4].max() < 2e-3


def test_channels_are_resampled_alike():
    image, field = frame_and_field()

    both = resampled(np.stack([image, 2 * image]), field)

    assert np.abs(both[0] - resampled(image, field)).max() < 1e-6
    assert np.abs(both[1] - 2 * both[0]).max() < 1e-5


def test_places_are_those_where_the_raster_was_recorded():
    _, field = frame_and_field()
    row, col = np.mgrid[0:96, 0:96]
    places = raw_places(field).transpose(1, 2, 0)

    # a straight line between pixels, as the field is taken to be
    low = np.clip(np.floor(places).astype(int), 0, 94)
    part = np.clip(places - low, 0, 1)
    for axis, true in enumerate((row, col)):
        corner = [field[axis][low[..., 0] + i, low[..., 1] + j] for i in (0, 1) for j in (0, 1)]
        shares = [
            (part[..., 0] if i else 1 - part[..., 0]) * (part[..., 1] if j else 1 - part[..., 1])
            for i in (0, 1)
            for j in (0, 1)
        ]
        there = sum(value * share for value, share in zip(corner, shares, strict=True))
        assert np.abs(places[..., axis] + there - true)[8:-8, 8:-8].max() < 3e-3


def test_jittering_rows_are_put_back():
    rng = np.random.default_rng(2)
    image, field = frame_and_field()
    field = field + np.stack([rng.normal(0, 0.05, 96), rng.normal(0, 0.25, 96)])[:, :, None]
    field = field.astype(np.float32)
    row, col = np.mgrid[0:96, 0:96].astype(float)
    image = pattern(row + field[0], col + field[1]).astype(np.float32)

    error = resampled(image, field) - pattern(row, col)

    assert np.sqrt(np.mean(error[8:-8, 8:-8] ** 2)) < 0.03


def test_a_correction_fades_where_it_is_not_known():
    _, field = frame_and_field()
    sd = np.full((2, 3, 3), 0.01, np.float32)
    sd[:, :, 2] = 1.0

    found = faded(field, sd, 0.1)

    assert np.abs(found[:, :, 0] - field[:, :, 0]).max() < 1e-3
    assert np.abs(found[:, :, -1]).max() < 1e-3
    image = np.random.default_rng(1).random((96, 96), dtype=np.float32)
    assert np.abs(resampled(image, field, sd_px=sd, gate_sd_px=0.1)[:, -1] - image[:, -1]).max() < 1e-3


def test_what_does_not_fit_is_refused():
    image, field = frame_and_field()

    with pytest.raises(ValueError, match="field has shape"):
        raw_places(field[0])
    with pytest.raises(ValueError, match="has no field of"):
        resampled(image[:50], field)
    with pytest.raises(ValueError, match="gate_sd_px is 0"):
        faded(field, np.ones((2, 3, 3), np.float32), 0)


def shuffled(sd_px, size=128, seed=2):
    """Rows of a smooth pattern whose places stray so far that they lie out of order."""
    row, col = np.mgrid[0:size, 0:size].astype(float)
    strayed = np.random.default_rng(seed).normal(0, 1, (2, size)) * [[sd_px], [0.5 * sd_px]]
    field = np.broadcast_to(strayed[:, :, None], (2, size, size)).astype(np.float32)
    return pattern(row + field[0], col + field[1]).astype(np.float32), field


def test_rows_that_lie_out_of_order_are_put_where_they_were_recorded():
    image, field = shuffled(1.7)
    truth = pattern(*np.mgrid[0:128, 0:128])

    error = (resampled(image, field) - truth)[8:-8, 8:-8]
    inverse = (resampled_by_inverse(image, field) - truth)[8:-8, 8:-8]

    assert rms(error) < 0.25
    assert rms(error) < 0.4 * rms(inverse)
    assert rms((image - truth)[8:-8, 8:-8]) > 2 * rms(error)


def test_rows_in_order_are_resampled_by_the_inverse_field_to_the_bit():
    image, field = shuffled(0.25)

    assert np.array_equal(resampled(image, field), resampled_by_inverse(image, field))


def test_channels_whose_rows_lie_out_of_order_are_resampled_alike_and_shifted_as_one():
    image, field = shuffled(1.2)
    moved = field + np.array([[[40.0]], [[-3.0]]], dtype=np.float32)

    both = resampled(np.stack([image, 2 * image]), field)
    further = resampled(image, moved)

    assert np.abs(both[1] - 2 * both[0]).max() < 1e-5
    assert np.abs(both[0] - resampled(image, field)).max() < 1e-6
    assert np.abs(further[50:-8, 8:-8] - both[0][10:-48, 11:-5]).max() < 0.02
    assert np.abs(further[:20, 8:-8] - further[0, 8:-8]).max() < 1e-3


def test_a_place_that_no_row_came_near_is_made_of_the_nearest():
    image = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None], (64, 16))
    offsets = np.zeros((2, 64), np.float32)
    offsets[0, :32], offsets[0, 32:] = -300, 300

    found = rows_in_place(image, offsets)

    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 63


def resampled_by_inverse(image, field):
    return sampled(image, raw_places(field))


def rms(values):
    return float(np.sqrt(np.mean(values**2)))
