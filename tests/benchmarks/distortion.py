"""How much of a scan's distortion is left, what the correction costs, and what it leaves of real strain.

Frames of a known crystal through a known scan are corrected by the stage of the pipeline, on seeds that
nothing was tuned on (odd ones), and what leaves the stage is judged: the displacement of every pixel, drift
included, against the truth. The stage is told the period of the hum, to 0.02 %, and where it says so the
lattice. ``--data FOLDER`` adds recordings of real microscopes, ``--prototypes FOLDER`` another corrector on
the same frames, ``--pictures FOLDER`` what was seen. ``--json`` prints one object on the last line,
``--quick`` does the same with one seed and few frames, ``--only NAME`` measures one section. A figure that
could not be measured is null, with its reason beside it.

Residuals are the worst of the seeds' medians over frames; ``…_largest`` is the worst frame of all.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from models.calibration import load, save
from models.distortion_gp import DistortionGP, Hyperparameters, Observations, ScanModel
from simulators.crystal import CrystalConfig, CrystalFrame, CrystalStream, preset
from simulators.stem import StemConfig, StemInstrument
from streamer.drift import to_raster_px
from streamer.messages import Frame
from streamer.observers.against_lattice import LatticeReference
from streamer.observers.lattice import find_columns
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion
from tests import real_scans
from tests.benchmarks import separate_points
from tests.exact_distortion import exact_posterior
from tests.known_crystal import lattice_of, message

Figures = dict[str, Any]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
StrainKind = Literal["inclusion", "wall"]

# The mains are known that well: a meter says 50.01 Hz where they have 50.
HUM_PERIOD_ROWS = CrystalConfig().hum_period_rows * 1.0002
BACKGROUND = {6.0: 1.0, 12.0: 1.5, 30.0: 3.0, 60.0: 6.0, 200.0: 15.0}  # counts, by those of a column
LEARNT_AFTER = 5  # frames, where the lattice is found in them
RIM_PX = 30.0  # of the field, where strain is not judged
KINDS: tuple[StrainKind, ...] = ("inclusion", "wall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    seeds: tuple[int, ...]
    frames: int
    counts: tuple[float, ...]
    cost_frames: int
    rendered: int
    calibrated: int
    strained: int
    kinds: tuple[StrainKind, ...]


FULL = Plan(
    seeds=(1, 3, 5, 7, 9),
    frames=6,
    counts=(6.0, 12.0, 30.0, 60.0, 200.0),
    cost_frames=500,
    rendered=40,
    calibrated=10,
    strained=12,
    kinds=KINDS,
)
QUICK = Plan(
    seeds=(1,),
    frames=2,
    counts=(12.0, 60.0),
    cost_frames=50,
    rendered=6,
    calibrated=4,
    strained=4,
    kinds=("inclusion",),
)


# -- the stage on a known crystal --------------------------------------------------------------------


def calibrating(stream: CrystalStream, *, is_given: bool = True, hum: float = HUM_PERIOD_ROWS) -> Any:
    """Make the stage that learns the whole field, on a lattice that it is given or that it finds."""
    config = CorrectConfig(mode="calibrate", hum_period_rows=hum)
    return CorrectDistortion(config, lattice=lattice_of(stream) if is_given else None)


def pixels(edge: int) -> Float64:
    """All pixels of a square raster, ``(row, col)``, shape ``(edge², 2)``."""
    line = np.arange(edge, dtype=np.float64)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """One corrected frame against the truth."""

    frame: CrystalFrame
    error_px: Float64  # (pixels, 2)
    covered: float  # part of the errors within 1.96 sd
    cpu_ms: float

    @property
    def residual_px(self) -> float:
        """RMS length of the error over all pixels."""
        return rms(self.error_px)


def rms(vectors_px: Float64) -> float:
    """RMS length of vectors ``(n, 2)``."""
    return float(np.sqrt(np.mean(np.sum(vectors_px**2, axis=1))))


def judged(stream: CrystalStream, stage: CorrectDistortion, frames: int) -> list[Judged]:
    """Correct the next frames of a stream, and compare what was taken out with what was in."""
    places = pixels(stream.config.size_px)
    found = []
    for number in range(frames):
        frame = stream.scan()
        began = time.process_time()
        corrected = stage.process(message(frame, number))
        cpu_ms = 1e3 * (time.process_time() - began)
        assert corrected.registration is not None
        distortion = corrected.registration.distortion
        assert distortion is not None
        error = _estimated_px(corrected) - frame.displacement_px().reshape(2, -1).T
        covered = float(np.mean(np.abs(error) < 1.96 * distortion.sd_at(places)))
        found.append(Judged(frame=frame, error_px=error, covered=covered, cpu_ms=cpu_ms))
    return found


def _estimated_px(corrected: Frame) -> Float64:
    """Displacement of each pixel as the stage has it, drift included, ``(pixels, 2)``."""
    registration = corrected.registration
    assert registration is not None
    assert registration.distortion is not None
    places = pixels(corrected.geometry.shape[0])
    return registration.distortion.at(places) - to_raster_px(registration.drift_nm, corrected.geometry)


def worst(name: str, runs: Sequence[Sequence[float]], digits: int = 4) -> Figures:
    """Say the worst of the seeds' medians over frames, and the worst frame."""
    return {
        name: round(max(statistics.median(run) for run in runs), digits),
        f"{name}_largest": round(max(max(run) for run in runs), digits),
    }


