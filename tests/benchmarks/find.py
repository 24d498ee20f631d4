"""How many columns the finder finds, how exactly, and what it costs; simulated truth and real recordings.

Simulated frames are of crystals with vacancies and interstitials at 60 counts, on seeds that nothing was
tuned on (odd ones); none of their pictures are those that the network was trained on. Columns nearer to the
border than three widths are not judged. ``crb_ratio`` is the RMS error over the Cramér-Rao bound of the whole
frame, all columns, heights and the background being unknown; ``z_rms`` the RMS error in units of what is said
of it.

``--data FOLDER`` adds recordings of real microscopes: counts against the lattice's, spread of the distances
to the nearest neighbour, and precision and recall on labelled single atoms. Thresholds and weights are from
simulation alone. ``--method`` compares finders; names that end in ``_log`` are of the filter without weights.
``--pictures FOLDER`` draws what was found. ``--json`` prints one object on the last line; a figure that could
not be measured is null, with its reason beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from deploy.supervise import REUSED_MEMORY
from models.laplacian_finder import FilteredFrame
from simulators.crystal import CrystalStream, preset
from simulators.recordings import read_recording
from streamer.messages import Atoms, Frame, ScanGeometry
from streamer.stage import Rejected
from streamer.stages.find_atoms import FindAtoms, FindConfig, Method
from tests import real_scans
from tests.known_crystal import message

Figures = dict[str, Any]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

JUDGED_SIGMAS = 3.0  # from the border
FOUND_SIGMAS = 1.0  # from a column
LABEL_PX = 5.0  # within which a found atom is a labelled one
# As the streamer runs: memory that is handed back costs a fault a page when it is needed again. Threads that
# spin while they wait cost four times as much where others want the cores.
PROCESS = REUSED_MEMORY | {"OMP_WAIT_POLICY": "passive"}
# Of crystals: kind, columns' distance in widths along the lattice vector, height of the second sublattice.
CRYSTALS: dict[str, dict[str, Any]] = {
    # An atom in the middle of a bond would lie 1.6 widths from two others: none of the three can be told.
    "graphene": {
        "lattice": "graphene", "lattice_constant_px": 19.2, "column_sigma_px": 3.4, "interstitials": 0,
    },
    "square": {"lattice": "square", "lattice_constant_px": 16.0, "column_sigma_px": 1.9},
    "isolated": {
        "lattice": "square", "lattice_constant_px": 40.0, "column_sigma_px": 3.0, "second_brightness": 1.0,
    },
}  # fmt: skip
MOS2_NM = 0.316  # its lattice constant
# SrTiO3 is seen along [110]: SrO, Ti and O in each 0.3905 x 0.2761 nm.
GRAPHENE_PER_NM2, MOS2_PER_NM2, SRTIO3_PER_NM2 = 38.2, 23.1, 27.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    seeds: tuple[int, ...]
    frames: int
    repeats: int


FULL = Plan(seeds=(1, 3, 5, 7, 9), frames=3, repeats=40)
QUICK = Plan(seeds=(1,), frames=1, repeats=8)


# -- simulated crystals --------------------------------------------------------------------------------


def crystal(kind: str, seed: int, size_px: int, **changes: Any) -> CrystalStream:
    """A crystal through a perfect scan, turned by an angle of its own."""
    changes = {"lattice_rotation_deg": 7.3 * seed % 60} | CRYSTALS[kind] | changes
    if size_px < 512:
        changes = {"vacancies": 3, "interstitials": 1} | changes
    return CrystalStream(preset("clean", seed=seed, size_px=size_px, **changes))


def true_px(stream: CrystalStream) -> tuple[Float64, Float64]:
    """Places of all columns, ``(n, 2)``, and their expected counts, ``(n,)``."""
    c = stream.config
    places = np.concatenate([stream.real_px[stream.is_present], stream.interstitials_px])
    extra = np.full(len(stream.interstitials_px), c.second_brightness)
    heights = c.peak_counts * np.concatenate([stream.brightness[stream.is_present], extra])
    near = inside(places, -5 * c.column_sigma_px, c.size_px)
    return places[near], heights[near]


def inside(places: Float64, margin: float, size_px: int) -> Bool:
    """Mark what is so far from the border."""
    kept: Bool = np.all((places >= margin) & (places <= size_px - 1 - margin), axis=1)
    return kept


def bound(places: Float64, heights: Float64, stream: CrystalStream) -> Float64:
    """Cramér-Rao bound of each place, variance along ``(row, col)`` in px², shape ``(n, 2)``."""
    c = stream.config
    line = np.arange(c.size_px)
    far = [(line - places[:, axis, None]) / c.column_sigma_px for axis in (0, 1)]
    down, along = (np.exp(-0.5 * each**2) for each in far)
    weight = 1 / (c.background_counts + (down * heights[:, None]).T @ along)
    high = heights[:, None] * down / c.column_sigma_px
    slopes = [(high * far[0], along), (high, along * far[1]), (down, along)]
    parts = [np.einsum("nr,nc->nrc", *pair).reshape(len(places), -1) for pair in slopes]
    jacobian = np.concatenate([*parts, np.ones((1, weight.size))]).astype(np.float32)
    information = ((jacobian * weight.ravel().astype(np.float32)) @ jacobian.T).astype(np.float64)
    # Columns far beyond the edge tell nothing; a hint of where they are keeps the inverse alive.
    information[np.diag_indices_from(information)] += 1e-6
    variance = np.diag(np.linalg.inv(information))
    n = len(places)
    return np.stack([variance[:n], variance[n : 2 * n]], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """One frame against the truth."""

    hits: int
    found: int
    there: int
    squares: Float64  # of errors along each axis, over the bound; empty where it was not asked
    scores: Float64  # squared Mahalanobis length over 2


def judged(stream: CrystalStream, atoms: Atoms, *, is_bound: bool) -> Judged:
    """Match found columns with true ones; both have to be away from the border."""
    c = stream.config
    places, heights = true_px(stream)
    found = atoms.positions_px.astype(np.float64)
    margin, reach = JUDGED_SIGMAS * c.column_sigma_px, FOUND_SIGMAS * c.column_sigma_px
    to_true, which = cKDTree(places).query(found)
    to_found, _ = cKDTree(found).query(places)
    there, ours = inside(places, margin, c.size_px), inside(found, margin, c.size_px)
    hit = ours & (to_true < reach)
    error = (found - places[which])[hit]
    assert atoms.position_covariance_px2 is not None
    covariance = atoms.position_covariance_px2[hit].astype(np.float64)
    scores = np.einsum("ni,nij,nj->n", error, np.linalg.inv(covariance), error) / 2
    squares = error**2 / bound(places, heights, stream)[which[hit]].mean(axis=0) if is_bound else error[:0]
    return Judged(
        hits=int(np.count_nonzero(there & (to_found < reach))),
        found=int(np.count_nonzero(ours)) - int(np.count_nonzero(hit)),
        there=int(np.count_nonzero(there)),
        squares=squares,
        scores=scores,
    )


def measure_simulated(plan: Plan, method: Method) -> Figures:
    """Precision and recall of whole frames, and errors of small ones, by the kind of crystal."""
    figures: Figures = {}
    precision, recall, ratios, scores = [], [], [], []
    stage = FindAtoms(FindConfig(method=method))
    for kind in CRYSTALS:
        whole, small = [], []
        for seed in plan.seeds:
            for size_px, runs in ((512, whole), (160, small)):
                stream = crystal(kind, seed, size_px)
                for number in range(plan.frames):
                    atoms = stage.process(message(stream.scan(), number))
                    runs.append(judged(stream, atoms, is_bound=size_px == 160))
        hits, there = sum(r.hits for r in whole), sum(r.there for r in whole)
        precision.append(hits / (hits + sum(r.found for r in whole)))
        recall.append(hits / there)
        ratios.append(math.sqrt(float(np.mean(np.concatenate([r.squares for r in small])))))
        scores.append(math.sqrt(float(np.mean(np.concatenate([r.scores for r in whole + small])))))
        figures |= {
            f"precision_{kind}": round(precision[-1], 4),
            f"recall_{kind}": round(recall[-1], 4),
            f"crb_ratio_{kind}": round(ratios[-1], 3),
            f"z_rms_{kind}": round(scores[-1], 3),
        }
    off = max(scores, key=lambda score: abs(math.log(score)))
    return figures | {
        "precision": round(min(precision), 4),
        "recall": round(min(recall), 4),
        "crb_ratio": round(max(ratios), 3),
        "z_rms": round(off, 3),
    }


# -- cost ----------------------------------------------------------------------------------------------


def measure_cost(plan: Plan, method: Method) -> Figures:
    """Time of a frame of 512² with about 1,800 columns, the two finders in turn, on one and two threads."""
    stream = crystal("square", plan.seeds[0], 512)
    frame = message(stream.scan(), 0)
    methods: dict[str, Method] = {"": method, "_log": "laplacian"}
    stages = {
        f"{threads}_thread{'s' * (threads > 1)}{name}": FindAtoms(FindConfig(method=way), threads)
        for threads in (1, 2)
        for name, way in methods.items()
    }
    took: dict[str, list[float]] = {name: [] for name in stages}
    cpu: dict[str, list[float]] = {name: [] for name in stages}
    figures: Figures = {}
    for stage in stages.values():
        figures["columns"] = len(stage.process(frame).positions_px)
    for _ in range(plan.repeats):
        for name, stage in stages.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            stage.process(frame)
            took[name].append(1e3 * (time.perf_counter() - began))
            cpu[name].append(1e3 * (time.process_time() - began_cpu))
    for name in stages:
        figures[f"finder_ms_p50_{name}"] = round(statistics.median(took[name]), 1)
        # Where others want the cores too, the least says what a frame takes.
        figures[f"finder_ms_min_{name}"] = round(min(took[name]), 1)
        figures[f"finder_cpu_ms_p50_{name}"] = round(statistics.median(cpu[name]), 1)
    return figures


# -- recordings of real microscopes ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """A real frame, how many columns the lattice has in a square nanometre, and how many are of one kind.

    Where columns are not all equally far from their nearest, distances are those between the strongest part.
    """

    name: str
    frame: Frame
    per_nm2: float
    part: float = 1.0


def recordings(folder: Path) -> Iterator[Recording]:
    """Frames of lattices, at the scale that their files give."""
    for name in ("G-GrainBoundary-4nm", "G-Si-2nm", "G-Si-4fold"):
        path = folder / "stem_graphene_si" / f"{name}.hdf5"
        yield Recording(name=name, frame=_first(path), per_nm2=GRAPHENE_PER_NM2)
    path = folder / "stem_abf_stack" / "stem_abf_data_imagestack.hspy"
    yield Recording(name="SrTiO3-ABF", frame=_as(_first(path), "ABF"), per_nm2=SRTIO3_PER_NM2, part=1 / 3)
    for path in sorted((folder / "stem_mos2_defects").glob("*.npy")):
        space = json.loads(path.with_suffix(".json").read_text())
        space = space["experimental_details"]["spatial_info"]
        size_nm = (float(space["field_of_view_x"]), float(space["field_of_view_y"]))
        name = "MoS2-" + path.stem[-5:]
        yield Recording(name=name, frame=framed(np.load(path), size_nm), per_nm2=MOS2_PER_NM2)


def _first(path: Path) -> Frame:
    return next(iter(read_recording(path)))


def _as(frame: Frame, channel: str) -> Frame:
    return framed(frame.image[0], frame.geometry.field_of_view_nm, channel)


def framed(image: NDArray[Any], field_of_view_nm: tuple[float, float], channel: str = "HAADF") -> Frame:
    """Make a frame of a picture."""
    return Frame(
        session="s",
        number=0,
        acquired_at_s=1.0,
        image=np.ascontiguousarray(image, dtype=np.float32)[None],
        channels=(channel,),
        geometry=ScanGeometry(shape=(image.shape[0], image.shape[1]), field_of_view_nm=field_of_view_nm),
        dwell_time_us=1.0,
    )


def found_nm(frame: Frame, method: Method) -> tuple[Float64, Float64]:
    """Columns of a frame, ``(row, col)`` in nm from the first pixel, and their heights; none if refused."""
    try:
        atoms = FindAtoms(FindConfig(method=method)).process(frame)
    except Rejected:
        return np.empty((0, 2)), np.empty(0)
    nm: Float64 = atoms.positions_px.astype(np.float64) * np.array(frame.geometry.pixel_size_nm)
    return nm, np.abs(atoms.amplitude.astype(np.float64))


def of_lattice(recording: Recording, method: Method, margin_nm: float = 0.2) -> tuple[float, float | None]:
    """Count against the lattice's away from the border, and spread of the nearest distances."""
    size_nm = np.array(recording.frame.geometry.field_of_view_nm)[::-1]
    found, height = found_nm(recording.frame, method)
    whole = np.all((found >= margin_nm) & (found <= size_nm - margin_nm), axis=1)
    expected = recording.per_nm2 * float(np.prod(size_nm - 2 * margin_nm))
    if np.count_nonzero(whole) < 3:
        return 0.0, None
    strong = height >= np.quantile(height[whole], 1 - recording.part)
    nearest = cKDTree(found[strong]).query(found[whole & strong], k=2)[0][:, 1]
    return float(whole.sum()) / expected, float(nearest.std() / nearest.mean())


