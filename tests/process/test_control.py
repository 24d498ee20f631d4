"""A person steers a loop that runs, from another terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.messages import Command, Control, Frame, Outcome, Request, Score, Suggestion
from tests.process.whole_run import ENVIRONMENT, WholeRun


@pytest.fixture
def run(tmp_path: Path) -> Iterator[WholeRun]:
    made = WholeRun(tmp_path, "--measurements", "0")
    yield made
    made.close()


def control(run: WholeRun, *words: str) -> tuple[int, str]:
    """Call ``probeloop control``; give its exit code and the line that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local", "control", *words, "--session-folder", str(run.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
    )
    assert "Traceback" not in done.stderr, done.stderr
    said = (done.stdout + done.stderr).strip()
    assert "\n" not in said
    return done.returncode, said


def parked(run: WholeRun) -> int:
    return run.log("instrument").count("beam parked")


def settled(run: WholeRun) -> int:
    """Wait until what was on the way has arrived, on a busy machine too; a beam at work never rests."""
    deadline_s, seen = time.monotonic() + 20, -1
    while seen != (now := run.frames()):
        assert time.monotonic() < deadline_s, "frames come from a parked beam"
        seen = now
        time.sleep(0.5)
    return seen


@pytest.mark.timeout(170)
def test_pause_resume_point_veto_abort_and_stop_do_what_they_say_and_are_kept(run: WholeRun) -> None:
    run.wait_for_frames(12)

    code, said = control(run, "pause", "--reason", "coffee")
    assert (code, said) == (
        0,
        "paused; go on with: probeloop control resume; held now: paused by the operator",
    )
    run.wait_for("the beam to be parked", lambda: parked(run) == 1, 5)
    seen = settled(run)
    code, said = control(run, "point", "0.1", "-0.2", "--dwell-time-us", "5000")
    assert (code, said) == (1, "probeloop: refused: held: paused by the operator")
    assert run.frames() == seen > 0, "frames came from a parked beam"

    assert control(run, "resume")[0] == 0
    run.wait_for_frames(3)
    code, said = control(run, "point", "0.1", "-0.2", "--dwell-time-us", "5000")
    assert code == 0, said
    assert said.startswith("measured as operator-")
    code, said = control(run, "point", "50", "0", "--dwell-time-us", "5000")
    assert (code, said.split(":")[2]) == (1, " outside field")

    code, said = control(run, "veto", "--at", "0.1", "-0.2", "--radius-nm", "0.3")
    assert (code, said) == (0, "forbidden: all within 0.3 nm of (0.1, -0.2) nm")
    code, said = control(run, "point", "0.1", "-0.2", "--dwell-time-us", "5000")
    assert code == 1, said

    code, said = control(run, "veto", "--polygon", "-1,-1 -0.5,-1 -1,-0.5", "--reason", "a hole")
    assert (code, said) == (0, "forbidden: all in a polygon of 3 corners around (-0.833333, -0.833333) nm")
    code, said = control(run, "point", "-0.9", "-0.9", "--dwell-time-us", "5000")
    assert (code, said) == (
        1,
        "probeloop: refused: vetoed: it touches an area where a person wants nothing more measured",
    )
    code, said = control(run, "place", "--shift", "-0.5", "1", "--radius-nm", "0.1")
    assert (code, said) == (
        1,
        "probeloop: refused: nothing lost: every forbidden area and veto lies where it lay",
    )
    code, said = control(run, "abort")
    assert code == 0
    assert "held now: aborted by the operator" in said
    run.wait_for("the beam to be parked", lambda: parked(run) == 2, 5)
    assert control(run, "stop") == (0, "the session ends in order")
    said = run.end()
    assert run.process.returncode == 0, said
    assert "stopped by the operator" in said
    assert (run.folder / "truth.npz").exists()

    kept = [(control.action, control.reason) for _, control in run.messages(Control)]
    assert kept == [
        ("pause", "coffee"),
        ("resume", ""),
        ("veto", ""),
        ("veto", "a hole"),
        ("abort", ""),
        ("stop", ""),
    ]
    assert [c.action for _, c in run.messages(Command)][:2] == ["park", "go"]
    asked = {one.id for _, one in run.messages(Suggestion) if one.policy == "operator"}
    assert len(asked) == 5
    done = {one.id for _, one in run.messages(Outcome) if one.status == "ok"}
    assert len(asked & done) == len(asked & {one.id for _, one in run.messages(Request)}) == 1
    assert asked & done <= {score.id for _, score in run.messages(Score)}, "the agent did not learn from it"
    times = [at_s for at_s, _ in run.messages(Frame)]
    aborted_s = next(at_s for at_s, one in run.messages(Control) if one.action == "abort")
    assert max(times) < aborted_s + 0.5


