"""The agent that learns which atoms, by look and by place, give the best spectra."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.acquisition import joint_draw
from agents.candidates import Candidates, Float64, Site
from agents.config import AgentConfig
from agents.cost import dwell_time_us, log_cost, tour, way_nm
from agents.density import log_density
from agents.explanation import Weighed, joined, of_objectives
from agents.features import FeatureScale
from agents.first_look import distance_to, nearest_alike, unseen_kind
from agents.goals import Goal, Outlook, OverTheField, Planned, Second, TradeOff, Widen, goal_of
from agents.learner import Learner, LearnerState, Measured
from agents.objective import ObjectiveConfig
from agents.portfolio import Portfolio
from agents.protocol import Input
from agents.site_agent import NOT_FINITE, Choice, Observation, SiteAgent, SiteAgentState
from agents.slow_path import Plans, Request, request_of
from agents.snapshot import Arrays, pack, unpack
from agents.stall import since_better
from agents.stopping import Standing
from streamer.messages import ModelRevision, Score

MIN_OBSERVATIONS = 2
# Sites that are compared with all that were measured, where a search has stalled.
MOST_COMPARED = 1024
# One value further than this from the usual one, in sd of its counting noise, is no chance.
STANDS_OUT = 4.0
# How the reason of a suggestion ends where the windows that were to be learnt over do not come.
NO_WINDOWS = "without windows, which were asked for: set streamer.pipeline.encode.send_windows = true"


class ExplorerState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """What the explorer knows beyond every agent; see ``Explorer``."""

    site: SiteAgentState
    learners: list[LearnerState]
    plans: list[Request]


class Explorer(SiteAgent):
    """First looks at what is unlike, then where its goal promises most.

    Parameters
    ----------
    config, seed
        As of ``SiteAgent``; the seed names the suggestions, and is that of Thompson sampling.
    """

    policy = "explorer"

    def __init__(self, config: AgentConfig | None = None, seed: int | None = None) -> None:
        super().__init__(config, seed)
        self._goal = goal_of(self.config)
        signs = self._goal.signs if isinstance(self._goal, TradeOff) else (self._goal.sign,)
        features, fold, every = self.config.features, self.config.angle_fold, self.config.refit_every
        self._learners = [
            Learner(features, fold, refit_every=every, sign=sign, seed=self.seed) for sign in signs
        ]
        self._plans = Plans()
        self._density: tuple[Candidates, Float64] | None = None

    @property
    def model_revision(self) -> int:
        """Number of the last fit of the surrogate; 0 before the first."""
        return self._learner.revision

    @property
    def _learner(self) -> Learner:
        """Of the objective; where there are two, the other is told and fitted in step with it."""
        return self._learners[0]

    @property
    def surrogate(self) -> Portfolio:
        """What it has learnt, for whoever wants to look at it.

        Raises
        ------
        LookupError
            Before the first frame with atoms.
        """
        if self._learner.surrogate is None:
            raise LookupError("the explorer has seen no atom yet; tell it a frame first")
        return self._learner.surrogate

    def statistics(self) -> dict[str, int]:
        """Count suggestions, how they ended, and fits that found nothing; see ``SiteAgent``."""
        return super().statistics() | {"fits without result": self._learner.fits_without_result}

    # -- learn ---------------------------------------------------------------------------------

    def _hear(self, message: Input) -> Score | None:
        before = self._candidates
        score = super()._hear(message)
        if self._candidates is not before:
            self._take_candidates()
        elif score is not None:
            self._learn_from_last()
        self._note_due_fit()
        return score

    def change_objective(self, config: ObjectiveConfig) -> tuple[Score, ...]:
        """Look for something else from now on; see ``SiteAgent``."""
        scores = super().change_objective(config)
        self._tell_all()
        self._note_due_fit()
        return scores

    def _tell_all(self) -> None:
        """Teach all measurements anew."""
        self._plans.forget()
        for learner, lessons in zip(self._learners, self._lessons(self.observations), strict=True):
            learner.tell_all(lessons)

    def _lessons(self, observations: list[Observation]) -> list[list[Measured]]:
        """What each learner learns from measurements; those of two keep step, so both must be read."""
        at_atoms = [(one.site, one) for one in observations if one.site is not None]
        if len(self._learners) == 1:
            return [[(site, one.reading) for site, one in at_atoms if one.reading is not None]]
        read = [
            ((site, one.reading), (site, one.second))
            for site, one in at_atoms
            if one.reading is not None and one.second is not None
        ]
        return [[first for first, _ in read], [second for _, second in read]]

    def think(self) -> None:
        """Get ready for what is under way; begin, in threads, the next fit and plan. See ``Agent``."""
        for learner in self._learners:
            learner.think(self._ledger.pending)
        if self._is_planned:
            self._plans.think()

    def refit(self) -> ModelRevision | None:
        """Adopt the fit whose measurement has come, and wait for it if need be; see ``Agent``."""
        candidates = self._candidates
        fits = [] if candidates is None else [learner.refit() for learner in self._learners]
        fit = fits[0] if fits else None
        if candidates is None or fit is None:
            return None
        return ModelRevision(
            session=candidates.frame.session,
            policy=self.policy,
            revision=fit.number,
            told=0,
            observations=fit.size,
            parameters=joined(*(one.parameters for one in fits if one is not None)),
        )

    def _recall_fit(self, fit: ModelRevision) -> None:
        each = [*of_objectives(fit.parameters), {}]
        for learner, parameters in zip(self._learners, each, strict=False):
            if not learner.recall(msgspec.structs.replace(fit, parameters=parameters)):
                super()._recall_fit(fit)

    def _note_due_fit(self) -> None:
        if self._learner.is_fit_due and not self._is_looking_around(pending=0):
            for learner in self._learners:
                learner.note_due_fit()

    def _take_candidates(self) -> None:
        """Offer a new frame's atoms; those of a new encoder teach anew what was measured at them."""
        candidates, scale = self._candidates, self._learner.scale
        if candidates is None or not len(candidates):
            return
        is_new = scale is None or not scale.is_of(candidates)
        for learner in self._learners if is_new else ():
            learner.begin(candidates)
        if self._see_again(candidates) or is_new:
            self._tell_all()
        for learner in self._learners:
            learner.offer(candidates)

    def _see_again(self, candidates: Candidates) -> bool:
        """Give measured atoms that an earlier encoder saw the latents of the present one; were there any?

        Latents of two encoders cannot be compared. An atom that is not in view teaches nothing until it is.
        """
        before = self.observations
        self.observations = [self._seen_anew(observation, candidates) for observation in before]
        return any(one is not other for one, other in zip(self.observations, before, strict=True))

    def _seen_anew(self, observation: Observation, candidates: Candidates) -> Observation:
        """Give a measured atom the latents of the present encoder, if it has others and is in view."""
        site = observation.site
        if site is None or candidates.speaks_as(site):
            return observation
        same = candidates.find(site, self.config.min_distance_nm)
        if same is None:
            return observation
        return replace(observation, site=replace(candidates.site(same), position_nm=site.position_nm))

    def _learn_from_last(self) -> None:
        """Teach the observation that has just come."""
        candidates, last = self._candidates, self.observations[-1]
        if self._learner.scale is None or candidates is None:
            return
        if len(candidates):
            last = self.observations[-1] = self._seen_anew(last, candidates)
        for learner, lessons in zip(self._learners, self._lessons([last]), strict=True):
            for site, reading in lessons:
                learner.tell(site, reading)
        self._plan_ahead(candidates)

    def _plan_ahead(self, candidates: Candidates) -> None:
        """Put down what BoTorch is to plan a trade-off from, every few measurements; it takes its time."""
        scale, size = self._learner.scale, self._learner.size
        if not self._is_planned or scale is None or not self._learner.revision:
            return
        free = self._ledger.free(candidates)
        if free.size and self._plans.is_due(size):
            outlook = self._outlook(candidates, free, scale)
            scores = self._goal.scores(outlook)
            request = request_of(outlook, scores, candidates, free, self._learners, self.seed)
            if request is not None:
                self._plans.ask_for(request)

    @property
    def _is_planned(self) -> bool:
        return isinstance(self._goal, TradeOff) and self.config.trade_off.is_planned

    def take_over(self, earlier: SiteAgent) -> tuple[Score, ...]:
        """Go on from where another agent is; what is learnt is learnt anew from its measurements."""
        scores = super().take_over(earlier)
        self._begin_anew(self.last_fit)
        return scores

    def _begin_anew(self, revision: int) -> None:
        """Learn all measurements anew; the next fit has the number after this one."""
        for learner in self._learners:
            learner.count_from(revision)
        self._take_candidates()
        self._note_due_fit()

    # -- answer --------------------------------------------------------------------------------

    def _choose(self, candidates: Candidates, free: NDArray[np.int64]) -> Choice:
        scale = self._learner.scale
        assert scale is not None
        if not self._is_looking_around(len(self._ledger.pending)):
            choice = self._by_model(candidates, free, scale)
        elif isinstance(self._goal, OverTheField):
            choice = self._spread(self._goal, candidates, free, scale)
        else:
            choice = self._first_look(candidates, free, scale)
        if self.config.sees_windows and not scale.channels:
            return replace(choice, reason=f"{choice.reason}; {NO_WINDOWS}")
        return choice

    def _by_model(self, candidates: Candidates, free: NDArray[np.int64], scale: FeatureScale) -> Choice:
        size, apart_nm = self._learner.size, self.config.min_distance_nm
        planned = self._plans.in_view(size, candidates, free, apart_nm)
        choice = self._best_planned(candidates, planned, scale) if planned else None
        return choice or self._first_on_the_way(candidates, free, scale)

    def _is_looking_around(self, pending: int) -> bool:
        """Is there nothing yet to learn from? Improvement on pure noise would be chased in vain."""
        if self._learner.size < MIN_OBSERVATIONS:
            return True
        known = self.surrogate.known
        if len(known) + pending < self.config.initial_points:
            return True
        if isinstance(self._goal, OverTheField):  # that a field is flat is something to know of it
            return False
        return float((np.abs(known.y - np.median(known.y)) / np.sqrt(known.variance)).max()) < STANDS_OUT

    def _first_look(self, candidates: Candidates, free: NDArray[np.int64], scale: FeatureScale) -> Choice:
        """Take an atom of a kind that was not looked at; where the way counts, the nearest of it."""
        offered, beam_nm = scale.latents(candidates.mean[free]), self._beam_nm(candidates)
        index, reason = unseen_kind(offered, self._seen(scale))
        if self.config.cost.weight and beam_nm is not None:
            index = nearest_alike(offered, index, way_nm(beam_nm, candidates.position_nm[free]))
        return Choice(index=int(free[index]), reason=f"first look: {reason}")

    def _spread(
        self, goal: OverTheField, candidates: Candidates, free: NDArray[np.int64], scale: FeatureScale
    ) -> Choice:
        """Take sites all over the field, before the model can say where most is to be learnt."""
        outlook = self._outlook(candidates, free, scale)
        if not (np.isfinite(outlook.sd).all() and outlook.sd.any()):
            return self._look_instead(candidates, free, scale)
        cost = self._cost(candidates, free, self._dwell_times_us(outlook.sd), ())
        drawn = goal.first(outlook, self._rng(), cost)
        return Choice(index=int(free[drawn]), reason="first look: drawn from the sites all over the field")

    def _look_instead(self, candidates: Candidates, free: NDArray[np.int64], scale: FeatureScale) -> Choice:
        """Look at what is unlike, where the model has no finite numbers."""
        looked = self._first_look(candidates, free, scale)
        return replace(looked, reason=f"{NOT_FINITE}; {looked.reason}")

    def _rng(self, ahead: int = 0) -> np.random.Generator:
        """For one answer; seeded by the count, so that it does not depend on how often one asked in vain."""
        return np.random.default_rng([self.seed, self._ledger.issued + ahead])

    def _seen(self, scale: FeatureScale) -> Float64:
        """Scaled latents of the atoms that were measured or are under way, shape ``(k, d)``."""
        seen = [*(o.site for o in self.observations if o.site is not None), *self._ledger.pending]
        means = [site.mean for site in seen if scale.knows(site)]
        return scale.latents(np.stack(means)) if means else np.zeros((0, scale.center.size))

    def _first_on_the_way(
        self, candidates: Candidates, free: NDArray[np.int64], scale: FeatureScale
    ) -> Choice:
        """Take the best, or where time counts the first of a short tour through all that may be asked for."""
        room = self._ledger.room if self.config.cost.weight else 1
        choices = [self._best_by_goal(candidates, free, scale)]
        while len(choices) < room:
            taken = [choice.index for choice in choices]
            places_nm = candidates.position_nm[taken]
            away_nm = np.min(
                [way_nm(place_nm, candidates.position_nm[free]) for place_nm in places_nm], axis=0
            )
            left = free[(away_nm >= self.config.min_distance_nm) & ~np.isin(free, taken)]
            if not left.size:
                break
            sites = [candidates.site(index) for index in taken]
            choices.append(self._best_by_goal(candidates, left, scale, sites))
        places_nm = candidates.position_nm[[choice.index for choice in choices]]
        return choices[tour(self._beam_nm(candidates), places_nm)[0]]

    def _best_by_goal(
        self,
        candidates: Candidates,
        free: NDArray[np.int64],
        scale: FeatureScale,
        also: Sequence[Site] = (),
    ) -> Choice:
        """Take the atom that promises most for its cost, or, when the search has stalled, widen it.

        ``also`` names sites that will be asked for as well.
        """
        outlook, goal = self._outlook(candidates, free, scale, also), self._goal_now()
        choice = self._best_of(outlook, goal, candidates, free, also)
        return choice or self._look_instead(candidates, free, scale)

    def _best_planned(
        self, candidates: Candidates, planned: Sequence[int], scale: FeatureScale
    ) -> Choice | None:
        """Take the first of the planned sites; where time counts, the one that promises most for its cost.

        All of them are to be measured, so their order costs nothing but the way.
        """
        count = len(planned) if self.config.cost.weight else 1
        free = np.array(planned[:count], dtype=np.int64)
        outlook = self._outlook(candidates, free, scale)
        choice = self._best_of(outlook, Planned(self.config.trade_off), candidates, free)
        # The first of a plan was taken as it came, not weighed against the others.
        return replace(choice, among=None) if choice is not None and count == 1 else choice

    def _best_of(
        self,
        outlook: Outlook,
        goal: Goal,
        candidates: Candidates,
        free: NDArray[np.int64],
        also: Sequence[Site] = (),
    ) -> Choice | None:
        """Take the site that promises most for its cost; None where the model has no finite numbers."""
        dwell_us = self._dwell_times_us(outlook.sd)
        cost = self._cost(candidates, free, dwell_us, also)
        scores = goal.scores(outlook) - cost
        top = int(scores.argmax())  # the first of equals; one that is no number, where there is any
        is_known = np.isfinite(outlook.mean).all() and np.isfinite(outlook.sd).all()
        if not (is_known and math.isfinite(outlook.best) and math.isfinite(scores[top])):
            return None
        return Choice(
            index=int(free[top]),
            reason=goal.reason(outlook, top),
            predicted_mean=goal.sign * float(outlook.mean[top]),
            predicted_sd=float(outlook.sd[top]),
            acquisition=float(scores[top]),
            dwell_time_us=float(dwell_us[top]),
            among=Weighed(
                candidates=candidates,
                free=free,
                mean=outlook.mean,
                sd=outlook.sd,
                scores=scores,
                cost=cost,
                sign=goal.sign,
                parameters=self._parameters(),
            ),
        )

    def _parameters(self) -> Callable[[], dict[str, list[float]]]:
        """Give those of the models as they are now, whenever they are asked for."""
        models = [learner.surrogate for learner in self._learners if learner.surrogate is not None]
        fits = [model.fitted for model in models]
        return lambda: joined(*(model.parameters(fit) for model, fit in zip(models, fits, strict=True)))

    def _dwell_times_us(self, sd: Float64) -> Float64:
        """Exposures of the sites: as configured, or by what is unsure there."""
        counted = [
            one.reading.variance * one.dwell_time_us
            for one in self.observations
            if self.config.cost.dwell_noise_part and one.reading is not None and one.dwell_time_us > 0
        ]
        if not counted:
            return np.full(sd.size, self.config.dwell_time_us)
        return dwell_time_us(sd, float(np.median(counted)), self.config.cost)

    def _cost(
        self, candidates: Candidates, free: NDArray[np.int64], dwell_us: Float64, also: Sequence[Site]
    ) -> Float64:
        """What to take off for the time of each measurement, from where the beam will be by then."""
        if not self.config.cost.weight:
            return np.zeros(free.size)
        from_nm = also[-1].position_nm if also else self._beam_nm(candidates)
        ways_nm = way_nm(from_nm, candidates.position_nm[free])
        return log_cost(ways_nm, dwell_us, self.config.cost, self.config.dwell_time_us)

    def _beam_nm(self, candidates: Candidates) -> Float64 | None:
        """Where the beam was sent last; None before the first time, or where it cannot be compared."""
        last = self._ledger.last
        if last is None or last.registration_revision != candidates.frame.registration_revision:
            return None
        return last.position_nm

    def _outlook(
        self,
        candidates: Candidates,
        free: NDArray[np.int64],
        scale: FeatureScale,
        also: Sequence[Site] = (),
    ) -> Outlook:
        """Forecast what may be measured; what is under way, or will be, counts as come."""
        for learner in self._learners:
            learner.expect([*self._ledger.pending, *also])
        surrogate, novelty = self.surrogate, candidates.novelty
        mean = surrogate.mean[free]

        def draw(some: NDArray[np.int64]) -> Float64:
            rng = self._rng(ahead=len(also))
            return joint_draw(*surrogate.joint(surrogate.offered[free[some]]), rng)

        return Outlook(
            mean=mean,
            sd=surrogate.sd[free],
            best=surrogate.best_known(),
            novelty=np.zeros(free.size) if novelty is None else novelty[free],
            log_density=lambda: self._log_density(candidates, scale)[free],
            away=lambda: self._away(candidates, free, scale),
            draw=draw,
            second=self._second(free),
        )

    def _away(self, candidates: Candidates, free: NDArray[np.int64], scale: FeatureScale) -> Float64:
        """How unlike all that was seen some of the sites are, evenly taken; 0 of the others."""
        away = np.zeros(free.size)
        some = slice(None, None, -(-free.size // MOST_COMPARED))
        away[some] = distance_to(scale.latents(candidates.mean[free[some]]), self._seen(scale))
        return away

    def _second(self, free: NDArray[np.int64]) -> Second | None:
        """Forecast the second objective, where two are weighed."""
        surrogates = [learner.surrogate for learner in self._learners if learner.surrogate is not None]
        if len(surrogates) < 2:
            return None
        known = np.stack([surrogate.at_known() for surrogate in surrogates], axis=1)
        return Second(mean=surrogates[1].mean[free], sd=surrogates[1].sd[free], known=known)

    def _log_density(self, candidates: Candidates, scale: FeatureScale) -> Float64:
        """Of the sites of a frame, computed once."""
        if self._density is None or self._density[0] is not candidates:
            self._density = candidates, log_density(scale.latents(candidates.mean))
        return self._density[1]

    def _goal_now(self) -> Goal:
        """The goal, or something else by turns where nothing better comes."""
        stall = self.config.stall
        if self._goal.direction == "neither" or not stall.after_measurements:
            return self._goal
        # The first looks were not meant to find anything better.
        count = min(self._since_better(), self._learner.size - self.config.initial_points)
        turn = count - stall.after_measurements + len(self._ledger.pending) + 1
        if count < stall.after_measurements or turn % stall.every:
            return self._goal
        return Widen(self._goal, count, is_by_distance=turn // stall.every % 2 == 0)

    def _since_better(self) -> int:
        known = self.surrogate.known
        return since_better(known.y, known.variance)

    def _standing(self) -> Standing:
        known, candidates, scale = super()._standing(), self._candidates, self._learner.scale
        if self._goal.direction != "neither" and self._learner.size:
            known = replace(known, since_better=self._since_better())
        # Before its first fit the model knows neither how far a forecast reaches nor how sure it is.
        if candidates is None or not len(candidates) or scale is None or not self._learner.revision:
            return known
        return self._goal.standing(known, lambda: self._outlook_on_what_is_left(candidates, scale))

    def _outlook_on_what_is_left(self, candidates: Candidates, scale: FeatureScale) -> Outlook:
        """Forecast the sites that were not measured; all of them where none is left."""
        free = self._ledger.free(candidates)
        return self._outlook(candidates, free if free.size else np.arange(len(candidates)), scale)

    # -- live on -------------------------------------------------------------------------------

    def checkpoint(self) -> tuple[bytes, Arrays]:
        """Say everything that it knows; see ``Agent``."""
        return pack(
            ExplorerState(
                site=self._state(),
                learners=[learner.state() for learner in self._learners],
                plans=self._plans.requests,
            ),
            self.policy,
            self.settings,
        )

    def restore(self, facts: bytes, arrays: Arrays) -> None:
        """Be as the agent was that made this checkpoint; see ``SiteAgent``.

        Where it learnt one objective and the configuration now asks for two, or the other way round, all is
        learnt anew.
        """
        state = unpack(facts, arrays, ExplorerState, self.policy)
        self._take(state.site)
        if len(state.learners) != len(self._learners):
            self._follow_configuration(state.site)
            self._begin_anew(state.learners[0].revision)
            return
        lessons = self._lessons(self.observations)
        for learner, known, lesson in zip(self._learners, state.learners, lessons, strict=True):
            learner.restore(known, self._candidates, lesson)
        self._plans.restore(state.plans)
        self._follow_configuration(state.site)
