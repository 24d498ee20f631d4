"""Cut one window around every atom, at the scale that the encoder was trained on."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.blur import blur_into
from models.normalisation import Rule, normalised
from streamer.messages import Atoms, Float32, Frame, Patches, Registration
from streamer.position_covariance import on_specimen
from streamer.stage import Rejected

PICTURE_RULES = ("contrast", "response", "height")


class CutWindows:
    """Sample every window in one gather.

    A window is centred on its atom, has its axes along rows and columns of the corrected frame and
    is normalised as the encoder's card says: by ``contrast``, 0 at the background of the frame and 1 at the
    top of a typical column.

    Parameters
    ----------
    window_nm
        Edge of a window on the specimen; a pixel is the ``window_px``-th part of it.
    window_px
        Pixels along that edge.
    channels
        How many of the frame's channels are cut, from the first.
    normalisation
        Name of the rule: ``contrast``, ``response`` or ``height``; see ``models.normalisation``.
    """

    name = "windows"

    def __init__(
        self, window_nm: float, window_px: int, channels: int = 1, normalisation: str = "contrast"
    ) -> None:
        if not (math.isfinite(window_nm) and window_nm > 0):
            raise ValueError(f"windows.window_nm is {window_nm}; it takes numbers above 0")
        if not 2 <= window_px <= 512:
            raise ValueError(f"windows.window_px is {window_px}; it takes 2 to 512")
        if channels < 1:
            raise ValueError(f"windows.channels is {channels}; it takes 1 and above")
        if normalisation not in PICTURE_RULES:
            raise ValueError(
                f"windows.normalisation is {normalisation!r}; it takes {', '.join(PICTURE_RULES)}"
            )
        self.window_nm = window_nm
        self.window_px = window_px
        self.channels = channels
        self.normalisation = cast(Rule, normalisation)
        step_nm = window_nm / window_px
        self._offset_nm = (np.arange(window_px) - (window_px - 1) / 2) * step_nm

    def process(self, atoms: Atoms, /) -> Patches:
        """Return the windows that lie wholly in the frame; atoms nearer to the border have none.

        Raises
        ------
        Rejected
            ``too few channels`` for a frame that lacks a channel, ``no windows`` when no window fits.
        """
        frame = atoms.frame
        if len(frame.channels) < self.channels:
            raise Rejected("too few channels")
        inside = self._inside(atoms)
        if not inside.any():
            raise Rejected("no windows")
        positions = np.ascontiguousarray(atoms.positions_px[inside])
        covariance = atoms.position_covariance_px2
        return Patches(
            session=frame.session,
            number=frame.number,
            acquired_at_s=frame.acquired_at_s,
            windows=self._sampled(frame, positions, atoms.background, atoms.contrast),
            window_nm=self.window_nm,
            positions_px=positions,
            positions_nm=frame.geometry.to_nm(positions).astype(np.float32),
            confidence=atoms.confidence[inside],
            geometry=frame.geometry,
            registration=frame.registration or Registration(at_s=frame.acquired_at_s),
            position_covariance_nm2=(
                None if covariance is None else on_specimen(covariance[inside], frame.geometry)
            ),
        )

    def warm_up(self) -> None:
        """Compile what is not compiled yet: a first frame would wait for it."""
        bell = _bell(0.5)
        picture = _blurred(np.zeros((9, 9), np.float32), bell, bell)
        windows = np.empty((1, self.channels, 2, 2), dtype=np.float32)
        _gather(picture, np.full((1, 2), 4, np.float32), np.zeros((2, 2)), 0.0, 1.0, windows, 0)

    def _inside(self, atoms: Atoms) -> NDArray[np.bool_]:
        """Mark the atoms whose outermost samples are still pixels of the frame."""
        reach_px = self._offset_nm[-1] / np.array(atoms.frame.geometry.pixel_size_nm)
        far = np.array(atoms.frame.geometry.shape) - 1 - reach_px
        positions = atoms.positions_px
        inside: NDArray[np.bool_] = np.all((positions >= reach_px) & (positions <= far), axis=1)
        return inside

    def _sampled(self, frame: Frame, positions: Float32, background: float, contrast: float) -> Float32:
        """Sample the normalised frame bilinearly at every point of every window."""
        pixel_nm = np.array(frame.geometry.pixel_size_nm)
        # Where a window's pixel is larger than the frame's, the frame is averaged over it first:
        # a Gaussian with the variance that the larger square has beyond the smaller, s²/12 - 1/12.
        blur = np.sqrt(np.maximum((self.window_nm / self.window_px / pixel_nm) ** 2 - 1, 0) / 12)
        down, across = (_bell(sd) for sd in blur)
        offsets = self._offset_nm / pixel_nm[:, None]
        windows = np.empty((len(positions), self.channels, self.window_px, self.window_px), dtype=np.float32)
        image = frame.image[: self.channels]
        if self.normalisation != "contrast":  # which is linear, and done to the samples alone
            image = normalised(self.normalisation, image, background, contrast)
            background, contrast = 0.0, 1.0
        for channel in range(self.channels):
            picture = _blurred(np.ascontiguousarray(image[channel], dtype=np.float32), down, across)
            _gather(picture, positions, offsets, background, 1 / contrast, windows, channel)
        return windows


def _bell(sd_px: float) -> Float32:
    """Half of a normalised Gaussian, from its middle outwards to three sd, shape ``(reach + 1,)``."""
    reach = int(3 * sd_px + 0.5 + 1e-9)  # of two pixels in one, exactly half an sd, rounding must not decide
    if reach == 0:
        return np.ones(1, dtype=np.float32)
    half = np.exp(-0.5 * (np.arange(reach + 1) / sd_px) ** 2)
    normalised: Float32 = (half / (half[0] + 2 * half[1:].sum())).astype(np.float32)
    return normalised


def _blurred(image: Float32, down: Float32, across: Float32) -> Float32:
    """Average an image over its neighbours; beyond the border it goes on as at the border."""
    if len(down) == 1 and len(across) == 1:
        return image
    blurred = np.empty_like(image)
    blur_into(image, down, across, blurred)
    return blurred


@njit(cache=True)
def _gather(
    picture: Float32,
    positions: Float32,
    offsets: NDArray[np.float64],
    background: float,
    scale: float,
    windows: Float32,
    channel: int,
) -> None:
    """Sample ``(picture - background) * scale`` around each position into one channel of the windows.

    A window's axes are those of the picture, so the places along a row and along a column are found once
    a window: a sample costs two look-ups in a line that lies between two rows of the picture.
    """
    rows, cols = picture.shape
    n, edge = windows.shape[0], windows.shape[2]
    # Unsigned, because numba asks of every signed index whether it counts from the end.
    left, right = np.empty(edge, dtype=np.uint32), np.empty(edge, dtype=np.uint32)
    part = np.empty(edge, dtype=np.float32)
    line = np.empty(cols, dtype=np.float32)
    factor, level = np.float32(scale), np.float32(background)
    for i in range(n):
        first = 0
        for k in range(edge):
            place = min(max(positions[i, 1] + offsets[1, k], 0.0), cols - 1.0)
            col = min(int(place), max(cols - 2, 0))
            first = col if k == 0 else first
            left[k], right[k] = col - first, min(col + 1, cols - 1) - first
            part[k] = place - col
        wide = int(right[edge - 1]) + 1
        for k in range(edge):
            place = min(max(positions[i, 0] + offsets[0, k], 0.0), rows - 1.0)
            top = min(int(place), max(rows - 2, 0))
            share = np.float32(place - top)
            upper = picture[top, first : first + wide]
            lower = picture[min(top + 1, rows - 1), first : first + wide]
            for j in range(wide):
                line[j] = ((upper[j] + share * (lower[j] - upper[j])) - level) * factor
            out = windows[i, channel, k]
            for j in range(edge):
                here = line[left[j]]
                out[j] = here + part[j] * (line[right[j]] - here)
