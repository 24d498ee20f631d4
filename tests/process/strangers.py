"""Peers that mean no good, for the tests: each way of knocking that must not get in.

``python strangers.py PORT COUNT SEED SECONDS`` opens COUNT raw connections of every kind to a port of
this machine and keeps them open: run by itself, it has descriptors and a processor's time of its own.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
import time
from collections.abc import Callable

_SIGNATURE = b"\xff" + b"\0" * 7 + b"\x01\x7f"


def greeting(mechanism: bytes, minor: int = 1) -> bytes:
    """Open a ZMTP 3 conversation."""
    return _SIGNATURE + bytes([3, minor]) + mechanism.ljust(20, b"\0") + b"\0" * 32


def command(name: bytes, body: bytes) -> bytes:
    """Write a ZMTP 3 command."""
    content = bytes([len(name)]) + name + body
    return b"\x04" + bytes([len(content)]) + content


def _plain_peer(chance: random.Random) -> bytes:
    """Speak as a peer without security does, up to a message."""
    ready = command(b"READY", b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER")
    return greeting(b"NULL") + ready + b"\0\x05hello"


def _old_peer(chance: random.Random) -> bytes:
    """Speak as ZeroMQ 2 did, which knew no security."""
    return chance.choice([b"\x01\0\x06\0hello", _SIGNATURE + b"\x01\x05" + b"\0\0" + b"\0\x05hello"])


def _huge(chance: random.Random) -> bytes:
    """Announce a command of an absurd length, before any key was shown."""
    length = chance.choice([2**63 - 1, 2**40, 255 << 20])
    return greeting(b"CURVE") + b"\x06" + struct.pack(">Q", length) + chance.randbytes(100)


def _false_hello(chance: random.Random) -> bytes:
    """Say a CURVE HELLO of the right form and wrong content, and what would follow it."""
    hello = command(b"HELLO", b"\x01\0" + chance.randbytes(chance.choice([192, 192, 10])))
    return greeting(b"CURVE") + hello + command(b"INITIATE", chance.randbytes(200))


_KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    lambda chance: chance.randbytes(chance.randrange(4000)),
    lambda chance: _SIGNATURE + chance.randbytes(chance.randrange(500)),
    lambda chance: greeting(b"CURVE") + chance.randbytes(chance.randrange(4000)),
    lambda chance: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    lambda chance: b"",  # half open
    lambda chance: greeting(b"CURVE")[: chance.randrange(1, 64)],  # a slow one, which never comes to an end
    _plain_peer,
    _old_peer,
    _huge,
    _false_hello,
)


def knock(port: int, number: int, chance: random.Random) -> socket.socket | None:
    """Open one connection and say what its kind says; None if it was refused at once."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=2.0)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        connection.sendall(_KINDS[number % len(_KINDS)](chance))
    return connection


def crowd(port: int, count: int, seed: int, seconds: float) -> int:
    """Knock so often, hold what stays open for the rest of the time; return how many connected."""
    chance = random.Random(seed)
    end_s = time.monotonic() + seconds
    held: list[socket.socket] = []
    for number in range(count):
        connection = knock(port, number, chance)
        if connection is not None:
            held.append(connection)
    print(len(held), flush=True)
    while (left_s := end_s - time.monotonic()) > 0:
        connection = chance.choice(held)
        with contextlib.suppress(OSError):
            connection.send(b"\0")  # a slow one sends a byte now and then
        time.sleep(min(left_s, 0.001))
    for connection in held:
        connection.close()
    return len(held)


if __name__ == "__main__":
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
