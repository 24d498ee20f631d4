"""How the columns of a session move: what all do together, and what single ones do.

The analysis of arXiv:2009.05635: principal components of the columns' trajectories, before the correction
and after it. The drift of whole frames is taken off before and after: it would hide all else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.trajectories import Trajectories, TrajectorySummary
from streamer.messages import Latents, Registration, ScanGeometry

Float64 = NDArray[np.float64]

# A few hundred columns tell as much of what all do together, at a quarter of the time.
_MOST_COLUMNS = 500


def places_of(
    positions_nm: NDArray[np.floating], registration: Registration, raster: ScanGeometry
) -> tuple[Float64, Float64]:
    """Say where columns were seen, and where they are, ``(row, col)`` in pixels of a raster, ``(n, 2)`` each.

    Parameters
    ----------
    positions_nm
        On the specimen, ``(x, y)``, shape ``(n, 2)``.
    registration
        Of their frame.
    raster
        Of the frames as acquired, in one place for all frames.
    """
    where = np.asarray(positions_nm, dtype=np.float64)
    on_raster = raster.to_px(where)
    distortion = registration.distortion
    if distortion is None or distortion.shape != raster.shape:
        return on_raster, on_raster
    under_beam = raster.to_px(where + np.array(registration.drift_nm))
    return on_raster + distortion.seen_at(under_beam) - under_beam, on_raster


class ColumnsMotion:
    """Follows the columns through a session, after each frame's latents are out.

    Parameters
    ----------
    tell
        Takes what the last frames say.
    """

    def __init__(self, tell: Callable[[TrajectorySummary], None]) -> None:
        self._tell = tell
        self._trajectories = Trajectories()
        self._raster: ScanGeometry | None = None
        self._revision = -1

    def observe(self, latents: Latents) -> None:
        """Take in the columns of one frame; sub-scans and frames left as they are say nothing."""
        registration = latents.registration
        if latents.request_id is not None or registration.distortion is None:
            return
        raster = latents.geometry
        if self._raster is None or not _is_alike(raster, self._raster):
            self._raster, self._revision = raster, -1
        if registration.revision != self._revision:
            self._revision = registration.revision
            self._trajectories.restart()
        every = 1 + (len(latents.track) - 1) // _MOST_COLUMNS
        chosen = latents.track % every == 0
        seen, there = places_of(latents.positions_nm[chosen], registration, self._raster)
        self._trajectories.observe(latents.track[chosen], seen, there)
        summary = self._trajectories.summary()
        if summary is not None:
            self._tell(summary)


def _is_alike(one: ScanGeometry, other: ScanGeometry) -> bool:
    """Say whether two rasters differ in their place only."""
    return (one.shape, one.field_of_view_nm, one.rotation_rad) == (
        other.shape,
        other.field_of_view_nm,
        other.rotation_rad,
    )
