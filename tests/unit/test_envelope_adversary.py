"""Nothing outside the envelope gets through, and nothing inside is refused, whoever suggests it.

The million is in ``tests/benchmarks/adversary.py``; here some thousand of other seeds.
"""

from __future__ import annotations

import pytest

from streamer.envelope import Envelope
from streamer.forbidden import ForbiddenArea as Veto
from streamer.forbidden import ForbiddenAreas
from tests.benchmarks.adversary import try_out

TRIALS = 8_000
SEED = 3


def test_of_some_thousand_adversarial_suggestions_none_outside_gets_through_and_none_inside_is_refused():
    hits = try_out(TRIALS, SEED)
    assert hits["granted"] > TRIALS / 20  # else nothing was tried
    assert hits["unsafe let through"] == 0
    assert hits["changed"] == 0
    assert hits["needlessly refused"] == 0
    assert hits["refused for another reason"] == 0
    assert hits["said to be lost apart"] == 0


@pytest.mark.parametrize(
    "limit", ["_check_step", "_check_dose", "_check_areas", "_check_rate", "_check_visits"]
)
def test_the_judge_notices_an_envelope_that_lacks_a_limit(limit, monkeypatch):
    monkeypatch.setattr(Envelope, limit, lambda *_: None)
    assert try_out(2_000, SEED)["unsafe let through"] > 0


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ("lose", lambda _: None),
        ("place", lambda areas, *_: areas.forget()),
        (
            "veto",
            lambda areas, corners_nm, radius_nm: areas._put(
                (*areas._placed, Veto(corners_nm[:1], radius_nm))
            ),
        ),
    ],
)
def test_the_judge_notices_areas_that_are_lost_misplaced_or_vetoed_in_part_only(what, instead, monkeypatch):
    monkeypatch.setattr(ForbiddenAreas, what, instead)
    assert try_out(3_000, SEED)["unsafe let through"] > 0


def test_the_judge_notices_an_envelope_that_refuses_what_is_inside(monkeypatch):
    inside = Envelope._is_inside
    monkeypatch.setattr(
        Envelope,
        "_is_inside",
        lambda self, place, geometry: inside(self, (1.1 * place[0], place[1]), geometry),
    )
    assert try_out(2_000, SEED)["needlessly refused"] > 0
