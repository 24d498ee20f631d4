"""The rules by which a picture becomes what an encoder sees; a card names the one that it was trained with.

A model takes its own scale from its training windows. These rules only make pictures of one kind comparable:
another gain, another lock-in, another dose or another camera length must not look like another specimen.
``contrast``, ``response`` and ``height`` are applied to whole pictures, since what they need (a plane, the
phase of a lock-in) cannot be told from one window; they make channels that may be resampled, as a phase,
which jumps by a full turn, may not. ``pattern`` is applied to each diffraction pattern by itself.

Axes: N window, C channel, H row, W column.
"""

from __future__ import annotations

import cmath
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

Rule = Literal["contrast", "response", "height", "pattern"]
RULES: tuple[str, ...] = get_args(Rule)

# Of every nth row and column: a phase, a plane and a typical amplitude need no more.
_SPARSE = 2


def normalised(rule: Rule, image_CHW: Float32, background: float, contrast: float) -> Float32:
    """Make of a picture what windows are cut from.

    Parameters
    ----------
    rule
        ``contrast``: every channel from 0 at the background to 1 at ``contrast`` above it; ``response``: of
        amplitude and phase, the response along the frame's axis of phases and the amplitude, in units of
        ``contrast``; ``height``: the plane of the face at 0, ``contrast`` above it at 1.
    image_CHW
        Shape ``(channel, row, col)``, float32, in the unit of the instrument; two channels, amplitude and
        phase in radians, for ``response``.
    background, contrast
        Level between what is looked at, and its typical height above that.

    Returns
    -------
    picture_CHW
        Shape of the argument, float32.

    Raises
    ------
    ValueError
        For a rule that is not for pictures, or a picture that lacks its phase.
    """
    unit = np.float32(1 / contrast)
    if rule == "contrast":
        return (image_CHW - np.float32(background)) * unit
    if rule == "height":
        return np.stack([levelled(channel) for channel in image_CHW]) * unit
    if rule == "response":
        if len(image_CHW) != 2:
            raise ValueError(
                f"the rule 'response' has {len(image_CHW)} channels; it takes amplitude and phase"
            )
        return np.stack([in_phase(*image_CHW), image_CHW[0]]) * unit
    raise ValueError(f"{rule!r} is no rule for pictures; it takes contrast, response or height")


def phase_axis(amplitude_HW: Float32, phase_HW: Float32) -> float:
    """Find the phase at which a piezoresponse answers, of two that are half a turn apart.

    Domains up and down answer at opposite phases: twice their phase is the same. Their sign cannot be told,
    so the phase within a quarter turn of 0 is taken; a lock-in whose phase is a quarter turn off should be
    set before the session, because the sign could then change from frame to frame.

    Parameters
    ----------
    amplitude_HW, phase_HW
        Shape ``(rows, cols)``; the phase in radians.

    Returns
    -------
    phase_rad
        From -π/2 to π/2; 0 for a picture without amplitude.
    """
    # In double precision: what is summed is a million squares.
    amplitude = amplitude_HW[::_SPARSE, ::_SPARSE].astype(np.float64)
    twice = 2 * phase_HW[::_SPARSE, ::_SPARSE].astype(np.float64)
    mean = complex((amplitude**2 * np.cos(twice)).sum(), (amplitude**2 * np.sin(twice)).sum())
    return cmath.phase(mean) / 2 if mean else 0.0


def in_phase(amplitude_HW: Float32, phase_HW: Float32) -> Float32:
    """Give the response along the axis of phases: its sign is that of the domain, and it is 0 on a wall.

    Parameters
    ----------
    amplitude_HW, phase_HW
        Shape ``(rows, cols)``, float32; the phase in radians, wrapped anyhow.

    Returns
    -------
    response_HW
        In the unit of the amplitude, float32.
    """
    axis = np.float32(phase_axis(amplitude_HW, phase_HW))
    response: Float32 = amplitude_HW * np.cos(phase_HW - axis)
    return response


