"""Nouns ⇄ ZeroMQ parts, and the sockets that carry them; the only module that knows zmq.

A message is ``[header, buffer…]``. The header is four bytes, the little-endian CRC-32 of what
follows, and a MessagePack map ``{version, checksum, payload, message}``: ``message`` is the noun with
its ``kind``, every array in it replaced by ``{dtype, shape, part}``; ``payload`` is the checksum of all
buffers, one after the other, by the named method. ``docs/protocol.md`` says it for other languages.
"""

from __future__ import annotations

import contextlib
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import numpy as np
import xxhash
import zmq

from streamer.messages import (
    Ack,
    AnyMessage,
    Bye,
    Frame,
    Hello,
    Message,
    Role,
    Welcome,
)

VERSION = 1
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
MAX_PARTS = 64
DTYPES = frozenset({"<f4", "<f8", "<i8", "<i4", "<u2", "|u1"})
Parts = Sequence[bytes | bytearray | memoryview]
_CRC = struct.Struct("<I")
# What a header that is not ours can make the decoder raise: also UnicodeDecodeError, a ValueError, and
# the limits on nesting and on the size of numbers.
_UNREADABLE = (ValueError, RecursionError, OverflowError)


class WireError(ValueError):
    """A message that must not be believed.

    Attributes
    ----------
    reason
        A short fixed word, the label of a counter: ``bad header``, ``bad checksum``,
        ``unknown version``, ``wrong size``, ``invalid message``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    checksum: Literal["crc32", "xxh3_64"]
    payload: int
    message: msgspec.Raw


class _ArrayRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    part: int


def _crc32(buffers: Iterable[Any]) -> int:
    crc = 0
    for buffer in buffers:
        crc = zlib.crc32(buffer, crc)
    return crc


def _xxh3_64(buffers: Iterable[Any]) -> int:
    digest = xxhash.xxh3_64()
    for buffer in buffers:
        digest.update(buffer)
    return digest.intdigest()


_CHECKSUMS: dict[str, Callable[[Iterable[Any]], int]] = {"crc32": _crc32, "xxh3_64": _xxh3_64}


def encode(message: Message) -> list[bytes | memoryview]:
    """Turn a message into wire parts; its arrays are referred to, not copied (if contiguous).

    Returns
    -------
    parts
        ``[header, buffer…]``, ready for ``send_multipart`` and for the journal.
    """
    buffers: list[memoryview] = []

    def hook(value: Any) -> _ArrayRef:
        if not isinstance(value, np.ndarray):
            raise NotImplementedError(f"{type(value).__name__} has no place on the wire")
        array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        buffers.append(array.reshape(-1).view(np.uint8).data)
        return _ArrayRef(dtype=array.dtype.str, shape=list(value.shape), part=len(buffers))

    body = msgspec.msgpack.encode(message, enc_hook=hook)
    header = msgspec.msgpack.encode(_Header(VERSION, "xxh3_64", _xxh3_64(buffers), msgspec.Raw(body)))
    return [_CRC.pack(zlib.crc32(header)) + header, *buffers]


def _array(ref: _ArrayRef, buffers: Parts) -> np.ndarray[Any, Any]:
    if ref.dtype not in DTYPES:
        raise ValueError(f"array dtype {ref.dtype!r} is not one of {', '.join(sorted(DTYPES))}")
    if not 1 <= ref.part <= len(buffers):
        raise ValueError(f"array part {ref.part} is named, but {len(buffers)} buffers came")
    if any(n < 0 for n in ref.shape) or len(ref.shape) > 4:
        raise ValueError(f"array shape {ref.shape} is not one of up to four sizes")
    buffer = buffers[ref.part - 1]
    dtype = np.dtype(ref.dtype)
    wanted = dtype.itemsize
    for n in ref.shape:
        wanted *= n
    if wanted != len(buffer):
        raise ValueError(f"array {ref.shape} of {ref.dtype} needs {wanted} bytes; {len(buffer)} came")
    array = np.frombuffer(buffer, dtype=dtype).reshape(ref.shape)
    array.flags.writeable = False
    return array


def decode(parts: Parts) -> AnyMessage:
    """Turn wire parts into a message; its arrays are read-only views of the buffers.

    Raises
    ------
    WireError
        For anything that is not exactly a message of this version: the reason is a fixed word, the
        detail names the field and what it takes.
    """
    if len(parts) > MAX_PARTS:
        raise WireError("wrong size", f"{len(parts)} parts; a message has at most {MAX_PARTS}")
    if not parts or len(parts[0]) < _CRC.size:
        raise WireError("bad header", "there is no header; it starts with four bytes of CRC-32")
    head = memoryview(parts[0])
    (crc,) = _CRC.unpack(head[: _CRC.size])
    raw = head[_CRC.size :]
    if zlib.crc32(raw) != crc:
        raise WireError("bad checksum", "the header does not match its CRC-32; send it again")
    try:
        version = msgspec.msgpack.decode(raw, type=dict[str, msgspec.Raw]).get("version")
        number = None if version is None else msgspec.msgpack.decode(version)
        if number != VERSION:
            raise WireError("unknown version", f"version {number!r}; this streamer speaks {VERSION}")
        header = msgspec.msgpack.decode(raw, type=_Header)
    except WireError:
        raise
    except _UNREADABLE as error:
        raise WireError("bad header", str(error)) from None
    buffers = parts[1:]
    if _CHECKSUMS[header.checksum](buffers) != header.payload:
        raise WireError("bad checksum", f"the payload does not match its {header.checksum}")

    named: list[int] = []

    def hook(kind: Any, value: Any) -> Any:
        ref = msgspec.convert(value, _ArrayRef)
        named.append(ref.part)
        return _array(ref, buffers)

    try:
        message: AnyMessage = msgspec.msgpack.decode(header.message, type=AnyMessage, dec_hook=hook)
    except _UNREADABLE as error:
        reason = "wrong size" if "bytes;" in str(error) else "invalid message"
        raise WireError(reason, str(error)) from None
    if sorted(named) != list(range(1, len(parts))):
        raise WireError("wrong size", f"{len(buffers)} buffers came; the message names parts {sorted(named)}")
    return message


def open_context() -> zmq.Context[zmq.Socket[bytes]]:
    """Make a context that closes without waiting for peers that are gone."""
    context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    return context


def _harden(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
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

    def receive(self, timeout_s: float, most: int = 32) -> list[tuple[bytes, list[memoryview]]]:
        """Wait for messages; return at most ``most`` of ``(peer, parts)``, none when time is up."""
        events = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        while self._wake in events:
            try:
                self._wake.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
        received: list[tuple[bytes, list[memoryview]]] = []
        while len(received) < most:
            try:
                peer, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            received.append((bytes(peer.buffer), [part.buffer for part in parts]))
        return received

    def send(self, peer: bytes, message: Message) -> bool:
        """Send to one peer; False when it is gone."""
        try:
            self._socket.send_multipart([peer, *encode(message)], copy=False)
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
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


class Link:
    """An instrument's or agent's connection to the streamer; it opens no port.

    Parameters
    ----------
    address
        The streamer's, such as ``tcp://127.0.0.1:5555``.
    role, name
        Who connects.
    timeout_s
        How long to wait for the Welcome.

    Attributes
    ----------
    welcome
        What the streamer answered: session, window, next number, durability.

    Raises
    ------
    ConnectionError
        If nobody answers in time; the text names the address and the cure.
    """

    def __init__(self, address: str, *, role: Role, name: str, timeout_s: float = 10.0) -> None:
        self._context = open_context()
        self._socket = self._context.socket(zmq.DEALER)
        _harden(self._socket)
        self._socket.connect(address)
        self._unacked: set[int] = set()
        self.refused: list[Ack] = []
        self.send(Hello(role=role, name=name))
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.receive(max(0.0, deadline - time.monotonic()))
            if isinstance(message, Welcome):
                self.welcome = message
                return
            if isinstance(message, Bye):
                self._context.destroy(linger=0)
                raise ConnectionError(f"the streamer at {address} refused: {message.reason}")
            if message is None and time.monotonic() >= deadline:
                self._context.destroy(linger=0)
                raise ConnectionError(
                    f"no streamer answers at {address} within {timeout_s:g} s; start one with "
                    "'probeloop stream' or give its address with --connect"
                )

    @property
    def credit(self) -> int:
        """How many more frames may be sent before an ack must come."""
        return self.welcome.window - len(self._unacked)

    @property
    def unacked(self) -> int:
        """How many frames are on their way."""
        return len(self._unacked)

    def send(self, message: Message) -> None:
        """Send; a Frame takes one place of the ack window.

        Raises
        ------
        RuntimeError
            For a Frame when the window is full: wait with ``receive`` until ``credit`` is above 0.
        """
        if isinstance(message, Frame):
            if self.credit <= 0:
                raise RuntimeError(f"{self.unacked} frames wait for their acks; the window is full")
            self._unacked.add(message.number)
        self._socket.send_multipart(encode(message), copy=False)

    def receive(self, timeout_s: float) -> AnyMessage | None:
        """Wait for a message; None when time is up. Acks free their place and are returned too."""
        if not self._socket.poll(max(0, round(timeout_s * 1000))):
            return None
        message = decode([part.buffer for part in self._socket.recv_multipart(copy=False)])
        if isinstance(message, Ack):
            # A frame that could not be read is refused under -1: they are read in order.
            number = message.number if message.number >= 0 else min(self._unacked, default=-1)
            self._unacked.discard(number)
            if message.status == "refused":
                self.refused.append(message)
        return message

    def close(self, *, reason: str = "", drain_s: float = 5.0) -> list[AnyMessage]:
        """Wait for the outstanding acks, say Bye and close; return what came meanwhile.

        The last ack, not the closing of the socket, tells that the frames arrived.
        """
        leftover: list[AnyMessage] = []
        deadline = time.monotonic() + drain_s
        while self._unacked and time.monotonic() < deadline:
            message = self.receive(0.1)
            if message is not None and not isinstance(message, Ack):
                leftover.append(message)
            if isinstance(message, Bye):
                break
        self.send(Bye(reason=reason))
        self._context.destroy(linger=1000)
        return leftover

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(reason="" if error is None else type(error).__name__)
