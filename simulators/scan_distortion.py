"""What a scanned beam does instead of what it is told: drift, fly-back and row jitter, all known.

Conventions are those of ``streamer/messages.py``: a specimen point ``s`` is found under the beam at scan
position ``s + drift_nm``. A beam offset is where the beam really is minus where the raster has it, in
pixels along the fast axis: a feature is seen that much too far to the left.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.messages import PairNm, ScanGeometry

Float64 = NDArray[np.float64]


class ScanDistortionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the scan is from perfect.

    Attributes
    ----------
    drift_rate_nm_per_s
        ``(x, y)``; rate of the specimen's drift at the start.
    drift_settling_s
        The drift comes to rest exponentially in this time, as a stage does; it travels
        ``drift_rate_nm_per_s * drift_settling_s`` in all.
    drift_wander_nm_per_sqrt_s
        Random walk on top: sd along each axis after one second; it grows as the square root.
    row_jitter_px
        Sd of the offset of a row along the fast axis; each row has its own.
    flyback_px
        Offset of the beam at the start of a row, where it still comes back from the last one.
    flyback_decay_px
        Number of pixels in which that offset falls to 1/e.
    """

    drift_rate_nm_per_s: PairNm = (0.016, 0.012)
    drift_settling_s: float = 120.0
    drift_wander_nm_per_sqrt_s: float = 0.002
    row_jitter_px: float = 0.15
    flyback_px: float = 0.5
    flyback_decay_px: float = 10.0

    def __post_init__(self) -> None:
        if not all(abs(rate) <= 10 for rate in self.drift_rate_nm_per_s):
            raise ValueError(
                f"distortion.drift_rate_nm_per_s is {self.drift_rate_nm_per_s}; it takes -10 to 10"
            )
        if not 0 < self.drift_settling_s <= 1e5:
            raise ValueError(
                f"distortion.drift_settling_s is {self.drift_settling_s}; it takes above 0 to 1e5"
            )
        if not max(abs(travel) for travel in self.drift_travel_nm) <= 20:
            raise ValueError(
                f"distortion.drift_rate_nm_per_s * drift_settling_s is {self.drift_travel_nm} nm in all; "
                "it takes up to 20"
            )
        for name, most in (("drift_wander_nm_per_sqrt_s", 1), ("row_jitter_px", 10), ("flyback_px", 50)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"distortion.{name} is {getattr(self, name)}; it takes 0 to {most}")
        if not 0.1 <= self.flyback_decay_px <= 1000:
            raise ValueError(f"distortion.flyback_decay_px is {self.flyback_decay_px}; it takes 0.1 to 1000")

    @property
    def drift_travel_nm(self) -> PairNm:
        """How far the specimen settles in all, ``(x, y)``, without its wander."""
        x, y = self.drift_rate_nm_per_s
        return (x * self.drift_settling_s, y * self.drift_settling_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BeamPath:
    """Where the beam really was during one frame.

    Attributes
    ----------
    geometry
        The raster that was asked for.
    row_drift_nm
        Drift ``(x, y)`` while each row was scanned, shape ``(rows, 2)``, float64.
    row_offset_px
        Beam offset of each row along the fast axis, shape ``(rows,)``, float64.
    column_offset_px
        Beam offset of each column along the fast axis (fly-back), shape ``(cols,)``, float64.
    started_s, ended_s
        Simulated time since the instrument was switched on.
    """

    geometry: ScanGeometry
    row_drift_nm: Float64
    row_offset_px: Float64
    column_offset_px: Float64
    started_s: float
    ended_s: float

    @property
    def drift_nm(self) -> PairNm:
        """Mean drift of the rows, ``(x, y)``: the drift in the middle of the frame, but for the wander."""
        x, y = self.row_drift_nm.mean(axis=0)
        return (float(x), float(y))

    def specimen_positions_nm(self) -> Float64:
        """Specimen point ``(x, y)`` under the beam at every pixel, shape ``(rows, cols, 2)``."""
        rows, cols = self.geometry.shape
        row, col = np.mgrid[0:rows, 0:cols].astype(np.float64)
        col += self.row_offset_px[:, None] + self.column_offset_px
        scan = self.geometry.to_nm(np.stack([row, col], axis=-1).reshape(-1, 2))
        return scan.reshape(rows, cols, 2) - self.row_drift_nm[:, None]


class ScanDistortion:
    """The scan's errors as time goes on; each call moves the time forward.

    Parameters
    ----------
    config
        How strong they are.
    rng
        For jitter and wander.

    Attributes
    ----------
    elapsed_s
        Simulated time since the start.
    drift_nm
        Drift ``(x, y)`` now; ``(0, 0)`` at the start.
    """

    def __init__(self, config: ScanDistortionConfig, rng: np.random.Generator) -> None:
        self._config = config
        self._rng = rng
        self._wander_nm = np.zeros(2)
        self.elapsed_s = 0.0

    @property
    def drift_nm(self) -> PairNm:
        x, y = self._settled_nm(np.array([self.elapsed_s]))[0] + self._wander_nm
        return (float(x), float(y))

    def wait(self, seconds: float) -> None:
        """Let time pass with the beam at rest, as during a spectrum."""
        self._drift_after(np.array([seconds]))

    def scan(self, geometry: ScanGeometry, dwell_time_us: float) -> BeamPath:
        """Scan one frame.

        The drift moves from row to row and is taken as it is in the middle of each row.
        """
        rows, cols = geometry.shape
        started_s = self.elapsed_s
        row_s = cols * dwell_time_us * 1e-6
        # Half a row ahead of the first; what is left of the last row passes after it.
        steps_s = np.full(rows, row_s)
        steps_s[0] = row_s / 2
        row_drift_nm = self._drift_after(steps_s)
        self.wait(row_s / 2)
        offset_px = self._config.flyback_px * np.exp(-np.arange(cols) / self._config.flyback_decay_px)
        return BeamPath(
            geometry=geometry,
            row_drift_nm=row_drift_nm,
            row_offset_px=self._config.row_jitter_px * self._rng.standard_normal(rows),
            column_offset_px=offset_px,
            started_s=started_s,
            ended_s=self.elapsed_s,
        )

    def _drift_after(self, steps_s: Float64) -> Float64:
        """Pass the steps one after the other; return the drift at the end of each, ``(n, 2)``."""
        sd_nm = self._config.drift_wander_nm_per_sqrt_s * np.sqrt(steps_s)[:, None]
        wander_nm = self._wander_nm + np.cumsum(sd_nm * self._rng.standard_normal((len(steps_s), 2)), axis=0)
        times_s = self.elapsed_s + np.cumsum(steps_s)
        self._wander_nm = wander_nm[-1]
        self.elapsed_s = float(times_s[-1])
        return self._settled_nm(times_s) + wander_nm

    def _settled_nm(self, times_s: Float64) -> Float64:
        """Drift without its wander at some times, ``(n, 2)``."""
        progress = -np.expm1(-times_s / self._config.drift_settling_s)
        settled: Float64 = progress[:, None] * np.array(self._config.drift_travel_nm)
        return settled
