"""What an agent was told and decided, told again: how it comes back, and how a session is decided anew."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable

from agents.protocol import Agent, Decision, Input, UnknownOutcome
from agents.steering import gone_on_from, policy_after, steered
from streamer.messages import (
    AnyMessage,
    Checkpoint,
    Control,
    Latents,
    ModelRevision,
    Outcome,
    Score,
    StrainMap,
    Suggestion,
)
from streamer.oversight import BY_A_PERSON


def recall(agent: Agent, decision: Decision) -> None:
    """Let the agent take in what was decided; what to do in a restart."""
    agent.recall(decision)


class History:
    """Tells an agent the records of a journal as they were told when they were new.

    The journal has the messages in the order of their arrival, and a decision after everything that
    arrived while it was made. ``told`` in each decision says what went before it, so that the agent comes
    by the same steps to the same state, however many messages it was told at a time.

    Parameters
    ----------
    agent
        As it was before the first record; a Checkpoint among the records replaces what it knows, and a
        Control that steers it makes another one of it.
    decide
        What to do where a decision was made. Instead of recalling it one may ask the agent
        (``agent.ask()``, ``agent.refit()``), and compare.

    Attributes
    ----------
    agent
        Who decides after what was taken.
    told
        Number of the last record that the agent knows of.
    count
        How many messages it was told since the last checkpoint.
    scores
        What it said to each outcome that it was told, by id: one, and one more each time that a person
        changed what is looked for.
    recorded
        How many Scores of each id are among the records.
    passed_over
        How many outcomes answered nobody's suggestion, settings could not be used, and decisions were
        another agent's.
    problem
        Why a checkpoint could not be used; empty if none was or all could.

    Examples
    --------
    >>> from agents.config import AgentConfig
    >>> from agents.policies import make_agent
    >>> history = History(make_agent(AgentConfig(policy="raster")))
    >>> history.take(7, Outcome(session="s", id="of another agent", status="refused"))
    >>> history.finish()
    >>> history.told, history.passed_over
    (7, 1)
    """

    def __init__(self, agent: Agent, decide: Callable[[Agent, Decision], None] = recall) -> None:
        self.told = 0
        self.count = 0
        self.scores: defaultdict[str, list[Score]] = defaultdict(list)
        self.recorded: Counter[str] = Counter()
        self.passed_over = 0
        self.problem = ""
        self.agent = agent
        self._decide = decide
        self._untold: deque[tuple[int, Input | Control]] = deque()
        self._restored_at = 0

    def take(self, number: int, message: AnyMessage) -> None:
        """Take in the next record of the journal; what concerns no agent is left alone.

        Parameters
        ----------
        number
            Of the record; they rise, but for that of a Checkpoint, which may come before its turn.
        message
            What is in it. A Checkpoint is taken for this agent's own.
        """
        match message:
            case Latents() | StrainMap() | Outcome() | Control(action="steer"):
                self._untold.append((number, message))
            case Suggestion(policy=policy) if policy == BY_A_PERSON:
                self._untold.append((number, message))
            case Suggestion() | ModelRevision():
                self._take_decision(number, message)
            case Score():
                self.recorded[message.id] += 1
            case Checkpoint():
                self._restore(number, message)
            case _:
                pass

    def finish(self) -> None:
        """Tell what came after the last decision."""
        while self._untold:
            self._tell(*self._untold.popleft())

    @property
    def unsaid(self) -> list[Score]:
        """The scores that no record has."""
        return [score for name, said in self.scores.items() for score in said[self.recorded[name] :]]

    def _take_decision(self, number: int, decision: Decision) -> None:
        if decision.policy != self._policy_by(decision.told):
            self.passed_over += 1
            return
        if number <= self._restored_at:  # the checkpoint has it
            return
        while self._untold and self._untold[0][0] <= decision.told:
            self._tell(*self._untold.popleft())
        self._decide(self.agent, decision)

    def _policy_by(self, told: int) -> str:
        """Say under which policy it decides once it is told the records up to this one."""
        untold = [message for number, message in self._untold if number <= told]
        return policy_after(self.agent, [one.settings for one in untold if isinstance(one, Control)])

    def _restore(self, number: int, checkpoint: Checkpoint) -> None:
        try:
            self.agent = gone_on_from(self.agent, checkpoint.facts, checkpoint.arrays)
        except ValueError as error:
            self.problem = str(error)
            return
        self.problem = ""
        self.told, self.count, self._restored_at = checkpoint.told, 0, number

    def _tell(self, number: int, message: Input | Control) -> None:
        if number <= self.told:  # the checkpoint has it
            return
        self.told = number
        self.count += 1
        for score in self._answer(message):
            self.scores[score.id].append(score)

    def _answer(self, message: Input | Control) -> tuple[Score, ...]:
        """Tell the agent, or steer it; what it could not use then it cannot use now."""
        if isinstance(message, Control):
            return self._steer(message)
        try:
            score = self.agent.tell(message)
        except UnknownOutcome:
            self.passed_over += 1
            return ()
        return () if score is None else (score,)

    def _steer(self, control: Control) -> tuple[Score, ...]:
        try:
            self.agent, scores = steered(self.agent, control.settings)
        except ValueError:
            self.passed_over += 1
            return ()
        return scores


def replay(
    agent: Agent,
    records: Iterable[tuple[int, AnyMessage]],
    decide: Callable[[Agent, Decision], None] = recall,
) -> History:
    """Tell an agent a whole history; see ``History``."""
    history = History(agent, decide)
    for number, message in records:
        history.take(number, message)
    history.finish()
    return history
