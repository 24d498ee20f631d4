"""Processes that the tests kill: real streamers and agents, forked from one that has everything imported.

A life takes 30 ms to begin instead of a second, so that hundreds of kills fit into a test. The forked
process runs the same ``serve`` as ``python -m streamer`` and ``python -m agents`` do.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

ROOT = Path(__file__).parents[3]
PATIENCE_S = 20.0
_PR_SET_PDEATHSIG = 1


# -- the tests' side -----------------------------------------------------------------------------


class Nursery:
    """Starts lives, and ends with all of them.

    Parameters
    ----------
    modules
        Imported beforehand, besides what every life needs.
    """

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.process.faults.lives", *modules],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, kind: str, folder: Path, **options: Any) -> Life:
        """Start ``streamer``, ``analysing streamer`` or ``agent``; it prints to ``<folder>/<kind>.log``."""
        folder.mkdir(parents=True, exist_ok=True)
        pid = self._ask({"start": kind, "folder": str(folder), "options": options})
        return Life(pid, folder, self._ask)

    def _ask(self, question: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery is gone"
        return int(json.loads(answer))

    def close(self) -> None:
        """End it; the system ends what it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


@dataclass
class Life:
    """One process, from its start to its end."""

    pid: int
    folder: Path
    ask: Callable[[dict[str, Any]], int]
    code: int | None = None

    def kill(self) -> int:
        """End it as ``kill -9`` does, and wait until it is gone; return its exit code.

        It is 0 for one that had ended in good order by itself.
        """
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; return its exit code, -N for signal N."""
        if self.code is None:
            self.code = self.ask({"wait": self.pid})
        return self.code

    def address(self) -> str:
        """Wait until a streamer serves; say where."""
        return str(self.endpoints()["address"])

    def endpoints(self) -> dict[str, Any]:
        """Wait until a streamer serves; say where and what."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(FileNotFoundError):
                endpoints: dict[str, Any] = json.loads((self.folder / "endpoints.json").read_text())
                if endpoints["pid"] == self.pid:
                    return endpoints
            time.sleep(0.002)
        raise AssertionError(f"no streamer came up:\n{self.log()}")

    def log(self) -> str:
        """Give the end of what the streamer printed."""
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in self.folder.glob("*.log"))

    def rss_mb(self) -> float:
        """Say how much memory it has now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def descriptors(self) -> int:
        """Say how many files and sockets it has open now."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


# -- the other side ------------------------------------------------------------------------------


def _streamer(folder: Path, options: dict[str, Any]) -> None:
    """Serve a session, as ``python -m streamer`` does, with the pipeline that only counts."""
    from streamer.__main__ import serve
    from streamer.config import StreamerConfig
    from tests.process.faults.counting import Counting

    counting = Counting(**options.pop("counting", {}))
    serve(msgspec.convert(options, StreamerConfig), counting, folder)  # type: ignore[arg-type]


def _analysing(folder: Path, options: dict[str, Any]) -> None:
    """Serve a session with the real pipeline."""
    from streamer.__main__ import serve
    from streamer.config import StreamerConfig
    from streamer.pipeline import Pipeline

    settings = msgspec.convert(options, StreamerConfig)
    pipeline = Pipeline.build(settings.pipeline)
    pipeline.warm_up()
    serve(settings, pipeline, folder)


def _bulk(folder: Path, options: dict[str, Any]) -> None:
    """Serve a session whose journal fills quickly: the real analysis sees the first frame only."""
    from streamer.__main__ import serve
    from streamer.config import StreamerConfig
    from streamer.pipeline import Pipeline
    from tests.process.faults.counting import OnceOnly

    settings = msgspec.convert(options, StreamerConfig)
    pipeline = Pipeline.build(settings.pipeline)
    serve(settings, OnceOnly(pipeline), folder)  # type: ignore[arg-type]


def _instrument(folder: Path, options: dict[str, Any]) -> None:
    """Send frames, as many as are taken, for ever."""
    from streamer.link import Link
    from tests.process.faults.sessions import Feeder

    feeder = Feeder(Link(options["connect"], role="instrument", name="instrument"))
    feeder.sent = feeder.link.welcome.next_number
    while True:
        feeder.turn()


def _agent(folder: Path, options: dict[str, Any]) -> None:
    """Serve as an agent; each time it has nothing left to do it says so in ``<folder>/idle``."""
    from agents.config import AgentConfig
    from agents.policies import make_agent
    from agents.serve import serve
    from streamer.link import Link
    from tests.process.faults.watched import Watched

    agent = Watched(make_agent(msgspec.convert(options["agent"], AgentConfig)), folder / "idle")
    with Link(options["connect"], role="agent", name=f"agent {agent.policy}", timeout_s=PATIENCE_S) as link:
        serve(agent, link, lambda: False, checkpoint_every=options.get("checkpoint_every", 64))


_KINDS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "streamer": _streamer,
    "analysing streamer": _analysing,
    "bulk streamer": _bulk,
    "instrument": _instrument,
    "agent": _agent,
}


def _live(kind: str, folder: Path, options: dict[str, Any]) -> None:
    """Be a life: never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        log = os.open(folder / f"{kind}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for here, there in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(here, there)
        os.close(log)
        os.close(nothing)
        faulthandler.enable()
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
        _KINDS[kind](folder, options)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _wait_for(pid: int) -> int:
    """Wait for the end of a life; one that does not end is made to say where it stands."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.002)


def main(modules: list[str]) -> None:
    """Do what the lines on standard input ask for, until they end."""
    for name in ("streamer.__main__", "agents.serve", "agents.policies", *modules):
        importlib.import_module(name)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer = _wait_for(question["wait"])
        else:
            answer = os.fork()
            if answer == 0:
                _live(question["start"], Path(question["folder"]), question["options"])
        print(answer, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
