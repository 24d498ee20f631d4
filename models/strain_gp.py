"""Strain of the specimen and distortion of the scan, told apart by scans that were turned and moved.

One frame says only where a column was seen, and a column is out of its place because the specimen is
strained or because the scan is distorted: from one orientation the two are the same data. A distortion
turns with the scan and stays with the raster, a strain stays with the specimen. With the scan rotation
θ, its matrix R, the frame's centre c, the commanded place of the stage, and τ the time in the frame:

    X + u(X) = c + R (s - c + d(s) + jitter of the row) - stage - drift - velocity τ

X is where the ideal lattice has the column, u the displacement of the specimen there, s where the column
lies on the raster and d the distortion there. Both fields are Hilbert-space GPs; their weights, whitened
by the prior, are one state together with drift, velocity and the error of the rotation's angle:

    [ d row | d col | u row | u col | x: drift (2), velocity (2), turn, hum (4) ]

It is kept in information form: a frame adds ``H'R⁻¹H`` and ``H'R⁻¹y`` and costs the same however many
came before. Two things decide whether it works, both measured.

* The features of d are evaluated where the model *predicts* the column on the raster, never where it was
  seen. Scaling ``X + u`` and ``s + d`` by the same factor leaves the equation true; at seen places such
  a scaling shrinks every residual, noise included, and unless a gauge holds them both fields collapse
  (1 px of dilation at the edge after 12 frames).
* Fields that a pure rotation about one point leaves alone (barrel, spiral) stay invisible however many
  angles are scanned: a move of the *stage* is needed beside the rotation. Moving the scan coils instead
  does not help against what is fixed to the coils.

What no scan can tell is dilation and rotation of the whole field. Calibration says who has them, and
without one they are put down to the scan.

Shapes: n columns, m features of d, k features of u; 2 is (row, col), in pixels of the raster. Specimen
places are those of the raster of a frame that is neither turned nor moved. The algebra is float64 in
numpy, which knows that ``A.T @ A`` is symmetric (half the time of the same in torch); features are
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from models.distortion_gp import FieldParts
from models.pose import Pose
from models.scan_basis import Hyperparameters, ScanBasis, ScanModel

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

_X = 9  # drift (2), velocity (2), turn, hum: cosine and sine of row, then of col
_OWN = 6  # features that x has a part in: 1, time, turn of row and of col, cosine and sine
_GRID = 25  # nodes of the mean over the field that the gauge speaks of
_RIM = 0.02  # of the edge, that those means leave out
_GAUGE_SD_PX = 0.002
_NOTHING = 1e-6  # sd of what is not looked for
_SETTLED_PX = 0.12  # a smaller change of the predicted places moves the fields by 0.001 px
_MAX_PASSES = 3
_LEAST_SEEN = 24
_LEAST_TURN_RAD = math.radians(15)
_LEAST_SPREAD = 0.015  # of the edge: half of a stage move that is just enough


class NotIdentifiable(ValueError):
    """What was scanned does not tell strain from distortion; the text says which scan is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrainConfig:
    """What is believed before the first frame.

    Attributes
    ----------
    amplitude_px, length_px
        Prior sd and length scale (Matérn-5/2) of the specimen's displacement.
    finest_px
        Shortest wavelength that the displacement can follow; the cost grows as its inverse to the sixth.
    reach
        How far from the centre a column may lie on the specimen, in half edges of the raster. The
        boundary of the features is 15 % further.
    forget_frames
        Frames in which the distortion forgets (an Ornstein-Uhlenbeck process); 0 holds it constant.
    offset_px, moved_px
        Sd of the unknown offset of the first frame, and of each frame whose rotation or stage changed.
    velocity_px, velocity_step_px
        Sd of the first drift velocity per frame, and of its change from frame to frame.
    turn_rad
        Sd of the error of the angle by which the scan is turned against the first frame; 0 trusts it. An
        angle off by 0.2 degrees costs 0.3 px when trusted; 0.005 for an instrument whose rotation was never
        checked costs a fifth more error where the angle was right.
    """

    amplitude_px: float = 0.4
    length_px: float = 72.0
    finest_px: float = 66.0
    reach: float = 1.35
    forget_frames: float = 0.0
    offset_px: float = 1.0
    moved_px: float = 2.0
    velocity_px: float = 0.1
    velocity_step_px: float = 0.025
    turn_rad: float = 2e-4

    def __post_init__(self) -> None:
        for name in ("amplitude_px", "length_px", "finest_px", "offset_px", "moved_px", "velocity_px"):
            if not getattr(self, name) > 0:
                raise ValueError(f"strain.{name} is {getattr(self, name)}; it takes more than 0")
        for name in ("forget_frames", "velocity_step_px", "turn_rad"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"strain.{name} is {getattr(self, name)}; it takes 0 or more")
        if not 1 <= self.reach <= 3:
            raise ValueError(f"strain.reach is {self.reach}; it takes 1 to 3 half edges")


@dataclass(frozen=True, slots=True, kw_only=True)
class StrainUpdate:
    """What one frame did.

    Attributes
    ----------
    used, gated, outside
        Columns that were learnt from, that lay too far from where they were expected, and that were
        beyond the reach of the specimen's field or off the raster. They add up to those given.
    passes
        How often the places on the raster were predicted before they settled.
    residual_px
        RMS of what the model leaves of the columns used, per component, row jitter included.
    moved
        Whether the offset was taken as unknown.
    """

    used: int
    gated: int
    outside: int
    passes: int
    residual_px: float
    moved: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StrainMap:
    """Displacement and strain of the specimen on a grid of places, each with its sd.

    Attributes
    ----------
    rows_px, cols_px
        Places of the grid, ``(h,)`` and ``(w,)``, on the raster of an unturned, unmoved frame.
    displacement_px, displacement_sd_px
        Shape ``(2, h, w)``, as (row, col).
    strain, strain_sd
        Shape ``(3, h, w)``: along the rows e_rr, along the columns e_cc, and the shear e_rc; no unit.
    rotation_rad, rotation_sd_rad
        Turn of the lattice, shape ``(h, w)``, positive clockwise on the screen as a scan rotation.
    """

    rows_px: Float64
    cols_px: Float64
    displacement_px: Float64
    displacement_sd_px: Float64
    strain: Float64
    strain_sd: Float64
    rotation_rad: Float64
    rotation_sd_rad: Float64


