"""What is forbidden holds where it lies, and everywhere while nobody knows where that is."""

from __future__ import annotations

import math

import msgspec
import pytest

from streamer.areas import Rectangle
from streamer.codec import pack, unpack
from streamer.forbidden import ForbiddenAreas, ForbiddenState
from streamer.messages import Control

SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
# Open to the right: its middle is outside.
HOOK = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.1), (0.1, 0.1), (0.1, 0.9), (1.0, 0.9), (1.0, 1.0), (0.0, 1.0))


def touched(areas: ForbiddenAreas, x: float, y: float, **size: object) -> bool:
    return areas.touched_by(Rectangle((x, y), **size)) is not None  # type: ignore[arg-type]


def vetoed(*corners_nm: tuple[float, float], radius_nm: float = 0.0) -> ForbiddenAreas:
    areas = ForbiddenAreas()
    areas.veto(corners_nm, radius_nm)
    return areas


def test_a_vetoed_polygon_holds_inside_it_and_as_far_around_it_as_was_said():
    areas = vetoed(*SQUARE, radius_nm=0.2)
    for place in ((0.5, 0.5), (1.0, 0.3), (1.19, 0.5), (1.14, 1.14)):
        assert touched(areas, *place), place
    for place in ((1.21, 0.5), (1.15, 1.15), (-0.21, 0.0)):
        assert not touched(areas, *place), place


def test_a_bay_of_a_polygon_is_free_but_not_for_a_scan_that_reaches_out_of_it():
    areas = vetoed(*HOOK)
    assert not touched(areas, 0.5, 0.5)
    assert not touched(areas, 0.5, 0.5, size_nm=(0.7, 0.7))
    assert touched(areas, 0.5, 0.5, size_nm=(0.7, 0.7), rotation_rad=math.pi / 4)
    assert touched(areas, 0.5, 0.5, size_nm=(3.0, 0.1)), (
        "it crosses, though no corner of either is in the other"
    )
    assert touched(areas, 0.5, 0.5, size_nm=(3.0, 3.0)), "all of it is within"


def test_a_vetoed_disc_holds_for_any_part_of_a_scan():
    areas = vetoed((0.0, 0.0), radius_nm=0.5)
    assert touched(areas, 0.3, 0.3999)
    assert not touched(areas, 0.3, 0.4001)
    assert touched(areas, 5.0, 0.0, size_nm=(9.1, 0.1))
    assert not touched(areas, 5.0, 0.0, size_nm=(8.9, 0.1))
    assert touched(areas, 0.0, 0.0, size_nm=(9.0, 9.0))


def test_the_area_that_is_touched_is_named_by_its_place_in_the_configuration():
    far = tuple((x + 5, y) for x, y in SQUARE)
    areas = ForbiddenAreas([SQUARE, far])
    areas.veto(((9.0, 0.0),), 0.1)
    found = [areas.touched_by(Rectangle((x, 0.5 if x < 9 else 0.0))) for x in (0.5, 5.5, 9.0)]
    assert [one.index for one in found] == [0, 1, -1]
    assert [one.is_veto for one in found] == [False, False, True]


def test_what_was_lost_is_placed_by_how_far_the_specimen_jumped_and_reaches_as_much_further_as_is_said():
    areas = ForbiddenAreas([SQUARE])
    areas.veto(((3.0, 0.0),), 0.1)
    areas.lose()
    assert areas.lost_in_words == "1 forbidden area and 1 veto"
    assert not touched(areas, 0.5, 0.5), "where it lies is not known"
    areas.place((10.0, -2.0), 0.3)
    assert areas.lost_in_words == ""
    assert not touched(areas, 0.5, 0.5)
    assert touched(areas, 10.5, -1.5)
    assert touched(areas, 11.29, -1.5)
    assert touched(areas, 13.39, -2.0)
    assert not touched(areas, 13.41, -2.0)


