"""Windows taken apart into harmonics, and as bytes on their way."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.windows import ORDERS, PER_CHANNEL, RINGS, harmonics, orders
from streamer.window_bytes import as_bytes, as_seen
from tests.drawn_windows import spots

EDGE = 24


def noise(n: int = 400, channels: int = 1, edge: int = EDGE) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(n, channels, edge, edge)).astype(np.float32)


def test_there_is_a_number_for_the_middle_and_for_each_ring_and_order() -> None:
    assert harmonics(noise(5, channels=2)).shape == (5, 2 * PER_CHANNEL)
    assert np.bincount(orders(1)).tolist() == [1 + RINGS, *[2 * RINGS] * ORDERS]
    assert orders(2).tolist() == 2 * orders(1).tolist()


def test_a_flat_window_has_nothing_of_the_higher_orders() -> None:
    (flat,) = harmonics(np.ones((1, 1, EDGE, EDGE), np.float32))
    assert np.abs(flat[orders(1) > 0]).max() < 1e-5
    assert flat[orders(1) == 0].min() > 1.0


def test_a_quarter_of_a_turn_turns_each_pair_by_its_order() -> None:
    windows = noise(6)
    before, after = harmonics(windows), harmonics(np.rot90(windows, axes=(2, 3)).copy())
    order = orders(1)
    assert after[:, order == 0] == pytest.approx(before[:, order == 0], abs=1e-5)
    (pairs,) = np.nonzero(order)
    turned = [
        part[:, pairs[::2]] + 1j * part[:, pairs[1::2]] for part in (before, after)
    ]  # rot90 turns from the column axis towards smaller rows
    expected = turned[0] * np.exp(-0.5j * np.pi * order[pairs[::2]])
    assert np.abs(turned[1] - expected).max() < 1e-5


def test_white_noise_is_as_strong_in_each() -> None:
    sd = harmonics(noise(4000)).std(axis=0)
    assert sd[sd > 0] == pytest.approx(1.0, rel=0.06)


def test_what_a_few_pixels_do_not_have_is_nought() -> None:
    few = harmonics(noise(50, edge=8))
    assert np.isfinite(few).all()
    assert (few == 0).all(axis=0).any()
    assert (harmonics(noise(50, edge=64)) != 0).any(axis=0).all()


def test_a_byte_a_pixel_is_off_by_a_510th_of_what_a_window_spans() -> None:
    windows = spots(np.linspace(0.1, 50.0, 40))
    windows[7] = 3.25  # nothing in it
    given, window_range = as_bytes(windows)
    assert given.dtype == np.uint8
    assert window_range.shape == (40, 1, 2)
    again = as_seen(given, window_range)
    assert again.dtype == np.float32
    span = np.ptp(windows, axis=(2, 3), keepdims=True)
    assert (np.abs(again - windows) <= span / 510 * 1.001 + 1e-6).all()
    assert (again[7] == 3.25).all()
