"""``probeloop replay SESSION --verify``: everything that a session decided, decided anew from its journal.

In one process and without sockets: the recorded frames go through the pipeline again, the agent is told
again what it was told, and the envelope reviews every suggestion again. Whatever comes out must be
bit-equal to what the journal has; the first record that is not is named.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import structlog
import typer
from rich.console import Console
from rich.table import Table

from agents.history import History
from agents.policies import make_agent
from agents.protocol import Agent, Decision
from deploy.agent_records import rows_and_agent
from deploy.config import RunConfig, read_run_config
from deploy.refusals import refuse
from streamer import weights
from streamer.admission import DECLINED, OUT_OF_SEASON
from streamer.calibrations import of_session
from streamer.codec import Numbered, WireError
from streamer.compiled import start_anew_if_compiled
from streamer.envelope import Envelope, RefusedError
from streamer.journal import read_records
from streamer.messages import (
    AnyMessage,
    Checkpoint,
    Control,
    EncoderInUse,
    Event,
    Frame,
    Latents,
    ModelRevision,
    Outcome,
    Patches,
    Request,
    Score,
    Suggestion,
)
from streamer.oversight import BY_A_PERSON
from streamer.pipeline import Pipeline
from streamer.progress import Progress
from streamer.recovery import facts_of, latest_before, pipeline_state_of
from streamer.segment import Damage, Record
from streamer.weights import Shelf

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PARTS = ("frames", "latents", "suggestions", "fits", "scores", "requests", "outcomes")


class Check(msgspec.Struct):
    """How much of one kind was compared, and how much of it was equal."""

    checked: int = 0
    equal: int = 0


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that came out differently.

    Attributes
    ----------
    record
        Number of the record that has it.
    what
        Which message, and which field of it.
    recorded, now
        What the journal has, and what comes out now.
    """

    record: int
    what: str
    recorded: str
    now: str


