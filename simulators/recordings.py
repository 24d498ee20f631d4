"""Recorded frames in order, with their scale and their times: a session, a file or a folder of files.

Nothing is loaded before it is asked for: a recording knows how many frames there are and reads one
at a time.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from simulators.formats import RecordingError, Source, SpectrumImage, damaged, open_file, opener_of
from streamer.journal import read_messages, segments
from streamer.messages import AnyMessage, Float32, Frame, Outcome, Patches, ScanGeometry
from streamer.segment import MAGIC as JOURNAL_MAGIC
from streamer.segment import OldJournalError, SegmentFile

# Where a file says nothing of time, its frames are played one a second.
_NOMINAL_FRAME_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Frames that were recorded, read one at a time; iterating again starts again.

    Attributes
    ----------
    path
        What was opened.
    kind
        What it was recognised as, in words.
    count
        How many full frames there are.
    has_times
        Whether ``acquired_at_s`` was recorded; where not, the frames follow each other by dwell time
        times pixels if the dwell time is known, else by one second, from time 0.
    frames
        Begins to read from the first frame; of a journal, batches of patches come among them as they did.
        ``session`` and ``number`` are as recorded, or ``""`` and the place in the recording.
    outcomes
        Spectra and sub-scans that were recorded, status ``ok``.
    subscans
        Frames that answered a sub-scan, by the id of its request.
    spectra
        The spectrum image of the same area; None where there is none.
    """

    path: Path
    kind: str
    count: int
    has_times: bool
    frames: Callable[[], Iterator[Frame | Patches]]
    outcomes: tuple[Outcome, ...] = ()
    subscans: dict[str, Frame] = field(default_factory=dict)
    spectra: SpectrumImage | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Frame | Patches]:
        return self.frames()


def read_recording(path: Path | str, pixel_size_nm: float | None = None) -> Recording:
    """Open a recording; its first frame is read at once, so that a bad file is told now.

    Parameters
    ----------
    path
        A session folder or a journal of ours, a file of the field (.hdf5, .hspy, .dm3, .dm4, .emd,
        .ser, .mrc, .tif, .npy with a .json beside it, .png), or a folder of such frames.
    pixel_size_nm
        Edge of a pixel. Needed where the file carries no scale; where it does, this wins. A session
        of ours knows its scale and takes none.

    Raises
    ------
    RecordingError
        If it is not there, not a recording, damaged, or without a scale.
    """
    path = Path(path)
    if pixel_size_nm is not None and not (math.isfinite(pixel_size_nm) and pixel_size_nm > 0):
        raise RecordingError(f"--pixel-size-nm is {pixel_size_nm:g}; it takes a number above 0")
    if not path.exists():
        raise RecordingError(f"{path} does not exist; give a recorded session, a file or a folder of frames")
    if _is_journal(path):
        return _read_journal(path, pixel_size_nm)
    sources = _open_folder(path) if path.is_dir() else [(path, open_file(path))]
    return _join(path, sources, pixel_size_nm)


def _join(path: Path, sources: list[tuple[Path, Source]], pixel_size_nm: float | None) -> Recording:
    """Make one recording of the frames of several files, one file after the other."""
    spectra = next((source.spectra for _, source in sources if source.spectra), None)
    pictures = [(file, source) for file, source in sources if not source.is_sum_of_spectra] or sources
    for file, source in pictures:
        if source.pixel_size_nm is None and pixel_size_nm is None:
            raise RecordingError(
                f"{file} carries no scale; say how large a pixel is with --pixel-size-nm, such as "
                "--pixel-size-nm 0.01"
            )
        _frame(file, source, 0, pixel_size_nm)
    count = sum(source.count for _, source in pictures)
    times = _times(pictures)

    def frames() -> Iterator[Frame]:
        number, clock_s = 0, 0.0
        for file, source in pictures:
            for index in range(source.count):
                frame = _frame(file, source, index, pixel_size_nm)
                clock_s = times[number] if times else clock_s + _frame_time_s(source, frame)
                yield msgspec.structs.replace(frame, number=number, acquired_at_s=clock_s)
                number += 1

    return Recording(
        path=path,
        kind=pictures[0][1].kind if len(pictures) == 1 else f"folder of {len(pictures)} files",
        count=count,
        has_times=bool(times),
        frames=frames,
        spectra=spectra,
    )


def _times(sources: list[tuple[Path, Source]]) -> list[float]:
    """List when each frame ended; empty unless all files say so, and one after the other."""
    times = [float(at_s) for _, source in sources for at_s in source.ended_at_s or ()]
    is_whole = len(times) == sum(source.count for _, source in sources)
    is_rising = all(before < after for before, after in itertools.pairwise(times))
    return times if is_whole and is_rising else []


