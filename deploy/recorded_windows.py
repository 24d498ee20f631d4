"""Windows to train on, from the user's own recordings: found and cut as live; nothing is known of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.presets.preset import Preset
from simulators.formats import RecordingError
from simulators.recordings import Recording, read_recording
from streamer.messages import Frame, Patches
from streamer.stage import Rejected
from streamer.stages.cut_windows import CutWindows
from streamer.stages.encode import FitsEncoder
from streamer.stages.find_sites import FindSites

Float32 = NDArray[np.float32]

FEWEST = 200


class Recorded(NamedTuple):
    """Windows and where they come from.

    Attributes
    ----------
    windows_NCHW
        As an encoder sees them, float32.
    channels
        Of the recording, as many as a window has.
    data
        What they are, in words, for the card.
    """

    windows_NCHW: Float32
    channels: tuple[str, ...]
    data: str


def recorded_windows(
    path: Path, like: Preset, count: int, rng: np.random.Generator, pixel_size_nm: float | None = None
) -> Recorded:
    """Gather windows from a session, a file or a folder of frames.

    Frames are taken as they were recorded: what the correction of a live run takes out of them is small
    within a window.

    Parameters
    ----------
    path
        As of ``simulators.recordings.read_recording``.
    like
        Whose window, channels and normalisation are taken.
    count
        Most windows; of more, some are drawn.
    rng
        Draws them.
    pixel_size_nm
        Where the file has no scale.

    Raises
    ------
    RecordingError
        If it cannot be read, or has too few windows; the text says why frames were left out.
    """
    recording = read_recording(path, pixel_size_nm)
    each = max(20, 3 * count // max(1, len(recording)))
    parts, channels, why_not = _cut_all(recording, like, each, rng)
    found = sum(len(part) for part in parts)
    if found < FEWEST:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in why_not.items())
        raise RecordingError(
            f"{path}: has {found} windows of {_edge(like)}; training takes {FEWEST} and above"
            + (f" (frames left out: {reasons})" if reasons else "")
        )
    windows = np.concatenate(parts)
    chosen = np.sort(rng.permutation(found)[:count])
    data = f"{len(chosen)} windows of {len(recording)} recorded frames ({recording.kind}, {path.name})"
    return Recorded(np.ascontiguousarray(windows[chosen]), channels, data)


def _cut_all(
    recording: Recording, like: Preset, each: int, rng: np.random.Generator
) -> tuple[list[Float32], tuple[str, ...], Counter[str]]:
    """Cut up to so many windows of every frame; count why there are none."""
    parts: list[Float32] = []
    channels, why_not = like.channels, Counter[str]()
    for item in recording:
        try:
            windows = _cut(item, like)
        except Rejected as rejected:
            why_not[str(rejected)] += 1
            continue
        channels = (item.channels or like.channels)[: len(like.channels)]
        parts.append(windows[rng.permutation(len(windows))[:each]])
    return parts, channels, why_not


def _cut(item: Frame | Patches, like: Preset) -> Float32:
    """Make the windows of a frame, or take those that a detector delivered."""
    if isinstance(item, Patches):
        return fits(like).process(item).windows
    if like.window_per_nm:
        raise Rejected("no diffraction patterns")
    cut = CutWindows(like.window_nm, like.window_px, len(like.channels), like.normalisation)
    return cut.process(FindSites().process(item)).windows


def fits(like: Preset) -> FitsEncoder:
    """Make the stage that lets patches pass which such an encoder knows."""
    return FitsEncoder(like.channels, like.window_nm, like.window_px, like.window_per_nm)


def _edge(like: Preset) -> str:
    return f"{like.window_nm:g} nm" if like.window_nm else f"{like.window_per_nm:g} 1/nm"
