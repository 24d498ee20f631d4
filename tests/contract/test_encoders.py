"""What every encoder promises; a new family is tested by being listed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoint import ModelCard, load, save
from models.encoder import EXACT_BLOCK, SHIPPED, Encoded, Encoder, build, finished
from models.novelty import MOST_NOVEL
from models.rvae import RVAE
from models.spatial_inference import BLOCK


def shipped(_: Path) -> Path:
    return SHIPPED


def untrained(
    family: Literal["harmonic", "spatial"], channels: int, window_px: int, *, rotation: bool, shift: bool
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        widths = {"components": 20} if family == "harmonic" else {}
        card = ModelCard(
            name="untrained",
            family=family,
            channels=tuple(f"channel {c}" for c in range(channels)),
            window_nm=1.0,
            window_px=window_px,
            architecture={"latent_dim": 3, "hidden": 16, "rotation": rotation, "shift": shift, **widths},
        )
        shape = (300, channels, window_px, window_px)
        windows = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        model = build(card)
        if isinstance(model, RVAE):
            model.prepare(torch.from_numpy(windows))
        path = folder / "untrained.safetensors"
        save(path, *finished(model, card, windows, windows))
        return path

    return make


ENCODERS = {
    "shipped": shipped,
    "spatial rvae": untrained("spatial", 2, 16, rotation=True, shift=True),
    "spatial rvae without shift": untrained("spatial", 1, 15, rotation=True, shift=False),
    "spatial vae": untrained("spatial", 1, 9, rotation=False, shift=False),
    "rvae": untrained("harmonic", 2, 16, rotation=True, shift=True),
    "rvae without shift": untrained("harmonic", 1, 15, rotation=True, shift=False),
    "vae with shift": untrained("harmonic", 1, 12, rotation=False, shift=True),
    "vae": untrained("harmonic", 1, 9, rotation=False, shift=False),
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


def same(one: Encoded, other: Encoded) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a is b is None or (a is not None and np.array_equal(a, b)) for a, b in pairs)


def test_the_same_windows_get_the_same_latents(encoder: Encoder) -> None:
    assert same(encoder.encode(windows(encoder)), encoder.encode(windows(encoder)))


def test_a_window_does_not_depend_on_what_else_is_encoded(encoder: Encoder) -> None:
    many = windows(encoder)
    together_ = encoder.encode(many)
    order = np.random.default_rng(1).permutation(len(many))
    shuffled = encoder.encode(many[order])
    alone = [encoder.encode(many[i : i + 1]) for i in (0, 17, BLOCK, BLOCK + 39)]
    for field in together_._fields:
        whole = getattr(together_, field)
        if whole is None:
            continue
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
    kept = copy.deepcopy(first)
    encoder.encode(windows(encoder, seed=2))
    assert same(first, kept)


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
    assert same(encoder.encode(windows(encoder)), again.encode(windows(encoder)))


def test_decoded_windows_have_the_shape_of_the_card(encoder: Encoder) -> None:
    latents = np.zeros((3, encoder.card.latent_dim), np.float32)
    drawn = encoder.decode(latents)
    assert drawn.shape == windows(encoder, 3).shape
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()


def test_the_exact_posterior_does_not_depend_on_what_else_is_encoded(encoder: Encoder) -> None:
    many = windows(encoder, EXACT_BLOCK + 3)
    whole, alone = encoder.encode(many, exact=True), encoder.encode(many[5:6], exact=True)
    assert np.abs(whole.mean[5] - alone.mean[0]).max() <= 1e-6
    assert np.abs(whole.offset_px[5] - alone.offset_px[0]).max() <= 1e-6


def test_the_manifold_is_a_square_of_windows(encoder: Encoder) -> None:
    drawn = encoder.manifold(4)
    assert drawn.shape == (16, *encoder.window_shape)
    assert np.isfinite(drawn).all()
    # Along a row the second latent alone varies, which an untrained model may draw, but not by nothing.
    assert not np.array_equal(drawn[0], drawn[3])


def test_a_window_of_no_number_is_most_novel_and_touches_no_other(encoder: Encoder) -> None:
    many = windows(encoder, 20)
    clean = encoder.encode(many)
    many[7, 0, 3, 3] = np.nan
    seen = encoder.encode(many)
    others = np.arange(20) != 7
    assert seen.novelty[7] == MOST_NOVEL
    assert all(np.isfinite(array).all() for array in seen if array is not None)
    assert np.array_equal(seen.mean[others], clean.mean[others])
    assert np.array_equal(seen.angle_rad[others], clean.angle_rad[others])
