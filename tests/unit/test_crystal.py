"""The known crystal: its columns are where its truth says, in whatever frame they are looked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulators.crystal import CrystalConfig, CrystalStream, preset

# Nothing but drift.
STILL: dict[str, Any] = {"flyback_px": 0, "settle_px": 0, "coil_px": 0, "hum_px": 0, "jitter_px": (0, 0)}
SMALL: dict[str, Any] = {"size_px": 160, "seed": 1, "vacancies": 3, "interstitials": 2, "margin_px": 80.0}


def stream(**changes: Any) -> CrystalStream:
    return CrystalStream(CrystalConfig(**(SMALL | changes)))


def tops(image: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Top of each column of a nearly noiseless image: a quadratic form through the log of nine pixels."""
    v, u = np.mgrid[-1:2, -1:2].reshape(2, -1).astype(float)
    terms = np.linalg.pinv(np.stack([v * v / 2, u * u / 2, v * u, v, u, np.ones(9)], axis=1))
    found = []
    for row, col in np.rint(near).astype(int):
        vv, uu, vu, down, right, _ = terms @ np.log(image[row - 1 : row + 2, col - 1 : col + 2].ravel())
        found.append(np.array([row, col]) - np.linalg.solve([[vv, vu], [vu, uu]], [down, right]))
    return np.array(found)


def inside(positions: np.ndarray, size_px: int, rim_px: float = 6.0) -> np.ndarray:
    return np.all((positions > rim_px) & (positions < size_px - 1 - rim_px), axis=1)


@pytest.mark.parametrize(("rotation_deg", "stage_px"), [(0.0, (0, 0)), (90.0, (20, -9)), (-37.0, (3.5, 30))])
@pytest.mark.parametrize("lattice", ["square", "graphene"])
def test_columns_are_seen_where_the_truth_says(lattice, rotation_deg, stage_px):
    quiet = {"peak_counts": 1e5, "background_counts": 0.0, "jitter_px": (0.0, 0.0), "hum_px": 0.0}
    spacing = 14.0 if lattice == "square" else 22.0
    crystal = stream(
        **quiet,
        lattice=lattice,
        lattice_constant_px=spacing,
        strain_px=0.5,
        stage_error_px=1.0,
        interstitials=0,
    )
    crystal.scan()
    frame = crystal.scan(rotation_deg=rotation_deg, stage_px=stage_px)
    says = frame.seen_px(crystal.real_px)
    chosen = inside(says, 160) & crystal.is_present
    found = tops(frame.image.astype(float) + 1e-3, says[chosen])

    assert np.count_nonzero(chosen) > 50
    assert np.sqrt(((found - says[chosen]) ** 2).mean()) < 0.01
    assert np.abs(found - says[chosen]).max() < 0.05


def test_a_pixel_shows_the_raster_place_that_is_its_own_plus_its_displacement():
    crystal = stream(stage_error_px=1.0, jitter_px=(0.0, 0.0))
    crystal.scan()
    frame = crystal.scan(rotation_deg=90.0, stage_px=(11.0, -7.0))
    displacement = frame.displacement_px()
    pixels = np.array([[40, 50], [8, 150], [130, 20]])
    places = pixels + displacement[:, pixels[:, 0], pixels[:, 1]].T
    # Undo by hand what was commanded: turned by 90 degrees, (row, col) looks at (col, 159 - row).
    specimen = np.stack([places[:, 1], 159 - places[:, 0]], axis=1) - (11.0, -7.0)

    np.testing.assert_allclose(frame.expected_px(specimen), places, atol=1e-9)
    np.testing.assert_allclose(frame.seen_px(specimen), pixels, atol=1e-3)


def test_a_column_moves_with_the_drift():
    crystal = stream(peak_counts=1e5, background_counts=0.0, scale=10.0, **STILL, drift_px_per_frame=0.1)
    first, *_, last = [crystal.scan() for _ in range(4)]
    near = crystal.sites_px[crystal.is_present & inside(crystal.sites_px, 160, 20.0)][::9]
    moved = tops(last.image + 1e-3, last.seen_px(near)) - tops(first.image + 1e-3, first.seen_px(near))

    drift = np.array(last.drift_px) - first.drift_px
    assert np.abs(drift).max() > 0.5
    np.testing.assert_allclose(
        moved.mean(axis=0), drift, atol=0.06
    )  # the columns' mean row is not the middle


def test_the_same_seed_gives_the_same_frames_and_another_seed_others():
    def frames(seed: int) -> bytes:
        crystal = stream(seed=seed, rotations_deg=(0.0, 90.0), stage_error_px=1.0)
        return b"".join(crystal.scan().image.tobytes() for _ in range(3))

    assert frames(5) == frames(5)
    assert frames(5) != frames(6)


