"""Starts the processes of the service, watches over them, starts them again, and ends them in order.

A process that dies is started again by its own command: the streamer goes on from its journal, on the
addresses that the others know, and they go on where they were. One that dies again and again ends the
session in order instead.

The streamer ends a session: it says Bye to the instrument and the agent, writes what it has and
leaves. So an orderly end is one SIGINT to the streamer, and patience.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
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
# 10.
STEADY_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 20),
    "MALLOC_ARENA_MAX": "2",
}
# Streamer and instrument handle arrays of one size, again and again. What glibc gives back to the system for
# each of them costs a page fault for every 4 kB of the next: a third of the speed of the wire.
REUSED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_ARENA_MAX": "2",
}
STREAMER = "streamer"
AGENT = "agent"
FINE_TUNER = "fine-tuner"
DRAIN_S = 30.0
TERMINATE_S = 5.0
AFTER_STREAMER_S = 10.0
START_S = 600.0  # the first run reads gigabytes of libraries, and compiles for two minutes on a busy machine
MOST_RESTARTS = 5
RESTARTS_WITHIN_S = 60.0
# Below the ports that the system gives to outgoing connections: who connects again and again to a port
# of those that nobody holds is in the end connected to itself, and then the streamer cannot have it back.
PORTS = range(20_000, 30_000)
LOG_LINES_SHOWN = 12
LINE_WIDTH = 500
WRONG_CONFIGURATION = 2  # the exit code; the last line then says what is wrong
FOLLOWED_SIGINT = (-signal.SIGINT, 128 + signal.SIGINT)
PUSHED = (-signal.SIGTERM, -signal.SIGKILL)


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
    is_restarted
        Whether it is one that was started again.
    """

    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    log: Path
    is_restarted: bool = False

    def running(self) -> bool:
        """Say whether it is alive."""
        return self.process.poll() is None

    @property
    def is_optional(self) -> bool:
        """Say whether the session goes on as well without it: it is not started again, nor waited for."""
        return self.name == FINE_TUNER

    def gave_up_waiting(self) -> bool:
        """Say whether it has ended because no streamer answered it in time."""
        return self.process.poll() == 1 and "no streamer answers" in last_lines(self.log, 1)

    def failed(self) -> bool:
        """Say whether it has ended in failure; to follow a SIGINT is none."""
        return not self.is_optional and self.process.poll() not in (None, 0, *FOLLOWED_SIGINT)

    def died(self) -> bool:
        """Say whether it has ended otherwise than by its own will or for a wrong configuration."""
        # What has run before was not wrongly configured: its port or its disk is not to be had right now.
        refused = self.process.poll() == WRONG_CONFIGURATION and not self.is_restarted
        return self.process.poll() not in (None, 0) and not refused and not self.is_optional


@dataclass(frozen=True, slots=True)
class Restart:
    """A process was started again.

    Attributes
    ----------
    at_s
        On the clock of ``Service.is_over``.
    name, how
        Which one, and how it had ended, such as ``killed by SIGKILL``.
    """

    at_s: float
    name: str
    how: str

    def __str__(self) -> str:
        return f"restarted {self.name} ({self.how})"


class Patience:
    """How often a process may die: so many times within so many seconds."""

    def __init__(self, most: int = MOST_RESTARTS, within_s: float = RESTARTS_WITHIN_S) -> None:
        self._within_s = within_s
        self._at_s: deque[float] = deque(maxlen=most)

    def allows(self, now_s: float) -> bool:
        """Say whether one more death may be mended, and count it if so."""
        if len(self._at_s) == self._at_s.maxlen and now_s - self._at_s[0] <= self._within_s:
            return False
        self._at_s.append(now_s)
        return True


