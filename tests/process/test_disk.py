"""The disk is full, fails, or takes things in pieces: acks stop before anything is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamer.journal import read_records
from streamer.messages import Ack, Control, Event, Frame, Latents, Outcome, Request, Status, Suggestion
from streamer.segment import Damage
from tests.process.faults.counting import SESSION
from tests.process.faults.running import Running, await_message, await_true, run
from tests.process.faults.sessions import Feeder, make_100_kb

__all__ = ["run"]  # a fixture
SMALL = {"segment_mb": 1}
DISK_MB = 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 12 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def start(folder: Path, **options: Any) -> tuple[Running, Feeder]:
    running = Running(folder / "session", hub={"window": 8, "max_waiting": 16}, **options)
    return running, Feeder(running.link("instrument"), make_100_kb)


def fill(disk: Path, leave_mb: float) -> Path:
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - int(leave_mb * 1e6))
    return ballast


def frames_in(folder: Path) -> list[int]:
    """Read the frames, and see to it that nothing is damaged."""
    records = list(read_records(folder))
    assert not [one for one in records if isinstance(one, Damage)]
    messages = [one.message() for one in records if not isinstance(one, Damage)]
    return [one.number for one in messages if isinstance(one, Frame)]


def test_full_disk_stops_the_acks_parks_the_beam_and_goes_on_by_itself(small_disk):
    ballast = fill(small_disk, leave_mb=6)
    running, feeder = start(small_disk, journal=SMALL)
    viewer = running.viewer("event")
    try:
        feeder.feed(lambda: "disk full" in running.hub.holds)
        stopped_s = time.time()
        held = await_message(viewer, Event, lambda event: event.what == "held")
        assert held.detail.startswith("disk full")
        assert held.at_s - stopped_s <= 1.0
        assert await_message(viewer, Status, lambda status: status.held).state == "held"
        await_true(lambda: feeder.hear(0.01) or bool(feeder.commands), "no command came")
        assert [command.action for command in feeder.commands] == ["park"]
        feeder.hear(0.3)  # what was acked before is still on its way
        acked = feeder.acked
        for _ in range(50):
            feeder.turn()
        assert feeder.acked == acked
        assert feeder.link.unacked == 8  # the window is full: the sender waits
        assert set(range(acked)) <= set(frames_in(running.folder))
        ballast.unlink()
        feeder.feed(lambda: feeder.acked >= acked + 20)
        await_true(lambda: feeder.hear(0.01) or feeder.commands[-1].action == "go", "it does not go on")
        feeder.finish_acks()
        sent = feeder.sent
        await_true(lambda: running.tally("published") == sent, "latents are missing")
        assert running.tally("held: disk full") == 1
    finally:
        running.close()
    assert frames_in(running.folder) == list(range(sent))
    whats = [event.what for event in running.kept(Event)]
    assert whats.count("released") == 1


def test_abort_gets_through_on_a_full_disk(small_disk):
    ballast = fill(small_disk, leave_mb=6)
    running, feeder = start(small_disk, journal=SMALL)
    try:
        feeder.feed(lambda: "disk full" in running.hub.holds)
        operator = running.link("operator")
        operator.send(Control(action="abort", reason="a test"))
        await_true(
            lambda: (
                feeder.hear(0.01) or [one.action for one in feeder.commands] == ["park"] * 2 + ["cancel"] * 2
            ),
            "no command came",
        )
        assert "aborted by the operator" in running.hub.holds
        ballast.unlink()
        await_true(lambda: "disk full" not in running.hub.holds, "the disk is still held to be full")
        assert "aborted by the operator" in running.hub.holds
    finally:
        running.close()


def test_configured_to_do_without_it_goes_on_and_every_ack_says_so(small_disk):
    fill(small_disk, leave_mb=6)
    running, feeder = start(small_disk, journal=SMALL | {"on_full": "unrecorded"})
    agent = running.link("agent")
    viewer = running.viewer("event")
    acks: list[str] = []
    newest = -1
    try:
        deadline_s = time.monotonic() + 20
        while acks.count("unrecorded") < 10:
            assert time.monotonic() < deadline_s, acks
            if feeder.link.credit > 0:
                feeder.link.send(make_100_kb(feeder.sent))
                feeder.sent += 1
            newest = getattr(agent.receive(0.0), "number", newest)
            message = feeder.link.receive(0.01)
            acks += [message.status] if hasattr(message, "sequence") else []
        await_message(viewer, Event, lambda event: event.what == "unrecorded")
        await_message(agent, Latents, lambda latents: latents.number == feeder.sent - 1)
        assert newest >= 0
        assert not running.hub.holds
        assert acks == sorted(acks, reverse=True)  # written, then unrecorded, and never back
    finally:
        running.close()
    kept = frames_in(running.folder)
    assert kept == list(range(len(kept)))


def test_disk_that_fails_ends_the_streamer_with_the_beam_parked_and_nothing_acked_lost(tmp_path, monkeypatch):
    running, feeder = start(tmp_path)
    feeder.feed(lambda: feeder.acked >= 20)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", fail)
    feeder.feed(lambda: bool(feeder.commands))
    (command,) = feeder.commands
    assert (command.action, command.reason) == ("park", "streamer fails: OSError")
    running.wait()
    monkeypatch.setattr(os, "pwritev", write)
    running.close()
    assert isinstance(running.fault, OSError)
    assert frames_in(running.folder) == list(range(len(frames_in(running.folder))))
    assert set(range(feeder.acked)) <= set(frames_in(running.folder))


class Picky:
    """A journal that takes no messages of some kinds, as a disk would that fails just then."""

    def __init__(self, running: Running) -> None:
        self.refused: set[str] = set()
        self.failed: list[str] = []
        self._append = running.journal.append
        running.journal.append = self.append  # type: ignore[method-assign]

    def append(self, parts: Any, received_at_s: float, *, kind: str, monotonic_s: float) -> int:
        if kind in self.refused:
            self.failed.append(kind)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._append(parts, received_at_s, kind=kind, monotonic_s=monotonic_s)


class Confirmed:
    """A session in which two suggestions wait for a person."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.agent, self.instrument = running.link("agent"), running.link("instrument")
        self.operator = running.link("operator")
        self._sent = 0
        self.instrument.send(make_100_kb(0))
        await_message(self.agent, Latents)
        assert self.say(action="mode", mode="confirm").status == "written"
        for identifier, x in (("a", -0.5), ("b", 0.5)):
            self.agent.send(
                Suggestion(
                    session=SESSION,
                    number=0,
                    acquired_at_s=1000.0,
                    id=identifier,
                    position_nm=(x, 0.0),
                    dwell_time_us=10.0,
                    policy="test",
                )
            )
        await_true(lambda: self.waiting == ["a", "b"], "nothing waits")
        self.journal = Picky(running)

    @property
    def waiting(self) -> list[str]:
        return list(self.running.hub.status().waiting)

    def say(self, **fields: Any) -> Ack:
        """Decide something, and wait for the ack."""
        self.operator.send(Control(**fields))
        self._sent += 1
        ack: Ack = await_message(self.operator, Ack, lambda one: one.sequence == self._sent)
        return ack

    def outcome(self, identifier: str) -> Outcome:
        """Wait for what the agent is told of a suggestion."""
        told: Outcome = await_message(self.agent, Outcome, lambda one: one.id == identifier)
        return told


