"""A session of one agent in a journal, without instrument and pipeline, for tests of what is read from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from agents.config import AgentConfig
from agents.policies import make_agent
from agents.steering import gone_on_from, steered
from deploy.tables import to_toml
from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import Checkpoint, Control, Hello, Latents, Message, Suggestion
from tests.contract.test_agents import outcome


class RecordedAgent:
    """Measures 60 atoms whose value grows to the right, and records what a streamer would.

    Parameters
    ----------
    folder
        Where journal and ``config.toml`` go.
    settings
        Of the ``[agent]`` table.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.config = folder, msgspec.convert(settings, AgentConfig)
        self.journal = Journal(folder, JournalConfig())
        (folder / "config.toml").write_text(to_toml({"agent": settings}))
        self.agent = make_agent(self.config)
        self.suggestions: list[Suggestion] = []
        self.instance, self.sequence, self.told = "a1", 0, 0

    def join(self) -> None:
        self.record(Hello(role="agent", name="agent explorer", instance=self.instance))

    def record(self, message: Message, sender: str = "") -> int:
        self.sequence += bool(sender)
        parts = encode(message, sender=sender, sequence=self.sequence if sender else 0)
        return self.journal.append(parts, 1e9, kind=kind_of(message), monotonic_s=50.0)

    def see(self, frame: Latents) -> None:
        self.told = self.record(frame)
        self.agent.tell(frame)

    def measure(self, frame: Latents, **answer: Any) -> None:
        """See a frame, and let the agent take up its fit and ask for one measurement."""
        self.see(frame)
        while (fit := self.agent.refit()) is not None:
            self.record(replace(fit, told=self.told), self.instance)
        suggestion = self.agent.ask()
        assert suggestion is not None
        self.suggestions.append(replace(suggestion, told=self.told))
        self.record(self.suggestions[-1], self.instance)
        self.answer(suggestion, **answer)

    def answer(self, suggestion: Suggestion, **answer: Any) -> None:
        came = outcome(suggestion, **answer)
        self.told = self.record(came)
        score = self.agent.tell(came)
        if score is not None:
            self.record(score, self.instance)

    def steer(self, **settings: Any) -> None:
        control = Control(session="s", action="steer", settings=settings, reason="a better <idea>")
        self.told = self.record(control)
        self.agent, scores = steered(self.agent, settings)
        for score in scores:
            self.record(score, self.instance)

    def restart(self) -> int:
        """Let another process go on from a checkpoint; say its record."""
        facts, arrays = self.agent.checkpoint()
        kept = Checkpoint(session="s", of="agent explorer", told=self.told, facts=facts, arrays=arrays)
        record = self.record(kept, self.instance)
        self.agent = gone_on_from(make_agent(self.config), facts, arrays)
        self.instance = "a2"
        self.join()
        return record
