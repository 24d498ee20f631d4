"""FindAtoms finds columns that were drawn at known places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.atom_finder import AtomFinder
from models.column_fit import fit_jointly
from models.laplacian_finder import FilteredFrame, FrameView, noise_growth
from streamer.messages import Atoms, Frame, ScanGeometry
from streamer.stage import Rejected
from streamer.stages.find_atoms import FindAtoms, FindConfig, Method, _seen_as_well

SIGMA_NM = 0.045


def drawn(
    sites_nm: NDArray[np.float64],
    heights: NDArray[np.float64],
    *,
    shape: tuple[int, int] = (160, 200),
    pixel_nm: float = 0.0125,
    background: float = 5.0,
    rng: np.random.Generator | None = None,
    channel: str = "HAADF",
) -> Frame:
    """Draw Gaussian columns at ``(row, col)`` positions in nm from the first pixel."""
    row, col = np.arange(shape[0]) * pixel_nm, np.arange(shape[1]) * pixel_nm
    image = np.full(shape, background)
    for (y, x), height in zip(sites_nm, heights, strict=True):
        across = np.exp(-((row - y) ** 2) / (2 * SIGMA_NM**2))
        along = np.exp(-((col - x) ** 2) / (2 * SIGMA_NM**2))
        image += height * np.outer(across, along)
    if rng is not None:
        image = rng.poisson(image)
    return Frame(
        session="s",
        number=0,
        acquired_at_s=1.0,
        image=image.astype(np.float32)[None],
        channels=(channel,),
        geometry=ScanGeometry(shape=shape, field_of_view_nm=(shape[1] * pixel_nm, shape[0] * pixel_nm)),
        dwell_time_us=1.0,
    )


def honeycomb(size_nm: tuple[float, float], angle_rad: float = 0.2) -> NDArray[np.float64]:
    """Graphene, ``(row, col)`` in nm, over the field and a margin."""
    i, j = np.meshgrid(np.arange(-40, 40), np.arange(-40, 40))
    a = 0.246
    cell = np.stack([(i + j / 2) * a, j * a * math.sqrt(3) / 2], axis=-1).reshape(-1, 2)
    both = np.concatenate([cell, cell + [a / 2, a / (2 * math.sqrt(3))]])
    turn = np.array([[math.cos(angle_rad), -math.sin(angle_rad)], [math.sin(angle_rad), math.cos(angle_rad)]])
    sites = both @ turn.T + np.array(size_nm) / 2
    return sites[((sites > -0.2) & (sites < np.array(size_nm) + 0.2)).all(axis=1)]


def found_nm(atoms: Atoms) -> NDArray[np.float64]:
    return atoms.positions_px.astype(np.float64) * np.array(atoms.frame.geometry.pixel_size_nm)


def recall_and_precision(
    atoms: Atoms, sites: NDArray[np.float64], margin_nm: float = 0.1
) -> tuple[float, float]:
    found = found_nm(atoms)
    last = (np.array(atoms.frame.geometry.shape) - 1) * np.array(atoms.frame.geometry.pixel_size_nm)

    def inside(places: NDArray[np.float64]) -> NDArray[np.float64]:
        return places[((places > margin_nm) & (places < last - margin_nm)).all(axis=1)]

    to_found, _ = cKDTree(found).query(inside(sites))
    to_site, _ = cKDTree(sites).query(inside(found))
    return float(np.mean(to_found < 0.05)), float(np.mean(to_site < 0.05))


def test_single_columns_are_placed_to_a_fiftieth_of_a_pixel() -> None:
    sites = np.array([[0.5, 0.61], [1.303, 0.7121], [0.9, 1.8037], [1.5, 1.5]])
    atoms = FindAtoms().process(drawn(sites, np.full(4, 100.0)))
    order = cKDTree(found_nm(atoms)).query(sites)[1]
    assert len(atoms.positions_px) == 4
    np.testing.assert_allclose(found_nm(atoms)[order], sites, atol=0.02 * 0.0125)


def test_background_contrast_and_amplitude_are_in_the_unit_of_the_image() -> None:
    sites = np.array([[0.5, 0.5], [1.4, 0.6], [0.6, 1.7], [1.5, 1.6], [1.0, 1.1]])
    atoms = FindAtoms().process(drawn(sites, np.array([100.0, 100, 100, 100, 300]), background=20.0))
    brightest = cKDTree(found_nm(atoms)).query(sites[4])[1]
    assert atoms.background == pytest.approx(20.0, abs=1.0)
    assert atoms.contrast == pytest.approx(100.0, rel=0.12)
    assert atoms.amplitude[brightest] / atoms.contrast == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("method", ["network", "laplacian"])
@pytest.mark.parametrize("counts", [60.0, 15.0])
def test_graphene_is_found_whole_through_shot_noise(counts: float, method: Method) -> None:
    sites = honeycomb((2.0, 2.5))
    frame = drawn(sites, np.full(len(sites), counts), rng=np.random.default_rng(3))
    recall, precision = recall_and_precision(FindAtoms(FindConfig(method=method)).process(frame), sites)
    assert recall >= 0.97
    assert precision >= 0.97


def test_the_carbon_neighbours_of_a_bright_dopant_are_found() -> None:
    sites = honeycomb((2.0, 2.5))
    middle = int(cKDTree(sites).query([1.0, 1.25])[1])
    neighbours = cKDTree(sites).query(sites[middle], k=4)[1][1:]
    away = sites[neighbours] - sites[middle]
    sites[neighbours] = sites[middle] + away * (0.17 / np.linalg.norm(away, axis=1))[:, None]
    heights = np.full(len(sites), 60.0)
    heights[middle] = 300.0
    found = found_nm(FindAtoms().process(drawn(sites, heights, rng=np.random.default_rng(5))))
    distance, _ = cKDTree(found).query(sites[[middle, *neighbours]])
    assert distance.max() < 0.03


def test_graphene_of_few_counts_is_found_by_the_network_and_not_by_the_filter() -> None:
    sites = honeycomb((2.0, 2.5))
    frame = drawn(sites, np.full(len(sites), 2.5), background=4.0, rng=np.random.default_rng(17))
    by_network, by_filter = (
        recall_and_precision(FindAtoms(FindConfig(method=method)).process(frame), sites)
        for method in ("network", "laplacian")
    )
    assert min(by_network) > 0.8
    assert min(by_network) > min(by_filter) + 0.2


def test_a_vacancy_stays_empty() -> None:
    sites = honeycomb((2.0, 2.5))
    middle = int(cKDTree(sites).query([1.0, 1.25])[1])
    rest = np.delete(sites, middle, axis=0)
    frame = drawn(rest, np.full(len(rest), 60.0), rng=np.random.default_rng(7))
    distance, _ = cKDTree(found_nm(FindAtoms().process(frame))).query(sites[middle])
    assert distance > 0.1


@pytest.mark.parametrize("pixel_nm", [0.005, 0.0125, 0.03])
def test_the_scale_follows_the_pixel_size(pixel_nm: float) -> None:
    shape = (round(2.0 / pixel_nm), round(2.5 / pixel_nm))
    sites = honeycomb((2.0, 2.5))
    counts = np.full(len(sites), 60.0 * (pixel_nm / 0.0125) ** 2)
    frame = drawn(sites, counts, shape=shape, pixel_nm=pixel_nm, rng=np.random.default_rng(9))
    recall, precision = recall_and_precision(FindAtoms().process(frame), sites)
    assert recall >= 0.97
    assert precision >= 0.97


@pytest.mark.parametrize("seed", [1, 2])
def test_a_few_single_atoms_are_seen_at_the_scale_of_their_spectrum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = drawn(rng.uniform(0.4, 4.6, (6, 2)), np.full(6, 6.0), background=20.0, rng=rng)
    view, finder = FrameView(frame.image[0], 0.0125, 0.0), AtomFinder.load()
    zoom = FindAtoms()._zoom(finder, frame.image[0], view)
    assert zoom == pytest.approx(finder.canonical_sigma_px / view.column_sigma_px)


@pytest.mark.parametrize("shape", [(97, 131), (64, 257), (33, 40)])
def test_any_size_of_frame_will_do(shape: tuple[int, int]) -> None:
    size = (shape[0] * 0.0125, shape[1] * 0.0125)
    sites = honeycomb(size)
    frame = drawn(sites, np.full(len(sites), 100.0), shape=shape)
    recall, precision = recall_and_precision(FindAtoms().process(frame), sites)
    assert recall == 1.0
    assert precision == 1.0


def test_columns_of_an_annular_bright_field_are_dark() -> None:
    sites = honeycomb((2.0, 2.5))
    frame = drawn(sites, np.full(len(sites), -60.0), background=150.0, channel="ABF")
    atoms = FindAtoms().process(frame)
    recall, precision = recall_and_precision(atoms, sites)
    assert (recall, precision) == (1.0, 1.0)
    assert atoms.contrast < 0
    assert np.median(atoms.amplitude) < 0
    bright = FindAtoms(FindConfig(polarity="bright")).process(frame)
    assert recall_and_precision(bright, sites)[1] < 0.5


def test_the_width_of_the_columns_can_be_given() -> None:
    sites = honeycomb((2.0, 2.5))
    frame = drawn(sites, np.full(len(sites), 60.0))
    given = FilteredFrame(frame.image[0], 0.0125, 0.06)
    assert given.column_sigma_px == pytest.approx(4.8)
    atoms = FindAtoms(FindConfig(column_sigma_nm=0.045)).process(frame)
    assert recall_and_precision(atoms, sites) == (1.0, 1.0)


def test_no_column_is_reported_at_the_very_border() -> None:
    sites = honeycomb((2.0, 2.5))
    atoms = FindAtoms().process(drawn(sites, np.full(len(sites), 60.0)))
    assert atoms.positions_px.min() > 2
    assert (atoms.positions_px < np.array([157, 197])).all()


def test_of_two_maxima_closer_than_the_least_distance_the_higher_is_kept() -> None:
    sites = np.array([[1.0, 1.0], [1.0, 1.15]])
    frame = drawn(sites, np.array([100.0, 200.0]))
    atoms = FindAtoms(FindConfig(min_distance_nm=0.3)).process(frame)
    assert len(atoms.positions_px) == 1
    np.testing.assert_allclose(found_nm(atoms)[0], sites[1], atol=0.02)


def test_confidence_falls_with_the_height_of_a_column() -> None:
    sites = np.array([[0.5, 0.5], [1.5, 0.6], [0.6, 1.9], [1.4, 1.8]])
    heights = np.array([60.0, 60.0, 60.0, 14.0])
    frame = drawn(sites, heights, background=10.0, rng=np.random.default_rng(11))
    atoms = FindAtoms(FindConfig(method="laplacian", min_confidence=0.0)).process(frame)
    order = cKDTree(found_nm(atoms)).query(sites)[1]
    assert atoms.confidence[order[:3]].min() > 0.99
    assert atoms.confidence[order[3]] < atoms.confidence[order[:3]].min()
    assert (atoms.confidence >= 0).all()
    assert (atoms.confidence <= 1).all()


def test_noise_has_next_to_no_atoms_beside_columns() -> None:
    """A graphene frame of this size has 190 columns; this one has four in a noisy ground."""
    sites = np.array([[0.5, 0.5], [1.5, 0.6], [0.6, 1.9], [1.4, 1.8]])
    frame = drawn(sites, np.full(4, 100.0), background=40.0, rng=np.random.default_rng(13))
    atoms = FindAtoms().process(frame)
    assert cKDTree(found_nm(atoms)).query(sites)[0].max() < 0.02
    assert len(atoms.positions_px) <= 4 + 5


def test_noise_between_bright_columns_is_not_taken_for_faint_ones() -> None:
    false = 0
    for seed in (2, 4, 6, 8):
        rows, cols = np.meshgrid(np.arange(-0.1, 4.3, 0.38), np.arange(-0.1, 4.3, 0.38), indexing="ij")
        sites = np.stack([rows.ravel(), cols.ravel()], axis=1)
        frame = drawn(
            sites,
            np.full(len(sites), 60.0),
            shape=(170, 170),
            pixel_nm=0.02375,
            background=6.0,
            rng=np.random.default_rng(seed),
        )
        distance, _ = cKDTree(sites).query(found_nm(FindAtoms().process(frame)))
        false += int((distance > 0.05).sum())
    assert false <= 1


def test_a_smooth_ramp_is_rejected_as_without_atoms() -> None:
    frame = drawn(np.empty((0, 2)), np.empty(0))
    ramp = np.linspace(1, 2, 160 * 200, dtype=np.float32).reshape(1, 160, 200)
    with pytest.raises(Rejected, match="no atoms"):
        FindAtoms().process(
            Frame(
                session="s",
                number=0,
                acquired_at_s=0.0,
                image=ramp,
                channels=("HAADF",),
                geometry=frame.geometry,
                dwell_time_us=1.0,
            )
        )


def test_more_maxima_than_a_frame_can_have_are_rejected() -> None:
    sites = honeycomb((2.0, 2.5))
    with pytest.raises(Rejected, match="too many maxima"):
        FindAtoms(FindConfig(max_atoms=20)).process(drawn(sites, np.full(len(sites), 60.0)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("column_sigma_nm", -1.0),
        ("min_distance_nm", -0.1),
        ("threshold_sigma", 0.0),
        ("threshold_contrast", 1.0),
        ("min_confidence", 1.0),
        ("max_atoms", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"find.{name} is {value}; it takes"):
        FindConfig(**{name: value})


@pytest.mark.parametrize("counts", [200.0, 60.0])
def test_positions_scatter_as_widely_as_their_covariance_says(counts: float) -> None:
    """Columns too far apart to draw each other aside, in five frames of seeded noise."""
    row, col = np.meshgrid(np.arange(0.2, 1.9, 0.4), np.arange(0.21, 2.4, 0.401), indexing="ij")
    sites = np.stack([row.ravel(), col.ravel()], axis=1)
    rng = np.random.default_rng(2)
    squares = []
    for _ in range(5):
        frame = drawn(sites, np.full(len(sites), counts), rng=rng)
        atoms = FindAtoms(FindConfig(column_sigma_nm=SIGMA_NM)).process(frame)
        distance, order = cKDTree(found_nm(atoms)).query(sites)
        error_px = (found_nm(atoms)[order] - sites)[distance < 0.05] / 0.0125
        assert atoms.position_covariance_px2 is not None
        covariance = atoms.position_covariance_px2[order][distance < 0.05].astype(np.float64)
        squares.append(np.einsum("ni,nij,nj->n", error_px, np.linalg.inv(covariance), error_px))
    # Chi-squared with two degrees of freedom has the mean 2, and this many of them stay within a tenth.
    assert 0.75 < np.concatenate(squares).mean() / 2 < 1.25


def test_a_brighter_column_is_known_better() -> None:
    sites = np.array([[0.5, 0.61], [1.3, 1.9]])
    config = FindConfig(column_sigma_nm=SIGMA_NM)
    atoms = FindAtoms(config).process(drawn(sites, np.array([60.0, 240.0]), rng=np.random.default_rng(4)))
    assert atoms.position_covariance_px2 is not None
    dim, bright = cKDTree(found_nm(atoms)).query(sites)[1]
    variance = atoms.position_covariance_px2[:, 0, 0]
    assert variance[bright] < 0.5 * variance[dim]


def test_noise_of_counts_grows_with_brightness_above_the_offset_of_the_detector() -> None:
    rng = np.random.default_rng(6)
    level = np.tile(np.linspace(5, 60, 256), (256, 1))
    counts = (rng.poisson(level) + 20.0).astype(np.float32)
    mean = float(counts.mean())
    assert noise_growth(counts, mean) == pytest.approx(1 / (mean - 20), rel=0.2)
    even = rng.normal(level, 5.0).astype(np.float32)
    assert noise_growth(even, float(even.mean())) < 0.1 / (mean - 20)


@pytest.mark.parametrize("method", ["network", "laplacian"])
def test_two_threads_find_the_same_to_the_last_bit(method: Method) -> None:
    sites = honeycomb((4.0, 4.0))
    frame = drawn(
        sites, np.full(len(sites), 40.0), shape=(320, 320), rng=np.random.default_rng(3), background=8.0
    )
    one, two = (FindAtoms(FindConfig(method=method), threads).process(frame) for threads in (1, 2))
    assert len(one.positions_px) > 300
    for name in ("positions_px", "confidence", "amplitude", "position_covariance_px2"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_what_is_neither_believed_nor_high_is_left_to_the_noise() -> None:
    stage = FindAtoms(FindConfig(method="laplacian"))
    confidence = np.array([0.9, 0.8, 0.32, 0.32, 0.7])
    amplitude = np.array([50.0, 60.0, 4.0, 9.0, 2.0])
    kept = stage._is_worth_fitting(confidence, amplitude)
    assert kept.tolist() == [True, True, False, True, True]


def test_a_column_that_only_its_neighbours_make_likely_is_not_believed() -> None:
    """A perovskite without its light columns looks like one whose light columns are very dim."""
    heights = np.array([60.0, 60.0, 60.0, 60.0, 12.0, 3.0])

    seen = _seen_as_well(np.full(6, 0.95), heights, np.full(6, 0.9))

    np.testing.assert_allclose(seen[:5], 0.95)
    assert seen[5] < FindConfig().min_confidence


def test_hollows_that_the_network_takes_for_columns_cost_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heavy columns of a perovskite, and none in the hollows; the network is sure of hundreds of them."""
    line = np.arange(-1, 17) * 0.38
    corners = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    sites = np.concatenate([corners, corners + 0.19])
    heights = np.repeat([60.0, 36.0], len(corners))
    frame = drawn(sites, heights, shape=(256, 256), pixel_nm=0.0237, rng=np.random.default_rng(8))
    fitted: list[int] = []

    def counted(image: NDArray[np.float32], places: NDArray[np.float64], *others: Any, **more: Any) -> Any:
        fitted.append(len(places))
        return fit_jointly(image, places, *others, **more)

    monkeypatch.setattr("streamer.stages.find_atoms.fit_jointly", counted)
    atoms = FindAtoms(FindConfig(method="network")).process(frame)
    assert recall_and_precision(atoms, sites) == (1.0, 1.0)
    assert max(fitted) < 1.15 * len(sites)
