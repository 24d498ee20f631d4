"""How long the agent takes to answer: an outcome told and the next suggestion asked for, whole agent.

Frames of 4,096 and 65,536 atoms with eight latents each and a place; one of the latents and the place say
what a spectrum is worth. After 20, 100 and 400 measurements the agent is told an outcome, takes up the fit
whose time has come, and is asked again, as the service does it, many times on the same frame. Each outcome
comes when the fit before it is done, as a measurement takes longer; ``worst_during_refit`` are outcomes that
come while a fit is computed, which is then taken up after the answer. Beside it, on the same
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

from agents.config import AgentConfig
from agents.explorer import Explorer
from streamer.messages import Suggestion
from tests import quiet_botorch
from tests.grid_of_sites import GridOfSites, grid_nm
from tests.quiet_botorch import same_model

Figures = dict[str, Any]

LATENTS = 8
FIELD_NM = 10.0
SEED = 1  # odd: nothing was tuned on it
FITS = 2  # during which an outcome comes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    sides: tuple[int, ...]
    measured: tuple[int, ...]
    repeats: int
    naive: int


FULL = Plan(sides=(64, 256), measured=(20, 100, 400), repeats=60, naive=3)
QUICK = Plan(sides=(64,), measured=(20,), repeats=15, naive=1)


def field(side: int, seed: int = SEED) -> GridOfSites:
    """Atoms on a grid; a spectrum's edge grows with the first latent and bends over the field."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(side * side, LATENTS)).astype(np.float32)
    bend = np.sin(grid_nm(side, FIELD_NM)[:, 0])
    return GridOfSites(FIELD_NM, mean, 1 / (1 + np.exp(2 - mean[:, 0] - 0.5 * bend)), rng)


@dataclass(frozen=True, slots=True)
class Took:
    """What an answer took: as one waits for it, and of its own thread's processor time."""

    wall_ms: float
    cpu_ms: float


class Session:
    """An agent on one frame, with some measurements made and their fits adopted."""

    def __init__(self, side: int, measurements: int, pending: int = 2) -> None:
        self._field = field(side)
        self.agent = Explorer(
            AgentConfig(max_per_frame=0, max_pending=pending, min_distance_nm=1e-3, max_miss_nm=1.0),
            seed=SEED,
        )
        self.agent.tell(self._field.frame())
        self.open = [self._asked() for _ in range(pending)]
        self.measured: list[int] = []
        while len(self.measured) < measurements:
            self.step()

    def step(self, *, is_adopting: bool = True) -> Took:
        """Tell one outcome, take up a fit whose time has come, and ask."""
        answered = self.open.pop(0)
        outcome = self._field.outcome(answered)
        begun_s, cpu_begun_s = time.perf_counter(), time.thread_time()
        self.agent.tell(outcome)
        if is_adopting:
            self.agent.refit()
        suggestion = self.agent.ask()
        took = Took(1e3 * (time.perf_counter() - begun_s), 1e3 * (time.thread_time() - cpu_begun_s))
        assert suggestion is not None
        self.measured.append(answered.track)
        self.open.append(suggestion)
        return took

    def _asked(self) -> Suggestion:
        suggestion = self.agent.ask()
        assert suggestion is not None
        return suggestion


# -- the figures ---------------------------------------------------------------------------------------


def latencies(session: Session, repeats: int) -> list[Took]:
    """Of outcomes and answers; a measurement takes as long as whatever is computed beside it."""
    took = []
    for _ in range(repeats):
        session.agent.think()
        for fit in _fits():
            fit.join()
        took.append(session.step())
    return took


def worst_during_refit_ms(session: Session) -> float:
    """Of outcomes that come while a fit is computed."""
    took: list[float] = []
    while len(took) < FITS:
        session.agent.think()
        is_fitting = bool(_fits())
        one = session.step(is_adopting=False)
        took += [one.wall_ms] if is_fitting else []
        session.agent.refit()
    return max(took)


def _fits() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fit")]


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
            took = latencies(session, plan.repeats)
            wall, cpu = [one.wall_ms for one in took], [one.cpu_ms for one in took]
            found[f"p50_ms_{name}"] = round(statistics.median(wall), 3)
            found[f"p95_ms_{name}"] = round(float(np.quantile(wall, 0.95)), 3)
            found[f"worst_ms_{name}"] = round(max(wall), 3)
            found[f"p95_cpu_ms_{name}"] = round(float(np.quantile(cpu, 0.95)), 3)
            found[f"worst_during_refit_ms_{name}"] = round(worst_during_refit_ms(session), 3)
            print(name, {key: value for key, value in found.items() if key.endswith(name)}, flush=True)
    side, measured = plan.sides[0], plan.measured[min(1, len(plan.measured) - 1)]
    name = f"{side * side}_n{measured}"
    worst_ms = found[f"worst_during_refit_ms_{name}"]
    found["worst_during_refit_ratio"] = round(worst_ms / found[f"p95_ms_{name}"], 2)
    session = Session(side, measured)
    answer_ms = statistics.median(one.wall_ms for one in latencies(session, plan.repeats))
    naive_ms = 1e3 * naive_s(session, plan.naive)
    found["naive_botorch_ms"] = round(naive_ms, 1)
    found["speedup_vs_botorch"] = round(naive_ms / answer_ms, 1)
    found["acquisition_gap"] = acquisition_gap(side, measured)
    return found


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
