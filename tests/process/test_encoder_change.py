"""Other weights in a session that runs: from a frame on that the journal names, and after a kill the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.encoder import Encoder
from streamer.messages import Control, EncoderInUse, Event, Frame, Latents
from tests.other_weights import other_weights
from tests.process.fed_streamer import FedStreamer
from tests.process.whole_run import ENVIRONMENT


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[FedStreamer]:
    made = FedStreamer(tmp_path / "session", wide=other_weights(tmp_path, "wide", window_nm=1.2))
    yield made
    made.close()


@pytest.mark.timeout(400)
def test_weights_are_changed_in_a_run_that_is_killed_and_gone_on_with(
    streamer: FedStreamer, tmp_path: Path
) -> None:
    finer = other_weights(tmp_path, "finer", window_nm=0.7)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(finer.read_bytes()[:-50])
    first, second = Encoder.load(None).revision, Encoder.load(finer).revision

    streamer.see(2)
    assert streamer.change_encoder(finer) == (0, f"finer ({second}) encodes from frame 2 on")
    streamer.see(2)
    code, said = streamer.change_encoder(broken)
    assert code == 1
    assert "not a whole safetensors file" in said
    streamer.see(1)
    streamer.kill_and_start_again()
    streamer.see(1)
    streamer.end()

    assert streamer.kept(Event)[-1].what == "session_ended"
    said_of = {one.number: one.model_revision for one in streamer.kept(Latents) if not one.is_beside}
    assert said_of == {0: first, 1: first} | dict.fromkeys(range(2, 6), second)
    (change,) = streamer.kept(EncoderInUse)
    assert (change.encoder, change.number, change.revision, change.name) == ("", 2, second, "finer")
    assert [one.what for one in streamer.kept(Event)].count("encoder refused") == 1
    assert "recovered differently" not in [one.what for one in streamer.kept(Event)]
    assert all(one.weights is None for one in streamer.kept(Control))
    assert len(streamer.kept(Frame)) == 6
    finer.unlink()  # the session has its own
    # On a machine, or with an installation, that has compiled nothing yet: other digits must not come out.
    command = [sys.executable, "-m", "deploy.local", "replay", str(streamer.folder), "--verify", "--json"]
    anew = ENVIRONMENT | {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    verified = subprocess.run(command, capture_output=True, text=True, env=anew, timeout=250)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    found = json.loads(verified.stdout)
    assert found["first"] is None
    assert (found["checks"]["frames"]["checked"], found["checks"]["latents"]["equal"]) == (12, 12)