# -- accuracy ------------------------------------------------------------------------------------------


def measure_accuracy(plan: Plan) -> Figures:
    """Residuals at several doses, without jitter, without distortion, and how often the sd covers them."""
    figures: Figures = {}
    covered: dict[str, float] = {}
    for counts in plan.counts:
        runs = [
            _run(seed, plan, peak_counts=counts, background_counts=BACKGROUND[counts]) for seed in plan.seeds
        ]
        name = "residual_px" if counts == 60 else f"residual_px_{counts:g}_counts"
        figures |= worst(name, _residuals(runs))
        for seed, run in zip(plan.seeds, runs, strict=True):
            covered[f"{counts:g} counts, seed {seed}"] = statistics.mean(one.covered for one in run)
        if counts == 60:
            figures["distorted_px"] = round(max(rms(_truth(one)) for run in runs for one in run), 3)
    figures |= {
        "coverage_min": round(min(covered.values()), 4),
        "coverage_max": round(max(covered.values()), 4),
        "coverage_all": {name: round(value, 3) for name, value in covered.items()},
    }
    runs = [_run(seed, plan, jitter_px=(0.0, 0.0)) for seed in plan.seeds]
    figures |= worst("residual_px_no_jitter", _residuals(runs))
    runs = [_run(seed, plan, "clean") for seed in plan.seeds]
    figures |= worst("added_error_px", _residuals(runs))
    if plan is FULL:
        low = {"peak_counts": 12.0, "background_counts": 1.5}
        runs = [_run(seed, plan, "clean", **low) for seed in plan.seeds]
        figures |= worst("added_error_px_12_counts", _residuals(runs))
        runs = [_run(seed, plan, hum=0.0) for seed in plan.seeds]
        figures |= worst("residual_px_unknown_hum", _residuals(runs))
    return figures | _estimated(plan) | _overlapping(plan)


def _run(
    seed: int, plan: Plan, kind: str = "stem", *, hum: float = HUM_PERIOD_ROWS, **changes: Any
) -> list[Judged]:
    stream = CrystalStream(preset(kind, seed=seed, **changes))
    return judged(stream, calibrating(stream, hum=hum), plan.frames)


def _residuals(runs: list[list[Judged]]) -> list[list[float]]:
    return [[one.residual_px for one in run] for run in runs]


def _truth(one: Judged) -> Float64:
    return one.frame.displacement_px().reshape(2, -1).T


