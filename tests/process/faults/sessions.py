"""Sessions to which things happen, and what is left of them: shared by the tests and the benchmark."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamer.codec import encode
from streamer.journal import read_records
from streamer.link import Link
from streamer.messages import Ack, Command, Frame, Latents
from streamer.segment import Damage, Record
from tests.process.faults.counting import latents_without_faults, make_frame
from tests.process.faults.lives import Life, Nursery
from tests.process.faults.lockstep import STEPS, Bench, LockStep, PlainBench

WAIT_S = 20.0
# For a session in lock-step, which grants as many requests a second as it can.
STREAMER = {
    "hub": {"last_words_s": 0.05, "checkpoint_frames": 3},
    "envelope": {"max_rate_per_s": 1e6, "beam_current_pa": 0.0},
    "experiment": {"max_measurements": 0},
}


class Feeder:
    """An instrument that sends frames as fast as its window lets it, and remembers what was acked.

    Attributes
    ----------
    sent, acked
        Frames sent, and how many of them, from the first on, an ack spoke of.
    commands
        What it was told to do.
    """

    def __init__(self, link: Link, make: Callable[[int], Frame] = make_frame) -> None:
        self.link = link
        self.sent = 0
        self.acked = 0
        self.commands: list[Command] = []
        self._make = make

    def turn(self) -> None:
        """Send a frame if there is a place for it, and take what came."""
        if self.link.credit > 0:
            self.link.send(self._make(self.sent))
            self.sent += 1
        self.hear(0.0 if self.link.credit > 0 else 0.01)

    def hear(self, timeout_s: float) -> None:
        """Take all that came."""
        message = self.link.receive(timeout_s)
        while message is not None:
            if isinstance(message, Ack) and message.status != "refused":
                self.acked = max(self.acked, message.sequence)  # it sends nothing but frames
            elif isinstance(message, Command):
                self.commands.append(message)
            message = self.link.receive(0.0)
        self.acked = max(self.acked, self.link.welcome.received)

    def feed(self, until: Callable[[], bool]) -> None:
        """Go on until something is true; fails if it takes too long."""
        deadline_s = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline_s, f"{self.acked} acked of {self.sent}; it did not get further"
            self.turn()

    def feed_until_acked(self) -> None:
        """Go on until one more frame is acked."""
        acked = self.acked
        self.feed(lambda: self.acked > acked)

    def finish(self) -> None:
        """Wait for the outstanding acks and leave."""
        self.finish_acks()
        self.link.close(reason="end of the test")

    def finish_acks(self) -> None:
        """Wait for the outstanding acks."""
        deadline_s = time.monotonic() + WAIT_S
        while self.link.unacked:
            assert time.monotonic() < deadline_s, f"{self.link.unacked} frames were never acked"
            self.hear(0.05)


@dataclass
class Verdict:
    """What is left of a session, against what was sent and acked.

    Attributes
    ----------
    sent, acked
        Frames.
    acked_lost
        Frames that were acked and are not in the journal.
    sent_lost
        Frames that were sent and are not there at the end.
    duplicates
        Frames, senders' messages and latents that are in the journal more than once, and counts of the
        streamer that say more than was sent.
    differing
        Latents that are not what they would be without any fault.
    damages
        Places of the journal that are no record.
    """

    sent: int
    acked: int
    acked_lost: int = 0
    sent_lost: int = 0
    duplicates: int = 0
    differing: int = 0
    damages: int = 0
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Say whether nothing is missing, double, different or damaged."""
        return not any((self.acked_lost, self.sent_lost, self.duplicates, self.differing, self.damages))


