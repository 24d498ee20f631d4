"""The 4D-STEM: what its camera counts, what is made of it, and what it delivers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from simulators.diffraction import (
    BATCH,
    DiffractionConfig,
    DiffractionInstrument,
    ZincblendeConfig,
    centre_of_mass,
    count,
    events,
    zincblende_layers,
)
from simulators.faults import FaultConfig
from simulators.multislice import Beam, Diffraction, Layer, slab
from simulators.scan_distortion import ScanDistortionConfig
from streamer.codec import decode, encode
from streamer.messages import Frame, Patches, Request
from tests.measured_patterns import turned_distance

STILL = ScanDistortionConfig(
    drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0, row_jitter_px=0.0, flyback_px=0.0
)
QUICK: dict[str, Any] = {"rows": 10, "cols": 10, "field_of_view_nm": 1.0, "camera_px": 64, "seed": 3}


def instrument(**changes: Any) -> DiffractionInstrument:
    return DiffractionInstrument(DiffractionConfig(**(QUICK | changes)), started_at_s=1e9)


def scanned(of: DiffractionInstrument) -> tuple[list[Patches], Frame]:
    """Take everything of the next scan."""
    patches: list[Patches] = []
    while isinstance(part := of.acquire(), Patches):
        patches.append(part)
    return patches, part


def windows(patches: list[Patches]) -> np.ndarray:
    return np.concatenate([part.windows[:, 0] for part in patches])


def sub_scan(edge: int = 4, **changes: Any) -> Request:
    usual: dict[str, Any] = {
        "session": "s",
        "id": "r-1",
        "action": "scan",
        "scan_position_nm": (0.1, 0.05),
        "position_nm": (0.1, 0.05),
        "dwell_time_us": 1000.0,
        "field_of_view_nm": (0.2, 0.2),
        "shape": (edge, edge),
    }
    return Request(**(usual | changes))


# -- counting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("electrons", [900.0, 40_000.0])
def test_counts_are_poisson_one_by_one_and_pixel_by_pixel(electrons):
    """Mean and variance are the expectation: derived; within five standard errors of 4,000 draws."""
    share = np.random.default_rng(0).dirichlet(np.full(64, 0.3)).astype(np.float32)
    pattern = np.broadcast_to(share.reshape(1, 8, 8), (4000, 8, 8)).copy()
    counts = count(pattern, electrons, np.random.default_rng(1)).reshape(4000, 64)
    expected = share * electrons
    seen = expected > 1

    error = (counts.mean(axis=0) - expected)[seen] / np.sqrt(expected[seen] / 4000)
    assert np.abs(error).max() < 5
    assert counts.var(axis=0)[seen] / expected[seen] == pytest.approx(1, abs=0.15)
    assert (counts.var(axis=0)[seen] / expected[seen]).mean() == pytest.approx(1, abs=0.02)
    together = np.corrcoef(counts[:, seen].T) - np.eye(np.count_nonzero(seen))
    assert np.abs(together).max() < 5 / math.sqrt(4000)


def test_the_noise_of_a_centre_of_mass_is_that_of_its_electrons():
    """Variance <k²> / N along each axis for N electrons: derived; 600 draws, so within 10 %."""
    config = DiffractionConfig()
    disc = (config.angle_mrad < 30).astype(np.float32)
    pattern = np.broadcast_to(disc / disc.sum(), (600, 128, 128)).astype(np.float32)
    centre = centre_of_mass(count(pattern, 1000.0, np.random.default_rng(2)), config.k_per_nm)
    want = (pattern[0].sum(axis=0) * config.k_per_nm**2).sum() / 1000

    assert centre.var(axis=0).mean() == pytest.approx(want, rel=0.1)


def test_a_list_of_electrons_makes_the_same_patterns_and_is_smaller():
    pattern = np.random.default_rng(3).dirichlet(np.full(128 * 128, 0.05)).astype(np.float32)
    counts = count(np.repeat(pattern.reshape(1, 128, 128), 3, axis=0), 1000.0, np.random.default_rng(4))
    listed = events(counts)

    np.testing.assert_array_equal(listed.counts(), counts)
    assert listed.first[-1] == counts.sum()
    assert listed.pixel.nbytes < counts.nbytes / 10


# -- the crystal and the classes of its sites -------------------------------------------------------------


def test_the_layers_of_gaas_have_its_bonds_and_its_density():
    """Bond a √3 / 4, four of them to the other element; 4 + 4 atoms in a cube: crystallography."""
    config = ZincblendeConfig(orientation_deg=20.0)
    layers = zincblende_layers(config, (-2.0, -2.0), (2.0, 2.0))
    spacing = config.lattice_constant_nm / (2 * math.sqrt(2))
    atoms = np.concatenate(
        [
            np.c_[layers[n % 2].positions_nm, np.full(len(layers[n % 2].numbers), n * spacing)]
            for n in range(5)
        ]
    )
    numbers = np.concatenate([layers[n % 2].numbers for n in range(5)])
    middle = np.argmin(np.linalg.norm(atoms - [0, 0, 2 * spacing], axis=1))
    apart = np.linalg.norm(atoms - atoms[middle], axis=1)
    bonded = (apart > 0) & (apart < 0.3)

    assert np.count_nonzero(bonded) == 4
    assert apart[bonded] == pytest.approx(config.lattice_constant_nm * math.sqrt(3) / 4)
    assert set(numbers[bonded]) == {31, 33} - {numbers[middle]}
    per_nm2 = len(layers[0].numbers) / 16
    assert per_nm2 / spacing == pytest.approx(8 / config.lattice_constant_nm**3, rel=0.05)


def told_apart(
    diffraction: Diffraction, places_nm: np.ndarray, electrons: float, radius_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of patterns when turned onto each other, and how far two draws of the same ones may be.

    The limit is five standard deviations above the mean of six such distances, of the worse of the two.
    """
    clean = diffraction.patterns(places_nm)
    draws = [count(clean, electrons, np.random.default_rng(seed)) for seed in range(5, 9)]

    def apart(first, second):
        return turned_distance(first, second, radius_px=radius_px)[0]

    pairs = list(itertools.combinations(draws, 2))
    alike = np.array([[apart(one[n], other[n]) for one, other in pairs] for n in range(len(clean))])
    limit = alike.mean(axis=1) + 5 * alike.std(axis=1)
    return np.array([[apart(a, b) for b in draws[1]] for a in draws[0]]), np.maximum.outer(limit, limit)


