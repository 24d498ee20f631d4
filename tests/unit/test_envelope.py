"""The envelope grants what lies inside, refuses everything else, and its ledger adds up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamer.codec import pack, unpack
from streamer.envelope import ELECTRONS_PER_S_PA, Envelope, EnvelopeConfig, EnvelopeState, RefusedError
from streamer.messages import Distortion, Outcome, Registration, ScanGeometry


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


def lost(revision: int, at_s: float = 1000.0) -> Registration:
    """A new reference of which nobody knows how it lies to the one before."""
    nothing = np.zeros((2, 2, 2), np.float32)
    rows = np.zeros((2, 16), np.float32)
    distortion = Distortion(
        mode="drift-only",
        grid_px=nothing,
        sd_px=nothing,
        rows_px=rows,
        row_offset_px=rows,
        cols_px=np.zeros((2, 24), np.float32),
        flags=("lost",),
    )
    return Registration(revision=revision, at_s=at_s, distortion=distortion)


def test_vetoed_place_is_refused_and_when_the_specimen_is_lost_everywhere_until_it_is_placed(
    envelope, make_suggestion
):
    made = envelope()
    made.observe_registration(Registration(at_s=1000.0))
    made.veto(((0.2, 0.2),), 0.1)
    assert reason_of(made, make_suggestion("near", position_nm=(0.25, 0.2))) == "vetoed"
    granted(made, make_suggestion("beside", position_nm=(0.35, 0.2)))
    made.observe_registration(Registration(revision=1, at_s=1001.0))
    zoomed = make_suggestion("zoomed", position_nm=(0.25, 0.2), registration_revision=1)
    assert reason_of(made, zoomed) == "vetoed"
    made.observe_registration(lost(2, at_s=1002.0))
    now = {"registration_revision": 2}
    far = make_suggestion("far", position_nm=(-1.0, -0.5), **now)
    with pytest.raises(RefusedError, match=r"where 1 veto lie.*: probeloop control place"):
        made.review(far, 0.0)
    again = envelope()
    again.restore(unpack(pack(made.state()), EnvelopeState))
    assert reason_of(again, far) == "forbidden area"
    made.forbidden.place((-0.5, 0.0))
    granted(made, far)
    granted(made, make_suggestion("where it was", position_nm=(0.25, 0.2), **now))
    assert reason_of(made, make_suggestion("where it is", position_nm=(-0.25, 0.2), **now)) == "vetoed"


def test_a_sub_scan_that_only_reaches_a_vetoed_place_is_refused(envelope, make_suggestion):
    made = envelope()
    made.veto(((0.5, 0.0),), 0.1)
    scan = {"action": "scan", "shape": (8, 8), "field_of_view_nm": (0.9, 0.1)}
    assert reason_of(made, make_suggestion("along", **scan)) == "vetoed"
    granted(made, make_suggestion("across", **scan, rotation_rad=math.pi / 2))


def test_another_envelope_goes_on_from_the_state_of_the_first(envelope, make_suggestion):
    first = envelope(max_pending=2)
    granted(first, make_suggestion("a", position_nm=(0.1, 0.0)))
    granted(first, make_suggestion("b", position_nm=(0.3, 0.1)))
    settled_by(first, Outcome(session="s", id="a", status="skipped"))
    first.veto(((-0.5, 0.0),), 0.1)
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


TRIANGLE = ((0.2, 0.0), (0.6, 0.0), (0.4, 0.3))


def test_a_forbidden_area_is_refused_with_its_edge_and_what_lies_beside_it_is_not(envelope, make_suggestion):
    made = envelope(forbidden_areas_nm=(TRIANGLE,))
    for name, place in (("inside", (0.4, 0.1)), ("corner", (0.2, 0.0)), ("edge", (0.3, 0.15))):
        assert reason_of(made, make_suggestion(name, position_nm=place)) == "forbidden area"
    granted(made, make_suggestion("beside", position_nm=(0.25, 0.15)))
    granted(made, make_suggestion("within its bounds, outside it", position_nm=(0.21, 0.29)))


def test_a_turned_sub_scan_is_refused_where_any_part_of_it_touches_a_forbidden_area(
    envelope, make_suggestion
):
    made = envelope(forbidden_areas_nm=(TRIANGLE,))
    scan = {"action": "scan", "shape": (8, 8), "position_nm": (0.0, 0.25), "field_of_view_nm": (0.62, 0.1)}
    granted(made, make_suggestion("straight", **scan))  # its side is at x = 0.31, the area's at 0.333
    granted(made, make_suggestion("turned away", **scan, rotation_rad=math.pi / 8))
    # A corner is at (0.267, 0.085), where the area begins at x = 0.257.
    towards = make_suggestion("turned towards it", **scan, rotation_rad=-math.pi / 8)
    assert reason_of(made, towards) == "forbidden area"
    around = {"action": "scan", "shape": (8, 8), "position_nm": (0.4, 0.1), "field_of_view_nm": (1.0, 1.0)}
    assert reason_of(made, make_suggestion("around it", **around)) == "forbidden area"
    within = {"action": "scan", "shape": (8, 8), "position_nm": (0.4, 0.1), "field_of_view_nm": (0.02, 0.02)}
    assert reason_of(made, make_suggestion("within it", **within)) == "forbidden area"


def test_a_forbidden_area_follows_the_drift_and_a_change_of_the_field(envelope, make_frame, make_suggestion):
    made = envelope(forbidden_areas_nm=(TRIANGLE,))
    made.observe_registration(Registration(at_s=1000.0, drift_nm=(0.5, 0.0)))
    assert reason_of(made, make_suggestion("drifted", position_nm=(0.4, 0.1))) == "forbidden area"
    made.observe_frame(
        make_frame(geometry=ScanGeometry(shape=(16, 24), field_of_view_nm=(4.8, 3.2)), acquired_at_s=1002.0)
    )
    made.observe_registration(Registration(revision=1, at_s=1002.0))  # the specimen lies where it lay
    there = make_suggestion("there", position_nm=(0.9, 0.1), registration_revision=1)
    assert reason_of(made, there) == "forbidden area"
    granted(made, make_suggestion("not there", position_nm=(0.4, 0.1), registration_revision=1))


def test_nothing_is_granted_when_nobody_knows_any_more_where_a_forbidden_area_is(envelope, make_suggestion):
    made = envelope(forbidden_areas_nm=(TRIANGLE,))
    made.observe_registration(Registration(at_s=999.0))
    made.observe_registration(lost(1))
    far = make_suggestion(position_nm=(-1.0, 0.5), registration_revision=1)
    assert reason_of(made, far) == "forbidden area"


@pytest.mark.parametrize(
    ("area", "why"),
    [
        (((0.0, 0.0), (1.0, 0.0)), "has too few corners, 2"),
        (((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)), "crosses or touches itself"),
        (((0.0, 0.0), (1.0, 0.0), (2.0, 0.0)), "crosses or touches itself"),
        (((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)), "crosses or touches itself"),
        (((0.0, 0.0), (1.0, math.nan), (1.0, 1.0)), "finite"),
    ],
)
def test_corners_that_enclose_no_area_are_refused_by_name(area, why):
    with pytest.raises(ValueError, match=rf"envelope.forbidden_areas_nm\[1\] .*{why}"):
        EnvelopeConfig(forbidden_areas_nm=(TRIANGLE, area))


def test_a_step_is_measured_from_the_last_place_granted_or_visited(envelope, make_suggestion):
    made = envelope(max_step_nm=0.5)
    granted(made, make_suggestion("first", position_nm=(-1.0, 0.0)))  # a frame has just been everywhere
    assert reason_of(made, make_suggestion("far", position_nm=(-0.4, 0.0))) == "step"
    granted(made, make_suggestion("second", position_nm=(-0.6, 0.0)))
    settled_by(made, Outcome(session="s", id="second", status="refused"))  # it never went there
    assert reason_of(made, make_suggestion("on", position_nm=(-0.2, 0.0))) == "step"
    settled_by(made, Outcome(session="s", id="first", status="ok", scan_position_nm=(-0.7, 0.0)))
    granted(made, make_suggestion("from where it was", position_nm=(-0.3, 0.0)))


def test_a_cell_is_visited_again_only_after_its_time(envelope, make_frame, make_suggestion):
    made = envelope(min_revisit_s=5.0, revisit_distance_nm=0.1)
    granted(made, make_suggestion("a", position_nm=(0.05, 0.05)))
    assert reason_of(made, make_suggestion("while it is under way", position_nm=(0.15, 0.05))) == "revisit"
    granted(made, make_suggestion("two cells on", position_nm=(0.25, 0.05)))
    settled_by(made, Outcome(session="s", id="a", status="failed", started_at_s=1000.0, ended_at_s=1001.0))
    assert reason_of(made, make_suggestion("at once", position_nm=(0.05, 0.05))) == "revisit"
    settled_by(made, Outcome(session="s", id="two cells on", status="skipped"))
    granted(made, make_suggestion("not visited", position_nm=(0.25, 0.05)))
    made.observe_frame(make_frame(acquired_at_s=1006.0))
    granted(made, make_suggestion("in time", position_nm=(0.05, 0.05)))


def test_a_registration_too_old_or_too_uncertain_grants_nothing(envelope, make_frame, make_suggestion):
    made = envelope(max_registration_age_s=10.0, max_position_sd_nm=0.05)
    made.observe_registration(Registration(at_s=995.0, sd_nm=0.01))
    granted(made, make_suggestion("young"))
    assert reason_of(made, make_suggestion("blurred", position_sd_nm=0.06)) == "uncertain position"
    made.observe_frame(make_frame(acquired_at_s=1006.0))
    assert reason_of(made, make_suggestion("old")) == "old registration"
    made.observe_registration(Registration(at_s=1006.0, sd_nm=0.06))
    assert reason_of(made, make_suggestion("lost in noise")) == "uncertain position"


def test_a_beam_stronger_than_configured_counts_as_strong_as_it_is_or_is_refused(make_frame, make_suggestion):
    told_e_per_nm2 = 16 * 24 * 200 * ELECTRONS_PER_S_PA * 1e-6 / (2.4 * 1.6)  # of 200 pA
    for limit_pa in (0.0, 100.0):
        made = Envelope(EnvelopeConfig(beam_current_pa=60.0, max_beam_current_pa=limit_pa))
        made.observe_frame(make_frame(dose_e_per_nm2=told_e_per_nm2))
        if limit_pa:
            assert reason_of(made, make_suggestion()) == "beam current"
        else:
            request = granted(made, make_suggestion(dwell_time_us=1000.0))
            assert request.dose_e == pytest.approx(200 * ELECTRONS_PER_S_PA * 1e-3)


def test_dose_of_a_turned_scan_lies_where_it_is_turned_to(envelope, make_suggestion):
    made = envelope(cell_nm=0.1)
    long = {"action": "scan", "field_of_view_nm": (1.2, 0.05), "shape": (4, 64), "rotation_rad": math.pi / 2}
    granted(made, make_suggestion(**long, position_nm=(0.05, 0.05)))
    assert (0, 5) in made.ledger.cells_e
    assert (5, 0) not in made.ledger.cells_e


def test_a_scan_of_few_places_counts_each_in_full(envelope, make_suggestion):
    made = envelope(cell_nm=0.1)
    request = granted(made, make_suggestion(action="scan", field_of_view_nm=(1.0, 1.0), shape=(1, 2)))
    middle_of_the_left = made.ledger.cell_of((-0.25, 0.0))
    assert made.ledger.cells_e[middle_of_the_left] == pytest.approx(request.dose_e / 2)


def test_dose_is_booked_where_the_beam_really_was(envelope, make_suggestion):
    made = envelope(cell_nm=0.1)
    request = granted(made, make_suggestion("a", position_nm=(0.05, 0.05)))
    settled_by(made, Outcome(session="s", id="a", status="ok", scan_position_nm=(0.35, 0.05)))
    assert made.ledger.cells_e[(0, 0)] == 0
    assert made.ledger.cells_e[(3, 0)] == pytest.approx(request.dose_e)


def burnt(envelope, make_suggestion) -> Envelope:
    """One spectrum on (0.05, 0.05) used up what its cell may get."""
    made = envelope(max_dose_e_per_cell=1.5 * 60 * ELECTRONS_PER_S_PA * 1e-3, max_stage_move_nm=1.0)
    made.observe_registration(Registration(at_s=1000.0))
    granted(made, make_suggestion("a", position_nm=(0.05, 0.05)))
    settled_by(made, Outcome(session="s", id="a", status="ok", scan_position_nm=(0.05, 0.05)))
    return made


def test_the_ledger_outlives_a_change_of_the_field_of_view(envelope, make_frame, make_suggestion):
    made = burnt(envelope, make_suggestion)
    zoomed = ScanGeometry(shape=(16, 24), field_of_view_nm=(0.6, 0.4), center_nm=(0.3, 0.0))
    made.observe_registration(Registration(at_s=1001.0, drift_nm=(0.2, 0.0)))
    made.observe_frame(make_frame(geometry=zoomed, acquired_at_s=1002.0, dwell_time_us=0.1))
    made.observe_registration(Registration(revision=1, at_s=1002.0))
    # What lay at (0.05, 0.05) had drifted to (0.25, 0.05) when the new reference was taken.
    same = make_suggestion("b", position_nm=(0.25, 0.05), registration_revision=1)
    assert reason_of(made, same) == "cell dose"
    granted(made, make_suggestion("c", position_nm=(0.05, 0.05), registration_revision=1))


def test_the_ledger_outlives_a_restart(envelope, make_suggestion):
    second = Envelope(burnt(envelope, make_suggestion).config)
    kept = pack(burnt(envelope, make_suggestion).state())
    second.restore(unpack(kept, EnvelopeState))
    assert reason_of(second, make_suggestion("b", position_nm=(0.05, 0.05))) == "cell dose"


def test_the_ledger_outlives_a_move_of_the_stage(envelope, make_frame, make_suggestion):
    made = burnt(envelope, make_suggestion)
    # The stage carries the burnt place to (0.45, 0.05); the next frame begins a new reference.
    made.observe_frame(make_frame(stage_nm=(0.4, 0.0), acquired_at_s=1002.0, dwell_time_us=0.1))
    made.observe_registration(Registration(revision=1, at_s=1002.0))
    same = make_suggestion("b", position_nm=(0.45, 0.05), registration_revision=1)
    assert reason_of(made, same) == "cell dose"
    back = make_suggestion("c", position_nm=(0.05, 0.05), registration_revision=1, stage_nm=(0.0, 0.0))
    assert reason_of(made, back) == "cell dose"
    granted(made, make_suggestion("d", position_nm=(0.05, 0.05), registration_revision=1))


def test_after_a_lost_specimen_every_cell_may_be_the_one_that_had_most(envelope, make_suggestion):
    made = burnt(envelope, make_suggestion)
    made.observe_registration(lost(1))
    anywhere = make_suggestion("b", position_nm=(-0.9, 0.6), registration_revision=1)
    assert reason_of(made, anywhere) == "cell dose"


def test_a_restart_keeps_steps_visits_areas_and_reservations(envelope, make_suggestion):
    config = {"max_step_nm": 0.5, "min_revisit_s": 5.0}
    first = envelope(**config)
    granted(first, make_suggestion("a"))
    settled_by(first, Outcome(session="s", id="a", status="ok", scan_position_nm=(0.0, 0.0)))
    granted(first, make_suggestion("b", position_nm=(0.3, 0.0)))
    second = Envelope(EnvelopeConfig(**config))
    second.restore(unpack(pack(first.state()), EnvelopeState))
    assert reason_of(second, make_suggestion("c")) == "revisit"
    assert reason_of(second, make_suggestion("d", position_nm=(0.9, 0.0))) == "step"
    settled_by(second, Outcome(session="s", id="b", status="refused"))
    assert second.ledger.cells_e[second.ledger.cell_of((0.3, 0.0))] == 0
    assert second.ledger.total_e == pytest.approx(first.ledger.total_e - first.pending["b"].dose_e)
