"""A network under a covariance: turns, its slopes, and what a fit makes of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.evidence import Evidence, fit, foretold
from agents.kernels import Covariance, Hyperparameters, as_vector, of_position, of_vector, of_windows
from agents.network import OUTPUTS, Network, Pass
from agents.surrogate import NOISE, Observations, Surrogate
from agents.windows import harmonics
from tests.drawn_windows import PIXELS, spots

Float64 = NDArray[np.float64]
NET = Network(channels=1, seed=4)
PARTS = (of_windows(0, NET), of_position(NET.inputs))
VARIANCE = 1e-4


def places(windows: NDArray[np.float32]) -> Float64:
    """Harmonics and a position that says nothing."""
    x = harmonics(windows).astype(np.float64)
    return np.concatenate([x, np.random.default_rng(1).uniform(-1, 1, (len(x), 2))], axis=1)


def data(count: int = 40, seed: int = 0, distraction: float = 0.0) -> Observations:
    """What is measured has its maximum at windows of a middling spot, whatever their turn.

    Another one in the middle, up to ``distraction`` bright, says nothing.
    """
    rng = np.random.default_rng([seed, 2])
    bright = rng.uniform(0, 2, count)
    value = np.exp(-((bright - 1.2) ** 2) / 0.1) + VARIANCE**0.5 * rng.normal(size=count)
    row, col = np.mgrid[:PIXELS, :PIXELS] - (PIXELS - 1) / 2
    middle = rng.uniform(0, distraction, count)[:, None, None, None] * np.exp(-(row**2 + col**2) / 3)
    windows = spots(bright, seed) + middle.astype(np.float32)
    return Observations(places(windows), value, np.full(count, VARIANCE))


def first() -> Hyperparameters:
    return Hyperparameters.before_any_fit(PARTS, NOISE)


def test_a_turned_window_gives_the_same_numbers() -> None:
    windows = spots(np.linspace(0.5, 2, 9), noise=0.3)
    x, turned = (harmonics(one).astype(np.float64) for one in (windows, np.rot90(windows, 1, (2, 3)).copy()))
    assert np.abs(x - turned).max() > 0.5
    seen = NET.seen(x, NET.first)
    assert NET.seen(turned, NET.first) == pytest.approx(seen, abs=1e-5)
    assert seen.shape == (9, OUTPUTS)
    assert seen.std(axis=0).min() > 0.01


def test_what_is_said_of_a_window_has_the_same_bits_whatever_else_is_looked_at() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, NET.inputs))
    whole = NET.seen(x, NET.first)
    assert whole == pytest.approx(Pass(NET, x, NET.first).outputs, abs=1e-12)
    for count in (1, 2, 3, 7, 191, 192, 193, 500):
        some = rng.choice(700, count, replace=False)
        assert NET.seen(x[some], NET.first).tobytes() == whole[some].tobytes()
    assert NET.seen(x[:0], NET.first).shape == (0, OUTPUTS)


def test_the_slope_by_the_weights_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(5)
    x, by_outputs = rng.normal(size=(7, NET.inputs)), rng.normal(size=(7, OUTPUTS))
    weights = NET.first + 0.1 * rng.normal(size=NET.size)
    slope = Pass(NET, x, weights).slope(by_outputs)
    for step in 1e-5 * rng.normal(size=(20, NET.size)):
        ahead, back = (Pass(NET, x, weights + way * step).outputs for way in (1, -1))
        assert slope @ step == pytest.approx((by_outputs * (ahead - back)).sum() / 2, rel=1e-5)


def test_the_slope_of_the_evidence_is_that_of_its_value() -> None:
    evidence, rng = Evidence(data(20), PARTS), np.random.default_rng(1)
    start = as_vector(first())
    there = start + np.where(np.arange(start.size) < 6, 0.3, 0.02) * rng.normal(size=start.size)
    _, slope = evidence.cost(there)
    for step in [*(1e-5 * np.eye(start.size)[:6]), *(1e-6 * rng.normal(size=(20, start.size)))]:
        numeric = (evidence.cost(there + step)[0] - evidence.cost(there - step)[0]) / 2
        assert slope @ step == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_a_fit_is_more_probable_and_foretells_better_what_it_was_not_told() -> None:
    known = data(60, distraction=2.0)
    found = fit(known.first(40), PARTS, first())
    evidence = Evidence(known.first(40), PARTS)
    assert evidence.cost(as_vector(found))[0] < evidence.cost(as_vector(first()))[0] - 5
    # The same covariance over what the first weights see.
    untrained = replace(found, weights=first().weights)
    later, sooner = (foretold(known, PARTS, h)[40:].mean() for h in (found, untrained))
    assert later > sooner + 2.0


def test_it_forecasts_what_was_measured_and_is_sure_of_it() -> None:
    known, surrogate = data(), Surrogate(PARTS, NET.inputs + 2)
    surrogate.tell_all(known)
    surrogate.adopt(fit(known, PARTS, surrogate.hyperparameters), len(known))
    surrogate.offer(known.x)
    assert surrogate.mean == pytest.approx(known.y, abs=0.1)
    assert surrogate.sd.max() < 0.1
    mean, sd = surrogate.posterior(known.x)
    assert mean == pytest.approx(surrogate.mean, abs=1e-8)
    assert sd == pytest.approx(surrogate.sd, abs=1e-6)
    surrogate.offer(places(spots(np.full(3, 9.0))))
    assert surrogate.sd.min() > 0.1, "it is sure of windows like none that it was told of"


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    one, other = (as_vector(fit(data(), PARTS, first())).tobytes() for _ in range(2))
    assert one == other
    assert Network(1, seed=5).first.tobytes() != NET.first.tobytes()


def test_weights_come_back_from_their_name_and_from_a_vector() -> None:
    h = fit(data(), PARTS, first())
    named = h.parameters(PARTS)
    assert len(named["windows weights"]) == NET.size < 2000
    again = Hyperparameters.of_parameters(named, PARTS)
    assert as_vector(again).tobytes() == as_vector(h).tobytes()
    assert as_vector(of_vector(as_vector(h), PARTS)) == pytest.approx(as_vector(h), abs=1e-14)
    with pytest.raises(ValueError, match="windows weights"):
        Hyperparameters.of_parameters(named, (of_windows(0, Network(2)), of_position(0)))


def test_each_part_has_its_own_weights() -> None:
    two = (of_windows(0, NET), replace(of_windows(0, Network(1, seed=9)), name="others"))
    x = data(5).x
    one, other = Covariance(two, Hyperparameters.before_any_fit(two, NOISE)).scaled(x)
    assert one == pytest.approx(NET.seen(x[:, : NET.inputs], NET.first))
    assert np.abs(one - other).max() > 0.1


def test_a_part_that_does_not_fit_its_network_is_refused() -> None:
    with pytest.raises(ValueError, match="its network takes 1 and"):
        replace(PARTS[0], columns=(0, 5))


def test_nothing_of_it_needs_torch() -> None:
    made = "from agents.notebook import Chooser; import numpy as np; r = np.random.default_rng(0)"
    used = "c = Chooser(r.uniform(0, 9, (40, 2)), windows=r.normal(size=(40, 9, 9)), value_sd=0.1, "
    used += "features=['windows']); [c.ingest(c.suggest()[0].id, float(n)) for n in range(14)]"
    asked = "import sys; assert c.agent.model_revision > 0; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{made}; {used}; {asked}"], check=True, timeout=120)
