"""How many measurements until the best place is found, or the map known: the agent beside what is usual.

Every search begins from a picture alone. One ends with the measurement of a place whose true value is at
least 95 % of the largest; a budget and one more stands for one that did not. Odd seeds are reported; the even
ones are those that the agent was tuned on. The agent is asked and told through ``agents.notebook``; it is
every method but chance, the raster, the deep kernel and BoTorch's loop, with one set of features each or with
several, the portfolio, whose figures are those at the top; ``latents + position`` is its default.

``--json`` prints one object on the last line; ``--quick`` takes two seeds and leaves the deep kernel out.
BoTorch's loop takes a minute for one search: it is left out unless ``--methods`` names it;
``--data`` names the folder of real recordings, ``--prototypes`` that of the script with which the bars were
measured: then its fields are searched too. ``--problems a,b`` and ``--methods a;b`` take some.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from numpy.typing import NDArray

from agents.acquisition import log_expected_improvement
from agents.config import AgentConfig, of_windows
from agents.cost import CostConfig
from agents.notebook import Chooser
from tests import quiet_botorch
from tests.benchmarks import fields
from tests.benchmarks.adversary import unsafe_let_through
from tests.benchmarks.fields import Field
from tests.real_scans import data_folder

Figures = dict[str, Any]
Float64 = NDArray[np.float64]
Problem = Callable[[int], Field]
Method = Callable[[Field, int], Iterator[int]]

BUDGET = 80
LOOPS_BUDGET = 100
MAP_BUDGET = 120
GOOD = 0.95
LEAST_SD = 1e-3  # that the agent is told where the truth is itself a measurement
TRIALS = 20_000
TRAVEL_WEIGHT = 1.0  # tuned on even seeds
PORTFOLIO = ("latents + position", "trend + position", "position")
PEERS = ("position", "latents + position", "deep kernel")


class Bench:
    """A field, and what measuring it gives: noise that follows from the seed and the count alone."""

    def __init__(self, field: Field, seed: int) -> None:
        self._truth, self._sd = field.truth.ravel(), field.noise_sd
        self._rng = np.random.default_rng([seed, 5])

    def measure(self, index: int) -> float:
        """Give a value with its noise."""
        return float(self._truth[index] + self._sd * self._rng.normal())


def places_nm(field: Field) -> Float64:
    """A pixel is a nanometre."""
    return np.stack(np.indices(field.truth.shape)[::-1], axis=-1).reshape(-1, 2).astype(np.float64)


# -- methods: each gives one index after the other ------------------------------------------------------


def by_chance(field: Field, seed: int) -> Iterator[int]:
    """Any pixel, none twice."""
    yield from np.random.default_rng([seed, 6]).permutation(field.truth.size).tolist()


def by_raster(field: Field, _: int) -> Iterator[int]:
    """Every 25th pixel in reading order, then those between."""
    for first in range(25):
        yield from range(first, field.truth.size, 25)


def chooser_of(field: Field, seed: int, **settings: Any) -> Chooser:
    """The agent on a field, its latents those of the stand-in."""
    sd = max(field.noise_sd, LEAST_SD)
    edge, seen = field.window_px, None
    if any(map(of_windows, settings.get("features", ()))):
        seen = fields.windows(field).reshape(-1, edge, edge)
    return Chooser(places_nm(field), fields.latents(field), windows=seen, value_sd=sd, seed=seed, **settings)


def by_agent(field: Field, seed: int, **settings: Any) -> Iterator[int]:
    """Where the agent says."""
    bench, chooser = Bench(field, seed), chooser_of(field, seed, **settings)
    while True:
        (proposal,) = chooser.suggest()
        yield proposal.index
        chooser.ingest(proposal.id, bench.measure(proposal.index))


def by_deep_kernel(field: Field, seed: int) -> Iterator[int]:
    """A kernel over what a network makes of the raw window, trained anew every three measurements.

    Wilson et al., Deep Kernel Learning, AISTATS 2016, as it is used at microscopes: five random starts, a
    network of 128 and 64 to two numbers, 60 steps of Adam, expected improvement.
    """
    from tests.benchmarks.deep_kernel_peer import DeepKernel

    bench, rng = Bench(field, seed), np.random.default_rng([seed, 7])
    model = DeepKernel(fields.windows(field), seed)
    measured: list[int] = []
    value: list[float] = []
    while True:
        if len(measured) < 5:
            index = int(rng.choice(np.setdiff1d(np.arange(field.truth.size), measured)))
        else:
            if (len(measured) - 5) % 3 == 0:
                model.train(measured, np.array(value))
            mean, sd = model.forecast(measured, np.array(value))
            gain = log_expected_improvement(mean, sd, max(value))
            gain[measured] = -np.inf
            index = int(gain.argmax())
        yield index
        measured.append(index)
        value.append(bench.measure(index))


def by_botorch(field: Field, seed: int) -> Iterator[int]:
    """BoTorch as its tutorials have it, over the latents and positions that the agent has.

    Five random starts, then before each measurement a ``SingleTaskGP`` fitted anew, and the largest qLogEI
    among all places that are left.
    """
    quiet_botorch.load()
    import torch
    from botorch.acquisition.logei import qLogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Normalize
    from botorch.optim import optimize_acqf_discrete
    from gpytorch.mlls import ExactMarginalLogLikelihood

    torch.manual_seed(seed)
    bench, rng = Bench(field, seed), np.random.default_rng([seed, 7])
    places = torch.from_numpy(np.concatenate([fields.latents(field), places_nm(field)], axis=1))
    measured: list[int] = []
    value: list[float] = []
    while True:
        left = np.setdiff1d(np.arange(field.truth.size), measured)
        if len(measured) < 5:
            index = int(rng.choice(left))
        else:
            x, y = places[measured], torch.tensor(value, dtype=torch.float64)[:, None]
            model = SingleTaskGP(x, y, input_transform=Normalize(x.shape[1]))
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
            gain = qLogExpectedImprovement(model, best_f=y.max())
            best, _ = optimize_acqf_discrete(gain, q=1, choices=places[left])
            index = int(left[(places[left] == best).all(dim=1).nonzero()[0, 0]])
        yield index
        measured.append(index)
        value.append(bench.measure(index))


METHODS: dict[str, Method] = {
    "portfolio": partial(by_agent, features=list(PORTFOLIO)),
    "random": by_chance,
    "raster": by_raster,
    "position": partial(by_agent, features=["position"]),
    "latents": partial(by_agent, features=["latents"]),
    "latents + position": partial(by_agent, features=["latents + position"]),
    "trend + position": partial(by_agent, features=["trend + position"]),
    "windows": partial(by_agent, features=["windows"]),
    "windows + position": partial(by_agent, features=["windows + position"]),
    "portfolio with windows": partial(by_agent, features=[*PORTFOLIO, "windows + position"]),
    "deep kernel": by_deep_kernel,
    "botorch": by_botorch,
}


# -- what is counted ------------------------------------------------------------------------------------


def points_to_the_best(field: Field, indices: Iterator[int], budget: int) -> int:
    """Measurements until one is good enough; one more than the budget if none is."""
    truth = field.truth.ravel()
    with closing(indices):  # type: ignore[type-var]
        for count, index in enumerate(indices, start=1):
            if truth[index] >= GOOD * truth.max():
                return count
            if count == budget:
                break
    return budget + 1


def points_to_half_the_error(field: Field, seed: int, *, is_random: bool) -> int:
    """Measurements until the forecast of the whole field is off by half its spread, root mean square."""
    bench, chooser = Bench(field, seed), chooser_of(field, seed, goal="map", features=list(PORTFOLIO))
    chance, truth = by_chance(field, seed), field.truth.ravel()
    for count in range(1, MAP_BUDGET + 1):
        if is_random:
            index = next(chance)
            chooser.ingest(index, bench.measure(index))
        else:
            (proposal,) = chooser.suggest()
            chooser.ingest(proposal.id, bench.measure(proposal.index))
        mean, _ = chooser.forecast()
        if np.sqrt(np.mean((mean - truth) ** 2)) <= 0.5 * truth.std():
            return count
    return MAP_BUDGET + 1


def _told(name: str, method: str, points: list[int], budget: int) -> Figures:
    row = {
        "median": statistics.median(points),
        "quartiles": np.quantile(points, [0.25, 0.75]).tolist(),
        "not_found": sum(one > budget for one in points),
        "points": points,
    }
    print(f"{name:22s} {method:20s} {row}", flush=True)
    return row


def search(
    problems: dict[str, tuple[Problem, int]], methods: list[str], seeds: range
) -> dict[str, dict[str, Figures]]:
    """Let every method search every field."""
    table: dict[str, dict[str, Figures]] = {}
    for name, (problem, budget) in problems.items():
        for method in methods:
            points = [
                points_to_the_best(field, METHODS[method](field, seed), budget)
                for seed in seeds
                for field in [problem(seed)]
            ]
            table.setdefault(name, {})[method] = _told(name, method, points, budget)
    return table


def _ratio(rows: dict[str, Figures]) -> float | None:
    """Points of the portfolio, of those of the best peer with a single set of features."""
    peers = [rows[method]["median"] for method in PEERS if method in rows]
    return round(rows["portfolio"]["median"] / min(peers), 3) if peers and "portfolio" in rows else None


def figures(table: dict[str, dict[str, Figures]]) -> Figures:
    """The figures by their names; None for what was not searched. Fields of the prototype come first."""

    def rows(name: str) -> dict[str, Figures]:
        return table.get(f"prototype {name}") or table.get(name) or {}

    def median(name: str, method: str) -> float | None:
        return rows(name).get(method, {}).get("median")

    return {
        "plasmon_median": median("plasmon", "portfolio"),
        "plasmon_random_median": median("plasmon", "random"),
        "loops_median": median("loops", "portfolio"),
        "loops_random_median": median("loops", "random"),
        "ferro_ratio": _ratio(rows("ferro")),
        "unseen_ratio": _ratio(rows("vacancies")),
    }


def problems_of(options: argparse.Namespace) -> tuple[dict[str, tuple[Problem, int]], str]:
    """Give the fields that there are, with their budgets, and why others are left out."""
    found: dict[str, tuple[Problem, int]] = {
        "plasmon": (fields.plasmon, BUDGET),
        "ferro": (fields.ferroelectric, BUDGET),
        "grains": (fields.grains, BUDGET),
        "vacancies": (fields.vacancies, BUDGET),
    }
    reason, folder = "no folder of recordings: give --data or set PROBELOOP_DATA", data_folder(options.data)
    if folder is not None:
        try:
            real = fields.loops(folder)
            found["loops"] = (lambda _: real, LOOPS_BUDGET)
            found["parts of loops"] = (partial(fields.part_of, real), LOOPS_BUDGET)
            reason = ""
        except FileNotFoundError as error:
            reason = str(error)
    if options.prototypes is not None:
        for name in ("plasmon", "ferro"):
            found[f"prototype {name}"] = (fields.of_prototype(options.prototypes, name), BUDGET)
    usual = [name for name in found if not (options.quick and name in ("grains", "parts of loops"))]
    chosen = options.problems.split(",") if options.problems else usual
    return {name: found[name] for name in chosen if name in found}, reason


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, fewer fields, no deep kernel: under a minute"
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--even", action="store_true", help="the seeds that were tuned on")
    parser.add_argument("--data", type=Path, help="folder of real recordings; else $PROBELOOP_DATA")
    parser.add_argument("--prototypes", type=Path, help="folder of the script that draws two more fields")
    parser.add_argument("--problems", default="", help="some of them, with commas")
    parser.add_argument("--methods", default="", help="some of them, with semicolons")
    options = parser.parse_args()
    first = 0 if options.even else 1
    seeds = range(first, first + 2 * (2 if options.quick else options.seeds), 2)
    left_out = ("botorch", "deep kernel") if options.quick else ("botorch",)
    usual = [name for name in METHODS if name not in left_out]
    methods = options.methods.split(";") if options.methods else usual
    problems, without_loops = problems_of(options)
    table = search(problems, methods, seeds)
    found = figures(table)
    if without_loops:
        found |= {"loops_median_reason": without_loops, "loops_random_median_reason": without_loops}
    found |= map_figures(problems, seeds) if "portfolio" in methods else {}
    found |= travel_figures(problems, seeds)
    found["unsafe_let_through"] = unsafe_let_through(TRIALS)
    found["table"] = table
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


def map_figures(problems: dict[str, tuple[Problem, int]], seeds: range) -> Figures:
    """How many of random's points the goal ``map`` takes to halve the error, on the plasmon field."""
    if "plasmon" not in problems:
        return {"map_points_ratio": None}
    field_of, _ = problems["plasmon"]
    points = {
        name: [points_to_half_the_error(field_of(seed), seed, is_random=is_random) for seed in seeds]
        for name, is_random in (("map", False), ("random", True))
    }
    rows = {name: _told("plasmon map", name, one, MAP_BUDGET) for name, one in points.items()}
    ratio = round(rows["map"]["median"] / rows["random"]["median"], 3)
    return {"map_points_ratio": ratio, "map_points": rows}


