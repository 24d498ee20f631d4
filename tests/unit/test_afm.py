"""The AFM shows the rods where they are when the tip comes by, as wide as the tip makes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from simulators.afm import AfmConfig, AfmInstrument, tip_profile
from simulators.faults import FaultConfig
from simulators.rods import RodsConfig, order_parameter
from simulators.scan_distortion import ScanDistortionConfig
from streamer.messages import Request
from streamer.observers.two_directions import fast_axis_lag, pair_forward_backward
from tests.measured_rods import matched, rods_in, turned_by

STILL = RodsConfig(
    adsorption_per_um2_s=0.0,
    desorption_per_s=0.0,
    diffusion_along_nm2_per_s=0.0,
    diffusion_across_nm2_per_s=0.0,
    rotation_rad2_per_s=0.0,
    jumps_per_s=0.0,
)
PERFECT = {
    "drift_rate_nm_per_s": (0.0, 0.0),
    "drift_wander_nm_per_sqrt_s": 0.0,
    "row_jitter_px": 0.0,
    "flyback_px": 0.0,
}
NO_DISTORTION = ScanDistortionConfig(**PERFECT)
NO_RASTER = {"field_of_view_nm": None, "shape": None}
CLEAN = {"feedback_us": 0.0, "height_noise_nm": 0.0, "streak_nm": 0.0, "scars": 0.0}


def afm(**fields) -> AfmInstrument:
    usual = {"rows": 128, "cols": 128, "field_of_view_nm": 100.0, "seed": 1}
    return AfmInstrument(AfmConfig(**(usual | fields)), started_at_s=1e9)


def clean(**fields) -> AfmInstrument:
    return afm(**(CLEAN | {"distortion": NO_DISTORTION, "rods": STILL} | fields))


def with_rods(base: RodsConfig = STILL, **fields) -> RodsConfig:
    return RodsConfig(**({name: getattr(base, name) for name in base.__struct_fields__} | fields))


def height(instrument: AfmInstrument) -> np.ndarray:
    return instrument.acquire().image[0]


def scan_of(**fields) -> Request:
    usual = {
        "session": "s",
        "id": "r",
        "action": "scan",
        "scan_position_nm": (0.0, 0.0),
        "position_nm": (0.0, 0.0),
        "dwell_time_us": 15.0,
        "field_of_view_nm": (100.0, 100.0),
        "shape": (128, 128),
    }
    return Request(**(usual | fields))


# -- the tip ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tip_radius_nm", "half_angle_deg"), [(3.0, 15.0), (1.0, 20.0)])
def test_rods_are_seen_as_their_dilation_by_the_tip(tip_radius_nm, half_angle_deg):
    """Against grey-scale dilation, (f + t)(x) = max over u of f(x + u) - t(u), on a grid of 0.125 nm."""
    instrument = clean(
        rows=96,
        cols=96,
        field_of_view_nm=40.0,
        tip_radius_nm=tip_radius_nm,
        tip_half_angle_deg=half_angle_deg,
        rods=with_rods(length_nm=12.0, diameter_nm=3.0, spacing_nm=3.0, coverage=0.2),
    )
    rods, step, half = instrument.simulator.assembly, 0.125, 22.0
    x, y = np.meshgrid(np.arange(-half, half, step), np.arange(-half, half, step))
    scene = np.zeros_like(x)
    for (cx, cy), angle in zip(rods.positions_nm, rods.angles_rad, strict=True):
        cos, sin = math.cos(angle), math.sin(angle)
        beyond = np.maximum(np.abs((x - cx) * cos + (y - cy) * sin) - 4.5, 0.0)
        far2 = beyond**2 + ((y - cy) * cos - (x - cx) * sin) ** 2
        scene = np.where(far2 < 1.5**2, np.maximum(scene, 1.5 + np.sqrt(np.maximum(1.5**2 - far2, 0))), scene)
    u = np.hypot(*np.mgrid[-90:91, -90:91]) * step
    half_angle, reach = math.radians(half_angle_deg), tip_radius_nm * math.cos(math.radians(half_angle_deg))
    ball = tip_radius_nm - np.sqrt(np.maximum(tip_radius_nm**2 - u**2, 0.0))
    cone = tip_radius_nm * (1 - math.sin(half_angle)) + (u - reach) / math.tan(half_angle)
    tip = np.where(u < reach, ball, cone)
    near = tip < 3.2  # what is higher up never meets a rod
    k = int(near.any(axis=0).sum()) // 2
    tip, near = tip[90 - k : 91 + k, 90 - k : 91 + k], near[90 - k : 91 + k, 90 - k : 91 + k]
    dilated = ndimage.grey_dilation(scene, footprint=near, structure=-tip)
    path_px = instrument.config.geometry.to_nm(np.stack(np.mgrid[0:96, 0:96], axis=-1).reshape(-1, 2) * 1.0)
    there = ((path_px[:, ::-1] + half) / step).T
    expected = np.maximum(ndimage.map_coordinates(dilated, there, order=1), 0.0).reshape(96, 96)

    seen = height(instrument)
    assert len(rods.ids) > 5
    # The side of a rod is upright: on a grid it is right to a cell, on the steep flank that is the most.
    assert np.abs(seen - expected).mean() < 0.02
    assert np.quantile(np.abs(seen - expected), 0.99) < step / math.tan(half_angle)


def test_a_rod_is_as_high_as_its_diameter_and_four_root_of_both_radii_wide():
    """The width of a round section under a round tip, w = 4 sqrt(R a) (derived; Bustamante et al. 1993)."""
    config = AfmConfig(tip_radius_nm=5.0, tip_half_angle_deg=1.0, rods=with_rods(diameter_nm=2.0))
    profile = tip_profile(config)

    assert profile[0] - profile[1] == pytest.approx(2.0)
    assert 2 * profile[5] == pytest.approx(4 * math.sqrt(5.0 * 1.0))
    assert height(clean()).max() == pytest.approx(2.6, abs=0.01)


def test_a_changed_tip_is_twice_as_blunt_and_has_a_second_apex_that_shows_every_rod_again():
    """The dilation by two apexes is the higher of two: the second is 0.4 rods away and 0.4 nm higher up."""
    fault = FaultConfig(frame=1, kind="tip", frames=1)
    instrument = clean(faults=(fault,), tip_radius_nm=2.0)
    before, changed, after = (height(instrument) for _ in range(3))
    blunt = height(clean(tip_radius_nm=4.0))
    away_px = 0.4 * 26.0 / (100 / 128)
    misses = []
    for angle in np.radians(np.arange(0, 360, 2)):
        by = (away_px * math.sin(angle), away_px * math.cos(angle))
        again = np.maximum(blunt, ndimage.shift(blunt, by, order=1) - 0.4)
        misses.append(np.abs(again - changed)[16:-16, 16:-16].mean())

    np.testing.assert_array_equal(before, after)
    assert min(misses) < 0.02
    assert np.median(misses) > 10 * min(misses)
    assert (changed >= blunt).all()


def test_a_withdrawn_tip_sees_nothing_and_unfolded_rods_are_round():
    faults = (FaultConfig(frame=0, kind="blank"), FaultConfig(frame=1, kind="amorphous"))
    instrument = clean(faults=faults)
    blank, unfolded = height(instrument), height(instrument)
    shapes = [np.argwhere(ndimage.label(unfolded > 1.8)[0] == n) for n in range(1, 6)]
    extents = [np.ptp(shape, axis=0) for shape in shapes]

    assert not blank.any()
    assert unfolded.max() > 2.5
    assert max(abs(int(high - wide)) for high, wide in extents) < 8


# -- what is seen and what is true -----------------------------------------------------------------


def test_every_rod_is_seen_at_its_place_when_the_tip_passes_while_all_of_them_move():
    """Truth is of the moment: where each rod was met the image has its whole height, however quick it is."""
    quick = RodsConfig(
        diffusion_along_nm2_per_s=20.0, diffusion_across_nm2_per_s=10.0, rotation_rad2_per_s=0.1
    )
    instrument = clean(rows=256, cols=256, rods=quick, field_of_view_nm=160.0)
    started = instrument.simulator.assembly.positions_nm.copy()
    image = height(instrument)
    truth = instrument.truth()
    at_middle = ndimage.map_coordinates(image, truth["rod_place_px"].T, order=1)
    at_start = ndimage.map_coordinates(image, instrument.config.geometry.to_px(started).T, order=1)

    assert len(at_middle) > 15
    assert np.quantile(at_middle, 0.1) > 2.3
    assert np.quantile(at_start[at_start > 0], 0.1) < 1.5


def test_still_rods_are_seen_exactly_where_the_truth_has_them_and_the_same_in_every_frame():
    instrument = clean()
    first, second = height(instrument), height(instrument)
    truth = instrument.truth()
    ids = [truth["rod_id"][truth["rod_frame"] == k] for k in (0, 1)]
    geometry = instrument.config.geometry

    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_allclose(geometry.to_nm(truth["rod_place_px"]), truth["rod_position_nm"], atol=1e-9)


def test_rods_drift_with_the_specimen():
    drift = ScanDistortionConfig(**(PERFECT | {"drift_rate_nm_per_s": (2.0, 0.0), "drift_settling_s": 50.0}))
    instrument = clean(distortion=drift)
    places = []
    for k in (0, 1):
        image = height(instrument)
        measured, _ = rods_in(image, 100 / 128, 26.0, 2.6)
        truth = instrument.truth()
        now = truth["rod_frame"] == k
        which, away = matched(measured, truth["rod_place_px"][now], 5.0)
        assert (which >= 0).all()
        assert np.median(away) < 0.5
        places.append(measured)
    which, _ = matched(places[1], places[0], 4.0)
    moved = (places[1] - places[0][which])[which >= 0]

    assert np.median(moved[:, 1]) * 100 / 128 == pytest.approx(2.0 * 128 * 128 * 15e-6, abs=0.15)


@pytest.mark.parametrize(
    ("path", "hysteresis", "median_px"),
    [("raster", 0.04, 0.5), ("serpentine", 0.0, 0.5), ("sinusoidal", 0.04, 0.8)],
)
def test_the_truth_says_where_rods_are_seen_through_all_that_a_scanner_does(path, hysteresis, median_px):
    """Rods are long and the field bends along them, and they move: of still ones it is 0.2 pixels."""
    strengths = {"coil_px": 3.0, "settle_px": 2.0, "hysteresis": hysteresis, "creep_per_decade": 0.02}
    distortion = ScanDistortionConfig(scan_path=path, **strengths)
    instrument = clean(rows=256, cols=256, field_of_view_nm=200.0, distortion=distortion, rods=RodsConfig())
    misses = []
    for k in range(2):
        places, _ = rods_in(height(instrument), 200 / 256, 26.0, 2.6)
        truth = instrument.truth()
        which, away = matched(places, truth["rod_place_px"][truth["rod_frame"] == k], 6.0)
        misses += away[which >= 0].tolist()
        assert len(places) > 30
        assert (which >= 0).mean() > 0.97

    assert np.median(misses) < median_px


def test_in_a_turned_scan_rods_are_seen_turned_the_other_way():
    """Angles of the truth are the specimen's; an image shows them less the scan's rotation (concepts.md)."""
    instrument = clean(rows=256, cols=256, field_of_view_nm=200.0, rotation_deg=35.0)
    places, angles = rods_in(height(instrument), 200 / 256, 26.0, 2.6)
    truth = instrument.truth()
    which, _ = matched(places, truth["rod_place_px"], 3.0)
    turned = turned_by(angles + math.radians(35.0), truth["rod_angle_rad"][which])

    assert (which >= 0).all()
    assert len(which) > 50
    assert np.degrees(np.abs(turned)).max() < 5.0


def test_a_sub_scan_and_a_moved_stage_show_the_same_rods():
    instrument = clean(stage_reach_nm=50.0, stage_error_nm=0.0)
    whole = height(instrument)
    _, part = instrument.execute(scan_of(field_of_view_nm=(50.0, 50.0), shape=(64, 64)))
    _, moved = instrument.execute(scan_of(stage_nm=(100 / 128 * 10, 0.0)))
    assert part is not None
    assert moved is not None

    np.testing.assert_allclose(part.image[0], whole[32:96, 32:96], atol=1e-4)
    np.testing.assert_allclose(moved.image[0][:, 10:], whole[:, :-10], atol=1e-4)


def test_rods_come_and_go_and_the_truth_says_when():
    busy = RodsConfig(coverage=0.1, adsorption_per_um2_s=4000.0, desorption_per_s=1.0)
    instrument = clean(rods=busy)
    ends = [instrument.acquire() and instrument.simulator.assembly.now_s for _ in range(5)]
    truth = instrument.truth()
    born = truth["rod_born_s"][truth["rod_id"]]
    died = truth["rod_died_s"][truth["rod_id"]]
    end = np.array(ends)[truth["rod_frame"]]
    start = np.array([0.0, *ends[:-1]])[truth["rod_frame"]]

    assert np.isfinite(truth["rod_died_s"]).sum() > 20
    assert (truth["rod_born_s"] > 0).sum() > 20
    assert (born < end).all()
    assert (died > start).all()


def test_time_passes_for_the_rods_as_for_the_instrument():
    instrument = clean()
    instrument.acquire()
    instrument.execute(scan_of(scan_position_nm=(30.0, 0.0), position_nm=(30.0, 0.0)))
    instrument.execute(scan_of(action="spectrum", dwell_time_us=5e5, **NO_RASTER))
    instrument.park()
    instrument.go(3.0)
    instrument.execute(scan_of(dwell_time_us=1e6, shape=(64, 64)))  # more than an hour: by longer steps

    assert instrument.simulator.assembly.now_s == pytest.approx(instrument.clock_s - 1e9, abs=1e-6)


# -- order, measured -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "found", "degrees"), [("landed", 0.7, 2.0), ("rows", 0.4, 1.0)], ids=["landed", "rows"]
)
def test_orientations_measured_in_the_image_are_those_of_the_truth(start, found, degrees):
    """By direct measurement at full noise and speed of the rods; the error of each angle is said by the test.

    The order parameter of the rods that were measured is that of the same rods to 0.01, and that of all to
    three times what comes of the share that was not measured; the distribution of all to Kolmogorov.
    """
    instrument = afm(rows=256, cols=256, field_of_view_nm=200.0, rods=RodsConfig(start=start))
    all_measured, all_true = [], []
    for k in range(4):
        places, angles = rods_in(height(instrument), 200 / 256, 26.0, 2.6)
        truth = instrument.truth()
        now = truth["rod_frame"] == k
        true = truth["rod_angle_rad"][now]
        which, _ = matched(places, truth["rod_place_px"][now], 4.0)
        order, same, whole = (order_parameter(a)[0] for a in (angles, true[which], true))
        share = len(angles) / len(true)
        spread = math.sqrt((1 - share) / share / len(true) / 2)

        assert (which >= 0).all()
        assert len(set(which.tolist())) == len(which)
        assert share > found
        assert np.degrees(turned_by(angles, true[which]).std()) < degrees
        assert order == pytest.approx(same, abs=0.01)
        assert order == pytest.approx(whole, abs=3 * spread)
        assert whole == pytest.approx(truth["frame_order"][k])
        all_measured.append(angles)
        all_true.append(true)
    grid = np.linspace(0, np.pi, 181)
    one, other = (np.concatenate(angles) for angles in (all_measured, all_true))
    steps = [np.searchsorted(np.sort(angles), grid) / len(angles) for angles in (one, other)]

    assert np.abs(steps[0] - steps[1]).max() < 0.06


def test_a_movie_shows_the_rods_order():
    ordering = RodsConfig(bias_kt=5.0, barrier_kt=0.0, rotation_rad2_per_s=0.06, coverage=0.3)
    instrument = afm(rows=256, cols=256, field_of_view_nm=250.0, rods=ordering)
    measured = []
    for _ in range(4):
        _, angles = rods_in(height(instrument), 250 / 256, 26.0, 2.6)
        measured.append(order_parameter(angles)[0])
        instrument.park()
        instrument.go(12.0)
    truth = instrument.truth()["frame_order"]

    assert truth[-1] > truth[0] + 0.3
    np.testing.assert_allclose(measured, truth, atol=0.15)


# -- the feedback, the way back and the noise ------------------------------------------------------


def test_the_feedback_leaves_a_tail_on_the_side_that_it_goes_to():
    lonely = with_rods(coverage=0.006)
    sharp = height(clean(rods=lonely, field_of_view_nm=150.0, seed=0))
    lagging = height(clean(rods=lonely, field_of_view_nm=150.0, seed=0, feedback_us=60.0, parachuting=2.0))
    behind = lagging - sharp
    rows = np.arange(86, 95)  # through the one rod in the middle
    first = [np.flatnonzero(sharp[row] > 1.3)[0] for row in rows]
    last = [np.flatnonzero(sharp[row] > 1.3)[-1] for row in rows]

    assert np.mean([behind[r, c] for r, c in zip(rows, first, strict=True)]) < -0.4
    assert np.mean([behind[r, c + 2] for r, c in zip(rows, last, strict=True)]) > 0.4


def test_the_feedback_makes_up_for_all_but_a_share_in_its_time():
    """A step response: after n pixels exp(-n dwell / lag) of an edge is left."""
    wide = with_rods(length_nm=400.0, diameter_nm=60.0, spacing_nm=60.0, coverage=0.2)
    settings = {"rods": wide, "field_of_view_nm": 400.0, "tip_radius_nm": 0.5, "tip_half_angle_deg": 1.0}
    sharp = height(clean(**settings))
    lagging = height(clean(**settings, feedback_us=30.0, parachuting=1.0))
    kept = math.exp(-15.0 / 30.0)
    followed = sharp.copy()
    for col in range(1, 128):
        followed[:, col] = kept * followed[:, col - 1] + (1 - kept) * sharp[:, col]

    assert np.ptp(sharp) > 30
    np.testing.assert_allclose(lagging, followed, atol=1e-4)


def test_trace_and_retrace_are_named_so_that_they_are_taken_for_the_two_directions():
    instrument = clean(distortion=ScanDistortionConfig(**PERFECT, both_ways=True))
    frame = instrument.acquire()

    assert frame.channels == ("height trace", "height retrace")
    assert pair_forward_backward(frame.channels) == [(0, 1)]
    np.testing.assert_array_equal(frame.image[0], frame.image[1])
    assert instrument.clock_s - 1e9 == pytest.approx(2 * 128 * 128 * 15e-6)


def test_hysteresis_between_trace_and_retrace_is_measured_as_it_is():
    distortion = ScanDistortionConfig(**PERFECT, both_ways=True, hysteresis=0.04)
    instrument = clean(
        rows=256, cols=256, field_of_view_nm=200.0, distortion=distortion, height_noise_nm=0.08
    )
    frame = instrument.acquire()
    path = instrument.last_path
    assert path is not None
    assert path.backward is not None
    lag = fast_axis_lag(frame.image[0], frame.image[1])
    assert lag is not None
    row, col = lag.forward.positions_px.round().astype(int).T
    half = (path.displacement_px() - path.backward.displacement_px())[1, row, col] / 2
    truth = instrument.truth()

    assert np.abs(half).max() > 4
    np.testing.assert_allclose(lag.forward.displacement_px[:, 1], half, atol=0.6)
    np.testing.assert_allclose(
        truth["retrace_column_offset_px"][0], path.backward.column_offset_px, atol=1e-5
    )
    assert truth["retrace_row_offset_px"].shape == (1, 2, 256)


def test_noise_has_its_strength_and_falls_with_the_dwell_time():
    bare = with_rods(coverage=0.0)
    instrument = clean(rods=bare, height_noise_nm=0.1)
    short, long = height(instrument), instrument.execute(scan_of(dwell_time_us=60.0))[1]
    assert long is not None

    assert short.std() == pytest.approx(0.1, rel=0.03)
    assert long.image[0].std() == pytest.approx(0.05, rel=0.03)


def test_rows_lie_higher_or_lower_and_remember_the_ones_before():
    bare = with_rods(coverage=0.0)
    rows = height(clean(rows=2048, rods=bare, streak_nm=0.2, field_of_view_nm=50.0))

    assert np.ptp(rows, axis=1).max() == 0
    assert rows[:, 0].std() == pytest.approx(0.2, rel=0.15)
    assert np.corrcoef(rows[1:, 0], rows[:-1, 0])[0, 1] == pytest.approx(math.exp(-1 / 3), abs=0.08)


def test_scars_are_dashes_along_the_fast_axis():
    bare = with_rods(coverage=0.0)
    instrument = clean(rods=bare, scars=30.0)
    scarred = [height(instrument) != 0 for _ in range(10)]
    dashes = [ndimage.label(image, structure=[[0, 0, 0], [1, 1, 1], [0, 0, 0]])[1] for image in scarred]

    assert np.mean(dashes) == pytest.approx(30.0, abs=4 * math.sqrt(30.0 / 10))
    assert np.mean([image.sum() for image in scarred]) > 100


# -- what all instruments promise ------------------------------------------------------------------


def test_the_same_seed_gives_the_same_frames_and_truth():
    one, same, other = (afm(seed=seed) for seed in (5, 5, 6))
    frames = [[instrument.acquire().image.tobytes() for _ in range(3)] for instrument in (one, same, other)]

    assert frames[0] == frames[1]
    assert frames[0] != frames[2]
    np.testing.assert_array_equal(one.truth()["rod_place_px"], same.truth()["rod_place_px"])


def test_a_spectrum_is_refused_with_a_reason():
    outcome, _ = afm().execute(scan_of(action="spectrum", **NO_RASTER))

    assert (outcome.status, outcome.reason) == ("refused", "this AFM takes images only; ask for a scan")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tip_radius_nm": 0.0}, "afm.tip_radius_nm is 0.0; it takes 0.5 to 100"),
        ({"field_of_view_nm": 10.0}, "afm.field_of_view_nm is 10.0; it takes 20 to 5000"),
        ({"parachuting": 0.5}, "afm.parachuting is 0.5; it takes 1 to 20"),
        (
            {"field_of_view_nm": 5000.0, "rods": RodsConfig(length_nm=10.0)},
            "afm.rods.length_nm is 10: .* rods have room on this field; it takes up to 30000",
        ),
    ],
)
def test_a_microscope_that_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        AfmConfig(**fields)
