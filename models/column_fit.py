"""Fit all columns of a frame together: positions, heights, one width, and what lies between them.

A frame is a background that varies slowly plus one Gaussian spot for each column, all equally wide. The
noise is as of counts: its variance grows with what is expected. Fisher scoring climbs the (quasi-)likelihood
of all pixels; columns whose spots overlap are solved for together, by conjugate gradients on the sparse
information matrix. For Poisson counts the fixed point is the maximum of the likelihood.

Positions are ``(row, col)`` in pixels. What is summed over pixels, and the columns' equations, come in two
halves, which threads may do side by side; bits do not depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models import spot_pixels
from models.blur import blurred
from models.close_pairs import close_pairs
from models.side_by_side import Result, side_by_side
from models.spot_pixels import REACH, Profiles
from models.spot_system import basins, in_bands, marginal, neighbours, solved

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

_COUPLED = 5.5  # widths: columns further apart tell nothing of each other's places
_BLOCK = 12.0  # widths from one node of the background to the next
_STEP = 0.5  # widths that a column may move at once,
_BASIN = 1.0  # and in all
_CLOSE, _LEAST_BASIN = 0.45, 0.1  # of the distance to the nearest neighbour, and widths: no fit goes further
_AT_EDGE = 1.0  # widths from the edge or beyond: how far out a column is can be told less well
_LIKELY_HEIGHT = 0.3  # sd of its height beside a typical one
_FLANK_SD, _FLANK_PART = 4.0, 0.08  # from which on a bump at the edge is a column's flank
_LOOSE = 1.0  # sd, in widths, with which a place is held near its candidate: far more than it is off by
_CLIPPED_SD, _CLIPPED_PART = 5.0, 0.5  # residuals count up to so many sd, plus a part of the spots there
_SOLVED = 1e-2  # of the gradient's norm: another step follows, or none matters
_MOST_DIRECTIONS = 20
_WIDTHS = (0.7, 0.84, 1.0, 1.2, 1.44, 1.73)  # times the first one, tried before anything is fitted
_MIDDLE_PX = 96  # of the frame, each way, in which they are
_WIDTH_STEP = 0.15
_MOST_WIDTH = 1.4  # times the one to begin with, or divided by it
_DEAD_BAND = 1.25  # of chi², for its own scatter
_WORST_CHI2 = 4.0  # times the usual one: beyond, a fit is not believed
_AROUND = 2.0  # widths of the bell against which a missed column has to stand out
_BINNED_PX = 0.9  # least width of a bell in pixels for it
_MISSED_SD = 4.0  # from which on it is said
_MISSED_APART = 1.5  # widths from any other: nearer, it is the shape of that one
_WHOLE = 3.0  # widths from the edge: nearer, a column is not seen whole
_SAMPLED = 20_000  # pixels are enough to say a median


@dataclass(frozen=True, slots=True)
class NoiseLaw:
    """Variance of a pixel, given what is expected there: ``max(constant + gain * expected, floor)``.

    Counts are ``NoiseLaw(0, 1, 0.1)``. Where pixels are correlated, it is the variance that white noise
    would have with the same power at the frequencies of a column.
    """

    constant: float = 0.0
    gain: float = 1.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not (self.floor > 0 and math.isfinite(self.constant) and math.isfinite(self.gain)):
            raise ValueError(f"{self} is no variance; floor must be above 0 and the rest finite")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointFit:
    """The columns of one frame, fitted together.

    Attributes
    ----------
    positions_px
        ``(row, col)``, shape ``(n, 2)``; the candidate's own where the fit is not good.
    covariance_px2
        Of the positions, shape ``(n, 2, 2)``: from the Fisher information, with neighbours, amplitude and
        background unknown, and widened where the spot fits worse than others do.
    amplitude
        Height above the background, shape ``(n,)``, in the unit of the image.
    amplitude_sd
        Its standard deviation, shape ``(n,)``.
    background
        Level below each column, shape ``(n,)``.
    chi2
        Mean squared residual around the middle in units of the noise, shape ``(n,)``.
    good
        Fits that stayed near their candidates and look like the rest, shape ``(n,)``.
    sigma_px
        Width of a column along ``(row, col)``.
    missed_px
        Where what is left of the image looks like one more column, ``(row, col)``, shape ``(m, 2)``.
    missed_amplitude, missed_significance
        Its height, and that in standard deviations of the noise or of what is left anywhere, whichever
        are larger, of shape ``(m,)``.
    double
        Columns that look like two, shape ``(k,)``.
    double_px
        Where the two would be, the higher one first, shape ``(k, 2, 2)``.
    """

    positions_px: Float64
    covariance_px2: Float64
    amplitude: Float64
    amplitude_sd: Float64
    background: Float64
    chi2: Float64
    good: Bool
    sigma_px: tuple[float, float]
    missed_px: Float64
    missed_amplitude: Float64
    missed_significance: Float64
    double: Int64
    double_px: Float64


def fit_jointly(
    image: Float32,
    candidates_px: Float64,
    heights: Float64,
    sigma_px: tuple[float, float],
    noise: NoiseLaw,
    *,
    is_width_free: bool = True,
    iterations: int = 2,
    threads: int = 1,
) -> JointFit:
    """Fit all columns of a frame, each with its neighbours in the model.

    Parameters
    ----------
    image
        Shape ``(rows, cols)``; columns are brighter than their surroundings. Pixels that are not finite do
        not count.
    candidates_px
        About where columns are, shape ``(n, 2)``. Those just beyond the edge may be among them.
    heights
        About how high they are above the background, in any unit, shape ``(n,)``.
    sigma_px
        Width along ``(row, col)``.
    noise
        Of the image.
    is_width_free
        Fit one factor to both widths.
    iterations
        Steps of Fisher scoring; 2 suffice from a third of a width.
    threads
        1 or 2; the result is the same.

    Raises
    ------
    ValueError
        If a shape or a width is wrong.
    """
    picture, places, likely = _checked(image, candidates_px, heights, sigma_px)
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it takes 1 and more")
    fit = _Fit(picture, places, likely, sigma_px, noise, is_width_free=is_width_free, threads=threads)
    fit.start()
    for _ in range(iterations):
        fit.improve()
    return fit.result()


def likeliest_sigma(
    image: Float32,
    candidates_px: Float64,
    heights: Float64,
    sigma_px: tuple[float, float],
    *,
    threads: int = 1,
) -> tuple[float, float]:
    """Choose the width of spots that leaves least of the middle of a frame, before anything is fitted.

    A step of scoring cannot: where columns overlap, a width as guessed from a spectrum may be a third off,
    and a wider spot looks much like a higher background.

    Parameters
    ----------
    image, candidates_px, heights, sigma_px, threads
        As in ``fit_jointly``; widths of 0.7 to 1.7 times the one given are tried.

    Returns
    -------
    sigma_px
        Along ``(row, col)``.
    """
    picture, places, likely = _checked(image, candidates_px, heights, sigma_px)
    if not len(places):
        return sigma_px
    middle = [slice(max(0, n // 2 - _MIDDLE_PX), n // 2 + _MIDDLE_PX) for n in picture.shape]
    part = np.ascontiguousarray(picture[middle[0], middle[1]])
    places -= np.array([middle[0].start, middle[1].start])
    first, reach = np.array(sigma_px), REACH * _WIDTHS[-1] * np.array(sigma_px)
    near = np.all((places > -reach) & (places < np.array(part.shape) + reach), axis=1)

    def left_with(factor: float) -> float:
        fit = _Fit(part, places[near], likely[near], _pair(first * factor), NoiseLaw(), is_width_free=False)
        return fit.left_over()

    left = side_by_side([partial(left_with, factor) for factor in _WIDTHS], threads)
    best = int(np.argmin(left))
    factor = _WIDTHS[best]
    if 0 < best < len(left) - 1:
        # In equal steps of its logarithm: the vertex of a parabola through three.
        below, above = left[best - 1] - left[best], left[best + 1] - left[best]
        factor *= (_WIDTHS[1] / _WIDTHS[0]) ** (0.5 * (below - above) / max(below + above, 1e-30))
    return _pair(first * factor)


def _checked(
    image: Float32, candidates_px: Float64, heights: Float64, sigma_px: tuple[float, float]
) -> tuple[Float32, Float64, Float64]:
    picture = np.ascontiguousarray(image, dtype=np.float32)
    places = np.array(candidates_px, dtype=np.float64).reshape(-1, 2)
    likely = np.array(heights, dtype=np.float64)
    if picture.ndim != 2 or not picture.size:
        raise ValueError(f"image has shape {picture.shape}; it takes (rows, cols)")
    if likely.shape != (len(places),):
        raise ValueError(f"heights has shape {likely.shape} for {len(places)} candidates; it takes one each")
    if not all(0.3 <= sigma < math.inf for sigma in sigma_px):
        raise ValueError(f"sigma_px is {sigma_px}; it takes 0.3 and more along each axis")
    if not (np.isfinite(places).all() and np.isfinite(likely).all()):
        raise ValueError("a candidate or its height is not finite; leave it out")
    return picture, places, likely


class _Fit:
    """The state of a fit: parameters, the image that they draw, and what the pixels say of both.

    In here a column's unknowns are ``(row, col, log amplitude)``, places in widths, so that a spot's slopes
    along them are the spot itself times ``(row, col)`` from its middle and times 1.
    """

    def __init__(
        self,
        image: Float32,
        places: Float64,
        heights: Float64,
        sigma_px: tuple[float, float],
        noise: NoiseLaw,
        *,
        is_width_free: bool,
        threads: int = 1,
    ) -> None:
        self.image, self.noise, self.is_width_free, self.threads = image, noise, is_width_free, threads
        self.sigma = self.first_sigma = np.array(sigma_px, dtype=np.float64)
        self.count = len(places)
        self._take(np.column_stack([places, np.maximum(heights, 1e-12)]), np.arange(self.count))
        # All spots; by how much they grow with the width; weight of a pixel; its weighted residual.
        rows, cols = image.shape
        margin = spot_pixels.length_of(_MOST_WIDTH * max(sigma_px))
        self.drawn, self.growth, self.weight, self.score = np.zeros((4, rows, cols + margin), np.float32)
        edges = np.array(image.shape) - 1
        nodes = np.maximum(2, np.rint(edges / (_BLOCK * self.sigma)).astype(np.int64) + 1)
        self.background = np.zeros(tuple(nodes))
        self.tents = spot_pixels.tents(int(nodes[1]), cols)

    def _take(self, spots: Float64, number: Int64) -> None:
        """Take spots in an order in which those next to each other are so in memory."""
        order = in_bands(spots[:, :2] / self.sigma, _COUPLED)
        self.spots, self.number = spots[order], number[order]
        self.candidates = self.spots[:, :2].copy()

    def _halves(
        self, length: int, part: Callable[[int, int], Result], *others: Callable[[], Result]
    ) -> list[Result]:
        """Do something from a begin to an end, in two parts, and other things beside."""
        middle = length // 2
        halves = partial(part, 0, middle), partial(part, middle, length)
        return side_by_side([*others, *halves], self.threads)

    def start(self) -> None:
        """Find level, heights and width, and the columns beyond the edges, before anything moves."""
        self._level_out()
        beyond = self._beyond()
        self._take(
            np.concatenate([self.spots, beyond]),
            np.concatenate([self.number, self.count + np.arange(len(beyond))]),
        )
        self.likely_height = self.spots[:, 2].copy()
        scaled = self.candidates / self.sigma
        self.first, self.other, self.back = neighbours(scaled, _COUPLED)
        self.basin = basins(scaled, self.first, self.other, _BASIN, _CLOSE, _LEAST_BASIN)
        last = (np.array(self.image.shape) - 1) / self.sigma
        self.is_at_edge = ~np.all((scaled > _AT_EDGE) & (scaled < last - _AT_EDGE), axis=1)
        self.basin[self.is_at_edge] *= 2
        self.is_held = np.zeros(len(self.spots), dtype=np.bool_)

    def _level_out(self) -> None:
        """Bring heights and background to the unit of the image, by each block's best line."""
        level, factor = self._line(self._look_alike())
        self.background += level
        usual = float(np.median(factor))
        if usual > 0:
            factor = np.clip(factor, usual / 3, usual * 3)
            self.spots[:, 2] *= _at(factor, self.spots, self.image.shape)

    def left_over(self) -> float:
        """Sum of squares that spots of this width leave of the image as it is, each block at its best."""
        level, factor = self._line(self._look_alike())
        change = self._along_rows(level), self._along_rows(factor)
        return float(spot_pixels.left_over(*change, self.weight, self.score, self.drawn))

    def _along_rows(self, nodes: Float64) -> Float32:
        along: Float32 = nodes.astype(np.float32) @ self.tents
        return along

    def _look_alike(self) -> Float64:
        """Draw the spots, all pixels weighing alike; see ``_line`` for what comes back."""
        self.profiles = seen = Profiles.of(self.spots, self.sigma)

        def rows(begin: int, end: int) -> Float64:
            spot_pixels.draw(self.drawn, self.spots, seen.first, seen.bell, begin, end)
            spot_pixels.without_gaps(self.image, self.score, self.weight, begin, end)
            return self._sums(begin, end)

        upper, lower = self._halves(len(self.image), rows)
        return upper + lower

    def _beyond(self) -> Float64:
        """Guess the columns whose middle is outside the frame, from the flanks that reach into it.

        Without them those just inside would be drawn to the edge. Each is taken to be as high as a typical
        column, which says how far out it is.

        Returns
        -------
        spots
            ``(row, col, amplitude)``, shape ``(k, 3)``.
        """
        if not self.count:
            return np.empty((0, 3))
        self._look(with_growth=False)
        height = float(np.median(self.spots[:, 2]))
        found = [np.empty((0, 3))]
        for axis in (0, 1):
            for is_far in (False, True):
                along, outward = self._flanks(axis, height, is_far=is_far)
                edge = self.image.shape[axis] - 1 + outward if is_far else -outward
                places = np.column_stack([edge, along] if axis == 0 else [along, edge])
                found.append(np.column_stack([places, np.full(len(along), height)]))
        return np.concatenate(found)

    def _flanks(self, axis: int, height: float, *, is_far: bool) -> tuple[Float64, Float64]:
        """Bumps of the residual along one edge: where along it, and how far out their columns would be."""
        across, along = self.sigma[axis], self.sigma[1 - axis]
        deep, cols = math.ceil(across), self.image.shape[1]
        strip = slice(-deep, None) if is_far else slice(0, deep)
        weight = np.moveaxis(self.weight[:, :cols], axis, 0)[strip].sum(axis=0, dtype=np.float64)
        score = np.moveaxis(self.score[:, :cols], axis, 0)[strip].sum(axis=0, dtype=np.float64)
        reach = np.arange(-math.ceil(3 * along), math.ceil(3 * along) + 1)
        bell = np.exp(-0.5 * (reach / along) ** 2)
        inner = slice(len(reach) // 2, len(reach) // 2 + len(score))
        told = np.convolve(score, bell)[inner]
        info = np.convolve(weight, bell**2)[inner] + 1e-30
        bump, sd = told / info, 1 / np.sqrt(info)
        is_top = (bump[1:-1] >= bump[:-2]) & (bump[1:-1] > bump[2:])
        top = (
            np.flatnonzero(is_top & (bump[1:-1] > np.maximum(_FLANK_SD * sd[1:-1], _FLANK_PART * height))) + 1
        )
        # The middle of the strip lies half a width inside.
        part = np.minimum(bump[top] / height, 0.9)
        return top.astype(np.float64), across * np.maximum(np.sqrt(-2 * np.log(part)) - 0.5, 0.1)

    def _look(self, *, with_growth: bool) -> Float64:
        """Compare what is drawn with the image; see ``_line`` for what comes back."""
        law = (self.noise.constant, self.noise.gain, self.noise.floor)
        clip = (_CLIPPED_SD, _CLIPPED_PART)
        spots, drawn, ground = self.spots, self.drawn, self._along_rows(self.background)
        self.profiles = seen = Profiles.of(spots, self.sigma)

        def rows(begin: int, end: int) -> Float64:
            if with_growth:
                spot_pixels.draw_growth(self.growth, spots, seen.first, seen.bell, seen.away, begin, end)
            spot_pixels.draw(drawn, spots, seen.first, seen.bell, begin, end)
            spot_pixels.weigh(self.image, drawn, ground, law, clip, self.weight, self.score, begin, end)
            return self._sums(begin, end)

        upper, lower = self._halves(len(self.image), rows)
        return upper + lower

    def _sums(self, begin: int, end: int) -> Float64:
        sums = np.zeros((5, *self.background.shape))
        cols = self.image.shape[1]
        spot_pixels.add_blocks(cols, self.score, self.weight, self.drawn, sums, begin, end)
        return sums

    @staticmethod
    def _line(sums: Float64) -> tuple[Float64, Float64]:
        """Fit level and a factor to the spots' heights, around each node, to the residual.

        One by one they would follow slowly where spots leave little ground between them.

        Parameters
        ----------
        sums
            At the nodes, of weights, of weighted spots and their squares, of residuals and their products
            with spots.

        Returns
        -------
        level, factor
            To be added at the nodes.
        """
        w, wt, wtt, wr, wtr = sums
        # A block without spots has a level only.
        wtt = wtt + 1e-6 * wtt.max() + 1e-30
        w = w + 1e-6 * w.max() + 1e-30
        determinant = np.maximum(w * wtt - wt**2, 1e-3 * w * wtt)
        factor = (w * wtr - wt * wr) / determinant
        return (wtt * wr - wt * wtr) / determinant, factor

    def improve(self) -> None:
        """Take one step of Fisher scoring, after background and heights have followed block by block."""
        level, factor = self._line(self._look(with_growth=True))
        factor = np.clip(factor, -0.5, 1.0)
        self.background += level
        self.spots[:, 2] *= 1 + _at(factor, self.spots, self.image.shape)
        width = self._follow(level, factor)
        info, (score, with_width), between, _ = self._told()
        self._hold(info, score)
        step, wider = solved(
            info, score, between, self.first, self.other, with_width, width, _SOLVED, _MOST_DIRECTIONS
        )
        self._move(step, wider)

    def _follow(self, level: Float64, factor: Float64) -> tuple[float, float]:
        """Follow the background and the heights with what is drawn, and what is left of the image.

        Returns
        -------
        info, score
            Of the logarithm of the width; a width that is held has score 0.
        """
        change = self._along_rows(level), self._along_rows(factor)
        planes = self.weight, self.score, self.drawn, self.growth
        info, score = np.sum(
            self._halves(
                len(self.image),
                lambda begin, end: spot_pixels.follow(*change, *planes, begin, end),
            ),
            axis=0,
        )
        return (float(info) + 1.0, float(score)) if self.is_width_free else (1.0, 0.0)

    def _told(self, *others: Callable[[], Any]) -> tuple[Float64, Float64, Float64, list[Any]]:
        """Say of the columns what their pixels know of them; do other things beside.

        Returns
        -------
        info, told, between, results
            Information of each; its score and what it shares with the plane ``growth``; what neighbours
            share; what the others gave.
        """
        n, seen = len(self.spots), self.profiles
        info, told = np.empty((n, 3, 3)), np.empty((2, n, 3))
        between = np.empty((len(self.other), 3, 3))
        pairs = self.first, self.other, self.back, between

        def columns(begin: int, end: int) -> None:
            profiles = self.spots, seen.first, seen.bell, seen.away
            spot_pixels.tell(self.weight, self.score, self.growth, *profiles, info, told, begin, end)
            spot_pixels.tell_pairs(self.weight, *profiles, *pairs, begin, end)

        results = self._halves(n, columns, *others)
        return info, told, between, results[: len(others)]

    def _hold(self, info: Float64, score: Float64) -> None:
        """Hold places loosely near their candidates, and firmly where a fit had left its basin."""
        for axis in (0, 1):
            away = (self.spots[:, axis] - self.candidates[:, axis]) / self.sigma[axis]
            score[:, axis] -= away / _LOOSE**2
            info[:, axis, axis] += np.where(self.is_held, 1e12, 1 / _LOOSE**2)
        # How far out a column is and how high it is look alike.
        firm = np.where(self.is_at_edge, 1 / _LIKELY_HEIGHT**2, 0)
        score[:, 2] -= firm * (self.spots[:, 2] / self.likely_height - 1)
        info[:, 2, 2] += firm + 1e-2

    def _move(self, step: Float64, wider: float) -> None:
        scale = np.minimum(1, _STEP / np.maximum(np.sqrt(step[:, 0] ** 2 + step[:, 1] ** 2), 1e-30))
        self.spots[:, :2] += step[:, :2] * scale[:, None] * self.sigma
        self.spots[:, 2] *= np.clip(1 + step[:, 2], 0.3, 3.0)
        left = np.sum(((self.spots[:, :2] - self.candidates) / self.sigma) ** 2, axis=1) > self.basin**2
        self.is_held |= left
        self.spots[left, :2] = self.candidates[left]
        if self.is_width_free:
            factor = math.exp(min(max(wider, -_WIDTH_STEP), _WIDTH_STEP))
            ratio = min(
                max(float(self.sigma[0] / self.first_sigma[0]) * factor, 1 / _MOST_WIDTH), _MOST_WIDTH
            )
            self.sigma = self.first_sigma * ratio

    def result(self) -> JointFit:
        """Say where the columns are, and how well that is known."""
        self._look(with_growth=False)
        # What makes a level of the background is alike everywhere.
        self.growth.fill(1)
        info, (_, with_level), between, [missed] = self._told(self._missed)
        info[:, 2, 2] += np.where(self.is_at_edge, 1 / _LIKELY_HEIGHT**2, 1e-2)
        block = math.prod(_BLOCK * self.sigma)
        level = float(self.weight.sum(dtype=np.float64)) / self.image.size * block + 1e-30
        info -= with_level[:, :, None] * with_level[:, None, :] / level
        covariance, chi2 = np.empty_like(info), np.empty(len(info))
        seen, shape = self.profiles, np.empty((len(info), 3))

        def columns(begin: int, end: int) -> None:
            marginal(info, between, self.first, self.other, covariance, begin, end)
            profiles = self.spots, seen.first, seen.bell, seen.away
            spot_pixels.tell_shape(self.weight, self.score, *profiles, shape, begin, end)
            spot_pixels.misfit(
                self.weight, self.score, self.image.shape[1], self.spots, self.sigma, chi2, begin, end
            )

        self._halves(len(info), columns)
        own = np.argsort(self.number)[: self.count]  # as the candidates came, without those beyond the edge
        covariance, chi2, spots = covariance[own], chi2[own], self.spots[own]
        # A drawn frame has no noise, and then the smallest misfit is many times the usual one.
        usual = max(float(np.median(chi2)), 0.1) if self.count else 1.0
        misfit = max(usual, 1.0) * np.clip(chi2 / (_DEAD_BAND * usual), 1, _WORST_CHI2)
        covariance *= misfit[:, None, None]
        good = ~self.is_held[own] & (chi2 < _WORST_CHI2 * usual)
        missed_px, missed_amplitude, missed_significance = missed
        double, double_px = self._double(own, shape)
        return JointFit(
            positions_px=np.where(good[:, None], spots[:, :2], self.candidates[own]),
            covariance_px2=covariance[:, :2, :2] * np.outer(self.sigma, self.sigma),
            amplitude=spots[:, 2].copy(),
            amplitude_sd=spots[:, 2] * np.sqrt(covariance[:, 2, 2]),
            background=_at(self.background, spots, self.image.shape),
            chi2=chi2,
            good=good,
            sigma_px=_pair(self.sigma),
            missed_px=missed_px,
            missed_amplitude=missed_amplitude,
            missed_significance=missed_significance,
            double=double,
            double_px=double_px,
        )

    def _double(self, own: Int64, shape: Float64) -> tuple[Int64, Float64]:
        """Look for columns that are two among those seen whole; see ``JointFit``."""
        row, col = self.spots[own, 0], self.spots[own, 1]
        (down, along), (rows, cols) = _WHOLE * self.sigma, self.image.shape
        whole = np.flatnonzero((row > down) & (row < rows - down) & (col > along) & (col < cols - along))
        planes, of = (self.weight[:, :cols], self.score[:, :cols]), own[whole]
        which, places = close_pairs(*planes, self.spots[of], self.sigma, shape[of])
        return whole[which], places

    def _missed(self) -> tuple[Float64, Float64, Float64]:
        """Look in what is left of the image for what is as wide as a column; see ``JointFit``.

        Against a wider bell, so that a background which varies is none.
        """
        # A bell as narrow as a pixel and a half is known by its pixels as well as a wide one is by many.
        side = max(1, int(self.sigma.min() / _BINNED_PX))
        cols = self.image.shape[1]
        score, precision = (spot_pixels.binned(plane, cols, side) for plane in (self.score, self.weight))
        sigma, wide = _pair(self.sigma / side), _pair(_AROUND * self.sigma / side)
        told = blurred(score, sigma) - blurred(score, wide)
        weight = blurred(precision, sigma)
        area = math.pi * math.prod(sigma)
        # Of bells of sum 1: the sum of the squares of their difference, and what of a spot's height is seen.
        energy = (1 + _AROUND**-2 - 4 / (1 + _AROUND**2)) / (4 * area)
        seen = 0.5 - 1 / (1 + _AROUND**2)
        peak = spot_pixels.tops(told)
        row, col = peak.T
        known = np.maximum(weight[row, col].astype(np.float64), 1e-30)
        height = told[row, col].astype(np.float64) / known
        step = max(1, math.isqrt(told.size // _SAMPLED))
        part = told[::step, ::step] / np.maximum(weight[::step, ::step], np.float32(1e-30))
        unit = np.maximum(np.sqrt(energy / known), 1.4826 * float(np.median(np.abs(part))))
        significance = height / unit
        keep = significance > _MISSED_SD
        places = side * peak[keep].astype(np.float64) + 0.5 * (side - 1)
        free = _is_far(places / self.sigma, self.spots[:, :2] / self.sigma, _MISSED_APART)
        return places[free], height[keep][free] / seen, significance[keep][free]


def _pair(sigma: Float64) -> tuple[float, float]:
    return float(sigma[0]), float(sigma[1])


def _at(nodes: Float64, places: Float64, shape: tuple[int, ...]) -> Float64:
    """Interpolate values at nodes, which span the frame, at places; beyond the edge they stay."""
    value: Float64 = np.empty(len(places))
    spot_pixels.interpolate(nodes, places, float(shape[0] - 1), float(shape[1] - 1), value)
    return value


@njit(cache=True, nogil=True)
def _is_far(places: Float64, others: Float64, least: float) -> Bool:
    """Mark the places that are further than this from all others."""
    far = np.ones(len(places), dtype=np.bool_)
    for i in range(len(places)):
        for j in range(len(others)):
            down, along = places[i, 0] - others[j, 0], places[i, 1] - others[j, 1]
            if down * down + along * along <= least * least:
                far[i] = False
                break
    return far
