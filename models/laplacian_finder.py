"""Laplacian of Gaussian at the scale of the columns: a finder that needs no weights.

All filters are applied in one Fourier transform of the padded frame. Its spectrum is cropped (or
padded) so that the filter is about two pixels wide on the grid where maxima are looked for: the cost
hardly depends on how finely a column is sampled. The same transform gives the frame at any other scale.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from models.blur import blurred
from models.column_fit import NoiseLaw

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Periods of atomic lattices in projection: what is slower is background, what is faster is noise.
_LONGEST_PERIOD_NM = 0.55
_SHORTEST_PERIOD_NM = 0.07
# Widths of the Laplacian against that of a column: the first at which columns stand clear of the
# noise is taken, or the last. The narrow one keeps the carbon neighbours of a bright dopant, which
# sit in the negative rim of its response; the wide one still sees columns of a few counts.
_FILTERS_PER_COLUMN = (0.8, 1.1, 1.5)
_CLEAR = 10.0
_FILTER_PX = 2.0
_PAD_SIGMAS = 4.0
_BLOCK = 12  # of every second pixel of the grid: about ten columns' widths
# Neighbours at unlike distances draw a maximum aside, the further the wider the filter is: root mean square
# along an axis, in widths of the filter, on simulated graphene with its defects at 1000 counts.
_DRAWN_ASIDE = 0.05
_CROWDED = 4.5  # widths of a column behind the filter, within which a neighbour still does
# A curvature that is itself noisy makes errors larger than its mean tells: E[1/x²] = (1 + 3 var) / E[x]², and
# maxima are where noise makes them sharper than they are.
_PER_NOISE_OF_BEND = 5.0
_FOURTH_DIFFERENCE = 70.0  # sum of the squares of 1, -4, 6, -4, 1
_MEDIAN_OF_CHI2 = 0.4549
_SMALL_PX = 200
_ROUNDING = 2e-4  # of the range of a frame
_LEVELS = 12  # of brightness, at which the noise is measured,
_MANY = 30  # each in so many places at least


class Spectrum:
    """The Fourier transform of an image that is mirrored at its edges, to look at it at any scale.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32.
    least_pad_px
        Of the mirrored margins.
    """

    def __init__(self, image: Float32, least_pad_px: float) -> None:
        self.pad = _padding(image.shape, least_pad_px)
        padded = np.pad(image, self.pad, mode="reflect")
        self.mean = float(padded.mean())
        padded -= np.float32(self.mean)
        self.values = fft.rfft2(padded)
        self.shape, self._image = padded.shape, image

    def at_scale(self, zoom: float) -> tuple[Float32, Float64, Float64]:
        """Give the image with about so many pixels for each of its own, along both axes.

        Returns
        -------
        image
            Float32, with the unit of the image.
        first, step
            The pixel ``p`` of it lies at ``first + p * step`` in the image, each ``(row, col)``.
        """
        if zoom == 1:
            return self._image, np.zeros(2), np.ones(2)
        rows, cols = (_length(max(2, round(n * zoom))) for n in self.shape)
        cropped = _cropped(self.values, self.shape, (rows, cols))
        cropped *= np.float32(rows * cols / math.prod(self.shape))
        whole = fft.irfft2(cropped, s=(rows, cols), overwrite_x=True)
        step = np.array(self.shape) / np.array([rows, cols])
        begin = np.ceil(self.pad[:, 0] / step).astype(np.intp)
        end = np.floor((self.pad[:, 0] + np.array(self._image.shape) - 1) / step).astype(np.intp) + 1
        image: Float32 = whole[begin[0] : end[0], begin[1] : end[1]] + np.float32(self.mean)
        return image, begin * step - self.pad[:, 0], step


class FrameView:
    """What a frame says of its columns before any is found: their width, and the noise.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32, bright columns; all pixels finite.
    pixel_nm
        Distance of pixels.
    column_sigma_nm
        Width of a column; 0 takes it from the spectrum.

    Attributes
    ----------
    column_sigma_px, filter_px
        Width of a column and of the filter that suits it, in pixels of the frame.
    spectrum
        Of the frame.
    """

    def __init__(self, image: Float32, pixel_nm: float, column_sigma_nm: float) -> None:
        self.spectrum = Spectrum(image, _PAD_SIGMAS * (column_sigma_nm or 0.05) / pixel_nm)
        power, frequency = _radial_power(self.spectrum.values, self.spectrum.shape)
        if column_sigma_nm > 0:
            self.column_sigma_px = column_sigma_nm / pixel_nm
        else:
            self.column_sigma_px = column_sigma(power, frequency, pixel_nm)
        self.filter_px = max(_FILTERS_PER_COLUMN[0] * self.column_sigma_px, 0.8)
        self._image, self._mean = image, self.spectrum.mean
        self._pixel_noise = math.sqrt(noise_power(power, frequency) / math.prod(self.spectrum.shape))

    def heights(self, positions_px: Float64) -> tuple[Float64, float]:
        """Say how high the frame is at some places above the level between columns.

        Parameters
        ----------
        positions_px
            ``(row, col)``, shape ``(n, 2)``.

        Returns
        -------
        height, background
            Of shape ``(n,)``, behind the low-pass of the filter, and the typical level below.
        """
        ground = self._ground
        place = (positions_px + 0.5) * (np.array(ground.shape) / np.array(self._image.shape))[None] - 0.5
        below = ndimage.map_coordinates(ground, place.T, order=1, mode="nearest")
        return _means_at(self._image, positions_px, 0.5 * self.filter_px) - below, float(np.median(ground))

    @cached_property
    def _ground(self) -> Float64:
        """Level between the columns behind the low-pass, in blocks."""
        low_pass_px = 0.5 * self.filter_px
        # The low-pass is narrow beside a column: every second pixel tells as much, where a column has many.
        step = 2 if low_pass_px > 1 else 1
        return _floor_of_blocks(blurred(self._image, low_pass_px)[::step, ::step], self._block_px() / step)

    def _block_px(self) -> float:
        """Side of the blocks in which the background is looked for."""
        return 2 * _BLOCK * self.filter_px / _FILTER_PX

    def noise_law(self) -> NoiseLaw:
        """Variance of a pixel against its brightness, as of white noise with the power that a fit meets."""
        at_mean = self._variance_at_mean()
        gain = at_mean * self._growth
        return NoiseLaw(constant=at_mean - gain * self._mean, gain=gain, floor=0.1 * at_mean)

    def _variance_at_mean(self) -> float:
        # A drawn frame without noise still has the rounding of the transforms.
        return max(self._pixel_noise, _ROUNDING * float(np.ptp(self._image)), 1e-30) ** 2

    @cached_property
    def _growth(self) -> float:
        return noise_growth(self._image, self._mean)


class FilteredFrame(FrameView):
    """A frame seen through the filters of the finder, on a grid of its own.

    Attributes
    ----------
    response
        Negative Laplacian of Gaussian, height 1 for a unit ridge; maxima are columns.
    peaks, height
        Maxima of the response, ``(row, col)`` on the grid, shape ``(n, 2)``, and their height.
    noise
        Standard deviation of ``response`` that comes from the pixels' noise.
    """

    def __init__(self, image: Float32, pixel_nm: float, column_sigma_nm: float) -> None:
        super().__init__(image, pixel_nm, column_sigma_nm)
        self._spectrum, self._shape, self._pad = self.spectrum.values, self.spectrum.shape, self.spectrum.pad
        for filter_per_column in _FILTERS_PER_COLUMN:
            self._filter(filter_per_column)
            if self._typical_significance() >= _CLEAR:
                break

    def _filter(self, filter_per_column: float) -> None:
        """Look through a filter of this width on a grid that suits it."""
        self.filter_px = max(filter_per_column * self.column_sigma_px, 0.8)
        zoom = min(_FILTER_PX / self.filter_px, 4.0)
        rows, cols = (fft.next_fast_len(math.ceil(n * zoom), real=True) for n in self._shape)
        self._scale = np.array(self._shape) / np.array([rows, cols])
        self._width = round(self.filter_px, 3)
        mexican, _ = _filters(self._shape, (rows, cols), self._width)
        cropped = _cropped(self._spectrum, self._shape, (rows, cols))
        self.response = fft.irfft2(cropped * mexican, s=(rows, cols))
        # Parseval; the half spectrum counts double, and a filter carries the ratio of the grids.
        gain2 = 2 * float((mexican**2).sum()) * math.prod(self._shape) / (rows * cols) ** 2
        self._response_gain = math.sqrt(gain2)
        # A drawn frame without noise still has the rounding of the transforms.
        rounding = 1e-4 * float(np.abs(self.response).max()) + 1e-30
        self.noise = max(self._pixel_noise * math.sqrt(gain2), rounding)
        self.peaks = _maxima(self.response)
        self.height = self.response[self.peaks[:, 0], self.peaks[:, 1]]

    def _typical_significance(self) -> float:
        """Height of a good column in standard deviations of the noise; 0 where nothing stands out."""
        significance = self.height / self.noise
        good = significance[significance > 3]
        return float(np.percentile(good, 75)) if good.size else 0.0

    @cached_property
    def smooth(self) -> Float32:
        """The image behind a narrow low-pass on the grid, in the unit of the image."""
        rows, cols = self.response.shape
        _, low = _filters(self._shape, (rows, cols), self._width)
        cropped = _cropped(self._spectrum, self._shape, (rows, cols))
        smooth: Float32 = fft.irfft2(cropped * low, s=(rows, cols)) + np.float32(self._mean)
        return smooth

    def candidates(self) -> Float64:
        """Maxima to a fraction of a pixel, ``(row, col)`` in pixels of the frame, shape ``(n, 2)``."""
        return self.to_frame_px(_refined(self.response, self.peaks))

    def nearest_on_grid(self, positions_px: Float64) -> NDArray[np.intp]:
        """Places of the grid next to positions in the frame, shape ``(n, 2)``."""
        places = np.rint((positions_px + self._pad[:, 0]) / self._scale).astype(np.intp)
        on_grid: NDArray[np.intp] = np.clip(places, 1, np.array(self.response.shape) - 2)
        return on_grid

    def _variance_at_mean(self) -> float:
        # A drawn frame without noise still has the rounding of the transforms.
        return max(self._pixel_noise**2, (self.noise / self._response_gain) ** 2)

    def to_frame_px(self, positions: Float64) -> Float64:
        """Turn ``(row, col)`` on the grid into pixels of the frame."""
        in_frame: Float64 = positions * self._scale - self._pad[:, 0]
        return in_frame

    def position_covariance(self, peaks: NDArray[np.intp]) -> Float64:
        """Say how well the vertices at some maxima are known, ``(row, col)`` in px² of the frame.

        To first order a vertex is off by the noise of the response's gradient over its curvature. The latter
        is half that of a typical column of this height, which is less noisy, half the column's own.

        Returns
        -------
        covariance
            Shape ``(n, 2, 2)``.
        """
        if not len(peaks):
            return np.empty((0, 2, 2))
        rows, cols = self.response.shape
        row_gain, col_gain, bend_gain = _gains(self._shape, (rows, cols), self._width)
        bend_r, bend_c, twist = _bends(self.response, peaks)
        height = self.response[peaks[:, 0], peaks[:, 1]].astype(np.float64)
        # Beside a maximum there may be none.
        height = np.maximum(height, 0.1 * float(np.median(np.abs(height))) + 1e-30)
        typical = float(np.median((bend_r + bend_c) / (2 * height))) * height
        # At a maximum both are negative: a column that is flat by noise counts as half a typical one.
        by_row, by_col = (np.minimum((bend + typical) / 2, typical / 2) for bend in (bend_r, bend_c))
        mixed = np.clip(twist / 2, -0.5 * np.sqrt(by_row * by_col), 0.5 * np.sqrt(by_row * by_col))
        inverse = np.empty((len(peaks), 2, 2))
        inverse[:, 0, 0], inverse[:, 1, 1] = by_col, by_row
        inverse[:, 0, 1] = inverse[:, 1, 0] = -mixed
        inverse /= (by_row * by_col - mixed**2)[:, None, None]
        noise = self._noise_at_flanks(peaks)
        spread = 1 + _PER_NOISE_OF_BEND * bend_gain * noise.mean(axis=1) / typical**2
        gradient = noise * np.array([row_gain, col_gain]) * spread[:, None]
        found = np.einsum("nij,nj,nkj,i,k->nik", inverse, gradient, inverse, self._scale, self._scale)
        aside_px = _DRAWN_ASIDE * self.filter_px * self._is_crowded(peaks)
        covariance: Float64 = found + (aside_px**2)[:, None, None] * np.eye(2)
        return covariance

    def _is_crowded(self, peaks: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Mark the maxima whose nearest neighbour is near enough to draw them aside."""
        if len(peaks) < 2:
            return np.zeros(len(peaks), dtype=bool)
        places = peaks * self._scale
        nearest_px = cKDTree(places).query(places, k=2)[0][:, 1]
        crowded: NDArray[np.bool_] = nearest_px < _CROWDED * math.hypot(self.filter_px, self.column_sigma_px)
        return crowded

    def _noise_at_flanks(self, peaks: NDArray[np.intp]) -> Float64:
        """Variance of the pixels that decide where a column lies along (row, col), shape ``(n, 2)``.

        The gradient of the filter looks at the flanks, a filter's width from the middle.
        """
        level = np.zeros(peaks.shape)
        for axis, away in ((0, -1), (0, 1), (1, -1), (1, 1)):
            flank = peaks.copy()
            flank[:, axis] += away * round(_FILTER_PX)
            row, col = np.clip(flank, 0, np.array(self.smooth.shape) - 1).T
            level[:, axis] += self.smooth[row, col] / 2
        relative = self._growth * (level - self._mean)
        variance: Float64 = self._variance_at_mean() * np.maximum(1 + relative, 0.1)
        return variance

    def heights(self, positions_px: Float64) -> tuple[Float64, float]:
        """Say how high the frame is on the grid next to some places; see ``FrameView``."""
        peaks = self.nearest_on_grid(positions_px)
        ground = _floor_of_blocks(self.smooth[::2, ::2], _BLOCK)
        place = (peaks + 0.5) * np.array(ground.shape) / np.array(self.smooth.shape) - 0.5
        below = ndimage.map_coordinates(ground, place.T, order=1, mode="nearest")
        height: Float64 = self.smooth[peaks[:, 0], peaks[:, 1]] - below
        return height, float(np.median(ground))


