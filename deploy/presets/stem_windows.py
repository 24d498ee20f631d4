"""Windows of simulated STEM frames with what they truly show: found, cut and normalised as live."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deploy.presets.preset import Labelled, Preset, joined, thinned
from simulators.counting import poisson
from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.stem import add_columns
from streamer.messages import Atoms, Frame, ScanGeometry
from streamer.stage import Rejected
from streamer.stages.cut_windows import CutWindows
from streamer.stages.find_atoms import FindAtoms

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

MATCH_NM = 0.05
JITTER_NM = 0.01
TURNS = 12
PER_FRAME = 80  # windows at most: so that many microscopes are met
DWELL_TIME_US = 8.0
DISTORTION = ScanDistortionConfig(drift_rate_nm_per_s=(0.0, 0.0))


class Columns(NamedTuple):
    """What lies under the beam, each atom or column as one spot.

    Attributes
    ----------
    positions_nm
        Specimen position ``(x, y)``, shape ``(n, 2)``.
    heights
        How much brighter (darker, where negative) the image is there, relative to any one of them.
    class_N
        Class of the preset, -1 where it is none of them.
    angle_N
        Turn of the neighbourhood from x towards y, in radians; NaN is not known.
    is_seen_N
        Whether the detector shows it at all, so that windows are cut around it.
    """

    positions_nm: Float64
    heights: Float64
    class_N: Int64
    angle_N: Float64
    is_seen_N: NDArray[np.bool_]


class Microscope(msgspec.Struct, frozen=True, kw_only=True):
    """How columns become a frame.

    Attributes
    ----------
    detector
        Name of the channel.
    size_px, pixel_nm, rotation_rad
        Of a square raster.
    counts
        Expected at the top of a column of height 1, beyond the background.
    background_counts
        Expected where there is no column.
    probe_sigma_nm
        Sd of a spot.
    offset_counts
        Added by the detector, without noise.
    distortion
        Of the scan.
    """

    detector: str
    size_px: int
    pixel_nm: float
    rotation_rad: float = 0.0
    counts: float
    background_counts: float
    probe_sigma_nm: float
    offset_counts: float = 10.0
    distortion: ScanDistortionConfig = DISTORTION

    @property
    def geometry(self) -> ScanGeometry:
        """Raster around the origin."""
        edge_nm = self.size_px * self.pixel_nm
        return ScanGeometry(
            shape=(self.size_px, self.size_px),
            field_of_view_nm=(edge_nm, edge_nm),
            center_nm=(0.0, 0.0),
            rotation_rad=self.rotation_rad,
        )


def picture(columns: Columns, microscope: Microscope, rng: np.random.Generator) -> tuple[Frame, BeamPath]:
    """Scan the columns once; the path says where each is seen."""
    geometry = microscope.geometry
    path = ScanDistortion(microscope.distortion, rng).scan(geometry, DWELL_TIME_US)
    expected = np.full(geometry.shape, microscope.background_counts, dtype=np.float32)
    heights = columns.heights * microscope.counts
    add_columns(expected, columns.positions_nm, heights, microscope.probe_sigma_nm, path)
    counts = poisson(np.maximum(expected, 0), rng) + np.float32(microscope.offset_counts)
    frame = Frame(
        session="",
        number=0,
        acquired_at_s=path.ended_s,
        image=counts[None],
        channels=(microscope.detector,),
        geometry=geometry,
        dwell_time_us=DWELL_TIME_US,
    )
    return frame, path


def windows_beside(
    frame: Frame, path: BeamPath, columns: Columns, preset: Preset, rng: np.random.Generator
) -> Labelled:
    """Cut a window a few hundredths of a nanometre beside every column that the detector shows.

    So an encoder meets columns that a finder is not sure of, and shifts that a finder never leaves.
    Brightness is normalised as live, by what the finder says of the frame.

    Raises
    ------
    Rejected
        As of the stages, such as for too few counts.
    """
    atoms = FindAtoms().process(frame)
    places_px = path.seen_px(columns.positions_nm[columns.is_seen_N])
    off_px = rng.normal(0.0, JITTER_NM, places_px.shape) / frame.geometry.pixel_size_nm
    count = len(places_px)
    beside = msgspec.structs.replace(
        atoms,
        positions_px=(places_px + off_px).astype(np.float32),
        confidence=np.ones(count, np.float32),
        amplitude=np.full(count, atoms.contrast, np.float32),
        position_covariance_px2=None,
    )
    return _labelled(beside, path, columns, preset)


def gathered(
    drawn: Callable[[int], tuple[Columns, Microscope]], count: int, preset: Preset, rng: np.random.Generator
) -> Labelled:
    """Gather windows of many frames until ``count``, the kinds of columns as evenly as there are.

    ``drawn`` gives the columns and the microscope of a frame; it is told how many frames there are already.
    """
    parts: list[Labelled] = []
    while sum(len(part.class_N) for part in parts) < 2 * count:
        columns, microscope = drawn(len(parts))
        frame, path = picture(columns, microscope, rng)
        try:
            parts.append(thinned(windows_beside(frame, path, columns, preset, rng), PER_FRAME, rng))
        except Rejected:  # too few counts for this pixel size: no windows to learn from
            continue
    return thinned(joined(parts), count, rng)


def windows_found(frame: Frame, path: BeamPath, columns: Columns, preset: Preset) -> Labelled:
    """Find, cut and normalise as live; tell each window by the column that it truly shows.

    ``same_N`` is the index of the column.

    Raises
    ------
    Rejected
        As of the stages, such as for too few counts.
    """
    return _labelled(FindAtoms().process(frame), path, columns, preset)


def _labelled(atoms: Atoms, path: BeamPath, columns: Columns, preset: Preset) -> Labelled:
    frame = atoms.frame
    patches = CutWindows(preset.window_nm, preset.window_px).process(atoms)
    pixel_nm = np.array(frame.geometry.pixel_size_nm)
    seen_nm = path.seen_px(columns.positions_nm) * pixel_nm
    middle_nm = patches.positions_px * pixel_nm
    distance, nearest = cKDTree(seen_nm).query(middle_nm)
    known = distance < MATCH_NM
    shown = nearest[known]
    return Labelled(
        windows_NCHW=patches.windows[known],
        class_N=columns.class_N[shown],
        angle_N=columns.angle_N[shown] - frame.geometry.rotation_rad,
        shift_N2=(seen_nm[shown] - middle_nm[known])[:, ::-1],
        same_N=shown.astype(np.int64),
    )


def turned_series(
    columns: Columns, microscope: Microscope, preset: Preset, rng: np.random.Generator
) -> Labelled:
    """Scan one specimen at ``TURNS`` scan rotations, with fresh noise and distortion each time."""
    parts = []
    for turn in range(TURNS):
        rotation_rad = microscope.rotation_rad + 2 * math.pi * turn / TURNS
        frame, path = picture(columns, msgspec.structs.replace(microscope, rotation_rad=rotation_rad), rng)
        parts.append(windows_beside(frame, path, columns, preset, rng))
    # Here a column keeps its number from part to part: that is what the series is for.
    return Labelled(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def directions(
    positions_nm: Float64, heights: Float64, folds_N: Int64, reach_nm: float, width_nm: float
) -> Float64:
    """Say how the neighbourhood of each column is turned, by its n-fold moment.

    Parameters
    ----------
    positions_nm, heights
        Of all columns.
    folds_N
        n of each; 0 where no direction is asked for.
    reach_nm, width_nm
        Neighbours count up to there, less the further they are: a Gaussian of that sd.

    Returns
    -------
    angle_N
        ``arg(sum h exp(i n theta)) / n`` over the neighbours, NaN where n is 0 or they show no direction.
    """
    pairs = cKDTree(positions_nm).query_pairs(reach_nm, output_type="ndarray")
    here, there = np.concatenate([pairs, pairs[:, ::-1]]).T
    apart = positions_nm[there] - positions_nm[here]
    weight = heights[there] * np.exp(-(apart**2).sum(1) / (2 * width_nm**2))
    turns = np.exp(1j * folds_N[here] * np.arctan2(apart[:, 1], apart[:, 0]))
    moment = np.zeros(len(positions_nm), dtype=np.complex128)
    np.add.at(moment, here, weight * turns)
    whole = np.zeros(len(positions_nm))
    np.add.at(whole, here, np.abs(weight))
    shows = (folds_N > 0) & (np.abs(moment) > 0.02 * whole)
    return np.where(shows, np.angle(moment) / np.maximum(folds_N, 1), np.nan)
