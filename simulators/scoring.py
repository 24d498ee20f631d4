"""How well what was found fits what was there: for tests, benchmarks and model cards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from streamer.messages import Atoms, PairNm


@dataclass(frozen=True, slots=True)
class Match:
    """Atoms found against atoms there.

    Attributes
    ----------
    precision, recall
        Part of the found ones that are real, part of the real ones that were found.
    error_nm
        Root mean square distance of the matched pairs.
    """

    precision: float
    recall: float
    error_nm: float


def drift_error_px(found_nm: ArrayLike, true_nm: ArrayLike, pixel_size_nm: float) -> float:
    """Root mean square distance of two drift paths, each counted from its first frame.

    Parameters
    ----------
    found_nm, true_nm
        ``(x, y)`` of each frame, shape ``(frames, 2)``.
    pixel_size_nm
        The unit of the answer.
    """
    found, true = np.asarray(found_nm, dtype=float), np.asarray(true_nm, dtype=float)
    difference = (found - found[0]) - (true - true[0])
    return float(np.sqrt((difference**2).sum(axis=1).mean())) / pixel_size_nm


def match_atoms(
    atoms: Atoms,
    true_nm: NDArray[np.float64],
    first_drift_nm: PairNm,
    *,
    tolerance_nm: float = 0.05,
    margin_nm: float = 0.3,
) -> Match:
    """Pair found and true atoms, mutually nearest and within the tolerance.

    Parameters
    ----------
    atoms
        Found in a corrected frame.
    true_nm
        Specimen positions ``(x, y)`` of the truth, shape ``(n, 2)``.
    first_drift_nm
        True drift of the reference frame: the truth counts from the specimen, a registration from there.
    tolerance_nm
        Farthest distance of a pair.
    margin_nm
        Atoms nearer to the edge of the frame, found or true, are not counted.
    """
    geometry = atoms.frame.geometry
    found = geometry.to_nm(atoms.positions_px)
    true = np.asarray(true_nm, dtype=float) + np.asarray(first_drift_nm)
    # A constant offset between the two is the fly-back and row offset of the reference: a gauge.
    distance, nearest = cKDTree(true).query(found)
    true = true + np.median((found - true[nearest])[distance < tolerance_nm], axis=0)

    def inside(positions: NDArray[np.float64]) -> NDArray[np.bool_]:
        pixel_nm = np.array(geometry.pixel_size_nm)
        rows_cols = geometry.to_px(positions)
        far = np.array(geometry.shape) - 1
        return np.asarray(
            ((rows_cols * pixel_nm > margin_nm) & ((far - rows_cols) * pixel_nm > margin_nm)).all(1)
        )

    to_true, true_of = cKDTree(true).query(found)
    _, found_of = cKDTree(found).query(true)
    mutual = (found_of[true_of] == np.arange(len(found))) & (to_true <= tolerance_nm)
    was_found = np.zeros(len(true), dtype=bool)
    was_found[true_of[mutual]] = True
    counted_found, counted_true = inside(found), inside(true)
    return Match(
        precision=float(mutual[counted_found].mean()) if counted_found.any() else 0.0,
        recall=float(was_found[counted_true].mean()) if counted_true.any() else 0.0,
        error_nm=float(np.sqrt((to_true[mutual] ** 2).mean())) if mutual.any() else float("nan"),
    )


def adjusted_rand_index(truth: NDArray[np.integer], groups: NDArray[np.integer]) -> float:
    """Agreement of two partitions: 1 for the same, 0 for what chance gives (Hubert and Arabie 1985)."""
    _, true_index = np.unique(truth, return_inverse=True)
    _, group_index = np.unique(groups, return_inverse=True)
    table = np.zeros((true_index.max() + 1, group_index.max() + 1))
    np.add.at(table, (true_index, group_index), 1)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    together, by_truth, by_group = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = by_truth * by_group / pairs(np.array([len(true_index)], dtype=float))
    most = (by_truth + by_group) / 2
    return 1.0 if most == chance else (together - chance) / (most - chance)
