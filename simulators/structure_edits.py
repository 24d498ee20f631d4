"""What can be done to a structure: every function returns a new one, and says in its history what was done.

Cells are multiplied, made orthogonal, looked at along a zone axis and cut to size; atoms are exchanged and
removed, a bond is turned, two grains meet, and strain or a polar displacement moves the atoms. Lengths are in
nanometres, vectors are rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from simulators.strain import inclusion, wall
from simulators.structures import Bonds, Structure, bonds_of, number_of, symbols

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
PairNm = tuple[float, float]

MAX_ATOMS = 2_000_000
SAME = 1e-6  # in units of a cell's vector: further than rounding goes, nearer than any two atoms
LONGEST_ZONE = 9
SPARE = 16  # an oblique cell needs so many times the cells of a block to be looked at
RELAXED_BONDS = 8  # atoms further from a turned bond than this stay; they would move by 0.001 nm and less


# -- cells -----------------------------------------------------------------------------------------


def supercell(structure: Structure, by: Sequence[int] | Sequence[Sequence[int]]) -> Structure:
    """Multiply a cell, by three numbers or by an integer matrix.

    Parameters
    ----------
    structure
        Periodic along each vector that is multiplied.
    by
        Three numbers, or three rows: each new vector in units of the old ones.

    Raises
    ------
    ValueError
        If the matrix has no volume, or multiplies a vector that does not repeat.
    """
    matrix = np.array(by)
    matrix = np.diag(matrix) if matrix.ndim == 1 else matrix
    volume = round(abs(np.linalg.det(matrix))) if matrix.shape == (3, 3) else 0
    if not volume or np.any(matrix != np.round(matrix)):
        raise ValueError(
            f"a supercell takes three whole numbers or a matrix of them, with a volume; not {by}"
        )
    for k in np.flatnonzero(~np.array(structure.periodic)):
        if np.any(matrix[k] != np.eye(3)[k]) or np.any(matrix[:, k] != np.eye(3)[k]):
            raise ValueError(f"a supercell along vector {k + 1}: the structure does not repeat along it")
    _require_few(volume * len(structure.numbers))
    spread = np.abs(matrix).sum(axis=0)
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in spread), indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    inside = steps @ np.linalg.inv(matrix)
    cells = steps[np.all((inside > -SAME) & (inside < 1 - SAME), axis=1)]
    shifts = cells @ structure.cell_nm
    said = (
        " x ".join(str(n) for n in np.diag(matrix)) if np.count_nonzero(matrix) == 3 else str(matrix.tolist())
    )
    return replace(
        structure,
        cell_nm=matrix @ structure.cell_nm,
        positions_nm=(structure.positions_nm + shifts[:, None]).reshape(-1, 3),
        numbers=np.tile(structure.numbers, len(shifts)),
        sites=np.tile(structure.sites, len(shifts)),
        history=(*structure.history, f"supercell {said}"),
    )


def orthogonal_cell(structure: Structure, *, most_strain: float = 0.02, most_steps: int = 4) -> Structure:
    """Find the smallest cell with right angles and turn it to x, y and z.

    Where lattice vectors at right angles exist it is exact. Where they do not, they are taken as nearly so as
    is allowed, and the crystal is sheared by that much.

    Parameters
    ----------
    structure
        The crystal.
    most_strain
        Cosine of an angle that still counts as a right one.
    most_steps
        The new vectors have components of at most so many old ones.

    Raises
    ------
    ValueError
        If there is no such cell.
    """
    vectors = _lattice_vectors(structure, most_steps)
    real = vectors @ structure.cell_nm
    lengths = np.linalg.norm(real, axis=1)
    unit = real / lengths[:, None]
    cosines = np.abs(unit @ unit.T)
    is_right = cosines <= max(most_strain, SAME)
    best: tuple[float, float, tuple[int, int, int]] | None = None
    for i, j in np.argwhere(np.triu(is_right, 1)):
        if best is not None and lengths[i] * lengths[j] ** 2 > best[0] * (1 + SAME):
            continue  # the vectors are sorted: the third is not shorter than the second
        thirds = np.flatnonzero(is_right[i] & is_right[j])
        thirds = thirds[thirds > j]
        if len(thirds):
            k = thirds[0]
            volume, skew = float(lengths[[i, j, k]].prod()), float(cosines[[i, i, j], [j, k, k]].max())
            if best is None or (round(volume, 6), skew) < (round(best[0], 6), best[1]):
                best = (volume, skew, (int(i), int(j), int(k)))
    if best is None:
        raise ValueError("no cell with right angles is near; allow more most_strain or more most_steps")
    matrix = _ordered(vectors[list(best[2])], structure.cell_nm)
    bigger = supercell(structure, matrix)
    fractional = bigger.fractional
    turned = np.diag(np.linalg.norm(bigger.cell_nm, axis=1))
    periodic = np.array(structure.periodic)
    fractional = np.where(periodic, _wrapped(fractional), fractional)
    sheared = f", sheared by {best[1]:.4f}" if best[1] > SAME else ""
    return replace(
        bigger,
        cell_nm=turned,
        positions_nm=fractional @ turned,
        history=(*structure.history, f"orthogonal cell{sheared}"),
    )


def _lattice_vectors(structure: Structure, most: int) -> Int64:
    """Short lattice vectors, one of each pair of opposite ones, the shortest first, ``(n, 3)``."""
    edges = [
        np.arange(-most, most + 1) if repeats else np.array([-1, 0, 1]) for repeats in structure.periodic
    ]
    steps = np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, 3)
    steps = steps[np.any(steps != 0, axis=1)]
    is_fixed = ~np.array(structure.periodic)
    is_whole = np.all(steps[:, is_fixed] == 0, axis=1) | (np.abs(steps).sum(axis=1) == 1)
    leading = np.array([row[np.flatnonzero(row)[0]] for row in steps])
    steps = steps[is_whole & (leading > 0)]
    lengths = np.round(np.linalg.norm(steps @ structure.cell_nm, axis=1), 7)
    # Of vectors of one length those along the cell's own come first, so that a right cell stays as it is.
    order = np.lexsort((-steps[:, 2], -steps[:, 1], -steps[:, 0], np.abs(steps).sum(axis=1), lengths))
    vectors: Int64 = steps[order].astype(np.int64)
    return vectors


def _ordered(vectors: Int64, cell_nm: Float64) -> list[list[int]]:
    """Put three vectors in the order of the cell's that they are nearest to, right-handed."""
    real = vectors @ cell_nm
    along = np.abs(real @ cell_nm.T) / np.linalg.norm(real, axis=1)[:, None] / np.linalg.norm(cell_nm, axis=1)
    third = int(np.argmax(np.round(along[:, 2], 9)))
    rest = [k for k in range(3) if k != third]
    first = max(rest, key=lambda k: round(float(along[k, 0]), 9))
    second = next(k for k in rest if k != first)
    rows = vectors[[first, second, third]]
    if np.linalg.det(rows @ cell_nm) * np.linalg.det(cell_nm) < 0:
        rows[1] = -rows[1]
    return [[int(n) for n in row] for row in rows]


