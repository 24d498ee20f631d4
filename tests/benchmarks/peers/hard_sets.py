"""AtomAI's rVAE on the synthetic windows of graphene, the standard sets and the hard ones.

    python tests/benchmarks/peers/hard_sets.py --prototypes DIR --json

``DIR`` has ``make_patches.py`` (windows with class, angle and shift known) and ``eval_rvae.py`` (its
``score``), so that every model is judged by the same code. The peer gets its windows standardised, as it
needs: on raw ones its posterior collapses. Each seed stands for a network and for data of its own. About
25 seconds of one core an epoch. Each row is printed when it is there, and the table at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np

from tests.benchmarks.peers.ask import Peers, why_absent

SIZE_PX = 24
ONE_FOLD = ("vac", "sw57", "c_si")
COLUMNS = ("ari", "knn", "invariance", "r_mean", "r_min", "r_min_one_fold", "cpu_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a set of windows is made.

    Attributes
    ----------
    train_deg, test_deg
        Angles are uniform in plus and minus this.
    dose
        Counts of a silicon atom's peak, in training and test.
    bulk
        Share of undisturbed windows in training; None for equal classes. The test always has equal ones.
    """

    train_deg: float = 180.0
    test_deg: float = 180.0
    dose: float = 400.0
    bulk: float | None = None


RECIPES = {
    "180": Recipe(),
    "60": Recipe(train_deg=60.0, test_deg=60.0),
    "dose40": Recipe(dose=40.0),
    "imbalanced": Recipe(bulk=0.8),
    "60to180": Recipe(train_deg=60.0),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """One set: what to learn from, what to judge by, and single atoms turned round.

    ``test`` and ``series`` hold ``x`` (windows), ``y`` (class), ``theta`` (radians) and ``sym``; the windows
    of ``train`` are ``(n, 24, 24)``, those of ``series`` ``(atoms, angles, 24, 24)``.
    """

    train: Any
    test: dict[str, Any]
    series: dict[str, Any]


def make_windows(patches: ModuleType, recipe: Recipe, seed: int, n_train: int = 6000) -> Windows:
    """Make a set; ``patches`` is the module ``make_patches``.

    Seeds of training, test and series never meet: they are ``seed``, ``100 + seed`` and ``1000 + seed``.
    """
    classes = len(patches.CLASSES)
    rest = 0.0 if recipe.bulk is None else (1 - recipe.bulk) / (classes - 1)
    weights = None if recipe.bulk is None else [recipe.bulk] + [rest] * (classes - 1)
    usual = patches.render
    patches.render = partial(usual, dose=recipe.dose)  # its functions take no dose themselves
    try:
        train = patches.make(n_train, SIZE_PX, seed, recipe.train_deg, weights)
        test = patches.make(2000, SIZE_PX, 100 + seed, recipe.test_deg)
        series = patches.make_rotation_series(60, 24, SIZE_PX, 1000 + seed, recipe.test_deg)
    finally:
        patches.render = usual
    return Windows(train=train["x"], test=test, series=series)


def load(folder: Path) -> tuple[ModuleType, ModuleType]:
    """Import ``make_patches`` and ``eval_rvae`` from a folder."""
    if not (folder / "make_patches.py").is_file():
        sys.exit(f"--prototypes {folder}: no make_patches.py there; give the folder that holds it")
    sys.path.insert(0, str(folder))
    import eval_rvae
    import make_patches

    return make_patches, eval_rvae


def judge(peers: Peers, modules: tuple[ModuleType, ModuleType], name: str, seed: int, epochs: int) -> Any:
    """Train the peer on a set and score it."""
    patches, scoring = modules
    windows = make_windows(patches, RECIPES[name], seed)
    with tempfile.TemporaryDirectory() as folder:
        given, out = f"{folder}/windows.npz", f"{folder}/latents.npz"
        np.savez(given, train=windows.train, test=windows.test["x"], series=windows.series["x"])
        answer = peers.ask("fit", path=given, out=out, seed=seed, epochs=epochs)
        with np.load(out) as file:
            latents = dict(file)
    got = scoring.score(
        latents["test_mean"], latents["test_angle"], windows.test,
        latents["series_mean"], latents["series_angle"], windows.series,
    )  # fmt: skip
    r = {kind: one["R"] for kind, one in got["angle"].items()}
    return {
        "set": name, "seed": seed, "epochs": epochs, "ari": got["ari_gmm6"], "knn": got["knn15_acc"],
        "invariance": got["invariance_ratio"], "r_mean": got["angle_mean_R"], "r_min": min(r.values()),
        "r_min_one_fold": min(r[kind] for kind in ONE_FOLD), "cpu_s": round(answer["cpu_s"], 1), "r": r,
    }  # fmt: skip


def table(rows: list[Any]) -> str:
    """Write mean, least and most of each figure of each set, in Markdown."""
    lines = ["| set | seeds, epochs | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in mine]
            cells.append(f"{np.mean(values):.3g} ({min(values):.3g}–{max(values):.3g})")
        lines.append(f"| {name} | {len(mine)}, {mine[0]['epochs']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the sets that were asked for, seed by seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prototypes", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(RECIPES))
    parser.add_argument("--seeds", default="1,3,5")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row, no table")
    told = parser.parse_args()
    if (reason := why_absent()) is not None:
        sys.exit(reason)
    modules, rows = load(told.prototypes), []
    for seed in map(int, told.seeds.split(",")):
        for name in told.sets.split(","):
            with Peers() as peers:
                rows.append(judge(peers, modules, name, seed, told.epochs))
            print(json.dumps(rows[-1]), flush=True)
    if not told.json:
        print(table(rows))


if __name__ == "__main__":
    main()
