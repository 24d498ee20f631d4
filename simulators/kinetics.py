"""What a beam of electrons does to a sheet of graphene, event by event and exact in the dose.

Each thing that can happen has a cross-section: it happens at a rate of cross-section times the electrons
that land on the atom per area. The dose counts where the beam was: in a frame, a sub-scan or while it was
parked, each electron is spread by the probe's profile over the atoms around. The next event is that of a
kinetic Monte Carlo without steps (Gillespie, J. Phys. Chem. 81, 2340 (1977)), with rates that follow the
beam: the hazard of all atoms is summed up electron by electron until it reaches a random number of unit
mean. After each event the bonds around it come to length and the rates are those of the new bonds.

Measured, at 60 kV (Su et al., Sci. Adv. 5, eaav2252 (2019), table 1), for a dopant that is **not** silicon:
exchange with a carbon 0.05 barn (P), a carbon knocked out beside it 0.01 (P), replacement by a carbon from
the surface 0.07 (P), a bond turned 0.9 and back 22 (N), 11 and above 200 (P). For silicon the process is
known (Susi et al., PRL 113, 115501 (2014)), the number here is that of phosphorus: an assumption. All other
defaults are assumed, of a plausible size and in a plausible order. 1 barn is 1e-8 A2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import msgspec
import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from simulators.bond_network import NO_CLASS, VACANCY, BondNetwork, ring_size
from simulators.simulator import Truth
from simulators.specimen import CARBON, SILICON, Specimen
from streamer.messages import PairNm

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

A2_PER_BARN = 1e-8
CUT_OFF_SD = 4.5  # of the probe; 4e-5 of its electrons land beyond
MAX_BOXES = 1024  # along an edge of the sheet
STRETCH = 16  # places in a row that are done at once
SMALLEST_RING, LARGEST_RING = 5, 8  # that a turned bond may leave behind; assumed


class EventKind(IntEnum):
    """What the beam can do."""

    EXCHANGE = 0
    ROTATION = 1
    BACK_ROTATION = 2
    KNOCK_OUT = 3
    KNOCK_OUT_BESIDE_SILICON = 4
    KNOCK_OUT_TWO_FOLD = 5
    HEALING = 6
    CAPTURE_THREE_FOLD = 7
    CAPTURE_FOUR_FOLD = 8
    HEALING_FOUR_FOLD = 9
    CLOSING = 10


EVENT_NAMES = (
    "silicon and carbon change places",
    "bond turned",
    "bond turned back",
    "carbon knocked out",
    "carbon knocked out beside silicon",
    "carbon with two bonds knocked out",
    "carbon fills a vacancy",
    "silicon fills a vacancy",
    "silicon fills a divacancy",
    "carbon makes four-fold silicon three-fold",
    "divacancy closes",
)
ATOMS_GAINED = np.array([0, 0, 0, -1, -1, -1, 1, 1, 1, 1, 0])


class KineticsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cross-sections for what the beam does to the sheet, in barn at 60 kV.

    Attributes
    ----------
    is_on
        False: the sheet stays as it was grown.
    exchange_barn
        A carbon beside a three-fold silicon is hit and they change places; for each such carbon. That of
        phosphorus was measured.
    rotation_barn
        A bond between two carbons turns by a right angle (Stone-Wales) and the rings around it get further
        from six atoms; for each bond, hit at either end. Assumed.
    back_rotation_barn
        It turns, and the rings get nearer to six atoms: back, or where grains meet. Assumed; measured for
        N 22 and for P more than 200.
    knock_out_barn
        A carbon with three bonds leaves. Assumed: at 60 kV pristine graphene loses none.
    knock_out_beside_silicon_barn
        A carbon beside silicon leaves; a three-fold silicon takes its bonds over and is four-fold. That of
        phosphorus was measured.
    knock_out_two_fold_barn
        A carbon at a vacancy or at the edge of a hole leaves: holes grow. Assumed.
    healing_barn
        A carbon that wanders over the sheet fills a vacancy that is hit. Assumed, after the replacement of
        phosphorus.
    capture_three_fold_barn, capture_four_fold_barn
        A silicon that wanders over the sheet fills a vacancy, or two beside each other. Assumed.
    healing_four_fold_barn
        A carbon joins a four-fold silicon, which is three-fold then. Assumed.
    closing_barn
        Two vacancies beside each other close to two rings of five and one of eight. Assumed.
    rate_factor
        Multiplies all of them: what takes hours is seen in minutes.
    """

    is_on: bool = False
    exchange_barn: float = 0.05
    rotation_barn: float = 0.05
    back_rotation_barn: float = 2.0
    knock_out_barn: float = 0.001
    knock_out_beside_silicon_barn: float = 0.01
    knock_out_two_fold_barn: float = 1.0
    healing_barn: float = 0.07
    capture_three_fold_barn: float = 0.07
    capture_four_fold_barn: float = 0.07
    healing_four_fold_barn: float = 0.01
    closing_barn: float = 1.0
    rate_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in (f"{kind.name.lower()}_barn" for kind in EventKind):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"kinetics.{name} is {getattr(self, name)}; it takes 0 to 1e+06")
        if not 0 <= self.rate_factor <= 1e9:
            raise ValueError(f"kinetics.rate_factor is {self.rate_factor}; it takes 0 to 1e+09")

    def cross_sections_a2(self) -> Float64:
        """Cross-section of each kind of event in A2, with the factor, shape ``(11,)``."""
        barn = np.array([getattr(self, f"{kind.name.lower()}_barn") for kind in EventKind])
        areas: Float64 = barn * self.rate_factor * A2_PER_BARN
        return areas


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that the beam did.

    Attributes
    ----------
    kind
        What.
    frame
        As given to ``Kinetics.expose``.
    place
        Index of the place at which the beam was in that exposure.
    electrons
        That have come down on the sheet and beside it up to then.
    dose_e_per_a2
        Electrons per A2 that the place hit has had up to then.
    position_nm
        That place, ``(x, y)``.
    atom
        Whose number it is about: the silicon that moved, one end of the bond, the carbon that left, the
        atom that came, the silicon that is three-fold now, one of the four around what closed.
    partner
        Another one: the carbon that moved, the other end of the bond, the silicon that took the bonds over,
        the carbon that came; -1 where there is none.
    class_before, class_after
        Of ``atom``, an index into ``SITE_NAMES``; -1 where it was not there yet or is not there any more.
    """

    kind: EventKind
    frame: int
    place: int
    electrons: float
    dose_e_per_a2: float
    position_nm: PairNm
    atom: int
    partner: int
    class_before: int
    class_after: int


class Kinetics:
    """A sheet under the beam.

    Parameters
    ----------
    sheet
        As it is at first.
    config
        Cross-sections.
    rng
        For the waiting and the choice; the same state and the same exposures give the same events.

    Attributes
    ----------
    events
        All so far, in order.
    undone
        How often what the beam did went back at once, since no planar sheet has such bonds.
    network
        The bonds.
    dose_e_per_a2
        What each site of the network has had, shape ``(n,)``.
    electrons
        All that the beam has brought.
    """

    def __init__(
        self, sheet: Specimen | BondNetwork, config: KineticsConfig, rng: np.random.Generator
    ) -> None:
        self._areas_a2 = config.cross_sections_a2()
        self._rng = rng
        self._specimen = sheet if isinstance(sheet, Specimen) else None
        self.network = BondNetwork.of(sheet) if isinstance(sheet, Specimen) else sheet
        self.dose_e_per_a2: Float64 = np.zeros(len(self.network.numbers))
        self.electrons = 0.0
        self.events: list[Event] = []
        self.undone = 0
        self._possible = self._what_can_happen()

    def specimen(self) -> Specimen:
        """Give the sheet as it is now."""
        if self._specimen is None:
            self._specimen = self.network.specimen()
        return self._specimen

    def atom_ids(self) -> Int64:
        """Say which atoms those of ``specimen`` are; a number is never used again, shape ``(n,)``."""
        return self.network.atom_ids()

    def expose(
        self, places_nm: ArrayLike, electrons: ArrayLike, sigma_nm: float, *, frame: int = -1
    ) -> list[Event]:
        """Let the beam be at some places, one after the other.

        Parameters
        ----------
        places_nm
            Specimen positions ``(x, y)`` of the beam in the order of time, shape ``(n, 2)``.
        electrons
            How many come down at each, shape ``(n,)``, or one number for all.
        sigma_nm
            Sd of the Gaussian over which they spread.
        frame
            Written into the events.

        Returns
        -------
        events
            What happened, in order.

        Raises
        ------
        ValueError
            If a place or a number of electrons is not finite, or negative, or ``sigma_nm`` is not above 0.
        """
        return list(self.exposing(places_nm, electrons, sigma_nm, frame=frame))

    def exposing(
        self, places_nm: ArrayLike, electrons: ArrayLike, sigma_nm: float, *, frame: int = -1
    ) -> Iterator[Event]:
        """Do what ``expose`` does, event by event: the sheet is then as it is just after each."""
        places = np.ascontiguousarray(places_nm, dtype=np.float64).reshape(-1, 2)
        share = np.broadcast_to(np.asarray(electrons, dtype=np.float64), len(places))
        if not (
            np.isfinite(places).all() and np.isfinite(share).all() and (share >= 0).all() and sigma_nm > 0
        ):
            raise ValueError(
                "kinetics: places and electrons are to be finite, electrons 0 and above, sigma_nm above 0"
            )
        before = self.electrons
        total = np.cumsum(share)
        at, passed = 0, 0.0  # place, and the part of its electrons that are there already
        patience = self._rng.exponential()
        while True:
            at, passed, patience, site = self._wait(places, share, at, passed, sigma_nm, patience)
            if site < 0:
                break
            self.electrons = before + float(total[at] - (1 - passed) * share[at])
            event = self._happen(site, at, frame)
            patience = self._rng.exponential()
            if event is not None:
                self.events.append(event)
                yield event
        self.electrons = before + float(total[-1] if len(total) else 0.0)

    def truth(self) -> Truth:
        """Give what happened and what is there.

        Returns
        -------
        arrays
            One row for each event: ``event_kind``, an index into ``event_names``, ``event_frame``,
            ``event_place``, ``event_electrons``, ``event_dose_e_per_a2``, ``event_position_nm`` ``(n, 2)``,
            ``event_atom``, ``event_partner``, ``event_class_before`` and ``event_class_after``, as of an
            ``Event``; ``events_undone``; and for each atom that is there now ``atom_id`` and
            ``atom_dose_e_per_a2``, what its place has had.
        """
        names = ("frame", "place", "atom", "partner", "class_before", "class_after")
        whole = {name: np.array([getattr(e, name) for e in self.events], dtype=np.int64) for name in names}
        real = {
            name: np.array([getattr(e, name) for e in self.events], dtype=np.float64)
            for name in ("electrons", "dose_e_per_a2")
        }
        is_atom = self.network.numbers > 0
        return {
            "event_names": np.array(EVENT_NAMES),
            "event_kind": np.array([int(e.kind) for e in self.events], dtype=np.int64),
            **{f"event_{name}": array for name, array in (whole | real).items()},
            "event_position_nm": np.array([e.position_nm for e in self.events]).reshape(-1, 2),
            "events_undone": np.array(self.undone),
            "atom_id": self.atom_ids(),
            "atom_dose_e_per_a2": self.dose_e_per_a2[is_atom],
        }

    # -- one event -----------------------------------------------------------------------------------

    def _wait(
        self, places: Float64, electrons: Float64, at: int, passed: float, sigma_nm: float, patience: float
    ) -> tuple[int, float, float, int]:
        """Go on until the hazard reaches ``patience``: where, and at which site; -1 at the end of it."""
        possible, network = self._possible, self.network
        boxes = _boxed(network.positions_nm, network.numbers, CUT_OFF_SD * sigma_nm)
        return _expose_until(
            places,
            electrons,
            at,
            passed,
            network.positions_nm,
            possible.hazard_a2,
            self.dose_e_per_a2,
            sigma_nm,
            patience,
            self._rng.random(),
            *boxes,
        )

    def _happen(self, site: int, place: int, frame: int) -> Event | None:
        """Let one of the things happen that a hit at a site can do; None if it went back at once."""
        possible = self._possible
        choices = np.flatnonzero((possible.hit == site).any(axis=1))
        areas = possible.area_a2[choices] * (possible.hit[choices] == site).sum(axis=1)
        chosen = choices[np.searchsorted(np.cumsum(areas), self._rng.random() * areas.sum(), side="right")]
        kind, i, j = EventKind(possible.kind[chosen]), int(possible.one[chosen]), int(possible.other[chosen])
        before, dose = self.network.copy(), self.dose_e_per_a2
        atom, partner, changed = self._do(kind, i, j)
        if not self.network.settle(changed):
            self.network, self.dose_e_per_a2 = before, dose
            self.undone += 1
            return None
        self._specimen = None
        self._possible = self._what_can_happen()
        x, y = before.positions_nm[site]
        return Event(
            kind=kind,
            frame=frame,
            place=place,
            electrons=self.electrons,
            dose_e_per_a2=float(dose[site]),
            position_nm=(float(x), float(y)),
            atom=atom,
            partner=partner,
            class_before=_class_of(before, atom),
            class_after=_class_of(self.network, atom),
        )

    def _do(self, kind: EventKind, i: int, j: int) -> tuple[int, int, list[int]]:
        """Change the bonds; say which atom and which partner it is about, and which sites have changed."""
        network = self.network
        atom, partner = int(network.ids[i]), int(network.ids[j]) if j >= 0 else -1
        around = [int(site) for site in network.neighbours[i] if site >= 0]
        if kind == EventKind.EXCHANGE:
            network.exchange(i, j)
            return atom, partner, [i, j]
        if kind in (EventKind.ROTATION, EventKind.BACK_ROTATION):
            network.rotate(i, j, back=kind == EventKind.BACK_ROTATION)
            return atom, partner, [i, j]
        if kind == EventKind.KNOCK_OUT_BESIDE_SILICON and j >= 0:
            network.merge(j, i)
            return atom, partner, [j]
        if kind in (EventKind.KNOCK_OUT, EventKind.KNOCK_OUT_BESIDE_SILICON, EventKind.KNOCK_OUT_TWO_FOLD):
            network.vacate(i)
            return atom, -1, [i, *around]
        if kind == EventKind.CLOSING:
            changed = list(network.close(i, j))
            return int(network.ids[changed[0]]), int(network.ids[changed[1]]), changed
        if kind == EventKind.HEALING_FOUR_FOLD:
            new = network.split(i, CARBON)
            self.dose_e_per_a2 = np.append(self.dose_e_per_a2, self.dose_e_per_a2[i])
            return atom, int(network.ids[new]), [i, new]
        if kind == EventKind.CAPTURE_FOUR_FOLD:
            network.merge(i, j)
        network.fill(i, CARBON if kind == EventKind.HEALING else SILICON)
        _take_strain(network, i)
        return int(network.ids[i]), -1, [i]

    def _what_can_happen(self) -> _Possible:
        network = self.network
        kind, one, other, hit = _possible_events(
            network.numbers, network.neighbours, network.is_held, self._areas_a2 > 0
        )
        area_a2 = self._areas_a2[kind] / 2  # each counts by halves, for the two sites that may be hit
        hazard_a2 = np.bincount(hit.ravel(), np.repeat(area_a2, 2), len(network.numbers)).astype(np.float64)
        return _Possible(kind, one, other, hit, area_a2, hazard_a2)


@dataclass(frozen=True, slots=True, eq=False)
class _Possible:
    """All that can happen next.

    ``kind``, ``one``, ``other`` ``(n,)``: what, and to which sites; ``hit`` ``(n, 2)``: the two sites, or
    twice the same, that may be hit for it; ``area_a2`` ``(n,)``: half of its cross-section; ``hazard_a2``:
    the sum of all these for each site of the network.
    """

    kind: Int64
    one: Int64
    other: Int64
    hit: Int64
    area_a2: Float64
    hazard_a2: Float64


def _class_of(network: BondNetwork, atom: int) -> int:
    at = np.flatnonzero(network.ids == atom)
    return int(network.site_class[at[0]]) if len(at) else NO_CLASS


def _take_strain(network: BondNetwork, i: int) -> None:
    """A new atom is moved by the strain as its neighbours are."""
    around = network.neighbours[i][network.neighbours[i] >= 0]
    network.strain_nm[i] = network.strain_nm[around].mean(axis=0)


def changed_atoms(
    before: Specimen, ids_before: Int64, after: Specimen, ids_after: Int64
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say which atoms have come, gone, moved or become another element.

    Parameters
    ----------
    before, after
        The sheet.
    ids_before, ids_after
        As of ``Kinetics.atom_ids``, shape ``(n,)``.

    Returns
    -------
    was, is_now
        True for the atoms of ``before`` that are not as they were, and for those of ``after`` that are new
        as they are, each shape ``(n,)``.
    """
    _, old, new = np.intersect1d(ids_before, ids_after, assume_unique=True, return_indices=True)
    is_same = (before.positions_nm[old] == after.positions_nm[new]).all(axis=1)
    is_same &= before.numbers[old] == after.numbers[new]
    was, is_now = np.ones(len(ids_before), dtype=bool), np.ones(len(ids_after), dtype=bool)
    was[old[is_same]] = is_now[new[is_same]] = False
    return was, is_now


