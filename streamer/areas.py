"""Areas of a plane: turned rectangles, polygons, and whether they touch.

Edges of many polygons are looked at together: arrays of places are complex, x + iy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.message_base import PairNm

Places = NDArray[np.complex128]

# Nearer than this two areas touch: far above rounding, far below anything that a beam knows of.
TOUCH_NM = 1e-6
# Nothing that a scan reaches is so far away; further numbers are not reckoned with.
FURTHEST_NM = 1e10
# Whether a polygon crosses itself takes the square of this.
MOST_CORNERS = 200


class Rectangle(msgspec.Struct, frozen=True, omit_defaults=True):
    """A turned rectangle; a point is one without size.

    Attributes
    ----------
    center_nm
        ``(x, y)``.
    size_nm
        ``(width, height)``, along and across ``rotation_rad``.
    rotation_rad
        The width points along ``(cos, sin)`` of it.
    """

    center_nm: PairNm
    size_nm: PairNm = (0.0, 0.0)
    rotation_rad: float = 0.0

    @property
    def is_point(self) -> bool:
        """Has it no size?"""
        return self.size_nm == (0.0, 0.0)

    @property
    def corners_nm(self) -> tuple[PairNm, ...]:
        """The four corners in their order around it; of a point, that point."""
        if self.is_point:
            return (self.center_nm,)
        x, y = self.center_nm
        cos, sin = math.cos(self.rotation_rad), math.sin(self.rotation_rad)
        half_w, half_h = self.size_nm[0] / 2, self.size_nm[1] / 2
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        steps = ((sx * half_w, sy * half_h) for sx, sy in signs)
        return tuple((x + u * cos - v * sin, y + u * sin + v * cos) for u, v in steps)


class Area(msgspec.Struct, frozen=True):
    """A polygon with its inside, and all that is near it; with one corner only, a disc.

    Attributes
    ----------
    corners_nm
        ``(x, y)``, in their order around it.
    radius_nm
        How far around it counts as well.
    """

    corners_nm: tuple[PairNm, ...]
    radius_nm: float = 0.0


class Areas:
    """Areas of which one asks again and again whether anything touches them.

    Parameters
    ----------
    areas
        Polygons among them are simple.
    """

    def __init__(self, areas: Sequence[Area]) -> None:
        corners = [_places(area.corners_nm) for area in areas]
        self._from = np.concatenate([*corners, _places(())])
        self._to = np.concatenate([*(np.roll(one, -1) for one in corners), _places(())])
        self._owner = np.repeat(np.arange(len(areas)), [len(one) for one in corners])
        self._near_nm = np.array([area.radius_nm + TOUCH_NM for area in areas])
        self._low = np.array([one.real.min() + 1j * one.imag.min() for one in corners])
        self._high = np.array([one.real.max() + 1j * one.imag.max() for one in corners])

    def first_touched(self, rectangle: Rectangle) -> int | None:
        """Give the place in the row of the first area that a rectangle shares a place with (or nearly)."""
        if not len(self._near_nm):
            return None
        corners = _places(rectangle.corners_nm)
        near = self._whose_box_is_near(corners)
        if not near.any():
            return None
        of_near = near[self._owner]
        start, end, owner = self._from[of_near], self._to[of_near], self._owner[of_near]
        within = self._near_nm[owner]
        rows = corners[:, None]
        touched = (_away_nm(rows, start, end) <= within).any(0) | (_away_from_nm(rectangle, start) <= within)
        if len(corners) > 1:
            touched |= _cross(rows, np.roll(rows, -1), start, end).any(0)
        # An odd number of edges beside a place: it is inside.
        inside = np.bincount(owner[_is_beside(corners[0], start, end)], minlength=len(near)) % 2 == 1
        hit = np.flatnonzero(inside | (np.bincount(owner[touched], minlength=len(near)) > 0))
        return int(hit[0]) if len(hit) else None

    def _whose_box_is_near(self, corners: Places) -> NDArray[np.bool_]:
        """Most are nowhere near."""
        x, y = corners.real, corners.imag
        near: NDArray[np.bool_] = (
            (x.min() <= self._high.real + self._near_nm)
            & (x.max() >= self._low.real - self._near_nm)
            & (y.min() <= self._high.imag + self._near_nm)
            & (y.max() >= self._low.imag - self._near_nm)
        )
        return near


def why_no_polygon(corners_nm: Sequence[PairNm]) -> str:
    """Say why these corners enclose no area, and what would do; nothing if they do."""
    if len(corners_nm) < 3:
        return f"has too few corners, {len(corners_nm)}; it takes three or more"
    if len(corners_nm) > MOST_CORNERS:
        return f"has too many corners, {len(corners_nm)}; it takes up to {MOST_CORNERS}"
    if not all(abs(value) <= FURTHEST_NM for corner in corners_nm for value in corner):
        return f"has corners {corners_nm}; it takes finite numbers of nanometres"
    if not _is_simple(corners_nm):
        return "crosses or touches itself; give its corners in their order around it, each once"
    return ""


def _is_simple(polygon: Sequence[PairNm]) -> bool:
    """Say whether edges of a polygon meet only at the corners that they share, and it has an inside."""
    start = _places(polygon)
    end = np.roll(start, -1)
    n = len(start)
    # Neighbours share a corner; one that runs back along the other has no inside.
    after = np.roll(end, -1)
    runs_back = (_away_nm(after, start, end) <= TOUCH_NM) | (_away_nm(start, end, after) <= TOUCH_NM)
    i, j = np.triu_indices(n, 2)
    i, j = i[j - i < n - 1], j[j - i < n - 1]
    a, b, c, d = start[i], end[i], start[j], end[j]
    meets = _cross(a, b, c, d)
    for place, edge in ((a, (c, d)), (b, (c, d)), (c, (a, b)), (d, (a, b))):
        meets |= _away_nm(place, *edge) <= TOUCH_NM
    return not (runs_back.any() or meets.any())


def _places(corners_nm: Sequence[PairNm]) -> Places:
    return np.array([complex(x, y) for x, y in corners_nm], dtype=np.complex128)


def _is_beside(place: np.complex128, start: Places, end: Places) -> NDArray[np.bool_]:
    """Say which edges lie to the right of a place."""
    spans = (start.imag > place.imag) != (end.imag > place.imag)
    rise = np.where(spans, end.imag - start.imag, 1.0)
    crossing = start.real + (place.imag - start.imag) / rise * (end.real - start.real)
    beside: NDArray[np.bool_] = spans & (place.real < crossing)
    return beside


def _cross(a: Places, b: Places, c: Places, d: Places) -> NDArray[np.bool_]:
    """Do the lines from a to b and from c to d cross, neither ending on the other?"""
    return (_turn(a, b, c) * _turn(a, b, d) < 0) & (_turn(c, d, a) * _turn(c, d, b) < 0)


def _turn(a: Places, b: Places, c: Places) -> NDArray[np.float64]:
    """On which side of the line from a to b is c: -1, 0 or 1."""
    return np.sign(((b - a).conj() * (c - a)).imag)


def _away_nm(place: Places, a: Places, b: Places) -> NDArray[np.float64]:
    """Distance of places from the lines between a and b."""
    line, way = b - a, place - a
    square = line.real**2 + line.imag**2
    along = (line.conj() * way).real / np.where(square > 0, square, 1.0)
    return np.abs(np.clip(along, 0.0, 1.0) * line - way)


def _away_from_nm(rectangle: Rectangle, places: Places) -> NDArray[np.float64]:
    """Distance of places from a rectangle; 0 inside."""
    turn = complex(math.cos(rectangle.rotation_rad), -math.sin(rectangle.rotation_rad))
    along = (places - complex(*rectangle.center_nm)) * turn
    width, height = rectangle.size_nm
    beyond = np.maximum(np.abs(along.real) - width / 2, 0.0), np.maximum(np.abs(along.imag) - height / 2, 0.0)
    return np.hypot(*beyond)
