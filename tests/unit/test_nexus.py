"""A session as a NeXus file: HyperSpy's reader finds the numbers, the axes and their units."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from rsciio.nexus import file_reader

from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import Distortion, Event, Frame, Hello, Message, Outcome, Registration, ScanGeometry
from streamer.nexus import export_nexus


def frame(number: int, *, channels=("HAADF",), shape=(4, 6), request_id=None, rotation=0.0) -> Frame:
    image = np.random.default_rng(number).random((len(channels), *shape), np.float32)
    geometry = ScanGeometry(
        shape=shape, field_of_view_nm=(0.6, 0.4), center_nm=(2.0, 1.0), rotation_rad=rotation
    )
    return Frame(
        session="s",
        number=number,
        acquired_at_s=1000.0 + number / 4,
        image=image,
        channels=channels,
        geometry=geometry,
        dwell_time_us=3.0,
        request_id=request_id,
    )


def outcome(name: str, counts: list[float]) -> Outcome:
    return Outcome(
        session="s",
        id=name,
        status="ok",
        scan_position_nm=(0.1, 0.2),
        position_nm=(0.3, 0.4),
        spectrum=np.array(counts, np.float32),
        energy_offset_ev=90.0,
        energy_step_ev=0.5,
        dwell_time_us=50.0,
        ended_at_s=1001.5,
    )


def session(folder: Path, *messages: Message) -> Path:
    journal = Journal(folder, JournalConfig())
    for place, message in enumerate(messages):
        journal.append(encode(message), 1000.0 + place, kind=kind_of(message), monotonic_s=0.0)
    journal.close()
    return folder


def signals(path: Path) -> dict[str, dict]:
    return {
        signal["metadata"]["General"]["title"]: signal for signal in file_reader(str(path), nxdata_only=True)
    }


def test_frames_and_spectra_are_read_with_their_axes(tmp_path: Path) -> None:
    frames = [frame(n, channels=("HAADF", "ABF")) for n in range(3)]
    outcomes = [outcome("a", [1, 2, 3]), outcome("b", [4, 5, 6])]
    path = export_nexus(session(tmp_path, *frames, *outcomes), tmp_path / "s.nxs")
    read = signals(path)
    assert set(read) == {"HAADF", "ABF", "spectra"}
    np.testing.assert_array_equal(read["ABF"]["data"], np.stack([f.image[1] for f in frames]))
    np.testing.assert_array_equal(read["spectra"]["data"], [[1, 2, 3], [4, 5, 6]])
    axes = read["HAADF"]["axes"]
    assert [axis["navigate"] for axis in axes] == [True, False, False]
    assert [axis["units"] for axis in axes[1:]] == ["nm", "nm"]
    assert [axis["scale"] for axis in axes[1:]] == pytest.approx([0.1, 0.1])
    assert [axis["offset"] for axis in axes[1:]] == pytest.approx([1.0 - 1.5 * 0.1, 2.0 - 2.5 * 0.1])
    energy = read["spectra"]["axes"][1]
    assert (energy["offset"], energy["scale"], energy["units"]) == (90.0, 0.5, "eV")
    assert energy["navigate"] is False


def test_default_path_leads_to_the_frames(tmp_path: Path) -> None:
    path = export_nexus(session(tmp_path, outcome("a", [1, 2]), frame(0), frame(1)), tmp_path / "s.nxs")
    with h5py.File(path) as file:
        entry = file[file.attrs["default"]]
        data = entry[entry.attrs["default"]]
        assert (entry.attrs["NX_class"], data.attrs["NX_class"]) == ("NXentry", "NXdata")
        assert entry["definition"].asstr()[()] == "NXem"
        assert data.name == "/entry/HAADF"
        assert data[data.attrs["signal"]].shape == (2, 4, 6)
        assert list(data.attrs["axes"]) == ["indices_image", "axis_j", "axis_i"]
        assert [data.attrs[f"{axis}_indices"] for axis in data.attrs["axes"]] == [0, 1, 2]
    (default,) = file_reader(str(path), use_default=True)
    assert default["data"].shape == (2, 4, 6)


def test_each_item_has_its_time_place_drift_and_request(tmp_path: Path, make_latents) -> None:
    drift = Registration(drift_nm=(0.02, -0.01), sd_nm=0.005)
    path = export_nexus(
        session(
            tmp_path,
            Hello(role="instrument", name="the microscope"),
            frame(0),
            frame(1),
            make_latents(number=1, registration=drift),
            frame(2, shape=(2, 2), request_id="q"),
            outcome("a", [1, 2]),
        ),
        tmp_path / "s.nxs",
    )
    with h5py.File(path) as file:
        entry = file["entry"]
        assert entry["measurement/instrument/name"].asstr()[()] == "the microscope"
        assert entry["start_time"].asstr()[()] == "1970-01-01T00:16:40.000000+00:00"
        assert entry["end_time"].asstr()[()] == "1970-01-01T00:16:45.000000+00:00"
        haadf = entry["HAADF"]
        assert list(haadf["number"]) == [0, 1]
        assert list(haadf["t_ns"]) == [1_000_000_000_000, 1_000_250_000_000]
        assert haadf["t_ns"].attrs["units"] == "ns"
        assert math.isnan(haadf["drift_nm"][0, 0])
        assert (*haadf["drift_nm"][1], haadf["drift_sd_nm"][1]) == (0.02, -0.01, 0.005)
        assert list(haadf["position_nm"][0]) == [2.0, 1.0]
        assert list(entry["subscan_HAADF_1/id"].asstr()) == ["q"]
        assert list(entry["spectra/id"].asstr()) == ["a"]
        assert list(entry["spectra/position_nm"][0]) == [0.3, 0.4]


def test_each_frame_says_what_the_session_corrected_and_that_its_image_is_as_acquired(
    tmp_path: Path, make_latents
) -> None:
    zeros = np.zeros((2, 3, 3), np.float32)
    frozen = Distortion(
        mode="frozen",
        grid_px=zeros,
        sd_px=zeros,
        rows_px=np.zeros((2, 4), np.float32),
        cols_px=np.zeros((2, 6), np.float32),
        row_offset_px=np.zeros((2, 4), np.float32),
    )
    messages = [frame(0), make_latents(number=0, registration=Registration(distortion=frozen))]
    messages += [frame(1), make_latents(number=1), frame(2)]
    path = export_nexus(session(tmp_path, *messages), tmp_path / "s.nxs")
    with h5py.File(path) as file:
        haadf = file["entry/HAADF"]
        assert list(haadf["distortion_mode"].asstr()) == ["frozen", "off", ""]
        assert haadf["intensity"].attrs["correction"] == "none, as acquired"


def test_names_are_such_as_nexus_takes_and_none_twice(tmp_path: Path) -> None:
    path = export_nexus(
        session(tmp_path, frame(0, channels=("a/b", "a-b", "dϑ", "title", "d_"))), tmp_path / "s.nxs"
    )
    with h5py.File(path) as file:
        names = [name for name, group in file["entry"].items() if group.attrs.get("NX_class") == "NXdata"]
    assert names == ["a_b_0", "a_b_1", "d_", "title_", "d__"]


def test_session_without_data_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    folder = session(tmp_path, Event(at_s=0.0, what="x"))
    with pytest.raises(ValueError, match="neither frames nor spectra"):
        export_nexus(folder, tmp_path / "s.nxs")
    assert not list(tmp_path.glob("s.nxs*"))


def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_nexus(session(tmp_path, frame(0)), tmp_path / "s.nxs")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("streamer.nexus._fill", full)
    with pytest.raises(OSError, match="no space left"):
        export_nexus(tmp_path, path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
