"""A place that was visited is left alone for its time; to look that up takes no longer late in a night."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.areas import Rectangle
from streamer.codec import pack, unpack
from streamer.dose_ledger import CellsTouched
from streamer.visits import Visits, VisitsState
from tests.benchmarks.review import of_a_night

CELL_NM = 0.1

areas = st.builds(
    Rectangle,
    center_nm=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    size_nm=st.one_of(st.just((0.0, 0.0)), st.tuples(st.floats(0.01, 0.5), st.floats(0.01, 0.5))),
    rotation_rad=st.one_of(st.just(0.0), st.floats(-4, 4)),
)


@given(areas, areas, st.floats(0, 0.4))
def test_two_areas_share_a_cell_where_the_cells_named_for_each_do(one, other, around_nm):
    mine, its = CellsTouched(one, CELL_NM), CellsTouched(other, CELL_NM, around_nm)
    assert mine.shares_one_with(its) == bool(set(mine.cells()) & set(its.cells()))
    assert its.shares_one_with(mine) == mine.shares_one_with(its)


@given(st.lists(areas, max_size=12), areas, st.floats(0, 0.4))
def test_a_place_is_due_unless_one_before_it_touched_its_cells(before, place, distance_nm):
    visits = Visits(CELL_NM, 5.0, distance_nm)
    for at_s, one in enumerate(before):
        visits.note(one, float(at_s))
    now_s = len(before) + 2.0
    recent = [one for at_s, one in enumerate(before) if now_s - at_s < 5.0]
    wanted = set(CellsTouched(place, CELL_NM).cells())
    is_near = any(wanted & set(CellsTouched(one, CELL_NM, distance_nm).cells()) for one in recent)
    assert visits.are_due(place, (), now_s) == (not is_near)
    assert visits.are_due(place, before, now_s + 99.0) == (
        not any(wanted & set(CellsTouched(one, CELL_NM, distance_nm).cells()) for one in before)
    )
    again = Visits(CELL_NM, 5.0, distance_nm)
    again.restore(unpack(pack(visits.state()), VisitsState))
    assert again.state() == visits.state()
    assert again.are_due(place, (), now_s) == (not is_near)


def test_after_a_loss_everywhere_waits_for_the_last_visit():
    visits = Visits(CELL_NM, 5.0, 0.0)
    visits.note(Rectangle((0.0, 0.0)), 1.0)
    visits.note(Rectangle((1.0, 0.0)), 2.0)
    visits.lose()
    far = Rectangle((50.0, 50.0))
    assert not visits.are_due(far, (), 6.9)
    assert visits.are_due(far, (), 7.0)
    assert visits.state() == VisitsState([], 2.0)


def test_what_hinders_nobody_any_more_is_forgotten():
    visits = Visits(CELL_NM, 5.0, 0.3)
    for at_s in range(100):
        visits.note(Rectangle((0.37 * at_s, 0.0), (0.3, 0.2), 0.4), float(at_s))
    assert [at_s for _, at_s in visits.state().visited] == [95.0, 96.0, 97.0, 98.0, 99.0]
    assert len(visits._in_block) <= 5 * 9
    none = Visits(CELL_NM, 0.0, 0.3)
    none.note(Rectangle((0.0, 0.0)), 1.0)
    assert none.state() == VisitsState([], -math.inf)


@pytest.mark.parametrize("is_scan", [False, True])
def test_a_review_takes_no_longer_after_a_thousand_visits_than_after_a_dozen(is_scan):
    costs = [of_a_night(1_000, is_scan=is_scan) for _ in range(2)]
    first_us, last_us = (min(cost[name] for cost in costs) for name in ("first_us", "last_us"))
    assert last_us < 2 * first_us
    assert last_us < 1_000
