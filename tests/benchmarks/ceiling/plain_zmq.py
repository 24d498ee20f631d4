"""Plain pyzmq, ``DEALER`` to ``ROUTER``, zero-copy, no check, no order, no ack: the ceiling of the wire.

It imports nothing of ours, so that nothing of ours slows it down. ``receive SIDE`` prints the address, then
one JSON object; ``send ADDRESS SIDE COUNT PER_S`` prints its CPU seconds.
"""

from __future__ import annotations

import json
import sys
import time

import msgpack
import numpy as np
import zmq

MB = 1 << 20


def receive(side: int) -> None:
    """Receive and unpack headers until a negative number comes."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.RCVHWM, _high_water(side))
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    print(f"tcp://127.0.0.1:{port}", flush=True)
    count, first_s, last_s, cpu_s = 0, 0.0, 0.0, 0.0
    one_way_s = []
    while True:
        _, header, _ = socket.recv_multipart(copy=False)
        told = msgpack.unpackb(header.buffer)
        if told["number"] < 0:
            break
        last_s = time.monotonic()
        if count == 0:
            first_s, cpu_s = last_s, time.process_time()
        count += 1
        one_way_s.append(last_s - told["at_s"])
    cpu_s = time.process_time() - cpu_s
    context.destroy(0)
    print(json.dumps([count, last_s - first_s, cpu_s, one_way_s]), flush=True)


def send(address: str, side: int, count: int, per_s: float) -> None:
    """Send headers and frames, as many a second as asked for."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.SNDHWM, _high_water(side))
    socket.connect(address)
    image = np.random.default_rng(0).poisson(50, (1, side, side)).astype(np.float32)
    time.sleep(0.2)
    cpu_s, started_s = time.process_time(), time.monotonic()
    for number in range(count):
        while (left_s := started_s + number / per_s - time.monotonic()) > 0:
            time.sleep(left_s)
        told = {"session": "wire", "number": number, "at_s": time.monotonic(), "shape": image.shape}
        socket.send(msgpack.packb(told), zmq.SNDMORE)
        socket.send(image, copy=False)
    socket.send_multipart([msgpack.packb({"number": -1}), b""])
    socket.close(10_000)
    context.term()
    print(time.process_time() - cpu_s, flush=True)


def _high_water(side: int) -> int:
    """As many messages as 128 MB hold."""
    return max(4, min(1000, 128 * MB // (4 * side * side)))


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
