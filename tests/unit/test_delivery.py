"""Once, in order, and nothing lost: the rows of numbered messages."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from streamer.delivery import LOST_AFTER_S, MOST_HELD, PATIENCE_S, Inbox, Outbox


def parts(name: str) -> list[bytes]:
    return [name.encode()]


def outbox_with(count: int, *, now_s: float = 0.0) -> Outbox:
    outbox = Outbox()
    for number in range(1, count + 1):
        outbox.add(parts(str(number)), is_frame=True, now_s=now_s)
    return outbox


def test_inbox_lets_each_message_through_once_and_counts_the_others():
    inbox: Inbox[str] = Inbox()
    assert inbox.take(1, 0, "a") == ["a"]
    assert inbox.take(1, 0, "a") == []
    assert (inbox.last, inbox.duplicates) == (1, 1)


def test_inbox_holds_what_comes_early_until_what_is_before_it_has_come():
    inbox: Inbox[str] = Inbox()
    assert inbox.take(3, 2, "c") == []
    assert inbox.take(2, 1, "b") == []
    assert inbox.has_gap
    assert inbox.take(3, 2, "c") == []
    assert inbox.take(1, 0, "a") == ["a", "b", "c"]
    assert not inbox.has_gap
    assert (inbox.reordered, inbox.duplicates, inbox.last) == (2, 1, 3)


def test_inbox_of_a_row_with_gaps_in_its_numbers_goes_by_what_was_before():
    inbox: Inbox[str] = Inbox(last=10)
    assert inbox.take(31, 17, "late") == []
    assert inbox.take(17, 10, "soon") == ["soon", "late"]


def test_inbox_holds_only_so_many_and_counts_what_it_drops():
    inbox: Inbox[int] = Inbox()
    for sequence in range(2, MOST_HELD + 4):
        assert inbox.take(sequence, sequence - 1, sequence) == []
    assert (inbox.reordered, inbox.overflowed) == (MOST_HELD, 2)
    assert inbox.take(1, 0, 1) == list(range(1, MOST_HELD + 2))
    assert inbox.take(MOST_HELD + 2, MOST_HELD + 1, 0) == [0]  # what was dropped comes again


def test_inbox_that_skips_lets_through_what_waited_behind():
    inbox: Inbox[str] = Inbox()
    inbox.take(3, 2, "c")
    inbox.take(5, 4, "e")
    assert inbox.skip_to(2) == ["c"]
    assert inbox.skip_to(1) == []
    assert inbox.skip_to(5) == []
    assert inbox.last == 5


@given(st.integers(1, 40), st.randoms(use_true_random=False), st.integers(0, 30))
def test_any_order_with_any_duplicates_gives_the_row_and_every_message_is_counted(count, chance, more):
    came = list(range(1, count + 1)) + [chance.randint(1, count) for _ in range(more)]
    chance.shuffle(came)
    inbox: Inbox[int] = Inbox()
    let_through = [item for sequence in came for item in inbox.take(sequence, sequence - 1, sequence)]
    assert let_through == list(range(1, count + 1))
    assert len(let_through) + inbox.duplicates == len(came)


def test_outbox_keeps_what_has_no_ack_and_an_ack_speaks_of_all_before():
    outbox = outbox_with(3)
    outbox.add(parts("no frame"), is_frame=False, now_s=0.0)
    assert (len(outbox), outbox.frames, outbox.oldest, outbox.next_sequence) == (4, 3, 1, 5)
    outbox.acked_through(2)
    assert (len(outbox), outbox.frames, outbox.oldest) == (2, 1, 3)
    outbox.acked_through(1)  # an ack that comes late takes nothing back
    outbox.settled(4)
    outbox.settled(4)
    assert (len(outbox), outbox.frames) == (1, 1)
    outbox.acked_through(9)
    assert (len(outbox), outbox.oldest) == (0, 5)


def test_outbox_sends_nothing_again_to_a_side_that_is_silent():
    outbox = outbox_with(2)
    late_s = 100 * PATIENCE_S
    assert outbox.to_send_again(late_s, received=0, heard_s=0.0, is_missing=False) is None


def test_outbox_sends_the_oldest_again_soon_when_a_later_one_has_come():
    outbox = outbox_with(3)
    ask = {"received": 1, "heard_s": 1.0, "is_missing": True}
    assert outbox.to_send_again(LOST_AFTER_S / 2, **ask) is None
    assert outbox.to_send_again(LOST_AFTER_S * 1.5, **ask) == parts("2")
    assert outbox.to_send_again(LOST_AFTER_S * 1.6, **ask) is None  # it has been sent just now
    assert outbox.resent == 1


def test_outbox_grows_patient_while_nothing_tells_that_a_message_was_lost():
    outbox = outbox_with(1)
    sent_at_s = []
    now_s = 0.0
    while now_s < 10.0:
        now_s += 0.01
        if outbox.to_send_again(now_s, received=0, heard_s=now_s, is_missing=False) is not None:
            sent_at_s.append(now_s)
    waits_s = [later - sooner for sooner, later in zip([0.0, *sent_at_s], sent_at_s, strict=False)]
    assert waits_s[0] >= PATIENCE_S
    assert waits_s == sorted(waits_s)
    assert 3 <= len(sent_at_s) <= 6


def test_after_a_lost_link_everything_without_an_ack_goes_out_again_in_order():
    outbox = outbox_with(4)
    outbox.acked_through(2)
    assert outbox.everything(1.0) == [parts("3"), parts("4")]
    assert outbox.resent == 2


def test_both_ends_over_a_line_that_loses_doubles_and_swaps_deliver_the_row():
    chance = random.Random(7)
    outbox, inbox = Outbox(), Inbox[bytes]()
    let_through: list[bytes] = []
    now_s = 0.0
    number = 0
    while len(let_through) < 300:
        now_s += 0.02
        line: list[tuple[int, bytes]] = []
        if number < 300 and len(outbox) < 16:
            number += 1
            line.append((number, str(number).encode()))
            outbox.add([line[-1][1]], is_frame=True, now_s=now_s)
        again = outbox.to_send_again(now_s, received=inbox.last, heard_s=now_s + 1, is_missing=inbox.has_gap)
        if again is not None:
            line.append((int(bytes(again[0])), bytes(again[0])))
        line = [item for item in line for _ in range(chance.choice([0, 1, 1, 1, 1, 1, 1, 1, 2]))]
        chance.shuffle(line)
        for sequence, item in line:
            let_through += inbox.take(sequence, sequence - 1, item)
        outbox.acked_through(inbox.last)
        assert now_s < 1000
    assert let_through == [str(n).encode() for n in range(1, 301)]
    assert len(outbox) == 0
