"""Landau theory on a grid: orders, walls and kinetics against what is known exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import fft, optimize

from simulators.landau import (
    ANTIFERROELECTRIC,
    FERRIELECTRIC,
    FERROELECTRIC,
    Landau,
    LandauField,
    cuinp2s6,
    depolarising,
    electrostriction_q33,
    phases,
    sublattices,
)

# One order alone: P does nothing (polar_2 above 0, no coupling), A has two wells.
ANTIPOLAR_ONLY = Landau(polar_2=1.0, antipolar_2=-1.0, coupling=0.0, antipolar_gradient=4.0)


def line(energy: Landau, cells: int, **fields: Any) -> LandauField:
    """A field that changes along one axis only, in double precision."""
    return LandauField(energy, (1, cells), dtype=np.float64, **fields)


def places(cells: int, cell: float) -> np.ndarray:
    """Distance from the middle of each cell of a line."""
    return (np.arange(cells) - cells / 2 + 0.5) * cell


def relax(field: LandauField, steps: int, strength: float = 0.0) -> LandauField:
    for _ in range(steps):
        field.step(strength)
    return field


def stripes(cells: int, cell: float) -> np.ndarray:
    """One domain in the middle of a line and the other around it: two walls."""
    return np.where(np.abs(places(cells, cell)) < cells * cell / 4, 1.0, -1.0)[None]


# -- the orders --------------------------------------------------------------------------------


def test_the_four_sites_and_the_two_modes_are_the_same_state():
    polar, antipolar = np.array([0.6, 1.0]), np.array([0.2, -1.0])
    sites = sublattices(polar, antipolar)

    assert sites.shape == (4, 2)
    np.testing.assert_allclose(sites.sum(axis=0) / 2, polar)
    np.testing.assert_allclose((sites[0] + sites[1] - sites[2] - sites[3]) / 2, antipolar)


def test_sites_that_know_nothing_of_each_other_have_no_ferrielectric_order():
    """Derived: the sum of p^4 over the sites is (P^4 + 6 P^2 A^2 + A^4) / 4, so eta = 3 b."""
    polar, antipolar = np.random.default_rng(0).standard_normal((2, 50))
    quartic = Landau(polar_2=0.0, antipolar_2=0.0, coupling=3.0)
    np.testing.assert_allclose(
        (sublattices(polar, antipolar) ** 4).sum(axis=0), quartic.density(polar, antipolar), rtol=1e-12
    )

    for ratio in (0.5, 0.9, 1.0, 1.1, 2.0):
        local = Landau(polar_2=-1.0, antipolar_2=-ratio, coupling=3.0)
        assert "FI" not in {phase.order for phase in phases(local)}


@pytest.mark.parametrize(
    ("energy", "order"), [(FERRIELECTRIC, "FI"), (FERROELECTRIC, "FE"), (ANTIFERROELECTRIC, "AFE")]
)
def test_each_working_set_has_its_order_and_no_other(energy, order):
    assert [phase.order for phase in phases(energy)] == [order]


def test_the_ferrielectric_order_is_where_the_quartic_formula_has_it():
    """Derived: P^2 = (eta aA - aP bA) / (bP bA - eta^2), and A^2 with P and A exchanged."""
    e = FERRIELECTRIC
    (phase,) = phases(e)
    below = e.polar_4 * e.antipolar_4 - e.coupling**2

    assert phase.polar**2 == pytest.approx((e.coupling * e.antipolar_2 - e.polar_2 * e.antipolar_4) / below)
    assert phase.antipolar**2 == pytest.approx((e.coupling * e.polar_2 - e.antipolar_2 * e.polar_4) / below)


def test_a_field_comes_to_rest_in_the_order_that_the_energy_says():
    (phase,) = phases(FERRIELECTRIC)
    field = LandauField(FERRIELECTRIC, (8, 8), dtype=np.float64)
    field.put(np.full((8, 8), 0.3), np.full((8, 8), -0.2))
    relax(field, 400)

    assert field.polar == pytest.approx(phase.polar, abs=1e-4)
    assert field.antipolar == pytest.approx(-phase.antipolar, abs=1e-4)
    assert field.energy() / 64 == pytest.approx(phase.energy, rel=1e-6)


def test_with_strong_coupling_polar_and_antipolar_order_exclude_each_other_and_balance_where_derived():
    """Derived: for bP bA < eta^2 a first-order change, at aP^2 / bP = aA^2 / bA."""
    balanced = Landau(polar_2=-1.0, antipolar_2=-math.sqrt(1.5), antipolar_4=1.5, coupling=2.0)
    first, second = phases(balanced)
    assert {first.order, second.order} == {"FE", "AFE"}
    assert first.energy == pytest.approx(second.energy)

    assert phases(replace(balanced, polar_2=-1.05))[0].order == "FE"
    assert phases(replace(balanced, polar_2=-0.95))[0].order == "AFE"


@pytest.mark.parametrize("seed", range(4))
def test_every_order_found_is_a_minimum_and_the_deepest_is_the_global_one(seed):
    rng = np.random.default_rng(seed)
    a, c, b, d, eta = rng.uniform([-2, -2, -2, 0.3, -0.3], [0.5, 1, 0.5, 1.5, 2])
    energy = Landau(
        polar_2=a, polar_4=c, polar_6=-0.5, polar_8=1.0, antipolar_2=b, antipolar_4=d, coupling=eta
    )
    energy = replace(energy, antipolar_6=0.2)
    found = phases(energy)

    best = optimize.brute(lambda u: float(energy.density(u[0], u[1])), ((0, 3), (0, 3)), Ns=60)
    assert found[0].energy == pytest.approx(float(energy.density(best[0], best[1])), abs=1e-6)
    for phase in found:
        for step in rng.normal(0, 1e-3, (20, 2)):
            around = energy.density(np.array(phase.polar + step[0]), np.array(phase.antipolar + step[1]))
            assert around >= phase.energy - 1e-12


def test_cuinp2s6_has_three_wells_near_its_transition_as_its_coefficients_say():
    """Consistency of the set of arXiv:2103.14716 as recalled: 0 and about 3.2 uC/cm^2 at 293 K."""
    polar, none = phases(cuinp2s6(293.0))
    assert (polar.order, none.order) == ("FE", "PE")
    assert polar.polar == pytest.approx(0.0316, abs=1e-4)
    assert [phase.order for phase in phases(cuinp2s6(250.0))] == ["FE"]
    assert electrostriction_q33(293.0) == pytest.approx(-2.5455)


def test_other_units_change_the_numbers_and_not_the_film():
    si = cuinp2s6(293.0)
    unit = 0.0316
    scaled = si.scaled(unit, si.polar_4 * unit**4, 1e-9)

    assert scaled.polar_4 == pytest.approx(1.0)
    for one, other in zip(phases(si), phases(scaled), strict=True):
        assert one.polar == pytest.approx(other.polar * unit, rel=1e-6)
        assert one.energy == pytest.approx(other.energy * si.polar_4 * unit**4, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"polar_2": math.nan}, "landau.polar_2 is nan; it takes a finite number"),
        ({"polar_gradient": 0.0}, "landau.polar_gradient is 0.0; it takes a number above 0"),
        ({"polar_4": -1.0}, "landau.polar_4 and above are .* no bottom"),
        ({"coupling": -1.5}, "landau.coupling is -1.5: the energy has no bottom; it takes above -1"),
    ],
)
def test_coefficients_without_sense_are_refused_in_one_line(fields, why):
    with pytest.raises(ValueError, match=why):
        Landau(**fields)


# -- the walls ---------------------------------------------------------------------------------


def test_a_wall_of_one_order_is_the_exact_hyperbolic_tangent():
    """Exact: A_s tanh(x / (sqrt 2 xi)), xi = sqrt(g / |a|), energy (2 sqrt 2 / 3) sqrt(g) |a|^1.5 / b."""
    cell, cells = 0.5, 256
    field = line(ANTIPOLAR_ONLY, cells, cell=cell, time_step=0.2, stabiliser=2.0)
    field.put(np.zeros((1, cells)), stripes(cells, cell))
    relax(field, 2500)

    x = places(cells, cell) + cells * cell / 4
    near = np.abs(x) < cells * cell / 8
    exact = np.tanh(x[near] / math.sqrt(2 * 4.0))
    assert np.abs(field.antipolar[0, near] - exact).max() < 1e-6

    walls = (field.energy() - cells * cell**2 * -0.25) / (2 * cell)
    assert walls == pytest.approx(2 * math.sqrt(2) / 3 * math.sqrt(4.0), rel=1e-4)


@pytest.mark.parametrize("kappa", [0.5, 0.7])
def test_a_bright_wall_is_the_exact_one(kappa):
    """Exact (Montonen, Sarker, Trullinger, Bishop): A = tanh kx, P = sqrt(1 - k^2) sech kx."""
    cell, cells = 0.25, 256
    energy = Landau(
        polar_2=kappa**2 - 2,
        polar_4=2.0,
        antipolar_2=-2.0,
        antipolar_4=2.0,
        coupling=2.0,
        polar_gradient=1.0,
        antipolar_gradient=1.0,
    )
    field = line(energy, cells, cell=cell, time_step=0.2, stabiliser=4.0)
    seeded = 0.3 * np.exp(-np.abs(np.abs(places(cells, cell)) - cells * cell / 4))[None]
    field.put(seeded, stripes(cells, cell))
    relax(field, 2500)

    x = places(cells, cell) + cells * cell / 4
    near = np.abs(x) < cells * cell / 8
    core = math.sqrt(1 - kappa**2) / np.cosh(kappa * x[near])
    assert np.abs(field.antipolar[0, near] - np.tanh(kappa * x[near])).max() < 1e-3
    assert np.abs(np.abs(field.polar[0, near]) - core).max() < 1e-3


def test_ferrielectric_walls_of_the_antipolar_order_are_bright_and_of_the_polar_one_dark():
    """At least 1.05 times and at most 0.2 times the domain: |P| as it is, no tip over it."""
    cells = 256
    (phase,) = phases(FERRIELECTRIC)
    ones = np.full((1, cells), 0.8)
    antipolar_walls, polar_walls = (line(FERRIELECTRIC, cells) for _ in range(2))
    antipolar_walls.put(ones, stripes(cells, 1.0))
    polar_walls.put(stripes(cells, 1.0), ones)
    bright = np.abs(relax(antipolar_walls, 1500).polar)
    dark = np.abs(relax(polar_walls, 1500).polar)

    assert bright[0, cells // 2] == pytest.approx(phase.polar, rel=1e-3)
    assert bright.max() > 1.05 * phase.polar
    assert dark.min() < 0.2 * phase.polar


def test_an_antipolar_wall_near_polar_order_has_a_polar_core_in_a_matrix_without_polarisation():
    cells = 256
    field = line(ANTIFERROELECTRIC, cells)
    field.put(0.05 * np.ones((1, cells)), stripes(cells, 1.0))
    size = np.abs(relax(field, 2500).polar[0])

    assert size[cells // 2] < 1e-3
    assert size.max() > 0.2


# -- the kinetics ------------------------------------------------------------------------------


def shrinking(is_first_order: bool) -> float:
    """Rate at which the squared radius of a round domain changes, from its area."""
    size = 160
    energy = Landau(antipolar_2=1.0, coupling=0.0, polar_gradient=4.0)
    field = LandauField(energy, (size, size), stabiliser=2.0)
    row, col = np.indices((size, size)) - size / 2
    field.put(np.tanh((np.hypot(row, col) - 50) / math.sqrt(8)), np.zeros((size, size)))
    squares, times = [], []
    for _ in range(8):
        for _ in range(40):
            field.step()
            if is_first_order:  # without a memory every step is the first one
                field.put(field.polar, field.antipolar)
        squares.append(float((1 - field.polar).sum()) / 2 / math.pi)
        times.append(field.time)
    return float(np.polyfit(times, squares, 1)[0])


def test_a_round_domain_shrinks_at_the_exact_rate():
    """Exact (Allen and Cahn 1979): dR^2/dt = -2 g = -8 at a step of 0.25."""
    assert shrinking(is_first_order=False) == pytest.approx(-8.0, rel=0.01)


def test_a_first_order_step_would_get_that_rate_wrong_by_a_third():
    assert -6.4 < shrinking(is_first_order=True) < -4.5


@pytest.mark.parametrize("energy", [FERRIELECTRIC, FERROELECTRIC, ANTIFERROELECTRIC])
def test_the_energy_never_rises_when_nothing_drives(energy):
    rng = np.random.default_rng(1)
    field = LandauField(energy, (64, 64), depolarisation=0.15, dtype=np.float64)
    field.imprint = 0.03 * rng.standard_normal((64, 64))
    field.put(*0.1 * rng.standard_normal((2, 64, 64)))
    course = []
    for _ in range(300):
        field.step()
        course.append(field.energy())

    assert max(np.diff(course)) <= 1e-9 * abs(course[-1])


def test_thermal_noise_has_the_spectrum_of_equilibrium():
    """Theory: |P_k|^2 = kT / (a + g k^2), within 10 % for k below 1.5 per cell at a step of 0.1."""
    size, temperature = 64, 0.01
    flat = Landau(
        polar_2=1.0, polar_4=1e-9, antipolar_2=1.0, antipolar_4=1e-9, coupling=0.0, polar_gradient=4.0
    )
    field = LandauField(
        flat,
        (size, size),
        time_step=0.1,
        stabiliser=0.0,
        temperature=temperature,
        rng=np.random.default_rng(5),
    )
    power, count = np.zeros((size, size // 2 + 1)), 0
    for n in range(4000):
        field.step()
        if n > 200 and n % 4 == 0:
            power += np.abs(fft.rfft2(field.polar)) ** 2
            count += 1
    k = 2 * math.pi * np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None])
    ratio = power / count / size**2 / (temperature / (1 + 4 * k**2))

    for least, most in ((0.0, 0.5), (0.5, 1.0), (1.0, 1.5)):
        assert ratio[(k >= least) & (k < most)].mean() == pytest.approx(1.0, abs=0.1)


def coercive_fields(imprint: float) -> tuple[float, float]:
    """Fields at which a uniform film switches up and down, swept slowly."""
    alone = Landau(antipolar_2=1.0, coupling=0.0)
    field = LandauField(alone, (2, 2), dtype=np.float64)
    field.imprint = np.full((2, 2), imprint)
    field.put(-np.ones((2, 2)), np.zeros((2, 2)))
    strengths = 0.6 * np.sin(np.linspace(0, 4 * math.pi, 1600))
    polar = []
    for strength in strengths:
        relax(field, 4, float(strength))
        polar.append(float(field.polar[0, 0]))
    jumps = np.diff(polar)[800:]
    return float(strengths[801:][jumps.argmax()]), float(strengths[801:][jumps.argmin()])


def test_a_loop_is_shifted_by_the_imprint():
    """Derived: E + E_imprint is what acts, so the middle of a loop is at -E_imprint; within 15 %."""
    up, down = coercive_fields(0.06)
    assert (up + down) / 2 == pytest.approx(-0.06, rel=0.15)
    centred_up, centred_down = coercive_fields(0.0)
    assert centred_up + centred_down == pytest.approx(0.0, abs=0.01)
    # The spinodal of Landau theory, 2 / (3 sqrt 3), and the lag of a sweep that takes a time above it.
    assert 2 / 3**1.5 < centred_up < 1.25 * 2 / 3**1.5


def written_radius(volts: float, steps: int) -> float:
    """Radius of what a tip's pulse leaves in a film of one domain, after it has been let go."""
    size = 128
    field = LandauField(
        replace(FERRIELECTRIC, coupling=0.7),
        (size, size),
        stabiliser=3.0,
        depolarisation=0.05,
        thickness=40.0,
    )
    (phase,) = phases(replace(FERRIELECTRIC, coupling=0.7))
    field.put(np.full((size, size), phase.polar), np.full((size, size), phase.antipolar))
    row, col = np.indices((size, size)) - size / 2
    field.tip = ((1 + (row**2 + col**2) / 8.0**2) ** -1.5).astype(np.float32)
    relax(field, steps, volts)
    relax(field, 60)
    return math.sqrt(float((field.polar < 0).sum()) / math.pi)


