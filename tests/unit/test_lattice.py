"""Lattices are found in drawn frames whatever is wrong with them, and refused where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from streamer.observers import lattice as lattice_module
from streamer.observers.lattice import Lattice, LatticeObserver, NoLattice, find_columns, find_lattice
from streamer.observers.lattice_search import index_columns

Array = NDArray[np.float64]
Field = Callable[[Array], Array]

SHAPE = (256, 256)
SIGMA = 1.9
RECORDED = Path(__file__).parents[3] / "shared" / "data"

SQUARE = Lattice(
    vectors_px=np.array([[1.0, 14.0], [14.0, -1.0]]),
    origin_px=np.array([128.4, 127.1]),
    basis=np.array([[0.0, 0.0], [0.5, 0.5]]),
    amplitude=np.array([60.0, 36.0]),
)
HONEYCOMB = Lattice(
    vectors_px=np.array([[1.0, 14.0], [12.6, 6.1]]),
    origin_px=np.array([128.4, 127.1]),
    basis=np.array([[0.0, 0.0], [1 / 3, 1 / 3]]),
    amplitude=np.array([60.0, 60.0]),
)
MOS2 = Lattice(
    vectors_px=np.array([[-2.0, 16.0], [12.9, 9.7]]),
    origin_px=np.array([128.4, 127.1]),
    basis=np.array([[0.0, 0.0], [1 / 3, 1 / 3]]),
    amplitude=np.array([60.0, 25.0]),
)
OBLIQUE = Lattice(
    vectors_px=np.array([[3.0, 11.0], [15.0, 2.0]]),
    origin_px=np.array([128.4, 127.1]),
    basis=np.array([[0.0, 0.0]]),
    amplitude=np.array([60.0]),
)
LATTICES = {"square": SQUARE, "honeycomb": HONEYCOMB, "mos2": MOS2, "oblique": OBLIQUE}


def identity(places: Array) -> Array:
    return places


def still(places: Array) -> Array:
    return np.zeros_like(places)


def smooth(places: Array) -> Array:
    """D of 3 px: fly-back at the left, settling at the top, a wave in the plane, as in a real scan."""
    row, col = places.T
    back = 3 * np.exp(-col / 20)
    down = 0.2 * back - 1.2 * np.exp(-row / 28) + 0.8 * np.sin(row / 60 + col / 90)
    along = -back + np.sin(col / 70 - row / 110 + 1)
    return np.stack([down, along], axis=1)


def seen_at(places: Array, field: Field) -> Array:
    """Raw s with s + D(s) = place."""
    raw = places.copy()
    for _ in range(30):
        raw = places - field(raw)
    return raw


def true_columns(lattice: Lattice, field: Field = still, margin_px: float = 40.0) -> tuple[Array, Array]:
    """Places on the raster and amplitudes of all columns in the frame."""
    low, high = np.full(2, -margin_px), np.array(SHAPE) + margin_px
    index = lattice.sites(low, high)
    raw = seen_at(lattice.place_of(index), field)
    inside = np.all((raw > -8) & (raw < np.array(SHAPE) + 7), axis=1)
    return raw[inside], lattice.amplitude[index[inside, 2]]


def drawn(places: Array, heights: Array, seed: int, level: float = 6.0) -> NDArray[np.float32]:
    """Counts of round columns."""
    image = np.full(SHAPE, level)
    grid = np.arange(-9, 10)
    for place, height in zip(places, heights, strict=True):
        at = np.rint(place).astype(int)
        row, col = at[0] + grid, at[1] + grid
        row, col = row[(row >= 0) & (row < SHAPE[0])], col[(col >= 0) & (col < SHAPE[1])]
        down = np.exp(-((row - place[0]) ** 2) / (2 * SIGMA**2))
        along = np.exp(-((col - place[1]) ** 2) / (2 * SIGMA**2))
        image[row[:, None], col[None, :]] += height * np.outer(down, along)
    return np.random.default_rng(seed).poisson(image).astype(np.float32)


def frame(
    lattice: Lattice = SQUARE, field: Field = still, seed: int = 1, dose: float = 1.0, missing: float = 0.0
) -> NDArray[np.float32]:
    places, heights = true_columns(lattice, field)
    present = np.random.default_rng(seed + 100).random(len(places)) >= missing
    return drawn(places[present], dose * heights[present], seed, 6.0 * dose)


def is_same_lattice(found: Lattice, true: Lattice, tolerance: float = 0.02) -> bool:
    """Whether each one's vectors are whole combinations of the other's, and the bases are as large."""
    ratio = found.vectors_px @ np.linalg.inv(true.vectors_px)
    whole = np.abs(ratio - np.rint(ratio)).max() < tolerance
    return bool(whole and abs(abs(np.linalg.det(ratio)) - 1) < 0.05 and len(found.basis) == len(true.basis))


def started(image: NDArray[np.float32]) -> LatticeObserver:
    observer = LatticeObserver()
    observer.start(image)
    return observer


# -- finding it --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(LATTICES))
@pytest.mark.parametrize("field", [still, smooth])
def test_the_lattice_is_found_without_knowing_the_material(name: str, field: Field) -> None:
    lattice = started(frame(LATTICES[name], field)).lattice
    assert lattice is not None
    assert is_same_lattice(lattice, LATTICES[name], 0.04)
    strong = np.sort(LATTICES[name].amplitude)
    np.testing.assert_allclose(np.sort(lattice.amplitude) / strong.max(), strong / strong.max(), atol=0.1)


@pytest.mark.parametrize("dose", [0.2, 1.0])
def test_twelve_counts_at_the_peak_are_enough(dose: float) -> None:
    observer = started(frame(SQUARE, smooth, seed=2, dose=dose))
    assert observer.lattice is not None
    assert is_same_lattice(observer.lattice, SQUARE, 0.04)
    assert observer.sigma_px == pytest.approx(SIGMA, rel=0.06)


def test_missing_columns_do_not_hide_the_lattice() -> None:
    lattice = started(frame(SQUARE, smooth, seed=3, missing=0.2)).lattice
    assert lattice is not None
    assert is_same_lattice(lattice, SQUARE, 0.04)


def test_dopants_and_interstitials_do_not_change_the_lattice() -> None:
    rng = np.random.default_rng(4)
    places, heights = true_columns(HONEYCOMB)
    heights[rng.random(len(heights)) < 0.05] *= 6
    extra = rng.uniform(10, 240, (12, 2))
    image = drawn(np.concatenate([places, extra]), np.concatenate([heights, np.full(12, 40.0)]), 5)
    lattice = started(image).lattice
    assert lattice is not None
    assert is_same_lattice(lattice, HONEYCOMB)


@pytest.mark.parametrize("degrees", [5.0, 8.0, 15.0, 30.0])
def test_of_two_grains_the_larger_one_is_taken_and_the_other_left_out(degrees: float) -> None:
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    other = Lattice(
        vectors_px=HONEYCOMB.vectors_px @ rotation,
        origin_px=HONEYCOMB.origin_px,
        basis=HONEYCOMB.basis,
        amplitude=HONEYCOMB.amplitude,
    )
    first, second = true_columns(HONEYCOMB)[0], true_columns(other)[0]
    edge = 165 + 0.1 * first[:, 0], 169 + 0.1 * second[:, 0]
    first, second = first[first[:, 1] < edge[0]], second[second[:, 1] > edge[1]]
    image = drawn(np.concatenate([first, second]), np.full(len(first) + len(second), 60.0), 6)
    observer = started(image)
    assert observer.lattice is not None
    assert is_same_lattice(observer.lattice, HONEYCOMB, 0.03)
    observations = observer.observe(image, identity)
    assert observations is not None
    at = observations.positions_px
    beyond = at[:, 1] > 175 + 0.1 * at[:, 0]
    assert beyond.sum() < 0.12 * len(at)


def test_a_negated_image_of_dark_columns_shows_its_lattice() -> None:
    places, heights = true_columns(SQUARE)
    dark = 200 - drawn(places, heights, 7)
    lattice = started(-dark.astype(np.float32)).lattice
    assert lattice is not None
    assert is_same_lattice(lattice, SQUARE)


def test_the_unit_and_the_offset_of_the_image_do_not_matter() -> None:
    image = frame(HONEYCOMB, smooth, seed=8)
    for changed in (0.001 * image - 2, 0.4 * image + 260_000):
        lattice = started(changed.astype(np.float32)).lattice
        assert lattice is not None
        assert is_same_lattice(lattice, HONEYCOMB, 0.04)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros(SHAPE, dtype=np.float32), "too few columns"),
        (np.random.default_rng(9).poisson(6.0, SHAPE).astype(np.float32), "too few columns|repeats|grain"),
        (drawn(np.array([[100.3, 90.2]]), np.array([300.0]), 10), "too few columns|repeats|grain"),
        (
            drawn(np.random.default_rng(11).uniform(5, 250, (220, 2)), np.full(220, 60.0), 12),
            "repeats|grain",
        ),
    ],
    ids=["empty", "noise", "one atom", "liquid"],
)
def test_what_shows_no_lattice_is_refused(image: NDArray[np.float32], reason: str) -> None:
    with pytest.raises(NoLattice, match=reason):
        LatticeObserver().start(image)


def test_widths_that_lead_to_the_same_lattice_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another grain is in sight no width explains nine columns of ten, and each was tried: 2 s."""
    tried: list[int] = []

    def counted(places: Array, heights: Array, shape: tuple[int, int]) -> tuple[Lattice, Any, Any]:
        tried.append(len(places))
        return index_columns(places, heights, shape)

    monkeypatch.setattr(lattice_module, "index_columns", counted)
    places, _ = true_columns(HONEYCOMB)
    cos, sin = np.cos(0.4), np.sin(0.4)
    turned = (places - 128) @ np.array([[cos, -sin], [sin, cos]]) + 128
    left, right = places[:, 1] < 150, turned[:, 1] > 156
    image = drawn(np.concatenate([places[left], turned[right]]), np.full(left.sum() + right.sum(), 60.0), 3)
    lattice = started(image).lattice
    assert lattice is not None
    assert is_same_lattice(lattice, HONEYCOMB, 0.05)
    assert len(tried) == 1, tried


