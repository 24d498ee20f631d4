"""What the beam does: how often, where, in which order, and what is left of the sheet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace
from scipy.stats import chisquare, poisson

from simulators.bond_network import VACANCY, BondNetwork
from simulators.kinetics import (
    ATOMS_GAINED,
    EVENT_NAMES,
    Event,
    EventKind,
    Kinetics,
    KineticsConfig,
    changed_atoms,
)
from simulators.specimen import (
    BESIDE_SI,
    BESIDE_VACANCY,
    CARBON,
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
SMALL = grow(PERFECT, (-1.1, -1.1), (1.1, 1.1), np.random.default_rng(0))
NOTHING = {f"{kind.name.lower()}_barn": 0.0 for kind in EventKind}
WIDE_NM = 50.0  # a beam so wide that all atoms of a small sheet have the same dose, to 1e-3
RAISED = KineticsConfig(is_on=True, rate_factor=300.0, knock_out_barn=0.01, healing_barn=0.7)


def only(kind: EventKind, barn: float = 1.0) -> KineticsConfig:
    return KineticsConfig(is_on=True, **(NOTHING | {f"{kind.name.lower()}_barn": barn}))


def kinetics(sheet: Specimen | BondNetwork, config: KineticsConfig, seed: int) -> Kinetics:
    copy = sheet.copy() if isinstance(sheet, BondNetwork) else sheet
    return Kinetics(copy, config, np.random.default_rng(seed))


def first_event(sheet: BondNetwork, config: KineticsConfig, seed: int) -> Event:
    """Park a wide beam over a sheet until something happens."""
    return next(kinetics(sheet, config, seed).exposing([[0.0, 0.0]], 1e30, WIDE_NM))


def middle(network: BondNetwork) -> tuple[int, int]:
    """The atom nearest to the middle, and its first neighbour."""
    i = int(np.argmin(np.linalg.norm(network.positions_nm, axis=1)))
    return i, int(network.neighbours[i, 0])


def raster(edge_nm: float, pixels: int) -> np.ndarray:
    line = np.linspace(-edge_nm / 2, edge_nm / 2, pixels)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)


def pairs(network: BondNetwork) -> set[tuple[int, int]]:
    """Bonds as pairs of atoms' numbers."""
    ends = [(i, j) for i in range(len(network.ids)) for j in network.neighbours[i] if j >= 0]
    ids = network.ids
    return {(int(ids[i]), int(ids[j])) for i, j in ends if ids[i] >= 0 and ids[j] >= 0}


def ring_sizes(network: BondNetwork, i: int) -> list[int]:
    return sorted(network.ring(i, int(j)) for j in network.neighbours[i] if j >= 0)


# -- sheets on which a known number of things of one kind can happen -----------------------------


def with_silicon() -> BondNetwork:
    network = BondNetwork.of(SMALL)
    i, _ = middle(network)
    network.numbers[i] = SILICON
    assert network.settle([i])
    return network


def with_vacancy() -> BondNetwork:
    network = BondNetwork.of(SMALL)
    i, _ = middle(network)
    network.vacate(i)
    assert network.settle([i])
    return network


def with_divacancy() -> BondNetwork:
    network = BondNetwork.of(SMALL)
    i, j = middle(network)
    network.vacate(i)
    network.vacate(j)
    assert network.settle([i, j])
    return network


def with_four_fold_silicon() -> BondNetwork:
    network = with_silicon()
    i, j = middle(network)
    network.merge(i, j)
    assert network.settle([i])
    return network


def with_turned_bond() -> BondNetwork:
    network = BondNetwork.of(SMALL)
    i, j = middle(network)
    network.rotate(i, j)
    assert network.settle([i, j])
    return network


def perfect() -> BondNetwork:
    return BondNetwork.of(SMALL)


def inner_atoms() -> int:
    """Atoms more than one bond away from a broken one."""
    broken = SMALL.neighbours[:, 2] < 0
    beside = (broken[SMALL.neighbours] & (SMALL.neighbours >= 0)).any(axis=1)
    return int(np.count_nonzero(~broken & ~beside))


