"""Follow each atom through the session: the nearest positions from frame to frame.

Links are those of Crocker and Grier (1996, doi:10.1006/jcis.1996.0217): of all ways to pair known atoms with
found ones, none further apart than the search range, the one with the least sum of squared
distances, where an atom that stays without a partner counts as the range itself. trackpy, which is
the reference in the tests, does the same on objects of Python; here the whole state is three arrays.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from streamer.messages import Latents, ScanGeometry

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Places = NDArray[np.intp]

_MOST_NEIGHBOURS = 10  # as trackpy: beyond that, atoms are too crowded to be told apart anyway
_PIXELS = 4.0
_OF_NEIGHBOURS = 0.4


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an atom may go between frames and still be the same.

    Attributes
    ----------
    search_range_nm
        Keep it below half the distance of neighbours: then hardly a link is in doubt. Where four pixels of
        the frame are more, as of a PFM or an AFM, it is these, and no more than 0.4 of the distance of
        neighbours.
    memory_frames
        An atom that was missing for as many frames keeps its track.
    """

    search_range_nm: float = 0.06
    memory_frames: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.search_range_nm <= 100:
            raise ValueError(f"link.search_range_nm is {self.search_range_nm}; it takes above 0 to 100")
        if not 0 <= self.memory_frames <= 1000:
            raise ValueError(f"link.memory_frames is {self.memory_frames}; it takes 0 to 1000")


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """All that LinkAtoms knows, beside its arrays.

    Attributes
    ----------
    next_track
        The first track that was never given.
    revision
        Registration in which the known atoms lie; None when the next frame starts anew.
    """

    next_track: int
    revision: int | None


