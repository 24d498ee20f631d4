"""Put each frame back onto the specimen: rigid drift and row offsets against a running reference.

Directions inside this file are (row, col) in pixels of the raster. A displacement ``d`` says that a
specimen point of pixel ``u`` appears in the frame at pixel ``u + d``; it is what
``Registration.drift_nm`` says in nanometres along (x, y).

What one scan direction cannot tell is left alone: distortion that every frame shares (fly-back,
the shear of a steady drift) is taken for the specimen.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.drift import DriftTracker, middle_s, on_specimen, to_raster_px, to_scan_nm
from streamer.messages import Frame, Registration, ScanGeometry
from streamer.observers.registration import Matcher, RunningReference, displaced, measure_rows

Float64 = NDArray[np.float64]


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
        at_s = middle_s(frame)
        if frame.request_id is not None:
            return self._pass_on(frame, at_s)
        if frame.geometry != self._geometry:
            return self._start_anew(frame, at_s)

        predicted = to_raster_px(self._tracker.predict(at_s), frame.geometry)
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
        drift_nm = to_scan_nm(drift_px, frame.geometry)
        self._tracker.observe(drift_nm, at_s)
        registration = Registration(
            revision=self._revision,
            drift_nm=drift_nm,
            drift_rate_nm_per_s=self._tracker.rate_nm_per_s,
            sd_nm=sd_nm,
            at_s=at_s,
        )
        image = np.stack([displaced(channel, rest[:, None] + offsets_px) for channel in frame.image])
        geometry = on_specimen(frame.geometry, to_scan_nm(anchor, frame.geometry))
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
        geometry = on_specimen(frame.geometry, drift_nm)
        return msgspec.structs.replace(frame, geometry=geometry, registration=registration)


def _pair(whole_px: Float64) -> tuple[int, int]:
    return (int(whole_px[0]), int(whole_px[1]))
