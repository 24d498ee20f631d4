"""What is known of a place before it is measured, as numbers of order 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, Float64, Site
from agents.config import FeatureName
from agents.kernels import Part, of_latents, of_position, of_trend, of_windows
from agents.network import Network
from agents.windows import PER_CHANNEL, orders
from streamer.messages import Float32

# Positions of two registrations cannot be compared: so many fields apart, they share no covariance.
REVISION_APART = 100.0
# Of a harmonic's unit: so much of the mean variance is added, so that those of little but noise count little.
_LITTLE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class FeatureScale:
    """Brings latents and positions to order 1; fixed for as long as the encoder is the same.

    Attributes
    ----------
    model_revision
        The encoder whose latents it speaks of.
    center, unit
        Of each latent, shape ``(d,)``.
    center_nm, half_field_nm
        Of the field of view.
    angle_fold
        In how many turns around a content comes back to itself.
    window_center, window_unit
        Of each harmonic of a window, shape ``(k,)``; none where windows are not looked at. The two numbers of
        an order above 0 have the same unit and no centre, so that a turn remains a turn.
    """

    model_revision: str
    center: Float64
    unit: Float64
    center_nm: Float64
    half_field_nm: float
    angle_fold: int = 1
    window_center: Float64 = field(default_factory=lambda: np.zeros(0))
    window_unit: Float64 = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, candidates: Candidates, angle_fold: int = 1) -> FeatureScale:
        """Take the scale from a frame's candidates.

        The unit of a latent is the sd of its aggregated posterior: the spread between the atoms and the
        encoder's own doubt together. So a latent that the encoder leaves unused, all doubt and no
        spread, counts for nothing instead of being blown up to order 1.
        """
        variance = candidates.mean.var(axis=0) + (candidates.sd**2).mean(axis=0)
        frame = candidates.frame
        return cls(
            model_revision=candidates.frame.model_revision,
            center=np.median(candidates.mean, axis=0),
            unit=np.sqrt(np.maximum(variance, 1e-12)),
            center_nm=np.array(frame.center_nm),
            half_field_nm=max(frame.field_of_view_nm) / 2,
            angle_fold=angle_fold,
            **_scale_of_windows(candidates.harmonics),
        )

    @property
    def channels(self) -> int:
        """Of the windows that it looks at; 0 where it looks at none."""
        return self.window_center.size // PER_CHANNEL

    @property
    def width(self) -> int:
        """How many features it gives a place."""
        return self.center.size + 4 + self.window_center.size

    def knows(self, site: Site) -> bool:
        """Were the latents of this site said by its encoder, and its window kept where it looks at those?"""
        size = 0 if site.harmonics is None else site.harmonics.size
        return site.model_revision == self.model_revision and self.window_center.size in (0, size)

    def is_of(self, candidates: Candidates) -> bool:
        """Would the scale of this frame speak of the same features?"""
        size = 0 if candidates.harmonics is None else candidates.harmonics.shape[1]
        return (candidates.frame.model_revision, size) == (self.model_revision, self.window_center.size)

    def latents(self, mean: Float64) -> Float64:
        """Scale latents ``(n, d)``."""
        return (mean - self.center) / self.unit

    def of_candidates(self, candidates: Candidates) -> Float64:
        """Features of a frame's candidates, ``(n, width)``: direction, latents, ``(x, y)``, harmonics."""
        revision = candidates.frame.registration_revision
        place = (candidates.angle_rad, candidates.position_nm, candidates.harmonics)
        return self._features(candidates.mean, *place, revision)

    def of_sites(self, sites: Sequence[Site]) -> Float64:
        """Features of sites that may be of many frames, all of its encoder."""
        if not sites:
            return np.zeros((0, self.width))
        unknown = np.array([0.0, np.inf])
        return self._features(
            np.stack([site.mean for site in sites]),
            np.stack([unknown if site.angle_rad is None else site.angle_rad for site in sites]),
            np.stack([site.position_nm for site in sites]),
            np.stack([site.harmonics for site in sites if site.harmonics is not None])
            if self.channels
            else None,
            np.array([site.registration_revision for site in sites]),
        )

    def _features(
        self,
        mean: Float64,
        angle_rad: Float64 | None,
        position_nm: Float64,
        harmonics: Float32 | None,
        revision: NDArray[np.int64] | int,
    ) -> Float64:
        place = (position_nm - self.center_nm) / self.half_field_nm
        place[:, 0] += REVISION_APART * np.asarray(revision)
        parts = [self._direction(angle_rad, len(mean)), self.latents(mean), place]
        if self.channels and harmonics is not None:
            parts.append((harmonics - self.window_center) / self.window_unit)
        return np.concatenate(parts, axis=1)

    def _direction(self, angle_rad: Float64 | None, count: int) -> Float64:
        """Mean cosine and sine of the angle, shape ``(n, 2)``: the shorter, the less it is known.

        Of a wrapped normal they are ``exp(-sd²/2)`` times those of its mean (Mardia and Jupp, Directional
        Statistics, section 3.5.7); times the fold, turns that leave the content as it is are one direction.
        """
        if angle_rad is None:
            return np.zeros((count, 2))
        angle, sd = self.angle_fold * angle_rad.T
        length = np.where(np.isfinite(angle + sd), np.exp(-0.5 * sd * sd), 0.0)
        angle = np.where(length > 0, angle, 0.0)
        return np.stack([length * np.cos(angle), length * np.sin(angle)], axis=1)


def _scale_of_windows(harmonics: Float32 | None) -> dict[str, Float64]:
    """Centre and unit of each harmonic by those of a frame."""
    if harmonics is None:
        return {}
    order = orders(harmonics.shape[1] // PER_CHANNEL)
    center = np.where(order == 0, np.median(harmonics, axis=0).astype(np.float64), 0.0)
    square = ((harmonics - center) ** 2).mean(axis=0)
    (pairs,) = np.nonzero(order)
    square[pairs] = np.repeat(square[pairs].reshape(-1, 2).mean(axis=1), 2)
    return {"window_center": center, "window_unit": np.sqrt(square + _LITTLE * square.mean() + 1e-12)}


def parts_of(name: FeatureName, latent_dim: int, channels: int = 0, seed: int = 0) -> tuple[Part, ...]:
    """The covariance over some of the features that ``FeatureScale`` gives.

    Parameters
    ----------
    name
        Which of them.
    latent_dim, channels
        How many latents there are, and channels of windows.
    seed
        Of the weights that a network begins with.
    """
    first, last = 2, 2 + latent_dim
    match name:
        case "position":
            return (of_position(last),)
        case "latents":
            return (of_latents(first, last),)
        case "latents + angle":
            return (of_latents(0, last),)
        case "latents + position":
            return (of_latents(first, last), of_position(last))
        case "latents * position":
            return (of_latents(first, last + 2),)
        case "trend + position":
            return (of_trend(first, last), of_position(last))
        case "windows":
            return (of_windows(last + 2, Network(channels, seed)),)
        case "windows + position":
            return (of_windows(last + 2, Network(channels, seed)), of_position(last))
