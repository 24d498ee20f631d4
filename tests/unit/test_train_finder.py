"""Training the finder: what it is taught, how it goes on, and what its confidence is fitted to."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from deploy.train_finder import (
    FinderStep,
    FinderTraining,
    confidence_knots,
    judge,
    loss,
    match,
    rising,
    targets,
    train_finder,
)
from models.atom_finder import AtomFinder, ColumnNet, FinderConfig
from simulators.column_images import ColumnImage, ColumnImageConfig

SMALL = FinderTraining(
    seed=6,
    images=12,
    batch=4,
    check_every=4,
    held_out=4,
    calibrated=8,
    net=FinderConfig(half=8, quarter=8, eighth=8),
    drawn=ColumnImageConfig(size_px=64),
)


def image(places: list[tuple[float, float]], snr: list[float]) -> ColumnImage:
    return ColumnImage(
        image=np.zeros((16, 20), np.float32),
        positions_px=np.array(places),
        snr=np.array(snr),
        is_heavy=np.arange(len(snr)) == 0,
        sigma_px=2.0,
        kind="sparse",
    )


# -- what is to be learnt


def test_the_cell_of_a_column_has_heat_one_and_the_way_to_it() -> None:
    maps = targets(image([(6.75, 11.0)], [9.0]), weak_snr=3.5)

    assert maps.heat.shape == (8, 10)
    assert np.argwhere(maps.heat == 1).tolist() == [[3, 5]]
    np.testing.assert_allclose(maps.offset[:, 3, 5], [0.25, 0.5])
    np.testing.assert_allclose(maps.offset[:, 4, 5], [-1.75, 0.5])
    assert maps.distance[3, 5] == pytest.approx(np.hypot(0.25, 0.5) / 2)
    assert maps.heavy[3, 5] == 1
    assert maps.weight.all()


def test_a_weak_column_is_asked_for_neither_way_but_where_a_strong_one_is() -> None:
    maps = targets(image([(4.5, 4.5), (4.5, 8.5)], [9.0, 2.0]), weak_snr=3.5)

    assert maps.heat[2, 2] == 1
    assert maps.weight[2, 2] == 1
    assert maps.weight[2, 4] == 0
    assert maps.heat[2, 4] < 0.1
    assert maps.weight[2, 9] == 1


def test_of_two_near_columns_each_cell_points_to_the_nearer() -> None:
    maps = targets(image([(4.5, 4.5), (4.5, 8.9)], [9.0, 9.0]), weak_snr=3.5)

    np.testing.assert_allclose(maps.offset[:, 2, 2], [0, 0], atol=1e-6)
    np.testing.assert_allclose(maps.offset[:, 2, 4], [0, 0.4], atol=1e-6)


def _loss_of(maps: torch.Tensor) -> float:
    whole = targets(image([(4.5, 4.5)], [9.0]), weak_snr=3.5)
    return float(loss(maps, *(torch.from_numpy(part)[None] for part in whole)))


def test_the_right_answer_costs_less_than_a_miss_a_wrong_place_or_a_false_column() -> None:
    right = torch.zeros(1, 5, 8, 10)
    right[:, 0], right[:, 3], right[:, 4] = -9.0, -3.0, -9.0
    whole = targets(image([(4.5, 4.5)], [9.0]), weak_snr=3.5)
    right[:, 0, 2, 2], right[:, 4, 1:4, 1:4] = 9.0, 9.0
    right[:, 1:3] = torch.from_numpy(whole.offset)
    missed, aside, false = right.clone(), right.clone(), right.clone()
    missed[:, 0, 2, 2] = -9.0
    aside[:, 1] += 0.5
    false[:, 0, 6, 8] = 9.0

    assert _loss_of(right) < min(_loss_of(missed), _loss_of(aside), _loss_of(false))


# -- training


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, torch.Tensor], list[FinderStep]]:
    path = tmp_path_factory.mktemp("training") / "whole.part"
    steps: list[FinderStep] = []
    tensors, _ = train_finder(SMALL, steps.append, checkpoint=path)
    return path, tensors, steps


def test_training_says_where_it_is(
    trained: tuple[Path, dict[str, torch.Tensor], list[FinderStep]],
) -> None:
    _, _, steps = trained

    assert [step.images for step in steps] == [4, 8, 12]
    assert [step.share for step in steps] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(np.isfinite([step.trained, step.held_out]).all() for step in steps)


def test_a_training_that_was_broken_off_goes_on_as_if_it_had_not_been(
    trained: tuple[Path, dict[str, torch.Tensor], list[FinderStep]], tmp_path: Path
) -> None:
    _, whole, _ = trained
    path = tmp_path / "broken.part"

    def break_off(step: FinderStep) -> None:
        if step.images == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_finder(SMALL, break_off, checkpoint=path)
    tensors, card = train_finder(SMALL, checkpoint=path)

    assert tensors.keys() == whole.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, whole[name]), name
    assert card.family == "finder"
    assert card.scores
    assert AtomFinder(_net(tensors), card).canonical_sigma_px == 2.5


def _net(tensors: dict[str, torch.Tensor]) -> ColumnNet:
    net = ColumnNet(SMALL.net)
    net.load_state_dict(tensors)
    return net


def test_a_checkpoint_of_another_training_is_refused(
    trained: tuple[Path, dict[str, torch.Tensor], list[FinderStep]],
) -> None:
    path, _, _ = trained

    with pytest.raises(ValueError, match="the checkpoint of another training"):
        train_finder(msgspec.structs.replace(SMALL, seed=7), checkpoint=path)


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()

    train_finder(SMALL)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": 0}, "images is 0; it takes 1"),
        ({"learning_rate": 2.0}, "learning_rate is 2.0"),
        ({"drawn": ColumnImageConfig(size_px=100)}, "multiples of 8"),
    ],
)
def test_impossible_settings_are_refused_with_what_would_do(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FinderTraining(**changes)  # type: ignore[arg-type]


# -- what its numbers are worth


def test_each_found_place_takes_the_nearest_that_is_free() -> None:
    found = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    true = np.array([[0.0, 0.9], [0.0, -0.5]])

    assert match(found, true, 2.0).tolist() == [1, 0, -1]


def test_a_peak_on_a_faint_column_is_right_and_one_on_what_nobody_can_see_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = image([(4.5, 4.5), (4.5, 14.5), (12.5, 4.5)], [9.0, 2.0, 1.0])

    class Sees:
        """Gives a peak on each of them and one beside."""

        def maps(self, _: np.ndarray) -> np.ndarray:
            maps = np.full((5, 8, 10), -9.0, np.float32)
            maps[1:3] = 0
            for n, (row, col) in enumerate([(2, 2), (2, 7), (6, 2), (6, 7)]):
                maps[0, row, col] = 4 - n
            return maps

    monkeypatch.setattr("deploy.train_finder.draw", lambda *_: there)
    judged = judge(Sees(), SMALL, stream=0)  # type: ignore[arg-type]

    assert judged.is_right.reshape(SMALL.calibrated, -1).tolist() == [[True, True, False]] * SMALL.calibrated
    assert judged.snr.tolist() == [9.0] * SMALL.calibrated  # the only one that has to be found


def test_a_fitted_line_never_falls_and_keeps_the_mean() -> None:
    fitted = rising(np.array([0.1, 0.5, 0.3, 0.9]), np.array([1.0, 1.0, 3.0, 1.0]))

    np.testing.assert_allclose(fitted, [0.1, 0.35, 0.35, 0.9])


def test_confidence_is_the_share_of_right_ones_of_each_crowd() -> None:
    rng = np.random.default_rng(3)
    logit = rng.uniform(-4, 4, 40_000).astype(np.float32)
    crowdedness = rng.integers(0, 2, logit.size).astype(np.float64)
    chance = 1 / (1 + np.exp(-(logit - 2 * crowdedness)))

    knots, alone, crowded = confidence_knots(
        logit, rng.random(logit.size) < chance, 1 - crowdedness, crowdedness
    )

    at = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(np.interp(at, knots, alone), 1 / (1 + np.exp(-at)), atol=0.08)
    np.testing.assert_allclose(np.interp(at, knots, crowded), 1 / (1 + np.exp(2 - at)), atol=0.08)
