"""Windows cut at places that a preset chooses, normalised as live; scans of one specimen at many turns."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.presets.preset import Preset
from simulators.scan_distortion import ScanDistortion, ScanDistortionConfig
from simulators.simulator import Image, Scan, Simulator
from streamer.messages import Atoms, Frame, Patches, ScanGeometry
from streamer.stages.cut_windows import CutWindows

Float64 = NDArray[np.float64]

TURNS = 12
# Rows that shift, as of the instruments' default; drift is left to the correction.
JITTER = ScanDistortionConfig(drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0)


def scanned(
    simulator: Simulator, geometry: ScanGeometry, dwell_time_us: float, rng: np.random.Generator
) -> Frame:
    """Scan a specimen on a raster, by a scanner whose rows are off by what is usual."""
    path = ScanDistortion(JITTER, rng).scan(geometry, dwell_time_us)
    image: Image = simulator.acquire_image(Scan(path=path, dwell_time_us=dwell_time_us))
    return Frame(
        session="",
        number=0,
        acquired_at_s=path.ended_s,
        image=image.values,
        channels=image.channels,
        geometry=geometry,
        dwell_time_us=dwell_time_us,
    )


def turned_geometries(geometry: ScanGeometry) -> list[ScanGeometry]:
    """Give the raster at each of ``TURNS`` scan rotations around its middle."""
    return [
        msgspec.structs.replace(geometry, rotation_rad=geometry.rotation_rad + 2 * math.pi * turn / TURNS)
        for turn in range(TURNS)
    ]


def cut_at(sites: Atoms, places_px: Float64, preset: Preset) -> tuple[Patches, NDArray[np.intp]]:
    """Cut windows at places of a frame, as bright as the sites found in it say.

    Parameters
    ----------
    sites
        Found in the frame.
    places_px
        ``(row, col)``, shape ``(n, 2)``.
    preset
        Says what its windows are.

    Returns
    -------
    patches, which
        The windows that lie in the frame, and which places they are of.

    Raises
    ------
    Rejected
        If no window lies in the frame.
    """
    count = len(places_px)
    there = msgspec.structs.replace(
        sites,
        positions_px=places_px.astype(np.float32),
        confidence=np.ones(count, np.float32),
        amplitude=np.zeros(count, np.float32),
        position_covariance_px2=None,
    )
    cut = CutWindows(preset.window_nm, preset.window_px, len(preset.channels), preset.normalisation)
    patches = cut.process(there)
    # Those cut keep their order: each is the next place with the same bits.
    inside = np.isin(_keys(there.positions_px), _keys(patches.positions_px))
    return patches, np.flatnonzero(inside)


def _keys(positions_px: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.ascontiguousarray(positions_px).view(np.int64)[:, 0]
