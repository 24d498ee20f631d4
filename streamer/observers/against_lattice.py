"""The other way of observing a frame: against the lattice of a perfect crystal.

The lattice says where columns are, so it shows what all frames share; modulo a lattice vector it does not
say where the specimen is. That, and whether the frame shows the specimen at all, is told by the frame
before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamer.messages import Float32
from streamer.observers.lattice import LatticeObserver, LatticeState
from streamer.observers.reference import Rows
from streamer.observers.registration import Judgement, Matcher, judge

if TYPE_CHECKING:
    from models.distortion_gp import DistortionGP, Observations, Update

Float64 = NDArray[np.float64]

# A match is wanted to a pixel or two: half the resolution takes a quarter of the time.
_BINNED_FROM = 256
_SURE_PX = 1.0
_JUMP_PX = 6.0


class LatticeReference:
    """Measures frames of one raster against a lattice that is found in the first one.

    Parameters
    ----------
    image
        The first frame, shape ``(rows, cols)``.
    observer
        That was started on it.
    """

    name: Literal["lattice"] = "lattice"

    def __init__(self, image: Float32, observer: LatticeObserver) -> None:
        self._bin = 2 if min(image.shape) >= _BINNED_FROM else 1
        self._previous = self._binned(image)
        self._matcher = Matcher((self._previous.shape[0], self._previous.shape[1]))
        self._off_px = np.zeros(2)
        self.observer = observer

    def first_look(self, image: Float32, model: DistortionGP) -> tuple[DistortionGP, Update] | None:
        """Teach a model the first frame; None if its columns are not where its lattice is.

        The frame says how large the parts of the distortion are, and it is looked at again with the columns
        expected where the first look put the field.

        Returns
        -------
        model
            One that knows this frame, with hyperparameters of its own.
        update
            What the frame taught it.
        """
        from models.distortion_gp import DistortionGP  # not before it is needed: it brings torch
        from models.distortion_learning import learn_hyperparameters

        seen = self.observer.observe(image, model.to_raw_px)
        if seen is None:
            return None
        learnt = learn_hyperparameters(model.scan, [seen], model.hyperparameters)
        first = DistortionGP(model.scan, learnt)
        first.observe(seen)
        seen = self.observer.observe(image, first.to_raw_px)
        if seen is None:
            return None
        again = DistortionGP(model.scan, learnt)
        return again, again.observe(seen)

    def judge(
        self, image: Float32, model: DistortionGP, expected_px: Float64, reach_px: float, **limits: float
    ) -> Judgement:
        """Say whether a frame shows what the last one did; see ``ReferenceObserver.judge``."""
        before_px = -np.array(model.translation_px)
        now = self._binned(image)
        # A jump is seen modulo a lattice vector only, so a shorter one than elsewhere is called so.
        limits = {"jump_px": _JUMP_PX} | limits
        limits["jump_px"] /= self._bin
        found = judge(
            now,
            self._previous,
            self._matcher,
            (expected_px - before_px) / self._bin,
            reach_px / self._bin,
            **limits,
        )
        self._seen_px = before_px + found.displacement_px * self._bin
        if found.verdict in ("ok", "jump"):
            self._previous = now
        return found

    def observe(self, image: Float32, model: DistortionGP, judgement: Judgement) -> Observations | None:
        """Measure how far the columns of the judged frame are displaced; None if they are not found."""
        # How much further the specimen went than the model thinks: it appears that much further on.
        self._off_px = self._seen_px + np.array(model.translation_px)
        if np.hypot(*self._off_px) < _SURE_PX:
            self._off_px = np.zeros(2)
        off_px, seen_at = self._off_px, _seen_at(model.field())
        return self.observer.observe(image, lambda places: seen_at(places) + off_px)

    @property
    def is_off(self) -> bool:
        """Whether the specimen of the frame last observed lay further off than the model foresaw."""
        return bool(self._off_px.any())

    def rows(self, image: Float32, model: DistortionGP, field_px: Float32 | Float64) -> Rows:
        """Say what each row has of its own, beside the field that has learnt from the frame."""
        own = model.parts().rows_px.astype(np.float64)  # what changes within the rows of one column
        return Rows.beside_lattice(self.observer.rows(image, _seen_at(field_px), own))

    def learn(self, image: Float32, anchor_px: Float64) -> None:
        """Learn nothing: the lattice is known."""

    def state(self) -> tuple[LatticeState, dict[str, NDArray[Any]]]:
        """Say all that it knows; arrays are never written to."""
        facts, arrays = self.observer.state()
        return facts, {**arrays, "previous": self._previous}

    @classmethod
    def restored(
        cls, facts: LatticeState, arrays: dict[str, NDArray[Any]], shape: tuple[int, int]
    ) -> LatticeReference:
        """Make one that knows what another one knew.

        Raises
        ------
        ValueError
            If the arrays are not those of the frames' raster.
        """
        known = {name: array for name, array in arrays.items() if name != "previous"}
        observer = LatticeObserver().restore(facts, known)
        made = cls(np.zeros(shape, dtype=np.float32), observer)
        if made._previous.shape != arrays["previous"].shape:
            raise ValueError(
                f"the last frame has shape {arrays['previous'].shape}, it takes {made._previous.shape}; "
                "they are no state of this pipeline"
            )
        made._previous = arrays["previous"].astype(np.float32)
        return made

    def _binned(self, image: Float32) -> Float32:
        if self._bin == 1:
            return np.ascontiguousarray(image)
        rows, cols = (n // 2 * 2 for n in image.shape)
        quads = image[:rows, :cols]
        total: Float32 = quads[0::2, 0::2] + quads[1::2, 0::2] + quads[0::2, 1::2] + quads[1::2, 1::2]
        return total


def _seen_at(field_px: Float32 | Float64) -> Callable[[Float64], Float64]:
    """Make what says where places of the specimen are seen in a frame of this field."""
    from models.resampling import seen_positions  # not before it is needed: it brings torch

    return partial(seen_positions, field_px)
