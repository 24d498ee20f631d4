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

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from simulators.__main__ import app, write_truth
from simulators.afm import AfmConfig, AfmInstrument
from simulators.diffraction import DiffractionConfig, DiffractionInstrument
from simulators.instrument import Served, serve
from simulators.kinetics import KineticsConfig
from simulators.scan_distortion import ScanDistortionConfig
from simulators.stem import StemConfig, StemInstrument
from streamer.codec import decode_numbered
from streamer.link import Link
from streamer.messages import (
    Ack,
    AnyMessage,
    Bye,
    Command,
    Frame,
    Hello,
    Message,
    Outcome,
    Patches,
    Request,
    Welcome,
)
from streamer.wire import Router

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
        self.silent_s = 0.0
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


def ack(message: Message, status: Any = "written", sequence: int = 0) -> Ack:
    return Ack(session="s", number=getattr(message, "number", -1), status=status, sequence=sequence)


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
    return [ack(message)] if isinstance(message, Frame | Patches) else []


def play(link: FakeLink, **options: Any) -> Served:
    settings: dict[str, Any] = {"speed": math.inf, "clock": Clock(), "linger_s": 0.05} | options
    return serve(StemInstrument(TINY, started_at_s=0.0), link, **settings)  # type: ignore[arg-type]


class Bench:
    """A link and a clock that share one time: only waiting passes it, and nobody sleeps.

    The socket waits in whole milliseconds and comes back up to 0.9 ms late. The streamer is heard
    whenever it says something, and for as long as ``hears_until_s``.
    """

    def __init__(self, *script: tuple[float, Message], hears_until_s: float = math.inf) -> None:
        self.now_s = 0.0
        self.sent_at_s: list[float] = []
        self.said: list[tuple[float, str]] = []
        self.link = FakeLink(on_send=self._note)
        self.link.receive = self._receive  # type: ignore[method-assign]
        self._script = deque(sorted(script, key=lambda line: line[0]))
        self._hears_until_s = hears_until_s
        self._heard_s = 0.0
        self._late = np.random.default_rng(7)

    def _note(self, message: Message) -> list[Message]:
        self.sent_at_s.append(self.now_s)
        return ack_all(message)

    def _receive(self, timeout_s: float) -> Message | None:
        message = FakeLink.receive(self.link, 0.0)
        if message is None:
            message = self._from_script(timeout_s)
        self.link.silent_s = self.now_s - max(self._heard_s, min(self.now_s, self._hears_until_s))
        return message

    def _from_script(self, timeout_s: float) -> Message | None:
        until_s = self.now_s + math.ceil(timeout_s * 1000) / 1000
        if self._script and self._script[0][0] <= until_s:
            at_s, message = self._script.popleft()
            self.now_s = self._heard_s = max(self.now_s, at_s)
            return message
        if timeout_s > 0:
            self.now_s = until_s + self._late.uniform(0, 0.9e-3)
        return None

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def play(self, instrument: Any = None, **options: Any) -> Served:
        settings: dict[str, Any] = {"speed": 1.0, "linger_s": 0.05} | options
        return serve(
            instrument or StemInstrument(TINY, started_at_s=0.0),
            self.link,  # type: ignore[arg-type]
            clock=lambda: self.now_s,
            sleep=self._sleep,
            say=lambda text: self.said.append((self.now_s, text)),
            **settings,
        )

    def frames(self) -> dict[int, float]:
        """Give the numbers of the frames that were sent, and when they were."""
        pairs = zip(self.link.sent, self.sent_at_s, strict=True)
        return {message.number: at_s for message, at_s in pairs if isinstance(message, Frame)}


class Beam(StemInstrument):
    """A simulated STEM that notes when its beam was parked."""

    def __init__(self) -> None:
        super().__init__(TINY, started_at_s=0.0)
        self.did: list[str] = []

    def park(self) -> None:
        self.did.append("park")
        super().park()

    def go(self, parked_s: float) -> None:
        self.did.append(f"go after {parked_s:.1f} s")
        super().go(parked_s)


