"""The scan distortion, learnt online: a Hilbert-space GP in space, a Kalman filter in time.

``D_t(s) = features(s) @ w_t``: a pixel ``s`` of frame t was recorded with the probe at raster place
``s + D_t(s)``. Components and positions are ``(row, col)`` in pixels: 0 is the slow axis, 1 the fast one.
The weights of each component follow a linear model from frame to frame, and a frame teaches them by
columns, rows or blocks whose true place is known. Work and memory are the same for every frame.

Shapes: n observations, m features, k of them that learn, 2 components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, overload

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.linalg.blas import dsyrk, dtrmm, dtrsm
from scipy.linalg.lapack import dpotrf
from scipy.spatial import cKDTree
from torch import Tensor

from models import triangles
from models.row_jitter import LoneRows, RowJitter, hum_seen, observed_once
from models.scan_basis import BLOCKS, Float64, Hyperparameters, ScanBasis, ScanModel

__all__ = [
    "BLOCKS",
    "DistortionGP",
    "FieldParts",
    "GPFacts",
    "Hyperparameters",
    "Observations",
    "ScanModel",
    "Update",
]

Float32: TypeAlias = NDArray[np.float32]
_Asked: TypeAlias = tuple[float, float | None, Tensor]  # spacing of nodes, period of the hum, weights

_HOLD_OUT = 12  # one observation in so many is kept from the fit, to judge it by
_JUDGED_STEP = 3  # of those, at one in so many it is asked how well the field is known: it varies slowly
_HOLD_OUT_LEAST = 48  # of fewer, none
_GATE_SD, _GATE_LEAST_PX = 4.0, 0.3
_FIRST_PASSES = 3  # nothing is known yet of what an outlier is
_FLOOR_PX2 = 1e-4  # what no fit of a column knows better
_TINY = 1e-13  # px²: keeps a Cholesky factor of the covariance real
_HUM_WANDER = 0.12  # of its amplitude, from frame to frame
_DRIFT_WANDER = 0.3  # of drift_change_px: how far a position strays from its velocity
_OFFSET_VARIANCE = 4.0  # px²: where a specimen lies that was never seen
_SHARE = 0.3  # of a frame in the running estimate of the jitter
_NODES_PX = 16
# Of a line, or of a frame: where its start begins to be forgotten, where it is, and how far what follows is
# a straight line. A coil bends slowly; what bends quickly at the start of a line is its fly-back.
_TRANSIENT = (0.06, 0.2, 0.5)
_PAST = 5.0
_MEMORY = 0.95  # of what held-out observations said of the noise
_NOISE_RANGE = (0.7, 4.0)
_TRUSTED_NOISE = 2.0  # the said noise of a measurement is right within this factor
_LEAST_JITTER_PX2 = 1e-8
_LOCK_SD = 3.0  # a hum that stands out less has no phase worth following
_LOCK_GAIN = 0.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observations:
    """Places of one frame whose true place is known: columns, rows or blocks.

    Attributes
    ----------
    positions_px
        Where they were seen on the raster, ``(row, col)``, shape ``(n, 2)``.
    displacement_px
        True place minus position, shape ``(n, 2)``: it samples ``D``, with row jitter and noise on it.
    variance_px2
        Of the noise of the measurement along each axis, jitter not counted, shape ``(n, 2)``.
    column_sigma_px
        Sd of an atom column's image, over whose rows a fit averages jitter and hum; 0 for points and for
        blocks.
    row_reach
        By how much further along the rows, ``(row, col)``, a fit averages than one with equal noise in all
        pixels: counts are noisier in the middle of a column than at its flanks.

    Raises
    ------
    ValueError
        If shapes are unlike, or a number is NaN, infinite, or no variance.
    """

    positions_px: Float64
    displacement_px: Float64
    variance_px2: Float64
    column_sigma_px: float = 0.0
    row_reach: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        shape = (len(self.positions_px), 2)
        for name in ("positions_px", "displacement_px", "variance_px2"):
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"observations.{name} has shape {array.shape}; it takes {shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"observations.{name} holds NaN or infinity; leave such places out")
        if not (self.variance_px2 >= 0).all():
            raise ValueError("observations.variance_px2 holds numbers below 0; it takes variances")
        if not 0 <= self.column_sigma_px < 100:
            raise ValueError(f"observations.column_sigma_px is {self.column_sigma_px}; it takes 0 to 100")
        if not all(0.5 <= reach <= 2 for reach in self.row_reach):
            raise ValueError(f"observations.row_reach is {self.row_reach}; it takes numbers from 0.5 to 2")

    def __len__(self) -> int:
        return len(self.positions_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one frame taught.

    Attributes
    ----------
    used, held_out, gated
        Observations that taught, that were kept back, and that lay too far off to be believed; they add up.
    held_out_rms_px
        Root mean square along one axis of what the model leaves at those kept back, their own noise taken
        off: row jitter and error of the field, and no less than the model itself expects. NaN where none
        were kept.
    log_evidence
        Log density of the frame under what was known before it, in nats per observation. It falls when
        the hyperparameters fit no longer.
    jitter_px
        Sd ``(row, col)`` of what the columns of a line shared in this frame.
    noise_factor
        By how much ``variance_px2`` was too small, ``(row, col)``, over the last frames.
    """

    used: int
    held_out: int
    gated: int
    held_out_rms_px: float
    log_evidence: float
    jitter_px: tuple[float, float]
    noise_factor: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FieldParts:
    """A smooth displacement field, taken apart: ``D(s) = translation + grid(s) + rows[row] + cols[col]``.

    Attributes
    ----------
    grid_px
        Affine and coil part on nodes spread evenly from the first pixel to the last, ``(2, n, m)``, float32.
    rows_px
        All that depends on the row only (settling, creep, hum, the shear of the drift), ``(2, rows)``.
    cols_px
        All that depends on the column only (fly-back, lag), ``(2, cols)``.
    odd_cols_px
        The same on odd lines, where these run the other way; None where all lines are alike.
    translation_px
        The drift in the middle of the frame, ``(row, col)``.
    """

    grid_px: Float32
    rows_px: Float32
    cols_px: Float32
    odd_cols_px: Float32 | None
    translation_px: tuple[float, float]


class GPFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a ``DistortionGP`` knows, beside its arrays.

    Attributes
    ----------
    scan, hyperparameters
        Of the model.
    frames
        Frames observed.
    is_frozen
        Whether the static part learns no more.
    hum_period_rows, hum_period_variance
        The period as tracked, and how well it is known, as an angular frequency per row.
    hum_advance_rad, hum_locks
        By how much its phase runs on from frame to frame, and how often that was seen.
    jitter_px2
        Variance ``(row, col)``, as averaged: chance may leave it below 0.
    noise
        Excess and said variance ``(row, col)`` of held-out residuals, forgotten slowly.
    """

    scan: ScanModel
    hyperparameters: Hyperparameters
    frames: int
    is_frozen: bool
    hum_period_rows: float | None
    hum_period_variance: float
    hum_advance_rad: float
    hum_locks: int
    jitter_px2: tuple[float, float]
    noise: tuple[tuple[float, float], tuple[float, float]]


class DistortionGP:
    """The distortion of a stream of frames: ``predict`` once a frame, then ``observe`` if there is anything.

    Parameters
    ----------
    scan
        How frames are scanned, and what may be wrong with them.
    hyperparameters
        How large and how lasting that may be; defaults are those of a STEM at atomic resolution.
    device, dtype
        Where features are evaluated and multiplied, and in what; float64 on a CPU, float32 elsewhere. The
        weights themselves are float64 always: they are few.
    """

    def __init__(
        self,
        scan: ScanModel,
        hyperparameters: Hyperparameters | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.scan = scan
        self.hyperparameters = hyperparameters or Hyperparameters()
        self._device = torch.device(device)
        self._dtype = dtype or (torch.float64 if self._device.type == "cpu" else torch.float32)
        self.basis = ScanBasis(scan, device=self._device, dtype=self._dtype)
        self._prior = self.basis.prior_variance(self.hyperparameters)
        self._mean = torch.zeros(2, self.basis.size, dtype=torch.float64)
        self._static: Tensor | None = None  # covariance of the frozen part, with what drift makes up for
        self._live = _all_but_shear(self.basis)
        self._covariance = torch.diag_embed(self._prior[:, self._live])
        self._frames = 0
        # Below 0 where chance has it so: cut off before it is averaged, no jitter would look like some.
        self._jitter_mean_px2 = [sd**2 for sd in self.hyperparameters.jitter_px]
        self._noise = [[_PAST, _PAST], [_PAST, _PAST]]  # a past, in frames, that found nothing wrong
        self._period = scan.hum_period_rows
        self._frequency_variance = (2e-3 * self._frequency) ** 2
        self._advance_rad = math.remainder(self._frequency * scan.shape[0], 2 * math.pi)
        self._locks = 0
        self._parts: tuple[_Asked, FieldParts] | None = None  # last said; they are asked for twice a frame

    @property
    def is_frozen(self) -> bool:
        """Whether the static part learns no more."""
        return self._static is not None

    @property
    def frames(self) -> int:
        """Frames observed."""
        return self._frames

    @property
    def hum_period_rows(self) -> float | None:
        """Period of the hum as tracked; None without hum."""
        return self._period if "hum" in self.basis.blocks else None

    @property
    def hum_amplitude_px(self) -> Float64:
        """Amplitude ``(row, col)`` of the hum as learnt."""
        return self._hum_weights(self._mean[:, self._live]).abs().numpy()

    @property
    def jitter_px(self) -> tuple[float, float]:
        """Sd ``(row, col)`` of what the columns of a line share in one frame alone, over the last frames."""
        return _pair(np.sqrt(self._jitter_px2))

    @property
    def translation_px(self) -> tuple[float, float]:
        """Drift ``(row, col)`` in the middle of the frame, as part of ``D``."""
        row, col = self._mean[:, self.basis.blocks["drift"].start].tolist()
        return (row, col)

    def predict(self, frames: float = 1.0) -> None:
        """Go on to the next frame, or to one ``frames`` later; the time between frames counts as one.

        Raises
        ------
        ValueError
            If ``frames`` is not above 0.
        """
        if not 0 < frames < math.inf:
            raise ValueError(f"predict goes on by {frames} frames; it takes numbers above 0")
        live = self._live
        self._mean[:, live] = self._advanced(self._mean[:, live, None], frames)[..., 0]
        half = self._advanced(self._covariance, frames)
        self._covariance = self._advanced(half.mT.contiguous(), frames)
        self._covariance.diagonal(dim1=1, dim2=2).add_(self._wander(frames))
        if "hum" in self.basis.blocks and self._locks < 2:
            self._forget_hum_phase()

    def observe(self, seen: Observations) -> Update:
        """Learn from one frame.

        An observation further from the prediction than four robust standard deviations (0.3 px at least)
        teaches nothing; one in twelve, in turn, is kept back to judge by.
        """
        frame = _Frame(self, seen)
        before = self._mean[:, self._live].clone(), self._covariance
        use = frame.gate(frame.residual(before[0]))
        found = self._posterior(frame, use, *before)
        if self._frames == 0:
            self._jitter_mean_px2 = frame.jitter_px2(frame.residual(found.mean), use, found.covariance)
            for _ in range(_FIRST_PASSES - 1):
                use = frame.gate(frame.residual(found.mean))
                found = self._posterior(frame, use, *before)
        predicted_hum = self._hum_weights(before[0])
        self._mean[:, self._live], self._covariance = found.mean, found.covariance
        left = frame.residual(found.mean)
        held_out_px = self._judge(frame, left, use)
        self._learn_jitter(frame, left, use)
        self._lock_on_hum(frame, left, use, predicted_hum)
        self._frames += 1
        count = int(use.sum())
        return Update(
            used=count,
            held_out=int(frame.held_out.sum()),
            gated=len(seen) - count - int(frame.held_out.sum()),
            held_out_rms_px=held_out_px,
            log_evidence=found.log_evidence / max(2 * count, 1),
            jitter_px=self.jitter_px,
            noise_factor=self._noise_factor,
        )

    def condition(self, seen: Observations) -> None:
        """Learn from observations as they are: all are believed, none is kept back, and time stands still."""
        frame = _Frame(self, seen)
        live = self._mean[:, self._live].clone()
        found = self._posterior(frame, torch.ones(len(seen), dtype=torch.bool), live, self._covariance)
        self._mean[:, self._live], self._covariance = found.mean, found.covariance

    def information(self, seen: Observations) -> tuple[Tensor, Tensor]:
        """Say what a frame tells of the weights that learn, under what is known now; nothing is learnt.

        Returns
        -------
        gram, gradient
            ``(2, k, k)`` and ``(2, k)`` of the log density at weights of zero, float64.
        """
        frame = _Frame(self, seen)
        use = frame.gate(frame.residual(self._mean[:, self._live]))
        gram, gradient, _ = frame.information(
            torch.zeros_like(self._mean[:, self._live]), use, self._jitter_px2
        )
        return gram, gradient

    def jumped(self) -> None:
        """Take the specimen to lie anywhere: after a move of the stage, or on another specimen."""
        drift, live = self.basis.blocks["drift"], self._live
        place = drift.start - live.start
        self._covariance[:, place, place] += _OFFSET_VARIANCE

    def freeze(self) -> None:
        """Stop learning all that frames share; hum and drift go on.

        The static part keeps its mean, and its uncertainty as far as drift does not make up for it. From
        now on a shear of the specimen itself is told apart from that of the drift, which moves.
        """
        if self.is_frozen:
            return
        first = self.basis.dynamic_start
        covariance = torch.zeros(2, self.basis.size, self.basis.size, dtype=torch.float64)
        covariance[:, self._live, self._live] = self._covariance
        self._static = self._unmoved(covariance[:, :first, :first])
        self._covariance = _conditioned(covariance, first)
        self._live = slice(first, self.basis.size)
        self._covariance[:, -1, -1] = self._prior[:, -1]
        self.jumped()

    @classmethod
    def frozen(
        cls,
        scan: ScanModel,
        hyperparameters: Hyperparameters,
        mean_px: Float64,
        covariance_px2: Float64,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> DistortionGP:
        """Make one whose static part is known from a calibration, and that follows hum and drift.

        Parameters
        ----------
        mean_px, covariance_px2
            As ``static`` gives them.

        Raises
        ------
        ValueError
            If they are not those of this scan model.
        """
        gp = cls(scan, hyperparameters, device=device, dtype=dtype)
        first = gp.basis.dynamic_start
        if mean_px.shape != (2, first) or covariance_px2.shape != (2, first, first):
            raise ValueError(
                f"a static part of shapes {mean_px.shape} and {covariance_px2.shape} is none of this scan "
                f"model, that has {first} static features"
            )
        gp._mean[:, :first] = _own(mean_px)
        gp._covariance[:, :first, :first] = _own(covariance_px2)
        gp.freeze()
        return gp

    def static(self) -> tuple[Float64, Float64]:
        """Say what frames share: mean ``(2, k)`` and covariance ``(2, k, k)`` of its weights."""
        first = self.basis.dynamic_start
        covariance = self._covariance if self._static is None else self._static
        mean = self._mean[:, :first].numpy().copy()
        return mean, covariance[:, :first, :first].numpy().copy()

    @overload
    def displacement_px(self, positions_px: Float64, with_sd: Literal[False] = False) -> Float64: ...

    @overload
    def displacement_px(self, positions_px: Float64, with_sd: Literal[True]) -> tuple[Float64, Float64]: ...

    def displacement_px(
        self, positions_px: Float64, with_sd: bool = False
    ) -> Float64 | tuple[Float64, Float64]:
        """Say ``D`` at places on the raster, and how far it may be off; row jitter is not counted.

        Returns
        -------
        displacement, sd
            Shape ``(n, 2)`` each; sd along each axis, only ``with_sd``.
        """
        places = self._to_device(positions_px)
        found = _to_numpy(self.basis.field(places, self._weights(), self._period))
        return (found, self._sd([self.basis.features(places, self._period)] * 2)) if with_sd else found

    def to_raw_px(self, places_px: Float64) -> Float64:
        """Say which pixel was recorded at true places ``(n, 2)``: ``s`` with ``s + D(s) = X``."""
        # float32 is good to 1e-4 px here, and twice as fast
        place = self._to_device(places_px).to(torch.float32)
        weights = self._weights().to(torch.float32)
        raw = place
        for _ in range(8):
            found = place - self.basis.field(raw, weights, self._period)
            change = float((found - raw).abs().max()) if len(raw) else 0.0
            raw = found
            if change < 1e-3:
                break
        return _to_numpy(raw)

    def parts(self, step_px: float = _NODES_PX) -> FieldParts:
        """Take the field of this frame apart; nodes of the grid are at most ``step_px`` apart.

        What a beam at rest suffers is in the grid, and with it all that lines and frame show after the
        transients of their start: one scan cannot tell them apart, but transients die out.
        """
        asked = (step_px, self._period, self._weights())
        if self._parts is None or not _is_same(self._parts[0], asked):
            self._parts = (asked, self._taken_apart(step_px))
        return self._parts[1]

    def _taken_apart(self, step_px: float) -> FieldParts:
        weights = self._weights()
        nodes = [self._nodes(n, step_px) for n in self.scan.shape]
        rows, cols = (self._line(n) for n in self.scan.shape)
        weights[:, self.basis.blocks["drift"].start] = 0
        still = weights.clone()
        still[:, self.basis.dynamic_start :] = 0
        grid = self.basis.plane_grid(nodes[0], nodes[1], weights)
        by_row, by_col = self._row_line(rows, weights), self.basis.column_line(cols, weights)
        odd = self.basis.column_line(cols, weights, odd=True) if self.scan.path == "serpentine" else None
        if self.scan.is_static:
            at_nodes, lasting = _lasting(self._row_line(rows, still), nodes[0])
            by_row, grid = by_row - lasting, grid + at_nodes[:, :, None]
            at_nodes, lasting = _lasting(by_col, nodes[1])
            by_col, grid = by_col - lasting, grid + at_nodes[:, None]
            odd = None if odd is None else odd - lasting
        return FieldParts(
            grid_px=_to_float32(grid),
            rows_px=_to_float32(by_row),
            cols_px=_to_float32(by_col),
            odd_cols_px=None if odd is None else _to_float32(odd),
            translation_px=self.translation_px,
        )

    def field(self) -> Float32:
        """Say ``D`` at every pixel, row jitter not counted: ``(2, rows, cols)``."""
        return self._dense(self._weights())

    def static_field(self) -> Float32:
        """Say the part of ``D`` that frames share, drift and hum left out: ``(2, rows, cols)``."""
        weights = self._weights()
        weights[:, self.basis.dynamic_start :] = 0
        return self._dense(weights)

    def sd_grid(self, step_px: float = 2 * _NODES_PX, absorbed: tuple[float, float] = (0.0, 0.0)) -> Float32:
        """Say how far ``D`` may be off along each axis, on the nodes of ``parts``: sd, ``(2, n, m)``.

        Parameters
        ----------
        step_px
            How far apart nodes are at most.
        absorbed
            Part ``(row, col)`` of an error common to a whole row that the row's own offset, measured beside
            this field, makes up for.
        """
        row, col = (self._nodes(n, step_px) for n in self.scan.shape)
        features = self.basis.features(torch.cartesian_prod(row, col), self._period)
        by_row = features.reshape(len(row), len(col), -1)
        common = by_row.mean(1, keepdim=True).expand_as(by_row).reshape(features.shape)
        found = self._sd([features - part * common if part else features for part in absorbed])
        return np.ascontiguousarray(found.T.reshape(2, len(row), len(col)), dtype=np.float32)

    def with_hyperparameters(self, hyperparameters: Hyperparameters) -> DistortionGP:
        """Make another that knows the same data under other hyperparameters.

        What the data said is what the posterior knows beyond the prior, ``P^-1 - S^-1``; it is put on the
        new prior. Exact for what does not change with time; hum and drift are taken over as they are.
        """
        facts, arrays = self.state()
        gp = DistortionGP(self.scan, hyperparameters, device=self._device, dtype=self._dtype)
        gp.restore(msgspec.structs.replace(facts, hyperparameters=hyperparameters), arrays)
        if not self.is_frozen:
            gp._mean, gp._covariance = self._on_prior(gp._prior)
        return gp

    def with_hum(self, period_rows: float) -> DistortionGP:
        """Make another that knows the same and follows a hum, of which it knows the period only.

        Raises
        ------
        ValueError
            If this one follows a hum already, or its scan model may have none.
        """
        if "hum" in self.basis.blocks:
            raise ValueError("the model follows a hum already; make a new one for another period")
        if "hum" not in self.scan.blocks:
            raise ValueError("scan.blocks leaves hum out; add 'hum'")
        scan = msgspec.structs.replace(self.scan, hum_period_rows=period_rows)
        gp = DistortionGP(scan, self.hyperparameters, device=self._device, dtype=self._dtype)
        block = gp.basis.blocks["hum"]
        places = torch.arange(gp.basis.size)
        kept = places[(places < block.start) | (places >= block.stop)]
        gp._mean[:, kept] = self._mean
        if self._static is not None:
            gp._static = torch.zeros(2, gp.basis.size, gp.basis.size, dtype=torch.float64)
            gp._static[:, kept[:, None], kept] = self._static
            gp._live = slice(self._live.start, gp.basis.size)
        gp._covariance = torch.diag_embed(gp._prior[:, gp._live])
        live = kept[(kept >= gp._live.start) & (kept < gp._live.stop)] - gp._live.start
        gp._covariance[:, live[:, None], live] = self._covariance
        gp._frames = self._frames
        gp._jitter_mean_px2, gp._noise = list(self._jitter_mean_px2), [list(pair) for pair in self._noise]
        return gp

    def state(self) -> tuple[GPFacts, dict[str, Float64]]:
        """Say all that the next frames depend on; the arrays are copies, float64."""
        arrays = {"mean": self._mean.numpy().copy(), "covariance": self._covariance.numpy().copy()}
        if self._static is not None:
            arrays["static"] = self._static.numpy().copy()
        facts = GPFacts(
            scan=self.scan,
            hyperparameters=self.hyperparameters,
            frames=self._frames,
            is_frozen=self.is_frozen,
            hum_period_rows=self._period,
            hum_period_variance=self._frequency_variance,
            hum_advance_rad=self._advance_rad,
            hum_locks=self._locks,
            jitter_px2=_pair(self._jitter_mean_px2),
            noise=(_pair(self._noise[0]), _pair(self._noise[1])),
        )
        return facts, arrays

    def restore(self, facts: GPFacts, arrays: dict[str, Float64]) -> None:
        """Go on from what ``state`` said, bit for bit.

        Raises
        ------
        ValueError
            If that is the state of another model; nothing is changed then.
        """
        if facts.scan != self.scan or facts.hyperparameters != self.hyperparameters:
            raise ValueError("the state is that of another scan model; make the GP with those of the state")
        first = self.basis.dynamic_start
        live = slice(first, self.basis.size) if facts.is_frozen else _all_but_shear(self.basis)
        count = live.stop - live.start
        expected = {"mean": (2, self.basis.size), "covariance": (2, count, count)}
        if facts.is_frozen:
            expected["static"] = (2, self.basis.size, self.basis.size)
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != expected:
            raise ValueError(f"the arrays of the state have shapes {shapes}; they take {expected}")
        own = {name: _own(array) for name, array in arrays.items()}
        self._mean, self._covariance, self._static = own["mean"], own["covariance"], own.get("static")
        self._live = live
        self._frames = facts.frames
        self._period, self._frequency_variance = facts.hum_period_rows, facts.hum_period_variance
        self._advance_rad, self._locks = facts.hum_advance_rad, facts.hum_locks
        self._jitter_mean_px2 = list(facts.jitter_px2)
        self._noise = [list(pair) for pair in facts.noise]

    # what follows is for this file

    @property
    def _frequency(self) -> float:
        """Of the hum, in radians per row."""
        return 2 * math.pi / self._period if self._period else 0.0

    @property
    def _jitter_px2(self) -> list[float]:
        """Variance ``(row, col)`` of what the columns of a line share."""
        return [max(value, 0.0) for value in self._jitter_mean_px2]

    @property
    def _noise_factor(self) -> tuple[float, float]:
        row, col = (
            min(max(excess / said, _NOISE_RANGE[0]), _NOISE_RANGE[1])
            for excess, said in zip(*self._noise, strict=True)
        )
        return (row, col)

    def _weights(self) -> Tensor:
        """Mean of the weights on the device, without what is the specimen's own."""
        weights = self._mean.to(self._device, self._dtype, copy=True)
        weights[:, self.basis.blocks["shear"]] = 0
        return weights

    def _to_device(self, places: Float64) -> Tensor:
        return _own(places).to(self._device, self._dtype)

    def _line(self, count: int) -> Tensor:
        return torch.arange(count, dtype=self._dtype, device=self._device)

    def _nodes(self, count: int, step_px: float) -> Tensor:
        nodes = max(2, math.ceil((count - 1) / step_px) + 1)
        return torch.linspace(0, count - 1, nodes, dtype=self._dtype, device=self._device)

    def _dense(self, weights: Tensor) -> Float32:
        rows, cols = (self._line(n) for n in self.scan.shape)
        down, along = self.basis.plane_factors(rows, cols, weights)
        even, odd = (self.basis.column_line(cols, weights, odd=is_odd) for is_odd in (False, True))
        # One product for all: each part of the field is a line down times a line along.
        one = torch.ones_like(rows).expand(2, -1)
        down = torch.cat([down, torch.stack([self._row_line(rows, weights), one, one * (rows % 2)], -1)], -1)
        one = torch.ones_like(cols).expand(2, -1)
        along = torch.cat([along, torch.stack([one, even, odd - even], -1)], -1)
        return _to_float32(down.to(torch.float32) @ along.to(torch.float32).mT)

    def _row_line(self, rows: Tensor, weights: Tensor) -> Tensor:
        return weights[:, self.basis.row] @ self.basis.row_features(rows, self._period).T

    def _sd(self, features: list[Tensor]) -> Float64:
        """Sd of what features ``(n, m)`` of each axis say, ``(n, 2)``."""
        found = torch.empty(len(features[0]), 2, dtype=self._dtype, device=self._device)
        for axis, every in enumerate(features):
            live = every[:, self._live]
            if self.is_frozen:
                live = torch.cat(
                    [live[:, :-1], torch.zeros_like(live[:, -1:])], 1
                )  # the shear is the specimen's
            covariance = self._covariance[axis].to(self._device, self._dtype)
            found[:, axis] = ((live @ covariance) * live).sum(-1)
            if self._static is not None:
                still = self._static[axis].to(self._device, self._dtype)
                found[:, axis] += ((every @ still) * every).sum(-1)
        return _to_numpy(found.clamp(min=0).sqrt())

    def _advanced(self, matrix: Tensor, frames: float) -> Tensor:
        """Multiply ``(2, k, c)`` by the dynamics from the left."""
        first = self._live.start
        found = matrix * self._memory(frames)[:, None]
        if "hum" in self.basis.blocks:
            cosine, sine = self.basis.blocks["hum"].start - first, self.basis.blocks["hum"].stop - 1 - first
            turn = self._advance_rad * frames
            found[:, cosine] = math.cos(turn) * matrix[:, cosine] + math.sin(turn) * matrix[:, sine]
            found[:, sine] = math.cos(turn) * matrix[:, sine] - math.sin(turn) * matrix[:, cosine]
        drift = self.basis.blocks["drift"].start - first
        found[:, drift] += frames * matrix[:, drift + 1]
        return found

    def _memory(self, frames: float) -> Tensor:
        """Say what part of each weight is left after so many frames, ``(k,)``."""
        memory = torch.ones(self.basis.size, dtype=torch.float64)
        memory[: self.basis.dynamic_start] = math.exp(-frames / self.hyperparameters.timescale_frames)
        if "affine" in self.basis.blocks:
            memory[self.basis.blocks["affine"]] = 1
        return memory[self._live]

    def _wander(self, frames: float) -> Tensor:
        """Variance that comes in between frames, ``(2, k)``."""
        blocks, change = self.basis.blocks, self.hyperparameters.drift_change_px
        wander = torch.zeros(2, self.basis.size, dtype=torch.float64)
        wander[:, self._live] = (1 - self._memory(frames) ** 2) * self._prior[:, self._live]
        if "hum" in blocks:
            wander[:, blocks["hum"]] = frames * _HUM_WANDER**2 * self._prior[:, blocks["hum"]]
        wander[:, blocks["drift"].start] = frames * (_DRIFT_WANDER * change) ** 2
        wander[:, blocks["drift"].start + 1] = frames * change**2
        return wander[:, self._live]

    def _forget_hum_phase(self) -> None:
        """Until its advance was measured, the phase of the hum is not known a frame ahead."""
        block = self.basis.blocks["hum"]
        own = slice(block.start - self._live.start, block.stop - self._live.start)
        self._covariance[:, own] = 0
        self._covariance[:, :, own] = 0
        self._covariance.diagonal(dim1=1, dim2=2)[:, own] = self._prior[:, block]

    def _posterior(self, frame: _Frame, use: Tensor, mean: Tensor, covariance: Tensor) -> _Posterior:
        """Condition the weights on the observations in use: ``(P^-1 + G)^-1``, by Cholesky factors."""
        gram, gradient, log_density = frame.information(mean, use, self._jitter_px2)
        found = torch.empty_like(covariance)
        for axis in range(2):
            after, log_gain = _with_information(covariance[axis].numpy(), gram[axis].numpy())
            found[axis] = _own(after)
            log_density -= log_gain
        step = (found @ gradient[:, :, None])[..., 0]
        log_density += 0.5 * float((gradient * step).sum())
        return _Posterior(mean=mean + step, covariance=found, log_evidence=log_density)

    def _judge(self, frame: _Frame, left: Tensor, use: Tensor) -> float:
        """Compare held-out residuals with what was said of them; give what is more than noise, in px.

        The noise factor would hide an error of the field that lasts: it would be called noise. So what is
        given takes off what nearest neighbours disagree by, within a factor of two of what was said, and is
        no less than what the model says of itself.
        """
        held = frame.held_out
        if not bool(held.any()):
            return math.nan
        square = (left[held] ** 2).mean(0)
        said = frame.variance[held].mean(0)
        some = held.nonzero()[::_JUDGED_STEP, 0]
        field = frame.field_variance(self._covariance, some).mean(0)
        for axis, (now, noise, model) in enumerate(
            zip(square.tolist(), said.tolist(), field.tolist(), strict=True)
        ):
            other = self._jitter_px2[axis] + model
            trust = (noise / (noise + other)) ** 2
            self._noise[0][axis] = _MEMORY * self._noise[0][axis] + trust * (now - other) / noise
            self._noise[1][axis] = _MEMORY * self._noise[1][axis] + trust
        excess = square - said * frame.disagreement(left, use).clamp(1 / _TRUSTED_NOISE, _TRUSTED_NOISE)
        return float(torch.maximum(excess.mean(), field.mean()).clamp(min=0).sqrt())

    def _learn_jitter(self, frame: _Frame, left: Tensor, use: Tensor) -> None:
        share = _SHARE if self._frames else 1.0
        for axis, seen in enumerate(frame.jitter_px2(left, use, self._covariance)):
            self._jitter_mean_px2[axis] += share * (seen - self._jitter_mean_px2[axis])

    def _hum_weights(self, mean: Tensor) -> Tensor:
        """Weights of the hum as complex amplitudes, one for each axis: ``Re(z exp(i phase))``."""
        if "hum" not in self.basis.blocks:
            return torch.zeros(2, dtype=torch.complex128)
        start = self.basis.blocks["hum"].start - self._live.start
        return torch.complex(mean[:, start], -mean[:, start + 1])

    def _lock_on_hum(self, frame: _Frame, left: Tensor, use: Tensor, predicted: Tensor) -> None:
        """Follow the phase from frame to frame, and the period within one."""
        if "hum" not in self.basis.blocks:
            return
        found = self._hum_weights(self._mean[:, self._live])
        start = self.basis.blocks["hum"].start - self._live.start
        variance = self._covariance.diagonal(dim1=1, dim2=2)[:, start : start + 2].sum(1)
        strength = found.abs() ** 2 / variance
        if float(strength.sum()) < _LOCK_SD**2:
            return
        if self._frames and float((predicted.abs() ** 2 / variance).sum()) >= _LOCK_SD**2:
            ahead = float((found * predicted.conj() / variance).sum().angle())
            self._locks += 1
            self._advance_rad += max(_LOCK_GAIN, 1 / self._locks) * ahead
        change, precision = frame.frequency_change(found, left, use, self._jitter_px2)
        gain = self._frequency_variance / (self._frequency_variance + 1 / precision)
        frequency = self._frequency + gain * change
        self._frequency_variance = (1 - gain) * self._frequency_variance + (2e-5 * frequency) ** 2
        self._period = 2 * math.pi / frequency

    def _unmoved(self, covariance: Tensor) -> Tensor:
        """Covariance of static weights ``(2, s, s)`` with the drift that keeps the frame's mean in place."""
        first = self.basis.dynamic_start
        row, col = (self._nodes(n, n / 24) for n in self.scan.shape)
        mean = self.basis.features(torch.cartesian_prod(row, col))[:, :first].mean(0).cpu().double()
        spread = torch.zeros(self.basis.size, first, dtype=torch.float64)
        spread[:first] = torch.eye(first, dtype=torch.float64)
        spread[self.basis.blocks["drift"].start] = -mean
        return spread @ covariance @ spread.T

    def _on_prior(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Put what the data said of the static part on another prior, ``(2, m)``: mean and covariance."""
        first = self.basis.dynamic_start
        before, after = self._prior[:, self._live].clone(), prior[:, self._live].clone()
        # Hum and drift go their own way: next to nothing of what is known of them is their prior's.
        loose = 100 * self._covariance.diagonal(dim1=1, dim2=2)[:, first:]
        before[:, first:], after[:, first:] = loose, loose
        root, root_after = (before + _TINY).sqrt(), (after + _TINY).sqrt()
        known, axes = torch.linalg.eigh(self._covariance / (root[:, :, None] * root[:, None, :]))
        # What data say is never negative; rounding would have it so where they say nothing.
        known = known.clamp(_TINY, 1.0)[:, None]
        white = self._mean[:, self._live, None] / root[:, :, None]
        data = (axes / known) @ (axes.mT @ white)
        ratio = root_after / root
        told = ratio[:, :, None] * ((axes * (1 / known - 1)) @ axes.mT) * ratio[:, None, :]
        lower = torch.linalg.cholesky((told + told.mT) / 2 + torch.eye(root.shape[1], dtype=torch.float64))
        covariance = torch.cholesky_inverse(lower) * root_after[:, :, None] * root_after[:, None, :]
        mean = self._mean.clone()
        mean[:, self._live] = (covariance @ (ratio[:, :, None] * data / root_after[:, :, None]))[..., 0]
        return mean, (covariance + covariance.mT) / 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Posterior:
    mean: Tensor  # (2, k)
    covariance: Tensor  # (2, k, k)
    log_evidence: float


class _Frame:
    """The observations of one frame, with the features that learn from them."""

    def __init__(self, gp: DistortionGP, seen: Observations) -> None:
        places = gp._to_device(seen.positions_px)
        basis = gp.basis
        target = _own(seen.displacement_px)
        if gp.is_frozen:
            self.features = basis.dynamic_features(places[:, 0], gp._period)
            still = gp._mean.to(places.device, places.dtype, copy=True)
            still[:, basis.dynamic_start :] = 0
            target = target - basis.field(places, still, gp._period).cpu().double()
        else:
            self.features = basis.features(places, gp._period)[:, gp._live]
        self._scaled = torch.empty(
            self.features.shape, dtype=self.features.dtype, device=self.features.device
        )
        self.target = target
        self.variance = _own(seen.variance_px2) + _FLOOR_PX2
        self.noise = self.variance * torch.tensor(gp._noise_factor, dtype=torch.float64)
        self.attenuation = torch.ones(2, self.features.shape[1], dtype=torch.float64)
        self._attenuated = slice(0, 0)
        if "hum" in basis.blocks:
            block, first = basis.blocks["hum"], gp._live.start
            row_angle, col_angle = (gp._frequency * seen.column_sigma_px * reach for reach in seen.row_reach)
            seen_part = torch.tensor(hum_seen(row_angle, col_angle), dtype=torch.float64)
            self._attenuated = slice(block.start - first, block.stop - first)
            self.attenuation[:, self._attenuated] = seen_part[:, None]
        self._places = seen.positions_px
        rows = places[:, 0].cpu().double()
        self._jitter: RowJitter | LoneRows = (
            LoneRows(len(seen))
            if seen.column_sigma_px == 0 and observed_once(rows)
            else RowJitter(rows, gp.scan.shape[0], seen.column_sigma_px * sum(seen.row_reach) / 2)
        )
        self.row = places[:, 0].cpu().double() - basis.middle_row
        self._frequency = gp._frequency
        index = torch.arange(len(seen))
        hash_ = (index * 2654435761) % 4294967296 >> 16
        self.held_out = (hash_ + gp._frames) % _HOLD_OUT == 0
        if len(seen) < _HOLD_OUT_LEAST:
            self.held_out[:] = False

    def residual(self, mean: Tensor) -> Tensor:
        """What weights ``(2, k)`` leave of the observations, ``(n, 2)``."""
        weights = (mean * self.attenuation).to(self.features)
        return self.target - (self.features @ weights.T).cpu().double()

    def gate(self, residual: Tensor) -> Tensor:
        """Say which observations may teach, and forget those held out that may not be judged by."""
        if not len(residual):
            return torch.zeros(0, dtype=torch.bool)
        off = (residual - residual.median(0).values).abs()
        limit = (_GATE_SD * 1.4826 * off.median(0).values).clamp(min=_GATE_LEAST_PX)
        near = (off < limit).all(1)
        self.held_out &= near
        return near & ~self.held_out

    def information(self, mean: Tensor, use: Tensor, jitter_px2: list[float]) -> tuple[Tensor, Tensor, float]:
        """Say what the observations in use tell of the weights, jitter of the rows marginalised.

        Returns
        -------
        gram, gradient
            ``(2, k, k)`` and ``(2, k)`` of the log density at ``mean``, float64.
        log_density
            Of the residuals, were the mean certain.
        """
        residual = self.residual(mean)
        grams, gradients, log_density = [], [], -int(use.sum()) * math.log(2 * math.pi)
        for axis in range(2):
            weight = self._weight(axis, use, jitter_px2[axis])
            root, left = weight.sqrt(), residual[:, axis]
            scaled = torch.mul(self.features, root.to(self.features)[:, None], out=self._scaled)
            gram = triangles.gram(scaled)
            gradient = (scaled.T @ (root * left).to(scaled)).cpu().double()
            quadratic = float((weight * left**2).sum()) - float(weight[use].log().sum())
            if jitter_px2[axis] > _LEAST_JITTER_PX2:
                gram_off, gradient_off, square_off, log_determinant = self._jitter.marginalise(
                    axis, jitter_px2[axis], scaled, root, left
                )
                gram, gradient = gram - gram_off, gradient - gradient_off
                quadratic += log_determinant - square_off
            grams.append(gram)
            gradients.append(gradient)
            log_density -= 0.5 * quadratic
        gram, gradient, hum = torch.stack(grams), torch.stack(gradients), self._attenuated
        scale = self.attenuation[:, hum]
        gram[:, hum] *= scale[:, :, None]
        gram[:, :, hum] *= scale[:, None]
        gradient[:, hum] *= scale
        return gram, gradient, log_density

    def jitter_px2(self, residual: Tensor, use: Tensor, covariance: Tensor) -> list[float]:
        """Estimate the variance ``(row, col)`` of the jitter from what a fit left of the observations."""
        return [
            self._jitter.variance_px2(
                axis, residual[:, axis], self._weight(axis, use, 0.0), self.features, covariance[axis]
            )
            for axis in range(2)
        ]

    def disagreement(self, residual: Tensor, use: Tensor) -> Tensor:
        """Compare how much held-out residuals differ from their nearest neighbours' with the said noise.

        What neighbours share is no noise: an error of the field is smooth.

        Returns
        -------
        ratio
            Shape ``(2,)``; 1 where they differ as was said.
        """
        held, used = (np.flatnonzero(which.numpy()) for which in (self.held_out, use))
        if not len(used):
            return torch.ones(2, dtype=torch.float64)
        near = used[cKDTree(self._places[used]).query(self._places[held])[1]]
        first, second = torch.from_numpy(held), torch.from_numpy(near)
        apart = (residual[first] - residual[second]) ** 2
        return apart.mean(0) / (self.variance[first] + self.variance[second]).mean(0)

    def _weight(self, axis: int, use: Tensor, jitter_px2: float) -> Tensor:
        """Precision of the observations in use, where their rows were known, ``(n,)``."""
        noise = self.noise[:, axis]
        if jitter_px2:
            noise = noise + jitter_px2 * self._jitter.alone(axis)
        return torch.where(use, 1 / noise, 0.0)

    def field_variance(self, covariance: Tensor, which: Tensor) -> Tensor:
        """Variance of the field at some of the observations, ``(n, 2)``."""
        features = self.features[which].cpu().double()
        parts = []
        for axis in range(2):
            own = features * self.attenuation[axis]
            parts.append(((own @ covariance[axis]) * own).sum(-1))
        return torch.stack(parts, -1)

    def frequency_change(
        self, hum: Tensor, residual: Tensor, use: Tensor, jitter_px2: list[float]
    ) -> tuple[float, float]:
        """Say by how much the hum's frequency is off, in rad per row, and the precision of that."""
        carrier = torch.exp(1j * self._frequency * self.row)
        slope = -(carrier[:, None] * hum).imag * self.row[:, None]
        weight = 1 / (self.noise + torch.tensor(jitter_px2, dtype=torch.float64))
        weight = torch.where(use[:, None], weight, 0.0)
        precision = float((weight * slope**2).sum())
        change = float((weight * slope * residual).sum()) / max(precision, 1e-30)
        return change, max(precision, 1e-30)


def _with_information(covariance: Float64, gram: Float64) -> tuple[Float64, float]:
    """``(P^-1 + G)^-1`` by triangular factors, and half the log determinant of ``1 + P G``.

    Called from LAPACK, for triangles cost half of what whole matrices do.
    """
    lower = np.array(covariance.T, order="F")
    _add_to_diagonal(lower, _TINY)
    lower, trouble = dpotrf(lower, lower=1, overwrite_a=1)
    inner = dtrmm(1.0, lower, gram.T, lower=1, trans_a=1)
    inner = dtrmm(1.0, lower, inner, side=1, lower=1, overwrite_b=1)
    _add_to_diagonal(inner, 1.0)
    inner, more_trouble = dpotrf(inner, lower=1, overwrite_a=1)
    if trouble or more_trouble:
        raise FloatingPointError("the covariance of the distortion is none any more; start the model anew")
    root = dtrsm(1.0, inner, lower.T, lower=1)
    return triangles.mirrored(dsyrk(1.0, root, trans=1)), float(np.log(inner.diagonal()).sum())


def _is_same(one: _Asked, other: _Asked) -> bool:
    return one[:2] == other[:2] and torch.equal(one[2], other[2])


def _add_to_diagonal(matrix: Float64, value: float) -> None:
    matrix.T.reshape(-1)[:: len(matrix) + 1] += value


def _all_but_shear(basis: ScanBasis) -> slice:
    """Say what learns at first: a specimen's own shear cannot be told from an affine distortion."""
    return slice(0, basis.size - (1 if "affine" in basis.blocks else 0))


def _conditioned(covariance: Tensor, first: int) -> Tensor:
    """Covariance of the weights from ``first`` on, were those before known."""
    still, moving = slice(0, first), slice(first, covariance.shape[-1])
    known = covariance[:, still, still] + _TINY * torch.eye(first, dtype=torch.float64)
    cross = covariance[:, still, moving]
    told: Tensor = cross.mT @ torch.linalg.solve(known, cross)
    return covariance[:, moving, moving] - told


def _own(array: Float64) -> Tensor:
    """Copy an array to where torch would have put it.

    What its libraries make of numbers depends, in the last digit, on how their memory is aligned, and
    numpy aligns as it comes: a restart would not find the same digits again.
    """
    return torch.tensor(np.asarray(array, dtype=np.float64))


def _lasting(values: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Say what of lines ``(2, n)`` is no transient of their start, at nodes ``(m,)`` and at every place.

    It is what they are after the transients, and before that the straight line that they follow then.
    At places it is as a grid of these nodes will have it, so that nothing is lost between the two.
    """
    n = values.shape[1]
    place = torch.arange(n, dtype=values.dtype, device=values.device)
    later = slice(int(_TRANSIENT[1] * n), int(_TRANSIENT[2] * n))
    # By hand: a solver's last digit depends on where its arrays lie in memory, and so would every frame's.
    off = place - place[later].mean()
    level = values[:, later].mean(dim=1, keepdim=True)
    slope = (values[:, later] * off[later]).sum(dim=1, keepdim=True) / (off[later] ** 2).sum()
    straight = level + slope * off
    begun = ((place / n - _TRANSIENT[0]) / (_TRANSIENT[1] - _TRANSIENT[0])).clamp(0, 1)
    rise = 0.5 - 0.5 * torch.cos(math.pi * begun)
    lasting = straight + rise * (values - straight)
    at_nodes = lasting[:, nodes.round().long()]
    spline = make_interp_spline(nodes.cpu().numpy(), at_nodes.T.cpu().numpy(), k=3)
    between = torch.as_tensor(spline(place.cpu().numpy()).T, dtype=values.dtype, device=values.device)
    return at_nodes, between


def _pair(values: list[float] | Float64) -> tuple[float, float]:
    first, second = values
    return (float(first), float(second))


def _to_numpy(tensor: Tensor) -> Float64:
    return tensor.cpu().numpy().astype(np.float64)


def _to_float32(tensor: Tensor) -> Float32:
    return np.ascontiguousarray(tensor.cpu().numpy(), dtype=np.float32)
