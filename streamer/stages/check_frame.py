"""Refuse a frame that no later stage could use."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from streamer.messages import Frame
from streamer.stage import Rejected


class CheckConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What still counts as a good frame.

    Attributes
    ----------
    max_saturated_fraction
        Largest part of the pixels that may share the highest value, 0 to 1. Shot noise puts a
        handful of pixels there, a clipped detector whole columns.
    """

    max_saturated_fraction: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.max_saturated_fraction <= 1:
            raise ValueError(
                f"check.max_saturated_fraction is {self.max_saturated_fraction}; it takes above 0 to 1"
            )


class CheckFrame:
    """Let good frames pass as they are.

    Every channel must be finite; the first channel, the one in which atoms are found, must also
    hold a picture.
    """

    name = "check"

    def __init__(self, config: CheckConfig | None = None) -> None:
        self.config = config or CheckConfig()

    def process(self, frame: Frame, /) -> Frame:
        """Return the frame itself.

        Raises
        ------
        Rejected
            ``not finite`` for a NaN or an infinity anywhere, ``constant`` for a blanked beam,
            ``saturated`` for a clipped detector.
        """
        # The extremes carry any NaN or infinity, so no mask of the frame is ever made.
        if not math.isfinite(float(frame.image.min())) or not math.isfinite(float(frame.image.max())):
            raise Rejected("not finite")
        picture = frame.image[0]
        highest = picture.max()
        if picture.min() == highest:
            raise Rejected("constant")
        if np.count_nonzero(picture == highest) > max(1, self.config.max_saturated_fraction * picture.size):
            raise Rejected("saturated")
        return frame
