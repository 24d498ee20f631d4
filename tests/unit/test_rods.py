"""Rods diffuse, turn and order as statistical mechanics has it, and never lie over each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from simulators.rods import Assembly, RodsConfig, order_parameter, squared_gap

# So small and so few that they do not know of each other: an ideal gas of a known number.
IDEAL = {
    "length_nm": 2.0,
    "diameter_nm": 0.2,
    "spacing_nm": 0.2,
    "coverage": 2e-4,
    "adsorption_per_um2_s": 0.0,
    "desorption_per_s": 0.0,
    "diffusion_along_nm2_per_s": 0.0,
    "diffusion_across_nm2_per_s": 0.0,
    "rotation_rad2_per_s": 0.0,
    "jumps_per_s": 0.0,
    "barrier_kt": 0.0,
    "bias_kt": 0.0,
    "coupling_kt": 0.0,
}


def assembly(edge_nm: float = 200.0, seed: int = 0, **fields) -> Assembly:
    half = edge_nm / 2
    return Assembly(RodsConfig(**fields), (-half, -half), (half, half), np.random.default_rng(seed))


def ideal(seed: int = 0, edge_nm: float = 2000.0, **fields) -> Assembly:
    return assembly(edge_nm, seed, **(IDEAL | fields))


def is_crossed(rods: Assembly, config: RodsConfig) -> bool:
    """Whether any two axes are nearer than they can be, by many points on each."""
    t = np.linspace(-1, 1, 41) * config.segment_nm / 2
    axes = np.stack([np.cos(rods.angles_rad), np.sin(rods.angles_rad)], axis=1)
    points = rods.positions_nm[:, None] + t[None, :, None] * axes[:, None]
    for n in range(len(points) - 1):
        near = np.hypot(*(rods.positions_nm[n + 1 :] - rods.positions_nm[n]).T) < config.length_nm + 5
        others = points[n + 1 :][near].reshape(-1, 1, 2)
        step = t[1] - t[0]
        if len(others) and np.hypot(*(others - points[n][None]).transpose(2, 0, 1)).min() < (
            config.spacing_nm - step
        ):
            return True
    return False


# -- geometry --------------------------------------------------------------------------------------


def test_the_gap_of_two_segments_is_that_of_many_points_on_them():
    rng, t = np.random.default_rng(1), np.linspace(-1.5, 1.5, 601)
    for _ in range(50):
        dx, dy = rng.uniform(-4, 4, 2)
        one, two = rng.uniform(0, np.pi, 2)
        a = np.stack([t * math.cos(one), t * math.sin(one)], axis=1)
        b = np.stack([dx + t * math.cos(two), dy + t * math.sin(two)], axis=1)
        least = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)).min()
        gap2 = squared_gap(dx, dy, math.cos(one), math.sin(one), math.cos(two), math.sin(two), 1.5)

        assert math.sqrt(gap2) == pytest.approx(least, abs=0.006)


@pytest.mark.parametrize(
    ("place", "angle", "gap2"),
    [
        ((0.0, 2.0), 0.0, 4.0),
        ((5.0, 0.0), 0.0, 4.0),
        ((1.0, 0.5), np.pi / 2, 0.0),
        ((0.0, 2.5), np.pi / 2, 1.0),
    ],
)
def test_the_gap_of_parallel_crossed_and_upright_segments_is_known_by_hand(place, angle, gap2):
    got = squared_gap(*place, 1.0, 0.0, math.cos(angle), math.sin(angle), 1.5)

    assert got == pytest.approx(gap2, abs=1e-12)


def test_the_order_parameter_of_parallel_and_of_crossed_axes():
    assert order_parameter(np.array([0.3, 0.3 + np.pi])) == pytest.approx((1.0, 0.3))
    assert order_parameter(np.array([0.0, np.pi / 2]))[0] == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(order_parameter(np.zeros(0))[0])


# -- Brownian motion -------------------------------------------------------------------------------


def test_a_free_rod_diffuses_along_and_across_its_axis_at_its_rates():
    """<d^2> = 2 D t along each axis of the rod (Einstein 1905); sd 3.5 % for 1600 rods."""
    rods = ideal(1, diffusion_along_nm2_per_s=3.0, diffusion_across_nm2_per_s=0.5)
    before, angles = rods.positions_nm.copy(), rods.angles_rad.copy()
    rods.advance(0.08)
    moved = rods.positions_nm - before
    along = moved[:, 0] * np.cos(angles) + moved[:, 1] * np.sin(angles)
    across = moved[:, 1] * np.cos(angles) - moved[:, 0] * np.sin(angles)

    assert len(rods.ids) > 1500
    assert (along**2).mean() == pytest.approx(2 * 3.0 * 0.08, rel=0.1)
    assert (across**2).mean() == pytest.approx(2 * 0.5 * 0.08, rel=0.1)
    assert abs(along.mean()) < 4 * math.sqrt(0.48 / len(along))


def test_a_free_rod_forgets_its_angle_at_its_rate():
    """<cos 2(a(t) - a(0))> = exp(-4 D t) of rotation in a plane (Debye 1929)."""
    rods = ideal(2, rotation_rad2_per_s=0.05)
    before = rods.angles_rad.copy()
    rods.advance(3.0)
    kept = np.cos(2 * (rods.angles_rad - before)).mean()

    assert kept == pytest.approx(math.exp(-4 * 0.05 * 3.0), abs=4 * 0.6 / math.sqrt(len(before)))


def test_jumps_happen_at_their_rate_and_go_anywhere():
    rods = ideal(3, jumps_per_s=0.2)
    before = rods.angles_rad.copy()
    rods.advance(5.0)
    has_jumped = rods.angles_rad != before

    assert has_jumped.mean() == pytest.approx(1 - math.exp(-1.0), abs=0.04)
    assert stats.kstest(rods.angles_rad[has_jumped] / np.pi, "uniform").pvalue > 0.01


@pytest.mark.parametrize("moves", [{"rotation_rad2_per_s": 0.2}, {"jumps_per_s": 2.0}])
def test_angles_come_to_the_distribution_of_boltzmann(moves):
    """p(a) ~ exp(B/2 cos 6(a - e) + b/2 cos 2(a - e)), by turning and by jumping alike."""
    energies = {"barrier_kt": 2.0, "bias_kt": 1.0, "easy_axis_deg": 25.0}
    rods = ideal(4, coverage=1e-4, **(energies | moves))
    rods.advance(20.0)
    edges = np.linspace(0, np.pi, 25)
    fine = (np.arange(2400) + 0.5) * np.pi / 2400
    turned = fine - math.radians(25.0)
    weight = np.exp(1.0 * np.cos(6 * turned) + 0.5 * np.cos(2 * turned)).reshape(24, 100).sum(axis=1)
    seen, _ = np.histogram(rods.angles_rad, edges)

    assert stats.chisquare(seen, weight / weight.sum() * seen.sum()).pvalue > 0.01


def test_the_order_of_free_rods_on_a_biased_face_is_the_ratio_of_bessel_functions():
    """S = I1(b/2) / I0(b/2) for the energy -b/2 cos 2(a - e) (derived)."""
    rods = ideal(5, bias_kt=2.0, easy_axis_deg=40.0, rotation_rad2_per_s=0.2)
    rods.advance(8.0)
    order, director = order_parameter(rods.angles_rad)

    assert order == pytest.approx(special.i1(1.0) / special.i0(1.0), abs=4 / math.sqrt(2 * len(rods.ids)))
    assert director == pytest.approx(math.radians(40.0), abs=0.1)


# -- coming and going ------------------------------------------------------------------------------


def test_as_many_are_there_as_the_rates_of_coming_and_going_have_it():
    """Langmuir's isotherm where it is thin: N = k_on A / k_off, and its variance is N."""
    counts = []
    for seed in range(30):
        rods = ideal(seed, edge_nm=1000.0, coverage=0.0, adsorption_per_um2_s=20.0, desorption_per_s=0.2)
        rods.advance(40.0)
        counts.append(len(rods.ids))

    assert np.mean(counts) == pytest.approx(100.0, abs=4 * math.sqrt(100.0 / 30))
    assert stats.chi2.cdf(np.var(counts) * 30 / 100.0, 29) == pytest.approx(0.5, abs=0.495)