def _frame_time_s(source: Source, frame: Frame) -> float:
    if source.dwell_time_us is None:
        return _NOMINAL_FRAME_S
    rows, cols = frame.geometry.shape
    return rows * cols * source.dwell_time_us * 1e-6


def _frame(file: Path, source: Source, index: int, pixel_size_nm: float | None) -> Frame:
    image = _read_image(file, source, index)
    rows, cols = image.shape[1:]
    scale = source.pixel_size_nm if pixel_size_nm is None else (pixel_size_nm, pixel_size_nm)
    assert scale is not None
    dwell_time_us = source.dwell_time_us or _NOMINAL_FRAME_S * 1e6 / (rows * cols)
    try:
        return Frame(
            session="",
            number=index,
            acquired_at_s=0.0,
            image=image,
            channels=source.channels,
            geometry=ScanGeometry(shape=(rows, cols), field_of_view_nm=(cols * scale[1], rows * scale[0])),
            dwell_time_us=dwell_time_us,
            scan_path=source.scan_path,
        )
    except ValueError as error:
        raise RecordingError(f"{file}: frame {index} cannot be played: {error}") from None


def _read_image(file: Path, source: Source, index: int) -> Float32:
    try:
        image = np.asarray(source.read(index))
    except Exception as error:  # a foreign parser on damaged bytes raises whatever it likes
        raise damaged(file, f"frame {index} cannot be read", error) from error
    if image.ndim != 3 or image.dtype.kind not in "biuf" or 0 in image.shape:
        raise RecordingError(
            f"{file}: frame {index} is {image.dtype} of shape {image.shape[1:]}; a frame takes a "
            "two-dimensional image of real numbers"
        )
    return np.ascontiguousarray(image, dtype=np.float32)


def _open_folder(folder: Path) -> list[tuple[Path, Source]]:
    """Open every frame of a folder in the order in which a person counts: 2 before 10."""
    files = [
        file
        for file in sorted(folder.iterdir(), key=_counting_order)
        if file.is_file() and not file.name.startswith(".") and opener_of(file) is not None
    ]
    if not files:
        raise RecordingError(
            f"{folder} holds neither a journal (journal-000001.plj) nor frames; give the folder of a "
            "recorded session, or one with .tif, .png, .npy, .hdf5 or .hspy files in it"
        )
    return [(file, open_file(file)) for file in files]


def _counting_order(file: Path) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdigit() else (-1, part.lower())
        for part in re.split(r"(\d+)", file.name)
        if part
    ]


# Our own sessions.


def _is_journal(path: Path) -> bool:
    if path.is_dir():
        try:
            return bool(segments(path))
        except FileNotFoundError:
            return False
    with path.open("rb") as stream:
        return stream.read(len(JOURNAL_MAGIC)) == JOURNAL_MAGIC or path.suffix == ".plj"


def _read_journal(path: Path, pixel_size_nm: float | None) -> Recording:
    """Read a session: one pass for what it holds, one for each time that it is played."""
    if pixel_size_nm is not None:
        raise RecordingError(f"{path} is a session and knows its scale; leave out --pixel-size-nm")
    count, has_patches = 0, False
    outcomes: list[Outcome] = []
    subscans: dict[str, Frame] = {}
    for _, message in _messages(path):
        if isinstance(message, Outcome) and message.status == "ok":
            outcomes.append(message)
        elif isinstance(message, Frame) and message.request_id is not None:
            subscans[message.request_id] = message
        elif isinstance(message, Frame):
            count += 1
        has_patches |= isinstance(message, Patches)
    if not (count or has_patches):
        raise RecordingError(
            f"{path} holds no frames that can be read; give a session in which at least one came"
        )

    def frames() -> Iterator[Frame | Patches]:
        for _, message in _messages(path):
            if isinstance(message, Frame | Patches) and message.request_id is None:
                yield message

    return Recording(
        path=path,
        kind="session",
        count=count,
        has_times=True,
        frames=frames,
        outcomes=tuple(outcomes),
        subscans=subscans,
    )


def _messages(path: Path) -> Iterator[tuple[float, AnyMessage]]:
    for segment in segments(path):
        try:
            with SegmentFile(segment) as file:
                start = file.read(0, len(JOURNAL_MAGIC))
        except OldJournalError as error:
            raise RecordingError(str(error)) from None
        if start and start != JOURNAL_MAGIC:
            raise RecordingError(
                f"{segment} is not a journal: it begins with {start!r}; give the folder of a recorded session"
            )
    return read_messages(path)
