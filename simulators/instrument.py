"""What an instrument is, and how it speaks with the streamer: exactly as a real one does.

Between two frames an instrument does all that it has been asked to; a frame under way is never broken
off. It sends no more frames than the ack window has places for.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from streamer.messages import Bye, Frame, Outcome, OutcomeStatus, Request
from streamer.wire import Link

LISTEN_S = 0.05  # how long one wait may last before ``stop`` is asked again
CATCH_UP_S = 0.5  # an instrument that fell further behind than this does not hurry to make it up


class Instrument(Protocol):
    """Something that gives frames and does what it is asked to."""

    @property
    def name(self) -> str:
        """For the log, such as ``simulated STEM``."""
        ...

    def acquire(self) -> Frame | None:
        """Give the next full frame; None when there are no more.

        ``session`` is empty and ``number`` 0: ``serve`` gives them.
        """
        ...

    def execute(self, request: Request) -> tuple[Outcome, Frame | None]:
        """Do what is asked, or say why not; a sub-scan comes with its frame. Data is never invented."""
        ...

    def truth(self) -> dict[str, NDArray[np.generic]] | None:
        """Give what is known for certain, as arrays for ``truth.npz``; None where nothing is."""
        ...


@dataclass(slots=True, kw_only=True)
class Served:
    """What an instrument did in a session.

    Attributes
    ----------
    first_number
        Number of its first frame.
    frames, sub_scans
        Frames sent.
    outcomes
        Requests answered, done or not.
    refused
        Frames that the streamer did not keep.
    ended
        Why it stopped, for a person.
    """

    first_number: int
    frames: int = 0
    sub_scans: int = 0
    outcomes: int = 0
    refused: int = 0
    ended: str = ""


def serve(
    instrument: Instrument,
    link: Link,
    *,
    speed: float = 1.0,
    max_frames: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    linger_s: float = 1.0,
    silence_s: float = 60.0,
) -> Served:
    """Play an instrument on the wire until it, the streamer or the operator ends it; close the link.

    Parameters
    ----------
    instrument
        Gives the frames and obeys the requests.
    link
        Its connection; it is closed at the end, with a Bye, after the outstanding acks.
    speed
        1 keeps to the instrument's own clock, 2 goes twice as fast, ``math.inf`` does not wait.
    max_frames
        Full frames to send; None is without limit.
    stop
        Asked often; True ends it.
    clock
        Seconds that pass, for the pacing.
    linger_s
        After the last frame, how long requests are still answered.
    silence_s
        How long a full window may wait for an ack.

    Raises
    ------
    ConnectionError
        If no ack comes for ``silence_s`` though frames wait for one.
    ValueError
        If the speed is not above 0.
    """
    if not speed > 0:
        raise ValueError(f"speed is {speed}; it takes a number above 0, or max")
    pace = _Pace(speed, clock)
    service = _Service(instrument, link, pace, max_frames, stop, clock, silence_s)
    try:
        service.play()
        service.linger(linger_s)
        return service.leave()
    except BaseException as error:
        link.close(reason=type(error).__name__, drain_s=0.0)
        raise


class _Pace:
    """When things are due, so that the instrument's clock keeps step with the wall's."""

    def __init__(self, speed: float, clock: Callable[[], float]) -> None:
        self._speed = speed
        self._clock = clock
        self._at_s: float | None = None
        self._due_s: float | None = None

    def due_after_frame(self, acquired_at_s: float) -> float:
        """Say when a frame is due; the first one is at once."""
        step_s = 0.0 if self._at_s is None else max(0.0, acquired_at_s - self._at_s)
        self._at_s = acquired_at_s
        return self._due_in(step_s)

    def due_after_outcome(self, outcome: Outcome) -> float:
        """Say when an outcome is due: after as long as it took, whenever a recording has it from."""
        took_s = max(0.0, outcome.ended_at_s - outcome.started_at_s)
        if self._at_s is not None:
            took_s = min(took_s, max(0.0, outcome.ended_at_s - self._at_s))
            self._at_s += took_s
        return self._due_in(took_s)

    def _due_in(self, step_s: float) -> float:
        if math.isinf(self._speed):
            return -math.inf
        now_s = self._clock()
        last_s = now_s if self._due_s is None else max(self._due_s, now_s - CATCH_UP_S)
        self._due_s = last_s + step_s / self._speed
        return self._due_s


class _Service:
    """One session of one instrument."""

    def __init__(
        self,
        instrument: Instrument,
        link: Link,
        pace: _Pace,
        max_frames: int | None,
        stop: Callable[[], bool],
        clock: Callable[[], float],
        silence_s: float,
    ) -> None:
        self._instrument = instrument
        self._link = link
        self._pace = pace
        self._max_frames = math.inf if max_frames is None else max_frames
        self._stop = stop
        self._clock = clock
        self._silence_s = silence_s
        self._requests: deque[Request] = deque()
        self._bye: Bye | None = None
        self._next_number = link.welcome.next_number
        self._served = Served(first_number=link.welcome.next_number)

    def play(self) -> None:
        """Send frames, and between them do what is asked, until something ends it."""
        while not self.is_over():
            self._answer_all()
            if self._served.frames >= self._max_frames:
                self._served.ended = "all frames sent"
                return
            frame = self._instrument.acquire()
            if frame is None:
                self._served.ended = "end of recording"
                return
            frame = self._numbered(frame)
            self._wait_until(self._pace.due_after_frame(frame.acquired_at_s))
            if self._send(frame):
                self._served.frames += 1

    def linger(self, linger_s: float) -> None:
        """Answer what the last frames still lead to; the time counts from the last ack."""
        quiet_since_s = self._clock()
        while not self.is_over() and self._clock() - quiet_since_s < linger_s:
            waiting = self._link.unacked
            self._listen(LISTEN_S)
            self._answer_all()
            if self._link.unacked < waiting:
                quiet_since_s = self._clock()

    def leave(self) -> Served:
        """Do what was asked before the end, wait for the acks, say Bye and close."""
        if self.is_over():
            self._served.ended = "operator" if self._bye is None else self._bye.reason or "streamer left"
        self._answer_all()
        self._link.close(reason=self._served.ended, drain_s=2.0)
        self._served.refused = len(self._link.refused)
        return self._served

    def is_over(self) -> bool:
        """Whether the streamer or the operator ended it."""
        return self._bye is not None or self._stop()

    def _listen(self, timeout_s: float) -> bool:
        """Take one message; False when none came. The link itself counts the acks."""
        message = self._link.receive(timeout_s)
        if isinstance(message, Request):
            self._requests.append(message)
        elif isinstance(message, Bye):
            self._bye = message
        return message is not None

    def _answer_all(self) -> None:
        while self._listen(0.0):
            pass
        while self._requests:
            self._answer(self._requests.popleft())

    def _answer(self, request: Request) -> None:
        """Execute a request; at the end only what needs no further frame."""
        if request.session != self._link.welcome.session:
            self._tell(_undone(request, "failed", "the request is of another session"))
        elif request.action == "scan" and self.is_over():
            self._tell(_undone(request, "aborted", "the session ended"))
        else:
            outcome, frame = self._instrument.execute(request)
            if frame is not None:
                frame = self._numbered(frame)
                self._wait_until(self._pace.due_after_outcome(outcome))
                if not self._send(frame):
                    self._tell(_undone(request, "aborted", "the session ended"))
                    return
                self._served.sub_scans += 1
                outcome = replace(outcome, frame_number=frame.number)
            else:
                self._wait_until(self._pace.due_after_outcome(outcome))
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        self._link.send(outcome)
        self._served.outcomes += 1

    def _numbered(self, frame: Frame) -> Frame:
        """Give a frame its session and its number, in the order in which frames were acquired."""
        number = self._next_number
        self._next_number += 1
        return replace(frame, session=self._link.welcome.session, number=number)

    def _wait_until(self, due_s: float) -> None:
        """Let the time pass, listening; an end comes through at once."""
        while not self.is_over() and (left_s := due_s - self._clock()) > 0:
            self._listen(min(left_s, LISTEN_S))

    def _send(self, frame: Frame) -> bool:
        """Send a frame when the window has a place; False if the session ended first."""
        waiting_since_s = self._clock()
        while self._link.credit <= 0 and not self.is_over():
            waiting = self._link.unacked
            self._listen(LISTEN_S)
            if self._link.unacked < waiting:
                waiting_since_s = self._clock()
            elif self._clock() - waiting_since_s > self._silence_s:
                raise ConnectionError(
                    f"the streamer acked none of {waiting} frames for {self._silence_s:g} s; see whether "
                    "it still runs, then start the instrument again"
                )
        if self.is_over():
            return False
        self._link.send(frame)
        return True


def _undone(request: Request, status: OutcomeStatus, reason: str) -> Outcome:
    return Outcome(
        session=request.session,
        id=request.id,
        status=status,
        action=request.action,
        reason=reason,
    )