class Findings(msgspec.Struct):
    """What a verification found.

    Attributes
    ----------
    checks
        By part, see ``PARTS``.
    first
        The difference with the lowest record; None where everything is equal.
    notes
        What could not be checked, and why.
    """

    checks: dict[str, Check] = msgspec.field(default_factory=lambda: {part: Check() for part in PARTS})
    first: Difference | None = None
    notes: list[str] = msgspec.field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Did everything that was checked come out equal?"""
        return self.first is None

    def compare(self, part: str, record: int, name: str, recorded: object, now: object) -> bool:
        """Compare, count, and note the first difference; say whether it is equal."""
        check = self.checks[part]
        check.checked += 1
        unlike = first_unlike(recorded, now)
        if unlike is None:
            check.equal += 1
            return True
        field, was, is_now = unlike
        difference = Difference(record=record, what=f"{name}{field}", recorded=was, now=is_now)
        if self.first is None or record < self.first.record:
            self.first = difference
        return False


# -- comparing ---------------------------------------------------------------------------------


def first_unlike(recorded: object, now: object) -> tuple[str, str, str] | None:
    """Find the first place where two values are not the same bit for bit.

    Returns
    -------
    unlike
        Path of the place (empty for the values themselves), and both values there in words; None
        where there is none. A NaN equals the same NaN.
    """
    if isinstance(recorded, np.ndarray) and isinstance(now, np.ndarray):
        return _unlike_arrays(recorded, now)
    parts, others = _parts(recorded), _parts(now)
    if type(recorded) is type(now) and parts is not None and others is not None:
        if parts.keys() != others.keys():
            return "", _brief(list(parts)), _brief(list(others))
        for name, part in parts.items():
            unlike = first_unlike(part, others[name])
            if unlike is not None:
                return name + unlike[0], *unlike[1:]
        return None
    return None if _is_same(recorded, now) else ("", _brief(recorded), _brief(now))


def _parts(value: object) -> dict[str, object] | None:
    """Name the parts of a value that has parts."""
    match value:
        case msgspec.Struct():
            return {f".{name}": getattr(value, name) for name in value.__struct_fields__}
        case dict():
            return {f"[{key!r}]": part for key, part in value.items()}
        case list() | tuple():
            return {f"[{index}]": part for index, part in enumerate(value)}
        case _:
            return None


def _is_same(recorded: object, now: object) -> bool:
    if isinstance(recorded, float) and isinstance(now, float):
        return struct.pack("d", recorded) == struct.pack("d", now)
    return type(recorded) is type(now) and recorded == now


def _unlike_arrays(recorded: np.ndarray[Any, Any], now: np.ndarray[Any, Any]) -> tuple[str, str, str] | None:
    if (recorded.dtype, recorded.shape) != (now.dtype, now.shape):
        return "", f"{recorded.dtype} {recorded.shape}", f"{now.dtype} {now.shape}"
    if recorded.tobytes() == now.tobytes():
        return None
    words = f"u{recorded.itemsize}"
    unlike = np.ascontiguousarray(recorded).view(words) != np.ascontiguousarray(now).view(words)
    place = tuple(int(index[0]) for index in np.nonzero(unlike))
    count = int(np.count_nonzero(unlike))
    more = "" if count == 1 else f" and {count - 1} more"
    return f"[{', '.join(map(str, place))}]", f"{recorded[place]!r}{more}", f"{now[place]!r}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:150]} … {text[-8:]}"


# -- the three that decide ---------------------------------------------------------------------


class _NoMeter:
    """Keeps the last rejection; times are of no interest here."""

    def __init__(self) -> None:
        self.rejection = ""

    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        self.rejection = f"{reason} ({stage})"


class FrameCheck:
    """Analyses the recorded frames again.

    Parameters
    ----------
    pipeline
        As it was before the first frame.
    findings
        Where the result goes.
    after
        Number of the last frame that the pipeline knows already.
    shelf
        Has the weights that were put in place while the session ran; None where none were.
    changes
        Of encoders, before the first record.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        findings: Findings,
        after: int = -1,
        shelf: Shelf | None = None,
        changes: Sequence[EncoderInUse] = (),
    ) -> None:
        self._pipeline = pipeline
        self._findings = findings
        self._after = after
        self._shelf = shelf
        self._changes = latest_before(changes, after + 1)
        self._open: dict[int, Latents | str] = {}  # what came out, until the journal has its answer
        self._beside: dict[tuple[int, str], Latents] = {}  # and what other encoders made of it
        self._is_other_model = False

    def take(self, record: int, message: AnyMessage) -> None:
        """Take the next record."""
        match message:
            case EncoderInUse():
                self._changes.append(message)
            case Frame() | Patches() if message.number > self._after:
                self._change_encoders(message.number)
                self._open[message.number] = self._analyse(message)
            case Latents(is_beside=True) if message.number > self._after:
                self._compare_beside(record, message)
            case Latents() if message.number > self._after:
                self._compare(record, message.number, "latents", message)
            case Event(what="frame rejected"):
                if message.number in self._open:  # it may be told twice after a restart
                    self._compare(record, message.number, "rejection", message.detail)
            case _:
                pass

    def finish(self) -> None:
        """Say what the journal has no answer to."""
        if self._open:
            self._findings.notes.append(
                f"{len(self._open)} frames at the end have no latents in the journal: it ended before"
            )

    def _change_encoders(self, number: int) -> None:
        """Put the weights in place that a frame of this number was encoded with."""
        while self._changes and self._changes[0].number <= number:
            change = self._changes.pop(0)
            if self._shelf is not None:
                self._pipeline.use(self._shelf.load(change.encoder, change.revision))

    def _analyse(self, frame: Frame | Patches) -> Latents | str:
        meter = _NoMeter()
        processed = self._pipeline.process(frame, meter)
        if processed is None:
            return meter.rejection
        self._beside |= {(frame.number, one.encoder): one for one in processed.beside}
        return processed.latents

    def _compare(self, record: int, number: int, kind: str, recorded: Latents | str) -> None:
        now = self._open.pop(number, f"no frame {number}")
        if isinstance(recorded, Latents) and self._is_of_another_model(record, recorded, now):
            return
        is_equal = self._findings.compare("frames", record, f"{kind} of frame {number}", recorded, now)
        if isinstance(recorded, Latents):
            self._count_latents(is_equal)

    def _compare_beside(self, record: int, recorded: Latents) -> None:
        """Compare what another encoder than the main one said of a frame."""
        now = self._beside.pop((recorded.number, recorded.encoder), None)
        if now is None or self._is_of_another_model(record, recorded, now):
            return  # a checkpoint may come between the two
        name = f"latents {recorded.encoder} of frame {recorded.number}"
        self._count_latents(self._findings.compare("frames", record, name, recorded, now))

    def _count_latents(self, is_equal: bool) -> None:
        check = self._findings.checks["latents"]
        check.checked += 1
        check.equal += is_equal

    def _is_of_another_model(self, record: int, recorded: Latents, now: Latents | str) -> bool:
        """Say once that other weights made these latents; nothing is compared then."""
        if isinstance(now, str) or recorded.model_revision == now.model_revision:
            return False
        if not self._is_other_model:
            self._is_other_model = True
            have, here = recorded.model_revision, now.model_revision
            self._findings.compare("latents", record, "latents.model_revision", have, here)
            self._findings.notes.append(
                f"the session was analysed with the weights {have}, here are {here}: its "
                "latents were not compared; name its weights in streamer.pipeline.encode.weights of --config"
            )
        return True


