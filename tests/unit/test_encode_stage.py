"""Encode says on the specimen what the encoder says of its windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.encoder import Encoded
from streamer.messages import Patches, Registration, ScanGeometry
from streamer.stage import Rejected
from streamer.stages.encode import Encode, EncodeConfig
from streamer.window_bytes import as_seen

N = 3


class FixedEncoder:
    """Says the same of every window: angle 1 rad, offset 2 rows down and 3 columns right."""

    revision = "abc123"

    def encode(self, windows_NCHW: NDArray[np.float32], /) -> Encoded:
        n = len(windows_NCHW)
        one = np.ones(n, dtype=np.float32)
        return Encoded(
            mean=windows_NCHW.mean(axis=(1, 2, 3))[:, None] * np.array([[1, 2]], dtype=np.float32),
            sd=np.full((n, 2), 0.1, dtype=np.float32),
            angle_rad=one,
            angle_sd_rad=0.2 * one,
            offset_px=np.tile(np.array([[2, 3]], dtype=np.float32), (n, 1)),
            offset_sd_px=np.tile(np.array([[0.1, 0.4]], dtype=np.float32), (n, 1)),
            class_probability=np.zeros((n, 0), dtype=np.float32),
            novelty=0.5 * one,
        )


def patches(rotation_rad: float = 0.0, windows: NDArray[np.float32] | None = None) -> Patches:
    if windows is None:
        windows = np.arange(N, dtype=np.float32)[:, None, None, None] * np.ones(
            (N, 1, 8, 8), dtype=np.float32
        )
    return Patches(
        session="s",
        number=9,
        acquired_at_s=3.0,
        windows=windows,
        window_nm=0.8,
        positions_px=np.arange(2 * N, dtype=np.float32).reshape(N, 2),
        positions_nm=np.arange(2 * N, dtype=np.float32).reshape(N, 2) / 10,
        confidence=np.array([0.7, 0.8, 0.9], dtype=np.float32),
        geometry=ScanGeometry(shape=(64, 64), field_of_view_nm=(2.0, 2.0), rotation_rad=rotation_rad),
        registration=Registration(revision=4),
        position_covariance_nm2=1e-5 * np.arange(1, 4 * N + 1, dtype=np.float32).reshape(N, 2, 2),
    )


def test_latents_are_those_of_the_windows() -> None:
    latents = Encode(FixedEncoder()).process(patches())
    np.testing.assert_allclose(latents.mean, [[0, 0], [1, 2], [2, 4]])
    np.testing.assert_allclose(latents.novelty, 0.5)
    assert latents.model_revision == "abc123"
    assert (latents.session, latents.number, latents.acquired_at_s) == ("s", 9, 3.0)


def test_positions_confidence_and_registration_are_carried_along() -> None:
    item = patches()
    latents = Encode(FixedEncoder()).process(item)
    np.testing.assert_array_equal(latents.positions_nm, item.positions_nm)
    np.testing.assert_array_equal(latents.positions_px, item.positions_px)
    np.testing.assert_array_equal(latents.position_covariance_nm2, item.position_covariance_nm2)
    np.testing.assert_array_equal(latents.confidence, item.confidence)
    assert latents.registration == item.registration
    assert latents.geometry == item.geometry


def test_windows_go_with_the_latents_where_they_are_asked_for() -> None:
    item = patches(windows=np.random.default_rng(2).normal(size=(N, 1, 8, 8)).astype(np.float32))
    encode = Encode(FixedEncoder())
    assert encode.process(item).windows is None
    encode.sends_windows = True
    latents = encode.process(item)
    assert latents.windows is not None
    assert latents.window_range is not None
    np.testing.assert_allclose(as_seen(latents.windows, latents.window_range), item.windows, atol=0.02)
    np.testing.assert_array_equal(latents.mean, Encode(FixedEncoder()).process(item).mean)


def test_nothing_is_linked_yet() -> None:
    np.testing.assert_array_equal(Encode(FixedEncoder()).process(patches()).track, -1)


def test_offsets_become_x_and_y_in_nanometres() -> None:
    latents = Encode(FixedEncoder()).process(patches())
    np.testing.assert_allclose(latents.offset_nm[0], [0.3, 0.2], rtol=1e-6)  # a window pixel is 0.1 nm
    np.testing.assert_allclose(latents.offset_sd_nm[0], [0.04, 0.01], rtol=1e-6)


def test_offsets_turn_with_the_scan_as_positions_do() -> None:
    item = patches(rotation_rad=math.radians(30))
    latents = Encode(FixedEncoder()).process(item)
    pixel_nm = item.geometry.pixel_size_nm[0]
    place = item.geometry.to_nm(np.array([[10.0, 10.0], [10.0 + 0.2 / pixel_nm, 10.0 + 0.3 / pixel_nm]]))
    np.testing.assert_allclose(latents.offset_nm[0], place[1] - place[0], rtol=1e-5)


def test_spreads_change_places_when_the_scan_is_turned_by_a_right_angle() -> None:
    latents = Encode(FixedEncoder()).process(patches(rotation_rad=math.pi / 2))
    np.testing.assert_allclose(latents.offset_sd_nm[0], [0.01, 0.04], rtol=1e-5)


@pytest.mark.parametrize(("rotation", "angle"), [(0.0, 1.0), (0.5, 1.5), (3.0, 4.0 - 2 * math.pi)])
def test_the_scan_rotation_is_added_to_the_angle(rotation: float, angle: float) -> None:
    latents = Encode(FixedEncoder()).process(patches(rotation_rad=rotation))
    np.testing.assert_allclose(latents.angle_rad, angle, rtol=1e-5)


def test_windows_that_are_not_finite_are_rejected() -> None:
    windows = np.zeros((N, 1, 8, 8), dtype=np.float32)
    windows[1, 0, 2, 2] = np.nan
    with pytest.raises(Rejected, match="not finite"):
        Encode(FixedEncoder()).process(patches(windows=windows))


@pytest.mark.parametrize("field", ["mean", "sd", "angle_rad", "offset_px", "novelty"])
def test_an_encoder_that_answers_good_windows_with_nan_is_not_believed(field: str) -> None:
    class Broken(FixedEncoder):
        def encode(self, windows_NCHW: NDArray[np.float32], /) -> Encoded:
            seen = super().encode(windows_NCHW)
            spoilt = getattr(seen, field).copy()
            spoilt[1] = np.nan
            return seen._replace(**{field: spoilt})

    with pytest.raises(Rejected, match="model not finite"):
        Encode(Broken()).process(patches())


def test_the_shipped_weights_are_the_default() -> None:
    assert EncodeConfig().weights == ""
