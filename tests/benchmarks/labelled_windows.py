"""Windows of a honeycomb sheet whose kind, turn and shift are known: a set that needs nothing but numpy.

Five kinds of atom stand in the middle: one of the perfect sheet, a heavy one, one beside a missing atom, one
beside a heavy one, and one of a bond that stands across. Atoms are displaced, the probe's width, the scale,
the brightness and the background vary, and counts are Poisson's. And how a model's answers are scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deploy.presets.groups import mixture_groups
from simulators.scoring import adjusted_rand_index

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

KINDS = ("sheet", "heavy", "gap", "beside", "across")
FOLDS = (3, 3, 1, 1, 1)
SIZE_PX = 24
_BOND_PX = 5.7
_HEAVY = 4.0
_HEAVY_BOND = 1.13
_NEIGHBOURS = 15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Windows and their truth.

    Attributes
    ----------
    windows_NCHW
        About 0 to 1, float32.
    kind_N, angle_N
        Index into ``KINDS``, and the turn from columns towards rows in rad.
    atom_N
        Which atom it is; the same one may be shown at several turns.
    """

    windows_NCHW: Float32
    kind_N: Int64
    angle_N: Float64
    atom_N: Int64


def _motif(kind: str) -> tuple[Float64, Float64]:
    """Positions in pixels as ``(x, y)`` and heights, the atom of the kind at the origin."""
    cells = np.array([(i, j) for i in range(-4, 5) for j in range(-4, 5)])
    corner = cells @ (_BOND_PX * np.array([[1.5, math.sqrt(0.75)], [1.5, -math.sqrt(0.75)]]))
    atoms = np.concatenate([corner, corner + [_BOND_PX, 0.0]])
    atoms = atoms[np.argsort(np.hypot(*atoms.T), kind="stable")]
    height = np.full(len(atoms), 1 / _HEAVY)
    beside = int(np.argmin(np.hypot(*(atoms - [_BOND_PX, 0.0]).T)))
    if kind == "heavy":
        height[0] = 1.0
        atoms[1:4] *= _HEAVY_BOND
    elif kind == "gap":
        height[beside] = 0.0
    elif kind == "beside":
        height[beside] = 1.0
        atoms[beside] *= _HEAVY_BOND
    elif kind == "across":
        middle, half = np.array([_BOND_PX / 2, 0.0]), 0.47 * _BOND_PX
        atoms[0], atoms[beside] = middle + [0.0, half], middle - [0.0, half]
        atoms = atoms - atoms[0]
    near = np.hypot(*atoms.T) < SIZE_PX
    return atoms[near], height[near]


def _drawn(kind_N: Int64, angle_A: Float64, dose: float, rng: np.random.Generator) -> list[Float64]:
    """Draw each atom at every angle ``(A,)``, or at its own: the accidents of an atom turn with it."""
    motifs = [_motif(kind) for kind in KINDS]
    axis = np.arange(SIZE_PX) - (SIZE_PX - 1) / 2
    drawn = []
    for kind, angles in zip(kind_N, angle_A, strict=True):
        atoms, height = motifs[kind]
        atoms = atoms * rng.normal(1.0, 0.01) + rng.normal(0.0, 0.24, atoms.shape)
        shift, width = rng.normal(0.0, 0.3, 2), 1.6 * rng.uniform(0.9, 1.1)
        gain, level, slope = rng.uniform(0.9, 1.1), rng.uniform(0.0, 0.05), rng.normal(0.0, 0.01, 2)
        for angle in np.atleast_1d(angles):
            cos, sin = math.cos(angle), math.sin(angle)
            x, y = (atoms @ np.array([[cos, sin], [-sin, cos]]) + shift).T
            across = np.exp(-0.5 * ((axis - x[:, None]) / width) ** 2)
            down = np.exp(-0.5 * ((axis - y[:, None]) / width) ** 2)
            expected = gain * ((height[:, None] * down).T @ across) + level
            expected += (slope[0] * axis + slope[1] * axis[:, None]) / axis[-1]
            counts = rng.poisson(np.clip(expected, 0.0, None) * dose) / dose
            drawn.append(counts + rng.normal(0.0, 0.02, counts.shape))
    return drawn


def windows(
    count: int, seed: int, *, range_deg: float = 180.0, dose: float = 400.0, sheet: float | None = None
) -> Windows:
    """Draw windows at random turns.

    Parameters
    ----------
    range_deg
        Turns are uniform in plus and minus this.
    dose
        Counts of a heavy atom's peak.
    sheet
        Share of the perfect sheet; None for equal shares.
    """
    rng = np.random.default_rng([7, seed])
    rest = 1 / len(KINDS) if sheet is None else (1 - sheet) / (len(KINDS) - 1)
    share = [rest if sheet is None else sheet] + [rest] * (len(KINDS) - 1)
    kind_N = rng.choice(len(KINDS), count, p=share)
    angle_N = np.radians(rng.uniform(-range_deg, range_deg, count))
    drawn = np.array(_drawn(kind_N, angle_N, dose, rng), dtype=np.float32)
    return Windows(windows_NCHW=drawn[:, None], kind_N=kind_N, angle_N=angle_N, atom_N=np.arange(count))


def turned(atoms: int, turns: int, seed: int, *, dose: float = 400.0) -> Windows:
    """Draw each atom at every turn, with its own accidents and fresh counts."""
    rng = np.random.default_rng([8, seed])
    kind_A = np.arange(atoms) % len(KINDS)
    angles = 2 * math.pi * np.arange(turns) / turns - math.pi
    drawn = np.array(_drawn(kind_A, np.tile(angles, (atoms, 1)), dose, rng), dtype=np.float32)
    atom_N = np.repeat(np.arange(atoms), turns)
    return Windows(
        windows_NCHW=drawn[:, None], kind_N=kind_A[atom_N], angle_N=np.tile(angles, atoms), atom_N=atom_N
    )


# -- scores ----------------------------------------------------------------------------------------------


def scored(mean_NZ: Float32, angle_N: Float32, part: Windows) -> dict[str, Any]:
    """Score latents and angles: ``ari``, ``knn`` and ``r`` by kind."""
    scaled = (mean_NZ - mean_NZ.mean(0)) / np.maximum(mean_NZ.std(0), 1e-12)
    half = len(scaled) // 2
    _, near = cKDTree(scaled[:half]).query(scaled[half:], k=_NEIGHBOURS)
    votes = np.eye(len(KINDS))[part.kind_N[:half][near]].sum(1).argmax(1)
    away = angle_N - part.angle_N
    r = {
        kind: float(np.abs(np.exp(1j * FOLDS[at] * away[part.kind_N == at]).mean()))
        for at, kind in enumerate(KINDS)
    }
    return {
        "ari": adjusted_rand_index(part.kind_N, mixture_groups(scaled, len(KINDS))),
        "knn": float((votes == part.kind_N[half:]).mean()),
        "r": r,
    }


def invariance(mean_NZ: Float32, part: Windows) -> float:
    """Mean variance of an atom's latents over turns, by the variance of the kinds' means."""
    atoms = range(part.atom_N.max() + 1)
    within = np.mean([mean_NZ[part.atom_N == atom].var(0).sum() for atom in atoms])
    middles = np.array([mean_NZ[part.kind_N == kind].mean(0) for kind in range(len(KINDS))])
    return float(within / middles.var(0).sum())