class AgentCheck:
    """Tells an agent what it was told, and asks it where it was asked.

    After its first difference it is another agent than that of the session, and is asked no more.

    Parameters
    ----------
    agent
        As it was before the first record.
    findings
        Where the result goes.
    """

    def __init__(self, agent: Agent, findings: Findings) -> None:
        self._findings = findings
        self._history = History(agent, self._decide)
        self._record = 0
        self._scores: list[tuple[int, Score]] = []
        self._begun_at = 0
        self._unasked = 0
        self._is_lost = False

    def take(self, record: int, message: AnyMessage) -> None:
        """Take the next record that the agent was told or that it sent."""
        self._record = record
        if isinstance(message, Score):
            if record > self._begun_at:  # else the checkpoint has the outcome that it speaks of
                self._scores.append((record, message))
            return
        if isinstance(message, Checkpoint):
            self._begun_at = record
        self._history.take(record, message)

    def finish(self) -> None:
        """Compare the scores; a restarted agent may have told them later than its suggestions."""
        self._history.finish()
        for record, score in self._scores:
            said = self._history.scores.get(score.id)
            now = said.pop(0) if said else None
            if now is not None or not self._is_lost:
                self._findings.compare("scores", record, f"score {score.id}", score, now)
        if self._unasked:
            self._findings.notes.append(
                f"{self._unasked} later decisions of the agent were not checked: they follow from the first"
            )
        if self._history.problem:
            self._findings.notes.append(f"the agent's checkpoint was not used: {self._history.problem}")

    def _decide(self, agent: Agent, decision: Decision) -> None:
        if self._is_lost:
            self._unasked += 1
            return
        is_suggestion = isinstance(decision, Suggestion)
        now = agent.ask() if is_suggestion else agent.refit()
        name = f"suggestion {decision.id}" if isinstance(decision, Suggestion) else f"fit {decision.revision}"
        again = None if now is None else msgspec.structs.replace(now, told=decision.told)
        part = "suggestions" if is_suggestion else "fits"
        self._is_lost = not self._findings.compare(part, self._record, name, decision, again)