def test_the_distortions_are_as_large_as_a_microscope_s():
    for name, least, most in (("stem", 0.8, 1.8), ("pfm", 2.5, 6.0), ("clean", 0.0, 0.0)):
        sizes = []
        for seed in range(4):
            frame = CrystalStream(preset(name, seed=seed)).points().frame
            sizes.append(np.sqrt((frame.displacement_px() ** 2).sum(axis=0).mean()))
        assert least <= np.mean(sizes) <= most


def test_the_drift_swings_by_its_velocity_and_stays_near():
    crystal = stream(seed=3, size_px=32, margin_px=40.0, vacancies=0, interstitials=0)
    drift = np.array([crystal.points().frame.drift_px for _ in range(1500)])

    assert np.std(np.diff(drift, axis=0)) == pytest.approx(0.08, rel=0.15)
    assert np.abs(drift).max() < 6.0


def test_hum_goes_on_from_frame_to_frame_with_its_period_in_rows():
    crystal = stream(hum_period_rows=15.2)
    rows = [
        frame.path.row_offset_px[1] - frame.jitter_px[1]
        for frame in (crystal.points().frame for _ in range(3))
    ]
    hum = np.concatenate(rows)
    row = np.arange(len(hum))
    waves = np.stack([np.sin(2 * np.pi * row / 15.2), np.cos(2 * np.pi * row / 15.2)])
    weights, left, _, _ = np.linalg.lstsq(waves.T, hum, rcond=None)

    assert np.hypot(*weights) == pytest.approx(0.3)
    assert left[0] < 1e-15


@pytest.mark.parametrize("kind", ["inclusion", "wall"])
def test_strain_moves_the_atoms_by_its_field(kind):
    plain, strained = stream(), stream(strain_px=0.5, strain_kind=kind)
    moved = strained.real_px - plain.real_px

    np.testing.assert_allclose(moved, strained.strain_px(plain.sites_px), atol=1e-12)
    grid = np.mgrid[0:160, 0:160].reshape(2, -1).T
    assert np.linalg.norm(strained.strain_px(grid), axis=1).max() == pytest.approx(0.5, rel=0.01)
    np.testing.assert_array_equal(strained.sites_px, plain.sites_px)
    np.testing.assert_array_equal(strained.is_present, plain.is_present)


def test_an_inclusion_pushes_outwards_and_a_wall_slips_along_itself():
    inclusion, wall = stream(strain_px=0.5), stream(strain_px=0.5, strain_kind="wall")
    middle = np.array([0.44, 0.59]) * 160
    around = middle + 0.11 * 160 * np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(inclusion.strain_px(around), [[0.5, 0.0], [0.0, 0.5], [-0.5, 0.0]], atol=1e-12)

    normal = np.array([np.cos(0.97), np.sin(0.97)])
    beyond = 80.0 + np.array([[0.0], [40.0], [-40.0]]) * normal
    slip = wall.strain_px(beyond)
    np.testing.assert_allclose(slip @ normal, 0.0, atol=1e-12)
    np.testing.assert_allclose(slip @ (-normal[1], normal[0]), [0.0, 0.5, -0.5], atol=1e-4)


def test_each_atom_also_has_a_displacement_of_its_own():
    crystal = stream(atom_displacement_px=0.05)

    assert (crystal.real_px - crystal.sites_px).std() == pytest.approx(0.05, rel=0.05)


def test_vacancies_are_dark_interstitials_are_there_and_the_second_sublattice_is_dimmer():
    crystal = stream(scale=0.0, peak_counts=1000.0, background_counts=10.0)
    image = crystal.scan().image

    def brightness(positions: np.ndarray) -> np.ndarray:
        row, col = np.rint(positions[inside(positions, 160, 2.0)]).astype(int).T
        return image[row, col]

    there = crystal.is_present & inside(crystal.sites_px, 160, 2.0)
    is_first = crystal.sublattice == 0
    assert np.count_nonzero(~crystal.is_present) == 3
    assert brightness(crystal.sites_px[~crystal.is_present]).max() < 60
    assert len(crystal.interstitials_px) == 2
    assert brightness(crystal.interstitials_px).min() > 450
    assert brightness(crystal.sites_px[there & is_first]).mean() == pytest.approx(985, abs=30)
    assert brightness(crystal.sites_px[there & ~is_first]).mean() == pytest.approx(597, abs=20)


def test_the_lattice_is_turned_from_the_fast_axis_towards_the_slow_one():
    crystal = stream(lattice_rotation_deg=30.0, lattice_constant_px=20.0)

    np.testing.assert_allclose(crystal.basis_px[0], [10.0, 20.0 * np.cos(np.pi / 6)])
    off = crystal.sites_px[crystal.sublattice == 0] - crystal.origin_px
    steps = off @ np.linalg.inv(crystal.basis_px)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)


