"""Kernels of single atoms against closed forms, conservation laws, multislice of our own and abTEM's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft as fft
from scipy.interpolate import CubicSpline

from simulators.multislice import (
    POTENTIAL_V_NM2,
    Beam,
    Diffraction,
    Layer,
    projected_potential,
    slab,
)
from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.scattering_factors import scattering_factor_nm
from simulators.simulator import Refused
from simulators.stem_kernels import (
    DETECTORS_MRAD,
    Kernel,
    OpticsConfig,
    add_atoms,
    atomic_potential,
    coherent_parts,
    kernel,
    probe_intensity,
    scattered_wave,
)
from streamer.messages import ScanGeometry

POINT = OpticsConfig(source_sigma_nm=0.0)
STILL = ScanDistortionConfig(
    drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0, row_jitter_px=0.0, flyback_px=0.0
)
CARBON, SILICON = 6, 14


def finely(of: Kernel, times: int = 8) -> np.ndarray:
    """The kernel ``times`` as fine, exactly: it has no higher frequencies."""
    n = len(of.share) // 2
    spectrum = fft.fftshift(fft.fft2(fft.ifftshift(np.pad(of.share, ((1, 0), (1, 0))))))
    wide = np.pad(spectrum, (len(spectrum) * (times - 1)) // 2)
    fine = fft.fftshift(fft.ifft2(fft.ifftshift(wide)).real) * times**2
    middle = len(fine) // 2
    reach = n * times - times
    return fine[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]


def along_a_row(of: Kernel, away_nm: np.ndarray) -> np.ndarray:
    """A round kernel at some distances; 0 beyond its reach."""
    fine = finely(of)
    n = len(fine) // 2
    curve = CubicSpline(np.arange(n + 1) * of.step_nm / 8, fine[n, n:])
    return np.where(away_nm < n * of.step_nm / 8, curve(np.minimum(away_nm, n * of.step_nm / 8)), 0.0)


def path_over(
    geometry: ScanGeometry, distortion: ScanDistortionConfig = STILL, dwell_time_us: float = 1.0
) -> BeamPath:
    return ScanDistortion(distortion, np.random.default_rng(5)).scan(geometry, dwell_time_us)


def image_of(
    positions_nm: np.ndarray, numbers: np.ndarray, optics: OpticsConfig, detector: str, path: BeamPath
) -> np.ndarray:
    turn = path.geometry.rotation_rad
    angles = DETECTORS_MRAD[detector]
    kernels = {z: kernel(z, optics, angles, rotation_rad=turn) for z in np.unique(numbers).tolist()}
    image = np.zeros(path.geometry.shape, np.float32)
    add_atoms(image, positions_nm, numbers, kernels, path, 1e4)
    return image.astype(np.float64) / 1e4


def graphene_with_a_silicon() -> tuple[np.ndarray, np.ndarray]:
    """An unrelaxed sheet, turned by 0.2, with a silicon at (0, 0)."""
    first, second = 0.246 * np.array([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    i, j = np.meshgrid(np.arange(-30, 31), np.arange(-30, 31))
    cells = i.reshape(-1, 1) * first + j.reshape(-1, 1) * second
    atoms = np.concatenate([cells, cells + (0.0, 0.246 / math.sqrt(3))])
    cos, sin = math.cos(0.2), math.sin(0.2)
    atoms = atoms @ np.array([[cos, sin], [-sin, cos]])
    atoms = atoms[np.abs(atoms).max(axis=1) < 2.6]
    numbers = np.full(len(atoms), CARBON)
    numbers[np.hypot(*atoms.T).argmin()] = SILICON
    return atoms, numbers


# -- one atom ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [CARBON, SILICON, 42])
def test_the_potential_transforms_into_the_scattering_factor(number):
    """The definition of the scattering factor, Kirkland (2010), eq. 5.15; the closed form is derived."""
    from scipy.integrate import quad
    from scipy.special import j0

    for k in (0.5, 8.0, 30.0):
        wave, _ = quad(
            lambda r, k=k: (
                float(atomic_potential(number, np.array(r**2)))
                * j0(2 * math.pi * k * r**2)
                * 4
                * math.pi
                * r**3
            ),
            1e-6,
            math.sqrt(1.5),
            limit=2000,
        )
        want = POTENTIAL_V_NM2 * scattering_factor_nm(number, np.array([k]))[0]
        assert wave == pytest.approx(want, rel=1e-3)


def test_the_potential_is_that_of_the_multislice():
    grid = {"corner_nm": (-1.0, -1.0), "shape": (512, 512), "pixel_nm": 2 / 512}
    sampled = projected_potential(np.zeros((1, 2)), np.array([SILICON]), thermal_sd_nm=0.005, **grid)
    away = np.arange(20, 200) * 2 / 512  # far enough that the smearing does not count

    # the periodic grid repeats the atom, and its mean is its own
    np.testing.assert_allclose(
        sampled[256, 276:456], atomic_potential(SILICON, away), atol=2e-3 * sampled.max()
    )


@pytest.mark.parametrize("number", [CARBON, SILICON, 42])
def test_what_an_atom_scatters_is_missing_in_the_undeflected_beam(number):
    """Optical theorem of a phase object, ``∫ |t|² = -2 Re t(0)``, from ``|exp(iσV)| = 1``: derived."""
    beam = Beam(voltage_kv=60.0)
    k = np.concatenate([np.linspace(0, 40, 4000), np.geomspace(40, 150, 2000)[1:]])
    wave = scattered_wave(number, beam, k)
    total = np.trapezoid(2 * math.pi * k * np.abs(wave) ** 2, k)

    assert total == pytest.approx(-2 * wave[0].real, rel=0.01)


def test_a_light_atom_scatters_as_the_first_born_approximation_says():
    """``t = i σ V(k)`` where σ V is small: boron at 300 kV; the next order turns the phase."""
    beam = Beam(voltage_kv=300.0)
    k = np.array([5.0, 15.0, 30.0])
    born = beam.phase_per_v_nm * POTENTIAL_V_NM2 * scattering_factor_nm(5, k)

    np.testing.assert_allclose(np.abs(scattered_wave(5, beam, k)), born, rtol=0.02)


@pytest.mark.parametrize("detector", sorted(DETECTORS_MRAD))
@pytest.mark.parametrize("number", [CARBON, SILICON])
def test_summed_over_the_specimen_the_kernel_is_the_cross_section_of_the_detector(number, detector):
    """Each direction of the aperture is then on its own (derived): a direct integral over both angles."""
    inner, outer = (1e-3 * angle / POINT.beam.wavelength_nm for angle in DETECTORS_MRAD[detector])
    edge = 1 / POINT.resolution_nm
    known = np.linspace(0.5 * inner, 1.3 * outer, 800)
    scattered = CubicSpline(known, np.abs(scattered_wave(number, POINT.beam, known)) ** 2)
    ring, ring_weight = np.polynomial.legendre.leggauss(60)
    ring = inner + (outer - inner) * (ring + 1) / 2
    turn = 2 * math.pi * np.arange(90) / 90
    total = 0.0
    for q in edge * np.sqrt((np.arange(40) + 0.5) / 40):  # rings of one area
        k = np.sqrt(ring[:, None] ** 2 + q**2 - 2 * ring[:, None] * q * np.cos(turn))
        total += (scattered(k).mean(axis=1) * 2 * math.pi * ring * ring_weight).sum() / 40
    total *= (outer - inner) / 2
    of = kernel(number, POINT, DETECTORS_MRAD[detector])

    # the tails beyond the reach: 2 / (π x) at x = 2π 9.25, of an Airy disc, and its soft end
    assert 0.980 < of.share.sum() * of.step_nm**2 / total < 0.995


# abTEM 1.0.11: 60 kV, 30 mrad, one atom on a node of a cell of 36 x 36 Å with 1296 x 1296 points (0.0278 Å),
# Lobato's potential, projection="infinite", one slice; share of the electrons, with the beam on the atom.
ABTEM = {
    ("HAADF", CARBON): 8.702e-4,
    ("HAADF", SILICON): 43.580e-4,
    ("MAADF", CARBON): 19.844e-4,
    ("MAADF", SILICON): 68.222e-4,
}


@pytest.mark.parametrize(("detector", "number"), sorted(ABTEM))
def test_an_atom_is_as_bright_as_by_multislice(detector, number):
    have = kernel(number, POINT, DETECTORS_MRAD[detector]).share.max()

    # 1.1 to 1.3 % on HAADF and 0.4 to 0.5 % on MAADF; abTEM itself moves by 0.4 % with a finer grid
    assert have == pytest.approx(ABTEM[detector, number], rel=0.015)


@pytest.mark.parametrize(("detector", "ratio", "power"), [("HAADF", 5.03, 1.91), ("MAADF", 3.44, 1.46)])
def test_how_much_brighter_a_heavy_atom_is_depends_on_the_detector(detector, ratio, power):
    """The ratios are those of single atoms by abTEM 1.0.11 at 60 kV, 30 mrad, on a grid of 0.0625 Å."""
    carbon, silicon = (kernel(z, POINT, DETECTORS_MRAD[detector]).share.max() for z in (CARBON, SILICON))

    assert silicon / carbon == pytest.approx(ratio, rel=0.01)
    assert math.log(silicon / carbon) / math.log(14 / 6) == pytest.approx(power, abs=0.02)


def test_an_element_without_coefficients_is_refused_by_name():
    with pytest.raises(ValueError, match="element 92 has no scattering factor; it takes 1 to 83"):
        kernel(92, POINT, DETECTORS_MRAD["HAADF"])


def test_a_detector_in_the_undeflected_beam_is_refused():
    with pytest.raises(ValueError, match="the detector of 20 to 80 mrad takes less than 20"):
        coherent_parts(CARBON, POINT.beam, (20.0, 80.0))


# -- the probe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("voltage_kv", "semi_angle_mrad"), [(60.0, 30.0), (200.0, 20.0)])
def test_a_perfect_probe_is_airys(voltage_kv, semi_angle_mrad):
    """Half as bright at 0.2574 λ/α, dark at 0.6098 λ/α: Born and Wolf (1999), 8.5.2."""
    optics = OpticsConfig(voltage_kv=voltage_kv, semi_angle_mrad=semi_angle_mrad, source_sigma_nm=0.0)
    probe = probe_intensity(optics)
    places = np.linspace(0, optics.resolution_nm, 2001)
    bright = along_a_row(probe, places)

    half = places[np.flatnonzero(bright < bright[0] / 2)[0]]
    dark = places[np.argmin(bright[: round(0.8 * 2000)])]
    assert half / optics.resolution_nm == pytest.approx(0.2574, abs=0.003)
    assert dark / optics.resolution_nm == pytest.approx(0.6098, abs=0.01)
    assert probe.share.sum() == pytest.approx(1.0, abs=0.015)  # but for its tails


def test_out_of_focus_the_middle_of_the_probe_darkens_as_it_must():
    """On the axis ``(sin u / u)²``, u = π α² Δf / 2 λ: Born and Wolf (1999), 8.8.2."""
    focused = probe_intensity(POINT).share.max()
    for defocus_nm in (4.0, -8.0):
        blurred = probe_intensity(OpticsConfig(source_sigma_nm=0.0, defocus_nm=defocus_nm))
        u = math.pi * 0.03**2 * defocus_nm / (2 * POINT.beam.wavelength_nm)
        n = len(blurred.share) // 2
        assert blurred.share[n, n] / focused == pytest.approx((math.sin(u) / u) ** 2, abs=0.005)


def test_astigmatism_and_defocus_stretch_the_probe_along_their_axis():
    def spread(optics: OpticsConfig) -> np.ndarray:
        """Second moments of the bright part, ``(row, col)``."""
        share = probe_intensity(optics).share
        row, col = np.indices(share.shape) - len(share) // 2
        near = np.where(np.hypot(row, col) < 20, share, 0.0)
        return np.array([(near * row**2).sum(), (near * col**2).sum()]) / near.sum()

    one = spread(OpticsConfig(astigmatism_nm=6.0, defocus_nm=6.0))
    other = spread(OpticsConfig(astigmatism_nm=6.0, defocus_nm=-6.0))
    turned = spread(OpticsConfig(astigmatism_nm=6.0, astigmatism_deg=90.0, defocus_nm=6.0))

    # With C12 = defocus the two cancel along x, where C12 cos 2φ = C12, and add up along y: derived.
    assert one[0] > 1.5 * one[1]
    np.testing.assert_allclose(other, one[::-1], rtol=1e-6)
    np.testing.assert_allclose(turned, one[::-1], rtol=1e-6)


def test_coma_throws_a_tail_to_one_side_of_the_probe_and_to_the_other_of_an_atom():
    """A ray at angle θ lands where the path's gradient says, C21 θ² (2 + cos 2φ, sin 2φ) / 3: derived."""

    def middle(of: Kernel) -> np.ndarray:
        row, col = np.indices(of.share.shape) - len(of.share) // 2
        return np.array([(of.share * row).sum(), (of.share * col).sum()]) / of.share.sum()

    optics = OpticsConfig(coma_nm=300.0)
    along_x = middle(probe_intensity(optics))
    along_y = middle(probe_intensity(OpticsConfig(coma_nm=300.0, coma_deg=90.0)))
    seen = middle(kernel(CARBON, optics, DETECTORS_MRAD["HAADF"]))

    # The mean of it over the aperture, in steps of the grid.
    want = 300.0 * 0.03**2 / 3 / probe_intensity(POINT).step_nm
    np.testing.assert_allclose(along_x, (0.0, want), atol=0.05 * want)
    np.testing.assert_allclose(along_y, along_x[::-1], atol=1e-6)
    # A beam to the left of the atom meets it with the tail on its right.
    np.testing.assert_allclose(seen, -along_x, atol=0.05 * want)


