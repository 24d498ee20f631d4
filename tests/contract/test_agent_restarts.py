"""What every agent promises to whoever restarts it: it goes on bit for bit where it was."""

from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config import AgentConfig
from agents.history import replay
from agents.policies import POLICIES, make_agent
from agents.site_agent import SiteAgent
from streamer.codec import decode, encode
from streamer.messages import (
    Checkpoint,
    ModelRevision,
    Outcome,
    StrainMap,
    Suggestion,
)
from tests.interrupted_sessions import (
    NEW_ENCODER,
    TURNS,
    Turn,
    bits,
    check_recalled_as_decided,
    decide,
    decided,
    decided_otherwise,
    go_on,
    history_of,
    journal_until,
    latents,
    outcome,
    play,
    state,
    strain_map,
)


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
    one, other = make_agent(config(policy)), make_agent(config(policy))
    check_recalled_as_decided(one, other, uninterrupted(policy))


def test_a_checkpoint_and_what_came_after_it_are_as_good_as_the_whole_history(policy):
    turns = uninterrupted(policy)
    for done in range(3, TURNS, 4):
        one = make_agent(config(policy))
        go_on(one, turns[:done])
        facts, arrays = one.checkpoint()
        told = turns[done - 1].inputs[-1][0]
        checkpoint = Checkpoint(session="s", of="me", told=told, facts=facts, arrays=arrays)
        whole = history_of(turns)
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
    assert decided_otherwise(make_agent(config(policy)), turns) == []
    other = AgentConfig(policy=policy, max_pending=3, max_per_frame=2, seed=6)  # type: ignore[arg-type]
    assert decided_otherwise(make_agent(other), turns)


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
