"""Bring the bonds around a changed place of a planar sheet back to length, a few hundred atoms at most.

Bonds are springs that harden when they are stretched or pressed by a tenth, angles between two bonds want
120 degrees, and atoms that are not bonded keep 2.1 A apart; no bond ever forms or breaks here. The stiffness
of bonds and angles gives the sheet the measured Young modulus of graphene, 340 N/m (Lee et al., Science 321,
385 (2008)), with a Poisson ratio of 0.17; the hardening, the core and the stiffness of Si-C are assumptions.
Everything is planar: a real sheet would buckle and strain its bonds less.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

CARBON_BOND_A = 2.46 / 3**0.5  # so that the perfect lattice of simulators.specimen is at rest
SILICON_BOND_A = 1.76  # threefold Si in graphene, 1.69 to 1.78: Zhou et al., PRL 109, 206803 (2012)
BOND_EV_PER_A2 = 44.0  # derived: 2 sqrt(3) times the sheet's bulk modulus, 340 / (2 (1 - 0.17)) N/m
SILICON_BOND_EV_PER_A2 = 30.0  # assumed
HARDENING_PER_A2 = 60.0  # assumed: force k d (1 + 60 d^2)
ANGLE_EV = 11.0  # energy ANGLE_EV / 2 (cos + 1/2)^2; with the bonds it gives a shear modulus of 145 N/m
LEAST_DISTANCE_A = 2.1  # of atoms that are not bonded, assumed; second neighbours have 2.46
CORE_EV_PER_A2 = 20.0  # assumed
WATCHED_A = 3.2  # who is further away at first never comes too near
LONGEST_STEP_A = 0.05


def relax(
    positions_nm: Float64,
    numbers: Int64,
    neighbours: Int64,
    free: Int64,
    *,
    rounds: int = 600,
    force_ev_per_a: float = 0.02,
) -> None:
    """Move some atoms to where the forces on them vanish; all others stay.

    Parameters
    ----------
    positions_nm
        ``(x, y)`` of each site, shape ``(n, 2)``, float64; changed in place.
    numbers
        Atomic number, shape ``(n,)``; 0 and below: no atom, no force.
    neighbours
        Sites bonded to each, shape ``(n, 4)``, -1 where there are fewer.
    free
        Sites that may move.
    rounds
        Steps at most. Inertia is turned downhill (FIRE: Bitzek et al., PRL 97, 170201 (2006)).
    force_ev_per_a
        Enough is when no atom feels more.
    """
    slot = np.full(len(positions_nm), -1, dtype=np.int64)
    slot[free] = np.arange(len(free))
    bonds, rest = _bonds(numbers, neighbours, free, slot)
    angles = _angles(numbers, neighbours, free, slot)
    strangers = _strangers(positions_nm, numbers, neighbours, free, slot)
    around = np.unique(np.concatenate([free, bonds.ravel(), angles.ravel(), strangers.ravel()]))
    place = np.full(len(positions_nm), -1, dtype=np.int64)
    place[around] = np.arange(len(around))
    local = positions_nm[around] * 10
    is_free = slot[around] >= 0
    links = (place[bonds], rest, place[angles], place[strangers])
    _descend(local, is_free, *links, rounds, force_ev_per_a)
    positions_nm[around] = np.where(is_free[:, None], local / 10, positions_nm[around])


@njit(cache=True)
def _bonds(numbers: Int64, neighbours: Int64, free: Int64, slot: Int64) -> tuple[Int64, Float64]:
    """Bonds with at least one free end: their ends ``(m, 2)``, rest lengths and stiffness ``(m, 2)``."""
    ends = np.empty((4 * len(free), 2), dtype=np.int64)
    rest = np.empty((4 * len(free), 2))
    count = 0
    for i in free:
        if numbers[i] <= 0:
            continue
        for j in neighbours[i]:
            if j < 0 or numbers[j] <= 0 or (slot[j] >= 0 and j < i):
                continue
            ends[count, 0], ends[count, 1] = i, j
            is_carbon = numbers[i] == 6 and numbers[j] == 6
            rest[count, 0] = CARBON_BOND_A if is_carbon else SILICON_BOND_A
            rest[count, 1] = BOND_EV_PER_A2 if is_carbon else SILICON_BOND_EV_PER_A2
            count += 1
    return ends[:count], rest[:count]


@njit(cache=True)
def _angles(numbers: Int64, neighbours: Int64, free: Int64, slot: Int64) -> Int64:
    """Angles with at least one free atom, ``(m, 3)``: the middle first; none at a four-fold atom."""
    is_middle = slot >= 0
    for i in free:
        for j in neighbours[i]:
            if j >= 0:
                is_middle[j] = True
    middles = np.flatnonzero(is_middle)
    angles = np.empty((3 * len(middles), 3), dtype=np.int64)
    count = 0
    for i in middles:
        if numbers[i] <= 0 or neighbours[i, 3] >= 0:
            continue
        for a in range(3):
            one, other = neighbours[i, a], neighbours[i, (a + 1) % 3]
            if one < 0 or other < 0 or numbers[one] <= 0 or numbers[other] <= 0:
                continue
            if slot[i] >= 0 or slot[one] >= 0 or slot[other] >= 0:
                angles[count, 0], angles[count, 1], angles[count, 2] = i, one, other
                count += 1
    return angles[:count]


@njit(cache=True)
def _strangers(positions_nm: Float64, numbers: Int64, neighbours: Int64, free: Int64, slot: Int64) -> Int64:
    """Pairs that are near without being bonded, at least one of them free, ``(m, 2)``."""
    reach_nm = WATCHED_A / 10
    lower, upper = np.full(2, np.inf), np.full(2, -np.inf)
    for i in free:
        for k in range(2):
            lower[k] = min(lower[k], positions_nm[i, k] - reach_nm)
            upper[k] = max(upper[k], positions_nm[i, k] + reach_nm)
    near = np.empty(len(numbers), dtype=np.int64)
    count = 0
    for j in range(len(numbers)):
        x, y = positions_nm[j]
        if numbers[j] > 0 and lower[0] <= x <= upper[0] and lower[1] <= y <= upper[1]:
            near[count] = j
            count += 1
    pairs = np.empty((40 * len(free), 2), dtype=np.int64)
    found = 0
    for i in free:
        for j in near[:count]:
            if i == j or (slot[j] >= 0 and j < i) or found == len(pairs):
                continue
            dx, dy = positions_nm[j, 0] - positions_nm[i, 0], positions_nm[j, 1] - positions_nm[i, 1]
            if dx * dx + dy * dy > reach_nm * reach_nm or (neighbours[i] == j).any():
                continue
            pairs[found, 0], pairs[found, 1] = i, j
            found += 1
    return pairs[:found]


@njit(cache=True)
def _forces(
    positions: Float64, bonds: Int64, rest: Float64, angles: Int64, strangers: Int64, forces: Float64
) -> None:
    """Forces on all atoms in eV/A, positions in A."""
    forces[:] = 0.0
    for b in range(len(bonds)):
        i, j = bonds[b, 0], bonds[b, 1]
        dx, dy = positions[j, 0] - positions[i, 0], positions[j, 1] - positions[i, 1]
        length = np.sqrt(dx * dx + dy * dy)
        stretch = length - rest[b, 0]
        pull = rest[b, 1] * stretch * (1 + HARDENING_PER_A2 * stretch * stretch) / length
        forces[i, 0] += pull * dx
        forces[i, 1] += pull * dy
        forces[j, 0] -= pull * dx
        forces[j, 1] -= pull * dy
    for a in range(len(angles)):
        i, j, k = angles[a, 0], angles[a, 1], angles[a, 2]
        ux, uy = positions[j, 0] - positions[i, 0], positions[j, 1] - positions[i, 1]
        vx, vy = positions[k, 0] - positions[i, 0], positions[k, 1] - positions[i, 1]
        u, v = np.sqrt(ux * ux + uy * uy), np.sqrt(vx * vx + vy * vy)
        cos = (ux * vx + uy * vy) / (u * v)
        push = -ANGLE_EV * (cos + 0.5)
        jx, jy = push * (vx / v - cos * ux / u) / u, push * (vy / v - cos * uy / u) / u
        kx, ky = push * (ux / u - cos * vx / v) / v, push * (uy / u - cos * vy / v) / v
        forces[j, 0] += jx
        forces[j, 1] += jy
        forces[k, 0] += kx
        forces[k, 1] += ky
        forces[i, 0] -= jx + kx
        forces[i, 1] -= jy + ky
    for s in range(len(strangers)):
        i, j = strangers[s, 0], strangers[s, 1]
        dx, dy = positions[j, 0] - positions[i, 0], positions[j, 1] - positions[i, 1]
        square = dx * dx + dy * dy
        if square < LEAST_DISTANCE_A * LEAST_DISTANCE_A:
            length = np.sqrt(square)
            push = CORE_EV_PER_A2 * (LEAST_DISTANCE_A - length) / max(length, 0.1)
            forces[i, 0] -= push * dx
            forces[i, 1] -= push * dy
            forces[j, 0] += push * dx
            forces[j, 1] += push * dy


@njit(cache=True)
def _descend(
    positions: Float64,
    is_free: NDArray[np.bool_],
    bonds: Int64,
    rest: Float64,
    angles: Int64,
    strangers: Int64,
    rounds: int,
    enough: float,
) -> None:
    """FIRE: go on as long as it is downhill, stop and start anew where it is not."""
    forces, velocity = np.empty_like(positions), np.zeros_like(positions)
    step, steering, downhill = 0.03, 0.1, 0
    for _ in range(rounds):
        _forces(positions, bonds, rest, angles, strangers, forces)
        power, speed, strength, most = 0.0, 0.0, 0.0, 0.0
        for i in range(len(positions)):
            if not is_free[i]:
                continue
            for k in range(2):
                power += forces[i, k] * velocity[i, k]
                speed += velocity[i, k] ** 2
                strength += forces[i, k] ** 2
                most = max(most, abs(forces[i, k]))
        if most < enough:
            return
        if power > 0:
            downhill += 1
            mix = steering * np.sqrt(speed / strength)
            if downhill > 5:
                step, steering = min(step * 1.1, 0.12), steering * 0.99
        else:
            downhill, steering, step, mix = 0, 0.1, max(step * 0.5, 0.005), 0.0
            velocity[:] = 0.0
        for i in range(len(positions)):
            if not is_free[i]:
                continue
            for k in range(2):
                velocity[i, k] += step * forces[i, k]
                if power > 0:
                    velocity[i, k] = (1 - steering) * velocity[i, k] + mix * forces[i, k]
                move = step * velocity[i, k]
                positions[i, k] += min(max(move, -LONGEST_STEP_A), LONGEST_STEP_A)
