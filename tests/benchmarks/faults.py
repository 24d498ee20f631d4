"""What the service withstands: kills, flipped bits, garbled messages, strangers; and how soon it is back.

Every figure but ``restart_s`` counts what must never happen. The streamers that are killed are processes
with the real hub, journal and sockets; where nothing is decided their analysis only counts. ``restart_s``
is the time from the start of ``python -m streamer`` to its first answer, behind a journal of
``journal_gb`` that a kill left open. ``--json`` prints one object on the last line; ``--quick`` takes under
a minute, ``--full`` the numbers that the project promises, which takes a quarter of an hour. A figure that
could not be measured is null, with its reason beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(pool, "1")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import msgspec
import numpy as np
import structlog
import zmq

from simulators.stem import StemConfig, StemInstrument
from streamer.codec import WireError, encode
from streamer.journal import Journal, JournalConfig, read_records
from streamer.keys import Peer, PeerKeys, ServerKeys, allow, revoke, write_pair
from streamer.link import Link
from streamer.messages import Frame, Hello
from streamer.segment import Damage
from streamer.wire import Router, new_pair
from tests.process.faults.counting import SESSION, make_frame
from tests.process.faults.fuzz import fuzz_decoder
from tests.process.faults.lives import Nursery
from tests.process.faults.lockstep import decided, differences
from tests.process.faults.sessions import (
    STREAMER,
    Company,
    Feeder,
    draw_kills,
    kill_at_random,
    kill_while_it_writes,
    play_in_lockstep,
)

Figures = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much of everything is tried."""

    kills: int
    kills_while_writing: int
    sessions: int
    kills_in_session: int
    mutations: int
    knocks: int
    flips: int
    journal_gb: float


QUICK = Size(5, 3, 1, 3, 20_000, 100, 50, 0.1)
USUAL = Size(20, 10, 4, 6, 200_000, 400, 300, 1.0)
FULL = Size(100, 50, 20, 6, 1_000_000, 1000, 1000, 10.0)


# -- kills ---------------------------------------------------------------------------------------


def measure_kills(folder: Path, size: Size) -> Figures:
    """Kill the streamer at any moment, and while it writes."""
    nursery = Nursery()
    verdicts = [
        kill_at_random(nursery, folder / "any" / SESSION, trials=size.kills, seed=101),
        kill_while_it_writes(
            nursery, folder / "writing" / SESSION, trials=size.kills_while_writing, seed=102
        ),
    ]
    nursery.close()
    return {
        "acked_lost": sum(verdict.acked_lost for verdict in verdicts),
        "sent_lost": sum(verdict.sent_lost for verdict in verdicts),
        "duplicates": sum(verdict.duplicates for verdict in verdicts),
        "latents_differ": sum(verdict.differing for verdict in verdicts),
        "journal_damages": sum(verdict.damages for verdict in verdicts),
        "frames_acked": sum(verdict.acked for verdict in verdicts),
        "kills": size.kills,
        "kills_while_writing": size.kills_while_writing,
    }


def measure_decisions(folder: Path, size: Size) -> Figures:
    """Compare the explorer's session with and without kills of streamer and agent, in lock-step."""
    nursery = Nursery("agents.explorer")
    agent = {"agent": {"policy": "explorer", "max_pending": 1, "seed": 3}, "checkpoint_every": 5}
    cycles = 14
    clean = decided(play_in_lockstep(Company(nursery, folder / "clean", STREAMER, agent), cycles, {}))
    differ = 0
    for seed in range(size.sessions):
        company = Company(nursery, folder / f"killed-{seed}", STREAMER, agent)
        drawn = draw_kills(200 + seed, size.kills_in_session, cycles, ["streamer", "agent"])
        killed = decided(play_in_lockstep(company, cycles, drawn))
        differ += differences(clean, killed, ["Suggestion", "Request", "Latents", "ModelRevision"])
    nursery.close()
    compared = len(clean["Suggestion"]) * size.sessions
    return {"suggestions_differ": differ, "suggestions_compared": compared, "sessions": size.sessions}


# -- what comes in -------------------------------------------------------------------------------


def measure_fuzz(_: Path, size: Size) -> Figures:
    """Have the decoder read mutated messages."""
    verdict = fuzz_decoder(count=size.mutations, seed=103)
    return {
        "crashes": len(verdict.crashes),
        "wrong_accepted": verdict.wrong_accepted,
        "mutations": size.mutations,
        "fuzz_rss_growth_mb": round(verdict.growth_mb, 1),
    }


