"""Columns of a crystal as the beam sees them: the atoms that lie upon each other, together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from simulators.structures import Structure

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

UPON_NM = 0.06  # in projection; a polar displacement takes the atoms of one column 0.033 nm apart


class Stacked(NamedTuple):
    """Columns and who is in them.

    Attributes
    ----------
    positions_nm
        Of each column, the mean over its atoms weighted by their brightness, ``(x, y)``, shape ``(n, 2)``.
    heights
        Sum of the brightness of its atoms, shape ``(n,)``.
    column_A
        Which column an atom of the structure is in.
    """

    positions_nm: Float64
    heights: Float64
    column_A: Int64

    def number_of(self, is_of_kind_A: NDArray[np.bool_]) -> Int64:
        """Count the atoms of a kind in each column, shape ``(n,)``."""
        counts: Int64 = np.bincount(self.column_A, is_of_kind_A, len(self.heights)).astype(np.int64)
        return counts


def stacked(structure: Structure, brightness_A: Float64) -> Stacked:
    """Put the atoms together that the beam cannot part.

    Parameters
    ----------
    structure
        As seen along z.
    brightness_A
        Of each atom alone, above 0.
    """
    flat_nm = structure.positions_nm[:, :2]
    pairs = cKDTree(flat_nm).query_pairs(UPON_NM, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs)), pairs.T), (len(flat_nm), len(flat_nm)))
    count, column = connected_components(links, directed=False)
    heights: Float64 = np.bincount(column, brightness_A, count).astype(np.float64)
    places = [np.bincount(column, brightness_A * flat_nm[:, axis], count) / heights for axis in (0, 1)]
    return Stacked(np.stack(places, axis=1), heights, column.astype(np.int64))
