"""Plasmons of particles of any shape, from boundary elements: those at corners, edges, faces and in gaps.

Quasi-static. The charge on the surface of a homogeneous particle has modes that depend on its shape alone
(García de Abajo and Aizpurua, Phys. Rev. B 56, 15873 (1997); Boudarham and Kociak, Phys. Rev. B 85, 245447
(2012)): ``F s = 2 pi lambda s``, F the normal field of a charge on the surface. Here F is made symmetric
by the potential of the charges (Plemelj), so that the modes are real and orthogonal, each adds a loss of 0
or more, and the loss cannot come out negative; charge that would leave a particle is ruled out before the
modes are looked for, and not afterwards. With the mode's potential normalised, the loss is

    ``(e^2/pi) sum |integral of phi s|^2 Im[(eps - 1) (1 + lambda) / (1 - lambda + eps (1 + lambda))]``

where ``phi = (2/v) K0(w r/v) exp(i w z/v)`` is the potential of the beam. Derived: it holds for beams
beside the particles and through them, where the loss to the bulk comes on top (``simulators.plasmons`` has
it for spheres) and is left out here. Faces resolve charges no finer than themselves: beside a sphere of
864 faces the loss is within 0.5 % of theory, through its middle 8 % are missing. All particles are of one
material. Retardation, of the beam's field too, and substrate are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky, eigh, solve_triangular

from simulators.plasmons import (
    CHUNK,
    COULOMB_EV_NM,
    MIN_LOSS_EV,
    NODES,
    Beam,
    bessel_k0,
    chebyshev,
)

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Complex128 = NDArray[np.complex128]
Quadrature = tuple[Float64, Float64, Float64]  # points, normals and areas, as in Surface

POINTS = 2  # Gauss points of a face along each of its edges
NEAR = 2.5  # in edges of a face: up to there faces are divided again
NEAR_POINTS = 6
GRAZED, PIERCED = 1.0, 0.4  # square of the radius of a point's disc over the area of its face
SQUARE_SELF = 2.9732  # mean of 1/r between two points of a unit square: 4 ln(1 + 2^.5) + 4 (1 - 2^.5)/3


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedBox:
    """A cuboid with round edges and corners; a sphere if all is edge.

    Attributes
    ----------
    half_nm
        Half its lengths, ``(x, y, z)``.
    edge_nm
        Radius of edges and corners, up to the smallest half length.
    position_nm
        Of its middle, ``(x, y, z)``.
    turn_rad
        Rotation around z, from x to y.
    """

    half_nm: tuple[float, float, float]
    edge_nm: float
    position_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_rad: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.edge_nm <= min(self.half_nm):
            raise ValueError(f"edge_nm is {self.edge_nm}; it takes above 0 to {min(self.half_nm):g}")


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Faces of one particle, with points on the true surface in each.

    Attributes
    ----------
    points_nm, normals
        Shape ``(faces, POINTS**2, 3)``; the normals point outwards.
    areas_nm2
        What each point stands for, shape ``(faces, POINTS**2)``.
    near_nm, near_normals, near_areas_nm2
        More points in the same faces, for neighbours.
    """

    points_nm: Float64
    normals: Float64
    areas_nm2: Float64
    near_nm: Float64
    near_normals: Float64
    near_areas_nm2: Float64

    @property
    def coarse(self) -> Quadrature:
        """Points, normals and areas."""
        return self.points_nm, self.normals, self.areas_nm2

    @property
    def fine(self) -> Quadrature:
        """The same for neighbours."""
        return self.near_nm, self.near_normals, self.near_areas_nm2


