"""What the scan does is as strong as configured, has the sign that it says, and its truth is told."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.scanning import ScanningConfig
from simulators.stem import StemConfig, StemInstrument, add_columns
from streamer.messages import ScanGeometry

GEOMETRY = ScanGeometry(shape=(40, 30), field_of_view_nm=(3.0, 4.0), center_nm=(1.0, -2.0), rotation_rad=0.4)
NONE = {
    "drift_rate_nm_per_s": (0.0, 0.0),
    "drift_wander_nm_per_sqrt_s": 0.0,
    "row_jitter_px": 0.0,
    "flyback_px": 0.0,
}


def distortion(seed: int = 0, **strengths) -> ScanDistortion:
    return ScanDistortion(ScanDistortionConfig(**(NONE | strengths)), np.random.default_rng(seed))


SQUARE = ScanGeometry(shape=(64, 64), field_of_view_nm=(6.4, 6.4), center_nm=(0.5, 0.2), rotation_rad=0.3)
PARTS = {
    "drift": {"drift_rate_nm_per_s": (0.05, -0.1)},
    "swing": {"drift_swing_nm_per_s": 0.2},
    "fly-back": {"flyback_px": 3.0, "flyback_decay_px": 22.0, "flyback_across": -0.2},
    "slow fly-back": {
        "flyback_px": 3.0,
        "flyback_decay_px": 15.0,
        "flyback_slow_share": 0.5,
        "flyback_slow_decay_px": 60.0,
    },
    "settling": {"settle_px": 2.0},
    "coils": {"coil_px": 2.0},
    "coils that stay": {"coil_px": 2.0, "coil_turns_with_scan": False},
    "hum": {"hum_px": 0.5, "hum_hz": 1 / 3.0},
    "jitter": {"row_jitter_px": 0.05, "row_jitter_across_px": 0.05},
    "sinusoidal": {"scan_path": "sinusoidal"},
    "serpentine": {"scan_path": "serpentine", "coil_px": 1.0},
    "all": {
        "drift_rate_nm_per_s": (0.05, -0.1),
        "flyback_px": 2.0,
        "flyback_decay_px": 20.0,
        "settle_px": 1.0,
        "coil_px": 1.0,
        "hum_px": 0.3,
        "hum_hz": 1 / 3.0,
        "variation": 0.2,
    },
}


def seen_spot(path: BeamPath, at_nm: np.ndarray) -> np.ndarray:
    """Where one atom is seen in a noiseless frame: the top of a quadratic form through its log."""
    image = np.zeros(path.geometry.shape, np.float32)
    add_columns(image, at_nm[None], np.array([1e4]), 0.15, path)
    row, col = np.unravel_index(image.argmax(), image.shape)
    v, u = np.mgrid[-1:2, -1:2].reshape(2, -1).astype(float)
    near = np.log(image[row - 1 : row + 2, col - 1 : col + 2].astype(float).ravel())
    terms = np.stack([v * v / 2, u * u / 2, v * u, v, u, np.ones(9)], axis=1)
    vv, uu, vu, down, right, _ = np.linalg.lstsq(terms, near, rcond=None)[0]
    return np.array([row, col]) - np.linalg.solve([[vv, vu], [vu, uu]], [down, right])


def nominal_nm(geometry: ScanGeometry) -> np.ndarray:
    rows, cols = geometry.shape
    grid = np.stack(np.mgrid[0:rows, 0:cols], axis=-1).reshape(-1, 2).astype(float)
    return geometry.to_nm(grid).reshape(rows, cols, 2)


def test_without_distortions_the_beam_is_where_the_raster_has_it():
    path = distortion().scan(GEOMETRY, 10.0)

    np.testing.assert_allclose(path.specimen_positions_nm(), nominal_nm(GEOMETRY), atol=1e-12)
    assert path.drift_nm == (0.0, 0.0)


def test_a_specimen_point_is_found_at_the_scan_position_plus_drift():
    scan = distortion(drift_rate_nm_per_s=(0.1, -0.2), drift_settling_s=50.0)
    scan.wait(10.0)
    path = scan.scan(GEOMETRY, 1e-3)  # so short that the drift stands still
    travel = np.array([0.1, -0.2]) * 50.0 * (1 - np.exp(-10.0 / 50.0))

    np.testing.assert_allclose(path.specimen_positions_nm() + travel, nominal_nm(GEOMETRY), atol=1e-6)
    np.testing.assert_allclose(path.drift_nm, travel, atol=1e-6)


def test_the_drift_moves_from_row_to_row_at_its_rate():
    path = distortion(drift_rate_nm_per_s=(0.02, 0.0), drift_settling_s=1000.0).scan(GEOMETRY, 1000.0)
    steps = np.diff(path.row_drift_nm, axis=0)

    np.testing.assert_allclose(steps[:, 0], 0.02 * 30 * 1e-3, rtol=1e-2)  # 30 pixels of 1 ms a row
    np.testing.assert_allclose(steps[:, 1], 0.0, atol=1e-15)
    assert path.ended_s - path.started_s == pytest.approx(40 * 30 * 1e-3)
    assert path.row_drift_nm[0, 0] == pytest.approx(0.02 * 0.015, rel=1e-2)  # the middle of the first row


def test_the_drift_settles():
    scan = distortion(drift_rate_nm_per_s=(0.02, 0.01), drift_settling_s=10.0)
    scan.wait(1000.0)

    assert scan.drift_nm == pytest.approx((0.2, 0.1))


def test_the_wander_grows_as_the_square_root_of_time():
    ends = []
    for seed in range(400):
        scan = distortion(seed, drift_wander_nm_per_sqrt_s=0.01)
        scan.wait(1.0)
        scan.scan(GEOMETRY, 3e6 / (40 * 30))
        ends.append(scan.drift_nm)

    assert np.std(ends) == pytest.approx(0.01 * np.sqrt(4.0), rel=0.1)


def test_rows_jitter_by_the_configured_sd_along_the_fast_axis_only():
    tall = ScanGeometry(shape=(4000, 4), field_of_view_nm=(0.4, 400.0), rotation_rad=0.4)
    path = distortion(row_jitter_px=0.15).scan(tall, 1.0)
    moved_px = tall.to_px(path.specimen_positions_nm()[:, 0]) - tall.to_px(nominal_nm(tall)[:, 0])

    assert path.jitter_px[1].std() == pytest.approx(0.15, rel=0.05)
    np.testing.assert_allclose(moved_px[:, 1], path.jitter_px[1], atol=1e-9)
    np.testing.assert_allclose(moved_px[:, 0], 0.0, atol=1e-9)


def test_the_fly_back_fades_along_each_row():
    path = distortion(flyback_px=0.5, flyback_decay_px=10.0).scan(GEOMETRY, 1.0)

    assert path.column_offset_px[:, 0].tolist() == [0.0, 0.5]
    assert path.column_offset_px[1, 10] == pytest.approx(0.5 / np.e)


def test_the_same_seed_gives_the_same_scan():
    one, same, other = (
        ScanDistortion(ScanDistortionConfig(), np.random.default_rng(seed)).scan(GEOMETRY, 100.0)
        for seed in (5, 5, 6)
    )

    assert np.array_equal(one.specimen_positions_nm(), same.specimen_positions_nm())
    assert not np.array_equal(one.specimen_positions_nm(), other.specimen_positions_nm())


@pytest.mark.parametrize("name", PARTS)
def test_the_displacement_says_where_the_beam_was_whatever_moves_it(name):
    path = distortion(3, **PARTS[name]).scan(SQUARE, 5000.0)
    place = (np.mgrid[0:64, 0:64] + path.displacement_px()).reshape(2, -1).T

    np.testing.assert_allclose(path.specimen_positions_nm().reshape(-1, 2), SQUARE.to_nm(place), atol=1e-12)
    assert np.abs(path.displacement_px()).max() > 0.04


@pytest.mark.parametrize("name", [name for name in PARTS if name != "jitter"])
@pytest.mark.parametrize("at_px", [(12.0, 9.0), (33.4, 30.7), (50.3, 55.1)])
def test_an_atom_is_seen_where_the_displacement_says(name, at_px):
    path = distortion(3, **PARTS[name]).scan(SQUARE, 1000.0)
    atom_nm = SQUARE.to_nm(np.array([at_px]))[0]
    says = path.seen_px(atom_nm[None])[0]

    # The swing of a sine bends so much within a column that its top is not quite where its middle is.
    atol = 0.02 if name == "sinusoidal" else 0.01
    np.testing.assert_allclose(seen_spot(path, atom_nm), says, atol=atol)


@pytest.mark.parametrize(
    ("strengths", "moves"),
    [
        ({"flyback_px": 2.0, "flyback_decay_px": 40.0}, (0, -1)),
        ({"flyback_px": 2.0, "flyback_decay_px": 40.0, "flyback_across": 1.0}, (-1, -1)),
        ({"settle_px": 2.0, "settle_decay_rows": 40.0}, (-1, 0)),
        ({"drift_rate_nm_per_s": (0.02, 0.0), "drift_settling_s": 1000.0}, (0, 1)),
        ({"drift_rate_nm_per_s": (0.0, 0.02), "drift_settling_s": 1000.0}, (1, 0)),
    ],
)
def test_each_part_moves_what_is_seen_the_way_it_says(strengths, moves):
    geometry = ScanGeometry(shape=(64, 64), field_of_view_nm=(6.4, 6.4))
    atom_nm = geometry.to_nm(np.array([[20.0, 20.0]]))[0]
    moved = seen_spot(distortion(**strengths).scan(geometry, 5000.0), atom_nm) - 20.0

    np.testing.assert_array_equal(np.sign(np.round(moved, 1)), moves)


def test_a_beam_that_is_too_far_to_the_right_shows_an_atom_too_far_to_the_left():
    geometry = ScanGeometry(shape=(64, 64), field_of_view_nm=(6.4, 6.4))
    path = distortion(flyback_px=2.0, flyback_decay_px=1e3).scan(geometry, 1.0)
    atom_nm = geometry.to_nm(np.array([[30.0, 30.0]]))[0]

    assert path.beam_offset_px()[1, 30, 28] == pytest.approx(2 * np.exp(-0.028))
    np.testing.assert_allclose(seen_spot(path, atom_nm), (30.0, 30.0 - 2 * np.exp(-0.028)), atol=0.005)


def test_the_fly_back_returns_quickly_and_then_slowly():
    strengths = {"flyback_px": 3.0, "flyback_slow_share": 0.25, "flyback_slow_decay_px": 100.0}
    path = distortion(**strengths, flyback_decay_px=10.0, flyback_across=0.2).scan(GEOMETRY, 1.0)
    along = 3.0 * np.exp(-2.0) + 0.75 * np.exp(-0.2)

    np.testing.assert_allclose(path.column_offset_px[:, 20], (0.2 * along, along))


def test_the_slow_axis_settles_from_row_to_row():
    path = distortion(settle_px=2.0, settle_decay_rows=8.0).scan(GEOMETRY, 1.0)

    np.testing.assert_allclose(path.row_offset_px[0, [0, 8]], [2.0, 2.0 / np.e])
    assert not path.row_offset_px[1].any()


def test_the_phase_of_the_hum_runs_on_between_frames_and_through_a_wait():
    scan = distortion(1, hum_px=0.4, hum_hz=0.9, hum_across=0.5)
    rows: list[np.ndarray] = []
    times: list[np.ndarray] = []
    for wait_s in (0.0, 0.0, 7.3):
        scan.wait(wait_s)
        path = scan.scan(GEOMETRY, 1000.0)
        rows.append(path.row_offset_px)
        times.append(path.started_s + 0.03 * (np.arange(40) + 0.5))
    hum, at_s = np.concatenate(rows, axis=1), np.concatenate(times)
    waves = np.stack([np.sin(2 * np.pi * 0.9 * at_s), np.cos(2 * np.pi * 0.9 * at_s)])
    weights, left, _, _ = np.linalg.lstsq(waves.T, hum[1], rcond=None)

    assert np.hypot(*weights) == pytest.approx(0.4)
    assert left[0] < 1e-20
    np.testing.assert_allclose(hum[0], 0.5 * hum[1])


def test_rows_also_jitter_across_by_their_own_sd():
    tall = ScanGeometry(shape=(4000, 4), field_of_view_nm=(0.4, 400.0))
    jitter = distortion(row_jitter_px=0.3, row_jitter_across_px=0.1).scan(tall, 1.0).jitter_px

    np.testing.assert_allclose(jitter.std(axis=1), (0.1, 0.3), rtol=0.05)
    assert abs(np.corrcoef(jitter)[0, 1]) < 0.06


def test_an_atom_is_seen_less_the_jitter_of_its_row():
    still, jitter = distortion().scan(SQUARE, 1.0), np.array([0.2, -0.3])[:, None] + np.zeros((2, 64))
    shaken = replace(still, jitter_px=jitter, row_offset_px=jitter)
    atom_nm = SQUARE.to_nm(np.array([[30.2, 40.6]]))
    seen = shaken.seen_px(atom_nm)[0]

    np.testing.assert_allclose(seen, (30.0, 40.9), atol=1e-6)
    np.testing.assert_allclose(seen_spot(shaken, atom_nm[0]), seen, atol=0.005)
    np.testing.assert_allclose(shaken.seen_px(atom_nm, jitter=False)[0], (30.2, 40.6), atol=1e-6)


def test_without_its_jitter_the_displacement_is_smooth():
    path = distortion(row_jitter_px=0.3, coil_px=1.0).scan(SQUARE, 1.0)
    bend = np.diff(path.displacement_px(jitter=False), n=2, axis=1)

    assert np.abs(bend).max() < 0.02
    difference = path.displacement_px() - path.displacement_px(jitter=False)
    np.testing.assert_allclose(
        difference, np.broadcast_to(path.jitter_px[:, :, None], (2, 64, 64)), atol=1e-12
    )


def test_the_swing_has_its_velocity_and_does_not_run_away():
    config = {"drift_swing_nm_per_s": 0.05, "drift_swing_period_s": 20.0, "drift_swing_memory_s": 5.0}
    scan = distortion(2, **config)
    places = []
    for _ in range(4000):
        scan.wait(7.0)
        places.append(scan.drift_nm)
    quick = distortion(2, **config)
    path = np.array([quick.drift_nm] + [quick.scan(SQUARE, 250.0).drift_nm for _ in range(400)])
    speeds = np.diff(path[1:], axis=0) / (64 * 64 * 250e-6)

    assert np.std(places) == pytest.approx(0.05 * 20.0 / (2 * np.pi), rel=0.05)
    assert np.std(speeds) == pytest.approx(0.05, rel=0.15)


def test_the_swing_forgets_a_push_in_its_memory():
    scan = distortion(3, drift_swing_nm_per_s=0.05, drift_swing_period_s=20.0, drift_swing_memory_s=5.0)
    places = []
    for _ in range(6000):
        scan.wait(10.0)
        places.append(scan.drift_nm)
    x = np.array(places)
    # A spring of 20 s that loses its velocity in 5 s, half a period later.
    loss, omega = 1 / 5.0, 2 * np.pi / 20.0
    turning = np.sqrt(omega**2 - loss**2 / 4)
    expected = np.exp(-loss * 5.0) * (np.cos(10 * turning) + loss / (2 * turning) * np.sin(10 * turning))

    assert expected == pytest.approx(-0.34, abs=0.01)
    assert (x[1:] * x[:-1]).mean() / (x**2).mean() == pytest.approx(expected, abs=0.03)


def test_fly_back_and_settling_vary_in_the_course_of_their_period():
    scan = distortion(flyback_px=2.0, settle_px=2.0, coil_px=1.0, variation=0.1, variation_period_s=40.0)
    starts, settlings, coils = [], [], []
    for _ in range(40):
        path = scan.scan(GEOMETRY, 1e6 / (40 * 30))
        starts.append(path.column_offset_px[1, 0])
        settlings.append(path.row_offset_px[0, 0])
        coils.append(path.coil_px)

    assert (min(starts), max(starts)) == pytest.approx((1.8, 2.2), abs=0.01)
    assert (min(settlings), max(settlings)) == pytest.approx((1.75, 2.25), abs=0.03)
    assert 0.02 < np.abs(np.array(coils) - coils[0]).mean(axis=(1, 2, 3)).max() < 0.3


def test_the_coils_go_with_the_scan_position_and_not_with_the_pixel():
    full = ScanGeometry(shape=(64, 64), field_of_view_nm=(6.4, 6.4))
    scan = ScanDistortion(ScanDistortionConfig(**NONE, coil_px=2.0), np.random.default_rng(1), full)
    whole = scan.scan(full, 1.0).coil_px
    center = full.to_nm(np.array([[31.5, 19.5]]))[0]
    part = msgspec.structs.replace(
        full, shape=(32, 32), field_of_view_nm=(1.6, 1.6), center_nm=(float(center[0]), float(center[1]))
    )  # pixels half as large, from pixel (23.75, 11.75) on
    fine = scan.scan(part, 1.0).coil_px
    assert whole is not None
    assert fine is not None
    coarse = fine.reshape(2, 16, 2, 16, 2).mean(axis=(2, 4))

    np.testing.assert_allclose(coarse / 2, whole[:, 24:40, 12:28], atol=2e-3)


@pytest.mark.parametrize("turns", [True, False])
def test_the_coils_turn_with_the_scan_or_stay_with_the_scan_coordinates(turns):
    full = ScanGeometry(shape=(64, 64), field_of_view_nm=(6.4, 6.4))
    config = ScanDistortionConfig(**NONE, coil_px=2.0, coil_turns_with_scan=turns)
    scan = ScanDistortion(config, np.random.default_rng(1), full)
    first = scan.scan(full, 1.0).coil_px
    second = scan.scan(msgspec.structs.replace(full, rotation_rad=np.pi / 2), 1.0).coil_px
    assert first is not None
    assert second is not None
    if turns:
        np.testing.assert_allclose(second, first, atol=1e-9)
    else:  # the turned fast axis is y: pixel (r, c) lies where (c, 63 - r) did, and its axes have turned
        there = first[:, :, ::-1].transpose(0, 2, 1)
        np.testing.assert_allclose(second[1], there[0], atol=1e-9)
        np.testing.assert_allclose(second[0], -there[1], atol=1e-9)


def test_a_parked_beam_has_the_offset_of_the_coils_and_nothing_else():
    full = ScanGeometry(shape=(64, 48), field_of_view_nm=(4.8, 6.4), center_nm=(1.0, 2.0), rotation_rad=0.7)
    strengths = NONE | {
        "coil_px": 2.0,
        "flyback_px": 5.0,
        "settle_px": 3.0,
        "row_jitter_px": 1.0,
        "hum_px": 1.0,
    }
    scan = ScanDistortion(ScanDistortionConfig(**strengths), np.random.default_rng(4), full)
    path = scan.scan(full, 1.0)
    assert path.coil_px is not None
    pixel = np.array([[5.0, 40.0]])
    x, y = full.to_nm(pixel)[0]
    away = scan.parked_offset_nm((float(x), float(y)))
    there = full.to_nm(pixel + path.coil_px[:, 5, 40])[0]

    np.testing.assert_allclose(away, there - (x, y), atol=1e-9)
    assert np.hypot(*away) > 0.03


def test_a_serpentine_scan_flies_back_at_both_ends():
    path = distortion(scan_path="serpentine", flyback_px=2.0).scan(GEOMETRY, 1.0)
    offset = path.beam_offset_px()

    np.testing.assert_allclose(offset[1, 0], 2.0 * np.exp(-np.arange(30) / 10.0))
    np.testing.assert_allclose(offset[1, 1], -offset[1, 0, ::-1])


def test_a_sinusoidal_scan_is_quickest_in_the_middle():
    path = distortion(scan_path="sinusoidal").scan(GEOMETRY, 1.0)
    place = np.arange(30) + path.beam_offset_px()[1, 7]
    steps = np.diff(place)

    assert place[[0, -1]] + 0.5 == pytest.approx((0.0, 30.0), abs=0.05)
    assert steps[14] == pytest.approx(np.pi / 2, rel=0.01)
    assert steps.argmax() == 14
    assert steps.min() > 0


def test_the_specimen_slips_at_once():
    scan = distortion()
    scan.scan(GEOMETRY, 1.0)
    scan.jump((0.3, -0.2))

    assert scan.scan(GEOMETRY, 1.0).drift_nm == pytest.approx((0.3, -0.2))


def test_where_the_stage_was_sent_is_known_and_where_it_went_is_not():
    path = distortion().scan(GEOMETRY, 1.0, (0.5, 0.0), (0.0, 0.1))
    point_nm = np.array([[1.1, -2.3]])
    seen = path.seen_px(point_nm)

    np.testing.assert_allclose(GEOMETRY.to_nm(seen), point_nm + (0.5, 0.1), atol=1e-9)
    np.testing.assert_allclose(path.places_px(point_nm), GEOMETRY.to_px(point_nm + (0.5, 0.0)), atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"row_jitter_px": -1.0}, "distortion.row_jitter_px is -1.0; it takes 0 to 10"),
        ({"flyback_decay_px": 0.0}, "distortion.flyback_decay_px is 0.0; it takes 0.1 to 1000"),
        ({"drift_rate_nm_per_s": (float("nan"), 0.0)}, "distortion.drift_rate_nm_per_s is"),
        ({"coil_px": float("nan")}, "distortion.coil_px is nan; it takes 0 to 50"),
        ({"scan_path": "spiral"}, "distortion.scan_path is 'spiral'; it takes raster, serpentine"),
        ({"drift_settling_s": 0.0}, "distortion.drift_settling_s is 0.0; it takes above 0"),
        ({"hysteresis": 0.5}, "distortion.hysteresis is 0.5; it takes 0 to 0.3"),
        ({"creep_per_decade": -0.01}, "distortion.creep_per_decade is -0.01; it takes 0 to 0.1"),
    ],
)
def test_a_strength_out_of_range_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        ScanDistortionConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"drift_rate_nm_per_s": (1.0, 0.0)}, "_settling_s is .120.0, 0.0. nm in all; it takes up to 20 on"),
        ({"drift_wander_nm_per_sqrt_s": 2.0}, "_per_sqrt_s is 2.0; it takes up to 1 on this field"),
        ({"drift_swing_nm_per_s": 2.0}, "drift_swing_nm_per_s is 2.0; it takes up to 1 on this field"),
    ],
)
def test_a_drift_out_of_proportion_to_the_field_is_refused_and_fits_one_of_microns(fields, message):
    distorted = ScanDistortionConfig(**fields)

    with pytest.raises(ValueError, match=message):
        ScanningConfig(field_of_view_nm=6.3, distortion=distorted)
    distorted.check(2000.0)


# -- piezo scanners: both ways, hysteresis and creep -----------------------------------------------

MICRON = ScanGeometry(shape=(64, 64), field_of_view_nm=(1000.0, 1000.0))


def both_ways(seed: int = 0, **strengths) -> tuple[BeamPath, BeamPath]:
    path = distortion(seed, both_ways=True, **strengths).scan(MICRON, 1000.0)
    assert path.backward is not None
    return path, path.backward


def test_an_instrument_that_records_one_way_refuses_both():
    with pytest.raises(
        ValueError, match=r"instrument.distortion.both_ways is true; this instrument records one"
    ):
        ScanningConfig(distortion=ScanDistortionConfig(both_ways=True))


def test_both_ways_take_twice_the_time_and_show_the_same_places():
    there, back = both_ways()

    assert there.ended_s == pytest.approx(2 * 64 * 64 * 1e-3)
    np.testing.assert_allclose(there.specimen_positions_nm(), nominal_nm(MICRON), atol=1e-9)
    np.testing.assert_allclose(back.specimen_positions_nm(), nominal_nm(MICRON), atol=1e-9)


def test_the_way_back_is_later_by_half_a_row_and_jitters_by_itself():
    there, back = both_ways(
        drift_rate_nm_per_s=(1.0, 0.0), drift_settling_s=1000.0, row_jitter_px=0.3, hum_px=0.2
    )

    np.testing.assert_allclose(back.row_drift_nm[:, 0] - there.row_drift_nm[:, 0], 0.064, rtol=0.01)
    assert abs(np.corrcoef(there.jitter_px[1], back.jitter_px[1])[0, 1]) < 0.4
    assert back.jitter_px[1].std() == pytest.approx(0.3, rel=0.3)
    assert not np.array_equal(back.row_offset_px - back.jitter_px, there.row_offset_px - there.jitter_px)


def test_the_fly_back_of_the_way_back_is_at_its_own_beginning_on_the_right():
    there, back = both_ways(flyback_px=2.0, flyback_decay_px=10.0)

    assert there.beam_offset_px()[1, 5, 0] == pytest.approx(2.0)
    assert back.beam_offset_px()[1, 5, -1] == pytest.approx(-2.0)
    assert abs(back.beam_offset_px()[1, 5, 0]) < 0.01


def test_hysteresis_opens_the_two_ways_in_the_middle_by_its_share_and_not_at_the_ends():
    """Rayleigh's law, x(E) = (d + a E0) E -+ a (E0^2 - E^2) / 2: two parabolas that meet at the ends."""
    there, back = both_ways(hysteresis=0.1)
    opening_px = back.beam_offset_px()[1, 7] - there.beam_offset_px()[1, 7]
    place = np.linspace(-1, 1, 64)

    np.testing.assert_allclose(opening_px, 0.1 * 64 * (1 - place**2), atol=1e-12)
    assert there.beam_offset_px()[1, 7, 32] < 0  # it is behind, and a feature is seen too far to the right