def test_the_source_takes_away_what_a_gaussian_takes_away():
    """Blurring multiplies the transform by ``exp(-2 π² s² k²)``: derived."""
    sharp, blurred = (probe_intensity(OpticsConfig(source_sigma_nm=s)).share for s in (0.0, 0.03))
    n = len(sharp) // 2
    size = 2 * n + 1
    blurred = blurred[len(blurred) // 2 - n :][:size, len(blurred) // 2 - n :][:, :size]
    k = np.fft.fftfreq(size, POINT.resolution_nm / 8)[4:20]
    ratio = np.abs(np.fft.fft2(blurred)[0, 4:20] / np.fft.fft2(sharp)[0, 4:20])

    np.testing.assert_allclose(ratio, np.exp(-2 * math.pi**2 * 0.03**2 * k**2), rtol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voltage_kv": 1.0}, "optics.voltage_kv is 1.0; it takes 20 to 300"),
        ({"semi_angle_mrad": math.nan}, "optics.semi_angle_mrad is nan; it takes 5 to 45"),
        ({"defocus_nm": 100.0}, "optics: the aberrations blur the probe by 3 nm; it takes up to 2"),
        ({"spherical_um": 1000.0}, "optics: the aberrations blur the probe by 27 nm; it takes up to 2"),
    ],
)
def test_optics_out_of_range_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        OpticsConfig(**change)