class EnvelopeCheck:
    """Reviews every suggestion again, and settles every outcome again.

    Parameters
    ----------
    findings
        Where the result goes.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._verdicts: dict[str, Request | str] = {}
        self.out_of_season = 0

    def take(self, progress: Progress, record: Record, message: AnyMessage) -> None:
        """Take the next record, before it is applied to where the session stands."""
        envelope = progress.envelope
        match message:
            case Suggestion():
                self._verdicts[message.id] = _verdict(envelope, message, record.monotonic_s)
            case Control(action="approve") if (waited := progress.oversight.find(message.id)) is not None:
                verdict = _verdict(envelope, waited, record.monotonic_s, has_waited=True)
                self._verdicts[message.id] = verdict
            case Outcome(status="withdrawn") if message.id in self._verdicts:
                del self._verdicts[message.id]  # nobody decided on it
            case Request() if message.id in self._verdicts:
                now = self._verdicts.pop(message.id)
                self._findings.compare("requests", record.number, f"request {message.id}", message, now)
            case Outcome(status="refused") if message.id in self._verdicts:
                self._take_refusal(record.number, message)
            case Outcome() if message.id in envelope.pending:
                name = f"outcome {message.id}"
                self._findings.compare("outcomes", record.number, name, message, envelope.settle(message))
            case _:
                pass

    def finish(self) -> None:
        """Say what the envelope had no part in."""
        if self.out_of_season:
            self._findings.notes.append(
                f"{self.out_of_season} refusals followed from the state of the session "
                f"({', '.join(OUT_OF_SEASON)}) or from a person, which is no decision of the envelope"
            )

    def _take_refusal(self, record: int, refusal: Outcome) -> None:
        now = self._verdicts.pop(refusal.id)
        if refusal.reason.partition(": ")[0] in (*OUT_OF_SEASON, DECLINED):
            self.out_of_season += 1
            return
        self._findings.compare("requests", record, f"refusal of {refusal.id}", refusal.reason, now)


def _verdict(
    envelope: Envelope, suggestion: Suggestion, now_s: float, *, has_waited: bool = False
) -> Request | str:
    try:
        return envelope.review(suggestion, now_s, has_waited=has_waited)
    except RefusedError as refusal:
        return str(refusal)


# -- the whole ---------------------------------------------------------------------------------


class Verifier:
    """Goes through a journal and decides again.

    Parameters
    ----------
    config
        Of the session.
    pipeline
        Built as it says, and new.
    shelf
        Has the weights that were put in place while the session ran; None where none were.
    """

    def __init__(self, config: RunConfig, pipeline: Pipeline, shelf: Shelf | None = None) -> None:
        self.findings = Findings()
        self._config = config
        self._pipeline = pipeline
        self._progress = Progress(Envelope(config.streamer.envelope))
        self._row = ""  # of the agent
        self._first = self._known = self._agent_from = 0
        self._shelf = shelf
        self._frames = FrameCheck(pipeline, self.findings, shelf=shelf)
        self._agent = AgentCheck(make_agent(config.agent), self.findings)
        self._envelope = EnvelopeCheck(self.findings)
        self._next = 0

    def warm_up(self) -> None:
        """Call whatever may have to be compiled, as the streamer does before its first frame."""
        self._pipeline.warm_up()

    def run(self, folder: Path) -> Findings:
        """Verify the session in a folder.

        Raises
        ------
        FileNotFoundError
            If the folder holds no journal.
        ValueError
            If the beginning of the journal is gone and no checkpoint is there to begin from.
        """
        self._find_agent(folder)
        for record, numbered in self._read(folder):
            if record.number != self._next:
                self._begin_at(record.number, folder)
            self._next = record.number + 1
            if record.number >= self._first:
                self._take(record, numbered)
        for part in (self._frames, self._agent, self._envelope):
            part.finish()
        return self.findings

    def _read(self, folder: Path, kinds: tuple[str, ...] | None = None) -> Iterator[tuple[Record, Numbered]]:
        """Read the journal; what is damaged is passed over and noted."""
        for record in read_records(folder, kinds):
            if isinstance(record, Damage):
                if kinds is None:
                    self._note(f"{record.length} bytes of {record.segment.name} are no record")
                continue
            try:
                yield record, record.numbered()
            except WireError as error:
                if kinds is None:
                    self._note(f"record {record.number} cannot be read: {error.reason}")

    def _note(self, text: str) -> None:
        self.findings.notes.append(text)

    def _find_agent(self, folder: Path) -> None:
        """Find the peer whose decisions the session's [agent] table describes."""
        policy = self._config.agent.policy
        _, self._row = rows_and_agent(folder, policy)
        if not self._row:
            self._note(f"the journal has no suggestion of an agent of the policy {policy}: none was checked")

    def _begin_at(self, record: int, folder: Path) -> None:
        """Come to terms with records that are missing before this one."""
        if self._next or record == 1:
            if self._next:
                self._note(f"records {self._next} to {record - 1} are missing: what follows may differ")
            return
        kept, checkpoint = self._first_checkpoint(folder, "streamer", 0)
        facts = facts_of(checkpoint)
        self._progress.restore(facts.progress)
        self._pipeline.restore(pipeline_state_of(checkpoint))
        self._frames = FrameCheck(
            self._pipeline,
            self.findings,
            after=facts.pipeline_number,
            shelf=self._shelf,
            changes=facts.progress.encoders,
        )
        self._first, self._known = facts.replay_from, kept
        self._note(f"the journal begins with record {record}: verified from the checkpoint in record {kept}")
        self._begin_agent(folder)

    def _begin_agent(self, folder: Path) -> None:
        name = self._row.removeprefix("agent ")
        try:
            kept, checkpoint = self._first_checkpoint(folder, name, self._known)
        except ValueError as error:
            self._row = ""
            self._note(f"the agent was not checked: {error}")
            return
        self._agent.take(kept, checkpoint)
        self._agent_from = checkpoint.told + 1

    def _first_checkpoint(self, folder: Path, of: str, told: int) -> tuple[int, Checkpoint]:
        """Find the first checkpoint of an owner that knows so many records."""
        for record, numbered in self._read(folder, ("checkpoint",)):
            message = numbered.message
            if isinstance(message, Checkpoint) and message.of == of and message.told >= told:
                return record.number, message
        raise ValueError(f"the journal has no checkpoint of {of!r} from which to begin")

    def _take(self, record: Record, numbered: Numbered) -> None:
        message = numbered.message
        self._frames.take(record.number, message)
        if record.number <= self._known:
            return
        self._envelope.take(self._progress, record, message)
        if record.number >= self._agent_from and self._concerns_the_agent(numbered):
            self._agent.take(record.number, message)
        self._progress.apply(record.number, numbered, now_s=record.monotonic_s)
        if isinstance(message, Event) and message.what == "session_resumed":
            self._forget_the_rate()

    def _concerns_the_agent(self, numbered: Numbered) -> bool:
        """Was it told to the agent, or did the agent send it?"""
        match numbered.message:
            case Suggestion(policy=policy) if policy == BY_A_PERSON:
                return self._row in self._progress.recipients(numbered.message)
            case Suggestion() | ModelRevision() | Score():
                return self._row != "" and self._progress.instances.get(numbered.sender) == self._row
            case _:
                return self._row in self._progress.recipients(numbered.message)

    def _forget_the_rate(self) -> None:
        """A restarted streamer does not know when the last requests were granted."""
        state = self._progress.state()
        self._progress = Progress(Envelope(self._config.streamer.envelope))
        self._progress.restore(state)


