"""Makes a specimen that fills the field from any structure: how it is looked at, and what is wrong with it.

Here the y of the image points down, as in all of the instrument: a structure that is looked at along its
zone axis is seen as a viewer would see it, x to the right.
"""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from simulators import structure_edits as edits
from simulators.known_structures import SILICON_BOND_NM, structure_of
from simulators.structures import Structure, bonds_of, symbols

Float64 = NDArray[np.float64]
PairNm = tuple[float, float]

MAX_LAYERS = 2000
TURNED_BONDS_APART_NM = 1.2
SILICON_APART_NM = 0.3  # in a sheet: no two next to each other
FLAT_NM = 0.25  # a sheet whose atoms differ by no more in height is one


class DopantConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of dopant.

    Attributes
    ----------
    element
        Symbol of the dopant.
    replaces
        Symbol of the atoms in whose place it sits.
    fraction
        Share of those that are replaced.
    """

    element: str
    replaces: str
    fraction: float

    def __post_init__(self) -> None:
        _require("dopants[].fraction", self.fraction, 0, 1)


class VacancyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Missing atoms of one element.

    Attributes
    ----------
    element
        Symbol of the atoms.
    fraction
        Share of them that is missing.
    """

    element: str
    fraction: float

    def __post_init__(self) -> None:
        _require("vacancies[].fraction", self.fraction, 0, 1)


class StructureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a loaded structure becomes the specimen; angles are from x, x right, y down.

    Attributes
    ----------
    jid
        Which entry of a JARVIS file, or which data block of a CIF, where there are several.
    zone_axis
        Direct lattice vector of the file's cell that points at the viewer.
    layers
        How many periods along it the crystal is thick; a sheet has 1.
    rotation_deg
        Angle from x to the shortest lattice vector that is seen.
    strain
        Homogeneous strain xx, yy and xy of the whole crystal.
    dopants
        Atoms replaced by others, at random places; nothing moves, but silicon in graphene gets its bonds.
    vacancies
        Atoms missing, at random places; nothing moves.
    stone_wales_per_nm2
        Bonds turned by 90 degrees, of a sheet whose atoms have three bonds each.
    has_grain_boundary
        Whether a second grain lies beyond a boundary along the beam; it is geometrical, not relaxed.
    tilt_deg
        Angle between the lattices of the two grains.
    boundary_distance_nm
        Where the boundary passes: distance of its plane from (0, 0).
    boundary_direction_deg
        Angle from x to the normal of the boundary, which points to the second grain.
    polar_element
        Symbol of the sublattice that is displaced; empty is none.
    polar_shift_nm
        How far it is displaced, (x, y).
    polar_wall_width_nm
        Half width of a domain wall through (0, 0), beyond which it is displaced the other way; 0 is none.
    polar_wall_direction_deg
        Angle from x to the normal of that wall.
    """

    jid: str = ""
    zone_axis: tuple[int, int, int] = (0, 0, 1)
    layers: int = 1
    rotation_deg: float = 0.0
    strain: tuple[float, float, float] = (0.0, 0.0, 0.0)
    dopants: tuple[DopantConfig, ...] = ()
    vacancies: tuple[VacancyConfig, ...] = ()
    stone_wales_per_nm2: float = 0.0
    has_grain_boundary: bool = False
    tilt_deg: float = 12.0
    boundary_distance_nm: float = 1.4
    boundary_direction_deg: float = 205.0
    polar_element: str = ""
    polar_shift_nm: PairNm = (0.0, 0.0)
    polar_wall_width_nm: float = 0.0
    polar_wall_direction_deg: float = 0.0

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            for value in np.ravel(getattr(self, name)).tolist():
                _require(name, value, least, most)


def _require(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"specimen.crystal.{name} is {value}; it takes {least:g} to {most:g}")


_LIMITS = {
    "layers": (1, MAX_LAYERS),
    "rotation_deg": (-360, 360),
    "strain": (-0.3, 0.3),
    "stone_wales_per_nm2": (0, 0.5),
    "tilt_deg": (-180, 180),
    "boundary_distance_nm": (-1000, 1000),
    "boundary_direction_deg": (-360, 360),
    "polar_shift_nm": (-0.1, 0.1),
    "polar_wall_width_nm": (0, 100),
    "polar_wall_direction_deg": (-360, 360),
}


def fill(
    name_or_path: str, config: StructureConfig, lower_nm: PairNm, upper_nm: PairNm, rng: np.random.Generator
) -> Structure:
    """Make the block that covers a rectangle of the image.

    Parameters
    ----------
    name_or_path
        As of ``structure_of``.
    config
        How it is looked at, and its defects.
    lower_nm, upper_nm
        Corners of the rectangle, ``(x, y)``, y down.
    rng
        Chooses the places of the defects.

    Returns
    -------
    structure
        Not periodic; x and y are those of the image, z points at the viewer.

    Raises
    ------
    ValueError
        In one line, if there is no such structure or it cannot be so.
    """
    loaded = structure_of(name_or_path, config.jid)
    try:
        block = _block(edits.along_zone(loaded, config.zone_axis), config, lower_nm, upper_nm)
        return _with_defects(block, config, rng)
    except ValueError as error:
        raise ValueError(f"specimen.crystal: {error}") from None


def _block(view: Structure, config: StructureConfig, lower_nm: PairNm, upper_nm: PairNm) -> Structure:
    """Cut the rectangle out of one grain or two, strained and turned."""
    if config.layers > 1 and not view.periodic[2]:
        raise ValueError(
            f"layers is {config.layers}; a structure that does not repeat along the beam takes 1"
        )
    crystal = _as_seen(view)
    if any(config.strain):
        xx, yy, xy = config.strain
        crystal = edits.strained(crystal, [[xx, xy], [xy, yy]])
    crystal = edits.turned(crystal, config.rotation_deg)
    bottom, top = _depth(crystal, config.layers)
    lower, upper = (*lower_nm, bottom), (*upper_nm, top)
    if not config.has_grain_boundary:
        return edits.cut(crystal, lower, upper)
    angle = math.radians(config.boundary_direction_deg)
    at = (config.boundary_distance_nm * math.cos(angle), config.boundary_distance_nm * math.sin(angle))
    normal = config.boundary_direction_deg
    return edits.two_grains(crystal, lower, upper, tilt_deg=config.tilt_deg, at_nm=at, normal_deg=normal)


def _as_seen(view: Structure) -> Structure:
    """Turn y down."""
    down = np.diag([1.0, -1.0, 1.0])
    return replace(view, cell_nm=view.cell_nm @ down, positions_nm=view.positions_nm @ down)


def _depth(crystal: Structure, layers: int) -> tuple[float, float]:
    """Heights between which the block lies: whole periods, or all that there is."""
    heights = crystal.positions_nm[:, 2]
    lowest = float(heights.min()) - 1e-4
    if not crystal.periodic[2]:
        return lowest, float(heights.max()) + 1e-4
    return lowest, lowest + layers * float(np.linalg.norm(crystal.cell_nm[2]))


def _with_defects(block: Structure, config: StructureConfig, rng: np.random.Generator) -> Structure:
    if config.polar_element:
        block = edits.polar(
            block,
            config.polar_element,
            config.polar_shift_nm,
            wall_width_nm=config.polar_wall_width_nm,
            wall_normal_deg=config.polar_wall_direction_deg,
        )
    for dopant in config.dopants:
        # Springs know the bonds of silicon with carbon, not with silicon.
        apart_nm = SILICON_APART_NM if _is_flat(block) and dopant.element == "Si" else 0.0
        sites = edits.chosen_sites(block, dopant.replaces, dopant.fraction, rng, apart_nm=apart_nm)
        block = edits.doped(block, dopant.element, sites)
    if config.dopants and _is_flat(block) and {*symbols(block.numbers)} == {"C", "Si"}:
        block = edits.settled(block, {("C", "Si"): SILICON_BOND_NM})
    if config.stone_wales_per_nm2:
        block = _with_turned_bonds(block, config.stone_wales_per_nm2, rng)
    gone = [edits.chosen_sites(block, one.element, one.fraction, rng) for one in config.vacancies]
    return edits.with_vacancies(block, np.concatenate(gone)) if gone else block


def _is_flat(block: Structure) -> bool:
    return bool(np.ptp(block.positions_nm[:, 2]) <= FLAT_NM)


def _with_turned_bonds(block: Structure, per_nm2: float, rng: np.random.Generator) -> Structure:
    """Turn bonds at random places of a sheet, each well away from the others and from the edge."""
    before, width, height = block.history, block.cell_nm[0, 0], block.cell_nm[1, 1]
    wanted = round(per_nm2 * width * height)
    bonds, places = bonds_of(block), block.positions_nm[:, :2]
    is_threefold = bonds.coordination(len(places)) == 3
    inner = np.all(np.abs(places - places.mean(axis=0)) < [width / 2 - 0.8, height / 2 - 0.8], axis=1)
    is_open = is_threefold[bonds.first] & is_threefold[bonds.second] & inner[bonds.first]
    is_open &= bonds.first < bonds.second
    if not _is_flat(block) or (wanted and not is_open.any()):
        raise ValueError(
            "stone_wales_per_nm2 takes a flat sheet whose atoms have three bonds each; leave it out"
        )
    for _ in range(wanted):
        left = np.flatnonzero(is_open)
        if not len(left):
            raise ValueError(f"{wanted} turned bonds do not fit; lower stone_wales_per_nm2")
        at = rng.choice(left)
        block = edits.with_stone_wales(block, (int(bonds.first[at]), int(bonds.second[at])))
        apart = np.linalg.norm(places[bonds.first] - places[bonds.first[at]], axis=1)
        is_open &= apart > TURNED_BONDS_APART_NM
    return replace(block, history=(*before, f"{wanted} bonds turned"))
