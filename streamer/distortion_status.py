"""What is corrected just now, in a few words for whoever looks at the results."""

from __future__ import annotations

import math

from streamer.messages import Distortion, DistortionMode
from streamer.separation import STEPS, Separation

# What is put right, and what a person must not overlook that is not.
_LEFT: dict[DistortionMode, str] = {
    "off": "nothing is corrected",
    "drift-only": "static distortion is left in",
    "calibrate": "strain counts as distortion",
    "frozen": "by the calibration of this scan",
    "separate": "",
}


def distortion_status(distortion: Distortion | None, separation: Separation) -> str:
    """Say the mode, what a frame was measured against, what is left, and what is wrong.

    Parameters
    ----------
    distortion
        Of the latest frame that came through; None where none was estimated.
    separation
        How far the scans are that tell strain from distortion.

    Returns
    -------
    words
        ``mode, residual (observer): what it means; flags``.

    Examples
    --------
    >>> distortion_status(None, Separation())
    'off: nothing is corrected'
    """
    if distortion is None:
        return f"off: {_LEFT['off']}"
    left = f", {distortion.residual_px:.2f} px left" if math.isfinite(distortion.residual_px) else ""
    by = f" ({distortion.observer})" if distortion.observer != "none" else ""
    is_told_apart = separation.map_frames > 0 and "relative" not in distortion.flags
    means = _LEFT[distortion.mode] or _separation_status(separation, is_told_apart)
    return f"{distortion.mode}{left}{by}: {'; '.join([means, *distortion.flags])}"


def _separation_status(separation: Separation, has_map: bool) -> str:
    """Say whether there is a map of the strain, and how far the scans for it are."""
    known = "strain map" if has_map else "no strain map"
    if separation.ended:
        return f"{known}, scans ended at {separation.ended}"
    if separation.step == len(STEPS) and has_map:
        return f"strain map of {separation.map_frames} frames"
    return f"{known} after {separation.step} of {len(STEPS)} scans"
