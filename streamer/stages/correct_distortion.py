"""Put each frame back onto the specimen: rigid drift and row offsets against a running reference.

Directions inside this file are (row, col) in pixels of the raster. A displacement ``d`` says that a
specimen point of pixel ``u`` appears in the frame at pixel ``u + d``; it is what
``Registration.drift_nm`` says in nanometres along (x, y).

What one scan direction cannot tell is left alone: distortion that every frame shares (fly-back,
the shear of a steady drift) is taken for the specimen.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.messages import Frame, PairNm, Registration, ScanGeometry
from streamer.observers.registration import Matcher, RunningReference, displaced, measure_rows

Float64 = NDArray[np.float64]

# A straight line through a few frames says nothing of a time ten intervals further. A pause that
# long, or an instrument clock that was set, is a step across which no motion is predicted.
_STEP_INTERVALS = 10.0
_STEP_LEAST_S = 10.0  # frames may be quick, and a row of spectra lie between two of them


class CorrectConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How frames are registered.

    Attributes
    ----------
    reach_nm
        How far the specimen may stray from its predicted drift before another match must be
        clearly better to be believed. A quarter of the lattice period is a good value.
    memory_frames
        Frames over which the reference is averaged.
    rate_frames
        Frames over which the drift rate is fitted.
    correct_rows
        Whether rows are also put back one by one.
    max_row_offset_px
        Rows that seem to be off by more are left where they are.
    lost_below
        The reference is given up when a frame matches it worse than this part of the usual.
    """

    reach_nm: float = 0.06
    memory_frames: int = 8
    rate_frames: int = 8
    correct_rows: bool = True
    max_row_offset_px: float = 4.0
    lost_below: float = 0.3

    def __post_init__(self) -> None:
        if not self.reach_nm > 0:
            raise ValueError(f"correct.reach_nm is {self.reach_nm}; it takes numbers above 0")
        if not 1 <= self.memory_frames <= 1000:
            raise ValueError(f"correct.memory_frames is {self.memory_frames}; it takes 1 to 1000")
        if not 2 <= self.rate_frames <= 1000:
            raise ValueError(f"correct.rate_frames is {self.rate_frames}; it takes 2 to 1000")
        if not 0 < self.max_row_offset_px <= 32:
            raise ValueError(f"correct.max_row_offset_px is {self.max_row_offset_px}; it takes above 0 to 32")
        if not 0 <= self.lost_below < 1:
            raise ValueError(f"correct.lost_below is {self.lost_below}; it takes 0 to below 1")


class CorrectState(msgspec.Struct, frozen=True, kw_only=True):
    """All that CorrectDistortion knows, beside the arrays of its reference.

    Attributes
    ----------
    revision
        Of the reference; -1 before the first frame.
    geometry
        Raster of the frames; None before the first.
    usual_match
        How well frames match the reference; None before the second.
    anchor_px
        Displacement of the reference's raster ``(row, col)``.
    seen
        ``(at_s, x, y)`` of the drifts that the rate is fitted to.
    """

    revision: int = -1
    geometry: ScanGeometry | None = None
    usual_match: float | None = None
    anchor_px: tuple[int, int] = (0, 0)
    seen: tuple[tuple[float, float, float], ...] = ()


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


