"""Areas of a plane: turned rectangles, polygons, and whether they touch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import msgspec

from streamer.message_base import PairNm

# Nearer than this two areas touch: far above rounding, far below anything that a beam knows of.
TOUCH_NM = 1e-6


class Rectangle(msgspec.Struct, frozen=True):
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

    def away_nm(self, place_nm: PairNm) -> float:
        """Say how far a place ``(x, y)`` is from it; 0 inside."""
        if self.is_point:
            return math.dist(self.center_nm, place_nm)
        x, y = place_nm[0] - self.center_nm[0], place_nm[1] - self.center_nm[1]
        cos, sin = math.cos(self.rotation_rad), math.sin(self.rotation_rad)
        beyond = abs(cos * x + sin * y) - self.size_nm[0] / 2, abs(cos * y - sin * x) - self.size_nm[1] / 2
        return math.hypot(max(beyond[0], 0.0), max(beyond[1], 0.0))


def touch(area: Rectangle, polygon: Sequence[PairNm]) -> bool:
    """Say whether a rectangle and a simple polygon, its inside included, share a place (or nearly)."""
    corners = area.corners_nm
    for axis in range(2):  # most are nowhere near
        ours, theirs = [c[axis] for c in corners], [c[axis] for c in polygon]
        if min(ours) > max(theirs) + TOUCH_NM or max(ours) < min(theirs) - TOUCH_NM:
            return False
    if _holds(polygon, corners[0]) or area.away_nm(polygon[0]) <= TOUCH_NM:
        return True  # one may lie wholly within the other
    return any(_apart_nm(*a, *b) <= TOUCH_NM for a in _edges(corners) for b in _edges(polygon))


def is_simple(polygon: Sequence[PairNm]) -> bool:
    """Say whether edges of a polygon meet only at the corners that they share, and it has an inside."""
    edges = list(_edges(polygon))
    n = len(edges)
    for i, j in combinations(range(n), 2):
        if j - i in (1, n - 1):  # neighbours share a corner; one that runs back along the other has no inside
            (tip, end), other = (edges[i], edges[j]) if j - i == 1 else (edges[j], edges[i])
            if _away_nm(other[1], tip, end) <= TOUCH_NM or _away_nm(tip, *other) <= TOUCH_NM:
                return False
        elif _apart_nm(*edges[i], *edges[j]) <= TOUCH_NM:
            return False
    return True


def _edges(corners: Sequence[PairNm]) -> Iterator[tuple[PairNm, PairNm]]:
    return zip(corners, [*corners[1:], corners[0]], strict=True)


def _holds(polygon: Sequence[PairNm], place: PairNm) -> bool:
    """Count the edges to one side of a place: inside it is odd."""
    x, y = place
    is_inside = False
    for (ax, ay), (bx, by) in _edges(polygon):
        if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
            is_inside = not is_inside
    return is_inside


def _apart_nm(a: PairNm, b: PairNm, c: PairNm, d: PairNm) -> float:
    """Distance of the lines from a to b and from c to d; 0 where they cross."""
    if _turn(a, b, c) * _turn(a, b, d) < 0 and _turn(c, d, a) * _turn(c, d, b) < 0:
        return 0.0
    return min(_away_nm(a, c, d), _away_nm(b, c, d), _away_nm(c, a, b), _away_nm(d, a, b))


def _turn(a: PairNm, b: PairNm, c: PairNm) -> int:
    """On which side of the line from a to b is c: -1, 0 or 1."""
    area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (area > 0) - (area < 0)


def _away_nm(place: PairNm, a: PairNm, b: PairNm) -> float:
    """Distance of a place from the line between a and b."""
    x, y = b[0] - a[0], b[1] - a[1]
    square = x * x + y * y
    along = ((place[0] - a[0]) * x + (place[1] - a[1]) * y) / square if square else 0.0
    along = min(max(along, 0.0), 1.0)
    return math.hypot(a[0] + along * x - place[0], a[1] + along * y - place[1])
