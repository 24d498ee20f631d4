"""The elementary functions of the compiled loops say what numpy says, to the last places of float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit

from models import elementary

RNG = np.random.default_rng(0)
GIVEN: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
    "exp": (np.exp, RNG.uniform(-86, 87, 5000)),
    "log": (np.log, np.exp(RNG.uniform(-80, 80, 5000))),
    "log near 1": (np.log, 1 + RNG.uniform(-1e-3, 1e-3, 5000)),
    "tanh": (np.tanh, RNG.normal(0, 3, 5000)),
    "tanh near 0": (np.tanh, RNG.normal(0, 1e-4, 5000)),
    "sin_pi": (lambda x: np.sin(np.pi * x), RNG.uniform(-0.5, 0.5, 5000)),
}


@pytest.mark.parametrize("name", list(GIVEN))
def test_an_elementary_function_is_right_to_the_last_places(name: str) -> None:
    reference, given = GIVEN[name]
    function = getattr(elementary, name.split()[0])

    @njit
    def all_of(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(len(x)):
            out[i] = function(x[i])

    told = np.empty(len(given), dtype=np.float32)
    all_of(given.astype(np.float32), told)
    np.testing.assert_allclose(told, reference(given.astype(np.float32).astype(np.float64)), rtol=4e-7)


def test_the_ends_are_reached_and_not_passed() -> None:
    assert elementary.exp(np.float32(-1000)) == elementary.exp(np.float32(-87)) > 0
    assert np.isfinite(elementary.exp(np.float32(1000)))
    assert elementary.log(np.float32(1)) == 0
    assert elementary.tanh(np.float32(50)) == pytest.approx(1, abs=4e-7)
    assert elementary.sin_pi(np.float32(0.5)) == pytest.approx(1, abs=2e-7)
