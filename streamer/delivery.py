"""Once, in order, and nothing lost: the bookkeeping of both ends of a row of numbered messages.

It knows no sockets and no clocks; time is an argument, in seconds of a clock that never steps.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from streamer.codec import Parts

Item = TypeVar("Item")
# Messages held back while one before them is missing; those beyond are dropped, and sent again.
MOST_HELD = 64
# How long a message may be on its way before it is sent again: when a later one has come, and when
# nothing tells; the second doubles from time to time.
LOST_AFTER_S = 0.05
PATIENCE_S = 0.5
MOST_PATIENCE_S = 8.0


class Inbox(Generic[Item]):
    """Puts a row of messages in order and lets each through once.

    Parameters
    ----------
    last
        Sequence through which the row has come already.

    Attributes
    ----------
    last
        Sequence through which everything has come, in order.
    duplicates, reordered, overflowed
        How many messages came again, came early and were held back, and came too early to be held.
    """

    def __init__(self, last: int = 0) -> None:
        self.last = last
        self.duplicates = 0
        self.reordered = 0
        self.overflowed = 0
        self._held: dict[int, tuple[int, Item]] = {}

    @property
    def has_gap(self) -> bool:
        """Is a message missing that a later one was sent after?"""
        return bool(self._held)

    def take(self, sequence: int, after: int, item: Item) -> list[Item]:
        """Take in a message; return those whose turn it is now.

        Parameters
        ----------
        sequence
            Of this message.
        after
            Sequence of the one before it in the row.
        item
            What is returned when its turn comes.
        """
        if sequence <= self.last or sequence in self._held:
            self.duplicates += 1
            return []
        if after > self.last:
            if len(self._held) >= MOST_HELD:
                self.overflowed += 1
            else:
                self.reordered += 1
                self._held[sequence] = (after, item)
            return []
        self.last = sequence
        return [item, *self._released()]

    def skip_to(self, last: int) -> list[Item]:
        """Expect nothing up to ``last`` any more: the sender has it settled otherwise."""
        self.last = max(self.last, last)
        self._held = {sequence: held for sequence, held in self._held.items() if sequence > self.last}
        return self._released()

    def _released(self) -> list[Item]:
        items = []
        while self._held:
            sequence = min(self._held)
            after, item = self._held[sequence]
            if after > self.last:
                break
            del self._held[sequence]
            self.last = sequence
            items.append(item)
        return items


@dataclass(slots=True)
class _Sent:
    parts: Parts
    is_frame: bool
    sent_s: float


class Outbox:
    """Keeps what was sent until it is acked, and says what must be sent again.

    Attributes
    ----------
    frames
        How many of the kept messages are frames: what the ack window bounds.
    resent
        Messages sent again so far.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.resent = 0
        self._next = 1
        self._received = 0
        self._progress_s = float("-inf")
        self._patience_s = PATIENCE_S
        self._kept: OrderedDict[int, _Sent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def next_sequence(self) -> int:
        """Sequence of the message to come."""
        return self._next

    @property
    def oldest(self) -> int:
        """Sequence of the oldest message without an ack; the next one's where there is none."""
        return next(iter(self._kept), self._next)

    def add(self, parts: Parts, *, is_frame: bool, now_s: float) -> None:
        """Keep the message numbered ``next_sequence``."""
        self._kept[self._next] = _Sent(parts, is_frame, now_s)
        self._next += 1
        self.frames += is_frame

    def acked_through(self, sequence: int) -> None:
        """Let go of everything up to ``sequence``."""
        while self._kept and (oldest := next(iter(self._kept))) <= sequence:
            self._let_go(oldest)

    def settled(self, sequence: int) -> bool:
        """Let go of one message: it was refused. False where that was known."""
        if sequence not in self._kept:
            return False
        self._let_go(sequence)
        return True

    def _let_go(self, sequence: int) -> None:
        self.frames -= self._kept.pop(sequence).is_frame

    def to_send_again(self, now_s: float, *, received: int, heard_s: float, is_missing: bool) -> Parts | None:
        """Say which message must have been lost, and count it as sent again now.

        Where a later one has come, the oldest is surely lost. Else it may only be slow: it is sent again
        when nothing has come for a while, which doubles each time, so that a slow link is not
        choked by what it carries already.

        Parameters
        ----------
        now_s
            Time of the question.
        received
            Sequence through which the other side has said that messages came.
        heard_s
            When the other side was last heard: to a silent one nothing is sent again.
        is_missing
            Whether the other side has a later message than the one after ``received``.
        """
        if received > self._received:
            self._received, self._progress_s, self._patience_s = received, now_s, PATIENCE_S
        oldest = next((sequence for sequence in self._kept if sequence > received), None)
        if oldest is None:
            return None
        sent = self._kept[oldest]
        quiet_s = now_s - (sent.sent_s if is_missing else max(sent.sent_s, self._progress_s))
        if heard_s <= sent.sent_s or quiet_s < (LOST_AFTER_S if is_missing else self._patience_s):
            return None
        if not is_missing:
            self._patience_s = min(2 * self._patience_s, MOST_PATIENCE_S)
        return self._again([sent], now_s)[0]

    def everything(self, now_s: float) -> list[Parts]:
        """Give all that is kept, in order, to be sent again after a lost link."""
        return self._again(list(self._kept.values()), now_s)

    def _again(self, messages: list[_Sent], now_s: float) -> list[Parts]:
        for sent in messages:
            sent.sent_s = now_s
        self.resent += len(messages)
        return [sent.parts for sent in messages]