def _sines(places: Float64, half: float, modes: int) -> tuple[Float64, Float64]:
    """Return the eigenfunctions ``(n, modes)`` of the interval from -half to half, and their derivatives."""
    frequency = np.pi * np.arange(1, modes + 1) / (2 * half)
    phase = (places + half)[:, None] * frequency
    scale = 1 / math.sqrt(half)
    return np.sin(phase) * scale, np.cos(phase) * (frequency * scale)


def _matern_density(squared_frequency: Float64, length: float) -> Float64:
    """Spectral density of the two-dimensional Matérn-5/2 kernel of unit variance."""
    nu = 2.5
    scale = 4 * math.pi * math.gamma(nu + 1) * (2 * nu) ** nu / (math.gamma(nu) * length ** (2 * nu))
    return np.asarray(scale * (2 * nu / length**2 + squared_frequency) ** -(nu + 1))


class _SpecimenBasis:
    """Products of sines over a square of the specimen, up to one wavelength in every direction."""

    def __init__(self, centre_px: Float64, half_px: float, finest_px: float) -> None:
        self._centre, self._half = centre_px, half_px
        modes = max(2, round(4 * half_px / finest_px))
        number = np.arange(1, modes + 1) ** 2
        inside = number[:, None] + number <= modes**2 + 1
        self._modes, self._along = modes, inside.sum(1)  # modes of col beside each mode of row
        self._stops = np.cumsum(self._along)
        squared = (number[:, None] + number)[inside] * (np.pi / (2 * half_px)) ** 2
        self._squared: Float64 = np.asarray(squared, dtype=np.float64)

    def __len__(self) -> int:
        return len(self._squared)

    def prior_sd(self, amplitude_px: float, length_px: float) -> Float64:
        """Return the prior sd of each weight, ``(K,)``."""
        return amplitude_px * np.sqrt(_matern_density(self._squared, length_px))

    def features(self, places_px: Float64, scale: Float64) -> Float32:
        """Return the features ``(n, k)`` at specimen places ``(n, 2)``, each times its ``scale``."""
        across, along = (places_px - self._centre).T
        rows, _ = _sines(across, self._half, self._modes)
        cols, _ = _sines(along, self._half, self._modes)
        return self._products(rows, cols, scale)

    def with_derivatives(self, places_px: Float64, scale: Float64) -> tuple[Float32, Float32, Float32]:
        """Return the features and their derivatives along row and col, each ``(n, k)``."""
        across, along = (places_px - self._centre).T
        rows, rows_slope = _sines(across, self._half, self._modes)
        cols, cols_slope = _sines(along, self._half, self._modes)
        return (
            self._products(rows, cols, scale),
            self._products(rows_slope, cols, scale),
            self._products(rows, cols_slope, scale),
        )

    def _products(self, rows: Float64, cols: Float64, scale: Float64) -> Float32:
        out = np.empty((len(rows), len(self)), np.float32)
        across, along = rows.astype(np.float32), cols.astype(np.float32)
        for mode, (count, stop) in enumerate(zip(self._along, self._stops, strict=True)):
            block = slice(stop - count, stop)
            np.multiply(across[:, mode : mode + 1], along[:, :count], out=out[:, block])
        out *= scale
        return out


def _cholesky(precision: Float64) -> Float64:
    """Turn the lower triangle of a column-major matrix into its factor, in place."""
    factor, info = lapack.dpotrf(precision, lower=1, clean=0, overwrite_a=1)
    if info != 0:
        raise np.linalg.LinAlgError(f"the information is not positive definite at its row {info}")
    return np.asarray(factor)


@dataclass(slots=True, eq=False)
class _Information:
    """A Gaussian over the weights of both fields and the numbers x of the frame.

    The precision is ``[[fields, cross'], [cross, own]]`` and the mean solves precision · mean = shift.
    Of ``fields`` only the lower triangle is kept: it cannot lose its symmetry, which an update of both
    triangles does (1e-12 grew to 2e-4 in 64 frames, and the factorisation failed at frame 89).
    """

    fields: Float64  # (n, n), column-major, lower triangle
    cross: Float64  # (x, n)
    own: Float64  # (x, x)
    fields_shift: Float64  # (n,)
    own_shift: Float64  # (x,)

    def copy(self) -> _Information:
        """Return a copy that shares nothing."""
        return _Information(
            self.fields.copy(order="F"),
            self.cross.copy(),
            self.own.copy(),
            self.fields_shift.copy(),
            self.own_shift.copy(),
        )

    def marginal(self) -> _Marginal:
        """Return the belief about both fields, whatever x is."""
        factor = np.linalg.cholesky(self.own)
        seen = np.linalg.solve(factor, np.column_stack([self.cross, self.own_shift]))
        return self._less(seen)

    def _less(self, seen: Float64) -> _Marginal:
        lower = blas.dsyrk(-1.0, seen[:, :-1], beta=1.0, c=self.fields, trans=1, lower=1)
        shift = self.fields_shift - seen[:, :-1].T @ seen[:, -1]
        return _Marginal(np.asarray(lower), shift)

    def advance_own(self, transition: Float64, variance: Float64) -> None:
        """Carry x one frame on, ``x' = transition x + noise``, and marginalise the old one exactly."""
        drive = np.diag(1 / variance)
        factor = np.linalg.cholesky(self.own + transition.T @ drive @ transition)
        seen = np.linalg.solve(factor, np.column_stack([self.cross, self.own_shift]))
        carried = np.linalg.solve(factor, transition.T @ drive)
        less = self._less(seen)
        self.fields, self.fields_shift = less.precision, less.shift
        self.cross = carried.T @ seen[:, :-1]
        self.own_shift = carried.T @ seen[:, -1]
        self.own = drive - carried.T @ carried

    def forget(self, count: int, keep: float) -> None:
        """Let the first ``count`` weights, of unit prior variance, forget towards their prior."""
        drive = 1 / (1 - keep**2)
        rest = slice(count, None)
        own = np.asfortranarray(self.fields[:count, :count]) + keep**2 * drive * np.eye(count)
        factor = _cholesky(own)
        below = np.column_stack(
            [self.fields[rest, :count].T, self.cross[:, :count].T, self.fields_shift[:count]]
        )
        seen = np.asarray(blas.dtrsm(1.0, factor, below, lower=1))
        fields, x = seen[:, : -_X - 1], seen[:, -_X - 1 : -1]
        later = np.asfortranarray(self.fields[rest, rest])
        self.fields[rest, rest] = blas.dsyrk(-1.0, fields, beta=1.0, c=later, trans=1, lower=1, overwrite_c=1)
        self.cross[:, rest] -= x.T @ fields
        self.own -= x.T @ x
        self.fields_shift[rest] -= fields.T @ seen[:, -1]
        self.own_shift -= x.T @ seen[:, -1]
        back = np.asarray(blas.dtrsm(keep * drive, factor, seen, lower=1, trans_a=1))
        self.fields[rest, :count] = back[:, : -_X - 1].T
        self.cross[:, :count] = back[:, -_X - 1 : -1].T
        self.fields_shift[:count] = back[:, -1]
        # what is left above the diagonal would grow from frame to frame, unread, until it overflows
        inverse = np.tril(lapack.dpotri(factor, lower=1)[0])
        self.fields[:count, :count] = drive * np.eye(count) - (keep * drive) ** 2 * inverse


