"""The springs of the sheet: graphene's stiffness, and bonds that stay bonds."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.relaxation import ANGLE_EV, HARDENING_PER_A2, LEAST_DISTANCE_A, relax
from simulators.specimen import Specimen, SpecimenConfig, grow

PERFECT = SpecimenConfig(
    orientation_deg=0.0,
    three_fold_si_per_nm2=0.0,
    four_fold_si_per_nm2=0.0,
    vacancies_per_nm2=0.0,
    has_grain_boundary=False,
)
SHEET = grow(PERFECT, (-2.0, -2.0), (2.0, 2.0), np.random.default_rng(0))
EV_PER_A2 = 16.022  # in N/m
AREA_A2 = np.sqrt(3) / 4 * 2.46**2  # of an atom
BOND_EV_PER_A2 = 44.0


def inside(edge_nm: float) -> np.ndarray:
    return (np.abs(SHEET.positions_nm) < edge_nm).all(axis=1)


def relaxed(sheet: Specimen, positions_nm: np.ndarray, free: np.ndarray, **settings: float) -> np.ndarray:
    moved = positions_nm.copy()
    relax(moved, sheet.numbers, sheet.neighbours, np.flatnonzero(free), **settings)
    return moved


def energy_per_area(positions_nm: np.ndarray) -> float:
    """Energy of the inner atoms in eV/A2, from the formulas in the module's docstring, atom by atom."""
    places, total, inner = 10 * positions_nm, 0.0, np.flatnonzero(inside(1.2))
    for i in inner:
        apart = places[SHEET.neighbours[i, :3]] - places[i]
        lengths = np.linalg.norm(apart, axis=1)
        stretch = lengths - 2.46 / np.sqrt(3)
        total += BOND_EV_PER_A2 * (stretch**2 / 2 + HARDENING_PER_A2 * stretch**4 / 4).sum() / 2
        unit = apart / lengths[:, None]
        cosines = (unit * np.roll(unit, 1, axis=0)).sum(axis=1)
        total += ANGLE_EV / 2 * ((cosines + 0.5) ** 2).sum()
    return total / (len(inner) * AREA_A2)


def modulus(strain: np.ndarray) -> float:
    """Second derivative of the energy by a strain, the atoms within at rest, in N/m."""
    free = inside(1.6)
    energies = [
        energy_per_area(
            relaxed(
                SHEET, SHEET.positions_nm @ (np.eye(2) + e * strain), free, rounds=3000, force_ev_per_a=1e-6
            )
        )
        for e in (-1e-3, 0.0, 1e-3)
    ]
    return (energies[0] - 2 * energies[1] + energies[2]) / 1e-6 * EV_PER_A2


def test_the_sheet_is_as_stiff_as_graphene():
    """340 +- 40 N/m: Lee et al., Science 321, 385 (2008); Poisson ratio 0.165 is theirs, of graphite.

    Derived: biaxial strain e costs 2 B e^2, shear (e, -e) costs 2 G e^2; E = 4 B G / (B + G).
    """
    bulk, shear = modulus(np.eye(2)) / 4, modulus(np.diag([1.0, -1.0])) / 4

    assert 4 * bulk * shear / (bulk + shear) == pytest.approx(340, rel=0.03)
    assert (bulk - shear) / (bulk + shear) == pytest.approx(0.165, abs=0.02)


def test_the_perfect_sheet_is_at_rest():
    assert relaxed(SHEET, SHEET.positions_nm, inside(1.6)) == pytest.approx(SHEET.positions_nm, abs=1e-5)


def test_atoms_that_are_not_free_stay_and_the_others_come_back():
    rng, free = np.random.default_rng(1), inside(1.0)
    shaken = SHEET.positions_nm + 0.02 * rng.standard_normal(SHEET.positions_nm.shape) * free[:, None]
    back = relaxed(SHEET, shaken, free, force_ev_per_a=1e-4)

    assert (back[~free] == SHEET.positions_nm[~free]).all()
    assert back == pytest.approx(SHEET.positions_nm, abs=1e-4)


def test_atoms_that_are_not_bonded_are_pushed_apart():
    numbers, none = np.array([6, 6]), np.full((2, 4), -1)
    places = np.array([[0.0, 0.0], [0.12, 0.05]])
    relax(places, numbers, none, np.array([0, 1]), force_ev_per_a=1e-3)

    assert LEAST_DISTANCE_A - 1e-3 < 10 * np.linalg.norm(places[1] - places[0]) < LEAST_DISTANCE_A + 0.1
    assert places.mean(axis=0) == pytest.approx([0.06, 0.025])


def test_a_bond_to_silicon_is_longer():
    """1.76 A: Zhou et al., PRL 109, 206803 (2012)."""
    numbers, pair = np.array([6, 14]), np.array([[1, -1, -1, -1], [0, -1, -1, -1]])
    places = np.array([[0.0, 0.0], [0.142, 0.0]])
    relax(places, numbers, pair, np.array([1]), force_ev_per_a=1e-4)

    assert places[1] == pytest.approx([0.176, 0.0], abs=1e-5)
