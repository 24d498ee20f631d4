"""Strain and distortion told apart, judged by a crystal that is known to the last atom."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.pose import Pose
from models.scan_basis import Hyperparameters, ScanModel
from models.strain_gp import (
    _X,
    NotIdentifiable,
    StrainConfig,
    StrainGP,
    _Information,
    _whitened,
    mean_affine_px,
)
from tests.benchmarks.separate_points import (
    NOISE_PX,
    SIZE_PX,
    STEPS,
    UNTURNED,
    Run,
    batch_difference_px,
    crystal,
    rms,
    run,
    score,
    show,
    strain_gp,
    without_gauge,
)

Float64 = NDArray[np.float64]
SEED = 2
TURNED = (90.0, (0.0, 0.0))
MOVED = (0.0, STEPS[2][1])


@pytest.fixture(scope="module")
def inclusion() -> Run:
    return run("inclusion", SEED)


@pytest.fixture(scope="module")
def wall() -> Run:
    return run("wall", SEED)


def grid(step_px: int = 16, rim_px: int = 30) -> Float64:
    nodes = np.arange(rim_px, SIZE_PX - rim_px, step_px, dtype=np.float64)
    return np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)


# -- the four scans


@pytest.mark.parametrize("kind", ["inclusion", "wall"])
def test_four_scans_tell_strain_from_distortion(kind: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(kind).score
    assert found.slope == pytest.approx(1, abs=0.02)
    assert found.strain_px < 0.03
    assert found.distortion_px < 0.03


def test_no_strain_is_found_where_there_is_none() -> None:
    calm = run("inclusion", SEED, strain_px=0.0)
    assert calm.score.strain_px < 0.025
    calm.gp.learn_strain_prior()
    assert calm.score.strain_px < 0.015


def test_noise_does_not_shrink_both_fields_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features taken where columns were seen turn noise into a dilation, 0.65 px in these eight frames."""
    monkeypatch.setattr("models.strain_gp._GAUGE_SD_PX", 100.0)  # else the gauge holds what would shrink
    still = run("inclusion", SEED, 8, strain_px=0.0, scale=0.0)
    places = grid()
    off = places - places.mean(0)
    dilation = np.sum(still.gp.distortion_px(places) * off) / np.sum(off**2) * SIZE_PX / 2
    assert abs(dilation) < 0.1


# -- what cannot be told


def test_from_one_orientation_the_prior_decides_what_is_strain_so_it_is_refused() -> None:
    """Two priors of the scan fit the same frames equally well and disagree on what the specimen does."""
    rough = Hyperparameters(jitter_px=(0.0, 0.0), coil_length=0.6)
    smooth = Hyperparameters(jitter_px=(0.0, 0.0), coil_length=2.4)
    first, second = (
        run("inclusion", SEED, gp=StrainGP(ScanModel(shape=(SIZE_PX, SIZE_PX)), hyper), steps=(UNTURNED,))
        for hyper in (rough, smooth)
    )
    assert first.updates[-1].residual_px == pytest.approx(second.updates[-1].residual_px, rel=0.02)
    assert first.score.slope < 0.6
    assert second.score.slope > first.score.slope + 0.2
    assert run("wall", SEED, steps=(UNTURNED,)).score.slope < 0.6
    for gp in (first.gp, second.gp):
        with pytest.raises(NotIdentifiable, match="rotation is missing"):
            gp.strain_map()
        with pytest.raises(NotIdentifiable, match="rotation is missing"):
            gp.specimen_displacement_px(grid())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([UNTURNED, MOVED], "rotation is missing"),
        ([UNTURNED, (180.0, (0.0, 0.0)), (180.0, MOVED[1])], "rotation is missing"),
        ([UNTURNED, TURNED], "stage move is missing"),
        ([UNTURNED, (45.0, (0.0, 0.0)), TURNED, (135.0, (0.0, 0.0))], "stage move is missing"),
        # a turn and a move in one step are a turn about another point
        ([UNTURNED, (90.0, MOVED[1])], "stage move is missing"),
        ([UNTURNED, TURNED, (90.0, (2.0, 1.0))], "stage move is missing"),
        ([UNTURNED, TURNED, (90.0, MOVED[1])], None),
        ([*STEPS], None),
    ],
)
def test_it_says_which_scan_is_missing(
    steps: list[tuple[float, tuple[float, float]]], said: str | None
) -> None:
    gp = strain_gp()
    gp._poses = [Pose(math.radians(turn), stage) for turn, stage in steps]
    missing = gp.missing()
    assert gp.is_identifiable == (said is None)
    assert missing is None if said is None else missing is not None and said in missing


