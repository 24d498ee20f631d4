"""How long it takes to read 400 kept measurements anew: spectra of 2,048 channels, or loops of 128 points.

CPU time of ``change_objective`` of an agent, the fastest of some repeats. ``--json`` prints one object on the
last line; ``--quick`` repeats once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np

from agents.config import AgentConfig
from agents.objective import BandConfig, ObjectiveConfig
from agents.policies import make_agent
from agents.site_agent import Observation

SPECTRA, CHANNELS, POINTS = 400, 2048, 128
SEED = 1
ENERGY_EV = 5 + 0.5 * np.arange(CHANNELS)
BANDS = (
    BandConfig(name="Si", window_ev=(99.0, 120.0), background_ev=(65.0, 97.0)),
    BandConfig(name="C", window_ev=(284.0, 320.0), background_ev=(240.0, 280.0)),
)
OWN = """
def value(spectrum, axis):
    return spectrum[(axis > 99) & (axis < 120)].sum()
"""


def spectra(rng: np.random.Generator) -> list[Observation]:
    """Draw edges and a plasmon on a power law."""
    clean = 3e7 * ENERGY_EV**-2.5 + 200 * (ENERGY_EV > 99) + 100 * (ENERGY_EV > 284)
    clean += 1e5 * np.exp(-0.5 * ((ENERGY_EV - 20) / 4) ** 2)
    drawn = rng.poisson(clean * rng.uniform(0.8, 1.2, (SPECTRA, 1))).astype(np.float32)
    return [observation(str(number), one) for number, one in enumerate(drawn)]


def loops(rng: np.random.Generator) -> list[Observation]:
    """Draw loops of two cycles."""
    turn = 2 * np.pi * np.arange(1, POINTS + 1) / (POINTS / 2)
    bias_v = 8 * 2 / np.pi * np.arcsin(np.sin(turn))
    middle = np.where(np.cos(turn) >= 0, 3.0, -2.0)
    drawn = 10 * np.tanh((bias_v - middle) / 0.5) + rng.normal(0, 0.5, (SPECTRA, POINTS))
    bias = bias_v.astype(np.float32)
    return [observation(str(number), one.astype(np.float32), bias) for number, one in enumerate(drawn)]


def observation(identifier: str, values: Any, bias_v: Any = None) -> Observation:
    """Keep a measurement as an agent does."""
    return Observation(
        session="s",
        id=identifier,
        site=None,
        spectrum=values,
        energy_offset_ev=float(ENERGY_EV[0]),
        energy_step_ev=0.5,
        bias_v=bias_v,
    )


def configurations(folder: Path) -> dict[str, ObjectiveConfig]:
    """Make one objective of each kind."""
    target, own = folder / "target.csv", folder / "own.py"
    np.savetxt(target, np.column_stack([ENERGY_EV, ENERGY_EV**-2.5]), delimiter=",")
    own.write_text(OWN)
    peak = ObjectiveConfig(kind="peak_position", window_ev=(10.0, 30.0))
    return {
        "band_integral": ObjectiveConfig(),
        "peak_position": peak,
        "peak_ratio": ObjectiveConfig(kind="peak_ratio", bands=BANDS),
        "composition": ObjectiveConfig(kind="composition", bands=BANDS),
        "similarity": ObjectiveConfig(kind="similarity", target=str(target)),
        "novelty": ObjectiveConfig(kind="novelty"),
        "loop_area": ObjectiveConfig(kind="loop_area"),
        "coercive_bias": ObjectiveConfig(kind="coercive_bias"),
        "nucleation_bias": ObjectiveConfig(kind="nucleation_bias"),
        "remanent_response": ObjectiveConfig(kind="remanent_response"),
        "file": ObjectiveConfig(kind="file", file=str(own)),
    }


def cost_ms(config: ObjectiveConfig, kept: list[Observation], repeats: int) -> float:
    """Measure one objective."""
    agent = make_agent(AgentConfig(policy="raster"))
    agent.observations = list(kept)
    took = []
    for _ in range(repeats):
        before_s = time.process_time()
        scores = agent.change_objective(config)
        took.append(time.process_time() - before_s)
        assert len(scores) >= SPECTRA - 1, f"{config.kind}: {len(scores)} of {SPECTRA} could be read"
    return 1e3 * min(took)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments.add_argument("--quick", action="store_true", help="repeat once")
    said = arguments.parse_args()
    rng, figures = np.random.default_rng(SEED), {}
    of_energies, of_bias = spectra(rng), loops(rng)
    with tempfile.TemporaryDirectory() as folder:
        for kind, config in configurations(Path(folder)).items():
            kept = of_bias if kind.endswith(("area", "bias", "response")) else of_energies
            repeats = 1 if said.quick or kind == "file" else 9
            figures[f"{kind}_ms_400"] = round(cost_ms(config, kept, repeats), 1)
            print(f"{kind:20} {figures[f'{kind}_ms_400']:8.1f} ms", flush=True)
    if said.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