# -- what can happen -----------------------------------------------------------------------------

# Plain numbers, for compiled code.
EXCHANGE, ROTATION, BACK_ROTATION = (int(kind) for kind in list(EventKind)[:3])
KNOCK_OUT, KNOCK_OUT_BESIDE_SILICON, KNOCK_OUT_TWO_FOLD = (int(kind) for kind in list(EventKind)[3:6])
HEALING, CAPTURE_THREE_FOLD, CAPTURE_FOUR_FOLD = (int(kind) for kind in list(EventKind)[6:9])
HEALING_FOUR_FOLD, CLOSING = (int(kind) for kind in list(EventKind)[9:])
NEVER = 1000


@njit(cache=True)
def _possible_events(
    numbers: Int64, neighbours: Int64, is_held: NDArray[np.bool_], is_wanted: NDArray[np.bool_]
) -> tuple[Int64, Int64, Int64, Int64]:
    """List them: ``kind``, ``one``, ``other`` ``(n,)`` and the sites to be hit ``(n, 2)``."""
    most = 8 * len(numbers)
    kind, one, other = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    hit = np.empty((most, 2), np.int64)
    n = 0
    for i in range(len(numbers)):
        if numbers[i] < 0 or is_held[i]:
            continue
        for what, partner in _of_site(numbers, neighbours, is_held, i):
            if not is_wanted[what]:
                continue
            kind[n], one[n], other[n] = what, i, partner
            hit[n, 0] = hit[n, 1] = i
            if what == EXCHANGE:
                hit[n, 0] = hit[n, 1] = partner
            elif what in (ROTATION, BACK_ROTATION, CAPTURE_FOUR_FOLD, CLOSING):
                hit[n, 1] = partner
            n += 1
    return kind[:n], one[:n], other[:n], hit[:n]


