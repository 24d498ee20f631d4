"""Who is connected: instruments and agents; credit, acks, routing.

The hub runs in one thread and is the only one that touches sockets and journal. The pipeline runs in
a second one: a frame goes in by a queue and its latents come back by another, so that acks never
wait for the science. A frame is acked when it is in the journal; while too many wait before the
pipeline the acks are held back, and an instrument that can wait does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from streamer.codec import WireError, decode, encode
from streamer.config import ExperimentConfig, HubConfig
from streamer.envelope import Envelope, RefusedError
from streamer.journal import Journal
from streamer.messages import (
    Ack,
    AnyMessage,
    Atoms,
    Bye,
    Event,
    Frame,
    Hello,
    Latents,
    Outcome,
    PairNm,
    Request,
    Score,
    Status,
    Suggestion,
    Welcome,
)
from streamer.pipeline import Processed
from streamer.stage import Meter
from streamer.telemetry import Telemetry
from streamer.wire import Publisher, Router

DRAIN_S = 10.0


class FrameProcessor(Protocol):
    """What the hub asks of the pipeline."""

    def process(self, frame: Frame, meter: Meter) -> Processed | None:
        """Turn a frame into latents; None when a stage rejected it."""
        ...


@dataclass
class Peer:
    """One connection.

    Attributes
    ----------
    hello
        What it said of itself.
    """

    hello: Hello


@dataclass
class _Worker:
    """The pipeline's thread: frames in, results out; a fault is handed over, not swallowed."""

    processor: FrameProcessor
    meter: Meter
    router: Router
    inbox: queue.SimpleQueue[Frame | None] = field(default_factory=queue.SimpleQueue)
    outbox: queue.SimpleQueue[tuple[Frame, Processed | None] | BaseException] = field(
        default_factory=queue.SimpleQueue
    )
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, name="pipeline", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        waker = self.router.waker()
        try:
            while (frame := self.inbox.get()) is not None:
                self.outbox.put((frame, self.processor.process(frame, self.meter)))
                waker.wake()
        except BaseException as fault:  # raised again in the hub's thread, which ends the process
            self.outbox.put(fault)
            waker.wake()
        finally:
            waker.close()

    def stop(self) -> None:
        self.inbox.put(None)
        if self.thread is not None:
            self.thread.join(timeout=DRAIN_S)


