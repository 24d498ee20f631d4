"""What every encoder promises; a new family is tested by being listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoint import ModelCard, load, save
from models.encoder import BLOCK, SHIPPED, Encoder, NoveltyModel, build, together


def shipped(_: Path) -> Path:
    return SHIPPED


def untrained(channels: int, window_px: int, *, rotation: bool, shift: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        card = ModelCard(
            name="untrained",
            family="spatial",
            channels=tuple(f"channel {c}" for c in range(channels)),
            window_nm=1.0,
            window_px=window_px,
            architecture={"latent_dim": 3, "hidden": 16, "rotation": rotation, "shift": shift},
            calibration={"novelty_center": [0.0, 0.0], "novelty_unit": [1.0, 1.0]},
        )
        windows = torch.randn(300, channels, window_px, window_px, generator=torch.Generator().manual_seed(1))
        path = folder / "untrained.safetensors"
        save(path, together(build(card), NoveltyModel.fit(windows)), card)
        return path

    return make


ENCODERS = {
    "shipped": shipped,
    "rvae": untrained(2, 16, rotation=True, shift=True),
    "rvae without shift": untrained(1, 15, rotation=True, shift=False),
    "vae": untrained(1, 9, rotation=False, shift=False),
}


@pytest.fixture(params=list(ENCODERS))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return ENCODERS[request.param](tmp_path)


@pytest.fixture
def encoder(path: Path) -> Encoder:
    return Encoder.load(path, device="cpu")


def windows(encoder: Encoder, n: int = BLOCK + 40, seed: int = 0) -> NDArray[np.float32]:
    card = encoder.card
    shape = (n, len(card.channels), card.window_px, card.window_px)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_same_windows_get_the_same_latents(encoder: Encoder) -> None:
    first, second = encoder.encode(windows(encoder)), encoder.encode(windows(encoder))
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))


def test_a_window_does_not_depend_on_what_else_is_encoded(encoder: Encoder) -> None:
    many = windows(encoder)
    together_ = encoder.encode(many)
    order = np.random.default_rng(1).permutation(len(many))
    shuffled = encoder.encode(many[order])
    alone = [encoder.encode(many[i : i + 1]) for i in (0, 17, BLOCK, BLOCK + 39)]
    for field in together_._fields:
        whole = getattr(together_, field)
        assert np.abs(whole[order] - getattr(shuffled, field)).max(initial=0) <= 1e-6
        for one, i in zip(alone, (0, 17, BLOCK, BLOCK + 39), strict=True):
            assert np.abs(whole[i] - getattr(one, field)[0]).max(initial=0) <= 1e-6


def test_encoding_and_decoding_change_neither_weights_nor_windows(encoder: Encoder) -> None:
    before = {name: tensor.clone() for name, tensor in encoder._model.state_dict().items()}
    given = windows(encoder)
    kept = given.copy()
    encoder.decode(encoder.encode(given).mean)
    assert np.array_equal(given, kept)
    assert all(torch.equal(before[name], one) for name, one in encoder._model.state_dict().items())


def test_what_one_call_gave_is_not_overwritten_by_the_next(encoder: Encoder) -> None:
    first = encoder.encode(windows(encoder))
    kept = [array.copy() for array in first]
    encoder.encode(windows(encoder, seed=2))
    assert all(np.array_equal(one, two) for one, two in zip(first, kept, strict=True))


def test_read_only_and_strided_windows_are_taken(encoder: Encoder) -> None:
    plain = windows(encoder, 10)
    locked = plain.copy()
    locked.flags.writeable = False
    strided = np.repeat(plain, 2, axis=0)[::2]
    expected = encoder.encode(plain).mean
    assert np.array_equal(encoder.encode(locked).mean, expected)
    assert np.array_equal(encoder.encode(strided).mean, expected)


def test_a_checkpoint_saved_again_encodes_bit_for_bit_the_same(
    encoder: Encoder, path: Path, tmp_path: Path
) -> None:
    tensors, card, revision = load(path)
    copy = tmp_path / "copy.safetensors"
    save(copy, tensors, card)
    again = Encoder.load(copy, device="cpu")
    assert encoder.revision == revision
    first, second = encoder.encode(windows(encoder)), again.encode(windows(encoder))
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))


def test_decoded_windows_have_the_shape_of_the_card(encoder: Encoder) -> None:
    latents = np.zeros((3, encoder.card.latent_dim), np.float32)
    drawn = encoder.decode(latents)
    assert drawn.shape == windows(encoder, 3).shape
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