# -- many atoms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distortion",
    [
        ScanDistortionConfig(row_jitter_px=0.7, row_jitter_across_px=0.4, flyback_px=4.0, hum_px=0.5),
        ScanDistortionConfig(coil_px=3.0, flyback_across=-0.2, flyback_px=3.0, scan_path="serpentine"),
        ScanDistortionConfig(scan_path="sinusoidal", drift_rate_nm_per_s=(0.1, -0.05)),
    ],
    ids=["rows", "coils", "sinusoidal"],
)
def test_each_pixel_is_the_sum_of_the_kernels_at_its_true_beam_position(distortion):
    rng = np.random.default_rng(3)
    geometry = ScanGeometry(
        shape=(64, 56), field_of_view_nm=(1.0, 1.3), center_nm=(0.3, -0.2), rotation_rad=0.5
    )
    path = path_over(geometry, distortion, 500.0)
    atoms_nm, numbers = rng.uniform(-2.0, 2.0, (150, 2)), rng.choice([CARBON, SILICON], 150)
    have = image_of(atoms_nm, numbers, OpticsConfig(), "HAADF", path)

    apart = np.linalg.norm(path.specimen_positions_nm()[:, :, None] - atoms_nm, axis=-1)
    want = np.zeros(geometry.shape)
    for z in (CARBON, SILICON):
        curve = along_a_row(kernel(z, OpticsConfig(), DETECTORS_MRAD["HAADF"]), apart[..., numbers == z])
        want += curve.sum(axis=-1)
    np.testing.assert_allclose(have, want, atol=1e-4 * want.max())


