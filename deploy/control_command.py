"""``probeloop control``: what a person decides over the agent's head while the loop runs.

Only what ``--help`` needs is imported here; each command imports the rest when it is run.
"""

from __future__ import annotations

import contextlib
import getpass
import math
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.refusals import fail, refuse

if TYPE_CHECKING:
    from agents.config import AgentConfig
    from streamer.keys import PeerKeys
    from streamer.link import Link
    from streamer.messages import Ack, AnyMessage, Control, Outcome, Role, Status, Suggestion
    from streamer.wire import Subscriber

ANSWER_S = 10.0
MEASURE_S = 30.0
LOAD_S = 60.0
STATUS_S = 1.0

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Pause, resume, stop, [bold]abort[/bold], approve or steer a loop that runs. All is journalled.",
)

Connect = Annotated[
    str | None,
    typer.Option(help="Address of the streamer, such as tcp://127.0.0.1:5555.", show_default=False),
]
SessionFolder = Annotated[
    Path | None,
    typer.Option(
        help="Or the folder of the session, on the streamer's machine.", show_default="the newest in sessions"
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(help="Your key file, for a streamer with keys (probeloop keys).", show_default=False),
]
Reason = Annotated[str, typer.Option(help="A few words for the journal.", show_default=False)]


# -- commands ----------------------------------------------------------------------------------------


@app.command()
def pause(
    connect: Connect = None, session_folder: SessionFolder = None, key: Key = None, reason: Reason = ""
) -> None:
    """Park the beam and ask for nothing more, until [bold]resume[/bold]."""
    _decide(
        _Console(connect, session_folder, key),
        "pause",
        "paused; go on with: probeloop control resume",
        reason,
    )


@app.command()
def resume(
    connect: Connect = None, session_folder: SessionFolder = None, key: Key = None, reason: Reason = ""
) -> None:
    """Go on after a pause or an abort."""
    _decide(_Console(connect, session_folder, key), "resume", "resumed", reason)


@app.command()
def stop(
    connect: Connect = None, session_folder: SessionFolder = None, key: Key = None, reason: Reason = ""
) -> None:
    """End the session in order: what is under way is finished, the files are written."""
    _decide(_Console(connect, session_folder, key), "stop", "the session ends in order", reason)


@app.command()
def abort(
    connect: Connect = None, session_folder: SessionFolder = None, key: Key = None, reason: Reason = ""
) -> None:
    """[bold red]Park the beam at once[/bold red], break off what is under way, and hold. It asks nothing."""
    _decide(
        _Console(connect, session_folder, key),
        "abort",
        "aborted; go on with: probeloop control resume, or end with: probeloop control stop",
        reason,
    )


@app.command()
def separate(
    connect: Connect = None, session_folder: SessionFolder = None, key: Key = None, reason: Reason = ""
) -> None:
    """Ask again for the four scans that tell strain from distortion: turned, moved, and back."""
    _decide(
        _Console(connect, session_folder, key),
        "separate",
        "four scans are asked for, one after the other; the strain map follows",
        reason,
    )


@app.command()
def encoder(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="FILE|REVISION",
            help="Weights of [bold]probeloop train[/bold], or the revision of some that the session had.",
        ),
    ],
    name: Annotated[
        str, typer.Option(help="Of one of the encoders beside the main one.", show_default="the main one")
    ] = "",
    connect: Connect = None,
    session_folder: SessionFolder = None,
    key: Key = None,
    reason: Reason = "",
) -> None:
    """Encode with other weights from the next frame on; the session keeps them and goes on meanwhile."""
    control = _control_of_weights(weights, name, reason)
    console = _Console(connect, session_folder, key)
    with contextlib.ExitStack() as stack:
        view = console.view("encoder_in_use", "event")
        if view is not None:
            stack.callback(view.close)
        ack = _ack_of(stack.enter_context(console.link("operator")), control)
        if ack.status == "refused":
            fail(f"refused: {ack.reason}")
        if view is None:
            typer.echo(f"asked for {control.revision}; the journal says from which frame on, or why not")
        else:
            _say_what_came_of(view, control)


