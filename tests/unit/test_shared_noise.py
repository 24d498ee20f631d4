"""A reference of one noisy frame does not put the next frame beside where it is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.observers.registration import measure_rows

SIZE, SPACING, SIGMA = 192, 14.0, 3.5


def drawn(displacement_px: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Count electrons of a square lattice whose every second column is dimmer."""
    place, image = np.arange(SIZE), np.full((SIZE, SIZE), 8.0)
    for start, height in ((0.0, 40.0), (0.5, 25.0)):
        sites = (np.arange(-2, SIZE / SPACING + 2) + start) * SPACING
        down, along = (
            np.exp(-((place[:, None] - sites - d) ** 2) / (2 * SIGMA**2)).sum(axis=1) for d in displacement_px
        )
        image += height * np.outer(down, along)
    return rng.poisson(image).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("part", [-0.45, -0.2, 0.2, 0.45])
def test_a_frame_displaced_by_part_of_a_pixel_is_found_there(axis: int, part: float) -> None:
    """Weights and reference share the reference's noise: the mean was off by 0.09 px at half a pixel."""
    displacement = np.zeros(2)
    displacement[axis] = part
    found = []
    for seed in range(2, 14, 2):
        rng = np.random.default_rng(seed)
        rows = measure_rows(drawn(displacement, rng), drawn(np.zeros(2), rng), displacement, 4.0)
        found.append(rows.mean[axis])
    assert abs(np.mean(found)) < 0.04
