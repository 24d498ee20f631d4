"""What a session's latents say as a whole: classes and their changes, densities in time, order of angles.

Pure functions of arrays. Many windows over many frames are read out as in the papers that this service
goes by: transitions between the classes of single atoms (Maksov et al., doi:10.1038/s41524-019-0152-9),
densities of latents against time (arXiv:2006.10267), averages over an ensemble of rods (arXiv:2009.00783),
angles of domain walls (arXiv:2011.13050).

Axes: N windows, Z latents, K classes, F frames, T times that are asked for, G places on a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

UNDECIDED = -1
NOVEL = 3.0  # novelty above this is not usual, as Latents say
_MIDDLE = 0.2  # sd, in windows, of what counts as the middle of a window
_REACH = 4.0  # standard deviations beyond which a kernel is nothing


# -- classes ---------------------------------------------------------------------------------------------


def likely_class(probability_NK: NDArray[Any], least: float = 0.5) -> Int64:
    """Name the class of each window.

    Parameters
    ----------
    probability_NK
        Shape ``(n, k)``; ``k`` may be 0.
    least
        A window none of whose classes is as likely as this is undecided.

    Returns
    -------
    class_N
        Shape ``(n,)``; ``UNDECIDED`` (-1) where nothing is likely enough.
    """
    if not probability_NK.shape[1]:
        return np.full(len(probability_NK), UNDECIDED, dtype=np.int64)
    best = probability_NK.argmax(axis=1)
    return np.where(probability_NK.max(axis=1, initial=0.0) >= least, best, UNDECIDED).astype(np.int64)


def class_counts(class_N: Int64, classes: int) -> Int64:
    """Count the windows of each class, the undecided left out; shape ``(k,)``."""
    return np.bincount(class_N[class_N >= 0], minlength=classes).astype(np.int64)


def transition_counts(
    track_before: Int64, class_before: Int64, track_after: Int64, class_after: Int64, classes: int
) -> Int64:
    """Count from which class to which the same atoms went, from one frame to another.

    Parameters
    ----------
    track_before, track_after
        Ids of the atoms of either frame, shapes ``(n,)`` and ``(m,)``; negative ones are nobody's.
    class_before, class_after
        Of the same atoms; undecided ones are not counted.
    classes
        How many there are.

    Returns
    -------
    counts
        Shape ``(k, k)``, from the row's class to the column's; the diagonal holds those that stayed.
    """
    _, before, after = np.intersect1d(track_before, track_after, return_indices=True)
    old, new = class_before[before], class_after[after]
    known = (track_before[before] >= 0) & (old >= 0) & (new >= 0)
    flat = np.bincount(old[known] * classes + new[known], minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def transition_probability(counts: Int64) -> Float64:
    """Turn counts of transitions into probabilities for each class to leave to; rows without any are NaN."""
    total = counts.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / total, dtype=np.float64)


# -- densities -------------------------------------------------------------------------------------------


def density_against_time(
    at_s: ArrayLike,
    values: Sequence[NDArray[Any]],
    shown_s: ArrayLike,
    grid: ArrayLike,
    *,
    time_sd_s: float,
    value_sd: float,
) -> Float64:
    """Estimate how a quantity is spread at each time, by Gaussian kernels in time and in the quantity.

    Parameters
    ----------
    at_s
        Times of the frames, shape ``(f,)``.
    values
        The quantity of each window of each frame: ``f`` arrays of any lengths.
    shown_s, grid
        Times, shape ``(t,)``, and values of the quantity, shape ``(g,)``, at which the density is given.
    time_sd_s, value_sd
        Standard deviations of the kernels.

    Returns
    -------
    density
        Shape ``(t, g)``, per unit of the quantity: each row is the mean over the windows near that time,
        so that it integrates to 1; NaN where there is no window within four standard deviations of time.

    Raises
    ------
    ValueError
        If a kernel's width is not above 0, or there are not as many times as arrays.
    """
    times, centres = np.asarray(at_s, np.float64), np.asarray(grid, np.float64)
    if not (time_sd_s > 0 and value_sd > 0):
        raise ValueError(f"the widths of the kernels are {time_sd_s} and {value_sd}; they take above 0")
    if len(times) != len(values):
        raise ValueError(f"there are {len(times)} times and {len(values)} frames; they go together")
    apart = (np.asarray(shown_s, np.float64)[:, None] - times) / time_sd_s
    weight_TF = np.where(np.abs(apart) <= _REACH, np.exp(-0.5 * apart**2), 0.0)
    sums_FG = np.array([_kernel_sum(one, centres, value_sd) for one in values]).reshape(len(times), -1)
    windows = weight_TF @ np.array([len(one) for one in values], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(weight_TF @ sums_FG / np.where(windows > 0, windows, np.nan)[:, None])


def _kernel_sum(values: NDArray[Any], centres: Float64, sd: float) -> Float64:
    """Sum a normalised Gaussian around each value, at these places."""
    apart = (centres[:, None] - np.asarray(values, np.float64)) / sd
    return np.asarray(np.exp(-0.5 * apart**2).sum(axis=1) / (sd * np.sqrt(2 * np.pi)))


def kernel_width(values: NDArray[Any]) -> float:
    """Choose the width of a kernel for these values by Silverman's rule, from their middle half.

    Returns
    -------
    sd
        Above 0 also where all values are the same.
    """
    if len(values) < 2:
        return 1.0
    low, high = np.percentile(values, (25, 75))
    spread = min(float(np.std(values)), float(high - low) / 1.349) or float(np.std(values))
    return 0.9 * spread * float(len(values)) ** -0.2 or 1.0


# -- angles ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How far angles agree.

    Attributes
    ----------
    parameter
        0 for angles all around, 1 where all are the same: the nematic order of rods for symmetry 2.
    director_rad
        The common angle, within ``±π / symmetry``; NaN where there is none.
    """

    parameter: float
    director_rad: float


