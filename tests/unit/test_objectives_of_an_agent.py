"""What an agent does with its objectives: reads two at once, remembers, reads anew, lives on."""

import numpy as np
import pytest

from agents.config import AgentConfig, with_settings
from agents.objective import ObjectiveConfig
from agents.policies import make_agent
from agents.site_agent import SiteAgent
from tests.contract.test_agents import latents, outcome

BAND = ObjectiveConfig(normalise="none", background_model="none")
PEAK = ObjectiveConfig(kind="peak_position", window_ev=(90.0, 200.0), peak_half_width_ev=8.0)
NOVELTY = ObjectiveConfig(kind="novelty", window_ev=(60.0, 150.0))


def measured(count: int, policy: str = "raster", **config: object) -> SiteAgent:
    agent = make_agent(AgentConfig(policy=policy, max_per_frame=0, **config))
    for number in range(count):
        agent.tell(latents(number=number))
        agent.tell(outcome(agent.ask()))
    return agent


def test_two_objectives_are_read_from_every_spectrum():
    both = measured(4, objective=BAND, second_objective=NOVELTY)
    alone, other = measured(4, objective=BAND), measured(4, objective=NOVELTY)
    assert [one.reading for one in both.observations] == [one.reading for one in alone.observations]
    assert [one.second for one in both.observations] == [one.reading for one in other.observations]
    assert both.observations[0].second is None  # nothing came before the first
    assert both.observations[3].second is not None


def test_what_cannot_be_read_by_the_first_is_read_by_the_second():
    far = ObjectiveConfig(window_ev=(500.0, 520.0), background_ev=(470.0, 490.0))
    agent = measured(1, objective=far, second_objective=BAND)
    (one,) = agent.observations
    assert one.reading is None
    assert one.second is not None
    assert agent.statistics()["unreadable, window off the axis"] == 1
    assert agent.last_unreadable.startswith("window off the axis: objective.window_ev 500 to 520 eV")


@pytest.mark.parametrize("policy", ["explorer", "raster"])
def test_a_restored_agent_remembers_what_is_not_new(policy):
    one = measured(6, policy, objective=NOVELTY)
    other = make_agent(one.config)
    other.restore(*one.checkpoint())
    for agent in (one, other):
        agent.tell(latents(number=9))
    suggestion, same = one.ask(), other.ask()
    assert suggestion.position_nm == same.position_nm
    score, again = one.tell(outcome(suggestion)), other.tell(outcome(same))
    assert (score.value, score.variance) == (again.value, again.variance)


def test_novelty_read_anew_is_what_it_was():
    agent = measured(6, objective=NOVELTY)
    before = [one.reading for one in agent.observations]
    agent.change_objective(BAND)
    agent.change_objective(NOVELTY)
    assert [one.reading for one in agent.observations] == before


def test_another_second_objective_is_read_from_what_was_measured_before():
    one = measured(3, objective=BAND)
    other = make_agent(
        AgentConfig(policy="raster", max_per_frame=0, objective=BAND, second_objective=NOVELTY)
    )
    other.restore(*one.checkpoint())
    assert [two.second is not None for two in other.observations] == [False, True, True]


def test_a_loop_keeps_its_bias_through_a_restart():
    agent = make_agent(AgentConfig(policy="raster", objective=ObjectiveConfig(kind="loop_area")))
    agent.tell(latents())
    bias_v = (8 * 2 / np.pi * np.arcsin(np.sin(np.arange(1, 65) * np.pi / 32))).astype(np.float32)
    response = np.where(np.gradient(bias_v) > 0, np.tanh(bias_v - 2), np.tanh(bias_v + 2)).astype(np.float32)
    score = agent.tell(outcome(agent.ask(), spectrum=response, bias_v=bias_v))
    assert score.value == pytest.approx(2 * 4, rel=0.05)
    again = make_agent(agent.config)
    again.restore(*agent.checkpoint())
    np.testing.assert_array_equal(again.observations[0].bias_v, bias_v)
    again.change_objective(ObjectiveConfig(kind="coercive_bias"))
    assert again.observations[0].reading.value == pytest.approx(2, abs=0.2)


def test_another_kind_said_during_a_run_takes_nothing_from_the_one_before():
    config = AgentConfig(objective=BAND)
    changed = with_settings(config, {"objective": {"kind": "peak_position", "window_ev": [90.0, 200.0]}})
    assert changed.objective == ObjectiveConfig(kind="peak_position", window_ev=(90.0, 200.0))
    same = with_settings(config, {"objective": {"label": "Si"}})
    assert same.objective == ObjectiveConfig(normalise="none", background_model="none", label="Si")
