"""What was appended is read back; what is torn or flipped costs only itself."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of, read_messages, read_records, segments
from streamer.messages import Checkpoint, Event, Frame
from streamer.segment import OldJournalError, Record


def filled(folder, make_frame, count: int = 3, **config) -> Journal:
    journal = Journal(folder, JournalConfig(**config))
    for number in range(count):
        journal.append(encode(make_frame(number=number)), received_at_s=10.0 + number)
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
    journal.append(encode(make_frame(number=3)), received_at_s=13.0)
    journal.close()
    assert journal.torn_bytes == 0
    assert numbers(tmp_path) == [0, 1, 2, 3]


def test_journal_cut_anywhere_keeps_every_whole_record(tmp_path, make_frame):
    filled(tmp_path, make_frame).close()
    (segment,) = segments(tmp_path)
    whole = segment.read_bytes()
    ends = [record.offset + record.length for record in read_records(segment)]
    for cut in range(0, len(whole), 37):
        segment.write_bytes(whole[:cut])
        Journal(tmp_path, JournalConfig()).close()
        assert numbers(tmp_path) == [n for n, end in enumerate(ends) if end <= cut]


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


def test_flipped_bit_costs_only_its_record(tmp_path, make_frame):
    filled(tmp_path, make_frame).close()
    (segment,) = segments(tmp_path)
    whole = segment.read_bytes()
    second = list(read_records(segment))[1]
    rng = np.random.default_rng(0)
    for position in rng.integers(second.offset, second.offset + second.length, 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        segment.write_bytes(damaged)
        assert numbers(tmp_path) == [0, 2]


def test_new_segment_is_begun_beyond_the_size(tmp_path, make_frame):
    image = np.zeros((1, 512, 512), np.float32)
    journal = Journal(tmp_path, JournalConfig(segment_mb=1))
    for number in range(3):
        journal.append(encode(make_frame(image=image, number=number)), received_at_s=0.0)
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
        journal.append(encode(make_frame(number=1)), received_at_s=0.0)
    monkeypatch.setattr(os, "pwritev", real)
    journal.append(encode(make_frame(number=2)), received_at_s=0.0)
    journal.close()
    assert numbers(tmp_path) == [0, 2]
    assert all(isinstance(record, Record) for record in read_records(tmp_path))


def test_message_without_buffers_is_kept_too(tmp_path):
    journal = Journal(tmp_path, JournalConfig(durability="fsynced"))
    journal.append(encode(Event(at_s=1.0, what="x")), received_at_s=2.0)
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
