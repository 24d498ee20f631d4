"""Atomic structures: what they are, and how they come from the field's files and go into them.

CIF, POSCAR and (extended) XYZ are read through ASE, records of JARVIS-DFT and JARVIS-FF (Choudhary et al.,
npj Comput. Mater. 6, 173 (2020), arXiv:2007.01831) as jarvis-tools writes them. What can be done to a
structure is in ``simulators/structure_edits.py``, a few of our own are in ``known_structures.py`` beside it.

ASE is imported only where it is needed: it takes a tenth of a second and more. Of its optional parts none is
needed; the space group is what the file says, it is not searched for.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Names = NDArray[np.str_]

HEAVIEST = 118
A_PER_NM = 10.0
MAX_FILE_BYTES = 2 << 30
# How the files of each kind are known: by their suffix, and VASP's by how their names begin.
SUFFIXES = {
    ".cif": "cif",
    ".vasp": "vasp",
    ".poscar": "vasp",
    ".contcar": "vasp",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".json": "json",
}
BONDED = 1.15  # times the distance of the nearest neighbour; a body-centred atom has 8, not 14


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Structure:
    """Atoms in a cell.

    Attributes
    ----------
    cell_nm
        The three vectors of the cell, one a row, shape ``(3, 3)``, float64.
    positions_nm
        Cartesian position ``(x, y, z)`` of each atom, shape ``(n, 3)``, float64; right-handed, and seen
        from above: z points at the viewer.
    numbers
        Atomic number, shape ``(n,)``, int64.
    periodic
        Along which vectors the cell repeats.
    sites
        What each atom is, such as ``Mo`` or ``W in the place of Mo``, shape ``(n,)``; the elements if it
        is not given.
    name
        What its source calls it: the identifier of a record, such as ``JVASP-664``.
    formula, space_group, properties
        Of the crystal as it was loaded, which edits do not change; empty where the file does not tell.
        Properties are whatever else the record says, as JSON has it.
    source
        The file that it was read from, or where its numbers were published.
    history
        What was done to it since, a line each.
    """

    cell_nm: Float64
    positions_nm: Float64
    numbers: Int64
    periodic: tuple[bool, bool, bool] = (True, True, True)
    sites: Names = field(default_factory=lambda: np.empty(0, dtype=np.str_))
    name: str = ""
    formula: str = ""
    space_group: str = ""
    properties: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    source: str = ""
    history: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.numbers)
        if self.cell_nm.shape != (3, 3) or not np.isfinite(self.cell_nm).all():
            raise ValueError("the cell is not three vectors of three finite numbers")
        if self.positions_nm.shape != (count, 3) or not np.isfinite(self.positions_nm).all():
            raise ValueError(f"the positions of {count} atoms are not {count} times three finite numbers")
        if not count or self.numbers.min() < 1 or self.numbers.max() > HEAVIEST:
            raise ValueError("there is no atom, or one that is no element")
        if self.volume_nm3 < 1e-9:
            raise ValueError("the vectors of the cell lie in one plane")
        if not len(self.sites):
            object.__setattr__(self, "sites", np.array(symbols(self.numbers)))
        if not self.formula:
            object.__setattr__(self, "formula", self.composition)

    @property
    def volume_nm3(self) -> float:
        """Volume of the cell."""
        return abs(float(np.linalg.det(self.cell_nm)))

    @property
    def composition(self) -> str:
        """Reduced formula of the atoms that are there now, metals first, such as ``MoS2``."""
        from ase.formula import Formula

        counted = Counter(symbols(self.numbers))
        least = math.gcd(*counted.values())
        reduced = Formula.from_dict({symbol: n // least for symbol, n in counted.items()})
        return str(reduced.format("metal"))

    @property
    def fractional(self) -> Float64:
        """Positions in units of the cell's vectors, shape ``(n, 3)``."""
        parts: Float64 = self.positions_nm @ np.linalg.inv(self.cell_nm)
        return parts

    def facts(self) -> dict[str, str]:
        """Say in words what it is: what is known of it goes with the data that are taken of it."""
        known = {
            "name": self.name,
            "formula": self.formula,
            "space_group": self.space_group,
            "composition": self.composition,
            "source": self.source,
            "history": "; ".join(self.history),
            "properties": msgspec.json.encode(dict(self.properties)).decode() if self.properties else "",
        }
        return {key: value for key, value in known.items() if value}