def hexagonal_constant_nm(frame: Frame) -> float:
    """Lattice constant of a hexagonal sheet at its file's scale, from the three strongest reflections."""
    image = frame.image[0] - float(frame.image[0].mean())
    rows, cols = image.shape
    shape = (4 * rows, 4 * cols)
    power = np.abs(np.fft.rfft2(image * np.hanning(rows)[:, None] * np.hanning(cols), s=shape))
    row_nm, col_nm = frame.geometry.pixel_size_nm
    per_nm = np.hypot(np.fft.fftfreq(shape[0], row_nm)[:, None], np.fft.rfftfreq(shape[1], col_nm))
    power[(per_nm < 1.8) | (per_nm > 5.5)] = 0
    reflections = []
    for _ in range(3):
        row, col = np.unravel_index(int(power.argmax()), power.shape)
        reflections.append(per_nm[row, col])
        power[max(row - 20, 0) : row + 20, max(col - 20, 0) : col + 20] = 0
    return 2 / math.sqrt(3) / float(np.mean(reflections))


def measure_real(folder: Path | None, method: Method, pictures: Path | None) -> Figures:
    """Lattices and single atoms of real recordings, by both finders."""
    names = ("graphene_count_ratio", "real_f1", "real_f1_log")
    if folder is None:
        reason = "no folder of recordings: give --data or set PROBELOOP_DATA"
        return dict.fromkeys(names) | {f"{name}_reason": reason for name in names}
    figures: Figures = {}
    ways: dict[str, Method] = {"": method, "_log": "laplacian"}
    for recording in recordings(folder):
        for end, way in ways.items():
            ratio, spread = of_lattice(recording, way)
            figures[f"{recording.name}_count_ratio{end}"] = round(ratio, 3)
            if recording.per_nm2 == MOS2_PER_NM2:
                # Some of their files give a scale at which the lattice is a third too wide.
                area = (hexagonal_constant_nm(recording.frame) / MOS2_NM) ** 2
                figures[f"{recording.name}_count_ratio_own_lattice{end}"] = round(ratio * area, 3)
            figures[f"{recording.name}_spacing_cv{end}"] = None if spread is None else round(spread, 3)
        if pictures is not None:
            draw(recording, method, pictures)
    figures["graphene_count_ratio"] = figures["G-GrainBoundary-4nm_count_ratio"]
    for end, way in ways.items():
        figures |= {f"{name}{end}": value for name, value in single_atoms(folder, way).items()}
    return figures


