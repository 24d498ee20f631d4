"""What a person changes of an agent while it works: another goal, objective or policy, with all it was told.

A steered agent is a new one that takes over from the old: its measurements, what is under way and what it has
in view. So it is bit for bit the agent that the same records make in a restart, or decided again.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec
from numpy.typing import NDArray

from agents.config import with_settings
from agents.policies import make_agent
from agents.protocol import Agent
from agents.site_agent import SiteAgent
from agents.snapshot import settings_of
from streamer.messages import Score


def steered(agent: Agent, settings: dict[str, Any]) -> tuple[Agent, tuple[Score, ...]]:
    """Make the agent that goes on with other settings.

    Parameters
    ----------
    agent
        Who decided so far; it is left as it is.
    settings
        As in ``Control``: what replaces the same keys of the configuration.

    Returns
    -------
    agent
        Who decides from now on.
    scores
        Every measurement scored anew, where what is looked for has changed; else none.

    Raises
    ------
    ValueError
        In one line, if the settings cannot be used; the old agent goes on.
    """
    new = _anew(agent, settings)
    return new, new.take_over(_own(agent))


def policy_after(agent: Agent, changes: Iterable[dict[str, Any]]) -> str:
    """Say under which policy an agent goes on after changes; one that cannot be used changes nothing."""
    for settings in changes:
        with suppress(ValueError):
            agent = _anew(agent, settings)
    return agent.policy


def gone_on_from(agent: Agent, facts: bytes, arrays: dict[str, NDArray[Any]]) -> Agent:
    """Make the agent that a checkpoint is of, steered as it was then.

    Parameters
    ----------
    agent
        As configured; it is left as it is where another one is made.
    facts, arrays
        Of ``Agent.checkpoint``.

    Raises
    ------
    ValueError
        If the checkpoint cannot be used, with the reason.
    """
    settings = settings_of(facts) if isinstance(agent, SiteAgent) else {}
    if settings:
        old = _own(agent)
        agent = make_agent(with_settings(old.config, settings), old.seed)
        agent.settings = settings
    agent.restore(facts, arrays)
    return agent


def _anew(agent: Agent, settings: dict[str, Any]) -> SiteAgent:
    """Make an agent with other settings, that knows nothing yet."""
    old = _own(agent)
    new = make_agent(with_settings(old.config, settings), old.seed)
    # In full: of two changes of one table, the second alone would lose the first.
    table = msgspec.to_builtins(new.config)
    new.settings = {name: table[name] for name in {**old.settings, **settings}}
    return new


def _own(agent: Agent) -> SiteAgent:
    if not isinstance(agent, SiteAgent):
        raise ValueError(f"the policy {agent.policy} cannot be changed while it works; start it anew")
    return agent
