"""Where to look before anything is known: at every kind of site, the rare ones too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Float64
from agents.kernels import square_distance

MAX_COMPARED = 1024


def unseen_kind(offered: Float64, seen: Float64) -> tuple[int, str]:
    """Choose one of the offered atoms, of a kind unlike those seen.

    The first is the most usual atom. Then, in turns, one of the largest group that nothing seen is like,
    and the one least like all seen (farthest point, Gonzalez 1985). Each alone can be led astray: the
    groups by gradual change over the field, the farthest by isolated freaks, of which every image has some.

    Parameters
    ----------
    offered
        Latents scaled to order 1, centred on the usual atom, shape ``(m, d)``, ``m`` at least 1.
    seen
        Those of the atoms measured or under way, shape ``(k, d)``.

    Returns
    -------
    index, reason
        Among the offered, and why in a few words.
    """
    if not len(seen):
        return int((offered * offered).sum(axis=1).argmin()), "a usual site"
    away = distance_to(offered, seen)
    if len(seen) % 2:
        unlike = np.flatnonzero(away > _extent_of_a_kind(offered))
        if unlike.size:
            return _middle_of_largest_group(offered, unlike), "a kind not yet measured"
    return int(away.argmax()), "unlike what was measured"


def distance_to(offered: Float64, seen: Float64) -> Float64:
    """Say how unlike each of the offered atoms is to the one of those seen that is most like it.

    Parameters
    ----------
    offered, seen
        Scaled latents, shapes ``(m, d)`` and ``(k, d)``, ``k`` at least 1.

    Returns
    -------
    distance
        Shape ``(m,)``.
    """
    nearest: Float64 = _distance(offered, seen).min(axis=1)
    return nearest


def nearest_alike(offered: Float64, index: int, way_nm: Float64) -> int:
    """Choose the atom with the shortest way of those that are like another, which is as good to look at.

    Parameters
    ----------
    offered
        As in ``unseen_kind``.
    index
        The other one.
    way_nm
        To each of the offered, shape ``(m,)``.
    """
    is_alike = _distance(offered, offered[index : index + 1])[:, 0] <= _extent_of_a_kind(offered) / 2
    is_alike[index] = True
    alike = np.flatnonzero(is_alike)
    return int(alike[way_nm[alike].argmin()])


def _extent_of_a_kind(offered: Float64) -> float:
    """Say how far apart two atoms of one kind may be.

    Most atoms are of the usual kind, so the lower quartile of all distances is one within a kind: in four
    dimensions of normal scatter twice it is 3.9 sd, which holds 99 % of a kind around its middle.
    """
    some = _thinned(offered)
    distance = _distance(some, some)[np.triu_indices(len(some), k=1)]
    return 2.0 * float(np.quantile(distance, 0.25)) if distance.size else 0.0


def _middle_of_largest_group(offered: Float64, unlike: NDArray[np.int64]) -> int:
    """Find the atom with most of the unlike ones within the extent of a kind."""
    some = unlike[:: -(-unlike.size // MAX_COMPARED)]
    near = _distance(offered[some], offered[some]) < _extent_of_a_kind(offered)
    return int(some[near.sum(axis=1).argmax()])


def _thinned(x: Float64) -> Float64:
    return x[:: -(-len(x) // MAX_COMPARED)]


def _distance(x: Float64, other: Float64) -> Float64:
    return np.sqrt(square_distance(x, other))
