"""How long windows take to become latents, with pose, class and novelty, and a frame to become windows.

Everything goes through the public API, on one thread; a frame on as many as ``--threads`` says. ``make
peers`` installs AtomAI, which then encodes as many random windows in the same minute: both alternate, and
medians are compared. ``--prototypes FOLDER`` adds labelled windows with known angles, on which a model is
trained and the live pose compared with that of the exact posterior. ``--json`` prints one object on the last
line, ``--quick`` does less of the same. A figure that could not be measured is null, with its reason beside.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import ModelCard, load, save
from models.encoder import SHIPPED, Encoder, finished
from models.training import TrainingConfig, train
from simulators.crystal import CrystalConfig, CrystalStream
from streamer.messages import Frame
from streamer.stages.cut_windows import CutWindows
from streamer.stages.encode import Encode
from streamer.stages.find_atoms import FindAtoms
from tests.benchmarks.peers.ask import Peers, why_absent
from tests.known_crystal import message

Figures = dict[str, Any]
Float32 = NDArray[np.float32]
BATCHES = (1, 64, 256)
GPU_BATCH = 4096
WINDOW_PX, WINDOW_NM = 24, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    calls: int
    frames: int
    windows: int
    epochs: int


FULL = Plan(rounds=12, calls=100, frames=15, windows=6000, epochs=12)
QUICK = Plan(rounds=3, calls=40, frames=3, windows=1200, epochs=2)


# -- what is measured ----------------------------------------------------------------------------------


def crystal_frame(number: int = 0) -> Frame:
    """Simulate a frame of 512² pixels with about 1,500 columns."""
    config = CrystalConfig(lattice_constant_px=18.7, seed=2 * number + 1, scale=0.0)
    return message(CrystalStream(config).scan(), number)


def windows_of(frames: int) -> Float32:
    """Cut windows around the columns of simulated frames."""
    cut, find = CutWindows(WINDOW_NM, WINDOW_PX), FindAtoms()
    return np.concatenate([cut.process(find.process(crystal_frame(i))).windows for i in range(frames)])


def trained(windows: Float32, plan: Plan, file: Path) -> Encoder:
    """Train a harmonic rVAE of the default size on windows, and load it as a user would."""
    config = TrainingConfig(epochs=plan.epochs, restarts=1)
    model = train(windows, config)[0]
    card = ModelCard(
        name="benchmark",
        family="harmonic",
        channels=("HAADF",),
        window_nm=WINDOW_NM,
        window_px=WINDOW_PX,
        architecture=msgspec.to_builtins(config.architecture),
    )
    save(file, *finished(model, card, windows, windows))
    return Encoder.load(file, device="cpu")


def live_weights(weights: Path | None, plan: Plan, folder: Path) -> Path:
    """Name the given or the shipped weights; where those are of another family, train some."""
    file = SHIPPED if weights is None else weights
    if weights is not None or load(file)[1].family == "harmonic":
        return file
    trained(windows_of(1)[: plan.windows], plan, folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


def times_ms(call: Callable[[], Any], calls: int) -> list[float]:
    """Call, and say how long each call took."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def encode_times(encoder: Encoder, plan: Plan) -> Figures:
    """Encode 1, 64 and 256 windows, alternating with AtomAI."""
    ours: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    theirs: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    windows = np.resize(windows_of(1), (max(BATCHES), *encoder.window_shape)).astype(np.float32)
    reason = why_absent()

    def alternate(peers: Peers | None) -> None:
        for _ in range(plan.rounds):
            for batch in BATCHES:
                given = windows[:batch]
                ours[batch] += times_ms(lambda given=given: encoder.encode(given), plan.calls)  # type: ignore[misc]
                if peers is not None:
                    asked = {"batch": batch, "window_px": encoder.card.window_px, "repeats": plan.calls // 10}
                    theirs[batch] += peers.ask("encode", **asked)["wall_ms"]

    if reason is None:
        with Peers(threads=1) as peers:
            alternate(peers)
    else:
        alternate(None)
    told: Figures = {
        "encode_64_ms_p50": round(statistics.median(ours[64]), 4),
        "encode_64_ms_p99": round(float(np.quantile(ours[64], 0.99)), 4),
        "encode_64_ms_min": round(min(ours[64]), 4),
        # Angle and shift come with every call: there is no cheaper one without them.
        "pose_64_ms_p50": round(statistics.median(ours[64]), 4),
        "family": encoder.card.family,
    }
    for batch in BATCHES:
        told[f"encode_{batch}_ms"] = round(statistics.median(ours[batch]), 4)
        peer = statistics.median(theirs[batch]) if theirs[batch] else None
        told[f"peer_{batch}_ms"] = None if peer is None else round(peer, 4)
        told[f"speedup_batch{batch}"] = (
            None if peer is None else round(peer / statistics.median(ours[batch]), 2)
        )
    return told if reason is None else told | {"speedup_reason": reason}


def frame_times(encoder: Encoder, plan: Plan, folder: Path, threads: int) -> Figures:
    """Find, cut and encode the columns of a frame; AtomAI takes the same frame."""
    encoder.threads = threads
    frame = crystal_frame()
    find, encode = FindAtoms(threads=threads), Encode(encoder)
    cut = CutWindows(encoder.card.window_nm, encoder.card.window_px, len(encoder.card.channels))
    parts: dict[str, list[float]] = {"find": [], "cut": [], "encode": []}
    total, theirs, count = [], [], 0
    file = folder / "frame.npz"
    # AtomAI is given the places: its network is not trained, and its later steps shall have as much to do.
    np.savez(file, image=frame.image[0], positions_px=find.process(frame).positions_px)

    def one() -> None:
        nonlocal count
        began = time.perf_counter()
        atoms = find.process(frame)
        found = time.perf_counter()
        patches = cut.process(atoms)
        were_cut = time.perf_counter()
        encode.process(patches)
        done = time.perf_counter()
        count = len(patches.windows)
        for part, taken in zip(
            parts.values(), (found - began, were_cut - found, done - were_cut), strict=True
        ):
            part.append(taken * 1e3)
        total.append((done - began) * 1e3)

    one()
    total.clear()
    reason = why_absent()
    for _ in range(plan.frames):
        one()
    if reason is None:
        with Peers(threads=threads) as peers:
            theirs = peers.ask("frame", path=str(file), repeats=2)["wall_ms"]
    for _ in range(plan.frames):
        one()
    encoder.threads = 1
    ours = statistics.median(total)
    told: Figures = {
        "frame_to_latents_ms_p50": round(ours, 2),
        "frame_windows": count,
        "frame_threads": threads,
        **{f"frame_{name}_ms": round(statistics.median(taken), 2) for name, taken in parts.items()},
        "speedup_frame": round(statistics.median(theirs) / ours, 1) if theirs else None,
    }
    return told if reason is None else told | {"speedup_frame_reason": reason}


def circular_rms(angle: Float32, truth: Float32, fold_N: Float32, class_N: NDArray[np.int64]) -> float:
    """RMS error of angles in rad, each class measured from its own upright, among turns that look alike."""
    squares = []
    for one in np.unique(class_N):
        own, fold = class_N == one, float(fold_N[class_N == one][0])
        off = np.exp(1j * fold * (angle[own] - truth[own]))
        off *= np.conj(off.mean()) / abs(off.mean())
        squares.append((np.angle(off) / fold) ** 2)
    return float(np.sqrt(np.median(np.concatenate(squares)) / 0.455))  # robust: a mistaken class is no pose


def pose_error(folder: Path | None, plan: Plan, scratch: Path) -> Figures:
    """Compare the live pose with that of the exact posterior, on windows whose angles are known."""
    if folder is None:
        return {
            "pose_error_ratio": None,
            "pose_error_ratio_reason": "needs --prototypes with labelled windows",
        }
    sys.path.insert(0, str(folder))
    patches = importlib.import_module("make_patches")
    given, judged = patches.make(plan.windows, WINDOW_PX, 2, 180.0), patches.make(1500, WINDOW_PX, 101, 180.0)
    encoder = trained(given["x"][:, None], plan, scratch / "known.safetensors")
    windows = judged["x"][:, None].astype(np.float32)
    live, exact = encoder.encode(windows), encoder.encode(windows, exact=True)
    truth = -judged["theta"]  # counter-clockwise there
    errors = [
        circular_rms(seen.angle_rad, truth, judged["sym"].astype(np.float32), judged["y"])
        for seen in (live, exact)
    ]
    apart = np.linalg.norm(live.offset_px - exact.offset_px, axis=1)
    return {
        "pose_error_deg": round(float(np.degrees(errors[0])), 3),
        "pose_error_exact_deg": round(float(np.degrees(errors[1])), 3),
        "pose_error_ratio": round(errors[0] / errors[1], 3),
        "offset_apart_px_p99": round(float(np.quantile(apart, 0.99)), 4),
    }


def gpu_times(weights: Path, plan: Plan) -> Figures:
    """Find, cut and encode a frame with the encoder on a GPU, and encode as many windows as fill a block."""
    if not torch.cuda.is_available():
        figures = ("gpu", "gpu_frame_ms_p50", "gpu_frame_ms_p99", "gpu_windows_per_s", "gpu_copy_share")
        return dict.fromkeys(figures) | {"gpu_reason": "not measured: torch sees no GPU"}
    encoder, frame, find = Encoder.load(weights, device="cuda"), crystal_frame(), FindAtoms()
    encode = Encode(encoder)
    cut = CutWindows(encoder.card.window_nm, encoder.card.window_px, len(encoder.card.channels))
    windows = np.resize(windows_of(1), (GPU_BATCH, *encoder.window_shape)).astype(np.float32)
    one = times_ms(lambda: encode.process(cut.process(find.process(frame))), plan.frames + 1)[1:]
    whole_ms = statistics.median(times_ms(lambda: encoder.encode(windows), plan.calls))
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_frame_ms_p50": round(statistics.median(one), 3),
        "gpu_frame_ms_p99": round(float(np.quantile(one, 0.99)), 3),
        "gpu_windows_per_s": round(GPU_BATCH / whole_ms * 1e3),
        # Windows cannot be encoded in less time than they take to get there.
        "gpu_copy_share": round(copy_ms(windows, plan.calls) / whole_ms, 3),
    }


