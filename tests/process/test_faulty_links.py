"""The network between a peer and the streamer loses, doubles and delays messages, or is cut."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from streamer.codec import encode
from streamer.journal import read_records
from streamer.link import Link
from streamer.messages import Bye, Latents
from tests.process.faults.counting import latents_without_faults, make_frame
from tests.process.faults.lives import Nursery
from tests.process.faults.lockstep import LockStep, decided, differences
from tests.process.faults.proxies import CutProxy, MessageProxy
from tests.process.faults.sessions import STREAMER, Company, Feeder, judge, play_in_lockstep

BAD = {"lost": 0.01, "doubled": 0.05, "delayed": 0.05}
WAIT_S = 20.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


class Listener:
    """An agent that only listens; in a thread, so that it reads while the instrument sends."""

    def __init__(self, address: str) -> None:
        self.link = Link(address, role="agent", name="listener")
        self.latents: list[Latents] = []
        self.is_over = False
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self.is_over:
            message = self.link.receive(0.05)
            if isinstance(message, Latents):
                self.latents.append(message)
            self.is_over = self.is_over or isinstance(message, Bye)

    def end(self) -> None:
        self.is_over = True
        self._thread.join()
        self.link.abandon()


def await_true(question: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not question():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.002)


@pytest.mark.parametrize("seed", [1, 2])
def test_bad_network_changes_nothing_and_every_fault_is_counted(nursery, tmp_path, seed):
    frames = 600
    folder = tmp_path / "session"
    life = nursery.start("streamer", folder, hub={"window": 16, "max_waiting": 64, "last_words_s": 0.3})
    with MessageProxy(life.address(), seed=seed, **BAD) as proxy:
        listener = Listener(proxy.address)
        feeder = Feeder(Link(proxy.address, role="instrument", name="feeder"))
        feeder.feed(lambda: feeder.sent == frames)
        await_true(lambda: len(listener.latents) == frames or feeder.hear(0.01), "latents are missing")
        proxy.is_calm = True
        feeder.finish()
        assert life.wait() == 0, life.log()
        listener.end()
    verdict = judge(folder, feeder)
    assert verdict.is_clean, verdict
    expected = latents_without_faults(make_frame(number) for number in range(frames))
    assert [encode(one) for one in listener.latents] == [encode(one) for one in expected]
    counts = json.loads((folder / "summary.json").read_text())["counts"]
    at_fault = proxy.counts
    assert min(at_fault["up lost"], at_fault["up doubled"], at_fault["up delayed"]) > 0
    # Every message of the instrument, and every time that it was sent again, came to the proxy;
    assert at_fault["up came"] == frames + 1 + feeder.link.resent  # with the Bye
    # what the proxy let through was taken once, or counted;
    taken = sum(bool(record.numbered().sequence) for record in read_records(folder))
    counted = counts.get("delivery: duplicate", 0) + counts.get("delivery: too early", 0)
    late = counts.get("message refused: hello first", 0)  # a Bye again after the first was taken
    assert taken == frames + 1
    assert taken + counted + late == at_fault["up came"] - at_fault["up lost"] + at_fault["up doubled"]
    # and so the other way: both rows begin with the Welcome.
    came = [link.duplicates + link._inbox.overflowed for link in (listener.link, feeder.link)]
    assert frames + 2 + sum(came) == at_fault["down came"] - at_fault["down lost"] + at_fault["down doubled"]


def test_decisions_are_the_same_over_a_bad_network(nursery, tmp_path):
    agent = {"agent": {"policy": "random", "max_pending": 1, "seed": 3}, "checkpoint_every": 7}
    clean = decided(play_in_lockstep(Company(nursery, tmp_path / "clean", STREAMER, agent), 30, {}))
    company = Company(nursery, tmp_path / "bad", STREAMER, agent)
    company.lives["agent"].kill()
    with MessageProxy(company.address, seed=3, lost=0.03, doubled=0.1, delayed=0.1) as proxy:
        company.address = proxy.address
        (tmp_path / "bad" / "idle").unlink(missing_ok=True)
        company.start("agent")
        link = Link(proxy.address, role="instrument", name="in lock-step")
        LockStep(link, tmp_path / "bad" / "idle").play(30)
        proxy.is_calm = True
        company.end(link)
        assert min(proxy.counts[f"up {fate}"] for fate in ("lost", "doubled", "delayed")) > 0
    bad = decided(company.session)
    assert {kind: differences(clean, bad, [kind]) for kind in clean} == dict.fromkeys(clean, 0)


def test_link_cut_twenty_times_is_back_within_a_second_and_loses_nothing(nursery, tmp_path):
    rng = np.random.default_rng(5)
    folder = tmp_path / "session"
    life = nursery.start("streamer", folder, hub={"window": 16, "max_waiting": 64, "last_words_s": 0.1})
    back_s = []
    with CutProxy(life.address()) as proxy:
        feeder = Feeder(Link(proxy.address, role="instrument", name="feeder"))
        for _ in range(20):
            feeder.feed_until_acked()
            feed_for(feeder, rng.uniform(0, 0.1))
            proxy.cut()
            feed_for(feeder, rng.uniform(0, 0.4))
            proxy.mend()
            began_s = time.monotonic()
            feeder.feed_until_acked()
            back_s.append(time.monotonic() - began_s)
        feeder.finish()
        assert life.wait() == 0, life.log()
    verdict = judge(folder, feeder)
    assert verdict.is_clean, verdict
    assert max(back_s) <= 1.0, back_s


def feed_for(feeder: Feeder, duration_s: float) -> None:
    until_s = time.monotonic() + duration_s
    feeder.feed(lambda: time.monotonic() >= until_s)
