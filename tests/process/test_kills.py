"""Processes are killed at any moment, and the session goes on as if nothing had been."""

from __future__ import annotations

import os
from collections.abc import Iterator

import h5py
import msgspec
import numpy as np
import pytest

from simulators.stem import StemConfig, StemInstrument
from streamer.messages import Frame, Outcome, Request
from tests.process.faults.counting import SESSION
from tests.process.faults.lives import Nursery
from tests.process.faults.lockstep import decided, differences
from tests.process.faults.sessions import (
    STREAMER,
    Company,
    draw_kills,
    kill_at_random,
    kill_while_it_writes,
    play_in_lockstep,
)

# PROBELOOP_TRIALS=100 for the long form.
TRIALS = int(os.environ.get("PROBELOOP_TRIALS", "20"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.mark.timeout(60 + 5 * TRIALS)
def test_streamer_killed_at_any_moment_loses_and_doubles_nothing(nursery, tmp_path):
    verdict = kill_at_random(nursery, tmp_path / "session", trials=TRIALS, seed=1)
    assert verdict.acked >= TRIALS
    assert verdict.is_clean, verdict


@pytest.mark.timeout(60 + 5 * TRIALS)
def test_streamer_killed_while_it_writes_opens_its_journal_by_itself(nursery, tmp_path):
    folder = tmp_path / "session"
    verdict = kill_while_it_writes(nursery, folder, trials=max(1, TRIALS // 2), seed=2)
    assert verdict.is_clean, verdict
    assert len(list(folder.glob("journal-*.plj"))) > TRIALS // 2
    with h5py.File(folder / "frames.hspy") as file:
        signal = file["Experiments/HAADF"]
        assert signal["data"].shape == (verdict.sent, 160, 160)
        assert np.all(signal["done"][...] == 1)
        assert np.array_equal(signal["number"][...], np.arange(verdict.sent))
    assert not list(folder.glob("*.part"))


CYCLES = 12


@pytest.mark.timeout(300)
@pytest.mark.parametrize("policy", ["random", "explorer"])
def test_decisions_do_not_depend_on_who_was_killed_when(nursery, tmp_path, policy):
    agent = {"agent": {"policy": policy, "max_pending": 1, "seed": 3}, "checkpoint_every": 5}
    clean = decided(play_in_lockstep(Company(nursery, tmp_path / "clean", STREAMER, agent), CYCLES, {}))
    assert len(clean["Suggestion"]) == len(clean["Score"]) == CYCLES
    kills = draw_kills(seed=4, count=6, cycles=CYCLES, who=["streamer", "agent"])
    company = Company(nursery, tmp_path / "killed", STREAMER, agent)
    killed = decided(play_in_lockstep(company, CYCLES, kills))
    assert {kind: differences(clean, killed, [kind]) for kind in clean} == dict.fromkeys(clean, 0)


class StemBench:
    """The simulated microscope; it is not what is killed."""

    def __init__(self) -> None:
        config = StemConfig(rows=128, cols=128, field_of_view_nm=1.6, dwell_time_us=0.5, seed=5)
        self._stem = StemInstrument(config, started_at_s=1000.0)

    def frame(self, number: int) -> Frame:
        return msgspec.structs.replace(self._stem.acquire(), session=SESSION, number=number)

    def outcome(self, request: Request) -> Outcome:
        return self._stem.execute(request)[0]


@pytest.mark.timeout(300)
def test_real_analysis_and_explorer_decide_the_same_with_and_without_kills(tmp_path):
    nursery = Nursery("torch", "models.encoder", "agents.explorer")
    streamer = STREAMER | {"hub": STREAMER["hub"] | {"checkpoint_frames": 4}}
    agent = {"agent": {"policy": "explorer", "max_pending": 1, "seed": 6}, "checkpoint_every": 6}
    found = {}
    for name, kills in (
        ("clean", {}),
        (
            "killed",
            {(3, "request came"): "streamer", (6, "agent at rest"): "agent", (10, "frame sent"): "streamer"},
        ),
    ):
        company = Company(nursery, tmp_path / name, streamer, agent, kind="analysing streamer")
        found[name] = decided(play_in_lockstep(company, 14, kills, StemBench()))
    nursery.close()
    clean, killed = found["clean"], found["killed"]
    assert len(clean["Suggestion"]) == len(clean["Score"]) == 14
    assert len(clean["ModelRevision"]) >= 2
    assert {kind: differences(clean, killed, [kind]) for kind in clean} == dict.fromkeys(clean, 0)
