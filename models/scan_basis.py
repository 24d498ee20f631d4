"""Where a scan goes wrong, as functions of the place on the raster: the features of the distortion.

A displacement field is ``D(s) = features(s) @ weights``, one vector of weights for each component.
Components and positions are ``(row, col)``: 0 is the slow axis, 1 the fast one. The features are those
of a Hilbert-space GP (Solin and Särkkä 2020) in the plane and along log-warped lines, beside the few
forms that scanners are known for. Every feature depends on the plane, on the column (the time since a
line began) or on the row (the time since the frame began), so that a whole field costs little more
than one line of it.

Shapes: n places, m features, k modes along one axis, 2 components.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float64: TypeAlias = NDArray[np.float64]
ScanPath = Literal["raster", "serpentine", "sinusoidal"]
BlockName = Literal["affine", "coil", "flyback", "settle", "relax", "creep", "hum", "drift"]

BLOCKS: tuple[BlockName, ...] = ("affine", "coil", "flyback", "settle", "relax", "creep", "hum", "drift")

_COIL_MODES, _COIL_EDGE = 11, 1.35  # in halves of the frame
_LINE_MODES, _ROW_MODES, _WARP_EDGE = 22, 20, 1.25
_WARP_PX = 10.0  # time is linear below, logarithmic above
_DECAYS_PX = (8.0, 16.0, 32.0, 64.0, 128.0)
_CREEP_PX = (10.0, 100.0)
_TURN_DECAYS_PX = (8.0, 32.0, 128.0)
_DRIFT_START = 0.01  # of the drift's amplitude: a frame's mean place is the lattice's, not the drift's
_SMOOTHNESS = 2.5  # of the Matérn kernels


class ScanModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a frame is scanned, and which distortions it may have.

    Attributes
    ----------
    shape
        ``(rows, cols)`` of a frame.
    path
        ``raster`` (every line left to right, then fly-back), ``serpentine`` (odd lines run back) or
        ``sinusoidal`` (a resonant fast axis).
    hum_period_rows
        Rows in one period of the mains, good to about one part in a thousand; None without hum.
    blocks
        ``affine``, ``coil`` (smooth in the plane), ``flyback`` and ``settle`` (free functions of the time
        since a line or the frame began), ``relax`` (exponentials of both), ``creep`` (logarithms of the
        time since the frame began), ``hum``, ``drift``. What the path cannot have is left out by itself;
        what only a path has (the lag of a resonant axis, the backlash of one that turns) comes with
        ``flyback``. ``("hum", "drift")`` leaves all that frames share for the specimen.
    """

    shape: tuple[int, int]
    path: ScanPath = "raster"
    hum_period_rows: float | None = None
    blocks: tuple[BlockName, ...] = BLOCKS

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 16:
            raise ValueError(f"scan.shape is {self.shape}; it takes (rows, cols), each 16 or more")
        if self.path not in ("raster", "serpentine", "sinusoidal"):
            raise ValueError(f"scan.path is {self.path!r}; it takes raster, serpentine or sinusoidal")
        if self.hum_period_rows is not None and not 2 < self.hum_period_rows < 1e6:
            raise ValueError(f"scan.hum_period_rows is {self.hum_period_rows}; it takes above 2 to 1e6")
        unknown = [name for name in self.blocks if name not in BLOCKS]
        if unknown or len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"scan.blocks is {self.blocks}; it takes some of {', '.join(BLOCKS)}, each once")
        if "drift" not in self.blocks:
            raise ValueError("scan.blocks leaves drift out, and every specimen drifts; add 'drift'")

    @property
    def is_static(self) -> bool:
        """Whether it has a part that frames share, beside drift and hum."""
        return bool(set(self.blocks) - {"hum", "drift"})


