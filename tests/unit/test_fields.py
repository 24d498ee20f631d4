"""The fields that the agent is measured on: hard enough, and described whatever their turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.benchmarks import fields
from tests.benchmarks.fields import Field

SEED = 1


@pytest.mark.parametrize("make", [fields.plasmon, fields.ferroelectric, fields.grains, fields.vacancies])
def test_chance_hardly_finds_the_best_of_a_field(make: Callable[[int], Field]) -> None:
    field = make(SEED)
    assert (field.truth.min(), field.truth.max()) == pytest.approx((0.0, 1.0), abs=0.1)
    assert 1 <= (field.truth >= 0.95).sum() <= 12  # 12 of 4,096: found in 80 by chance once in five
    assert make(SEED).picture.tobytes() == field.picture.tobytes()
    assert make(SEED + 2).truth.tobytes() != field.truth.tobytes()


def test_a_turned_picture_is_described_alike() -> None:
    field = fields.plasmon(SEED)
    turned = replace(field, picture=np.ascontiguousarray(np.rot90(field.picture)))
    here = fields.latents(field).reshape(64, 64, -1)
    there = np.rot90(fields.latents(turned).reshape(64, 64, -1), -1)
    inside = (slice(9, -9), slice(9, -9))
    for one, other in zip(here[inside].reshape(-1, 8).T, there[inside].reshape(-1, 8).T, strict=True):
        assert abs(np.corrcoef(one, other)[0, 1]) > 0.999


def test_a_part_of_a_field_keeps_picture_and_truth_together() -> None:
    field = fields.plasmon(SEED)
    same = replace(field, picture=field.truth)
    part = fields.part_of(same, 3)
    assert part.truth.shape == (40, 40)
    assert part.picture.tobytes() == part.truth.tobytes()
    assert fields.part_of(same, 5).truth.tobytes() != part.truth.tobytes()
