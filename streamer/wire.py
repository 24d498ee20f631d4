"""The sockets that carry messages; the only module that knows zmq."""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from socket import SocketType, socketpair

import zmq
from zmq.utils import z85

from streamer.codec import MAX_PART_BYTES, Parts, decode_numbered, encode
from streamer.keys import KeyPair, KeysError, PeerKeys, ServerKeys
from streamer.messages import AnyMessage, Message

# Peers whose key is remembered; whoever says a word moves to the end of the row.
_MOST_PEERS = 4096
_ZAP_DOMAIN = b"probeloop"


def new_pair() -> KeyPair:
    """Draw a key pair from the system's randomness."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def open_context() -> zmq.Context[zmq.Socket[bytes]]:
    """Make a context that closes without waiting for peers that are gone."""
    context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    return context


def _harden(
    socket: zmq.Socket[bytes], max_part_bytes: int = MAX_PART_BYTES, dead_after_s: float = 3.0
) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, max_part_bytes)
    # Who does not finish its handshake in this time is let go: a half-open connection costs a descriptor.
    socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
    # A dead link is noticed by the operating system: unanswered data or probes end it. Not by ZeroMQ's own
    # heartbeats: in libzmq 4.3.5 they abort the whole process when a connection breaks whose input waits,
    # as it does when a peer comes again under its identity while its old connection still stands.
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, max(1, round(dead_after_s) - 1))
    socket.setsockopt(zmq.TCP_MAXRT, round(dead_after_s * 1000))
    # Flow is bounded by the ack window, not by a high-water mark that drops or blocks in silence.
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.SNDHWM, 0)


# -- the streamer's side -------------------------------------------------------------------------


def _is_local(address: str) -> bool:
    if address.startswith(("ipc://", "inproc://")):
        return True
    host = address.removeprefix("tcp://").rsplit(":", 1)[0]
    return host in ("127.0.0.1", "localhost", "[::1]")


def _require_transport(address: str) -> None:
    if not address.startswith(("tcp://", "ipc://", "inproc://")):
        raise OSError(f"{address} is not an address; it takes tcp://HOST:PORT or ipc://PATH")


def _bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind and return the address as it is; an OSError says what would do."""
    _require_transport(address)
    if not socket.getsockopt(zmq.CURVE_SERVER) and not _is_local(address):
        raise OSError(
            f"{address} is not on this machine alone, and without keys whoever reaches it would be let in: "
            "make keys (`probeloop keys new NAME --role instrument`) and start the streamer with "
            "--keys FOLDER, or bind to 127.0.0.1, localhost, [::1] or ipc://"
        )
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise OSError(
            f"cannot bind {address}: {error.strerror}. Another streamer may be running; "
            "choose another port (0 takes a free one)"
        ) from None
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def _serve_with_keys(socket: zmq.Socket[bytes], keys: ServerKeys) -> None:
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
    # Without this, libzmq lets everybody in when nobody answers at the door.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    # A good client that comes in the middle of a flood must find a place in the row: a refused SYN waits 1 s.
    socket.setsockopt(zmq.BACKLOG, 4096)


def _allow_many_descriptors() -> None:
    """Take as many open connections as this process may have, so that a crowd of strangers fills none."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Door:
    """Lets in whose key is on the list (ZAP, ZeroMQ RFC 27).

    It answers in a thread of its own, so that neither a flood of strangers nor a busy hub keeps a
    good peer waiting. The thread ends with its context.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], keys: ServerKeys, refused: Counter[str]
    ) -> None:
        self._keys = keys
        self._refused = refused
        # Through a shadow: the context, destroyed, would close this socket in another thread than its own.
        self._socket: zmq.Socket[bytes] = zmq.Context.shadow(context.underlying).socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind("inproc://zeromq.zap.01")
        threading.Thread(target=self._run, name="door", daemon=True).start()

    def _run(self) -> None:
        with self._socket, contextlib.suppress(zmq.ContextTerminated):
            while True:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))

    def _answer(self, question: list[bytes]) -> list[bytes]:
        version, request, _domain, _address, _identity, mechanism, *credentials = question
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
        if self._keys.admits(key):
            return [version, request, b"200", b"OK", key.encode(), b""]
        self._refused["unknown key"] += 1
        # 300 and not 400, after which libzmq's client would never try again: the key may be allowed yet.
        return [version, request, b"300", b"this key is not allowed", b"", b""]


