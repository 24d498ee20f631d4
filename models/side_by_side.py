"""Run the parts of one computation side by side: compiled loops and torch's operators hold no lock.

How work is cut into parts must never depend on the number of threads: then the bits do not either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

Result = TypeVar("Result")


def side_by_side(parts: Sequence[Callable[[], Result]], threads: int) -> list[Result]:
    """Call each part once and give the results in their order.

    Parameters
    ----------
    parts
        None may wait for another. The first ones are begun first.
    threads
        How many run at once; the caller's own is one of them. With 1 they run one after the other.

    Raises
    ------
    Exception
        What a part raises, once nothing is running any more.
    """
    threads = min(threads, len(parts))
    if threads <= 1:
        return [part() for part in parts]
    numbers = iter(range(len(parts)))  # next() of a range is one step: no two threads get the same
    others = [_pool(threads - 1).submit(_in_turn, parts, numbers) for _ in range(threads - 1)]
    try:
        done = _in_turn(parts, numbers)
    finally:
        for other in others:
            other.exception()  # waits
    for other in others:
        done |= other.result()
    return [done[number] for number in range(len(parts))]


def usual_threads() -> int:
    """Give the number that pays for a frame here: two, where there are two processors.

    Parts are halves: the data path has other frames, and the machine other work, for more.
    """
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, mine)


def _in_turn(parts: Sequence[Callable[[], Result]], numbers: Iterator[int]) -> dict[int, Result]:
    """Do whatever part is next until none is left."""
    return {number: parts[number]() for number in numbers}


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work, of which all who ask for as many have the same."""
    return ThreadPoolExecutor(threads, thread_name_prefix="side")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay behind
