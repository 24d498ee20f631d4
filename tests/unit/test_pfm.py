"""The simulated PFM: what the tip reads of a known film, and what it writes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from simulators import pfm
from simulators.faults import FaultConfig
from simulators.landau import FERRIELECTRIC, Landau, phases
from simulators.pfm import Film, FilmConfig, PfmConfig, PfmInstrument, PfmSimulator, Weighing
from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.simulator import Exposure, Scan
from streamer.messages import Request, ScanGeometry

STILL = ScanDistortionConfig(
    drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0, row_jitter_px=0.0, flyback_px=0.0
)
ONE_DOMAIN = FilmConfig(
    cells=96, domains="one", growth=10.0, imprint=0.0, imprint_sd=0.0, disorder=0.0, thermal=0.0
)
GROWN = FilmConfig(cells=96, growth=60.0)
QUIET: dict[str, Any] = {"noise_pm": 0.0, "height_noise_nm": 0.0, "offset_pm": (0.0, 0.0)}


def config(**fields: Any) -> PfmConfig:
    """A small field of 350 nm over 96 cells of 4 nm, unless told otherwise."""
    usual: dict[str, Any] = {
        "rows": 64,
        "cols": 64,
        "field_of_view_nm": 350.0,
        "film": GROWN,
        "distortion": STILL,
        "tip_radius_nm": 20.0,
        "seed": 1,
    }
    return PfmConfig(**(usual | fields))


def still_path(geometry: ScanGeometry, seconds: float = 0.001) -> BeamPath:
    dwell_time_us = seconds * 1e6 / math.prod(geometry.shape)
    return ScanDistortion(STILL, np.random.default_rng(0)).scan(geometry, dwell_time_us)


def image(simulator: PfmSimulator, of: PfmConfig, seconds: float = 0.001, *faults: str) -> np.ndarray:
    """Scan the configured field at once, as if it took so long; shape (3, rows, cols)."""
    scan = Scan(
        path=still_path(of.geometry, seconds), dwell_time_us=of.dwell_time_us, faults=frozenset(faults)
    )
    return simulator.acquire_image(scan).values


def loop(simulator: PfmSimulator, place: tuple[float, float], seconds: float) -> tuple[Any, Any]:
    curve = simulator.acquire_curve(Exposure(position_nm=place, dwell_time_us=seconds * 1e6))
    return curve.bias_v, curve.values


def switched_nm2(simulator: PfmSimulator) -> float:
    return float(simulator.truth()["mark_switched_nm2"][-1])


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: PfmConfig(field_of_view_nm=5000.0), "pfm.film.cells is 256: cells of 21.5 nm .* takes 917"),
        (lambda: PfmConfig(bias_points=2), "pfm.bias_points is 2; it takes 8 to 4096"),
        (lambda: PfmConfig(offset_pm=(2e3, 0.0)), "pfm.offset_pm is .*; it takes -1000 to 1000"),
        (
            lambda: PfmConfig(bias_v=190.0, bias_offset_v=20.0),
            "pfm.field_per_v .* makes 105; it takes up to 100",
        ),
        (lambda: FilmConfig(cells=4), "film.cells is 4; it takes 16 to 2048"),
        (lambda: FilmConfig(relaxation_s=0.0), "film.relaxation_s is 0.0; it takes 0.01 to"),
        (lambda: FilmConfig(order="CuInP2S6", temperature_k=400.0), "film.order is 'CuInP2S6' at 400 K"),
        (lambda: FilmConfig(order="own", landau=Landau(polar_2=1.0, antipolar_2=1.0)), "has no order"),
    ],
)
def test_a_configuration_without_sense_is_refused_in_one_line(make, why):
    with pytest.raises(ValueError, match=why):
        make()


def test_the_cure_for_too_coarse_a_film_is_a_cure():
    fine = PfmConfig(field_of_view_nm=5000.0, film=FilmConfig(cells=917))
    assert fine.cell_nm <= 1.5 * fine.film.length_nm
    with pytest.raises(ValueError, match="takes 917"):
        PfmConfig(field_of_view_nm=5000.0, film=FilmConfig(cells=916))


def test_the_response_is_that_of_electrostriction_under_polarisation():
    """By hand: 2 (-2.5455 m^4/C^2) (8.854e-12 F/m) 40 (0.0316 C/m^2) = -57.0 pm/V; measured: -12 to -95."""
    assert PfmConfig().response_pm == pytest.approx(-56.98, abs=0.01)
    assert PfmConfig(ac_bias_v=0.5).response_pm == pytest.approx(-28.49, abs=0.01)


def test_a_triangle_goes_up_down_and_back_a_ramp_one_way_and_a_pulse_is_let_go():
    triangle = PfmConfig(bias_v=8.0, bias_offset_v=1.0, bias_points=16, bias_cycles=2).bias()
    assert triangle.shape == (32,)
    np.testing.assert_allclose(triangle[[3, 7, 11, 15]], [9.0, 1.0, -7.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(np.abs(np.diff(triangle)), 2.0)

    ramp = PfmConfig(bias_v=-4.0, bias_shape="ramp", bias_points=8).bias()
    np.testing.assert_allclose(ramp, [-1, -2, -3, -4, -3, -2, -1, 0], atol=1e-12)

    pulse = PfmConfig(bias_v=-5.0, bias_shape="pulse", bias_points=8).bias()
    np.testing.assert_array_equal(pulse, [-5, -5, -5, -5, 0, 0, 0, 0])


# -- what the tip reads ------------------------------------------------------------------------


def test_an_image_is_the_film_of_the_truth_through_the_tip():
    of = config(**QUIET)
    simulator = PfmSimulator(of)
    truth = simulator.truth()
    values = image(simulator, of)

    seen = truth["response_pm"] * Weighing(of.resolution_nm / of.cell_nm).image(truth["polar"])
    x, y = np.moveaxis(still_path(of.geometry).specimen_positions_nm(), -1, 0)
    corner = truth["film_corner_nm"]
    row, col = ((v - first) / truth["cell_nm"] for v, first in ((y, corner[1]), (x, corner[0])))
    at = seen[np.rint(row).astype(int), np.rint(col).astype(int)]
    assert np.corrcoef(np.abs(at).ravel(), values[0].ravel())[0, 1] > 0.95
    sign = values[0] * np.cos(values[1] - of.phase_offset_rad)
    assert np.corrcoef(at.ravel(), sign.ravel())[0, 1] > 0.99


def test_between_cells_it_reads_smoothly():
    """A wave of ten cells, read at places between them, to 1 % of its height."""
    maps = np.zeros((40, 40, 4), np.float32)
    waves = np.sin(2 * np.pi * np.arange(40) / 10)
    maps[..., 0] = maps[..., 1] = waves[None]
    maps[..., 2] = maps[..., 3] = waves[:, None]
    values = np.empty((2, 20, 20), np.float32)
    start, down, right = np.array([5.3, 6.7]), np.array([1.1, 0.2]), np.array([-0.1, 0.9])
    pfm._sample(maps, np.zeros((2, 20, 20)), start, down, right, np.zeros(2, np.float32), values)

    i, j = np.indices((20, 20))
    y, x = start[0] + down[0] * i + right[0] * j, start[1] + down[1] * i + right[1] * j
    np.testing.assert_allclose(values[0], np.sin(2 * np.pi * x / 10), atol=0.01)
    np.testing.assert_allclose(values[1], np.sin(2 * np.pi * y / 10), atol=0.01)


def test_up_and_down_differ_by_half_a_turn_and_up_is_inverted_by_the_sign_of_q33():
    of = config(film=ONE_DOMAIN, **QUIET)
    simulator = PfmSimulator(of)
    up = image(simulator, of)[1]
    field = simulator.film.field
    field.put(-field.polar, field.antipolar)
    down = image(simulator, of)[1]

    assert np.abs(np.angle(np.exp(1j * (up - math.pi - of.phase_offset_rad)))).max() < 1e-3
    assert np.abs(down - of.phase_offset_rad).max() < 1e-3


def test_a_polar_film_is_thinner_by_its_electrostriction():
    """By hand: Q33 P^2 t = (-2.5455)(0.0316^2)(120 nm) = -0.305 nm for a unit of polarisation."""
    of = config(film=ONE_DOMAIN, **QUIET)
    simulator = PfmSimulator(of)
    field = simulator.film.field
    ones = np.ones(field.shape)
    field.put(ones, 0 * ones)
    polar = image(simulator, of)[2]
    field.put(0 * ones, 0 * ones)
    bare = image(simulator, of)[2]

    assert (polar - bare).mean() == pytest.approx(-0.305, abs=0.001)


def test_the_height_has_a_terrace_of_one_layer_and_the_film_its_roughness():
    flat = config(film=ONE_DOMAIN, roughness_nm=0.0, terrace_nm=0.65, **QUIET)
    heights = np.unique(np.round(image(PfmSimulator(flat), flat)[2], 2))
    assert np.ptp(heights) == pytest.approx(0.65, abs=0.2)  # cubics overshoot at the edge
    rough = config(film=ONE_DOMAIN, roughness_nm=0.5, roughness_length_nm=10.0, terrace_nm=0.0, **QUIET)
    assert image(PfmSimulator(rough), rough)[2].std() == pytest.approx(0.5, rel=0.15)


def test_the_built_in_field_is_as_configured():
    film = replace(GROWN, imprint=0.02, imprint_sd=0.05, growth=1.0)
    imprint = PfmSimulator(config(film=film)).truth()["imprint"]
    assert imprint.mean() == pytest.approx(0.02, abs=1e-4)
    assert imprint.std() == pytest.approx(0.05, rel=1e-3)
    beside = np.corrcoef(imprint[:, 6:].ravel(), imprint[:, :-6].ravel())[0, 1]
    assert beside == pytest.approx(math.exp(-0.25), abs=0.1)  # 24 nm = 6 cells: exp(-r^2 / 4 l^2)


def stripes(of: PfmConfig, is_polar: bool) -> np.ndarray:
    """Amplitude along a row across two walls of a ferrielectric film, all else at its best."""
    simulator = PfmSimulator(of)
    field, (phase,) = simulator.film.field, phases(FERRIELECTRIC)
    edge = of.film.cells
    turned = np.where(np.abs(np.arange(edge) - edge / 2 + 0.5) < edge / 4, 1.0, -1.0)[None] * np.ones(
        (edge, 1)
    )
    plain = np.ones((edge, edge))
    polar, antipolar = (turned, plain) if is_polar else (plain, turned)
    field.put(phase.polar * polar, phase.antipolar * antipolar)
    for _ in range(150):
        field.step()
    return image(simulator, of)[0].mean(axis=0)


def test_antipolar_walls_are_bright_and_polar_walls_dark_in_the_amplitude():
    """At least 1.05 times and at most 0.2 times the domain, with the resolution of a sharp tip."""
    of = config(film=replace(ONE_DOMAIN, depolarisation=0.0), resolution_nm=4.0, **QUIET)
    bright, dark = stripes(of, is_polar=False), stripes(of, is_polar=True)

    assert bright.max() > 1.05 * np.median(bright)
    assert dark.min() < 0.2 * np.median(dark)


def test_a_wave_passes_the_tip_as_its_transfer_says_and_a_uniform_film_whole():
    tip = Weighing(3.0)
    wave = np.cos(2 * np.pi * 4 * np.arange(64) / 64)[None] * np.ones((64, 1))
    passed = 1 / (1 + 2 * math.pi * 4 / 64 * 3.0 / 2) ** 2

    np.testing.assert_allclose(tip.image(wave.astype(np.float32)), passed * wave, atol=1e-5)
    np.testing.assert_allclose(tip.image(np.ones((64, 64), np.float32)), 1.0, atol=1e-5)


@pytest.mark.parametrize("ghost", [None, (3.0, -5.0)])
def test_a_tip_at_a_place_weighs_the_film_as_the_image_does(ghost):
    tip = Weighing(3.0, ghost)
    film = np.random.default_rng(0).standard_normal((48, 48)).astype(np.float32)
    assert np.vdot(tip(48, 20.0, 31.0), film) == pytest.approx(tip.image(film)[20, 31], abs=1e-4)


def test_a_changed_tip_sees_a_small_domain_twice_and_wider():
    of = config(film=ONE_DOMAIN, **QUIET)
    simulator = PfmSimulator(of)
    field = simulator.film.field
    row, col = np.indices(field.shape) - 48
    # The double apex lies in a direction of the seed's choice: mirror the dot to its middle.
    dot = np.where(np.hypot(row, col) < 4, -1.0, 1.0)
    field.put(dot * field.polar, field.antipolar)
    sharp = image(simulator, of)[0]
    blunt = image(simulator, of, 0.001, "tip")[0]

    def spread(values: np.ndarray) -> float:
        lost = np.clip(np.median(values) - values, 0, None)
        i, j = np.indices(values.shape)
        middle = [(lost * k).sum() / lost.sum() for k in (i, j)]
        return math.sqrt((lost * ((i - middle[0]) ** 2 + (j - middle[1]) ** 2)).sum() / lost.sum())

    assert np.ptp(blunt) < 0.8 * np.ptp(sharp)
    assert spread(blunt) > 1.3 * spread(sharp)


def test_a_withdrawn_tip_gives_noise_alone_and_a_dead_film_its_offset_alone():
    of = config(noise_pm=2.0, offset_pm=(30.0, 40.0))
    simulator = PfmSimulator(of)
    blank = image(simulator, of, 0.001, "blank")
    dead = image(simulator, of, 0.001, "amorphous")

    assert blank[0].mean() == pytest.approx(2.0 * math.sqrt(math.pi / 2), rel=0.05)  # Rayleigh
    assert abs(blank[2].mean()) < 0.01
    assert dead[0].mean() == pytest.approx(50.0, rel=0.01)
    expected = math.atan2(40, 30) + of.phase_offset_rad
    assert dead[1].mean() == pytest.approx(expected, abs=0.01)


def test_noise_falls_with_the_square_root_of_the_dwell_time():
    of = config(noise_pm=2.0, offset_pm=(500.0, 0.0))
    simulator = PfmSimulator(of)
    scans = [
        Scan(path=still_path(of.geometry), dwell_time_us=t, faults=frozenset({"amorphous"}))
        for t in (of.dwell_time_us, of.dwell_time_us / 16)
    ]
    once, faster = (simulator.acquire_image(scan).values for scan in scans)

    assert once[0].std() == pytest.approx(2.0, rel=0.05)
    assert faster[0].std() == pytest.approx(8.0, rel=0.05)
    assert faster[2].std() > once[2].std()


def test_beyond_the_film_is_bare_substrate():
    of = config(**QUIET)
    simulator = PfmSimulator(of)
    at_the_edge = replace(of.geometry, center_nm=(of.film.extent * 175.0, 0.0))
    values = simulator.acquire_image(Scan(path=still_path(at_the_edge), dwell_time_us=2000.0)).values

    assert (values[0, :, 33:] == 0).all()
    assert (values[2, :, 33:] == -of.film.thickness_nm).all()
    assert (values[0, :, :30].mean(axis=0) > 5).all()
    assert (values[2, :, 0] > -5).all()


def test_a_turned_scan_shows_the_same_film_turned():
    of = config(**QUIET)
    simulator = PfmSimulator(of)
    straight = image(simulator, of)
    geometry = replace(of.geometry, rotation_rad=math.pi / 2)
    scan = Scan(path=still_path(geometry), dwell_time_us=2000.0)
    turned = simulator.acquire_image(scan).values

    # The fast axis now runs down y: pixel (i, j) of it is pixel (j, last - i) of the straight scan.
    np.testing.assert_allclose(turned[0], np.rot90(straight[0], k=1), atol=1.0)


def test_a_scan_sees_the_film_before_in_its_first_row_and_after_in_its_last():
    of = config(**QUIET)
    simulator, twin = PfmSimulator(of), PfmSimulator(of)
    slow = image(simulator, of, 3000.0)
    before = image(twin, of)
    twin.step(3000.0)
    after = image(twin, of)

    assert np.abs(after[0] - before[0]).max() > 5
    assert np.abs(slow[0, 0] - before[0, 0]).max() < 0.02 * np.abs(after[0] - before[0]).max() + 0.5
    assert np.abs(slow[0, -1] - after[0, -1]).max() < 0.02 * np.abs(after[0] - before[0]).max() + 0.5


# -- what the tip writes -----------------------------------------------------------------------


def test_a_written_domain_is_seen_where_the_tip_was_sent():
    distortion = replace(STILL, drift_rate_nm_per_s=(0.02, -0.01))
    of = config(film=ONE_DOMAIN, distortion=distortion, rotation_deg=30.0, **QUIET)
    instrument = PfmInstrument(of, started_at_s=1e9)
    before = instrument.acquire().image[1]
    request = Request(
        session="s",
        id="r",
        action="spectrum",
        scan_position_nm=(60.0, -40.0),
        position_nm=(60.0, -40.0),
        dwell_time_us=2e6,
    )
    instrument.simulator._config = replace(of, bias_shape="pulse", bias_v=-6.0)
    outcome, _ = instrument.execute(request)
    assert outcome.status == "ok"
    frame = instrument.acquire()
    turned = np.cos(frame.image[1] - before) < 0
    middle_px = np.argwhere(turned).mean(axis=0)
    seen_nm = frame.geometry.to_nm(middle_px[None])[0]

    assert turned.sum() > 20
    truth = instrument.truth()
    where_nm = truth["mark_position_nm"][0] + truth["drift_nm"][-1]
    assert np.abs(seen_nm - where_nm).max() < 4.0
    assert np.abs(np.array((60.0, -40.0)) - truth["mark_position_nm"][0]).max() < 3.0


def test_a_loop_has_two_branches_two_signs_and_leaves_its_mark():
    of = config(film=replace(ONE_DOMAIN, thermal=2e-3), bias_v=6.0, bias_cycles=2)
    simulator = PfmSimulator(of)
    bias_v, response = loop(simulator, (0.0, 0.0), 4.0)
    truth = simulator.truth()

    assert bias_v.shape == response.shape == (128,)
    assert response.dtype == bias_v.dtype == np.float32
    up, down = response[64 + 47 :][:16], response[64 + 16 : 64 + 32]  # the branches back to zero bias
    assert up.mean() > 20
    assert down.mean() < -20
    opened = abs(np.trapezoid(response[64:], bias_v[64:]))
    assert opened > 50.0  # pm V
    np.testing.assert_array_equal(truth["mark_bias_v"], [[-6.0, 6.0]])
    assert truth["mark_switched_nm2"][0] > 1000
    assert truth["polar"][48, 48] < 0  # the last extreme was negative


def test_the_field_of_a_tip_falls_to_a_third_at_its_radius_and_like_a_dipole_far_away():
    """By hand: 2^-1.5, and 1 / r^3 at ten radii to 2 %."""
    shape = pfm.tip_shape(np.array([0.0, 1.0, 10.0]))
    np.testing.assert_allclose(shape[:2], [1.0, 0.35355], rtol=1e-4)
    assert shape[2] == pytest.approx(1e-3, rel=0.02)


def test_a_weak_loop_leaves_nothing_and_has_no_branches():
    of = config(film=ONE_DOMAIN, bias_v=0.4, **QUIET)
    simulator = PfmSimulator(of)
    bias_v, response = loop(simulator, (0.0, 0.0), 4.0)

    assert switched_nm2(simulator) == 0
    assert abs(np.trapezoid(response, bias_v)) < 3.0
    assert response.max() < 0


def coercive_v(imprint: float) -> float:
    """Middle between the biases at which the response changes its sign, in the second of two loops."""
    of = config(
        film=replace(ONE_DOMAIN, imprint=imprint), bias_cycles=2, electrostatic_pm_per_v=0.0, bias_points=128
    )
    bias_v, response = loop(PfmSimulator(replace(of, **QUIET)), (0.0, 0.0), 8.0)
    bias_v, response = bias_v[128:], response[128:]
    at = np.flatnonzero(np.sign(response[1:]) != np.sign(response[:-1]))
    assert len(at) == 2
    return float(bias_v[at].mean() + bias_v[at + 1].mean()) / 2


def test_a_loop_is_shifted_against_the_imprint():
    """Against an imprint of 0.1 a bias of 0.2 V has the same field under the apex; it acts nearby only."""
    centre = coercive_v(0.0)
    shifts = np.array([coercive_v(0.1), coercive_v(-0.1)]) - centre

    assert shifts[0] < -0.15
    assert shifts[1] > 0.15


def test_a_pulse_writes_more_with_more_voltage_and_more_time():
    of = config(film=replace(ONE_DOMAIN, cells=128, extent=1.46), **QUIET)

    def written(volts: float, seconds: float) -> float:
        simulator = PfmSimulator(of)
        simulator.pulse((0.0, 0.0), volts, seconds)
        return switched_nm2(simulator)

    areas = np.array([[written(v, s) for s in (0.1, 0.5, 2.0)] for v in (-1.0, -4.0, -8.0)])
    assert areas[0, 0] == 0
    assert (np.diff(areas, axis=0) >= 0).all()
    assert (np.diff(areas, axis=1) >= 0).all()
    assert (np.diff(areas[1:], axis=1) > 0).all()


def test_what_is_written_does_not_depend_on_the_window_that_it_is_computed_in(monkeypatch):
    """Nor on where the grid's edge is: the window may be the whole film, and lie across its edge."""
    of = config(film=replace(GROWN, thermal=0.0, cells=128, extent=1.46), tip_radius_nm=12.0)
    ends = []
    for longer in (1, 3):
        monkeypatch.setattr(pfm.fft, "next_fast_len", lambda n, real, longer=longer: longer * n)
        simulator = PfmSimulator(of)
        simulator.pulse((20.0, 30.0), -8.0, 0.4)
        assert switched_nm2(simulator) > 500
        ends.append(simulator.film.field.polar)

    assert (np.sign(ends[0]) != np.sign(ends[1])).mean() < 0.002
    assert np.abs(ends[0] - ends[1]).max() < 0.1


