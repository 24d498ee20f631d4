"""The error bars of the displacement field hold at any dose, with jitter of the rows and without."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.crystal import CrystalStream, preset
from streamer.drift import to_raster_px
from streamer.observers.reference import absorbed
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion
from tests.known_crystal import lattice_of, message

SIZE_PX = 512
JITTER_PX, NONE = (0.10, 0.25), (0.0, 0.0)


@pytest.mark.parametrize(
    ("counts", "jitter_px"),
    [(6.0, JITTER_PX), (60.0, JITTER_PX), (200.0, JITTER_PX), (60.0, NONE), (200.0, NONE)],
)
def test_95_in_100_true_displacements_lie_in_their_interval(
    counts: float, jitter_px: tuple[float, float]
) -> None:
    config = preset(
        "stem",
        seed=2,
        size_px=SIZE_PX,
        peak_counts=counts,
        background_counts=counts / 10,
        jitter_px=jitter_px,
    )
    stream = CrystalStream(config)
    stage = CorrectDistortion(
        CorrectConfig(mode="calibrate", hum_period_rows=15.2), lattice=lattice_of(stream)
    )
    places = np.stack(np.meshgrid(*[np.arange(0, SIZE_PX, 4.0)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    row, col = places.astype(np.intp).T
    inside = []
    for _ in range(4):
        seen = stream.scan()
        said = stage.process(message(seen, seen.number)).registration
        assert said is not None
        assert said.distortion is not None
        found = said.distortion.at(places) - to_raster_px(said.drift_nm, seen.geometry)
        error = found - seen.displacement_px()[:, row, col].T
        inside.append(np.abs(error) < 1.96 * said.distortion.sd_at(places))
    # The field alone is smoother than the prior has it, so what is said of it without jitter is cautious.
    assert 0.90 <= np.mean(inside[1:]) <= (0.98 if any(jitter_px) else 0.99)


def test_what_is_measured_of_a_row_decides_what_it_absorbs() -> None:
    variance = np.stack([np.full(40, 0.001), np.full(40, 0.04)])
    assert absorbed(variance, np.array([0.01, 0.04])) == (pytest.approx(0.9), 0.0)
    assert absorbed(np.zeros((2, 40)), np.zeros(2)) == (0.0, 0.0)
