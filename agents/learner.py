"""What the measurements so far teach, and when its model is fitted anew.

A fit is due after so many measurements and used from a fixed later measurement on; between the two it is
computed beside the measuring. So what is suggested does not depend on how long it took.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates, Float64, Site
from agents.config import FeatureName, of_windows
from agents.features import FeatureScale, parts_of
from agents.kernels import Part
from agents.objective import Reading
from agents.portfolio import Fitted, Portfolio, PortfolioState
from agents.surrogate import Observations
from streamer.messages import ModelRevision

# Measurements between the one that makes a fit due and the one from which on it is used: time to compute it.
ADOPTED_AFTER = 1
Measured = tuple[Site, Reading]
# Learnt over where only windows were asked for, and none come.
WITHOUT_WINDOWS: FeatureName = "latents + position"


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


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A fit that is computed with from now on.

    Attributes
    ----------
    number, size
        As of the ``DueFit`` that it was.
    parameters
        What it found, by name.
    """

    number: int
    size: int
    parameters: dict[str, list[float]]


class LearnerState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """What a learner knows beyond the measurements and what is on offer; see ``Learner``."""

    scale: FeatureScale | None
    surrogate: PortfolioState | None
    revision: int
    fits_without_result: int
    due: list[DueFit]
    fits_asked: int
    size_at_due: int


