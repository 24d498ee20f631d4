"""Two objectives that cannot both be had: areas by hand and by BoTorch, and an agent that finds the front."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from agents.acquisition import log_expected_hypervolume_improvement, log_expected_improvement
from agents.candidates import Candidates
from agents.config import AgentConfig, TradeOffConfig
from agents.cost import CostConfig
from agents.explorer import Explorer
from agents.goals import Outlook, Second, TradeOff
from agents.objective import ObjectiveConfig
from agents.pareto import dominated_by, front_of, reference_of
from agents.random import Random
from agents.site_agent import SiteAgent
from agents.slow_path import Plans, Request, plan
from streamer.messages import Outcome, Suggestion
from tests import quiet_botorch
from tests.contract.test_agents import latents

FRONT = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])


def certain(x: float, y: float, front: np.ndarray = FRONT) -> float:
    """The area that a point is expected to add whose forecast is as good as exact."""
    sd = np.array([1e-9])
    log_area = log_expected_hypervolume_improvement(
        (np.array([x]), np.array([y])), (sd, sd), front, np.zeros(2)
    )
    return float(np.exp(log_area[0]))


@pytest.mark.parametrize(
    ("x", "y", "area"),
    [(4.0, 4.0, 16.0 - 6.0), (2.5, 2.5, 1.25), (1.5, 2.5, 0.25), (4.0, 0.5, 0.5), (0.5, 3.5, 0.25)],
)
def test_a_sure_point_adds_the_area_that_can_be_drawn_on_paper(x, y, area):
    assert certain(x, y) == pytest.approx(area, rel=1e-6)


def test_a_point_that_is_dominated_adds_nothing():
    assert certain(1.5, 1.5) < 1e-8


def test_without_a_front_it_is_the_product_of_two_improvements():
    mean, sd = np.array([0.3, -1.0]), np.array([0.5, 0.2])
    log_area = log_expected_hypervolume_improvement((mean, mean), (sd, sd), np.zeros((0, 2)), np.zeros(2))
    assert log_area == pytest.approx(2 * log_expected_improvement(mean, sd, 0.0))


def test_hopeless_points_are_still_ranked():
    mean, sd = np.array([-50.0, -80.0]), np.full(2, 0.1)
    log_area = log_expected_hypervolume_improvement((mean, mean), (sd, sd), FRONT, np.zeros(2))
    assert np.isfinite(log_area).all()
    assert log_area[0] > log_area[1]


def test_it_is_botorchs_expected_hypervolume_improvement():
    quiet_botorch.load()
    import torch
    from botorch.acquisition.multi_objective.analytic import ExpectedHypervolumeImprovement
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.posteriors.gpytorch import GPyTorchPosterior
    from botorch.utils.multi_objective.box_decompositions.non_dominated import NondominatedPartitioning
    from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal

    rng = np.random.default_rng(1)
    points, reference = rng.normal(size=(30, 2)), np.array([-0.6, -1.4])
    mean, sd = 2 * rng.normal(size=(2, 50)), rng.uniform(0.05, 1.0, (2, 50))

    class Forecast(GenericDeterministicModel):
        def posterior(self, X, **_):
            row = X[..., 0].long()
            each = [
                MultivariateNormal(torch.from_numpy(m)[row], torch.diag_embed(torch.from_numpy(s * s)[row]))
                for m, s in zip(mean, sd, strict=True)
            ]
            return GPyTorchPosterior(MultitaskMultivariateNormal.from_independent_mvns(each))

    partitioning = NondominatedPartitioning(torch.from_numpy(reference), torch.from_numpy(points))
    theirs = ExpectedHypervolumeImprovement(
        Forecast(lambda X: X, num_outputs=2), reference.tolist(), partitioning
    )(torch.arange(50, dtype=torch.float64)[:, None, None]).numpy()
    ours = np.exp(log_expected_hypervolume_improvement(tuple(mean), tuple(sd), front_of(points), reference))
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-12)


def test_the_front_is_what_none_dominates():
    points = np.array([[1.0, 1.0], [2.0, 0.5], [0.5, 2.0], [0.9, 0.9], [2.0, 0.5], [2.0, 0.4]])
    assert list(dominated_by(points)) == [0, 0, 0, 1, 0, 2]
    assert front_of(points).tolist() == [[1.0, 1.0], [2.0, 0.5], [0.5, 2.0], [2.0, 0.5]]
    assert reference_of(points) == pytest.approx([0.5 - 0.15, 0.5 - 0.15])
    assert reference_of(np.array([[1.0, 5.0], [0.0, 3.0]])) == pytest.approx([0.9, 4.8])  # a front of one


def test_the_reason_says_both_forecasts_in_their_own_signs():
    goal = TradeOff(TradeOffConfig(first="maximise", second="minimise"))
    second = Second(mean=np.array([-3.0]), sd=np.array([0.2]), known=np.array([[0.0, -4.0]]))
    nothing = pytest.fail
    seen = Outlook(
        mean=np.array([0.5]), sd=np.array([0.1]), best=0.0, novelty=np.zeros(1),
        log_density=nothing, away=nothing, draw=nothing, second=second,
    )  # fmt: skip
    assert goal.reason(seen, 0) == "expected to add most to the trade-off: 0.5 ± 0.1 and 3 ± 0.2"


def request(size: int = 10) -> Request:
    """Three measured places on a front, and sites of which one adds much, one little, one nothing."""
    known = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
    sites = np.array([[0.5, 0.5], [1.4, 1.4], [3.0, 3.0], [2.9, 2.9]])
    mean = np.concatenate([known, sites]).T.copy()
    covariance = np.stack([0.01 * np.eye(7)] * 2)
    covariance[:, 5, 6] = covariance[:, 6, 5] = 0.0099  # the last two are alike
    return Request(size, list("abcd"), mean, covariance, np.full(2, -0.2), seed=3)  # type: ignore[arg-type]


def test_a_plan_begins_with_what_adds_most_and_comes_out_the_same():
    quiet_botorch.load()
    first = plan(request())
    assert first[0] == 2
    assert sorted(first) == [0, 1, 2, 3]
    assert plan(request()) == first


def test_moments_that_rounding_left_without_a_factor_make_no_plan():
    quiet_botorch.load()
    indefinite = request().covariance - 0.0101 * np.eye(7)
    assert plan(replace(request(), covariance=indefinite)) == []


def test_a_plan_is_followed_from_a_fixed_measurement_on_until_the_next():
    quiet_botorch.load()
    plans = Plans()
    assert plans.is_due(10)
    plans.ask_for(request(10))
    plans.think()
    assert plans.sites(11) == []
    assert plans.sites(12)[0] == "c"
    assert not plans.is_due(13)
    assert plans.is_due(14)
    plans.ask_for(request(14))
    assert plans.sites(15)[0] == "c"  # of the earlier one
    again = Plans()
    again.restore(plans.requests)
    assert [again.sites(size) for size in (15, 16)] == [plans.sites(size) for size in (15, 16)]
    plans.forget()
    assert plans.sites(99) == []


def test_planned_sites_that_are_taken_or_out_of_view_are_left_out(monkeypatch):
    offer = Candidates.of(latents(6, seed=1), min_confidence=0.0)
    elsewhere = replace(offer.site(0), track=-1, position_nm=np.array([1e3, 1e3]))
    planned = [offer.site(4), elsewhere, offer.site(2), offer.site(4), offer.site(5)]
    plans = Plans()
    monkeypatch.setattr(plans, "sites", lambda size: planned)
    assert plans.in_view(12, offer, np.array([0, 4, 5]), apart_nm=1e-3) == [4, 5]


# -- an agent -------------------------------------------------------------------------------------

EDGES = (99.0, 150.0)
FIRST = ObjectiveConfig(background_model="none", normalise="none", window_ev=(99.0, 120.0))
SECOND = ObjectiveConfig(background_model="none", normalise="none", window_ev=(150.0, 170.0))


def worth(mean: np.ndarray) -> np.ndarray:
    """What sites with these latents are worth by both: what is better by one is worse by the other."""
    good, which = np.exp(-(mean[:, 0] ** 2 + (mean[:, 2] - 1) ** 2)), 1 / (1 + np.exp(-2 * mean[:, 1]))
    return np.stack([good * which, good * (1 - which)], axis=1)


def measured_by(agent: SiteAgent, seed: int, count: int) -> np.ndarray:
    """Let an agent measure so many of 400 sites; give what each is worth, shape ``(count, 2)``."""
    frame = latents(400, seed=seed)
    value, rng, found = worth(frame.mean.astype(float)), np.random.default_rng(seed), []
    agent.tell(frame)
    for _ in range(count):
        suggestion = agent.ask()
        found.append(value[suggestion.track])
        agent.tell(outcome(suggestion, found[-1], rng))
        agent.refit()
    return np.array(found)


def outcome(suggestion: Suggestion, value: np.ndarray, rng: np.random.Generator) -> Outcome:
    """Two bands, each as strong as the site is worth by it, with shot noise."""
    energy_ev = np.arange(256.0)
    spectrum = np.full(256, 20.0)
    for edge_ev, amount in zip(EDGES, value, strict=True):
        spectrum[(energy_ev >= edge_ev) & (energy_ev < edge_ev + 20)] += 400 * amount
    return Outcome(
        session="s", id=suggestion.id, status="ok", position_nm=suggestion.position_nm,
        scan_position_nm=suggestion.position_nm, spectrum=rng.poisson(spectrum).astype(np.float32),
    )  # fmt: skip


def area(points: np.ndarray) -> float:
    """What the points dominate above (0, 0)."""
    ordered = front_of(points)[np.argsort(front_of(points)[:, 0])]
    widths = np.diff(ordered[:, 0], prepend=0.0)
    return float((widths * ordered[:, 1]).sum())


@pytest.mark.parametrize("seed", [1, 3])
def test_an_agent_finds_more_of_the_front_than_chance_and_plans_some_of_it(seed):
    quiet_botorch.load()
    shared = {"max_per_frame": 0, "min_distance_nm": 1e-3, "objective": FIRST, "second_objective": SECOND}
    agent = Explorer(AgentConfig(goal="trade_off", **shared))
    found = measured_by(agent, seed, 40)
    by_chance = np.median(
        [area(measured_by(Random(AgentConfig(**shared), seed=k), seed, 40)) for k in range(11)]
    )
    possible = area(worth(latents(400, seed=seed).mean.astype(float)))
    assert area(found) > by_chance
    assert area(found) > 0.9 * possible
    assert math.isfinite(by_chance)
    assert agent._plans.requests


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_of_several_planned_sites_the_first_is_taken_and_where_the_way_costs_the_nearest(weight, monkeypatch):
    agent = Explorer(
        AgentConfig(
            goal="trade_off",
            max_per_frame=0,
            min_distance_nm=1e-3,
            objective=FIRST,
            second_objective=SECOND,
            trade_off=TradeOffConfig(is_planned=False),
            cost=CostConfig(weight=weight, travel_nm_per_s=1.0),
        )
    )
    measured_by(agent, 1, 12)
    offer, free = agent._candidates, agent._ledger.free(agent._candidates)
    away_nm = np.hypot(*(offer.position_nm[free] - agent._ledger.last.position_nm).T)
    far, near = int(free[away_nm.argmax()]), int(free[away_nm.argmin()])
    monkeypatch.setattr(agent._plans, "sites", lambda size: [offer.site(far), offer.site(near)])
    suggestion, why = agent.ask(), agent.explain()
    assert suggestion.track == offer.track[near if weight else far]
    assert suggestion.reason.startswith("planned for the trade-off: ")
    assert [one.track for one in why.ranking] == ([offer.track[near], offer.track[far]] if weight else [])
