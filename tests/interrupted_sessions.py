"""A session of an agent that may be interrupted anywhere, for tests of what promises hold then."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from agents.history import replay
from agents.protocol import Decision, Input
from agents.site_agent import SiteAgent
from streamer.messages import (
    Latents,
    Outcome,
    Registration,
    ScanGeometry,
    StrainMap,
    Suggestion,
)
from tests.drawn_windows import sent, spots

FIELD_NM = 4.0
N = 64
TURNS = 32
NEW_ENCODER = 21  # from this turn on


def latents(number: int, *, revision: str = "m", n: int = N) -> Latents:
    """Make a frame of atoms on a grid, every ninth of a kind of its own, seen with noise."""
    view = np.random.default_rng([7, number])
    side = 8
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n]
    position_nm = (grid + 0.5) * FIELD_NM / side - FIELD_NM / 2 + view.normal(0, 0.002, (n, 2))
    mean = view.normal(0, 0.2, (n, 3))
    mean[::9, 0] += 3.0
    zeros = np.zeros(n, np.float32)
    return Latents(
        session="s",
        number=number,
        acquired_at_s=10.0 + number,
        mean=mean.astype(np.float32),
        sd=np.full((n, 3), 0.05, np.float32),
        angle_rad=zeros,
        angle_sd_rad=zeros,
        offset_nm=np.zeros((n, 2), np.float32),
        offset_sd_nm=np.zeros((n, 2), np.float32),
        class_probability=np.zeros((n, 0), np.float32),
        novelty=zeros,
        confidence=np.ones(n, np.float32),
        track=np.arange(n),
        positions_px=((position_nm / FIELD_NM + 0.5) * 256)[:, ::-1].astype(np.float32),
        positions_nm=position_nm.astype(np.float32),
        model_revision=revision,
        geometry=ScanGeometry(shape=(256, 256), field_of_view_nm=(FIELD_NM, FIELD_NM)),
        registration=Registration(),
        **sent(spots(mean[:, 0], seed=number)),
    )


def strain_map(number: int) -> StrainMap:
    """Make a map of another strain for each number; every fourth is of another registration."""
    rng = np.random.default_rng([13, number])
    return StrainMap(
        session="s",
        number=number,
        acquired_at_s=10.0 + number,
        geometry=ScanGeometry(shape=(6, 6), field_of_view_nm=(FIELD_NM, FIELD_NM)),
        displacement_nm=np.zeros((2, 6, 6), np.float32),
        strain=rng.normal(0, 0.01, (3, 6, 6)).astype(np.float32),
        rotation_rad=np.zeros((6, 6), np.float32),
        strain_sd=np.full((3, 6, 6), 1e-3, np.float32),
        rotation_sd_rad=np.zeros((6, 6), np.float32),
        frames=number,
        registration_revision=int(number % 4 == 3),
    )


def outcome(suggestion: Suggestion, status: str = "ok") -> Outcome:
    """Answer with a spectrum that has an edge at every ninth atom, with shot noise of the id's own."""
    if status != "ok":
        return Outcome(session="s", id=suggestion.id, status=status, reason="test")
    energy_ev = np.arange(256.0)
    edge = np.where(energy_ev >= 99, 200.0 * (suggestion.track % 9 == 0), 0.0)
    rng = np.random.default_rng(list(suggestion.id.encode()))
    return Outcome(
        session="s",
        id=suggestion.id,
        status="ok",
        scan_position_nm=suggestion.position_nm,
        position_nm=suggestion.position_nm,
        spectrum=rng.poisson(2e7 * np.maximum(energy_ev, 5) ** -2.5 + edge).astype(np.float32),
    )


def decide(agent: SiteAgent, told: int) -> list[Decision]:
    """Do the second half of a turn, as the process does."""
    made: list[Decision] = []
    while (fit := agent.refit()) is not None:
        made.append(msgspec.structs.replace(fit, told=told))
    while (suggestion := agent.ask()) is not None:
        made.append(msgspec.structs.replace(suggestion, told=told))
    agent.think()
    return made


