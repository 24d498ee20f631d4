"""Every file of weights that is shipped says what it is, was made by the command, and is still as good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.presets.judging import angle_scores, class_scores
from deploy.presets.known import KNOWN, preset_of
from models.checkpoint import CheckpointError, load
from models.encoder import SHIPPED, Encoder

FOLDER = SHIPPED.parent
FRESH_SEED = 20_003
WINDOWS = 300
# Well below what each card says: of 300 windows of another seed.
FLOORS = {
    "graphene-si": {"knn": 0.88, "r_mean": 0.85, "cover_95": 0.65},
    "perovskite": {"knn": 0.93, "r_mean": 0.95, "cover_95": 0.7},
    "mos2": {"knn": 0.9, "r_mean": 0.93, "cover_95": 0.8},
    "pfm-walls": {"knn": 0.9, "r_mean": 0.95, "cover_95": 0.8},
    "pfm-pathways": {"knn": 0.8, "r_mean": 0.8},
    "diffraction": {"knn": 0.9, "r_mean": 0.85, "cover_95": 0.8},
    "afm-rods": {"knn": 0.8, "r_mean": 0.8},
}


def shipped(name: str) -> Path:
    return FOLDER / preset_of(name).weights_name


@pytest.mark.parametrize("name", KNOWN)
def test_a_shipped_card_says_all_that_it_should(name: str) -> None:
    tensors, card, revision = load(shipped(name))
    preset = preset_of(name)
    assert shipped(name).stat().st_size <= 4_000_000
    assert (card.name, card.channels, card.window_px) == (name, preset.channels, preset.window_px)
    assert (card.window_nm, card.window_per_nm) == (preset.window_nm, preset.window_per_nm)
    assert card.normalisation == preset.normalisation
    assert card.made_by == f"probeloop train rvae --preset {name} --seed {card.seed}"
    assert card.data
    assert card.classes == (preset.classes if card.architecture["classes"] else ())
    assert "+" in card.simulator
    assert {"shift_prior", "gain_prior", "defocus_prior"} <= set(card.architecture)
    assert {"held_out_nats", "knn", "novel_share"} <= set(card.scores)
    assert len(revision) == 12
    assert tensors


@pytest.mark.parametrize("name", KNOWN)
def test_shipped_weights_are_as_good_on_a_fresh_odd_seed(name: str) -> None:
    preset, encoder = preset_of(name), Encoder.load(shipped(name))
    part = preset.simulate(preset, WINDOWS, np.random.default_rng(FRESH_SEED))
    seen = encoder.encode(part.windows_NCHW)
    scores = class_scores(seen.mean, part.class_N) | angle_scores(preset, seen, part)
    assert all(scores[score] >= floor for score, floor in FLOORS[name].items()), scores
    assert (seen.novelty > 3).mean() < 0.1


def test_weights_that_were_cut_short_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "short.safetensors"
    file.write_bytes(shipped("mos2").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"short\.safetensors: not a whole safetensors file"):
        Encoder.load(file)


def test_a_pickle_is_refused_by_name_and_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    file = tmp_path / "foreign.safetensors"
    file.write_bytes(b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors: not a whole safetensors file"):
        Encoder.load(file)
    assert not ran.exists()
