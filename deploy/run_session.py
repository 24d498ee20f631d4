"""One session from the empty folder to the report: streamer, instrument and agent, watched."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.live import Live

from deploy.latent_course import WORDS, Kind, LatentCourse, kind_of_sites, latest
from deploy.live_view import SLOW_START_S, Around, clock_text, line, number_text, render, starting
from deploy.supervise import AGENT, FINE_TUNER, STREAMER, Interrupts, Service, free_address, watch
from deploy.tables import to_toml
from streamer.messages import Latents, Status

if TYPE_CHECKING:
    from streamer.wire import Subscriber

INSTRUMENT = "instrument"
LINE_EVERY_S = 5.0
LISTEN_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes
    ----------
    folder
        The session folder; it must not exist yet, or be empty.
    tables
        The configuration as tables, already checked.
    instrument
        Arguments of ``python -m simulators`` but for the address, which is put behind them.
    has_agent
        Whether one chooses where to measure; without it only an operator asks.
    """

    folder: Path
    tables: Mapping[str, Any]
    instrument: Sequence[str]
    has_agent: bool = True


def default_folder(now: datetime, parent: Path = Path("sessions")) -> Path:
    """Name a folder for a session that starts now, such as ``sessions/2026-01-31T14-05-09-3f2a``."""
    return parent / f"{now:%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(2)}"


