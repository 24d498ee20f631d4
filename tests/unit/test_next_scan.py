"""Which region is scanned next, by hand-made frames of 400 atoms on a grid."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from agents.candidates import Candidates, FrameFacts
from agents.next_scan import Known, Region, ScanConfig, Scans, regions

SIDE = 20
STEP_NM = 0.2
EDGE_NM = 1.0
NOTHING = np.zeros((0, 2))


def frame(
    number: int = 0,
    *,
    without: np.ndarray | None = None,
    moved: np.ndarray | None = None,
    novel: np.ndarray | None = None,
    noise: float = 1.0,
    revision: str = "m",
) -> Candidates:
    """See 20 × 20 atoms from 0 to 3.8 nm; some are gone, have other latents by 10 sd, or are novel."""
    view = np.random.default_rng([3, number])
    track = np.arange(SIDE * SIDE)
    position_nm = STEP_NM * np.stack([track % SIDE, track // SIDE], axis=1).astype(float)
    mean = 0.1 * noise * view.normal(0, 1, (track.size, 3))
    novelty = np.zeros(track.size)
    if moved is not None:
        mean[moved, 0] += 1.0
    if novel is not None:
        novelty[novel] = 5.0
    kept = np.setdiff1d(track, [] if without is None else without)
    facts = FrameFacts("s", number, 0.0, 0, revision, (1.9, 1.9), (4.0, 4.0))
    return Candidates(
        facts,
        mean[kept],
        np.full((kept.size, 3), 0.1),
        position_nm[kept],
        position_nm[kept],
        kept,
        None,
        novelty[kept],
    )


def atoms_in(x: float, y: float, half: float = 0.25) -> np.ndarray:
    """Tracks of the atoms within so much of a place."""
    track = np.arange(SIDE * SIDE)
    return track[
        (np.abs(STEP_NM * (track % SIDE) - x) < half) & (np.abs(STEP_NM * (track // SIDE) - y) < half)
    ]


def seen(*frames: Candidates) -> Known:
    known = Known.first(frames[0])
    for one in frames[1:]:
        known = known.and_frame(one, 0.1)
    return known


def best(candidates: Candidates, known: Known, looked_nm: np.ndarray = NOTHING) -> Region:
    return max(regions(candidates, known, looked_nm, EDGE_NM), key=lambda region: region.news)


def holds(region: Region, x: float, y: float) -> bool:
    low, high = region.corners_nm
    return bool((low <= (x, y)).all() and (high >= (x, y)).all())


def test_regions_overlap_by_half_and_lie_within_the_atoms():
    made = regions(frame(), seen(frame()), NOTHING, EDGE_NM)
    x, y = np.array([one.center_nm for one in made]).T
    assert len(made) == 49
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((0.5, 3.3, 0.5, 3.3))
    assert np.diff(np.unique(x.round(9))).max() <= EDGE_NM / 2


def test_a_field_smaller_than_a_region_has_none():
    assert regions(frame(), seen(frame()), NOTHING, 3.9) == []


def test_in_noise_alone_nothing_is_news():
    for start in range(0, 60, 20):
        frames = [frame(number) for number in range(start, start + 20)]
        assert best(frames[-1], seen(*frames)).news == 0


def test_atoms_whose_latents_change_are_counted_where_they_are():
    changed = atoms_in(2.8, 0.8)
    frames = [frame(0), frame(1), *(frame(n, moved=changed) for n in range(2, 6))]
    region = best(frames[-1], seen(*frames))
    assert (region.changed, region.news) == (changed.size, changed.size) == (9, 9)
    assert holds(region, 2.8, 0.8)
    assert region.reason == "look again: atoms 9 changed"


def test_an_atom_that_is_missed_once_is_not_gone_and_twice_is():
    lost = atoms_in(1.0, 3.0)
    once = [frame(0), frame(1, without=lost), frame(2)]
    assert best(once[1], seen(*once[:2])).gone == 0
    assert best(once[2], seen(*once)).news == 0
    twice = [frame(0), frame(1, without=lost), frame(2, without=lost)]
    region = best(twice[-1], seen(*twice))
    assert (region.gone, region.changed) == (lost.size, 0)
    assert holds(region, 1.0, 3.0)


def test_an_atom_that_comes_to_stay_is_counted_and_one_that_was_noise_is_not():
    place = atoms_in(1.0, 1.0, 0.15)
    stays = [frame(0, without=place), frame(1), frame(2)]
    assert best(stays[1], seen(*stays[:2])).come == 0
    assert best(stays[2], seen(*stays)).come == place.size == 1
    passes = [frame(0, without=place), frame(1), frame(2, without=place), frame(3, without=place)]
    assert best(passes[-1], seen(*passes)).news == 0


def test_what_leaves_the_field_is_not_gone():
    rim = np.flatnonzero(np.arange(SIDE * SIDE) % SIDE == 0)
    frames = [frame(0), *(frame(n, without=rim) for n in range(1, 5))]
    known = seen(*frames)
    assert best(frames[-1], known).news == 0
    assert known.track.size == SIDE * (SIDE - 1)


def test_novel_atoms_are_news_until_they_were_looked_at():
    novel = atoms_in(0.8, 2.8)
    now = frame(1, novel=novel)
    region = best(now, seen(frame(0), now))
    assert (region.novel, region.news) == (9, 9)
    assert region.reason == "look closer: atoms 9 novel"
    assert best(now, seen(frame(0), now), np.array([region.center_nm])).news == 0
    assert best(now, seen(frame(0), now), np.array([[3.3, 0.5]])).news == 9


def test_a_part_with_few_atoms_is_news_until_it_was_looked_at():
    hole = atoms_in(2.0, 2.0, 0.5)
    now = frame(0, without=hole)
    region = best(now, seen(now))
    assert region.missing == region.news
    assert 15 <= region.missing <= hole.size == 25
    assert holds(region, 2.0, 2.0)
    assert best(now, seen(now), np.array([region.center_nm])).missing == 0


def test_atoms_that_went_are_not_counted_as_missing_too():
    hole = atoms_in(2.0, 2.0, 0.35)
    frames = [frame(0), *(frame(n, without=hole) for n in range(1, 4))]
    region = best(frames[-1], seen(*frames))
    assert (region.gone, region.missing) == (hole.size, 0) == (9, 0)


def run(scans: Scans, frames: list[Candidates]) -> None:
    before = None
    for one in frames:
        scans.see(one, before)
        before = one


def test_what_was_scanned_is_no_news_until_it_changes_again():
    first, second = atoms_in(2.8, 0.8), atoms_in(2.4, 0.8, 0.15)
    frames = [frame(0), *(frame(n, moved=first) for n in range(1, 5))]
    scans = Scans(ScanConfig(every=2, field_share=0.25))
    run(scans, frames)
    region = scans.due(frames[-1], issued=7)
    assert region is not None
    scans.begin("a", region, 8)
    assert scans.due(frames[-1], issued=20) is None
    assert scans.end("a", is_decided=True)
    assert not scans.end("a", is_decided=True)
    assert scans.due(frames[-1], issued=20) is None
    later = [frame(n, moved=np.concatenate([first, second]), without=first[:2]) for n in range(5, 9)]
    run_on = [frames[-1], *later]
    for before, one in zip(run_on, later, strict=False):
        scans.see(one, before)
    again = scans.due(later[-1], issued=20)
    assert again is not None
    assert (again.changed, again.gone) == (1, 2)


def test_a_change_of_all_atoms_is_one_of_the_imaging_and_no_news():
    every = np.arange(SIDE * SIDE)
    frames = [frame(0), *(frame(n, moved=every) for n in range(1, 5))]
    scans = Scans(ScanConfig(every=1, field_share=0.25))
    run(scans, frames)
    assert best(frames[-1], seen(*frames)).changed > 20
    assert scans.due(frames[-1], issued=9) is None


def test_a_scan_that_came_in_the_middle_of_a_change_is_not_made_again_for_it():
    changed = atoms_in(2.8, 0.8)
    frames = [frame(0), frame(1, moved=changed), frame(2, moved=changed)]
    scans = Scans(ScanConfig(every=1, field_share=0.25))
    run(scans, frames)
    region = scans.due(frames[-1], issued=1)
    assert region is not None
    scans.begin("a", region, 2)
    scans.end("a", is_decided=True)
    run_on = [frames[-1], *(frame(n, moved=changed) for n in range(3, 7))]
    for before, one in pairwise(run_on):
        scans.see(one, before)
        assert scans.due(one, issued=9) is None


def test_few_changes_and_soon_after_another_scan_are_no_reason():
    frames = [frame(0), *(frame(n, moved=atoms_in(2.8, 0.8)) for n in range(1, 5))]
    patient, strict = Scans(ScanConfig(every=10, field_share=0.25)), Scans(ScanConfig(every=1, min_atoms=10))
    for scans in (patient, strict):
        run(scans, frames)
    assert patient.due(frames[-1], issued=8) is None
    assert patient.due(frames[-1], issued=9) is not None
    assert strict.due(frames[-1], issued=9) is None


def test_an_empty_frame_and_atoms_without_tracks_are_borne():
    empty = Candidates(
        frame().frame, np.zeros((0, 3)), np.zeros((0, 3)), NOTHING, NOTHING, np.zeros(0, np.int64)
    )
    trackless = replace(frame(1, novel=atoms_in(1.0, 1.0)), track=np.full(SIDE * SIDE, -1))
    scans = Scans(ScanConfig(every=1))
    run(scans, [empty, trackless, empty])
    assert scans.due(empty, 9) is None
    region = scans.due(trackless, 9)
    assert region is not None
    assert region.novel == region.news == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("every", -1),
        ("min_atoms", 0),
        ("field_share", 0.0),
        ("field_share", 1.5),
        ("pixels", 4),
        ("dwell_time_us", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"agent\.scan\.{name} is"):
        ScanConfig(**{name: value})
