"""What the metrics say is what came."""

from __future__ import annotations

import numpy as np
import pytest

from models.trajectories import Motion, TrajectorySummary
from streamer.messages import Distortion
from streamer.telemetry import Telemetry


def distortion(*flags: str, offset_px: float = 0.0) -> Distortion:
    """Make one that grows from 0 to 3 px down the frame along rows, and is 1 px along columns."""
    rows, cols = 65, 33
    along = np.linspace(0, 3, rows, dtype=np.float32)
    return Distortion(
        mode="drift-only",
        grid_px=np.stack([np.zeros((3, 4)), np.ones((3, 4))]).astype(np.float32),
        rows_px=np.stack([along, 0 * along]),
        cols_px=np.zeros((2, cols), dtype=np.float32),
        row_offset_px=np.full((2, rows), offset_px, dtype=np.float32),
        sd_px=np.stack([np.full((3, 4), 0.1), np.full((3, 4), 0.7)]).astype(np.float32),
        residual_px=0.25,
        flags=flags,
    )


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(f"probeloop_{name}", labels)


def test_the_distortion_of_the_latest_frame_is_shown() -> None:
    telemetry = Telemetry()
    telemetry.distortion_came(distortion(offset_px=5.0))
    telemetry.distortion_came(distortion())
    # The mean of (3t)² over 0 to 1 is 3, and 1 from the columns.
    assert value(telemetry, "distortion_rms_px") == pytest.approx(2.0, rel=0.01)
    assert value(telemetry, "distortion_residual_px") == 0.25
    assert value(telemetry, "distortion_sd_px") == pytest.approx(0.5)


def test_a_flag_that_tells_of_a_fault_is_counted_and_no_other() -> None:
    telemetry = Telemetry()
    telemetry.distortion_came(distortion("learning", "jump"))
    telemetry.distortion_came(distortion("jump", "lost"))
    telemetry.distortion_fault("magnification")
    assert value(telemetry, "distortion_faults_total", fault="jump") == 2
    assert value(telemetry, "distortion_faults_total", fault="lost") == 1
    assert value(telemetry, "distortion_faults_total", fault="magnification") == 1
    assert value(telemetry, "distortion_faults_total", fault="learning") is None
    assert telemetry.tally["distortion: jump"] == 2


def test_the_motion_of_the_columns_is_shown_before_and_after() -> None:
    before = Motion(
        explained_variance_ratio=np.array([0.9, 0.05]), common_px2=1.5, local_px2=0.1, common_components=2
    )
    after = Motion(
        explained_variance_ratio=np.array([0.2, 0.1]), common_px2=0.02, local_px2=0.1, common_components=1
    )
    telemetry = Telemetry()
    telemetry.columns_moved(TrajectorySummary(before=before, after=after, columns=100, frames=64))
    ratio = "distortion_explained_variance_ratio"
    assert value(telemetry, ratio, when="before", component="1") == 0.9
    assert value(telemetry, ratio, when="after", component="2") == 0.1
    assert value(telemetry, "distortion_motion_px2", when="before", part="common") == 1.5
    assert value(telemetry, "distortion_motion_px2", when="after", part="local") == 0.1
