"""A hum in the rows is found with its period, and none is found where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.observers.hum import find_hum

Array = NDArray[np.float64]
ROWS = 512


def offsets(
    seed: int,
    frames: int = 1,
    amplitude: float = 0.3,
    period: float = 15.2,
    noise: tuple[float, float] = (0.1, 0.25),
    pause_rows: float = 0.0,
) -> Array:
    """Row offsets with a hum along both directions, a third of it along the rows, shape (frames, 2, rows)."""
    rng = np.random.default_rng(seed)
    at = np.arange(frames)[:, None] * (ROWS + pause_rows) + np.arange(ROWS)
    hum = amplitude * np.sin(2 * np.pi * at / period + rng.uniform(0, 7))
    both = np.stack([0.35 * hum, hum], axis=1)
    result: Array = both + rng.normal(0, 1, both.shape) * np.array(noise)[:, None]
    return result


@pytest.mark.parametrize("seed", range(5))
def test_the_period_is_found_in_one_frame_to_a_few_thousandths(seed: int) -> None:
    period = find_hum(offsets(seed)[0])
    assert period is not None
    assert abs(period / 15.2 - 1) < 4e-3


@pytest.mark.parametrize("seed", range(5))
def test_frames_in_step_give_it_to_a_ten_thousandth(seed: int) -> None:
    period = find_hum(offsets(seed, frames=6))
    assert period is not None
    assert abs(period / 15.2 - 1) < 1e-4


def test_a_pause_between_frames_is_taken_into_account() -> None:
    period = find_hum(offsets(7, frames=6, pause_rows=40.0), rows_between=ROWS + 40.0)
    assert period is not None
    assert abs(period / 15.2 - 1) < 1e-4


def test_frames_out_of_step_still_give_the_period() -> None:
    frames = np.concatenate([offsets(seed) for seed in range(10, 16)])
    period = find_hum(frames)
    assert period is not None
    assert abs(period / 15.2 - 1) < 2e-3


def test_white_jitter_is_no_hum() -> None:
    found = [find_hum(offsets(seed, amplitude=0.0)[0]) for seed in range(60)]
    assert found == [None] * 60


def test_slow_settling_is_no_hum() -> None:
    settling = offsets(3, amplitude=0.0)[0] + 2 * np.exp(-np.arange(ROWS) / 120)
    assert find_hum(settling) is None


def test_rows_that_wander_do_not_hum() -> None:
    for seed in range(20):
        steps = np.random.default_rng(seed).normal(0, 0.1, (2, ROWS))
        assert find_hum(np.cumsum(steps, axis=1)) is None


def test_rows_that_were_never_moved_do_not_hum() -> None:
    assert find_hum(np.zeros((2, ROWS))) is None
    one_way = offsets(4)[0]
    one_way[0] = 0.0
    assert find_hum(one_way) is not None


def test_few_rows_tell_nothing() -> None:
    assert find_hum(offsets(5)[0][:, :24]) is None


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        find_hum(np.zeros((3, ROWS)))