@dataclass(slots=True, eq=False)
class _Marginal:
    """The same Gaussian over the fields alone: precision (lower triangle) and precision · mean."""

    precision: Float64
    shift: Float64


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """One frame's columns, checked: ideal places, where they were seen, and the weight of each."""

    ideal: Float64  # (n, 2) specimen
    seen: Float64  # (n, 2) raster
    weight: Float64  # (n, 2) 1 / variance

    def only(self, keep: NDArray[np.bool_]) -> _Seen:
        return _Seen(self.ideal[keep], self.seen[keep], self.weight[keep])

    def __len__(self) -> int:
        return len(self.seen)


def _whitened(design: Float32, rows: NDArray[np.int64], weight: Float64, jitter_px: float) -> Float32:
    """Make columns of ``design`` (n, p), sorted by ``rows``, independent and of unit variance.

    Columns of one row with weights l have the covariance ``diag(1/l) + s² 11'``. With v the unit vector
    along sqrt(l) its inverse is ``sqrt(l) (1 - b vv') sqrt(l)``, b = s² Σl / (1 + s² Σl); the root of that
    takes 1 - sqrt(1 - b) of the part along v. A product of such features is positive by construction.
    """
    root = np.sqrt(weight).astype(np.float32)[:, None]
    white = design * root
    if jitter_px == 0:
        return white
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
    total = np.add.reduceat(weight, starts)
    taken = ((1 - 1 / np.sqrt(1 + jitter_px**2 * total)) / total).astype(np.float32)
    common = np.add.reduceat(white * root, starts, axis=0) * taken[:, None]
    white -= root * np.repeat(common, np.diff(starts, append=len(rows)), axis=0)
    return white


