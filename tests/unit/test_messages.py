"""Messages say what is wrong with them, and the geometry is the one of docs/concepts.md."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamer.messages import Outcome, Registration, ScanGeometry, Score


def test_frame_of_the_wrong_dtype_is_refused_by_name(make_frame):
    with pytest.raises(ValueError, match=r"frame.image has dtype float64; it takes float32"):
        make_frame(image=np.zeros((1, 4, 4)))


def test_frame_whose_image_does_not_fit_its_geometry_is_refused(make_frame):
    geometry = ScanGeometry(shape=(8, 8), field_of_view_nm=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"frame.image has shape \(1, 4, 4\); it takes \(1, 8, 8\)"):
        make_frame(image=np.zeros((1, 4, 4), np.float32), geometry=geometry)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", -1),
        ("number", 2**64 - 1),
        ("dwell_time_us", 0.0),
        ("acquired_at_s", math.nan),
        ("acquired_at_s", 1e300),
        ("dose_e_per_nm2", -1.0),
    ],
)
def test_frame_with_an_impossible_number_is_refused_by_name(make_frame, field, value):
    with pytest.raises(ValueError, match=f"frame.{field} is"):
        make_frame(**{field: value})


def test_ok_outcome_must_say_where_the_beam_was():
    with pytest.raises(ValueError, match="scan_position_nm is missing"):
        Outcome(session="s", id="a", status="ok")


def test_centre_pixel_lies_at_the_centre_of_the_scan():
    geometry = ScanGeometry(shape=(5, 9), field_of_view_nm=(1.8, 1.0), center_nm=(3.0, -2.0))
    assert geometry.to_nm(np.array([[2.0, 4.0]])) == pytest.approx(np.array([[3.0, -2.0]]))


def test_columns_run_along_x_and_rows_along_y_downwards():
    geometry = ScanGeometry(shape=(10, 10), field_of_view_nm=(1.0, 1.0))
    first, right, down = geometry.to_nm(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    assert right - first == pytest.approx([0.1, 0.0])
    assert down - first == pytest.approx([0.0, 0.1])


def test_scan_rotated_by_90_degrees_sees_the_specimen_turned_counterclockwise():
    # numpy.rot90(image, 1) is what a scan rotation of +90 degrees shows.
    upright = ScanGeometry(shape=(6, 6), field_of_view_nm=(6.0, 6.0))
    rotated = ScanGeometry(shape=(6, 6), field_of_view_nm=(6.0, 6.0), rotation_rad=math.pi / 2)
    image = np.arange(36).reshape(6, 6)
    rows, cols = np.meshgrid(np.arange(6), np.arange(6), indexing="ij")
    seen_at = upright.to_px(rotated.to_nm(np.stack([rows.ravel(), cols.ravel()], axis=1)))
    seen = image[tuple(np.rint(seen_at).astype(int).T)].reshape(6, 6)
    assert np.array_equal(seen, np.rot90(image, 1))


def test_pixels_to_nanometres_and_back_is_the_identity():
    geometry = ScanGeometry(
        shape=(31, 64), field_of_view_nm=(6.4, 2.0), center_nm=(1.0, 2.0), rotation_rad=0.7
    )
    positions = np.random.default_rng(0).uniform(0, 30, (20, 2))
    assert geometry.to_px(geometry.to_nm(positions)) == pytest.approx(positions)


def test_drifted_specimen_is_met_where_it_went():
    registration = Registration(drift_nm=(0.5, -0.25), drift_rate_nm_per_s=(0.1, 0.0), at_s=10.0)
    assert registration.scan_position_nm((1.0, 1.0)) == (1.5, 0.75)
    assert registration.scan_position_nm((1.0, 1.0), at_s=12.0) == pytest.approx((1.7, 0.75))


@pytest.mark.parametrize("edge_nm", [0.0, -1.0, math.nan, 1e-300, 1e200])
def test_field_of_view_that_no_microscope_has_is_refused(edge_nm):
    with pytest.raises(ValueError, match=r"geometry.field_of_view_nm is"):
        ScanGeometry(shape=(4, 4), field_of_view_nm=(edge_nm, 1.0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ended_at_s", math.nan),
        ("dose_e", math.inf),
        ("dwell_time_us", -1.0),
        ("scan_position_nm", (math.nan, 0.0)),
        ("spectrum", np.zeros(0, np.float32)),
        ("energy_step_ev", 0.0),
    ],
)
def test_outcome_with_an_impossible_number_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"outcome.{field}"):
        Outcome(session="s", id="a", status="failed", **{field: value})


def test_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"score.value"):
        Score(session="s", id="a", objective="counts", value=math.nan, variance=1.0)