def test_only_the_film_under_a_biased_tip_lives_by_the_fast_clock():
    of = config(film=replace(GROWN, thermal=0.0, growth=20.0), tip_radius_nm=15.0)
    simulator = PfmSimulator(of)
    was = simulator.film.field.polar
    simulator.pulse((0.0, 0.0), 0.05, 4.0)
    changed = np.abs(simulator.film.field.polar - was)

    radii = np.hypot(*(np.indices(was.shape) - 47.5)) * of.cell_nm / of.tip_radius_nm
    assert changed[radii < 2].max() > 0.05
    assert changed[radii > pfm.REACH_RADII].max() == 0


def test_no_domain_is_written_wider_than_the_tip_reaches_and_it_is_round():
    of = config(film=replace(ONE_DOMAIN, cells=128, extent=1.46), tip_radius_nm=12.0)
    simulator = PfmSimulator(of)
    simulator.pulse((0.0, 0.0), -60.0, 20.0)
    row, col = (simulator.film.field.polar < 0).nonzero()

    radius_nm = math.sqrt(len(row) / math.pi) * of.cell_nm
    assert 3 * of.tip_radius_nm < radius_nm < pfm.REACH_RADII * of.tip_radius_nm
    assert math.pi / 4 * (np.ptp(row) + 1) * (np.ptp(col) + 1) == pytest.approx(len(row), rel=0.1)


