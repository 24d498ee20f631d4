"""Turning, shifting, stretching and blurring are done to coefficients as they are to pictures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from models import steerable
from models.steerable import Steerable

Float64 = NDArray[np.float64]
SIZE = 24


def spots(
    *,
    turn_rad: float = 0.0,
    shift_px: tuple[float, float] = (0.0, 0.0),
    stretch: float = 1.0,
    width_px: float = 1.8,
    seed: int = 0,
    size: int = SIZE,
) -> Float64:
    """Draw a few spots of differing height around the middle, ``(size, size)``."""
    rng = np.random.default_rng(seed)
    radius, direction = size / 3.2 * np.sqrt(rng.random(7)), rng.uniform(0, 2 * math.pi, 7) + turn_rad
    x = stretch * radius * np.cos(direction) + shift_px[0]
    y = stretch * radius * np.sin(direction) + shift_px[1]
    axis = np.arange(size) - (size - 1) / 2
    across = np.exp(-0.5 * ((axis - x[:, None]) / width_px) ** 2)
    down = np.exp(-0.5 * ((axis - y[:, None]) / width_px) ** 2)
    height = rng.uniform(0.3, 1.0, 7) / width_px**2
    drawn: Float64 = np.einsum("k,kr,kc->rc", height, down, across)
    return drawn


def windows(count: int = 300, channels: int = 1, size: int = SIZE) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    turns = rng.uniform(0, 2 * math.pi, (count, channels))
    drawn = [[spots(turn_rad=turn, seed=i, size=size) for turn in turns[i]] for i in range(count)]
    return np.array(drawn, dtype=np.float32)


@pytest.fixture(scope="module")
def fitted() -> Steerable:
    return steerable.fit(windows(), 60)


def coefficients(fitted: Steerable, picture: Float64) -> Float64:
    return picture.ravel() @ fitted.read_FD


def off(found: Float64, expected: Float64) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_components_are_orthonormal_and_those_of_order_0_are_real(fitted: Steerable) -> None:
    gram = fitted.draw_FD.T @ fitted.read_FD
    alive = np.concatenate([np.ones(60), fitted.order_P > 0])
    np.testing.assert_allclose(gram, np.diag(alive), atol=1e-10)
    assert (np.diff(fitted.order_P) >= 0).all()


def test_few_components_draw_the_windows(fitted: Steerable) -> None:
    shown = windows(20)[:, 0].reshape(20, -1)
    drawn = shown @ fitted.read_FD @ fitted.draw_FD.T
    assert off(drawn, shown) < 0.05


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_exactly_a_phase(fitted: Steerable, quarters: int) -> None:
    picture = spots(seed=3)
    real, imaginary = np.split(coefficients(fitted, picture), 2)
    turned = (real + 1j * imaginary) * np.exp(1j * fitted.order_P * quarters * math.pi / 2)
    # rot90 turns anticlockwise on the screen; from x (columns) towards y (rows, downwards) is clockwise.
    found = np.split(coefficients(fitted, np.rot90(picture, -quarters)), 2)
    np.testing.assert_allclose(found[0] + 1j * found[1], turned, atol=1e-10)


@pytest.mark.parametrize("turn_deg", [10.0, 37.0, 121.0])
def test_any_turn_is_nearly_a_phase(fitted: Steerable, turn_deg: float) -> None:
    angle = math.radians(turn_deg)
    real, imaginary = np.split(coefficients(fitted, spots(seed=4)), 2)
    turned = (real + 1j * imaginary) * np.exp(1j * fitted.order_P * angle)
    expected = coefficients(fitted, spots(seed=4, turn_rad=angle))
    assert off(np.concatenate([turned.real, turned.imag]), expected) < 0.02


@pytest.mark.parametrize("size", [23, 24])
def test_what_is_in_the_corners_is_not_read(size: int) -> None:
    fitted = steerable.fit(windows(size=size), 60)
    picture, is_corner = spots(seed=5, size=size), steerable.disc(size) < 1e-12
    corners = np.where(is_corner, 7.0, picture)
    assert is_corner.mean() > 0.15
    np.testing.assert_allclose(coefficients(fitted, corners), coefficients(fitted, picture), atol=1e-12)


@pytest.mark.parametrize("turn_deg", [20.0, 45.0])
def test_a_turn_is_a_phase_too_where_the_picture_goes_on_beyond_the_window(turn_deg: float) -> None:
    angle = math.radians(turn_deg)

    def stripes(turn_rad: float) -> Float64:
        x, y = np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 2)
        drawn: Float64 = np.cos(2 * math.pi / 9 * (x * math.cos(turn_rad) + y * math.sin(turn_rad)) + 0.4)
        return drawn

    turns = np.random.default_rng(3).uniform(0, 2 * math.pi, 300)
    shown = np.array([stripes(turn) for turn in turns], dtype=np.float32)[:, None]
    fitted = steerable.fit(shown, 40)
    real, imaginary = np.split(coefficients(fitted, stripes(0.3)), 2)
    turned = (real + 1j * imaginary) * np.exp(1j * fitted.order_P * angle)
    expected = coefficients(fitted, stripes(0.3 + angle))
    assert off(np.concatenate([turned.real, turned.imag]), expected) < 0.025


CHANGES: dict[str, tuple[Callable[[Steerable], Float64], Callable[[float], Float64], float]] = {
    "shift along x": (lambda f: f.shift_x_DD, lambda by: spots(shift_px=(by, 0.0)), 0.1),
    "shift along y": (lambda f: f.shift_y_DD, lambda by: spots(shift_px=(0.0, by)), 0.1),
    "stretch": (lambda f: f.stretch_DD, lambda by: spots(stretch=1 + by, width_px=1.8 * (1 + by)), 0.01),
    "blur": (lambda f: f.blur_DD, lambda by: spots(width_px=math.sqrt(1.8**2 + 2 * by)), 0.1),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_an_operator_changes_coefficients_as_the_picture_changes(fitted: Steerable, name: str) -> None:
    operator, draw, by = CHANGES[name]
    there, back = coefficients(fitted, draw(by)), coefficients(fitted, draw(-by))
    # A stretched spot of the same height has more in it; spots() divides by the width squared.
    scale = (1 + by) ** 2 if name == "stretch" else 1.0
    measured = (there * scale - back / scale) / (2 * by) if name == "stretch" else (there - back) / (2 * by)
    # What the components miss of a picture, its second derivative shows more of.
    most = 0.25 if name == "blur" else 0.08
    assert off(coefficients(fitted, draw(0.0)) @ operator(fitted), measured) < most


def test_two_channels_share_components() -> None:
    one = windows(200)
    both = np.concatenate([one, -0.5 * one], 1)
    fitted = steerable.fit(both, 60)
    shown = both.reshape(200, -1)
    assert fitted.read_FD.shape == (2 * SIZE**2, 120)
    # What the second shows is known from the first, so 60 components draw two channels as well as one.
    assert off(shown @ fitted.read_FD @ fitted.draw_FD.T, shown) < 0.05


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 9), (2, 16), (1, 33), (3, 12)])
def test_as_many_components_as_are_said_to_be_available_can_be_fitted(channels: int, size: int) -> None:
    count = steerable.available(channels, size, 16)
    noise = np.random.default_rng(2).normal(size=(100, channels, size, size)).astype(np.float32)
    fitted = steerable.fit(noise, count)
    alive = np.concatenate([np.ones(count), fitted.order_P > 0])
    np.testing.assert_allclose(fitted.draw_FD.T @ fitted.read_FD, np.diag(alive), atol=1e-6)


def test_more_components_than_there_are_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"61 components are too many for 1 × 8² pixels.*it takes 10 at most"
    ):
        steerable.fit(np.zeros((20, 1, 8, 8), np.float32), 61)
