"""LinkAtoms keeps an atom's track while it can be followed, and never gives a track twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import trackpy
from numpy.typing import NDArray

from streamer.messages import Latents, Registration, ScanGeometry
from streamer.stages.link_atoms import LinkAtoms, LinkConfig, linked

Make = Callable[..., Latents]
PLACES = np.array([[x, y] for x in range(5) for y in range(4)]) * 0.142


@pytest.fixture
def seen(make_latents: Make) -> Callable[..., Latents]:
    """Make the latents of atoms at places in nm."""

    def make(places: NDArray[np.floating], revision: int = 0) -> Latents:
        n = len(places)
        return make_latents(
            n,
            positions_nm=np.asarray(places, dtype=np.float32).reshape(n, 2),
            track=np.full(n, -1, dtype=np.int64),
            registration=Registration(revision=revision),
        )

    return make


def test_the_first_frame_gives_every_atom_a_track(seen: Make) -> None:
    np.testing.assert_array_equal(LinkAtoms().process(seen(PLACES)).track, np.arange(20))


def test_atoms_keep_their_tracks_whatever_their_order(seen: Make) -> None:
    rng = np.random.default_rng(1)
    link = LinkAtoms()
    link.process(seen(PLACES))
    for _ in range(5):
        order = rng.permutation(20)
        moved = PLACES + rng.normal(0, 0.005, PLACES.shape)
        np.testing.assert_array_equal(link.process(seen(moved[order])).track, order)


def test_an_atom_that_was_missing_for_three_frames_keeps_its_track(seen: Make) -> None:
    link = LinkAtoms(LinkConfig(memory_frames=3))
    link.process(seen(PLACES))
    for _ in range(3):
        link.process(seen(np.delete(PLACES, 7, axis=0)))
    np.testing.assert_array_equal(link.process(seen(PLACES)).track, np.arange(20))


def test_an_atom_that_was_missing_for_longer_is_a_new_one(seen: Make) -> None:
    link = LinkAtoms(LinkConfig(memory_frames=3))
    link.process(seen(PLACES))
    for _ in range(4):
        link.process(seen(np.delete(PLACES, 7, axis=0)))
    tracks = link.process(seen(PLACES)).track
    assert tracks[7] == 20
    np.testing.assert_array_equal(np.delete(tracks, 7), np.delete(np.arange(20), 7))


def test_an_atom_that_jumped_further_than_the_range_is_a_new_one(seen: Make) -> None:
    link = LinkAtoms(LinkConfig(search_range_nm=0.05))
    link.process(seen(PLACES))
    jumped = PLACES.copy()
    jumped[3] += 5.0
    assert link.process(seen(jumped)).track[3] == 20


def test_where_pixels_are_coarse_a_site_may_go_four_of_them(seen: Make) -> None:
    def coarse(places: NDArray[np.floating]) -> Latents:
        raster = ScanGeometry(shape=(256, 256), field_of_view_nm=(1024.0, 1024.0))
        return msgspec.structs.replace(seen(places), geometry=raster)

    link = LinkAtoms()
    link.process(coarse(300 * PLACES))
    moved = 300 * PLACES
    moved[3, 0] += 14
    moved[8, 0] += 19
    tracks = link.process(coarse(moved)).track
    assert (tracks[3], tracks[8]) == (3, 20)


def test_crowded_sites_are_not_taken_for_each_other_where_pixels_are_coarse(seen: Make) -> None:
    raster = ScanGeometry(shape=(256, 256), field_of_view_nm=(1024.0, 1024.0))
    link = LinkAtoms()
    link.process(msgspec.structs.replace(seen(40 * PLACES), geometry=raster))
    moved = 40 * PLACES
    moved[-1] += [3.0, 0.0]  # neighbours are 5.7 nm apart
    assert link.process(msgspec.structs.replace(seen(moved), geometry=raster)).track[-1] == 20


def test_new_atoms_are_numbered_in_their_order(seen: Make) -> None:
    link = LinkAtoms()
    link.process(seen(PLACES[:5]))
    np.testing.assert_array_equal(link.process(seen(PLACES)).track, np.arange(20))


def test_another_revision_starts_anew_and_uses_no_track_again(seen: Make) -> None:
    link = LinkAtoms()
    link.process(seen(PLACES))
    link.process(seen(PLACES))
    np.testing.assert_array_equal(link.process(seen(PLACES, revision=1)).track, np.arange(20, 40))
    np.testing.assert_array_equal(link.process(seen(PLACES, revision=1)).track, np.arange(20, 40))


def test_two_sessions_in_one_process_do_not_share_tracks(seen: Make) -> None:
    one, other = LinkAtoms(), LinkAtoms()
    one.process(seen(PLACES))
    one.process(seen(PLACES))
    other.process(seen(PLACES[:3]))
    other.process(seen(PLACES[:3]))
    late = np.concatenate([PLACES, [[3.0, 3.0], [4.0, 4.0]]])
    np.testing.assert_array_equal(one.process(seen(late)).track, np.arange(22))
    np.testing.assert_array_equal(other.process(seen(PLACES[:5])).track, np.arange(5))


def test_a_crowd_in_one_spot_keeps_its_tracks_and_those_of_all_others(seen: Make) -> None:
    rng = np.random.default_rng(3)
    crowd = np.concatenate([PLACES + 1.0, rng.uniform(0, 0.05, (60, 2))])
    link = LinkAtoms()
    link.process(seen(crowd))
    np.testing.assert_array_equal(link.process(seen(crowd)).track, np.arange(80))


def test_frames_without_atoms_are_no_trouble(seen: Make) -> None:
    link = LinkAtoms()
    assert link.process(seen(np.empty((0, 2)))).track.shape == (0,)
    np.testing.assert_array_equal(link.process(seen(PLACES)).track, np.arange(20))
    assert link.process(seen(np.empty((0, 2)))).track.shape == (0,)


@pytest.mark.parametrize(("name", "value"), [("search_range_nm", 0.0), ("memory_frames", -1)])
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"link.{name} is {value}; it takes"):
        LinkConfig(**{name: value})


def test_links_are_those_of_trackpy_through_drift_noise_and_vanishing_atoms(seen: Make) -> None:
    """Seed 33; where neighbours are in reach of each other, thousands of links are in doubt."""
    rng = np.random.default_rng(33)
    lattice = np.array([[x, y] for x in range(15) for y in range(14)]) * 0.142
    for reach_nm in (0.06, 0.11):
        link, reference = LinkAtoms(LinkConfig(search_range_nm=reach_nm)), TrackpyLinks(reach_nm, memory=3)
        for number in range(40):
            moved = lattice + rng.normal(0, 0.02, lattice.shape) + [0.003 * number, 0]
            found = rng.permutation(moved[rng.random(len(lattice)) > 0.1]).astype(np.float32)
            np.testing.assert_array_equal(link.process(seen(found)).track, reference.tracks(found))
        assert reference.new_track > len(lattice)  # some stayed away for too long


class TrackpyLinks:
    """Tracks as trackpy gives them, numbered in the order of the atoms."""

    def __init__(self, reach_nm: float, memory: int) -> None:
        trackpy.quiet()
        self._linker = trackpy.linking.Linker(reach_nm, memory=memory, link_strategy="recursive")
        self.new_track = 0

    def tracks(self, places: NDArray[np.floating]) -> list[int]:
        advance = self._linker.init_level if self._linker.hash is None else self._linker.next_level
        advance(places.astype(np.float64), 0)
        return [self._number(point.track) for point in self._linker.hash.points]

    def _number(self, track: Any) -> int:
        if not hasattr(track, "number"):
            track.number = self.new_track
            self.new_track += 1
        return int(track.number)


def test_of_two_that_want_one_partner_the_sum_of_squares_decides() -> None:
    # 0 is nearest to the only atom that 1 can reach: giving that to 1 leaves no one alone.
    known = np.array([[0.0, 0.0], [0.09, 0.0]])
    found = np.array([[0.04, 0.0], [-0.05, 0.0]])
    np.testing.assert_array_equal(linked(known, found, 0.06), [1, 0])
    # Alone with both, it goes to the nearer one.
    np.testing.assert_array_equal(linked(known, found[:1], 0.06), [0])


def test_what_was_learnt_can_be_handed_on_after_any_frame(seen: Make) -> None:
    rng = np.random.default_rng(5)
    frames = [
        seen((PLACES + rng.normal(0, 0.005, PLACES.shape))[rng.random(20) > 0.3], revision=number // 8)
        for number in range(16)
    ]
    expected = tracks_of(LinkAtoms(LinkConfig(memory_frames=2)), frames)
    for number in range(16):
        first, heir = LinkAtoms(LinkConfig(memory_frames=2)), LinkAtoms(LinkConfig(memory_frames=2))
        tracks = tracks_of(first, frames[:number])
        heir.restore(*first.state())
        assert tracks + tracks_of(heir, frames[number:]) == expected


def tracks_of(link: LinkAtoms, frames: list[Latents]) -> list[list[int]]:
    return [link.process(latents).track.tolist() for latents in frames]


def test_a_state_stays_as_it_was_said(seen: Make) -> None:
    link = LinkAtoms()
    link.process(seen(PLACES))
    _, arrays = link.state()
    kept = {name: array.copy() for name, array in arrays.items()}
    link.process(seen(PLACES + 0.01)).track[:] = -7
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, kept[name])
        assert not array.flags.writeable


def test_arrays_that_do_not_belong_together_are_refused_and_change_nothing(seen: Make) -> None:
    link = LinkAtoms()
    link.process(seen(PLACES))
    facts, arrays = link.state()
    with pytest.raises(ValueError, match="unlike lengths; they are no state"):
        link.restore(facts, arrays | {"missing": arrays["missing"][1:]})
    np.testing.assert_array_equal(link.process(seen(PLACES)).track, np.arange(20))
