"""Who is connected: instruments, agents, operators; credit, acks, routing, and the safe state.

The hub runs in one thread and is the only one that touches sockets and journal. Whatever happens it
writes to the journal first and then applies to ``Progress``, so that a restart, which applies the same
records, stands where this one stood. The pipeline runs in a second thread: acks never wait for the
science. While too many frames wait before it the acks are held back, and an instrument that can wait does.

What it cannot trust it does not guess about: it holds. The beam is parked and nothing is requested until
the cause is gone (see ``docs/guides/when-something-fails.md``).
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
import structlog

from streamer.codec import Numbered, Parts, WireError, decode_numbered, encode
from streamer.config import ExperimentConfig, HubConfig
from streamer.delivery import Inbox
from streamer.distortion_status import distortion_status
from streamer.envelope import Envelope, RefusedError
from streamer.journal import Journal, kind_of
from streamer.keys import ServerKeys, may_send
from streamer.messages import (
    Ack,
    AnyMessage,
    Atoms,
    Bye,
    Checkpoint,
    Command,
    Control,
    Event,
    Frame,
    Heartbeat,
    Hello,
    Latents,
    Message,
    ModelRevision,
    Outcome,
    Resend,
    Score,
    Status,
    StrainMap,
    Suggestion,
    Welcome,
)
from streamer.motion import ColumnsMotion
from streamer.pipeline import PipelineState
from streamer.progress import INSTRUMENT, Progress, row_name
from streamer.recovery import Recovery, is_same_answer, make_checkpoint, recover
from streamer.separation import is_of_separation, next_scan
from streamer.telemetry import Telemetry
from streamer.wire import Publisher, Router
from streamer.worker import FrameProcessor, Result, Worker

DRAIN_S = 10.0
FAREWELL_S = 1.0
TURN_S = 0.02
BEAT_S = 0.25
# Messages sent to a peer ahead of what it says that it has; the rest waits in the journal.
MOST_AHEAD = 32
# Room that is kept for what the streamer itself must say, also when the disk is full.
SLACK_BYTES = 1 << 20
RETRY_DISK_S = 0.2
MOST_STALLED_BYTES = 256 << 20
# A peer that has said nothing for so long is forgotten; it says Hello again if it is there after all.
FORGET_S = 600.0
GAP_BEAT_S = 0.05
# A frame with which the analysis began so often and never ended is left out.
MOST_TRIES = 2
# After a restart agents are welcomed when the instrument is back, or after so long: what they suggest before
# would be refused for want of one, and they would go another way than without the restart.
RETURN_S = 5.0
# Frames that the correction rejects, as faults of its own.
_DISTORTION_FAULTS = {"blank frame": "blank", "lattice lost": "lost"}
# Holds that end when their cause does; those of an operator end with ``resume``.
SILENT = "instrument silent"
STUCK = "instrument stuck"
SLOW = "analysis stuck"
MODEL = "model not finite"
DISK = "disk full"


class WorkerStuck(RuntimeError):
    """The analysis of one frame takes so long that only a restart can help."""


@dataclass
class Peer:
    """One connection.

    Attributes
    ----------
    hello
        What it said of itself.
    name
        Of its row of messages.
    key
        The public key that it was let in with; empty without keys.
    inbox
        Puts its messages in order.
    heard_s, used_s
        Monotonic clock: when it was last heard, and when its program last used its link.
    beaten_s
        When it was last sent a heartbeat.
    confirmed
        Number of the last journal record that it says it has.
    is_behind, is_silent
        Whether records are held back until it has caught up; whether it gives no sign of life.
    acks
        Those that it has not been sent yet, in order.
    acked, refused
        The last ack of kept messages that it was sent, and the last sequences that were refused.
    recent
        The last messages sent to it: ``(record, after, message)``.
    """

    hello: Hello
    name: str
    key: str
    heard_s: float
    inbox: Inbox[tuple[Numbered, Parts, str]] = field(default_factory=Inbox)
    used_s: float = 0.0
    beaten_s: float = 0.0
    confirmed: int = 0
    is_behind: bool = False
    is_silent: bool = False
    acks: deque[Ack] = field(default_factory=deque)
    acked: Ack | None = None
    refused: deque[int] = field(default_factory=lambda: deque(maxlen=16))
    recent: deque[tuple[int, int, Message]] = field(default_factory=lambda: deque(maxlen=MOST_AHEAD))

    @property
    def is_numbered(self) -> bool:
        """Does it number its messages?"""
        return bool(self.hello.instance)

    def __str__(self) -> str:
        return f"{self.hello.role} {self.hello.name}"


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
    keys
        Who may connect and as what; None on a machine of one's own.
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
        keys: ServerKeys | None = None,
    ) -> None:
        self.session = session
        self.telemetry = telemetry
        self.envelope = envelope
        self.progress = Progress(envelope)
        self.holds: dict[str, float] = {}
        self._router = router
        self._publisher = publisher
        self._journal = journal
        self._config = hub_config
        self._experiment = experiment
        self._keys = keys
        self._keys_problem = ""
        self._log = structlog.get_logger()
        motion = ColumnsMotion(telemetry.columns_moved)
        self._worker = Worker(processor, telemetry, hub_config.checkpoint_frames, motion.observe)
        self._peers: dict[bytes, Peer] = {}
        self._instrument: bytes | None = None
        self._stalled: dict[tuple[bytes, int], tuple[bytes, str, list[memoryview]]] = {}
        self._stalled_bytes = 0
        self._stall_count = itertools.count(1)
        self._waiting: dict[int, int] = {}  # frames before the pipeline: their records
        self._arrived_s: dict[int, float] = {}
        self._undecided_s: dict[int, float] = {}
        self._said: deque[str] = deque(maxlen=8)
        self._last_atoms: Atoms | None = None
        self._atoms_count = 0
        self._state = "waiting"
        self._end_reason = ""
        self._last_word_s = 0.0
        self._instrument_due_s = 0.0
        self._draining_since_s = 0.0
        self._next_status_s = 0.0
        self._next_beat_s = 0.0
        self._retry_disk_s = 0.0
        self._retry_model_s = 0.0
        self._frame_s = 0.0
        self._result_bytes = SLACK_BYTES
        self._is_unrecorded = False
        self._is_parked = False
        self._unkept: set[int] = set()
        self._turns: deque[tuple[bytes, Numbered, Parts]] = deque()
        self._recovery = Recovery()

    # -- a restart -----------------------------------------------------------------------------

    def recover(self) -> PipelineState | None:
        """Stand where an earlier process of this session stood, by its journal.

        Returns
        -------
        state
            What the pipeline must be restored to before ``run``; None for one that is new.
        """
        self._recovery = recover(self._journal, self.progress)
        self._waiting = dict(self._recovery.records)
        self.telemetry.recovered(self.progress.tally)
        return self._recovery.state

    # -- life ----------------------------------------------------------------------------------

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

        Raises
        ------
        WorkerStuck
            If one frame keeps the analysis busy beyond all patience; the beam is parked before.
        """
        self._has_room(0)
        self._event("session_resumed" if self.progress.rows else "session_started", self.session)
        if self.progress.operator_hold:
            self._hold(self.progress.operator_hold)
        if self.progress.ending:
            self._drain(self.progress.ending)
        self._analyse_again()
        self._worker.start(self._router.waker())
        started_s = time.monotonic()
        if INSTRUMENT in self.progress.rows:
            self._instrument_due_s = started_s + RETURN_S
        try:
            while not self._is_over(stop, started_s):
                self._turn()
        except BaseException as fault:
            self._park_at_the_last(type(fault).__name__)
            raise
        self._finish()
        return self._end_reason

    def _analyse_again(self) -> None:
        """Bring the analysis up to date, but for a frame with which it failed time and again."""
        first = self._recovery.first_unanswered
        if first is not None:
            self._event("analysis begun", "after a restart", first)
            if self.progress.tried[1] > MOST_TRIES:
                self._recovery.leave_out(first)
                del self._waiting[first]
                self.telemetry.frame_rejected("hub", "analysis failed")
                self._event("frame rejected", f"the analysis failed with it {MOST_TRIES} times", first)
        for frame in self._recovery.frames:
            self._worker.put(frame)
        self._recovery.frames = []

    def _turn(self) -> None:
        for peer, key, parts in self._incoming():
            self._take(peer, key, parts)
        self._journal.sync()
        self._collect()
        self._send_acks()
        now_s = time.monotonic()
        if now_s >= self._next_beat_s:
            self._next_beat_s = now_s + BEAT_S
            self._watch(now_s)
            self._beat()
        self._publish_status(now_s)

    def _incoming(self) -> Iterator[tuple[bytes, str, list[memoryview]]]:
        """Give what came; what the disk could not take comes first, once there is room."""
        if DISK in self.holds and not self._is_unrecorded:
            self._retry_disk()
        self._go_on_with_turns()
        while self._stalled and DISK not in self.holds:
            stalled = self._stalled.pop(next(iter(self._stalled)))
            self._stalled_bytes -= _size(stalled[2])
            yield stalled
        yield from self._router.receive(BEAT_S / 2)

    def _is_over(self, stop: Callable[[], str | None], started_s: float) -> bool:
        now_s = time.monotonic()
        limit_s = self._experiment.max_duration_s
        if self._state != "draining":
            budget = self._experiment.max_measurements
            if (reason := stop()) is not None:
                self._drain(reason)
            elif limit_s and now_s - started_s >= limit_s:
                self._drain("time is up")
            elif budget and self.progress.measured >= budget:
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
        self._say_bye()

    def _say_bye(self) -> None:
        if self._instrument is not None:
            self._router.send(self._instrument, Bye(reason=self._end_reason))

    def _finish(self) -> None:
        self._skip_pending("the session ended")
        self._worker.stop(DRAIN_S)
        self._collect()
        for number in list(self._waiting):
            self.telemetry.frame_dropped("session ended")
            self._event("frame dropped", "the session ended before it was analysed", number)
        self._waiting.clear()
        if self._last_atoms is not None:
            try:
                self._record(Numbered(self._last_atoms))
            except OSError as error:
                self._log.warning("last frame not kept", reason=error.strerror)
        self._event("session_ended", self._end_reason)
        self._state = "ended"
        self._send_acks()
        self._publish_status(time.monotonic(), now=True)
        self._part()

    def _part(self) -> None:
        """Say Bye until everybody has left, for a moment.

        A connection that is closed while words lie unread in it loses the last ones that were said.
        """
        deadline_s = time.monotonic() + FAREWELL_S
        left = list(self._peers)
        while left and time.monotonic() < deadline_s:
            left = [peer for peer in left if self._router.send(peer, Bye(reason=self._end_reason))]
            if left:
                self._router.receive(TURN_S, most=1024)

    def _skip_pending(self, reason: str) -> None:
        for identifier in list(self.envelope.pending):
            outcome = Outcome(session=self.session, id=identifier, status="skipped", reason=reason)
            self._settle(Numbered(outcome))

    # -- the safe state ------------------------------------------------------------------------

    def _hold(self, reason: str, detail: str = "") -> None:
        """Park the beam and request nothing, until ``_release``."""
        is_new = reason not in self.holds
        if is_new:
            self.holds[reason] = time.monotonic()
            self.telemetry.held(reason)
            self._event("held", f"{reason}: {detail}" if detail else reason)
        if not self._is_parked:
            self._command("park", reason)
        if is_new:
            self._publish_status(time.monotonic(), now=True)

    def _release(self, reason: str) -> None:
        if self.holds.pop(reason, None) is None:
            return
        self._event("released", reason)
        if not self.holds:
            self._command("go", f"no more {reason}")
        self._publish_status(time.monotonic(), now=True)

    def _command(self, action: str, reason: str, identifier: str = "") -> None:
        if INSTRUMENT not in self.progress.rows:
            return
        if action != "cancel":
            self._is_parked = action == "park"
        command = Command(
            session=self.session,
            action=action,  # type: ignore[arg-type]
            id=identifier,
            reason=reason,
        )
        try:
            self._record(Numbered(command))
        except OSError:  # a disk that fails must not keep the beam on the specimen
            self._send_unrecorded(command)

    def _send_unrecorded(self, command: Command) -> None:
        if self._instrument is not None:
            self._router.send(self._instrument, command)

    def _park_at_the_last(self, why: str) -> None:
        """Before this process ends by a fault: the instrument also parks by itself when it hears no more."""
        self._send_unrecorded(Command(session=self.session, action="park", reason=f"streamer fails: {why}"))

    def _watch(self, now_s: float) -> None:
        """Notice whoever went silent or is stuck, and whoever is back."""
        limit_s = self._config.silent_after_s
        for peer in self._peers.values():
            is_silent = peer.hello.beats and now_s - peer.heard_s > limit_s
            if is_silent != peer.is_silent:
                peer.is_silent = is_silent
                self._event("silent" if is_silent else "heard again", str(peer))
        for identity, peer in list(self._peers.items()):
            if peer.hello.beats and identity != self._instrument and now_s - peer.heard_s > FORGET_S:
                del self._peers[identity]
        self._watch_instrument(now_s)
        busy_s = self._worker.busy_s(now_s)
        self._set_hold(SLOW, busy_s > self._config.stuck_after_s)
        if busy_s > self._config.give_up_after_s:
            raise WorkerStuck(f"the analysis of one frame has taken {busy_s:.1f} s; the streamer starts anew")
        if MODEL in self.holds and now_s >= self._retry_model_s:
            # A new frame must come before the model can prove itself; nothing is requested meanwhile.
            self._retry_model_s = now_s + self._config.retry_model_s
            if len(self.holds) == 1:
                self._command("go", "one more try")

    def _watch_instrument(self, now_s: float) -> None:
        peer = None if self._instrument is None else self._peers.get(self._instrument)
        if peer is None or not peer.hello.beats:  # of one that does not beat silence says nothing
            self._release(SILENT)
            self._release(STUCK)
            return
        self._set_hold(SILENT, peer.is_silent)
        busy_s = max((r.dwell_time_us * 1e-6 for r in self.envelope.pending.values()), default=0.0)
        allowed_s = self._config.silent_after_s + 2 * self._frame_s + busy_s
        is_idle = self._frame_s > 0 and now_s - peer.used_s > allowed_s  # how long its frames take is known
        self._set_hold(STUCK, is_idle and not peer.is_silent)

    def _set_hold(self, reason: str, is_due: bool) -> None:
        if is_due:
            self._hold(reason)
        else:
            self._release(reason)

    def _has_room_for(self, message: AnyMessage, parts: Parts) -> bool:
        """Say whether a message may be taken now; on a full disk all wait in order but an operator's."""
        is_operator = isinstance(message, Hello) and message.role == "operator"
        if self._is_unrecorded or is_operator or isinstance(message, Control):
            return True
        return DISK not in self.holds and self._has_room(_size(parts))

    def _stall(self, peer: bytes, key: str, numbered: Numbered, parts: list[memoryview]) -> None:
        """Keep a message that the disk has no room for; it has no ack, so its sender keeps it too."""
        place = (peer, numbered.sequence or -next(self._stall_count))
        if place in self._stalled:
            self.telemetry.delivery("duplicate")
        elif self._stalled_bytes > MOST_STALLED_BYTES:
            self.telemetry.delivery("too early")
        else:
            self._stalled[place] = (peer, key, parts)
            self._stalled_bytes += _size(parts)

    def _has_room(self, size_bytes: int) -> bool:
        """See to it that the journal can take so much; a full disk pauses or is done without."""
        if self._is_unrecorded:
            return True
        try:
            self._journal.reserve(size_bytes + SLACK_BYTES)
        except OSError as error:
            self._on_full_disk(error)
            return self._is_unrecorded
        return True

    def _on_full_disk(self, error: OSError) -> None:
        self._retry_disk_s = time.monotonic() + RETRY_DISK_S
        if self._journal.config.on_full == "unrecorded":
            self._is_unrecorded = True
            self._catch_up_all()
            self.telemetry.held(DISK)
            self._event("unrecorded", f"{error.strerror}: from here on nothing is kept, as configured")
        else:
            self._hold(DISK, f"{error.strerror}: nothing is acked; make room and it goes on by itself")

    def _catch_up_all(self) -> None:
        """Send everybody what the journal has, before there is anything that it has not."""
        for identity, peer in self._peers.items():
            if peer.is_behind:
                peer.is_behind = False
                self._resend_from_journal(identity, peer, peer.recent[-1][0])

    def _retry_disk(self) -> None:
        now_s = time.monotonic()
        if now_s < self._retry_disk_s:
            return
        self._retry_disk_s = now_s + RETRY_DISK_S
        # With room for what is asked for next, or the loop would be held and released five times a second.
        size = max([self._result_bytes, *(_size(parts) for _, _, parts in self._stalled.values())])
        with contextlib.suppress(OSError):
            self._journal.reserve(size + SLACK_BYTES)
            self._release(DISK)

    # -- what comes in -------------------------------------------------------------------------

    def _take(self, peer: bytes, key: str, parts: list[memoryview]) -> None:
        """Decode and route one message; whatever is wrong with it costs only itself."""
        try:
            numbered = decode_numbered(parts)
        except WireError as error:
            self._refuse_unreadable(peer, error)
            return
        message = numbered.message
        known = self._peers.get(peer)
        if refused := self._why_not_allowed(key, known, message):
            self._refuse_part(peer, known, numbered, refused)
            return
        match message:
            case Heartbeat():
                self._on_heartbeat(peer, key, message)
                return
            case Resend() if known is not None:
                self._resend(peer, known, message.after)
                return
            case _:
                pass
        if known is not None:
            known.heard_s = known.used_s = time.monotonic()
            if isinstance(message, Control) and message.action == "abort":
                self._break_off()  # at once: what is written of it waits for its turn
            if known.is_numbered and numbered.sequence and numbered.sender != known.hello.instance:
                self.telemetry.message_refused("another's name")
                return
        if not self._has_room_for(message, parts):
            self._stall(peer, key, numbered, parts)
            return
        if isinstance(message, Hello):
            self._on_hello(peer, key, message)
        elif known is None:
            self._refuse_stranger(peer, message)
        elif not known.is_numbered or not numbered.sequence:
            if not isinstance(message, Frame):  # whose it is would else be forgotten in a restart
                parts = encode(message, sender=known.name[:64])  # type: ignore[assignment]
            self._route(peer, known, Numbered(message), parts)
        else:
            self._in_order(peer, known, numbered, parts)

    def _why_not_allowed(self, key: str, known: Peer | None, message: AnyMessage) -> str:
        """With keys: only whom the allow-list knows, in its own part, on its own connection."""
        if self._keys is None:
            return ""
        role = self._keys.role_of(key)
        if role is None:
            return "key not allowed"
        if known is not None and known.key != key:
            return "another key"
        return "" if may_send(role, message) else "not its part"

    def _refuse_part(self, peer: bytes, known: Peer | None, numbered: Numbered, reason: str) -> None:
        """Refuse what a key may not say, and tell a peer that may talk at all."""
        message = numbered.message
        self.telemetry.message_refused(reason)
        self._log.warning("refused", reason=reason, kind=type(message).__name__)
        if reason == "not its part" and isinstance(message, Hello):
            self._router.send(peer, Bye(reason=f"this key is not one for the role {message.role}"))
        elif reason == "not its part" and known is not None and known.is_numbered and numbered.sequence:
            self._in_order(peer, known, numbered, (), reason)

    def _refuse_unreadable(self, peer: bytes, error: WireError) -> None:
        known = self._peers.get(peer)
        self.telemetry.unreadable(error.reason)
        if known is None:
            return
        if not known.is_numbered:
            self._event("refused", f"message from {known}: {error}")
            refusal = Ack(session=self.session, number=-1, status="refused", reason=str(error))
            self._router.send(peer, refusal)
        elif error.sequence:
            # The message is whole and wrong: to send it again would not help. What it was is not known.
            unread = Numbered(Event(at_s=0.0, what="unreadable"), error.sender, error.sequence, error.after)
            self._in_order(peer, known, unread, (), str(error))

    def _settle_refused(self, known: Peer, numbered: Numbered, reason: str) -> None:
        self._event("refused", f"{type(numbered.message).__name__} from {known}: {reason}")
        known.acks.append(
            Ack(
                session=self.session,
                number=-1,
                status="refused",
                reason=reason,
                sequence=numbered.sequence,
            )
        )

    def _refuse_stranger(self, peer: bytes, message: AnyMessage) -> None:
        """Ask a peer that we do not know, or not any more, to say who it is."""
        self.telemetry.message_refused("hello first")
        self._log.info("hello first", kind=type(message).__name__)
        number = message.number if isinstance(message, Frame) else -1
        reason = "hello first; a peer says Hello before anything else"
        self._router.send(peer, Ack(session=self.session, number=number, status="refused", reason=reason))

    def _in_order(
        self, peer: bytes, known: Peer, numbered: Numbered, parts: Parts, refused: str = ""
    ) -> None:
        """Act on a numbered message, and those behind it, when its turn comes; one to be refused as well."""
        before = known.inbox.duplicates, known.inbox.reordered, known.inbox.overflowed
        turn = known.inbox.take(numbered.sequence, numbered.after, (numbered, parts, refused))
        after = known.inbox.duplicates, known.inbox.reordered, known.inbox.overflowed
        for what, old, new in zip(("duplicate", "reordered", "too early"), before, after, strict=True):
            if new > old:
                self.telemetry.delivery(what)
        if known.inbox.has_gap and time.monotonic() - known.beaten_s > GAP_BEAT_S:
            self._beat_to(peer, known)  # what is missing is sent again the sooner
        if after[0] > before[0] and known.acked is not None:
            self._say_again_acked(peer, known)  # the first one may have been lost
        self._route_all(peer, known, turn)

    def _route_all(self, peer: bytes, known: Peer, turn: Iterable[tuple[Numbered, Parts, str]]) -> None:
        for numbered, parts, refused in turn:
            if refused:
                self._settle_refused(known, numbered, refused)
            elif self._turns or not self._has_room_for(numbered.message, parts):
                self._turns.append((peer, numbered, parts))
            else:
                self._route(peer, known, numbered, parts)

    def _go_on_with_turns(self) -> None:
        """Act on messages whose turn came when the disk was full."""
        while self._turns:
            peer, numbered, parts = self._turns[0]
            if not self._has_room_for(numbered.message, parts):
                return
            self._turns.popleft()
            known = self._peers.get(peer)
            if known is not None:
                self._route(peer, known, numbered, parts)

    def _route(self, peer: bytes, known: Peer, numbered: Numbered, parts: Parts) -> None:
        """Act on a message whose turn it is."""
        message = numbered.message
        if not isinstance(message, Suggestion):  # an agent that goes on asking does not keep us open
            self._last_word_s = time.monotonic()
        is_instrument = peer == self._instrument
        refused = ""
        match message:
            case Frame() if known.hello.role == "instrument":
                self._on_frame(peer, known, numbered, parts)
                return
            case Bye():
                self._record(numbered, parts, known.name)
                self._on_bye(peer, known, numbered)
                return
            case Suggestion() if known.hello.role in ("agent", "operator"):
                refused = self._on_suggestion(known, numbered, parts)
            case Outcome() if is_instrument:
                refused = self._on_outcome(numbered)
            case Score() if known.hello.role == "agent":
                refused = self._on_score(known, numbered, parts)
            case ModelRevision() | Checkpoint() if known.hello.role == "agent" and _is_of(message, known):
                if message.told < self._journal.next_record:
                    self._record(numbered, parts, known.name)
                else:
                    refused = f"told: {message.told} is no record of the journal yet"
            case Control():
                refused = self._on_control(known, numbered, parts)
            case _:
                refused = "not its part"
        if refused:
            self.telemetry.message_refused(refused.partition(":")[0])
            self._settle_refused(known, numbered, refused)
        elif known.is_numbered or isinstance(message, Control):
            known.acks.append(self._ack(numbered, -1))

    def _ack(self, numbered: Numbered, number: int) -> Ack:
        is_kept = not self._is_unrecorded and numbered.sequence not in self._unkept
        self._unkept.discard(numbered.sequence)
        status = self._journal.config.durability if is_kept else "unrecorded"
        return Ack(
            session=self.session,
            number=number,
            status=status,
            sequence=numbered.sequence,
        )

    def _on_hello(self, peer: bytes, key: str, hello: Hello) -> None:
        if refused := self._why_not_welcome(peer, key, hello):
            self.telemetry.message_refused("not welcome")
            self._log.warning("not welcome", who=f"{hello.role} {hello.name}", reason=refused)
            self._router.send(peer, Bye(reason=refused))
            return
        is_early = self._instrument is None and time.monotonic() < self._instrument_due_s
        if hello.role == "agent" and hello.beats and is_early:  # its link says Hello again
            return
        name = row_name(hello)
        row = self.progress.rows.get(name)
        is_new = row is None or row.instance != hello.instance or not hello.instance
        known = self._peers.get(peer)
        is_met = known is not None and known.hello.instance == hello.instance
        if known is None or not is_met:
            known = Peer(hello, name, key, time.monotonic())
            known.inbox.skip_to(self.progress.received.get(hello.instance, 0))
            self._replace_others(peer, name)
            self._peers[peer] = known
        known.used_s = time.monotonic()
        known.confirmed = hello.last_record
        if hello.instance:
            self._route_all(peer, known, known.inbox.skip_to(hello.resumes_from - 1))
        if is_new:
            if hello.role == "instrument":
                # A microscope computer that was restarted knows nothing of what was asked before.
                self._skip_pending("the instrument was restarted")
            try:
                self._record(Numbered(hello))
            except OSError:  # an operator must be let in, also when the disk takes nothing
                self.progress.apply(self._journal.next_record, Numbered(hello))
            self._event("connected", str(known))
        if hello.role == "instrument":
            self._instrument = peer
            if self._state == "waiting":
                self._state = "running"
        self._journal.sync()  # a Welcome acks what it says was received
        if known.refused:
            self._say_again_acked(peer, known)
        self._router.send(peer, self._welcome(known))
        self._resend(peer, known, hello.last_record)
        if hello.role == "instrument" and self.holds and (is_new or not is_met):
            self._command("park", next(iter(self.holds)))
        elif hello.role == "instrument" and not is_new and not is_met:
            self._command("go", "the streamer is back")  # an earlier process of ours may have had it parked
        if self._state == "draining":
            self._router.send(peer, Bye(reason=self._end_reason))

    def _why_not_welcome(self, peer: bytes, key: str, hello: Hello) -> str:
        """Say why a peer cannot take part as it says; nothing if it can."""
        name = row_name(hello)
        row = self.progress.rows.get(name)
        if hello.role == "viewer":
            return "a viewer listens at the view address only"
        if not may_send(hello.role, hello):
            return f"nobody can be called {hello.name!r}"
        if hello.instance and peer != hello.instance.encode():
            return "the routing id of a connection is its instance"
        if self._has_another_key(name, key):
            return "somebody with another key has this part"
        if hello.last_record >= self._journal.next_record:
            return "the journal lacks what this program was told; start it again"
        is_known = row is not None and self.progress.instances.get(hello.instance) == name
        if is_known and row is not None and row.instance != hello.instance:
            return "another program took this part over"
        return ""

    def _has_another_key(self, name: str, key: str) -> bool:
        """A part is taken over by its own key; by another one once the first is silent or revoked."""
        return any(
            known.name == name
            and known.key != key
            and not known.is_silent
            and (self._keys is None or self._keys.role_of(known.key) is not None)
            for known in self._peers.values()
        )

    def _replace_others(self, peer: bytes, name: str) -> None:
        """There is one peer of a name: the newest."""
        for other, known in list(self._peers.items()):
            if known.name == name and other != peer:
                self._router.send(other, Bye(reason="another program took this part over"))
                del self._peers[other]

    def _welcome(self, known: Peer) -> Welcome:
        row = self.progress.rows[known.name]
        return Welcome(
            session=self.session,
            window=self._config.window,
            next_number=self.progress.next_number,
            durability=self._journal.config.durability,
            # What is kept and has no ack yet, because the analysis is behind, still takes its place.
            received=min([known.inbox.last, *(a.sequence - 1 for a in known.acks if a.sequence)]),
            last_record=row.last,
            history_record=row.joined if row.start < row.joined else 0,
        )

    def _on_heartbeat(self, peer: bytes, key: str, beat: Heartbeat) -> None:
        """Note that a peer lives; its heart beats on a connection of its own."""
        identity = beat.instance.encode()
        known = self._peers.get(identity)
        if known is None or peer != identity + b"~" or known.key != key:
            return
        now_s = time.monotonic()
        known.heard_s = now_s
        known.used_s = max(known.used_s, now_s - beat.idle_s)
        known.confirmed = max(known.confirmed, beat.last_record)
        if known.is_behind and known.recent and known.confirmed >= known.recent[-1][0]:
            known.is_behind = False
            self._resend(identity, known, known.confirmed)

    def _on_bye(self, peer: bytes, known: Peer, numbered: Numbered) -> None:
        bye = numbered.message
        assert isinstance(bye, Bye)
        if known.is_numbered:
            self._journal.sync()
            self._router.send(peer, self._ack(numbered, -1))
        self._peers.pop(peer, None)
        self._event("left", f"{known}: {bye.reason}")
        if peer == self._instrument:
            self._instrument = None
            if self._state != "draining":
                self._drain(bye.reason or "the instrument left")

    def _on_frame(self, peer: bytes, known: Peer, numbered: Numbered, parts: Parts) -> None:
        frame = numbered.message
        assert isinstance(frame, Frame)
        self.telemetry.frame_received()
        refusal = self._why_not(peer, known, frame)
        if refusal is not None:
            reason, cure = refusal
            self.telemetry.frame_rejected("hub", reason)
            self._event("frame refused", f"{reason}; {cure}", frame.number)
            known.acks.append(
                Ack(
                    session=self.session,
                    number=frame.number,
                    status="refused",
                    reason=f"{reason}; {cure}",
                    sequence=numbered.sequence,
                )
            )
            return
        if frame.number > self.progress.next_number:
            self.telemetry.frames_missed(frame.number - self.progress.next_number)
        record = self._record(numbered, parts, known.name)
        rows, cols = frame.geometry.shape
        # Latents, and the state of the pipeline: a reference image and a few positions.
        self._result_bytes = 2 * frame.image.nbytes + SLACK_BYTES
        self._frame_s = frame.dwell_time_us * 1e-6 * rows * cols
        self._arrived_s[frame.number] = time.monotonic()
        self._waiting[frame.number] = record
        self._worker.put(frame)
        known.acks.append(self._ack(numbered, frame.number))

    def _why_not(self, peer: bytes, known: Peer, frame: Frame) -> tuple[str, str] | None:
        """Say why a frame is not taken and what would do; None if it is."""
        expected = self.progress.next_number
        if peer != self._instrument:
            return "hello first", "an instrument says Hello before its first frame"
        if frame.session != self.session:
            return "wrong session", f"this is {self.session}; take the name from Welcome"
        if frame.number < expected:
            return "out of order", f"the next number is {expected}; numbers rise and are never reused"
        if sum(ack.number >= 0 for ack in known.acks) >= self._config.window:
            return "window full", f"at most {self._config.window} frames go ahead of their acks; wait for one"
        if frame.request_id is not None and frame.request_id not in self.envelope.pending:
            return "unknown id", f"no request {frame.request_id} is under way"
        return None

    def _on_suggestion(self, known: Peer, numbered: Numbered, parts: Parts) -> str:
        """Grant or refuse a suggestion; returns why it is no suggestion at all, else nothing."""
        suggestion = numbered.message
        assert isinstance(suggestion, Suggestion)
        age_s = self._age_of(suggestion)
        now_s = time.monotonic()
        if is_of_separation(suggestion.id):
            self.telemetry.suggestion_came("reserved id", age_s)
            return f"reserved id: {suggestion.id} belongs to the streamer's own scans"
        if suggestion.id in self.progress.owners:
            self.telemetry.suggestion_came("duplicate id", age_s)
            return f"duplicate id: {suggestion.id} was suggested before"
        try:
            self._refuse_out_of_season(suggestion)
            request = self.envelope.review(suggestion, now_s)
        except RefusedError as refusal:
            self._record(numbered, parts, known.name, now_s)
            self._refuse_suggestion(suggestion, refusal, age_s)
            return ""
        self._record(numbered, parts, known.name, now_s)
        self.telemetry.suggestion_came("granted", age_s)
        self._say(suggestion, "granted")
        self._record(Numbered(request), now_s=now_s)
        return ""

    def _separate(self, frame: Frame) -> None:
        """Ask for the scan that is due of those that tell strain from distortion."""
        if not self._is_separating() or self._state == "draining":
            return
        if self.progress.separation.round == 0:
            self._record(Numbered(Control(action="separate", reason="as configured")))
        if not self.progress.separation.next_id or self.holds or self._instrument is None:
            return
        suggestion = next_scan(
            self.progress.separation,
            session=self.session,
            number=frame.number,
            acquired_at_s=frame.acquired_at_s,
            dwell_time_us=frame.dwell_time_us,
            geometry=frame.geometry,
            registration=self.envelope.registration,
            clock_s=self.envelope.clock_s,
        )
        now_s = time.monotonic()
        try:
            request = self.envelope.review(suggestion, now_s)
        except RefusedError as refusal:
            self._record(Numbered(suggestion), now_s=now_s)
            self._refuse_suggestion(suggestion, refusal, None)
            self._event("separation ended", str(refusal), frame.number)
            return
        self._record(Numbered(suggestion), now_s=now_s)
        self._say(suggestion, "granted")
        self._record(Numbered(request), now_s=now_s)

    def _refuse_out_of_season(self, suggestion: Suggestion) -> None:
        """Refuse what no limit forbids, but the state of the session does."""
        if self._state == "draining":
            raise RefusedError("session ends", self._end_reason)
        if self.holds:
            raise RefusedError("held", ", ".join(self.holds))
        if self._instrument is None:
            raise RefusedError("no instrument", "none is connected")
        budget = self._experiment.max_measurements
        if budget and self.progress.measured + len(self.envelope.pending) >= budget:
            raise RefusedError("budget", "every measurement of the budget is made or under way")
        if suggestion.session != self.session:
            raise RefusedError("wrong session", suggestion.session)

    def _age_of(self, suggestion: Suggestion) -> float | None:
        """Age of the frame decided on, for the first suggestion on it."""
        arrived_s = self._undecided_s.pop(suggestion.number, None)
        return None if arrived_s is None else time.monotonic() - arrived_s

    def _refuse_suggestion(self, suggestion: Suggestion, refusal: RefusedError, age_s: float | None) -> None:
        self.telemetry.suggestion_came(refusal.reason, age_s)
        self._say(suggestion, f"refused, {refusal.reason}")
        outcome = Outcome(
            session=self.session,
            id=suggestion.id,
            status="refused",
            reason=str(refusal),
            action=suggestion.action,
        )
        self._record(Numbered(outcome))

    def _on_outcome(self, numbered: Numbered) -> str:
        outcome = numbered.message
        assert isinstance(outcome, Outcome)
        if outcome.session != self.session:
            return f"wrong session: {outcome.session}"
        return self._settle(numbered)

    def _settle(self, numbered: Numbered) -> str:
        """Record what came of a request, with where it was on the specimen."""
        assert isinstance(numbered.message, Outcome)
        try:
            settled = self.envelope.settle(numbered.message)
        except RefusedError as refusal:
            return str(refusal)
        self.telemetry.outcome_came(settled.status)
        was_on = self.progress.separation.is_on
        self._record(msgspec.structs.replace(numbered, message=settled))
        if was_on and not self.progress.separation.is_on:
            self._event("separation ended", self.progress.separation.ended or "all scans were made")
        return ""

    def _on_score(self, known: Peer, numbered: Numbered, parts: Parts) -> str:
        score = numbered.message
        assert isinstance(score, Score)
        is_due = score.id in self.progress.unscored and self.progress.owners.get(score.id) == known.name
        if not is_due or score.session != self.session:
            return "not its part: no outcome of this agent waits for that score"
        self._record(numbered, parts, known.name)
        return ""

    def _on_control(self, known: Peer, numbered: Numbered, parts: Parts) -> str:
        """Do what a person decided; an abort is done before anything that could go wrong."""
        control = numbered.message
        assert isinstance(control, Control)
        if control.session not in ("", self.session):
            return f"wrong session: {control.session}"
        if control.action != "abort" and known.hello.role != "operator":
            return "not its part: only an operator decides that"
        if control.action == "separate" and not self._is_separating():
            return "not separating: start the session with correct.mode = 'separate'"
        before = self.progress.operator_hold
        try:
            self._record(numbered, parts, known.name)
        except OSError:  # what a person decides is done, also on a disk that fails, and the ack says so
            self.progress.apply(self._journal.next_record, numbered, known.name)
            self._unkept.add(numbered.sequence)
        detail = f"{control.action} by {known}: {control.reason}".rstrip(": ")
        self._event("control", detail)
        self._follow_operator(before)
        if control.action == "stop" and self._state != "draining":
            self._drain("stopped by the operator")
        elif control.action == "abort":
            self._command("cancel", "abort")
        elif control.action == "veto" and control.id in self.envelope.pending:
            self._command("cancel", "vetoed", control.id)
        elif control.action == "resume":
            self._release(MODEL)
        return ""

    def _is_separating(self) -> bool:
        distortion = self.envelope.registration.distortion
        return distortion is not None and distortion.mode == "separate"

    def _break_off(self) -> None:
        for action in ("park", "cancel"):
            self._send_unrecorded(Command(session=self.session, action=action, reason="abort"))

    def _follow_operator(self, before: str) -> None:
        hold = self.progress.operator_hold
        if hold and hold != before:
            self._hold(hold)
        if before and hold != before:
            self._release(before)

    # -- what goes out -------------------------------------------------------------------------

    def _record(
        self, numbered: Numbered, parts: Parts | None = None, owner: str = "", now_s: float | None = None
    ) -> int:
        """Write to the journal, apply, and send to whom it concerns: the only way anything happens."""
        message = numbered.message
        if parts is None:
            parts = encode(message, sender=numbered.sender, sequence=numbered.sequence, after=numbered.after)
        if self._is_unrecorded:
            record = self._journal.next_record
            self._journal.next_record += 1
        else:
            monotonic_s = time.monotonic() if now_s is None else now_s  # of the review, to be reviewed again
            record = self._journal.append(parts, time.time(), kind=kind_of(message), monotonic_s=monotonic_s)
            self.telemetry.journal_grew(_size(parts))
        names = self.progress.recipients(message)
        before = [self.progress.rows[name].last for name in names]
        self.progress.apply(record, numbered, owner, now_s)
        for name, after in zip(names, before, strict=True):
            self._deliver(name, record, after, message)
        return record

    def _deliver(self, name: str, record: int, after: int, message: Message) -> None:
        for identity, peer in self._peers.items():
            if peer.name != name:
                continue
            # What is nowhere else is not held back for later.
            if peer.hello.beats and len(peer.recent) == MOST_AHEAD and not self._is_unrecorded:
                peer.is_behind = peer.is_behind or peer.recent[0][0] > peer.confirmed
            if not peer.is_behind:
                self._router.send(identity, message, sequence=record, after=after)
                peer.recent.append((record, after, message))

    def _resend(self, peer: bytes, known: Peer, after: int) -> None:
        """Send again what follows a record, from memory or from the journal."""
        if not known.is_numbered:
            return
        row = self.progress.rows[known.name]
        if after >= row.last:
            return
        recent = [item for item in known.recent if item[0] > after]
        if recent and recent[0][1] <= after:
            for record, before, message in recent:
                self._router.send(peer, message, sequence=record, after=before)
            after = recent[-1][0]
        if after < row.last:
            after = self._resend_from_journal(peer, known, after)
            self._resend_unrecorded(peer, known, [item for item in recent if item[0] > after], after)
        self.telemetry.delivery("asked again")

    def _resend_unrecorded(
        self, peer: bytes, known: Peer, recent: list[tuple[int, int, Message]], after: int
    ) -> None:
        """Send what only the memory has; what it has no more is passed over, else the peer waits for ever."""
        for record, before, message in recent:
            if before > after:
                self.telemetry.delivery("not kept")
            self._router.send(peer, message, sequence=record, after=min(before, after))
            known.recent.append((record, min(before, after), message))
            after = record

    def _resend_from_journal(self, peer: bytes, known: Peer, after: int) -> int:
        """Send what the journal has of this row; return the last record of it."""
        row = self.progress.rows[known.name]
        known.recent.clear()
        for record in self._journal.records_from(max(after + 1, row.start), kinds=_ROW_KINDS):
            numbered = record.numbered()
            if not self.progress.is_for(known.name, record.number, numbered):
                continue
            message: Message = numbered.message
            if isinstance(message, Hello):
                message = self._welcome(known)
            self._router.send(peer, message, sequence=record.number, after=after)
            known.recent.append((record.number, after, message))
            after = record.number
        return after

    def _collect(self) -> None:
        """Take what the pipeline has finished and send it on."""
        while (DISK not in self.holds or self._is_unrecorded) and self._has_room(self._result_bytes):
            result = self._worker.get()
            if result is None:
                return
            self._on_result(result)

    def _on_result(self, result: Result) -> None:
        frame = result.frame
        self._waiting.pop(frame.number, None)
        self._last_word_s = time.monotonic()
        if frame.number in self._recovery.answers:
            self._compare_again(self._recovery.answers.pop(frame.number), result)
        elif result.processed is None:
            self._arrived_s.pop(frame.number, None)
            self.telemetry.frame_rejected(result.rejected_by, result.reason)
            if result.reason in _DISTORTION_FAULTS:
                self.telemetry.distortion_fault(_DISTORTION_FAULTS[result.reason])
            self._event("frame rejected", f"{result.reason} ({result.rejected_by})", frame.number)
            if result.reason == MODEL:
                self._retry_model_s = time.monotonic() + self._config.retry_model_s
                self._hold(MODEL, f"frame {frame.number}")
        else:
            self._send_latents(result)
            self._release(MODEL)
        if result.state is not None:
            self._keep_state(result.state)

    def _compare_again(self, known: Latents | None, result: Result) -> None:
        """A frame that the journal has an answer to was only analysed to bring the pipeline up to date."""
        again = None if result.processed is None else result.processed.latents
        if not is_same_answer(known, again):
            self.telemetry.message_refused("recovered differently")
            self._event("recovered differently", "another result than before", result.frame.number)
        if result.processed is not None and known is not None and known.request_id is None:
            self._last_atoms = result.processed.atoms
            self._atoms_count = len(known.mean)

    def _send_latents(self, result: Result) -> None:
        frame, processed = result.frame, result.processed
        assert processed is not None
        latents = processed.latents
        now_s = time.monotonic()
        arrived_s = self._arrived_s.pop(frame.number, now_s)
        if frame.request_id is None:
            self._last_atoms = processed.atoms
            self._atoms_count = len(latents.mean)
            self._undecided_s[frame.number] = arrived_s
        self._record(Numbered(latents))
        self._publisher.publish(latents)
        for message in processed.also:
            was_mapped = self.progress.separation.map_frames > 0
            self._record(Numbered(message))
            if isinstance(message, StrainMap) and not was_mapped:
                detail = f"strain is told from distortion by {message.frames} frames"
                self._event("strain map", detail, frame.number)
            self._publisher.publish(message)
        self.telemetry.frame_published(now_s - arrived_s)
        if latents.registration.distortion is not None:
            self.telemetry.distortion_came(latents.registration.distortion)
        if frame.request_id is None:
            self._separate(frame)
        for number in [n for n in self._undecided_s if n < frame.number - 256]:
            del self._undecided_s[number]

    def _keep_state(self, state: PipelineState) -> None:
        """Write all that a restart needs, so that it need not read what lies before."""
        if self._is_unrecorded:
            return
        replay_from = min(self._waiting.values(), default=self._journal.next_record)
        told = self._journal.next_record - 1
        checkpoint = make_checkpoint(self.session, told, self.progress.state(), state, replay_from)
        if not self._has_room(len(checkpoint.facts) + sum(array.nbytes for array in state.arrays.values())):
            return
        self._record(Numbered(checkpoint))
        agents = [row for name, row in self.progress.rows.items() if name.startswith("agent ")]
        needed = [row.told + 1 if row.checkpoint else row.first for row in agents]
        self._journal.needed_record = min([replay_from, *needed])

    def _send_acks(self) -> None:
        """Send the acks of what is in the journal, as long as the pipeline keeps up."""
        for peer, known in list(self._peers.items()):
            if known.acks:
                self._send_acks_of(peer, known)

    def _send_acks_of(self, peer: bytes, known: Peer) -> None:
        # Frames that have their ack and still wait for the analysis; in the end that counts no more.
        ahead = len(self._waiting) - sum(_is_of_frame(ack) for ack in known.acks)
        most = self._config.max_waiting if self._state == "running" else len(self._waiting)
        kept: Ack | None = None
        while known.acks and (ahead < most or not _is_of_frame(known.acks[0])):
            ack = known.acks.popleft()
            ahead += _is_of_frame(ack)
            if ack.status == "refused" or not ack.sequence:
                self._router.send(peer, ack)
            if ack.status == "refused":
                known.refused.append(ack.sequence)
            elif ack.sequence:
                kept = known.acked = ack
        if kept is not None:  # it speaks of all before it
            self._say_again_acked(peer, known)

    def _say_again_acked(self, peer: bytes, known: Peer) -> None:
        """Say what is acked and what was refused: nothing else tells a peer that an ack was lost."""
        acked = known.acked or Ack(session=self.session, number=-1, status=self._journal.config.durability)
        self._router.send(peer, msgspec.structs.replace(acked, refused=tuple(known.refused)))

    def _beat(self) -> None:
        for peer, known in self._peers.items():
            if known.is_numbered:
                self._beat_to(peer, known)
                if known.acked is not None or known.refused:
                    self._say_again_acked(peer, known)
        if self._state == "draining":
            self._say_bye()

    def _beat_to(self, peer: bytes, known: Peer) -> None:
        known.beaten_s = time.monotonic()
        beat = Heartbeat(
            received=known.inbox.last,
            is_missing=known.inbox.has_gap,
            last_record=known.recent[-1][0] if known.recent else 0,
        )
        self._router.send(peer, beat)

    def _event(self, what: str, detail: str, number: int = -1) -> None:
        self._log.info(what, detail=detail, **({} if number < 0 else {"frame": number}))
        message = Event(at_s=time.time(), what=what, detail=detail, number=number)
        try:
            self._record(Numbered(message))
        except OSError as error:  # a full disk must not keep us from saying so
            self._log.warning("event not kept", what=what, reason=error.strerror)
            self.progress.apply(self._journal.next_record, Numbered(message))
        self._publisher.publish(message)

    def _say(self, suggestion: Suggestion, verdict: str) -> None:
        x, y = suggestion.position_nm
        self._said.appendleft(f"{suggestion.id} ({x:.2f}, {y:.2f}) nm, {verdict}: {suggestion.reason}")

    def _publish_status(self, at_s: float, *, now: bool = False) -> None:
        if not now and at_s < self._next_status_s:
            return
        self._next_status_s = at_s + self._config.status_interval_s
        self.telemetry.stands_at(waiting=len(self._waiting), dose_e=self.envelope.ledger.total_e)
        self._look_at_the_door()
        self._publisher.publish(self.status())

    def _look_at_the_door(self) -> None:
        """Count who was not let in, and say so when the allow-list cannot be read."""
        # Copied in one step: the sockets' doors count in threads of their own.
        self.telemetry.strangers(Counter(dict(self._router.refused)) + Counter(dict(self._publisher.refused)))
        problem = "" if self._keys is None else self._keys.problem
        if problem != self._keys_problem:
            self._keys_problem = problem
            self._event("nobody is let in" if problem else "keys are read again", problem)

    def _distortion(self) -> str:
        """Say what was corrected in the latest frame; nothing before the first."""
        if not self.progress.tally["published"]:
            return ""
        return distortion_status(self.envelope.registration.distortion, self.progress.separation)

    def status(self) -> Status:
        """Say where the session stands."""
        progress, tally = self.progress, self.progress.tally
        frames = {name: tally[name] for name in ("received", "published", "rejected", "dropped", "missed")}
        best = progress.best
        return Status(
            session=self.session,
            at_s=time.time(),
            state="held" if self.holds and self._state == "running" else self._state,  # type: ignore[arg-type]
            held=tuple(self.holds),
            frames=frames | {"waiting": len(self._waiting)},
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
            distortion=self._distortion(),
            best=float("nan") if best is None else best.value,
            best_position_nm=None if best is None else progress.positions.get(best.id),
            suggestions=tuple(self._said),
        )


# «other» is what an earlier version had no word for: in a row a record that is left out is waited for.
_ROW_KINDS = frozenset(
    {
        "other",
        "strain_map",
        "hello",
        "request",
        "command",
        "latents",
        "outcome",
        "suggestion",
        "model_revision",
        "score",
        "checkpoint",
    }
)


def _size(parts: Parts) -> int:
    return sum(map(len, parts))


def _is_of_frame(ack: Ack) -> bool:
    """Is it the ack of a frame that was kept?"""
    return ack.number >= 0 and ack.status != "refused"


def _is_of(message: AnyMessage, known: Peer) -> bool:
    """A checkpoint is of whoever sends it: nobody speaks for the streamer or for another agent."""
    return not isinstance(message, Checkpoint) or message.of == known.hello.name