def test_a_written_domain_grows_with_the_voltage_and_with_the_time_and_weak_pulses_write_nothing():
    radii = np.array([[written_radius(v, n) for n in (10, 40, 160)] for v in (-0.6, -1.5, -2.5, -4.0)])

    assert radii[0, 0] == 0
    assert (np.diff(radii, axis=0) >= 0).all()
    assert (np.diff(radii, axis=1) >= 0).all()
    assert (np.diff(radii[2:], axis=1) > 0).all()
    assert (np.diff(radii[1:, 2]) > 0).all()


def test_the_same_seed_gives_the_same_bytes():
    def end(seed: int) -> bytes:
        field = LandauField(
            FERRIELECTRIC, (48, 40), depolarisation=0.1, temperature=2e-3, rng=np.random.default_rng(seed)
        )
        return relax(field, 30).polar.tobytes()

    assert end(3) == end(3)
    assert end(3) != end(4)


def test_single_precision_stays_close_to_double():
    rng = np.random.default_rng(2)
    start = 0.1 * rng.standard_normal((2, 64, 64))
    ends = []
    for dtype in (np.float32, np.float64):
        field = LandauField(FERRIELECTRIC, (64, 64), depolarisation=0.15, dtype=dtype)
        field.put(*start)
        ends.append(relax(field, 100).polar)

    assert ends[0].dtype == np.float32
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-3)