def test_the_sites_of_zincblende_are_told_apart_whatever_their_orientation():
    """Cation, anion, middle of their bond, tunnel: 9.6 nm of GaAs, 30,000 electrons in a pattern."""
    a = ZincblendeConfig().lattice_constant_nm
    config = DiffractionConfig.for_zincblende()
    sites = np.array([(0, 0), (0, a / 4), (0, a / 8), (a / math.sqrt(8), a / 8)])
    ready = slab(
        zincblende_layers(ZincblendeConfig(), (-1.6, -1.6), (1.8, 1.8)),
        [n % 2 for n in range(48)],
        config.beam,
        lower_nm=(-1.6, -1.6),
        upper_nm=(1.8, 1.8),
        pixel_nm=config.grid_nm,
        layer_nm=a / (2 * math.sqrt(2)),
        thermal_sd_nm=config.thermal_sd_nm,
    )
    across, limit = told_apart(Diffraction(ready, config.beam), sites, 30_000.0, 42.0)

    others = ~np.eye(4, dtype=bool)
    assert (across[others] > limit[others]).all()


def sheet_with_a_vacancy(turn_rad: float = 0.0) -> Layer:
    a = 0.246
    steps = np.stack(np.meshgrid(*2 * [np.arange(-24, 25)]), -1).reshape(-1, 2)
    hexagons = steps @ np.array([[a, 0.0], [a / 2, a * math.sqrt(3) / 2]])
    bond = np.array([0.0, a / math.sqrt(3)])
    atoms = np.concatenate([hexagons, hexagons + bond])
    atoms = atoms[(np.hypot(*atoms.T) > 0.01) & (np.abs(atoms).max(axis=1) < 3.0)]
    cos, sin = math.cos(turn_rad), math.sin(turn_rad)
    return Layer(positions_nm=atoms @ np.array([[cos, sin], [-sin, cos]]), numbers=np.full(len(atoms), 6))


