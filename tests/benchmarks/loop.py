"""The closed loop: how quick, how complete, how right, and how few measurements it needs.

Three parts: the service as a user runs it (processes, sockets, journal) on simulated 512 x 512 frames of
about 1,500 atoms; the pipeline against the simulated truth; the agent against ``random`` on seeds that
nothing was tuned on (odd ones). ``--json`` prints one object on the last line, ``--quick`` does the same with
fewer repeats in under a minute. A figure that could not be measured is null, with its reason beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
sys.path.insert(0, str(Path(__file__).parents[2]))  # before this folder, where a script has a package's name

import msgspec
import numpy as np
import psutil

from agents.config import AgentConfig
from agents.objective import Objective
from agents.policies import make_agent
from deploy.presets.groups import drawn_groups
from models.encoder import Encoder
from simulators.scan_distortion import ScanDistortionConfig
from simulators.scoring import adjusted_rand_index, drift_error_px, match_atoms
from simulators.sheet_spectra import clean_spectra
from simulators.specimen import FOUR_FOLD_SI, THREE_FOLD_SI
from simulators.stem import StemConfig, StemInstrument
from streamer.journal import read_messages
from streamer.messages import Frame, Latents, Outcome, Request, Suggestion
from streamer.pipeline import Pipeline, PipelineConfig, Processed
from streamer.telemetry import Telemetry

LIVE_CONFIG = """
[streamer.experiment]
max_measurements = 0
max_duration_s = {duration_s}
[agent]
dwell_time_us = 5000.0
[simulate.stem]
dwell_time_us = 0.5
carbon_counts = 60.0
"""
WARM_UP_S = 15.0
MOST_POINTS = 600
TARGET = 0.95
Figures = dict[str, Any]


# -- the service, live -----------------------------------------------------------------------------


def measure_live(duration_s: float) -> Figures:
    """Run the service for so long beside its simulator, as ``probeloop run`` does."""
    with tempfile.TemporaryDirectory() as parent:
        config = Path(parent) / "loop.toml"
        config.write_text(LIVE_CONFIG.format(duration_s=duration_s), encoding="utf-8")
        folder = Path(parent) / "session"
        command = [sys.executable, "-m", "deploy.local", "run", "--no-live"]
        command += ["--config", str(config), "--session-folder", str(folder)]
        started_s = time.time()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        memory = _watch_memory(run, started_s)
        said, _ = run.communicate(timeout=duration_s + 120)
        if run.returncode != 0:
            return _nulls(LIVE_NAMES, f"the run ended with exit code {run.returncode}: {said[-500:]}")
        figures = _live_figures(folder, started_s)
        return figures | {"rss_growth_mb": _growth_mb(memory, figures["session_s"])}


LIVE_NAMES = (
    "frame_to_latents_ms_p50",
    "frame_to_suggestion_ms_p50",
    "frames_per_s",
    "frames_lost",
    "rss_growth_mb",
    "time_to_first_suggestion_s",
)


def _watch_memory(run: subprocess.Popen[str], started_s: float) -> list[tuple[float, float]]:
    """Note the resident memory (MB) of the streamer and the agent until the run ends its session."""
    seen: list[tuple[float, float]] = []
    parent = psutil.Process(run.pid)
    while run.poll() is None:
        total, is_serving = 0, False
        try:
            for child in parent.children(recursive=True):
                command = child.cmdline()
                if "streamer" in command or "agents" in command:
                    total += child.memory_info().rss
                    is_serving |= "streamer" in command
        except psutil.Error:  # a process ended between two questions
            continue
        if is_serving:
            seen.append((time.time() - started_s, total / 1e6))
        time.sleep(0.5)
    return seen


def _growth_mb(memory: list[tuple[float, float]], last_s: float) -> float | None:
    """Rise of the resident memory from after the warm-up to the last frame, median to median."""
    settled = [mb for at_s, mb in memory if min(WARM_UP_S, last_s / 2) <= at_s <= last_s]
    if not settled:
        return None
    fifth = max(1, len(settled) // 5)
    return round(statistics.median(settled[-fifth:]) - statistics.median(settled[:fifth]), 1)


def _live_figures(folder: Path, started_s: float) -> Figures:
    arrived: dict[int, float] = {}
    latents: list[float] = []
    first_suggestion_s = None
    for at_s, message in read_messages(folder):
        if isinstance(message, Frame):
            arrived[message.number] = at_s
        elif isinstance(message, Latents):
            latents.append(at_s)
        elif isinstance(message, Suggestion) and first_suggestion_s is None:
            first_suggestion_s = round(at_s - started_s, 2)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    frames = summary["frames"]
    lost = frames["received"] - frames["published"] + frames["missed"]
    return {
        "frame_to_latents_ms_p50": summary["frame_to_latents_ms"][0],
        "frame_to_latents_ms_p99": summary["frame_to_latents_ms"][1],
        "frame_to_suggestion_ms_p50": summary["frame_to_suggestion_ms"][0],
        "frame_to_suggestion_ms_p99": summary["frame_to_suggestion_ms"][1],
        "stage_ms_p50": {name: round(times[0], 1) for name, times in summary["stage_ms"].items()},
        "frames_per_s": round((len(latents) - 1) / (latents[-1] - latents[0]), 2),
        "frames": len(latents),
        "session_s": round(latents[-1] - started_s, 1),
        "frames_lost": lost,
        "atoms": summary["atoms"],
        "measurements": summary["measurements"],
        "time_to_first_suggestion_s": first_suggestion_s,
    }


# -- the pipeline, against the truth -----------------------------------------------------------------


def measure_accuracy(pipeline_config: PipelineConfig, seeds: list[int], frames: int) -> Figures:
    """Worst of the seeds for each figure: drift, precision, recall, and silicon told from carbon."""
    worst: list[tuple[float, float, float, float]] = []
    for seed in seeds:
        instrument = StemInstrument(StemConfig(seed=seed, dwell_time_us=2.0))
        processed = list(_processed(instrument, pipeline_config, frames))
        truth = instrument.truth()
        drift = drift_error_px(
            np.array([p.latents.registration.drift_nm for p in processed]),
            truth["drift_nm"],
            float(truth["pixel_size_nm"]),
        )
        last = processed[-1]
        found = match_atoms(last.atoms, truth["positions_nm"], truth["drift_nm"][0])
        worst.append((drift, found.precision, found.recall, _site_ari(last.latents, truth)))
    table = np.array(worst)
    return {
        "drift_error_px": round(float(table[:, 0].max()), 4),
        "atom_precision": round(float(table[:, 1].min()), 4),
        "atom_recall": round(float(table[:, 2].min()), 4),
        "site_ari": round(float(table[:, 3].min()), 4),
    }


def _processed(instrument: StemInstrument, config: PipelineConfig, frames: int) -> Iterator[Processed]:
    pipeline, meter = Pipeline.build(config), Telemetry()
    for number in range(frames):
        frame = msgspec.structs.replace(instrument.acquire(), session="s", number=number)
        processed = pipeline.process(frame, meter)
        assert processed is not None
        yield processed


def _site_ari(latents: Latents, truth: dict[str, Any]) -> float:
    """Agreement of two groups found in the latents with silicon and carbon; labels are only scored."""
    positions = latents.positions_nm + truth["drift_nm"][0]
    distance = np.linalg.norm(positions[:, None] - truth["positions_nm"][None], axis=2)
    is_silicon = np.isin(truth["site_class"][distance.argmin(axis=1)], (THREE_FOLD_SI, FOUR_FOLD_SI))
    return adjusted_rand_index(is_silicon.astype(int), drawn_groups(Encoder.load(), latents.mean, 2))


# -- the agent, against random -------------------------------------------------------------------------


@dataclass
class Field:
    """A field of view that lies still, and what is best in it."""

    instrument: StemInstrument
    latents: Latents
    objective: Objective
    best: float

    @classmethod
    def of(cls, seed: int, config: PipelineConfig) -> Field:
        still = ScanDistortionConfig(drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0)
        instrument = StemInstrument(StemConfig(seed=seed, dwell_time_us=2.0, distortion=still))
        *_, last = _processed(instrument, config, 3)
        objective = Objective(AgentConfig().objective)
        made = cls(instrument, last.latents, objective, best=0.0)
        made.best = max(made.worth(tuple(place)) for place in last.latents.positions_nm.tolist())
        return made

    def worth(self, position_nm: tuple[float, float]) -> float:
        """Objective of the spectrum without noise at a place."""
        eels = self.instrument.config.eels
        (expected,) = clean_spectra(self.instrument.specimen, [position_nm], 1e9, eels)
        return self.objective.read(
            expected, energy_offset_ev=eels.energy_offset_ev, energy_step_ev=eels.energy_step_ev
        ).value


def points_to_target(field: Field, policy: str, seed: int) -> int:
    """Measure where the agent says until a place of 95 % of the best was measured; how many it took."""
    agent = make_agent(AgentConfig(policy=policy, max_pending=1, max_per_frame=0), seed)  # type: ignore[arg-type]
    agent.tell(field.latents)
    for count in range(1, MOST_POINTS + 1):
        suggestion = agent.ask()
        if suggestion is None:
            break
        scan_position_nm = field.latents.registration.scan_position_nm(suggestion.position_nm)
        request = Request(
            session="s",
            id=suggestion.id,
            action="spectrum",
            scan_position_nm=scan_position_nm,
            position_nm=suggestion.position_nm,
            dwell_time_us=suggestion.dwell_time_us,
        )
        outcome, _ = field.instrument.execute(request)
        assert isinstance(outcome, Outcome)
        agent.tell(msgspec.structs.replace(outcome, session="s", position_nm=suggestion.position_nm))
        if field.worth(suggestion.position_nm) >= TARGET * field.best:
            return count
        agent.refit()
    return MOST_POINTS + 1


def measure_efficiency(config: PipelineConfig, seeds: list[int]) -> Figures:
    """Median over the seeds of the measurements needed; all of them beside it."""
    fields = [Field.of(seed, config) for seed in seeds]
    figures: Figures = {}
    for name, policy in (("agent", "explorer"), ("random", "random"), ("raster", "raster")):
        points = [points_to_target(field, policy, seed) for field, seed in zip(fields, seeds, strict=True)]
        figures[f"points_to_95pct_{name}"] = statistics.median(points)
        figures[f"points_to_95pct_{name}_all"] = points
    return figures


# -- all of it --------------------------------------------------------------------------------------


def _nulls(names: tuple[str, ...], reason: str) -> Figures:
    return dict.fromkeys(names, None) | {f"{name}_reason": reason for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, under a minute")
    arguments = parser.parse_args()
    odd = [1001 + 2 * i for i in range(10)]
    config = PipelineConfig()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    figures = measure_accuracy(config, odd[:1] if arguments.quick else odd[:5], 10 if arguments.quick else 25)
    figures |= measure_efficiency(config, odd[:2] if arguments.quick else odd)
    figures |= {"offline_cpu_s": round(time.process_time() - cpu_s, 1)}
    figures |= measure_live(15.0 if arguments.quick else 75.0)
    figures |= {"wall_s": round(time.perf_counter() - wall_s, 1), "quick": arguments.quick}
    for name, value in figures.items():
        print(f"{name:36} {value}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
