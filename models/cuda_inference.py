"""The harmonic rVAE on a GPU: a block of windows is one copy there, one recorded graph, one copy back.

A pass of the model is some hundred small kernels. Launched one by one they cost more than they compute; a
CUDA graph, recorded once for each block size, launches them together. Windows go through pinned memory and a
stream of their own: while one block is on its way the host fills the next.

Checked on a CPU only, where the same tensors are computed without the graph: what a GPU does with streams,
graphs and pinned memory follows torch's documentation of ``torch.cuda.graph`` and has not been run by us.
Blocks of different sizes may differ in the last digits, as products of matrices do on a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.answers import Answers
from models.harmonic_graph import HarmonicGraph
from models.novelty import Calibration, HarmonicNovelty
from models.rvae import RVAE

Float32 = NDArray[np.float32]

SIZES = (256, 1024, 4096)
_IN_FLIGHT = 2
_WARM_UPS = 3  # before a graph is recorded: libraries set themselves up in the first runs


class DeviceInference:
    """A harmonic rVAE with its weights fixed, on a GPU; calls from one thread at a time.

    Parameters
    ----------
    model
        Trained; later changes of it are not seen.
    novelty
        Fitted to its training windows.
    calibration
        Of the novelty, on other windows.
    device
        Where it runs; a CPU runs the same without a graph.
    sizes
        Of the blocks, ascending.
    """

    def __init__(
        self,
        model: RVAE,
        novelty: HarmonicNovelty,
        calibration: Calibration,
        device: torch.device,
        sizes: tuple[int, ...] = SIZES,
    ) -> None:
        whole = HarmonicGraph(model, novelty, calibration).to(device).eval()
        self._answers = (whole.latents, whole.classes, whole.nuisances)
        self._ends = np.cumsum(whole.widths())[:-1]
        shape = (model.channels, model.window_px, model.window_px)
        is_cuda = device.type == "cuda"
        stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._blocks = {size: _Block(whole, size, shape, device, stream) for size in sizes}

    def encode(self, windows_NCHW: Float32, threads: int = 1) -> Answers:
        """Say everything of windows ``(n, channel, h, w)``, whatever the threads; nothing is learnt."""
        answers = Answers.room(len(windows_NCHW), *self._answers)
        on_the_way: deque[tuple[int, int, _Block, int]] = deque()
        for number, (at, size) in enumerate(pieces(len(windows_NCHW), tuple(self._blocks))):
            if len(on_the_way) == _IN_FLIGHT:  # its buffers are the ones that are filled now
                self._deliver(answers, *on_the_way.popleft())
            piece, block, slot = windows_NCHW[at : at + size], self._blocks[size], number % _IN_FLIGHT
            block.begin(piece, slot)
            on_the_way.append((at, len(piece), block, slot))
        while on_the_way:
            self._deliver(answers, *on_the_way.popleft())
        return answers

    def _deliver(self, answers: Answers, at: int, count: int, block: _Block, slot: int) -> None:
        columns = np.split(block.finish(slot, count), self._ends, axis=1)
        for mine, theirs in zip(columns, answers, strict=True):
            theirs[at : at + count] = mine.reshape(theirs[at : at + count].shape)


def pieces(count: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cut windows into blocks, as full as can be: yields where each begins and its size.

    Parameters
    ----------
    count
        Windows.
    sizes
        Of the blocks, ascending.
    """
    at = 0
    while at < count:
        full = [size for size in sizes if size <= count - at]
        size = full[-1] if full else sizes[0]
        yield at, size
        at += size


class _Slot(NamedTuple):
    """What one block on its way takes on the host."""

    given: torch.Tensor
    told: torch.Tensor
    done: torch.cuda.Event | None


class _Block:
    """A fixed number of windows on the device, and the graph that says everything of them."""

    def __init__(
        self,
        whole: HarmonicGraph,
        size: int,
        shape: tuple[int, ...],
        device: torch.device,
        stream: torch.cuda.Stream | None,
    ) -> None:
        self._whole, self._stream = whole, stream
        is_cuda = stream is not None
        self._slots = [
            _Slot(
                torch.zeros(size, *shape, pin_memory=is_cuda),
                torch.zeros(size, sum(whole.widths()), pin_memory=is_cuda),
                torch.cuda.Event() if is_cuda else None,  # type: ignore[no-untyped-call]
            )
            for _ in range(_IN_FLIGHT)
        ]
        self._graph: torch.cuda.CUDAGraph | None = None
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(device))  # on which the constants are copied there
        with self._context(), torch.inference_mode():
            self._windows = torch.zeros(size, *shape, device=device)
            self._told = whole(self._windows)
            if stream is not None:
                self._graph = self._recorded(stream)

    def _context(self) -> torch.cuda.StreamContext | nullcontext[None]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _recorded(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        for _ in range(_WARM_UPS):
            self._told = self._whole(self._windows)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Another encoder may be at work in another thread while this one is loaded.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._told = self._whole(self._windows)
        return graph

    def begin(self, windows_NCHW: Float32, slot: int) -> None:
        """Send windows on their way; what lies behind them in the block is left there and not looked at."""
        given, told, done = self._slots[slot]
        count = len(windows_NCHW)
        given.numpy()[:count] = windows_NCHW
        with self._context(), torch.inference_mode():
            self._windows[:count].copy_(given[:count], non_blocking=True)
            if self._graph is None:
                self._told = self._whole(self._windows)
            else:
                self._graph.replay()
            told[:count].copy_(self._told[:count], non_blocking=True)
            if done is not None:
                done.record()

    def finish(self, slot: int, count: int) -> Float32:
        """Wait for what was begun, and say it; it lies in the slot until that is begun with again."""
        _, told, done = self._slots[slot]
        if done is not None:
            done.synchronize()
        said: Float32 = told.numpy()[:count]
        return said
