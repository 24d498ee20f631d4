"""Potentials, beam and patterns against what is known by hand, by symmetry, and by abTEM."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulators.diffraction import (
    ZincblendeConfig,
    centre_of_mass,
    zincblende_layers,
)
from simulators.multislice import (
    POTENTIAL_V_NM2,
    Beam,
    Diffraction,
    Layer,
    Slab,
    projected_potential,
    slab,
)
from simulators.scattering_factors import scattering_factor_nm
from tests.measured_patterns import convolved_centre_of_mass

GRAPHENE_NM = 0.246
PIXEL_NM = 0.02
BEAM = Beam(voltage_kv=60.0, semi_angle_mrad=30.0)
THICK_BEAM = Beam(voltage_kv=200.0, semi_angle_mrad=20.0)
GAAS = ZincblendeConfig()
GAAS_PIXEL_NM = 0.0125
THERMAL_NM = 0.0087


def graphene(repeats: int = 14, missing: bool = False) -> Layer:
    """A sheet with a hexagon's centre, or a vacancy, at (0, 0); zigzag rows along x."""
    a = GRAPHENE_NM * np.array([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    cells = np.stack(np.meshgrid(*2 * [np.arange(-2 * repeats, 2 * repeats + 1)]), -1).reshape(-1, 2)
    hexagons = cells @ a
    atoms = np.concatenate([hexagons + np.array([0, sign * GRAPHENE_NM / math.sqrt(3)]) for sign in (1, -1)])
    if missing:
        atoms = atoms + np.array([0, GRAPHENE_NM / math.sqrt(3)])
        atoms = atoms[np.hypot(*atoms.T) > 0.01]
    atoms = atoms[np.abs(atoms).max(axis=1) < repeats * GRAPHENE_NM]
    return Layer(positions_nm=atoms, numbers=np.full(len(atoms), 6))


def thin(layer: Layer, beam: Beam = BEAM, thermal_nm: float = 0.0) -> Diffraction:
    corners = {"lower_nm": (-3.2, -3.2), "upper_nm": (3.2, 3.2)}
    ready = slab([layer], [0], beam, pixel_nm=PIXEL_NM, thermal_sd_nm=thermal_nm, **corners)
    return Diffraction(ready, beam)


def gaas(
    window_px: int = 128, layers: int = 48, thermal_nm: float = THERMAL_NM, cell: ZincblendeConfig = GAAS
) -> Diffraction:
    """Both of the first cation and of its mirror line at x = 0."""
    ready = slab(
        zincblende_layers(cell, (-1.9, -1.9), (2.3, 2.5)),
        [n % 2 for n in range(layers)],
        THICK_BEAM,
        lower_nm=(-1.9, -1.9),
        upper_nm=(2.3, 2.5),
        pixel_nm=GAAS_PIXEL_NM,
        layer_nm=cell.lattice_constant_nm / (2 * math.sqrt(2)),
        thermal_sd_nm=thermal_nm,
    )
    return Diffraction(ready, THICK_BEAM, window_px)


def deflections(diffraction: Diffraction, places_nm: np.ndarray) -> np.ndarray:
    return centre_of_mass(diffraction.patterns(places_nm), diffraction.k_per_nm)


def slope_and_correlation(have: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    return (
        np.polyfit(want.ravel(), have.ravel(), 1)[0],
        np.corrcoef(want.ravel(), have.ravel())[0, 1],
    )


# -- atoms ---------------------------------------------------------------------------------------


def test_an_atom_between_pixels_is_a_shifted_atom_to_a_millionth():
    """The potential is band-limited, so a shift is a phase of its transform: derived."""
    grid = {"corner_nm": (0.0, 0.0), "shape": (96, 120), "pixel_nm": 0.02}
    on_node = projected_potential(np.array([[1.0, 0.8]]), np.array([31]), **grid)
    shift_nm = np.array([[0.0073, -0.0041]])
    between = projected_potential(np.array([[1.0, 0.8]]) + shift_nm, np.array([31]), **grid)
    row_k, col_k = np.fft.fftfreq(96, 0.02)[:, None], np.fft.rfftfreq(120, 0.02)[None]
    phase = np.exp(-2j * math.pi * (col_k * shift_nm[0, 0] + row_k * shift_nm[0, 1]))
    want = np.fft.irfft2(np.fft.rfft2(on_node) * phase, s=(96, 120))

    both = np.fft.rfft2(between - want)
    both[48], both[:, 60] = 0, 0  # of the highest frequency a real image has only the cosine
    assert np.abs(np.fft.irfft2(both, s=(96, 120))).max() < 3e-6 * on_node.max()


def test_the_potential_integrates_to_forward_scattering():
    """∫ V = h² / (2π m e) f(0): derived from Born's approximation; 47.878 V Å² f."""
    atoms = np.array([[0.5, 0.4], [0.93, 0.77], [0.2, 1.1]])
    numbers = np.array([6, 31, 33])
    potential = projected_potential(atoms, numbers, corner_nm=(0.0, 0.0), shape=(64, 80), pixel_nm=0.02)
    forward = sum(scattering_factor_nm(int(number), np.zeros(1))[0] for number in numbers)

    assert pytest.approx(0.47878, rel=1e-4) == POTENTIAL_V_NM2
    assert potential.sum() * 0.02**2 == pytest.approx(POTENTIAL_V_NM2 * forward, rel=1e-6)


def test_thermal_motion_blurs_the_potential_by_a_gaussian():
    grid = {"corner_nm": (0.0, 0.0), "shape": (128, 128), "pixel_nm": 0.01}
    atom, number = np.array([[0.64, 0.64]]), np.array([14])
    still = projected_potential(atom, number, **grid)
    moving = projected_potential(atom, number, thermal_sd_nm=0.02, **grid)
    x = 0.01 * (np.arange(128) - 64)
    gaussian = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 0.02**2))
    want = np.fft.irfft2(np.fft.rfft2(still) * np.fft.rfft2(np.fft.ifftshift(gaussian / gaussian.sum())))

    np.testing.assert_allclose(moving, want, atol=1e-5 * still.max())


# -- the beam --------------------------------------------------------------------------------------


def test_wavelength_and_interaction_are_relativistic():
    """Kirkland, Advanced Computing in Electron Microscopy (2010), table 2.2 and eq. 5.6."""
    for voltage_kv, wavelength_nm, sigma in ((60.0, 0.0048661, 0.0113), (200.0, 0.0025079, 0.00729)):
        beam = Beam(voltage_kv=voltage_kv)
        assert beam.wavelength_nm == pytest.approx(wavelength_nm, rel=1e-4)
        assert beam.phase_per_v_nm == pytest.approx(sigma, rel=0.01)


def test_in_vacuum_a_pattern_is_the_disc_of_the_aperture_wherever_the_probe_is():
    nothing = thin(Layer(positions_nm=np.zeros((0, 2)), numbers=np.zeros(0, dtype=np.int64)))
    patterns = nothing.patterns(np.array([[0.0, 0.0], [0.013, -0.341], [50.0, 0.0]]))
    k = nothing.k_per_nm
    angle_mrad = 1e3 * BEAM.wavelength_nm * np.hypot(k[:, None], k)

    assert patterns.sum(axis=(1, 2)) == pytest.approx(1, abs=1e-5)
    assert np.abs(patterns - patterns[0]).max() < 1e-6 * patterns.max()
    assert patterns[0][angle_mrad > 32].max() < 1e-12
    assert np.ptp(patterns[0][angle_mrad < 28]) < 1e-5 * patterns.max()


def test_a_uniform_field_deflects_the_whole_disc_by_its_impulse():
    """<k> = σ / 2π grad V: derived, exact for a plane ramp; x is to the right, y down."""
    gradient = np.array([30.0, -50.0])  # V nm / nm
    x = PIXEL_NM * np.arange(400)
    potential = gradient[0] * x[None] + gradient[1] * x[:, None]
    ramp = Slab(
        transmission=np.exp(1j * BEAM.phase_per_v_nm * potential)[None].astype(np.complex64),
        order=(0,),
        layer_nm=0.0,
        pixel_nm=PIXEL_NM,
        corner_nm=(0.0, 0.0),
    )
    diffraction = Diffraction(ramp, BEAM)
    centre = deflections(diffraction, np.array([[4.0, 4.0]]))[0]

    # the window's ends, where the probe's tails meet, are no ramp
    assert centre == pytest.approx(BEAM.phase_per_v_nm / (2 * math.pi) * gradient, rel=0.02)


def test_a_probe_that_went_on_through_vacuum_is_a_defocused_one():
    way_nm = 3.0
    layer = graphene(missing=True)
    corners = {"lower_nm": (-2.0, -2.0), "upper_nm": (2.0, 2.0), "pixel_nm": PIXEL_NM}
    empty = Layer(positions_nm=np.zeros((0, 2)), numbers=np.zeros(0, dtype=np.int64))
    after = Diffraction(slab([empty, layer], [0, 1], BEAM, layer_nm=way_nm, **corners), BEAM)
    over = Beam(voltage_kv=60.0, semi_angle_mrad=30.0, defocus_nm=-way_nm)
    defocused = Diffraction(slab([layer], [0], over, **corners), over)
    places = np.array([[0.05, 0.02], [-0.13, 0.08]])

    want = defocused.patterns(places)
    assert np.abs(after.patterns(places) - want).sum() < 0.01 * want.sum()
    assert np.abs(thin(layer).patterns(places) - want).sum() > 0.03 * want.sum()


# -- a thin specimen -----------------------------------------------------------------------------------


def test_no_electron_is_lost_in_a_thin_specimen():
    places = np.random.default_rng(0).uniform(-0.3, 0.3, (64, 2))
    total = thin(graphene(missing=True)).patterns(places).sum(axis=(1, 2))

    assert np.abs(total - 1).max() < 1e-4


def test_the_deflection_is_zero_where_symmetry_says_so():
    """A hexagon's centre has six-fold, an atom three-fold symmetry: no direction is left; in 1/nm."""
    hexagon, atom = (0.0, 0.0), (0.0, GRAPHENE_NM / math.sqrt(3))
    sheet = thin(graphene())
    centres = deflections(sheet, np.array([hexagon, atom, (GRAPHENE_NM, 0.0)]))
    vacancy = deflections(thin(graphene(missing=True)), np.array([(0.0, 0.0)]))
    bond_side = deflections(sheet, np.array([(0.04, 0.1)]))

    assert np.abs(centres).max() < 1e-3
    assert np.abs(vacancy).max() < 1e-3
    assert np.abs(bond_side).max() > 0.02  # elsewhere there is one


def test_the_centre_of_mass_of_patterns_is_that_of_the_convolution():
    """Exact for a phase object (Müller et al., Nature Communications 5, 5653 (2014)).

    What atoms scatter beyond the camera's edge is folded back: 2e-3 of it in graphene whose atoms move, 3e-3
    in one whose atoms stand still.
    """
    layer = graphene(missing=True)
    sheet = thin(layer, thermal_nm=0.005)
    rows, cols = sheet.slab.transmission.shape[1:]
    corner_nm = sheet.slab.corner_nm
    potential = projected_potential(
        layer.positions_nm,
        layer.numbers,
        corner_nm=corner_nm,
        shape=(rows, cols),
        pixel_nm=PIXEL_NM,
        thermal_sd_nm=0.005,
    )
    field = convolved_centre_of_mass(potential, sheet.probe(), BEAM, PIXEL_NM)
    pixels = np.random.default_rng(1).integers(145, 175, (64, 2))  # (row, col) around the vacancy
    places = np.array(corner_nm) + PIXEL_NM * pixels[:, ::-1]
    have, want = deflections(sheet, places), field[pixels[:, 0], pixels[:, 1]]

    assert np.sqrt(np.mean((have - want) ** 2)) < 2e-3 * np.sqrt(np.mean(want**2))
    assert np.sqrt(np.mean(want**2)) > 0.05


# abTEM 1.0.11, Probe(energy=60e3, semiangle_cutoff=30) over graphene with an unrelaxed vacancy, 27.06 x
# 25.57 Å, Potential(gpts=(542, 512), projection='infinite'), Lobato's; PixelatedDetector(max_angle=110).
# Centre of mass in 1/nm at x, y in (-0.18, -0.06, 0.06, 0.18) nm from the vacancy, x first.
ABTEM_GRAPHENE = """
    0.0235 -0.0152 -0.0048  0.0044  0.0048  0.0044 -0.0236 -0.0152
   -0.0683  0.0205  0.0164 -0.0316 -0.0164 -0.0316  0.0683  0.0205
    0.0910 -0.0109 -0.1327  0.0303  0.1327  0.0303 -0.0910 -0.0109
    0.1078  0.0635 -0.0990  0.0588  0.0990  0.0588 -0.1078  0.0635
"""


def test_deflections_over_a_vacancy_are_those_of_abtem():
    want = np.array(ABTEM_GRAPHENE.split(), dtype=float).reshape(-1, 2)
    steps = np.array([-0.18, -0.06, 0.06, 0.18])
    places = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    slope, correlation = slope_and_correlation(deflections(thin(graphene(missing=True)), places), want)

    assert slope == pytest.approx(1, abs=0.02)
    assert correlation > 0.995


# -- a thick specimen -----------------------------------------------------------------------------------

# abTEM 1.0.11, GaAs along [110], 48 slices of one layer, 31.98 x 28.27 Å, gpts (320, 282), 200 kV, 20 mrad;
# its 'infinite' potential (Lobato) times exp(-2 π² u² k²) in Fourier space, u = 0.0087 nm. Centre of mass
# within 55 mrad in 1/nm with the probe at x in (0, 1, 2) a/√2/3 and y in (0, 1, 2, 3) a/4 from a Ga column,
# plus (0.013, 0.013) nm, x first.
ABTEM_GAAS = """
    0.7346  0.8628 -0.3602 -0.2579  0.7144 -0.0959  0.7064  0.5679
   -0.2918  0.3136  0.6405  0.1226  0.0984 -0.3497 -0.4191  0.3615
   -0.7784  0.1949  0.0893  0.5231 -0.2240 -0.0989 -0.9586 -0.2730
"""


def test_deflections_of_48_layers_of_gaas_are_those_of_abtem():
    want = np.array(ABTEM_GAAS.split(), dtype=float).reshape(-1, 2)
    width, height = GAAS.lattice_constant_nm / math.sqrt(2), GAAS.lattice_constant_nm
    x, y = np.arange(3) * width / 3, np.arange(4) * height / 4
    places = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2) + 0.013
    thick = gaas()
    patterns = thick.patterns(places)
    k = thick.k_per_nm
    patterns[:, THICK_BEAM.wavelength_nm * np.hypot(k[:, None], k) > 55e-3] = 0
    slope, correlation = slope_and_correlation(centre_of_mass(patterns, k), want)

    assert slope == pytest.approx(1, abs=0.02)
    assert correlation > 0.995


