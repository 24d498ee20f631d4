"""Cut one window around every atom, at the scale that the encoder was trained on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from streamer.messages import Atoms, Float32, Frame, Patches, Registration
from streamer.position_covariance import on_specimen
from streamer.stage import Rejected

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    import torch


class CutWindows:
    """Sample every window in one gather.

    A window is centred on its atom, has its axes along rows and columns of the corrected frame and
    is normalised: 0 at the background of the frame, 1 at the top of a typical column.

    Parameters
    ----------
    window_nm
        Edge of a window on the specimen; a pixel is the ``window_px``-th part of it.
    window_px
        Pixels along that edge.
    channels
        How many of the frame's channels are cut, from the first.
    """

    name = "windows"

    def __init__(self, window_nm: float, window_px: int, channels: int = 1) -> None:
        if not (math.isfinite(window_nm) and window_nm > 0):
            raise ValueError(f"windows.window_nm is {window_nm}; it takes numbers above 0")
        if not 2 <= window_px <= 512:
            raise ValueError(f"windows.window_px is {window_px}; it takes 2 to 512")
        if channels < 1:
            raise ValueError(f"windows.channels is {channels}; it takes 1 and above")
        self.window_nm = window_nm
        self.window_px = window_px
        self.channels = channels
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

    def _inside(self, atoms: Atoms) -> NDArray[np.bool_]:
        """Mark the atoms whose outermost samples are still pixels of the frame."""
        reach_px = self._offset_nm[-1] / np.array(atoms.frame.geometry.pixel_size_nm)
        far = np.array(atoms.frame.geometry.shape) - 1 - reach_px
        positions = atoms.positions_px
        inside: NDArray[np.bool_] = np.all((positions >= reach_px) & (positions <= far), axis=1)
        return inside

    def _sampled(self, frame: Frame, positions: Float32, background: float, contrast: float) -> Float32:
        """Sample the normalised frame bilinearly at every point of every window."""
        import torch

        # Where a window's pixel is larger than the frame's, the frame is averaged over it first:
        # a Gaussian with the variance that the larger square has beyond the smaller, s²/12 - 1/12.
        ratio = self.window_nm / self.window_px / np.array(frame.geometry.pixel_size_nm)
        blur = np.sqrt(np.maximum(ratio**2 - 1, 0) / 12)
        picture = np.empty((self.channels, *frame.geometry.shape), dtype=np.float32)
        for channel in range(self.channels):
            level = (frame.image[channel] - np.float32(background)) * np.float32(1 / contrast)
            ndimage.gaussian_filter(level, blur, truncate=3, mode="nearest", output=picture[channel])
        with torch.inference_mode():
            sampled = torch.nn.functional.grid_sample(
                torch.from_numpy(picture)[None],
                self._grid(frame, positions),
                mode="bilinear",
                padding_mode="border",
                align_corners=True,
            )
        n, edge = len(positions), self.window_px
        windows = sampled.view(self.channels, n, edge, edge).transpose(0, 1)
        return np.ascontiguousarray(windows.numpy())

    def _grid(self, frame: Frame, positions: Float32) -> torch.Tensor:
        """Sampling points of all windows in a column, ``(1, n · h, w, 2)`` as (x, y) from -1 to 1."""
        import torch

        rows, cols = frame.geometry.shape
        height_nm, width_nm = frame.geometry.pixel_size_nm
        n, edge = len(positions), self.window_px
        row = positions[:, 0, None] + self._offset_nm / height_nm
        col = positions[:, 1, None] + self._offset_nm / width_nm
        grid = np.empty((n, edge, edge, 2), dtype=np.float32)
        grid[..., 0] = (col * (2 / max(cols - 1, 1)) - 1)[:, None, :]
        grid[..., 1] = (row * (2 / max(rows - 1, 1)) - 1)[:, :, None]
        return torch.from_numpy(grid.reshape(1, n * edge, edge, 2))
