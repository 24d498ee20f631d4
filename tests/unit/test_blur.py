"""A blur is a Gaussian with the width that was asked for along each axis."""

from __future__ import annotations

import numpy as np
import pytest

from models.blur import blurred


def test_a_point_becomes_a_bell_of_the_two_widths() -> None:
    image = np.zeros((61, 81), dtype=np.float32)
    image[30, 40] = 1
    bell = blurred(image, (2.0, 3.5), reach=4.0)
    row, col = np.arange(61) - 30, np.arange(81) - 40
    assert bell.sum() == pytest.approx(1, rel=1e-5)
    assert np.sqrt(bell.sum(axis=1) @ row**2) == pytest.approx(2.0, rel=0.01)
    assert np.sqrt(bell.sum(axis=0) @ col**2) == pytest.approx(3.5, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (40, 3)])
def test_beyond_the_edge_the_edge_goes_on(shape: tuple[int, int]) -> None:
    np.testing.assert_allclose(blurred(np.full(shape, 3.0, dtype=np.float32), 2.5), 3.0, rtol=1e-5)
