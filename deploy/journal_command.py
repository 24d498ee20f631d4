"""``probeloop journal``: verify, repair and export the journal of a session.

Only what ``--help`` needs is imported here; each command imports the rest when it is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deploy.refusals import refuse

if TYPE_CHECKING:
    from rich.table import Table

    from streamer.repair import JournalAccount

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The [bold]journal[/bold] of a session: verify it, repair it, turn it into other files.",
)

Session = Annotated[Path, typer.Argument(help="Folder of a session.")]
# Arrays of more values are told by their type and shape alone.
MOST_VALUES = 4096


@app.command()
def verify(
    session: Session,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Read every record and verify every checksum; exit code 1 if anything is damaged."""
    from streamer.repair import examine

    try:
        account = examine(session)
    except OSError as error:
        refuse(error)
    if as_json:
        import json

        typer.echo(json.dumps(as_facts(account), indent=2))
    else:
        from rich.console import Console

        Console().print(as_table(account))
        typer.echo(_conclusion(account, session))
    if account.is_damaged:
        raise typer.Exit(1)


@app.command()
def repair(session: Session) -> None:
    """Take what is damaged out of the journal; nothing is deleted, the bytes are kept beside it."""
    from streamer.repair import repair as mend

    try:
        repairs = mend(session)
    except OSError as error:
        refuse(error)
    for one in repairs:
        typer.echo(
            f"{one.segment.name}: {one.length:,} bytes at {one.offset:,} are now in {one.kept_in.name}"
        )
    if not repairs:
        typer.echo("nothing is damaged")


@app.command()
def export(
    session: Session,
    format_: Annotated[
        Literal["hspy", "nexus", "jsonl"],
        typer.Option(
            "--format",
            help="[bold]hspy[/bold]: for HyperSpy and LiberTEM; [bold]nexus[/bold]: one NXem-style file; "
            "[bold]jsonl[/bold]: every record as a line of text, without large arrays.",
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(help="Folder for hspy, file for the others.", show_default="in the session folder"),
    ] = None,
) -> None:
    """Write frames, spectra or all records as files of other programs."""
    from streamer.finalise import finalise
    from streamer.nexus import export_nexus

    try:
        if format_ == "hspy":
            if to is not None:
                to.mkdir(parents=True, exist_ok=True)
            written = finalise(session, to)
        elif format_ == "nexus":
            written = [export_nexus(session, to or session / "session.nxs")]
        else:
            written = [write_lines(session, to or session / "journal.jsonl")]
    except (OSError, ValueError) as error:
        refuse(error)
    for path in written:
        typer.echo(str(path))
    if not written:
        typer.echo("the session has neither frames nor spectra", err=True)


def as_facts(account: JournalAccount) -> dict[str, Any]:
    """Say as plain values what ``verify`` found."""
    return {
        "damaged": account.is_damaged,
        "damaged_bytes": account.damaged_bytes,
        "damaged_records": sum(segment.damaged_records for segment in account.segments),
        "records": dict(sorted(account.records.items())),
        "gaps": [list(gap) for gap in account.gaps],
        "disorder": account.disorder,
        "segments": [
            {
                "name": segment.path.name,
                "bytes": segment.size,
                "first": segment.first,
                "last": segment.last,
                "records": segment.records.total(),
                "damaged_bytes": sum(length for _, length in segment.damaged),
                "damaged_records": segment.damaged_records,
                "index": segment.index,
            }
            for segment in account.segments
        ],
    }


def as_table(account: JournalAccount) -> Table:
    """Lay out what ``verify`` found, a segment a row."""
    from rich.table import Table

    table = Table("segment", "bytes", "records", "numbers", "damaged bytes", "damaged records", "index")
    for fact in as_facts(account)["segments"]:
        numbers = f"{fact['first']} to {fact['last']}" if fact["records"] else "-"
        table.add_row(
            fact["name"],
            f"{fact['bytes']:,}",
            f"{fact['records']:,}",
            numbers,
            f"{fact['damaged_bytes']:,}",
            f"{fact['damaged_records']:,}",
            fact["index"],
        )
    return table


def _conclusion(account: JournalAccount, session: Path) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in account.records.most_common())
    lines = [f"records: {kinds or 'none'}"]
    missing = sum(last - first + 1 for first, last in account.gaps)
    if missing:
        ranges = ", ".join(f"{first} to {last}" for first, last in account.gaps[:10])
        lines.append(
            f"numbers that no record has: {missing:,} ({ranges}{', …' if account.gaps[10:] else ''})"
        )
    if account.disorder:
        lines.append(f"records out of order: {len(account.disorder):,}, the first is {account.disorder[0]}")
    if account.damaged_bytes:
        lines.append(
            f"damaged: {account.damaged_bytes:,} bytes; to take them out: probeloop journal repair {session}"
        )
    return "\n".join(lines)


def write_lines(session: Path, to: Path) -> Path:
    """Write each record as a line of JSON: number, kind, times and the message.

    Arrays of up to 4,096 values are lists, larger ones ``{"dtype", "shape"}``. A damaged record is a line
    that says so.

    Raises
    ------
    FileNotFoundError
        If the folder holds no journal.
    OSError
        If the file cannot be written.
    """
    import msgspec

    from streamer.journal import read_records

    encoder = msgspec.json.Encoder(enc_hook=_array_as_text)
    part = to.with_name(to.name + ".part")
    try:
        with part.open("wb") as out:
            for record in read_records(session):
                out.write(encoder.encode(_line(record)) + b"\n")
        return part.replace(to)
    finally:
        part.unlink(missing_ok=True)


def _line(record: Any) -> dict[str, Any]:
    from streamer.codec import WireError
    from streamer.segment import Damage

    if isinstance(record, Damage):
        return {"damaged": f"{record.length} bytes at {record.offset} of {record.segment.name}"}
    line = {
        "record": record.number,
        "kind": record.kind,
        "received_at_s": record.received_at_s,
        "monotonic_s": record.monotonic_s,
    }
    try:
        numbered = record.numbered()
    except WireError as error:
        return line | {"damaged": str(error)}
    return line | {"sender": numbered.sender, "sequence": numbered.sequence, "message": numbered.message}


def _array_as_text(array: Any) -> Any:
    if array.size <= MOST_VALUES:
        return array.tolist()
    return {"dtype": array.dtype.str, "shape": list(array.shape)}
