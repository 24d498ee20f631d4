"""An entry of a product has the same bits wherever it stands."""

from __future__ import annotations

import numpy as np
import pytest

from models.product import product

Float32 = np.ndarray


def of(left: Float32, right: Float32) -> Float32:
    out = np.full((len(left), right.shape[1]), np.nan, np.float32)
    product(left, right, out)
    return out


def factors(rows: int, terms: int, columns: int) -> tuple[Float32, Float32]:
    rng = np.random.default_rng([rows, terms, columns])
    return rng.normal(size=(rows, terms)).astype(np.float32), rng.normal(size=(terms, columns)).astype(
        np.float32
    )


SHAPES = [(64, 300, 90), (5, 7, 3), (4, 4, 16), (1, 1, 1), (67, 21, 33), (3, 0, 2), (0, 4, 4), (4, 3, 0)]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_product(shape: tuple[int, int, int]) -> None:
    left, right = factors(*shape)
    expected = left.astype(np.float64) @ right
    bound = 1e-6 * np.abs(left).astype(np.float64) @ np.abs(right)
    assert (np.abs(of(left, right) - expected) <= bound + 1e-12).all()


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_an_entry_does_not_depend_on_where_it_stands_and_beside_what(shape: tuple[int, int, int]) -> None:
    left, right = factors(*shape)
    whole = of(left, right)
    rng = np.random.default_rng(1)
    for _ in range(5):
        rows = rng.choice(shape[0], rng.integers(1, shape[0] + 1), replace=False)
        columns = rng.choice(shape[2], rng.integers(1, shape[2] + 1), replace=False)
        part = of(np.ascontiguousarray(left[rows]), np.ascontiguousarray(right[:, columns]))
        assert np.array_equal(part, whole[np.ix_(rows, columns)])
