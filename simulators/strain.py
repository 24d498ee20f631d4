"""Displacement fields of real strain, in whatever unit and axes the points have."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def inclusion(points: Float64, strength: float, at: tuple[float, float], radius: float) -> Float64:
    """Displacement around something too large for its place: away from it, and fading.

    Parameters
    ----------
    points
        Shape ``(n, 2)``.
    strength
        Displacement where it is largest, at ``radius``.
    at
        Its middle.

    Returns
    -------
    displacement
        Shape ``(n, 2)``.
    """
    from_middle = (points - np.array(at)) / radius
    fade = np.exp(0.5 - 0.5 * (from_middle**2).sum(axis=-1, keepdims=True))
    pushed: Float64 = strength * fade * from_middle
    return pushed


def wall(
    points: Float64, strength: float, at: tuple[float, float], half_width: float, normal_rad: float
) -> Float64:
    """Displacement on the two sides of a wall between domains: along it, one way and the other.

    Parameters
    ----------
    points
        Shape ``(n, 2)``.
    strength
        Displacement far from the wall.
    at
        A point on it.
    half_width
        Distance at which three quarters of the displacement are reached.
    normal_rad
        Angle from the first axis to the normal of the wall.

    Returns
    -------
    displacement
        Shape ``(n, 2)``.
    """
    normal = np.array([math.cos(normal_rad), math.sin(normal_rad)])
    beyond = (points - np.array(at)) @ normal / half_width
    slipped: Float64 = strength * np.tanh(beyond)[:, None] * np.array([-normal[1], normal[0]])
    return slipped
