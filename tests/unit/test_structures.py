"""Structures: what a file says comes back, and every edit has an answer that is known by hand."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from simulators.known_structures import GAAS_NM, GRAPHENE_NM, KNOWN, MOS2_NM, structure_of
from simulators.structure_edits import (
    along_zone,
    chosen_sites,
    cut,
    doped,
    orthogonal_cell,
    polar,
    strained,
    supercell,
    turned,
    two_grains,
    with_inclusion,
    with_stone_wales,
    with_vacancies,
    with_wall,
)
from simulators.structures import Structure, bonds_of, load_structure, save_structure

TOLERANCE_NM = 1e-5  # 1e-4 Å
# As jarvis-tools 2026.6.12 writes an Atoms.to_dict(), here of a made-up sheet of MoS2 in 20 Å of vacuum.
JARVIS_ATOMS = {
    "lattice_mat": [[3.16, 0.0, 0.0], [-1.58, 2.7366, 0.0], [0.0, 0.0, 20.0]],
    "coords": [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.42], [2 / 3, 1 / 3, 0.58]],
    "elements": ["Mo", "S", "S"],
    "abc": [3.16, 3.16, 20.0],
    "angles": [90.0, 90.0, 120.0],
    "cartesian": False,
    "props": ["", "", ""],
}
JARVIS_CARTESIAN_A = [[0.0, 1.8244, 10.0], [1.58, 0.9122, 8.4], [1.58, 0.9122, 11.6]]
GAAS_CIF = """data_GaAs
_cell_length_a 5.65325
_cell_length_b 5.65325
_cell_length_c 5.65325
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F -4 3 m'
_symmetry_Int_Tables_number 216
_cod_database_code 1010991
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Ga1 Ga 0 0 0 {occupancy}
As1 As 0.25 0.25 0.25 1
"""
POSCAR = """MoS2 in a box
1.0
3.16 0 0
-1.58 2.7366 0
0 0 20
Mo S
1 2
Direct
0.3333333333 0.6666666667 0.5
0.6666666667 0.3333333333 0.42
0.6666666667 0.3333333333 0.58
"""


def jarvis(**said: object) -> dict[str, object]:
    return {"jid": "JVASP-X", "atoms": JARVIS_ATOMS, **said}


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def counts(structure: Structure) -> dict[int, int]:
    return dict(Counter(structure.numbers.tolist()))


def coordination(structure: Structure) -> np.ndarray:
    return bonds_of(structure).coordination(len(structure.numbers))


def farthest_nm(one: Structure, other: Structure) -> float:
    """How far an atom of one is from the next of its element in the other, the cell's repeats counted."""
    fractional = one.fractional[:, None] - other.fractional[None]
    fractional -= np.round(fractional) * one.periodic
    distance = np.linalg.norm(fractional @ one.cell_nm, axis=2)
    distance[one.numbers[:, None] != other.numbers[None]] = np.inf
    return float(max(distance.min(axis=0).max(), distance.min(axis=1).max()))


def ring_sizes(structure: Structure, atom: int) -> list[int]:
    """Sizes of the rings around a threefold atom: the shortest way between each two of its neighbours."""
    bonds = bonds_of(structure)
    around = bonds.of(atom).tolist()
    sizes = []
    for start, goal in ((around[0], around[1]), (around[0], around[2]), (around[1], around[2])):
        reached, steps = {start}, 0
        while goal not in reached:
            reached |= {int(b) for a in reached for b in bonds.of(a)} - {atom}
            steps += 1
        sizes.append(steps + 2)
    return sorted(sizes)


# -- files ---------------------------------------------------------------------------------------


def test_a_cif_is_read_with_its_symmetry_space_group_and_properties(tmp_path):
    crystal = load_structure(write(tmp_path, "gaas.cif", GAAS_CIF.format(occupancy=1)))

    assert (crystal.formula, crystal.space_group) == ("GaAs", "F -4 3 m")
    assert counts(crystal) == {31: 4, 33: 4}
    assert crystal.properties["cod_database_code"] == 1010991
    assert farthest_nm(crystal, structure_of("gaas")) < TOLERANCE_NM


