"""The lattice that a set of columns lies on, from the columns alone.

Nothing is known of the material. Translations are sought among the differences between neighbours,
which smooth distortion hardly changes; columns are then numbered from neighbour to neighbour, so that
a distortion of many pixels does not confuse the numbers as long as it is smooth. The best global
affine map is a gauge: it is the one that the lattice fits best.

Positions are ``(row, col)`` in pixels; an index is ``(i, j, b)``: cell and place in its basis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

FEWEST_COLUMNS = 12
_REACH = 4.5  # of a translation, in distances between nearest neighbours
_TOLERANCE = 0.22  # of a place, in distances between nearest neighbours
_LEAST_OCCUPANCY = 0.35  # part of the columns that a translation must take to another column
_OCCUPANCY_RATIO = 0.75  # of the best translation's
_UNLIKE = 0.5  # how much less alike than the most alike two columns may be to count as the same
_RAREST = 0.4  # a place of the basis is occupied in at least this part of the cells
_NEIGHBOURS = 12
_TURN = 0.04  # radians by which another grain is turned at least
_LEAST_SINE = 0.3  # of the angle between the two vectors


class NoLattice(Exception):
    """These columns do not lie on a lattice; the reason is a short fixed phrase."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lattice:
    """A lattice with a basis.

    Attributes
    ----------
    vectors_px
        The two shortest translations, one a row, shape ``(2, 2)``, ``(row, col)``.
    origin_px
        Place of the index ``(0, 0, 0)`` if the basis starts at 0, shape ``(2,)``.
    basis
        Places in the cell, in parts of the vectors, shape ``(k, 2)``.
    amplitude
        Typical amplitude of the columns at each of them, shape ``(k,)``.
    """

    vectors_px: Float64
    origin_px: Float64
    basis: Float64
    amplitude: Float64

    def __post_init__(self) -> None:
        if abs(float(np.linalg.det(self.vectors_px))) < 1e-6:
            raise NoLattice("vectors are parallel")
        if self.basis.shape != (len(self.amplitude), 2) or not len(self.basis):
            raise NoLattice("basis and amplitudes do not belong together")

    @property
    def spacing_px(self) -> float:
        """Distance between nearest neighbours."""
        cells = np.stack(np.meshgrid(range(-2, 3), range(-2, 3), indexing="ij"), axis=-1).reshape(-1, 2)
        steps = (cells[:, None, None] + self.basis[None, :, None] - self.basis[None, None]) @ self.vectors_px
        lengths = np.hypot(steps[..., 0], steps[..., 1]).ravel()
        return float(lengths[lengths > 1e-6].min())

    def place_of(self, index: Int64) -> Float64:
        """Say where sites are, shape ``(n, 2)``, given their indices ``(n, 3)``."""
        place: Float64 = (index[:, :2] + self.basis[index[:, 2]]) @ self.vectors_px + self.origin_px
        return place

    def index_of(self, positions_px: Float64) -> tuple[Int64, Float64]:
        """Say which site is nearest to each position, ``(n, 3)``, and how far, in pixels."""
        cells = (positions_px - self.origin_px) @ np.linalg.inv(self.vectors_px)
        parts = cells[:, None] - self.basis
        whole = np.rint(parts)
        rest = (parts - whole) @ self.vectors_px
        distance = np.hypot(rest[..., 0], rest[..., 1])
        which = distance.argmin(axis=1)
        each = np.arange(len(cells))
        index = np.column_stack([whole[each, which], which]).astype(np.int64)
        return index, distance[each, which]

    def sites(self, low_px: Float64, high_px: Float64) -> Int64:
        """List the indices of the sites in a rectangle, shape ``(n, 3)``, in a fixed order."""
        corners = np.array([[r, c] for r in (low_px[0], high_px[0]) for c in (low_px[1], high_px[1])])
        cells = (corners - self.origin_px) @ np.linalg.inv(self.vectors_px)
        first = np.floor(cells.min(axis=0) - self.basis.max(axis=0)).astype(int)
        last = np.ceil(cells.max(axis=0) - self.basis.min(axis=0)).astype(int)
        ranges = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        grid = np.meshgrid(*ranges, np.arange(len(self.basis)), indexing="ij")
        index = np.stack(grid, axis=-1).reshape(-1, 3).astype(np.int64)
        place = self.place_of(index)
        return index[np.all((place >= low_px) & (place <= high_px), axis=1)]

    def places(self, shape: tuple[int, int], margin_px: float = 0.0) -> Float64:
        """List where columns are expected in a frame and up to a margin around it, shape ``(n, 2)``."""
        low, high = np.full(2, -margin_px), np.array(shape) - 1.0 + margin_px
        return self.place_of(self.sites(low, high))


