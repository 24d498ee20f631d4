"""Who is connected: instruments, agents, operators; credit, acks, routing, and the safe state.

The hub runs in one thread and is the only one that touches sockets and journal. Whatever happens it
writes to the journal first and then applies to ``Progress``, so that a restart, which applies the same
records, stands where this one stood. The pipeline runs in a second thread: acks never wait for the
science. While too many frames wait before it the acks are held back, and an instrument that can wait does.

What it cannot trust it does not guess about: it holds. The beam is parked and nothing is requested until
the cause is gone (see ``docs/guides/when-something-fails.md``). What becomes of a suggestion is decided in
``suggestions.py``.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

import msgspec
import structlog

from streamer.admission import DECLINED, why_not_frame
from streamer.codec import Numbered, Parts, WireError, decode_numbered, encode
from streamer.config import ExperimentConfig, HubConfig
from streamer.distortion_status import distortion_status
from streamer.encoders import Lane, Missing
from streamer.envelope import Envelope, RefusedError
from streamer.full_disk import SLACK_BYTES, Arrival, DiskRoom, size_of
from streamer.holds import AGENT, DISK, MODEL, Holds
from streamer.journal import Journal, kind_of
from streamer.keys import ServerKeys
from streamer.messages import (
    Ack,
    AnyMessage,
    Atoms,
    Bye,
    Checkpoint,
    Command,
    Control,
    EncoderInUse,
    Enough,
    Event,
    Frame,
    Heartbeat,
    Hello,
    Latents,
    ModelRevision,
    Outcome,
    Patches,
    Request,
    Resend,
    Score,
    Status,
    StrainMap,
    Suggestion,
)
from streamer.motion import ColumnsMotion
from streamer.oversight import NOT_WAITING
from streamer.peers import Peer, Peers, Turn
from streamer.pipeline import PipelineState
from streamer.progress import ENCODER_REFUSED, INSTRUMENT, Progress, row_name
from streamer.recovery import Recovery, is_same_answer, latest_before, make_checkpoint, recover
from streamer.suggestions import Suggestions
from streamer.telemetry import Telemetry
from streamer.weights import Shelf
from streamer.wire import Publisher, Router
from streamer.worker import FrameProcessor, Result, Worker

DRAIN_S = 10.0
FAREWELL_S = 1.0
TURN_S = 0.02
BEAT_S = 0.25
# A frame with which the analysis began so often and never ended is left out.
MOST_TRIES = 2
# After a restart agents are welcomed when the instrument is back, or after so long: what they suggest before
# would be refused for want of one, and they would go another way than without the restart.
RETURN_S = 5.0
# What others must be told by the journal, or what is measured by it: not without it.
NEED_THE_JOURNAL = ("approve", "decline", "steer")
# Frames that the correction rejects, as faults of its own.
_DISTORTION_FAULTS = {"blank frame": "blank", "lattice lost": "lost"}


class WorkerStuck(RuntimeError):
    """The analysis of one frame takes so long that only a restart can help."""


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
    shelf
        Makes other weights ready for the encoders; None where they cannot be changed.
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
        shelf: Shelf | None = None,
    ) -> None:
        self.session = session
        self.telemetry = telemetry
        self.envelope = envelope
        self.progress = Progress(envelope)
        self.holds = Holds(hub_config, instruct=self._command, tell=self._tell_hold, show=self._show)
        self._router = router
        self._publisher = publisher
        self._journal = journal
        self._config = hub_config
        self._experiment = experiment
        self._keys = keys
        self._keys_problem = ""
        self._shelf = shelf
        self._log = structlog.get_logger()
        motion = ColumnsMotion(telemetry.columns_moved)
        self._worker = Worker(processor, telemetry, hub_config.checkpoint_frames, motion.observe)
        self._peers = Peers(
            session=session,
            window=hub_config.window,
            outlet=router,
            journal=journal,
            progress=self.progress,
            telemetry=telemetry,
            keys=keys,
        )
        self._suggestions = Suggestions(
            session,
            progress=self.progress,
            telemetry=telemetry,
            holds=self.holds,
            experiment=experiment,
            record=self._record,
            event=self._event,
            show=self._show,
            ends=lambda: self._end_reason if self._state == "draining" else None,
            has_instrument=lambda: self._peers.instrument is not None,
        )
        self._room = DiskRoom(
            journal, journal.config.on_full, hold=self._wait_for_room, give_up=self._go_on_unrecorded
        )
        self._waiting: dict[int, int] = {}  # frames before the pipeline: their records
        self._arrived_s: dict[int, float] = {}
        self._last_atoms: Atoms | None = None
        self._atoms_count = 0
        self._state = "waiting"
        self._end_reason = ""
        self._last_word_s = 0.0
        self._instrument_due_s = 0.0
        self._draining_since_s = 0.0
        self._next_status_s = 0.0
        self._next_beat_s = 0.0
        self._frame_s = 0.0
        self._result_bytes = SLACK_BYTES
        self._unkept: set[int] = set()
        self._lanes: deque[tuple[int, Lane]] = deque()  # of an earlier process, by their first frame
        self._missing: dict[str, str] = {}  # encoders that had nothing to say lately, and why
        self._recovery = Recovery()

    # -- a restart -----------------------------------------------------------------------------

    def recover(self) -> PipelineState | None:
        """Stand where an earlier process of this session stood, by its journal.

        Returns
        -------
        state
            What the pipeline must be restored to before ``run``; None for one that is new.

        Raises
        ------
        ValueError
            If weights are gone that were put in place while the session ran.
        """
        self._recovery = recover(self._journal, self.progress)
        self._waiting = dict(self._recovery.records)
        if self._shelf is not None:
            for change in latest_before(self.progress.encoders, self._recovery.first_number):
                self._lanes.append((change.number, self._shelf.load(change.encoder, change.revision)))
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
        is_new = not self.progress.rows
        self._event("session_started" if is_new else "session_resumed", self.session)
        if is_new and self._experiment.mode != "auto":
            mode = self._experiment.mode
            self._record(Numbered(Control(action="mode", mode=mode, reason="as configured")))
        elif (now := self.progress.oversight.mode) != self._experiment.mode:
            self._event("mode", f"{now}, as before; the configuration says {self._experiment.mode}")
        if self.progress.operator_hold:
            self.holds.hold(self.progress.operator_hold)
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
            self._put_in_place(frame.number)
            self._worker.put(frame)
        self._put_in_place(self.progress.next_number)
        self._recovery.frames = []
        for control in self.progress.wanted if self._shelf is not None else ():
            self._shelf.begin(control)  # type: ignore[union-attr]

    def _put_in_place(self, number: int) -> None:
        """Let frames from this number on be encoded with the weights that they were encoded with before."""
        while self._lanes and self._lanes[0][0] <= number:
            self._worker.put(self._lanes.popleft()[1])

    def _turn(self) -> None:
        for peer, key, parts in self._incoming():
            self._take(peer, key, parts)
        self._journal.sync()
        self._suggestions.give_owed()
        self._collect()
        self._change_encoder()
        self._send_acks()
        now_s = time.monotonic()
        if now_s >= self._next_beat_s:
            self._next_beat_s = now_s + BEAT_S
            self._watch(now_s)
            self._beat(now_s)
        self._publish_status(now_s)

    def _incoming(self) -> Iterator[tuple[bytes, str, list[memoryview]]]:
        """Give what came; what the disk could not take comes first, once there is room."""
        is_waiting = DISK in self.holds and not self._room.is_unrecorded
        if is_waiting and self._room.is_back(self._result_bytes, time.monotonic()):
            self.holds.release(DISK)
        self._go_on_with_turns()
        while self._room.stalled and DISK not in self.holds:
            yield self._room.stalled.take()
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
        busy = self._waiting or (self.envelope.pending and self._peers.instrument is not None)
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
        if self._peers.instrument is not None:
            self._router.send(self._peers.instrument, Bye(reason=self._end_reason))

    def _finish(self) -> None:
        self._suggestions.skip_pending("the session ended")
        if self._shelf is not None:
            self._shelf.close()
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
        left = [peer.identity for peer in self._peers]
        while left and time.monotonic() < deadline_s:
            left = [peer for peer in left if self._router.send(peer, Bye(reason=self._end_reason))]
            if left:
                self._router.receive(TURN_S, most=1024)

    # -- the safe state ------------------------------------------------------------------------

    def _tell_hold(self, what: str, reason: str, detail: str) -> None:
        if what == "held":
            self.telemetry.held(reason)
        self._event(what, f"{reason}: {detail}" if detail else reason)

    def _show(self) -> None:
        self._publish_status(time.monotonic(), now=True)

    def _command(self, action: str, reason: str, identifier: str = "") -> bool:
        """Tell the instrument what to do at once; False where there never was one."""
        if INSTRUMENT not in self.progress.rows:
            return False
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
        return True

    def _send_unrecorded(self, command: Command) -> None:
        if self._peers.instrument is not None:
            self._router.send(self._peers.instrument, command)

    def _park_at_the_last(self, why: str) -> None:
        """Before this process ends by a fault: the instrument also parks by itself when it hears no more."""
        self._send_unrecorded(Command(session=self.session, action="park", reason=f"streamer fails: {why}"))

    def _watch(self, now_s: float) -> None:
        """Notice whoever went silent or is stuck, and whoever is back."""
        for peer in self._peers.notice_silence(now_s, self._config.silent_after_s):
            self._event("silent" if peer.is_silent else "heard again", str(peer))
        self._peers.forget(now_s)
        if self._state != "draining":
            self._watch_peers(now_s)
        busy_s = self._worker.busy_s(now_s)
        self.holds.watch_analysis(busy_s)
        if busy_s > self._config.give_up_after_s:
            raise WorkerStuck(f"the analysis of one frame has taken {busy_s:.1f} s; the streamer starts anew")
        self.holds.give_model_a_try(now_s)

    def _watch_peers(self, now_s: float) -> None:
        """Hold while the instrument or the agents cannot be relied on; at the end they may leave."""
        request_s = max((r.dwell_time_us * 1e-6 for r in self.envelope.pending.values()), default=0.0)
        instrument = self._peers.get(self._peers.instrument)
        self.holds.watch_instrument(instrument, now_s, self._frame_s, request_s)
        self._watch_agents(now_s)

    def _watch_agents(self, now_s: float) -> None:
        self.holds.watch_agents((peer for peer in self._peers if peer.hello.role == "agent"), now_s)

    def _has_room_for(self, message: AnyMessage, parts: Parts) -> bool:
        """Say whether a message may be taken now; on a full disk all wait in order but an operator's."""
        is_operator = isinstance(message, Hello) and message.role == "operator"
        if self._room.is_unrecorded or is_operator or isinstance(message, Control):
            return True
        return DISK not in self.holds and self._has_room(size_of(parts))

    def _has_room(self, size_bytes: int) -> bool:
        return self._room.has(size_bytes, time.monotonic())

    def _wait_for_room(self, reason: str) -> None:
        self.holds.hold(DISK, f"{reason}: nothing is acked; make room and it goes on by itself")

    def _go_on_unrecorded(self, reason: str) -> None:
        self._peers.catch_up_all()
        self.telemetry.held(DISK)
        self._event("unrecorded", f"{reason}: from here on nothing is kept, as configured")

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
        if refused := self._peers.why_not_heard(key, known, message):
            self._refuse_part(peer, known, numbered, refused)
            return
        match message:
            case Heartbeat():
                self._peers.hear(peer, key, message, time.monotonic())
                return
            case Resend() if known is not None:
                self._peers.send_again(known, message.after)
                return
            case _:
                pass
        if known is not None:
            known.heard_s = known.used_s = time.monotonic()
            if AGENT in self.holds:  # what an agent says that is back is not refused for its silence
                self._watch_agents(known.heard_s)
            if isinstance(message, Control) and message.action == "abort":
                self._break_off()  # at once: what is written of it waits for its turn
            if known.is_numbered and numbered.sequence and numbered.sender != known.hello.instance:
                self.telemetry.message_refused("another's name")
                return
        if not self._has_room_for(message, parts):
            # It has no ack: what is dropped here its sender still has.
            if dropped := self._room.stalled.keep(Arrival(peer, key, parts), numbered.sequence):
                self.telemetry.delivery(dropped)
            return
        if isinstance(message, Hello):
            self._on_hello(peer, key, message)
        elif known is None:
            self._refuse_stranger(peer, message)
        elif not known.is_numbered or not numbered.sequence:
            if not isinstance(message, Frame | Patches):  # whose it is would else be forgotten in a restart
                parts = encode(message, sender=known.name[:64])  # type: ignore[assignment]
            self._route(known, Numbered(message), parts)
        else:
            self._in_order(known, numbered, parts)

    def _refuse_part(self, peer: bytes, known: Peer | None, numbered: Numbered, reason: str) -> None:
        """Refuse what a key may not say, and tell a peer that may talk at all."""
        message = numbered.message
        self.telemetry.message_refused(reason)
        self._log.warning("refused", reason=reason, kind=type(message).__name__)
        if reason == "not its part" and isinstance(message, Hello):
            self._router.send(peer, Bye(reason=f"this key is not one for the role {message.role}"))
        elif reason == "not its part" and known is not None and known.is_numbered and numbered.sequence:
            self._in_order(known, numbered, (), reason)

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
            self._in_order(known, unread, (), str(error))

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
        number = message.number if isinstance(message, Frame | Patches) else -1
        reason = "hello first; a peer says Hello before anything else"
        self._router.send(peer, Ack(session=self.session, number=number, status="refused", reason=reason))

    def _in_order(self, known: Peer, numbered: Numbered, parts: Parts, refused: str = "") -> None:
        """Act on a numbered message, and those behind it, when its turn comes; one to be refused as well."""
        self._route_all(known, self._peers.in_order(known, numbered, parts, refused, time.monotonic()))

    def _route_all(self, known: Peer, turns: Iterable[Turn]) -> None:
        for numbered, parts, refused in turns:
            if refused:
                self._settle_refused(known, numbered, refused)
            elif self._room.turns or not self._has_room_for(numbered.message, parts):
                self._room.turns.append((known.identity, numbered, parts))
            else:
                self._route(known, numbered, parts)

    def _go_on_with_turns(self) -> None:
        """Act on messages whose turn came when the disk was full."""
        while self._room.turns:
            identity, numbered, parts = self._room.turns[0]
            if not self._has_room_for(numbered.message, parts):
                return
            self._room.turns.popleft()
            known = self._peers.get(identity)
            if known is not None:
                self._route(known, numbered, parts)

    def _route(self, known: Peer, numbered: Numbered, parts: Parts) -> None:
        """Act on a message whose turn it is."""
        message = numbered.message
        if not isinstance(message, Suggestion):  # an agent that goes on asking does not keep us open
            self._last_word_s = time.monotonic()
        is_instrument = known.identity == self._peers.instrument
        refused = ""
        match message:
            case Frame() | Patches() if known.hello.role == "instrument":
                self._on_frame(known, numbered, parts)
                return
            case Bye():
                self._record(numbered, parts, known.name)
                self._on_bye(known, numbered)
                return
            case Suggestion() if known.hello.role in ("agent", "operator"):
                refused = self._suggestions.take(known, numbered, parts)
            case Outcome() if is_instrument:
                refused = self._suggestions.take_outcome(numbered)
            case Score() if known.hello.role == "agent":
                refused = self._on_score(known, numbered, parts)
            case ModelRevision() | Checkpoint() | Enough() if known.hello.role == "agent" and _is_of(
                message, known
            ):
                if message.told < self._journal.next_record:
                    self._record(numbered, parts, known.name)
                    if isinstance(message, Enough):
                        self._event(
                            "enough", f"the agent ({message.policy}) suggests no more: {message.reason}"
                        )
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
        is_kept = not self._room.is_unrecorded and numbered.sequence not in self._unkept
        self._unkept.discard(numbered.sequence)
        status = self._journal.config.durability if is_kept else "unrecorded"
        return Ack(
            session=self.session,
            number=number,
            status=status,
            sequence=numbered.sequence,
        )

    def _on_hello(self, peer: bytes, key: str, hello: Hello) -> None:
        if refused := self._peers.why_not_welcome(peer, key, hello):
            self.telemetry.message_refused("not welcome")
            self._log.warning("not welcome", who=f"{hello.role} {hello.name}", reason=refused)
            self._router.send(peer, Bye(reason=refused))
            return
        is_early = self._peers.instrument is None and time.monotonic() < self._instrument_due_s
        if hello.role == "agent" and hello.beats and is_early:  # its link says Hello again
            return
        row = self.progress.rows.get(row_name(hello))
        is_new = row is None or row.instance != hello.instance or not hello.instance
        known, is_met = self._peers.meet(peer, key, hello, time.monotonic())
        if hello.instance:
            self._route_all(known, known.inbox.skip_to(hello.resumes_from - 1))
        if is_new:
            if hello.role == "instrument":
                # A microscope computer that was restarted knows nothing of what was asked before.
                self._suggestions.skip_pending("the instrument was restarted")
            try:
                self._record(Numbered(hello))
            except OSError:  # an operator must be let in, also when the disk takes nothing
                self.progress.apply(self._journal.next_record, Numbered(hello))
            self._event("connected", str(known))
        if AGENT in self.holds:
            self._watch_agents(known.heard_s)
        if hello.role == "instrument":
            self._peers.instrument = peer
            if self._state == "waiting":
                self._state = "running"
        self._journal.sync()  # a Welcome acks what it says was received
        if known.refused:
            self._peers.ack_again(known)
        self._router.send(peer, self._peers.welcome(known))
        self._peers.send_again(known, hello.last_record)
        if hello.role == "instrument" and self.holds and (is_new or not is_met):
            self.holds.park(next(iter(self.holds)))
        elif hello.role == "instrument" and not is_new and not is_met:
            self.holds.go("the streamer is back")  # an earlier process of ours may have had it parked
        if self._state == "draining":
            self._router.send(peer, Bye(reason=self._end_reason))

    def _on_bye(self, known: Peer, numbered: Numbered) -> None:
        bye = numbered.message
        assert isinstance(bye, Bye)
        if known.is_numbered:
            self._journal.sync()
            self._router.send(known.identity, self._ack(numbered, -1))
        self._peers.remove(known)
        self._event("left", f"{known}: {bye.reason}")
        if known.hello.role == "agent":  # it went in order: the others, if any, are looked after
            self.holds.release(AGENT)
        if known.identity == self._peers.instrument:
            self._peers.instrument = None
            if self._state != "draining":
                self._drain(bye.reason or "the instrument left")

    def _on_frame(self, known: Peer, numbered: Numbered, parts: Parts) -> None:
        frame = numbered.message
        assert isinstance(frame, Frame | Patches)
        self.telemetry.frame_received()
        refusal = why_not_frame(
            frame,
            session=self.session,
            expected=self.progress.next_number,
            is_from_instrument=known.identity == self._peers.instrument,
            ahead=known.frames_ahead,
            window=self._config.window,
            pending=self.envelope.pending,
            known=self.progress.positions,
        )
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
        # Latents, and the state of the pipeline: a reference image and a few positions.
        data = frame.image if isinstance(frame, Frame) else frame.windows
        self._result_bytes = 2 * data.nbytes + SLACK_BYTES
        # The scan of patches may all be in the camera before the first of them is sent.
        self._frame_s = frame.dwell_time_us * 1e-6 * math.prod(frame.geometry.shape)
        self._arrived_s[frame.number] = time.monotonic()
        self._waiting[frame.number] = record
        self._worker.put(frame)
        known.acks.append(self._ack(numbered, frame.number))

    def _on_score(self, known: Peer, numbered: Numbered, parts: Parts) -> str:
        score = numbered.message
        assert isinstance(score, Score)
        is_scored_anew = self.progress.steered_at > 0 and score.id in self.progress.positions
        is_waited_for = score.id in self.progress.unscored or is_scored_anew
        owner = self.progress.owners.get(score.id, "")
        is_due = is_waited_for and (owner == known.name or owner.startswith("operator "))
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
        if control.action == "separate" and not self._suggestions.is_separating:
            return "not separating: start the session with correct.mode = 'separate'"
        if control.action != "abort" and (why := self.progress.oversight.why_not(control)):
            return why
        if why := self._why_not_forbidden(control):
            return why
        if control.action == "encoder":
            return self._want_encoder(known, numbered, control)
        before, now_s = self.progress.operator_hold, time.monotonic()
        answers = control.action in ("approve", "decline", "veto")
        waiting = self.progress.oversight.find(control.id) if answers else None
        if waiting is not None and self._suggestions.is_owed(waiting.id):
            return NOT_WAITING
        verdict: Request | RefusedError = RefusedError(DECLINED, control.reason or f"by {known}")
        if waiting is not None and control.action == "approve":
            verdict = self._suggestions.review(waiting, now_s, has_waited=True)
        try:
            self._record(numbered, parts, known.name, now_s)
        except OSError as error:
            if control.action in NEED_THE_JOURNAL:
                return f"disk: {error.strerror}; it was not done"
            # What a person decides for safety is done, also on a disk that fails, and the ack says so.
            self.progress.apply(self._journal.next_record, numbered, known.name)
            self._unkept.add(numbered.sequence)
        named = control.forbidden_in_words if control.action == "veto" else control.mode or control.id
        what = " ".join(word for word in (control.action, named) if word)
        self._event("control", f"{what} by {known}: {control.reason}".rstrip(": "))
        self._follow_operator(before)
        if control.action in ("mode", "steer"):
            self._suggestions.withdraw_waiting(
                f"a person changed the {', '.join(control.settings) or 'mode'}"
            )
            self._show()
        elif waiting is not None:
            try:
                self._suggestions.carry_out(waiting, verdict, now_s, None)
            except OSError as error:
                return f"disk: {error.strerror}; it was not done"
            finally:
                self._show()
        if control.action == "stop" and self._state != "draining":
            self._drain("stopped by the operator")
        elif control.action == "abort":
            self._command("cancel", "abort")
        elif control.action == "veto" and control.id in self.envelope.pending:
            self._command("cancel", "vetoed", control.id)
        elif control.action == "resume":
            self.holds.release(MODEL)
            self.holds.release(AGENT)  # one that is gone for good; another one is held again
        elif control.action in ("place", "forget"):
            self._show()
        return ""

    def _why_not_forbidden(self, control: Control) -> str:
        """Say why a person's word on what is forbidden changes nothing; empty if it does."""
        forbidden = self.envelope.forbidden
        if control.action == "veto" and not control.corners_nm:
            if self.progress.place_of(control.id) is not None:
                return ""
            if control.id in self.progress.positions or self.progress.oversight.find(control.id):
                return "unknown place: the reference has changed since; veto where it is now, by its place"
            return f"unknown id: nothing was suggested as {control.id}; see the live view"
        if control.action not in ("place", "forget"):
            return ""
        if not forbidden.lost_in_words:
            return "nothing lost: every forbidden area and veto lies where it lay"
        if control.action == "place" and forbidden.are_apart:
            return (
                "lost apart: they were lost at different times, and one shift cannot place all; veto what is "
                "here anew, then forget the others"
            )
        return ""

    def _want_encoder(self, known: Peer, numbered: Numbered, control: Control) -> str:
        """Begin to make other weights ready; the journal has their hash, and their bytes lie beside it."""
        if self._shelf is None:
            return "no encoder: this session has none that could be changed"
        if why := self._shelf.why_not(control):
            return why
        wish = msgspec.structs.replace(control, weights=None)
        try:
            self._record(msgspec.structs.replace(numbered, message=wish), owner=known.name)
        except OSError as error:
            return f"disk: {error.strerror}; the weights could not be kept"
        self._event("control", f"encoder {control.revision} by {known}: {control.reason}".rstrip(": "))
        self._shelf.begin(control)
        return ""

    def _change_encoder(self) -> None:
        """Put weights in place that have become ready: for the first frame that has not come yet."""
        ready = None if self._shelf is None or self._state == "draining" else self._shelf.get()
        if ready is None:
            return
        control, lane = ready.control, ready.lane
        if lane is None:
            self._event(ENCODER_REFUSED, ready.why_not)
            return
        change = EncoderInUse(
            session=self.session,
            encoder=control.encoder,
            number=self.progress.next_number,
            revision=control.revision,
            name=lane.encoder.card.name,
            reason=control.reason,
        )
        self._record(Numbered(change))
        self._worker.put(lane)
        self._publisher.publish(change)
        which = control.encoder or "main"
        self._event("encoder in use", f"{which}: {change.name} ({change.revision})", change.number)

    def _tell_lost(self, lost: str, number: int) -> None:
        """What was granted for another place may now be a forbidden one."""
        self._event(
            "areas lost", f"nobody knows where {lost} lie; say it by: probeloop control place", number
        )
        if self.envelope.pending:
            self._command("cancel", "areas lost")
        self._show()

    def _break_off(self) -> None:
        for action in ("park", "cancel"):
            self._send_unrecorded(Command(session=self.session, action=action, reason="abort"))

    def _follow_operator(self, before: str) -> None:
        hold = self.progress.operator_hold
        if hold and hold != before:
            self.holds.hold(hold)
        if before and hold != before:
            self.holds.release(before)

    # -- what goes out -------------------------------------------------------------------------

    def _record(
        self, numbered: Numbered, parts: Parts | None = None, owner: str = "", now_s: float | None = None
    ) -> int:
        """Write to the journal, apply, and send to whom it concerns: the only way anything happens."""
        message = numbered.message
        if parts is None:
            parts = encode(message, sender=numbered.sender, sequence=numbered.sequence, after=numbered.after)
        if self._room.is_unrecorded:
            record = self._journal.next_record
            self._journal.next_record += 1
        else:
            monotonic_s = time.monotonic() if now_s is None else now_s  # of the review, to be reviewed again
            record = self._journal.append(parts, time.time(), kind=kind_of(message), monotonic_s=monotonic_s)
            self.telemetry.journal_grew(size_of(parts))
        names = self.progress.recipients(message)
        before = [self.progress.rows[name].last for name in names]
        self.progress.apply(record, numbered, owner, now_s)
        for name, after in zip(names, before, strict=True):
            self._peers.deliver(name, record, after, message, is_kept=not self._room.is_unrecorded)
        return record

    def _collect(self) -> None:
        """Take what the pipeline has finished and send it on."""
        while (DISK not in self.holds or self._room.is_unrecorded) and self._has_room(self._result_bytes):
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
                self.holds.doubt_model(f"frame {frame.number}", time.monotonic())
        else:
            self._send_latents(result)
            self.holds.release(MODEL)
        if result.state is not None:
            self._keep_state(result.state)

    def _compare_again(self, known: Latents | None, result: Result) -> None:
        """A frame that the journal has an answer to was only analysed to bring the pipeline up to date."""
        again = None if result.processed is None else result.processed.latents
        is_same = is_same_answer(known, again)
        for latents in () if result.processed is None else result.processed.beside:
            before = self._recovery.beside.pop((latents.number, latents.encoder), None)
            if before is None:  # the earlier process ended between the two
                self._tell_beside(latents)
            else:
                is_same = is_same and is_same_answer(before, latents)
        if not is_same:
            self.telemetry.message_refused("recovered differently")
            self._event("recovered differently", "another result than before", result.frame.number)
        is_frame = isinstance(result.frame, Frame)
        if is_frame and result.processed is not None and known is not None and known.request_id is None:
            self._last_atoms = result.processed.atoms
            self._atoms_count = len(known.mean)

    def _send_latents(self, result: Result) -> None:
        frame, processed = result.frame, result.processed
        assert processed is not None
        latents = processed.latents
        now_s = time.monotonic()
        arrived_s = self._arrived_s.pop(frame.number, now_s)
        is_full_frame = isinstance(frame, Frame) and frame.request_id is None
        if is_full_frame:
            self._last_atoms = processed.atoms
            self._atoms_count = len(latents.mean)
            self._suggestions.wait_for(frame.number, arrived_s)
        were_lost = self.envelope.forbidden.lost_in_words
        self._record(Numbered(latents))
        self._publisher.publish(latents.without_windows())
        if (are_lost := self.envelope.forbidden.lost_in_words) != were_lost:
            self._tell_lost(are_lost, frame.number)
        for further in processed.beside:
            self._tell_beside(further)
        self._note_missing(processed.missing, frame.number)
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
        if isinstance(frame, Frame) and frame.request_id is None:
            self._suggestions.separate(frame)
            if self.progress.oversight.mode == "advise":
                self._suggestions.withdraw_waiting("advice on an earlier frame")

    def _tell_beside(self, latents: Latents) -> None:
        """Send on what an encoder beside the main one says of a frame."""
        self._missing.pop(latents.encoder, None)
        self._record(Numbered(latents))
        self._publisher.publish(latents.without_windows())

    def _note_missing(self, missing: Iterable[Missing], number: int) -> None:
        """Count encoders that had nothing to say of a frame; the first time in a row a person is told."""
        for encoder, reason in missing:
            self.telemetry.encoder_missed(encoder, reason)
            if self._missing.get(encoder) != reason:
                self._missing[encoder] = reason
                self._event("not encoded", f"{encoder}: {reason}", number)

    def _keep_state(self, state: PipelineState) -> None:
        """Write all that a restart needs, so that it need not read what lies before."""
        if self._room.is_unrecorded:
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
        """Send the acks of what is in the journal, as long as the pipeline keeps up; in the end, all."""
        most = self._config.max_waiting if self._state == "running" else len(self._waiting)
        self._peers.send_acks(len(self._waiting), most)

    def _beat(self, now_s: float) -> None:
        self._peers.beat(now_s)
        if self._state == "draining":
            self._say_bye()

    def _event(self, what: str, detail: str, number: int = -1) -> None:
        self._log.info(what, detail=detail, **({} if number < 0 else {"frame": number}))
        message = Event(at_s=time.time(), what=what, detail=detail, number=number)
        try:
            self._record(Numbered(message))
        except OSError as error:  # a full disk must not keep us from saying so
            self._log.warning("event not kept", what=what, reason=error.strerror)
            self.progress.apply(self._journal.next_record, Numbered(message))
        self._publisher.publish(message)

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
            suggestions=self._suggestions.said,
            mode=progress.oversight.mode,
            revision=progress.oversight.revision,
            waiting=progress.oversight.in_words(),
            lost=self.envelope.forbidden.lost_in_words,
        )


def _is_of(message: AnyMessage, known: Peer) -> bool:
    """A checkpoint is of whoever sends it: nobody speaks for the streamer or for another agent."""
    return not isinstance(message, Checkpoint) or message.of == known.hello.name
