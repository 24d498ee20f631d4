"""Follow each atom through the session: nearest positions from frame to frame, by trackpy."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.messages import Latents

if TYPE_CHECKING:
    from trackpy.linking.linking import Linker


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an atom may go between frames and still be the same.

    Attributes
    ----------
    search_range_nm
        Keep it below half the distance of neighbours: then hardly a link is in doubt.
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


class LinkAtoms:
    """Give each atom the track that it had in the frames before.

    Tracks count up through the session and are never used again. When the registration starts a
    new reference, positions cannot be compared and all atoms get new tracks.
    """

    name = "link"

    def __init__(self, config: LinkConfig | None = None) -> None:
        self.config = config or LinkConfig()
        self._new_track = itertools.count()
        self._revision: int | None = None
        self._first: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None
        self._linker: Linker | None = None

    def warm_up(self) -> None:
        """Import trackpy, which takes a second or two, before there is a frame to wait for it."""
        _trackpy_linker()

    def process(self, latents: Latents, /) -> Latents:
        """Return the latents with their tracks."""
        positions_nm = latents.positions_nm.astype(np.float64)
        if latents.registration.revision != self._revision or len(positions_nm) == 0:
            tracks = self._start_anew(positions_nm, latents.registration.revision)
        else:
            tracks = self._go_on(positions_nm)
        return msgspec.structs.replace(latents, track=tracks)

    def _start_anew(self, positions_nm: NDArray[np.float64], revision: int) -> NDArray[np.int64]:
        """Give every atom a track of its own."""
        tracks = np.fromiter(itertools.islice(self._new_track, len(positions_nm)), dtype=np.int64)
        self._revision = revision if len(positions_nm) else None
        self._first, self._linker = (positions_nm, tracks), None
        return tracks

    def _go_on(self, positions_nm: NDArray[np.float64]) -> NDArray[np.int64]:
        """Link to the frames before."""
        linker = self._linker or self._started_linker()
        try:
            linker.next_level(positions_nm, 0)
        except _oversize_error():
            # So many atoms within reach of each other that no assignment is worth its name.
            return self._start_anew(positions_nm, self._revision or 0)
        return self._tracks(linker)

    def _started_linker(self) -> Linker:
        """Hand the first frame of a revision to trackpy."""
        assert self._first is not None
        positions_nm, tracks = self._first
        linker = _trackpy_linker()(
            self.config.search_range_nm,
            memory=self.config.memory_frames,
            link_strategy="recursive",  # the numba one costs seconds of compilation, once in each process
        )
        linker.init_level(positions_nm, 0)
        for point, track in zip(linker.hash.points, tracks, strict=True):
            point.track.session_track = int(track)
        self._first, self._linker = None, linker
        return linker

    def _tracks(self, linker: Linker) -> NDArray[np.int64]:
        """Read the tracks, and number those that are new.

        trackpy's own numbers come from one counter for all linkers of a process, in the order of a
        set: ours are the same in each run.
        """
        tracks = np.empty(len(linker.hash.points), dtype=np.int64)
        for place, point in enumerate(linker.hash.points):
            number = getattr(point.track, "session_track", None)
            if number is None:
                number = point.track.session_track = next(self._new_track)
            tracks[place] = number
        return tracks


def _trackpy_linker() -> type[Linker]:
    """Import trackpy, when it is needed at last."""
    import trackpy
    from trackpy.linking.linking import Linker

    trackpy.quiet()
    kind: type[Linker] = Linker
    return kind


def _oversize_error() -> type[Exception]:
    from trackpy.linking.utils import SubnetOversizeException

    kind: type[Exception] = SubnetOversizeException
    return kind
