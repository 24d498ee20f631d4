"""What every agent does when a person changes what it looks for while it works."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from agents.config import AgentConfig, with_settings
from agents.history import replay
from agents.objective import ObjectiveConfig
from agents.policies import POLICIES
from agents.steering import gone_on_from, steered
from agents.stopping import StoppingConfig
from streamer.messages import Checkpoint, Control, Suggestion
from tests.contract.test_agents import agent, latents, outcome, session

BY_ANGLE = {"features": ("latents + angle",)}
OTHER_BAND = {"objective": {"window_ev": [130.0, 150.0], "background_ev": [100.0, 125.0], "label": "later"}}


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("following", sorted(POLICIES))
def test_another_policy_goes_on_with_what_was_measured_and_with_what_is_under_way(policy, following):
    before = agent(policy)
    made = session(before, 12)
    under_way = before.ask()
    after, scores = steered(before, {"policy": following})
    assert scores == ()
    assert after.policy == following
    assert after.statistics()["ok"] == 12
    assert after.tell(outcome(under_way)) is not None, "an outcome under way was lost"
    later = after.ask()
    taken = {one.track for one in [*made, under_way]}
    assert later.track not in taken
    assert later.policy == following
    assert len({one.id for one in [*made, under_way, later]}) == 14, "an id was used again"


def test_another_goal_turns_the_sign_and_scores_all_anew(policy):
    one = agent(policy)
    session(one, 12)
    other, scores = steered(one, {"goal": "minimise"})
    assert [score.id for score in scores] == [observation.id for observation in one.observations]
    assert {score.goal for score in scores} == {"minimise"}
    assert other.config.goal == "minimise"


def test_what_was_enough_for_one_goal_is_not_for_another(policy):
    one = agent(policy, stopping=StoppingConfig(measurements=8))
    session(one, 8)
    assert one.stopped
    other, _ = steered(one, {"goal": "minimise", "stopping": {"measurements": 10}})
    assert not other.stopped
    assert other.ask() is not None


def test_another_objective_scores_every_spectrum_anew(policy):
    one = agent(policy)
    session(one, 12)
    other, scores = steered(one, OTHER_BAND)
    assert len(scores) == 12
    assert all(score.objective.startswith("later") for score in scores)
    again, _ = steered(other, {"dwell_time_us": 5.0})
    assert again.objective.config.label == "later", "a later change undid an earlier one"


def test_an_explorer_of_another_goal_looks_at_the_other_end():
    one = agent("explorer")
    session(one, 24)
    one.tell(latents(number=99))
    right = one.ask()
    other, _ = steered(one, {"goal": "minimise"})
    left = other.ask()
    assert left.position_nm[0] < right.position_nm[0] - 1.0


def test_a_restored_agent_is_the_steered_one_bit_for_bit(policy):
    one = agent(policy)
    session(one, 10)
    other, _ = steered(one, {"policy": "explorer", "goal": "minimise"})
    session_after(other, 3)
    back = gone_on_from(agent(policy), *other.checkpoint())
    assert back.policy == "explorer"
    assert session_after(back, 6, first=5) == session_after(other, 6, first=5)


def fits(one, frames: range) -> list[int]:
    """Go on measuring; give the numbers of the fits of the model."""
    numbers = []
    for step in frames:
        one.tell(latents(number=step))
        one.tell(outcome(one.ask()))
        fit = one.refit()
        numbers += [] if fit is None else [fit.revision]
    return numbers


def test_fits_go_on_being_counted_over_agents_that_have_none_and_over_a_restart(policy):
    one = agent("explorer")
    numbers = fits(one, range(24))
    assert numbers, "there was no fit"
    one, _ = steered(one, {"policy": policy})
    numbers += fits(one, range(24, 30))
    one = gone_on_from(agent("explorer"), *one.checkpoint())
    one, _ = steered(one, {"policy": "explorer"})
    numbers += fits(one, range(30, 50))
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 2


def test_a_restored_agent_keeps_every_change_of_one_table(policy):
    one = agent(policy)
    session(one, 4)
    for settings in (OTHER_BAND, {"objective": {"normalise": "none"}}, {"stopping": {"measurements": 9}}):
        one, _ = steered(one, settings)
    back = gone_on_from(agent(policy), *one.checkpoint())
    assert back.config == one.config
    assert back.checkpoint()[0] == one.checkpoint()[0]


def test_a_restored_agent_remembers_nothing_of_its_own_from_before(policy):
    config = {"second_objective": ObjectiveConfig(kind="novelty")}
    one, other = agent(policy, **config), agent(policy, **config)
    session(one, 4)
    session(other, 9)
    other.restore(*one.checkpoint())
    for back in (one, other):
        back.tell(latents(number=50))
        back.tell(outcome(back.ask()))
    assert other.observations[-1].second == one.observations[-1].second


def test_an_angle_that_is_configured_otherwise_is_learnt_anew_after_a_restart():
    one, same, other = (agent("explorer", angle_fold=fold, **BY_ANGLE) for fold in (1, 1, 3))
    session(one, 12)
    kept = one.checkpoint()
    angles = np.linspace(0, 3, 60).astype(np.float32)
    means = []
    for back in (same, other):
        assert gone_on_from(back, *kept) is back
        back.tell(latents(number=50, angle_rad=angles))
        means.append(back.ask().predicted_mean)
        assert back.statistics()["ok"] == 12, "a measurement was lost"
    assert means[0] != means[1]


def session_after(one, count: int, first: int = 50) -> list[tuple[str, tuple[float, float], str]]:
    """Go on measuring, a new frame before each; give what was suggested."""
    said = []
    for step in range(count):
        one.tell(latents(number=100 * first + step))
        suggestion = one.ask()
        one.tell(outcome(suggestion))
        one.refit()
        said.append((suggestion.id, suggestion.position_nm, suggestion.reason))
    return said


def test_a_history_with_a_change_in_it_makes_the_same_agent(policy):
    records, one = [], agent(policy, max_pending=1)

    def told(message):
        records.append((len(records) + 1, message))

    for step in range(12):
        frame = latents(number=step)
        told(frame)
        one.tell(frame)
        if step == 6:
            control = Control(action="steer", settings={"goal": "minimise", "policy": "explorer"})
            told(control)
            one, _ = steered(one, control.settings)
        suggestion = one.ask()
        answer = outcome(suggestion)
        records.append((len(records) + 1, with_told(suggestion, len(records))))
        told(answer)
        one.tell(answer)
    history = replay(agent(policy, max_pending=1), records)
    assert history.passed_over == 0
    assert history.agent.policy == "explorer"
    assert len(history.scores) == 12
    assert sum(map(len, history.scores.values())) == 18, "the first six are scored for each goal"
    assert session_after(history.agent, 4) == session_after(one, 4)


def with_told(suggestion: Suggestion, told: int) -> Suggestion:
    return msgspec.structs.replace(suggestion, told=told)


def test_settings_that_cannot_be_used_change_nothing_and_say_which(policy):
    one = agent(policy)
    session(one, 4)
    for settings, says in (
        ({"goal": "sideways"}, "agent.goal is sideways; it takes maximise, minimise, map"),
        ({"policy": "clever"}, "agent.policy is clever"),
        ({"seed": 3}, "agent.seed is fixed for a session"),
        ({"colour": "red"}, "colour"),
        ({"objective": {"window_ev": [9.0, 1.0]}}, "objective.window_ev"),
    ):
        with pytest.raises(ValueError, match=says):
            steered(one, settings)
    before = one.checkpoint()
    history = replay(one, [(1, Control(action="steer", settings={"goal": "sideways"}))])
    assert history.passed_over == 1
    assert history.agent.checkpoint()[0] == before[0]


def test_decisions_after_a_change_of_policy_that_could_not_be_used_are_still_its_own(policy):
    other = next(name for name in POLICIES if name != policy)
    one, records = agent(policy, max_pending=1), []
    refused = Control(action="steer", settings={"policy": other, "goal": "level_set"})
    for message in (latents(number=1), refused):
        records.append((len(records) + 1, message))
    one.tell(records[0][1])
    records.append((3, with_told(one.ask(), 2)))
    history = replay(agent(policy, max_pending=1), records)
    assert history.passed_over == 1, "only the change itself"
    assert history.agent.statistics() == one.statistics()


def test_an_agent_of_someones_own_cannot_be_steered_and_goes_on():
    class Own:
        policy = "own"

        def restore(self, facts: bytes, arrays: object) -> None:
            self.facts = facts

    own = Own()
    with pytest.raises(ValueError, match="the policy own cannot be changed while it works"):
        steered(own, {"goal": "minimise"})
    history = replay(own, [(1, Checkpoint(session="s", of="own", told=0, facts=b"its own", arrays={}))])
    assert own.facts == b"its own"
    assert history.agent is own


def test_a_table_in_the_settings_replaces_only_what_it_names():
    config = with_settings(AgentConfig(), {"objective": {"normalise": "none"}})
    assert config.objective.normalise == "none"
    assert config.objective.window_ev == AgentConfig().objective.window_ev
