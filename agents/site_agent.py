"""What all policies share: candidates in, suggestions out, outcomes bound to them by id."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, Site
from agents.config import AgentConfig
from agents.ledger import Aim, Ledger, LedgerState
from agents.objective import Objective, ObjectiveConfig, Reading, UnreadableSpectrum
from agents.snapshot import Arrays, pack, unpack
from streamer.messages import Float32, Latents, ModelRevision, Outcome, Score, StrainMap, Suggestion

# How the reason of a suggestion begins that a broken model did not take part in.
NOT_FINITE = "the model is not finite"


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


class SiteAgentState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """Everything that decides what comes next, and that was not configured.

    Attributes
    ----------
    configured, objective
        What the configuration said to look for, and what was looked for in the end.
    observations, ledger, candidates, counts
        As in ``SiteAgent``.
    """

    configured: ObjectiveConfig
    objective: ObjectiveConfig
    observations: list[Observation]
    ledger: LedgerState
    candidates: Candidates | None
    counts: dict[str, int]


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

    def think(self) -> None:
        """Begin to compute what will be needed; a baseline needs nothing."""
        return

    def refit(self) -> ModelRevision | None:
        """Go on with a new model where its time has come; a baseline has none."""
        return None

    @property
    def model_revision(self) -> int:
        """Count the fits of the model; 0 where there is none."""
        return 0

    def statistics(self) -> dict[str, int]:
        """Count suggestions and how they ended: ``ok``, ``unreadable``, ``missed``, ``refused``, …"""
        return {"suggested": self._ledger.issued, "pending": len(self._ledger.pending), **self._counts}

    # -- learn ---------------------------------------------------------------------------------

    def tell(self, message: Latents | StrainMap | Outcome) -> Score | None:
        """Take in a frame's candidates, a map of the strain or an outcome; see ``Agent``."""
        match message:
            case Outcome():
                return self._tell_outcome(message)
            case StrainMap():
                self._take_strain(message)
            # a sub-scan shows a part of the field from close by, a batch of patterns a few rows of it
            case Latents(request_id=None, is_delivered=False) if message.encoder == self.config.encoder:
                self._candidates = Candidates.of(message, self.config.min_confidence)
                self._ledger.new_frame()
            case _:
                pass
        return None

    def _take_strain(self, _: StrainMap) -> None:
        """Keep a map of the strain; most policies have no use for one."""
        return

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
        self._issue(suggestion, Aim(candidates.site(choice.index), candidates))
        return suggestion

    def _issue(self, suggestion: Suggestion, aim: Aim) -> None:
        self._ledger.open(suggestion.id, aim)
        self._counts["model not finite"] += suggestion.reason.startswith(NOT_FINITE)

    def _suggestion(self, candidates: Candidates, choice: Choice) -> Suggestion:
        frame = candidates.frame
        x_nm, y_nm = candidates.position_nm[choice.index].tolist()
        return Suggestion(
            session=frame.session,
            number=frame.number,
            acquired_at_s=frame.acquired_at_s,
            # The frame's number keeps ids unique when an agent is restarted within a session.
            id=f"{self.policy}-{self.seed}-{frame.number}-{self._ledger.issued}",
            position_nm=(x_nm, y_nm),
            position_sd_nm=candidates.sd_nm(choice.index),
            registration_revision=frame.registration_revision,
            dwell_time_us=self.config.dwell_time_us,
            track=int(candidates.track[choice.index]),
            predicted_mean=choice.predicted_mean,
            predicted_sd=choice.predicted_sd,
            acquisition=choice.acquisition,
            reason=choice.reason,
            policy=self.policy,
            model_revision=self.model_revision,
        )

    # -- live on -------------------------------------------------------------------------------

    def recall(self, decision: Suggestion | ModelRevision) -> None:
        """Take in a decision of an earlier process as if it had just been made here; see ``Agent``.

        One that cannot be placed, because what went before it is not known, is counted as ``forgotten``.
        """
        if isinstance(decision, ModelRevision):
            self._recall_fit(decision)
            return
        candidates = self._candidates
        if candidates is None or not len(candidates):
            self._counts["forgotten"] += 1
            self._ledger.pass_over()
            return
        index = candidates.recognise(decision.position_nm, decision.track)
        self._issue(decision, Aim(candidates.site(index), candidates))

    def _recall_fit(self, _: ModelRevision) -> None:
        """Take the model of a fit; a policy without one has none to take."""
        self._counts["forgotten"] += 1

    def checkpoint(self) -> tuple[bytes, Arrays]:
        """Say everything that it knows; see ``Agent``."""
        return pack(self._state(), self.policy)

    def restore(self, facts: bytes, arrays: Arrays) -> None:
        """Be as the agent was that made this checkpoint; see ``Agent``.

        Where the configuration asks for another objective than it did then, every spectrum is read anew.
        """
        state = unpack(facts, arrays, SiteAgentState, self.policy)
        self._take(state)
        self._follow_configuration(state)

    def _state(self) -> SiteAgentState:
        return SiteAgentState(
            configured=self.config.objective,
            objective=self.objective.config,
            observations=list(self.observations),
            ledger=self._ledger.state(),
            candidates=self._candidates,
            counts=dict(self._counts),
        )

    def _take(self, state: SiteAgentState) -> None:
        self.objective = Objective(state.objective)
        self.observations = list(state.observations)
        self._ledger.restore(state.ledger)
        self._candidates = state.candidates
        self._counts = Counter(state.counts)

    def _follow_configuration(self, state: SiteAgentState) -> None:
        if state.configured != self.config.objective:
            self.change_objective(self.config.objective)
