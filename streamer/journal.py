"""Append-only log of wire messages: what is acked is here.

The journal of a session is a row of segments, ``journal-000001.plj`` and so on; ``streamer/segment.py``
says how one looks inside. Records are numbered from 1 through the whole session. Room is taken from the
disk before it is needed, so that a full disk is known before something is half written; a crash leaves at
most a torn tail, which is cut and kept beside when the journal is opened again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from streamer.codec import WireError
from streamer.messages import AnyMessage, Checkpoint, Message
from streamer.segment import (
    KINDS,
    MAX_PREFIX_BYTES,
    Damage,
    Index,
    Prefix,
    Record,
    SegmentFile,
    kind_codes,
    make_prefix,
)

_SEGMENT_NAME = re.compile(r"journal-(\d{6})\.plj")
_AHEAD_BYTES = 16 << 20
_COPY_BYTES = 1 << 20

Parts = Sequence[bytes | bytearray | memoryview]


class JournalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the journal keeps.

    Attributes
    ----------
    durability
        ``written``: an ack means that the operating system has it (a crash of the service loses
        nothing); ``fsynced``: that the disk has it (a power failure neither).
    segment_mb
        A new file is begun beyond this size.
    keep_gb
        When a new file is begun, the oldest are deleted as long as this much is left; 0 keeps
        everything. The last two files, and what a restart needs, always stay.
    on_full
        What happens when the disk is full: ``pause`` acks nothing, parks the beam and goes on once there
        is room; ``unrecorded`` goes on and keeps nothing, and every ack says so.
    """

    durability: Literal["written", "fsynced"] = "written"
    segment_mb: int = 1024
    keep_gb: float = 0.0
    on_full: Literal["pause", "unrecorded"] = "pause"

    def __post_init__(self) -> None:
        if not 1 <= self.segment_mb <= 1_000_000:
            raise ValueError(f"journal.segment_mb is {self.segment_mb}; it takes 1 to 1000000")
        if not 0 <= self.keep_gb <= 1_000_000:
            raise ValueError(f"journal.keep_gb is {self.keep_gb}; it takes 0 (keep everything) to 1000000")


# -- reading -----------------------------------------------------------------------------------


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


def kind_of(message: Message) -> str:
    """Name the kind of a message as its record says it."""
    tag = str(type(message).__struct_config__.tag)
    return tag if tag in KINDS else KINDS[0]


def read_records(path: Path, kinds: Collection[str] | None = None) -> Iterator[Record | Damage]:
    """Read a session folder or one segment from its beginning; nobody needs to have it open.

    Parameters
    ----------
    path
        Session folder or segment.
    kinds
        Only records of these kinds are read; None reads all.

    Yields
    ------
    record
        A Record whose prefix is whole, or the Damage that lies before the next one.

    Raises
    ------
    FileNotFoundError
        If there is no journal.
    OldJournalError
        If an earlier version wrote it.
    """
    codes = None if kinds is None else kind_codes(kinds)
    for segment in segments(Path(path)):
        with SegmentFile(segment) as file:
            for found in file.walk():
                if isinstance(found, Damage):
                    yield found
                elif codes is None or found.code in codes:
                    yield file.record(found)


def read_messages(path: Path, kinds: Collection[str] | None = None) -> Iterator[tuple[float, AnyMessage]]:
    """Read a session folder or one segment in order of arrival.

    Damaged records are passed over and told to the log. ``kinds`` as in ``read_records``.

    Yields
    ------
    received_at_s, message
        Streamer clock when it was appended, and the message.
    """
    log = structlog.get_logger()
    for record in read_records(path, kinds):
        if isinstance(record, Damage):
            log.warning("journal damaged", segment=str(record.segment), bytes=record.length)
            continue
        try:
            message = record.message()
        except WireError as error:
            log.warning(
                "journal record damaged", segment=str(record.segment), record=record.number, error=str(error)
            )
            continue
        yield record.received_at_s, message


# -- writing -----------------------------------------------------------------------------------


