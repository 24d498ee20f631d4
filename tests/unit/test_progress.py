"""What a session has come to, as a fold over its records."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from streamer.areas import Rectangle
from streamer.codec import Numbered
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.messages import (
    Checkpoint,
    Command,
    Control,
    Distortion,
    Event,
    Frame,
    Hello,
    Latents,
    Message,
    Outcome,
    Registration,
    Request,
    Score,
    Suggestion,
)
from streamer.progress import INSTRUMENT, Progress

Records = list[tuple[int, Numbered]]


def fresh() -> Progress:
    return Progress(Envelope(EnvelopeConfig()))


def numbered_rows(*said: tuple[str, Message]) -> Records:
    """Number messages as the journal does, and as their senders do; the streamer's have no sender."""
    counts: dict[str, int] = {}
    records = []
    for record, (sender, message) in enumerate(said, start=1):
        sequence = 0
        if sender and not isinstance(message, Hello):
            sequence = counts[sender] = counts.get(sender, 0) + 1
        records.append((record, Numbered(message, sender if sequence else "", sequence, 0)))
    return records


def fold(progress: Progress, records: Records) -> bytes:
    for record, numbered in records:
        progress.apply(record, numbered)
    return msgspec.msgpack.encode(progress.state(), order="deterministic")


@pytest.fixture
def session(
    make_frame: Callable[..., Frame],
    make_latents: Callable[..., Latents],
    make_suggestion: Callable[..., Suggestion],
) -> Records:
    """A little of everything that happens in a session."""

    def request(identifier: str) -> Request:
        return Request(
            session="s", id=identifier, action="spectrum", scan_position_nm=(0.1, 0.2),
            position_nm=(0.1, 0.2), dwell_time_us=10.0, dose_e=5.0,
        )  # fmt: skip

    ok = {"session": "s", "status": "ok", "scan_position_nm": (0.1, 0.2), "position_nm": (0.1, 0.2)}
    return numbered_rows(
        ("", Event(at_s=0.0, what="session_started")),
        ("", Hello(role="instrument", name="stem", instance="i1")),
        ("", Hello(role="agent", name="explorer", instance="a1")),
        ("i1", make_frame(number=0)),
        ("", make_latents(number=0)),
        ("a1", make_suggestion("x")),
        ("", request("x")),
        ("i1", Outcome(id="x", **ok)),
        ("a1", Score(session="s", id="x", objective="counts", value=3.0, variance=1.0)),
        ("a1", Checkpoint(session="s", of="explorer", told=8, facts=b"", arrays={"a": np.zeros(2)})),
        ("i1", make_frame(number=3)),
        ("", Event(at_s=0.0, what="frame rejected", detail="frame 3: constant")),
        ("", Control(action="pause")),
        ("", Command(session="s", action="park")),
        ("", Control(action="resume")),
        ("", Control(action="veto", position_nm=(0.5, 0.5), radius_nm=0.1)),
        ("", Hello(role="agent", name="explorer", instance="a2")),
        ("a2", make_suggestion("y")),
        ("", request("y")),
        ("i1", Outcome(session="s", id="y", status="failed")),
        ("", Event(at_s=0.0, what="session_ended", detail="budget reached")),
    )


def test_session_resumed_from_any_record_stands_where_the_whole_one_stands(session):
    whole = fold(fresh(), session)
    for cut in range(len(session) + 1):
        first = fresh()
        fold(first, session[:cut])
        second = fresh()
        second.restore(
            msgspec.msgpack.decode(msgspec.msgpack.encode(first.state()), type=type(first.state()))
        )
        assert fold(second, session[cut:]) == whole, f"cut before record {cut + 1}"


def test_what_goes_on_after_a_state_was_given_does_not_change_it(session):
    progress = fresh()
    before = fold(progress, session[:9])
    state = progress.state()
    fold(progress, session[9:])
    assert msgspec.msgpack.encode(state, order="deterministic") == before


def test_a_veto_of_something_measured_lies_where_it_is_after_a_new_reference_and_nowhere_after_a_loss(
    session,
):
    progress = fresh()
    fold(progress, session)
    latents = next(one.message for _, one in session if isinstance(one.message, Latents))

    def register(**fields: object) -> None:
        now = Registration(at_s=latents.acquired_at_s, **fields)
        one = msgspec.structs.replace(latents, number=9, registration=now)
        progress.apply(len(session) + 1, Numbered(one))

    register()
    assert progress.place_of("x") == (0.1, 0.2)
    register(drift_nm=(0.5, 0.0))
    assert progress.place_of("x") == (0.1, 0.2), "the drift is in the registration"
    register(revision=1, drift_nm=(0.0, 0.1))
    assert progress.place_of("x") == pytest.approx((0.6, 0.1))
    progress.apply(len(session) + 2, Numbered(Control(action="veto", id="x", radius_nm=0.05)))
    assert progress.envelope.forbidden.touched_by(Rectangle((0.1, 0.2))) is not None
    flat, row = np.zeros((2, 2, 2), np.float32), np.zeros((2, 5), np.float32)
    lost = Distortion(
        mode="drift-only",
        grid_px=flat,
        sd_px=flat,
        rows_px=row,
        row_offset_px=row,
        cols_px=row,
        flags=("lost",),
    )
    register(revision=2, distortion=lost)
    assert progress.place_of("x") is None
    assert "x" in progress.positions


def test_session_is_counted_as_it_was(session):
    progress = fresh()
    fold(progress, session)
    assert (progress.next_number, progress.measured, progress.best.value) == (4, 2, 3.0)
    assert progress.tally["received"] == progress.tally["published"] + progress.tally["rejected"] == 2
    assert progress.tally["missed"] == 2
    assert progress.received == {"i1": 4, "a1": 3, "a2": 1}
    assert progress.envelope.pending == {}
    assert (progress.operator_hold, progress.ended) == ("", "budget reached")


def test_rows_hold_what_each_peer_must_be_told(session):
    progress = fresh()
    fold(progress, session)

    def row(name: str) -> list[int]:
        return [record for record, numbered in session if progress.is_for(name, record, numbered)]

    assert row(INSTRUMENT) == [2, 7, 14, 19]
    # The second process: the checkpoint of the first, its own Hello, and what is new.
    assert row("agent explorer") == [10, 17, 20]
    assert progress.rows["agent explorer"].joined == 17


def test_outcome_that_comes_twice_counts_once(session):
    progress = fresh()
    fold(progress, session)
    progress.apply(99, Numbered(Outcome(session="s", id="x", status="failed")))
    assert progress.measured == 2


def test_agents_are_told_what_a_person_measures_and_nobody_is_told_of_another_agents(make_suggestion) -> None:
    progress = Progress(Envelope(EnvelopeConfig()))
    point = make_suggestion("operator-1", policy="operator")
    ok = {"session": "s", "status": "ok", "scan_position_nm": (0.1, 0.2), "position_nm": (0.1, 0.2)}
    records = numbered_rows(
        ("", Hello(role="agent", name="explorer", instance="a1")),
        ("", Hello(role="agent", name="raster", instance="a2")),
        ("", Hello(role="operator", name="me", instance="o1")),
        ("o1", point),
        ("a1", make_suggestion("x")),
    )
    fold(progress, records)
    assert progress.recipients(point) == ["agent explorer", "agent raster"]
    assert progress.recipients(make_suggestion("x")) == []
    told = progress.recipients(Outcome(id="operator-1", **ok))
    assert told == ["operator me", "agent explorer", "agent raster"]
    assert progress.recipients(Outcome(id="x", **ok)) == ["agent explorer"]