def test_a_turned_scan_sees_the_same_at_the_same_places_of_the_specimen():
    """Aberrations belong to the column and not to the raster."""
    optics = OpticsConfig(astigmatism_nm=8.0, astigmatism_deg=20.0, coma_nm=400.0, defocus_nm=4.0)
    atoms_nm, numbers = np.array([[0.05, -0.1], [0.2, 0.15]]), np.array([CARBON, SILICON])
    square = ScanGeometry(shape=(41, 41), field_of_view_nm=(0.82, 0.82))
    turned = ScanGeometry(shape=(41, 41), field_of_view_nm=(0.82, 0.82), rotation_rad=math.pi / 2)
    one = image_of(atoms_nm, numbers, optics, "MAADF", path_over(square))
    other = image_of(atoms_nm, numbers, optics, "MAADF", path_over(turned))

    # The fast axis points along y, the slow one along -x.
    np.testing.assert_allclose(np.rot90(one), other, atol=1e-4 * one.max())
    assert np.abs(one - one.T).max() > 0.05 * one.max()  # else it would show nothing


def test_without_atoms_in_reach_nothing_is_added():
    path = path_over(ScanGeometry(shape=(8, 8), field_of_view_nm=(0.5, 0.5)))
    image = image_of(np.array([[30.0, 0.0]]), np.array([CARBON]), POINT, "HAADF", path)

    assert (image == 0).all()