def test_a_vacancys_neighbours_are_alike_when_turned_and_unlike_the_sheets_other_atoms():
    """At 10 million electrons, averaged patterns: at a million they are lost in the noise.

    Neighbours are told from the sheet by the disc, in which a thin specimen shows its asymmetry; the place of
    the missing atom, as symmetric as any other, by what little is scattered beyond.
    """
    beam = Beam()
    layer = sheet_with_a_vacancy()
    corners = {"lower_nm": (-2.6, -2.6), "upper_nm": (2.6, 2.6)}
    diffraction = Diffraction(slab([layer], [0], beam, pixel_nm=0.02, thermal_sd_nm=0.005, **corners), beam)
    order = np.argsort(np.hypot(*layer.positions_nm.T), kind="stable")
    bulk = layer.positions_nm[np.argmin(np.hypot(*(layer.positions_nm - [0.9, 0.1]).T))]
    places = np.array([*layer.positions_nm[order[:3]], bulk, (0.0, 0.0)])
    across, limit = told_apart(diffraction, places, 1e7, 14.0)
    clean = diffraction.patterns(places) * np.float32(1e7)
    turns = [turned_distance(clean[0], clean[n], radius_px=14.0)[1] for n in (1, 2)]

    assert (across[:3, :3] < limit[:3, :3]).all()
    assert (across[:3, 3:] > limit[:3, 3:]).all()
    with_dark_field, limit = told_apart(diffraction, places[3:], 1e7, 40.0)
    assert with_dark_field[0, 1] > limit[0, 1]
    assert sorted(abs(math.degrees(turn)) for turn in turns) == pytest.approx([120, 120], abs=1.5)


def test_a_turned_specimen_turns_its_pattern_by_as_much():
    beam = Beam()
    corners = {"lower_nm": (-2.0, -2.0), "upper_nm": (2.0, 2.0)}
    turn = math.radians(17.0)
    bond = 0.246 / math.sqrt(3)
    place = np.array([[0.0, bond]])
    clean = []
    for angle in (0.0, turn):
        ready = slab([sheet_with_a_vacancy(angle)], [0], beam, pixel_nm=0.02, **corners)
        cos, sin = math.cos(angle), math.sin(angle)
        there = place @ np.array([[cos, sin], [-sin, cos]])
        clean.append(Diffraction(ready, beam).patterns(there)[0] * np.float32(1e7))

    _, found = turned_distance(*clean, radius_px=14.0)
    assert math.degrees(found) == pytest.approx(17.0, abs=1.5)


# -- what the instrument delivers -----------------------------------------------------------------------


def test_a_scan_comes_in_batches_of_64_and_then_as_the_frame_that_they_make():
    microscope = instrument()
    patches, frame = scanned(microscope)
    seen = windows(patches)
    angle = microscope.config.angle_mrad
    in_order = [part.acquired_at_s for part in patches] + [frame.acquired_at_s]

    assert [len(part.windows) for part in patches] == [BATCH, 36]
    assert seen.shape == (100, 64, 64)
    assert frame.channels == ("HAADF", "BF", "CoM x", "CoM y")
    assert frame.image[1].ravel() == pytest.approx(seen[:, angle <= 30].sum(axis=1))
    assert frame.image[0].ravel() == pytest.approx(seen[:, (angle >= 80) & (angle <= 120)].sum(axis=1))
    mrad = 1e3 * microscope.config.beam.wavelength_nm
    want = mrad * centre_of_mass(seen, microscope.config.k_per_nm)
    np.testing.assert_allclose(frame.image[2:].reshape(2, -1).T, want, atol=1e-4)
    assert in_order == sorted(in_order)
    assert seen.sum(axis=(1, 2)).mean() == pytest.approx(microscope.config.electrons(1000.0), rel=0.01)


def test_a_batch_says_where_the_probe_was_sent_and_travels_on_the_wire():
    microscope = instrument(rotation_deg=30.0)
    patches, frame = scanned(microscope)
    arrived = decode([bytes(part) for part in encode(patches[1])])

    assert isinstance(arrived, Patches)
    np.testing.assert_array_equal(arrived.windows, patches[1].windows)
    places = np.concatenate([part.positions_px for part in patches])
    np.testing.assert_array_equal(places, np.argwhere(np.ones((10, 10))))
    for part in patches:
        assert part.geometry == frame.geometry
        assert part.positions_nm == pytest.approx(part.geometry.to_nm(part.positions_px), abs=1e-5)
        # a pixel of a pattern is 1 / window_nm
        step_per_nm = np.diff(microscope.config.k_per_nm)[0]
        assert part.window_nm == pytest.approx(1 / step_per_nm)
        assert part.window_per_nm == pytest.approx(64 * step_per_nm)
        assert (part.channels, part.request_id) == (("diffraction",), None)
        assert part.dose_e == pytest.approx(microscope.config.electrons(part.dwell_time_us))


