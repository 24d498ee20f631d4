"""Where the specimen of a frame lies, by comparing it with what frames before it showed.

Nothing here needs a lattice. Directions are (row, col) in pixels of the raster. A displacement ``d``
says that a specimen point of pixel ``u`` appears in the frame at pixel ``u + d``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft

from streamer.messages import Float32
from streamer.observers.row_fits import place_rows
from streamer.observers.row_wander import settled

if TYPE_CHECKING:
    from models.distortion_gp import Observations

Float64 = NDArray[np.float64]
Spectrum: TypeAlias = NDArray[np.complex64]


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
    seen, known = matcher.spectrum(image), matcher.spectrum(reference)
    displacement, match = matcher.match_spectra(seen, known, expected_px, reach_px)
    structure = matcher.contrast(seen) / max(matcher.contrast(known), 1e-30)
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
        return self.match_spectra(self.spectrum(image), self.spectrum(reference), expected_px, reach_px)

    def spectrum(self, image: Float32) -> Spectrum:
        """Transform an image: tapered, band-passed, half of the plane (as ``numpy.fft.rfft2``)."""
        centred = image - image.mean()
        centred *= self._taper
        spectrum: Spectrum = fft.rfft2(centred, overwrite_x=True)
        spectrum *= self._band
        return spectrum

    def match_spectra(
        self, seen: Spectrum, known: Spectrum, expected_px: Float64, reach_px: float
    ) -> tuple[Float64, float]:
        """Match an image with a reference by their spectra; see ``match``."""
        scale = math.sqrt(self._energy(seen) * self._energy(known)) or 1.0
        correlation = fft.irfft2(seen * known.conj(), s=self._shape, overwrite_x=True)
        row, col = self._preferred(correlation, expected_px, reach_px)
        displacement = np.array([self._rows[row], self._cols[col]]) + _vertex(correlation, row, col)
        return displacement, float(correlation[row, col]) / scale

    def contrast(self, spectrum: Spectrum) -> float:
        """Say the standard deviation of the tapered, band-passed image of a spectrum."""
        return math.sqrt(self._energy(spectrum) / (self._shape[0] * self._shape[1]))

    def _preferred(self, correlation: Float32, expected_px: Float64, reach_px: float) -> tuple[int, int]:
        """Pick the place that is both high and not too surprising."""
        row, col = _least_surprising(
            correlation,
            self._rows,
            self._cols,
            np.asarray(expected_px, dtype=np.float64),
            reach_px,
            self.SURPRISE,
        )
        return row, col

    def _energy(self, spectrum: Spectrum) -> float:
        """Sum of squares of the image (Parseval; a half spectrum counts double but for its edge)."""
        edge = spectrum[:, 0]
        whole = 2 * np.vdot(spectrum, spectrum).real - np.vdot(edge, edge).real
        return float(whole) / (self._shape[0] * self._shape[1])


class RowOffsets(msgspec.Struct, frozen=True, eq=False):
    """How far each row is off.

    Attributes
    ----------
    mean
        Displacement common to all rows, ``(row, col)``, px.
    mean_sd
        Its standard deviation along one axis, px.
    raw
        Displacement of each row beyond that, as measured, each row for itself, shape ``(2, rows)``, px.
    variance
        Of each of ``raw``, shape ``(2, rows)``, px²; infinite where a row tells nothing.
    """

    mean: Float64
    mean_sd: float
    raw: Float64
    variance: Float64

    @property
    def offsets(self) -> Float64:
        """Most likely displacement of each row beyond the common one, shape ``(2, rows)``, px.

        The rows together say what of it is motion (see ``row_wander.settled``); 0 where all may be noise.
        Worked out anew each time that it is asked for.
        """
        return np.stack([shrunk(o, v) for o, v in zip(self.raw, self.variance, strict=True)])


def measure_rows(image: Float32, reference: Float32, shift_px: Float64, max_offset_px: float) -> RowOffsets:
    """Fit the displacement of each row of ``image`` against ``reference`` displaced by ``shift_px``.

    Each row is placed for itself, its own offset of brightness free.

    Parameters
    ----------
    image, reference
        Shape ``(rows, cols)``, float32.
    shift_px
        ``(row, col)``.
    max_offset_px
        Rows that seem to be off by more tell nothing.
    """
    offsets, variance = place_rows(image, reference, shift_px, max_offset_px)
    spread = np.array([_spread(offset, v) for offset, v in zip(offsets, variance, strict=True)])
    weight = 1 / (variance + spread[:, None])
    total = 1 + weight.sum(axis=1)  # the match itself is good to a pixel
    mean = (weight * offsets).sum(axis=1) / total
    return RowOffsets(
        mean=mean,
        mean_sd=float(np.sqrt(1 / total).max()),
        raw=offsets - mean[:, None],
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
    """Take from measured offsets of rows what may be noise; all of it where nothing stands out.

    Parameters
    ----------
    offsets, variance
        Along one axis, shape ``(rows,)``; see ``row_wander.settled``.
    """
    return settled(offsets, variance).offset_px


@njit(cache=True)
def _least_surprising(
    surface: Float32, rows: Float64, cols: Float64, expected: Float64, reach: float, price: float
) -> tuple[int, int]:
    """Find the place that is highest for how far it lies from the expected one, ``(row, col)``."""
    highest = surface.max()
    best = -np.inf
    found = (0, 0)
    for row in range(rows.size):
        down2 = (rows[row] - expected[0]) ** 2
        for col in range(cols.size):
            height = surface[row, col]
            # No surprise makes up for half of the height; and most places are not worth a logarithm.
            if height < 0.5 * highest or height <= best:
                continue
            away2 = down2 + (cols[col] - expected[1]) ** 2
            value = height - price * highest * math.log1p(away2 / reach**2)
            if value > best:
                best, found = value, (row, col)
    return found


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