def test_nothing_is_said_before_the_first_frame() -> None:
    with pytest.raises(NotIdentifiable, match="no frame"):
        strain_gp().strain_map()


def test_the_pattern_known_worst_says_when_the_scans_suffice(inclusion: Run) -> None:
    single = run("inclusion", SEED, 2, steps=(UNTURNED,))
    turned = run("inclusion", SEED, 2)
    assert single.gp.weakest_strain_sd_px() > 0.08
    assert turned.gp.weakest_strain_sd_px() > 0.03
    assert inclusion.gp.weakest_strain_sd_px() < 0.03


# -- the results


def test_the_strain_is_the_derivative_of_the_displacement(inclusion: Run) -> None:
    gp, step = inclusion.gp, 0.5
    found = gp.strain_map(step_px=64)
    places = np.stack(np.meshgrid(found.rows_px, found.cols_px, indexing="ij"), -1).reshape(-1, 2)
    shape = (len(found.rows_px), len(found.cols_px))

    def slope(along: tuple[float, float]) -> Float64:
        ahead, behind = places + np.multiply(along, step), places - np.multiply(along, step)
        difference = gp.specimen_displacement_px(ahead) - gp.specimen_displacement_px(behind)
        return difference.T.reshape(2, *shape) / (2 * step)

    along_row, along_col = slope((1, 0)), slope((0, 1))
    shear, turn = (along_col[0] + along_row[1]) / 2, (along_col[0] - along_row[1]) / 2
    assert found.strain == pytest.approx(np.stack([along_row[0], along_col[1], shear]), abs=2e-5)
    assert found.rotation_rad == pytest.approx(turn, abs=2e-5)
    displacement = gp.specimen_displacement_px(places).T.reshape(2, *shape)
    assert found.displacement_px == pytest.approx(displacement, abs=1e-5)


def test_a_turned_lattice_turns_as_a_turned_scan_does() -> None:
    # scan rotation e takes (row, col) off the centre to (row + e col, col - e row)
    gp = strain_gp(StrainConfig(turn_rad=0.0, amplitude_px=1.0, length_px=100.0))
    angle, centre = 0.002, (SIZE_PX - 1) / 2
    places = grid(12, -60)
    off = places - centre
    bump = np.exp(-np.sum(off**2, 1) / (2 * 90.0**2))[:, None]
    moved = places + angle * bump * np.stack([off[:, 1], -off[:, 0]], 1)
    for turn, stage in STEPS:
        pose = Pose(math.radians(turn), stage)
        seen = (moved + stage - centre) @ pose.matrix() + centre
        inside = np.all((seen > 0) & (seen < SIZE_PX - 1), axis=1)
        gp.observe(places[inside], seen[inside], rotation_rad=pose.rotation_rad, stage_px=stage)
    found = gp.strain_map(step_px=centre)
    # the mean turn of the field went to the scan, so the rim has a little of the other sign
    assert found.rotation_rad[1, 1] - found.rotation_rad[0, 1] == pytest.approx(angle, rel=0.1)


def test_the_sd_of_the_displacement_covers_its_error(wall: Run) -> None:
    found = wall.gp.strain_map(step_px=20)
    places = np.stack(np.meshgrid(found.rows_px, found.cols_px, indexing="ij"), -1).reshape(-1, 2)
    inner = np.all((places > 30) & (places < SIZE_PX - 31), axis=1)
    error = found.displacement_px.reshape(2, -1).T - wall.stream.strain_px(places)
    error = without_gauge(error[inner], places[inner])
    sd = found.displacement_sd_px.reshape(2, -1).T[inner]
    assert 0.9 < np.mean(np.abs(error) < 2 * sd) < 0.99


