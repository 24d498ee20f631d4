"""A model that was learnt anew beside the work is said in the journal, with the frame that it begins at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import zoom

from models.resampling import sampled
from simulators.crystal import CrystalConfig, CrystalStream
from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of, read_messages
from streamer.messages import Frame, ModelRevision
from streamer.pipeline import Pipeline, PipelineConfig, Processed
from streamer.stages.correct_distortion import CorrectConfig

SIZE = 192
CALM, FRAMES = 14, 40  # from frame CALM on, each frame's field is another one
SEED = 2
# A known period: none is looked for, which would be another reason for another model.
CORRECT = CorrectConfig(mode="calibrate", observer="lattice", hum_period_rows=15.2)


class NoMeter:
    """Nobody looks at the times; a frame that is rejected is one that the test meant to be seen."""

    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        raise AssertionError(f"{stage} rejected a simulated frame: {reason}")


def frames() -> list[Frame]:
    """Frames of a perfect lattice whose distortion lies still at first, and then is another in each."""
    still = {"drift_px_per_frame": 0.02, "jitter_px": (0.0, 0.0), "hum_px": 0.0, "timescale_frames": 0.0}
    crystal = CrystalStream(
        CrystalConfig(
            size_px=SIZE, seed=SEED, peak_counts=200.0, vacancies=0, interstitials=0, flyback_px=0.5, **still
        )
    )
    rng = np.random.default_rng(SEED)
    raster = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    made = []
    for number in range(FRAMES):
        image = crystal.scan().image
        if number >= CALM:
            bent = np.stack([zoom(rng.normal(0, 0.6, (4, 4)), SIZE / 4, order=3) for _ in range(2)])
            image = sampled(image, raster + bent.astype(np.float32))
        made.append(
            Frame(
                session="s",
                number=number,
                acquired_at_s=100.0 + number,
                image=image[None],
                channels=("HAADF",),
                geometry=crystal.config.geometry,
                dwell_time_us=1.0,
            )
        )
    return made


def journalled(folder: Path, processed: list[Processed]) -> list[ModelRevision]:
    """Write what the hub writes of each frame, and read the revisions of models back."""
    journal = Journal(folder, JournalConfig())
    for one in processed:
        for message in (one.latents, *one.also):
            journal.append(encode(message), 1e9, kind=kind_of(message), monotonic_s=0.0)
    journal.close()
    messages = [message for _, message in read_messages(folder, {"model_revision"})]
    return [message for message in messages if isinstance(message, ModelRevision)]


def model_revision(one: Processed) -> int:
    distortion = one.latents.registration.distortion
    assert distortion is not None
    return distortion.model_revision


def worked(restart_at: int = -1) -> tuple[Pipeline, list[Processed]]:
    """Process all frames, with a restart before one of them."""
    pipeline, came = Pipeline.build(PipelineConfig(correct=CORRECT)), []
    for frame in frames():
        if frame.number == restart_at:
            state = pipeline.state()
            pipeline = Pipeline.build(PipelineConfig(correct=CORRECT))
            pipeline.restore(state)
        one = pipeline.process(frame, NoMeter())
        assert one is not None
        came.append(one)
    return pipeline, came


@pytest.fixture(scope="module")
def whole() -> tuple[Pipeline, list[Processed]]:
    return worked()


def test_a_relearnt_model_reaches_the_journal_with_the_frame_that_it_begins_at(
    whole: tuple[Pipeline, list[Processed]], tmp_path: Path
) -> None:
    pipeline, came = whole
    kept = journalled(tmp_path, came)
    assert len(kept) == 1
    assert (kept[0].policy, kept[0].revision) == ("distortion", 1)
    began = kept[0].told
    assert CALM + 16 < began < FRAMES
    assert [model_revision(one) for one in came] == [0] * began + [1] * (FRAMES - began)
    scene = pipeline.correct._scene
    assert scene is not None
    learnt = scene.model.hyperparameters
    assert kept[0].parameters["timescale_frames"] == [learnt.timescale_frames]
    assert kept[0].parameters["coil_px"] == list(learnt.amplitude_px["coil"])


def test_a_restart_while_learning_journals_the_same_model_at_the_same_frame(
    whole: tuple[Pipeline, list[Processed]], tmp_path: Path
) -> None:
    _, again = worked(restart_at=CALM + 10)
    kept, kept_again = journalled(tmp_path / "whole", whole[1]), journalled(tmp_path / "again", again)
    assert len(kept) == 1
    assert [bytes(encode(one)[0]) for one in kept] == [bytes(encode(one)[0]) for one in kept_again]
