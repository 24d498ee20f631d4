"""Diffraction patterns of graphene in a 4D-STEM: where in the lattice the probe is, however that is turned.

The two atoms of a cell, and the three bonds, have patterns that are turned copies of each other: to an
encoder that sets the rotation apart they are one kind each, where an analysis of plain pixels has as many as
there are orientations (arXiv:2009.10758). The middle of a pattern is where the undeflected beam is, so there
is no shift.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deploy.presets.places import JITTER, TURNS
from deploy.presets.preset import UNKNOWN, Labelled, Preset, joined
from models.normalisation import of_patterns
from models.rvae import RVAEConfig
from models.training import TrainingConfig
from simulators.diffraction import DiffractionConfig, DiffractionInstrument
from simulators.scan_distortion import ScanDistortion
from simulators.simulator import Scan
from simulators.specimen import BESIDE_VACANCY, SpecimenConfig
from streamer.messages import ScanGeometry

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

CLASSES = ("on an atom", "between two atoms", "in a ring", "in a vacancy", "on silicon")
ATOM, BOND, RING, VACANCY, SILICON = range(5)
SYMMETRY = (3, 2, 6, 0, 0)  # a vacancy that rebonds has none of its three
# Within the bright disc, whose edge is made of camera pixels and does not turn with the specimen.
WINDOW_PER_NM, WINDOW_PX = 11.5, 16
BOND_NM = 0.142
# In focus the bright disc of a thin specimen hardly changes from place to place (two sites are 0.7 to 3.6 sd
# of the noise apart at 31,000 electrons); 4 nm beside it, it does (9 to 14 sd).
DEFOCUS_NM = 4.0
OFF_NM = 0.003  # beside the site, sd along an axis: further off, the deflected beam hides its symmetry
ANYWHERE = 0.4  # share of the patterns that are taken anywhere, without a class
SITES_OF_A_SHEET = 60


class Sites(NamedTuple):
    """Places of the lattice: specimen positions, class and angle in the specimen."""

    positions_nm: Float64
    class_N: Int64
    angle_N: Float64


def varied_microscope(rng: np.random.Generator) -> DiffractionConfig:
    """Draw a beam, a dose and a sheet, wide around the instrument's default at 60 kV and 30 mrad."""
    sheet = SpecimenConfig(
        orientation_deg=float(rng.uniform(0, 360)),
        three_fold_si_per_nm2=0.25,
        four_fold_si_per_nm2=0.0,
        vacancies_per_nm2=0.3,
        defect_distance_nm=0.7,
        has_grain_boundary=False,
    )
    return DiffractionConfig(
        field_of_view_nm=4.0,
        beam_current_pa=float(np.exp(rng.uniform(np.log(5), np.log(40)))),
        semi_angle_mrad=float(rng.uniform(29, 31)),
        defocus_nm=float(rng.normal(DEFOCUS_NM, 0.7)),
        camera_rotation_deg=float(rng.uniform(0, 360)),
        seed=int(rng.integers(2**31)),
        sheet=sheet,
        distortion=JITTER,
    )


