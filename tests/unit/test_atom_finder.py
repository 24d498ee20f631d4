"""The finder of columns: what it sees, how it reads its maps, and what it does with odd frames."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch.nn.functional import interpolate

from models import atom_finder, checkpoint
from models.atom_finder import (
    AtomFinder,
    Calibration,
    ColumnNet,
    FinderConfig,
    Found,
    columns_of,
    features,
    level_and_spread,
    peaks,
)
from models.checkpoint import CheckpointError, ModelCard
from simulators.column_images import ColumnImage, ColumnImageConfig, column_image

Float32 = NDArray[np.float32]
PLAIN = ColumnImageConfig(
    size_px=256, sigma_px=(2.4, 2.6), counts=(60.0, 60.0), snr=(12.0, 14.0), is_plain=True
)


@pytest.fixture(scope="module")
def shipped() -> AtomFinder:
    return AtomFinder.load()


@pytest.fixture(scope="module")
def exact() -> AtomFinder:
    return AtomFinder.load(precision="float32")


def drawn(seed: int = 0, kind: str = "lattice", config: ColumnImageConfig = PLAIN) -> ColumnImage:
    return column_image(np.random.default_rng(seed), config, kind)  # type: ignore[arg-type]


def hits(found: Found, truth: ColumnImage) -> tuple[float, float]:
    """Precision, and recall of what stands out, at a tolerance of 2 px; away from the edge."""
    inner, ours = (np.all((p > 6) & (p < 249), axis=1) for p in (truth.positions_px, found.positions_px))
    away = np.hypot(*(found.positions_px[:, None] - truth.positions_px).transpose(2, 0, 1))
    asked = inner & (truth.snr >= 8)
    return float((away.min(axis=1)[ours] < 2).mean()), float((away.min(axis=0)[asked] < 2).mean())


def same(one: Found, other: Found, tolerance: float = 0.0) -> None:
    assert len(one.confidence) == len(other.confidence)
    for field in fields(Found):
        np.testing.assert_allclose(getattr(one, field.name), getattr(other, field.name), atol=tolerance)


# -- what the network sees


def test_features_of_white_noise_are_in_units_of_the_noise() -> None:
    noise = np.random.default_rng(1).normal(0, 7, (512, 512)).astype(np.float32)

    seen = features(noise)

    assert seen.shape == (8, 256, 256)
    assert seen.dtype == np.float32
    # The response is divided by four sd, then compressed.
    assert seen[4].std() == pytest.approx(0.25, rel=0.05)
    assert np.sinh(seen[5]).std() == pytest.approx(1.0, rel=0.05)
    assert np.sinh(seen[6]).std() == pytest.approx(1.0, rel=0.1)
    assert abs(seen[7].mean()) < 0.1


def test_features_do_not_know_the_unit_of_the_image() -> None:
    image = drawn().image

    np.testing.assert_allclose(features(image * 37 - 900), features(image), atol=2e-3)


def test_features_of_a_constant_image_are_zero() -> None:
    assert not features(np.full((64, 64), 5.0, dtype=np.float32)).any()


def test_the_response_is_the_difference_of_two_gaussians() -> None:
    image = np.zeros((64, 64), dtype=np.float32)
    image[32:34, 32:34] = 1.0

    narrow = atom_finder.blurred(image, 2.0)

    row, col = np.mgrid[:64, :64] - 32.5
    expected = np.exp(-(row**2 + col**2) / (2 * (2.0**2 + 0.25))) * 4 / (2 * np.pi * 4.25)
    np.testing.assert_allclose(narrow, expected, atol=0.004)
    assert narrow.sum() == pytest.approx(4.0, rel=1e-4)


def test_means_around_are_those_of_the_part_that_is_there() -> None:
    image = np.random.default_rng(2).random((9, 12)).astype(np.float32)

    mean = atom_finder._mean_around(image, 3)

    for row, col in ((0, 0), (4, 6), (8, 11), (2, 10)):
        part = image[max(row - 3, 0) : row + 4, max(col - 3, 0) : col + 4]
        assert mean[row, col] == pytest.approx(part.mean(), rel=1e-5)


def test_level_and_spread_ignore_rows_that_were_not_scanned_and_pixels_that_are_no_numbers() -> None:
    scanned = np.random.default_rng(3).normal(50, 4, (40, 100)).astype(np.float32)
    blanked = np.concatenate([scanned, np.zeros((60, 100), np.float32)])
    blanked[3, ::7] = np.nan
    blanked[4, ::7] = np.inf

    level, spread = level_and_spread(blanked)

    assert level == pytest.approx(50, abs=0.5)
    assert spread == pytest.approx(4, rel=0.1)


# -- the network


def net_with_history() -> ColumnNet:
    """Make a network whose normalisations have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = ColumnNet(FinderConfig(half=8, quarter=8, eighth=8), norm=True)
        for _ in range(3):
            net(torch.randn(4, 8, 16, 24))
    return net.eval()


