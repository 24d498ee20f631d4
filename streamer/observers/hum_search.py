"""Look for a hum in the rows of successive frames, until one is found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.observers.hum import find_hum

Float64 = NDArray[np.float64]

_FEWEST = 3  # frames that must show it together
_MOST = 8  # frames that are kept
_RAREST = 48  # a search takes as long as a frame: at 3, 6, 12, 24, 48, and then every 48 frames


class HumSearch:
    """Gathers the offsets of rows as they were measured, and looks for a period in them now and then.

    Parameters
    ----------
    recent_px
        Of the last frames, as ``recent_px`` said, shape ``(frames, 2, rows)``; none by default.
    frames
        Frames taken in so far.
    """

    def __init__(self, recent_px: Float64 | None = None, frames: int = 0) -> None:
        self._recent = [] if recent_px is None else list(np.asarray(recent_px, dtype=np.float64))
        self.frames = frames

    @property
    def recent_px(self) -> Float64:
        """Offsets of the last frames, shape ``(frames, 2, rows)``."""
        return np.stack(self._recent) if self._recent else np.zeros((0, 2, 0))

    def take(self, measured_px: Float64) -> float | None:
        """Take in the rows of the next frame; say the hum's period where one was looked for and found.

        Parameters
        ----------
        measured_px
            Offset of each row beside the smooth field, shape ``(2, rows)``; 0 where it is not known.
        """
        self._recent = [*self._recent[-_MOST + 1 :], measured_px]
        self.frames += 1
        return find_hum(self.recent_px) if self._is_time() else None

    def _is_time(self) -> bool:
        if self.frames >= _RAREST:
            return self.frames % _RAREST == 0
        turns, rest = divmod(self.frames, _FEWEST)
        return rest == 0 and turns.bit_count() == 1
