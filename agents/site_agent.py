"""What all policies share: candidates in, suggestions out, outcomes bound to them by id."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, Site
from agents.config import AgentConfig
from agents.ledger import Aim, Ledger
from agents.objective import Objective, ObjectiveConfig, Reading, UnreadableSpectrum
from streamer.messages import Float32, Latents, Outcome, Score, Suggestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A candidate and why it was taken.

    Attributes
    ----------
    index
        Among the candidates.
    reason
        A few words for the operator.
    predicted_mean, predicted_sd
        Forecast in the unit of the objective; NaN where there is none.
    acquisition
        Value of the acquisition function; NaN where there is none.
    """

    index: int
    reason: str
    predicted_mean: float = math.nan
    predicted_sd: float = math.nan
    acquisition: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """A spectrum, where it was taken, and what it is worth to the present objective.

    Attributes
    ----------
    session, id
        Those of the outcome.
    site
        The atom nearest to where the beam was, at the position where it was; None if none was near.
    spectrum, energy_offset_ev, energy_step_ev
        As measured: kept, so that another objective can be read from it.
    reading
        None where the present objective cannot be read from the spectrum.
    """

    session: str
    id: str
    site: Site | None
    spectrum: Float32
    energy_offset_ev: float
    energy_step_ev: float
    reading: Reading | None = None


class SiteAgent(ABC):
    """An agent that chooses among the atoms of the current frame; a policy says which.

    Parameters
    ----------
    config
        None takes the defaults.
    seed
        In place of the configuration's.
    """

    policy: ClassVar[str]

    def __init__(self, config: AgentConfig | None = None, seed: int | None = None) -> None:
        self.config = AgentConfig() if config is None else config
        self.seed = self.config.seed if seed is None else seed
        self.objective = Objective(self.config.objective)
        self.observations: list[Observation] = []
        self._ledger = Ledger(self.config)
        self._candidates: Candidates | None = None
        self._counts: Counter[str] = Counter()

    @abstractmethod
    def _choose(self, candidates: Candidates, free: NDArray[np.int64]) -> Choice:
        """Take one of the free candidates; there is at least one."""

    def refit(self) -> bool:
        """Think at length where that is due; a baseline never does."""
        return False

    @property
    def model_revision(self) -> int:
        """Count the fits of the model; 0 where there is none."""
        return 0

    def statistics(self) -> dict[str, int]:
        """Count suggestions and how they ended: ``ok``, ``unreadable``, ``missed``, ``refused``, …"""
        return {"suggested": self._ledger.issued, "pending": len(self._ledger.pending), **self._counts}

    # -- learn ---------------------------------------------------------------------------------

    def tell(self, message: Latents | Outcome) -> Score | None:
        """Take in a frame's candidates or an outcome; see ``Agent``."""
        if isinstance(message, Outcome):
            return self._tell_outcome(message)
        if message.request_id is None:  # a sub-scan shows a part of the field from close by
            self._candidates = Candidates.of(message, self.config.min_confidence)
            self._ledger.new_frame()
        return None

    def _tell_outcome(self, outcome: Outcome) -> Score | None:
        aim = self._ledger.close(outcome.id)
        self._counts[outcome.status] += 1
        if outcome.status != "ok":
            self._ledger.refused(aim.site)
            return None
        site = self._visited(aim, outcome)
        self._ledger.measured(aim.site, *(() if site is None else (site,)))
        self._counts["missed"] += site is None
        if outcome.spectrum is None:
            return None
        observation = self._read(
            Observation(
                session=outcome.session,
                id=outcome.id,
                site=site,
                # A copy: the received one is a view that keeps the whole receive buffer alive.
                spectrum=outcome.spectrum.copy(),
                energy_offset_ev=outcome.energy_offset_ev,
                energy_step_ev=outcome.energy_step_ev,
            )
        )
        self._counts["unreadable"] += observation.reading is None
        self.observations.append(observation)
        return self._score(observation)

    def _visited(self, aim: Aim, outcome: Outcome) -> Site | None:
        """Find the atom that the beam really met: the outcome's position counts, not the wish."""
        if outcome.position_nm is None:
            return aim.site
        position_nm = np.array(outcome.position_nm, dtype=np.float64)
        if not np.isfinite(position_nm).all():
            return None
        index, distance_nm = aim.candidates.nearest(position_nm)
        if distance_nm > self.config.max_miss_nm:
            return None
        return replace(aim.candidates.site(index), position_nm=position_nm)

    def change_objective(self, config: ObjectiveConfig) -> tuple[Score, ...]:
        """Look for something else from now on: every spectrum so far is read anew.

        Returns
        -------
        scores
            The new score of each spectrum that the new objective can be read from.
        """
        self.objective = Objective(config)
        self.observations = [self._read(observation) for observation in self.observations]
        scores = (self._score(observation) for observation in self.observations)
        return tuple(score for score in scores if score is not None)

    def _read(self, observation: Observation) -> Observation:
        try:
            reading = self.objective.read(
                observation.spectrum,
                energy_offset_ev=observation.energy_offset_ev,
                energy_step_ev=observation.energy_step_ev,
            )
        except UnreadableSpectrum:
            return replace(observation, reading=None)
        return replace(observation, reading=reading)

    def _score(self, observation: Observation) -> Score | None:
        if observation.reading is None:
            return None
        return Score(
            session=observation.session,
            id=observation.id,
            objective=self.objective.name,
            value=observation.reading.value,
            variance=observation.reading.variance,
            goal=self.config.goal,
        )

    # -- answer --------------------------------------------------------------------------------

    def ask(self) -> Suggestion | None:
        """Answer where to measure next; see ``Agent``."""
        candidates = self._candidates
        if candidates is None or not self._ledger.may_suggest:
            return None
        free = self._ledger.free(candidates)
        if free.size == 0:
            return None
        choice = self._choose(candidates, free)
        suggestion = self._suggestion(candidates, choice)
        self._ledger.open(suggestion.id, Aim(candidates.site(choice.index), candidates))
        return suggestion

    def _suggestion(self, candidates: Candidates, choice: Choice) -> Suggestion:
        latents = candidates.latents
        x_nm, y_nm = candidates.position_nm[choice.index].tolist()
        return Suggestion(
            session=latents.session,
            number=latents.number,
            acquired_at_s=latents.acquired_at_s,
            # The frame's number keeps ids unique when an agent is restarted within a session.
            id=f"{self.policy}-{self.seed}-{latents.number}-{self._ledger.issued}",
            position_nm=(x_nm, y_nm),
            registration_revision=latents.registration.revision,
            dwell_time_us=self.config.dwell_time_us,
            track=int(candidates.track[choice.index]),
            predicted_mean=choice.predicted_mean,
            predicted_sd=choice.predicted_sd,
            acquisition=choice.acquisition,
            reason=choice.reason,
            policy=self.policy,
            model_revision=self.model_revision,
        )
