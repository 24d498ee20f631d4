"""Where the specimen went, and where it will be.

A displacement ``d`` says that a specimen point of pixel ``u`` appears in the frame at pixel ``u + d``,
``(row, col)``; it is what ``Registration.drift_nm`` says in nanometres along (x, y).
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.messages import Frame, PairNm, ScanGeometry

Float64 = NDArray[np.float64]

# A straight line through a few frames says nothing of a time ten intervals further. A pause that
# long, or an instrument clock that was set, is a step across which no motion is predicted.
_STEP_INTERVALS = 10.0
_STEP_LEAST_S = 10.0  # frames may be quick, and a row of spectra lie between two of them


class DriftTracker:
    """Where the specimen went, and where it will be: a straight line through the last frames.

    Times come from the instrument's clock, which may be set at any moment: across a step of it, as
    across a long pause, the drift is taken to have stayed as it was.
    """

    def __init__(self, frames: int, seen: tuple[tuple[float, float, float], ...] = ()) -> None:
        self._frames = frames
        self._seen = seen[-frames:]

    @property
    def seen(self) -> tuple[tuple[float, float, float], ...]:
        """``(at_s, x, y)`` of the frames remembered, oldest first."""
        return self._seen

    def observe(self, drift_nm: PairNm, at_s: float) -> None:
        """Learn the drift ``(x, y)`` of a frame."""
        longest_s = self._longest_s()
        seen = (*self._seen, (at_s, *drift_nm))
        intervals = np.diff([time for time, _, _ in seen])
        steps = np.flatnonzero((intervals < 0) | (intervals > longest_s))
        start = int(steps[-1]) + 1 if steps.size else 0
        self._seen = seen[start:][-self._frames :]

    @property
    def rate_nm_per_s(self) -> PairNm:
        """Least-squares slope ``(x, y)`` over the frames remembered; 0 before there are two times."""
        seen = np.asarray(self._seen, dtype=np.float64).reshape(-1, 3)
        if len(seen) < 2:
            return (0.0, 0.0)
        centred = seen - seen.mean(axis=0)
        spread = float(centred[:, 0] @ centred[:, 0])
        if spread <= 0:
            return (0.0, 0.0)
        slope = centred[:, 0] @ centred[:, 1:] / spread
        return (float(slope[0]), float(slope[1]))

    def predict(self, at_s: float) -> PairNm:
        """Say the drift ``(x, y)`` in nm at a time; (0, 0) before anything was observed."""
        if not self._seen:
            return (0.0, 0.0)
        last_s, x, y = self._seen[-1]
        ahead_s = at_s - last_s
        if not 0 <= ahead_s <= self._longest_s():
            return (x, y)
        rate = self.rate_nm_per_s
        return (x + ahead_s * rate[0], y + ahead_s * rate[1])

    def _longest_s(self) -> float:
        """Say the longest time between frames that is no step; any after the first, that has no rate."""
        if len(self._seen) < 2:
            return math.inf
        times = [time for time, _, _ in self._seen]
        return max(_STEP_LEAST_S, _STEP_INTERVALS * float(np.median(np.diff(times))))


def middle_s(frame: Frame) -> float:
    """Instrument clock when the middle of the frame was scanned: there its mean drift holds."""
    rows, cols = frame.geometry.shape
    return frame.acquired_at_s - 0.5e-6 * frame.dwell_time_us * rows * cols


def to_raster_px(displacement_nm: PairNm, geometry: ScanGeometry) -> Float64:
    """Turn a displacement ``(x, y)`` in nm into ``(row, col)`` in pixels, shape ``(2,)``."""
    cos, sin = math.cos(geometry.rotation_rad), math.sin(geometry.rotation_rad)
    height_nm, width_nm = geometry.pixel_size_nm
    x, y = displacement_nm
    return np.array([(-sin * x + cos * y) / height_nm, (cos * x + sin * y) / width_nm])


def to_scan_nm(displacement_px: Float64, geometry: ScanGeometry) -> PairNm:
    """Turn a displacement ``(row, col)`` in pixels into ``(x, y)`` in nm."""
    cos, sin = math.cos(geometry.rotation_rad), math.sin(geometry.rotation_rad)
    height_nm, width_nm = geometry.pixel_size_nm
    across, along = float(displacement_px[0]) * height_nm, float(displacement_px[1]) * width_nm
    return (cos * along - sin * across, sin * along + cos * across)


def on_specimen(geometry: ScanGeometry, drift_nm: PairNm) -> ScanGeometry:
    """Say the raster in specimen coordinates: scan position minus drift."""
    x, y = geometry.center_nm
    return msgspec.structs.replace(geometry, center_nm=(x - drift_nm[0], y - drift_nm[1]))