def test_a_tip_that_is_withdrawn_or_off_the_film_writes_nothing():
    of = config(film=ONE_DOMAIN, **QUIET)
    simulator = PfmSimulator(of)
    was = simulator.film.field.polar
    simulator.acquire_curve(Exposure(position_nm=(0.0, 0.0), dwell_time_us=1e6, faults=frozenset({"blank"})))
    bias_v, response = loop(simulator, (5000.0, 0.0), 1.0)

    np.testing.assert_allclose(response, of.electrostatic_pm_per_v * bias_v, atol=1e-5)
    assert len(simulator.truth()["mark_seconds"]) == 0
    np.testing.assert_array_equal(simulator.film.field.polar, was)


# -- time, orders and seeds --------------------------------------------------------------------


def test_time_in_small_pieces_is_the_same_time():
    whole, pieces = (Film(GROWN, 4.0, np.random.default_rng(3)) for _ in range(2))
    whole.age(200.0)
    for _ in range(80):
        pieces.age(2.5)

    assert whole.field.time > 60.0
    np.testing.assert_array_equal(whole.field.polar, pieces.field.polar)


def test_the_rest_of_the_film_ages_while_a_loop_is_taken():
    simulator = PfmSimulator(config(film=replace(GROWN, thermal=0.0, growth=20.0)))
    before = simulator.film.field.time
    loop(simulator, (0.0, 0.0), 25.0)
    assert simulator.film.field.time - before == pytest.approx(25.0 / GROWN.relaxation_s)


