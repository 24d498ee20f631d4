"""What an instrument is, and how it speaks with the streamer: exactly as a real one does.

Between two scans an instrument does all that it has been asked to, in order; what its queue has no place
for it refuses. It sends no more frames, or batches of patches, than the ack window has places for. It
parks its beam at once when it is told to, and by itself when the streamer falls silent: a beam that
nobody watches over only harms the specimen. What was under way then is broken off and never delivered
in part.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from streamer.link import Link
from streamer.messages import Bye, Command, Frame, Outcome, OutcomeStatus, Patches, Request

Acquired = TypeVar("Acquired", bound=Frame | Patches)

LISTEN_S = 0.05  # how long one wait may last before ``stop`` is asked again
FINE_S = 0.002  # a socket waits in whole milliseconds: the last two are slept
CATCH_UP_S = 0.5  # an instrument that fell further behind than this does not hurry to make it up
SILENT_S = 2.0  # a streamer that says nothing for so long watches over nothing
GIVE_UP_S = 600.0
REMEMBERED = 4096  # requests; one that comes again is younger than that many others
QUEUE_LENGTH = 64  # requests that wait: more than the envelope grants at once


class Instrument(Protocol):
    """Something that gives frames and does what it is asked to.

    One whose detector gives a window at every place of a scan, as a 4D-STEM does, gives ``Patches`` in
    batches, and after the last batch of a scan its frame.
    """

    @property
    def name(self) -> str:
        """For the log, such as ``simulated STEM``."""
        ...

    @property
    def batches_waiting(self) -> int:
        """Batches of sub-scans that the next calls of ``acquire`` give, before anything else."""
        ...

    def acquire(self) -> Frame | Patches | None:
        """Give the next full frame, or the next batch of a scan; None when there are no more.

        ``session`` is empty and ``number`` 0: ``serve`` gives them.

        Raises
        ------
        RuntimeError
            While the beam is parked.
        """
        ...

    def execute(self, request: Request) -> tuple[Outcome, Frame | None]:
        """Do what is asked, or say why not; a sub-scan comes with its frame. Data is never invented.

        While the beam is parked it is ``aborted``.
        """
        ...

    def park(self) -> None:
        """Blank or park the beam at once: the specimen gets no dose until ``go``."""
        ...

    def go(self, parked_s: float) -> None:
        """Take the beam back to work.

        Parameters
        ----------
        parked_s
            Time that passed meanwhile, for an instrument whose time is simulated.
        """
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
    frames, sub_scans, batches
        Full frames, sub-scans and batches of patches sent.
    broken_off
        Frames and batches that were begun and not sent: the beam was parked, they were cancelled, or the
        session ended. Their numbers stay empty.
    outcomes
        Requests answered, done or not.
    refused
        Frames and batches that the streamer did not keep.
    parked
        How often the beam was parked.
    ended
        Why it stopped, for a person.
    """

    first_number: int
    frames: int = 0
    sub_scans: int = 0
    batches: int = 0
    broken_off: int = 0
    outcomes: int = 0
    refused: int = 0
    parked: int = 0
    ended: str = ""


def serve(
    instrument: Instrument,
    link: Link,
    *,
    speed: float = 1.0,
    max_frames: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    linger_s: float = 1.0,
    give_up_s: float = GIVE_UP_S,
    queue_length: int = QUEUE_LENGTH,
    cuts_s: Mapping[int, float] | None = None,
) -> Served:
    """Play an instrument on the wire until it, the streamer or the operator ends it; close the link.

    The beam is parked in the end, however it comes.

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
    say
        Told in a few words when the beam is parked and when it goes on.
    clock, sleep
        Seconds that pass, and how they are passed, for the pacing.
    linger_s
        After the last frame, how long requests are still answered.
    give_up_s
        How long a silent streamer is waited for, with the beam parked.
    queue_length
        How many requests may wait; the next one is refused.
    cuts_s
        Before which full frames the link is lost, counted from 0, and for how many seconds of the wall's
        clock: to show what then happens.

    Raises
    ------
    ConnectionError
        If the streamer says nothing for ``give_up_s``.
    ValueError
        If the speed is not above 0.
    """
    if not speed > 0:
        raise ValueError(f"speed is {speed}; it takes a number above 0, or max")
    service = _Service(
        instrument,
        link,
        _Pace(speed, clock),
        max_frames,
        stop,
        say,
        clock,
        sleep,
        give_up_s,
        queue_length,
        dict(cuts_s or {}),
    )
    instrument.go(0.0)
    try:
        service.play()
        service.linger(linger_s)
        return service.leave()
    except BaseException as error:
        link.close(reason=type(error).__name__, drain_s=0.0)
        raise
    finally:
        instrument.park()


