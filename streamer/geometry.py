"""Where things are: pixels of a frame, places of the scan, positions on the specimen.

``ScanGeometry`` says how the pixels lie on the scan, ``Distortion`` where the probe really was at each of
them, ``Registration`` where the specimen then was. ``docs/concepts.md`` fixes axes, signs and units.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

from streamer.message_base import Float32, PairNm, require_array, require_finite

DistortionMode = Literal["off", "drift-only", "frozen", "calibrate", "separate"]
# A drift that was seen in a frame is believed to go on for so long.
MOST_AHEAD_S = 10.0


class ScanGeometry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The raster of a frame: how pixels lie on the scan coordinates.

    Attributes
    ----------
    shape
        ``(rows, cols)`` of the raster.
    field_of_view_nm
        ``(width, height)``: extent along the fast (column) and the slow (row) axis.
    center_nm
        Scan position ``(x, y)`` of the centre of the raster.
    rotation_rad
        Scan rotation; the fast axis points along ``(cos, sin)`` of it, x right and y down.
    """

    shape: tuple[int, int]
    field_of_view_nm: PairNm
    center_nm: PairNm = (0.0, 0.0)
    rotation_rad: float = 0.0

    def __post_init__(self) -> None:
        rows, cols = self.shape
        if not (1 <= rows <= 16384 and 1 <= cols <= 16384):
            raise ValueError(f"geometry.shape is {self.shape}; it takes 1 to 16384 rows and columns")
        width, height = self.field_of_view_nm
        if not (1e-3 <= width <= 1e7 and 1e-3 <= height <= 1e7):
            raise ValueError(
                f"geometry.field_of_view_nm is {self.field_of_view_nm}; it takes 0.001 to 10000000 nm"
            )
        x, y = self.center_nm
        if not (abs(x) <= 1e9 and abs(y) <= 1e9):
            raise ValueError(f"geometry.center_nm is {self.center_nm}; it takes up to 1e9 nm either way")
        require_finite("geometry", "rotation_rad", self.rotation_rad)

    @property
    def pixel_size_nm(self) -> PairNm:
        """Edge of a pixel along ``(row, col)`` directions' own axes: ``(height, width)`` in nm."""
        return (
            self.field_of_view_nm[1] / self.shape[0],
            self.field_of_view_nm[0] / self.shape[1],
        )

    def to_nm(self, positions_px: NDArray[np.floating]) -> NDArray[np.float64]:
        """Turn ``(row, col)`` pixel positions ``(n, 2)`` into ``(x, y)`` scan positions in nm."""
        positions = np.asarray(positions_px, dtype=np.float64).reshape(-1, 2)
        height_nm, width_nm = self.pixel_size_nm
        along = (positions[:, 1] - (self.shape[1] - 1) / 2) * width_nm
        across = (positions[:, 0] - (self.shape[0] - 1) / 2) * height_nm
        cos, sin = math.cos(self.rotation_rad), math.sin(self.rotation_rad)
        return np.stack(
            [
                self.center_nm[0] + cos * along - sin * across,
                self.center_nm[1] + sin * along + cos * across,
            ],
            axis=1,
        )

    def to_px(self, positions_nm: NDArray[np.floating]) -> NDArray[np.float64]:
        """Turn ``(x, y)`` scan positions ``(n, 2)`` in nm into ``(row, col)`` pixel positions."""
        positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
        x = positions[:, 0] - self.center_nm[0]
        y = positions[:, 1] - self.center_nm[1]
        cos, sin = math.cos(self.rotation_rad), math.sin(self.rotation_rad)
        height_nm, width_nm = self.pixel_size_nm
        return np.stack(
            [
                (-sin * x + cos * y) / height_nm + (self.shape[0] - 1) / 2,
                (cos * x + sin * y) / width_nm + (self.shape[1] - 1) / 2,
            ],
            axis=1,
        )


