"""The wire: how much of the transport's speed is left once nothing may be lost.

Two processes on this machine over tcp on the loopback, as they are between an instrument and a streamer: a
``Link`` with an ack window of 16 that numbers, keeps and checksums its frames, and the real ``Hub``, which
checks, orders, writes and acks them; only the analysis is left out. In turns with it runs plain pyzmq,
``DEALER`` to ``ROUTER``, zero-copy, with a MessagePack header and without any ack: the ceiling. ``_tuned`` is
the ratio to plain pyzmq with the memory settings that the service gives its processes, which make it
faster. Ratios are medians of pairs taken one after the other; CPU seconds are of both processes.
``--json`` prints one object on the last line, ``--quick`` takes fewer repeats.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing as mp
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

import numpy as np
import structlog

from deploy.supervise import REUSED_MEMORY
from streamer.config import ExperimentConfig, HubConfig
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.hub import Hub
from streamer.journal import Journal, JournalConfig
from streamer.link import Link
from streamer.messages import Frame, ScanGeometry
from streamer.telemetry import Telemetry
from streamer.wire import Publisher, Router

WINDOW = 16
MB = 1 << 20
SIDES = {"64kb": 128, "1mb": 512, "4mb": 1024}
PACED_PER_S = 100.0
PLAIN = Path(__file__).parent / "ceiling" / "plain_zmq.py"
Figures = dict[str, Any]


# -- ours: the receiving process ----------------------------------------------------------------------


class NoJournal(Journal):
    """Numbers the records and writes nothing: what the transport costs without the disk."""

    def append(self, parts: Any, received_at_s: float, **_: Any) -> int:
        """Give the next number."""
        self.next_record += 1
        return self.next_record - 1

    def reserve(self, size_bytes: int) -> None:
        """Promise room that is not needed."""


class NoAnalysis:
    """Stands where the pipeline's thread does, and notes how long each frame was on its way."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.count = 0
        self.one_way_s: list[float] = []
        self.first_s = self.last_s = self.cpu_s = 0.0

    def start(self, waker: Any) -> None:
        """Nothing runs."""

    def put(self, frame: Frame) -> None:
        """Take a frame and let it go."""
        self.last_s = time.monotonic()
        if self.count == 0:
            self.first_s, self.cpu_s = self.last_s, time.process_time()
        self.count += 1
        self.one_way_s.append(self.last_s - frame.acquired_at_s)
        self._hub._waiting.clear()

    def get(self) -> None:
        """Have no result."""

    def busy_s(self, now_s: float) -> float:
        """Never be busy."""
        return 0.0

    def stop(self, patience_s: float) -> None:
        """Nothing runs."""


