"""``probeloop train``: what the service has learnt, made again or made of the user's own recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.presets.judging import MEANINGS
from deploy.presets.known import KNOWN, preset_of
from deploy.refusals import refuse
from deploy.train_rvae import (
    Interrupted,
    Job,
    Made,
    begun,
    card_of,
    gather,
    made_of,
    part_file,
    run_epochs,
    without_labels,
)
from deploy.training_report import write_report
from models.checkpoint import CheckpointError, ModelCard, save
from models.training import Collapsed, Epoch, Training
from simulators.formats import RecordingError

if TYPE_CHECKING:
    from deploy.train_finder import FinderStep

app = typer.Typer(help="Train what the service has learnt.", no_args_is_help=True)

PRESETS = ", ".join(KNOWN)
EXIT_INTERRUPTED = 130
COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))


class _Bar:
    """Draws the epochs as they come."""

    def __init__(self, progress: Progress, training: Training) -> None:
        self._progress = progress
        self._task = progress.add_task(
            "training", total=training.most_epochs, completed=len(training.history), said=""
        )

    def __call__(self, epoch: Epoch) -> None:
        said = f"loss {epoch.trained:8.1f}  held out {epoch.held_out:8.1f} nats"
        self._progress.update(self._task, advance=1, said=said)


@app.command()
def rvae(
    preset: Annotated[
        str, typer.Option(help=f"What is simulated, and what a window is: {PRESETS}.")
    ] = "graphene-si",
    recording: Annotated[
        Path | None,
        typer.Option("--from", help="A session, file or folder of frames to learn from instead."),
    ] = None,
    pixel_size_nm: Annotated[
        float | None, typer.Option(help="Of a recording without a scale.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the weights go; ends in .safetensors.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of specimens, noise and first weights.", min=0)] = 0,
    epochs: Annotated[
        int | None, typer.Option(help="How often each window is looked at.", min=1, show_default=False)
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="How many windows, at most.", min=200, show_default=False)
    ] = None,
    window_nm: Annotated[
        float | None, typer.Option(help="Edge of a window.", min=0.05, show_default=False)
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights to go on from, such as shipped ones.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was stopped.")] = False,
    report: Annotated[bool, typer.Option(help="Write a page with pictures beside the weights.")] = True,
) -> None:
    """Train an encoder of windows (rVAE): minutes on one core; what is left out is the preset's."""
    torch.set_num_threads(1)  # the same seed gives the same weights, and two threads gain nothing here
    asked = Asked(preset, recording, pixel_size_nm, seed, epochs, windows, window_nm, start)
    console = Console()
    try:
        job = job_of(asked)
        target = _target(output, f"{job.like.name.replace('-', '_')}_rvae.safetensors")
        made = _train(job, target, console, resume=resume)
        target.parent.mkdir(parents=True, exist_ok=True)
        save(target, made.tensors, made.card)
        part_file(target).unlink(missing_ok=True)
        _say(made.card, target, console)
        if report:
            write_report(target.with_suffix(".html"), made.trained)
    except Interrupted as stopped:
        console.print(str(stopped), soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (CheckpointError, RecordingError, Collapsed, ValueError) as error:
        refuse(error)


class Asked(NamedTuple):
    """The options that decide what comes out, as they were given."""

    preset: str
    recording: Path | None = None
    pixel_size_nm: float | None = None
    seed: int = 0
    epochs: int | None = None
    windows: int | None = None
    window_nm: float | None = None
    start: Path | None = None

    def command(self) -> str:
        """Give the command that does it again; what was not asked for is not in it."""
        options = [
            ("--preset", self.preset),
            ("--from", self.recording),
            ("--pixel-size-nm", self.pixel_size_nm),
        ]
        options += [("--seed", self.seed), ("--epochs", self.epochs), ("--windows", self.windows)]
        options += [("--window-nm", self.window_nm), ("--start", self.start)]
        words = [f"{name} {value}" for name, value in options if value is not None]
        return " ".join(["probeloop train rvae", *words])


def job_of(asked: Asked) -> Job:
    """Put the preset and what was asked for together.

    Raises
    ------
    ValueError
        If there is no such preset, or its windows have no edge in nm.
    """
    like = preset_of(asked.preset)
    if asked.window_nm is not None:
        if like.window_per_nm:
            raise ValueError(f"--window-nm: {like.name} takes diffraction patterns; leave it out")
        like = msgspec.structs.replace(like, window_nm=asked.window_nm)
    training = like.training
    if asked.recording is not None:
        like = msgspec.structs.replace(like, name=asked.recording.resolve().stem, judge=None, series=None)
        training = without_labels(training)
    training = msgspec.structs.replace(training, seed=asked.seed, epochs=asked.epochs or training.epochs)
    return Job(
        like=like,
        training=training,
        count=asked.windows or like.windows,
        recording=asked.recording,
        pixel_size_nm=asked.pixel_size_nm,
        start=asked.start,
        made_by=asked.command(),
    )


def _target(output: Path | None, otherwise: str) -> Path:
    target = Path(otherwise) if output is None else output
    if target.suffix != ".safetensors":
        raise ValueError(f"--output: {target} does not end in .safetensors")
    return target


def _train(job: Job, target: Path, console: Console, *, resume: bool) -> Made:
    """Gather, train and judge, and say how far it is."""
    with console.status("gathering windows"):
        gathered = gather(job)
    training = begun(job, gathered, part_file(target), resume=resume)
    with Progress(*COLUMNS, TimeElapsedColumn(), console=console) as progress:
        bar = _Bar(progress, training)
        run_epochs(training, part_file(target), card_of(job, gathered), bar)
    with console.status("judging it on what it has not seen"):
        return made_of(job, gathered, training)


def _say(card: ModelCard, target: Path, console: Console) -> None:
    table = Table("score", "value", "what it is", title=str(target))
    for name, value in card.scores.items():
        table.add_row(name, f"{value:.4g}", MEANINGS.get(name, ""))
    console.print(table)


# -- the finder ------------------------------------------------------------------------------------


@app.command()
def finder(
    preset: Annotated[str, typer.Option(help="What is simulated: columns of all kinds.")] = "columns",
    output: Annotated[Path, typer.Option(help="Where the weights go; ends in .safetensors.")] = Path(
        "finder.safetensors"
    ),
    seed: Annotated[int, typer.Option(help="Of images and first weights.", min=0)] = 0,
    images: Annotated[int, typer.Option(help="How many are drawn; each is seen once.", min=8)] = 48_000,
    minutes: Annotated[
        float, typer.Option(help="Time after which it ends anyway; 0 is no limit.", min=0)
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was stopped.")] = False,
) -> None:
    """Train the finder of atom columns: half an hour on one core; on a GPU where there is one."""
    from deploy.train_finder import FinderTraining, train_finder

    torch.set_num_threads(1)
    console = Console()
    try:
        if preset != "columns":
            raise ValueError(f"--preset: {preset} is none of the finder's; it takes columns")
        target = _target(output, output.name)
        part = part_file(target)
        _require_begun(part, resume=resume)
        config = FinderTraining(seed=seed, images=images, minutes=minutes)
        made_by = f"probeloop train finder --preset {preset} --seed {seed} --images {images}"
        with Progress(*COLUMNS, TimeElapsedColumn(), console=console) as progress:
            bar = _FinderBar(progress)
            tensors, card = train_finder(config, bar, console, name=preset, made_by=made_by, checkpoint=part)
    except KeyboardInterrupt:
        console.print(f"stopped; {part} keeps what was learnt: repeat with --resume", soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (CheckpointError, ValueError) as error:
        refuse(error)
    target.parent.mkdir(parents=True, exist_ok=True)
    save(target, tensors, card)
    part.unlink(missing_ok=True)
    _say(card, target, console)


class _FinderBar:
    """Draws the images as they are learnt from."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=None, said="")

    def __call__(self, step: FinderStep) -> None:
        said = f"loss {step.trained:6.3f}  held out {step.held_out:6.3f}"
        self._progress.update(self._task, total=step.of, completed=step.images, said=said)


def _require_begun(part: Path, *, resume: bool) -> None:
    """Let only ``--resume`` go on with what is there."""
    if resume and not part.exists():
        raise CheckpointError(f"{part}: there is nothing to resume; leave --resume out")
    if not resume:
        part.unlink(missing_ok=True)