def _wrapped(fractional: Float64) -> Float64:
    """Bring coordinates into 0 to 1; what is 1 but for rounding is 0."""
    whole = fractional - np.floor(fractional)
    wrapped: Float64 = np.where(whole > 1 - SAME, 0.0, whole)
    return wrapped


def along_zone(structure: Structure, zone: tuple[int, int, int]) -> Structure:
    """Turn a crystal so that a zone axis points at the viewer, which is z.

    The third vector of the new cell is the zone axis; the first two are the lattice vectors that look
    shortest from there, the first of them along x. The cell holds the same atoms as before.

    Parameters
    ----------
    structure
        A crystal, or a sheet that is looked at along its third vector.
    zone
        The direct lattice vector ``[uvw]``; common factors are taken out.

    Raises
    ------
    ValueError
        If it is no direction, has indices above 9, or the structure does not repeat along it.
    """
    indices = np.array(zone)
    if indices.shape != (3,) or not indices.any() or np.abs(indices).max() > LONGEST_ZONE:
        raise ValueError(
            f"the zone axis is {list(zone)}; it takes three indices up to {LONGEST_ZONE}, not all 0"
        )
    if not all(structure.periodic) and (indices[0] or indices[1]):
        raise ValueError(f"the zone axis is {list(zone)}; a structure that is no crystal takes [0, 0, 1]")
    indices = indices // math.gcd(*(int(n) for n in indices))
    matrix = _seen_along(structure, indices.astype(np.int64))
    cell = matrix @ structure.cell_nm
    turn = _turn(cell)
    return replace(
        structure,
        cell_nm=cell @ turn,
        positions_nm=structure.positions_nm @ turn,
        history=(*structure.history, "seen along [" + " ".join(str(n) for n in indices) + "]"),
    )


