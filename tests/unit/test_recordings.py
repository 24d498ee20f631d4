"""Every format that is read, from small files made here, and every way in which a file can be bad."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
import tifffile
from PIL import Image

from simulators.recordings import Recording, RecordingError, read_recording
from streamer.codec import encode
from streamer.finalise import finalise
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import Frame, Message, Outcome, ScanGeometry

STACK = np.arange(3 * 4 * 6, dtype=np.uint16).reshape(3, 4, 6)


def images(recording: Recording) -> np.ndarray:
    return np.stack([frame.image for frame in recording])


def frame(number: int, request_id: str | None = None) -> Frame:
    return Frame(
        session="s1",
        number=number,
        acquired_at_s=50.0 + number,
        image=STACK[number % 3][None].astype(np.float32),
        channels=("HAADF",),
        geometry=ScanGeometry(shape=(4, 6), field_of_view_nm=(0.6, 0.4)),
        dwell_time_us=2.0,
        request_id=request_id,
    )


def session(folder: Path, *messages: Message) -> Path:
    journal = Journal(folder, JournalConfig())
    for message in messages:
        journal.append(encode(message), 0.0, kind=kind_of(message), monotonic_s=0.0)
    journal.close()
    return folder


def hspy(path: Path, data: np.ndarray, axes: list[tuple[str, float, str, bool]], chunks=None) -> Path:
    with h5py.File(path, "w") as h5:
        h5.attrs["file_format"] = "HyperSpy"
        h5.attrs["file_format_version"] = "3.3"
        group = h5.create_group("Experiments/signal")
        group.create_dataset("data", data=data, chunks=chunks)
        for place, (name, scale, units, navigate) in enumerate(axes):
            group.create_group(f"axis-{place}").attrs.update(
                {"name": name, "scale": scale, "offset": 0.0, "units": units, "navigate": navigate}
            )
    return path


def image_data(path: Path, data: np.ndarray, **metadata: object) -> Path:
    with h5py.File(path, "w") as h5:
        h5["image_data"] = data
        h5["metadata"] = json.dumps(metadata)
    return path


def stm_movie(path: Path, *, rows=3, cols=4, phase=5, scans=2) -> tuple[Path, np.ndarray]:
    """Write a stream in which each sample says its scan, quarter, row and column."""
    upward = np.arange(scans * rows * cols, dtype=np.int16).reshape(scans, rows, cols)
    lines = np.full((scans, 2 * rows, 2 * cols), -1, dtype=np.int16)
    lines[:, :rows, :cols] = upward
    stream = np.concatenate([np.full(phase, -9, np.int16), lines.reshape(-1), np.zeros(7, np.int16)])
    with h5py.File(path, "w") as h5:
        data = h5.create_dataset("data", data=stream)
        data.attrs.update(
            {
                "Scanner.X_Points": cols,
                "Scanner.Y_Points": rows,
                "Scanner.Y_Frequency": 20.0,
                "Acquisiton.X_Phase": phase,
                "Acquisition.ADC_SamplingRate": 800_000.0,
                "ExperimentInfo.Time": "2014-10-03T11:22:25+02:00",
            }
        )
    return path, upward


def test_a_session_plays_its_frames_in_order_and_knows_its_measurements(tmp_path: Path) -> None:
    ok = Outcome(session="s1", id="a", status="ok", scan_position_nm=(0.0, 0.0))
    failed = Outcome(session="s1", id="b", status="failed")
    folder = session(tmp_path, frame(0), ok, frame(1, "a"), failed, frame(2))
    recording = read_recording(folder)
    assert [f.number for f in recording] == [0, 2]
    assert [f.acquired_at_s for f in recording] == [50.0, 52.0]
    assert (len(recording), recording.kind, recording.has_times) == (2, "session", True)
    assert [outcome.id for outcome in recording.outcomes] == ["a"]
    assert recording.subscans["a"].number == 1
    assert len(read_recording(folder / "journal-000001.plj")) == 2


def test_channels_of_a_finalised_session_stay_in_their_order(tmp_path: Path) -> None:
    names = ("HAADF", "ABF")
    both = msgspec.structs.replace(frame(0), image=STACK[:2].astype(np.float32), channels=names)
    (path,) = finalise(session(tmp_path, both))
    (only,) = read_recording(path)
    assert only.channels == names
    np.testing.assert_array_equal(only.image, both.image)


def test_a_finalised_session_reads_as_the_session_did(tmp_path: Path) -> None:
    folder = session(tmp_path, frame(0), frame(1))
    (path,) = finalise(folder)
    recording = read_recording(path)
    np.testing.assert_array_equal(images(recording), images(read_recording(folder)))
    assert [f.acquired_at_s for f in recording] == [50.0, 51.0]
    assert next(iter(recording)).channels == ("HAADF",)
    assert next(iter(recording)).geometry.pixel_size_nm == pytest.approx((0.1, 0.1))


def test_stem_image_takes_scale_channel_and_dwell_time_from_its_metadata(tmp_path: Path) -> None:
    tags = {"root.SuperScan.PixelTime(us)": "8.0"}
    path = image_data(
        tmp_path / "a.hdf5", STACK[0] / 7, **{"scan size": "3", "type of data": "HAADF"},
        **{"all microscope parameters": tags},
    )  # fmt: skip
    (only,) = read_recording(path)
    assert only.image.dtype == np.float32
    np.testing.assert_allclose(only.image[0], STACK[0] / 7, rtol=1e-6)
    assert only.channels == ("HAADF",)
    assert only.geometry.field_of_view_nm == pytest.approx((3.0, 2.0))
    assert only.dwell_time_us == 8.0


def test_network_input_takes_its_scan_size_in_picometres(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1.hdf5", "w") as h5:
        h5["nn_input"] = np.ones((1, 8, 8, 1))
        h5["nn_input"].attrs["scan size"] = 2000.0
    (only,) = read_recording(tmp_path / "1.hdf5")
    assert only.geometry.field_of_view_nm == pytest.approx((2.0, 2.0))
    assert only.image.shape == (1, 8, 8)


@pytest.mark.parametrize("chunks", [None, (1, 4, 6)])
@pytest.mark.parametrize(("scale", "units"), [(0.01, "nm"), (10.0, "pm"), (0.1, "Å"), (1e-5, "µm")])
def test_hyperspy_stack_is_read_in_nanometres(
    tmp_path: Path, scale: float, units: str, chunks: tuple[int, ...] | None
) -> None:
    axes = [("z", 1.0, "", True), ("y", scale, units, False), ("x", scale, units, False)]
    recording = read_recording(hspy(tmp_path / "a.hspy", STACK, axes, chunks))
    np.testing.assert_array_equal(images(recording)[:, 0], STACK)
    assert next(iter(recording)).geometry.pixel_size_nm == pytest.approx((0.01, 0.01))
    assert not recording.has_times
    assert [f.acquired_at_s for f in recording] == pytest.approx([1.0, 2.0, 3.0])


def test_a_time_axis_gives_the_times_of_the_frames(tmp_path: Path) -> None:
    axes = [("t", 250.0, "ms", True), ("y", 1.0, "nm", False), ("x", 1.0, "nm", False)]
    recording = read_recording(hspy(tmp_path / "a.hspy", STACK, axes))
    assert recording.has_times
    assert [f.acquired_at_s for f in recording] == [0.25, 0.5, 0.75]


def test_a_spectrum_image_alone_shows_its_sum_and_keeps_its_spectra(tmp_path: Path) -> None:
    axes = [("y", 1.0, "nm", True), ("x", 1.0, "nm", True), ("E", 2.0, "eV", False)]
    recording = read_recording(hspy(tmp_path / "si.hspy", STACK, axes))
    (only,) = recording
    np.testing.assert_array_equal(only.image[0], STACK.sum(axis=-1))
    assert recording.spectra is not None
    assert recording.spectra.energy_step_ev == 2.0
    np.testing.assert_array_equal(recording.spectra.spectrum(2, 1), STACK[2, 1])


def test_a_spectrum_image_beside_a_picture_only_lends_its_spectra(tmp_path: Path) -> None:
    axes = [("y", 1.0, "nm", True), ("x", 1.0, "nm", True), ("E", 2.0, "eV", False)]
    hspy(tmp_path / "eels.hspy", STACK, axes)
    hspy(tmp_path / "haadf.hspy", STACK[..., 0], [("y", 1.0, "nm", False), ("x", 1.0, "nm", False)])
    recording = read_recording(tmp_path)
    (only,) = recording
    np.testing.assert_array_equal(only.image[0], STACK[..., 0])
    assert recording.spectra is not None


def test_rosettascio_reads_what_it_knows(tmp_path: Path) -> None:
    from rsciio.ripple import file_writer

    axes = [
        {"name": n, "size": s, "scale": c, "offset": 0.0, "units": u, "navigate": v}
        for n, s, c, u, v in (("z", 3, 1.0, "", True), ("y", 4, 0.2, "nm", False), ("x", 6, 0.1, "nm", False))
    ]
    signal = {"data": STACK, "axes": axes, "metadata": {"General": {"title": "scan"}, "Signal": {}}}
    file_writer(str(tmp_path / "a.rpl"), {**signal, "original_metadata": {}, "attributes": {}})
    recording = read_recording(tmp_path / "a.rpl")
    np.testing.assert_array_equal(images(recording)[:, 0], STACK)
    assert next(iter(recording)).geometry.pixel_size_nm == pytest.approx((0.2, 0.1))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("imagej", [True, False])
def test_tiff_stack_is_read_a_frame_at_a_time(tmp_path: Path, imagej: bool, compression: str | None) -> None:
    facts = {"unit": "nm", "finterval": 0.5, "axes": "TYX"} if imagej else {"axes": "TYX"}
    tifffile.imwrite(
        tmp_path / "a.tif",
        STACK,
        imagej=imagej,
        metadata=facts,
        compression=compression,
        photometric="minisblack",
        resolution=(10.0, 5.0),
    )
    recording = read_recording(tmp_path / "a.tif", None if imagej else 0.5)
    np.testing.assert_array_equal(images(recording)[:, 0], STACK)
    first = next(iter(recording))
    assert first.geometry.pixel_size_nm == pytest.approx((0.2, 0.1) if imagej else (0.5, 0.5))
    assert recording.has_times is imagej


def test_tiff_of_two_channels_names_them(tmp_path: Path) -> None:
    data = np.arange(2 * 2 * 4 * 6, dtype=np.float32).reshape(2, 2, 4, 6)
    pixels = {"PhysicalSizeX": 3.0, "PhysicalSizeXUnit": "Å", "PhysicalSizeY": 2.0, "PhysicalSizeYUnit": "Å"}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, metadata={"axes": "TCYX", **pixels})
    recording = read_recording(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(images(recording), data)
    assert next(iter(recording)).channels == ("channel 0", "channel 1")
    assert next(iter(recording)).geometry.pixel_size_nm == pytest.approx((0.2, 0.3))


def test_numpy_array_takes_its_field_of_view_from_the_json_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK[0].astype(np.float64))
    spatial = {"field_of_view_x": 900.0, "field_of_view_y": 400.0, "field_of_view_units": "pm"}
    facts = {"experiment_type": "HAADF-STEM", "experimental_details": {"spatial_info": spatial}}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    (only,) = read_recording(tmp_path / "a.npy")
    assert only.geometry.field_of_view_nm == pytest.approx((0.9, 0.4))
    assert only.channels == ("HAADF-STEM",)


def test_numpy_array_of_four_axes_is_frames_of_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 2, 3, 3), dtype=np.float32))
    (tmp_path / "a.json").write_text('{"pixel_size_nm": 0.5, "channels": ["amplitude", "phase"]}')
    recording = read_recording(tmp_path / "a.npy")
    assert len(recording) == 5
    assert next(iter(recording)).channels == ("amplitude", "phase")


def test_stm_movie_gives_the_upward_forward_quarter_of_each_scan(tmp_path: Path) -> None:
    path, upward = stm_movie(tmp_path / "movie.h5")
    recording = read_recording(path, 0.05)
    frames = list(recording)
    np.testing.assert_array_equal(images(recording)[:, 0], upward)
    assert frames[0].scan_path == "sinusoidal"
    assert frames[0].dwell_time_us == 1.25
    assert frames[1].acquired_at_s - frames[0].acquired_at_s == pytest.approx(0.05, abs=1e-6)
    assert frames[0].geometry.field_of_view_nm == pytest.approx((0.2, 0.15))


def test_nsid_scan_is_turned_from_x_y_to_row_col(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        for place, quantity in enumerate(("Height", "Phase")):
            group = h5.create_group(f"Measurement_000/Channel_{place}/Channel_{place}")
            group["data"] = STACK[0].T.astype(np.float32) + place
            group["data"].attrs.update({"data_type": "IMAGE", "quantity": quantity})
            for axis, size, step in (("x", 6, 2e-9), ("y", 4, 3e-9)):
                group[axis] = np.arange(size) * step
                group[axis].attrs["units"] = "m"
            group.create_group("original_metadata").attrs["ScanRate"] = 2.0
    (only,) = read_recording(tmp_path / "a.h5")
    assert only.channels == ("Height", "Phase")
    np.testing.assert_array_equal(only.image[1], STACK[0] + 1)
    assert only.geometry.pixel_size_nm == pytest.approx((3.0, 2.0))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_pictures_of_a_folder_are_played_as_a_person_counts(tmp_path: Path, mode: str) -> None:
    for n in (2, 10, 1):
        Image.fromarray(np.full((4, 6), n, np.uint8)).convert(mode).save(tmp_path / f"f{n}.png")
    (tmp_path / "notes.txt").write_text("sunny")
    recording = read_recording(tmp_path, 3.0)
    assert [f.image[0, 0, 0] for f in recording] == [1, 2, 10]
    assert [f.number for f in recording] == [0, 1, 2]
    assert recording.kind == "folder of 3 files"


def test_a_given_pixel_size_wins_over_the_file(tmp_path: Path) -> None:
    path = image_data(tmp_path / "a.hdf5", STACK[0], **{"scan size": "3"})
    (only,) = read_recording(path, 0.25)
    assert only.geometry.pixel_size_nm == pytest.approx((0.25, 0.25))


def test_a_file_is_recognised_by_what_is_in_it(tmp_path: Path) -> None:
    image_data(tmp_path / "a.dat", STACK[0], **{"scan size": "3"})
    assert read_recording(tmp_path / "a.dat").kind == "HDF5 image"


def _unscaled_hdf5(folder: Path) -> Path:
    return image_data(folder / "a.hdf5", STACK[0], **{"scan size": "NA"})


def _unscaled_tiff(folder: Path) -> Path:
    tifffile.imwrite(
        folder / "a.tif", STACK, resolution=(300, 300), resolutionunit="INCH", photometric="minisblack"
    )
    return folder / "a.tif"


def _unscaled_npy(folder: Path) -> Path:
    np.save(folder / "a.npy", STACK[0])
    return folder / "a.npy"


def _unscaled_png(folder: Path) -> Path:
    Image.fromarray(STACK[0].astype(np.uint8)).save(folder / "a.png")
    return folder / "a.png"


def _unscaled_hspy(folder: Path) -> Path:
    return hspy(folder / "a.hspy", STACK[0], [("y", 1.0, "", False), ("x", 1.0, "", False)])


@pytest.mark.parametrize(
    "make", [_unscaled_hdf5, _unscaled_tiff, _unscaled_npy, _unscaled_png, _unscaled_hspy]
)
def test_a_file_without_a_scale_asks_for_it_by_name(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    with pytest.raises(RecordingError, match="--pixel-size-nm") as told:
        read_recording(path)
    assert str(path) in str(told.value)
    assert read_recording(path, 0.1).count >= 1


def test_a_stm_movie_asks_for_its_scale(tmp_path: Path) -> None:
    path, _ = stm_movie(tmp_path / "movie.h5")
    with pytest.raises(RecordingError, match="--pixel-size-nm"):
        read_recording(path)


@pytest.mark.parametrize("size", [-1.0, 0.0, float("nan")])
def test_a_pixel_size_that_is_none_is_refused(tmp_path: Path, size: float) -> None:
    with pytest.raises(RecordingError, match="takes a number above 0"):
        read_recording(_unscaled_npy(tmp_path), size)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # rosettasciio leaves a bad file open
@pytest.mark.parametrize("suffix", [".hdf5", ".hspy", ".tif", ".npy", ".png", ".dm3", ".mrc", ".emd", ".plj"])
def test_a_file_that_is_not_what_its_name_says_is_told_in_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"these are not the bytes that you are looking for" * 50)
    with pytest.raises(RecordingError) as told:
        read_recording(path)
    message = str(told.value)
    del told
    gc.collect()
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("suffix", [".hdf5", ".tif", ".npy", ".png", ".dm4", ".plj"])
def test_an_empty_file_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.touch()
    with pytest.raises(RecordingError, match=r"a\."):
        read_recording(path)


@pytest.mark.parametrize(
    "make", [_unscaled_hdf5, _unscaled_tiff, _unscaled_npy, _unscaled_png, _unscaled_hspy]
)
def test_a_file_that_is_cut_short_is_told(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(RecordingError, match="damaged") as told:
        list(read_recording(path, 0.1))
    assert str(path) in str(told.value)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RecordingError, match="cannot be read"):
        read_recording(tmp_path / "a.npy", 0.1)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(5), "it takes"),
        (np.zeros((2, 2, 2, 2, 2)), "it takes"),
        (np.zeros((4, 4), dtype=complex), "real numbers"),
        (np.zeros((0, 4, 4)), "holds no frames"),
        (np.zeros((3, 0, 4)), "two-dimensional image"),
        (np.zeros((1, 20000), dtype=np.uint8), "16384"),
    ],
)
def test_an_array_that_is_no_image_is_told(tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(RecordingError, match=said):
        read_recording(tmp_path / "a.npy", 0.1)


def test_a_colour_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.eye(12, dtype=np.uint8).reshape(4, 12, 3) * 90).save(tmp_path / "a.png")
    with pytest.raises(RecordingError, match="in colour"):
        read_recording(tmp_path / "a.png", 0.1)


def test_an_unknown_hdf5_layout_says_what_it_holds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["temperature"] = 3.0
    with pytest.raises(RecordingError, match="temperature"):
        read_recording(tmp_path / "a.h5")


def test_a_signal_without_images_says_what_it_is(tmp_path: Path) -> None:
    path = hspy(tmp_path / "a.hspy", np.zeros(5), [("E", 1.0, "eV", False)])
    with pytest.raises(RecordingError, match="holds no images"):
        read_recording(path)


def test_metadata_beside_an_array_that_is_not_json_is_told(tmp_path: Path) -> None:
    _unscaled_npy(tmp_path)
    (tmp_path / "a.json").write_text("{pixel")
    with pytest.raises(RecordingError, match="not JSON"):
        read_recording(tmp_path / "a.npy")


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="does not exist"):
        read_recording(tmp_path / "nothing")


def test_a_folder_without_frames_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("sunny")
    with pytest.raises(RecordingError, match="neither a journal"):
        read_recording(tmp_path)


def test_a_session_without_frames_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="holds no frames"):
        read_recording(session(tmp_path))


def test_a_session_takes_no_pixel_size(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="leave out --pixel-size-nm"):
        read_recording(session(tmp_path, frame(0)), 0.1)


def test_a_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    image_data(tmp_path / "a.hdf5", STACK[0], **{"scan size": "3"})
    (tmp_path / "b.tif").write_bytes(b"II*\x00")
    with pytest.raises(RecordingError, match=r"b\.tif"):
        read_recording(tmp_path)