def _key_behind(part: zmq.Frame) -> str:
    """Say with which public key the connection of a message was let in; empty for none."""
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return ""


class Router:
    """The streamer's side: one socket that all instruments and agents connect to.

    Parameters
    ----------
    address
        Where to bind, such as ``tcp://127.0.0.1:5555``; port 0 takes a free one.
    keys
        The streamer's pair and its allow-list; with them, nobody else is heard or answered. Without
        them, anybody on this machine may connect, and nobody off it.
    max_part_bytes
        Whoever sends a larger part is cut off before it is allocated.

    Attributes
    ----------
    address
        Where it is bound.
    refused
        Counts, by a short fixed word, connections that were not let in (``unknown key``) and messages
        that were not delivered (``no key``, ``revoked key``, ``another's name``).

    Raises
    ------
    OSError
        If the address is taken, or off this machine without keys; the text says what would do.
    """

    def __init__(
        self, address: str, keys: ServerKeys | None = None, *, max_part_bytes: int = MAX_PART_BYTES
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._keys = keys
        self._key_of: OrderedDict[bytes, str] = OrderedDict()
        self._context = open_context()
        self._socket = self._context.socket(zmq.ROUTER)
        _harden(self._socket, max_part_bytes)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A connection that was lost and made again is the same peer, whether or not we saw it break.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.SNDHWM, 1000)  # a peer that reads nothing costs no more than that
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._woken: list[SocketType] = []
        try:
            if keys is not None:
                _allow_many_descriptors()
                _Door(self._context, keys, self.refused)
                _serve_with_keys(self._socket, keys)
            self.address = _bind(self._socket, address)
        except OSError:
            self._context.destroy(linger=0)
            raise

    def waker(self) -> Waker:
        """Make the handle by which another thread ends a wait in ``receive``."""
        # Plain sockets: the context, destroyed, would close this one under the other thread.
        woken, waking = socketpair()
        woken.setblocking(False)
        waking.setblocking(False)
        self._woken.append(woken)
        self._poller.register(woken.fileno(), zmq.POLLIN)
        return Waker(waking)

    def receive(self, timeout_s: float, most: int = 32) -> list[tuple[bytes, str, list[memoryview]]]:
        """Wait for messages; none when time is up.

        Returns
        -------
        messages
            At most ``most`` of ``(peer, key, parts)``: the connection, the public key that it was let
            in with (Z85; empty without keys), and the wire parts.
        """
        events = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        for woken in self._woken:
            if woken.fileno() in events and not woken.recv(4096):
                self._poller.unregister(woken.fileno())  # it will wake nobody any more
        received: list[tuple[bytes, str, list[memoryview]]] = []
        for _ in range(most):
            try:
                peer, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            name = bytes(peer.buffer)
            key = self._key(name, parts[0])
            if key is not None:
                received.append((name, key, [part.buffer for part in parts]))
        return received

    def _key(self, peer: bytes, part: zmq.Frame) -> str | None:
        """Say with which key a message came; None, and counted, for one that must not be delivered."""
        if self._keys is None:
            return ""
        key = _key_behind(part)
        reason = self._reason_against(peer, key)
        if reason:
            self.refused[reason] += 1
            return None
        self._key_of[peer] = key
        self._key_of.move_to_end(peer)
        if len(self._key_of) > _MOST_PEERS:
            self._key_of.popitem(last=False)
        return key

    def _reason_against(self, peer: bytes, key: str) -> str:
        assert self._keys is not None
        if not key:
            return "no key"
        if self._keys.role_of(key) is None:
            return "revoked key"
        return "another's name" if self._key_of.get(peer, key) != key else ""

    def send(self, peer: bytes, message: Message, *, sequence: int = 0, after: int = 0) -> bool:
        """Send to one peer; False when it is gone, or its key was revoked.

        Parameters
        ----------
        peer
            As ``receive`` gave it.
        message
            The noun.
        sequence, after
            Its place in the row of this peer's messages, see ``streamer.codec.Numbered``.
        """
        if self._keys is not None and self._keys.role_of(self._key_of.get(peer, "")) is None:
            return False
        try:
            parts = encode(message, sequence=sequence, after=after)
            self._socket.send_multipart([peer, *parts], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def close(self, linger_s: float = 1.0) -> None:
        """Close, giving what is on the way this long to leave."""
        for woken in self._woken:
            woken.close()
        self._context.destroy(linger=round(linger_s * 1000))


class Waker:
    """Ends a Router's wait from another thread; harmless when the Router is closed by now."""

    def __init__(self, waking: SocketType) -> None:
        self._waking = waking

    def wake(self) -> None:
        """End the wait; never blocks."""
        with contextlib.suppress(BlockingIOError, ConnectionError):  # it is ending, or nobody waits
            self._waking.send(b"\0")

    def close(self) -> None:
        """Close; call it from the thread that wakes."""
        self._waking.close()


class Publisher:
    """The lossy stream for viewers, in which every viewer can count what it missed.

    Parameters
    ----------
    address, keys
        As of a Router; every role may look on.

    Attributes
    ----------
    address
        Where it is bound.
    refused
        Counts connections that were not let in (``unknown key``).
    unsent
        Counts by kind what nobody was sent while the socket was made anew.

    Raises
    ------
    OSError
        If the address is taken, or off this machine without keys; the text says what would do.
    """

    def __init__(self, address: str, keys: ServerKeys | None = None) -> None:
        self.refused: Counter[str] = Counter()
        self.unsent: Counter[str] = Counter()
        self._keys = keys
        self._removals = 0 if keys is None else keys.removals()
        self._instance = secrets.token_hex(8)
        self._published: Counter[str] = Counter()
        self._context = open_context()
        try:
            if keys is not None:
                _allow_many_descriptors()
                _Door(self._context, keys, self.refused)
            self._socket: zmq.Socket[bytes] | None = None
            self.address = address
            self._open()
        except OSError:
            self._context.destroy(linger=0)
            raise

    def _open(self) -> None:
        socket = self._context.socket(zmq.PUB)
        # What comes in is no more than subscriptions; a viewer may look away for a while.
        _harden(socket, max_part_bytes=4096, dead_after_s=10.0)
        socket.setsockopt(zmq.SNDHWM, 16)
        try:
            if self._keys is not None:
                _serve_with_keys(socket, self._keys)
            self.address = _bind(socket, self.address)
        except OSError:
            socket.close(0)
            raise
        self._socket = socket

    def publish(self, message: Message) -> None:
        """Publish under the message's kind as topic; a viewer that is behind misses it, and can tell."""
        self._let_go_of_the_revoked()
        kind = str(type(message).__struct_config__.tag)
        self._published[kind] += 1
        number = self._published[kind]
        if self._socket is None:
            self.unsent[kind] += 1
            return
        parts = encode(message, sender=self._instance, sequence=number, after=number - 1)
        self._socket.send_multipart([kind.encode(), *parts], copy=False)

    def _let_go_of_the_revoked(self) -> None:
        """Make the socket anew after a revocation: libzmq cannot end one viewer's connection alone.

        Those who are still allowed come back by themselves. The port is free again a moment after the
        old socket has closed; until then the next message tries again.
        """
        removals = 0 if self._keys is None else self._keys.removals()
        if removals != self._removals:
            self._removals = removals
            if self._socket is not None:
                self._socket.close(0)
                self._socket = None
        if self._socket is None:
            with contextlib.suppress(OSError):
                self._open()

    def close(self, linger_s: float = 1.0) -> None:
        """Close, giving the last messages this long to leave."""
        self._context.destroy(linger=round(linger_s * 1000))


# -- a peer's side -------------------------------------------------------------------------------


def _connect(socket: zmq.Socket[bytes], address: str, keys: PeerKeys | None) -> None:
    """Connect; an OSError or KeysError says what would do."""
    _require_transport(address)
    if keys is not None:
        if zmq.curve_public(keys.secret.encode()).decode() != keys.public:
            raise KeysError(f"the key file of {keys.name} is damaged: its two keys do not belong together")
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.streamer.encode())
    elif not _is_local(address):
        raise ConnectionError(
            f"{address} is not on this machine, and without keys anybody could answer there: pass "
            "--key FILE, as `probeloop keys new NAME --role ROLE` makes it on the streamer's machine"
        )
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 400)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 1000)
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise ConnectionError(f"cannot connect to {address}: {error.strerror}; check the address") from None


