"""How far the specimen is displaced in each block of a frame, against an image of what is expected there.

For whatever shows structure and no lattice. Directions are (row, col) in pixels. The displacement
field ``D`` says that pixel ``s`` of the frame shows what the reference shows at ``s + D(s)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft, ndimage

from streamer.messages import Float32
from streamer.observers.image_filters import pixel_noise, telling_width

if TYPE_CHECKING:
    from models.distortion_gp import Observations

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

_ITERATIONS = 5
_AT_REST_PX = 0.003
# Channels of a probe on a feedback: each line has an offset of its own.
_BY_LINE = ("height", "topo", "zsensor", "z ", "deflection", "frequency")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """What the blocks of a frame say of its displacement field.

    Attributes
    ----------
    positions_px
        Where in the frame, ``(n, 2)``: the middle of the structure in each block.
    displacement_px
        ``D`` there, ``(n, 2)``.
    variance_px2
        Of each displacement's noise, ``(n, 2)``. Blocks that overlap by half share noise: together
        they know as much as if each variance were 1.8 times as large.
    match
        Correlation coefficient of block and reference after displacement, ``(n,)``.
    number
        Which block of the grid each is, ``(n,)``, counted along rows.
    blank
        Blocks left out since they have too little structure, for what differs from the reference, to tell.
    unmatched
        Blocks left out that have structure, but not that of the reference within reach.
    """

    positions_px: Float64
    displacement_px: Float64
    variance_px2: Float64
    match: Float64
    number: NDArray[np.int64]
    blank: int = 0
    unmatched: int = 0

    def __len__(self) -> int:
        return len(self.match)

    def only(self, chosen: Bool) -> Blocks:
        """Keep some of the blocks."""
        return Blocks(
            positions_px=self.positions_px[chosen],
            displacement_px=self.displacement_px[chosen],
            variance_px2=self.variance_px2[chosen],
            match=self.match[chosen],
            number=self.number[chosen],
            blank=self.blank,
            unmatched=self.unmatched,
        )

    def observations(self, *, shared_noise: float = 1.8) -> Observations:
        """Say them as the model of the distortion takes them.

        Parameters
        ----------
        shared_noise
            Factor on the variances for what overlapping blocks share; 1 for blocks side by side.
        """
        from models.distortion_gp import Observations  # not before it is needed: it brings torch

        return Observations(
            positions_px=self.positions_px,
            displacement_px=self.displacement_px,
            variance_px2=self.variance_px2 * shared_noise,
        )


def block_displacements(
    image: Float32,
    reference: Float32,
    block_px: tuple[int, int] = (64, 64),
    expected_px: Float64 | None = None,
    *,
    rows_px: Float64 | None = None,
    reach_px: float = 8.0,
    worst_px: float = 0.5,
    least_match: float = 0.3,
) -> Blocks:
    """Measure the displacement of blocks on a grid on which neighbours overlap by half.

    Each block is found by normalised correlation, then placed to a fraction of a pixel by least
    squares on the gradients, gain and offset free. The variance comes from the energy of the
    gradients and from what is left of the block after the fit, rows of noise counted as such.

    Parameters
    ----------
    image, reference
        Shape ``(rows, cols)``, float32, finite, of any unit.
    block_px
        ``(rows, cols)`` of a block, 16 at least.
    expected_px
        ``D`` as far as it is known, shape ``(2,)`` or ``(2, rows, cols)``; 0 where not given.
    rows_px
        What is known of each row beside that, shape ``(2, rows)``: added to ``D`` before the blocks are
        compared, and not counted in what is returned.
    reach_px
        How far ``D`` may be from what is expected; 0 where it is known within a pixel.
    worst_px
        Blocks whose standard deviation is larger along either axis are blank.
    least_match
        Blocks that correlate worse are unmatched.

    Raises
    ------
    ValueError
        If the shapes do not fit together or a block does not fit into the image.
    """
    _require_fitting(image, reference, block_px)
    field = _field(expected_px, image.shape)
    beside = np.zeros((2, image.shape[0])) if rows_px is None else np.asarray(rows_px, dtype=np.float64)
    known = warped(reference, field + beside[:, :, None])
    # Cubic convolution of pixel noise draws a fit towards whole pixels (by 0.03 px at a signal-to-noise
    # ratio of 10), and noise in the gradients makes its steps too short. Of smooth images, neither.
    width = telling_width(reference)
    seen, known = structure(image, block_px, width), structure(known, block_px, width)
    starts = _grid(image.shape, block_px)
    away = _coarse(seen, known, starts, block_px, reach_px) if reach_px > 0 else np.zeros((len(starts), 2))
    starts = _seen_whole(starts, field, away, block_px)
    taper = np.outer(_window(block_px[0]), _window(block_px[1])).astype(np.float32)
    twice = ndimage.gaussian_filter(known, width)
    fits = _fit_blocks(seen, known, twice, starts, taper, away, _ITERATIONS)
    # Smoothing by a Gaussian of this width took white noise down to this part of its variance.
    fits[:, 2:4] *= 4 * np.pi * width**2
    return _chosen(fits, starts, field, away, reach_px, worst_px, least_match)


def structure(image: Float32, block_px: tuple[int, int] = (64, 64), width_px: float = 1.0) -> Float32:
    """Take from an image what is finer than half a block and coarser than pixel noise.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32.
    block_px
        ``(rows, cols)``.
    width_px
        By how much to smooth it.
    """
    fine = ndimage.gaussian_filter(image, width_px)
    broad = [n // 2 + 1 for n in block_px]
    # Twice, since one box lets its own frequencies through with the sign turned.
    background = ndimage.uniform_filter(ndimage.uniform_filter(fine, broad), broad)
    difference: Float32 = fine - background
    return difference


def warped(image: Float32, displacement_px: Float64) -> Float32:
    """Sample an image at ``s + D(s)`` by cubic convolution; the edges repeat.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``, float32.
    displacement_px
        ``D``, shape ``(2, rows, cols)``.
    """
    if not displacement_px.any():
        return image
    return _warped(image, np.ascontiguousarray(displacement_px, dtype=np.float64))


def comparable(image: Float32, channels: tuple[str, ...]) -> tuple[Float32, tuple[str, ...]]:
    """Turn the channels of a frame into images that may be compared between frames.

    A phase jumps by a full turn where nothing happens: it is given as its cosine and its sine. A
    height, or whatever a feedback or a detector says line by line, loses the offsets of its lines.

    Parameters
    ----------
    image
        Shape ``(channels, rows, cols)``, float32; phases in degrees, or in radians where none is
        beyond 7.
    channels
        Their names.

    Returns
    -------
    images
        Shape ``(more, rows, cols)``, float32.
    names
        Of each.
    """
    images: list[Float32] = []
    names: list[str] = []
    for name, channel in zip(channels, image, strict=True):
        low = name.lower()
        if "phase" in low:
            angle = channel if float(np.abs(channel).max(initial=0)) <= 7 else np.deg2rad(channel)
            images += [np.cos(angle), np.sin(angle)]
            names += [f"cos {name}", f"sin {name}"]
        else:
            images.append(levelled(channel) if any(word in low for word in _BY_LINE) else channel)
            names.append(name)
    return np.stack(images).astype(np.float32), tuple(names)


def levelled(image: Float32) -> Float32:
    """Take out the offset of each line against the one before, as the median of their difference."""
    steps = np.median(np.diff(image, axis=0), axis=1)
    offsets = np.concatenate([[0.0], np.cumsum(steps)])
    # A specimen that slopes down the frame is not an offset of lines; half a block counts as slope.
    offsets -= ndimage.gaussian_filter1d(offsets, 16.0, mode="nearest")
    level: Float32 = image - offsets.astype(np.float32)[:, None]
    return level


def clearness(image: Float32, block_px: tuple[int, int] = (64, 64)) -> float:
    """Say how well displacements can be told by an image: energy of its gradients over that of its noise.

    Both as smoothed where they are compared.
    """
    width = telling_width(image)
    by_row, by_col = np.gradient(structure(image, block_px, width))
    noise2 = pixel_noise(image) ** 2 / (8 * np.pi * width**4)
    return float(min((by_row**2).mean(), (by_col**2).mean()) / noise2) if noise2 else 0.0


def _require_fitting(image: Float32, reference: Float32, block_px: tuple[int, int]) -> None:
    if image.ndim != 2 or image.shape != reference.shape:
        raise ValueError(
            f"the image has shape {image.shape}, the reference {reference.shape}; they take one shape"
        )
    if min(block_px) < 16 or any(block > n for block, n in zip(block_px, image.shape, strict=True)):
        raise ValueError(f"blocks of {block_px} px on an image of {image.shape}; they take 16 px to its size")


def _field(expected_px: Float64 | None, shape: tuple[int, ...]) -> Float64:
    """Say what is expected at every pixel, ``(2, rows, cols)``."""
    if expected_px is None:
        return np.zeros((2, *shape))
    expected = np.asarray(expected_px, dtype=np.float64)
    if expected.shape not in ((2,), (2, *shape)):
        raise ValueError(f"expected_px has shape {expected.shape}; it takes (2,) or {(2, *shape)}")
    return np.broadcast_to(expected[:, None, None], (2, *shape)) if expected.ndim == 1 else expected


def _grid(shape: tuple[int, ...], block_px: tuple[int, int]) -> NDArray[np.int64]:
    """List the first pixels of blocks from edge to edge, about half a block apart, ``(n, 2)``."""
    along = [
        np.rint(np.linspace(0, n - block, max(1, round(2 * (n - block) / block) + 1))).astype(np.int64)
        for n, block in zip(shape, block_px, strict=True)
    ]
    return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 2)


def _window(n: int) -> Float64:
    """Raised cosine that is not 0 at its ends."""
    return np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2


def _seen_whole(
    starts: NDArray[np.int64], field: Float64, away: Float64, block_px: tuple[int, int]
) -> NDArray[np.int64]:
    """Move blocks at the edge so far inwards that the reference shows what they show."""
    shape = np.array(field.shape[1:])
    row, col = (starts + np.array(block_px) // 2).T
    total = field[:, row, col].T + away
    first = np.maximum(0, np.ceil(-total)).astype(np.int64)
    last = shape - np.array(block_px) - np.maximum(0, np.ceil(total)).astype(np.int64)
    # A displacement that leaves no place for the block is no match anyway.
    moved = np.clip(np.maximum(np.minimum(starts, last), first), 0, shape - np.array(block_px))
    return np.ascontiguousarray(moved)


def _coarse(
    seen: Float32, known: Float32, starts: NDArray[np.int64], block_px: tuple[int, int], reach_px: float
) -> Float64:
    """Find each block's displacement within reach to a whole pixel, ``(n, 2)``."""
    taper = np.outer(_window(block_px[0]), _window(block_px[1])).astype(np.float32)
    here, there = (_cut(image, starts, block_px) for image in (seen, known))
    spectrum = fft.rfft2(_centred(there, taper)) * fft.rfft2(_centred(here, taper)).conj()
    surface = fft.irfft2(spectrum, s=block_px)
    rows, cols = (fft.fftfreq(n, 1 / n) for n in block_px)
    away2 = rows[:, None] ** 2 + cols[None, :] ** 2
    # Tapers overlap less the further the blocks are apart: without this, the far are preferred too little.
    overlap = np.outer(*(np.abs(fft.irfft(np.abs(fft.rfft(_window(n))) ** 2, n)) for n in block_px))
    surface *= (away2 <= reach_px**2) * (overlap[0, 0] / np.maximum(overlap, 0.3 * overlap[0, 0]))
    highest = surface.max(axis=(1, 2), keepdims=True)
    # As in Matcher: on a lattice every period looks alike, and the nearest is meant.
    surface -= (0.05 * highest) * np.log1p(away2 / (reach_px / 3) ** 2)
    best = surface.reshape(len(starts), -1).argmax(axis=1)
    return np.stack([rows[best // block_px[1]], cols[best % block_px[1]]], axis=1)


def _cut(image: Float32, starts: NDArray[np.int64], block_px: tuple[int, int]) -> Float32:
    windows = np.lib.stride_tricks.sliding_window_view(image, block_px)
    cut: Float32 = windows[starts[:, 0], starts[:, 1]]
    return cut


def _centred(blocks: Float32, taper: Float32) -> Float32:
    mean = np.einsum("nrc,rc->n", blocks, taper) / taper.sum()
    centred: Float32 = (blocks - mean[:, None, None].astype(np.float32)) * taper
    return centred


def _chosen(
    fits: Float64,
    starts: NDArray[np.int64],
    field: Float64,
    away: Float64,
    reach_px: float,
    worst_px: float,
    least_match: float,
) -> Blocks:
    """Keep the blocks that tell, and say what they tell in the terms of the whole field.

    ``fits`` has a row for each block: displacement (2), variance by white noise (2), variance by bands
    of rows (2), centre (2), match, last step.
    """
    moved, white, banded, centre = fits[:, 0:2], fits[:, 2:4], fits[:, 4:6], fits[:, 6:8]
    is_blank = ~(white <= worst_px**2).all(axis=1)
    stayed = (np.abs(moved - away) <= 1.5).all(axis=1) & (np.abs(moved) <= max(reach_px, 1.0) + 1).all(axis=1)
    is_matched = (fits[:, 8] >= least_match) & stayed & (fits[:, 9] < 0.05)
    good = ~is_blank & is_matched
    # A block has too few bands to say how far its noise is from white; all blocks together can.
    ratio = np.minimum(banded[good] / np.maximum(white[good], 1e-12), 25.0)
    colour = np.maximum(1.0, ratio.mean(axis=0)) if good.any() else np.ones(2)
    positions = starts[good] + centre[good]
    # The reference was warped before: it is its field at the place where it matched that counts.
    there = positions + moved[good]
    expected = np.stack(
        [ndimage.map_coordinates(part, there.T, order=1, mode="nearest") for part in field], axis=1
    )
    return Blocks(
        positions_px=positions,
        displacement_px=moved[good] + expected,
        variance_px2=white[good] * colour,
        match=fits[good, 8],
        number=np.flatnonzero(good),
        blank=int(is_blank.sum()),
        unmatched=int((~is_blank & ~is_matched).sum()),
    )


@njit(cache=True)
def _kernel(x: float) -> tuple[float, float, float, float]:
    """Weights of the 4 pixels from one before to two after, ``x`` in [0, 1) beyond (Keys 1981, eq. 15)."""
    x2, x3 = x * x, x * x * x
    return (
        -0.5 * x3 + x2 - 0.5 * x,
        1.5 * x3 - 2.5 * x2 + 1.0,
        -1.5 * x3 + 2.0 * x2 + 0.5 * x,
        0.5 * x3 - 0.5 * x2,
    )


@njit(cache=True)
def _warped(image: Float32, field: Float64) -> Float32:
    rows, cols = image.shape
    result = np.empty_like(image)
    for r in range(rows):
        for c in range(cols):
            y = min(max(r + field[0, r, c], 0.0), rows - 1.0)
            x = min(max(c + field[1, r, c], 0.0), cols - 1.0)
            row, col = int(y), int(x)
            down, along = _kernel(y - row), _kernel(x - col)
            total = 0.0
            for i in range(4):
                line = min(max(row - 1 + i, 0), rows - 1)
                part = 0.0
                for j in range(4):
                    part += along[j] * image[line, min(max(col - 1 + j, 0), cols - 1)]
                total += down[i] * part
            result[r, c] = total
    return result


@njit(cache=True, fastmath=True)
def _shifted(image: Float32, top: int, left: int, move: Float64, part: Float32, out: Float32) -> None:
    """Fill ``out`` with the image from ``(top, left) + move`` on; the edges repeat.

    ``part`` is scratch of 3 rows more than ``out``.
    """
    rows, cols = image.shape
    down, right = int(np.floor(move[0])), int(np.floor(move[1]))
    a, b, c, d = _kernel(move[1] - right)
    first = left + right - 1
    is_inside = first >= 0 and first + out.shape[1] + 3 <= cols
    for r in range(part.shape[0]):
        line = image[min(max(top + down - 1 + r, 0), rows - 1)]
        if is_inside:
            for k in range(out.shape[1]):
                i = first + k
                part[r, k] = a * line[i] + b * line[i + 1] + c * line[i + 2] + d * line[i + 3]
        else:
            for k in range(out.shape[1]):
                i = first + k
                part[r, k] = (
                    a * line[min(max(i, 0), cols - 1)]
                    + b * line[min(max(i + 1, 0), cols - 1)]
                    + c * line[min(max(i + 2, 0), cols - 1)]
                    + d * line[min(max(i + 3, 0), cols - 1)]
                )
    a, b, c, d = _kernel(move[0] - down)
    for r in range(out.shape[0]):
        for k in range(out.shape[1]):
            out[r, k] = a * part[r, k] + b * part[r + 1, k] + c * part[r + 2, k] + d * part[r + 3, k]


@njit(cache=True)
def _fit_blocks(
    seen: Float32,
    known: Float32,
    twice: Float32,
    starts: NDArray[np.int64],
    taper: Float32,
    away: Float64,
    iterations: int,
) -> Float64:
    """Fit each block, by Gauss-Newton steps from ``away``; see ``_chosen`` for what a row says."""
    result = np.empty((starts.shape[0], 10))
    height, width = taper.shape
    part = np.empty((height + 5, width + 2), dtype=np.float32)
    there = np.empty((height + 2, width + 2), dtype=np.float32)
    smooth = np.empty_like(there)
    for n in range(starts.shape[0]):
        top, left = starts[n]
        block = seen[top : top + height, left : left + width]
        move = away[n].copy()
        step = 1.0
        for _ in range(iterations):
            _shifted(known, top - 1, left - 1, move, part, there)
            down, along = _step(block, there, taper)
            step = max(abs(down), abs(along))
            # A gradient serves for about a pixel.
            move[0] += min(max(down, -1.0), 1.0)
            move[1] += min(max(along, -1.0), 1.0)
            if step < _AT_REST_PX:
                break
        _shifted(known, top - 1, left - 1, move, part, there)
        _shifted(twice, top - 1, left - 1, move, part, smooth)
        result[n, 0:2] = move
        _judge_fit(block, there, smooth, taper, result[n])
        result[n, 9] = step
    return result


@njit(cache=True, fastmath=True)
def _moments(block: Float32, there: Float32, taper: Float32) -> tuple[float, float, float, float, float]:
    """Weighted means of a block and its partner, their energies and their product."""
    total = b = t = bb = tt = bt = 0.0
    for r in range(taper.shape[0]):
        for c in range(taper.shape[1]):
            w, x, y = taper[r, c], block[r, c], there[r + 1, c + 1]
            total += w
            b += w * x
            t += w * y
            bb += w * x * x
            tt += w * y * y
            bt += w * x * y
    b /= total
    t /= total
    return b, t, bb / total - b * b, tt / total - t * t, bt / total - b * t


@njit(cache=True, fastmath=True)
def _step(block: Float32, there: Float32, taper: Float32) -> tuple[float, float]:
    """Say how much further the partner must be displaced to look like the block."""
    b, t, _, tt, bt = _moments(block, there, taper)
    if tt <= 0 or bt <= 0:
        return 0.0, 0.0
    scale = tt / bt
    rr = cc = rc = re = ce = 0.0
    for r in range(taper.shape[0]):
        for c in range(taper.shape[1]):
            w = taper[r, c]
            by_row = np.float32(0.5) * (there[r + 2, c + 1] - there[r, c + 1])
            by_col = np.float32(0.5) * (there[r + 1, c + 2] - there[r + 1, c])
            error = (block[r, c] - b) * scale - (there[r + 1, c + 1] - t)
            rr += w * by_row * by_row
            cc += w * by_col * by_col
            rc += w * by_row * by_col
            re += w * by_row * error
            ce += w * by_col * error
    determinant = rr * cc - rc * rc
    if determinant <= 1e-6 * rr * cc:
        return 0.0, 0.0
    return (cc * re - rc * ce) / determinant, (rr * ce - rc * re) / determinant


@njit(cache=True)
def _judge_fit(block: Float32, there: Float32, smooth: Float32, taper: Float32, out: Float64) -> None:
    """Say variances, centre of the gradients and correlation of a fitted block.

    The score of least squares is ``sum w g e`` with the smoothed residual ``e``: the same as the raw
    residual against the gradient smoothed once more, so that noise that was white before smoothing
    counts with the energy of that gradient. For noise that is not white, it is summed over bands of 8
    rows, each of which is taken for independent of the others.
    """
    height, width = taper.shape
    b, t, bb, tt, bt = _moments(block, there, taper)
    out[2:6] = np.inf
    out[6], out[7] = (height - 1) / 2, (width - 1) / 2
    out[8] = bt / np.sqrt(bb * tt) if bb > 0 and tt > 0 else 0.0
    if tt <= 0 or bt <= 0:
        return
    scale = tt / bt
    rr = cc = rc = row = col = 0.0
    white_r = white_c = white_rc = 0.0
    band_r = band_c = 0.0
    banded_r = banded_c = banded_rc = 0.0
    for r in range(height):
        for c in range(width):
            w = taper[r, c]
            by_row = np.float32(0.5) * (there[r + 2, c + 1] - there[r, c + 1])
            by_col = np.float32(0.5) * (there[r + 1, c + 2] - there[r + 1, c])
            error = (block[r, c] - b) * scale - (there[r + 1, c + 1] - t)
            rr += w * by_row * by_row
            cc += w * by_col * by_col
            rc += w * by_row * by_col
            energy = w * (by_row * by_row + by_col * by_col)
            row += energy * r
            col += energy * c
            band_r += w * by_row * error
            band_c += w * by_col * error
            wide_row = w * np.float32(0.5) * (smooth[r + 2, c + 1] - smooth[r, c + 1])
            wide_col = w * np.float32(0.5) * (smooth[r + 1, c + 2] - smooth[r + 1, c])
            white_r += wide_row * wide_row * error * error
            white_c += wide_col * wide_col * error * error
            white_rc += wide_row * wide_col * error * error
        if r % 8 == 7 or r == height - 1:
            banded_r += band_r * band_r
            banded_c += band_c * band_c
            banded_rc += band_r * band_c
            band_r = band_c = 0.0
    determinant = rr * cc - rc * rc
    if determinant <= 1e-6 * rr * cc:
        return
    d2 = determinant * determinant
    out[2] = (cc * cc * white_r - 2 * cc * rc * white_rc + rc * rc * white_c) / d2
    out[3] = (rr * rr * white_c - 2 * rr * rc * white_rc + rc * rc * white_r) / d2
    out[4] = (cc * cc * banded_r - 2 * cc * rc * banded_rc + rc * rc * banded_c) / d2
    out[5] = (rr * rr * banded_c - 2 * rr * rc * banded_rc + rc * rc * banded_r) / d2
    out[6], out[7] = row / (rr + cc), col / (rr + cc)
