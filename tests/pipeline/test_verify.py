"""A recorded session is decided anew bit for bit, and whatever was changed in its journal is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from agents.config import AgentConfig
from agents.policies import make_agent
from agents.protocol import Agent
from deploy.config import RunConfig
from deploy.tables import to_toml
from deploy.verify import Findings, Verifier, app, first_unlike
from models.encoder import Encoder
from simulators.stem import StemConfig, StemInstrument
from streamer.codec import Numbered, encode
from streamer.envelope import Envelope, EnvelopeConfig, RefusedError
from streamer.journal import Journal, JournalConfig, kind_of, read_records
from streamer.messages import (
    AnyMessage,
    Checkpoint,
    Event,
    Frame,
    Hello,
    Latents,
    Message,
    ModelRevision,
    Outcome,
    Request,
    Score,
    Suggestion,
)
from streamer.pipeline import Pipeline
from streamer.progress import Progress
from streamer.recovery import make_checkpoint
from streamer.segment import Record

AGENT = {"initial_points": 3, "refit_every": 5, "max_per_frame": 2}
ENVELOPE = {"max_rate_per_s": 2.0}
CONFIG = msgspec.convert({"agent": AGENT, "streamer": {"envelope": ENVELOPE}}, RunConfig)
FRAMES = 14


class Night:
    """The loop of a session in one thread, with all that may happen to it.

    The streamer is restarted after frame 5, the agent after frame 8; frame 3 has a blanked beam; after
    frame 10 the agent asks too fast. Seed 81.
    """

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.journal = Journal(folder, JournalConfig())
        self.instrument = StemInstrument(
            StemConfig(seed=81, rows=256, cols=256, field_of_view_nm=4.0), started_at_s=1000.0
        )
        self.encoder = encoder
        self.pipeline = Pipeline(CONFIG.streamer.pipeline, encoder)
        self.progress = Progress(Envelope(CONFIG.streamer.envelope))
        self.agent: Agent = make_agent(CONFIG.agent)
        self.now_s = 50.0
        self.sequence = 0
        self.told = 0
        self.instance = "a1"
        self.rejection = ""

    def run(self) -> None:
        self.record(Hello(role="instrument", name="STEM", instance="i1"))
        self.record(Hello(role="agent", name="agent explorer", instance=self.instance))
        for number in range(FRAMES):
            self.now_s += 0.4 if number > 10 else 2.0
            frame = replace(self.instrument.acquire(), session="s", number=number)
            if number == 3:
                frame = replace(frame, image=np.ones_like(frame.image))
            self.see(frame)
            self.decide()
            if number == 5:
                self.restart_streamer()
            if number == 8:
                self.restart_agent()
        self.journal.close()

    def record(self, message: Message, sender: str = "") -> int:
        self.sequence += bool(sender)
        numbered = Numbered(message, sender, self.sequence if sender else 0, 0)  # type: ignore[arg-type]
        parts = encode(message, sender=sender, sequence=numbered.sequence)
        record = self.journal.append(parts, 1e9, kind=kind_of(message), monotonic_s=self.now_s)
        self.progress.apply(record, numbered, now_s=self.now_s)
        return record

    def tell(self, message: Latents | Outcome) -> None:
        self.told = self.record(message)
        score = self.agent.tell(message)
        if score is not None:
            self.record(score, self.instance)

    def see(self, frame: Frame) -> None:
        self.record(frame)
        processed = self.pipeline.process(frame, self)
        if processed is None:
            self.record(Event(at_s=1e9, what="frame rejected", detail=self.rejection, number=frame.number))
        else:
            self.tell(processed.latents)

    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        self.rejection = f"{reason} ({stage})"

    def decide(self) -> None:
        while (fit := self.agent.refit()) is not None:
            self.record(replace(fit, told=self.told), self.instance)
        while (suggestion := self.agent.ask()) is not None:
            self.suggest(replace(suggestion, told=self.told))

    def suggest(self, suggestion: Suggestion) -> None:
        envelope = self.progress.envelope
        try:
            request = envelope.review(suggestion, self.now_s)
        except RefusedError as refusal:
            self.record(suggestion, self.instance)
            self.tell(Outcome(session="s", id=suggestion.id, status="refused", reason=str(refusal)))
            return
        self.record(suggestion, self.instance)
        self.record(request)
        outcome, _ = self.instrument.execute(request)
        self.tell(envelope.settle(outcome))

    def restart_streamer(self) -> None:
        """Keep all that a streamer keeps, and let another one go on from it."""
        state, progress = self.pipeline.state(), self.progress.state()
        following = self.journal.next_record
        self.record(make_checkpoint("s", following - 1, progress, state, following))
        self.pipeline = Pipeline(CONFIG.streamer.pipeline, self.encoder)
        self.pipeline.restore(state)
        self.progress = Progress(Envelope(CONFIG.streamer.envelope))
        self.progress.restore(progress)
        self.record(Event(at_s=1e9, what="session_resumed", detail="s"))

    def restart_agent(self) -> None:
        facts, arrays = self.agent.checkpoint()
        self.record(
            Checkpoint(session="s", of="agent explorer", told=self.told, facts=facts, arrays=arrays), "a1"
        )
        self.agent = make_agent(CONFIG.agent)
        self.agent.restore(facts, arrays)
        self.record(Hello(role="agent", name="agent explorer", instance="a2"))
        self.instance = "a2"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(None)


@pytest.fixture(scope="module")
def night(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    Night(folder, encoder).run()
    (folder / "config.toml").write_text(to_toml({"agent": AGENT, "streamer": {"envelope": ENVELOPE}}))
    return folder


def verified(folder: Path, encoder: Encoder, config: RunConfig = CONFIG) -> Findings:
    return Verifier(config, Pipeline(config.streamer.pipeline, encoder)).run(folder)


def records(folder: Path) -> Iterator[Record]:
    for record in read_records(folder):
        assert isinstance(record, Record)
        yield record


def rewritten(
    night: Path, folder: Path, change: Callable[[int, AnyMessage], Message], first: int = 1
) -> Path:
    """Copy a journal from a record on, each message as ``change`` makes it."""
    journal = Journal(folder, JournalConfig())
    journal.next_record = first
    for record in records(night):
        if record.number < first:
            continue
        numbered = record.numbered()
        message = change(record.number, numbered.message)
        parts = encode(message, sender=numbered.sender, sequence=numbered.sequence)
        journal.append(parts, record.received_at_s, kind=record.kind, monotonic_s=record.monotonic_s)
    journal.close()
    return folder


def test_a_session_with_restarts_is_decided_anew_bit_for_bit(night: Path, encoder: Encoder) -> None:
    findings = verified(night, encoder)
    assert findings.first is None
    assert findings.is_equal
    kinds = [record.kind for record in records(night)]
    expected = {
        "frames": FRAMES,
        "latents": FRAMES - 1,
        "suggestions": kinds.count("suggestion"),
        "fits": kinds.count("model_revision"),
        "scores": kinds.count("score"),
        "requests": kinds.count("suggestion"),  # granted or refused
        "outcomes": kinds.count("request"),
    }
    assert {part: check.checked for part, check in findings.checks.items()} == expected
    assert {part: check.equal for part, check in findings.checks.items()} == expected
    assert min(expected.values()) > 2
    assert kinds.count("suggestion") > kinds.count("request")  # the rate was refused


def flipped(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Flip the lowest bit of the third number."""
    copy = array.copy()
    copy.reshape(-1).view(np.uint32)[2] ^= 1
    return copy