def _estimated(plan: Plan) -> Figures:
    """The same where the lattice is found in the frames: up to one affine that all later frames share."""
    runs = []
    for seed in plan.seeds:
        stream = CrystalStream(preset("stem", seed=seed))
        later = judged(stream, calibrating(stream, is_given=False), LEARNT_AFTER + plan.frames - 1)
        errors = np.stack([one.error_px for one in later[LEARNT_AFTER - 1 :]])
        mean = errors.mean(axis=0)
        common = mean - _beside_affine(mean, stream.config.size_px)
        runs.append([rms(error - common) for error in errors])
    return worst("residual_px_estimated_lattice", runs)


def _overlapping(plan: Plan) -> Figures:
    """What is left where columns overlap, on the microscope of ``deploy/examples/calibrate.toml``.

    Up to one affine that the last frames share, drift included; the hum is not given. Beside it what was
    there before, what the stage says is left along an axis, and the jitter found as a part of the true one.
    """
    runs, said, found, before = [], [], [], []
    for seed in plan.seeds:
        microscope, stage = shipped(seed), CorrectDistortion(CorrectConfig(mode="calibrate"))
        errors = []
        for number in range(plan.calibrated):
            corrected = stage.process(microscope.acquire())
            if number < plan.calibrated - 3:
                continue
            true = _recorded(microscope)
            errors.append(_estimated_px(corrected) - true)
        edge = microscope.config.rows
        mean = np.mean(errors, axis=0)
        common = mean - _beside_affine(mean, edge)
        runs.append([rms(error - common) for error in errors])
        assert corrected.registration is not None
        assert corrected.registration.distortion is not None
        said.append(corrected.registration.distortion.residual_px)
        before.append(rms(_beside_affine(true, edge)))
        found.append(_rows_found(stage) / microscope.config.distortion.row_jitter_px)
    return worst("residual_px_overlapping", runs) | {
        "overlapping_before_px": round(max(before), 3),
        "overlapping_said_px": round(statistics.median(said), 3),
        "overlapping_jitter_found_min": round(min(found), 3),
        "overlapping_jitter_found_max": round(max(found), 3),
    }


def shipped(seed: int) -> StemInstrument:
    """Make the microscope of the example, on a perfect sheet, with a seed of its own."""
    table = tomllib.loads((ROOT / "deploy/examples/calibrate.toml").read_text())["simulate"]["stem"]
    return StemInstrument(msgspec.convert(table | {"seed": seed}, StemConfig), started_at_s=1000.0)


def _recorded(microscope: StemInstrument) -> Float64:
    """Displacement of each pixel of the last frame, drift and jitter of its rows included, ``(n, 2)``."""
    path = microscope.last_path
    assert path is not None
    return np.asarray(path.displacement_px(jitter=True), dtype=np.float64).reshape(2, -1).T


def _rows_found(stage: CorrectDistortion) -> float:
    """Sd of the jitter along the rows, as found."""
    scene = stage._scene
    assert scene is not None
    assert isinstance(scene.observer, LatticeReference)
    rows = scene.observer.observer._rows
    assert rows is not None
    return float(rows.spread[1])


def _beside_affine(field_px: Float64, edge: int) -> Float64:
    """Take the best affine out of a field at all pixels, shape ``(n, 2)``."""
    shapes = np.column_stack([np.ones(edge * edge), pixels(edge) / edge])
    return np.asarray(field_px - shapes @ np.linalg.lstsq(shapes, field_px, rcond=None)[0])


# -- cost ----------------------------------------------------------------------------------------------


