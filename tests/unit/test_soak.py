"""What a long soak says while it runs, and how the session that it leaves is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import Latents, Message
from tests.process.faults.counting import latents_without_faults, make_frame
from tests.process.faults.sessions import Verdict, judge
from tests.process.faults.soak import Teller


class Fed:
    """What the judge asks of an instrument: how much it sent, and how much of it was acked."""

    sent = acked = 3


def judged(folder: Path, messages: list[Message]) -> Verdict:
    journal = Journal(folder, JournalConfig())
    for message in messages:
        journal.append(encode(message), 0.0, kind=kind_of(message), monotonic_s=0.0)
    journal.close()
    feeder: Any = Fed()
    return judge(folder, feeder)


def session() -> list[Message]:
    frames = [make_frame(number) for number in range(3)]
    return [*frames, *latents_without_faults(frames)]


def test_session_without_faults_is_clean(tmp_path):
    assert judged(tmp_path, session()).is_clean


def test_latents_that_differ_in_one_bit_are_found(tmp_path):
    *others, last = session()
    assert isinstance(last, Latents)
    mean = last.mean.copy()
    mean[3, 1] = np.nextafter(mean[3, 1], np.float32(np.inf))
    assert judged(tmp_path, [*others, msgspec.structs.replace(last, mean=mean)]).differing == 1


def test_frame_that_is_not_in_the_journal_is_lost(tmp_path):
    verdict = judged(tmp_path, session()[1:])
    assert (verdict.acked_lost, verdict.sent_lost) == (1, 1)


@pytest.mark.parametrize("place", [0, 5])
def test_frame_or_latents_that_are_there_twice_are_counted(tmp_path, place):
    messages = session()
    assert judged(tmp_path, [*messages, messages[place]]).duplicates == 1


def test_long_work_says_where_it_is_every_ten_seconds():
    said: list[str] = []
    teller = Teller(said.append, 100.0)
    for now_s in (100.0, 109.9, 110.0, 111.0, 119.9, 120.1):
        teller.look(now_s, lambda now_s=now_s: f"at {now_s}")
    assert said == ["at 110.0", "at 120.1"]
