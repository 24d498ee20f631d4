"""An agent that tells when it has nothing left to do, so that a test can go in lock-step with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from agents.protocol import Agent
from streamer.messages import Latents, ModelRevision, Outcome, Score, Suggestion


class Watched:
    """Passes everything on to an agent, and writes down what it was told before it came to rest.

    Parameters
    ----------
    agent
        Who decides.
    path
        Where it is written: the id of the last outcome and the number of the last frame.
    """

    def __init__(self, agent: Agent, path: Path) -> None:
        self._agent = agent
        self._path = path
        self._last = ["", "-1"]

    @property
    def policy(self) -> str:
        return self._agent.policy

    @property
    def stopped(self) -> str:
        return self._agent.stopped

    @property
    def last_unreadable(self) -> str:
        return self._agent.last_unreadable

    def tell(self, message: Latents | Outcome, /) -> Score | None:
        if isinstance(message, Latents):
            self._last[1] = str(message.number)
        else:
            self._last[0] = message.id
        return self._agent.tell(message)

    def ask(self) -> Suggestion | None:
        return self._agent.ask()

    def think(self) -> None:
        self._agent.think()
        # The last thing in a turn.
        part = self._path.with_suffix(f".{os.getpid()}")
        part.write_text(" ".join(self._last))
        part.replace(self._path)

    def refit(self) -> ModelRevision | None:
        return self._agent.refit()

    def recall(self, decision: Suggestion | ModelRevision, /) -> None:
        self._agent.recall(decision)

    def checkpoint(self) -> tuple[bytes, dict[str, NDArray[Any]]]:
        facts, arrays = self._agent.checkpoint()
        return msgspec.msgpack.encode((self._last, facts)), arrays

    def restore(self, facts: bytes, arrays: dict[str, NDArray[Any]], /) -> None:
        self._last, inner = msgspec.msgpack.decode(facts, type=tuple[list[str], bytes])
        self._agent.restore(inner, arrays)

    def statistics(self) -> dict[str, int]:
        return self._agent.statistics()