def _default_amplitudes() -> dict[str, tuple[float, float]]:
    return {
        "affine": (0.5, 0.5),
        "coil": (1.5, 1.5),
        "flyback": (0.2, 0.4),
        "flyback_relax": (0.5, 1.5),
        "lag": (0.5, 1.5),
        "turn": (0.3, 0.8),
        "settle": (0.3, 0.3),
        "settle_relax": (1.0, 0.5),
        "creep": (0.3, 0.3),
        "hum": (0.15, 0.3),
        "drift": (0.15, 0.15),
        "shear": (0.5, 0.5),
    }


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large, how smooth and how lasting the parts of a distortion are expected to be.

    Attributes
    ----------
    amplitude_px
        Prior sd ``(row, col)`` of each block of ``ScanBasis.blocks``.
    coil_length
        Length scale in the plane, in halves of the frame.
    warp_length
        Length scale along log-warped lines, as a change of the logarithm.
    timescale_frames
        After so many frames the static blocks have forgotten all but 1/e.
    drift_change_px
        Sd of the change of the drift's velocity from one frame to the next, px/frame.
    jitter_px
        Sd ``(row, col)`` of what the columns of a line share in one frame alone.
    """

    amplitude_px: dict[str, tuple[float, float]] = msgspec.field(default_factory=_default_amplitudes)
    coil_length: float = 1.2
    warp_length: float = 1.0
    timescale_frames: float = 200.0
    drift_change_px: float = 0.03
    jitter_px: tuple[float, float] = (0.05, 0.1)

    def __post_init__(self) -> None:
        for name, pair in {**self.amplitude_px, "jitter_px": self.jitter_px}.items():
            if not all(0 <= value < math.inf for value in pair):
                raise ValueError(f"hyperparameter {name} is {pair}; it takes numbers from 0")
        for name in ("coil_length", "warp_length", "timescale_frames", "drift_change_px"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"hyperparameter {name} is {getattr(self, name)}; it takes numbers above 0")


class ScanBasis:
    """The features of one scan model.

    Attributes
    ----------
    blocks
        Where each block lies among the features. Blocks of the plane come first, then those of the
        column, then those of the row; the last are ``hum``, ``drift`` (position, velocity) and ``shear``:
        a shear that is the specimen's own, which alone is no part of the distortion.
    size
        Number of features, m.
    """

    def __init__(
        self, scan: ScanModel, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> None:
        self.scan, self.device, self.dtype = scan, torch.device(device), dtype
        rows, cols = scan.shape
        self._warp_half = tuple(math.log1p(n / _WARP_PX) / 2 for n in (rows, cols))
        has = set(scan.blocks)
        turns, swings = scan.path == "serpentine", scan.path == "sinusoidal"
        plane = {"affine": 3, "coil": _COIL_MODES**2}
        column = {"flyback": _LINE_MODES, "flyback_relax": len(_DECAYS_PX)}
        row = {"settle": _ROW_MODES, "settle_relax": len(_DECAYS_PX), "creep": len(_CREEP_PX)}
        self.blocks: dict[str, slice] = {}
        self._extend({name: n for name, n in plane.items() if name in has})
        self._plane_end = self.size
        if not swings:
            self._extend({name: n for name, n in column.items() if _switch(name) in has})
        if "flyback" in has and swings:
            self._extend({"lag": 4})
        if "flyback" in has and turns:
            self._extend({"turn": 3 + len(_TURN_DECAYS_PX)})
        self._column_end = self.size
        self._extend({name: n for name, n in row.items() if _switch(name) in has})
        self.dynamic_start = self.size
        if "hum" in has and scan.hum_period_rows is not None:
            self._extend({"hum": 2})
        self._extend({"drift": 2, "shear": 1})

    def _extend(self, blocks: dict[str, int]) -> None:
        for name, count in blocks.items():
            self.blocks[name] = slice(self.size, self.size + count)

    @property
    def size(self) -> int:
        """Number of features."""
        return max((block.stop for block in self.blocks.values()), default=0)

    @property
    def plane(self) -> slice:
        """Features that depend on both row and column."""
        return slice(0, self._plane_end)

    @property
    def column(self) -> slice:
        """Features of the time since a line began."""
        return slice(self._plane_end, self._column_end)

    @property
    def row(self) -> slice:
        """Features of the time since the frame began."""
        return slice(self._column_end, self.size)

    def prior_variance(self, hyper: Hyperparameters) -> Tensor:
        """Variance of each weight before anything was seen, shape ``(2, m)``, float64, in px².

        Raises
        ------
        ValueError
            If a block has no amplitude.
        """
        variance = torch.zeros(2, self.size, dtype=torch.float64)
        for name, block in self.blocks.items():
            if name not in hyper.amplitude_px:
                raise ValueError(f"hyperparameters have no amplitude_px of {name!r}; add it")
            amplitude = torch.tensor(hyper.amplitude_px[name], dtype=torch.float64)
            variance[:, block] = amplitude[:, None] ** 2 * self._spectrum(name, block, hyper)
        if "affine" not in self.blocks:  # nothing else says where the lattice lies
            variance[:, self.blocks["drift"].start] = 16.0
        return variance

    def _spectrum(self, name: str, block: slice, hyper: Hyperparameters) -> Tensor:
        if name == "coil":
            along = _frequencies(_COIL_EDGE, _COIL_MODES)
            return _matern((along[:, None] + along).flatten(), hyper.coil_length, 2)
        if name in ("flyback", "settle"):
            half = self._warp_half[name == "flyback"]
            along = _frequencies(_WARP_EDGE * half, block.stop - block.start)
            return _matern(along, hyper.warp_length, 1)
        spectrum = torch.ones(block.stop - block.start, dtype=torch.float64)
        if name == "drift":
            spectrum[0] = _DRIFT_START**2
        return spectrum

    def features(self, positions: Tensor, hum_period_rows: float | None = None) -> Tensor:
        """Evaluate all features at places ``(n, 2)``: shape ``(n, m)``."""
        row, col = positions.unbind(-1)
        parts = [self._plane_features(row, col), self._column_features(row, col)]
        return torch.cat([*parts, self.row_features(row, hum_period_rows)], -1)

    def field(self, positions: Tensor, weights: Tensor, hum_period_rows: float | None = None) -> Tensor:
        """Evaluate ``features @ weights`` for weights ``(2, m)`` without making the features: ``(n, 2)``."""
        row, col = positions.unbind(-1)
        found = self.row_features(row, hum_period_rows) @ weights[:, self.row].T
        if self._column_end > self._plane_end:
            found += self._column_features(row, col) @ weights[:, self.column].T
        if "affine" in self.blocks:
            found += self._affine(row, col) @ weights[:, self.blocks["affine"]].T
        if "coil" in self.blocks:
            down, along = self._coil_lines(row, col)
            for axis in range(2):
                found[:, axis] += ((down @ self._coil_matrix(weights[axis])) * along).sum(-1)
        return found

    def plane_grid(self, row: Tensor, col: Tensor, weights: Tensor) -> Tensor:
        """Field of the plane's blocks where rows ``(a,)`` and columns ``(b,)`` cross: ``(2, a, b)``."""
        found = torch.zeros(2, len(row), len(col), dtype=self.dtype, device=self.device)
        if "affine" in self.blocks:
            lines = self._affine(row, torch.zeros_like(row))
            across = self._unit(col, 1)
            for axis in range(2):
                one, u_row, u_col = weights[axis, self.blocks["affine"]]
                found[axis] += (one + u_row * lines[:, 1])[:, None] + u_col * across
        if "coil" in self.blocks:
            down, along = self._coil_lines(row, col)
            for axis in range(2):
                found[axis] += down @ self._coil_matrix(weights[axis]) @ along.T
        return found

    def plane_factors(self, row: Tensor, col: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Say the same as products of lines: ``(2, a, r)`` and ``(2, b, r)``, to be summed over ``r``."""
        down, along = [row.new_zeros(2, len(row), 0)], [col.new_zeros(2, len(col), 0)]
        if "affine" in self.blocks:
            one, by_row, by_col = weights[:, self.blocks["affine"], None].unbind(1)
            level, across = one + by_row * self._unit(row, 0), by_col * self._unit(col, 1)
            down.append(torch.stack([level, torch.ones_like(level)], -1))
            along.append(torch.stack([torch.ones_like(across), across], -1))
        if "coil" in self.blocks:
            lines, other = self._coil_lines(row, col)
            down.append(torch.stack([lines @ self._coil_matrix(each) for each in weights]))
            along.append(other.expand(2, -1, -1))
        return torch.cat(down, -1), torch.cat(along, -1)

    def column_line(self, col: Tensor, weights: Tensor, *, odd: bool = False) -> Tensor:
        """Field of the column's blocks along an even (or odd) line, shape ``(2, b)``."""
        row = torch.full_like(col, 1.0 if odd else 0.0)
        return weights[:, self.column] @ self._column_features(row, col).T

    def row_features(self, row: Tensor, hum_period_rows: float | None = None) -> Tensor:
        """Evaluate the features of rows ``(n,)``."""
        parts = []
        if "settle" in self.blocks:
            parts.append(self._warped(row, 0, _ROW_MODES))
        if "settle_relax" in self.blocks:
            parts.append(_decays(row, _DECAYS_PX))
        if "creep" in self.blocks:
            since = row.clamp(min=0)
            parts.append(torch.stack([_creep(since, first, self.scan.shape[0]) for first in _CREEP_PX], -1))
        return torch.cat([*parts, self.dynamic_features(row, hum_period_rows)], -1)

    def dynamic_features(self, row: Tensor, hum_period_rows: float | None = None) -> Tensor:
        """Evaluate hum, drift and shear alone, the last features."""
        since = (row - self.middle_row) / self.scan.shape[0]
        parts = [torch.ones_like(since), since, since]
        if "hum" in self.blocks:
            period = hum_period_rows or self.scan.hum_period_rows or 1.0
            phase = (row - self.middle_row) * (2 * math.pi / period)
            parts = [phase.cos(), phase.sin(), *parts]
        return torch.stack(parts, -1)

    @property
    def middle_row(self) -> float:
        """Row that is scanned in the middle of the frame's time."""
        return (self.scan.shape[0] - 1) / 2

    def _plane_features(self, row: Tensor, col: Tensor) -> Tensor:
        parts = [row.new_zeros(len(row), 0)]
        if "affine" in self.blocks:
            parts.append(self._affine(row, col))
        if "coil" in self.blocks:
            down, along = self._coil_lines(row, col)
            parts.append((down[:, :, None] * along[:, None, :]).flatten(1))
        return torch.cat(parts, -1)

    def _column_features(self, row: Tensor, col: Tensor) -> Tensor:
        since, sign = col, torch.ones_like(col)
        if self.scan.path == "serpentine":
            sign = 1 - 2 * torch.remainder(row.round(), 2)
            since = torch.where(sign > 0, col, self.scan.shape[1] - 1 - col)
        parts = [row.new_zeros(len(row), 0)]
        if "flyback" in self.blocks:
            parts.append(self._warped(since, 1, _LINE_MODES))
        if "flyback_relax" in self.blocks:
            parts.append(_decays(since, _DECAYS_PX))
        if "lag" in self.blocks:
            parts.append(_lag(self._unit(col, 1)))
        if "turn" in self.blocks:
            u = self._unit(col, 1)
            backlash = torch.stack([torch.ones_like(u), u, 1 - u * u], -1)
            parts.append(sign[:, None] * torch.cat([backlash, _decays(since, _TURN_DECAYS_PX)], -1))
        return torch.cat(parts, -1)

    def _unit(self, place: Tensor, axis: int) -> Tensor:
        """Say where a pixel lies between the edges of the frame, -1 to 1."""
        return (2 * place + 1) / self.scan.shape[axis] - 1

    def _affine(self, row: Tensor, col: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(row), self._unit(row, 0), self._unit(col, 1)], -1)

    def _coil_lines(self, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
        return (
            _sines(self._unit(row, 0), _COIL_EDGE, _COIL_MODES),
            _sines(self._unit(col, 1), _COIL_EDGE, _COIL_MODES),
        )

    def _coil_matrix(self, weights: Tensor) -> Tensor:
        return weights[self.blocks["coil"]].view(_COIL_MODES, _COIL_MODES)

    def _warped(self, since: Tensor, axis: int, modes: int) -> Tensor:
        half = self._warp_half[axis]
        warped = torch.log1p(since.clamp(min=0) / _WARP_PX) - half
        return _sines(warped, _WARP_EDGE * half, modes)


def _switch(block: str) -> str:
    """Name the block of ``ScanModel.blocks`` that a block comes with."""
    return "relax" if block.endswith("_relax") else block


def _frequencies(edge: float, modes: int) -> Tensor:
    """Eigenvalues of the Laplacian between -edge and edge, shape ``(modes,)``."""
    return (math.pi * torch.arange(1, modes + 1, dtype=torch.float64) / (2 * edge)) ** 2


def _sines(place: Tensor, edge: float, modes: int) -> Tensor:
    """Eigenfunctions of the Laplacian between -edge and edge, ``(n, modes)`` (Solin and Särkkä, eq. 56)."""
    steps = torch.arange(1, modes + 1, dtype=place.dtype, device=place.device) * (math.pi / (2 * edge))
    return torch.sin((place[:, None] + edge) * steps) / math.sqrt(edge)


def _matern(squared_frequency: Tensor, length: float, dimensions: int) -> Tensor:
    """Spectral density of the Matérn-5/2 kernel of variance 1 (Rasmussen and Williams 2006, eq. 4.15)."""
    nu, half = _SMOOTHNESS, dimensions / 2
    rate = 2 * nu / length**2
    volume = math.pow(2.0, dimensions) * math.pow(math.pi, half) * math.pow(rate, nu)
    scale = volume * math.gamma(nu + half) / math.gamma(nu)
    return scale * torch.pow(rate + squared_frequency, -(nu + half))


def _decays(since: Tensor, decays: tuple[float, ...]) -> Tensor:
    rates = torch.tensor(decays, dtype=since.dtype, device=since.device)
    return torch.exp(-since.clamp(min=0)[:, None] / rates)


def _creep(since: Tensor, first: float, last: float) -> Tensor:
    """Logarithm of the time, 0 at the start and 1 at the end: the creep of a piezo scanner."""
    return torch.log1p(since / first) / math.log1p(last / first)


def _lag(u: Tensor) -> Tensor:
    """What a resonant axis does when its phase and its stroke are a little off, ``(n, 4)``."""
    velocity = (1 - u * u).clamp(min=0).sqrt()
    return torch.stack([velocity, u * velocity, u * u, u**3], -1)