def bonds_among_whole_hexagons() -> int:
    """Bonds whose two rings and those at their ends have six atoms, counted from the positions."""
    places, count = SMALL.positions_nm, 0
    broken = SMALL.neighbours[:, 2] < 0
    held = broken | (broken[SMALL.neighbours] & (SMALL.neighbours >= 0)).any(axis=1)
    for i, row in enumerate(SMALL.neighbours):
        for j in row:
            if j <= i or held[i] or held[j]:
                continue
            along = (places[j] - places[i]) / np.linalg.norm(places[j] - places[i])
            across = np.array([-along[1], along[0]]) * 0.142 * np.sqrt(3) / 2
            between = (places[i] + places[j]) / 2
            centres = [
                between + across,
                between - across,
                places[i] - 0.142 * along,
                places[j] + 0.142 * along,
            ]
            around = [np.count_nonzero(np.linalg.norm(places - c, axis=1) < 0.15) for c in centres]
            count += around == [6, 6, 6, 6]
    return count


CASES: dict[EventKind, tuple[Callable[[], BondNetwork], Callable[[], int]]] = {
    EventKind.EXCHANGE: (with_silicon, lambda: 3),
    EventKind.ROTATION: (perfect, bonds_among_whole_hexagons),
    EventKind.BACK_ROTATION: (with_turned_bond, lambda: 1),
    EventKind.KNOCK_OUT: (perfect, inner_atoms),
    EventKind.KNOCK_OUT_BESIDE_SILICON: (with_silicon, lambda: 3),
    EventKind.KNOCK_OUT_TWO_FOLD: (with_vacancy, lambda: 3),
    EventKind.HEALING: (with_vacancy, lambda: 1),
    EventKind.CAPTURE_THREE_FOLD: (with_vacancy, lambda: 1),
    EventKind.CAPTURE_FOUR_FOLD: (with_divacancy, lambda: 1),
    EventKind.HEALING_FOUR_FOLD: (with_four_fold_silicon, lambda: 1),
    EventKind.CLOSING: (with_divacancy, lambda: 1),
}


# -- how often ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EventKind, ids=lambda kind: kind.name.lower())
def test_the_dose_until_something_happens_is_exponential(kind):
    """Derived: with n bonds or atoms of cross-section s, exp(-n s dose) is uniform."""
    make, count = CASES[kind]
    sheet, area_a2 = make(), 0.5e-8
    events = [first_event(sheet, only(kind, 0.5), seed) for seed in range(200)]
    left = np.exp([-count() * area_a2 * event.dose_e_per_a2 for event in events])

    assert {event.kind for event in events} == {kind}
    assert chisquare(np.histogram(left, 10, (0, 1))[0]).pvalue > 0.01


def test_the_number_of_exchanges_in_a_dose_is_poissonian():
    """Derived: a silicon always has three carbons beside it, so its rate never changes."""
    sheet, dose = with_silicon(), 1e8
    electrons = dose * 2 * np.pi * (10 * WIDE_NM) ** 2
    config = only(EventKind.EXCHANGE, 0.5)
    counts = [len(kinetics(sheet, config, seed).expose([[0, 0]], electrons, WIDE_NM)) for seed in range(200)]
    expected = poisson.pmf(np.arange(6), 3 * 0.5e-8 * dose) * 200
    seen = np.bincount(np.minimum(counts, 5), minlength=6)

    assert chisquare(seen, [*expected[:5], 200 - expected[:5].sum()]).pvalue > 0.01


# -- where and when -------------------------------------------------------------------------------


def naive_dose(places: np.ndarray, electrons: float, sigma_nm: float, atoms: np.ndarray) -> np.ndarray:
    """Electrons per A2 at some atoms."""
    square = ((atoms[:, None] - places[None]) ** 2).sum(axis=2)
    return electrons / (2 * np.pi * (10 * sigma_nm) ** 2) * np.exp(-square / (2 * sigma_nm**2)).sum(axis=1)


@pytest.mark.parametrize(
    ("edge_nm", "pixels", "sigma_nm"), [(0.0, 1, 0.05), (0.4, 12, 0.05), (3.0, 60, 0.08)]
)
def test_the_dose_counts_where_the_beam_was(edge_nm, pixels, sigma_nm):
    """A parked beam, a small sub-scan and a frame that is larger than the sheet."""
    places = raster(edge_nm, pixels) + [0.31, -0.17]
    under = kinetics(SMALL, KineticsConfig(is_on=True, rate_factor=0.0), 1)
    under.expose(places, 374.0, sigma_nm)
    want = naive_dose(places, 374.0, sigma_nm, SMALL.positions_nm)

    assert under.dose_e_per_a2 == pytest.approx(want, abs=1e-4 * want.max())
    assert under.electrons == pytest.approx(374.0 * len(places))


