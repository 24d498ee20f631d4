"""Where the columns of a frame are, to a hundredth of a pixel, and by how much each row is off.

A column is a round Gaussian on a level background, and all columns of a frame are equally wide. What
the neighbours add is taken off before a column is fitted, so columns may overlap. Positions are
``(row, col)`` in pixels of the raster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamer.observers.row_posterior import likeliest_variance, posterior, product

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

_HALF_WIDTH_SIGMA = 2.1  # of the window of a fit: 9 x 9 pixels for a sigma of 1.9
_DRAWN_SIGMA = 3.5  # how far a column is drawn
_LONGEST_STEP_PX = 1.2
_LEAST_SIGNIFICANCE = 4.0  # amplitude in its standard deviations
_WORST_CHI2 = 2.5  # in the median of the frame
_LINEAR_SIGMA = 0.2  # row offsets spread by less are found at once
_LEAST_OF_USUAL = 0.3  # information of a row that is to say how noisy rows are
_LOOSE_SIGMA = 0.5  # a column among others is held at its guess with this sd: more than any is off by
_BEYOND_PX, _BEYOND_HEIGHT = 0.3, 0.3  # sd of place and relative height of a column beyond the edge
_STRETCH_SIGMA = 3.0  # halves of a row are made of every other stretch so long
_LEVELS = 24  # brightness levels at which the noise is measured
_FOURTH_DIFFERENCE = 70.0  # sum of the squares of 1, -4, 6, -4, 1
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Variance of a pixel, given what is expected there: ``max(constant + gain * expected, floor)``.

    Counts are ``NoiseModel(0, 1, 0.5)``; an image that was negated has a negative gain.
    """

    constant: float = 0.0
    gain: float = 1.0
    floor: float = 0.5


COUNTS = NoiseModel()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnFits:
    """Columns fitted in one frame.

    Attributes
    ----------
    positions_px
        Middle of each column, shape ``(n, 2)``, ``(row, col)``.
    variance_px2
        Of the positions, shape ``(n, 2)``, from the noise and from how badly the model fits.
    amplitude, background
        Height above the background and the background, shape ``(n,)``, in the image's unit.
    significance
        Amplitude in its standard deviations, shape ``(n,)``.
    chi2
        Mean squared residual in units of the noise, shape ``(n,)``.
    good
        Which can be used, shape ``(n,)``.
    """

    positions_px: Float64
    variance_px2: Float64
    amplitude: Float64
    background: Float64
    significance: Float64
    chi2: Float64
    good: Bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowOffsets:
    """By how much each row is displaced beside the smooth field, to be added to it.

    Attributes
    ----------
    offsets
        Shape ``(2, rows)``, pixels along (row, col), shrunk by what is known of their spread; all 0
        where no jitter stands out of the noise.
    variance
        Of the offsets, shape ``(2, rows)``, px².
    spread
        Standard deviation of the jitter along (row, col), shape ``(2,)``, px.
    noise_scale
        By how much the noise of a row's offset is larger than counting alone makes it, ``(2,)``.
    measured
        As measured, each row for itself, shape ``(2, rows)``; 0 where too few columns cross.
    """

    offsets: Float64
    variance: Float64
    spread: Float64
    noise_scale: Float64
    measured: Float64


def noise_model(image: Float32) -> NoiseModel:
    """Measure how the noise grows with the brightness, from fourth differences along the rows.

    Smooth structure drops out of a fourth difference, and offsets between rows do not enter. An image
    of whole numbers whose variance is about its mean is taken for counts.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, at least 8 columns.
    """
    picture = np.asarray(image, dtype=np.float64)
    middle = picture[:, 2:-2]
    sides = picture[:, 1:-3] + picture[:, 3:-1]
    ends = picture[:, :-4] + picture[:, 4:]
    rough = (6 * middle - 4 * sides + ends).ravel()
    level = ((6 * middle + 4 * sides + ends) / 16).ravel()
    # By the level itself the noise would choose its own class; neighbouring rows do not share it.
    level = _without_own_row(level.reshape(middle.shape)).ravel()
    order = np.argsort(level)
    classes = [part for part in np.array_split(order, _LEVELS) if part.size]
    mean = np.array([level[part].mean() for part in classes])
    variance = np.array([_robust_variance(rough[part]) for part in classes]) / _FOURTH_DIFFERENCE
    return _line_of_noise(mean, variance, picture)


def _without_own_row(level: Float64) -> Float64:
    if len(level) < 3:
        return level
    around = np.empty_like(level)
    around[1:-1] = (level[:-2] + level[2:]) / 2
    around[0], around[-1] = level[1], level[-2]
    return around


def _robust_variance(values: Float64) -> float:
    """Variance from the central two thirds: single steep edges do not count."""
    low, high = np.percentile(values, (15.865, 84.135))
    return float((high - low) / 2) ** 2