class LinkAtoms:
    """Give each atom the track that it had in the frames before.

    Tracks count up through the session and are never used again. When the registration starts a
    new reference, positions cannot be compared and all atoms get new tracks.
    """

    name = "link"

    def __init__(self, config: LinkConfig | None = None) -> None:
        self.config = config or LinkConfig()
        self._next_track = 0
        self._revision: int | None = None
        self._forget()

    def state(self) -> tuple[LinkState, dict[str, NDArray[Any]]]:
        """Say all that the next frame's tracks depend on; the arrays are shared and never written to.

        Returns
        -------
        facts
            Numbers.
        arrays
            Of the atoms last seen or still remembered: ``positions_nm`` ``(n, 2)`` float64, ``track``
            ``(n,)`` int64, ``missing`` ``(n,)`` int64, the number of frames since it was seen.
        """
        arrays = {"positions_nm": self._positions_nm, "track": self._track, "missing": self._missing}
        return LinkState(next_track=self._next_track, revision=self._revision), arrays

    def restore(self, facts: LinkState, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from what ``state`` said.

        Raises
        ------
        ValueError
            If the arrays do not belong together; nothing is changed then.
        """
        n = len(arrays["track"])
        if arrays["positions_nm"].shape != (n, 2) or arrays["missing"].shape != (n,):
            raise ValueError("the arrays of link have unlike lengths; they are no state of this pipeline")
        self._next_track, self._revision = facts.next_track, facts.revision
        # Copies, because what was read from a journal need not lie as the processor likes it.
        self._know(
            arrays["positions_nm"].astype(np.float64),
            arrays["track"].astype(np.int64),
            arrays["missing"].astype(np.int64),
        )

    def process(self, latents: Latents, /) -> Latents:
        """Return the latents with their tracks."""
        positions_nm = latents.positions_nm.astype(np.float64)
        revision = latents.registration.revision
        if revision != self._revision or len(positions_nm) == 0:
            self._forget()
        tracks = self._go_on(positions_nm, self._range_nm(positions_nm, latents.geometry))
        self._revision = revision if len(positions_nm) else None
        return msgspec.structs.replace(latents, track=tracks)

    def _range_nm(self, positions_nm: Float64, geometry: ScanGeometry) -> float:
        """How far to look: a site is not known better than to a few pixels, whatever it is."""
        least_nm, coarse_nm = self.config.search_range_nm, _PIXELS * max(geometry.pixel_size_nm)
        if coarse_nm <= least_nm or len(positions_nm) < 2:
            return least_nm
        nearest_nm = cKDTree(positions_nm).query(positions_nm, k=2)[0][:, 1]
        return max(least_nm, min(coarse_nm, _OF_NEIGHBOURS * float(np.median(nearest_nm))))

    def _go_on(self, positions_nm: Float64, reach_nm: float) -> Int64:
        """Link to the atoms known, and number those that are new in their order."""
        source = linked(self._positions_nm, positions_nm, reach_nm)
        is_new = source < 0
        tracks = np.empty(len(positions_nm), dtype=np.int64)
        tracks[~is_new] = self._track[source[~is_new]]
        count = int(np.count_nonzero(is_new))
        tracks[is_new] = np.arange(self._next_track, self._next_track + count)
        self._next_track += count
        self._remember(positions_nm, tracks, source[~is_new])
        # Their own copy: what is known here is shared with states, and may go to another thread.
        return tracks.copy()

    def _remember(self, positions_nm: Float64, tracks: Int64, found: Places) -> None:
        """Know the atoms of this frame, and those missing not longer than the memory."""
        is_missing = np.ones(len(self._track), dtype=bool)
        is_missing[found] = False
        is_missing &= self._missing < self.config.memory_frames
        self._know(
            np.concatenate([positions_nm, self._positions_nm[is_missing]]),
            np.concatenate([tracks, self._track[is_missing]]),
            np.concatenate([np.zeros(len(tracks), dtype=np.int64), self._missing[is_missing] + 1]),
        )

    def _forget(self) -> None:
        self._know(np.empty((0, 2)), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    def _know(self, positions_nm: Float64, tracks: Int64, missing: Int64) -> None:
        self._positions_nm, self._track, self._missing = positions_nm, tracks, missing
        for array in (positions_nm, tracks, missing):
            array.setflags(write=False)


def linked(known_nm: Float64, found_nm: Float64, reach_nm: float) -> Places:
    """Say which known atom each found one is.

    Parameters
    ----------
    known_nm, found_nm
        Positions ``(x, y)``, shapes ``(n, 2)`` and ``(m, 2)``.
    reach_nm
        No link is longer.

    Returns
    -------
    known
        Index of the known atom, shape ``(m,)``; -1 for a new one. None occurs twice.
    """
    links = np.full(len(found_nm), -1, dtype=np.intp)
    if len(known_nm) == 0 or len(found_nm) == 0:
        return links
    most = min(_MOST_NEIGHBOURS, len(known_nm))
    distance, neighbour = cKDTree(known_nm).query(
        found_nm, np.arange(1, most + 1), distance_upper_bound=reach_nm
    )
    found, place = np.nonzero(np.isfinite(distance))
    known, cost = neighbour[found, place], distance[found, place] ** 2
    is_sure = (np.bincount(found)[found] == 1) & (np.bincount(known)[known] == 1)
    links[found[is_sure]] = known[is_sure]
    if not is_sure.all():
        doubt = ~is_sure
        one, other = _assigned(known[doubt], found[doubt], cost[doubt], reach_nm**2)
        links[other] = one
    return links


def _assigned(known: Places, found: Places, cost: Float64, alone: float) -> tuple[Places, Places]:
    """Choose among pairs so that the sum of costs is least; a known atom left over costs ``alone``."""
    rows, row = np.unique(known, return_inverse=True)
    cols, col = np.unique(found, return_inverse=True)
    n = len(rows)
    # Each row has a column of its own for staying alone. An entry of 0 would be none: the constant
    # is added once for each row, whatever is chosen.
    entries = np.concatenate([cost, np.full(n, alone)]) + alone
    places = (np.concatenate([row, np.arange(n)]), np.concatenate([col, len(cols) + np.arange(n)]))
    table = csr_array((entries, places), shape=(n, len(cols) + n))
    chosen_row, chosen_col = min_weight_full_bipartite_matching(table)
    is_pair = chosen_col < len(cols)
    return rows[chosen_row[is_pair]], cols[chosen_col[is_pair]]