def test_a_lattice_around_a_hole_is_found() -> None:
    places, heights = true_columns(SQUARE)
    away = np.concatenate([places + [down, along] for down in (0, 252) for along in (0, 252)])
    is_seen = np.abs(away - 252).max(axis=1) > 140
    image = np.random.default_rng(5).poisson(6.0, (508, 508)).astype(np.float32)
    grid = np.arange(-9, 10)
    for place, height in zip(away[is_seen], np.tile(heights, 4)[is_seen], strict=True):
        row, col = (np.rint(place).astype(int)[:, None] + grid).clip(0, 507)
        down, along = (np.exp(-((at - p) ** 2) / 7.2) for at, p in zip((row, col), place, strict=True))
        image[np.ix_(row, col)] += height * np.outer(down, along).astype(np.float32)
    assert LatticeObserver().start(image) is not None


def test_a_single_row_of_columns_is_no_lattice() -> None:
    line = np.stack([np.full(40, 20.0), 14.0 * np.arange(40)], axis=1)
    with pytest.raises(NoLattice):
        find_lattice(line, np.ones(40), SHAPE)


def test_parallel_vectors_are_no_lattice() -> None:
    with pytest.raises(NoLattice, match="parallel"):
        Lattice(
            vectors_px=np.array([[1.0, 2.0], [2.0, 4.0]]),
            origin_px=np.zeros(2),
            basis=np.zeros((1, 2)),
            amplitude=np.ones(1),
        )