def levelled(height_HW: Float32) -> Float32:
    """Take the plane of the face out of heights, which is then at 0.

    Its slopes are the medians of differences of neighbours, on which particles have no say as long as flat
    pixels are more than half of all; its level is the 10th percentile.

    Parameters
    ----------
    height_HW
        Shape ``(rows, cols)``, float32.

    Returns
    -------
    height_HW
        In the unit of the argument, float32.
    """
    rows, cols = height_HW.shape
    # Over a few pixels: of neighbours the noise would be all that is seen.
    apart = max(1, min(rows, cols) // 16)
    down = (height_HW[apart:, ::_SPARSE] - height_HW[:-apart, ::_SPARSE]) if rows > apart else np.zeros(1)
    right = (height_HW[::_SPARSE, apart:] - height_HW[::_SPARSE, :-apart]) if cols > apart else np.zeros(1)
    row, col = np.arange(rows, dtype=np.float32), np.arange(cols, dtype=np.float32)
    by_row, by_col = np.float32(np.median(down) / apart), np.float32(np.median(right) / apart)
    flat: Float32 = height_HW - by_row * row[:, None] - by_col * col
    return flat - np.float32(np.percentile(flat[::_SPARSE, ::_SPARSE], 10))


def of_patterns(windows_NCHW: Float32, window_per_nm: float, *, to_per_nm: float, to_px: int) -> Float32:
    """Make of counted diffraction patterns what an encoder sees: the rule ``pattern``.

    The middle of reciprocal space, up to ``to_per_nm``, is counted in ``to_px`` pixels along an edge; a pixel
    of the camera that lies in two of them is shared out by area. The undeflected beam is on pixel ``px // 2``
    of the camera, as the frequency 0 of a Fourier transform is, and between the middle pixels of what is
    given, so that a pattern turns around the middle of its window. Then each pattern is divided by its total
    and its square root taken, which gives counts of any height the same noise. 1 is what evenly spread
    electrons give.

    Parameters
    ----------
    windows_NCHW
        Counts, shape ``(n, channel, px, px)``, float32.
    window_per_nm
        Edge of these windows, in 1/nm.
    to_per_nm, to_px
        Edge of the windows that are wanted, in 1/nm, and their pixels.

    Returns
    -------
    windows_NCHW
        Shape ``(n, channel, to_px, to_px)``, float32; zeros for a pattern without electrons.

    Raises
    ------
    ValueError
        If the camera sees less than ``to_per_nm``.
    """
    n, channels, px, _ = windows_NCHW.shape
    if to_per_nm > window_per_nm * (1 + 1e-6):
        raise ValueError(
            f"patterns are {window_per_nm:g} 1/nm wide; this encoder takes {to_per_nm:g} and wider ones"
        )
    share = _shares(px, to_per_nm / window_per_nm * px, to_px)
    # One product along each axis: rows of all windows, then their columns.
    along = windows_NCHW.reshape(-1, px) @ share.T
    counts = np.matmul(share, along.reshape(n * channels, px, to_px))
    total = counts.sum(axis=(1, 2), keepdims=True)
    # Counts that were taken off by a gain correction can be below 0.
    level = np.sqrt(np.maximum(counts, 0) * (to_px**2 / np.maximum(total, np.float32(1e-6))))
    level[total[:, 0, 0] <= 0] = 0
    whole: Float32 = level.astype(np.float32).reshape(n, channels, to_px, to_px)
    return whole


@lru_cache(maxsize=8)
def _shares(px: int, kept_px: float, to_px: int) -> Float32:
    """Share of each pixel of a camera that lies in each new one, shape ``(to_px, px)``."""
    step = kept_px / to_px
    middle = px // 2  # of the pixel at frequency 0; pixel i reaches from i - 1/2 to i + 1/2
    edges = middle + (np.arange(to_px + 1) - to_px / 2) * step
    least, most = np.arange(px) - 0.5, np.arange(px) + 0.5
    overlap = np.minimum(edges[1:, None], most) - np.maximum(edges[:-1, None], least)
    shares: Float32 = np.clip(overlap, 0, None).astype(np.float32)
    shares.setflags(write=False)
    return shares
