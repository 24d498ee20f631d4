"""Frames that are turned and moved tell the strain of the specimen from the distortion of the scan."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from simulators.crystal import CrystalStream, preset
from streamer.codec import decode, encode, pack, unpack
from streamer.drift import to_raster_px
from streamer.messages import Frame, ScanGeometry, StrainMap
from streamer.stage import Rejected
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion, CorrectState

SIZE = 256
VIEWS = [(0.0, (0, 0)), (90.0, (0, 0)), (90.0, (30, 40)), (0.0, (30, 40)), (0.0, (0, 0)), (0.0, (0, 0))]
CONFIG = CorrectConfig(mode="separate", hum_period_rows=15.2)


def crystal(seed: int = 4, strain_px: float = 0.5, **changes: object) -> CrystalStream:
    fields: dict[str, object] = {"size_px": SIZE, "peak_counts": 120.0, "stage_error_px": 1.0}
    return CrystalStream(preset("stem", seed=seed, strain_px=strain_px, **(fields | changes)))


def frame_of(stream: CrystalStream, number: int, view: tuple[float, tuple[int, int]]) -> Frame:
    turn_deg, (row, col) = view
    scanned = stream.scan(rotation_deg=turn_deg, stage_px=(row, col))
    pixel_nm = stream.config.pixel_size_nm
    return Frame(
        session="s",
        number=number,
        acquired_at_s=100.0 + number,
        image=scanned.image[None],
        channels=("HAADF",),
        geometry=scanned.geometry,
        dwell_time_us=1.0,
        stage_nm=(col * pixel_nm, row * pixel_nm),
    )


@pytest.fixture(scope="module")
def night() -> tuple[CrystalStream, list[Frame]]:
    stream = crystal()
    return stream, [frame_of(stream, number, view) for number, view in enumerate(VIEWS)]


def without_gauge(field: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Take off what an unknown lattice cannot tell: the best affine map."""
    shapes = np.column_stack([np.ones(len(places)), places])
    left: np.ndarray = field - shapes @ np.linalg.lstsq(shapes, field, rcond=None)[0]
    return left


def places_of(map_: StrainMap, frame: Frame) -> np.ndarray:
    rows, cols = map_.geometry.shape
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), -1).reshape(-1, 2)
    return frame.geometry.to_px(map_.geometry.to_nm(grid))


def test_the_map_is_that_of_the_specimen_and_comes_only_when_it_can_be_told(night) -> None:
    stream, frames = night
    stage = CorrectDistortion(CONFIG)
    maps = []
    for frame in frames:
        corrected = stage.process(frame)
        assert corrected.registration is not None
        assert corrected.registration.distortion is not None
        news = stage.news()
        assert bool(news) == (frame.number == 2)  # the first that was turned and moved
        assert ("relative" in corrected.registration.distortion.flags) == (frame.number < 2)
        maps += news
    (map_,) = maps
    assert isinstance(map_, StrainMap)
    places = places_of(map_, frames[0])
    inside = (np.abs(places - (SIZE - 1) / 2) < SIZE / 2 - 16).all(axis=1)
    pixel_nm = stream.config.pixel_size_nm
    told = map_.displacement_nm.reshape(2, -1).T[inside, ::-1] / pixel_nm
    told, true = (without_gauge(f, places[inside]) for f in (told, stream.strain_px(places[inside])))
    slope = float((told * true).sum() / (true**2).sum())
    assert 0.9 < slope < 1.1
    assert np.sqrt(((told - true) ** 2).sum(axis=1).mean()) < 0.08
    assert (map_.strain_sd > 0).all()


def test_the_distortion_is_known_whatever_the_strain(night) -> None:
    _, frames = night
    stage = CorrectDistortion(CONFIG)
    truth = crystal()
    for number, frame in enumerate(frames):
        corrected = stage.process(frame)
        scanned = truth.scan(rotation_deg=VIEWS[number][0], stage_px=VIEWS[number][1])
    assert corrected.registration is not None
    assert corrected.registration.distortion is not None
    pixels = np.stack(np.meshgrid(*[np.arange(0, SIZE, 4.0)] * 2, indexing="ij"), -1).reshape(-1, 2)
    true = scanned.displacement_px()[:, ::4, ::4].reshape(2, -1).T
    left = without_gauge(corrected.registration.distortion.at(pixels) - true, pixels)
    assert np.sqrt((without_gauge(true, pixels) ** 2).sum(axis=1).mean()) > 0.5
    assert np.sqrt((left**2).sum(axis=1).mean()) < 0.12


