"""Rods that assemble on a crystal face: they adsorb, diffuse, turn, order and leave, and each one is known.

The scene is that of designed protein rods on mica under a fast AFM (arXiv:2009.00783). Zhang et al., PNAS
119, e2020242119 (2022), saw Brownian rotation over the energy of the lattice's directions, and jumps that no
barrier holds up. Schmid et al., Nat. Commun. (2026), doi 10.1038/s41467-026-69170-0, got the phases seen
there from hard rods of an aspect ratio of 7 that come and go, with one direction of the face preferred. Of
both only abstract and figure captions were read: this is a model of our own in their sense.

Here rods are hard spherocylinders in the plane, moved by local Metropolis trials: Brownian dynamics for small
steps, and exact equilibrium for any. Energies are in units of kT. Rates, barriers and the attraction of
neighbours are assumptions of the right order, no published set; water, charge and polarity are left out.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# A step turns a rod by at most so much (sd, rad), and moves it by at most this share of its width: wells of
# a barrier of 4 kT every 60 degrees are 0.12 rad wide, and what is longer would be refused in a crowd.
TURN_RAD = 0.06
SHARE_OF_WIDTH = 0.15
MAX_STEPS = 4000  # of one wait, or of a frame
LANDINGS = 4096  # tries at once, and at most, in which rods are laid out at the start
MAX_LANDINGS = 1000 * LANDINGS


class RodsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the rods are, and what they do on the face.

    Attributes
    ----------
    start
        ``landed``: rods lie as they fell, at random and none over another; ``rows``: side by side in rows
        across the easy axis, some missing, as in a finished assembly.
    length_nm, diameter_nm
        Of a rod, from tip to tip; its diameter is its height.
    spacing_nm
        How near the axes of two rods can be: wider than ``diameter_nm`` by their shells of water and ions.
        The default is a seventh of the length.
    coverage
        Share of the face that the rods (with their shells) cover when they have landed.
    vacancies
        Share of rods that is missing in the rows.
    adsorption_per_um2_s
        Rods that try to land on a square micrometre in a second; they find a place or leave again.
    desorption_per_s
        Rate at which a rod leaves. Where its energy is ``e`` it leaves ``exp(e)`` times as quickly.
    diffusion_along_nm2_per_s, diffusion_across_nm2_per_s
        Of a free rod along its axis and across. Twice as quick along is the limit of a thin rod in a liquid.
    rotation_rad2_per_s
        Rotational diffusion of a free rod.
    jumps_per_s
        Rate at which a rod lets go and tries to come to lie at any other angle, whatever lies between.
    barrier_kt
        Energy between the three directions of the lattice, 60 degrees apart.
    bias_kt
        How much better it lies along the easy axis than across it: muscovite is not quite hexagonal.
    easy_axis_deg
        From x, as a scan rotation.
    coupling_kt, coupling_nm
        By how much a neighbour that is parallel is better than one at 45 degrees, and the distance of centres
        at which this is over.
    assembled_s
        For how long all this went on before the first frame.
    """

    start: Literal["landed", "rows"] = "landed"
    length_nm: float = 26.0
    diameter_nm: float = 2.6
    spacing_nm: float = 3.7
    coverage: float = 0.25
    vacancies: float = 0.05
    adsorption_per_um2_s: float = 30.0
    desorption_per_s: float = 0.002
    diffusion_along_nm2_per_s: float = 2.0
    diffusion_across_nm2_per_s: float = 1.0
    rotation_rad2_per_s: float = 0.02
    jumps_per_s: float = 0.01
    barrier_kt: float = 2.0
    bias_kt: float = 1.0
    easy_axis_deg: float = 25.0
    coupling_kt: float = 1.0
    coupling_nm: float = 10.0
    assembled_s: float = 0.0

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"rods.{name} is {getattr(self, name)}; it takes {least:g} to {most:g}")
        if not self.diameter_nm <= self.spacing_nm <= self.length_nm:
            raise ValueError(
                f"rods.spacing_nm is {self.spacing_nm}; it takes diameter_nm {self.diameter_nm:g} to "
                f"length_nm {self.length_nm:g}"
            )

    @property
    def segment_nm(self) -> float:
        """Length of the axis, the round ends left out."""
        return self.length_nm - self.diameter_nm

    @property
    def area_nm2(self) -> float:
        """What a rod takes of the face, shell included."""
        return self.segment_nm * self.spacing_nm + math.pi * self.spacing_nm**2 / 4

    @property
    def step_s(self) -> float:
        """Longest step in which a rod moves little enough."""
        fastest = max(self.diffusion_along_nm2_per_s, self.diffusion_across_nm2_per_s)
        move_s = (SHARE_OF_WIDTH * self.spacing_nm) ** 2 / (2 * fastest) if fastest else math.inf
        turn_s = TURN_RAD**2 / (2 * self.rotation_rad2_per_s) if self.rotation_rad2_per_s else math.inf
        rare_s = 0.1 / max(self.jumps_per_s, self.desorption_per_s, 1e-3)
        return min(move_s, turn_s, rare_s)