def _line_of_noise(mean: Float64, variance: Float64, picture: Float64) -> NoiseModel:
    typical = float(np.median(variance))
    if not typical > 0:
        # A drawn frame without noise: any weight will do, but it has to be one.
        scale = max(float(np.ptp(picture)), 1e-12)
        return NoiseModel(constant=(1e-3 * scale) ** 2, gain=0.0, floor=(1e-3 * scale) ** 2)
    weight = 1 / np.maximum(variance, 0.05 * typical)
    centre = np.average(mean, weights=weight**2)
    spread = float(np.sum(weight**2 * (mean - centre) ** 2))
    gain = float(np.sum(weight**2 * (mean - centre) * variance) / spread) if spread > 0 else 0.0
    constant = float(np.average(variance, weights=weight**2)) - gain * float(centre)
    if 0.7 < gain < 1.4 and picture.min() >= 0 and np.array_equal(picture, np.rint(picture)):
        return COUNTS
    return NoiseModel(constant=constant, gain=gain, floor=0.1 * typical)


def fit_columns(
    image: Float32,
    guesses_px: Float64,
    sigma_px: float,
    iterations: int = 2,
    noise: NoiseModel | None = None,
    max_shift_px: float = 3.5,
    likely_heights: Float64 | None = None,
) -> ColumnFits:
    """Fit position, amplitude and background of each column by weighted least squares.

    Gauss-Newton; the weights are those of the model, not of the data, so dim columns are not drawn
    down. A column whose middle is inside the frame is fitted with the part of it that is.

    Where columns overlap, give their ``likely_heights``: every column is then fitted beside what its
    neighbours are fitted to already. Guesses beyond the edges should be among them, as far as ``drawn_px``
    goes: the frame may show the flank of such a column, and it is kept near its guess and likely height.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``; columns are brighter than their surroundings.
    guesses_px
        Where columns are expected, shape ``(n, 2)``, ``(row, col)``.
    sigma_px
        Width of the columns.
    iterations
        2 suffice from half a pixel, 5 from two.
    noise
        Of the image; counts if left out.
    max_shift_px
        A column further from its guess is not good.
    likely_heights
        About how high each column is, in any unit, shape ``(n,)``. Left out, columns are fitted side by side,
        which is quicker, and as good where they are four sigma apart.
    """
    if not sigma_px > 0:
        raise ValueError(f"sigma_px is {sigma_px}; it takes numbers above 0")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it takes 1 and more")
    picture = np.ascontiguousarray(image, dtype=np.float32)
    guesses = np.ascontiguousarray(guesses_px, dtype=np.float64).reshape(-1, 2)
    noise = noise or COUNTS
    if likely_heights is None or not len(guesses):
        fits = _fitted(picture, guesses, sigma_px, iterations, noise)
    else:
        fits = _fitted_beside_each_other(picture, guesses, likely_heights, sigma_px, iterations, noise)
    return _judged(picture.shape, guesses, fits, sigma_px, max_shift_px)


def drawn_px(sigma_px: float) -> float:
    """Say how far from its middle a column still counts as seen, in pixels."""
    return _DRAWN_SIGMA * sigma_px


def _fitted(
    image: Float32, guesses: Float64, sigma: float, iterations: int, noise: NoiseModel
) -> tuple[Float64, Float64, Float64]:
    """Parameters ``(n, 4)`` (row, col, amplitude, background), their variances, and chi²."""
    half = max(2, math.ceil(_HALF_WIDTH_SIGMA * sigma - 0.25))
    law = (noise.constant, noise.gain, noise.floor)
    parameters = np.zeros((len(guesses), 4))
    parameters[:, :2] = guesses
    variance = np.full((len(guesses), 4), np.inf)
    chi2 = np.full(len(guesses), np.inf)
    _start(image, parameters, sigma, half)
    flat = np.zeros((2, image.shape[0]))
    free = np.zeros((len(guesses), 4))
    for _ in range(iterations):
        drawn = _drawn(image.shape, parameters, sigma, flat)
        _step(image, drawn, parameters, variance, chi2, sigma, half, law, free, free, 0)
    return parameters, variance, chi2


def _fitted_beside_each_other(
    image: Float32, guesses: Float64, heights: Float64, sigma: float, iterations: int, noise: NoiseModel
) -> tuple[Float64, Float64, Float64]:
    """Fit as ``_fitted`` does, each column against what the others leave of the image at that moment."""
    half = max(2, math.ceil(_HALF_WIDTH_SIGMA * sigma - 0.25))
    reach = math.ceil(_DRAWN_SIGMA * sigma)
    law = (noise.constant, noise.gain, noise.floor)
    flat = np.zeros((2, image.shape[0]))
    parameters = np.column_stack([guesses, _usual_heights(image, guesses, heights, sigma)])
    variance = np.full((len(guesses), 4), np.inf)
    chi2 = np.full(len(guesses), np.inf)
    anchor, firmness = parameters.copy(), np.zeros((len(guesses), 4))
    firmness[:, :2] = 1 / (_LOOSE_SIGMA * sigma) ** 2
    beyond = ~np.all((guesses >= 0) & (guesses <= np.array(image.shape) - 1), axis=1)
    height = np.maximum(anchor[beyond, 2], 1e-12)
    firmness[beyond, :2] = 1 / _BEYOND_PX**2
    firmness[beyond, 2:] = (1 / (_BEYOND_HEIGHT * height) ** 2)[:, None]
    drawn = _drawn(image.shape, parameters, sigma, flat)
    for _ in range(iterations + 1):
        _step(image, drawn, parameters, variance, chi2, sigma, half, law, anchor, firmness, reach)
    chi2[beyond] = np.inf
    return parameters, variance, chi2