class StrainGP:
    """The displacement of a specimen and the distortion of its scans, learnt together.

    Parameters
    ----------
    scan
        How the frames are scanned. Hum and drift are told apart for each frame; the rest is the distortion.
    hyper
        Prior of the distortion, and the jitter of the rows.
    config
        What is believed before the first frame.
    calibrated_affine_px
        Affine part of the distortion as of ``mean_affine_px``, shape ``(2, 3)``, known from a lattice of
        known size. Fixes the pixel size of the scan, so that the strain is absolute. None
        says instead that the specimen has no mean shift, dilation and turn over the field of view: what
        is found of them is put down to the scan.
    """

    def __init__(
        self,
        scan: ScanModel,
        hyper: Hyperparameters | None = None,
        config: StrainConfig | None = None,
        calibrated_affine_px: Float64 | None = None,
    ) -> None:
        self.scan, self.hyper, self.config = scan, hyper or Hyperparameters(), config or StrainConfig()
        self._shape = np.array(scan.shape, dtype=np.float64)
        self._centre, self._half = (self._shape - 1) / 2, max(scan.shape) / 2
        self._reach = self.config.reach * self._half
        self._scan_basis = ScanBasis(scan)
        self._static = self._scan_basis.dynamic_start  # hum and drift come after, and are parts of x
        if self._static == 0:
            raise ValueError(f"scan.blocks is {scan.blocks}; without a part that frames share all is strain")
        variance = self._scan_basis.prior_variance(self.hyper)[:, : self._static]
        self._scan_sd = np.sqrt(variance.numpy())
        self._basis = _SpecimenBasis(self._centre, 1.15 * self._reach, self.config.finest_px)
        self._strain_sd = self._basis.prior_sd(self.config.amplitude_px, self.config.length_px)
        self._scan_count, self._strain_count = 2 * self._static, 2 * len(self._basis)
        self._information = self._prior()
        if calibrated_affine_px is None:
            self._fix_specimen()
        else:
            self._fix_scan(np.asarray(calibrated_affine_px, dtype=np.float64))
        self._solve()
        self._poses: list[Pose] = []
        self._pose: Pose | None = None
        self._turned_to = 0.0  # the last rotation that was not the first
        self.frames = 0

    # -- before the first frame

    def _prior(self) -> _Information:
        count = self._scan_count + self._strain_count
        config = self.config
        turn = max(config.turn_rad, _NOTHING)
        sd = np.concatenate([[config.offset_px] * 2, [config.velocity_px] * 2, [turn], self._hum_sd()])
        return _Information(
            np.eye(count, order="F"), np.zeros((_X, count)), np.diag(sd**-2), np.zeros(count), np.zeros(_X)
        )

    def _hum_sd(self) -> Float64:
        """Sd of the hum in a frame, ``(4,)``."""
        hum = self.hyper.amplitude_px["hum"] if "hum" in self._scan_basis.blocks else (0.0, 0.0)
        return np.asarray(np.maximum(np.repeat(hum, 2), _NOTHING))

    def _fix_specimen(self) -> None:
        """Give mean shift, dilation and turn of the field to the scan."""
        nodes = _field_nodes(self.scan.shape)
        shapes = _gauge_shapes(nodes - self._centre)
        features = self._basis.features(nodes, self._strain_sd).astype(np.float64)
        of_row, of_col = np.split(shapes / np.square(shapes).sum(0), 2)
        mean = np.column_stack([of_row.T @ features, of_col.T @ features])
        self._pretend(mean, slice(self._scan_count, None), np.zeros(4), _GAUGE_SD_PX)

    def _fix_scan(self, affine_px: Float64) -> None:
        """Hold the mean and the slopes of the distortion to what calibration found."""
        if affine_px.shape != (2, 3) or not np.all(np.isfinite(affine_px)):
            raise ValueError(f"calibrated_affine_px must be 2 x 3 finite numbers, not {affine_px.shape}")
        nodes = _field_nodes(self.scan.shape)
        fit = _affine_fit(nodes, self.scan.shape) @ self._scan_features(nodes)
        count = fit.shape[1]
        mean = np.zeros((6, 2 * count))
        for axis in (0, 1):
            mean[3 * axis : 3 * axis + 3, axis * count : (axis + 1) * count] = fit * self._scan_sd[axis]
        self._pretend(mean, slice(0, self._scan_count), affine_px.ravel(), 5 * _GAUGE_SD_PX)

    def _pretend(self, rows: Float64, block: slice, value: Float64, sd_px: float) -> None:
        """Take in made-up observations ``rows @ weights = value``."""
        self._gauge = np.zeros((len(rows), len(self._information.fields_shift)))
        self._gauge[:, block] = rows
        self._information.fields[block, block] += rows.T @ rows / sd_px**2
        self._information.fields_shift[block] += rows.T @ value / sd_px**2

    # -- the mean

    def _solve(self) -> None:
        """Bring the mean of all weights and of x up to date with the information."""
        information = self._information
        marginal = information.marginal()
        self._factor = _cholesky(marginal.precision)
        self._mean = np.asarray(lapack.dpotrs(self._factor, marginal.shift, lower=1)[0])
        left = information.own_shift - information.cross @ self._mean
        self._own = np.linalg.solve(information.own, left)

    def _scan_weights(self) -> torch.Tensor:
        """Weights of all features of the scan, those of hum and drift 0, shape ``(2, m)``."""
        weights = np.zeros((2, self._scan_basis.size))
        weights[:, : self._static] = self._scan_sd * self._mean[: self._scan_count].reshape(2, -1)
        return torch.from_numpy(weights)

    def _scan_features(self, positions_px: Float64) -> Float64:
        places = torch.from_numpy(np.ascontiguousarray(positions_px))
        return np.asarray(self._scan_basis.features(places)[:, : self._static].numpy())

    def distortion_px(self, positions_px: Float64) -> Float64:
        """Return the distortion d ``(n, 2)`` at raster positions ``(n, 2)``; drift, hum and jitter apart."""
        inside = np.clip(positions_px, -0.5, self._shape - 0.5)
        return np.asarray(self._scan_basis.field(torch.from_numpy(inside), self._scan_weights()).numpy())

    def to_raw_px(self, places_px: Float64) -> Float64:
        """Return the raster positions s ``(n, 2)`` that lie at places ``s + d(s)``, by fixed point."""
        found = np.array(places_px, dtype=np.float64)
        for _ in range(6):
            found = places_px - self.distortion_px(found)
        return found

    def specimen_displacement_px(self, places_px: Float64) -> Float64:
        """Return the specimen's displacement u ``(n, 2)`` at specimen places ``(n, 2)``.

        Raises
        ------
        NotIdentifiable
            If the scans so far do not tell it from distortion; see ``missing``.
        """
        self._require_identifiable()
        return self.ambiguous_displacement_px(places_px)

    def ambiguous_displacement_px(self, places_px: Float64) -> Float64:
        """Return what ``specimen_displacement_px`` would, even where it is distortion: a diagnosis."""
        features = self._basis.features(np.asarray(places_px, dtype=np.float64), self._strain_sd)
        return self._displacement(features)

    def _displacement(self, strain: Float32) -> Float64:
        weights = self._mean[self._scan_count :].reshape(2, -1)
        return np.asarray((strain @ weights.astype(np.float32).T).astype(np.float64))

    def _raster_px(self, pose: Pose, places_px: Float64, start_px: Float64, rounds: int) -> Float64:
        """Return where displaced specimen places ``(n, 2)`` lie on the raster, by fixed point."""
        drift, velocity, turn, hum = np.split(self._own, [2, 4, 5])
        turned = pose.rotation_rad + turn[0] * self._is_turned(pose)
        matrix = Pose(turned, pose.stage_px).matrix()
        still = (places_px + pose.stage_px + drift - self._centre) @ matrix + self._centre
        carried = velocity @ matrix
        found = start_px
        for _ in range(rounds):
            late = self._time(found)[:, None] * carried - self._hum(found) @ hum.reshape(2, 2).T
            found = still + late - self.distortion_px(found)
        return found

    def _is_turned(self, pose: Pose) -> bool:
        """Say whether the error of the angle counts: angles are counted from that of the first frame."""
        return bool(self._poses) and pose.rotation_rad != self._poses[0].rotation_rad

    def _time(self, positions_px: Float64) -> Float64:
        """Return the time in the frame, 0 to 1, of raster positions."""
        return np.asarray((positions_px[:, 0] + 0.5) / self.scan.shape[0])

    def _hum(self, positions_px: Float64) -> Float64:
        """Return cosine and sine of the hum's phase, ``(n, 2)``; its offset is another in each frame."""
        if self.scan.hum_period_rows is None:
            return np.zeros((len(positions_px), 2))
        phase = positions_px[:, 0] * (2 * math.pi / self.scan.hum_period_rows)
        return np.column_stack([np.cos(phase), np.sin(phase)])

    def parts(self, step_px: float = 32.0) -> FieldParts:
        """Take the displacement of the last frame apart, drift, velocity, turn and hum included.

        With it ``s + D(s)`` is the place, on the raster of a frame turned alike, where the probe was.
        """
        return self._parts_of(self._pose or Pose(), self._nodes(step_px))

    def field(self, pose: Pose | None = None) -> Float32:
        """Say ``D`` at every pixel, as of ``parts`` with the drift in it: ``(2, rows, cols)``.

        Parameters
        ----------
        pose
            Of a frame; None for that of the last one. Drift is that of the last frame all the same.
        """
        lines = [np.arange(size, dtype=np.float64) for size in self.scan.shape]
        parts = self._parts_of(pose or self._pose or Pose(), lines)
        found = parts.grid_px + parts.rows_px[:, :, None]
        found[:, 0::2] += parts.cols_px[:, None]
        found[:, 1::2] += (parts.cols_px if parts.odd_cols_px is None else parts.odd_cols_px)[:, None]
        found += np.array(parts.translation_px, dtype=np.float32)[:, None, None]
        return found

    def _parts_of(self, pose: Pose, nodes_px: list[Float64]) -> FieldParts:
        drift, velocity, turn, hum = np.split(self._own, [2, 4, 5])
        still, carried = -drift @ pose.matrix(), -velocity @ pose.matrix()
        weights, basis = self._scan_weights(), self._scan_basis
        nodes = [torch.from_numpy(line) for line in nodes_px]
        lines = [torch.arange(size, dtype=torch.float64) for size in self.scan.shape]
        rows = (weights[:, basis.row] @ basis.row_features(lines[0]).T).numpy()
        places = np.stack([lines[0].numpy(), np.zeros(len(lines[0]))], 1)
        rows += carried[:, None] * (self._time(places) - 0.5) + hum.reshape(2, 2) @ self._hum(places).T
        cols, odd = (basis.column_line(lines[1], weights, odd=odd).numpy() for odd in (False, True))
        turn = turn * self._is_turned(pose)
        rows[1] -= turn * (places[:, 0] - self._centre[0])
        for line in (cols, odd):
            line[0] += turn * (lines[1].numpy() - self._centre[1])
        translation = still + carried / 2
        return FieldParts(
            grid_px=basis.plane_grid(nodes[0], nodes[1], weights).numpy().astype(np.float32),
            rows_px=rows.astype(np.float32),
            cols_px=cols.astype(np.float32),
            odd_cols_px=odd.astype(np.float32) if self.scan.path == "serpentine" else None,
            translation_px=(float(translation[0]), float(translation[1])),
        )

    def _nodes(self, step_px: float) -> list[Float64]:
        """Nodes from the first pixel to the last, at most ``step_px`` apart."""
        return [np.linspace(0, n - 1, math.ceil((n - 1) / step_px) + 1) for n in self.scan.shape]

    def sd_grid(self, step_px: float = 64.0, absorbed: tuple[float, float] = (0.0, 0.0)) -> Float32:
        """Say how far the distortion may be off along each axis, on nodes as of ``parts``: ``(2, n, m)``.

        A mean of the whole field is not counted: it is the drift's.

        Parameters
        ----------
        step_px
            How far apart nodes are at most.
        absorbed
            Part ``(row, col)`` of an error common to a whole row that the row's own offset, measured beside
            this field, makes up for.
        """
        rows, cols = self._nodes(step_px)
        places = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)
        features = self._scan_features(places)
        features = features - features.mean(0)
        values = np.zeros((2 * len(places), len(self._mean)))
        by_row = features.reshape(len(rows), len(cols), -1)
        common = by_row.mean(1).repeat(len(cols), 0)
        values[: len(places), : self._static] = (features - absorbed[0] * common) * self._scan_sd[0]
        second = slice(self._static, self._scan_count)
        values[len(places) :, second] = (features - absorbed[1] * common) * self._scan_sd[1]
        spread = np.asarray(blas.dtrsm(1.0, self._factor, values.T, lower=1))
        sd = np.sqrt(np.square(spread).sum(0)).reshape(2, len(rows), len(cols))
        return np.asarray(sd.astype(np.float32))

    @property
    def drift_px(self) -> Float64:
        """Drift of the specimen at the start of the last frame, ``(2,)``, with the sign of a registration."""
        return self._own[:2].copy()

    @property
    def velocity_px(self) -> Float64:
        """Drift during one frame, ``(2,)``."""
        return self._own[2:4].copy()

    @property
    def turn_rad(self) -> float:
        """By how much the scan of the last frame is turned beyond what was asked for."""
        return float(self._own[4]) if self._pose and self._is_turned(self._pose) else 0.0

    # -- what can be said of strain

    @property
    def is_identifiable(self) -> bool:
        """Whether the scans so far tell strain from distortion."""
        return self.missing() is None

    def missing(self) -> str | None:
        """Say which scan is missing before strain can be told from distortion; None if none is.

        The fields that a set of scans cannot see are those that every step from scan to scan leaves alone.
        A half turn leaves most of them, any number of turns about one point of the specimen leaves barrel and
        spiral about it. So there must be turns that are no half turns, and not all about one point.
        """
        if len(self._poses) == 0:
            return "no frame was seen"
        angles = np.array([pose.rotation_rad for pose in self._poses])
        if np.abs(np.sin(angles - angles[0])).max() < math.sin(_LEAST_TURN_RAD):
            return (
                "a rotation is missing: from one scan orientation (0 and 180 degrees count as one) "
                "strain and distortion are the same data; scan again turned by 90 degrees"
            )
        if self._spread_px() < _LEAST_SPREAD * 2 * self._half:
            return (
                "a stage move is missing: all scans so far turn about one point of the specimen; move "
                "the stage, not the scan, by about a fifth of the field and scan both orientations again"
            )
        return None

    def _spread_px(self) -> float:
        """How far the scans are from all turning about one point, RMS in pixels."""
        turns = np.concatenate([pose.matrix() for pose in self._poses])
        stages = np.concatenate([np.array(pose.stage_px) for pose in self._poses])
        # the raster point p that every scan has at the specimen point q: R p - stage = q
        unknowns = np.column_stack([turns, -np.tile(np.eye(2), (len(self._poses), 1))])
        left = unknowns @ np.linalg.lstsq(unknowns, stages, rcond=None)[0] - stages
        return float(np.sqrt(np.mean(np.sum(left.reshape(-1, 2) ** 2, 1))))

    def _require_identifiable(self) -> None:
        reason = self.missing()
        if reason is not None:
            raise NotIdentifiable(reason)

    def strain_map(self, step_px: float = 16.0) -> StrainMap:
        """Return displacement, strain and rotation of the specimen over one field of view.

        Strain is the exact derivative of the displacement's features. Unless the scan was calibrated it is
        relative to the field's mean dilation and turn.

        Parameters
        ----------
        step_px
            Distance of the grid's places.

        Raises
        ------
        NotIdentifiable
            If the scans so far do not tell strain from distortion; the text says what is missing.
        """
        self._require_identifiable()
        rows, cols = (np.arange(0, size - 1 + 1e-9, step_px) for size in self.scan.shape)
        places = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)
        field, along_row, along_col = self._basis.with_derivatives(places, self._strain_sd)
        parts = (
            ((1.0, field), (0.0, field)),
            ((0.0, field), (1.0, field)),
            ((1.0, along_row), (0.0, along_row)),
            ((0.0, along_col), (1.0, along_col)),
            ((0.5, along_col), (0.5, along_row)),
            ((0.5, along_col), (-0.5, along_row)),
        )
        found = [self._mean_and_sd(first, second) for first, second in parts]
        mean, sd = np.array(found).reshape(6, 2, len(rows), len(cols)).transpose(1, 0, 2, 3)
        return StrainMap(
            rows_px=rows,
            cols_px=cols,
            displacement_px=mean[:2],
            displacement_sd_px=sd[:2],
            strain=mean[2:5],
            strain_sd=sd[2:5],
            rotation_rad=mean[5],
            rotation_sd_rad=sd[5],
        )

    def _mean_and_sd(
        self, of_row: tuple[float, Float32], of_col: tuple[float, Float32]
    ) -> tuple[Float64, Float64]:
        """Mean and sd of a sum of a number times features of u along row and of u along col."""
        rows = np.concatenate([share * features for share, features in (of_row, of_col)], 1).astype(
            np.float64
        )
        spread = self._strain_root(rows)
        return rows @ self._mean[self._scan_count :], np.sqrt(np.square(spread).sum(0))

    def _strain_root(self, rows: Float64) -> Float64:
        """Return V with ``V.T @ V`` the covariance of ``rows @ weights of u``."""
        # u comes last, so the last block of the factor is the factor of its marginal precision
        factor = np.asfortranarray(self._factor[self._scan_count :, self._scan_count :])
        return np.asarray(blas.dtrsm(1.0, factor, rows.T, lower=1))

    def weakest_strain_sd_px(self) -> float:
        """Return the sd of the displacement pattern that is known worst, RMS over the field, in pixels.

        Mean shift, dilation and turn, which no scan can tell, apart. Repeat the four scans
        when it exceeds about 0.03 px.
        """
        edge = np.linspace(0, 1, 9)
        down, along = np.meshgrid(edge, edge, indexing="ij")
        places = np.stack([down.ravel(), along.ravel()], -1) * (self._shape - 1)
        features = self._basis.features(places, self._strain_sd).astype(np.float64)
        nothing = np.zeros_like(features)
        rows = np.concatenate([np.column_stack([features, nothing]), np.column_stack([nothing, features])])
        gauge, _ = np.linalg.qr(_gauge_shapes(places - self._centre))
        rows -= gauge @ (gauge.T @ rows)
        return float(np.linalg.norm(self._strain_root(rows), 2) / math.sqrt(len(places)))

    # -- the prior of the strain

    def learn_strain_prior(
        self,
        amplitudes_px: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8),
        lengths_px: tuple[float, ...] = (50.0, 72.0, 100.0, 140.0),
        margin: float = 3.0,
    ) -> tuple[float, float]:
        """Choose amplitude and length scale of the displacement by the evidence of all frames so far.

        The data are in the information apart from the prior, so exchanging the prior is exact: the state is
        then what it would be had the frames been seen with the new prior (but for the linearisation). About
        25 ms CPU for each pair that is tried; not for the hot path.

        Parameters
        ----------
        amplitudes_px, lengths_px
            What is tried, each with each.
        margin
            By how much the amplitude is then raised. The likeliest one has the smallest error, but takes 2
            to 8 % off a strain that is local; three times as much takes 1 % and leaves most of the gain.

        Returns
        -------
        tuple[float, float]
            The chosen amplitude and length, in pixels; also in ``config``.
        """
        tried = {(a, length): self._evidence(a, length) for a in amplitudes_px for length in lengths_px}
        amplitude, length = max(tried, key=lambda pair: tried[pair])
        self._exchange_prior(margin * amplitude, length)
        return margin * amplitude, length

    def _evidence(self, amplitude_px: float, length_px: float) -> float:
        """Log evidence of a prior of u, up to what all priors share."""
        sd = self._basis.prior_sd(amplitude_px, length_px)
        marginal = self._with_prior(sd).marginal()
        factor = _cholesky(marginal.precision)
        mean = np.asarray(lapack.dpotrs(factor, marginal.shift, lower=1)[0])
        evidence = 0.5 * float(marginal.shift @ mean) - float(np.log(np.diag(factor)).sum())
        # the gauge is no datum: what it says for a small amplitude is taken back
        pretended = self._gauge * self._scaling(sd)
        spread = pretended @ pretended.T + _GAUGE_SD_PX**2 * np.eye(len(pretended))
        return evidence + 0.5 * float(np.linalg.slogdet(spread)[1])

    def _scaling(self, strain_sd: Float64) -> Float64:
        """By how much the weights shrink when those of u are whitened by another sd."""
        return np.concatenate([np.ones(self._scan_count), np.tile(strain_sd / self._strain_sd, 2)])

    def _with_prior(self, strain_sd: Float64) -> _Information:
        """Return the information with another prior sd of u's weights."""
        scale, other = self._scaling(strain_sd), self._information.copy()
        u = np.arange(self._scan_count, len(scale))
        other.fields[u, u] -= 1.0
        other.fields *= scale[:, None] * scale
        other.fields[u, u] += 1.0
        other.cross *= scale
        other.fields_shift *= scale
        return other

    def _exchange_prior(self, amplitude_px: float, length_px: float) -> None:
        sd = self._basis.prior_sd(amplitude_px, length_px)
        self._information = self._with_prior(sd)
        self._gauge *= self._scaling(sd)
        self._strain_sd = sd
        self.config = replace(self.config, amplitude_px=amplitude_px, length_px=length_px)
        self._solve()

    # -- a restart

    def state(self) -> dict[str, Float64]:
        """Return all that was learnt as float64 arrays; ``restore`` goes on from them bit for bit."""
        information, pose = self._information, self._pose
        poses = [*self._poses, *([pose] if pose else [])]
        return {
            "fields": np.tril(information.fields),
            "cross": information.cross.copy(),
            "own": information.own.copy(),
            "fields_shift": information.fields_shift.copy(),
            "own_shift": information.own_shift.copy(),
            "mean": self._mean.copy(),
            "own_mean": self._own.copy(),
            "gauge": self._gauge.copy(),
            "strain_prior": np.array([self.config.amplitude_px, self.config.length_px]),
            "poses": np.array([[p.rotation_rad, *p.stage_px] for p in poses]).reshape(-1, 3),
            "turned_to": np.array([self._turned_to]),
            "frames": np.array([self.frames], dtype=np.float64),
        }

    def restore(self, state: dict[str, Float64]) -> None:
        """Go on from a ``state`` of a StrainGP made with the same scan and features.

        Raises
        ------
        ValueError
            If an array is missing, is not finite or has another shape.
        """
        for name, now in self.state().items():
            if name not in state:
                raise ValueError(f"the state has no {name!r}; it is no state of a StrainGP")
            kept = state[name]
            if kept.shape != now.shape and not (name == "poses" and kept.shape[1:] == (3,)):
                raise ValueError(
                    f"the state's {name!r} is {kept.shape}, not {now.shape}: made for another scan"
                )
            if not np.isfinite(kept).all():
                raise ValueError(f"the state's {name!r} is not finite; begin anew")
        self._information = _Information(
            np.array(state["fields"], order="F"),
            *(np.array(state[name]) for name in ("cross", "own", "fields_shift", "own_shift")),
        )
        amplitude, length = (float(number) for number in state["strain_prior"])
        self.config = replace(self.config, amplitude_px=amplitude, length_px=length)
        self._strain_sd = self._basis.prior_sd(amplitude, length)
        self._gauge = np.array(state["gauge"])
        self._factor = _cholesky(self._information.marginal().precision)
        self._mean, self._own = np.array(state["mean"]), np.array(state["own_mean"])
        self.frames, self._turned_to = int(state["frames"][0]), float(state["turned_to"][0])
        poses = [Pose(float(turn), (float(row), float(col))) for turn, row, col in state["poses"]]
        self._poses, self._pose = poses[:-1], poses[-1] if poses else None

    # -- one frame later

    def observe(
        self,
        ideal_px: Float64,
        seen_px: Float64,
        *,
        rotation_rad: float = 0.0,
        stage_px: tuple[float, float] = (0.0, 0.0),
        moved: bool | None = None,
        variance_px2: float | Float64 = 0.08**2,
    ) -> StrainUpdate:
        """Learn from one frame.

        Parameters
        ----------
        ideal_px
            Where the unstrained lattice has the columns that were seen, specimen places ``(n, 2)``.
        seen_px
            Where they were seen on the raster, ``(n, 2)``.
        rotation_rad, stage_px
            Scan rotation and commanded place of the stage ``(row, col)``, against an unmoved frame.
        moved
            Whether the offset is unknown again; None takes it so when rotation or stage have changed.
        variance_px2
            Noise of the seen positions without jitter: one number, ``(n,)`` or ``(n, 2)``.

        Raises
        ------
        ValueError
            If shapes disagree, a number is not finite, a variance is not above 0, or fewer than 24 columns
            are within reach. The state is then as before.
        """
        frame, outside = self._checked(ideal_px, seen_px, variance_px2)
        pose = Pose(rotation_rad, (float(stage_px[0]), float(stage_px[1])))
        moved = pose != self._pose and self.frames > 0 if moved is None else moved
        if self.frames:
            self._predict(pose, moved)
        update = self._learn(frame, pose, outside, moved)
        if self.frames == 0 or self._is_turned(pose):
            self._turned_to = pose.rotation_rad
        self._pose, self.frames = pose, self.frames + 1
        # once strain can be told further poses change nothing, and the list stays short
        if pose not in self._poses and not self.is_identifiable:
            self._poses.append(pose)
        return update

    def _checked(self, ideal: Float64, seen: Float64, variance: float | Float64) -> tuple[_Seen, int]:
        ideal, seen = np.asarray(ideal, dtype=np.float64), np.asarray(seen, dtype=np.float64)
        if ideal.ndim != 2 or ideal.shape[1] != 2 or seen.shape != ideal.shape:
            raise ValueError(f"ideal_px and seen_px must both be (n, 2), not {ideal.shape} and {seen.shape}")
        variance = np.asarray(variance, dtype=np.float64)
        spread = np.broadcast_to(variance[:, None] if variance.ndim == 1 else variance, seen.shape)
        if not (np.isfinite(ideal).all() and np.isfinite(seen).all() and np.isfinite(spread).all()):
            raise ValueError(
                "ideal_px, seen_px and variance_px2 must be finite: leave out what was not found"
            )
        if not (spread > 0).all():
            raise ValueError("variance_px2 must be above 0")
        near = (np.abs(ideal - self._centre) <= self._reach).all(1)
        near &= ((seen >= -0.5) & (seen <= self._shape - 0.5)).all(1)
        if near.sum() < _LEAST_SEEN:
            raise ValueError(f"{near.sum()} columns are within reach; it takes at least {_LEAST_SEEN}")
        # by row, so that the columns of a row lie together
        order = np.flatnonzero(near)[np.argsort(np.rint(seen[near, 0]), kind="stable")]
        return _Seen(ideal[order], seen[order], 1 / spread[order]), int((~near).sum())

    def _predict(self, pose: Pose, moved: bool) -> None:
        """Carry the belief one frame on."""
        config = self.config
        transition = np.eye(_X)
        transition[0, 2] = transition[1, 3] = 1.0
        transition[5:] = 0.0  # the mains run on between frames
        offset = config.moved_px if moved else 0.01
        sd = np.concatenate([[offset] * 2, [config.velocity_step_px] * 2, [_NOTHING], self._hum_sd()])
        first, turned = self._poses[0].rotation_rad, self._turned_to
        if pose.rotation_rad not in (first, turned) and turned != first:
            # a third angle is off by another amount; the one before is not remembered
            transition[4], sd[4] = 0.0, max(config.turn_rad, _NOTHING)
        self._information.advance_own(transition, sd**2)
        self._own = transition @ self._own
        if config.forget_frames:
            keep = math.exp(-1 / config.forget_frames)
            self._information.forget(self._scan_count, keep)
            self._mean[: self._scan_count] *= keep

    def _learn(self, frame: _Seen, pose: Pose, outside: int, moved: bool) -> StrainUpdate:
        before = self._information
        strain = self._basis.features(frame.ideal, self._strain_sd)
        raster = self._first_guess(frame, strain, pose)
        keep = np.ones(len(frame), dtype=bool)
        passes, settles = 0, False
        while not settles and passes < _MAX_PASSES:
            passes += 1
            self._information = before.copy()
            self._add(frame.only(keep), strain[keep], raster[keep], pose)
            self._solve()
            settled = self._raster_px(pose, frame.ideal + self._displacement(strain), raster, 2)
            change = float(np.sqrt(np.mean((settled - raster)[keep] ** 2)))
            raster, used, keep = settled, keep, _near(frame.seen - settled, 5.0)
            settles = change < _SETTLED_PX and np.array_equal(used, keep)
        count = int(used.sum())
        return StrainUpdate(
            used=count,
            gated=len(frame) - count,
            outside=outside,
            passes=passes,
            residual_px=float(np.sqrt(np.mean((frame.seen - raster)[used] ** 2))),
            moved=moved,
        )

    def _first_guess(self, frame: _Seen, strain: Float32, pose: Pose) -> Float64:
        """Predict the raster places, then follow the smooth part of what was seen.

        Ten numbers cannot follow the noise of two thousand columns, which is what must stay out.
        """
        places = frame.ideal + self._displacement(strain)
        found = self._raster_px(pose, places, frame.seen, 3)
        across, along = ((frame.seen - self._centre) / self._half).T
        smooth = np.stack([across**i * along**j for i in range(4) for j in range(4 - i)], 1)
        surprise = frame.seen - found
        surprise = surprise - np.median(surprise, 0)
        fit = np.linalg.lstsq(smooth, surprise, rcond=None)[0]
        moved = found + np.median(frame.seen - found, 0) + smooth @ fit
        return np.asarray(np.clip(moved, -0.5, self._shape - 0.5))

    def _add(self, frame: _Seen, strain: Float32, raster: Float64, pose: Pose) -> None:
        """Add the information of one frame, linearised at the raster places."""
        matrix = pose.matrix()
        still = (frame.ideal + pose.stage_px - self._centre) @ matrix
        value = (still + self._centre - frame.seen).astype(np.float32)
        # a turn by a small angle moves the expected raster place by that times (-col, row)
        turn = np.stack([still[:, 1], -still[:, 0]]) * self._is_turned(pose)
        own = [np.ones(len(frame)), self._time(raster), *turn, *self._hum(raster).T]
        features = self._scan_features(np.clip(raster, -0.5, self._shape - 0.5))
        design = np.empty((len(frame), self._static + len(self._basis) + _OWN + 2), np.float32)
        np.concatenate([features, strain, np.stack(own, 1), value], 1, out=design, casting="same_kind")
        rows = np.rint(frame.seen[:, 0]).astype(np.int64)
        jitter, weight = self.hyper.jitter_px, frame.weight
        gram = _gram(_whitened(design, rows, weight[:, 0], jitter[0]))
        alike = jitter[0] == jitter[1] and np.array_equal(weight[:, 0], weight[:, 1])
        other = gram if alike else _gram(_whitened(design, rows, weight[:, 1], jitter[1]))
        for axis, product in enumerate((gram, other)):
            self._add_axis(axis, product, matrix[:, axis])
        self._add_strain((gram, other), matrix)

    def _add_axis(self, axis: int, gram: Float64, direction: Float64) -> None:
        """Add all of one raster axis but u by u; ``direction`` is the axis as the specimen has it."""
        information, m, k = self._information, self._static, len(self._basis)
        scan, strain, own, value = (
            slice(0, m),
            slice(m, m + k),
            slice(m + k, m + k + _OWN),
            m + k + _OWN + axis,
        )
        to_x, sd = _to_x(axis, direction), self._scan_sd[axis]
        d = slice(axis * m, (axis + 1) * m)
        information.fields[d, d] += gram[scan, scan] * (sd[:, None] * sd)
        information.fields_shift[d] += gram[value, scan] * sd
        information.cross[:, d] += to_x @ (gram[own, scan] * sd)
        information.own += to_x @ gram[own, own] @ to_x.T
        information.own_shift += to_x @ gram[own, value]
        mixed = gram[scan, strain] * sd[:, None]
        for c in (0, 1):
            if abs(direction[c]) > 1e-12:
                u = self._strain_block(c)
                information.fields[u, d] -= direction[c] * mixed.T
                information.fields_shift[u] -= direction[c] * gram[value, strain]
                information.cross[:, u] -= direction[c] * (to_x @ gram[own, strain])

    def _add_strain(self, grams: tuple[Float64, Float64], matrix: Float64) -> None:
        """Add u by u of both raster axes; alike axes leave the components of u independent."""
        strain = slice(self._static, self._static + len(self._basis))
        first, second = (gram[strain, strain] for gram in grams)
        for c, other in ((0, 0), (1, 1), (1, 0)):
            shares = matrix[c] * matrix[other]
            block = self._strain_block(c), self._strain_block(other)
            if grams[0] is grams[1]:
                if c == other:
                    self._information.fields[block] += first
                continue
            for share, gram in zip(shares, (first, second), strict=True):
                if abs(share) > 1e-12:
                    self._information.fields[block] += share * gram

    def _strain_block(self, component: int) -> slice:
        """Where a component of u lies among the fields' weights."""
        k = len(self._basis)
        return slice(self._scan_count + component * k, self._scan_count + (component + 1) * k)


