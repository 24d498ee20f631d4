"""The live path of the harmonic rVAE says what the model says, whatever the shape of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import harmonic_inference
from models.harmonic_inference import LARGE, SMALL, HarmonicInference
from models.novelty import MOST_NOVEL, Calibration, HarmonicNovelty, calibrated
from models.rvae import RVAE, RVAEConfig

Float32 = NDArray[np.float32]
BLANK = Calibration((0.0,) * 3, (1.0,) * 3)


def spots(n: int, window_px: int, channels: int = 1, seed: int = 0) -> Float32:
    """Draw windows of three unequal spots around the middle, at random turns, with noise."""
    rng = np.random.default_rng(seed)
    axis = np.arange(window_px) - (window_px - 1) / 2
    turn, bright = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.5, 2.0, n)
    image = np.zeros((n, channels, window_px, window_px))
    for spot, height in enumerate((1.0, 0.6, 1.5)):
        at = turn + spot * (2 * np.pi / 3 + 0.2)
        x, y = 0.3 * window_px * np.cos(at), 0.3 * window_px * np.sin(at)
        across = np.exp(-0.5 * ((axis - x[:, None]) / 1.7) ** 2)
        down = np.exp(-0.5 * ((axis - y[:, None]) / 1.7) ** 2)
        for channel in range(channels):
            image[:, channel] += (height * bright ** (1 + channel))[:, None, None] * (
                down[:, :, None] * across[:, None]
            )
    return (image + 0.1 * rng.normal(size=image.shape)).astype(np.float32)


def model(window_px: int = 16, channels: int = 1, **config: Any) -> RVAE:
    """Make an untrained model whose latents, decoder and mixture all say something."""
    settings = RVAEConfig(**{"components": 24, "hidden": 32, **config})
    made = RVAE(channels, window_px, settings, generator=torch.Generator().manual_seed(3))
    made.prepare(torch.from_numpy(spots(300, window_px, channels)))
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        made.louder.weight.normal_(0, 0.05, generator=random)
        made.draw.weight.mul_(3)
        made.log_noise_P.normal_(-1.0, 0.2, generator=random)
        made.correction_EH.normal_(0, 0.1, generator=random)
        made.sd_course_22.copy_(torch.tensor([[-0.4, -1.0], [-0.2, -0.7]]))
    return made.eval()


def live(made: RVAE) -> HarmonicInference:
    return HarmonicInference(made, HarmonicNovelty.blank(len(set(made.order_P.tolist()))), BLANK)


SHAPES: dict[str, dict[str, Any]] = {
    "even window": {},
    "odd window": {"window_px": 15},
    "two channels": {"channels": 2, "components": 30},
    "without shift": {"shift": False},
    "without rotation": {"rotation": False},
    "neither": {"rotation": False, "shift": False, "nuisances": ()},
    "odd grid and orientations": {"turns": 45, "orientations": 9},
    "labelled classes": {"classes": 3},
    "three latents": {"latent_dim": 3},
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_live_path_says_what_the_model_says(shape: str) -> None:
    made = model(**SHAPES[shape])
    windows = spots(SMALL + LARGE + 5, made.window_px, made.channels, seed=9)
    told, expected = live(made).encode(windows), made.posterior(torch.from_numpy(windows))
    np.testing.assert_allclose(told.mean_NZ, expected.mean_NZ, atol=2e-5)
    np.testing.assert_allclose(told.sd_NZ, expected.log_sd_NZ.exp(), rtol=2e-5)
    np.testing.assert_allclose(told.class_NK, expected.class_probability_NK, atol=1e-4)
    # The templates are rounded to a hundredth of the noise; a near tie between two turns may go either way.
    away = np.abs(np.angle(np.exp(1j * (told.angle_N - expected.angle_N.numpy()))))
    assert np.quantile(away / (expected.angle_sd_N.numpy() + 1e-6), 0.9) < 0.2
    for mine, theirs, sd in (
        (told.shift_N2, expected.shift_N2, expected.shift_sd_N2),
        (told.nuisance_NV, expected.nuisance_NV, expected.nuisance_sd_NV),
    ):
        if mine.size:
            assert np.quantile(np.abs(mine - theirs.numpy()) / (sd.numpy() + 1e-6), 0.95) < 0.2
    for mine_sd, sd in (
        (told.angle_sd_N, expected.angle_sd_N),
        (told.shift_sd_N2, expected.shift_sd_N2),
        (told.nuisance_sd_NV, expected.nuisance_sd_NV),
    ):
        if mine_sd.size:
            ratio = (mine_sd + 1e-6) / (sd.numpy() + 1e-6)
            assert 0.9 < np.median(ratio) < 1.1


def test_a_component_without_mirror_symmetry_is_read_as_well() -> None:
    made = model()
    random = torch.Generator().manual_seed(8)
    made.draw_FD += 0.05 * torch.randn(made.draw_FD.shape, generator=random) * made.alive_D
    windows = spots(40, made.window_px, seed=9)
    told, expected = live(made).encode(windows), made.posterior(torch.from_numpy(windows))
    np.testing.assert_allclose(told.mean_NZ, expected.mean_NZ, atol=2e-5)


def test_both_block_sizes_say_the_same_bit_for_bit() -> None:
    engine = live(model())
    windows = spots(LARGE, 16, seed=2)
    whole = engine.encode(windows)
    for at in (0, 1, 17, LARGE - 1):
        alone = engine.encode(windows[at : at + 1])
        for mine, theirs in zip(alone, whole, strict=True):
            assert np.array_equal(mine[0], theirs[at])


def test_halves_in_two_threads_say_the_same_bit_for_bit() -> None:
    engine, windows = live(model()), spots(5 * LARGE + 3, 16, seed=2)
    alone = engine.encode(windows)
    for _ in range(5):
        for mine, theirs in zip(engine.encode(windows, threads=2), alone, strict=True):
            assert np.array_equal(mine, theirs)
    few = engine.encode(windows[-1:])
    assert all(np.array_equal(mine[0], theirs[-1]) for mine, theirs in zip(few, alone, strict=True))


def test_each_half_is_worked_on_in_arrays_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def one_after_the_other(parts: list[Any], threads: int) -> None:
        for part in parts:
            part()
            places.append(part.func.__self__)

    monkeypatch.setattr(harmonic_inference, "side_by_side", one_after_the_other)
    live(model()).encode(spots(5 * LARGE, 16, seed=2), threads=2)
    one, other = places
    assert not np.shares_memory(one.room.forms, other.room.forms)


def test_later_changes_of_the_model_are_not_seen() -> None:
    made = model()
    engine, windows = live(made), spots(5, 16, seed=2)
    before = engine.encode(windows)
    with torch.no_grad():
        made.filter_QD.zero_()
    assert np.array_equal(engine.encode(windows).mean_NZ, before.mean_NZ)


# -- novelty -----------------------------------------------------------------------------------------


def fitted(made: RVAE, windows: Float32, held_out: Float32) -> HarmonicInference:
    _, powers = live(made).statistics(windows)
    novelty = HarmonicNovelty.fit(torch.from_numpy(powers))
    statistics, _ = HarmonicInference(made, novelty, BLANK).statistics(held_out)
    return HarmonicInference(made, novelty, calibrated(statistics))


def test_three_in_a_thousand_of_the_same_kind_are_novel_and_other_kinds_are() -> None:
    made = model()
    engine = fitted(made, spots(1000, 16), spots(4000, 16, seed=1))
    usual = engine.encode(spots(4000, 16, seed=2)).novelty_N
    assert 0.0005 < (usual > 3).mean() < 0.008
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(50, 1, 16, 16)).astype(np.float32)
    stripes = np.tile(np.sin(np.arange(16) * 2.5), (50, 1, 16, 1)).astype(np.float32)
    assert (engine.encode(noise).novelty_N > 3).all()
    assert (engine.encode(stripes).novelty_N > 3).all()
    assert (engine.encode(10 * spots(50, 16, seed=4)).novelty_N > 3).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_window_that_cannot_be_read_is_most_novel(bad: float) -> None:
    windows = spots(3, 16)
    windows[1, 0, 2, 2] = bad
    told = live(model()).encode(windows)
    assert told.novelty_N[1] == MOST_NOVEL
    assert all(np.isfinite(part).all() for part in told)


def test_novelty_hardly_changes_when_a_window_is_turned() -> None:
    made = model()
    engine = fitted(made, spots(1000, 16), spots(2000, 16, seed=1))
    window = spots(60, 16, seed=7)
    turned = np.ascontiguousarray(np.rot90(window, axes=(2, 3)))
    apart = engine.encode(window).novelty_N - engine.encode(turned).novelty_N
    assert np.abs(apart).max() < 0.05