def unit_cell(across: int = 6, down: int = 8) -> np.ndarray:
    width, height = GAAS.lattice_constant_nm / math.sqrt(2), GAAS.lattice_constant_nm
    x, y = (np.linspace(0, edge, n, endpoint=False) for edge, n in ((width, across), (height, down)))
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def test_a_hundredth_of_the_electrons_at_most_is_scattered_beyond_the_band_of_48_layers():
    total = gaas().patterns(unit_cell()).sum(axis=(1, 2))

    assert total.mean() > 0.99
    assert total.min() > 0.95  # on the columns, to angles that are really that large
    assert total.max() <= 1 + 1e-5


def test_behind_a_thick_specimen_there_is_nothing_beyond_the_band():
    """Two thirds of the highest frequency: a product of two such waves is folded back outside of it."""
    thick = gaas(layers=4)
    k = np.hypot(thick.k_per_nm[:, None], thick.k_per_nm) * 2 * GAAS_PIXEL_NM
    pattern = thick.patterns(np.zeros((1, 2)))[0]

    assert pattern[k > 0.667].max() == 0
    assert pattern[(k > 0.63) & (k < 0.666)].min() > 0


def test_a_wider_window_changes_little_in_a_thick_specimen():
    places = unit_cell(3, 2) + 0.03
    slope, correlation = slope_and_correlation(deflections(gaas(128), places), deflections(gaas(256), places))

    assert slope == pytest.approx(1, abs=0.02)
    assert correlation > 0.999