def symbols(numbers: Int64) -> list[str]:
    """Names of elements, such as ``["Mo", "S"]``."""
    from ase.data import chemical_symbols

    return [chemical_symbols[number] for number in numbers.tolist()]


def number_of(symbol: str) -> int:
    """Atomic number of an element.

    Raises
    ------
    ValueError
        If there is no such element.
    """
    from ase.data import atomic_numbers

    number = int(atomic_numbers.get(symbol, 0))
    if not number:
        raise ValueError(f"{symbol!r} is no element; it takes a symbol such as C, Si or Mo")
    return number


@dataclass(frozen=True, slots=True, eq=False)
class Bonds:
    """Who is bonded to whom, every bond both ways.

    Attributes
    ----------
    first, second
        Indices of the atoms, sorted, shape ``(m,)``.
    apart_nm
        Way from the first to the second, which may lie in another cell, shape ``(m, 3)``.
    """

    first: Int64
    second: Int64
    apart_nm: Float64

    @property
    def lengths_nm(self) -> Float64:
        """Length of each, shape ``(m,)``."""
        lengths: Float64 = np.linalg.norm(self.apart_nm, axis=1)
        return lengths

    def coordination(self, count: int) -> Int64:
        """Number of bonds of each of ``count`` atoms, shape ``(count,)``."""
        counts: Int64 = np.bincount(self.first, minlength=count).astype(np.int64)
        return counts

    def of(self, atom: int) -> Int64:
        """Give the atoms bonded to one."""
        neighbours: Int64 = self.second[self.first == atom]
        return neighbours


def bonds_of(structure: Structure, reach_nm: float = 0.36) -> Bonds:
    """Find the bonds: neighbours not further away than 1.15 times the nearest one of either atom.

    Parameters
    ----------
    structure
        Of any size.
    reach_nm
        No bond is longer.
    """
    first, second, apart = _pairs_within(structure, reach_nm)
    lengths = np.linalg.norm(apart, axis=1)
    nearest = np.full(len(structure.numbers), np.inf)
    np.minimum.at(nearest, first, lengths)
    is_bond = lengths <= BONDED * np.maximum(nearest[first], nearest[second])
    first, second, apart = first[is_bond], second[is_bond], apart[is_bond]
    order = np.lexsort((second, first))
    return Bonds(first[order], second[order], apart[order])


def _pairs_within(structure: Structure, reach_nm: float) -> tuple[Int64, Int64, Float64]:
    """Pairs of atoms, both ways, no further apart than a reach, the images in other cells counted."""
    shifts = _cells_within(structure, reach_nm) @ structure.cell_nm
    positions, count = structure.positions_nm, len(structure.numbers)
    images = (positions + shifts[:, None]).reshape(-1, 3)
    lower, upper = positions.min(axis=0) - reach_nm, positions.max(axis=0) + reach_nm
    near = np.flatnonzero(np.all((images >= lower) & (images <= upper), axis=1))
    found = cKDTree(positions).sparse_distance_matrix(cKDTree(images[near]), reach_nm, output_type="ndarray")
    first, image = found["i"].astype(np.int64), near[found["j"]]
    apart = images[image] - positions[first]
    is_other = np.linalg.norm(apart, axis=1) > 1e-6
    return first[is_other], image[is_other] % count, apart[is_other]


def _cells_within(structure: Structure, reach_nm: float) -> Int64:
    """Cells that reach near enough to the first one, ``(n, 3)``; its atoms may lie a little outside it."""
    heights = 1 / np.linalg.norm(np.linalg.inv(structure.cell_nm), axis=0)
    spread = np.ptp(structure.fractional, axis=0)
    most = np.where(structure.periodic, np.ceil(reach_nm / heights + spread), 0).astype(int)
    steps = np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij")
    cells: Int64 = np.stack(steps, axis=-1).reshape(-1, 3).astype(np.int64)
    return cells


# -- files -----------------------------------------------------------------------------------------


def load_structure(path: Path | str, jid: str = "") -> Structure:
    """Read a structure from a file of the field.

    Parameters
    ----------
    path
        A ``.cif``; a POSCAR or CONTCAR (by this name, or ``.vasp``); an ``.xyz`` or ``.extxyz``, the last
        image of several; or a ``.json`` of JARVIS: an entry, a list of entries, or only its ``atoms``.
    jid
        Which entry of a list; the name of the data block of a CIF with several.

    Raises
    ------
    ValueError
        In one line that names the file, what is wrong with it and what would do.
    """
    path = Path(path)
    kind = _kind_of(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the path of a structure")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: it is larger than {MAX_FILE_BYTES >> 30} GiB; take out the entry you need")
    try:
        return _from_jarvis(path, jid) if kind == "json" else _from_ase(path, kind, jid)
    except _Unfit as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # ASE's readers raise whatever a broken file makes of them
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{path}: not a readable {_SPOKEN[kind]}: {what}") from None


