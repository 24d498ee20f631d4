"""An agent on the wire: messages in, suggestions out, thinking in between."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog

from agents.history import History
from agents.protocol import Agent, Input, UnknownOutcome
from agents.steering import steered
from streamer.link import Link
from streamer.messages import (
    Ack,
    AnyMessage,
    Bye,
    Checkpoint,
    Control,
    Enough,
    Latents,
    Outcome,
    Score,
    StrainMap,
    Suggestion,
)

# Asked this often whether to stop; a message ends the wait at once.
TURN_S = 0.2
MAX_TOLD_AT_ONCE = 256


def serve(
    agent: Agent,
    link: Link,
    stop: Callable[[], bool],
    *,
    checkpoint_every: int = 64,
    give_up_s: float = 600.0,
) -> str:
    """Serve the session until the streamer says Bye or ``stop`` says so.

    In each turn the agent is told everything that waits, in order, and takes up the fits whose time has come;
    then it is asked, on the newest frame alone; then, with its answers on their way, it begins the next fit.
    So what it does follows from the order of the messages and from no clock. An agent that comes back is
    first told what an earlier process of its name was told and decided, and goes on where that one was.

    Parameters
    ----------
    agent, link
        Who decides, and the way to the streamer; the link stays open.
    stop
        Asked a few times a second.
    checkpoint_every
        Messages told between two checkpoints; as many as there are measurements, once that is more, so
        that what a checkpoint costs for each message does not grow.
    give_up_s
        How long to wait for a streamer that says nothing: it may be started again.

    Returns
    -------
    reason
        Why it ended, in the streamer's words.

    Raises
    ------
    ConnectionError
        If there is no streamer of this session any more.
    """
    conversation = _Conversation(agent, link, checkpoint_every)
    return conversation.take_up(stop) or conversation.go_on(stop, give_up_s)


class _Conversation:
    def __init__(self, agent: Agent, link: Link, checkpoint_every: int) -> None:
        self._agent = agent
        self._link = link
        self._checkpoint_every = checkpoint_every
        self._told = 0  # number of the last record that the agent was told
        self._told_since = 0  # the last checkpoint, so many messages
        self._ahead: AnyMessage | None = None  # came when the history was looked for
        self._said_enough = ""
        self._log = structlog.get_logger()

    # -- history -------------------------------------------------------------------------------

    def take_up(self, stop: Callable[[], bool]) -> str:
        """Come to where an earlier process was; return why it ended, if it did before."""
        last = self._link.welcome.history_record
        if not last:
            return ""
        history = History(self._agent)
        while self._link.last_record < last:
            if stop():
                return "stopped"
            before = self._link.last_record
            message = self._link.receive(TURN_S)
            if isinstance(message, Bye):
                return message.reason or "the session ended"
            if message is None or self._link.last_record == before:  # nothing, or no record
                continue
            if self._link.last_record > last:
                self._ahead = message
            else:
                history.take(self._link.last_record, message)
        history.finish()
        self._go_on_from(history)
        return ""

    def _go_on_from(self, history: History) -> None:
        """Do what the earlier process still owed: scores, suggestions and fits."""
        self._agent = history.agent
        self._told, self._told_since = history.told, history.count
        if history.problem:
            self._log.warning("checkpoint not used", reason=history.problem)
        self._log.info(
            "history taken in",
            told=history.told,
            messages=history.count,
            passed_over=history.passed_over,
            **self._agent.statistics(),
        )
        for score in history.unsaid:
            self._link.send(score)
        self._adopt()
        self._ask()
        self._agent.think()

    # -- turns ---------------------------------------------------------------------------------

    def go_on(self, stop: Callable[[], bool], give_up_s: float) -> str:
        """Take turns until the end; return why it ended."""
        while not stop():
            ended = self._hear()
            if ended is not None:
                return ended.reason
            if self._link.silent_s > give_up_s:
                raise ConnectionError(
                    f"the streamer has said nothing for {give_up_s:g} s; see whether it still runs, then "
                    "start the agent again: it goes on where it was"
                )
            self._ask()
            self._agent.think()
            self._keep()
        return "stopped"

    def _hear(self) -> Bye | None:
        """Wait for a message and tell the agent all that wait with it, in order; stop at a Bye."""
        timeout_s = TURN_S
        for _ in range(MAX_TOLD_AT_ONCE):
            message = self._ahead or self._link.receive(timeout_s)
            self._ahead, timeout_s = None, 0.0
            if message is None or isinstance(message, Bye):
                return message
            self._take(message)
        return None

    def _take(self, message: AnyMessage) -> None:
        match message:
            case Latents() | StrainMap() | Outcome() | Control() | Suggestion():
                self._told = self._link.last_record
                self._told_since += 1
                if isinstance(message, Control):
                    self._steer(message)
                else:
                    self._tell(message)
            case Ack(status="refused"):
                self._log.warning("message refused", reason=message.reason)
            case _:
                pass

    def _tell(self, message: Input) -> None:
        """Tell the agent; report the score, or say why there is none."""
        try:
            score = self._agent.tell(message)
        except UnknownOutcome as error:
            self._log.warning("outcome not taken", reason=str(error))
            return
        self._adopt()
        if score is not None:
            self._say(score)
        elif isinstance(message, Outcome) and message.action == "spectrum":
            self._log.warning(
                "no score", id=message.id, status=message.status, reason=self._why_no_score(message)
            )

    def _why_no_score(self, outcome: Outcome) -> str:
        if outcome.status != "ok":
            return outcome.reason
        return "the outcome has no spectrum" if outcome.spectrum is None else self._agent.last_unreadable

    def _say(self, score: Score) -> None:
        self._link.send(score)
        self._log.info(
            "scored", id=score.id, value=score.value, sd=score.variance**0.5, objective=score.objective
        )

    def _steer(self, control: Control) -> None:
        """Go on as a person wants; where that cannot be, go on as before and say why."""
        try:
            self._agent, scores = steered(self._agent, control.settings)
        except ValueError as error:
            self._log.warning("not steered", settings=control.settings, reason=str(error))
            return
        self._log.info("steered", settings=control.settings, by=control.reason)
        for score in scores:
            self._say(score)

    def _ask(self) -> None:
        """Ask until there is no more to suggest; where there will be none, say why, once."""
        while (suggestion := self._agent.ask()) is not None:
            self._link.send(msgspec.structs.replace(suggestion, told=self._told))
            self._log.info(
                "suggested", id=suggestion.id, position_nm=suggestion.position_nm, reason=suggestion.reason
            )
        self._say_enough()

    def _say_enough(self) -> None:
        reason = self._agent.stopped
        if reason and reason != self._said_enough:
            session = self._link.welcome.session
            self._link.send(
                Enough(session=session, policy=self._agent.policy, told=self._told, reason=reason)
            )
            self._log.info("enough", reason=reason)
        self._said_enough = reason

    def _adopt(self) -> None:
        """Go on with the fits whose time has come."""
        while (fit := self._agent.refit()) is not None:
            self._link.send(msgspec.structs.replace(fit, told=self._told))
            self._log.info("model refitted", revision=fit.revision, observations=fit.observations)

    def _keep(self) -> None:
        """Send a checkpoint, when enough was told since the last."""
        measured = self._agent.statistics().get("ok", 0)
        if self._told_since < max(self._checkpoint_every, measured):
            return
        facts, arrays = self._agent.checkpoint()
        self._link.send(
            Checkpoint(
                session=self._link.welcome.session,
                of=self._link.name,
                told=self._told,
                facts=facts,
                arrays=arrays,
            )
        )
        self._told_since = 0
