"""Perovskites along a cubic axis: columns of A, of B with oxygen, and of oxygen alone, cubic and polar.

Strontium titanate is the cubic one. Lead titanate is the polar one, with domains of opposite polarisation in
the plane of the image; what lies in the wall between them is learnt from, but has no class.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deploy.presets.crystal_columns import stacked
from deploy.presets.judging import class_scores
from deploy.presets.preset import UNKNOWN, Labelled, Preset, joined
from deploy.presets.stem_windows import (
    Columns,
    Microscope,
    directions,
    gathered,
    turned_series,
)
from models.encoder import Encoder
from models.rvae import RVAEConfig
from models.training import TrainingConfig
from simulators import structure_edits as edits
from simulators.known_structures import LEAD_TITANATE_NM, LEAD_TITANATE_Z, lead_titanate, strontium_titanate
from simulators.structures import Structure
from streamer.messages import PairNm

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

CLASSES = (
    "A column, cubic",
    "B column, cubic",
    "oxygen column, cubic",
    "A column, polar",
    "B column, polar",
    "oxygen column, polar",
)
A, B, OXYGEN_ALONE = range(3)
POLAR = 3  # so much further on in CLASSES
SYMMETRY = (4, 4, 2, 1, 1, 1)
TITANIUM, OXYGEN = 22, 8
# Of single atoms it is 1.9; the thicker a crystal is, the more its heavy columns saturate.
HAADF_EXPONENT = (1.3, 1.8)
# A dip in annular bright field goes with the cube root of the atomic number (Findlay et al.,
# Ultramicroscopy 110, 903 (2010)): so light columns are seen beside heavy ones.
ABF_EXPONENT = 1 / 3
ABF_DEEPEST = 0.5  # of what there is without a crystal
WALL_NM = 0.4
IN_A_DOMAIN = 0.8  # share of the whole displacement
RIM_NM = 0.8
JUDGED, JUDGING_SEED = 800, 5


def cubic(far_nm: float, turn_deg: float) -> Structure:
    """Strontium titanate, one cell thick, that covers a square around the origin."""
    view = edits.turned(edits.along_zone(strontium_titanate(), (1, 0, 0)), turn_deg)
    return _square(view, far_nm)


def polar(far_nm: float, turn_deg: float, wall_at_nm: PairNm) -> Structure:
    """Lead titanate with two domains, the wall along the axis of their polarisation."""
    a_nm, c_nm = LEAD_TITANATE_NM
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    undisplaced = replace(lead_titanate(), positions_nm=np.array(places) * [a_nm, a_nm, c_nm])
    # Along this zone the third axis of the cell lies along rows of the image, before it is turned.
    view = edits.turned(edits.along_zone(undisplaced, (1, 0, 0)), turn_deg)
    crystal = _square(view, far_nm)
    titanium_z, above_z, beside_z = LEAD_TITANATE_Z
    up = view.cell_nm[1] / np.linalg.norm(view.cell_nm[1])
    normal_deg = math.degrees(math.atan2(up[1], up[0])) + 90
    for element, share in (("Ti", titanium_z - 0.5), ("O", (above_z + beside_z - 0.5) / 2)):
        crystal = edits.polar(
            crystal,
            element,
            share * c_nm * up,
            wall_at_nm=wall_at_nm,
            wall_width_nm=WALL_NM,
            wall_normal_deg=normal_deg,
        )
    return crystal


def _square(view: Structure, far_nm: float) -> Structure:
    lowest = float(view.positions_nm[:, 2].min()) - 1e-4
    upper = (far_nm, far_nm, lowest + float(view.cell_nm[2, 2]))
    return edits.cut(view, (-far_nm, -far_nm, lowest), upper)


def columns_of(crystal: Structure, detector: str, rng: np.random.Generator) -> Columns:
    """Say what a detector sees of it; the brightest column has height 1, or -1 in bright field."""
    exponent = ABF_EXPONENT if detector == "ABF" else float(rng.uniform(*HAADF_EXPONENT))
    seen = stacked(crystal, np.power(crystal.numbers, exponent, dtype=np.float64))
    kind = _kind(crystal, seen.column_A)
    return Columns(
        positions_nm=seen.positions_nm,
        heights=seen.heights / seen.heights.max() * (-1 if detector == "ABF" else 1),
        class_N=kind,
        angle_N=np.full(len(kind), np.nan),
        is_seen_N=(kind != OXYGEN_ALONE) | (detector == "ABF"),
    )


def _kind(crystal: Structure, column_A: Int64) -> Int64:
    """Say of each column what is in it: A, B or OXYGEN_ALONE."""
    heaviest = np.zeros(column_A.max() + 1, dtype=np.int64)
    np.maximum.at(heaviest, column_A, crystal.numbers)
    kinds: Int64 = np.select([heaviest > TITANIUM, heaviest == TITANIUM], [A, B], OXYGEN_ALONE)
    return kinds


def cubic_columns(far_nm: float, detector: str, rng: np.random.Generator) -> Columns:
    """Strontium titanate at any turn; the angle is that of its four or two directions."""
    columns = columns_of(cubic(far_nm, float(rng.uniform(0, 360))), detector, rng)
    folds = np.array(SYMMETRY)[columns.class_N]
    # By where the metals are, so that a direction does not depend on the detector.
    is_metal = (columns.class_N != OXYGEN_ALONE).astype(np.float64)
    weight = np.where(columns.class_N == A, 2.0, is_metal)
    angle = directions(columns.positions_nm, weight, folds, reach_nm=0.3, width_nm=0.15)
    return columns._replace(angle_N=angle)


def polar_columns(far_nm: float, detector: str, rng: np.random.Generator) -> Columns:
    """Lead titanate at any turn; the angle is that of the polarisation."""
    turn_deg = float(rng.uniform(0, 360))
    wall_at = rng.uniform(-0.5, 0.5, 2) * far_nm
    columns = columns_of(polar(far_nm, turn_deg, (float(wall_at[0]), float(wall_at[1]))), detector, rng)
    up = math.radians(turn_deg) + math.pi / 2
    # The normal of the wall is a quarter turn on from the axis.
    normal = np.array([math.cos(up + math.pi / 2), math.sin(up + math.pi / 2)])
    share = np.tanh((columns.positions_nm - wall_at) @ normal / WALL_NM)
    return columns._replace(
        class_N=np.where(np.abs(share) > IN_A_DOMAIN, columns.class_N + POLAR, UNKNOWN),
        angle_N=np.where(share > 0, up, up + math.pi),
    )


def varied_microscope(rng: np.random.Generator, detector: str | None = None) -> Microscope:
    """Draw a microscope of 100 to 300 kV, in HAADF or ABF unless it is said which."""
    counts = float(np.exp(rng.uniform(np.log(40), np.log(400))))
    is_dark = rng.random() < 0.5 if detector is None else detector == "ABF"
    return Microscope(
        detector="ABF" if is_dark else "HAADF",
        size_px=256,
        pixel_nm=float(rng.uniform(0.013, 0.026)),
        counts=counts,
        background_counts=counts / ABF_DEEPEST if is_dark else float(rng.uniform(0.02, 0.2)) * counts,
        probe_sigma_nm=float(rng.uniform(0.035, 0.055)),
    )


def simulate(preset: Preset, count: int, rng: np.random.Generator) -> Labelled:
    """Gather windows of cubic and of polar crystals by turns until ``count``."""
    return seen_by(preset, count, rng)


def seen_by(preset: Preset, count: int, rng: np.random.Generator, detector: str | None = None) -> Labelled:
    """Do it with one detector, or with both."""

    def drawn(number: int) -> tuple[Columns, Microscope]:
        microscope = varied_microscope(rng, detector)
        far_nm = microscope.size_px * microscope.pixel_nm / 2 + RIM_NM
        make = polar_columns if number % 2 else cubic_columns
        return make(far_nm, microscope.detector, rng), microscope

    return gathered(drawn, count, preset, rng)


def series(preset: Preset, rng: np.random.Generator) -> Labelled:
    """Turn the scan over a cubic and a polar crystal, in bright field, where all columns are seen."""
    microscope = Microscope(
        detector="ABF",
        size_px=256,
        pixel_nm=0.018,
        counts=150.0,
        background_counts=150.0 / ABF_DEEPEST,
        probe_sigma_nm=0.045,
    )
    far_nm = microscope.size_px * microscope.pixel_nm / math.sqrt(2) + RIM_NM
    crystals = (cubic_columns(far_nm, "ABF", rng), polar_columns(far_nm, "ABF", rng))
    return joined([turned_series(columns, microscope, preset, rng) for columns in crystals])


def judge(preset: Preset, encoder: Encoder) -> dict[str, float]:
    """Compare groups with classes for each detector: a column has its group in each of the two."""
    scores: dict[str, float] = {}
    for detector in ("HAADF", "ABF"):
        part = seen_by(preset, JUDGED, np.random.default_rng(JUDGING_SEED), detector)
        told = class_scores(encoder.encode(part.windows_NCHW).mean, part.class_N)
        scores |= {f"{name}_{detector.lower()}": value for name, value in told.items()}
    return scores


PRESET = Preset(
    name="perovskite",
    shows="perovskites along a cubic axis: A, B and oxygen columns, cubic and polar",
    channels=("HAADF",),
    window_nm=0.8,
    window_px=24,
    classes=CLASSES,
    symmetry=SYMMETRY,
    training=TrainingConfig(
        architecture=RVAEConfig(
            latent_dim=4,
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
        "{count} windows of simulated strontium titanate and of lead titanate with two domains, along a "
        "cubic axis; HAADF and ABF, one channel, columns bright; 40 to 400 counts at the strongest column, "
        "probe sigma 0.035 to 0.055 nm, pixels of 0.013 to 0.026 nm; cut 0.01 nm (sd) off the columns. The "
        "kind of column is a label of each, drawn evenly; in a domain wall it is not known"
    ),
    simulate=simulate,
    series=series,
    judge=judge,
)
