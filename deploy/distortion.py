"""What the frames' distortion means, in words for a person, and how the columns moved with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from deploy.session import PLACES_KEPT, DistortionFigures, Session
from models.trajectories import Trajectories, TrajectorySummary
from streamer.messages import DistortionMode
from streamer.motion import places_of

Float64 = NDArray[np.float64]

MODES: dict[DistortionMode, str] = {
    "off": "Nothing was corrected but the drift of whole frames.",
    "drift-only": (
        "Corrected were the drift, the offsets of single rows, and hum. Whatever all frames share (fly-back, "
        "settling, the coils' non-linearity) was left in the images: from one scan direction it cannot be "
        "told from strain of the specimen."
    ),
    "calibrate": (
        "Corrected was everything, on the operator's word that the specimen is a perfect lattice. A strain "
        "of the specimen, had there been one, would have been taken for distortion and erased."
    ),
    "frozen": (
        "Corrected were the static distortion as an earlier calibration found it, and drift, offsets of "
        "single rows and hum as they came. Strain of the specimen is kept; a distortion that has changed "
        "since the calibration is not seen."
    ),
    "separate": (
        "Corrected was the distortion as it was told from strain by scans that were turned and with the "
        "specimen moved. Strain of the specimen is kept."
    ),
}
OBSERVERS = {
    "lattice": "Columns were compared with the lattice that they belong to.",
    "registration": "Frames were compared with those before: only what changed among them could be seen.",
    "none": "Nothing was measured in the frames.",
}
FLAGS = {
    "blank": "nothing to be seen, as with a blanked beam",
    "faded": "correction faded out where it is uncertain",
    "jump": "the specimen was suddenly elsewhere",
    "learning": "the model had not yet learnt the distortion",
    "lost": "the frame could not be matched",
    "mirrored": "backward channels come in order of time, and were left as they are",
    "paired": "forward and backward channels were brought together",
    "relative": "only what differs from the reference was corrected",
}


def in_words(frames: Iterable[DistortionFigures]) -> list[str]:
    """Say for each mode that was in use what it corrects, and against what it measured."""
    used: dict[tuple[DistortionMode, str], list[int]] = {}
    for one in frames:
        used.setdefault((one.mode, one.observer), []).append(one.number)
    return [
        f"Mode «{mode}» ({_frames_text(numbers)}). {MODES[mode]} {OBSERVERS.get(observer, '')}".rstrip()
        for (mode, observer), numbers in used.items()
    ]


def _frames_text(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"frame {numbers[0]}"
    return f"{len(numbers):,} frames from {numbers[0]} to {numbers[-1]}"


def flag_rows(frames: Iterable[DistortionFigures]) -> list[tuple[str, str, str]]:
    """List the flags met: the word, what it means, and in how many frames."""
    met = Counter(flag for one in frames for flag in one.flags)
    return [(flag, FLAGS.get(flag, ""), f"{count:,}") for flag, count in met.most_common()]


def columns_motion(session: Session) -> TrajectorySummary | None:
    """Analyse the columns' trajectories over the last frames of one registration and one raster.

    The drift of whole frames, which has a section of its own, is taken off before and after: otherwise it
    would hide all else.

    Returns
    -------
    summary
        None where there are too few such frames, or too few columns in most of them.
    """
    if not session.places:
        return None
    last = session.places[-1]
    trajectories = Trajectories(PLACES_KEPT)
    for places in session.places:
        if places.registration.revision == last.registration.revision and places.raster == last.raster:
            seen, there = places_of(places.positions_nm, places.registration, places.raster)
            trajectories.observe(places.track, seen, there)
    return trajectories.summary()
