"""Which frames and suggestions the state of a session lets in."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.admission import OUT_OF_SEASON, refuse_out_of_season, why_not_frame
from streamer.envelope import RefusedError

FRAME_STATE: dict[str, Any] = {
    "session": "s",
    "expected": 3,
    "is_from_instrument": True,
    "ahead": 1,
    "window": 2,
    "pending": ["a"],
}
SEASON: dict[str, Any] = {
    "session": "s",
    "ends": None,
    "holds": (),
    "has_instrument": True,
    "is_budget_spent": False,
}


@pytest.mark.parametrize("fields", [{"number": 3}, {"number": 9}, {"number": 3, "request_id": "a"}])
def test_frame_that_is_due_is_taken(make_frame, fields):
    assert why_not_frame(make_frame(**fields), **FRAME_STATE) is None


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({}, {"is_from_instrument": False}, "hello first"),
        ({"session": "t"}, {}, "wrong session"),
        ({"number": 2}, {}, "out of order"),
        ({}, {"ahead": 2}, "window full"),
        ({"request_id": "b"}, {}, "unknown id"),
    ],
)
def test_frame_that_is_not_due_is_refused_with_a_cure(make_frame, fields, state, reason):
    refusal = why_not_frame(make_frame(**({"number": 3} | fields)), **(FRAME_STATE | state))
    assert refusal is not None
    assert refusal[0] == reason
    assert refusal[1]


def test_suggestion_in_season_is_heard(make_suggestion):
    refuse_out_of_season(make_suggestion(session="s"), **SEASON)


@pytest.mark.parametrize(
    ("state", "reason"),
    list(
        zip(
            [
                {"ends": "time is up"},
                {"holds": ("disk full", "analysis stuck")},
                {"has_instrument": False},
                {"is_budget_spent": True},
                {"session": "t"},
                {"steered_at": 8},
                {"do_enough_wait": True},
            ],
            OUT_OF_SEASON,
            strict=True,
        )
    ),
)
def test_suggestion_out_of_season_is_refused_by_a_word_that_replay_knows(make_suggestion, state, reason):
    with pytest.raises(RefusedError) as refusal:
        refuse_out_of_season(make_suggestion(session="s", told=7), **(SEASON | state))
    assert refusal.value.reason == reason


@pytest.mark.parametrize("told", [0, 8, 9])  # 0: of an agent that does not say what it knew
def test_suggestion_that_knows_what_a_person_changed_is_heard(make_suggestion, told):
    refuse_out_of_season(make_suggestion(session="s", told=told), **(SEASON | {"steered_at": 8}))


def test_refusal_names_every_hold(make_suggestion):
    with pytest.raises(RefusedError, match="disk full, analysis stuck"):
        refuse_out_of_season(
            make_suggestion(session="s"), **(SEASON | {"holds": ("disk full", "analysis stuck")})
        )
