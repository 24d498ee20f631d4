"""Boundary elements against theory for spheres, and what only they can show: corners, edges, faces, gaps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.signal import find_peaks

from simulators.plasmons import Beam, drude, multipole_loss
from simulators.surface_modes import RoundedBox, SurfaceModes, mesh, sphere

BEAM = Beam(60.0)
LOSS_EV = np.linspace(0.2, 1.2, 256)
EPS = drude(LOSS_EV, 1.78, 4.0, 0.1)
SHARP_EPS = drude(LOSS_EV, 1.78, 4.0, 0.05)


def cube(x_nm: float = 0.0, turn_rad: float = 0.0) -> RoundedBox:
    return RoundedBox(half_nm=(6.0,) * 3, edge_nm=1.0, position_nm=(x_nm, 0.0, 0.0), turn_rad=turn_rad)


@pytest.fixture(scope="module")
def one_sphere() -> SurfaceModes:
    return SurfaceModes([mesh(sphere(6.0), round_=6)])


@pytest.fixture(scope="module")
def one_cube() -> SurfaceModes:
    return SurfaceModes([mesh(cube(), 8, 2)])


def dimer(gap_nm: float, round_: int = 4) -> SurfaceModes:
    half = 6 + gap_nm / 2
    return SurfaceModes([mesh(sphere(6.0, (x, 0.0, 0.0)), round_=round_) for x in (-half, half)])


def peaks_ev(loss: np.ndarray) -> np.ndarray:
    return LOSS_EV[find_peaks(loss, prominence=0.02 * loss.max())[0]]


def test_a_mesh_has_the_area_of_its_shape_and_normals_outwards():
    box = RoundedBox(half_nm=(5.0, 7.0, 9.0), edge_nm=1.5, position_nm=(1.0, 2.0, 3.0), turn_rad=0.4)
    surface = mesh(box, 5, 2)
    x, y, z = 2 * (np.array(box.half_nm) - 1.5)
    area = 2 * (x * y + y * z + z * x) + 2 * math.pi * 1.5 * (x + y + z) + 4 * math.pi * 1.5**2

    assert surface.points_nm.shape == (6 * 9**2, 4, 3)
    assert surface.near_areas_nm2.sum() == pytest.approx(area, rel=1e-6)
    # Gauss: a third of the flux of r through the surface is the volume.
    outwards = ((surface.near_nm - [1, 2, 3]) * surface.near_normals).sum(axis=-1)
    volume = x * y * z + 2 * 1.5 * (x * y + y * z + z * x) + math.pi * 1.5**2 * (x + y + z)
    volume += 4 / 3 * math.pi * 1.5**3
    assert (outwards * surface.near_areas_nm2).sum() / 3 == pytest.approx(volume, rel=1e-6)


def test_a_sphere_has_the_eigenvalues_of_its_multipoles(one_sphere):
    """-1 / (2 l + 1), 2 l + 1 times, and no net charge, which would have -1."""
    assert len(one_sphere.charges) == 864
    for order, tolerance in ((1, 0.003), (2, 0.01), (3, 0.02)):
        some = one_sphere.eigenvalues[order**2 - 1 : (order + 1) ** 2 - 1]
        np.testing.assert_allclose(some, -1 / (2 * order + 1), rtol=tolerance)


@pytest.mark.parametrize("distance_nm", [7.0, 9.0, 12.0, 20.0])
def test_the_loss_beside_a_sphere_is_that_of_ferrell_and_echenique(one_sphere, distance_nm):
    """Phys. Rev. Lett. 55, 1526 (1985), with 25 multipoles."""
    theory = multipole_loss(distance_nm, 6.0, LOSS_EV, EPS, BEAM, l_max=25)
    loss = one_sphere.loss([[distance_nm, 0.0]], LOSS_EV, BEAM, EPS)[0]

    assert np.abs(loss - theory).max() < 0.01 * theory.max()


def test_the_loss_through_the_middle_of_a_sphere_is_the_sum_of_its_multipoles(one_sphere):
    """Derived: the modes' potentials ``(r/a)^l`` inside and ``(a/r)^(l+1)`` outside along the beam."""
    a, v = 6.0, BEAM.hbar_v_ev_nm
    z = np.concatenate([np.linspace(1e-6, a, 801), np.geomspace(a, 3e4, 8001)[1:]])
    some_ev, eps = LOSS_EV[120:180:2], EPS[120:180:2]
    want = np.zeros_like(some_ev)
    for order in range(1, 40):
        potential = np.where(z < a, z / a, a / z) ** np.where(z < a, order, order + 1.0)
        # With sigma normalised the potential at the pole is a^-1/2.
        trig = np.cos if order % 2 == 0 else np.sin
        coupling = 2 * np.trapezoid(potential * trig(some_ev[:, None] / v * z), z)
        shape = -1 / (2 * order + 1)
        response = np.imag((eps - 1) * (1 + shape) / (1 - shape + eps * (1 + shape)))
        want += 1.43996 / math.pi / v**2 / a * coupling**2 * response
    loss = one_sphere.loss([[0.0, 0.0]], some_ev, BEAM, eps)[0]

    # High multipoles, which the faces smear where the beam goes through, are missing.
    assert 0.9 * want.max() < loss.max() < want.max()
    assert some_ev[loss.argmax()] == pytest.approx(some_ev[want.argmax()], abs=0.01)