def bits(decision: Decision) -> bytes:
    return msgspec.msgpack.encode(decision)


def state(agent: SiteAgent) -> tuple[bytes, dict[str, bytes]]:
    facts, arrays = agent.checkpoint()
    return facts, {name: array.tobytes() for name, array in arrays.items()}


@dataclass
class Turn:
    """What was told together, and what was decided then."""

    inputs: list[tuple[int, Input]]
    decisions: list[Decision] = field(default_factory=list)


def play(agent: SiteAgent) -> list[Turn]:
    """Let an agent measure; outcomes come late, several at a time, out of order, refused and failed."""
    rng = np.random.default_rng(11)
    turns: list[Turn] = []
    open_ones: list[Suggestion] = []
    number, frame = 1, 0
    for index in range(TURNS):
        inputs: list[Input] = []
        rng.shuffle(open_ones)  # type: ignore[arg-type]
        for _ in range(rng.integers(0, len(open_ones) + 1)):
            status = "refused" if rng.random() < 0.2 else "failed" if rng.random() < 0.05 else "ok"
            inputs.append(outcome(open_ones.pop(), status))
        for _ in range(rng.integers(1, 3)):
            inputs.append(latents(frame, revision="m" if index < NEW_ENCODER else "new"))
            frame += 1
        if index % 5 == 2:
            inputs.append(strain_map(index))
        turn = Turn([(number + k, message) for k, message in enumerate(inputs)])
        for _, message in turn.inputs:
            agent.tell(message)
        number += len(inputs)
        turn.decisions = decide(agent, number - 1)
        number += len(turn.decisions)
        open_ones += [d for d in turn.decisions if isinstance(d, Suggestion)]
        turns.append(turn)
    return turns


def go_on(agent: SiteAgent, turns: list[Turn]) -> list[bytes]:
    made: list[bytes] = []
    for turn in turns:
        for _, message in turn.inputs:
            agent.tell(message)
        made += [bits(decision) for decision in decide(agent, turn.inputs[-1][0])]
    return made


def decided(turns: list[Turn]) -> list[bytes]:
    return [bits(decision) for turn in turns for decision in turn.decisions]


def journal_until(turns: list[Turn], kept: int) -> list[tuple[int, object]]:
    """Give the records in the order of the journal, the last turn's with ``kept`` of its decisions only.

    The first message of a turn arrives while the decisions of the last are on their way.
    """
    records: list[tuple[int, object]] = []
    late: list[Decision] = []
    for turn in turns:
        records.append(turn.inputs[0])
        records += [(turn.inputs[0][0], decision) for decision in late]
        records += turn.inputs[1:]
        late = turn.decisions
    return records + [(turns[-1].inputs[-1][0], decision) for decision in late[:kept]]


def history_of(turns: list[Turn]) -> list[tuple[int, object]]:
    """Give the records with everything that was decided."""
    return journal_until(turns, len(turns[-1].decisions))


def check_recalled_as_decided(one: SiteAgent, other: SiteAgent, turns: list[Turn]) -> None:
    """Let one agent decide a session and the other be told it: they are the same then."""
    go_on(one, turns)
    replay(other, history_of(turns))
    assert state(one) == state(other)


def decided_otherwise(agent: SiteAgent, turns: list[Turn]) -> list[tuple[Decision, Decision | None]]:
    """Ask an agent anew at each decision of a session; give the recorded ones, and its own, that differ."""
    differences: list[tuple[Decision, Decision | None]] = []

    def ask(agent: SiteAgent, recorded: Decision) -> None:
        now = agent.ask() if isinstance(recorded, Suggestion) else agent.refit()
        now = None if now is None else msgspec.structs.replace(now, told=recorded.told)
        if now is None or bits(now) != bits(recorded):
            differences.append((recorded, now))

    replay(agent, history_of(turns), ask)  # type: ignore[arg-type]
    return differences
