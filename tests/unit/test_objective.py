"""Objectives against numbers known by hand and against the scatter of many noisy spectra."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.objective import Objective, ObjectiveConfig, UnreadableSpectrum

AXIS_EV = np.arange(256.0)


def read(spectrum: NDArray[np.floating], **config: object) -> tuple[float, float]:
    reading = Objective(ObjectiveConfig(**config)).read(spectrum, energy_offset_ev=0.0, energy_step_ev=1.0)
    return reading.value, reading.variance


def edge_spectrum(*, edge: float, scale: float = 3e7, exponent: float = 2.5) -> NDArray[np.float64]:
    """A power-law background with an edge of constant height from 99 eV."""
    background = scale * np.maximum(AXIS_EV, 5.0) ** -exponent
    return background + np.where(AXIS_EV >= 99, edge, 0.0)


def test_a_band_without_background_is_the_sum_of_its_channels():
    spectrum = np.zeros(256, dtype=np.float32)
    spectrum[99:120] = 2.0
    value, variance = read(spectrum, background_model="none", normalise="none")
    assert value == 42.0
    assert variance == 42.0  # Poisson: the variance of a sum of counts is the sum


def test_a_constant_background_is_taken_off_with_the_noise_it_brings():
    spectrum = np.full(256, 10.0, dtype=np.float32)
    spectrum[99:120] += 3.0
    value, variance = read(
        spectrum, background_model="constant", background_ev=(80.0, 97.0), normalise="none"
    )
    assert value == pytest.approx(63.0)
    assert variance == pytest.approx(21 * 13 + (21 / 17) ** 2 * 170)


def test_a_linear_background_is_continued_under_the_edge():
    spectrum = (500.0 - AXIS_EV).astype(np.float32)
    spectrum[99:120] += 4.0
    value, _ = read(spectrum, background_model="linear", normalise="none")
    assert value == pytest.approx(84.0, abs=1e-3)


def test_a_power_law_background_leaves_the_edge():
    with_edge, _ = read(edge_spectrum(edge=50.0), normalise="none")
    without, _ = read(edge_spectrum(edge=0.0), normalise="none")
    assert with_edge == pytest.approx(21 * 50.0, rel=1e-6)
    assert abs(without) < 1e-3  # of 4,960 counts under the edge


def test_normalising_makes_the_value_independent_of_the_exposure():
    once, once_variance = read(edge_spectrum(edge=50.0))
    thrice, thrice_variance = read(3 * edge_spectrum(edge=50.0))
    assert thrice == pytest.approx(once)
    assert thrice_variance == pytest.approx(once_variance / 3)
    ratio, _ = read(edge_spectrum(edge=50.0), normalise="reference", reference_ev=(10.0, 40.0))
    spectrum = edge_spectrum(edge=50.0)
    assert ratio == pytest.approx(once * spectrum.sum() / spectrum[10:40].sum())


@pytest.mark.parametrize("model", ["none", "constant", "linear", "power_law"])
@pytest.mark.parametrize("normalise", ["none", "total", "reference"])
def test_the_variance_of_a_band_is_the_scatter_of_noisy_spectra(model, normalise):
    rng = np.random.default_rng(3)
    noisy = rng.poisson(edge_spectrum(edge=80.0), size=(2000, 256))
    readings = np.array([read(one, background_model=model, normalise=normalise) for one in noisy])
    assert readings[:, 0].var() == pytest.approx(readings[:, 1].mean(), rel=0.12)


def test_a_peak_is_placed_between_channels():
    spectrum = 1000 * np.exp(-0.5 * ((AXIS_EV - 15.3) / 3.0) ** 2)
    value, _ = read(spectrum, kind="peak_position", window_ev=(5.0, 30.0), peak_half_width_ev=2.0)
    assert value == pytest.approx(15.3, abs=0.03)


def test_the_variance_of_a_peak_position_is_the_scatter_of_noisy_spectra():
    rng = np.random.default_rng(4)
    clean = 400 * np.exp(-0.5 * ((AXIS_EV - 15.0) / 4.0) ** 2) + 20
    config = {"kind": "peak_position", "window_ev": (5.0, 30.0), "peak_half_width_ev": 4.0}
    readings = np.array([read(one, **config) for one in rng.poisson(clean, size=(2000, 256))])
    assert readings[:, 0].mean() == pytest.approx(15.0, abs=0.02)
    # The search for the highest channel moves with the noise a little more than a fixed fit would.
    assert 0.8 < readings[:, 0].var() / readings[:, 1].mean() < 1.5


def test_a_gain_scales_the_variance_and_not_the_value():
    spectrum = edge_spectrum(edge=50.0)
    plain, gained = read(spectrum), read(spectrum, counts_per_electron=4.0)
    assert gained[0] == plain[0]
    assert gained[1] == pytest.approx(4 * plain[1])


def test_an_empty_band_is_as_uncertain_as_one_count():
    spectrum = np.zeros(256, dtype=np.float32)
    assert read(spectrum, background_model="none", normalise="none") == (0.0, 1.0)


@pytest.mark.parametrize(
    ("spectrum", "config", "message"),
    [
        (np.ones(100), {}, "objective.window_ev 99 to 120 eV is not within the spectrum, 0 to 99 eV"),
        (np.ones(256), {"background_ev": (-20.0, -1.0), "background_model": "linear"}, "background_ev -20"),
        (np.ones(256), {"window_ev": (99.2, 99.6)}, "holds no channel"),
        (np.full(256, np.nan), {}, "not finite"),
        (np.ones((2, 256)), {}, "1-D array"),
        (np.ones(0), {}, "not within the spectrum"),
        (np.zeros(256), {}, "no counts to normalise"),
        (np.zeros(256), {"kind": "peak_position", "window_ev": (5.0, 30.0)}, "no peak"),
        (AXIS_EV, {"kind": "peak_position", "window_ev": (5.0, 30.0)}, "no peak"),
        (np.ones(256), {"kind": "peak_position", "window_ev": (5.0, 9.0)}, "a peak takes 7"),
    ],
)
def test_an_unreadable_spectrum_is_refused_by_the_name_of_what_is_wrong(spectrum, config, message):
    with pytest.raises(UnreadableSpectrum, match=message):
        read(spectrum, **config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"window_ev": (120.0, 99.0)}, r"objective.window_ev is \(120.0, 99.0\)"),
        ({"background_ev": (0.0, 97.0)}, "a power law takes energies above 0 and starts before"),
        ({"peak_half_width_ev": 0.0}, "objective.peak_half_width_ev is 0"),
        ({"counts_per_electron": float("nan")}, "objective.counts_per_electron is nan"),
    ],
)
def test_a_wrong_objective_says_what_would_do(config, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**config)


def test_the_name_says_what_and_in_which_unit():
    assert Objective(ObjectiveConfig()).name == "Si L2,3 band integral (fraction of all counts)"
    peak = ObjectiveConfig(kind="peak_position", label="plasmon", window_ev=(5.0, 30.0))
    assert Objective(peak).name == "plasmon peak position (eV)"
    assert Objective(ObjectiveConfig(label="", normalise="none")).name == "99–120 eV band integral (counts)"


def test_a_value_that_was_read_elsewhere_is_taken_as_it_came():
    objective = Objective(ObjectiveConfig(kind="value"))
    reading = objective.read(np.array([-3.5, 0.25]), energy_offset_ev=0.0, energy_step_ev=1.0)
    assert (reading.value, reading.variance) == (-3.5, 0.0625)
    assert objective.name == "value"
    for wrong in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(UnreadableSpectrum, match="two numbers in place of a spectrum"):
            objective.read(np.array(wrong), energy_offset_ev=0.0, energy_step_ev=1.0)
