"""The Gaussian process against BoTorch's own, and against what it must do."""

import numpy as np
import pytest

from agents import lazy_botorch
from agents.surrogate import MIN_NOISE_VARIANCE, Hyperparameters, Surrogate, matern_52


def data(n=30, d=3, seed=5):
    """A smooth function of the first latent and of the place, with stated noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, d + 2))
    y = 3e-3 * np.tanh(x[:, 0]) + 1e-3 * np.sin(2 * x[:, d]) + 5.0
    variance = rng.uniform(1e-10, 1e-8, n)
    return x, y + rng.normal(0, np.sqrt(variance)), variance


def told(n=30, d=3, seed=5):
    surrogate = Surrogate(d)
    surrogate.tell(*data(n, d, seed))
    return surrogate


def test_matern_is_one_at_home_and_falls():
    values = matern_52(np.array([0.0, 1.0, 4.0]))
    assert values[0] == 1.0
    assert values[1] == pytest.approx((1 + 5**0.5 + 5 / 3) * np.exp(-(5**0.5)))
    assert values[2] < values[1]


@pytest.mark.parametrize("fits", [0, 1])
def test_the_closed_form_is_botorchs_posterior(fits):
    lazy_botorch.load()
    import torch

    surrogate = told()
    for _ in range(fits):
        surrogate.refit()
    x = np.random.default_rng(6).normal(0, 1, (200, 5))
    with torch.no_grad():
        reference = surrogate.botorch_model().posterior(torch.from_numpy(x)[:, None, :])
    mean, sd = surrogate.posterior(x)
    y = data()[1]
    reference_mean = y.mean() + y.std(ddof=1) * reference.mean.numpy().ravel()
    reference_sd = y.std(ddof=1) * reference.variance.numpy().ravel() ** 0.5
    assert np.abs(mean - reference_mean).max() < 1e-6 * y.std()
    assert np.abs(sd - reference_sd).max() < 1e-6 * y.std()


def test_before_any_observation_it_forecasts_the_prior():
    mean, sd = Surrogate(2).posterior(np.zeros((3, 4)))
    assert mean.tolist() == [0.0, 0.0, 0.0]
    assert sd == pytest.approx(np.sqrt(1.1))


def test_one_observation_is_known_within_its_noise_and_nothing_is_known_far_away():
    surrogate = Surrogate(1)
    surrogate.tell(np.zeros((1, 3)), np.array([7.0]), np.array([0.04]))
    mean, sd = surrogate.posterior(np.array([[0.0, 0.0, 0.0], [1e3, 1e3, 0.0]]))
    assert mean[0] == pytest.approx(7.0)
    # In the unit of the one known noise, 0.2: prior variance 1.1, noise 1.
    assert sd == pytest.approx(0.2 * np.sqrt([1.1 - 1.1**2 / 2.1, 1.1]))


def test_a_noisy_observation_counts_for_less_than_an_exact_one():
    surrogate = Surrogate(1)
    x = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    surrogate.tell(x, np.array([1.0, 3.0]), np.array([1e-6, 4.0]))
    assert surrogate.posterior(x[:1])[0][0] == pytest.approx(1.0, abs=0.01)


def test_pending_places_lower_the_doubt_around_them_and_leave_the_mean():
    surrogate = told()
    x = np.random.default_rng(7).normal(0, 1, (50, 5))
    mean, sd = surrogate.posterior(x)
    mean_with, sd_with = surrogate.posterior(x, x[:2])
    assert mean_with == pytest.approx(mean, rel=1e-9)
    assert (sd_with <= sd * (1 + 1e-9)).all()
    assert (sd_with[:2] < 0.7 * sd[:2]).all()


def test_equal_observations_make_no_division_by_zero():
    surrogate = Surrogate(1)
    surrogate.tell(np.arange(9.0).reshape(3, 3), np.full(3, 4.0), np.zeros(3))
    mean, sd = surrogate.posterior(np.zeros((1, 3)))
    assert mean[0] == pytest.approx(4.0)
    assert sd[0] > 0
    assert surrogate.best_known() == pytest.approx(4.0)


def test_the_best_known_is_not_a_single_lucky_count():
    surrogate = Surrogate(1)
    x = np.zeros((5, 3))
    surrogate.tell(x, np.array([0.0, 0.1, -0.1, 0.0, 9.0]), np.array([0.01, 0.01, 0.01, 0.01, 100.0]))
    assert surrogate.best_known() < 0.5


def test_a_fit_finds_which_latent_matters_and_makes_the_data_more_probable():
    surrogate = told(n=40)
    before = log_probability(surrogate)
    surrogate.refit()
    theta = surrogate.hyperparameters
    assert surrogate.revision == 1
    assert theta.latent_lengths[0] < 0.5 * theta.latent_lengths[1:].min()
    assert log_probability(surrogate) > before + 5


def log_probability(surrogate: Surrogate) -> float:
    """Log marginal likelihood of the standardised observations, straight from its definition."""
    x, y, variance = data(n=40)
    unit = y.std(ddof=1)
    theta: Hyperparameters = surrogate.hyperparameters
    noise = np.maximum(variance / unit**2, MIN_NOISE_VARIANCE)
    covariance = theta.covariance(x, x) + np.diag(noise)
    residual = (y - y.mean()) / unit - theta.mean
    _, logdet = np.linalg.slogdet(covariance)
    return -0.5 * float(residual @ np.linalg.solve(covariance, residual)) - 0.5 * float(logdet)


def test_a_fit_is_the_same_each_time_bit_for_bit():
    one, other = told(), told()
    one.refit()
    other.refit()
    assert one.hyperparameters.latent_lengths.tobytes() == other.hyperparameters.latent_lengths.tobytes()
    assert one.hyperparameters.position_length == other.hyperparameters.position_length