def test_a_field_that_would_take_too_large_a_grid_is_refused():
    path = path_over(ScanGeometry(shape=(8, 8), field_of_view_nm=(200.0, 200.0)))
    with pytest.raises(Refused, match="a smaller field of view"):
        image_of(np.zeros((1, 2)), np.array([CARBON]), POINT, "HAADF", path)


def annular_counts(
    atoms_nm: np.ndarray,
    numbers: np.ndarray,
    places_nm: np.ndarray,
    beam: Beam = POINT.beam,
    pixel_nm: float = 0.0075,
) -> dict[str, np.ndarray]:
    """Counts of both detectors by multislice: all atoms at once, on a grid, probe by probe."""
    half_nm = 0.3 + 256 * pixel_nm
    ready = slab(
        [Layer(positions_nm=atoms_nm, numbers=numbers)],
        [0],
        beam,
        lower_nm=(-half_nm, -half_nm),
        upper_nm=(half_nm, half_nm),
        pixel_nm=pixel_nm,
    )
    diffraction = Diffraction(ready, beam, 512)
    k = diffraction.k_per_nm
    mrad = 1e3 * beam.wavelength_nm * np.hypot(k[:, None], k)
    rings = {name: (mrad >= inner) & (mrad < outer) for name, (inner, outer) in DETECTORS_MRAD.items()}
    counts: dict[str, list[np.ndarray]] = {name: [] for name in rings}
    for start in range(0, len(places_nm), 16):
        patterns = diffraction.patterns(places_nm[start : start + 16])
        for name, ring in rings.items():
            counts[name].append(patterns[:, ring].sum(axis=1, dtype=np.float64))
    return {name: np.concatenate(parts) for name, parts in counts.items()}