def test_a_poscar_is_known_by_its_name_or_its_suffix(tmp_path):
    for name in ("POSCAR", "CONTCAR_relaxed", "sheet.vasp"):
        sheet = load_structure(write(tmp_path, name, POSCAR))
        np.testing.assert_allclose(sheet.positions_nm, np.array(JARVIS_CARTESIAN_A) / 10, atol=1e-9)
        assert (sheet.formula, counts(sheet)) == ("MoS2", {42: 1, 16: 2})


def test_an_xyz_without_a_cell_is_a_molecule_and_one_with_a_cell_a_crystal(tmp_path):
    molecule = load_structure(write(tmp_path, "co.xyz", "2\ncarbon monoxide\nC 0 0 0\nO 0 0 1.128\n"))
    lattice = 'Lattice="2 0 0 0 2 0 0 0 2" Properties=species:S:1:pos:R:3 pbc="T T T" jid=mine gap=1.5'
    crystal = load_structure(write(tmp_path, "po.extxyz", f"1\n{lattice}\nPo 0 0 0\n"))

    assert molecule.periodic == (False, False, False)
    assert bonds_of(molecule).lengths_nm.tolist() == pytest.approx([0.1128, 0.1128])
    assert crystal.periodic == (True, True, True)
    assert (crystal.name, crystal.properties["gap"]) == ("mine", 1.5)
    assert coordination(crystal).tolist() == [6]


def test_a_record_of_jarvis_keeps_formula_space_group_and_properties(tmp_path):
    entry = jarvis(
        formula="MoS2", spg_symbol="P-6m2", optb88vdw_bandgap=1.5, mbj_bandgap="na", elastic=[1, 2]
    )
    sheet = load_structure(write(tmp_path, "one.json", entry))

    assert (sheet.name, sheet.formula, sheet.space_group) == ("JVASP-X", "MoS2", "P-6m2")
    assert dict(sheet.properties) == {"optb88vdw_bandgap": 1.5, "elastic": [1, 2]}
    np.testing.assert_allclose(sheet.positions_nm, np.array(JARVIS_CARTESIAN_A) / 10, atol=1e-9)


def test_the_same_atoms_in_cartesian_coordinates_and_without_an_entry_are_the_same(tmp_path):
    fractional = load_structure(write(tmp_path, "bare.json", JARVIS_ATOMS))
    cartesian = JARVIS_ATOMS | {"coords": JARVIS_CARTESIAN_A, "cartesian": True}
    other = load_structure(write(tmp_path, "cartesian.json", {"atoms": cartesian}))

    np.testing.assert_allclose(fractional.positions_nm, other.positions_nm, atol=1e-9)
    assert fractional.formula == other.formula == "MoS2"


def test_an_entry_is_chosen_by_its_jid(tmp_path):
    graphite = {"jid": "JVASP-48", "atoms": JARVIS_ATOMS | {"elements": ["C", "C", "C"]}}
    path = write(tmp_path, "two.json", [jarvis(), graphite])

    assert load_structure(path, "JVASP-48").formula == "C"
    with pytest.raises(
        ValueError, match=r"two\.json: it holds 2 entries; choose one by jid: JVASP-X, JVASP-48"
    ):
        load_structure(path)
    with pytest.raises(ValueError, match=r"there is no JVASP-1; it holds JVASP-X, JVASP-48"):
        load_structure(path, "JVASP-1")


@pytest.mark.parametrize("name", ["back.cif", "POSCAR", "back.xyz", "back.json"])
@pytest.mark.parametrize("known", ["gaas", "silicon-in-graphene", "mos2"])
def test_what_is_written_is_read_back_within_1e_4_angstrom(tmp_path, name, known):
    structure = strained(structure_of(known), [[0.013, 0.02, 0], [0.0, -0.007, 0.01], [0.004, 0, 0.003]])
    save_structure(structure, tmp_path / name)
    back = load_structure(tmp_path / name)

    assert len(back.numbers) == len(structure.numbers)
    assert np.linalg.norm(back.cell_nm, axis=1) == pytest.approx(
        np.linalg.norm(structure.cell_nm, axis=1), abs=TOLERANCE_NM
    )
    assert back.volume_nm3 == pytest.approx(structure.volume_nm3, rel=1e-6)
    # CIF turns the crystal: compare in the cell's own coordinates.
    same_frame = Structure(
        cell_nm=structure.cell_nm, positions_nm=back.fractional @ structure.cell_nm, numbers=back.numbers
    )
    assert farthest_nm(same_frame, structure) < TOLERANCE_NM
    assert back.formula == structure.formula


