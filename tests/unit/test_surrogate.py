"""The Gaussian process against BoTorch's own, and against what it must do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.evidence import Evidence, fit
from agents.kernels import (
    Covariance,
    Hyperparameters,
    Prior,
    as_vector,
    matern_52,
    of_latents,
    of_position,
    of_vector,
)
from agents.surrogate import MIN_NOISE_VARIANCE, NOISE, Observations, Surrogate
from tests import quiet_botorch

Float64 = NDArray[np.float64]
D = 3
MOST = 200
PARTS = (of_latents(0, D), of_position(D))


def places(count: int, seed: int = 6) -> Float64:
    return np.random.default_rng(seed).normal(0, 1, (count, D + 2))


def data(n: int = 30, seed: int = 5) -> Observations:
    """A smooth function of the first latent and of the place, with stated noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (MOST, D + 2))
    y = 3e-3 * np.tanh(x[:, 0]) + 1e-3 * np.sin(2 * x[:, D]) + 5.0
    variance = rng.uniform(1e-10, 1e-8, MOST)
    return Observations(x, y + rng.normal(0, np.sqrt(variance)), variance).first(n)


def told(n: int = 30, fits: int = 1) -> Surrogate:
    surrogate = Surrogate(PARTS)
    surrogate.tell_all(data(n))
    for _ in range(fits):
        surrogate.adopt(fit(surrogate.known, PARTS, surrogate.hyperparameters), n)
    return surrogate


def of_botorch(surrogate: Surrogate, x: Float64) -> tuple[Float64, Float64]:
    """Forecast mean and sd of BoTorch's SingleTaskGP with the same covariance and noise."""
    quiet_botorch.load()
    import torch

    with torch.no_grad():
        found = quiet_botorch.same_model(surrogate).posterior(torch.from_numpy(x)[:, None, :])
    mean, sd = found.mean.numpy().ravel(), found.variance.numpy().ravel() ** 0.5
    return surrogate.unit.offset + surrogate.unit.size * mean, surrogate.unit.size * sd


