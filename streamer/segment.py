"""One file of the journal: a row of numbered records, and the sparse index beside it.

A record is ``[prefix, part…]`` with the parts exactly as on the wire. The prefix carries a magic, the
kind of the message, the number of the record, two clocks, the length of every part and a CRC-32 of
itself; the parts carry the checksums of the message. So a torn tail is found by its length, a flipped
bit by a checksum, and a record is found again after a damaged one. Zeros up to the end of a file are
room that was kept for the next records, not damage.

Files are read by ``pread``, not mapped: a journal that is being written may be cut under a reader, and
a page that the disk cannot give is then an error and not the end of the process.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from streamer.codec import MAX_PARTS, Numbered, WireError, decode, decode_numbered
from streamer.messages import AnyMessage

MAGIC = b"PLJ2"
OLD_MAGIC = b"PLJ1"
# The code of a kind is its place here. Codes lie in files: append, never reorder.
KINDS = (
    "other", "frame", "atoms", "patches", "latents", "suggestion", "request", "outcome", "score",
    "hello", "welcome", "ack", "heartbeat", "resend", "bye", "control", "command",
    "model_revision", "checkpoint", "event", "status", "strain_map", "encoder_in_use",
    "enough",
)  # fmt: skip
_CODES = {kind: code for code, kind in enumerate(KINDS)}
_CHECKPOINT = _CODES["checkpoint"]

_FIXED = struct.Struct("<4sBxHQdd")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
MAX_PREFIX_BYTES = _FIXED.size + MAX_PARTS * _LENGTH.size + _CRC.size
_LOOK_BYTES = 4096  # read at once to see a prefix; for small records, several of them
_WHOLE_BYTES = 1 << 16  # a record up to this size is read at once: latents have twelve parts
_SEARCH_BYTES = 1 << 20

_INDEX_MAGIC = b"PLX2"
_INDEX_HEAD = struct.Struct("<4sIQQ")
_INDEX_ENTRY = struct.Struct("<QQB7x")
_STRIDE_BYTES = 256 * 1024


class OldJournalError(OSError):
    """A journal of an earlier version of this program; the text says what would read it."""


class Record(msgspec.Struct, frozen=True, eq=False):
    """One record as it lies in a segment.

    Attributes
    ----------
    number
        Place in the session, from 1, over all segments.
    kind
        Of the message, such as ``frame``; ``other`` for one that this version does not know.
    received_at_s
        Streamer wall clock when it was appended, seconds since the epoch.
    monotonic_s
        Streamer monotonic clock when it was appended; comparable within one run of the streamer.
    segment
        The file in which it lies.
    offset, length
        Where it lies in its segment, in bytes.
    parts
        The wire parts, copied from the file.
    """

    number: int
    kind: str
    received_at_s: float
    monotonic_s: float
    segment: Path
    offset: int
    length: int
    parts: list[bytes]

    def message(self) -> AnyMessage:
        """Decode it; a WireError tells of damage."""
        return decode(self.parts)

    def numbered(self) -> Numbered:
        """Decode it with its place in the row of its sender; a WireError tells of damage."""
        return decode_numbered(self.parts)

    def is_whole(self) -> bool:
        """Say whether its checksums hold; a message of another version may be whole and not ours."""
        try:
            decode(self.parts)
        except WireError as error:
            return error.reason not in ("bad checksum", "bad header")
        return True


class Damage(msgspec.Struct, frozen=True):
    """Bytes of a segment that are no record: ``length`` of them from ``offset``."""

    segment: Path
    offset: int
    length: int


class Prefix(NamedTuple):
    """The prefix of a record, whose own checksum holds.

    Attributes
    ----------
    offset, start, end
        Where the record begins, where its parts begin, and where it ends.
    code
        Of the kind, see ``KINDS``.
    crc
        CRC-32 of the prefix.
    """

    offset: int
    start: int
    end: int
    number: int
    code: int
    received_at_s: float
    monotonic_s: float
    lengths: tuple[int, ...]
    crc: int

    @property
    def kind(self) -> str:
        """Of the message; ``other`` for a code that this version does not know."""
        return KINDS[self.code] if self.code < len(KINDS) else KINDS[0]


def make_prefix(
    offset: int,
    number: int,
    kind: str,
    received_at_s: float,
    monotonic_s: float,
    lengths: tuple[int, ...],
) -> tuple[bytes, Prefix]:
    """Make the prefix of a record that is to lie at an offset.

    Returns
    -------
    raw, prefix
        Its bytes, and what reading them gives.

    Raises
    ------
    ValueError
        Unless there are 1 to 64 parts.
    """
    if not 1 <= len(lengths) <= MAX_PARTS:
        raise ValueError(f"a record of {len(lengths)} parts; it takes 1 to {MAX_PARTS}")
    code = _CODES.get(kind, 0)
    body = _FIXED.pack(MAGIC, code, len(lengths), number, received_at_s, monotonic_s)
    body += b"".join(map(_LENGTH.pack, lengths))
    raw = body + _CRC.pack(crc := zlib.crc32(body))
    start = offset + len(raw)
    end = start + sum(lengths)
    return raw, Prefix(offset, start, end, number, code, received_at_s, monotonic_s, lengths, crc)


def kind_codes(kinds: Collection[str]) -> frozenset[int]:
    """Turn names of kinds into their codes.

    Raises
    ------
    ValueError
        For a name that no record has.
    """
    unknown = [kind for kind in kinds if kind not in _CODES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no kind of record; the kinds are {', '.join(KINDS)}")
    return frozenset(_CODES[kind] for kind in kinds)


class SegmentFile:
    """A segment open for reading.

    Parameters
    ----------
    path
        The file.
    size
        Read no further than this; None reads to the end of the file.

    Raises
    ------
    OldJournalError
        If an earlier version wrote it.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY)
        there = os.fstat(self._fd).st_size
        self.size = there if size is None else min(size, there)
        self._look = b""
        self._look_at = 0
        if self.read(0, len(OLD_MAGIC)) == OLD_MAGIC:
            self.close()
            raise OldJournalError(
                f"{path}: a journal of an earlier version ({OLD_MAGIC.decode()}; this one reads "
                f"{MAGIC.decode()}); read it with probeloop 0.1, or begin a new session folder"
            )

    def __enter__(self) -> SegmentFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def sync(self) -> None:
        """Bring what others wrote to it to the disk."""
        os.fsync(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; fewer at the end of the segment."""
        length = min(length, self.size - offset)
        pieces = []
        while length > 0 and (piece := os.pread(self._fd, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _peek(self, offset: int, length: int) -> bytes:
        """Read a few bytes by way of a small buffer: many small records cost one read."""
        begin = offset - self._look_at
        if begin < 0 or begin + length > len(self._look):
            self._look, self._look_at, begin = self.read(offset, max(length, _LOOK_BYTES)), offset, 0
        return self._look[begin : begin + length]

    def prefix(self, offset: int) -> Prefix | None:
        """Read the prefix at an offset; None where there is none or it is damaged."""
        fixed = self._peek(offset, _FIXED.size)
        if len(fixed) < _FIXED.size:
            return None
        magic, code, count, number, received_at_s, monotonic_s = _FIXED.unpack(fixed)
        if magic != MAGIC or not 1 <= count <= MAX_PARTS:
            return None
        raw = self._peek(offset, _FIXED.size + count * _LENGTH.size + _CRC.size)
        body, crc_bytes = raw[: -_CRC.size], raw[-_CRC.size :]
        lengths_end = _FIXED.size + count * _LENGTH.size
        if len(body) != lengths_end or zlib.crc32(body) != (crc := _CRC.unpack(crc_bytes)[0]):
            return None
        lengths = tuple(n for (n,) in _LENGTH.iter_unpack(body[_FIXED.size :]))
        start = offset + len(raw)
        end = start + sum(lengths)
        if end > self.size:
            return None
        return Prefix(offset, start, end, number, code, received_at_s, monotonic_s, lengths, crc)

    def header(self, prefix: Prefix) -> bytes:
        """Read the first part of a record, the header of its message."""
        return self.read(prefix.start, prefix.lengths[0])

    def record(self, prefix: Prefix) -> Record:
        """Read a record with its parts."""
        return Record(
            prefix.number,
            prefix.kind,
            prefix.received_at_s,
            prefix.monotonic_s,
            self.path,
            prefix.offset,
            prefix.end - prefix.offset,
            self._parts(prefix),
        )

    def _parts(self, prefix: Prefix) -> list[bytes]:
        """Read the parts of a record: a small one at once, of a large one each where it will stay."""
        ends = list(itertools.accumulate(prefix.lengths, initial=0))
        if ends[-1] > _WHOLE_BYTES:
            return [self.read(prefix.start + begin, end - begin) for begin, end in itertools.pairwise(ends)]
        body = self.read(prefix.start, ends[-1])
        return [body[begin:end] for begin, end in itertools.pairwise(ends)]

    def walk(self, offset: int = 0) -> Iterator[Prefix | Damage]:
        """Go from record to record without reading their parts.

        Parameters
        ----------
        offset
            Where a record begins.
        """
        while offset < self.size:
            prefix = self.prefix(offset)
            if prefix is None:
                prefix = self._find(offset + 1)
                end = self.data_end(offset) if prefix is None else prefix.offset
                if end > offset:
                    yield Damage(self.path, offset, end - offset)
                if prefix is None:
                    return
            yield prefix
            offset = prefix.end

    def _find(self, offset: int) -> Prefix | None:
        """Find the next whole prefix."""
        while offset < self.size:
            piece = self.read(offset, _SEARCH_BYTES)
            place = piece.find(MAGIC)
            while place != -1:
                prefix = self.prefix(offset + place)
                if prefix is not None:
                    return prefix
                place = piece.find(MAGIC, place + 1)
            if len(piece) < len(MAGIC):
                return None
            offset += len(piece) - len(MAGIC) + 1  # a magic may lie across two pieces
        return None

    def data_end(self, offset: int) -> int:
        """Find where the zeros begin that go on to the end of the segment."""
        end = self.size
        while end > offset:
            begin = max(offset, end - _SEARCH_BYTES)
            rest = self.read(begin, end - begin).rstrip(b"\0")
            if rest:
                return begin + len(rest)
            end = begin
        return offset


class Index:
    """Where in a segment some of its records lie: every checkpoint, and one in each 256 KiB.

    It is a help and never a witness: what is read at an offset is checked there.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, int]] = []
        self._last: tuple[int, int] = (0, 0)  # CRC and offset of the last prefix
        self.end = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Index):
            return NotImplemented
        return (self._entries, self._last, self.end) == (other._entries, other._last, other.end)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def build(cls, file: SegmentFile) -> Index:
        """Make it by walking the segment."""
        index = cls()
        for found in file.walk():
            if isinstance(found, Prefix):
                index.add(found)
        return index

    def add(self, prefix: Prefix) -> None:
        """Take note of a record that follows all the others."""
        entries = self._entries
        is_far = not entries or prefix.offset - entries[-1][1] >= _STRIDE_BYTES
        if is_far or prefix.code == _CHECKPOINT:
            entries.append((prefix.number, prefix.offset, prefix.code))
        self._last = (prefix.crc, prefix.offset)
        self.end = prefix.end

    def cut(self, last: Prefix) -> None:
        """Forget what follows a record."""
        self._entries = [entry for entry in self._entries if entry[1] <= last.offset]
        self._last = (last.crc, last.offset)
        self.end = last.end

    def offset_before(self, number: int, file: SegmentFile) -> int:
        """Give an offset from which a walk meets this record, and not many before it."""
        place = bisect_right(self._entries, number, key=lambda entry: entry[0])
        if not place:
            return 0
        believed, offset, _ = self._entries[place - 1]
        prefix = file.prefix(offset)
        return offset if prefix is not None and prefix.number == believed else 0

    def checkpoints(self, file: SegmentFile) -> Iterator[Prefix]:
        """Give the checkpoints, the newest first; those behind a wrong entry are found by walking."""
        newest = self.end
        for number, offset, code in reversed(self._entries):
            if code != _CHECKPOINT:
                continue
            prefix = file.prefix(offset)
            if prefix is None or (prefix.number, prefix.code) != (number, code):
                yield from _walk_checkpoints(file, newest)
                return
            newest = offset
            yield prefix

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        raw = _INDEX_HEAD.pack(_INDEX_MAGIC, *self._last, self.end)
        raw += b"".join(_INDEX_ENTRY.pack(*entry) for entry in self._entries)
        part = path.with_suffix(".idx.part")
        part.write_bytes(raw + _CRC.pack(zlib.crc32(raw)))
        part.replace(path)

    @classmethod
    def load(cls, path: Path, file: SegmentFile) -> Index | None:
        """Read it; None where there is none, it is damaged, or it speaks of another state of the segment."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        entries_size = len(raw) - _INDEX_HEAD.size - _CRC.size
        if entries_size < 0 or entries_size % _INDEX_ENTRY.size:
            return None
        body, crc_bytes = raw[: -_CRC.size], raw[-_CRC.size :]
        if zlib.crc32(body) != _CRC.unpack(crc_bytes)[0]:
            return None
        index = cls()
        magic, crc, offset, index.end = _INDEX_HEAD.unpack(body[: _INDEX_HEAD.size])
        index._last = (crc, offset)
        index._entries = list(_INDEX_ENTRY.iter_unpack(body[_INDEX_HEAD.size :]))
        last = file.prefix(offset)
        fits = last is not None and (last.crc, last.end) == (crc, index.end) and index.end == file.size
        return index if magic == _INDEX_MAGIC and fits else None


def _walk_checkpoints(file: SegmentFile, end: int) -> list[Prefix]:
    """Find the checkpoints before an offset without an index, the newest first."""
    found = [p for p in file.walk() if isinstance(p, Prefix) and p.code == _CHECKPOINT and p.offset < end]
    return found[::-1]
