"""Steerable components: a small basis in which turning a window is a phase.

A component is a radial profile times exp(i m theta). The coefficient of a window whose content is turned by
phi is exp(i m phi) times that of the upright one, so rotations are multiplications and an angle is the phase
of a sum. The profiles of each order m are the principal ones of the windows (steerable PCA: Zhao, Shkolnisky
and Singer, IEEE Trans. Comput. Imaging 2, 1 (2016)), here over all channels together, so that what two
channels show alike takes one component. Because the components are functions and no pictures, they can be
drawn on a shifted, stretched or blurred grid: the tangents of these changes are matrices on coefficients.

Axes: N window, C channel, F pixel of a channel (all channels in turn), J radial bump, P component,
D real coefficient: the real parts of all P, then the imaginary parts. Positions are ``(x, y)`` in pixels
from the middle, x along columns, y along rows; theta runs from x to y, clockwise on the screen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Complex128 = NDArray[np.complex128]

_EDGE_PX = 2.0  # over which the disc in a window fades
_BUMP_PX = 0.85  # sd of a radial bump; they stand a pixel apart
_STEP_PX = 0.25  # of the finite differences of a blur
# A shift is a secant over so many pixels each way: the slope at 0 is steep at the edge of the disc, and too
# much from a few tenths of a pixel on. Of a spot's change by a pixel 10 to 12 % are wrong so, else 14 to 21.
_SHIFT_PX = 0.6
_STRETCH = 0.02
_FIT_ON = 4000  # windows; more do not change the profiles


class Steerable(NamedTuple):
    """Components fitted to windows.

    Attributes
    ----------
    order_P
        m of each component, ascending, int64.
    read_FD, draw_FD
        ``windows @ read_FD`` are the coefficients, ``coefficients @ draw_FD.T`` the windows that they stand
        for. Columns of the components as functions, ``draw_FD``, are orthonormal in the disc (``disc``), but
        for the imaginary parts of order 0, which are zero; those of ``read_FD`` are they times the disc.
    shift_x_DD, shift_y_DD, stretch_DD, blur_DD
        ``d @ operator`` is the change of coefficients d for each pixel of shift, each unit of relative
        stretch, and each square pixel of half the added variance of a blur (the Laplacian).
    """

    order_P: NDArray[np.int64]
    read_FD: Float64
    draw_FD: Float64
    shift_x_DD: Float64
    shift_y_DD: Float64
    stretch_DD: Float64
    blur_DD: Float64


def radii(window_px: int, order: int) -> Float64:
    """Where the bumps of an order stand: a wave along the circle takes four pixels or more."""
    every = np.arange(0.0, window_px / 2 - 0.4)
    return every[order <= 0.5 + every * math.pi / 2]


def disc(window_px: int) -> Float64:
    """Weigh pixels by a disc with a soft edge, ``(window_px, window_px)``.

    What is in the corners of a window at one turn is not at another: read with them, a window that is turned
    is no longer the same window.
    """
    x, y = _middle(window_px)
    beyond = np.clip((np.hypot(x, y) - window_px / 2) / _EDGE_PX + 1, 0, 1)
    weight: Float64 = np.cos(beyond * math.pi / 2) ** 2
    return weight.reshape(window_px, window_px)


def available(channels: int, window_px: int, max_order: int) -> int:
    """Count the components that windows of a size can have at least."""
    # Bumps a pixel apart overlap: of n of them about n - 1 can be told apart on the grid.
    return channels * sum(max(1, len(radii(window_px, m)) - 1) for m in _orders(window_px, max_order))


def _orders(window_px: int, max_order: int) -> list[int]:
    return [m for m in range(max_order + 1) if len(radii(window_px, m))]


def _middle(window_px: int) -> tuple[Float64, Float64]:
    axis = np.arange(window_px) - (window_px - 1) / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x.ravel(), y.ravel()


def _bumps(order: int, radii_J: Float64, x: Float64, y: Float64) -> Complex128:
    """Draw the bumps of an order at positions: ``(positions, J)``."""
    rho, theta = np.hypot(x, y)[:, None], np.arctan2(y, x)[:, None]
    # A function of order m that is smooth in the middle starts there as rho^m.
    start = (rho / (rho + 0.7)) ** min(order, 3)
    profile = start * np.exp(-0.5 * ((rho - radii_J) / _BUMP_PX) ** 2)
    return np.asarray(profile * np.exp(1j * order * theta), dtype=np.complex128)


class _Profile(NamedTuple):
    """One component: its variance, its order and the heights of its bumps, ``(C, J)``."""

    variance: float
    order: int
    heights_CJ: Float64


def _profiles(windows_NCF: Float64, order: int, window_px: int) -> list[_Profile]:
    """Find the principal radial profiles of an order, all channels together."""
    radii_J = radii(window_px, order)
    root_F = np.sqrt(disc(window_px)).ravel()
    bumps_FJ = _bumps(order, radii_J, *_middle(window_px)) * root_F[:, None]
    value_J, vector_JJ = np.linalg.eigh((bumps_FJ.conj().T @ bumps_FJ).real)
    kept = value_J > 1e-3 * value_J.max()
    whiten_JJ = vector_JJ[:, kept] / np.sqrt(value_J[kept])
    centred = windows_NCF - windows_NCF.mean(0) if order == 0 else windows_NCF
    seen = ((centred * root_F) @ (bumps_FJ @ whiten_JJ)).reshape(len(windows_NCF), -1)
    variance, mixes = np.linalg.eigh((seen.conj().T @ seen).real / len(seen))
    channels = windows_NCF.shape[1]
    return [
        _Profile(float(variance[i]), order, mixes[:, i].reshape(channels, -1) @ whiten_JJ.T)
        for i in range(len(variance))
    ]


def _drawn(profiles: list[_Profile], window_px: int, x: Float64, y: Float64) -> Float64:
    """Draw components at positions, not yet orthonormal: ``(C * positions, D)``."""
    bumps = {m: _bumps(m, radii(window_px, m), x, y) for m in {one.order for one in profiles}}
    columns = [
        (bumps[one.order] @ one.heights_CJ.T).T.ravel() * (math.sqrt(2) if one.order else 1.0)
        for one in profiles
    ]
    complex_FP = np.stack(columns, 1)
    return np.concatenate([complex_FP.real, complex_FP.imag], 1)


def _orthonormalising(drawn_FD: Float64, alive_D: NDArray[np.bool_]) -> Float64:
    """Make the symmetric matrix that makes columns orthonormal; it changes them the least."""
    value, vector = np.linalg.eigh(drawn_FD[:, alive_D].T @ drawn_FD[:, alive_D])
    whole = np.zeros((len(alive_D), len(alive_D)))
    whole[np.ix_(alive_D, alive_D)] = (vector / np.sqrt(value)) @ vector.T
    return whole


def fit(windows_NCHW: NDArray[np.float32], components: int, max_order: int = 16) -> Steerable:
    """Fit components to windows.

    Parameters
    ----------
    windows_NCHW
        Shape ``(n, channel, h, h)``; channels of comparable size, because their variances are compared.
    components
        How many; at most ``available``.
    max_order
        Highest m.

    Raises
    ------
    ValueError
        If there are not so many components in windows of this size.
    """
    count, channels, size = windows_NCHW.shape[:3]
    if components > available(channels, size, max_order):
        raise ValueError(
            f"{components} components are too many for {channels} × {size}² pixels and orders to "
            f"{max_order}: it takes {available(channels, size, max_order)} at most"
        )
    sample = windows_NCHW[:: max(1, count // _FIT_ON)].reshape(-1, channels, size * size).astype(np.float64)
    found = [one for m in _orders(size, max_order) for one in _profiles(sample, m, size)]
    found = sorted(sorted(found, key=lambda one: -one.variance)[:components], key=lambda one: one.order)
    order_P = np.array([one.order for one in found])
    x, y = _middle(size)
    alive_D = np.concatenate([np.ones(components, bool), order_P > 0])
    disc_F1 = np.tile(disc(size).ravel(), channels)[:, None]
    mend_DD = _orthonormalising(np.sqrt(disc_F1) * _drawn(found, size, x, y), alive_D)

    def at(x: Float64, y: Float64) -> Float64:
        return _drawn(found, size, x, y) @ mend_DD

    def along(step: float) -> tuple[Float64, ...]:
        """Draw components moved by a step along x, against x, along y, against y."""
        return at(x - step, y), at(x + step, y), at(x, y - step), at(x, y + step)

    draw_FD = at(x, y)
    right, left, below, above = along(_SHIFT_PX)
    wider, closer = at(x * (1 - _STRETCH), y * (1 - _STRETCH)), at(x * (1 + _STRETCH), y * (1 + _STRETCH))
    changes = (
        (right - left) / (2 * _SHIFT_PX),
        (below - above) / (2 * _SHIFT_PX),
        (wider - closer) / (2 * _STRETCH),
        (sum(along(_STEP_PX)) - 4 * draw_FD) / _STEP_PX**2,
    )
    read_FD = disc_F1 * draw_FD
    return Steerable(order_P, read_FD, draw_FD, *(change.T @ read_FD for change in changes))
