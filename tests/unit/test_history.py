"""In which order an agent is told a journal's records, by an agent that only notes what it hears."""

from typing import Any

import msgspec
import pytest
from numpy.typing import NDArray

from agents.config import AgentConfig
from agents.history import History, replay
from agents.policies import make_agent
from agents.protocol import Decision, Input, UnknownOutcome
from streamer.messages import (
    Checkpoint,
    Event,
    Latents,
    ModelRevision,
    Outcome,
    Score,
    Suggestion,
    Welcome,
)


class Listener:
    """Notes what it is told, and what it decided then; outcomes of ``their-…`` are not its own."""

    policy = "listener"

    def __init__(self) -> None:
        self.heard: list[str] = []

    def tell(self, message: Input) -> Score | None:
        if isinstance(message, Latents):
            self.heard.append(f"frame {message.number}")
            return None
        assert isinstance(message, Outcome)
        if message.id.startswith("their"):
            raise UnknownOutcome(message.id)
        self.heard.append(message.id)
        return Score(session="s", id=message.id, objective="o", value=1.0, variance=0.0)

    def recall(self, decision: Decision) -> None:
        name = decision.id if isinstance(decision, Suggestion) else f"fit {decision.revision}"
        self.heard.append(f"-> {name}")

    def ask(self) -> None:
        self.heard.append("asked")

    def refit(self) -> None:
        self.heard.append("fitted")

    def checkpoint(self) -> tuple[bytes, dict[str, NDArray[Any]]]:
        return msgspec.msgpack.encode(self.heard), {}

    def restore(self, facts: bytes, arrays: dict[str, NDArray[Any]]) -> None:
        if not facts:
            raise ValueError("nothing in it")
        self.heard = msgspec.msgpack.decode(facts, type=list[str])

    def statistics(self) -> dict[str, int]:
        return {}


@pytest.fixture
def frame(make_latents):
    return lambda number: make_latents(n=1, number=number)


def outcome(identifier: str) -> Outcome:
    return Outcome(session="s", id=identifier, status="refused")


def suggestion(identifier: str, told: int, policy: str = "listener") -> Suggestion:
    return Suggestion(
        session="s",
        number=0,
        acquired_at_s=0.0,
        id=identifier,
        position_nm=(0.0, 0.0),
        dwell_time_us=1.0,
        policy=policy,
        told=told,
    )


def fit(revision: int, told: int) -> ModelRevision:
    return ModelRevision(
        session="s", policy="listener", revision=revision, told=told, observations=1, parameters={}
    )


def checkpoint(told: int, *heard: str) -> Checkpoint:
    facts = msgspec.msgpack.encode(list(heard)) if heard else b""
    return Checkpoint(session="s", of="agent listener", told=told, facts=facts, arrays={})


def test_a_decision_comes_after_what_was_told_before_it_and_before_what_came_meanwhile(frame):
    agent = Listener()
    history = replay(
        agent,
        [
            (1, frame(0)),
            (2, frame(1)),
            (3, frame(2)),  # came while a was on its way
            (4, suggestion("a", told=2)),
            (5, fit(1, told=2)),
            (6, outcome("a")),
            (7, suggestion("b", told=3)),
            (8, suggestion("c", told=6)),
            (9, frame(3)),
        ],
    )
    assert agent.heard == [
        "frame 0", "frame 1", "-> a", "-> fit 1", "frame 2", "-> b", "a", "-> c", "frame 3",
    ]  # fmt: skip
    assert (history.told, history.count, history.passed_over) == (9, 5, 0)


def test_what_follows_the_last_decision_is_told_at_the_end_only(frame):
    agent = Listener()
    history = History(agent)
    history.take(1, frame(0))
    history.take(2, frame(1))
    assert agent.heard == []
    history.finish()
    assert agent.heard == ["frame 0", "frame 1"]


def test_outcomes_and_decisions_of_others_are_passed_over_and_counted(frame):
    agent = Listener()
    history = replay(
        agent,
        [
            (1, frame(0)),
            (2, suggestion("their-1", told=1, policy="random")),
            (3, outcome("their-1")),
            (4, suggestion("a", told=3)),
        ],
    )
    assert agent.heard == ["frame 0", "-> a"]
    assert history.passed_over == 2
    assert history.told == 3


def test_messages_that_concern_no_agent_are_left_alone(frame):
    agent = Listener()
    welcome = Welcome(session="s", window=1, next_number=0, durability="written")
    replay(agent, [(1, Event(at_s=0.0, what="connected")), (2, frame(0)), (3, welcome)])
    assert agent.heard == ["frame 0"]


def test_a_checkpoint_replaces_what_was_heard_and_what_it_has_is_not_told_again(frame):
    agent = Listener()
    history = replay(
        agent,
        [
            (5, frame(5)),  # after what the checkpoint speaks of; the decisions up to it are in it
            (6, suggestion("a", told=4)),
            (7, checkpoint(4, "until 4")),
            (8, frame(8)),
            (9, suggestion("b", told=5)),
        ],
    )
    assert agent.heard == ["until 4", "frame 5", "-> b", "frame 8"]
    assert (history.told, history.count) == (8, 2)


def test_a_checkpoint_may_also_come_before_its_turn(frame):
    agent = Listener()
    replay(
        agent,
        [
            (7, checkpoint(4, "until 4")),
            (3, frame(3)),
            (5, frame(5)),
            (6, suggestion("a", told=4)),
            (9, suggestion("b", told=5)),
        ],
    )
    assert agent.heard == ["until 4", "frame 5", "-> b"]


def test_without_a_usable_checkpoint_it_starts_from_the_history_that_there_is(frame):
    agent = Listener()
    history = replay(
        agent, [(5, frame(5)), (6, checkpoint(4)), (7, suggestion("a", told=5)), (8, outcome("a"))]
    )
    assert history.problem == "nothing in it"
    assert agent.heard == ["frame 5", "-> a", "a"]
    later = replay(agent, [(6, checkpoint(4)), (9, checkpoint(8, "until 8"))])
    assert later.problem == ""


def test_the_scores_that_no_record_has_are_those_still_to_be_said(frame):
    history = replay(
        Listener(),
        [
            (1, outcome("a")),
            (2, Score(session="s", id="a", objective="o", value=1.0, variance=0.0)),
            (3, outcome("b")),
            (4, outcome("their-1")),
        ],
    )
    assert sorted(history.scores) == ["a", "b"]
    assert [score.id for score in history.unsaid] == ["b"]


def test_instead_of_recalling_a_decision_one_may_ask_for_it(frame):
    agent = Listener()

    def ask(one: Listener, decision: Decision) -> None:
        one.ask() if isinstance(decision, Suggestion) else one.refit()

    replay(agent, [(1, frame(0)), (2, frame(1)), (3, suggestion("a", told=1)), (4, fit(1, told=1))], ask)
    assert agent.heard == ["frame 0", "asked", "fitted", "frame 1"]


def test_a_fit_of_which_no_model_is_known_is_counted(frame):
    agent = make_agent(AgentConfig(policy="explorer"))
    agent.recall(msgspec.structs.replace(fit(3, told=0), parameters={"mean": [1.0], "noise": [0.1]}))
    assert agent.statistics()["forgotten"] == 1
    assert agent.model_revision == 0


def test_a_fit_of_another_model_is_counted_and_changes_nothing(frame):
    agent = make_agent(AgentConfig(policy="explorer"))
    agent.tell(frame(0))
    agent.recall(msgspec.structs.replace(fit(3, told=0), parameters={"of an older version": [1.0]}))
    assert agent.statistics()["forgotten"] == 1
    assert agent.model_revision == 0
