"""What every instrument promises, run over all of them: a new one is tested by being listed."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from simulators.afm import AfmConfig, AfmInstrument
from simulators.diffraction import DiffractionConfig, DiffractionInstrument
from simulators.eels import EelsConfig, EelsInstrument
from simulators.instrument import Instrument
from simulators.kinetics import KineticsConfig
from simulators.pfm import FilmConfig, PfmConfig, PfmInstrument
from simulators.replay import open_recording
from simulators.scanning import ScanningInstrument
from simulators.specimen import SpecimenConfig
from simulators.stem import StemConfig, StemInstrument
from simulators.stem_kernels import OpticsConfig
from simulators.structure_specimen import StructureConfig
from streamer.codec import decode, encode
from streamer.messages import Frame, Outcome, Request

ROOT = Path(__file__).parents[2]


def simulated_stem(folder: Path) -> Instrument:
    config = StemConfig(rows=32, cols=48, field_of_view_nm=1.5, stage_reach_nm=0.3, seed=1)
    return StemInstrument(config, started_at_s=1e9)


def simulated_stem_with_a_physical_probe(folder: Path) -> Instrument:
    optics = OpticsConfig(astigmatism_nm=3.0, coma_nm=100.0)
    scan = {"rows": 32, "cols": 48, "field_of_view_nm": 1.5, "stage_reach_nm": 0.3}
    return StemInstrument(StemConfig(seed=1, probe="physical", optics=optics, **scan), started_at_s=1e9)


def simulated_stem_whose_beam_changes_the_sheet(folder: Path) -> Instrument:
    kinetics = KineticsConfig(is_on=True, rate_factor=3e4)
    config = StemConfig(rows=32, cols=48, field_of_view_nm=1.5, stage_reach_nm=0.3, seed=1, kinetics=kinetics)
    return StemInstrument(config, started_at_s=1e9)


def simulated_crystal(folder: Path) -> Instrument:
    specimen = SpecimenConfig(structure="gaas", crystal=StructureConfig(zone_axis=(1, 1, 0), layers=3))
    config = StemConfig(rows=32, cols=48, field_of_view_nm=1.5, stage_reach_nm=0.3, seed=1, specimen=specimen)
    return StemInstrument(config, started_at_s=1e9)


def simulated_pfm(folder: Path) -> Instrument:
    film = FilmConfig(cells=32, growth=40.0)
    tip = {"tip_radius_nm": 10.0, "resolution_nm": 5.0}
    config = PfmConfig(rows=32, cols=48, field_of_view_nm=100.0, stage_reach_nm=0.3, seed=1, film=film, **tip)
    return PfmInstrument(config, started_at_s=1e9)


def simulated_diffraction(folder: Path) -> Instrument:
    scan = {"rows": 10, "cols": 12, "field_of_view_nm": 1.2, "stage_reach_nm": 0.3, "camera_px": 64}
    return DiffractionInstrument(DiffractionConfig(seed=1, beam_current_pa=2.0, **scan), started_at_s=1e9)


def simulated_afm(folder: Path) -> Instrument:
    config = AfmConfig(rows=32, cols=48, field_of_view_nm=100.0, stage_reach_nm=0.3, seed=1)
    return AfmInstrument(config, started_at_s=1e9)


def simulated_eels(folder: Path) -> Instrument:
    config = EelsConfig(rows=32, cols=48, field_of_view_nm=30.0, stage_reach_nm=0.3, seed=1)
    return EelsInstrument(config, started_at_s=1e9)


def replayed_file(folder: Path) -> Instrument:
    path = folder / "stack.tif"
    images = np.random.default_rng(0).poisson(30.0, (3, 32, 48)).astype(np.float32)
    tifffile.imwrite(path, images, photometric="minisblack")
    return open_recording(path, pixel_size_nm=0.03)


INSTRUMENTS = [
    simulated_stem,
    simulated_stem_with_a_physical_probe,
    simulated_crystal,
    simulated_stem_whose_beam_changes_the_sheet,
    simulated_pfm,
    simulated_diffraction,
    simulated_eels,
    simulated_afm,
    replayed_file,
]


@pytest.fixture(params=INSTRUMENTS, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Instrument]:
    return lambda: request.param(tmp_path)


def ask(identifier: str = "r-1", **fields: Any) -> Request:
    usual: dict[str, Any] = {
        "session": "s",
        "action": "spectrum",
        "scan_position_nm": (0.1, 0.05),
        "position_nm": (0.1, 0.05),
        "dwell_time_us": 5000.0,
    }
    return Request(id=identifier, **(usual | fields))


SUB_SCAN = ask(action="scan", field_of_view_nm=(0.24, 0.24), shape=(8, 8))


def frames(instrument: Instrument, most: int = 5) -> list[Frame]:
    """Take full frames; of an instrument that gives patterns too, only the frames that come after them."""
    taken: list[Frame] = []
    while len(taken) < most and (part := instrument.acquire()) is not None:
        if isinstance(part, Frame):
            taken.append(part)
    assert taken, "an instrument gives at least one frame"
    return taken


def test_it_has_a_name(make):
    assert make().name


def test_frames_are_left_unnumbered_and_are_finite_counts_in_time(make):
    taken = frames(make())

    for frame in taken:
        assert (frame.session, frame.number, frame.request_id, frame.registration) == ("", 0, None, None)
        assert np.isfinite(frame.image).all()
        assert frame.image.std() > 0
    times = [frame.acquired_at_s for frame in taken]
    assert times == sorted(times)
    assert len({frame.channels for frame in taken}) == 1


def test_frames_and_outcomes_travel_on_the_wire(make):
    instrument = make()
    frame = frames(instrument, 1)[0]
    messages: list[Frame | Outcome] = [frame]
    for request in (ask(), SUB_SCAN):
        outcome, part = instrument.execute(request)
        messages += [outcome] if part is None else [part, outcome]

    for message in messages:
        assert type(decode([bytes(part) for part in encode(message)])) is type(message)


def test_a_spectrum_is_measured_or_refused_with_a_reason(make):
    instrument = make()
    instrument.acquire()
    outcome, frame = instrument.execute(ask("r-7"))

    assert (outcome.session, outcome.id, outcome.action, frame) == ("s", "r-7", "spectrum", None)
    if outcome.status == "ok":
        assert outcome.spectrum is not None
        assert np.isfinite(outcome.spectrum).all()
        assert outcome.bias_v is not None or outcome.spectrum.min() >= 0  # a response has a sign
        assert outcome.scan_position_nm == pytest.approx((0.1, 0.05), abs=0.05)
        assert outcome.ended_at_s >= outcome.started_at_s
        assert outcome.energy_step_ev > 0
    else:
        assert outcome.status == "refused"
        assert outcome.reason
        assert outcome.spectrum is None


def test_a_sub_scan_comes_with_the_frame_that_was_asked_for_or_is_refused(make):
    instrument = make()
    instrument.acquire()
    outcome, frame = instrument.execute(SUB_SCAN)

    assert (outcome.session, outcome.id, outcome.action) == ("s", "r-1", "scan")
    assert outcome.spectrum is None
    if outcome.status == "ok":
        assert frame is not None
        assert frame.request_id == "r-1"
        assert frame.image.shape[1:] == frame.geometry.shape == (8, 8)
        assert frame.geometry.field_of_view_nm == pytest.approx((0.24, 0.24), rel=0.1)
        assert math.dist(frame.geometry.center_nm, (0.1, 0.05)) < 0.05
    else:
        assert outcome.status == "refused"
        assert outcome.reason
        assert frame is None


def test_a_turned_scan_elsewhere_on_the_stage_is_done_as_asked_or_refused(make):
    instrument = make()
    frames(instrument, 1)
    turned = {"rotation_rad": math.pi / 2, "stage_nm": (0.2, -0.1)}
    outcome, frame = instrument.execute(
        ask(action="scan", dwell_time_us=1.0, field_of_view_nm=(0.24, 0.24), shape=(8, 8), **turned)
    )

    if outcome.status == "ok":
        assert frame is not None
        assert frame.geometry.rotation_rad == turned["rotation_rad"]
        assert frame.stage_nm == turned["stage_nm"]
        later = frames(instrument, 1)[0]
        assert later.stage_nm == turned["stage_nm"]
        assert later.geometry.rotation_rad != turned["rotation_rad"]
    else:
        assert outcome.status == "refused"
        assert outcome.reason
        assert frame is None


def test_a_sub_scan_far_away_is_never_an_invented_image(make):
    """Off the specimen a microscope sees nothing, and a recording says that it has nothing."""
    instrument = make()
    instrument.acquire()
    far = (80.0, 80.0)
    outcome, frame = instrument.execute(
        ask(
            action="scan",
            scan_position_nm=far,
            position_nm=far,
            dwell_time_us=1.0,
            field_of_view_nm=(0.5, 0.5),
            shape=(16, 16),
        )
    )

    if outcome.status == "ok":
        assert frame is not None
        for channel in frame.image:  # where there is nothing to see, neighbours do not know of each other
            assert (
                channel.std() == 0 or abs(np.corrcoef(channel[:, 1:].flat, channel[:, :-1].flat)[0, 1]) < 0.3
            )
    else:
        assert (outcome.status, frame) == ("refused", None)


def test_a_request_without_sense_is_answered_by_a_reason_and_not_by_an_error(make):
    instrument = make()
    instrument.acquire()
    for request in (
        ask(scan_position_nm=(math.nan, 0.0), position_nm=(math.nan, 0.0)),
        ask(action="scan", field_of_view_nm=(0.0, 0.0), shape=(8, 8)),
        ask(action="scan", field_of_view_nm=(0.2, 0.2), shape=(8, 8), rotation_rad=math.inf),
        ask(action="scan", field_of_view_nm=(0.2, 0.2), shape=(8, 8), stage_nm=(math.nan, 0.0)),
    ):
        outcome, frame = instrument.execute(request)
        assert outcome.status in ("failed", "refused")
        assert outcome.reason
        assert frame is None


def test_answering_changes_neither_the_number_nor_the_shape_of_the_frames(make):
    plain = frames(make(), 3)
    asked = make()
    with_requests = []
    for _ in plain:
        with_requests += frames(asked, 1)
        asked.execute(ask())

    assert [frame.geometry for frame in with_requests] == [frame.geometry for frame in plain]


def test_made_anew_it_gives_the_same_frames(make):
    once, again = frames(make(), 3), frames(make(), 3)

    assert [frame.image.tobytes() for frame in once] == [frame.image.tobytes() for frame in again]


def test_a_parked_beam_gives_no_frames_and_no_spectra(make):
    instrument = make()
    instrument.acquire()
    instrument.park()

    with pytest.raises(RuntimeError, match="the beam is parked"):
        instrument.acquire()
    for request in (ask(), SUB_SCAN):
        outcome, frame = instrument.execute(request)
        assert (outcome.status, outcome.reason) == ("aborted", "the beam is parked")
        assert (outcome.dose_e, outcome.spectrum, frame) == (0.0, None, None)


def test_after_go_it_works_as_before(make):
    instrument, parked = make(), make()
    want = [*frames(instrument, 2), instrument.execute(ask())]
    have: list[Any] = frames(parked, 1)
    parked.park()
    parked.park()
    parked.go(0.0)
    have += [*frames(parked, 1), parked.execute(ask())]

    assert [one.image.tobytes() for one in have[:2]] == [one.image.tobytes() for one in want[:2]]
    assert have[2][0].status == want[2][0].status


def test_time_goes_on_while_the_beam_is_parked(make):
    instrument = make()
    before = frames(instrument, 1)[0].acquired_at_s
    instrument.park()
    instrument.go(5.0)
    after = frames(instrument, 1)[0].acquired_at_s

    if isinstance(instrument, ScanningInstrument):
        assert after >= before + 5.0
    else:  # a recording's frames keep the times that they were taken at
        assert before <= after < before + 5.0


def test_its_truth_is_plain_arrays_or_nothing(make):
    instrument = make()
    frames(instrument, 3)
    truth = instrument.truth()

    if truth is not None:
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **truth)
        assert len(truth["drift_nm"]) == 3
        if "positions_nm" in truth:
            assert len(truth["positions_nm"]) == len(truth["numbers"])
        if "spectra" in truth:
            assert len(truth["positions_nm"]) == len(truth["spectra"])


BYTES_OF_ALL = """
import hashlib, pathlib, runpy, sys, tempfile
told = runpy.run_path(sys.argv[1])
for make in told["INSTRUMENTS"]:
    instrument = make(pathlib.Path(tempfile.mkdtemp()))
    digest = hashlib.sha256()
    for item in (instrument.acquire(), instrument.acquire()):
        digest.update(getattr(item, "windows", None) if hasattr(item, "windows") else item.image)
    outcome, frame = instrument.execute(told["ask"]())
    digest.update(b"" if outcome.spectrum is None else outcome.spectrum)
    outcome, frame = instrument.execute(told["SUB_SCAN"])
    digest.update(b"" if frame is None else frame.image)
    print(make.__name__, digest.hexdigest())
"""


def test_it_gives_the_same_bytes_on_any_number_of_threads_in_a_fresh_process():
    """All of them at once: two processes that know nothing of each other, one thread each and two."""
    said = []
    for threads in ("1", "2"):
        pools = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(pools, threads), "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(
            [sys.executable, "-c", BYTES_OF_ALL, __file__],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        said.append(ran.stdout.splitlines())

    assert said[0] == said[1]
    assert len(said[0]) == len(INSTRUMENTS)


def test_whatever_a_simulated_instrument_gives_says_when_it_was_acquired(make):
    instrument = make()
    if not isinstance(instrument, ScanningInstrument):
        return
    for _ in range(3):
        item = instrument.acquire()
        assert 1e9 < item.acquired_at_s <= instrument.clock_s
