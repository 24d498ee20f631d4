"""``python -m agents`` against a real socket: the test is the streamer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamer.codec import decode
from streamer.messages import (
    AnyMessage,
    Bye,
    Hello,
    Latents,
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
    """One agent's streamer: greets it, and says what the test says."""

    def __init__(self) -> None:
        self.router = Router("tcp://127.0.0.1:0")
        self.peer = b""
        self.hello: Hello | None = None
        self.messages: list[AnyMessage] = []

    def pump(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < deadline, f"the agent did not answer; it said {self.messages}"
            for peer, parts in self.router.receive(0.05):
                message = decode(parts)
                if isinstance(message, Hello):
                    self.peer, self.hello = peer, message
                    self.send(Welcome(session="s", window=4, next_number=0, durability="written"))
                elif peer == self.peer:
                    self.messages.append(message)

    def wait_for(self, kind: type, count: int) -> None:
        self.pump(lambda: len(self.all(kind)) >= count)

    def forget(self) -> None:
        """Make ready for another agent."""
        self.peer, self.hello, self.messages = b"", None, []

    def send(self, message: AnyMessage) -> None:
        assert self.router.send(self.peer, message)

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


def test_the_first_suggestion_does_not_wait_for_botorch(streamer, start):
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

    # The raster never imports it: what it takes is Python, NumPy and the connection.
    assert seconds("explorer") < seconds("raster") + 1.5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[agent]\npolcy = 'raster'", "unknown field `polcy`"),
        ("[agent]\nmax_pending = 0", "agent.max_pending is 0; it takes 1 to 64"),
        ("[agent.objective]\nwindow_ev = [120.0, 99.0]", "objective.window_ev is (120.0, 99.0)"),
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