def _seen_along(structure: Structure, zone: Int64) -> Int64:
    """Complete a zone axis to a cell of the same volume, the other two as short as they can look."""
    axis = zone @ structure.cell_nm
    axis = axis / np.linalg.norm(axis)
    vectors = _lattice_vectors(structure, max(3, int(np.abs(zone).max())))
    real = vectors @ structure.cell_nm
    depth = real @ axis
    seen = np.linalg.norm(real - depth[:, None] * axis, axis=1)
    steps = np.abs(vectors).sum(axis=1)
    order = np.lexsort((steps, np.round(np.abs(depth), 7), np.round(seen, 7)))
    order = order[seen[order] > SAME]
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            volume = round(np.linalg.det(np.array([vectors[i], vectors[j], zone])))
            if abs(volume) == 1:
                handed = np.linalg.det(np.array([real[i], real[j], axis]))
                return np.array([vectors[i], np.sign(handed) * vectors[j], zone]).astype(np.int64)
    raise ValueError(f"no cell was found along {zone.tolist()}")  # pragma: no cover  there always is one


def _turn(cell_nm: Float64) -> Float64:
    """Rotation, for rows from the right: the third vector to z, the first one into the plane of x and z."""
    z = cell_nm[2] / np.linalg.norm(cell_nm[2])
    x = cell_nm[0] - (cell_nm[0] @ z) * z
    x = x / np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def cut(structure: Structure, lower_nm: ArrayLike, upper_nm: ArrayLike) -> Structure:
    """Cut a block out of a crystal that goes on for ever; the result does not repeat.

    Parameters
    ----------
    structure
        What is cut; where it does not repeat it is taken as it is.
    lower_nm, upper_nm
        Corners ``(x, y, z)``. An atom on the lower face is in, one on the upper face is out, so that
        neighbouring blocks share none.

    Raises
    ------
    ValueError
        If the block is empty or has more than 2,000,000 atoms.
    """
    lower, upper = np.array(lower_nm, dtype=np.float64), np.array(upper_nm, dtype=np.float64)
    if not np.all(upper > lower):
        raise ValueError(
            f"a block from {lower.tolist()} to {upper.tolist()} nm is empty; raise its upper corner"
        )
    rounding = 1e-7
    if all(structure.periodic):
        _require_few(round(len(structure.numbers) * float(np.prod(upper - lower)) / structure.volume_nm3))
    cells = _cells_between(structure, lower, upper)
    shifts = cells @ structure.cell_nm
    reach = structure.positions_nm.min(axis=0), structure.positions_nm.max(axis=0)
    is_near = np.all((shifts + reach[1] >= lower - rounding) & (shifts + reach[0] < upper), axis=1)
    shifts = shifts[is_near]
    _require_few(len(structure.numbers) * len(shifts) // SPARE)
    positions = (structure.positions_nm + shifts[:, None]).reshape(-1, 3)
    is_in = np.all((positions >= lower - rounding) & (positions < upper - rounding), axis=1)
    if not is_in.any():
        raise ValueError(f"there is no atom from {lower.tolist()} to {upper.tolist()} nm; cut elsewhere")
    _require_few(int(np.count_nonzero(is_in)))
    size = " x ".join(f"{edge:.3g}" for edge in upper - lower if edge > 1e-3)  # a sheet has no thickness
    return replace(
        structure,
        cell_nm=np.diag(upper - lower),
        positions_nm=positions[is_in],
        numbers=np.tile(structure.numbers, len(shifts))[is_in],
        sites=np.tile(structure.sites, len(shifts))[is_in],
        periodic=(False, False, False),
        history=(*structure.history, f"cut to {size} nm"),
    )


def _cells_between(structure: Structure, lower: Float64, upper: Float64) -> Int64:
    """Cells whose atoms may lie between two corners, ``(n, 3)``."""
    corners = np.stack(np.meshgrid(*zip(lower, upper, strict=True), indexing="ij"), axis=-1).reshape(-1, 3)
    inverse = np.linalg.inv(structure.cell_nm)
    fractional = structure.fractional
    first = np.floor((corners @ inverse).min(axis=0) - fractional.max(axis=0)).astype(int)
    last = np.ceil((corners @ inverse).max(axis=0) - fractional.min(axis=0)).astype(int)
    first, last = np.where(structure.periodic, first, 0), np.where(structure.periodic, last, 0)
    _require_few(math.prod((last - first + 1).tolist()) // SPARE)
    steps = (np.arange(a, b + 1) for a, b in zip(first, last, strict=True))
    return np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)


def _require_few(atoms: int) -> None:
    if atoms > MAX_ATOMS:
        raise ValueError(f"that would be more than {MAX_ATOMS:,} atoms; take a smaller block or fewer layers")


def turned(structure: Structure, angle_deg: float) -> Structure:
    """Turn about z, from x to y."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return replace(
        structure,
        cell_nm=structure.cell_nm @ turn,
        positions_nm=structure.positions_nm @ turn,
        history=(*structure.history, f"turned by {angle_deg:g} deg") if angle_deg else structure.history,
    )


def shifted(structure: Structure, by_nm: ArrayLike) -> Structure:
    """Move all atoms; the cell stays."""
    return replace(structure, positions_nm=structure.positions_nm + np.array(by_nm, dtype=np.float64))


# -- point defects ---------------------------------------------------------------------------------


def chosen_sites(
    structure: Structure, element: str, fraction: float, rng: np.random.Generator, *, apart_nm: float = 0.0
) -> Int64:
    """Choose at random a fraction of the atoms of an element; rounded, so that a count is exact.

    Parameters
    ----------
    structure, element, fraction
        Of which atoms how many.
    rng
        Chooses.
    apart_nm
        Least distance of two of them, repeats of the cell not counted.

    Raises
    ------
    ValueError
        If there is no such atom, the fraction is not between 0 and 1, or so many do not fit.
    """
    candidates = np.flatnonzero(structure.numbers == number_of(element))
    if not len(candidates):
        raise ValueError(f"there is no {element}; name one of {_elements(structure)}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction of {fraction:g} of {element}; it takes 0 to 1")
    wanted, shuffled = round(fraction * len(candidates)), rng.permutation(candidates)
    if apart_nm:
        shuffled = _apart(structure.positions_nm, shuffled, wanted, apart_nm)
    if len(shuffled) < wanted:
        raise ValueError(
            f"{wanted} atoms of {element} do not fit {apart_nm:g} nm apart; take a smaller fraction"
        )
    return np.sort(shuffled[:wanted]).astype(np.int64)


def _apart(positions: Float64, candidates: Int64, wanted: int, apart_nm: float) -> Int64:
    """Of candidates in their order, those that are far enough from all that were taken before."""
    tree = cKDTree(positions)
    is_open = np.ones(len(positions), dtype=bool)
    taken: list[int] = []
    for candidate in candidates.tolist():
        if len(taken) == wanted:
            break
        if is_open[candidate]:
            taken.append(candidate)
            is_open[tree.query_ball_point(positions[candidate], apart_nm)] = False
    return np.array(taken, dtype=np.int64)


def _elements(structure: Structure) -> str:
    return ", ".join(symbols(np.unique(structure.numbers)))


def doped(structure: Structure, element: str, sites: ArrayLike) -> Structure:
    """Put another element in the place of some atoms; nothing moves.

    Parameters
    ----------
    structure
        As it is.
    element
        Symbol of the dopant.
    sites
        Indices of the atoms that it replaces.
    """
    sites = _indices(structure, sites)
    numbers, names = structure.numbers.copy(), structure.sites.astype(object)
    names[sites] = [f"{element} in the place of {old}" for old in symbols(numbers[sites])]
    numbers[sites] = number_of(element)
    said = f"{len(sites)} of {len(numbers)} atoms replaced by {element}"
    history = (*structure.history, said)
    return replace(structure, numbers=numbers, sites=names.astype(np.str_), history=history)


def with_vacancies(structure: Structure, sites: ArrayLike) -> Structure:
    """Take out some atoms; their neighbours stay where they are and are named as such.

    Raises
    ------
    ValueError
        If no atom would be left.
    """
    sites = _indices(structure, sites)
    is_left = np.ones(len(structure.numbers), dtype=bool)
    is_left[sites] = False
    if not is_left.any():
        raise ValueError("no atom would be left; take out fewer")
    names = structure.sites.astype(object)
    bonds = bonds_of(structure)
    for atom in np.unique(bonds.second[np.isin(bonds.first, sites)]):
        if not names[atom].endswith(BESIDE):
            names[atom] += BESIDE
    return replace(
        structure,
        positions_nm=structure.positions_nm[is_left],
        numbers=structure.numbers[is_left],
        sites=names[is_left].astype(np.str_),
        history=(*structure.history, f"{len(sites)} of {len(is_left)} atoms taken out"),
    )


BESIDE = " beside a vacancy"


def _indices(structure: Structure, sites: ArrayLike) -> Int64:
    chosen = np.unique(np.asarray(sites, dtype=np.int64).reshape(-1))
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < len(structure.numbers):
        raise ValueError(
            f"there are atoms 0 to {len(structure.numbers) - 1}; not {chosen[0]} to {chosen[-1]}"
        )
    return chosen


# -- a turned bond ---------------------------------------------------------------------------------


def with_stone_wales(structure: Structure, bond: tuple[int, int]) -> Structure:
    """Turn a bond of a threefold sheet by 90 degrees: rings of 5, 7, 5 and 7 for four of 6.

    The bonds then come back to the lengths that they had (Stone and Wales, Chem. Phys. Lett. 128, 501
    (1986)), by springs along them and, softer, across their angles; the sheet stays flat if it was.

    Parameters
    ----------
    structure
        A sheet, periodic or large enough.
    bond
        Its two atoms.

    Raises
    ------
    ValueError
        If they are not bonded to each other and to two more each.
    """
    first, second = bond
    _indices(structure, bond)
    bonds = bonds_of(structure)
    pairs = _half(bonds)
    is_turned = (pairs.first == min(bond)) & (pairs.second == max(bond))
    if np.count_nonzero(is_turned) != 1 or len(bonds.of(first)) != 3 or len(bonds.of(second)) != 3:
        raise ValueError(f"atoms {first} and {second} are not bonded to each other and to two more each")
    positions = structure.positions_nm.copy()
    shift = pairs.apart_nm - (positions[pairs.second] - positions[pairs.first])
    middle, across = _turned_bond(structure, bonds, pairs, int(np.flatnonzero(is_turned)[0]))
    low, high = pairs.first[is_turned][0], pairs.second[is_turned][0]
    seam = shift[is_turned][0]
    positions[low], positions[high] = middle - across, middle + across - seam
    ends = _exchanged(positions, pairs, shift, (int(low), int(high)), seam)
    is_free = _within_bonds(pairs, bond, RELAXED_BONDS, len(positions))
    positions = _at_rest(positions, *ends, _rest_nm(structure, pairs, ends[0], ends[1]), is_free)
    names = structure.sites.astype(object)
    names[[first, second]] = [f"{name} of a turned bond" for name in names[[first, second]]]
    history = (*structure.history, f"bond {first}-{second} turned")
    return replace(structure, positions_nm=positions, sites=names.astype(np.str_), history=history)


def settled(structure: Structure, bond_nm: Mapping[tuple[str, str], float]) -> Structure:
    """Bring bonds to length, and the atoms around them to rest; the cell stays.

    Parameters
    ----------
    structure
        A sheet; its bonds are found first, and no bond forms or breaks.
    bond_nm
        Length of the bonds of two elements in the order of the alphabet; all others keep theirs.
    """
    pairs = _half(bonds_of(structure))
    names = np.array(symbols(structure.numbers))
    ends = np.sort(np.stack([names[pairs.first], names[pairs.second]], axis=1), axis=1)
    rest = pairs.lengths_nm
    for kinds, length_nm in bond_nm.items():
        rest[np.all(ends == kinds, axis=1)] = length_nm
    shift = pairs.apart_nm - (structure.positions_nm[pairs.second] - structure.positions_nm[pairs.first])
    positions = _at_rest(structure.positions_nm, pairs.first, pairs.second, shift, rest)
    return replace(structure, positions_nm=positions, history=(*structure.history, "bonds brought to length"))


def _half(bonds: Bonds) -> Bonds:
    """Each bond once."""
    is_once = bonds.first < bonds.second
    return Bonds(bonds.first[is_once], bonds.second[is_once], bonds.apart_nm[is_once])


def _turned_bond(structure: Structure, bonds: Bonds, pairs: Bonds, at: int) -> tuple[Float64, Float64]:
    """Middle of a bond, and half of what it is when turned in the plane of its neighbours."""
    start, apart = structure.positions_nm[pairs.first[at]], pairs.apart_nm[at]
    around = bonds.apart_nm[bonds.first == pairs.first[at]]
    normal = np.cross(around[0] - around[2], around[1] - around[2])
    normal = normal / np.linalg.norm(normal)
    return start + apart / 2, np.cross(normal, apart) / 2


def _exchanged(
    positions: Float64, pairs: Bonds, shift: Float64, bond: tuple[int, int], seam: Float64
) -> tuple[Int64, Int64, Float64]:
    """Let each of the two turned atoms be bonded to the two of their four neighbours that are nearest now.

    Ends of the bonds, and what is added to the second end because it lies in another cell.
    """
    low, high = bond
    first, second, shift = pairs.first.copy(), pairs.second.copy(), shift.copy()
    outer: list[tuple[float, int, int, Float64]] = []
    for at in np.flatnonzero(np.isin(first, bond) ^ np.isin(second, bond)):
        is_start = first[at] in bond
        atom, other = (first[at], second[at]) if is_start else (second[at], first[at])
        step = shift[at] if is_start else -shift[at]  # where the other is, seen from the cell of ``low``
        step = step + seam if atom == high else step
        place = positions[other] + step
        nearer = np.linalg.norm(place - positions[low]) - np.linalg.norm(place - positions[high] - seam)
        outer.append((float(nearer), int(at), int(other), step))
    outer.sort(key=lambda one: one[0])
    for rank, (_, bond_at, neighbour, step) in enumerate(outer):
        first[bond_at] = low if rank < 2 else high
        second[bond_at] = neighbour
        shift[bond_at] = step if rank < 2 else step - seam
    return first, second, shift


def _rest_nm(structure: Structure, pairs: Bonds, first: Int64, second: Int64) -> Float64:
    """Lengths that bonds had; those that join others now take the middle one of bonds of such elements."""
    rest, numbers = pairs.lengths_nm, structure.numbers
    before = np.sort(numbers[np.stack([pairs.first, pairs.second], axis=1)], axis=1)
    now = np.sort(numbers[np.stack([first, second], axis=1)], axis=1)
    for at in np.flatnonzero((pairs.first != first) | (pairs.second != second)):
        alike = pairs.lengths_nm[np.all(before == now[at], axis=1)]
        rest[at] = np.median(alike) if len(alike) else rest[at]
    return rest


def _within_bonds(pairs: Bonds, atoms: Sequence[int], steps: int, count: int) -> Bool:
    """Which atoms are no more than some bonds away from others, shape ``(count,)``."""
    reached = np.zeros(count, dtype=bool)
    reached[list(atoms)] = True
    for _ in range(steps):
        ahead = reached.copy()
        ahead[pairs.second[reached[pairs.first]]] = True
        ahead[pairs.first[reached[pairs.second]]] = True
        reached = ahead
    return reached


def _at_rest(
    positions: Float64,
    first: Int64,
    second: Int64,
    shift: Float64,
    rest_nm: Float64,
    is_free: Bool | None = None,
    bend: float = 0.15,
) -> Float64:
    """Let springs along bonds, and softer ones across angles of 120 degrees, bring atoms to rest."""
    is_free = np.ones(len(positions), dtype=bool) if is_free is None else is_free
    start, end, over, length = _across(first, second, shift, rest_nm, len(positions))
    i, j = np.concatenate([first, start]), np.concatenate([second, end])
    moved, rest = np.concatenate([shift, over]), np.concatenate([rest_nm, length])
    stiff = np.concatenate([np.ones(len(first)), np.full(len(start), bend)])
    counts = is_free[i] | is_free[j]
    touched, ends = np.unique(np.concatenate([i[counts], j[counts]]), return_inverse=True)
    i, j = np.split(ends, 2)
    moved, rest, stiff = moved[counts], rest[counts], stiff[counts]

    def energy(flat: Float64) -> tuple[float, Float64]:
        """In tenths of a nanometre: spring constants and tolerances are of order one."""
        now = flat.reshape(-1, 3)
        apart = now[j] - now[i] + 10 * moved
        distance = np.linalg.norm(apart, axis=1)
        longer = distance - 10 * rest
        pull = (stiff * longer / distance)[:, None] * apart
        count = len(now)
        slope = np.stack([np.bincount(j, p, count) - np.bincount(i, p, count) for p in pull.T], axis=1)
        slope[~is_free[touched]] = 0.0
        return float(0.5 * (stiff * longer**2).sum()), slope.ravel()

    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(energy, positions[touched].ravel() * 10, jac=True, method="L-BFGS-B", options=options)
    result = positions.copy()
    result[touched] = np.where(is_free[touched][:, None], found.x.reshape(-1, 3) / 10, positions[touched])
    return result


def _across(
    first: Int64, second: Int64, shift: Float64, rest_nm: Float64, count: int
) -> tuple[Int64, Int64, Float64, Float64]:
    """Springs between any two atoms bonded to the same threefold one."""
    middle = np.concatenate([first, second])
    other = np.concatenate([second, first])
    step, length = np.concatenate([shift, -shift]), np.concatenate([rest_nm, rest_nm])
    order = np.argsort(middle, kind="stable")
    ends = np.searchsorted(middle[order], np.arange(count + 1))
    found = [
        (a, b)
        for begin, end in pairwise(ends)
        if end - begin == 3
        for a, b in ((begin, begin + 1), (begin, begin + 2), (begin + 1, begin + 2))
    ]
    one, two = order[np.array(found, dtype=np.int64).reshape(-1, 2)].T
    p, q = length[one], length[two]
    return other[one], other[two], step[two] - step[one], np.sqrt(p * p + q * q + p * q)


# -- two grains ------------------------------------------------------------------------------------


def two_grains(
    structure: Structure,
    lower_nm: ArrayLike,
    upper_nm: ArrayLike,
    *,
    tilt_deg: float,
    at_nm: PairNm = (0.0, 0.0),
    normal_deg: float = 0.0,
    least_nm: float | None = None,
) -> Structure:
    """Cut a block with a grain boundary: beyond a plane along z the crystal is turned about z.

    The boundary is geometrical, nothing is relaxed: of two atoms that would come too near, the one of the
    turned grain is left out.

    Parameters
    ----------
    structure
        The crystal of both grains, z the axis of the tilt.
    lower_nm, upper_nm
        Corners ``(x, y, z)`` of the block.
    tilt_deg
        Angle from the first grain to the second, from x to y.
    at_nm, normal_deg
        A point on the boundary, and the angle from x to its normal, which points to the second grain.
    least_nm
        Least distance of atoms of different grains; None takes 0.8 of the shortest bond.
    """
    angle = math.radians(normal_deg)
    normal = np.array([math.cos(angle), math.sin(angle)])
    bonds = bonds_of(structure)
    shortest = float(bonds.lengths_nm.min()) if len(bonds.first) else 0.1
    least = 0.8 * shortest if least_nm is None else least_nm
    one = cut(structure, lower_nm, upper_nm)
    two = cut(turned(structure, tilt_deg), lower_nm, upper_nm)
    is_first = (one.positions_nm[:, :2] - at_nm) @ normal < 0
    is_second = (two.positions_nm[:, :2] - at_nm) @ normal >= 0
    both = replace(
        one,
        positions_nm=np.concatenate([one.positions_nm[is_first], two.positions_nm[is_second]]),
        numbers=np.concatenate([one.numbers[is_first], two.numbers[is_second]]),
        sites=np.concatenate([one.sites[is_first], two.sites[is_second]]),
        history=(*one.history, f"a second grain turned by {tilt_deg:g} deg"),
    )
    return _without_close(both, int(np.count_nonzero(is_first)), least)


def _without_close(structure: Structure, first_grain: int, least_nm: float) -> Structure:
    """Leave out atoms of the second grain that are too near to one of the first."""
    first, second = structure.positions_nm[:first_grain], structure.positions_nm[first_grain:]
    is_left = np.ones(len(structure.numbers), dtype=bool)
    if len(first) and len(second):
        is_left[first_grain:] = cKDTree(first).query(second)[0] >= least_nm
    return replace(
        structure,
        positions_nm=structure.positions_nm[is_left],
        numbers=structure.numbers[is_left],
        sites=structure.sites[is_left],
    )


# -- strain and polarity ---------------------------------------------------------------------------


def strained(structure: Structure, strain: ArrayLike) -> Structure:
    """Strain cell and atoms alike.

    Parameters
    ----------
    structure
        As it is.
    strain
        The gradient of the displacement, shape ``(3, 3)``, or ``(2, 2)`` in the plane of x and y: a point
        ``r`` goes to ``r + strain r``.
    """
    gradient = np.zeros((3, 3))
    given = np.array(strain, dtype=np.float64)
    if given.shape not in ((2, 2), (3, 3)) or not np.isfinite(given).all():
        raise ValueError("a strain takes 2 x 2 or 3 x 3 finite numbers")
    gradient[: len(given), : len(given)] = given
    if np.linalg.det(np.eye(3) + gradient) <= 0:
        raise ValueError("the strain turns the crystal inside out; take a smaller one")
    deform = (np.eye(3) + gradient).T
    return replace(
        structure,
        cell_nm=structure.cell_nm @ deform,
        positions_nm=structure.positions_nm @ deform,
        history=(*structure.history, f"strained by {given.tolist()}"),
    )


def displaced(structure: Structure, field: Callable[[Float64], Float64], what: str) -> Structure:
    """Move atoms by a field in the plane.

    Parameters
    ----------
    structure
        As it is; one that repeats should be larger than the field.
    field
        Displacement ``(x, y)`` at places ``(x, y)``, both ``(n, 2)``, such as those of ``simulators.strain``.
    what
        For the history.
    """
    positions = structure.positions_nm.copy()
    positions[:, :2] += field(positions[:, :2])
    return replace(structure, positions_nm=positions, history=(*structure.history, what))


def with_inclusion(structure: Structure, strain_nm: float, at_nm: PairNm, radius_nm: float) -> Structure:
    """Push atoms away from a place, most at a radius."""
    said = f"an inclusion pushes by {strain_nm:g} nm"
    return displaced(structure, lambda at: inclusion(at, strain_nm, at_nm, radius_nm), said)


def with_wall(
    structure: Structure, strain_nm: float, at_nm: PairNm, half_width_nm: float, normal_deg: float
) -> Structure:
    """Let the two sides of a line slip past each other."""
    normal = math.radians(normal_deg)
    said = f"a wall slips by {strain_nm:g} nm"
    return displaced(structure, lambda at: wall(at, strain_nm, at_nm, half_width_nm, normal), said)


def polar(
    structure: Structure,
    element: str,
    shift_nm: Sequence[float],
    *,
    wall_at_nm: PairNm = (0.0, 0.0),
    wall_width_nm: float = 0.0,
    wall_normal_deg: float = 0.0,
) -> Structure:
    """Displace one sublattice against the others; across a wall the displacement turns round.

    Parameters
    ----------
    structure
        As it is.
    element
        Whose atoms move, such as ``Ti``.
    shift_nm
        How far, ``(x, y)`` or ``(x, y, z)``.
    wall_at_nm, wall_width_nm, wall_normal_deg
        A point on a domain wall along z, its half width in ``tanh(distance / width)``, and the angle from x
        to its normal; a width of 0 is a single domain.
    """
    moves = structure.numbers == number_of(element)
    if not moves.any():
        raise ValueError(f"there is no {element}; name one of {_elements(structure)}")
    shift = np.zeros(3)
    shift[: len(shift_nm)] = shift_nm
    share = np.ones(len(structure.numbers))
    if wall_width_nm:
        angle = math.radians(wall_normal_deg)
        from_wall = (structure.positions_nm[:, :2] - wall_at_nm) @ (math.cos(angle), math.sin(angle))
        share = np.tanh(from_wall / wall_width_nm)
    positions = structure.positions_nm + np.where(moves, share, 0.0)[:, None] * shift
    said = f"{element} displaced by {[round(float(s), 6) for s in shift_nm]} nm"
    return replace(structure, positions_nm=positions, history=(*structure.history, said))