PARK, GO = Command(session="s", action="park", reason="paused"), Command(session="s", action="go")


def cancel(identifier: str = "") -> Command:
    return Command(session="s", action="cancel", id=identifier, reason="veto")


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


# -- parking -------------------------------------------------------------------------------------------


def test_park_comes_through_at_once_and_breaks_off_the_frame_under_way():
    bench, beam = Bench((2.5 * FRAME_S, PARK), (10.0, GO)), Beam()
    served = bench.play(beam, max_frames=5)

    # Frames are due at 0, 1 and 2 times their length; the one due at 3 was broken off and is never sent.
    assert list(bench.frames()) == [0, 1, 2, 4, 5]
    assert beam.did == ["go after 0.0 s", "park", f"go after {10 - 3 * FRAME_S:.1f} s", "park"]
    assert bench.said == [(2.5 * FRAME_S, "beam parked: paused"), (10.0, "beam at work again")]
    assert (served.frames, served.broken_off, served.parked) == (5, 1, 1)


def test_a_parked_beam_costs_a_frame_time_when_it_goes_on_and_the_specimen_has_drifted():
    bench, parked = Bench((0.1, PARK), (10.0, GO)), StemInstrument(TINY, started_at_s=0.0)
    bench.play(parked, max_frames=3)
    acquired_at_s = [frame.acquired_at_s for frame in bench.link.frames()]
    sent_at_s = list(bench.frames().values())

    np.testing.assert_allclose(sent_at_s, [0.0, 10 + FRAME_S, 10 + 2 * FRAME_S], atol=1e-9)
    # The frame under way when the beam was parked ends in the instrument's own time, before it is parked.
    np.testing.assert_allclose(np.subtract(acquired_at_s, sent_at_s), FRAME_S, atol=1e-9)
    assert parked.clock_s == pytest.approx(10 + 3 * FRAME_S)


def test_a_spectrum_under_way_is_aborted_with_the_share_of_its_dose():
    bench = Bench((0.0, ask("long", dwell_time_us=4e6)), (1.0, PARK), (5.0, GO))
    bench.play(max_frames=1)
    (outcome,) = bench.link.outcomes()

    assert (outcome.status, outcome.reason, outcome.spectrum) == ("aborted", "the beam was parked", None)
    assert outcome.dose_e == pytest.approx(TINY.electrons(1e6), rel=0.01)
    assert outcome.ended_at_s - outcome.started_at_s == pytest.approx(1.0, rel=0.01)


def test_what_is_asked_of_a_parked_beam_waits_for_it():
    bench = Bench((0.05, PARK), (0.1, ask("a")), (0.1, ask("b")), (3.0, cancel("a")), (4.0, GO))
    bench.play(max_frames=2)
    when = {
        message.id: (at_s, message.status)
        for message, at_s in zip(bench.link.sent, bench.sent_at_s, strict=True)
        if isinstance(message, Outcome)
    }

    assert when["a"] == (3.0, "aborted")
    assert when["b"] == (pytest.approx(4.001), "ok")


@pytest.mark.parametrize("identifier", ["long", ""])
def test_cancel_breaks_off_the_request_under_way_and_the_next_one_is_done(identifier):
    bench = Bench((0.0, ask("long", dwell_time_us=4e6)), (1.0, cancel(identifier)), (1.0, ask("next")))
    bench.play(max_frames=1)

    assert [(o.id, o.status, o.reason) for o in bench.link.outcomes()] == [
        ("long", "aborted", "cancelled"),
        ("next", "ok", ""),
    ]


def test_cancel_of_another_request_breaks_nothing_off():
    bench = Bench((0.0, ask("long", dwell_time_us=1e6)), (0.5, cancel("other")))
    bench.play(max_frames=1)

    assert [(o.id, o.status) for o in bench.link.outcomes()] == [("long", "ok")]


