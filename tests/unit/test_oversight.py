"""Who decides, and what waits for a person."""

from __future__ import annotations

import math

import pytest

from streamer.messages import Control, EncoderInUse, Outcome, Request
from streamer.oversight import NOT_WAITING, Oversight


def in_mode(mode: str) -> Oversight:
    return Oversight().apply(Control(action="mode", mode=mode))


def test_alone_the_agent_waits_for_nobody(make_suggestion):
    oversight = Oversight()
    assert not oversight.holds_back(make_suggestion("a"))
    assert oversight.apply(make_suggestion("a")).waiting == ()


@pytest.mark.parametrize("mode", ["confirm", "advise"])
def test_what_the_agent_suggests_waits_until_it_has_its_answer(make_suggestion, mode):
    oversight = in_mode(mode)
    for identifier in "abc":
        oversight = oversight.apply(make_suggestion(identifier))
    assert [one.id for one in oversight.waiting] == ["a", "b", "c"]
    oversight = oversight.apply(Outcome(session="s", id="b", status="withdrawn"))
    request = Request(
        session="s",
        id="a",
        action="spectrum",
        scan_position_nm=(0.0, 0.0),
        position_nm=(0.0, 0.0),
        dwell_time_us=1000.0,
        dose_e=1.0,
    )
    oversight = oversight.apply(request)
    assert [one.id for one in oversight.waiting] == ["c"]


def test_a_person_and_the_streamers_own_scans_wait_for_nobody(make_suggestion):
    oversight = in_mode("confirm")
    assert not oversight.holds_back(make_suggestion("operator-1", policy="operator"))
    assert not oversight.holds_back(make_suggestion("separate-1-0"))


def test_each_change_of_how_it_is_decided_makes_a_revision():
    oversight = in_mode("confirm")
    oversight = oversight.apply(Control(action="steer", settings={"goal": "minimise"}))
    change = EncoderInUse(session="s", encoder="", number=3, revision="0" * 12, name="n")
    oversight = oversight.apply(change).apply(Control(action="pause"))
    assert oversight.revision == 3


def test_an_approval_holds_only_for_what_was_seen(make_suggestion):
    oversight = in_mode("confirm").apply(make_suggestion("a"))
    assert oversight.why_not(Control(action="approve", id="a", seen=1)) == ""
    assert oversight.why_not(Control(action="approve", id="a")) == ""
    later = oversight.apply(Control(action="steer", settings={"goal": "minimise"}))
    why = later.why_not(Control(action="approve", id="a", seen=1))
    assert why.startswith("seen too early: you saw revision 1")
    assert "it is now 2" in why


def test_only_what_waits_is_approved_and_advice_never(make_suggestion):
    oversight = in_mode("confirm").apply(make_suggestion("a"))
    assert oversight.why_not(Control(action="approve", id="b")) == NOT_WAITING
    assert oversight.why_not(Control(action="decline", id="b")) == NOT_WAITING
    advice = in_mode("advise").apply(make_suggestion("a"))
    assert advice.why_not(Control(action="approve", id="a")).startswith("only advice")
    assert advice.why_not(Control(action="decline", id="a")) == ""


def test_a_person_reads_where_how_long_and_what_is_expected(make_suggestion):
    suggestion = make_suggestion(
        "a",
        position_nm=(1.0, -2.5),
        dwell_time_us=2000.0,
        predicted_mean=0.0125,
        predicted_sd=0.003,
        reason="expected to improve on 0.01",
    )
    oversight = in_mode("confirm").apply(suggestion)
    words = "(1.00, -2.50) nm, 2 ms: expected 0.0125 ± 0.003, expected to improve on 0.01"
    assert oversight.in_words() == {"a": words}
    bare = make_suggestion(
        "b", position_nm=(1.0, -2.5), dwell_time_us=2000.0, predicted_mean=math.nan, reason=""
    )
    assert in_mode("confirm").apply(bare).in_words() == {"b": "(1.00, -2.50) nm, 2 ms"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"action": "approve"}, "control.id is missing"),
        ({"action": "mode"}, "control.mode goes with action 'mode'"),
        ({"action": "pause", "mode": "auto"}, "control.mode goes with action 'mode'"),
        (
            {"action": "mode", "mode": "sometimes"},
            "control.mode is sometimes; it takes auto, confirm, advise",
        ),
        ({"action": "steer"}, "control.settings goes with action 'steer'"),
    ],
)
def test_a_control_that_makes_no_sense_says_so(fields, says):
    with pytest.raises(ValueError, match=says):
        Control(**fields)
