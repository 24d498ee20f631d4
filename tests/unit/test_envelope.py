"""The envelope grants what lies inside, refuses everything else, and its ledger adds up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamer.envelope import ELECTRONS_PER_S_PA, Envelope, EnvelopeConfig, RefusedError
from streamer.messages import Outcome, Registration, ScanGeometry


@pytest.fixture
def envelope(make_frame):
    def make(**config) -> Envelope:
        made = Envelope(EnvelopeConfig(**config))
        made.observe_frame(make_frame())  # 2.4 nm wide, 1.6 nm high, centred on 0
        return made

    return make


def reason_of(envelope: Envelope, suggestion, now_s: float = 0.0) -> str:
    with pytest.raises(RefusedError) as caught:
        envelope.review(suggestion, now_s)
    return caught.value.reason


def granted(envelope: Envelope, suggestion, now_s: float = 0.0):
    """Review and grant, as the hub does once the request is in the journal."""
    request = envelope.review(suggestion, now_s)
    envelope.grant(request, now_s)
    return request


def settled_by(envelope: Envelope, outcome: Outcome) -> Outcome:
    """Settle and release, as the hub does once the outcome is in the journal."""
    settled = envelope.settle(outcome)
    assert envelope.release(settled)
    return settled


def test_nothing_is_granted_before_the_first_frame(make_suggestion):
    assert reason_of(Envelope(EnvelopeConfig()), make_suggestion()) == "no frame yet"


def test_granted_request_carries_the_drift(envelope, make_suggestion):
    made = envelope()
    made.observe_registration(Registration(drift_nm=(0.1, -0.2)))
    request = granted(made, make_suggestion(position_nm=(0.5, 0.5)), 0.0)
    assert request.scan_position_nm == pytest.approx((0.6, 0.3))
    assert request.position_nm == (0.5, 0.5)


def test_dose_of_a_request_is_current_times_time(envelope, make_suggestion):
    made = envelope(beam_current_pa=10.0)
    before_e = made.ledger.total_e
    request = granted(made, make_suggestion(dwell_time_us=1000.0), 0.0)
    assert request.dose_e == pytest.approx(10 * ELECTRONS_PER_S_PA * 1e-3)
    assert made.ledger.total_e - before_e == pytest.approx(request.dose_e)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"position_nm": (1.21, 0.0)}, "outside field"),
        ({"position_nm": (0.0, -0.81)}, "outside field"),
        ({"position_nm": (math.nan, 0.0)}, "not finite"),
        ({"position_nm": (math.inf, 0.0)}, "not finite"),
        ({"dwell_time_us": 2e6}, "dwell time"),
        ({"dwell_time_us": math.nan}, "dwell time"),
        ({"dwell_time_us": -1.0}, "dwell time"),
        ({"registration_revision": 1}, "stale registration"),
        ({"action": "scan", "field_of_view_nm": (3.0, 0.1), "shape": (8, 8)}, "outside field"),
        ({"action": "scan", "field_of_view_nm": (-1.0, 0.1), "shape": (8, 8)}, "not finite"),
        ({"action": "scan", "field_of_view_nm": (0.0, 0.1), "shape": (8, 8)}, "not finite"),
        ({"action": "scan", "field_of_view_nm": (0.1, 0.1), "shape": (0, 8)}, "scan shape"),
    ],
)
def test_outside_the_envelope_is_refused_and_reserves_nothing(envelope, make_suggestion, fields, reason):
    made = envelope()
    before_e = made.ledger.total_e
    assert reason_of(made, make_suggestion(**fields)) == reason
    assert made.ledger.total_e == before_e
    assert not made.pending


def test_margin_keeps_the_beam_off_the_edge(envelope, make_suggestion):
    made = envelope(margin_nm=0.3)
    granted(made, make_suggestion("a", position_nm=(0.89, 0.0)), 0.0)
    assert reason_of(made, make_suggestion("b", position_nm=(0.91, 0.0))) == "outside field"


def test_drift_can_carry_a_position_out_of_the_field(envelope, make_suggestion):
    made = envelope()
    made.observe_registration(Registration(drift_nm=(0.3, 0.0)))
    assert reason_of(made, make_suggestion(position_nm=(1.0, 0.0))) == "outside field"


def test_same_id_is_granted_once(envelope, make_suggestion):
    made = envelope()
    granted(made, make_suggestion("a"), 0.0)
    assert reason_of(made, make_suggestion("a")) == "duplicate id"


def test_cell_limit_holds_where_the_total_does_not(envelope, make_suggestion):
    made = envelope(max_dose_e_per_cell=1.5e6, beam_current_pa=100.0)  # 6.2e5 e a request
    granted(made, make_suggestion("a"), 0.0)
    granted(made, make_suggestion("b"), 0.0)
    assert reason_of(made, make_suggestion("c")) == "cell dose"
    granted(made, make_suggestion("d", position_nm=(0.3, 0.3)), 0.0)


def test_total_limit_holds_everywhere(envelope, make_suggestion):
    made = envelope(max_dose_e=1.5e6, beam_current_pa=100.0)
    granted(made, make_suggestion("a", position_nm=(0.0, 0.0)), 0.0)
    granted(made, make_suggestion("b", position_nm=(0.3, 0.3)), 0.0)
    assert reason_of(made, make_suggestion("c", position_nm=(-0.3, 0.3))) == "total dose"


def test_dose_of_frames_counts_in_total_and_in_every_cell(make_frame):
    made = Envelope(EnvelopeConfig(cell_nm=0.1, beam_current_pa=0.0))
    made.observe_frame(make_frame(dose_e_per_nm2=1000.0))
    assert made.ledger.total_e == pytest.approx(1000.0 * 2.4 * 1.6)
    assert made.ledger.cell_dose_e((3, 4)) == pytest.approx(1000.0 * 0.01)


def test_frame_that_tells_no_dose_counts_what_the_beam_gave(make_frame):
    made = Envelope(EnvelopeConfig(beam_current_pa=10.0))
    made.observe_frame(make_frame(dwell_time_us=2.0))
    assert made.ledger.total_e == pytest.approx(10 * ELECTRONS_PER_S_PA * 2e-6 * 16 * 24)


def test_dose_of_a_sub_scan_counts_once(envelope, make_frame, make_suggestion):
    made = envelope()
    granted(made, make_suggestion("a", action="scan", field_of_view_nm=(0.4, 0.4), shape=(8, 8)), 0.0)
    before_e = made.ledger.total_e
    made.observe_frame(make_frame(request_id="a", dose_e_per_nm2=1e6))
    assert made.ledger.total_e == before_e


def test_outcome_that_gave_more_than_was_reserved_is_booked_in_full(envelope, make_suggestion):
    made = envelope()
    before_e = made.ledger.total_e
    request = granted(made, make_suggestion("a"), 0.0)
    settled_by(
        made,
        Outcome(session="s", id="a", status="ok", scan_position_nm=(0.0, 0.0), dose_e=3 * request.dose_e),
    )
    assert made.ledger.total_e - before_e == pytest.approx(3 * request.dose_e)
    assert made.ledger.cells_e[made.ledger.cell_of((0.0, 0.0))] == pytest.approx(3 * request.dose_e)


def test_small_sub_scan_on_a_corner_of_cells_counts_in_full_in_each(envelope, make_suggestion):
    made = envelope(cell_nm=0.1)
    request = granted(
        made,
        make_suggestion(action="scan", field_of_view_nm=(0.02, 0.02), shape=(4, 4), position_nm=(0.2, 0.1)),
        0.0,
    )
    assert made.ledger.cells_e[made.ledger.cell_of((0.205, 0.105))] == pytest.approx(request.dose_e)


def test_sub_scan_of_too_many_cells_is_refused_before_they_are_counted(make_frame, make_suggestion):
    made = Envelope(EnvelopeConfig(max_dose_e=1e30, max_dose_e_per_cell=1e30))
    geometry = ScanGeometry(shape=(16, 24), field_of_view_nm=(2400.0, 1600.0))
    made.observe_frame(make_frame(geometry=geometry))
    wide = make_suggestion(action="scan", field_of_view_nm=(1000.0, 1000.0), shape=(8, 8))
    assert reason_of(made, wide) == "scan size"


def test_sub_scan_covers_its_cells_and_never_too_little(envelope, make_suggestion):
    made = envelope(cell_nm=0.1, beam_current_pa=10.0)
    request = granted(
        made,
        make_suggestion(action="scan", field_of_view_nm=(0.38, 0.18), shape=(10, 20), position_nm=(0.2, 0.1)),
        0.0,
    )
    assert request.dose_e == pytest.approx(200 * 10 * ELECTRONS_PER_S_PA * 1e-3)
    shares = np.array(list(made.ledger.cells_e.values()))
    assert len(shares) == 8
    density_e_per_nm2 = request.dose_e / (0.38 * 0.18)
    assert shares == pytest.approx(density_e_per_nm2 * 0.1**2)


def test_rate_limit_forgets_after_a_second(envelope, make_suggestion):
    made = envelope(max_rate_per_s=2)
    granted(made, make_suggestion("a"), 0.0)
    granted(made, make_suggestion("b"), 0.5)
    assert reason_of(made, make_suggestion("c"), 0.9) == "rate"
    granted(made, make_suggestion("d"), 1.1)


def test_pending_limit_is_freed_by_an_outcome(envelope, make_suggestion):
    made = envelope(max_pending=1)
    granted(made, make_suggestion("a"), 0.0)
    assert reason_of(made, make_suggestion("b")) == "pending"
    settled_by(made, Outcome(session="s", id="a", status="failed"))
    granted(made, make_suggestion("c"), 0.0)


def test_reservation_comes_back_only_where_nothing_was_measured(envelope, make_suggestion):
    made = envelope()
    for identifier, status, keeps in (("a", "refused", False), ("b", "failed", True), ("c", "ok", True)):
        before_e = made.ledger.total_e
        granted(made, make_suggestion(identifier), 0.0)
        settled_by(made, Outcome(session="s", id=identifier, status=status, scan_position_nm=(0.0, 0.0)))
        assert (made.ledger.total_e > before_e) == keeps


def test_outcome_nobody_asked_for_and_a_second_one_are_refused(envelope, make_suggestion):
    made = envelope()
    with pytest.raises(RefusedError, match="unknown id"):
        settled_by(made, Outcome(session="s", id="a", status="failed"))
    granted(made, make_suggestion("a"), 0.0)
    settled_by(made, Outcome(session="s", id="a", status="failed"))
    with pytest.raises(RefusedError, match="unknown id"):
        settled_by(made, Outcome(session="s", id="a", status="failed"))


def test_settled_outcome_says_where_on_the_specimen_it_was(envelope, make_suggestion):
    made = envelope()
    made.observe_registration(Registration(drift_nm=(0.1, 0.2)))
    granted(made, make_suggestion("a"), 0.0)
    settled = settled_by(made, Outcome(session="s", id="a", status="ok", scan_position_nm=(0.15, 0.2)))
    assert settled.position_nm == pytest.approx((0.05, 0.0))


def test_rotated_field_is_the_rotated_rectangle(make_frame, make_suggestion):
    geometry = ScanGeometry(shape=(16, 24), field_of_view_nm=(2.4, 1.6), rotation_rad=math.pi / 2)
    made = Envelope(EnvelopeConfig())
    made.observe_frame(make_frame(geometry=geometry))
    granted(made, make_suggestion("a", position_nm=(0.0, 1.1)), 0.0)
    assert reason_of(made, make_suggestion("b", position_nm=(1.1, 0.0))) == "outside field"


def test_no_random_suggestion_outside_gets_through(envelope, make_suggestion):
    made = envelope(max_pending=10_000, max_rate_per_s=1e9)
    rng = np.random.default_rng(0)
    for count in range(5000):
        position = tuple(rng.normal(0, 1.5, 2).tolist())
        dwell = float(10 ** rng.uniform(-3, 8))
        try:
            request = granted(
                made, make_suggestion(str(count), position_nm=position, dwell_time_us=dwell), count * 1e-6
            )
        except RefusedError:
            continue
        assert abs(request.scan_position_nm[0]) <= 1.2
        assert abs(request.scan_position_nm[1]) <= 0.8
        assert 0.1 <= request.dwell_time_us <= 1e6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_dose_e", -1.0),
        ("cell_nm", 0.0),
        ("max_pending", 0),
        ("min_dwell_time_us", 2e6),
        ("max_rate_per_s", math.nan),
    ],
)
def test_impossible_limit_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"envelope.{field} is"):
        EnvelopeConfig(**{field: value})


def test_vetoed_place_is_refused_until_the_registration_changes(envelope, make_suggestion):
    made = envelope()
    made.veto((0.2, 0.2), 0.1)
    assert reason_of(made, make_suggestion("near", position_nm=(0.25, 0.2))) == "vetoed"
    granted(made, make_suggestion("beside", position_nm=(0.35, 0.2)))
    made.observe_registration(Registration(revision=1))
    granted(made, make_suggestion("other", position_nm=(0.25, 0.2), registration_revision=1))


def test_another_envelope_goes_on_from_the_state_of_the_first(envelope, make_suggestion):
    first = envelope(max_pending=2)
    granted(first, make_suggestion("a", position_nm=(0.1, 0.0)))
    granted(first, make_suggestion("b", position_nm=(0.3, 0.1)))
    settled_by(first, Outcome(session="s", id="a", status="skipped"))
    first.veto((-0.5, 0.0), 0.1)
    second = envelope(max_pending=2)
    second.restore(first.state())
    assert second.state() == first.state()
    assert second.ledger.total_e == first.ledger.total_e
    assert reason_of(second, make_suggestion("a")) == "duplicate id"
    assert reason_of(second, make_suggestion("c", position_nm=(-0.5, 0.05))) == "vetoed"
    assert list(second.pending) == ["b"]


def test_frames_that_were_broken_off_count_as_much_as_the_next_one(envelope, make_frame):
    made = envelope(beam_current_pa=0.0)
    area_nm2 = 2.4 * 1.6
    before_e = made.ledger.total_e
    made.observe_frame(make_frame(dose_e_per_nm2=100.0, number=5), missed=3)
    assert made.ledger.total_e - before_e == pytest.approx(4 * 100.0 * area_nm2)


def test_the_stage_stays_where_it_is_unless_the_operator_allowed_it_to_move(envelope, make_suggestion):
    scan = {"action": "scan", "field_of_view_nm": (1.0, 1.0), "shape": (8, 8)}
    there = make_suggestion(**scan, stage_nm=(0.4, 0.0))
    assert reason_of(envelope(), there) == "stage move"
    allowed = envelope(max_stage_move_nm=0.5)
    assert granted(allowed, there).stage_nm == (0.4, 0.0)
    assert reason_of(allowed, make_suggestion("far", **scan, stage_nm=(0.0, -0.6))) == "stage move"


def test_a_moved_stage_takes_the_dose_along_on_the_specimen(envelope, make_suggestion):
    made = envelope(max_stage_move_nm=1.0)
    scan = {"action": "scan", "field_of_view_nm": (0.1, 0.1), "shape": (8, 8), "position_nm": (0.0, 0.0)}
    before = dict(made.ledger.cells_e)
    granted(made, make_suggestion(**scan, stage_nm=(0.5, 0.0)))
    touched = [cell for cell, dose in made.ledger.cells_e.items() if dose != before.get(cell, 0.0)]
    centre = made.ledger.cell_of((-0.5, 0.0))
    assert centre in touched
    assert made.ledger.cell_of((0.0, 0.0)) not in touched


def test_a_turned_scan_must_lie_in_the_field_with_all_its_corners(envelope, make_suggestion):
    wide = {"action": "scan", "field_of_view_nm": (2.0, 1.0), "shape": (8, 16)}
    made = envelope()
    assert granted(made, make_suggestion(**wide, rotation_rad=0.0)).rotation_rad == 0.0
    assert reason_of(made, make_suggestion("up", **wide, rotation_rad=math.pi / 2)) == "outside field"


def test_a_scan_of_the_whole_field_is_inside_it(envelope, make_suggestion):
    made = envelope()
    made.observe_registration(Registration(drift_nm=(0.1, -0.2)))
    whole = make_suggestion(
        action="scan", position_nm=(-0.1, 0.2), field_of_view_nm=(2.4, 1.6), shape=(16, 24)
    )
    assert granted(made, whole).scan_position_nm == pytest.approx((0.0, 0.0), abs=1e-12)
