"""Where the specimen of a frame lies, by comparing it with what frames before it showed.

Nothing here needs a lattice. Directions are (row, col) in pixels of the raster. A displacement ``d``
says that a specimen point of pixel ``u`` appears in the frame at pixel ``u + d``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft, ndimage

from streamer.messages import Float32
from streamer.observers.row_wander import settled

if TYPE_CHECKING:
    from models.distortion_gp import Observations

Float64 = NDArray[np.float64]

# Rows and their reference are smoothed by this much before they are compared.
SMOOTHING_PX = 1.0
_ROW_STEPS = 6
_WIDTHS_PX = (1.0, 1.5, 2.0, 3.0, 4.5)
_FIRST_SPREAD_PX = 1.0
_ENOUGH_PX = 256
_BESIDE_PX = 1.5
# Halves of a row are made of every other stretch of so many pixels.
_STRETCH = 16

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
        Most likely displacement ``(row, col)`` of each row beyond the common one, shape ``(2, rows)``, px;
        0 where what was measured may be noise.
    offset_variance
        Of ``offsets``, shape ``(2, rows)``, px².
    mean
        Displacement common to all rows, ``(row, col)``, px.
    mean_sd
        Its standard deviation along one axis, px.
    raw
        As measured, each row for itself, shape ``(2, rows)``, px.
    variance
        Of each of ``raw``, shape ``(2, rows)``, px²; infinite where a row tells nothing.
    """

    offsets: Float64
    offset_variance: Float64
    mean: Float64
    mean_sd: float
    raw: Float64
    variance: Float64


