"""The pipeline's thread: frames in, results out, and a watch on how long each one takes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from streamer.encoders import Lane
from streamer.messages import Frame, Latents, Patches, ScanGeometry
from streamer.pipeline import PipelineState, Processed
from streamer.stage import Meter

# What the first frame of a raster may take beside what each may: its lattice is sought, and the size of
# its distortion learnt. 0.9 s of CPU for 512 x 512, on a processor that others may be using.
FIRST_LOOK_S = 2.5


class FrameProcessor(Protocol):
    """What the hub asks of the pipeline."""

    def process(self, frame: Frame | Patches, meter: Meter) -> Processed | None:
        """Turn a frame, or patches that a detector delivered, into latents; None when a stage rejected it."""
        ...

    def state(self) -> PipelineState | None:
        """Give what was learnt from the frames so far; None where there is nothing to keep."""
        ...

    def use(self, lane: Lane) -> None:
        """Encode with other weights from the next frame on."""
        ...


class Waker(Protocol):
    """Ends the hub's wait from the pipeline's thread."""

    def wake(self) -> None:
        """End the wait; never blocks."""
        ...

    def close(self) -> None:
        """Close; called in the thread that wakes."""
        ...


class Result(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What came of one frame.

    Attributes
    ----------
    frame
        As it went in, or the patches.
    processed
        None where a stage rejected it.
    rejected_by, reason
        The stage and its fixed word; empty for a good frame.
    state
        The pipeline's after this frame, where it was asked for.
    """

    frame: Frame | Patches
    processed: Processed | None
    rejected_by: str = ""
    reason: str = ""
    state: PipelineState | None = None


class _FrameMeter:
    """Passes times on at once, and keeps a rejection for the hub, which alone counts frames."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.rejection = ("", "")

    def stage_took(self, stage: str, seconds: float) -> None:
        self._meter.stage_took(stage, seconds)

    def stage_rejected(self, stage: str, reason: str) -> None:
        self.rejection = (stage, reason)


class Worker:
    """Runs the pipeline beside the hub; a fault is handed over, not swallowed.

    Parameters
    ----------
    processor
        The pipeline.
    meter
        Where the stages' times go.
    keep_every
        Frames between two states of the pipeline.
    reflect
        Told of each frame's latents when they are on their way; what it takes delays none of them.
    """

    def __init__(
        self,
        processor: FrameProcessor,
        meter: Meter,
        keep_every: int,
        reflect: Callable[[Latents], None] = lambda _: None,
    ) -> None:
        self._reflect = reflect
        self._processor = processor
        self._meter = meter
        self._keep_every = keep_every
        self._inbox: queue.SimpleQueue[Frame | Patches | Lane | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy_since_s: float | None = None
        self._geometry: ScanGeometry | None = None
        self._done = 0

    def start(self, waker: Waker) -> None:
        """Start; ``waker`` tells the hub of each result."""
        self._thread = threading.Thread(target=self._run, args=(waker,), name="pipeline", daemon=True)
        self._thread.start()

    def put(self, frame: Frame | Patches | Lane) -> None:
        """Hand in a frame, or patches; or an encoder that all after it are encoded with."""
        self._inbox.put(frame)

    def get(self) -> Result | None:
        """Take a result; None when none is ready. A fault of the pipeline rises here."""
        try:
            result = self._outbox.get_nowait()
        except queue.Empty:
            return None
        if isinstance(result, BaseException):
            raise result
        return result

    def busy_s(self, now_s: float) -> float:
        """Seconds that the frame under way has taken by now; 0 where there is none.

        The first frame of a raster is looked at for ``FIRST_LOOK_S`` before they count.
        """
        since_s = self._busy_since_s
        return 0.0 if since_s is None else max(0.0, now_s - since_s)

    def stop(self, patience_s: float) -> None:
        """Let it finish what it has, for a while."""
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join(timeout=patience_s)

    def _run(self, waker: Waker) -> None:
        try:
            while (frame := self._inbox.get()) is not None:
                if isinstance(frame, Lane):
                    self._processor.use(frame)
                    continue
                result = self._process(frame)
                self._outbox.put(result)
                waker.wake()
                if result.processed is not None and not result.processed.latents.is_delivered:
                    self._reflect(result.processed.latents)
        except BaseException as fault:  # raised again in the hub's thread, which ends the process
            self._outbox.put(fault)
            waker.wake()
        finally:
            waker.close()

    def _process(self, frame: Frame | Patches) -> Result:
        meter = _FrameMeter(self._meter)
        is_first = isinstance(frame, Frame) and frame.geometry != self._geometry
        if isinstance(frame, Frame):
            self._geometry = frame.geometry
        self._busy_since_s = time.monotonic() + (FIRST_LOOK_S if is_first else 0.0)
        processed = self._processor.process(frame, meter)
        self._busy_since_s = None
        self._done += 1
        state = self._processor.state() if self._done % self._keep_every == 0 else None
        stage, reason = meter.rejection
        return Result(frame=frame, processed=processed, rejected_by=stage, reason=reason, state=state)