def test_the_sd_of_the_strain_covers_its_error(inclusion: Run) -> None:
    found = inclusion.gp.strain_map(step_px=20)
    places = np.stack(np.meshgrid(found.rows_px, found.cols_px, indexing="ij"), -1).reshape(-1, 2)
    inner = np.all((places > 30) & (places < SIZE_PX - 31), axis=1)
    step = np.array([[0.5, 0.0]])
    truth = inclusion.stream.strain_px(places + step) - inclusion.stream.strain_px(places - step)
    error = (found.strain[0].ravel() - truth[:, 0])[inner]
    error -= error.mean()  # the gauge
    assert 0.9 < np.mean(np.abs(error) < 2 * found.strain_sd[0].ravel()[inner]) < 0.99


def test_the_parts_put_every_column_where_it_is() -> None:
    done = run("wall", SEED, 3, gp=strain_gp(jitter_px=(0.0, 0.0)))
    gp, pose = done.gp, Pose(math.radians(STEPS[2][0]), STEPS[2][1])
    places = grid(40, 120)
    strained = places + gp.ambiguous_displacement_px(places)
    raster = gp._raster_px(pose, strained, places, 30)
    inside = np.all((raster > 20) & (raster < SIZE_PX - 21), axis=1)
    parts = gp.parts(step_px=4)
    nodes = (SIZE_PX - 1) / (parts.grid_px.shape[1] - 1)
    displacement = np.array(
        [
            [
                parts.translation_px[axis]
                + _between(parts.grid_px[axis], *(place / nodes))
                + np.interp(place[0], np.arange(SIZE_PX), parts.rows_px[axis])
                + np.interp(place[1], np.arange(SIZE_PX), parts.cols_px[axis])
                for axis in (0, 1)
            ]
            for place in raster[inside]
        ]
    )
    centre = (SIZE_PX - 1) / 2
    back = (raster[inside] + displacement - centre) @ pose.matrix().T + centre - STEPS[2][1]
    assert np.abs(back - strained[inside]).max() < 0.003


def _between(nodes: NDArray[np.float32], row: float, col: float) -> float:
    """Interpolate linearly between nodes."""
    r, c = int(row), int(col)
    a, b = row - r, col - c
    corner = nodes[r : r + 2, c : c + 2]
    return float(np.array([1 - a, a]) @ corner @ np.array([1 - b, b]))


def test_the_parts_are_the_displacement_of_the_last_frame(inclusion: Run) -> None:
    parts = inclusion.gp.parts(step_px=1)
    found = parts.grid_px + parts.rows_px[:, :, None] + parts.cols_px[:, None, :]
    found += np.array(parts.translation_px)[:, None, None]
    error = found - inclusion.seen[-1].frame.displacement_px(jitter=False)
    places = grid()
    at = places.astype(int)
    assert rms(without_gauge(error[:, at[:, 0], at[:, 1]].T, places)) < 0.03


def test_raw_places_are_the_inverse_of_the_distortion(inclusion: Run) -> None:
    raster = grid()
    places = raster + inclusion.gp.distortion_px(raster)
    assert inclusion.gp.to_raw_px(places) == pytest.approx(raster, abs=1e-4)


def test_the_sd_of_the_distortion_covers_its_error(wall: Run) -> None:
    sd = wall.gp.sd_grid(step_px=20)
    nodes = np.linspace(0, SIZE_PX - 1, sd.shape[1])
    places = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    inner = np.all((places > 30) & (places < SIZE_PX - 31), axis=1)
    at = np.rint(places[inner]).astype(int)
    error = (
        wall.gp.distortion_px(at.astype(float))
        - wall.seen[-1].frame.beam_offset_px()[:, at[:, 0], at[:, 1]].T
    )
    error = without_gauge(error, places[inner])
    assert rms(error) < 1.2 * np.sqrt(2 * np.mean(sd**2))


def test_a_calibrated_scan_makes_the_mean_turn_of_a_wall_visible() -> None:
    stream = crystal(SEED, strain_kind="wall")
    offset = stream.points().frame.beam_offset_px()

    def known(places: Float64) -> Float64:
        at = np.rint(places).astype(int)
        return offset[:, at[:, 0], at[:, 1]].T

    affine = mean_affine_px(known, (SIZE_PX, SIZE_PX))
    slopes = []
    for calibrated in (None, affine):
        gp = strain_gp(StrainConfig(turn_rad=0.0), calibrated_affine_px=calibrated)
        done = run("wall", SEED, gp=gp)
        places = grid()
        true = without_gauge(done.stream.strain_px(places), places, linear=False)
        found = without_gauge(gp.specimen_displacement_px(places), places, linear=False)
        slopes.append(np.sum(true * found) / np.sum(true**2))
    assert slopes[0] < 0.8
    assert slopes[1] > 0.93