@njit(cache=True)
def _of_site(numbers: Int64, neighbours: Int64, is_held: NDArray[np.bool_], i: int) -> list[tuple[int, int]]:
    """Kinds of events at a site, each with its partner; what two sites share is listed at the first."""
    events = [(-1, -1)]
    events.pop()
    if numbers[i] == VACANCY:
        _of_vacancy(numbers, neighbours, is_held, i, events)
    elif numbers[i] == SILICON:
        _of_silicon(numbers, neighbours, is_held, i, events)
    else:
        _of_carbon(numbers, neighbours, is_held, i, events)
    return events


@njit(cache=True)
def _bonded(numbers: Int64, neighbours: Int64, i: int, number: int) -> int:
    """Count the neighbours that are atoms of one kind; ``number`` 0: vacancies, -1: atoms of any kind."""
    count = 0
    for j in neighbours[i]:
        if j >= 0 and (numbers[j] == number or (number < 0 and numbers[j] > 0)):
            count += 1
    return count


@njit(cache=True)
def _of_vacancy(
    numbers: Int64, neighbours: Int64, is_held: NDArray[np.bool_], i: int, events: list[tuple[int, int]]
) -> None:
    atoms = _bonded(numbers, neighbours, i, -1)
    silicon = _bonded(numbers, neighbours, i, SILICON)
    if atoms >= 2:
        events.append((HEALING, -1))
    if atoms == 3 and silicon == 0:
        events.append((CAPTURE_THREE_FOLD, -1))
    for j in neighbours[i]:
        if j < i or numbers[j] != VACANCY or is_held[j] or atoms != 2 or silicon > 0:
            continue
        if _bonded(numbers, neighbours, j, -1) == 2 and _bonded(numbers, neighbours, j, SILICON) == 0:
            events.append((CAPTURE_FOUR_FOLD, j))
            events.append((CLOSING, j))


