"""A session copies the calibrations that it is given, and takes no damaged ones."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from models.calibration import Calibration, ScanKey, load
from models.distortion_gp import DistortionGP
from models.scan_basis import ScanModel
from streamer.calibrations import adopt, keep, of_session
from streamer.pipeline import PipelineConfig
from streamer.stages.correct_distortion import CorrectConfig

KEY = ScanKey(shape=(64, 64), field_of_view_nm=(2.0, 2.0), dwell_time_us=1.0, rotation_rad=0.0)


def calibration(mean_px: float = 0.0) -> Calibration:
    model = DistortionGP(ScanModel(shape=(64, 64)))
    mean, covariance = model.static()
    return Calibration(
        key=KEY,
        scan=model.scan,
        hyperparameters=model.hyperparameters,
        mean_px=mean + mean_px,
        covariance_px2=covariance,
        frames=3,
    )


def config(folder: Path | None) -> PipelineConfig:
    return PipelineConfig(correct=CorrectConfig(calibrations="" if folder is None else str(folder)))


def test_a_session_keeps_what_it_began_with(tmp_path: Path) -> None:
    source, session = tmp_path / "source", tmp_path / "session"
    keep(calibration(), str(source), session)
    used = adopt(config(source), session)
    keep(calibration(mean_px=1.0), str(source), session)  # calibrated anew meanwhile
    again = adopt(config(source), session)
    assert used == again == of_session(config(source), session)
    found = load(Path(used.correct.calibrations), KEY)
    assert found is not None
    np.testing.assert_array_equal(found.mean_px, calibration().mean_px)


def test_without_a_folder_nothing_is_copied_and_what_is_calibrated_stays_in_the_session(
    tmp_path: Path,
) -> None:
    assert adopt(config(None), tmp_path) == config(None)
    assert not list(tmp_path.iterdir())
    path = keep(calibration(), "", tmp_path)
    assert path.parent == tmp_path / "calibrations"
    assert of_session(config(None), tmp_path) == config(None)


def test_a_folder_that_is_none_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no folder; a session with correct.mode = 'calibrate' makes"
    ):
        adopt(config(tmp_path / "nowhere"), tmp_path)


def test_a_damaged_calibration_is_refused_by_its_own_name_and_nothing_is_left(tmp_path: Path) -> None:
    source, session = tmp_path / "source", tmp_path / "session"
    path = keep(calibration(), str(source), session)
    data = bytearray(path.read_bytes())
    data[-9] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(ValueError, match=str(path)):
        adopt(config(source), session)
    assert not (session / "calibrations").exists()
    path.unlink()
    keep(calibration(), str(source), session)
    assert msgspec.structs.asdict(adopt(config(source), session).correct)["calibrations"] == str(
        session / "calibrations"
    )
