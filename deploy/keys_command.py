"""``probeloop keys``: make keys, say who may connect, take it back.

Only what ``--help`` needs is imported here; each command imports the rest when it is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.refusals import refuse

Role = Literal["instrument", "agent", "operator", "viewer"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Keys for [bold]other computers[/bold]: who may connect to this streamer, and as what.",
)

Name = Annotated[str, typer.Argument(help="What you call it, such as titan or anna.")]
AsRole = Annotated[
    Role,
    typer.Option(
        help="instrument: sends frames; agent: chooses; operator: steers and stops; viewer: looks on."
    ),
]
Folder = Annotated[Path, typer.Option(help="The streamer's folder of keys.")]


@app.command()
def new(
    name: Name,
    role: AsRole,
    folder: Folder = Path("keys"),
    alone: Annotated[
        bool,
        typer.Option(
            "--alone", help="Only make NAME.key, on the computer that will use it: the secret never travels."
        ),
    ] = False,
    streamer: Annotated[
        str, typer.Option(help="With --alone: the streamer's public key, as 'probeloop keys list' shows it.")
    ] = "",
) -> None:
    """Make a key pair in NAME.key and let it in; the first time, the streamer's own pair too."""
    from streamer.keys import KeysError, Peer, allow, read_allowed, require_key, require_name, write_pair
    from streamer.wire import new_pair

    path = folder / f"{name}.key"
    try:
        require_name(name)
        if streamer:
            require_key("--streamer", streamer)
        pair = new_pair()
        if alone:
            write_pair(path, name=name, role=role, pair=pair, streamer=streamer)
            _say_alone(path, name, role, pair.public, streamer)
            return
        if streamer:
            raise KeysError("--streamer goes with --alone; else the streamer of the folder is meant")
        if any(peer.name == name for peer in read_allowed(folder)):
            raise KeysError(f"{name} is allowed already; choose another name, or revoke it first")
        own = _streamer_of(folder)
        write_pair(path, name=name, role=role, pair=pair, streamer=own)
        allow(folder, Peer(name=name, role=role, public=pair.public))
    except (ValueError, OSError) as error:
        refuse(error)
    typer.echo(f"{path}: the key of {name}, allowed as {role}.")
    typer.echo(
        f"Move this one file to its computer, over a way that you trust, and use it there: {_use(role)}"
    )
    typer.echo(f"The streamer takes the folder: probeloop stream --keys {folder}")


def _streamer_of(folder: Path) -> str:
    """Give the public key of the folder's streamer, which is made the first time."""
    from streamer.keys import STREAMER_KEY, ServerKeys, write_pair
    from streamer.wire import new_pair

    path = folder / STREAMER_KEY
    if not path.exists():
        write_pair(path, name="streamer", role="streamer", pair=new_pair())
        typer.echo(f"{path}: the streamer's own key, made now; it stays here.")
    return ServerKeys(folder).public


def _use(role: Role) -> str:
    return {
        "instrument": "--key FILE of the microscope's program (probeloop simulate stem --key FILE)",
        "agent": "probeloop agent --key FILE",
        "operator": "PeerKeys.read(FILE), see docs/security.md",
        "viewer": "PeerKeys.read(FILE), see docs/security.md",
    }[role]


def _say_alone(path: Path, name: str, role: Role, public: str, streamer: str) -> None:
    typer.echo(f"{path}: the key of {name}; it stays on this computer.")
    typer.echo("On the streamer's computer, let it in (the quotes belong to it):")
    # A key may begin with a dash, and holds letters that a shell reads otherwise; ' is none of them.
    typer.echo(f"  probeloop keys allow {name} --role {role} -- '{public}'")
    if not streamer:
        typer.echo(f'Then add the streamer\'s public key to {path}:  streamer = "…"')


@app.command()
def allow(
    name: Name,
    public: Annotated[str, typer.Argument(help="Its public key, 40 letters, in single quotes.")],
    role: AsRole,
    folder: Folder = Path("keys"),
) -> None:
    """Let in a key that was made elsewhere ([bold]keys new --alone[/bold])."""
    from streamer.keys import Peer
    from streamer.keys import allow as allow_key

    try:
        peer = Peer(name=name, role=role, public=public)
        own = _streamer_of(folder)
        allow_key(folder, peer)
    except (ValueError, OSError) as error:
        refuse(error)
    typer.echo(f"{name} is allowed as {role}; a streamer that runs lets it in at once.")
    typer.echo(f'Its key file needs the line  streamer = "{own}"')


@app.command()
def revoke(name: Name, folder: Folder = Path("keys")) -> None:
    """Take a key off the list: connections that are open end within two seconds."""
    from streamer.keys import revoke as revoke_key

    try:
        peer = revoke_key(folder, name)
    except (ValueError, OSError) as error:
        refuse(error)
    typer.echo(
        f"{name} ({peer.role}) is no longer allowed; a streamer that runs cuts it off within two seconds."
    )
    path = folder / f"{name}.key"
    if path.exists():
        typer.echo(f"{path} is of no more use: delete it.")


@app.command("list")
def show(folder: Folder = Path("keys")) -> None:
    """Show who may connect, and the streamer's public key."""
    from streamer.keys import ServerKeys, read_allowed

    try:
        own = ServerKeys(folder).public
        peers = read_allowed(folder)
    except (ValueError, OSError) as error:
        refuse(error)
    typer.echo(f"streamer    {'':10}  {own}")
    for peer in peers:
        typer.echo(f"{peer.name:10}  {peer.role:10}  {peer.public}")
    if not peers:
        typer.echo("Nobody is allowed yet: probeloop keys new NAME --role instrument")
