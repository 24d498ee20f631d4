"""When enough was measured, and why."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec


class StoppingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """After what the agent suggests no more; 0 leaves a rule out.

    Attributes
    ----------
    measurements
        So many spectra that gave a value.
    improvement_below
        The largest expected improvement of any site is below this part of the best value.
    improvement_in_a_row
        After so many measurements one after the other.
    plateau_measurements
        So many measurements without a better one.
    map_sd_below
        The sd of the forecast, root mean square over all sites, in the unit of the objective: for the goal
        ``map``.
    classified_share
        Share of the sites that lie on one side of the level for sure, 95 % each: for the goal ``level_set``.
    """

    measurements: int = 0
    improvement_below: float = 0.0
    improvement_in_a_row: int = 5
    plateau_measurements: int = 0
    map_sd_below: float = 0.0
    classified_share: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("measurements", 0, 10**9),
            ("improvement_below", 0, 1),
            ("improvement_in_a_row", 1, 10**6),
            ("plateau_measurements", 0, 10**9),
            ("map_sd_below", 0, math.inf),
            ("classified_share", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"agent.stopping.{name} is {value}; it takes {low:g} to {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far an agent has come; what its policy or goal does not know is None.

    Attributes
    ----------
    measured
        Spectra that gave a value.
    since_better
        Measurements since the last one that was better than all before it.
    gain
        Gives the largest expected improvement of any site, and on what, in the unit of the objective.
    map_sd
        Gives the sd of the sites that were not measured, root mean square.
    classified, level
        Gives the share of these that are on one side of the level.
    """

    measured: int
    since_better: int | None = None
    gain: Callable[[], tuple[float, float]] | None = None
    map_sd: Callable[[], float] | None = None
    classified: Callable[[], float] | None = None
    level: float = math.nan


class StoppingState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a ``Stopping`` knows, and the rules that it went by."""

    config: StoppingConfig
    reason: str
    hopeless: int


class Stopping:
    """Decides after each outcome whether it is enough; once it is, it stays so.

    Attributes
    ----------
    reason
        Why nothing more is suggested; empty while there is.
    """

    def __init__(self, config: StoppingConfig) -> None:
        self._config = config
        self.reason = ""
        self._hopeless = 0  # measurements in a row after which no site promised enough

    def consider(self, standing: Standing) -> None:
        """Look whether it is enough now."""
        if self._config.improvement_below and standing.gain is not None:
            gain, best = standing.gain()
            self._hopeless = self._hopeless + 1 if gain < self._config.improvement_below * abs(best) else 0
        self.reason = self.reason or self._why(standing)

    def _why(self, standing: Standing) -> str:
        config = self._config
        if 0 < config.measurements <= standing.measured:
            return f"{standing.measured} spectra were measured, as many as asked for"
        if self._hopeless >= config.improvement_in_a_row:
            return (
                f"after each of the last {self._hopeless} measurements no site promised to improve on the "
                f"best by {config.improvement_below:.2g} of it"
            )
        if standing.since_better is not None and 0 < config.plateau_measurements <= standing.since_better:
            return f"nothing better came in the last {standing.since_better} measurements"
        if config.map_sd_below and standing.map_sd is not None:
            sd = standing.map_sd()
            if sd <= config.map_sd_below:
                return f"the map is known to ± {sd:.2g}, and ± {config.map_sd_below:.2g} was asked for"
        if config.classified_share and standing.classified is not None:
            share = standing.classified()
            if share >= config.classified_share:
                return f"{share:.1%} of the sites are on one side of {standing.level:.3g} for sure"
        return ""

    def begin_anew(self) -> None:
        """Go on: something else is looked for."""
        self.reason, self._hopeless = "", 0

    def state(self) -> StoppingState:
        """Say what it knows."""
        return StoppingState(config=self._config, reason=self.reason, hopeless=self._hopeless)

    def restore(self, state: StoppingState) -> None:
        """Be as the one that said this; under other rules than its own it begins anew."""
        self.begin_anew()
        if state.config == self._config:
            self.reason, self._hopeless = state.reason, state.hopeless
