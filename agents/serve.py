"""An agent on the wire: messages in, suggestions out, thinking in between."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from agents import lazy_botorch
from agents.protocol import Agent, UnknownOutcome
from streamer.messages import AnyMessage, Bye, Latents, Outcome
from streamer.wire import Link

# Asked this often whether to stop; a message ends the wait at once.
TURN_S = 0.2
MAX_TOLD_AT_ONCE = 256


def serve(
    agent: Agent, link: Link, stop: Callable[[], bool], prepare: Callable[[], object] = lambda: None
) -> str:
    """Serve the session until the streamer says Bye or ``stop`` says so.

    In each turn the agent is told everything that waits, in order; then it is asked, on the newest frame
    alone; then, with its answers on their way, it thinks. So what it does follows from the order of the
    messages and from no clock.

    Parameters
    ----------
    agent, link
        Who decides, and the way to the streamer; the link stays open.
    stop
        Asked a few times a second.
    prepare
        Called once, when the first suggestion is on its way.

    Returns
    -------
    reason
        Why it ended, in the streamer's words.
    """
    log = structlog.get_logger()
    is_prepared = False
    while not stop():
        for message in _waiting(link):
            if isinstance(message, Bye):
                return message.reason
            if isinstance(message, Latents | Outcome):
                _tell(agent, link, message, log)
        while (suggestion := agent.ask()) is not None:
            link.send(suggestion)
            log.info(
                "suggested", id=suggestion.id, position_nm=suggestion.position_nm, reason=suggestion.reason
            )
            if not is_prepared:
                prepare()
                is_prepared = True
        if agent.refit():
            log.info("model refitted")
    return "stopped"


def _waiting(link: Link) -> list[AnyMessage]:
    """Wait for a message and take all that wait with it, in order."""
    messages: list[AnyMessage] = []
    message = link.receive(TURN_S)
    while message is not None:
        messages.append(message)
        if len(messages) >= MAX_TOLD_AT_ONCE:
            break
        message = link.receive(0)
    return messages


def _tell(
    agent: Agent, link: Link, message: Latents | Outcome, log: structlog.typing.FilteringBoundLogger
) -> None:
    """Tell the agent; report the score, or say why there is none."""
    try:
        score = agent.tell(message)
    except UnknownOutcome as error:
        log.warning("outcome not taken", reason=str(error))
        return
    if score is not None:
        link.send(score)
        log.info("scored", id=score.id, value=score.value, sd=score.variance**0.5, objective=score.objective)
    elif isinstance(message, Outcome):
        log.warning("no score", id=message.id, status=message.status, reason=_why_no_score(message))


def _why_no_score(outcome: Outcome) -> str:
    if outcome.status != "ok":
        return outcome.reason
    if outcome.spectrum is None:
        return "the outcome has no spectrum"
    last_ev = outcome.energy_offset_ev + outcome.energy_step_ev * (outcome.spectrum.size - 1)
    return (
        f"the objective cannot be read from the spectrum of {outcome.energy_offset_ev:g} to {last_ev:g} eV; "
        "check the windows of [agent.objective] and that its counts are finite"
    )


def load_models_in_background() -> None:
    """Import BoTorch beside the first measurements: seconds that the first suggestion need not wait for.

    The interpreter waits for the thread before it ends.
    """
    threading.Thread(target=lazy_botorch.load, name="import botorch").start()
