"""Every preset says truly what its windows show, and is judged by figures that can tell good from bad."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import label, rotate

from deploy.presets.groups import groups_of, mixture_groups
from deploy.presets.judging import angle_errors, class_scores, errors_between_turns, invariance, judged
from deploy.presets.known import KNOWN, preset_of
from deploy.presets.preset import UNKNOWN, Labelled, Preset, drawn, joined, thinned
from deploy.presets.stem_windows import directions
from models.encoder import Encoded
from models.normalisation import RULES

STEM = ("graphene-si", "perovskite", "mos2")


def labelled(class_N: list[int], same_N: list[int] | None = None) -> Labelled:
    count = len(class_N)
    return Labelled.of(
        np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 4, 4), np.float32),
        class_N=np.array(class_N),
        angle_N=np.zeros(count),
        same_N=None if same_N is None else np.array(same_N),
    )


def encoded(angle_rad: NDArray[np.float64], sd_rad: float = 0.1) -> Encoded:
    n = len(angle_rad)
    empty = {name: np.zeros((n, 0), np.float32) for name in Encoded._fields}
    said = {"angle_rad": angle_rad.astype(np.float32), "angle_sd_rad": np.full(n, sd_rad, np.float32)}
    return Encoded(**(empty | said))


# -- windows and their truth -------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_a_preset_has_what_its_card_needs(name: str) -> None:
    preset = preset_of(name)
    assert preset.name == name
    assert preset.normalisation in RULES
    assert len(preset.classes) == len(preset.symmetry)
    assert (preset.window_nm > 0) != (preset.window_per_nm > 0)
    assert "{count}" in preset.data


@pytest.mark.parametrize("name", STEM)
def test_the_same_seed_draws_the_same_windows_of_every_class(name: str) -> None:
    preset = preset_of(name)
    first = preset.simulate(preset, 300, np.random.default_rng(2))
    second = preset.simulate(preset, 300, np.random.default_rng(2))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))
    assert len(first.class_N) == 300
    assert len(set(first.class_N.tolist()) - {UNKNOWN}) >= len(preset.classes) - 1
    assert first.windows_NCHW.dtype == np.float32
    assert np.isfinite(first.windows_NCHW).all()
    middle = first.windows_NCHW[:, 0, 10:14, 10:14].mean((1, 2))
    assert np.median(middle) > np.median(first.windows_NCHW)  # a column is in the middle, and bright


@pytest.mark.parametrize(
    ("name", "kind"), [("graphene-si", 3), ("graphene-si", 4), ("mos2", 4), ("mos2", 1), ("perovskite", 0)]
)
def test_windows_that_are_turned_back_by_their_angle_look_alike(name: str, kind: int) -> None:
    preset = preset_of(name)
    part = preset.simulate(preset, 600, np.random.default_rng(4))
    part = part.only(part.class_N == kind)

    row, col = np.indices(part.windows_NCHW.shape[2:]) - 11.5
    around = (np.hypot(row, col) > 5) & (np.hypot(row, col) < 11)  # the middle is the same at all turns

    def sharpness(angle_rad: NDArray[np.float64]) -> float:
        back = [
            rotate(window, math.degrees(angle), reshape=False, order=1, mode="nearest")
            for window, angle in zip(part.windows_NCHW[:, 0], angle_rad, strict=True)
        ]
        return float(np.mean(back, axis=0)[around].std())

    assert sharpness(part.angle_N) > 1.15 * sharpness(-part.angle_N)
    assert sharpness(part.angle_N) > 1.15 * sharpness(np.random.default_rng(0).permutation(part.angle_N))


def test_a_wider_window_is_cut_where_it_is_asked_for() -> None:
    preset = preset_of("mos2")
    wider = msgspec.structs.replace(preset, window_nm=2 * preset.window_nm)
    part = wider.simulate(wider, 200, np.random.default_rng(6))
    narrow = preset.simulate(preset, 200, np.random.default_rng(6))
    assert _bright_spots(part) > 2 * _bright_spots(narrow)  # twice as wide shows the next molybdenums


def _bright_spots(part: Labelled) -> float:
    """Count what stands out of the windows around molybdenum, on average."""
    windows = part.windows_NCHW[part.class_N == 0, 0]
    return float(np.mean([label(window > 0.5 * window.max())[1] for window in windows]))


def test_the_direction_of_three_neighbours_is_that_of_any_of_them() -> None:
    around = np.radians([20.0, 140.0, 260.0])
    positions = np.concatenate([[[0.0, 0.0]], 0.142 * np.stack([np.cos(around), np.sin(around)], axis=1)])
    angle = directions(positions, np.ones(4), np.array([3, 0, 0, 0]), reach_nm=0.2, width_nm=0.1)
    assert math.degrees(angle[0]) % 120 == pytest.approx(20.0)
    assert np.isnan(angle[1:]).all()


# -- putting windows together ------------------------------------------------------------------------


def test_thinning_takes_the_classes_evenly_as_far_as_they_go() -> None:
    part = labelled([0] * 100 + [1] * 10 + [2] * 3)
    kept = thinned(part, 30, np.random.default_rng(0))
    assert np.bincount(kept.class_N).tolist() == [17, 10, 3]
    assert len(set(kept.windows_NCHW[:, 0, 0, 0].tolist())) == 30


def test_places_of_different_frames_stay_apart_when_joined() -> None:
    together = joined([labelled([0, 0, 1], [0, 0, 1]), labelled([0, 1], [0, UNKNOWN])])
    assert together.same_N.tolist() == [0, 0, 1, 2, UNKNOWN]


def test_drawing_never_repeats_a_window() -> None:
    kept = drawn(labelled([0] * 20), 50, np.random.default_rng(0))
    assert sorted(kept.windows_NCHW[:, 0, 0, 0].tolist()) == list(range(20))


def test_an_unknown_preset_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"diamond: no such preset; it takes graphene-si, perovskite, mos2"):
        preset_of("diamond")


def test_a_preset_with_two_edges_is_refused() -> None:
    with pytest.raises(ValueError, match="one of window_nm and window_per_nm is above 0"):
        msgspec.structs.replace(preset_of("mos2"), window_per_nm=20.0)


# -- figures -------------------------------------------------------------------------------------------


def test_an_angle_is_right_up_to_the_symmetry_of_its_class_and_one_offset() -> None:
    rng = np.random.default_rng(1)
    part = labelled([0] * 40)._replace(angle_N=rng.uniform(-3, 3, 40))
    turned = part.angle_N + 0.7 + rng.integers(0, 3, 40) * 2 * math.pi / 3
    (good,) = angle_errors((3,), encoded(turned), part).values()
    assert np.abs(good.error_rad).max() < 1e-5
    assert good.concentration == pytest.approx(1.0)
    (bad,) = angle_errors((1,), encoded(turned), part).values()
    assert bad.concentration < 0.6
    (mirrored,) = angle_errors((3,), encoded(-part.angle_N), part).values()
    assert mirrored.concentration < 0.5


def test_the_error_between_two_turns_is_counted_in_sds_of_their_difference() -> None:
    part = labelled([0] * 4, [0, 0, 1, 1])._replace(angle_N=np.array([0.0, 1.0, 0.5, 2.0]))
    said = np.array([0.3, 1.3 + 0.2, 0.0, 1.5])  # the first place by 0.2 wrong, the second by none
    in_sd = errors_between_turns((1,), encoded(said, 0.1), part)
    assert in_sd == pytest.approx([0.2 / (0.1 * math.sqrt(2)), 0.0], abs=1e-5)


def test_invariance_is_the_spread_of_a_place_by_that_of_the_classes() -> None:
    part = labelled([0] * 6 + [1] * 6, [0] * 6 + [1] * 6)
    jitter = np.tile([-0.1, 0.1], 6)
    latents = (np.repeat([0.0, 2.0], 6) + jitter)[:, None].astype(np.float32)
    assert invariance(latents, part) == pytest.approx(0.01, rel=1e-5)


def test_latents_that_part_the_classes_score_one_and_shuffled_ones_nothing() -> None:
    rng = np.random.default_rng(3)
    class_N = rng.integers(0, 3, 300)
    apart = (rng.normal(0, 0.1, (300, 2)) + 3 * np.stack([class_N, class_N == 1], axis=1)).astype(np.float32)
    assert class_scores(apart, class_N) == pytest.approx({"ari": 1.0, "knn": 1.0})
    shuffled = class_scores(apart, rng.permutation(class_N))
    assert shuffled["ari"] < 0.1
    assert shuffled["knn"] < 0.5


def test_groups_of_a_mixture_may_be_long_where_those_of_k_means_are_not() -> None:
    rng = np.random.default_rng(5)
    long = rng.normal(0, 1, (400, 2)) * [10.0, 0.3]
    long[200:, 1] += 4.0
    truth = np.repeat([0, 1], 200)
    assert _agree(mixture_groups(long, 2), truth) == 1.0
    assert _agree(groups_of(long, 2), truth) < 0.7


def _agree(groups: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    return max(float((groups == truth).mean()), float((groups != truth).mean()))


def test_judging_by_an_even_seed_is_refused() -> None:
    preset: Preset = preset_of("mos2")
    with pytest.raises(ValueError, match="seed is 4; figures are measured on odd ones"):
        judged(preset, None, 4)  # type: ignore[arg-type]
