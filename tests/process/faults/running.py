"""A hub in a thread of the test, over real sockets: what is in it can be looked at, and replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamer.codec import pack
from streamer.config import ExperimentConfig, HubConfig
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.hub import Hub
from streamer.journal import Journal, JournalConfig, read_messages
from streamer.link import Link
from streamer.messages import AnyMessage, Role
from streamer.telemetry import Telemetry
from streamer.wire import Publisher, Router, Subscriber
from tests.process.faults.counting import SESSION, Counting

WAIT_S = 10.0


class Running:
    """A hub that runs, and everything that it stands on.

    Parameters
    ----------
    folder
        Of the session.
    processor
        In the place of the pipeline.
    hub, journal, envelope, experiment
        What is configured otherwise than by default.

    Attributes
    ----------
    state_before
        MessagePack of what the hub knew before it ran.
    fault, reason
        How it ended.
    """

    def __init__(
        self,
        folder: Path,
        *,
        processor: Any = None,
        hub: dict[str, Any] | None = None,
        journal: dict[str, Any] | None = None,
        envelope: dict[str, Any] | None = None,
        experiment: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.processor = processor or Counting()
        self.router = Router("tcp://127.0.0.1:0")
        self.publisher = Publisher("tcp://127.0.0.1:0")
        self.journal = Journal(folder, JournalConfig(**(journal or {})))
        self.telemetry = Telemetry()
        limits = {"beam_current_pa": 0.0, "max_rate_per_s": 1e6} | (envelope or {})
        self.hub = Hub(
            session=SESSION,
            router=self.router,
            publisher=self.publisher,
            journal=self.journal,
            envelope=Envelope(EnvelopeConfig(**limits)),
            telemetry=self.telemetry,
            processor=self.processor,
            hub_config=HubConfig(**({"last_words_s": 0.1} | (hub or {}))),
            experiment=ExperimentConfig(**({"max_measurements": 0} | (experiment or {}))),
        )
        state = self.hub.recover()
        if state is not None:
            self.processor.restore(state)
        self.state_before = pack(self.hub.progress.state(), sort=True)
        self.fault: BaseException | None = None
        self.reason = ""
        self._is_closed = False
        self._links: list[Link] = []
        self._viewers: list[Subscriber] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.reason = self.hub.run(lambda: "stopped" if self._stopped.is_set() else None)
        except Exception as fault:  # looked at by the test
            self.fault = fault

    def link(self, role: Role, name: str = "test") -> Link:
        """Connect a peer; it is abandoned at the end."""
        self._links.append(Link(self.router.address, role=role, name=name, timeout_s=WAIT_S))
        return self._links[-1]

    def viewer(self, *kinds: str) -> Subscriber:
        """Connect a viewer, and wait until it is served."""
        viewer = Subscriber(self.publisher.address, ("status", *kinds))
        self._viewers.append(viewer)
        await_true(lambda: viewer.receive(0.1) is not None, "no status was published")
        return viewer

    def tally(self, name: str) -> int:
        """Say how often something was counted."""
        return self.telemetry.tally[name]

    def kept(self, kind: type) -> list[Any]:
        """Give the messages of a kind that are in the journal."""
        return [message for _, message in read_messages(self.folder) if isinstance(message, kind)]

    def wait(self) -> None:
        """Wait until the hub has ended by itself."""
        self._thread.join(WAIT_S + 10)
        assert not self._thread.is_alive(), "the hub does not end"

    def close(self) -> None:
        """End everything; a second time nothing happens."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stopped.set()
        for viewer in self._viewers:
            viewer.close()
        for link in self._links:
            link.abandon()
        self.wait()
        self.journal.close()
        self.router.close(0)
        self.publisher.close(0)


def await_true(question: Callable[[], bool], what: str, within_s: float = WAIT_S) -> float:
    """Wait until something is true; return how long it took."""
    began_s = time.monotonic()
    while not question():
        assert time.monotonic() - began_s < within_s, what
        time.sleep(0.002)
    return time.monotonic() - began_s


def await_message(link: Any, kind: type, matches: Callable[[Any], bool] = lambda _: True) -> Any:
    """Wait for a message of a kind that matches, passing over others."""
    deadline_s = time.monotonic() + WAIT_S
    seen: list[AnyMessage] = []
    while time.monotonic() < deadline_s:
        message = link.receive(0.1)
        if isinstance(message, kind) and matches(message):
            return message
        if message is not None:
            seen.append(message)
    raise AssertionError(f"no such {kind.__name__} came, but {[type(one).__name__ for one in seen]}")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    """Start hubs, one after the other, in one session folder, and end them all."""
    monkeypatch.setattr("streamer.hub.DRAIN_S", 1.0)  # the tests leave requests unanswered
    started: list[Running] = []

    def start(**options: Any) -> Running:
        started.append(Running(tmp_path / SESSION, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()
