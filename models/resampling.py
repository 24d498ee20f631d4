"""Put a frame back onto the specimen: the inverse of its displacement field, and what is seen there.

``J(X) = I(s)`` with ``s + D(s) = X``. Places and components are ``(row, col)`` in pixels. On a CPU the loops
are compiled; on another device they are torch's, and agree to 0.01 px.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]

_CLOSE_PX = 2e-3  # of the fixed point: a tenth of what the best columns are known to
_MOST_STEPS = 12
_SIDE_BY_SIDE = 8  # rows whose waits fill each other, as processors do by themselves
_STEPS_ELSEWHERE = 3
_SURE = 0.1  # of the gate: a ten thousandth would fade
# Where rows' steps along the slow axis vary by more (sd), rows lie out of order: no inverse puts them right.
_ROUGH_PX = 0.6
_COLS_ASKED = 16  # every so many columns tell it
_ROW_SD_PX = 1.0  # of a Gaussian around a place: rows within it make up that place
_ROW_REACH_PX = 5.0
_LEAST_PART = 1e-5


def raw_places(field: Float32, *, device: torch.device | str = "cpu") -> Float32:
    """Find, for each pixel of the specimen's raster, where in the frame it was recorded.

    Parameters
    ----------
    field
        ``D`` at each pixel of the frame, ``(2, rows, cols)``, px. Between pixels it is a straight line,
        beyond the frame it stays as it is at the edge.

    Returns
    -------
    places
        ``s`` with ``s + D(s) = X``, ``(2, rows, cols)``, float32, px.

    Raises
    ------
    ValueError
        If the field has another shape.
    """
    if field.ndim != 3 or field.shape[0] != 2 or min(field.shape[1:]) < 2:
        raise ValueError(f"field has shape {field.shape}; it takes (2, rows, cols)")
    whole = np.ascontiguousarray(field, dtype=np.float32)
    if not _is_here(device):
        return np.asarray(_places_elsewhere(_sent(whole, device)).cpu().numpy())
    places = np.empty_like(whole)
    _invert(whole, places)
    return places


def seen_positions(field: Float32 | Float64, places_px: Float64) -> Float64:
    """Find which pixel positions show some places of the specimen: ``s`` with ``s + D(s) = X``.

    Parameters
    ----------
    field
        As in ``raw_places``.
    places_px
        ``(row, col)``, shape ``(n, 2)``, also beyond the frame.

    Returns
    -------
    positions
        Shape ``(n, 2)``, float64.
    """
    found = np.array(places_px, dtype=np.float64)
    _seek(np.ascontiguousarray(field, dtype=np.float32), found)
    return found


def sampled(image: Float32, places: Float32, *, device: torch.device | str = "cpu") -> Float32:
    """Look an image up at places, by cubic convolution (Keys 1981).

    Parameters
    ----------
    image
        ``(rows, cols)`` or ``(channels, rows, cols)``, float32. Beyond its edges it repeats them.
    places
        ``(row, col)``, shape ``(2, height, width)``, px.

    Returns
    -------
    resampled
        ``(height, width)`` or ``(channels, height, width)``, float32.
    """
    channels = np.ascontiguousarray(image if image.ndim == 3 else image[None], dtype=np.float32)
    if not _is_here(device):
        result = _sampled_elsewhere(_sent(channels, device), _sent(places, device)).cpu().numpy()
    else:
        result = np.empty((len(channels), *places.shape[1:]), dtype=np.float32)
        for channel, out in zip(channels, result, strict=True):
            _look_up(channel, np.ascontiguousarray(places, dtype=np.float32), out)
    return result if image.ndim == 3 else np.asarray(result[0])


def resampled(
    image: Float32,
    field: Float32,
    *,
    sd_px: Float32 | None = None,
    gate_sd_px: float | None = None,
    device: torch.device | str = "cpu",
) -> Float32:
    """Put a frame back onto the specimen.

    Where rows were displaced so far that they lie out of order, each place is made of the rows that were
    recorded about there, see ``rows_in_place``.

    Parameters
    ----------
    image
        ``(rows, cols)`` or ``(channels, rows, cols)``, float32.
    field
        ``D`` at each pixel, ``(2, rows, cols)``, px.
    sd_px, gate_sd_px
        See ``faded``; without them nothing fades.

    Returns
    -------
    corrected
        Of the image's shape. Where nothing was scanned it repeats the edge.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    if image.shape[-2:] != field.shape[1:]:
        raise ValueError(f"an image of {image.shape[-2:]} pixels has no field of {field.shape[1:]}")
    if sd_px is not None and gate_sd_px is not None:
        field = faded(field, sd_px, gate_sd_px)
    if _is_rough(field[0, :, ::_COLS_ASKED].mean(axis=1)):
        of_rows = field.mean(axis=2)
        of_rows -= of_rows.mean(axis=1, keepdims=True)  # what all rows share may lie beyond the edge
        image, field = rows_in_place(image, of_rows), field - of_rows[:, :, None]
    return sampled(image, raw_places(field, device=device), device=device)


