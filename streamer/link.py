"""A peer's conversation with the streamer: nothing lost, nothing twice, whatever happens to the link."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

from streamer.codec import Numbered, Parts, WireError, decode_numbered, encode
from streamer.delivery import Inbox, Outbox
from streamer.messages import (
    Ack,
    AnyMessage,
    Bye,
    Frame,
    Heartbeat,
    Hello,
    Message,
    Patches,
    Resend,
    Role,
    Welcome,
)
from streamer.wire import Dealer

if TYPE_CHECKING:
    from streamer.keys import PeerKeys

HELLO_EVERY_S = 0.25
BEAT_S = 0.25
# What is missing is asked for at once, then ever more rarely: it may be on its way.
ASK_AGAIN_S = 0.1
MOST_ASK_AGAIN_S = 2.0
TURN_S = 0.1
# Of a streamer that has said nothing for so long it is asked whether it still knows us.
SILENT_S = 0.75
HELLO_FIRST = "hello first"


class Link:
    """An instrument's, agent's or operator's connection to the streamer; it opens no port.

    Every message is numbered and kept until the streamer acks it, and sent again when it was lost.
    What the streamer sends comes in order and once. When the streamer was restarted or the link cut,
    the link says Hello again by itself, and both sides go on where they were. It is used by one
    thread; a second one of its own tells the streamer twice a second and more that this process lives.

    Parameters
    ----------
    address
        The streamer's, such as ``tcp://127.0.0.1:5555``.
    role, name
        Who connects.
    timeout_s
        How long to wait for the Welcome.
    keys
        Own key pair and the streamer's public key; None for a streamer on this machine without keys.

    Attributes
    ----------
    welcome
        What the streamer answered: session, window, next number, durability.
    name
        As given.
    last_record
        Number of the journal record of the message that ``receive`` returned last; 0 before the first.
    refused
        The acks of messages that were not kept.
    reconnects
        How often the streamer welcomed this link anew.
    unreadable
        Messages that came damaged.

    Raises
    ------
    ConnectionError
        If nobody answers in time; the text names the address and the cure.
    """

    def __init__(
        self, address: str, *, role: Role, name: str, timeout_s: float = 10.0, keys: PeerKeys | None = None
    ) -> None:
        self.name = name
        self.instance = secrets.token_hex(16)
        self.last_record = 0
        self.refused: list[Ack] = []
        self.reconnects = -1
        self.unreadable = 0
        self._address = address
        self._keys = keys
        self._role: Role = role
        self._inbox: Inbox[Numbered] = Inbox()
        self._outbox = Outbox()
        self._ready: deque[tuple[int, AnyMessage]] = deque()
        self._received = 0
        self._is_missing = False
        self._asked_after, self._ask_again_s = -1, ASK_AGAIN_S
        self._heard_s = self._used_s = time.monotonic()
        self._said_hello_s = self._asked_s = float("-inf")
        self._is_over = False
        self._back_at_s: float | None = None
        self._dealer: Dealer | _NoDealer = Dealer(address, self.instance.encode(), keys)
        self._welcome: Welcome | None = None
        self._pulse: _Pulse | None = None
        self._wait_for_welcome(timeout_s)
        self._pulse = _Pulse(self, address, keys)

    def _wait_for_welcome(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while self._welcome is None:
            self._say_hello_at_times(HELLO_EVERY_S)
            parts = self._dealer.receive(TURN_S / 2)
            if parts is not None:
                self._take(parts)
            if self._ready and isinstance(bye := self._ready[0][1], Bye):
                self._dealer.close(0)
                raise ConnectionError(f"the streamer at {self._address} refused: {bye.reason}")
            if self._welcome is None and time.monotonic() >= deadline_s:
                self._dealer.close(0)
                raise ConnectionError(
                    f"no streamer answers at {self._address} within {timeout_s:g} s; start one with "
                    "'probeloop stream' or give its address with --connect (with keys: see whether this "
                    "key is allowed, 'probeloop keys list')"
                )

    # -- how it stands -------------------------------------------------------------------------

    @property
    def welcome(self) -> Welcome:
        """What the streamer answered last."""
        assert self._welcome is not None
        return self._welcome

    @property
    def credit(self) -> int:
        """How many more frames may be sent before an ack must come."""
        return self.welcome.window - self._outbox.frames

    @property
    def unacked(self) -> int:
        """How many frames are on their way."""
        return self._outbox.frames

    @property
    def resent(self) -> int:
        """How many messages were sent again."""
        return self._outbox.resent

    @property
    def duplicates(self) -> int:
        """How many numbered messages came more than once."""
        return self._inbox.duplicates

    @property
    def silent_s(self) -> float:
        """Seconds since the streamer was last heard; only ``receive`` hears."""
        return time.monotonic() - self._heard_s

    @property
    def idle_s(self) -> float:
        """Seconds since this link was last used."""
        return time.monotonic() - self._used_s

    @property
    def received_record(self) -> int:
        """Number of the last journal record that came in order, returned or not."""
        return self._inbox.last

    # -- both ways -----------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send; a Frame, or a batch of Patches, takes one place of the ack window.

        The arrays of the message must not be changed until its ack has come: it may be sent again.

        Raises
        ------
        RuntimeError
            For one of these when the window is full: wait with ``receive`` until ``credit`` is above 0.
        """
        is_frame = isinstance(message, Frame | Patches)
        if is_frame and self.credit <= 0:
            raise RuntimeError(f"{self.unacked} frames wait for their acks; the window is full")
        sequence = self._outbox.next_sequence
        parts = encode(message, sender=self.instance, sequence=sequence, after=sequence - 1)
        self._used_s = time.monotonic()
        self._outbox.add(parts, is_frame=is_frame, now_s=self._used_s)
        self._dealer.send(parts)  # without a link it is sent again once there is one

    def receive(self, timeout_s: float) -> AnyMessage | None:
        """Wait for a message; None when time is up. Acks of frames free their place and are returned too.

        Raises
        ------
        ConnectionError
            If another session is served at the address now.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._used_s = now_s = time.monotonic()
            self._keep_up(now_s)
            if self._ready:
                record, message = self._ready.popleft()
                self.last_record = record or self.last_record
                return message
            left_s = deadline_s - now_s
            parts = self._dealer.receive(min(max(left_s, 0.0), TURN_S))
            if parts is not None:
                self._take(parts)
            elif time.monotonic() >= deadline_s:
                return None

    def _keep_up(self, now_s: float) -> None:
        """Do what is due: greet a streamer that forgot us, send again and ask again what was lost."""
        if self._back_at_s is not None and now_s >= self._back_at_s:
            self._come_back()
        if now_s - self._heard_s > SILENT_S and not self._is_over:
            self._say_hello_at_times(HELLO_EVERY_S)
        parts = self._outbox.to_send_again(
            now_s, received=self._received, heard_s=self._heard_s, is_missing=self._is_missing
        )
        if parts is not None:
            self._dealer.send(parts)
        if self._inbox.has_gap:
            self._ask_again(now_s)

    def _say_hello_at_times(self, every_s: float) -> None:
        now_s = time.monotonic()
        if now_s - self._said_hello_s < every_s:
            return
        self._said_hello_s = now_s
        hello = Hello(
            role=self._role,
            name=self.name,
            instance=self.instance,
            resumes_from=self._outbox.oldest,
            last_record=self._inbox.last,
            beats=True,
        )
        self._dealer.send(encode(hello))

    def _ask_again(self, now_s: float) -> None:
        if self._inbox.last != self._asked_after:
            self._asked_after, self._ask_again_s = self._inbox.last, ASK_AGAIN_S
        if now_s - self._asked_s >= self._ask_again_s:
            self._asked_s = now_s
            self._ask_again_s = min(2 * self._ask_again_s, MOST_ASK_AGAIN_S)
            self._dealer.send(encode(Resend(after=self._inbox.last)))

    def _take(self, parts: list[memoryview]) -> None:
        try:
            numbered = decode_numbered(parts)
        except WireError:
            self.unreadable += 1  # what was in it is asked for again
            return
        self._heard_s = time.monotonic()
        if numbered.sequence:
            row = self._inbox.take(numbered.sequence, numbered.after, numbered)
            self._ready.extend((item.sequence, item.message) for item in row)
            return
        match numbered.message:
            case Heartbeat() as beat:
                self._received = max(self._received, beat.received)
                self._is_missing = beat.is_missing and beat.received == self._received
                if beat.last_record > self._inbox.last:
                    self._ask_again(self._heard_s)
            case Welcome() as welcome:
                self._on_welcome(welcome)
            case Ack() as ack:
                self._on_ack(ack)
            case message:
                self._is_over = self._is_over or isinstance(message, Bye)
                self._ready.append((0, message))

    def _on_welcome(self, welcome: Welcome) -> None:
        """Go on where the streamer stands: it has what it says, everything else is sent again."""
        if self._welcome is not None and welcome.session != self._welcome.session:
            raise ConnectionError(
                f"at {self._address} there is now another session, {welcome.session}, not "
                f"{self._welcome.session}; start this program again to take part in it"
            )
        self._welcome = welcome
        self.reconnects += 1
        self._received = welcome.received  # a streamer that was restarted may have less than it had heard
        self._outbox.acked_through(welcome.received)
        for parts in self._outbox.everything(self._heard_s):
            self._dealer.send(parts)

    def _on_ack(self, ack: Ack) -> None:
        if ack.status == "refused" and ack.reason.startswith(HELLO_FIRST):
            self._say_hello_at_times(HELLO_EVERY_S / 5)
            return
        if ack.status == "refused":
            self._outbox.settled(ack.sequence)
            self.refused.append(ack)
            self._ready.append((0, ack))
            return
        for sequence in ack.refused:
            self._note_refused(ack, sequence)
        if ack.sequence >= self._outbox.oldest:  # else it is said again, lest it was lost
            self._outbox.acked_through(ack.sequence)
            self._ready.append((0, ack))

    def _note_refused(self, ack: Ack, sequence: int) -> None:
        """Take in a refusal whose own ack was lost on the way."""
        if self._outbox.settled(sequence):
            reason = "the ack that said why was lost"
            refusal = Ack(session=ack.session, number=-1, status="refused", reason=reason, sequence=sequence)
            self.refused.append(refusal)
            self._ready.append((0, refusal))

    # -- the end -------------------------------------------------------------------------------

    def cut(self, seconds: float) -> None:
        """Lose the connection for a while, as when a cable is pulled: to show what then happens.

        Nothing comes and nothing goes; then the link is back by itself, and nothing is lost.
        """
        if self._pulse is not None:
            self._pulse.stop()
        self._dealer.close(0)
        self._dealer, self._pulse = _NoDealer(), None
        self._back_at_s = time.monotonic() + seconds

    def _come_back(self) -> None:
        self._back_at_s = None
        self._dealer = Dealer(self._address, self.instance.encode(), self._keys)
        self._pulse = _Pulse(self, self._address, self._keys)

    def close(self, *, reason: str = "", drain_s: float = 5.0) -> list[AnyMessage]:
        """Wait for the outstanding acks, say Bye and close; return what came meanwhile.

        The last ack, not the closing of the socket, tells that everything arrived.
        """
        leftover = self._drain(drain_s)
        if not self._is_over:
            self.send(Bye(reason=reason))
            leftover += self._drain(min(drain_s, 1.0))
        if self._pulse is not None:
            self._pulse.stop()
        self._dealer.close(1.0)
        return leftover

    def abandon(self) -> None:
        """Close without a word, as a process does that is killed: what has no ack may be lost."""
        if self._pulse is not None:
            self._pulse.stop()
        self._dealer.close(0)

    def _drain(self, drain_s: float) -> list[AnyMessage]:
        leftover: list[AnyMessage] = []
        deadline_s = time.monotonic() + drain_s
        while len(self._outbox) and time.monotonic() < deadline_s:
            message = self.receive(TURN_S)
            if message is not None and not isinstance(message, Ack):
                leftover.append(message)
            if isinstance(message, Bye):
                # The streamer still takes what is under way for a moment.
                deadline_s = min(deadline_s, time.monotonic() + 1.0)
        return leftover

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:  # a program that fails does not end the session: it is started again
            self.abandon()


class _NoDealer:
    """Stands in for a connection that is cut."""

    def send(self, parts: Parts) -> None:
        """Lose it; the outbox has it."""

    def receive(self, timeout_s: float) -> None:
        """Nothing comes."""
        time.sleep(timeout_s)

    def close(self, linger_s: float) -> None:
        """There is nothing to close."""


class _Pulse:
    """Tells the streamer, on a connection of its own, that this process lives, also while it computes."""

    def __init__(self, link: Link, address: str, keys: PeerKeys | None) -> None:
        self._link = link
        self._address = address
        self._keys = keys
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        dealer = Dealer(self._address, f"{self._link.instance}~".encode(), self._keys)
        try:
            while not self._stopped.wait(BEAT_S):
                beat = Heartbeat(
                    instance=self._link.instance,
                    idle_s=self._link.idle_s,
                    last_record=self._link.received_record,
                )
                dealer.send(encode(beat))
        finally:
            dealer.close(0)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
