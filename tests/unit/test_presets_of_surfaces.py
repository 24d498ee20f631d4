"""Domain walls, diffraction patterns and rods for training: what the labels say is what the windows show."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.presets import afm_rods, diffraction, pfm_domains
from deploy.presets.known import preset_of
from deploy.presets.preset import UNKNOWN, Labelled, Preset
from simulators.diffraction import DiffractionConfig, DiffractionInstrument

NAMES = ("pfm-walls", "pfm-pathways", "diffraction", "afm-rods")


@lru_cache
def simulated(name: str) -> tuple[Preset, Labelled]:
    preset = preset_of(name)
    return preset, preset.simulate(preset, 200, np.random.default_rng(1))


@pytest.mark.parametrize("name", NAMES)
def test_windows_are_as_the_card_will_say(name: str) -> None:
    preset, part = simulated(name)
    edge = preset.window_px
    assert part.windows_NCHW.shape == (200, len(preset.channels), edge, edge)
    assert part.windows_NCHW.dtype == np.float32
    assert np.isfinite(part.windows_NCHW).all()
    assert 0.05 < part.windows_NCHW.std() < 3


@pytest.mark.parametrize("name", NAMES)
def test_every_class_is_drawn_and_none_is_most(name: str) -> None:
    preset, part = simulated(name)
    drawn = np.bincount(part.class_N[part.class_N >= 0], minlength=len(preset.classes))
    assert (drawn > 0).all()
    assert (drawn < 80).all()


def test_the_same_seed_gives_the_same_windows() -> None:
    preset = preset_of("diffraction")
    first, second = (preset.simulate(preset, 20, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first.windows_NCHW, second.windows_NCHW)
    np.testing.assert_array_equal(first.class_N, second.class_N)


def halves(window_HW: NDArray[np.float32], angle_rad: float) -> float:
    """Mean on the side of the window that an angle points to, less that on the other."""
    axis = np.arange(len(window_HW)) - (len(window_HW) - 1) / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    ahead = x * math.cos(angle_rad) + y * math.sin(angle_rad)
    return float(window_HW[ahead > 1].mean() - window_HW[ahead < -1].mean())


def test_the_angle_of_a_wall_points_to_the_domain_up() -> None:
    _, part = simulated("pfm-walls")
    walls = part.only(part.class_N == pfm_domains.WALL)
    # The film answers with the sign of -P: up is where the response is low.
    steps = [halves(one[0], angle) for one, angle in zip(walls.windows_NCHW, walls.angle_N, strict=True)]
    assert len(steps) >= 20
    assert max(steps) < -0.8


def test_domains_have_one_sign_and_ends_of_domains_both() -> None:
    _, part = simulated("pfm-walls")
    middle = part.windows_NCHW[:, 0, 8:16, 8:16].mean(axis=(1, 2))
    assert (middle[part.class_N == pfm_domains.UP] < -0.3).all()
    assert (middle[part.class_N == pfm_domains.DOWN] > 0.3).all()
    ends = part.windows_NCHW[part.class_N == pfm_domains.END, 0]
    assert (ends.min(axis=(1, 2)) < -0.1).all()
    assert (ends.max(axis=(1, 2)) > 0.1).all()


def drawn_polar(kind: str) -> NDArray[np.float32]:
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    up = {
        "domain up": np.ones_like(x, bool),
        "straight wall": x > 0.05,
        "end of a domain up": (np.abs(y) < 0.4) & (x > 0),
        "strip down": np.abs(y) > 0.3,
        "island up": np.hypot(x, y) < 0.5,
    }[kind]
    return np.where(up, 1.0, -1.0).astype(np.float32)


@pytest.mark.parametrize(
    "kind", ["domain up", "straight wall", "end of a domain up", "strip down", "island up"]
)
def test_a_drawn_film_is_called_by_its_name(kind: str) -> None:
    told = pfm_domains.shown(drawn_polar(kind), np.array([[50.0, 50.0]]), 100.0)
    assert tuple(pfm_domains.KINDS)[told.kind_N[0]] == kind
    if pfm_domains.KINDS[kind]:
        assert math.remainder(told.angle_N[0], math.pi) == pytest.approx(0, abs=0.05)


def test_what_lies_around_a_rod_is_called_by_its_name() -> None:
    rods = afm_rods.Rods(
        np.array([[0.0, 0.0], [0.0, 4.0], [60.0, 0.0], [120.0, 0.0], [120.0, 4.0], [120.0, -4.0]]),
        np.array([0.0, 0.05, 1.0, 0.0, 0.0, 0.0]),
        half_nm=12.0,
    )
    kind, angle = rods.kinds()
    expected = [afm_rods.BESIDE, afm_rods.BESIDE, afm_rods.ALONE, afm_rods.ROW, afm_rods.BESIDE]
    assert kind[:5].tolist() == expected
    assert angle[0] == pytest.approx(math.pi / 2)
    assert angle[1] == pytest.approx(0.05 - math.pi / 2)
    assert angle[2] == pytest.approx(1.0)


def test_a_rod_across_the_end_of_another_is_seen_from_both() -> None:
    rods = afm_rods.Rods(np.array([[0.0, 0.0], [16.0, 0.0]]), np.array([0.0, math.pi / 2]), half_nm=12.0)
    assert rods.kinds()[0].tolist() == [afm_rods.ACROSS, afm_rods.ACROSS]


def test_the_shift_of_a_rod_is_where_its_window_shows_it() -> None:
    preset, part = simulated("afm-rods")
    alone = part.only(part.class_N == afm_rods.ALONE)
    axis = (np.arange(preset.window_px) - (preset.window_px - 1) / 2) * preset.window_nm / preset.window_px
    near = np.hypot(axis[:, None], axis) < 9  # where nothing but the rod is
    across = np.stack([-np.sin(alone.angle_N), np.cos(alone.angle_N)], axis=1)
    seen = np.array(
        [
            np.average((axis[:, None] * down + axis * right)[near], weights=np.maximum(window[near], 0) ** 2)
            for window, (right, down) in zip(alone.windows_NCHW[:, 0], across, strict=True)
        ]
    )
    expected = (alone.shift_N2 * across).sum(axis=1)
    assert np.corrcoef(seen, expected)[0, 1] > 0.4


def test_the_two_atoms_of_a_cell_are_one_class_half_a_turn_apart() -> None:
    instrument = DiffractionInstrument(DiffractionConfig(seed=1, field_of_view_nm=4.0), started_at_s=0.0)
    sites = diffraction.sites_of(instrument, 1.5)
    atoms = np.flatnonzero(sites.class_N == diffraction.ATOM)
    away = np.linalg.norm(sites.positions_nm[atoms, None] - sites.positions_nm[atoms], axis=2)
    one, other = np.argwhere(np.abs(away - diffraction.BOND_NM) < 0.01)[0]
    turn = 3 * (sites.angle_N[atoms[one]] - sites.angle_N[atoms[other]])
    assert abs(math.remainder(turn, 2 * math.pi)) == pytest.approx(math.pi, abs=0.2)
    rings = sites.positions_nm[sites.class_N == diffraction.RING]
    near = np.linalg.norm(rings[:, None] - sites.positions_nm[atoms], axis=2).min(axis=1)
    assert near == pytest.approx(diffraction.BOND_NM, abs=0.015)


def test_a_series_shows_the_same_places_at_turns_that_its_angles_follow() -> None:
    preset = pfm_domains.WALLS
    shown = preset.series(preset, np.random.default_rng(11))  # type: ignore[misc]
    walls = shown.only(shown.class_N == pfm_domains.WALL)
    steps = [halves(one[0], angle) for one, angle in zip(walls.windows_NCHW, walls.angle_N, strict=True)]
    assert max(steps) < -0.5
    assert np.ptp(np.unique(walls.same_N, return_counts=True)[1]) <= 11
    assert UNKNOWN not in walls.same_N
