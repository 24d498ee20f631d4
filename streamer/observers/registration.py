"""Where the specimen of a frame lies, by comparing it with what frames before it showed.

Nothing here needs a lattice. Directions are (row, col) in pixels of the raster. A displacement ``d``
says that a specimen point of pixel ``u`` appears in the frame at pixel ``u + d``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from streamer.messages import Float32

if TYPE_CHECKING:
    from models.distortion_gp import Observations

Float64 = NDArray[np.float64]

_ROWS_AT_ONCE = 64  # 128 kB of a 512-pixel row: stays in the cache between taps


class Judgement(msgspec.Struct, frozen=True, eq=False):
    """What a frame is, against a reference, and the numbers that say so.

    Attributes
    ----------
    verdict
        ``ok``; ``blank``: next to no structure, as of a blanked beam or a withdrawn tip; ``jump``: the
        specimen of the reference, far from where it was expected; ``lost``: something else.
    displacement_px
        Where it matches best, ``(row, col)``; means nothing unless ``ok`` or ``jump``.
    match
        Correlation coefficient there.
    surprise_px
        How far that is from what was expected.
    structure
        Standard deviation of the band-passed frame over that of the reference.
    counts
        Mean of the frame over that of the reference; NaN where that is 0.
    """

    verdict: Literal["ok", "blank", "jump", "lost"]
    displacement_px: Float64
    match: float
    surprise_px: float
    structure: float
    counts: float


def judge(
    image: Float32,
    reference: Float32,
    matcher: Matcher,
    expected_px: Float64,
    reach_px: float,
    *,
    usual_match: float = 1.0,
    lost_below: float = 0.3,
    jump_px: float = 12.0,
    blank_below: float = 0.2,
) -> Judgement:
    """Say whether a frame shows what it should, before anything is learnt from it.

    A blank frame and a lost one ask for different things: after the first the reference is still good.
    On a perfect lattice a jump shows only modulo a lattice vector.

    Parameters
    ----------
    image, reference
        Shape ``(rows, cols)``, float32.
    matcher
        For that shape.
    expected_px, reach_px
        As in ``Matcher.match``.
    usual_match
        What frames match as a rule.
    lost_below
        A frame that matches worse than this part of the usual is lost, or blank.
    jump_px
        What matches further from its expected place has jumped.
    blank_below
        A frame with less than this part of the reference's structure, that does not match, is blank.
    """
    displacement, match = matcher.match(image, reference, expected_px, reach_px)
    structure = matcher.contrast(image) / max(matcher.contrast(reference), 1e-30)
    surprise_px = float(np.linalg.norm(displacement - expected_px))
    verdict: Literal["ok", "blank", "jump", "lost"] = "ok"
    if not match >= lost_below * usual_match:
        verdict = "blank" if structure < blank_below else "lost"
    elif surprise_px > jump_px:
        verdict = "jump"
    usual_counts = float(reference.mean())
    return Judgement(
        verdict=verdict,
        displacement_px=displacement,
        match=match,
        surprise_px=surprise_px,
        structure=structure,
        counts=float(image.mean()) / usual_counts if usual_counts else math.nan,
    )


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

    def contrast(self, image: Float32) -> float:
        """Say the standard deviation of the tapered, band-passed image."""
        spectrum = fft.rfft2((image - image.mean()) * self._taper) * self._band
        return math.sqrt(self._energy(spectrum) / (self._shape[0] * self._shape[1]))

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


class RowOffsets(msgspec.Struct, frozen=True, eq=False):
    """How far each row is off.

    Attributes
    ----------
    offsets
        Shrunk displacement ``(row, col)`` of each row beyond the common one, shape ``(2, rows)``, px.
    mean
        Displacement common to all rows, ``(row, col)``, px.
    mean_sd
        Its standard deviation along one axis, px.
    raw
        ``offsets`` before they were shrunk, shape ``(2, rows)``, px.
    variance
        Of each of ``raw``, shape ``(2, rows)``, px²; infinite where a row tells nothing.
    """

    offsets: Float64
    mean: Float64
    mean_sd: float
    raw: Float64
    variance: Float64


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
        raw=rest,
        variance=variance,
    )


def rows_as_observations(
    rows: RowOffsets, cols: int, shift_px: Float64, *, worst_px: float = 1.0
) -> tuple[Observations, int]:
    """Say the measured rows as samples of the displacement field, at the middle of each row.

    A specimen point that appears displaced by ``d`` was recorded by a probe that stood at ``-d`` from
    where it was thought to be, so the sign turns.

    Parameters
    ----------
    rows
        As measured.
    cols
        Pixels in a row.
    shift_px
        What ``measure_rows`` was told, ``(row, col)``.
    worst_px
        Rows with a larger standard deviation along either axis are left out.

    Returns
    -------
    observations
        One for each row that tells something, jitter, drift, shear and hum in it.
    left_out
        How many rows do not.
    """
    from models.distortion_gp import Observations  # not before it is needed: it brings torch

    tells = (rows.variance <= worst_px**2).all(axis=0)
    places = np.flatnonzero(tells).astype(np.float64)
    seen = -(rows.raw + (rows.mean + shift_px)[:, None])
    observations = Observations(
        positions_px=np.stack([places, np.full_like(places, (cols - 1) / 2)], axis=1),
        displacement_px=seen[:, tells].T.copy(),
        variance_px2=rows.variance[:, tells].T.copy(),
    )
    return observations, int(tells.size - places.size)


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