def test_where_no_streamer_serves_it_says_so(tmp_path: Path) -> None:
    run = WholeRun.__new__(WholeRun)
    run.folder = tmp_path
    assert control(run, "abort") == (
        2,
        f"probeloop: {tmp_path}: no streamer serves there; give another folder, or the address by --connect",
    )


WHAT_IS_FORBIDDEN = "say what is forbidden: an ID, a place by --at X Y, or an area by --polygon 'X,Y X,Y X,Y'"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("veto",), WHAT_IS_FORBIDDEN),
        (("veto", "a-1", "--at", "0", "0"), WHAT_IS_FORBIDDEN),
        (("veto", "--polygon", "0,0 1,0 1,1", "--at", "0", "0"), WHAT_IS_FORBIDDEN),
        (
            ("veto", "--polygon", "0,0 1,0 1"),
            "--polygon '0,0 1,0 1': write its corners as 'X,Y X,Y X,Y', in nm",
        ),
        (("veto", "--polygon", "0,0 1,0"), "the polygon has too few corners, 2; it takes three or more"),
        (("mode", "sometimes"), "control.mode is sometimes; it takes auto, confirm, advise"),
        (
            ("point", "nan", "0", "--dwell-time-us", "1"),
            "the place is (nan, 0.0) nm; it takes finite numbers",
        ),
        (
            ("veto", "--polygon", "0,0 1,1 1,0 0,1"),
            "the polygon crosses or touches itself; give its corners in their order around it, each once",
        ),
        (("pause", "--connect", "tcp://127.0.0.1:1"), "say either --connect or --session-folder"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    run = WholeRun.__new__(WholeRun)
    run.folder = tmp_path
    assert control(run, *words) == (2, f"probeloop: {says}")


def test_an_address_that_is_none_is_refused_in_one_line() -> None:
    command = [sys.executable, "-m", "deploy.local", "control", "pause", "--connect", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    said = "probeloop: nonsense is not an address; it takes tcp://HOST:PORT or ipc://PATH\n"
    assert (done.returncode, done.stderr) == (2, said)


def waiting(run: WholeRun) -> dict[str, str]:
    status = run.status()
    return {} if status is None else status.waiting


@pytest.mark.timeout(300)
def test_in_confirm_mode_nothing_is_measured_without_a_word_and_the_session_is_decided_anew_the_same(
    run: WholeRun,
) -> None:
    run.wait_for_frames(12)
    assert control(run, "mode", "confirm") == (0, "the mode is confirm")
    run.wait_for("suggestions to wait", lambda: len(waiting(run)) == 2)
    granted = run.status().requests_granted
    first, second = waiting(run)
    run.wait_for_frames(6)
    assert list(waiting(run)) == [first, second]
    assert run.status().requests_granted == granted, "something was measured that nobody approved"

    assert control(run, "approve", first, "--seen", "1") == (0, f"approved: {first}")
    run.wait_for("it to be measured", lambda: run.status().requests_granted == granted + 1)
    code, said = control(run, "approve", first)
    assert (code, said) == (
        1,
        "probeloop: refused: not waiting: no suggestion of this id waits; see the live view",
    )
    assert control(run, "decline", second) == (0, f"declined: {second}")

    code, said = control(run, "steer", "goal=minimise", "objective.label=least")
    assert (code, said) == (0, "the agent is told: goal = minimise, objective = {'label': 'least'}")
    run.wait_for("other suggestions", lambda: waiting(run) and {first, second}.isdisjoint(waiting(run)))
    third = next(iter(waiting(run)))
    code, said = control(run, "approve", third, "--seen", "1")
    assert code == 1
    assert "you saw revision 1 of how it is decided and it is now 2; look again" in said
    assert control(run, "mode", "auto", "--reason", "it does well")[0] == 0
    run.wait_for("it to go on by itself", lambda: run.status().requests_granted > granted + 4)
    assert control(run, "stop")[0] == 0
    assert "stopped by the operator" in run.end()
    assert run.process.returncode == 0

    scored = [score for _, score in run.messages(Score)]
    anew = [score for score in scored if score.objective.startswith("least") and score.goal == "minimise"]
    assert len({score.id for score in anew}) == len(anew) >= len({score.id for score in scored}) - 1
    command = [sys.executable, "-m", "deploy.local", "replay", str(run.folder), "--verify"]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)
    assert verified.returncode == 0, verified.stdout + verified.stderr
