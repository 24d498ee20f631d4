"""What it costs to learn over windows: on the wire, of a frame, of an answer and of a fit.

Windows of 24 x 24 pixels with a spot in them, as bright as decides what is measured; beside it in the same
run the same agent over ``latents + position``. Milliseconds of a thread's own processor time, medians. A fit
is made beside the measuring, so nobody waits for it. ``gpytorch_fit_ms`` is what the deep kernel of
``sample_efficiency.py`` takes for as many measurements: larger, and trained from nothing each time.

``--json`` prints one object on the last line; ``--quick`` takes 1,500 windows and 20 measurements alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from msgspec.structs import replace

from agents.config import AgentConfig
from agents.evidence import fit
from agents.explorer import Explorer
from agents.kernels import Hyperparameters
from agents.surrogate import NOISE
from streamer.codec import encode
from streamer.messages import Latents
from streamer.window_bytes import as_bytes
from tests.drawn_windows import spots
from tests.grid_of_sites import GridOfSites

Figures = dict[str, Any]

PIXELS = 24
FIELD_NM = 10.0
SEED = 1
FEATURES = ("windows + position", "latents + position")
PAUSES = 5  # repeats of what is quick


def thread_ms(make: Callable[[], object], repeats: int = PAUSES) -> float:
    """Median of what something takes of this thread's processor time."""
    took = []
    for _ in range(repeats):
        begun_s = time.thread_time()
        make()
        took.append(1e3 * (time.thread_time() - begun_s))
    return round(statistics.median(took), 2)


class Session:
    """An agent on frames of one field, with some measurements made and their fits adopted."""

    def __init__(self, side: int, features: str, measurements: int) -> None:
        rng = np.random.default_rng(SEED)
        mean = rng.normal(size=(side * side, 8)).astype(np.float32)
        self._field = GridOfSites(FIELD_NM, mean, 1 / (1 + np.exp(2 - mean[:, 0])), rng)
        self.windows = spots(self._field.edge, seed=SEED, pixels=PIXELS)
        given, window_range = as_bytes(self.windows)
        self.frame: Latents = replace(self._field.frame(), windows=given, window_range=window_range)
        config = {"features": (features,), "min_distance_nm": 1e-3, "max_miss_nm": 1.0, "max_per_frame": 0}
        self.agent = Explorer(AgentConfig(**config), seed=SEED)  # type: ignore[arg-type]
        self.agent.tell(self.frame)
        self.indices: list[int] = []
        for _ in range(measurements):
            self.step()

    def step(self) -> None:
        """Ask, measure, and take up the fits whose time has come."""
        suggestion = self.agent.ask()
        assert suggestion is not None
        self.agent.tell(self._field.outcome(suggestion))
        while self.agent.refit() is not None:
            pass
        self.indices.append(suggestion.track)

    def answer_ms(self) -> float:
        """Of an outcome told and the next place asked for, without a fit."""
        took = []
        for _ in range(PAUSES):
            suggestion = self.agent.ask()
            assert suggestion is not None
            came = self._field.outcome(suggestion)
            begun_s = time.thread_time()
            self.agent.tell(came)
            self.agent.consider()
            took.append(1e3 * (time.thread_time() - begun_s))
        return round(statistics.median(took), 2)

    def first_answer_ms(self) -> float:
        """Of a place asked for on a new frame, all measurements known."""

        def on_a_new_frame() -> None:
            self.agent.tell(self.frame)
            self.agent.consider()

        return thread_ms(on_a_new_frame)

    def fit_ms(self, *, is_first: bool) -> float:
        """Of a fit to all that was measured, from nothing or from the fit before."""
        (model,) = self.agent.surrogate.models
        start = Hyperparameters.before_any_fit(model.parts, NOISE) if is_first else model.hyperparameters
        known = model.known.first(len(self.indices))
        return thread_ms(lambda: fit(known, model.parts, start), 1)


def gpytorch_fit_ms(session: Session) -> float:
    """What the network and kernel of the peer take, beside torch's other threads."""
    from tests.benchmarks.deep_kernel_peer import DeepKernel

    known = session.agent.surrogate.known.first(len(session.indices))
    peer = DeepKernel(session.windows.reshape(len(session.windows), -1).astype(np.float64), SEED)
    peer.train(session.indices, known.y)
    begun_s = time.process_time()
    peer.train(session.indices, known.y)
    return round(1e3 * (time.process_time() - begun_s), 1)


def measured(side: int, measurements: int) -> Figures:
    """Figures of a field of so many sites after so many measurements."""
    found: Figures = {}
    for features in FEATURES:
        one = Session(side, features, measurements)
        row: Figures = {
            "frame_told_ms": thread_ms(lambda one=one: one.agent.tell(one.frame)),  # type: ignore[misc]
            "first_answer_ms": one.first_answer_ms(),
            "answer_ms": one.answer_ms(),
            "first_fit_ms": one.fit_ms(is_first=True),
            "next_fit_ms": one.fit_ms(is_first=False),
        }
        if features == FEATURES[0]:
            row["to_bytes_ms"] = thread_ms(lambda one=one: as_bytes(one.windows))  # type: ignore[misc]
            sizes = [sum(map(len, encode(of))) for of in (one.frame, one.frame.without_windows())]
            row["bytes_of_a_window"] = round((sizes[0] - sizes[1]) / side**2)
            row["checkpoint_kb"] = round(sum(a.nbytes for a in one.agent.checkpoint()[1].values()) / 1e3)
            row["gpytorch_fit_ms"] = gpytorch_fit_ms(one)
        found[features] = row
        print(f"{side**2:6d} windows, {measurements:3d} measured, {features:20s} {row}", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="1,521 windows after 20 measurements")
    options = parser.parse_args()
    sides, counts = ((39,), (20,)) if options.quick else ((39, 64), (20, 100, 400))
    table = {
        f"{side**2}": {f"{count}": measured(side, count) for count in counts if side == 64 or count == 20}
        for side in sides
    }
    few = table["1521"]["20"][FEATURES[0]]
    names = ("bytes_of_a_window", "frame_told_ms", "answer_ms", "first_fit_ms")
    found = {name: few[name] for name in names} | {"table": table}
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
