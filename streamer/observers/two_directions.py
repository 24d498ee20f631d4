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
from streamer.observers.blocks import Blocks, block_displacements, clearness, comparable
from streamer.observers.image_filters import displaced
from streamer.observers.registration import Matcher

Float64 = NDArray[np.float64]
Fast = Literal["forward", "backward"]
Slow = Literal["up", "down"]

_LEAST_SIDE_PX = 64
_FEWEST_BLOCKS = 8
# How far apart directions may be: along the rows, and constant, tilt and bend along a row, px.
_LAG_SD_PX = np.array([2.0, 4.0, 1.0, 1.0])
_FLOOR_PX2 = 0.02**2
_KEPT = 0.5  # of what older frames said, whenever a new one is looked at
_SURE = 30.0  # chi-square of four numbers; chance has it higher once in a hundred thousand times

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


class MirroredError(ValueError):
    """The backward image is in order of time, not of place."""


class BothDirections:
    """How far the forward and the backward channels of a scan are apart, learnt from a few of its frames.

    Half of it is laid to each direction, the same in every row: along the fast axis a distance that may
    bend over the row, along the slow axis one distance. The first, second, fourth, … frame is looked at,
    the newer with more weight. Nothing is said of what both directions share.

    Parameters
    ----------
    channels
        Names of the frames' channels.
    shape
        ``(rows, cols)`` of the frames.
    """

    def __init__(self, channels: tuple[str, ...], shape: tuple[int, int]) -> None:
        self._channels = channels
        self._pairs = pair_forward_backward(channels) if min(shape) >= _LEAST_SIDE_PX else []
        signs = {"forward": 1.0, "backward": -1.0}
        self._signs = [signs.get(scan_direction(one).fast or "", 0.0) for one in channels]
        self._block_px = (max(16, min(64, shape[0] // 4)), max(16, min(64, shape[1] // 4)))
        self._cols = shape[1]
        self.frames = 0
        self.is_mirrored = False
        self._precision, self._score = np.diag(1 / _LAG_SD_PX**2), np.zeros(4)

    @property
    def channels(self) -> tuple[str, ...]:
        """Channels of the frames; empty where no two of them belong together."""
        return self._channels if self._pairs else ()

    @property
    def arrays(self) -> dict[str, Float64]:
        """What was learnt: ``precision`` ``(4, 4)`` and ``score`` ``(4,)``."""
        return {"precision": self._precision.copy(), "score": self._score.copy()}

    def restore(self, frames: int, is_mirrored: bool, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Go on from what ``frames``, ``is_mirrored`` and ``arrays`` said.

        Raises
        ------
        ValueError
            If the arrays are not of this shape.
        """
        precision, score = (np.array(arrays[name], dtype=np.float64) for name in ("precision", "score"))
        if precision.shape != (4, 4) or score.shape != (4,):
            raise ValueError(
                f"the lag has shapes {precision.shape} and {score.shape}; it takes (4, 4) and (4,)"
            )
        self.frames, self.is_mirrored = frames, is_mirrored
        self._precision, self._score = precision, score

    @property
    def is_apart(self) -> bool:
        """Whether the directions are further apart than chance would have it."""
        return bool(self._score @ self._coefficients() > _SURE)

    def lag_px(self) -> Float64:
        """Say the part of ``D`` of a forward channel that turns its sign backward, ``(2, cols)``."""
        if not self.is_apart:
            return np.zeros((2, self._cols))
        place = np.stack([np.zeros(self._cols), np.arange(self._cols, dtype=np.float64)], axis=1)
        lag = _lag_features(place, self._cols) @ self._coefficients()
        return np.ascontiguousarray(lag.reshape(self._cols, 2).T)

    def observe(self, image: Float32) -> None:
        """Look at a frame as it was scanned, ``(channels, rows, cols)``, if it is time for that."""
        self.frames += 1
        if not self._pairs or self.is_mirrored or self.frames & (self.frames - 1):
            return
        forward, backward = self._clearest(image)
        try:
            seen = fast_axis_lag(forward, backward, self._block_px).forward
        except MirroredError:
            self.is_mirrored = True
            return
        if len(seen) >= _FEWEST_BLOCKS:
            self._learn(seen)

    def brought_together(self, image: Float32) -> Float32:
        """Put each channel ``(rows, cols)`` where it lies between its direction and the other."""
        lag = self.lag_px()
        if not lag.any():
            return image
        return np.stack([_moved_by(one, sign * lag) for one, sign in zip(image, self._signs, strict=True)])

    def _coefficients(self) -> Float64:
        return np.asarray(np.linalg.solve(self._precision, self._score), dtype=np.float64)

    def _learn(self, seen: Blocks) -> None:
        features = _lag_features(seen.positions_px, self._cols)
        target, variance = seen.displacement_px.ravel(), 1.8 * seen.variance_px2.ravel() + _FLOOR_PX2
        weight = 1 / variance
        for _ in range(3):
            gram = features.T @ (weight[:, None] * features) + np.diag(1 / _LAG_SD_PX**2)
            left = target - features @ np.linalg.solve(gram, features.T @ (weight * target))
            # What a curve of a few numbers cannot follow counts as noise, and what is wild not at all.
            scale = 1.4826 * float(np.median(np.abs(left) / np.sqrt(variance)))
            weight = (np.abs(left) < 4 * scale * np.sqrt(variance)) / (variance * max(scale, 1.0) ** 2)
        prior = np.diag(1 / _LAG_SD_PX**2)
        self._precision = (
            prior + _KEPT * (self._precision - prior) + features.T @ (weight[:, None] * features)
        )
        self._score = _KEPT * self._score + features.T @ (weight * target)

    def _clearest(self, image: Float32) -> tuple[Float32, Float32]:
        """Pick the pair that shows most structure; phases and heights as they may be compared."""
        found = []
        for pair in self._pairs:
            images, _ = comparable(image[list(pair)], tuple(self._channels[index] for index in pair))
            half = len(images) // 2
            found += [(images[index], images[index + half]) for index in range(half)]
        if len(found) == 1:
            return found[0]
        return max(found, key=lambda pair: clearness(pair[0], self._block_px))


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
        If the shapes are unlike; ``MirroredError`` if the backward image shows the specimen mirrored.
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
    # A lattice looks much the same in a mirror: what is no lattice in it decides.
    if mirrored > max(0.3, 1.1 * match):
        raise MirroredError(
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


def _lag_features(positions_px: Float64, cols: int) -> Float64:
    """Features of the lag at positions ``(n, 2)``: ``(2 n, 4)``, a row for each direction of each."""
    u = (2 * positions_px[:, 1] + 1) / cols - 1
    features = np.zeros((len(u), 2, 4))
    features[:, 0, 0] = 1
    features[:, 1, 1:] = np.stack([np.ones_like(u), u, u * u - 1 / 3], axis=1)
    return features.reshape(-1, 4)


def _moved_by(image: Float32, lag: Float64) -> Float32:
    """Put back a channel whose pixel ``s`` was recorded at ``s + lag``, ``(2, cols)``."""
    if not lag.any():
        return image
    place = np.arange(lag.shape[1], dtype=np.float64)
    pixel = place
    for _ in range(4):
        pixel = place - np.interp(pixel, place, lag[1])
    along = _resampled(image, np.clip(pixel, 0, len(place) - 1))
    return displaced(along, np.array([-lag[0, 0], 0.0]))


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