def mean_affine_px(distortion_px: Callable[[Float64], Float64], shape: tuple[int, int]) -> Float64:
    """Return the affine part of a distortion that is known, as ``StrainGP`` takes it.

    Parameters
    ----------
    distortion_px
        Gives the distortion ``(n, 2)`` at raster positions ``(n, 2)``, such as a calibrated corrector does.
    shape
        Rows and columns of the raster.

    Returns
    -------
    Float64
        Mean, slope per half edge along row and along col, for each component: ``(2, 3)``, in pixels.
    """
    nodes = _field_nodes(shape)
    return np.asarray((_affine_fit(nodes, shape) @ distortion_px(nodes)).T)


def _field_nodes(shape: tuple[int, int]) -> Float64:
    """Places over the raster that means over the field are taken at, ``(n, 2)``.

    Off the rim, where no column is fitted and a fly-back that is guessed would weigh on the affine part.
    """
    rows, cols = (np.linspace(_RIM * size, (1 - _RIM) * size - 1, _GRID) for size in shape)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)


def _affine_fit(nodes: Float64, shape: tuple[int, int]) -> Float64:
    """Return what takes values at nodes to their mean and slopes per half of the longer edge, ``(3, n)``."""
    off = (nodes - (np.array(shape) - 1) / 2) / (max(shape) / 2)
    return np.asarray(np.linalg.pinv(np.column_stack([np.ones(len(nodes)), off])))


