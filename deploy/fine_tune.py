"""``python -m deploy.fine_tune``: train the encoder of a running session further, on its own frames.

A process beside the streamer, of the lowest priority: it reads what the journal has, trains, and compares on
frames that it has not trained on. What is better it sends to the streamer as any operator would; what is not
is said in its log and forgotten. It never ends a session, and the session never waits for it.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import structlog
import typer
from numpy.typing import NDArray

from streamer.config import StreamerConfig
from streamer.config_file import ConfigError, read_config
from streamer.encoders import MAIN, Lane
from streamer.journal import read_records, segments
from streamer.log import log_to_stderr
from streamer.messages import EncoderInUse, Frame, Status
from streamer.pipeline import PipelineConfig
from streamer.segment import Record
from streamer.stage import Rejected
from streamer.stages.check_frame import CheckFrame
from streamer.stages.find_sites import FindSites
from streamer.weights import as_control, kept, of_session

if TYPE_CHECKING:
    from models.checkpoint import ModelCard
    from models.training import Model

Float32 = NDArray[np.float32]

NAME = "fine-tuner"
MOST_FRAMES = 48
MOST_WINDOWS = 5000
FEWEST_WINDOWS = 200
HELD_EVERY = 4  # frames: one in so many is trained on by nobody
EPOCHS = 8
SURE_SD = 3.0
LOOK_S = 1.0
ANSWER_S = 30.0
_ENDS = ("draining", "ended")


class Ended(Exception):
    """The session is over, and there is nothing left to do."""


class Windows(NamedTuple):
    """Windows of a session as its encoder sees them.

    Attributes
    ----------
    learn_NCHW, judge_NCHW
        Of frames to train on, and of those in between to compare on.
    frames
        From how many they are.
    """

    learn_NCHW: Float32
    judge_NCHW: Float32
    frames: int


class Verdict(NamedTuple):
    """How the trained weights did beside those at work, on frames that neither was trained on.

    Attributes
    ----------
    is_better
        Whether they are to take their place.
    gain_nats, gain_sd_nats
        By how much a window's bound grew in the mean, and its standard error.
    content_nats
        What the latents hold of a window.
    """

    is_better: bool
    gain_nats: float
    gain_sd_nats: float
    content_nats: float

    def __str__(self) -> str:
        gain = f"{self.gain_nats:+.2f} ± {self.gain_sd_nats:.2f} nats a window"
        return f"held-out bound {gain}, latents hold {self.content_nats:.1f} nats"


# -- what the session has ------------------------------------------------------------------------------


def in_use(folder: Path, config: PipelineConfig) -> Path:
    """Say where the weights are that the main encoder has now."""
    revision = ""
    for record in read_records(folder, ("encoder_in_use",)):
        change = record.numbered().message if isinstance(record, Record) else None
        if isinstance(change, EncoderInUse) and change.encoder == MAIN:
            revision = change.revision
    return kept(folder, revision) or of_session(config.encode, folder)[MAIN]


def latest_frames(folder: Path, most: int = MOST_FRAMES) -> list[Frame]:
    """Read the last full frames of a journal, also while it is written; the oldest first."""
    newest: list[Frame] = []
    for segment in reversed(segments(folder)):
        here: deque[Frame] = deque(maxlen=most - len(newest))
        for record in read_records(segment, ("frame",)):
            frame = record.numbered().message if isinstance(record, Record) else None
            if isinstance(frame, Frame) and frame.request_id is None:
                here.append(frame)
        newest = [*here, *newest]
        if len(newest) >= most:
            break
    return newest


def windows_of(frames: list[Frame], lane: Lane, config: PipelineConfig, rng: np.random.Generator) -> Windows:
    """Find and cut windows as live, but for the correction of the scan, which is small within a window.

    Raises
    ------
    ValueError
        If there are too few to train on.
    """
    check, find = CheckFrame(config.check), FindSites(config.sites, config.find)
    each = MOST_WINDOWS // max(1, len(frames))
    learn: list[Float32] = []
    judge: list[Float32] = []
    for frame in frames:
        try:
            assert lane.cut is not None
            windows = lane.cut.process(find.process(check.process(frame))).windows
        except Rejected:
            continue
        is_held = (len(learn) + len(judge)) % HELD_EVERY == HELD_EVERY - 1
        (judge if is_held else learn).append(windows[rng.permutation(len(windows))[:each]])
    found = sum(map(len, learn))
    if found < FEWEST_WINDOWS or not judge:
        raise ValueError(
            f"{len(frames)} frames have {found} windows; training takes {FEWEST_WINDOWS} and above"
        )
    return Windows(np.concatenate(learn), np.concatenate(judge), len(learn) + len(judge))


# -- training and judging ------------------------------------------------------------------------------


def trained(start: Model, windows: Windows, seed: int, go_on: Callable[[], None]) -> Model:
    """Train a model further.

    Parameters
    ----------
    start
        It stays as it is.
    windows
        Of the session.
    seed
        Of the split, the batches and the samples.
    go_on
        Called after each epoch; may raise.

    Raises
    ------
    models.training.Collapsed
        If the latents come to say nothing of the windows.
    """
    from models.training import Training, TrainingConfig

    config = TrainingConfig(architecture=start.config, seed=seed, epochs=EPOCHS, patience=3)
    training = Training(windows.learn_NCHW, config, start=start)
    while not training.is_over:
        training.epoch()
        go_on()
    return training.result()


def judged(before: Model, after: Model, held_NCHW: Float32) -> Verdict:
    """Compare two models window by window: the same windows, the same samples of the posterior."""
    import torch

    from models.training import COLLAPSED_NATS, evaluate

    held = torch.from_numpy(np.ascontiguousarray(held_NCHW))
    was, now = evaluate(before, held), evaluate(after, held)
    gain_N = (was.negative_elbo() - now.negative_elbo()).double()
    sd = float(gain_N.std()) / len(gain_N) ** 0.5
    content = float(now.kl_content_NZ.sum(1).mean())
    gain = float(gain_N.mean())
    return Verdict(gain > SURE_SD * sd and content > COLLAPSED_NATS, gain, sd, content)


def _loaded(path: Path) -> tuple[Model, ModelCard, Lane]:
    from models.checkpoint import load
    from models.encoder import Encoder, build

    tensors, card, _ = load(path)
    model = build(card)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model.eval(), card, Lane(MAIN, Encoder.load(path))


def write(path: Path, model: Model, card: ModelCard, windows: Windows, seed: int) -> None:
    """Write the trained model as a checkpoint whose novelty is that of the session's windows."""
    import msgspec

    from models.checkpoint import save
    from models.encoder import finished

    told = msgspec.structs.replace(
        card,
        data=f"{card.data}; then {len(windows.learn_NCHW)} windows of {windows.frames} frames of a session",
        made_by=f"fine-tuning of {card.name} beside a session",
        seed=seed,
        scores={},
    )
    save(path, *finished(model, told, windows.learn_NCHW, windows.judge_NCHW))


