"""Hysteresis loops against numbers known by hand, differences, and the scatter of noisy loops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.loop_objectives import Loop, noise_sd
from agents.objective import Objective, ObjectiveConfig, UnreadableSpectrum
from agents.reading import Measured

REAL = Path(__file__).parents[2] / "../shared/data/pfm_pzt_pto/BEPS_PTO_50x50.h5"


def triangle(points: int = 64, cycles: int = 2, volts: float = 8.0, phase: float = 0.0) -> np.ndarray:
    turn = (np.arange(points * cycles) + 1 + phase) / points
    return volts * 2 / np.pi * np.arcsin(np.sin(2 * np.pi * turn))


def loop(
    *, up_v: float = 3.0, down_v: float = -2.0, width_v: float = 0.5, slope: float = 0.0, **sweep: Any
) -> tuple[np.ndarray, np.ndarray]:
    """A loop of height 20 around 2 that switches as the hyperbolic tangent, on a straight ``slope``."""
    bias_v = triangle(**sweep)
    points, phase = sweep.get("points", 64), sweep.get("phase", 0.0)
    is_rising = np.cos(2 * np.pi * (np.arange(bias_v.size) + 1 + phase) / points) >= 0
    middle = np.where(is_rising, up_v, down_v)
    return bias_v, 10 * np.tanh((bias_v - middle) / width_v) + slope * bias_v + 2.0


def read(bias_v: np.ndarray, response: np.ndarray, kind: str, **config: Any) -> tuple[float, float]:
    reading = Objective(ObjectiveConfig(kind=kind, **config)).read(response, bias_v=bias_v)
    return reading.value, reading.variance


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("loop_area", {}),
    *(
        (kind, {"side": side})
        for kind in ("coercive_bias", "nucleation_bias", "remanent_response")
        for side in ("positive", "negative", "mean", "half_width")
    ),
]


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_a_loop_says_what_it_was_drawn_with(slope):
    drawn = loop(width_v=0.5, slope=slope, points=256)
    assert read(*drawn, "loop_area")[0] == pytest.approx(20 * 5, rel=1e-3)
    said = {side: read(*drawn, "coercive_bias", side=side)[0] for side in ("positive", "negative")}
    assert said == pytest.approx({"positive": 3.0, "negative": -2.0}, abs=0.01)
    assert read(*drawn, "coercive_bias", side="mean")[0] == pytest.approx(0.5, abs=0.01)
    assert read(*drawn, "coercive_bias", side="half_width")[0] == pytest.approx(2.5, abs=0.01)
    # The steepest tangent of tanh(V / w) meets -1 at -w.
    assert read(*drawn, "nucleation_bias", side="positive")[0] == pytest.approx(2.5, abs=0.03)
    assert read(*drawn, "nucleation_bias", side="negative")[0] == pytest.approx(-1.5, abs=0.03)
    assert read(*drawn, "remanent_response", side="positive")[0] == pytest.approx(12.0, abs=0.02)
    assert read(*drawn, "remanent_response", side="mean")[0] == pytest.approx(2.0, abs=0.02)
    assert read(*drawn, "remanent_response", side="half_width")[0] == pytest.approx(10.0, abs=0.02)


def test_the_area_of_a_parallelogram_is_exact():
    bias_v = np.concatenate([np.arange(-4.0, 4.0, 0.5), np.arange(4.0, -4.0, -0.5)])
    response = np.concatenate([np.zeros(16), np.full(16, 3.0)])
    rng = np.random.default_rng(0)
    noise = 1e-9 * rng.normal(size=32)
    # Two sides of 8 V, and two that are slanted over one step of 0.5 V: (8 - 0.5) times 3.
    assert read(bias_v, response + noise, "loop_area")[0] == pytest.approx(22.5, rel=1e-6)


def test_a_loop_swept_the_other_way_or_with_a_falling_response_has_the_same_numbers():
    bias_v, response = loop()
    expected = {kind: read(bias_v, response, kind)[0] for kind in ("loop_area", "coercive_bias")}
    for kind, value in expected.items():
        assert read(bias_v, -response, kind)[0] == pytest.approx(value)  # of the other polarity
        started_down = np.roll(bias_v, 32), np.roll(response, 32)
        assert read(*started_down, kind)[0] == pytest.approx(value, rel=1e-9)


def test_only_the_last_cycle_counts():
    bias_v, response = loop(cycles=3)
    spoilt = response.copy()
    spoilt[:100] += np.linspace(30, 0, 100)  # the first cycle begins from something else
    assert read(bias_v, spoilt, "loop_area")[0] == pytest.approx(
        read(bias_v, response, "loop_area")[0], rel=1e-9
    )


def test_failed_points_are_left_out():
    rng = np.random.default_rng(1)
    bias_v, response = loop()
    noisy = response + rng.normal(0, 0.2, response.size)
    failed = noisy.copy()
    failed[[70, 90, 91, 120]] += [500.0, -900.0, 700.0, 200.0]
    for kind, side in KINDS:
        whole, without = (read(bias_v, one, kind, **side) for one in (noisy, failed))
        assert without[0] == pytest.approx(whole[0], abs=6 * (whole[1] + without[1]) ** 0.5)


@pytest.mark.parametrize("sd", [0.1, 0.5, 1.5])
def test_the_noise_is_taken_from_the_loop(sd):
    rng = np.random.default_rng(3)
    found = []
    for _ in range(50):
        bias_v, response = loop(phase=rng.uniform())
        found.append(noise_sd(response + sd * rng.normal(size=response.size), bias_v))
    assert 0.95 < np.mean(found) / sd < 1.2


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_the_variance_is_the_scatter_of_noisy_loops(kind, config):
    rng, z = np.random.default_rng(5), []
    objective = Objective(ObjectiveConfig(kind=kind, **config))
    bias_v, clean = loop(width_v=1.0, slope=0.3, points=192)
    truth = objective.read(clean, bias_v=bias_v).value
    for _ in range(300):
        reading = objective.read(clean + 0.6 * rng.normal(size=clean.size), bias_v=bias_v)
        z.append((reading.value - truth) / reading.variance**0.5)
    assert 0.9 < np.sqrt(np.mean(np.square(z))) < 1.1


@pytest.mark.parametrize("side", ["positive", "half_width"])
def test_where_all_switches_between_two_points_the_step_is_part_of_the_variance(side):
    rng, z = np.random.default_rng(7), []
    for _ in range(300):
        up_v, down_v = 3 + rng.uniform(-0.5, 0.5), -2 + rng.uniform(-0.5, 0.5)
        bias_v, clean = loop(up_v=up_v, down_v=down_v, width_v=0.02)
        value, variance = read(bias_v, clean + 0.2 * rng.normal(size=128), "coercive_bias", side=side)
        truth = up_v if side == "positive" else (up_v - down_v) / 2
        z.append((value - truth) / variance**0.5)
    assert 0.9 < np.sqrt(np.mean(np.square(z))) < 1.1


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_the_gradient_is_that_of_finite_differences(kind, config):
    reader = Objective(ObjectiveConfig(kind=kind, **config))._reader
    bias_v, clean = loop(width_v=1.0)
    whole = Loop.of(Measured(clean + 0.3 * np.random.default_rng(9).normal(size=clean.size), bias_v, True))
    gradient = reader.estimate(whole).gradient
    for point in range(0, 64, 5):
        step = np.zeros(64)
        step[point] = 1e-5
        moved = [
            reader.estimate(
                Loop(whole.bias_v, whole.response + sign * step, whole.rising, whole.falling, 0.3)
            )
            for sign in (1, -1)
        ]
        assert gradient[point] == pytest.approx((moved[0].value - moved[1].value) / 2e-5, abs=1e-6)


# Contact is lost for thirty points.
FAILING = np.where((np.arange(128) >= 70) & (np.arange(128) < 100), 900.0 * (-1.0) ** np.arange(128), 0.0)


@pytest.mark.parametrize(
    ("bias_v", "response", "kind", "message"),
    [
        (None, np.ones(64), "loop_area", "this is a spectrum of energies; an instrument says the bias"),
        (np.ones(64), np.ones(64), "loop_area", "the bias does not"),
        (triangle()[:8], np.ones(8), "loop_area", "takes 16 or more"),
        (triangle(), np.random.default_rng(1).normal(size=128), "coercive_bias", "nothing switches"),
        (np.tile([5.0, -5.0], 32), np.ones(64), "loop_area", "does not rise or fall for four points"),
        (np.full(64, np.nan), np.ones(64), "loop_area", "bias that is not finite"),
        (9 + triangle(), loop()[1], "remanent_response", "does not pass 0 V"),
        (triangle(), loop()[1] + FAILING, "loop_area", "points of the loop are far off their neighbours"),
    ],
)
def test_what_is_no_loop_is_told(bias_v, response, kind, message):
    with pytest.raises(UnreadableSpectrum, match=message):
        Objective(ObjectiveConfig(kind=kind)).read(response, bias_v=bias_v)


def test_a_spectrum_is_not_read_from_a_loop():
    bias_v, response = loop()
    with pytest.raises(UnreadableSpectrum, match="this is a loop of the tip's bias; choose loop_area"):
        Objective(ObjectiveConfig()).read(response, bias_v=bias_v)


def test_names_say_which_branch_and_unit():
    names = [Objective(ObjectiveConfig(kind=kind, **config)).name for kind, config in KINDS]
    assert names[:3] == ["loop area (pm·V)", "positive coercive bias (V)", "negative coercive bias (V)"]
    assert Objective(ObjectiveConfig(kind="coercive_bias")).name == "half width of the coercive bias (V)"
    assert Objective(ObjectiveConfig(kind="loop_area", response_unit="a.u.")).name == "loop area (a.u.·V)"


@pytest.mark.skipif(not REAL.exists(), reason="the real loops of ../shared/data are not here")
def test_real_loops_are_read():
    h5py = pytest.importorskip("h5py")
    with h5py.File(REAL) as file:
        bias_v = file["Channel_000/generic/Voltage"][()]
        loops = file["Channel_000/generic/generic"][::5, ::5].reshape(-1, bias_v.size)
    read_of = {}
    for kind in ("loop_area", "coercive_bias", "remanent_response"):
        readable = 0
        for one in loops:
            try:
                value, variance = read(bias_v, one, kind)
            except UnreadableSpectrum:
                continue
            assert variance > 0
            readable += kind != "coercive_bias" or 0 < value < 8.5
        read_of[kind] = readable
    assert read_of["loop_area"] >= 80
    assert read_of["coercive_bias"] >= 40
