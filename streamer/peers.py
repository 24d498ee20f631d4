"""Peers: who is connected, what each of them still lacks, and what it may send.

Two rows of messages run between the streamer and a peer. Down go records of the journal, a few ahead of what
the peer says that it has; the rest waits in the journal, and what was lost is sent again. Up come its own
messages, acked in order: an ack that is held back is a place in its window that it does not get.

Time is an argument, in seconds of a clock that never steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from streamer.codec import Numbered, Parts
from streamer.delivery import Inbox
from streamer.journal import Journal
from streamer.keys import ServerKeys, may_send
from streamer.messages import Ack, AnyMessage, Bye, Heartbeat, Hello, Message, Welcome
from streamer.progress import Progress, row_name
from streamer.telemetry import Telemetry

# Messages sent to a peer ahead of what it says that it has; the rest waits in the journal.
MOST_AHEAD = 32
# A peer that has said nothing for so long is forgotten; it says Hello again if it is there after all.
FORGET_S = 600.0
GAP_BEAT_S = 0.05
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


class Outlet(Protocol):
    """What a message leaves by: the router, or a list in a test."""

    def send(self, peer: bytes, message: Message, *, sequence: int = 0, after: int = 0) -> bool:
        """Send to one peer; False when it is gone."""
        ...


class Sent(NamedTuple):
    """A record as it was sent: after which one it comes in the row of this peer."""

    record: int
    after: int
    message: Message


class Turn(NamedTuple):
    """A message that waits for those before it; ``refused`` says why it will not be acted on."""

    numbered: Numbered
    parts: Parts
    refused: str


@dataclass
class Peer:
    """One connection.

    Attributes
    ----------
    identity
        Of its connection.
    hello
        What it said of itself.
    name
        Of its row of messages.
    key
        The public key that it was let in with; empty without keys.
    inbox
        Puts its messages in order.
    heard_s, used_s
        When it was last heard, and when its program last used its link.
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
        The last messages sent to it.
    """

    identity: bytes
    hello: Hello
    name: str
    key: str
    heard_s: float
    inbox: Inbox[Turn] = field(default_factory=Inbox)
    used_s: float = 0.0
    beaten_s: float = 0.0
    confirmed: int = 0
    is_behind: bool = False
    is_silent: bool = False
    acks: deque[Ack] = field(default_factory=deque)
    acked: Ack | None = None
    refused: deque[int] = field(default_factory=lambda: deque(maxlen=16))
    recent: deque[Sent] = field(default_factory=lambda: deque(maxlen=MOST_AHEAD))

    @property
    def is_numbered(self) -> bool:
        """Does it number its messages?"""
        return bool(self.hello.instance)

    @property
    def is_far_ahead(self) -> bool:
        """Was it sent as much as may be on the way, of which it has said nothing yet?"""
        return self.hello.beats and len(self.recent) == MOST_AHEAD and self.recent[0].record > self.confirmed

    @property
    def last_sent(self) -> int:
        """Number of the last record that it was sent; 0 for none."""
        return self.recent[-1].record if self.recent else 0

    @property
    def frames_ahead(self) -> int:
        """Frames that it sent and that were neither acked nor refused yet."""
        return sum(ack.number >= 0 for ack in self.acks)

    def __str__(self) -> str:
        return f"{self.hello.role} {self.hello.name}"

    def take_acks(self, waiting: int, most: int) -> list[Ack]:
        """Take the acks that are due: of all up to the frame with which too many would wait.

        Parameters
        ----------
        waiting
            Frames that are in the journal and wait for the analysis.
        most
            How many of these may have their ack.
        """
        ahead = waiting - sum(map(_is_of_frame, self.acks))
        due: list[Ack] = []
        speaks_of_all = False
        while self.acks and (ahead < most or not _is_of_frame(self.acks[0])):
            ack = self.acks.popleft()
            ahead += _is_of_frame(ack)
            if ack.status == "refused":
                self.refused.append(ack.sequence)
            if ack.status == "refused" or not ack.sequence:
                due.append(ack)
            else:
                self.acked, speaks_of_all = ack, True
        if speaks_of_all and self.acked is not None:
            due.append(self.with_refused(self.acked))
        return due

    def with_refused(self, ack: Ack) -> Ack:
        """Say with an ack which sequences up to it were refused: nothing else tells of a lost refusal."""
        return msgspec.structs.replace(ack, refused=tuple(self.refused))


def _is_of_frame(ack: Ack) -> bool:
    """Is it the ack of a frame that was kept?"""
    return ack.number >= 0 and ack.status != "refused"


class Peers:
    """All that are connected, by the identity of their connection.

    Parameters
    ----------
    session
        Its name.
    window
        How many frames an instrument may send ahead of their acks.
    outlet
        What messages leave by.
    journal, progress, telemetry
        Of the session.
    keys
        Who may connect and as what; None on a machine of one's own.

    Attributes
    ----------
    instrument
        Identity of the instrument's connection; None while there is none.
    """

    def __init__(
        self,
        *,
        session: str,
        window: int,
        outlet: Outlet,
        journal: Journal,
        progress: Progress,
        telemetry: Telemetry,
        keys: ServerKeys | None = None,
    ) -> None:
        self.instrument: bytes | None = None
        self._session = session
        self._window = window
        self._outlet = outlet
        self._journal = journal
        self._progress = progress
        self._telemetry = telemetry
        self._keys = keys
        self._peers: dict[bytes, Peer] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def get(self, identity: bytes | None) -> Peer | None:
        """Give the peer of a connection; None for one that has not said Hello."""
        return None if identity is None else self._peers.get(identity)

    # -- who comes and goes --------------------------------------------------------------------

    def why_not_heard(self, key: str, peer: Peer | None, message: AnyMessage) -> str:
        """With keys: only whom the allow-list knows, in its own part, on its own connection."""
        if self._keys is None:
            return ""
        role = self._keys.role_of(key)
        if role is None:
            return "key not allowed"
        if peer is not None and peer.key != key:
            return "another key"
        return "" if may_send(role, message) else "not its part"

    def why_not_welcome(self, identity: bytes, key: str, hello: Hello) -> str:
        """Say why a peer cannot take part as it says; nothing if it can."""
        name = row_name(hello)
        row = self._progress.rows.get(name)
        if hello.role == "viewer":
            return "a viewer listens at the view address only"
        if not may_send(hello.role, hello):
            return f"nobody can be called {hello.name!r}"
        if hello.instance and identity != hello.instance.encode():
            return "the routing id of a connection is its instance"
        if self._has_another_key(name, key):
            return "somebody with another key has this part"
        if hello.last_record >= self._journal.next_record:
            return "the journal lacks what this program was told; start it again"
        is_known = row is not None and self._progress.instances.get(hello.instance) == name
        if is_known and row is not None and row.instance != hello.instance:
            return "another program took this part over"
        return ""

    def _has_another_key(self, name: str, key: str) -> bool:
        """A part is taken over by its own key; by another one once the first is silent or revoked."""
        return any(
            peer.name == name
            and peer.key != key
            and not peer.is_silent
            and (self._keys is None or self._keys.role_of(peer.key) is not None)
            for peer in self._peers.values()
        )

    def meet(self, identity: bytes, key: str, hello: Hello, now_s: float) -> tuple[Peer, bool]:
        """Take in whoever says Hello.

        Returns
        -------
        peer, is_met
            It, and whether the same program was on this connection before.
        """
        peer = self._peers.get(identity)
        is_met = peer is not None and peer.hello.instance == hello.instance
        if peer is None or not is_met:
            peer = Peer(identity, hello, row_name(hello), key, now_s)
            peer.inbox.skip_to(self._progress.received.get(hello.instance, 0))
            self._replace_others(peer)
            self._peers[identity] = peer
        peer.used_s = now_s
        peer.confirmed = hello.last_record
        return peer, is_met

    def _replace_others(self, newest: Peer) -> None:
        """There is one peer of a name: the newest."""
        for other in self:
            if other.name == newest.name and other.identity != newest.identity:
                self._outlet.send(other.identity, Bye(reason="another program took this part over"))
                del self._peers[other.identity]

    def welcome(self, peer: Peer) -> Welcome:
        """Say where the session stands, and this peer in it."""
        row = self._progress.rows[peer.name]
        return Welcome(
            session=self._session,
            window=self._window,
            next_number=self._progress.next_number,
            durability=self._journal.config.durability,
            # What is kept and has no ack yet, because the analysis is behind, still takes its place.
            received=min([peer.inbox.last, *(ack.sequence - 1 for ack in peer.acks if ack.sequence)]),
            last_record=row.last,
            history_record=row.joined if row.start < row.joined else 0,
        )

    def remove(self, peer: Peer) -> None:
        """Let go of one that left."""
        self._peers.pop(peer.identity, None)

    def hear(self, connection: bytes, key: str, beat: Heartbeat, now_s: float) -> None:
        """Note that a peer lives; its heart beats on a connection of its own."""
        identity = beat.instance.encode()
        peer = self._peers.get(identity)
        if peer is None or connection != identity + b"~" or peer.key != key:
            return
        peer.heard_s = now_s
        peer.used_s = max(peer.used_s, now_s - beat.idle_s)
        peer.confirmed = max(peer.confirmed, beat.last_record)
        if peer.is_behind and peer.recent and peer.confirmed >= peer.last_sent:
            peer.is_behind = False
            self.send_again(peer, peer.confirmed)

    def notice_silence(self, now_s: float, limit_s: float) -> list[Peer]:
        """Mark who has said nothing for so long; return those who fell silent or are heard again."""
        changed = []
        for peer in self:
            is_silent = peer.hello.beats and now_s - peer.heard_s > limit_s
            if is_silent != peer.is_silent:
                peer.is_silent = is_silent
                changed.append(peer)
        return changed

    def forget(self, now_s: float) -> None:
        """Let go of those that were silent for long, but of the instrument."""
        for peer in self:
            if peer.hello.beats and peer.identity != self.instrument and now_s - peer.heard_s > FORGET_S:
                self.remove(peer)

    # -- what comes from them ------------------------------------------------------------------

    def in_order(
        self, peer: Peer, numbered: Numbered, parts: Parts, refused: str, now_s: float
    ) -> list[Turn]:
        """Take in a numbered message; return those whose turn it is now, and count what was wrong."""
        inbox = peer.inbox
        before = inbox.duplicates, inbox.reordered, inbox.overflowed
        turns = inbox.take(numbered.sequence, numbered.after, Turn(numbered, parts, refused))
        after = inbox.duplicates, inbox.reordered, inbox.overflowed
        for what, old, new in zip(("duplicate", "reordered", "too early"), before, after, strict=True):
            if new > old:
                self._telemetry.delivery(what)
        if inbox.has_gap and now_s - peer.beaten_s > GAP_BEAT_S:
            self._beat_to(peer, now_s)  # what is missing is sent again the sooner
        if after[0] > before[0] and peer.acked is not None:
            self.ack_again(peer)  # the first one may have been lost
        return turns

    # -- what goes to them ---------------------------------------------------------------------

    def deliver(self, name: str, record: int, after: int, message: Message, *, is_kept: bool = True) -> None:
        """Send a record to the peer of a name; one that is far behind gets it from the journal later.

        Parameters
        ----------
        name
            Of the row.
        record, after
            Number of the record, and of the one before it in the row.
        message
            The record.
        is_kept
            Whether the journal has it: what is nowhere else is not held back for later.
        """
        for peer in self:
            if peer.name != name:
                continue
            peer.is_behind = peer.is_behind or (is_kept and peer.is_far_ahead)
            if not peer.is_behind:
                self._send(peer, Sent(record, after, message))
                peer.recent.append(Sent(record, after, message))

    def _send(self, peer: Peer, sent: Sent) -> None:
        self._outlet.send(peer.identity, sent.message, sequence=sent.record, after=sent.after)

    def send_again(self, peer: Peer, after: int) -> None:
        """Send again what follows a record, from memory or from the journal."""
        if not peer.is_numbered:
            return
        row = self._progress.rows[peer.name]
        if after >= row.last:
            return
        recent = [sent for sent in peer.recent if sent.record > after]
        if recent and recent[0].after <= after:
            for sent in recent:
                self._send(peer, sent)
            after = recent[-1].record
        if after < row.last:
            after = self._send_from_journal(peer, after)
            self._send_unrecorded(peer, [sent for sent in recent if sent.record > after], after)
        self._telemetry.delivery("asked again")

    def _send_unrecorded(self, peer: Peer, recent: list[Sent], after: int) -> None:
        """Send what only the memory has; what it has no more is passed over, else the peer waits for ever."""
        for record, before, message in recent:
            if before > after:
                self._telemetry.delivery("not kept")
            sent = Sent(record, min(before, after), message)
            self._send(peer, sent)
            peer.recent.append(sent)
            after = record

    def _send_from_journal(self, peer: Peer, after: int) -> int:
        """Send what the journal has of this row; return the last record of it."""
        row = self._progress.rows[peer.name]
        peer.recent.clear()
        for record in self._journal.records_from(max(after + 1, row.start), kinds=_ROW_KINDS):
            numbered = record.numbered()
            if not self._progress.is_for(peer.name, record.number, numbered):
                continue
            message: Message = numbered.message
            if isinstance(message, Hello):
                message = self.welcome(peer)
            sent = Sent(record.number, after, message)
            self._send(peer, sent)
            peer.recent.append(sent)
            after = record.number
        return after

    def catch_up_all(self) -> None:
        """Send everybody what the journal has, before there is anything that it has not."""
        for peer in self:
            if peer.is_behind:
                peer.is_behind = False
                self._send_from_journal(peer, peer.last_sent)

    def send_acks(self, waiting: int, most: int) -> None:
        """Send the acks that are due, see ``Peer.take_acks``."""
        for peer in self:
            for ack in peer.take_acks(waiting, most):
                self._outlet.send(peer.identity, ack)

    def ack_again(self, peer: Peer) -> None:
        """Say what is acked and what was refused: nothing else tells a peer that an ack was lost."""
        durability = self._journal.config.durability
        acked = peer.acked or Ack(session=self._session, number=-1, status=durability)
        self._outlet.send(peer.identity, peer.with_refused(acked))

    def beat(self, now_s: float) -> None:
        """Give everybody who numbers messages a sign of life, and the acks that may have been lost."""
        for peer in self:
            if peer.is_numbered:
                self._beat_to(peer, now_s)
                if peer.acked is not None or peer.refused:
                    self.ack_again(peer)

    def _beat_to(self, peer: Peer, now_s: float) -> None:
        peer.beaten_s = now_s
        beat = Heartbeat(received=peer.inbox.last, is_missing=peer.inbox.has_gap, last_record=peer.last_sent)
        self._outlet.send(peer.identity, beat)