# -- depolarisation, and windows ---------------------------------------------------------------


def test_depolarisation_is_whole_for_a_uniform_film_and_goes_for_fine_domains():
    share = depolarising(np.array([0.0, 1e-12, 0.1, 100.0]), 30.0)

    np.testing.assert_allclose(share, [1.0, 1.0, -np.expm1(-3.0) / 3.0, 1 / 3000], rtol=1e-6)


def test_an_unscreened_film_is_less_polar_and_breaks_into_finer_domains():
    def domains(depolarisation: float) -> tuple[float, float]:
        field = LandauField(FERROELECTRIC, (96, 96), depolarisation=depolarisation, thickness=10.0)
        field.put(0.1 * np.random.default_rng(4).standard_normal((96, 96)), np.zeros((96, 96)))
        polar = relax(field, 400).polar
        return float(np.abs(polar).mean()), float((np.sign(polar[:, 1:]) != np.sign(polar[:, :-1])).mean())

    (screened, few), (open_circuit, many) = domains(0.0), domains(0.5)
    assert open_circuit < 0.95 * screened
    assert many > 1.5 * few


def test_a_window_moves_as_the_whole_film_does():
    size, cut = 128, 64
    start = LandauField(FERRIELECTRIC, (size, size), depolarisation=0.15)
    start.put(*0.3 * np.random.default_rng(6).standard_normal((2, size, size)))
    relax(start, 400)
    polar, antipolar = start.polar, start.antipolar
    row, col = np.indices((size, size)) - np.reshape([70, 40], (2, 1, 1))
    tip = np.exp(-(row**2 + col**2) / (2 * 5.0**2)).astype(np.float32)

    whole = LandauField(FERRIELECTRIC, (size, size), depolarisation=0.15)
    whole.put(polar, antipolar)
    whole.tip = tip
    relax(whole, 40, 1.0)
    corner = (70 - cut // 2, 40 - cut // 2)
    part = start.window(corner, cut, np.ones((cut, cut)), 0.25)
    part.tip = tip[corner[0] : corner[0] + cut, corner[1] : corner[1] + cut].copy()
    relax(part, 40, 1.0)
    before = start.polar
    start.join(part, corner)

    assert np.abs(whole.polar - before).max() > 0.5
    near = np.hypot(row, col) < 16
    assert np.abs(start.polar - whole.polar)[near].max() < 0.05


def test_a_window_across_the_edge_of_the_grid_is_one_piece():
    field = LandauField(FERROELECTRIC, (64, 64))
    field.put(np.ones((64, 64)), np.zeros((64, 64)))
    part = field.window((-16, -16), 32, np.ones((32, 32)), 0.25)
    row, col = np.indices((32, 32)) - 16
    part.tip = np.exp(-(row**2 + col**2) / 18).astype(np.float32)
    relax(part, 40, -4.0)
    field.join(part, (-16, -16))

    assert field.polar[0, 0] < -0.5
    assert field.polar[1, 1] == pytest.approx(field.polar[-1, -1], abs=1e-3)
    assert field.polar[32, 32] == pytest.approx(1.0, abs=1e-3)


def test_a_window_does_not_move_where_it_has_no_mobility():
    field = LandauField(FERRIELECTRIC, (64, 64), temperature=2e-3, rng=np.random.default_rng(8))
    field.put(*0.3 * np.random.default_rng(7).standard_normal((2, 64, 64)))
    relax(field, 20)
    mobility = np.zeros((64, 64))
    mobility[20:30, 20:30] = 1.0
    part = field.window((0, 0), 64, mobility, 0.25)
    relax(part, 50, 0.5)

    assert (part.moved[:, mobility == 0] == 0).all()
    assert np.abs(part.moved[:, mobility == 1]).mean() > 0.1


def test_a_window_that_knows_how_strongly_it_is_driven_stays_stable_at_full_steps():
    """At rest in a field of 100 a film has P^3 - P + eta A^2 P = 100 with A = 0: P = 4.713."""
    field = LandauField(FERRIELECTRIC, (16, 16))
    field.put(np.full((16, 16), 0.86), np.full((16, 16), 0.75))
    part = field.window((0, 0), 16, np.ones((16, 16)), 0.25, 100.0)
    polar = field.polar + relax(part, 400, 100.0).moved[0]

    assert polar == pytest.approx(4.7134, abs=1e-3)


def test_a_temperature_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="takes an rng"):
        LandauField(FERRIELECTRIC, (8, 8), temperature=1e-3)
