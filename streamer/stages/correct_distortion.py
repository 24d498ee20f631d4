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
from scipy import fft

from streamer.messages import Float32, Frame, PairNm, Registration, ScanGeometry

Float64 = NDArray[np.float64]

_ROWS_AT_ONCE = 64  # 128 kB of a 512-pixel row: stays in the cache between taps

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


class RunningReference:
    """What the specimen looks like, averaged over frames, on a raster that follows the drift.

    ``anchor`` is the displacement of its raster in whole pixels ``(row, col)``: pixel ``q`` of the
    raster shows the specimen at pixel ``q - anchor`` of the first frame.
    """

    def __init__(self, image: Float32, memory_frames: int) -> None:
        self.anchor = (0, 0)
        self._memory = memory_frames
        # Drift uncovers whole rows and columns: how often each was seen is all there is to know.
        self._know(image.astype(np.float32, copy=True), *(np.ones(n, dtype=np.float32) for n in image.shape))

    @property
    def arrays(self) -> dict[str, Float32]:
        """What it knows: ``image``, and how often each of its ``rows`` and ``cols`` was seen.

        Shared, and never written to: what is learnt goes into new arrays.
        """
        return {"image": self._image, "rows": self._seen[0], "cols": self._seen[1]}

    @classmethod
    def restored(
        cls, arrays: dict[str, NDArray[Any]], anchor: tuple[int, int], memory_frames: int
    ) -> RunningReference:
        """Make one that knows what another one knew.

        Raises
        ------
        ValueError
            If the arrays do not belong together.
        """
        image, rows, cols = (arrays[name].astype(np.float32) for name in ("image", "rows", "cols"))
        if image.ndim != 2 or (rows.shape, cols.shape) != ((image.shape[0],), (image.shape[1],)):
            raise ValueError("the arrays of correct have unlike shapes; they are no state of this pipeline")
        reference = cls(image, memory_frames)
        reference.anchor = anchor
        reference._know(image, rows, cols)
        return reference

    def predict(self, anchor: tuple[int, int]) -> Float32:
        """Show the specimen on the raster at ``anchor``; edge values where it was never seen."""
        rows, cols = (
            np.clip(np.arange(n) - (new - old), 0, n - 1)
            for n, new, old in zip(self._image.shape, anchor, self.anchor, strict=True)
        )
        return self._image if anchor == self.anchor else self._image[rows].take(cols, axis=1)

    def observe(self, image: Float32, anchor: tuple[int, int]) -> None:
        """Average in a frame that lies on the raster at ``anchor``."""
        known = self.predict(anchor)
        rows, cols = (
            np.minimum(_uncovered(seen, new - old) + 1, self._memory)
            for seen, new, old in zip(self._seen, anchor, self.anchor, strict=True)
        )
        self.anchor = anchor
        share = np.maximum.outer(1 / rows, 1 / cols)
        share *= image - known
        share += known
        self._know(share, rows, cols)

    def _know(self, image: Float32, rows: Float32, cols: Float32) -> None:
        self._image, self._seen = image, (rows, cols)
        for array in (image, rows, cols):
            array.setflags(write=False)


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


class Matcher:
    """Finds the rigid displacement between two images of one shape by cross-correlation.

    The images are tapered, and band-passed between 4 periods in the frame and 6 pixels a period,
    so that neither a ramp of the background nor pixel noise decides.
    """

    # A lattice matches itself at every period. A match one reach from the prediction must be 3 %
    # better, four reaches away 14 % better, to be preferred: enough against chance, little enough
    # that dopants and defects can still call back a reference that hopped by a unit cell.
    SURPRISE = 0.05

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._taper = np.outer(_taper(shape[0]), _taper(shape[1])).astype(np.float32)
        per_row = fft.fftfreq(shape[0])[:, None]
        per_col = fft.rfftfreq(shape[1])[None, :]
        frequency2 = per_row**2 + per_col**2
        slow2 = (per_row * shape[0]) ** 2 + (per_col * shape[1]) ** 2
        band = (1 - np.exp(-slow2 / 4**2)) * np.exp(-frequency2 * 6**2 / 2)
        self._band = band.astype(np.float32)
        self._rows = fft.fftfreq(shape[0], 1 / shape[0])
        self._cols = fft.fftfreq(shape[1], 1 / shape[1])

    def match(
        self, image: Float32, reference: Float32, expected_px: Float64, reach_px: float
    ) -> tuple[Float64, float]:
        """Find ``d`` so that ``image`` at ``u + d`` looks like ``reference`` at ``u``.

        Returns
        -------
        displacement_px
            ``(row, col)``, to a fraction of a pixel.
        match
            Correlation coefficient of the band-passed images there, -1 to 1.
        """
        seen = fft.rfft2((image - image.mean()) * self._taper) * self._band
        known = fft.rfft2((reference - reference.mean()) * self._taper) * self._band
        correlation = fft.irfft2(seen * known.conj(), s=self._shape)
        scale = math.sqrt(self._energy(seen) * self._energy(known)) or 1.0
        row, col = self._preferred(correlation, expected_px, reach_px)
        displacement = np.array([self._rows[row], self._cols[col]]) + _vertex(correlation, row, col)
        return displacement, float(correlation[row, col]) / scale

    def _preferred(self, correlation: Float32, expected_px: Float64, reach_px: float) -> tuple[int, int]:
        """Pick the place that is both high and not too surprising."""
        highest = float(correlation.max())
        row, col = np.nonzero(correlation >= 0.5 * highest)
        away2 = (self._rows[row] - expected_px[0]) ** 2 + (self._cols[col] - expected_px[1]) ** 2
        surprise = self.SURPRISE * highest * np.log1p(away2 / reach_px**2)
        best = int((correlation[row, col] - surprise).argmax())
        return int(row[best]), int(col[best])

    def _energy(self, spectrum: NDArray[np.complex64]) -> float:
        """Sum of squares of the image (Parseval; a half spectrum counts double but for its edge)."""
        edge = spectrum[:, 0]
        whole = 2 * np.vdot(spectrum, spectrum).real - np.vdot(edge, edge).real
        return float(whole) / (self._shape[0] * self._shape[1])


