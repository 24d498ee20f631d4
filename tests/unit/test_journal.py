"""What was appended is read back; what is torn or flipped costs only itself."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from typing import get_args

import numpy as np
import pytest

from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of, read_messages, read_records, segments
from streamer.messages import AnyMessage, Checkpoint, Event, Frame
from streamer.segment import (
    KINDS,
    MAX_PREFIX_BYTES,
    Damage,
    Index,
    OldJournalError,
    Record,
    SegmentFile,
    make_prefix,
)


def filled(folder, make_frame, count: int = 3, **config) -> Journal:
    journal = Journal(folder, JournalConfig(**config))
    for number in range(count):
        append(journal, make_frame(number=number), 10.0 + number)
    return journal


def numbers(path) -> list[int]:
    return [message.number for _, message in read_messages(path) if isinstance(message, Frame)]


def test_messages_are_read_back_in_order_with_their_times(tmp_path, make_frame):
    filled(tmp_path, make_frame).close()
    read = list(read_messages(tmp_path))
    assert [at_s for at_s, _ in read] == [10.0, 11.0, 12.0]
    assert np.array_equal(read[1][1].image, make_frame().image)
    assert numbers(tmp_path) == [0, 1, 2]


def test_reopened_journal_goes_on(tmp_path, make_frame):
    filled(tmp_path, make_frame).close()
    journal = Journal(tmp_path, JournalConfig())
    append(journal, make_frame(number=3), 13.0)
    journal.close()
    assert journal.torn_bytes == 0
    assert numbers(tmp_path) == [0, 1, 2, 3]


def test_journal_cut_at_a_thousand_places_keeps_every_whole_record_and_goes_on(tmp_path, make_frame):
    filled(tmp_path, make_frame, count=8).close()
    (segment,) = segments(tmp_path)
    whole = segment.read_bytes()
    ends = [record.offset + record.length for record in read_records(segment)]
    for cut in np.random.default_rng(1).integers(0, len(whole) + 1, 1000):
        segment.write_bytes(whole[:cut])
        kept = [n for n, end in enumerate(ends) if end <= cut]
        assert numbers(tmp_path) == kept
        journal = Journal(tmp_path, JournalConfig())
        last_end = ends[kept[-1]] if kept else 0
        assert journal.torn_bytes == len(whole[last_end:cut].rstrip(b"\0"))
        assert append(journal, make_frame(number=99)) == len(kept) + 1
        journal.close()
        assert numbers(tmp_path) == [*kept, 99]
        for torn in tmp_path.glob("*.torn"):
            torn.unlink()


def test_torn_tail_is_cut_and_kept_beside(tmp_path, make_frame):
    filled(tmp_path, make_frame).close()
    (segment,) = segments(tmp_path)
    whole = segment.read_bytes()
    segment.write_bytes(whole + b"PLJ2 torn")
    journal = Journal(tmp_path, JournalConfig())
    journal.close()
    assert journal.torn_bytes == 9
    assert segment.read_bytes() == whole
    assert segment.with_suffix(".1.torn").read_bytes() == b"PLJ2 torn"


def test_each_of_a_thousand_flipped_bits_is_found_and_costs_only_its_record(tmp_path, make_frame):
    filled(tmp_path, make_frame, count=6).close()
    (segment,) = segments(tmp_path)
    records = list(read_records(segment))
    whole = segment.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 1000):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        segment.write_bytes(damaged)
        hit = next(i for i, r in enumerate(records) if r.offset <= position < r.offset + r.length)
        assert numbers(tmp_path) == [n for n in range(6) if n != hit]
        found = list(read_records(segment))
        assert sum(isinstance(r, Damage) or not r.is_whole() for r in found) == 1
        assert sum(isinstance(r, Record) and r.parts == records[r.number - 1].parts for r in found) == 5


def test_new_segment_is_begun_beyond_the_size(tmp_path, make_frame):
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    for number in range(3):
        append(journal, make_frame(image=image, number=number), 0.0)
    journal.close()
    assert len(segments(tmp_path)) == 3
    assert numbers(tmp_path) == [0, 1, 2]


def test_short_write_of_a_full_disk_leaves_nothing_behind(tmp_path, make_frame, monkeypatch):
    journal = filled(tmp_path, make_frame, count=1)
    real = os.pwritev
    calls = []

    def full(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(1)
        if len(calls) == 1:
            return real(fd, [buffers[0][:10]], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space left"):
        append(journal, make_frame(number=1), 0.0)
    monkeypatch.setattr(os, "pwritev", real)
    assert [isinstance(found, Record) for found in read_records(tmp_path)] == [True]
    append(journal, make_frame(number=2), 0.0)
    journal.close()
    assert numbers(tmp_path) == [0, 2]
    assert all(isinstance(record, Record) for record in read_records(tmp_path))


def test_message_without_buffers_is_kept_too(tmp_path):
    journal = Journal(tmp_path, JournalConfig(durability="fsynced"))
    append(journal, Event(at_s=1.0, what="x"), 2.0)
    journal.sync()
    ((at_s, event),) = read_messages(tmp_path)
    assert (at_s, event.what) == (2.0, "x")
    journal.close()


def test_folder_without_a_journal_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no journal"):
        list(read_messages(tmp_path))


def test_segment_size_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"journal.segment_mb is 0; it takes 1 to"):
        JournalConfig(segment_mb=0)


def test_two_journals_in_one_folder_are_refused(tmp_path):
    first = Journal(tmp_path, JournalConfig())
    with pytest.raises(OSError, match="another streamer keeps its journal here"):
        Journal(tmp_path, JournalConfig())
    first.close()
    Journal(tmp_path, JournalConfig()).close()


def checkpoint(of: str, told: int, size: int = 3) -> Checkpoint:
    return Checkpoint(session="s", of=of, told=told, facts=b"\x80", arrays={"a": np.full(size, told, float)})


def append(journal: Journal, message, at_s: float = 0.0) -> int:
    return journal.append(encode(message), at_s, kind=kind_of(message), monotonic_s=at_s)


def test_records_are_numbered_through_segments_and_reopenings(tmp_path, make_frame):
    image = np.zeros((1, 512, 512), np.float32)
    made = []
    for _ in range(3):
        journal = Journal(tmp_path, JournalConfig(segment_mb=1))
        made += [append(journal, make_frame(image=image, number=n)) for n in range(2)]
        made.append(append(journal, Event(at_s=0.0, what="x")))
        journal.close()
    assert made == list(range(1, 10))
    assert len(segments(tmp_path)) > 3
    assert [record.number for record in read_records(tmp_path)] == made
    assert [record.number for record in read_records(tmp_path, {"event"})] == [3, 6, 9]


def test_records_are_read_from_a_number_while_the_journal_is_written(tmp_path, make_frame):
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    image = np.zeros((1, 512, 512), np.float32)
    for number in range(4):
        append(journal, make_frame(image=image, number=number), 10.0 + number)
        append(journal, Event(at_s=0.0, what=f"{number}"))
    assert [r.number for r in journal.records_from(4)] == [4, 5, 6, 7, 8]
    assert [r.message().number for r in journal.records_from(4, {"frame"})] == [2, 3]
    (frame,) = journal.records_from(7, ["frame"])
    assert (frame.kind, frame.received_at_s, frame.monotonic_s) == ("frame", 13.0, 13.0)
    assert journal.position(7) == (frame.segment, frame.offset)
    assert journal.position(9) is None
    assert list(journal.records_from(9)) == []
    append(journal, Event(at_s=0.0, what="late"))
    assert [r.message().what for r in journal.records_from(9)] == ["late"]
    journal.close()


def test_newest_whole_checkpoint_of_an_owner_is_found(tmp_path, make_frame):
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    image = np.zeros((1, 512, 512), np.float32)
    for number in range(5):
        append(journal, make_frame(image=image, number=number))
        append(journal, checkpoint("streamer" if number != 1 else "explorer", number))
    for of, told in (("streamer", 4), ("explorer", 1)):
        assert journal.last_checkpoint(of).message().told == told
    assert journal.last_checkpoint("nobody") is None
    newest = journal.last_checkpoint("streamer")
    journal.close()
    with newest.segment.open("rb+") as file:
        file.seek(newest.offset + newest.length - 1)
        file.write(b"\xff")
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    assert journal.last_checkpoint("streamer").message().told == 3
    journal.close()


def test_journal_of_an_earlier_version_is_named(tmp_path):
    (tmp_path / "journal-000001.plj").write_bytes(b"PLJ1" + bytes(100))
    for use in (lambda: Journal(tmp_path, JournalConfig()), lambda: list(read_messages(tmp_path))):
        with pytest.raises(OldJournalError, match="earlier version"):
            use()


def test_room_kept_for_the_next_records_is_no_damage_and_is_given_back(tmp_path, make_frame):
    journal = filled(tmp_path, make_frame)
    (segment,) = segments(tmp_path)
    assert segment.stat().st_size > 1_000_000
    assert all(isinstance(record, Record) for record in read_records(tmp_path))
    journal.close()
    assert segment.stat().st_size < 10_000


# What the disk refuses is refused to the sender; what was taken stays.


def test_journal_survives_seeded_short_writes_and_errors(tmp_path, make_frame, monkeypatch):
    rng = np.random.default_rng(2)
    real = os.pwritev
    faults = [errno.EIO, errno.ENOSPC]

    def unreliable(fd: int, buffers: list[memoryview], offset: int) -> int:
        fate = rng.random()
        if fate < 0.2:
            raise OSError(faults[int(rng.integers(2))], "injected")
        if fate < 0.6:  # a part of it, in the middle of a buffer
            joined = b"".join(buffers)
            return real(fd, [memoryview(joined)[: max(1, int(rng.integers(len(joined))))]], offset)
        return real(fd, buffers, offset)

    taken, refused = [], 0
    for _ in range(5):
        journal = Journal(tmp_path, JournalConfig())
        monkeypatch.setattr(os, "pwritev", unreliable)
        for _ in range(60):
            number = len(taken) + refused
            try:
                append(journal, make_frame(number=number))
                taken.append(number)
            except OSError:
                refused += 1
        monkeypatch.setattr(os, "pwritev", real)
        journal.close()
    assert refused > 20
    assert numbers(tmp_path) == taken
    assert [r.number for r in read_records(tmp_path)] == list(range(1, len(taken) + 1))


def test_disk_that_takes_nothing_is_an_error_and_no_endless_loop(tmp_path, make_frame, monkeypatch):
    journal = filled(tmp_path, make_frame, count=1)
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="takes nothing"):
        append(journal, make_frame(number=1))
    journal.close()


def test_after_a_failed_sync_the_journal_takes_no_more_until_it_is_opened_again(
    tmp_path, make_frame, monkeypatch
):
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = filled(tmp_path, make_frame, durability="fsynced")
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        journal.sync()
    monkeypatch.setattr(os, "fdatasync", real)
    for use in (journal.sync, lambda: journal.reserve(1), lambda: append(journal, make_frame())):
        with pytest.raises(OSError, match=r"at fdatasync; open the journal again"):
            use()
    journal.close()
    journal = Journal(tmp_path, JournalConfig(durability="fsynced"))
    assert append(journal, make_frame(number=3)) == 4
    journal.close()


@pytest.mark.parametrize("durability", ["written", "fsynced"])
def test_sync_reaches_the_disk_only_where_it_is_promised(tmp_path, make_frame, monkeypatch, durability):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(
        os, "fdatasync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))
    )
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1, durability=durability))
    append(journal, make_frame(image=image))
    first = str(journal.segment)
    journal.sync()
    assert synced == ([first] if durability == "fsynced" else [])
    append(journal, make_frame(image=image))
    append(journal, make_frame(image=image))
    assert journal.segment != first
    assert synced.count(first) == (2 if durability == "fsynced" else 0)  # also before the next one is begun
    journal.close()


def test_reserved_room_is_there_and_a_full_disk_is_known_before_anything_is_written(
    tmp_path, make_frame, monkeypatch
):
    journal = filled(tmp_path, make_frame, count=1)
    before = journal.segment.read_bytes().rstrip(b"\0")
    room = journal.segment.stat().st_size

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    journal.reserve(room - 100_000)  # taken from the disk already
    with pytest.raises(OSError, match="No space left"):
        journal.reserve(room)
    assert journal.segment.read_bytes().rstrip(b"\0") == before
    append(journal, make_frame(number=1))
    journal.close()
    assert numbers(tmp_path) == [0, 1]


def test_reserved_records_stay_in_their_segment(tmp_path, make_frame):
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    parts = encode(make_frame(image=image))
    journal.reserve(3 * (sum(map(len, parts)) + MAX_PREFIX_BYTES))
    for _ in range(3):
        journal.append(parts, 0.0, kind="frame", monotonic_s=0.0)
    assert len(segments(tmp_path)) == 1
    journal.reserve(1)
    assert len(segments(tmp_path)) == 2
    journal.close()


def test_who_reserves_more_than_is_used_gets_new_segments_too(tmp_path, make_frame):
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    for number in range(4):
        journal.reserve(3_000_000)
        append(journal, make_frame(image=image, number=number))
    assert len(segments(tmp_path)) == 4
    journal.close()


def test_without_preallocation_the_free_space_is_asked(tmp_path, make_frame, monkeypatch):
    def unknown(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    journal = filled(tmp_path, make_frame)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OSError, match="No space left"):
        journal.reserve(2 * free)
    journal.close()
    assert numbers(tmp_path) == [0, 1, 2]


def test_segment_that_cannot_be_begun_leaves_the_old_one_open(tmp_path, make_frame, monkeypatch):
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    append(journal, make_frame(image=image, number=0))
    real = os.fsync

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        append(journal, make_frame(image=image, number=1))
    monkeypatch.setattr(os, "fsync", real)
    append(journal, make_frame(image=image, number=2))
    journal.close()
    assert len(segments(tmp_path)) == 2
    assert numbers(tmp_path) == [0, 2]


@pytest.fixture
def small_disk(tmp_path):
    """Mount 6 MB of tmpfs, where one may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "probeloop", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_refuses_keeps_what_it_took_and_goes_on_when_there_is_room(small_disk, make_frame):
    image = np.zeros((1, 256, 256), np.float32)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2_000_000))
    session = small_disk / "session"
    journal = Journal(session, JournalConfig(segment_mb=1))
    taken: list[int] = []

    def fill() -> None:
        for number in range(100):
            append(journal, make_frame(image=image, number=number))
            taken.append(number)

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert 8 <= len(taken) <= 16
    assert numbers(session) == taken
    with pytest.raises(OSError, match="No space left"):
        journal.reserve(300_000)
    ballast.unlink()
    journal.reserve(300_000)
    append(journal, make_frame(image=image, number=100))
    journal.close()
    journal = Journal(session, JournalConfig())
    assert journal.torn_bytes == 0
    journal.close()
    assert numbers(session) == [*taken, 100]


