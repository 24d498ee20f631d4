"""Whoever is killed in the middle of a session, it goes on by itself and ends as it was meant to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamer.messages import Frame, Latents, Outcome, Suggestion
from tests.process.whole_run import WholeRun

BUDGET = 100
# What each of them gives: by this it is seen to be back.
WORK = {"agent": Suggestion, "instrument": Frame, "streamer": Latents}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[WholeRun]:
    made = WholeRun(tmp_path, "--measurements", str(BUDGET))
    yield made
    made.close()


@pytest.mark.timeout(600)
def test_each_part_is_killed_in_turn_and_the_session_ends_with_its_budget(run: WholeRun) -> None:
    killed_at_s: dict[str, float] = {}
    for name in WORK:
        run.wait_for_frames(3)
        part = run.part(name)
        assert part is not None
        killed_at_s[name] = time.time()
        part.kill()
        run.wait_for("its restart", lambda name=name: f"restarted {name}" in run.log("supervisor"))
    said = run.end()

    assert run.process.returncode == 0, said
    for name in WORK:
        assert said.count(f"restarted {name} (killed by SIGKILL)") == 1
    assert len(run.log("supervisor").splitlines()) == 3
    assert "Ended: budget reached." in said
    assert (run.folder / "report.html").exists()
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["measurements"] == BUDGET

    for name, at_s in killed_at_s.items():
        back_s = min(when for when, _ in run.messages(WORK[name]) if when > at_s + 0.5) - at_s
        print(f"{name}: back {back_s:.1f} s after it was killed")
    numbers = [frame.number for _, frame in run.messages(Frame)]
    assert numbers == sorted(set(numbers))
    ids = [outcome.id for _, outcome in run.messages(Outcome)]
    assert len(ids) == len(set(ids))
    with np.load(run.folder / "truth.npz", allow_pickle=False) as truth:
        assert np.isfinite(truth["drift_nm"][numbers[-1]]).all()
