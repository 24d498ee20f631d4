"""Two columns that a finder takes for one are told apart by the fit; what is only long stays one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models import column_fit
from models.close_pairs import elongated
from models.column_fit import JointFit, NoiseLaw, fit_jointly
from streamer.messages import Atoms
from streamer.stages import find_atoms
from streamer.stages.find_atoms import FindAtoms, FindConfig
from tests.unit.test_find_atoms import SIGMA_NM, drawn, found_nm

Array = NDArray[np.float64]
PIXEL_NM = 0.0125
SIGMA_PX = SIGMA_NM / PIXEL_NM
MIDDLE_NM = np.array([1.13, 1.27])
DIRECTION = np.array([math.cos(0.7), math.sin(0.7)])


def lattice(step_nm: float = 0.21) -> Array:
    """Columns around the middle, that itself being empty, ``(row, col)`` in nm."""
    i, j = np.meshgrid(np.arange(-6, 7), np.arange(-6, 7), indexing="ij")
    turn = np.array([[math.cos(0.2), math.sin(0.2)], [-math.sin(0.2), math.cos(0.2)]])
    places: Array = step_nm * np.stack([i.ravel(), j.ravel()], axis=1) @ turn + MIDDLE_NM
    others = np.hypot(*(places - MIDDLE_NM).T) > 0.1
    return places[others & (places > -0.1).all(axis=1) & (places < 2.6).all(axis=1)]


def seen(middle: Array, parts: Array, seed: int = 1) -> tuple[NDArray[np.float32], Array]:
    """A frame with spots of these heights amid others, and candidates: the others and one for all."""
    others = lattice()
    sites, heights = np.vstack([others, middle]), np.concatenate([np.full(len(others), 60.0), parts])
    frame = drawn(sites, heights, shape=(180, 200), rng=np.random.default_rng(seed))
    candidates = np.vstack([others, np.average(middle, axis=0, weights=parts)]) / PIXEL_NM
    inside = ((candidates > 0) & (candidates < np.array([179, 199]))).all(axis=1)
    return frame.image[0], candidates[inside]


def pair(widths: float) -> Array:
    return MIDDLE_NM + widths * SIGMA_NM * np.array([[-0.5], [0.5]]) * DIRECTION


def fitted(image: NDArray[np.float32], candidates: Array, threads: int = 1) -> JointFit:
    heights = np.full(len(candidates), 60.0)
    return fit_jointly(image, candidates, heights, (SIGMA_PX, SIGMA_PX), NoiseLaw(), threads=threads)


@pytest.mark.parametrize("widths", [1.8, 2.0, 2.5, 2.9])
@pytest.mark.parametrize("fainter", [60.0, 36.0])
def test_a_pair_seeded_between_looks_like_two_where_they_are(widths: float, fainter: float) -> None:
    truth = pair(widths)
    fit = fitted(*seen(truth, np.array([fainter, 60.0])))
    assert fit.double.tolist() == [len(fit.positions_px) - 1]
    off, which = cKDTree(fit.double_px[0]).query(truth / PIXEL_NM)
    assert off.max() < 0.45 * SIGMA_PX
    assert fainter == 60 or which[1] == 0, "the higher one comes first"


def test_a_pair_that_the_finder_took_for_one_is_reported_as_two() -> None:
    truth = pair(2.2)
    sites = np.vstack([lattice(), truth])
    frame = drawn(sites, np.full(len(sites), 60.0), shape=(180, 200), rng=np.random.default_rng(3))
    # Of maxima this near the higher one is kept: whatever the finder sees, it has one candidate.
    atoms = FindAtoms(FindConfig(min_distance_nm=0.12)).process(frame)
    distance, which = cKDTree(found_nm(atoms)).query(truth)
    assert len(set(which)) == 2
    assert distance.max() < 0.3 * SIGMA_NM
    assert atoms.confidence[which].min() > 0.5
    assert cKDTree(sites).query(found_nm(atoms))[0].max() < 0.3 * SIGMA_NM


def test_a_column_of_which_pixels_are_missing_is_not_split() -> None:
    image, candidates = seen(pair(2.5), np.array([60.0, 60.0]))
    assert len(fitted(image, candidates).double) == 1
    row, col = np.rint(MIDDLE_NM / PIXEL_NM).astype(int)
    image[row + 9 :, col - 6 : col + 6] = math.nan
    assert not len(fitted(image, candidates).double)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_columns_that_are_one_each_do_not_look_like_two(seed: int) -> None:
    assert not len(fitted(*seen(MIDDLE_NM[None], np.array([60.0]), seed)).double)


def test_only_what_is_longer_than_the_others_is_long() -> None:
    noise = np.random.default_rng(8).normal(0, 1, (300, 2))
    info = np.full(300, 400.0)
    shapes = np.column_stack([info[:, None] * [0.5, -0.4] + np.sqrt(info)[:, None] * noise, info])
    assert not elongated(shapes)
    shapes[[7, 9], :2] += info[:2, None] * np.array([[0.0, 0.6], [0.0, -0.8]])
    found = elongated(shapes)
    assert [column for column, _ in found] == [9, 7]
    assert [axis_rad for _, axis_rad in found] == pytest.approx([-math.pi / 4, math.pi / 4], abs=0.15)


def test_a_lattice_of_long_columns_has_no_pairs() -> None:
    others = np.vstack([lattice(), MIDDLE_NM])
    offsets = np.random.default_rng(4).normal(0, 0.9 * SIGMA_NM, (60, 1)) * DIRECTION
    smeared = (others[:, None] + offsets).reshape(-1, 2)
    frame = drawn(smeared, np.full(len(smeared), 5.0), shape=(180, 200), rng=np.random.default_rng(5))
    inside = ((others > 0) & (others < np.array([179, 199]) * PIXEL_NM)).all(axis=1)
    assert not len(fitted(frame.image[0], others[inside] / PIXEL_NM).double)


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_one_atom_that_drifted_two_widths_stays_one(seed: int) -> None:
    way = MIDDLE_NM + np.linspace(-1, 1, 21)[:, None] * SIGMA_NM * DIRECTION
    assert not len(fitted(*seen(way, np.full(21, 120.0 / 21), seed)).double)


def test_a_frame_without_pairs_has_the_bits_it_has_if_nobody_looks_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sites = np.vstack([lattice(), MIDDLE_NM])
    frame = drawn(sites, np.full(len(sites), 60.0), shape=(180, 200), rng=np.random.default_rng(6))
    atoms = FindAtoms().process(frame)
    monkeypatch.setattr(column_fit, "close_pairs", nobody)
    same(atoms, FindAtoms().process(frame))


def test_a_split_that_does_not_hold_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = np.vstack([lattice(), MIDDLE_NM])
    frame = drawn(sites, np.full(len(sites), 60.0), shape=(180, 200), rng=np.random.default_rng(7))
    monkeypatch.setattr(column_fit, "close_pairs", nobody)
    atoms = FindAtoms().process(frame)
    fits: list[int] = []

    def split(self: FindAtoms, *arguments: object) -> JointFit:
        fit = plain(self, *arguments)  # type: ignore[arg-type]
        fits.append(len(fit.positions_px))
        one = int(np.argmin(np.hypot(*(fit.positions_px - MIDDLE_NM / PIXEL_NM).T)))
        two = pair(2.0)[None] / PIXEL_NM
        return replace(fit, double=np.array([one]), double_px=two) if len(fits) == 1 else fit

    plain = FindAtoms._fitted
    monkeypatch.setattr(FindAtoms, "_fitted", split)
    same(atoms, FindAtoms().process(frame))
    assert fits[1] == fits[0] + 1


def test_of_two_as_near_as_a_smear_or_of_which_one_is_faint_none_is_kept() -> None:
    image, candidates = seen(pair(2.0), np.array([60.0, 60.0]))
    both = np.vstack([candidates[:-1], pair(2.0) / PIXEL_NM])
    fit, one, other = fitted(image, both), np.array([len(both) - 2]), np.array([len(both) - 1])
    assert find_atoms._are_two(fit, one, other).all()
    near, faint = fit.positions_px.copy(), fit.amplitude.copy()
    near[-2:] = pair(1.4) / PIXEL_NM
    faint[-1] *= 0.15
    for changed in (replace(fit, positions_px=near), replace(fit, amplitude=faint)):
        assert not find_atoms._are_two(changed, one, other).any()


def test_two_threads_split_with_the_bits_of_one() -> None:
    image, candidates = seen(pair(2.0), np.array([60.0, 60.0]))
    one, two = (fitted(image, candidates, threads) for threads in (1, 2))
    assert len(one.double) == 1
    np.testing.assert_array_equal(one.double, two.double)
    np.testing.assert_array_equal(one.double_px, two.double_px)


def nobody(*_: object) -> tuple[NDArray[np.int64], Array]:
    return np.empty(0, dtype=np.int64), np.empty((0, 2, 2))


def same(one: Atoms, other: Atoms) -> None:
    for name in ("positions_px", "confidence", "amplitude", "position_covariance_px2"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
