"""The sheet: bonds, defects and grains are what the configuration says."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import graphene

from simulators.specimen import (
    BESIDE_VACANCY,
    FOUR_FOLD_SI,
    IN_ODD_RING,
    SILICON,
    SITE_NAMES,
    THREE_FOLD_SI,
    Specimen,
    SpecimenConfig,
    grow,
)

PERFECT = SpecimenConfig(
    orientation_deg=0.0,
    three_fold_si_per_nm2=0.0,
    four_fold_si_per_nm2=0.0,
    vacancies_per_nm2=0.0,
    has_grain_boundary=False,
)
LOWER, UPPER = (-3.0, -3.0), (3.0, 3.0)


def sheet(config: SpecimenConfig, seed: int = 1) -> Specimen:
    return grow(config, LOWER, UPPER, np.random.default_rng(seed))


def inside(specimen: Specimen, margin_nm: float = 0.6) -> np.ndarray:
    return np.all(np.abs(specimen.positions_nm) < 3.0 - margin_nm, axis=1)


def bond_lengths(specimen: Specimen, atoms: np.ndarray) -> np.ndarray:
    """Lengths of the bonds of some atoms, NaN where there is none, shape (n, 4)."""
    ends = specimen.neighbours[atoms]
    lengths = np.linalg.norm(specimen.positions_nm[ends] - specimen.positions_nm[atoms][:, None], axis=2)
    return np.where(ends >= 0, lengths, np.nan)


def test_a_perfect_sheet_is_the_graphene_of_ase():
    specimen = sheet(PERFECT)
    cell = graphene(a=2.46, size=(40, 40, 1))
    reference = cell.positions[:, :2] / 10
    one = specimen.positions_nm[np.argmin(np.linalg.norm(specimen.positions_nm, axis=1))]
    # Shift ASE's sheet so that one of its atoms, of either sublattice, lies on ours.
    middle = np.argsort(np.linalg.norm(reference - reference.mean(axis=0), axis=1))[:6]
    ours = specimen.positions_nm[inside(specimen)]
    worst = []
    for start in middle:
        shifted = reference - reference[start] + one
        distances = np.linalg.norm(ours[:, None] - shifted[None], axis=2).min(axis=1)
        worst.append(distances.max())

    assert min(worst) < 1e-6
    assert len(ours) == pytest.approx(4.8**2 * 38.17, rel=0.03)


def test_each_silicon_has_the_neighbours_and_the_bonds_of_its_kind():
    specimen = sheet(SpecimenConfig(has_grain_boundary=False))
    three = np.flatnonzero(specimen.site_class == THREE_FOLD_SI)
    four = np.flatnonzero(specimen.site_class == FOUR_FOLD_SI)
    lengths_three, lengths_four = bond_lengths(specimen, three), bond_lengths(specimen, four)

    assert len(three) > 3
    assert len(four) > 2
    assert set(specimen.numbers[np.r_[three, four]]) == {SILICON}
    assert np.count_nonzero(specimen.numbers == SILICON) == len(three) + len(four)
    assert np.isfinite(lengths_three).sum(axis=1).tolist() == [3] * len(three)
    assert np.isfinite(lengths_four).sum(axis=1).tolist() == [4] * len(four)
    assert np.nanmin(lengths_three) > 0.168
    assert np.nanmax(lengths_three) < 0.178
    assert np.nanmin(lengths_four) > 0.170
    assert np.nanmax(lengths_four) < 0.190


def test_a_vacancy_leaves_three_carbons_with_two_bonds():
    config = SpecimenConfig(
        three_fold_si_per_nm2=0, four_fold_si_per_nm2=0, vacancies_per_nm2=0.2, has_grain_boundary=False
    )
    specimen = sheet(config)
    beside = np.flatnonzero(specimen.site_class == BESIDE_VACANCY)
    bonds = np.isfinite(bond_lengths(specimen, beside)).sum(axis=1)
    perfect = np.count_nonzero(inside(sheet(PERFECT), 0.35))

    assert len(beside) == 3 * round(0.2 * perfect / 38.17)
    assert set(bonds.tolist()) == {2}


def test_a_grain_boundary_is_made_of_rings_of_five_and_seven_without_broken_bonds():
    config = SpecimenConfig(three_fold_si_per_nm2=0, four_fold_si_per_nm2=0, vacancies_per_nm2=0)
    specimen = sheet(config)
    inner = np.flatnonzero(inside(specimen))
    lengths = bond_lengths(specimen, inner)

    assert np.count_nonzero(specimen.site_class[inner] == IN_ODD_RING) > 20
    assert set(np.isfinite(lengths).sum(axis=1).tolist()) == {3}
    assert np.nanmin(lengths) > 0.13
    assert np.nanmax(lengths) < 0.155


def test_the_two_grains_are_tilted_as_configured():
    config = SpecimenConfig(
        three_fold_si_per_nm2=0, four_fold_si_per_nm2=0, vacancies_per_nm2=0, tilt_deg=10.0
    )
    specimen = grow(config, (-5.0, -5.0), (5.0, 5.0), np.random.default_rng(0))
    normal = np.array([np.cos(np.deg2rad(205)), np.sin(np.deg2rad(205))])
    distance = specimen.positions_nm @ normal - config.boundary_distance_nm

    def orientation_deg(atoms: np.ndarray) -> float:
        ends = specimen.neighbours[atoms, :3]
        apart = specimen.positions_nm[ends] - specimen.positions_nm[atoms][:, None]
        angles = np.arctan2(apart[..., 1], apart[..., 0])
        return float(np.rad2deg(np.angle(np.exp(6j * angles).mean()) / 6))

    is_inner = np.all(np.abs(specimen.positions_nm) < 4.2, axis=1)
    first = orientation_deg(np.flatnonzero(is_inner & (distance < -1.5)))
    second = orientation_deg(np.flatnonzero(is_inner & (distance > 1.5)))

    assert (second - first) % 60 == pytest.approx(10.0, abs=1.0)
    assert (first - config.orientation_deg) % 60 == pytest.approx(30.0, abs=0.5)  # bonds: 30° off the zigzag


def test_the_same_seed_gives_the_same_sheet_and_another_seed_another():
    one, same, other = (sheet(SpecimenConfig(), seed) for seed in (3, 3, 4))

    assert np.array_equal(one.positions_nm, same.positions_nm)
    assert np.array_equal(one.numbers, same.numbers)
    assert not np.array_equal(np.flatnonzero(one.numbers == 14), np.flatnonzero(other.numbers == 14))


def test_every_class_of_site_has_a_name_and_occurs():
    counts = np.bincount(sheet(SpecimenConfig()).site_class, minlength=len(SITE_NAMES))

    assert len(counts) == len(SITE_NAMES)
    assert counts.min() > 0


def test_defects_that_do_not_fit_are_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"do not fit 5 nm apart.*lower the densities"):
        sheet(SpecimenConfig(defect_distance_nm=5.0))


@pytest.mark.parametrize(
    ("field", "value", "takes"),
    [
        ("three_fold_si_per_nm2", -0.1, "0 to 1"),
        ("defect_distance_nm", float("nan"), "0.5 to 5"),
        ("tilt_deg", 45.0, "-30 to 30"),
        ("orientation_deg", float("inf"), "a finite number"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value, takes):
    with pytest.raises(ValueError, match=f"specimen.{field} is {value}; it takes {takes}"):
        SpecimenConfig(**{field: value})


def test_a_sheet_of_no_size_is_refused():
    with pytest.raises(ValueError, match="it takes 1 to 100 nm"):
        grow(PERFECT, (0.0, 0.0), (0.5, 3.0), np.random.default_rng(0))
