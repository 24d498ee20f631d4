"""Rods measured in an image of heights, by nothing but the image: what a person with a ruler would do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float64 = NDArray[np.float64]

LEVEL = 0.9  # of a rod's height: so near its top even those that lie side by side are apart


def rods_in(
    height_nm: NDArray[np.float32], pixel_nm: float, length_nm: float, diameter_nm: float
) -> tuple[Float64, Float64]:
    """Measure the rods that stand alone at nine tenths of their height.

    What is cut by the edge, or is not of the length and slenderness of one rod, is left out.

    Parameters
    ----------
    height_nm
        Shape ``(rows, cols)``; the face is at about 0.
    pixel_nm
        Edge of a pixel.
    length_nm, diameter_nm
        Of a rod.

    Returns
    -------
    places_px, angles_rad
        Middle ``(row, col)``, shape ``(n, 2)``, and angle of the axis from the columns towards the rows, 0
        to pi, shape ``(n,)``.
    """
    smooth = ndimage.gaussian_filter(height_nm.astype(np.float64), 0.6)
    labels, count = ndimage.label(smooth > LEVEL * diameter_nm)
    edge = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist())
    places, angles = [], []
    for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
        points = np.argwhere(labels[box] == label)
        if label in edge or len(points) < 8:
            continue
        place = points.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov((points - place).T))
        long_nm, wide_nm = np.sqrt(12 * values[::-1]) * pixel_nm  # of a bar with these moments
        if 0.8 < long_nm / length_nm < 1.1 and wide_nm < 2 * diameter_nm:
            places.append(place + [box[0].start, box[1].start])
            angles.append(np.arctan2(vectors[0, 1], vectors[1, 1]) % np.pi)
    return np.array(places).reshape(-1, 2), np.array(angles)


def matched(places_px: Float64, true_px: Float64, within_px: float) -> tuple[NDArray[np.int64], Float64]:
    """Say which true place is nearest to each measured one, and how far it is; -1 beyond ``within_px``."""
    away = np.hypot(*(places_px[:, None] - true_px[None]).transpose(2, 0, 1))
    nearest = away.argmin(axis=1)
    least = away.min(axis=1)
    return np.where(least < within_px, nearest, -1), least


def turned_by(one_rad: Float64, other_rad: Float64) -> Float64:
    """Difference of angles of axes, -pi / 2 to pi / 2."""
    difference: Float64 = (one_rad - other_rad + np.pi / 2) % np.pi - np.pi / 2
    return difference
