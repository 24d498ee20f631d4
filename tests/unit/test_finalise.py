"""finalise() turns a journal into files that other programs open unchanged."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from rsciio.hspy import file_reader

from streamer.codec import encode
from streamer.finalise import finalise
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import Atoms, Event, Frame, Hello, Message, Outcome, ScanGeometry


def frame(number: int, *, channels=("HAADF",), shape=(4, 6), fov=(0.6, 0.4), request_id=None) -> Frame:
    image = np.arange(len(channels) * shape[0] * shape[1], dtype=np.float32).reshape(len(channels), *shape)
    return Frame(
        session="s1",
        number=number,
        acquired_at_s=1000.0 + number / 4,
        image=image + 100 * number,
        channels=channels,
        geometry=ScanGeometry(shape=shape, field_of_view_nm=fov, center_nm=(2.0, 1.0 + number)),
        dwell_time_us=3.0,
        request_id=request_id,
    )


def outcome(name: str, counts: list[float], *, status="ok", step_ev=0.5) -> Outcome:
    return Outcome(
        session="s1",
        id=name,
        status=status,
        scan_position_nm=(0.1, 0.2),
        position_nm=(0.3, len(counts) / 10),
        spectrum=np.array(counts, dtype=np.float32),
        energy_offset_ev=90.0,
        energy_step_ev=step_ev,
        dwell_time_us=50.0,
        ended_at_s=1001.5,
    )


def session(folder: Path, *messages: Message) -> Path:
    journal = Journal(folder, JournalConfig())
    for message in messages:
        journal.append(encode(message), 0.0, kind=kind_of(message), monotonic_s=0.0)
    journal.close()
    return folder


def test_files_that_the_disk_has_no_room_for_are_not_begun(tmp_path, monkeypatch) -> None:
    folder = session(tmp_path, frame(0), frame(1))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(OSError, match=r"No space left on device: the files take 1 MiB, 1 MiB are free"):
        finalise(folder)
    assert [path.name for path in folder.iterdir()] == ["journal-000001.plj"]


def test_frames_come_back_with_scale_units_and_times(tmp_path: Path) -> None:
    frames = [frame(n) for n in (0, 1, 3)]
    (path,) = finalise(session(tmp_path, *frames))
    (signal,) = file_reader(str(path))
    assert path == tmp_path / "frames.hspy"
    np.testing.assert_array_equal(signal["data"], np.stack([f.image[0] for f in frames]))
    assert [axis["name"] for axis in signal["axes"]] == ["frame", "y", "x"]
    assert [axis["navigate"] for axis in signal["axes"]] == [True, False, False]
    assert signal["axes"][1]["scale"] == pytest.approx(0.1)
    assert signal["axes"][2]["offset"] == pytest.approx(2.0 - 2.5 * 0.1)
    assert signal["axes"][2]["units"] == "nm"
    assert signal["metadata"]["General"]["title"] == "HAADF"
    assert signal["package"] == "hyperspy"
    with h5py.File(path) as h5:
        group = h5["Experiments/HAADF"]
        assert list(group["number"]) == [0, 1, 3]
        assert list(group["t_ns"]) == [1_000_000_000_000, 1_000_250_000_000, 1_000_750_000_000]
        assert list(group["done"]) == [1, 1, 1]
        assert list(group["position_nm"][2]) == [2.0, 4.0]
        assert group["data"].chunks == (1, 4, 6)


def test_the_files_say_that_their_images_are_as_acquired(tmp_path: Path) -> None:
    (path,) = finalise(session(tmp_path, frame(0)))
    with h5py.File(path) as file:
        facts = file["Experiments/HAADF/original_metadata"].attrs
        assert facts["correction"] == "none, as acquired"


def test_the_files_say_which_instrument_and_specimen_they_are_of(tmp_path: Path) -> None:
    hello = Hello(role="instrument", name="simulated STEM of MoS2 (JVASP-664)")
    (path,) = finalise(session(tmp_path, hello, Hello(role="agent", name="explorer"), frame(0)))
    with h5py.File(path) as file:
        assert file["Experiments/HAADF/original_metadata"].attrs["instrument"] == hello.name


def test_each_channel_is_a_signal_of_its_own(tmp_path: Path) -> None:
    both = frame(0, channels=("amplitude", "a/b"))
    (path,) = finalise(session(tmp_path, both, Event(at_s=0.0, what="note")))
    signals = {signal["metadata"]["General"]["title"]: signal["data"] for signal in file_reader(str(path))}
    assert set(signals) == {"amplitude", "a-b"}
    assert signals["a-b"][0, 0, 0] == 24


def test_spectra_keep_their_place_energy_axis_and_id(tmp_path: Path) -> None:
    outcomes = [outcome("a", [1, 2, 3]), outcome("b", [4, 5, 6])]
    refused = Outcome(session="s1", id="r", status="refused", reason="outside")
    (path,) = finalise(session(tmp_path, *outcomes, refused))
    (signal,) = file_reader(str(path))
    assert path.name == "spectra.hspy"
    np.testing.assert_array_equal(signal["data"], [[1, 2, 3], [4, 5, 6]])
    assert signal["axes"][1]["offset"] == 90.0
    assert signal["axes"][1]["scale"] == 0.5
    assert signal["axes"][1]["units"] == "eV"
    with h5py.File(path) as h5:
        group = h5["Experiments/spectra"]
        assert [text.decode() for text in group["id"]] == ["a", "b"]
        assert list(group["position_nm"][0]) == [0.3, 0.3]
        assert list(group["scan_position_nm"][0]) == [0.1, 0.2]


def test_other_rasters_and_subscans_lie_in_files_of_their_own(tmp_path: Path) -> None:
    other = frame(2, shape=(8, 8))
    zoomed = frame(4, fov=(0.3, 0.2))
    subscan = frame(3, shape=(2, 2), request_id="q")
    paths = finalise(session(tmp_path, other, frame(0), subscan, frame(1), zoomed))
    assert [path.name for path in paths] == [
        "frames.hspy",
        "frames-2.hspy",
        "frames-3.hspy",
        "subscans-1.hspy",
    ]
    shapes = [file_reader(str(path))[0]["data"].shape for path in paths]
    assert shapes == [(2, 4, 6), (1, 8, 8), (1, 4, 6), (1, 2, 2)]


def test_the_corrected_frame_at_the_end_of_a_journal_is_not_a_frame_of_the_instrument(
    tmp_path: Path,
) -> None:
    empty = np.empty(0, dtype=np.float32)
    atoms = Atoms(
        frame=frame(0),
        positions_px=empty.reshape(0, 2),
        confidence=empty,
        amplitude=empty,
        background=0.0,
        contrast=1.0,
    )
    (path,) = finalise(session(tmp_path, frame(0), atoms))
    assert file_reader(str(path))[0]["data"].shape[0] == 1


def test_writing_again_replaces_and_a_failure_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = session(tmp_path, frame(0))
    (path,) = finalise(folder)
    session(tmp_path, frame(1))
    assert finalise(folder) == [path]
    before = path.read_bytes()
    assert file_reader(str(path))[0]["data"].shape[0] == 2

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("streamer.finalise._Writer.append", full)
    with pytest.raises(OSError, match="no space left"):
        finalise(folder)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_torn_journal_is_finalised_up_to_the_tear(tmp_path: Path) -> None:
    segment = session(tmp_path, frame(0), frame(1)) / "journal-000001.plj"
    segment.write_bytes(segment.read_bytes()[:-7])
    (path,) = finalise(tmp_path)
    assert file_reader(str(path))[0]["data"].shape[0] == 1


def test_a_session_without_frames_gives_no_files(tmp_path: Path) -> None:
    assert finalise(session(tmp_path, Event(at_s=0.0, what="started"))) == []


def test_a_folder_without_a_journal_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no journal"):
        finalise(tmp_path)


# Other programs open the files as they are.


def test_hyperspy_opens_frames_and_spectra_unchanged(tmp_path: Path) -> None:
    hs = pytest.importorskip("hyperspy.api", reason="pip install probeloop[readers]")
    frames = [frame(n, channels=("HAADF", "ABF")) for n in range(3)]
    finalise(session(tmp_path, *frames, outcome("a", [1, 2, 3]), outcome("b", [4, 5, 6])))
    haadf, abf = hs.load(str(tmp_path / "frames.hspy"))
    spectra = hs.load(str(tmp_path / "spectra.hspy"))
    np.testing.assert_array_equal(haadf.data, np.stack([f.image[0] for f in frames]))
    np.testing.assert_array_equal(abf.data, np.stack([f.image[1] for f in frames]))
    assert haadf.metadata.General.title == "HAADF"
    assert [axis.units for axis in haadf.axes_manager.signal_axes] == ["nm", "nm"]
    assert [axis.scale for axis in haadf.axes_manager.signal_axes] == pytest.approx([0.1, 0.1])
    assert haadf.axes_manager.navigation_shape == (3,)
    np.testing.assert_array_equal(spectra.data, [[1, 2, 3], [4, 5, 6]])
    energy = spectra.axes_manager.signal_axes[0]
    assert (energy.offset, energy.scale, energy.units) == (90.0, 0.5, "eV")


def test_libertem_opens_frames_unchanged(tmp_path: Path) -> None:
    lt = pytest.importorskip("libertem.api", reason="pip install probeloop[readers]")
    frames = [frame(n) for n in range(4)]
    (path,) = finalise(session(tmp_path, *frames))
    images = np.stack([f.image[0] for f in frames])
    with lt.Context.make_with("inline") as context:
        for how in ("auto", "hdf5"):
            dataset = context.load(how, path=str(path), ds_path="/Experiments/HAADF/data")
            assert tuple(dataset.shape) == (4, 4, 6)
            total = context.run(context.create_sum_analysis(dataset=dataset))
            np.testing.assert_allclose(total["intensity"].raw_data, images.sum(axis=0))