def judge(
    folder: Path,
    feeder: Feeder,
    make: Callable[[int], Frame] = make_frame,
    watch: Callable[[int], None] = lambda _: None,
) -> Verdict:
    """Read what a session left and hold it against what its instrument sent.

    Parameters
    ----------
    folder
        Of the session, which has ended.
    feeder
        Its instrument.
    make
        Makes the frame of a number, as the feeder did.
    watch
        Told how many latents are judged.
    """
    frames: Counter[int] = Counter()
    places: Counter[tuple[str, int]] = Counter()
    numbers: Counter[int] = Counter()
    verdict = Verdict(feeder.sent, feeder.acked)
    expected = latents_without_faults(make(number) for number in range(feeder.sent))
    number = judged = 0
    for record in read_records(folder):
        if isinstance(record, Damage):
            verdict.damages += 1
            continue
        verdict.damages += record.number != number + 1
        number = record.number
        if record.kind == "latents":
            # As they lie there, without the way through a message: that would take most of the time.
            due = next(expected, None)
            is_due = due is not None and record.parts == [bytes(part) for part in encode(due)]
            verdict.differing += not is_due
            numbers[due.number if due is not None and is_due else _number_of(record)] += 1
            judged += 1
            watch(judged)
            continue
        numbered = record.numbered()
        if numbered.sender and numbered.sequence:
            places[numbered.sender, numbered.sequence] += 1
        if isinstance(numbered.message, Frame):
            frames[numbered.message.number] += 1
    verdict.acked_lost = len(set(range(feeder.acked)) - set(frames))
    verdict.sent_lost = len(set(range(feeder.sent)) - set(frames))
    verdict.duplicates = sum(n - 1 for counter in (frames, places, numbers) for n in counter.values())
    if (folder / "summary.json").exists():  # not of a session whose end was a kill
        _hold_counts_against(verdict, folder)
        verdict.differing += sum(1 for _ in expected)
    return verdict


def _hold_counts_against(verdict: Verdict, folder: Path) -> None:
    counts = json.loads((folder / "summary.json").read_text())["frames"]
    verdict.counts = counts
    for name in ("received", "published"):
        verdict.duplicates += max(0, counts[name] - verdict.sent)
        verdict.sent_lost += max(0, verdict.sent - counts[name])


def _number_of(record: Record) -> int:
    """Read which frame the latents of a record are of."""
    latents = record.message()
    assert isinstance(latents, Latents)
    return latents.number


# -- the streamer killed -------------------------------------------------------------------------


def kill_at_random(nursery: Nursery, folder: Path, *, trials: int, seed: int, window: int = 16) -> Verdict:
    """Kill the streamer again and again while frames come; start it again at its address.

    Three of four times the moment is drawn from the 150 ms after the first new ack, else from the 300 ms
    after the start: so it is also killed while it comes back.
    """
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {"hub": {"window": window, "max_waiting": window, "last_words_s": 0.1}}
    life = nursery.start("streamer", folder, **settings)
    settings["hub"]["bind"] = life.address()
    feeder = Feeder(Link(life.address(), role="instrument", name="feeder"))
    for _ in range(trials):
        _feed_until_killed(feeder, life, rng)
        life = nursery.start("streamer", folder, **settings)
    feeder.feed_until_acked()
    feeder.finish()
    assert life.wait() == 0, life.log()
    return judge(folder, feeder)


def _feed_until_killed(feeder: Feeder, life: Life, rng: np.random.Generator) -> None:
    if rng.random() < 0.75:
        feeder.feed_until_acked()
        moment_s = time.monotonic() + rng.uniform(0, 0.15)
    else:
        moment_s = time.monotonic() + rng.uniform(0, 0.3)
    feeder.feed(lambda: time.monotonic() >= moment_s)
    life.kill()


# -- killed while it writes ----------------------------------------------------------------------


def make_100_kb(number: int) -> Frame:
    """Make a frame of which ten fill a segment of the smallest size."""
    return make_frame(number, shape=(160, 160))


