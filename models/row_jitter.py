"""What each row of a frame does on its own, as the fits of atom columns see it.

A least-squares fit of a column weighs rows by the square of its template's derivative: by
``exp(-y²/sigma²)`` along the fast axis and ``y² exp(-y²/sigma²)`` along the slow one. White jitter of the
rows is therefore a smooth process along the columns of a frame. Its covariance is interpolated between
knots, so that it costs no more than their number; what that leaves out is given to each column alone
(the FITC approximation, Quiñonero-Candela and Rasmussen 2005).

Shapes: n columns, k knots, m features. Axis 0 is the slow one.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from models.triangles import gram

_SPACING = 0.9  # of knots, in units of the column's sigma: 1 % and 6 % of the variance are left out
_BIN = 1.5  # within so many sigma, columns share 85 % and 75 % of their jitter
_SHARED = (0.746, 0.847)
_NUGGET = 1e-4  # along the slow axis the process has no power at one frequency
_LEAST_SIGMA = 1.9  # rows: points of the same row share all, those three rows further a quarter


@dataclass(frozen=True, slots=True, eq=False)
class _Knots:
    """Knots of a whole frame, their covariance for a jitter of variance 1."""

    precision: Tensor  # (k, k)
    log_determinant: float  # of the covariance


class RowJitter:
    """The jitter of one frame's columns.

    Parameters
    ----------
    row
        Where the columns are, ``(n,)``, float64.
    rows
        Rows of the frame.
    sigma_px
        Sd of a column's image; 0 for points and blocks.
    """

    def __init__(self, row: Tensor, rows: int, sigma_px: float) -> None:
        self._sigma = max(round(sigma_px, 1), _LEAST_SIGMA)
        self._is_column = sigma_px > 0
        self._count = math.ceil(rows / (_SPACING * self._sigma)) + 2
        place = row.clamp(0, rows) / (_SPACING * self._sigma)
        self._knot = place.long()
        above = place - self._knot
        self._above = above
        self._bin = (row.clamp(0, rows) / (_BIN * self._sigma)).long()
        self._bins = math.ceil(rows / (_BIN * self._sigma)) + 1

    def _kind(self, axis: int) -> int:
        return axis if self._is_column else 1

    @functools.cached_property
    def _interpolations(self) -> list[tuple[Tensor, Tensor]]:
        """Of both axes; a scan without jitter needs none."""
        return [_interpolation(self._above, self._kind(axis)) for axis in range(2)]

    def alone(self, axis: int) -> Tensor:
        """Part of the jitter's variance that the knots do not explain, for each column ``(n,)``."""
        return self._interpolations[axis][1]

    def marginalise(
        self, axis: int, variance: float, scaled: Tensor, root: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor, float, float]:
        """Say what must be taken off the information of columns whose jitter is not known.

        Parameters
        ----------
        variance
            Of the jitter of a column, px², above 0.
        scaled
            Features times the root of the columns' weights, ``(n, m)``.
        root, residual
            Roots of the weights and residuals, ``(n,)``, float64.

        Returns
        -------
        gram, gradient, quadratic, log_determinant
            To be taken off ``(m, m)``, ``(m,)`` and the sum of squares; the last to be added to the log
            determinant of the noise.
        """
        knots = _knots(self._count, self._kind(axis))
        sums = self._on_knots(axis, scaled, root).cpu().double()
        lumps = self._on_knots(axis, residual[:, None], root**2)
        matrix = knots.precision / variance
        self._add_load(axis, matrix, root**2)
        lower = torch.linalg.cholesky(matrix)
        white = torch.linalg.solve_triangular(lower, torch.cat([sums, lumps], 1), upper=False)
        log_determinant = 2 * float(lower.diagonal().log().sum()) + knots.log_determinant
        log_determinant += self._count * math.log(variance)
        products = gram(white)
        return products[:-1, :-1], products[:-1, -1], float(products[-1, -1]), log_determinant

    def variance_px2(
        self, axis: int, residual: Tensor, weight: Tensor, features: Tensor, covariance: Tensor
    ) -> float:
        """Estimate the jitter's variance by the products of columns of neighbouring rows; may be below 0.

        Parameters
        ----------
        residual, weight
            ``(n,)``, float64; the weight is 0 where a column is not to be believed.
        features, covariance
            Of the model that was fitted to the same columns, ``(n, m)`` and ``(m, m)``: it took a part of
            the jitter for itself, and the covariance of its weights says how much.
        """
        weight = weight / weight.sum().clamp(min=1e-30)
        sums = features.new_zeros(self._bins, features.shape[1])
        _add_rows(sums, self._bin, features, weight)
        taken = sums.cpu().double()
        load, lump = torch.zeros(2, self._bins, dtype=torch.float64)
        load.index_add_(0, self._bin, weight)
        lump.index_add_(0, self._bin, weight * residual)
        products = float((lump**2).sum() - ((weight * residual) ** 2).sum())
        products += float(((taken @ covariance) * taken).sum())
        pairs = float((load**2).sum() - (weight**2).sum())
        shared = _SHARED[axis] if self._is_column else 1.0
        return products / max(pairs * shared, 1e-30)

    def _on_knots(self, axis: int, values: Tensor, weight: Tensor) -> Tensor:
        """Sum ``weight * values`` over the columns of each knot: ``(k, m)``."""
        found = values.new_zeros(self._count, values.shape[1])
        for step, tap in enumerate(self._interpolations[axis][0]):
            _add_rows(found, self._knot + step, values, tap * weight)
        return found

    def _add_load(self, axis: int, matrix: Tensor, weight: Tensor) -> None:
        """Add the weight of the columns, as the knots feel it, to a matrix ``(k, k)``."""
        below, above = self._interpolations[axis][0]
        diagonal = matrix.diagonal()
        diagonal.index_add_(0, self._knot, below**2 * weight)
        diagonal.index_add_(0, self._knot + 1, above**2 * weight)
        for offset in (1, -1):
            matrix.diagonal(offset).index_add_(0, self._knot, below * above * weight)