def test_a_film_at_rest_loses_energy_while_time_passes():
    simulator = PfmSimulator(config(film=replace(GROWN, thermal=0.0, growth=20.0)))
    energies = [simulator.film.field.energy()]
    for _ in range(5):
        simulator.step(100.0)
        energies.append(simulator.film.field.energy())

    assert (np.diff(energies) < 0).all()


@pytest.mark.parametrize("order", ["FI", "FE", "AFE", "CuInP2S6", "own"])
def test_films_of_every_order_are_imaged_and_bear_strong_loops(order):
    of = config(film=replace(GROWN, order=order), bias_v=12.0)
    simulator = PfmSimulator(of)
    frame = image(simulator, of, 100.0)
    _, response = loop(simulator, (10.0, 10.0), 2.0)

    assert np.isfinite(frame).all()
    assert np.isfinite(response).all()
    assert np.ptp(response) > 20
    assert np.abs(simulator.truth()["polar"]).max() < 2


def test_a_stiff_film_is_driven_in_steps_that_are_fine_enough(monkeypatch):
    """Of CuInP2S6 at 10 V, with loops of 100 pm: within 4 pm of steps a quarter as long."""
    of = config(film=replace(ONE_DOMAIN, order="CuInP2S6"), bias_v=10.0, bias_cycles=2, **QUIET)
    responses = []
    for fineness in (pfm.FINENESS, pfm.FINENESS / 4):
        monkeypatch.setattr(pfm, "FINENESS", fineness)
        responses.append(loop(PfmSimulator(of), (0.0, 0.0), 2.0)[1])

    assert np.ptp(responses[0]) > 90
    assert 0 < np.abs(responses[0] - responses[1]).max() < 4