def _control_of_weights(weights: str, name: str, reason: str) -> Control:
    """Read the file, or take its name for a revision where there is none."""
    from streamer.messages import Control
    from streamer.weights import as_control

    try:
        if not Path(weights).exists() and re.fullmatch("[0-9a-f]{12}", weights):
            return Control(action="encoder", encoder=name, revision=weights, reason=reason)
        return as_control(Path(weights).read_bytes(), encoder=name, reason=reason or Path(weights).name)
    except OSError as error:
        refuse(f"{weights}: cannot be read: {error.strerror}; name a .safetensors file of 'probeloop train'")
    except ValueError as error:
        refuse(error)


def _say_what_came_of(view: Subscriber, control: Control) -> None:
    """Wait until the weights are in use, or refused."""
    from streamer.messages import EncoderInUse, Event

    deadline_s = time.monotonic() + LOAD_S
    while (left_s := deadline_s - time.monotonic()) > 0:
        message = view.receive(left_s)
        if isinstance(message, EncoderInUse) and message.revision == control.revision:
            typer.echo(f"{message.name} ({message.revision}) encodes from frame {message.number} on")
            return
        if isinstance(message, Event) and message.what == "encoder refused":
            fail(f"refused: {message.detail}; the session goes on with what it had")
    fail(f"the streamer did not say within {LOAD_S:g} s whether it took them; see the live view")


@app.command()
def veto(
    identifier: Annotated[
        str, typer.Argument(metavar="[ID]", help="A suggestion or request, as the live view names it.")
    ] = "",
    at: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Or a place on the specimen: X Y in nm.", show_default=False),
    ] = None,
    polygon: Annotated[
        str | None,
        typer.Option(
            metavar="'X,Y X,Y X,Y'",
            help="Or an area: its corners in nm, one after the other.",
            show_default=False,
        ),
    ] = None,
    radius_nm: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How far around it nothing more is measured.",
            show_default="0.5 around a place, 0 for an ID or an area",
        ),
    ] = None,
    connect: Connect = None,
    session_folder: SessionFolder = None,
    key: Key = None,
    reason: Reason = "",
) -> None:
    """Forbid a measurement, a place or an area: nothing more is measured there."""
    if sum((bool(identifier), at is not None, polygon is not None)) != 1:
        refuse("say what is forbidden: an ID, a place by --at X Y, or an area by --polygon 'X,Y X,Y X,Y'")
    radius = radius_nm if radius_nm is not None else 0.0 if at is None else 0.5
    corners = () if polygon is None else _corners_of(polygon)
    console = _Console(connect, session_folder, key)
    control = _control("veto", reason, id=identifier, position_nm=at, polygon_nm=corners, radius_nm=radius)
    _say(console, control, f"forbidden: {control.forbidden_in_words}")


def _corners_of(words: str) -> tuple[tuple[float, float], ...]:
    """Read the corners of a polygon, ``x,y`` each, with blanks between them."""
    from streamer.areas import why_no_polygon

    try:
        corners = tuple((float(x), float(y)) for x, y in (word.split(",") for word in words.split()))
    except ValueError:
        refuse(f"--polygon {words!r}: write its corners as 'X,Y X,Y X,Y', in nm")
    if why := why_no_polygon(corners):
        refuse(f"the polygon {why}")
    return corners


@app.command()
def place(
    shift: Annotated[
        tuple[float, float],
        typer.Option(
            help="How far the specimen jumped in the image: X Y in nm, to the right and down.",
            show_default=False,
        ),
    ],
    radius_nm: Annotated[
        float, typer.Option(min=0, help="How well you know it: each area then reaches so much further.")
    ] = 0.0,
    connect: Connect = None,
    session_folder: SessionFolder = None,
    key: Key = None,
    reason: Reason = "",
) -> None:
    """Say where forbidden areas and vetoes lie since the specimen was lost; before, nothing is measured."""
    console = _Console(connect, session_folder, key)
    done = f"forbidden areas and vetoes lie ({shift[0]:g}, {shift[1]:g}) nm from where they lay"
    _decide(console, "place", done, reason, shift_nm=shift, radius_nm=radius_nm)


@app.command()
def forget(
    connect: Connect = None, session_folder: SessionFolder = None, key: Key = None, reason: Reason = ""
) -> None:
    """Say that what was forbidden is gone since the specimen was lost; what you vetoed after that holds."""
    console = _Console(connect, session_folder, key)
    _decide(console, "forget", "what was lost is not forbidden any more", reason)