def test_folding_the_normalisations_changes_nothing() -> None:
    net = net_with_history()
    x = torch.randn(2, 8, 32, 16, generator=torch.Generator().manual_seed(5))

    with torch.inference_mode():
        torch.testing.assert_close(net.folded()(x), net(x), atol=1e-5, rtol=1e-4)


def test_adding_a_coarse_map_is_adding_it_enlarged() -> None:
    random = torch.Generator().manual_seed(6)
    fine, coarse = torch.randn(2, 5, 8, 12, generator=random), torch.randn(2, 5, 4, 6, generator=random)

    added = atom_finder._plus_coarse(fine, coarse)

    torch.testing.assert_close(added, fine + interpolate(coarse, scale_factor=2.0, mode="nearest"))


def test_nothing_enters_an_answer_from_beyond_the_reach() -> None:
    net = net_with_history().folded()
    seen = torch.randn(1, 8, 128, 128, generator=torch.Generator().manual_seed(7))
    other = seen.clone()
    other[..., 64 + atom_finder.REACH_PX // 2 :] += 10

    with torch.inference_mode():
        before, after = net(seen), net(other)

    torch.testing.assert_close(after[..., :64], before[..., :64])
    assert not torch.equal(after[..., 64:], before[..., 64:])


# -- maps to columns


def test_peaks_are_above_all_eight_neighbours_and_of_equals_the_first_counts() -> None:
    logit = np.full((6, 7), -9.0, dtype=np.float32)
    logit[1, 1], logit[1, 2] = 3.0, 2.0
    logit[4, 4] = logit[4, 5] = 1.0
    logit[0, 6] = -2.0

    np.testing.assert_array_equal(peaks(logit, -1.0), [[1, 1], [4, 4]])
    np.testing.assert_array_equal(peaks(logit, -3.0), [[0, 6], [1, 1], [4, 4]])


def test_more_peaks_than_were_planned_for_are_all_given() -> None:
    logit = np.zeros((120, 120), dtype=np.float32)
    logit[::2, ::2] = 1.0

    assert len(peaks(logit, 0.5)) == 3600


def test_a_cell_and_its_offset_make_a_place_in_pixels() -> None:
    maps = np.full((5, 4, 4), -9.0, dtype=np.float32)
    maps[:, 1, 2] = [2.0, 0.25, -0.75, -1.0, 4.0]

    places, values = columns_of(maps, 0.0)

    np.testing.assert_allclose(places, [[2.75, 3.75]])
    np.testing.assert_allclose(values, [[2.0, -1.0, 4.0]])


def test_a_peak_alone_goes_by_one_line_a_crowded_one_by_the_other() -> None:
    calibration = Calibration(logit=(-2.0, 0.0, 2.0), alone=(0.0, 0.6, 1.0), crowded=(0.0, 0.2, 1.0))
    few, many = calibration.crowd
    between = np.expm1((np.log1p(few) + np.log1p(many)) / 2)

    confidence = calibration.confidence(np.zeros(5, np.float32), np.array([0, few, between, many, 900.0]))

    np.testing.assert_allclose(confidence, [0.6, 0.6, 0.4, 0.2, 0.2])


def test_below_the_least_logit_there_is_never_the_confidence() -> None:
    calibration = Calibration(logit=(-2.0, 0.0, 3.0), alone=(0.1, 0.4, 0.9), crowded=(0.0, 0.2, 0.8))

    for confidence in (0.15, 0.4, 0.7):
        least = calibration.least_logit(confidence)
        at = calibration.confidence(np.full(2, least, np.float32), np.array([0.0, 900.0]))
        assert at.max() == pytest.approx(confidence, abs=1e-6)
    assert calibration.least_logit(0.05) == -np.inf
    assert calibration.least_logit(0.95) == np.inf


def test_sure_columns_are_counted_in_a_square_of_eighty_pixels_that_goes_on_beyond_the_edge() -> None:
    row, col = np.mgrid[8:160:16, 8:240:16]
    places = np.stack([row.ravel(), col.ravel()], axis=1).astype(np.float64)
    logit = np.where(places[:, 1] < 120, 1.0, -1.0).astype(np.float32)

    around = atom_finder.sure_around(places, logit, (160, 240))

    np.testing.assert_allclose(around[places[:, 1] < 80], 25)
    np.testing.assert_allclose(around[places[:, 1] > 160], 0)


# -- the finder


def test_the_columns_of_lattices_are_found_and_nothing_else(shipped: AtomFinder) -> None:
    judged = []
    for seed in range(1, 25, 2):
        truth = drawn(seed)
        spacing = np.median(cKDTree(truth.positions_px).query(truth.positions_px, k=2)[0][:, 1])
        if spacing > 3.3 * truth.sigma_px:  # nearer ones melt into one another
            judged.append(hits(shipped.find(truth.image, 0.5), truth))

    precision, recall = np.mean(judged, axis=0)
    assert len(judged) >= 3
    assert precision > 0.97
    assert recall > 0.99


def test_single_atoms_are_found_near_to_where_they_are_and_come_surest_first(shipped: AtomFinder) -> None:
    truth = drawn(11, "sparse")

    found = shipped.find(truth.image)

    away = np.hypot(*(found.positions_px[:, None] - truth.positions_px).transpose(2, 0, 1))
    assert (away.min(axis=0) < 1.5).mean() > 0.9
    assert np.all(np.diff(found.confidence) <= 0)
    assert np.all((found.confidence > 0) & (found.confidence <= 1))
    assert np.all(found.sd_px > 0)


def test_a_higher_confidence_asked_for_gives_the_surest_of_the_same_columns(shipped: AtomFinder) -> None:
    image = drawn(13, "sparse", ColumnImageConfig(snr=(3.0, 6.0))).image

    all_of_them, sure = shipped.find(image, 0.2), shipped.find(image, 0.8)

    count = len(sure.confidence)
    assert count < len(all_of_them.confidence)
    np.testing.assert_array_equal(sure.positions_px, all_of_them.positions_px[:count])
    assert count == int((all_of_them.confidence >= 0.8 - 1e-6).sum())


def test_unit_and_offset_of_the_image_do_not_matter(exact: AtomFinder) -> None:
    image = drawn(2).image

    same(exact.find(image), exact.find(image * 0.01 + 3), tolerance=0.02)


def test_bfloat16_finds_what_float32_finds(exact: AtomFinder) -> None:
    image = drawn(9).image
    rounded = AtomFinder.load(precision="bfloat16").find(image)
    found = exact.find(image)

    away = np.hypot(*(rounded.positions_px[:, None] - found.positions_px).transpose(2, 0, 1)).min(axis=1)
    assert abs(len(rounded.confidence) - len(found.confidence)) <= 0.01 * len(found.confidence)
    assert np.median(away) < 0.05


@pytest.mark.parametrize("shape", [(256, 256), (251, 255), (130, 97), (9, 300), (1, 1), (2, 3)])
def test_any_size_of_frame_is_taken_and_columns_lie_on_it(
    shipped: AtomFinder, shape: tuple[int, int]
) -> None:
    image = drawn(4).image[: shape[0], : shape[1]] if shape[1] <= 256 else np.tile(drawn(4).image, (1, 2))
    image = image[: shape[0], : shape[1]]

    found = shipped.find(image)

    assert np.all(found.positions_px >= -0.5)
    assert np.all(found.positions_px <= np.array(shape) - 0.5)


def test_a_frame_cut_at_its_far_sides_has_the_same_columns_away_from_the_cut(exact: AtomFinder) -> None:
    # The unit of brightness is that of the whole frame: a lattice is the same everywhere.
    image = drawn(4).image
    inside = 251 - atom_finder.REACH_PX

    whole, cut = exact.find(image), exact.find(image[:251, :253])

    ours, theirs = (f.positions_px[(f.positions_px < inside).all(axis=1)] for f in (whole, cut))
    assert len(ours) == len(theirs) > 50
    away = np.hypot(*(ours[:, None] - theirs).transpose(2, 0, 1)).min(axis=1)
    assert away.max() < 0.1


def test_tiles_give_the_same_answer_as_the_whole(exact: AtomFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.tile(drawn(6).image, (2, 2))[:500, :470]
    whole = exact.maps(image)

    monkeypatch.setattr(atom_finder, "TILE_PX", 128)

    np.testing.assert_allclose(exact.maps(image), whole, atol=2e-4)


def test_constant_blanked_and_empty_frames_have_no_columns(shipped: AtomFinder) -> None:
    for image in (
        np.zeros((64, 64), np.float32),
        np.full((65, 63), 1e6, np.float32),
        np.full((64, 64), np.nan, np.float32),
        np.zeros((0, 64), np.float32),
    ):
        assert len(shipped.find(image).confidence) == 0


def _blank(image: Float32) -> None:
    image[150:] = 0


def _saturate(image: Float32) -> None:
    image[100:180, 60:200] = image.max()


def _lose(image: Float32) -> None:
    image[100:180, 60:200] = np.nan


@pytest.mark.parametrize("spoil", [_blank, _saturate, _lose])
def test_nothing_is_found_where_nothing_was_seen_and_the_rest_is(
    shipped: AtomFinder, spoil: Callable[[Float32], None]
) -> None:
    truth = drawn(8)
    image, marked = truth.image.copy(), np.zeros_like(truth.image)
    spoil(image)
    spoil(marked - 1)  # where it writes does not depend on what is there
    is_lost = image != truth.image
    spoilt_rows, spoilt_cols = np.nonzero(is_lost)
    low = np.array([spoilt_rows.min(), spoilt_cols.min()]) + 4
    high = np.array([spoilt_rows.max(), spoilt_cols.max()]) - 4

    found = shipped.find(image)

    within = np.all((found.positions_px > low) & (found.positions_px < high), axis=1)
    assert within.sum() <= 1
    beside = np.all((truth.positions_px > 6) & (truth.positions_px < 90), axis=1)
    away = np.hypot(*(found.positions_px[:, None] - truth.positions_px[beside]).transpose(2, 0, 1))
    assert (away.min(axis=0) < 2).mean() > 0.97


def test_no_column_is_reported_on_a_pixel_that_is_no_number(shipped: AtomFinder) -> None:
    image = drawn(8).image.copy()
    row, col = np.rint(shipped.find(image).positions_px[:30]).astype(int).T
    image[row, col] = np.nan

    on_row, on_col = np.rint(shipped.find(image).positions_px).astype(int).T

    assert len(on_row) > 10
    assert np.isfinite(image[on_row, on_col]).all()


def test_finding_touches_neither_the_image_nor_global_state(shipped: AtomFinder) -> None:
    image = drawn(1).image
    before, threads, state = image.copy(), torch.get_num_threads(), torch.get_rng_state()

    one, again = shipped.find(image), shipped.find(image)

    same(one, again)
    np.testing.assert_array_equal(image, before)
    AtomFinder.load()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_more_than_two_axes_are_refused(shipped: AtomFinder) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 64, 64\); the finder takes \(height, width\)"):
        shipped.find(np.zeros((1, 64, 64), np.float32))


# -- weights


def card(**changes: object) -> ModelCard:
    whole = ModelCard(
        name="small",
        family="finder",
        channels=("image",),
        window_px=64,
        architecture={
            "half": 8,
            "quarter": 8,
            "eighth": 8,
            "canonical_sigma_px": 2.5,
            "sigma_limits_px": [1.5, 4.0],
        },
        calibration=msgspec.to_builtins(Calibration()),
    )
    return msgspec.structs.replace(whole, **changes)  # type: ignore[arg-type]


def weights() -> dict[str, torch.Tensor]:
    return dict(ColumnNet(FinderConfig(half=8, quarter=8, eighth=8)).state_dict())


def test_saved_weights_find_the_same_columns(tmp_path: Path, exact: AtomFinder) -> None:
    path = tmp_path / "again.safetensors"
    tensors, its_card, _ = checkpoint.load(
        Path(atom_finder.__file__).parent / "weights" / atom_finder.SHIPPED
    )
    checkpoint.save(path, tensors, its_card)

    again = AtomFinder.load(path, precision="float32")

    image = drawn(3).image
    same(again.find(image), exact.find(image))
    assert again.canonical_sigma_px == exact.canonical_sigma_px


def test_weights_of_another_family_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, weights(), card(family="spatial", window_nm=1.0))

    with pytest.raises(CheckpointError, match=r"other\.safetensors: weights of family 'spatial'"):
        AtomFinder.load(path)