# The index saves time and nothing else.


def long_session(folder, make_frame) -> None:
    """Write five segments with checkpoints of two owners."""
    journal = Journal(folder, JournalConfig(segment_mb=1))
    image = np.zeros((1, 300, 256), np.float32)
    for number in range(20):
        append(journal, make_frame(image=image, number=number))
        append(journal, Event(at_s=0.0, what=f"{number}"))
        if number % 3 == 0 and number < 15:
            append(journal, checkpoint("streamer" if number % 2 else "explorer", number))
    journal.close()


def answers(folder) -> list[object]:
    journal = Journal(folder, JournalConfig(segment_mb=1))
    given: list[object] = [journal.position(record) for record in range(48)]
    given += [[r.number for r in journal.records_from(record)] for record in (1, 17, 30)]
    given += [journal.last_checkpoint(of).number for of in ("streamer", "explorer")]
    given += [journal.next_record, journal.last_checkpoint("nobody")]
    journal.close()
    return given


def test_index_that_lies_changes_nothing(tmp_path, make_frame):
    long_session(tmp_path, make_frame)
    right = answers(tmp_path)
    indices = sorted(tmp_path.glob("*.idx"))
    assert len(indices) >= 4
    raw = [path.read_bytes() for path in indices]
    rng = np.random.default_rng(3)
    for path, content in zip(indices, raw, strict=True):
        for _ in range(25):
            damaged = bytearray(content)
            damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            assert answers(tmp_path) == right
            assert path.read_bytes() == content  # made again
        for lie in (b"", content[:-9], raw[0] if path is not indices[0] else raw[1]):
            path.write_bytes(lie)
            assert answers(tmp_path) == right
        path.unlink()
        assert answers(tmp_path) == right


