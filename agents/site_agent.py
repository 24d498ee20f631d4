"""What all policies share: candidates in, suggestions out, outcomes bound to them by id."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, FrameFacts, Site
from agents.config import AgentConfig, direction_of
from agents.explanation import ALTERNATIVES, Explanation, Weighed
from agents.ledger import Aim, Ledger, LedgerState
from agents.next_scan import Region, Scans, ScansState
from agents.objective import Objective, ObjectiveConfig, Reading, UnreadableSpectrum
from agents.protocol import Input
from agents.snapshot import Arrays, pack, unpack
from agents.stopping import Standing, Stopping, StoppingState
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
        Value of the acquisition function, less the cost; NaN where there is none.
    dwell_time_us
        Exposure; None takes the configured one.
    among
        What it was chosen from, where a model took part.
    """

    index: int
    reason: str
    predicted_mean: float = math.nan
    predicted_sd: float = math.nan
    acquisition: float = math.nan
    dwell_time_us: float | None = None
    among: Weighed | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What was chosen, from which frame, and among how many sites."""

    candidates: Candidates
    offered: int
    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """A spectrum, where it was taken, and what it is worth to the present objective.

    Attributes
    ----------
    session, id
        Those of the outcome.
    site
        The atom nearest to where the beam was, at the position where it was; None if none was near.
    spectrum, energy_offset_ev, energy_step_ev, bias_v
        As measured: kept, so that another objective can be read from it.
    reading
        None where the present objective cannot be read from the spectrum.
    second
        What the second objective gives; None where there is none, or it cannot be read.
    unreadable
        Why there is no reading; empty where there is one.
    """

    session: str
    id: str
    site: Site | None
    spectrum: Float32
    energy_offset_ev: float
    energy_step_ev: float
    bias_v: Float32 | None = None
    dwell_time_us: float = 0.0
    reading: Reading | None = None
    second: Reading | None = None
    unreadable: str = ""


class SiteAgentState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """Everything that decides what comes next, and that was not configured.

    Attributes
    ----------
    configured, objective
        What the configuration said to look for, and what was looked for in the end.
    fits_before
        Number of the last fit of the agents that this one took over from.
    names
        Of the objective and of the second one, with the contents of the files that they come from.
    observations, ledger, candidates, counts, stopping, scans
        As in ``SiteAgent``.
    """

    configured: ObjectiveConfig
    objective: ObjectiveConfig
    observations: list[Observation]
    ledger: LedgerState
    candidates: Candidates | None
    counts: dict[str, int]
    stopping: StoppingState
    names: tuple[str, ...] = ()
    scans: ScansState | None = None
    fits_before: int = 0


class SiteAgent(ABC):
    """An agent that chooses among the atoms of the current frame; a policy says which.

    Parameters
    ----------
    config
        None takes the defaults.
    seed
        In place of the configuration's.

    Attributes
    ----------
    settings
        What a person changed of the configuration that the session began with; it is in ``config`` already.
    """

    policy: ClassVar[str]

    def __init__(self, config: AgentConfig | None = None, seed: int | None = None) -> None:
        self.config = AgentConfig() if config is None else config
        self.seed = self.config.seed if seed is None else seed
        self.objective = Objective(self.config.objective)
        second = self.config.second_objective
        self.second_objective = None if second is None else Objective(second)
        self.observations: list[Observation] = []
        self.settings: dict[str, Any] = {}
        self._ledger = Ledger(self.config)
        self._candidates: Candidates | None = None
        self._counts: Counter[str] = Counter()
        self._stopping = Stopping(self.config.stopping)
        self._scans = Scans(self.config.scan)
        self._last: Answer | None = None
        self._fits_before = 0  # of the agents that it took over from

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

    @property
    def last_fit(self) -> int:
        """Number of the last fit of the session, its own or of an agent before it: none has it again."""
        return max(self._fits_before, self.model_revision)

    @property
    def last_unreadable(self) -> str:
        """Why the last spectrum gave no score; see ``Agent``."""
        return self.observations[-1].unreadable if self.observations else ""

    def statistics(self) -> dict[str, int]:
        """Count suggestions and how they ended: ``ok``, ``unreadable`` and why, ``missed``, …"""
        pending = len(self._ledger.pending) + self._scans.under_way
        return {"suggested": self._ledger.issued, "pending": pending, **self._counts}

    @property
    def stopped(self) -> str:
        """Why it suggests no more; see ``Agent``."""
        return self._stopping.reason or self._ledger.spent

    # -- learn ---------------------------------------------------------------------------------

    def tell(self, message: Input) -> Score | None:
        """Take in candidates, a map of the strain, a person's point or an outcome; see ``Agent``."""
        score = self._hear(message)
        if score is not None:
            self._stopping.consider(self._standing())
        return score

    def _standing(self) -> Standing:
        """Say how far it has come, as far as the policy knows."""
        return Standing(measured=sum(one.reading is not None for one in self.observations))

    def _hear(self, message: Input) -> Score | None:
        match message:
            case Outcome():
                return self._tell_outcome(message)
            case StrainMap():
                self._take_strain(message)
            case Suggestion():
                self._note_a_persons(message)
            # a sub-scan shows a part of the field from close by, a batch of patterns a few rows of it
            case Latents(request_id=None, is_delivered=False) if message.encoder == self.config.encoder:
                before = self._candidates
                self._candidates = Candidates.of(
                    message, self.config.min_confidence, sees_windows=self.config.sees_windows
                )
                self._scans.see(self._candidates, before)
                self._ledger.new_frame()
            case _:
                pass
        return None

    def _note_a_persons(self, suggestion: Suggestion) -> None:
        """Expect the outcome of what a person measures at an atom; elsewhere it teaches nothing of one."""
        candidates = self._candidates
        if candidates is None or not len(candidates) or suggestion.action != "spectrum":
            return
        if suggestion.registration_revision != candidates.frame.registration_revision:
            return
        index, distance_nm = candidates.nearest(np.array(suggestion.position_nm, dtype=np.float64))
        if distance_nm <= self.config.max_miss_nm:
            aim = Aim(candidates.site(index), candidates, is_persons=True)
            self._ledger.open_for_a_person(suggestion.id, aim)

    def _take_strain(self, _: StrainMap) -> None:
        """Keep a map of the strain; most policies have no use for one."""
        return

    def _tell_outcome(self, outcome: Outcome) -> Score | None:
        if self._scans.end(outcome.id, is_decided=outcome.status != "withdrawn"):
            self._counts[outcome.status] += 1
            return None
        aim = self._ledger.close(outcome.id)
        self._counts[outcome.status] += 1
        if outcome.status == "withdrawn":  # nobody decided on it: the site is as good as before
            return None
        if aim.is_persons and outcome.status != "ok":  # nobody here asked for it
            return None
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
                bias_v=None if outcome.bias_v is None else outcome.bias_v.copy(),
                dwell_time_us=outcome.dwell_time_us,
            )
        )
        self._counts["unreadable"] += observation.reading is None
        if observation.unreadable:
            self._counts[f"unreadable, {observation.unreadable.partition(':')[0]}"] += 1
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
        self._read_all()
        self._stopping.begin_anew()
        scores = (self._score(observation) for observation in self.observations)
        return tuple(score for score in scores if score is not None)

    def _read_all(self) -> None:
        """Read every spectrum anew, in the order in which they came: a novelty looks back."""
        self._forget_second()
        self.observations = [self._read(observation) for observation in self.observations]

    def _forget_second(self) -> None:
        """Let the second objective begin with nothing remembered."""
        if self.second_objective is not None:
            self.second_objective = Objective(self.second_objective.config)

    def _read(self, observation: Observation) -> Observation:
        """Read both objectives, and let them remember what they have read."""
        reading, unreadable = _read_by(self.objective, observation)
        second = None
        if self.second_objective is not None:
            second, _ = _read_by(self.second_objective, observation)
        return replace(observation, reading=reading, second=second, unreadable=unreadable)

    def _score(self, observation: Observation) -> Score | None:
        if observation.reading is None:
            return None
        return Score(
            session=observation.session,
            id=observation.id,
            objective=self.objective.name,
            value=observation.reading.value,
            variance=observation.reading.variance,
            goal=direction_of(self.config.goal),
        )

    # -- answer --------------------------------------------------------------------------------

    def ask(self) -> Suggestion | None:
        """Answer where to measure next; see ``Agent``."""
        suggestion, last = self.consider(), self._last
        if suggestion is not None and suggestion.action == "scan":
            self._issue_scan(suggestion)
        elif suggestion is not None and last is not None:
            self._issue(suggestion, Aim(last.candidates.site(last.choice.index), last.candidates))
        return suggestion

    def consider(self) -> Suggestion | None:
        """Say what ``ask`` would answer now, without suggesting it; ``explain`` then says why."""
        candidates = self._candidates
        if candidates is None or self.stopped or not self._ledger.may_suggest:
            return None
        region = self._scans.due(candidates, self._ledger.issued)
        if region is not None:
            return self._scan(candidates.frame, region)
        free = self._ledger.free(candidates)
        if free.size == 0:
            return None
        choice = self._choose(candidates, free)
        self._last = Answer(candidates, free.size, choice)
        return self._suggestion(candidates, choice)

    def explain(self, alternatives: int = ALTERNATIVES) -> Explanation | None:
        """Say why the last answer of ``ask`` was that, and what would have come next; it changes nothing.

        Parameters
        ----------
        alternatives
            How many sites after the chosen one.

        Returns
        -------
        explanation
            None before this agent has answered: what it only recalled it did not weigh. None after a scan,
            too, for which no sites were weighed.
        """
        last = self._last
        if last is None:
            return None
        choice, among = last.choice, last.choice.among
        if among is None:
            return Explanation(reason=choice.reason, offered=last.offered)
        return Explanation(
            reason=choice.reason,
            offered=last.offered,
            ranking=among.ranking(1 + alternatives),
            parameters=among.parameters(),
        )

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
            id=self._next_id(frame),
            position_nm=(x_nm, y_nm),
            position_sd_nm=candidates.sd_nm(choice.index),
            registration_revision=frame.registration_revision,
            dwell_time_us=choice.dwell_time_us or self.config.dwell_time_us,
            track=int(candidates.track[choice.index]),
            predicted_mean=choice.predicted_mean,
            predicted_sd=choice.predicted_sd,
            acquisition=choice.acquisition,
            reason=choice.reason,
            policy=self.policy,
            model_revision=self.model_revision,
        )

    def _scan(self, frame: FrameFacts, region: Region) -> Suggestion:
        """Word the scan of a region; its dose is said in spectra, for the current is the instrument's."""
        scan = self.config.scan
        beam_us = scan.dwell_time_us * scan.pixels**2
        self._last = None  # no site was weighed
        return Suggestion(
            session=frame.session,
            number=frame.number,
            acquired_at_s=frame.acquired_at_s,
            id=self._next_id(frame),
            action="scan",
            position_nm=region.center_nm,
            registration_revision=frame.registration_revision,
            dwell_time_us=scan.dwell_time_us,
            field_of_view_nm=(region.edge_nm, region.edge_nm),
            shape=(scan.pixels, scan.pixels),
            reason=f"{region.reason}; {beam_us / 1000:.3g} ms of beam on {region.edge_nm:.3g} × "
            f"{region.edge_nm:.3g} nm, the dose of {beam_us / self.config.dwell_time_us:.2g} spectra",
            policy=self.policy,
            model_revision=self.model_revision,
        )

    def _next_id(self, frame: FrameFacts) -> str:
        # The frame's number keeps ids unique when an agent is restarted within a session.
        return f"{self.policy}-{self.seed}-{frame.number}-{self._ledger.issued}"

    def _issue_scan(self, scan: Suggestion) -> None:
        self._ledger.count()
        self._counts["scans"] += 1
        width_nm = scan.field_of_view_nm[0] if scan.field_of_view_nm is not None else 0.0
        region = Region(center_nm=scan.position_nm, edge_nm=width_nm)
        self._scans.begin(scan.id, region, self._ledger.issued)

    # -- live on -------------------------------------------------------------------------------

    def recall(self, decision: Suggestion | ModelRevision) -> None:
        """Take in a decision of an earlier process as if it had just been made here; see ``Agent``.

        One that cannot be placed, because what went before it is not known, is counted as ``forgotten``.
        """
        if isinstance(decision, ModelRevision):
            self._recall_fit(decision)
            return
        if decision.action == "scan":
            self._issue_scan(decision)
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
        return pack(self._state(), self.policy, self.settings)

    def restore(self, facts: bytes, arrays: Arrays) -> None:
        """Be as the agent was that made this checkpoint; see ``Agent``.

        Where the configuration asks for another objective than it did then, or a file that it names was
        changed, every spectrum is read anew.
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
            stopping=self._stopping.state(),
            scans=self._scans.state(),
            names=self._names(),
            fits_before=self._fits_before,
        )

    def _names(self) -> tuple[str, ...]:
        two = (self.objective, self.second_objective)
        return tuple(one.name for one in two if one is not None)

    def _take(self, state: SiteAgentState) -> None:
        self.objective = Objective(state.objective)
        self._forget_second()
        self.observations = list(state.observations)
        self._ledger.restore(state.ledger)
        self._candidates = state.candidates
        self._counts = Counter(state.counts)
        self._stopping.restore(state.stopping)
        self._scans.restore(state.scans)
        self._fits_before = state.fits_before

    def _follow_configuration(self, state: SiteAgentState) -> None:
        is_same = state.configured == self.config.objective
        if not is_same or state.names != self._names():  # of a file that was changed, or another second one
            self.change_objective(self.objective.config if is_same else self.config.objective)
        else:
            self._remember_all()

    def _remember_all(self) -> None:
        """Let the objectives remember what an earlier process read."""
        for objective in (self.objective, self.second_objective):
            if objective is not None:
                for one in self.observations:
                    objective.remember(one.spectrum, one.energy_offset_ev, one.energy_step_ev, one.bias_v)

    def take_over(self, earlier: SiteAgent) -> tuple[Score, ...]:
        """Go on from where another agent is, with one's own configuration.

        Returns
        -------
        scores
            Of every measurement, where objective or goal are not what they were; else none.
        """
        state = earlier._state()
        self._take(state)
        self._fits_before = earlier.last_fit
        self._stopping = Stopping(self.config.stopping)  # what was enough for another goal is not for this
        self._follow_configuration(state)
        if (earlier.config.objective, earlier.config.goal) == (self.config.objective, self.config.goal):
            return ()
        scores = (self._score(observation) for observation in self.observations)
        return tuple(score for score in scores if score is not None)


def _read_by(objective: Objective, observation: Observation) -> tuple[Reading | None, str]:
    """Read an objective, and say why not where it cannot be; then let it remember the spectrum."""
    reading, why_not = None, ""
    measured = (
        observation.spectrum,
        observation.energy_offset_ev,
        observation.energy_step_ev,
        observation.bias_v,
    )
    try:
        reading = objective.read(*measured)
    except UnreadableSpectrum as error:
        why_not = f"{error.reason}: {error}"
    objective.remember(*measured)
    return reading, why_not
