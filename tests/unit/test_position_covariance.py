"""What a frame's correction adds to the covariance of positions, and how that is turned onto the specimen."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from streamer.messages import Distortion, Frame, Registration, ScanGeometry
from streamer.position_covariance import of_correction, on_specimen

SIZE = 64
PLACES = np.array([[0.0, 0.0], [63.0, 63.0]])


def corrected(
    make_frame: Callable[..., Frame], sd_px: np.ndarray, row_sd_px: tuple[float, float] = (0.0, 0.0)
) -> Frame:
    lines = np.zeros((2, SIZE), np.float32)
    distortion = Distortion(
        mode="drift-only",
        grid_px=np.zeros((2, 2, 2), np.float32),
        rows_px=lines,
        cols_px=lines,
        row_offset_px=lines,
        sd_px=sd_px.astype(np.float32),
        row_sd_px=row_sd_px,
    )
    image = np.ones((1, SIZE, SIZE), np.float32)
    return make_frame(image, registration=Registration(distortion=distortion))


def test_a_frame_that_was_not_corrected_adds_nothing(make_frame: Callable[..., Frame]) -> None:
    assert not of_correction(make_frame(), PLACES, 4.0).any()
    assert not of_correction(make_frame(registration=Registration()), PLACES, 4.0).any()


def test_the_field_counts_with_its_sd_at_the_place(make_frame: Callable[..., Frame]) -> None:
    sd_px = np.array([[[0.1, 0.1], [0.1, 0.3]], [[0.2, 0.2], [0.2, 0.4]]])
    added = of_correction(corrected(make_frame, sd_px), PLACES, 4.0)
    np.testing.assert_allclose(added, [np.diag([0.01, 0.04]), np.diag([0.09, 0.16])], rtol=1e-5)


def test_offsets_of_rows_average_out_over_those_that_a_column_crosses(
    make_frame: Callable[..., Frame],
) -> None:
    """Against the scatter of a least-squares fit to a column whose rows are off at random."""
    sigma_px = 4.0
    frame = corrected(make_frame, np.full((2, 2, 2), 0.5), (0.5, 0.5))
    added = of_correction(frame, PLACES[:1], sigma_px)[0]
    away = np.arange(-16, 17)
    column = np.exp(-(away[:, None] ** 2 + away**2) / (2 * sigma_px**2))
    for axis, slope in enumerate((away[:, None] * column, away * column)):
        weight = (slope**2).sum(axis=1)  # of each row's offset along the axis
        assert added[axis, axis] == pytest.approx(0.25 * (weight**2).sum() / weight.sum() ** 2, rel=0.01)


def test_a_covariance_turns_with_the_scan() -> None:
    along_rows = np.diag([0.0, 1.0])[None]
    turned = ScanGeometry(shape=(SIZE, SIZE), field_of_view_nm=(6.4, 12.8), rotation_rad=math.radians(30))
    x, y = math.cos(math.radians(30)), math.sin(math.radians(30))
    expected = 0.01 * np.array([[[x * x, x * y], [x * y, y * y]]])
    np.testing.assert_allclose(on_specimen(along_rows, turned), expected, rtol=1e-5)
