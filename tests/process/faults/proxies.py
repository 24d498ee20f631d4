"""What stands between a peer and the streamer when the network is bad: seeded, and counting what it does."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import zmq

from streamer.codec import WireError, decode_numbered

MOST_OVERTAKEN = 8
MOST_HELD_S = 0.03


@dataclass
class _Stream:
    """One direction of one connection; ``held`` waits with what may still overtake it, and until when."""

    direction: str
    out: zmq.Socket[bytes]
    prefix: list[bytes]
    rng: np.random.Generator
    held: deque[tuple[list[bytes], int, float]] = field(default_factory=deque)


class MessageProxy:
    """Loses, doubles and delays whole messages between DEALER and ROUTER, both ways.

    Parameters
    ----------
    target
        Address of the streamer.
    seed
        Of every choice.
    lost, doubled, delayed
        Shares of the messages; a delayed one is overtaken by up to 8 others.

    Attributes
    ----------
    address
        Where peers connect.
    counts
        Numbered messages by direction and fate, such as ``up came``, ``up lost``, ``up doubled``,
        ``up delayed``, ``up sent``.
    is_calm
        While true everything passes as it came.
    """

    def __init__(self, target: str, *, seed: int, lost: float, doubled: float, delayed: float) -> None:
        self.counts: Counter[str] = Counter()
        self.is_calm = False
        self._target = target
        self._seeds = np.random.SeedSequence(seed)
        self._shares = (lost, doubled, delayed)
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._front.bind("tcp://127.0.0.1:0")
        endpoint = self._front.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.address = endpoint.rstrip(b"\0").decode()
        self._poller = zmq.Poller()
        self._poller.register(self._front, zmq.POLLIN)
        self._up: dict[bytes, _Stream] = {}
        self._down: dict[zmq.Socket[bytes], _Stream] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            for one, _ in self._poller.poll(10):
                self._pump(one)
            now_s = time.monotonic()
            for stream in [*self._up.values(), *self._down.values()]:
                self._release(stream, now_s)

    def _pump(self, one: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                parts = one.recv_multipart(zmq.NOBLOCK)
                if one is self._front:
                    self._pass(self._stream_of(parts[0]), parts[1:])
                else:
                    self._pass(self._down[one], parts)

    def _stream_of(self, peer: bytes) -> _Stream:
        if peer not in self._up:
            back = self._context.socket(zmq.DEALER)
            back.setsockopt(zmq.ROUTING_ID, peer)
            back.connect(self._target)
            self._poller.register(back, zmq.POLLIN)
            up, down = (np.random.default_rng(seed) for seed in self._seeds.spawn(2))
            self._up[peer] = _Stream("up", back, [], up)
            self._down[back] = _Stream("down", self._front, [peer], down)
        return self._up[peer]

    def _pass(self, stream: _Stream, parts: list[bytes]) -> None:
        self._count(stream, "came", parts)
        lost, doubled, delayed = (0.0, 0.0, 0.0) if self.is_calm else self._shares
        draw = stream.rng.random()
        if draw < lost:
            self._count(stream, "lost", parts)
        elif draw < lost + doubled:
            self._count(stream, "doubled", parts)
            self._send(stream, parts)
            self._send(stream, parts)
        elif draw < lost + doubled + delayed:
            self._count(stream, "delayed", parts)
            overtaken = int(stream.rng.integers(1, MOST_OVERTAKEN + 1))
            stream.held.append((parts, overtaken, time.monotonic() + MOST_HELD_S))
        else:
            self._send(stream, parts)

    def _send(self, stream: _Stream, parts: list[bytes]) -> None:
        self._count(stream, "sent", parts)
        stream.out.send_multipart([*stream.prefix, *parts])
        stream.held = deque((held, left - 1, due_s) for held, left, due_s in stream.held)

    def _release(self, stream: _Stream, now_s: float) -> None:
        due = [parts for parts, left, due_s in stream.held if left <= 0 or now_s >= due_s]
        stream.held = deque(item for item in stream.held if item[1] > 0 and now_s < item[2])
        for parts in due:
            self._send(stream, parts)

    def _count(self, stream: _Stream, fate: str, parts: list[bytes]) -> None:
        try:
            is_numbered = bool(decode_numbered(parts).sequence)
        except WireError:
            is_numbered = False
        self.counts[f"{stream.direction} {fate}" if is_numbered else f"unnumbered {fate}"] += 1

    def close(self) -> None:
        """End it at once."""
        self._stopped.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CutProxy:
    """Passes the bytes of TCP connections on, until the link is cut.

    Parameters
    ----------
    target
        Address of the streamer, ``tcp://127.0.0.1:PORT``.

    Attributes
    ----------
    address
        Where peers connect.
    left_bytes
        So many more bytes pass to the streamer, and then nothing; None is without limit.
    """

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rsplit(":", 1)[1]))
        self._listener = self._listen(0)
        self._port = self._listener.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.left_bytes: int | None = None
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._outward: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cut proxy")
        self._thread.start()

    @staticmethod
    def _listen(port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        return listener

    def _run(self) -> None:
        while not self._stopped.is_set():
            ready = self._selector.select(0.01)
            with self._lock:
                for key, _ in ready:
                    one = key.fileobj
                    assert isinstance(one, socket.socket)
                    if one is self._listener:
                        self._accept()
                    elif one in self._pairs:
                        self._copy(one)

    def _accept(self) -> None:
        try:
            here, _ = self._listener.accept()
        except OSError:
            return
        try:
            there = socket.create_connection(self._target)
        except OSError:
            here.close()
            return
        self._outward.add(here)
        for one, other in ((here, there), (there, here)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _copy(self, one: socket.socket) -> None:
        try:
            piece = self._within_limit(one, one.recv(1 << 20))
            if piece:
                self._pairs[one].sendall(piece)
                return
        except OSError:
            pass
        self._drop(one)

    def _within_limit(self, one: socket.socket, piece: bytes) -> bytes:
        if self.left_bytes is None or one not in self._outward:
            return piece
        piece = piece[: self.left_bytes]
        self.left_bytes -= len(piece)
        return piece

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one)
        del self._pairs[other]
        for end in (one, other):
            self._selector.unregister(end)
            self._outward.discard(end)
            end.close()

    def cut(self) -> None:
        """End every connection and let none be made, until ``mend``."""
        with self._lock:
            self._selector.unregister(self._listener)
            self._listener.close()
            while self._pairs:
                self._drop(next(iter(self._pairs)))

    def mend(self) -> None:
        """Let connections be made again."""
        with self._lock:
            self._listener = self._listen(self._port)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def close(self) -> None:
        """End it at once."""
        self._stopped.set()
        self._thread.join()
        self._selector.close()
        self._listener.close()
        for one in self._pairs:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