class Distortion(msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True):
    """Where the probe really was while a frame was scanned, the drift of its middle left out.

    Pixel ``s`` was recorded with the probe at raster place ``s + D(s)``, in pixels ``(row, col)``:
    ``D(s) = grid(s) + rows[row] + cols[col] + row_offset[row]``. ``grid`` is what a beam at rest
    suffers too; the others come from the way it was scanned.

    Frames of a resonant fast axis that came with pixels even in time were made even in place before that
    (see ``CorrectConfig.sinusoidal_samples``): ``s`` is a pixel of the even raster.
    Where forward and backward channels were brought together (``paired``), each of them by half of the
    distance between them, ``s`` is a pixel of the raster in the middle.

    Attributes
    ----------
    mode
        What was corrected: ``drift-only`` (drift, row jitter, hum; what every frame shares is left for
        the specimen), ``calibrate`` (everything, on a specimen known to be a perfect lattice),
        ``frozen`` (the static part of a calibration, and the drift as above), ``separate`` (strain and
        distortion told apart by rotated and moved scans), ``off``.
    observer
        What the frame was measured against: ``lattice``, ``registration`` (the frames before), ``none``.
    grid_px
        On nodes spread evenly from the first pixel to the last, shape ``(2, n, m)``, float32.
    rows_px, cols_px
        Shape ``(2, rows)`` and ``(2, cols)``, float32.
    odd_cols_px
        ``cols_px`` of odd rows where these are scanned the other way; None where all rows are alike.
    row_offset_px
        What each row has of its own in this frame, shape ``(2, rows)``, float32.
    sd_px
        Standard deviation of ``D`` along each axis, on nodes of its own, shape ``(2, n, m)``, float32.
    row_sd_px
        What of ``sd_px`` each row has of its own, ``(row, col)``: the offset that is left in it, root mean
        square over the rows. Over several rows it averages out.
    observations
        Columns, rows or blocks that were used.
    residual_px
        Root mean square, along one axis, of what is left at places held out of the fit, their own
        noise taken off, and no less than model and rows expect of themselves; NaN where none were held
        out. Where rows were compared with a reference
        (``drift-only``, ``frozen``), of one half of each row put back by the offset of the other half.
    model_revision
        Counts the hyperparameters of the model: 0 are those it began with.
    flags
        What the operator should know, in short fixed words: ``lost``, ``jump``, ``blank``, ``faded``,
        ``relative``, ``learning``, ``paired``, ``mirrored`` (backward channels come in order of time, and
        were left as they are).
    """

    mode: DistortionMode
    observer: Literal["lattice", "registration", "none"] = "none"
    grid_px: Float32
    rows_px: Float32
    cols_px: Float32
    odd_cols_px: Float32 | None = None
    row_offset_px: Float32
    sd_px: Float32
    row_sd_px: tuple[float, float] = (0.0, 0.0)
    observations: int = 0
    residual_px: float = math.nan
    model_revision: int = 0
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_array("distortion", "grid_px", self.grid_px, (2, None, None), "float32")
        require_array("distortion", "sd_px", self.sd_px, (2, None, None), "float32")
        require_array("distortion", "rows_px", self.rows_px, (2, None), "float32")
        require_array("distortion", "cols_px", self.cols_px, (2, None), "float32")
        if self.odd_cols_px is not None:
            require_array("distortion", "odd_cols_px", self.odd_cols_px, self.cols_px.shape, "float32")
        require_array("distortion", "row_offset_px", self.row_offset_px, self.rows_px.shape, "float32")
        require_finite("distortion", "row_sd_px", *self.row_sd_px)
        if min(*self.grid_px.shape[1:], *self.sd_px.shape[1:], *self.shape) < 2:
            raise ValueError("distortion has an empty side; it takes 2 nodes, rows and columns at least")

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, cols)`` of the frame."""
        return (self.rows_px.shape[1], self.cols_px.shape[1])

    @property
    def rms_px(self) -> float:
        """Root mean square length of ``D`` over the frame, from 64 rows and columns of it."""
        rows, cols = (np.linspace(0, size - 1, 64).round() for size in self.shape)
        places = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
        return float(np.sqrt((self.at(places) ** 2).sum(axis=1).mean()))

    def at(self, positions_px: NDArray[np.floating], *, at_rest: bool = False) -> NDArray[np.float64]:
        """Say ``D`` at pixel positions ``(row, col)`` of the frame as acquired, shape ``(n, 2)``.

        Parameters
        ----------
        positions_px
            Shape ``(n, 2)``; beyond the edge that of the edge is said.
        at_rest
            For a beam sent there and held: without what comes from scanning.
        """
        positions = np.asarray(positions_px, dtype=np.float64).reshape(-1, 2)
        found = self._on_nodes(self.grid_px, positions)
        if not at_rest:
            for axis in range(2):
                rows = self.rows_px[axis] + self.row_offset_px[axis]
                found[:, axis] += np.interp(positions[:, 0], np.arange(rows.size), rows)
                found[:, axis] += np.interp(positions[:, 1], np.arange(self.shape[1]), self.cols_px[axis])
            if self.odd_cols_px is not None:
                odd = np.rint(positions[:, 0]) % 2 == 1
                other = self.odd_cols_px - self.cols_px
                for axis in range(2):
                    along = np.interp(positions[odd, 1], np.arange(self.shape[1]), other[axis])
                    found[odd, axis] += along
        return found

    def sd_at(self, positions_px: NDArray[np.floating]) -> NDArray[np.float64]:
        """Say the standard deviation of ``D`` along each axis at pixel positions, shape ``(n, 2)``."""
        positions = np.asarray(positions_px, dtype=np.float64).reshape(-1, 2)
        return self._on_nodes(self.sd_px, positions, order=1)

    def seen_at(self, places_px: NDArray[np.floating], *, at_rest: bool = False) -> NDArray[np.float64]:
        """Say at which position a raster place is met: ``s`` with ``s + D(s)`` = place, shape ``(n, 2)``."""
        places = np.asarray(places_px, dtype=np.float64).reshape(-1, 2)
        seen = places
        # D changes by far less than a pixel from one to the next: each turn gains a digit or more.
        for _ in range(8):
            before, seen = seen, places - self.at(seen, at_rest=at_rest)
            if not seen.size or float(np.abs(seen - before).max()) < 1e-4:
                break
        return seen

    def _on_nodes(
        self, values: Float32, positions: NDArray[np.float64], order: int = 3
    ) -> NDArray[np.float64]:
        """Interpolate between the nodes, by splines of an order that the nodes allow."""
        (high, wide), (rows, cols) = values.shape[1:], self.shape
        node_rows, node_cols = np.linspace(0, rows - 1, high), np.linspace(0, cols - 1, wide)
        row, col = np.clip(positions[:, 0], 0, rows - 1), np.clip(positions[:, 1], 0, cols - 1)
        degrees = {"kx": min(order, high - 1), "ky": min(order, wide - 1)}
        # A spline without ends to reflect at: it carries a straight line on as one.
        splines = (RectBivariateSpline(node_rows, node_cols, value, **degrees) for value in values)
        return np.stack([spline.ev(row, col) for spline in splines], axis=1)


class Registration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the specimen was when a frame was taken, seen from the reference frame.

    Attributes
    ----------
    revision
        Counts the references: positions of two revisions must not be compared.
    drift_nm
        ``(x, y)``; a specimen point ``s`` is found under the beam at scan position ``s + drift_nm``.
    drift_rate_nm_per_s
        ``(x, y)``; its estimated rate, for a beam that is sent later than the frame.
    sd_nm
        Standard deviation of ``drift_nm`` along one axis.
    at_s
        Instrument clock (seconds since the epoch) at which the drift holds.
    distortion
        What else the scan did to the frame; None for a frame that was not corrected.
    """

    revision: int = 0
    drift_nm: PairNm = (0.0, 0.0)
    drift_rate_nm_per_s: PairNm = (0.0, 0.0)
    sd_nm: float = 0.0
    at_s: float = 0.0
    distortion: Distortion | None = None

    def drift_at(self, at_s: float | None) -> PairNm:
        """Say the drift ``(x, y)`` in nm at a time of the instrument's clock; None says ``drift_nm``.

        It goes on at its rate for some seconds; before the frame, or long after it, nothing is known but
        where it was.
        """
        ahead_s = 0.0 if at_s is None else at_s - self.at_s
        if not 0 < ahead_s <= MOST_AHEAD_S:
            return self.drift_nm
        x, y = (d + ahead_s * r for d, r in zip(self.drift_nm, self.drift_rate_nm_per_s, strict=True))
        return (x, y)

    def scan_position_nm(
        self, position_nm: PairNm, geometry: ScanGeometry | None = None, at_s: float | None = None
    ) -> PairNm:
        """Say where to send the beam to meet a specimen position, ``(x, y)`` in nm.

        Parameters
        ----------
        position_nm
            Specimen position ``(x, y)``.
        geometry
            Raster of the frame as acquired; None leaves the distortion of a beam at rest uncorrected.
        at_s
            Instrument clock when the beam will be there; None takes the drift as it was.
        """
        drift_nm = self.drift_at(at_s)
        x, y = position_nm[0] + drift_nm[0], position_nm[1] + drift_nm[1]
        if geometry is None or self.distortion is None or self.distortion.shape != geometry.shape:
            return (x, y)
        place_px = geometry.to_px(np.array([[x, y]]))
        x, y = geometry.to_nm(self.distortion.seen_at(place_px, at_rest=True))[0]
        return (float(x), float(y))

    def specimen_position_nm(
        self, scan_position_nm: PairNm, geometry: ScanGeometry | None = None, at_s: float | None = None
    ) -> PairNm:
        """Say what a beam at rest met, ``(x, y)`` in nm: the inverse of ``scan_position_nm``."""
        x, y = scan_position_nm
        if geometry is not None and self.distortion is not None and self.distortion.shape == geometry.shape:
            seen_px = geometry.to_px(np.array([[x, y]]))
            x, y = geometry.to_nm(seen_px + self.distortion.at(seen_px, at_rest=True))[0]
        drift_nm = self.drift_at(at_s)
        return (float(x) - drift_nm[0], float(y) - drift_nm[1])