# -- the process ---------------------------------------------------------------------------------------


class FineTuner:
    """Waits until enough frames were analysed, trains, and asks for what is better.

    Parameters
    ----------
    folder
        Of the session.
    config
        Of the streamer.
    address, view_address
        Where it is heard and seen.
    """

    def __init__(self, folder: Path, config: StreamerConfig, address: str, view_address: str) -> None:
        from streamer.wire import Subscriber

        self._folder = folder
        self._config = config.pipeline
        self._address = address
        self._view = Subscriber(view_address, ("status",))
        self._log = structlog.get_logger()

    def run(self) -> None:
        """Go on until the session is over.

        Raises
        ------
        Ended
            When it is.
        """
        due = self._config.encode.fine_tune_after_frames
        while True:
            if self._frames(LOOK_S) < due:
                continue
            began_s, began_cpu_s = time.monotonic(), time.process_time()
            said = self.tune(due)
            took = {
                "s": round(time.monotonic() - began_s, 1),
                "cpu_s": round(time.process_time() - began_cpu_s, 1),
            }
            self._log.info("fine-tuned", frames=due, said=said, **took)
            due *= 2

    def tune(self, seed: int) -> str:
        """Train once and ask for what is better; say what came of it."""
        from models.training import Collapsed

        path = in_use(self._folder, self._config)
        try:
            start, card, lane = _loaded(path)
            frames = latest_frames(self._folder)
            windows = windows_of(frames, lane, self._config, np.random.default_rng(seed))
            after = trained(start, windows, seed, self._require_session)
        except (Collapsed, ValueError) as error:
            return f"not trained: {error}"
        verdict = judged(start, after, windows.judge_NCHW)
        if not verdict.is_better:
            return f"no better: {verdict}"
        target = self._folder / "fine_tuned.safetensors"
        write(target, after, card, windows, seed)
        self._ask_for(target.read_bytes(), f"fine-tuned on {windows.frames} frames: {verdict}")
        target.unlink()
        return f"asked for: {verdict}"

    def close(self) -> None:
        """Look no more."""
        self._view.close()

    def _frames(self, timeout_s: float) -> int:
        """Say how many frames were analysed by now; 0 where nothing is heard."""
        status = self._view.receive(timeout_s)
        newest = status
        while status is not None:
            newest, status = status, self._view.receive(0)
        if not isinstance(newest, Status):
            return 0
        if newest.state in _ENDS:
            raise Ended
        return newest.frames["published"]

    def _require_session(self) -> None:
        self._frames(0)

    def _ask_for(self, data: bytes, reason: str) -> None:
        from streamer.link import Link
        from streamer.messages import Ack, Bye

        with Link(self._address, role="operator", name=NAME, timeout_s=ANSWER_S) as link:
            link.send(as_control(data, reason=reason))
            deadline_s = time.monotonic() + ANSWER_S
            while (left_s := deadline_s - time.monotonic()) > 0:
                answer = link.receive(left_s)
                if isinstance(answer, Bye):
                    raise Ended
                if isinstance(answer, Ack) and answer.sequence:
                    return


def be_modest() -> None:
    """Compute when hardly anybody else wants to: under Linux a 70th of what others get of a busy core."""
    os.nice(19)


def main(
    session_folder: Annotated[Path, typer.Option(help="Of the session.")],
    connect: Annotated[str, typer.Option(help="Where the streamer hears instruments and operators.")],
    view: Annotated[str, typer.Option(help="Where it publishes what it does.")],
    config: Annotated[Path | None, typer.Option(help="TOML file; the table [streamer] is read.")] = None,
) -> None:
    """Train the main encoder further while the session runs; it ends with the session."""
    log_to_stderr()
    be_modest()
    try:
        settings = read_config(config, "streamer", StreamerConfig)
    except ConfigError as error:
        print(f"probeloop {NAME}: {error}", file=sys.stderr)
        sys.exit(2)
    import torch

    torch.set_num_threads(1)
    tuner = FineTuner(session_folder, settings, connect, view)
    try:
        tuner.run()
    except (Ended, ConnectionError):
        structlog.get_logger().info("ended")
    finally:
        tuner.close()


if __name__ == "__main__":
    typer.run(main)