def test_a_smaller_scan_has_a_smaller_share_of_hysteresis():
    config = ScanDistortionConfig(**NONE, hysteresis=0.1)
    scan = ScanDistortion(config, np.random.default_rng(0), MICRON)
    half = msgspec.structs.replace(MICRON, field_of_view_nm=(500.0, 500.0))

    assert scan.scan(MICRON, 1.0).beam_offset_px()[1].min() == pytest.approx(-3.2, rel=1e-3)
    assert scan.scan(half, 1.0).beam_offset_px()[1].min() == pytest.approx(-1.6, rel=1e-3)


def test_hysteresis_of_a_serpentine_shifts_its_rows_to_and_fro():
    offset = distortion(scan_path="serpentine", hysteresis=0.1).scan(MICRON, 1.0).beam_offset_px()[1]

    np.testing.assert_allclose(offset[1], -offset[0], atol=1e-12)
    assert offset[0, 32] == pytest.approx(-3.2, rel=1e-2)


def test_a_step_creeps_by_the_same_share_in_every_decade():
    """Source: Physik Instrumente, Piezo Tutorial: dL(t) = dL (1 + g log10(t / 0.1 s)), g 0.01 to 0.02."""
    scan = distortion(creep_per_decade=0.015)
    short = msgspec.structs.replace(MICRON, field_of_view_nm=(1.0, 1.0))
    away = msgspec.structs.replace(short, center_nm=(1000.0, 0.0))
    scan.scan(short, 1e-6)
    scan.scan(away, 1e-6)  # a step of 1000 nm, and hardly a time
    off = []
    for seconds in (10.0, 90.0, 900.0):
        scan.wait(seconds)
        off.append(scan.parked_offset_nm((1000.0, 0.0))[0])

    np.testing.assert_allclose(np.diff(off), 15.0, rtol=0.01)
    assert off[0] == pytest.approx(1000 * 0.015 * np.log10(10.0 / 0.1), rel=0.01)


