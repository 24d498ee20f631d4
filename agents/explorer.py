"""The agent that learns which atoms, by look and by place, give the best spectra."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.acquisition import log_expected_improvement
from agents.candidates import Candidates, Float64, Site
from agents.config import AgentConfig
from agents.evidence import fit
from agents.first_look import unseen_kind
from agents.kernels import Hyperparameters, Part, as_vector, of_latents, of_position
from agents.objective import ObjectiveConfig
from agents.site_agent import NOT_FINITE, Choice, Observation, SiteAgent, SiteAgentState
from agents.snapshot import Arrays, pack, unpack
from agents.surrogate import Observations, Surrogate, SurrogateState
from streamer.messages import Latents, ModelRevision, Outcome, Score, StrainMap

# Positions of two registrations cannot be compared: so many fields apart, they share no covariance.
REVISION_APART = 100.0
MIN_OBSERVATIONS = 2
# Measurements between the one that makes a fit due and the one from which on it is used: time to compute it
# beside the measuring. A fixed number, so that what is suggested does not depend on how long it took.
ADOPTED_AFTER = 1
# One value further than this from the usual one, in sd of its counting noise, is no chance.
STANDS_OUT = 4.0
# An expected improvement below this part of the best is none to a person.
HARDLY = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class FeatureScale:
    """Brings latents and positions to order 1; fixed for as long as the encoder is the same.

    Attributes
    ----------
    model_revision
        The encoder whose latents it speaks of.
    center, unit
        Of each latent, shape ``(d,)``.
    center_nm, half_field_nm
        Of the field of view.
    """

    model_revision: str
    center: Float64
    unit: Float64
    center_nm: Float64
    half_field_nm: float

    @classmethod
    def of(cls, candidates: Candidates) -> FeatureScale:
        """Take the scale from a frame's candidates.

        The unit of a latent is the sd of its aggregated posterior: the spread between the atoms and the
        encoder's own doubt together. So a latent that the encoder leaves unused, all doubt and no
        spread, counts for nothing instead of being blown up to order 1.
        """
        variance = candidates.mean.var(axis=0) + (candidates.sd**2).mean(axis=0)
        frame = candidates.frame
        return cls(
            model_revision=candidates.frame.model_revision,
            center=np.median(candidates.mean, axis=0),
            unit=np.sqrt(np.maximum(variance, 1e-12)),
            center_nm=np.array(frame.center_nm),
            half_field_nm=max(frame.field_of_view_nm) / 2,
        )

    def latents(self, mean: Float64) -> Float64:
        """Scale latents ``(n, d)``."""
        return (mean - self.center) / self.unit

    def features(self, mean: Float64, position_nm: Float64, revision: NDArray[np.int64] | int) -> Float64:
        """Scale latents ``(n, d)`` and specimen positions ``(n, 2)`` to features ``(n, d + 2)``."""
        place = (position_nm - self.center_nm) / self.half_field_nm
        place[:, 0] += REVISION_APART * np.asarray(revision)
        return np.concatenate([self.latents(mean), place], axis=1)


@dataclass(frozen=True, slots=True)
class DueFit:
    """A fit that is to be made.

    Attributes
    ----------
    number
        Counts the fits that became due, from 1: the revision that it makes.
    size
        Of the observations that the surrogate knew, how many there were then.
    """

    number: int
    size: int


class ExplorerState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """What the explorer knows beyond every agent; see ``Explorer``."""

    site: SiteAgentState
    scale: FeatureScale | None
    surrogate: SurrogateState | None
    revision: int
    due: list[DueFit]
    fits_asked: int
    size_at_due: int


class Explorer(SiteAgent):
    """First looks at what is unlike, then where improvement is expected.

    Parameters
    ----------
    config, seed
        As of ``SiteAgent``; nothing is drawn, the seed only names the suggestions.
    """

    policy = "explorer"

    def __init__(self, config: AgentConfig | None = None, seed: int | None = None) -> None:
        super().__init__(config, seed)
        self._scale: FeatureScale | None = None
        self._surrogate: Surrogate | None = None
        self._sign = 1.0 if self.config.goal == "maximise" else -1.0
        self._revision = 0
        self._due: deque[DueFit] = deque()
        self._under_way: Future[Hyperparameters] | None = None  # the first of those due
        self._fits_asked = 0
        self._size_at_due = 0

    @property
    def model_revision(self) -> int:
        """Number of the last fit of the surrogate; 0 before the first."""
        return self._revision

    @property
    def surrogate(self) -> Surrogate:
        """What it has learnt, for whoever wants to look at it.

        Raises
        ------
        LookupError
            Before the first frame with atoms.
        """
        if self._surrogate is None:
            raise LookupError("the explorer has seen no atom yet; tell it a frame first")
        return self._surrogate

    def tell(self, message: Latents | StrainMap | Outcome) -> Score | None:
        """Take in a frame's candidates or an outcome, and leave a map of the strain; see ``Agent``."""
        before = self._candidates
        score = super().tell(message)
        if self._candidates is not before:
            self._keep_scale()
        elif score is not None:
            self._learn_from_last()
        self._note_due_fit()
        return score

    def change_objective(self, config: ObjectiveConfig) -> tuple[Score, ...]:
        """Look for something else from now on; see ``SiteAgent``."""
        scores = super().change_objective(config)
        self._forget_fits()
        self._tell_surrogate()
        self._note_due_fit()
        return scores

    # -- think ---------------------------------------------------------------------------------

    def _note_due_fit(self) -> None:
        """Put down that a fit is due, when enough is new; what is under way does not count."""
        size = 0 if self._surrogate is None else len(self._surrogate.known)
        if size < self._size_at_due + self._news_for_a_fit() or self._is_looking_around(pending=0):
            return
        self._fits_asked += 1
        self._size_at_due = size
        self._due.append(DueFit(self._fits_asked, size))

    def _news_for_a_fit(self) -> int:
        """Measurements that pay for a fit: its cost grows with the square of them, what it finds does not."""
        return max(self.config.refit_every, self._size_at_due // 4)

    def _forget_fits(self) -> None:
        """What was due is of no use any more; the next fit has the next number all the same."""
        self._due.clear()
        self._under_way = None
        self._size_at_due = 0

    def think(self) -> None:
        """Begin, in a thread, the fit that will be adopted next; see ``Agent``."""
        if not self._due or self._surrogate is None or self._under_way is not None:
            return
        # A thread of its own for each: they are seconds apart, and none is left when the work is done.
        pool = ThreadPoolExecutor(1, "fit")
        self._under_way = pool.submit(fit, *self._to_fit(self._surrogate, self._due[0]))
        pool.shutdown(wait=False)

    def refit(self) -> ModelRevision | None:
        """Adopt the fit whose measurement has come, and wait for it if need be; see ``Agent``."""
        surrogate, candidates = self._surrogate, self._candidates
        if not self._due or surrogate is None or candidates is None:
            return None
        if len(surrogate.known) < self._due[0].size + ADOPTED_AFTER:
            return None
        due, under_way = self._due.popleft(), self._under_way
        self._under_way = None
        found = fit(*self._to_fit(surrogate, due)) if under_way is None else under_way.result()
        self._adopt(surrogate, found, due.number, due.size)
        return ModelRevision(
            session=candidates.frame.session,
            policy=self.policy,
            revision=due.number,
            told=0,
            observations=due.size,
            parameters=found.parameters(surrogate.parts),
        )

    @staticmethod
    def _to_fit(surrogate: Surrogate, due: DueFit) -> tuple[Observations, tuple[Part, ...], Hyperparameters]:
        return surrogate.known.first(due.size), surrogate.parts, surrogate.hyperparameters

    def _adopt(self, surrogate: Surrogate, found: Hyperparameters, number: int, size: int) -> None:
        """Count the fit and compute with it; one that found no finite numbers left everything as it was."""
        self._revision = number
        before, after = (as_vector(one).tobytes() for one in (surrogate.hyperparameters, found))
        self._counts["fits without result"] += before == after
        surrogate.adopt(found, size, size + ADOPTED_AFTER)

    def _recall_fit(self, fit: ModelRevision) -> None:
        if self._surrogate is None:
            super()._recall_fit(fit)
            return
        try:
            found = Hyperparameters.of_parameters(fit.parameters, self._surrogate.parts)
        except ValueError:  # of another model, or of an older version
            super()._recall_fit(fit)
            return
        self._adopt(self._surrogate, found, fit.revision, fit.observations)
        while self._due and self._due[0].number <= fit.revision:
            self._due.popleft()
            self._under_way = None
        if fit.revision > self._fits_asked:  # what made it due is not known here
            self._fits_asked = fit.revision
            self._size_at_due = max(self._size_at_due, fit.observations)

    # -- learn ---------------------------------------------------------------------------------

    def _keep_scale(self) -> None:
        """Make the scale from the first frame, and anew for a new encoder."""
        candidates = self._candidates
        if candidates is None or not len(candidates):
            return
        if self._scale is not None and self._scale.model_revision == candidates.frame.model_revision:
            if self._see_again():
                self._forget_fits()  # of other observations than are known now
                self._tell_surrogate()
        else:
            d = candidates.mean.shape[1]
            self._scale, self._surrogate = FeatureScale.of(candidates), _surrogate(d)
            self._forget_fits()
            self._see_again()
            self._tell_surrogate()
        self._offer(candidates)

    def _offer(self, candidates: Candidates) -> None:
        assert self._scale is not None
        assert self._surrogate is not None
        revision = candidates.frame.registration_revision
        self._surrogate.offer(self._scale.features(candidates.mean, candidates.position_nm, revision))

    def _see_again(self) -> bool:
        """Give measured atoms that an earlier encoder saw the latents of the present one; were there any?

        Latents of two encoders cannot be compared. An atom that is not in view teaches nothing until it is.
        """
        candidates = self._candidates
        if candidates is None or not len(candidates):
            return False
        before = self.observations
        self.observations = [self._seen_anew(observation, candidates) for observation in before]
        return any(one is not other for one, other in zip(self.observations, before, strict=True))

    def _seen_anew(self, observation: Observation, candidates: Candidates) -> Observation:
        """Give a measured atom the latents of the present encoder, if it has others and is in view."""
        site = observation.site
        if site is None or site.model_revision == candidates.frame.model_revision:
            return observation
        same = candidates.find(site, self.config.min_distance_nm)
        if same is None:
            return observation
        return replace(observation, site=replace(candidates.site(same), position_nm=site.position_nm))

    def _learn_from_last(self) -> None:
        """Tell the surrogate of the observation that has just come."""
        if self._scale is None or self._surrogate is None or self._candidates is None:
            return
        last = self.observations[-1]
        if len(self._candidates):
            last = self.observations[-1] = self._seen_anew(last, self._candidates)
        if last.reading is not None and last.site is not None and self._is_known(last.site):
            (x,) = self._features_of([last.site])
            self._surrogate.tell(x, self._sign * last.reading.value, last.reading.variance)

    def _is_known(self, site: Site) -> bool:
        """Were its latents said by the present encoder?"""
        return self._scale is not None and site.model_revision == self._scale.model_revision

    def _tell_surrogate(self) -> None:
        """Tell it everything anew."""
        if self._surrogate is not None:
            self._surrogate.tell_all(self._known())

    def _known(self) -> Observations:
        """What was measured at atoms that the present encoder has seen."""
        known = [
            (observation.site, observation.reading)
            for observation in self.observations
            if observation.reading is not None
            and observation.site is not None
            and self._is_known(observation.site)
        ]
        return Observations(
            self._features_of([site for site, _ in known]),
            self._sign * np.array([reading.value for _, reading in known]),
            np.array([reading.variance for _, reading in known]),
        )

    def _features_of(self, sites: list[Site]) -> Float64:
        assert self._scale is not None
        if not sites:
            return np.zeros((0, self._scale.center.size + 2))
        return self._scale.features(
            np.stack([site.mean for site in sites]),
            np.stack([site.position_nm for site in sites]),
            np.array([site.registration_revision for site in sites]),
        )

    # -- answer --------------------------------------------------------------------------------

    def _choose(self, candidates: Candidates, free: NDArray[np.int64]) -> Choice:
        assert self._scale is not None
        assert self._surrogate is not None
        if self._is_looking_around(len(self._ledger.pending)):
            return self._first_look(candidates, free, self._scale)
        return self._improve(candidates, free, self._scale, self._surrogate)

    def _is_looking_around(self, pending: int) -> bool:
        """Is there nothing yet to learn from? Improvement on pure noise would be chased in vain."""
        known = None if self._surrogate is None else self._surrogate.known
        if known is None or len(known) < MIN_OBSERVATIONS:
            return True
        if len(known) + pending < self.config.initial_points:
            return True
        return float((np.abs(known.y - np.median(known.y)) / np.sqrt(known.variance)).max()) < STANDS_OUT

    def _first_look(self, candidates: Candidates, free: NDArray[np.int64], scale: FeatureScale) -> Choice:
        """Take an atom of a kind that was not looked at."""
        seen = [*(o.site for o in self.observations if o.site is not None), *self._ledger.pending]
        means = [site.mean for site in seen if site.model_revision == scale.model_revision]
        index, reason = unseen_kind(
            scale.latents(candidates.mean[free]),
            scale.latents(np.stack(means)) if means else np.zeros((0, scale.center.size)),
        )
        return Choice(index=int(free[index]), reason=f"first look: {reason}")

    def _improve(
        self, candidates: Candidates, free: NDArray[np.int64], scale: FeatureScale, surrogate: Surrogate
    ) -> Choice:
        """Take the atom of the largest expected improvement over the best known."""
        pending = [s for s in self._ledger.pending if s.model_revision == scale.model_revision]
        surrogate.expect(self._features_of(pending))
        mean, sd, best = surrogate.mean[free], surrogate.sd[free], surrogate.best_known()
        log_ei = log_expected_improvement(mean, sd, best)
        if not (math.isfinite(best) and np.isfinite(log_ei).all() and np.isfinite(sd).all()):
            looked = self._first_look(candidates, free, scale)
            return replace(looked, reason=f"{NOT_FINITE}; {looked.reason}")
        top = int(log_ei.argmax())  # the first of equals
        gain = math.exp(log_ei[top])
        reason = f"expected to improve on {self._sign * best:.3g} by {gain:.1g}"
        if gain < HARDLY * abs(best):
            reason = f"hardly expected to improve on {self._sign * best:.3g}"
        return Choice(
            index=int(free[top]),
            reason=reason,
            predicted_mean=self._sign * float(mean[top]),
            predicted_sd=float(sd[top]),
            acquisition=float(log_ei[top]),
        )

    # -- live on -------------------------------------------------------------------------------

    def checkpoint(self) -> tuple[bytes, Arrays]:
        """Say everything that it knows; see ``Agent``."""
        state = ExplorerState(
            site=self._state(),
            scale=self._scale,
            surrogate=None if self._surrogate is None else self._surrogate.state(),
            revision=self._revision,
            due=list(self._due),
            fits_asked=self._fits_asked,
            size_at_due=self._size_at_due,
        )
        return pack(state, self.policy)

    def restore(self, facts: bytes, arrays: Arrays) -> None:
        """Be as the agent was that made this checkpoint; see ``SiteAgent``."""
        state = unpack(facts, arrays, ExplorerState, self.policy)
        self._take(state.site)
        self._scale = state.scale
        self._revision = state.revision
        self._due, self._under_way = deque(state.due), None
        self._fits_asked = state.fits_asked
        self._size_at_due = state.size_at_due
        self._surrogate = None
        if state.scale is not None and state.surrogate is not None:
            self._surrogate = _surrogate(state.scale.center.size)
            if self._candidates is not None and len(self._candidates):
                self._offer(self._candidates)
            self._surrogate.restore(state.surrogate, self._known())
        self._follow_configuration(state.site)


def _surrogate(latent_dim: int) -> Surrogate:
    """Over latents, then position, as ``FeatureScale.features`` gives them."""
    return Surrogate((of_latents(0, latent_dim), of_position(latent_dim)))