LIES = {
    "offsets between records": lambda entries: [(n, at + 1, code) for n, at, code in entries],
    "offsets of other records": lambda entries: [
        (n, other, code)
        for (n, _, code), (_, other, _) in zip(entries, entries[1:] + entries[:1], strict=True)
    ],
    "too low numbers": lambda entries: [(max(n - 3, 0), at, code) for n, at, code in entries],
}


@pytest.mark.parametrize("lie", LIES)
def test_index_with_wrong_entries_and_right_checksums_changes_nothing(tmp_path, make_frame, lie):
    long_session(tmp_path, make_frame)
    right = answers(tmp_path)
    for path in sorted(tmp_path.glob("*.idx")):
        with SegmentFile(path.with_suffix(".plj")) as file:
            index = Index.load(path, file)
        index._entries = LIES[lie](index._entries)
        index.save(path)
    assert answers(tmp_path) == right


def test_index_of_an_earlier_state_of_its_segment_is_not_believed(tmp_path, make_frame):
    long_session(tmp_path, make_frame)
    segment = segments(tmp_path)[1]
    whole = segment.read_bytes()
    last = list(read_records(segment))[-1]
    segment.write_bytes(whole[: last.offset])
    with SegmentFile(segment) as file:
        Index.build(file).save(segment.with_suffix(".idx"))
        assert Index.load(segment.with_suffix(".idx"), file) is not None
    segment.write_bytes(whole)
    with SegmentFile(segment) as file:
        assert Index.load(segment.with_suffix(".idx"), file) is None