def _usual_heights(image: Float32, guesses: Float64, heights: Float64, sigma: float) -> Float64:
    """Amplitude of each column and the background of all, ``(n, 2)``, one scale for all heights."""
    likely = np.column_stack([guesses, heights, np.zeros(len(guesses))])
    shape = _drawn(image.shape, likely, sigma, np.zeros((2, image.shape[0]))).astype(np.float64)
    off = shape - shape.mean()
    scale = float((off * image).sum() / max(float((off**2).sum()), 1e-30))
    scale = max(scale, 1e-3 * float(np.ptp(image)) / max(float(heights.max()), 1e-30))
    background = float(image.mean(dtype=np.float64) - scale * shape.mean())
    return np.column_stack([scale * heights, np.full(len(guesses), background)])


def _judged(
    shape: tuple[int, ...],
    guesses: Float64,
    fits: tuple[Float64, Float64, Float64],
    sigma: float,
    max_shift_px: float,
) -> ColumnFits:
    parameters, variance, chi2 = fits
    usable = np.isfinite(chi2) & np.isfinite(variance).all(axis=1)
    usual = float(np.median(chi2[usable])) if usable.any() else 1.0
    significance = np.where(usable, parameters[:, 2] / np.sqrt(np.where(usable, variance[:, 2], 1.0)), 0.0)
    # What all columns have in common is noise that was judged wrongly; what one has more is a bad fit.
    inflation = usual * np.clip(chi2 / max(usual, 1e-9), 1.0, _WORST_CHI2)
    position_variance = variance[:, :2] * np.where(usable, inflation, np.inf)[:, None]
    significance /= math.sqrt(max(usual, 1e-9))
    shift = np.hypot(*(parameters[:, :2] - guesses).T)
    inside = np.all((parameters[:, :2] >= 1) & (parameters[:, :2] <= np.array(shape) - 2), axis=1)
    good = usable & inside & (shift < max_shift_px) & (significance > _LEAST_SIGNIFICANCE)
    good &= (chi2 < _WORST_CHI2 * max(usual, 0.1)) & (position_variance.max(axis=1) < (0.55 * sigma) ** 2)
    return ColumnFits(
        positions_px=parameters[:, :2].copy(),
        variance_px2=position_variance,
        amplitude=parameters[:, 2].copy(),
        background=parameters[:, 3].copy(),
        significance=significance,
        chi2=chi2,
        good=good,
    )


def fitted_sigma(image: Float32, fits: ColumnFits, sigma_px: float, noise: NoiseModel | None = None) -> float:
    """Say how wide the columns are: one Gauss-Newton step in the common width, from a near one.

    Raises
    ------
    ValueError
        If no column is good.
    """
    if not fits.good.any():
        raise ValueError("no column is good enough to tell the width; give sigma_px")
    noise = noise or COUNTS
    picture = np.ascontiguousarray(image, dtype=np.float32)
    parameters = np.column_stack([fits.positions_px, fits.amplitude, fits.background])[fits.good]
    drawn = _drawn(picture.shape, parameters, sigma_px, np.zeros((2, picture.shape[0])))
    half = max(2, math.ceil(_HALF_WIDTH_SIGMA * sigma_px - 0.25))
    law = (noise.constant, noise.gain, noise.floor)
    step = _width_step(picture, drawn, parameters, sigma_px, half, law)
    return float(np.clip(sigma_px + step, 0.6 * sigma_px, 1.6 * sigma_px))


def row_reach(fits: ColumnFits, sigma_px: float, noise: NoiseModel | None = None) -> tuple[float, float]:
    """Say over how many rows a fit averages what the rows do, beside one with equal noise in all pixels.

    That one weighs rows at a distance ``y`` by ``exp(-y² / sigma²)`` along the columns, by ``y²`` times that
    along the rows. Where the middle of a column is noisier than its flanks, the flanks count for more.

    Returns
    -------
    row, col
        Factors to ``sigma_px``; 1 and 1 where no column is good.
    """
    if not fits.good.any():
        return 1.0, 1.0
    noise = noise or COUNTS
    height, level = float(np.median(fits.amplitude[fits.good])), float(np.median(fits.background[fits.good]))
    half = max(2, math.ceil(_HALF_WIDTH_SIGMA * sigma_px - 0.25))
    at2 = np.linspace(-half - 0.5, half + 0.5, 16 * half + 9) ** 2
    column = np.exp(-(at2[:, None] + at2) / (2 * sigma_px**2))
    weight = column**2 / np.maximum(noise.constant + noise.gain * (level + height * column), noise.floor)
    row, col = at2 * weight.sum(axis=1), weight @ at2
    row2, col2 = (float(at2 @ rows / rows.sum()) for rows in (row, col))
    return math.sqrt(2 * row2 / 3) / sigma_px, math.sqrt(2 * col2) / sigma_px


