"""How many measurements each goal of the agent takes, beside sites taken at random.

Fields of 1,600 sites with six latents: three follow the field, two of them and the place say what a site is
worth; three are noise; and one window in twenty-five is a freak of the image. The agent is asked and told
through ``agents.notebook``, with its own model for the forecast; at random, the same model is taught random
sites.

``map_points_ratio`` is how many measurements the goal ``map`` takes until the forecast's error over the field
is half of the field's spread, over how many random ones take; ``map_plain_points_ratio`` the same by variance
alone. ``level_missed`` and ``level_random_missed`` are the shares of sites on the wrong side of a level after
40 measurements. ``batch_greedy`` and ``batch_thompson`` count measurements to 95 % of the best with eight
under way, ``stall_on`` and ``stall_off`` the same one at a time on fields with false maxima.

``--json`` prints one object on the last line; ``--quick`` takes three seeds. Reported seeds are odd, those
that anything was tuned on even (``--even``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from numpy.typing import NDArray

from agents.explorer import Explorer
from agents.kernels import square_distance
from agents.notebook import Chooser

Float64 = NDArray[np.float64]

SIDE = 40
NOISE_SD = 0.05  # of a measurement, where the field's spread is 1
BUDGET = 120
FREAKS = 0.04
LEVEL = 0.5
LEVEL_AFTER = 40
UNDER_WAY = 8


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """Places ``(n, 2)``, latents ``(n, d)`` and true values ``(n,)``, of mean 0 and spread 1."""

    positions_nm: Float64
    latents: Float64
    value: Float64


def _places() -> Float64:
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    return grid.astype(np.float64)


def smooth_field(seed: int) -> Field:
    """Latents that change over a seventh of the field, and freaks."""
    rng, places = np.random.default_rng(seed), _places()
    unit = 2 * places / (SIDE - 1) - 1

    def bumps() -> Float64:
        centres, heights = rng.uniform(-1, 1, (40, 2)), rng.normal(size=40)
        found: Float64 = np.exp(-square_distance(unit, centres) / (2 * 0.14**2)) @ heights
        return (found - found.mean()) / found.std()

    followed = np.stack([bumps() for _ in range(3)], axis=1)
    value = np.sin(2 * followed[:, 0]) + 0.8 * np.sin(1.5 * followed[:, 1] + 1) + 0.3 * unit[:, 0]
    latents = np.concatenate([followed, 0.4 * rng.normal(size=(len(places), 3))], axis=1)
    latents += 0.1 * rng.normal(size=latents.shape)
    is_freak = rng.random(len(places)) < FREAKS
    latents[is_freak] += 3 * rng.normal(size=(int(is_freak.sum()), 6))
    return Field(places, latents, (value - value.mean()) / value.std())


def field_with_false_maxima(seed: int) -> Field:
    """Six peaks of several heights and widths in four latents that say nothing of the place."""
    rng, places = np.random.default_rng(seed), _places()
    latents = rng.normal(size=(len(places), 4))
    centres, heights = 1.2 * rng.normal(size=(6, 4)), rng.uniform(0.5, 1.0, 6)
    widths = rng.uniform(0.35, 1.0, 6)
    value = np.exp(-square_distance(latents, centres) / (2 * widths**2)) @ heights
    latents = latents + 0.1 * rng.normal(size=latents.shape)
    return Field(places, latents, (value - value.mean()) / value.std())


class Session:
    """An agent on a field; or sites at random, taught to the same agent."""

    def __init__(self, field: Field, seed: int, *, is_random: bool = False, **settings: Any) -> None:
        self._field, self._rng = field, np.random.default_rng([seed, 9])
        self._order = self._rng.permutation(len(field.value)) if is_random else None
        self.chooser = Chooser(
            field.positions_nm, field.latents, value_sd=NOISE_SD, seed=seed, latents_sd=_sd(field), **settings
        )
        self.measured: list[int] = []

    def measure(self, under_way: int = 1) -> None:
        """Measure once; so many are kept under way."""
        if self._order is not None:
            self._ingest(int(self._order[len(self.measured)]))
            return
        lacking = under_way - len(self.chooser.under_way)
        self.chooser.suggest(lacking)
        self._ingest(self.chooser.under_way[0].id)

    def _ingest(self, which: str | int) -> None:
        index = self.chooser.under_way[0].index if isinstance(which, str) else which
        self.chooser.ingest(which, self._field.value[index] + NOISE_SD * self._rng.normal())
        self.measured.append(index)

    @property
    def forecast(self) -> Float64:
        """Of every site."""
        agent = self.chooser.agent
        assert isinstance(agent, Explorer)
        return agent.surrogate.mean


def _sd(field: Field) -> Float64:
    return np.full_like(field.latents, 0.1)


def to_half_error(seed: int, **settings: Any) -> int:
    """Measurements until the forecast's error is half of the field's spread; BUDGET + 1 if never."""
    field = smooth_field(seed)
    session = Session(field, seed, **settings)
    for count in range(1, BUDGET + 1):
        session.measure()
        if count > 1 and np.sqrt(np.mean((session.forecast - field.value) ** 2)) <= 0.5:
            return count
    return BUDGET + 1


def missed_sides(seed: int, **settings: Any) -> float:
    """Share of the sites on the wrong side of the level."""
    field = smooth_field(seed)
    session = Session(field, seed, **settings)
    for _ in range(LEVEL_AFTER):
        session.measure()
    return float(np.mean((session.forecast > LEVEL) != (field.value > LEVEL)))


def to_near_best(seed: int, field: Field, under_way: int = 1, **settings: Any) -> int:
    """Measurements until a value within 5 % of the best."""
    session = Session(field, seed, **settings)
    for count in range(1, BUDGET + 1):
        session.measure(under_way)
        if field.value[session.measured[-1]] >= 0.95 * field.value.max():
            return count
    return BUDGET + 1


def measure(seeds: list[int]) -> dict[str, Any]:
    """All figures, by the names that are printed; counts are medians, with every seed's beside them."""
    level = {"goal": "level_set", "level": LEVEL, "stopping": {"classified_share": 0.0}}
    eager = {"stall": {"after_measurements": 0}}
    thompson = {"batch": "thompson"}
    runs: dict[str, list[float]] = {
        "map_points": [to_half_error(seed, goal="map") for seed in seeds],
        "map_plain_points": [to_half_error(seed, goal="map", site_weight="none") for seed in seeds],
        "map_random_points": [to_half_error(seed, is_random=True) for seed in seeds],
        "level_missed": [missed_sides(seed, **level) for seed in seeds],
        "level_random_missed": [missed_sides(seed, is_random=True) for seed in seeds],
        "batch_greedy": [to_near_best(seed, smooth_field(seed), UNDER_WAY) for seed in seeds],
        "batch_thompson": [to_near_best(seed, smooth_field(seed), UNDER_WAY, **thompson) for seed in seeds],
        "stall_on": [to_near_best(seed, field_with_false_maxima(seed)) for seed in seeds],
        "stall_off": [to_near_best(seed, field_with_false_maxima(seed), **eager) for seed in seeds],
    }  # fmt: skip
    found: dict[str, Any] = {"seeds": seeds}
    for name, each in runs.items():
        found[name] = round(statistics.median(each), 4)
        found[f"{name}_each"] = [round(one, 4) for one in each]
        print(name, found[name], found[f"{name}_each"], flush=True)
    for name in ("map", "map_plain"):
        found[f"{name}_points_ratio"] = round(found[f"{name}_points"] / found["map_random_points"], 3)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="three seeds")
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--even", action="store_true", help="the seeds that are tuned on")
    options = parser.parse_args()
    count = 3 if options.quick else options.seeds
    figures = measure(list(range(0 if options.even else 1, 2 * count, 2)))
    print(json.dumps(figures) if options.json else "\n".join(f"{k}: {v}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