def test_creep_bends_the_top_of_a_frame_and_of_later_ones_less():
    """Derived: the jump back to the first row creeps on upwards, the way down creeps after it."""
    scan = distortion(creep_per_decade=0.02)
    first, *_, late = (scan.scan(MICRON, 250.0).row_offset_px[0] for _ in range(30))
    second = distortion(creep_per_decade=0.02)
    second.scan(MICRON, 250.0)
    after = second.scan(MICRON, 250.0).row_offset_px[0]

    assert not np.allclose(first, after)
    assert after[0] > after[8]  # at once after the jump it has not gone up yet
    bend = after - np.polyval(np.polyfit(np.arange(64), after, 1), np.arange(64))
    assert np.abs(bend[:6]).max() > 2 * np.abs(bend[20:44]).max()
    assert np.ptp(late) < 0.05 * 64


def test_the_creep_of_a_steady_way_is_that_of_its_many_small_steps():
    scan = distortion(creep_per_decade=0.02)
    path = scan.scan(MICRON, 250.0)
    row_s, row_nm = 64 * 250e-6, 1000.0 / 64
    middle_s = row_s * (np.arange(64) + 0.5)
    fine_s = path.ended_s * (np.arange(6400) + 0.5) / 6400
    since = np.maximum(middle_s[:, None] - fine_s[None], 0.0)
    summed = (0.02 * np.log10(1 + since / 0.1)).sum(axis=1) * 63 / 6400

    np.testing.assert_allclose(path.row_offset_px[0], summed, atol=2e-3)
    assert row_nm * path.row_offset_px[0, -1] > 5.0