def test_atoms_are_hit_as_often_as_their_dose_says():
    """First knock-outs under a small sub-scan, by dose from the most to the least, over 400 seeds."""
    places, config = raster(0.5, 10), only(EventKind.KNOCK_OUT)
    sheet = perfect()
    dose = naive_dose(places, 1.0, 0.08, sheet.positions_nm) * ~sheet.is_held
    hits = np.zeros(len(dose))
    for seed in range(400):
        # A weak beam that comes again and again: which pixel is the first makes no difference.
        event = next(kinetics(sheet, config, seed).exposing(np.tile(places, (400, 1)), 3e5, 0.08))
        hits[event.atom] += 1
    order = np.argsort(-dose)
    share = (dose[order] / dose.sum()).cumsum()
    groups = np.searchsorted(share, [0.15, 0.3, 0.45, 0.6, 0.75, 0.9])

    seen = np.add.reduceat(hits[order], [0, *groups])
    expected = np.add.reduceat(dose[order], [0, *groups]) / dose.sum() * 400
    assert chisquare(seen, expected).pvalue > 0.01


def test_an_event_happens_when_the_beam_is_there():
    """Of a line of places over a vacancy, the one at which it heals follows the hazard, exactly."""
    line = np.stack([np.linspace(-0.3, 0.3, 40), np.zeros(40)], axis=1)
    sheet, config = with_vacancy(), only(EventKind.HEALING)
    vacancy_nm = sheet.positions_nm[sheet.numbers == VACANCY]
    per_place = [naive_dose(line[[k]], 1.0, 0.06, vacancy_nm)[0] for k in range(40)]
    passed = np.cumsum(per_place) / np.sum(per_place)
    electrons = 2.0 / (1e-8 * np.sum(per_place))
    events = [kinetics(sheet, config, seed).expose(line, electrons, 0.06) for seed in range(300)]

    edges = np.searchsorted(passed, [0.2, 0.4, 0.6, 0.8])
    chance = np.diff(1 - np.exp(-2.0 * np.array([0, *passed[edges - 1], 1])))
    seen = np.bincount(
        [np.searchsorted(edges, event[0].place, side="right") for event in events if event], minlength=5
    )
    never = 300 - seen.sum()
    assert chisquare([*seen, never], 300 * np.array([*chance, np.exp(-2.0)])).pvalue > 0.01


def test_a_dose_in_two_parts_is_the_dose_in_one():
    """The same hazard has passed at the first event, however the electrons were parcelled."""
    places, config, sheet = raster(0.6, 20), only(EventKind.KNOCK_OUT, 100.0), perfect()
    once = next(kinetics(sheet, config, 5).exposing(places, 2e4, 0.06))
    parcels = next(kinetics(sheet, config, 5).exposing(np.repeat(places, 4, axis=0), 5e3, 0.06))

    assert parcels.atom == once.atom
    assert parcels.place // 4 == once.place
    # Which atoms count as too far from the beam depends on how its places are grouped.
    assert parcels.dose_e_per_a2 == pytest.approx(once.dose_e_per_a2, rel=5e-4)


def test_off_the_sheet_the_beam_does_nothing():
    config = KineticsConfig(is_on=True, rate_factor=1e9)
    assert kinetics(SMALL, config, 1).expose([[30.0, 30.0]], 1e9, 0.05) == []


# -- what is left ---------------------------------------------------------------------------------


def test_a_turned_bond_makes_two_rings_of_five_and_two_of_seven_and_turns_back():
    network = perfect()
    i, j = middle(network)
    before, places = pairs(network), network.positions_nm.copy()
    network.rotate(i, j)
    assert network.settle([i, j])

    assert ring_sizes(network, i) == ring_sizes(network, j) == [5, 7, 7]
    assert np.count_nonzero(network.site_class == IN_ODD_RING) == 16
    network.rotate(i, j, back=True)
    assert network.settle([i, j])
    assert pairs(network) == before
    assert network.positions_nm == pytest.approx(places, abs=2e-3)
    assert not network.site_class[~network.is_held].any()


