from __future__ import annotations

import math

import numpy as np
import pytest

from streamer.walls import wall_points

ROWS, COLS = np.mgrid[:96, :96].astype(np.float64)


def film(angle_rad: float, beside_px: float, noise: float = 0.0, seed: int = 1) -> np.ndarray:
    """One straight wall that runs along an angle, some way from the middle of the picture."""
    across = (ROWS - 47.5) * math.cos(angle_rad) - (COLS - 47.5) * math.sin(angle_rad)
    clean = 50 * np.tanh((across - beside_px) / 3)
    return (clean + noise * np.random.default_rng(seed).standard_normal(clean.shape)).astype(np.float32)


@pytest.mark.parametrize("angle_rad", [0.0, 0.4, math.pi / 2, 2.2, 3.0])
def test_points_lie_on_the_wall_to_a_fraction_of_a_pixel(angle_rad: float) -> None:
    walls = wall_points(film(angle_rad, 5.3))
    row, col = walls.positions_px.T
    across = (row - 47.5) * math.cos(angle_rad) - (col - 47.5) * math.sin(angle_rad)
    inner = np.all(np.abs(walls.positions_px - 47.5) < 44, axis=1)  # beyond, the filter lacks pixels
    assert inner.sum() > 60
    assert np.abs(across[inner] - 5.3).max() < 0.02


@pytest.mark.parametrize("angle_rad", [0.0, 0.4, math.pi / 2, 2.2, 3.0])
def test_a_wall_says_which_way_it_runs(angle_rad: float) -> None:
    walls = wall_points(film(angle_rad, 0.2))
    inner = np.all(np.abs(walls.positions_px - 47.5) < 40, axis=1)
    off = np.array([math.remainder(one - angle_rad, math.pi) for one in walls.direction_rad[inner]])
    assert np.abs(off).max() < math.radians(2)
    assert (walls.direction_rad >= 0).all()
    assert (walls.direction_rad <= math.pi).all()


def test_the_sd_of_a_place_is_that_of_its_scatter_under_noise() -> None:
    off, sd = [], []
    for seed in range(30):
        walls = wall_points(film(0.0, 0.3, noise=6.0, seed=2 * seed + 1))
        inner = np.abs(walls.positions_px[:, 1] - 47.5) < 40
        vertical = np.abs(walls.positions_px[:, 1] - np.rint(walls.positions_px[:, 1])) < 1e-9
        off.append(walls.positions_px[inner & vertical, 0] - 47.8)
        sd.append(walls.sd_px[inner & vertical])
    scatter = np.concatenate(off)
    assert scatter.std() / np.sqrt((np.concatenate(sd) ** 2).mean()) == pytest.approx(1.0, abs=0.15)


def test_a_film_of_one_domain_has_no_wall() -> None:
    noise = 2 * np.random.default_rng(3).standard_normal((64, 64))
    assert len(wall_points((50 + noise).astype(np.float32)).positions_px) == 0


def test_the_sign_changes_of_noise_are_not_significant() -> None:
    noise = np.random.default_rng(5).standard_normal((96, 96)).astype(np.float32)
    walls = wall_points(noise)
    assert len(walls.positions_px) > 100
    assert np.percentile(walls.significance, 99) < 4


def test_the_weaker_domain_tells_the_height_of_a_wall() -> None:
    walls = wall_points(np.where(film(0.0, 0.0) > 0, 50.0, -10.0).astype(np.float32))
    inner = np.abs(walls.positions_px[:, 1] - 47.5) < 40
    assert walls.height[inner] == pytest.approx(10.0, abs=0.5)
