"""How well the harmonic rVAE tells kinds of windows, whatever their turn, and what its angles are worth.

Models are trained on labelled windows whose labels they never see, in the units that the windows come in,
with a part held out, and scored on fresh ones: agreement of unlabelled groups with the kinds (ARI), 15
nearest neighbours, variance of the latents over turns by that between kinds, and R = |mean exp(i n error)| of
the angle for each kind with its n-fold symmetry. Each seed stands for a network and for data of its own;
settings were chosen on even seeds, and odd ones are reported: the mean over the seeds, and of R the worst
kind of the worst seed. ``…_worst`` is the worst seed.

``--prototypes FOLDER`` takes windows and score of ``make_patches.py`` and ``eval_rvae.py`` there, which other
programs are judged by too; without, windows of our own (``labelled_windows.py``). ``--ablation`` adds the
same model with a guessed angle, and the papers' network. ``--data FOLDER`` adds real silicon in graphene,
seen by the shipped weights. ``--json`` prints one object on the last line, ``--quick`` is one seed of few
windows, under a minute. A figure that could not be measured is null, with its reason beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from models.pose_calibration import angle_errors, calibrate_pose
from models.rvae import RVAE
from models.spatial_rvae import SpatialConfig
from models.training import Model, TrainingConfig, train
from tests import real_scans
from tests.benchmarks import labelled_windows, real_silicon
from tests.benchmarks.amortised_pose import AmortisedRVAE
from tests.benchmarks.peers import hard_sets

Figures = dict[str, Any]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

COVERS = {"68": 0.9945, "95": 1.95996}  # share in per cent, and within how many sds of a normal
CALIBRATED_ON = 1000
PAPERS = TrainingConfig(
    architecture=SpatialConfig(), epochs=24, batch=100, learning_rate=2e-3, warm_up=0.3, restarts=2
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a set is made; as ``hard_sets.Recipe``."""

    train_deg: float = 180.0
    dose: float = 400.0
    bulk: float | None = None
    tests_deg: tuple[float, ...] = (180.0,)