class _Unfit(ValueError):
    """What was read is no structure that can be used; the text says why."""


_SPOKEN = {"cif": "CIF", "vasp": "POSCAR", "extxyz": "XYZ", "json": "JARVIS record"}


def _kind_of(path: Path) -> str:
    if path.name.upper().startswith(("POSCAR", "CONTCAR")):
        return "vasp"
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{path}: no kind of file that is known; it takes .cif, POSCAR or .vasp, .xyz, .json of JARVIS"
        )
    return kind


def _from_ase(path: Path, kind: str, block: str) -> Structure:
    """Read a file through ASE."""
    from ase.io import read

    options = {"store_tags": True} if kind == "cif" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a space group that ASE has no table of; the sites are read
        images: Any = read(path, index=":", format=kind, **options)
    if not images:
        raise _Unfit("there is no structure in it")
    atoms = _block(path, block) if kind == "cif" and block else images[-1]
    if kind == "cif" and not block and len(images) > 1:
        raise _Unfit(f"it holds {len(images)} structures; name the data block by jid")
    info = dict(atoms.info)
    _require_full(info.get("occupancy"))
    properties = {key.lstrip("_"): value for key, value in info.items() if key not in _HANDLED}
    return _checked(
        cell_nm=np.asarray(atoms.cell[:], dtype=np.float64) / A_PER_NM,
        positions_nm=np.asarray(atoms.positions, dtype=np.float64) / A_PER_NM,
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        periodic=(bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
        name=block or str(info.get("name", info.get("jid", ""))),
        formula=_formula_of(info),
        space_group=_space_group_of(info),
        properties={key: value for key, value in properties.items() if _is_plain(value)},
        source=str(path),
    )


_HANDLED = ("spacegroup", "unit_cell", "occupancy", "jid", "name", "formula", "space_group")


def _block(path: Path, name: str) -> Any:
    from ase.io.cif import parse_cif

    blocks = {one.name: one for one in parse_cif(path)}
    if name not in blocks:
        raise _Unfit(f"there is no {name}; it holds {_some(list(blocks))}")
    return blocks[name].get_atoms(store_tags=True)


def _require_full(occupancy: Any) -> None:
    """Refuse sites that are partly occupied: ASE would fill each of them with its commonest element."""
    for kinds in (occupancy or {}).values():
        if len(kinds) != 1 or any(not share > 0.999 for share in kinds.values()):
            raise _Unfit("sites are partly occupied; order them, or load the pure crystal and dope it")


def _formula_of(info: Mapping[str, Any]) -> str:
    return str(info.get("formula", ""))


def _space_group_of(info: Mapping[str, Any]) -> str:
    for tag in ("space_group", "_symmetry_space_group_name_h-m", "_space_group_name_h-m_alt"):
        if tag in info:
            return " ".join(str(info[tag]).split())
    return str(info["spacegroup"].symbol) if "spacegroup" in info else ""


def _is_plain(value: Any) -> bool:
    """Whether it is a number or a word: loops of a CIF are the atoms and the symmetry once more."""
    return isinstance(value, str | int | float | bool)


def _from_jarvis(path: Path, jid: str) -> Structure:
    content = msgspec.json.decode(path.read_bytes())
    entry = _entry(content, jid)
    atoms = entry.get("atoms", entry)
    if not isinstance(atoms, dict) or any(key not in atoms for key in ("lattice_mat", "coords", "elements")):
        raise _Unfit("no record of JARVIS: it takes atoms with lattice_mat, coords and elements")
    cell_a = np.array(atoms["lattice_mat"], dtype=np.float64)
    coords = np.array(atoms["coords"], dtype=np.float64).reshape(-1, 3)
    try:
        numbers = np.array([number_of(str(one).strip()) for one in atoms["elements"]], dtype=np.int64)
    except ValueError as error:
        raise _Unfit(str(error)) from None
    properties = {key: value for key, value in entry.items() if key not in _OF_JARVIS and value != "na"}
    return _checked(
        cell_nm=cell_a / A_PER_NM,
        positions_nm=(coords if atoms.get("cartesian", False) else coords @ cell_a) / A_PER_NM,
        numbers=numbers,
        name=str(entry.get("jid", "")),
        formula=str(entry.get("formula", "")),
        space_group=str(entry.get("spg_symbol", entry.get("spg", ""))),
        properties={} if atoms is entry else properties,
        source=str(path),
    )


_OF_JARVIS = ("atoms", "jid", "formula", "spg_symbol")


def _entry(content: Any, jid: str) -> dict[str, Any]:
    """Choose an entry of a file, which may be the only one."""
    entries = content if isinstance(content, list) else [content]
    if not entries or not all(isinstance(one, dict) for one in entries):
        raise _Unfit("no record of JARVIS: it takes an entry, or a list of entries")
    names = [str(one.get("jid", "")) for one in entries]
    if jid and jid in names:
        return dict(entries[names.index(jid)])
    if jid:
        raise _Unfit(f"there is no {jid}; it holds {_some(names)}")
    if len(entries) > 1:
        raise _Unfit(f"it holds {len(entries)} entries; choose one by jid: {_some(names)}")
    return dict(entries[0])


def _some(names: list[str]) -> str:
    return ", ".join(name or "one without a name" for name in names[:3]) + (" …" if len(names) > 3 else "")


def _checked(
    *, cell_nm: Float64, positions_nm: Float64, periodic: Any = (True, True, True), **said: Any
) -> Structure:
    """Make the structure; where a file gives no cell, a box around the atoms is one."""
    is_finite = positions_nm.ndim == 2 and bool(np.isfinite(positions_nm).all())
    if not np.any(periodic) and is_finite and abs(np.linalg.det(cell_nm)) < 1e-9:
        cell_nm = np.diag(np.ptp(positions_nm, axis=0) + 0.1)
    try:
        structure = Structure(cell_nm=cell_nm, positions_nm=positions_nm, periodic=periodic, **said)
    except ValueError as error:
        raise _Unfit(str(error)) from None
    first, second, apart = _pairs_within(structure, 0.04)
    if len(first):
        raise _Unfit(
            f"atoms {first[0]} and {second[0]} are {np.linalg.norm(apart[0]) * A_PER_NM:.2f} Å apart; "
            "the positions or their unit are wrong"
        )
    return structure


def save_structure(structure: Structure, path: Path | str) -> None:
    """Write a structure as one of the files that ``load_structure`` reads, by the suffix.

    CIF and POSCAR keep only cell and atoms, with no symmetry but P 1, and are always periodic; XYZ and JSON
    keep name, formula, space group and properties too.
    """
    path = Path(path)
    kind = _kind_of(path)
    if kind == "json":
        path.write_bytes(msgspec.json.format(msgspec.json.encode(as_jarvis(structure)), indent=1))
        return
    atoms = _as_ase(structure)
    if kind == "extxyz":
        told = {"jid": structure.name, "formula": structure.formula, "space_group": structure.space_group}
        plain = {key: value for key, value in structure.properties.items() if _is_plain(value)}
        atoms.info.update({key: value for key, value in (told | plain).items() if value != ""})
        atoms.write(path, format=kind)
    elif kind == "vasp":
        atoms.write(path, format=kind, direct=True, sort=True)
    else:
        atoms.write(path, format=kind)


def _as_ase(structure: Structure) -> Any:
    from ase import Atoms

    return Atoms(
        numbers=structure.numbers,
        positions=structure.positions_nm * A_PER_NM,
        cell=structure.cell_nm * A_PER_NM,
        pbc=structure.periodic,
    )


def as_jarvis(structure: Structure) -> dict[str, Any]:
    """Give the entry that jarvis-tools would write, its ``atoms`` in fractional coordinates."""
    cell_a = structure.cell_nm * A_PER_NM
    lengths = np.linalg.norm(cell_a, axis=1)
    unit = cell_a / lengths[:, None]
    cosines = (unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1])
    atoms = {
        "lattice_mat": cell_a.tolist(),
        "coords": structure.fractional.tolist(),
        "elements": symbols(structure.numbers),
        "abc": lengths.tolist(),
        "angles": np.degrees(np.arccos(cosines)).tolist(),
        "cartesian": False,
        "props": [""] * len(structure.numbers),
    }
    known = {"jid": structure.name, "formula": structure.formula, "spg_symbol": structure.space_group}
    return {**structure.properties, **{key: value for key, value in known.items() if value}, "atoms": atoms}
