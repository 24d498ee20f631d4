"""A small specimen drawn by hand, and its scan: what was put in is known to the last digit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS, COLS = 96, 128
SIGMA_PX = 3.0


def columns(seed: int = 2) -> NDArray[np.float64]:
    """A square lattice of 16 px with gaps and bright dopants: (row, col, height)."""
    rng = np.random.default_rng(seed)
    row, col = np.meshgrid(np.arange(-64, 170, 16), np.arange(-64, 200, 16), indexing="ij")
    sites = np.stack([row.ravel(), col.ravel(), np.full(row.size, 60.0)], axis=1)
    sites[rng.random(len(sites)) < 0.05, 2] = 250
    return sites[rng.random(len(sites)) > 0.08]


def scan(
    drift_px: tuple[float, float] = (0.0, 0.0),
    offsets_px: NDArray[np.float64] | None = None,
    rng: np.random.Generator | None = None,
    sites: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Draw the specimen displaced by the drift, and each row by its offset along the columns."""
    row, col = np.arange(ROWS)[:, None], np.arange(COLS)[None, :]
    along = np.zeros(ROWS) if offsets_px is None else offsets_px
    image = np.full((ROWS, COLS), 4.0)
    for site in columns() if sites is None else sites:
        distance2 = (row - site[0] - drift_px[0]) ** 2 + (col - site[1] - drift_px[1] - along[:, None]) ** 2
        image += site[2] * np.exp(-distance2 / (2 * SIGMA_PX**2))
    return (image if rng is None else rng.poisson(image)).astype(np.float32)
