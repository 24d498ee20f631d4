"""How well the position of an atom is known: what the frame's correction adds to the finder's own error."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamer.messages import Float32, Frame, ScanGeometry

Float64 = NDArray[np.float64]

# A fit with equal noise weighs the rows of a column at a distance y by exp(-y²/σ²) along the rows, and by y²
# times that across them: so many rows, in σ, does it average what each has of its own.
_ROWS_PER_SIGMA = (22.63 / (3 * math.sqrt(math.pi)) * math.pi / 4, math.sqrt(2 * math.pi))


def of_correction(frame: Frame, positions_px: NDArray[np.floating], column_sigma_px: float) -> Float64:
    """Say what the correction of a frame leaves unknown of positions in it.

    The displacement field's own, with the drift, which all positions share, and the offsets that are left
    in the rows that a column crosses. 0 for a frame that was not corrected: nobody knows what it is off by.

    Parameters
    ----------
    frame
        As corrected.
    positions_px
        ``(row, col)``, shape ``(n, 2)``.
    column_sigma_px
        Width of the columns.

    Returns
    -------
    covariance
        ``(row, col)`` in px², shape ``(n, 2, 2)``.
    """
    covariance = np.zeros((len(positions_px), 2, 2))
    registration = frame.registration
    if registration is None or registration.distortion is None:
        return covariance
    distortion = registration.distortion
    rows2 = np.square(distortion.row_sd_px)
    rows = np.maximum(column_sigma_px * np.array(_ROWS_PER_SIGMA), 1.0)
    # The sd changes by little in the few pixels between a place and where it was recorded.
    field2 = np.maximum(distortion.sd_at(positions_px) ** 2 - rows2, 0.0)
    covariance[:, [0, 1], [0, 1]] = field2 + rows2 / rows
    return covariance


def on_specimen(covariance_px2: NDArray[np.floating], geometry: ScanGeometry) -> Float32:
    """Turn covariances ``(n, 2, 2)`` of ``(row, col)`` in px² into those of ``(x, y)`` in nm², float32."""
    steps = geometry.to_nm(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    turn = (steps[1:] - steps[0]).T
    turned: Float64 = turn @ np.asarray(covariance_px2, dtype=np.float64) @ turn.T
    return turned.astype(np.float32)
