"""What was found against what was there, with answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from simulators.scoring import adjusted_rand_index, drift_error_px, match_atoms
from streamer.messages import Atoms, Frame, ScanGeometry

GEOMETRY = ScanGeometry(shape=(101, 101), field_of_view_nm=(10.1, 10.1))


def atoms_at(positions_nm: np.ndarray) -> Atoms:
    n = len(positions_nm)
    frame = Frame(
        session="s",
        number=0,
        acquired_at_s=0.0,
        image=np.zeros((1, 101, 101), np.float32),
        channels=("HAADF",),
        geometry=GEOMETRY,
        dwell_time_us=1.0,
    )
    return Atoms(
        frame=frame,
        positions_px=GEOMETRY.to_px(positions_nm).astype(np.float32),
        confidence=np.ones(n, np.float32),
        amplitude=np.ones(n, np.float32),
        background=0.0,
        contrast=1.0,
    )


def grid_nm() -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(-4.0, 5.0), np.arange(-4.0, 5.0)), axis=-1).reshape(-1, 2)


def test_atoms_found_where_they_are_are_all_right():
    match = match_atoms(atoms_at(grid_nm()), grid_nm(), (0.0, 0.0))
    assert (match.precision, match.recall) == (1.0, 1.0)
    assert match.error_nm == pytest.approx(0.0, abs=1e-5)


def test_a_missed_atom_costs_recall_and_an_invented_one_precision():
    found = np.concatenate([grid_nm()[:-1], [[0.5, 0.5], [1.5, 0.5]]])
    match = match_atoms(atoms_at(found), grid_nm(), (0.0, 0.0))
    assert match.recall == pytest.approx(80 / 81)
    assert match.precision == pytest.approx(80 / 82)


def test_two_finds_of_one_atom_count_once():
    found = np.concatenate([grid_nm(), grid_nm()[:1] + 0.03])
    match = match_atoms(atoms_at(found), grid_nm(), (0.0, 0.0))
    assert match.precision == pytest.approx(81 / 82)


def test_drift_of_the_reference_is_taken_out():
    match = match_atoms(atoms_at(grid_nm() + 0.4), grid_nm(), (0.4, 0.4))
    assert match.recall == 1.0


def test_drift_counts_from_the_first_frame():
    true = np.array([[1.0, 1.0], [1.1, 1.0], [1.2, 1.0]])
    found = np.array([[0.0, 0.0], [0.1, 0.0], [0.2, 0.3]])
    assert drift_error_px(found, true, pixel_size_nm=0.1) == pytest.approx(3 / np.sqrt(3))


def test_adjusted_rand_index_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 3, 50), rng.integers(0, 4, 50)
        assert adjusted_rand_index(one, other) == pytest.approx(adjusted_rand_score(one, other))
    assert adjusted_rand_index(one, one + 7) == 1.0
