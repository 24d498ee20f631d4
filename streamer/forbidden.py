"""Where nothing is measured: areas of the configuration and a person's vetoes, also after they are lost.

Areas lie in the coordinates of the dose ledger. When the specimen is lost nobody knows where they are on it,
and everywhere is forbidden until a person says where they are, or that they are not here any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from streamer.areas import Area, Areas, Rectangle
from streamer.message_base import PairNm

Polygon = tuple[PairNm, ...]


class ForbiddenArea(Area, frozen=True):
    """An area where nothing is measured.

    Attributes
    ----------
    index
        Its place in ``envelope.forbidden_areas_nm``; -1 for a person's veto.
    """

    index: int = -1

    @property
    def is_veto(self) -> bool:
        """Did a person forbid it while the session ran?"""
        return self.index < 0


class ForbiddenState(msgspec.Struct, frozen=True):
    """Everything in a ForbiddenAreas, and the polygons that it was configured with."""

    configured: tuple[Polygon, ...] = ()
    placed: tuple[ForbiddenArea, ...] = ()
    lost: tuple[ForbiddenArea, ...] = ()
    losses: int = 0


class ForbiddenAreas:
    """All that is forbidden, as far as it is known where it lies.

    Parameters
    ----------
    configured
        Polygons, in the coordinates of the session's first frame.
    """

    def __init__(self, configured: Sequence[Polygon] = ()) -> None:
        self._configured = tuple(configured)
        self._placed: tuple[ForbiddenArea, ...] = ()
        self._lost: tuple[ForbiddenArea, ...] = ()
        self._losses = 0  # while there were areas to be lost, since all were placed
        self._put(self._of_configuration())

    def _of_configuration(self) -> tuple[ForbiddenArea, ...]:
        return tuple(ForbiddenArea(corners, index=i) for i, corners in enumerate(self._configured))

    def _put(self, placed: Iterable[ForbiddenArea]) -> None:
        self._placed = tuple(placed)
        self._areas = Areas(self._placed)

    def state(self) -> ForbiddenState:
        """Give all of it, to go on from."""
        return ForbiddenState(self._configured, self._placed, self._lost, self._losses)

    def restore(self, state: ForbiddenState, *, was_lost: bool) -> None:
        """Go on from what another had come to.

        Parameters
        ----------
        state
            Of the other. Where it was configured with other polygons, ours count in place of those.
        was_lost
            Whether the specimen was ever lost: polygons of the first frame must be placed by a person then.
        """
        placed, lost = state.placed, state.lost
        if state.configured != self._configured:
            ours = self._of_configuration()
            placed = (*filter(_is_veto, placed), *(() if was_lost else ours))
            lost = (*filter(_is_veto, lost), *(ours if was_lost else ()))
        self._lost, self._losses = lost, state.losses
        self._put(placed)

    # -- learn ---------------------------------------------------------------------------------

    def veto(self, corners_nm: Polygon, radius_nm: float) -> None:
        """Forbid one more area, which lies there now."""
        self._put((*self._placed, ForbiddenArea(corners_nm, radius_nm)))

    def lose(self) -> None:
        """Take note that nobody knows any more where they lie."""
        if self._placed:
            self._losses += 1
        self._lost = (*self._lost, *self._placed)
        self._put(())

    def place(self, shift_nm: PairNm, wider_nm: float = 0.0) -> None:
        """Say where those lie that were lost.

        Parameters
        ----------
        shift_nm
            How far they are from where they would be had the specimen stayed, ``(x, y)``.
        wider_nm
            By how much each shall reach further, because the shift is only known so well.
        """
        x, y = shift_nm
        found = (
            msgspec.structs.replace(
                area,
                corners_nm=tuple((at_x + x, at_y + y) for at_x, at_y in area.corners_nm),
                radius_nm=area.radius_nm + wider_nm,
            )
            for area in self._lost
        )
        self._put((*self._placed, *found))
        self.forget()

    def forget(self) -> None:
        """Let go of those that were lost: they are not here any more."""
        self._lost, self._losses = (), 0

    # -- answer --------------------------------------------------------------------------------

    @property
    def lost_in_words(self) -> str:
        """Name what is lost, such as ``2 forbidden areas and 1 veto``; empty where nothing is."""
        vetoes = sum(map(_is_veto, self._lost))
        counts = (("forbidden area", "s", len(self._lost) - vetoes), ("veto", "es", vetoes))
        return " and ".join(f"{n} {what}{s if n > 1 else ''}" for what, s, n in counts if n)

    @property
    def are_apart(self) -> bool:
        """Were some lost at another time than others, so that no one shift places all of them?"""
        return self._losses > 1

    def touched_by(self, place: Rectangle) -> ForbiddenArea | None:
        """Give an area that a rectangle touches, of those whose place is known."""
        index = self._areas.first_touched(place)
        return None if index is None else self._placed[index]


def _is_veto(area: ForbiddenArea) -> bool:
    return area.is_veto
