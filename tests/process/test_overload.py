"""Somebody is ten times too slow: the sender waits, nothing is lost, and what is dropped is counted."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from streamer.link import Link
from streamer.messages import Frame, Latents
from tests.process.faults.counting import make_frame
from tests.process.faults.lives import Nursery
from tests.process.faults.running import await_true, run
from tests.process.faults.sessions import Feeder, judge

__all__ = ["run"]  # a fixture
BUSY_S = 0.02


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def make_1_mb(number: int) -> Frame:
    return make_frame(number, shape=(512, 512))


def test_slow_streamer_blocks_its_instrument_and_loses_nothing(nursery, tmp_path):
    window, waiting = 8, 4
    folder = tmp_path / "session"
    hub = {"window": window, "max_waiting": waiting, "last_words_s": 0.1}
    life = nursery.start("streamer", folder, hub=hub, counting={"busy_s": BUSY_S})
    feeder = Feeder(Link(life.address(), role="instrument", name="feeder"), make_1_mb)
    first_s = time.monotonic()
    feeder.feed(lambda: feeder.acked >= window)
    before_mb, mine_mb = life.rss_mb(), psutil.Process().memory_info().rss / 1e6
    began_s, acked = time.monotonic(), feeder.acked
    unacked, early = 0, []
    while feeder.acked < acked + 60:
        feeder.turn()
        unacked = max(unacked, feeder.link.unacked)
        done = (time.monotonic() - first_s) / BUSY_S  # at the most, however slow the rest is
        early.append(feeder.acked - done - waiting)
    took_s = time.monotonic() - began_s
    frame_mb = make_1_mb(0).image.nbytes / 1e6
    assert life.rss_mb() - before_mb <= (window + waiting) * frame_mb + 5
    assert psutil.Process().memory_info().rss / 1e6 - mine_mb <= window * frame_mb + 15
    assert unacked == window
    assert max(early) <= 2  # a place is free when a frame is done, not before: one is under way
    assert took_s >= 60 * BUSY_S * 0.9  # at the streamer's pace
    feeder.finish()
    assert life.wait() == 0, life.log()
    verdict = judge(folder, feeder, make_1_mb)
    assert verdict.is_clean, verdict


def test_slow_viewer_misses_exactly_what_it_is_told_that_it_missed(run):
    running = run(hub={"window": 16, "max_waiting": 64})
    viewer = running.viewer("latents")
    seen: list[int] = []

    def look(timeout_s: float = 0.05) -> bool:
        message = viewer.receive(timeout_s)
        if isinstance(message, Latents):
            seen.append(message.number)
        return message is not None

    feeder = Feeder(running.link("instrument"))
    feeder.feed(lambda: feeder.acked >= 3)
    await_true(lambda: look() and bool(seen), "the viewer sees nothing")
    feeder.feed(lambda: feeder.acked >= 1500)  # the viewer looks away
    feeder.finish_acks()
    await_true(lambda: running.tally("published") == feeder.sent, "latents are missing")
    await_true(lambda: not look(0.0), "the viewer does not catch up")
    feeder.link.send(make_frame(feeder.sent))  # one more, by which the gap is seen
    await_true(lambda: look() and seen[-1] == feeder.sent, "the viewer does not see the last frame")
    assert seen == sorted(set(seen))
    missing = len(set(range(seen[0], seen[-1] + 1)) - set(seen))
    assert viewer.missed["latents"] == missing > 0