@pytest.mark.parametrize("name", ["kept.xyz", "kept.json"])
def test_xyz_and_json_keep_what_is_known_of_a_structure(tmp_path, name):
    entry = jarvis(formula="MoS2", spg_symbol="P-6m2", optb88vdw_bandgap=1.5)
    sheet = load_structure(write(tmp_path, "one.json", entry))
    save_structure(sheet, tmp_path / name)
    back = load_structure(tmp_path / name)

    assert (back.name, back.formula, back.space_group) == ("JVASP-X", "MoS2", "P-6m2")
    assert dict(back.properties) == {"optb88vdw_bandgap": 1.5}


def test_a_structure_is_read_without_the_optional_parts_of_ase(tmp_path, monkeypatch):
    for missing in ("spglib", "matplotlib", "netCDF4", "flask"):
        monkeypatch.setitem(sys.modules, missing, None)

    for name, content in (("a.cif", GAAS_CIF.format(occupancy=1)), ("POSCAR", POSCAR), ("a.json", jarvis())):
        assert len(load_structure(write(tmp_path, name, content)).numbers) in (3, 8)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pdb", "", r"a\.pdb: no kind of file that is known; it takes \.cif, POSCAR"),
        ("a.cif", "", r"a\.cif: there is no structure in it"),
        ("b.cif", "data_x\n_cell_length_a 3\n", r"b\.cif: there is no structure in it"),
        ("c.cif", GAAS_CIF.format(occupancy=0.5), r"c\.cif: sites are partly occupied; order them"),
        ("POSCAR", "nothing\n1.0\n", "POSCAR: not a readable POSCAR"),
        ("a.xyz", "3\n\nC 0 0 0\n", r"a\.xyz: not a readable XYZ"),
        ("b.xyz", "2\n\nC 0 0 0\nC 0 0 0.01\n", r"b\.xyz: atoms 0 and 1 are 0\.01 Å apart; the positions or"),
        ("c.xyz", "2\n\nC 0 0 0\nC 0 0 nan\n", r"c\.xyz: the positions of 2 atoms are not"),
        ("a.json", "{", r"a\.json: not a readable JARVIS record"),
        ("b.json", "[]", r"b\.json: no record of JARVIS: it takes an entry, or a list of entries"),
        ("c.json", {"jid": "x"}, r"c\.json: no record of JARVIS: it takes atoms with lattice_mat"),
        ("d.json", JARVIS_ATOMS | {"elements": ["Mo", "S", "Q"]}, r"d\.json: 'Q' is no element"),
        (
            "e.json",
            JARVIS_ATOMS | {"lattice_mat": np.zeros((3, 3)).tolist()},
            r"e\.json: the vectors of the cell",
        ),
        ("f.json", JARVIS_ATOMS | {"elements": ["Mo"]}, r"f\.json: the positions of 1 atoms are not 1 times"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path, name, content, says):
    with pytest.raises(ValueError, match=says) as caught:
        load_structure(write(tmp_path, name, content))

    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"nowhere\.cif: there is no such file"):
        load_structure("nowhere.cif")
    with pytest.raises(ValueError, match="diamond: no such structure; it takes a file, or graphene"):
        structure_of("diamond")


# -- structures of our own -------------------------------------------------------------------------


def test_the_known_structures_have_the_bonds_of_their_lattice_constants():
    """Derived from the lattice constants, whose sources are in known_structures.py."""
    lengths = {name: np.unique(bonds_of(make()).lengths_nm.round(6)) for name, make in KNOWN.items()}

    assert lengths["graphene"] == pytest.approx([GRAPHENE_NM / math.sqrt(3)], abs=1e-6)
    assert lengths["gaas"] == pytest.approx([GAAS_NM * math.sqrt(3) / 4], abs=1e-6)
    assert lengths["mos2"] == pytest.approx([0.2417], abs=1e-4)  # Mo-S, of z = 0.621
    assert sorted(coordination(structure_of("mos2"))) == [3, 3, 6]
    assert set(coordination(structure_of("gaas"))) == {4}
    assert MOS2_NM == 0.31602


