"""One layer of molybdenum disulphide in HAADF: sulphur vacancies, tungsten and selenium."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deploy.presets.crystal_columns import Stacked, stacked
from deploy.presets.preset import UNKNOWN, Labelled, Preset
from deploy.presets.stem_windows import (
    Columns,
    Microscope,
    directions,
    gathered,
    turned_series,
)
from models.rvae import RVAEConfig
from models.training import TrainingConfig
from simulators.known_structures import MOS2_NM
from simulators.stem import Z_EXPONENT
from simulators.structure_specimen import DopantConfig, StructureConfig, VacancyConfig, fill
from simulators.structures import Structure

Int64 = NDArray[np.int64]

CLASSES = (
    "molybdenum",
    "two sulphurs",
    "one sulphur",
    "molybdenum beside one missing sulphur",
    "molybdenum beside a missing pair of sulphurs",
    "tungsten",
    "selenium over sulphur",
)
MO, TWO_S, ONE_S, BESIDE_ONE, BESIDE_PAIR, TUNGSTEN, SELENIUM = range(len(CLASSES))
SYMMETRY = (3, 3, 3, 1, 1, 3, 3)
NUMBERS = {"S": 16, "Se": 34, "Mo": 42, "W": 74}
BOND_SEEN_NM = MOS2_NM / math.sqrt(3)  # in projection
RIM_NM = 0.8


def varied_crystal(rng: np.random.Generator) -> StructureConfig:
    """Draw a defective sheet at any turn."""
    return StructureConfig(
        rotation_deg=float(rng.uniform(0, 360)),
        strain=(float(rng.normal(0, 0.01)), float(rng.normal(0, 0.01)), float(rng.normal(0, 0.01))),
        dopants=(
            DopantConfig(element="W", replaces="Mo", fraction=float(rng.uniform(0.005, 0.03))),
            DopantConfig(element="Se", replaces="S", fraction=float(rng.uniform(0.005, 0.02))),
        ),
        vacancies=(VacancyConfig(element="S", fraction=float(rng.uniform(0.03, 0.12))),),
    )


def sheet(config: StructureConfig, far_nm: float, rng: np.random.Generator) -> Structure:
    """Fill a square around the origin."""
    return fill("mos2", config, (-far_nm, -far_nm), (far_nm, far_nm), rng)


def columns_of(structure: Structure) -> Columns:
    """Say what the annular dark field sees of a sheet; molybdenum has height 1."""
    seen = stacked(structure, (structure.numbers / NUMBERS["Mo"]) ** Z_EXPONENT["HAADF"])
    class_N = _classes(structure, seen)
    folds = np.where(class_N == UNKNOWN, 0, np.array(SYMMETRY)[class_N])
    angle_N = directions(seen.positions_nm, seen.heights, folds, reach_nm=0.3, width_nm=0.12)
    return Columns(seen.positions_nm, seen.heights, class_N, angle_N, np.ones(len(class_N), bool))


def _classes(structure: Structure, seen: Stacked) -> Int64:
    """Name each column by what is in it and, of molybdenum, by what is missing around it."""
    there = {name: seen.number_of(structure.numbers == number) for name, number in NUMBERS.items()}
    chalcogens = there["S"] + there["Se"]
    is_metal = there["Mo"] + there["W"] > 0
    missing, pairs = _missing_around(seen, is_metal, chalcogens)
    is_plain = there["Mo"] > 0
    kinds = [
        (is_plain & (missing == 0), MO),
        (there["S"] == 2, TWO_S),
        ((there["S"] == 1) & (there["Se"] == 0), ONE_S),
        (is_plain & (missing == 1), BESIDE_ONE),
        (is_plain & (missing == 2) & (pairs == 1), BESIDE_PAIR),
        ((there["W"] > 0) & (missing == 0), TUNGSTEN),
        ((there["S"] == 1) & (there["Se"] == 1), SELENIUM),
    ]
    classes: Int64 = np.select([here for here, _ in kinds], [kind for _, kind in kinds], UNKNOWN)
    return classes


def _missing_around(seen: Stacked, is_metal: NDArray[np.bool_], chalcogens: Int64) -> tuple[Int64, Int64]:
    """Count missing chalcogens around each metal, and columns of them that are empty."""
    tree = cKDTree(seen.positions_nm[~is_metal])
    near = tree.query_ball_point(seen.positions_nm, BOND_SEEN_NM * 1.3)
    counts = chalcogens[~is_metal]
    missing = np.array([6 - counts[around].sum() for around in near], dtype=np.int64)
    pairs = np.array([3 - len(around) for around in near], dtype=np.int64)
    return missing, pairs


def varied_microscope(rng: np.random.Generator) -> Microscope:
    """Draw a microscope of 60 to 100 kV."""
    counts = float(np.exp(rng.uniform(np.log(50), np.log(500))))
    return Microscope(
        detector="HAADF",
        size_px=256,
        pixel_nm=float(rng.uniform(0.012, 0.024)),
        counts=counts,
        background_counts=float(rng.uniform(0.01, 0.1)) * counts,
        probe_sigma_nm=float(rng.uniform(0.04, 0.06)),
    )


def simulate(preset: Preset, count: int, rng: np.random.Generator) -> Labelled:
    """Gather windows of defective sheets until ``count``, the kinds of columns as evenly as there are."""

    def drawn(_: int) -> tuple[Columns, Microscope]:
        microscope = varied_microscope(rng)
        far_nm = microscope.size_px * microscope.pixel_nm / 2 + RIM_NM
        return columns_of(sheet(varied_crystal(rng), far_nm, rng)), microscope

    return gathered(drawn, count, preset, rng)


def series(preset: Preset, rng: np.random.Generator) -> Labelled:
    """Turn the scan over one defective sheet."""
    microscope = Microscope(
        detector="HAADF",
        size_px=320,
        pixel_nm=0.018,
        counts=200.0,
        background_counts=8.0,
        probe_sigma_nm=0.05,
    )
    far_nm = microscope.size_px * microscope.pixel_nm / math.sqrt(2) + RIM_NM
    columns = columns_of(sheet(varied_crystal(rng), far_nm, rng))
    return turned_series(columns, microscope, preset, rng)


PRESET = Preset(
    name="mos2",
    shows="one layer of molybdenum disulphide with sulphur vacancies, tungsten and selenium",
    channels=("HAADF",),
    window_nm=0.44,  # a column and those around it; of wider ones there are too many kinds
    window_px=24,
    classes=CLASSES,
    symmetry=SYMMETRY,
    training=TrainingConfig(
        architecture=RVAEConfig(
            latent_dim=3,
            classes=len(CLASSES),
            mixture=len(CLASSES),
            label_weight=300.0,
            class_tie=4.0,
            class_scatter=300.0,
        ),
        epochs=16,
    ),
    windows=9000,
    data=(
        "{count} windows of simulated molybdenum disulphide, one layer in HAADF, with single and paired "
        "sulphur vacancies, tungsten and selenium; 50 to 500 counts on a molybdenum, probe sigma 0.04 to "
        "0.06 nm, pixels of 0.012 to 0.024 nm; cut 0.01 nm (sd) off the columns. The kind of column is a "
        "label of each, drawn evenly; of columns with other surroundings it is not known"
    ),
    simulate=simulate,
    series=series,
)
