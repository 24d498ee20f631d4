"""The mode of the correction in words that leave out nothing a person must know."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from streamer.distortion_status import distortion_status
from streamer.messages import Control, Distortion, Outcome, Request, ScanGeometry, StrainMap
from streamer.separation import Separation


def distortion(mode: str, **fields: Any) -> Distortion:
    defaults: dict[str, Any] = {
        "mode": mode,
        "observer": "lattice",
        "grid_px": np.zeros((2, 3, 3), np.float32),
        "rows_px": np.zeros((2, 8), np.float32),
        "cols_px": np.zeros((2, 8), np.float32),
        "row_offset_px": np.zeros((2, 8), np.float32),
        "sd_px": np.zeros((2, 3, 3), np.float32),
    }
    return Distortion(**(defaults | fields))


def strain_map(frames: int) -> StrainMap:
    return StrainMap(
        session="s",
        number=0,
        acquired_at_s=0.0,
        geometry=ScanGeometry(shape=(2, 2), field_of_view_nm=(1.0, 1.0)),
        displacement_nm=np.zeros((2, 2, 2), np.float32),
        strain=np.zeros((3, 2, 2), np.float32),
        rotation_rad=np.zeros((2, 2), np.float32),
        strain_sd=np.zeros((3, 2, 2), np.float32),
        rotation_sd_rad=np.zeros((2, 2), np.float32),
        frames=frames,
    )


def scanned(separation: Separation, status: str = "ok", reason: str = "") -> Separation:
    """Let the instrument do the scan that is due."""
    place = (0.0, 0.0)
    request = Request(
        session="s",
        id=separation.next_id,
        action="scan",
        scan_position_nm=place,
        position_nm=place,
        dwell_time_us=1.0,
    )
    outcome = Outcome(session="s", id=request.id, status=status, reason=reason, scan_position_nm=place)
    return separation.apply(request).apply(outcome)


@pytest.mark.parametrize(
    ("mode", "fields", "words"),
    [
        ("drift-only", {"residual_px": 0.054},
         "drift-only, 0.05 px left (lattice): static distortion is left in"),
        ("frozen", {"observer": "registration"}, "frozen (registration): by the calibration of this scan"),
        ("calibrate", {"residual_px": math.nan}, "calibrate (lattice): strain counts as distortion"),
        ("frozen", {"observer": "none", "flags": ("lost", "faded")},
         "frozen: by the calibration of this scan; lost; faded"),
    ],
)  # fmt: skip
def test_each_mode_says_what_it_leaves_and_what_is_wrong(mode, fields, words):
    assert distortion_status(distortion(mode, **fields), Separation()) == words


def test_without_an_estimate_nothing_is_corrected():
    assert distortion_status(None, Separation()) == "off: nothing is corrected"


def test_a_separation_says_how_far_its_scans_are_and_whether_there_is_a_map():
    said, separation = [], Separation().apply(Control(action="separate"))
    for step in range(5):
        flags = ("relative",) if step < 2 else ()
        if step >= 2:
            separation = separation.apply(strain_map(10 * step))
        said.append(distortion_status(distortion("separate", flags=flags), separation))
        separation = scanned(separation) if separation.next_id else separation
    assert said == [
        "separate (lattice): no strain map after 0 of 4 scans; relative",
        "separate (lattice): no strain map after 1 of 4 scans; relative",
        "separate (lattice): strain map after 2 of 4 scans",
        "separate (lattice): strain map after 3 of 4 scans",
        "separate (lattice): strain map of 40 frames",
    ]


def test_a_separation_that_broke_off_says_why():
    separation = scanned(Separation().apply(Control(action="separate")), "failed", "stage stuck")
    words = distortion_status(distortion("separate", flags=("relative",)), separation)
    assert (
        words
        == "separate (lattice): no strain map, scans ended at 90° in place: failed stage stuck; relative"
    )


def test_a_map_of_a_specimen_that_was_lost_is_no_map_any_more():
    separation = Separation().apply(Control(action="separate")).apply(strain_map(12))
    assert separation.map_frames == 12
    words = distortion_status(distortion("separate", flags=("relative",)), separation)
    assert words.startswith("separate (lattice): no strain map after 0")


def test_scans_that_are_asked_for_again_keep_the_map_meanwhile():
    separation = Separation().apply(strain_map(12)).apply(Control(action="separate"))
    assert (separation.map_frames, separation.step, separation.is_on) == (12, 0, True)


def test_a_state_from_before_maps_were_counted_is_read():
    old = msgspec.msgpack.encode({"round": 1, "step": 2, "is_on": True, "under_way": "", "ended": ""})
    assert msgspec.msgpack.decode(old, type=Separation) == Separation(round=1, step=2, is_on=True)