def test_columns_are_numbered_right_under_eight_pixels_of_distortion() -> None:
    def strong(places: Array) -> Array:
        return 2.8 * smooth(places)

    places, heights = true_columns(SQUARE, strong)
    rng = np.random.default_rng(13)
    lattice, index, known = index_columns(places + rng.normal(0, 0.1, places.shape), heights, SHAPE)
    ideal = places + strong(places)
    cells = (ideal - SQUARE.origin_px) @ np.linalg.inv(SQUARE.vectors_px)
    turn = np.rint(lattice.vectors_px @ np.linalg.inv(SQUARE.vectors_px))
    off = cells - (index[:, :2] + lattice.basis[index[:, 2]]) @ turn
    wrong = np.abs(off - np.median(off[known], axis=0)).max(axis=1) > 0.25
    assert known.mean() > 0.93
    assert not (wrong & known).any()


def test_index_and_place_are_inverse_to_each_other() -> None:
    index = MOS2.sites(np.zeros(2), np.full(2, 100.0))
    found, distance = MOS2.index_of(MOS2.place_of(index) + 0.5)
    np.testing.assert_array_equal(found, index)
    np.testing.assert_allclose(distance, np.sqrt(0.5))
    assert MOS2.places(SHAPE).min() >= 0
    assert MOS2.spacing_px == pytest.approx(np.hypot(*(MOS2.vectors_px.sum(axis=0) / 3)), rel=0.02)