def test_neighbours_in_graphene_are_a_bond_apart():
    sites = stream(lattice="graphene", lattice_constant_px=24.0).sites_px
    middle = sites[np.argmin(np.linalg.norm(sites - 80.0, axis=1))]
    nearest = np.sort(np.linalg.norm(sites - middle, axis=1))[1:5]

    np.testing.assert_allclose(nearest, [24 / np.sqrt(3)] * 3 + [24.0], rtol=1e-9)


def test_the_stage_errs_once_for_each_move():
    crystal = stream(stage_error_px=1.0, rotations_deg=(0.0, 0.0, 90.0, 90.0), stage_px=((0.0, 0.0),))
    errors = [crystal.points().frame.stage_error_px for _ in range(5)]

    assert errors[0] == errors[1] == (0.0, 0.0)
    assert errors[2] == errors[3] != errors[1]
    assert errors[4] not in errors[:4]


def test_points_are_the_columns_less_the_jitter_of_their_row_with_noise_on_top():
    crystal = stream(vacancies=20, jitter_px=(0.4, 0.8))
    points = crystal.points(0.0)
    noisy = crystal.points(0.08)
    row = np.rint(points.true_px[:, 0]).astype(int)

    np.testing.assert_allclose(points.seen_px, points.true_px - points.frame.jitter_px[:, row].T)
    without = noisy.seen_px + noisy.frame.jitter_px[:, np.rint(noisy.true_px[:, 0]).astype(int)].T
    assert (without - noisy.true_px).std() == pytest.approx(0.08, rel=0.1)
    assert crystal.is_present[points.site].all()
    assert points.frame.image.size == 0
    wanted = inside(points.frame.seen_px(crystal.real_px, jitter=False), 160, 5.0) & crystal.is_present
    np.testing.assert_array_equal(points.site, np.flatnonzero(wanted))


def test_a_point_and_its_displacement_lead_to_its_site():
    crystal = stream(strain_px=0.3, stage_error_px=0.5)
    crystal.points()
    points = crystal.points(0.0, rotation_deg=90.0, stage_px=(20.0, 5.0))
    field = points.frame.displacement_px(jitter=False)
    row, col = points.true_px.T
    i, j = row.astype(int), col.astype(int)
    v, u = row - i, col - j
    at = (field[:, i, j] * (1 - v) + field[:, i + 1, j] * v) * (1 - u)
    at += (field[:, i, j + 1] * (1 - v) + field[:, i + 1, j + 1] * v) * u
    expected = points.frame.expected_px(crystal.real_px[points.site])

    np.testing.assert_allclose(points.true_px + at.T, expected, atol=0.01)


def test_points_and_images_of_one_seed_go_through_the_same_scan():
    images, points = stream(seed=9), stream(seed=9)
    for _ in range(3):
        one, other = images.scan(), points.points().frame

    np.testing.assert_array_equal(one.displacement_px(), other.displacement_px())


def test_frames_take_rotation_and_stage_in_turn():
    crystal = stream(rotations_deg=(0.0, 90.0), stage_px=((0.0, 0.0), (0.0, 0.0), (5.0, 1.0)))
    frames = [crystal.points().frame for _ in range(4)]

    assert [frame.rotation_deg for frame in frames] == [0.0, 90.0, 0.0, 90.0]
    assert [frame.stage_px for frame in frames] == [(0.0, 0.0), (0.0, 0.0), (5.0, 1.0), (0.0, 0.0)]
    assert [frame.number for frame in frames] == [0, 1, 2, 3]


def test_a_field_beyond_the_crystal_is_refused():
    with pytest.raises(ValueError, match="the crystal ends at 80; take a larger crystal"):
        stream().scan(stage_px=(120.0, 0.0))


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ValueError, match="preset is 'sem'; it takes stem, lowdose, clean, pfm"):
        preset("sem")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peak_counts": float("nan")}, "crystal.peak_counts is nan; it takes 0.01 to 100000"),
        ({"lattice": "cubic"}, "crystal.lattice is 'cubic'; it takes square or graphene"),
        ({"strain_kind": "step"}, "crystal.strain_kind is 'step'; it takes inclusion or wall"),
        ({"rotations_deg": ()}, "crystal.rotations_deg is empty; it takes at least one"),
        ({"seed": -1}, "crystal.seed is -1; it takes 0 to inf"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        CrystalConfig(**fields)


def test_more_defects_than_columns_are_refused():
    with pytest.raises(ValueError, match="the field has only"):
        stream(vacancies=1000)