def find_lattice(positions_px: Float64, amplitudes: Float64, shape: tuple[int, int]) -> Lattice:
    """Find the lattice of the largest grain.

    Parameters
    ----------
    positions_px
        Columns found in a frame, shape ``(n, 2)``, ``(row, col)``; some may be none, some may lack.
    amplitudes
        How bright they are, shape ``(n,)``; tells sublattices apart.
    shape
        Of the frame.

    Raises
    ------
    NoLattice
        ``too few columns``, ``no translation repeats`` or ``no grain is large enough``.
    """
    return index_columns(positions_px, amplitudes, shape)[0]


def index_columns(
    positions_px: Float64, amplitudes: Float64, shape: tuple[int, int]
) -> tuple[Lattice, Int64, Bool]:
    """Find the lattice, and say which site each column is: index ``(n, 3)`` and whether it has one."""
    positions = np.asarray(positions_px, dtype=np.float64).reshape(-1, 2)
    if len(positions) < FEWEST_COLUMNS:
        raise NoLattice("too few columns")
    tree = cKDTree(positions)
    spacing = float(np.median(tree.query(positions, k=2)[0][:, 1]))
    vectors = _shortest_pair(_translations(positions, amplitudes, tree, spacing))
    members, cells = _largest_grain(positions, vectors, tree, spacing)
    if len(members) < max(FEWEST_COLUMNS // 2, 0.1 * len(positions) / 4):
        raise NoLattice("no grain is large enough")
    lattice = _with_basis(positions, amplitudes, vectors, members, cells, spacing)
    index = np.zeros((len(positions), 3), dtype=np.int64)
    index[members, :2] = cells
    known = np.zeros(len(positions), dtype=bool)
    known[members] = True
    for _ in range(2):
        lattice = fitted_lattice(lattice, positions, index, known)
        index, known = grown(positions, lattice, index, known)
    if known.sum() < FEWEST_COLUMNS:
        raise NoLattice("no grain is large enough")
    lattice = fitted_lattice(lattice, positions, index, known)
    return _centred(lattice, index, known, shape)


def _translations(positions: Float64, amplitudes: Float64, tree: cKDTree, spacing: float) -> Float64:
    """Translations that take most columns to a column of the same kind, shortest first, ``(n, 2)``."""
    steps, occupancy, unlike = [], [], []
    rank = np.argsort(np.argsort(amplitudes)) / len(amplitudes)
    for step in _frequent_differences(positions, tree, spacing):
        refined, part, difference = _tried(step, positions, rank, tree, spacing)
        if part >= _LEAST_OCCUPANCY:
            steps.append(refined)
            occupancy.append(part)
            unlike.append(difference)
    if len(steps) < 2:
        raise NoLattice("no translation repeats")
    keep = np.array(occupancy) >= _OCCUPANCY_RATIO * max(occupancy)
    keep &= np.array(unlike) <= min(np.array(unlike)[keep]) + _UNLIKE
    found: Float64 = np.array(steps)[keep]
    ordered: Float64 = found[np.argsort(np.hypot(*found.T), kind="stable")]
    return ordered


def _frequent_differences(positions: Float64, tree: cKDTree, spacing: float) -> Float64:
    """Maxima of the density of differences between columns, in one half of the plane."""
    pairs = tree.query_pairs(_REACH * spacing, output_type="ndarray")
    steps = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    steps = np.concatenate([steps, -steps])
    grid = spacing / 10
    half = int(np.ceil(_REACH * spacing / grid)) + 3
    places = np.rint(steps / grid).astype(int) + half
    density = np.zeros((2 * half + 1, 2 * half + 1))
    np.add.at(density, (places[:, 0], places[:, 1]), 1.0)
    density = ndimage.gaussian_filter(density, 1.0)
    highest = (density == ndimage.maximum_filter(density, 5)) & (density > 0.2 * density.max())
    found = (np.argwhere(highest) - half) * grid
    upper = (found[:, 0] > 1e-9) | ((np.abs(found[:, 0]) <= 1e-9) & (found[:, 1] > 0))
    ahead: Float64 = found[upper & (np.hypot(*found.T) > 0.5 * spacing)]
    return ahead


def _tried(
    step: Float64, positions: Float64, rank: Float64, tree: cKDTree, spacing: float
) -> tuple[Float64, float, float]:
    """Refine a translation; part of the columns it takes to a column; how unlike the two are (1: chance)."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    refined = step
    for _ in range(2):
        target = positions + refined
        distance, other = tree.query(target, distance_upper_bound=_TOLERANCE * spacing)
        hit = np.isfinite(distance)
        if not hit.any():
            return refined, 0.0, np.inf
        refined = np.median(positions[other[hit]] - positions[hit], axis=0)
    inside = np.all((target >= low) & (target <= high), axis=1)
    if inside.sum() < FEWEST_COLUMNS // 2:
        return refined, 0.0, np.inf
    # Two ranks drawn by chance differ by 1/6 in the mean square.
    unlike = 6 * float(np.mean((rank[hit] - rank[other[hit]]) ** 2))
    return refined, float((hit & inside).sum() / inside.sum()), unlike


def _shortest_pair(steps: Float64) -> Float64:
    """The two shortest translations that are not parallel, reduced."""
    for second in steps[1:]:
        sine = abs(steps[0, 0] * second[1] - steps[0, 1] * second[0])
        if sine > _LEAST_SINE * np.hypot(*steps[0]) * np.hypot(*second):
            return _reduced(np.stack([steps[0], second]))
    raise NoLattice("no translation repeats")


def _reduced(vectors: Float64) -> Float64:
    """Lagrange's reduction; both vectors point down or right, so that the answer is always the same."""
    a: Float64 = vectors[0]
    b: Float64 = vectors[1]
    while True:
        if a @ a > b @ b:
            a, b = b, a
        turns = np.rint((a @ b) / (a @ a))
        if turns == 0:
            break
        b = b - turns * a
    pair = [
        v if (v[0] > 1e-6 * abs(v[1]) or (abs(v[0]) <= 1e-6 * abs(v[1]) and v[1] > 0)) else -v for v in (a, b)
    ]
    # The first is the one more along the fast axis, where lengths are often the same.
    down = [abs(v[0]) / np.linalg.norm(v) for v in pair]
    return np.stack(pair if down[0] <= down[1] else pair[::-1])


def _largest_grain(
    positions: Float64, vectors: Float64, tree: cKDTree, spacing: float
) -> tuple[Int64, Int64]:
    """The largest set of columns that hang together by the two vectors, and their cells ``(n, 2)``."""
    rows, cols, steps = [], [], []
    for step, vector in enumerate(vectors):
        for sign in (1, -1):
            distance, other = tree.query(positions + sign * vector, distance_upper_bound=_TOLERANCE * spacing)
            hit = np.flatnonzero(np.isfinite(distance))
            rows.append(hit)
            cols.append(other[hit])
            steps.append(np.full(hit.size, sign * (step + 1)))
    size = (len(positions), len(positions))
    links = coo_matrix((np.concatenate(steps), (np.concatenate(rows), np.concatenate(cols))), size).tocsr()
    _, label = connected_components(links, directed=False)
    grain = int(np.bincount(label).argmax())
    start = int(np.flatnonzero(label == grain)[0])
    order, before = breadth_first_order(links, start, directed=True)
    cells = np.zeros((len(positions), 2), dtype=np.int64)
    for column in order[1:]:
        step = int(links[before[column], column])
        cells[column] = cells[before[column]]
        cells[column, abs(step) - 1] += 1 if step > 0 else -1
    members = np.sort(order).astype(np.int64)
    return members, cells[members]


def _with_basis(
    positions: Float64,
    amplitudes: Float64,
    vectors: Float64,
    members: Int64,
    cells: Int64,
    spacing: float,
) -> Lattice:
    """Find the places in the cell from where columns lie beside the numbered ones near them."""
    tree = cKDTree(positions[members])
    reach = 1.5 * float(np.hypot(*vectors.T).max())
    distance, near = tree.query(positions, k=min(6, len(members)), distance_upper_bound=reach)
    near_enough = np.isfinite(distance)
    inverse = np.linalg.inv(vectors)
    offset = positions[:, None] - positions[members][np.minimum(near, len(members) - 1)]
    parts = cells[np.minimum(near, len(members) - 1)] + offset @ inverse
    known = near_enough.any(axis=1)
    count = np.maximum(near_enough.sum(axis=1), 1)
    mean = np.where(near_enough[..., None], parts, 0.0).sum(axis=1) / count[:, None]
    middles, groups = _clusters(mean[known], vectors, _TOLERANCE * spacing)
    ordinary = np.flatnonzero(known)
    amplitude = np.array([np.median(amplitudes[ordinary[group]]) for group in groups])
    # The first place is that of the numbered columns: their cells are whole numbers there.
    basis = middles - middles[0]
    return Lattice(
        vectors_px=vectors,
        origin_px=np.median(positions[members] - cells @ vectors, axis=0),
        basis=basis - np.floor(basis + 1e-6),
        amplitude=amplitude,
    )


def _clusters(parts: Float64, vectors: Float64, tolerance_px: float) -> tuple[Float64, list[Int64]]:
    """Group places in the cell, the one nearest to (0, 0) first, then by how many they are."""
    wrapped = parts - np.floor(parts)
    copies = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    tiled = ((wrapped[None] + copies[:, None]) @ vectors).reshape(-1, 2)
    tree = cKDTree(tiled)
    left = np.ones(len(parts), dtype=bool)
    found: list[tuple[Float64, Int64]] = []
    counts = tree.query_ball_point(wrapped @ vectors, tolerance_px, return_length=True)
    while left.any():
        start = int(np.where(left, counts, -1).argmax())
        middle = wrapped[start] @ vectors
        for _ in range(3):
            group = np.asarray(tree.query_ball_point(middle, tolerance_px), dtype=np.int64)
            middle = np.median(tiled[group], axis=0) if group.size else middle
        group = group[left[group % len(parts)]]
        left[group % len(parts)] = False
        left[start] = False
        if found and group.size < _RAREST * len(found[0][1]):
            break
        if group.size:
            found.append((middle @ np.linalg.inv(vectors), group % len(parts)))
    zero = int(np.argmin([np.hypot(*((m - np.rint(m)) @ vectors)) for m, _ in found]))
    found.insert(0, found.pop(zero))
    return np.array([m for m, _ in found]), [group for _, group in found]


def fitted_lattice(lattice: Lattice, positions_px: Float64, index: Int64, known: Bool) -> Lattice:
    """Fit vectors, origin and basis to numbered columns, those far off counting less (Huber)."""
    at, where = index[known], positions_px[known]
    k = len(lattice.basis)
    # One origin for each place of the basis: their differences are the basis.
    design = np.zeros((len(at), 2 + k))
    design[:, :2] = at[:, :2]
    design[np.arange(len(at)), 2 + at[:, 2]] = 1.0
    present = np.flatnonzero(np.bincount(at[:, 2], minlength=k))
    columns = np.concatenate([[0, 1], 2 + present])
    weight = np.ones(len(at))
    for _ in range(5):
        answer, *_ = np.linalg.lstsq(
            design[:, columns] * weight[:, None], where * weight[:, None], rcond=None
        )
        off = np.hypot(*(where - design[:, columns] @ answer).T)
        scale = max(1.5 * float(np.median(off)), 1e-6)
        weight = np.sqrt(np.minimum(1.0, scale / np.maximum(off, 1e-12)))
    vectors: Float64 = np.asarray(answer[:2], dtype=np.float64)
    basis = lattice.basis.copy()
    if 0 not in present:
        return replace(lattice, vectors_px=vectors)
    origin = answer[2 + int(np.flatnonzero(present == 0)[0])]
    for row, place in enumerate(present):
        basis[place] = lattice.basis[0] + (answer[2 + row] - origin) @ np.linalg.inv(vectors)
    return replace(lattice, vectors_px=vectors, origin_px=origin - lattice.basis[0] @ vectors, basis=basis)


def grown(
    positions_px: Float64, lattice: Lattice, index: Int64, known: Bool, tolerance: float = 0.3
) -> tuple[Int64, Bool]:
    """Number columns from numbered neighbours outwards; take back numbers that do not fit around.

    Parameters
    ----------
    positions_px
        Columns, shape ``(n, 2)``.
    index, known
        What is known already; indices ``(n, 3)`` count where ``known`` is true.
    tolerance
        How far a column may be from where its neighbours say, in distances between neighbours.
    """
    index, known = index.copy(), known.copy()
    reach = tolerance * lattice.spacing_px
    near = cKDTree(positions_px).query(positions_px, k=min(_NEIGHBOURS + 1, len(positions_px)))[1][:, 1:]
    for _ in range(len(positions_px)):
        off = np.where(known[:, None], lattice.place_of(index) - positions_px, 0.0)
        edge = np.flatnonzero(~known & (known[near].sum(axis=1) >= 2))
        if not edge.size:
            break
        support = known[near[edge]]
        expected = (off[near[edge]] * support[..., None]).sum(axis=1) / support.sum(axis=1)[:, None]
        found, distance = lattice.index_of(positions_px[edge] + expected)
        new = distance < reach
        if not new.any():
            break
        index[edge[new]] = found[new]
        known[edge[new]] = True
    known &= _fits_around(positions_px, lattice, index, known, near, reach)
    known &= ~_turned(positions_px, lattice, index, known, near)
    return index, _one_column_a_site(positions_px, lattice, index, known, near)


def _expected_off(off: Float64, known: Bool, near: Int64) -> Float64:
    """Median displacement of the numbered neighbours of each column; NaN where there is none."""
    around = np.where(known[near][..., None], off[near], np.nan)
    alone = ~known[near].any(axis=1)
    around[alone] = 0.0
    expected: Float64 = np.nanmedian(around, axis=1)
    expected[alone] = np.nan
    return expected


def _fits_around(
    positions: Float64, lattice: Lattice, index: Int64, known: Bool, near: Int64, reach: float
) -> Bool:
    off = lattice.place_of(index) - positions
    distance = np.hypot(*(off - _expected_off(off, known, near)).T)
    fits: Bool = distance < reach
    return fits


def _turned(positions: Float64, lattice: Lattice, index: Int64, known: Bool, near: Int64) -> Bool:
    """Mark columns where the lattice is turned against most of the frame: another grain.

    A scan shears: what happens along a line changes ``D`` with the column, what happens from line to
    line with the row. Only another grain turns, changing both in opposite senses over an area.
    """
    off = lattice.place_of(index) - positions
    weight = (known[near] & known[:, None]).astype(np.float64)
    apart = positions[near] - positions[:, None]
    moved = off[near] - off[:, None]
    square = np.einsum("nk,nki,nkj->nij", weight, apart, apart)
    square += 1e-6 * lattice.spacing_px**2 * np.eye(2)
    gradient = np.linalg.solve(square, np.einsum("nk,nki,nkj->nij", weight, apart, moved))
    enough = weight.sum(axis=1) >= 4
    if not enough.any():
        return np.zeros(len(positions), dtype=bool)
    by_row, by_col = (gradient[:, i, j] - np.median(gradient[enough, i, j]) for i, j in ((0, 1), (1, 0)))
    by_row, by_col = (np.median(value[near], axis=1) for value in (by_row, by_col))
    turned: Bool = enough & (by_row * by_col < 0) & (np.minimum(np.abs(by_row), np.abs(by_col)) > _TURN)
    return turned


def _one_column_a_site(positions: Float64, lattice: Lattice, index: Int64, known: Bool, near: Int64) -> Bool:
    """Keep of several columns at a site the one that fits best around."""
    off = lattice.place_of(index) - positions
    distance = np.nan_to_num(np.hypot(*(off - _expected_off(off, known, near)).T), nan=np.inf)
    order = np.lexsort([distance, *index.T])
    order = order[known[order]]
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.any(index[order[1:]] != index[order[:-1]], axis=1)
    kept = np.zeros(len(positions), dtype=bool)
    kept[order[first]] = True
    return kept


def _centred(
    lattice: Lattice, index: Int64, known: Bool, shape: tuple[int, int]
) -> tuple[Lattice, Int64, Bool]:
    """Count the cells from the one in the middle of the frame."""
    middle = (np.array(shape) - 1) / 2
    cell = np.rint((middle - lattice.origin_px) @ np.linalg.inv(lattice.vectors_px)).astype(np.int64)
    moved = index.copy()
    moved[:, :2] -= cell
    return replace(lattice, origin_px=lattice.origin_px + cell @ lattice.vectors_px), moved, known
