"""Looks through a whole journal for damage, and takes the damage out of it.

Nothing is ever thrown away: what is no record, or a record whose checksums do not hold, is copied beside
the segment as ``journal-000003.1.damaged`` before the segment is written without it.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from streamer.journal import copy_beside, lock_folder, segments
from streamer.segment import Damage, Index, Prefix, SegmentFile

_COPY_BYTES = 1 << 20


@dataclass(slots=True)
class SegmentAccount:
    """What one segment holds.

    Attributes
    ----------
    path
        The file.
    size
        Bytes up to the end of its data; room kept for the next records is not counted.
    records
        Whole records by kind.
    first, last
        Numbers of the first and the last whole record; 0 if there is none.
    damaged
        Offset and length of the bytes that are no record, and of the records whose checksums do not hold.
    damaged_records
        How many of those are such records.
    index
        ``good``, ``missing`` or ``wrong``; ``none`` for the last segment, which has none.
    """

    path: Path
    size: int = 0
    records: Counter[str] = field(default_factory=Counter)
    first: int = 0
    last: int = 0
    damaged: list[tuple[int, int]] = field(default_factory=list)
    damaged_records: int = 0
    index: str = "none"


@dataclass(slots=True)
class JournalAccount:
    """What a journal holds.

    Attributes
    ----------
    segments
        In order.
    gaps
        First and last of the numbers that no whole record has. They are told and are not damage: records
        that were taken out, or a time that was configured to go on without a disk, leave them too.
    disorder
        Numbers of records that are not above the one before.
    """

    segments: list[SegmentAccount] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    disorder: list[int] = field(default_factory=list)

    @property
    def records(self) -> Counter[str]:
        """Whole records by kind."""
        total: Counter[str] = Counter()
        for segment in self.segments:
            total += segment.records
        return total

    @property
    def damaged_bytes(self) -> int:
        """Bytes that are no whole record."""
        return sum(length for segment in self.segments for _, length in segment.damaged)

    @property
    def is_damaged(self) -> bool:
        """Whether anything is there that should not be."""
        return bool(self.damaged_bytes or self.disorder)


def examine(path: Path) -> JournalAccount:
    """Read every byte of a journal and verify every checksum.

    Parameters
    ----------
    path
        Session folder or segment. In one that is being written the last record may look damaged.

    Raises
    ------
    FileNotFoundError
        If there is no journal.
    OldJournalError
        If an earlier version wrote it.
    """
    account = JournalAccount()
    paths = segments(path)
    last = 0
    for place in paths:
        with SegmentFile(place) as file:
            segment, numbers = _examine_segment(file)
            if place != paths[-1]:
                segment.index = _examine_index(file)
        account.segments.append(segment)
        for number in numbers:
            if number <= last:
                account.disorder.append(number)
            elif last and number > last + 1:
                account.gaps.append((last + 1, number - 1))
            last = max(last, number)
    return account


def _examine_segment(file: SegmentFile) -> tuple[SegmentAccount, list[int]]:
    account = SegmentAccount(file.path)
    numbers = []
    for found in file.walk():
        if isinstance(found, Prefix) and file.record(found).is_whole():
            account.records[found.kind] += 1
            numbers.append(found.number)
        else:
            account.damaged.append((found.offset, _end(found) - found.offset))
            account.damaged_records += isinstance(found, Prefix)
        account.size = _end(found)
    if numbers:
        account.first, account.last = numbers[0], numbers[-1]
    return account, numbers


def _end(found: Prefix | Damage) -> int:
    return found.end if isinstance(found, Prefix) else found.offset + found.length


def _examine_index(file: SegmentFile) -> str:
    path = file.path.with_suffix(".idx")
    if not path.exists():
        return "missing"
    index = Index.load(path, file)
    return "good" if index is not None and index == Index.build(file) else "wrong"


@dataclass(frozen=True, slots=True)
class Repair:
    """What was taken out of a segment.

    Attributes
    ----------
    segment
        The file, which is written anew.
    offset, length
        Where the bytes lay.
    kept_in
        Where they are now.
    """

    segment: Path
    offset: int
    length: int
    kept_in: Path


def repair(folder: Path) -> list[Repair]:
    """Take what is damaged out of a journal, and make the indices anew that do not fit.

    Parameters
    ----------
    folder
        Session folder; nobody may be writing in it.

    Returns
    -------
    repairs
        Empty where nothing was damaged.

    Raises
    ------
    FileNotFoundError
        If there is no journal.
    OSError
        If a streamer keeps its journal there, or the disk has no room for a copy of the segment.
    """
    account_of = segments(folder)
    lock = lock_folder(folder)
    try:
        repairs = []
        for path in account_of:
            repairs += _repair_segment(path)
            if path != account_of[-1]:
                _repair_index(path)
        os.fsync(lock)
        return repairs
    finally:
        os.close(lock)


def _repair_segment(path: Path) -> list[Repair]:
    with SegmentFile(path) as file:
        account, _ = _examine_segment(file)
        if not account.damaged:
            return []
        repairs = [
            Repair(path, offset, length, copy_beside(file, offset, length, "damaged"))
            for offset, length in account.damaged
        ]
        part = path.with_name(path.name + ".part")
        try:
            _copy_the_rest(file, account, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return repairs


def _copy_the_rest(file: SegmentFile, account: SegmentAccount, to: Path) -> None:
    with to.open("wb") as out:
        begin = 0
        for offset, length in [*account.damaged, (account.size, 0)]:
            for place in range(begin, offset, _COPY_BYTES):
                out.write(file.read(place, min(_COPY_BYTES, offset - place)))
            begin = offset + length
        out.flush()
        os.fsync(out.fileno())


def _repair_index(path: Path) -> None:
    with SegmentFile(path) as file:
        if _examine_index(file) != "good":
            Index.build(file).save(path.with_suffix(".idx"))
