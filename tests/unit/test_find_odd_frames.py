"""FindAtoms on frames that are not what a frame should be, and what it does for columns that were missed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.column_fit import NoiseLaw, fit_jointly
from streamer.messages import Frame
from streamer.stage import Rejected
from streamer.stages.find_atoms import FindAtoms, FindConfig, Method
from tests.unit.test_find_atoms import SIGMA_NM, drawn, found_nm, honeycomb, recall_and_precision

PIXEL_NM = 0.0125
METHODS: tuple[Method, Method] = ("network", "laplacian")


def graphene(counts: float = 60.0) -> tuple[Frame, NDArray[np.float64]]:
    sites = honeycomb((2.0, 2.5))
    return drawn(sites, np.full(len(sites), counts), rng=np.random.default_rng(21)), sites


def with_image(frame: Frame, image: NDArray[np.float32]) -> Frame:
    return structs.replace(frame, image=np.ascontiguousarray(image, dtype=np.float32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 7.0, math.nan, math.inf])
def test_a_frame_of_one_value_is_rejected_as_without_atoms(value: float, method: Method) -> None:
    frame, _ = graphene()
    with pytest.raises(Rejected, match="no atoms"):
        FindAtoms(FindConfig(method=method)).process(with_image(frame, np.full_like(frame.image, value)))


@pytest.mark.parametrize("method", METHODS)
def test_a_patch_of_missing_pixels_hides_its_own_columns_and_no_others(method: Method) -> None:
    frame, sites = graphene()
    image = frame.image.copy()
    image[0, 60:90, 80:110] = math.nan
    atoms = FindAtoms(FindConfig(method=method)).process(with_image(frame, image))
    row, col = np.rint(atoms.positions_px).astype(int).T
    assert np.isfinite(image[0, row, col]).all()
    far = np.hypot(*(sites - np.array([75, 95]) * PIXEL_NM).T) > 0.45
    recall, _ = recall_and_precision(atoms, sites[far])
    assert recall >= 0.97
    assert cKDTree(sites).query(found_nm(atoms))[0].max() < 0.08


@pytest.mark.parametrize("method", METHODS)
def test_a_frame_that_was_blanked_half_way_has_its_columns_in_the_half_that_was_scanned(
    method: Method,
) -> None:
    frame, sites = graphene()
    image = frame.image.copy()
    image[0, 80:] = 0
    atoms = FindAtoms(FindConfig(method=method)).process(with_image(frame, image))
    recall, _ = recall_and_precision(atoms, sites[sites[:, 0] < 74 * PIXEL_NM])
    assert recall >= 0.97
    assert atoms.positions_px[:, 0].max() < 84


@pytest.mark.parametrize("method", METHODS)
def test_a_detector_that_saturates_still_shows_where_columns_are(method: Method) -> None:
    frame, sites = graphene()
    image = np.minimum(frame.image, np.float32(np.percentile(frame.image, 85)))
    recall, precision = recall_and_precision(
        FindAtoms(FindConfig(method=method)).process(with_image(frame, image)), sites
    )
    assert recall >= 0.97
    assert precision >= 0.97


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 64), (12, 12)])
def test_a_frame_with_room_for_no_column_is_rejected_and_does_no_harm(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(22)
    frame = drawn(np.empty((0, 2)), np.empty(0), shape=shape, rng=rng)
    try:
        atoms = FindAtoms().process(frame)
    except Rejected:
        return
    assert np.isfinite(atoms.positions_px).all()


def test_a_column_that_no_candidate_stands_for_is_left_by_the_fit() -> None:
    frame, sites = graphene()
    places = sites / PIXEL_NM
    whole = fit_jointly(frame.image[0], places, np.full(len(places), 60.0), (3.6, 3.6), NoiseLaw())
    assert (whole.missed_significance < 6).all()
    middle = int(cKDTree(sites).query([1.0, 1.25])[1])
    rest = np.delete(places, middle, axis=0)
    fit = fit_jointly(frame.image[0], rest, np.full(len(rest), 60.0), (3.6, 3.6), NoiseLaw())
    surest = int(np.argmax(fit.missed_significance))
    assert fit.missed_significance[surest] > 6
    assert np.hypot(*(fit.missed_px[surest] - places[middle])) < 2
    assert fit.missed_amplitude[surest] == pytest.approx(60, rel=0.4)


def test_a_column_that_the_finder_missed_is_found_in_what_the_fit_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame, sites = graphene()
    middle = sites[int(cKDTree(sites).query([1.0, 1.25])[1])]
    stage = FindAtoms(FindConfig(method="laplacian", column_sigma_nm=SIGMA_NM))
    maxima = stage._maxima

    def without_one(*arguments: object) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        positions, confidence = maxima(*arguments)  # type: ignore[arg-type]
        keep = np.hypot(*(positions - middle / PIXEL_NM).T) > 4
        assert np.count_nonzero(~keep) == 1
        return positions[keep], confidence[keep]

    monkeypatch.setattr(stage, "_maxima", without_one)
    distance, _ = cKDTree(found_nm(stage.process(frame))).query(middle)
    assert distance < 0.02