def assert_near(found: tuple[Float64, Float64], expected: tuple[Float64, Float64], within: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() < within * 3e-3  # of what the objective spans


@pytest.mark.parametrize("fits", [0, 1])
def test_it_is_botorchs_posterior_however_the_observations_came(fits: int) -> None:
    x, known = places(200), data()
    surrogate = told(20, fits)
    surrogate.offer(x)
    assert surrogate.mean.shape == (200,)  # it has begun: what comes now is added row by row
    for index in range(20, 30):
        surrogate.tell(known.x[index], known.y[index], known.variance[index])
    assert_near((surrogate.mean, surrogate.sd), of_botorch(surrogate, x), 1e-6)
    assert_near(surrogate.posterior(x), (surrogate.mean, surrogate.sd), 1e-9)


def test_a_hundred_rows_later_it_is_the_process_of_all_observations_to_the_last_digits() -> None:
    x, known = places(500), data(130)
    added = told(30)
    at_once = told(30)
    added.offer(x)
    for index in range(30, 130):
        added.tell(known.x[index], known.y[index], known.variance[index])
        assert added.mean.size == 500
    at_once.tell_all(known)
    at_once.offer(x)
    assert_near((added.mean, added.sd), (at_once.mean, at_once.sd), 1e-9)
    assert added.best_known() == pytest.approx(at_once.best_known(), rel=1e-12)


def test_the_digits_do_not_depend_on_when_it_is_asked() -> None:
    known = data(60)
    surrogates = [told(30), told(30)]
    for surrogate, is_asked in zip(surrogates, (True, False), strict=True):
        surrogate.offer(places(100))
        for index in range(30, 60):
            surrogate.tell(known.x[index], known.y[index], known.variance[index])
            if is_asked:
                assert np.isfinite(surrogate.mean).all()
                surrogate.expect(places(index % 3, seed=index))
        surrogate.expect(places(2))
    one, other = ((s.mean.tobytes(), s.sd.tobytes(), s.best_known()) for s in surrogates)
    assert one == other


@pytest.mark.parametrize("under_way", [1, 3, 12])
def test_an_outcome_that_was_expected_is_taken_in_as_one_that_was_not_bit_for_bit(under_way: int) -> None:
    known = data(60)
    surrogates = [told(30), told(30)]
    for surrogate, is_expected in zip(surrogates, (True, False), strict=True):
        surrogate.offer(places(100))
        for index in range(30, 60):
            if is_expected:
                for last in range(index, index + under_way):  # one after the other, as they are asked for
                    surrogate.expect(data(80).x[index : last + 1])
                    assert np.isfinite(surrogate.sd).all()
            surrogate.tell(known.x[index], known.y[index], known.variance[index])
        for first in (10, 0) if is_expected else (0,):
            surrogate.expect(known.x[first : first + under_way])
            assert np.isfinite(surrogate.sd).all()
    one, other = ((s.mean.tobytes(), s.sd.tobytes(), s.best_known()) for s in surrogates)
    assert one == other


def test_an_outcome_that_was_expected_takes_no_covariance_with_what_is_on_offer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, known, surrogate = places(100), data(32), told(30)
    surrogate.offer(x)
    surrogate.expect(known.x[30:32])
    surrogate.get_ready()  # of no use yet: it has to begin anew, on what may be on offer by then
    assert np.isfinite(surrogate.sd).all()
    surrogate.tell(known.x[30], known.y[30], known.variance[30])
    surrogate.expect(known.x[31:32])
    computed: list[int] = []
    between = Covariance.between_scaled

    def counted(self: Covariance, ones: list[Float64], others: list[Float64]) -> Float64:
        computed.append(len(others[0]))
        return between(self, ones, others)

    monkeypatch.setattr(Covariance, "between_scaled", counted)
    assert np.isfinite(surrogate.mean).all()
    assert 0 < max(computed) < len(x)
    surrogate.expect(known.x[:1])
    surrogate.get_ready()
    assert max(computed) == len(x)


def test_a_model_that_was_made_beforehand_answers_bit_for_bit_as_one_that_was_not() -> None:
    known = data(60)
    surrogates = [told(30), told(30)]
    for surrogate, is_made in zip(surrogates, (True, False), strict=True):
        surrogate.offer(places(100))
        surrogate.tell_all(known.first(40))
        surrogate.expect(known.x[40:42])
        found = fit(surrogate.known, PARTS, surrogate.hyperparameters)
        model = surrogate.beginning(40).model(found) if is_made else None
        surrogate.tell(known.x[40], known.y[40], known.variance[40])
        surrogate.adopt(found, 40, model)
        surrogate.expect(known.x[41:42])
    one, other = ((s.mean.tobytes(), s.sd.tobytes(), s.best_known()) for s in surrogates)
    assert one == other


def test_a_model_of_what_was_on_offer_before_is_not_taken() -> None:
    surrogate, h = told(), told().hyperparameters
    surrogate.offer(places(100))
    model = surrogate.beginning(30).model(h)
    surrogate.offer(places(50))
    surrogate.adopt(h, 30, model)
    assert surrogate.mean.shape == (50,)


def test_one_that_was_put_down_goes_on_bit_for_bit() -> None:
    known, before = data(60), told(30)
    before.offer(places(100))
    for index in range(30, 60):
        before.tell(known.x[index], known.y[index], known.variance[index])
    before.expect(places(1))
    after = Surrogate(PARTS)
    after.offer(places(100))
    after.restore(before.state(), before.known)
    after.expect(places(1))
    assert (after.mean.tobytes(), after.sd.tobytes()) == (before.mean.tobytes(), before.sd.tobytes())


def test_matern_is_one_at_home_and_falls() -> None:
    values = matern_52(np.array([0.0, 1.0, 4.0]))
    assert values[0] == 1.0
    assert values[1] == pytest.approx((1 + 5**0.5 + 5 / 3) * np.exp(-(5**0.5)))
    assert values[2] < values[1]


def test_before_any_observation_it_forecasts_the_prior() -> None:
    surrogate = Surrogate(PARTS)
    mean, sd = surrogate.posterior(np.zeros((3, D + 2)))
    assert mean.tolist() == [0.0, 0.0, 0.0]
    assert sd == pytest.approx(np.sqrt(1.1))
    assert np.isnan(surrogate.best_known())


def test_one_observation_is_known_within_its_noise_and_nothing_is_known_far_away() -> None:
    surrogate = Surrogate(PARTS)
    surrogate.tell(np.zeros(D + 2), 7.0, 0.04)
    far = np.array([[0.0] * 5, [1e3, 0, 0, 1e3, 0]])
    mean, sd = surrogate.posterior(far)
    assert mean[0] == pytest.approx(7.0)
    # In the unit of the one known noise, 0.2: prior variance 1.1, noise 1 and what is not explained.
    noise = 1 + NOISE.typical
    assert sd == pytest.approx(0.2 * np.sqrt([1.1 - 1.1**2 / (1.1 + noise), 1.1]))


def test_a_noisy_observation_counts_for_less_than_an_exact_one() -> None:
    surrogate = Surrogate(PARTS)
    surrogate.tell(np.zeros(D + 2), 1.0, 1e-6)
    surrogate.tell(np.zeros(D + 2), 3.0, 4.0)
    assert surrogate.posterior(np.zeros((1, D + 2)))[0][0] == pytest.approx(1.0, abs=0.01)


def test_what_is_still_to_come_lowers_the_doubt_around_it_and_leaves_the_mean() -> None:
    surrogate, x = told(), places(50)
    surrogate.offer(x)
    mean, sd = surrogate.mean, surrogate.sd
    surrogate.expect(x[:2])
    assert surrogate.mean.tobytes() == mean.tobytes()
    assert (surrogate.sd <= sd).all()
    assert (surrogate.sd[:2] < 0.7 * sd[:2]).all()
    assert_near(surrogate.posterior(x), (surrogate.mean, surrogate.sd), 1e-9)
    surrogate.expect(np.zeros((0, D + 2)))
    assert surrogate.sd.tobytes() == sd.tobytes()


def test_equal_observations_make_no_division_by_zero() -> None:
    surrogate = Surrogate(PARTS)
    surrogate.tell_all(Observations(places(3), np.full(3, 4.0), np.zeros(3)))
    mean, sd = surrogate.posterior(np.zeros((1, D + 2)))
    assert mean[0] == pytest.approx(4.0)
    assert sd[0] > 0
    assert surrogate.best_known() == pytest.approx(4.0)


def test_the_best_known_is_not_a_single_lucky_count() -> None:
    surrogate = Surrogate(PARTS)
    y, variance = np.array([0.0, 0.1, -0.1, 0.0, 9.0]), np.array([0.01, 0.01, 0.01, 0.01, 100.0])
    surrogate.tell_all(Observations(np.zeros((5, D + 2)), y, variance))
    assert surrogate.best_known() < 0.5


def test_hyperparameters_without_a_covariance_forecast_no_number() -> None:
    surrogate = told()
    surrogate.offer(places(4))
    broken = Hyperparameters(0.0, 0.01, np.array([-2.0, 0.1]), surrogate.hyperparameters.lengths)
    surrogate.adopt(broken, 30)
    assert np.isnan(surrogate.mean).all()
    assert np.isnan(surrogate.best_known())
    surrogate.tell(places(1)[0], 5.0, 1e-9)
    assert np.isnan(surrogate.mean).all()


# -- the fit -------------------------------------------------------------------------------------------


def test_the_slope_of_the_evidence_is_that_of_its_value() -> None:
    evidence = Evidence(data(), PARTS)
    start = as_vector(Hyperparameters.before_any_fit(PARTS, NOISE))
    there = start + 0.3 * np.random.default_rng(1).normal(size=start.size)
    _, slope = evidence.cost(there)
    for index, step in enumerate(1e-5 * np.eye(start.size)):
        numeric = (evidence.cost(there + step)[0] - evidence.cost(there - step)[0]) / 2e-5
        assert slope[index] == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_the_evidence_is_that_of_its_definition() -> None:
    known, evidence = data(), Evidence(data(), PARTS)
    h = Hyperparameters.before_any_fit(PARTS, NOISE)
    unit = known.y.std(ddof=1)
    noise = np.maximum(known.variance / unit**2, MIN_NOISE_VARIANCE) + h.noise
    covariance = Covariance(PARTS, h).between(known.x, known.x) + np.diag(noise)
    residual = (known.y - known.y.mean()) / unit
    _, logdet = np.linalg.slogdet(covariance)
    cost = 0.5 * float(residual @ np.linalg.solve(covariance, residual)) + 0.5 * float(logdet)
    # The priors are 0 where they are most probable.
    assert evidence.cost(as_vector(h))[0] == pytest.approx(cost)


def test_a_fit_finds_which_latent_matters() -> None:
    h = told(40).hyperparameters
    assert h.lengths[0][0] < 0.5 * h.lengths[0][1:].min()
    assert h.noise < 0.01
    evidence = Evidence(data(40), PARTS)
    before = evidence.cost(as_vector(Hyperparameters.before_any_fit(PARTS, NOISE)))[0]
    assert evidence.cost(as_vector(h))[0] < before - 5


def test_what_the_features_cannot_explain_is_found_as_noise() -> None:
    known = data(200)
    y = known.y + 1e-3 * np.random.default_rng(2).normal(size=200)
    h = fit(Observations(known.x, y, known.variance), PARTS, told(0, 0).hyperparameters)
    assert h.noise * y.var() == pytest.approx(1e-6, rel=0.3)


def test_a_fit_is_the_same_each_time_bit_for_bit() -> None:
    assert as_vector(told().hyperparameters).tobytes() == as_vector(told().hyperparameters).tobytes()


def test_hyperparameters_come_back_from_their_names_and_from_a_vector() -> None:
    h = told().hyperparameters
    again = Hyperparameters.of_parameters(h.parameters(PARTS), PARTS)
    assert as_vector(again).tobytes() == as_vector(h).tobytes()
    assert as_vector(of_vector(as_vector(h), PARTS)) == pytest.approx(as_vector(h), abs=1e-14)
    with pytest.raises(ValueError, match="latents lengths"):
        Hyperparameters.of_parameters(h.parameters(PARTS), (of_latents(0, 2), of_position(2)))


def test_a_prior_is_most_probable_where_it_says() -> None:
    prior = Prior(log_mean=0.5, log_sd=2.0)
    at, slope = prior.slope(np.array([0.5]))
    assert (at, slope[0]) == (0.0, 0.0)
    below, rising = prior.slope(np.array([-1.5]))
    assert (below, rising[0]) == (-0.5, 0.5)