def test_a_sub_scan_that_is_broken_off_is_neither_sent_nor_ok():
    part = ask("z", action="scan", field_of_view_nm=(0.5, 0.5), shape=(32, 32), dwell_time_us=4000.0)
    bench = Bench((0.0, part), (1.0, cancel()))
    served = bench.play(max_frames=2)

    assert [(o.status, o.frame_number) for o in bench.link.outcomes()] == [("aborted", None)]
    assert list(bench.frames()) == [1, 2]
    assert (served.sub_scans, served.broken_off) == (0, 1)


CAMERA = DiffractionConfig(
    rows=8, cols=8, field_of_view_nm=1.0, camera_px=32, camera_mrad=60.0, annular_mrad=(40.0, 60.0)
)


def patterns_of(link: FakeLink, identifier: str) -> int:
    """Count the patterns that came for a request."""
    windows = [m.windows for m in link.sent if isinstance(m, Patches) and m.request_id == identifier]
    return sum(map(len, windows))


@pytest.mark.parametrize("asked_at_s", [0.01, 0.13], ids=["first frame", "after the last frame"])
def test_the_patterns_of_a_sub_scan_all_come_whenever_it_was_asked_for(asked_at_s):
    part = ask("z", action="scan", field_of_view_nm=(0.5, 0.5), shape=(10, 16))
    bench = Bench((asked_at_s, part))
    served = bench.play(DiffractionInstrument(CAMERA, started_at_s=0.0), max_frames=2, linger_s=0.5)

    assert [o.status for o in bench.link.outcomes()] == ["ok"]
    assert patterns_of(bench.link, "z") == 160
    assert (served.frames, served.sub_scans, served.broken_off) == (2, 1, 0)


def test_the_patterns_of_a_sub_scan_that_is_broken_off_are_not_sent():
    part = ask("z", action="scan", field_of_view_nm=(0.5, 0.5), shape=(10, 16), dwell_time_us=4000.0)
    other = ask("y", action="scan", field_of_view_nm=(0.5, 0.5), shape=(10, 16), dwell_time_us=10.0)
    bench = Bench((0.01, part), (0.02, other), (0.4, cancel("z")))
    served = bench.play(DiffractionInstrument(CAMERA, started_at_s=0.0), max_frames=3)

    assert [(o.id, o.status) for o in bench.link.outcomes()] == [("z", "aborted"), ("y", "ok")]
    assert patterns_of(bench.link, "z") == 0
    assert patterns_of(bench.link, "y") == 160
    assert served.broken_off == 4  # its frame and its three batches


def test_a_request_that_comes_twice_is_executed_once():
    bench = Bench((0.0, ask("x")), (0.0, ask("x")), (0.7, ask("x")))
    served = bench.play(max_frames=5)

    assert [o.id for o in bench.link.outcomes()] == ["x"]
    assert served.outcomes == 1


def test_a_silent_streamer_parks_the_beam_after_two_seconds_and_its_return_frees_it():
    bench, beam = Bench((9.0, ask("x")), hears_until_s=1.0), Beam()
    stop = lambda: bench.now_s > 9.5  # noqa: E731
    bench.play(beam, stop=stop)

    (parked_s, why), (free_s, _) = bench.said[:2]
    assert 3.0 <= parked_s <= 3.0 + 0.06
    assert why == "beam parked: the streamer is silent for 2 s"
    assert free_s >= 9.0
    assert not [at_s for at_s in bench.frames().values() if parked_s < at_s < free_s]
    assert [o.status for o in bench.link.outcomes()] == ["ok"]


def test_a_beam_that_was_parked_by_command_stays_so_when_the_streamer_comes_back():
    bench, beam = Bench((0.5, PARK), (9.0, cancel()), hears_until_s=1.0), Beam()
    bench.play(beam, stop=lambda: bench.now_s > 10.0)

    assert beam.did == ["go after 0.0 s", "park", "park"]
    assert max(bench.frames().values()) < 0.5