@app.command()
def mode(
    mode: Annotated[
        str,
        typer.Argument(
            metavar="auto|confirm|advise",
            help="[bold]auto[/bold] measures what the agent suggests; [bold]confirm[/bold] waits for your "
            "word on each; [bold]advise[/bold] only shows it.",
        ),
    ],
    connect: Connect = None,
    session_folder: SessionFolder = None,
    key: Key = None,
    reason: Reason = "",
) -> None:
    """Say who decides: the agent, you and the agent, or you alone. What waits is given back to the agent."""
    control = _control("mode", reason, mode=mode)
    _say(_Console(connect, session_folder, key), control, f"the mode is {mode}")


Seen = Annotated[
    int | None,
    typer.Option(
        help="Revision that you saw: if anything was changed since, nothing is done.",
        show_default="for an ID whatever it is; else what is shown",
    ),
]


@app.command()
def approve(
    identifiers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...", help="Suggestions that wait; without any you are asked one by one."
        ),
    ] = None,
    seen: Seen = None,
    connect: Connect = None,
    session_folder: SessionFolder = None,
    key: Key = None,
    reason: Reason = "",
) -> None:
    """Let a suggestion that waits be measured; the limits of dose and field hold all the same."""
    console = _Console(connect, session_folder, key)
    said = -1 if seen is None else seen
    if identifiers:
        for identifier in identifiers:
            _decide(console, "approve", f"approved: {identifier}", reason, id=identifier, seen=said)
        return
    status = console.status()
    if status is None:
        refuse("what waits cannot be seen from here; name the ID, or give --session-folder")
    if not status.waiting:
        typer.echo(f"nothing waits; the mode is {status.mode}")
    for identifier, words in status.waiting.items():
        answer = _answer_to(f"{identifier} {words}\n  measure it? [y/n/q]")
        if answer == "q":
            return
        action, done = ("approve", "approved") if answer == "y" else ("decline", "declined")
        said = status.revision if seen is None else seen
        _decide(console, action, f"{done}: {identifier}", reason, id=identifier, seen=said)


def _answer_to(question: str) -> str:
    """Ask until the answer is yes, no or quit; the end of the input quits: it decides nothing."""
    while True:
        try:
            answer = input(f"{question} ").strip().lower()
        except EOFError:
            typer.echo("\nno answer; what was not answered still waits")
            return "q"
        if answer in ("y", "yes", "n", "no", "q", "quit"):
            return answer[0]
        question = "  y measures it, n declines it, q leaves it and the rest waiting:"


@app.command()
def decline(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="A suggestion that waits.")],
    connect: Connect = None,
    session_folder: SessionFolder = None,
    key: Key = None,
    reason: Reason = "",
) -> None:
    """Let a suggestion that waits not be measured; the agent looks elsewhere for a while."""
    _decide(
        _Console(connect, session_folder, key),
        "decline",
        f"declined: {identifier}",
        reason,
        id=identifier,
    )


@app.command()
def steer(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help="As in the table [bold]\\[agent][/bold] of the configuration: goal=minimise, policy=random, "
            "objective.window_ev=[10,40]; or a .toml file with such a table.",
        ),
    ],
    connect: Connect = None,
    session_folder: SessionFolder = None,
    key: Key = None,
    reason: Reason = "",
) -> None:
    """Change goal, objective or policy of the agent while it works; it keeps all that was measured."""
    console = _Console(connect, session_folder, key)
    table = _settings_of(settings, console.agent_config())
    said = ", ".join(f"{name} = {value}" for name, value in table.items())
    _decide(console, "steer", f"the agent is told: {said}", reason, settings=table)


def _settings_of(words: list[str], config: AgentConfig | None) -> dict[str, Any]:
    """Read what the agent is to be told, and see that one of this configuration, if known, could use it."""
    import tomllib

    from agents.config import with_settings

    try:
        if len(words) == 1 and words[0].endswith(".toml"):
            table: dict[str, Any] = tomllib.loads(Path(words[0]).read_text(encoding="utf-8")).get("agent", {})
        else:
            table = tomllib.loads("\n".join(map(_as_toml, words)))
        if not table:
            refuse(f"{words[0]}: no [agent] table in it")
        if config is not None:
            with_settings(config, table)
    except OSError as error:
        refuse(f"{words[0]}: cannot be read: {error.strerror}")
    except ValueError as error:
        refuse(error)
    return table


def _as_toml(word: str) -> str:
    """Write ``goal=map`` as TOML does, with quotes where the value is a word."""
    name, equals, value = word.partition("=")
    if not equals:
        refuse(f"{word}: say KEY=VALUE, such as goal=minimise")
    is_word = re.fullmatch(r"[A-Za-z_][\w./ -]*", value) and value not in ("true", "false", "inf", "nan")
    return f'{name} = "{value}"' if is_word else f"{name} = {value}"


