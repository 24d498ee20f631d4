"""A ``probeloop run`` of a test's own, with the means to look at it and to kill its parts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from deploy.supervise import read_endpoints
from streamer.journal import read_messages
from streamer.messages import AnyMessage, Status
from streamer.wire import Subscriber

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SMALL = """
[simulate.stem]
rows = 192
cols = 192
field_of_view_nm = 2.4
[agent]
dwell_time_us = 20000.0
"""
MODULES = {"streamer": "streamer", "agent": "agents", "instrument": "simulators"}


class WholeRun:
    """The whole service as a user starts it: one command, three processes below it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder / "session"
        self._viewer: Subscriber | None = None
        self._status: Status | None = None
        config = folder / "small.toml"
        config.write_text(SMALL, encoding="utf-8")
        own = ("--no-live", "--config", str(config), "--session-folder", str(self.folder), "--seed", "3")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.local", "run", *own, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=ENVIRONMENT,
        )

    def part(self, name: str) -> psutil.Process | None:
        """Find the process of a part; None while there is none."""
        for child in psutil.Process(self.process.pid).children():
            if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[1:3] == ["-m", MODULES[name]]:
                return child
        return None

    def log(self, name: str) -> str:
        """Give what a part, or the supervisor, has printed."""
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def status(self) -> Status | None:
        """Give the streamer's newest Status, as a viewer sees it; None before the first."""
        endpoints = read_endpoints(self.folder)
        if self._viewer is None and endpoints is not None:
            self._viewer = Subscriber(endpoints.view_address, ("status",))
        while self._viewer is not None and (message := self._viewer.receive(0.0)) is not None:
            assert isinstance(message, Status)
            self._status = message
        return self._status

    def frames(self) -> int:
        """Count the frames that have been analysed."""
        status = self.status()
        return 0 if status is None else status.frames["published"]

    def wait_for_frames(self, more: int) -> None:
        """Wait until so many more frames have been analysed."""
        before = self.frames()
        self.wait_for(f"{more} frames", lambda: self.frames() >= before + more)

    def messages(self, kind: type[AnyMessage]) -> list[tuple[float, AnyMessage]]:
        """Give what the journal holds of a kind, with the times of arrival; once the session is over."""
        return [(at_s, message) for at_s, message in read_messages(self.folder) if isinstance(message, kind)]

    def wait_for(self, what: str, condition: Callable[[], object], seconds: float = 150.0) -> None:
        deadline_s = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline_s, f"{what}: not within {seconds:g} s"
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.05)

    def end(self, seconds: float = 400.0) -> str:
        """Wait until it ends by itself; give what it said."""
        said, _ = self.process.communicate(timeout=seconds)
        return said

    def close(self) -> None:
        """Leave nothing of it behind."""
        if self._viewer is not None:
            self._viewer.close()
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children():
                child.kill()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
