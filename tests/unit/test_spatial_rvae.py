"""The parts of the rVAE against answers known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.spatial_rvae import (
    Reading,
    SpatialConfig,
    SpatialRVAE,
    kl_normal,
    kl_wrapped_normal,
    pool,
    turn,
    unturned,
    window_grid,
)


def model(window_px: int = 24, **arguments: object) -> SpatialRVAE:
    config = SpatialConfig(**arguments)  # type: ignore[arg-type]
    return SpatialRVAE(1, window_px, config, generator=torch.Generator().manual_seed(1)).eval()


def windows(n: int = 6, channels: int = 1, size: int = 24) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(2))


def test_a_quarter_turn_takes_x_to_y() -> None:
    turned = turn(torch.tensor([[1.0, 0.0]]), torch.tensor([math.pi / 2]))
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0]]), atol=1e-6, rtol=0)


def test_the_grid_runs_along_x_first_and_ends_half_a_pixel_inside() -> None:
    grid = window_grid(4)
    assert grid[0].tolist() == [-0.75, -0.75]
    assert grid[1].tolist() == [-0.25, -0.75]
    assert grid[-1].tolist() == [0.75, 0.75]


def test_pooling_averages_two_by_two() -> None:
    window = torch.arange(16.0 * 16).view(1, 1, 16, 16)
    expected = torch.nn.functional.avg_pool2d(window, 2)
    torch.testing.assert_close(pool(window), expected)
    assert pool(torch.zeros(1, 1, 17, 17)).shape[-1] == 17


@pytest.mark.parametrize(("mean", "sd", "prior"), [(0.0, 1.0, 1.0), (0.7, 0.2, 1.0), (-0.1, 0.05, 0.1)])
def test_the_kl_of_normals_is_that_of_torch(mean: float, sd: float, prior: float) -> None:
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, sd), torch.distributions.Normal(0.0, prior)
    )
    found = kl_normal(torch.tensor(mean), torch.tensor(sd).log(), prior)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sd", [0.01, 0.1, 0.5, 1.0, 1.19, 1.21, 1.5, 2.0, 4.0])
def test_the_kl_of_the_angle_is_that_of_quadrature(sd: float) -> None:
    # The wrapped normal summed over eleven turns, integrated on a grid fine enough for sd = 0.01.
    angle = np.linspace(-math.pi, math.pi, 20001)[:-1]
    turns = angle[:, None] + 2 * math.pi * np.arange(-5, 6)
    density = np.exp(-0.5 * (turns / sd) ** 2).sum(1) / (sd * math.sqrt(2 * math.pi))
    inside = density > 0
    expected = (density[inside] * np.log(2 * math.pi * density[inside])).sum() * (2 * math.pi / 20000)
    found = float(kl_wrapped_normal(torch.tensor(math.log(sd))))
    assert found == pytest.approx(expected, abs=0.025)


def test_undoing_a_quarter_turn_turns_angle_and_shift() -> None:
    one = torch.ones(1)
    inner = Reading(
        torch.zeros(1, 2),
        torch.zeros(1, 2),
        0.1 * one,
        one,
        torch.tensor([[0.2, 0.0]]),
        torch.tensor([[1.0, 2.0]]),
    )
    told = unturned(inner, torch.tensor([1]))
    assert told.angle_N.item() == pytest.approx(0.1 + math.pi / 2)
    torch.testing.assert_close(told.shift_N2, torch.tensor([[0.0, 0.2]]), atol=1e-6, rtol=0)
    assert told.shift_log_sd_N2.tolist() == [[2.0, 1.0]]


def test_the_turned_features_are_those_of_the_turned_window() -> None:
    rvae, seen = model(), windows()
    features = rvae.features(seen)
    again = rvae.features(torch.rot90(seen, 1, (2, 3)))
    torch.testing.assert_close(features[:, 1], again[:, 0])


def test_decoding_at_an_angle_is_turning_the_decoded_window() -> None:
    rvae = model()
    content = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    quarter = torch.full((2,), math.pi / 2)
    upright, turned = rvae.decode(content), rvae.decode(content, quarter)
    # From x (columns) towards y (rows, downwards) is clockwise on the screen; rot90 is anticlockwise.
    torch.testing.assert_close(turned, torch.rot90(upright, -1, (2, 3)), atol=1e-5, rtol=0)
    assert (turned - upright).abs().max() > 0.01


def test_decoding_at_a_shift_moves_the_window_along_x() -> None:
    rvae = model()
    content = torch.tensor([[0.5, -1.0]])
    pixel = 2 / 24
    moved = rvae.decode(content, shift_N2=torch.tensor([[pixel, 0.0]]))
    torch.testing.assert_close(moved[..., 1:], rvae.decode(content)[..., :-1], atol=1e-5, rtol=0)


def test_a_window_turned_by_a_quarter_has_the_same_content_and_its_angle_turned() -> None:
    rvae, seen = model(), windows(40)
    with torch.inference_mode():
        first, second = rvae.encode(seen), rvae.encode(torch.rot90(seen, -1, (2, 3)))
    torch.testing.assert_close(second.mean_NZ, first.mean_NZ)
    moved = torch.remainder(second.angle_N - first.angle_N, 2 * math.pi)
    torch.testing.assert_close(moved, torch.full((40,), math.pi / 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("rotation", "shift"), [(True, True), (True, False), (False, True), (False, False)])
def test_pose_without_rotation_or_shift_is_none(rotation: bool, shift: bool) -> None:
    rvae = model(rotation=rotation, shift=shift)
    with torch.inference_mode():
        told = rvae.encode(windows())
        terms = rvae.terms_of(windows(), torch.Generator().manual_seed(0))
    assert bool((told.angle_N != 0).any()) == rotation
    assert bool((told.shift_N2 != 0).any()) == shift
    assert bool((terms.kl_angle_N != 0).any()) == rotation
    assert bool((terms.kl_shift_N != 0).any()) == shift


def test_a_model_of_several_channels_draws_several() -> None:
    rvae = SpatialRVAE(3, 16, SpatialConfig(latent_dim=4))
    told = rvae.encode(windows(5, 3, 16))
    assert told.mean_NZ.shape == (5, 4)
    assert rvae.decode(told.mean_NZ).shape == (5, 3, 16, 16)


def test_a_sample_of_the_pixels_estimates_the_whole_bound() -> None:
    rvae, seen = model(rotation=False, shift=False, pixels=60), windows(64)
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        whole = float(rvae.terms_of(seen, random).error_N.mean())
        rvae.train()
        parts = [float(rvae.terms_of(seen, random).error_N.mean()) for _ in range(100)]
    assert np.mean(parts) == pytest.approx(whole, abs=4 * np.std(parts) / math.sqrt(100))


def test_the_likelihood_is_that_of_a_normal_with_the_learnt_noise() -> None:
    rvae = model(focus=99.0)
    rvae.log_noise_C.data.fill_(math.log(0.3))
    true, drawn = windows(2).flatten(2), torch.zeros(2, 1, 576)
    expected = -torch.distributions.Normal(drawn, 0.3).log_prob(true).sum((1, 2))
    torch.testing.assert_close(rvae._error(true, drawn, torch.ones(576)), expected)


def test_making_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    model()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_dim": 0}, "architecture.latent_dim is 0; it takes 1 to 64"),
        ({"hidden": 10**9}, "architecture.hidden is 1000000000; it takes 1 to 4096"),
        ({"shift_prior": math.nan}, "architecture.shift_prior is nan"),
        ({"stress": -1.0}, "architecture.stress is -1.0"),
    ],
)
def test_an_architecture_out_of_range_says_what_it_takes(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpatialConfig(**fields)  # type: ignore[arg-type]