def column_sigma(power: Float64, frequency: Float64, pixel_nm: float) -> float:
    """Say the width of the columns, in pixels, from the radial power spectrum.

    Sparse Gaussian columns have the power ``exp(-4 π² k² σ²)``, whose mean square frequency in the
    plane is ``1 / (4 π² σ²)``; a lattice too dense to show single columns gives the width of its ripple.
    """
    noise = noise_power(power, frequency)
    period_nm = pixel_nm / np.maximum(frequency, 1e-9)
    band = (period_nm <= _LONGEST_PERIOD_NM) & (period_nm >= _SHORTEST_PERIOD_NM) & (frequency < 0.45)
    signal = np.where(band, np.maximum(power - 1.5 * noise, 0), 0) * frequency
    if not signal.sum() > 0:
        return max(1.0, 0.04 / pixel_nm)
    mean_square = float((signal * frequency**2).sum() / signal.sum())
    sigma = 1 / (2 * math.pi * math.sqrt(mean_square))
    # In steps of 5 %, so that successive frames share one filter.
    return float(1.05 ** round(math.log(sigma, 1.05)))


def noise_power(power: Float64, frequency: Float64) -> float:
    """Say the level of white noise: the power at 3 to 5 pixels a period.

    Interpolation of the frame has hardly touched it there, and columns wider than a pixel end before.
    """
    band = (frequency > 0.2) & (frequency < 0.35)
    return float(np.median(power[band])) if band.any() else float(power.min())