# -- frames that are not as simple


def test_rows_that_jitter_cost_precision_and_no_strain() -> None:
    gp = strain_gp(jitter_px=(0.10, 0.25))
    shaken = run("wall", SEED, 8, gp=gp, jitter_px=(0.10, 0.25)).score
    assert shaken.slope == pytest.approx(1, abs=0.02)
    assert shaken.strain_px < 0.05
    ignored = run("wall", SEED, 8, jitter_px=(0.10, 0.25)).score
    assert ignored.strain_px > shaken.strain_px


def test_the_hum_of_each_frame_is_found_apart() -> None:
    scan = ScanModel(shape=(SIZE_PX, SIZE_PX), hum_period_rows=15.2)
    told = StrainGP(scan, Hyperparameters(jitter_px=(0.0, 0.0)))
    found = run("inclusion", SEED, gp=told, hum_px=0.3)
    assert found.score.strain_px < 0.9 * run("inclusion", SEED, hum_px=0.3).score.strain_px
    assert np.hypot(*found.gp._own[-2:]) == pytest.approx(0.3, abs=0.02)
    assert np.hypot(*found.gp._own[-4:-2]) == pytest.approx(0.35 * 0.3, abs=0.02)


def test_a_rotation_that_is_off_is_found() -> None:
    stream = crystal(SEED)
    trusting, careful = strain_gp(StrainConfig(turn_rad=0.0)), strain_gp(StrainConfig(turn_rad=0.005))
    for turn, stage in STEPS:
        points = stream.points(NOISE_PX, rotation_deg=turn + (0.2 if turn else 0.0), stage_px=stage)
        for gp in (trusting, careful):
            show(gp, stream, points, rotation_rad=math.radians(turn))
        if turn:
            assert math.degrees(careful.turn_rad) == pytest.approx(0.2, abs=0.08)
    assert score(trusting, stream, points).strain_px > 0.1
    assert score(careful, stream, points).strain_px < 0.03


def test_columns_given_to_the_wrong_site_are_gated_and_counted() -> None:
    stream, gp, rng = crystal(SEED), strain_gp(), np.random.default_rng(7)
    for turn, stage in STEPS:
        points = stream.points(NOISE_PX, rotation_deg=turn, stage_px=stage)
        wrong = rng.random(len(points.site)) < 0.03
        points.seen_px[wrong] += rng.uniform(4, 8, (wrong.sum(), 2))
        update = show(gp, stream, points)
        given = int(np.all((points.seen_px > -0.5) & (points.seen_px < SIZE_PX - 0.5), 1).sum())
        assert update.gated == pytest.approx(wrong.sum(), abs=6)
        assert update.used + update.gated == given
        assert update.used + update.gated + update.outside == len(points.site)
    assert score(gp, stream, points).strain_px < 0.03


def test_a_distortion_that_changes_is_followed() -> None:
    following = strain_gp(StrainConfig(forget_frames=300.0))
    varied = run("inclusion", SEED, 24, gp=following, timescale_frames=150.0).score
    held = run("inclusion", SEED, 24, timescale_frames=150.0).score
    assert varied.distortion_px < 0.03
    assert varied.strain_px < 0.02
    assert held.distortion_px > 1.5 * varied.distortion_px


# -- the filter


def test_the_filter_agrees_with_the_fit_of_all_frames_at_once() -> None:
    assert batch_difference_px(run("wall", SEED)) < 0.005


def test_a_second_prior_gives_what_it_had_given_from_the_start(inclusion: Run) -> None:
    other = StrainConfig(amplitude_px=0.3, length_px=140.0)
    exchanged = run("inclusion", SEED).gp
    assert exchanged.learn_strain_prior((0.1,), (140.0,)) == pytest.approx((0.3, 140.0))
    anew = run("inclusion", SEED, gp=strain_gp(other)).gp
    difference = exchanged.specimen_displacement_px(grid()) - anew.specimen_displacement_px(grid())
    before = inclusion.gp.specimen_displacement_px(grid()) - anew.specimen_displacement_px(grid())
    assert rms(difference) < 0.1 * rms(before)