def test_checkpoint_that_was_damaged_after_its_index_was_written_gives_way_to_the_older_one(
    tmp_path, make_frame
):
    long_session(tmp_path, make_frame)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    newest = journal.last_checkpoint("streamer")
    journal.close()
    for place in (newest.offset + 1, newest.offset + newest.length - 1):  # in its prefix, in its array
        whole = newest.segment.read_bytes()
        damaged = bytearray(whole)
        damaged[place] ^= 1
        newest.segment.write_bytes(damaged)
        journal = Journal(tmp_path, JournalConfig(segment_mb=1))
        assert journal.last_checkpoint("streamer").number < newest.number
        journal.close()
        newest.segment.write_bytes(whole)


def test_opening_a_long_journal_reads_little_of_it(tmp_path, make_frame, monkeypatch):
    journal = Journal(tmp_path, JournalConfig(segment_mb=64))
    image = np.random.default_rng(4).random((1, 512, 512), np.float32)
    for number in range(300):
        append(journal, make_frame(image=image, number=number))
        if number % 10 == 9:
            append(journal, checkpoint("streamer", number))
    journal.close()
    size = sum(path.stat().st_size for path in segments(tmp_path))
    assert size > 300_000_000
    read: dict[str, int] = {}
    real = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        content = real(fd, length, offset)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        read[name] = read.get(name, 0) + len(content)
        return content

    monkeypatch.setattr(os, "pread", counted)
    journal = Journal(tmp_path, JournalConfig(segment_mb=64))
    assert list(read) == [segments(tmp_path)[-1].name]
    assert journal.last_checkpoint("streamer").message().told == 299
    assert journal.last_checkpoint("nobody") is None
    assert journal.next_record == 331
    assert sum(read.values()) < 0.01 * size
    journal.close()


