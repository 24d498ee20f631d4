"""Where to scan again, from closer by: where the structure changed, is novel, or shows few atoms.

A spectrum tells of one atom; a sub-scan of a region tells what has become of it. Regions are squares that
overlap by half over the frame's atoms. Each is scored by the number of its atoms that are news since it was
last scanned, which a person can check in the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainccinv

from agents.candidates import Candidates, Float64
from streamer.messages import PairNm

# Of an atom whose latents have not changed; a frame has some thousand atoms.
CHANCE = 1e-6
NOVEL = 3.0  # an encoder's novelty above this is not usual
# An atom that was missed in one frame may have been overlooked; a new one may have been noise.
SURE_AFTER = 2
# An atom this far outside the others' bounds, in parts of a region's edge, may have left the frame.
RIM = 0.1
# Where more of all atoms change at once, the imaging has changed and not the structure.
MOST_CHANGED = 0.5
# Fewer atoms than usual by so many sd of their number are too few.
FEW_SD = 3.0


class ScanConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a part of the field is scanned again.

    Attributes
    ----------
    every
        At most one in so many suggestions is a scan; 0 for none.
    min_atoms
        A region is scanned when so many of its atoms have changed, gone, come, are novel or missing.
    field_share
        Edge of a region, in parts of the frame's shorter side.
    pixels
        Rows and columns of the scan.
    dwell_time_us
        Of each pixel: the dose of a scan goes with ``pixels``² times this.
    """

    every: int = 0
    min_atoms: int = 3
    field_share: float = 0.3
    pixels: int = 256
    dwell_time_us: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("every", 0, 10**6),
            ("min_atoms", 1, 10**6),
            ("field_share", 0.05, 1.0),
            ("pixels", 8, 4096),
            ("dwell_time_us", 1e-3, 1e9),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"agent.scan.{name} is {getattr(self, name)}; it takes {low} to {high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A square that may be scanned, and what is news in it.

    Attributes
    ----------
    center_nm
        Specimen position ``(x, y)``.
    edge_nm
        Of the square.
    changed, gone, come, novel, missing
        Numbers of atoms: whose latents are not what they were; that were there and are not; that were not;
        unlike what the encoder learnt from; fewer than is usual in the field.
    """

    center_nm: PairNm
    edge_nm: float
    changed: int = 0
    gone: int = 0
    come: int = 0
    novel: int = 0
    missing: int = 0

    @property
    def news(self) -> int:
        """How many atoms speak for scanning it."""
        return self.changed + self.gone + self.come + self.novel + self.missing

    @property
    def corners_nm(self) -> tuple[Float64, Float64]:
        """Its least and its largest corner, ``(x, y)``."""
        center_nm, half_nm = np.array(self.center_nm), self.edge_nm / 2
        return center_nm - half_nm, center_nm + half_nm

    @property
    def reason(self) -> str:
        """Say it in a few words."""
        words = ("changed", "gone", "come", "novel", "missing")
        counts = ", ".join(f"{getattr(self, word)} {word}" for word in words if getattr(self, word))
        return f"{'look again' if self.changed + self.gone + self.come else 'look closer'}: atoms {counts}"


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Atoms by their tracks: as they were when last looked at, and as they are.

    Attributes
    ----------
    track
        Ascending, shape ``(n,)``.
    position_nm
        Where each was last seen, shape ``(n, 2)``.
    before, previous, now, sd
        Latents then, in the last frame but one, in the last, and the sd of these, shape ``(n, d)``.
    seen, missed
        Frames since it came, and frames in a row without it, shape ``(n,)``.
    is_new
        Whether it came since its place was last looked at, shape ``(n,)``.
    """

    track: NDArray[np.int64]
    position_nm: Float64
    before: Float64
    previous: Float64
    now: Float64
    sd: Float64
    seen: NDArray[np.int64]
    missed: NDArray[np.int64]
    is_new: NDArray[np.bool_]

    @classmethod
    def first(cls, candidates: Candidates) -> Known:
        """Take a frame's atoms for what was always there."""
        has_track = np.flatnonzero(candidates.track >= 0)
        rows = has_track[np.argsort(candidates.track[has_track], kind="stable")]
        mean, counts = candidates.mean[rows], np.zeros(rows.size, dtype=np.int64)
        position_nm, sd = candidates.position_nm[rows], candidates.sd[rows]
        nothing = np.zeros(rows.size, dtype=np.bool_)
        return cls(candidates.track[rows], position_nm, mean, mean, mean, sd, counts + 1, counts, nothing)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Known:
        """Keep some."""
        return Known(*(getattr(self, name)[rows] for name in self.__slots__))

    def and_frame(self, candidates: Candidates, rim_nm: float) -> Known:
        """Say what is known after another frame."""
        frame = Known.first(candidates)
        _, mine, its = np.intersect1d(self.track, frame.track, assume_unique=True, return_indices=True)
        previous, now, sd = self.previous.copy(), self.now.copy(), self.sd.copy()
        position_nm, seen, missed = self.position_nm.copy(), self.seen.copy(), self.missed + 1
        previous[mine] = now[mine]
        now[mine], position_nm[mine], sd[mine] = frame.now[its], frame.position_nm[its], frame.sd[its]
        seen[mine] += 1
        missed[mine] = 0
        in_view: NDArray[np.bool_] = is_inside(position_nm, *bounds(candidates, rim_nm))
        # What left the view is forgotten, and so is what came and went again.
        kept = (missed == 0) | (in_view & ~self.is_new)
        old = Known(self.track, position_nm, self.before, previous, now, sd, seen, missed, self.is_new)
        old = old.take(kept)
        new = frame.take(np.setdiff1d(np.arange(frame.track.size), its))
        new = replace(new, is_new=is_inside(new.position_nm, *bounds(candidates, rim_nm)))
        both = Known(*(np.concatenate([getattr(old, n), getattr(new, n)]) for n in self.__slots__))
        return both.take(np.argsort(both.track, kind="stable"))

    def settled(self, region: Region) -> Known:
        """Take what is in a region now for what was always there."""
        inside = is_inside(self.position_nm, *region.corners_nm)
        as_now = {
            name: np.where(inside[:, None], self.now, getattr(self, name)) for name in ("before", "previous")
        }
        return replace(self, **as_now, is_new=self.is_new & ~inside).take(~(inside & self.gone))

    @property
    def gone(self) -> NDArray[np.bool_]:
        """Which were there and are not."""
        return self.missed >= SURE_AFTER

    @property
    def come(self) -> NDArray[np.bool_]:
        """Which were not there and are."""
        stayed: NDArray[np.bool_] = self.seen >= SURE_AFTER
        return self.is_new & stayed

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Whose latents are not what they were, in two frames in a row and noise allowed for."""
        is_here: NDArray[np.bool_] = (self.missed == 0) & ~self.is_new
        return self._is_off(self.previous) & self._is_off(self.now) & is_here

    def _is_off(self, latents: Float64) -> NDArray[np.bool_]:
        step = (latents - self.before) / (math.sqrt(2.0) * self.sd)
        size: Float64 = (step * step).sum(axis=1)
        # The limit of a sum of d squares, which is distributed as chi-square.
        is_off: NDArray[np.bool_] = size > 2 * gammainccinv(max(step.shape[1], 1) / 2, CHANCE)
        return is_off


def bounds(candidates: Candidates, rim_nm: float = 0.0) -> tuple[Float64, Float64]:
    """Find the box around a frame's atoms, ``(x, y)`` of its least and largest corner, less a rim."""
    return candidates.position_nm.min(axis=0) + rim_nm, candidates.position_nm.max(axis=0) - rim_nm