class Subscriber:
    """A viewer's side of the lossy stream.

    Parameters
    ----------
    address
        The publisher's.
    kinds
        Such as ``("status",)``; empty takes all.
    keys
        This viewer's key file, as read; None where the streamer has none.

    Attributes
    ----------
    missed
        Counts by kind what was published between messages that came: exactly, up to the last one.

    Raises
    ------
    ConnectionError
        If the address is none, or is off this machine and there are no keys.
    """

    def __init__(self, address: str, kinds: Sequence[str] = (), keys: PeerKeys | None = None) -> None:
        self.missed: Counter[str] = Counter()
        self._last: dict[str, tuple[str, int]] = {}
        self._context = open_context()
        self._socket = self._context.socket(zmq.SUB)
        _harden(self._socket)
        self._socket.setsockopt(zmq.RCVHWM, 16)
        for kind in kinds or ("",):
            self._socket.setsockopt(zmq.SUBSCRIBE, kind.encode())
        try:
            _connect(self._socket, address, keys)
        except (OSError, ValueError):
            self.close()
            raise

    def receive(self, timeout_s: float) -> AnyMessage | None:
        """Wait for a message; None when time is up."""
        if not self._socket.poll(max(0, round(timeout_s * 1000))):
            return None
        topic, *parts = self._socket.recv_multipart(copy=False)
        came = decode_numbered([part.buffer for part in parts])
        self._count(bytes(topic.buffer).decode("ascii", "replace"), came.sender, came.sequence)
        return came.message

    def _count(self, kind: str, publisher: str, number: int) -> None:
        before, last = self._last.get(kind, (publisher, number - 1))
        # A streamer that was started again counts from 1.
        self.missed[kind] += number - 1 - (last if publisher == before else 0)
        self._last[kind] = (publisher, number)

    def close(self) -> None:
        """Close at once."""
        self._context.destroy(linger=0)