def test_a_streamer_that_never_comes_back_is_given_up_with_the_cure_and_the_beam_parked():
    bench, beam = Bench(hears_until_s=0.0), Beam()

    with pytest.raises(ConnectionError, match="nothing for 5 s, and the beam is parked; see whether it"):
        bench.play(beam, give_up_s=5.0)
    assert bench.link.closed == "ConnectionError"
    assert beam.did[-1] == "park"


def test_the_session_can_end_while_the_beam_is_parked():
    bench = Bench((0.1, PARK), (0.2, ask("x")), (1.0, Bye(reason="operator abort")))
    served = bench.play()

    assert [(o.status, o.reason) for o in bench.link.outcomes()] == [
        ("aborted", "the session ended while the beam was parked")
    ]
    assert served.ended == bench.link.closed == "operator abort"


def test_the_beam_is_parked_when_the_session_has_ended():
    beam = Beam()
    Bench().play(beam, max_frames=1)

    assert beam.did == ["go after 0.0 s", "park"]
    with pytest.raises(RuntimeError, match="the beam is parked"):
        beam.acquire()


def test_frames_leave_when_they_are_due_though_sockets_wait_in_whole_milliseconds():
    bench = Bench(*[(0.1234567 * n, ask(f"r{n}", dwell_time_us=1.0)) for n in range(20)])
    bench.play(max_frames=40)
    taken = [frame.acquired_at_s for frame in bench.link.frames()]
    sent = list(bench.frames().values())
    late_ms = 1000 * (np.subtract(sent, sent[0]) - np.subtract(taken, taken[0]))

    assert len(sent) == 40
    assert np.abs(late_ms).max() < 0.01


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_that_goes_nowhere_is_refused(speed):
    with pytest.raises(ValueError, match="it takes a number above 0"):
        play(FakeLink(on_send=ack_all), speed=speed)


class Streamer(threading.Thread):
    """A real socket that welcomes one instrument, acks what it sends, asks once and says Bye."""

    def __init__(self, *, say_bye_after: int | None, park_after: int | None = None) -> None:
        super().__init__(daemon=True)
        self._park_after = park_after
        self.router = Router("tcp://127.0.0.1:0")
        self.address = self.router.address
        self.received: list[AnyMessage] = []
        self.enough = threading.Event()
        self.stopped = threading.Event()
        self._say_bye_after = say_bye_after

    def run(self) -> None:
        through = 0
        while not self.stopped.is_set():
            for peer, _, parts in self.router.receive(0.05):
                numbered = decode_numbered(parts)
                message = numbered.message
                if isinstance(message, Hello):
                    welcome = Welcome(session="s", window=2, next_number=2, durability="written")
                    self.router.send(peer, welcome)
                if numbered.sequence != through + 1:  # a heartbeat, or something sent again
                    continue
                through += 1
                self.received.append(message)
                for answer in [ack(message, sequence=through), *self._answers(message)]:
                    self.router.send(peer, answer)
        self.router.close()

    def _answers(self, message: AnyMessage) -> list[Message]:
        if not isinstance(message, Frame):
            return []
        count = len(self.frames())
        if count == max(3, self._park_after or 0):
            self.enough.set()
        answers: list[Message] = [ask("one"), sub_scan("two")] if count == 1 else []
        answers += [Bye(reason="budget reached")] if count == self._say_bye_after else []
        answers += [PARK] if count == self._park_after else []
        return answers

    def frames(self) -> list[Frame]:
        return [message for message in self.received if isinstance(message, Frame)]

    def stop(self) -> None:
        self.stopped.set()
        self.join(20)
        assert not self.is_alive()


