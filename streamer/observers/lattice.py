"""Where a lattice says the columns of a frame should be, against where they are seen.

The observer finds the lattice in the first frame, and from then on fits each column where the
distortion known so far puts it. What remains is what the distortion model learns from.

Positions are ``(row, col)`` in pixels of the raster. Columns are brighter than their surroundings: an
image with dark ones (ABF) is negated before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.stats import chi2

from streamer.observers.columns import (
    COUNTS,
    ColumnFits,
    NoiseModel,
    RowOffsets,
    drawn_px,
    fit_columns,
    fitted_sigma,
    noise_model,
    row_offsets,
    row_reach,
)
from streamer.observers.lattice_search import (
    FEWEST_COLUMNS,
    Lattice,
    NoLattice,
    find_lattice,
    grown,
    index_columns,
)

if TYPE_CHECKING:
    from models.distortion_gp import Observations

__all__ = [
    "ColumnsSeen",
    "Lattice",
    "LatticeObserver",
    "LatticeState",
    "NoLattice",
    "SiteResiduals",
    "find_columns",
    "find_lattice",
    "joined",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
ToRaw = Callable[[Float64], Float64]

_WIDTHS_PX = tuple(1.0 * 1.25**k for k in range(12))  # tried where none is given
_PEAK_SD = 3.5  # a maximum is this far above the noise
_PEAK_PART = 0.12  # and has this part of the height of a good one
_WIDTHS_TRIED = 5
_ENOUGH_COLUMNS = 10 * FEWEST_COLUMNS  # to say of a width how likely it is
_WIDTH_STEPS = 12
_SAME_WIDTH = 0.01  # a width wrong by that moves no column; which columns count as good moves it as far
_MIDDLE_PX = 256  # of a frame, at each side: shows as well which widths are likely, in a fraction of the time
_EXPLAINED = 0.9  # part of the columns on the lattice at which no other width is tried
_MOSTLY = 0.5  # at which no other width is tried that leads to this one
_CAPTURE = 0.33  # of a column around its expected place, in distances between neighbours
_LOST = 1 / 3  # part of the usual number of columns below which the lattice is lost
_POOR = 0.7  # part below which a frame is looked at again
_MOST_STRETCH = 0.06  # of the lattice between frames: more is another magnification
_FRAMES_TO_JUDGE = 4  # before a site is said to move by itself
_BY_CHANCE = 1e-4  # how often a site at rest is taken for one that moves
_APART_SIGMA = 4.0  # columns that are further apart are fitted one by one
_NEAR = 4  # columns that say together where one near them should be
_CELLS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnsSeen:
    """The columns of one frame that were found at sites of the lattice.

    Attributes
    ----------
    index
        Site of each: cell and place in the basis, shape ``(n, 3)``.
    sites_px
        Where the lattice has them, shape ``(n, 2)``.
    fits
        Where and how they were seen; all are good.
    rest
        The sites whose column is not good or lies beyond the edge; None where columns do not overlap.
    """

    index: Int64
    sites_px: Float64
    fits: ColumnFits
    rest: ColumnsSeen | None = None

    def part(self, which: Bool) -> ColumnsSeen:
        """Give some of the columns; the rest stays the rest."""
        return ColumnsSeen(
            index=self.index[which],
            sites_px=self.sites_px[which],
            fits=_chosen(self.fits, which),
            rest=self.rest,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteResiduals:
    """What of the sites' places is no distortion, averaged over the frames so far.

    Attributes
    ----------
    index
        Cell and place in the basis, shape ``(n, 3)``.
    sites_px
        Where the lattice has them, shape ``(n, 2)``.
    mean_px
        Seen minus expected, shape ``(n, 2)``: where the column is beside its site.
    scatter_px
        Standard deviation from frame to frame, shape ``(n, 2)``; 0 after one frame.
    count
        Frames, shape ``(n,)``.
    moves
        Whether it moves, or lies beside its site, by more than its neighbours and the noise explain.
    """

    index: Int64
    sites_px: Float64
    mean_px: Float64
    scatter_px: Float64
    count: Int64
    moves: Bool


class LatticeState(msgspec.Struct, frozen=True, kw_only=True):
    """What a LatticeObserver knows, beside its arrays.

    Attributes
    ----------
    sigma_px
        Width of the columns; None before the first frame.
    usual_count
        Columns that a frame usually shows.
    is_new
        Whether no frame was observed since the lattice was found.
    noise
        Of a pixel: constant, gain, floor.
    is_dark
        Whether columns are darker than what surrounds them.
    """

    sigma_px: float | None
    usual_count: float
    is_new: bool
    noise: tuple[float, float, float]
    is_dark: bool


def find_columns(
    image: Float32, sigma_px: float | None = None, noise: NoiseModel | None = None
) -> tuple[ColumnFits, float]:
    """Find and fit all columns of a frame, knowing nothing of where they are.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``.
    sigma_px
        Width of the columns; measured if left out.
    noise
        Of a pixel; measured if left out.

    Returns
    -------
    fits
        Good ones only.
    sigma_px
        The width given, or measured.
    """
    picture = np.ascontiguousarray(image, dtype=np.float32)
    noise = noise or noise_model(picture)
    if sigma_px is not None:
        return _columns_of_width(picture, sigma_px, noise), sigma_px
    return _columns_about(picture, _likely_widths(picture, noise)[0], noise)


def _columns_of_width(image: Float32, sigma_px: float, noise: NoiseModel) -> ColumnFits:
    return _good_at_peaks(image, sigma_px, noise, 5)[0]


def _good_at_peaks(
    image: Float32, sigma_px: float, noise: NoiseModel, iterations: int
) -> tuple[ColumnFits, int]:
    """Good columns of this width at maxima of the image, and how many maxima there are."""
    peaks = _peaks(image, sigma_px, noise)
    reach = max(2.0, 1.2 * sigma_px)
    fits = fit_columns(image, peaks, sigma_px, iterations, noise, max_shift_px=reach)
    return _chosen(fits, _not_beside_clearer(fits, 1.5 * sigma_px)), len(peaks)


def _columns_about(image: Float32, width_px: float, noise: NoiseModel) -> tuple[ColumnFits, float]:
    """Columns, and their width, from a width that is about right."""
    fits = _columns_of_width(image, width_px, noise)
    for _ in range(_WIDTH_STEPS):
        if len(fits.good) < FEWEST_COLUMNS // 2:
            return fits, width_px
        before, width_px = width_px, fitted_sigma(image, fits, width_px, noise)
        refined = fit_columns(image, fits.positions_px, width_px, 2, noise, max_shift_px=width_px)
        fits = _chosen(refined, refined.good)
        if abs(width_px / before - 1) < _SAME_WIDTH:
            break
    return _columns_of_width(image, width_px, noise), width_px


def _likely_widths(image: Float32, noise: NoiseModel) -> list[float]:
    """Widths at which most maxima are good columns, and there are many of them, best first."""
    middle = _middle(image)
    score = _scores_of_widths(middle, noise)
    if score.max() < _ENOUGH_COLUMNS and middle.size < image.size:  # a hole, or columns far apart
        score = _scores_of_widths(image, noise)
    return [_WIDTHS_PX[k] for k in np.argsort(-score, kind="stable")]


def _middle(image: Float32) -> Float32:
    tops = [max(0, (n - _MIDDLE_PX) // 2) for n in image.shape]
    middle = image[tops[0] : tops[0] + _MIDDLE_PX, tops[1] : tops[1] + _MIDDLE_PX]
    return np.ascontiguousarray(middle)


def _scores_of_widths(image: Float32, noise: NoiseModel) -> Float64:
    """Number of good columns times their part of the maxima, for each of ``_WIDTHS_PX``."""
    score = np.zeros(len(_WIDTHS_PX))
    for k, width in enumerate(_WIDTHS_PX):
        if 6 * width > min(image.shape):
            break
        fits, maxima = _good_at_peaks(image, width, noise, 3)
        score[k] = len(fits.good) ** 2 / max(maxima, 1)
        if score[k] < 0.25 * score.max() and score.max() > _ENOUGH_COLUMNS:
            break  # wider ones only merge more
    return score


def _peaks(image: Float32, scale_px: float, noise: NoiseModel) -> Float64:
    """Maxima ``(n, 2)`` of the Laplacian of Gaussian that stand out of the noise."""
    offset = np.float32(np.median(image[::7, ::7]))
    # Without the offset: a filter in float32 sees the last digits of a large number as noise.
    flat = image - offset
    response = -(scale_px**2) * ndimage.gaussian_laplace(flat, scale_px, mode="reflect")
    level = ndimage.gaussian_filter(flat, 2 * scale_px, mode="reflect") + np.float64(offset)
    variance = np.maximum(noise.constant + noise.gain * level, noise.floor)
    # Sum of the squares of the filter: 1 / (2 π σ²) for the scale-free Laplacian of Gaussian.
    sd = np.sqrt(variance / (2 * math.pi)) / scale_px
    size = 2 * max(1, round(0.6 * scale_px)) + 1
    highest = (response == ndimage.maximum_filter(response, size)) & (response > _PEAK_SD * sd)
    places = np.argwhere(highest)
    height = response[highest].astype(np.float64)
    keep = height > _PEAK_PART * (np.percentile(height, 90) if height.size else 0.0)
    found: Float64 = places[keep].astype(np.float64)
    return found


def _not_beside_clearer(fits: ColumnFits, distance_px: float) -> Bool:
    keep = fits.good.copy()
    places = np.flatnonzero(keep)
    if places.size < 2:
        return keep
    pairs = cKDTree(fits.positions_px[places]).query_pairs(distance_px, output_type="ndarray")
    first, second = places[pairs[:, 0]], places[pairs[:, 1]]
    keep[np.where(fits.significance[first] < fits.significance[second], first, second)] = False
    return keep


def joined(first: ColumnsSeen, second: ColumnsSeen) -> ColumnsSeen:
    """Put the columns of two after each other, without the rest of them."""
    return ColumnsSeen(
        index=np.concatenate([first.index, second.index]),
        sites_px=np.concatenate([first.sites_px, second.sites_px]),
        fits=ColumnFits(
            **{
                field.name: np.concatenate([getattr(one.fits, field.name) for one in (first, second)])
                for field in fields(ColumnFits)
            }
        ),
    )


def _chosen(fits: ColumnFits, which: Bool | Int64) -> ColumnFits:
    return ColumnFits(
        positions_px=fits.positions_px[which],
        variance_px2=fits.variance_px2[which],
        amplitude=fits.amplitude[which],
        background=fits.background[which],
        significance=fits.significance[which],
        chi2=fits.chi2[which],
        good=fits.good[which],
    )


class LatticeObserver:
    """Compares frames with a lattice, and remembers what each site does by itself.

    Parameters
    ----------
    lattice
        The ideal lattice, its origin right within half a distance between neighbours; found by
        ``start`` if left out.
    sigma_px
        Width of the columns; measured by ``start`` if left out.
    is_dark
        Whether columns are darker than what surrounds them.
    """

    def __init__(
        self, lattice: Lattice | None = None, sigma_px: float | None = None, *, is_dark: bool = False
    ) -> None:
        if sigma_px is not None and not sigma_px > 0:
            raise ValueError(f"sigma_px is {sigma_px}; it takes numbers above 0, or None to measure it")
        self.lattice = lattice
        self.sigma_px = sigma_px
        self.is_dark = is_dark
        self._given = (lattice, sigma_px)
        self._noise = COUNTS
        self._usual_count = 0.0
        self._is_new = True
        self._view = np.zeros((2, 2))
        self._rows: RowOffsets | None = None
        self._memory = _SiteMemory()
        self.seen: ColumnsSeen | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it knows a lattice and a width: after ``start``."""
        return self.lattice is not None and self.sigma_px is not None and self._usual_count > 0

    def start(self, image: Float32) -> Lattice:
        """Find the lattice, the width and the noise in a frame, and forget what was known of sites.

        Raises
        ------
        NoLattice
            If the frame shows none, or has none that was given.
        """
        lattice, sigma_px = self._given
        picture = self._bright(image)
        noise = noise_model(picture)
        if lattice is None:
            lattice, width, count = _lattice_of(picture, sigma_px, noise)
        else:
            fits, width = find_columns(picture, sigma_px, noise)
            count = len(fits.good)
        if count < FEWEST_COLUMNS:
            raise NoLattice("too few columns")
        self.lattice, self.sigma_px, self._noise = lattice, width, noise
        self._usual_count, self._is_new = float(count), True
        self._rows, self.seen = None, None
        self._memory = _SiteMemory()
        return lattice

    def _bright(self, image: Float32) -> Float32:
        """Give an image whose columns are brighter than what surrounds them."""
        return np.ascontiguousarray(-image if self.is_dark else image, dtype=np.float32)

    def observe(self, image: Float32, to_raw: ToRaw) -> Observations | None:
        """Say by how much each column is displaced: its site minus where it is seen.

        Parameters
        ----------
        image
            Shape ``(rows, cols)``.
        to_raw
            Takes places ``(n, 2)`` to where the distortion known so far has them on the raster.

        Returns
        -------
        observations
            None if the lattice is lost: fewer than a third of the usual columns are where they
            should be, or another sublattice is. Start again then.

        Raises
        ------
        RuntimeError
            Before ``start``.
        """
        from models.distortion_gp import Observations  # not before it is needed: it brings torch

        picture = self._bright(image)
        seen = self._captured(picture, to_raw) if self._is_new else self._looked_up(picture, to_raw)
        if seen is None or not self._is_usual(seen):
            self.seen = None
            return None
        self.seen = seen
        self._is_new = False
        self._view = _view(seen, picture.shape, self._ready()[0].spacing_px)
        self._usual_count += 0.1 * (len(seen.index) - self._usual_count)
        return Observations(
            positions_px=seen.fits.positions_px,
            displacement_px=seen.sites_px - seen.fits.positions_px,
            variance_px2=seen.fits.variance_px2 + self._memory.excess(seen.index),
            column_sigma_px=self._ready()[1],
            row_reach=row_reach(seen.fits, self._ready()[1], self._noise),
        )

    def rows(self, image: Float32, to_raw: ToRaw, rows_px: Float64 | None = None) -> RowOffsets:
        """Measure the offset of each row beside the field, and learn what each site does by itself.

        Parameters
        ----------
        image
            The frame last observed.
        to_raw
            As in ``observe``, after the field has learnt from the frame.
        rows_px
            What of the field depends on the row only, shape ``(2, rows)``.

        Raises
        ------
        RuntimeError
            If the last frame was not observed.
        """
        lattice, sigma = self._ready()
        seen = self.seen
        if seen is None:
            raise RuntimeError("no frame was observed: call observe() before rows()")
        expected = to_raw(seen.sites_px)
        off = seen.fits.positions_px - expected
        near = _near_the_rest(off)
        shown = replace(seen, fits=replace(seen.fits, good=near))
        # A column that lies aside is drawn where it is; one of which little is seen, where it should be.
        places = np.where(near[:, None], expected, seen.fits.positions_px)
        if seen.rest is not None:
            shown = joined(shown, seen.rest)
            places = np.concatenate([places, to_raw(seen.rest.sites_px)])
        offsets = row_offsets(
            self._bright(image),
            shown.fits,
            places,
            sigma,
            self._noise,
            rows_px,
            self._rows,
            overlap=self._overlap,
        )
        self._rows = offsets
        at = seen.fits.positions_px[:, 0]
        blurred = ndimage.gaussian_filter1d(offsets.offsets, sigma, axis=1)
        jitter = np.stack([np.interp(at, np.arange(blurred.shape[1]), row) for row in blurred], axis=1)
        self._memory.learn(seen.index, off + jitter, seen.fits.variance_px2, lattice)
        return offsets

    def residuals(self) -> SiteResiduals:
        """Say what of each site is no distortion, averaged over the frames since ``start``."""
        lattice, _ = self._ready()
        return self._memory.residuals(lattice)

    def state(self) -> tuple[LatticeState, dict[str, NDArray[Any]]]:
        """All that it knows: numbers, and arrays by name."""
        lattice, noise = self.lattice, self._noise
        numbers = LatticeState(
            sigma_px=self.sigma_px,
            usual_count=self._usual_count,
            is_new=self._is_new,
            noise=(noise.constant, noise.gain, noise.floor),
            is_dark=self.is_dark,
        )
        arrays: dict[str, NDArray[Any]] = {**self._memory.arrays(), "view": self._view}
        if lattice is not None:
            arrays |= {"vectors_px": lattice.vectors_px, "origin_px": lattice.origin_px}
            arrays |= {"basis": lattice.basis, "amplitude": lattice.amplitude}
        if self._rows is not None:
            arrays |= {"row_spread": self._rows.spread, "row_noise_scale": self._rows.noise_scale}
        return numbers, arrays

    def restore(self, state: LatticeState, arrays: dict[str, NDArray[Any]]) -> Self:
        """Take over what another one knew, to the bit; the frame last seen is not part of it."""
        self.sigma_px, self._usual_count = state.sigma_px, state.usual_count
        self._is_new, self._noise = state.is_new, NoiseModel(*state.noise)
        self.is_dark = state.is_dark
        self.seen, self._rows, self.lattice = None, None, None
        self._view = arrays["view"].copy()
        if "vectors_px" in arrays:
            names = ("vectors_px", "origin_px", "basis", "amplitude")
            self.lattice = Lattice(**{name: arrays[name].copy() for name in names})
        if "row_spread" in arrays:
            nothing = np.zeros((2, 0))
            spread, scale = arrays["row_spread"].copy(), arrays["row_noise_scale"].copy()
            self._rows = RowOffsets(
                offsets=nothing, variance=nothing, spread=spread, noise_scale=scale, measured=nothing
            )
        self._memory = _SiteMemory.restored(arrays, self.lattice)
        return self

    def _ready(self) -> tuple[Lattice, float]:
        if self.lattice is None or self.sigma_px is None or not self._usual_count > 0:
            raise RuntimeError("no lattice is known: call start() with a frame first")
        return self.lattice, self.sigma_px

    def _looked_up(self, image: Float32, to_raw: ToRaw) -> ColumnsSeen | None:
        """Fit the columns where they are expected; look everywhere if that is not where they are."""
        lattice, sigma = self._ready()
        beyond = drawn_px(sigma) if self._overlap else -1.0
        margin = max(beyond, 0.0) * np.array([[-1.0], [1.0]])
        index = lattice.sites(*(self._view + margin))
        raw = to_raw(lattice.place_of(index))
        inside = np.all((raw >= -beyond) & (raw <= np.array(image.shape) - 1.0 + beyond), axis=1)
        index, raw = index[inside], raw[inside]
        fits = self._fitted(image, index, raw, 2)
        off = fits.positions_px - raw
        if fits.good.sum() >= FEWEST_COLUMNS:
            # The whole frame may be off: half a pixel takes two more steps.
            shift = np.median(off[fits.good], axis=0)
            if np.hypot(*shift) > 0.5:
                fits = self._fitted(image, index, raw + shift, 3)
        seen = self._sorted(index, fits)
        if len(seen.index) >= _POOR * self._usual_count and self._is_usual(seen):
            return seen
        other = self._captured(image, to_raw)
        return other if other is not None and len(other.index) > len(seen.index) else seen

    def _captured(self, image: Float32, to_raw: ToRaw) -> ColumnsSeen | None:
        """Find the columns without knowing where, and number them outwards from where they fit best."""
        lattice, sigma = self._ready()
        fits, _ = find_columns(image, sigma, self._noise)
        seen_at = fits.positions_px
        if len(seen_at) < FEWEST_COLUMNS:
            return None
        places = seen_at + (seen_at - to_raw(seen_at))
        index, known = _seed(places, fits.amplitude, lattice, image.shape)
        if not known.any():
            return None
        index, known = grown(places, lattice, index, known)
        if (
            known.sum() < FEWEST_COLUMNS
            or _stretch(lattice.place_of(index[known]), places[known]) > _MOST_STRETCH
        ):
            return None
        at = index[known]
        seen = ColumnsSeen(index=at, sites_px=lattice.place_of(at), fits=_chosen(fits, known))
        return self._looked_around(image, seen) if self._overlap else seen

    def _looked_around(self, image: Float32, seen: ColumnsSeen) -> ColumnsSeen:
        """Fit again columns that were found one by one, with all of the lattice that the frame may show."""
        lattice, sigma = self._ready()
        beyond = drawn_px(sigma)
        index = lattice.sites(*_view(seen, image.shape, beyond + lattice.spacing_px))
        sites = lattice.place_of(index)
        near = cKDTree(seen.sites_px).query(sites, k=_NEAR)[1]
        raw = sites - (seen.sites_px - seen.fits.positions_px)[near].mean(axis=1)
        inside = np.all((raw >= -beyond) & (raw <= np.array(image.shape) - 1.0 + beyond), axis=1)
        return self._sorted(index[inside], self._fitted(image, index[inside], raw[inside], 3))

    @property
    def _overlap(self) -> bool:
        """Whether columns reach so far into each other that they have to be fitted together."""
        lattice, sigma = self._ready()
        return lattice.spacing_px < _APART_SIGMA * sigma

    def _fitted(self, image: Float32, index: Int64, raw: Float64, iterations: int) -> ColumnFits:
        lattice, sigma = self._ready()
        heights = lattice.amplitude[index[:, 2]] if self._overlap else None
        reach = _CAPTURE * lattice.spacing_px
        return fit_columns(image, raw, sigma, iterations, self._noise, reach, heights)

    def _sorted(self, index: Int64, fits: ColumnFits) -> ColumnsSeen:
        """Tell columns that are good from the others, which are needed where columns overlap."""
        lattice, _ = self._ready()
        every = ColumnsSeen(index=index, sites_px=lattice.place_of(index), fits=fits)
        good = every.part(fits.good)
        return replace(good, rest=every.part(~fits.good)) if self._overlap else good

    def _is_usual(self, seen: ColumnsSeen) -> bool:
        """Whether enough columns are seen, and the brighter sublattice is the brighter one."""
        lattice, _ = self._ready()
        if len(seen.index) < max(_LOST * self._usual_count, FEWEST_COLUMNS):
            return False
        return _sublattices_agree(lattice, seen)


