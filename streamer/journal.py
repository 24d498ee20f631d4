"""Append-only log of wire messages: what is acked is here.

A segment is a file of records, each ``[prefix, part…]`` with the parts exactly as on the wire. The
prefix carries a magic, the time of arrival, the length of every part and a CRC-32 of itself; the
parts carry the checksums of the message. So a torn tail is found by its length, a flipped bit by a
checksum, and a record can be found again after a damaged one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from streamer.codec import WireError, decode
from streamer.messages import AnyMessage

MAGIC = b"PLJ1"
_FIXED = struct.Struct("<4sdH")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_MAX_PARTS = 64
_SEGMENT_NAME = re.compile(r"journal-(\d{6})\.plj")

Parts = Sequence[bytes | memoryview]


class JournalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the journal keeps.

    Attributes
    ----------
    durability
        ``written``: an ack means that the operating system has it (a crash of the service loses
        nothing); ``fsynced``: that the disk has it (a power failure neither).
    segment_mb
        A new file is begun beyond this size.
    """

    durability: Literal["written", "fsynced"] = "written"
    segment_mb: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.segment_mb <= 1_000_000:
            raise ValueError(f"journal.segment_mb is {self.segment_mb}; it takes 1 to 1000000")


class Record(msgspec.Struct, frozen=True):
    """One record as it lies in a segment.

    Attributes
    ----------
    received_at_s
        Streamer clock when it was appended, seconds since the epoch.
    offset, length
        Where it lies in its segment, in bytes.
    parts
        The wire parts, copied from the file.
    """

    received_at_s: float
    offset: int
    length: int
    parts: list[bytes]

    def message(self) -> AnyMessage:
        """Decode it; a WireError tells of damage."""
        return decode(self.parts)


def segments(path: Path) -> list[Path]:
    """List the segments of a session folder in order; a single segment file stands for itself.

    Raises
    ------
    FileNotFoundError
        If there is none; the text says what was looked for.
    """
    if path.is_file():
        return [path]
    found = sorted(p for p in path.glob("journal-*.plj") if _SEGMENT_NAME.fullmatch(p.name))
    if not found:
        raise FileNotFoundError(
            f"{path} holds no journal (journal-000001.plj); give the folder of a recorded session"
        )
    return found


def _read_prefix(data: mmap.mmap | bytes, offset: int) -> tuple[float, list[int], int] | None:
    """Read the prefix at an offset: time, lengths and where the parts begin; None if it is damaged."""
    fixed_end = offset + _FIXED.size
    if fixed_end > len(data):
        return None
    magic, received_at_s, count = _FIXED.unpack(data[offset:fixed_end])
    end = fixed_end + count * _LENGTH.size + _CRC.size
    if magic != MAGIC or not 1 <= count <= _MAX_PARTS or end > len(data):
        return None
    body = data[offset : end - _CRC.size]
    if _CRC.unpack(data[end - _CRC.size : end])[0] != zlib.crc32(body):
        return None
    lengths = [n for (n,) in _LENGTH.iter_unpack(body[_FIXED.size :])]
    if end + sum(lengths) > len(data):
        return None
    return received_at_s, lengths, end


def read_records(segment: Path) -> Iterator[Record | int]:
    """Read a segment from its beginning.

    Yields
    ------
    record
        A Record whose prefix is whole, or an int: that many damaged bytes lie before the next one
        (or before the end of the file).
    """
    if segment.stat().st_size == 0:
        return
    with segment.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        offset = 0
        while offset < len(data):
            prefix = _read_prefix(data, offset)
            if prefix is None:
                following = _find_record(data, offset + 1)
                yield following - offset
                offset = following
                continue
            received_at_s, lengths, start = prefix
            parts = []
            for length in lengths:
                parts.append(data[start : start + length])
                start += length
            yield Record(received_at_s, offset, start - offset, parts)
            offset = start
            _forget(data, offset)


def _forget(data: mmap.mmap, end: int) -> None:
    """Give back the memory of what was read, so that a long journal does not count as ours."""
    whole_pages = end - end % mmap.ALLOCATIONGRANULARITY
    if whole_pages and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, 0, whole_pages)


def _find_record(data: mmap.mmap, offset: int) -> int:
    """Find the next whole prefix; the end of the data where there is none."""
    while (offset := data.find(MAGIC, offset)) != -1:
        if _read_prefix(data, offset) is not None:
            return offset
        offset += 1
    return len(data)


