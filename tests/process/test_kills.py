"""Processes are killed at any moment, and the session goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest

from simulators.stem import StemConfig, StemInstrument
from streamer.journal import read_records
from streamer.link import Link
from streamer.messages import Frame, Outcome, Request
from streamer.segment import Damage
from tests.process.faults.counting import SESSION, make_frame
from tests.process.faults.lives import Nursery
from tests.process.faults.lockstep import decided, differences
from tests.process.faults.proxies import CutProxy
from tests.process.faults.running import await_true
from tests.process.faults.sessions import (
    STREAMER,
    Company,
    Feeder,
    draw_kills,
    judge,
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


MOST_PENDING = 2  # as an agent is configured by default


class Loop:
    """The three programs as a person starts them; two of them are killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.session = folder / SESSION
        self._folder = folder
        self._config = folder / "probeloop.toml"
        self._config.write_text(
            "[streamer.experiment]\nmax_measurements = 0\n"
            "[agent]\ndwell_time_us = 1000.0\n"
            "[simulate.stem]\nrows = 128\ncols = 128\nfield_of_view_nm = 1.6\ndwell_time_us = 2.0\n"
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("streamer", "--session-folder", str(self.session))
        endpoints = self.session / "endpoints.json"
        await_true(endpoints.exists, "the streamer does not come up", within_s=60)
        self._connect = ("--connect", json.loads(endpoints.read_text())["address"])

    def start(self, module: str, *options: str) -> None:
        with (self._folder / f"{module}.log").open("ab") as log:
            self._processes[module] = subprocess.Popen(
                [sys.executable, "-m", module, *options, "--config", str(self._config)],
                stdout=log,
                stderr=log,
            )

    def start_instrument(self) -> None:
        self.start("simulators", "stem", *self._connect)

    def start_agent(self, policy: str) -> None:
        self.start("agents", *self._connect, "--policy", policy)

    def kill(self, module: str) -> None:
        self._processes[module].kill()
        self._processes[module].wait()

    def end(self) -> None:
        self._processes["streamer"].send_signal(signal.SIGINT)
        self._processes["streamer"].wait(60)
        for module in ("agents", "simulators"):
            self.kill(module)

    def resumes_in_s(self) -> float:
        """Wait until more is measured and scored than can have been under way; say how long it took."""
        before = self._scores()
        return await_true(lambda: self._scores() > before + MOST_PENDING, "it does not go on", within_s=120)

    def _scores(self) -> int:
        return sum(1 for _ in read_records(self.session, {"score"}))


@pytest.mark.timeout(500)
@pytest.mark.parametrize("policy", ["random", "explorer"])
def test_agent_and_instrument_killed_come_back_within_five_seconds(tmp_path, policy):
    loop = Loop(tmp_path)
    loop.start_instrument()
    loop.start_agent(policy)
    try:
        first_s = loop.resumes_in_s()
        took_s = {}
        loop.kill("agents")
        loop.start_agent(policy)
        took_s["agent"] = loop.resumes_in_s()
        loop.kill("simulators")
        loop.start_instrument()
        took_s["instrument"] = loop.resumes_in_s()
    finally:
        loop.end()
    # Where others keep the processors busy, starting Python alone takes seconds, the first time as well.
    assert max(took_s.values()) <= max(5.0, 3 * first_s), (first_s, took_s)
    records = list(read_records(loop.session))
    assert not [record for record in records if isinstance(record, Damage)]
    numbers = [record.message().number for record in records if record.kind == "frame"]
    assert numbers == sorted(set(numbers))


def test_frame_cut_off_in_the_middle_is_never_delivered(nursery, tmp_path):
    folder = tmp_path / SESSION
    life = nursery.start("streamer", folder, hub={"window": 4, "last_words_s": 0.1})
    with CutProxy(life.address()) as proxy:
        killed = Link(proxy.address, role="instrument", name="killed while it sends")
        proxy.left_bytes = 4_000_000
        killed.send(make_frame(0, shape=(1448, 1448)))  # 8 MB
        await_true(lambda: proxy.left_bytes == 0, "the frame was not sent")
        killed.abandon()
    feeder = Feeder(Link(life.address(), role="instrument", name="after it"))
    feeder.feed(lambda: feeder.acked >= 5)
    feeder.finish()
    assert life.wait() == 0, life.log()
    kept = [record.message().geometry.shape for record in read_records(folder, {"frame"})]
    assert set(kept) == {(16, 24)}
    assert judge(folder, feeder).is_clean