class Hub:
    """The streamer's heart: takes messages, keeps them, answers them.

    Parameters
    ----------
    session
        Name of the session.
    router, publisher
        The sockets, bound.
    journal, envelope, telemetry, processor
        The parts that do the work.
    hub_config, experiment
        How much may be on the way, and when the session ends.
    """

    def __init__(
        self,
        *,
        session: str,
        router: Router,
        publisher: Publisher,
        journal: Journal,
        envelope: Envelope,
        telemetry: Telemetry,
        processor: FrameProcessor,
        hub_config: HubConfig,
        experiment: ExperimentConfig,
    ) -> None:
        self.session = session
        self.telemetry = telemetry
        self.envelope = envelope
        self.next_number = 0
        self.measured = 0
        self.best: Score | None = None
        self._router = router
        self._publisher = publisher
        self._journal = journal
        self._config = hub_config
        self._experiment = experiment
        self._log = structlog.get_logger()
        self._worker = _Worker(processor, telemetry, router)
        self._peers: dict[bytes, Peer] = {}
        self._instrument: bytes | None = None
        self._waiting = 0
        self._acks: deque[tuple[bytes, Ack]] = deque()
        self._unsynced_acks: list[tuple[bytes, Ack]] = []
        self._arrived_s: dict[int, float] = {}
        self._undecided_s: dict[int, float] = {}
        self._owners: dict[str, bytes] = {}
        self._positions: dict[str, PairNm] = {}
        self._unscored: dict[str, bytes] = {}
        self._said: deque[str] = deque(maxlen=8)
        self._last_atoms: Atoms | None = None
        self._atoms_count = 0
        self._state = "waiting"
        self._end_reason = ""
        self._last_word_s = 0.0
        self._draining_since_s = 0.0
        self._next_status_s = 0.0

    # -- life ----------------------------------------------------------------------------------

    def restore(self, message: AnyMessage) -> None:
        """Take one message of an earlier part of this session from the journal, in order."""
        match message:
            case Frame():
                self.next_number = max(self.next_number, message.number + 1)
                self.envelope.observe_frame(message)
            case Latents(request_id=None):
                self.envelope.observe_registration(message.registration)
            case Request():
                self.envelope.restore(message)
                self._positions[message.id] = message.position_nm
            case Outcome():
                if self.envelope.release(message):
                    self._count_outcome(message)
            case Score():
                self._note_score(message)
            case _:
                pass

    def run(self, stop: Callable[[], str | None]) -> str:
        """Serve until the session ends.

        Parameters
        ----------
        stop
            Asked in every turn: a reason ends the session in good order.

        Returns
        -------
        reason
            Why it ended.
        """
        self._event("session_started", self.session)
        self._skip_pending("the streamer was restarted")
        self._worker.start()
        started_s = time.monotonic()
        try:
            while not self._is_over(stop, started_s):
                for peer, parts in self._router.receive(self._config.status_interval_s / 2):
                    self._take(peer, parts)
                self._journal.sync()
                self._collect()
                self._send_acks()
                self._publish_status()
        finally:
            self._finish()
        return self._end_reason

    def _is_over(self, stop: Callable[[], str | None], started_s: float) -> bool:
        now_s = time.monotonic()
        limit_s = self._experiment.max_duration_s
        if self._state != "draining":
            budget = self._experiment.max_measurements
            if (reason := stop()) is not None:
                self._drain(reason)
            elif limit_s and now_s - started_s >= limit_s:
                self._drain("time is up")
            elif budget and self.measured >= budget:
                self._drain("budget reached")
            return False
        busy = self._waiting or (self.envelope.pending and self._instrument is not None)
        is_quiet = now_s - self._last_word_s >= self._config.last_words_s
        return (not busy and is_quiet) or now_s - self._draining_since_s >= DRAIN_S

    def _drain(self, reason: str) -> None:
        """Take no new suggestions; let what is under way arrive."""
        self._log.info("session ends", reason=reason)
        self._state = "draining"
        self._end_reason = reason
        self._last_word_s = self._draining_since_s = time.monotonic()
        if self._instrument is not None:
            self._router.send(self._instrument, Bye(reason=reason))

    def _finish(self) -> None:
        self._skip_pending("the session ended")
        self._worker.stop()
        self._collect()
        for _ in range(self._waiting):
            self.telemetry.frame_dropped("session ended")
        self._waiting = 0
        if self._last_atoms is not None and self._store(encode(self._last_atoms)) is not None:
            self._log.warning("last frame not kept")
        self._event("session_ended", self._end_reason)
        self._state = "ended"
        for peer in self._peers:
            self._router.send(peer, Bye(reason=self._end_reason))
        self._publish_status(now=True)

    def _skip_pending(self, reason: str) -> None:
        for identifier in list(self.envelope.pending):
            self._on_outcome(Outcome(session=self.session, id=identifier, status="skipped", reason=reason))

    # -- what comes in -------------------------------------------------------------------------

    def _take(self, peer: bytes, parts: list[memoryview]) -> None:
        """Decode and route one message; whatever is wrong with it costs only itself."""
        try:
            message = decode(parts)
        except WireError as error:
            self._refuse_unreadable(peer, error)
            return
        if not isinstance(message, Suggestion):  # an agent that goes on asking does not keep us open
            self._last_word_s = time.monotonic()
        known = self._peers.get(peer)
        match message:
            case Hello():
                self._on_hello(peer, message)
            case Frame():
                self._on_frame(peer, message, parts)
            case Bye() if known is not None:
                self._on_bye(peer, message)
            case Suggestion() if known is not None and known.hello.role != "instrument":
                self._keep(parts)
                self._on_suggestion(peer, message)
            case Outcome() if peer == self._instrument:
                self._on_outcome(message)
            case Score() if self._unscored.pop(message.id, None) == peer and message.session == self.session:
                self._keep(parts)
                self._note_score(message)
            case _:
                kind = type(message).__name__
                reason = "hello first" if known is None else "not its part"
                self.telemetry.message_refused(reason)
                self._event("refused", f"{kind} from {_name(known)}: {reason}")

    def _refuse_unreadable(self, peer: bytes, error: WireError) -> None:
        known = self._peers.get(peer)
        if known is not None and known.hello.role != "instrument":
            self.telemetry.message_refused(error.reason)
        else:
            self.telemetry.frame_received()
            self.telemetry.frame_rejected("wire", error.reason)
        self._event("rejected", f"message from {_name(known)}: {error}")
        if known is not None:
            refusal = Ack(session=self.session, number=-1, status="refused", reason=str(error))
            self._router.send(peer, refusal)

    def _on_hello(self, peer: bytes, hello: Hello) -> None:
        self._peers[peer] = Peer(hello)
        if hello.role == "instrument":
            # The newest instrument is the one: a microscope computer that was restarted
            # comes back under a new connection, and knows nothing of what was asked before.
            if self._instrument not in (None, peer):
                self._skip_pending("the instrument was restarted")
            self._instrument = peer
            if self._state == "waiting":
                self._state = "running"
        self._event("connected", f"{hello.role} {hello.name}")
        self._router.send(
            peer,
            Welcome(
                session=self.session,
                window=self._config.window,
                next_number=self.next_number,
                durability=self._journal.config.durability,
            ),
        )

    def _on_bye(self, peer: bytes, bye: Bye) -> None:
        self._event("left", f"{_name(self._peers.pop(peer, None))}: {bye.reason}")
        if peer == self._instrument:
            self._instrument = None
            if self._state != "draining":
                self._drain(bye.reason or "the instrument left")

    def _on_frame(self, peer: bytes, frame: Frame, parts: list[memoryview]) -> None:
        self.telemetry.frame_received()
        refusal = self._why_not(peer, frame)
        if refusal is None:
            refusal = self._store(parts)
        if refusal is not None:
            reason, cure = refusal
            self.telemetry.frame_rejected("hub", reason)
            self._event("rejected", f"frame {frame.number}: {reason}; {cure}")
            ack = Ack(session=self.session, number=frame.number, status="refused", reason=f"{reason}; {cure}")
            self._router.send(peer, ack)
            return
        if frame.number > self.next_number:
            self.telemetry.frames_missed(frame.number - self.next_number)
        self.next_number = frame.number + 1
        self.envelope.observe_frame(frame)
        self._arrived_s[frame.number] = time.monotonic()
        self._waiting += 1
        self._worker.inbox.put(frame)
        ack = Ack(session=self.session, number=frame.number, status=self._journal.config.durability)
        self._unsynced_acks.append((peer, ack))

    def _why_not(self, peer: bytes, frame: Frame) -> tuple[str, str] | None:
        """Say why a frame is not taken and what would do; None if it is."""
        if peer != self._instrument:
            return "hello first", "an instrument says Hello before its first frame"
        if frame.session != self.session:
            return "wrong session", f"this is {self.session}; take the name from Welcome"
        if frame.number < self.next_number:
            return "out of order", f"the next number is {self.next_number}; numbers rise and are never reused"
        if len(self._acks) + len(self._unsynced_acks) >= self._config.window:
            return "window full", f"at most {self._config.window} frames go ahead of their acks; wait for one"
        if frame.request_id is not None and frame.request_id not in self.envelope.pending:
            return "unknown id", f"no request {frame.request_id} is under way"
        return None

    def _store(self, parts: list[memoryview] | list[bytes | memoryview]) -> tuple[str, str] | None:
        try:
            self._keep(parts)
        except OSError as error:
            return "journal", f"the disk did not take it ({error.strerror}); make room and send it again"
        return None

    def _on_suggestion(self, peer: bytes, suggestion: Suggestion) -> None:
        age_s = self._age_of(suggestion)
        try:
            if self._state == "draining":
                raise RefusedError("session ends", self._end_reason)
            if self._instrument is None:
                raise RefusedError("no instrument", "none is connected")
            if self._is_budget_reserved():
                raise RefusedError("budget", "every measurement of the budget is made or under way")
            if suggestion.session != self.session:
                raise RefusedError("wrong session", suggestion.session)
            request = self.envelope.review(suggestion, time.monotonic())
        except RefusedError as refusal:
            self._refuse_suggestion(peer, suggestion, refusal, age_s)
            return
        self.telemetry.suggestion_came("granted", age_s)
        self._owners[suggestion.id] = peer
        self._positions[suggestion.id] = suggestion.position_nm
        self._say(suggestion, "granted")
        self._keep(encode(request))
        if not self._router.send(self._instrument, request):
            self._instrument = None
            self._event("left", "the instrument does not answer any more")
            self._skip_pending("the instrument is gone")

    def _is_budget_reserved(self) -> bool:
        budget = self._experiment.max_measurements
        return bool(budget) and self.measured + len(self.envelope.pending) >= budget

    def _age_of(self, suggestion: Suggestion) -> float | None:
        """Age of the frame decided on, for the first suggestion on it."""
        arrived_s = self._undecided_s.pop(suggestion.number, None)
        return None if arrived_s is None else time.monotonic() - arrived_s

    def _refuse_suggestion(
        self, peer: bytes, suggestion: Suggestion, refusal: RefusedError, age_s: float | None
    ) -> None:
        self.telemetry.suggestion_came(refusal.reason, age_s)
        self._say(suggestion, f"refused, {refusal.reason}")
        outcome = Outcome(
            session=self.session,
            id=suggestion.id,
            status="refused",
            reason=str(refusal),
            action=suggestion.action,
        )
        if refusal.reason != "duplicate id":  # under that id the journal speaks of the first one
            self._keep(encode(outcome))
        self._router.send(peer, outcome)

    def _on_outcome(self, outcome: Outcome) -> None:
        try:
            if outcome.session != self.session:
                raise RefusedError("wrong session", outcome.session)
            settled = self.envelope.settle(outcome)
        except RefusedError as refusal:
            self.telemetry.message_refused(refusal.reason)
            self._event("refused", f"outcome {outcome.id}: {refusal}")
            return
        self._count_outcome(settled)
        self._keep(encode(settled))
        owner = self._owners.pop(outcome.id, None)
        if owner is not None:
            if settled.status == "ok":
                self._unscored[outcome.id] = owner
            self._router.send(owner, settled)

    def _count_outcome(self, outcome: Outcome) -> None:
        self.telemetry.outcome_came(outcome.status)
        if outcome.status in ("ok", "failed", "aborted"):
            self.measured += 1

    def _note_score(self, score: Score) -> None:
        sign = 1.0 if score.goal == "maximise" else -1.0
        if self.best is None or sign * score.value > sign * self.best.value:
            self.best = score

    # -- what goes out -------------------------------------------------------------------------

    def _collect(self) -> None:
        """Take what the pipeline has finished and send it on."""
        while True:
            try:
                result = self._worker.outbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(result, BaseException):
                raise result
            self._waiting -= 1
            self._last_word_s = time.monotonic()
            frame, processed = result
            if processed is None:
                self._arrived_s.pop(frame.number, None)
                self._event("rejected", f"frame {frame.number} could not be analysed")
            else:
                self._send_latents(frame, processed)

    def _send_latents(self, frame: Frame, processed: Processed) -> None:
        latents = processed.latents
        arrived_s = self._arrived_s.pop(frame.number)
        age_s = time.monotonic() - arrived_s
        if frame.request_id is None:
            self.envelope.observe_registration(latents.registration)
            self._last_atoms = processed.atoms
            self._atoms_count = len(latents.mean)
            self._undecided_s[frame.number] = arrived_s
        self._keep(encode(latents))
        for peer, known in self._peers.items():
            if known.hello.role == "agent":
                self._router.send(peer, latents)
        self._publisher.publish(latents)
        self.telemetry.frame_published(age_s)
        for number in [n for n in self._undecided_s if n < frame.number - 256]:
            del self._undecided_s[number]

    def _send_acks(self) -> None:
        """Send the acks of what is in the journal, as long as the pipeline keeps up."""
        self._acks.extend(self._unsynced_acks)
        self._unsynced_acks.clear()
        while self._acks and (self._waiting <= self._config.max_waiting or self._state == "draining"):
            self._router.send(*self._acks.popleft())

    def _keep(self, parts: list[memoryview] | list[bytes | memoryview]) -> None:
        self._journal.append(parts, time.time())
        self.telemetry.journal_grew(sum(len(part) for part in parts))

    def _event(self, what: str, detail: str) -> None:
        self._log.info(what, detail=detail)
        message = Event(at_s=time.time(), what=what, detail=detail)
        try:
            self._keep(encode(message))
        except OSError as error:  # a full disk must not keep us from saying so
            self._log.warning("event not kept", what=what, reason=error.strerror)
        self._publisher.publish(message)

    def _say(self, suggestion: Suggestion, verdict: str) -> None:
        x, y = suggestion.position_nm
        self._said.appendleft(f"{suggestion.id} ({x:.2f}, {y:.2f}) nm, {verdict}: {suggestion.reason}")

    def _publish_status(self, *, now: bool = False) -> None:
        at_s = time.monotonic()
        if not now and at_s < self._next_status_s:
            return
        self._next_status_s = at_s + self._config.status_interval_s
        self.telemetry.stands_at(waiting=self._waiting, dose_e=self.envelope.ledger.total_e)
        self._publisher.publish(self.status())

    def status(self) -> Status:
        """Say where the session stands."""
        tally = self.telemetry.tally
        frames = {name: tally[name] for name in ("received", "published", "rejected", "dropped", "missed")}
        return Status(
            session=self.session,
            at_s=time.time(),
            state=self._state,  # type: ignore[arg-type]
            frames=frames | {"waiting": self._waiting},
            stage_ms={name: self.telemetry.quantiles_ms(f"stage {name}") for name in self.telemetry.stages()},
            frame_to_latents_ms=self.telemetry.quantiles_ms("frame to latents"),
            frame_to_suggestion_ms=self.telemetry.quantiles_ms("frame to suggestion"),
            atoms=self._atoms_count,
            requests_granted=tally["suggestions granted"],
            requests_refused=tally["suggestions refused"],
            outcomes_ok=tally["outcomes ok"],
            max_measurements=self._experiment.max_measurements,
            dose_e=self.envelope.ledger.total_e,
            max_dose_e=self.envelope.config.max_dose_e,
            drift_nm=self.envelope.registration.drift_nm,
            best=float("nan") if self.best is None else self.best.value,
            best_position_nm=None if self.best is None else self._positions.get(self.best.id),
            suggestions=tuple(self._said),
        )


def _name(peer: Peer | None) -> str:
    return "a peer that said no Hello" if peer is None else f"{peer.hello.role} {peer.hello.name}"