def test_silicon_in_graphene_has_three_bonds_of_the_length_that_was_found():
    """0.169 to 0.178 nm: Zhou et al., PRL 109, 206803 (2012)."""
    sheet = structure_of("silicon-in-graphene")
    bonds = bonds_of(sheet)
    silicon = int(np.flatnonzero(sheet.numbers == 14)[0])
    at_silicon = bonds.lengths_nm[bonds.first == silicon]

    assert counts(sheet) == {6: 71, 14: 1}
    assert set(coordination(sheet)) == {3}
    assert len(at_silicon) == 3
    assert 0.169 < at_silicon.min() <= at_silicon.max() < 0.178
    assert bonds.lengths_nm.min() > 0.138


# -- cells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "by", [(2, 3, 1), [[1, 1, 0], [-1, 1, 0], [0, 0, 1]], [[2, 1, 0], [0, 3, 0], [0, 0, 1]]]
)
def test_a_supercell_is_the_same_crystal_with_as_many_more_atoms(by):
    crystal = structure_of("gaas")
    bigger = supercell(crystal, by)
    times = round(abs(np.linalg.det(np.diag(by) if np.ndim(by) == 1 else by)))

    assert len(bigger.numbers) == times * 8
    assert bigger.volume_nm3 == pytest.approx(times * crystal.volume_nm3)
    assert set(coordination(bigger)) == {4}
    assert bonds_of(bigger).lengths_nm == pytest.approx(GAAS_NM * math.sqrt(3) / 4)
    assert (bigger.formula, bigger.space_group) == (crystal.formula, crystal.space_group)


def test_a_supercell_needs_a_volume_and_a_direction_that_repeats():
    with pytest.raises(ValueError, match="takes three whole numbers or a matrix of them, with a volume"):
        supercell(structure_of("gaas"), (1, 0, 1))
    with pytest.raises(ValueError, match="supercell along vector 3: the structure does not repeat along it"):
        supercell(structure_of("mos2"), (2, 2, 2))


def test_the_orthogonal_cell_of_a_hexagonal_sheet_is_a_by_root_three_a():
    for name, a_nm, atoms in (("graphene", GRAPHENE_NM, 4), ("mos2", MOS2_NM, 6)):
        sheet = orthogonal_cell(structure_of(name))
        assert sheet.cell_nm == pytest.approx(np.diag([a_nm, a_nm * math.sqrt(3), 2.0]))
        assert len(sheet.numbers) == atoms
        assert sorted(set(coordination(sheet))) == sorted(set(coordination(structure_of(name))))
        assert bonds_of(sheet).lengths_nm == pytest.approx(bonds_of(structure_of(name)).lengths_nm[0])


def test_the_orthogonal_cell_of_a_primitive_cubic_face_centred_crystal_is_exact():
    half = GAAS_NM / 2
    primitive = Structure(
        cell_nm=np.array([[0, half, half], [half, 0, half], [half, half, 0]]),
        positions_nm=np.array([[0.0, 0, 0], [GAAS_NM / 4] * 3]),
        numbers=np.array([31, 33]),
    )
    right = orthogonal_cell(primitive)

    assert sorted(np.diag(right.cell_nm)) == pytest.approx([GAAS_NM / 2**0.5, GAAS_NM / 2**0.5, GAAS_NM])
    assert len(right.numbers) == 4
    assert bonds_of(right).lengths_nm == pytest.approx(GAAS_NM * math.sqrt(3) / 4)


def test_a_crystal_without_right_angles_is_sheared_as_little_as_is_allowed_and_says_so():
    oblique = Structure(
        cell_nm=np.array([[0.4, 0, 0], [0.006, 0.5, 0], [0, 0, 0.6]]),
        positions_nm=np.zeros((1, 3)),
        numbers=np.array([79]),
    )
    right = orthogonal_cell(oblique)

    assert right.cell_nm == pytest.approx(np.diag([0.4, math.hypot(0.5, 0.006), 0.6]))
    assert "sheared by 0.0120" in right.history[-1]
    with pytest.raises(ValueError, match="no cell with right angles is near; allow more"):
        orthogonal_cell(oblique, most_strain=0.001, most_steps=2)