def copy_ms(windows: Float32, calls: int) -> float:
    """Say how long windows in pinned memory take to the GPU."""
    here = torch.from_numpy(windows).pin_memory()
    there = here.to("cuda")

    def copy() -> None:
        there.copy_(here, non_blocking=True)
        torch.cuda.synchronize()

    return statistics.median(times_ms(copy, calls))


def sections(
    arguments: argparse.Namespace, plan: Plan, scratch: Path
) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Name what is measured."""
    weights = live_weights(arguments.weights, plan, scratch)
    encoder = Encoder.load(weights, device="cpu")
    yield "encode", lambda: encode_times(encoder, plan)
    yield "frame", lambda: frame_times(encoder, plan, scratch, arguments.threads)
    yield "pose", lambda: pose_error(arguments.prototypes, plan, scratch)
    yield "gpu", lambda: gpu_times(weights, plan)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="fewer calls, under a minute")
    parser.add_argument("--only", action="append", metavar="NAME", help="a section; again for another")
    parser.add_argument("--prototypes", type=Path, help="folder with make_patches.py: windows of known angle")
    parser.add_argument("--weights", type=Path, help="time these weights instead of the shipped ones")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="for a frame, ours and AtomAI's: two of them wait for each other on a busy machine",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan = QUICK if arguments.quick else FULL
    began_s = time.perf_counter()
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, measure in sections(arguments, plan, Path(scratch)):
            if arguments.only and name not in arguments.only:
                continue
            found = measure()
            for figure, value in found.items():
                print(f"{figure:28} {value}", flush=True)
            figures |= found
    figures |= {"wall_s": round(time.perf_counter() - began_s, 1), "quick": arguments.quick}
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
