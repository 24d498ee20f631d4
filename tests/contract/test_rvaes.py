"""What both rVAE families promise; a new one is tested by being listed."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from models.rvae import RVAEConfig
from models.spatial_rvae import SpatialConfig
from models.training import Model, fresh, train
from models.training import TrainingConfig as Config

SIZE = 16
HARMONIC: dict[str, Any] = {"filters": 6, "pooled": 8, "hidden": 12, "mixture": 3, "components": 30}
ARCHITECTURES: dict[str, RVAEConfig | SpatialConfig] = {
    "harmonic rVAE": RVAEConfig(**HARMONIC),
    "harmonic rrVAE": RVAEConfig(**HARMONIC, shift=False),
    "harmonic VAE": RVAEConfig(**HARMONIC, rotation=False, shift=False),
    "harmonic, labelled classes": RVAEConfig(**HARMONIC, classes=3, latent_dim=3),
    "harmonic, nothing but noise": RVAEConfig(**HARMONIC, rotation=False, shift=False, nuisances=()),
    "spatial rVAE": SpatialConfig(hidden=12),
    "spatial rrVAE": SpatialConfig(hidden=12, shift=False),
    "spatial VAE": SpatialConfig(hidden=12, rotation=False, shift=False),
}
CHANNELS = 2


def windows(count: int, seed: int) -> Tensor:
    """Soft spots at random places and noise, two channels, in units of their own."""
    rng = np.random.default_rng(seed)
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    x, y = rng.uniform(-5, 5, (2, count, 1, 3))
    across = np.exp(-0.5 * ((axis - x[..., None]) / 2.0) ** 2)
    down = np.exp(-0.5 * ((axis - y[..., None]) / 2.0) ** 2)
    drawn = np.einsum("nckh,nckw->nchw", down, across)
    both = np.concatenate([drawn, 5 - 3 * drawn], 1) + 0.1 * rng.normal(size=(count, CHANNELS, SIZE, SIZE))
    return torch.from_numpy(both.astype(np.float32))


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> Model:
    torch.set_num_threads(1)
    config = Config(architecture=ARCHITECTURES[request.param], epochs=2, restarts=1, batch=20)
    return train(windows(100, 0).numpy(), config)[0]


def test_every_field_has_its_shape_and_is_finite(model: Model) -> None:
    told = model.posterior(windows(7, 1))
    nuisances, classes = len(model.nuisances), told.class_probability_NK.shape[1]
    shapes = {name: tuple(tensor.shape) for name, tensor in told._asdict().items()}
    assert shapes == {
        "mean_NZ": (7, model.latent_dim),
        "log_sd_NZ": (7, model.latent_dim),
        "angle_N": (7,),
        "angle_sd_N": (7,),
        "symmetry_N": (7,),
        "shift_N2": (7, 2),
        "shift_sd_N2": (7, 2),
        "class_probability_NK": (7, classes),
        "nuisance_NV": (7, nuisances),
        "nuisance_sd_NV": (7, nuisances),
    }
    assert all(tensor.isfinite().all() for tensor in told)
    assert (told.angle_N.abs() <= math.pi + 1e-6).all()
    if classes:
        torch.testing.assert_close(told.class_probability_NK.sum(1), torch.ones(7))


def test_a_pose_that_the_model_has_not_is_zero(model: Model) -> None:
    told = model.posterior(windows(20, 2))
    assert bool((told.angle_N != 0).any()) == model.rotation
    assert bool((told.shift_N2 != 0).any()) == model.shift
    assert bool((told.angle_sd_N > 0).all()) == model.rotation
    assert bool((told.shift_sd_N2 > 0).all()) == model.shift


def test_a_quarter_turn_leaves_the_content_and_turns_angle_and_shift(model: Model) -> None:
    if not model.rotation:
        pytest.skip("this one does not know turns")
    seen = windows(30, 3)
    upright, turned = model.posterior(seen), model.posterior(torch.rot90(seen, -1, (2, 3)))
    torch.testing.assert_close(turned.mean_NZ, upright.mean_NZ, atol=1e-4, rtol=1e-4)
    by = torch.remainder(turned.angle_N - upright.angle_N - math.pi / 2 + math.pi, 2 * math.pi) - math.pi
    assert by.abs().median() < 1e-3
    expected = torch.stack([-upright.shift_N2[:, 1], upright.shift_N2[:, 0]], 1)
    torch.testing.assert_close(turned.shift_N2, expected, atol=1e-3, rtol=1e-3)


def test_what_is_decoded_can_be_encoded_again(model: Model) -> None:
    told = model.posterior(windows(5, 4))
    with torch.inference_mode():
        drawn = model.decode(told.mean_NZ, told.angle_N, told.shift_N2)
    assert drawn.shape == (5, CHANNELS, SIZE, SIZE)
    assert model.posterior(drawn).mean_NZ.shape == told.mean_NZ.shape
    assert model.decode(told.mean_NZ).shape == drawn.shape
    assert 3 < float(drawn[:, 1].mean()) < 6  # in the units of the windows


def test_answering_neither_learns_nor_draws(model: Model) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first, second = model.posterior(windows(9, 5)), model.posterior(windows(9, 5))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(tensor.requires_grad for tensor in first)


def test_a_window_does_not_depend_on_its_batch_mates(model: Model) -> None:
    seen = windows(12, 6)
    together, alone = model.posterior(seen), model.posterior(seen[4:5])
    bright = seen.clone()
    bright[5:] *= 100
    beside = model.posterior(bright)
    for one, two, three in zip(together, alone, beside, strict=True):
        # Products of another number of rows round otherwise; fixed blocks are the encoder's.
        torch.testing.assert_close(one[4], two[0], atol=1e-4, rtol=2e-3)
        torch.testing.assert_close(one[4], three[4], atol=1e-4, rtol=2e-3)


def test_its_tensors_and_its_configuration_make_it_again(model: Model) -> None:
    table = msgspec.to_builtins(model.config)
    again = fresh(
        msgspec.convert(table, type(model.config)), CHANNELS, SIZE, torch.Generator().manual_seed(99)
    )
    again.load_state_dict(model.state_dict())
    seen = windows(6, 7)
    for one, two in zip(model.posterior(seen), again.eval().posterior(seen), strict=True):
        assert torch.equal(one, two)


def test_every_tensor_is_finite_and_can_be_kept(model: Model) -> None:
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_windows_with_nan_are_refused_by_the_training(model: Model) -> None:
    bad = windows(30, 8).numpy()
    bad[3, 0, 2, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        train(bad, Config(architecture=model.config))


def test_a_window_of_another_content_is_less_likely_given_what_it_shows(model: Model) -> None:
    terms = model.terms_of(model.inputs(windows(20, 9)), torch.Generator().manual_seed(0))
    assert terms.negative_elbo().shape == (20,)
    assert terms.negative_elbo().isfinite().all()
    assert torch.equal(terms.loss(), terms.negative_elbo() + terms.extra_N)
    assert (terms.negative_elbo(0.0) == terms.error_N).all()
