"""The sites that the current frame offers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.messages import Latents

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One atom as a frame showed it.

    Attributes
    ----------
    mean
        Content latents, shape ``(d,)``.
    position_nm
        Specimen position ``(x, y)``, shape ``(2,)``.
    track
        Id of the atom through the session; -1 for none.
    registration_revision
        Which registration ``position_nm`` speaks of.
    model_revision
        Which encoder ``mean`` speaks of.
    """

    mean: Float64
    position_nm: Float64
    track: int
    registration_revision: int
    model_revision: str


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The atoms of one frame that may be measured.

    Attributes
    ----------
    latents
        The message that they came in.
    mean, sd
        Content latents and their standard deviations, shape ``(n, d)``.
    position_nm
        Specimen positions ``(x, y)``, shape ``(n, 2)``.
    position_px
        ``(row, col)`` in the corrected frame, shape ``(n, 2)``.
    track
        Ids of the atoms through the session, shape ``(n,)``.
    """

    latents: Latents
    mean: Float64
    sd: Float64
    position_nm: Float64
    position_px: Float64
    track: NDArray[np.int64]

    @classmethod
    def of(cls, latents: Latents, min_confidence: float) -> Candidates:
        """Take the atoms that are sure enough and whose numbers are all finite."""
        numbers = np.concatenate(
            [latents.mean, latents.sd, latents.positions_nm, latents.positions_px], axis=1, dtype=np.float64
        )
        kept = np.flatnonzero((latents.confidence >= min_confidence) & np.isfinite(numbers).all(axis=1))
        d = latents.mean.shape[1]
        mean, sd, position_nm, position_px = np.split(numbers[kept], [d, 2 * d, 2 * d + 2], axis=1)
        return cls(latents, mean, sd, position_nm, position_px, latents.track[kept])

    def __len__(self) -> int:
        return int(self.mean.shape[0])

    def site(self, index: int) -> Site:
        """Take one atom out, without the rest of the frame."""
        return Site(
            self.mean[index].copy(),
            self.position_nm[index].copy(),
            int(self.track[index]),
            self.latents.registration.revision,
            self.latents.model_revision,
        )

    def nearest(self, position_nm: Float64) -> tuple[int, float]:
        """Find the atom nearest to a specimen position ``(x, y)``: its index and distance in nm."""
        distance_nm = np.hypot(*(self.position_nm - position_nm).T)
        index = int(distance_nm.argmin())
        return index, float(distance_nm[index])

    def find(self, site: Site, min_distance_nm: float) -> int | None:
        """Find the atom that a site of an earlier frame is: by track, else by place; None if not in view."""
        if site.track >= 0:
            same = np.flatnonzero(self.track == site.track)
            if same.size:
                return int(same[0])
        if not len(self) or site.registration_revision != self.latents.registration.revision:
            return None
        index, distance_nm = self.nearest(site.position_nm)
        return index if distance_nm < min_distance_nm else None
