"""The bonds of a planar sheet as a graph of sites, and what can happen to it without losing a bond.

Sites are places of the graph; atoms come to them, leave them and change places, and keep their number for
good. A site that an atom has left stays in the graph as a vacancy, so a hole knows how it can be filled.
The neighbours of a site are listed in the order of their direction from x to y, one turn; a ring is found
by turning off at each atom in the same sense, whatever the positions are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from simulators.relaxation import relax
from simulators.specimen import (
    BESIDE_SI,
    BESIDE_VACANCY,
    CARBON_BOND_NM,
    FOUR_FOLD_SI,
    IN_ODD_RING,
    SILICON,
    THREE_FOLD_SI,
    Specimen,
)

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

VACANCY, RETIRED = 0, -1  # in the place of an atomic number
NO_CLASS = -1
LARGEST_RING = 12
SHORTEST_BOND_NM, LONGEST_BOND_NM = 0.13, 0.20
DEPTHS = (5, 9)  # bonds from an event within which atoms move; more where fewer did not do


@dataclass(slots=True, kw_only=True, eq=False)
class BondNetwork:
    """A sheet whose bonds can change.

    Attributes
    ----------
    positions_nm
        ``(x, y)`` of each site, shape ``(n, 2)``, float64.
    numbers
        Atomic number, shape ``(n,)``; ``VACANCY`` where the atom is missing, ``RETIRED`` where there is no
        site any more.
    neighbours
        Sites bonded to each, in order, shape ``(n, 4)``, -1 where there are fewer than four; vacancies
        among them.
    ids
        Which atom is there, shape ``(n,)``, never used again for another; -1 at a vacancy.
    site_class
        Index into ``simulators.specimen.SITE_NAMES``, shape ``(n,)``; -1 at a vacancy.
    strain_nm
        As of a ``Specimen``.
    is_held
        True at the rim of the sheet, where nothing happens, shape ``(n,)``.
    next_id
        Of the next atom that comes.
    """

    positions_nm: Float64
    numbers: Int64
    neighbours: Int64
    ids: Int64
    site_class: Int64
    strain_nm: Float64
    is_held: Bool
    next_id: int

    @classmethod
    def of(cls, specimen: Specimen) -> BondNetwork:
        """Take the bonds of a specimen; where three broken bonds meet there is a vacancy."""
        vacancies_nm, beside = _vacancies(specimen)
        count, more = len(specimen.numbers), len(vacancies_nm)
        positions = np.concatenate([specimen.positions_nm, vacancies_nm])
        neighbours = np.full((count + more, 4), -1, dtype=np.int64)
        neighbours[:count] = specimen.neighbours
        for vacancy, atoms in enumerate(beside, start=count):
            neighbours[vacancy, :3] = atoms
            for atom in atoms:
                neighbours[atom, np.flatnonzero(neighbours[atom] < 0)[0]] = vacancy
        is_edge = (neighbours >= 0).sum(axis=1) < 3
        is_held = is_edge | (is_edge[neighbours] & (neighbours >= 0)).any(axis=1)
        none = np.full(more, -1, dtype=np.int64)
        return cls(
            positions_nm=positions,
            numbers=np.concatenate([specimen.numbers, np.full(more, VACANCY)]),
            neighbours=_in_order(positions, neighbours),
            ids=np.concatenate([np.arange(count), none]),
            site_class=np.concatenate([specimen.site_class, none]),
            strain_nm=np.concatenate([specimen.strain_nm, np.zeros((more, 2))]),
            is_held=is_held,
            next_id=count,
        )

    def copy(self) -> BondNetwork:
        """Copy all of it."""
        return BondNetwork(
            positions_nm=self.positions_nm.copy(),
            numbers=self.numbers.copy(),
            neighbours=self.neighbours.copy(),
            ids=self.ids.copy(),
            site_class=self.site_class.copy(),
            strain_nm=self.strain_nm.copy(),
            is_held=self.is_held.copy(),
            next_id=self.next_id,
        )

    def specimen(self) -> Specimen:
        """Give the atoms that are there now, in the order of their sites."""
        is_atom = self.numbers > 0
        index = np.where(is_atom, np.cumsum(is_atom) - 1, -1)
        table = self.neighbours[is_atom]
        bonded = np.where(table >= 0, index[table], -1)
        bonded = np.take_along_axis(bonded, np.argsort(bonded < 0, axis=1, kind="stable"), axis=1)
        return Specimen(
            positions_nm=self.positions_nm[is_atom].copy(),
            numbers=self.numbers[is_atom].copy(),
            neighbours=bonded,
            site_class=self.site_class[is_atom].copy(),
            strain_nm=self.strain_nm[is_atom].copy(),
        )

    def atom_ids(self) -> Int64:
        """Say which atoms those of ``specimen`` are, shape ``(n,)``."""
        ids: Int64 = self.ids[self.numbers > 0]
        return ids

    # -- what can happen ---------------------------------------------------------------------------

    def rotate(self, i: int, j: int, *, back: bool = False) -> None:
        """Turn the bond of two three-fold sites by a right angle, from x to y; ``back`` the other way."""
        a1, a2 = self._after(i, j)
        b1, b2 = self._after(j, i)
        middle = (self.positions_nm[i] + self.positions_nm[j]) / 2
        x, y = self.positions_nm[j] - middle
        turned = np.array([y, -x]) if back else np.array([-y, x])
        self.positions_nm[i], self.positions_nm[j] = middle - turned, middle + turned
        if back:
            self.neighbours[i], self.neighbours[j] = (j, b2, a1, -1), (i, a2, b1, -1)
            self._rebond(a2, i, j)
            self._rebond(b2, j, i)
        else:
            self.neighbours[i], self.neighbours[j] = (j, a2, b1, -1), (i, b2, a1, -1)
            self._rebond(a1, i, j)
            self._rebond(b1, j, i)

    def exchange(self, i: int, j: int) -> None:
        """Let two atoms change places."""
        for array in (self.numbers, self.ids):
            array[[i, j]] = array[[j, i]]

    def vacate(self, i: int) -> None:
        """Take an atom away."""
        self.numbers[i], self.ids[i], self.site_class[i] = VACANCY, -1, NO_CLASS

    def fill(self, i: int, number: int) -> None:
        """Put a new atom into a vacancy."""
        self.numbers[i], self.ids[i] = number, self.next_id
        self.next_id += 1

    def merge(self, i: int, j: int) -> None:
        """Let site ``i`` take over the bonds of its neighbour ``j``, half way between the two."""
        others = self._after(j, i)
        self.neighbours[i] = (*self._after(i, j), *others)
        for other in others:
            self._rebond(other, j, i)
        self.positions_nm[i] = (self.positions_nm[i] + self.positions_nm[j]) / 2
        self._retire(j)

    def split(self, i: int, number: int) -> int:
        """Let a new atom take two of the four bonds of a site and bond to it; the inverse of ``merge``.

        Returns
        -------
        site
            Of the new atom.
        """
        turn = self.neighbours[i]
        # The rings that both have in the end gain an atom: they are the smaller ones.
        gains = [
            self._around(i, int(turn[k + 1])) + self._around(i, int(turn[(k + 3) % 4])) for k in range(2)
        ]
        a1, a2, b1, b2 = (int(site) for site in np.roll(turn, -int(np.argmin(gains))))
        new = self._new_site()
        self.neighbours[i], self.neighbours[new] = (new, a1, a2, -1), (i, b1, b2, -1)
        for other in (b1, b2):
            self._rebond(other, i, new)
        middle = self.positions_nm[i].copy()
        for site, pair in ((i, (a1, a2)), (new, (b1, b2))):
            self.positions_nm[site] = (middle + self.positions_nm[list(pair)].mean(axis=0)) / 2
        self.strain_nm[new] = self.strain_nm[i]
        self.fill(new, number)
        return new

    def close(self, i: int, j: int) -> tuple[int, int, int, int]:
        """Bond what two vacancies beside each other have left open, each pair; both are gone.

        Returns
        -------
        atoms
            Sites of the two atoms that were bonded beside ``i``, and of the two beside ``j``.
        """
        first, second = self._after(i, j), self._after(j, i)
        for vacancy, (one, other) in ((i, first), (j, second)):
            self._rebond(one, vacancy, other)
            self._rebond(other, vacancy, one)
            self._retire(vacancy)
        return (*first, *second)

    def settle(self, changed: list[int]) -> bool:
        """Bring the bonds around some sites to length, and their classes up to date.

        Returns
        -------
        done
            False if a bond is shorter than 1.3 or longer than 2.0 A even so.
        """
        for depth in DEPTHS:
            around = _within(self.neighbours, np.array(changed, dtype=np.int64), depth)
            free = around[(self.numbers[around] > 0) & ~self.is_held[around]]
            relax(self.positions_nm, self.numbers, self.neighbours, free)
            if _are_bonds_real(self.positions_nm, self.numbers, self.neighbours, free):
                break
        else:
            return False
        _centre_vacancies(self.positions_nm, self.numbers, self.neighbours, around)
        near = _within(self.neighbours, np.array(changed, dtype=np.int64), 4)
        _classify(self.numbers, self.neighbours, near[~self.is_held[near]], self.site_class)
        return True

    def ring(self, i: int, j: int) -> int:
        """Atoms in the ring on one side of a bond, the other for ``(j, i)``; see ``ring_size``."""
        return int(ring_size(self.neighbours, self.numbers, i, j))

    def _after(self, i: int, j: int) -> tuple[int, int]:
        """Give the two neighbours of a three-fold site that follow on a third, in order."""
        at = int(np.flatnonzero(self.neighbours[i] == j)[0])
        return int(self.neighbours[i, (at + 1) % 3]), int(self.neighbours[i, (at + 2) % 3])

    def _around(self, i: int, j: int) -> int:
        """Count the sites of the ring on one side of a bond, whatever is there; at most 12."""
        start, first = i, j
        for size in range(1, LARGEST_RING):
            turn = self.neighbours[j][self.neighbours[j] >= 0]
            i, j = j, int(turn[int(np.flatnonzero(turn == i)[0]) - 1])
            if (i, j) == (start, first):
                return size
        return LARGEST_RING

    def _rebond(self, i: int, from_site: int, to_site: int) -> None:
        self.neighbours[i, self.neighbours[i] == from_site] = to_site

    def _retire(self, i: int) -> None:
        self.vacate(i)
        self.numbers[i] = RETIRED
        self.neighbours[i] = -1

    def _new_site(self) -> int:
        self.positions_nm = np.concatenate([self.positions_nm, np.zeros((1, 2))])
        self.strain_nm = np.concatenate([self.strain_nm, np.zeros((1, 2))])
        self.neighbours = np.concatenate([self.neighbours, np.full((1, 4), -1)])
        self.numbers, self.ids = np.append(self.numbers, VACANCY), np.append(self.ids, -1)
        self.site_class = np.append(self.site_class, NO_CLASS)
        self.is_held = np.append(self.is_held, False)
        return len(self.numbers) - 1


# -- from a specimen -----------------------------------------------------------------------------


def _vacancies(specimen: Specimen) -> tuple[Float64, Int64]:
    """Places where three broken bonds point at, ``(m, 2)``, and the atoms that have them, ``(m, 3)``."""
    open_ends = np.flatnonzero((specimen.neighbours >= 0).sum(axis=1) == 2)
    apart = specimen.positions_nm[specimen.neighbours[open_ends, :2]] - specimen.positions_nm[open_ends, None]
    unit = apart / np.linalg.norm(apart, axis=2, keepdims=True)
    ahead = specimen.positions_nm[open_ends] - CARBON_BOND_NM * unit.sum(axis=1)
    groups = {
        tuple(sorted(group)) for group in cKDTree(ahead).query_ball_point(ahead, 0.09) if len(group) == 3
    }
    beside = np.array([open_ends[list(group)] for group in sorted(groups)], dtype=np.int64).reshape(-1, 3)
    return specimen.positions_nm[beside].mean(axis=1).reshape(-1, 2), beside


def _in_order(positions_nm: Float64, neighbours: Int64) -> Int64:
    """Order the neighbours of each site by their direction."""
    apart = positions_nm[neighbours] - positions_nm[:, None]
    direction = np.where(neighbours >= 0, np.arctan2(apart[..., 1], apart[..., 0]), np.inf)
    return np.take_along_axis(neighbours, np.argsort(direction, axis=1, kind="stable"), axis=1)


# -- rings and classes ---------------------------------------------------------------------------


@njit(cache=True)
def ring_size(neighbours: Int64, numbers: Int64, i: int, j: int) -> int:
    """Count the atoms of the ring on one side of a bond; on the other side with the ends exchanged.

    0 where there is no ring: a vacancy or a four-fold silicon is in it, or it is larger than 12.
    """
    start, first = i, j
    for size in range(1, LARGEST_RING + 1):
        if numbers[j] <= 0 or neighbours[j, 3] >= 0:
            return 0
        count, at = 3, -1
        if neighbours[j, 2] < 0:
            count = 2 if neighbours[j, 1] >= 0 else 1
        for k in range(count):
            if neighbours[j, k] == i:
                at = k
        i, j = j, neighbours[j, (at + count - 1) % count]
        if i == start and j == first:
            return size
    return 0


@njit(cache=True)
def _classify(numbers: Int64, neighbours: Int64, sites: Int64, site_class: Int64) -> None:
    """Say what kind of site each is now; rings with a four-fold silicon do not count as odd."""
    for i in sites:
        if numbers[i] <= 0:
            continue
        bonded, silicon, missing, odd = 0, False, False, False
        for j in neighbours[i]:
            if j < 0:
                continue
            bonded += numbers[j] > 0
            missing |= numbers[j] == VACANCY
            silicon |= numbers[j] == SILICON
            size = ring_size(neighbours, numbers, i, j)
            odd |= size not in (0, 6)
        if numbers[i] == SILICON:
            site_class[i] = FOUR_FOLD_SI if bonded == 4 else THREE_FOLD_SI
        elif silicon:
            site_class[i] = BESIDE_SI
        elif missing:
            site_class[i] = BESIDE_VACANCY
        else:
            site_class[i] = IN_ODD_RING if odd else 0


@njit(cache=True)
def _within(neighbours: Int64, sites: Int64, depth: int) -> Int64:
    """Sites that are at most so many bonds away, the nearest first."""
    is_in = np.zeros(len(neighbours), dtype=np.bool_)
    found = np.empty(len(neighbours), dtype=np.int64)
    count = 0
    for site in sites:
        if not is_in[site]:
            is_in[site], found[count] = True, site
            count += 1
    start = 0
    for _ in range(depth):
        end = count
        for at in range(start, end):
            for j in neighbours[found[at]]:
                if j >= 0 and not is_in[j]:
                    is_in[j], found[count] = True, j
                    count += 1
        start = end
    return found[:count]


@njit(cache=True)
def _are_bonds_real(positions_nm: Float64, numbers: Int64, neighbours: Int64, atoms: Int64) -> bool:
    """Say whether all bonds of some atoms are of a real length."""
    for i in atoms:
        for j in neighbours[i]:
            if j < 0 or numbers[j] <= 0:
                continue
            length = np.hypot(
                positions_nm[j, 0] - positions_nm[i, 0], positions_nm[j, 1] - positions_nm[i, 1]
            )
            if not SHORTEST_BOND_NM <= length <= LONGEST_BOND_NM:
                return False
    return True


@njit(cache=True)
def _centre_vacancies(positions_nm: Float64, numbers: Int64, neighbours: Int64, sites: Int64) -> None:
    """Put each vacancy in the middle of what is around it."""
    for i in sites:
        if numbers[i] != VACANCY:
            continue
        x, y, count = 0.0, 0.0, 0
        for j in neighbours[i]:
            if j >= 0:
                x, y, count = x + positions_nm[j, 0], y + positions_nm[j, 1], count + 1
        positions_nm[i, 0], positions_nm[i, 1] = x / count, y / count