# -- observing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lattice", [SQUARE, HONEYCOMB], ids=["square", "honeycomb"])
def test_the_first_frame_samples_the_distortion_up_to_an_affine_map(lattice: Lattice) -> None:
    image = frame(lattice, smooth, seed=14)
    observations = started(image).observe(image, identity)
    assert observations is not None
    at = observations.positions_px
    places = true_columns(lattice, smooth)[0]
    inside = np.all((places > 2) & (places < np.array(SHAPE) - 3), axis=1)
    distance, _ = cKDTree(at).query(places[inside])
    assert (distance < 1).mean() > 0.97
    error = observations.displacement_px - smooth(at)
    design = np.column_stack([np.ones(len(at)), at])
    rest = error - design @ np.linalg.lstsq(design, error, rcond=None)[0]
    assert rest.std() < 0.12
    z = rest / np.sqrt(observations.variance_px2)
    assert 0.8 < z.std() < 1.3


def test_a_lattice_that_was_given_gives_the_distortion_itself() -> None:
    observer = LatticeObserver(SQUARE, SIGMA)
    image = frame(SQUARE, smooth, seed=15)
    observer.start(image)
    observations = observer.observe(image, identity)
    assert observations is not None
    error = observations.displacement_px - smooth(observations.positions_px)
    assert np.abs(np.median(error, axis=0)).max() < 0.02
    assert error.std() < 0.12


def test_columns_that_overlap_show_the_distortion_as_well_and_no_rows_that_are_at_rest() -> None:
    close = Lattice(
        vectors_px=0.66 * HONEYCOMB.vectors_px,  # 2.8 sigma between neighbours
        origin_px=HONEYCOMB.origin_px,
        basis=HONEYCOMB.basis,
        amplitude=HONEYCOMB.amplitude,
    )
    observer = LatticeObserver(close, SIGMA)
    image = frame(close, smooth, seed=18)
    observer.start(image)
    known = lambda places: seen_at(places, smooth)  # noqa: E731
    assert observer.observe(image, identity) is not None
    observations = observer.observe(image, known)
    assert observations is not None
    error = observations.displacement_px - smooth(observations.positions_px)
    assert len(error) > 1500
    assert error.std() < 0.12
    at = observations.positions_px
    at_edge = np.any((at < 6) | (at > SHAPE[0] - 7), axis=1)
    assert at_edge.sum() > 80
    assert error[at_edge].std() < 0.16
    assert not observer.rows(image, known).offsets.any()


def observed(observer: LatticeObserver, field: Field, seed: int, known: Field | None = None) -> Array | None:
    """Error of the displacements of one frame seen with a field that is known already."""
    known = known or field
    image = frame(SQUARE, field, seed=seed)
    observations = observer.observe(image, lambda places: seen_at(places, known))
    if observations is None:
        return None
    return observations.displacement_px - field(observations.positions_px)


def given() -> LatticeObserver:
    """An observer that knows the lattice and has seen one frame."""
    observer = LatticeObserver(SQUARE, SIGMA)
    image = frame(SQUARE, smooth, seed=16)
    observer.start(image)
    assert observer.observe(image, identity) is not None
    return observer


def test_later_frames_are_looked_up_where_the_field_has_them() -> None:
    error = observed(given(), smooth, 17)
    assert error is not None
    assert len(error) > 500
    assert error.std() < 0.12


@pytest.mark.parametrize("jump", [(2.5, -2.0), (5.0, 3.0), (6.0, -6.0)])
def test_a_jump_below_half_a_cell_is_followed(jump: tuple[float, float]) -> None:
    def jumped(places: Array) -> Array:
        return smooth(places) + np.array(jump)

    error = observed(given(), jumped, 18, known=smooth)
    assert error is not None
    np.testing.assert_allclose(np.median(error, axis=0), 0, atol=0.05)
    assert error.std() < 0.12


