"""When each part of the specimen was last visited: what was irradiated may need time to come to rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import msgspec

from streamer.areas import Rectangle
from streamer.dose_ledger import Cell, CellsTouched

# Visits are looked up by blocks of so many cells each way: few enough that a block holds few visits.
LEAST_BLOCK = 8


class VisitsState(msgspec.Struct, frozen=True):
    """Everything in a Visits."""

    visited: list[tuple[Rectangle, float]] = []
    everywhere_s: float = -math.inf


class Visits:
    """Where the beam was and when, by the instrument's clock, as long as that hinders another visit.

    A place is kept and not the cells around it, of which there can be thousands.

    Parameters
    ----------
    cell_nm
        Edge of a cell of the dose ledger.
    min_revisit_s
        Time between two visits of a cell; 0 remembers none.
    distance_nm
        A visit counts also in cells so far away along x and y.
    """

    def __init__(self, cell_nm: float, min_revisit_s: float, distance_nm: float) -> None:
        self._cell_nm = cell_nm
        self._min_s = min_revisit_s
        self._distance_nm = distance_nm
        self._block = max(LEAST_BLOCK, 2 * math.ceil(distance_nm / cell_nm) + 1)
        self._everywhere_s = -math.inf
        self._clear()

    def _clear(self) -> None:
        self._names = itertools.count()
        self._visited: dict[int, tuple[Rectangle, float]] = {}
        self._touched: dict[int, CellsTouched] = {}
        self._in_block: dict[Cell, dict[int, None]] = {}

    def state(self) -> VisitsState:
        """Give all of it, to go on from."""
        return VisitsState(list(self._visited.values()), self._everywhere_s)

    def restore(self, state: VisitsState) -> None:
        """Go on from what another had come to."""
        self._clear()
        for place, at_s in state.visited:
            self.note(place, at_s)
        self._everywhere_s = state.everywhere_s

    def note(self, place: Rectangle, at_s: float) -> None:
        """Take a visit, and forget those that hinder nobody any more."""
        if not self._min_s:
            return
        name = next(self._names)
        self._visited[name] = place, at_s
        self._touched[name] = touched = self._around(place)
        for block in self._blocks(touched):
            self._in_block.setdefault(block, {})[name] = None
        while self._visited and at_s - next(iter(self._visited.values()))[1] >= self._min_s:
            self._forget(next(iter(self._visited)))

    def _forget(self, name: int) -> None:
        del self._visited[name]
        for block in self._blocks(self._touched.pop(name)):
            del self._in_block[block][name]
            if not self._in_block[block]:
                del self._in_block[block]

    def lose(self) -> None:
        """Where the visits were is not known any more: each cell may be the one that was visited last."""
        self._everywhere_s = max([self._everywhere_s, *(at_s for _, at_s in self._visited.values())])
        self._clear()

    def are_due(self, place: Rectangle, under_way: Iterable[Rectangle], now_s: float) -> bool:
        """Say whether no cell of a place was visited too lately, or is about to be.

        Parameters
        ----------
        place
            That would be visited.
        under_way
            Places that were granted, and of which no outcome has come yet.
        now_s
            The instrument's clock.
        """
        if not self._min_s:
            return True
        if now_s - self._everywhere_s < self._min_s:
            return False
        wanted = CellsTouched(place, self._cell_nm)
        before = (
            self._touched[name]
            for name in {name for block in self._blocks(wanted) for name in self._in_block.get(block, ())}
            if now_s - self._visited[name][1] < self._min_s
        )
        ahead = (self._around(one) for one in under_way)
        return not any(wanted.shares_one_with(other) for other in itertools.chain(before, ahead))

    def _around(self, place: Rectangle) -> CellsTouched:
        return CellsTouched(place, self._cell_nm, self._distance_nm)

    def _blocks(self, touched: CellsTouched) -> Iterable[Cell]:
        return itertools.product(self._blocks_along(touched.columns), self._blocks_along(touched.rows))

    def _blocks_along(self, cells: range) -> range:
        return range(cells.start // self._block, (cells.stop - 1) // self._block + 1)
