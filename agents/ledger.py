"""Which sites may still be chosen: what is under way, what was measured, what was refused."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from agents.candidates import Candidates, Site
from agents.config import AgentConfig
from agents.protocol import UnknownOutcome

FEW = 8  # places that are sooner compared with all candidates than put into a tree


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """What a suggestion aimed at: a site, and the frame it was seen in; and whether a person made it."""

    site: Site
    candidates: Candidates
    is_persons: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Avoided:
    """A site that was refused ``times`` times and is left alone until so many suggestions were issued."""

    site: Site
    times: int
    until: int


class LedgerState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """Everything that a ledger knows; see ``Ledger``."""

    open: dict[str, Aim]
    measured: list[Site]
    avoided: list[Avoided]
    refusals_in_a_row: int
    on_this_frame: int
    issued: int


class Ledger:
    """Binds outcomes to suggestions by id, and keeps sites from being chosen twice.

    Time is counted in suggestions: no clock takes part in a decision.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._open: dict[str, Aim] = {}
        self._measured: list[Site] = []
        self._avoided: list[Avoided] = []
        self._refusals_in_a_row = 0
        self._on_this_frame = 0
        self.issued = 0
        self._marked: _Marked | None = None

    def state(self) -> LedgerState:
        """Say everything that it knows, as it is now."""
        return LedgerState(
            open=dict(self._open),
            measured=list(self._measured),
            avoided=list(self._avoided),
            refusals_in_a_row=self._refusals_in_a_row,
            on_this_frame=self._on_this_frame,
            issued=self.issued,
        )

    def restore(self, state: LedgerState) -> None:
        """Be as the ledger was that said this state."""
        self._open = dict(state.open)
        self._measured = list(state.measured)
        self._avoided = list(state.avoided)
        self._refusals_in_a_row = state.refusals_in_a_row
        self._on_this_frame = state.on_this_frame
        self.issued = state.issued
        self._marked = None

    @property
    def pending(self) -> tuple[Site, ...]:
        """The sites whose outcomes are still to come, oldest first."""
        return tuple(aim.site for aim in self._open.values())

    @property
    def last(self) -> Site | None:
        """Where the beam was sent last, or was; None before the first."""
        aims = list(self._open.values())
        if aims:
            return aims[-1].site
        return self._measured[-1] if self._measured else None

    @property
    def may_suggest(self) -> bool:
        """Is there room for one more suggestion?"""
        return self.room > 0

    @property
    def room(self) -> int:
        """How many more suggestions may be made on this frame, as far as is known now."""
        if self._refusals_in_a_row >= self._config.max_refusals_per_frame:
            return 0
        room = self._config.max_pending - len(self._open)
        most = self._config.max_per_frame
        return room if most == 0 else min(room, most - self._on_this_frame)

    @property
    def spent(self) -> str:
        """Why there will be no suggestion any more; empty while there may be."""
        most = self._config.max_suggestions
        return f"{self.issued} suggestions were made, as many as asked for" if 0 < most <= self.issued else ""

    def new_frame(self) -> None:
        """A new frame is a new chance after refusals."""
        self._refusals_in_a_row = 0
        self._on_this_frame = 0

    def open(self, identifier: str, aim: Aim) -> None:
        """Note a suggestion that goes out."""
        self._open[identifier] = aim
        self._on_this_frame += 1
        self.issued += 1

    def open_for_a_person(self, identifier: str, aim: Aim) -> None:
        """Note what a person measures: it is under way, and takes nothing of what the agent may suggest."""
        self._open[identifier] = aim

    def count(self) -> None:
        """Count a suggestion of no site, such as a scan: it takes its place among those on this frame."""
        self._on_this_frame += 1
        self.issued += 1

    def pass_over(self) -> None:
        """Count a suggestion of an earlier process whose site is not known: its outcome teaches nothing."""
        self.issued += 1

    def close(self, identifier: str) -> Aim:
        """Take back what an outcome answers.

        Raises
        ------
        UnknownOutcome
            If no open suggestion has this id.
        """
        aim = self._open.pop(identifier, None)
        if aim is None:
            raise UnknownOutcome(
                f"no open suggestion has the id {identifier!r}: it was never made or has its outcome already"
            )
        return aim

    def measured(self, *sites: Site) -> None:
        """Leave these sites alone from now on."""
        self._measured.extend(sites)
        self._refusals_in_a_row = 0

    def refused(self, site: Site) -> None:
        """Leave this site alone for a while, longer each time."""
        self._refusals_in_a_row += 1
        index = self._find_avoided(site)
        known = Avoided(site, 0, 0) if index == len(self._avoided) else self._avoided[index]
        times = known.times + 1
        until = self.issued + times * self._config.retry_after_suggestions
        self._avoided[index : index + 1] = [Avoided(known.site, times, until)]

    def _find_avoided(self, site: Site) -> int:
        is_same = (_is_same(known.site, site, self._config.min_distance_nm) for known in self._avoided)
        return next((index for index, same in enumerate(is_same) if same), len(self._avoided))

    def free(self, candidates: Candidates) -> NDArray[np.int64]:
        """Find the candidates that may be chosen, as indices in rising order."""
        if self._marked is None or self._marked.candidates is not candidates:
            self._marked = _Marked(candidates, self._config.min_distance_nm)
        avoided = (a.site for a in self._avoided if a.until > self.issued)
        return self._marked.free(self._measured, [*self.pending, *avoided])


class _Marked:
    """Candidates of one frame, those marked that were measured: only new measurements are looked for."""

    def __init__(self, candidates: Candidates, min_distance_nm: float) -> None:
        self.candidates = candidates
        self._min_distance_nm = min_distance_nm
        self._is_measured = np.zeros(len(candidates), dtype=np.bool_)
        self._count = 0

    def free(self, measured: list[Site], blocked: list[Site]) -> NDArray[np.int64]:
        """Find those that are none of the measured ones, which only grow, nor of the others."""
        self._is_measured |= self._are_among(measured[self._count :])
        self._count = len(measured)
        return np.flatnonzero(~(self._is_measured | self._are_among(blocked))).astype(np.int64)

    def _are_among(self, sites: list[Site]) -> NDArray[np.bool_]:
        candidates = self.candidates
        if not sites:
            return np.zeros(len(candidates), dtype=np.bool_)
        found: NDArray[np.bool_] = np.isin(
            candidates.track, [site.track for site in sites if site.track >= 0]
        )
        revision = candidates.frame.registration_revision
        # Positions of two registrations must not be compared; there the track alone tells.
        near = [site.position_nm for site in sites if site.registration_revision == revision]
        if len(near) > FEW:
            distance_nm, _ = cKDTree(np.stack(near)).query(candidates.position_nm)
            found |= distance_nm < self._min_distance_nm
            return found
        for position_nm in near:
            x_nm, y_nm = (candidates.position_nm - position_nm).T
            found |= x_nm * x_nm + y_nm * y_nm < self._min_distance_nm**2
        return found


def _is_same(one: Site, other: Site, min_distance_nm: float) -> bool:
    if one.track >= 0 and one.track == other.track:
        return True
    if one.registration_revision != other.registration_revision:
        return False
    return bool(np.hypot(*(one.position_nm - other.position_nm)) < min_distance_nm)