def test_before_the_first_frame_no_prior_is_more_likely() -> None:
    gp = strain_gp()
    assert gp._evidence(0.05, 50.0) == pytest.approx(gp._evidence(0.4, 72.0), abs=1e-6)
    assert gp._evidence(2.0, 140.0) == pytest.approx(gp._evidence(0.4, 72.0), abs=1e-6)


def test_the_evidence_prefers_the_length_that_made_the_strain() -> None:
    gp = run("inclusion", SEED).gp  # an inclusion of 56 px radius
    assert gp._evidence(0.2, 100.0) > gp._evidence(0.2, 50.0)
    assert gp._evidence(0.2, 100.0) > gp._evidence(3.0, 100.0)
    assert gp._evidence(0.2, 100.0) > gp._evidence(0.01, 100.0)


def test_a_restart_goes_on_bit_for_bit() -> None:
    first = run("wall", SEED, 2)
    second = strain_gp()
    second.restore(first.gp.state())
    points = first.stream.points(NOISE_PX, rotation_deg=STEPS[2][0], stage_px=STEPS[2][1])
    for gp in (first.gp, second):
        show(gp, first.stream, points)
    ours, theirs = first.gp.state(), second.state()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    maps = first.gp.strain_map(), second.strain_map()
    assert np.array_equal(maps[0].strain_sd, maps[1].strain_sd)


@pytest.mark.parametrize(
    ("change", "said"),
    [("missing", "no 'cross'"), ("nan", "not finite"), ("shape", "made for another scan")],
)
def test_a_damaged_state_is_refused(change: str, said: str) -> None:
    state = strain_gp().state()
    if change == "missing":
        del state["cross"]
    elif change == "nan":
        state["own"][0, 0] = np.nan
    else:
        state["fields_shift"] = state["fields_shift"][1:]
    with pytest.raises(ValueError, match=said):
        strain_gp().restore(state)


def _random_information(rng: np.random.Generator, count: int) -> tuple[_Information, Float64, Float64]:
    root = rng.normal(size=(count + _X, 2 * (count + _X)))
    dense = root @ root.T / count
    shift = rng.normal(size=count + _X)
    parts = (
        dense[:count, :count],
        dense[count:, :count],
        dense[count:, count:],
        shift[:count],
        shift[count:],
    )
    copies = [part.copy(order="F") for part in parts]
    copies[0][np.triu_indices(count, 1)] = np.nan  # never to be read
    return _Information(*copies), dense, shift


def _dense(information: _Information) -> tuple[Float64, Float64]:
    lower = np.tril(information.fields)
    fields = lower + np.tril(lower, -1).T
    precision = np.block([[fields, information.cross.T], [information.cross, information.own]])
    return precision, np.concatenate([information.fields_shift, information.own_shift])


def test_forgetting_and_drifting_are_those_of_a_dense_gaussian() -> None:
    rng, count, first, keep = np.random.default_rng(3), 7, 3, 0.9
    information, dense, shift = _random_information(rng, count)
    transition = np.eye(_X)
    transition[0, 2] = transition[1, 3] = 1.0
    variance = rng.uniform(0.1, 1, _X)
    step = np.eye(count + _X)
    step[count:, count:] = transition
    noise = np.diag(np.concatenate([np.zeros(count), variance]))
    covariance = step @ np.linalg.inv(dense) @ step.T + noise
    mean = step @ np.linalg.solve(dense, shift)
    information.advance_own(transition, variance)
    precision, moved = _dense(information)
    assert precision == pytest.approx(np.linalg.inv(covariance))
    assert np.linalg.solve(precision, moved) == pytest.approx(mean)

    fade = np.diag(np.where(np.arange(count + _X) < first, keep, 1.0))
    fresh = np.diag(np.where(np.arange(count + _X) < first, 1 - keep**2, 0.0))
    information.forget(first, keep)
    precision, faded = _dense(information)
    assert precision == pytest.approx(np.linalg.inv(fade @ covariance @ fade + fresh))
    assert np.linalg.solve(precision, faded) == pytest.approx(fade @ mean)


