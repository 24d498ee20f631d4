"""What was appended is read back; what is torn or flipped costs only itself."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, read_messages, read_records, segments
from streamer.messages import Event, Frame


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
    segment.write_bytes(whole + b"PLJ1 torn")
    journal = Journal(tmp_path, JournalConfig())
    journal.close()
    assert journal.torn_bytes == 9
    assert segment.read_bytes() == whole
    assert segment.with_suffix(".torn").read_bytes() == b"PLJ1 torn"


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
    real = os.writev
    calls = []

    def full(fd: int, buffers: list[memoryview]) -> int:
        calls.append(1)
        if len(calls) == 1:
            return real(fd, [buffers[0][:10]])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space left"):
        journal.append(encode(make_frame(number=1)), received_at_s=0.0)
    monkeypatch.setattr(os, "writev", real)
    journal.append(encode(make_frame(number=2)), received_at_s=0.0)
    journal.close()
    assert numbers(tmp_path) == [0, 2]
    assert all(not isinstance(record, int) for record in read_records(segments(tmp_path)[0]))


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