@pytest.mark.parametrize(
    ("zone", "seen_nm", "period_nm"),
    [
        ((0, 0, 1), (GAAS_NM, GAAS_NM), GAAS_NM),
        ((1, 1, 0), (GAAS_NM / math.sqrt(2), GAAS_NM), GAAS_NM * math.sqrt(2)),
        ((2, 2, 0), (GAAS_NM / math.sqrt(2), GAAS_NM), GAAS_NM * math.sqrt(2)),
        ((1, 1, 1), (GAAS_NM * math.sqrt(2 / 3), GAAS_NM * math.sqrt(2 / 3)), GAAS_NM * math.sqrt(3)),
    ],
)
def test_along_a_zone_axis_a_cubic_crystal_shows_the_cell_that_geometry_says(zone, seen_nm, period_nm):
    view = along_zone(structure_of("gaas"), zone)

    assert view.cell_nm[2] == pytest.approx([0, 0, period_nm], abs=1e-12)
    assert np.linalg.norm(view.cell_nm[:2, :2], axis=1) == pytest.approx(seen_nm)
    assert view.cell_nm[0, 1] == pytest.approx(0, abs=1e-12)
    assert np.linalg.det(view.cell_nm) == pytest.approx(GAAS_NM**3)
    assert bonds_of(view).lengths_nm == pytest.approx(GAAS_NM * math.sqrt(3) / 4)


def test_the_dumbbells_of_gallium_arsenide_along_110_are_a_quarter_of_a_apart():
    """The columns of Ga and As along [110] form pairs of a/4 = 0.141 nm: textbook STEM of zincblende."""
    view = along_zone(structure_of("gaas"), (1, 1, 0))
    block = cut(view, (0, 0, 0), (2.0, 2.0, view.cell_nm[2, 2]))
    gallium, arsenic = (block.positions_nm[block.numbers == n, :2] for n in (31, 33))
    inner = np.all((gallium > 0.3) & (gallium < 1.7), axis=1)
    apart = np.linalg.norm(gallium[inner, None] - arsenic[None], axis=2).min(axis=1)

    assert apart == pytest.approx(GAAS_NM / 4)


def test_a_block_of_whole_cells_holds_their_atoms_and_neighbouring_blocks_share_none():
    crystal = structure_of("gaas")
    edge, plane = 5 * GAAS_NM, 1.25 * GAAS_NM  # a plane of atoms
    block = cut(crystal, (0, 0, 0), (edge, edge, edge))
    left, right = (cut(crystal, (x, 0, 0), (x + plane, edge, edge)) for x in (0, plane))
    both = cut(crystal, (0, 0, 0), (2 * plane, edge, edge))

    assert counts(block) == {31: 500, 33: 500}
    assert block.periodic == (False, False, False)
    assert len(left.numbers) + len(right.numbers) == len(both.numbers)


def test_a_block_too_large_or_without_atoms_is_refused():
    with pytest.raises(ValueError, match=r"more than 2,000,000 atoms; take a smaller block"):
        cut(structure_of("gaas"), (0, 0, 0), (1000, 1000, 1000))
    with pytest.raises(ValueError, match="there is no atom from"):
        cut(structure_of("graphene"), (0, 0, 0.5), (1, 1, 1))
    with pytest.raises(ValueError, match="is empty; raise its upper corner"):
        cut(structure_of("graphene"), (0, 0, 0), (0, 1, 1))


@pytest.mark.parametrize("zone", [(0, 0, 0), (10, 0, 0)])
def test_a_zone_axis_that_is_none_is_refused(zone):
    with pytest.raises(ValueError, match="it takes three indices up to 9, not all 0"):
        along_zone(structure_of("gaas"), zone)
    with pytest.raises(ValueError, match=r"a structure that is no crystal takes \[0, 0, 1\]"):
        along_zone(structure_of("mos2"), (1, 0, 0))


# -- defects -----------------------------------------------------------------------------------------


