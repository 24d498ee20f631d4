"""How much shorter the agent's way is when the way costs, and how many more measurements that takes.

Sites on a grid, each with four latents that change over the field; a spectrum is worth most where the first
two and the place are all just right. The agent looks for the best site, once with ``agent.cost.weight`` at 0
and once above; points are counted until it has measured one of 95 % of the best, and the way of the beam
between them. Weights were tuned on even seeds; odd ones are reported.

``--json`` prints one object on the last line; ``--quick`` takes four seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from agents.config import AgentConfig
from agents.cost import CostConfig
from agents.explorer import Explorer
from tests.grid_of_sites import GridOfSites

Float64 = NDArray[np.float64]

SIDE = 40
FIELD_NM = 20.0
BUDGET = 150
GOOD = 0.95
DWELL_US = 100_000.0
# A tenth of the field takes as long as a measurement.
SPEED_NM_PER_S = 0.1 * FIELD_NM / (1e-6 * DWELL_US)
WEIGHT = 4.0


def field_of(seed: int) -> GridOfSites:
    """Sites with latents, and what each is worth."""
    rng = np.random.default_rng(seed)

    def smooth(sites: float) -> Float64:
        """Noise that changes over so many sites, of order 1."""
        drawn = gaussian_filter(rng.normal(size=(SIDE, SIDE)), sites, mode="wrap").ravel()
        found: Float64 = (drawn - drawn.mean()) / drawn.std()
        return found

    mean = np.stack([smooth(sites) for sites in (1.5, 1.5, 3.0, 0.7)], axis=1)
    away = (mean[:, 0] - 1.5) ** 2 + (mean[:, 1] + 1.2) ** 2 + (smooth(8.0) - 1.0) ** 2
    return GridOfSites(FIELD_NM, mean, np.exp(-away / 3), rng)


@dataclass(frozen=True, slots=True)
class Way:
    """How a search went.

    Attributes
    ----------
    points
        Measurements until one is good; one more than the budget if none was.
    step_nm
        Mean way from one to the next.
    """

    points: int
    step_nm: float


def search(field: GridOfSites, config: AgentConfig) -> Way:
    """Let the agent measure until it has a site that is good enough."""
    agent = Explorer(config, seed=0)
    agent.tell(field.frame())
    enough, steps_nm, points = GOOD * field.edge.max(), [], 0
    open_, last = [], None
    while points < BUDGET:
        while (suggestion := agent.ask()) is not None:
            open_.append(suggestion)
        answered = open_.pop(0)
        points += 1
        if last is not None:
            steps_nm.append(math.dist(last, answered.position_nm))
        last = answered.position_nm
        if field.edge[answered.track] >= enough:
            return Way(points, statistics.fmean(steps_nm) if steps_nm else 0.0)
        agent.tell(field.outcome(answered))
        agent.refit()
    return Way(BUDGET + 1, statistics.fmean(steps_nm))


def config_of(weight: float, max_pending: int = 1) -> AgentConfig:
    """The agent's defaults, with this weight of the way."""
    return AgentConfig(
        max_per_frame=0,
        max_pending=max_pending,
        min_distance_nm=1e-3,
        max_miss_nm=1.0,
        dwell_time_us=DWELL_US,
        cost=CostConfig(weight=weight, travel_nm_per_s=SPEED_NM_PER_S),
    )


def travel(seeds: list[int], weight: float, max_pending: int = 1) -> dict[str, float]:
    """Compare the ways with and without their cost."""
    free = [search(field_of(seed), config_of(0.0, max_pending)) for seed in seeds]
    costly = [search(field_of(seed), config_of(weight, max_pending)) for seed in seeds]
    points, points_costly = (statistics.median(w.points for w in ways) for ways in (free, costly))
    step_nm, step_costly_nm = (statistics.median(w.step_nm for w in ways) for ways in (free, costly))
    return {
        "travel_points": points,
        "travel_points_costly": points_costly,
        "travel_step_nm": step_nm,
        "travel_step_costly_nm": step_costly_nm,
        "travel_ratio": step_costly_nm / step_nm,
        "points_ratio_travel": points_costly / points,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="four seeds")
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--even", action="store_true", help="the seeds for tuning")
    parser.add_argument("--weight", type=float, default=WEIGHT, help="agent.cost.weight")
    parser.add_argument("--pending", type=int, default=1, help="suggestions under way at a time")
    chosen = parser.parse_args()
    count = 4 if chosen.quick else chosen.seeds
    seeds = [2 * index + (not chosen.even) for index in range(count)]
    figures = travel(seeds, chosen.weight, chosen.pending)
    for name, value in figures.items() if not chosen.json else ():
        print(f"{name:24} {value:.3g}")
    print(json.dumps({"seeds": count, "weight": chosen.weight, **figures}))


if __name__ == "__main__":
    main()