def test_two_spheres_far_apart_split_as_dipoles_do():
    """Derived: lambda = -(1 + 2 x)/3, x = 2, -1, -1, 1, 1, -2 times (a/d)^3."""
    modes = dimer(gap_nm=18.0)
    x = np.array([2, 1, 1, -1, -1, -2]) * (6 / 30) ** 3
    shift = modes.eigenvalues[:6] - modes.eigenvalues[:6].mean()

    np.testing.assert_allclose(shift, -2 * x / 3, atol=4e-4)


def test_every_particle_stays_neutral_in_every_mode():
    modes = dimer(gap_nm=1.5)
    surface = mesh(sphere(6.0), round_=4)
    charge = surface.areas_nm2.sum(axis=1) @ modes.charges.reshape(2, len(surface.areas_nm2), -1)

    assert np.abs(charge).max() < 1e-8 * np.abs(modes.charges).max() * 36
    assert modes.eigenvalues[0] > -0.9


def test_the_loss_in_a_gap_is_not_negative_and_neither_is_any_other():
    modes = dimer(gap_nm=1.5)
    x, y = np.meshgrid(np.linspace(-16, 16, 24), np.linspace(-10, 10, 16))
    far = np.stack([np.linspace(50, 800, 16), np.zeros(16)], axis=1)
    beams = np.concatenate([np.stack([x.ravel(), y.ravel()], axis=1), far])

    assert modes.loss(beams, LOSS_EV, BEAM, EPS).min() > 0


def test_the_smaller_the_gap_the_lower_is_the_mode_along_the_dimer():
    lowest = [dimer(gap).energies_ev(1.78, 4.0).min() for gap in (1.0, 3.0)]

    assert np.all(np.diff(lowest) > 0.004)


def test_at_the_ends_of_a_dimer_the_loss_is_lower_in_energy_than_in_the_gap():
    """In the gap the field across vanishes by symmetry: the bright mode is not excited there."""
    gap, end, far = dimer(1.5).loss([[0, 0], [14.5, 0], [30, 0]], LOSS_EV, BEAM, EPS)
    of_gap, of_end, of_far = (LOSS_EV[loss.argmax()] for loss in (gap, end, far))

    assert of_gap > of_end + 0.03
    assert of_far < min(of_end, 1.78 / math.sqrt(6) - 0.03)


def test_a_cube_has_corner_edge_and_face_modes_apart(one_cube):
    corner, edge, face = (
        one_cube.loss([place], LOSS_EV, BEAM, SHARP_EPS)[0] for place in ((6.6, 6.6), (7.2, 0.0), (0.0, 0.0))
    )
    at_corner, at_face = LOSS_EV[corner.argmax()], LOSS_EV[face.argmax()]
    (at_edge,) = (peak for peak in peaks_ev(edge) if at_corner + 0.04 < peak < at_face - 0.03)

    assert at_corner < 1.78 / math.sqrt(6) - 0.05
    assert at_face > 1.78 / math.sqrt(6) + 0.05
    # Each is where it is called after.
    here = np.abs(LOSS_EV - at_corner).argmin()
    assert corner[here] > 1.5 * edge[here] > 10 * face[here]
    here = np.abs(LOSS_EV - at_edge).argmin()
    assert edge[here] > 1.2 * corner[here] > face[here]
    here = np.abs(LOSS_EV - at_face).argmin()
    assert face[here] > 1.3 * edge[here]


def test_a_sharper_cube_has_its_corner_mode_at_lower_energy(one_cube):
    blunt = SurfaceModes([mesh(RoundedBox(half_nm=(6.0,) * 3, edge_nm=2.5), 5, 3)])

    assert one_cube.energies_ev(1.78, 4.0)[0] < blunt.energies_ev(1.78, 4.0)[0] - 0.02


def test_a_finer_mesh_changes_the_modes_of_a_cube_by_less_than_a_channel():
    coarse, fine = (SurfaceModes([mesh(cube(), flat, 2)]).energies_ev(1.78, 4.0)[:3] for flat in (6, 8))

    np.testing.assert_allclose(coarse, fine, atol=0.005)


def test_a_turned_box_has_a_turned_loss():
    bar = RoundedBox(half_nm=(9.0, 4.0, 4.0), edge_nm=1.5)
    turn = RoundedBox(half_nm=(9.0, 4.0, 4.0), edge_nm=1.5, turn_rad=0.5)
    loss, turned = (SurfaceModes([mesh(box, 4, 1)]) for box in (bar, turn))
    place = np.array([10.5, 2.0])
    spun = np.array([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]]) @ place

    want = loss.loss([place], LOSS_EV, BEAM, EPS)
    np.testing.assert_allclose(turned.loss([spun], LOSS_EV, BEAM, EPS), want, rtol=1e-5)


def test_edges_rounder_than_the_box_are_refused():
    with pytest.raises(ValueError, match=r"edge_nm is 5\.0; it takes above 0 to 4"):
        RoundedBox(half_nm=(9.0, 4.0, 4.0), edge_nm=5.0)
