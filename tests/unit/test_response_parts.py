from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from streamer.messages import Frame, ScanGeometry
from streamer.response_parts import as_read, in_parts


def frame(image: np.ndarray, *channels: str) -> Frame:
    return Frame(
        session="",
        number=3,
        acquired_at_s=0.0,
        image=image.astype(np.float32),
        channels=channels,
        geometry=ScanGeometry(shape=image.shape[1:], field_of_view_nm=(10.0, 10.0)),
        dwell_time_us=1.0,
    )


def test_a_frame_comes_back_as_it_was() -> None:
    rng = np.random.default_rng(1)
    image = np.stack([rng.uniform(1, 9, (6, 5)), rng.uniform(-3.1, 3.1, (6, 5)), rng.normal(size=(6, 5))])
    before = frame(image, "amplitude", "phase", "height")
    parts = in_parts(before)
    assert parts.image.shape == (4, 6, 5)
    np.testing.assert_array_equal(parts.image[0], before.image[0])
    after = as_read(parts)
    assert after.channels == before.channels
    np.testing.assert_allclose(after.image, before.image, rtol=1e-5, atol=1e-6)


def test_the_mean_of_neighbours_keeps_a_phase_that_wraps_between_them() -> None:
    parts = in_parts(frame(np.array([[[2.0, 2.0]], [[3.1, -3.1]]]), "amplitude", "phase"))
    between = msgspec.structs.replace(parts, image=parts.image.mean(axis=2, keepdims=True).repeat(2, axis=2))
    read = as_read(between)
    assert abs(read.image[1, 0, 0]) == pytest.approx(math.pi)
    assert read.image[0, 0, 0] == pytest.approx(2.0, abs=0.01)


def test_halfway_between_two_domains_there_is_no_response() -> None:
    parts = in_parts(frame(np.array([[[2.0, 2.0]], [[0.3, 0.3 - math.pi]]]), "amplitude", "phase"))
    between = msgspec.structs.replace(parts, image=parts.image.mean(axis=2, keepdims=True).repeat(2, axis=2))
    assert as_read(between).image[0] == pytest.approx(0.0, abs=1e-6)


def test_frames_of_other_instruments_are_left_alone() -> None:
    seen = frame(np.ones((2, 4, 4)), "height trace", "height retrace")
    assert in_parts(seen) is seen
    assert as_read(seen) is seen


def test_a_phase_in_degrees_is_understood() -> None:
    seen = frame(np.array([[[2.0, 2.0, 2.0]], [[-90.0, 0.0, 270.0]]]), "amplitude", "phase")
    np.testing.assert_allclose(
        as_read(in_parts(seen)).image[1, 0], [-math.pi / 2, 0, -math.pi / 2], atol=1e-6
    )
