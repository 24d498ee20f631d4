"""Drift, fly-back and row jitter are as strong as configured, and their truth is told."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.scan_distortion import ScanDistortion, ScanDistortionConfig
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"row_jitter_px": -1.0}, "distortion.row_jitter_px is -1.0; it takes 0 to 10"),
        ({"flyback_decay_px": 0.0}, "distortion.flyback_decay_px is 0.0; it takes 0.1 to 1000"),
        ({"drift_rate_nm_per_s": (float("nan"), 0.0)}, "distortion.drift_rate_nm_per_s is"),
        ({"drift_settling_s": 0.0}, "distortion.drift_settling_s is 0.0; it takes above 0"),
        (
            {"drift_rate_nm_per_s": (1.0, 0.0)},
            "drift_settling_s is .120.0, 0.0. nm in all; it takes up to 20",
        ),
    ],
)
def test_a_strength_out_of_range_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        ScanDistortionConfig(**fields)