# A negative coordinate looks like an option.
@app.command(context_settings={"ignore_unknown_options": True})
def point(
    x: Annotated[float, typer.Argument(help="Place on the specimen, nm to the right.")],
    y: Annotated[float, typer.Argument(help="Nm down.")],
    dwell_time_us: Annotated[float, typer.Option(min=0, help="Exposure of the spectrum.")],
    revision: Annotated[
        int | None,
        typer.Option(
            help="Reference frame that the place speaks of.",
            show_default="with --session-folder: the present one",
        ),
    ] = None,
    connect: Connect = None,
    session_folder: SessionFolder = None,
    key: Key = None,
    reason: Reason = "",
) -> None:
    """Take a spectrum where you say; the limits of dose and field hold for you, too."""
    from streamer.messages import Suggestion

    if not (math.isfinite(x) and math.isfinite(y)):
        refuse(f"the place is ({x}, {y}) nm; it takes finite numbers")
    console = _Console(connect, session_folder, key)
    with console.link("operator") as link:
        suggestion = Suggestion(
            session=link.welcome.session,
            number=0,
            acquired_at_s=time.time(),
            id=f"operator-{secrets.token_hex(4)}",
            position_nm=(x, y),
            registration_revision=console.revision() if revision is None else revision,
            dwell_time_us=dwell_time_us,
            policy="operator",
            reason=reason or f"asked for by {getpass.getuser()}",
        )
        outcome = _outcome_of(link, suggestion)
    if outcome.status != "ok":
        fail(f"{outcome.status}: {outcome.reason}")
    typer.echo(f"measured as {outcome.id}{_spectrum_text(outcome)}")


def _spectrum_text(outcome: Outcome) -> str:
    where = outcome.position_nm or outcome.scan_position_nm or (math.nan, math.nan)
    return f" at ({where[0]:.3f}, {where[1]:.3f}) nm{_what_came(outcome)}"


def _what_came(outcome: Outcome) -> str:
    if outcome.spectrum is None:
        return ""
    if outcome.bias_v is None:
        return f", {float(outcome.spectrum.sum()):,.0f} counts"
    least, most = float(outcome.bias_v.min()), float(outcome.bias_v.max())
    return f", a loop of {len(outcome.bias_v)} points from {least:g} to {most:g} V"


# -- how they reach the streamer ----------------------------------------------------------------------


class _Console:
    """Where the streamer is, and with which key it is spoken to.

    Parameters
    ----------
    connect, session_folder, key
        As on the command line; without the first two, the newest session in ``sessions``.
    """

    def __init__(self, connect: str | None, session_folder: Path | None, key: Path | None) -> None:
        self.view_address: str | None = None
        self._folder: Path | None = None
        self._key = key
        if connect is not None and session_folder is not None:
            refuse("say either --connect or --session-folder")
        self.address = connect or self._find(session_folder)

    def _find(self, folder: Path | None) -> str:
        from deploy.supervise import read_endpoints

        if folder is None:
            running = sorted(Path("sessions").glob("*/endpoints.json"), key=lambda path: path.stat().st_mtime)
            if not running:
                refuse("no session runs in ./sessions; give --session-folder, or the address by --connect")
            folder = running[-1].parent
        endpoints = read_endpoints(folder)
        if endpoints is None:
            refuse(f"{folder}: no streamer serves there; give another folder, or the address by --connect")
        self.view_address, self._folder = endpoints.view_address, folder
        return endpoints.address

    def agent_config(self) -> AgentConfig | None:
        """Read how the session's agent was configured; None where its folder is not at hand."""
        from agents.config import load_agent_config
        from streamer.config_file import ConfigError

        if self._folder is None or not (path := self._folder / "config.toml").exists():
            return None
        try:
            return load_agent_config(path)
        except ConfigError as error:
            refuse(error)

    def keys(self, role: Role | None) -> PeerKeys | None:
        from streamer.keys import KeysError, PeerKeys

        if self._key is None:
            return None
        try:
            return PeerKeys.read(self._key, role)
        except KeysError as error:
            refuse(error)

    def link(self, role: Role | None) -> Link:
        """Connect; with a key and no role given, in the role of the key."""
        from streamer.link import Link

        keys = self.keys(role)
        own: Role = role or (keys.role if keys is not None else "operator")  # type: ignore[assignment]
        try:
            return Link(self.address, role=own, name=getpass.getuser(), timeout_s=ANSWER_S, keys=keys)
        except ConnectionError as error:
            fail(f"{error}. An instrument parks its beam by itself 2 s after its streamer falls silent")
        except OSError as error:  # no address
            refuse(error)

    def status(self) -> Status | None:
        """Look at the streamer's next Status; None where it is not known where, or none comes."""
        from streamer.messages import Status

        found = self._see("status", STATUS_S)
        return found if isinstance(found, Status) else None

    def revision(self) -> int:
        """Say which reference frame the latest positions speak of; 0 where it cannot be seen."""
        from streamer.messages import Latents

        found = self._see("latents", ANSWER_S)
        return found.registration.revision if isinstance(found, Latents) else 0

    def _see(self, kind: str, timeout_s: float) -> object:
        subscriber = self._subscriber(kind)
        if subscriber is None:
            return None
        try:
            return subscriber.receive(timeout_s)
        finally:
            subscriber.close()

    def view(self, *kinds: str) -> Subscriber | None:
        """Listen to the streamer from now on; None where it is not known where."""
        subscriber = self._subscriber("status", *kinds)
        if subscriber is not None and subscriber.receive(ANSWER_S) is None:
            fail(f"the streamer published nothing within {ANSWER_S:g} s")
        return subscriber

    def _subscriber(self, *kinds: str) -> Subscriber | None:
        from streamer.wire import Subscriber

        if self.view_address is None:
            return None
        return Subscriber(self.view_address, kinds, keys=self.keys(None))