@pytest.mark.parametrize("order", ["FI", "FE", "AFE", "CuInP2S6"])
@pytest.mark.parametrize("volts", [1.0, -30.0, 200.0])
def test_no_bias_that_can_be_configured_breaks_the_film(order, volts):
    simulator = PfmSimulator(config(film=replace(GROWN, order=order, cells=80, growth=20.0)))
    simulator.pulse((0.0, 0.0), volts, 0.05)
    simulator.step(100.0)

    assert np.abs(simulator.film.field.polar).max() < 2


def test_a_spread_of_composition_has_antiferroelectric_order_on_the_left_and_ferroelectric_on_the_right():
    truth = PfmSimulator(config(film=replace(GROWN, spread=1.2))).truth()
    polar, antipolar = (np.abs(truth[name]) for name in ("polar", "antipolar"))

    assert polar[:, 8:16].mean() < 0.3 < antipolar[:, 8:16].mean()
    assert antipolar[:, -16:-8].mean() < 0.4 < polar[:, -16:-8].mean()


def test_the_same_seed_gives_the_same_bytes_and_another_another_film():
    def course(seed: int) -> bytes:
        instrument = PfmInstrument(config(seed=seed), started_at_s=1e9)
        first = instrument.acquire()
        bias_v, response = loop(instrument.simulator, (20.0, 0.0), 1.0)
        second = instrument.acquire()
        return b"".join(array.tobytes() for array in (first.image, bias_v, response, second.image))

    assert course(1) == course(1)
    assert course(1) != course(2)


