import math

import msgspec
import numpy as np
import pytest

from models.calibration import Calibration, CalibrationError, ScanKey, load, save
from models.distortion_gp import DistortionGP, Hyperparameters, ScanModel

KEY = ScanKey(shape=(64, 96), field_of_view_nm=(12.0, 8.0), dwell_time_us=4.0, rotation_rad=0.0)
SCAN = ScanModel(shape=(64, 96), hum_period_rows=15.0)


def calibration(key=KEY):
    mean, covariance = DistortionGP(SCAN).static()
    rng = np.random.default_rng(0)
    return Calibration(
        key=key,
        scan=SCAN,
        hyperparameters=Hyperparameters(coil_length=1.25),
        mean_px=rng.normal(size=mean.shape),
        covariance_px2=covariance,
        frames=12,
    )


def test_what_was_saved_is_found_by_its_key(tmp_path):
    known = calibration()
    save(tmp_path, known)

    found = load(tmp_path, KEY)

    assert found is not None
    assert np.array_equal(found.mean_px, known.mean_px)
    assert np.array_equal(found.covariance_px2, known.covariance_px2)
    assert (found.key, found.scan, found.hyperparameters) == (KEY, SCAN, known.hyperparameters)
    assert found.frames == 12
    gp = DistortionGP.frozen(found.scan, found.hyperparameters, found.mean_px, found.covariance_px2)
    assert np.array_equal(gp.static()[0], known.mean_px)


@pytest.mark.parametrize(
    "change",
    [
        {"field_of_view_nm": (12.0, 8.1)},
        {"dwell_time_us": 2.0},
        {"rotation_rad": math.pi / 2},
        {"shape": (64, 64)},
        {"path": "serpentine"},
    ],
)
def test_another_way_of_scanning_has_none(tmp_path, change):
    save(tmp_path, calibration())

    assert load(tmp_path, msgspec.structs.replace(KEY, **change)) is None


def test_a_whole_turn_and_the_last_digits_are_no_other_way(tmp_path):
    save(tmp_path, calibration())
    alike = msgspec.structs.replace(
        KEY, rotation_rad=2 * math.pi + 1e-7, dwell_time_us=3.99999, field_of_view_nm=(12.00001, 8.0)
    )

    assert load(tmp_path, alike) is not None


def test_a_new_calibration_takes_the_place_of_the_old(tmp_path):
    save(tmp_path, calibration())
    save(tmp_path, calibration())

    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("where", [40, -8])
def test_a_flipped_bit_is_noticed(tmp_path, where):
    path = save(tmp_path, calibration())
    data = bytearray(path.read_bytes())
    data[where] ^= 4
    path.write_bytes(data)

    with pytest.raises(CalibrationError, match=str(tmp_path)):
        load(tmp_path, KEY)


def test_half_a_file_is_refused(tmp_path):
    path = save(tmp_path, calibration())
    path.write_bytes(path.read_bytes()[:5000])

    with pytest.raises(CalibrationError, match="not a whole safetensors file"):
        load(tmp_path, KEY)


def test_a_file_of_something_else_is_refused(tmp_path):
    import safetensors.numpy

    (tmp_path / KEY.name).write_bytes(safetensors.numpy.save({"mean": np.zeros(3)}))

    with pytest.raises(CalibrationError, match="no calibration of probeloop"):
        load(tmp_path, KEY)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / KEY.name).mkdir()

    with pytest.raises(CalibrationError, match="cannot be read"):
        load(tmp_path, KEY)


def test_a_model_of_another_raster_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match="cannot be kept"):
        save(tmp_path, calibration(msgspec.structs.replace(KEY, shape=(64, 64))))


@pytest.mark.parametrize("change", [{"dwell_time_us": 0.0}, {"rotation_rad": math.nan}])
def test_a_key_without_a_size_is_refused(change):
    fields = {"shape": (64, 64), "field_of_view_nm": (1.0, 1.0), "dwell_time_us": 1.0, "rotation_rad": 0.0}

    with pytest.raises(ValueError, match=next(iter(change))):
        ScanKey(**{**fields, **change})