def _gauge_shapes(offset_px: Float64) -> Float64:
    """Mean shifts, dilation and turn at places ``(n, 2)`` off the centre, ``(2n, 4)``, 1 px RMS each."""
    row, col = offset_px.T / np.sqrt(np.square(offset_px).sum(1).mean())
    one, zero = np.ones(len(row)), np.zeros(len(row))
    return np.concatenate([np.stack([one, zero, row, col], 1), np.stack([zero, one, col, -row], 1)])


def _gram(white: Float32) -> Float64:
    """Return the product of whitened features with themselves.

    Summed in float64: in float32 its rounding eats the prior of what was never seen, 0.005 of 1 a frame, and
    after 150 frames the information was no longer positive.
    """
    exact = white.astype(np.float64)
    return np.asarray(exact.T @ exact)


def _to_x(axis: int, direction: Float64) -> Float64:
    """Say what part each number of x has in the own features of one raster axis, ``(x, own)``."""
    to_x = np.zeros((_X, _OWN))
    to_x[:2, 0] = to_x[2:4, 1] = -direction
    to_x[4, 2 + axis] = 1.0
    to_x[5 + 2 * axis, 4] = to_x[6 + 2 * axis, 5] = 1.0
    return to_x


def _near(residual_px: Float64, robust_sds: float) -> NDArray[np.bool_]:
    """Say which residuals ``(n, 2)`` are within so many robust sd, and at least 0.3 px."""
    centred = np.abs(residual_px - np.median(residual_px, 0))
    limit = np.maximum(robust_sds * 1.4826 * np.median(centred, 0), 0.3)
    return np.asarray((centred <= limit).all(1))
