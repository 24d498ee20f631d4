"""When each cell of the specimen was last visited: what was irradiated may need time to come to rest."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from streamer.areas import Rectangle
from streamer.dose_ledger import Cell, cells_touched


class VisitsState(msgspec.Struct, frozen=True):
    """Everything in a Visits."""

    last_s: list[tuple[int, int, float]] = []
    everywhere_s: float = -math.inf


class Visits:
    """The last visit of each cell of the dose ledger, by the instrument's clock.

    Parameters
    ----------
    cell_nm
        Edge of a cell.
    min_revisit_s
        Time between two visits; 0 remembers none.
    distance_nm
        A visit counts also in cells so far away along x and y.
    """

    def __init__(self, cell_nm: float, min_revisit_s: float, distance_nm: float) -> None:
        self._cell_nm = cell_nm
        self._min_s = min_revisit_s
        self._distance_nm = distance_nm
        self._last_s: dict[Cell, float] = {}
        self._everywhere_s = -math.inf

    def state(self) -> VisitsState:
        """Give all of it, to go on from."""
        return VisitsState([(*cell, at_s) for cell, at_s in self._last_s.items()], self._everywhere_s)

    def restore(self, state: VisitsState) -> None:
        """Go on from what another had come to."""
        self._last_s = {(right, down): at_s for right, down, at_s in state.last_s}
        self._everywhere_s = state.everywhere_s

    def note(self, place: Rectangle, at_s: float) -> None:
        """Take a visit, and forget those that hinder nobody any more."""
        if not self._min_s:
            return
        for cell in self._around(place):
            self._last_s.pop(cell, None)  # to the end: the first are the oldest
            self._last_s[cell] = at_s
        while self._last_s and at_s - next(iter(self._last_s.values())) >= self._min_s:
            del self._last_s[next(iter(self._last_s))]

    def lose(self) -> None:
        """Where the cells lie is not known any more: each may be the one that was visited last."""
        self._everywhere_s = max([self._everywhere_s, *self._last_s.values()])
        self._last_s.clear()

    def are_due(self, cells: Iterable[Cell], under_way: Iterable[Rectangle], now_s: float) -> bool:
        """Say whether none of these cells was visited too lately, or is about to be.

        Parameters
        ----------
        cells
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
        taken = {cell for place in under_way for cell in self._around(place)}
        return all(
            cell not in taken and now_s - self._last_s.get(cell, -math.inf) >= self._min_s for cell in cells
        )

    def _around(self, place: Rectangle) -> Iterable[Cell]:
        return cells_touched(place, self._cell_nm, self._distance_nm)
