"""What an agent is told before it starts: the ``[agent]`` table of the configuration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, get_args

import msgspec

from agents.objective import ObjectiveConfig
from streamer.config_file import read_config

PolicyName = Literal["explorer", "raster", "random", "strain"]
StrainMeasure = Literal["shear", "principal"]


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"agent.{name} is {value}; it takes {low} to {high}")


class StrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the policy ``strain`` looks for on the map of the specimen's strain.

    Attributes
    ----------
    measure
        ``shear``: the largest shear, which needs no calibrated pixel size; ``principal``: the larger
        principal strain by its size.
    sd_weight
        Standard deviations that are added to it: 0 goes where the strain is largest, much where it is
        known least.
    """

    measure: StrainMeasure = "shear"
    sd_weight: float = 1.0

    def __post_init__(self) -> None:
        _check_range("strain.sd_weight", self.sd_weight, 0, 1000)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the next measurement is chosen.

    Attributes
    ----------
    policy
        ``explorer`` learns where it pays to measure; ``strain`` goes where the specimen is strained most
        or its strain is known least; ``raster`` and ``random`` are the baselines.
    seed
        Of every random choice; it is part of each suggestion's id.
    goal
        Look for the largest or the smallest objective.
    objective
        What a spectrum is worth.
    strain
        What the policy ``strain`` looks for.
    dwell_time_us
        Exposure asked for each spectrum.
    max_pending
        Suggestions that may wait for their outcomes at one time.
    max_per_frame
        Suggestions decided on one frame, so that drift and damage are seen between them; 0 is without
        limit.
    max_suggestions
        End of the experiment as far as the agent goes; 0 leaves it to the streamer.
    encoder
        Whose latents are decided on: the name of one beside the main encoder; empty for the main one.
    min_confidence
        Atoms that the finder is less sure of are no candidates.
    min_distance_nm
        Sites nearer than this are the same site: measured once, they are left alone.
    max_miss_nm
        A beam further than this from every atom taught nothing about one.
    retry_after_suggestions
        A site that was refused or failed is left alone for so many suggestions, longer each time.
    max_refusals_per_frame
        After so many refusals in a row the agent waits for the next frame.
    initial_points
        First measurements of the explorer, spread over the latents before it trusts its model.
    refit_every
        Measurements between two fits of the model's hyperparameters; a quarter of those made, once
        that is more.
    raster_step
        The raster measures one atom in so many, in reading order, then those between.
    checkpoint_every
        Messages between two checkpoints of what the agent knows, for a restart; as many as there are
        measurements, once that is more.
    """

    policy: PolicyName = "explorer"
    seed: int = 0
    goal: Literal["maximise", "minimise"] = "maximise"
    objective: ObjectiveConfig = ObjectiveConfig()
    strain: StrainConfig = StrainConfig()
    dwell_time_us: float = 100_000.0
    max_pending: int = 2
    max_per_frame: int = 1
    max_suggestions: int = 0
    encoder: str = ""
    min_confidence: float = 0.5
    min_distance_nm: float = 0.07
    max_miss_nm: float = 0.15
    retry_after_suggestions: int = 4
    max_refusals_per_frame: int = 3
    initial_points: int = 8
    refit_every: int = 4
    raster_step: int = 25
    checkpoint_every: int = 64

    def __post_init__(self) -> None:
        _check_range("seed", self.seed, 0, 2**63 - 1)
        _check_range("max_pending", self.max_pending, 1, 64)
        _check_range("max_per_frame", self.max_per_frame, 0, 10**6)
        _check_range("max_suggestions", self.max_suggestions, 0, 10**9)
        _check_range("min_confidence", self.min_confidence, 0, 1)
        _check_range("min_distance_nm", self.min_distance_nm, 0, 1000)
        _check_range("max_miss_nm", self.max_miss_nm, 0, 1000)
        _check_range("retry_after_suggestions", self.retry_after_suggestions, 1, 10**9)
        _check_range("max_refusals_per_frame", self.max_refusals_per_frame, 1, 10**6)
        _check_range("initial_points", self.initial_points, 1, 1000)
        _check_range("refit_every", self.refit_every, 1, 1000)
        _check_range("raster_step", self.raster_step, 1, 10**6)
        _check_range("checkpoint_every", self.checkpoint_every, 1, 10**6)
        if not (math.isfinite(self.dwell_time_us) and self.dwell_time_us > 0):
            raise ValueError(f"agent.dwell_time_us is {self.dwell_time_us}; it takes a number above 0")


def load_agent_config(path: Path | None) -> AgentConfig:
    """Read the ``[agent]`` table of a TOML file; the defaults where there is no file or table.

    Raises
    ------
    ConfigError
        In one line, naming the file and the key, if it cannot be used.
    """
    return read_config(path, "agent", AgentConfig)


def overridden(config: AgentConfig, *, policy: str | None, seed: int | None) -> AgentConfig:
    """Put what the command line says in the place of what the file says; None leaves it.

    Raises
    ------
    ValueError
        In one line, naming the key, if it is not in range.
    """
    if policy is not None and policy not in get_args(PolicyName):
        raise ValueError(f"agent.policy is {policy}; it takes {', '.join(get_args(PolicyName))}")
    said = {"policy": policy, "seed": seed}
    table = msgspec.to_builtins(config) | {key: value for key, value in said.items() if value is not None}
    try:
        return msgspec.convert(table, AgentConfig)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
