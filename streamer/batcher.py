"""Gathers what is to be encoded across frames and instruments, until a batch is full or its oldest is due.

Time is an argument, and so is whether anything else is on its way: with nothing else to come a batch leaves
at once, so one instrument alone never waits. Windows do not change each other's latents; a batch only costs
less than its parts.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, NamedTuple, TypeVar

import msgspec

Item = TypeVar("Item")


class BatcherConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long patches may wait for others.

    Attributes
    ----------
    full_windows
        A batch of so many windows leaves; of one 24 px wide encoder, 256 keep a processor as busy as it gets.
    patience_ms
        The oldest patches of a batch wait no longer, in milliseconds; 0 encodes each by itself.
    """

    full_windows: int = 256
    patience_ms: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.full_windows <= 1_000_000:
            raise ValueError(f"batch.full_windows is {self.full_windows}; it takes 1 to 1000000")
        if not 0 <= self.patience_ms <= 1000:
            raise ValueError(f"batch.patience_ms is {self.patience_ms}; it takes 0 to 1000")


class BatcherStatistics(NamedTuple):
    """What a batcher holds and why its batches left.

    Attributes
    ----------
    waiting_items, waiting_windows
        Put and not taken.
    full, due, alone
        Batches that left because they were full, because their oldest was due, and because nothing else
        was on its way.
    largest_wait_s
        Of any item that was taken, in seconds.
    """

    waiting_items: int
    waiting_windows: int
    full: int
    due: int
    alone: int
    largest_wait_s: float


class _Waiting(NamedTuple, Generic[Item]):
    item: Item
    windows: int
    since_s: float


class Batcher(Generic[Item]):
    """Items in the order in which they came, cut into batches; nothing is lost and nothing overtakes.

    Parameters
    ----------
    config
        When a batch leaves.
    """

    def __init__(self, config: BatcherConfig | None = None) -> None:
        self.config = BatcherConfig() if config is None else config
        self._waiting: deque[_Waiting[Item]] = deque()
        self._windows = 0
        self._left = {"full": 0, "due": 0, "alone": 0}
        self._largest_wait_s = 0.0

    def put(self, item: Item, windows: int, now_s: float) -> None:
        """Hand in an item of so many windows; one with more than fill a batch makes up a batch alone."""
        self._waiting.append(_Waiting(item, windows, now_s))
        self._windows += windows

    def due_at_s(self) -> float:
        """Say until when a caller may wait for others, in the time of ``put``; infinity for an empty one."""
        if not self._waiting:
            return math.inf
        if self._windows >= self.config.full_windows:
            return self._waiting[0].since_s
        return self._waiting[0].since_s + self.config.patience_ms / 1000

    def take(self, now_s: float, *, is_more_coming: bool) -> list[Item]:
        """Take the next batch, oldest first; empty while it should still wait.

        Parameters
        ----------
        now_s
            In the time of ``put``.
        is_more_coming
            Whether anything that could join the batch is known to be on its way: another frame in the
            queue, or in an earlier stage. If not, waiting would gain nothing.
        """
        why = self._why(now_s, is_more_coming)
        if why is None:
            return []
        self._left[why] += 1
        first = self._pop(now_s)
        batch, windows = [first.item], first.windows
        while self._waiting and windows + self._waiting[0].windows <= self.config.full_windows:
            one = self._pop(now_s)
            batch.append(one.item)
            windows += one.windows
        return batch

    def statistics(self) -> BatcherStatistics:
        """Say what waits, and why batches left."""
        return BatcherStatistics(
            len(self._waiting), self._windows, **self._left, largest_wait_s=self._largest_wait_s
        )

    def _why(self, now_s: float, is_more_coming: bool) -> str | None:
        if not self._waiting:
            return None
        if self._windows >= self.config.full_windows:
            return "full"
        if not is_more_coming:
            return "alone"
        return "due" if now_s >= self.due_at_s() else None

    def _pop(self, now_s: float) -> _Waiting[Item]:
        one = self._waiting.popleft()
        self._windows -= one.windows
        self._largest_wait_s = max(self._largest_wait_s, now_s - one.since_s)
        return one
