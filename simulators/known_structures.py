"""Six structures of our own making, with the source of their lattice constants, and any by name or file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from simulators.structure_edits import doped, settled, supercell
from simulators.structures import Structure, load_structure

GRAPHENE_NM = 0.246  # Castro Neto et al., Rev. Mod. Phys. 81, 109 (2009): 2.46 A
GAAS_NM = 0.565325  # at 300 K: Vurgaftman, Meyer and Ram-Mohan, J. Appl. Phys. 89, 5815 (2001)
# 2H-MoS2: a = 3.1602(2), c = 12.294(4) A, z(S) = 0.621: Bronsema, de Boer and Jellinek, Z. Anorg. Allg.
# Chem. 540, 15 (1986); the sheet of S lies (0.75 - 0.621) c above that of Mo.
MOS2_NM, MOS2_HEIGHT_NM = 0.31602, (0.75 - 0.621) * 1.2294
STRONTIUM_TITANATE_NM = 0.3905  # cubic, at room temperature: Okazaki and Kawaminami, MRB 8, 545 (1973)
# PbTiO3 at room temperature, P4mm: a = 3.902, c = 4.156 A, z(Ti) = 0.5377, z(O) = 0.1118 above the lead and
# 0.6174 beside the titanium: Nelmes and Kuhs, Solid State Commun. 54, 721 (1985)
LEAD_TITANATE_NM = (0.3902, 0.4156)
LEAD_TITANATE_Z = (0.5377, 0.1118, 0.6174)
SILICON_BOND_NM = 0.176  # threefold Si in graphene, 0.169 to 0.178: Zhou et al., PRL 109, 206803 (2012)
SHEET_NM = 2.0  # height of the cell of a sheet; it does not repeat along it


def graphene() -> Structure:
    """A sheet of graphene, two atoms a cell."""
    return Structure(
        cell_nm=_hexagonal(GRAPHENE_NM),
        positions_nm=np.array([[0.0, 0.0, 0.0], [0.0, GRAPHENE_NM / math.sqrt(3), 0.0]]),
        numbers=np.array([6, 6]),
        periodic=(True, True, False),
        name="graphene",
        space_group="P6/mmm",
        source="a = 2.46 A: Castro Neto et al., Rev. Mod. Phys. 81, 109 (2009)",
    )


def silicon_in_graphene() -> Structure:
    """One silicon in the place of a carbon, in a cell of 6 x 6 of graphene, flat.

    A real one bulges out of the sheet; here springs give it the bonds of Zhou et al., PRL 109, 206803 (2012).
    """
    sheet = doped(supercell(graphene(), (6, 6, 1)), "Si", [0])
    settled_sheet = settled(sheet, {("C", "Si"): SILICON_BOND_NM})
    return replace(settled_sheet, name="silicon-in-graphene", formula=sheet.composition, space_group="")


def gaas() -> Structure:
    """Gallium arsenide, zincblende, its cubic cell of eight atoms."""
    corners = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    return Structure(
        cell_nm=GAAS_NM * np.eye(3),
        positions_nm=GAAS_NM * np.concatenate([corners, corners + 0.25]),
        numbers=np.repeat([31, 33], 4),
        name="gaas",
        space_group="F-43m",
        source="a = 5.65325 A: Vurgaftman, Meyer and Ram-Mohan, J. Appl. Phys. 89, 5815 (2001)",
    )


def mos2() -> Structure:
    """One layer of 2H molybdenum disulphide, three atoms a cell, with the bonds of the bulk."""
    aside = MOS2_NM / math.sqrt(3)
    sulphur = [[0.0, aside, height] for height in (MOS2_HEIGHT_NM, -MOS2_HEIGHT_NM)]
    return Structure(
        cell_nm=_hexagonal(MOS2_NM),
        positions_nm=np.array([[0.0, 0.0, 0.0], *sulphur]),
        numbers=np.array([42, 16, 16]),
        periodic=(True, True, False),
        name="mos2",
        space_group="P-6m2",
        source="2H-MoS2: Bronsema, de Boer and Jellinek, Z. Anorg. Allg. Chem. 540, 15 (1986)",
    )


def strontium_titanate() -> Structure:
    """Strontium titanate, the cubic perovskite, five atoms a cell."""
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(
        cell_nm=STRONTIUM_TITANATE_NM * np.eye(3),
        positions_nm=STRONTIUM_TITANATE_NM * np.array(places),
        numbers=np.array([38, 22, 8, 8, 8]),
        name="strontium-titanate",
        space_group="Pm-3m",
        source="a = 3.905 A: Okazaki and Kawaminami, Mater. Res. Bull. 8, 545 (1973)",
    )


def lead_titanate() -> Structure:
    """Lead titanate, a polar tetragonal perovskite, displaced along the third axis."""
    a, c = LEAD_TITANATE_NM
    titanium, above, beside = LEAD_TITANATE_Z
    places = [[0, 0, 0], [0.5, 0.5, titanium], [0.5, 0.5, above], [0.5, 0, beside], [0, 0.5, beside]]
    return Structure(
        cell_nm=np.diag([a, a, c]),
        positions_nm=np.array(places) * [a, a, c],
        numbers=np.array([82, 22, 8, 8, 8]),
        name="lead-titanate",
        space_group="P4mm",
        source="a = 3.902, c = 4.156 A: Nelmes and Kuhs, Solid State Commun. 54, 721 (1985)",
    )


KNOWN: dict[str, Callable[[], Structure]] = {
    "graphene": graphene,
    "silicon-in-graphene": silicon_in_graphene,
    "gaas": gaas,
    "mos2": mos2,
    "strontium-titanate": strontium_titanate,
    "lead-titanate": lead_titanate,
}


def structure_of(name_or_path: str, jid: str = "") -> Structure:
    """Give one of ``KNOWN`` by its name, or read a file.

    Raises
    ------
    ValueError
        As of ``load_structure``; where nothing of the kind is known, with the names that are.
    """
    if name_or_path in KNOWN:
        return KNOWN[name_or_path]()
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        raise ValueError(f"{name_or_path}: no such structure; it takes a file, or {', '.join(KNOWN)}")
    return load_structure(path, jid)


def _hexagonal(a_nm: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Cell of a sheet, the first vector along x and 120 degrees to the second."""
    return np.array([[a_nm, 0.0, 0.0], [-a_nm / 2, a_nm * math.sqrt(3) / 2, 0.0], [0.0, 0.0, SHEET_NM]])
