"""What every agent promises to whoever restarts it: it goes on bit for bit where it was."""

from dataclasses import dataclass, field
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config import AgentConfig
from agents.history import replay
from agents.policies import POLICIES, make_agent
from agents.protocol import Decision, Input
from agents.site_agent import SiteAgent
from streamer.codec import decode, encode
from streamer.messages import (
    Checkpoint,
    Latents,
    ModelRevision,
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


def config(policy: str) -> AgentConfig:
    return AgentConfig(policy=policy, max_pending=3, max_per_frame=2, seed=5)  # type: ignore[arg-type]


@cache
def uninterrupted(policy: str) -> list[Turn]:
    return play(make_agent(config(policy)))


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_session_that_these_tests_interrupt_has_everything_in_it(policy):
    turns = uninterrupted(policy)
    outcomes = [m for turn in turns for _, m in turn.inputs if isinstance(m, Outcome)]
    assert len(outcomes) > 20
    assert {message.status for message in outcomes} >= {"ok", "refused"}
    assert max(len(turn.inputs) for turn in turns) >= 4
    assert sum(isinstance(m, StrainMap) for turn in turns for _, m in turn.inputs) >= 4
    if policy == "strain":
        reasons = {d.reason.split(";")[0][:11] for turn in turns for d in turn.decisions}
        assert reasons >= {"no strain m", "shear strai"}
    fits = [d.revision for turn in turns for d in turn.decisions if isinstance(d, ModelRevision)]
    if policy == "explorer":
        reasons = {d.reason.split()[0] for turn in turns for d in turn.decisions if isinstance(d, Suggestion)}
        assert reasons >= {"first", "expected"}
        # They rise; the one that was due when all was learnt anew is left out.
        assert fits == sorted(set(fits))
        assert fits[-1] == len(fits) + 1
        assert len(fits) >= 4
        assert any(isinstance(d, ModelRevision) for turn in turns[NEW_ENCODER:] for d in turn.decisions)


def test_after_a_checkpoint_the_rest_is_bit_equal(policy):
    turns = uninterrupted(policy)
    one = make_agent(config(policy))
    for done in range(TURNS):
        go_on(one, turns[done : done + 1])
        facts, arrays = one.checkpoint()
        sent = Checkpoint(session="s", of="me", told=1, facts=facts, arrays=arrays)
        came = decode(encode(sent))
        assert isinstance(came, Checkpoint)
        other = make_agent(config(policy))
        other.restore(came.facts, came.arrays)
        assert other.statistics() == one.statistics()
        assert go_on(other, turns[done + 1 : done + 7]) == decided(turns[done + 1 : done + 7])


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


def test_an_agent_that_is_told_its_history_goes_on_bit_equal(policy):
    turns = uninterrupted(policy)
    for done in range(1, TURNS + 1):
        last = turns[done - 1]
        for kept in range(len(last.decisions) + 1):  # the others were lost with the process
            agent = make_agent(config(policy))
            history = replay(agent, journal_until(turns[:done], kept))
            assert history.told == last.inputs[-1][0]
            owed = [bits(decision) for decision in decide(agent, history.told)]
            assert owed == [bits(decision) for decision in last.decisions[kept:]]
            assert go_on(agent, turns[done : done + 3]) == decided(turns[done : done + 3])


def test_a_recalled_session_leaves_the_state_that_the_decided_one_did(policy):
    turns = uninterrupted(policy)
    one, other = make_agent(config(policy)), make_agent(config(policy))
    go_on(one, turns)
    replay(other, journal_until(turns, len(turns[-1].decisions)))
    assert state(one) == state(other)


def test_a_checkpoint_and_what_came_after_it_are_as_good_as_the_whole_history(policy):
    turns = uninterrupted(policy)
    for done in range(3, TURNS, 4):
        one = make_agent(config(policy))
        go_on(one, turns[:done])
        facts, arrays = one.checkpoint()
        told = turns[done - 1].inputs[-1][0]
        checkpoint = Checkpoint(session="s", of="me", told=told, facts=facts, arrays=arrays)
        whole = journal_until(turns, len(turns[-1].decisions))
        # On its way it was overtaken by the first message of the next turn, as its decisions were.
        first = turns[done].inputs[0][0]
        before = [record for record in whole if record[0] > told and record[0] <= first]
        after = [record for record in whole if record[0] > first]
        other = make_agent(config(policy))
        replay(other, [*before, (first, checkpoint), *after])
        go_on(one, turns[done:])
        assert state(one) == state(other)


def test_asked_anew_at_every_decision_it_decides_the_same(policy):
    turns = uninterrupted(policy)
    differences: list[tuple[Decision, Decision | None]] = []

    def ask(agent: SiteAgent, recorded: Decision) -> None:
        now = agent.ask() if isinstance(recorded, Suggestion) else agent.refit()
        now = None if now is None else msgspec.structs.replace(now, told=recorded.told)
        if now is None or bits(now) != bits(recorded):
            differences.append((recorded, now))

    records = journal_until(turns, len(turns[-1].decisions))
    replay(make_agent(config(policy)), records, ask)
    assert differences == []
    other = AgentConfig(policy=policy, max_pending=3, max_per_frame=2, seed=6)  # type: ignore[arg-type]
    replay(make_agent(other), records, ask)
    assert differences


def test_a_checkpoint_that_is_not_its_own_is_refused_and_changes_nothing(policy):
    one = make_agent(config(policy))
    go_on(one, uninterrupted(policy)[:6])
    before = state(one)
    facts, arrays = one.checkpoint()
    another = next(name for name in sorted(POLICIES) if name != policy)
    foreign = make_agent(config(another)).checkpoint()
    short = {name: array[:-1] for name, array in arrays.items()}
    newer = facts.replace(b"\xa7version\x01", b"\xa7version\x02")
    assert newer != facts
    for bad, reason in [
        (foreign, f"it is of {another}, not of {policy}"),
        ((facts, short), "its arrays have the shapes"),
        ((facts, {}), "its arrays have the shapes"),
        ((newer, arrays), "it has version 2; this agent reads 1"),
        ((b"", arrays), "the checkpoint cannot be used"),
        ((facts[:-3], arrays), "the checkpoint cannot be used"),
    ]:
        with pytest.raises(ValueError, match=reason):
            one.restore(*bad)
        assert state(one) == before


def test_what_cannot_be_placed_is_counted_and_its_id_is_not_given_again(policy):
    turns = uninterrupted(policy)
    one = make_agent(config(policy))
    suggestions = [d for turn in turns[:3] for d in turn.decisions if isinstance(d, Suggestion)]
    replay(one, [(99, decision) for decision in suggestions])
    assert one.statistics()["forgotten"] == len(suggestions)
    one.tell(latents(0))
    fresh = one.ask()
    assert fresh is not None
    assert fresh.id not in {suggestion.id for suggestion in suggestions}


STEPS = ["frame", "frame of a new encoder", "ask", "ok", "refused", "last ok", "fit", "no atoms", "map"]


def step(agent: SiteAgent, name: str, number: int, open_ones: list[Suggestion]) -> object:
    """Do one thing to an agent; give what it said."""
    if name.startswith("frame"):
        return agent.tell(latents(number, revision="new" if "new" in name else "m"))
    if name == "map":
        return agent.tell(strain_map(number))
    if name == "no atoms":
        return agent.tell(latents(number, n=0))
    if name == "ask":
        return agent.ask()
    if name == "fit":
        return agent.refit()
    if not open_ones:
        return None
    suggestion = open_ones[-1 if name == "last ok" else 0]
    return agent.tell(outcome(suggestion, "refused" if name == "refused" else "ok"))


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=5, max_size=30), policy=st.sampled_from(sorted(POLICIES))
)
def test_restarted_after_every_event_it_is_as_if_it_had_lived(steps, policy):
    def fresh() -> SiteAgent:
        return make_agent(AgentConfig(policy=policy, max_pending=4, max_per_frame=0, initial_points=3))

    lived, restarted = fresh(), fresh()
    open_ones: list[Suggestion] = []
    for number, name in enumerate(["frame", *steps]):
        facts, arrays = restarted.checkpoint()
        restarted = fresh()
        restarted.restore(facts, arrays)
        said, again = (step(agent, name, number, open_ones) for agent in (lived, restarted))
        assert msgspec.msgpack.encode(said) == msgspec.msgpack.encode(again)
        if name in ("ok", "refused") and open_ones:
            open_ones.pop(0)
        elif name == "last ok" and open_ones:
            open_ones.pop()
        if isinstance(said, Suggestion):
            open_ones.append(said)
    assert state(lived) == state(restarted)