# Retention.


def test_oldest_segments_are_deleted_when_more_is_left_than_asked_for(tmp_path, make_frame):
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1, keep_gb=0.004))
    for number in range(12):
        journal.needed_record = journal.next_record
        append(journal, make_frame(image=image, number=number))
    left = segments(tmp_path)
    assert [path.name for path in left] == [f"journal-{n:06d}.plj" for n in range(8, 13)]
    assert sum(path.stat().st_size for path in left) >= 4_000_000
    assert journal.deleted_bytes > 7 * 1024 * 1024
    assert [r.number for r in journal.records_from(1)] == [8, 9, 10, 11, 12]
    assert {path.stem for path in tmp_path.glob("*.idx")} == {path.stem for path in left[:-1]}
    journal.close()
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    assert [r.number for r in journal.records_from(1)] == [8, 9, 10, 11, 12]
    assert journal.next_record == 13
    journal.close()


@pytest.mark.parametrize(("needed", "first"), [(1, 1), (3, 3), (100, 11)])
def test_retention_keeps_what_is_needed_and_the_last_two_segments(tmp_path, make_frame, needed, first):
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1, keep_gb=1e-9))
    journal.needed_record = needed
    for number in range(12):
        append(journal, make_frame(image=image, number=number))
    assert next(journal.records_from(1)).number == first
    journal.close()