def single_atoms(folder: Path, method: Method) -> Figures:
    """Precision, recall and F1 on labelled single atoms, at the confidence the stage believes and others.

    Their files give no scale: it is the one at which a spot is as wide as one of 0.045 nm.
    """
    places = folder / "stem_pt_single_atoms_labelled"
    stage = FindAtoms(FindConfig(method=method, min_confidence=0.02, min_distance_nm=0.07))
    told: list[tuple[Float64, Float64, Float64]] = []
    for path in sorted((places / "labels_repaired").glob("*.csv")):
        image = read_picture(places / "tif" / f"{path.stem}.tif")
        with path.open() as file:
            labels = np.array([(float(row["Y"]), float(row["X"])) for row in csv.DictReader(file)])
        pixel_nm = 0.045 / FilteredFrame(image, 0.02, 0.0).column_sigma_px
        size_nm = (image.shape[1] * pixel_nm, image.shape[0] * pixel_nm)
        try:
            atoms = stage.process(framed(image, size_nm))
        except Rejected:
            told.append((np.empty((0, 2)), np.empty(0), labels))
            continue
        told.append((atoms.positions_px.astype(np.float64), atoms.confidence.astype(np.float64), labels))
    curve = {
        str(at): [round(x, 3) for x in scored(told, at)]
        for at in (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
    }
    return {"real_f1": curve[str(FindConfig().min_confidence)][2], "real_precision_recall_f1": curve}


def read_picture(path: Path) -> Float32:
    """Read a grey picture."""
    import tifffile

    return np.asarray(tifffile.imread(path), dtype=np.float32)


def scored(told: list[tuple[Float64, Float64, Float64]], confidence: float) -> tuple[float, float, float]:
    """Precision, recall and F1 of what is at least so sure, each label being met once."""
    hits = found = there = 0
    for places, sure, labels in told:
        kept = places[sure >= confidence]
        found, there = found + len(kept), there + len(labels)
        if len(kept) and len(labels):
            apart = np.hypot(*(kept[:, None] - labels[None]).transpose(2, 0, 1))
            row, col = linear_sum_assignment(np.where(apart <= LABEL_PX, apart, 1e3))
            hits += int(np.count_nonzero(apart[row, col] <= LABEL_PX))
    return hits / max(found, 1), hits / max(there, 1), 2 * hits / max(found + there, 1)


def draw(recording: Recording, method: Method, folder: Path) -> None:
    """Draw what was found over the frame."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = found_nm(recording.frame, method)[0] / np.array(recording.frame.geometry.pixel_size_nm)
    image = recording.frame.image[0]
    figure, axes = pyplot.subplots(figsize=(10, 10))
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high)
    axes.plot(found[:, 1], found[:, 0], "+", color="tab:orange", markersize=5)
    axes.set_title(f"{recording.name}: {len(found)} columns")
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{recording.name}.png", dpi=70)
    pyplot.close(figure)


# -- all of it -------------------------------------------------------------------------------------------


def sections(arguments: argparse.Namespace, plan: Plan) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Name what can be measured."""
    method: Method = arguments.method
    yield "simulated", lambda: measure_simulated(plan, method)
    yield "cost", lambda: measure_cost(plan, method)
    yield "real", lambda: measure_real(real_scans.data_folder(arguments.data), method, arguments.pictures)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="one seed and few frames, under a minute")
    parser.add_argument("--only", action="append", metavar="NAME", help="a section; again for another")
    parser.add_argument("--method", default=FindConfig().method, choices=("auto", "network", "laplacian"))
    parser.add_argument("--data", type=Path, help="folder of real recordings; else $PROBELOOP_DATA")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of real frames with their columns")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in PROCESS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | PROCESS)
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
            print(f"{figure:44} {value}", flush=True)
        figures |= found
    figures["wall_s"] = round(time.perf_counter() - began_s, 1)
    figures["cpu_s"] = round(time.process_time() - cpu_s, 1)
    figures |= {"seeds": list(plan.seeds), "quick": arguments.quick, "method": arguments.method}
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