def test_a_fit_is_on_what_was_known_when_it_became_due_however_late_it_is_made():
    turns = uninterrupted("explorer")
    prompt, late = make_agent(config("explorer")), make_agent(config("explorer"))
    fits: dict[SiteAgent, list[ModelRevision]] = {prompt: [], late: []}

    def fit(agent: SiteAgent) -> None:
        while (made := agent.refit()) is not None:
            fits[agent].append(made)

    for turn in turns[:NEW_ENCODER]:
        for agent in (prompt, late):
            for _, message in turn.inputs:
                agent.tell(message)
                if agent is prompt:
                    fit(agent)
            for decision in turn.decisions:
                if isinstance(decision, Suggestion):
                    agent.recall(decision)
    restored = make_agent(config("explorer"))
    restored.restore(*late.checkpoint())  # with fits still to be made
    fits[restored] = []
    fit(late)
    fit(restored)
    assert len(fits[prompt]) >= 2
    assert [bits(made) for made in fits[restored]] == [bits(made) for made in fits[late]]
    assert [bits(made) for made in fits[prompt]] == [bits(made) for made in fits[late]]
    assert state(prompt) == state(late)


def test_the_same_session_played_again_is_decided_in_the_same_way(policy):
    assert decided(play(make_agent(config(policy)))) == decided(uninterrupted(policy))
