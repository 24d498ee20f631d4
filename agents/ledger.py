"""Which sites may still be chosen: what is under way, what was measured, what was refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from agents.candidates import Candidates, Site
from agents.config import AgentConfig
from agents.protocol import UnknownOutcome


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """What a suggestion aimed at: a site, and the frame it was seen in."""

    site: Site
    candidates: Candidates


@dataclass(slots=True, eq=False)
class _Avoided:
    site: Site
    times: int
    until: int


class Ledger:
    """Binds outcomes to suggestions by id, and keeps sites from being chosen twice.

    Time is counted in suggestions: no clock takes part in a decision.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._open: dict[str, Aim] = {}
        self._measured: list[Site] = []
        self._avoided: list[_Avoided] = []
        self._refusals_in_a_row = 0
        self._on_this_frame = 0
        self.issued = 0

    @property
    def pending(self) -> tuple[Site, ...]:
        """The sites whose outcomes are still to come, oldest first."""
        return tuple(aim.site for aim in self._open.values())

    @property
    def may_suggest(self) -> bool:
        """Is there room for one more suggestion?"""
        return (
            len(self._open) < self._config.max_pending
            and self._refusals_in_a_row < self._config.max_refusals_per_frame
            and (self._config.max_per_frame == 0 or self._on_this_frame < self._config.max_per_frame)
            and (self._config.max_suggestions == 0 or self.issued < self._config.max_suggestions)
        )

    def new_frame(self) -> None:
        """A new frame is a new chance after refusals."""
        self._refusals_in_a_row = 0
        self._on_this_frame = 0

    def open(self, identifier: str, aim: Aim) -> None:
        """Note a suggestion that goes out."""
        self._open[identifier] = aim
        self._on_this_frame += 1
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
        known = next((a for a in self._avoided if _is_same(a.site, site, self._config.min_distance_nm)), None)
        if known is None:
            known = _Avoided(site, 0, 0)
            self._avoided.append(known)
        known.times += 1
        known.until = self.issued + known.times * self._config.retry_after_suggestions

    def free(self, candidates: Candidates) -> NDArray[np.int64]:
        """Find the candidates that may be chosen, as indices in rising order."""
        avoided = (a.site for a in self._avoided if a.until > self.issued)
        blocked = [*self.pending, *self._measured, *avoided]
        taken = np.isin(candidates.track, [site.track for site in blocked if site.track >= 0])
        revision = candidates.latents.registration.revision
        # Positions of two registrations must not be compared; there the track alone tells.
        near = [site.position_nm for site in blocked if site.registration_revision == revision]
        if near:
            distance_nm, _ = cKDTree(np.stack(near)).query(candidates.position_nm)
            taken |= distance_nm < self._config.min_distance_nm
        return np.flatnonzero(~taken).astype(np.int64)


def _is_same(one: Site, other: Site, min_distance_nm: float) -> bool:
    if one.track >= 0 and one.track == other.track:
        return True
    if one.registration_revision != other.registration_revision:
        return False
    return bool(np.hypot(*(one.position_nm - other.position_nm)) < min_distance_nm)