def measure_strangers(folder: Path, size: Size) -> Figures:
    """Knock with keys that must not open: unknown, none, for another streamer, revoked."""
    server = new_pair()
    folder.mkdir(mode=0o700)
    write_pair(folder / "streamer.key", name="streamer", role="streamer", pair=server)
    pairs = {name: new_pair() for name in ("revoked", "unknown", "good")}
    for name in ("revoked", "good"):
        allow(folder, Peer(name=name, role="instrument", public=pairs[name].public))
    revoke(folder, "revoked")
    router = Router("tcp://127.0.0.1:0", ServerKeys(folder))
    knockers = {
        "unknown": _keys_of(pairs["unknown"], server.public),
        "none": None,
        "wrong server": _keys_of(pairs["good"], new_pair().public),
        "revoked": _keys_of(pairs["revoked"], server.public),
    }
    served = sum(_knock(router, keys, size.knocks // 4) for keys in knockers.values())
    good = _knock(router, _keys_of(pairs["good"], server.public), 5)
    router.close(0)
    if good != 5:
        raise RuntimeError(f"of five peers with a good key {good} were served: the rest proves nothing")
    return {"strangers_served": served, "knocks": size.knocks // 4 * 4}


def _keys_of(pair: Any, streamer: str) -> PeerKeys:
    return PeerKeys("stranger", "instrument", pair.public, pair.secret, streamer)


def _knock(router: Router, keys: PeerKeys | None, count: int) -> int:
    """Say Hello over so many connections; count those that came through within a second of silence."""
    context = zmq.Context()
    peers = [context.socket(zmq.DEALER) for _ in range(count)]
    for peer in peers:
        if keys is not None:
            peer.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
            peer.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
            peer.setsockopt(zmq.CURVE_SERVERKEY, keys.streamer.encode())
        peer.connect(router.address)
        peer.send_multipart(encode(Hello(role="instrument", name="stranger")))
    heard: set[bytes] = set()
    while came := router.receive(1.0):
        heard.update(peer for peer, _, _ in came)
    context.destroy(linger=0)
    return len(heard)


# -- the disk ------------------------------------------------------------------------------------


def measure_bit_flips(folder: Path, size: Size) -> Figures:
    """Flip one bit anywhere in a journal; exactly one record must be missing or found damaged."""
    journal = Journal(folder, JournalConfig())
    for number in range(20):
        journal.append(encode(make_frame(number)), 1000.0 + number, kind="frame", monotonic_s=float(number))
    journal.close()
    path = folder / "journal-000001.plj"
    raw = bytearray(path.read_bytes())
    whole = _whole_records(path)
    rng = np.random.default_rng(104)
    missed = spread = 0
    for _ in range(size.flips):
        place, bit = int(rng.integers(len(raw))), 1 << int(rng.integers(8))
        raw[place] ^= bit
        path.write_bytes(raw)
        raw[place] ^= bit
        left = _whole_records(path)
        missed += len(left) == len(whole) or not left <= whole
        spread += len(left) < len(whole) - 1
    return {"bitflips_missed": missed, "bitflips_spread": spread, "bitflips": size.flips}


def _whole_records(path: Path) -> set[tuple[int, bytes]]:
    """Read what a reader would believe: number and content of each record."""
    found = set()
    for record in read_records(path):
        if isinstance(record, Damage):
            continue
        with contextlib.suppress(WireError):
            record.message()
            found.add((record.number, b"".join(record.parts)))
    return found


# -- a restart -----------------------------------------------------------------------------------


def measure_restart(folder: Path, size: Size) -> Figures:
    """Fill a journal with 1 MB frames, kill the streamer, and start ``python -m streamer`` again."""
    room_gb = shutil.disk_usage(folder.parent).free / 1e9
    wanted_gb = min(size.journal_gb, 0.5 * room_gb)
    session = folder / SESSION
    nursery = Nursery("torch", "models.encoder")
    hub = {"window": 16, "max_waiting": 16, "last_words_s": 0.1}
    life = nursery.start("bulk streamer", session, hub=hub)
    address = life.address()
    feeder = Feeder(Link(address, role="instrument", name="feeder"), _one_frame_again())
    written = wanted_gb * 1e9
    while _size_of(session) < written:
        feeder.feed(_after_s(0.05))
    life.kill()
    nursery.close()
    journal_gb = _size_of(session) / 1e9
    started_s = time.monotonic()
    command = [sys.executable, "-m", "streamer", "--session-folder", str(session), "--bind", address]
    with (folder / "streamer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        before = feeder.link.reconnects
        while feeder.link.reconnects == before:
            feeder.link.receive(0.005)
            if process.poll() is not None or time.monotonic() - started_s > 120:
                raise RuntimeError((folder / "streamer.log").read_text()[-1000:])
        restart_s = time.monotonic() - started_s
        lost = feeder.acked - feeder.link.welcome.next_number
    finally:
        process.kill()
        process.wait()
        feeder.link.abandon()
    return {
        "restart_s": round(restart_s, 2),
        "journal_gb": round(journal_gb, 2),
        "restart_acked_lost": max(0, lost),
    }


def _one_frame_again() -> Callable[[int], Frame]:
    """Make frames that are all the same but for their number: 512 x 512 of the simulated microscope."""
    image = StemInstrument(StemConfig(), started_at_s=1000.0).acquire()
    return lambda number: msgspec.structs.replace(
        image, session=SESSION, number=number, acquired_at_s=1000.0 + number
    )


def _size_of(session: Path) -> int:
    """Say how much room the journal takes."""
    return sum(512 * path.stat().st_blocks for path in session.glob("journal-*.plj"))


def _after_s(duration_s: float) -> Callable[[], bool]:
    end_s = time.monotonic() + duration_s
    return lambda: time.monotonic() >= end_s


# -- all of it -----------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Path, Size], Figures], tuple[str, ...]]] = {
    "kills": (measure_kills, ("acked_lost", "duplicates")),
    "decisions": (measure_decisions, ("suggestions_differ",)),
    "fuzz": (measure_fuzz, ("crashes", "wrong_accepted")),
    "strangers": (measure_strangers, ("strangers_served",)),
    "flips": (measure_bit_flips, ("bitflips_missed",)),
    "restart": (measure_restart, ("restart_s",)),
}


def measure(size: Size, only: list[str]) -> Figures:
    """Measure everything, or some parts; what fails leaves nulls and a reason."""
    figures: Figures = {}
    for name in only:
        part, promised = PARTS[name]
        began_s = time.monotonic()
        with _folder() as folder:
            try:
                figures |= part(folder / name, size)
            except (AssertionError, OSError, RuntimeError) as error:
                figures |= dict.fromkeys(promised) | {f"{one}_reason": str(error) for one in promised}
        print(f"{name}: {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return figures


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="probeloop-faults-") as name:
        yield Path(name)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="one object on the last line")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--full", action="store_true", help="the numbers that are promised")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    figures = measure(QUICK if options.quick else FULL if options.full else USUAL, options.only)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
