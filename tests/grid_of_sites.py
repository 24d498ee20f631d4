"""Sites on a grid that a benchmark lets an agent measure."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from streamer.messages import Latents, Outcome, Registration, ScanGeometry, Suggestion
from tests.edge_spectra import outcome_of

Float64 = NDArray[np.float64]


def grid_nm(side: int, field_nm: float) -> NDArray[np.float32]:
    """Positions ``(x, y)`` of the sites of a field around the origin, shape ``(side**2, 2)``."""
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    return (((grid + 0.5) / side - 0.5) * field_nm).astype(np.float32)


class GridOfSites:
    """Sites with latents, and an edge each in their spectra.

    Parameters
    ----------
    field_nm
        Edge of the field.
    mean
        Latents, shape ``(side**2, d)``.
    edge
        Share of the full edge in the spectrum of each, shape ``(side**2,)``.
    rng
        For the counts.
    """

    def __init__(self, field_nm: float, mean: Float64, edge: Float64, rng: np.random.Generator) -> None:
        self.edge = edge
        self._field_nm, self._rng = field_nm, rng
        self._mean = mean.astype(np.float32)

    def frame(self) -> Latents:
        """What the streamer says of them."""
        n, field_nm = len(self._mean), self._field_nm
        flat, pair = np.zeros(n, np.float32), np.zeros((n, 2), np.float32)
        position_nm = grid_nm(round(n**0.5), field_nm)
        return Latents(
            session="s",
            number=0,
            acquired_at_s=0.0,
            mean=self._mean,
            sd=np.full_like(self._mean, 0.1),
            angle_rad=flat,
            angle_sd_rad=flat,
            offset_nm=pair,
            offset_sd_nm=pair,
            class_probability=np.zeros((n, 0), np.float32),
            novelty=flat,
            confidence=np.ones(n, np.float32),
            track=np.arange(n),
            positions_px=((position_nm / field_nm + 0.5) * 512)[:, ::-1].copy(),
            positions_nm=position_nm,
            model_revision="encoder",
            geometry=ScanGeometry(shape=(512, 512), field_of_view_nm=(field_nm, field_nm)),
            registration=Registration(),
        )

    def outcome(self, suggestion: Suggestion) -> Outcome:
        """The spectrum of the site aimed at."""
        made = outcome_of(suggestion, float(self.edge[suggestion.track]), self._rng)
        return replace(made, dwell_time_us=suggestion.dwell_time_us)
