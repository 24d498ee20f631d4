"""``probeloop``: the command line on one machine.

Only what ``--help`` needs is imported here; each command imports the rest when it is run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from deploy.control_command import app as control_app
from deploy.journal_command import app as journal_app
from deploy.keys_command import app as keys_app
from deploy.refusals import fail, refuse
from simulators.catalogue import CATALOGUE, Entry, explained

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Live analysis and decisions beside a scanning microscope.\n\n"
        "Frames come in, atoms are found and compared, and an agent chooses where to measure next.\n\n"
        "Start with [bold]probeloop run[/bold]: a simulated microscope, no hardware needed."
    ),
)
simulate_app = typer.Typer(
    no_args_is_help=True,
    help="A simulated microscope alone, for a streamer that runs already. NAME --help explains its knobs.",
)
app.add_typer(simulate_app, name="simulate")
app.add_typer(keys_app, name="keys")
app.add_typer(journal_app, name="journal")
app.add_typer(control_app, name="control")

Config = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with the settings; without it, the defaults. Examples are in deploy/examples.",
        show_default=False,
    ),
]
SessionFolder = Annotated[
    Path | None,
    typer.Option(
        help="New folder for everything that comes of it.", show_default="sessions/<date>T<time>-<…>"
    ),
]
Policy = Annotated[
    Literal["explorer", "strain", "raster", "random"] | None,
    typer.Option(
        help="How the next point is chosen: [bold]explorer[/bold] learns where it pays, "
        "[bold]strain[/bold] goes where the specimen is strained most, "
        "[bold]raster[/bold] and [bold]random[/bold] are for comparison.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0, help="Number from which all chance comes: the same gives the same specimen and choices."
    ),
]
Measurements = Annotated[
    int | None, typer.Option(min=0, help="End after so many measurements; 0 goes on until Ctrl-C.")
]
Live = Annotated[
    bool,
    typer.Option("--live/--no-live", help="Draw a live screen; else print a line now and then (for logs)."),
]
Speed = Annotated[
    str, typer.Option(help="1: as fast as the microscope scanned; 2: twice as fast; max: without waiting.")
]
PixelSize = Annotated[
    float | None,
    typer.Option(min=0, help="Edge of a pixel in nm, for files that carry no scale.", show_default=False),
]
Connect = Annotated[str, typer.Option(help="Address of the streamer, such as tcp://127.0.0.1:5555.")]
Key = Annotated[
    Path | None,
    typer.Option(
        help="Key file of this program, for a streamer with keys (probeloop keys).", show_default=False
    ),
]


def _version(is_asked: bool) -> None:
    if is_asked:
        import importlib.metadata

        typer.echo(f"probeloop {importlib.metadata.version('probeloop')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say the version and leave.")
    ] = False,
) -> None:
    """Hold the options of the command itself."""


# -- the whole service -------------------------------------------------------------------------


@app.command()
def run(
    config: Config = None,
    session_folder: SessionFolder = None,
    policy: Policy = None,
    seed: Seed = None,
    measurements: Measurements = None,
    speed: Speed = "1",
    live: Live = True,
    instrument: Annotated[
        str,
        typer.Option(help=f"Which simulated microscope: {', '.join(CATALOGUE)}. See probeloop simulate."),
    ] = "stem",
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="End after so many frames.", show_default=False)
    ] = None,
) -> None:
    """Run the whole loop on a [bold]simulated[/bold] STEM: graphene with silicon atoms to be found.

    With another --instrument its frames, patterns and spectra are taken, kept and exported; walls of a film,
    rods and diffraction patterns are encoded by weights of their own. Of these instruments nothing is
    asked but what you ask (probeloop control point), unless you name a --policy.

    Shows the loop live, ends by itself after a budget of measurements, and writes a session folder with
    the data and a report. Ctrl-C ends it at any moment; everything up to then is kept.
    """
    if instrument not in CATALOGUE:
        refuse(f"--instrument is {instrument}; it takes {', '.join(CATALOGUE)}")
    folder = _folder(session_folder)
    changes = {
        "agent.policy": policy,
        "agent.seed": seed,
        f"simulate.{instrument}.seed": seed,
        "streamer.experiment.max_measurements": measurements,
        # What is no beam gives no dose; the envelope else reckons with the current of a microscope.
        "streamer.envelope.beam_current_pa": None if CATALOGUE[instrument].has_electrons else 0.0,
    }
    own = {"config": folder / "config.toml", "truth": folder / "truth.npz", "speed": speed}
    has_agent = instrument == "stem" or policy is not None
    played = [instrument, *_options(**own, max_frames=max_frames)]
    _run(folder, config, changes, played, live, has_agent=has_agent)


@app.command()
def replay(
    path: Annotated[
        Path, typer.Argument(help="A session folder, or a file of images (.hspy, .dm4, .tif, .h5 …).")
    ],
    config: Config = None,
    session_folder: SessionFolder = None,
    policy: Policy = None,
    seed: Seed = None,
    measurements: Measurements = None,
    speed: Speed = "1",
    pixel_size_nm: PixelSize = None,
    live: Live = True,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Play nothing: decide the session anew from its journal, and compare bit for bit. "
            "Exit code 1 if anything comes out differently.",
        ),
    ] = False,
    counterfactual: Annotated[
        Path | None,
        typer.Option(
            help="Play nothing: let the agent of these settings decide on what was recorded, "
            "and compare how soon it finds the best.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder for the picture of --counterfactual.", show_default="the session's"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Of --verify and --counterfactual: print one JSON object.")
    ] = False,
) -> None:
    """Play a [bold]recording[/bold] through the loop as if its microscope were connected.

    What the agent asks for and was not recorded is refused, never invented. Ends with the recording.
    """
    flags = ["--json"] if as_json else []
    if verify:
        _become("deploy.verify", str(path), *_options(config=config), *flags)
    if counterfactual is not None:
        _become("deploy.counterfactual", str(path), str(counterfactual), *_options(to=to), *flags)
    changes = {
        "agent.policy": policy,
        "agent.seed": seed,
        "streamer.experiment.max_measurements": measurements,
    }
    if not path.exists():
        refuse(f"{path}: there is no such file or folder")
    instrument = ["replay", str(path.resolve()), "--speed", speed]
    if pixel_size_nm is not None:
        instrument += ["--pixel-size-nm", str(pixel_size_nm)]
    _run(_folder(session_folder), config, changes, instrument, live)


def _folder(session_folder: Path | None) -> Path:
    from datetime import datetime

    from deploy.run_session import default_folder

    return session_folder or default_folder(datetime.now())


def _run(
    folder: Path,
    config: Path | None,
    changes: dict[str, Any],
    instrument: list[str],
    live: bool,
    *,
    has_agent: bool = True,
) -> None:
    from deploy.instrument_weights import with_weights
    from deploy.run_session import Plan, run_session
    from deploy.supervise import ServiceError

    console = _console()
    tables = with_weights(_tables(config, changes), instrument[0])
    plan = Plan(folder=folder, tables=tables, instrument=instrument, has_agent=has_agent)
    try:
        run_session(plan, console, is_live=live and console.is_terminal)
    except ServiceError as error:
        fail(error)
    except (OSError, ValueError) as error:
        refuse(error)


def _tables(config: Path | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Read and check the settings; the defaults need no check, and save the seconds that it takes."""
    from deploy.tables import override

    if config is None:
        return override({}, changes)
    from deploy.config import check, check_files
    from streamer.config_file import ConfigError, read_tables

    try:
        tables = read_tables(config)
        check_files(check(tables, f"{config}: ").agent, f"{config}: ")
    except ConfigError as error:
        refuse(error)
    if tables.get("streamer", {}).get("hub", {}).get("keys"):
        refuse(
            f"{config}: streamer.hub.keys is for parts on several computers: start each by itself, "
            "`probeloop stream --keys FOLDER`, `probeloop agent --key FILE`, or leave it out"
        )
    return override(tables, changes)


