from __future__ import annotations

import math

import numpy as np
import pytest

from simulators.afm import AfmConfig, AfmInstrument
from simulators.rods import RodsConfig
from streamer.particles import particles

ROWS, COLS = np.mgrid[:96, :96].astype(np.float64)


def rod(row: float, col: float, angle_rad: float, length_px: float = 24.0) -> np.ndarray:
    """Height 1 on the axis, falling to 0 four pixels beside it."""
    down, right = ROWS - row, COLS - col
    along = right * math.cos(angle_rad) + down * math.sin(angle_rad)
    across = down * math.cos(angle_rad) - right * math.sin(angle_rad)
    beyond = np.maximum(np.abs(along) - length_px / 2, 0)
    return np.maximum(1 - (across**2 + beyond**2) / 16, 0)


def face(*rods: np.ndarray, noise: float = 0.02, seed: int = 3) -> np.ndarray:
    clean = np.max(rods, axis=0)
    return (clean + noise * np.random.default_rng(seed).standard_normal(clean.shape)).astype(np.float32)


@pytest.mark.parametrize("angle_rad", [0.0, 0.5, math.pi / 2, 2.5])
def test_a_rod_is_found_with_its_middle_axis_and_length(angle_rad: float) -> None:
    found = particles(face(rod(40.3, 50.6, angle_rad)))
    assert len(found.positions_px) == 1
    assert found.positions_px[0] == pytest.approx([40.3, 50.6], abs=0.15)
    assert abs(math.remainder(found.angle_rad[0] - angle_rad, math.pi)) < math.radians(1)
    assert found.length_px[0] == pytest.approx(27, abs=2)
    assert found.height[0] == pytest.approx(1.0, abs=0.08)
    assert found.is_whole[0]


def test_rods_that_touch_are_parted() -> None:
    beside = face(
        rod(20, 30, 0.3), rod(24.5, 28.5, 0.3), rod(60, 40, 0.0), rod(60, 59, 1.4), rod(80, 20, 2.0)
    )
    found = particles(beside)
    assert len(found.positions_px) == 5


def test_the_noise_of_a_rods_own_ridge_does_not_part_it() -> None:
    for seed in range(10):
        found = particles(face(rod(30, 30, 0.7), rod(60, 60, 2.0), noise=0.06, seed=2 * seed + 1))
        assert len(found.positions_px) == 2


def test_a_bare_face_has_no_particles() -> None:
    noise = 0.05 * np.random.default_rng(7).standard_normal((64, 64))
    assert len(particles(noise.astype(np.float32)).positions_px) == 0
    assert len(particles(np.zeros((64, 64), np.float32)).positions_px) == 0


def test_a_particle_at_the_edge_is_not_whole() -> None:
    found = particles(face(rod(48, 5, 0.0), rod(20, 50, 0.0)))
    assert sorted(found.is_whole.tolist()) == [False, True]


@pytest.mark.parametrize(
    ("rods", "recall", "false_share"),
    [
        (RodsConfig(), 0.94, 0.03),
        (RodsConfig(coverage=0.4), 0.88, 0.06),
        (RodsConfig(start="rows"), 0.8, 0.08),
    ],
)
def test_the_rods_of_a_simulated_afm_are_found_one_by_one(
    rods: RodsConfig, recall: float, false_share: float
) -> None:
    instrument = AfmInstrument(AfmConfig(seed=7, rods=rods), started_at_s=0.0)
    image = instrument.acquire().image[0]
    truth = instrument.truth()
    found = particles(image - np.percentile(image, 10))
    good = found.is_whole & (found.area_share > 0.4) & (found.area_share < 1.8)
    place, turned = truth["rod_place_px"], truth["rod_angle_rad"]
    apart = np.linalg.norm(place[:, None] - found.positions_px[good], axis=2)
    nearest = apart.argmin(axis=1)
    is_found = apart.min(axis=1) < 4
    inner = np.all(np.abs(place - 127.5) < 105, axis=1)
    assert (is_found & inner).sum() / inner.sum() > recall
    inside = np.all(np.abs(found.positions_px[good] - 127.5) < 105, axis=1)
    assert (inside & (apart.min(axis=0) > 4)).sum() / inside.sum() <= false_share
    off = turned[is_found] - found.angle_rad[good][nearest[is_found]]
    off -= math.pi * np.rint(off / math.pi)
    assert np.degrees(np.median(np.abs(off))) < 1.5
