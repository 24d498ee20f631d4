"""The service as a user starts it: processes, sockets, files, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from streamer.journal import read_messages
from streamer.messages import Atoms, Frame, Latents, Outcome, Score
from streamer.wire import Router

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SMALL = """
[simulate.stem]
rows = 192
cols = 192
field_of_view_nm = 2.4
[agent]
dwell_time_us = 20000.0
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


@pytest.fixture
def run(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def kept(folder: Path, kind: type) -> list:
    return [message for _, message in read_messages(folder) if isinstance(message, kind)]


def summary_of(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    frames = summary["frames"]
    assert frames["received"] == frames["published"] + frames["rejected"] + frames["dropped"]
    return summary


@pytest.mark.timeout(150)
def test_a_run_ends_by_itself_and_leaves_everything_that_it_promises(run, config, tmp_path):
    folder = tmp_path / "session"
    run.append(
        start(
            "deploy.local",
            "run",
            "--no-live",
            "--config",
            str(config),
            "--session-folder",
            str(folder),
            "--measurements",
            "6",
            "--seed",
            "3",
        )
    )
    said, _ = run[0].communicate(timeout=140)
    assert run[0].returncode == 0, said
    assert str(folder) in said
    assert {"summary.json", "report.html", "frames.hspy", "spectra.hspy", "truth.npz", "config.toml"} <= {
        path.name for path in folder.iterdir()
    }
    summary = summary_of(folder)
    assert summary["ended"] == "budget reached"
    assert summary["frames"]["rejected"] == summary["frames"]["dropped"] == summary["frames"]["missed"] == 0
    measured = [outcome for outcome in kept(folder, Outcome) if outcome.status == "ok"]
    assert len(measured) == summary["measurements"] == 6
    assert len(kept(folder, Score)) == 6
    assert all(outcome.position_nm is not None for outcome in measured)
    frames = kept(folder, Frame)
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert len(kept(folder, Latents)) == len(frames) == summary["frames"]["published"]
    assert len(kept(folder, Atoms)) == 1
    with h5py.File(folder / "frames.hspy") as file:
        (signal_group,) = file["Experiments"].values()
        assert signal_group["data"].shape[0] == len(frames)
        assert signal_group["data"][3].sum() == frames[3].image.sum()
    assert not (folder / "endpoints.json").exists()


@pytest.mark.timeout(150)
def test_ctrl_c_in_the_middle_keeps_what_was_acked_and_makes_the_report(run, config, tmp_path):
    folder = tmp_path / "session"
    run.append(
        start("deploy.local", "run", "--no-live", "--config", str(config), "--session-folder", str(folder))
    )
    deadline = time.monotonic() + 90
    while not list(folder.glob("journal-*.plj")) or len(kept(folder, Frame)) < 12:
        assert time.monotonic() < deadline, "no frames came"
        assert run[0].poll() is None
        time.sleep(0.1)
    run[0].send_signal(signal.SIGINT)
    said, _ = run[0].communicate(timeout=60)
    assert run[0].returncode == 0, said
    assert (folder / "report.html").exists()
    summary = summary_of(folder)
    assert summary["ended"] == "stopped by the operator"
    assert len(kept(folder, Frame)) == summary["frames"]["received"] > 0


@pytest.mark.timeout(150)
def test_a_recording_is_played_and_what_it_lacks_is_refused(run, config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run.append(
        start(
            "deploy.local",
            "run",
            "--no-live",
            "--config",
            str(config),
            "--session-folder",
            str(first),
            "--measurements",
            "3",
        )
    )
    said, _ = run[0].communicate(timeout=140)
    assert run[0].returncode == 0, said
    run.append(
        start(
            "deploy.local",
            "replay",
            str(first),
            "--no-live",
            "--session-folder",
            str(second),
            "--speed",
            "max",
            "--policy",
            "random",
            "--seed",
            "5",
        )
    )
    said, _ = run[1].communicate(timeout=140)
    assert run[1].returncode == 0, said
    originals, played = kept(first, Frame), kept(second, Frame)
    assert [frame.image.tobytes() for frame in played] == [frame.image.tobytes() for frame in originals]
    for outcome in kept(second, Outcome):
        assert outcome.status in ("ok", "refused", "skipped")
        if outcome.status == "ok":
            recorded = [one.spectrum.tobytes() for one in kept(first, Outcome) if one.spectrum is not None]
            assert outcome.spectrum.tobytes() in recorded


BAD = {
    "unknown key": ("[streamer.hub]\nwindw = 3\n", "unknown field `windw`"),
    "value out of range": ("[streamer.hub]\nwindow = 0\n", "hub.window is 0; it takes 1 to 1024"),
    "unknown table": ("[steamer]\n", "unknown table [steamer]"),
    "missing weights": (
        "[streamer.pipeline.encode]\nweights = 'nowhere.safetensors'\n",
        "nowhere.safetensors",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_configuration_ends_the_streamer_in_one_line_before_it_listens(run, tmp_path, name):
    text, says = BAD[name]
    config = tmp_path / "bad.toml"
    config.write_text(text, encoding="utf-8")
    folder = tmp_path / "session"
    run.append(start("streamer", "--config", str(config), "--session-folder", str(folder)))
    said, _ = run[0].communicate(timeout=60)
    assert run[0].returncode == 2
    assert says in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert not folder.exists()


def test_a_port_in_use_ends_the_streamer_in_one_line(run, tmp_path):
    router = Router("tcp://127.0.0.1:0")
    try:
        run.append(start("streamer", "--bind", router.address, "--session-folder", str(tmp_path / "s")))
        said, _ = run[0].communicate(timeout=60)
    finally:
        router.close(0)
    assert run[0].returncode == 2
    assert f"cannot bind {router.address}" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
