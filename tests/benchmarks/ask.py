"""How long the agent takes to answer: an outcome told and the next suggestion asked for, whole agent.

Frames of 4,096 and 65,536 atoms with eight latents each and a place; one of the latents and the place say
what a spectrum is worth. After 20, 100 and 400 measurements the agent is told an outcome and asked again,
many times on the same frame, with and without its model being fitted meanwhile. Beside it, on the same
observations and candidates, what users write today: a SingleTaskGP fitted anew, qLogEI over all candidates.
``acquisition_gap`` is the part of the best expected improvement, by BoTorch's own posterior and formula with
the agent's hyperparameters, that the agent's choice falls short of.

``--json`` prints one object on the last line; ``--quick`` leaves 65,536 candidates and most repeats out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from numpy.typing import NDArray

from agents.config import AgentConfig
from agents.explorer import Explorer
from streamer.messages import Latents, Outcome, Registration, ScanGeometry, Suggestion
from tests import quiet_botorch
from tests.edge_spectra import outcome_of
from tests.quiet_botorch import same_model

Figures = dict[str, Any]
Float64 = NDArray[np.float64]

LATENTS = 8
FIELD_NM = 10.0
SEED = 1  # odd: nothing was tuned on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    sides: tuple[int, ...]
    measured: tuple[int, ...]
    repeats: int
    naive: int


FULL = Plan(sides=(64, 256), measured=(20, 100, 400), repeats=60, naive=3)
QUICK = Plan(sides=(64,), measured=(20,), repeats=15, naive=1)


class Field:
    """Atoms on a grid; a spectrum's edge grows with the first latent and bends over the field."""

    def __init__(self, side: int, seed: int = SEED) -> None:
        self._rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
        self._position_nm = (((grid + 0.5) / side - 0.5) * FIELD_NM).astype(np.float32)
        self._mean = self._rng.normal(size=(side * side, LATENTS)).astype(np.float32)
        bend = np.sin(self._position_nm[:, 0])
        self._edge = 1 / (1 + np.exp(2 - self._mean[:, 0] - 0.5 * bend))

    def frame(self) -> Latents:
        """What the streamer says of them."""
        n = len(self._mean)
        flat, pair = np.zeros(n, np.float32), np.zeros((n, 2), np.float32)
        return Latents(
            session="s",
            number=0,
            acquired_at_s=0.0,
            mean=self._mean,
            sd=np.full_like(self._mean, 0.1),
            angle_rad=flat,
            angle_sd_rad=flat,
            offset_nm=pair,
            offset_sd_nm=pair,
            class_probability=np.zeros((n, 0), np.float32),
            novelty=flat,
            confidence=np.ones(n, np.float32),
            track=np.arange(n),
            positions_px=((self._position_nm / FIELD_NM + 0.5) * 512)[:, ::-1].copy(),
            positions_nm=self._position_nm,
            model_revision="encoder",
            geometry=ScanGeometry(shape=(512, 512), field_of_view_nm=(FIELD_NM, FIELD_NM)),
            registration=Registration(),
        )

    def outcome(self, suggestion: Suggestion) -> Outcome:
        """The spectrum of the atom aimed at."""
        return outcome_of(suggestion, float(self._edge[suggestion.track]), self._rng)


class Session:
    """An agent on one frame, with some measurements made and their fits adopted."""

    def __init__(self, side: int, measurements: int, pending: int = 2) -> None:
        self._field = Field(side)
        self.agent = Explorer(
            AgentConfig(max_per_frame=0, max_pending=pending, min_distance_nm=1e-3, max_miss_nm=1.0),
            seed=SEED,
        )
        self.agent.tell(self._field.frame())
        self.open = [self._asked() for _ in range(pending)]
        self.measured: list[int] = []
        while len(self.measured) < measurements:
            self.step()
            self.agent.refit()

    def step(self) -> float:
        """Tell one outcome and ask; give the seconds of wall time that it took."""
        answered = self.open.pop(0)
        outcome = self._field.outcome(answered)
        begun_s = time.perf_counter()
        self.agent.tell(outcome)
        suggestion = self.agent.ask()
        took_s = time.perf_counter() - begun_s
        assert suggestion is not None
        self.measured.append(answered.track)
        self.open.append(suggestion)
        return took_s

    def _asked(self) -> Suggestion:
        suggestion = self.agent.ask()
        assert suggestion is not None
        return suggestion


