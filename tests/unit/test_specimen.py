"""The sheet, or any structure: bonds, defects and grains are what the configuration says."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
from ase.build import graphene

from simulators.kinetics import KineticsConfig
from simulators.known_structures import GAAS_NM, structure_of
from simulators.specimen import (
    BESIDE_SI,
    BESIDE_VACANCY,
    FOUR_FOLD_SI,
    IN_ODD_RING,
    SILICON,
    SITE_NAMES,
    THREE_FOLD_SI,
    Specimen,
    SpecimenConfig,
    grow,
    of_structure,
)
from simulators.stem import StemConfig, StemInstrument
from simulators.structure_specimen import DopantConfig, StructureConfig, VacancyConfig
from simulators.structures import Structure, load_structure, save_structure
from streamer.messages import Request

PERFECT = SpecimenConfig(
    orientation_deg=0.0,
    three_fold_si_per_nm2=0.0,
    four_fold_si_per_nm2=0.0,
    vacancies_per_nm2=0.0,
    has_grain_boundary=False,
)
LOWER, UPPER = (-3.0, -3.0), (3.0, 3.0)


def sheet(config: SpecimenConfig, seed: int = 1) -> Specimen:
    return grow(config, LOWER, UPPER, np.random.default_rng(seed))


def inside(specimen: Specimen, margin_nm: float = 0.6) -> np.ndarray:
    return np.all(np.abs(specimen.positions_nm) < 3.0 - margin_nm, axis=1)


def bond_lengths(specimen: Specimen, atoms: np.ndarray) -> np.ndarray:
    """Lengths of the bonds of some atoms, NaN where there is none, shape (n, 4)."""
    ends = specimen.neighbours[atoms]
    lengths = np.linalg.norm(specimen.positions_nm[ends] - specimen.positions_nm[atoms][:, None], axis=2)
    return np.where(ends >= 0, lengths, np.nan)


def test_a_perfect_sheet_is_the_graphene_of_ase():
    specimen = sheet(PERFECT)
    cell = graphene(a=2.46, size=(40, 40, 1))
    reference = cell.positions[:, :2] / 10
    one = specimen.positions_nm[np.argmin(np.linalg.norm(specimen.positions_nm, axis=1))]
    # Shift ASE's sheet so that one of its atoms, of either sublattice, lies on ours.
    middle = np.argsort(np.linalg.norm(reference - reference.mean(axis=0), axis=1))[:6]
    ours = specimen.positions_nm[inside(specimen)]
    worst = []
    for start in middle:
        shifted = reference - reference[start] + one
        distances = np.linalg.norm(ours[:, None] - shifted[None], axis=2).min(axis=1)
        worst.append(distances.max())

    assert min(worst) < 1e-6
    assert len(ours) == pytest.approx(4.8**2 * 38.17, rel=0.03)


def test_each_silicon_has_the_neighbours_and_the_bonds_of_its_kind():
    specimen = sheet(SpecimenConfig(has_grain_boundary=False))
    three = np.flatnonzero(specimen.site_class == THREE_FOLD_SI)
    four = np.flatnonzero(specimen.site_class == FOUR_FOLD_SI)
    lengths_three, lengths_four = bond_lengths(specimen, three), bond_lengths(specimen, four)

    assert len(three) > 3
    assert len(four) > 2
    assert set(specimen.numbers[np.r_[three, four]]) == {SILICON}
    assert np.count_nonzero(specimen.numbers == SILICON) == len(three) + len(four)
    assert np.isfinite(lengths_three).sum(axis=1).tolist() == [3] * len(three)
    assert np.isfinite(lengths_four).sum(axis=1).tolist() == [4] * len(four)
    assert np.nanmin(lengths_three) > 0.168
    assert np.nanmax(lengths_three) < 0.178
    assert np.nanmin(lengths_four) > 0.170
    assert np.nanmax(lengths_four) < 0.190


def test_a_vacancy_leaves_three_carbons_with_two_bonds():
    config = SpecimenConfig(
        three_fold_si_per_nm2=0, four_fold_si_per_nm2=0, vacancies_per_nm2=0.2, has_grain_boundary=False
    )
    specimen = sheet(config)
    beside = np.flatnonzero(specimen.site_class == BESIDE_VACANCY)
    bonds = np.isfinite(bond_lengths(specimen, beside)).sum(axis=1)
    perfect = np.count_nonzero(inside(sheet(PERFECT), 0.35))

    assert len(beside) == 3 * round(0.2 * perfect / 38.17)
    assert set(bonds.tolist()) == {2}


def test_a_grain_boundary_is_made_of_rings_of_five_and_seven_without_broken_bonds():
    config = SpecimenConfig(three_fold_si_per_nm2=0, four_fold_si_per_nm2=0, vacancies_per_nm2=0)
    specimen = sheet(config)
    inner = np.flatnonzero(inside(specimen))
    lengths = bond_lengths(specimen, inner)

    assert np.count_nonzero(specimen.site_class[inner] == IN_ODD_RING) > 20
    assert set(np.isfinite(lengths).sum(axis=1).tolist()) == {3}
    assert np.nanmin(lengths) > 0.13
    assert np.nanmax(lengths) < 0.155


def test_the_two_grains_are_tilted_as_configured():
    config = SpecimenConfig(
        three_fold_si_per_nm2=0, four_fold_si_per_nm2=0, vacancies_per_nm2=0, tilt_deg=10.0
    )
    specimen = grow(config, (-5.0, -5.0), (5.0, 5.0), np.random.default_rng(0))
    normal = np.array([np.cos(np.deg2rad(205)), np.sin(np.deg2rad(205))])
    distance = specimen.positions_nm @ normal - config.boundary_distance_nm

    def orientation_deg(atoms: np.ndarray) -> float:
        ends = specimen.neighbours[atoms, :3]
        apart = specimen.positions_nm[ends] - specimen.positions_nm[atoms][:, None]
        angles = np.arctan2(apart[..., 1], apart[..., 0])
        return float(np.rad2deg(np.angle(np.exp(6j * angles).mean()) / 6))

    is_inner = np.all(np.abs(specimen.positions_nm) < 4.2, axis=1)
    first = orientation_deg(np.flatnonzero(is_inner & (distance < -1.5)))
    second = orientation_deg(np.flatnonzero(is_inner & (distance > 1.5)))

    assert (second - first) % 60 == pytest.approx(10.0, abs=1.0)
    assert (first - config.orientation_deg) % 60 == pytest.approx(30.0, abs=0.5)  # bonds: 30° off the zigzag


def test_the_same_seed_gives_the_same_sheet_and_another_seed_another():
    one, same, other = (sheet(SpecimenConfig(), seed) for seed in (3, 3, 4))

    assert np.array_equal(one.positions_nm, same.positions_nm)
    assert np.array_equal(one.numbers, same.numbers)
    assert not np.array_equal(np.flatnonzero(one.numbers == 14), np.flatnonzero(other.numbers == 14))


def test_every_class_of_site_has_a_name_and_occurs():
    counts = np.bincount(sheet(SpecimenConfig()).site_class, minlength=len(SITE_NAMES))

    assert len(counts) == len(SITE_NAMES)
    assert counts.min() > 0


def test_defects_that_do_not_fit_are_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"do not fit 5 nm apart.*lower the densities"):
        sheet(SpecimenConfig(defect_distance_nm=5.0))


@pytest.mark.parametrize(
    ("field", "value", "takes"),
    [
        ("three_fold_si_per_nm2", -0.1, "0 to 1"),
        ("defect_distance_nm", float("nan"), "0.5 to 5"),
        ("tilt_deg", 45.0, "-30 to 30"),
        ("orientation_deg", float("inf"), "a finite number"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value, takes):
    with pytest.raises(ValueError, match=f"specimen.{field} is {value}; it takes {takes}"):
        SpecimenConfig(**{field: value})


def test_a_sheet_of_no_size_is_refused():
    with pytest.raises(ValueError, match="it takes 1 to 100 nm"):
        grow(PERFECT, (0.0, 0.0), (0.5, 3.0), np.random.default_rng(0))


# -- any structure -----------------------------------------------------------------------------------


def specimen_of(structure: str, seed: int = 1, **crystal: object) -> Specimen:
    config = SpecimenConfig(structure=structure, crystal=StructureConfig(**crystal))
    return grow(config, LOWER, UPPER, np.random.default_rng(seed))


def atoms_within(specimen: Specimen, width_nm: float, height_nm: float) -> int:
    """Atoms in a rectangle whose edges go between them."""
    x, y = (specimen.positions_nm + (width_nm / 2 + 0.013, height_nm / 2 + 0.017)).T
    return int(np.count_nonzero((x >= 0) & (x < width_nm) & (y >= 0) & (y < height_nm)))


def test_the_default_sheet_is_what_it_was_before_structures_could_be_loaded():
    """The trained encoder has seen these sheets; positions rounded to 1e-6 nm, whatever the machine."""
    specimen = grow(SpecimenConfig(), (-4.0, -4.0), (4.0, 4.0), np.random.default_rng(1))
    drawn = specimen.positions_nm.round(6) + 0.0
    told = hashlib.sha1(drawn.tobytes() + specimen.neighbours.tobytes() + specimen.site_class.tobytes())

    assert told.hexdigest() == "73f95adc4908a327fecf02b3280e345ae8d2f8e0"


def test_a_sheet_read_back_from_its_coordinates_has_the_bonds_and_classes_that_it_had(tmp_path):
    sheet_before = sheet(SpecimenConfig())
    flat = Structure(
        cell_nm=np.diag([6.0, 6.0, 1.0]),
        positions_nm=np.c_[sheet_before.positions_nm, np.zeros(len(sheet_before.numbers))],
        numbers=sheet_before.numbers,
        periodic=(False, False, False),
    )
    save_structure(flat, tmp_path / "sheet.xyz")
    again = of_structure(load_structure(tmp_path / "sheet.xyz"))
    is_inner = inside(sheet_before, 0.8)

    assert again.is_sheet
    assert set(sheet_before.site_class[is_inner]) == set(range(6))
    assert np.array_equal(again.site_class[is_inner], sheet_before.site_class[is_inner])
    assert np.array_equal(again.neighbours[is_inner], sheet_before.neighbours[is_inner])


def test_graphene_as_a_structure_is_the_sheet_without_defects():
    one, a_nm = specimen_of("graphene"), 0.246
    ours = inside(one, 0.4)

    assert one.is_sheet
    assert not one.site_class[ours].any()
    assert np.nanmax(bond_lengths(one, np.flatnonzero(ours))) == pytest.approx(a_nm / math.sqrt(3))
    assert atoms_within(one, 20 * a_nm, 12 * math.sqrt(3) * a_nm) == 4 * 20 * 12


def test_defects_of_a_graphene_structure_get_the_classes_of_the_sheet():
    doped = specimen_of(
        "graphene",
        dopants=(DopantConfig(element="Si", replaces="C", fraction=0.01),),
        vacancies=(VacancyConfig(element="C", fraction=0.002),),
        stone_wales_per_nm2=0.06,
    )
    silicon = np.flatnonzero((doped.site_class == THREE_FOLD_SI) & inside(doped, 0.4))
    bonds = bond_lengths(doped, silicon)

    assert doped.is_sheet
    assert np.count_nonzero(doped.numbers == SILICON) == 14
    assert np.nanmin(bonds) > 0.165
    assert np.nanmax(bonds) < 0.18
    assert {BESIDE_SI, BESIDE_VACANCY, IN_ODD_RING} <= set(doped.site_class.tolist())
    assert "2 bonds turned" in doped.facts["history"]


def test_turned_bonds_mark_the_sixteen_atoms_of_their_rings():
    """Two rings of five and two of seven share 8 of their 24 corners: 16 atoms (counted on paper)."""
    specimen = specimen_of("graphene", stone_wales_per_nm2=0.08)

    assert np.count_nonzero(specimen.site_class == IN_ODD_RING) == 3 * 16


def test_the_classes_of_another_structure_are_the_names_of_its_sites():
    specimen = specimen_of(
        "mos2",
        dopants=(DopantConfig(element="W", replaces="Mo", fraction=0.1),),
        vacancies=(VacancyConfig(element="S", fraction=0.02),),
    )
    names = np.array(specimen.site_names)[specimen.site_class]

    assert not specimen.is_sheet
    assert specimen.site_names[:3] == ("Mo", "Mo beside a vacancy", "S")
    assert set(specimen.numbers[names == "W in the place of Mo"]) == {74}
    assert set(specimen.numbers[names == "S"]) == {16}
    tungsten, molybdenum = (np.count_nonzero(specimen.numbers == z) for z in (74, 42))
    assert tungsten == round(0.1 * (tungsten + molybdenum))


def test_a_specimen_fills_the_field_with_whole_periods_along_the_beam():
    specimen = specimen_of("gaas", zone_axis=(1, 1, 0), layers=7)

    assert atoms_within(specimen, 14 * GAAS_NM / math.sqrt(2), 10 * GAAS_NM) == 14 * 10 * 7 * 8
    assert specimen.positions_nm.min(axis=0) == pytest.approx(LOWER, abs=GAAS_NM)
    assert specimen.positions_nm.max(axis=0) == pytest.approx(UPPER, abs=GAAS_NM)


def test_y_points_down_and_the_rotation_goes_from_x_to_y():
    """MoS2 has no mirror along x: a flipped axis would put the sulphur on the other side."""
    up = structure_of("mos2")
    straight, turned = specimen_of("mos2"), specimen_of("mos2", rotation_deg=20.0)

    def sulphur_from_molybdenum(specimen: Specimen) -> float:
        near = int(np.argmin(np.linalg.norm(specimen.positions_nm, axis=1) + (specimen.numbers != 42)))
        ends = specimen.neighbours[near][specimen.neighbours[near] >= 0]
        x, y = (specimen.positions_nm[ends] - specimen.positions_nm[near]).T
        return float(np.degrees(np.angle(np.exp(3j * np.arctan2(y, x)).mean())) / 3)

    assert up.positions_nm[1, 1] > 0  # up in the file
    assert sulphur_from_molybdenum(straight) == pytest.approx(30.0)  # 270 = 30 modulo 120: down in the image
    assert sulphur_from_molybdenum(turned) == pytest.approx(50.0)


def test_strain_and_polarity_of_a_structure_move_its_atoms():
    plain = specimen_of("gaas")
    stretched = specimen_of("gaas", strain=(0.05, 0.0, 0.0))
    shifted = specimen_of("gaas", polar_element="As", polar_shift_nm=(0.02, 0.0))
    pushed = grow(SpecimenConfig(structure="gaas", strain_nm=0.05), LOWER, UPPER, np.random.default_rng(1))

    assert len(stretched.numbers) == pytest.approx(len(plain.numbers) / 1.05, rel=0.02)
    move = shifted.positions_nm - plain.positions_nm
    assert move == pytest.approx(np.where((plain.numbers == 33)[:, None], [0.02, 0.0], 0.0))
    assert np.linalg.norm(pushed.strain_nm, axis=1).max() == pytest.approx(0.05, rel=0.05)
    assert pushed.positions_nm == pytest.approx(plain.positions_nm + pushed.strain_nm)


@pytest.mark.parametrize(
    ("structure", "crystal", "says"),
    [
        ("unobtainium", {}, "unobtainium: no such structure; it takes a file, or graphene, silicon-in"),
        ("mos2", {"layers": 3}, "layers is 3; a structure that does not repeat along the beam takes 1"),
        ("mos2", {"zone_axis": (1, 1, 0)}, r"a structure that is no crystal takes \[0, 0, 1\]"),
        ("gaas", {"stone_wales_per_nm2": 0.1}, "takes a flat sheet whose atoms have three bonds each"),
        ("gaas", {"polar_element": "O"}, "there is no O; name one of Ga, As"),
        ("gaas", {"layers": 2000, "zone_axis": (1, 1, 1)}, "more than 2,000,000 atoms"),
    ],
)
def test_a_structure_that_cannot_be_had_so_is_refused_in_one_line(structure, crystal, says):
    with pytest.raises(ValueError, match=says) as caught:
        specimen_of(structure, **crystal)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("layers", 0), ("strain", (0.0, 0.5, 0.0)), ("stone_wales_per_nm2", float("nan"))]
)
def test_a_key_of_the_crystal_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"specimen.crystal.{field} is .*; it takes"):
        StructureConfig(**{field: value})


# -- under the microscope ----------------------------------------------------------------------------


def microscope(structure: str, **more: object) -> StemInstrument:
    specimen = SpecimenConfig(structure=structure)
    still = {"rows": 64, "cols": 64, "field_of_view_nm": 1.6, "seed": 3}
    return StemInstrument(StemConfig(specimen=specimen, **(still | more)), started_at_s=1e9)


def test_what_is_known_of_a_record_is_in_the_truth_and_in_the_instruments_name(tmp_path):
    atoms = {
        "lattice_mat": [[3.16, 0, 0], [-1.58, 2.7366, 0], [0, 0, 20]],
        "coords": [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.42], [2 / 3, 1 / 3, 0.58]],
        "elements": ["Mo", "S", "S"],
        "cartesian": False,
    }
    entry = {"jid": "JVASP-X", "formula": "MoS2", "spg_symbol": "P-6m2", "gap": 1.5, "atoms": atoms}
    path = tmp_path / "sheet.json"
    path.write_text(json.dumps([entry]))
    instrument = microscope(str(path))
    truth = instrument.truth()

    assert instrument.name == "simulated STEM of MoS2 (JVASP-X)"
    assert str(truth["structure_formula"]) == "MoS2"
    assert str(truth["structure_space_group"]) == "P-6m2"
    assert str(truth["structure_name"]) == "JVASP-X"
    assert str(truth["structure_source"]) == str(path)
    assert json.loads(str(truth["structure_properties"])) == {"gap": 1.5}
    assert truth["site_names"].tolist() == ["Mo", "S"]
    assert "spectra" not in truth


def test_the_atoms_of_a_structure_are_seen_where_the_truth_has_them():
    """Molybdenum is (42 / 16)^1.91 = 6.3 times as bright as a sulphur, of which two lie on one place."""
    instrument = microscope("mos2", carbon_counts=200.0)
    image, truth = instrument.acquire().image[0], instrument.truth()
    seen = truth["positions_nm"] + truth["drift_nm"][0]
    rows, cols = np.round(instrument.config.geometry.to_px(seen)).astype(int).T
    is_in = (rows > 6) & (rows < 58) & (cols > 6) & (cols < 58)
    bright = np.array(
        [image[r - 2 : r + 3, c - 2 : c + 3].max() for r, c in zip(rows[is_in], cols[is_in], strict=True)]
    )
    numbers = truth["numbers"][is_in]

    # The probe's sd of 0.05 nm lets neighbours 0.18 nm away add less than 1 %.
    assert bright[numbers == 42].mean() / bright[numbers == 16].mean() == pytest.approx(3.16, rel=0.1)


def test_a_spectrum_of_what_is_no_sheet_is_refused_with_the_reason():
    request = {
        "session": "s",
        "action": "spectrum",
        "scan_position_nm": (0.0, 0.0),
        "position_nm": (0.0, 0.0),
    }
    ask = Request(id="r", dwell_time_us=100.0, **request)

    refused, _ = microscope("mos2").execute(ask)
    taken, _ = microscope("silicon-in-graphene").execute(ask)

    assert (refused.status, refused.spectrum) == ("refused", None)
    assert "spectra are simulated of sheets of carbon and silicon only" in refused.reason
    assert taken.status == "ok"


def test_a_beam_or_a_probe_that_does_not_know_the_structure_is_refused_before_the_first_frame():
    with pytest.raises(
        ValueError, match=r"stem\.kinetics\.is_on is true; what the beam does is known of flat"
    ):
        microscope("mos2", kinetics=KineticsConfig(is_on=True))
    doped = StructureConfig(dopants=(DopantConfig(element="U", replaces="Mo", fraction=0.5),))
    with pytest.raises(ValueError, match="there is no scattering factor of element 92 for it"):
        StemInstrument(StemConfig(probe="physical", specimen=SpecimenConfig(structure="mos2", crystal=doped)))
