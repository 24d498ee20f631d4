"""Find where windows are cut: at atom columns, along domain walls, on particles, or on a grid.

Whatever a site is, it is told in the words of ``Atoms``: a place with its covariance, a confidence, a height.
All stages behind go on unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.normalisation import in_phase, levelled
from streamer.channel_names import shows_height, shows_response
from streamer.messages import Atoms, Frame, ScanGeometry
from streamer.particles import face_noise, particles
from streamer.position_covariance import of_correction
from streamer.stage import Rejected
from streamer.stages.find_atoms import FindAtoms, FindConfig
from streamer.walls import SMOOTHED_PX, wall_points

Float64 = NDArray[np.float64]
Kind = Literal["auto", "columns", "walls", "particles", "grid"]

# Where step_nm is 0: so many steps along the shorter edge of a frame.
_STEPS = 32
# What a wall's place is off by where there is no noise: the lattice of pixels that it is read on, in pixels.
_READ_SD_PX = 0.1
# A particle's middle is off by more than its noise: rows shift against each other, the feedback lags, and it
# moves while it is scanned. Root mean square in pixels along an axis, on simulated rods.
_MIDDLE_SD_PX = 0.7


class SitesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What windows are cut around.

    Attributes
    ----------
    kind
        ``columns``: atom columns, as ``find`` says; ``walls``: points on the domain walls of a piezoresponse,
        one in each cell of a grid; ``particles``: what lies on a face; ``grid``: nodes of a grid on the
        specimen; ``auto`` goes by the channels: walls for amplitude and phase (and the grid, where a film
        has none), particles for heights, else columns.
    step_nm
        Of the grid; 0 takes a 32nd of the frame's shorter edge.
    threshold_sigma
        Slope of the response across a wall, in standard deviations of its noise, that is believed with
        probability one half.
    threshold_contrast
        The weaker response beside a wall, as a part of the frame's, that is believed with probability one
        half.
    area_share
        Particles smaller or larger than these parts of a typical one are believed with less than one half.
    min_confidence
        Sites below are left out, 0 to 1.
    max_sites
        A frame with more is refused.
    """

    kind: Kind = "auto"
    step_nm: float = 0.0
    threshold_sigma: float = 6.0
    threshold_contrast: float = 0.2
    area_share: tuple[float, float] = (0.4, 1.8)
    min_confidence: float = 0.5
    max_sites: int = 20_000

    def __post_init__(self) -> None:
        if not 0 <= self.step_nm <= 1e6:
            raise ValueError(f"sites.step_nm is {self.step_nm}; it takes 0 (by the frame) to 1000000")
        if not 0 < self.threshold_sigma <= 1000:
            raise ValueError(f"sites.threshold_sigma is {self.threshold_sigma}; it takes above 0 to 1000")
        if not 0 <= self.threshold_contrast < 1:
            raise ValueError(f"sites.threshold_contrast is {self.threshold_contrast}; it takes 0 to below 1")
        if not 0 <= self.area_share[0] < self.area_share[1] <= 1e6:
            raise ValueError(f"sites.area_share is {self.area_share}; it takes 0 <= least < most")
        if not 0 <= self.min_confidence < 1:
            raise ValueError(f"sites.min_confidence is {self.min_confidence}; it takes 0 to below 1")
        if not 1 <= self.max_sites <= 1_000_000:
            raise ValueError(f"sites.max_sites is {self.max_sites}; it takes 1 to 1000000")