def test_without_a_limit_nothing_is_deleted(tmp_path, make_frame):
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    for number in range(5):
        journal.needed_record = journal.next_record
        append(journal, make_frame(image=image, number=number))
    assert next(journal.records_from(1)).number == 1
    assert journal.deleted_bytes == 0
    journal.close()


# Small things.


def test_second_tear_does_not_write_over_the_first(tmp_path, make_frame):
    filled(tmp_path, make_frame).close()
    (segment,) = segments(tmp_path)
    for number in (1, 2):
        with segment.open("ab") as file:
            file.write(b"tear %d" % number)
        Journal(tmp_path, JournalConfig()).close()
    assert [p.read_bytes() for p in sorted(tmp_path.glob("*.torn"))] == [b"tear 1", b"tear 2"]


def test_numbers_go_on_after_a_crash_between_two_segments(tmp_path, make_frame):
    filled(tmp_path, make_frame).close()
    (tmp_path / "journal-000002.plj").touch()
    journal = Journal(tmp_path, JournalConfig())
    assert append(journal, make_frame(number=3)) == 4
    journal.close()


@pytest.mark.parametrize("count", [0, 65])
def test_record_of_too_many_parts_is_refused_before_it_is_written(tmp_path, make_frame, count):
    journal = filled(tmp_path, make_frame)
    with pytest.raises(ValueError, match=f"a record of {count} parts; it takes 1 to 64"):
        journal.append([b"x"] * count, 0.0, kind="other", monotonic_s=0.0)
    journal.close()
    assert numbers(tmp_path) == [0, 1, 2]


def test_prefix_that_claims_more_than_the_file_holds_allocates_nothing(tmp_path, make_frame):
    filled(tmp_path, make_frame, count=1).close()
    (segment,) = segments(tmp_path)
    raw, _ = make_prefix(0, 2, "frame", 0.0, 0.0, (1 << 60, 1 << 60))
    with segment.open("ab") as file:
        file.write(raw)
    record, damage = read_records(tmp_path)
    assert isinstance(record, Record)
    assert damage.length == len(raw)


def test_unknown_kind_is_asked_for_by_nobody(tmp_path, make_frame):
    filled(tmp_path, make_frame).close()
    with pytest.raises(ValueError, match="'frames' is no kind of record; the kinds are other, frame"):
        list(read_records(tmp_path, {"frames"}))


def test_every_message_has_a_kind_of_its_own_in_the_journal():
    tags = [noun.__struct_config__.tag for noun in get_args(AnyMessage)]
    assert sorted(tags) == sorted(KINDS[1:])


def test_retention_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"journal.keep_gb is -1; it takes 0 \(keep everything\)"):
        JournalConfig(keep_gb=-1)
