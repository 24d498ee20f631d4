"""Why an agent chose a site, by numbers known by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from agents.explanation import Weighed, feature_weights, model_weights

POSITION_NM = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.5], [3.0, 0.0], [4.0, 0.0]])


def weighed(scores: list[float], **changes: object) -> Weighed:
    """Weigh the last four of five sites."""
    known = {
        "candidates": SimpleNamespace(position_nm=POSITION_NM, track=np.array([7, 8, 9, -1, 3])),
        "free": np.array([1, 2, 3, 4]),
        "mean": np.array([10.0, 20.0, 30.0, 40.0]),
        "sd": np.array([1.0, 2.0, 3.0, 4.0]),
        "scores": np.array(scores),
        "parameters": dict,
    }
    return Weighed(**(known | changes))  # type: ignore[arg-type]


def test_the_ranking_begins_with_the_largest_score_and_names_each_site_by_its_own_numbers() -> None:
    first, second, third = weighed([-3.0, -1.0, -2.0, -9.0]).ranking(3)
    assert (first.position_nm, first.track) == ((2.0, 0.5), 9)
    assert (first.predicted_mean, first.predicted_sd, first.acquisition, first.cost) == (20.0, 2.0, -1.0, 0.0)
    assert (second.track, third.track) == (-1, 8)


def test_of_equals_the_first_comes_first_as_in_the_choice() -> None:
    scores = [0.5, 2.0, 2.0, 2.0]
    tracks = [one.track for one in weighed(scores).ranking(9)]
    assert tracks == [9, -1, 3, 8]
    assert tracks[0] == [8, 9, -1, 3][int(np.argmax(scores))]


def test_a_site_without_a_score_is_no_alternative() -> None:
    assert [one.track for one in weighed([-math.inf, 1.0, -math.inf, 0.0]).ranking(6)] == [9, 3]


def test_where_the_smallest_is_looked_for_the_forecast_is_turned_back() -> None:
    (first,) = weighed([0.0, 0.0, 0.0, 1.0], sign=-1.0).ranking(1)
    assert (first.predicted_mean, first.predicted_sd) == (-40.0, 4.0)


def test_each_site_says_what_it_costs() -> None:
    ranked = weighed([4.0, 3.0, 2.0, 1.0], cost=np.array([0.1, 0.2, 0.3, 0.4])).ranking(2)
    assert [one.cost for one in ranked] == [0.1, 0.2]


def test_a_feature_weighs_what_the_objective_changes_along_it() -> None:
    # of length 1 the Matérn covariance at a distance of 1 is (1 + √5 + 5/3) exp(-√5) = 0.52399
    short, variance = 1 - (1 + math.sqrt(5) + 5 / 3) * math.exp(-math.sqrt(5)), 3.0
    weights = feature_weights(
        {
            "mean": [0.2],
            "noise": [0.01],
            "latents variance": [variance],
            "position variance": [1.0],
            "latents lengths": [1.0, 1e6],
            "position lengths": [1.0],
        }
    )
    assert short == pytest.approx(0.47601, abs=1e-5)
    assert weights == pytest.approx({"latents 1": 0.75, "latents 2": 0.0, "position": 0.25}, abs=1e-9)


def test_parameters_of_another_model_have_no_features() -> None:
    assert feature_weights({"modes": [3.0], "field variance": [1.0]}) == {}


def test_of_several_models_each_counts_by_its_weight() -> None:
    parameters = {
        "position: log weight": [math.log(0.25)],
        "position: position variance": [1.0],
        "position: position lengths": [1.0],
        "latents: log weight": [math.log(0.75)],
        "latents: latents variance": [1.0],
        "latents: latents lengths": [1.0, 1e6],
    }
    assert model_weights(parameters) == pytest.approx({"position": 0.25, "latents": 0.75})
    assert feature_weights(parameters) == pytest.approx(
        {"position": 0.25, "latents 1": 0.75, "latents 2": 0.0}, abs=1e-9
    )
    assert model_weights({"mean": [0.0], "noise": [0.1]}) == {}