def sites_of(instrument: DiffractionInstrument, far_nm: float) -> Sites:
    """Give the sites of the sheet within a distance of the middle."""
    truth = instrument.simulator.truth()
    atoms, number = truth["positions_nm"].astype(np.float64), truth["numbers"]
    # The places of the sheet's classes, of which those in odd rings and beside silicon are not asked for.
    plain = truth["site_class"] == 0
    pairs = cKDTree(atoms).query_pairs(1.15 * BOND_NM, output_type="ndarray")
    here, there = np.concatenate([pairs, pairs[:, ::-1]]).T
    away = atoms[there] - atoms[here]
    along = np.arctan2(away[:, 1], away[:, 0])
    bonds = np.bincount(here, minlength=len(atoms))
    three = np.zeros(len(atoms), dtype=np.complex128)
    np.add.at(three, here, np.exp(3j * along))
    whole = plain & (bonds == 3)
    both = (
        here[(here < there) & whole[here] & whole[there]],
        there[(here < there) & whole[here] & whole[there]],
    )
    middle = (atoms[both[0]] + atoms[both[1]]) / 2
    rings = _rings(atoms, whole, np.angle(three) / 3)
    holes = _holes(atoms[truth["site_class"] == BESIDE_VACANCY])
    silicon = atoms[number == 14]
    parts = [
        Sites(atoms[whole], np.full(whole.sum(), ATOM), np.angle(three[whole]) / 3),
        Sites(middle, np.full(len(middle), BOND), _direction(atoms[both[1]] - atoms[both[0]])),
        rings,
        Sites(holes, np.full(len(holes), VACANCY), np.full(len(holes), np.nan)),
        Sites(silicon, np.full(len(silicon), SILICON), np.full(len(silicon), np.nan)),
    ]
    sites = Sites(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    near = np.hypot(*sites.positions_nm.T) < far_nm
    return Sites(*(column[near] for column in sites))


def _direction(away: Float64) -> Float64:
    return np.arctan2(away[:, 1], away[:, 0])


def _rings(atoms: Float64, whole: NDArray[np.bool_], angle: Float64) -> Sites:
    """Middles of whole rings: opposite to the bonds of an atom, one bond away, where six such agree."""
    opposite = angle[whole, None] + math.pi / 3 + 2 * math.pi / 3 * np.arange(3)
    guess = atoms[whole, None] + BOND_NM * np.stack([np.cos(opposite), np.sin(opposite)], axis=-1)
    guess = guess.reshape(-1, 2)
    near = cKDTree(guess).query_ball_point(guess, 0.3 * BOND_NM)
    first = [n for n, others in enumerate(near) if len(others) == 6 and min(others) == n]
    middle = np.array([guess[near[n]].mean(axis=0) for n in first]).reshape(-1, 2)
    corner = opposite.reshape(-1)[first]
    return Sites(middle, np.full(len(middle), RING), corner)


def _holes(beside: Float64) -> Float64:
    """Middles of the three atoms around each vacancy."""
    if not len(beside):
        return np.zeros((0, 2))
    around = cKDTree(beside).query_ball_point(beside, 2.2 * BOND_NM)
    first = [n for n, others in enumerate(around) if len(others) == 3 and min(others) == n]
    return np.array([beside[around[n]].mean(axis=0) for n in first]).reshape(-1, 2)


def evenly(sites: Sites, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose sites, as many of each class as there are; rare ones again and again."""
    kinds = np.unique(sites.class_N)
    chosen = [
        rng.choice(np.flatnonzero(sites.class_N == kind), math.ceil(count / len(kinds))) for kind in kinds
    ]
    return np.concatenate(chosen)[:count]


def patterns_at(
    instrument: DiffractionInstrument, places_nm: Float64, preset: Preset, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Count the patterns at some places, and make windows of them as live."""
    config = instrument.config
    path_of = ScanDistortion(JITTER, rng)
    windows = []
    for x, y in places_nm.tolist():
        spot = ScanGeometry(shape=(1, 1), field_of_view_nm=(0.001, 0.001), center_nm=(x, y))
        scan = Scan(path=path_of.scan(spot, config.dwell_time_us), dwell_time_us=config.dwell_time_us)
        counts = instrument.simulator.counts(scan, np.zeros(1, np.int64))
        windows.append(
            of_patterns(
                counts[:, None],
                1 / config.grid_nm,
                to_per_nm=preset.window_per_nm,
                to_px=preset.window_px,
            )
        )
    return np.concatenate(windows)


def simulate(preset: Preset, count: int, rng: np.random.Generator) -> Labelled:
    """Gather patterns of many sheets until ``count``."""
    parts: list[Labelled] = []
    while sum(len(part.class_N) for part in parts) < count:
        instrument = DiffractionInstrument(varied_microscope(rng), started_at_s=0.0)
        sites = sites_of(instrument, 1.8)
        chosen = evenly(sites, round(SITES_OF_A_SHEET * (1 - ANYWHERE)), rng)
        on_site = sites.positions_nm[chosen] + rng.normal(0.0, OFF_NM, (len(chosen), 2))
        anywhere = rng.uniform(-1.3, 1.3, (SITES_OF_A_SHEET - len(chosen), 2))
        windows = patterns_at(instrument, np.concatenate([on_site, anywhere]), preset, rng)
        blank = len(anywhere)
        turned = math.radians(instrument.config.camera_rotation_deg)
        parts.append(
            Labelled.of(
                windows,
                class_N=np.concatenate([sites.class_N[chosen], np.full(blank, UNKNOWN)]),
                angle_N=np.concatenate([sites.angle_N[chosen] - turned, np.full(blank, np.nan)]),
            )
        )
    return joined(parts).only(np.arange(count))


def series(preset: Preset, rng: np.random.Generator) -> Labelled:
    """Turn the camera over the same places of one sheet."""
    config = varied_microscope(rng)
    parts = []
    first = DiffractionInstrument(config, started_at_s=0.0)
    sites = sites_of(first, 1.8)
    chosen = evenly(sites, 60, rng)
    for turn in range(TURNS):
        turn_deg = 360 * turn / TURNS - 180
        changed = {name: getattr(config, name) for name in config.__struct_fields__}
        turned = DiffractionConfig(**(changed | {"camera_rotation_deg": turn_deg}))
        instrument = DiffractionInstrument(turned, started_at_s=0.0)
        parts.append(
            Labelled.of(
                patterns_at(instrument, sites.positions_nm[chosen], preset, rng),
                class_N=sites.class_N[chosen],
                angle_N=sites.angle_N[chosen] - math.radians(turn_deg),
                same_N=np.arange(len(chosen)),
            )
        )
    return Labelled(*(np.concatenate(column) for column in zip(*parts, strict=True)))


PRESET = Preset(
    name="diffraction",
    shows="diffraction patterns of graphene with vacancies and silicon, rotation only",
    channels=("diffraction",),
    window_per_nm=WINDOW_PER_NM,
    window_px=WINDOW_PX,
    normalisation="pattern",
    classes=CLASSES,
    symmetry=SYMMETRY,
    training=TrainingConfig(
        architecture=RVAEConfig(
            latent_dim=3,
            shift=False,
            classes=len(CLASSES),
            mixture=len(CLASSES),
            label_weight=100.0,
            class_tie=4.0,
            class_scatter=300.0,
        )
    ),
    windows=8000,
    data=(
        "{count} counted patterns of simulated graphene with vacancies and silicon at 60 kV, 29 to 31 mrad, "
        "defocus 4 nm (0.7 nm sd), 31,000 to 250,000 electrons each, any orientation of sheet and camera; "
        "the bright disc alone; on the sites of the lattice within 0.003 nm (sd), and 40 % anywhere. The "
        "kind of site is a label of those on one, drawn evenly"
    ),
    simulate=simulate,
    series=series,
)
