"""A full disk: what waits for room in the journal, in order, and when room is asked for again.

Nothing that the journal cannot take is acked, so its sender keeps it too; what is kept here only saves the
way. Where the journal is configured to go on without room, nothing waits and nothing is kept. Time is an
argument, in seconds of a clock that never steps.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from streamer.codec import Numbered, Parts

# Room that is kept for what the streamer itself must say, also when the disk is full.
SLACK_BYTES = 1 << 20
RETRY_DISK_S = 0.2
MOST_STALLED_BYTES = 256 << 20


def size_of(parts: Parts) -> int:
    """Say how much a message takes in the journal."""
    return sum(map(len, parts))


class Reserve(Protocol):
    """What room is taken from: the journal."""

    def reserve(self, size_bytes: int) -> None:
        """Take room; raises OSError where there is none."""
        ...


class Arrival(NamedTuple):
    """A message as it came: over which connection, with which key."""

    identity: bytes
    key: str
    parts: list[memoryview]


class Stalled:
    """Messages as they came that the disk has no room for.

    Attributes
    ----------
    size_bytes
        Of all of them.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._arrivals: dict[tuple[bytes, int], Arrival] = {}
        self._count = itertools.count(1)

    def __len__(self) -> int:
        return len(self._arrivals)

    @property
    def largest_bytes(self) -> int:
        """Size of the largest; 0 for none."""
        return max((size_of(arrival.parts) for arrival in self._arrivals.values()), default=0)

    def keep(self, arrival: Arrival, sequence: int) -> str:
        """Keep one; says why it is dropped instead, which its sender makes good.

        Parameters
        ----------
        arrival
            The message.
        sequence
            Its number in the row of its sender; 0 for one that has none.
        """
        place = (arrival.identity, sequence or -next(self._count))
        if place in self._arrivals:
            return "duplicate"
        if self.size_bytes > MOST_STALLED_BYTES:
            return "too early"
        self._arrivals[place] = arrival
        self.size_bytes += size_of(arrival.parts)
        return ""

    def take(self) -> Arrival:
        """Take the oldest."""
        arrival = self._arrivals.pop(next(iter(self._arrivals)))
        self.size_bytes -= size_of(arrival.parts)
        return arrival


class DiskRoom:
    """Sees to it that there is room before something is written.

    Parameters
    ----------
    journal
        What room is taken from.
    on_full
        ``pause`` or ``unrecorded``, as in ``JournalConfig``.
    hold
        Called with the reason when all must wait for room.
    give_up
        Called with the reason when the session goes on unrecorded: once.

    Attributes
    ----------
    is_unrecorded
        Whether the journal is done without, for good.
    stalled
        What came and has no room yet.
    turns
        Messages whose turn came when there was no room: ``(identity, numbered, parts)``.
    """

    def __init__(
        self, journal: Reserve, on_full: str, *, hold: Callable[[str], None], give_up: Callable[[str], None]
    ) -> None:
        self.is_unrecorded = False
        self.stalled = Stalled()
        self.turns: deque[tuple[bytes, Numbered, Parts]] = deque()
        self._journal = journal
        self._on_full = on_full
        self._hold = hold
        self._give_up = give_up
        self._retry_s = 0.0

    def has(self, size_bytes: int, now_s: float) -> bool:
        """See to it that the journal can take so much; a full disk pauses or is done without."""
        if self.is_unrecorded:
            return True
        try:
            self._journal.reserve(size_bytes + SLACK_BYTES)
        except OSError as error:
            self._on_error(error, now_s)
            return self.is_unrecorded
        return True

    def _on_error(self, error: OSError, now_s: float) -> None:
        self._retry_s = now_s + RETRY_DISK_S
        reason = error.strerror or str(error)
        if self._on_full == "unrecorded":
            self.is_unrecorded = True
            self._give_up(reason)
        else:
            self._hold(reason)

    def is_back(self, size_bytes: int, now_s: float) -> bool:
        """Ask from time to time whether there is room again, for so much and for all that waits.

        With less, the loop would be held and released five times a second.
        """
        if now_s < self._retry_s:
            return False
        self._retry_s = now_s + RETRY_DISK_S
        try:
            self._journal.reserve(max(size_bytes, self.stalled.largest_bytes) + SLACK_BYTES)
        except OSError:
            return False
        return True
