"""What is learnt of the frames of one raster, from the first of them to the last, and how it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.drift import DriftTracker
from streamer.messages import DistortionMode, Float32, ScanGeometry
from streamer.observers.against_lattice import LatticeReference
from streamer.observers.hum_search import HumSearch
from streamer.observers.lattice import LatticeState
from streamer.observers.reference import Observer, ReferenceObserver
from streamer.observers.two_directions import BothDirections
from streamer.relearn import Relearner, RelearnState

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    from models.calibration import Calibration, ScanKey
    from models.distortion_gp import DistortionGP
    from models.scan_basis import ScanPath

Arrays = dict[str, NDArray[Any]]

# What is not the observer's own among the arrays of a state.
_OTHERS = ("model.", "relearn.", "hum.", "lag.")


class SceneState(msgspec.Struct, frozen=True, kw_only=True):
    """All that a Scene knows, beside its arrays.

    Attributes
    ----------
    geometry
        Raster of the frames.
    mode
        That is at work on them.
    usual_match
        How well frames match the reference; None before the second.
    anchor_px
        Displacement of the reference's raster ``(row, col)``.
    seen
        ``(at_s, x, y)`` of the drifts that the rate is fitted to.
    dwell_time_us
        Of the frames.
    model
        MessagePack of the model's facts.
    lattice
        Facts of the lattice; None where there is none.
    model_revision
        Of the model; 0 where it is as it began.
    hum_frames
        Frames in which a hum was looked for.
    relearn
        What is known of how well the model foresees its frames.
    channels
        Where forward and backward ones are brought together; empty where they are not.
    lag_frames
        In which that might have been learnt.
    is_mirrored
        Whether the backward ones came in order of time, so that it was not.
    """

    geometry: ScanGeometry
    mode: DistortionMode
    usual_match: float | None
    anchor_px: tuple[int, int] = (0, 0)
    seen: tuple[tuple[float, float, float], ...]
    dwell_time_us: float
    model: bytes
    lattice: LatticeState | None = None
    model_revision: int
    hum_frames: int
    relearn: RelearnState
    channels: tuple[str, ...]
    lag_frames: int
    is_mirrored: bool


@dataclass(slots=True, kw_only=True, eq=False)
class Scene:
    """What is learnt on one raster: each part learns for itself, the stage says when."""

    geometry: ScanGeometry
    mode: DistortionMode
    tracker: DriftTracker
    observer: Observer
    model: DistortionGP
    dwell_time_us: float
    both: BothDirections
    usual_match: float | None = None
    model_revision: int = 0
    hum: HumSearch = field(default_factory=HumSearch)
    relearner: Relearner = field(default_factory=Relearner)

    def calibration(self) -> Calibration | None:
        """Give what was learnt of the scan, to be kept; None where nothing was calibrated."""
        if self.mode != "calibrate" or self.observer.name != "lattice":
            return None
        from models.calibration import Calibration

        mean, covariance = self.model.static()
        return Calibration(
            key=key_of(self.geometry, self.dwell_time_us, self.model.scan.path),
            scan=self.model.scan,
            hyperparameters=self.model.hyperparameters,
            mean_px=mean,
            covariance_px2=covariance,
            frames=self.model.frames,
        )

    def state(self) -> tuple[SceneState, Arrays]:
        """Say all that the next frame's correction depends on.

        Returns
        -------
        facts
            Numbers.
        arrays
            Of the model, named ``model.…``, of what watches it, and of the reference (``image``
            ``(rows, cols)``, ``rows`` and ``cols``, float32) or of the lattice.
        """
        model, model_arrays = self.model.state()
        relearn, relearn_arrays = self.relearner.state()
        arrays = _prefixed("model.", model_arrays) | _prefixed("relearn.", relearn_arrays)
        arrays["hum.recent"] = self.hum.recent_px
        if self.both.channels:
            arrays |= _prefixed("lag.", self.both.arrays)
        facts = SceneState(
            geometry=self.geometry,
            mode=self.mode,
            usual_match=self.usual_match,
            seen=self.tracker.seen,
            dwell_time_us=self.dwell_time_us,
            model=msgspec.msgpack.encode(model),
            model_revision=self.model_revision,
            hum_frames=self.hum.frames,
            relearn=relearn,
            channels=self.both.channels,
            lag_frames=self.both.frames,
            is_mirrored=self.both.is_mirrored,
        )
        if isinstance(self.observer, LatticeReference):
            lattice, own = self.observer.state()
            return msgspec.structs.replace(facts, lattice=lattice), arrays | own
        assert isinstance(self.observer, ReferenceObserver)
        facts = msgspec.structs.replace(facts, anchor_px=self.observer.anchor_px)
        return facts, arrays | dict(self.observer.arrays)

    @classmethod
    def restored(
        cls,
        facts: SceneState,
        arrays: Arrays,
        reference_of: Callable[[Float32, DistortionMode], ReferenceObserver],
        rate_frames: int,
    ) -> Scene:
        """Make one that knows what another one knew.

        Parameters
        ----------
        facts, arrays
            As ``state`` said them.
        reference_of
            Makes the observer of an image ``(rows, cols)``, where there is no lattice.
        rate_frames
            Frames over which the drift rate is fitted.

        Raises
        ------
        ValueError
            If the arrays are not those of the frames' raster.
        """
        from models.distortion_gp import DistortionGP, GPFacts

        known = msgspec.msgpack.decode(facts.model, type=GPFacts)
        model = DistortionGP(known.scan, known.hyperparameters)
        model.restore(known, _of("model.", arrays))
        relearner = Relearner()
        relearner.restore(facts.relearn, _of("relearn.", arrays))
        both = BothDirections(facts.channels, facts.geometry.shape)
        if facts.channels:
            both.restore(facts.lag_frames, facts.is_mirrored, _of("lag.", arrays))
        return cls(
            geometry=facts.geometry,
            mode=facts.mode,
            tracker=DriftTracker(rate_frames, facts.seen),
            observer=_observer(facts, arrays, reference_of),
            model=model,
            usual_match=facts.usual_match,
            dwell_time_us=facts.dwell_time_us,
            both=both,
            model_revision=facts.model_revision,
            hum=HumSearch(arrays["hum.recent"], facts.hum_frames),
            relearner=relearner,
        )


def key_of(geometry: ScanGeometry, dwell_time_us: float, path: ScanPath) -> ScanKey:
    """Say what a distortion belongs to."""
    from models.calibration import ScanKey

    return ScanKey(
        shape=geometry.shape,
        field_of_view_nm=geometry.field_of_view_nm,
        dwell_time_us=dwell_time_us,
        rotation_rad=geometry.rotation_rad,
        path=path,
    )


def _observer(
    facts: SceneState, arrays: Arrays, reference_of: Callable[[Float32, DistortionMode], ReferenceObserver]
) -> Observer:
    own = {name: array for name, array in arrays.items() if not name.startswith(_OTHERS)}
    if facts.lattice is not None:
        return LatticeReference.restored(facts.lattice, own, facts.geometry.shape)
    if own["image"].shape != facts.geometry.shape:
        raise ValueError(
            f"the reference has shape {own['image'].shape}, the frames {facts.geometry.shape}; "
            "they are no state of this pipeline"
        )
    observer = reference_of(own["image"].astype(np.float32), facts.mode)
    observer.restore(own, facts.anchor_px)
    return observer


def _prefixed(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _of(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
