"""Starts the processes of the service, watches over them, and ends them in order.

The streamer ends a session: it says Bye to the instrument and the agent, writes what it has and
leaves. So an orderly end is one SIGINT to the streamer, and patience.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import msgspec

# Two pools of threads on one machine cost a factor of 100; each process computes on one.
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)
# glibc else raises its threshold to the largest array ever freed, and the agent's arrays, a little larger
# with each measurement, leave holes in the heap: it grew by 40 MB in 500 of them, with this by less than
# 10. Not for the streamer, whose arrays are of one size: page faults would cost it a third of its speed.
STEADY_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 20),
    "MALLOC_ARENA_MAX": "2",
}
STREAMER = "streamer"
AGENT = "agent"
DRAIN_S = 30.0
TERMINATE_S = 5.0
AFTER_STREAMER_S = 10.0
START_S = 180.0  # the first run on a cold disk reads gigabytes of libraries
LOG_LINES_SHOWN = 12
LINE_WIDTH = 500
WRONG_CONFIGURATION = 2  # the exit code; the last line then says what is wrong
FOLLOWED_SIGINT = (-signal.SIGINT, 128 + signal.SIGINT)


class Endpoints(msgspec.Struct, frozen=True):
    """What the streamer writes to ``endpoints.json`` when it is ready."""

    address: str
    view_address: str
    metrics_url: str
    session: str
    pid: int


class ServiceError(RuntimeError):
    """A process of the service ended that should not have; the text is for a person."""


@dataclass(slots=True)
class Child:
    """One process of the service.

    Attributes
    ----------
    name
        As a person knows it: ``streamer``, ``instrument``, ``agent``.
    command
        How it was started.
    process, log
        The process, and the file with all that it prints.
    """

    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    log: Path

    def running(self) -> bool:
        """Say whether it is alive."""
        return self.process.poll() is None

    def gave_up_waiting(self) -> bool:
        """Say whether it has ended because no streamer answered it in time."""
        return self.process.poll() == 1 and "no streamer answers" in last_lines(self.log, 1)

    def failed(self) -> bool:
        """Say whether it has ended in failure; to follow a SIGINT is none."""
        return self.process.poll() not in (None, 0, *FOLLOWED_SIGINT)


def child_environment(*, is_agent: bool = False) -> dict[str, str]:
    """Make the environment of a process: ours, with one thread for each numerical library."""
    memory = STEADY_MEMORY if is_agent else {}
    return {**os.environ, **ONE_THREAD, **memory, "PYTHONUNBUFFERED": "1"}


def free_address() -> str:
    """Find a port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def last_lines(log: Path, count: int = LOG_LINES_SHOWN) -> str:
    """Read the end of a log."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(textwrap.shorten(line, LINE_WIDTH, placeholder=" …") for line in _ending(text, count))


def _ending(text: str, count: int) -> list[str]:
    return text.rstrip().splitlines()[-count:]


def read_endpoints(session_folder: Path) -> Endpoints | None:
    """Read where the streamer listens; None while it is not ready."""
    try:
        return msgspec.json.decode((session_folder / "endpoints.json").read_bytes(), type=Endpoints)
    except (FileNotFoundError, msgspec.DecodeError):  # not there, or half written
        return None


@dataclass(slots=True)
class Service:
    """The processes of one session, each in a process group of its own.

    Ctrl-C in a terminal reaches every process of the foreground group; the children are not in it,
    so that only the supervisor is told and the end can be orderly.

    Parameters
    ----------
    session_folder
        Where the logs go (``logs/*.log``), and where the streamer writes ``endpoints.json``.
    """

    session_folder: Path
    children: list[Child] = field(default_factory=list)
    endpoints: Endpoints | None = None
    interrupted_at_s: float | None = None
    _started_at_s: float | None = None
    _is_late: bool = False
    _streamer_ended_at_s: float | None = None
    _terminated_at_s: float | None = None

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a process; what it prints goes to its log.

        Parameters
        ----------
        name
            ``streamer`` for the one that ends the session; any other for the rest.
        command
            Such as ``(sys.executable, "-m", "streamer")``.
        """
        log = self.session_folder / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_environment(is_agent=name == AGENT),
                process_group=0,
            )
        child = Child(name, tuple(command), process, log)
        self.children.append(child)
        return child

    def start_module(self, name: str, module: str, *arguments: str) -> Child:
        """Start ``python -m module`` with this interpreter."""
        return self.start(name, (sys.executable, "-m", module, *arguments))

    def interrupt(self, now_s: float) -> None:
        """Ask the streamer, once, to end the session in order; while it is not ready, ask everybody."""
        if self.interrupted_at_s is not None:
            return
        self.interrupted_at_s = now_s
        for child in self.children:
            if child.running() and (child.name == STREAMER or self.look_for_endpoints() is None):
                _signal(child, signal.SIGINT)

    def look_for_endpoints(self) -> Endpoints | None:
        """Say where the streamer listens, or did; None while it has never been ready."""
        if self.endpoints is None:
            self.endpoints = read_endpoints(self.session_folder)
        return self.endpoints

    def is_over(self, now_s: float) -> bool:
        """Say whether every process has ended; push on those that outstay.

        Call it a few times a second. A process that fails ends the session in order first.

        Parameters
        ----------
        now_s
            A steady clock, in seconds.
        """
        self._wait_for_streamer(now_s)
        running = [child for child in self.children if child.running()]
        if not running:
            return True
        if any(child.failed() for child in self.children):
            self.interrupt(now_s)
        if self._is_due(now_s, running):
            self._push(now_s, running)
        return False

    def _wait_for_streamer(self, now_s: float) -> None:
        """While the streamer starts, start again whoever gave up on it; give it up when it takes too long."""
        if self.look_for_endpoints() is not None or self.interrupted_at_s is not None:
            return
        if self._started_at_s is None:
            self._started_at_s = now_s
        if now_s - self._started_at_s > START_S:
            self._is_late = True
            self.interrupt(now_s)
        if any(child.name == STREAMER and child.running() for child in self.children):
            for child in [child for child in self.children if child.gave_up_waiting()]:
                self.children.remove(child)
                self.start(child.name, child.command)

    def _is_due(self, now_s: float, running: list[Child]) -> bool:
        """Say whether those that run should have left by themselves by now."""
        if all(child.name != STREAMER for child in running):
            if self._streamer_ended_at_s is None:
                self._streamer_ended_at_s = now_s
            # A streamer that failed said no Bye: nobody else would ever know that it is over.
            patience_s = 0.0 if self._has_streamer_broken_off() else AFTER_STREAMER_S
            return now_s - self._streamer_ended_at_s >= patience_s
        return self.interrupted_at_s is not None and now_s - self.interrupted_at_s > DRAIN_S

    def _has_streamer_broken_off(self) -> bool:
        return any(child.name == STREAMER and child.process.poll() for child in self.children)

    def _push(self, now_s: float, running: list[Child]) -> None:
        if self.endpoints is None:  # nobody was connected yet, so nobody has anything to put in order
            self.kill()
        elif self._terminated_at_s is None:
            self._terminated_at_s = now_s
            for child in running:
                _signal(child, signal.SIGTERM)
        elif now_s - self._terminated_at_s > TERMINATE_S:
            self.kill()

    def kill(self) -> None:
        """End every process at once, and wait until it is gone: nothing stays behind."""
        for child in self.children:
            if child.running():
                _signal(child, signal.SIGKILL)
        for child in self.children:
            child.process.wait()

    def failure(self) -> str | None:
        """Say which process failed, with the end of its log; None when all went well."""
        failed = sorted((c for c in self.children if c.failed()), key=lambda c: c.name != STREAMER)
        if self._is_late:
            failed = [child for child in self.children if child.name == STREAMER]
        if not failed:
            return None
        child = failed[0]
        code = child.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self._is_late:
            how = f"was not ready within {START_S:g} s"
        if code == WRONG_CONFIGURATION:
            return f"the {child.name} refused to start: {last_lines(child.log, 1)}\n(log: {child.log})"
        words = last_lines(child.log) or "(it printed nothing)"
        return f"the {child.name} {how}; the end of {child.log}:\n{words}"


def _signal(child: Child, number: signal.Signals) -> None:
    """Send a signal to a child and to what it started, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, number)


class Interrupts:
    """Counts Ctrl-C and SIGTERM while it is entered, instead of letting them end this process."""

    def __init__(self) -> None:
        self.count = 0

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    def __enter__(self) -> Interrupts:
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def watch(
    service: Service,
    interrupts: Interrupts,
    tick: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until the session is over; the first Ctrl-C ends it in order, the second at once.

    Parameters
    ----------
    service
        The started processes.
    interrupts
        Entered before the processes were started.
    tick
        Called again and again; it shows the state and takes a fraction of a second.
    clock
        A steady clock, in seconds.

    Raises
    ------
    ServiceError
        If a process failed; the text holds the end of its log.
    """
    try:
        while not service.is_over(clock()):
            if interrupts.count >= 2:
                service.kill()
                raise ServiceError("stopped at once by the second Ctrl-C; what was acked is in the journal")
            if interrupts.count == 1:
                service.interrupt(clock())
            tick()
    finally:
        service.kill()
    if interrupts.count and service.endpoints is None:
        return  # stopped before it had begun: how the processes took it is of no interest
    failure = service.failure()
    if failure is not None:
        raise ServiceError(failure)