def measure_cost(plan: Plan, prototypes: Path | None) -> Figures:
    """CPU of a frame from raw to corrected, and whether it grows.

    A few frames are played forwards and backwards over and over, so that nothing jumps. A piece of work that
    is always the same is timed beside each frame: the slope is that of the ratio, for other programs
    on the machine come and go.
    """
    stream = CrystalStream(preset("stem", seed=plan.seeds[0]))
    frames = [stream.scan() for _ in range(plan.rendered)]
    stage = calibrating(stream)
    other = _prototype(prototypes, stream)
    stage_ms, other_ms, still_ms = [], [], []
    order = itertools.cycle([*frames, *frames[-2:0:-1]])
    for number, frame in zip(range(plan.cost_frames), order, strict=False):
        stage_ms.append(_cpu_ms(partial(stage.process, message(frame, number))))
        still_ms.append(_cpu_ms(_yardstick))
        if other is not None and number < 2 * plan.rendered:
            other_ms.append(_cpu_ms(partial(other, frame.image)))
    figures: Figures = {
        "cpu_ms_per_frame": round(statistics.median(stage_ms[1:]), 1),
        "cpu_ms_first_frame": round(stage_ms[0], 1),
        "cost_slope_pct_per_100": round(_slope(stage_ms[1:], still_ms[1:]), 3),
        "cost_frames": plan.cost_frames,
        "prototype_cpu_ms_per_frame": round(statistics.median(other_ms[1:]), 1) if other_ms else None,
    }
    if not other_ms:
        figures["prototype_cpu_ms_per_frame_reason"] = "no folder was given with --prototypes"
    return figures


def _cpu_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return 1e3 * (time.process_time() - began)


_FIXED = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)


def _yardstick() -> None:
    """Do what a frame is made of: transforms, products and passes over memory."""
    np.fft.rfft2(_FIXED)
    _FIXED[:256] @ _FIXED.T
    np.sort(_FIXED, axis=1)


def _slope(stage_ms: list[float], still_ms: list[float]) -> float:
    """Growth of the cost in percent per 100 frames: a line through the medians of ten parts of the run."""
    parts = np.array_split(np.arange(len(stage_ms)), 10)
    ratio = [np.median(np.array(stage_ms)[part]) / np.median(np.array(still_ms)[part]) for part in parts]
    middle = [part.mean() for part in parts]
    return float(100 * 100 * np.polyfit(middle, ratio, 1)[0] / np.median(ratio))


def _prototype(folder: Path | None, stream: CrystalStream) -> Callable[[Float32], object] | None:
    """Make the corrector ``online_gp_proto.py`` of a folder, if one was given; it counts ``(x, y)``."""
    if folder is None:
        return None
    sys.path.insert(0, str(folder))
    made = importlib.import_module("online_gp_proto")
    c = stream.config
    near = np.all((stream.sites_px > -24) & (stream.sites_px < c.size_px + 24), axis=1)
    heights = c.peak_counts * stream.brightness[near]
    gp = made.OnlineGP(
        c.size_px, stream.sites_px[near][:, ::-1], heights, c.column_sigma_px, hum_period=HUM_PERIOD_ROWS
    )

    def correct(image: Float32) -> object:
        gp.step(image)
        return gp.resample(image, gp.field_fast())

    return correct


# -- against the exact GP --------------------------------------------------------------------------------


