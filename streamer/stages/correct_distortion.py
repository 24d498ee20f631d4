"""Put each frame back onto the specimen: drift, row jitter, hum, and the field of the scan where it is known.

Directions inside this file are (row, col) in pixels of the raster. The displacement field ``D`` says that
pixel ``s`` was recorded with the probe at ``s + D(s)``. Drift is part of it, with the opposite sign: a
drift ``d`` says that a specimen point of pixel ``u`` appears in the frame at pixel ``u + d``.

From one scan direction a static distortion and a static strain of the specimen are the same. So on a
specimen that nobody knows only what changes from frame to frame is corrected (``drift-only``); the whole
field is learnt on a perfect lattice (``calibrate``), kept, and taken as known from then on (``frozen``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.channel_names import shows_dark_columns
from streamer.drift import DriftTracker, middle_s, on_specimen, to_raster_px, to_scan_nm
from streamer.messages import (
    Distortion,
    DistortionMode,
    Float32,
    Frame,
    ModelRevision,
    PairNm,
    Registration,
    ScanGeometry,
    StrainMap,
)
from streamer.observers.against_lattice import LatticeReference
from streamer.observers.image_filters import displaced
from streamer.observers.lattice import Lattice, LatticeObserver, NoLattice
from streamer.observers.reference import Observer, ReferenceObserver, Rows
from streamer.observers.registration import Judgement
from streamer.observers.turned_lattice import TurnedLattice
from streamer.observers.two_directions import BothDirections, linearised
from streamer.scene import Scene, SceneState, key_of
from streamer.stage import Rejected
from streamer.strain_mapping import MappingState, StrainMapping

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    from models.calibration import Calibration, ScanKey
    from models.distortion_gp import DistortionGP, FieldParts, Observations, Update

Float64 = NDArray[np.float64]
Calibrations = Callable[["ScanKey"], "Calibration | None"]
News = ModelRevision | StrainMap

# Further apart the sd of the field changes little.
_SD_NODES_PX = 32.0
_MOST_LOST = 3
_OFF_PX = 1.0
# Where nothing but drift and hum is learnt, a stage may wander as it likes: half a pixel in a few frames.
_DRIFT_CHANGE_PX = 0.15
DRAWN_SIGMA_PX = (1.9, 3.6)  # of columns to warm up with: apart from each other, and overlapping


class CorrectConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is corrected, and how frames are registered.

    Attributes
    ----------
    mode
        ``auto``: ``frozen`` where there is a calibration for the magnification, dwell time and rotation of
        the frames, else ``drift-only``. ``calibrate``: the whole field, on a specimen known to be a
        perfect lattice. ``frozen``, ``drift-only``, ``separate`` and ``off`` as in ``Distortion.mode``.
    observer
        What ``calibrate`` measures against: ``lattice``, ``registration`` (what changes from frame to
        frame, for a specimen without one), ``auto`` takes the lattice if there is one.
    calibrations
        Folder of calibrations; empty for none.
    hum_period_rows
        Rows in a period of the mains; 0 leaves hum to the row jitter until it is found.
    fade_above_px
        Where the field is known worse than this, its correction fades away.
    reach_nm
        How far the specimen may stray from its predicted drift before another match must be
        clearly better to be believed. A quarter of the lattice period is a good value.
    memory_frames
        Frames over which the reference is averaged.
    rate_frames
        Frames over which the drift rate is fitted.
    correct_rows
        Whether rows are also put back one by one.
    max_row_offset_px
        Rows that seem to be off by more are left where they are.
    lost_below
        The reference is given up when a frame matches it worse than this part of the usual.
    sinusoidal_samples
        How pixels of a resonant fast axis (``scan_path`` ``sinusoidal``) follow each other: evenly in
        ``time``, from one turning point to the other, or evenly in ``place``, by the instrument's own
        doing. The former are made even in place before anything else is done with the frame.
    """

    mode: Literal["auto", "drift-only", "frozen", "calibrate", "separate", "off"] = "auto"
    observer: Literal["auto", "lattice", "registration"] = "auto"
    calibrations: str = ""
    hum_period_rows: float = 0.0
    fade_above_px: float = 0.5
    reach_nm: float = 0.06
    memory_frames: int = 8
    rate_frames: int = 8
    correct_rows: bool = True
    max_row_offset_px: float = 4.0
    lost_below: float = 0.3
    sinusoidal_samples: Literal["time", "place"] = "time"

    def __post_init__(self) -> None:
        if not self.reach_nm > 0:
            raise ValueError(f"correct.reach_nm is {self.reach_nm}; it takes numbers above 0")
        if not 1 <= self.memory_frames <= 1000:
            raise ValueError(f"correct.memory_frames is {self.memory_frames}; it takes 1 to 1000")
        if not 2 <= self.rate_frames <= 1000:
            raise ValueError(f"correct.rate_frames is {self.rate_frames}; it takes 2 to 1000")
        if not 0 < self.max_row_offset_px <= 32:
            raise ValueError(f"correct.max_row_offset_px is {self.max_row_offset_px}; it takes above 0 to 32")
        if not 0 <= self.lost_below < 1:
            raise ValueError(f"correct.lost_below is {self.lost_below}; it takes 0 to below 1")
        if self.hum_period_rows != 0 and not 2 < self.hum_period_rows < 1e6:
            raise ValueError(
                f"correct.hum_period_rows is {self.hum_period_rows}; it takes 0 (not known) or above 2 to 1e6"
            )
        if not 0 < self.fade_above_px <= 100:
            raise ValueError(f"correct.fade_above_px is {self.fade_above_px}; it takes above 0 to 100")
        if self.mode == "frozen" and not self.calibrations:
            raise ValueError(
                "correct.mode is 'frozen' and correct.calibrations is empty; name the folder that a session "
                "with correct.mode = 'calibrate' has written to"
            )