def read_messages(path: Path) -> Iterator[tuple[float, AnyMessage]]:
    """Read a session folder or one segment in order of arrival.

    Damaged records are passed over and told to the log.

    Yields
    ------
    received_at_s, message
        Streamer clock when it was appended, and the message.
    """
    log = structlog.get_logger()
    for segment in segments(Path(path)):
        for record in read_records(segment):
            if isinstance(record, int):
                log.warning("journal damaged", segment=str(segment), bytes=record)
                continue
            try:
                message = record.message()
            except WireError as error:
                log.warning(
                    "journal record damaged", segment=str(segment), offset=record.offset, error=str(error)
                )
                continue
            yield record.received_at_s, message


def _whole_length(segment: Path) -> int:
    """Length of a segment up to the end of its last record whose checksums hold."""
    end = 0
    for record in read_records(segment):
        if isinstance(record, Record):
            try:
                record.message()
            except WireError:
                continue
            end = record.offset + record.length
    return end


class Journal:
    """The open end of a journal.

    Parameters
    ----------
    folder
        The session folder; it is made if it is missing. Where it holds a journal already, its torn
        tail is cut (and kept beside it as ``*.torn``) and the journal goes on.
    config
        Durability and segment size.

    Raises
    ------
    OSError
        If the folder cannot be written, or another journal is open in it.
    """

    def __init__(self, folder: Path, config: JournalConfig) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        self.folder = folder
        self.config = config
        self.records = 0
        self.torn_bytes = 0
        try:
            last = segments(folder)[-1]
        except FileNotFoundError:
            last = folder / "journal-000001.plj"
            last.touch()
        self.torn_bytes = _cut_torn_tail(last)
        self._open(last)

    def _open(self, segment: Path) -> None:
        self.segment = segment
        self._fd = os.open(segment, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._size = os.fstat(self._fd).st_size

    def append(self, parts: Parts, received_at_s: float) -> None:
        """Write one message; nothing of it stays if the disk takes only a part.

        Parameters
        ----------
        parts
            The wire parts as they came.
        received_at_s
            Streamer clock, seconds since the epoch.

        Raises
        ------
        OSError
            If the disk does not take it (full, failing); the journal is as it was before.
        """
        if self._size >= self.config.segment_mb * 1024 * 1024:
            self._rotate()
        prefix = _FIXED.pack(MAGIC, received_at_s, len(parts)) + b"".join(
            _LENGTH.pack(len(part)) for part in parts
        )
        prefix += _CRC.pack(zlib.crc32(prefix))
        wanted = len(prefix) + sum(len(part) for part in parts)
        try:
            _write_all(self._fd, [memoryview(prefix), *(memoryview(part) for part in parts)])
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += wanted
        self.records += 1

    def sync(self) -> None:
        """Bring what was appended to the disk, if ``fsynced`` is configured."""
        if self.config.durability == "fsynced":
            os.fdatasync(self._fd)

    def _rotate(self) -> None:
        os.fdatasync(self._fd)
        os.close(self._fd)
        number = int(_SEGMENT_NAME.fullmatch(self.segment.name)[1])  # type: ignore[index]
        self._open(self.folder / f"journal-{number + 1:06d}.plj")

    def close(self) -> None:
        """Bring everything to the disk and close."""
        os.fdatasync(self._fd)
        os.close(self._fd)
        os.close(self._lock)


def _locked(folder: Path) -> int:
    """Take the folder for one journal; the system lets go of it when the process ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OSError(f"{folder}: another streamer keeps its journal here; choose another folder") from None
    return lock


def _write_all(fd: int, buffers: list[memoryview]) -> None:
    """Write all buffers, also when the system takes them in pieces."""
    while buffers:
        written = os.writev(fd, buffers)
        while buffers and written >= len(buffers[0]):
            written -= len(buffers.pop(0))
        if buffers and written:
            buffers[0] = buffers[0][written:]


def _cut_torn_tail(segment: Path) -> int:
    """Cut what follows the last whole record, keep it in ``*.torn``, and say how many bytes it was."""
    size = segment.stat().st_size
    whole = _whole_length(segment)
    if whole == size:
        return 0
    with segment.open("rb+") as file:
        file.seek(whole)
        segment.with_suffix(".torn").write_bytes(file.read())
        file.truncate(whole)
        os.fsync(file.fileno())
    return size - whole