def test_a_fault_that_lasts_for_a_frame_leaves_the_next_one_whole():
    faults = (FaultConfig(frame=1, kind="tip"), FaultConfig(frame=3, kind="torn"))
    instrument = PfmInstrument(config(faults=faults, **QUIET), started_at_s=1e9)
    sharp, blunt, again, torn = (instrument.acquire().image[0] for _ in range(4))

    def detail(values: np.ndarray) -> float:
        return float(np.abs(np.diff(values, axis=1)).max())

    assert detail(blunt) < 0.7 * detail(sharp)
    assert detail(again) > 0.8 * detail(sharp)
    assert not np.array_equal(torn[:30], again[:30])
    np.testing.assert_array_equal(torn[-20:], again[-20:])


def test_the_truth_counts_the_frames_and_says_where_the_film_lies():
    instrument = PfmInstrument(config(), started_at_s=1e9)
    for _ in range(2):
        instrument.acquire()
    truth = instrument.truth()

    assert truth["frame_polar_mean"].shape == truth["frame_up_share"].shape == (2,)
    assert truth["frame_up_share"][-1] == pytest.approx((truth["polar"] > 0).mean())
    np.testing.assert_allclose(truth["film_corner_nm"], -95 / 2 * truth["cell_nm"])
    assert list(truth["orders"]) == ["FI"]