@njit(cache=True)
def _of_silicon(
    numbers: Int64, neighbours: Int64, is_held: NDArray[np.bool_], i: int, events: list[tuple[int, int]]
) -> None:
    """No two silicons are ever bonded: such bonds are too long for a flat sheet."""
    if _bonded(numbers, neighbours, i, -1) == 4:
        events.append((HEALING_FOUR_FOLD, -1))
    if neighbours[i, 3] >= 0:
        return
    for j in neighbours[i]:
        if j < 0 or numbers[j] != CARBON or is_held[j] or neighbours[j, 3] >= 0:
            continue
        if _bonded(numbers, neighbours, j, SILICON) == 1:
            events.append((EXCHANGE, j))


@njit(cache=True)
def _of_carbon(
    numbers: Int64, neighbours: Int64, is_held: NDArray[np.bool_], i: int, events: list[tuple[int, int]]
) -> None:
    if _bonded(numbers, neighbours, i, -1) < 3:
        events.append((KNOCK_OUT_TWO_FOLD, -1))
        return
    silicon = _bonded(numbers, neighbours, i, SILICON)
    if silicon == 0:
        events.append((KNOCK_OUT, -1))
    else:
        events.append((KNOCK_OUT_BESIDE_SILICON, _successor(numbers, neighbours, is_held, i)))
    for j in neighbours[i]:
        if j > i and numbers[j] == CARBON and not is_held[j]:
            worse = _worse_if_turned(numbers, neighbours, i, j)
            if worse != NEVER:
                events.append((ROTATION if worse >= 0 else BACK_ROTATION, j))