def travel_figures(problems: dict[str, tuple[Problem, int]], seeds: range) -> Figures:
    """How much shorter the way between two measurements is where it counts, on the plasmon field.

    A tenth of the field takes as long as a measurement. Ratios of medians, with the weight to without.
    """
    if "plasmon" not in problems:
        return {"travel_ratio": None, "points_ratio_travel": None}
    field_of, budget = problems["plasmon"]
    ways = {
        weight: [way_to_the_best(field_of(seed), seed, weight, budget) for seed in seeds]
        for weight in (0.0, TRAVEL_WEIGHT)
    }
    points, step_nm = (
        [statistics.median(one[part] for one in ways[weight]) for weight in (TRAVEL_WEIGHT, 0.0)]
        for part in range(2)
    )
    return {
        "travel_ratio": round(step_nm[0] / step_nm[1], 3),
        "points_ratio_travel": round(points[0] / points[1], 3),
        "travel": {"points": points, "step_nm": step_nm},
    }


def way_to_the_best(field: Field, seed: int, weight: float, budget: int) -> tuple[int, float]:
    """Count the agent's points until the best place is found, and the mean way between two of them in nm."""
    speed_nm_per_s = 0.1 * max(field.truth.shape) / (1e-6 * AgentConfig().dwell_time_us)
    cost = CostConfig(weight=weight, travel_nm_per_s=speed_nm_per_s)
    indices = by_agent(field, seed, features=list(PORTFOLIO), cost=cost)
    truth, places, taken = field.truth.ravel(), places_nm(field), []
    while len(taken) < budget and not (taken and truth[taken[-1]] >= GOOD * truth.max()):
        taken.append(next(indices))
    is_found = truth[taken[-1]] >= GOOD * truth.max()
    steps_nm = np.hypot(*np.diff(places[taken], axis=0).T)
    return len(taken) + (not is_found), float(steps_nm.mean()) if steps_nm.size else 0.0


if __name__ == "__main__":
    main()
