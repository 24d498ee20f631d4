"""The first frame under a calibration is what all later ones are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.calibration import load, save
from simulators.crystal import CrystalStream, preset
from streamer.messages import Frame
from streamer.observers.lattice import find_columns
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion
from tests.known_crystal import lattice_of, message


def test_the_first_frame_under_a_calibration_is_corrected_in_full(tmp_path: Path) -> None:
    stream = CrystalStream(
        preset("stem", seed=2, size_px=256, hum_px=0.0, jitter_px=(0.0, 0.0), interstitials=0)
    )
    lattice = lattice_of(stream)

    def beside_px(frame: Frame) -> float:
        places = find_columns(frame.image[0], stream.config.column_sigma_px)[0].positions_px
        places = places[((places > 30) & (places < 225)).all(axis=1)]
        beside = places - lattice.place_of(lattice.index_of(places)[0])
        return float(np.sqrt(((beside - np.median(beside, axis=0)) ** 2).sum(axis=1).mean()))

    learning = CorrectDistortion(CorrectConfig(mode="calibrate"), lattice=lattice)
    for number in range(3):
        learning.process(message(stream.scan(), number))
    calibration = learning.calibration()
    assert calibration is not None
    save(tmp_path, calibration)
    stage = CorrectDistortion(
        CorrectConfig(mode="frozen", calibrations=str(tmp_path)), calibrations=lambda key: load(tmp_path, key)
    )

    raw = message(stream.scan(), 3)
    first = stage.process(raw)

    assert first.registration is not None
    assert first.registration.distortion is not None
    assert first.registration.distortion.flags == ()
    assert beside_px(raw) > 0.5
    assert beside_px(first) < 0.3