def test_over_a_real_socket_everything_arrives_in_order():
    streamer = Streamer(say_bye_after=6)
    streamer.start()
    link = Link(streamer.address, role="instrument", name="test")
    served = serve(StemInstrument(TINY), link, speed=math.inf)
    streamer.stop()

    assert served.ended == "budget reached"
    assert served.refused == 0
    numbers = [frame.number for frame in streamer.frames()]
    assert numbers == list(range(2, 2 + len(numbers)))
    assert len(numbers) >= 6
    outcomes = {message.id: message for message in streamer.received if isinstance(message, Outcome)}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"one": "ok", "two": "ok"}
    part = streamer.frames()[numbers.index(outcomes["two"].frame_number or -1)]
    assert part.request_id == "two"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_parked", [False, True], ids=["at work", "parked"])
def test_the_process_ends_cleanly_on_a_signal_and_writes_its_truth(tmp_path, number, is_parked):
    streamer = Streamer(say_bye_after=None, park_after=4 if is_parked else None)
    streamer.start()
    config = tmp_path / "config.toml"
    config.write_text("[simulate.stem]\nrows = 16\ncols = 16\nfield_of_view_nm = 1.0\n")
    truth = tmp_path / "truth.npz"
    command = [sys.executable, "-m", "simulators", "stem", "--connect", streamer.address]
    command += ["--config", str(config), "--truth", str(truth), "--speed", "max", "--seed", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert streamer.enough.wait(60)
        while is_parked and "beam parked: paused" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    streamer.stop()

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


def test_a_restarted_instrument_keeps_the_truth_that_it_wrote_before(tmp_path):
    path, first, second = tmp_path / "truth.npz", StemInstrument(TINY), StemInstrument(TINY)
    for instrument, frames in ((first, 2), (second, 1)):
        for _ in range(frames):
            instrument.acquire()
    write_truth(path, first.truth(), first_number=0)
    write_truth(path, second.truth(), first_number=3)

    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["drift_nm"][:2], first.truth()["drift_nm"])
        assert np.isnan(arrays["drift_nm"][2]).all()
        np.testing.assert_array_equal(arrays["drift_nm"][3:], second.truth()["drift_nm"])


def test_what_happened_in_a_frame_is_told_by_its_number_and_survives_a_restart(tmp_path):
    lively = KineticsConfig(is_on=True, rate_factor=3e5)
    path, config = tmp_path / "truth.npz", msgspec.structs.replace(TINY, kinetics=lively)
    first, second = StemInstrument(config), StemInstrument(config)
    for instrument, number in ((first, 0), (second, 2)):
        instrument.acquire()
        write_truth(path, instrument.truth(), first_number=number)

    happened = len(first.truth()["event_frame"])
    assert happened > 0
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays["event_frame"][:happened]) == {0}
        assert set(arrays["event_frame"][happened:]) == {2}
        for name in ("event_kind", "event_position_nm", "event_dose_e_per_a2"):
            one, other = first.truth()[name], second.truth()[name]
            np.testing.assert_array_equal(arrays[name], np.concatenate([one, other]))


def test_rods_are_told_by_the_number_of_the_frame_they_were_met_in(tmp_path):
    config = AfmConfig(rows=32, cols=32, field_of_view_nm=60.0, seed=1)
    config = msgspec.structs.replace(config, distortion=ScanDistortionConfig(both_ways=True))
    instrument = AfmInstrument(config)
    instrument.acquire()
    write_truth(tmp_path / "truth.npz", instrument.truth(), first_number=3)

    with np.load(tmp_path / "truth.npz", allow_pickle=False) as arrays:
        assert set(arrays["rod_frame"]) == {3}
        assert arrays["retrace_row_offset_px"].shape == (4, 2, 32)
        assert np.isnan(arrays["retrace_row_offset_px"][:3]).all()


def test_the_truth_of_another_specimen_is_not_mixed_in(tmp_path):
    path = tmp_path / "truth.npz"
    other = StemInstrument(StemConfig(rows=16, cols=16, field_of_view_nm=1.0, seed=2))
    for instrument in (other, StemInstrument(TINY)):
        instrument.acquire()
        write_truth(path, instrument.truth(), first_number=1)

    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["seed"] == 1
        assert np.isnan(arrays["drift_nm"][0]).all()


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