def is_inside(position_nm: Float64, low: Float64, high: Float64) -> NDArray[np.bool_]:
    """Say which positions, shape ``(…, 2)``, lie in a box."""
    outside_nm: Float64 = np.maximum(low - position_nm, position_nm - high).max(axis=-1)
    return outside_nm <= 0


def regions(candidates: Candidates, known: Known, looked_nm: Float64, edge_nm: float) -> list[Region]:
    """Score the squares that overlap by half over a frame's atoms.

    Parameters
    ----------
    candidates
        Of the frame; at least one.
    known
        What is known of its atoms.
    looked_nm
        Centres of the regions that were scanned, shape ``(k, 2)``. What is novel or missing there is known.
    edge_nm
        Of a square.

    Returns
    -------
    regions
        In reading order; each lies in the bounds of the atoms, so that the beam stays in the frame.
    """
    x_nm, y_nm = _centers(candidates, edge_nm)
    centers_nm = np.stack(np.meshgrid(x_nm, y_nm), axis=-1).reshape(-1, 2)
    if not len(centers_nm):
        return []

    def count(position_nm: Float64) -> Float64:
        # Squares in rows and columns: what is in one is in its row and in its column.
        in_column, in_row = (
            (np.abs(along[:, None] - position_nm[:, axis]) <= edge_nm / 2).astype(np.float64)
            for axis, along in enumerate((x_nm, y_nm))
        )
        number: Float64 = (in_row @ in_column.T).ravel()
        return number

    novel_nm = _novel(candidates, looked_nm, edge_nm)
    was_looked = _is_near(centers_nm, looked_nm, edge_nm / 2)
    atoms, gone = count(candidates.position_nm), count(known.position_nm[known.gone])
    usual = float(np.median(atoms))
    is_few = (usual - atoms > FEW_SD * math.sqrt(usual)) & ~was_looked
    counts = {
        "changed": count(known.position_nm[known.changed]),
        "gone": gone,
        "come": count(known.position_nm[known.come]),
        "novel": count(novel_nm),
        "missing": np.where(is_few, np.maximum(usual - atoms - gone, 0), 0),
    }
    return [
        Region(center_nm=(x, y), edge_nm=edge_nm, **{name: int(each[k]) for name, each in counts.items()})
        for k, (x, y) in enumerate(centers_nm.tolist())
    ]