class FindSites:
    """Find the sites of a frame, of the kind that is configured or that its channels ask for.

    Parameters
    ----------
    config
        What is looked for.
    columns, threads
        Settings of the finder of atom columns, and how many threads it may take.
    """

    name = "find"

    def __init__(
        self, config: SitesConfig | None = None, columns: FindConfig | None = None, threads: int = 1
    ) -> None:
        self.config = config or SitesConfig()
        self.columns = FindAtoms(columns, threads)

    def process(self, frame: Frame, /) -> Atoms:
        """Return the sites.

        ``contrast`` is the typical amplitude of a response, the typical height of particles.

        Raises
        ------
        Rejected
            ``no walls``, ``no particles``, ``no sites``, ``too many sites``; ``too few channels`` for walls
            in a frame without amplitude and phase; and what ``FindAtoms`` says of a frame without columns.
        """
        kinds: dict[str, Callable[[Frame], Atoms]] = {
            "columns": self.columns.process,
            "walls": self._walls,
            "particles": self._particles,
            "grid": self._grid,
        }
        kind = self.config.kind
        if kind == "auto" and shows_response(frame.channels):
            try:
                return self._walls(frame)
            except Rejected:
                return self._grid(frame)
        if kind == "auto":
            kind = "particles" if shows_height(frame.channels[0]) else "columns"
        return kinds[kind](frame)

    def _walls(self, frame: Frame) -> Atoms:
        """Give one point of a wall in each cell of the grid that it passes, the nearest to the middle."""
        if not shows_response(frame.channels):
            raise Rejected("too few channels")
        walls = wall_points(in_phase(*frame.image[:2]))
        typical = _typical_amplitude(frame)
        confidence = _logistic(walls.significance - self.config.threshold_sigma) * _logistic(
            (walls.height / typical - self.config.threshold_contrast) / 0.05
        )
        good = np.flatnonzero(confidence >= self.config.min_confidence)
        places_nm = frame.geometry.to_nm(walls.positions_px[good])
        kept = good[_one_in_each_cell(places_nm, self._step_nm(frame.geometry))]
        if not len(kept):
            raise Rejected("no walls")
        across = np.stack([np.cos(walls.direction_rad[kept]), -np.sin(walls.direction_rad[kept])], axis=1)
        covariance = np.einsum("n,ni,nj->nij", walls.sd_px[kept] ** 2, across, across)
        covariance += _READ_SD_PX**2 * np.eye(2)
        return self._said(
            frame,
            walls.positions_px[kept],
            confidence[kept],
            walls.height[kept],
            covariance,
            contrast=typical,
            width_px=SMOOTHED_PX,
        )

    def _particles(self, frame: Frame) -> Atoms:
        """Give the middle of each particle that lies wholly in the frame."""
        face = levelled(frame.image[0])
        found = particles(face)
        least, most = self.config.area_share
        confidence = _logistic((found.area_share - least) / 0.04) * _logistic((most - found.area_share) / 0.1)
        confidence *= _logistic(found.height / max(face_noise(face), 1e-30) - self.config.threshold_sigma)
        kept = found.is_whole & (confidence >= self.config.min_confidence)
        if not kept.any():
            raise Rejected("no particles")
        return self._said(
            frame,
            found.positions_px[kept],
            confidence[kept],
            found.height[kept],
            np.broadcast_to(_MIDDLE_SD_PX**2 * np.eye(2), (int(kept.sum()), 2, 2)),
            contrast=float(np.median(found.height[kept])),
            width_px=float(np.median(found.width_px[kept])) / math.sqrt(12),
        )

    def _grid(self, frame: Frame) -> Atoms:
        """Give the nodes of a grid on the specimen: the same places in every frame that shows them."""
        geometry = frame.geometry
        positions = nodes_px(geometry, self._step_nm(geometry))
        if shows_response(frame.channels):
            background, contrast = 0.0, _typical_amplitude(frame)
        else:
            low, high = np.percentile(frame.image[0], [5, 95])
            background, contrast = float(low), float(high - low)
        if not len(positions) or contrast <= 0:
            raise Rejected("no sites")
        row, col = np.rint(positions).astype(np.intp).T
        return self._said(
            frame,
            positions,
            np.ones(len(positions)),
            frame.image[0, row, col] - background,
            np.zeros((len(positions), 2, 2)),
            background=background,
            contrast=contrast,
            width_px=1.0,
        )

    def _said(
        self,
        frame: Frame,
        positions: Float64,
        confidence: Float64,
        height: NDArray[np.floating],
        covariance: Float64,
        *,
        contrast: float,
        width_px: float,
        background: float = 0.0,
    ) -> Atoms:
        if len(positions) > self.config.max_sites:
            raise Rejected("too many sites")
        whole = covariance + of_correction(frame, positions, width_px)
        return Atoms(
            frame=frame,
            positions_px=positions.astype(np.float32),
            confidence=confidence.astype(np.float32),
            amplitude=height.astype(np.float32),
            background=background,
            contrast=contrast,
            position_covariance_px2=whole.astype(np.float32),
        )

    def _step_nm(self, geometry: ScanGeometry) -> float:
        return self.config.step_nm or min(geometry.field_of_view_nm) / _STEPS


def nodes_px(geometry: ScanGeometry, step_nm: float) -> Float64:
    """Give the nodes of a square grid on the specimen that lie on pixels of a raster.

    Parameters
    ----------
    geometry
        Raster.
    step_nm
        Of the grid, which has a node at ``(0, 0)`` and its axes along x and y, however the scan is turned.

    Returns
    -------
    nodes
        ``(row, col)``, shape ``(n, 2)``, row of nodes by row of nodes.
    """
    last = np.array(geometry.shape) - 1
    corners = geometry.to_nm(np.array([[r, c] for r in (0, last[0]) for c in (0, last[1])]))
    least, most = np.ceil(corners.min(axis=0) / step_nm), np.floor(corners.max(axis=0) / step_nm)
    x, y = (np.arange(low, high + 1) * step_nm for low, high in zip(least, most, strict=True))
    nodes = geometry.to_px(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    # A node on the border may lie outside by rounding.
    inside = np.all((nodes >= -1e-6) & (nodes <= last + 1e-6), axis=1)
    on_pixels: Float64 = np.clip(nodes[inside], 0, last)
    return on_pixels


def _one_in_each_cell(places_nm: Float64, step_nm: float) -> NDArray[np.intp]:
    """Choose of the points in each cell of a grid the one next to its middle; none nearer than half a step.

    The grid lies on the specimen: a wall that stays gives the same points in the next frame.
    """
    cell = np.floor(places_nm / step_nm)
    away = np.hypot(*(places_nm / step_nm - cell - 0.5).T)
    order = np.lexsort((away, cell[:, 0], cell[:, 1]))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = np.any(np.diff(cell[order], axis=0) != 0, axis=1)
    kept = order[is_first]
    if len(kept) < 2:
        return kept
    near = cKDTree(places_nm[kept]).query_pairs(step_nm / 2, output_type="ndarray")
    further = np.where(away[kept[near[:, 0]]] > away[kept[near[:, 1]]], near[:, 0], near[:, 1])
    return np.delete(kept, further)


def _typical_amplitude(frame: Frame) -> float:
    """Median of the amplitudes: walls, where it falls, are a small part of a film."""
    typical = float(np.median(frame.image[0, ::2, ::2]))
    if typical <= 0:
        raise Rejected("no sites")
    return typical


def _logistic(x: NDArray[np.floating]) -> Float64:
    return 1 / (1 + np.exp(-np.clip(x.astype(np.float64), -50, 50)))
