"""``probeloop train`` makes weights that the encoder takes, with a card that says what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deploy.train import app, two_groups
from models.checkpoint import load
from models.encoder import Encoder


@pytest.mark.timeout(240)
def test_train_rvae_writes_weights_with_a_card_and_the_same_seed_makes_the_same(tmp_path: Path):
    made = []
    for name in ("one", "two"):
        output = tmp_path / f"{name}.safetensors"
        options = ["--output", str(output), "--windows", "300", "--epochs", "1", "--seed", "2"]
        ran = CliRunner().invoke(app, ["rvae", *options], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        made.append(output)
    (first, card, _), (second, _, _) = load(made[0]), load(made[1])
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    assert (card.seed, card.window_px, card.channels) == (2, 24, ("HAADF",))
    assert "--windows 300 --window-nm 0.6" in card.made_by
    assert {"site_ari", "invariance", "held_out_nats", "novel_share"} <= set(card.scores)
    assert all(np.isfinite(score) for score in card.scores.values())
    encoder = Encoder.load(made[0])
    assert encoder.encode(np.zeros((3, 1, 24, 24), np.float32)).mean.shape == (3, card.latent_dim)


def test_output_that_is_no_safetensors_file_is_refused(tmp_path: Path):
    ran = CliRunner().invoke(app, ["rvae", "--output", str(tmp_path / "weights.pt")])
    assert ran.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_two_groups_parts_what_lies_apart_and_is_always_the_same():
    rng = np.random.default_rng(0)
    latents = np.concatenate([rng.normal(0, 0.1, (200, 2)), rng.normal(3, 0.1, (5, 2))]).astype(np.float32)
    groups = two_groups(latents)
    assert len(set(groups[:200])) == len(set(groups[200:])) == 1
    assert groups[0] != groups[-1]
    assert np.array_equal(groups, two_groups(latents))