def measure_rows(image: Float32, reference: Float32, shift_px: Float64, max_offset_px: float) -> RowOffsets:
    """Fit the displacement of each row of ``image`` against ``reference`` displaced by ``shift_px``.

    Each row is placed for itself, its own offset of brightness free; then the rows together say what
    of it is motion (see ``row_wander.settled``).

    Parameters
    ----------
    image, reference
        Shape ``(rows, cols)``, float32.
    shift_px
        ``(row, col)``.
    max_offset_px
        Rows that seem to be off by more tell nothing.
    """
    offsets, variance = _place_rows(image, reference, shift_px, max_offset_px)
    spread = np.array([_spread(offset, v) for offset, v in zip(offsets, variance, strict=True)])
    weight = 1 / (variance + spread[:, None])
    total = 1 + weight.sum(axis=1)  # the match itself is good to a pixel
    mean = (weight * offsets).sum(axis=1) / total
    rest = offsets - mean[:, None]
    rows = [settled(o, v) for o, v in zip(rest, variance, strict=True)]
    return RowOffsets(
        offsets=np.stack([axis.offset_px for axis in rows]),
        offset_variance=np.stack([axis.variance_px2 for axis in rows]),
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


def _place_rows(
    image: Float32, reference: Float32, shift_px: Float64, most_px: float
) -> tuple[Float64, Float64]:
    """Say how far each row is displaced beyond the shift, ``(2, rows)``, and the variance of that.

    Where rows and reference differ, least squares would weigh that with the gradients of the
    reference. Those have noise too, which makes every step too short, on a noisy frame by half. So the
    weights are gradients of the reference smoothed further, and the length of the step is right for
    the gradients that both have in common (the instrumental variables of statistics).
    """
    # Along the rows only: the rows of the image are independent, and blurred alike they stay alike.
    seen = ndimage.gaussian_filter1d(image, SMOOTHING_PX, axis=1)
    known = ndimage.gaussian_filter1d(reference, SMOOTHING_PX, axis=1)
    seen /= _gain(seen, displaced(known, -np.rint(shift_px)))
    noise_px, width = pixel_noise(reference), telling_width(reference)
    guides = np.stack(np.gradient(ndimage.gaussian_filter(reference, width)))
    # What pixel noise adds to the energy of the weights, and to their product with the gradients.
    floor = noise_px**2 / (8 * math.pi * width**4)
    both = math.sqrt(SMOOTHING_PX**2 + width**2)
    shared = noise_px**2 / (2 * math.pi) / np.array([width**3 * both, width * both**3])
    inner = [_middle(guide) for guide in guides]
    gradients = np.gradient(_middle(known))
    weights = np.array(
        [
            max(float((g * h).mean()) - n, 1e-30) / max(float((g * g).mean()) - floor, 1e-30)
            for g, h, n in zip(inner, gradients, shared, strict=True)
        ]
    )
    # White noise of the pixels counts with the energy of the weights as smoothed as the pixels are.
    wide = [ndimage.gaussian_filter1d(guide, SMOOTHING_PX, axis=1) for guide in inner]
    kept = 1 / (2 * math.sqrt(math.pi) * SMOOTHING_PX)
    loss = [float(np.vdot(w, w)) / (float(np.vdot(g, g)) + 1e-30) for w, g in zip(wide, inner, strict=True)]
    noise = np.array(loss) / kept
    ridge = 1e-4 * float(np.vdot(guides, guides)) / image.shape[0] + 1e-30
    expected = np.zeros((2, image.shape[0]))
    spread = np.full((2, image.shape[0]), _FIRST_SPREAD_PX**2)
    # A row without structure would go astray by itself: it first stays near 0, then near its neighbours.
    for last in (False, True):
        fits = _fit_rows(seen, known, guides, weights, noise, shift_px, expected, spread, ridge, floor)
        offsets, variance = fits[:2], fits[2:4] * _halves_say(fits)[:, None]
        variance[:, (np.abs(fits[:2]) > most_px).any(axis=0)] = np.inf
        if not last:
            near = [settled(o - _mean(o, v), v) for o, v in zip(offsets, variance, strict=True)]
            means = [_mean(o, v) for o, v in zip(offsets, variance, strict=True)]
            expected = np.stack([axis.offset_px + mean for axis, mean in zip(near, means, strict=True)])
            spread = np.stack([axis.variance_px2 for axis in near]) + 0.05**2
    return offsets, variance


def _halves_say(fits: Float64) -> Float64:
    """Say by what the variances are too small, along each axis: halves of rows differ only by noise."""
    first, second = fits[4:8], fits[8:12]
    ratio = (first[:2] - second[:2]) ** 2 / (first[2:] + second[2:])
    factor: Float64 = np.clip(np.minimum(ratio, 9.0).mean(axis=1), 1.0, 4.0)
    return factor


def pixel_noise(image: Float32) -> float:
    """Say the standard deviation of an image's white noise, by what four neighbours do not share."""
    image = _middle(image)
    corners = (image[1:, 1:] - image[1:, :-1] - image[:-1, 1:] + image[:-1, :-1]) / 2
    noise = float(np.median(np.abs(corners))) / 0.6745
    # Few counts: more than half of the differences are 0.
    return noise if noise > 0 else float(corners.std())


def _middle(image: Float32) -> Float32:
    """Cut out what is enough to tell noise from structure."""
    top, left = (max(0, (n - _ENOUGH_PX) // 2) for n in image.shape)
    return image[top : top + _ENOUGH_PX, left : left + _ENOUGH_PX]


def telling_width(image: Float32) -> float:
    """Say how far an image is to be smoothed for its gradients to be those of the specimen, in pixels.

    The least width at which noise makes less than a fifth of their energy.
    """
    image = _middle(image)
    noise2 = pixel_noise(image) ** 2
    for width in _WIDTHS_PX[:-1]:
        gradients = np.gradient(ndimage.gaussian_filter(image, width))
        energy = min(float((gradient * gradient).mean()) for gradient in gradients)
        if noise2 / (8 * math.pi * width**4) < 0.2 * energy:
            return width
    return _WIDTHS_PX[-1]


def _mean(offsets: Float64, variance: Float64) -> float:
    """Weighted mean; 0 where no row tells anything."""
    weight = 1 / (variance + 0.1**2)
    return float((weight * offsets).sum() / max(float(weight.sum()), 1e-30))


def _gain(seen: Float32, known: Float32) -> float:
    """Say how much stronger the contrast of an image is than that of another; 1 where they are unlike.

    Both are compared with the neighbours of each row in the second, whose noise neither has: compared
    with itself, noise would count as contrast, and the gain would be too small.
    """
    centre = float(ndimage.gaussian_filter1d(np.array([0.0] * 8 + [1.0] + [0.0] * 8), _BESIDE_PX)[8])
    beside = ndimage.gaussian_filter1d(known, _BESIDE_PX, axis=0) - np.float32(centre) * known
    beside -= beside.mean()
    own = float(np.vdot(known - known.mean(), beside))
    gain = float(np.vdot(seen - seen.mean(), beside)) / own if own > 0 else 1.0
    return gain if gain > 0 else 1.0


@njit(cache=True)
def _fit_rows(
    seen: Float32,
    known: Float32,
    guides: Float32,
    common: Float64,
    noise: Float64,
    shift: Float64,
    expected: Float64,
    spread: Float64,
    ridge: float,
    floor: float,
) -> Float64:
    """Fit each row, ``(12, rows)``: offset (2) as measured without what was expected, its variance (2).

    The rest are steps and variances of each half of the row by itself, as ``_row_step`` says them.

    The point around which gradients are taken is the most likely one, given the variance ``spread`` of
    the true offset around the expected one.
    """
    rows, cols = seen.shape
    result = np.zeros((12, rows))
    error = np.empty(cols)
    for row in range(rows):
        point = expected[:, row].copy()
        for _ in range(_ROW_STEPS):
            y = row - shift[0] - point[0]
            x = -shift[1] - point[1]
            _row_error(seen[row], known, y, x, error)
            top, left = min(max(round(y), 0), rows - 1), round(x)
            measured = _row_step(guides, error, top, left, common, noise, ridge, floor, -1, False)
            result[0, row], result[1, row] = point[0] + measured[0], point[1] + measured[1]
            moved = 0.0
            for axis in range(2):
                gain = spread[axis, row] / (spread[axis, row] + measured[2 + axis])
                target = expected[axis, row] + gain * (result[axis, row] - expected[axis, row])
                step = min(max(target - point[axis], -1.0), 1.0)
                point[axis] += step
                moved = max(moved, abs(step))
            if moved < 0.02:
                break
        for part in range(-1, 2):
            said = _row_step(guides, error, top, left, common, noise, ridge, floor, part, True)
            if part < 0:
                result[2:4, row] = said[2:]
            else:
                result[4 + 4 * part : 8 + 4 * part, row] = said
    return result


@njit(cache=True, fastmath=True)
def _row_error(seen: Float32, known: Float32, y: float, x: float, error: Float64) -> None:
    """Fill in a row less the reference at ``(y, col + x)``, by cubic convolution, less their means."""
    rows, cols = known.shape
    first, left = math.floor(y), math.floor(x)
    down, along = _cubic(y - first), _cubic(x - left)
    total = 0.0
    line = np.zeros(cols + 3, dtype=np.float32)
    # Columns whose four neighbours are all there; beyond, the edge repeats.
    start = min(max(0, 1 - left), cols + 3)
    stop = max(start, min(cols + 3, cols + 1 - left))
    for i in range(4):
        source = known[min(max(first - 1 + i, 0), rows - 1)]
        weight = np.float32(down[i])
        for col in range(start):
            line[col] += weight * source[0]
        for col in range(start, stop):
            line[col] += weight * source[col + left - 1]
        for col in range(stop, cols + 3):
            line[col] += weight * source[cols - 1]
    for col in range(cols):
        value = (
            along[0] * line[col]
            + along[1] * line[col + 1]
            + along[2] * line[col + 2]
            + along[3] * line[col + 3]
        )
        error[col] = seen[col] - value
        total += error[col]
    for col in range(cols):
        error[col] -= total / cols


@njit(cache=True)
def _cubic(x: float) -> tuple[float, float, float, float]:
    """Weights of the 4 pixels around a place ``x`` in [0, 1) beyond the second (Keys 1981, eq. 15)."""
    return (
        ((-0.5 * x + 1.0) * x - 0.5) * x,
        (1.5 * x - 2.5) * x * x + 1.0,
        ((-1.5 * x + 2.0) * x + 0.5) * x,
        (0.5 * x - 0.5) * x * x,
    )


@njit(cache=True, fastmath=True)
def _row_step(
    guides: Float32,
    error: Float64,
    top: int,
    left: int,
    common: Float64,
    noise: Float64,
    ridge: float,
    floor: float,
    part: int,
    is_last: bool,
) -> Float64:
    """Say how much further a row is displaced (2), and the variance of that by what is left then (2).

    Shot noise is largest where the gradients are, which the sandwich estimator counts in; a row without
    gradients leaves it nothing to count, but has an even share of the noise. ``part`` is 0 or 1 for
    every other stretch of the row, -1 for all of it. Before the last step an even share is enough.
    """
    cols = error.size
    hh = kk = hk = he = ke = power = 0.0
    count = 0
    for col in range(cols):
        if part >= 0 and (col // _STRETCH) % 2 != part:
            continue
        place = min(max(col + left, 0), cols - 1)
        h, k, e = guides[0, top, place], guides[1, top, place], error[col]
        count += 1
        hh += h * h
        kk += k * k
        hk += h * k
        he += h * e
        ke += k * e
        power += e * e
    # A trace of ridge: on a line of mirror symmetry one axis has no gradient, and the other still has.
    rr = max(hh - count * floor, 0.0) * common[0] + ridge
    cc = max(kk - count * floor, 0.0) * common[1] + ridge
    most = 0.99 * math.sqrt(rr * cc)
    rc = min(max(hk * math.sqrt(common[0] * common[1]), -most), most)
    determinant = rr * cc - rc * rc
    out = np.empty(4)
    # The reference is displaced the other way than the specimen.
    out[0], out[1] = (rc * ke - cc * he) / determinant, (rc * he - rr * ke) / determinant
    even_r = cc / determinant / common[0] * power / max(count, 1)
    even_c = rr / determinant / common[1] * power / max(count, 1)
    out[2], out[3] = noise[0] * even_r + 1e-12, noise[1] * even_c + 1e-12
    if not is_last:
        return out
    nr = nc = nrc = 0.0
    for col in range(cols):
        if part >= 0 and (col // _STRETCH) % 2 != part:
            continue
        place = min(max(col + left, 0), cols - 1)
        h, k, e2 = guides[0, top, place], guides[1, top, place], error[col] * error[col]
        nr += h * h * e2
        nc += k * k * e2
        nrc += h * k * e2
    sandwich_r = (cc * cc * nr - 2 * cc * rc * nrc + rc * rc * nc) / determinant**2
    sandwich_c = (rr * rr * nc - 2 * rr * rc * nrc + rc * rc * nr) / determinant**2
    out[2], out[3] = max(out[2], noise[0] * sandwich_r), max(out[3], noise[1] * sandwich_c)
    return out


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
