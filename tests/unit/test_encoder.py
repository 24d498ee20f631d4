"""The encoder engine: what it says of windows, and what it does with bad ones."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.checkpoint import CheckpointError, ModelCard, load, save
from models.encoder import SHIPPED, Encoder, build, finished
from models.novelty import MOST_NOVEL
from models.spatial_inference import BLOCK, TurnedReader
from models.spatial_rvae import SpatialRVAE, pool

Float32 = NDArray[np.float32]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shipped() -> Encoder:
    torch.set_num_threads(1)
    return Encoder.load(device="cpu")


BOND_NM, SILICON_BOND_NM, SILICON = 0.142, 0.176, 5.0


def graphene(
    silicon: str = "", turned_deg: float = 0.0, moved_nm: tuple[float, float] = (0.0, 0.0)
) -> Float32:
    """Draw a window on an atom of graphene, ``(1, 1, 24, 24)``.

    The silicon is nowhere, in the ``middle`` or ``beside`` it: along x where the turn is 0. A positive turn
    is from x to y, which is down. Only the bonds of the silicon are relaxed.
    """
    a = math.sqrt(3) * BOND_NM
    cells = np.array([[i, j] for i in range(-3, 4) for j in range(-3, 4)])
    first = cells @ (a * np.array([[math.cos(math.pi / 6), 0.5], [math.cos(math.pi / 6), -0.5]]))
    atoms = np.concatenate([first, first + [BOND_NM, 0.0]])
    height = np.ones(len(atoms))
    if silicon:
        dopant = np.array([BOND_NM if silicon == "beside" else 0.0, 0.0])
        off = atoms - dopant
        distance = np.hypot(*off.T)
        height[distance < 1e-6] = SILICON
        bonded = np.abs(distance - BOND_NM) < 1e-6
        atoms[bonded] = dopant + off[bonded] * (SILICON_BOND_NM / BOND_NM)
        if silicon == "beside":  # the middle atom has moved: the window is centred on it
            atoms += [SILICON_BOND_NM - BOND_NM, 0.0]
    cos, sin = math.cos(math.radians(turned_deg)), math.sin(math.radians(turned_deg))
    x, y = (atoms @ np.array([[cos, sin], [-sin, cos]]) + moved_nm).T
    axis = ((np.arange(24) + 0.5) / 24 - 0.5) * 0.6
    across = np.exp(-0.5 * ((axis - x[:, None]) / 0.05) ** 2)
    down = np.exp(-0.5 * ((axis - y[:, None]) / 0.05) ** 2) * height[:, None]
    image = (down.T @ across - 0.2) / 0.85
    return image[None, None].astype(np.float32)


def noisy(n: int, seed: int = 0) -> Float32:
    rng = np.random.default_rng(seed)
    kinds = [graphene(), graphene("middle", turned_deg=20), graphene("beside", turned_deg=80)]
    drawn = np.concatenate([kinds[i % 3] for i in range(n)])
    return (drawn + 0.05 * rng.normal(size=drawn.shape)).astype(np.float32)


def wrapped(angle: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.angle(np.exp(1j * angle.astype(np.float64)))


def checkpoint(path: Path, *, rotation: bool = True, window_px: int = 24, family: str = "spatial") -> Path:
    card = ModelCard(
        name="test",
        family=family,  # type: ignore[arg-type]
        channels=("HAADF", "ABF"),
        window_nm=0.6,
        window_px=window_px,
        architecture={"latent_dim": 3, "hidden": 16, "rotation": rotation, "shift": True},
    )
    windows = np.random.default_rng(3).normal(size=(200, 2, window_px, window_px)).astype(np.float32)
    save(path, *finished(build(card), card, windows, windows))
    return path


# -- what it says ----------------------------------------------------------------------------------


def test_every_field_has_its_shape_and_float32(shipped: Encoder) -> None:
    seen = shipped.encode(noisy(7))
    shapes = {name: array.shape for name, array in seen._asdict().items() if name not in ("gain", "defocus")}
    assert shapes == {
        "mean": (7, shipped.card.latent_dim),
        "sd": (7, shipped.card.latent_dim),
        "angle_rad": (7,),
        "angle_sd_rad": (7,),
        "offset_px": (7, 2),
        "offset_sd_px": (7, 2),
        "class_probability": (7, seen.class_probability.shape[1]),
        "novelty": (7,),
    }
    assert {array.dtype for array in seen if array is not None} == {np.dtype(np.float32)}
    assert all((sd > 0).all() for sd in (seen.sd, seen.angle_sd_rad, seen.offset_sd_px))
    assert (np.abs(seen.angle_rad) <= np.float32(math.pi)).all()


def test_no_windows_give_no_latents(shipped: Encoder) -> None:
    seen = shipped.encode(np.zeros((0, 1, 24, 24), np.float32))
    assert seen.mean.shape == (0, shipped.card.latent_dim)
    assert seen.novelty.shape == (0,)


def test_silicon_lies_far_from_carbon_and_from_its_neighbours(shipped: Encoder) -> None:
    carbon, silicon, beside = (shipped.encode(graphene(where)).mean[0] for where in ("", "middle", "beside"))
    assert np.linalg.norm(silicon - carbon) > 2 * np.linalg.norm(beside - carbon)


@pytest.mark.parametrize("turned_deg", [10, 45, 90, 133, 180, 250])
def test_a_turned_window_keeps_its_content_and_turns_its_angle(shipped: Encoder, turned_deg: float) -> None:
    upright = shipped.encode(graphene("beside"))
    turned = shipped.encode(graphene("beside", turned_deg=turned_deg))
    assert np.linalg.norm(turned.mean - upright.mean) < 0.3
    error = wrapped(turned.angle_rad - upright.angle_rad - math.radians(turned_deg))
    assert abs(error[0]) < math.radians(6)


@pytest.mark.parametrize("silicon", ["", "middle", "beside"])
def test_the_offset_is_row_then_column_in_pixels(shipped: Encoder, silicon: str) -> None:
    move_nm = 0.02

    def offset(x_nm: float, y_nm: float) -> Float32:
        return shipped.encode(graphene(silicon, moved_nm=(x_nm, y_nm))).offset_px[0]

    # What is drawn upright sits up to 0.3 pixels beside the middle: of a site that looks the same at three
    # turns another of them may be taken, and that goes round with it. A true offset here is 1.6 pixels.
    right, down = offset(move_nm, 0) - offset(-move_nm, 0), offset(0, move_nm) - offset(0, -move_nm)
    within_px = 0.25 if silicon == "beside" else 0.9
    assert right == pytest.approx([0.0, 1.6], abs=within_px)
    assert down == pytest.approx([1.6, 0.0], abs=within_px)


def test_what_it_says_can_be_drawn_again(shipped: Encoder) -> None:
    window = graphene("beside", turned_deg=30)
    seen = shipped.encode(window)
    drawn, upright = shipped.decode(seen.mean, seen.angle_rad), shipped.decode(seen.mean)
    middle = np.s_[0, 0, 4:20, 4:20]
    assert drawn.shape == window.shape
    assert drawn.dtype == np.float32
    left, there = ((picture[middle] - window[middle]).var() for picture in (drawn, np.zeros_like(window)))
    assert left < 0.2 * there
    assert (upright[middle] - window[middle]).var() > 2 * left


def test_the_fast_reader_knows_channels_apart(tmp_path: Path) -> None:
    model = Encoder.load(checkpoint(tmp_path / "w.safetensors"), device="cpu")._model
    assert isinstance(model, SpatialRVAE)
    random = torch.Generator().manual_seed(5)
    scaled = torch.randn(50, 2, 24, 24, generator=random) * torch.tensor([1.0, 9.0])[:, None, None] + 3
    model.prepare(scaled)
    windows = torch.randn(20, 2, 24, 24, generator=random)
    with torch.inference_mode():
        expected, _ = model.read_turns(windows)
        found = TurnedReader(model)(pool(windows).flatten(1))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


# -- novelty ---------------------------------------------------------------------------------------


def test_usual_windows_are_not_novel_and_foreign_ones_are(shipped: Encoder) -> None:
    usual = shipped.encode(noisy(300)).novelty
    foreign = shipped.encode(
        np.random.default_rng(1).normal(size=(20, 1, 24, 24)).astype(np.float32) * 3
    ).novelty
    assert np.median(usual) < 1.5
    assert (foreign > 3).all()


@pytest.mark.parametrize("level", [-5.0, 0.0, 1.0, 1e6])
def test_a_constant_window_is_read_and_finite(shipped: Encoder, level: float) -> None:
    seen = shipped.encode(np.full((2, 1, 24, 24), level, np.float32))
    assert all(np.isfinite(array).all() for array in seen if array is not None)


def test_a_bright_constant_window_is_novel(shipped: Encoder) -> None:
    assert shipped.encode(np.full((1, 1, 24, 24), 20.0, np.float32)).novelty[0] > 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_window_that_is_not_finite_is_most_novel_and_touches_no_other(shipped: Encoder, bad: float) -> None:
    windows = noisy(10)
    clean = shipped.encode(windows)
    windows[3, 0, 5, 5] = bad
    seen = shipped.encode(windows)
    assert seen.novelty[3] == MOST_NOVEL
    assert all(np.isfinite(array).all() for array in seen if array is not None)
    others = np.arange(10) != 3
    for one, two in zip(seen, clean, strict=True):
        if one is None:
            continue
        assert two is not None
        assert np.array_equal(one[others], two[others])
    assert np.isnan(windows[3, 0, 5, 5]) or np.isinf(windows[3, 0, 5, 5])


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 24, 24), (3, 1, 20, 20), (3, 24, 24)])
def test_windows_of_another_shape_are_refused(shipped: Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"these weights take \(n, 1, 24, 24\)"):
        shipped.encode(np.zeros(shape, np.float32))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there are no such weights"):
        Encoder.load(tmp_path / "none.safetensors")


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="family 'finder'; the encoder takes 'harmonic' or 'spatial'"):
        Encoder.load(checkpoint(tmp_path / "w.safetensors", family="finder"))


def test_tensors_that_do_not_fit_the_card_are_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "w.safetensors")
    tensors, card, _ = load(path)
    save(path, tensors, msgspec.structs.replace(card, architecture=card.architecture | {"latent_dim": 4}))
    with pytest.raises(CheckpointError, match=r"w\.safetensors: tensor content\.weight is"):
        Encoder.load(path)
    save(path, {name: one for name, one in tensors.items() if name != "novelty.sd_S"}, card)
    with pytest.raises(CheckpointError, match=r"tensor novelty\.sd_S is missing"):
        Encoder.load(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ValueError, match="torch sees no GPU"):
        Encoder.load(device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_says_what_the_cpu_says(shipped: Encoder) -> None:
    other = Encoder.load(device="cuda")
    first, second = shipped.encode(noisy(BLOCK + 3)), other.encode(noisy(BLOCK + 3))
    assert np.abs(first.mean - second.mean).max() < 1e-3


# -- the shipped weights ---------------------------------------------------------------------------


def test_the_shipped_card_says_what_it_was_made_by_and_how_good_it_is(shipped: Encoder) -> None:
    card = shipped.card
    assert SHIPPED.stat().st_size < 1_000_000
    assert card.made_by.startswith("probeloop train rvae --preset graphene-si --seed 0")
    assert card.scores["site_ari"] >= 0.9
    assert card.scores["invariance"] < 0.1
    assert card.scores["r_min"] > 0.85