class Learner:
    """A portfolio of surrogates over the features of one encoder, and the schedule of its fits.

    Parameters
    ----------
    features, angle_fold
        As in ``AgentConfig``. Those of windows are left out for as long as no windows come.
    seed
        Of the weights that networks begin with.
    refit_every
        Measurements between two fits; a quarter of those made, once that is more.
    sign
        1 where more is better, -1 where less is.

    Attributes
    ----------
    scale, surrogate
        None before the first atom was seen.
    revision
        Number of the last fit; 0 before the first.
    fits_without_result
        Fits that found no finite numbers and left everything as it was.
    """

    def __init__(
        self,
        features: tuple[FeatureName, ...],
        angle_fold: int,
        *,
        refit_every: int,
        sign: float,
        seed: int = 0,
    ) -> None:
        self.scale: FeatureScale | None = None
        self.surrogate: Portfolio | None = None
        self._features, self._angle_fold, self._seed = features, angle_fold, seed
        self.revision = 0
        self.fits_without_result = 0
        self._refit_every, self._sign = refit_every, sign
        self._due: deque[DueFit] = deque()
        self._under_way: Future[Fitted] | None = None  # the first of those due
        self._fits_asked = 0
        self._size_at_due = 0

    # -- learn ---------------------------------------------------------------------------------

    def begin(self, candidates: Candidates) -> None:
        """Forget all, and learn over the latents of another encoder from now on."""
        self.scale = FeatureScale.of(candidates, self._angle_fold)
        self.surrogate = self._portfolio(self.scale)
        self.forget_fits()

    def offer(self, candidates: Candidates) -> None:
        """Take these for what may be measured next."""
        scale, surrogate = self._begun()
        surrogate.offer(scale.of_candidates(candidates))

    def tell(self, site: Site, reading: Reading) -> None:
        """Learn from one more measurement; one that another encoder saw the site of teaches nothing."""
        scale, surrogate = self._begun()
        if scale.knows(site):
            (x,) = scale.of_sites([site])
            surrogate.tell(x, self._sign * reading.value, reading.variance)

    def tell_all(self, measured: Sequence[Measured]) -> None:
        """Take these in the place of all earlier measurements; what was due of those is of no use."""
        self.forget_fits()
        if self.surrogate is not None:
            self.surrogate.tell_all(self._observations(measured))

    def expect(self, sites: Sequence[Site]) -> None:
        """Take the outcomes of these to be still to come."""
        scale, surrogate = self._begun()
        surrogate.expect(scale.of_sites([site for site in sites if scale.knows(site)]))

    def joint(self, known: NDArray[np.intp], sites: Sequence[Site]) -> tuple[Float64, Float64]:
        """Forecast means at some of the measured places, and then at these sites, and their covariance."""
        scale, surrogate = self._begun()
        return surrogate.joint(np.concatenate([surrogate.known.x[known], scale.of_sites(sites)]))

    def _observations(self, measured: Sequence[Measured]) -> Observations:
        scale, _ = self._begun()
        known = [(site, reading) for site, reading in measured if scale.knows(site)]
        return Observations(
            scale.of_sites([site for site, _ in known]),
            self._sign * np.array([reading.value for _, reading in known]),
            np.array([reading.variance for _, reading in known]),
        )

    def _begun(self) -> tuple[FeatureScale, Portfolio]:
        if self.scale is None or self.surrogate is None:
            raise LookupError("the explorer has seen no atom yet; tell it a frame first")
        return self.scale, self.surrogate

    # -- fit -----------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many measurements teach something."""
        return 0 if self.surrogate is None else len(self.surrogate.known)

    @property
    def is_fit_due(self) -> bool:
        """Is enough new to pay for a fit? Its cost grows with the square of what is known."""
        return self.size >= self._size_at_due + max(self._refit_every, self._size_at_due // 4)

    def note_due_fit(self) -> None:
        """Put down that a fit is to be made of what is known now."""
        self._fits_asked += 1
        self._size_at_due = self.size
        self._due.append(DueFit(self._fits_asked, self.size))

    def count_from(self, revision: int) -> None:
        """Number the fits on from this one."""
        self.revision = self._fits_asked = revision

    def forget_fits(self) -> None:
        """What was due is of no use any more; the next fit has the next number all the same."""
        self._due.clear()
        self._under_way = None
        self._size_at_due = 0

    def think(self, pending: Sequence[Site]) -> None:
        """Get ready for the outcomes of these; begin, in a thread, the fit that will be adopted next."""
        if self.surrogate is None:
            return
        self.expect(pending)
        self.surrogate.get_ready()
        if not self._due or self._under_way is not None:
            return
        # A thread of its own for each: they are seconds apart, and none is left when the work is done.
        pool = ThreadPoolExecutor(1, "fit")
        self._under_way = pool.submit(self.surrogate.to_fit(self._due[0].size).made_ready)
        pool.shutdown(wait=False)

    def refit(self) -> Fit | None:
        """Adopt the fit whose measurement has come, and wait for it if need be."""
        surrogate = self.surrogate
        if not self._due or surrogate is None or self.size < self._due[0].size + ADOPTED_AFTER:
            return None
        due, under_way = self._due.popleft(), self._under_way
        self._under_way = None
        found = surrogate.to_fit(due.size).fitted() if under_way is None else under_way.result()
        self._adopt(surrogate, found, due)
        return Fit(number=due.number, size=due.size, parameters=surrogate.parameters(found))

    def recall(self, told: ModelRevision) -> bool:
        """Adopt a fit of an earlier process; False where it is of another model, or of an older version."""
        if self.surrogate is None:
            return False
        try:
            found = self.surrogate.of_parameters(told.parameters)
        except ValueError:
            return False
        self._adopt(self.surrogate, found, DueFit(told.revision, told.observations))
        while self._due and self._due[0].number <= told.revision:
            self._due.popleft()
            self._under_way = None
        if told.revision > self._fits_asked:  # what made it due is not known here
            self._fits_asked = told.revision
            self._size_at_due = max(self._size_at_due, told.observations)
        return True

    def _adopt(self, surrogate: Portfolio, found: Fitted, due: DueFit) -> None:
        self.revision = due.number
        self.fits_without_result += not surrogate.adopt(found, due.size)

    # -- live on -------------------------------------------------------------------------------

    def state(self) -> LearnerState:
        """Say what it knows beyond the measurements and what is on offer."""
        return LearnerState(
            scale=self.scale,
            surrogate=None if self.surrogate is None else self.surrogate.state(),
            revision=self.revision,
            fits_without_result=self.fits_without_result,
            due=list(self._due),
            fits_asked=self._fits_asked,
            size_at_due=self._size_at_due,
        )

    def restore(
        self, state: LearnerState, candidates: Candidates | None, measured: Sequence[Measured]
    ) -> None:
        """Be as the learner was that said this, with what was on offer and measured then.

        Another fold of the angle than it had is other features, of which all is learnt anew.
        """
        self.scale, self.surrogate, self.revision = state.scale, None, state.revision
        self.fits_without_result = state.fits_without_result
        self._due, self._under_way = deque(state.due), None
        self._fits_asked, self._size_at_due = state.fits_asked, state.size_at_due
        if state.scale is None or state.surrogate is None:
            return
        self.surrogate = self._portfolio(state.scale)
        is_same = state.scale.angle_fold == self._angle_fold
        if not is_same:
            self.scale = replace(state.scale, angle_fold=self._angle_fold)
        if candidates is not None and len(candidates):
            self.offer(candidates)
        if is_same:
            self.surrogate.restore(state.surrogate, self._observations(measured))
        else:
            self.tell_all(measured)

    def _portfolio(self, scale: FeatureScale) -> Portfolio:
        names = [name for name in self._features if scale.channels or not of_windows(name)]
        parts: dict[str, tuple[Part, ...]] = {
            name: parts_of(name, scale.center.size, scale.channels, self._seed)
            for name in names or (WITHOUT_WINDOWS,)
        }
        return Portfolio(parts, scale.width)
