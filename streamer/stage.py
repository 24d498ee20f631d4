"""The Stage protocol, Rejected, and drive(), which runs, times and counts a stage."""

from __future__ import annotations

import time
from typing import Protocol, TypeVar

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
In = TypeVar("In")
Out = TypeVar("Out")


class Rejected(Exception):
    """An item that a stage cannot use.

    Parameters
    ----------
    reason
        A short fixed word such as ``"not finite"``: it becomes the label of a counter, never data.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Stage(Protocol[In_contra, Out_co]):
    """One step of the data path. Knows its science; knows no sockets, clocks or metrics."""

    @property
    def name(self) -> str:
        """The verb, as it labels metrics: ``correct``, ``find``, ``windows``, ``encode``, ``link``."""
        ...

    def process(self, item: In_contra, /) -> Out_co:
        """Make the next noun from this one.

        Raises
        ------
        Rejected
            With a short fixed reason, for an item that cannot be used.
        """
        ...


class Meter(Protocol):
    """Where drive() writes what it saw."""

    def stage_took(self, stage: str, seconds: float) -> None:
        """Note the time of one call, rejected or not."""
        ...

    def stage_rejected(self, stage: str, reason: str) -> None:
        """Count an item under the reason for which it was rejected."""
        ...


def drive(stage: Stage[In, Out], item: In, meter: Meter) -> Out | None:
    """Run a stage on an item; None when the stage rejected it, which is counted.

    Anything else that a stage raises is a bug and rises.
    """
    started = time.perf_counter()
    try:
        return stage.process(item)
    except Rejected as rejection:
        meter.stage_rejected(stage.name, rejection.reason)
        return None
    finally:
        meter.stage_took(stage.name, time.perf_counter() - started)
