"""Trade-offs between two objectives of which more is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Float64

# Of the front's extent: so far below its worst values lies the reference.
_BELOW = 0.1


def dominated_by(points: Float64) -> NDArray[np.int64]:
    """Count for each point, shape ``(n, 2)``, by how many others it is dominated; 0 makes a trade-off."""
    no_worse = (points[None, :] >= points[:, None]).all(axis=2)
    better = (points[None, :] > points[:, None]).any(axis=2)
    count: NDArray[np.int64] = np.sum(no_worse & better, axis=1, dtype=np.int64)
    return count


def front_of(points: Float64) -> Float64:
    """Take the points that none other dominates, shape ``(k, 2)``, in their order."""
    front: Float64 = points[dominated_by(points) == 0]
    return front


def reference_of(points: Float64) -> Float64:
    """Say below what a trade-off is worth nothing: somewhat below the worst values of the front.

    As BoTorch infers it (Ishibuchi et al., How to Specify a Reference Point in Hypervolume Calculation,
    2018); where the front is one point, by the extent of all points.

    Parameters
    ----------
    points
        Shape ``(n, 2)``, ``n`` at least 1.

    Returns
    -------
    reference
        Shape ``(2,)``.
    """
    front = front_of(points)
    extent = np.ptp(front, axis=0)
    extent = np.where(extent > 0, extent, np.ptp(points, axis=0))
    worst: Float64 = front.min(axis=0)
    return worst - _BELOW * np.where(extent > 0, extent, 1.0)


def dominated_area(points: Float64, reference: Float64) -> float:
    """Say how much area above a reference, shape ``(2,)``, the points, shape ``(n, 2)``, dominate together.

    Examples
    --------
    >>> dominated_area(np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 1.0]]), np.zeros(2))
    5.0
    """
    above = front_of(points[(points > reference).all(axis=1)])
    above = above[np.argsort(above[:, 0], kind="stable")]
    widths = np.diff(above[:, 0], prepend=reference[0])
    return float(widths @ (above[:, 1] - reference[1]))