@contextmanager
def verifier_of(folder: Path, config: Path | None = None) -> Iterator[Verifier]:
    """Build what decides a recorded session anew.

    Parameters
    ----------
    folder
        Of the session.
    config
        In place of the session's own ``config.toml``.

    Raises
    ------
    FileNotFoundError
        If there is no configuration.
    ConfigError
        If the configuration cannot be used.
    """
    path = config or folder / "config.toml"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; give the settings of the session with --config")
    settings = read_run_config(path)
    stages = of_session(settings.streamer.pipeline, folder)
    pipeline = Pipeline.build(stages, weights.of_session(stages.encode, folder))
    shelf = Shelf(folder, pipeline.cards())
    try:
        yield Verifier(settings, pipeline, shelf)
    finally:
        shelf.close()


def as_table(findings: Findings) -> Table:
    """Draw what was checked for a terminal."""
    table = Table("decided again", "checked", "equal", "unlike")
    for part, check in findings.checks.items():
        unlike = check.checked - check.equal
        table.add_row(part, str(check.checked), str(check.equal), str(unlike) if unlike else "-")
    return table


@app.command()
def main(
    session: Annotated[Path, typer.Argument(help="Folder of a recorded session.")],
    config: Annotated[Path | None, typer.Option(help="In place of the session's config.toml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Decide a recorded session anew; exit code 1 if anything comes out differently."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        with verifier_of(session, config) as verifier:
            verifier.warm_up()
            start_anew_if_compiled()
            findings = verifier.run(session)
    except (OSError, ValueError) as error:
        refuse(error)
    if as_json:
        typer.echo(msgspec.json.encode(msgspec.to_builtins(findings) | {"is_equal": findings.is_equal}))
    else:
        _print(findings)
    if not findings.is_equal:
        raise typer.Exit(1)


def _print(findings: Findings) -> None:
    console = Console()
    console.print(as_table(findings))
    for note in findings.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    first = findings.first
    if first is None:
        console.print("Everything that was checked comes out bit-equal.")
        return
    console.print(
        f"first difference, record {first.record}: {first.what}\n  recorded: {first.recorded}\n"
        f"  now:      {first.now}",
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    app()
