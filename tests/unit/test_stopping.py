"""Rules after which enough was measured, one by one, and in an agent that measures."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from agents.config import AgentConfig
from agents.policies import make_agent
from agents.site_agent import SiteAgent
from agents.stopping import Standing, Stopping, StoppingConfig
from tests.contract.test_agents import latents, outcome


def why(standing: Standing, times: int = 1, **rules: Any) -> str:
    stopping = Stopping(StoppingConfig(**rules))
    for _ in range(times):
        stopping.consider(standing)
    return stopping.reason


def test_without_rules_it_never_is_enough():
    known = Standing(
        measured=10**6,
        since_better=10**6,
        gain=lambda: (0.0, 1.0),
        map_sd=lambda: 0.0,
        classified=lambda: 1.0,
    )
    assert why(known, 20, classified_share=0) == ""


def test_a_budget_is_counted_in_spectra_that_gave_a_value():
    assert why(Standing(measured=11), measurements=12) == ""
    assert why(Standing(measured=12), measurements=12) == "12 spectra were measured, as many as asked for"


def test_one_hopeless_moment_is_not_enough():
    low, high = (Standing(measured=9, gain=lambda gain=gain: (gain, -2.0)) for gain in (0.019, 0.021))
    assert why(low, 2, improvement_below=0.01, improvement_in_a_row=3) == ""
    assert why(high, 9, improvement_below=0.01, improvement_in_a_row=3) == ""
    assert why(low, 3, improvement_below=0.01, improvement_in_a_row=3) == (
        "after each of the last 3 measurements no site promised to improve on the best by 0.01 of it"
    )
    stopping = Stopping(StoppingConfig(improvement_below=0.01, improvement_in_a_row=3))
    for standing in (low, low, high, low, low):
        stopping.consider(standing)
    assert stopping.reason == ""


def test_a_plateau_is_so_many_measurements_without_a_better_one():
    assert why(Standing(measured=40, since_better=29), plateau_measurements=30) == ""
    assert why(Standing(measured=40), plateau_measurements=30) == ""  # of a goal without a best value
    found = why(Standing(measured=40, since_better=30), plateau_measurements=30)
    assert found == "nothing better came in the last 30 measurements"


def test_a_map_is_known_when_its_sd_is_small_enough():
    assert why(Standing(measured=9, map_sd=lambda: 0.03), map_sd_below=0.02) == ""
    found = why(Standing(measured=9, map_sd=lambda: 0.015), map_sd_below=0.02)
    assert found == "the map is known to ± 0.015, and ± 0.02 was asked for"


def test_a_level_set_is_done_when_every_site_has_its_side():
    assert why(Standing(measured=9, classified=lambda: 0.995, level=0.5)) == ""
    assert why(Standing(measured=9, classified=lambda: 0.995, level=0.5), classified_share=0.99) == (
        "99.5% of the sites are on one side of 0.5 for sure"
    )


def test_what_is_enough_stays_enough_until_something_else_is_looked_for():
    stopping = Stopping(StoppingConfig(map_sd_below=0.02))
    stopping.consider(Standing(measured=9, map_sd=lambda: 0.01))
    said = stopping.reason
    stopping.consider(Standing(measured=10, map_sd=lambda: 0.5))
    assert stopping.reason == said != ""
    alike, other = (Stopping(StoppingConfig(map_sd_below=sd)) for sd in (0.02, 0.001))
    for one in (alike, other):
        one.restore(stopping.state())
    assert (alike.reason, other.reason) == (said, "")  # under other rules it is judged anew
    stopping.begin_anew()
    assert stopping.reason == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("measurements", -1),
        ("improvement_below", 1.5),
        ("improvement_in_a_row", 0),
        ("map_sd_below", math.nan),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"agent\.stopping\.{name} is {value}; it takes"):
        StoppingConfig(**{name: value})


def measure(agent: SiteAgent, most: int) -> int:
    """Measure until the agent suggests no more; count."""
    for count in range(most):
        agent.tell(latents(number=count))
        suggestion = agent.ask()
        if suggestion is None:
            return count
        agent.tell(outcome(suggestion))
        agent.refit()
    return most


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"stopping": StoppingConfig(measurements=11)}, "11 spectra were measured"),
        ({"max_suggestions": 12}, "12 suggestions were made, as many as asked for"),
        (
            {"stopping": StoppingConfig(improvement_below=0.1)},
            "after each of the last 5 measurements no site",
        ),
        ({"stopping": StoppingConfig(plateau_measurements=15)}, "nothing better came in the last 15"),
        (
            {"goal": "map", "stopping": StoppingConfig(map_sd_below=5e-5)},
            "the map is known to ± 4.*e-05, and",
        ),
        (
            {"goal": "level_set", "level": 0.003, "stopping": StoppingConfig(classified_share=0.9)},
            "9[0-9].[0-9]% of the sites",
        ),
    ],
)
def test_an_agent_that_has_enough_suggests_no_more_and_says_why(config, said):
    agent = make_agent(AgentConfig(max_per_frame=0, **config))
    count = measure(agent, 58)
    assert 8 < count < 58
    assert re.match(said, agent.stopped)
    agent.tell(latents(number=99))
    assert agent.ask() is None


def test_an_agent_that_looks_for_something_else_goes_on():
    agent = make_agent(AgentConfig(max_per_frame=0, stopping=StoppingConfig(plateau_measurements=12)))
    measure(agent, 58)
    assert agent.stopped
    agent.change_objective(agent.config.objective)
    assert not agent.stopped
    assert agent.ask() is not None