# -- its parts, alone --------------------------------------------------------------------------


def _simulate(entry: Entry) -> Callable[..., None]:
    """Make the command of a simulated instrument; they are all alike."""

    def simulate(
        connect: Connect,
        config: Config = None,
        seed: Seed = None,
        truth: Annotated[
            Path | None,
            typer.Option(help="Write here at the end what was really there (.npz).", show_default=False),
        ] = None,
        max_frames: Annotated[
            int | None, typer.Option(min=1, help="Stop after so many frames.", show_default=False)
        ] = None,
        speed: Speed = "1",
        key: Key = None,
    ) -> None:
        said = {"connect": connect, "config": config, "seed": seed, "truth": truth}
        _become("simulators", entry.name, *_options(**said, max_frames=max_frames, speed=speed, key=key))

    simulate.__doc__ = f"{entry.what}\n\n{entry.more}"
    return simulate


for _entry in CATALOGUE.values():
    simulate_app.command(_entry.name, cls=explained(_entry))(_simulate(_entry))


@app.command()
def stream(
    session_folder: SessionFolder = None,
    config: Config = None,
    bind: Annotated[
        str | None,
        typer.Option(help="Address for microscope and agent; port 0 takes a free one.", show_default=False),
    ] = "tcp://127.0.0.1:5555",
    measurements: Measurements = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="Folder of keys (probeloop keys): only who is allowed there comes in.", show_default=False
        ),
    ] = None,
) -> None:
    """Run the [bold]streamer[/bold] alone: it waits for a microscope and an agent to connect.

    An existing session folder is resumed where it ended.
    """
    folder = _folder(session_folder)
    _become(
        "streamer",
        *_options(session_folder=folder, config=config, bind=bind, max_measurements=measurements, keys=keys),
    )