def row_offsets(
    image: Float32,
    fits: ColumnFits,
    expected_px: Float64,
    sigma_px: float,
    noise: NoiseModel | None = None,
    rows_px: Float64 | None = None,
    before: RowOffsets | None = None,
    passes: int = 2,
    overlap: bool = False,
) -> RowOffsets:
    """Measure the offsets of all rows by the columns that cross them, whose heights are fitted along.

    The columns are split into halves; by how much their answers differ says how noisy a row's offset
    is, whatever the noise comes from. The spread of the true offsets is that of the highest evidence, and
    0 unless it stands out by three standard errors: where there is no jitter, none is corrected.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``.
    fits
        The columns; only the good ones are used, for their amplitudes and backgrounds.
    expected_px
        Where the smooth field expects the columns, shape ``(n, 2)``: raw, ``(row, col)``.
    sigma_px
        Width of the columns.
    noise
        Of the image; counts if left out.
    rows_px
        What of the smooth field depends on the row only, shape ``(2, rows)``: it changes within a
        column (hum, settling).
    before
        Of the frame before: spread and noise are averaged over frames.
    overlap
        Whether columns overlap, so that a row shows their sum; then those that are not good are drawn too,
        without telling anything.
    passes
        1 is linear; 2 measures the rest again around the first answer where the spread is above σ/5.
    """
    picture = np.ascontiguousarray(image, dtype=np.float32)
    noise = noise or COUNTS
    known = np.zeros((2, picture.shape[0])) if rows_px is None else np.asarray(rows_px, dtype=np.float64)
    parameters = np.column_stack([expected_px, fits.amplitude, fits.background])
    offsets = np.zeros_like(known)
    for _ in range(passes):
        if overlap:
            told = _row_information_of_all(picture, parameters, fits.good, sigma_px, known, offsets, noise)
        else:
            told = _row_information(picture, parameters[fits.good], sigma_px, known, offsets, noise)
        result = _weighed(told, offsets, before)
        if result.spread.max() < _LINEAR_SIGMA * sigma_px:
            break
        # The linear answer of a row that few columns cross may be far out: it is not followed further.
        offsets = np.clip(result.offsets, offsets - 0.5 * sigma_px, offsets + 0.5 * sigma_px)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _RowInformation:
    """What each half of the columns says of the rows along (row, col), their heights not known.

    ``band`` has the shape ``(2, 2, width, rows)``, see ``row_posterior``, ``score`` ``(2, 2, rows)``;
    ``alone`` is information and score of each row as if heights were known, ``(2, 2, rows)``.
    """

    band: Float64
    score: Float64
    alone: Float64


def _row_information(
    image: Float32,
    parameters: Float64,
    sigma: float,
    known: Float64,
    offsets: Float64,
    noise: NoiseModel,
) -> _RowInformation:
    """Say what the columns tell of each row's offset, around ``offsets``."""
    placed = _placed(parameters, known)
    shift = known + offsets
    drawn = _drawn(image.shape, placed, sigma, shift)
    half = math.ceil(2.6 * sigma)
    rows = image.shape[0]
    told = _RowInformation(
        np.zeros((2, 2, 2 * half + 1, rows)), np.zeros((2, 2, rows)), np.zeros((2, 2, rows))
    )
    law = (noise.constant, noise.gain, noise.floor)
    _add_columns(image, drawn, placed, shift, sigma, half, law, told.band, told.score, told.alone)
    return told


def _placed(parameters: Float64, known: Float64) -> Float64:
    """Put columns where they are seen but for what their rows do."""
    at_column = np.stack([np.interp(parameters[:, 0], np.arange(known.shape[1]), row) for row in known])
    placed = parameters.copy()
    placed[:, :2] += at_column.T
    return placed


def _row_information_of_all(
    image: Float32,
    parameters: Float64,
    tells: Bool,
    sigma: float,
    known: Float64,
    offsets: Float64,
    noise: NoiseModel,
) -> _RowInformation:
    """Say the same where columns overlap: a pixel tells of its row once, whatever columns reach it."""
    placed = _placed(parameters, known)
    shift, rows = known + offsets, image.shape[0]
    drawn = np.zeros((5, *image.shape), dtype=np.float32)
    _draw_slopes(drawn, placed, tells, sigma, math.ceil(_DRAWN_SIGMA * sigma), shift)
    law = (noise.constant, noise.gain, noise.floor)
    told = np.zeros((2, 2, 2, rows))
    _add_pixels(image, drawn, max(1, round(_STRETCH_SIGMA * sigma)), law, told)
    both = told.sum(axis=1)
    return _RowInformation(np.ascontiguousarray(told[0][:, :, None]), told[1], both)