def test_dopants_are_as_many_as_asked_for_and_the_same_for_the_same_seed():
    sheet = supercell(structure_of("mos2"), (10, 10, 1))
    one, same, other = (
        doped(sheet, "W", chosen_sites(sheet, "Mo", 0.07, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )

    assert counts(one) == {42: 93, 74: 7, 16: 200}
    assert (one.formula, one.composition) == ("MoS2", "Mo93W7S200")
    assert Counter(one.sites.tolist())["W in the place of Mo"] == 7
    assert np.array_equal(one.numbers, same.numbers)
    assert not np.array_equal(one.numbers, other.numbers)
    assert np.array_equal(one.positions_nm, sheet.positions_nm)


def test_a_vacancy_leaves_its_neighbours_with_a_bond_less():
    sheet = supercell(structure_of("graphene"), (8, 8, 1))
    holed = with_vacancies(sheet, [37])

    assert len(holed.numbers) == 127
    assert dict(Counter(coordination(holed).tolist())) == {2: 3, 3: 124}
    assert holed.sites[coordination(holed) == 2].tolist() == ["C beside a vacancy"] * 3
    with pytest.raises(ValueError, match="no atom would be left"):
        with_vacancies(sheet, np.arange(128))
    with pytest.raises(ValueError, match="there are atoms 0 to 127; not 128 to 128"):
        with_vacancies(sheet, [128])


def test_what_is_not_there_cannot_be_replaced():
    sheet = structure_of("mos2")
    with pytest.raises(ValueError, match="there is no Fe; name one of S, Mo"):
        chosen_sites(sheet, "Fe", 0.1, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"a fraction of 1\.5 of S; it takes 0 to 1"):
        chosen_sites(sheet, "S", 1.5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'Xx' is no element; it takes a symbol such as"):
        doped(sheet, "Xx", [0])


@pytest.mark.parametrize("crosses_the_edge", [False, True])
@pytest.mark.parametrize("is_backward", [False, True])
def test_a_turned_bond_makes_two_rings_of_five_and_two_of_seven(crosses_the_edge, is_backward):
    """Stone and Wales, Chem. Phys. Lett. 128, 501 (1986): 5-7-7-5, every atom keeps three bonds."""
    sheet = supercell(structure_of("graphene"), (8, 8, 1))
    bonds = bonds_of(sheet)
    straight = sheet.positions_nm[bonds.second] - sheet.positions_nm[bonds.first]
    crosses = np.linalg.norm(straight - bonds.apart_nm, axis=1) > 0.1
    at = np.flatnonzero((crosses == crosses_the_edge) & ((bonds.first > bonds.second) == is_backward))[7]
    bond = (int(bonds.first[at]), int(bonds.second[at]))
    turned_sheet = with_stone_wales(sheet, bond)
    after = bonds_of(turned_sheet)
    lengths = after.lengths_nm

    assert set(coordination(turned_sheet)) == {3}
    assert [ring_sizes(turned_sheet, atom) for atom in bond] == [[5, 7, 7]] * 2
    for other in {int(b) for atom in bond for b in after.of(atom)} - set(bond):
        assert ring_sizes(turned_sheet, other) == [5, 6, 7]
    assert 0.13 < lengths.min() < lengths.max() < 0.15
    before = bonds.apart_nm[(bonds.first == bond[0]) & (bonds.second == bond[1])][0]
    now = after.apart_nm[(after.first == bond[0]) & (after.second == bond[1])][0]
    assert abs(before @ now) < 1e-4 * np.linalg.norm(before) * np.linalg.norm(now)
    assert np.ptp(turned_sheet.positions_nm[:, 2]) == 0


def test_only_a_bond_of_a_threefold_sheet_can_be_turned():
    with pytest.raises(ValueError, match="atoms 0 and 1 are not bonded to each other and to two more each"):
        with_stone_wales(supercell(structure_of("gaas"), (2, 2, 2)), (0, 1))


@pytest.mark.parametrize("tilt_deg", [8.0, 21.0])
def test_two_grains_are_tilted_as_asked_and_no_atoms_are_too_near(tilt_deg):
    crystal = structure_of("gaas")
    block = two_grains(
        crystal, (-4, -4, 0), (4, 4, GAAS_NM), tilt_deg=tilt_deg, at_nm=(0.5, 0), normal_deg=30
    )
    beyond = (block.positions_nm[:, :2] - (0.5, 0)) @ (math.cos(math.pi / 6), 0.5)
    bonds = bonds_of(block)
    inner = np.all(np.abs(block.positions_nm[:, :2]) < 3.4, axis=1)

    def orientation_deg(is_grain: np.ndarray) -> float:
        """Of the fourfold lattice, by the bonds as they are seen: those of zincblende lie along <110>."""
        apart = bonds.apart_nm[(is_grain & inner)[bonds.first]]
        angles = np.arctan2(apart[:, 1], apart[:, 0])
        return float(np.degrees(np.angle(np.exp(4j * angles).mean())) / 4)

    difference = orientation_deg(beyond > 1) - orientation_deg(beyond < -1)
    assert difference % 90 == pytest.approx(tilt_deg, abs=1e-6)
    assert bonds.lengths_nm.min() >= 0.8 * GAAS_NM * math.sqrt(3) / 4 - 1e-9
    perfect = 8 * 64 * GAAS_NM / GAAS_NM**3
    assert 0.95 * perfect < len(block.numbers) < 1.01 * perfect


# -- strain and polarity -------------------------------------------------------------------------


def test_a_homogeneous_strain_stretches_the_cell_and_keeps_the_fractional_places():
    crystal = structure_of("gaas")
    stretched = strained(crystal, np.diag([0.02, -0.01, 0.0]))
    sheared = strained(crystal, [[0.0, 0.03], [0.0, 0.0]])

    assert np.diag(stretched.cell_nm) == pytest.approx(GAAS_NM * np.array([1.02, 0.99, 1.0]))
    assert stretched.fractional == pytest.approx(crystal.fractional)
    assert sheared.cell_nm[0] == pytest.approx(GAAS_NM * np.array([1.0, 0.0, 0.0]))
    assert sheared.cell_nm[1] == pytest.approx(GAAS_NM * np.array([0.03, 1.0, 0.0]))  # x goes with y
    with pytest.raises(ValueError, match="turns the crystal inside out"):
        strained(crystal, -2 * np.eye(3))


def test_an_inclusion_pushes_most_at_its_radius_and_a_wall_slips_its_two_sides():
    sheet = cut(structure_of("graphene"), (-5, -5, -1), (5, 5, 1))
    at = sheet.positions_nm[:, :2]
    pushed = (with_inclusion(sheet, 0.03, (0, 0), 1.5).positions_nm - sheet.positions_nm)[:, :2]
    slipped = (with_wall(sheet, 0.02, (0, 0), 0.5, 90.0).positions_nm - sheet.positions_nm)[:, :2]
    size = np.linalg.norm(pushed, axis=1)

    assert size.max() == pytest.approx(0.03, rel=1e-3)
    assert np.linalg.norm(at[size.argmax()]) == pytest.approx(1.5, abs=0.1)
    assert pushed[:, 0] * at[:, 1] == pytest.approx(pushed[:, 1] * at[:, 0])
    # The normal is +y: far above it all go 0.02 along -x, far below along +x.
    assert slipped[at[:, 1] > 3] == pytest.approx(
        np.array([[-0.02, 0.0]] * int((at[:, 1] > 3).sum())), abs=1e-6
    )
    assert slipped[at[:, 1] < -3, 0] == pytest.approx(0.02, abs=1e-6)


def test_a_polar_displacement_moves_one_sublattice_and_turns_round_at_a_wall():
    perovskite = Structure(
        cell_nm=0.4 * np.eye(3),
        positions_nm=0.4
        * np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
        numbers=np.array([56, 22, 8, 8, 8]),
    )
    block = cut(perovskite, (-4, -1, 0), (4, 1, 0.4))
    one = polar(block, "Ti", (0.0, 0.012)).positions_nm - block.positions_nm
    walled = polar(block, "Ti", (0.0, 0.012), wall_width_nm=0.5).positions_nm - block.positions_nm
    titanium = block.numbers == 22
    expected = 0.012 * np.tanh(block.positions_nm[titanium, 0] / 0.5)

    assert one[titanium] == pytest.approx(np.array([[0, 0.012, 0]] * int(titanium.sum())))
    assert not one[~titanium].any()
    assert walled[titanium, 1] == pytest.approx(expected)
    with pytest.raises(ValueError, match="there is no Pb; name one of O, Ti, Ba"):
        polar(block, "Pb", (0.0, 0.01))


def test_turning_a_crystal_turns_its_cell_too():
    quarter = turned(structure_of("graphene"), 90.0)

    assert quarter.cell_nm[0] == pytest.approx([0, GRAPHENE_NM, 0], abs=1e-12)
    assert bonds_of(quarter).lengths_nm == pytest.approx(GRAPHENE_NM / math.sqrt(3))


def test_every_edit_says_what_it_did():
    sheet = supercell(structure_of("mos2"), (4, 4, 1))
    sheet = with_vacancies(doped(sheet, "W", [0, 1]), [5])

    assert sheet.history == (
        "supercell 4 x 4 x 1", "2 of 48 atoms replaced by W", "1 of 48 atoms taken out",
    )  # fmt: skip
    assert sheet.facts()["history"] == "; ".join(sheet.history)