def _files(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def _appearance_in(folder: Path) -> Callable[[], bool]:
    """Make the question whether a file has appeared since now."""
    before = _files(folder)
    return lambda: bool(_files(folder) - before)


def kill_while_it_writes(nursery: Nursery, folder: Path, *, trials: int, seed: int) -> Verdict:
    """Kill the streamer while it begins a new segment, writes a state, or makes the files at the end.

    With segments of 1 MB, frames of 100 kB and a state of 600 kB behind every second one, half of what
    it writes are states. The moment is told by the folder: a new file there, and a fraction of a
    millisecond more.
    """
    rng = np.random.default_rng(seed)
    settings: dict[str, Any] = {
        "hub": {"window": 16, "max_waiting": 16, "checkpoint_frames": 2, "last_words_s": 0.05},
        "journal": {"segment_mb": 1},
        "counting": {"ballast_kb": 600},
    }
    life = nursery.start("streamer", folder, **settings)
    settings["hub"]["bind"] = life.address()
    feeder = Feeder(Link(life.address(), role="instrument", name="feeder"), make_100_kb)
    for _ in range(trials):
        feeder.feed_until_acked()
        feeder.feed(_appearance_in(folder))
        _spin(rng.uniform(0, 0.0005) if rng.random() < 0.7 else rng.uniform(0, 0.01))
        life.kill()
        life = nursery.start("streamer", folder, **settings)
    feeder.finish()
    kills = 0
    while kills < (trials + 1) // 2 and _kill_while_it_finishes(life, rng):
        kills += 1
        life = nursery.start("streamer", folder, **settings)
    code = life.wait()
    assert code == 0, life.log()
    return judge(folder, feeder, make_100_kb)


def _kill_while_it_finishes(life: Life, rng: np.random.Generator) -> bool:
    """Kill it when the first of its last files is there, and up to 30 ms later; False if it was quicker."""
    deadline_s = time.monotonic() + WAIT_S
    while not {"summary.json", "summary.part", "frames.hspy.part"} & _files(life.folder):
        assert time.monotonic() < deadline_s, life.log()
    _spin(rng.uniform(0, 0.03))
    return life.kill() != 0


def _spin(duration_s: float) -> None:
    """Pass less time than the system can sleep for."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        pass


# -- decisions compared --------------------------------------------------------------------------


@dataclass
class Company:
    """A streamer and an agent, which can be killed and come back where they were.

    Parameters
    ----------
    nursery
        Where they start.
    folder
        Of everything; the session is in ``session`` below it.
    streamer, agent
        Kinds of life and their options.
    """

    nursery: Nursery
    folder: Path
    streamer: dict[str, Any]
    agent: dict[str, Any]
    kind: str = "streamer"
    lives: dict[str, Life] = field(default_factory=dict)
    address: str = ""

    def __post_init__(self) -> None:
        self.start("streamer")
        self.address = self.lives["streamer"].address()
        self.streamer = self.streamer | {"hub": self.streamer.get("hub", {}) | {"bind": self.address}}
        self.start("agent")

    @property
    def session(self) -> Path:
        """Folder of the session."""
        return self.folder / "session"

    def start(self, who: str) -> None:
        """Start the streamer or the agent."""
        if who == "streamer":
            life = self.nursery.start(self.kind, self.session, **self.streamer)
        else:
            life = self.nursery.start("agent", self.folder, connect=self.address, **self.agent)
        self.lives[who] = life

    def kill_and_start(self, who: str) -> None:
        """Kill one of them, and start it again."""
        self.lives[who].kill()
        self.start(who)

    def end(self, link: Link) -> None:
        """Let the instrument leave, and wait for everybody."""
        link.close(reason="end of the test")
        for who in ("streamer", "agent"):
            code = self.lives[who].wait()
            assert code == 0, f"{who}: {code}\n{self.lives[who].log()}"


Kills = dict[tuple[int, str], str]


def draw_kills(seed: int, count: int, cycles: int, who: Sequence[str]) -> Kills:
    """Draw after which steps of which cycles who is killed; nobody in the last, which ends the session."""
    rng = np.random.default_rng(seed)
    steps = [(number, step) for number in range(cycles - 1) for step in STEPS]
    chosen = rng.choice(len(steps), count, replace=False)
    return {steps[place]: who[index % len(who)] for index, place in enumerate(sorted(chosen))}


def play_in_lockstep(company: Company, cycles: int, kills: Kills, bench: Bench | None = None) -> Path:
    """Play a session in lock-step, killing whom it says when it says; return its folder."""

    def happen(number: int, step: str) -> None:
        if (who := kills.get((number, step))) is not None:
            company.kill_and_start(who)

    link = Link(company.address, role="instrument", name="in lock-step")
    LockStep(link, company.folder / "idle", bench or PlainBench(), happen).play(cycles)
    company.end(link)
    return company.session
