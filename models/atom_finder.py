"""Finds columns with a small convolutional network: where, how surely, how exactly, and whether heavy.

The network sees a frame at one scale, where a spot has a standard deviation of 1.5 to 4 pixels and columns
are bright. Beside the pixels it is given what a classical finder has: the responses of two differences of
Gaussians, in units of the noise and of the texture around each place.

Axes of tensors: N image, C channel, H row, W column; of half resolution, unless a name says otherwise.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from models import checkpoint
from models.blur import blurred
from models.checkpoint import CheckpointError, ModelCard
from models.side_by_side import side_by_side

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Precision = Literal["auto", "float32", "bfloat16"]

SHIPPED = "finder.safetensors"
FEATURES = 8
OUTPUTS = 5  # logit of a column, offset by row and column (px), log variance of it (px²), logit of heavy
STRIDE_PX = 8  # between pixels of the network's coarsest maps
REACH_PX = 96  # from further away nothing enters an answer, but for the noise around a place
TILE_PX = 1024
_PER_COARSEST = STRIDE_PX // 2  # cells of half resolution to one of the coarsest
_SEEN_DOWN, _SEEN_AROUND = 2, 8  # rows of the coarsest that enter one from each side, on the way and there
_BLUR_HALF_PX = (0.9, 1.35, 2.3)  # each on top of the one before: 1.8, 3.2 and 5.6 px in all
_CUT = 2.8  # widths at which a kernel ends: below 2 % of its height
_AROUND_HALF_PX = 24  # in which noise and texture are measured, each way
_MEAN_TO_SD = 1.2533  # of the absolute value of normal numbers
_SAMPLED = 20_000  # pixels are enough to say median and spread to a hundredth
_BLOCK_PX = 16  # in which sure columns are counted
_MOST_SPREADS, _TALL = 60.0, 0.999  # of spots in training, hardly ever above; share of pixels below a spot
_FLAT_PX = 4  # each way: the top of a column that saturated the detector is narrower
_QUIET_ROW = 1e-3  # of the spread of a typical row: a row below it was not scanned


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """Columns that were found in an image, the surest first.

    Attributes
    ----------
    positions_px
        ``(row, col)``, shape ``(n, 2)``, float32; the centre of the first pixel is ``(0, 0)``.
    confidence
        Probability that there is a column, 0 to 1, shape ``(n,)``, float32.
    sd_px
        Standard deviation of a position along each axis, shape ``(n,)``, float32.
    heavy_probability
        Probability that it is clearly brighter than most, or a heavy atom on a support, shape ``(n,)``.
    """

    positions_px: Float32
    confidence: Float32
    sd_px: Float32
    heavy_probability: Float32


class FinderConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size of the network.

    Attributes
    ----------
    half, quarter, eighth
        Channels at a half, a quarter and an eighth of the resolution.
    """

    half: int = 16
    quarter: int = 32
    eighth: int = 32

    def __post_init__(self) -> None:
        for name in ("half", "quarter", "eighth"):
            if not 4 <= getattr(self, name) <= 512:
                raise ValueError(f"finder.{name} is {getattr(self, name)}; it takes 4 to 512")


# -- what the network sees -----------------------------------------------------------------------------


def level_and_spread(image_HW: Float32) -> tuple[float, float]:
    """Median and robust standard deviation of the part of an image that was scanned.

    Rows without any spread were blanked, and pixels that are no numbers are not counted.

    Returns
    -------
    level, spread
        Both 0 where nothing varies.
    """
    sample = _sampled(image_HW)
    is_number = np.isfinite(sample)
    if not is_number.any():
        return 0.0, 0.0
    spread = _row_spread(sample, is_number)
    is_scanned = spread > _QUIET_ROW * spread.max()
    pixels = sample[is_scanned][is_number[is_scanned]]
    if pixels.size == 0:
        return 0.0, 0.0
    level = float(np.median(pixels))
    deviation = np.abs(pixels - level)
    robust = 1.4826 * float(np.median(deviation))
    # Where most of the frame is flat, as around a few particles, what is not has to say the unit.
    return level, max(robust, 0.1 * float(deviation.mean()), 1e-6 * abs(level))