def test_what_a_scanner_remembers_of_its_moves_does_not_grow_without_end():
    scan = distortion(creep_per_decade=0.02)
    offsets = [scan.scan(GEOMETRY, 100.0).row_offset_px[0] for _ in range(200)]

    assert len(scan._creep._moves) <= 64
    np.testing.assert_allclose(offsets[-1], offsets[-2], atol=1e-3)


@pytest.mark.parametrize("share", [0.02, 0.1], ids=["usual", "most"])
def test_a_sheet_has_no_blank_edge_where_a_piezo_creeps_or_lags(share):
    still = (0.0, 0.0)
    creeping = ScanDistortionConfig(hysteresis=0.15, creep_per_decade=share, drift_rate_nm_per_s=still)
    config = StemConfig(rows=64, cols=64, field_of_view_nm=6.3, dwell_time_us=1000.0, distortion=creeping)
    instrument = StemInstrument(config, started_at_s=0.0)
    lower, upper = (getattr(instrument.specimen.positions_nm, end)(axis=0) for end in ("min", "max"))
    for _ in range(20):
        instrument.acquire()
        assert instrument.last_path is not None
        seen = instrument.last_path.specimen_positions_nm().reshape(-1, 2)
        assert (seen.min(axis=0) > lower + 0.2).all()
        assert (seen.max(axis=0) < upper - 0.2).all()
