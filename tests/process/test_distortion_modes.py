"""The modes of the correction as an operator uses them: a calibration is kept and used, strain is mapped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import pytest

from streamer.journal import read_messages
from streamer.messages import Frame, Latents, Message, Outcome, Request, StrainMap, Suggestion

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
MICROSCOPE = """
[simulate.stem]
rows = 256
cols = 256
field_of_view_nm = 3.2
stage_reach_nm = 0.8
stage_error_nm = 0.01
[simulate.stem.distortion]
flyback_px = 2.0
coil_px = 1.0
[simulate.stem.specimen]
has_grain_boundary = false
three_fold_si_per_nm2 = 0.0
four_fold_si_per_nm2 = {silicon}
vacancies_per_nm2 = 0.0
[agent]
dwell_time_us = 2000.0
[streamer.experiment]
max_measurements = 0
max_duration_s = {duration_s}
[streamer.envelope]
max_stage_move_nm = {stage_nm}
[streamer.pipeline.correct]
mode = "{mode}"
calibrations = "{calibrations}"
"""
M = TypeVar("M", bound=Message)


def session(folder: Path, mode: str, **changes: object) -> Path:
    """Run the whole service; give the folder of its session."""
    fields = {"silicon": 0.3, "duration_s": 5, "stage_nm": 0.0, "calibrations": ""} | changes
    config, kept = folder / f"{mode}.toml", folder / f"session-{mode}"
    config.write_text(MICROSCOPE.format(mode=mode, **fields), encoding="utf-8")
    command = [sys.executable, "-m", "deploy.local", "run", "--no-live", "--seed", "3"]
    command += ["--config", str(config), "--session-folder", str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return kept


def said(folder: Path, kind: type[M]) -> list[M]:
    return [message for _, message in read_messages(folder) if isinstance(message, kind)]


@pytest.mark.timeout(600)
def test_a_calibration_is_kept_used_and_verified(tmp_path: Path) -> None:
    calibrations = tmp_path / "calibrations"
    session(tmp_path, "calibrate", silicon=0.0, calibrations=calibrations)
    (file,) = calibrations.iterdir()
    assert file.name.startswith("raster_256x256_3.2x3.2nm_")

    frozen = session(tmp_path, "auto", calibrations=calibrations)
    modes = {
        latents.registration.distortion.mode
        for latents in said(frozen, Latents)
        if latents.registration.distortion is not None
    }
    assert modes == {"frozen"}
    # What is calibrated later changes nothing of this session: it has a copy of its own.
    file.unlink()
    command = [sys.executable, "-m", "deploy.local", "replay", str(frozen), "--verify"]
    verified = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=250)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "first difference" not in verified.stdout


@pytest.mark.timeout(600)
def test_strain_is_mapped_after_four_scans_that_count_as_no_measurement(tmp_path: Path) -> None:
    folder = session(tmp_path, "separate", stage_nm=0.8, duration_s=8)
    asked = [request for request in said(folder, Request) if request.id.startswith("separate-")]
    assert [request.id for request in asked] == [f"separate-1-{step}" for step in range(4)]
    answers = {outcome.id: outcome.status for outcome in said(folder, Outcome)}
    assert {answers[request.id] for request in asked} == {"ok"}
    turned = [frame for frame in said(folder, Frame) if frame.request_id is not None]
    assert len({(round(frame.geometry.rotation_rad, 3), frame.stage_nm) for frame in turned}) == 4
    maps = said(folder, StrainMap)
    assert maps
    assert all(map_.number >= turned[1].number for map_ in maps)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["outcomes_ok"] == sum(
        status == "ok" for name, status in answers.items() if not name.startswith("separate-")
    )


@pytest.mark.timeout(600)
def test_a_stage_that_must_not_move_is_not_moved_and_no_strain_is_told(tmp_path: Path) -> None:
    folder = session(tmp_path, "separate", stage_nm=0.0)
    refused = [outcome for outcome in said(folder, Outcome) if outcome.id == "separate-1-1"]
    assert [outcome.status for outcome in refused] == ["refused"]
    assert "max_stage_move_nm" in refused[0].reason
    assert not said(folder, StrainMap)
    assert all(frame.stage_nm == (0.0, 0.0) for frame in said(folder, Frame))
    assert len([one for one in said(folder, Suggestion) if one.id.startswith("separate-")]) == 2