_LIMITS = {
    "length_nm": (2.0, 1000.0),
    "diameter_nm": (0.2, 100.0),
    "spacing_nm": (0.2, 200.0),
    "coverage": (0.0, 0.45),  # rods that fell at random have hardly a place left above it
    "vacancies": (0.0, 0.9),
    "adsorption_per_um2_s": (0.0, 1e6),
    "desorption_per_s": (0.0, 100.0),
    "diffusion_along_nm2_per_s": (0.0, 1e3),
    "diffusion_across_nm2_per_s": (0.0, 1e3),
    "rotation_rad2_per_s": (0.0, 10.0),
    "jumps_per_s": (0.0, 100.0),
    "barrier_kt": (-20.0, 20.0),
    "bias_kt": (-20.0, 20.0),
    "easy_axis_deg": (-360.0, 360.0),
    "coupling_kt": (-10.0, 10.0),
    "coupling_nm": (0.0, 1000.0),
    "assembled_s": (0.0, 7200.0),
}


def order_parameter(angles_rad: Float64) -> tuple[float, float]:
    """Order of axes in the plane, and their direction.

    Parameters
    ----------
    angles_rad
        Angles of axes, shape ``(n,)``; half a turn is no difference.

    Returns
    -------
    order, director
        ``|<exp(2 i angle)>|``, 0 of none and 1 of all parallel, and the angle of the mean axis, 0 to pi;
        NaN without axes.
    """
    if not len(angles_rad):
        return math.nan, math.nan
    mean = complex(np.exp(2j * angles_rad).mean())
    return abs(mean), (math.atan2(mean.imag, mean.real) / 2) % math.pi


