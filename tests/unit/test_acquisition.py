"""The log of the expected improvement against numbers made another way."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import norm

from agents.acquisition import log_expected_improvement
from tests import quiet_botorch


def test_at_the_best_value_the_expected_improvement_is_the_sd_times_0_3989():
    log_ei = log_expected_improvement(np.array([2.0]), np.array([0.5]), 2.0)
    assert math.exp(log_ei[0]) == pytest.approx(0.5 / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("z", [-3.0, -1.0, -0.5, 0.0, 1.0, 4.0])
def test_the_expected_improvement_is_its_textbook_formula_where_that_can_be_computed(z):
    sd = 0.3
    textbook = sd * (norm.pdf(z) + z * norm.cdf(z))
    log_ei = log_expected_improvement(np.array([7.0 + z * sd]), np.array([sd]), 7.0)
    assert log_ei[0] == pytest.approx(math.log(textbook), rel=1e-9)


def test_hopeless_candidates_are_still_ranked():
    mean = np.array([-100.0, -50.0, -200.0])
    log_ei = log_expected_improvement(mean, np.ones(3), 0.0)
    assert np.isfinite(log_ei).all()
    assert list(np.argsort(log_ei)) == [2, 0, 1]
    # For z far below 0 the expected improvement is pdf(z) / z².
    assert log_ei[0] == pytest.approx(norm.logpdf(-100) - 2 * math.log(100), rel=1e-6)


def test_a_change_of_unit_only_adds_its_logarithm():
    mean, sd = np.array([0.1, 0.7]), np.array([0.2, 0.05])
    scaled = log_expected_improvement(1e-4 * mean, 1e-4 * sd, 1e-4)
    assert scaled == pytest.approx(log_expected_improvement(mean, sd, 1.0) + math.log(1e-4))


def test_it_is_botorchs_log_expected_improvement():
    quiet_botorch.load()
    import torch
    from botorch.acquisition.analytic import LogExpectedImprovement
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.posteriors import GPyTorchPosterior
    from gpytorch.distributions import MultivariateNormal

    class Forecast(GenericDeterministicModel):
        def posterior(self, X, **_):
            spread = torch.diag_embed(torch.full_like(X[..., 0], 0.04))
            return GPyTorchPosterior(MultivariateNormal(X[..., 0], spread))

    mean = np.linspace(-5, 2, 29)
    reference = LogExpectedImprovement(Forecast(lambda X: X), best_f=torch.tensor(0.4, dtype=torch.float64))(
        torch.from_numpy(mean)[:, None, None]
    )
    ours = log_expected_improvement(mean, np.full(29, 0.2), 0.4)
    assert np.abs(ours - reference.numpy()).max() < 1e-9


def test_it_is_botorchs_at_every_distance_in_double_precision():
    quiet_botorch.load()
    import torch
    from botorch.acquisition.analytic import _log_ei_helper

    z = np.concatenate([-np.geomspace(1e12, 1e-9, 400), [0.0], np.geomspace(1e-9, 1e3, 200)])
    reference = _log_ei_helper(torch.from_numpy(z)).numpy()
    assert log_expected_improvement(z, np.ones(z.size), 0.0) == pytest.approx(reference, rel=1e-9, abs=1e-9)


def test_a_forecast_that_is_no_number_promises_none():
    assert np.isnan(log_expected_improvement(np.array([np.nan]), np.ones(1), 0.0)).all()


def test_it_takes_no_torch():
    code = (
        "import sys, numpy as np; from agents.acquisition import log_expected_improvement as f;"
        "f(np.zeros(2), np.ones(2), 1.0); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