def _weighed(told: _RowInformation, around: Float64, before: RowOffsets | None) -> RowOffsets:
    """Turn what the columns told into offsets, given that it was measured around an earlier answer."""
    scale, spread2 = np.ones(2), np.zeros(2)
    offsets, variance = np.zeros_like(around), np.zeros_like(around)
    for axis in (0, 1):
        bands, moved = told.band[:, axis], around[axis]
        scores = np.stack([s + product(b, moved) for b, s in zip(bands, told.score[:, axis], strict=True)])
        band, score = bands.sum(axis=0), scores.sum(axis=0)
        enough = _crossed(bands)
        if np.count_nonzero(enough) >= 8:
            if before is None:
                usual, usual2 = _noise_scale(bands, scores, np.zeros_like(score), enough), 0.0
            else:
                usual, usual2 = float(before.noise_scale[axis]), float(before.spread[axis] ** 2)
            found2 = likeliest_variance(band / usual, score / usual, usual2)
            spread2[axis] = found2 if found2 > 0 else 0.8 * usual2
            answer, _ = posterior(band / usual, score / usual, spread2[axis])
            scale[axis] = _noise_scale(bands, scores, answer, enough)
            if before is not None:
                scale[axis] = 0.3 * scale[axis] + 0.7 * usual
        offsets[axis], variance[axis] = posterior(band / scale[axis], score / scale[axis], spread2[axis])
    # Four spreads out of its prior is no row offset, but a linear answer far from where it holds.
    offsets = np.clip(offsets, *(sign * 4 * np.sqrt(spread2)[:, None] for sign in (-1, 1)))
    information, score = told.alone
    is_seen = information > _LEAST_OF_USUAL * np.median(information, axis=1)[:, None]
    measured = np.where(is_seen, around + score / np.maximum(information, 1e-12), 0.0)
    return RowOffsets(
        offsets=offsets,
        variance=variance,
        spread=np.sqrt(spread2),
        noise_scale=scale,
        measured=measured,
    )


def _crossed(bands: Float64) -> Bool:
    """Say which rows enough columns of both halves cross."""
    least: Float64 = bands[:, 0].min(axis=0)
    usual = float(np.median(bands[:, 0]))
    crossed: Bool = (least > _LEAST_OF_USUAL * usual) & (least > 0)
    return crossed


def _noise_scale(bands: Float64, scores: Float64, answer: Float64, rows: Bool) -> float:
    """Say by how much the halves differ more than their noise, where both were given the answer."""
    left = [
        (score - product(band, answer))[rows] / band[0, rows]
        for band, score in zip(bands, scores, strict=True)
    ]
    expected = (1 / bands[:, 0, rows]).sum(axis=0)
    return float(np.clip(np.mean((left[0] - left[1]) ** 2 / expected), 0.5, 10))


def _drawn(shape: tuple[int, ...], parameters: Float64, sigma: float, shift: Float64) -> Float32:
    """All columns without their backgrounds; row ``r`` as recorded with an offset ``shift[:, r]``."""
    picture = np.zeros(shape, dtype=np.float32)
    _draw(picture, parameters, sigma, math.ceil(_DRAWN_SIGMA * sigma), shift)
    return picture


@njit(cache=True, fastmath=_FAST)
def _draw(picture: Float32, parameters: Float64, sigma: float, half: int, shift: Float64) -> None:
    rows, cols = picture.shape
    narrow = 0.5 / (sigma * sigma)
    q = math.exp(-2 * narrow)
    for i in range(len(parameters)):
        amplitude = parameters[i, 2]
        if not amplitude > 0:
            continue
        # A wild place of a fit that ran away must not become a wild index.
        if not (-100 < parameters[i, 0] < rows + 100 and -100 < parameters[i, 1] < cols + 100):
            continue
        middle = round(parameters[i, 0])
        for r in range(max(0, middle - half), min(rows, middle + half + 1)):
            down = r + shift[0, r] - parameters[i, 0]
            place = parameters[i, 1] - shift[1, r]
            first = max(0, round(place) - half)
            last = min(cols, round(place) + half + 1)
            # exp(-(x + 1)² / 2σ²) from exp(-x² / 2σ²) by two products, not by another exponential.
            x = first - place
            value = amplitude * math.exp(-narrow * (down * down + x * x))
            ratio = math.exp(-narrow * (2 * x + 1))
            for c in range(first, last):
                picture[r, c] += value
                value *= ratio
                ratio *= q