def test_a_change_of_mode_is_acked_when_the_disk_fails_just_then_and_what_waited_is_given_back_later(run):
    session = Confirmed(run())
    session.journal.refused = {"outcome"}
    assert session.say(action="mode", mode="auto").status == "written"
    assert session.journal.failed
    assert session.waiting == ["a", "b"], "the agent was told, and the journal does not know"
    assert session.say(action="approve", id="a").reason.startswith("not waiting")
    session.journal.refused = set()
    assert [session.outcome(identifier).status for identifier in "ab"] == ["withdrawn", "withdrawn"]
    assert session.waiting == []


def test_a_change_of_mode_that_the_disk_does_not_take_holds_and_its_ack_says_so(run):
    session = Confirmed(run())
    session.journal.refused = {"control", "outcome", "event"}
    assert session.say(action="mode", mode="advise").status == "unrecorded"
    assert session.running.hub.status().mode == "advise"
    session.journal.refused = set()
    assert session.outcome("b").status == "withdrawn"


@pytest.mark.parametrize("kind", ["control", "request"])
def test_an_approval_that_the_disk_does_not_take_measures_nothing_and_can_be_repeated(run, kind):
    session = Confirmed(run())
    session.journal.refused = {kind}
    assert session.say(action="approve", id="a").reason == "disk: No space left on device; it was not done"
    assert session.waiting == ["a", "b"]
    assert session.running.tally("suggestions granted") == 0
    session.journal.refused = set()
    assert session.say(action="approve", id="a").status == "written"
    assert await_message(session.instrument, Request).id == "a"


@pytest.mark.parametrize("action", ["decline", "veto"])
def test_what_is_declined_or_vetoed_when_the_disk_fails_is_not_measured_and_the_agent_hears_of_it_later(
    run, action
):
    session = Confirmed(run())
    session.journal.refused = {"outcome"}
    assert session.say(action=action, id="a").status == "written"
    assert session.say(action="approve", id="a").status == "refused"
    session.journal.refused = set()
    assert session.outcome("a").status == "refused"
    assert session.waiting == ["b"]


def test_an_agent_is_not_steered_by_what_the_disk_does_not_take(run):
    session = Confirmed(run())
    session.journal.refused = {"control"}
    revision = session.running.hub.status().revision
    steered = session.say(action="steer", settings={"goal": "minimise"})
    assert steered.reason == "disk: No space left on device; it was not done"
    assert session.running.hub.status().revision == revision
    session.journal.refused = set()
    assert session.say(action="steer", settings={"goal": "minimise"}).status == "written"
    assert await_message(session.agent, Control).settings == {"goal": "minimise"}


def test_disk_that_takes_things_in_pieces_takes_them_all(run, monkeypatch):
    write = os.pwritev
    pieces = []

    def write_some(fd: int, buffers: list[memoryview], offset: int) -> int:
        total = sum(len(buffer) for buffer in buffers)
        pieces.append(total)
        return write(fd, [memoryview(b"".join(buffers))[: max(1, total // 3)]], offset)

    monkeypatch.setattr(os, "pwritev", write_some)
    running = run(hub={"window": 8, "max_waiting": 16})
    feeder = Feeder(running.link("instrument"))
    feeder.feed(lambda: feeder.acked >= 30)
    feeder.finish_acks()
    running.close()
    assert len(pieces) > 10 * feeder.sent
    assert frames_in(running.folder) == list(range(feeder.sent))
