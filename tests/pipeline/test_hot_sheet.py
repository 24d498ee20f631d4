"""What the beam does to a sheet goes through the whole data path: tracks end and begin where atoms do.

The truth is asked for after each frame, so it is known which atoms went, came and moved while it was taken.
An atom that is hit in the middle of a frame may have been scanned before or after that: what it became is
surely seen in the next one. The rates are raised so that two to three events fall into each frame.

Rates and limits were chosen with the seed that is here. With seeds 3 and 9 all tests pass as well. With 11
and 12 one test fails by its number alone: fewer atoms come (2), or go (4), than it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from simulators.kinetics import KineticsConfig
from simulators.simulator import Truth
from simulators.specimen import SpecimenConfig
from simulators.stem import StemConfig, StemInstrument
from streamer.pipeline import Pipeline, PipelineConfig, Processed
from streamer.stages.link_atoms import LinkConfig

SEED = 5
FRAMES = 24
SETTLED = 3  # frames in a row make a track one that is believed
MEMORY = LinkConfig().memory_frames
FOUND_NM = 0.05
HARDLY_NM = 0.005  # an atom that moved less is the same for the eye
LINKED_NM = LinkConfig().search_range_nm
NEAR_NM = 0.25  # an event's place is the beam's, the atoms that move are the four or five around
MARGIN_NM = 0.35  # windows of atoms nearer to the edge are cut off in some frames and not in others
HOT = KineticsConfig(
    is_on=True,
    rate_factor=400.0,
    rotation_barn=0.02,
    back_rotation_barn=0.2,
    knock_out_barn=0.02,
    knock_out_two_fold_barn=0.05,
    healing_barn=0.5,
)

Places = NDArray[np.float64]


class NoMeter:
    """Nobody looks at the times here; a rejection would be a failure."""

    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        pytest.fail(f"{stage} rejected a frame of a hot sheet: {reason}")


@dataclass
class Session:
    """Frames that went through the pipeline, and what was true just after each."""

    processed: list[Processed]
    truths: list[Truth]

    def atoms(self, frame: int) -> dict[int, Places]:
        """Place of each atom in the first frame's coordinates, by its number."""
        truth = self.truths[frame]
        numbers = truth.get("atom_id", np.arange(len(truth["positions_nm"])))
        return dict(zip(numbers.tolist(), truth["positions_nm"] + truth["drift_nm"][0], strict=True))

    def events(self) -> tuple[NDArray[np.int64], Places]:
        """Frame and place of each."""
        truth = self.truths[-1]
        return truth["event_frame"], truth["event_position_nm"] + truth["drift_nm"][0]

    def is_inside(self, place_nm: Places) -> bool:
        """Whether a place is seen in every frame."""
        for one in self.processed:
            geometry = one.corrected.geometry
            margin_px = MARGIN_NM / np.array(geometry.pixel_size_nm)
            at = geometry.to_px(place_nm[None])[0]
            if np.any(at < margin_px) or np.any(at > np.array(geometry.shape) - 1 - margin_px):
                return False
        return True

    def track_at(self, frame: int, place_nm: Places) -> int | None:
        """Track of the atom that was found there."""
        latents = self.processed[frame].latents
        distance = np.linalg.norm(latents.positions_nm - place_nm, axis=1)
        nearest = int(distance.argmin())
        return int(latents.track[nearest]) if distance[nearest] < FOUND_NM else None

    def lives(self) -> dict[int, list[tuple[int, Places]]]:
        """Frames and places in which each track was seen, of those that lasted, off the edge."""
        seen: dict[int, list[tuple[int, Places]]] = {}
        for frame, one in enumerate(self.processed):
            for track, place in zip(one.latents.track.tolist(), one.latents.positions_nm, strict=True):
                seen.setdefault(track, []).append((frame, place))
        lasting = {track: life for track, life in seen.items() if len(life) >= SETTLED}
        return {t: life for t, life in lasting.items() if all(self.is_inside(life[n][1]) for n in (0, -1))}

    def births(self) -> list[tuple[int, Places]]:
        """Where and when tracks began."""
        return [life[0] for life in self.lives().values() if life[0][0] > 0]

    def deaths(self) -> list[tuple[int, Places]]:
        """Where and when they were last seen, early enough to tell that they did not come back."""
        return [life[-1] for life in self.lives().values() if life[-1][0] < FRAMES - 1 - MEMORY]

    def is_explained(self, frame: int, place_nm: Places, since: int, until: int) -> bool:
        """Whether something happened near to a place from so many frames before to so many after."""
        frames, places = self.events()
        then = (frames >= frame - since) & (frames <= frame + until)
        return bool(np.any(np.linalg.norm(places[then] - place_nm, axis=1) < NEAR_NM))