def noise_growth(image: Float32, mean: float) -> float:
    """Say by what part the variance of a pixel grows with its brightness, per unit, from that at the mean.

    Counts have 1 / (mean - offset of the detector). Measured in fourth differences along some rows, in which
    smooth structure drops out, against the mean of the same pixels, which they do not correlate with.
    """
    lines = image[:: max(1, len(image) // 32)]
    if lines.shape[1] < 5:
        return 0.0
    a, b, c, d, e = (lines[:, k : lines.shape[1] - 4 + k].astype(np.float64) for k in range(5))
    rough, level = (a - 4 * b + 6 * c - 4 * d + e).ravel(), ((a + b + c + d + e) / 5).ravel()
    # Even steps of brightness: where columns are few, bright pixels are, and they tell the most.
    place = np.floor((level - level.min()) / max(float(np.ptp(level)), 1e-30) * (_LEVELS - 1e-6))
    classes = [part for part in (np.flatnonzero(place == k) for k in range(_LEVELS)) if part.size >= _MANY]
    if len(classes) < 2:
        return 0.0
    brightness = np.array([level[part].mean() for part in classes])
    median = np.array([np.median(rough[part] ** 2) for part in classes])
    variance = median / (_FOURTH_DIFFERENCE * _MEDIAN_OF_CHI2)
    weight = np.array([part.size for part in classes]) / np.maximum(variance, 1e-30) ** 2
    centre = float(np.average(brightness, weights=weight))
    away = weight * (brightness - centre)
    growth = float(away @ variance) / float(away @ (brightness - centre))
    at_mean = float(np.average(variance, weights=weight)) + growth * (mean - centre)
    # More than counts would do from the darkest level on is no noise, but structure.
    most = 1 / max(mean - float(brightness[0]), 1e-30)
    return float(np.clip(growth / at_mean, 0, most)) if at_mean > 0 else 0.0


def _length(wanted: int) -> int:
    """Give a quick length; a small transform is quick at any, and a small image needs the one asked for."""
    return wanted if wanted < _SMALL_PX else int(fft.next_fast_len(wanted, real=True))


def _padding(shape: tuple[int, ...], width: float) -> NDArray[np.int64]:
    """Margins ``(2, 2)`` that keep the far edge out of the filter and make quick lengths."""
    margins = []
    for n in shape:
        least = min(math.ceil(width), n - 1) if n > 1 else 0
        extra = fft.next_fast_len(n + 2 * least, real=True) - n
        before = min(extra // 2, max(n - 1, 0))
        margins.append((before, min(extra - before, max(n - 1, 0))))
    return np.array(margins)


def _radial_power(spectrum: NDArray[np.complex64], shape: tuple[int, ...]) -> tuple[Float64, Float64]:
    """Mean power in rings of the half spectrum, and the rings' frequencies in 1/pixel."""
    ring, count, frequency = _rings(shape[0], shape[1])
    power = spectrum.real**2 + spectrum.imag**2
    return np.bincount(ring, weights=power.ravel(), minlength=count.size) / np.maximum(count, 1), frequency


def _floor_of_blocks(picture: Float32, block_px: float) -> Float64:
    """Level between the columns, on a coarse grid of blocks: the 5th percentile of each."""
    rows, cols = (max(1, int(n / block_px)) for n in picture.shape)
    high, wide = picture.shape[0] // rows, picture.shape[1] // cols
    blocks = picture[: rows * high, : cols * wide].reshape(rows, high, cols, wide)
    flat = blocks.transpose(0, 2, 1, 3).reshape(rows, cols, high * wide)
    place = int(0.05 * (flat.shape[2] - 1))
    level = np.partition(flat, place, axis=2)[:, :, place].astype(np.float64)
    smoothed: Float64 = ndimage.gaussian_filter(level, 0.7, mode="nearest")
    return smoothed


def _means_at(image: Float32, positions_px: Float64, sigma: float) -> Float64:
    """Mean of the pixels around each place, weighted by a Gaussian."""
    means: Float64 = np.empty(len(positions_px))
    _average(image, positions_px, sigma, means)
    return means


@njit(cache=True)
def _average(image: Float32, positions_px: Float64, sigma: float, means: Float64) -> None:
    rows, cols = image.shape
    reach = math.ceil(3 * sigma)
    along = np.empty(2 * reach + 1)
    for i in range(len(positions_px)):
        row, col = positions_px[i, 0], positions_px[i, 1]
        # A place beyond the edge has at least the pixel at the edge.
        top, bottom = min(max(round(row) - reach, 0), rows - 1), max(min(round(row) + reach + 1, rows), 1)
        left, right = min(max(round(col) - reach, 0), cols - 1), max(min(round(col) + reach + 1, cols), 1)
        for c in range(left, right):
            along[c - left] = math.exp(-0.5 * ((c - col) / sigma) ** 2)
        total, weights = 0.0, 1e-30
        for r in range(top, bottom):
            down = math.exp(-0.5 * ((r - row) / sigma) ** 2)
            for c in range(left, right):
                weight = down * along[c - left] + 1e-20
                total += weight * image[r, c]
                weights += weight
        means[i] = total / weights


@lru_cache(maxsize=8)
def _rings(rows: int, cols: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float64]:
    step = 1 / min(rows, cols)
    radius = np.hypot(fft.fftfreq(rows)[:, None], fft.rfftfreq(cols)[None, :])
    ring = np.rint(radius / step).astype(np.intp).ravel()
    count = np.bincount(ring)
    frequency: Float64 = np.arange(count.size, dtype=np.float64) * step
    return ring, count, frequency


@lru_cache(maxsize=16)
def _filters(shape: tuple[int, int], grid: tuple[int, int], filter_px: float) -> tuple[Float32, Float32]:
    """Transfer functions of the negative Laplacian of Gaussian and of the low-pass, on the grid."""
    per_row = fft.fftfreq(grid[0], shape[0] / grid[0])[:, None]
    per_col = fft.rfftfreq(grid[1], shape[1] / grid[1])[None, :]
    k2 = (2 * np.pi) ** 2 * (per_row**2 + per_col**2)
    scale = grid[0] * grid[1] / (shape[0] * shape[1])
    mexican = filter_px**2 * k2 * np.exp(-k2 * filter_px**2 / 2)
    low = np.exp(-k2 * (0.5 * filter_px) ** 2 / 2)
    return (scale * mexican).astype(np.float32), (scale * low).astype(np.float32)


@lru_cache(maxsize=16)
def _gains(shape: tuple[int, int], grid: tuple[int, int], filter_px: float) -> tuple[float, float, float]:
    """Variance that white noise of 1 in the frame gives to slopes and bends of a surface of 3 × 3."""
    mexican, _ = _filters(shape, grid, filter_px)
    row, col = 2 * np.pi * fft.fftfreq(grid[0])[:, None], 2 * np.pi * fft.rfftfreq(grid[1])[None, :]
    per_mode = 2 * math.prod(shape) / math.prod(grid) ** 2
    by_row, by_col = 1 + 2 * np.cos(row), 1 + 2 * np.cos(col)
    slope_r, slope_c = np.sin(row) / 3 * by_col, np.sin(col) / 3 * by_row
    bend = (2 * np.cos(row) - 2) / 3 * by_col
    row_gain, col_gain, bend_gain = (
        per_mode * float(((mexican * of) ** 2).sum()) for of in (slope_r, slope_c, bend)
    )
    return row_gain, col_gain, bend_gain


def _cropped(
    spectrum: NDArray[np.complex64], shape: tuple[int, ...], grid: tuple[int, int]
) -> NDArray[np.complex64]:
    """Cut a half spectrum down, or fill it up with zeros, to that of another grid."""
    rows, cols = min(shape[0], grid[0]), min(shape[1], grid[1])
    top, bottom = (rows + 1) // 2, rows // 2
    width = (cols + 1) // 2
    result = np.zeros((grid[0], grid[1] // 2 + 1), dtype=spectrum.dtype)
    result[:top, :width] = spectrum[:top, :width]
    result[grid[0] - bottom :, :width] = spectrum[spectrum.shape[0] - bottom :, :width]
    return result


@njit(cache=True)
def _maxima(response: Float32) -> NDArray[np.intp]:
    """Places ``(row, col)`` that are higher than all eight neighbours and than zero.

    Of two equal neighbours the later one counts, so that a plateau is one maximum.
    """
    rows, cols = response.shape
    found = np.empty((rows * cols // 4 + 1, 2), dtype=np.intp)
    n = 0
    for r in range(1, rows - 1):
        above, here, below = response[r - 1], response[r], response[r + 1]
        for c in range(1, cols - 1):
            value = here[c]
            if not (value > 0 and value >= here[c - 1] and value > here[c + 1]):
                continue
            if not (value >= above[c] and value > below[c]):
                continue
            if not (value >= above[c - 1] and value >= above[c + 1]):
                continue
            if value > below[c - 1] and value > below[c + 1]:
                found[n, 0], found[n, 1] = r, c
                n += 1
    return found[:n].copy()


def _refined(response: Float32, peaks: NDArray[np.intp]) -> Float64:
    """Vertices of the quadratic surfaces fitted (least squares) to 3 × 3 pixels around the peaks."""
    around = _around(response, peaks)
    by_row, by_col = around.sum(axis=2), around.sum(axis=1)
    slope_r = (by_row[:, 2] - by_row[:, 0]) / 6
    slope_c = (by_col[:, 2] - by_col[:, 0]) / 6
    bend_r, bend_c, twist = _bends(response, peaks)
    determinant = np.minimum(twist**2 - bend_r * bend_c, -1e-30)
    offset = (
        np.stack([bend_c * slope_r - twist * slope_c, bend_r * slope_c - twist * slope_r], axis=1)
        / determinant[:, None]
    )
    vertex: Float64 = peaks.astype(np.float64) + np.clip(offset, -0.75, 0.75)
    return vertex


def _bends(response: Float32, peaks: NDArray[np.intp]) -> tuple[Float64, Float64, Float64]:
    """Second derivatives of those surfaces: along rows' normal, along rows, and mixed."""
    around = _around(response, peaks)
    by_row, by_col = around.sum(axis=2), around.sum(axis=1)
    bend_r = (by_row[:, 0] - 2 * by_row[:, 1] + by_row[:, 2]) / 3
    bend_c = (by_col[:, 0] - 2 * by_col[:, 1] + by_col[:, 2]) / 3
    twist = (around[:, 0, 0] + around[:, 2, 2] - around[:, 0, 2] - around[:, 2, 0]) / 4
    return bend_r, bend_c, twist


def _around(response: Float32, peaks: NDArray[np.intp]) -> Float64:
    """Take the 3 × 3 pixels around each peak, shape ``(n, 3, 3)``."""
    step = np.arange(-1, 2)
    around = response[peaks[:, 0, None, None] + step[:, None], peaks[:, 1, None, None] + step]
    whole: Float64 = around.astype(np.float64)
    return whole
