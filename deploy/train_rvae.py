"""The work behind ``probeloop train rvae``: windows in, a checkpoint with its card and a report out."""

from __future__ import annotations

import hashlib
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploy.presets.judging import judged
from deploy.presets.preset import Labelled, Preset, joined
from deploy.recorded_windows import recorded_windows
from deploy.training_report import Trained
from models.checkpoint import CheckpointError, ModelCard, load, save
from models.encoder import Encoder, build, finished
from models.pose_calibration import calibrate_pose
from models.rvae import RVAE, RVAEConfig
from models.training import Epoch, Progress, Training, TrainingConfig, evaluate, split

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

JUDGING_SEED = 30_001  # no setting was chosen by it
CALIBRATING_WINDOWS = 3000  # twice
SHOWN_WINDOWS = 1500
SAVE_EVERY_S = 20.0
SOURCES = ("simulators", "deploy/presets")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be trained on what.

    Attributes
    ----------
    like
        Window, channels and normalisation, and how windows are simulated and judged.
    training
        How; its seed draws the windows too.
    count
        Windows, at most.
    recording, pixel_size_nm
        The user's own recording instead of a simulation, and its scale where it has none.
    start
        Weights to go on from.
    made_by
        The command that does it again.
    """

    like: Preset
    training: TrainingConfig
    count: int
    recording: Path | None = None
    pixel_size_nm: float | None = None
    start: Path | None = None
    made_by: str


class Gathered(NamedTuple):
    """Windows to train on, their classes where the simulator knows them, and what the card says of them."""

    windows_NCHW: Float32
    class_N: Int64 | None
    channels: tuple[str, ...]
    data: str
    simulator: str


def gather(job: Job) -> Gathered:
    """Simulate windows with the training's seed, or take them from the recording.

    Raises
    ------
    RecordingError
        As of ``recorded_windows``.
    """
    rng = np.random.default_rng(job.training.seed)
    if job.recording is not None:
        found = recorded_windows(job.recording, job.like, job.count, rng, job.pixel_size_nm)
        windows_NCHW, channels, data = found
        return Gathered(windows_NCHW, None, channels, data, simulator="")
    part = job.like.simulate(job.like, job.count, rng)
    data = job.like.data.format(count=len(part.class_N))
    return Gathered(part.windows_NCHW, part.class_N, job.like.channels, data, simulator_version())


def simulator_version() -> str:
    """Say which simulators drew the windows: our version and a hash of their source."""
    root = Path(__file__).parent.parent
    files = sorted(file for folder in SOURCES for file in (root / folder).glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
    return f"{version('probeloop')}+{digest}"


# -- training, in pieces that can be taken up again --------------------------------------------------


class Interrupted(Exception):
    """Training was stopped by hand; the text says how it goes on."""


def part_file(output: Path) -> Path:
    """Where an unfinished training of these weights is kept."""
    return output.with_suffix(".part.safetensors")


def begun(job: Job, gathered: Gathered, part: Path, *, resume: bool) -> Training:
    """Begin a training, or take one up where its part file was written.

    Raises
    ------
    CheckpointError
        If the part file is missing, damaged, or of another training; if the weights to start from are of
        other windows.
    """
    label_N = gathered.class_N if _classes(job.training) else None
    training = Training(gathered.windows_NCHW, job.training, label_N=label_N, start=_start(job))
    if resume:
        tensors, card, _ = load(part)
        if card.made_by != job.made_by:
            raise CheckpointError(f"{part}: was begun by '{card.made_by}'; repeat that with --resume")
        training.restore(tensors)
    return training


def without_labels(training: TrainingConfig) -> TrainingConfig:
    """Train as a preset does, but without the labels that only a simulator has."""
    architecture = training.architecture
    if isinstance(architecture, RVAEConfig):
        architecture = msgspec.structs.replace(architecture, classes=0, mixture=RVAEConfig().mixture)
    return msgspec.structs.replace(training, architecture=architecture)


def _classes(training: TrainingConfig) -> int:
    """Say how many classes labels name; 0 without labels."""
    return training.architecture.classes if isinstance(training.architecture, RVAEConfig) else 0


def _start(job: Job) -> torch.nn.Module | None:
    """Load the model to go on from."""
    if job.start is None:
        return None
    tensors, card, _ = load(job.start)
    if card.family == "finder":
        raise CheckpointError(f"{job.start}: weights of a finder; --start takes those of an rVAE")
    model = build(card)
    model.load_state_dict({name: one for name, one in tensors.items() if not name.startswith("novelty.")})
    if (len(card.channels), card.window_px) != (len(job.like.channels), job.like.window_px):
        raise CheckpointError(
            f"{job.start}: knows {len(card.channels)} channels of {card.window_px} pixels; "
            f"this training has {len(job.like.channels)} of {job.like.window_px}"
        )
    return model


def kept_state(training: Training) -> dict[str, Tensor]:
    """All that the rest of a training depends on, as a checkpoint keeps it: without infinities.

    The best bound of first weights that were not tried yet is infinite; any huge number does as well.
    """
    return {
        name: torch.nan_to_num(one) if one.is_floating_point() else one
        for name, one in training.state().items()
    }


def run_epochs(training: Training, part: Path, card: ModelCard, on_epoch: Progress) -> None:
    """Train to the end, writing the part file now and then.

    Raises
    ------
    Interrupted
        On Ctrl-C; the part file then has the last whole epoch.
    Collapsed
        If the latents say nothing of the windows.
    """
    saved_at, state = time.monotonic(), kept_state(training)
    try:
        while not training.is_over:
            on_epoch(training.epoch())
            state = kept_state(training)
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                save(part, state, card)
                saved_at = time.monotonic()
    except KeyboardInterrupt:
        # In the middle of an epoch weights and order do not belong together: the last whole one is kept.
        save(part, state, card)
        whole = len(training.history)
        raise Interrupted(f"stopped after {whole} epochs; {part} keeps them: repeat with --resume") from None


# -- from weights to a checkpoint --------------------------------------------------------------------


class Made(NamedTuple):
    """What a training leaves: a checkpoint, and what its report shows."""

    tensors: dict[str, Tensor]
    card: ModelCard
    trained: Trained


def card_of(job: Job, gathered: Gathered) -> ModelCard:
    """Write the card, without what is measured."""
    like = job.like
    return ModelCard(
        name=like.name,
        family="harmonic" if isinstance(job.training.architecture, RVAEConfig) else "spatial",
        channels=gathered.channels,
        window_nm=like.window_nm,
        window_px=like.window_px,
        window_per_nm=like.window_per_nm,
        normalisation=like.normalisation,
        architecture=msgspec.to_builtins(job.training.architecture),
        data=gathered.data,
        made_by=job.made_by,
        simulator=gathered.simulator,
        seed=job.training.seed,
    )


def made_of(job: Job, gathered: Gathered, training: Training) -> Made:
    """Calibrate the trained model, and judge it on what it has not seen."""
    model = training.result()
    trained_on, held_out = split(torch.from_numpy(gathered.windows_NCHW), job.training)
    own_kind = _more(job, held_out.numpy())
    if isinstance(model, RVAE) and job.recording is None:
        _calibrate(model, job.like, own_kind)
    card = card_of(job, gathered)
    # A model that was gone on from keeps its own widths, whatever the preset's are.
    named = job.like.classes if isinstance(model, RVAE) and model.config.classes else ()
    card = msgspec.structs.replace(card, architecture=msgspec.to_builtins(model.config), classes=named)
    tensors, card = finished(model, card, trained_on.numpy(), own_kind.windows_NCHW)
    bound = float(evaluate(model, held_out).negative_elbo().mean())
    encoder = encoder_of(tensors, card)
    scores = {"held_out_nats": bound} | _scores(job, encoder, held_out.numpy())
    card = msgspec.structs.replace(card, scores={name: round(value, 6) for name, value in scores.items()})
    return Made(tensors, card, _shown(job, card, encoder, held_out.numpy(), training.history))


def encoder_of(tensors: dict[str, Tensor], card: ModelCard) -> Encoder:
    """Load what would be saved, as whoever uses it will."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save(file, tensors, card)
        return Encoder.load(file, device="cpu")