@njit(cache=True)
def _successor(numbers: Int64, neighbours: Int64, is_held: NDArray[np.bool_], i: int) -> int:
    """Find the silicon that takes over the bonds of a carbon that leaves, -1 if none can."""
    if _bonded(numbers, neighbours, i, SILICON) != 1:
        return -1
    for j in neighbours[i]:
        if j < 0 or numbers[j] != SILICON or is_held[j]:
            continue
        if neighbours[j, 3] < 0 and _bonded(numbers, neighbours, j, CARBON) == 3:
            return int(j)
    return -1


@njit(cache=True)
def _worse_if_turned(numbers: Int64, neighbours: Int64, i: int, j: int) -> int:
    """By how much the sum of the squares of (ring size - 6) would grow; NEVER if the bond cannot turn.

    The two rings that share the bond lose an atom each, the two at its ends gain one.
    """
    if neighbours[i, 3] >= 0 or neighbours[j, 3] >= 0:
        return NEVER
    worse = 0
    for start, end in ((i, j), (j, i)):
        follows = neighbours[start, 0]
        for k in range(3):
            if neighbours[start, k] == end:
                follows = neighbours[start, (k + 1) % 3]
        beside = ring_size(neighbours, numbers, start, end)
        ahead = ring_size(neighbours, numbers, start, follows)
        if beside - 1 < SMALLEST_RING or ahead == 0 or ahead + 1 > LARGEST_RING:
            return NEVER
        worse += (beside - 7) ** 2 - (beside - 6) ** 2 + (ahead - 5) ** 2 - (ahead - 6) ** 2
    return worse


