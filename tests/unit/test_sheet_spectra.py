"""Spectra: the silicon edge where silicon is, the plasmon where the sheet is, counts with shot noise."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.sheet_spectra import SheetSpectraConfig, clean_spectra, spectrum
from simulators.specimen import FOUR_FOLD_SI, SITE_NAMES, THREE_FOLD_SI, Specimen, SpecimenConfig, grow

CONFIG = SheetSpectraConfig()
LOSS_EV = CONFIG.energy_loss_ev
ELECTRONS = 4e7


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return grow(SpecimenConfig(), (-4.0, -4.0), (4.0, 4.0), np.random.default_rng(1))


def sites(specimen: Specimen, kind: int) -> np.ndarray:
    is_inside = np.all(np.abs(specimen.positions_nm) < 3.3, axis=1)
    found = specimen.positions_nm[is_inside & (specimen.site_class == kind)]
    assert len(found) > 1
    return found


def silicon_signal(expected: np.ndarray) -> np.ndarray:
    """Counts of 99 to 119 eV above a power law through the channels before the edge."""
    before, band = (LOSS_EV > 75) & (LOSS_EV < 98), (LOSS_EV >= 99) & (LOSS_EV < 119)
    signals = []
    for counts in expected:
        slope, level = np.polyfit(np.log(LOSS_EV[before]), np.log(counts[before]), 1)
        signals.append((counts - np.exp(level) * LOSS_EV**slope)[band].sum())
    return np.array(signals)


def plasmon_ev(expected: np.ndarray) -> np.ndarray:
    band = (LOSS_EV > 9) & (LOSS_EV < 22)
    return (expected[:, band] * LOSS_EV[band]).sum(axis=1) / expected[:, band].sum(axis=1)


def clean(specimen: Specimen, positions: np.ndarray) -> np.ndarray:
    return clean_spectra(specimen, positions, ELECTRONS, CONFIG)


def test_the_silicon_edge_is_on_silicon_and_not_on_carbon(specimen):
    on = silicon_signal(clean(specimen, sites(specimen, THREE_FOLD_SI)))
    off = silicon_signal(clean(specimen, sites(specimen, 0)))

    assert on.min() > 1000
    assert np.abs(np.median(off)) < 0.01 * on.min()


def test_the_highest_silicon_signal_is_at_four_fold_sites(specimen):
    by_kind = [
        silicon_signal(clean(specimen, sites(specimen, kind))).max() for kind in range(len(SITE_NAMES))
    ]

    assert np.argmax(by_kind) == FOUR_FOLD_SI
    assert by_kind[THREE_FOLD_SI] < 0.9 * by_kind[FOUR_FOLD_SI]


def test_the_edge_fades_as_the_beam_leaves_the_silicon(specimen):
    start = sites(specimen, THREE_FOLD_SI)[0]
    signals = silicon_signal(clean(specimen, start + np.array([[0, 0], [0.05, 0], [0.1, 0], [0.2, 0]])))

    assert np.all(np.diff(signals) < 0)
    assert signals[1] / signals[0] == pytest.approx(
        np.exp(-(0.05**2) / (2 * CONFIG.edge_delocalisation_nm**2)), rel=0.02
    )


def test_the_plasmon_shifts_with_the_local_structure(specimen):
    on_carbon = np.median(plasmon_ev(clean(specimen, sites(specimen, 0))))
    on_four = plasmon_ev(clean(specimen, sites(specimen, FOUR_FOLD_SI)))

    assert np.all(on_four < on_carbon - 0.15)


def test_between_the_atoms_the_plasmon_is_that_of_the_sheet(specimen):
    carbon = sites(specimen, 0)[:50]
    between = clean(specimen, carbon + np.array([0.05, 0.03]))
    on = clean(specimen, carbon)

    peak = np.argmin(np.abs(LOSS_EV - 15.0))
    assert np.all(np.isfinite(between))
    assert np.median(between[:, peak] / on[:, peak]) == pytest.approx(1.0, abs=0.05)


def test_off_the_sheet_only_the_zero_loss_tail_is_left(specimen):
    (expected,) = clean(specimen, np.array([[50.0, 0.0]]))

    np.testing.assert_allclose(
        expected, ELECTRONS * CONFIG.zero_loss_tail_per_ev * (5.0 / LOSS_EV) ** 3, rtol=1e-12
    )


def test_counts_grow_with_the_exposure_and_the_channel_width(specimen):
    here = sites(specimen, THREE_FOLD_SI)[:1]
    wide = SheetSpectraConfig(energy_step_ev=2.0, channels=128)

    np.testing.assert_allclose(
        clean_spectra(specimen, here, 2 * ELECTRONS, CONFIG), 2 * clean(specimen, here)
    )
    np.testing.assert_allclose(
        clean_spectra(specimen, here, ELECTRONS, wide), 2 * clean(specimen, here)[:, ::2], rtol=1e-12
    )


def test_a_measured_spectrum_has_the_mean_and_the_variance_of_counts(specimen):
    here = sites(specimen, FOUR_FOLD_SI)[0]
    rng = np.random.default_rng(2)
    taken = np.array([spectrum(specimen, tuple(here), 1e6, CONFIG, rng) for _ in range(400)])
    expected = clean_spectra(specimen, here, 1e6, CONFIG)[0]

    assert taken.dtype == np.float32
    assert np.all(taken == np.rint(taken))
    # 256 channels: chi-squared per channel of the means, and the ratio of variance to mean.
    assert np.mean((taken.mean(axis=0) - expected) ** 2 / (expected / 400)) == pytest.approx(1.0, abs=0.3)
    assert np.median(taken.var(axis=0) / expected) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("field", "value", "takes"),
    [
        ("channels", 3, "16 to 8192"),
        ("energy_offset_ev", 0.0, "0.5 to 1000"),
        ("energy_step_ev", 0.0, "0.001 to 20"),
        ("si_edge_per_ev", -1.0, "0 to 0.1"),
        ("edge_delocalisation_nm", 2.0, "0.01 to 1"),
    ],
)
def test_an_impossible_spectrometer_is_refused_by_name(field, value, takes):
    with pytest.raises(ValueError, match=f"eels.{field} is {value}; it takes {takes}"):
        SheetSpectraConfig(**{field: value})