def _more(job: Job, held_out_NCHW: Float32) -> Labelled:
    """Get windows to calibrate pose and novelty by, in two halves of different specimens.

    A tail of three in a thousand needs thousands.
    """
    if job.recording is not None:
        return Labelled.of(held_out_NCHW)
    halves = [np.random.default_rng([job.training.seed, half]) for half in (1, 2)]
    return joined([job.like.simulate(job.like, CALIBRATING_WINDOWS, rng) for rng in halves])


def _calibrate(model: RVAE, like: Preset, part: Labelled) -> None:
    """Put angles and shifts right by windows whose pose the simulator knows."""
    half = (like.window_nm or like.window_per_nm) / 2
    calibrate_pose(model, part.windows_NCHW, part.class_N, like.symmetry, part.angle_N, part.shift_N2 / half)


def _scores(job: Job, encoder: Encoder, held_out_NCHW: Float32) -> dict[str, float]:
    if job.recording is None:
        return judged(job.like, encoder, JUDGING_SEED)
    return {"novel_share": float((encoder.encode(held_out_NCHW).novelty > 3).mean())}


def _shown(
    job: Job, card: ModelCard, encoder: Encoder, held_out_NCHW: Float32, history: list[Epoch]
) -> Trained:
    """Choose what the report shows: what was judged, or the held-out windows of a recording."""
    like = job.like
    if job.recording is not None:
        part, classes, symmetry = Labelled.of(held_out_NCHW), (), ()
        return Trained(card, encoder, part, encoder.encode(held_out_NCHW), classes, symmetry, history)
    part = like.simulate(like, SHOWN_WINDOWS, np.random.default_rng(JUDGING_SEED))
    return Trained(
        card, encoder, part, encoder.encode(part.windows_NCHW), like.classes, like.symmetry, history
    )
