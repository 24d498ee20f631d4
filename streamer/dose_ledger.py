"""The dose ledger: electrons given and reserved, in total and in square cells of the specimen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.areas import Rectangle
from streamer.message_base import PairNm

Cell = tuple[int, int]


class Dose(msgspec.Struct, frozen=True):
    """Electrons of one request.

    Attributes
    ----------
    total_e
        Of all of it.
    cells_e
        The most that each touched cell may get: together they can be more than the total.
    """

    total_e: float
    cells_e: dict[Cell, float]


class Booking(msgspec.Struct, frozen=True):
    """Where a request gives its electrons, and how many.

    Attributes
    ----------
    place
        On the specimen, as the ledger counts it.
    shape
        ``(rows, cols)`` of a sub-scan; ``(1, 1)`` for a spectrum.
    pixel_e
        Electrons at each place of the raster.
    stage_nm
        Where the stage stands meanwhile.
    """

    place: Rectangle
    shape: tuple[int, int]
    pixel_e: float
    stage_nm: PairNm = (0.0, 0.0)

    def dose(self, cell_nm: float) -> Dose:
        """Count the electrons, in all and in each cell; in no cell too few.

        A cell that a scan touches is taken to lie in it as far as it can. A row or column finer than a
        cell is spread over its width; a coarser one gives all it has to one cell.
        """
        total_e = self.pixel_e * math.prod(self.shape)
        if self.place.is_point:
            return Dose(total_e, {cell_of(self.place.center_nm, cell_nm): total_e})
        share = 1.0
        across_nm = 2 * _half_width_nm(self.place.rotation_rad, cell_nm / 2)
        for edge_nm, n in zip(self.place.size_nm, reversed(self.shape), strict=True):
            share *= max(1 / n, min(across_nm / edge_nm, 1.0))
        return Dose(total_e, dict.fromkeys(CellsTouched(self.place, cell_nm).cells(), share * total_e))


class DoseLedger:
    """Electrons given and reserved, in total and in each cell of the specimen.

    Parameters
    ----------
    cell_nm
        Edge of a cell.
    """

    def __init__(self, cell_nm: float) -> None:
        self.cell_nm = cell_nm
        self.total_e = 0.0
        self.cells_e: dict[Cell, float] = {}
        self.everywhere_e = 0.0

    def cell_of(self, position_nm: PairNm) -> Cell:
        """Name the cell that a place ``(x, y)`` of the ledger lies in."""
        return cell_of(position_nm, self.cell_nm)

    def cell_dose_e(self, cell: Cell) -> float:
        """Electrons in one cell, those of the frames included."""
        return self.cells_e.get(cell, 0.0) + self.everywhere_e

    def add_frame(self, dose_e_per_nm2: float, area_nm2: float) -> None:
        """Add a frame. It counts in every cell, also outside the field: never too little."""
        self.total_e += dose_e_per_nm2 * area_nm2
        self.everywhere_e += dose_e_per_nm2 * self.cell_nm**2

    def add(self, dose: Dose, times: float = 1.0) -> None:
        """Add a dose; -1 times gives a reservation back."""
        for cell, electrons in dose.cells_e.items():
            self.cells_e[cell] = self.cells_e.get(cell, 0.0) + times * electrons
        self.total_e += times * dose.total_e

    def lose(self, under_way: Iterable[Dose]) -> None:
        """Where the cells lie is not known any more: each may be the one that had most.

        Parameters
        ----------
        under_way
            What is reserved and stays so, at the cells that it was reserved for.
        """
        self.everywhere_e += max(self.cells_e.values(), default=0.0)
        self.cells_e.clear()
        for dose in under_way:
            self.add(Dose(0.0, dose.cells_e))


def cell_of(position_nm: PairNm, cell_nm: float) -> Cell:
    """Name the cell that a place ``(x, y)`` lies in."""
    return math.floor(position_nm[0] / cell_nm), math.floor(position_nm[1] / cell_nm)


class CellsTouched:
    """The cells that an area touches, or that lie no further from it than ``around_nm`` in x and y.

    Parameters
    ----------
    area, cell_nm, around_nm
        Those, and the edge of a cell.

    Attributes
    ----------
    columns, rows
        Where they all are; of an area that is not turned it is all that is there.
    """

    __slots__ = ("_area", "_cell_nm", "_reach_nm", "columns", "rows")

    def __init__(self, area: Rectangle, cell_nm: float, around_nm: float = 0.0) -> None:
        x_nm, y_nm = zip(*area.corners_nm, strict=True)
        self.columns = _cells_between(min(x_nm) - around_nm, max(x_nm) + around_nm, cell_nm)
        self.rows = _cells_between(min(y_nm) - around_nm, max(y_nm) + around_nm, cell_nm)
        self._area, self._cell_nm = area, cell_nm
        self._reach_nm = _half_width_nm(area.rotation_rad, cell_nm / 2 + around_nm) * (1 + 1e-9)

    @property
    def _is_turned(self) -> bool:
        turn_rad = self._area.rotation_rad
        return not self._area.is_point and bool(math.cos(turn_rad) * math.sin(turn_rad))

    def cells(self) -> Iterable[Cell]:
        """Name each of them."""
        if not self._is_turned:
            return product(self.columns, self.rows)
        right, down = np.nonzero(self._are_touched(self.columns, self.rows))
        return zip((right + self.columns.start).tolist(), (down + self.rows.start).tolist(), strict=True)

    def shares_one_with(self, other: CellsTouched) -> bool:
        """Is one of them also touched by the other area?"""
        columns, rows = _both(self.columns, other.columns), _both(self.rows, other.rows)
        if not columns or not rows:
            return False
        turned = [one._are_touched(columns, rows) for one in (self, other) if one._is_turned]
        return not turned or bool(np.logical_and.reduce(turned).any())

    def _are_touched(self, columns: range, rows: range) -> NDArray[np.bool_]:
        """Say of each of some cells, shape ``(columns, rows)``, whether it is touched."""
        (x, y), (width, height) = self._area.center_nm, self._area.size_nm
        cos, sin = math.cos(self._area.rotation_rad), math.sin(self._area.rotation_rad)
        right = (np.arange(columns.start, columns.stop)[:, None] + 0.5) * self._cell_nm - x
        down = (np.arange(rows.start, rows.stop) + 0.5) * self._cell_nm - y
        touched: NDArray[np.bool_] = np.abs(cos * right + sin * down) <= width / 2 + self._reach_nm
        touched &= np.abs(cos * down - sin * right) <= height / 2 + self._reach_nm
        return touched


def _cells_between(low_nm: float, high_nm: float, cell_nm: float) -> range:
    return range(math.floor(low_nm / cell_nm), math.floor(high_nm / cell_nm) + 1)


def _both(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _half_width_nm(rotation_rad: float, half_edge_nm: float) -> float:
    """Half the width of a square cell along a turned axis."""
    return half_edge_nm * (abs(math.cos(rotation_rad)) + abs(math.sin(rotation_rad)))
