"""What is known of a place before it is measured, as numbers of order 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, Float64, Site
from agents.config import FeatureName
from agents.kernels import Part, of_latents, of_position, of_trend

# Positions of two registrations cannot be compared: so many fields apart, they share no covariance.
REVISION_APART = 100.0


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
    """

    model_revision: str
    center: Float64
    unit: Float64
    center_nm: Float64
    half_field_nm: float
    angle_fold: int = 1

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
        )

    def knows(self, site: Site) -> bool:
        """Were the latents of this site said by its encoder?"""
        return site.model_revision == self.model_revision

    def latents(self, mean: Float64) -> Float64:
        """Scale latents ``(n, d)``."""
        return (mean - self.center) / self.unit

    def of_candidates(self, candidates: Candidates) -> Float64:
        """Features of a frame's candidates, shape ``(n, d + 4)``: direction, latents, then ``(x, y)``."""
        revision = candidates.frame.registration_revision
        return self._features(candidates.mean, candidates.angle_rad, candidates.position_nm, revision)

    def of_sites(self, sites: Sequence[Site]) -> Float64:
        """Features of sites that may be of many frames, all of its encoder."""
        if not sites:
            return np.zeros((0, width_of(self.center.size)))
        unknown = np.array([0.0, np.inf])
        return self._features(
            np.stack([site.mean for site in sites]),
            np.stack([unknown if site.angle_rad is None else site.angle_rad for site in sites]),
            np.stack([site.position_nm for site in sites]),
            np.array([site.registration_revision for site in sites]),
        )

    def _features(
        self,
        mean: Float64,
        angle_rad: Float64 | None,
        position_nm: Float64,
        revision: NDArray[np.int64] | int,
    ) -> Float64:
        place = (position_nm - self.center_nm) / self.half_field_nm
        place[:, 0] += REVISION_APART * np.asarray(revision)
        return np.concatenate([self._direction(angle_rad, len(mean)), self.latents(mean), place], axis=1)

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


def width_of(latent_dim: int) -> int:
    """How many features ``FeatureScale`` gives a place."""
    return latent_dim + 4


def parts_of(name: FeatureName, latent_dim: int) -> tuple[Part, ...]:
    """The covariance over some of the features that ``FeatureScale`` gives."""
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
