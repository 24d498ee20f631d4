"""Names of channels, the lag between two directions, and a fast axis that swings like a sine."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.observers.two_directions import (
    fast_axis_lag,
    fast_axis_places,
    linearised,
    pair_forward_backward,
    scan_direction,
)

SIDE = 128
Float32 = NDArray[np.float32]


def specimen(down: NDArray[np.float64], along: NDArray[np.float64], seed: int = 1) -> Float32:
    """Draw bumps of 4 px as seen from probe places, each ``(rows, cols)``."""
    rng = np.random.default_rng(seed)
    image = np.zeros(np.broadcast_shapes(down.shape, along.shape))
    for row, col, height in zip(*rng.uniform(-8, SIDE + 8, (2, 300)), rng.normal(0, 1, 300), strict=True):
        image += height * np.exp(-((down - row) ** 2 + (along - col) ** 2) / 32)
    return (image + rng.normal(0, 0.02, image.shape)).astype(np.float32)


def grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    row, col = np.meshgrid(np.arange(SIDE, dtype=float), np.arange(SIDE, dtype=float), indexing="ij")
    return row, col


@pytest.mark.parametrize(
    ("name", "quantity", "fast", "slow"),
    [
        ("HeightTrace", "height", "forward", None),
        ("HeightRetrace", "height", "backward", None),
        ("Height forward", "height", "forward", None),
        ("Height Sensor (Retrace)", "height sensor", "backward", None),
        ("height_retrace", "height", "backward", None),
        ("heightretrace", "height", "backward", None),
        ("Z_fwd", "z", "forward", None),
        ("Z [Bwd]", "z", "backward", None),
        ("Z_up_forward", "z", "forward", "up"),
        ("Current>>", "current", "forward", None),
        ("Topography<-", "topography", "backward", None),
        ("ub", "", "backward", "up"),
        ("HAADF", "haadf", None, None),
        ("Tracer", "tracer", None, None),
    ],
)
def test_the_direction_is_read_from_the_name(
    name: str, quantity: str, fast: str | None, slow: str | None
) -> None:
    said = scan_direction(name)
    assert (said.quantity, said.fast, said.slow) == (quantity, fast, slow)


def test_channels_pair_up_by_quantity_and_direction() -> None:
    channels = ("HAADF", "HeightRetrace", "PhaseTrace", "HeightTrace", "AmplitudeRetrace")
    assert pair_forward_backward(channels) == [(3, 1)]
    four = ("Z_up_forward", "Z_up_backward", "Z_down_forward", "Z_down_backward")
    assert pair_forward_backward(four) == [(0, 1), (2, 3)]


def test_a_name_that_is_there_twice_is_not_paired() -> None:
    assert pair_forward_backward(("Z fwd", "Z fwd", "Z bwd")) == []
    assert pair_forward_backward(("BF", "DF")) == []


def test_half_of_the_lag_is_laid_to_each_direction_and_the_common_part_to_none() -> None:
    row, col = grid()
    common = 1.5 * np.sin(col / 40)  # nobody can see this without a lattice
    odd = 1.2 + 0.8 * np.cos(col / 50)
    lag = fast_axis_lag(specimen(row, col + common + odd), specimen(row, col + common - odd), (48, 48))
    for blocks, sign in ((lag.forward, 1), (lag.backward, -1)):
        assert len(blocks) > 12
        expected = sign * (1.2 + 0.8 * np.cos(blocks.positions_px[:, 1] / 50))
        np.testing.assert_allclose(blocks.displacement_px[:, 1], expected, atol=0.2)
        np.testing.assert_allclose(blocks.displacement_px[:, 0], 0.0, atol=0.1)


def test_a_backward_image_in_order_of_time_is_refused() -> None:
    row, col = grid()
    image = specimen(row, col)
    with pytest.raises(ValueError, match="flip its rows"):
        fast_axis_lag(image, np.ascontiguousarray(image[:, ::-1]), (48, 48))


def test_images_of_unlike_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="take one shape"):
        fast_axis_lag(np.zeros((64, 64), "f4"), np.zeros((64, 32), "f4"))


@pytest.mark.parametrize(("part", "late"), [(1.0, 0.0), (0.8, 0.0), (0.9, 2.5)])
def test_a_row_read_evenly_in_time_becomes_even_in_place(part: float, late: float) -> None:
    row, col = grid()
    places = fast_axis_places(SIDE, recorded_part=part, late_px=late)
    swung = specimen(row, np.broadcast_to(places, (SIDE, SIDE)))
    straight = linearised(swung, recorded_part=part, late_px=late)
    true = specimen(row, col)
    inside = (slice(None), slice(8, -8))
    before = (swung - true)[inside].std()
    assert (straight - true)[inside].std() < 0.15 * before


def test_the_probe_is_slow_at_the_turns_and_fast_in_the_middle() -> None:
    places = fast_axis_places(100)
    speed = np.diff(places)
    # From turn to turn: pi/2 times the mean speed in the middle, which is one pixel a pixel.
    assert speed.max() == pytest.approx(np.pi / 2, rel=1e-3)
    assert speed[0] < 0.06
    np.testing.assert_allclose(places + places[::-1], 99.0)


def test_the_map_and_its_inverse_agree() -> None:
    ramp = np.broadcast_to(fast_axis_places(200), (3, 200)).astype(np.float32)
    np.testing.assert_allclose(
        linearised(ramp)[:, 4:-4], np.arange(200.0)[None, 4:-4].repeat(3, 0), atol=0.02
    )


def test_a_part_beyond_a_half_period_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recorded_part is 1\.2"):
        linearised(np.zeros((4, 8), "f4"), recorded_part=1.2)
