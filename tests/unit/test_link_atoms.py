"""LinkAtoms keeps an atom's track while it can be followed, and never gives a track twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.messages import Latents, Registration
from streamer.stages.link_atoms import LinkAtoms, LinkConfig

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


def test_atoms_too_crowded_to_be_told_apart_start_anew(seen: Make) -> None:
    rng = np.random.default_rng(3)
    crowd = rng.uniform(0, 0.05, (60, 2))
    link = LinkAtoms()
    link.process(seen(crowd))
    np.testing.assert_array_equal(link.process(seen(crowd)).track, np.arange(60, 120))


def test_frames_without_atoms_are_no_trouble(seen: Make) -> None:
    link = LinkAtoms()
    assert link.process(seen(np.empty((0, 2)))).track.shape == (0,)
    np.testing.assert_array_equal(link.process(seen(PLACES)).track, np.arange(20))
    assert link.process(seen(np.empty((0, 2)))).track.shape == (0,)


@pytest.mark.parametrize(("name", "value"), [("search_range_nm", 0.0), ("memory_frames", -1)])
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"link.{name} is {value}; it takes"):
        LinkConfig(**{name: value})