def test_coming_and_going_alone_comes_to_the_distribution_of_boltzmann():
    """Rods land at any angle and leave the quicker the worse they lie: detailed balance (derived)."""
    rods = ideal(
        6,
        coverage=0.0,
        bias_kt=2.0,
        easy_axis_deg=0.0,
        adsorption_per_um2_s=100.0,
        desorption_per_s=0.2,
    )
    rods.advance(40.0)
    order, _ = order_parameter(rods.angles_rad)

    assert len(rods.ids) > 1500
    assert order == pytest.approx(special.i1(1.0) / special.i0(1.0), abs=4 / math.sqrt(2 * len(rods.ids)))


def test_every_rod_has_an_identity_a_birth_and_a_death():
    rods = assembly(150.0, adsorption_per_um2_s=300.0, desorption_per_s=0.1)
    started = set(rods.ids.tolist())
    rods.advance(10.0)
    born, died = np.array(rods.born_s), np.array(rods.died_s)

    assert len(set(rods.ids.tolist())) == len(rods.ids)
    assert set(np.flatnonzero(np.isinf(died)).tolist()) == set(rods.ids.tolist())
    assert (born[sorted(started)] == 0).all()
    assert (died > born).all()
    assert np.isfinite(died).sum() > 10
    assert rods.now_s == pytest.approx(10.0)


