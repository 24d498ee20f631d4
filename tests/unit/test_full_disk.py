"""What a full disk makes wait is kept in order, and asked about in time; the disk here is a number."""

from __future__ import annotations

import errno

import pytest

from streamer import full_disk
from streamer.full_disk import SLACK_BYTES, Arrival, DiskRoom, Stalled


class Disk:
    """Has so much room."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def reserve(self, size_bytes: int) -> None:
        if size_bytes > self.free_bytes:
            raise OSError(errno.ENOSPC, "no space")


def arrival(identity: bytes = b"a", size: int = 10) -> Arrival:
    return Arrival(identity, "", [memoryview(bytes(size))])


def room(disk: Disk, on_full: str = "pause") -> tuple[DiskRoom, list[str]]:
    words: list[str] = []
    made = DiskRoom(
        disk,
        on_full,
        hold=lambda why: words.append(f"hold {why}"),
        give_up=lambda why: words.append(f"give up {why}"),
    )
    return made, words


def test_room_is_had_with_some_to_spare_for_the_streamer():
    made, words = room(Disk(SLACK_BYTES + 100))
    assert made.has(100, 0.0)
    assert words == []
    assert not made.has(101, 0.0)
    assert words == ["hold no space"]


def test_room_is_asked_for_again_after_a_moment_and_for_all_that_waits():
    disk = Disk(0)
    made, _ = room(disk)
    made.has(10, 100.0)
    made.stalled.keep(arrival(size=500), 1)
    disk.free_bytes = SLACK_BYTES + 499
    assert not made.is_back(10, 101.0)  # the one that waits does not fit
    disk.free_bytes += 1
    assert not made.is_back(10, 101.1)  # too soon
    assert made.is_back(10, 101.2)


def test_session_goes_on_unrecorded_for_good_where_it_is_configured():
    disk = Disk(0)
    made, words = room(disk, "unrecorded")
    assert made.has(10, 0.0)
    assert made.is_unrecorded
    disk.free_bytes = 1 << 40
    assert made.has(10, 1.0)
    assert made.is_unrecorded  # half a session in the journal would not be told from a whole one
    assert words == ["give up no space"]


def test_stalled_messages_come_back_in_order():
    stalled = Stalled()
    for identity, sequence in [(b"a", 2), (b"b", 1), (b"a", 1)]:
        assert stalled.keep(arrival(identity), sequence) == ""
    assert stalled.size_bytes == 30
    assert [stalled.take().identity for _ in range(3)] == [b"a", b"b", b"a"]
    assert (len(stalled), stalled.size_bytes) == (0, 0)


def test_message_that_is_sent_again_while_it_waits_is_kept_once():
    stalled = Stalled()
    stalled.keep(arrival(), 1)
    assert stalled.keep(arrival(), 1) == "duplicate"
    assert len(stalled) == 1


def test_messages_without_a_number_are_never_taken_for_each_other():
    stalled = Stalled()
    assert stalled.keep(arrival(), 0) == stalled.keep(arrival(), 0) == ""
    assert len(stalled) == 2


def test_no_more_is_kept_than_memory_is_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(full_disk, "MOST_STALLED_BYTES", 15)
    stalled = Stalled()
    assert [stalled.keep(arrival(), number) for number in (1, 2, 3)] == ["", "", "too early"]
    assert stalled.largest_bytes == 10
