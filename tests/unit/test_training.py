"""Training on a few hundred windows of dumb-bells whose turn and kind are known."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.spatial_rvae import SpatialConfig, SpatialRVAE
from models.training import Epoch, TrainingConfig, evaluate, split, train

SIZE = 16
SMALL = TrainingConfig(
    architecture=SpatialConfig(hidden=64, pixels=0, stress=30.0),
    epochs=25,
    restarts=1,
    batch=20,
    learning_rate=5e-3,
)


class Dumbbells(NamedTuple):
    """A bright spot in the middle with a weaker one beside it, in the direction of the angle."""

    windows_NCHW: NDArray[np.float32]
    angle_N: NDArray[np.float64]
    is_bright_N: NDArray[np.bool_]


def dumbbells(n: int, seed: int, noise: float = 0.1) -> Dumbbells:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-math.pi, math.pi, n)
    is_bright = rng.random(n) < 0.5
    axis = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1

    def spot(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        across = np.exp(-0.5 * ((axis - x[:, None]) / 0.2) ** 2)
        down = np.exp(-0.5 * ((axis - y[:, None]) / 0.2) ** 2)
        return down[:, :, None] * across[:, None, :]

    middle = np.where(is_bright, 3.0, 1.0)[:, None, None] * spot(np.zeros(n), np.zeros(n))
    image = middle + spot(0.5 * np.cos(angle), 0.5 * np.sin(angle)) + noise * rng.normal(size=(n, SIZE, SIZE))
    return Dumbbells(image[:, None].astype(np.float32), angle, is_bright)


class Trained(NamedTuple):
    model: SpatialRVAE
    history: list[Epoch]
    train: Dumbbells


@pytest.fixture(scope="module")
def trained() -> Trained:
    torch.set_num_threads(1)
    part = dumbbells(600, seed=0)
    return Trained(*train(part.windows_NCHW, SMALL), part)


def encoded(model: SpatialRVAE, part: Dumbbells) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.inference_mode():
        told = model.encode(torch.from_numpy(part.windows_NCHW))
    return told.mean_NZ.numpy(), told.angle_N.numpy()


def test_the_held_out_bound_gets_better(trained: Trained) -> None:
    assert trained.history[-1].held_out < trained.history[0].held_out - 50


def test_windows_are_drawn_much_better_than_by_their_mean(trained: Trained) -> None:
    test = torch.from_numpy(dumbbells(200, seed=1).windows_NCHW)
    with torch.inference_mode():
        told = trained.model.encode(test)
        drawn = trained.model.decode(told.mean_NZ, told.angle_N, told.shift_N2)
    disc = trained.model.disc_P
    left = (test - drawn).flatten(2)[..., disc].var()
    there = (test - test.mean(0)).flatten(2)[..., disc].var()
    assert left < 0.25 * there


def test_the_posterior_does_not_collapse_on_raw_windows(trained: Trained) -> None:
    last = trained.history[-1]
    assert max(last.kl_content) > 1.0
    assert last.kl_angle > 1.0


def test_the_noise_is_learnt(trained: Trained) -> None:
    sd = float((trained.model.log_noise_C.exp() * trained.model.scale_C).detach())
    assert 0.08 < sd < 0.2  # 0.1 was put in


def test_the_angle_follows_the_content_in_the_documented_sense(trained: Trained) -> None:
    test = dumbbells(400, seed=2)
    _, angle = encoded(trained.model, test)
    agreement = np.abs(np.exp(1j * (angle - test.angle_N)).mean())
    mirrored = np.abs(np.exp(1j * (angle + test.angle_N)).mean())
    assert agreement > 0.95
    assert mirrored < 0.3


def test_the_content_tells_the_kinds_apart_and_hardly_sees_the_turn(trained: Trained) -> None:
    test = dumbbells(400, seed=3)
    mean, _ = encoded(trained.model, test)
    middles = np.array([mean[test.is_bright_N].mean(0), mean[~test.is_bright_N].mean(0)])
    nearest = np.linalg.norm(mean[:, None] - middles, axis=2).argmin(1) == 0
    assert (nearest == test.is_bright_N).mean() > 0.99
    within = np.mean([mean[test.is_bright_N == kind].var(0).sum() for kind in (True, False)])
    assert within / middles.var(0).sum() < 0.1


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not() -> None:
    torch.set_num_threads(1)
    part = dumbbells(120, seed=4).windows_NCHW
    short = TrainingConfig(epochs=2, restarts=2, trial_epochs=1, architecture=SpatialConfig(hidden=16))
    first, second = (train(part, short)[0].state_dict() for _ in range(2))
    other = train(
        part,
        TrainingConfig(epochs=2, restarts=2, trial_epochs=1, architecture=SpatialConfig(hidden=16), seed=1),
    )[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["read.weight"], other["read.weight"])


def test_training_leaves_the_global_generators_and_the_windows_alone() -> None:
    part = dumbbells(60, seed=5).windows_NCHW
    kept, torch_state, numpy_state = part.copy(), torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    train(part, TrainingConfig(epochs=1, restarts=1, architecture=SpatialConfig(hidden=8)))
    assert np.array_equal(part, kept)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_evaluating_learns_nothing_and_repeats_itself(trained: Trained) -> None:
    test = torch.from_numpy(dumbbells(100, seed=6).windows_NCHW)
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    first, second = evaluate(trained.model, test), evaluate(trained.model, test)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    after = trained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_best_of_the_restarts_goes_on() -> None:
    part = dumbbells(120, seed=7).windows_NCHW
    config = TrainingConfig(epochs=4, restarts=3, trial_epochs=2, architecture=SpatialConfig(hidden=16))
    _, history = train(part, config)
    trials = {epoch.restart: epoch.held_out for epoch in history if epoch.number == 1}
    assert len(trials) == 3
    assert [epoch.number for epoch in history if epoch.restart == min(trials, key=trials.__getitem__)] == [
        0,
        1,
        2,
        3,
    ]


def test_training_ends_when_the_held_out_bound_gets_no_better() -> None:
    noise = np.random.default_rng(8).normal(size=(60, 1, SIZE, SIZE)).astype(np.float32)
    config = TrainingConfig(
        epochs=200,
        restarts=1,
        trial_epochs=1,
        warm_up=0.0,
        patience=3,
        architecture=SpatialConfig(hidden=32),
        learning_rate=0.02,
    )
    _, history = train(noise, config)
    assert len(history) < 200
    best = min(range(len(history)), key=lambda at: history[at].held_out)
    assert len(history) - 1 - best == 3


def test_a_share_of_the_windows_is_held_out_and_none_is_lost() -> None:
    windows = torch.arange(100.0).view(100, 1, 1, 1)
    kept, held = split(windows, TrainingConfig(validation=0.15))
    assert (len(kept), len(held)) == (85, 15)
    assert sorted(torch.cat([kept, held]).flatten().tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (np.zeros((30, 16, 16), np.float32), r"windows have shape \(30, 16, 16\)"),
        (np.zeros((30, 1, 16, 12), np.float32), "h = w"),
        (np.zeros((5, 1, 16, 16), np.float32), "5 windows are too few"),
        (np.full((30, 1, 16, 16), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_windows_that_cannot_be_learnt_from_are_refused(windows: NDArray[np.float32], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(windows, SMALL)


def test_windows_of_one_constant_do_not_break_the_training() -> None:
    model, history = train(
        np.full((40, 1, 16, 16), 2.5, np.float32),
        TrainingConfig(epochs=2, architecture=SpatialConfig(hidden=8)),
    )
    assert all(math.isfinite(epoch.held_out) for epoch in history)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "training.epochs is 0; it takes 1 to 100000"),
        ({"batch": 0}, "training.batch is 0; it takes 1 to 65536"),
        ({"learning_rate": 0.0}, "training.learning_rate is 0.0"),
        ({"validation": 0.9}, "training.validation is 0.9"),
        ({"warm_up": 1.5}, "training.warm_up is 1.5; it takes 0 to 1"),
    ],
)
def test_settings_out_of_range_say_what_they_take(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)  # type: ignore[arg-type]