def rows_in_place(image: Float32, offsets_px: Float32) -> Float32:
    """Put each row where it was recorded, in whatever order they came.

    Rows that follow each other in time may be several rows apart on the specimen, and there is nothing to
    interpolate between them. So each row of the result is the mean of those recorded around it, weighted by a
    Gaussian of their distance (Nadaraya 1964; Watson 1964).

    Parameters
    ----------
    image
        ``(rows, cols)`` or ``(channels, rows, cols)``, float32.
    offsets_px
        By how much further on each row was recorded than its place in the frame says, ``(2, rows)``.

    Returns
    -------
    placed
        Of the image's shape, float32.
    """
    channels = np.ascontiguousarray(image if image.ndim == 3 else image[None], dtype=np.float32)
    offsets = np.ascontiguousarray(offsets_px, dtype=np.float64)
    result = np.empty_like(channels)
    along = np.empty_like(channels[0])
    for channel, out in zip(channels, result, strict=True):
        _shift_rows(channel, offsets[1], along)
        _average_rows(along, offsets[0], out)
    return result if image.ndim == 3 else np.asarray(result[0])


def _is_rough(offsets_px: Float32) -> bool:
    """Say whether rows that are displaced by these, ``(rows,)``, along the slow axis lie out of order."""
    return float(np.diff(offsets_px).std()) > _ROUGH_PX


def faded(field: Float32, sd_px: Float32, gate_sd_px: float) -> Float32:
    """Fade a correction where it is not known: to a half where its sd reaches the gate, soon to nothing.

    Parameters
    ----------
    sd_px
        Sd of the field on nodes spread evenly from the first pixel to the last, ``(2, n, m)``.
    gate_sd_px
        Above 0.

    Returns
    -------
    field
        ``(2, rows, cols)``, float32; the one given where next to nothing fades.
    """
    if not gate_sd_px > 0:
        raise ValueError(f"gate_sd_px is {gate_sd_px}; it takes numbers above 0")
    if float(sd_px.max()) < _SURE * gate_sd_px:
        return np.asarray(field, dtype=np.float32)
    part = 1 / (1 + (torch.from_numpy(np.ascontiguousarray(sd_px)) / gate_sd_px) ** 4)
    spread = functional.interpolate(part[None], size=field.shape[1:], mode="bilinear", align_corners=True)[0]
    return np.asarray(field * spread.numpy(), dtype=np.float32)


@njit(cache=True)
def _invert(field: Float32, places: Float32) -> None:
    """Solve ``s = X - D(s)`` pixel by pixel; each begins where the two before it on its row point.

    A few rows go on side by side: a pixel waits for its neighbour, but rows do not wait for each other.
    """
    rows, cols = field.shape[1:]
    found = np.empty((_SIDE_BY_SIDE, 2), dtype=np.float32)
    change = np.empty((_SIDE_BY_SIDE, 2), dtype=np.float32)
    for first in range(0, rows, _SIDE_BY_SIDE):
        side_by_side = min(_SIDE_BY_SIDE, rows - first)
        for k in range(side_by_side):
            found[k, 0], found[k, 1] = field[0, first + k, 0], field[1, first + k, 0]
            change[k] = 0
        for col in range(cols):
            for k in range(side_by_side):
                row = first + k
                down, along = found[k, 0] + change[k, 0], found[k, 1] + change[k, 1]
                down, along = _settled(field, np.float32(row), np.float32(col), down, along)
                change[k, 0], change[k, 1] = down - found[k, 0], along - found[k, 1]
                found[k, 0], found[k, 1] = down, along
                places[0, row, col] = row - down
                places[1, row, col] = col - along


