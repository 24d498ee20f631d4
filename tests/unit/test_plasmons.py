"""Plasmons of spheres against theory: in closed form, without modes, and by integration over the sphere."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.special import k0, k1

from simulators.plasmons import (
    HBAR_C_EV_NM,
    Beam,
    DipoleModes,
    Spheres,
    beam_field,
    bulk_loss,
    dipole_coupling,
    direct_loss,
    multipole_loss,
    multipoles_alone,
    plasma_energy_ev,
)

BEAM = Beam(60.0)
LOSS_EV = np.linspace(0.2, 1.2, 256)


def spheres(count: int = 1, seed: int = 0, *, flat: bool = False, damping_ev: float = 0.1) -> Spheres:
    """Close-packed spheres with sizes, heights and dopings of their own; a single one is of 6 nm."""
    rng = np.random.default_rng(seed)
    across = int(np.ceil(np.sqrt(count)))
    row, col = np.divmod(np.arange(count), across)
    places = np.stack([(col + row % 2 / 2) * 15.0, row * 13.0, np.zeros(count)], axis=1)
    if count > 1:
        places += rng.uniform(-0.5, 0.5, places.shape) * [1, 1, 0 if flat else 6]
    many = count > 1
    return Spheres(
        positions_nm=places,
        radii_nm=6.0 + many * rng.uniform(-1.0, 0.5, count),
        plasma_ev=1.78 + many * rng.uniform(-0.2, 0.2, count),
        damping_ev=damping_ev,
    )


def grid(of: Spheres, edge: int) -> np.ndarray:
    lower, upper = of.positions_nm[:, :2].min(axis=0) - 10, of.positions_nm[:, :2].max(axis=0) + 10
    x, y = (np.linspace(a, b, edge) for a, b in zip(lower, upper, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def test_the_plasma_energy_is_that_of_the_free_electrons():
    # 3.713e-11 eV sqrt(n cm^3 / m): the textbook's number.
    assert plasma_energy_ev(9.2e20, mass=0.4) == pytest.approx(3.713e-11 * np.sqrt(9.2e20 / 0.4), rel=1e-3)


def test_a_beam_of_60_kv_has_the_speed_and_the_momentum_of_the_tables():
    assert BEAM.hbar_v_ev_nm / HBAR_C_EV_NM == pytest.approx(0.4462, abs=1e-4)
    momentum_per_nm = BEAM.cutoff_per_nm / 0.02
    assert 2 * np.pi / momentum_per_nm == pytest.approx(4.866e-3, abs=1e-6)  # wavelength in nm


def test_one_sphere_has_its_plasmon_at_the_plasma_energy_over_the_root_of_epsilon_plus_two():
    one = spheres(damping_ev=0.02)
    modes = DipoleModes(one)
    loss = modes.loss([[40.0, 0.0]], LOSS_EV, BEAM)[0]

    np.testing.assert_allclose(modes.energies_ev, 1.78 / np.sqrt(6), rtol=1e-12)
    assert LOSS_EV[loss.argmax()] == pytest.approx(1.78 / np.sqrt(6), rel=0.01)


@pytest.mark.parametrize("distance_nm", [9.0, 12.0, 20.0])
def test_the_dipole_is_the_first_multipole_of_ferrell_and_echenique(distance_nm):
    """Phys. Rev. Lett. 55, 1526 (1985). Theirs has no retardation: a slow beam has as little."""
    one, beam = spheres(), Beam(3.0)
    theory = multipole_loss(distance_nm, 6.0, LOSS_EV, one.permittivity(LOSS_EV)[:, 0], beam, l_max=1)
    loss = DipoleModes(one).loss([[distance_nm, 0.0]], LOSS_EV, beam)[0]

    np.testing.assert_allclose(loss, theory, atol=0.005 * theory.max())


@pytest.mark.parametrize(("over_radius", "share"), [(1.5, 0.89), (2.0, 0.94), (3.3, 0.98)])
def test_the_dipole_carries_most_of_the_loss_unless_the_beam_is_close(over_radius, share):
    eps = spheres().permittivity(LOSS_EV)[:, 0]
    first, all_ = (multipole_loss(6 * over_radius, 6.0, LOSS_EV, eps, BEAM, l_max=n).max() for n in (1, 20))

    assert first / all_ == pytest.approx(share, abs=0.01)


def field_of_past_beam(distance: np.ndarray, q: float) -> tuple[np.ndarray, np.ndarray]:
    """Across and along at a point, by García de Abajo, Rev. Mod. Phys. 82, 209 (2010), eq. 5."""
    v, gamma = BEAM.hbar_v_ev_nm, BEAM.gamma
    x = q * distance / gamma
    return 2 * q / (v * gamma) * k1(x), 2 * q / (v * gamma**2) * k0(x)


@pytest.mark.parametrize("loss_ev", [0.2, 1.2])
def test_beside_a_sphere_the_field_is_that_of_its_middle(loss_ev):
    distance = np.array([6.01, 9.0, 100.0])
    have = beam_field(distance, 6.0, loss_ev, BEAM)

    np.testing.assert_allclose(have, field_of_past_beam(distance, loss_ev / BEAM.hbar_v_ev_nm), rtol=1e-11)


@pytest.mark.parametrize("b", [0.6, 3.0, 5.9])
@pytest.mark.parametrize("loss_ev", [0.2, 1.2])
def test_through_a_sphere_the_field_is_the_mean_over_the_sphere(b, loss_ev):
    """Derived: integrated around the beam, where the singularity is harmless."""
    a, q = 6.0, loss_ev / BEAM.hbar_v_ev_nm
    nodes, weights = np.polynomial.legendre.leggauss(300)
    r = (nodes[:, None] + 1) / 2 * (a + b)
    angle = np.pi * (nodes[None] + 1)
    squared = a * a - (r * r + b * b - 2 * r * b * np.cos(angle))
    half = np.sqrt(np.maximum(squared, 0))
    shell = np.outer(weights * (a + b) / 2, weights * np.pi) * r / (4 / 3 * np.pi * a**3)
    across, along = field_of_past_beam(r, q)
    mean_across = (shell * across * np.cos(angle) * 2 * np.sin(q * half) / q).sum()
    mean_along = (shell * along * 2 * np.sin(q * half) / q).sum()

    have = np.ravel(beam_field(np.array([b]), a, loss_ev, BEAM))
    np.testing.assert_allclose(have, [mean_across, mean_along], rtol=2e-3)


def test_the_coupling_of_two_spheres_has_the_exact_eigenvalues():
    """-2, -1, -1, 1, 1, 2 times (a/d)^3: dipoles along their line and across it. Derived."""
    two = Spheres(
        positions_nm=np.array([[0.0, 0, 0], [9.0, 12.0, 0]]),
        radii_nm=np.array([6.0, 6.0]),
        plasma_ev=np.array([1.78, 1.78]),
    )
    eigenvalues = np.linalg.eigvalsh(dipole_coupling(two)) / (6 / 15) ** 3

    np.testing.assert_allclose(eigenvalues, [-2, -1, -1, 1, 1, 2], atol=1e-10)


def test_two_spheres_have_the_energies_that_their_coupling_gives():
    """Derived: (eps + 2)/(eps - 1) is an eigenvalue of the coupling."""
    two = Spheres(
        positions_nm=np.array([[0.0, 0, 0], [15.0, 0, 0]]),
        radii_nm=np.array([6.0, 6.0]),
        plasma_ev=np.array([1.78, 1.78]),
    )
    x = np.array([2, 1, 1, -1, -1, -2]) * (6 / 15) ** 3
    eps = (x + 2) / (x - 1)

    np.testing.assert_allclose(DipoleModes(two).energies_ev, 1.78 / np.sqrt(4 - eps), rtol=1e-10)


@pytest.mark.parametrize("flat", [True, False])
def test_modes_give_what_the_equations_give_energy_by_energy(flat):
    """Sizes, heights and dopings of their own; beams beside, in gaps and through."""
    some = spheres(50, seed=1, flat=flat)
    beams, which = grid(some, 12), [0, 60, 128, 200, 255]
    loss = DipoleModes(some).loss(beams, LOSS_EV, BEAM)[:, which]
    want = direct_loss(some, beams, LOSS_EV[which], BEAM, some.permittivity(LOSS_EV[which]))

    assert np.abs(loss - want).max() < 1e-5 * want.max()


def test_spheres_at_different_heights_are_driven_one_after_the_other():
    """Against the equations written out: fields with their phases, dipoles that see each other."""
    two = Spheres(
        positions_nm=np.array([[9.0, 0.0, 0.0], [9.0, 3.0, 14.0]]),
        radii_nm=np.array([6.0, 5.0]),
        plasma_ev=np.array([1.7, 1.8]),
    )
    w, v = 0.9, Beam(3.0).hbar_v_ev_nm
    gamma = Beam(3.0).gamma
    drive, alpha = [], []
    for (x, y, z), radius, eps in zip(
        two.positions_nm, two.radii_nm, two.permittivity(np.array([w]))[0], strict=True
    ):
        r = np.hypot(x, y)
        across, along = k1(w * r / (v * gamma)), -1j * k0(w * r / (v * gamma)) / gamma
        phase = 2 * w / (v**2 * gamma) * np.exp(1j * w * z / v)
        drive.append(phase * np.array([across * x / r, across * y / r, along]))
        alpha.append(radius**3 * (eps - 1) / (eps + 2))
    step = two.positions_nm[1] - two.positions_nm[0]
    d = np.linalg.norm(step)
    green = (3 * np.outer(step, step) / d**2 - np.eye(3)) / d**3
    matrix = np.block([[np.eye(3) / alpha[0], -green], [-green, np.eye(3) / alpha[1]]])
    field = np.concatenate(drive)
    want = 1.4399645 / np.pi * (np.linalg.solve(matrix, field) @ field.conj()).imag

    loss = DipoleModes(two).loss([[0.0, 0.0]], np.array([w]), Beam(3.0))[0, 0]
    assert loss == pytest.approx(want, rel=1e-9)


def test_a_few_beams_are_not_interpolated_and_agree_with_many():
    some = spheres(20, seed=2)
    modes, beams = DipoleModes(some), grid(some, 8)
    many, few = modes.loss(beams, LOSS_EV, BEAM), modes.loss(beams[:6], LOSS_EV, BEAM)

    assert np.abs(many[:6] - few).max() < 1e-4 * many.max()
    want = direct_loss(some, beams[:6], LOSS_EV[::50], BEAM, some.permittivity(LOSS_EV[::50]))
    np.testing.assert_allclose(few[:, ::50], want, rtol=1e-9)


def test_loss_is_never_negative_through_beside_and_far_away():
    some = spheres(30, seed=3)
    far = np.stack([np.linspace(100, 1500, 40), np.full(40, 30.0)], axis=1)
    beams = np.concatenate([grid(some, 16), far, some.positions_nm[:, :2]])

    assert DipoleModes(some).loss(beams, LOSS_EV, BEAM).min() > 0
    assert multipoles_alone(some, beams, LOSS_EV, BEAM).min() >= 0
    assert bulk_loss(some, beams, LOSS_EV, BEAM).min() == 0


def test_far_away_the_loss_falls_exponentially():
    """As K1^2 + K0^2/gamma^2 of w r / (v gamma), which falls as exp(-2 w r / (v gamma))."""
    distance, at = np.linspace(300.0, 600.0, 30), 1.0
    loss = DipoleModes(spheres()).loss(np.stack([distance, 0 * distance], axis=1), LOSS_EV, BEAM)
    column = loss[:, np.abs(LOSS_EV - at).argmin()]
    w = LOSS_EV[np.abs(LOSS_EV - at).argmin()]
    x = w * distance / (BEAM.hbar_v_ev_nm * BEAM.gamma)
    want = k1(x) ** 2 + k0(x) ** 2 / BEAM.gamma**2

    np.testing.assert_allclose(column / column[0], want / want[0], rtol=1e-4)
    slope = np.polyfit(distance, np.log(column * distance), 1)[0]
    assert slope == pytest.approx(-2 * w / (BEAM.hbar_v_ev_nm * BEAM.gamma), rel=0.02)


def test_the_peak_moves_with_the_root_of_the_doping():
    peaks = []
    for carriers in (3e20, 6e20, 1.2e21):
        one = Spheres(
            positions_nm=np.zeros((1, 3)),
            radii_nm=np.array([6.0]),
            plasma_ev=plasma_energy_ev([carriers]),
            damping_ev=0.02,
        )
        loss_ev = np.linspace(0.2, 1.2, 2001)
        peaks.append(loss_ev[DipoleModes(one).loss([[12.0, 0.0]], loss_ev, BEAM)[0].argmax()])

    np.testing.assert_allclose(np.array(peaks) / peaks[0], np.sqrt([1, 2, 4]), rtol=0.005)


def test_each_sphere_shows_its_own_doping_where_it_is_alone():
    apart = Spheres(
        positions_nm=np.array([[0.0, 0, 0], [200.0, 0, 0]]),
        radii_nm=np.array([6.0, 6.0]),
        plasma_ev=np.array([1.4, 2.0]),
        damping_ev=0.02,
    )
    loss = DipoleModes(apart).loss([[9.0, 0.0], [209.0, 0.0]], LOSS_EV, BEAM)

    np.testing.assert_allclose(LOSS_EV[loss.argmax(axis=1)], np.array([1.4, 2.0]) / np.sqrt(6), rtol=0.01)


def test_the_bulk_plasmon_is_lost_to_inside_and_not_beside():
    one = spheres(damping_ev=0.02)
    loss = bulk_loss(one, [[0.0, 0.0], [4.0, 0.0], [5.8, 0.0], [6.01, 0.0]], LOSS_EV, BEAM)

    assert LOSS_EV[loss[0].argmax()] == pytest.approx(1.78 / np.sqrt(4), rel=0.005)
    assert loss[0].max() > loss[1].max() > 2 * loss[2].max() > 0
    assert not loss[3].any()


def test_the_bulk_loss_grows_with_the_momentum_that_is_collected_as_in_an_endless_solid():
    """2 e^2 t / (pi v^2) Im(-1/eps) ln(q_c v / w): Egerton (2011), eq. 3.32; below it by Begrenzung."""
    one, at = spheres(), np.array([0.89])
    wide, narrow = Beam(60.0, 40.0), Beam(60.0, 20.0)
    lost = np.imag(-1 / one.permittivity(at)[0, 0])
    unit = 2 * 1.4399645 * 12.0 / (np.pi * BEAM.hbar_v_ev_nm**2) * lost
    loss = {beam: bulk_loss(one, [[0.0, 0.0]], at, beam)[0, 0] for beam in (wide, narrow)}

    assert loss[wide] - loss[narrow] == pytest.approx(unit * np.log(2), rel=0.01)
    endless = unit * np.log(narrow.cutoff_per_nm * BEAM.hbar_v_ev_nm / 0.89)
    assert 0.4 * endless < loss[narrow] < 0.8 * endless


def test_the_bulk_loss_through_the_middle_is_that_of_a_line_in_a_grounded_sphere():
    """Derived: the images of a line through the middle take ``a pi^2 / 2`` from its own energy."""
    one, at, a = spheres(), np.array([0.89]), 6.0
    own = 4 * a * (np.log(2 * a * BEAM.cutoff_per_nm) + np.euler_gamma - 1)
    lost = np.imag(-1 / one.permittivity(at)[0, 0])
    want = 1.4399645 / (np.pi * BEAM.hbar_v_ev_nm**2) * lost * (own - a * np.pi**2 / 2)

    assert bulk_loss(one, [[0.0, 0.0]], at, BEAM)[0, 0] == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("distance_nm", [7.0, 9.0, 12.0, 20.0])
def test_with_the_multipoles_that_it_has_alone_a_sphere_is_that_of_ferrell_and_echenique(distance_nm):
    one, beam, here = spheres(), Beam(3.0), [[distance_nm, 0.0]]
    theory = multipole_loss(distance_nm, 6.0, LOSS_EV, one.permittivity(LOSS_EV)[:, 0], beam, l_max=30)
    loss = DipoleModes(one).loss(here, LOSS_EV, beam) + multipoles_alone(one, here, LOSS_EV, beam)

    assert np.abs(loss[0] - theory).max() < 0.005 * theory.max()


def test_multipoles_of_a_sphere_that_is_gone_through_join_those_beside_it():
    """Derived for the middle: only the even ones, ``2 a (1/(l+1) + 1/l)`` each for a fast beam."""
    one, beam = spheres(), Beam(300.0)
    low_ev = np.array([0.1, 0.11])  # the phase hardly changes on the way
    loss = multipoles_alone(one, [[0.0, 0.0], [5.999, 0.0], [6.001, 0.0]], low_ev, beam, l_max=4)
    eps = one.permittivity(low_ev)[:, 0]
    want = sum(
        1.43996 / (np.pi * beam.hbar_v_ev_nm**2) * 6.0 * (2 / (n + 1) + 2 / n) ** 2
        * np.imag(n * (eps - 1) / (n * eps + n + 1))
        for n in (2, 4)
    )  # fmt: skip

    np.testing.assert_allclose(loss[0], want, rtol=0.01)
    np.testing.assert_allclose(loss[1], loss[2], rtol=0.01)


def test_spheres_that_overlap_are_refused():
    two = Spheres(
        positions_nm=np.array([[0.0, 0, 0], [5.0, 0, 0]]),
        radii_nm=np.array([6.0, 6.0]),
        plasma_ev=np.array([1.78, 1.78]),
    )
    with pytest.raises(ValueError, match="they must not overlap"):
        DipoleModes(two)


def test_a_spectrum_image_over_a_hundred_spheres_takes_less_than_3_cpu_seconds():
    some = spheres(100, seed=4)
    DipoleModes(spheres(2)).loss(grid(some, 6), LOSS_EV, BEAM)  # compiled
    started = time.process_time()
    loss = DipoleModes(some).loss(grid(some, 64), LOSS_EV, BEAM)

    assert loss.shape == (4096, 256)
    assert time.process_time() - started < 3.0
