"""A pipeline that costs nothing and forgets nothing, and the frames that it is given.

Its latents depend on every frame before: one that is missing, taken twice or out of order shows in all
that follow. Its state is small, so that a restart can be tried hundreds of times.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from streamer.messages import Atoms, Float32, Frame, Latents, Registration, ScanGeometry
from streamer.pipeline import Pipeline, PipelineState, Processed
from streamer.stage import Meter

if TYPE_CHECKING:  # a process that is started hundreds of times does without torch
    from models.checkpoint import ModelCard

SESSION = "session"
SIDE = 6  # atoms along each edge of the field
PIXEL_NM = 0.1


def make_frame(number: int, *, shape: tuple[int, int] = (16, 24), seed: int = 7) -> Frame:
    """Make frame ``number`` of the session: always the same counts, from a seed."""
    rows, cols = shape
    # A key, and bytes: a soak makes half a million of them, and its judge all of them again.
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    drawn = min(rows, 64)  # of a large frame only the first rows are drawn
    image = rng.integers(0, 50, (1, drawn, cols), dtype=np.uint8).astype(np.float32)
    if drawn < rows:
        image = np.resize(image, (1, rows, cols))
    return Frame(
        session=SESSION,
        number=number,
        acquired_at_s=1000.0 + number,
        image=image,
        channels=("HAADF",),
        geometry=ScanGeometry(shape=shape, field_of_view_nm=(cols * PIXEL_NM, rows * PIXEL_NM)),
        dwell_time_us=0.01,
    )


@cache
def _positions(geometry: ScanGeometry) -> tuple[Float32, Float32]:
    """Say where the atoms of a frame are in pixels and in nm, shape ``(SIDE * SIDE, 2)``."""
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
    positions_px = ((grid + 0.5) * np.array(geometry.shape) / SIDE).astype(np.float32)
    return positions_px, geometry.to_nm(positions_px).astype(np.float32)


class Counting:
    """Stands in the place of the pipeline: same verbs, no science.

    Parameters
    ----------
    ballast_kb
        Its state is made larger by so much: that of the real pipeline is about a megabyte.
    busy_s
        Time that each frame takes.
    """

    def __init__(self, *, ballast_kb: int = 0, busy_s: float = 0.0) -> None:
        self.number = -1
        self.count = 0
        self._ballast = np.zeros(ballast_kb << 10, np.uint8)
        self._busy_s = busy_s
        self.memory = np.zeros((SIDE * SIDE, 2), np.float32)

    def warm_up(self) -> None:
        """Nothing is cold."""

    def cards(self) -> dict[str, ModelCard]:
        """Give no cards: it encodes nothing."""
        return {}

    def state(self) -> PipelineState:
        """Give all that the next latents depend on."""
        facts = msgspec.msgpack.encode(self.count)
        arrays = {"memory": self.memory.copy(), "ballast": self._ballast}
        return PipelineState(number=self.number, facts=facts, arrays=arrays)

    def restore(self, state: PipelineState) -> None:
        """Go on from a state."""
        self.number = state.number
        self.count = msgspec.msgpack.decode(state.facts, type=int)
        self.memory = np.array(state.arrays["memory"])

    def process(self, frame: Frame, meter: Meter) -> Processed | None:
        """Fold the frame into the memory, and give the memory as latents."""
        if self._busy_s:  # to sleep for no time at all gives the processor away
            time.sleep(self._busy_s)
        self.number = frame.number
        self.count += 1
        seen = np.resize(frame.image[0, :8], self.memory.shape)
        self.memory = (np.float32(0.75) * self.memory + seen).astype(np.float32)
        latents = self._latents(frame)
        atoms = Atoms(
            frame=frame,
            positions_px=latents.positions_px,
            confidence=latents.confidence,
            amplitude=np.ones(SIDE * SIDE, np.float32),
            background=0.0,
            contrast=1.0,
        )
        return Processed(corrected=frame, atoms=atoms, latents=latents)

    def _latents(self, frame: Frame) -> Latents:
        n = SIDE * SIDE
        positions_px, positions_nm = _positions(frame.geometry)
        zeros, ones = np.zeros(n, np.float32), np.ones(n, np.float32)
        return Latents(
            session=frame.session,
            number=frame.number,
            acquired_at_s=frame.acquired_at_s,
            mean=self.memory.copy(),
            sd=np.full((n, 2), 0.1, np.float32),
            angle_rad=zeros,
            angle_sd_rad=ones,
            offset_nm=np.zeros((n, 2), np.float32),
            offset_sd_nm=np.zeros((n, 2), np.float32),
            class_probability=np.zeros((n, 0), np.float32),
            novelty=np.full(n, self.count, np.float32),
            confidence=ones,
            track=np.arange(n),
            positions_px=positions_px,
            positions_nm=positions_nm,
            model_revision="counting",
            geometry=frame.geometry,
            registration=Registration(),
        )


class OnceOnly:
    """Analyses the first frame in earnest, and says of all others what it found there.

    What it keeps is as large, and can be restored, as that of the real pipeline.

    Parameters
    ----------
    pipeline
        The real one.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._first: Processed | None = None
        self._number = -1

    def cards(self) -> dict[str, ModelCard]:
        """Give the cards of the real encoders."""
        return self._pipeline.cards()

    def state(self) -> PipelineState:
        """Give the real state, as of the last frame."""
        return msgspec.structs.replace(self._pipeline.state(), number=self._number)

    def restore(self, state: PipelineState) -> None:
        """Go on from a state."""
        self._pipeline.restore(state)

    def process(self, frame: Frame, meter: Meter) -> Processed | None:
        """Give the first frame's atoms and latents under the number of this one."""
        self._number = frame.number
        if self._first is None:
            self._first = self._pipeline.process(frame, meter)
            return self._first
        latents = msgspec.structs.replace(
            self._first.latents, number=frame.number, acquired_at_s=frame.acquired_at_s
        )
        return msgspec.structs.replace(self._first, latents=latents)


class _NoMeter:
    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        pass


def latents_without_faults(frames: Iterable[Frame]) -> Iterator[Latents]:
    """Give the latents of a session to which nothing happened."""
    pipeline = Counting()
    for frame in frames:
        processed = pipeline.process(frame, _NoMeter())
        if processed is not None:
            yield processed.latents