@njit(cache=True, inline="always")
def _settled(
    field: Float32, row: np.float32, col: np.float32, down: np.float32, along: np.float32
) -> tuple[np.float32, np.float32]:
    """Improve a guess of the displacement of what is seen at a place, until it changes no more."""
    rows, cols = field.shape[1:]
    for _ in range(_MOST_STEPS):
        at_row = min(max(row - down, np.float32(0)), np.float32(rows - 1))
        at_col = min(max(col - along, np.float32(0)), np.float32(cols - 1))
        i, j = min(int(at_row), rows - 2), min(int(at_col), cols - 2)
        a, b = at_row - np.float32(i), at_col - np.float32(j)
        c, d = np.float32(1) - a, np.float32(1) - b
        new_down = c * (d * field[0, i, j] + b * field[0, i, j + 1]) + a * (
            d * field[0, i + 1, j] + b * field[0, i + 1, j + 1]
        )
        new_along = c * (d * field[1, i, j] + b * field[1, i, j + 1]) + a * (
            d * field[1, i + 1, j] + b * field[1, i + 1, j + 1]
        )
        change = max(abs(new_down - down), abs(new_along - along))
        down, along = new_down, new_along
        if change < _CLOSE_PX:
            break
    return down, along


@njit(cache=True)
def _seek(field: Float32, places: Float64) -> None:
    """Turn places into the positions that show them."""
    rows, cols = field.shape[1:]
    for i in range(len(places)):
        row = place_row = places[i, 0]
        col = place_col = places[i, 1]
        for _ in range(_MOST_STEPS):
            r, c = min(max(row, 0.0), rows - 1.0), min(max(col, 0.0), cols - 1.0)
            top, left = min(int(r), rows - 2), min(int(c), cols - 2)
            down, right = r - top, c - left
            before_row, before_col = row, col
            upper = field[0, top, left] * (1 - right) + field[0, top, left + 1] * right
            lower = field[0, top + 1, left] * (1 - right) + field[0, top + 1, left + 1] * right
            row = place_row - (upper * (1 - down) + lower * down)
            upper = field[1, top, left] * (1 - right) + field[1, top, left + 1] * right
            lower = field[1, top + 1, left] * (1 - right) + field[1, top + 1, left + 1] * right
            col = place_col - (upper * (1 - down) + lower * down)
            if abs(row - before_row) + abs(col - before_col) < 1e-4:
                break
        places[i, 0], places[i, 1] = row, col


