"""Find the atom columns of a frame: candidates by a network or a filter, all then fitted together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.close_pairs import LEAST_APART
from models.column_fit import JointFit, fit_jointly, likeliest_sigma
from models.laplacian_finder import FilteredFrame, FrameView, Spectrum
from models.spot_system import in_bands, neighbours
from streamer.channel_names import shows_dark_columns
from streamer.messages import Atoms, Float32, Frame
from streamer.position_covariance import of_correction
from streamer.stage import Rejected

if TYPE_CHECKING:
    from models.atom_finder import AtomFinder

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Polarity = Literal["auto", "bright", "dark"]
Method = Literal["auto", "network", "laplacian"]

_WIDTHS = (1.0, 1.2, 1.45)  # of a column beside what the spectrum says, tried with the network,
_MIDDLE_PX = 72  # so far from the middle of the frame, in pixels of the first scale
_MIRRORED = 12.0  # pixels of the network, beyond the edges of that middle
_LEAST_PX = 48  # of the network: a smaller frame shows too little around a column
_MISSED_SD, _MISSED_APART = 6.0, 0.7  # of what is left by a fit; of the usual distance of neighbours
_HALF_SD = 4.0  # of its height, from which on a half of a pair is one
_SAMPLED = 300  # columns are enough to say how far neighbours are
_SUREST = 0.999  # what is surer counts no more
_TELLING = 20.0  # of evidence, as of a dozen columns: from less than that no scale can be chosen
_WIDE_ENOUGH = 1.05  # times the narrowest column of the network's training: there is no need to enlarge
# Height below which a fit speaks against a column, and what takes a log odds of 1 each: in its standard
# deviations, and in heights of a strong column.
_SIGNIFICANT, _PER_SD = 2.5, 1 / 1.5
_DIM, _PER_CONTRAST = 0.15, 0.025
# Parts of the height of a strong column: what is lower and not believed is left to the noise; and believed or
# not. Of 12,200 columns of simulated crystals the least has 0.11, of 4,400 hollows taken for columns nine in
# ten less than 0.05.
_FAINT, _FLAT = 0.12, 0.035
_FITTED_FROM = 0.3  # of the confidence: a column that is not believed may still be there


class FindConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a column looks like, and from when it is believed.

    Attributes
    ----------
    method
        ``network`` finds candidates with the shipped network, ``laplacian`` with a filter that needs none;
        ``auto`` takes the network where its weights are.
    column_sigma_nm
        Standard deviation of a column's spot; 0 measures it in each frame.
    polarity
        ``bright`` or ``dark`` columns; ``auto`` takes dark for channels named BF or ABF, alone or as a word.
    min_distance_nm
        Of two maxima closer than this, the higher is kept. One that shows by its shape that it is two columns
        is two all the same.
    threshold_sigma
        Height of the filtered maximum, in standard deviations of its noise, that is believed
        with probability one half.
    threshold_contrast
        The same, as a part of the height of a strong column.
    min_confidence
        Columns below are left out, 0 to 1. On simulated images F1, which weighs what is wrongly found against
        what is missed, is highest at a third; an agent may ask for surer ones.
    max_atoms
        A frame with more maxima is refused: it is not a picture of columns.
    """

    method: Method = "auto"
    column_sigma_nm: float = 0.0
    polarity: Polarity = "auto"
    min_distance_nm: float = 0.07
    threshold_sigma: float = 3.5
    threshold_contrast: float = 0.2
    min_confidence: float = 0.35
    max_atoms: int = 20_000

    def __post_init__(self) -> None:
        if not 0 <= self.column_sigma_nm <= 10:
            raise ValueError(f"find.column_sigma_nm is {self.column_sigma_nm}; it takes 0 (measure it) to 10")
        if not 0 <= self.min_distance_nm <= 10:
            raise ValueError(f"find.min_distance_nm is {self.min_distance_nm}; it takes 0 to 10")
        if not 0 < self.threshold_sigma <= 100:
            raise ValueError(f"find.threshold_sigma is {self.threshold_sigma}; it takes above 0 to 100")
        if not 0 <= self.threshold_contrast < 1:
            raise ValueError(f"find.threshold_contrast is {self.threshold_contrast}; it takes 0 to below 1")
        if not 0 <= self.min_confidence < 1:
            raise ValueError(f"find.min_confidence is {self.min_confidence}; it takes 0 to below 1")
        if not 1 <= self.max_atoms <= 1_000_000:
            raise ValueError(f"find.max_atoms is {self.max_atoms}; it takes 1 to 1000000")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidates:
    """Where columns seem to be.

    Attributes
    ----------
    positions_px
        ``(row, col)`` in the frame, shape ``(n, 2)``.
    confidence, amplitude
        How surely, and how high above the background, each of shape ``(n,)``.
    covariance_px2
        How exactly the finder places each, shape ``(n, 2, 2)``.
    background
        Typical level below.
    sigma_px
        Width of a column along ``(row, col)``.
    """

    positions_px: Float64
    confidence: Float64
    amplitude: Float64
    covariance_px2: Float64
    background: float
    sigma_px: tuple[float, float]