class RowOffsets(msgspec.Struct, frozen=True):
    """How far each row is off.

    Attributes
    ----------
    offsets
        Shrunk displacement ``(row, col)`` of each row beyond the common one, shape ``(2, rows)``, px.
    mean
        Displacement common to all rows, ``(row, col)``, px.
    mean_sd
        Its standard deviation along one axis, px.
    """

    offsets: Float64
    mean: Float64
    mean_sd: float


def measure_rows(image: Float32, reference: Float32, shift_px: Float64, max_offset_px: float) -> RowOffsets:
    """Fit the displacement of each row of ``image`` against ``reference`` displaced by ``shift_px``.

    Gauss-Newton steps of least squares on the gradients, each row for itself, then shrunk to what
    the rows' own noise allows (see ``shrunk``).
    """
    offsets = np.zeros((2, image.shape[0]))
    for _ in range(3):
        down, along = shift_px[:, None] + offsets
        # Not displaced(): here an offset belongs to the row that results.
        expected = _convolved(_convolved(reference, -down, axis=0), -along, axis=1)
        step, variance = _row_step(image, expected)
        offsets = np.clip(offsets + step, -max_offset_px, max_offset_px)
        # A gradient serves for less than half the width of a column.
        if np.percentile(np.abs(step), 95) < 0.5:
            break
    variance[np.abs(offsets) >= max_offset_px] = np.inf
    spread = np.array([_spread(offset, v) for offset, v in zip(offsets, variance, strict=True)])
    weight = 1 / (variance + spread[:, None])
    total = 1 + weight.sum(axis=1)  # the match itself is good to a pixel
    mean = (weight * offsets).sum(axis=1) / total
    rest = offsets - mean[:, None]
    return RowOffsets(
        offsets=np.stack([shrunk(o, v) for o, v in zip(rest, variance, strict=True)]),
        mean=mean,
        mean_sd=float(np.sqrt(1 / total).max()),
    )


def _row_step(image: Float32, expected: Float32) -> tuple[Float64, Float64]:
    """Say how much further each row is displaced, ``(2, rows)``, and the variance of that.

    A pixel moved by ``d`` shows ``expected - d · gradient``; solved for each row by the normal
    equations of two unknowns. Rows with too little structure to tell have a large variance.
    """
    by_row = np.zeros_like(expected)
    by_col = np.zeros_like(expected)
    np.subtract(expected[2:], expected[:-2], out=by_row[1:-1])
    np.subtract(expected[:, 2:], expected[:, :-2], out=by_col[:, 1:-1])
    by_row *= 0.5
    by_col *= 0.5
    error = expected - expected.mean()
    seen = image - image.mean()
    gain = float(np.vdot(seen, error)) / max(float(np.vdot(error, error)), 1e-30)
    seen /= gain if gain > 0 else 1.0
    error -= seen
    rr, cc, rc = _dot(by_row, by_row), _dot(by_col, by_col), _dot(by_row, by_col)
    re, ce = _dot(by_row, error), _dot(by_col, error)
    # A trace of ridge: a row without gradients gets no step and a large variance, not 0 / 0.
    rr += 1e-4 * rr.max() + 1e-30
    cc += 1e-4 * cc.max() + 1e-30
    determinant = rr * cc - rc**2
    step = np.stack([cc * re - rc * ce, rr * ce - rc * re]) / determinant
    error -= step[0].astype(np.float32)[:, None] * by_row
    error -= step[1].astype(np.float32)[:, None] * by_col
    even = np.stack([cc, rr]) / determinant * _dot(error, error) / error.shape[1]
    # Shot noise is largest where the gradients are, which the sandwich estimator counts in; a row
    # without gradients leaves it nothing to count.
    by_row *= error
    by_col *= error
    noise_rr, noise_cc, noise_rc = _dot(by_row, by_row), _dot(by_col, by_col), _dot(by_row, by_col)
    sandwich = np.stack(
        [
            cc**2 * noise_rr - 2 * cc * rc * noise_rc + rc**2 * noise_cc,
            rr**2 * noise_cc - 2 * rr * rc * noise_rc + rc**2 * noise_rr,
        ]
    )
    return step, np.maximum(even, sandwich / determinant**2)