def how_it_ended(code: int) -> str:
    """Say in words how a process with this return code ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def child_environment(*, is_agent: bool = False) -> dict[str, str]:
    """Make the environment of a process: ours, with one thread for each numerical library."""
    memory = STEADY_MEMORY if is_agent else REUSED_MEMORY
    return {**os.environ, **ONE_THREAD, **memory, "PYTHONUNBUFFERED": "1"}


def free_address(taken: Collection[str] = ()) -> str:
    """Find a port of this machine that nobody uses now, and that is none of the ``taken`` addresses."""
    for port in random.sample(PORTS, len(PORTS)):
        address = f"tcp://127.0.0.1:{port}"
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if address not in taken:
                return address
    raise OSError(f"no port of {PORTS[0]} to {PORTS[-1]} is free; say one as streamer.hub.bind")


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

    Attributes
    ----------
    endpoints
        Where the streamer listens, or did last; None while it has never been ready.
    restarts
        Which processes were started again, in order.
    """

    session_folder: Path
    children: list[Child] = field(default_factory=list)
    endpoints: Endpoints | None = None
    interrupted_at_s: float | None = None
    restarts: list[Restart] = field(default_factory=list)
    _patience: dict[str, Patience] = field(default_factory=dict)
    _given_up: Child | None = None
    _awaits_streamer: bool = True
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
        """Ask the streamer, once, to end the session in order; while it is not ready, ask everybody.

        One that is just being started again is asked when it is ready: only then can it keep what the
        others still hold.
        """
        if self.interrupted_at_s is not None:
            return
        self.interrupted_at_s = now_s
        was_ready = self.look_for_endpoints() is not None
        for child in self.children:
            is_meant = child.name == STREAMER and not self._awaits_streamer if was_ready else True
            if child.running() and is_meant:
                _signal(child, signal.SIGINT)

    def look_for_endpoints(self) -> Endpoints | None:
        """Say where the streamer listens, or did; None while it has never been ready."""
        if self._awaits_streamer:
            found = read_endpoints(self.session_folder)
            self.endpoints = found or self.endpoints
            self._awaits_streamer = found is None
        return self.endpoints

    def is_streamer_ready(self) -> bool:
        """Say whether the streamer serves, and is not just being started."""
        self.look_for_endpoints()
        return not self._awaits_streamer

    def is_over(self, now_s: float) -> bool:
        """Say whether every process has ended; start those again that died, push on those that outstay.

        Call it a few times a second. What cannot be mended ends the session in order first.

        Parameters
        ----------
        now_s
            A steady clock, in seconds.
        """
        self._wait_for_streamer(now_s)
        self._mend(now_s)
        running = [child for child in self.children if child.running()]
        if not running:
            return True
        if self._given_up is not None or any(child.failed() for child in self.children):
            self.interrupt(now_s)
        if self._is_due(now_s, running):
            self._push(now_s, running)
        return False

    def _wait_for_streamer(self, now_s: float) -> None:
        """While the streamer starts, start again whoever gave up on it; give it up when it takes too long."""
        if not self._awaits_streamer:
            return
        if self.is_streamer_ready():
            self._pass_on_interrupt(now_s)
            return
        if self._started_at_s is None:
            self._started_at_s = now_s
        if self.interrupted_at_s is not None:
            return
        if now_s - self._started_at_s > START_S:
            self._is_late = True
            self.interrupt(now_s)
        if any(child.name == STREAMER and child.running() for child in self.children):
            for child in [child for child in self.children if child.gave_up_waiting()]:
                self._start_again(child)

    def _pass_on_interrupt(self, now_s: float) -> None:
        """Ask a streamer that has just been started again for the end that was wanted meanwhile."""
        if self.interrupted_at_s is not None:
            self.interrupted_at_s = now_s
            for child in self.children:
                if child.name == STREAMER and child.running():
                    _signal(child, signal.SIGINT)

    def _mend(self, now_s: float) -> None:
        """Start again what died, as long as the session is to go on."""
        if self.interrupted_at_s is not None or self._given_up is not None or self._has_streamer_ended():
            return
        for child in sorted((c for c in self.children if c.died()), key=lambda c: c.name != STREAMER):
            if not self._patience.setdefault(child.name, Patience()).allows(now_s):
                self._given_up = child
                self._note(f"{child.name} died again ({_how(child)}); the session is ended")
                return
            restart = Restart(now_s, child.name, _how(child))
            if child.name == STREAMER:  # the file tells when the new one is ready, so the old one's must go
                (self.session_folder / "endpoints.json").unlink(missing_ok=True)
                self._awaits_streamer, self._started_at_s = True, now_s
            fresh = self._start_again(child)
            self.restarts.append(restart)
            self._note(f"{restart}, process {child.process.pid} is now {fresh.process.pid}")

    def _start_again(self, child: Child) -> Child:
        self.children.remove(child)
        fresh = self.start(child.name, child.command)
        fresh.is_restarted = True
        return fresh

    def _note(self, text: str) -> None:
        path = self.session_folder / "logs" / "supervisor.log"
        # On a full disk the restart itself matters more; the live view and ``restarts`` tell of it, too.
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now().astimezone().isoformat(timespec='milliseconds')} {text}\n")

    def _has_streamer_ended(self) -> bool:
        """Say whether the streamer ended in order; one that died over its files is to make them again."""
        return any(child.name == STREAMER and child.process.poll() == 0 for child in self.children)

    def _is_due(self, now_s: float, running: list[Child]) -> bool:
        """Say whether those that run should have left by themselves by now."""
        if all(child.name != STREAMER for child in running):
            if self._streamer_ended_at_s is None:
                self._streamer_ended_at_s = now_s
            # A streamer that failed said no Bye: nobody else would ever know that it is over.
            is_waited_for = any(not child.is_optional for child in running)
            patience_s = AFTER_STREAMER_S if is_waited_for and not self._has_streamer_broken_off() else 0.0
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
        failed = sorted((c for c in self.children if self._is_to_blame(c)), key=lambda c: c.name != STREAMER)
        if self._is_late:
            failed = [child for child in self.children if child.name == STREAMER]
        if not failed:
            return None
        child = failed[0]
        code = child.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if child is self._given_up:
            how += f", after {MOST_RESTARTS} restarts within {RESTARTS_WITHIN_S:g} s"
        if self._is_late:
            how = f"was not ready within {START_S:g} s"
        if code == WRONG_CONFIGURATION:
            return f"the {child.name} refused to start: {last_lines(child.log, 1)}\n(log: {child.log})"
        words = last_lines(child.log) or "(it printed nothing)"
        return f"the {child.name} {how}; the end of {child.log}:\n{words}"

    def _is_to_blame(self, child: Child) -> bool:
        """Say whether a child failed; not one that was started again too late to hear of the end."""
        was_pushed = self._terminated_at_s is not None and child.process.poll() in PUSHED
        is_excused = was_pushed and child.is_restarted and self._has_streamer_ended()
        return child is self._given_up or (child.failed() and not is_excused)


def _how(child: Child) -> str:
    return how_it_ended(child.process.returncode)


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