# -- the beam ------------------------------------------------------------------------------------


@njit(cache=True)
def _boxed(positions_nm: Float64, numbers: Int64, reach_nm: float) -> tuple[Float64, float, Int64, Int64]:
    """Sort sites into square boxes, no smaller than the reach of the beam.

    Returns their lower corner, their edge, ``first`` ``(down, across + 1)`` and ``order``: the sites of the
    box ``(i, j)`` are ``order[first[i, j]:first[i, j + 1]]``.
    """
    lower, upper = np.full(2, np.inf), np.full(2, -np.inf)
    for i in range(len(numbers)):
        if numbers[i] >= 0:
            for k in range(2):
                lower[k], upper[k] = min(lower[k], positions_nm[i, k]), max(upper[k], positions_nm[i, k])
    edge = max(reach_nm, (upper - lower).max() / MAX_BOXES)
    across, down = int((upper[0] - lower[0]) / edge) + 1, int((upper[1] - lower[1]) / edge) + 1
    first = np.zeros((down, across + 1), dtype=np.int64)
    for i in range(len(numbers)):
        if numbers[i] >= 0:
            x, y = (positions_nm[i] - lower) / edge
            first[int(y), int(x) + 1] += 1
    total = 0
    for row in range(down):
        first[row, 0] = total
        for col in range(across):
            total += first[row, col + 1]
            first[row, col + 1] = total
    order, free = np.empty(total, dtype=np.int64), first.copy()
    for i in range(len(numbers)):
        if numbers[i] >= 0:
            x, y = (positions_nm[i] - lower) / edge
            order[free[int(y), int(x)]] = i
            free[int(y), int(x)] += 1
    return lower, edge, first, order


