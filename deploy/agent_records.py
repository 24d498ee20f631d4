"""What the agent of a recorded session was told and decided, out of its journal."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from agents.policies import name_of
from streamer.codec import Numbered, WireError
from streamer.journal import read_records
from streamer.messages import (
    AnyMessage,
    Checkpoint,
    Control,
    Hello,
    Latents,
    ModelRevision,
    Outcome,
    StrainMap,
    Suggestion,
)
from streamer.oversight import BY_A_PERSON
from streamer.progress import row_name
from streamer.segment import Damage


def records_of_agent(folder: Path, policy: str) -> Iterator[tuple[int, AnyMessage]]:
    """Read, with its number, each record that the agent of a policy was told or sent.

    Outcomes of others are among them, which the agent does not take. Where the beginning of the journal is
    gone, the agent's first checkpoint comes first.

    Raises
    ------
    FileNotFoundError
        If the folder holds no journal.
    """
    rows, row = rows_and_agent(folder, policy)
    if not row:
        return
    checkpoint = _checkpoint(folder, row) if _is_cut_off(folder) else None
    has_joined = checkpoint is not None
    if checkpoint is not None:
        yield checkpoint
    kinds = ("hello", "latents", "strain_map", "control", "outcome", "suggestion", "model_revision")
    for number, numbered in _numbered(folder, kinds):
        message = numbered.message
        is_own = rows.get(numbered.sender) == row
        has_joined |= isinstance(message, Hello) and rows.get(message.instance) == row
        if has_joined and _concerns(message, is_own=is_own):
            yield number, message


def _concerns(message: AnyMessage, *, is_own: bool) -> bool:
    match message:
        case Suggestion(policy=policy) if policy == BY_A_PERSON:
            return True
        case Suggestion() | ModelRevision():
            return is_own
        case _:
            return isinstance(message, Latents | StrainMap | Outcome | Control)


def rows_and_agent(folder: Path, policy: str) -> tuple[dict[str, str], str]:
    """Say whose process each instance was.

    Returns
    -------
    rows
        Name of the row, as in ``Progress``, by the instance.
    agent
        Which of them first suggested by this policy. If none did, the one that a process of this policy is
        named: it was steered to another before it suggested anything. Empty without either.
    """
    rows: dict[str, str] = {}
    sender = named = ""
    for _, numbered in _numbered(folder, ("hello", "checkpoint", "suggestion")):
        match numbered.message:
            case Hello() as hello:
                rows[hello.instance] = row_name(hello)
                if hello.role == "agent" and hello.name == name_of(policy):
                    named = row_name(hello)
            case Checkpoint(of="streamer") as checkpoint if not rows:  # the journal may begin after the Hello
                from streamer.recovery import facts_of

                rows |= facts_of(checkpoint).progress.instances
            case Suggestion() as suggestion if suggestion.policy == policy:
                sender = sender or numbered.sender
            case _:
                pass
    return rows, rows.get(sender, named)


def _is_cut_off(folder: Path) -> bool:
    first = next(iter(read_records(folder)), None)
    return first is not None and not isinstance(first, Damage) and first.number > 1


def _checkpoint(folder: Path, row: str) -> tuple[int, Checkpoint] | None:
    """Find the first checkpoint of an agent."""
    for number, numbered in _numbered(folder, ("checkpoint",)):
        message = numbered.message
        if isinstance(message, Checkpoint) and f"agent {message.of}" == row:
            return number, message
    return None


def _numbered(folder: Path, kinds: Collection[str]) -> Iterator[tuple[int, Numbered]]:
    """Read the records of some kinds; what is damaged is passed over."""
    for record in read_records(folder, kinds):
        if isinstance(record, Damage):
            continue
        try:
            yield record.number, record.numbered()
        except WireError:
            continue
