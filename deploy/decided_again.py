"""Why a recorded session went where it went: an agent told the same weighs each of its suggestions again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agents.config import AgentConfig
from agents.explanation import ALTERNATIVES, Explanation
from agents.history import History
from agents.policies import make_agent
from agents.protocol import Agent, Decision
from agents.site_agent import SiteAgent
from deploy.agent_records import records_of_agent
from streamer.messages import Suggestion


@dataclass(frozen=True, slots=True, kw_only=True)
class WeighedAgain:
    """A recorded suggestion, and why.

    Attributes
    ----------
    suggestion
        As recorded.
    explanation
        By the numbers of this version of the program; None where it would go somewhere else now: another
        version, or another configuration, made the suggestion.
    """

    suggestion: Suggestion
    explanation: Explanation | None


def weighed_again(
    folder: Path, config: AgentConfig, alternatives: int = ALTERNATIVES
) -> Iterator[WeighedAgain]:
    """Tell an agent what the one of a session was told, and weigh each of its suggestions anew.

    Fits are not made again but taken from the journal, and so is what was suggested: the agent follows the
    session also where it would decide otherwise now.

    Parameters
    ----------
    folder
        Of the session.
    config
        Of its agent, as the session began.
    alternatives
        As in ``SiteAgent.explain``.

    Raises
    ------
    FileNotFoundError
        If the folder holds no journal.
    """
    found: list[WeighedAgain] = []

    def decide(agent: Agent, decision: Decision) -> None:
        if isinstance(decision, Suggestion):
            found.append(WeighedAgain(suggestion=decision, explanation=_why(agent, decision, alternatives)))
        agent.recall(decision)

    history = History(make_agent(config), decide)
    for number, message in records_of_agent(folder, config.policy):
        history.take(number, message)
        yield from found
        found.clear()


def _why(agent: Agent, recorded: Suggestion, alternatives: int) -> Explanation | None:
    now = agent.consider() if isinstance(agent, SiteAgent) else None
    if now is None or not isinstance(agent, SiteAgent):
        return None
    if (now.action, now.position_nm) != (recorded.action, recorded.position_nm):
        return None
    # A scan is of a region: no site was weighed.
    return agent.explain(alternatives) or Explanation(reason=now.reason, offered=0)