@njit(cache=True)
def _expose_until(
    places_nm: Float64,
    electrons: Float64,
    start: int,
    passed: float,
    positions_nm: Float64,
    hazard_a2: Float64,
    dose_e_per_a2: Float64,
    sigma_nm: float,
    patience: float,
    chance: float,
    lower: Float64,
    edge: float,
    first: Int64,
    order: Int64,
) -> tuple[int, float, float, int]:
    """Add to the dose place by place until the hazard that has passed reaches ``patience``.

    Returns place, part of its electrons that have come, what is left of ``patience`` and the site that was
    hit, chosen by ``chance``; -1 where nothing happened up to the end.
    """
    reach = CUT_OFF_SD * sigma_nm
    per_a2 = 1 / (2 * np.pi * (10 * sigma_nm) ** 2)
    around = np.empty(len(order), dtype=np.int64)
    density = np.empty((len(order), STRETCH))
    stretch, coming, hazard = np.empty((2, STRETCH)), np.empty(STRETCH), np.empty(STRETCH)
    while start < len(places_nm):
        end = _end_of_stretch(places_nm, start, reach)
        middle_x, middle_y, wide = _stretch_out(places_nm, electrons, start, end, passed, stretch, coming)
        count = _sites_around(
            middle_x, middle_y, reach + wide, positions_nm, lower, edge, first, order, around
        )
        hazard[:] = 0.0
        for k in range(count):
            x, y = positions_nm[around[k], 0], positions_nm[around[k], 1]
            _add_density(stretch, x, y, sigma_nm, per_a2, hazard_a2[around[k]], density[k], hazard)
        at = -1
        for p in range(end - start):
            if hazard[p] * coming[p] >= patience:
                at = p
                break
            patience -= hazard[p] * coming[p]
        share = 1.0
        if at >= 0:
            share = patience / (hazard[at] * coming[at])
            coming[at] *= share
            coming[at + 1 :] = 0.0
        for k in range(count):
            hit = density[k, at]
            dose_e_per_a2[around[k]] += _dot(density[k], coming)
            density[k, 0] = hit
        if at >= 0:
            level, k = chance * hazard[at], 0
            while k < count - 1 and level >= hazard_a2[around[k]] * density[k, 0]:
                level -= hazard_a2[around[k]] * density[k, 0]
                k += 1
            had = passed if at == 0 else 0.0
            return start + at, had + share * (1 - had), 0.0, around[k]
        start, passed = end, 0.0
    return len(places_nm), 0.0, patience, -1