def watch(kinetics: KineticsConfig) -> Session:
    config = StemConfig(
        seed=SEED,
        rows=256,
        cols=256,
        field_of_view_nm=4.0,
        kinetics=kinetics,
        specimen=SpecimenConfig(has_grain_boundary=False, vacancies_per_nm2=0.1),
    )
    instrument = StemInstrument(config, started_at_s=1000.0)
    pipeline = Pipeline.build(PipelineConfig())
    session = Session([], [])
    for _ in range(FRAMES):
        processed = pipeline.process(instrument.acquire(), NoMeter())
        assert processed is not None
        session.processed.append(processed)
        session.truths.append(instrument.truth())
    return session


@pytest.fixture(scope="module")
def hot() -> Session:
    return watch(HOT)


@pytest.fixture(scope="module")
def cold() -> Session:
    return watch(KineticsConfig())


def changes(session: Session) -> tuple[list[tuple[int, Places]], ...]:
    """Atoms that went, came, and moved further than a link reaches: frame, and place before or after."""
    went, came, moved = [], [], []
    for frame in range(1, FRAMES - 1):
        before, after = session.atoms(frame - 1), session.atoms(frame)
        went += [(frame, before[atom]) for atom in before.keys() - after.keys()]
        came += [(frame, after[atom]) for atom in after.keys() - before.keys()]
        both = before.keys() & after.keys()
        moved += [(frame, after[a]) for a in both if np.linalg.norm(after[a] - before[a]) > LINKED_NM]
    return tuple([one for one in some if session.is_inside(one[1])] for some in (went, came, moved))


def test_where_nothing_happens_no_track_ends_or_begins(cold):
    """The same sheet, the same scan, the beam without effect: what the tests below see is not noise."""
    assert len(cold.lives()) > 300
    assert cold.births() == []
    assert cold.deaths() == []


def test_much_happens_and_the_frames_stay_where_they_were(hot):
    assert len(hot.events()[0]) > 30
    assert {one.corrected.registration.revision for one in hot.processed} == {0}


def test_the_track_of_an_atom_that_went_ends(hot):
    went, _, _ = changes(hot)

    assert len(went) >= 10
    for frame, place in went:
        track = hot.track_at(frame - 1, place)
        assert track is not None
        has_successor = min(np.linalg.norm(p - place) for p in hot.atoms(frame + 1).values()) < FOUND_NM
        assert has_successor or hot.track_at(frame + 1, place) is None


def test_an_atom_that_came_is_followed_from_the_next_frame_on(hot):
    _, came, _ = changes(hot)

    assert len(came) >= 3
    for frame, place in came:
        assert hot.track_at(frame + 1, place) is not None


def test_an_atom_that_moved_further_than_a_link_reaches_gets_another_track(hot):
    """Bonds that turn and rings that close: the ends of a bond are 0.1 nm from where they were."""
    *_, moved = changes(hot)
    tracks = [hot.track_at(frame + 1, place) for frame, place in moved]
    first_seen = {track: life[0][0] for track, life in hot.lives().items()}
    are_new = [first_seen.get(track, frame) >= frame for track, (frame, _) in zip(tracks, moved, strict=True)]

    assert len(moved) >= 15
    assert None not in tracks
    assert np.mean(are_new) > 0.75  # the rest took over the place, and so the track, of another


def test_tracks_end_and_begin_only_where_something_happened(hot):
    """By chance an eighth of births would be near to an event, ten in five frames of 16 nm²: derived."""
    births, deaths = hot.births(), hot.deaths()
    explained = [
        *(hot.is_explained(frame, place, since=1 + MEMORY, until=0) for frame, place in births),
        *(hot.is_explained(frame, place, since=0, until=1) for frame, place in deaths),
    ]

    assert min(len(births), len(deaths)) >= 15
    assert np.mean(explained) > 0.9


def test_atoms_that_stay_keep_their_tracks_beside_all_of_this(hot):
    kept = seen = 0
    for frame in range(1, FRAMES):
        before, after = hot.atoms(frame - 1), hot.atoms(frame)
        both = before.keys() & after.keys()
        still = [atom for atom in both if np.linalg.norm(before[atom] - after[atom]) < HARDLY_NM]
        tracks = []
        for then, places in ((frame - 1, before), (frame, after)):
            latents = hot.processed[then].latents
            distance, nearest = cKDTree(latents.positions_nm).query([places[atom] for atom in still])
            tracks.append(np.where(distance < FOUND_NM, latents.track[nearest], -1))
        are_seen = (tracks[0] >= 0) & (tracks[1] >= 0)
        kept += int((tracks[0] == tracks[1])[are_seen].sum())
        seen += int(are_seen.sum())

    assert seen > 300 * (FRAMES - 1)
    assert kept / seen > 0.999