# A model trained on ±60° is scored on both ranges.
RECIPES = {
    "180": Recipe(),
    "60": Recipe(train_deg=60.0, tests_deg=(60.0, 180.0)),
    "dose40": Recipe(dose=40.0),
    "imbalanced": Recipe(bulk=0.8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    seeds: tuple[int, ...]
    windows: int
    tested: int
    atoms: int
    sets: tuple[str, ...]


FULL = Plan(seeds=(1, 3, 5, 7, 9), windows=6000, tested=2000, atoms=60, sets=tuple(RECIPES))
QUICK = Plan(seeds=(1,), windows=1500, tested=600, atoms=20, sets=("180",))


# -- where windows come from -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """Windows with their kind and their turn, from columns towards rows in rad."""

    windows_NCHW: Float32
    kind_N: NDArray[np.int64]
    angle_N: Float64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Test:
    """What a model is scored on; ``score(mean, angle, mean of the series, its angle)`` says how well."""

    __test__ = False

    part: Known
    series_NCHW: Float32
    score: Callable[[Float32, Float32, Float32, Float32], Figures]


class Source(Protocol):
    """Makes the windows of a recipe."""

    folds: tuple[int, ...]
    one_fold: tuple[str, ...]

    def train(self, recipe: Recipe, seed: int, count: int) -> Known:
        """Make windows to learn from."""

    def test(self, recipe: Recipe, range_deg: float, seed: int, plan: Plan) -> Test:
        """Make windows to score on, of equal shares."""


class Ours:
    """Windows of ``labelled_windows.py``."""

    folds = labelled_windows.FOLDS
    one_fold = ("gap", "beside", "across")

    def train(self, recipe: Recipe, seed: int, count: int) -> Known:
        """Make windows to learn from."""
        return self._known(
            labelled_windows.windows(
                count, seed, range_deg=recipe.train_deg, dose=recipe.dose, sheet=recipe.bulk
            )
        )

    def test(self, recipe: Recipe, range_deg: float, seed: int, plan: Plan) -> Test:
        """Make windows to score on."""
        part = labelled_windows.windows(plan.tested, 100 + seed, range_deg=range_deg, dose=recipe.dose)
        series = labelled_windows.turned(plan.atoms, 24, 1000 + seed, dose=recipe.dose)

        def score(mean: Float32, angle: Float32, series_mean: Float32, _: Float32) -> Figures:
            return labelled_windows.scored(mean, angle, part) | {
                "invariance": labelled_windows.invariance(series_mean, series)
            }

        return Test(part=self._known(part), series_NCHW=series.windows_NCHW, score=score)

    def _known(self, part: labelled_windows.Windows) -> Known:
        return Known(windows_NCHW=part.windows_NCHW, kind_N=part.kind_N, angle_N=part.angle_N)


class Theirs:
    """Windows and score of the folder that other programs are judged by."""

    one_fold = hard_sets.ONE_FOLD

    def __init__(self, folder: Path) -> None:
        self._patches, self._scoring = hard_sets.load(folder)
        self.folds = tuple(int(fold) for fold in self._patches.SYM)

    def train(self, recipe: Recipe, seed: int, count: int) -> Known:
        """Make windows to learn from."""
        classes = len(self._patches.CLASSES)
        rest = 0.0 if recipe.bulk is None else (1 - recipe.bulk) / (classes - 1)
        weights = None if recipe.bulk is None else [recipe.bulk] + [rest] * (classes - 1)
        return self._known(self._at(recipe, "make", count, seed, recipe.train_deg, weights))

    def test(self, recipe: Recipe, range_deg: float, seed: int, plan: Plan) -> Test:
        """Make windows to score on."""
        part = self._at(recipe, "make", plan.tested, 100 + seed, range_deg)
        series = self._at(recipe, "make_rotation_series", plan.atoms, 1000 + seed, range_deg)
        shape = series["x"].shape[:2]

        def score(mean: Float32, angle: Float32, series_mean: Float32, series_angle: Float32) -> Figures:
            got = self._scoring.score(
                mean, angle, part, series_mean.reshape(*shape, -1), series_angle.reshape(shape), series
            )
            return {
                "ari": got["ari_gmm6"],
                "knn": got["knn15_acc"],
                "invariance": got["invariance_ratio"],
                "r": {kind: one["R"] for kind, one in got["angle"].items()},
            }

        flat = series["x"].reshape(-1, 1, *series["x"].shape[2:])
        return Test(part=self._known(part), series_NCHW=flat, score=score)

    def _at(self, recipe: Recipe, what: str, count: int, seed: int, *rest: Any) -> Any:
        usual = self._patches.render
        self._patches.render = partial(usual, dose=recipe.dose)  # its functions take no dose themselves
        try:
            if what == "make":
                return self._patches.make(count, hard_sets.SIZE_PX, seed, *rest)
            return self._patches.make_rotation_series(count, 24, hard_sets.SIZE_PX, seed, *rest)
        finally:
            self._patches.render = usual

    def _known(self, part: Any) -> Known:
        # Their angles run anticlockwise on the screen.
        angle = -part["theta"].astype(np.float64)
        return Known(windows_NCHW=part["x"][:, None], kind_N=part["y"], angle_N=angle)


# -- training and scoring --------------------------------------------------------------------------------


def told(model: Model, windows_NCHW: Float32) -> tuple[Float32, Float32, Float32]:
    """Say content, angle and its sd."""
    parts = [model.posterior(part) for part in torch.from_numpy(windows_NCHW).split(500)]  # type: ignore[no-untyped-call]
    columns = zip(*((part.mean_NZ, part.angle_N, part.angle_sd_N) for part in parts), strict=True)
    mean, angle, sd = (torch.cat(column).numpy() for column in columns)
    return mean, angle, sd


def scored(model: Model, test: Test, folds: tuple[int, ...]) -> Figures:
    """Score a model, and say how often its intervals of the angle cover the truth."""
    mean, angle, sd = told(model, test.part.windows_NCHW)
    figures = test.score(mean, angle, *told(model, test.series_NCHW)[:2])
    error = angle_errors(angle.astype(np.float64), test.part.angle_N, test.part.kind_N, folds)
    return figures | {
        f"cover_{share}": float((np.abs(error) < sds * sd).mean()) for share, sds in COVERS.items()
    }


def calibrated(model: Model, source: Source, recipe: Recipe, seed: int) -> None:
    """Stretch the model's sds on windows of their own."""
    if isinstance(model, RVAE) and not isinstance(model, AmortisedRVAE):
        part = source.train(recipe, 10_000 + seed, CALIBRATED_ON)
        calibrate_pose(model, part.windows_NCHW, part.kind_N, source.folds, part.angle_N)


def one_seed(
    source: Source, name: str, seed: int, plan: Plan, config: TrainingConfig
) -> Iterator[tuple[str, Figures]]:
    """Train on a set and score it on each of its ranges; names them as the figures are named."""
    recipe = RECIPES[name]
    part = source.train(recipe, seed, plan.windows)
    before_s = time.process_time()
    model, _ = train(part.windows_NCHW, msgspec.structs.replace(config, seed=seed))
    cpu_s = time.process_time() - before_s
    calibrated(model, source, recipe, seed)
    for range_deg in recipe.tests_deg:
        row = scored(model, source.test(recipe, range_deg, seed, plan), source.folds)
        row["cpu_s"] = cpu_s
        yield name if range_deg == recipe.tests_deg[0] else f"{name}to{range_deg:g}", row


def measure_sets(
    source: Source, plan: Plan, config: TrainingConfig, sets: tuple[str, ...], after: str = ""
) -> Figures:
    """Train and score every set with every seed."""
    rows: dict[str, list[Figures]] = {}
    for name in sets:
        for seed in plan.seeds:
            for tested, row in one_seed(source, name, seed, plan, config):
                rows.setdefault(tested, []).append(row)
                print(f"  {tested}{after}, seed {seed}: {json.dumps(_rounded(row))}", flush=True)
    figures: Figures = {}
    for name, found in rows.items():
        figures |= _summary(f"{name}{after}", found, source.one_fold)
    return figures


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return round(float(value), 4)


def _summary(name: str, rows: list[Figures], one_fold: tuple[str, ...]) -> Figures:
    figures: Figures = {}
    for figure, worst in (("ari", min), ("knn", min), ("invariance", max)):
        values = [row[figure] for row in rows]
        figures[f"{figure}_{name}"] = round(float(np.mean(values)), 4)
        figures[f"{figure}_{name}_worst"] = round(worst(values), 4)
    figures[f"r_min_{name}"] = round(min(min(row["r"].values()) for row in rows), 4)
    figures[f"r_min_one_fold_{name}"] = round(min(row["r"][kind] for row in rows for kind in one_fold), 4)
    for share in COVERS:
        figures[f"cover_{share}_{name}"] = round(float(np.mean([row[f"cover_{share}"] for row in rows])), 3)
    figures[f"train_cpu_s_{name}"] = round(max(row["cpu_s"] for row in rows), 1)
    return figures


def measure_model(source: Source, plan: Plan) -> Figures:
    """Measure the harmonic rVAE on every set."""
    figures = measure_sets(source, plan, TrainingConfig(), plan.sets)
    for share in COVERS if "180" in plan.sets else ():
        figures[f"circular_cover_{share}"] = figures[f"cover_{share}_180"]
    figures["train_cpu_s"] = max(value for name, value in figures.items() if name.startswith("train_cpu_s"))
    return figures


def measure_ablation(source: Source, plan: Plan) -> Figures:
    """Measure the same model with a guessed angle, and the papers' network, on the standard set."""
    with patch("models.training.RVAE", AmortisedRVAE):
        figures = measure_sets(source, plan, TrainingConfig(), ("180",), "_amortised")
    return figures | measure_sets(source, plan, PAPERS, ("180",), "_spatial")


def measure_real(data: Path | None) -> Figures:
    """Judge the shipped weights on real silicon in graphene."""
    folder = real_scans.data_folder(data)
    if folder is None:
        reason = "no folder of recordings: give --data or set PROBELOOP_DATA"
        return dict.fromkeys(real_silicon.NAMES) | {f"{name}_reason": reason for name in real_silicon.NAMES}
    return real_silicon.measure(folder)


# -- all of it -------------------------------------------------------------------------------------------


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="one seed and few windows, under a minute")
    parser.add_argument("--prototypes", type=Path, help="folder with make_patches.py and eval_rvae.py")
    parser.add_argument("--ablation", action="store_true", help="a guessed angle, and the papers' network")
    parser.add_argument("--seeds", help="instead of the odd ones that are reported, such as 0,2,4")
    parser.add_argument("--sets", help=f"some of {','.join(RECIPES)}")
    parser.add_argument("--data", type=Path, help="folder of real recordings; else $PROBELOOP_DATA")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = QUICK if arguments.quick else FULL
    if arguments.seeds:
        seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
        plan = Plan(**{name: getattr(plan, name) for name in Plan.__slots__} | {"seeds": seeds})
    if arguments.sets:
        sets = tuple(arguments.sets.split(","))
        if unknown := set(sets) - set(RECIPES):
            parser.error(f"--sets: no set {', '.join(sorted(unknown))}; it takes {', '.join(RECIPES)}")
        plan = Plan(**{name: getattr(plan, name) for name in Plan.__slots__} | {"sets": sets})
    source: Source = Theirs(arguments.prototypes) if arguments.prototypes else Ours()
    began_s, cpu_s = time.perf_counter(), time.process_time()
    figures = measure_model(source, plan)
    if arguments.ablation:
        figures |= measure_ablation(source, plan)
    figures |= measure_real(arguments.data)
    for name, value in figures.items():
        print(f"{name:36} {value}")
    figures["wall_s"] = round(time.perf_counter() - began_s, 1)
    figures["cpu_s"] = round(time.process_time() - cpu_s, 1)
    figures |= {"seeds": list(plan.seeds), "quick": arguments.quick, "windows": type(source).__name__.lower()}
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
