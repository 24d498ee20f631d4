"""The nouns of probeloop: what instrument, streamer, agent and viewers say to each other.

A message is never changed; ``msgspec.structs.replace`` makes the next one. Every noun on the data
path carries ``session``, ``number`` and ``acquired_at_s`` from the instrument to the agent, so that
latency and loss can be measured anywhere. Coordinates, handedness and the sign of a rotation are
fixed in ``docs/concepts.md``: image positions are ``(row, col)`` in pixels, specimen and scan
positions are ``(x, y)`` in nanometres with x to the right and y down.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RectBivariateSpline

Float32 = NDArray[np.float32]
PairNm = tuple[float, float]
DistortionMode = Literal["off", "drift-only", "frozen", "calibrate", "separate"]
Role = Literal["instrument", "agent", "operator", "viewer"]
Action = Literal["spectrum", "scan"]
# A drift that was seen in a frame is believed to go on for so long.
MOST_AHEAD_S = 10.0
OutcomeStatus = Literal["ok", "failed", "refused", "skipped", "aborted"]


class Message(
    msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True, tag_field="kind"
):
    """What every message is: frozen, keyword-only, named by its ``kind`` on the wire."""


def _require_array(
    owner: str, name: str, array: NDArray[np.generic], shape: tuple[int | None, ...], dtype: str
) -> None:
    """Raise ValueError naming the field unless the array has this dtype and shape (None: any)."""
    if array.dtype != np.dtype(dtype):
        raise ValueError(f"{owner}.{name} has dtype {array.dtype}; it takes {dtype}")
    fits = array.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise ValueError(f"{owner}.{name} has shape {array.shape}; it takes {wanted}")


def _require_finite(owner: str, name: str, *values: float) -> None:
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{owner}.{name} is {values}; it takes finite numbers")


def _require_count(owner: str, name: str, value: int) -> None:
    if not 0 <= value < 2**53:
        raise ValueError(f"{owner}.{name} is {value}; it takes 0 to 2**53 - 1")


def _require_time(owner: str, name: str, value: float) -> None:
    if not abs(value) <= 1e11:  # also NaN
        raise ValueError(f"{owner}.{name} is {value}; it takes seconds since the epoch, up to 1e11")


def _require_positive(owner: str, name: str, *values: float) -> None:
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"{owner}.{name} is {values}; it takes numbers above 0")


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
    observations
        Columns, rows or blocks that were used.
    residual_px
        Root mean square, along one axis, of what is left at places held out of the fit, their own
        noise taken off; NaN where none were held out.
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
    observations: int = 0
    residual_px: float = math.nan
    model_revision: int = 0
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_array("distortion", "grid_px", self.grid_px, (2, None, None), "float32")
        _require_array("distortion", "sd_px", self.sd_px, (2, None, None), "float32")
        _require_array("distortion", "rows_px", self.rows_px, (2, None), "float32")
        _require_array("distortion", "cols_px", self.cols_px, (2, None), "float32")
        if self.odd_cols_px is not None:
            _require_array("distortion", "odd_cols_px", self.odd_cols_px, self.cols_px.shape, "float32")
        _require_array("distortion", "row_offset_px", self.row_offset_px, self.rows_px.shape, "float32")
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
        _require_finite("geometry", "rotation_rad", self.rotation_rad)

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


class Frame(Message, frozen=True, kw_only=True, eq=False, tag="frame"):
    """One scan frame, as acquired or as corrected.

    Attributes
    ----------
    session
        Name of the session, given by the streamer in its Welcome.
    number
        Position in the session, from 0, never reused.
    acquired_at_s
        Instrument clock at the last pixel, seconds since the epoch.
    image
        Detector intensity, shape ``(channel, row, col)``, float32, in counts (or the unit of the
        channel).
    channels
        Name of each channel, such as ``("HAADF",)`` or ``("amplitude", "phase")``.
    geometry
        How the pixels lie on the scan coordinates.
    dwell_time_us
        Time the beam spends on one pixel.
    dose_e_per_nm2
        Electrons per square nanometre given by this frame; 0 where it is not known or not electrons.
    scan_path
        ``raster`` (with fly-back), ``serpentine`` or ``sinusoidal`` (resonant fast axis).
    request_id
        Id of the Request this frame answers (a sub-scan); None for the frames of the experiment.
    stage_nm
        Where the specimen stage was told to be, ``(x, y)``, against the first frame of the session: a
        specimen point moves by as much in scan coordinates. Commanded, not measured.
    registration
        Filled in by the streamer's correction: in a corrected frame ``geometry`` speaks specimen
        coordinates and ``registration`` says where the specimen then was.
    """

    session: str
    number: int
    acquired_at_s: float
    image: Float32
    channels: tuple[str, ...]
    geometry: ScanGeometry
    dwell_time_us: float
    dose_e_per_nm2: float = 0.0
    scan_path: Literal["raster", "serpentine", "sinusoidal"] = "raster"
    request_id: str | None = None
    stage_nm: PairNm = (0.0, 0.0)
    registration: Registration | None = None

    def __post_init__(self) -> None:
        _require_array("frame", "image", self.image, (len(self.channels), *self.geometry.shape), "float32")
        if not self.channels:
            raise ValueError("frame.channels is empty; it takes one name for each channel")
        if not 0 <= self.number < 2**53:
            raise ValueError(f"frame.number is {self.number}; it takes 0 to 2**53 - 1")
        _require_time("frame", "acquired_at_s", self.acquired_at_s)
        _require_positive("frame", "dwell_time_us", self.dwell_time_us)
        if not (math.isfinite(self.dose_e_per_nm2) and self.dose_e_per_nm2 >= 0):
            raise ValueError(f"frame.dose_e_per_nm2 is {self.dose_e_per_nm2}; it takes 0 and above")


class Atoms(Message, frozen=True, kw_only=True, eq=False, tag="atoms"):
    """The atom columns found in one frame; it keeps the frame that they were found in.

    Attributes
    ----------
    frame
        The corrected frame.
    positions_px
        ``(row, col)`` in the corrected frame, shape ``(n, 2)``, float32.
    confidence
        Probability that the column is real, shape ``(n,)``, float32, 0 to 1.
    amplitude
        Height above the local background, shape ``(n,)``, float32, in the unit of the image.
    background
        Background level of the frame, in the unit of the image.
    contrast
        Height of a typical column above the background: the unit in which windows are cut.
    """

    frame: Frame
    positions_px: Float32
    confidence: Float32
    amplitude: Float32
    background: float
    contrast: float

    def __post_init__(self) -> None:
        _require_array("atoms", "positions_px", self.positions_px, (None, 2), "float32")
        n = self.positions_px.shape[0]
        _require_array("atoms", "confidence", self.confidence, (n,), "float32")
        _require_array("atoms", "amplitude", self.amplitude, (n,), "float32")


class Patches(Message, frozen=True, kw_only=True, eq=False, tag="patches"):
    """Windows with their positions: cut from a frame, or delivered as such by a detector.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the frame.
    windows
        Shape ``(n, channel, h, w)``, float32; normalised as the encoder's card asks.
    window_nm
        Edge of a window on the specimen.
    positions_px
        ``(row, col)`` in the corrected frame, shape ``(n, 2)``, float32.
    positions_nm
        Specimen position ``(x, y)``, shape ``(n, 2)``, float32.
    confidence
        Shape ``(n,)``, float32, 0 to 1.
    geometry, registration
        Those of the corrected frame.
    """

    session: str
    number: int
    acquired_at_s: float
    windows: Float32
    window_nm: float
    positions_px: Float32
    positions_nm: Float32
    confidence: Float32
    geometry: ScanGeometry
    registration: Registration

    def __post_init__(self) -> None:
        _require_array("patches", "windows", self.windows, (None, None, None, None), "float32")
        n = self.windows.shape[0]
        _require_array("patches", "positions_px", self.positions_px, (n, 2), "float32")
        _require_array("patches", "positions_nm", self.positions_nm, (n, 2), "float32")
        _require_array("patches", "confidence", self.confidence, (n,), "float32")


class Latents(Message, frozen=True, kw_only=True, eq=False, tag="latents"):
    """What the encoder says of each patch of one frame.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the frame.
    mean, sd
        Content latents and their standard deviations, shape ``(n, d)``, float32.
    angle_rad, angle_sd_rad
        Orientation of the content in the window and its circular sd, shape ``(n,)``, float32.
    offset_nm, offset_sd_nm
        Shift ``(x, y)`` of the content from the window's centre, shape ``(n, 2)``, float32.
    class_probability
        Shape ``(n, k)``, float32; ``k`` is 0 for an encoder without classes.
    novelty
        How unlike the training data, shape ``(n,)``, float32; 0 is usual, above 3 is not.
    confidence
        That of the atom finder, shape ``(n,)``, float32, 0 to 1.
    track
        Id of the atom through the session, shape ``(n,)``, int64; -1 before linking.
    positions_px, positions_nm
        ``(row, col)`` in the corrected frame; ``(x, y)`` on the specimen; shape ``(n, 2)``, float32.
    model_revision
        Hash of the encoder's weights.
    geometry, registration
        Those of the corrected frame.
    request_id
        Id of the Request whose sub-scan this is; None for the frames of the experiment.
    """

    session: str
    number: int
    acquired_at_s: float
    mean: Float32
    sd: Float32
    angle_rad: Float32
    angle_sd_rad: Float32
    offset_nm: Float32
    offset_sd_nm: Float32
    class_probability: Float32
    novelty: Float32
    confidence: Float32
    track: NDArray[np.int64]
    positions_px: Float32
    positions_nm: Float32
    model_revision: str
    geometry: ScanGeometry
    registration: Registration
    request_id: str | None = None

    def __post_init__(self) -> None:
        _require_array("latents", "mean", self.mean, (None, None), "float32")
        n, d = self.mean.shape
        _require_array("latents", "sd", self.sd, (n, d), "float32")
        _require_array("latents", "class_probability", self.class_probability, (n, None), "float32")
        for name in ("offset_nm", "offset_sd_nm", "positions_px", "positions_nm"):
            _require_array("latents", name, getattr(self, name), (n, 2), "float32")
        for name in ("angle_rad", "angle_sd_rad", "novelty", "confidence"):
            _require_array("latents", name, getattr(self, name), (n,), "float32")
        _require_array("latents", "track", self.track, (n,), "int64")


class StrainMap(Message, frozen=True, kw_only=True, eq=False, tag="strain_map"):
    """Strain of the specimen, told apart from the distortion of the scan.

    Displacement, strain and rotation are NaN where no column of the lattice was near: in another grain, in
    a hole.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the last frame that went into it.
    geometry
        How the nodes lie on the specimen: their raster.
    displacement_nm
        Of the specimen against the ideal lattice, ``(x, y)``, shape ``(2, n, m)``, float32; without
        translation, and without the mean dilation and rotation where ``gauge`` is ``specimen``.
    strain
        ``xx``, ``yy``, ``xy`` (symmetric, tensor shear), shape ``(3, n, m)``, float32.
    rotation_rad
        Of the lattice, from x to y, shape ``(n, m)``, float32.
    strain_sd, rotation_sd_rad
        Standard deviations, of the same shapes.
    gauge
        ``specimen``: the mean strain of the field is taken for the scan's pixel size; ``scan``: pixel
        size and rotation are calibrated, and the strain is absolute.
    frames
        Number of frames that went into it.
    registration_revision
        Revision of the registration that the positions speak of.
    """

    session: str
    number: int
    acquired_at_s: float
    geometry: ScanGeometry
    displacement_nm: Float32
    strain: Float32
    rotation_rad: Float32
    strain_sd: Float32
    rotation_sd_rad: Float32
    gauge: Literal["specimen", "scan"] = "specimen"
    frames: int
    registration_revision: int = 0

    def __post_init__(self) -> None:
        nodes = self.geometry.shape
        _require_array("strain_map", "displacement_nm", self.displacement_nm, (2, *nodes), "float32")
        for name in ("strain", "strain_sd"):
            _require_array("strain_map", name, getattr(self, name), (3, *nodes), "float32")
        for name in ("rotation_rad", "rotation_sd_rad"):
            _require_array("strain_map", name, getattr(self, name), nodes, "float32")


class Suggestion(Message, frozen=True, kw_only=True, eq=False, tag="suggestion"):
    """What the agent would measure next, and why.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the frame whose latents it was decided on.
    id
        Unique in the session; the Request and the Outcome echo it.
    action
        ``spectrum`` at a point or a sub-``scan`` around it.
    position_nm
        Specimen position ``(x, y)``.
    registration_revision
        Revision of the registration that ``position_nm`` speaks of.
    dwell_time_us
        Exposure of the spectrum, or dwell time of a pixel of the sub-scan.
    track
        Id of the atom aimed at; -1 for none.
    field_of_view_nm, shape
        Extent ``(width, height)`` and raster ``(rows, cols)`` of a sub-scan; None for a spectrum.
    rotation_rad
        Scan rotation of a sub-scan; None leaves it as it is.
    stage_nm
        Where the specimen stage goes before, ``(x, y)`` as in ``Frame.stage_nm``; None leaves it.
    predicted_mean, predicted_sd
        The surrogate's forecast of the objective; NaN before there is one.
    acquisition
        Value of the acquisition function (log for LogEI); NaN before there is one.
    reason
        A few words for the operator.
    policy
        Name of the agent's policy: ``explorer``, ``raster``, ``random``.
    model_revision
        Counts the fits of the surrogate.
    told
        Number of the last journal record that the agent had been told when it decided.
    """

    session: str
    number: int
    acquired_at_s: float
    id: str
    action: Action = "spectrum"
    position_nm: PairNm
    registration_revision: int = 0
    dwell_time_us: float
    track: int = -1
    field_of_view_nm: PairNm | None = None
    shape: tuple[int, int] | None = None
    rotation_rad: float | None = None
    stage_nm: PairNm | None = None
    predicted_mean: float = math.nan
    predicted_sd: float = math.nan
    acquisition: float = math.nan
    reason: str = ""
    policy: str
    model_revision: int = 0
    told: int = 0

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("suggestion.id is empty; it takes a name unique in the session")
        if (self.action == "scan") != (self.field_of_view_nm is not None and self.shape is not None):
            raise ValueError("suggestion.field_of_view_nm and shape go with action 'scan', and only with it")
        for name, values in (("rotation_rad", (self.rotation_rad,)), ("stage_nm", self.stage_nm or ())):
            _require_finite("suggestion", name, *(value for value in values if value is not None))


class Request(Message, frozen=True, kw_only=True, eq=False, tag="request"):
    """A suggestion that the envelope approved: what the instrument is asked to do.

    Attributes
    ----------
    session, id, action, dwell_time_us, field_of_view_nm, shape, rotation_rad, stage_nm
        As in the Suggestion.
    scan_position_nm
        Where to send the beam, scan coordinates ``(x, y)``: the drift is already in it.
    position_nm
        The specimen position ``(x, y)`` that was meant.
    dose_e
        Electrons reserved for it in the dose ledger.
    """

    session: str
    id: str
    action: Action
    scan_position_nm: PairNm
    position_nm: PairNm
    dwell_time_us: float
    field_of_view_nm: PairNm | None = None
    shape: tuple[int, int] | None = None
    rotation_rad: float | None = None
    stage_nm: PairNm | None = None
    dose_e: float = 0.0


class Outcome(Message, frozen=True, kw_only=True, eq=False, tag="outcome"):
    """What came of a request; bound to it by ``id``.

    Attributes
    ----------
    session, id
        Those of the Request.
    status
        ``ok``; ``failed`` or ``aborted`` by the instrument; ``refused`` by the envelope or by an
        instrument that has no such data; ``skipped`` when time or budget ran out.
    reason
        A few words where the status is not ``ok``.
    action
        As requested.
    scan_position_nm
        Where the beam really was, scan coordinates ``(x, y)``.
    position_nm
        The specimen position ``(x, y)``; filled in by the streamer, None from the instrument.
    dwell_time_us
        Exposure as it was.
    dose_e
        Electrons given, 0 where it is not known.
    started_at_s, ended_at_s
        Instrument clock, seconds since the epoch.
    spectrum
        Counts in each energy channel, shape ``(energy,)``, float32; None for a sub-scan or a failure.
    energy_offset_ev, energy_step_ev
        Energy loss of channel 0 and the width of a channel.
    frame_number
        Number of the Frame that answers a sub-scan.
    """

    session: str
    id: str
    status: OutcomeStatus
    reason: str = ""
    action: Action = "spectrum"
    scan_position_nm: PairNm | None = None
    position_nm: PairNm | None = None
    dwell_time_us: float = 0.0
    dose_e: float = 0.0
    started_at_s: float = 0.0
    ended_at_s: float = 0.0
    spectrum: Float32 | None = None
    energy_offset_ev: float = 0.0
    energy_step_ev: float = 1.0
    frame_number: int | None = None

    def __post_init__(self) -> None:
        if self.spectrum is not None:
            _require_array("outcome", "spectrum", self.spectrum, (None,), "float32")
            if self.spectrum.size == 0:
                raise ValueError("outcome.spectrum has no channel; it takes at least one")
        for name in ("started_at_s", "ended_at_s"):
            _require_time("outcome", name, getattr(self, name))
        _require_finite("outcome", "energy_offset_ev", self.energy_offset_ev)
        _require_finite("outcome", "scan_position_nm", *(self.scan_position_nm or ()))
        for name in ("dose_e", "dwell_time_us"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"outcome.{name} is {getattr(self, name)}; it takes 0 and above")
        _require_positive("outcome", "energy_step_ev", self.energy_step_ev)
        if self.status == "ok" and self.scan_position_nm is None:
            raise ValueError("outcome.scan_position_nm is missing; an 'ok' says where the beam was")


class Hello(Message, frozen=True, kw_only=True, eq=False, tag="hello"):
    """First message of a peer: who it is, and where it stands after a lost link.

    Attributes
    ----------
    role
        ``instrument``, ``agent``, ``operator`` or ``viewer``.
    name
        For the log, such as ``simulated STEM``. An agent that comes back under its name is given
        the history that it needs to go on.
    instance
        Drawn at random once in each process; empty for a client that does not number its messages
        and keeps nothing to send again.
    resumes_from
        Sequence of the oldest message of this instance that has no ack yet.
    last_record
        Number of the last journal record that came to this instance in order; 0 for none.
    beats
        Whether it sends heartbeats, so that its silence means something.
    """

    role: Role
    name: str
    instance: str = ""
    resumes_from: int = 1
    last_record: int = 0
    beats: bool = False

    def __post_init__(self) -> None:
        for name, limit in (("name", 200), ("instance", 64)):
            if len(getattr(self, name)) > limit:
                raise ValueError(f"hello.{name} has {len(getattr(self, name))} letters; it takes {limit}")
        _require_count("hello", "resumes_from", self.resumes_from)
        _require_count("hello", "last_record", self.last_record)


class Welcome(Message, frozen=True, kw_only=True, eq=False, tag="welcome"):
    """The streamer's answer to Hello.

    Attributes
    ----------
    session
        Name that every message of this session carries.
    window
        How many frames may be sent ahead of their acks.
    next_number
        The first frame number that this session has not yet seen.
    durability
        What an ack means: ``written`` to the operating system or ``fsynced`` to the disk.
    received
        Sequence through which the messages of this instance are in the journal; 0 for none.
    last_record
        Number of the last journal record that is, or now will be, sent to this peer.
    history_record
        Records up to this number are history: what an earlier process of this agent was told and
        decided. 0 where there is none.
    """

    session: str
    window: int
    next_number: int
    durability: Literal["written", "fsynced"]
    received: int = 0
    last_record: int = 0
    history_record: int = 0


class Ack(Message, frozen=True, kw_only=True, eq=False, tag="ack"):
    """A message is in the journal, or was refused; a frame's place in the window is free either way.

    Attributes
    ----------
    session, number
        Those of the frame; number -1 for other messages, and where the refused one could not be read.
    status
        ``written`` or ``fsynced``: kept; ``unrecorded``: used, and not kept, as configured for a full
        disk; ``refused``: neither, see ``reason``.
    reason
        A short fixed word and a cure, for a refused message.
    sequence
        Of the message, 0 where it had none. One that is not ``refused`` speaks of all up to it, but for
    refused
        the sequences of those among the last ones that were refused.
    """

    session: str
    number: int
    status: Literal["written", "fsynced", "unrecorded", "refused"]
    reason: str = ""
    sequence: int = 0
    refused: tuple[int, ...] = ()


class Heartbeat(Message, frozen=True, kw_only=True, eq=False, tag="heartbeat"):
    """A sign of life, both ways; never in the journal.

    Attributes
    ----------
    instance
        Of the peer that lives; empty from the streamer.
    idle_s
        From a peer: seconds since its program last sent or asked for a message.
    received
        From the streamer: sequence through which this peer's messages have come, in order; those
        beyond it may be lost on the way.
    is_missing
        From the streamer: whether a later message has come than the one after ``received``.
    last_record
        From the streamer: number of the last journal record sent to this peer; from a peer, of the
        last one that came in order.
    """

    instance: str = ""
    idle_s: float = 0.0
    received: int = 0
    is_missing: bool = False
    last_record: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.idle_s <= 1e9:
            raise ValueError(f"heartbeat.idle_s is {self.idle_s}; it takes 0 to 1e9 seconds")


class Resend(Message, frozen=True, kw_only=True, eq=False, tag="resend"):
    """A peer lacks what followed a journal record: send it again.

    Attributes
    ----------
    after
        Number of the last record that came in order.
    """

    after: int

    def __post_init__(self) -> None:
        _require_count("resend", "after", self.after)


class Control(Message, frozen=True, kw_only=True, eq=False, tag="control"):
    """What a person decides over the agent's head.

    Attributes
    ----------
    session
        Name of the session; empty for the one that runs.
    action
        ``pause`` (beam parked, no new requests) and ``resume``; ``stop`` ends the session in order;
        ``abort`` parks the beam at once, breaks off what is under way and holds until ``resume``;
        ``veto`` forbids a request under way (``id``) or a place (``position_nm``); ``separate`` asks for
        the four scans that tell strain from distortion.
    id
        Of the vetoed suggestion or request; empty for none.
    position_nm, radius_nm
        Specimen position ``(x, y)`` around which nothing more is measured.
    reason
        For the journal.
    """

    session: str = ""
    action: Literal["pause", "resume", "stop", "abort", "veto", "separate"]
    id: str = ""
    position_nm: PairNm | None = None
    radius_nm: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        _require_finite("control", "position_nm", *(self.position_nm or ()))
        if not (math.isfinite(self.radius_nm) and self.radius_nm >= 0):
            raise ValueError(f"control.radius_nm is {self.radius_nm}; it takes 0 and above")
        if self.action == "veto" and not self.id and self.position_nm is None:
            raise ValueError("control.id and position_nm are missing; a veto takes one of them")


class Command(Message, frozen=True, kw_only=True, eq=False, tag="command"):
    """What the streamer tells the instrument to do at once; it does not wait for a frame to end.

    Attributes
    ----------
    session
        Name of the session.
    action
        ``park``: blank or park the beam and take no frames; ``go``: take frames again; ``cancel``:
        break off the request ``id``, or every one where it is empty.
    id
        Of the request to be cancelled.
    reason
        For the log and the person at the instrument.
    """

    session: str
    action: Literal["park", "go", "cancel"]
    id: str = ""
    reason: str = ""


class ModelRevision(Message, frozen=True, kw_only=True, eq=False, tag="model_revision"):
    """An agent, or the correction of the distortion, has fitted its model anew.

    Attributes
    ----------
    session, policy
        Of the session; of the agent, or ``distortion``.
    revision
        Counts the fits, from 1: suggestions carry it as ``model_revision``, and so do frames.
    told
        Number of the last journal record that the agent had been told; ``distortion``: of the frame.
    observations
        Measurements that it was fitted to; ``distortion``: frames.
    parameters
        Every hyperparameter by name, as it was found: float64, bit for bit.
    """

    session: str
    policy: str
    revision: int
    told: int
    observations: int
    parameters: dict[str, list[float]]


class Checkpoint(Message, frozen=True, kw_only=True, eq=False, tag="checkpoint"):
    """The state of an agent or of the streamer, so that a restart need not read the whole journal.

    Attributes
    ----------
    session
        Name of the session.
    of
        ``streamer``, or the agent's name as it said Hello.
    told
        Number of the last journal record that is in this state.
    facts
        MessagePack of whatever the owner needs; nobody else reads it.
    arrays
        Its arrays by name.
    """

    session: str
    of: str
    told: int
    facts: bytes
    arrays: dict[str, NDArray[Any]]

    def __post_init__(self) -> None:
        _require_count("checkpoint", "told", self.told)


class Bye(Message, frozen=True, kw_only=True, eq=False, tag="bye"):
    """A peer leaves (an instrument: no more frames), or the streamer ends the session.

    Attributes
    ----------
    reason
        Such as ``budget reached``, ``end of recording`` or ``operator``.
    """

    reason: str = ""


class Event(Message, frozen=True, kw_only=True, eq=False, tag="event"):
    """Something that happened, for the journal and the operator.

    Attributes
    ----------
    at_s
        Streamer clock, seconds since the epoch.
    what
        A short fixed word such as ``session_started``, ``held``, ``refused``.
    detail
        A sentence for a person.
    number
        Of the frame that it is about; -1 for none.
    """

    at_s: float
    what: str
    detail: str = ""
    number: int = -1


class Status(Message, frozen=True, kw_only=True, eq=False, tag="status"):
    """The streamer's state, published a few times a second for viewers; lossy by design.

    Attributes
    ----------
    session, at_s, state
        ``state`` is ``waiting``, ``running``, ``held`` (beam parked, no new requests), ``draining`` or
        ``ended``.
    held
        Why, in words; empty unless it is held.
    frames
        Counts: ``received``, ``published``, ``rejected``, ``dropped``, ``waiting``.
    stage_ms
        For each stage ``(p50, p99)`` over the last frames.
    frame_to_latents_ms, frame_to_suggestion_ms
        ``(p50, p99)``; NaN before the first.
    atoms
        Atoms in the latest frame.
    requests_granted, requests_refused, outcomes_ok, max_measurements
        Where the experiment stands; ``max_measurements`` 0 is without limit.
    dose_e, max_dose_e
        Electrons of the frames and the requested measurements, and the limit of the envelope.
    drift_nm
        The latest ``(x, y)``.
    distortion
        What was corrected in the latest frame, ``mode, residual (observer): what it means; flags``; empty
        before the first.
    best, best_position_nm
        Best objective that the agent reported; NaN before the first.
    suggestions
        The last few in words, newest first.
    """

    session: str
    at_s: float
    state: Literal["waiting", "running", "held", "draining", "ended"]
    held: tuple[str, ...] = ()
    frames: dict[str, int]
    stage_ms: dict[str, tuple[float, float]]
    frame_to_latents_ms: tuple[float, float]
    frame_to_suggestion_ms: tuple[float, float]
    atoms: int
    requests_granted: int
    requests_refused: int
    outcomes_ok: int
    max_measurements: int
    dose_e: float
    max_dose_e: float
    drift_nm: PairNm
    distortion: str = ""
    best: float
    best_position_nm: PairNm | None
    suggestions: tuple[str, ...]


class Score(Message, frozen=True, kw_only=True, eq=False, tag="score"):
    """The agent's reading of an outcome: what the spectrum was worth to the objective.

    Attributes
    ----------
    session, id
        Those of the Outcome.
    objective
        Name of the objective, with its unit.
    value, variance
        In the unit of the objective.
    goal
        Whether a large or a small value is good.
    """

    session: str
    id: str
    objective: str
    value: float
    variance: float
    goal: Literal["maximise", "minimise"] = "maximise"

    def __post_init__(self) -> None:
        _require_finite("score", "value", self.value)
        if not self.variance >= 0:
            raise ValueError(f"score.variance is {self.variance}; it takes 0 and above")


AnyMessage = (
    Frame | Atoms | Patches | Latents | StrainMap | Suggestion | Request | Outcome | Score
    | Hello | Welcome | Ack | Heartbeat | Resend | Bye | Control | Command
    | ModelRevision | Checkpoint | Event | Status
)  # fmt: skip
