"""Core losses: strengths, cross sections and what composition can be read from them."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.core_loss import EDGES, core_spectra, cross_section_nm2_per_ev, strength_per_ev
from simulators.plasmons import Beam

BEAM = Beam(60.0)


@pytest.mark.parametrize("element", sorted(EDGES))
def test_an_edge_holds_its_whole_strength_and_nothing_before_its_onset(element):
    edge = EDGES[element]
    loss_ev = np.geomspace(edge.onset_ev, 1e6, 400_001)
    strength = strength_per_ev(edge, loss_ev)

    assert np.trapezoid(strength, loss_ev) == pytest.approx(edge.strength, rel=1e-3)
    assert not strength_per_ev(edge, np.linspace(150, edge.onset_ev - 0.1, 50)).any()


def test_indium_has_its_maximum_after_its_onset_and_oxygen_at_it():
    loss_ev = np.arange(400.0, 800.0)
    indium, oxygen = (loss_ev[strength_per_ev(EDGES[e], loss_ev).argmax()] for e in ("In", "O"))

    assert indium == pytest.approx(443 + 40, abs=1)
    assert oxygen == 532


def test_the_oxygen_edge_has_the_cross_section_of_the_dipole_approximation():
    """By hand for 532 to 632 eV, 100 kV and 10 mrad, all of the strength there lost at 580 eV.

    4 pi a0^2 (R/T) (R/E) f ln(1 + (beta/theta_E)^2) with T = 76.8 keV, f = 1.80 (1 - (532/632)^2) and
    theta_E = 3.16 mrad: 1.84e-7 nm^2.
    """
    loss_ev = np.arange(532.0, 632.0)
    total = cross_section_nm2_per_ev(EDGES["O"], loss_ev, Beam(100.0, 10.0)).sum()

    assert total == pytest.approx(1.84e-7, rel=0.04)


def test_a_wider_collection_angle_takes_in_more():
    loss_ev = np.array([600.0])
    narrow, wide = (cross_section_nm2_per_ev(EDGES["O"], loss_ev, Beam(60.0, mrad)) for mrad in (10, 40))

    assert wide > 1.5 * narrow > 0


def test_the_background_is_a_power_law_and_goes_with_the_thickness():
    loss_ev = np.arange(200.0, 400.0)
    thin, thick = core_spectra({}, np.array([5.0, 10.0]), loss_ev, BEAM, 1e-6)

    assert np.polyfit(np.log(loss_ev), np.log(thin), 1)[0] == pytest.approx(-3.0, abs=1e-6)
    np.testing.assert_allclose(thick, 2 * thin)
    assert not core_spectra({}, np.array([5.0]), np.array([100.0]), BEAM, 1e-6).any()


def test_the_composition_can_be_fitted():
    loss_ev = np.arange(400.0, 900.0)
    atoms = {"In": np.array([370.0]), "O": np.array([555.0]), "Sn": np.array([11.0])}
    spectrum = core_spectra(atoms, np.array([12.0]), loss_ev, BEAM, 1e-6)[0]
    parts = [cross_section_nm2_per_ev(EDGES[e], loss_ev, BEAM) for e in atoms] + [loss_ev**-3.0]
    scale = np.array([part.max() for part in parts])
    fitted = np.linalg.lstsq((np.array(parts) / scale[:, None]).T, spectrum, rcond=None)[0] / scale

    np.testing.assert_allclose(fitted[:3], [370, 555, 11], rtol=1e-6)
