"""The encoder of a session is trained further on its own frames, and only what is better takes its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy import fine_tune
from deploy.fine_tune import Ended, FineTuner, in_use, judged, latest_frames, windows_of
from models.checkpoint import load, save
from models.encoder import SHIPPED, Encoder, build
from streamer.config import StreamerConfig
from streamer.config_file import convert
from streamer.encoders import MAIN, Lane
from streamer.messages import EncoderInUse, Latents
from streamer.pipeline import PipelineConfig
from tests.process.fed_streamer import FedStreamer

FRAMES = 6


def unlearnt(folder: Path) -> Path:
    """Write the shipped weights with noise of a fifth of their spread; seed 0."""
    tensors, card, _ = load(SHIPPED)
    random = torch.Generator().manual_seed(0)
    for name, weight in build(card).named_parameters():
        if weight.ndim > 1 and weight.numel() > 1:
            noise = torch.randn(weight.shape, generator=random)
            tensors[name] = tensors[name] + 0.2 * tensors[name].std() * noise
    save(folder / "unlearnt.safetensors", tensors, card)
    return folder / "unlearnt.safetensors"


@pytest.fixture(scope="module")
def streamer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FedStreamer]:
    """A session of a few frames, that runs with weights which lack a little training; seed 8."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fine")
    made = FedStreamer(folder / "session", unlearnt(folder))
    try:
        made.see(FRAMES)
        yield made
    finally:
        made.close()


@pytest.fixture
def tuner(streamer: FedStreamer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FineTuner]:
    monkeypatch.setattr(fine_tune, "FEWEST_WINDOWS", 100)
    monkeypatch.setattr(fine_tune, "EPOCHS", 4)
    made = FineTuner(
        streamer.folder, StreamerConfig(), streamer.endpoints.address, streamer.endpoints.view_address
    )
    yield made
    made.close()


def nothing() -> None:
    return None


@pytest.mark.timeout(120)
def test_better_weights_are_asked_for_and_take_over_at_a_frame(
    streamer: FedStreamer, tuner: FineTuner
) -> None:
    before = in_use(streamer.folder, PipelineConfig())
    said = tuner.tune(seed=1)
    assert said.startswith("asked for: held-out bound +"), said
    while not streamer.kept(EncoderInUse):
        streamer.see(1)
    change = streamer.kept(EncoderInUse)[-1]
    streamer.see(1)
    newest = streamer.kept(Latents)[-1]
    assert newest.model_revision == change.revision != before.stem
    assert change.reason.startswith(f"fine-tuned on {FRAMES} frames: held-out bound +")
    after = in_use(streamer.folder, PipelineConfig())
    assert after.stem == change.revision
    assert Encoder.load(after).card.data.endswith("of a session")
    assert not (streamer.folder / "fine_tuned.safetensors").exists()


def test_weights_that_are_no_better_are_not_asked_for(
    streamer: FedStreamer, tuner: FineTuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = len(streamer.kept(EncoderInUse))
    same: Callable[..., object] = lambda start, *_: start  # noqa: E731
    monkeypatch.setattr(fine_tune, "trained", same)
    assert (
        tuner.tune(seed=1)
        == "no better: held-out bound +0.00 ± 0.00 nats a window, latents hold "
        + (tuner.tune(seed=1).rpartition("hold ")[2])
    )
    assert len(streamer.kept(EncoderInUse)) == asked


def test_latents_that_collapsed_are_no_better_whatever_the_bound(streamer: FedStreamer) -> None:
    tensors, card, _ = load(SHIPPED)
    good, empty = build(card), build(card)
    good.load_state_dict({name: tensors[name] for name in good.state_dict()})
    windows = windows_of(
        latest_frames(streamer.folder),
        Lane(MAIN, Encoder.load(None)),
        PipelineConfig(),
        np.random.default_rng(1),
    )
    verdict = judged(good, empty, windows.judge_NCHW)
    assert not verdict.is_better
    assert judged(empty, good, windows.judge_NCHW).gain_nats == pytest.approx(-verdict.gain_nats)


def test_too_few_windows_are_not_trained_on(streamer: FedStreamer, tuner: FineTuner) -> None:
    fine_tune.FEWEST_WINDOWS = 10_000
    assert tuner.tune(seed=1).startswith("not trained: ")


def test_frames_that_are_judged_on_are_not_trained_on(streamer: FedStreamer) -> None:
    frames = latest_frames(streamer.folder, most=5)
    assert [frame.number for frame in frames] == [
        frame.number for frame in sorted(frames, key=lambda f: f.number)
    ]
    assert len(frames) == 5
    windows = windows_of(frames, Lane(MAIN, Encoder.load(None)), PipelineConfig(), np.random.default_rng(1))
    learnt = {window.tobytes() for window in windows.learn_NCHW}
    assert windows.frames == 5
    assert learnt.isdisjoint(window.tobytes() for window in windows.judge_NCHW)
    assert len(windows.judge_NCHW) < len(windows.learn_NCHW) / 2


@pytest.mark.timeout(120)
def test_it_begins_when_frames_enough_were_analysed_and_ends_with_the_session(
    streamer: FedStreamer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of this module: it ends the session that the others share."""
    table = {"pipeline": {"encode": {"fine_tune_after_frames": FRAMES}}}
    where = streamer.endpoints
    tuner = FineTuner(
        streamer.folder, convert(table, StreamerConfig, "streamer"), where.address, where.view_address
    )
    seeds: list[int] = []

    def tune(seed: int) -> str:
        seeds.append(seed)
        streamer.end()
        return "no better"

    monkeypatch.setattr(tuner, "tune", tune)
    with pytest.raises(Ended):
        tuner.run()
    tuner.close()
    assert seeds == [FRAMES]
