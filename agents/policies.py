"""The policies by name."""

from __future__ import annotations

from agents.config import AgentConfig
from agents.explorer import Explorer
from agents.random import Random
from agents.raster import Raster
from agents.site_agent import SiteAgent
from agents.strain import Strain

POLICIES: dict[str, type[SiteAgent]] = {kind.policy: kind for kind in (Explorer, Raster, Random, Strain)}


def make_agent(config: AgentConfig, seed: int | None = None) -> SiteAgent:
    """Make the agent that the configuration names; a seed given here is used in place of its own."""
    return POLICIES[config.policy](config, seed)


def name_of(policy: str) -> str:
    """Name the process whose configuration has this policy, also once it is steered to another."""
    return f"agent {policy}"