def test_a_vacancy_that_is_filled_leaves_the_perfect_sheet_with_a_new_atom():
    network = with_vacancy()
    (vacancy,) = np.flatnonzero(network.numbers == VACANCY)
    assert np.count_nonzero(network.site_class == BESIDE_VACANCY) == 3
    network.fill(int(vacancy), CARBON)
    assert network.settle([int(vacancy)])

    assert network.ids[vacancy] == len(SMALL.numbers)
    assert network.positions_nm[vacancy] == pytest.approx(SMALL.positions_nm[vacancy], abs=2e-3)
    assert not network.site_class[~network.is_held].any()


def test_a_divacancy_closes_to_rings_of_five_eight_and_five():
    """As in Krasheninnikov and Banhart, Nature Materials 6, 723 (2007): the reconstructed divacancy."""
    network = with_divacancy()
    i, j = np.flatnonzero(network.numbers == VACANCY)
    assert network.settle(list(network.close(int(i), int(j))))

    inner = np.flatnonzero(~network.is_held & (network.numbers > 0))
    rings = sorted(size for atom in inner for size in ring_sizes(network, int(atom)) if size not in (0, 6))
    assert rings == [5] * 10 + [8] * 8
    assert not (network.numbers == VACANCY).any()


def test_silicon_takes_over_the_bonds_of_a_carbon_that_leaves_and_gives_them_back():
    """Three- to four-fold and back: Susi et al., PRL 113, 115501 (2014)."""
    network = with_silicon()
    i, j = middle(network)
    before = {frozenset(pair) for pair in pairs(network)}
    gone = int(network.ids[j])
    network.merge(i, j)
    assert network.settle([i])

    assert network.site_class[i] == FOUR_FOLD_SI
    assert np.count_nonzero(network.site_class == BESIDE_SI) == 4
    new = network.split(i, CARBON)
    assert network.settle([i, new])
    assert network.site_class[i] == THREE_FOLD_SI
    renamed = {frozenset(gone if a == network.ids[new] else a for a in p) for p in pairs(network)}
    assert renamed == before


def test_every_four_fold_silicon_of_a_grown_sheet_can_be_made_three_fold_without_a_trace():
    """Two ways to share its bonds out; the wrong one would leave rings of seven and five."""
    config = replace(PERFECT, four_fold_si_per_nm2=0.15)
    network = BondNetwork.of(grow(config, (-3.0, -3.0), (3.0, 3.0), np.random.default_rng(6)))
    four = [int(i) for i in np.flatnonzero(network.site_class == FOUR_FOLD_SI) if not network.is_held[i]]
    for i in four:
        new = network.split(i, CARBON)
        assert network.settle([i, new])

    inner = np.flatnonzero(~network.is_held)
    assert len(four) > 3
    assert set(network.site_class[inner]) == {0, THREE_FOLD_SI, BESIDE_SI}
    assert {size for i in inner for size in ring_sizes(network, int(i))} <= {6, 0}
    assert all(ring_sizes(network, i) == [6, 6, 6] for i in four)


def test_classes_and_vacancies_of_a_grown_sheet_are_found_again():
    specimen = grow(SpecimenConfig(), (-3.0, -3.0), (3.0, 3.0), np.random.default_rng(2))
    network = BondNetwork.of(specimen)
    inner = np.flatnonzero(~network.is_held)
    was = network.site_class.copy()
    network.settle([int(i) for i in inner])

    assert np.count_nonzero(network.numbers == VACANCY) == np.count_nonzero(was == BESIDE_VACANCY) / 3 > 2
    assert (network.site_class[inner] == was[inner]).all()
    assert len(np.unique(was)) == len(SITE_NAMES) + 1


@pytest.fixture(scope="module")
def damaged() -> tuple[Specimen, Kinetics]:
    """A sheet with all kinds of defects after hundreds of events of many kinds."""
    specimen = grow(SpecimenConfig(), (-2.0, -2.0), (2.0, 2.0), np.random.default_rng(3))
    under = kinetics(specimen, RAISED, 4)
    for frame in range(15):
        under.expose(raster(3.2, 60), 2e5, 0.06, frame=frame)
    return specimen, under


def test_after_hundreds_of_events_all_bonds_are_of_a_real_length(damaged):
    """1.3 to 2.0 A: a sheet of carbon and silicon has no others (1.32 turned bond, 1.9 four-fold Si)."""
    _, under = damaged
    sheet, network = under.specimen(), under.network
    is_inner = ~network.is_held[network.numbers > 0]
    apart = sheet.positions_nm[sheet.neighbours] - sheet.positions_nm[:, None]
    lengths = np.linalg.norm(apart, axis=2)[is_inner][sheet.neighbours[is_inner] >= 0]

    assert len(under.events) > 300
    assert len({event.kind for event in under.events}) >= 8
    assert 0.13 <= lengths.min() <= lengths.max() <= 0.20
    assert under.undone < 0.1 * len(under.events)


