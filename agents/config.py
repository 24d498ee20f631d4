"""What an agent is told before it starts: the ``[agent]`` table of the configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from agents.cost import CostConfig
from agents.next_scan import ScanConfig
from agents.objective import ObjectiveConfig
from agents.stall import StallConfig
from agents.stopping import StoppingConfig
from streamer.config_file import read_config

GoalName = Literal["maximise", "minimise", "map", "level_set", "discover", "match", "trade_off"]
Direction = Literal["maximise", "minimise", "neither"]
PolicyName = Literal["explorer", "raster", "random", "strain"]
# Objectives that may say how like a target a spectrum is.
LIKENESS = ("similarity", "file", "value")
# What a session's ids, encoder and checkpoints hang on cannot change while it runs.
FIXED = ("seed", "encoder", "checkpoint_every")
FeatureName = Literal[
    "position",
    "latents",
    "latents + angle",
    "latents + position",
    "latents * position",
    "trend + position",
    "windows",
    "windows + position",
]
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


class TradeOffConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which way each of two objectives is good.

    Attributes
    ----------
    first, second
        Of ``objective`` and of ``second_objective``.
    is_planned
        Let BoTorch plan four measurements at a time, beside the work; it takes its memory.
    """

    first: Literal["maximise", "minimise"] = "maximise"
    second: Literal["maximise", "minimise"] = "maximise"
    is_planned: bool = True


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
        ``maximise`` and ``minimise``: the largest or smallest objective; ``map``: know it everywhere;
        ``level_set``: where it crosses ``level``; ``discover``: what the encoder has seen nothing like;
        ``match``: spectra like the target of the objective ``similarity``; ``trade_off``: sites that are good
        by both objectives, where neither can be had without loss in the other. See ``docs/agents.md``.
    features
        What the explorer learns over; with several, a model of each, side by side, weighted by how well it
        foretells what is measured. See ``docs/agents.md``.
    angle_fold
        In how many turns around a content comes back to itself, for ``latents + angle``: 3 for a site of
        three-fold symmetry.
    level
        Of ``level_set``, in the unit of the objective.
    site_weight
        Of ``map`` and ``level_set``: sites count by how many are like them (``density``), or all alike
        (``none``).
    batch
        Of ``maximise``, ``minimise`` and ``match``, with several suggestions under way: ``greedy`` takes
        those as if they had come as forecast; ``thompson`` draws a possible map for each.
    stopping, stall
        After what nothing more is suggested; when the search widens.
    trade_off
        Which way each objective of a ``trade_off`` is good.
    objective
        What a spectrum is worth.
    second_objective
        Something else that is read from every spectrum, for the goals that weigh two.
    strain
        What the policy ``strain`` looks for.
    scan
        Whether parts of the field where the structure changes or is novel are scanned again.
    cost
        What the time of a measurement counts against what it promises.
    dwell_time_us
        Exposure asked for each spectrum, unless ``cost`` says to choose it.
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
    goal: GoalName = "maximise"
    features: tuple[FeatureName, ...] = ("latents + position",)
    angle_fold: int = 1
    level: float | None = None
    site_weight: Literal["density", "none"] = "density"
    batch: Literal["greedy", "thompson"] = "greedy"
    stopping: StoppingConfig = StoppingConfig()
    stall: StallConfig = StallConfig()
    trade_off: TradeOffConfig = TradeOffConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    second_objective: ObjectiveConfig | None = None
    strain: StrainConfig = StrainConfig()
    scan: ScanConfig = ScanConfig()
    cost: CostConfig = CostConfig()
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
    initial_points: int = 5
    refit_every: int = 3
    raster_step: int = 25
    checkpoint_every: int = 64

    def __post_init__(self) -> None:
        _check_range("seed", self.seed, 0, 2**63 - 1)
        if not self.features or len(set(self.features)) < len(self.features):
            raise ValueError(f"agent.features is {list(self.features)}; it takes one set or more, each once")
        _check_range("angle_fold", self.angle_fold, 1, 64)
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
        objectives = (self.objective, self.second_objective)
        counts = [one for one in objectives if one and (one.kind, one.normalise) == ("band_integral", "none")]
        if self.cost.dwell_noise_part and counts:
            raise ValueError(
                "agent.cost.dwell_noise_part chooses exposures, and counts that are not normalised grow with "
                "them; set agent.objective.normalise to 'total' or 'reference'"
            )
        self._check_goal()

    @property
    def sees_windows(self) -> bool:
        """Does it learn over the windows themselves? Then the streamer must send them."""
        return any(map(of_windows, self.features))

    def _check_goal(self) -> None:
        if self.goal == "level_set" and (self.level is None or not math.isfinite(self.level)):
            raise ValueError(
                f"agent.level is {self.level}; the goal level_set takes a number in the unit of the objective"
            )
        if self.goal == "match" and self.objective.kind not in LIKENESS:
            raise ValueError(
                f"agent.objective.kind is {self.objective.kind!r}; the goal match takes 'similarity' with a "
                "target, or a number of your own that says how alike a spectrum is"
            )
        if self.goal == "trade_off" and self.second_objective is None:
            raise ValueError(
                "agent.second_objective is missing; the goal trade_off takes a table "
                "[agent.second_objective] beside [agent.objective]"
            )


def of_windows(name: FeatureName) -> bool:
    """Say whether a set of features is made of the windows themselves."""
    return name.startswith("windows")


def direction_of(goal: GoalName) -> Direction:
    """Say whether a goal has a best value: the largest, the smallest, or neither."""
    if goal == "match":
        return "maximise"
    return goal if goal in ("maximise", "minimise") else "neither"


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
    said = {"policy": policy, "seed": seed}
    return _merged(config, {key: value for key, value in said.items() if value is not None})


def with_settings(config: AgentConfig, settings: Mapping[str, Any]) -> AgentConfig:
    """Put what a person says while the agent works in the place of what the file says.

    Parameters
    ----------
    config
        As it is now.
    settings
        Keys of ``[agent]``; a table in it replaces those of its keys that it names.

    Raises
    ------
    ValueError
        In one line, naming the key, if it is not known, not in range, or fixed for a session.
    """
    fixed = [key for key in FIXED if key in settings]
    if fixed:
        raise ValueError(f"agent.{fixed[0]} is fixed for a session; it is said in the configuration")
    return _merged(config, settings)


def _merged(config: AgentConfig, said: Mapping[str, Any]) -> AgentConfig:
    table = msgspec.to_builtins(config)
    for key, value in said.items():
        _check_choice(key, value)
        before = table.get(key)
        is_table = isinstance(value, Mapping) and isinstance(before, dict)
        # What one kind of objective reads says nothing to another.
        is_of_another_kind = is_table and value.get("kind", before.get("kind")) != before.get("kind")
        table[key] = {**before, **value} if is_table and not is_of_another_kind else value
    try:
        return msgspec.convert(table, AgentConfig)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _check_choice(key: str, value: object) -> None:
    """Refuse a word that is none of those that a key takes, and name these."""
    hint = get_type_hints(AgentConfig).get(key)
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise ValueError(f"agent.{key} is {value}; it takes {', '.join(map(str, get_args(hint)))}")
