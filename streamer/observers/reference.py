"""One way of observing a frame: against the running average of the frames before it.

For whatever shows structure and no lattice, and for a specimen whose lattice must not be believed. What
all frames share, strain of the specimen or distortion of the scan, is in the reference too: only what
changes from frame to frame is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.messages import Float32
from streamer.observers import columns
from streamer.observers.blocks import block_displacements, warped
from streamer.observers.registration import (
    Judgement,
    Matcher,
    RowOffsets,
    RunningReference,
    judge,
    measure_rows,
    rows_as_observations,
)
from streamer.observers.row_fits import place_rows
from streamer.observers.row_wander import settled

if TYPE_CHECKING:
    from models.distortion_gp import DistortionGP, Observations

Float64 = NDArray[np.float64]

# Fewer blocks than this are no field; rows may still say something.
_FEWEST_BLOCKS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """What each row has of its own, to be added to the displacement field.

    Attributes
    ----------
    offsets_px, variance_px2
        Shape ``(2, rows)``.
    measured_px
        As measured, before it is asked what of it is noise; 0 where a row tells nothing.
    absorbed
        Part ``(row, col)`` of an error of the smooth field, common to a row, that its offset makes up for.
    left_px
        Root mean square, along one axis, of what field and offsets leave: the half of each row judged by an
        offset that the other half gave, the noise of measuring taken off. NaN where that was not asked.
    """

    offsets_px: Float64
    variance_px2: Float64
    measured_px: Float64
    absorbed: tuple[float, float] = (0.0, 0.0)
    left_px: float = math.nan

    @classmethod
    def none(cls, count: int) -> Rows:
        """Make those of ``count`` rows that are where they should be."""
        return cls(
            offsets_px=np.zeros((2, count)),
            variance_px2=np.zeros((2, count)),
            measured_px=np.zeros((2, count)),
        )

    @classmethod
    def beside_lattice(cls, found: columns.RowOffsets) -> Rows:
        """Make them of what the columns of a lattice show."""
        return cls(
            offsets_px=found.offsets,
            variance_px2=found.variance,
            measured_px=found.measured,
            absorbed=absorbed(found.variance, found.spread**2),
        )


def absorbed(variance_px2: Float64, spread_px2: Float64) -> tuple[float, float]:
    """Say what part of a common error of a row ends in its offset: what the measurement decides of it.

    Parameters
    ----------
    variance_px2
        Of the offsets when they were measured, ``(2, rows)``.
    spread_px2
        Before that, ``(2,)``; 0 where offsets are taken for 0.
    """
    left = variance_px2.mean(axis=1) / np.where(spread_px2 > 0, spread_px2, 1.0)
    row, col = np.where(spread_px2 > 0, np.clip(1 - left, 0.0, 1.0), 0.0).tolist()
    return row, col


def left_of_rows(first: tuple[Float64, Float64], second: tuple[Float64, Float64]) -> float:
    """Say what offsets from one half of the rows leave in the other, root mean square along one axis.

    Parameters
    ----------
    first, second
        Offsets as measured in either half, and the variance of their noise, ``(2, rows)`` each.
    """
    squares = []
    for (shown, shown_px2), (judged, judged_px2) in ((first, second), (second, first)):
        for axis in range(2):
            tells = np.isfinite(judged_px2[axis])
            if not tells.any():
                return math.nan
            off = (judged[axis] - settled(shown[axis], shown_px2[axis]).offset_px)[tells]
            noise = judged_px2[axis][tells]
            # Rows that are known badly must not decide.
            weight = 1 / (noise + np.median(off**2)) ** 2
            squares.append(float((weight * (off**2 - noise)).sum() / weight.sum()))
    return math.sqrt(max(float(np.mean(squares)), 0.0))


def _block_px(shape: tuple[int, ...]) -> tuple[int, int]:
    """Say how large blocks are: a quarter of a small frame, so that there are enough of them."""
    rows, cols = (max(16, min(64, n // 4)) for n in shape)
    return rows, cols


class Observer(Protocol):
    """Measures frames of one raster against something, in this order for each."""

    @property
    def name(self) -> Literal["lattice", "registration"]:
        """What it measures against."""
        ...

    def judge(
        self, image: Float32, model: DistortionGP, expected_px: Float64, reach_px: float, **limits: float
    ) -> Judgement:
        """Say whether a frame shows what it should, before anything is learnt from it."""
        ...

    def observe(self, image: Float32, model: DistortionGP, judgement: Judgement) -> Observations | None:
        """Measure the displacement field of the frame that was judged; None where it tells nothing."""
        ...

    def rows(self, image: Float32, model: DistortionGP, field_px: Float32 | Float64) -> Rows:
        """Say what each row has of its own, when the model has learnt from the frame."""
        ...

    def learn(self, image: Float32, anchor_px: Float64) -> None:
        """Take in the frame as it was put back, but for its rows' own offsets."""
        ...


