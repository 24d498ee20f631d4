"""Whatever comes instead of a message is refused by name, and nothing else is the worse for it."""

from __future__ import annotations

import json
import os
import time
from collections import Counter

import pytest

from streamer.codec import WireError, decode, encode
from streamer.journal import read_messages
from streamer.messages import Ack, Frame, Hello, Welcome
from streamer.wire import Dealer
from tests.process.faults.counting import make_frame
from tests.process.faults.fuzz import forged, fuzz_decoder, mutations
from tests.process.faults.lives import Nursery

# PROBELOOP_TRIALS=100 for a million.
COUNT = 50_000 if "PROBELOOP_TRIALS" not in os.environ else 10_000 * int(os.environ["PROBELOOP_TRIALS"])
LIVE = 3000
WAIT_S = 20.0


@pytest.mark.timeout(900)
def test_no_mutated_message_is_taken_for_another_and_none_is_a_crash():
    verdict = fuzz_decoder(count=COUNT, seed=11)
    assert verdict.crashes == []
    assert verdict.wrong_accepted == 0
    assert verdict.growth_mb <= 10
    assert set(verdict.reasons) <= {
        "bad header", "bad checksum", "unknown version", "wrong size", "invalid message",
    }  # fmt: skip
    assert sum(verdict.reasons.values()) >= COUNT
    assert verdict.reasons["bad checksum"] > COUNT // 2


def await_message(dealer: Dealer, kind: type) -> object:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        parts = dealer.receive(0.1)
        if parts is not None and isinstance(message := decode(parts), kind):
            return message
    raise AssertionError(f"no {kind.__name__} came")


def reason_against(parts: list[bytes]) -> str:
    try:
        decode(parts)
    except WireError as error:
        return error.reason
    return "none"


def test_streamer_under_mutated_messages_counts_each_and_goes_on(tmp_path):
    nursery = Nursery()
    folder = tmp_path / "session"
    life = nursery.start("streamer", folder, hub={"last_words_s": 0.1})
    instrument, stranger = Dealer(life.address(), b"instrument"), Dealer(life.address(), b"stranger")
    while not instrument.send(encode(Hello(role="instrument", name="plain"))):
        time.sleep(0.001)
    await_message(instrument, Welcome)
    expected: Counter[str] = Counter()
    rss_mb = []
    frames = 0
    bad = [(instrument, mutated or [b""]) for _, mutated in mutations(12, LIVE)]
    bad += [(stranger, parts) for parts in forged(13, LIVE)]
    for place, (dealer, parts) in enumerate(bad):
        while not dealer.send(parts):
            time.sleep(0.001)
        expected[reason_against(parts)] += 1
        if place % 100 == 99:  # one good frame in a hundred bad messages
            assert instrument.send(encode(make_frame(frames)))
            while await_message(instrument, Ack).number != frames:  # type: ignore[attr-defined]
                pass
            frames += 1
            rss_mb.append(life.rss_mb())
    assert rss_mb[-1] - rss_mb[len(rss_mb) // 5] <= 10, rss_mb
    life.signal(15)
    assert life.wait() == 0, life.log()
    instrument.close(0)
    stranger.close(0)
    nursery.close()
    kept = [message.number for _, message in read_messages(folder) if isinstance(message, Frame)]
    assert kept == list(range(frames))
    counts = json.loads((folder / "summary.json").read_text())["counts"]
    del expected["none"]
    assert {reason: counts[f"unreadable: {reason}"] for reason in expected} == expected
    assert sum(expected.values()) >= LIVE