@app.command()
def agent(
    connect: Connect, config: Config = None, policy: Policy = None, seed: Seed = None, key: Key = None
) -> None:
    """Run the [bold]agent[/bold] alone: it looks at the atoms and chooses the next measurement."""
    _become("agents", *_options(connect=connect, config=config, policy=policy, seed=seed, key=key))


def _options(**values: object) -> list[str]:
    """Write options as they stand on a command line; None leaves one out."""
    pairs = [
        (f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None
    ]
    return [word for pair in pairs for word in pair]


def _become(module: str, *arguments: str) -> NoReturn:
    """Go on as ``python -m module``: signals and exit code are then its own."""
    from deploy.supervise import child_environment

    sys.stdout.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-m", module, *arguments],
        child_environment(is_agent=module == "agents"),
    )


# -- around it ---------------------------------------------------------------------------------


@app.command()
def report(
    session_folder: Annotated[Path, typer.Argument(help="Folder of a session that has ended.")],
) -> None:
    """Make the report of a session once more (report.html in its folder).

    Where a session ended badly, its files for HyperSpy are made too.
    """
    from deploy.report import make_report
    from streamer.finalise import finalise

    try:
        if not (session_folder / "frames.hspy").exists():
            finalise(session_folder)
        path = make_report(session_folder)
    except (OSError, ValueError) as error:
        refuse(error)
    typer.echo(str(path))


@app.command()
def explain(
    session_folder: Annotated[Path, typer.Argument(help="Folder of a session.")],
    which: Annotated[
        str,
        typer.Argument(help="Id of a suggestion, or its number in the report.", show_default="the last"),
    ] = "",
    alternatives: Annotated[
        int, typer.Option(min=0, help="So many of the sites that would have come next.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say [bold]why it was measured there[/bold]: what was expected, and what else would have come next.

    The session is decided anew up to that suggestion.
    """
    import msgspec

    from deploy.explain_command import NotSuggestedError, as_facts, find, print_why, read_course, weigh

    try:
        course = read_course(session_folder)
        one = find(course, which)
        explanation = weigh(session_folder, one, alternatives)
    except (OSError, ValueError, NotSuggestedError) as error:
        refuse(error)
    if as_json:
        typer.echo(msgspec.json.encode(as_facts(one, explanation)))
    else:
        print_why(_console(), course, one, explanation)


@app.command()
def doctor() -> None:
    """Check that this machine can run everything, and say what to do where it cannot."""
    from deploy.doctor import as_table, examine, is_fit

    findings = examine()
    _console().print(as_table(findings))
    if not is_fit(findings):
        raise typer.Exit(1)


@app.command()
def bench(
    name: Annotated[
        str | None,
        typer.Argument(help="Which benchmark, such as loop; without it, all of them.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats, less than a minute.")] = False,
) -> None:
    """Measure how fast and how well the loop runs on this machine."""
    from deploy.bench import benchmark_folder, find_benchmarks, run_benchmarks

    try:
        scripts = find_benchmarks(benchmark_folder(), name)
    except FileNotFoundError as error:
        refuse(error)
    raise typer.Exit(run_benchmarks(scripts, as_json=as_json, is_quick=quick))


@app.command()
def pictures(
    folder: Annotated[Path, typer.Argument(help="Where the pictures go; it is made.")],
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            help="Encoders to draw, again and again; without it, all that are shipped.", show_default=False
        ),
    ] = None,
    recording: Annotated[
        Path | None,
        typer.Option(help="Draw a frame of it instead, coloured by latents and angle.", show_default=False),
    ] = None,
    frame: Annotated[int, typer.Option(min=0, help="Which frame of the recording.")] = 0,
    pixel_size_nm: Annotated[
        float | None, typer.Option(help="Where the recording says none.", show_default=False)
    ] = None,
) -> None:
    """Draw what encoders have [bold]learnt[/bold], or a recorded frame as one of them sees it."""
    from deploy.model_pictures import draw_frame, draw_manifolds
    from models.checkpoint import CheckpointError

    try:
        if recording is None:
            made = draw_manifolds(folder, weights or ())
        else:
            path = folder / f"{recording.stem}_{frame}.png"
            made = [draw_frame(path, recording, frame, weights[0] if weights else None, pixel_size_nm)]
    except (CheckpointError, OSError, ValueError) as error:
        refuse(str(error))
    for path in made:
        typer.echo(path)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def train(context: typer.Context) -> None:
    """Train the encoder on simulated images: [bold]probeloop train rvae[/bold]."""
    from deploy.train import app as train_app

    train_app(context.args, prog_name="probeloop train")


def _console() -> Console:
    from rich.console import Console

    return Console()


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
