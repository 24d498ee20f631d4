"""The sheet changes under the beam of a simulated STEM, in its frames, sub-scans, spectra and truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from simulators.faults import FaultConfig
from simulators.kinetics import KineticsConfig
from simulators.scan_distortion import ScanDistortionConfig
from simulators.simulator import Scan
from simulators.specimen import SpecimenConfig
from simulators.stem import StemConfig, StemInstrument, add_specimen
from streamer.messages import Request

QUICK = KineticsConfig(is_on=True, rate_factor=3000.0, rotation_barn=0.005)
SMALL = StemConfig(rows=64, cols=64, field_of_view_nm=3.0, seed=5, kinetics=QUICK)


def microscope(config: StemConfig = SMALL, **changes: Any) -> StemInstrument:
    return StemInstrument(replace(config, **changes), started_at_s=0.0)


def ask(**fields: Any) -> Request:
    usual: dict[str, Any] = {
        "session": "s",
        "id": "r-1",
        "action": "spectrum",
        "scan_position_nm": (0.0, 0.0),
        "position_nm": (0.0, 0.0),
        "dwell_time_us": 1e5,
    }
    return Request(**(usual | fields))


def test_without_kinetics_nothing_changes_and_a_beam_that_does_nothing_gives_the_same_frames():
    off, idle = microscope(kinetics=KineticsConfig()), microscope(kinetics=replace(QUICK, rate_factor=0.0))
    frames = [[instrument.acquire().image.tobytes() for _ in range(3)] for instrument in (off, idle)]

    assert frames[0] == frames[1]
    assert "event_kind" not in off.truth()
    assert off.truth()["positions_nm"].tobytes() == idle.truth()["positions_nm"].tobytes()


def test_atoms_come_go_and_move_from_frame_to_frame_and_the_truth_says_which():
    instrument = microscope(kinetics=replace(QUICK, rate_factor=3e4))
    before = instrument.specimen
    for _ in range(6):
        instrument.acquire()
    truth = instrument.truth()

    assert len(truth["event_kind"]) > 10
    assert set(truth["event_frame"]) <= set(range(6))
    assert len(truth["event_frame"]) == len(truth["event_position_nm"])
    assert (np.abs(truth["event_position_nm"]) < 2.2).all(), "the beam was nowhere else"
    assert instrument.specimen is not before
    for name in ("numbers", "site_class", "spectra", "atom_id", "strain_nm"):
        assert len(truth[name]) == len(truth["positions_nm"])


@pytest.mark.parametrize("scan_path", ["raster", "serpentine"])
@pytest.mark.parametrize("probe", ["gaussian", "physical"])
def test_a_frame_shows_the_old_sheet_before_an_event_and_the_new_one_after_it(scan_path, probe):
    distortion = ScanDistortionConfig(row_jitter_px=0.4, coil_px=1.0, scan_path=scan_path)
    instrument = microscope(distortion=distortion, probe=probe, background_counts=0.0)
    instrument.acquire()
    simulator, config = instrument.simulator, instrument.config
    path = instrument.last_path

    def drawn() -> np.ndarray:
        image = np.zeros((64, 64), dtype=np.float32)
        sheet = simulator.specimen
        add_specimen(image, sheet.positions_nm, sheet.numbers, config, path)
        return image

    before = drawn()
    shown = before.copy()
    scan = Scan(path=path, dwell_time_us=config.dwell_time_us)
    count = len(simulator.truth()["event_place"])
    while len(places := simulator.truth()["event_place"][count:]) != 1:  # until one is alone in its frame
        before = drawn()
        shown, count = before.copy(), count + len(places)
        simulator._expose(scan, simulator._kinetics, shown)
    after = drawn()

    beam_nm = path.in_time(path.specimen_positions_nm()).reshape(-1, 2)[places[0]]
    assert np.linalg.norm(simulator.truth()["event_position_nm"][count] - beam_nm) < 0.3
    is_later = path.in_time(np.arange(64 * 64).reshape(64, 64)) > places[0]
    assert not np.allclose(before[is_later], after[is_later], atol=1.0)
    np.testing.assert_allclose(shown, np.where(is_later, after, before), atol=2e-3 * after.max())


def test_a_parked_beam_changes_what_is_under_it_and_the_next_frame_shows_it():
    hot = replace(QUICK, rate_factor=3e3, knock_out_barn=1.0, rotation_barn=0.0, back_rotation_barn=0.0)
    instrument, untouched = (microscope(kinetics=hot, seed=8) for _ in range(2))
    outcome, _ = instrument.execute(ask(dwell_time_us=2000.0))
    truth = instrument.truth()

    assert outcome.status == "ok"
    assert len(truth["event_kind"]) > 0
    assert (truth["event_frame"] == -1).all()
    assert (np.linalg.norm(truth["event_position_nm"], axis=1) < 0.4).all()
    assert instrument.acquire().image.tobytes() != untouched.acquire().image.tobytes()


def test_a_sub_scan_changes_nothing_beside_it():
    instrument = microscope()
    before = instrument.specimen
    _, frame = instrument.execute(
        ask(action="scan", dwell_time_us=200.0, field_of_view_nm=(0.5, 0.5), shape=(16, 16))
    )
    truth = instrument.truth()

    assert frame is not None
    assert len(truth["event_kind"]) > 0
    assert (np.linalg.norm(truth["event_position_nm"], axis=1) < 0.8).all()
    far = np.linalg.norm(before.positions_nm, axis=1) > 2.6
    assert set(map(tuple, before.positions_nm[far])) <= set(map(tuple, truth["positions_nm"]))


def test_a_blanked_beam_does_nothing():
    instrument = microscope(faults=(FaultConfig(frame=0, kind="blank", frames=3),))
    for _ in range(3):
        instrument.acquire()

    assert len(instrument.truth()["event_kind"]) == 0


def test_an_amorphous_fault_shows_as_many_atoms_as_there_were_at_first():
    instrument = microscope(faults=(FaultConfig(frame=2, kind="amorphous"),), specimen=SpecimenConfig())
    frames = [instrument.acquire() for _ in range(4)]

    assert all(np.isfinite(frame.image).all() for frame in frames)
    assert 0.7 < frames[2].image.mean() / frames[1].image.mean() < 1.3


def test_the_same_seed_gives_the_same_events_and_frames():
    one, other = microscope(), microscope()
    frames = [[instrument.acquire().image.tobytes() for _ in range(3)] for instrument in (one, other)]

    assert frames[0] == frames[1]
    assert one.truth()["event_electrons"].tobytes() == other.truth()["event_electrons"].tobytes()
