"""The way, the settling and the exposure are weighed as they are written down; tours are short."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from agents.config import AgentConfig
from agents.cost import CostConfig, dwell_time_us, log_cost, tour, way_nm
from agents.explorer import Explorer
from agents.first_look import nearest_alike
from agents.objective import ObjectiveConfig
from tests.benchmarks.travel import DWELL_US, config_of, field_of, search


def test_cost_is_the_logarithm_of_the_time_in_units_of_the_reference():
    config = CostConfig(weight=2.0, travel_nm_per_s=10.0, settle_s=0.5, reference_s=0.1)
    cost = log_cost(np.array([0.0, 5.0]), np.array([2e5, 1e5]), config, usual_time_us=1e6)
    assert cost == pytest.approx([2 * math.log(1 + 2.0), 2 * math.log(1 + (0.5 + 0.5 + 0.1) / 0.1)])


def test_without_a_reference_time_is_measured_by_a_usual_measurement():
    config = CostConfig(weight=1.0, travel_nm_per_s=10.0, settle_s=0.3)
    assert log_cost(np.array([10.0]), 1e5, config, usual_time_us=1e5)[0] == pytest.approx(
        math.log(1 + (0.3 + 1.0 + 0.1) / 0.4)
    )


def test_no_weight_costs_nothing_and_an_unknown_place_of_the_beam_no_way():
    assert not log_cost(np.array([1.0, 9.0]), 1e5, CostConfig(), usual_time_us=1e5).any()
    assert not way_nm(None, np.ones((3, 2))).any()
    assert way_nm(np.array([1.0, 1.0]), np.array([[4.0, 5.0]])) == pytest.approx([5.0])


def test_an_exposure_has_the_stated_noise_where_the_limits_allow_it():
    config = CostConfig(dwell_noise_part=0.5, min_dwell_time_us=100.0, max_dwell_time_us=1e6)
    noise_us = 4.0  # a variance of 4e-6 in a second
    chosen = dwell_time_us(np.array([0.1, 1e-9, 0.0, 100.0]), noise_us, config)
    assert chosen.tolist() == [1600.0, 1e6, 1e6, 100.0]
    assert math.sqrt(noise_us / chosen[0]) == pytest.approx(0.5 * 0.1)


@pytest.mark.parametrize("seed", [1, 3, 5, 7, 9])
def test_a_tour_visits_every_place_once_and_is_nearly_the_shortest(seed):
    rng = np.random.default_rng(seed)
    start, places = rng.uniform(0, 1, 2), rng.uniform(0, 1, (7, 2))

    def length(order) -> float:
        return float(np.hypot(*np.diff(np.concatenate([start[None], places[list(order)]]), axis=0).T).sum())

    order = tour(start, places)
    assert sorted(order) == list(range(7))
    shortest = min(map(length, itertools.permutations(range(7))))
    assert length(order) <= 1.1 * shortest


def test_the_nearest_of_the_same_kind_is_as_good_to_look_at():
    rng = np.random.default_rng(1)
    kinds = np.repeat([[0.0, 0.0], [50.0, 50.0]], 40, axis=0) + rng.normal(size=(80, 2))
    like = np.flatnonzero(np.hypot(*(kinds - kinds[60]).T) < 0.5)
    ways = np.full(80, 9.0)
    ways[:40], ways[like[0]] = 1.0, 3.0  # those of the other kind are nearer
    assert nearest_alike(kinds, 60, ways) == like[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("weight", -1.0), ("travel_nm_per_s", 0.0), ("settle_s", math.nan), ("min_dwell_time_us", 2e6)],
)
def test_impossible_costs_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"agent.cost.{field} is"):
        CostConfig(**{field: value})


def test_exposures_are_not_chosen_for_counts_that_grow_with_them():
    counts = ObjectiveConfig(normalise="none")
    with pytest.raises(ValueError, match=r"agent\.cost\.dwell_noise_part"):
        AgentConfig(objective=counts, cost=CostConfig(dwell_noise_part=0.5))


def test_the_agents_way_is_shorter_where_the_way_costs():
    seeds = (1, 3)
    free, costly = ([search(field_of(seed), config_of(weight)) for seed in seeds] for weight in (0.0, 2.0))
    assert np.median([way.step_nm for way in costly]) < 0.7 * np.median([way.step_nm for way in free])
    assert np.median([way.points for way in costly]) < 2 * np.median([way.points for way in free])


def test_several_at_a_time_are_asked_for_in_the_order_of_a_short_way():
    field = field_of(3)
    config = config_of(2.0, max_pending=5)
    agent = Explorer(config, seed=0)
    agent.tell(field.frame())
    for _ in range(10):
        agent.tell(field.outcome(agent.ask()))
        agent.refit()
    asked = []
    while (suggestion := agent.ask()) is not None:
        asked.append(suggestion)
    assert len({suggestion.track for suggestion in asked}) == 5
    places = np.array([suggestion.position_nm for suggestion in asked])
    ways = [
        np.hypot(*np.diff(places[list(order)], axis=0).T).sum() for order in itertools.permutations(range(5))
    ]
    assert ways[0] <= np.quantile(ways, 0.25)  # of all orders, one of the shorter


def test_the_exposure_follows_what_is_unsure_and_stays_in_its_limits():
    field = field_of(5)
    cost = CostConfig(dwell_noise_part=0.3, min_dwell_time_us=20_000.0, max_dwell_time_us=400_000.0)
    agent = Explorer(AgentConfig(max_per_frame=0, max_pending=1, max_miss_nm=1.0, cost=cost), seed=0)
    agent.tell(field.frame())
    dwells = []
    for _ in range(25):
        suggestion = agent.ask()
        dwells.append(suggestion.dwell_time_us)
        agent.tell(field.outcome(suggestion))
        agent.refit()
    assert dwells[0] == DWELL_US  # nothing is known of the noise yet
    assert len(set(dwells)) > 3
    assert all(20_000.0 <= dwell <= 400_000.0 for dwell in dwells)
