"""Correct frames of any pose, and map the strain that turned and moved frames tell from distortion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.pose import Pose
from streamer.drift import to_raster_px, to_scan_nm
from streamer.messages import Float32, Frame, PairNm, ScanGeometry, StrainMap
from streamer.observers.lattice import LatticeState
from streamer.observers.reference import Rows
from streamer.observers.turned_lattice import TurnedLattice

if TYPE_CHECKING:
    from models.distortion_gp import FieldParts
    from models.scan_basis import ScanPath
    from models.strain_gp import StrainGP, StrainUpdate

Float64 = NDArray[np.float64]

_NODES_PX = 16.0
_NEAR_PX = 24.0  # the finest structure of the strain is 60 px long
_SAME_PX = 1e-3  # an instrument may round what it was asked for
# A map takes as long as a frame, and a strain that the scans can tell apart does not hurry.
_FRAMES_PER_MAP = 8


class MappingState(msgspec.Struct, frozen=True, kw_only=True):
    """What a StrainMapping knows, beside its arrays.

    Attributes
    ----------
    geometry, stage_nm
        Of the frame that is neither turned nor moved.
    lattices
        Facts of the lattice in each pose.
    last_map
        Frames that were learnt from when the last map was made; 0 for none.
    scan_path
        Of the frames.
    """

    geometry: ScanGeometry
    stage_nm: PairNm
    lattices: list[tuple[Pose, LatticeState]]
    last_map: int
    scan_path: Literal["raster", "serpentine", "sinusoidal"] = "raster"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mapped:
    """What was learnt of one frame.

    Attributes
    ----------
    field_px
        ``D`` at every pixel, drift in it, row jitter not, shape ``(2, rows, cols)``.
    parts
        The same taken apart.
    rows
        What each row has of its own.
    sd_px
        Of the field beside the rows' offsets, on nodes, ``(2, n, m)``.
    least_sd_px
        Of the field without them, where it is known best.
    update
        What the frame taught.
    """

    field_px: Float32
    parts: FieldParts
    rows: Rows
    sd_px: Float32
    least_sd_px: float
    update: StrainUpdate


class StrainMapping:
    """Tells strain from distortion in a stream of frames, of which some are turned and moved.

    Parameters
    ----------
    frame
        The first one: neither turned nor moved by definition.
    lattice
        Its lattice.
    hum_period_rows
        Rows in a period of the mains; None without hum.
    """

    def __init__(self, frame: Frame, lattice: TurnedLattice, hum_period_rows: float | None) -> None:
        self.geometry, self.stage_nm = frame.geometry, frame.stage_nm
        self._lattice = lattice
        self.model = _model(frame.geometry.shape, frame.scan_path, hum_period_rows)
        self._last_map = 0

    def takes(self, geometry: ScanGeometry) -> bool:
        """Say whether frames of this raster belong to it: turned is well, another magnification is not."""
        own = self.geometry
        if geometry.shape != own.shape:
            return False
        sizes = np.array([geometry.field_of_view_nm, geometry.center_nm])
        near_nm = _SAME_PX * min(own.pixel_size_nm)
        return bool(np.abs(sizes - [own.field_of_view_nm, own.center_nm]).max() <= near_nm)

    def pose_of(self, frame: Frame) -> Pose:
        """Say how a frame lies on the specimen, from what was commanded."""
        moved = (frame.stage_nm[0] - self.stage_nm[0], frame.stage_nm[1] - self.stage_nm[1])
        row, col = to_raster_px(moved, self.geometry)
        turned = frame.geometry.rotation_rad - self.geometry.rotation_rad
        return Pose(round(turned, 9), (round(float(row), 6), round(float(col), 6)))

    def drift_rate_nm_per_s(self, frame: Frame) -> PairNm:
        """Say how fast the specimen drifts by itself, ``(x, y)``."""
        rows, cols = frame.geometry.shape
        frame_s = 1e-6 * frame.dwell_time_us * rows * cols
        x, y = to_scan_nm(self.model.velocity_px, self.geometry)
        return (x / frame_s, y / frame_s)

    def learn(self, frame: Frame) -> Mapped | None:
        """Learn from a frame; None if its columns are not where the lattice has them.

        Raises
        ------
        NoLattice
            If a frame of a new pose shows too few columns.
        """
        model, pose, image = self.model, self.pose_of(frame), frame.image[0]
        before = model.field(pose)
        seen = self._lattice.observe(image, pose, self._seen_at(before, pose))
        if seen is None:
            return None
        update = model.observe(
            seen.ideal_px,
            seen.seen_px,
            rotation_rad=pose.rotation_rad,
            stage_px=pose.stage_px,
            variance_px2=seen.variance_px2,
        )
        field = model.field(pose)
        parts = model.parts()
        own = parts.rows_px.astype(np.float64)
        rows = self._lattice.rows(image, pose, self._seen_at(field, pose), own)
        return Mapped(
            field_px=field,
            parts=parts,
            rows=rows,
            sd_px=model.sd_grid(absorbed=rows.absorbed),
            least_sd_px=float(model.sd_grid().min()),
            update=update,
        )

    def _seen_at(self, field_px: Float32, pose: Pose) -> Callable[[Float64], Float64]:
        """Make what says where a strained specimen shows places of the ideal raster."""
        from models.resampling import seen_positions

        model, centre = self.model, self._lattice.centre_px

        def seen_at(places_px: Float64) -> Float64:
            if model.frames:
                strain = model.ambiguous_displacement_px(pose.on_specimen(places_px, centre))
                places_px = places_px + strain @ pose.matrix()
            return seen_positions(field_px, places_px)

        return seen_at

    def map_of(self, frame: Frame, revision: int) -> StrainMap | None:
        """Map the strain, every few frames; None where it is not time, or the scans cannot tell it."""
        model = self.model
        is_due = self._last_map == 0 or model.frames - self._last_map >= _FRAMES_PER_MAP
        if not (is_due and model.is_identifiable):
            return None
        self._last_map = model.frames
        found = model.strain_map(_NODES_PX)
        raster, turn = self.geometry, _turn(self.geometry.rotation_rad)
        pixel_nm = raster.pixel_size_nm
        rows, cols = found.rows_px, found.cols_px
        corners = raster.to_nm(np.array([[rows[0], cols[0]], [rows[-1], cols[-1]]]))
        step = np.array([cols[1] - cols[0], rows[1] - rows[0]]) * pixel_nm[::-1]
        nodes = ScanGeometry(
            shape=(len(rows), len(cols)),
            field_of_view_nm=(float(step[0]) * len(cols), float(step[1]) * len(rows)),
            center_nm=(float(corners[:, 0].mean()), float(corners[:, 1].mean())),
            rotation_rad=raster.rotation_rad,
        )
        # From (row, col) of the raster to (x, y): turned by the rotation, x first.
        moved = np.stack([found.displacement_px[1] * pixel_nm[1], found.displacement_px[0] * pixel_nm[0]])
        strain, strain_sd = _strain_xy(found.strain, found.strain_sd, turn)
        unseen = self._unseen(rows, cols)
        for part in (moved, strain, found.rotation_rad):
            part[..., unseen] = np.nan
        return StrainMap(
            session=frame.session,
            number=frame.number,
            acquired_at_s=frame.acquired_at_s,
            geometry=nodes,
            displacement_nm=np.einsum("ij,jhw->ihw", turn, moved).astype(np.float32),
            strain=strain.astype(np.float32),
            rotation_rad=found.rotation_rad.astype(np.float32),
            strain_sd=strain_sd.astype(np.float32),
            rotation_sd_rad=found.rotation_sd_rad.astype(np.float32),
            frames=model.frames,
            registration_revision=revision,
        )

    def _unseen(self, rows_px: Float64, cols_px: Float64) -> NDArray[np.bool_]:
        """Say at which nodes no column of the lattice was near: another grain, a hole."""
        nodes = np.stack(np.meshgrid(rows_px, cols_px, indexing="ij"), -1).reshape(-1, 2)
        away, _ = cKDTree(self._lattice.known_sites_px()).query(nodes, distance_upper_bound=_NEAR_PX)
        unseen: NDArray[np.bool_] = ~np.isfinite(away).reshape(len(rows_px), len(cols_px))
        return unseen

    def state(self) -> tuple[MappingState, dict[str, NDArray[Any]]]:
        """Say all that it knows; arrays are never written to."""
        lattices, own = self._lattice.state()
        arrays: dict[str, NDArray[Any]] = {f"strain.{name}": a for name, a in self.model.state().items()}
        arrays |= {f"pose.{name}": array for name, array in own.items()}
        hum = self.model.scan.hum_period_rows
        arrays["hum_period_rows"] = np.array([0.0 if hum is None else hum])
        facts = MappingState(
            geometry=self.geometry,
            stage_nm=self.stage_nm,
            lattices=lattices,
            last_map=self._last_map,
            scan_path=self.model.scan.path,
        )
        return facts, arrays

    @classmethod
    def restored(cls, facts: MappingState, arrays: dict[str, NDArray[Any]]) -> StrainMapping:
        """Make one that knows what another one knew, bit for bit.

        Raises
        ------
        ValueError
            If the arrays are of another scan.
        """
        made = cls.__new__(cls)
        made.geometry, made.stage_nm, made._last_map = facts.geometry, facts.stage_nm, facts.last_map
        made._lattice = TurnedLattice.restored(facts.lattices, _of("pose.", arrays))
        hum = float(arrays["hum_period_rows"][0])
        made.model = _model(facts.geometry.shape, facts.scan_path, hum or None)
        made.model.restore(_of("strain.", arrays))
        return made


def _model(shape: tuple[int, int], path: ScanPath, hum_period_rows: float | None) -> StrainGP:
    from models.distortion_gp import ScanModel
    from models.strain_gp import StrainGP

    return StrainGP(ScanModel(shape=shape, path=path, hum_period_rows=hum_period_rows))


def _of(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _turn(rotation_rad: float) -> Float64:
    """Take ``(along the fast axis, along the slow one)`` to ``(x, y)``."""
    cos, sin = np.cos(rotation_rad), np.sin(rotation_rad)
    return np.array([[cos, -sin], [sin, cos]])


def _strain_xy(strain: Float64, sd: Float64, turn: Float64) -> tuple[Float64, Float64]:
    """Turn the strain from (rr, cc, rc) of the raster to (xx, yy, xy); sds as of independent components."""
    cos, sin = turn[0, 0], turn[1, 0]
    # e' = T e T' with e in the order (fast, slow).
    mixed = np.array(
        [
            [sin**2, cos**2, -2 * sin * cos],
            [cos**2, sin**2, 2 * sin * cos],
            [-sin * cos, sin * cos, cos**2 - sin**2],
        ]
    )
    turned = np.einsum("ij,jhw->ihw", mixed, strain)
    return turned, np.sqrt(np.einsum("ij,jhw->ihw", mixed**2, sd**2))