def test_what_is_gone_is_forgotten_and_what_was_vetoed_after_the_loss_is_not():
    areas = ForbiddenAreas([SQUARE, tuple((x + 5, y) for x, y in SQUARE)])
    areas.lose()
    areas.veto(((7.0, 7.0),), 0.1)
    assert areas.lost_in_words == "2 forbidden areas"
    areas.forget()
    assert areas.lost_in_words == ""
    assert not touched(areas, 0.5, 0.5)
    assert touched(areas, 7.0, 7.0)


def test_no_one_shift_places_what_was_lost_at_different_times():
    areas = ForbiddenAreas([SQUARE])
    areas.lose()
    areas.lose()
    assert not areas.are_apart, "of both jumps together one can say how far"
    areas.veto(((7.0, 7.0),), 0.1)
    areas.lose()
    assert areas.are_apart
    areas.forget()
    areas.veto(SQUARE, 0.0)
    areas.lose()
    assert not areas.are_apart


def test_nothing_is_lost_where_nothing_is_forbidden():
    areas = ForbiddenAreas()
    areas.lose()
    assert areas.lost_in_words == ""


@pytest.mark.parametrize("was_lost", [False, True])
def test_areas_go_on_after_a_restart_and_those_of_another_configuration_count_in_place_of_the_first(was_lost):
    first = ForbiddenAreas([SQUARE])
    first.veto(((7.0, 7.0),), 0.1)
    if was_lost:
        first.lose()
        first.place((1.0, 0.0))
    kept = unpack(pack(first.state()), ForbiddenState)
    same = ForbiddenAreas([SQUARE])
    same.restore(kept, was_lost=was_lost)
    assert same.state() == first.state()
    assert touched(same, 1.5 if was_lost else 0.5, 0.5)
    other = ForbiddenAreas([HOOK])
    other.restore(kept, was_lost=was_lost)
    assert touched(other, 8.0 if was_lost else 7.0, 7.0), "a veto is a person's and stays"
    assert not touched(other, 1.5, 0.5)
    assert other.lost_in_words == ("1 forbidden area" if was_lost else "")
    assert touched(other, 0.05, 0.5) != was_lost


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"action": "veto"}, "a veto takes one of them"),
        ({"action": "veto", "id": "a", "polygon_nm": SQUARE}, "a veto takes one of them"),
        (
            {"action": "veto", "polygon_nm": SQUARE[:2]},
            "control.polygon_nm has too few corners, 2; it takes three or more",
        ),
        (
            {"action": "veto", "polygon_nm": (SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3])},
            "crosses or touches",
        ),
        ({"action": "veto", "polygon_nm": ((0.0, 0.0), (1.0, math.nan), (1.0, 1.0))}, "finite numbers"),
        ({"action": "veto", "polygon_nm": ((0.0, 0.0),) * 1000}, "it takes up to 200"),
        ({"action": "pause", "polygon_nm": SQUARE}, "goes with action 'veto'"),
        ({"action": "veto", "position_nm": (math.inf, 0.0)}, "control.position_nm is .*finite numbers"),
        ({"action": "veto", "position_nm": (0.0, 0.0), "radius_nm": math.nan}, "control.radius_nm is nan"),
        ({"action": "place"}, "control.shift_nm goes with action 'place', and only with it"),
        ({"action": "veto", "id": "a", "shift_nm": (0.0, 0.0)}, "control.shift_nm goes with action 'place'"),
    ],
)
def test_a_veto_or_a_place_that_makes_no_sense_says_so(fields, says):
    with pytest.raises(ValueError, match=says):
        Control(**fields)


def test_a_veto_says_in_words_what_it_forbids():
    polygon = Control(action="veto", polygon_nm=SQUARE, radius_nm=0.25)
    around = "all in a polygon of 4 corners around (0.5, 0.5) nm"
    assert polygon.forbidden_in_words == f"{around} and within 0.25 nm of it"
    assert msgspec.structs.replace(polygon, radius_nm=0.0).forbidden_in_words == around
    disc = Control(action="veto", position_nm=(0.0, -1.5), radius_nm=0.5)
    assert disc.forbidden_in_words == "all within 0.5 nm of (0, -1.5) nm"
    assert Control(action="veto", id="a-1").forbidden_in_words == "a-1"
