"""How a frame lies on the specimen: turned by the scan rotation, moved by the stage."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


class Pose(msgspec.Struct, frozen=True):
    """Scan rotation and commanded place of the stage, against a frame that is neither turned nor moved.

    A specimen place ``X``, on the raster of that frame, is expected at ``(X + stage - c) R + c`` on the
    raster of the pose, with the centre ``c`` of the raster.

    Attributes
    ----------
    rotation_rad
        From x to y, as in ``ScanGeometry``.
    stage_px
        Displacement of the specimen, ``(row, col)`` along the axes of the frame that is not turned.
    """

    rotation_rad: float = 0.0
    stage_px: tuple[float, float] = (0.0, 0.0)

    def matrix(self) -> Float64:
        """``R``: it takes columns ``(row, col)`` of the raster to the specimen; rows times it come back."""
        cos, sin = math.cos(self.rotation_rad), math.sin(self.rotation_rad)
        return np.array([[cos, sin], [-sin, cos]])

    def on_raster(self, places_px: Float64, centre_px: Float64) -> Float64:
        """Say where specimen places ``(n, 2)`` are expected on the raster."""
        return np.asarray((places_px + np.array(self.stage_px) - centre_px) @ self.matrix() + centre_px)

    def on_specimen(self, positions_px: Float64, centre_px: Float64) -> Float64:
        """Say which specimen places are expected at positions ``(n, 2)`` of the raster."""
        back = (positions_px - centre_px) @ self.matrix().T + centre_px
        return np.asarray(back - np.array(self.stage_px))