def _novel(candidates: Candidates, looked_nm: Float64, edge_nm: float) -> Float64:
    """Find where atoms are novel that no scan has shown yet."""
    if candidates.novelty is None:
        return np.zeros((0, 2))
    novel_nm = candidates.position_nm[candidates.novelty > NOVEL]
    return novel_nm[~_is_near(novel_nm, looked_nm, edge_nm / 2)]


def _is_near(position_nm: Float64, looked_nm: Float64, half_nm: float) -> NDArray[np.bool_]:
    """Say which positions, shape ``(n, 2)``, are no further than this from a scan's centre along x and y."""
    apart = np.abs(position_nm[:, None] - looked_nm[None]).max(axis=2)
    near: NDArray[np.bool_] = (apart <= half_nm).any(axis=1)
    return near


def _centers(candidates: Candidates, edge_nm: float) -> tuple[Float64, Float64]:
    """Place squares evenly in the bounds of the atoms, no further apart than half an edge: x and y."""
    low, high = bounds(candidates)
    return _spread(low[0], high[0], edge_nm), _spread(low[1], high[1], edge_nm)


def _spread(low: float, high: float, edge: float) -> Float64:
    """Middles of lengths that lie between two ends; none where these are nearer than one."""
    free = high - low - edge
    count = math.ceil(free / (edge / 2)) + 1 if free >= 0 else 0
    return np.linspace(low + edge / 2, high - edge / 2, count)


class ScansState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """Everything that decides which region is next; see ``Scans``."""

    known: Known | None
    looked_nm: Float64
    under_way: dict[str, Region | None]
    last: int


class Scans:
    """Keeps what was there when each part of the field was last looked at, and says when to look again.

    Time is counted in suggestions and frames: no clock takes part in a decision.

    Parameters
    ----------
    config
        With ``every = 0`` it keeps nothing and says nothing.
    """

    def __init__(self, config: ScanConfig) -> None:
        self._config = config
        self._known: Known | None = None
        self._looked_nm: Float64 = np.zeros((0, 2))
        self._under_way: dict[str, Region | None] = {}
        self._last = 0

    @property
    def under_way(self) -> int:
        """How many scans have no outcome yet."""
        return len(self._under_way)

    def see(self, candidates: Candidates, before: Candidates | None) -> None:
        """Take in a frame's atoms; those of another encoder or registration begin anew."""
        if not self._config.every or not len(candidates):
            return
        known, now = self._known, candidates.frame
        if known is None or before is None or not now.speaks_as(before.frame):
            self._known, self._looked_nm = Known.first(candidates), np.zeros((0, 2))
            self._under_way = dict.fromkeys(self._under_way)  # where they are cannot be said any more
            return
        known = known.and_frame(candidates, RIM * self._edge_nm(candidates))
        is_other_imaging = known.changed.sum() > MOST_CHANGED * known.track.size
        self._known = Known.first(candidates) if is_other_imaging else known

    def due(self, candidates: Candidates, issued: int) -> Region | None:
        """Say which region to scan now; None where nothing is news, or a scan was not long ago.

        Parameters
        ----------
        candidates
            Of the newest frame that was seen.
        issued
            Suggestions so far, of all kinds.
        """
        is_early = issued + 1 < self._last + self._config.every
        if (
            not self._config.every
            or is_early
            or self._under_way
            or self._known is None
            or not len(candidates)
        ):
            return None
        scored = regions(candidates, self._known, self._looked_nm, self._edge_nm(candidates))
        best = max(scored, key=lambda region: region.news, default=None)  # the first of equals
        return best if best is not None and best.news >= self._config.min_atoms else None

    def begin(self, identifier: str, region: Region, issued: int) -> None:
        """Note the scan of a region that was suggested, as the ``issued``-th suggestion."""
        self._under_way[identifier] = region
        self._last = issued

    def end(self, identifier: str, *, is_decided: bool) -> bool:
        """Close a scan: what is news there now is none any more, whether it was made or refused.

        Parameters
        ----------
        identifier
            Of an outcome.
        is_decided
            False for one that nobody decided on: it may be suggested again.

        Returns
        -------
        ended
            False where it is the outcome of no scan.
        """
        if identifier not in self._under_way:
            return False
        region = self._under_way.pop(identifier)
        if region is not None and is_decided and self._known is not None:
            self._known = self._known.settled(region)
            self._looked_nm = np.concatenate([self._looked_nm, [region.center_nm]])
        return True

    def state(self) -> ScansState | None:
        """Say everything that it knows; None where it keeps nothing."""
        if not self._config.every and not self._under_way:
            return None
        return ScansState(
            known=self._known, looked_nm=self._looked_nm, under_way=dict(self._under_way), last=self._last
        )

    def restore(self, state: ScansState | None) -> None:
        """Be as the one was that said this state."""
        if state is None:
            return
        self._known, self._looked_nm, self._last = state.known, state.looked_nm, state.last
        self._under_way = dict(state.under_way)

    def _edge_nm(self, candidates: Candidates) -> float:
        return self._config.field_share * min(candidates.frame.field_of_view_nm)
