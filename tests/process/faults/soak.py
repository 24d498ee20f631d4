"""``make soak``: frames at half the rate that can be had, a ``kill -9`` of the streamer every minute.

It lasts ``PROBELOOP_SOAK_S`` seconds, 1200 without it, says on standard error every 10 s where it is, and
ends with one line of JSON; the exit code is 1 if a frame was lost, or memory or descriptors grew.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from streamer.link import Link
from streamer.messages import Frame
from tests.process.faults.counting import SESSION, make_frame
from tests.process.faults.lives import Life, Nursery
from tests.process.faults.sessions import Feeder, Verdict, judge

KILL_EVERY_S = 60.0
SAMPLE_EVERY_S = 2.0
SAY_EVERY_S = 10.0
MOST_PER_S = 400.0  # 20 minutes are then 10 GB of journal, and two minutes to judge it
SETTLE_S = 20.0  # caches fill, and allocators take what they need
MOST_MB_PER_MIN = 1.0


def make_16_kb(number: int) -> Frame:
    """Make a frame of 64 x 64."""
    return make_frame(number, shape=(64, 64))


@dataclass
class Samples:
    """Memory and descriptors of one process through its life."""

    at_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def take(self, process: psutil.Process) -> None:
        """Take one more."""
        self.at_s.append(time.monotonic())
        self.rss_mb.append(process.memory_info().rss / 1e6)
        self.descriptors.append(process.num_fds())

    def settled(self) -> np.ndarray[Any, Any]:
        """Say which samples count."""
        at_s = np.array(self.at_s)
        return at_s >= self.at_s[0] + SETTLE_S if self.at_s else at_s > 0

    def slope_mb_per_min(self) -> float:
        """Fit a line; 0 for a life that was too short to tell."""
        chosen = self.settled()
        if chosen.sum() < 8:
            return 0.0
        return float(60 * np.polyfit(np.array(self.at_s)[chosen], np.array(self.rss_mb)[chosen], 1)[0])

    def descriptor_growth(self) -> int:
        """Say how many more there are at the end than when it had settled."""
        kept = np.array(self.descriptors)[self.settled()]
        return int(kept[-1] - kept[0]) if len(kept) else 0


class Teller:
    """Says from time to time where a long work is.

    Parameters
    ----------
    say
        Told the words.
    now_s
        When it began, on any clock.
    """

    def __init__(self, say: Callable[[str], None], now_s: float) -> None:
        self._say = say
        self._next_s = now_s + SAY_EVERY_S

    def look(self, now_s: float, words: Callable[[], str]) -> None:
        """Say the words if it is time."""
        if now_s >= self._next_s:
            self._next_s = now_s + SAY_EVERY_S
            self._say(words())


def _to_operator(words: str) -> None:
    print(f"soak: {words}", file=sys.stderr, flush=True)


class Soak:
    """One soak, from its first streamer to its last."""

    def __init__(self, folder: Path, duration_s: float) -> None:
        self._folder = folder
        self._duration_s = duration_s
        self._nursery = Nursery()
        self._settings: dict[str, Any] = {"hub": {"window": 16, "max_waiting": 16}}
        self._lives: list[Samples] = []
        self._own = Samples()
        self._teller = Teller(_to_operator, time.monotonic())
        self._began_s = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Do it; return the figures."""
        life = self._start()
        self._settings["hub"]["bind"] = life.address()
        feeder = Feeder(Link(life.address(), role="instrument", name="soak"), make_16_kb)
        ceiling = self._ceiling(feeder)
        rate_per_s = min(ceiling / 2, MOST_PER_S)
        plan = f"{rate_per_s:.0f} a second are sent for {self._duration_s:g} s"
        _to_operator(f"{ceiling:.0f} frames a second can be had, {plan}")
        self._began_s = time.monotonic()
        end_s = time.monotonic() + self._duration_s
        kills = 0
        while time.monotonic() < end_s:
            self._feed(feeder, life, min(end_s, time.monotonic() + KILL_EVERY_S), rate_per_s)
            life.kill()
            kills += 1
            life = self._start()
        feeder.feed_until_acked()
        feeder.finish_acks()
        life.kill()
        feeder.link.abandon()
        self._nursery.close()
        verdict = self._judge(feeder)
        slopes = [samples.slope_mb_per_min() for samples in self._lives]
        return {
            "soak_s": self._duration_s,
            "kills": kills,
            "frames": feeder.sent,
            "ceiling_per_s": round(ceiling),
            "acked_lost": verdict.acked_lost,
            "sent_lost": verdict.sent_lost,
            "duplicates": verdict.duplicates,
            "latents_differ": verdict.differing,
            "client_mb_per_min": round(self._own.slope_mb_per_min(), 2),
            "streamer_mb_per_min": round(float(np.median(slopes[:-1] or slopes)), 2),
            "client_descriptors_more": self._own.descriptor_growth(),
            "streamer_descriptors_more": max(samples.descriptor_growth() for samples in self._lives),
        }

    def _judge(self, feeder: Feeder) -> Verdict:
        """Read what it left, and say how far that is."""
        size_gb = sum(path.stat().st_size for path in self._folder.glob("*.plj")) / 1e9
        _to_operator(f"over; {size_gb:.1f} GB of journal are held against {feeder.sent} frames")

        def watch(judged: int) -> None:
            self._teller.look(time.monotonic(), lambda: f"{judged} of {feeder.sent} frames judged")

        return judge(self._folder, feeder, make_16_kb, watch)

    def _standing(self, feeder: Feeder) -> str:
        """Say where the soak is."""
        gone_s = time.monotonic() - self._began_s
        memory_mb = self._lives[-1].rss_mb[-1]
        return (
            f"{gone_s:.0f} of {self._duration_s:.0f} s, {feeder.sent} frames sent, {feeder.acked} acked, "
            f"{len(self._lives) - 1} kills, streamer {memory_mb:.0f} MB"
        )

    def _start(self) -> Life:
        self._lives.append(Samples())
        return self._nursery.start("streamer", self._folder, **self._settings)

    def _ceiling(self, feeder: Feeder) -> float:
        """Measure how many frames a second can be had."""
        feeder.feed_until_acked()
        began_s, sent = time.monotonic(), feeder.sent
        feeder.feed(lambda: time.monotonic() - began_s >= 5.0)
        return (feeder.sent - sent) / 5.0

    def _feed(self, feeder: Feeder, life: Life, until_s: float, rate_per_s: float) -> None:
        """Feed at a rate; what a restart held up is not made up for."""
        process, own = psutil.Process(life.pid), psutil.Process()
        due_s = sample_s = time.monotonic()
        while (now_s := time.monotonic()) < until_s:
            if now_s >= sample_s:
                sample_s = now_s + SAMPLE_EVERY_S
                self._lives[-1].take(process)
                self._own.take(own)
                self._teller.look(now_s, lambda: self._standing(feeder))
            if now_s >= due_s:
                due_s = max(due_s + 1 / rate_per_s, now_s - 0.05)
                feeder.turn()
            else:
                feeder.hear(min(0.005, due_s - now_s))


def main() -> int:
    """Soak, print, judge."""
    duration_s = float(os.environ.get("PROBELOOP_SOAK_S", "1200"))
    with tempfile.TemporaryDirectory(prefix="probeloop-soak-") as name:
        figures = Soak(Path(name) / SESSION, duration_s).run()
    print(json.dumps(figures))
    lost = ("acked_lost", "sent_lost", "duplicates", "latents_differ")
    grown = ("client_descriptors_more", "streamer_descriptors_more")
    is_good = not any(figures[name] for name in lost) and all(figures[name] <= 0 for name in grown)
    slopes = (figures["client_mb_per_min"], figures["streamer_mb_per_min"])
    return 0 if is_good and max(slopes) <= MOST_MB_PER_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
