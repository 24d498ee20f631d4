"""The live view says the state of the loop on a screen of 80 × 24, and in one line."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rich.console import Console

from deploy.live_view import (
    Around,
    clock_text,
    in_stage_order,
    line,
    milliseconds_text,
    number_text,
    position_text,
    render,
)
from deploy.run_session import LinePrinter
from streamer.messages import Status


def status(**changes: Any) -> Status:
    fields: dict[str, Any] = {
        "session": "2026-01-31T14-05-09-3f2a",
        "at_s": 0.0,
        "state": "running",
        "frames": {
            "received": 1212,
            "published": 1210,
            "rejected": 1,
            "dropped": 0,
            "missed": 0,
            "waiting": 1,
        },
        "stage_ms": dict.fromkeys(("encode", "correct", "find", "windows", "link", "check"), (12.34, 98.76)),
        "frame_to_latents_ms": (71.0, 119.0),
        "frame_to_suggestion_ms": (110.0, 240.0),
        "atoms": 1498,
        "requests_granted": 14,
        "requests_refused": 3,
        "outcomes_ok": 13,
        "max_measurements": 60,
        "dose_e": 2.5e11,
        "max_dose_e": 1e12,
        "drift_nm": (0.12, -0.05),
        "best": 0.4213,
        "best_position_nm": (1.2, -0.7),
        "suggestions": ("explorer-14 (1.20, -0.70) nm, granted: expected to improve",),
    }
    return Status(**(fields | changes))


def text(shown: Status | None, **options: Any) -> str:
    console = Console(width=80, height=24, force_terminal=False)
    with console.capture() as capture:
        console.print(render(shown, Around(**options)))
    return capture.get()


def test_the_screen_says_what_the_status_says() -> None:
    screen = text(status(), elapsed_s=94, note="Ctrl-C ends")
    for words in (
        "2026-01-31T14-05-09-3f2a",
        "running",
        "1:34",
        "Ctrl-C ends",
        "1,212",
        "1,210",
        "1,498",
        "(+0.12, -0.05) nm",
        "13 of 60, 3 refused",
        "25% of 1.0e+12",
        "0.4213",
        "(+1.20, -0.70) nm",
        "explorer-14",
    ):
        assert words in screen, words


def test_latencies_stand_in_the_order_of_the_data_path() -> None:
    lines = [row for row in text(status()).splitlines() if " 12 " in row and " 99 " in row]
    names = ("check", "correct", "find", "windows", "encode", "link")
    assert len(lines) == len(names)
    assert all(name in row for name, row in zip(names, lines, strict=True))
    assert in_stage_order({"zeta": (0, 0), "link": (0, 0), "find": (0, 0)}) == ["find", "link", "zeta"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"suggestions": tuple(f"explorer-{n} " + "long words " * 20 for n in range(8))},
        {"stage_ms": {f"stage {n}": (1.0, 2.0) for n in range(30)}},
        {"session": "a name that goes on and on " * 5},
        {"drift_nm": (-1234.5, 6789.0), "best_position_nm": (-1234.5, 6789.0), "best": -1.23456789e-12},
        {"state": "held", "held": ("the instrument is silent for 12 s",) * 9},
        {"state": "held", "held": ("paused",), "lost": "12 forbidden areas and 34 vetoes", "mode": "confirm"},
    ],
    ids=["usual", "many suggestions", "many stages", "long name", "large numbers", "held", "lost"],
)
@pytest.mark.parametrize("restarts", [(), ("restarted instrument (killed by SIGSEGV)",) * 50])
def test_the_screen_fits_in_80_by_24(changes: dict[str, Any], restarts: tuple[str, ...]) -> None:
    screen = text(
        status(**changes), elapsed_s=36000, note="ending; Ctrl-C again stops at once", restarts=restarts
    )
    rows = screen.rstrip("\n").split("\n")
    assert len(rows) <= 24
    assert max(len(row) for row in rows) <= 80


def test_before_the_first_status_the_screen_says_who_is_awaited() -> None:
    screen = text(None, elapsed_s=3)
    assert "starting" in screen
    assert "waiting for the streamer" in screen


def test_what_is_not_known_yet_is_a_dash_and_never_nan() -> None:
    nothing = (math.nan, math.nan)
    screen = text(
        status(
            stage_ms={"find": nothing},
            frame_to_latents_ms=nothing,
            frame_to_suggestion_ms=nothing,
            best=math.nan,
            best_position_nm=None,
            suggestions=(),
            max_measurements=0,
            max_dose_e=math.inf,
        )
    )
    assert "nan" not in screen
    assert "inf" not in screen
    assert "no limit" in screen
    assert "none yet" in screen


def test_brackets_in_a_reason_are_words_and_no_markup() -> None:
    assert "[red]dose[/red]" in text(status(suggestions=("refused [red]dose[/red]",)))


def test_the_progress_bars_grow_with_what_is_done() -> None:
    def bar(done: int) -> int:
        (row,) = (row for row in text(status(outcomes_ok=done)).splitlines() if "measured" in row)
        return row.count("━")

    assert bar(0) < bar(30) < bar(60) == bar(99)


def test_the_line_holds_what_a_log_needs() -> None:
    words = line(status(), Around(elapsed_s=5))
    assert "\n" not in words
    for part in ("0:05", "running", "1210/1212", "rejected 1", "measured 13/60", "refused 3", "best 0.4213"):
        assert part in words, part


def test_lines_are_printed_when_the_state_changes_and_every_five_seconds() -> None:
    console = Console(width=300, force_terminal=False)
    printer = LinePrinter(console)
    with console.capture() as capture:
        for state, elapsed_s in (
            ("waiting", 0.5),
            ("waiting", 1.0),
            ("running", 1.5),
            ("running", 6.4),
            ("running", 6.6),
            ("ended", 6.7),
        ):
            printer(status(state=state), Around(elapsed_s=elapsed_s))
    states = [row.split()[1] for row in capture.get().splitlines()]
    assert states == ["waiting", "running", "running", "ended"]


def test_a_held_loop_says_why_on_the_screen_and_in_the_line() -> None:
    held = status(state="held", held=("the instrument is silent for 3 s", "paused by ann"))
    screen = text(held)
    assert "held, beam parked: the instrument is silent for 3 s; paused by ann" in screen
    assert " held     (the instrument is silent for 3 s; paused by ann) frames" in line(held)
    assert "beam parked" not in text(status())


def test_areas_that_were_lost_are_told_with_what_to_do_on_the_screen_and_in_the_line() -> None:
    lost = status(lost="1 veto")
    assert "specimen lost: where are 1 veto? (probeloop control place)" in text(lost)
    assert "running  (specimen lost: place 1 veto) frames" in line(lost)
    assert "specimen" not in text(status()) + line(status())


def test_restarts_are_told_on_the_screen_and_once_each_in_lines() -> None:
    one, two = "restarted streamer (killed by SIGKILL)", "restarted agent (exit code 1)"
    assert two + ", and 1 before" in text(status(), restarts=(one, two))
    console = Console(width=300, force_terminal=False)
    printer = LinePrinter(console)
    with console.capture() as capture:
        printer(None, Around(elapsed_s=2.0, restarts=(one,)))
        printer(status(), Around(elapsed_s=3.0, restarts=(one,)))
        printer(status(), Around(elapsed_s=4.0, restarts=(one, two)))
        printer(status(), Around(elapsed_s=4.1, restarts=(one, two)))
    rows = capture.get().splitlines()
    assert rows[0] == f"  0:02 {one}"
    assert rows[1].startswith("  0:03 running")
    assert rows[2:] == [f"  0:04 {two}"]


def test_a_slow_start_is_explained_on_the_screen_and_once_in_lines() -> None:
    assert "compiled" not in text(None, elapsed_s=5.0)
    assert "compiled" in text(None, elapsed_s=20.0)
    console = Console(width=300, force_terminal=False)
    printer = LinePrinter(console)
    with console.capture() as capture:
        for elapsed_s in (1.0, 9.9, 12.0, 40.0):
            printer(None, Around(elapsed_s=elapsed_s))
    (row,) = capture.get().splitlines()
    assert row.startswith("  0:12 waiting for the streamer")
    assert "compiled" in row


def test_a_line_is_printed_when_the_reasons_of_a_hold_change() -> None:
    console = Console(width=300, force_terminal=False)
    printer = LinePrinter(console)
    with console.capture() as capture:
        for elapsed_s, held in ((1.0, ("paused",)), (1.2, ("paused",)), (1.4, ("paused", "disk full"))):
            printer(status(state="held", held=held), Around(elapsed_s=elapsed_s))
        printer(status(lost="1 veto"), Around(elapsed_s=1.6))
        printer(status(), Around(elapsed_s=1.8))
    first, second, third, fourth = capture.get().splitlines()
    assert "(paused)" in first
    assert "(paused; disk full)" in second
    assert "(specimen lost: place 1 veto)" in third
    assert "lost" not in fourth


def test_durations_are_written_in_minutes_and_in_hours_from_one_on() -> None:
    assert [clock_text(s) for s in (-1, 0, 59.9, 61, 3600)] == ["0:00", "0:00", "0:59", "1:01", "1:00:00"]


def test_numbers_are_short() -> None:
    assert [number_text(v) for v in (0.123456, 12345.6, -2.0, math.nan)] == ["0.1235", "12,346", "-2", "–"]
    assert [milliseconds_text(v) for v in (0.04, 9.96, 12.5, math.nan)] == ["0.0", "10.0", "12", "–"]
    assert position_text(None) == ""


def test_the_mode_of_the_correction_and_what_it_leaves_are_in_the_frames_panel():
    words = "drift-only, 0.05 px left (lattice): static distortion is left in"
    lines = text(status(distortion=words), elapsed_s=3.0).splitlines()
    assert len(lines) <= 24
    row = next(number for number, one in enumerate(lines) if "distortion" in one)
    assert "drift-only, 0.05 px left" in lines[row]
    assert "static distortion is left in" in lines[row + 1]


def test_before_the_first_frame_nothing_is_said_of_its_correction():
    assert "px" not in text(status())
