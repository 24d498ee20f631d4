"""``python -m agents`` against a real socket: the test is the streamer."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agents.config import AgentConfig
from agents.notebook import Chooser
from agents.objective import ObjectiveConfig
from agents.policies import make_agent
from agents.serve import serve
from streamer.codec import Numbered, decode, decode_numbered
from streamer.link import Link
from streamer.messages import (
    Ack,
    AnyMessage,
    Bye,
    Checkpoint,
    Enough,
    Hello,
    Latents,
    ModelRevision,
    Outcome,
    Registration,
    ScanGeometry,
    Score,
    Suggestion,
    Welcome,
)
from streamer.wire import Router

PATIENCE_S = 60.0


def latents(number: int, n: int = 400) -> Latents:
    rng = np.random.default_rng([1, number])
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2)[:n]
    zeros = np.zeros(n, np.float32)
    mean = rng.normal(0, 0.1, (n, 2)).astype(np.float32)
    mean[::40] += 3.0
    return Latents(
        session="s",
        number=number,
        acquired_at_s=float(number),
        mean=mean,
        sd=np.full((n, 2), 0.1, np.float32),
        angle_rad=zeros,
        angle_sd_rad=zeros,
        offset_nm=np.zeros((n, 2), np.float32),
        offset_sd_nm=np.zeros((n, 2), np.float32),
        class_probability=np.zeros((n, 0), np.float32),
        novelty=zeros,
        confidence=np.ones(n, np.float32),
        track=np.arange(n),
        positions_px=(grid * 10.0).astype(np.float32),
        positions_nm=(grid * 0.2).astype(np.float32),
        model_revision="m",
        geometry=ScanGeometry(shape=(200, 200), field_of_view_nm=(4.0, 4.0)),
        registration=Registration(),
    )


def outcome(suggestion: Suggestion) -> Outcome:
    energy_ev = np.arange(256.0)
    silicon = suggestion.track % 40 == 0
    edge = np.where(energy_ev >= 99, 200.0 * silicon, 0.0)
    rng = np.random.default_rng(suggestion.track)
    return Outcome(
        session="s",
        id=suggestion.id,
        status="ok",
        scan_position_nm=suggestion.position_nm,
        position_nm=suggestion.position_nm,
        spectrum=rng.poisson(2e7 * np.maximum(energy_ev, 5) ** -2.5 + edge).astype(np.float32),
    )


class FakeStreamer:
    """One agent's streamer: keeps the records of its row, acks what comes, and says what the test says."""

    def __init__(self) -> None:
        self.router = Router("tcp://127.0.0.1:0")
        self.forget()

    def forget(self) -> None:
        """Begin another session."""
        self.peer, self.hello = b"", None
        self.messages: list[AnyMessage] = []
        self.row: list[tuple[int, AnyMessage]] = []
        self.number = 0
        self.history = 0
        self.start = 0
        self.received = 0
        self.sent = 0

    def pump(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < deadline, f"the agent did not answer; it said {self.messages}"
            for peer, _, parts in self.router.receive(0.05):
                self._take(peer, decode_numbered(parts))

    def _take(self, peer: bytes, came: Numbered) -> None:
        if isinstance(came.message, Hello):
            self._greet(peer, came.message)
        elif peer == self.peer and came.sequence:
            if came.sequence == self.received + 1:
                self.received += 1
                self._keep(came.message)
            ack = Ack(session="s", number=-1, status="written", sequence=self.received)
            self.router.send(peer, ack)

    def _greet(self, peer: bytes, hello: Hello) -> None:
        if self.hello is None or hello.instance != self.hello.instance:
            self.received, self.history = 0, self.number
            newest = [m for _, m in self.row if isinstance(m, Checkpoint)][-1:]
            self.start = newest[0].told + 1 if newest else 1
        self.peer, self.hello = peer, hello
        self.router.send(
            peer,
            Welcome(
                session="s",
                window=4,
                next_number=0,
                durability="written",
                received=self.received,
                last_record=self.number,
                history_record=self.history,
            ),
        )
        self.sent = 0
        for number, message in self.row:
            is_live = isinstance(message, Latents | Outcome)
            if number >= self.start and number > hello.last_record and (is_live or number <= self.history):
                self._send(number, message)

    def _keep(self, message: AnyMessage) -> None:
        """Note it, and give it a record as the journal does; a Score is none of the row."""
        self.messages.append(message)
        self.number += 1
        if isinstance(message, Suggestion | ModelRevision | Checkpoint):
            self.row.append((self.number, message))

    def send(self, message: AnyMessage) -> None:
        if isinstance(message, Bye):
            assert self.router.send(self.peer, message)
            return
        self.number += 1
        self.row.append((self.number, message))
        self._send(self.number, message)

    def _send(self, number: int, message: AnyMessage) -> None:
        self.router.send(self.peer, message, sequence=number, after=self.sent)
        self.sent = number

    def wait_for(self, kind: type, count: int) -> None:
        self.pump(lambda: len(self.all(kind)) >= count)

    def all(self, kind: type) -> list:
        return [message for message in self.messages if isinstance(message, kind)]


@pytest.fixture
def streamer() -> Iterator[FakeStreamer]:
    fake = FakeStreamer()
    yield fake
    fake.router.close(0)


@pytest.fixture
def start(streamer: FakeStreamer) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(*options: str, connect: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "agents", "--connect", connect or streamer.router.address, *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_an_agent_measures_until_the_streamer_says_bye(streamer, start):
    process = start("--seed", "3")
    streamer.pump(lambda: streamer.hello is not None)
    assert (streamer.hello.role, streamer.hello.name) == ("agent", "agent explorer")
    answered = 0
    for number in range(12):
        streamer.send(latents(number))
        streamer.wait_for(Suggestion, answered + 1)
        while answered < len(streamer.all(Suggestion)):
            streamer.send(outcome(streamer.all(Suggestion)[answered]))
            answered += 1
        streamer.wait_for(Score, answered)
    suggestions = streamer.all(Suggestion)
    assert [score.id for score in streamer.all(Score)] == [s.id for s in suggestions[:answered]]
    assert len({s.id for s in suggestions}) == len({s.track for s in suggestions}) == len(suggestions)
    assert any(s.model_revision > 0 for s in suggestions)
    assert sum(s.track % 40 == 0 for s in suggestions) >= 5
    streamer.send(Bye(reason="budget reached"))
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, log
    assert "budget reached" in log


def test_two_runs_of_the_same_session_suggest_the_same(streamer, start, tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text("[agent]\nmax_pending = 1\nseed = 5", encoding="utf-8")
    runs = []
    for _ in range(2):
        streamer.forget()
        process = start("--config", str(config))
        streamer.pump(lambda: streamer.hello is not None)
        streamer.send(latents(0))
        streamer.wait_for(Suggestion, 1)
        for number in range(1, 16):
            streamer.send(latents(number))
            streamer.send(outcome(streamer.all(Suggestion)[-1]))
            streamer.wait_for(Suggestion, number + 1)
        runs.append([msgspec.msgpack.encode(suggestion) for suggestion in streamer.all(Suggestion)])
        assert streamer.all(Suggestion)[-1].model_revision > 0
        streamer.send(Bye())
        process.communicate(timeout=PATIENCE_S)
    assert runs[0] == runs[1]


def play(streamer: FakeStreamer, start: Callable[[], subprocess.Popen[str]], killed_at: set[int]) -> None:
    """Measure at 24 places, one for each frame; kill the agent at some of them, and start another."""
    process = start()
    streamer.pump(lambda: streamer.hello is not None)
    for number in range(24):
        if number in killed_at:
            instance = streamer.hello.instance
            process.kill()
            process.wait()
            process = start()
            streamer.pump(lambda gone=instance: streamer.hello.instance != gone)
        streamer.send(latents(number))
        if number:
            streamer.send(outcome(streamer.all(Suggestion)[-1]))
        streamer.wait_for(Suggestion, number + 1)
    streamer.pump(lambda: streamer.all(ModelRevision)[-1:] and len(streamer.all(Score)) >= 23)
    streamer.send(Bye())
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log


def test_an_agent_killed_and_started_again_suggests_what_it_would_have(streamer, start, tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text("[agent]\nmax_pending = 1\ninitial_points = 4\ncheckpoint_every = 12", encoding="utf-8")
    runs, fits = [], []
    for killed_at in (set(), {3, 9, 20}):
        streamer.forget()
        play(streamer, lambda: start("--config", str(config)), killed_at)
        runs.append([without_record(suggestion) for suggestion in streamer.all(Suggestion)])
        fits.append([without_record(fit) for fit in streamer.all(ModelRevision)])
    assert len(streamer.all(Checkpoint)) >= 2
    assert runs[0] == runs[1]
    both = min(len(made) for made in fits)  # the last one may be under way when the session ends
    assert both >= 3
    assert fits[0][:both] == fits[1][:both]


def without_record(decision: Suggestion | ModelRevision) -> bytes:
    """All but the record's number: in the two runs a score or a checkpoint is a record more or less."""
    return msgspec.msgpack.encode(msgspec.structs.replace(decision, told=0))


def test_an_agent_that_comes_back_owes_no_score_and_says_none_twice_needlessly(streamer, start):
    process = start("--policy", "raster")
    streamer.pump(lambda: streamer.hello is not None)
    streamer.send(latents(0))
    streamer.wait_for(Suggestion, 1)
    process.kill()
    process.wait()
    instance = streamer.hello.instance
    streamer.send(outcome(streamer.all(Suggestion)[0]))  # while nobody is there
    process = start("--policy", "raster")
    streamer.pump(lambda: streamer.hello.instance != instance)
    streamer.wait_for(Score, 1)
    assert streamer.all(Score)[0].id == streamer.all(Suggestion)[0].id
    streamer.send(latents(1))
    streamer.wait_for(Suggestion, 2)
    assert len(streamer.all(Score)) == 1
    streamer.send(Bye())
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, log
    assert "history taken in" in log


def test_a_stray_outcome_is_logged_and_the_session_goes_on(streamer, start):
    process = start("--policy", "raster")
    streamer.pump(lambda: streamer.hello is not None)
    streamer.send(Outcome(session="s", id="nobody", status="refused", reason="test"))
    streamer.send(latents(0))
    streamer.wait_for(Suggestion, 1)
    streamer.send(Bye())
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "no open suggestion has the id 'nobody'" in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order_even_during_its_imports(streamer, start, number):
    process = start()
    streamer.pump(lambda: streamer.hello is not None)
    process.send_signal(number)
    streamer.wait_for(Bye, 1)
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log


def test_the_explorer_begins_as_soon_as_the_raster(streamer, start):
    def seconds(policy: str) -> float:
        streamer.forget()
        started = time.monotonic()
        process = start("--policy", policy)
        streamer.pump(lambda: streamer.hello is not None)
        streamer.send(latents(0))
        streamer.wait_for(Suggestion, 1)
        took_s = time.monotonic() - started
        streamer.send(Bye())
        process.communicate(timeout=PATIENCE_S)
        return took_s

    # Which imports Python, NumPy and what the connection takes.
    assert seconds("explorer") < seconds("raster") + 1.5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[agent]\npolcy = 'raster'", "unknown field `polcy`"),
        ("[agent]\nmax_pending = 0", "agent.max_pending is 0; it takes 1 to 64"),
        ("[agent.objective]\nwindow_ev = [120.0, 99.0]", "objective.window_ev is (120.0, 99.0)"),
        (
            "[agent.objective]\nkind = 'file'\nfile = 'none.py'",
            "agent.objective.file: none.py: there is no such",
        ),
        ("[agent", "Expected"),
    ],
)
def test_a_wrong_configuration_ends_it_in_one_line(start, tmp_path: Path, table, message):
    path = tmp_path / "config.toml"
    path.write_text(table, encoding="utf-8")
    process = start("--config", str(path))
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert len(log.splitlines()) == 1
    assert str(path) in log
    assert message in log


def test_a_missing_file_an_unknown_policy_and_a_missing_streamer_are_named(start, tmp_path: Path):
    cases = [
        (start("--config", str(tmp_path / "none.toml")), 2, "none.toml"),
        (start("--policy", "clever"), 2, "agent.policy is clever; it takes explorer, raster, random"),
        (
            start("--timeout-s", "0.3", connect="tcp://127.0.0.1:9"),
            1,
            "no streamer answers at tcp://127.0.0.1:9",
        ),
    ]
    for process, code, message in cases:
        _, log = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code
        assert message in log.splitlines()[-1]
        assert "Traceback" not in log


def test_agent_gives_up_on_a_streamer_that_says_nothing_for_long() -> None:
    router = Router("tcp://127.0.0.1:0")
    welcomed = threading.Event()

    def welcome_once() -> None:
        while not welcomed.is_set():
            for peer, _, parts in router.receive(0.05):
                if isinstance(decode(parts), Hello):
                    welcome = Welcome(session="s", window=4, next_number=0, durability="written")
                    router.send(peer, welcome)
                    welcomed.set()

    greeting = threading.Thread(target=welcome_once)
    greeting.start()
    link = Link(router.address, role="agent", name="agent raster", timeout_s=5.0)
    greeting.join()
    try:
        with pytest.raises(ConnectionError, match=r"said nothing for 0\.3 s"):
            serve(make_agent(AgentConfig(policy="raster")), link, lambda: False, give_up_s=0.3)
    finally:
        link.abandon()
        router.close(0)


def test_an_agent_in_a_notebook_suggests_what_the_one_on_the_wire_does(streamer, start, tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text(
        "[agent]\nmax_pending = 1\nmax_per_frame = 0\nseed = 5\nmin_distance_nm = 0.05\n", encoding="utf-8"
    )
    seen = latents(0)
    low, high = (end(axis=0).astype(float) for end in (seen.positions_nm.min, seen.positions_nm.max))
    width, middle = tuple((high - low).tolist()), tuple(((low + high) / 2).tolist())
    box = ScanGeometry(shape=(8, 8), field_of_view_nm=width, center_nm=middle)
    chooser = Chooser(
        seen.positions_nm, seen.mean, seen.sd, objective=ObjectiveConfig(), seed=5, min_distance_nm=0.05
    )
    process = start("--config", str(config))
    streamer.pump(lambda: streamer.hello is not None)
    streamer.send(msgspec.structs.replace(seen, geometry=box))
    for step in range(1, 17):
        streamer.wait_for(Suggestion, step)
        suggestion = streamer.all(Suggestion)[-1]
        (proposal,) = chooser.suggest()
        said = {k: v for k, v in msgspec.structs.asdict(suggestion).items() if hasattr(proposal, k)}
        mine = {name: getattr(proposal, name) for name in said}
        assert len(said) == 5
        assert msgspec.msgpack.encode(mine) == msgspec.msgpack.encode(said)
        came = outcome(suggestion)
        chooser.ingest(proposal.id, came.spectrum)
        streamer.send(came)
    assert streamer.all(ModelRevision)
    streamer.send(Bye())
    process.communicate(timeout=PATIENCE_S)


def test_an_agent_that_has_enough_says_why_once_and_stays(streamer, start, tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text("[agent]\nmax_pending = 1\n[agent.stopping]\nmeasurements = 2", encoding="utf-8")
    process = start("--config", str(config))
    streamer.pump(lambda: streamer.hello is not None)
    for number in range(2):
        streamer.send(latents(number))
        streamer.wait_for(Suggestion, number + 1)
        streamer.send(outcome(streamer.all(Suggestion)[-1]))
    streamer.wait_for(Enough, 1)
    for number in range(2, 5):
        streamer.send(latents(number))
    streamer.send(Bye())
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, log
    streamer.pump(lambda: not streamer.router.receive(0.05))
    assert [said.reason for said in streamer.all(Enough)] == ["2 spectra were measured, as many as asked for"]
    assert len(streamer.all(Suggestion)) == 2
