"""The columns' motion is told for every frame that says what was corrected, and for no other."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from models.trajectories import TrajectorySummary
from streamer.messages import Distortion, Latents, Registration, ScanGeometry
from streamer.motion import ColumnsMotion, places_of

RASTER = ScanGeometry(shape=(64, 64), field_of_view_nm=(6.4, 6.4))


def distortion(row_offset_px: np.ndarray) -> Distortion:
    nothing = np.zeros((2, 5, 5), np.float32)
    return Distortion(
        mode="drift-only",
        grid_px=nothing,
        rows_px=np.zeros((2, 64), np.float32),
        cols_px=np.zeros((2, 64), np.float32),
        row_offset_px=row_offset_px.astype(np.float32),
        sd_px=nothing,
    )


@pytest.fixture
def latents_of(make_latents):
    def make(number: int, registration: Registration, moved_nm: float = 0.0, **changes: object) -> Latents:
        grid = np.stack(np.meshgrid(np.arange(-2.5, 2.6, 0.5), np.arange(-2.5, 2.6, 0.5)), -1).reshape(-1, 2)
        made = make_latents(n=len(grid), number=number)
        fields = {
            "positions_nm": (grid + moved_nm).astype(np.float32),
            "track": np.arange(len(grid)),
            "geometry": RASTER,
            "registration": registration,
        }
        return msgspec.structs.replace(made, **(fields | changes))

    return make


def test_a_column_was_seen_off_its_place_by_the_distortion() -> None:
    offsets = np.zeros((2, 64))
    offsets[1] = 0.5
    registration = Registration(drift_nm=(0.3, -0.1), distortion=distortion(offsets))
    seen, there = places_of(np.array([[0.0, 0.0], [1.0, -2.0]]), registration, RASTER)
    assert there == pytest.approx(RASTER.to_px(np.array([[0.0, 0.0], [1.0, -2.0]])))
    assert seen - there == pytest.approx(np.array([[0.0, -0.5]] * 2), abs=1e-4)


def test_motion_that_the_correction_took_out_is_there_before_and_gone_after(latents_of) -> None:
    told: list[TrajectorySummary] = []
    motion = ColumnsMotion(told.append)
    rng = np.random.default_rng(3)
    for number in range(20):
        offsets = np.zeros((2, 64))
        offsets[1] = rng.normal(0, 0.5)
        motion.observe(latents_of(number, Registration(distortion=distortion(offsets))))
    last = told[-1]
    assert last.before.common_px2 > 0.05
    assert last.after.common_px2 < 0.01 * last.before.common_px2
    assert last.before.explained_variance_ratio[0] > 0.9


def test_sub_scans_and_untouched_frames_say_nothing(latents_of) -> None:
    told: list[TrajectorySummary] = []
    motion = ColumnsMotion(told.append)
    for number in range(20):
        motion.observe(latents_of(number, Registration()))
        motion.observe(
            latents_of(number, Registration(distortion=distortion(np.zeros((2, 64)))), request_id="r")
        )
    assert told == []


def test_another_registration_begins_anew(latents_of) -> None:
    told: list[TrajectorySummary] = []
    motion = ColumnsMotion(told.append)
    for number in range(20):
        registration = Registration(revision=number // 12, distortion=distortion(np.zeros((2, 64))))
        motion.observe(latents_of(number, registration, moved_nm=1.0 * (number // 12)))
    assert max(summary.frames for summary in told) <= 12
