"""A restart stands where the streamer stood, by its journal alone: no sockets, no pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamer.codec import Numbered, encode, pack
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import Control, EncoderInUse, Event, Message
from streamer.pipeline import PipelineState
from streamer.progress import Progress
from streamer.recovery import (
    facts_of,
    is_same_answer,
    latest_before,
    make_checkpoint,
    pipeline_state_of,
    recover,
)


def new_progress() -> Progress:
    return Progress(Envelope(EnvelopeConfig(beam_current_pa=0.0)))


def rejected(number: int) -> Event:
    return Event(at_s=0.0, what="frame rejected", detail="blank frame (check)", number=number)


class Past:
    """An earlier process: what it kept, and what it had come to."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder, JournalConfig())
        self.progress = new_progress()

    def keep(self, *messages: Message) -> None:
        for message in messages:
            parts = encode(message)
            record = self.journal.append(parts, time.time(), kind=kind_of(message), monotonic_s=0.0)
            self.progress.apply(record, Numbered(message))

    def checkpoint(self, number: int, replay_from: int) -> None:
        """Keep a state of the pipeline after frame ``number``."""
        state = PipelineState(number=number, facts=b"learnt", arrays={"a": np.full(3, number, np.float32)})
        told = self.journal.next_record - 1
        self.keep(make_checkpoint("s", told, self.progress.state(), state, replay_from))


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    made = Past(tmp_path)
    yield made
    made.journal.close()


def test_new_session_has_nothing_to_go_on_from(past):
    found = recover(past.journal, new_progress())
    assert (found.state, found.frames, found.records, found.answers) == (None, [], {}, {})
    assert found.first_unanswered is None


def test_without_a_checkpoint_everything_is_applied_and_analysed_again(past, make_frame, make_latents):
    past.keep(make_frame(number=0), make_latents(number=0), make_frame(number=1), rejected(1))
    past.keep(make_frame(number=2))
    progress = new_progress()
    found = recover(past.journal, progress)
    assert [frame.number for frame in found.frames] == [0, 1, 2]
    assert found.records == {0: 1, 1: 3, 2: 5}
    assert found.answers.keys() == {0, 1}
    assert found.answers[0] is not None
    assert found.answers[1] is None
    assert found.first_unanswered == 2
    assert pack(progress.state(), sort=True) == pack(past.progress.state(), sort=True)


def test_from_a_checkpoint_only_what_its_pipeline_does_not_know_is_analysed_again(
    past, make_frame, make_latents
):
    # The analysis is one frame behind: the state knows frame 0, the journal has frames 0 and 1.
    past.keep(make_frame(number=0), make_frame(number=1), make_latents(number=0))
    past.checkpoint(0, replay_from=2)
    past.keep(make_latents(number=1), make_frame(number=2))
    progress = new_progress()
    found = recover(past.journal, progress)
    assert found.state is not None
    assert (found.state.number, found.state.facts) == (0, b"learnt")
    assert [frame.number for frame in found.frames] == [1, 2]
    assert found.records == {1: 2, 2: 6}
    assert found.answers.keys() == {1}
    # Frame 1 lies before the checkpoint and is in its counts: it is read again, and not counted twice.
    assert progress.tally["received"] == 3
    assert pack(progress.state(), sort=True) == pack(past.progress.state(), sort=True)


def test_frame_that_is_left_out_is_neither_analysed_nor_waited_for(past, make_frame):
    past.keep(make_frame(number=0), make_frame(number=1))
    found = recover(past.journal, new_progress())
    found.leave_out(0)
    assert [frame.number for frame in found.frames] == [1]
    assert found.records == {1: 2}
    assert found.first_unanswered == 1


def test_checkpoint_gives_back_what_was_put_in(past, make_frame):
    past.keep(make_frame(number=4))
    state = PipelineState(number=3, facts=b"facts", arrays={"a": np.arange(4.0)})
    checkpoint = make_checkpoint("s", 1, past.progress.state(), state, 1)
    assert (checkpoint.of, checkpoint.told) == ("streamer", 1)
    facts, back = facts_of(checkpoint), pipeline_state_of(checkpoint)
    assert (facts.replay_from, facts.progress.next_number) == (1, 5)
    assert (back.number, back.facts, back.arrays["a"].tolist()) == (3, b"facts", [0.0, 1.0, 2.0, 3.0])


def test_same_answer_is_the_same_bit_for_bit(make_latents):
    before = make_latents(seed=1)
    assert is_same_answer(before, make_latents(seed=1))
    mean = before.mean.copy()
    mean[0, 0] = np.nextafter(mean[0, 0], np.float32(np.inf))
    assert not is_same_answer(before, msgspec.structs.replace(before, mean=mean))
    assert is_same_answer(None, None)
    assert not is_same_answer(before, None)
    assert not is_same_answer(None, before)


def test_what_other_encoders_said_of_a_frame_is_no_answer_to_it(past, make_frame, make_latents):
    past.keep(make_frame(number=0), make_latents(number=0, encoder="wide"), make_frame(number=1))
    past.keep(make_latents(number=1, encoder="wide"), make_latents(number=1))
    progress = new_progress()
    found = recover(past.journal, progress)
    assert found.answers.keys() == {1}
    assert found.beside.keys() == {(0, "wide"), (1, "wide")}
    assert found.first_unanswered == 0
    assert progress.tally["published"] == 1


def in_use(number: int, revision: str, encoder: str = "") -> EncoderInUse:
    return EncoderInUse(session="s", encoder=encoder, number=number, revision=revision * 12)


def test_weights_put_in_place_are_known_after_a_checkpoint_that_the_pipeline_did_not_see_them_before(
    past, make_frame, make_latents
):
    """The change lies before the record from which frames are read again."""
    past.keep(make_frame(number=0), make_latents(number=0), in_use(1, "a"))
    past.checkpoint(number=0, replay_from=past.journal.next_record)
    past.keep(make_frame(number=1))
    progress = new_progress()
    found = recover(past.journal, progress)
    assert found.first_number == 1
    assert [change.revision for change in latest_before(progress.encoders, 1)] == ["a" * 12]
    assert pack(progress.state(), sort=True) == pack(past.progress.state(), sort=True)


def test_of_weights_that_others_followed_before_the_first_frame_only_the_last_are_loaded():
    changes = [in_use(1, "a"), in_use(2, "b"), in_use(2, "c", "wide"), in_use(5, "d"), in_use(7, "e")]
    assert [one.revision[0] for one in latest_before(changes, 5)] == ["c", "d", "e"]
    assert [one.revision[0] for one in latest_before(changes, 0)] == ["a", "b", "c", "d", "e"]


def test_a_wish_for_weights_is_open_until_they_are_in_use_or_refused(past):
    wishes = [Control(action="encoder", revision=letter * 12) for letter in "abc"]
    past.keep(*wishes)
    past.keep(in_use(0, "a"), Event(at_s=0.0, what="encoder refused", detail="damaged"))
    progress = new_progress()
    recover(past.journal, progress)
    assert [wish.revision for wish in progress.wanted] == ["c" * 12]
