"""Messages say what is wrong with them, and the geometry is the one of docs/concepts.md."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamer.messages import Distortion, Outcome, Registration, ScanGeometry, Score
from tests.drawn_windows import sent, spots


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


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"window_range": None}, "latents.windows and window_range go together"),
        ({"windows": np.zeros((4, 1, 6, 6), np.uint8)}, r"latents.windows has shape \(4, 1, 6, 6\)"),
        ({"windows": np.zeros((5, 1, 6, 6), np.float32)}, "latents.windows has dtype float32"),
        ({"window_range": np.zeros((5, 2, 2), np.float32)}, r"window_range has shape \(5, 2, 2\)"),
    ],
)
def test_windows_that_do_not_belong_to_the_atoms_are_refused_by_name(make_latents, changes, text):
    with pytest.raises(ValueError, match=text):
        make_latents(5, **(sent(spots(np.ones(5))) | changes))


def test_a_covariance_for_other_atoms_is_refused_by_name(make_latents):
    with pytest.raises(ValueError, match=r"latents.position_covariance_nm2 has shape \(4, 2, 2\)"):
        make_latents(5, position_covariance_nm2=np.zeros((4, 2, 2), np.float32))


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


def distortion(grid=None, rows=None, cols=None, offsets=None, shape=(33, 65)) -> Distortion:
    """Make one of 33 rows and 65 columns, with nodes every 8 pixels; what is not told is zero."""
    zeros = [np.zeros((2, n), np.float32) for n in (shape[0], shape[1], shape[0])]
    parts = [
        zero if given is None else np.asarray(given, np.float32)
        for given, zero in zip((rows, cols, offsets), zeros, strict=True)
    ]
    nodes = np.zeros((2, 5, 9), np.float32) if grid is None else np.asarray(grid, np.float32)
    return Distortion(
        mode="calibrate",
        grid_px=nodes,
        rows_px=parts[0],
        cols_px=parts[1],
        row_offset_px=parts[2],
        sd_px=np.full_like(nodes, 0.1),
    )


def test_a_distortion_is_the_sum_of_its_parts():
    row, col = np.mgrid[0:5, 0:9] * 8.0
    made = distortion(
        grid=[0.01 * row, 0.02 * col],
        rows=np.stack([np.full(33, 0.5), np.arange(33) * 0.1]),
        cols=np.stack([np.zeros(65), np.arange(65) * 0.001]),
        offsets=np.stack([np.zeros(33), np.full(33, -0.2)]),
    )
    found = made.at(np.array([[4.0, 10.0], [20.5, 33.25]]))
    expected = [[0.04 + 0.5, 0.2 + 0.4 + 0.01 - 0.2], [0.205 + 0.5, 0.665 + 2.05 + 0.03325 - 0.2]]
    assert found == pytest.approx(np.array(expected), abs=1e-6)
    assert made.sd_at(np.array([[3.3, 7.7]])) == pytest.approx(0.1)


def test_a_beam_at_rest_suffers_only_what_does_not_come_from_scanning():
    made = distortion(grid=np.full((2, 5, 9), 0.3), rows=np.ones((2, 33)), cols=np.ones((2, 65)))
    assert made.at(np.array([[5.0, 5.0]]), at_rest=True) == pytest.approx(0.3)


def test_where_a_place_is_seen_is_the_inverse_of_where_a_pixel_was():
    rng = np.random.default_rng(0)
    row, col = np.mgrid[0:5, 0:9] * 8.0
    made = distortion(
        grid=np.stack([np.sin(col / 20), 2 * np.cos(row / 15)]),
        cols=np.stack([np.zeros(65), 3 * np.exp(-np.arange(65) / 20)]),
    )
    seen = rng.uniform((2, 2), (30, 60), (50, 2))
    assert made.seen_at(seen + made.at(seen)) == pytest.approx(seen, abs=1e-3)


def test_the_beam_is_sent_where_the_distortion_will_carry_it_onto_the_atom():
    geometry = ScanGeometry(
        shape=(33, 65), field_of_view_nm=(6.5, 3.3), rotation_rad=0.4, center_nm=(2.0, 1.0)
    )
    row, _ = np.mgrid[0:5, 0:9] * 8.0
    made = distortion(grid=np.stack([0.02 * row, 1.5 + 0.01 * row]), cols=np.ones((2, 65)))
    registration = Registration(drift_nm=(0.1, -0.2), distortion=made)
    sent = registration.scan_position_nm((2.5, 1.1), geometry)
    pixel = geometry.to_px(np.array([sent]))
    met = geometry.to_nm(pixel + made.at(pixel, at_rest=True))[0]
    assert met - (0.1, -0.2) == pytest.approx((2.5, 1.1), abs=1e-6)
    assert registration.specimen_position_nm(sent, geometry) == pytest.approx((2.5, 1.1), abs=1e-6)
    assert registration.scan_position_nm((2.5, 1.1)) == pytest.approx((2.6, 0.9))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"grid": np.zeros((2, 1, 9))}, "empty side"),
        ({"rows": np.zeros((1, 33))}, "rows_px"),
        ({"offsets": np.zeros((2, 32))}, "row_offset_px"),
    ],
)
def test_a_distortion_whose_parts_do_not_fit_is_refused_by_name(fields, text):
    with pytest.raises(ValueError, match=text):
        distortion(**fields)
