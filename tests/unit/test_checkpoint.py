"""Weights on disk come back bit for bit, and nothing else is believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from torch import Tensor

from models.checkpoint import CheckpointError, ModelCard, load, require_fit, save
from models.encoder import SHIPPED, Encoder


def card(**fields: Any) -> ModelCard:
    usual: dict[str, Any] = {
        "name": "test",
        "family": "spatial",
        "channels": ("HAADF",),
        "window_nm": 0.6,
        "window_px": 24,
        "architecture": {"latent_dim": 2, "hidden": 16, "shift_prior": 0.05},
    }
    return ModelCard(**(usual | fields))


def tensors() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 4, generator=random),
        "b": torch.randn(4, 3, generator=random).T,  # not contiguous
        "c": torch.arange(5),
    }


def with_card(path: Path, text: str) -> Path:
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {"probeloop": text}))
    return path


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    told = card(
        seed=7,
        scores={"site_ari": 0.97},
        made_by="probeloop train rvae --seed 7",
        simulator="1.2",
        calibration={"novelty_unit": [0.1, 0.2]},
    )
    save(path, tensors(), told)
    found, found_card, _ = load(path)
    assert found_card == told
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_harmonic_weights_of_before_take_each_sd_as_it_is(tmp_path: Path) -> None:
    tensors, card, _ = load(SHIPPED)
    save(tmp_path / "old.safetensors", {n: t for n, t in tensors.items() if n != "sd_course_22"}, card)
    again, _, _ = load(tmp_path / "old.safetensors")
    assert again.keys() == tensors.keys()
    assert not again["sd_course_22"].any()
    Encoder.load(tmp_path / "old.safetensors", device="cpu")


def test_the_revision_is_the_beginning_of_the_hash_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save(path, tensors(), card())
    assert load(path)[2] == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_other_weights_have_another_revision(tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save(first, {"a": torch.zeros(2)}, card())
    save(second, {"a": torch.ones(2)}, card())
    assert load(first)[2] != load(second)[2]


def test_saving_leaves_no_half_written_file_behind(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors", tensors(), card())
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_missing_file_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: there are no such.*probeloop train"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    save(path, tensors(), card())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: not a whole safetensors file"):
        load(path)


def test_a_pickled_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"foreign\.pt: not a whole safetensors file.*can run code"):
        load(path)


def test_a_safetensors_file_of_others_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"other\.safetensors: has no model card of probeloop"):
        load(path)


def test_a_card_of_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    fields = msgspec.to_builtins(card()) | {"format_version": 99}
    path = with_card(tmp_path / "new.safetensors", json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"card of format 99; this probeloop reads 2"):
        load(path)


@pytest.mark.parametrize(
    "text",
    ["{", json.dumps({"format_version": 2}), json.dumps({"format_version": 2, "name": 3})],
)
def test_a_damaged_card_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: damaged model card"):
        load(with_card(tmp_path / "bad.safetensors", text))


def test_a_card_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="card of format None"):
        load(with_card(tmp_path / "list.safetensors", "[1, 2]"))


def test_weights_with_nan_are_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    save(path, {"good": torch.zeros(2), "bad": torch.tensor([1.0, torch.nan])}, card())
    with pytest.raises(CheckpointError, match=r"nan\.safetensors: tensor bad holds NaN"):
        load(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_px": 4}, "card.window_px is 4; it takes 8 to 512"),
        ({"window_nm": -1.0}, "card.window_nm is -1.0; it takes numbers from 0"),
        ({"window_nm": 0.0}, "exactly one of the two"),
        ({"window_per_nm": 30.0}, "exactly one of the two"),
        ({"window_per_nm": float("nan")}, "card.window_per_nm is nan"),
        ({"channels": ()}, "card.channels has 0 names"),
        ({"calibration": {"angle": [1.0, float("inf")]}}, "card.calibration of 'angle'"),
    ],
)
def test_a_card_out_of_range_says_what_it_takes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        card(**fields)


def test_fitting_tensors_are_accepted_and_others_named() -> None:
    path, want = Path("w.safetensors"), {"a": torch.zeros(2, 3)}
    require_fit(path, {"a": torch.ones(2, 3)}, want)
    with pytest.raises(CheckpointError, match=r"tensor a is \(3, 2\).*asks for \(2, 3\)"):
        require_fit(path, {"a": torch.ones(3, 2)}, want)
    with pytest.raises(CheckpointError, match=r"tensor a is .*float64"):
        require_fit(path, {"a": torch.ones(2, 3, dtype=torch.float64)}, want)
    with pytest.raises(CheckpointError, match="tensor a is missing"):
        require_fit(path, {}, want)
    with pytest.raises(CheckpointError, match="tensor b has no place"):
        require_fit(path, {"a": torch.ones(2, 3), "b": torch.ones(1)}, want)