class _Pace:
    """When things are due, so that the instrument's clock keeps step with the wall's."""

    def __init__(self, speed: float, clock: Callable[[], float]) -> None:
        self._speed = speed
        self._clock = clock
        self._at_s: float | None = None
        self._due_s: float | None = None

    def due_after_frame(self, frame: Frame | Patches) -> float:
        """Say when a frame, or a batch, is due; the first one is at once."""
        if self._at_s is not None:
            step_s = max(0.0, frame.acquired_at_s - self._at_s)
        elif self._due_s is not None:  # the first one after the beam was parked
            places = math.prod(frame.geometry.shape) if isinstance(frame, Frame) else len(frame.windows)
            step_s = places * frame.dwell_time_us * 1e-6
        else:
            step_s = 0.0
        self._at_s = frame.acquired_at_s
        return self._due_in(step_s)

    def due_after_outcome(self, outcome: Outcome) -> float:
        """Say when an outcome is due: after as long as it took, whenever a recording has it from."""
        took_s = max(0.0, outcome.ended_at_s - outcome.started_at_s)
        if self._at_s is not None:
            took_s = min(took_s, max(0.0, outcome.ended_at_s - self._at_s))
            self._at_s += took_s
        return self._due_in(took_s)

    def resume(self) -> float:
        """Begin anew after a break; say by how much the instrument's clock is behind, in its seconds."""
        self._at_s = None
        if self._due_s is None or math.isinf(self._speed):
            return 0.0
        behind_s = max(0.0, self._clock() - self._due_s)
        self._due_s += behind_s
        return behind_s * self._speed

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
        say: Callable[[str], None],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        give_up_s: float,
        queue_length: int,
        cuts_s: dict[int, float],
    ) -> None:
        self._instrument = instrument
        self._link = link
        self._pace = pace
        self._max_frames = math.inf if max_frames is None else max_frames
        self._stop = stop
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._give_up_s = give_up_s
        self._queue_length = queue_length
        self._cuts_s = cuts_s
        self._places_left = 0  # of a scan whose patches are under way
        self._unwanted: set[str] = set()  # sub-scans that were broken off: their patches are dropped
        self._requests: deque[Request] = deque()
        self._known: dict[str, None] = {}
        self._under_way: str | None = None
        self._is_cancelled = False
        self._command: str | None = None  # why we were told to park; None if we were not
        self._is_unheard = False
        self._is_parked = False
        self._bye: Bye | None = None
        self._next_number = link.welcome.next_number
        self._served = Served(first_number=link.welcome.next_number)

    # -- the course of a session ---------------------------------------------------------------

    def play(self) -> None:
        """Send frames, and between them do what is asked, until something ends it."""
        while not self.is_over():
            self._hear_all()
            if not self._places_left:
                self._answer_all()
            if self._is_parked:
                self._listen(LISTEN_S)
                continue
            if self._served.frames >= self._max_frames and not self._instrument.batches_waiting:
                self._served.ended = "all frames sent"
                return
            self._cut_link()
            item = self._instrument.acquire()
            if item is None:
                self._served.ended = "end of recording"
                return
            self._deliver(self._numbered(item))

    def _deliver(self, item: Frame | Patches) -> None:
        """Send what was acquired when it is due; what is left of a scan that was broken off is not sent."""
        if item.request_id is None:  # an instrument gives what waits of sub-scans first
            self._unwanted.clear()
        elif item.request_id in self._unwanted:
            self._served.broken_off += 1
            return
        self._places_left = self._left_after(item)
        if not (self._wait_until(self._pace.due_after_frame(item)) and self._send(item)):
            self._served.broken_off += 1
        elif isinstance(item, Frame):
            self._served.frames += 1
        else:
            self._served.batches += 1

    def _left_after(self, item: Frame | Patches) -> int:
        """Say how many places of a scan are still to come: requests wait until it is over."""
        if isinstance(item, Frame):
            return 0
        if item.request_id is not None:  # the rest of a sub-scan, which was made at once
            return self._places_left
        return max(0, (self._places_left or math.prod(item.geometry.shape)) - len(item.windows))

    def _cut_link(self) -> None:
        """Lose the link where that was asked for."""
        seconds = self._cuts_s.pop(self._served.frames, None)
        if seconds is not None:
            self._say(f"the link is lost for {seconds:g} s, as configured")
            self._link.cut(seconds)

    def linger(self, linger_s: float) -> None:
        """Answer what the last frames still lead to; the time counts from the last ack, or the last park."""
        quiet_since_s = self._clock()
        while not self.is_over() and self._clock() - quiet_since_s < linger_s:
            waiting = self._link.unacked
            self._listen(LISTEN_S)
            self._answer_all()
            self._give_what_waits()
            if self._link.unacked < waiting or self._is_parked:
                quiet_since_s = self._clock()

    def _give_what_waits(self) -> None:
        """Give the patches of sub-scans that were asked for after the last frame."""
        while self._instrument.batches_waiting and not self._is_parked and not self.is_over():
            item = self._instrument.acquire()
            if item is not None:
                self._deliver(self._numbered(item))

    def leave(self) -> Served:
        """Do what was asked before the end, wait for the acks, say Bye and close."""
        if self.is_over():
            self._served.ended = "operator" if self._bye is None else self._bye.reason or "streamer left"
        self._answer_all()
        self._give_back_all("the session ended while the beam was parked")
        self._link.close(reason=self._served.ended, drain_s=2.0)
        self._served.refused = len(self._link.refused)
        return self._served

    def is_over(self) -> bool:
        """Whether the streamer or the operator ended it."""
        return self._bye is not None or self._stop()

    # -- what comes in -------------------------------------------------------------------------

    def _listen(self, timeout_s: float) -> bool:
        """Take one message; False when none came. The link itself counts the acks."""
        message = self._link.receive(timeout_s)
        if isinstance(message, Request):
            self._take(message)
        elif isinstance(message, Command):
            self._obey(message)
        elif isinstance(message, Bye):
            self._bye = message
        if message is None:  # all that came is read: what is silent now is silent
            self._mind_silence(self._link.silent_s)
        return message is not None

    def _take(self, request: Request) -> None:
        """Put a request in the row, once."""
        if request.id in self._known:
            return
        self._known[request.id] = None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        if len(self._requests) >= self._queue_length:
            reason = f"{self._queue_length} requests wait already; ask again when some are answered"
            self._tell(_undone(request, "refused", reason))
            return
        self._requests.append(request)

    def _obey(self, command: Command) -> None:
        if command.action == "cancel":
            self._cancel(command.id, command.reason)
        else:
            self._command = (command.reason or "as told") if command.action == "park" else None
            self._park_or_go()

    def _cancel(self, identifier: str, reason: str) -> None:
        """Give back a request, or every one; what is under way breaks itself off."""
        if self._under_way is not None and identifier in ("", self._under_way):
            self._is_cancelled = True
        self._give_back_all(f"cancelled: {reason}" if reason else "cancelled", identifier)

    def _give_back_all(self, reason: str, identifier: str = "") -> None:
        waiting, self._requests = self._requests, deque()
        for request in waiting:
            if identifier in ("", request.id):
                self._tell(_undone(request, "aborted", reason))
            else:
                self._requests.append(request)

    def _mind_silence(self, silent_s: float) -> None:
        if silent_s > self._give_up_s:
            raise ConnectionError(
                f"the streamer has said nothing for {silent_s:.0f} s, and the beam is parked; see whether "
                "it still runs, then start the instrument again"
            )
        self._is_unheard = silent_s > SILENT_S
        self._park_or_go()

    def _park_or_go(self) -> None:
        """Have the beam where it must be: parked by command or for want of a streamer, else at work."""
        is_to_park = self._is_unheard or self._command is not None
        if is_to_park == self._is_parked:
            return
        self._is_parked = is_to_park
        if is_to_park:
            self._instrument.park()
            self._served.parked += 1
            self._say(f"beam parked: {self._command or f'the streamer is silent for {SILENT_S:g} s'}")
        else:
            self._instrument.go(self._pace.resume())
            self._say("beam at work again")

    # -- what is done --------------------------------------------------------------------------

    def _hear_all(self) -> None:
        while self._listen(0.0):
            pass

    def _answer_all(self) -> None:
        self._hear_all()
        while self._requests and not self._is_parked:
            self._answer(self._requests.popleft())

    def _answer(self, request: Request) -> None:
        """Execute a request; at the end only what needs no further frame."""
        if request.session != self._link.welcome.session:
            self._tell(_undone(request, "failed", "the request is of another session"))
        elif request.action == "scan" and self.is_over():
            self._tell(_undone(request, "aborted", "the session ended"))
        else:
            self._execute(request)

    def _execute(self, request: Request) -> None:
        outcome, frame = self._instrument.execute(request)
        if frame is not None:
            frame = self._numbered(frame)
            outcome = replace(outcome, frame_number=frame.number)
        began_s, due_s = self._clock(), self._pace.due_after_outcome(outcome)
        self._under_way, self._is_cancelled = request.id, False
        is_whole = self._wait_until(due_s)
        self._under_way = None
        if not is_whole:
            self._served.broken_off += frame is not None
            self._unwanted.add(request.id)
            why = "the beam was parked" if self._is_parked else "cancelled"
            self._tell(_broken_off(outcome, (self._clock() - began_s) / (due_s - began_s), why))
        elif frame is not None and not self._send(frame):
            self._served.broken_off += 1
            self._tell(_undone(request, "aborted", "the session ended"))
        else:
            self._served.sub_scans += frame is not None
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        self._link.send(outcome)
        self._served.outcomes += 1

    def _numbered(self, item: Acquired) -> Acquired:
        """Give a frame, or a batch, its session and its number, in the order in which they were acquired."""
        number = self._next_number
        self._next_number += 1
        return replace(item, session=self._link.welcome.session, number=number)

    def _wait_until(self, due_s: float) -> bool:
        """Let the time pass, listening; False if what is under way was broken off.

        An end comes through at once, and breaks nothing off.
        """
        while (left_s := due_s - self._clock()) > 0 and not self.is_over():
            if left_s > FINE_S:
                self._listen(min(left_s - FINE_S, LISTEN_S))
            else:
                self._sleep(left_s)
            if self._is_parked or (self._under_way is not None and self._is_cancelled):
                return False
        return True

    def _send(self, frame: Frame | Patches) -> bool:
        """Send a frame, or a batch, when the window has a place; False if the session ended first."""
        while self._link.credit <= 0 and not self.is_over():
            self._listen(LISTEN_S)
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


def _broken_off(outcome: Outcome, share: float, reason: str) -> Outcome:
    """Keep of an outcome where the beam was and the share of the dose that it gave; no data is whole."""
    took_s = (outcome.ended_at_s - outcome.started_at_s) * share
    return replace(
        outcome,
        status="aborted",
        reason=reason,
        dose_e=outcome.dose_e * min(1.0, share),
        ended_at_s=outcome.started_at_s + took_s,
        spectrum=None,
        frame_number=None,
    )