def _sampled(image: Float32) -> Float32:
    """Take every nth row and column of a large image."""
    step = max(1, math.isqrt(image.size // _SAMPLED))
    return image[::step, ::step] if min(image.shape) > step else image


def _row_spread(image: Float32, is_number: Bool) -> Float32:
    """Range of the pixels of each row that are numbers; 0 where there are none."""
    if is_number.all():
        return np.asarray(np.ptp(image, axis=1))
    high = np.where(is_number, image, -np.inf).max(axis=1)
    low = np.where(is_number, image, np.inf).min(axis=1)
    spread: Float32 = np.where(is_number.any(axis=1), high - low, 0)
    return spread


def features(image_HW: Float32, most_spreads: float = math.inf) -> Float32:
    """Turn an image into what the network sees.

    Parameters
    ----------
    image_HW
        Bright columns, any unit, shape ``(height, width)``, both even.
    most_spreads
        Spots that are more spreads high than this say the unit of brightness themselves.

    Returns
    -------
    features
        Shape ``(8, height / 2, width / 2)``, float32: the four pixels of a cell; a narrow difference of
        Gaussians in units of the white noise and of the texture around, a wide one in those of the texture,
        and by how much texture exceeds the noise.
    """
    level, spread = level_and_spread(image_HW)
    rows, cols = image_HW.shape
    seen = np.zeros((FEATURES, rows // 2, cols // 2), dtype=np.float32)
    if not spread > 0:
        return seen
    if most_spreads < math.inf:
        spread = max(spread, (_tall(image_HW) - level) / most_spreads)
    scaled = (image_HW - np.float32(level)) * np.float32(0.5 / spread)
    if not np.isfinite(scaled).all():
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    # Linear in the noise, logarithmic above: a bright dopant leaves its neighbours in sight.
    np.arcsinh(scaled, out=scaled)
    scaled *= np.float32(2)
    cells, rough = seen[:4], np.empty(seen.shape[1:], dtype=np.float32)
    mean = np.empty_like(rough)
    _split(scaled, cells, mean, rough)
    first = blurred(mean, _BLUR_HALF_PX[0], _CUT)
    second = blurred(first, _BLUR_HALF_PX[1], _CUT)
    third = blurred(second, _BLUR_HALF_PX[2], _CUT)
    noise = _mean_around(rough, _AROUND_HALF_PX)
    _whiten(first - second, second - third, noise, seen[4:])
    return seen


def _tall(image: Float32) -> float:
    """Brightness of the tops of spots, not of a few hot pixels."""
    sample = _sampled(image)
    return float(np.quantile(sample[np.isfinite(sample)], _TALL))


@njit(cache=True)
def _split(image: Float32, cells: Float32, mean: Float32, rough: Float32) -> None:
    """Split into cells of 2 × 2: the pixels, their mean, and the size of their crosswise difference."""
    for i in range(mean.shape[0]):
        upper, lower = image[2 * i], image[2 * i + 1]
        for j in range(mean.shape[1]):
            a, b, c, d = upper[2 * j], upper[2 * j + 1], lower[2 * j], lower[2 * j + 1]
            cells[0, i, j], cells[1, i, j], cells[2, i, j], cells[3, i, j] = a, b, c, d
            mean[i, j] = np.float32(0.25) * (a + b + c + d)
            rough[i, j] = np.float32(0.5) * abs(a - b - c + d)


@njit(cache=True)
def _mean_around(image: Float32, reach: int) -> Float32:
    """Mean over a square of ``2 reach + 1``, of the part of it that is there."""
    rows, cols = image.shape
    result = np.empty_like(image)
    column = np.zeros(cols, dtype=np.float64)
    for i in range(min(reach, rows)):
        column += image[i]
    for i in range(rows):
        if i + reach < rows:
            column += image[i + reach]
        if i - reach - 1 >= 0:
            column -= image[i - reach - 1]
        high = min(i + reach, rows - 1) - max(i - reach, 0) + 1
        total = 0.0
        for j in range(min(reach, cols)):
            total += column[j]
        for j in range(cols):
            if j + reach < cols:
                total += column[j + reach]
            if j - reach - 1 >= 0:
                total -= column[j - reach - 1]
            wide = min(j + reach, cols - 1) - max(j - reach, 0) + 1
            result[i, j] = max(total, 0.0) / (high * wide)
    return result


def _whiten(narrow: Float32, wide: Float32, noise: Float32, out: Float32) -> None:
    """Divide responses by what noise and texture give to them; see ``features``."""
    texture = _mean_around(np.abs(narrow), _AROUND_HALF_PX) * np.float32(_MEAN_TO_SD)
    coarse = _mean_around(np.abs(wide), _AROUND_HALF_PX) * np.float32(_MEAN_TO_SD)
    least = np.float32(1e-4)
    # Resampling from coarser pixels takes all white noise away: the unit stays above a tenth of the texture.
    white = np.maximum(noise * np.float32(_MEAN_TO_SD * _white_gain()), np.float32(0.1) * texture + least)
    np.arcsinh(narrow / (white * np.float32(4)), out=out[0])
    np.arcsinh(narrow / (texture + least), out=out[1])
    np.arcsinh(wide / (coarse + least), out=out[2])
    np.log((texture + least) / white, out=out[3])


def _white_gain() -> float:
    """Sd that white noise of 1 in the pixels has behind the narrow difference of Gaussians."""
    narrow, wide = _BLUR_HALF_PX[0], math.hypot(*_BLUR_HALF_PX[:2])
    energy = (1 / narrow**2 + 1 / wide**2) / (4 * math.pi) - 1 / (math.pi * (narrow**2 + wide**2))
    return 0.5 * math.sqrt(energy)


# -- the network ---------------------------------------------------------------------------------------


class ColumnNet(nn.Module):
    """Features ``(N, 8, H, W)`` to maps ``(N, 5, H, W)`` of the same, that is half, resolution.

    Parameters
    ----------
    config
        Channels.
    norm
        Whether batches are normalised behind each convolution, as in training; ``folded`` has none.
    """

    def __init__(self, config: FinderConfig, *, norm: bool = False) -> None:
        super().__init__()
        half, quarter, eighth = config.half, config.quarter, config.eighth
        self.config, self.norm = config, norm
        self.stem = _Convolution(FEATURES, half, norm=norm)
        self.down = _Convolution(half, quarter, stride=2, norm=norm)
        self.quarter = _Convolution(quarter, quarter, norm=norm)
        self.deeper = _Convolution(quarter, eighth, stride=2, norm=norm)
        self.near = _Convolution(eighth, eighth, norm=norm)
        self.far = _Convolution(eighth, eighth, dilation=2, norm=norm)
        self.farther = _Convolution(eighth, eighth, dilation=4, norm=norm)
        self.up = _Convolution(eighth, quarter, kernel=1, norm=norm)
        self.join = _Convolution(quarter, quarter, norm=norm)
        self.upper = _Convolution(quarter, half, kernel=1, norm=norm)
        self.fuse = _Convolution(half, half, norm=norm)
        self.head = nn.Conv2d(half, OUTPUTS, 1)

    def forward(self, features_NCHW: Tensor) -> Tensor:
        stem, quarter, deeper = self.descend(features_NCHW)
        fused = self.ascend(stem, quarter, self.around(deeper))
        # The head stays in float32: rounded to 8 bits, offsets would be off by hundredths of a pixel.
        with torch.autocast(fused.device.type, enabled=False):
            pixels = fused.float().permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2)
            assert self.head.bias is not None
            # As a product of matrices: a convolution of single pixels in float32 is ten times slower.
            maps: Tensor = self.head.weight[:, :, 0, 0] @ pixels + self.head.bias[:, None]
        return maps.reshape(len(maps), OUTPUTS, *fused.shape[2:])

    def descend(self, features_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the maps of a half, a quarter and an eighth of the resolution."""
        stem = self.stem.rectified(features_NCHW)
        down = self.down.rectified(stem)
        quarter = self.quarter.rectified(down, down)
        return stem, quarter, self.deeper.rectified(quarter)

    def around(self, deeper: Tensor) -> Tensor:
        """Look further around, at an eighth of the resolution."""
        for layer in (self.near, self.far, self.farther):
            deeper = layer.rectified(deeper, deeper)
        return deeper

    def ascend(self, stem: Tensor, quarter: Tensor, deeper: Tensor) -> Tensor:
        """Bring together what the three resolutions see: what the head reads, at half resolution."""
        joined = self.join.rectified(_plus_coarse(quarter, self.up(deeper)).relu_())
        return self.fuse.rectified(_plus_coarse(stem, self.upper(joined)).relu_())

    def folded(self) -> ColumnNet:
        """Return the same network with the normalisations folded into the convolutions, to be used."""
        result = _empty(self.config)
        for name, part in self.named_children():
            weights = part.folded() if isinstance(part, _Convolution) else part.state_dict()
            whole = {key: tensor.detach().clone() for key, tensor in weights.items()}
            result.get_submodule(name).load_state_dict(whole, assign=True)
        return result.eval()

    def ready(self, dtype: torch.dtype) -> ColumnNet:
        """Compute in this type, but for the head, and with less to copy; only for use."""
        for layer in (self.up.convolution, self.upper.convolution):
            # What goes to a finer map is needed twice along the rows: the product gives it so at once.
            assert layer.bias is not None
            layer.weight, layer.bias = (
                nn.Parameter(whole.detach().repeat(2, *[1] * (whole.ndim - 1)))
                for whole in (layer.weight, layer.bias)
            )
        self.to(dtype)
        self.head.float()
        return self.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def _empty(config: FinderConfig) -> ColumnNet:
    """Make a network without weights: nothing is drawn from the global generator for nothing."""
    with torch.device("meta"):
        return ColumnNet(config)


def _plus_coarse(fine_NCHW: Tensor, coarse_NCHW: Tensor) -> Tensor:
    """Add a map of half the size to each 2 × 2 pixels, without ever making it large.

    The coarse one may bring each pixel twice, one behind the other in its channels; see ``ready``.
    """
    n, channels, height, width = fine_NCHW.shape
    if coarse_NCHW.shape[1] == channels:
        coarse_NCHW = coarse_NCHW.repeat(1, 2, 1, 1)
    # Two pixels of a row are added at once: a long stretch of memory is quick, a pixel's channels are not.
    coarse = coarse_NCHW.permute(0, 2, 3, 1).reshape(n, height // 2, 1, width * channels)
    fine = fine_NCHW.permute(0, 2, 3, 1).reshape(n, height // 2, 2, width * channels)
    return (fine + coarse).reshape(n, height, width, channels).permute(0, 3, 1, 2)


class _Convolution(nn.Module):
    """Convolution with a bias, or with a normalisation that brings one."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1, norm: bool
    ) -> None:
        super().__init__()
        pad = dilation * (kernel // 2)
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, pad, dilation, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        result: Tensor = self.convolution(x_NCHW)
        return result if self.norm is None else self.norm(result)

    def rectified(self, x_NCHW: Tensor, plus_NCHW: Tensor | None = None) -> Tensor:
        """Convolve, add another map, and cut off what is below 0: in one pass where torch can."""
        if self.norm is None and _is_fused(x_NCHW):
            return self._fused(x_NCHW, plus_NCHW)
        result: Tensor = self(x_NCHW)
        return (result if plus_NCHW is None else result + plus_NCHW).relu_()

    def _fused(self, x_NCHW: Tensor, plus_NCHW: Tensor | None) -> Tensor:
        made, operator = self.convolution, torch.ops.mkldnn._convolution_pointwise
        how = (made.weight, made.bias, made.padding, made.stride, made.dilation, 1)
        result: Tensor = (
            operator(x_NCHW, *how, "relu", [], "")
            if plus_NCHW is None
            else operator.binary(x_NCHW, plus_NCHW, *how, "add", 1.0, "relu", [], "")
        )
        return result

    def folded(self) -> dict[str, Tensor]:
        """Weights and bias that do the same as convolution and normalisation with its running figures."""
        if self.norm is None:
            return dict(self.state_dict())
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        gain = self.norm.weight / torch.sqrt(variance + self.norm.eps)
        weight = self.convolution.weight * gain[:, None, None, None]
        bias = self.norm.bias - mean * gain
        return {"convolution.weight": weight.detach(), "convolution.bias": bias.detach()}


def _is_fused(x: Tensor) -> bool:
    """Whether torch's compiler, whose operator it is, would join a convolution with what follows."""
    is_here = x.device.type == "cpu" and torch.is_inference_mode_enabled()
    return is_here and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


# -- maps to columns -----------------------------------------------------------------------------------


@njit(cache=True)
def peaks(logit_HW: Float32, least: float) -> Int64:
    """Cells ``(row, col)`` that are above all eight neighbours and not below a logit, shape ``(n, 2)``.

    Of two equal neighbours the first counts.
    """
    rows, cols = logit_HW.shape
    found = np.empty((1024, 2), dtype=np.int64)
    count = 0
    for i in range(rows):
        for j in range(cols):
            value = logit_HW[i, j]
            if value < least or not _is_peak(logit_HW, i, j, value):
                continue
            if count == len(found):
                longer = np.empty((2 * count, 2), dtype=np.int64)
                longer[:count] = found
                found = longer
            found[count, 0], found[count, 1] = i, j
            count += 1
    return found[:count].copy()


@njit(cache=True)
def _is_peak(map_HW: Float32, i: int, j: int, value: np.float32) -> bool:
    rows, cols = map_HW.shape
    for y in range(max(i - 1, 0), min(i + 2, rows)):
        for x in range(max(j - 1, 0), min(j + 2, cols)):
            other = map_HW[y, x]
            if other > value or (other == value and (y < i or (y == i and x < j))):
                return False
    return True


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the network's numbers are worth, fitted on simulated images that training never saw.

    How often a peak of some logit is a column depends on whether there are columns around it: in a lattice
    half a column is more likely one than on a support.

    Attributes
    ----------
    logit
        Knots, rising.
    alone, crowded
        How often there is a column at a peak of each, without and with sure ones around; neither ever falls.
    crowd
        Sure columns in a square of 80 px up to which a peak is alone, and from which on it is crowded.
    sd_factor, sd_floor_px
        The standard deviation is ``hypot(sd_factor * sd, sd_floor_px)``.
    threshold
        Confidence from which on a column is believed: the best F1 in the mean of single atoms and all kinds.
    """

    logit: tuple[float, ...] = (-8.0, 8.0)
    alone: tuple[float, ...] = (0.0, 1.0)
    crowded: tuple[float, ...] = (0.0, 1.0)
    crowd: tuple[float, float] = (3.0, 12.0)
    sd_factor: tuple[float] = (1.0,)
    sd_floor_px: tuple[float] = (0.0,)
    threshold: tuple[float] = (0.5,)

    def __post_init__(self) -> None:
        if not len(self.logit) == len(self.alone) == len(self.crowded) >= 2 or np.any(
            np.diff(self.logit) <= 0
        ):
            raise ValueError(
                "card.calibration: logit takes two or more rising knots, alone and crowded as many"
            )
        if np.any(np.diff(self.alone) < 0) or np.any(np.diff(self.crowded) < 0):
            raise ValueError("card.calibration: alone and crowded take probabilities that never fall")
        if not 0 < self.crowd[0] < self.crowd[1]:
            raise ValueError(f"card.calibration: crowd is {self.crowd}; it takes two rising numbers above 0")

    def crowdedness(self, around: Float64) -> Float64:
        """Turn the number of sure columns around a peak into 0 (alone) to 1 (crowded)."""
        few, many = np.log1p(self.crowd)
        share: Float64 = np.clip((np.log1p(around) - few) / (many - few), 0, 1)
        return share

    def confidence(self, logit: Float32, around: Float64) -> Float64:
        """Probability of a column for each logit of a peak, and the number of sure columns around it."""
        share = self.crowdedness(around)
        alone, crowded = (np.interp(logit, self.logit, knots) for knots in (self.alone, self.crowded))
        probability: Float64 = (1 - share) * alone + share * crowded
        return probability

    def least_logit(self, confidence: float) -> float:
        """Say below which logit there is never this probability, whatever is around."""
        return min(self._least(self.alone, confidence), self._least(self.crowded, confidence))

    def _least(self, probability: tuple[float, ...], confidence: float) -> float:
        place = int(np.searchsorted(probability, confidence))
        if place == 0:
            return -math.inf
        if place == len(probability):
            return math.inf
        low, high = probability[place - 1], probability[place]
        share = (confidence - low) / (high - low)
        return self.logit[place - 1] + share * (self.logit[place] - self.logit[place - 1])


def sure_around(positions_px: Float64, logit: Float32, shape: tuple[int, int]) -> Float64:
    """Count the sure columns around each place.

    Parameters
    ----------
    positions_px, logit
        Of peaks, shapes ``(n, 2)`` and ``(n,)``; sure are those with a logit above 0.
    shape
        Of the image.

    Returns
    -------
    count
        In a square of 80 px, as if the image went on beyond its edge as it is within, shape ``(n,)``.
    """
    blocks = [max(1, -(-n // _BLOCK_PX)) for n in shape]
    row, col = np.clip((positions_px // _BLOCK_PX).astype(np.int64), 0, np.array(blocks) - 1).T
    flat = row * blocks[1] + col
    count = np.bincount(flat[logit > 0], minlength=blocks[0] * blocks[1]).astype(np.float32)
    around = _mean_around(count.reshape(blocks), 2) * np.float32(25)
    result: Float64 = around.ravel()[flat].astype(np.float64)
    return result


def columns_of(maps_CHW: Float32, least_logit: float) -> tuple[Float64, Float32]:
    """Turn maps into places and what belongs to them.

    Parameters
    ----------
    maps_CHW
        What the network gives, shape ``(5, H, W)``.
    least_logit
        Peaks below are left out.

    Returns
    -------
    positions_px, values
        ``(row, col)`` in pixels of the image, shape ``(n, 2)``; logit of a column, log variance and logit of
        heavy, shape ``(n, 3)``.
    """
    cells = peaks(maps_CHW[0], least_logit)
    return _columns_at(cells, maps_CHW[:, cells[:, 0], cells[:, 1]].T)


def _columns_at(cells: Int64, there: Float32) -> tuple[Float64, Float32]:
    """Turn the cells of peaks and what the head says there, ``(n, 5)``, into the same."""
    positions = 2.0 * cells + 0.5 + there[:, 1:3].astype(np.float64)
    return positions.astype(np.float64), there[:, [0, 3, 4]]


# -- the finder ----------------------------------------------------------------------------------------


class AtomFinder:
    """Finds columns in images of one scale.

    Parameters
    ----------
    net
        Folded.
    card
        Of its weights.
    revision
        Of its weights.
    precision
        ``auto`` computes in bfloat16 where the processor multiplies in it, else in float32.

    Attributes
    ----------
    canonical_sigma_px
        Standard deviation that a spot should have; see ``sigma_limits_px``.
    sigma_limits_px
        What training has seen.
    threshold
        Confidence from which on a column is believed.
    """

    def __init__(
        self, net: ColumnNet, card: ModelCard, revision: str = "", *, precision: Precision = "auto"
    ) -> None:
        self.card, self.revision = card, revision
        architecture = dict(card.architecture)
        self.canonical_sigma_px = float(architecture["canonical_sigma_px"])
        low, high = architecture["sigma_limits_px"]
        self.sigma_limits_px = (float(low), float(high))
        self.calibration = msgspec.convert(card.calibration, Calibration)
        self.threshold = self.calibration.threshold[0]
        self._dtype = _dtype_of(precision)
        self._net = copy.deepcopy(net).eval().ready(self._dtype)
        assert self._net.head.bias is not None
        self._head = self._net.head.weight[:, :, 0, 0].detach(), self._net.head.bias.detach()

    @classmethod
    def load(cls, path: Path | None = None, *, precision: Precision = "auto") -> AtomFinder:
        """Load weights, the shipped ones by default.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged, or not a finder; the text names it and the cure.
        """
        if path is None:
            with resources.as_file(resources.files("models.weights") / SHIPPED) as shipped:
                return cls.load(shipped, precision=precision)
        tensors, card, revision = checkpoint.load(path)
        if card.family != "finder":
            raise CheckpointError(f"{path}: weights of family {card.family!r}; a finder's are needed here")
        net = build(path, card)
        checkpoint.require_fit(path, tensors, net.state_dict())
        net.load_state_dict(tensors, assign=True)
        try:
            return cls(net, card, revision, precision=precision)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged model card: {error}") from None

    def find(self, image_HW: Float32, min_confidence: float | None = None, *, threads: int = 1) -> Found:
        """Find the columns of an image.

        Parameters
        ----------
        image_HW
            Bright columns at the scale of ``canonical_sigma_px``, any unit, shape ``(height, width)``.
            Pixels that are no numbers count as background, and nothing is found on them; a constant image
            has no columns.
        min_confidence
            Columns below are left out; ``threshold`` by default.
        threads
            1 or 2; what is found is the same.

        Raises
        ------
        ValueError
            If the image has not two axes.
        """
        if image_HW.ndim != 2:
            raise ValueError(f"image has shape {image_HW.shape}; the finder takes (height, width)")
        least = self.threshold if min_confidence is None else min_confidence
        image = np.asarray(image_HW, dtype=np.float32)
        # Peaks that are never sure enough are not even looked at, but for those that say what is around.
        lowest = min(self.calibration.least_logit(least), 0.0)
        positions, values = self._columns(image, lowest, threads)
        around = sure_around(positions, values[:, 0], image.shape)
        confidence = self.calibration.confidence(values[:, 0], around)
        keep = (confidence >= least) & _is_on_image(positions, image)
        return self._found(positions[keep], confidence[keep], values[keep])

    def _found(self, positions: Float64, confidence: Float64, values: Float32) -> Found:
        surest_first = np.lexsort((-values[:, 0], -confidence))
        _, log_variance, heavy = values[surest_first].astype(np.float64).T
        sd = np.exp(0.5 * np.clip(log_variance, -16, 8)) * self.calibration.sd_factor[0]
        return Found(
            positions_px=positions[surest_first].astype(np.float32),
            confidence=confidence[surest_first].astype(np.float32),
            sd_px=np.hypot(sd, self.calibration.sd_floor_px[0]).astype(np.float32),
            heavy_probability=(1 / (1 + np.exp(-np.clip(heavy, -30, 30)))).astype(np.float32),
        )

    def maps(self, image_HW: Float32) -> Float32:
        """Compute the network's maps of an image, shape ``(5, ⌈height / 2⌉, ⌈width / 2⌉)``, float32.

        A large image is computed in tiles, which overlap by more than the network sees.
        """
        if 0 in image_HW.shape:
            return np.full((OUTPUTS, *image_HW.shape), -np.inf, dtype=np.float32)
        weight, bias = self._head
        maps: Float32 = np.ascontiguousarray(
            (self._read(image_HW).float() @ weight.T + bias).permute(2, 0, 1)
        )
        return maps

    def _columns(self, image_HW: Float32, least_logit: float, threads: int) -> tuple[Float64, Float32]:
        """Give what ``columns_of`` does; all but the logit is computed at its peaks only."""
        if 0 in image_HW.shape:
            return columns_of(self.maps(image_HW), least_logit)
        weight, bias = self._head
        read = self._read(image_HW, threads)
        cells = peaks((read.float() @ weight[0] + bias[0]).numpy(), least_logit)
        there = read[torch.from_numpy(cells[:, 0]), torch.from_numpy(cells[:, 1])].float()
        return _columns_at(cells, (there @ weight.T + bias).numpy())

    def _read(self, image_HW: Float32, threads: int = 1) -> Tensor:
        """Compute what the head reads, shape ``(⌈height / 2⌉, ⌈width / 2⌉, C)``; see ``maps``."""
        rows, cols = image_HW.shape
        even = np.pad(image_HW, ((0, rows % 2), (0, cols % 2)), mode="edge")
        # A picture next to free of noise has spots far higher than any in training.
        seen = _padded(features(even, _MOST_SPREADS))
        high, wide = even.shape[0] // 2, even.shape[1] // 2
        if max(seen.shape[1:]) * 2 <= TILE_PX + 2 * REACH_PX:
            return self._fused(seen, threads)[:high, :wide]
        read = torch.empty((*seen.shape[1:], self._net.config.half), dtype=self._dtype)
        for rows_of in _tiles(seen.shape[1]):
            for cols_of in _tiles(seen.shape[2]):
                tile = self._fused(seen[:, rows_of.read, cols_of.read], threads)
                read[rows_of.write, cols_of.write] = tile[rows_of.kept, cols_of.kept]
        return read[:high, :wide]

    def _fused(self, features_CHW: Float32, threads: int) -> Tensor:
        """Compute the same of one tile, in two parts side by side; they share their coarsest maps."""
        # From planes to pixels: a convolution then reads all channels of a pixel together.
        batch = torch.from_numpy(features_CHW)[None].to(self._dtype)
        batch = batch.contiguous(memory_format=torch.channels_last)
        parts = _parts(features_CHW.shape[1] // _PER_COARSEST)

        def descend(part: _Part) -> tuple[Tensor, Tensor, Tensor]:
            with torch.inference_mode():
                maps = self._net.descend(part.cut(batch, _PER_COARSEST, _SEEN_DOWN))
            # Above the coarsest, one row of them is enough around.
            kept = (4, 1), (2, 1), (1, 0)
            stem, quarter, deeper = (
                part.again(a, scale, _SEEN_DOWN, halo) for a, (scale, halo) in zip(maps, kept, strict=True)
            )
            return stem, quarter, deeper

        descended = side_by_side([partial(descend, part) for part in parts], threads)
        deeper = torch.cat([maps[2] for maps in descended], dim=2)

        def ascend(part: _Part, stem: Tensor, quarter: Tensor) -> Tensor:
            with torch.inference_mode():
                around = part.again(self._net.around(part.cut(deeper, 1, _SEEN_AROUND)), 1, _SEEN_AROUND, 1)
                return part.again(self._net.ascend(stem, quarter, around), 4, 1, 0)

        ascended = side_by_side(
            [partial(ascend, part, *maps[:2]) for part, maps in zip(parts, descended, strict=True)],
            threads,
        )
        return torch.cat(ascended, dim=2)[0].permute(1, 2, 0)


def build(path: Path, card: ModelCard) -> ColumnNet:
    """Make the network that a card describes, without weights.

    Raises
    ------
    CheckpointError
        If it describes none.
    """
    fields = {
        name: value for name, value in card.architecture.items() if name in FinderConfig.__struct_fields__
    }
    try:
        return _empty(msgspec.convert(fields, FinderConfig))
    except (ValueError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path}: damaged model card: {error}") from None


def _dtype_of(precision: Precision) -> torch.dtype:
    """Choose by what the processor can, never by a stopwatch: the same machine gives the same answer."""
    if precision == "float32":
        return torch.float32
    is_quick = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if precision == "bfloat16" or is_quick else torch.float32


def _padded(seen: Float32) -> Float32:
    """Add zeros below and to the right, up to whole cells of the coarsest maps."""
    step = STRIDE_PX // 2
    rows, cols = seen.shape[1:]
    return np.pad(seen, ((0, 0), (0, -rows % step), (0, -cols % step)))


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of the coarsest maps, of so many in all, that are computed together."""

    first: int
    last: int
    total: int

    def cut(self, map_NCHW: Tensor, scale: int, halo: int) -> Tensor:
        """Take these rows, and as many around as a halo has, from a map that is so many times as fine."""
        return map_NCHW[:, :, scale * max(self.first - halo, 0) : scale * min(self.last + halo, self.total)]

    def again(self, map_NCHW: Tensor, scale: int, halo: int, kept: int) -> Tensor:
        """Take from a map with one halo the rows with a smaller one."""
        begin = max(self.first - halo, 0)
        first, last = max(self.first - kept, 0), min(self.last + kept, self.total)
        return map_NCHW[:, :, scale * (first - begin) : scale * (last - begin)]


def _parts(total: int) -> list[_Part]:
    """Cut rows of the coarsest maps into halves, where a half is more than its surroundings."""
    if total < 4 * _SEEN_AROUND:
        return [_Part(0, total, total)]
    return [_Part(0, total // 2, total), _Part(total // 2, total, total)]


@dataclass(frozen=True, slots=True)
class _Tile:
    """Along one axis: what is read, what of it is kept, and where that is written."""

    read: slice
    kept: slice
    write: slice


def _tiles(length: int) -> list[_Tile]:
    """Cut an axis of half resolution into tiles that overlap by the network's reach on each side."""
    inner, reach = TILE_PX // 2, REACH_PX // 2
    tiles = []
    for first in range(0, length, inner):
        last = min(first + inner, length)
        start, stop = max(first - reach, 0), min(last + reach, length)
        tiles.append(_Tile(slice(start, stop), slice(first - start, last - start), slice(first, last)))
    return tiles


def _is_on_image(positions: Float64, image: Float32) -> Bool:
    """Mark places on pixels that are numbers, and not all the same."""
    if len(positions) == 0:
        return np.zeros(0, dtype=bool)
    shape = np.array(image.shape)
    inside = np.all((positions >= -0.5) & (positions <= shape - 0.5), axis=1)
    row, col = np.clip(np.rint(positions).astype(np.int64), 0, shape - 1).T
    seen: Bool = inside & np.isfinite(image[row, col]) & _varies(image, row, col)
    return seen


@njit(cache=True)
def _varies(image: Float32, row: Int64, col: Int64) -> Bool:
    """Mark places around which not all pixels are equal, as they are where a part is saturated or blanked."""
    varies = np.zeros(len(row), dtype=np.bool_)
    for n in range(len(row)):
        for i in range(max(row[n] - _FLAT_PX, 0), min(row[n] + _FLAT_PX + 1, image.shape[0])):
            for j in range(max(col[n] - _FLAT_PX, 0), min(col[n] + _FLAT_PX + 1, image.shape[1])):
                if image[i, j] != image[row[n], col[n]]:
                    varies[n] = True
                    break
            if varies[n]:
                break
    return varies