def test_a_jump_of_thirty_pixels_is_told_but_for_whole_translations() -> None:
    def jumped(places: Array) -> Array:
        return smooth(places) + np.array([-21.0, 22.0])

    error = observed(given(), jumped, 19, known=smooth)
    assert error is not None
    cells = np.median(error, axis=0) @ np.linalg.inv(SQUARE.vectors_px)
    np.testing.assert_allclose(cells, np.rint(cells), atol=0.01)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(SHAPE, dtype=np.float32),
        np.random.default_rng(20).poisson(6.0, SHAPE).astype(np.float32),
        frame(OBLIQUE, seed=21),
    ],
    ids=["blank", "noise", "another crystal"],
)
def test_a_lost_lattice_is_told(image: NDArray[np.float32]) -> None:
    observer = given()
    assert observer.observe(image, identity) is None
    with pytest.raises(RuntimeError, match="observe"):
        observer.rows(image, identity)


@pytest.mark.parametrize("times", [1.1, 1.25, 0.7])
def test_another_magnification_is_told(times: float) -> None:
    larger = Lattice(
        vectors_px=times * SQUARE.vectors_px,
        origin_px=SQUARE.origin_px,
        basis=SQUARE.basis,
        amplitude=SQUARE.amplitude,
    )
    assert given().observe(frame(larger, seed=22), identity) is None


def test_after_a_loss_the_same_observer_goes_on() -> None:
    observer = given()
    assert observer.observe(np.zeros(SHAPE, dtype=np.float32), identity) is None
    error = observed(observer, smooth, 23)
    assert error is not None
    assert error.std() < 0.12


def test_nothing_is_observed_before_the_start() -> None:
    with pytest.raises(RuntimeError, match="start"):
        LatticeObserver().observe(frame(), identity)
    with pytest.raises(ValueError, match="sigma_px is -1"):
        LatticeObserver(sigma_px=-1)


# -- rows and sites ----------------------------------------------------------------------------


def run(observer: LatticeObserver, frames: int, moving: float = 0.0, aside: float = 0.0) -> Array:
    """Observe frames in which one column moves by itself and another lies beside its site."""
    places, heights = true_columns(SQUARE, smooth)
    one, two = (int(np.hypot(*(places - at).T).argmin()) for at in ((100, 100), (160, 90)))
    rng = np.random.default_rng(24)
    for number in range(frames):
        moved = places.copy()
        moved[one] += rng.normal(0, moving, 2) if moving else 0.0
        moved[two, 0] += aside
        image = drawn(moved, heights, 25 + number)
        assert observer.observe(image, lambda at: seen_at(at, smooth)) is not None
        observer.rows(image, lambda at: seen_at(at, smooth))
    return places[[one, two]]


def test_a_column_that_moves_by_itself_counts_less_and_its_neighbours_do_not() -> None:
    observer = given()
    moving, aside = run(observer, 8, moving=0.6, aside=0.7)
    residuals = observer.residuals()
    raw = seen_at(residuals.sites_px, smooth)
    nearest = [int(np.hypot(*(raw - at).T).argmin()) for at in (moving, aside)]
    assert residuals.moves[nearest].all()
    assert residuals.moves.mean() < 0.03
    assert residuals.scatter_px[nearest[0]].max() > 0.3
    assert residuals.mean_px[nearest[1], 0] == pytest.approx(0.7, abs=0.15)
    image = frame(SQUARE, smooth, seed=40)
    observations = observer.observe(image, lambda at: seen_at(at, smooth))
    assert observations is not None
    place = [int(np.hypot(*(observations.positions_px - at).T).argmin()) for at in (moving, aside)]
    usual = np.median(observations.variance_px2, axis=0)
    assert (observations.variance_px2[place].max(axis=1) > 8 * usual.max()).all()


def test_a_strain_that_neighbours_share_is_not_taken_for_columns_that_move() -> None:
    def strained(places: Array) -> Array:
        off = places - 128
        return smooth(places) + 0.5 * off / 30 * np.exp(0.5 - (off**2).sum(axis=1, keepdims=True) / 1800)

    observer = given()
    for number in range(6):
        image = frame(SQUARE, strained, seed=50 + number)
        assert observer.observe(image, lambda at: seen_at(at, smooth)) is not None
        observer.rows(image, lambda at: seen_at(at, smooth))
    residuals = observer.residuals()
    assert np.abs(residuals.mean_px).max() > 0.35
    assert residuals.moves.mean() < 0.04


