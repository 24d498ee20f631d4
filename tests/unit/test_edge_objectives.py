"""Ratios and compositions against numbers known by hand, differences and the scatter of noisy spectra."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from agents.objective import BandConfig, Objective, ObjectiveConfig, Reading, UnreadableSpectrum

REAL = Path(__file__).parents[2] / "../shared/data/eels_cuzn_si/CuZn_EELS.hspy"
AXIS_EV = 300.0 + 2.0 * np.arange(200)
ON_AXIS = {"energy_offset_ev": 300.0, "energy_step_ev": 2.0}
FIRST = BandConfig(name="In", window_ev=(440.0, 480.0), background_ev=(380.0, 436.0), sensitivity=2.0)
SECOND = BandConfig(name="O", window_ev=(540.0, 600.0), background_ev=(500.0, 530.0))


def config(kind: str, **changes: Any) -> ObjectiveConfig:
    return ObjectiveConfig(kind=kind, **({"bands": (FIRST, SECOND)} | changes))


def spectrum(first: float, second: float, base: float = 200.0) -> np.ndarray:
    """A background that falls with the third power, and two boxes that stand exactly in the windows."""
    made = base * (400.0 / AXIS_EV) ** 3
    made[(AXIS_EV >= 440) & (AXIS_EV < 480)] += first
    made[(AXIS_EV >= 540) & (AXIS_EV < 600)] += second
    return made


@pytest.mark.parametrize(("model", "base"), [("constant", 0.0), ("linear", 0.0), ("power_law", 200.0)])
def test_a_ratio_and_a_composition_are_those_known_by_hand(model, base):
    one = 100 * spectrum(60.0, 20.0, base)  # many counts, so that they stand out
    # 20 channels of 60 over a sensitivity of 2 are 600; 30 channels of 20 are 600 too.
    ratio = Objective(config("peak_ratio", background_model=model)).read(one, **ON_AXIS)
    assert ratio.value == pytest.approx(1.0, rel=1e-9)
    fraction = Objective(config("composition", background_model=model)).read(one, **ON_AXIS)
    assert fraction.value == pytest.approx(0.5, rel=1e-9)


def test_the_variance_of_a_ratio_without_background_is_that_of_two_poisson_numbers():
    bands = (BandConfig(name="a", window_ev=(440.0, 480.0)), BandConfig(name="b", window_ev=(540.0, 600.0)))
    reading = Objective(config("peak_ratio", bands=bands)).read(spectrum(100.0, 50.0, base=0.0), **ON_AXIS)
    assert reading.value == pytest.approx(2000 / 1500)
    assert reading.variance == pytest.approx((2000 / 1500) ** 2 * (1 / 2000 + 1 / 1500))


@pytest.mark.parametrize("kind", ["peak_ratio", "composition"])
def test_the_gradient_is_that_of_finite_differences(kind):
    objective = Objective(config(kind))
    rng = np.random.default_rng(5)
    one = spectrum(300.0, 200.0) + rng.uniform(0, 20, AXIS_EV.size)
    gradient = objective._reader.estimate(one, AXIS_EV).gradient
    for channel in rng.choice(np.flatnonzero(gradient), 12, replace=False):
        step = np.zeros_like(one)
        step[channel] = 1e-3
        up, down = (objective.read(one + sign * step, **ON_AXIS).value for sign in (1, -1))
        assert gradient[channel] == pytest.approx((up - down) / 2e-3, rel=1e-5)


@pytest.mark.parametrize("kind", ["peak_ratio", "composition"])
@pytest.mark.parametrize("seed", [1, 3, 5])
def test_the_variance_is_the_scatter_of_noisy_spectra(kind, seed):
    objective, clean = Objective(config(kind)), spectrum(600.0, 600.0, base=2000.0)
    truth = objective.read(clean, **ON_AXIS).value
    noisy = np.random.default_rng(seed).poisson(clean, (600, clean.size)).astype(np.float32)
    readings = [objective.read(one, **ON_AXIS) for one in noisy]
    z = np.array([(one.value - truth) / one.variance**0.5 for one in readings])
    assert 0.9 < np.sqrt((z**2).mean()) < 1.1


def test_a_composition_does_not_depend_on_the_exposure():
    objective = Objective(config("composition"))
    once, thrice = (objective.read(times * spectrum(60.0, 90.0), **ON_AXIS) for times in (1, 3))
    assert thrice.value == pytest.approx(once.value)
    assert thrice.variance == pytest.approx(once.variance / 3)


def test_what_has_nothing_to_divide_by_is_unreadable():
    noise = np.random.default_rng(1).poisson(spectrum(0.0, 0.0))
    for kind, who in (
        ("peak_ratio", "bands.O.window_ev has"),
        ("composition", "objective.bands together have"),
    ):
        with pytest.raises(
            UnreadableSpectrum, match=rf"{who} .* above the background, too little to divide by"
        ):
            Objective(config(kind)).read(noise, **ON_AXIS)


def test_a_window_off_the_axis_is_told_with_its_band():
    with pytest.raises(UnreadableSpectrum, match=r"objective.bands.In.window_ev 440 to 480 eV is not within"):
        Objective(config("composition")).read(np.ones(50), energy_offset_ev=0.0, energy_step_ev=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": (FIRST,)}, "has 1 bands; kind 'composition' takes two or more"),
        ({"bands": (FIRST, FIRST)}, "a name of its own for each"),
        (
            {"bands": (FIRST, BandConfig(name="x", window_ev=(2.0, 1.0)))},
            r"bands.x.window_ev is \(2.0, 1.0\)",
        ),
        (
            {"bands": (FIRST, BandConfig(name="x", window_ev=(1.0, 2.0), sensitivity=0.0))},
            "x.sensitivity is 0",
        ),
        ({"window_ev": (1.0, 2.0)}, "objective.window_ev says nothing to the kind 'composition'"),
        ({"side": "mean"}, "objective.side says nothing to the kind 'composition'; it takes label, bands"),
    ],
)
def test_a_wrong_configuration_says_what_would_do(changes, message):
    with pytest.raises(ValueError, match=message):
        config("composition", **changes)


def test_names_say_the_bands():
    assert Objective(config("composition")).name == "In composition (atomic fraction)"
    assert Objective(config("peak_ratio")).name == "In/O peak ratio (ratio)"
    assert Objective(config("peak_ratio", label="ELNES")).name == "ELNES peak ratio (ratio)"


@pytest.mark.skipif(not REAL.exists(), reason="the real spectra of ../shared/data are not here")
def test_real_brass_is_read_as_copper_and_zinc_where_it_is():
    with h5py.File(REAL) as file:
        spectra = file["Experiments/EELS Spectrum Image/data"][::5, ::5].reshape(-1, 162)
    zinc = BandConfig(name="Zn", window_ev=(1020.0, 1100.0), background_ev=(960.0, 1012.0))
    copper = BandConfig(name="Cu", window_ev=(931.0, 1011.0), background_ev=(820.0, 924.0))
    objective = Objective(config("composition", bands=(zinc, copper)))
    readings = [read_or_reason(objective, one.astype(np.float32)) for one in spectra]
    values = [one.value for one in readings if not isinstance(one, str)]
    assert {one for one in readings if isinstance(one, str)} <= {"nothing to divide by"}  # beside them
    assert len(values) > 20
    assert all(-0.3 < value < 1.3 for value in values)


def read_or_reason(objective: Objective, counts: np.ndarray) -> Reading | str:
    try:
        return objective.read(counts, energy_offset_ev=700.0, energy_step_ev=8.0)
    except UnreadableSpectrum as error:
        return error.reason