CHANGES: dict[str, tuple[type[Message], Callable[[Any], Message], str]] = {
    "a bit of a latent": (Latents, lambda m: replace(m, mean=flipped(m.mean)), "latents of frame 6.mean["),
    "a bit of a frame": (Frame, lambda m: replace(m, image=3 * m.image), "latents of frame 6."),
    "a wish": (Suggestion, lambda m: replace(m, position_nm=(0.0, 0.0)), ".position_nm[0]"),
    "a forecast": (Suggestion, lambda m: replace(m, predicted_sd=1.0), ".predicted_sd"),
    "a score": (Score, lambda m: replace(m, variance=m.variance + 1e-9), ".variance"),
    "a spectrum": (Outcome, lambda m: replace(m, spectrum=2 * m.spectrum), ""),
    "where the beam was": (Outcome, lambda m: replace(m, position_nm=(0.0, 0.0)), ".position_nm[0]"),
    "a fit": (
        ModelRevision,
        lambda m: replace(m, parameters={name: [v + 1e-12 for v in p] for name, p in m.parameters.items()}),
        ".parameters[",
    ),
    "where the beam is sent": (Request, lambda m: replace(m, scan_position_nm=(0.0, 0.0)), ".scan_pos"),
    "a dose": (Request, lambda m: replace(m, dose_e=m.dose_e + 1), ".dose_e"),
    "a rejection": (Event, lambda m: replace(m, detail="saturated (check)"), "rejection of frame 3"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_was_changed_is_found_and_named(
    what: str, night: Path, encoder: Encoder, tmp_path: Path
) -> None:
    kind, make, text = CHANGES[what]
    place = the_record(night, kind)

    def change(number: int, message: AnyMessage) -> Message:
        return make(message) if number == place else message

    findings = verified(rewritten(night, tmp_path, change), encoder)
    assert findings.first is not None
    assert text in findings.first.what
    if what != "a bit of a frame":  # what it makes different is a later record
        assert place <= findings.first.record <= place + 1
    assert findings.first.recorded != findings.first.now
    unlike = sum(check.checked - check.equal for check in findings.checks.values())
    assert unlike > 0


def the_record(night: Path, kind: type[Message]) -> int:
    """Take a record of this kind from the middle; of frames and latents that of frame 6."""
    found = [(record.number, record.message()) for record in records(night)]
    chosen = [
        (number, message)
        for number, message in found
        if isinstance(message, kind)
        and (isinstance(message, Event) or getattr(message, "number", 6) >= 6)
        and getattr(message, "what", "frame rejected") == "frame rejected"
        and getattr(message, "status", "ok") == "ok"
    ]
    if kind is Suggestion:  # one with a forecast
        chosen = [item for item in chosen if np.isfinite(getattr(item[1], "predicted_sd", 0.0))]
    return chosen[0][0]


def test_what_follows_from_a_first_difference_of_the_agent_is_not_counted_as_more(
    night: Path, encoder: Encoder
) -> None:
    other = replace(CONFIG, agent=replace(CONFIG.agent, initial_points=5))
    findings = verified(night, encoder, other)
    checks = findings.checks
    unlike = sum(checks[part].checked - checks[part].equal for part in ("suggestions", "fits"))
    assert unlike == 1
    assert any("later decisions of the agent were not checked" in note for note in findings.notes)
    assert checks["latents"].checked == checks["latents"].equal == FRAMES - 1


def test_other_limits_are_a_difference(night: Path, encoder: Encoder) -> None:
    wide = replace(CONFIG.streamer, envelope=EnvelopeConfig(max_rate_per_s=1000.0))
    findings = verified(night, encoder, replace(CONFIG, streamer=wide))
    assert findings.first is not None
    assert findings.first.what.startswith("refusal of explorer")
    assert findings.first.recorded.startswith("'rate: ")
    assert findings.first.now.startswith("Request(")


def test_other_weights_are_said_once_and_their_latents_not_compared(
    night: Path, encoder: Encoder, tmp_path: Path
) -> None:
    def change(number: int, message: AnyMessage) -> Message:
        return replace(message, model_revision="other") if isinstance(message, Latents) else message

    findings = verified(rewritten(night, tmp_path, change), encoder)
    assert findings.checks["latents"].checked == 1
    assert any("analysed with the weights other" in note for note in findings.notes)


def test_a_journal_without_its_beginning_is_verified_from_the_checkpoint(
    night: Path, encoder: Encoder, tmp_path: Path
) -> None:
    first = next(record.number for record in records(night) if record.kind == "checkpoint") - 4
    findings = verified(rewritten(night, tmp_path, lambda _, message: message, first), encoder)
    assert findings.first is None
    assert findings.checks["latents"].checked == FRAMES - 6
    assert 0 < findings.checks["suggestions"].checked < 20
    assert findings.notes[0].startswith(f"the journal begins with record {first}: verified from the check")


def test_a_damaged_record_is_noted(night: Path, encoder: Encoder, tmp_path: Path) -> None:
    folder = rewritten(night, tmp_path, lambda _, message: message)
    last = [record for record in records(folder) if record.kind == "latents"][-1]
    with last.segment.open("rb+") as segment:
        segment.seek(last.offset + last.length - 9)
        segment.write(b"\xff")
    notes = verified(folder, encoder).notes
    assert f"record {last.number} cannot be read: bad checksum" in notes
    assert f"records {last.number} to {last.number} are missing: what follows may differ" in notes


def test_the_command_says_what_it_checked_and_how_it_ended(
    night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The night was recorded by this process: whatever was compiled, it is the same now.
    monkeypatch.setattr("deploy.verify.start_anew_if_compiled", lambda: None)
    good = CliRunner().invoke(app, [str(night), "--json"])
    assert good.exit_code == 0
    assert msgspec.json.decode(good.stdout)["is_equal"] is True
    other = tmp_path / "other.toml"
    other.write_text(to_toml({"agent": AGENT | {"initial_points": 5}, "streamer": {"envelope": ENVELOPE}}))
    bad = CliRunner().invoke(app, [str(night), "--config", str(other)])
    assert bad.exit_code == 1
    assert "first difference, record" in bad.stdout
    missing = CliRunner().invoke(app, [str(tmp_path)])
    assert missing.exit_code == 2
    assert "config.toml is missing; give the settings of the session with --config" in missing.stderr


@pytest.mark.parametrize(
    ("recorded", "now", "unlike"),
    [
        (1.0, 1.0, None),
        (float("nan"), float("nan"), None),
        (0.0, -0.0, ("", "0.0", "-0.0")),
        (1.0, 1, ("", "1.0", "1")),
        ((1, 2.5), (1, 2.0), ("[1]", "2.5", "2.0")),
        ({"a": [1]}, {"b": [1]}, ("", "[\"['a']\"]", "[\"['b']\"]")),
        (np.float32([1, 2]), np.float32([1, 2]), None),
        (np.float32([[1], [3], [4]]), np.float32([[1], [0], [0]]),
         ("[1, 0]", "np.float32(3.0) and 1 more", "np.float32(0.0)")),
        (np.float32([1]), np.float64([1]), ("", "float32 (1,)", "float64 (1,)")),
        (None, "refused", ("", "None", "'refused'")),
    ],
)  # fmt: skip
def test_the_first_place_that_is_unlike_is_named(recorded: Any, now: Any, unlike: Any) -> None:
    assert first_unlike(recorded, now) == unlike


def test_the_defaults_of_an_agent_are_those_of_the_session() -> None:
    assert AgentConfig(**AGENT) == CONFIG.agent