# -- the figures ---------------------------------------------------------------------------------------


def latencies_ms(session: Session, repeats: int) -> tuple[list[float], list[float]]:
    """Of outcomes told and answers: with nothing else at work, and while a fit is."""
    alone, beside = [], []
    for _ in range(repeats):
        session.agent.think()
        is_fitting = any(thread.name.startswith("fit") for thread in threading.enumerate())
        (beside if is_fitting else alone).append(1e3 * session.step())
        session.agent.refit()
    return alone, beside


def naive_s(session: Session, repeats: int) -> float:
    """Median of what a user's loop takes: a fit from nothing, and qLogEI over all candidates."""
    quiet_botorch.load()
    import torch
    from botorch.acquisition.logei import qLogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf_discrete
    from gpytorch.mlls import ExactMarginalLogLikelihood

    (model,) = session.agent.surrogate.models
    known = model.known
    x, y = torch.from_numpy(known.x), torch.from_numpy(known.y)[:, None]
    choices = torch.from_numpy(model.offered)
    took = []
    for _ in range(repeats):
        begun_s = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = SingleTaskGP(x, y)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
            optimize_acqf_discrete(qLogExpectedImprovement(model, best_f=y.max()), q=1, choices=choices)
        took.append(time.perf_counter() - begun_s)
    return statistics.median(took)


def acquisition_gap(side: int, measured: int) -> float:
    """Part of BoTorch's best expected improvement that the agent's choice falls short of, by BoTorch."""
    quiet_botorch.load()
    import torch
    from botorch.acquisition.analytic import LogExpectedImprovement

    session = Session(side, measured, pending=1)
    (chosen,) = session.open
    (surrogate,) = session.agent.surrogate.models
    best = (surrogate.best_known() - surrogate.unit.offset) / surrogate.unit.size
    free = np.setdiff1d(np.arange(side * side), session.measured)
    with torch.no_grad():
        log_ei = LogExpectedImprovement(same_model(surrogate), best_f=best)
        offered = torch.from_numpy(surrogate.offered)[:, None]
        values = log_ei(offered).numpy()
    return abs(float(np.expm1(values[chosen.track] - values[free].max())))


def measure(plan: Plan) -> Figures:
    """All figures, by the names that are printed."""
    found: Figures = {}
    for side in plan.sides:
        for measured in plan.measured:
            name, session = f"{side * side}_n{measured}", Session(side, measured)
            alone, beside = latencies_ms(session, plan.repeats)
            found[f"p50_ms_{name}"] = round(statistics.median(alone), 3)
            found[f"p95_ms_{name}"] = round(float(np.quantile(alone, 0.95)), 3)
            found[f"worst_during_refit_ms_{name}"] = round(max(beside), 3) if beside else None
            print(name, {key: value for key, value in found.items() if key.endswith(name)}, flush=True)
    side, measured = plan.sides[0], plan.measured[min(1, len(plan.measured) - 1)]
    name = f"{side * side}_n{measured}"
    found["worst_during_refit_ratio"] = _ratio(
        found[f"worst_during_refit_ms_{name}"], found[f"p95_ms_{name}"]
    )
    session = Session(side, measured)
    alone, _ = latencies_ms(session, plan.repeats)
    naive_ms = 1e3 * naive_s(session, plan.naive)
    found["naive_botorch_ms"] = round(naive_ms, 1)
    found["speedup_vs_botorch"] = round(naive_ms / statistics.median(alone), 1)
    found["acquisition_gap"] = acquisition_gap(side, measured)
    return found


def _ratio(one: float | None, other: float) -> float | None:
    return None if one is None else round(one / other, 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    options = parser.parse_args()
    figures = measure(QUICK if options.quick else FULL)
    print(json.dumps(figures) if options.json else "\n".join(f"{k}: {v}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
