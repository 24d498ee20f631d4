"""The sites that the current frame offers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.windows import harmonics
from streamer.messages import Float32, Latents, PairNm
from streamer.window_bytes import as_seen

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
    angle_rad
        Orientation of the content and its circular sd, shape ``(2,)``; None where nobody says.
    harmonics
        Of its window, shape ``(k,)``; None where windows are not looked at, or did not come.
    """

    mean: Float64
    position_nm: Float64
    track: int
    registration_revision: int
    model_revision: str
    angle_rad: Float64 | None = None
    harmonics: Float32 | None = None


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What must be known of the frame that candidates were seen in.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the frame.
    registration_revision
        Which registration its specimen positions speak of.
    model_revision
        Which encoder its latents speak of.
    center_nm, field_of_view_nm
        Of its geometry, ``(x, y)`` and ``(width, height)``.
    """

    session: str
    number: int
    acquired_at_s: float
    registration_revision: int
    model_revision: str
    center_nm: PairNm
    field_of_view_nm: PairNm

    def speaks_as(self, other: FrameFacts) -> bool:
        """Can its latents and positions be compared with those of another frame?"""
        return (self.model_revision, self.registration_revision) == (
            other.model_revision,
            other.registration_revision,
        )

    @classmethod
    def of(cls, latents: Latents) -> FrameFacts:
        """Take them from the message, without its arrays."""
        return cls(
            latents.session,
            latents.number,
            latents.acquired_at_s,
            latents.registration.revision,
            latents.model_revision,
            latents.geometry.center_nm,
            latents.geometry.field_of_view_nm,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The atoms of one frame that may be measured.

    Attributes
    ----------
    frame
        The frame that they were seen in.
    mean, sd
        Content latents and their standard deviations, shape ``(n, d)``.
    position_nm
        Specimen positions ``(x, y)``, shape ``(n, 2)``.
    position_px
        ``(row, col)`` in the corrected frame, shape ``(n, 2)``.
    track
        Ids of the atoms through the session, shape ``(n,)``.
    position_sd_nm
        Standard deviation of the position in the direction in which it is known worst, shape ``(n,)``; None
        where the latents do not say it.
    novelty
        How unlike the windows that the encoder learnt from each atom's is, shape ``(n,)``: 0 is usual, above
        3 is novel; None for all usual.
    angle_rad
        Orientation of each content and its circular sd, shape ``(n, 2)``; None where nobody says.
    harmonics
        Of each window, shape ``(n, k)``, see ``agents.windows``; None where windows are not looked at, or did
        not come. They are made once, for a frame at a time: of a window alone they would round otherwise.
    """

    frame: FrameFacts
    mean: Float64
    sd: Float64
    position_nm: Float64
    position_px: Float64
    track: NDArray[np.int64]
    position_sd_nm: Float64 | None = None
    novelty: Float64 | None = None
    angle_rad: Float64 | None = None
    harmonics: Float32 | None = None

    def __post_init__(self) -> None:
        n = self.track.size
        shapes = [array.shape for array in (self.mean, self.sd, self.position_nm, self.position_px)]
        if shapes != [(n, *self.mean.shape[1:]), self.mean.shape, (n, 2), (n, 2)] or self.mean.ndim != 2:
            raise ValueError(f"candidates have the shapes {shapes} for {n} tracks")

    @classmethod
    def of(cls, latents: Latents, min_confidence: float, *, sees_windows: bool = False) -> Candidates:
        """Take the atoms that are sure enough and whose numbers are all finite, with or without windows."""
        numbers = np.concatenate(
            [latents.mean, latents.sd, latents.positions_nm, latents.positions_px], axis=1, dtype=np.float64
        )
        kept = np.flatnonzero((latents.confidence >= min_confidence) & np.isfinite(numbers).all(axis=1))
        d = latents.mean.shape[1]
        # Each an array of its own, so that a restored one is laid out in the same way.
        mean, sd, position_nm, position_px = (
            np.ascontiguousarray(part) for part in np.split(numbers[kept], [d, 2 * d, 2 * d + 2], axis=1)
        )
        covariance = latents.position_covariance_nm2
        worst_nm = None if covariance is None else _worst_sd_nm(covariance[kept])
        novelty = np.nan_to_num(latents.novelty[kept].astype(np.float64), nan=0.0)
        angle_rad = np.stack([latents.angle_rad[kept], latents.angle_sd_rad[kept]], axis=1, dtype=np.float64)
        return cls(
            FrameFacts.of(latents),
            mean,
            sd,
            position_nm,
            position_px,
            latents.track[kept],
            worst_nm,
            novelty,
            angle_rad,
            _harmonics(latents, kept) if sees_windows else None,
        )

    def __len__(self) -> int:
        return int(self.mean.shape[0])

    def site(self, index: int) -> Site:
        """Take one atom out, without the rest of the frame."""
        return Site(
            self.mean[index].copy(),
            self.position_nm[index].copy(),
            int(self.track[index]),
            self.frame.registration_revision,
            self.frame.model_revision,
            None if self.angle_rad is None else self.angle_rad[index].copy(),
            None if self.harmonics is None else self.harmonics[index].copy(),
        )

    def speaks_as(self, site: Site) -> bool:
        """Can latents, and windows where there are some, be compared with those of a site?"""
        is_same = site.model_revision == self.frame.model_revision
        return is_same and (self.harmonics is None or site.harmonics is not None)

    def sd_nm(self, index: int) -> float:
        """Say how well the position of one atom is known; NaN where the latents did not say it."""
        return math.nan if self.position_sd_nm is None else float(self.position_sd_nm[index])

    def nearest(self, position_nm: Float64) -> tuple[int, float]:
        """Find the atom nearest to a specimen position ``(x, y)``: its index and distance in nm."""
        x_nm, y_nm = (self.position_nm - position_nm).T
        index = int((x_nm * x_nm + y_nm * y_nm).argmin())
        return index, math.hypot(x_nm[index], y_nm[index])

    def recognise(self, position_nm: PairNm, track: int) -> int:
        """Find the atom that a suggestion meant: the one exactly there, else the nearest.

        Of several at one place it is the one of this track; there must be at least one candidate.
        """
        distance_nm = np.hypot(*(self.position_nm - np.array(position_nm)).T)
        nearest = np.flatnonzero(distance_nm == distance_nm.min())
        same = nearest[self.track[nearest] == track]
        return int((same if same.size else nearest)[0])

    def find(self, site: Site, min_distance_nm: float) -> int | None:
        """Find the atom that a site of an earlier frame is: by track, else by place; None if not in view."""
        if site.track >= 0:
            same = np.flatnonzero(self.track == site.track)
            if same.size:
                return int(same[0])
        if not len(self) or site.registration_revision != self.frame.registration_revision:
            return None
        index, distance_nm = self.nearest(site.position_nm)
        return index if distance_nm < min_distance_nm else None


def _harmonics(latents: Latents, kept: NDArray[np.int64]) -> Float32 | None:
    if latents.windows is None or latents.window_range is None:
        return None
    return harmonics(as_seen(latents.windows[kept], latents.window_range[kept]))


def _worst_sd_nm(covariance_nm2: NDArray[np.floating]) -> Float64:
    """Square root of the larger eigenvalue of each ``(2, 2)``, shape ``(n,)``."""
    xx, yy, xy = (covariance_nm2[:, i, j].astype(np.float64) for i, j in ((0, 0), (1, 1), (0, 1)))
    worst: Float64 = np.sqrt((xx + yy) / 2 + np.hypot((xx - yy) / 2, xy))
    return worst