def test_the_number_of_atoms_is_that_of_the_log(damaged):
    specimen, under = damaged
    kinds = under.truth()["event_kind"]
    born = [e.atom for e in under.events if e.class_before < 0] + [
        e.partner for e in under.events if e.kind == EventKind.HEALING_FOUR_FOLD
    ]
    gone = [e.atom for e in under.events if e.class_after < 0]
    start = set(range(len(specimen.numbers)))

    assert len(under.specimen().numbers) == len(start) + ATOMS_GAINED[kinds].sum()
    assert (start | set(born)) - set(gone) == set(under.atom_ids().tolist())
    assert sorted(born) == list(range(len(start), len(start) + len(born)))


def test_the_sheet_stays_a_sheet(damaged):
    """Bonds go both ways, nobody has more than four, two silicons are never bonded."""
    _, under = damaged
    sheet = under.specimen()
    bonds = {(i, int(j)) for i, row in enumerate(sheet.neighbours) for j in row if j >= 0}

    assert bonds == {(j, i) for i, j in bonds}
    assert not any(sheet.numbers[i] == sheet.numbers[j] == SILICON for i, j in bonds)
    assert ((sheet.neighbours >= 0) == np.sort(sheet.neighbours >= 0, axis=1)[:, ::-1]).all()
    four = (sheet.neighbours[:, 3] >= 0) & (sheet.numbers == SILICON)
    assert (sheet.site_class[four] == FOUR_FOLD_SI).all()
    assert np.isin(sheet.site_class[sheet.numbers == SILICON], (THREE_FOLD_SI, FOUR_FOLD_SI)).all()


def test_the_log_is_in_order_and_says_the_classes(damaged):
    _, under = damaged
    truth = under.truth()
    lost = np.isin(truth["event_kind"], np.flatnonzero(ATOMS_GAINED < 0))

    assert (np.diff(truth["event_electrons"]) > 0).all()
    assert (np.diff(truth["event_frame"]) >= 0).all()
    assert (truth["event_class_after"][lost] == -1).all()
    assert (truth["event_class_before"][lost] >= 0).all()
    assert len(truth["event_names"]) == len(EVENT_NAMES) == len(EventKind)
    assert len(truth["atom_id"]) == len(under.specimen().numbers) == len(truth["atom_dose_e_per_a2"])


def test_the_same_seed_gives_the_same_log_and_another_one_another():
    def log(seed: int) -> list[Event]:
        return kinetics(SMALL, RAISED, seed).expose(raster(2.0, 40), 1e6, 0.06)

    assert log(7) == log(7) != log(8)


def test_a_wrong_cross_section_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"kinetics\.healing_barn is -1; it takes 0 to 1e\+06"):
        KineticsConfig(healing_barn=-1)
    with pytest.raises(ValueError, match=r"kinetics\.rate_factor is nan"):
        KineticsConfig(rate_factor=float("nan"))


def test_atoms_that_changed_are_those_that_moved_came_or_went():
    under = kinetics(SMALL, only(EventKind.KNOCK_OUT), 3)
    before, ids = under.specimen(), under.atom_ids()
    event = next(under.exposing([[0.0, 0.0]], 1e30, 0.05))
    after, new_ids = under.specimen(), under.atom_ids()
    was, is_now = changed_atoms(before, ids, after, new_ids)

    assert set(ids[was]) == set(new_ids[is_now]) | {event.atom}
    assert (before.positions_nm[~was] == after.positions_nm[~is_now]).all()
    assert not any(flags.any() for flags in changed_atoms(after, new_ids, after, new_ids))


@pytest.mark.parametrize(("place", "electrons", "sigma_nm"), [(np.nan, 1, 0.1), (0, -1, 0.1), (0, 1, 0.0)])
def test_a_beam_without_sense_is_refused(place, electrons, sigma_nm):
    with pytest.raises(ValueError, match="kinetics: places and electrons are to be finite"):
        kinetics(SMALL, RAISED, 1).expose([[place, 0.0]], electrons, sigma_nm)
