"""What a person sees while the loop runs: one screen of 80 × 24, or one line now and then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.latent_course import NOTHING_SEEN, LatentLines
from streamer.messages import PairNm, Status

WIDTH = 80
SLOW_START_S = 10.0  # longer than a start takes when all is compiled
SUGGESTIONS_SHOWN = 4
# The stages in the order of the data path; any other comes after them by name.
STAGE_ORDER = ("check", "correct", "find", "windows", "encode", "link")
STATE_STYLES = {
    "waiting": "yellow",
    "running": "green",
    "held": "bold white on red",
    "draining": "cyan",
    "ended": "dim",
}
FRAME_COUNTS = ("received", "published", "rejected", "dropped", "waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What is known of a session beside what the streamer says of it.

    Attributes
    ----------
    elapsed_s
        Since the start.
    note
        A few words beside the state, such as ``Ctrl-C ends``.
    restarts
        Which processes were started again, such as ``restarted agent (killed by SIGKILL)``, oldest first.
    many
        What is found in the frames: ``atoms``, ``rods``, ``wall points``.
    latents
        What the last frame's latents say.
    """

    elapsed_s: float = 0.0
    note: str = ""
    restarts: tuple[str, ...] = ()
    many: str = "atoms"
    latents: LatentLines = NOTHING_SEEN


def clock_text(seconds: float) -> str:
    """Write a duration as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    whole = max(0, int(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number_text(value: float, digits: int = 4) -> str:
    """Write a number in this many significant digits; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def milliseconds_text(value: float) -> str:
    """Write milliseconds: one decimal below 10, none above, a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def position_text(position_nm: PairNm | None) -> str:
    """Write a position as ``(x, y) nm``; empty where there is none."""
    if position_nm is None or not all(math.isfinite(value) for value in position_nm):
        return ""
    return f"({position_nm[0]:+.2f}, {position_nm[1]:+.2f}) nm"


def in_stage_order(stage_ms: Mapping[str, tuple[float, float]]) -> list[str]:
    """Put the names of stages in the order of the data path."""
    known = [name for name in STAGE_ORDER if name in stage_ms]
    return known + sorted(set(stage_ms) - set(known))


def _grid() -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    return table


def _frames(status: Status, many: str) -> Panel:
    table = _grid()
    for name in FRAME_COUNTS:
        count = status.frames.get(name, 0)
        bad = name in ("rejected", "dropped") and count > 0
        table.add_row(name, Text(f"{count:,}", style="red" if bad else ""))
    # A longer name stands alone: the numbers below need the room.
    table.add_row(f"{many} in sight" if len(many) < 8 else many, f"{status.atoms:,}")
    table.add_row("drift (x, y)", position_text(status.drift_nm))
    mode, _, means = status.distortion.partition(": ")
    correction = _grid()  # of its own: its words are longer than the numbers are wide
    correction.add_row("distortion", mode.partition(" (")[0])
    below = Text(means, overflow="ellipsis", no_wrap=True, justify="right")
    return Panel(Group(table, correction, below), title="frames", border_style="blue", height=11)


def _latencies(status: Status) -> Panel:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="dim", no_wrap=True)
    for _ in range(2):
        table.add_column(justify="right", no_wrap=True, min_width=6)
    table.add_row("", Text("p50", style="dim"), Text("p99", style="dim"))
    rows = {name: status.stage_ms[name] for name in in_stage_order(status.stage_ms)[:6]}
    rows["frame → latents"] = status.frame_to_latents_ms
    rows["frame → suggestion"] = status.frame_to_suggestion_ms
    for name, (median, slow) in rows.items():
        table.add_row(name, milliseconds_text(median), milliseconds_text(slow))
    return Panel(table, title="latency in ms", border_style="blue", height=11)


def _bar(done: float, limit: float, colour: str) -> RenderableType:
    if limit <= 0:
        return Text("no limit", style="dim")
    return ProgressBar(total=limit, completed=min(done, limit), width=30, complete_style=colour)


def _experiment(status: Status) -> Panel:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True, min_width=12)
    table.add_column(no_wrap=True, min_width=30)
    table.add_column(no_wrap=True)
    measurements = f"{status.outcomes_ok:,}"
    if status.max_measurements:
        measurements += f" of {status.max_measurements:,}"
    refused = f", {status.requests_refused:,} refused" if status.requests_refused else ""
    dose = f"{status.dose_e:.2e} e⁻"
    if status.max_dose_e > 0 and math.isfinite(status.max_dose_e):
        dose = f"{status.dose_e / status.max_dose_e:.0%} of {status.max_dose_e:.1e} e⁻"
    table.add_row(
        "measured",
        _bar(status.outcomes_ok, status.max_measurements, "green"),
        measurements + refused,
    )
    limit = status.max_dose_e if math.isfinite(status.max_dose_e) else 0.0
    table.add_row("dose", _bar(status.dose_e, limit, "magenta"), dose)
    table.add_row(
        "best so far", Text(number_text(status.best), style="bold"), position_text(status.best_position_nm)
    )
    return Panel(table, title="experiment", border_style="blue", height=5)


def _seen(latents: LatentLines) -> list[Text]:
    """Say in up to two lines what the latents of the last frame say; none where there are none."""
    told = (
        "  ".join(words for words in (latents.classes, latents.changes) if words),
        "  ".join(words for words in (latents.order, latents.novel) if words),
    )
    return [Text(words, overflow="ellipsis", no_wrap=True) for words in told if words]


def _suggestions(status: Status, rows: int) -> Panel:
    lines = [
        Text(words, overflow="ellipsis", no_wrap=True, style="bold" if place == 0 else "")
        for place, words in enumerate(status.suggestions[:rows])
    ]
    body = Group(*lines) if lines else Text("none yet", style="dim")
    return Panel(body, title="last suggestions", border_style="blue", height=2 + rows)


def _alarms(status: Status | None, around: Around) -> list[Text]:
    """Say in a line each what holds the loop, what was lost, who decides, and what was started again."""
    alarms = []
    if status is not None and status.held:
        words = f"held, beam parked: {'; '.join(status.held)}"
        alarms.append(Text(words, style=STATE_STYLES["held"], overflow="ellipsis", no_wrap=True))
    if status is not None and status.lost:
        words = f"specimen lost: where are {status.lost}? (probeloop control place)"
        alarms.append(Text(words, style=STATE_STYLES["held"], overflow="ellipsis", no_wrap=True))
    elif status is not None and status.mode != "auto":
        words = f"mode {status.mode}: nothing the agent suggests is measured"
        if status.mode == "confirm":
            words = f"mode confirm: {len(status.waiting)} wait for you (probeloop control approve)"
        alarms.append(Text(words, style="yellow", overflow="ellipsis", no_wrap=True))
    if around.restarts:
        *earlier, last = around.restarts
        words = last + (f", and {len(earlier)} before" if earlier else "")
        alarms.append(Text(words, style="yellow", overflow="ellipsis", no_wrap=True))
    return alarms


def _headline(status: Status | None, around: Around) -> Table:
    table = Table.grid(expand=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    state = "starting" if status is None else status.state
    left = Text.assemble(("probeloop ", "bold"), "" if status is None else status.session)
    right = Text.assemble(
        around.note,
        "  " if around.note else "",
        (state, STATE_STYLES.get(state, "yellow")),
        "  ",
        clock_text(around.elapsed_s),
    )
    table.add_row(left, right)
    return table


def starting(elapsed_s: float) -> str:
    """Say what is waited for before the streamer's first word, and why if it takes long."""
    what = "waiting for the streamer, the instrument and the agent to start …"
    if elapsed_s < SLOW_START_S:
        return what
    return f"{what} The first time on a machine this takes minutes: what is quick later is compiled."


