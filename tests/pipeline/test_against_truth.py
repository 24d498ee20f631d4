"""The data path judged against what the simulated instrument knows.

Settings were chosen on even seeds; the seeds here are odd.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from simulators.stem import StemConfig, StemInstrument
from streamer.pipeline import Pipeline, PipelineConfig, Processed

FRAMES = 24
MATCH_NM = 0.05
MARGIN_NM = 0.15
SILICON = 14


class NoMeter:
    """Nobody looks at the times here; a rejection would be a failure."""

    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        pytest.fail(f"{stage} rejected a simulated frame: {reason}")


@pytest.fixture(scope="module", params=[1, 3])
def session(request: pytest.FixtureRequest) -> tuple[list[Processed], dict[str, NDArray[Any]]]:
    """A short session with the default instrument: 60 counts, drift, jitter and fly-back."""
    instrument = StemInstrument(StemConfig(seed=request.param), started_at_s=1000.0)
    pipeline = Pipeline.build(PipelineConfig())
    processed = [pipeline.process(instrument.acquire(), NoMeter()) for _ in range(FRAMES)]
    truth = instrument.truth()
    return [one for one in processed if one is not None], truth


def specimen_nm(truth: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Atoms where the first frame, the reference, saw them."""
    positions: NDArray[np.float64] = truth["positions_nm"] + truth["drift_nm"][0]
    return positions


def inside(one: Processed, places_nm: NDArray[np.float64], margin_nm: float) -> NDArray[np.bool_]:
    geometry = one.corrected.geometry
    margin_px = margin_nm / np.array(geometry.pixel_size_nm)
    places = geometry.to_px(places_nm)
    far = np.array(geometry.shape) - 1 - margin_px
    return np.asarray(np.all((places > margin_px) & (places < far), axis=1))


def test_the_drift_is_recovered_within_a_fifth_of_a_pixel(session: Any) -> None:
    processed, truth = session
    found = np.array([one.corrected.registration.drift_nm for one in processed])
    expected = truth["drift_nm"] - truth["drift_nm"][0]
    error_px = (found - expected) / truth["pixel_size_nm"]
    moved_px = np.linalg.norm(expected[-1]) / truth["pixel_size_nm"]
    assert moved_px > 3
    assert np.sqrt((error_px**2).sum(axis=1).mean()) < 0.2


def test_no_frame_loses_the_reference(session: Any) -> None:
    processed, _ = session
    assert len(processed) == FRAMES
    assert {one.corrected.registration.revision for one in processed} == {0}


def test_the_atoms_are_found_and_hardly_anything_else(session: Any) -> None:
    processed, truth = session
    sites = specimen_nm(truth)
    for one in processed:
        found = one.corrected.geometry.to_nm(one.atoms.positions_px)
        to_found, _ = cKDTree(found).query(sites[inside(one, sites, MARGIN_NM)])
        to_site, _ = cKDTree(sites).query(found[inside(one, found, MARGIN_NM)])
        assert np.mean(to_found < MATCH_NM) >= 0.97
        assert np.mean(to_site < MATCH_NM) >= 0.97


def test_an_atom_stays_within_half_a_pixel_from_frame_to_frame(session: Any) -> None:
    processed, truth = session
    places: dict[int, list[NDArray[np.float64]]] = {}
    for one in processed:
        for track, place in zip(one.latents.track, one.latents.positions_nm, strict=True):
            places.setdefault(int(track), []).append(place)
    followed = [np.array(path) for path in places.values() if len(path) == FRAMES]
    stray_px = np.concatenate([path - path.mean(axis=0) for path in followed]) / truth["pixel_size_nm"]
    assert len(followed) > 1000
    assert stray_px.std(axis=0).max() < 0.5


def test_atoms_are_followed_through_the_session(session: Any) -> None:
    processed, truth = session
    tree = cKDTree(specimen_nm(truth))
    site_of: dict[int, int] = {}
    right = seen = 0
    for one in processed:
        _, site = tree.query(one.latents.positions_nm)
        for track, atom in zip(one.latents.track, site, strict=True):
            right += site_of.setdefault(int(track), int(atom)) == atom
            seen += 1
    assert right / seen > 0.999
    in_last = set(processed[-1].latents.track.tolist())
    in_first = set(processed[0].latents.track.tolist())
    assert len(in_last & in_first) / len(in_last) > 0.9


def test_the_latents_tell_silicon_from_carbon(session: Any) -> None:
    """Two clusters, found without any label, against the elements: ARI of at least 0.9."""
    processed, truth = session
    sites = specimen_nm(truth)
    last = processed[-1].latents
    distance, site = cKDTree(sites).query(last.positions_nm)
    known = distance < MATCH_NM
    is_silicon = truth["numbers"][site[known]] == SILICON
    assert is_silicon.sum() >= 3
    latents = last.mean[known]
    cluster = KMeans(2, n_init=10, random_state=0).fit_predict(latents)
    assert adjusted_rand_score(is_silicon, cluster) >= 0.9