def test_each_pattern_is_of_where_the_beam_really_was():
    rough = ScanDistortionConfig(
        drift_rate_nm_per_s=(0.8, -0.5), drift_settling_s=2.0, row_jitter_px=1.0, flyback_px=2.0, coil_px=1.0
    )
    microscope = instrument(distortion=rough, beam_current_pa=5e4, specimen="graphene")
    patches, _ = scanned(microscope)
    assert microscope.last_path is not None
    really_nm = microscope.last_path.specimen_positions_nm().reshape(-1, 2)
    sent_nm = np.concatenate([part.positions_nm for part in patches])
    seen = windows(patches)
    expected = microscope.simulator._diffraction.patterns(really_nm)
    elsewhere = microscope.simulator._diffraction.patterns(sent_nm)

    def misfit(share):
        mean = share * microscope.config.electrons(1000.0)
        return ((seen - mean) ** 2 / np.maximum(mean, 1))[:, microscope.config.angle_mrad < 28].mean()

    assert misfit(expected) == pytest.approx(1, abs=0.02)
    assert misfit(elsewhere) > 2


def test_a_serpentine_scan_comes_in_the_order_of_its_time():
    there_and_back = ScanDistortionConfig(scan_path="serpentine")
    patches, _ = scanned(instrument(distortion=there_and_back))
    places = np.concatenate([part.positions_px for part in patches])

    assert places[8:13].tolist() == [[0, 8], [0, 9], [1, 9], [1, 8], [1, 7]]
    assert patches[0].acquired_at_s == pytest.approx(1e9 + 64e-3, abs=1e-6)


def test_a_sub_scans_patterns_come_before_those_of_the_scan_under_way():
    microscope = instrument()
    first = microscope.acquire()
    outcome, frame = microscope.execute(sub_scan())
    asked, then = microscope.acquire(), microscope.acquire()

    assert (outcome.status, outcome.action) == ("ok", "scan")
    assert outcome.dose_e == pytest.approx(16 * microscope.config.electrons(1000.0))
    assert frame is not None
    assert frame.request_id == "r-1"
    assert isinstance(first, Patches)
    assert isinstance(asked, Patches)
    assert isinstance(then, Patches)
    assert (asked.geometry, asked.request_id) == (frame.geometry, "r-1")
    assert len(asked.windows) == 16
    assert then.geometry == first.geometry
    assert then.positions_px[0].tolist() == [6, 4]
    bright = asked.windows[:, 0, microscope.config.angle_mrad <= 30].sum(axis=1)
    assert frame.image[1].ravel() == pytest.approx(bright)
    truth = microscope.truth()
    scanned(microscope)
    assert len(truth["drift_nm"]) == 1  # of frames given: that of the sub-scan
    assert len(microscope.truth()["drift_nm"]) == 2


def test_what_it_cannot_do_is_refused_with_a_reason():
    microscope = instrument()
    spectrum, _ = microscope.execute(sub_scan(action="spectrum", field_of_view_nm=None, shape=None))
    too_many, frame = microscope.execute(sub_scan(edge=65))

    assert (spectrum.status, frame) == ("refused", None)
    assert "ask for a scan" in spectrum.reason
    assert too_many.status == "refused"
    assert "4096" in too_many.reason


def test_parked_it_gives_nothing_and_goes_on_where_it_was():
    microscope, other = instrument(), instrument()
    microscope.acquire()
    microscope.park()
    with pytest.raises(RuntimeError, match="parked"):
        microscope.acquire()
    microscope.go(0.0)

    other.acquire()
    assert windows([microscope.acquire()]).tobytes() == windows([other.acquire()]).tobytes()


