"""Training on a few hundred windows of dumb-bells whose turn and kind are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from models.rvae import RVAE, RVAEConfig
from models.spatial_rvae import SpatialConfig, SpatialRVAE
from models.training import Collapsed, Epoch, Model, Training, TrainingConfig, evaluate, split, train

SIZE = 16
SMALL = {
    "harmonic": TrainingConfig(
        architecture=RVAEConfig(mixture=4), epochs=14, restarts=1, batch=20, learning_rate=5e-3
    ),
    "spatial": TrainingConfig(
        architecture=SpatialConfig(hidden=64, pixels=0, stress=30.0),
        epochs=24,
        restarts=1,
        batch=20,
        learning_rate=5e-3,
        warm_up=0.3,
    ),
}
TINY = {"harmonic": RVAEConfig(mixture=3, filters=4, pooled=6, hidden=8), "spatial": SpatialConfig(hidden=16)}
FAMILIES = list(SMALL)


class Dumbbells(NamedTuple):
    """A bright spot in the middle with a weaker one beside it, in the direction of the angle."""

    windows_NCHW: NDArray[np.float32]
    angle_N: NDArray[np.float64]
    is_bright_N: NDArray[np.bool_]


def dumbbells(n: int, seed: int, noise: float = 0.1, bright: float = 3.0) -> Dumbbells:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-math.pi, math.pi, n)
    is_bright = rng.random(n) < 0.5
    axis = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1

    def spot(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        across = np.exp(-0.5 * ((axis - x[:, None]) / 0.2) ** 2)
        down = np.exp(-0.5 * ((axis - y[:, None]) / 0.2) ** 2)
        return down[:, :, None] * across[:, None, :]

    middle = np.where(is_bright, bright, 1.0)[:, None, None] * spot(np.zeros(n), np.zeros(n))
    image = middle + spot(0.5 * np.cos(angle), 0.5 * np.sin(angle)) + noise * rng.normal(size=(n, SIZE, SIZE))
    return Dumbbells(image[:, None].astype(np.float32), angle, is_bright)


class Trained(NamedTuple):
    model: Model
    history: list[Epoch]
    train: Dumbbells


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest) -> Trained:
    torch.set_num_threads(1)
    part = dumbbells(450, seed=0)
    return Trained(*train(part.windows_NCHW, SMALL[request.param]), part)


@pytest.fixture(params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> TrainingConfig:
    torch.set_num_threads(1)
    return TrainingConfig(architecture=TINY[request.param], epochs=4, restarts=3, trial_epochs=2)


def noise(n: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, 1, SIZE, SIZE)).astype(np.float32)


def told(model: Model, part: Dumbbells) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    posterior = model.posterior(torch.from_numpy(part.windows_NCHW))
    return posterior.mean_NZ.numpy(), posterior.angle_N.numpy()


# -- what is learnt --------------------------------------------------------------------------------------


def test_the_held_out_bound_gets_better(trained: Trained) -> None:
    assert trained.history[-1].held_out < trained.history[0].held_out - 20


def test_windows_are_drawn_much_better_than_by_their_mean(trained: Trained) -> None:
    test = torch.from_numpy(dumbbells(200, seed=1).windows_NCHW)
    posterior = trained.model.posterior(test)
    with torch.inference_mode():
        drawn = trained.model.decode(posterior.mean_NZ, posterior.angle_N, posterior.shift_N2)
    axis = torch.arange(SIZE) - (SIZE - 1) / 2
    inside = torch.hypot(axis[:, None], axis) < SIZE / 2 - 1
    left, there = ((test - picture)[:, :, inside].var() for picture in (drawn, test.mean(0)))
    assert left < 0.25 * there


def test_the_posterior_does_not_collapse_on_raw_windows(trained: Trained) -> None:
    assert sum(trained.history[-1].kl_content) > 0.5


def test_the_noise_is_learnt(trained: Trained) -> None:
    model = trained.model
    if isinstance(model, SpatialRVAE):
        sd = float((model.log_noise_C.exp() * model.scale_C).detach())
    else:
        posterior = model.posterior(torch.from_numpy(trained.train.windows_NCHW))
        with torch.inference_mode():
            _, log_noise_ND = model._upright_and_noise(posterior.mean_NZ)
        sd = float(log_noise_ND.exp().median() * model.unit * model.scale_C)
    assert 0.08 < sd < 0.2  # 0.1 was put in


def test_the_angle_follows_the_content_in_the_documented_sense(trained: Trained) -> None:
    test = dumbbells(400, seed=2)
    _, angle = told(trained.model, test)
    # The zero of the angle is the model's choice for each kind, so each kind is looked at by itself.
    for kind in (True, False):
        seen, true = angle[test.is_bright_N == kind], test.angle_N[test.is_bright_N == kind]
        assert np.abs(np.exp(1j * (seen - true)).mean()) > 0.95
        assert np.abs(np.exp(1j * (seen + true)).mean()) < 0.3


def test_the_content_tells_the_kinds_apart_and_hardly_sees_the_turn(trained: Trained) -> None:
    test = dumbbells(400, seed=3)
    mean, _ = told(trained.model, test)
    middles = np.array([mean[test.is_bright_N].mean(0), mean[~test.is_bright_N].mean(0)])
    nearest = np.linalg.norm(mean[:, None] - middles, axis=2).argmin(1) == 0
    assert (nearest == test.is_bright_N).mean() > 0.99
    within = np.mean([mean[test.is_bright_N == kind].var(0).sum() for kind in (True, False)])
    assert within / middles.var(0).sum() < 0.1


@pytest.mark.parametrize("unit", [1e-3, 400.0])
def test_the_unit_of_the_windows_does_not_matter(unit: float) -> None:
    part = dumbbells(200, seed=9)
    config = TrainingConfig(architecture=TINY["harmonic"], epochs=3, restarts=1)
    first, _ = train(part.windows_NCHW, config)
    second, _ = train(np.float32(unit) * part.windows_NCHW, config)
    mean, angle = told(first, part)
    again, angle_again = told(second, part._replace(windows_NCHW=np.float32(unit) * part.windows_NCHW))
    np.testing.assert_allclose(again, mean, atol=0.05)
    assert np.abs(np.exp(1j * (angle_again - angle)).mean()) > 0.99


# -- how it is run ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tiny: TrainingConfig) -> None:
    part = dumbbells(120, seed=4).windows_NCHW
    first, second = (train(part, tiny)[0].state_dict() for _ in range(2))
    other = train(part, _with_seed(tiny, 1))[0]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], one) for name, one in other.state_dict().items())


def _with_seed(config: TrainingConfig, seed: int) -> TrainingConfig:
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    return TrainingConfig(**(fields | {"seed": seed}))


def test_training_leaves_the_global_generators_and_the_windows_alone(tiny: TrainingConfig) -> None:
    part = dumbbells(60, seed=5).windows_NCHW
    kept, torch_state, numpy_state = part.copy(), torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    train(part, tiny)
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


def test_the_best_of_the_restarts_goes_on(tiny: TrainingConfig) -> None:
    training = Training(dumbbells(120, seed=7).windows_NCHW, tiny)
    while not training.is_over:
        training.epoch()
    trials = {epoch.restart: epoch.held_out for epoch in training.history if epoch.number == 1}
    best = min(trials, key=trials.__getitem__)
    assert len(trials) == 3
    assert [epoch.number for epoch in training.history if epoch.restart == best] == [0, 1, 2, 3]
    assert len(training.history) == training.most_epochs == 8


def test_a_training_that_is_over_does_not_go_on(tiny: TrainingConfig) -> None:
    training = Training(dumbbells(60, seed=7).windows_NCHW, tiny)
    while not training.is_over:
        training.epoch()
    with pytest.raises(RuntimeError, match="is over"):
        training.epoch()


@pytest.mark.parametrize("at", [1, 5, 7])
def test_a_training_put_down_and_taken_up_ends_with_the_same_weights(
    tiny: TrainingConfig, at: int, tmp_path: Path
) -> None:
    part = dumbbells(120, seed=10).windows_NCHW
    whole, history = train(part, tiny)
    begun = Training(part, tiny)
    for _ in range(at):
        begun.epoch()
    safetensors.torch.save_file(begun.state(), tmp_path / "part.safetensors")
    resumed = Training(part, tiny)
    resumed.restore(safetensors.torch.load_file(tmp_path / "part.safetensors"))
    while not resumed.is_over:
        resumed.epoch()
    expected = whole.state_dict()
    assert resumed.history == history
    assert all(torch.equal(one, expected[name]) for name, one in resumed.result().state_dict().items())


def test_a_state_of_other_windows_or_of_another_configuration_is_refused(tiny: TrainingConfig) -> None:
    part = dumbbells(60, seed=11).windows_NCHW
    state = Training(part, tiny).state()
    for training in (Training(part + 1, tiny), Training(part, _with_seed(tiny, 3))):
        with pytest.raises(ValueError, match="other windows or another configuration"):
            training.restore(state)


def test_training_ends_when_the_held_out_bound_gets_no_better() -> None:
    torch.set_num_threads(1)
    config = TrainingConfig(
        architecture=RVAEConfig(mixture=3),
        epochs=60,
        restarts=1,
        batch=10,
        warm_up=0.1,
        patience=2,
        learning_rate=1e-2,
    )
    _, history = train(dumbbells(80, seed=8).windows_NCHW, config)
    assert 8 < len(history) < 60
    best = min(range(len(history)), key=lambda at: history[at].held_out)
    assert len(history) - 1 - best == 2


# -- fine-tuning -----------------------------------------------------------------------------------------


def test_fine_tuning_learns_what_is_new_and_keeps_components_scale_and_classes(trained: Trained) -> None:
    fainter = dumbbells(200, seed=12, bright=2.2)
    test = torch.from_numpy(dumbbells(200, seed=13, bright=2.2).windows_NCHW)
    model = trained.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned, history = train(fainter.windows_NCHW, SMALL[family(model)], start=model)
    better, worse = (float(evaluate(one, test).negative_elbo().mean()) for one in (tuned, model))
    assert better < worse - 1.0
    assert {epoch.restart for epoch in history} == {0}
    kept = ("basis", "center", "scale", "unit", "mixture")
    after = tuned.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(kept))
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def family(model: Model) -> str:
    return "harmonic" if isinstance(model, RVAE) else "spatial"


def test_a_start_that_is_no_rvae_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot start from a Linear; it takes an rVAE"):
        Training(noise(30, 0), TrainingConfig(), start=torch.nn.Linear(2, 2))


# -- what cannot be learnt from --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_windows_of_pure_noise_end_with_a_collapse_that_names_the_cure(name: str) -> None:
    config = TrainingConfig(
        architecture=TINY[name], epochs=40, restarts=1, batch=50, warm_up=0.2, patience=30, learning_rate=5e-3
    )
    with pytest.raises(Collapsed, match=r"the latents collapsed.*cut larger ones"):
        train(noise(200, 8), config)


@pytest.mark.parametrize("name", FAMILIES)
def test_windows_of_one_constant_do_not_break_the_training(name: str) -> None:
    constant = np.full((40, 1, SIZE, SIZE), 2.5, np.float32)
    model, history = train(constant, TrainingConfig(epochs=2, architecture=TINY[name]))
    assert all(math.isfinite(epoch.held_out) for epoch in history)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


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
        train(windows, TrainingConfig())


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (0, np.zeros(30, np.int64), "architecture.classes is 0"),
        (2, np.zeros(29, np.int64), r"labels have shape \(29,\); 30 windows take \(30,\)"),
        (2, np.full(30, 2), "of 2 classes they run from 0 to 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(classes: int, label: NDArray[np.int64], message: str) -> None:
    config = TrainingConfig(architecture=RVAEConfig(classes=classes))
    with pytest.raises(ValueError, match=message):
        train(noise(30, 0), config, label_N=label)


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
