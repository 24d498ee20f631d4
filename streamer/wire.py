"""The sockets that carry messages; the only module that knows zmq."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import zmq

from streamer.codec import MAX_PART_BYTES, Parts, decode, encode
from streamer.messages import AnyMessage, Message


def open_context() -> zmq.Context[zmq.Socket[bytes]]:
    """Make a context that closes without waiting for peers that are gone."""
    context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    return context


def _harden(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
    # Who does not finish its handshake in this time is let go: a half-open connection costs a descriptor.
    socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2000)
    # Flow is bounded by the ack window, not by a high-water mark that drops or blocks in silence.
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.SNDHWM, 0)


def _is_local(address: str) -> bool:
    if address.startswith(("ipc://", "inproc://")):
        return True
    host = address.removeprefix("tcp://").rsplit(":", 1)[0]
    return host in ("127.0.0.1", "localhost", "[::1]")


def _bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind and return the address as it is; an OSError says what would do."""
    if not _is_local(address):
        raise OSError(
            f"{address} is not on this machine: without CURVE keys a socket binds only to "
            "127.0.0.1, localhost, [::1] or ipc://"
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


class Router:
    """The streamer's side: one socket that all instruments and agents connect to.

    Parameters
    ----------
    address
        Where to bind, such as ``tcp://127.0.0.1:5555``; port 0 takes a free one.

    Raises
    ------
    OSError
        If the address is taken or off this machine; the text says what would do.
    """

    def __init__(self, address: str) -> None:
        self._context = open_context()
        self._socket = self._context.socket(zmq.ROUTER)
        _harden(self._socket)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, 1000)  # a peer that reads nothing costs no more than that
        # A connection that was lost and made again is the same peer, whether or not we saw it break.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._wake = self._context.socket(zmq.PULL)
        self._wake.bind(f"inproc://wake-{id(self)}")
        self._poller.register(self._wake, zmq.POLLIN)
        try:
            self.address = _bind(self._socket, address)
        except OSError:
            self._context.destroy(linger=0)
            raise

    def waker(self) -> Waker:
        """Make the handle by which one other thread ends a wait in ``receive``."""
        socket = self._context.socket(zmq.PUSH)
        socket.connect(f"inproc://wake-{id(self)}")
        return Waker(socket)

    def receive(self, timeout_s: float, most: int = 32) -> list[tuple[bytes, str, list[memoryview]]]:
        """Wait for messages; none when time is up.

        Returns
        -------
        messages
            At most ``most`` of ``(peer, key, parts)``: the connection, the public key that it was let
            in with (Z85; empty without CURVE), and the wire parts.
        """
        events = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        while self._wake in events:
            try:
                self._wake.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
        received: list[tuple[bytes, str, list[memoryview]]] = []
        while len(received) < most:
            try:
                peer, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            received.append((bytes(peer.buffer), "", [part.buffer for part in parts]))
        return received

    def send(self, peer: bytes, message: Message, *, sequence: int = 0, after: int = 0) -> bool:
        """Send to one peer; False when it is gone.

        Parameters
        ----------
        peer
            As ``receive`` gave it.
        message
            The noun.
        sequence, after
            Its place in the row of this peer's messages, see ``streamer.codec.Numbered``.
        """
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
        self._context.destroy(linger=round(linger_s * 1000))


class Waker:
    """Ends a Router's wait from another thread; of one thread's use only."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def wake(self) -> None:
        """End the wait; never blocks."""
        with contextlib.suppress(zmq.Again):  # the wait is already being ended
            self._socket.send(b"", zmq.NOBLOCK)

    def close(self) -> None:
        """Close; call it from the thread that wakes."""
        self._socket.close(0)


class Publisher:
    """The lossy stream for viewers."""

    def __init__(self, address: str) -> None:
        self._context = open_context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, 16)
        try:
            self.address = _bind(self._socket, address)
        except OSError:
            self._context.destroy(linger=0)
            raise

    def publish(self, message: Message) -> None:
        """Publish under the message's kind as topic; a viewer that is behind misses it."""
        topic = str(type(message).__struct_config__.tag).encode()
        self._socket.send_multipart([topic, *encode(message)], copy=False)

    def close(self, linger_s: float = 1.0) -> None:
        """Close, giving the last messages this long to leave."""
        self._context.destroy(linger=round(linger_s * 1000))


class Subscriber:
    """A viewer's side of the lossy stream.

    Parameters
    ----------
    address
        The publisher's.
    kinds
        Such as ``("status",)``; empty takes all.
    """

    def __init__(self, address: str, kinds: Sequence[str] = ()) -> None:
        self._context = open_context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 16)
        for kind in kinds or ("",):
            self._socket.setsockopt(zmq.SUBSCRIBE, kind.encode())
        self._socket.connect(address)

    def receive(self, timeout_s: float) -> AnyMessage | None:
        """Wait for a message; None when time is up."""
        if not self._socket.poll(max(0, round(timeout_s * 1000))):
            return None
        _, *parts = self._socket.recv_multipart(copy=False)
        return decode([part.buffer for part in parts])

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
    """

    def __init__(self, address: str, identity: bytes) -> None:
        self._context = open_context()
        self._socket = self._context.socket(zmq.DEALER)
        _harden(self._socket)
        self._socket.setsockopt(zmq.ROUTING_ID, identity)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 400)
        # Nothing piles up for a streamer that is not there: the link sends it again once it is.
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.connect(address)

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