@njit(cache=True)
def _end_of_stretch(places_nm: Float64, start: int, reach_nm: float) -> int:
    """Say up to which place the beam stays in a box as wide as its reach, ``STRETCH`` places at most.

    So no site that counts is further away than 9 sd, where the series for the exponential still holds.
    """
    left = right = places_nm[start, 0]
    top = bottom = places_nm[start, 1]
    end = start + 1
    while end < min(start + STRETCH, len(places_nm)):
        x, y = places_nm[end, 0], places_nm[end, 1]
        left, right, top, bottom = min(left, x), max(right, x), min(top, y), max(bottom, y)
        if not (right - left) ** 2 + (bottom - top) ** 2 < reach_nm**2:
            break
        end += 1
    return end


@njit(cache=True)
def _stretch_out(
    places_nm: Float64,
    electrons: Float64,
    start: int,
    end: int,
    passed: float,
    stretch: Float64,
    coming: Float64,
) -> tuple[float, float, float]:
    """Write down the places and the electrons still to come there; give the middle and half the width.

    What is left of the arrays gets the last place and no electrons.
    """
    for p in range(STRETCH):
        at = min(start + p, end - 1)
        stretch[0, p], stretch[1, p] = places_nm[at, 0], places_nm[at, 1]
        coming[p] = electrons[at] if start + p < end else 0.0
    coming[0] *= 1 - passed
    left, right = stretch[0].min(), stretch[0].max()
    top, bottom = stretch[1].min(), stretch[1].max()
    return (left + right) / 2, (top + bottom) / 2, np.hypot(right - left, bottom - top) / 2


@njit(cache=True)
def _add_density(
    stretch: Float64,
    x: float,
    y: float,
    sigma_nm: float,
    per_a2: float,
    hazard_a2: float,
    density: Float64,
    hazard: Float64,
) -> None:
    """Electrons per A2 at a site for each that comes down at the places of a stretch, and its hazard.

    The exponential is the sixteenth power of a series, right to 2e-8 of its peak: no call and no branch,
    so that a processor does several places at once.
    """
    scale = -0.5 / sigma_nm**2 / 16
    for p in range(STRETCH):
        across, down = stretch[0, p] - x, stretch[1, p] - y
        t = scale * (across * across + down * down)
        power = 1 + t * (1 + t * (1 / 2 + t * (1 / 6 + t * (1 / 24 + t * (1 / 120 + t * (1 / 720))))))
        power *= power
        power *= power
        power *= power
        density[p] = per_a2 * power * power
        hazard[p] += hazard_a2 * density[p]


@njit(cache=True)
def _dot(one: Float64, other: Float64) -> float:
    """Sum the products; ``one`` is lost. By halves, which a processor does several at once."""
    for p in range(STRETCH):
        one[p] *= other[p]
    half = STRETCH // 2
    while half:
        for p in range(half):
            one[p] += one[p + half]
        half //= 2
    return float(one[0])


@njit(cache=True)
def _sites_around(
    x: float,
    y: float,
    distance: float,
    positions_nm: Float64,
    lower: Float64,
    edge: float,
    first: Int64,
    order: Int64,
    around: Int64,
) -> int:
    """Write the sites within a distance into ``around``; give their number."""
    down, across = len(first), first.shape[1] - 1
    left, right = int(np.floor((x - distance - lower[0]) / edge)), int((x + distance - lower[0]) / edge)
    top, bottom = int(np.floor((y - distance - lower[1]) / edge)), int((y + distance - lower[1]) / edge)
    left, right, count = max(left, 0), min(right, across - 1), 0
    for row in range(max(top, 0), min(bottom, down - 1) + 1):
        if left > right:
            break
        for k in range(first[row, left], first[row, right + 1]):
            site = order[k]
            if (positions_nm[site, 0] - x) ** 2 + (positions_nm[site, 1] - y) ** 2 < distance**2:
                around[count] = site
                count += 1
    return count