def measure_exact(plan: Plan, per_frame: int = 120, total: int = 2400) -> Figures:
    """Posterior mean and cost against a GP that is refitted to all observations so far.

    The distortion is static for both, and hyperparameters are given. What the exact one pays for a frame is
    a refit to everything, with mean and sd at 600 places; what the online one pays is one update, and in
    ``…_with_prediction`` the same mean and sd.
    """
    scan = ScanModel(shape=(512, 512))
    hyper = Hyperparameters(timescale_frames=1e9, drift_change_px=1e-6, jitter_px=(0.0, 0.0))
    differences, sds, updates, both = [], [], [], []
    for seed in plan.seeds:
        stream = CrystalStream(preset("stem", seed=seed, **STATIC))
        rng = np.random.default_rng(seed)
        frames = [_some(stream, rng, per_frame) for _ in range(total // per_frame)]
        inside = rng.uniform(3, 508, (600, 2))
        gp = DistortionGP(scan, hyper)
        update_ms = statistics.median(_cpu_ms(partial(gp.condition, frame)) for frame in frames)
        say = partial(gp.displacement_px, inside, with_sd=True)
        say_ms = statistics.median(_cpu_ms(say) for _ in range(10))
        began = time.process_time()
        exact, exact_sd = exact_posterior(scan, hyper, frames, inside)
        exact_ms = 1e3 * (time.process_time() - began)
        mean, sd = gp.displacement_px(inside, with_sd=True)
        differences.append(rms(mean - exact))
        sds.append(float(np.median(sd / exact_sd)))
        updates.append(exact_ms / update_ms)
        both.append(exact_ms / (update_ms + say_ms))
    return {
        "exact_gp_mean_diff_px": round(max(differences), 5),
        "exact_gp_sd_ratio": round(statistics.median(sds), 3),
        "exact_gp_cost_ratio": round(statistics.median(updates), 1),
        "exact_gp_cost_ratio_with_prediction": round(statistics.median(both), 1),
        "exact_gp_observations": total,
    }


STATIC: dict[str, Any] = {
    "hum_px": 0.0,
    "jitter_px": (0.0, 0.0),
    "drift_px_per_frame": 0.0,
    "timescale_frames": 0.0,
}


def _some(
    stream: CrystalStream, rng: np.random.Generator, count: int, noise_px: float = 0.05
) -> Observations:
    """Some columns of the next frame, as a finder would report them."""
    points = stream.points(noise_px)
    chosen = rng.choice(len(points.site), count, replace=False)
    seen = points.seen_px[chosen]
    return Observations(
        positions_px=seen,
        displacement_px=stream.sites_px[points.site[chosen]] - seen,
        variance_px2=np.full((count, 2), noise_px**2),
    )


# -- real strain -----------------------------------------------------------------------------------------


def measure_strain(plan: Plan) -> Figures:
    """What is left of 0.5 px of real strain in the columns of corrected images: slope against the truth.

    ``drift-only`` leaves the static distortion in, and what the same crystal shows unstrained is taken off.
    ``frozen`` has to do without that; ``…_by_difference`` says what remains if it is done there too.
    """
    frozen, difference, drift_only, left = {}, {}, {}, []
    for seed in plan.seeds:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent)
            calibrate(folder, seed, plan.calibrated)
            drifting_still = shifts(unstrained(seed), drifting(), plan.strained)
            frozen_still = shifts(_later(unstrained(seed), plan), freezing(folder), plan.strained)
            left.append(_spread(unstrained(seed), frozen_still))
            for kind in plan.kinds:
                name, stream = f"{kind}, seed {seed}", strained(seed, kind)
                drift_only[name] = slope(stream, shifts(stream, drifting(), plan.strained), drifting_still)
                seen = shifts(_later(strained(seed, kind), plan), freezing(folder), plan.strained)
                frozen[name] = slope(stream, seen)
                difference[name] = slope(stream, seen, frozen_still)
    return {
        **_least("strain_kept_frozen", frozen),
        **_least("strain_kept_drift_only", drift_only),
        **_least("strain_kept_frozen_by_difference", difference),
        "frozen_left_px": round(max(left), 4),
    }


def _least(name: str, slopes: dict[str, float]) -> Figures:
    """Say what is kept where least is, and all of it."""
    return {
        name: round(min(slopes.values()), 4),
        f"{name}_largest": round(max(slopes.values()), 4),
        f"{name}_all": {which: round(value, 4) for which, value in slopes.items()},
    }


def _later(stream: CrystalStream, plan: Plan) -> CrystalStream:
    """Let the scan go on as long as it was calibrated."""
    for _ in range(plan.calibrated):
        stream.points()
    return stream


def unstrained(seed: int) -> CrystalStream:
    """Make a perfect crystal, but for its vacancies and interstitials."""
    return CrystalStream(preset("stem", seed=seed))


def strained(seed: int, kind: StrainKind) -> CrystalStream:
    """Make a crystal with 0.5 px of strain."""
    return CrystalStream(preset("stem", seed=seed, strain_px=0.5, strain_kind=kind))


def calibrate(folder: Path, seed: int, frames: int) -> None:
    """Learn the scan of a seed on a perfect crystal, and keep it in a folder."""
    stream = unstrained(seed)
    stage = calibrating(stream)
    for number in range(frames):
        stage.process(message(stream.scan(), number))
    calibration = stage.calibration()
    assert calibration is not None
    save(folder, calibration)


def freezing(folder: Path) -> CorrectDistortion:
    """Make the stage that takes a calibration as known."""
    config = CorrectConfig(mode="frozen", calibrations=str(folder), hum_period_rows=HUM_PERIOD_ROWS)
    return CorrectDistortion(config, calibrations=lambda key: load(folder, key))


def drifting() -> CorrectDistortion:
    """Make the stage for a specimen that nobody knows."""
    return CorrectDistortion(CorrectConfig(mode="drift-only", hum_period_rows=HUM_PERIOD_ROWS))


def shifts(stream: CrystalStream, stage: CorrectDistortion, frames: int) -> Float64:
    """Where columns of corrected images are, beside their sites: mean over the last third of the frames.

    NaN where a column was not seen in each of them.
    """
    first = frames - max(1, frames // 3)
    total = np.zeros_like(stream.sites_px)
    for number in range(frames):
        corrected = stage.process(message(stream.scan(), number))
        if number >= first:
            total += _columns_beside(stream, corrected)
    return total / (frames - first)


def _columns_beside(stream: CrystalStream, corrected: Frame) -> Float64:
    """Place of the column nearest to each site, minus the site, ``(sites, 2)``; NaN where there is none."""
    fits, _ = find_columns(corrected.image[0], stream.config.column_sigma_px)
    places = stream.config.geometry.to_px(corrected.geometry.to_nm(fits.positions_px))
    lattice = lattice_of(stream)
    sites = np.flatnonzero(stream.is_present)
    # The specimen lies where the first frame saw it: all columns are off by the same.
    off = places - lattice.place_of(lattice.index_of(places)[0])
    common = np.median(off, axis=0)
    distance = np.linalg.norm(places - common - stream.sites_px[sites][:, None], axis=2)
    nearest = distance.argmin(axis=1)
    beside = np.full_like(stream.sites_px, np.nan)
    is_near = distance.min(axis=1) < lattice.spacing_px / 3
    beside[sites[is_near]] = (places[nearest] - stream.sites_px[sites])[is_near]
    return beside


def slope(stream: CrystalStream, seen_px: Float64, still_px: Float64 | None = None) -> float:
    """Slope of seen displacements against the true ones, but for a shift of the whole.

    Parameters
    ----------
    seen_px
        Of the strained crystal, as ``shifts`` gives them.
    still_px
        Of the same crystal without strain, for what the scan does to both.
    """
    seen = seen_px if still_px is None else seen_px - still_px
    inside = _judged_sites(stream, seen)
    true = stream.strain_px(stream.sites_px[inside])
    true -= true.mean(axis=0)
    found = seen[inside] - seen[inside].mean(axis=0)
    return float(np.sum(true * found) / np.sum(true**2))


def _judged_sites(stream: CrystalStream, seen_px: Float64) -> NDArray[np.bool_]:
    sites, edge = stream.sites_px, stream.config.size_px - 1 - RIM_PX
    inside = np.all((sites > RIM_PX) & (sites < edge), axis=1)
    return np.asarray(inside & np.isfinite(seen_px).all(axis=1))


def _spread(stream: CrystalStream, seen_px: Float64) -> float:
    """RMS of displacements about their mean."""
    inside = seen_px[_judged_sites(stream, seen_px)]
    return rms(inside - inside.mean(axis=0))


# -- strain and distortion told apart -----------------------------------------------------------------


def measure_separate(plan: Plan) -> Figures:
    """From column positions without an image, and from images with jitter and hum after ten frames."""
    figures: Figures = dict(separate_points.figures(plan.seeds, 200 if plan is FULL else 20))
    slopes, left, cpu_ms = {}, {}, []
    for seed in plan.seeds:
        for kind in plan.kinds:
            name = f"{kind}, seed {seed}"
            slopes[name], left[name], spent = _separated(seed, kind, 10)
            cpu_ms += spent[4:]  # the poses are new before
    return {
        **figures,
        **_least("separate_images_slope", slopes),
        "separate_images_distortion_px": round(max(left.values()), 4),
        "separate_images_distortion_px_all": {name: round(value, 4) for name, value in left.items()},
        "separate_images_cpu_ms_per_frame": round(statistics.median(cpu_ms), 1),
    }


def _separated(seed: int, kind: StrainKind, frames: int) -> tuple[float, float, list[float]]:
    """Slope of the strain after some frames, what is left of the last one's distortion, and CPU of each.

    Mean shift, dilation and turn of the whole, which no scan can tell, are left out of both.
    """
    changes: dict[str, Any] = {"strain_px": 0.5, "strain_kind": kind, "stage_error_px": 1.0}
    stream = CrystalStream(preset("stem", seed=seed, **changes))
    config = CorrectConfig(mode="separate", hum_period_rows=HUM_PERIOD_ROWS)
    stage = CorrectDistortion(config, lattice=lattice_of(stream))
    pixel_nm, cpu_ms = stream.config.pixel_size_nm, []
    steps = itertools.cycle(separate_points.STEPS)
    for number, (rotation_deg, (row, col)) in zip(range(frames), steps, strict=False):
        frame = stream.scan(rotation_deg=rotation_deg, stage_px=(row, col))
        sent = msgspec.structs.replace(message(frame, number), stage_nm=(col * pixel_nm, row * pixel_nm))
        began = time.process_time()
        corrected = stage.process(sent)
        cpu_ms.append(1e3 * (time.process_time() - began))
    assert corrected.registration is not None
    assert corrected.registration.distortion is not None
    places = pixels(stream.config.size_px)[::3]
    row, col = places.astype(int).T
    error = corrected.registration.distortion.at(places) - frame.displacement_px()[:, row, col].T
    assert stage._mapping is not None
    sites = stream.sites_px[_judged_sites(stream, stream.sites_px)]
    found = separate_points.without_gauge(stage._mapping.model.ambiguous_displacement_px(sites), sites)
    true = separate_points.without_gauge(stream.strain_px(sites), sites)
    kept = float(np.sum(true * found) / np.sum(true**2))
    return kept, rms(separate_points.without_gauge(error, places)), cpu_ms


# -- peers -----------------------------------------------------------------------------------------------

PEERS = ("phase_correlation", "stackreg_rigid", "stackreg_affine")


def measure_peers(plan: Plan) -> Figures:
    """Residual of programs that others use on the same frames, given a picture of the undistorted lattice.

    Periods of a lattice can mislead them: ``perfect_affine`` is what is left by the affine nearest to the
    truth, which none of them can beat.
    """
    try:
        peers = _peers()
    except ImportError as error:
        return {"peer_ratio": None, "peer_ratio_reason": f"{error.name} is not installed"}
    ours: list[list[float]] = []
    theirs: dict[str, list[list[float]]] = {name: [] for name in peers}
    cpu_ms: dict[str, list[float]] = {name: [] for name in peers}
    perfect: list[list[float]] = []
    ratios = []
    for seed in plan.seeds:
        stream = CrystalStream(preset("stem", seed=seed))
        reference = _ideal(seed)
        run = judged(stream, calibrating(stream), plan.frames)
        ours.append([one.residual_px for one in run])
        for name, peer in peers.items():
            left = []
            for one in run:
                began = time.process_time()
                found = peer(reference, one.frame.image, stream)
                cpu_ms[name].append(1e3 * (time.process_time() - began))
                left.append(rms(found - _truth(one)))
            theirs[name].append(left)
        perfect.append([rms(_beside_affine(_truth(one), stream.config.size_px)) for one in run])
        best = min(statistics.median(left[-1]) for left in theirs.values())
        ratios.append(best / statistics.median(ours[-1]))
    figures: Figures = {
        "peer_ratio": round(min(ratios), 2),
        "peer_ratio_perfect_affine": round(
            min(statistics.median(p) / statistics.median(o) for p, o in zip(perfect, ours, strict=True)), 2
        ),
        **worst("perfect_affine_residual_px", perfect, 3),
    }
    for name in peers:
        figures |= worst(f"{name}_residual_px", theirs[name], 3)
        figures[f"{name}_cpu_ms"] = round(statistics.median(cpu_ms[name]), 1)
    return figures


Peer = Callable[[Float32, Float32, CrystalStream], Float64]


def _peers() -> dict[str, Peer]:
    """Programs that put an image onto a reference; each says ``D`` at all pixels, ``(n, 2)``."""
    from pystackreg import StackReg
    from skimage.registration import phase_cross_correlation

    correlate: Any = phase_cross_correlation

    def phase(reference: Float32, image: Float32, stream: CrystalStream) -> Float64:
        found = correlate(reference, image, upsample_factor=50, normalization=None)
        return _nearest(np.broadcast_to(found[0], (image.size, 2)), stream)

    def stackreg(kind: int) -> Peer:
        def register(reference: Float32, image: Float32, stream: CrystalStream) -> Float64:
            # It maps (x, y) of the reference onto the image; the image onto the specimen is its inverse.
            back = np.linalg.inv(StackReg(kind).register(reference, image))
            places = pixels(len(image))
            moved = places[:, ::-1] @ back[:2, :2].T + back[:2, 2]
            return _nearest(moved[:, ::-1] - places, stream)

        return register

    peers = (phase, stackreg(StackReg.RIGID_BODY), stackreg(StackReg.AFFINE))
    return dict(zip(PEERS, peers, strict=True))


def _nearest(displacement_px: Float64, stream: CrystalStream) -> Float64:
    """Take the smallest of all equal answers: a lattice looks the same one period on."""
    cells = np.rint(displacement_px.mean(axis=0) @ np.linalg.inv(stream.basis_px))
    return np.asarray(displacement_px - cells @ stream.basis_px)


def _ideal(seed: int) -> Float32:
    """Picture of the lattice without distortion, defects and noise to speak of."""
    changes = {"vacancies": 0, "interstitials": 0, "peak_counts": 6e4, "background_counts": 6e3}
    return CrystalStream(preset("clean", seed=seed, **changes)).scan().image / np.float32(1e3)


# -- recordings of real microscopes ----------------------------------------------------------------------


def measure_real(data: Path | None, pictures: Path | None) -> Figures:
    """Deviations after to before on real recordings, by what the stage was not shown."""
    folder = real_scans.data_folder(data)
    if folder is None:
        reason = "no folder of recordings: give --data or set PROBELOOP_DATA"
        return dict.fromkeys(real_scans.NAMES) | {f"{name}_reason": reason for name in real_scans.NAMES}
    return real_scans.measure(folder, pictures)


# -- all of it -------------------------------------------------------------------------------------------


def sections(arguments: argparse.Namespace, plan: Plan) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Name what can be measured."""
    yield "accuracy", lambda: measure_accuracy(plan)
    yield "cost", lambda: measure_cost(plan, arguments.prototypes)
    yield "exact", lambda: measure_exact(plan)
    yield "strain", lambda: measure_strain(plan)
    yield "separate", lambda: measure_separate(plan)
    yield "peers", lambda: measure_peers(plan)
    yield "real", lambda: measure_real(arguments.data, arguments.pictures)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="one seed and few frames, under a minute")
    parser.add_argument("--only", action="append", metavar="NAME", help="a section; again for another")
    parser.add_argument(
        "--prototypes", type=Path, help="folder with online_gp_proto.py, timed on the same frames"
    )
    parser.add_argument("--data", type=Path, help="folder of real recordings; else $PROBELOOP_DATA")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of real scans before and after")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = QUICK if arguments.quick else FULL
    began_s, cpu_s = time.perf_counter(), time.process_time()
    figures: Figures = {}
    for name, measure in sections(arguments, plan):
        if arguments.only and name not in arguments.only:
            continue
        before_s = time.perf_counter()
        found = measure()
        found[f"{name}_s"] = round(time.perf_counter() - before_s, 1)
        for figure, value in found.items():
            print(f"{figure:36} {value}", flush=True)
        figures |= found
    figures["wall_s"] = round(time.perf_counter() - began_s, 1)
    figures["cpu_s"] = round(time.process_time() - cpu_s, 1)
    figures |= {"seeds": list(plan.seeds), "quick": arguments.quick}
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