def order_parameter(angle_rad: NDArray[Any], symmetry: int = 2, weight: NDArray[Any] | None = None) -> Order:
    """Say how far angles agree: ``|<exp(i n angle)>|``.

    Parameters
    ----------
    angle_rad
        Shape ``(n,)``.
    symmetry
        A content that looks the same after a turn by ``2π / symmetry``: 2 for rods and walls.
    weight
        Shape ``(n,)``, not negative, such as the lengths of walls; equal ones if left out.
    """
    weights = np.ones(len(angle_rad)) if weight is None else np.asarray(weight, np.float64)
    total = float(weights.sum())
    if total <= 0:
        return Order(parameter=float("nan"), director_rad=float("nan"))
    mean = complex((weights * np.exp(1j * symmetry * np.asarray(angle_rad, np.float64))).sum()) / total
    return Order(parameter=abs(mean), director_rad=float(np.angle(mean)) / symmetry)


def angle_density(
    angle_rad: NDArray[Any],
    grid_rad: ArrayLike,
    *,
    sd_rad: float,
    symmetry: int = 2,
    weight: NDArray[Any] | None = None,
) -> Float64:
    """Estimate how angles are spread on the circle, by von Mises kernels on ``symmetry`` times the angle.

    Parameters
    ----------
    angle_rad
        Shape ``(n,)``.
    grid_rad
        Where the density is given, shape ``(g,)``.
    sd_rad
        Width of a kernel.
    symmetry, weight
        As in ``order_parameter``.

    Returns
    -------
    density
        Per radian, shape ``(g,)``; it integrates to 1 over ``2π / symmetry``. NaN without any weight.
    """
    from scipy.special import i0e  # 0.1 s that the live view need not wait for

    weights = np.ones(len(angle_rad)) if weight is None else np.asarray(weight, np.float64)
    concentration = 1.0 / (symmetry * sd_rad) ** 2
    apart = symmetry * (np.asarray(grid_rad, np.float64)[:, None] - np.asarray(angle_rad, np.float64))
    # i0e and the -1 keep a narrow kernel from overflowing: both carry exp(-concentration).
    kernels = np.exp(concentration * (np.cos(apart) - 1)) / (2 * np.pi * i0e(concentration))
    total = weights.sum()
    return np.asarray(symmetry * (kernels @ weights) / (total if total > 0 else np.nan))


def line_direction(windows_NCHW: NDArray[Any]) -> Float64:
    """Say along which line the content of each window runs: a rod lengthwise, a wall along itself.

    It is the direction in which the window changes least around its middle, by the structure tensor
    (Förstner and Gülch, 1987), summed over channels. An encoder's angles are counted from an arbitrary zero;
    added to the direction of the upright content they are those of lines on the specimen.

    Parameters
    ----------
    windows_NCHW
        Shape ``(n, c, h, w)``.

    Returns
    -------
    angle
        Shape ``(n,)``, from columns (x) towards rows (y), ``-π/2`` to ``π/2``; of content without any
        direction, any.
    """
    from scipy.ndimage import gaussian_filter  # only where lines are read

    windows = np.asarray(windows_NCHW, np.float64)
    height, width = windows.shape[2:]
    # Differences of pixels see steep slopes as less steep, and so turn lines; a Gaussian's do not.
    along_y, along_x = (
        gaussian_filter(windows, (0, 0, 1, 1), order=order) for order in ((0, 0, 1, 0), (0, 0, 0, 1))
    )
    row, col = np.indices((height, width))
    apart = ((row - (height - 1) / 2) / height) ** 2 + ((col - (width - 1) / 2) / width) ** 2
    weight = np.exp(-0.5 * apart / _MIDDLE**2)
    xx, yy, xy = ((weight * one).sum(axis=(1, 2, 3)) for one in (along_x**2, along_y**2, along_x * along_y))
    steepest = 0.5 * np.arctan2(2 * xy, xx - yy)
    return np.asarray(np.mod(steepest + np.pi, np.pi) - np.pi / 2)