def serve(conn: Connection, folder: str, is_journalled: bool) -> None:
    """Be a hub for one sender, and report."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    router, publisher = Router("tcp://127.0.0.1:0"), Publisher("tcp://127.0.0.1:0")
    journal = (Journal if is_journalled else NoJournal)(Path(folder), JournalConfig())
    hub = Hub(
        session="wire",
        router=router,
        publisher=publisher,
        journal=journal,
        envelope=Envelope(EnvelopeConfig()),
        telemetry=Telemetry(),
        processor=None,  # type: ignore[arg-type]
        hub_config=HubConfig(window=WINDOW, last_words_s=0.0),
        experiment=ExperimentConfig(max_measurements=0),
    )
    sink = NoAnalysis(hub)
    hub._worker = sink  # type: ignore[assignment]
    gc.collect()
    gc.freeze()  # as the streamer does
    conn.send(router.address)
    hub.run(lambda: None)
    cpu_s = time.process_time() - sink.cpu_s
    journal.close()
    router.close(0)
    publisher.close(0)
    conn.send((sink.count, sink.last_s - sink.first_s, cpu_s, sink.one_way_s))


def send_frames(address: str, side: int, count: int, per_s: float) -> float:
    """Send frames as an instrument does; per_s is infinite for as fast as acks come. Returns CPU seconds."""
    image = np.random.default_rng(0).poisson(50, (1, side, side)).astype(np.float32)
    geometry = ScanGeometry(shape=(side, side), field_of_view_nm=(5.0, 5.0))
    with Link(address, role="instrument", name="bench") as link:
        session = link.welcome.session
        cpu_s, started_s = time.process_time(), time.monotonic()
        for number in range(count):
            _wait_until(started_s + number / per_s, link)
            while link.credit <= 0:
                link.receive(1.0)
            link.send(
                Frame(
                    session=session,
                    number=number,
                    acquired_at_s=time.monotonic(),
                    image=image,
                    channels=("HAADF",),
                    geometry=geometry,
                    dwell_time_us=1.0,
                )
            )
        while link.unacked:
            link.receive(1.0)
        return time.process_time() - cpu_s


def _wait_until(due_s: float, link: Link) -> None:
    while (left_s := due_s - time.monotonic()) > 0:
        link.receive(min(left_s, 0.005))


# -- a run --------------------------------------------------------------------------------------------


def run(mode: str, side: int, count: int, per_s: float = math.inf) -> Figures:
    """Send so many frames in one way: ``plain`` or ``tuned`` pyzmq, ``ours`` or with the ``journal``."""
    environment = {name: value for name, value in os.environ.items() if name not in REUSED_MEMORY}
    environment |= {} if mode == "plain" else REUSED_MEMORY
    if mode in ("plain", "tuned"):
        taken = _run_plain(environment, side, count, per_s)
    else:
        taken = _run_ours(mode, side, count, per_s)
    received, elapsed_s, cpu_received_s, one_way_s, cpu_sent_s = taken
    gb = count * 4 * side * side / 1e9
    return {
        "lost": count - received,
        "mb_per_s": 1e3 * gb * (count - 1) / count / elapsed_s,
        "cpu_s_per_gb": (cpu_sent_s + cpu_received_s) / gb,
        "one_way_ms_p50": 1e3 * float(np.percentile(one_way_s, 50)),
        "one_way_ms_p99": 1e3 * float(np.percentile(one_way_s, 99)),
    }


def _run_plain(environment: dict[str, str], side: int, count: int, per_s: float) -> tuple[Any, ...]:
    with subprocess.Popen(
        [sys.executable, str(PLAIN), "receive", str(side)], stdout=subprocess.PIPE, text=True, env=environment
    ) as receiver:
        assert receiver.stdout is not None
        address = receiver.stdout.readline().strip()
        sender = subprocess.run(
            [sys.executable, str(PLAIN), "send", address, str(side), str(count), str(per_s)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            check=True,
        )
        return (*json.loads(receiver.stdout.readline()), float(sender.stdout))


def _run_ours(mode: str, side: int, count: int, per_s: float) -> tuple[Any, ...]:
    os.environ.update(REUSED_MEMORY)
    context = mp.get_context("spawn")
    (receiving, there), (sending, there_too) = context.Pipe(), context.Pipe()
    with tempfile.TemporaryDirectory(prefix="probeloop-wire-") as folder:
        process = context.Process(target=serve, args=(there, folder, mode == "journal"))
        process.start()
        address = receiving.recv()
        sender = context.Process(target=_send_and_tell, args=(there_too, address, side, count, per_s))
        sender.start()
        received = receiving.recv()
        cpu_sent_s = sending.recv()
        sender.join()
        process.join()
    return (*received, cpu_sent_s)


def _send_and_tell(conn: Connection, address: str, side: int, count: int, per_s: float) -> None:
    conn.send(send_frames(address, side, count, per_s))


def compare(name: str, count: int, repeats: int) -> Figures:
    """Throughput and CPU of the three ways, in turns."""
    taken: dict[str, list[Figures]] = {"plain": [], "ours": [], "journal": [], "tuned": []}
    for _ in range(repeats):
        for mode, runs in taken.items():
            runs.append(run(mode, SIDES[name], count))
    figures: Figures = {f"frames_lost_{name}": sum(r["lost"] for runs in taken.values() for r in runs)}
    for mode, ceiling, suffix in (
        ("ours", "plain", ""),
        ("journal", "plain", "_journal"),
        ("ours", "tuned", "_tuned"),
    ):
        ratios = [a["mb_per_s"] / b["mb_per_s"] for a, b in zip(taken[mode], taken[ceiling], strict=True)]
        figures[f"ratio_to_raw_zmq_{name}{suffix}"] = round(statistics.median(ratios), 3)
        figures[f"ratio_to_raw_zmq_{name}{suffix}_all"] = [round(ratio, 3) for ratio in ratios]
    for mode, runs in taken.items():
        figures[f"{mode}_mb_per_s_{name}"] = round(statistics.median(r["mb_per_s"] for r in runs))
        figures[f"{mode}_cpu_s_per_gb_{name}"] = round(statistics.median(r["cpu_s_per_gb"] for r in runs), 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, under a minute")
    arguments = parser.parse_args()
    started_s = time.perf_counter()
    repeats, amount = (1, 300) if arguments.quick else (5, 1500)
    figures = compare("1mb", amount, repeats)
    if not arguments.quick:
        figures |= compare("64kb", 6000, 3) | compare("4mb", 400, 3)
    for mode in ("plain", "ours", "journal"):
        paced = [
            run(mode, SIDES["1mb"], 100 if arguments.quick else 500, PACED_PER_S) for _ in range(repeats)
        ]
        for quantile in ("p50", "p99"):
            name = f"one_way_ms_{quantile}" + {"plain": "_plain", "ours": "_no_journal", "journal": ""}[mode]
            figures[name] = round(statistics.median(r[f"one_way_ms_{quantile}"] for r in paced), 3)
    figures["cpu_s_per_gb"] = figures["ours_cpu_s_per_gb_1mb"]
    figures |= {
        "frames_lost": sum(figures[name] for name in figures if name.startswith("frames_lost")),
        "wall_s": round(time.perf_counter() - started_s, 1),
        "quick": arguments.quick,
    }
    for name, value in figures.items():
        print(f"{name:36} {value}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