@njit(cache=True, inline="always")
def _taps(part: np.float32) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Weights of the four pixels around a place, a = -1/2: straight lines and parabolas come out exact."""
    half = np.float32(0.5)
    rest = np.float32(1) - part
    before = -half * part * rest * rest
    after = -half * rest * part * part
    here = np.float32(1) + part * part * (np.float32(1.5) * part - np.float32(2.5))
    return before, here, np.float32(1) - before - here - after, after


@njit(cache=True)
def _look_up(image: Float32, places: Float32, out: Float32) -> None:
    rows, cols = image.shape
    height, width = out.shape
    for row in range(height):
        for col in range(width):
            at_row = min(max(places[0, row, col], np.float32(0)), np.float32(rows - 1))
            at_col = min(max(places[1, row, col], np.float32(0)), np.float32(cols - 1))
            i, j = int(at_row), int(at_col)
            p0, p1, p2, p3 = _taps(at_col - np.float32(j))
            q0, q1, q2, q3 = _taps(at_row - np.float32(i))
            if 0 < i < rows - 2 and 0 < j < cols - 2:
                block = image[i - 1 : i + 3, j - 1 : j + 3]
                out[row, col] = (
                    q0 * (p0 * block[0, 0] + p1 * block[0, 1] + p2 * block[0, 2] + p3 * block[0, 3])
                    + q1 * (p0 * block[1, 0] + p1 * block[1, 1] + p2 * block[1, 2] + p3 * block[1, 3])
                    + q2 * (p0 * block[2, 0] + p1 * block[2, 1] + p2 * block[2, 2] + p3 * block[2, 3])
                    + q3 * (p0 * block[3, 0] + p1 * block[3, 1] + p2 * block[3, 2] + p3 * block[3, 3])
                )
                continue
            total = np.float32(0)
            for step, weight in enumerate((q0, q1, q2, q3)):
                line = min(max(i - 1 + step, 0), rows - 1)
                total += weight * (
                    p0 * image[line, max(j - 1, 0)]
                    + p1 * image[line, j]
                    + p2 * image[line, min(j + 1, cols - 1)]
                    + p3 * image[line, min(j + 2, cols - 1)]
                )
            out[row, col] = total


@njit(cache=True)
def _shift_rows(image: Float32, offset: Float64, out: Float32) -> None:
    """Move each row along itself: ``out[r, c] = image[r, c - offset[r]]``."""
    rows, cols = image.shape
    for row in range(rows):
        whole = math.floor(-offset[row])
        p0, p1, p2, p3 = _taps(np.float32(-offset[row] - whole))
        line = image[row]
        for col in range(cols):
            at = col + whole
            out[row, col] = (
                p0 * line[min(max(at - 1, 0), cols - 1)]
                + p1 * line[min(max(at, 0), cols - 1)]
                + p2 * line[min(max(at + 1, 0), cols - 1)]
                + p3 * line[min(max(at + 2, 0), cols - 1)]
            )


@njit(cache=True)
def _average_rows(image: Float32, offset: Float64, out: Float32) -> None:
    """Make each row of those recorded around it: row ``r`` of the image lies at ``r + offset[r]``."""
    rows, cols = image.shape
    most = math.ceil(np.abs(offset).max() + _ROW_REACH_PX)
    weight = np.empty(rows)
    for row in range(rows):
        low, high = max(0, row - most), min(rows, row + most + 1)
        away2 = (np.arange(low, high) + offset[low:high] - row) ** 2
        # Beside the nearest one: where no row came near there is still a mean.
        weight[low:high] = np.exp((away2.min() - away2) / (2 * _ROW_SD_PX**2))
        total = weight[low:high].sum()
        line = out[row]
        line[:] = 0
        for other in range(low, high):
            part = np.float32(weight[other] / total)
            if part > _LEAST_PART:
                source = image[other]
                for col in range(cols):
                    line[col] += part * source[col]


def _is_here(device: torch.device | str) -> bool:
    return torch.device(device).type == "cpu"


def _sent(array: Float32, device: torch.device | str) -> Tensor:
    """Copy numbers to a device: those of a frame may not be written to, and torch cannot promise that."""
    return torch.tensor(np.asarray(array, dtype=np.float32), device=device)


def _places_elsewhere(field: Tensor) -> Tensor:
    rows, cols = field.shape[1:]
    row = torch.arange(rows, dtype=field.dtype, device=field.device)[:, None].expand(rows, cols)
    col = torch.arange(cols, dtype=field.dtype, device=field.device).expand(rows, cols)
    raster = torch.stack([row, col])
    places = raster - field
    for _ in range(_STEPS_ELSEWHERE):
        places = raster - _grid_sample(field, places, "bilinear")
    return places


def _sampled_elsewhere(channels: Tensor, places: Tensor) -> Tensor:
    """Look channels up with torch's cubic convolution, at places moved by what that is off by.

    It takes a = -3/4, with which a straight line comes out bent: at the fraction f of a pixel it gives
    the value of ``f + f (1 - f) (1 - 2f) / 2``, 0.047 px off at worst, and moves atom columns by 0.04 px.
    """
    rows, cols = channels.shape[1:]
    last = torch.tensor([rows - 1, cols - 1], dtype=places.dtype, device=places.device)[:, None, None]
    inside = torch.minimum(places.clamp(min=0), last)
    part = inside.frac()
    asked = part.clone()
    for _ in range(2):  # Newton's steps; 1 + (1 - 6 f + 6 f²) / 2 is the slope
        both = asked * (1 - asked)
        asked -= (asked + both * (1 - 2 * asked) / 2 - part) / (1.5 - 3 * both)
    return _grid_sample(channels, inside - part + asked, "bicubic")


def _grid_sample(channels: Tensor, places: Tensor, mode: str) -> Tensor:
    """Look channels ``(c, rows, cols)`` up at places ``(2, height, width)`` in pixels."""
    rows, cols = channels.shape[1:]
    units = torch.stack([places[1] * (2 / (cols - 1)) - 1, places[0] * (2 / (rows - 1)) - 1], -1)
    return functional.grid_sample(
        channels[None], units[None], mode=mode, padding_mode="border", align_corners=True
    )[0]
