"""The microscope over plasmonic particles: what it counts, where, and what it refuses."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest

from simulators.eels import EelsConfig, EelsInstrument, EelsSimulator, thickness_nm
from simulators.faults import FaultConfig
from simulators.scan_distortion import ScanDistortionConfig
from streamer.messages import Request

STILL = ScanDistortionConfig(
    drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0, row_jitter_px=0.0, flyback_px=0.0
)
SMALL: dict[str, Any] = {"rows": 24, "cols": 24, "field_of_view_nm": 40.0, "seed": 3}


def config(**fields: Any) -> EelsConfig:
    return EelsConfig(**(SMALL | fields))


@functools.cache
def still() -> EelsSimulator:
    return EelsSimulator(config(distortion=STILL))


def instrument(**fields: Any) -> EelsInstrument:
    return EelsInstrument(config(**fields), started_at_s=1e9)


def ask(position_nm: tuple[float, float], dwell_time_us: float = 1e5) -> Request:
    return Request(
        session="s",
        id="r",
        action="spectrum",
        scan_position_nm=position_nm,
        position_nm=position_nm,
        dwell_time_us=dwell_time_us,
    )


# -- the particles -----------------------------------------------------------------------------


def test_the_particles_of_a_monolayer_keep_their_distance_and_fill_the_field():
    simulator = EelsSimulator(config(voids=0.0, disorder_nm=3.0))
    places, radii = simulator.particles.positions_nm, simulator.particles.radii_nm
    apart = np.sqrt(((places[:, None] - places) ** 2).sum(axis=-1)) + np.diag(np.full(len(radii), np.inf))

    assert (apart - radii[:, None] - radii).min() > 1.5 - 0.01
    corners = np.array([[x, y] for x in (-20, 20) for y in (-20, 20)])
    assert np.sqrt(((corners[:, None] - places) ** 2).sum(axis=-1)).min(axis=1).max() < 15


def test_sizes_and_dopings_are_spread_as_configured():
    particles = EelsSimulator(EelsConfig(field_of_view_nm=160.0)).particles

    assert particles.radii_nm.std() / particles.radii_nm.mean() == pytest.approx(0.06, abs=0.012)
    assert particles.carriers_per_cm3.std() / 9.2e20 == pytest.approx(0.08, abs=0.015)
    assert particles.carriers_per_cm3.mean() == pytest.approx(9.2e20, rel=0.03)


def test_the_thickness_adds_up_to_the_volume_of_the_particles():
    particles = still().particles
    x, y = np.meshgrid(np.arange(-90, 90, 0.25), np.arange(-90, 90, 0.25))
    probes = np.stack([x.ravel(), y.ravel()], axis=1)
    volume = thickness_nm(particles, probes, particles.radii_nm, 0.3).sum() * 0.25**2

    assert volume == pytest.approx((4 / 3 * np.pi * particles.radii_nm**3).sum(), rel=0.002)


def test_a_cube_is_as_thick_as_its_edge_and_ends_where_it_should():
    cube = EelsSimulator(config(arrangement="single", shape="cube", probe_sigma_nm=0.01))
    probes = np.array([[0.0, 0.0], [5.5, 0.0], [5.95, 0.0], [6.05, 0.0], [5.9, 5.9]])
    thickness = thickness_nm(cube.particles, probes, np.array([1.0]), 0.01)

    assert thickness[:2] == pytest.approx([12.0, 10 + 2 * np.sqrt(1 - 0.25)], abs=0.01)
    assert 10 < thickness[2] < 11
    assert not thickness[3:].any()


# -- frames ------------------------------------------------------------------------------------


def test_a_frame_shows_the_particles_where_they_are():
    microscope = instrument(distortion=STILL, particle_counts=1000.0)
    frame = microscope.acquire()
    geometry = microscope.config.geometry
    places = geometry.to_nm(np.argwhere(np.ones((24, 24))).astype(float))
    radii = microscope.particles.radii_nm
    thickness = thickness_nm(microscope.particles, places, radii, 0.2).reshape(24, 24)
    expected = 1000 * thickness / 12 + 3 + 10

    assert frame.channels == ("HAADF",)
    assert np.mean((frame.image[0] - expected) ** 2 / (expected - 10)) == pytest.approx(1.0, abs=0.2)


def test_drift_moves_the_particles_in_the_frame():
    drift = ScanDistortionConfig(drift_rate_nm_per_s=(5.0, 0.0), drift_settling_s=1.0, row_jitter_px=0.0)
    microscope = instrument(distortion=drift, dwell_time_us=5000.0, particle_counts=1e4)
    microscope.acquire()
    place = microscope.last_path.places_px(microscope.particles.positions_nm)
    seen = microscope.last_path.seen_px(microscope.particles.positions_nm)

    assert np.abs(seen - place).max() > 1  # 40 nm over 24 pixels, 5 nm of drift
    image = microscope.acquire().image[0]
    path = microscope.last_path
    seen = np.rint(path.seen_px(microscope.particles.positions_nm)).astype(int)
    inside = np.all((seen > 0) & (seen < 23), axis=1)
    assert image[tuple(seen[inside].T)].min() > 5000


def test_a_map_counts_what_spectra_have_in_its_window():
    microscope = instrument(
        distortion=STILL, map_ev=0.7, map_width_ev=0.1, resolution_ev=0.02, dwell_time_us=1e5
    )
    frame, spectra = microscope.acquire_spectrum_image(1e5)
    window = np.abs(microscope.config.energy_loss_ev - 0.7) < 0.05
    counted = spectra[..., window].sum(axis=-1)

    assert frame.channels == ("HAADF", "loss at 0.7 eV")
    # Both have shot noise; the map has 5 energies in the window.
    assert counted.mean() * 0.1 / (0.005 * window.sum()) == pytest.approx(frame.image[1].mean(), rel=0.03)
    assert np.corrcoef(counted.ravel(), frame.image[1].ravel())[0, 1] > 0.9


# -- spectra -----------------------------------------------------------------------------------


def test_a_spectrum_image_has_at_each_pixel_the_spectrum_of_its_place():
    microscope = instrument(distortion=STILL)
    _, spectra = microscope.acquire_spectrum_image(1e5)
    places = microscope.last_path.specimen_positions_nm().reshape(-1, 2)
    expected = microscope.simulator.clean_spectra(places, microscope.config.electrons(1e5))

    assert spectra.shape == (24, 24, 256)
    assert np.mean((spectra.reshape(-1, 256) - expected) ** 2 / expected) == pytest.approx(1.0, abs=0.02)


def test_a_measured_spectrum_has_the_mean_and_the_variance_of_counts():
    microscope = instrument(distortion=STILL)
    place = (1.0, 2.0)
    taken = np.array([microscope.execute(ask(place, 1e4))[0].spectrum for _ in range(300)])
    expected = microscope.simulator.clean_spectra([place], microscope.config.electrons(1e4))[0]

    assert np.all(taken == np.rint(taken))
    assert np.mean((taken.mean(axis=0) - expected) ** 2 / (expected / 300)) == pytest.approx(1.0, abs=0.3)
    assert np.median(taken.var(axis=0) / expected) == pytest.approx(1.0, abs=0.05)


def test_a_spectrum_is_of_the_particle_that_has_drifted_under_the_probe():
    drift = ScanDistortionConfig(drift_rate_nm_per_s=(5.0, -3.0), drift_settling_s=1.0)
    microscope = instrument(distortion=drift)
    microscope.go(30.0)  # comes to rest
    outcome, _ = microscope.execute(ask((6.0, -1.0), 1e6))
    expected = microscope.simulator.clean_spectra([[1.0, 2.0]], microscope.config.electrons(1e6))[0]

    assert np.mean((outcome.spectrum - expected) ** 2 / expected) == pytest.approx(1.0, abs=0.4)


def test_almost_all_electrons_are_in_the_zero_loss_peak():
    simulator = EelsSimulator(config(energy_offset_ev=-0.4, energy_step_ev=0.0075, zero_loss_tail=0.0))
    counts = simulator.clean_spectra([[200.0, 200.0], [0.0, 0.0]], 1e6)

    assert counts[0].sum() == pytest.approx(1e6, rel=1e-3)
    assert simulator.loss_ev[counts[0].argmax()] == pytest.approx(0.0, abs=0.004)
    assert 1e6 < counts[1].sum() < 1.05e6


def test_broadening_keeps_what_is_lost_and_widens_the_peak():
    place = [[0.0, 200.0]]
    sharp, broad = (
        EelsSimulator(config(arrangement="single", damping_ev=0.02, resolution_ev=fwhm, zero_loss_tail=0.0))
        for fwhm in (0.003, 0.1)
    )
    high = sharp.loss_ev > 0.4
    one, other = (s.clean_spectra(place, 1e9)[0][high] for s in (sharp, broad))

    assert other.sum() == pytest.approx(one.sum(), rel=0.01)
    assert other.max() < 0.5 * one.max()


def test_the_doping_of_particles_far_apart_is_read_from_their_peaks():
    simulator = EelsSimulator(
        config(
            arrangement="array",
            pitch_nm=80.0,
            field_of_view_nm=200.0,
            carriers_spread=0.3,
            damping_ev=0.02,
            resolution_ev=0.01,
        )
    )
    particles = simulator.particles
    beside = particles.positions_nm + np.stack([particles.radii_nm + 3, 0 * particles.radii_nm], axis=1)
    loss_ev = np.linspace(0.4, 1.1, 1401)
    peaks = loss_ev[simulator.loss(beside, loss_ev).argmax(axis=1)]

    assert len(peaks) >= 9
    np.testing.assert_allclose(
        peaks / peaks[0], np.sqrt(particles.carriers_per_cm3 / particles.carriers_per_cm3[0]), rtol=0.01
    )


def test_core_losses_tell_how_much_indium_and_tin_is_under_the_beam():
    simulator = EelsSimulator(
        config(arrangement="array", pitch_nm=30.0, energy_offset_ev=400.0, energy_step_ev=1.0)
    )
    particles = simulator.particles
    on, off = particles.positions_nm, particles.positions_nm + 15.0
    loss_ev = simulator.loss_ev
    counts = simulator.clean_spectra(on, 1e9)
    before, behind = counts[:, loss_ev < 440].mean(axis=1), counts[:, abs(loss_ev - 480) < 4].mean(axis=1)

    assert not simulator.clean_spectra(off, 1e9).any()
    assert behind.min() > 1.5 * before.max()
    np.testing.assert_allclose(behind / behind[0], particles.radii_nm / particles.radii_nm[0], rtol=0.02)
    # Behind the onset of tin the share of the dopants shows.
    ratio = counts[:, abs(loss_ev - 525) < 4].mean(axis=1) / behind
    assert np.corrcoef(ratio, particles.carriers_per_cm3)[0, 1] > 0.95


@pytest.mark.parametrize(("shape", "arrangement"), [("cube", "single"), ("sphere", "dimer")])
def test_one_and_two_particles_are_done_by_boundary_elements(shape, arrangement):
    simulator = EelsSimulator(config(shape=shape, arrangement=arrangement))
    loss = simulator.loss([[9.0, 9.0], [0.0, 8.0], [0.0, 0.0]], simulator.loss_ev)

    assert loss.min() > 0
    lowest = simulator.mode_energies_ev[0]
    assert lowest < 1.78 / np.sqrt(6) - 0.02  # a sphere has none below its dipole


# -- faults and the same again -------------------------------------------------------------------


def test_a_blanked_beam_counts_nothing_and_a_molten_film_has_no_plasmon():
    faults = (FaultConfig(frame=1, kind="blank"), FaultConfig(frame=2, kind="amorphous"))
    microscope = instrument(faults=faults, distortion=STILL)
    whole = microscope.acquire().image[0]
    dark = microscope.execute(ask((0.0, 0.0)))[0].spectrum
    blank = microscope.acquire().image[0]
    film = microscope.execute(ask((0.0, 0.0)))[0].spectrum
    molten = microscope.acquire().image[0]
    intact = microscope.execute(ask((0.0, 0.0)))[0].spectrum

    assert not dark.any()
    assert np.all(blank == 10)
    assert whole.std() > 2 * molten.std() > 0
    assert film[100:].sum() < 0.5 * intact[100:].sum()


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    def run(seed: int) -> bytes:
        microscope = instrument(seed=seed)
        frame, spectra = microscope.acquire_spectrum_image()
        outcome, _ = microscope.execute(ask((1.0, 1.0)))
        return frame.image.tobytes() + spectra.tobytes() + outcome.spectrum.tobytes()

    assert run(5) == run(5) != run(6)


def test_its_truth_has_the_particles_their_modes_and_clean_spectra():
    microscope = instrument()
    truth = microscope.truth()
    count = len(microscope.particles.radii_nm)

    for name in ("radii_nm", "carriers_per_cm3", "plasma_ev", "tin_per_nm3", "numbers"):
        assert truth[name].shape == (count,)
    assert truth["mode_energies_ev"].shape == (3 * count,)
    assert np.all(np.diff(truth["mode_energies_ev"]) >= 0)
    assert truth["spectra"].shape == (count, 256)
    np.testing.assert_allclose(
        truth["plasma_ev"], 1.78 * np.sqrt(truth["carriers_per_cm3"] / 9.2e20), rtol=1e-3
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"energy_offset_ev": 3.0, "energy_step_ev": 0.1}, "window is 3 to 28.5 eV; it takes up to 5 eV"),
        ({"shape": "cube"}, "eels.arrangement is monolayer; cubes take dimer or single"),
        ({"shape": "cube", "arrangement": "single", "edge_nm": 7.0}, "eels.edge_nm is 7.0; it takes up to"),
        ({"pitch_nm": 12.0}, "eels.pitch_nm is 12.0; particles of this size and gap take 14.9"),
        ({"damping_ev": 0.0}, "eels.damping_ev is 0.0; it takes 0.005 to 1"),
        ({"faults": (FaultConfig(frame=0, kind="tip"),)}, "an electron beam has none"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(fields, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        config(**fields)

    assert "\n" not in str(error.value)


def test_more_particles_than_can_be_computed_are_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"a larger eels.pitch_nm or a smaller eels.field_of_view_nm"):
        EelsSimulator(config(field_of_view_nm=1000.0))