def render(status: Status | None, around: Around | None = None) -> RenderableType:
    """Draw the state of the loop on one screen.

    Parameters
    ----------
    status
        The streamer's latest word; None before the first.
    around
        What is known beside it.

    Returns
    -------
    renderable
        For ``rich``; it needs 80 columns and 24 rows.
    """
    around = around or Around()
    alarms = _alarms(status, around)
    if status is None:
        waiting = Text(starting(around.elapsed_s), style="dim")
        return Group(_headline(status, around), Panel(waiting, border_style="blue"), *alarms)
    side_by_side = Table.grid(expand=True)
    side_by_side.add_column(ratio=1)
    side_by_side.add_column(ratio=1)
    side_by_side.add_row(_frames(status, around.many), _latencies(status))
    # Without alarms one row of the screen is free.
    seen = _seen(around.latents)
    suggestions = _suggestions(status, SUGGESTIONS_SHOWN - max(0, len(alarms) + len(seen) - 1))
    return Group(_headline(status, around), *alarms, side_by_side, *seen, _experiment(status), suggestions)


def line(status: Status, around: Around | None = None) -> str:
    """Say the state of the loop in one line, for logs and where there is no terminal."""
    frames = status.frames
    measured = f"{status.outcomes_ok}" + (f"/{status.max_measurements}" if status.max_measurements else "")
    median, slow = status.frame_to_suggestion_ms
    around = around or Around()
    latents = around.latents.in_one()
    held = f"({'; '.join(status.held)}) " if status.held else ""
    if status.lost:
        held += f"(specimen lost: place {status.lost}) "
    if status.mode != "auto":
        held += f"({status.mode}: {len(status.waiting)} wait) "
    return (
        f"{clock_text(around.elapsed_s):>6} {status.state:<8} {held}"
        f"frames {frames.get('published', 0)}/{frames.get('received', 0)} "
        f"rejected {frames.get('rejected', 0)} dropped {frames.get('dropped', 0)}  "
        f"{around.many} {status.atoms}  measured {measured}  refused {status.requests_refused}  "
        f"best {number_text(status.best)}  dose {status.dose_e:.2e} e-  "
        f"frame→suggestion {milliseconds_text(median)}/{milliseconds_text(slow)} ms"
        + (f"  {latents}" if latents else "")
    )