class LoneRows:
    """The jitter of one frame's rows, each of which was observed once: the same as more noise.

    Stands in for ``RowJitter`` where no two observations share any jitter.

    Parameters
    ----------
    count
        Of the observations.
    """

    def __init__(self, count: int) -> None:
        self._alone = torch.ones(count, dtype=torch.float64)

    def alone(self, axis: int) -> Tensor:
        """Part of the jitter's variance that belongs to each observation alone, ``(n,)``: all of it."""
        return self._alone

    def marginalise(
        self, axis: int, variance: float, scaled: Tensor, root: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor, float, float]:
        """Say that nothing must be taken off: see ``RowJitter.marginalise``."""
        size = scaled.shape[1]
        nothing = torch.zeros(size, size + 1, dtype=torch.float64)
        return nothing[:, 1:], nothing[:, 0], 0.0, 0.0

    def variance_px2(
        self, axis: int, residual: Tensor, weight: Tensor, features: Tensor, covariance: Tensor
    ) -> float:
        """Estimate the jitter's variance by what residuals are more than noise; may be below 0.

        Parameters
        ----------
        residual, weight
            ``(n,)``, float64; the weight is one over the variance of the noise, or 0 where an observation is
            not to be believed.
        features, covariance
            Of the model: few features take next to nothing of the jitter of many rows.
        """
        use = weight > 0
        if not bool(use.any()):
            return 0.0
        # Noise that is known badly must not decide: as much weight as for a jitter of the usual residual.
        square, noise = residual[use] ** 2, 1 / weight[use]
        share = 1 / (noise + square.median()) ** 2
        return float((share * (square - noise)).sum() / share.sum())


def _add_rows(found: Tensor, place: Tensor, values: Tensor, weight: Tensor) -> None:
    """Add ``weight * values`` of rows ``(n, m)`` to rows ``(k, m)`` at places ``(n,)``, in place."""
    if found.device.type != "cpu" or found.dtype != torch.float64:
        found.index_add_(0, place.to(found.device), values * weight.to(values)[:, None])
    else:
        _add_rows_here(found.numpy(), place.numpy(), values.numpy(), weight.numpy())


@njit(cache=True)
def _add_rows_here(
    found: NDArray[np.float64],
    place: NDArray[np.int64],
    values: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> None:
    count = values.shape[1]
    for i in range(len(place)):
        part = weight[i]
        if part == 0:
            continue
        to, of = found[place[i]], values[i]
        for k in range(count):
            to[k] += part * of[k]


def observed_once(row: Tensor) -> bool:
    """Say whether observations at rows ``(n,)`` are of whole rows, each of another one."""
    whole = row.round()
    return bool((row == whole).all()) and len(torch.unique(whole)) == len(row)


def hum_seen(row_angle: float, col_angle: float) -> tuple[float, float]:
    """Say what part of a hum a column's fit sees, ``(row, col)``, for its sigma as angles of the hum."""
    row = math.exp(-(row_angle**2) / 4) * (1 - row_angle**2 / 2)
    return row, math.exp(-(col_angle**2) / 4)


def _correlation(distance: Tensor, axis: int) -> Tensor:
    """Correlate the jitter of two columns that are so many sigma apart along the slow axis."""
    square = distance**2
    near = torch.exp(-square / 2)
    return near if axis else near * (1 - 2 / 3 * square + square**2 / 3)


def _interpolation(above: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Interpolate best between two knots: weights ``(2, n)``, and the part of the variance left out."""
    to_knots = torch.stack([_correlation(above * _SPACING, axis), _correlation((1 - above) * _SPACING, axis)])
    between = float(_correlation(torch.tensor(_SPACING, dtype=torch.float64), axis))
    taps = (to_knots - between * to_knots.flip(0)) / (1 - between**2)
    return taps, (1 - (taps * to_knots).sum(0)).clamp(min=0)


@functools.lru_cache(maxsize=16)
def _knots(count: int, axis: int) -> _Knots:
    place = torch.arange(count, dtype=torch.float64) * _SPACING
    covariance = _correlation(place[:, None] - place, axis)
    covariance.diagonal().add_(_NUGGET)
    lower = torch.linalg.cholesky(covariance)
    return _Knots(torch.cholesky_inverse(lower), 2 * float(lower.diagonal().log().sum()))
