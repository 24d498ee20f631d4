from __future__ import annotations

import math

import numpy as np
import pytest

from models.normalisation import RULES, in_phase, levelled, normalised, of_patterns, phase_axis

ROWS, COLS = np.mgrid[:64, :64].astype(np.float32)


def film(offset_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude and phase of two domains with a wall at column 31.5, as a lock-in gives them."""
    response = 50 * np.tanh((COLS - 31.5) / 4) * np.exp(1j * offset_rad)
    noise = np.random.default_rng(3).standard_normal((2, 64, 64))
    seen = response + noise[0] + 1j * noise[1]
    return np.abs(seen).astype(np.float32), np.angle(seen).astype(np.float32)


@pytest.mark.parametrize("offset_rad", [0.0, 0.3, -1.2, math.pi, 2.9])
def test_a_response_changes_its_sign_at_the_wall_whatever_the_phase_of_the_lock_in(offset_rad: float) -> None:
    response = in_phase(*film(offset_rad))
    left, right = response[:, :24], response[:, 40:]
    assert abs(left.mean() + right.mean()) < 1
    assert abs(right.mean()) == pytest.approx(49.5, abs=1)
    assert (np.sign(left) == -np.sign(right.mean())).all()


def test_the_axis_of_phases_lies_within_a_quarter_turn() -> None:
    for offset_rad in np.linspace(-math.pi, math.pi, 13):
        axis = phase_axis(*film(float(offset_rad)))
        assert abs(axis) <= math.pi / 2
        assert abs(math.remainder(axis - float(offset_rad), math.pi)) < 0.01


def test_a_picture_without_amplitude_has_a_phase_axis_of_0() -> None:
    assert phase_axis(np.zeros((8, 8), np.float32), np.ones((8, 8), np.float32)) == 0.0


def test_the_response_comes_in_units_of_the_contrast_with_the_amplitude_beside_it() -> None:
    image = np.stack(film(0.3))
    picture = normalised("response", image, 0.0, 50.0)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture[1], image[0] / 50, rtol=1e-6)
    assert np.abs(picture[0, :, 50:]).mean() == pytest.approx(1.0, abs=0.03)


def test_a_response_without_its_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="amplitude and phase"):
        normalised("response", np.ones((1, 8, 8), np.float32), 0.0, 1.0)


def test_contrast_puts_the_background_at_0_and_a_typical_column_at_1() -> None:
    image = np.array([[[5.0, 25.0]]], np.float32)
    np.testing.assert_allclose(normalised("contrast", image, 5.0, 20.0), [[[0.0, 1.0]]])


def test_columns_that_are_dark_become_bright_by_a_negative_contrast() -> None:
    image = np.array([[[25.0, 5.0]]], np.float32)
    np.testing.assert_allclose(normalised("contrast", image, 25.0, -20.0), [[[0.0, 1.0]]])


def test_a_tilted_face_is_levelled_under_particles() -> None:
    face = 0.02 * ROWS - 0.05 * COLS + 7
    particles = 2.5 * ((ROWS % 16 < 8) & (COLS % 20 < 8))
    noise = 0.02 * np.random.default_rng(5).standard_normal((64, 64))
    flat = levelled((face + particles + noise).astype(np.float32))
    bare = flat[particles == 0]
    assert abs(bare.mean()) < 0.06
    assert bare.std() < 0.05  # the tilt alone had 1
    assert flat[particles > 0].mean() == pytest.approx(2.5, abs=0.06)


def test_heights_come_in_units_of_a_particle() -> None:
    face = np.zeros((1, 32, 32), np.float32)
    face[0, 10:14, 10:14] = 2.6
    assert normalised("height", face, 0.0, 2.6).max() == pytest.approx(1.0)


def test_a_pattern_keeps_its_middle_when_its_pixels_become_coarser() -> None:
    camera = np.zeros((1, 1, 128, 128), np.float32)
    camera[0, 0, 60:69, 60:69] = 100  # around pixel 64, where the undeflected beam is
    seen = of_patterns(camera, 40.0, to_per_nm=20.0, to_px=32)
    np.testing.assert_allclose(seen, seen[:, :, ::-1], rtol=1e-5)
    np.testing.assert_allclose(seen, seen.transpose(0, 1, 3, 2), rtol=1e-5)


def test_a_pattern_is_one_on_the_average_of_its_squares_whatever_its_dose() -> None:
    rng = np.random.default_rng(7)
    counts = rng.poisson(3.0, (2, 1, 64, 64)).astype(np.float32)
    counts[1] *= 10
    seen = of_patterns(counts, 30.0, to_per_nm=20.0, to_px=16)
    np.testing.assert_allclose((seen**2).mean(axis=(2, 3)), 1.0, rtol=1e-5)


def test_counts_have_equal_noise_where_they_are_many_and_where_they_are_few() -> None:
    rng = np.random.default_rng(9)
    mean = np.where(np.arange(64) < 32, 20.0, 80.0)
    counts = rng.poisson(mean, (400, 1, 64, 64)).astype(np.float32)
    seen = of_patterns(counts, 30.0, to_per_nm=24.0, to_px=16)
    sd = seen[:, 0].std(axis=0)
    assert sd[:, :6].mean() == pytest.approx(sd[:, 10:].mean(), rel=0.05)


def test_counts_are_kept_when_pixels_are_shared_out() -> None:
    rng = np.random.default_rng(11)
    counts = rng.poisson(50.0, (1, 1, 65, 65)).astype(np.float32)
    seen = of_patterns(counts, 65.0, to_per_nm=39.0, to_px=16)
    half = np.array([[1.0] * 19 + [0.5] + [0.0] * 19, [0.0] * 19 + [0.5] + [1.0] * 19])
    middle = counts[0, 0, 13:52, 13:52]  # 39 pixels, of which the one in the middle is cut in two
    quarters = half @ middle @ half.T
    found = (seen[0, 0] ** 2).reshape(2, 8, 2, 8).sum(axis=(1, 3))
    np.testing.assert_allclose(found / found.sum(), quarters / quarters.sum(), rtol=1e-5)


def test_a_pattern_without_electrons_is_empty_and_changes_no_other() -> None:
    counts = np.ones((2, 1, 32, 32), np.float32)
    alone = of_patterns(counts[:1], 30.0, to_per_nm=20.0, to_px=16)
    counts[1] = 0
    both = of_patterns(counts, 30.0, to_per_nm=20.0, to_px=16)
    np.testing.assert_array_equal(both[0], alone[0])
    assert not both[1].any()


def test_a_camera_that_sees_too_little_is_refused_with_both_widths() -> None:
    with pytest.raises(ValueError, match=r"20 1/nm wide.*takes 24"):
        of_patterns(np.ones((1, 1, 32, 32), np.float32), 20.0, to_per_nm=24.0, to_px=16)


def test_a_rule_for_patterns_is_refused_for_pictures() -> None:
    assert "pattern" in RULES
    with pytest.raises(ValueError, match="contrast, response or height"):
        normalised("pattern", np.ones((1, 8, 8), np.float32), 0.0, 1.0)