def _lattice_of(image: Float32, sigma_px: float | None, noise: NoiseModel) -> tuple[Lattice, float, int]:
    """Lattice, width of its columns and how many there are, at the width where it explains most."""
    if sigma_px is not None:
        fits = _columns_of_width(image, sigma_px, noise)
        lattice, _, known = index_columns(fits.positions_px, fits.amplitude, (image.shape[0], image.shape[1]))
        return lattice, sigma_px, int(known.sum())
    best: tuple[Lattice, float, int] | None = None
    reason, score = NoLattice("too few columns"), 0.0
    ways: list[tuple[float, float]] = []  # from a width begun with to the one that it led to
    for likely in _likely_widths(image, noise)[:_WIDTHS_TRIED]:
        if _is_on_the_way(likely, ways):
            continue
        fits, width = _columns_about(image, likely, noise)
        if any(abs(width / end - 1) < _SAME_WIDTH for _, end in ways):
            break  # from both sides or from afar: the others would lead there too
        try:
            lattice, _, known = index_columns(
                fits.positions_px, fits.amplitude, (image.shape[0], image.shape[1])
            )
        except NoLattice as error:
            reason = error
            continue
        part = float(known.mean())
        if known.sum() * part**2 > score:
            score, best = float(known.sum()) * part**2, (lattice, width, int(known.sum()))
        if part >= _EXPLAINED:
            break
        if part >= _MOSTLY:
            ways.append((likely, width))
    if best is None:
        raise reason
    return best