def test_patterns_keep_the_mirror_of_the_crystal_and_show_its_polarity_only_when_thick():
    """x -> -x is a mirror of zincblende along [110]; y -> -y exchanges cation and anion."""
    middle_nm = GAAS.lattice_constant_nm / 8  # of a dumbbell
    pattern = gaas(layers=24).patterns(np.array([[0.0, middle_nm]]))[0][1:, 1:]

    def unlike(other):
        return np.abs(pattern - other).sum() / pattern.sum()

    assert unlike(pattern[:, ::-1]) < 1e-3
    assert unlike(pattern[::-1]) > 0.05


# -- abTEM itself, where it is installed ----------------------------------------------------------------


def test_patterns_of_a_single_atom_are_those_of_abtem():
    abtem = pytest.importorskip("abtem", reason="abTEM is GPL-3.0 and no part of this project")
    ase = pytest.importorskip("ase")
    abtem.config.set({"diagnostics.progress_bar": False, "device": "cpu"})
    edge_nm = 2.56
    middle = edge_nm / 2
    atom = ase.Atoms("Si", positions=[[10 * middle, 10 * middle, 2.0]], cell=[25.6, 25.6, 4.0], pbc=True)
    potential = abtem.Potential(atom, gpts=(256, 256), slice_thickness=4.0, projection="infinite")
    probe = abtem.Probe(energy=60e3, semiangle_cutoff=30)
    probe.grid.match(potential)
    places = middle + np.array([[0.06, 0.02], [-0.03, 0.05], [0.02, -0.11]])
    detector = abtem.PixelatedDetector(max_angle=100)
    seen = probe.scan(potential, scan=abtem.CustomScan(10 * places), detectors=detector).compute()
    found = seen.center_of_mass(units="1/Å").array * 10
    alone = Layer(positions_nm=np.array([[0.0, 0.0]]), numbers=np.array([14]))
    have = deflections(thin(alone), places - middle)
    slope, correlation = slope_and_correlation(have, np.stack([found.real, found.imag], -1))

    assert slope == pytest.approx(1, abs=0.02)
    assert correlation > 0.995