class CorrectDistortion:
    """Register each frame to the frames before it and resample it.

    A corrected frame keeps shape and pixel size. Its raster follows the drift in whole pixels, so
    nothing that was scanned is lost: ``geometry.center_nm`` says where it lies on the specimen.
    Only the remainder, below a pixel plus the row offsets, is interpolated (cubic convolution,
    Keys 1981); pixels that no row reached repeat the edge. A frame that answers a request passes
    as it is, in the specimen's coordinates, and teaches the reference nothing.
    """

    name = "correct"

    def __init__(self, config: CorrectConfig | None = None) -> None:
        self.config = config or CorrectConfig()
        self._forget()

    def _forget(self) -> None:
        """Be as before the first frame."""
        self._revision = -1
        self._geometry: ScanGeometry | None = None
        self._usual_match: float | None = None

    def state(self) -> tuple[CorrectState, dict[str, NDArray[Any]]]:
        """Say all that the next frame's correction depends on; arrays are shared and never written to.

        Returns
        -------
        facts
            Numbers.
        arrays
            Of the reference: ``image`` ``(rows, cols)``, ``rows`` and ``cols``, float32; none before
            the first frame.
        """
        if self._geometry is None:
            return CorrectState(), {}
        facts = CorrectState(
            revision=self._revision,
            geometry=self._geometry,
            usual_match=self._usual_match,
            anchor_px=self._reference.anchor,
            seen=self._tracker.seen,
        )
        return facts, dict(self._reference.arrays)

    def restore(self, facts: CorrectState, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from what ``state`` said.

        Raises
        ------
        ValueError
            If the arrays are not those of the frames' raster; nothing is changed then.
        """
        if facts.geometry is None:
            self._forget()
            return
        if arrays["image"].shape != facts.geometry.shape:
            raise ValueError(
                f"the reference has shape {arrays['image'].shape}, the frames {facts.geometry.shape}; "
                "they are no state of this pipeline"
            )
        self._reference = RunningReference.restored(arrays, facts.anchor_px, self.config.memory_frames)
        self._matcher = Matcher(facts.geometry.shape)
        self._tracker = DriftTracker(self.config.rate_frames, facts.seen)
        self._revision, self._geometry = facts.revision, facts.geometry
        self._usual_match = facts.usual_match

    def process(self, frame: Frame, /) -> Frame:
        """Return the frame on the specimen, with its registration.

        The first channel is registered; all are resampled alike.
        """
        at_s = _middle_s(frame)
        if frame.request_id is not None:
            return self._pass_on(frame, at_s)
        if frame.geometry != self._geometry:
            return self._start_anew(frame, at_s)

        predicted = _drift_px(self._tracker.predict(at_s), frame.geometry)
        anchor = np.rint(predicted)
        reference = self._reference.predict(_pair(anchor))
        reach_px = self.config.reach_nm / min(frame.geometry.pixel_size_nm)
        shift, match = self._matcher.match(frame.image[0], reference, predicted - anchor, reach_px)
        if self._usual_match is not None and match < self.config.lost_below * self._usual_match:
            return self._start_anew(frame, at_s)
        self._usual_match = match if self._usual_match is None else 0.9 * self._usual_match + 0.1 * match

        rows = measure_rows(frame.image[0], reference, shift, self.config.max_row_offset_px)
        drift = anchor + shift + rows.mean
        sd_nm = rows.mean_sd * max(frame.geometry.pixel_size_nm)
        offsets = rows.offsets if self.config.correct_rows else np.zeros_like(rows.offsets)
        return self._settle(frame, drift, offsets, sd_nm, at_s)

    def _start_anew(self, frame: Frame, at_s: float) -> Frame:
        """Take this frame for the reference."""
        self._revision += 1
        self._geometry = frame.geometry
        self._usual_match = None
        self._tracker = DriftTracker(self.config.rate_frames)
        self._tracker.observe((0.0, 0.0), at_s)
        self._reference = RunningReference(frame.image[0], self.config.memory_frames)
        self._matcher = Matcher(frame.geometry.shape)
        registration = Registration(revision=self._revision, at_s=at_s)
        return msgspec.structs.replace(frame, registration=registration)

    def _settle(
        self, frame: Frame, drift_px: Float64, offsets_px: Float64, sd_nm: float, at_s: float
    ) -> Frame:
        """Learn the drift and resample the frame with it."""
        anchor = np.rint(drift_px)
        rest = drift_px - anchor
        # The reference takes the frame without its row offsets: those average out over frames,
        # where a reference of corrected rows would keep the jitter of the first frame for ever.
        self._reference.observe(displaced(frame.image[0], rest), _pair(anchor))
        drift_nm = _drift_nm(drift_px, frame.geometry)
        self._tracker.observe(drift_nm, at_s)
        registration = Registration(
            revision=self._revision,
            drift_nm=drift_nm,
            drift_rate_nm_per_s=self._tracker.rate_nm_per_s,
            sd_nm=sd_nm,
            at_s=at_s,
        )
        image = np.stack([displaced(channel, rest[:, None] + offsets_px) for channel in frame.image])
        geometry = _moved_geometry(frame.geometry, _drift_nm(anchor, frame.geometry))
        return msgspec.structs.replace(frame, image=image, geometry=geometry, registration=registration)

    def _pass_on(self, frame: Frame, at_s: float) -> Frame:
        """Say where a frame lies on the specimen, by the drift predicted for its time."""
        if self._geometry is None:
            return msgspec.structs.replace(frame, registration=Registration(at_s=at_s))
        drift_nm = self._tracker.predict(at_s)
        registration = Registration(
            revision=self._revision,
            drift_nm=drift_nm,
            drift_rate_nm_per_s=self._tracker.rate_nm_per_s,
            at_s=at_s,
        )
        geometry = _moved_geometry(frame.geometry, drift_nm)
        return msgspec.structs.replace(frame, geometry=geometry, registration=registration)


def _middle_s(frame: Frame) -> float:
    """Instrument clock when the middle of the frame was scanned: there its mean drift holds."""
    rows, cols = frame.geometry.shape
    return frame.acquired_at_s - 0.5e-6 * frame.dwell_time_us * rows * cols


def _pair(whole_px: Float64) -> tuple[int, int]:
    return (int(whole_px[0]), int(whole_px[1]))


def _drift_px(drift_nm: PairNm, geometry: ScanGeometry) -> Float64:
    """Turn a displacement ``(x, y)`` in nm into ``(row, col)`` in pixels."""
    cos, sin = math.cos(geometry.rotation_rad), math.sin(geometry.rotation_rad)
    height_nm, width_nm = geometry.pixel_size_nm
    x, y = drift_nm
    return np.array([(-sin * x + cos * y) / height_nm, (cos * x + sin * y) / width_nm])


def _drift_nm(drift_px: Float64, geometry: ScanGeometry) -> PairNm:
    """Turn a displacement ``(row, col)`` in pixels into ``(x, y)`` in nm."""
    cos, sin = math.cos(geometry.rotation_rad), math.sin(geometry.rotation_rad)
    height_nm, width_nm = geometry.pixel_size_nm
    across, along = float(drift_px[0]) * height_nm, float(drift_px[1]) * width_nm
    return (cos * along - sin * across, sin * along + cos * across)


def _moved_geometry(geometry: ScanGeometry, drift_nm: PairNm) -> ScanGeometry:
    """Say the raster in specimen coordinates: scan position minus drift."""
    x, y = geometry.center_nm
    return msgspec.structs.replace(geometry, center_nm=(x - drift_nm[0], y - drift_nm[1]))