def _spread(offsets: Float64, variance: Float64) -> float:
    """Variance of the true offsets, by moments; 0 unless it stands out by 3 standard errors."""
    good = variance < 1.0
    if np.count_nonzero(good) < 8:
        return 0.0
    sample = offsets[good] - np.median(offsets[good])
    excess = sample**2 - variance[good]
    # A weight of 1/v² would be best for normal noise; capping keeps single wild rows from deciding.
    excess = np.minimum(excess, 9 * np.median(sample**2) / 0.455)
    mean = float(excess.mean())
    error = float(excess.std()) / math.sqrt(excess.size)
    return mean if mean > 3 * error else 0.0


def shrunk(offsets: Float64, variance: Float64) -> Float64:
    """Scale each measured offset to what its noise allows: ``o · s² / (s² + v)``.

    ``s²``, the variance of the true offsets, comes from the rows themselves; where there is no
    jitter none is applied.
    """
    spread = _spread(offsets, variance)
    return offsets * (spread / (spread + variance)) if spread > 0 else np.zeros_like(offsets)


def displaced(image: Float32, displacement_px: Float64) -> Float32:
    """Sample ``image`` at ``u + d``: put back what appears displaced by ``d``.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32.
    displacement_px
        ``(row, col)``, shape ``(2,)`` for the whole image or ``(2, rows)`` for each row.
    """
    down, along = np.broadcast_to(
        np.asarray(displacement_px, dtype=np.float64).reshape(2, -1), (2, image.shape[0])
    )
    # First along the rows: an offset belongs to the row in which it was scanned.
    return _convolved(_convolved(image, along, axis=1), down, axis=0)


def _convolved(image: Float32, offsets: Float64, axis: int) -> Float32:
    """Cubic convolution along an axis, by an offset for each row; the edges repeat."""
    if not offsets.any():
        return image
    reach = math.ceil(float(np.abs(offsets).max())) + 1
    weights = _keys(offsets[:, None] - np.arange(-reach, reach + 1)).astype(np.float32)
    rows, cols = image.shape
    place = np.clip(np.arange(-reach, image.shape[axis] + reach), 0, image.shape[axis] - 1)
    padded = image.take(place, axis)
    result = np.empty_like(image)
    part = np.empty((_ROWS_AT_ONCE, cols), dtype=np.float32)
    for start in range(0, rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, rows)
        total, product = result[start:stop], part[: stop - start]
        total[:] = 0
        for tap in range(weights.shape[1]):
            weight = weights[start:stop, tap, None]
            if weight.any():
                window = (
                    padded[start + tap : stop + tap] if axis == 0 else padded[start:stop, tap : tap + cols]
                )
                np.multiply(window, weight, out=product)
                total += product
    return result


def _keys(x: Float64) -> Float64:
    """Cubic convolution kernel, Keys (1981), eq. 15 (a = -1/2)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _vertex(surface: Float32, row: int, col: int) -> Float64:
    """Offset ``(row, col)`` of the vertex of the parabola through a maximum, at most half a pixel."""
    rows, cols = surface.shape
    centre = float(surface[row, col])
    offset = np.zeros(2)
    for axis, (before, after) in enumerate(
        (
            (surface[row - 1, col], surface[(row + 1) % rows, col]),
            (surface[row, col - 1], surface[row, (col + 1) % cols]),
        )
    ):
        curvature = float(before) - 2 * centre + float(after)
        if curvature < 0:
            offset[axis] = np.clip(0.5 * (float(before) - float(after)) / curvature, -0.5, 0.5)
    return offset


def _dot(a: Float32, b: Float32) -> Float64:
    """Scalar product of each row with its partner."""
    product: Float64 = np.einsum("rc,rc->r", a, b).astype(np.float64)
    return product


def _uncovered(seen: Float32, move: int) -> Float32:
    """Move the counts along with the raster; 0 for what comes into view."""
    place = np.arange(seen.size) - move
    return np.where((place >= 0) & (place < seen.size), seen[np.clip(place, 0, seen.size - 1)], 0)


def _taper(n: int) -> Float64:
    """Ones with a raised cosine over an eighth at each end (Tukey)."""
    edge = max(1, n // 8)
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)
    taper = np.ones(n)
    taper[:edge], taper[n - edge :] = rise, rise[::-1]
    return taper


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