class FindAtoms:
    """Find columns in the first channel, with sub-pixel positions and a confidence each.

    Parameters
    ----------
    config
        What a column looks like.
    threads
        That may share the work on a frame; more than two do no more. What is found does not depend on it.
    """

    name = "find"

    def __init__(self, config: FindConfig | None = None, threads: int = 1) -> None:
        self.config = config or FindConfig()
        self._network = _network(self.config.method)
        self._threads = threads

    def process(self, frame: Frame, /) -> Atoms:
        """Return the columns, none of them nearer to the border than two filter widths.

        The covariance of a position is that of the fit, neighbours being fitted with it, and that of the
        frame's correction. Where the fit of a column fails it stays where the filter saw it, and its
        covariance is that of the filter.

        ``amplitude`` and ``contrast`` are negative where columns are dark.

        Raises
        ------
        Rejected
            ``no atoms`` when nothing stands out, ``too many maxima`` for a frame without columns.
        """
        sign = -1.0 if self._is_dark(frame) else 1.0
        image = frame.image[0] if sign > 0 else -frame.image[0]
        pixel_nm = math.sqrt(math.prod(frame.geometry.pixel_size_nm))
        whole = _without_gaps(image)
        view, seen = self._seen(whole, pixel_nm, frame)
        if np.count_nonzero(seen.confidence >= self.config.min_confidence) > self.config.max_atoms:
            raise Rejected("too many maxima")
        if not len(seen.confidence):
            raise Rejected("no atoms")

        seen, fit = self._all_fitted(image, seen, view)
        confidence = seen.confidence
        if not isinstance(view, FilteredFrame):
            # Context makes a network sure of columns that no pixel shows: a fit has to see them as well.
            confidence = _seen_as_well(confidence, fit.amplitude, fit.amplitude_sd)
        inside = self._inside(seen.positions_px, view.filter_px, frame.geometry.shape)
        inside &= confidence >= self.config.min_confidence
        inside &= _is_seen(image, fit.positions_px)
        if not inside.any():
            raise Rejected("no atoms")
        positions, amplitude = fit.positions_px[inside], seen.amplitude[inside]
        covariance = self._covariance(fit, seen)[inside]
        covariance += of_correction(frame, positions, float(np.mean(fit.sigma_px)))
        contrast = max(float(np.median(amplitude)), 1e-6 * float(np.ptp(whole)))
        return Atoms(
            frame=frame,
            positions_px=positions.astype(np.float32),
            confidence=confidence[inside].astype(np.float32),
            amplitude=(sign * amplitude).astype(np.float32),
            background=sign * seen.background,
            contrast=sign * contrast,
            position_covariance_px2=covariance.astype(np.float32),
        )

    def _seen(self, image: Float32, pixel_nm: float, frame: Frame) -> tuple[FrameView, _Candidates]:
        """Candidates of the filter or of the network, and how wide a column is."""
        view = FrameView(image, pixel_nm, self.config.column_sigma_nm)
        network = self._network
        if network is None or min(image.shape) * _zoom_for(network, view.column_sigma_px) < _LEAST_PX:
            view = filtered = FilteredFrame(image, pixel_nm, self.config.column_sigma_nm)
            positions, confidence = self._maxima(filtered, frame)
            covariance = filtered.position_covariance(filtered.nearest_on_grid(positions))
            amplitude, background = view.heights(positions)
        else:
            positions, confidence, sd_px = self._from_network(network, image, view, frame)
            amplitude, background = view.heights(positions)
            positions_nm = positions * np.array(frame.geometry.pixel_size_nm)
            keep = _not_beside_higher(positions_nm, amplitude, self.config.min_distance_nm)
            keep &= self._is_worth_fitting(confidence, amplitude)
            positions, confidence, amplitude = positions[keep], confidence[keep], amplitude[keep]
            covariance = sd_px[keep][:, None, None] ** 2 * np.eye(2)
        sigma_px = self._sigma_px(image, view, positions, amplitude, frame)
        return view, _Candidates(
            positions_px=positions,
            confidence=confidence,
            amplitude=amplitude,
            covariance_px2=covariance,
            background=background,
            sigma_px=sigma_px,
        )

    def _is_worth_fitting(self, confidence: Float64, amplitude: Float64) -> Bool:
        """Mark what is believed and not next to flat, and what is high enough to draw others aside.

        The network can be sure of the hollows of a lattice that has no columns there. A fit would see that,
        but with them it has twice as many spots to move.
        """
        believed = confidence >= self.config.min_confidence
        strong = float(np.percentile(amplitude[believed], 75)) if believed.any() else 0.0
        return (amplitude > _FAINT * strong) | (believed & (amplitude > _FLAT * strong))

    def _fitted(self, image: Float32, seen: _Candidates, view: FrameView) -> JointFit:
        return fit_jointly(
            image,
            seen.positions_px,
            np.maximum(seen.amplitude, 0.1 * float(np.median(seen.amplitude))),
            seen.sigma_px,
            view.noise_law(),
            is_width_free=self.config.column_sigma_nm == 0,
            threads=self._threads,
        )

    def _all_fitted(self, image: Float32, seen: _Candidates, view: FrameView) -> tuple[_Candidates, JointFit]:
        """Fit what was seen, and again with what that leaves: columns that were missed, or fitted as one."""
        fit = self._fitted(image, seen, view)
        double, double_px = fit.double, fit.double_px
        while True:
            missed = self._missed(seen, fit, double_px, view)
            if not (len(missed.confidence) or len(double)):
                return seen, fit
            whole = _joined(self._split(seen, double, double_px, view), missed)
            again = self._fitted(image, whole, view)
            two = _are_two(again, double, len(seen.confidence) + np.arange(len(double)))
            if two.all():
                return whole, again
            double, double_px = double[two], double_px[two]

    @staticmethod
    def _split(seen: _Candidates, double: Int64, double_px: Float64, view: FrameView) -> _Candidates:
        """Put two in the place of some columns: the higher one where it was, the other one at the end."""
        if not len(double):
            return seen
        places, amplitude = seen.positions_px.copy(), seen.amplitude.copy()
        places[double], amplitude[double] = double_px[:, 0], view.heights(double_px[:, 0])[0]
        others = replace(
            seen,
            positions_px=double_px[:, 1],
            confidence=seen.confidence[double],
            amplitude=view.heights(double_px[:, 1])[0],
            covariance_px2=seen.covariance_px2[double],
        )
        return _joined(replace(seen, positions_px=places, amplitude=amplitude), others)

    def _missed(self, seen: _Candidates, fit: JointFit, double_px: Float64, view: FrameView) -> _Candidates:
        """Columns that no finder saw but that the fit leaves in the image: high, and as far as others are.

        What is left beside a column that is not quite a Gaussian is nearer than columns are.
        """
        config, usual = self.config, float(np.percentile(fit.amplitude, 75))
        sure = _logistic((fit.missed_significance - _MISSED_SD) / 0.7)
        sure *= _logistic((fit.missed_amplitude / usual - config.threshold_contrast) / 0.04)
        keep = (sure >= max(config.min_confidence, 0.5)) & (len(seen.confidence) > 2)
        places, scale = fit.missed_px[keep], 1 / np.array(fit.sigma_px)
        if len(places):
            tree = cKDTree(fit.positions_px * scale)
            some = tree.data[:: max(1, tree.n // _SAMPLED)]
            least = _MISSED_APART * float(np.median(tree.query(some, k=2)[0][:, 1]))
            columns = np.concatenate([fit.positions_px, double_px.reshape(-1, 2)])
            far = cKDTree(columns * scale).query(places * scale)[0] >= least
            far &= _not_beside_higher(places * scale, fit.missed_amplitude[keep], least)
            places, keep[keep] = places[far], far
        variance = (np.array(fit.sigma_px) / np.maximum(fit.missed_significance[keep, None], 1)) ** 2
        amplitude = view.heights(places)[0] if len(places) else np.zeros(0)
        return _Candidates(
            positions_px=places,
            confidence=sure[keep],
            amplitude=amplitude,
            covariance_px2=variance[:, :, None] * np.eye(2),
            background=seen.background,
            sigma_px=fit.sigma_px,
        )

    def _sigma_px(
        self, image: Float32, view: FrameView, positions: Float64, amplitude: Float64, frame: Frame
    ) -> tuple[float, float]:
        """Width of a column along ``(row, col)``: as the spectrum or the user says, or as spots fit best."""
        pixel_nm = np.array(frame.geometry.pixel_size_nm)
        sigma_row, sigma_col = view.column_sigma_px * math.sqrt(math.prod(pixel_nm)) / pixel_nm
        sigma_px = float(sigma_row), float(sigma_col)
        if self.config.column_sigma_nm == 0 and len(positions):
            sigma_px = likeliest_sigma(image, positions, amplitude, sigma_px, threads=self._threads)
        return sigma_px

    def _maxima(self, view: FilteredFrame, frame: Frame) -> tuple[Float64, Float64]:
        """Maxima of the filter that may be columns, with the confidence of each.

        Those that are not believed and those near the border are fitted too, or they would draw others aside.
        """
        confidence = self._confidence(view.height, view.noise)
        positions = view.candidates()
        keep = confidence >= min(_FITTED_FROM, self.config.min_confidence)
        keep &= np.all((positions >= 0) & (positions <= np.array(frame.geometry.shape) - 1), axis=1)
        positions, height, confidence = positions[keep], view.height[keep], confidence[keep]
        keep = _not_beside_higher(
            positions * np.array(frame.geometry.pixel_size_nm), height, self.config.min_distance_nm
        )
        return positions[keep], confidence[keep]

    def _from_network(
        self, network: AtomFinder, image: Float32, view: FrameView, frame: Frame
    ) -> tuple[Float64, Float64, Float64]:
        """Columns that the network finds, with the confidence of each, and how exactly it places them."""
        least = min(_FITTED_FROM, self.config.min_confidence)
        zoom = self._zoom(network, image, view)
        scaled, first, step = view.spectrum.at_scale(zoom)
        found = network.find(scaled, least, threads=self._threads)
        positions = first + step * found.positions_px.astype(np.float64)
        sd_px = found.sd_px.astype(np.float64) * float(step.mean())
        return positions, found.confidence.astype(np.float64), sd_px

    def _zoom(self, network: AtomFinder, image: Float32, view: FrameView) -> float:
        """Scale at which the network is surest of what it sees in the middle of the frame.

        The spectrum of a dense lattice is that of its ripple, which is narrower than a column would be: by a
        third on graphene. Evidence is the sum of ``-log(1 - confidence)`` over the same part of the frame.
        Single atoms have little of it, and no ripple: what the spectrum says of them holds.
        """
        if self.config.column_sigma_nm > 0:
            return _zoom_for(network, view.column_sigma_px)
        zooms = list(dict.fromkeys(_zoom_for(network, factor * view.column_sigma_px) for factor in _WIDTHS))
        if len(zooms) == 1:
            return zooms[0]
        half = math.ceil(_MIDDLE_PX / zooms[0])
        row, col = (slice(max(0, n // 2 - half), n // 2 + half) for n in image.shape)
        middle = Spectrum(image[row, col], _MIRRORED / min(zooms))
        evidence = []
        for zoom in zooms:
            sure = network.find(middle.at_scale(zoom)[0], _FITTED_FROM).confidence
            evidence.append(-float(np.log1p(-np.minimum(sure, _SUREST)).sum()))
        return zooms[int(np.argmax(evidence))] if max(evidence) > _TELLING else zooms[0]

    @staticmethod
    def _covariance(fit: JointFit, seen: _Candidates) -> Float64:
        """Of the fit, or of the finder where the fit of a column failed."""
        if fit.good.all():
            return fit.covariance_px2
        widest = np.maximum(seen.covariance_px2, fit.covariance_px2)
        return np.where(fit.good[:, None, None], fit.covariance_px2, widest)

    def _is_dark(self, frame: Frame) -> bool:
        if self.config.polarity == "auto":
            return shows_dark_columns(frame.channels[0])
        return self.config.polarity == "dark"

    def _confidence(self, height: Float32, noise: float) -> Float64:
        """Probability that a maximum of this height is a column: above the noise, and no mere ripple."""
        if height.size == 0:
            return np.zeros(0)
        significance = height / noise
        strong = height[significance > self.config.threshold_sigma]
        typical = float(np.percentile(strong, 75)) if strong.size else math.inf
        above_noise = _logistic((significance - self.config.threshold_sigma) / 0.7)
        above_ripple = _logistic((height / typical - self.config.threshold_contrast) / 0.04)
        return above_noise * above_ripple

    @staticmethod
    def _inside(positions_px: Float64, filter_px: float, shape: tuple[int, int]) -> Bool:
        margin = 2 * filter_px
        far = np.array(shape) - 1 - margin
        inside: Bool = np.all((positions_px >= margin) & (positions_px <= far), axis=1)
        return inside


def _not_beside_higher(positions_nm: Float64, height: NDArray[np.floating], min_distance_nm: float) -> Bool:
    """Mark what has no higher neighbour within the distance."""
    keep = np.ones(len(positions_nm), dtype=bool)
    if min_distance_nm > 0 and len(positions_nm) > 1:
        order = in_bands(positions_nm, min_distance_nm)
        first, other, _ = neighbours(positions_nm[order], min_distance_nm)
        one, other = order[np.repeat(np.arange(len(order)), np.diff(first))], order[other]
        # Of two that are equally high, the first one stays.
        is_lower = (height[one] < height[other]) | ((height[one] == height[other]) & (one > other))
        keep[one[is_lower]] = False
    return keep


def _are_two(fit: JointFit, one: Int64, other: Int64) -> Bool:
    """Mark the pairs of which both are seen, each of them far enough from the other and from all columns.

    A fainter one has to be farther off: beside a bright column it may be the trace of a jump.
    """
    pairs = np.stack([one, other])
    places, height = fit.positions_px / np.array(fit.sigma_px), fit.amplitude[pairs]
    apart = cKDTree(places).query(places[pairs], k=2)[0][..., 1]
    # Two as high as each other at this distance would be spread as widely.
    apart *= np.sqrt(height.prod(axis=0)) / height.mean(axis=0)
    is_seen = fit.good[pairs] & (height > _HALF_SD * fit.amplitude_sd[pairs])
    two: Bool = np.all((apart >= LEAST_APART) & is_seen, axis=0)
    return two


def _logistic(x: NDArray[np.floating]) -> Float64:
    return 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -50, 50)))


def _seen_as_well(confidence: Float64, height: Float64, height_sd: Float64) -> Float64:
    """Take off the log odds of columns what a fit says against them; for them it says nothing."""
    sure = np.clip(confidence, 1e-6, 1 - 1e-6)
    strong = max(float(np.percentile(height, 75)), 1e-6 * float(np.abs(height).max()), 1e-30)
    against = np.minimum(height / height_sd - _SIGNIFICANT, 0) / _PER_SD
    against += np.minimum(height / strong - _DIM, 0) / _PER_CONTRAST
    return _logistic(np.log(sure / (1 - sure)) + against)


def _joined(seen: _Candidates, more: _Candidates) -> _Candidates:
    """Put candidates together; widths are those of the second, which were fitted."""
    return _Candidates(
        positions_px=np.concatenate([seen.positions_px, more.positions_px]),
        confidence=np.concatenate([seen.confidence, more.confidence]),
        amplitude=np.concatenate([seen.amplitude, more.amplitude]),
        covariance_px2=np.concatenate([seen.covariance_px2, more.covariance_px2]),
        background=seen.background,
        sigma_px=more.sigma_px,
    )


def _without_gaps(image: Float32) -> Float32:
    """Fill pixels that are no numbers with the typical level."""
    is_number = np.isfinite(image)
    if is_number.all():
        return image
    level = np.median(image[is_number]) if is_number.any() else 0.0
    return np.where(is_number, image, np.float32(level))


def _is_seen(image: Float32, positions_px: Float64) -> Bool:
    """Mark places on pixels that are numbers."""
    row, col = np.clip(np.rint(positions_px).astype(np.intp), 0, np.array(image.shape) - 1).T
    seen: Bool = np.isfinite(image[row, col])
    return seen


def _zoom_for(network: AtomFinder, sigma_px: float) -> float:
    """Scale at which columns of this width suit the network; 1 where they do as they are."""
    least = _WIDE_ENOUGH * network.sigma_limits_px[0]
    wanted = network.canonical_sigma_px
    return (wanted if sigma_px > wanted else min(wanted, max(sigma_px, least))) / sigma_px


@lru_cache(maxsize=4)
def _network(method: Method) -> AtomFinder | None:
    """Load the shipped network; None where it is not asked for, or for ``auto`` where it is not there."""
    if method == "laplacian":
        return None
    from models.atom_finder import AtomFinder  # not before it is needed: it brings torch
    from models.checkpoint import CheckpointError

    try:
        return AtomFinder.load()
    except CheckpointError:
        if method == "network":
            raise
        return None
