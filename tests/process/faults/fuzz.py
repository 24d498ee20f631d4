"""Messages that something happened to on the way: seeded, and judged by what the decoder makes of them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil

from streamer.codec import WireError, decode_numbered, encode
from streamer.messages import Checkpoint, Control, Hello, Message, Outcome, Suggestion
from tests.process.faults.counting import SESSION, latents_without_faults, make_frame

Parts = list[bytes]


def originals() -> list[Parts]:
    """Make one message of each sort that a peer sends, numbered."""
    frame = make_frame(3)
    latents = next(latents_without_faults([frame]))
    spectrum = np.arange(64, dtype=np.float32)
    messages: list[Message] = [
        frame,
        latents,
        Outcome(session=SESSION, id="a", status="ok", scan_position_nm=(0.1, 0.2), spectrum=spectrum),
        Suggestion(
            session=SESSION, number=3, acquired_at_s=1.0, id="b", position_nm=(0.1, 0.2), dwell_time_us=5.0,
            policy="test",
        ),
        Checkpoint(session=SESSION, of="agent", told=3, facts=b"\x01\x02", arrays={"x": spectrum}),
        Control(action="veto", id="a", reason="a test"),
        Hello(role="agent", name="agent", instance="0" * 32, beats=True),
    ]  # fmt: skip
    return [
        [bytes(part) for part in encode(message, sender="0" * 32, sequence=place + 1, after=place)]
        for place, message in enumerate(messages)
    ]


def mutations(seed: int, count: int) -> Iterator[tuple[Parts, Parts]]:
    """Give so many ``(original, mutated)``; they differ."""
    rng = np.random.default_rng(seed)
    sources = originals()
    while count:
        original = sources[rng.integers(len(sources))]
        mutated = _MUTATORS[rng.integers(len(_MUTATORS))](list(original), sources, rng)
        if mutated != original:
            count -= 1
            yield original, mutated


def forged(seed: int, count: int) -> Iterator[Parts]:
    """Give messages whose header was changed by somebody who can compute a CRC."""
    rng = np.random.default_rng(seed)
    sources = originals()
    for _ in range(count):
        parts = list(sources[rng.integers(len(sources))])
        header = _flip(parts, sources, rng, only=0)[0][4:]
        parts[0] = zlib.crc32(header).to_bytes(4, "little") + header
        yield parts


def _place(parts: Parts, rng: np.random.Generator, only: int | None = None) -> int:
    return int(rng.integers(len(parts))) if only is None else only


def _flip(parts: Parts, _: list[Parts], rng: np.random.Generator, only: int | None = None) -> Parts:
    place = _place(parts, rng, only)
    raw = bytearray(parts[place])
    for _ in range(int(rng.integers(1, 9)) if raw else 0):
        raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    parts[place] = bytes(raw)
    return parts


def _overwrite(parts: Parts, _: list[Parts], rng: np.random.Generator) -> Parts:
    place = _place(parts, rng)
    raw = bytearray(parts[place])
    if raw:
        begin = int(rng.integers(len(raw)))
        end = min(len(raw), begin + int(rng.integers(1, 33)))
        raw[begin:end] = rng.bytes(end - begin)
    parts[place] = bytes(raw)
    return parts


def _cut(parts: Parts, _: list[Parts], rng: np.random.Generator) -> Parts:
    place = _place(parts, rng)
    parts[place] = parts[place][: rng.integers(len(parts[place]) + 1)]
    return parts


def _lengthen(parts: Parts, _: list[Parts], rng: np.random.Generator) -> Parts:
    parts[_place(parts, rng)] += rng.bytes(int(rng.integers(1, 65)))
    return parts


def _lose_part(parts: Parts, _: list[Parts], rng: np.random.Generator) -> Parts:
    del parts[_place(parts, rng)]
    return parts


def _repeat_part(parts: Parts, _: list[Parts], rng: np.random.Generator) -> Parts:
    parts.insert(_place(parts, rng), parts[_place(parts, rng)])
    return parts


def _swap_in(parts: Parts, sources: list[Parts], rng: np.random.Generator) -> Parts:
    """Put a part of another message in the place of one; a header too goes with foreign buffers."""
    other = sources[rng.integers(len(sources))]
    place = _place(parts, rng)
    parts[place] = other[rng.integers(len(other))] if place else parts[0]
    return parts[1:] if not place else parts


def _noise(_: Parts, __: list[Parts], rng: np.random.Generator) -> Parts:
    return [rng.bytes(int(rng.integers(0, 200))) for _ in range(int(rng.integers(1, 5)))]


_MUTATORS = (_flip, _flip, _overwrite, _cut, _lengthen, _lose_part, _repeat_part, _swap_in, _noise)


@dataclass
class FuzzVerdict:
    """What the decoder made of mutated messages.

    Attributes
    ----------
    reasons
        How many were refused, by the fixed word.
    wrong_accepted
        How many were taken for a message that nobody sent.
    crashes
        What rose that is no WireError, as text.
    growth_mb
        Memory more than after the first tenth.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    wrong_accepted: int = 0
    crashes: list[str] = field(default_factory=list)
    growth_mb: float = 0.0


def fuzz_decoder(*, count: int, seed: int) -> FuzzVerdict:
    """Have the decoder read mutated messages, and a tenth as many with a forged header."""
    verdict = FuzzVerdict()
    process = psutil.Process()
    rss = 0
    for place, (original, mutated) in enumerate(mutations(seed, count)):
        if place == count // 10:
            rss = process.memory_info().rss
        if _judge(mutated, verdict) not in (None, original):
            verdict.wrong_accepted += 1
    for parts in forged(seed, count // 10):
        _judge(parts, verdict)  # who can compute a CRC may send what he likes; it must only not hurt
    verdict.growth_mb = (process.memory_info().rss - rss) / 1e6
    return verdict


def _judge(parts: Parts, verdict: FuzzVerdict) -> Parts | None:
    """Decode; give what was understood, as it would be sent, or None if it was refused."""
    try:
        numbered = decode_numbered(parts)
    except WireError as error:
        verdict.reasons[error.reason] += 1
        return None
    except Exception as crash:  # what must never happen is what is counted here
        verdict.crashes.append(repr(crash))
        return None
    place = {"sender": numbered.sender, "sequence": numbered.sequence, "after": numbered.after}
    return [bytes(part) for part in encode(numbered.message, **place)]  # type: ignore[arg-type]
