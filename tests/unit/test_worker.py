"""The pipeline's thread says how long a frame takes, whatever the frame does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from streamer.messages import Frame, ScanGeometry
from streamer.stage import Meter
from streamer.telemetry import Telemetry
from streamer.worker import FIRST_LOOK_S, Worker

PATIENCE_S = 60.0


class Gated:
    """Takes each frame only when it is let."""

    def __init__(self) -> None:
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def process(self, frame: Frame, meter: Meter) -> None:
        self.begun.release()
        assert self.let.acquire(timeout=PATIENCE_S)

    def state(self) -> None:
        return None


class Bell:
    """Tells of a result."""

    def __init__(self) -> None:
        self.rung = threading.Semaphore(0)

    def wake(self) -> None:
        self.rung.release()

    def close(self) -> None:
        pass


class Bench:
    """A worker whose frames take as long as a test wants."""

    def __init__(self) -> None:
        self.processor, self.bell = Gated(), Bell()
        self.worker = Worker(self.processor, Telemetry(), keep_every=100)
        self.worker.start(self.bell)

    def begin(self, frame: Frame) -> float:
        """Put a frame in; say when it was under way at the latest."""
        self.worker.put(frame)
        assert self.processor.begun.acquire(timeout=PATIENCE_S)
        return time.monotonic()

    def finish(self) -> None:
        self.processor.let.release()
        assert self.bell.rung.acquire(timeout=PATIENCE_S)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for _ in range(10):
        made.processor.let.release()
    made.worker.stop(PATIENCE_S)


def test_a_frame_under_way_counts_from_when_it_began(bench: Bench, make_frame: Callable[..., Frame]) -> None:
    assert bench.worker.busy_s(time.monotonic()) == 0
    bench.begin(make_frame(number=0))
    bench.finish()
    before_s = time.monotonic()
    begun_s = bench.begin(make_frame(number=1))
    assert 100.0 <= bench.worker.busy_s(begun_s + 100.0) <= 100.0 + begun_s - before_s
    bench.finish()
    assert bench.worker.get() is not None
    assert bench.worker.busy_s(time.monotonic() + 100.0) == 0


def test_the_first_frame_of_a_raster_is_looked_at_longer_before_it_counts(
    bench: Bench, make_frame: Callable[..., Frame]
) -> None:
    """In it the lattice is sought: the beam was held as ``analysis stuck`` while nothing was wrong."""
    for number, field_nm in enumerate((2.0, 2.0, 1.0)):
        before_s = time.monotonic()
        geometry = ScanGeometry(shape=(16, 24), field_of_view_nm=(field_nm, field_nm))
        begun_s = bench.begin(make_frame(number=number, geometry=geometry))
        spared_s = 0.0 if number == 1 else FIRST_LOOK_S
        if spared_s:
            assert bench.worker.busy_s(before_s + spared_s) == 0
        busy_s = bench.worker.busy_s(begun_s + spared_s + 10.0)
        assert 10.0 <= busy_s <= 10.0 + begun_s - before_s
        bench.finish()