def test_off_the_specimen_there_is_the_bare_disc():
    microscope = instrument(distortion=STILL)
    far = (80.0, 80.0)
    outcome, frame = microscope.execute(sub_scan(scan_position_nm=far, position_nm=far))
    patches = microscope.acquire()

    assert outcome.status == "ok"
    assert frame is not None
    assert frame.image[0].max() == 0
    assert isinstance(patches, Patches)
    assert patches.windows[:, 0, microscope.config.angle_mrad > 34].sum() == 0


# -- what goes wrong -------------------------------------------------------------------------------------


def test_faults_are_seen_in_the_patterns():
    faults = (
        FaultConfig(frame=1, kind="blank"),
        FaultConfig(frame=2, kind="torn"),
        FaultConfig(frame=3, kind="amorphous"),
    )
    microscope = instrument(faults=faults, beam_current_pa=100.0, distortion=STILL)
    usual, blank, torn, amorphous = (windows(scanned(microscope)[0]) for _ in range(4))

    assert usual.sum() > 0
    assert blank.sum() == 0
    assert (torn[:60].sum(axis=(1, 2)) > 0).all()
    assert torn[60:].sum() == 0
    assert amorphous.sum() == pytest.approx(usual.sum(), rel=0.01)
    k = microscope.config.k_per_nm
    moved = centre_of_mass(amorphous, k) - centre_of_mass(usual, k)
    assert np.sqrt((moved**2).mean()) > 0.02


def test_dead_pixels_say_nothing_and_are_known():
    microscope = instrument(dead_pixels=100, beam_current_pa=100.0)
    patches, _ = scanned(microscope)
    dead = microscope.truth()["dead_px"]

    assert np.count_nonzero(dead) == 100
    assert windows(patches)[:, dead].max() == 0
    in_disc = dead & (microscope.config.angle_mrad < 25)
    assert np.count_nonzero(in_disc) > 0


def test_a_turned_camera_turns_the_deflections():
    """A field along the specimen's x is seen at minus the angle by which the camera is turned: derived."""
    turned = 35.0
    straight = instrument(distortion=STILL, beam_current_pa=1e4)
    askew = instrument(distortion=STILL, beam_current_pa=1e4, camera_rotation_deg=turned)
    first, second = (scanned(microscope)[1].image[2:].reshape(2, -1) for microscope in (straight, askew))
    cos, sin = math.cos(math.radians(turned)), math.sin(math.radians(turned))
    want = np.array([[cos, sin], [-sin, cos]]) @ first

    assert np.corrcoef(second.ravel(), want.ravel())[0, 1] > 0.95


# -- the rest ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    def taken(seed: int) -> bytes:
        microscope = instrument(seed=seed, dead_pixels=3)
        return b"".join(windows(scanned(microscope)[0]).tobytes() for _ in range(2))

    assert taken(1) == taken(1)
    assert taken(1) != taken(2)


def test_the_truth_knows_the_vacancies_and_the_layers():
    sheet = instrument(rows=8, cols=8).truth()
    thick = DiffractionInstrument(
        DiffractionConfig.for_zincblende(rows=8, cols=8, field_of_view_nm=1.0, camera_px=64),
        started_at_s=0.0,
    ).truth()

    assert "carbon beside a vacancy" in sheet["site_names"]
    assert (sheet["site_class"] == 4).sum() >= 3
    assert set(thick["numbers"]) == {31, 33}
    assert len(thick["layer_order"]) == 48
    assert len(thick["positions_nm"]) == len(thick["numbers"]) == len(thick["layer"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"annular_mrad": (120.0, 80.0)}, "annular_mrad"),
        ({"semi_angle_mrad": 90.0, "camera_mrad": 80.0}, "camera must see more"),
        ({"specimen": "zincblende", "semi_angle_mrad": 85.0}, "two thirds of it"),
        ({"camera_px": 65}, "even number"),
        ({"camera_px": 16}, "less than 8 pixels wide"),
        ({"voltage_kv": 1.0}, "diffraction.voltage_kv is 1.0; it takes 10 to 1000"),
        ({"dead_pixels": 5000, "camera_px": 64}, "no more pixels"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        DiffractionConfig(**wrong)


def test_a_wrong_crystal_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"zincblende\.cation is 92; it takes 1 to 83"):
        ZincblendeConfig(cation=92)
    for layers in (0, 2000):
        with pytest.raises(ValueError, match=r"zincblende\.layers"):
            ZincblendeConfig(layers=layers)
