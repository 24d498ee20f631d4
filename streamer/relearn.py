"""Learn the hyperparameters of the distortion anew, beside the work, when frames are no longer as expected.

Learning takes seconds and a frame must not wait for it. But the same frames must give the same results
on a fast machine and on a slow one, and after a restart: so the frame from which the result is used is
fixed when the learning begins, and only one that comes before its time waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    from models.distortion_gp import DistortionGP, Observations, Update
    from models.scan_basis import Hyperparameters, ScanModel

    Learn = Callable[[ScanModel, Sequence[Observations], Hyperparameters], Hyperparameters]

Float64 = NDArray[np.float64]
Pair = tuple[float, float]

_LATELY = 5  # frames whose median evidence is compared with what was usual
_LEARNT_FROM = 6  # frames: the fewest that say how lasting a distortion is
_USUAL_FROM = 5  # frames of which something may be called usual
_MEMORY = 0.95
_DROP_NATS = 0.5  # an observation
_DROP_SD = 4.0
_WAIT_FRAMES = 16
_ARRAYS = ("positions_px", "displacement_px", "variance_px2")
_FLOOR_PX2 = 1e-4


class RelearnState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a ``Relearner`` knows, beside its observations.

    Attributes
    ----------
    lately
        Evidence of the last frames in nats an observation: as it is, and beside that of the measurements'
        noise. Fewer counts lower the first, more counts the second: a change of the dose not both.
    usual, variance
        Mean and variance of the frames before them.
    count
        Of those.
    column_sigma_px, row_reach
        Of the observations that are kept, frame by frame.
    swap_in
        Frames to go until what is being learnt is used; None where nothing is being learnt.
    scan, start
        What is learnt for, and from where, in MessagePack; empty where nothing is.
    """

    lately: tuple[Pair, ...] = ()
    usual: Pair = (0.0, 0.0)
    variance: Pair = (0.0, 0.0)
    count: int = 0
    column_sigma_px: tuple[float, ...] = ()
    row_reach: tuple[Pair, ...] = ()
    swap_in: int | None = None
    scan: bytes = b""
    start: bytes = b""


class Relearner:
    """Watches how well a model foresees its frames, and learns it anew when that gets worse for good.

    Parameters
    ----------
    learn
        Makes hyperparameters from frames; ``learn_hyperparameters`` if left out.
    """

    def __init__(self, learn: Learn | None = None) -> None:
        self._learn = learn
        self._state = RelearnState()
        self._seen: list[Observations] = []
        self._future: Future[Hyperparameters] | None = None

    @property
    def is_learning(self) -> bool:
        """Whether something is being learnt, or waits for its frame."""
        return self._state.swap_in is not None

    def watch(self, model: DistortionGP, seen: Observations, update: Update) -> None:
        """Take in what a frame showed and what the model made of it; begin to learn if that is called for.

        Parameters
        ----------
        model
            That learnt from the frame.
        seen, update
            What it was shown, and what it said.
        """
        if self._state.swap_in is not None or not update.used:
            return
        self._seen = [*self._seen[-_LEARNT_FROM + 1 :], seen]
        self._take(_evidence(seen, update))
        if len(self._seen) == _LEARNT_FROM and self._has_dropped():
            self._state = msgspec.structs.replace(
                self._state,
                swap_in=_WAIT_FRAMES,
                scan=msgspec.msgpack.encode(model.scan),
                start=msgspec.msgpack.encode(model.hyperparameters),
            )
            self._begin()

    def swap(self, model: DistortionGP) -> DistortionGP | None:
        """Count a frame that is about to be predicted; give the model to go on with, if it is another one.

        Waits for what is being learnt where its frame has come.
        """
        if self._state.swap_in is None:
            return None
        if self._state.swap_in > 1:
            self._state = msgspec.structs.replace(self._state, swap_in=self._state.swap_in - 1)
            return None
        assert self._future is not None
        found = self._future.result()
        self.forget()
        return model.with_hyperparameters(found)

    def forget(self) -> None:
        """Begin anew: what was usual no longer is, and what is being learnt is of no use."""
        self._state, self._seen, self._future = RelearnState(), [], None

    def state(self) -> tuple[RelearnState, dict[str, Float64]]:
        """Say all that it knows; arrays are never written to."""
        arrays = {}
        for index, seen in enumerate(self._seen):
            for name in _ARRAYS:
                arrays[f"{index}.{name}"] = getattr(seen, name)
        state = msgspec.structs.replace(
            self._state,
            column_sigma_px=tuple(seen.column_sigma_px for seen in self._seen),
            row_reach=tuple(seen.row_reach for seen in self._seen),
        )
        return state, arrays

    def restore(self, state: RelearnState, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from what ``state`` said; what was being learnt is learnt again.

        Raises
        ------
        KeyError
            If an array is missing.
        """
        from models.distortion_gp import Observations

        self._seen = [
            Observations(
                **{name: arrays[f"{index}.{name}"].astype(np.float64) for name in _ARRAYS},
                column_sigma_px=sigma_px,
                row_reach=reach,
            )
            for index, (sigma_px, reach) in enumerate(
                zip(state.column_sigma_px, state.row_reach, strict=True)
            )
        ]
        self._state, self._future = state, None
        if state.swap_in is not None:
            self._begin()

    def _take(self, evidence: Pair) -> None:
        """Let the oldest of the last frames become part of what is usual."""
        state, lately = self._state, (*self._state.lately, evidence)
        if len(lately) > _LATELY:
            oldest, lately = lately[0], lately[1:]
            share = max(1 / (state.count + 1), 1 - _MEMORY)
            off = np.subtract(oldest, state.usual)
            state = msgspec.structs.replace(
                state,
                usual=_pair(state.usual + share * off),
                variance=_pair((1 - share) * (state.variance + share * off**2)),
                count=state.count + 1,
            )
        self._state = msgspec.structs.replace(state, lately=lately)

    def _has_dropped(self) -> bool:
        state = self._state
        if state.count < _USUAL_FROM:
            return False
        # The median: a single frame that went wrong is no reason.
        drop = np.subtract(state.usual, np.median(state.lately, axis=0))
        return bool((drop > np.maximum(_DROP_NATS, _DROP_SD * np.sqrt(state.variance))).all())

    def _begin(self) -> None:
        from models.distortion_learning import learn_hyperparameters
        from models.scan_basis import Hyperparameters, ScanModel

        scan = msgspec.msgpack.decode(self._state.scan, type=ScanModel)
        start = msgspec.msgpack.decode(self._state.start, type=Hyperparameters)
        # Torch counts its threads anew in each thread, and many of them would be in the way of the frames.
        pool = ThreadPoolExecutor(1, "relearn", initializer=_with_one_thread)
        self._future = pool.submit(self._learn or learn_hyperparameters, scan, list(self._seen), start)
        pool.shutdown(wait=False)


def _evidence(seen: Observations, update: Update) -> Pair:
    of_noise = -0.5 * float(np.log(seen.variance_px2 + _FLOOR_PX2).mean())
    return update.log_evidence, update.log_evidence - of_noise


def _pair(values: Float64) -> Pair:
    first, second = values.tolist()
    return first, second


def _with_one_thread() -> None:
    import torch

    torch.set_num_threads(1)