def _is_on_the_way(width: float, ways: list[tuple[float, float]]) -> bool:
    """Say whether a width lies between one that was begun with and where that led: it leads there too."""
    return any(min(way) / (1 + _SAME_WIDTH) <= width <= max(way) * (1 + _SAME_WIDTH) for way in ways)


def _near_the_rest(off: Float64) -> Bool:
    """Mark columns within four robust standard deviations, and at least 0.3 px, of the others."""
    centred = off - np.median(off, axis=0)
    spread = 1.4826 * np.median(np.abs(centred), axis=0)
    near: Bool = np.all(np.abs(centred) < np.maximum(4 * spread, 0.3), axis=1)
    return near


def _view(seen: ColumnsSeen, shape: tuple[int, ...], margin_px: float) -> Float64:
    """Lowest and highest place ``(2, 2)`` that the next frame may show, by what this one showed."""
    off = seen.sites_px - seen.fits.positions_px
    low, high = off.min(axis=0) - margin_px, off.max(axis=0) + margin_px
    return np.stack([low, np.array(shape) - 1.0 + high])


def _seed(
    places: Float64, amplitudes: Float64, lattice: Lattice, shape: tuple[int, ...]
) -> tuple[Int64, Bool]:
    """Number the columns of the part of the frame that fits the lattice best, shifted as little as needed.

    The shift is sought over the whole cell, so that a frame that jumped is numbered right but for
    whole translations; which sublattice is which, the amplitudes say.
    """
    shifts = _shifts_of_a_cell(lattice)
    reach = 0.22 * lattice.spacing_px
    radius = max(4 * float(np.hypot(*lattice.vectors_px.T).max()), 0.16 * min(shape))
    best_score, best = 0.0, (np.zeros(2), np.zeros(len(places), dtype=bool))
    middles = [np.array([r, c]) * shape for r in (0.5, 0.3, 0.7) for c in (0.5, 0.3, 0.7)]
    for middle in middles:
        window = np.hypot(*(places - middle).T) < radius
        if window.sum() < FEWEST_COLUMNS // 2:
            continue
        scores = np.array(
            [_agreement(places[window] + s, amplitudes[window], lattice, reach) for s in shifts]
        )
        scores -= 0.05 * np.hypot(*shifts.T) / lattice.spacing_px
        if scores.max() > best_score:
            best_score, best = float(scores.max()), (shifts[scores.argmax()], window)
    return _numbered(places, lattice, *best, reach)