def sphere(radius_nm: float, position_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> RoundedBox:
    """Make a box that is a sphere."""
    return RoundedBox(half_nm=(radius_nm,) * 3, edge_nm=radius_nm, position_nm=position_nm)


def mesh(box: RoundedBox, flat: int = 6, round_: int = 3) -> Surface:
    """Cover a box with quadrangles.

    Parameters
    ----------
    box
        The particle.
    flat
        Faces along the flat part of each side, smaller towards the edges.
    round_
        Faces around half of each edge.

    Returns
    -------
    surface
        With ``6 (flat + 2 round_)^2`` faces, or ``6 (2 round_)^2`` on a sphere.
    """
    coarse = _quadrature(box, flat, round_, POINTS)
    return Surface(*coarse, *_quadrature(box, flat, round_, NEAR_POINTS))


def _quadrature(box: RoundedBox, flat: int, round_: int, points: int) -> Quadrature:
    """Gauss points, normals and areas in each face; see ``Surface``."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    inner = np.array(box.half_nm) - box.edge_nm
    lines = [_line(half, flat, round_, nodes, weights) for half in inner]
    parts = [_side(axis, sign, inner, box.edge_nm, lines) for axis in range(3) for sign in (1, -1)]
    places, normals, areas = (np.concatenate(each) for each in zip(*parts, strict=True))
    cos, sin = math.cos(box.turn_rad), math.sin(box.turn_rad)
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return places @ turn + np.array(box.position_nm), normals @ turn, areas


def _line(
    inner_nm: float, flat: int, round_: int, nodes: Float64, weights: Float64
) -> tuple[Float64, Float64, Float64, Float64]:
    """Cells from edge to edge: place on the flat part, angle on the round one, weights of both.

    Shape ``(cells, points)`` each. A weight is a length on the flat and an angle in the round cells; the
    other one is zero.
    """
    angles = np.linspace(-math.pi / 4, 0, round_ + 1)
    t = np.linspace(-1, 1, flat + 1)
    places = inner_nm * (t + np.sin(math.pi / 2 * t)) / 2
    middles, halves = (angles[1:] + angles[:-1]) / 2, np.diff(angles) / 2
    angle = middles[:, None] + halves[:, None] * nodes
    turning = halves[:, None] * weights
    still = np.zeros((flat if inner_nm > 0 else 0, len(nodes)))
    x = (places[1:] + places[:-1])[:, None] / 2 + np.diff(places)[:, None] / 2 * nodes
    moving = np.diff(places)[:, None] / 2 * weights
    x, moving = x[: len(still)], moving[: len(still)]
    ends = np.full_like(angle, inner_nm)
    return (
        np.concatenate([-ends, x, ends]),
        np.concatenate([angle, still, -angle[::-1]]),
        np.concatenate([0 * ends, moving, 0 * ends]),
        np.concatenate([turning, still, turning[::-1]]),
    )


def _side(
    axis: int, sign: int, inner: Float64, edge: float, lines: Sequence[tuple[Float64, ...]]
) -> Quadrature:
    """Points, normals and areas on one of the six sides of a box."""
    one, other = (axis + 1) % 3, (axis + 2) % 3
    u, a, du, da = (part[:, None, :, None] for part in lines[one])
    v, b, dv, db = (part[None, :, None, :] for part in lines[other])
    tan_a, tan_b = np.tan(a), np.tan(b)
    shape = np.broadcast_shapes(u.shape, v.shape)
    place, normal = np.empty((2, *shape, 3))
    normal[..., axis], normal[..., one], normal[..., other] = sign, tan_a, tan_b
    length = np.sqrt(1 + tan_a**2 + tan_b**2)
    normal /= length[..., None]
    place[..., axis], place[..., one], place[..., other] = sign * inner[axis], u, v
    round_area = edge**2 * (1 + tan_a**2) * (1 + tan_b**2) / length**3
    area = round_area * da * db + edge * (da * dv + du * db) + du * dv
    faces = shape[0] * shape[1]
    place += edge * normal
    return place.reshape(faces, -1, 3), normal.reshape(faces, -1, 3), area.reshape(faces, -1)


# -- the matrices ------------------------------------------------------------------------------


@njit(cache=True)
def _interaction(
    points: Float64,
    normals: Float64,
    areas: Float64,
    others: Float64,
    other_normals: Float64,
    other_areas: Float64,
) -> tuple[float, float, float]:
    """Integrals over two faces of 1/r and of its derivatives along the normals of one and of the other."""
    potential, force, back = 0.0, 0.0, 0.0
    for p in range(len(points)):
        for q in range(len(others)):
            x = points[p, 0] - others[q, 0]
            y = points[p, 1] - others[q, 1]
            z = points[p, 2] - others[q, 2]
            inverse = 1 / np.sqrt(x * x + y * y + z * z)
            weighted = areas[p] * other_areas[q] * inverse
            potential += weighted
            weighted *= inverse * inverse
            force -= weighted * (normals[p, 0] * x + normals[p, 1] * y + normals[p, 2] * z)
            back += weighted * (other_normals[q, 0] * x + other_normals[q, 1] * y + other_normals[q, 2] * z)
    return potential, force, back


@njit(cache=True)
def _matrices(
    coarse: Quadrature, fine: Quadrature, owner: Int64, own_share: float
) -> tuple[Float64, Float64]:
    """Potential and normal field of each face's charge in each other, shape ``(faces, faces)``.

    The field of a face in itself follows from Gauss: half of the charge's flux goes through its particle.
    """
    points, normals, areas = coarse
    near, near_normals, near_areas = fine
    n = len(points)
    potential, force = np.empty((n, n)), np.zeros((n, n))
    area = areas.sum(axis=1)
    middle = np.empty((n, 3))
    for i in range(n):
        for k in range(3):
            middle[i, k] = (points[i, :, k] * areas[i]).sum() / area[i]
    for i in range(n):
        total = 0.0
        for p in range(near.shape[1]):
            total += own_share * near_areas[i, p] ** 1.5
            for q in range(p):
                apart = np.sqrt(((near[i, p] - near[i, q]) ** 2).sum())
                total += 2 * near_areas[i, p] * near_areas[i, q] / apart
        potential[i, i] = total
        for j in range(i):
            apart = 0.0
            for k in range(3):
                apart += (middle[i, k] - middle[j, k]) ** 2
            if apart < NEAR * NEAR * max(area[i], area[j]):
                both = _interaction(
                    near[i], near_normals[i], near_areas[i], near[j], near_normals[j], near_areas[j]
                )
            else:
                both = _interaction(points[i], normals[i], areas[i], points[j], normals[j], areas[j])
            potential[i, j], force[i, j], force[j, i] = both
            potential[j, i] = both[0]
    for j in range(n):
        flux = 0.0
        for i in range(n):
            if owner[i] == owner[j]:
                flux += force[i, j]
        force[j, j] = -2 * np.pi * area[j] - flux
    return potential, force


def _own_share() -> float:
    """What a Gauss point adds to the mean of 1/r of its own face: so much that a square comes out right."""
    nodes, weights = np.polynomial.legendre.leggauss(NEAR_POINTS)
    x, y = (axis.ravel() / 2 for axis in np.meshgrid(nodes, nodes))
    area = np.outer(weights, weights).ravel() / 4
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + np.diag(np.full(len(x), np.inf))
    others = float((area[:, None] * area / apart).sum())
    return (SQUARE_SELF - others) / float((area**1.5).sum())


# -- modes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceModes:
    """Modes of the charge on the surfaces of particles.

    Attributes
    ----------
    surfaces
        One for each particle; they must not touch.
    eigenvalues
        ``lambda`` of each mode, shape ``(modes,)``, ascending from above -1: the lower, the lower the
        energy. -1/3 is the dipole of a sphere, ``-1 / (2 l + 1)`` its multipoles.
    charges
        Charge density on the faces in each mode, shape ``(faces, modes)``.
    """

    surfaces: Sequence[Surface]
    eigenvalues: Float64 = field(init=False)
    charges: Float64 = field(init=False)
    _faces: Surface = field(init=False)

    def __post_init__(self) -> None:
        names = ("points_nm", "normals", "areas_nm2", "near_nm", "near_normals", "near_areas_nm2")
        all_ = Surface(*(np.concatenate([getattr(one, n) for one in self.surfaces]) for n in names))
        owner = np.repeat(np.arange(len(self.surfaces)), [len(one.areas_nm2) for one in self.surfaces])
        potential, force = _matrices(all_.coarse, all_.fine, owner, _own_share())
        area = all_.areas_nm2.sum(axis=1)
        charged = np.where(owner[:, None] == np.arange(len(self.surfaces)), area[:, None], 0.0)
        eigenvalues, charges = _neutral_modes(potential, force, area, charged)
        object.__setattr__(self, "_faces", all_)
        object.__setattr__(self, "eigenvalues", eigenvalues)
        object.__setattr__(self, "charges", charges)

    def energies_ev(self, plasma_ev: float, epsilon_inf: float) -> Float64:
        """Energy of each mode for free electrons after Drude, shape ``(modes,)``."""
        wanted = (1 - self.eigenvalues) / (1 + self.eigenvalues)
        energies: Float64 = plasma_ev / np.sqrt(epsilon_inf + wanted)
        return energies

    def loss(
        self, positions_nm: ArrayLike, loss_ev: ArrayLike, beam: Beam, permittivity: ArrayLike
    ) -> Float64:
        """Probability per eV that a beam loses an energy to the plasmons.

        Parameters
        ----------
        positions_nm
            Beams ``(x, y)``, shape ``(m, 2)``, beside the particles or through them.
        loss_ev
            Energy losses, shape ``(energies,)``, ascending; below 1 meV nothing is lost.
        beam
            The electrons.
        permittivity
            Of the particles at each energy, shape ``(energies,)``, complex.

        Returns
        -------
        loss
            Shape ``(m, energies)``, in 1/eV, 0 and above.
        """
        positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
        energies = np.asarray(loss_ev, dtype=np.float64)
        loss = np.zeros((len(positions), len(energies)))
        is_loss = energies >= MIN_LOSS_EV
        if not (is_loss.any() and len(positions)):
            return loss
        energies, eps = energies[is_loss], np.asarray(permittivity)[is_loss]
        for start in range(0, len(positions), CHUNK):
            some = slice(start, start + CHUNK)
            loss[some, is_loss] = self._loss(positions[some], energies, beam, eps)
        return loss

    def _loss(self, positions: Float64, energies: Float64, beam: Beam, eps: Complex128) -> Float64:
        nodes, basis = chebyshev(energies, min(NODES, len(energies)))
        kept = self._strongest(positions, nodes[len(nodes) // 2], beam)
        shape = self.eigenvalues[kept, None]
        response = np.imag((eps - 1) * (1 + shape) / (1 - shape + eps * (1 + shape)))
        places = self._faces.near_nm[..., :2].reshape(-1, 2)
        few = places[:: NEAR_POINTS**2]
        nearest = np.sqrt(((positions[:, None] - few) ** 2).sum(axis=-1)).min(axis=1)
        decay = 2 * nearest[:, None] / beam.hbar_v_ev_nm
        loss = np.zeros((len(positions), len(energies)))
        for node, share in zip(nodes, basis, strict=True):
            weights = self._weights(positions, node, beam, self.charges[:, kept])
            loss += (weights * np.exp(decay * node)) @ (response * share)
        loss *= COULOMB_EV_NM / math.pi * np.exp(-decay * energies)
        return np.maximum(loss, 0.0, out=loss)  # below it by the interpolation alone

    def _strongest(self, positions: Float64, energy: float, beam: Beam) -> NDArray[np.intp]:
        """Modes that all but 1e-5 of what beams excite goes to, as some of the positions have it."""
        some = positions[:: max(1, len(positions) // 64)]
        weights = self._weights(some, energy, beam, self.charges)
        share = (weights / weights.sum(axis=1, keepdims=True)).max(axis=0)
        order = np.argsort(share)
        return np.sort(order[np.cumsum(share[order]) > 1e-5])

    def _weights(self, positions: Float64, energy: float, beam: Beam, charges: Float64) -> Float64:
        """How strongly beams drive modes: squares of the charges' energies in the beam's potential."""
        faces, v = self._faces, beam.hbar_v_ev_nm
        potential = _beam_potential(np.ascontiguousarray(positions), faces.coarse, faces.fine, energy / v)
        phase = energy / v * faces.points_nm[..., 2].mean(axis=1)[:, None]
        one = potential @ (np.cos(phase) * charges)
        other = potential @ (np.sin(phase) * charges)
        weights: Float64 = (2 / v) ** 2 * (one**2 + other**2)
        return weights


def _neutral_modes(
    potential: Float64, force: Float64, area: Float64, charged: Float64
) -> tuple[Float64, Float64]:
    """Solve ``S K v = 2 pi lambda S v`` among charges that leave each particle neutral.

    ``charged`` has a column for each particle with the areas of its faces.
    """
    root = cholesky(potential, lower=True)
    symmetric = potential @ (force / area[:, None])
    symmetric = (symmetric + symmetric.T) / (4 * math.pi)
    half = solve_triangular(root, symmetric, lower=True)
    matrix = solve_triangular(root, half.T, lower=True)
    barred, _ = np.linalg.qr(solve_triangular(root, charged, lower=True))
    out = matrix @ barred
    matrix -= out @ barred.T + barred @ out.T - barred @ (barred.T @ out) @ barred.T
    matrix -= 10.0 * barred @ barred.T  # far below any mode
    eigenvalues, vectors = eigh((matrix + matrix.T) / 2)
    left = barred.shape[1]
    return eigenvalues[left:], solve_triangular(root, vectors[:, left:], lower=True, trans=1)


@njit(cache=True)
def _beam_potential(beams: Float64, coarse: Quadrature, fine: Quadrature, q: float) -> Float64:
    """Integral of ``K0(q r)`` over each face for each beam, shape ``(beams, faces)``.

    Each point stands for a disc, in which the logarithm has a mean: as large as the face where the beam
    grazes it, as it would excite charges there that are finer than the faces resolve, and smaller where
    the beam goes through. Beams further from a surface are not touched by it.
    """
    points, normals, areas = coarse
    near, near_normals, near_areas = fine
    potential = np.zeros((len(beams), len(points)))
    for j in range(len(points)):
        area = areas[j].sum()
        x, y = (points[j, :, 0] * areas[j]).sum() / area, (points[j, :, 1] * areas[j]).sum() / area
        for i in range(len(beams)):
            squared = (beams[i, 0] - x) ** 2 + (beams[i, 1] - y) ** 2
            if squared > 16 * area:
                potential[i, j] = area * bessel_k0(q * np.sqrt(squared))
            elif squared > 2 * area:
                potential[i, j] = _near_beam(beams[i], points[j], normals[j], areas[j], q)
            else:
                potential[i, j] = _near_beam(beams[i], near[j], near_normals[j], near_areas[j], q)
    return potential


@njit(cache=True)
def _near_beam(beam: Float64, points: Float64, normals: Float64, areas: Float64, q: float) -> float:
    total = 0.0
    area = areas.sum()
    for p in range(len(points)):
        disc = area * (GRAZED + (PIERCED - GRAZED) * normals[p, 2] ** 2)
        squared = (points[p, 0] - beam[0]) ** 2 + (points[p, 1] - beam[1]) ** 2
        mean = bessel_k0(q * np.sqrt(max(squared, disc)))
        if squared < disc:
            mean += (1 - squared / disc) / 2
        total += areas[p] * mean
    return total
