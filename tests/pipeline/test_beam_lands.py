"""The beam that is sent to an atom lands on it, through drift and what a beam at rest suffers."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from models.calibration import Calibration
from simulators.scan_distortion import ScanDistortionConfig
from simulators.specimen import SpecimenConfig
from simulators.stem import StemConfig, StemInstrument
from streamer.messages import Frame
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion

PERFECT = SpecimenConfig(
    has_grain_boundary=False, three_fold_si_per_nm2=0.0, four_fold_si_per_nm2=0.0, vacancies_per_nm2=0.0
)
# A stage that wanders at random cannot be foreseen.
STEADY = {"drift_wander_nm_per_sqrt_s": 0.0}


def microscope(specimen: SpecimenConfig, **distortion: float) -> StemInstrument:
    config = StemConfig(seed=21, specimen=specimen, distortion=ScanDistortionConfig(**(STEADY | distortion)))
    return StemInstrument(config, started_at_s=0.0)


def after(instrument: StemInstrument, stage: CorrectDistortion, frames: int) -> tuple[Frame, Frame]:
    for number in range(frames):
        frame = replace(instrument.acquire(), session="s", number=number)
        corrected = stage.process(frame)
    return frame, corrected


def misses_px(
    instrument: StemInstrument, frame: Frame, corrected: Frame, *, inverse: bool = True
) -> NDArray[np.float64]:
    """Send the beam to every atom where the corrected frame has it; say by how much each is missed."""
    registration = corrected.registration
    assert registration is not None
    assert registration.distortion is not None
    atoms_nm = instrument.specimen.positions_nm
    seen_px = instrument.last_path.seen_px(atoms_nm, jitter=True)
    inside = ((seen_px > 12) & (seen_px < np.array(frame.geometry.shape) - 13)).all(axis=1)
    places_px = seen_px[inside] + registration.distortion.at(seen_px[inside])
    believed_nm = frame.geometry.to_nm(places_px) - np.array(registration.drift_nm)
    scan = instrument._distortion
    missed = []
    for atom_nm, position_nm in zip(atoms_nm[inside], believed_nm, strict=True):
        raster = frame.geometry if inverse else None
        sent_nm = registration.scan_position_nm(tuple(position_nm), raster, instrument.clock_s)
        met_nm = np.array(sent_nm) + scan.parked_offset_nm(sent_nm) - scan.drift_nm
        missed.append(np.hypot(*(met_nm - atom_nm)))
    return np.array(missed) / frame.geometry.pixel_size_nm[0]


def test_the_beam_lands_where_the_atom_is_on_an_unknown_specimen() -> None:
    instrument = microscope(SpecimenConfig())
    frame, corrected = after(instrument, CorrectDistortion(), 12)
    missed = misses_px(instrument, frame, corrected)
    assert np.sqrt((missed**2).mean()) < 0.15
    assert np.median(missed) < 0.1
    registration = corrected.registration
    assert registration is not None
    assert np.hypot(*registration.drift_nm) > 3 * frame.geometry.pixel_size_nm[0]


def test_the_beam_lands_where_the_atom_is_through_a_calibrated_distortion() -> None:
    strong = {"coil_px": 2.0, "flyback_px": 1.0}
    calibrating = CorrectDistortion(CorrectConfig(mode="calibrate"))
    after(microscope(PERFECT, **strong), calibrating, 10)
    calibration = calibrating.calibration()
    assert isinstance(calibration, Calibration)
    instrument = microscope(SpecimenConfig(), **strong)
    frame, corrected = after(instrument, CorrectDistortion(CorrectConfig(), lambda _: calibration), 12)
    registration = corrected.registration
    assert registration is not None
    assert registration.distortion is not None
    assert registration.distortion.mode == "frozen"
    missed = misses_px(instrument, frame, corrected)
    assert np.sqrt((missed**2).mean()) < 0.2
    assert np.median(missed) < 0.15
    # Sent as if a beam at rest suffered nothing, it misses by what the coils do.
    assert np.sqrt((misses_px(instrument, frame, corrected, inverse=False) ** 2).mean()) > 0.5
