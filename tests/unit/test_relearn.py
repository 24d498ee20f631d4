"""A model that foresees its frames no longer is learnt anew, at a frame that is fixed beforehand."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from models.distortion_gp import DistortionGP, Hyperparameters, Observations, ScanModel
from streamer.relearn import Relearner, RelearnState

SCAN = ScanModel(shape=(128, 128), blocks=("affine", "coil", "drift"))
CALM = Hyperparameters(jitter_px=(0.0, 0.0))
SHORTER = msgspec.structs.replace(CALM, timescale_frames=5.0)
NOISE_PX = 0.04
TURNS_AT = 16


def stream(
    seed: int, frames: int, restless_from: int = TURNS_AT, noise_px: NDArray[np.float64] | None = None
) -> list[Observations]:
    """Columns of a field that lies still, and from some frame on is another one in each frame."""
    rng = np.random.default_rng(seed)
    noise = np.full(frames, NOISE_PX) if noise_px is None else noise_px
    still = rng.normal(0, 0.5, (2, 3))
    seen = []
    for number in range(frames):
        positions = rng.uniform(0, 127, (300, 2))
        row, col = positions.T / 128
        shapes = np.stack([np.sin(3 * row), np.cos(3 * col), np.sin(2 * (row + col))])
        field = still if number < restless_from else still + rng.normal(0, 0.6, (2, 3))
        displacement = (field @ shapes).T + rng.normal(0, noise[number], (300, 2))
        seen.append(
            Observations(
                positions_px=positions,
                displacement_px=displacement,
                variance_px2=np.full((300, 2), noise[number] ** 2),
            )
        )
    return seen


def found(_: ScanModel, __: Sequence[Observations], ___: Hyperparameters) -> Hyperparameters:
    """Learn nothing, at once."""
    return SHORTER


class Work:
    """A model with its watch, frame by frame."""

    def __init__(self, relearner: Relearner, model: DistortionGP | None = None) -> None:
        self.relearner, self.model = relearner, model or DistortionGP(SCAN, CALM)
        self.swapped_at: list[int] = []
        self.began_at: list[int] = []
        self.evidence: list[float] = []
        self.number = 0

    def take(self, seen: Observations) -> None:
        other = self.relearner.swap(self.model)
        if other is not None:
            self.model = other
            self.swapped_at.append(self.number)
        was_learning = self.relearner.is_learning
        self.model.predict()
        update = self.model.observe(seen)
        self.evidence.append(update.log_evidence)
        self.relearner.watch(self.model, seen, update)
        if self.relearner.is_learning and not was_learning:
            self.began_at.append(self.number)
        self.number += 1


def worked(relearner: Relearner, frames: list[Observations]) -> Work:
    work = Work(relearner)
    for seen in frames:
        work.take(seen)
    return work


def test_a_drop_that_lasts_is_learnt_from_within_five_frames() -> None:
    work = worked(Relearner(found), stream(2, 25))
    assert len(work.began_at) == 1
    assert TURNS_AT + 2 <= work.began_at[0] <= TURNS_AT + 4


def test_a_field_that_lies_still_is_left_alone() -> None:
    assert worked(Relearner(found), stream(2, 60, restless_from=60)).began_at == []


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_another_dose_is_no_reason_to_learn(factor: float) -> None:
    noise_px = NOISE_PX * np.where(np.arange(40) < 20, 1.0, factor)
    assert worked(Relearner(found), stream(4, 40, restless_from=40, noise_px=noise_px)).began_at == []


def test_a_single_frame_that_went_wrong_is_no_reason_to_learn() -> None:
    relearner, model = Relearner(found), DistortionGP(SCAN, CALM)
    for number, seen in enumerate(stream(6, 30, restless_from=30)):
        model.predict()
        update = model.observe(seen)
        wrong = replace(update, log_evidence=update.log_evidence - 50)
        relearner.watch(model, seen, wrong if number == 20 else update)
        assert not relearner.is_learning


def test_the_swap_comes_at_the_frame_that_was_fixed_whether_learning_is_quick_or_slow() -> None:
    may_end = threading.Event()

    def slow(scan: ScanModel, frames: Sequence[Observations], start: Hyperparameters) -> Hyperparameters:
        assert may_end.wait(60)
        return found(scan, frames, start)

    frames = stream(10, 40)
    quick = worked(Relearner(found), frames)
    late = Work(Relearner(slow))
    for number, seen in enumerate(frames):
        if late.began_at and number == late.began_at[0] + 16:
            assert late.swapped_at == []
            may_end.set()
        late.take(seen)
    assert quick.swapped_at[:1] == [quick.began_at[0] + 16]
    assert (late.began_at, late.swapped_at) == (quick.began_at, quick.swapped_at)
    assert late.evidence == quick.evidence


def test_it_learns_from_the_last_frames_beginning_with_what_the_model_has() -> None:
    told: list[tuple[ScanModel, int, Hyperparameters]] = []

    def learn(scan: ScanModel, frames: Sequence[Observations], start: Hyperparameters) -> Hyperparameters:
        told.append((scan, sum(any(one is seen for one in frames) for seen in all_frames), start))
        return SHORTER

    all_frames = stream(12, 36)
    work = worked(Relearner(learn), all_frames)
    assert told == [(SCAN, 6, CALM)]
    assert work.model.hyperparameters == SHORTER


def test_what_was_learnt_makes_frames_as_expected_again() -> None:
    frames = stream(14, 60)
    taught, left = worked(Relearner(), frames), worked(Relearner(lambda scan, seen, start: start), frames)
    swapped = taught.swapped_at[0]
    assert taught.evidence[:swapped] == left.evidence[:swapped]
    assert taught.model.hyperparameters.timescale_frames < CALM.timescale_frames / 5
    assert np.mean(taught.evidence[-15:]) > np.mean(left.evidence[-15:]) + 0.05


@pytest.mark.parametrize("number", [3, 12, TURNS_AT + 4, TURNS_AT + 12, TURNS_AT + 25])
def test_a_restart_after_any_frame_gives_the_same_results_bit_for_bit(number: int) -> None:
    frames = stream(16, 45)
    whole = worked(Relearner(), frames)
    before = worked(Relearner(), frames[:number])
    state, arrays = before.relearner.state()
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=RelearnState)
    relearner = Relearner()
    relearner.restore(state, {name: array.copy() for name, array in arrays.items()})
    after = Work(relearner, before.model)
    for seen in frames[number:]:
        after.take(seen)
    assert whole.swapped_at
    assert after.evidence == whole.evidence[number:]


def test_what_is_learnt_is_of_no_use_once_it_was_forgotten() -> None:
    relearner = Relearner(found)
    work = worked(relearner, stream(18, 24))
    assert relearner.is_learning
    relearner.forget()
    assert relearner.swap(work.model) is None
    assert not relearner.is_learning


@pytest.mark.parametrize("factor", [0.5, 1.0, 1000.0])
def test_a_model_that_learnt_for_long_can_be_given_any_other_hyperparameters(factor: float) -> None:
    """What 30 frames said of some weights is next to nothing: rounding must not make it less than that."""
    scan = ScanModel(shape=(128, 128), hum_period_rows=15.2)
    small = {name: pair if name == "coil" else (1e-3, 1e-3) for name, pair in CALM.amplitude_px.items()}
    model = DistortionGP(scan, msgspec.structs.replace(CALM, amplitude_px=small))
    for seen in stream(20, 30, restless_from=10):
        model.predict()
        model.observe(seen)
    amplitude = {name: (factor * row, factor * col) for name, (row, col) in small.items()}
    other = model.with_hyperparameters(
        msgspec.structs.replace(model.hyperparameters, amplitude_px=amplitude, timescale_frames=20.0)
    )
    centre = np.array([[64.0, 64.0]])
    (before, sd), (after, _) = (one.displacement_px(centre, with_sd=True) for one in (model, other))
    assert np.abs(after - before).max() < 4 * sd.max()
    for seen in stream(22, 5, restless_from=0):
        other.predict()
        assert np.isfinite(other.observe(seen).log_evidence)
    assert (other.sd_grid() > 0).all()