class Assembly:
    """Rods on a rectangle of the face. Their centres never leave it; outside, the face is bare.

    Parameters
    ----------
    config
        What they are and do.
    lower_nm, upper_nm
        Corners of the rectangle, ``(x, y)``.
    rng
        For where they land and how they move.

    Attributes
    ----------
    now_s
        Time since the first frame; below 0 while they assembled before it.
    born_s, died_s
        When each rod that ever was came and went, by its identity; infinity for those that are there.
    """

    def __init__(
        self,
        config: RodsConfig,
        lower_nm: tuple[float, float],
        upper_nm: tuple[float, float],
        rng: np.random.Generator,
    ) -> None:
        self._config, self._rng = config, rng
        self._lower, self._edges = np.array(lower_nm), np.array(upper_nm) - np.array(lower_nm)
        room = math.prod((self._edges + config.length_nm + config.spacing_nm).tolist())
        most = math.ceil(room / config.area_nm2) + 16
        self._rods = np.zeros((most, 5))  # x, y, angle, its cosine and sine; the first of them are there
        self._ids = np.zeros(most, dtype=np.int64)
        self._count = 0
        reach = max(config.segment_nm + config.spacing_nm, config.coupling_nm)
        cells = np.maximum(1, (self._edges / reach).astype(np.int64))
        self._heads = np.full((cells[1] + 2, cells[0] + 2), -1, dtype=np.int64)
        self._next = np.full(most, -1, dtype=np.int64)
        self._energy = np.array(
            [
                config.segment_nm / 2,
                config.spacing_nm**2,
                config.barrier_kt,
                config.bias_kt,
                math.radians(config.easy_axis_deg),
                config.coupling_kt,
                config.coupling_nm**2,
            ]
        )
        self.now_s = -config.assembled_s
        self.born_s: list[float] = []
        self.died_s: list[float] = []
        if config.start == "rows":
            self._land(*self._in_rows())
        else:
            self._scatter()
        for _ in range(math.ceil(config.assembled_s / (MAX_STEPS * config.step_s))):
            self.advance(min(MAX_STEPS * config.step_s, -self.now_s))

    @property
    def positions_nm(self) -> Float64:
        """Centres ``(x, y)``, shape ``(n, 2)``; a view that the next step changes."""
        return self._rods[: self._count, :2]

    @property
    def angles_rad(self) -> Float64:
        """Angles of the axes from x, 0 to pi, shape ``(n,)``; likewise."""
        return self._rods[: self._count, 2]

    @property
    def ids(self) -> Int64:
        """Identities, counted from 0 and never used again, shape ``(n,)``; likewise."""
        return self._ids[: self._count]

    @property
    def area_nm2(self) -> float:
        """Of the rectangle."""
        return float(self._edges.prod())

    def advance(self, seconds: float, most: int = MAX_STEPS) -> None:
        """Let time pass.

        Parameters
        ----------
        seconds
            How long.
        most
            Steps that it may take. A wait that asks for more is made of longer ones: in a crowd rods then
            move less than they should.
        """
        if seconds <= 0:
            return
        steps = min(math.ceil(seconds / self._config.step_s), max(most, 1))
        for _ in range(steps):
            self._step(seconds / steps)

    def _step(self, seconds: float) -> None:
        config, rng, count = self._config, self._rng, self._count
        rates = np.array(
            [
                config.diffusion_along_nm2_per_s,
                config.diffusion_across_nm2_per_s,
                config.rotation_rad2_per_s,
            ]
        )
        _move(
            self._rods,
            count,
            self._lower,
            self._edges,
            self._heads,
            self._next,
            self._energy,
            np.sqrt(2 * rates * seconds) * rng.standard_normal((count, 3)),
            rng.random((count, 2)),
        )
        self._jump(-math.expm1(-config.jumps_per_s * seconds))
        self.now_s += seconds
        if config.desorption_per_s:
            self._leave(config.desorption_per_s * seconds)
        if config.adsorption_per_um2_s:
            tries = int(rng.poisson(config.adsorption_per_um2_s * 1e-6 * self.area_nm2 * seconds))
            self._land(*self._anywhere(tries))

    def _jump(self, chance: float) -> None:
        """Let some rods try another angle."""
        if not chance or not self._count:
            return
        which = np.flatnonzero(self._rng.random(self._count) < chance)
        angles = self._rng.uniform(0, math.pi, len(which))
        _turn(
            self._rods,
            which,
            angles,
            self._rng.random(len(which)),
            self._lower,
            self._edges,
            self._heads,
            self._next,
            self._energy,
        )

    def _leave(self, chance: float) -> None:
        """Let some rods go: a chance each, times the exponential of its energy."""
        luck = self._rng.random(self._count)
        gone = _leaving(
            self._rods,
            self._count,
            luck,
            chance,
            self._lower,
            self._edges,
            self._heads,
            self._next,
            self._energy,
        )
        for i in gone[::-1].tolist():
            self.died_s[self._ids[i]] = self.now_s
            self._count -= 1
            self._rods[i], self._ids[i] = self._rods[self._count], self._ids[self._count]
        if len(gone):
            self._sort()

    def _sort(self) -> None:
        _fill(self._rods, self._count, self._lower, self._edges, self._heads, self._next)

    # -- how they come -------------------------------------------------------------------------

    def _anywhere(self, tries: int) -> tuple[Float64, Float64]:
        """Places and angles at random."""
        places: Float64 = self._lower + self._edges * self._rng.random((tries, 2))
        return places, self._rng.uniform(0, math.pi, tries)

    def _land(self, positions_nm: Float64, angles_rad: Float64, most: int | None = None) -> None:
        """Lay down, one after the other, the rods that find a place, until there are as many as ``most``."""
        before = self._count
        most = len(self._rods) if most is None else most
        self._count = _lay(
            self._rods,
            before,
            most,
            positions_nm,
            angles_rad,
            self._lower,
            self._edges,
            self._heads,
            self._next,
            self._energy,
        )
        for i in range(before, self._count):
            self._ids[i] = len(self.born_s)
            self.born_s.append(self.now_s)
            self.died_s.append(math.inf)

    def _scatter(self) -> None:
        """Lay rods down at random until they cover as much as they shall."""
        wanted = round(self._config.coverage * self.area_nm2 / self._config.area_nm2)
        for _ in range(MAX_LANDINGS // LANDINGS):
            if self._count >= wanted:
                return
            self._land(*self._anywhere(LANDINGS), wanted)

    def _in_rows(self) -> tuple[Float64, Float64]:
        """Places and angles of rods that lie side by side in rows, without the vacancies."""
        config = self._config
        axis = math.radians(config.easy_axis_deg)
        along, across = (
            np.array([math.cos(axis), math.sin(axis)]),
            np.array([-math.sin(axis), math.cos(axis)]),
        )
        row_nm, side_nm = 1.06 * (config.segment_nm + config.spacing_nm), 1.12 * config.spacing_nm
        far = float(np.hypot(*self._edges))
        k = np.arange(-math.ceil(far / row_nm), math.ceil(far / row_nm) + 1)[:, None]
        i = np.arange(-math.ceil(far / side_nm), math.ceil(far / side_nm) + 1)[None]
        lattice = (k * row_nm)[..., None] * along + ((i + k % 2 / 2) * side_nm)[..., None] * across
        places = lattice.reshape(-1, 2) + self._lower + self._edges / 2
        inside = ((places >= self._lower) & (places < self._lower + self._edges)).all(axis=1)
        kept = places[inside]
        kept = kept[self._rng.random(len(kept)) >= config.vacancies]
        return kept, np.full(len(kept), axis % math.pi)


# -- the rods of a cell and of those around it -----------------------------------------------------
# A list for each cell: ``heads`` its first rod, ``following`` the one after each; -1 ends it. A rim of empty
# cells spares the question of the edge. ``energy`` is half the axis, square of the spacing, barrier, bias,
# easy axis, coupling and square of its reach.


@njit(cache=True)
def _cell(x: float, y: float, lower: Float64, edges: Float64, heads: Int64) -> tuple[int, int]:
    row = int((y - lower[1]) / edges[1] * (heads.shape[0] - 2)) + 1
    col = int((x - lower[0]) / edges[0] * (heads.shape[1] - 2)) + 1
    return min(row, heads.shape[0] - 2), min(col, heads.shape[1] - 2)


@njit(cache=True)
def _fill(rods: Float64, count: int, lower: Float64, edges: Float64, heads: Int64, following: Int64) -> None:
    heads[:] = -1
    for i in range(count):
        row, col = _cell(rods[i, 0], rods[i, 1], lower, edges, heads)
        following[i] = heads[row, col]
        heads[row, col] = i


@njit(cache=True)
def _moved(i: int, before: tuple[int, int], after: tuple[int, int], heads: Int64, following: Int64) -> None:
    """Take a rod out of the list of one cell and put it into that of another."""
    if before == after:
        return
    if heads[before] == i:
        heads[before] = following[i]
    else:
        j = heads[before]
        while following[j] != i:
            j = following[j]
        following[j] = following[i]
    following[i] = heads[after]
    heads[after] = i


@njit(cache=True)
def squared_gap(
    dx: float, dy: float, cos1: float, sin1: float, cos2: float, sin2: float, half: float
) -> float:
    """Square of the least distance of two segments of equal length in the plane.

    Parameters
    ----------
    dx, dy
        From the middle of the first to that of the second.
    cos1, sin1, cos2, sin2
        Their directions.
    half
        Half their length.
    """
    turn = cos1 * sin2 - sin1 * cos2
    if abs(turn) > 1e-12:
        one = (dx * sin2 - dy * cos2) / turn
        two = (dx * sin1 - dy * cos1) / turn
        if abs(one) <= half and abs(two) <= half:
            return 0.0
    least = np.inf
    for end in (-half, half):
        # Ends of the first against the second, and of the second against the first.
        x, y = end * cos1 - dx, end * sin1 - dy
        foot = min(max(x * cos2 + y * sin2, -half), half)
        least = min(least, (x - foot * cos2) ** 2 + (y - foot * sin2) ** 2)
        x, y = end * cos2 + dx, end * sin2 + dy
        foot = min(max(x * cos1 + y * sin1, -half), half)
        least = min(least, (x - foot * cos1) ** 2 + (y - foot * sin1) ** 2)
    return least


@njit(cache=True)
def _at(
    i: int,
    place: tuple[float, float, float],
    rods: Float64,
    cell: tuple[int, int],
    heads: Int64,
    following: Int64,
    energy: Float64,
) -> float:
    """Energy of a rod at some place among the others; infinite where it would lie over one."""
    x, y, angle = place
    half, spacing2, barrier, bias, easy, coupling, reach2 = energy
    cos1, sin1 = math.cos(angle), math.sin(angle)
    far2 = (2 * half + math.sqrt(spacing2)) ** 2
    total = -0.5 * barrier * math.cos(6 * (angle - easy)) - 0.5 * bias * math.cos(2 * (angle - easy))
    for row in range(cell[0] - 1, cell[0] + 2):
        for col in range(cell[1] - 1, cell[1] + 2):
            j = heads[row, col]
            while j >= 0:
                if j != i:
                    dx, dy = rods[j, 0] - x, rods[j, 1] - y
                    apart2 = dx * dx + dy * dy
                    if apart2 < spacing2:
                        return np.inf
                    if apart2 < far2 and (
                        squared_gap(dx, dy, cos1, sin1, rods[j, 3], rods[j, 4], half) < spacing2
                    ):
                        return np.inf
                    if apart2 < reach2:
                        near = 1 - apart2 / reach2
                        aligned = cos1 * rods[j, 3] + sin1 * rods[j, 4]
                        total -= coupling * near * near * (2 * aligned * aligned - 1)
                j = following[j]
    return float(total)


@njit(cache=True)
def _put(rods: Float64, i: int, place: tuple[float, float, float]) -> None:
    x, y, angle = place
    rods[i, 0], rods[i, 1], rods[i, 2] = x, y, angle % math.pi
    rods[i, 3], rods[i, 4] = math.cos(rods[i, 2]), math.sin(rods[i, 2])


@njit(cache=True)
def _try(
    i: int,
    place: tuple[float, float, float],
    luck: float,
    rods: Float64,
    lower: Float64,
    edges: Float64,
    heads: Int64,
    following: Int64,
    energy: Float64,
) -> None:
    """Put a rod to another place if Metropolis lets it; beyond the rectangle there is none."""
    x, y, _ = place
    if not (lower[0] <= x < lower[0] + edges[0] and lower[1] <= y < lower[1] + edges[1]):
        return
    after = _cell(x, y, lower, edges, heads)
    there = _at(i, place, rods, after, heads, following, energy)
    if there == np.inf:
        return
    before = _cell(rods[i, 0], rods[i, 1], lower, edges, heads)
    now = (rods[i, 0], rods[i, 1], rods[i, 2])
    here = _at(i, now, rods, before, heads, following, energy)
    if there <= here or luck < math.exp(here - there):
        _moved(i, before, after, heads, following)
        _put(rods, i, place)


@njit(cache=True)
def _move(
    rods: Float64,
    count: int,
    lower: Float64,
    edges: Float64,
    heads: Int64,
    following: Int64,
    energy: Float64,
    steps: Float64,
    luck: Float64,
) -> None:
    """Move each rod along its axis and across, then turn it: two trials, each as likely to and fro."""
    for i in range(count):
        x, y, angle, cos, sin = rods[i]
        there = (x + cos * steps[i, 0] - sin * steps[i, 1], y + sin * steps[i, 0] + cos * steps[i, 1], angle)
        _try(i, there, luck[i, 0], rods, lower, edges, heads, following, energy)
        turned = (rods[i, 0], rods[i, 1], angle + steps[i, 2])
        _try(i, turned, luck[i, 1], rods, lower, edges, heads, following, energy)


@njit(cache=True)
def _turn(
    rods: Float64,
    which: Int64,
    angles: Float64,
    luck: Float64,
    lower: Float64,
    edges: Float64,
    heads: Int64,
    following: Int64,
    energy: Float64,
) -> None:
    """Try other angles."""
    for n in range(len(which)):
        i = which[n]
        turned = (rods[i, 0], rods[i, 1], angles[n])
        _try(i, turned, luck[n], rods, lower, edges, heads, following, energy)


@njit(cache=True)
def _leaving(
    rods: Float64,
    count: int,
    luck: Float64,
    chance: float,
    lower: Float64,
    edges: Float64,
    heads: Int64,
    following: Int64,
    energy: Float64,
) -> Int64:
    """Say which rods go."""
    gone = np.zeros(count, dtype=np.bool_)
    for i in range(count):
        cell = _cell(rods[i, 0], rods[i, 1], lower, edges, heads)
        here = (rods[i, 0], rods[i, 1], rods[i, 2])
        at = _at(i, here, rods, cell, heads, following, energy)
        gone[i] = luck[i] < -math.expm1(-chance * math.exp(at))
    return np.flatnonzero(gone)


@njit(cache=True)
def _lay(
    rods: Float64,
    count: int,
    most: int,
    places: Float64,
    angles: Float64,
    lower: Float64,
    edges: Float64,
    heads: Int64,
    following: Int64,
    energy: Float64,
) -> int:
    """Lay down the rods that find a place; say how many there are then."""
    for n in range(len(angles)):
        cell = _cell(places[n, 0], places[n, 1], lower, edges, heads)
        place = (places[n, 0], places[n, 1], angles[n])
        if count < most and _at(-1, place, rods, cell, heads, following, energy) < np.inf:
            _put(rods, count, place)
            following[count] = heads[cell]
            heads[cell] = count
            count += 1
    return count
