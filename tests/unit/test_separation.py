"""Four scans are asked for one after the other, and what comes of each decides what follows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamer.envelope import Envelope, EnvelopeConfig, RefusedError
from streamer.messages import Control, Outcome, Registration, Request, ScanGeometry
from streamer.separation import Separation, is_of_separation, next_scan, stage_move_nm

GEOMETRY = ScanGeometry(shape=(64, 64), field_of_view_nm=(4.0, 4.0), rotation_rad=0.1, center_nm=(1.0, -0.5))


def begun() -> Separation:
    return Separation().apply(Control(action="separate"))


def scan_of(separation: Separation, registration: Registration | None = None):
    return next_scan(
        separation,
        session="s",
        number=3,
        acquired_at_s=10.0,
        dwell_time_us=1.0,
        geometry=GEOMETRY,
        registration=registration or Registration(),
        clock_s=0.0,
    )


def request_of(separation: Separation) -> Request:
    scan = scan_of(separation)
    return Request(
        session="s",
        id=scan.id,
        action="scan",
        scan_position_nm=GEOMETRY.center_nm,
        position_nm=scan.position_nm,
        dwell_time_us=1.0,
    )


def outcome_of(identifier: str, status: str = "ok", reason: str = "") -> Outcome:
    position = (0.0, 0.0) if status == "ok" else None
    return Outcome(session="s", id=identifier, status=status, reason=reason, scan_position_nm=position)


def test_nothing_is_asked_for_before_somebody_wants_it():
    assert Separation().next_id == ""


def test_the_four_scans_follow_each_other_one_at_a_time():
    separation, asked = begun(), []
    while separation.next_id:
        asked.append(separation.next_id)
        separation = separation.apply(request_of(separation))
        assert separation.next_id == ""  # not before the one under way has come back
        separation = separation.apply(outcome_of(asked[-1]))
    assert asked == [f"separate-1-{step}" for step in range(4)]
    assert not separation.is_on
    assert separation.ended == ""
    assert all(map(is_of_separation, asked))


def test_they_are_turned_and_moved_and_end_where_they_began():
    turns, stages = [], []
    separation = begun()
    while separation.next_id:
        scan = scan_of(separation)
        turns.append(scan.rotation_rad - GEOMETRY.rotation_rad)
        stages.append(scan.stage_nm)
        separation = separation.apply(request_of(separation)).apply(outcome_of(scan.id))
    assert turns == pytest.approx([math.pi / 2, math.pi / 2, 0.0, 0.0])
    assert stages == [(0.0, 0.0), stage_move_nm(GEOMETRY), stage_move_nm(GEOMETRY), (0.0, 0.0)]
    assert math.hypot(*stage_move_nm(GEOMETRY)) == pytest.approx(0.2 * 4.0)


@pytest.mark.parametrize("status", ["failed", "refused", "aborted", "skipped"])
def test_one_that_is_not_made_ends_the_round_and_says_which(status):
    separation = begun().apply(request_of(begun()))
    ended = separation.apply(outcome_of("separate-1-0", status, "no stage"))
    assert ended.next_id == ""
    assert not ended.is_on
    assert ended.ended == f"90° in place: {status} no stage"


def test_outcomes_of_others_and_of_earlier_rounds_change_nothing():
    separation = begun().apply(request_of(begun()))
    assert separation.apply(outcome_of("explorer-0-1")) == separation
    again = separation.apply(Control(action="separate"))
    assert again.next_id == ""  # the instrument is still at the scan of the first round
    freed = again.apply(outcome_of("separate-1-0"))
    assert freed.next_id == "separate-2-0"


def test_a_scan_covers_the_place_of_the_scan_whatever_the_drift(make_frame):
    registration = Registration(revision=2, drift_nm=(0.4, -0.3))
    scan = scan_of(begun(), registration)
    assert scan.position_nm == pytest.approx((0.6, -0.2))
    assert scan.registration_revision == 2
    envelope = Envelope(EnvelopeConfig(max_stage_move_nm=1.0))
    envelope.observe_frame(make_frame(geometry=GEOMETRY, image=np.ones((1, 64, 64), np.float32)))
    envelope.observe_registration(registration)
    assert envelope.review(scan, 0.0).scan_position_nm == pytest.approx(GEOMETRY.center_nm)


def test_without_leave_to_move_the_stage_the_second_scan_is_refused(make_frame):
    envelope = Envelope(EnvelopeConfig())
    envelope.observe_frame(make_frame(geometry=GEOMETRY, image=np.ones((1, 64, 64), np.float32)))
    separation = begun()
    envelope.review(scan_of(separation), 0.0)
    separation = separation.apply(request_of(separation)).apply(outcome_of("separate-1-0"))
    with pytest.raises(RefusedError, match="max_stage_move_nm allows 0"):
        envelope.review(scan_of(separation), 0.0)


@pytest.mark.parametrize(("step", "status"), [(1, "failed"), (1, "aborted"), (2, "refused"), (2, "failed")])
def test_a_specimen_that_may_have_moved_is_brought_back_whatever_failed(step: int, status: str):
    separation = begun()
    for number in range(step):
        separation = separation.apply(request_of(separation)).apply(outcome_of(f"separate-1-{number}"))
    separation = separation.apply(request_of(separation)).apply(outcome_of(f"separate-1-{step}", status, "x"))
    assert separation.next_id == "separate-1-3"
    assert scan_of(separation).stage_nm == (0.0, 0.0)
    over = separation.apply(request_of(separation)).apply(outcome_of("separate-1-3"))
    assert not over.is_on
    assert status in over.ended


def test_a_way_back_that_fails_too_is_not_tried_for_ever():
    separation = begun()
    for number, status in enumerate(["ok", "ok", "failed", "failed"]):
        separation = separation.apply(request_of(separation)).apply(
            outcome_of(f"separate-1-{number}", status, f"reason {number}")
        )
    assert not separation.is_on
    assert separation.next_id == ""
    assert "reason 2" in separation.ended
    assert "reason 3" in separation.ended


def test_a_move_that_was_refused_needs_no_way_back():
    separation = begun().apply(request_of(begun())).apply(outcome_of("separate-1-0"))
    ended = separation.apply(outcome_of("separate-1-1", "refused", "stage move"))
    assert not ended.is_on
    assert ended.next_id == ""