def _shifts_of_a_cell(lattice: Lattice) -> Float64:
    """Shifts that cover one cell around 0 in steps of a fifth of the distance between neighbours."""
    counts = np.ceil(np.hypot(*lattice.vectors_px.T) / (0.2 * lattice.spacing_px)).astype(int)
    parts = [np.arange(n) / n - (n // 2) / n for n in counts]
    grid = np.stack(np.meshgrid(*parts, indexing="ij"), axis=-1).reshape(-1, 2)
    shifts: Float64 = grid @ lattice.vectors_px
    return shifts


def _agreement(places: Float64, amplitudes: Float64, lattice: Lattice, reach: float) -> float:
    """Part of the columns at a site, each counting by how well its amplitude suits."""
    index, distance = lattice.index_of(places)
    expected = lattice.amplitude[index[:, 2]]
    scale = float(np.median(amplitudes)) / max(float(np.median(expected)), 1e-12)
    unlike = np.abs(amplitudes - scale * expected) / max(float(np.median(amplitudes)), 1e-12)
    return float(np.mean((distance < reach) * (1 - np.minimum(unlike, 1.0))))


def _numbered(
    places: Float64, lattice: Lattice, shift: Float64, window: Bool, reach: float
) -> tuple[Int64, Bool]:
    index, distance = lattice.index_of(places + shift)
    known = window & (distance < reach)
    return index, known


def _stretch(sites: Float64, places: Float64) -> float:
    """Largest principal stretch of the map from places to sites, beside 1."""
    design = np.column_stack([places - places.mean(axis=0), np.ones(len(places))])
    off = sites - places
    weight = np.ones(len(places))
    for _ in range(4):
        answer, *_ = np.linalg.lstsq(design * weight[:, None], off * weight[:, None], rcond=None)
        rest = np.hypot(*(off - design @ answer).T)
        weight = np.sqrt(np.minimum(1.0, max(1.5 * float(np.median(rest)), 1e-9) / np.maximum(rest, 1e-12)))
    return float(np.linalg.norm(answer[:2], 2))


def _sublattices_agree(lattice: Lattice, seen: ColumnsSeen) -> bool:
    """Whether the columns are as bright as their places in the basis say, rather than the opposite."""
    which = seen.index[:, 2]
    present = np.flatnonzero(np.bincount(which, minlength=len(lattice.basis)) >= FEWEST_COLUMNS // 2)
    if len(present) < 2:
        return True
    level = np.array([np.median(seen.fits.amplitude[which == b]) for b in present])
    expected = lattice.amplitude[present]
    low, high = int(expected.argmin()), int(expected.argmax())
    contrast = (expected[high] - expected[low]) / max(float(expected.mean()), 1e-12)
    # Below a tenth the brightness does not tell them apart.
    return bool(contrast < 0.1 or level[high] > level[low])


class _SiteMemory:
    """Running sums of each site's residuals, in the order of the sites' keys."""

    _NAMES = ("site_key", "site_count", "site_sum", "site_square", "site_variance")

    def __init__(self) -> None:
        self._key = np.zeros(0, dtype=np.int64)
        self._count = np.zeros(0, dtype=np.int64)
        self._sum, self._square, self._variance = (np.zeros((0, 2)) for _ in range(3))
        self._near = np.zeros((0, 0), dtype=np.int64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        values = (self._key, self._count, self._sum, self._square, self._variance)
        return {name: value.copy() for name, value in zip(self._NAMES, values, strict=True)}

    @classmethod
    def restored(cls, arrays: dict[str, NDArray[Any]], lattice: Lattice | None) -> _SiteMemory:
        memory = cls()
        memory._key, memory._count, memory._sum, memory._square, memory._variance = (
            arrays[name].copy() for name in cls._NAMES
        )
        if lattice is not None and len(memory._key):
            memory._find_neighbours(lattice)
        return memory

    def learn(self, index: Int64, residual_px: Float64, variance_px2: Float64, lattice: Lattice) -> None:
        """Add one frame's residuals ``(n, 2)``: seen minus expected."""
        key = _key_of(index)
        self._make_room(key)
        at = np.searchsorted(self._key, key)
        self._count[at] += 1
        self._sum[at] += residual_px
        self._square[at] += residual_px**2
        self._variance[at] += variance_px2
        if len(self._near) != len(self._key):
            self._find_neighbours(lattice)

    def excess(self, index: Int64) -> Float64:
        """Variance ``(n, 2)`` by which each site moves, or lies aside, beyond noise and neighbours."""
        result = np.zeros((len(index), 2))
        if not len(self._key):
            return result
        key = _key_of(index)
        at = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        known = self._key[at] == key
        result[known] = self._excess()[at[known]]
        return result

    def residuals(self, lattice: Lattice) -> SiteResiduals:
        index = _index_of(self._key)
        count = np.maximum(self._count, 1)[:, None]
        mean = self._sum / count
        scatter = np.sqrt(np.maximum(self._square / count - mean**2, 0.0))
        return SiteResiduals(
            index=index,
            sites_px=lattice.place_of(index),
            mean_px=mean,
            scatter_px=scatter,
            count=self._count.copy(),
            moves=np.asarray(self._excess().any(axis=1)),
        )

    def _excess(self) -> Float64:
        judged = self._count >= _FRAMES_TO_JUDGE
        excess = np.zeros((len(self._key), 2))
        if judged.sum() < FEWEST_COLUMNS:
            return excess
        counts, which = np.unique(np.maximum(self._count, 2), return_inverse=True)
        n = counts[which][:, None].astype(np.float64)
        mean = self._sum / n
        scatter2 = np.maximum(self._square / n - mean**2, 0.0) * n / (n - 1)
        noise = np.maximum(self._variance / n, 1e-12)
        # Jitter and what the field does not follow are the same for all: the usual ratio takes them in.
        usual = np.maximum(np.median((scatter2 / noise)[judged], axis=0), 1e-12)
        ratio = scatter2 / (noise * usual)
        most = chi2.isf(_BY_CHANCE, counts - 1) / (counts - 1)
        moving = judged[:, None] & (ratio > most[which][:, None])
        excess[moving] += ((ratio - 1) * noise * usual)[moving]
        aside2 = self._aside(mean, judged) ** 2
        beyond = aside2 - 16 * noise * usual / n
        lying = judged[:, None] & (beyond > 0)
        excess[lying] += beyond[lying]
        return excess

    def _aside(self, mean: Float64, judged: Bool) -> Float64:
        """How far each site is from what its neighbours say: a strain that they share is not its own."""
        if len(self._near) != len(mean):
            return np.zeros_like(mean)
        aside: Float64 = mean - _usual_around(mean, self._near, judged)
        return aside

    def _find_neighbours(self, lattice: Lattice) -> None:
        places = lattice.place_of(_index_of(self._key))
        self._near = cKDTree(places).query(places, k=min(9, len(places)))[1][:, 1:].astype(np.int64)

    def _make_room(self, key: Int64) -> None:
        new = np.setdiff1d(key, self._key)
        if not new.size:
            return
        every = np.concatenate([self._key, new])
        order = np.argsort(every, kind="stable")
        self._key = every[order]
        self._count = np.concatenate([self._count, np.zeros(new.size, dtype=np.int64)])[order]
        more = np.zeros((new.size, 2))
        self._sum, self._square, self._variance = (
            np.concatenate([values, more])[order] for values in (self._sum, self._square, self._variance)
        )
        self._near = np.zeros((0, 0), dtype=np.int64)


@njit(cache=True)
def _usual_around(mean: Float64, near: Int64, judged: Bool) -> Float64:
    """Median ``(n, 2)`` of each site's judged neighbours; of fewer than three, what the site says itself."""
    found = mean.copy()
    values = np.empty(near.shape[1])
    for i in range(len(near)):
        for axis in range(mean.shape[1]):
            count = 0
            for place in near[i]:
                if judged[place]:
                    values[count] = mean[place, axis]
                    count += 1
            if count >= 3:
                found[i, axis] = np.median(values[:count])
    return found


def _key_of(index: Int64) -> Int64:
    """One number for each site, in the order of cells and places."""
    key: Int64 = ((index[:, 0] + _CELLS // 2) * _CELLS + index[:, 1] + _CELLS // 2) * 64 + index[:, 2]
    return key


def _index_of(key: Int64) -> Int64:
    cell, place = np.divmod(key, 64)
    first, second = np.divmod(cell, _CELLS)
    return np.stack([first - _CELLS // 2, second - _CELLS // 2, place], axis=1)
