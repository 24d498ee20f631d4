"""The baseline that any atom is as good as any other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.candidates import Candidates
from agents.site_agent import Choice, SiteAgent


class Random(SiteAgent):
    """Takes each free candidate with the same probability."""

    policy = "random"

    def _choose(self, candidates: Candidates, free: NDArray[np.int64]) -> Choice:
        # Seeded by the count, so that an answer does not depend on how often one asked in vain.
        rng = np.random.default_rng([self.seed, self._ledger.issued])
        return Choice(index=int(rng.choice(free)), reason="at random")
