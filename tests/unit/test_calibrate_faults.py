"""What goes wrong while a scan is calibrated is seen, said, and never learnt."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import zoom

from simulators.crystal import CrystalStream, preset
from streamer.drift import to_raster_px
from streamer.messages import Distortion, Frame, Registration
from streamer.observers.against_lattice import LatticeReference
from streamer.stage import Rejected
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion

SIZE = 256
PIXELS = np.stack(np.meshgrid(*[np.arange(8.0, SIZE - 8, 8)] * 2, indexing="ij"), -1).reshape(-1, 2)


def crystal(seed: int = 6) -> CrystalStream:
    return CrystalStream(preset("stem", seed=seed, size_px=SIZE, peak_counts=120.0, vacancies=20))


def frame_of(stream: CrystalStream, image: NDArray[np.float32], number: int) -> Frame:
    return Frame(
        session="s",
        number=number,
        acquired_at_s=100.0 + number,
        image=np.ascontiguousarray(image[None], dtype=np.float32),
        channels=("HAADF",),
        geometry=stream.config.geometry,
        dwell_time_us=1.0,
    )


def calibrated(stream: CrystalStream, frames: int = 5) -> CorrectDistortion:
    stage = CorrectDistortion(CorrectConfig(mode="calibrate", hum_period_rows=15.2))
    for number in range(frames):
        stage.process(frame_of(stream, stream.scan().image, number))
    return stage


def said(corrected: Frame) -> tuple[Registration, Distortion]:
    assert corrected.registration is not None
    assert corrected.registration.distortion is not None
    return corrected.registration, corrected.registration.distortion


def came_of(stage: CorrectDistortion, frame: Frame) -> str:
    """Say why a frame was rejected, or how it was taken."""
    try:
        registration, distortion = said(stage.process(frame))
    except Rejected as rejected:
        return rejected.reason
    return "lost, begun anew" if "lost" in distortion.flags and registration.revision > 0 else "taken"


def left_px(corrected: Frame, true: NDArray[np.float64]) -> float:
    """RMS of what is left of the field, up to the stretch and turn that an unknown lattice leaves open."""
    registration, distortion = said(corrected)
    field = distortion.at(PIXELS) - to_raster_px(registration.drift_nm, corrected.geometry)
    rows, cols = PIXELS.astype(int).T
    error = field - true[:, rows, cols].T
    shapes = np.column_stack([np.ones(len(PIXELS)), PIXELS])
    error -= shapes @ np.linalg.lstsq(shapes, error, rcond=None)[0]
    return float(np.sqrt((error**2).sum(axis=1).mean()))


def test_a_blanked_beam_is_rejected_and_the_calibration_goes_on_as_if_it_had_not_been() -> None:
    stream = crystal()
    stage = calibrated(stream)
    known = stage.calibration()
    dark = np.random.default_rng(1).poisson(3, (SIZE, SIZE)).astype(np.float32)
    with pytest.raises(Rejected, match="blank frame"):
        stage.process(frame_of(stream, dark, 5))
    after = stage.calibration()
    assert known is not None
    assert after is not None
    np.testing.assert_array_equal(after.mean_px, known.mean_px)
    scan = stream.scan()
    corrected = stage.process(frame_of(stream, scan.image, 6))
    assert said(corrected)[0].revision == 0
    assert left_px(corrected, scan.displacement_px()) < 0.12


def test_a_jump_of_the_stage_by_30_px_is_followed_and_leaves_the_field_as_it_was() -> None:
    stream = crystal()
    stage = calibrated(stream)
    jumped = stream.scan(stage_px=(18.0, -24.0))
    corrected = stage.process(frame_of(stream, jumped.image, 5))
    registration, distortion = said(corrected)
    assert "jump" in distortion.flags
    assert registration.revision == 0
    assert np.abs(distortion.grid_px).max() < 3.0  # it is the specimen that moved, and none of the field
    assert left_px(corrected, jumped.displacement_px()) < 0.15
    later = stream.scan(stage_px=(18.0, -24.0))
    again = stage.process(frame_of(stream, later.image, 6))
    assert said(again)[1].flags == ()
    assert left_px(again, later.displacement_px()) < 0.15


def test_a_lost_lattice_is_never_taken_for_a_distortion() -> None:
    stream = crystal()
    stage = calibrated(stream)
    rng = np.random.default_rng(2)
    spots = np.zeros((SIZE, SIZE))
    spots.flat[rng.choice(spots.size, 400, replace=False)] = 2500.0
    spread = np.fft.ifft2(
        np.fft.fft2(spots)
        * np.exp(-2 * (np.pi * 1.9) ** 2 * sum(np.meshgrid(*[np.fft.fftfreq(SIZE) ** 2] * 2)))
    ).real
    amorphous = rng.poisson(6 + np.clip(spread, 0, None)).astype(np.float32)
    assert came_of(stage, frame_of(stream, amorphous, 5)) in ("no lattice", "blank frame", "lost, begun anew")
    scan = stream.scan()
    for number in (6, 7):
        corrected = stage.process(frame_of(stream, scan.image, number))
    assert said(corrected)[0].revision >= 1
    assert left_px(corrected, scan.displacement_px()) < 0.2


def test_a_magnification_that_changed_without_a_word_begins_anew() -> None:
    stream = crystal()
    stage = calibrated(stream)
    larger = zoom(stream.scan().image, 1.3, order=1)[:SIZE, :SIZE]
    assert came_of(stage, frame_of(stream, larger, 5)) in ("no lattice", "lost, begun anew")


def test_a_first_frame_that_its_lattice_does_not_fit_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = crystal()
    stage = CorrectDistortion(CorrectConfig(mode="calibrate", hum_period_rows=15.2))
    with monkeypatch.context() as without:
        without.setattr(LatticeReference, "first_look", lambda *_: None)
        assert came_of(stage, frame_of(stream, stream.scan().image, 0)) == "no lattice"
    assert stage.calibration() is None
    scan = stream.scan()
    corrected = stage.process(frame_of(stream, scan.image, 1))
    assert said(corrected)[1].flags == ()
    assert left_px(corrected, scan.displacement_px()) < 0.15


def test_calibrating_where_there_is_no_lattice_says_that_it_is_relative() -> None:
    rng = np.random.default_rng(5)
    stream = crystal()
    stage = CorrectDistortion(CorrectConfig(mode="calibrate"))
    smooth = rng.normal(size=(SIZE, SIZE))
    spread = np.exp(-2 * (np.pi * 4.0) ** 2 * sum(np.meshgrid(*[np.fft.fftfreq(SIZE) ** 2] * 2)))
    smooth = 60 + 300 * np.fft.ifft2(np.fft.fft2(smooth) * spread).real
    for number in range(3):
        image = rng.poisson(np.clip(smooth, 0, None)).astype(np.float32)
        corrected = stage.process(frame_of(stream, image, number))
    distortion = said(corrected)[1]
    assert distortion.observer == "registration"
    assert "relative" in distortion.flags
    assert stage.calibration() is None