class CorrectState(msgspec.Struct, frozen=True, kw_only=True):
    """All that CorrectDistortion knows, beside its arrays.

    Attributes
    ----------
    revision
        Of the reference; -1 before the first frame.
    untouched
        Raster of frames that are left as they are; None where there were none.
    revisions
        Of models, in all; ``news`` are those that nobody was told of.
    scene
        What is known of the frames' raster; None before the first, and where nothing is learnt of one.
    mapping
        What is known of strain and distortion together; None where they are not told apart.
    lost_frames
        Frames in a row in which the lattice of the mapping was not found.
    """

    revision: int = -1
    untouched: ScanGeometry | None = None
    revisions: int = 0
    news: tuple[News, ...] = ()
    scene: SceneState | None = None
    mapping: MappingState | None = None
    lost_frames: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """What was found of a frame, in any mode.

    ``sd_px`` is that of the smooth field beside the rows' own offsets, on nodes ``(2, n, m)``; the drift is
    ``(x, y)``. A frame that nothing is measured against has no ``observations``.
    """

    mode: DistortionMode
    observer: Literal["lattice", "registration"]
    parts: FieldParts
    rows: Rows
    sd_px: Float32
    drift_nm: PairNm = (0.0, 0.0)
    drift_rate_nm_per_s: PairNm = (0.0, 0.0)
    sd_nm: float = 0.0
    observations: int = 0
    residual_px: float = math.nan
    model_revision: int = 0
    flags: tuple[str, ...] = ()

    def said(self, revision: int, at_s: float) -> Registration:
        """Word it for whoever gets the frame."""
        of_rows = self.rows.variance_px2.mean(axis=1)
        variance = self.sd_px**2 + of_rows[:, None, None]
        return Registration(
            revision=revision,
            drift_nm=self.drift_nm,
            drift_rate_nm_per_s=self.drift_rate_nm_per_s,
            sd_nm=self.sd_nm,
            at_s=at_s,
            distortion=Distortion(
                mode=self.mode,
                observer=self.observer,
                grid_px=self.parts.grid_px,
                rows_px=self.parts.rows_px,
                cols_px=self.parts.cols_px,
                odd_cols_px=self.parts.odd_cols_px,
                row_offset_px=self.rows.offsets_px.astype(np.float32),
                sd_px=np.sqrt(variance).astype(np.float32),
                row_sd_px=(math.sqrt(of_rows[0]), math.sqrt(of_rows[1])),
                observations=self.observations,
                residual_px=self.residual_px,
                model_revision=self.model_revision,
                flags=self.flags,
            ),
        )