def test_whitened_rows_have_the_inverse_of_their_covariance() -> None:
    rng = np.random.default_rng(5)
    rows = np.array([0, 0, 0, 2, 5, 5])
    variance, jitter = rng.uniform(0.5, 2, 6), 0.7
    design = rng.normal(size=(6, 4)).astype(np.float32)
    white = _whitened(design, rows, 1 / variance, jitter)
    covariance = np.diag(variance) + jitter**2 * (rows[:, None] == rows)
    assert white.T @ white == pytest.approx(design.T @ np.linalg.solve(covariance, design), rel=1e-5)


def test_a_hundred_frames_on_the_cost_is_the_same_and_so_is_the_accuracy() -> None:
    scan = ScanModel(shape=(128, 128))
    config = StrainConfig(forget_frames=50.0, finest_px=64.0)
    gp = StrainGP(scan, Hyperparameters(jitter_px=(0.0, 0.0)), config)
    rng, centre = np.random.default_rng(11), 63.5
    edge = np.arange(-20.0, 150.0, 8.0)
    places = np.stack(np.meshgrid(edge, edge, indexing="ij"), -1).reshape(-1, 2)
    strained = places + 0.3 * np.sin(places[:, ::-1] / 25)
    sizes, residuals = [], []
    for number in range(120):
        turn, stage = STEPS[number % 4][0], tuple(np.array(STEPS[number % 4][1]) / 4)
        pose = Pose(math.radians(turn), stage)
        seen = (strained + stage - centre) @ pose.matrix() + centre
        seen += 0.05 * rng.normal(size=seen.shape)
        inside = np.all((seen > 0) & (seen < 127), axis=1)
        update = gp.observe(
            places[inside], seen[inside], rotation_rad=pose.rotation_rad, stage_px=stage, variance_px2=0.05**2
        )
        sizes.append(sum(array.size for array in gp.state().values()))
        residuals.append(update.residual_px)
    assert sizes[-1] == sizes[3]
    # each frame is fitted a little, so less than the noise is left
    assert 0.04 < np.mean(residuals[-20:]) < 0.05
    assert np.mean(residuals[-20:]) == pytest.approx(np.mean(residuals[20:40]), rel=0.05)


# -- bad input


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ideal_px": np.zeros((5, 2))}, "both be"),
        ({"seen_px": np.full((361, 2), np.nan)}, "finite"),
        ({"variance_px2": 0.0}, "variance_px2 must be above 0"),
        ({"ideal_px": np.full((361, 2), 1e4)}, "0 columns are within reach"),
    ],
)
def test_a_frame_that_makes_no_sense_is_refused_and_changes_nothing(
    change: dict[str, object], said: str
) -> None:
    gp = strain_gp(StrainConfig(finest_px=200.0))
    places = grid(24)[:361]
    gp.observe(places, places)
    before = gp.state()
    good: dict[str, object] = {"ideal_px": places, "seen_px": places}
    with pytest.raises(ValueError, match=said):
        gp.observe(**(good | change))  # type: ignore[arg-type]
    assert all(np.array_equal(before[name], array) for name, array in gp.state().items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"amplitude_px": 0.0}, "amplitude_px"),
        ({"finest_px": -1.0}, "finest_px"),
        ({"forget_frames": -1.0}, "forget_frames"),
        ({"reach": 0.5}, "reach"),
    ],
)
def test_a_wrong_configuration_is_named(change: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StrainConfig(**change)  # type: ignore[arg-type]


def test_a_scan_without_a_lasting_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scan\.blocks"):
        StrainGP(ScanModel(shape=(128, 128), blocks=("hum", "drift")))


def test_a_calibration_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 3"):
        StrainGP(ScanModel(shape=(128, 128)), calibrated_affine_px=np.zeros((2, 2)))


def test_what_was_never_seen_keeps_its_prior() -> None:
    """The least eigenvalue of the information stays that of the whitened prior: nothing is made up."""
    gp = run("inclusion", SEED, 12).gp
    lower = np.tril(gp._information.marginal().precision)
    least = np.linalg.eigvalsh(lower + np.tril(lower, -1).T)[0]
    assert least == pytest.approx(1, abs=1e-5)
