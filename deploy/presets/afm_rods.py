"""Rods on a face under a fast AFM: alone, side by side, in a row, or with one end at another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deploy.presets.places import JITTER, cut_at, scanned, turned_geometries
from deploy.presets.preset import UNKNOWN, Labelled, Preset, joined, thinned
from models.rvae import RVAEConfig
from models.training import TrainingConfig
from simulators.afm import AfmConfig, AfmInstrument
from simulators.rods import RodsConfig, squared_gap
from streamer.messages import Atoms
from streamer.stage import Rejected
from streamer.stages.find_sites import FindSites, SitesConfig

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

CLASSES = ("alone", "one beside it", "one on either side", "one across its end")
ALONE, BESIDE, ROW, ACROSS = range(4)
# A row is seldom quite even: its two sides are told apart, and half a turn is none of its symmetries.
SYMMETRY = (2, 1, 2, 2)
PARALLEL_RAD = math.radians(12)
ACROSS_RAD = math.radians(35)
TOUCHING_NM = 5.5  # of axes: the tip makes rods 6 nm wide
FREE_NM = 8.0
JITTER_NM = 0.6
MATCH_PX = 4.0
STILL = {
    "diffusion_along_nm2_per_s": 0.0,
    "diffusion_across_nm2_per_s": 0.0,
    "rotation_rad2_per_s": 0.0,
    "jumps_per_s": 0.0,
    "adsorption_per_um2_s": 0.0,
    "desorption_per_s": 0.0,
}


def varied_microscope(rng: np.random.Generator) -> AfmConfig:
    """Draw a tip, a noise and a coverage, wide around what the encoder will meet."""
    in_rows = rng.random() < 0.15
    rods = RodsConfig(
        start="rows" if in_rows else "landed",
        coverage=float(rng.uniform(0.08, 0.42)),
        vacancies=float(rng.uniform(0.05, 0.5)),
        easy_axis_deg=float(rng.uniform(0, 180)),
        **STILL,
    )
    return AfmConfig(
        field_of_view_nm=float(rng.uniform(160, 240)),
        tip_radius_nm=float(rng.uniform(1.2, 3.0)),
        feedback_us=float(rng.uniform(3, 10)),
        height_noise_nm=float(np.exp(rng.uniform(np.log(0.04), np.log(0.2)))),
        streak_nm=float(rng.uniform(0.02, 0.1)),
        seed=int(rng.integers(2**31)),
        rods=rods,
        distortion=JITTER,
    )


class Rods:
    """Which rods touch which, of all those near a frame.

    Parameters
    ----------
    positions_nm, angles_rad
        Of the rods, shapes ``(n, 2)`` and ``(n,)``.
    half_nm
        Half the length of a rod's axis.
    """

    def __init__(self, positions_nm: Float64, angles_rad: Float64, half_nm: float) -> None:
        self.positions_nm, self.angles_rad = positions_nm, angles_rad
        self._half_nm = half_nm

    def kinds(self) -> tuple[Int64, Float64]:
        """Class of each rod, and its angle: of the axis, or towards the one beside it."""
        told = [self._kind(n) for n in range(len(self.angles_rad))]
        return np.array([kind for kind, _ in told], np.int64), np.array([angle for _, angle in told])

    def _kind(self, n: int) -> tuple[int, float]:
        gap_nm, turn_rad, across_nm = self._around(n)
        near = gap_nm < TOUCHING_NM
        angle = float(self.angles_rad[n])
        beside = near & (turn_rad < PARALLEL_RAD) & (np.abs(across_nm) > 2.0)
        if not (gap_nm < FREE_NM).any():
            return ALONE, angle
        if near.sum() == 1:
            if beside.any():
                return BESIDE, angle + math.copysign(math.pi / 2, float(across_nm[beside][0]))
            if turn_rad[near][0] > ACROSS_RAD:
                return ACROSS, angle
        sides = np.sign(across_nm[beside])
        if beside.sum() == 2 and near.sum() == 2 and sides.sum() == 0:
            return ROW, angle
        return UNKNOWN, math.nan

    def _around(self, n: int) -> tuple[Float64, Float64, Float64]:
        """Gap of each other rod's axis to this one's, their angle, and how far it lies across this one."""
        apart = self.positions_nm - self.positions_nm[n]
        near = np.flatnonzero((np.hypot(*apart.T) < 2 * self._half_nm + FREE_NM) & (np.hypot(*apart.T) > 0))
        cos, sin = math.cos(self.angles_rad[n]), math.sin(self.angles_rad[n])
        others = np.stack(
            [*apart[near].T, np.cos(self.angles_rad[near]), np.sin(self.angles_rad[near])], axis=1
        )
        gaps = [
            math.sqrt(squared_gap(right, down, cos, sin, along, across, self._half_nm))
            for right, down, along, across in others.tolist()
        ]
        turn = self.angles_rad[near] - self.angles_rad[n]
        turn = np.abs(turn - math.pi * np.rint(turn / math.pi))
        return np.array(gaps), turn, apart[near] @ np.array([-sin, cos])


def known_rods(instrument: AfmInstrument) -> Rods:
    """Give all rods of an instrument on which nothing moves."""
    assembly, rods = instrument.simulator.assembly, instrument.config.rods
    return Rods(assembly.positions_nm.copy(), assembly.angles_rad.copy(), rods.segment_nm / 2)


def windows_beside(sites: Atoms, rods: Rods, preset: Preset, rng: np.random.Generator) -> Labelled:
    """Cut a window around each rod of a frame, a little beside its middle, and say what it shows."""
    geometry = sites.frame.geometry
    kind, angle = rods.kinds()
    off_nm = rng.normal(0.0, JITTER_NM, rods.positions_nm.shape)
    patches, which = cut_at(sites, geometry.to_px(rods.positions_nm + off_nm), preset)
    cos, sin = math.cos(geometry.rotation_rad), math.sin(geometry.rotation_rad)
    into_window = np.array([[cos, -sin], [sin, cos]])
    return Labelled.of(
        patches.windows,
        class_N=kind[which],
        angle_N=angle[which] - geometry.rotation_rad,
        shift_N2=-off_nm[which] @ into_window,
        same_N=which.astype(np.int64),
    )


def simulate(preset: Preset, count: int, rng: np.random.Generator) -> Labelled:
    """Gather windows of many faces until ``count``."""
    parts: list[Labelled] = []
    while sum(len(part.class_N) for part in parts) < 3 * count:
        instrument = AfmInstrument(varied_microscope(rng), started_at_s=0.0)
        try:
            sites = FindSites(SitesConfig(kind="particles")).process(instrument.acquire())
            parts.append(windows_beside(sites, known_rods(instrument), preset, rng))
        except Rejected:  # too bare a face
            continue
    return thinned(joined(parts), count, rng)._replace(same_N=np.full(count, UNKNOWN, np.int64))


def series(preset: Preset, rng: np.random.Generator) -> Labelled:
    """Turn the scan over two faces, one of rods as they fell and one of rods in rows."""
    parts = []
    for start, vacancies in (("landed", 0.0), ("rows", 0.5)):
        rods = RodsConfig(start=start, coverage=0.25, vacancies=vacancies, **STILL)  # type: ignore[arg-type]
        config = AfmConfig(
            field_of_view_nm=200.0, seed=int(rng.integers(2**31)), rods=rods, distortion=JITTER
        )
        instrument = AfmInstrument(config, started_at_s=0.0)
        turned = [
            windows_beside(
                FindSites(SitesConfig(kind="particles")).process(
                    scanned(instrument.simulator, geometry, config.dwell_time_us, rng)
                ),
                known_rods(instrument),
                preset,
                rng,
            )
            for geometry in turned_geometries(config.geometry)
        ]
        parts.append(Labelled(*(np.concatenate(column) for column in zip(*turned, strict=True))))
    return joined(parts)


PRESET = Preset(
    name="afm-rods",
    shows="rods on a face under a fast AFM: alone, side by side, in a row, end to side",
    channels=("height",),
    window_nm=40.0,
    window_px=32,
    normalisation="height",
    classes=CLASSES,
    symmetry=SYMMETRY,
    training=TrainingConfig(
        architecture=RVAEConfig(
            latent_dim=4,
            filters=64,
            pooled=96,
            hidden=128,
            classes=len(CLASSES),
            mixture=2 * len(CLASSES),
            label_weight=100.0,
            class_tie=4.0,
        ),
        epochs=16,
    ),
    windows=14000,
    data=(
        "{count} windows of simulated rods, 26 nm long and 2.6 nm high, as they fell (coverage 0.08 to 0.42) "
        "or in rows with 5 to 50 % missing; tip radius 1.2 to 3 nm, noise 0.04 to 0.2 nm, pixels of 0.6 to "
        "0.9 nm; cut 0.6 nm (sd) beside the middles. How a rod lies to others is a label of each, where "
        "it is clear; drawn evenly"
    ),
    simulate=simulate,
    series=series,
)
