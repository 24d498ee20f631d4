"""An instrument on the wire: frames within the credit, requests between frames, a clean end."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from simulators.__main__ import app, write_truth
from simulators.instrument import Served, serve
from simulators.stem import StemConfig, StemInstrument
from streamer.codec import decode
from streamer.messages import Ack, AnyMessage, Bye, Frame, Hello, Message, Outcome, Request, Welcome
from streamer.wire import Link, Router

TINY = StemConfig(rows=16, cols=16, field_of_view_nm=1.0, dwell_time_us=1000.0, seed=1)
FRAME_S = 16 * 16 * 1e-3


class FakeLink:
    """A link whose streamer answers by a script: ``on_send`` is called with every message sent."""

    def __init__(
        self, *, window: int = 4, next_number: int = 0, on_send: Callable[[Message], list[Message]]
    ) -> None:
        self.welcome = Welcome(session="s", window=window, next_number=next_number, durability="written")
        self.sent: list[Message] = []
        self.refused: list[Ack] = []
        self.most_unacked = 0
        self.closed: str | None = None
        self.inbox: deque[Message] = deque()
        self._on_send = on_send
        self._unacked: set[int] = set()

    @property
    def credit(self) -> int:
        return self.welcome.window - len(self._unacked)

    @property
    def unacked(self) -> int:
        return len(self._unacked)

    def send(self, message: Message) -> None:
        if isinstance(message, Frame):
            assert self.credit > 0, "a frame was sent without credit"
            self._unacked.add(message.number)
            self.most_unacked = max(self.most_unacked, self.unacked)
        self.sent.append(message)
        self.inbox.extend(self._on_send(message))

    def receive(self, timeout_s: float) -> Message | None:
        message = self.inbox.popleft() if self.inbox else None
        if isinstance(message, Ack):
            self._unacked.discard(message.number)
            if message.status == "refused":
                self.refused.append(message)
        return message

    def close(self, *, reason: str = "", drain_s: float = 5.0) -> list[AnyMessage]:
        self.closed = reason
        return []

    def frames(self) -> list[Frame]:
        return [message for message in self.sent if isinstance(message, Frame)]

    def outcomes(self) -> list[Outcome]:
        return [message for message in self.sent if isinstance(message, Outcome)]


class Clock:
    """Moves on by a tick each time it is read: waiting ends, and nobody sleeps."""

    def __init__(self, tick_s: float = 0.001) -> None:
        self.now_s = 0.0
        self._tick_s = tick_s

    def __call__(self) -> float:
        self.now_s += self._tick_s
        return self.now_s


def ack(frame: Frame, status: Any = "written") -> Ack:
    return Ack(session="s", number=frame.number, status=status)


def ask(identifier: str, **fields: Any) -> Request:
    usual: dict[str, Any] = {
        "session": "s",
        "action": "spectrum",
        "scan_position_nm": (0.1, 0.0),
        "position_nm": (0.1, 0.0),
        "dwell_time_us": 1000.0,
    }
    return Request(id=identifier, **(usual | fields))


def sub_scan(identifier: str) -> Request:
    return ask(identifier, action="scan", field_of_view_nm=(0.5, 0.5), shape=(8, 8))


def ack_all(message: Message) -> list[Message]:
    return [ack(message)] if isinstance(message, Frame) else []


def play(link: FakeLink, **options: Any) -> Served:
    settings: dict[str, Any] = {"speed": math.inf, "clock": Clock(), "linger_s": 0.05} | options
    return serve(StemInstrument(TINY, started_at_s=0.0), link, **settings)  # type: ignore[arg-type]


def test_frames_carry_the_session_and_rising_numbers_from_the_next_one():
    link = FakeLink(on_send=ack_all, next_number=7)
    served = play(link, max_frames=3)

    assert [(frame.session, frame.number) for frame in link.frames()] == [("s", 7), ("s", 8), ("s", 9)]
    assert served == Served(first_number=7, frames=3, ended="all frames sent")
    assert link.closed == "all frames sent"


def test_no_more_frames_are_sent_than_the_window_has_places_for():
    held: list[Frame] = []

    def ack_when_full(message: Message) -> list[Message]:
        if not isinstance(message, Frame):
            return []
        held.append(message)
        if len(held) < 2:
            return []
        acks: list[Message] = [ack(frame) for frame in held]
        held.clear()
        return acks

    link = FakeLink(window=2, on_send=ack_when_full)
    served = play(link, max_frames=6)

    assert served.frames == 6
    assert link.most_unacked == 2


def test_all_waiting_requests_are_answered_between_two_frames():
    def on_send(message: Message) -> list[Message]:
        if isinstance(message, Frame) and message.number == 0:
            return [ack(message), ask("a"), ask("b")]
        return ack_all(message)

    link = FakeLink(on_send=on_send)
    served = play(link, max_frames=2)

    kinds = [(type(message).__name__, getattr(message, "id", "")) for message in link.sent]
    assert kinds == [("Frame", ""), ("Outcome", "a"), ("Outcome", "b"), ("Frame", "")]
    assert [outcome.status for outcome in link.outcomes()] == ["ok", "ok"]
    assert served.outcomes == 2


def test_a_sub_scan_is_sent_as_the_next_frame_before_its_outcome():
    def on_send(message: Message) -> list[Message]:
        if isinstance(message, Frame) and message.number == 0:
            return [ack(message), sub_scan("z")]
        return ack_all(message)

    link = FakeLink(on_send=on_send)
    served = play(link, max_frames=2)
    _, part, outcome, last = link.sent

    assert isinstance(part, Frame)
    assert isinstance(outcome, Outcome)
    assert (part.number, part.request_id, part.session) == (1, "z", "s")
    assert (outcome.frame_number, outcome.status) == (1, "ok")
    assert last.number == 2  # type: ignore[attr-defined]
    assert (served.frames, served.sub_scans) == (2, 1)


def test_a_bye_of_the_streamer_ends_it_after_what_was_asked_before():
    def on_send(message: Message) -> list[Message]:
        if isinstance(message, Frame):
            return [ack(message), ask("last"), sub_scan("late"), Bye(reason="budget reached")]
        return []

    link = FakeLink(on_send=on_send)
    served = play(link)

    assert [(outcome.id, outcome.status) for outcome in link.outcomes()] == [
        ("last", "ok"),
        ("late", "aborted"),
    ]
    assert (served.frames, served.ended, link.closed) == (1, "budget reached", "budget reached")


def test_the_operator_ends_it_at_once():
    link = FakeLink(on_send=ack_all)
    served = play(link, stop=lambda: len(link.sent) >= 3)

    assert (served.frames, link.closed) == (3, "operator")


def test_the_end_of_a_recording_is_said_after_the_last_requests():
    class Short(StemInstrument):
        def acquire(self) -> Frame | None:  # type: ignore[override]
            return None if len(self.truth()["drift_nm"]) == 2 else super().acquire()

    def on_send(message: Message) -> list[Message]:
        if isinstance(message, Frame) and message.number == 1:
            return [ack(message), ask("after the last frame")]
        return ack_all(message)

    link = FakeLink(on_send=on_send)
    served = serve(Short(TINY), link, speed=math.inf, clock=Clock(), linger_s=0.05)  # type: ignore[arg-type]

    assert [outcome.id for outcome in link.outcomes()] == ["after the last frame"]
    assert (served.frames, link.closed) == (2, "end of recording")


def test_refused_frames_are_counted_and_the_next_ones_sent():
    def on_send(message: Message) -> list[Message]:
        if isinstance(message, Frame):
            return [ack(message, "refused" if message.number == 1 else "written")]
        return []

    served = play(FakeLink(on_send=on_send), max_frames=4)

    assert (served.frames, served.refused) == (4, 1)


def test_a_request_of_another_session_fails():
    def on_send(message: Message) -> list[Message]:
        if isinstance(message, Frame) and message.number == 0:
            return [ack(message), ask("x", session="yesterday")]
        return ack_all(message)

    link = FakeLink(on_send=on_send)
    play(link, max_frames=2)

    assert [(o.status, o.reason) for o in link.outcomes()] == [
        ("failed", "the request is of another session")
    ]


@pytest.mark.parametrize("speed", [1.0, 4.0])
def test_frames_keep_step_with_the_clock_of_the_instrument(speed):
    clock = Clock()
    sent_at_s: list[float] = []

    def on_send(message: Message) -> list[Message]:
        sent_at_s.append(clock.now_s)
        return ack_all(message)

    play(FakeLink(on_send=on_send), max_frames=5, speed=speed, clock=clock)

    np.testing.assert_allclose(np.diff(sent_at_s), FRAME_S / speed, atol=0.01)


def test_a_spectrum_takes_its_exposure_on_the_wall_clock():
    clock = Clock()
    sent_at_s: list[float] = []

    def on_send(message: Message) -> list[Message]:
        sent_at_s.append(clock.now_s)
        if isinstance(message, Frame) and message.number == 0:
            return [ack(message), ask("x", dwell_time_us=2e6)]
        return ack_all(message)

    play(FakeLink(on_send=on_send), max_frames=2, speed=1.0, clock=clock)

    np.testing.assert_allclose(np.diff(sent_at_s), [2.0, FRAME_S], atol=0.01)


def test_a_streamer_that_never_acks_is_given_up_with_the_cure():
    link = FakeLink(window=1, on_send=lambda _: [])

    with pytest.raises(ConnectionError, match="acked none of 1 frames for 5 s; see whether it still runs"):
        play(link, silence_s=5.0)
    assert link.closed == "ConnectionError"


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_that_goes_nowhere_is_refused(speed):
    with pytest.raises(ValueError, match="it takes a number above 0"):
        play(FakeLink(on_send=ack_all), speed=speed)


class Streamer(threading.Thread):
    """A real socket that welcomes one instrument, acks its frames, asks once and says Bye."""

    def __init__(self, *, say_bye_after: int | None) -> None:
        super().__init__()
        self.router = Router("tcp://127.0.0.1:0")
        self.address = self.router.address
        self.received: list[AnyMessage] = []
        self.enough = threading.Event()
        self._say_bye_after = say_bye_after

    def run(self) -> None:
        while not any(isinstance(message, Bye) for message in self.received):
            for peer, parts in self.router.receive(10.0):
                message = decode(parts)
                self.received.append(message)
                for answer in self._answers(message):
                    self.router.send(peer, answer)
        self.router.close()

    def _answers(self, message: AnyMessage) -> list[Message]:
        if isinstance(message, Hello):
            return [Welcome(session="s", window=2, next_number=2, durability="written")]
        if not isinstance(message, Frame):
            return []
        count = len(self.frames())
        if count == 3:
            self.enough.set()
        answers: list[Message] = [ack(message)]
        answers += [ask("one"), sub_scan("two")] if count == 1 else []
        answers += [Bye(reason="budget reached")] if count == self._say_bye_after else []
        return answers

    def frames(self) -> list[Frame]:
        return [message for message in self.received if isinstance(message, Frame)]


def test_over_a_real_socket_everything_arrives_in_order():
    streamer = Streamer(say_bye_after=6)
    streamer.start()
    link = Link(streamer.address, role="instrument", name="test")
    served = serve(StemInstrument(TINY), link, speed=math.inf)
    streamer.join(20)

    assert not streamer.is_alive()
    assert served.ended == "budget reached"
    assert served.refused == 0
    numbers = [frame.number for frame in streamer.frames()]
    assert numbers == list(range(2, 2 + len(numbers)))
    assert len(numbers) >= 6
    outcomes = {message.id: message for message in streamer.received if isinstance(message, Outcome)}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"one": "ok", "two": "ok"}
    part = streamer.frames()[numbers.index(outcomes["two"].frame_number or -1)]
    assert part.request_id == "two"
    assert isinstance(streamer.received[-1], Bye)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_process_ends_cleanly_on_a_signal_and_writes_its_truth(tmp_path, number):
    streamer = Streamer(say_bye_after=None)
    streamer.start()
    config = tmp_path / "config.toml"
    config.write_text("[simulate.stem]\nrows = 16\ncols = 16\nfield_of_view_nm = 1.0\n")
    truth = tmp_path / "truth.npz"
    command = [sys.executable, "-m", "simulators", "stem", "--connect", streamer.address]
    command += ["--config", str(config), "--truth", str(truth), "--speed", "max", "--seed", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert streamer.enough.wait(60)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    streamer.join(20)

    assert process.returncode == 0
    assert "operator; " in errors
    assert isinstance(streamer.received[-1], Bye)
    with np.load(truth, allow_pickle=False) as arrays:
        assert arrays["seed"] == 5
        last = streamer.frames()[-1].number
        assert np.isnan(arrays["drift_nm"][:2]).all()
        assert np.isfinite(arrays["drift_nm"][2 : last + 1]).all()
    assert not list(tmp_path.glob("*.part"))


def test_the_truth_is_indexed_by_the_number_of_the_frame(tmp_path):
    instrument = StemInstrument(TINY)
    for _ in range(2):
        instrument.acquire()
    write_truth(tmp_path / "truth.npz", instrument.truth(), first_number=3)

    with np.load(tmp_path / "truth.npz", allow_pickle=False) as arrays:
        assert arrays["drift_nm"].shape == (5, 2)
        np.testing.assert_array_equal(arrays["drift_nm"][3:], instrument.truth()["drift_nm"])
        assert np.isnan(arrays["row_offset_px"][:3]).all()
        assert arrays["site_names"][0] == "carbon"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[simulate.stem]\nrowz = 3\n", "rowz"),
        ("[simulate.stem]\nrows = 3\n", "stem.rows is 3; it takes 8 to 4096"),
        ("[simulate.stem.specimen]\ntilt_deg = 90.0\n", "specimen.tilt_deg is 90.0; it takes -30 to 30"),
        (
            "[simulate.tem]\nrows = 3\n",
            "unknown table [simulate.tem]; it takes [streamer], [agent], [simulate.stem]",
        ),
        ("[simulate]\nstem = 3\n", "simulate.stem is not a table"),
        ("[simulate.stem\n", "not a readable TOML file"),
    ],
)
def test_a_wrong_configuration_ends_it_in_one_line_before_it_connects(tmp_path, text, says):
    config = tmp_path / "wrong.toml"
    config.write_text(text)
    result = CliRunner().invoke(
        app, ["stem", "--connect", "tcp://127.0.0.1:1", "--config", str(config)], catch_exceptions=False
    )

    assert result.exit_code == 2
    assert says in result.stderr
    assert str(config) in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_configuration_and_a_wrong_speed_are_named():
    runner = CliRunner()
    connect = ["--connect", "tcp://127.0.0.1:1"]
    missing = runner.invoke(app, ["stem", *connect, "--config", "/nowhere.toml"])
    fast = runner.invoke(app, ["stem", *connect, "--speed", "fast"])

    assert (missing.exit_code, missing.stderr) == (2, "/nowhere.toml: there is no such file\n")
    assert (fast.exit_code, fast.stderr) == (2, "--speed is fast; it takes 1, a number above 0, or max\n")


def test_a_simulator_starts_without_torch():
    code = "import sys, simulators.__main__, simulators.stem; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], cwd=Path.cwd(), text=True).split()

    assert "simulators.stem" in modules
    assert "torch" not in modules