@njit(cache=True, fastmath=_FAST)
def _draw_slopes(
    drawn: Float32, parameters: Float64, tells: Bool, sigma: float, half: int, shift: Float64
) -> None:
    """Draw columns, by how much they change with their rows' offsets, and weights and sum of backgrounds."""
    rows, cols = drawn.shape[1:]
    narrow, inverse2 = 0.5 / (sigma * sigma), 1 / (sigma * sigma)
    q = math.exp(-2 * narrow)
    for i in range(len(parameters)):
        amplitude, background = parameters[i, 2], parameters[i, 3]
        middle = round(parameters[i, 0])
        for r in range(max(0, middle - half), min(rows, middle + half + 1)):
            down = r + shift[0, r] - parameters[i, 0]
            place = parameters[i, 1] - shift[1, r]
            first = max(0, round(place) - half)
            last = min(cols, round(place) + half + 1)
            x = first - place
            value = math.exp(-narrow * (down * down + x * x))
            ratio = math.exp(-narrow * (2 * x + 1))
            slope = -amplitude * inverse2 if tells[i] else 0.0
            for c in range(first, last):
                drawn[0, r, c] += amplitude * value
                drawn[1, r, c] += slope * down * value
                drawn[2, r, c] += slope * (c - place) * value
                drawn[3, r, c] += value
                drawn[4, r, c] += background * value
                value *= ratio
                ratio *= q


