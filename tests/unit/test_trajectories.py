"""What all columns do together is told from what single ones do, and frame by frame as from all at once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.trajectories import LEAST_FRAMES, Motion, Trajectories

Float64 = NDArray[np.float64]
WINDOW = 32
NOISE_PX = 0.08


class Scan:
    """Columns at random places under a scan that drifts and bends; what is left of that is a tenth."""

    def __init__(self, columns: int = 300, seed: int = 1, drift_px: float = 0.05) -> None:
        self.rng = np.random.default_rng(seed)
        self.places = self.rng.uniform(0, 512, (columns, 2))
        self.drift_px = drift_px
        self.drift, self.bend = np.zeros(2), np.zeros(3)

    def frame(self) -> tuple[Float64, Float64]:
        """Make raw and corrected positions of the next frame."""
        self.drift = self.drift + self.drift_px * (1 + self.rng.normal(size=2))
        self.bend = 0.9 * self.bend + 0.2 * self.rng.normal(size=3)
        u, v = (self.places / 256 - 1).T
        field = np.stack([self.bend[0] * u * v, self.bend[1] * np.exp(-self.places[:, 1] / 22)], axis=1)
        field[:, 1] += self.bend[2] * u**2
        seen = self.places + self.rng.normal(0, NOISE_PX, self.places.shape)
        return seen + self.drift + field, seen + 0.1 * field


def batch(positions: list[Float64], count: int = 5) -> Float64:
    """Find the explained variance ratios by a singular value decomposition of all frames."""
    table = np.stack(positions).reshape(len(positions), -1)
    energy = np.linalg.svd(table - table.mean(axis=0), compute_uv=False) ** 2
    return np.asarray(energy[:count] / energy.sum())


def motions(trajectories: Trajectories) -> tuple[Motion, Motion]:
    summary = trajectories.summary()
    assert summary is not None
    return summary.before, summary.after


@pytest.mark.parametrize("frames", [LEAST_FRAMES, WINDOW, 3 * WINDOW + 5])
def test_the_components_are_those_of_all_frames_of_the_window_at_once(frames: int) -> None:
    scan, trajectories = Scan(), Trajectories(WINDOW)
    told = [scan.frame() for _ in range(frames)]
    for raw, corrected in told:
        trajectories.observe(np.arange(300), raw, corrected)
    for which, motion in enumerate(motions(trajectories)):
        expected = batch([pair[which] for pair in told[-WINDOW:]])
        np.testing.assert_allclose(motion.explained_variance_ratio, expected, rtol=1e-3)


def test_a_long_drift_costs_no_precision() -> None:
    scan, trajectories = Scan(drift_px=2.0), Trajectories(WINDOW)
    told = [scan.frame() for _ in range(400)]
    for raw, corrected in told:
        trajectories.observe(np.arange(300), raw, corrected)
    raw_last = [raw for raw, _ in told[-WINDOW:]]
    assert np.ptp(raw_last[-1] - told[0][0]) > 0
    assert np.abs(raw_last[-1] - told[0][0]).min() > 500
    np.testing.assert_allclose(
        motions(trajectories)[0].explained_variance_ratio, batch(raw_last), rtol=1e-3, atol=1e-8
    )


def test_columns_that_come_and_go_are_left_out_and_forgotten() -> None:
    scan, trajectories = Scan(400), Trajectories(WINDOW)
    rng = np.random.default_rng(2)
    tracks, told = np.arange(400), []
    for _ in range(4 * WINDOW):
        # Of the last 100 columns, some are lost in every frame and come back as others.
        lost = 300 + np.flatnonzero(rng.random(100) < 0.3)
        tracks[lost] = tracks.max() + 1 + np.arange(len(lost))
        raw, corrected = scan.frame()
        told.append(raw[:300])
        order = rng.permutation(400)
        trajectories.observe(tracks[order], raw[order], corrected[order])
    assert trajectories.columns == 300
    np.testing.assert_allclose(
        motions(trajectories)[0].explained_variance_ratio, batch(told[-WINDOW:]), rtol=1e-3
    )
    assert len(trajectories.state()["track"]) < 900  # 4,000 tracks have come and gone


def test_columns_that_are_lost_for_good_stop_counting_at_once() -> None:
    scan, trajectories = Scan(400), Trajectories(WINDOW)
    told = []
    for number in range(20):
        raw, corrected = scan.frame()
        told.append(raw[:300])
        # The last 100 go their own way, and then away.
        raw[300:] += 0.5 * number
        found = np.arange(400 if number < 10 else 300)
        trajectories.observe(found, raw[found], corrected[found])
    assert trajectories.columns == 300
    np.testing.assert_allclose(motions(trajectories)[0].explained_variance_ratio, batch(told), rtol=1e-3)


def test_columns_leave_and_come_into_a_full_window() -> None:
    scan, trajectories = Scan(400), Trajectories(WINDOW)
    counted = []
    for number in range(4 * WINDOW):
        raw, corrected = scan.frame()
        found = np.flatnonzero((np.arange(400) < 300) | (number < 40) | (number >= 80))
        trajectories.observe(found, raw[found], corrected[found])
        counted.append(trajectories.columns)
    # 26 of 32 frames are enough: the seventh that is missed is one too many.
    assert counted[40:48] == [400] * 6 + [300] * 2
    assert counted[80:107] == [300] * 25 + [400] * 2


def bent(positions: Float64) -> Float64:
    return positions + 5 * (positions / 256 - 1)


def test_a_column_missed_now_and_then_is_taken_to_have_been_where_it_is_on_average() -> None:
    scan, trajectories = Scan(), Trajectories(WINDOW)
    rng = np.random.default_rng(3)
    told = []
    for number in range(3 * WINDOW):
        raw, corrected = scan.frame()
        if number == 0:  # where a column was first seen must not matter
            raw = bent(raw)
        told.append(raw)
        found = np.flatnonzero((rng.random(300) < 0.95) | (number == 0))
        trajectories.observe(found, raw[found], corrected[found])
    assert trajectories.columns > 290
    np.testing.assert_allclose(
        motions(trajectories)[0].explained_variance_ratio, batch(told[-WINDOW:]), atol=0.01
    )


def test_a_column_that_came_late_is_taken_to_have_been_where_it_is_on_average() -> None:
    scan, trajectories = Scan(), Trajectories(WINDOW)
    told = []
    for number in range(WINDOW):
        raw, corrected = scan.frame()
        if number == 2:
            raw = bent(raw)
        told.append(raw)
        found = np.arange(0 if number >= 2 else 90, 300)
        trajectories.observe(found, raw[found], corrected[found])
    assert trajectories.columns == 300
    np.testing.assert_allclose(motions(trajectories)[0].explained_variance_ratio, batch(told), atol=0.01)


def test_the_common_part_is_the_scan_and_the_local_part_the_noise() -> None:
    scan, trajectories = Scan(1000), Trajectories(WINDOW)
    scans = []
    for _ in range(WINDOW):
        raw, corrected = scan.frame()
        scans.append((raw - corrected) / 0.9)  # the bend and, 1/0.9 too large, the drift
        trajectories.observe(np.arange(1000), raw, corrected)
    before, after = motions(trajectories)
    bends = [one - one.mean(axis=0) for one in scans]
    bend_px2 = np.var(np.stack(bends), axis=0).sum(axis=1).mean()
    assert before.local_px2 == pytest.approx(2 * NOISE_PX**2, rel=0.05)
    assert after.local_px2 == pytest.approx(2 * NOISE_PX**2, rel=0.05)
    assert before.common_px2 > bend_px2
    assert after.common_px2 < 0.03 * before.common_px2
    assert before.common_components >= 4  # two of the drift, three of the bend, which overlap
    assert before.explained_variance_ratio[0] > 0.5


def test_columns_at_rest_under_a_perfect_scan_have_nothing_in_common() -> None:
    rng, trajectories = np.random.default_rng(5), Trajectories(WINDOW)
    for _ in range(WINDOW):
        seen = rng.normal(0, NOISE_PX, (500, 2))
        trajectories.observe(np.arange(500), seen, seen)
    _, after = motions(trajectories)
    assert after.common_components == 0
    assert after.common_px2 == 0
    assert after.local_px2 == pytest.approx(2 * NOISE_PX**2, rel=0.03)


def test_columns_that_move_by_themselves_are_named_and_no_others() -> None:
    scan, trajectories = Scan(1000, seed=7), Trajectories(WINDOW)
    hopping = np.array([3, 500, 999])
    for number in range(2 * WINDOW):
        raw, _ = scan.frame()
        raw[hopping] += 0.3 if number // 7 % 2 else -0.3
        trajectories.observe(10 + np.arange(1000), raw, raw)  # whatever the correction has left
    mobility = trajectories.mobility()
    assert sorted(mobility) == [13, 510, 1009]
    # Hops of ±0.3 px along both axes, less what of them happens to go with the drift.
    np.testing.assert_allclose(list(mobility.values()), 0.3 * np.sqrt(2), rtol=0.15)
    np.testing.assert_array_equal(trajectories.mobility_px(np.array([11, 13, 77777])), [0, mobility[13], 0])


def test_a_motion_that_lasts_is_seen_among_columns_that_are_fitted_unequally_well() -> None:
    rng, trajectories = np.random.default_rng(13), Trajectories(WINDOW)
    noise = np.linspace(0.05, 0.10, 800)[:, None]
    middle = np.arange(400, 408)
    for number in range(WINDOW):
        seen = noise * rng.normal(size=(800, 2))
        seen[middle] += 0.11 if number // 9 % 2 else -0.11
        trajectories.observe(np.arange(800), seen, seen)
    assert sorted(trajectories.mobility()) == list(middle)


def test_columns_that_move_together_are_not_taken_for_the_scan_where_they_are_few() -> None:
    rng, trajectories = np.random.default_rng(11), Trajectories(WINDOW)
    for number in range(WINDOW):
        seen = rng.normal(0, NOISE_PX, (1000, 2))
        # Enough to stand out of the noise as a component of its own, in which noise is the larger part.
        seen[:10] += 0.12 if number // 7 % 2 else -0.12
        trajectories.observe(np.arange(1000), seen, seen)
    assert motions(trajectories)[1].common_components == 0
    assert sorted(trajectories.mobility()) == list(range(10))


def test_columns_that_are_fitted_worse_than_others_are_not_said_to_move() -> None:
    rng, trajectories = np.random.default_rng(9), Trajectories(WINDOW)
    noise = np.where(np.arange(800) % 2, 0.05, 0.10)[:, None]
    for _ in range(WINDOW):
        seen = noise * rng.normal(size=(800, 2))
        trajectories.observe(np.arange(800), seen, seen)
    assert trajectories.mobility() == {}


def test_there_is_no_summary_before_there_is_enough_to_summarise() -> None:
    scan, trajectories = Scan(), Trajectories(WINDOW)
    for _ in range(LEAST_FRAMES - 1):
        trajectories.observe(np.arange(300), *scan.frame())
    assert trajectories.summary() is None
    assert trajectories.mobility() == {}
    trajectories.observe(np.arange(300), *scan.frame())
    assert trajectories.summary() is not None


def test_an_empty_frame_is_passed_over_and_one_of_strangers_begins_anew() -> None:
    scan, trajectories = Scan(), Trajectories(WINDOW)
    for _ in range(LEAST_FRAMES):
        trajectories.observe(np.arange(300), *scan.frame())
    nothing = np.empty((0, 2))
    trajectories.observe(np.empty(0, dtype=np.int64), nothing, nothing)
    trajectories.observe(np.array([-1]), np.zeros((1, 2)), np.zeros((1, 2)))
    assert trajectories.frames == LEAST_FRAMES
    trajectories.observe(1000 + np.arange(300), *scan.frame())
    assert (trajectories.frames, trajectories.columns) == (1, 300)


def test_a_restored_one_goes_on_bit_for_bit() -> None:
    scan, first = Scan(), Trajectories(WINDOW)
    rng = np.random.default_rng(4)
    second = Trajectories(WINDOW)
    for number in range(2 * WINDOW):
        if number == WINDOW + 3:
            kept = first.state()
            second.restore(kept)
        found = np.flatnonzero(rng.random(300) < 0.9)
        raw, corrected = scan.frame()
        for one in (first, second) if number >= WINDOW + 3 else (first,):
            one.observe(found, raw[found], corrected[found])
    for name, array in first.state().items():
        np.testing.assert_array_equal(array, second.state()[name], err_msg=name)
    assert motions(first)[1].common_px2 == motions(second)[1].common_px2
    assert first.mobility() == second.mobility()


def test_a_state_is_not_changed_by_what_is_learnt_after() -> None:
    scan, trajectories = Scan(), Trajectories(WINDOW)
    trajectories.observe(np.arange(300), *scan.frame())
    kept = trajectories.state()
    before = {name: array.copy() for name, array in kept.items()}
    trajectories.observe(np.arange(300), *scan.frame())
    for name, array in kept.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_state_of_another_window_is_refused_and_changes_nothing() -> None:
    scan, trajectories = Scan(), Trajectories(WINDOW)
    trajectories.observe(np.arange(300), *scan.frame())
    for state in (Trajectories(16).state(), {}, {**trajectories.state(), "missed": np.zeros(3)}):
        with pytest.raises(ValueError, match=r"the state's array .* start without it"):
            trajectories.restore(state)
    assert (trajectories.frames, trajectories.columns) == (1, 300)


@pytest.mark.parametrize(
    ("tracks", "raw", "said"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2)), r"tracks has shape \(2, 2\)"),
        (np.arange(3), np.zeros((2, 2)), r"raw_px has shape \(2, 2\); it takes \(3, 2\)"),
        (np.arange(2), np.full((2, 2), np.nan), "raw_px holds a number that is not finite"),
        (np.array([5, 5]), np.zeros((2, 2)), "a track occurs twice"),
    ],
)
def test_what_is_no_frame_of_columns_is_refused(tracks: Float64, raw: Float64, said: str) -> None:
    trajectories = Trajectories()
    with pytest.raises(ValueError, match=said):
        trajectories.observe(tracks.astype(np.int64), raw, np.zeros((len(tracks), 2)))
    assert trajectories.frames == 0


@pytest.mark.parametrize("wrong", [{"window_frames": 4}, {"components": 0}, {"least_presence": 0.2}])
def test_a_setting_out_of_range_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .* it takes"):
        Trajectories(**wrong)  # type: ignore[arg-type]
