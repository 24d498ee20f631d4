"""What the forward and the backward scan of one line, and the motion of its fast axis, say of the scan.

The specimen is the same in both directions, so whatever differs between them belongs to the scanner:
hysteresis of a piezo, lag of a sensor or a filter. This can be told without a lattice and without
another frame. What both directions share stays unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamer.messages import Float32
from streamer.observers.blocks import Blocks, block_displacements
from streamer.observers.registration import Matcher

Float64 = NDArray[np.float64]
Fast = Literal["forward", "backward"]
Slow = Literal["up", "down"]

_FAST: dict[str, Fast] = {
    **dict.fromkeys(("forward", "forwards", "fwd", "fw", "trace", "lr", ">>", "->"), "forward"),
    **dict.fromkeys(("backward", "backwards", "bwd", "bw", "bkwd", "retrace", "rl", "<<", "<-"), "backward"),
}
_SLOW: dict[str, Slow] = {"up": "up", "upward": "up", "down": "down", "dn": "down", "downward": "down"}
_BOTH: dict[str, tuple[Slow, Fast]] = {
    "uf": ("up", "forward"),
    "ub": ("up", "backward"),
    "df": ("down", "forward"),
    "db": ("down", "backward"),
}
# Words, also where only capitals part them; arrows; and a direction that hangs on the end of a word.
_WORDS = re.compile(r"->|<-|>>|<<|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_TAIL = re.compile(r"^(.+?)(retrace|trace|forward|backward|fwd|bwd)$")


@dataclass(frozen=True, slots=True)
class ScanDirection:
    """What the name of a channel says.

    Attributes
    ----------
    quantity
        The rest of the name, in lower case: equal for channels that belong together.
    fast
        Direction along the fast axis; None where the name says none.
    slow
        Direction along the slow axis; None where the name says none.
    """

    quantity: str
    fast: Fast | None = None
    slow: Slow | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FastAxisLag:
    """How far the two directions of a scan are apart, half of it laid to each.

    ``displacement_px`` is the part of ``D`` that turns its sign with the direction. It is not ``D``: a
    distortion that both directions share is missing from it, so it may teach a model only what is
    odd in the direction, and the specimen can never enter into it.

    Attributes
    ----------
    forward, backward
        At positions of the forward and of the backward image.
    """

    forward: Blocks
    backward: Blocks


def scan_direction(channel: str) -> ScanDirection:
    """Read the direction in which a channel was scanned from its name.

    >>> scan_direction("HeightRetrace")
    ScanDirection(quantity='height', fast='backward', slow=None)
    >>> scan_direction("Z_up_forward")
    ScanDirection(quantity='z', fast='forward', slow='up')
    """
    fast: Fast | None = None
    slow: Slow | None = None
    rest = []
    for word in _split(channel):
        if word in _BOTH:
            slow, fast = _BOTH[word]
        elif word in _FAST:
            fast = _FAST[word]
        elif word in _SLOW:
            slow = _SLOW[word]
        else:
            rest.append(word)
    return ScanDirection(" ".join(rest), fast, slow)


def pair_forward_backward(channels: tuple[str, ...]) -> list[tuple[int, int]]:
    """List the channels that show one quantity scanned forward and backward, ``(forward, backward)``.

    A movie that is scanned up and down has a pair for each. A name that occurs twice is not paired:
    nobody could say which belongs to which.
    """
    found: dict[Fast | None, dict[tuple[str, str | None], list[int]]] = {"forward": {}, "backward": {}}
    for index, channel in enumerate(channels):
        said = scan_direction(channel)
        found.setdefault(said.fast, {}).setdefault((said.quantity, said.slow), []).append(index)
    return _pairs(found["forward"], found["backward"])


def pair_up_down(channels: tuple[str, ...]) -> list[tuple[int, int]]:
    """List the channels that show one quantity scanned up and down, ``(up, down)``."""
    found: dict[Slow | None, dict[tuple[str, str | None], list[int]]] = {"up": {}, "down": {}}
    for index, channel in enumerate(channels):
        said = scan_direction(channel)
        found.setdefault(said.slow, {}).setdefault((said.quantity, said.fast), []).append(index)
    return _pairs(found["up"], found["down"])


def fast_axis_lag(
    forward: Float32,
    backward: Float32,
    block_px: tuple[int, int] = (64, 64),
    *,
    reach_px: float = 8.0,
) -> FastAxisLag:
    """Measure how far the two directions are apart.

    Parameters
    ----------
    forward, backward
        One quantity, shape ``(rows, cols)``, float32; the backward image in order of place, not of time:
        both show the specimen the same way round.
    block_px
        ``(rows, cols)`` of a block.
    reach_px
        How much the distance may vary over the image; its mean may be a quarter of the image.

    Raises
    ------
    ValueError
        If the shapes are unlike, or the backward image shows the specimen mirrored.
    """
    shift = _common_shift(forward, backward, reach_px)
    between = block_displacements(forward, backward, block_px, -shift, reach_px=reach_px)
    # Once more around what was found, so that a gradient across a block draws nothing aside.
    if len(between) >= 6:
        field = _plane(between, forward.shape)
        between = block_displacements(forward, backward, block_px, field, reach_px=reach_px)
    half = replace(
        between, displacement_px=between.displacement_px / 2, variance_px2=between.variance_px2 / 4
    )
    other = replace(
        half,
        positions_px=between.positions_px + between.displacement_px,
        displacement_px=-half.displacement_px,
    )
    return FastAxisLag(forward=half, backward=other)


def fast_axis_places(cols: int, *, recorded_part: float = 1.0, late_px: float = 0.0) -> Float64:
    """Say where the pixels of a row lie whose probe swings like a sine and is read evenly in time.

    Parameters
    ----------
    cols
        Pixels in a row.
    recorded_part
        Part of the half period that the row covers, its middle in the middle; 1 from turn to turn.
    late_px
        By how many pixels the row begins late.

    Returns
    -------
    places_px
        Shape ``(cols,)``: in pixels of a row of the same length with pixels evenly in place. Less the
        pixel's own number, it is what the displacement field has along the fast axis.

    Raises
    ------
    ValueError
        If the part is not above 0 and at most 1.
    """
    if not 0 < recorded_part <= 1:
        raise ValueError(f"recorded_part is {recorded_part}; it takes above 0 to 1")
    part = recorded_part * ((np.arange(cols) + 0.5 + late_px) / cols - 0.5)
    reach = np.sin(0.5 * np.pi * recorded_part)
    places: Float64 = cols * (0.5 + 0.5 * np.sin(np.pi * part) / reach) - 0.5
    return places


def linearised(image: Float32, *, recorded_part: float = 1.0, late_px: float = 0.0) -> Float32:
    """Turn rows that were read evenly in time from a sinusoidal fast axis into rows evenly in place.

    The middle of the row loses resolution to the turning points by a factor of pi/2.

    Parameters
    ----------
    image
        Shape ``(..., rows, cols)``, float32.
    recorded_part, late_px
        As in ``fast_axis_places``.
    """
    cols = image.shape[-1]
    fast_axis_places(cols, recorded_part=recorded_part)  # refuses what it must
    reach = np.sin(0.5 * np.pi * recorded_part)
    place = (np.arange(cols) + 0.5) / cols * 2 - 1
    time = np.arcsin(place * reach) / (np.pi * recorded_part)
    pixel = np.clip(cols * (time + 0.5) - 0.5 - late_px, 0, cols - 1)
    return _resampled(image, pixel)


def _split(channel: str) -> list[str]:
    words: list[str] = []
    for word in (found.lower() for found in _WORDS.findall(channel)):
        tail = None if word in _FAST else _TAIL.match(word)
        words += tail.groups() if tail else [word]
    return words


def _pairs(
    first: dict[tuple[str, str | None], list[int]], second: dict[tuple[str, str | None], list[int]]
) -> list[tuple[int, int]]:
    """Join what both have once."""
    return [
        (one[0], second[name][0])
        for name, one in first.items()
        if len(one) == 1 and len(second.get(name, ())) == 1
    ]


def _common_shift(forward: Float32, backward: Float32, reach_px: float) -> Float64:
    """Say where the backward image's specimen lies in the forward one, ``(row, col)``."""
    if forward.shape != backward.shape:
        raise ValueError(f"forward has shape {forward.shape}, backward {backward.shape}; they take one shape")
    matcher = Matcher((forward.shape[0], forward.shape[1]))
    shift, match = matcher.match(forward, backward, np.zeros(2), reach_px)
    _, mirrored = matcher.match(forward, np.ascontiguousarray(backward[:, ::-1]), np.zeros(2), reach_px)
    if mirrored > max(0.3, 1.5 * match):
        raise ValueError(
            "the backward image shows the specimen mirrored, in order of time; flip its rows: image[:, ::-1]"
        )
    return shift


