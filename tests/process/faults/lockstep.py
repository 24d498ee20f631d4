"""A session in lock-step: every frame waits for its suggestion, its outcome and its score.

So what is decided follows from nothing but the messages, and two sessions can be compared field by
field, whatever happened to the processes of one of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from streamer.codec import encode
from streamer.journal import read_records
from streamer.link import Link
from streamer.messages import (
    AnyMessage,
    Frame,
    Latents,
    ModelRevision,
    Outcome,
    Request,
    Score,
    Suggestion,
)
from streamer.segment import Record
from tests.process.faults.counting import SESSION, make_frame

WAIT_S = 30.0
STEPS = ("frame sent", "request came", "outcome sent", "agent at rest")


class Bench(Protocol):
    """What stands behind the instrument's link."""

    def frame(self, number: int) -> Frame:
        """Give the next frame."""
        ...

    def outcome(self, request: Request) -> Outcome:
        """Do what is asked."""
        ...


class PlainBench:
    """Seeded frames, and spectra whose edge depends on where they were taken."""

    def frame(self, number: int) -> Frame:
        return make_frame(number)

    def outcome(self, request: Request) -> Outcome:
        x, y = request.scan_position_nm
        energy_ev = np.arange(256.0)
        rng = np.random.default_rng([round(abs(x) * 1e6), round(abs(y) * 1e6)])
        edge = np.where(energy_ev >= 99, 100.0 * (1 + np.sin(3 * x) * np.cos(2 * y)), 0.0)
        counts = rng.poisson(2e7 * np.maximum(energy_ev, 5) ** -2.5 + edge).astype(np.float32)
        return Outcome(
            session=SESSION,
            id=request.id,
            status="ok",
            scan_position_nm=request.scan_position_nm,
            dwell_time_us=request.dwell_time_us,
            spectrum=counts,
        )


@dataclass
class LockStep:
    """The instrument of a session in lock-step.

    Parameters
    ----------
    link
        Of the instrument.
    idle
        File in which the agent says what it was told before it came to rest, see ``Watched``.
    bench
        Gives frames and outcomes.
    happen
        Called with the number of the frame and one of ``STEPS`` after each step.
    """

    link: Link
    idle: Path
    bench: Bench = field(default_factory=PlainBench)
    happen: Callable[[int, str], None] = lambda number, step: None

    def play(self, cycles: int) -> None:
        """Go through so many frames; the link stays open."""
        self._await_rest(" -1")
        for number in range(cycles):
            self.link.send(self.bench.frame(number))
            self.happen(number, "frame sent")
            request = self._await_request()
            self.happen(number, "request came")
            self.link.send(self.bench.outcome(request))
            self.happen(number, "outcome sent")
            self._await_rest(f"{request.id} {number}")
            self.happen(number, "agent at rest")

    def _await_request(self) -> Request:
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            message = self.link.receive(0.1)
            if isinstance(message, Request):
                return message
        raise AssertionError("no request came")

    def _await_rest(self, said: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while self._said() != said:
            assert time.monotonic() < deadline_s, f"the agent said {self._said()!r}, and never {said!r}"
            self.link.receive(0.002)

    def _said(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.idle.read_text()
        return ""


def decided(folder: Path) -> dict[str, list[bytes]]:
    """Give what was decided and found in a session, kind by kind, each message as it is on the wire.

    The number of the record up to which an agent was told differs where a restart left records of
    its own: in its place stands what that record was.
    """
    records = [record for record in read_records(folder) if isinstance(record, Record)]
    messages = {record.number: record.message() for record in records}
    kinds = (Frame, Latents, Suggestion, ModelRevision, Request, Outcome, Score)
    found: dict[str, list[bytes]] = {kind.__name__: [] for kind in kinds}
    for message in messages.values():
        if isinstance(message, kinds):
            found[type(message).__name__].append(_comparable(message, messages))
    return found


def _comparable(message: Any, messages: dict[int, AnyMessage]) -> bytes:
    what = b""
    if isinstance(message, Suggestion | ModelRevision):
        told = messages.get(message.told)
        what = f"{type(told).__name__} {getattr(told, 'id', getattr(told, 'number', None))}".encode()
        message = msgspec.structs.replace(message, told=0)
    return what + b"".join(bytes(part) for part in encode(message))


def differences(one: dict[str, list[bytes]], other: dict[str, list[bytes]], kinds: Iterable[str]) -> int:
    """Count the messages of some kinds that differ between two sessions, missing ones too."""
    count = 0
    for kind in kinds:
        count += sum(a != b for a, b in zip(one[kind], other[kind], strict=False))
        count += abs(len(one[kind]) - len(other[kind]))
    return count