@njit(cache=True, fastmath=_FAST)
def _add_pixels(
    image: Float32, drawn: Float32, stretch: int, law: tuple[float, float, float], told: Float64
) -> None:
    """Add what pixels say: ``told`` is ``(information or score, half, axis, row)``, halves in turn."""
    rows, cols = image.shape
    for r in range(rows):
        for c in range(cols):
            if not drawn[3, r, c] > 1e-3:
                continue
            model = drawn[0, r, c] + drawn[4, r, c] / drawn[3, r, c]
            w = 1 / max(law[0] + law[1] * model, law[2])
            v = w * (image[r, c] - model)
            half = (c // stretch) & 1
            for axis in range(2):
                slope = drawn[1 + axis, r, c]
                told[0, half, axis, r] += w * slope * slope
                told[1, half, axis, r] += slope * v


@njit(cache=True, fastmath=_FAST)
def _draw_one(picture: Float32, row: float, col: float, amplitude: float, narrow: float, reach: int) -> None:
    """Add one column where ``_draw`` would, no row being displaced."""
    rows, cols = picture.shape
    top, left = round(row), round(col)
    first, last = max(0, left - reach), min(cols, left + reach + 1)
    if first >= last:
        return
    q = math.exp(-2 * narrow)
    x = first - col
    begin, begin_ratio = math.exp(-narrow * x * x), math.exp(-narrow * (2 * x + 1))
    for r in range(max(0, top - reach), min(rows, top + reach + 1)):
        value, ratio = amplitude * math.exp(-narrow * (r - row) ** 2) * begin, begin_ratio
        for c in range(first, last):
            picture[r, c] += value
            value *= ratio
            ratio *= q


@njit(cache=True, fastmath=_FAST)
def _start(image: Float32, parameters: Float64, sigma: float, half: int) -> None:
    """Amplitude and background by linear least squares at the guessed places."""
    rows, cols = image.shape
    narrow = 0.5 / (sigma * sigma)
    across = np.empty(2 * half + 1)
    for i in range(len(parameters)):
        row, col = parameters[i, 0], parameters[i, 1]
        if not (0 <= row <= rows - 1 and 0 <= col <= cols - 1):
            continue
        top, left = round(row), round(col)
        first, last = max(0, left - half), min(cols, left + half + 1)
        for c in range(first, last):
            across[c - first] = math.exp(-narrow * (c - col) ** 2)
        n = se = see = sv = sev = 0.0
        for r in range(max(0, top - half), min(rows, top + half + 1)):
            down = math.exp(-narrow * (r - row) ** 2)
            for c in range(first, last):
                e = down * across[c - first]
                v = image[r, c]
                n += 1
                se += e
                see += e * e
                sv += v
                sev += e * v
        determinant = n * see - se * se
        if determinant > 1e-9:
            parameters[i, 2] = max((n * sev - se * sv) / determinant, 0.0)
            parameters[i, 3] = (sv - parameters[i, 2] * se) / n


@njit(cache=True, fastmath=_FAST)
def _step(
    image: Float32,
    drawn: Float32,
    parameters: Float64,
    variance: Float64,
    chi2: Float64,
    sigma: float,
    half: int,
    law: tuple[float, float, float],
    anchor: Float64,
    firmness: Float64,
    reach: int,
) -> None:
    """One Gauss-Newton step of every column, the other columns as they are drawn.

    Parameters are held at ``anchor`` with the precision ``firmness``, ``(n, 4)`` both. With a ``reach``
    above 0 a column is drawn anew, so far, as soon as it has moved.
    """
    rows, cols = image.shape
    narrow, inverse2 = 0.5 / (sigma * sigma), 1 / (sigma * sigma)
    across = np.empty(2 * half + 1)
    normal, right = np.empty((4, 4)), np.empty(4)
    inverse = np.empty((4, 4))
    for i in range(len(parameters)):
        row, col, amplitude, background = parameters[i]
        variance[i, :] = np.inf
        chi2[i] = np.inf
        if firmness[i, 2] == 0 and not (0 <= row <= rows - 1 and 0 <= col <= cols - 1):
            continue
        top, left = round(row), round(col)
        first, last = max(0, left - half), min(cols, left + half + 1)
        for c in range(first, last):
            across[c - first] = math.exp(-narrow * (c - col) ** 2)
        n00 = n01 = n02 = n03 = n11 = n12 = n13 = n22 = n23 = n33 = 0.0
        b0 = b1 = b2 = b3 = square = 0.0
        count = 0
        for r in range(max(0, top - half), min(rows, top + half + 1)):
            down = math.exp(-narrow * (r - row) ** 2)
            y = (r - row) * inverse2
            for c in range(first, last):
                e = down * across[c - first]
                model = background + drawn[r, c]
                w = 1 / max(law[0] + law[1] * model, law[2])
                residual = image[r, c] - model
                j0 = amplitude * e * y
                j1 = amplitude * e * (c - col) * inverse2
                w0, w1, we = w * j0, w * j1, w * e
                n00 += w0 * j0
                n01 += w0 * j1
                n02 += w0 * e
                n03 += w0
                n11 += w1 * j1
                n12 += w1 * e
                n13 += w1
                n22 += we * e
                n23 += we
                n33 += w
                b0 += w0 * residual
                b1 += w1 * residual
                b2 += we * residual
                b3 += w * residual
                square += w * residual * residual
            count += max(0, last - first)
        if (count < 12 and firmness[i, 2] == 0) or not amplitude > 0:
            continue
        n00 += firmness[i, 0]
        n11 += firmness[i, 1]
        n22 += firmness[i, 2]
        n33 += firmness[i, 3]
        b0 += firmness[i, 0] * (anchor[i, 0] - row)
        b1 += firmness[i, 1] * (anchor[i, 1] - col)
        b2 += firmness[i, 2] * (anchor[i, 2] - amplitude)
        b3 += firmness[i, 3] * (anchor[i, 3] - background)
        normal[0] = (n00, n01, n02, n03)
        normal[1] = (n01, n11, n12, n13)
        normal[2] = (n02, n12, n22, n23)
        normal[3] = (n03, n13, n23, n33)
        right[0], right[1], right[2], right[3] = b0, b1, b2, b3
        if not _inverted(normal, inverse):
            continue
        for k in range(4):
            step = 0.0
            for m in range(4):
                step += inverse[k, m] * right[m]
            if k < 2:
                step = min(max(step, -_LONGEST_STEP_PX), _LONGEST_STEP_PX)
            parameters[i, k] += step
            variance[i, k] = inverse[k, k]
        parameters[i, 2] = max(parameters[i, 2], 0.0)
        chi2[i] = square / max(count, 1)
        if reach > 0:
            _draw_one(drawn, row, col, -amplitude, narrow, reach)
            _draw_one(drawn, parameters[i, 0], parameters[i, 1], parameters[i, 2], narrow, reach)


@njit(cache=True)
def _inverted(matrix: Float64, inverse: Float64) -> bool:
    """Invert a symmetric positive 4 x 4 matrix by Cholesky; False if it is not positive."""
    lower = np.zeros((4, 4))
    for j in range(4):
        diagonal = matrix[j, j]
        for k in range(j):
            diagonal -= lower[j, k] ** 2
        if not diagonal > 1e-12 * matrix[j, j]:
            return False
        lower[j, j] = math.sqrt(diagonal)
        for i in range(j + 1, 4):
            value = matrix[i, j]
            for k in range(j):
                value -= lower[i, k] * lower[j, k]
            lower[i, j] = value / lower[j, j]
    for column in range(4):
        y = np.zeros(4)
        for i in range(column, 4):
            value = 1.0 if i == column else 0.0
            for k in range(column, i):
                value -= lower[i, k] * y[k]
            y[i] = value / lower[i, i]
        for i in range(3, -1, -1):
            value = y[i]
            for k in range(i + 1, 4):
                value -= lower[k, i] * inverse[k, column]
            inverse[i, column] = value / lower[i, i]
    return True


@njit(cache=True, fastmath=_FAST)
def _width_step(
    image: Float32,
    drawn: Float32,
    parameters: Float64,
    sigma: float,
    half: int,
    law: tuple[float, float, float],
) -> float:
    """Step of the common width; amplitude and background of each column are fitted along with it."""
    rows, cols = image.shape
    narrow = 0.5 / (sigma * sigma)
    information = score = 0.0
    for i in range(len(parameters)):
        row, col, amplitude, background = parameters[i]
        top, left = round(row), round(col)
        g = np.zeros((3, 3))
        b = np.zeros(3)
        j = np.empty(3)
        for r in range(max(0, top - half), min(rows, top + half + 1)):
            for c in range(max(0, left - half), min(cols, left + half + 1)):
                distance2 = (r - row) ** 2 + (c - col) ** 2
                j[1] = math.exp(-narrow * distance2)
                j[0] = amplitude * j[1] * distance2 / sigma**3
                j[2] = 1.0
                model = background + drawn[r, c]
                w = 1 / max(law[0] + law[1] * model, law[2])
                for k in range(3):
                    b[k] += w * j[k] * (image[r, c] - model)
                    for m in range(3):
                        g[k, m] += w * j[k] * j[m]
        determinant = g[1, 1] * g[2, 2] - g[1, 2] * g[1, 2]
        if not determinant > 0:
            continue
        x1 = (g[2, 2] * g[0, 1] - g[1, 2] * g[0, 2]) / determinant
        x2 = (g[1, 1] * g[0, 2] - g[1, 2] * g[0, 1]) / determinant
        information += g[0, 0] - x1 * g[0, 1] - x2 * g[0, 2]
        score += b[0] - x1 * b[1] - x2 * b[2]
    return score / information if information > 0 else 0.0


@njit(cache=True, fastmath=_FAST)
def _add_columns(
    image: Float32,
    drawn: Float32,
    parameters: Float64,
    shift: Float64,
    sigma: float,
    half: int,
    law: tuple[float, float, float],
    band: Float64,
    score: Float64,
    alone: Float64,
) -> None:
    """Add what each column says of the rows that it crosses; columns take turns between the halves.

    Height and background of a column are unknown, and what they could make up for is no information.
    """
    rows, cols = image.shape
    narrow, inverse2 = 0.5 / (sigma * sigma), 1 / (sigma * sigma)
    q = math.exp(-2 * narrow)
    told = np.empty((2, 2, 2 * half + 1))  # axis; information, score; row
    mixed = np.empty((2, 2, 2 * half + 1))  # axis; height, background; row
    for i in range(len(parameters)):
        amplitude, background = parameters[i, 2], parameters[i, 3]
        if not (-half <= parameters[i, 0] < rows + half and -half <= parameters[i, 1] < cols + half):
            continue
        middle = round(parameters[i, 0])
        top, end = max(0, middle - half), min(rows, middle + half + 1)
        hh = hb = bb = h_score = b_score = 0.0
        for r in range(top, end):
            down = r + shift[0, r] - parameters[i, 0]
            place = parameters[i, 1] - shift[1, r]
            first = max(0, round(place) - half)
            last = min(cols, round(place) + half + 1)
            x = first - place
            value = math.exp(-narrow * (down * down + x * x))
            ratio = math.exp(-narrow * (2 * x + 1))
            # Sums over the row of the weight, times the column, the place along the row, the residual.
            w0 = we = wee = wex = weex = weexx = wv = wev = wevx = 0.0
            for c in range(first, last):
                model = background + drawn[r, c]
                w = 1 / max(law[0] + law[1] * model, law[2])
                along = c - place
                e = w * value
                ee = e * value
                ex, v = e * along, w * (image[r, c] - model)
                w0 += w
                we += e
                wee += ee
                wex += ex
                weex += ee * along
                weexx += ex * value * along
                wv += v
                wev += v * value
                wevx += v * value * along
                value *= ratio
                ratio *= q
            slope = -amplitude * inverse2
            k = r - top
            told[0, 0, k], told[0, 1, k] = slope * slope * down * down * wee, slope * down * wev
            told[1, 0, k], told[1, 1, k] = slope * slope * weexx, slope * wevx
            mixed[0, 0, k], mixed[0, 1, k] = slope * down * wee, slope * down * we
            mixed[1, 0, k], mixed[1, 1, k] = slope * weex, slope * wex
            hh += wee
            hb += we
            bb += w0
            h_score += wev
            b_score += wv
        determinant = hh * bb - hb * hb
        if not determinant > 1e-3 * hh * bb:  # too little of it is in view
            continue
        of = i & 1
        for axis in range(2):
            for k in range(end - top):
                height, level = mixed[axis, 0, k], mixed[axis, 1, k]
                by_height = (bb * height - hb * level) / determinant
                by_level = (hh * level - hb * height) / determinant
                for m in range(k + 1):
                    band[of, axis, k - m, top + m] -= (
                        by_height * mixed[axis, 0, m] + by_level * mixed[axis, 1, m]
                    )
                band[of, axis, 0, top + k] += told[axis, 0, k]
                score[of, axis, top + k] += told[axis, 1, k] - by_height * h_score - by_level * b_score
                alone[0, axis, top + k] += told[axis, 0, k]
                alone[1, axis, top + k] += told[axis, 1, k]