class Journal:
    """The open end of a journal. One thread uses it.

    Opening it walks the last segment only, and verifies what follows the newest checkpoint of the
    streamer in it.

    Parameters
    ----------
    folder
        The session folder; it is made if it is missing. Where it holds a journal already, its torn
        tail is cut (and kept beside it as ``journal-000001.1.torn``) and the journal goes on.
    config
        Durability, segment size and retention.

    Attributes
    ----------
    next_record
        Number of the record that the next append makes.
    needed_record
        Retention deletes no segment that holds this record or a later one; 1, as it is at the
        beginning, keeps everything.
    torn_bytes
        How much was cut when it was opened.
    deleted_bytes
        What retention has deleted since then.

    Raises
    ------
    OSError
        If the folder cannot be written, another journal is open in it, or an earlier version wrote it.
    """

    def __init__(self, folder: Path, config: JournalConfig) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(folder)
        self.folder = folder
        self.config = config
        self.needed_record = 1
        self.torn_bytes = 0
        self.deleted_bytes = 0
        self._log = structlog.get_logger()
        self._indices: dict[Path, Index] = {}
        self._unsynced: set[Path] = set()
        self._failed = ""
        try:
            self._recover()
        except BaseException:
            os.close(self._lock)
            raise

    # -- opening -------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Open the last segment where its last whole record ends."""
        paths = list(self._paths())
        last = paths[-1] if paths else self.folder / "journal-000001.plj"
        if not paths:
            _create(last, self._lock)
        with SegmentFile(last) as file:
            index, newest = _survey(file)
        self.torn_bytes = _cut_torn_tail(last, index.end, self._lock)
        self._open(last, index)
        self.next_record = 1 + (self._last_number(paths[:-1]) if newest is None else newest.number)

    def _open(self, segment: Path, index: Index) -> None:
        self.segment = segment
        # also readable: where the file system cannot preallocate, the C library reads as it emulates
        self._fd = os.open(segment, os.O_RDWR)
        self._indices[segment] = index
        self._end = self._allocated = index.end
        self._promised_end = 0

    def _last_number(self, paths: list[Path]) -> int:
        """Number of the last record of closed segments; 0 if they have none."""
        for path in reversed(paths):
            with self._file(path) as file:
                offset = self._index(path, file).offset_before(1 << 62, file)
                numbers = [found.number for found in file.walk(offset) if isinstance(found, Prefix)]
            if numbers:
                return numbers[-1]
        return 0

    # -- appending -----------------------------------------------------------------------------

    def reserve(self, size_bytes: int) -> None:
        """Make sure that the disk takes what is appended next; it replaces an earlier reservation.

        Parameters
        ----------
        size_bytes
            Sum of the sizes of all parts, and ``MAX_PREFIX_BYTES`` for each record.

        Raises
        ------
        OSError
            If the disk has no room for it; the journal is as it was before.
        """
        self._promised_end = 0
        self._make_room(size_bytes)
        self._promised_end = self._end + size_bytes

    def append(self, parts: Parts, received_at_s: float, *, kind: str, monotonic_s: float) -> int:
        """Write one message; nothing of it stays if the disk takes only a part.

        Parameters
        ----------
        parts
            The wire parts as they came, 1 to 64.
        received_at_s, monotonic_s
            Streamer clocks: seconds since the epoch, and seconds of the monotonic clock.
        kind
            Of the message, see ``kind_of``. Only records of kind ``checkpoint`` are found by
            ``last_checkpoint``.

        Returns
        -------
        number
            Of the record.

        Raises
        ------
        OSError
            If the disk does not take it (full, failing); the journal is as it was before.
        """
        lengths = tuple(len(part) for part in parts)
        self._make_room(MAX_PREFIX_BYTES + sum(lengths))
        number = self.next_record
        raw, prefix = make_prefix(self._end, number, kind, received_at_s, monotonic_s, lengths)
        try:
            _write_all(self._fd, [memoryview(raw), *(memoryview(part) for part in parts)], self._end)
        except OSError:
            self._give_room_back()
            raise
        self._indices[self.segment].add(prefix)
        self._end = prefix.end
        self.next_record += 1
        return number

    def _make_room(self, size: int) -> None:
        if self._failed:
            raise OSError(errno.EIO, self._failed)
        is_full = self._end >= self.config.segment_mb << 20
        if is_full and self._end >= self._promised_end:
            self._rotate()
        if self._end + size > self._allocated:
            self._allocated = _allocate(
                self._fd, self._allocated, self._end + size, min(_AHEAD_BYTES, self.config.segment_mb << 20)
            )

    def _give_room_back(self) -> None:
        """Leave zeros, or nothing, behind the last record after a write that failed."""
        with contextlib.suppress(OSError):  # the next append writes over it, the next opening cuts it
            os.ftruncate(self._fd, self._end)
        self._allocated = self._end

    def sync(self) -> None:
        """Bring what was appended to the disk, if ``fsynced`` is configured.

        Raises
        ------
        OSError
            If the disk fails. The system forgets then what it could not write, and a second attempt
            would succeed and tell nothing: so the journal takes no more, and must be opened again.
        """
        if self.config.durability != "fsynced":
            return
        if self._failed:
            raise OSError(errno.EIO, self._failed)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._failed = f"{self.segment}: {error.strerror} at fdatasync; open the journal again"
            raise

    def _rotate(self) -> None:
        """Begin a new segment; if the disk has no room for it, the old one stays open."""
        if self.config.durability == "fsynced":
            self.sync()
        else:
            self._unsynced.add(self.segment)
        os.ftruncate(self._fd, self._end)
        self._allocated = self._end
        old_fd, old = self._fd, self.segment
        new = self.folder / f"journal-{_segment_number(old) + 1:06d}.plj"
        _create(new, self._lock)
        try:
            self._open(new, Index())
        except OSError:
            new.unlink()
            raise
        os.close(old_fd)
        self._save_index(old, self._indices[old])
        self._delete_old()

    def _delete_old(self) -> None:
        """Delete the oldest segments, as far as configured and not needed."""
        if not self.config.keep_gb:
            return
        paths = list(self._paths())
        left = sum(path.stat().st_size for path in paths)
        for path, following in pairwise(paths[:-1]):
            left -= (size := path.stat().st_size)
            first = self._first_number(following)
            if left < self.config.keep_gb * 1e9 or first is None or first > self.needed_record:
                return
            path.unlink()
            path.with_suffix(".idx").unlink(missing_ok=True)
            self._indices.pop(path, None)
            self._unsynced.discard(path)
            self.deleted_bytes += size
            self._log.info("journal segment deleted", segment=str(path), bytes=size, before_record=first)

    def close(self) -> None:
        """Give back the room that was not needed, bring everything to the disk and close."""
        try:
            os.ftruncate(self._fd, self._end)
            os.fdatasync(self._fd)
            for path in self._unsynced:
                with SegmentFile(path) as file:
                    file.sync()
        finally:
            os.close(self._fd)
            os.close(self._lock)

    # -- reading what is written ---------------------------------------------------------------

    def position(self, record: int) -> tuple[Path, int] | None:
        """Say in which segment and at which offset a record lies; None if it is not there."""
        for found, file in self._prefixes_from(record):
            return (file.path, found.offset) if found.number == record else None
        return None

    def records_from(self, record: int, kinds: Collection[str] | None = None) -> Iterator[Record]:
        """Read the records from a number on, also those that were appended just now.

        What is damaged is passed over and told to the log.

        Parameters
        ----------
        record
            Number of the first one; an older one than the oldest begins there.
        kinds
            Only these are read; the parts of the others are not touched.
        """
        codes = None if kinds is None else kind_codes(kinds)
        for found, file in self._prefixes_from(record):
            if codes is not None and found.code not in codes:
                continue
            content = file.record(found)
            if content.is_whole():
                yield content
            else:
                self._log.warning("journal record damaged", segment=str(file.path), record=found.number)

    def last_checkpoint(self, of: str) -> Record | None:
        """Find the newest checkpoint of an owner that is whole; None if there is none.

        Parameters
        ----------
        of
            ``streamer``, or the name of an agent.
        """
        for path in reversed(list(self._paths())):
            with self._file(path) as file:
                found = _newest_checkpoint(file, self._index(path, file), of)
            if found is not None:
                return found
        return None

    def _prefixes_from(self, record: int) -> Iterator[tuple[Prefix, SegmentFile]]:
        for path in self._paths_from(record):
            with self._file(path) as file:
                for found in file.walk(self._index(path, file).offset_before(record, file)):
                    if isinstance(found, Damage):
                        self._log.warning("journal damaged", segment=str(path), bytes=found.length)
                    elif found.number >= record:
                        yield found, file

    def _paths(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from segments(self.folder)

    def _paths_from(self, record: int) -> list[Path]:
        """List the segments from the one that holds a record."""
        paths: list[Path] = []
        for path in reversed(list(self._paths())):
            paths.insert(0, path)
            first = self._first_number(path)
            if first is not None and first <= record:
                break
        return paths

    def _first_number(self, path: Path) -> int | None:
        with self._file(path) as file:
            return next((found.number for found in file.walk() if isinstance(found, Prefix)), None)

    def _file(self, path: Path) -> SegmentFile:
        return SegmentFile(path, self._end if path == self.segment else None)

    def _index(self, path: Path, file: SegmentFile) -> Index:
        """Give the index of a segment: known, read, or made anew and written."""
        if path not in self._indices:
            index = Index.load(path.with_suffix(".idx"), file)
            if index is None:
                index = Index.build(file)
                self._save_index(path, index)
            self._indices[path] = index
        return self._indices[path]

    def _save_index(self, segment: Path, index: Index) -> None:
        try:
            index.save(segment.with_suffix(".idx"))
        except OSError as error:  # it is only a help
            self._log.warning("journal index not written", segment=str(segment), reason=error.strerror)


def _segment_number(path: Path) -> int:
    return int(_SEGMENT_NAME.fullmatch(path.name)[1])  # type: ignore[index]


def lock_folder(folder: Path) -> int:
    """Take the folder for one journal; the system lets go of it when the process ends.

    Returns
    -------
    lock
        A descriptor of the folder; closing it lets go.

    Raises
    ------
    OSError
        If another process has it.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OSError(f"{folder}: another streamer keeps its journal here; choose another folder") from None
    return lock


def _create(segment: Path, folder_fd: int) -> None:
    """Make an empty segment whose name outlives a power failure."""
    os.close(os.open(segment, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    try:
        os.fsync(folder_fd)
    except OSError:
        segment.unlink()
        raise


def _allocate(fd: int, allocated: int, wanted: int, ahead: int) -> int:
    """Take room on the disk up to ``wanted``, and if it can be had, ``ahead`` bytes at a time."""
    for end in (max(wanted, allocated + ahead), wanted):
        try:
            _take_room(fd, allocated, end - allocated)
        except OSError as error:
            if error.errno != errno.ENOSPC or end == wanted:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, allocated)
                raise
        else:
            return end
    raise AssertionError("the last attempt returns or raises")


def _take_room(fd: int, offset: int, length: int) -> None:
    try:
        os.posix_fallocate(fd, offset, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        disk = os.fstatvfs(fd)
        if disk.f_bavail * disk.f_frsize < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def _write_all(fd: int, buffers: list[memoryview], offset: int) -> None:
    """Write all buffers, also when the system takes them in pieces."""
    while buffers:
        written = os.pwritev(fd, buffers, offset)
        if written == 0 and any(buffers):
            raise OSError(errno.EIO, "the disk takes nothing")
        offset += written
        while buffers and written >= len(buffers[0]):
            written -= len(buffers.pop(0))
        if buffers and written:
            buffers[0] = buffers[0][written:]


class _Owner(msgspec.Struct):
    of: str = ""


class _Head(msgspec.Struct):
    """As much of the header of a checkpoint as tells its owner."""

    message: _Owner


def _newest_checkpoint(file: SegmentFile, index: Index, of: str) -> Record | None:
    """Find the newest whole checkpoint of an owner in one segment."""
    for prefix in index.checkpoints(file):
        try:
            owner = msgspec.msgpack.decode(file.header(prefix)[4:], type=_Head).message.of
            if owner != of:
                continue
            record = file.record(prefix)
            message = record.message()
        except (ValueError, RecursionError, OverflowError):  # damaged; also a WireError is a ValueError
            continue
        if isinstance(message, Checkpoint) and message.of == of:
            return record
    return None


def _survey(file: SegmentFile) -> tuple[Index, Prefix | None]:
    """Walk a segment and verify what follows the newest checkpoint of the streamer.

    Returns
    -------
    index, last
        Index up to the last whole record, and that record; None if there is none.
    """
    index = Index.build(file)
    checkpoint = _newest_checkpoint(file, index, "streamer")
    last = None
    for found in file.walk(0 if checkpoint is None else checkpoint.offset):
        if isinstance(found, Prefix) and file.record(found).is_whole():
            last = found
    if last is None:
        return Index(), None
    index.cut(last)
    return index, last


def _cut_torn_tail(segment: Path, end: int, folder_fd: int) -> int:
    """Cut what follows the last whole record, keep it in a ``*.torn``, and say how many bytes it was."""
    with SegmentFile(segment) as file:
        torn = file.data_end(end) - end
        if torn:
            try:
                copy_beside(file, end, torn, "torn")
            except OSError as error:  # on a full disk it is let go: whatever it was, it was never acked
                log = structlog.get_logger()
                log.warning("torn end not kept", segment=str(segment), bytes=torn, reason=error.strerror)
            os.fsync(folder_fd)
    if segment.stat().st_size != end:
        with segment.open("rb+") as writable:
            writable.truncate(end)
            os.fsync(writable.fileno())
    return torn


def copy_beside(file: SegmentFile, offset: int, length: int, kind: str) -> Path:
    """Copy a part of a segment to the next free ``journal-000001.<n>.<kind>``, never over an earlier one."""
    number = 1
    while (path := file.path.with_suffix(f".{number}.{kind}")).exists():
        number += 1
    try:
        with path.open("xb") as copy:
            for begin in range(offset, offset + length, _COPY_BYTES):
                copy.write(file.read(begin, min(_COPY_BYTES, offset + length - begin)))
            copy.flush()
            os.fsync(copy.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path