class CorrectDistortion:
    """Measure the distortion of each frame, learn it, and resample the frame.

    A corrected frame keeps shape and pixel size. Its raster follows the drift in whole pixels, so
    nothing that was scanned is lost: ``geometry.center_nm`` says where it lies on the specimen.
    Pixels that no row reached repeat the edge. A frame that answers a request passes as it is, in the
    specimen's coordinates, and teaches nothing.

    Parameters
    ----------
    config
        What is corrected.
    calibrations
        Finds the calibration of a scan; None where there are none.
    lattice
        Of the specimen that is calibrated on, where it is known: vectors, and an origin right within half
        a distance between neighbours. None finds it in the first frame, up to a stretch and a turn that
        are then taken for the specimen's.
    """

    name = "correct"

    def __init__(
        self,
        config: CorrectConfig | None = None,
        calibrations: Calibrations | None = None,
        lattice: Lattice | None = None,
    ) -> None:
        self.config = config or CorrectConfig()
        self._calibrations = calibrations
        self._lattice = lattice
        self._revision = -1
        self._scene: Scene | None = None
        self._mapping: StrainMapping | None = None
        self._lost_frames = 0
        self._untouched: ScanGeometry | None = None  # raster of frames that are left as they are
        self._revisions = 0
        self._news: tuple[News, ...] = ()

    def warm_up(self) -> None:
        """Correct a few drawn frames and forget them: what is compiled at its first use is compiled now."""
        asked = self.config.mode
        modes = ["drift-only" if asked in ("auto", "frozen") else asked]
        if self._calibrations is not None:
            modes.append("calibrate")
        for mode in modes:
            if mode == "off":
                continue
            for sigma_px in DRAWN_SIGMA_PX:
                other = CorrectDistortion(msgspec.structs.replace(self.config, mode=mode, calibrations=""))
                for frame in drawn_frames(sigma_px):
                    other.process(frame)

    # -- frame by frame ------------------------------------------------------------------------

    def process(self, frame: Frame, /) -> Frame:
        """Return the frame on the specimen, with its registration.

        The first channel is measured; all are resampled alike.

        Raises
        ------
        Rejected
            ``blank frame`` for one that shows next to nothing of what the frames before it did, as of a
            blanked beam: nothing is learnt from it.
        """
        at_s = middle_s(frame)
        if self.config.mode == "off":
            return self._leave(frame, at_s)
        frame = self._even_in_place(frame)
        if self.config.mode == "separate":
            return self._separate(frame, at_s)
        if frame.request_id is not None:
            return self._pass_on(frame, at_s)
        scene = self._scene
        if scene is None or frame.geometry != scene.geometry:
            return self._begin(frame, at_s)
        if scene.both.channels and scene.both.channels != frame.channels:
            return self._begin(frame, at_s)
        scanned = frame
        frame = msgspec.structs.replace(frame, image=scene.both.brought_together(frame.image))
        judgement = self._judge(frame, scene, at_s)
        if judgement.verdict == "blank":
            raise Rejected("blank frame")
        if judgement.verdict == "lost":
            return self._begin(scanned, at_s, ("lost",))
        scene.both.observe(scanned.image)
        relearnt = scene.relearner.swap(scene.model)
        if relearnt is not None:
            self._revise(frame, scene, relearnt)
        scene.model.predict()
        seen = scene.observer.observe(frame.image[0], scene.model, judgement)
        if seen is None:
            return self._begin(scanned, at_s, ("lost",))
        match, usual = judgement.match, scene.usual_match
        scene.usual_match = match if usual is None else 0.9 * usual + 0.1 * match
        if judgement.verdict == "jump" or self._is_off(scene, seen):
            # Further than drift goes in a frame: where the specimen lies now is seen, not foreseen.
            scene.model.jumped()
        flags = ("jump",) if judgement.verdict == "jump" else ()
        update = scene.model.observe(seen)
        if scene.model.scan.is_static and not scene.model.is_frozen:
            scene.relearner.watch(scene.model, seen, update)
        return self._settle(frame, scene, update, at_s, flags)

    def _even_in_place(self, frame: Frame) -> Frame:
        """Undo the known part of a resonant fast axis, so that the model has to learn the rest only."""
        if frame.scan_path != "sinusoidal" or self.config.sinusoidal_samples == "place":
            return frame
        return msgspec.structs.replace(frame, image=linearised(frame.image))

    def news(self) -> tuple[News, ...]:
        """Say which models were taken into use since the last call."""
        news, self._news = self._news, ()
        return news

    def _revise(self, frame: Frame, scene: Scene, model: DistortionGP) -> None:
        """Go on with another model from the next prediction on."""
        self._revisions += 1
        scene.model, scene.model_revision = model, self._revisions
        said = ModelRevision(
            session=frame.session,
            policy="distortion",
            revision=self._revisions,
            told=frame.number,
            observations=model.frames,
            parameters=_parameters(model),
        )
        self._news = (*self._news, said)

    def _look_for_hum(self, frame: Frame, scene: Scene, rows: Rows) -> None:
        """Give the model a hum that the rows have shown, if it follows none."""
        if scene.model.hum_period_rows is not None or "hum" not in scene.model.scan.blocks:
            return
        period = scene.hum.take(rows.measured_px)
        if period is not None:
            scene.relearner.forget()
            self._revise(frame, scene, scene.model.with_hum(period))

    def _is_off(self, scene: Scene, seen: Observations) -> bool:
        """Say whether the specimen lies further from where the model expects it than drift would carry it."""
        if isinstance(scene.observer, LatticeReference):
            return scene.observer.is_off
        if scene.mode == "calibrate":  # few blocks say little against what was foreseen
            return True
        left = seen.displacement_px - scene.model.displacement_px(seen.positions_px)
        return bool(np.abs(np.median(left, axis=0)).max() > _OFF_PX)

    def _judge(self, frame: Frame, scene: Scene, at_s: float) -> Judgement:
        """Say whether the frame shows what it should, and where about the specimen lies in it."""
        expected = to_raster_px(scene.tracker.predict(at_s), frame.geometry)
        reach_px = self.config.reach_nm / min(frame.geometry.pixel_size_nm)
        usual = scene.usual_match
        limits = {} if usual is None else {"usual_match": usual, "lost_below": self.config.lost_below}
        return scene.observer.judge(
            frame.image[0], scene.model, expected, reach_px, **({"lost_below": 0.0} | limits)
        )

    def _begin(self, frame: Frame, at_s: float, flags: tuple[str, ...] = ()) -> Frame:
        """Take this frame for the reference, or measure it against its own lattice."""
        self._revision += 1
        mode, calibration = self._mode_of(frame)
        lattice = self._lattice_of(frame) if mode == "calibrate" else None
        model = self._make_model(frame, mode, calibration)
        tracker = DriftTracker(self.config.rate_frames)
        # A lattice measures the whole of the field of its channel, a calibration knows it.
        is_relative = lattice is None and calibration is None
        both = BothDirections(frame.channels if is_relative else (), frame.geometry.shape)
        both.observe(frame.image)
        image = both.brought_together(frame.image)
        if lattice is None:
            # Where the specimen lies is not known yet, and need not be: this frame says it.
            sd_px = model.sd_grid(_SD_NODES_PX)
            sd_px = np.sqrt(sd_px**2 - sd_px.min(axis=(1, 2), keepdims=True) ** 2)
            if model.scan.is_static:
                image = self._resampled(image, model.static_field(), sd_px)
            observer: Observer = self._reference_of(image[0], mode)
        else:
            observer = lattice
        scene = self._scene = Scene(
            geometry=frame.geometry,
            mode=mode,
            tracker=tracker,
            observer=observer,
            model=model,
            dwell_time_us=frame.dwell_time_us,
            both=both,
        )
        if lattice is not None:
            looked = lattice.first_look(frame.image[0], model)
            if looked is None:
                self._scene = None  # nothing was learnt: the next frame is the first again
                raise Rejected("no lattice")
            scene.model, update = looked
            return self._settle(frame, scene, update, at_s, flags)
        tracker.observe((0.0, 0.0), at_s)
        found = self._found(scene, Rows.none(frame.geometry.shape[0]), sd_px, flags)
        return msgspec.structs.replace(frame, image=image, registration=found.said(self._revision, at_s))

    def _settle(
        self, frame: Frame, scene: Scene, update: Update, at_s: float, flags: tuple[str, ...]
    ) -> Frame:
        """Resample the frame with what was learnt from it, and learn the drift."""
        model, observer, image = scene.model, scene.observer, frame.image[0]
        translation = np.array(model.translation_px)
        anchor = np.rint(-translation)
        if model.scan.is_static:
            field = model.field()
            rows = self._rows(scene, image, field)
            sd_px = model.sd_grid(_SD_NODES_PX, rows.absorbed)
            field += anchor.astype(np.float32)[:, None, None]
            if isinstance(observer, ReferenceObserver):
                observer.learn(self._resampled(frame.image[:1], field, sd_px)[0], anchor)
            field += rows.offsets_px.astype(np.float32)[:, :, None]
            corrected = self._resampled(frame.image, field, sd_px)
        else:
            smooth = translation[:, None] + model.parts().rows_px.astype(np.float64)
            rows = self._rows(scene, image, smooth[:, :, None])
            sd_px = model.sd_grid(_SD_NODES_PX, rows.absorbed)
            displacement = -(smooth + anchor[:, None])
            observer.learn(displaced(image, displacement), anchor)
            displacement -= rows.offsets_px
            corrected = np.stack([displaced(channel, displacement) for channel in frame.image])
        drift_nm = to_scan_nm(-translation, frame.geometry)
        scene.tracker.observe(drift_nm, at_s)
        middle = np.array([[(n - 1) / 2 for n in frame.geometry.shape]])
        _, sd = model.displacement_px(middle, with_sd=True)
        found = replace(
            self._found(scene, rows, sd_px, flags),
            drift_nm=drift_nm,
            drift_rate_nm_per_s=scene.tracker.rate_nm_per_s,
            sd_nm=float(sd.max()) * max(frame.geometry.pixel_size_nm),
            observations=update.used,
            # Held-out rows have offsets of their own: what is left when those are put right, they cannot say.
            residual_px=_at_least(update.held_out_rms_px, rows) if math.isnan(rows.left_px) else rows.left_px,
        )
        self._look_for_hum(frame, scene, rows)
        return self._put_back(frame, corrected, to_scan_nm(anchor, frame.geometry), found, at_s)

    def _rows(self, scene: Scene, image: Float32, field_px: Float32 | Float64) -> Rows:
        rows = scene.observer.rows(image, scene.model, field_px)
        return rows if self.config.correct_rows else Rows.none(len(image))

    def _resampled(self, image: Float32, field_px: Float32, sd_px: Float32) -> Float32:
        """Resample all channels, with less correction where the field is badly known."""
        from models.resampling import resampled

        return resampled(image, field_px, sd_px=sd_px, gate_sd_px=self.config.fade_above_px)

    def _found(self, scene: Scene, rows: Rows, sd_px: Float32, flags: tuple[str, ...]) -> _Found:
        """Gather what the model knows now, and what the operator should know of it."""
        if scene.mode == "calibrate" and scene.observer.name == "registration":
            flags = (*flags, "relative")
        if scene.model.scan.is_static and float(sd_px.max()) > self.config.fade_above_px:
            flags = (*flags, "faded")
        if scene.relearner.is_learning:
            flags = (*flags, "learning")
        if scene.both.is_apart:
            flags = (*flags, "paired")
        if scene.both.is_mirrored:
            flags = (*flags, "mirrored")
        return _Found(
            mode=scene.mode,
            observer=scene.observer.name,
            parts=scene.model.parts(),
            rows=rows,
            sd_px=sd_px,
            model_revision=scene.model_revision,
            flags=flags,
        )

    def _put_back(self, frame: Frame, image: Float32, moved_nm: PairNm, found: _Found, at_s: float) -> Frame:
        """Give the frame as it is on the specimen, its raster moved by whole pixels ``(x, y)``."""
        return msgspec.structs.replace(
            frame,
            image=image,
            geometry=on_specimen(frame.geometry, moved_nm),
            registration=found.said(self._revision, at_s),
        )

    def _separate(self, frame: Frame, at_s: float) -> Frame:
        """Correct a frame, turned and moved or not, and leave to the specimen what is its strain."""
        mapping = self._mapping
        if mapping is None or not mapping.takes(frame.geometry):
            if frame.request_id is not None:
                return self._pass_on(frame, at_s)
            mapping = self._begin_mapping(frame)
        try:
            mapped = mapping.learn(frame)
        except NoLattice:
            mapped = None
        if mapped is None:
            self._lost_frames += 1
            if self._lost_frames >= _MOST_LOST:  # the specimen is another one; the next frame is its first
                self._mapping = None
            raise Rejected("lattice lost")
        self._lost_frames = 0
        strain = mapping.map_of(frame, self._revision)
        if strain is not None:
            self._news = (*self._news, strain)
        drift_px = -np.array(mapped.parts.translation_px)
        anchor = np.rint(drift_px)
        rows = mapped.rows if self.config.correct_rows else Rows.none(frame.geometry.shape[0])
        field = mapped.field_px + (anchor[:, None, None] + rows.offsets_px[:, :, None]).astype(np.float32)
        stage_nm = (frame.stage_nm[0] - mapping.stage_nm[0], frame.stage_nm[1] - mapping.stage_nm[1])
        found = _Found(
            mode="separate",
            observer="lattice",
            parts=mapped.parts,
            rows=rows,
            sd_px=mapped.sd_px,
            drift_nm=_sum(to_scan_nm(drift_px, frame.geometry), stage_nm),
            drift_rate_nm_per_s=mapping.drift_rate_nm_per_s(frame),
            sd_nm=mapped.least_sd_px * max(frame.geometry.pixel_size_nm),
            observations=mapped.update.used,
            flags=() if mapping.model.is_identifiable else ("relative",),
        )
        corrected = self._resampled(frame.image, field, mapped.sd_px)
        moved_nm = _sum(to_scan_nm(anchor, frame.geometry), stage_nm)
        return self._put_back(frame, corrected, moved_nm, found, at_s)

    def _begin_mapping(self, frame: Frame) -> StrainMapping:
        """Take a frame for the one that is neither turned nor moved."""
        if not _is_square(frame.geometry):
            raise Rejected("not square")
        try:
            lattice = self._looked_for_lattice(frame)
        except NoLattice:
            raise Rejected("no lattice") from None
        self._revision += 1
        turned = TurnedLattice(frame.geometry.shape, lattice)
        self._mapping = StrainMapping(frame, turned, self.config.hum_period_rows or None)
        return self._mapping

    def _pass_on(self, frame: Frame, at_s: float) -> Frame:
        """Say where a frame lies on the specimen, by the drift predicted for its time."""
        if self._scene is None:
            return msgspec.structs.replace(frame, registration=Registration(at_s=at_s))
        tracker = self._scene.tracker
        drift_nm = tracker.predict(at_s)
        registration = Registration(
            revision=self._revision,
            drift_nm=drift_nm,
            drift_rate_nm_per_s=tracker.rate_nm_per_s,
            at_s=at_s,
        )
        geometry = on_specimen(frame.geometry, drift_nm)
        return msgspec.structs.replace(frame, geometry=geometry, registration=registration)

    def _leave(self, frame: Frame, at_s: float) -> Frame:
        """Correct nothing: the specimen is taken to be where the scan says."""
        if frame.request_id is None and frame.geometry != self._untouched:
            self._untouched = frame.geometry
            self._revision += 1
        registration = Registration(revision=max(self._revision, 0), at_s=at_s)
        return msgspec.structs.replace(frame, registration=registration)

    # -- what is kept --------------------------------------------------------------------------

    def calibration(self) -> Calibration | None:
        """Give what was learnt of the scan, to be kept; None where nothing was calibrated."""
        return None if self._scene is None else self._scene.calibration()

    def heir(self) -> CorrectDistortion:
        """Make another that was told the same and has seen nothing."""
        return CorrectDistortion(self.config, self._calibrations, self._lattice)

    def state(self) -> tuple[CorrectState, dict[str, NDArray[Any]]]:
        """Say all that the next frame's correction depends on; arrays are never written to.

        Returns
        -------
        facts
            Numbers.
        arrays
            As of ``Scene.state`` or of ``StrainMapping.state``; none before the first frame.
        """
        facts = CorrectState(
            revision=self._revision,
            untouched=self._untouched,
            revisions=self._revisions,
            news=self._news,
            lost_frames=self._lost_frames,
        )
        arrays: dict[str, NDArray[Any]] = {}
        if self._mapping is not None:
            mapping, arrays = self._mapping.state()
            facts = msgspec.structs.replace(facts, mapping=mapping)
        elif self._scene is not None:
            scene, arrays = self._scene.state()
            facts = msgspec.structs.replace(facts, scene=scene)
        for array in arrays.values():
            array.setflags(write=False)
        return facts, arrays

    def restore(self, facts: CorrectState, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from what ``state`` said.

        Raises
        ------
        ValueError
            If the arrays are not those of the frames' raster; nothing is changed then.
        """
        mapping = None if facts.mapping is None else StrainMapping.restored(facts.mapping, arrays)
        scene = None
        if facts.scene is not None:
            scene = Scene.restored(facts.scene, arrays, self._reference_of, self.config.rate_frames)
        self._scene, self._mapping, self._untouched = scene, mapping, facts.untouched
        self._lost_frames = facts.lost_frames
        self._revision, self._revisions, self._news = facts.revision, facts.revisions, facts.news

    # -- what is at work -----------------------------------------------------------------------

    def _mode_of(self, frame: Frame) -> tuple[DistortionMode, Calibration | None]:
        """Say what is corrected in frames like this one."""
        asked = self.config.mode
        if asked != "auto" and asked != "frozen":
            return asked, None
        if self._calibrations is not None:
            calibration = self._calibrations(key_of(frame.geometry, frame.dwell_time_us, frame.scan_path))
            if calibration is not None:
                return "frozen", calibration
        if asked == "frozen":
            raise Rejected("no calibration")
        return "drift-only", None

    def _reference_of(self, image: Float32, mode: DistortionMode) -> ReferenceObserver:
        return ReferenceObserver(
            image,
            self.config.memory_frames,
            self.config.max_row_offset_px,
            by_blocks=mode == "calibrate",
        )

    def _lattice_of(self, frame: Frame) -> LatticeReference | None:
        """Find the lattice of a first frame; None where it is not to be used or there is none."""
        if self.config.observer == "registration":
            return None
        try:
            return LatticeReference(frame.image[0], self._looked_for_lattice(frame))
        except NoLattice:
            if self.config.observer == "lattice":
                raise Rejected("no lattice") from None
            return None

    def _looked_for_lattice(self, frame: Frame) -> LatticeObserver:
        observer = LatticeObserver(self._lattice, is_dark=shows_dark_columns(frame.channels[0]))
        observer.start(frame.image[0])
        return observer

    def _make_model(
        self, frame: Frame, mode: DistortionMode, calibration: Calibration | None
    ) -> DistortionGP:
        from models.distortion_gp import BLOCKS, DistortionGP, Hyperparameters, ScanModel

        if calibration is not None:
            return DistortionGP.frozen(
                calibration.scan,
                msgspec.structs.replace(calibration.hyperparameters, drift_change_px=_DRIFT_CHANGE_PX),
                calibration.mean_px,
                calibration.covariance_px2,
            )
        scan = ScanModel(
            shape=frame.geometry.shape,
            path=frame.scan_path,
            hum_period_rows=self.config.hum_period_rows or None,
            blocks=BLOCKS if mode == "calibrate" else ("hum", "drift"),
        )
        if mode == "calibrate":
            return DistortionGP(scan)
        return DistortionGP(scan, Hyperparameters(drift_change_px=_DRIFT_CHANGE_PX))


def _parameters(model: DistortionGP) -> dict[str, list[float]]:
    """Every hyperparameter by name, ``[row, col]`` where it is one for each direction."""
    hyper = msgspec.structs.asdict(model.hyperparameters)
    amplitudes = hyper.pop("amplitude_px")
    said = {f"{name}_px": list(amplitudes[name]) for name in model.basis.blocks}
    said |= {name: list(value) if isinstance(value, tuple) else [value] for name, value in hyper.items()}
    if model.hum_period_rows is not None:
        said["hum_period_rows"] = [model.hum_period_rows]
    return said


def _at_least(left_px: float, rows: Rows) -> float:
    """Say that no less is left of the field than the rows' own offsets are off by; NaN stays so."""
    return max(left_px, math.sqrt(float(rows.variance_px2.mean())))


def _is_square(geometry: ScanGeometry) -> bool:
    """Say whether the raster lies on itself when it is turned by a quarter."""
    height_nm, width_nm = geometry.pixel_size_nm
    return geometry.shape[0] == geometry.shape[1] and math.isclose(height_nm, width_nm, rel_tol=1e-4)


def _sum(first: PairNm, second: PairNm) -> PairNm:
    return (first[0] + second[0], first[1] + second[1])


def drawn_frames(sigma_px: float) -> list[Frame]:
    """Draw a small crystal three times, with a little drift, noise and rows that jitter."""
    size, spacing = 128, 12.0
    rng = np.random.default_rng(0)
    place = np.arange(size)
    frames = []
    for number in range(3):
        sites = np.arange(-spacing, size + spacing, spacing) + 0.3 * number
        row_px = place + rng.normal(0, 0.5, (size, 1))
        down, along = (
            np.exp(-((at[..., None] - sites) ** 2) / (2 * sigma_px**2)).sum(axis=-1) for at in (place, row_px)
        )
        image = rng.poisson(5 + 100 * down[:, None] * along).astype(np.float32)
        image.setflags(write=False)  # as off the wire: other code is compiled for what may be written to
        frames.append(
            Frame(
                session="",
                number=number,
                acquired_at_s=float(number),
                image=image[None],
                channels=("HAADF",),
                geometry=ScanGeometry(shape=(size, size), field_of_view_nm=(1.6, 1.6)),
                dwell_time_us=1.0,
            )
        )
    return frames
