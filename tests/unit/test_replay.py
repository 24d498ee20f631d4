"""A replay plays what was recorded and refuses all else."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from simulators.recordings import RecordingError
from simulators.replay import Replay, open_recording
from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import Frame, Message, Outcome, Request, ScanGeometry

RNG_SEED = 5


def frame(number: int, at_s: float, *, shape=(20, 30), request_id: str | None = None) -> Frame:
    rng = np.random.default_rng(RNG_SEED + number)
    return Frame(
        session="old",
        number=number,
        acquired_at_s=at_s,
        image=rng.random((1, *shape), dtype=np.float32),
        channels=("HAADF",),
        geometry=ScanGeometry(
            shape=shape, field_of_view_nm=(shape[1] / 10, shape[0] / 10), center_nm=(5.0, 7.0)
        ),
        dwell_time_us=2.0,
        dose_e_per_nm2=9.0,
        request_id=request_id,
    )


def spectrum(name: str, position_nm: tuple[float, float], drift_nm: float = 0.4) -> Outcome:
    return Outcome(
        session="old",
        id=name,
        status="ok",
        scan_position_nm=(position_nm[0] + drift_nm, position_nm[1]),
        position_nm=position_nm,
        dwell_time_us=80.0,
        spectrum=np.arange(4, dtype=np.float32) + ord(name),
    )


def request(position_nm: tuple[float, float], **changes: object) -> Request:
    given = {
        "session": "new",
        "id": "q1",
        "action": "spectrum",
        "scan_position_nm": position_nm,
        "position_nm": position_nm,
        "dwell_time_us": 100.0,
    }
    return Request(**{**given, **changes})  # type: ignore[arg-type]


def subscan(
    position_nm: tuple[float, float],
    field_of_view_nm: tuple[float, float] | None,
    shape: tuple[int, int] | None = (8, 8),
) -> Request:
    return request(position_nm, action="scan", field_of_view_nm=field_of_view_nm, shape=shape)


def replay(folder: Path, *messages: Message, loop: bool = False) -> Replay:
    journal = Journal(folder, JournalConfig())
    for message in messages:
        journal.append(encode(message), 0.0, kind=kind_of(message), monotonic_s=0.0)
    journal.close()
    return open_recording(folder, loop=loop)


def test_frames_come_in_order_at_their_recorded_times_and_then_end(tmp_path: Path) -> None:
    recorded = [frame(3, 10.0), frame(4, 10.5), frame(6, 12.0)]
    instrument = replay(tmp_path, *recorded)
    played = [instrument.acquire() for _ in range(3)]
    assert [f.acquired_at_s for f in played if f] == [10.0, 10.5, 12.0]
    for have, want in zip(played, recorded, strict=True):
        assert have is not None
        assert (have.session, have.number) == ("", 0)
        np.testing.assert_array_equal(have.image, want.image)
    assert instrument.acquire() is None
    assert instrument.acquire() is None
    assert instrument.truth() is None
    assert instrument.name == f"replay of {tmp_path.name}"


def test_a_loop_begins_again_and_its_clock_goes_on(tmp_path: Path) -> None:
    instrument = replay(tmp_path, frame(0, 10.0), frame(1, 10.5), loop=True)
    times = [f.acquired_at_s for f in (instrument.acquire() for _ in range(6)) if f]
    assert times == pytest.approx([10.0, 10.5, 11.0, 11.5, 12.0, 12.5])


def test_a_single_frame_loops_at_its_own_duration(tmp_path: Path) -> None:
    instrument = replay(tmp_path, frame(0, 10.0), loop=True)
    step_s = 20 * 30 * 2e-6
    times = [f.acquired_at_s for f in (instrument.acquire() for _ in range(3)) if f]
    assert times == pytest.approx([10.0, 10.0 + step_s, 10.0 + 2 * step_s])


def test_a_spectrum_is_answered_by_the_nearest_recorded_one_where_it_was_taken(tmp_path: Path) -> None:
    instrument = replay(tmp_path, frame(0, 1.0), spectrum("a", (5.0, 7.0)), spectrum("b", (5.06, 7.0)))
    asked = request((5.04, 7.0), scan_position_nm=(8.04, 7.0))  # the specimen has drifted by 3 nm
    outcome, extra = instrument.execute(asked)
    assert extra is None
    assert (outcome.status, outcome.session, outcome.id) == ("ok", "new", "q1")
    assert outcome.scan_position_nm == pytest.approx((8.06, 7.0))
    assert outcome.position_nm is None
    assert outcome.dwell_time_us == 80.0
    np.testing.assert_array_equal(outcome.spectrum, np.arange(4) + ord("b"))


@pytest.mark.parametrize("position_nm", [(5.0, 7.06), (500.0, 0.0)])
def test_a_spectrum_elsewhere_is_refused(tmp_path: Path, position_nm: tuple[float, float]) -> None:
    instrument = replay(tmp_path, frame(0, 1.0), spectrum("a", (5.0, 7.0)))
    outcome, extra = instrument.execute(request(position_nm))
    assert outcome.status == "refused"
    assert outcome.reason == "no spectrum was recorded at this place; a replay never invents data"
    assert outcome.spectrum is None
    assert extra is None


def test_a_recorded_failure_answers_nothing(tmp_path: Path) -> None:
    failed = Outcome(session="old", id="a", status="failed", position_nm=(5.0, 7.0))
    instrument = replay(tmp_path, frame(0, 1.0), failed)
    assert instrument.execute(request((5.0, 7.0)))[0].status == "refused"


def test_a_recorded_subscan_is_played_again(tmp_path: Path) -> None:
    old = frame(1, 2.0, shape=(8, 8), request_id="s")
    taken = Outcome(
        session="old",
        id="s",
        status="ok",
        action="scan",
        scan_position_nm=(5.0, 7.0),
        position_nm=(5.1, 7.0),
        frame_number=1,
    )
    instrument = replay(tmp_path, frame(0, 1.0), old, taken)
    outcome, extra = instrument.execute(subscan((5.1, 7.02), (0.8, 0.8)))
    assert extra is not None
    np.testing.assert_array_equal(extra.image, old.image)
    assert (extra.request_id, extra.session, extra.number) == ("q1", "", 0)
    assert (outcome.id, outcome.status, outcome.frame_number) == ("q1", "ok", None)
    assert outcome.scan_position_nm == pytest.approx((5.1, 7.0))
    assert extra.geometry.center_nm == pytest.approx((5.1, 7.0))


def test_a_subscan_is_cut_from_the_current_frame_with_its_own_pixels(tmp_path: Path) -> None:
    instrument = replay(tmp_path, frame(0, 1.0))
    current = instrument.acquire()
    assert current is not None
    outcome, extra = instrument.execute(subscan((5.52, 6.97), (0.6, 0.4), (64, 64)))
    assert extra is not None
    (center,) = current.geometry.to_px(np.array([extra.geometry.center_nm]))
    row, col = (round(center[0] - 1.5), round(center[1] - 2.5))
    np.testing.assert_array_equal(extra.image, current.image[:, row : row + 4, col : col + 6])
    assert extra.geometry.pixel_size_nm == pytest.approx((0.1, 0.1))
    assert extra.geometry.center_nm == pytest.approx((5.52, 6.97), abs=0.051)
    assert outcome.scan_position_nm == extra.geometry.center_nm
    assert (extra.request_id, extra.dose_e_per_nm2) == ("q1", 0.0)
    assert outcome.status == "ok"
    assert "not measured anew" in outcome.reason


@pytest.mark.parametrize(
    "asked",
    [
        subscan((6.4, 7.0), (0.6, 0.4)),
        subscan((500.0, 7.0), (0.6, 0.4)),
        subscan((5.0, 7.0), (30.0, 30.0)),
        subscan((5.0, 7.0), (0.01, 0.01)),
        subscan((5.0, 7.0), None, None),
    ],
)
def test_a_subscan_that_the_frame_does_not_cover_is_refused(tmp_path: Path, asked: Request) -> None:
    instrument = replay(tmp_path, frame(0, 1.0))
    instrument.acquire()
    outcome, extra = instrument.execute(asked)
    assert (outcome.status, extra) == ("refused", None)
    assert "never invents data" in outcome.reason


def test_before_the_first_frame_every_request_is_refused(tmp_path: Path) -> None:
    instrument = replay(tmp_path, frame(0, 1.0))
    assert instrument.execute(subscan((5.0, 7.0), (0.6, 0.4)))[0].status == "refused"
    assert instrument.execute(request((5.0, 7.0)))[0].status == "refused"


def spectrum_image(path: Path) -> np.ndarray:
    counts = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5)
    with h5py.File(path, "w") as h5:
        group = h5.create_group("Experiments/eels")
        group["data"] = counts
        axes = (("y", 0.5, 0.0, "nm", True), ("x", 0.5, 0.0, "nm", True), ("E", 8.0, 700.0, "eV", False))
        for place, axis in enumerate(axes):
            names = ("name", "scale", "offset", "units", "navigate")
            group.create_group(f"axis-{place}").attrs.update(dict(zip(names, axis, strict=True)))
    return counts


def test_a_spectrum_image_answers_at_the_pixel_under_the_beam(tmp_path: Path) -> None:
    counts = spectrum_image(tmp_path / "eels.hspy")
    instrument = open_recording(tmp_path / "eels.hspy")
    current = instrument.acquire()
    assert current is not None
    where = current.geometry.to_nm(np.array([[2.2, 4.7]]))[0]
    outcome, _ = instrument.execute(request((float(where[0]), float(where[1]))))
    np.testing.assert_array_equal(outcome.spectrum, counts[2, 5])
    assert outcome.scan_position_nm == pytest.approx(current.geometry.to_nm(np.array([[2, 5]]))[0])
    assert (outcome.energy_offset_ev, outcome.energy_step_ev) == (700.0, 8.0)
    assert instrument.execute(request((90.0, 0.0)))[0].status == "refused"


def test_a_file_that_cannot_be_played_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="does not exist"):
        open_recording(tmp_path / "nothing")


def test_a_tolerance_of_nothing_is_refused(tmp_path: Path) -> None:
    spectrum_image(tmp_path / "eels.hspy")
    with pytest.raises(ValueError, match=r"replay\.tolerance_nm is 0"):
        open_recording(tmp_path / "eels.hspy", tolerance_nm=0.0)
