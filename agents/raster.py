"""The baseline of every microscope: atom after atom, row after row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, Float64
from agents.site_agent import Choice, SiteAgent


class Raster(SiteAgent):
    """Steps evenly through the atoms in reading order; each further pass takes those between."""

    policy = "raster"

    def _choose(self, candidates: Candidates, free: NDArray[np.int64]) -> Choice:
        order = reading_order(candidates.position_px)
        wanted = _step_through(self._ledger.issued, len(candidates), self.config.raster_step)
        ahead = np.roll(order, -wanted)
        index = int(ahead[np.isin(ahead, free)][0])
        return Choice(index=index, reason="next in reading order")


def reading_order(position_px: Float64) -> NDArray[np.int64]:
    """Order ``(row, col)`` positions ``(n, 2)`` as one reads: line by line, left to right.

    A line is as high as an atom has room: ``√(area / n)``.
    """
    n = position_px.shape[0]
    extent_px = np.ptp(position_px, axis=0)
    line_px = max(1.0, math.sqrt(float(extent_px[0] * extent_px[1]) / n))
    line = np.floor((position_px[:, 0] - position_px[:, 0].min()) / line_px)
    return np.lexsort((position_px[:, 1], line)).astype(np.int64)


def _step_through(count: int, n: int, step: int) -> int:
    """Rank of the ``count``-th stop: every ``step``-th of ``n``, one further in each pass."""
    stops = math.ceil(n / step)
    passed, stop = divmod(count, stops)
    return (stop * step + passed) % n