def _control(action: str, reason: str, **fields: Any) -> Control:
    """Write down what is decided, or say in a line why it makes no sense."""
    from streamer.messages import Control

    try:
        return Control(action=action, reason=reason, **fields)  # type: ignore[arg-type]
    except ValueError as error:
        refuse(error)


def _decide(console: _Console, action: str, done: str, reason: str, **fields: Any) -> None:
    """Say it to the streamer and tell what came of it; the fields are those of ``Control``."""
    _say(console, _control(action, reason, **fields), done)


def _say(console: _Console, control: Control, done: str) -> None:
    """Say it to the streamer, wait until it is in the journal, and tell what came of it."""
    # Whoever works in the loop may abort it: an instrument's or an agent's key will do.
    with console.link(None if control.action == "abort" else "operator") as link:
        ack = _ack_of(link, control)
    if ack.status == "refused":
        fail(f"refused: {ack.reason}")
    kept = " (not in the journal: the disk is full)" if ack.status == "unrecorded" else ""
    status = console.status() if control.action in ("pause", "resume", "abort") else None
    held = "" if status is None or not status.held else f"; held now: {', '.join(status.held)}"
    typer.echo(f"{done}{kept}{held}")


def _ack_of(link: Link, control: Control) -> Ack:
    """Send the only message of a link, and wait for its ack."""
    from streamer.messages import Ack

    link.send(control)
    ack = _wait_for(link, lambda one: isinstance(one, Ack) and one.sequence >= 1, ANSWER_S)
    assert isinstance(ack, Ack)
    return ack


def _outcome_of(link: Link, suggestion: Suggestion) -> Outcome:
    from streamer.messages import Ack, Outcome

    def is_answer(one: AnyMessage) -> bool:
        if isinstance(one, Ack):
            return one.status == "refused"
        return isinstance(one, Outcome) and one.id == suggestion.id

    link.send(suggestion)
    answer = _wait_for(link, is_answer, MEASURE_S + suggestion.dwell_time_us * 1e-6)
    if isinstance(answer, Ack):
        fail(f"refused: {answer.reason}")
    assert isinstance(answer, Outcome)
    return answer


def _wait_for(link: Link, is_answer: Callable[[AnyMessage], bool], timeout_s: float) -> AnyMessage:
    from streamer.messages import Bye

    deadline_s = time.monotonic() + timeout_s
    while True:
        message = link.receive(max(0.0, deadline_s - time.monotonic()))
        if message is None:
            fail(f"the streamer did not answer within {timeout_s:g} s")
        if is_answer(message):
            return message
        if isinstance(message, Bye):
            fail(f"the streamer left before it answered: {message.reason}")


if __name__ == "__main__":
    app()