def test_drift_that_was_not_predicted_is_not_taken_for_columns_that_move() -> None:
    observer = given()
    rng = np.random.default_rng(55)
    for number in range(6):
        drift = rng.normal(0, 0.3, 2)
        image = frame(SQUARE, lambda at, d=drift: smooth(at) + d, seed=56 + number)  # type: ignore[misc]
        assert observer.observe(image, lambda at: seen_at(at, smooth)) is not None
        observer.rows(image, lambda at: seen_at(at, smooth))
    assert np.median(observer.residuals().scatter_px) < 0.16


def test_row_offsets_come_with_the_sign_of_the_displacement() -> None:
    shift = np.zeros((2, SHAPE[0]))
    shift[1] = np.random.default_rng(60).normal(0, 0.5, SHAPE[0])

    image = drawn(true_columns(SQUARE)[0], true_columns(SQUARE)[1], 61)
    # Each row as recorded with its offset: the drawn row looked up beside itself.
    col = np.arange(SHAPE[1])
    for row in range(SHAPE[0]):
        image[row] = np.interp(col + shift[1, row], col, image[row])
    observer = given()
    assert observer.observe(image, identity) is not None
    rows = observer.rows(image, identity)
    inside = slice(10, -10)
    assert np.corrcoef(rows.offsets[1, inside], shift[1, inside])[0, 1] > 0.9


def test_a_restored_observer_goes_on_to_the_bit() -> None:
    observer = given()
    run(observer, 6, moving=0.5)
    numbers, arrays = observer.state()
    other = LatticeObserver().restore(numbers, {name: array.copy() for name, array in arrays.items()})
    image = frame(SQUARE, smooth, seed=70)
    answers = []
    for one in (observer, other):
        seen = one.observe(image, lambda at: seen_at(at, smooth))
        assert seen is not None
        rows = one.rows(image, lambda at: seen_at(at, smooth))
        answers.append([seen.positions_px, seen.variance_px2, rows.offsets, rows.variance])
    for first, second in zip(*answers, strict=True):
        np.testing.assert_array_equal(first, second)
    for name, array in observer.state()[1].items():
        np.testing.assert_array_equal(array, other.state()[1][name])


def test_a_new_observer_can_be_stored_and_restored() -> None:
    fresh = LatticeObserver()
    assert not LatticeObserver().restore(*fresh.state()).is_ready
    assert given().is_ready


# -- real recordings ---------------------------------------------------------------------------


def recorded(name: str, pixel_size_nm: float | None = None) -> NDArray[np.float32]:
    if not (RECORDED / name).exists():
        pytest.skip(f"{name} is not here: no recording to look at")
    from simulators.recordings import read_recording

    return next(iter(read_recording(RECORDED / name, pixel_size_nm))).image[0]


def lengths_nm(lattice: Lattice, pixel_nm: float) -> Array:
    return np.sort(np.hypot(*lattice.vectors_px.T)) * pixel_nm


def test_strontium_titanate_along_110_is_found_in_a_recorded_abf_frame() -> None:
    image = -recorded("stem_abf_stack")
    observer = started(image)
    assert observer.lattice is not None
    np.testing.assert_allclose(lengths_nm(observer.lattice, 0.0092024), [0.2761, 0.3905], rtol=0.025)
    observations = observer.observe(image, identity)
    assert observations is not None
    assert len(observations.positions_px) > 550


@pytest.mark.parametrize(
    ("name", "pixel_nm"), [("G-Si-4fold.hdf5", 0.00390625), ("G-Si-2nm.hdf5", 0.0078125)]
)
def test_graphene_is_found_in_recorded_frames_with_silicon_in_it(name: str, pixel_nm: float) -> None:
    image = recorded(f"stem_graphene_si/{name}")
    lattice = started(image).lattice
    assert lattice is not None
    np.testing.assert_allclose(lengths_nm(lattice, pixel_nm), [0.246, 0.246], rtol=0.03)
    assert len(lattice.basis) == 2


def test_columns_of_a_frame_of_noise_are_few() -> None:
    noise = np.random.default_rng(80).poisson(6.0, SHAPE).astype(np.float32)
    assert len(find_columns(noise, SIGMA)[0].good) < 15