# -- crowds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["landed", "rows"])
def test_rods_never_lie_over_each_other(start):
    config = {"start": start, "coverage": 0.4, "adsorption_per_um2_s": 2000.0, "vacancies": 0.2}
    rods = assembly(150.0, 7, **config)
    assert not is_crossed(rods, RodsConfig(**config))
    rods.advance(8.0)

    assert not is_crossed(rods, RodsConfig(**config))
    assert np.abs(rods.positions_nm).max() <= 75.0


def test_as_much_is_covered_as_was_asked_for():
    rods = assembly(300.0, 1, coverage=0.4)

    assert len(rods.ids) * RodsConfig().area_nm2 / 300.0**2 == pytest.approx(0.4, abs=0.002)


def test_rods_in_rows_lie_side_by_side_along_the_easy_axis():
    rods = assembly(200.0, 1, start="rows", easy_axis_deg=30.0, vacancies=0.0)
    axis, across = (
        np.array([math.cos(0.5236), math.sin(0.5236)]),
        np.array([-math.sin(0.5236), math.cos(0.5236)]),
    )
    middle = rods.positions_nm[np.hypot(*rods.positions_nm.T).argmin()]
    away = rods.positions_nm - middle
    in_row = np.abs(away @ axis) < 1.0

    np.testing.assert_allclose(rods.angles_rad, math.radians(30.0))
    np.testing.assert_allclose(np.diff(np.sort(away[in_row] @ across)), 1.12 * 3.7, atol=1e-6)


def test_two_neighbours_are_as_parallel_as_their_coupling_has_it():
    """<cos 2(a - b)> = I1(e) / I0(e) of the energy -e cos 2(a - b), e = J (1 - d^2 / reach^2)^2 (derived)."""
    pair = ideal(3, edge_nm=8.0, coverage=0.0125, jumps_per_s=1.0, coupling_kt=6.0, coupling_nm=9.0)
    apart = math.dist(*pair.positions_nm)
    assert len(pair.ids) == 2
    assert apart > 2.0
    seen = []
    for _ in range(1500):
        pair.advance(2.0)
        seen.append(math.cos(2 * (pair.angles_rad[0] - pair.angles_rad[1])))
    strength = 6.0 * (1 - (apart / 9.0) ** 2) ** 2

    assert strength > 0.5
    assert np.mean(seen) == pytest.approx(special.i1(strength) / special.i0(strength), abs=0.06)


def test_rods_order_in_the_course_of_time():
    rods = assembly(250.0, 9, bias_kt=4.0, barrier_kt=0.0, rotation_rad2_per_s=0.05)
    orders = [order_parameter(rods.angles_rad)[0]]
    for _ in range(4):
        rods.advance(8.0)
        orders.append(order_parameter(rods.angles_rad)[0])

    assert orders[0] < 0.2
    assert orders[-1] > 0.6
    assert orders[-1] > orders[1] > orders[0]


def test_what_assembled_before_the_first_frame_is_what_would_have_in_it():
    aged = assembly(120.0, 2, assembled_s=5.0)
    later = assembly(120.0, 2)
    later.advance(5.0)

    assert aged.now_s == pytest.approx(0.0, abs=1e-9)
    assert min(aged.born_s) == -5.0
    np.testing.assert_array_equal(aged.positions_nm, later.positions_nm)


def test_the_same_seed_gives_the_same_rods():
    one, same, other = (assembly(150.0, seed) for seed in (3, 3, 4))
    for rods in (one, same, other):
        rods.advance(2.0)

    assert one.positions_nm.tobytes() == same.positions_nm.tobytes()
    assert one.angles_rad.tobytes() == same.angles_rad.tobytes()
    assert one.positions_nm.tobytes() != other.positions_nm.tobytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coverage": 0.6}, "rods.coverage is 0.6; it takes 0 to 0.45"),
        ({"barrier_kt": float("nan")}, "rods.barrier_kt is nan; it takes -20 to 20"),
        ({"spacing_nm": 1.0}, "rods.spacing_nm is 1.0; it takes diameter_nm 2.6 to length_nm 26"),
        ({"diameter_nm": 5.0}, "rods.spacing_nm is 3.7; it takes diameter_nm 5 to length_nm 26"),
    ],
)
def test_rods_that_cannot_be_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        RodsConfig(**fields)