class Dealer:
    """A peer's side: one connection outwards to the streamer; it opens no port.

    Parameters
    ----------
    address
        The streamer's, such as ``tcp://127.0.0.1:5555``.
    identity
        What the router knows this connection by, also after it was lost and made again; unguessable.
    keys
        This peer's key file, as read; None where the streamer has none.

    Raises
    ------
    ConnectionError
        If the address is none, or is off this machine and there are no keys.
    """

    def __init__(self, address: str, identity: bytes, keys: PeerKeys | None = None) -> None:
        self._context = open_context()
        self._socket = self._context.socket(zmq.DEALER)
        _harden(self._socket)
        self._socket.setsockopt(zmq.ROUTING_ID, identity)
        # Nothing piles up for a streamer that is not there: the link sends it again once it is.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        try:
            _connect(self._socket, address, keys)
        except (OSError, ValueError):
            self._context.destroy(linger=0)
            raise

    def send(self, parts: Parts) -> bool:
        """Send; False when there is no connection. It never blocks."""
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        """Wait for the parts of a message; None when time is up."""
        if not self._socket.poll(max(0, math.ceil(timeout_s * 1000))):
            return None
        return [part.buffer for part in self._socket.recv_multipart(copy=False)]

    def close(self, linger_s: float = 1.0) -> None:
        """Close, giving what is on the way this long to leave."""
        self._context.destroy(linger=round(linger_s * 1000))
