"""CheckFrame lets pictures pass and refuses what no later stage could use."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.messages import Frame, ScanGeometry
from streamer.stage import Rejected
from streamer.stages.check_frame import CheckConfig, CheckFrame


def frame(image: np.ndarray, channels: tuple[str, ...] = ("HAADF",)) -> Frame:
    image = np.asarray(image, dtype=np.float32).reshape(len(channels), *image.shape[-2:])
    return Frame(
        session="s",
        number=3,
        acquired_at_s=1.0,
        image=image,
        channels=channels,
        geometry=ScanGeometry(shape=image.shape[1:], field_of_view_nm=(1.0, 1.0)),
        dwell_time_us=1.0,
    )


def picture() -> np.ndarray:
    return np.random.default_rng(4).poisson(20, (32, 32)).astype(np.float32)


def reason(image: np.ndarray, channels: tuple[str, ...] = ("HAADF",)) -> str:
    with pytest.raises(Rejected) as rejection:
        CheckFrame().process(frame(image, channels))
    return rejection.value.reason


def test_a_picture_passes_as_the_very_same_frame() -> None:
    good = frame(picture())
    assert CheckFrame().process(good) is good


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_value_that_is_not_finite_refuses_the_frame(value: float) -> None:
    image = picture()
    image[5, 7] = value
    assert reason(image) == "not finite"


def test_a_nan_in_the_second_channel_refuses_the_frame() -> None:
    second = picture()
    second[0, 0] = np.nan
    assert reason(np.stack([picture(), second]), ("HAADF", "ABF")) == "not finite"


def test_a_blanked_beam_is_constant() -> None:
    assert reason(np.full((32, 32), 7.0)) == "constant"


def test_an_unconnected_second_channel_does_no_harm() -> None:
    good = frame(np.stack([picture(), np.zeros((32, 32), dtype=np.float32)]), ("HAADF", "ABF"))
    assert CheckFrame().process(good) is good


def test_a_clipped_detector_is_saturated() -> None:
    assert reason(np.minimum(picture(), 22)) == "saturated"


def test_how_much_saturation_is_allowed_is_configured() -> None:
    clipped = frame(np.minimum(picture(), 22))
    assert CheckFrame(CheckConfig(max_saturated_fraction=0.9)).process(clipped) is clipped


@pytest.mark.parametrize("fraction", [0.0, 1.5, float("nan")])
def test_an_impossible_fraction_is_refused_by_name(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"check\.max_saturated_fraction is"):
        CheckConfig(max_saturated_fraction=fraction)
