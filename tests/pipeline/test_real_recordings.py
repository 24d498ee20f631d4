"""Recordings of real microscopes are read and played; skipped where they are not at hand.

The folder is ``$PROBELOOP_DATA``, else ``../shared/data`` beside the project.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from simulators.recordings import RecordingError, read_recording
from simulators.replay import open_recording
from streamer.messages import Frame, Request

DATA = Path(os.environ.get("PROBELOOP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def data(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here; set PROBELOOP_DATA to the folder of recordings")
    return path


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize(
    ("name", "pixel_size_nm", "count", "shape", "width_nm"),
    [
        ("stem_graphene_si/G-Si-2nm.hdf5", None, 1, (256, 256), 2.0),
        ("stem_graphene_si/G-Si-4fold.hdf5", None, 1, (512, 512), 2.0),
        ("stem_graphene_si/G-GrainBoundary-4nm.hdf5", None, 1, (512, 512), 4.0),
        ("stem_graphene_si/G-dimSi.hdf5", 0.004, 1, (512, 512), 2.048),
        ("stem_graphene_si_library_si1/Si1C4", None, 16, (128, 128), 1.0),
        ("stem_abf_stack", None, 5, (512, 512), 4.7116),
        ("stem_mos2_defects", None, 3, (512, 512), 9.0),
        ("stem_pt_single_atoms_labelled/tif", 0.02, 16, (512, 512), 10.24),
        ("stm_movie_gr_ni111/20141003_24.h5", 0.05, 67, (105, 105), 5.25),
        ("particles_brightfield/frames", 100.0, 50, (500, 500), 50_000.0),
        ("pfm_pzt_pto/PZT_final0001.h5", None, 1, (256, 256), 2007.8),
        ("eels_cuzn_si", None, 1, (50, 40), 36.855),
    ],
)
def test_a_real_recording_is_played_whole(
    name: str, pixel_size_nm: float | None, count: int, shape: tuple[int, int], width_nm: float
) -> None:
    instrument = open_recording(data(name), pixel_size_nm=pixel_size_nm)
    frames: list[Frame] = []
    while (frame := instrument.acquire()) is not None:
        assert np.isfinite(frame.image).all()
        assert all(np.ptp(channel) > 0 for channel in frame.image)
        frames.append(frame)
    assert len(frames) == len(instrument.recording) == count
    assert frames[0].geometry.shape == shape
    assert frames[0].geometry.field_of_view_nm[0] == pytest.approx(width_nm, rel=1e-4)
    times = [frame.acquired_at_s for frame in frames]
    assert all(np.diff(times) > 0)


@pytest.mark.parametrize(
    "name",
    [
        "stem_graphene_si/G-dimSi.hdf5",
        "stm_movie_gr_ni111/20141003_24.h5",
        "stem_pt_single_atoms_labelled/tif",
        "particles_brightfield/frames/bf_0000.png",
    ],
)
def test_a_real_recording_without_a_scale_asks_for_it(name: str) -> None:
    with pytest.raises(RecordingError, match="--pixel-size-nm"):
        read_recording(data(name))


@pytest.mark.parametrize("name", ["README.md", "pfm_pzt_pto/BEPS_PTO_50x50.h5", "4d_io_samples/test1.blo"])
def test_a_real_file_that_holds_no_frames_is_told(name: str) -> None:
    with pytest.raises(RecordingError, match=name):
        read_recording(data(name))


def test_consecutive_frames_of_the_stm_movie_show_the_same_place() -> None:
    frames = [frame.image[0] for frame in read_recording(data("stm_movie_gr_ni111/20141003_24.h5"), 0.05)]
    alike = [similarity(a, b) for a, b in itertools.pairwise(frames)]
    assert np.median(alike) > 0.9
    assert similarity(frames[10], frames[11][::-1]) < 0.3


def test_the_nion_image_knows_its_dwell_time() -> None:
    (frame,) = read_recording(data("stem_graphene_si/G-Si-2nm.hdf5"))
    assert frame.dwell_time_us == 8.0
    assert frame.channels == ("HAADF",)


def test_a_real_spectrum_image_answers_where_it_was_recorded_and_nowhere_else() -> None:
    instrument = open_recording(data("eels_cuzn_si"))
    frame = instrument.acquire()
    assert frame is not None

    def ask(position_nm: tuple[float, float]) -> Request:
        return Request(
            session="s",
            id="q",
            action="spectrum",
            scan_position_nm=position_nm,
            position_nm=position_nm,
            dwell_time_us=10.0,
        )

    outcome, _ = instrument.execute(ask((3.0, -4.0)))
    assert outcome.status == "ok"
    assert outcome.spectrum is not None
    assert outcome.spectrum.shape == (162,)
    assert (outcome.energy_offset_ev, outcome.energy_step_ev) == (700.0, 8.0)
    assert instrument.execute(ask((30.0, 0.0)))[0].status == "refused"
