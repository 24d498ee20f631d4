"""Each goal ranks sites that a made-up model forecasts, by numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agents.acquisition import joint_draw, log_positive_part, straddle
from agents.config import AgentConfig
from agents.density import log_density
from agents.goals import Goal, Outlook, Widen, goal_of
from agents.objective import ObjectiveConfig
from agents.stall import StallConfig, since_better


def nothing(*_: object) -> Any:
    raise AssertionError("this goal has no use for it")


def outlook(mean: list[float], sd: list[float], best: float = 1.0, **known: Any) -> Outlook:
    """What a model forecasts of a few sites; what a test does not give must not be asked for."""
    given = {"novelty": np.zeros(len(mean)), "log_density": nothing, "away": nothing, "draw": nothing}
    return Outlook(mean=np.array(mean), sd=np.array(sd), best=best, **(given | known))


def goal(name: str, **config: Any) -> Goal:
    return goal_of(AgentConfig(goal=name, **config))  # type: ignore[arg-type]


def test_the_largest_is_looked_for_where_it_is_expected_to_improve_most():
    seen = outlook([0.9, 1.0, 0.0], [0.05, 0.2, 0.2])
    scores = goal("maximise").scores(seen)
    assert scores.argmax() == 1
    assert math.exp(scores[1]) == pytest.approx(0.2 / math.sqrt(2 * math.pi))
    assert goal("maximise").reason(seen, 1) == "expected to improve on 1 by 0.08"
    assert goal("maximise").reason(outlook([-9.0], [0.1]), 0) == "hardly expected to improve on 1"


def test_the_smallest_is_told_in_its_own_sign():
    # The model has learnt the negative: -1 is the best so far, so the smallest measured was 1.
    seen = outlook([-0.9], [0.2], best=-1.0)
    assert goal("minimise").reason(seen, 0) == "expected to improve on 1 by 0.1"
    assert goal("minimise").forecast(seen, 0) == "0.9 ± 0.2"


def test_a_match_is_a_maximum_in_other_words():
    seen, match = outlook([0.9, 1.0], [0.05, 0.2]), goal("match", objective=ObjectiveConfig(kind="value"))
    assert np.array_equal(match.scores(seen), goal("maximise").scores(seen))
    assert match.reason(seen, 1) == "expected to match the target better than 1 by 0.08"


def test_a_map_weighs_the_variance_by_how_many_sites_are_alike():
    seen = outlook([0.0, 0.0], [0.2, 0.3], log_density=lambda: np.log([0.9, 0.1]))
    assert np.exp(goal("map").scores(seen)) == pytest.approx([0.04 * 0.9, 0.09 * 0.1])
    plain = goal("map", site_weight="none")
    assert np.exp(plain.scores(outlook([0.0, 0.0], [0.2, 0.3]))) == pytest.approx([0.04, 0.09])
    assert plain.reason(seen, 1) == "the map is least sure: 0 ± 0.3"


def test_a_level_is_looked_for_where_its_side_is_not_sure():
    mean, sd = np.array([0.5, 0.7, 3.0]), np.array([0.01, 0.2, 0.4])
    assert straddle(mean, sd, 0.5) == pytest.approx([0.0196, 0.192, -1.716])
    level, seen = goal("level_set", level=0.5, site_weight="none"), outlook(list(mean), list(sd))
    assert list(np.argsort(level.scores(seen))) == [2, 0, 1]
    assert level.reason(seen, 1) == "may lie on either side of 0.5: 0.7 ± 0.2"
    assert level.reason(seen, 2) == "lies nearest to 0.5: 3 ± 0.4"
    crowd = outlook(list(mean), list(sd), log_density=lambda: np.log([0.5, 0.001, 0.5]))
    assert goal("level_set", level=0.5).scores(crowd).argmax() == 0


def test_first_sites_of_a_map_are_drawn_in_proportion_to_what_there_is_to_be_learnt():
    seen = outlook([0.0] * 3, [0.1, 0.3, 0.2], log_density=lambda: np.log([0.9, 0.1, 0.5]))
    rng = np.random.default_rng(1)
    drawn = [goal("map").first(seen, rng) for _ in range(4000)]  # type: ignore[attr-defined]
    shares = np.array([0.01 * 0.9, 0.09 * 0.1, 0.04 * 0.5])
    assert np.bincount(drawn) / 4000 == pytest.approx(shares / shares.sum(), abs=0.03)


def test_what_is_novel_and_not_understood_comes_first():
    seen = outlook([0.0] * 3, [0.1, 0.3, 0.001], novelty=np.array([0.0, 4.0, 5.0]))
    scores = goal("discover").scores(seen)
    assert np.exp(scores) == pytest.approx(np.log1p(np.exp([0.0, 4.0, 5.0])) * [0.1, 0.3, 0.001])
    assert "(novelty 4.0)" in goal("discover").reason(seen, 1)
    assert goal("discover").reason(seen, 0).startswith("the least usual of what is left")


def test_a_draw_takes_the_site_that_is_best_in_it_among_those_that_can_be():
    asked: list[np.ndarray] = []

    def draw(some: np.ndarray) -> np.ndarray:
        asked.append(some)
        return np.where(some == 300, 2.0, 0.5)

    mean = np.linspace(0.0, 1.0, 400)
    thompson = goal("maximise", batch="thompson")
    scores = thompson.scores(outlook(list(mean), [0.01] * 400, draw=draw))
    assert scores.argmax() == 300
    assert list(asked[0]) == list(range(400 - 256, 400))  # the highest bounds, in their order
    assert np.isneginf(scores[:144]).all()


def test_draws_have_the_mean_and_the_covariance_that_they_are_given():
    mean = np.array([1.0, -2.0, 0.0])
    root = np.random.default_rng(1).normal(size=(3, 2))  # rank 2: sites that are alike make it singular
    covariance = root @ root.T
    draws = np.stack([joint_draw(mean, covariance, np.random.default_rng([3, k])) for k in range(20_000)])
    assert draws.mean(axis=0) == pytest.approx(mean, abs=0.05)
    assert np.cov(draws.T) == pytest.approx(covariance, abs=0.06)
    again = joint_draw(mean, covariance, np.random.default_rng([3, 7]))
    assert np.array_equal(again, draws[7])
    assert np.isnan(joint_draw(mean, np.full((3, 3), np.nan), np.random.default_rng(0))).all()


def test_a_search_that_widens_goes_by_variance_and_by_unlikeness_in_turns():
    seen = outlook([0.0] * 3, [0.1, 0.3, 0.2], away=lambda: np.array([0.5, 0.0, 2.0]))
    by_variance, by_distance = (
        Widen(goal("maximise"), 14, is_by_distance=is_by_distance) for is_by_distance in (False, True)
    )
    assert by_variance.scores(seen).argmax() == 1
    assert by_distance.scores(seen).argmax() == 2
    assert np.isfinite(by_distance.scores(seen)).all()
    assert (
        by_variance.reason(seen, 1)
        == "nothing better in 14 measurements; looks where least is known: 0 ± 0.3"
    )


@pytest.mark.parametrize("x", [-700.0, -40.0, -30.0, -29.9, -1.0, 0.0, 3.0, 500.0])
def test_the_logarithm_of_a_positive_part_rises_and_tends_to_both_ends(x):
    here, above = log_positive_part(np.array([x, x + 1e-3]))
    assert above > here
    assert here == pytest.approx(math.log(math.log1p(math.exp(x))) if -30 < x < 400 else here, rel=1e-9)
    if x <= -30:
        assert here == pytest.approx(x, abs=1e-12)
    if x >= 400:
        assert here == pytest.approx(math.log(x))


def test_freaks_are_rare_and_kinds_are_not():
    rng = np.random.default_rng(1)
    latents = np.concatenate([rng.normal(0, 0.2, (900, 3)), rng.normal(3, 0.2, (90, 3)), 20 * np.eye(3)])
    density = np.exp(log_density(latents))
    usual, rare, freaks = np.median(density[:900]), np.median(density[900:990]), density[990:]
    assert usual > 4 * rare
    assert freaks.max() < 0.1 * rare
    assert np.array_equal(log_density(np.ones((5, 2))), np.zeros(5))  # all alike
    assert np.isfinite(log_density(np.ones((1, 2)))).all()


def test_only_what_is_better_by_more_than_its_noise_counts_as_better():
    quiet, noisy = [1e-8] * 5, [1.0] * 5
    assert since_better([1.0, 3.0, 2.0, 2.0, 1.0], quiet) == 3
    assert since_better([1.0, 3.0, 2.0, 2.0, 3.1], quiet) == 0
    assert since_better([1.0, 1.5, 1.2, 1.4, 1.9], noisy) == 4
    assert since_better([], []) == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"goal": "level_set"}, r"agent\.level is None; the goal level_set takes a number"),
        ({"goal": "level_set", "level": math.nan}, r"agent\.level is nan; the goal level_set takes"),
        ({"goal": "match"}, r"agent\.objective\.kind is 'band_integral'; the goal match takes 'similarity'"),
        ({"goal": "trade_off"}, r"agent\.second_objective is missing; .* \[agent\.second_objective\]"),
    ],
)
def test_a_goal_that_lacks_what_it_takes_is_refused_with_the_cure(table, message):
    with pytest.raises(ValueError, match=message):
        AgentConfig(**table)


@pytest.mark.parametrize(("name", "value"), [("after_measurements", -1), ("every", 0)])
def test_a_stall_that_cannot_be_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"agent\.stall\.{name} is {value}; it takes"):
        StallConfig(**{name: value})