def test_drift_and_stage_together_say_where_the_specimen_went(night) -> None:
    stream, frames = night
    stage = CorrectDistortion(CONFIG)
    done = [stage.process(frame) for frame in frames]
    moved = done[3].registration
    assert moved is not None
    rate = np.array(moved.drift_rate_nm_per_s)
    frame_s = 1e-6 * SIZE * SIZE
    per_frame_px = np.abs(rate).max() * frame_s / stream.config.pixel_size_nm
    assert 0 < per_frame_px < 0.5  # 0.08 px a frame were drawn; the stage's move of 50 px is none of it
    commanded = to_raster_px(frames[3].stage_nm, frames[3].geometry)
    seen = to_raster_px(moved.drift_nm, frames[3].geometry)
    assert seen == pytest.approx(commanded, abs=4.0)  # stage error and drift
    assert done[3].geometry.center_nm == pytest.approx(
        tuple(-np.array(moved.drift_nm)), abs=0.51 * stream.config.pixel_size_nm
    )


def test_a_restart_goes_on_bit_for_bit(night) -> None:
    _, frames = night
    whole = CorrectDistortion(CONFIG)
    expected = []
    for frame in frames[:5]:
        expected.append((encode(whole.process(frame))[1:], [encode(news)[1:] for news in whole.news()]))
    for stop in (0, 1, 3):
        first, heir = CorrectDistortion(CONFIG), CorrectDistortion(CONFIG)
        for frame in frames[:stop]:
            first.process(frame)
            first.news()
        facts, arrays = first.state()
        heir.restore(
            unpack(pack(facts), CorrectState), {name: array.copy() for name, array in arrays.items()}
        )
        for frame, (image, news) in zip(frames[stop:5], expected[stop:], strict=True):
            assert encode(heir.process(frame))[1:] == image
            assert [encode(item)[1:] for item in heir.news()] == news


def test_a_map_survives_the_wire(night) -> None:
    _, frames = night
    stage = CorrectDistortion(CONFIG)
    for frame in frames[:3]:
        stage.process(frame)
    (map_,) = stage.news()
    again = decode([bytes(part) for part in encode(map_)])
    assert isinstance(again, StrainMap)
    assert again.geometry == map_.geometry
    np.testing.assert_array_equal(again.strain, map_.strain)


def test_a_frame_without_the_lattice_is_held_and_three_begin_anew(night) -> None:
    _, frames = night
    stage = CorrectDistortion(CONFIG)
    stage.process(frames[0])
    noise = np.random.default_rng(2).poisson(20, (1, SIZE, SIZE)).astype(np.float32)
    for _ in range(3):
        with pytest.raises(Rejected, match="lattice lost"):
            stage.process(msgspec.structs.replace(frames[4], image=noise))
    corrected = stage.process(frames[4])
    assert corrected.registration is not None
    assert corrected.registration.revision == 1


def test_a_first_frame_without_a_lattice_is_rejected() -> None:
    stage = CorrectDistortion(CONFIG)
    frame = frame_of(crystal(), 0, VIEWS[0])
    noise = np.random.default_rng(3).poisson(20, frame.image.shape).astype(np.float32)
    with pytest.raises(Rejected, match="no lattice"):
        stage.process(msgspec.structs.replace(frame, image=noise))


@pytest.mark.parametrize(
    "geometry",
    [
        ScanGeometry(shape=(SIZE, SIZE - 1), field_of_view_nm=(SIZE - 1.0, float(SIZE))),
        ScanGeometry(shape=(SIZE, SIZE), field_of_view_nm=(5.0, 4.0)),
    ],
)
def test_frames_that_do_not_cover_the_same_field_when_turned_are_refused(
    night, geometry: ScanGeometry
) -> None:
    _, frames = night
    stage = CorrectDistortion(CONFIG)
    image = frames[0].image[:, :, : geometry.shape[1]]
    with pytest.raises(Rejected, match="not square"):
        stage.process(msgspec.structs.replace(frames[0], image=image, geometry=geometry))
    corrected = stage.process(frames[0])
    assert corrected.registration is not None
    assert corrected.registration.revision == 0


def test_the_path_of_the_scan_is_that_of_the_frames_also_after_a_restart(night) -> None:
    _, frames = night
    stage, heir = CorrectDistortion(CONFIG), CorrectDistortion(CONFIG)
    corrected = stage.process(msgspec.structs.replace(frames[0], scan_path="serpentine"))
    heir.restore(*stage.state())
    again = heir.process(msgspec.structs.replace(frames[4], scan_path="serpentine"))
    for done in (corrected, again):
        assert done.registration is not None
        assert done.registration.distortion is not None
        assert done.registration.distortion.odd_cols_px is not None
