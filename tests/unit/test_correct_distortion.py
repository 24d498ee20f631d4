"""CorrectDistortion finds drift and row offsets that were put into a drawn specimen."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from streamer.drift import DriftTracker
from streamer.messages import Frame, ScanGeometry
from streamer.observers.registration import Matcher
from streamer.observers.two_directions import fast_axis_places
from streamer.stage import Rejected
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion
from tests.drawn_specimen import COLS, ROWS, columns, scan

PIXEL_NM = 0.02


def elsewhere() -> NDArray[np.float64]:
    """Columns in no order at all."""
    rng = np.random.default_rng(99)
    places = rng.uniform(-40, 160, (120, 2))
    return np.column_stack([places, np.full(len(places), 60.0)])


def frame(image: NDArray[np.float32], number: int = 0, **changes: object) -> Frame:
    fields: dict[str, object] = {
        "session": "s",
        "number": number,
        "acquired_at_s": 100.0 + number,
        "image": image[None],
        "channels": ("HAADF",),
        "geometry": ScanGeometry(shape=(ROWS, COLS), field_of_view_nm=(COLS * PIXEL_NM, ROWS * PIXEL_NM)),
        "dwell_time_us": 10.0,
    }
    return Frame(**(fields | changes))  # type: ignore[arg-type]


def drift_px(corrected: Frame) -> NDArray[np.float64]:
    """(row, col) of an unrotated frame."""
    assert corrected.registration is not None
    return np.array(corrected.registration.drift_nm)[::-1] / PIXEL_NM


@pytest.mark.parametrize("drift", [(0.3, -0.4), (-2.7, 1.2), (5.5, 4.25)])
def test_a_drift_is_found_to_a_few_hundredths_of_a_pixel(drift: tuple[float, float]) -> None:
    stage = CorrectDistortion(CorrectConfig(reach_nm=0.1))
    stage.process(frame(scan()))
    corrected = stage.process(frame(scan(drift), 1))
    np.testing.assert_allclose(drift_px(corrected), drift, atol=0.03)


def test_a_displaced_atom_is_put_back_to_its_place_on_the_specimen() -> None:
    stage = CorrectDistortion()
    first = stage.process(frame(scan()))
    corrected = stage.process(frame(scan((2.3, -1.6)), 1))
    # Where the first frame has an atom, the corrected one has it at the same specimen position.
    atom_px = columns()[(columns()[:, :2] > 30).all(axis=1) & (columns()[:, :2] < 60).all(axis=1)][0, :2]
    there = corrected.geometry.to_px(first.geometry.to_nm(atom_px))[0]
    row, col = np.rint(there).astype(int)
    patch = corrected.image[0, row - 4 : row + 5, col - 4 : col + 5] - 4
    step = np.arange(-4, 5)
    centre = np.array([(patch.sum(axis=1) * step).sum(), (patch.sum(axis=0) * step).sum()]) / patch.sum()
    np.testing.assert_allclose(np.array([row, col]) + centre, there, atol=0.1)


def test_the_drift_points_from_the_specimen_to_the_scan_position_also_under_rotation() -> None:
    rotation = math.radians(30)
    geometry = ScanGeometry(
        shape=(ROWS, COLS),
        field_of_view_nm=(COLS * PIXEL_NM, ROWS * PIXEL_NM),
        center_nm=(5.0, -3.0),
        rotation_rad=rotation,
    )
    stage = CorrectDistortion()
    stage.process(frame(scan(), geometry=geometry))
    corrected = stage.process(frame(scan((1.5, 2.5)), 1, geometry=geometry))
    assert corrected.registration is not None
    # The same atom is seen at pixel (40, 50) first and at (41.5, 52.5) then.
    moved = geometry.to_nm(np.array([[41.5, 52.5]])) - geometry.to_nm(np.array([[40.0, 50.0]]))
    np.testing.assert_allclose(corrected.registration.drift_nm, moved[0], atol=0.05 * PIXEL_NM)


def test_a_long_drift_is_followed_without_losing_the_field() -> None:
    rng = np.random.default_rng(6)
    stage = CorrectDistortion()
    for number in range(25):
        truth = (0.9 * number, -1.3 * number)
        corrected = stage.process(frame(scan(truth, rng=rng), number))
    np.testing.assert_allclose(drift_px(corrected), truth, atol=0.15)
    assert corrected.registration is not None
    assert corrected.registration.revision == 0
    rate = np.array(corrected.registration.drift_rate_nm_per_s)[::-1] / PIXEL_NM
    np.testing.assert_allclose(rate, (0.9, -1.3), atol=0.05)
    # The raster went along: less than a pixel of the frame was filled in.
    shift = np.array(corrected.geometry.center_nm)[::-1] / PIXEL_NM
    np.testing.assert_allclose(shift, -np.rint(truth), atol=1e-6)


def test_a_perfect_lattice_does_not_make_it_hop_by_a_unit_cell() -> None:
    row, col = np.meshgrid(np.arange(-64, 170, 16), np.arange(-64, 200, 16), indexing="ij")
    perfect = np.stack([row.ravel(), col.ravel(), np.full(row.size, 60.0)], axis=1)
    rng = np.random.default_rng(8)
    stage = CorrectDistortion()
    for number in range(12):
        corrected = stage.process(frame(scan((0.0, 2.0 * number), rng=rng, sites=perfect), number))
    np.testing.assert_allclose(drift_px(corrected), (0.0, 22.0), atol=0.15)


def test_row_jitter_is_measured_and_taken_out() -> None:
    rng = np.random.default_rng(10)
    stage = CorrectDistortion()
    for number in range(8):
        jitter = rng.normal(0, 0.6, ROWS)
        raw = scan(offsets_px=jitter, rng=rng)
        corrected = stage.process(frame(raw, number))
    clean = scan()
    inside = (slice(8, -8), slice(8, -8))
    before = np.std((raw - clean)[inside])
    after = np.std((corrected.image[0] - clean)[inside])
    shot_noise = np.sqrt(clean[inside].mean())
    assert before > 1.3 * shot_noise
    assert after < 1.05 * shot_noise


@pytest.mark.parametrize("change", ["field", "centre", "rotation", "shape"])
def test_another_geometry_starts_a_new_reference(change: str) -> None:
    stage = CorrectDistortion()
    stage.process(frame(scan()))
    image = scan()
    field = (COLS * PIXEL_NM, ROWS * PIXEL_NM)
    geometry = {
        "field": ScanGeometry(shape=(ROWS, COLS), field_of_view_nm=(1.0, 1.0)),
        "centre": ScanGeometry(shape=(ROWS, COLS), field_of_view_nm=field, center_nm=(1.0, 0.0)),
        "rotation": ScanGeometry(shape=(ROWS, COLS), field_of_view_nm=field, rotation_rad=0.1),
        "shape": ScanGeometry(shape=(ROWS - 1, COLS), field_of_view_nm=field),
    }[change]
    image = image[: geometry.shape[0]]
    corrected = stage.process(frame(image, 1, geometry=geometry))
    assert corrected.registration is not None
    assert corrected.registration.revision == 1
    assert corrected.registration.drift_nm == (0.0, 0.0)
    np.testing.assert_array_equal(corrected.image[0], image)


def test_a_frame_that_matches_nothing_starts_a_new_reference() -> None:
    rng = np.random.default_rng(18)
    stage = CorrectDistortion()
    for number in range(3):
        stage.process(frame(scan(rng=rng), number))
    corrected = stage.process(frame(scan(rng=rng, sites=elsewhere()), 3))
    assert corrected.registration is not None
    assert corrected.registration.revision == 1
    assert corrected.registration.distortion is not None
    assert corrected.registration.distortion.flags == ("lost",)


def test_a_blank_frame_is_rejected_and_the_reference_outlives_it() -> None:
    rng = np.random.default_rng(18)
    stage = CorrectDistortion()
    for number in range(3):
        stage.process(frame(scan(rng=rng), number))
    dark = rng.poisson(4, (ROWS, COLS)).astype(np.float32)
    with pytest.raises(Rejected, match="blank frame"):
        stage.process(frame(dark, 3))
    corrected = stage.process(frame(scan((0.4, -0.3), rng=rng), 4))
    assert corrected.registration is not None
    assert corrected.registration.revision == 0
    np.testing.assert_allclose(drift_px(corrected), (0.4, -0.3), atol=0.05)


def test_a_jump_of_the_stage_is_followed_and_said() -> None:
    rng = np.random.default_rng(19)
    stage = CorrectDistortion()
    for number in range(3):
        stage.process(frame(scan(rng=rng, sites=elsewhere()), number))
    corrected = stage.process(frame(scan((22.0, -30.0), rng=rng, sites=elsewhere()), 3))
    assert corrected.registration is not None
    assert corrected.registration.revision == 0
    assert corrected.registration.distortion is not None
    assert corrected.registration.distortion.flags == ("jump",)
    np.testing.assert_allclose(drift_px(corrected), (22.0, -30.0), atol=0.1)


def test_a_sub_scan_passes_in_specimen_coordinates_and_teaches_nothing() -> None:
    rng = np.random.default_rng(20)
    images = [scan((0.0, 1.0 * n), rng=rng) for n in range(5)]
    undisturbed, visited = CorrectDistortion(), CorrectDistortion()
    for number, image in enumerate(images[:4]):
        expected = undisturbed.process(frame(image, number))
        visited.process(frame(image, number))
    small = ScanGeometry(shape=(16, 16), field_of_view_nm=(0.3, 0.3), center_nm=(0.2, 0.1))
    ask = frame(np.full((16, 16), 9.0, dtype=np.float32), 4, geometry=small, request_id="r1")
    answer = visited.process(ask)
    assert expected.registration is not None
    assert answer.registration is not None
    np.testing.assert_array_equal(answer.image, ask.image)
    drift = answer.registration.drift_nm
    np.testing.assert_allclose(drift, (4.0 * PIXEL_NM, 0.0), atol=0.3 * PIXEL_NM)
    np.testing.assert_allclose(answer.geometry.center_nm, (0.2 - drift[0], 0.1 - drift[1]), atol=1e-9)
    np.testing.assert_array_equal(
        visited.process(frame(images[4], 5)).image, undisturbed.process(frame(images[4], 5)).image
    )


def test_a_sub_scan_before_any_frame_lies_where_it_was_scanned() -> None:
    ask = frame(scan(), request_id="r1")
    answer = CorrectDistortion().process(ask)
    assert answer.geometry == ask.geometry
    assert answer.registration is not None


def test_the_drift_holds_at_the_middle_of_the_frame() -> None:
    corrected = CorrectDistortion().process(frame(scan(), 7, dwell_time_us=100.0))
    assert corrected.registration is not None
    assert corrected.registration.at_s == pytest.approx(107.0 - 0.5 * ROWS * COLS * 100e-6)


def test_all_channels_are_moved_alike() -> None:
    def pair(drift: tuple[float, float], number: int) -> Frame:
        both = np.stack([scan(drift), 3 * scan(drift)])
        return replace(frame(both[0], number), image=both, channels=("HAADF", "MAADF"))

    stage = CorrectDistortion()
    stage.process(pair((0, 0), 0))
    corrected = stage.process(pair((0.4, 0.7), 1))
    np.testing.assert_allclose(corrected.image[1], 3 * corrected.image[0], rtol=1e-5)


def test_the_tracker_goes_on_along_a_straight_line() -> None:
    tracker = DriftTracker(4)
    assert tracker.predict(3.0) == (0.0, 0.0)
    for at_s in (0.0, 1.0, 2.0):
        tracker.observe((0.5 * at_s, 1.0 - 0.1 * at_s), at_s)
    np.testing.assert_allclose(tracker.predict(4.0), (2.0, 0.6))
    assert tracker.predict(4.0) == tracker.predict(4.0)


def test_the_tracker_has_no_rate_from_one_time() -> None:
    tracker = DriftTracker(4)
    tracker.observe((0.1, 0.2), 5.0)
    tracker.observe((0.3, 0.2), 5.0)
    assert tracker.rate_nm_per_s == (0.0, 0.0)
    assert tracker.predict(9.0) == (0.3, 0.2)


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, -1.5])
def test_no_motion_is_predicted_across_a_step_of_the_clock(step_s: float) -> None:
    tracker = DriftTracker(8)
    for number in range(6):
        tracker.observe((0.01 * number, 0.0), 100.0 + number)
    assert tracker.predict(105.0 + step_s) == (0.05, 0.0)
    # The step is not taken for the time in which the specimen went from there to here.
    for number in range(6, 9):
        tracker.observe((0.01 * number, 0.0), 100.0 + number + step_s)
        assert tracker.rate_nm_per_s == pytest.approx((0.0 if number == 6 else 0.01, 0.0))
    np.testing.assert_allclose(tracker.predict(109.0 + step_s), (0.09, 0.0))


def test_a_clock_that_is_set_right_after_the_first_frame_is_soon_forgotten() -> None:
    tracker = DriftTracker(8)
    for at_s, x in ((0.0, 0.0), (3600.0, 0.01), (3601.0, 0.02), (3602.0, 0.03), (3603.0, 0.04)):
        tracker.observe((x, 0.0), at_s)
    np.testing.assert_allclose(tracker.rate_nm_per_s, (0.01, 0.0))


def test_slow_frames_are_no_steps() -> None:
    tracker = DriftTracker(4)
    for number in range(6):
        tracker.observe((0.1 * number, 0.0), 300.0 * number)
    np.testing.assert_allclose(tracker.predict(1800.0), (0.6, 0.0))


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_moves_no_atom(step_s: float) -> None:
    """A lattice with drift: the old rate over an hour would point many unit cells away."""
    rng = np.random.default_rng(22)
    images = [scan((0.0, 2.0 * number), rng=rng) for number in range(12)]
    steady, stepped = CorrectDistortion(), CorrectDistortion()
    for number, image in enumerate(images):
        late_s = step_s if number >= 6 else 0.0
        expected = steady.process(frame(image, number))
        seen = stepped.process(frame(image, number, acquired_at_s=100.0 + number + late_s))
        np.testing.assert_allclose(drift_px(seen), drift_px(expected), atol=0.05)
        assert seen.registration is not None
        assert seen.registration.revision == 0


def test_what_was_learnt_can_be_handed_on_after_any_frame() -> None:
    rng = np.random.default_rng(24)
    frames = [frame(scan((0.7 * number, -1.1 * number), rng=rng), number) for number in range(8)]
    frames[5] = frame(scan(rng=rng, sites=elsewhere()), 5)  # the reference is lost
    expected = corrected_by(CorrectDistortion(), frames)
    for number in range(8):
        first, heir = CorrectDistortion(), CorrectDistortion()
        corrected_by(first, frames[:number])
        heir.restore(*first.state())
        assert corrected_by(heir, frames[number:]) == expected[number:]


def corrected_by(stage: CorrectDistortion, frames: list[Frame]) -> list[tuple[object, ...]]:
    done = [stage.process(item) for item in frames]
    return [
        (item.image.tobytes(), item.geometry, msgspec.msgpack.encode(item.registration, enc_hook=bytes))
        for item in done
    ]


def test_a_state_stays_as_it_was_said() -> None:
    stage = CorrectDistortion()
    for number in range(2):
        stage.process(frame(scan((0.0, 0.3 * number)), number))
    facts, arrays = stage.state()
    kept = {name: array.copy() for name, array in arrays.items()}
    for number in range(2, 5):
        stage.process(frame(scan((1.0, 1.3 * number)), number))
    assert facts != stage.state()[0]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, kept[name])
        assert not array.flags.writeable


@pytest.mark.parametrize(
    ("name", "text"), [("image", "the reference has shape"), ("rows", "of correct have unlike shapes")]
)
def test_arrays_of_another_raster_are_refused(name: str, text: str) -> None:
    stage = CorrectDistortion()
    stage.process(frame(scan()))
    facts, arrays = stage.state()
    with pytest.raises(ValueError, match=text):
        CorrectDistortion().restore(facts, arrays | {name: arrays[name][1:]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reach_nm", 0.0),
        ("memory_frames", 0),
        ("rate_frames", 1),
        ("max_row_offset_px", 0.0),
        ("lost_below", 1.0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"correct.{name} is {value}; it takes"):
        CorrectConfig(**{name: value})


PERIOD_ROWS = 9.3


def humming(count: int, amplitude_px: float = 0.5) -> list[Frame]:
    """Frames without a pause between them, of columns in no order, with the mains on the scan coils."""
    rng = np.random.default_rng(30)
    sites = np.column_stack([rng.uniform(-10, 140, (220, 2)), np.full(220, 60.0)])
    frames = []
    for number in range(count):
        at = ROWS * number + np.arange(ROWS)
        hum = amplitude_px * np.sin(2 * np.pi * at / PERIOD_ROWS)
        image = scan((0.2 * number, 0.1 * number), offsets_px=hum, rng=rng, sites=sites)
        frames.append(frame(image, number))
    return frames


def test_a_hum_is_found_by_itself_followed_and_told() -> None:
    stage = CorrectDistortion()
    done = [stage.process(item) for item in humming(7)]
    said = [item.registration.distortion for item in done if item.registration is not None]
    # Three frames measured against the first one; the next is corrected with it.
    assert [one.model_revision for one in said if one is not None] == [0, 0, 0, 0, 1, 1, 1]
    (news,) = stage.news()
    assert stage.news() == ()
    assert (news.session, news.policy, news.revision, news.told) == ("s", "distortion", 1, 3)
    assert abs(news.parameters["hum_period_rows"][0] / PERIOD_ROWS - 1) < 5e-3
    assert len(news.parameters["hum_px"]) == 2
    last = said[-1]
    assert last is not None
    row = np.arange(ROWS)
    wave = last.rows_px[1] @ np.exp(2j * np.pi * row / PERIOD_ROWS) * 2 / ROWS
    assert 0.3 < abs(wave) < 1.0  # the first frame's own hum is in the reference


def test_where_nothing_hums_no_hum_is_found() -> None:
    stage = CorrectDistortion()
    for item in humming(7, amplitude_px=0.0):
        stage.process(item)
    assert stage.news() == ()


def test_a_period_that_is_known_is_not_looked_for() -> None:
    stage = CorrectDistortion(CorrectConfig(hum_period_rows=PERIOD_ROWS))
    for item in humming(5):
        stage.process(item)
    assert stage.news() == ()


def test_a_search_for_hum_and_its_news_outlive_a_restart() -> None:
    frames = humming(7)
    whole = CorrectDistortion()
    expected = corrected_by(whole, frames)
    for number in range(1, 7):
        first, heir = CorrectDistortion(), CorrectDistortion()
        corrected_by(first, frames[:number])
        facts, arrays = first.state()
        facts = msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=type(facts))
        heir.restore(facts, arrays)
        assert corrected_by(heir, frames[number:]) == expected[number:]
        assert [one.told for one in heir.news()] == [3]


@pytest.mark.parametrize("mode", ["drift-only", "calibrate", "separate"])
def test_the_digits_do_not_depend_on_where_the_arrays_lie(mode: str) -> None:
    """A restart finds the same digits again, and it does not find its arrays at the same addresses."""
    rng = np.random.default_rng(31)
    images = [scan((0.4 * number, -0.3 * number), rng=rng)[:, :ROWS] for number in range(3)]
    square = ScanGeometry(shape=(ROWS, ROWS), field_of_view_nm=(ROWS * PIXEL_NM, ROWS * PIXEL_NM))
    told = set()
    for place in range(0, 64, 8):
        stage = CorrectDistortion(CorrectConfig(mode=mode))
        between = [np.empty(997 * (place + step), dtype=np.uint8) for step in range(20)]
        frames = [frame(laid(image, place), n, geometry=square) for n, image in enumerate(images)]
        done = corrected_by(stage, frames)
        told.add(repr(done))
        del between
    assert len(told) == 1


def laid(image: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    """Copy an image to an address that is so many bytes past a multiple of 64."""
    room = np.empty(image.nbytes + 128, dtype=np.uint8)
    start = -room.ctypes.data % 64 + place
    copy = room[start : start + image.nbytes].view(np.float32).reshape(image.shape)
    copy[:] = image
    return copy


def test_a_small_frame_has_blocks_enough_to_be_followed_in_calibrate() -> None:
    rng = np.random.default_rng(60)
    stage = CorrectDistortion(CorrectConfig(mode="calibrate", observer="registration", reach_nm=0.1))
    small = ScanGeometry(shape=(72, 72), field_of_view_nm=(72 * PIXEL_NM, 72 * PIXEL_NM))
    for number in range(4):
        image = scan((0.5 * number, -0.3 * number), rng=rng)[:72, :72].copy()
        corrected = stage.process(frame(image, number, geometry=small))
        assert corrected.registration is not None
        assert corrected.registration.revision == 0
    np.testing.assert_allclose(drift_px(corrected), (1.5, -0.9), atol=0.15)


def resonant(drift: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float32]:
    """Draw the specimen as a fast axis that swings like a sine sees it, read evenly in time."""
    even = scan(drift)
    places = fast_axis_places(COLS)
    return np.stack([np.interp(places, np.arange(COLS), row) for row in even]).astype(np.float32)


def test_a_resonant_axis_read_evenly_in_time_is_made_even_in_place_before_anything_else() -> None:
    stage = CorrectDistortion(CorrectConfig(mode="drift-only", reach_nm=0.1))
    first = stage.process(frame(resonant(), scan_path="sinusoidal"))
    assert np.abs(first.image[0] - scan())[:, 4:-4].max() < 0.05 * np.ptp(scan())
    assert np.abs(resonant() - scan()).max() > 0.5 * np.ptp(scan())
    corrected = stage.process(frame(resonant((0.0, 2.5)), 1, scan_path="sinusoidal"))
    # A drift moves every part of the frame by as many pixels of the even raster.
    np.testing.assert_allclose(drift_px(corrected), (0.0, 2.5), atol=0.05)


def test_a_resonant_axis_that_the_instrument_made_even_is_left_as_it_is() -> None:
    config = CorrectConfig(mode="drift-only", sinusoidal_samples="place")
    first = CorrectDistortion(config).process(frame(scan(), scan_path="sinusoidal"))
    np.testing.assert_array_equal(first.image[0], scan())


def both_ways(lag_px: float, drift: tuple[float, float] = (0.0, 0.0), seed: int = 70) -> NDArray[np.float32]:
    """Draw a forward image behind by half of the lag, and a backward one ahead by as much."""
    rng = np.random.default_rng(seed)
    forward, backward = (scan((drift[0], drift[1] + sign * lag_px / 2), rng=rng) for sign in (1, -1))
    return np.stack([forward, backward])


def paired(images: NDArray[np.float32], number: int = 0) -> Frame:
    return replace(frame(images[0], number), image=images, channels=("Height trace", "Height retrace"))


def ahead(corrected: Frame) -> NDArray[np.float64]:
    """Say how far the forward image still lies before the backward one, (row, col)."""
    matcher = Matcher((ROWS, COLS))
    return matcher.match(corrected.image[0], corrected.image[1], np.zeros(2), 4.0)[0]


@pytest.mark.parametrize("config", [{}, {"mode": "calibrate", "observer": "registration"}])
def test_forward_and_backward_images_are_each_put_back_by_half_of_their_lag(config: dict[str, Any]) -> None:
    stage = CorrectDistortion(CorrectConfig(reach_nm=0.1, **config))
    for number in range(4):
        images = both_ways(1.5, (0.4 * number, 0.6 * number), seed=70 + number)
        corrected = stage.process(paired(images, number))
        assert corrected.registration is not None
        assert corrected.registration.distortion is not None
        assert "paired" in corrected.registration.distortion.flags
    np.testing.assert_allclose(ahead(corrected), 0.0, atol=0.1)
    # To both sides by as much: the middle stays, and the drift is that of the specimen.
    # In calibrate a tenth of the drift is laid to the field, which is as relative.
    np.testing.assert_allclose(drift_px(corrected), (1.2, 1.8), atol=0.2 if config else 0.1)
    first = CorrectDistortion(CorrectConfig(reach_nm=0.1, **config)).process(paired(both_ways(1.5)))
    middle, _ = Matcher((ROWS, COLS)).match(first.image[0], scan(), np.zeros(2), 4.0)
    np.testing.assert_allclose(middle, 0.0, atol=0.1)


def test_directions_without_a_lag_are_left_exactly_where_they_are() -> None:
    images = both_ways(0.0)
    np.testing.assert_array_equal(CorrectDistortion().process(paired(images)).image, images)


def test_a_backward_image_in_order_of_time_is_said_and_left_alone() -> None:
    images = both_ways(1.5)
    images[1] = images[1][:, ::-1]
    corrected = CorrectDistortion().process(paired(images))
    assert corrected.registration is not None
    assert corrected.registration.distortion is not None
    assert corrected.registration.distortion.flags == ("mirrored",)
    np.testing.assert_array_equal(corrected.image, images)


def test_the_lag_of_two_directions_is_the_same_after_a_restart() -> None:
    stage, other = CorrectDistortion(), CorrectDistortion()
    frames = [paired(both_ways(1.5, (0.3 * n, 0.0), seed=80 + n), n) for n in range(5)]
    for one in frames[:3]:
        stage.process(one)
    other.restore(*stage.state())
    for one in frames[3:]:
        np.testing.assert_array_equal(stage.process(one).image, other.process(one).image)


@pytest.mark.parametrize("correct_rows", [True, False])
def test_what_is_said_to_be_left_is_what_the_offsets_of_rows_do_not_make_up_for(correct_rows: bool) -> None:
    rng = np.random.default_rng(90)
    stage = CorrectDistortion(CorrectConfig(mode="drift-only", correct_rows=correct_rows))
    middle = np.column_stack([np.arange(ROWS), np.full(ROWS, COLS / 2)])
    said, true = [], []
    for number in range(8):
        jitter = rng.normal(0, 0.45, ROWS)
        image = scan(offsets_px=jitter, rng=rng, sites=elsewhere())
        registration = stage.process(frame(image, number)).registration
        assert registration is not None
        assert registration.distortion is not None
        said.append(registration.distortion.residual_px)
        # A row that appears displaced by its jitter was recorded that far before its place.
        error = registration.distortion.at(middle) + np.stack([np.zeros(ROWS), jitter], axis=1)
        true.append(float(np.sqrt(((error - error.mean(axis=0)) ** 2).mean())))
    assert math.isnan(said[0])
    assert (np.median(true[1:]) < 0.22) == correct_rows
    # By halves of the rows, of which each knows less than the whole.
    assert 0.9 < np.median(said[1:]) / np.median(true[1:]) < 1.5