def prepare_folder(folder: Path) -> None:
    """Make the session folder.

    Raises
    ------
    OSError
        If it is not empty, or cannot be made; the text says what would do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = next(folder.iterdir(), None) is None
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be made a session folder: {error.strerror}; choose another --session-folder"
        ) from None
    if not is_empty:
        raise OSError(
            f"{folder}: not empty, and a session never overwrites another; choose another --session-folder"
        )


def choose_addresses(tables: Mapping[str, Any]) -> tuple[str, str]:
    """Say where the streamer shall listen to instruments and agents, and where to viewers.

    What the configuration fixes is kept, else it is a free port: so all can start at once, and a streamer
    that was started again is found where the first one was.
    """
    hub = tables.get("streamer", {}).get("hub", {})
    chosen: list[str] = []
    for name in ("bind", "view_bind"):
        fixed = str(hub.get(name, "tcp://127.0.0.1:0"))
        chosen.append(free_address(chosen) if fixed.endswith(":0") else fixed)
    return chosen[0], chosen[1]


def run_session(plan: Plan, console: Console, *, is_live: bool) -> None:
    """Run a session to its end, and make its report.

    Parameters
    ----------
    plan
        What to run.
    console
        Where to show it.
    is_live
        Draw a screen that changes; else print a line now and then.

    Raises
    ------
    OSError
        If the folder cannot be used.
    ServiceError
        If a process failed; the report is made all the same.
    """
    prepare_folder(plan.folder)
    config = plan.folder / "config.toml"
    config.write_text(to_toml(plan.tables), encoding="utf-8")
    service = Service(plan.folder)
    try:
        with Interrupts() as interrupts:
            _start(service, plan, choose_addresses(plan.tables), config)
            kind = kind_of_plan(plan)
            with _view(service, console, interrupts, kind, is_live=is_live) as tick:
                watch(service, interrupts, tick)
    finally:
        _finish(plan.folder, console)


# What the simulated instruments show by default, as the channels of their frames will tell.
_SHOWN_BY: dict[str, Kind] = {"pfm": "walls", "afm": "particles", "diffraction": "patterns"}


def kind_of_plan(plan: Plan) -> Kind:
    """Say what windows will be cut around: by the configuration, else by the instrument."""
    sites = plan.tables.get("streamer", {}).get("pipeline", {}).get("sites", {})
    configured = str(sites.get("kind", "auto"))
    if configured != "auto":
        return kind_of_sites((), configured)
    return _SHOWN_BY.get(next(iter(plan.instrument), ""), "columns")


def _start(service: Service, plan: Plan, addresses: tuple[str, str], config: Path) -> None:
    """Start all of them at once, so that their imports overlap; each waits for the streamer by itself."""
    address, view_address = addresses
    own = ("--session-folder", str(plan.folder), "--config", str(config))
    service.start_module(STREAMER, "streamer", *own, "--bind", address, "--view-bind", view_address)
    service.start_module(INSTRUMENT, "simulators", *plan.instrument, "--connect", address)
    if plan.has_agent:
        asked = ("--connect", address, "--config", str(config), "--timeout-s", "120")
        service.start_module(AGENT, "agents", *asked)
    if _is_fine_tuned(plan.tables):
        seen = ("--connect", address, "--view", view_address)
        service.start_module(FINE_TUNER, "deploy.fine_tune", *own, *seen)


def _is_fine_tuned(tables: Mapping[str, Any]) -> bool:
    """Say whether the encoder is to be trained further while the session runs."""
    encode = tables.get("streamer", {}).get("pipeline", {}).get("encode", {})
    return int(encode.get("fine_tune_after_frames", 0)) > 0


class _Watcher:
    """Listens to what the streamer tells viewers and shows the newest; call it as a tick."""

    def __init__(
        self,
        service: Service,
        interrupts: Interrupts,
        kind: Kind,
        show: Callable[[Status | None, Around], None],
    ) -> None:
        self._service = service
        self._interrupts = interrupts
        self._show = show
        self._kind: Kind = kind
        self._course = LatentCourse(frames_kept=0)
        self._subscriber: Subscriber | None = None
        self._status: Status | None = None
        self._started_s = time.monotonic()

    def __call__(self) -> None:
        self._subscribe()
        if self._subscriber is None:
            time.sleep(LISTEN_S / 2)
        else:
            self._listen(self._subscriber)
        elapsed_s = time.monotonic() - self._started_s
        restarts = tuple(str(restart) for restart in self._service.restarts)
        around = Around(
            elapsed_s=elapsed_s,
            note=self._note(),
            restarts=restarts,
            many=WORDS["columns" if self._kind == "patterns" else self._kind].many,
            latents=latest(self._course, self._kind),
        )
        self._show(self._status, around)

    def _subscribe(self) -> None:
        if self._subscriber is not None:
            return
        endpoints = self._service.look_for_endpoints()
        if endpoints is not None:
            from streamer.wire import Subscriber  # after the processes are started: 0.2 s

            self._subscriber = Subscriber(endpoints.view_address, ("status", "latents"))

    def _listen(self, subscriber: Subscriber) -> None:
        message = subscriber.receive(LISTEN_S)
        while message is not None:
            if isinstance(message, Status):
                self._status = message
            elif isinstance(message, Latents):
                self._course.add(message)
            message = subscriber.receive(0)

    def _note(self) -> str:
        if self._interrupts.count:
            return "ending; Ctrl-C again stops at once"
        if self._status is not None and not self._service.is_streamer_ready():
            return "the streamer is being started again"
        return "Ctrl-C ends"

    def close(self) -> None:
        if self._subscriber is not None:
            self._subscriber.close()


class _View(AbstractContextManager[Callable[[], None]]):
    """Shows a session while it is entered, as a screen or as lines."""

    def __init__(self, watcher: _Watcher, screen: AbstractContextManager[Any]) -> None:
        self._watcher = watcher
        self._screen = screen

    def __enter__(self) -> Callable[[], None]:
        self._screen.__enter__()
        return self._watcher

    def __exit__(self, *error: Any) -> None:
        self._watcher.close()
        self._screen.__exit__(*error)


def _view(service: Service, console: Console, interrupts: Interrupts, kind: Kind, *, is_live: bool) -> _View:
    if not is_live:
        return _View(_Watcher(service, interrupts, kind, LinePrinter(console)), nullcontext())
    live = Live(console=console, auto_refresh=False, transient=False)

    def show(status: Status | None, around: Around) -> None:
        live.update(render(status, around), refresh=True)

    return _View(_Watcher(service, interrupts, kind, show), live)


class LinePrinter:
    """Prints a line when the state changes or a process was started again, and every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state: tuple[str, ...] = ()
        self._due_s = 0.0
        self._restarts_told = 0
        self._is_slow_start_told = False

    def __call__(self, status: Status | None, around: Around) -> None:
        """Take the newest status; the time since the start tells whether a line is due."""
        for restart in around.restarts[self._restarts_told :]:
            self._print(f"{clock_text(around.elapsed_s):>6} {restart}")
        self._restarts_told = len(around.restarts)
        if status is None:
            self._tell_of_slow_start(around.elapsed_s)
            return
        state = (status.state, *status.held, status.lost)
        if state != self._state or around.elapsed_s >= self._due_s:
            self._state, self._due_s = state, around.elapsed_s + LINE_EVERY_S
            self._print(line(status, around))

    def _tell_of_slow_start(self, elapsed_s: float) -> None:
        if elapsed_s >= SLOW_START_S and not self._is_slow_start_told:
            self._print(f"{clock_text(elapsed_s):>6} {starting(elapsed_s)}")
            self._is_slow_start_told = True

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _finish(folder: Path, console: Console) -> None:
    """Make the report and say where everything is; a session that kept nothing has none."""
    if not any(folder.glob("journal-*.plj")):
        if folder.is_dir():
            console.print(f"Nothing was recorded; the logs are in {folder / 'logs'}", soft_wrap=True)
        return
    from deploy.report import make_report

    try:
        with console.status("making the report …"):
            complete_config(folder / "config.toml")
            report: Path | None = make_report(folder)
    except KeyboardInterrupt:
        console.print(f"There is no report yet; make it with: probeloop report {folder}", soft_wrap=True)
        report = None
    except (OSError, ValueError) as error:  # the session is kept all the same, and must be found
        console.print(
            f"There is no report: {error}. What was acked is in the journal; once that is mended: "
            f"probeloop report {folder}",
            markup=False,
            soft_wrap=True,
        )
        report = None
    _say_where(folder, report, console)


def complete_config(path: Path) -> None:
    """Write every default into a configuration, so that the session says all it was run with."""
    from deploy.config import read_run_config  # brings every part's libraries

    part = path.with_suffix(".part")
    part.write_text(to_toml(msgspec.to_builtins(read_run_config(path))), encoding="utf-8")
    part.replace(path)


def _say_where(folder: Path, report: Path | None, console: Console) -> None:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        summary = {}
    if summary:
        best = summary.get("best")
        console.print(
            f"Ended: {summary.get('ended', '')}. {summary.get('frames', {}).get('published', 0):,} frames, "
            f"{summary.get('measurements', 0):,} measurements, "
            f"best {number_text(float('nan') if best is None else best)}.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Session: {folder}{os.sep}", highlight=False, soft_wrap=True)
    if report is not None:
        console.print(f"Report:  {report}", highlight=False, soft_wrap=True)