class ReferenceObserver:
    """Measures frames of one raster against a reference that follows the drift.

    Parameters
    ----------
    image
        The first frame, shape ``(rows, cols)``.
    memory_frames
        Frames over which the reference is averaged.
    max_row_offset_px
        Rows that seem to be off by more are left where they are.
    by_blocks
        Whether the field is measured in blocks, for a model that learns more than drift and hum.
    """

    name: Literal["registration"] = "registration"

    def __init__(
        self, image: Float32, memory_frames: int, max_row_offset_px: float, *, by_blocks: bool
    ) -> None:
        self._memory = memory_frames
        self._reference = RunningReference(image, memory_frames)
        self._matcher = Matcher((image.shape[0], image.shape[1]))
        self._most_px = max_row_offset_px
        self._by_blocks = by_blocks
        self._rows: RowOffsets | None = None

    @property
    def arrays(self) -> dict[str, Float32]:
        """What it knows, see ``RunningReference.arrays``."""
        return self._reference.arrays

    @property
    def anchor_px(self) -> tuple[int, int]:
        """Displacement of the reference's raster, ``(row, col)``."""
        return self._reference.anchor

    def restore(self, arrays: dict[str, NDArray[Any]], anchor: tuple[int, int]) -> None:
        """Go on from what ``arrays`` said.

        Raises
        ------
        ValueError
            If the arrays do not belong together.
        """
        self._reference = RunningReference.restored(arrays, anchor, self._memory)

    def judge(
        self, image: Float32, model: DistortionGP, expected_px: Float64, reach_px: float, **limits: float
    ) -> Judgement:
        """Say whether a frame shows what it should; see ``registration.judge``.

        Parameters
        ----------
        image
            Shape ``(rows, cols)``.
        model
            After its ``predict``.
        expected_px
            Drift that is expected, ``(row, col)``.
        reach_px
            How far from it a match is as good as there.
        """
        self._anchor = np.rint(expected_px)
        self._base = model.static_field() if model.scan.is_static else None
        self._moved = float(self._anchor[0]) - self._reference.anchor[0]
        raster = self._reference.predict((int(self._anchor[0]), int(self._anchor[1])))
        self._raster = raster
        # As the scan shows it: the frame is compared as it is, row by row.
        self._expected = raster if self._base is None else warped(raster, self._base.astype(np.float64))
        return judge(image, self._expected, self._matcher, expected_px - self._anchor, reach_px, **limits)

    def observe(self, image: Float32, model: DistortionGP, judgement: Judgement) -> Observations | None:
        """Measure the displacement field of the frame that was judged; None where it tells nothing."""
        from models.distortion_gp import Observations  # not before it is needed: it brings torch

        shift = judgement.displacement_px
        rows = measure_rows(image, self._expected, shift, self._most_px)
        # Rows that came into view show what the reference never saw.
        new = int(np.ceil(abs(self._moved + shift[0])))
        came = slice(0, new) if self._moved + shift[0] > 0 else slice(len(image) - new, None)
        variance = rows.variance.copy()
        variance[:, came] = np.inf
        rows = self._rows = msgspec.structs.replace(rows, variance=variance)
        self._shift, self._came = shift, came
        if self._by_blocks:
            base = np.zeros((2, *image.shape)) if self._base is None else self._base
            common = base - (shift + rows.mean)[:, None, None]
            blocks = block_displacements(
                image, self._raster, _block_px(image.shape), common, rows_px=-rows.offsets, reach_px=0.0
            )
            if len(blocks) >= _FEWEST_BLOCKS:
                seen = blocks.observations()
                moved = seen.displacement_px - self._anchor
                return Observations(
                    positions_px=seen.positions_px, displacement_px=moved, variance_px2=seen.variance_px2
                )
        seen, _ = rows_as_observations(rows, image.shape[1], shift + self._anchor)
        if len(seen) < 8:
            return None
        if self._base is None:
            return seen
        row, col = np.rint(seen.positions_px).astype(np.intp).T
        return Observations(
            positions_px=seen.positions_px,
            displacement_px=seen.displacement_px + self._base[:, row, col].T,
            variance_px2=seen.variance_px2,
        )

    def rows(self, image: Float32, model: DistortionGP, field_px: Float32 | Float64) -> Rows:
        """Say what each row has of its own, beside the smooth field.

        Parameters
        ----------
        image, model
            That was observed, and that learnt from it.
        field_px
            The smooth field, drift included, shape ``(2, rows, cols)``; ``(2, rows, 1)`` where it is the
            same along each row.
        """
        assert self._rows is not None
        smooth_px = field_px.mean(axis=2, dtype=np.float64)
        base = 0.0 if self._base is None else self._base.mean(axis=2, dtype=np.float64)
        beside = base - smooth_px - (self._shift + self._anchor)[:, None]
        seen = -(self._rows.raw + (self._rows.mean + self._shift + self._anchor)[:, None]) + base
        variance = self._rows.variance
        own = seen - smooth_px
        found = [settled(o, v) for o, v in zip(own, variance, strict=True)]
        left = np.stack([each.variance_px2 for each in found])
        spread = np.array([each.slow_px2 + each.jitter_px2 for each in found])
        # The reference's rows lie where its frames had them on average, and the spread has both parts.
        of_reference = spread[:, None] / (self._reference.arrays["rows"] + 1)
        return Rows(
            offsets_px=np.stack([each.offset_px for each in found]),
            variance_px2=left + of_reference,
            measured_px=np.where(np.isfinite(variance), own, 0.0),
            absorbed=absorbed(left, spread),
            left_px=math.nan if self._by_blocks else self._left_px(image, beside),
        )

    def _left_px(self, image: Float32, beside_px: Float64) -> float:
        """Say what is left of the rows; ``beside_px`` ``(2, rows)`` makes offsets of measurements.

        All rows have taught the field, but it has a few numbers to their hundreds.
        """
        middle = image.shape[1] // 2
        halves = []
        for half in (slice(0, middle), slice(middle, None)):
            part, known = (np.ascontiguousarray(whole[:, half]) for whole in (image, self._expected))
            offsets, variance = place_rows(part, known, self._shift, self._most_px)
            variance[:, self._came] = np.inf
            halves.append((beside_px - offsets, variance))
        return left_of_rows(*halves)

    def learn(self, image: Float32, anchor_px: Float64) -> None:
        """Average in a frame that was put back, without its rows' own offsets.

        Those average out over frames, where a reference of corrected rows would keep the jitter of the
        first frame for ever.
        """
        self._reference.observe(image, (int(anchor_px[0]), int(anchor_px[1])))