def test_weights_that_do_not_fit_their_card_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    checkpoint.save(path, weights(), card(architecture=dict(card().architecture, half=16)))

    with pytest.raises(CheckpointError, match=r"short\.safetensors: tensor .* its card asks for"):
        AtomFinder.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": {"half": 8, "quarter": 8, "eighth": 8}},
        {"architecture": dict(card().architecture, half=-1)},
        {"calibration": {"logit": [0.0, -1.0], "alone": [0.0, 1.0], "crowded": [0.0, 1.0]}},
        {"calibration": {"logit": [0.0, 1.0], "alone": [0.9, 0.1], "crowded": [0.0, 1.0]}},
        {"calibration": {"logit": [0.0, 1.0], "alone": [0.5], "crowded": [0.0, 1.0]}},
        {"calibration": {"colour": [1.0]}},
    ],
)
def test_a_damaged_card_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "damaged.safetensors"
    checkpoint.save(path, weights(), card(**changes))

    with pytest.raises(CheckpointError, match=r"damaged\.safetensors: damaged model card"):
        AtomFinder.load(path)


@pytest.mark.parametrize("shape", [(512, 512), (300, 402), (257, 96)])
def test_halves_of_an_image_are_computed_as_the_whole_is(exact: AtomFinder, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(4).poisson(20, shape).astype(np.float32)
    even = np.pad(image, [(0, n % 2) for n in shape], mode="edge")
    seen = atom_finder._padded(features(even))
    with torch.inference_mode():
        whole = exact._net(torch.from_numpy(seen)[None])[0].numpy()
    maps = exact.maps(image)
    np.testing.assert_allclose(maps, whole[:, : maps.shape[1], : maps.shape[2]], atol=1e-4)


def test_what_the_head_says_at_peaks_is_what_its_maps_say_there(exact: AtomFinder) -> None:
    image = np.random.default_rng(5).poisson(20, (200, 240)).astype(np.float32)
    positions, values = exact._columns(image, -6.0, 2)
    places, there = columns_of(exact.maps(image), -6.0)
    assert len(places) > 20
    np.testing.assert_allclose(positions, places, atol=1e-4)
    np.testing.assert_allclose(values, there, atol=1e-4)


def test_spots_far_above_next_to_no_noise_say_the_unit_and_others_do_not() -> None:
    rows, cols = np.mgrid[:96, :96]
    spots = sum(np.exp(-((rows - at) ** 2 + (cols - at) ** 2) / 12.5) for at in (30, 60))
    noisy, clean = drawn(3).image, (5 + 200 * spots).astype(np.float32)

    np.testing.assert_array_equal(atom_finder.features(noisy, 60.0), atom_finder.features(noisy))
    assert atom_finder.features(clean)[:4].max() > 11
    assert atom_finder.features(clean, 60.0)[:4].max() < 8.5


def test_a_column_is_seen_on_a_saturated_top_but_not_on_a_saturated_field() -> None:
    image = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    image[20:23, 20:23] = 1e4
    image[36:56, 36:56] = 1e4
    places = np.array([[21.2, 20.9], [38.0, 45.0], [45.0, 45.0], [40.0, 40.0], [10.0, 70.0]])

    seen = atom_finder._is_on_image(places, image)

    assert seen.tolist() == [True, True, False, False, False]