def test_a_sheet_is_imaged_as_by_multislice():
    """No free scale. What is left are neighbours: the atoms' waves are not quite incoherent."""
    atoms_nm, numbers = graphene_with_a_silicon()
    geometry = ScanGeometry(shape=(15, 15), field_of_view_nm=(0.6, 0.6))
    path = path_over(geometry)
    want = annular_counts(atoms_nm, numbers, path.specimen_positions_nm().reshape(-1, 2))
    for detector, counts in want.items():
        have = image_of(atoms_nm, numbers, POINT, detector, path).ravel()
        off = np.sqrt(((have - counts) ** 2).mean()) / np.ptp(counts)

        assert off < 0.01
        assert np.corrcoef(have, counts)[0, 1] > 0.999
        assert have.max() == pytest.approx(counts.max(), rel=0.035)


def test_an_atom_under_an_aberrated_probe_is_imaged_as_by_multislice():
    """So axes and signs of defocus and astigmatism are those of the diffraction patterns."""
    beam = Beam(defocus_nm=6.0, astigmatism_nm=6.0, astigmatism_rad=math.radians(25.0), spherical_um=-2.0)
    optics = OpticsConfig(
        source_sigma_nm=0.0, defocus_nm=6.0, astigmatism_nm=6.0, astigmatism_deg=25.0, spherical_um=-2.0
    )
    geometry = ScanGeometry(shape=(9, 9), field_of_view_nm=(0.4, 0.4), rotation_rad=0.3)
    path = path_over(geometry)
    atom_nm, number = np.zeros((1, 2)), np.array([CARBON])
    want = annular_counts(atom_nm, number, path.specimen_positions_nm().reshape(-1, 2), beam)
    for detector, counts in want.items():
        have = image_of(atom_nm, number, optics, detector, path).ravel()

        np.testing.assert_allclose(have, counts, atol=0.015 * counts.max())
        square = counts.reshape(9, 9)
        assert np.abs(square - square[:, ::-1]).max() > 0.2 * counts.max()  # else it would show nothing


# The same, of a sheet of 12 x 7 rectangular cells of 2.46 x 4.2608 Å with a silicon in the place of a carbon,
# on 984 x 1008 points (0.030 x 0.0296 Å), every atom on one of them; 1e-4 of the electrons with the beam
# 0, 0.42 .. 5.46 Å from the silicon along a zigzag row.
ABTEM_ROW = {
    "HAADF": [45.0, 22.76, 2.12, 2.16, 1.29, 6.12, 9.56, 4.09, 1.06, 1.49, 1.45, 6.94, 9.16, 3.19],
    "MAADF": [71.49, 37.83, 6.18, 5.83, 4.58, 14.94, 22.39, 10.79, 4.02, 4.73, 5.02, 16.82, 21.52, 8.83],
}


@pytest.mark.parametrize("detector", sorted(ABTEM_ROW))
def test_a_row_through_a_silicon_is_as_by_abtem(detector):
    """All 729 places around it: MAADF nrmse 0.0052, correlation 0.9996; HAADF 0.0034, 0.99994."""
    lattice_nm = np.array([0.246, 0.246 * math.sqrt(3)])
    cells = np.stack(np.meshgrid(np.arange(-18, 18), np.arange(-11, 11)), -1).reshape(-1, 1, 2)
    atoms = ((cells + np.array([(0, 0), (0.5, 1 / 6), (0.5, 1 / 2), (0, 2 / 3)])) * lattice_nm).reshape(-1, 2)
    numbers = np.full(len(atoms), CARBON)
    numbers[np.hypot(*atoms.T).argmin()] = SILICON
    step_nm = 14 * 0.03 / 10
    middle = ScanGeometry(
        shape=(1, 14), field_of_view_nm=(14 * step_nm, step_nm), center_nm=(6.5 * step_nm, 0)
    )
    have = image_of(atoms, numbers, POINT, detector, path_over(middle))[0] * 1e4
    want = np.array(ABTEM_ROW[detector])

    np.testing.assert_allclose(have, want, atol=0.03 * want[0])
    assert np.sqrt(((have - want) ** 2).mean()) < 0.01 * np.ptp(want)
    assert np.corrcoef(have, want)[0, 1] > 0.999
    # A carbon that is next to nothing heavy: 4 % is what its neighbours' waves add.
    assert have[12] == pytest.approx(want[12], rel=0.045)