def _plane(blocks: Blocks, shape: tuple[int, ...]) -> Float64:
    """Lay a plane through displacements, robustly, ``(2, rows, cols)``."""
    middle, scale = (np.array(shape) - 1) / 2, np.array(shape) / 2
    design = np.column_stack([np.ones(len(blocks)), (blocks.positions_px - middle) / scale])
    weight = np.ones(len(blocks))
    for _ in range(5):
        root = np.sqrt(weight)[:, None]
        found = np.linalg.lstsq(design * root, blocks.displacement_px * root, rcond=None)[0]
        away = np.linalg.norm(blocks.displacement_px - design @ found, axis=1)
        weight = 1 / (1 + (away / (1.5 * np.median(away) + 1e-3)) ** 2)
    row, col = (np.arange(n) - m for n, m in zip(shape, middle, strict=True))
    field: Float64 = (
        found[0][:, None, None]
        + found[1][:, None, None] * (row / scale[0])[None, :, None]
        + found[2][:, None, None] * (col / scale[1])[None, None, :]
    )
    return field


def _resampled(image: Float32, pixel: Float64) -> Float32:
    """Sample each row at fractional pixels by cubic convolution; the edges repeat."""
    cols = image.shape[-1]
    first = np.floor(pixel).astype(np.int64)
    x = pixel - first
    weights = (
        ((-0.5 * x + 1) * x - 0.5) * x,
        (1.5 * x - 2.5) * x * x + 1,
        ((-1.5 * x + 2) * x + 0.5) * x,
        (0.5 * x - 0.5) * x * x,
    )
    result = np.zeros_like(image)
    for tap, weight in enumerate(weights):
        place = np.clip(first - 1 + tap, 0, cols - 1)
        result += weight.astype(np.float32) * image[..., place]
    return result
