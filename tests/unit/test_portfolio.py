"""Models side by side: who is trusted, what they say together, and that nothing of it depends on time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.evidence import foretold
from agents.features import FeatureScale, parts_of
from agents.kernels import Covariance
from agents.portfolio import Portfolio, _normalised
from agents.surrogate import Observations, Unit

Float64 = NDArray[np.float64]
D = 3
WIDTH = D + 4
NAMES = ("position", "latents", "trend + position")
VARIANCE = 1e-4


def portfolio(*names: str) -> Portfolio:
    return Portfolio({name: parts_of(name, D) for name in names or NAMES}, WIDTH)  # type: ignore[arg-type]


def places(count: int, seed: int = 4) -> Float64:
    return np.random.default_rng(seed).uniform(-1, 1, (count, WIDTH))


def by_place(x: Float64) -> Float64:
    """A function that the latents know nothing of."""
    return np.sin(3 * x[:, -2]) + np.cos(2 * x[:, -1])


def by_look(x: Float64) -> Float64:
    """A function that the place knows nothing of."""
    return np.sin(3 * x[:, 2]) * np.cos(2 * x[:, 3])


def data(of: object, count: int, seed: int = 4) -> Observations:
    x = places(count, seed)
    assert callable(of)
    noise = np.random.default_rng(seed + 1).normal(0, VARIANCE**0.5, count)
    return Observations(x, of(x) + noise, np.full(count, VARIANCE))


def taught(of: object, one: Portfolio, count: int = 60, every: int = 12) -> Portfolio:
    """Tell it observations one by one, with a fit now and then."""
    known = data(of, count)
    one.offer(places(50, seed=9))
    for index in range(count):
        one.tell(known.x[index], known.y[index], VARIANCE)
        size = index + 1
        if size % every == 0:
            one.adopt(one.to_fit(size).fitted(), size)
    return one


@pytest.mark.parametrize(("of", "name"), [(by_place, "position"), (by_look, "latents")])
def test_the_model_whose_features_tell_is_the_one_that_is_trusted(of: object, name: str) -> None:
    one = taught(of, portfolio("position", "latents"))
    assert sum(one.weights.values()) == pytest.approx(1.0)
    assert one.weights[name] > 0.99


def test_a_portfolio_of_one_is_that_one_to_the_last_bit() -> None:
    one = taught(by_place, portfolio("latents + position"))
    (model,) = one.models
    x = places(5, seed=7)
    assert one.mean.tobytes() == model.mean.tobytes()
    assert one.sd.tobytes() == model.sd.tobytes()
    assert one.best_known() == model.best_known()
    assert one.posterior(x)[1].tobytes() == model.posterior(x)[1].tobytes()
    assert one.joint(x)[1].tobytes() == model.joint(x)[1].tobytes()
    assert one.weights == {"latents + position": 1.0}


def test_what_they_say_together_is_the_mixture_by_its_moments() -> None:
    one = taught(by_place, portfolio())
    one.log_weight = np.log([0.5, 0.3, 0.2])
    rng = np.random.default_rng(1)
    which = rng.choice(3, 200_000, p=[0.5, 0.3, 0.2])
    for place in range(3):
        drawn = np.array([model.mean[place] for model in one.models])[which]
        drawn += np.array([model.sd[place] for model in one.models])[which] * rng.normal(size=which.size)
        assert one.mean[place] == pytest.approx(drawn.mean(), abs=0.01)
        assert one.sd[place] == pytest.approx(drawn.std(), rel=0.02)
    mean, sd = one.posterior(places(50, seed=9))
    assert mean == pytest.approx(one.mean, abs=1e-9)
    assert sd == pytest.approx(one.sd, rel=1e-6)
    assert np.diag(one.joint(places(50, seed=9))[1]) == pytest.approx(one.sd**2, rel=1e-6)


def test_each_is_judged_by_what_it_said_before_it_was_told() -> None:
    known, parts = data(by_place, 20), parts_of("latents + position", D)
    one = Portfolio({"a": parts}, WIDTH)
    (h,) = one.to_fit(0).hyperparameters
    each = foretold(known, parts, h)
    value, noise = Unit.of(known).standardised(known)
    covariance = Covariance(parts, h)
    for index in (1, 7, 19):
        before, now = known.x[:index], known.x[index : index + 1]
        within = covariance.between(before, before) + np.diag(noise[:index] + h.noise)
        to = np.linalg.solve(within, covariance.between(before, now))[:, 0]
        mean = h.mean + to @ (value[:index] - h.mean)
        variance = covariance.prior_variance + noise[index] + h.noise
        variance -= float(to @ covariance.between(before, now)[:, 0])
        expected = -0.5 * (value[index] - mean) ** 2 / variance - 0.5 * np.log(variance)
        assert each[index] == pytest.approx(expected, abs=1e-8)


def test_what_was_right_long_ago_counts_for_less_than_what_is_right_now() -> None:
    one = portfolio("position", "latents")
    early, late = data(by_place, 40), data(by_look, 80, seed=5)
    for known in (early, late):
        for index in range(len(known)):
            one.tell(known.x[index], known.y[index], VARIANCE)
            size = len(one.known)
            if size % 10 == 0:
                one.adopt(one.to_fit(size).fitted(), size)
        winner = "position" if known is early else "latents"
        assert one.weights[winner] > 0.9


def test_a_model_that_is_not_trusted_takes_no_part_and_can_come_back() -> None:
    one = taught(by_place, portfolio("position", "latents"))
    assert one.weights["latents"] < 0.01
    assert one.mean.tobytes() == one.models[0].mean.tobytes()
    assert one.log_weight.min() >= -51.0


def test_a_model_without_a_likelihood_is_far_behind_and_every_number_stays_finite() -> None:
    known = data(by_place, 12)
    one = taught(by_place, portfolio("position", "latents"), 12, 6)
    begun = one.to_fit(12)
    broken = replace(begun.hyperparameters[0], lengths=(np.full(1, np.nan),))
    assert np.isnan(foretold(known, begun.parts[0], broken)).all()
    one.models[0].adopt(broken, 12)
    one.tell(known.x[0], known.y[0], VARIANCE)
    weight = np.exp(one.to_fit(13).fitted().log_weight)
    assert np.isfinite(weight).all()
    assert weight[1] > 0.9


def test_weights_sum_to_one_however_far_apart_they_are() -> None:
    assert np.exp(_normalised(np.array([0.0, -1e9, -1e308]))).sum() == pytest.approx(1.0)


def test_a_fit_is_named_with_its_weights_and_comes_back_bit_for_bit() -> None:
    one = taught(by_place, portfolio())
    said = one.parameters()
    again = one.of_parameters(said)
    assert one.parameters(again) == said
    assert said["trend + position: log weight"] == [float(one.log_weight[2])]
    assert len(said["latents: latents lengths"]) == D
    with pytest.raises(ValueError, match="not of the features position, latents"):
        portfolio("position", "latents").of_parameters(said)
    with pytest.raises(ValueError, match="has the parameters"):
        portfolio("latents + position").of_parameters(said)


def test_one_that_was_put_down_goes_on_bit_for_bit() -> None:
    before = taught(by_place, portfolio(), 50)
    after = portfolio()
    after.offer(places(50, seed=9))
    after.restore(before.state(), before.known)
    assert (after.mean.tobytes(), after.sd.tobytes()) == (before.mean.tobytes(), before.sd.tobytes())
    found = [one.to_fit(50).fitted().log_weight.tobytes() for one in (before, after)]
    assert found[0] == found[1]


def test_of_other_models_it_learns_anew_from_the_same_observations() -> None:
    before, after = taught(by_place, portfolio(), 30), portfolio("position", "latents")
    after.restore(before.state(), before.known)
    assert len(after.known) == 30
    assert after.weights == pytest.approx({"position": 0.5, "latents": 0.5})


# -- features ------------------------------------------------------------------------------------------


def scale(fold: int) -> FeatureScale:
    return FeatureScale("m", np.zeros(D), np.ones(D), np.zeros(2), 1.0, fold)


def test_turns_that_leave_a_site_as_it_is_are_one_direction() -> None:
    third = 2 * np.pi / 3
    angles = np.array([[0.2, 0.01], [0.2 + third, 0.01], [0.2 - third, 0.01]])
    one = scale(3)._direction(angles, 3)
    assert one == pytest.approx(np.tile(one[0], (3, 1)))
    assert np.ptp(scale(1)._direction(angles, 3), axis=0).min() > 0.5


def test_an_angle_that_is_not_known_says_nothing() -> None:
    angles = np.array([[1.0, 0.0], [1.0, 0.5], [1.0, 4.0], [np.nan, 0.1], [1.0, np.inf]])
    length = np.hypot(*scale(1)._direction(angles, 5).T)
    assert length[:2] == pytest.approx([1.0, np.exp(-0.125)])
    assert length[2:].max() < 1e-3
    assert not scale(1)._direction(None, 2).any()
