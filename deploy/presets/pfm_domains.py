"""Domains of a ferroelectric film under a PFM, amplitude and phase together, in windows of two sizes.

Small windows show what a wall is like where it is; large ones how walls lie to each other, along which a film
switches (the window-size study of arXiv:2011.13050). What a window shows is told by the true polarisation in
its disc, and only where that is clear: between a straight wall and a bent one there is every stage.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deploy.presets.places import JITTER, cut_at, scanned, turned_geometries
from deploy.presets.preset import UNKNOWN, Labelled, Preset, joined, thinned
from models.rvae import RVAEConfig
from models.training import TrainingConfig
from simulators.pfm import FilmConfig, PfmConfig, PfmInstrument
from streamer.messages import Atoms
from streamer.stages.find_sites import FindSites, SitesConfig

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Each with its symmetry.
KINDS = {
    "domain up": 0,
    "domain down": 0,
    "straight wall": 1,
    "end of a domain up": 1,
    "end of a domain down": 1,
    "strip up": 2,
    "strip down": 2,
    "island up": 0,
    "island down": 0,
}
UP, DOWN, WALL, END, STRIP, ISLAND = 0, 1, 2, 3, 5, 7  # the last three: up, and one further on down
SAMPLES = 33  # of the film along a window
STRAIGHT, BENT = 0.04, 0.08  # shares of the disc on the wrong side of the best straight line
MIDDLE = 0.2  # so near to the middle, in half windows, does a wall or a strip pass
LEAST_SHARE = 0.12
FILL = 0.35  # share of the windows that are cut anywhere, and not on a wall
# The film stays as it is while it is scanned, so that its truth is that of every row.
STILL_S = 1e9


def varied_film(rng: np.random.Generator) -> PfmConfig:
    """Draw a film and a microscope, wide around what the encoder will meet."""
    field_nm = float(rng.uniform(800, 1200))
    film = FilmConfig(
        order="FE" if rng.random() < 0.5 else "FI",
        extent=1.02,
        growth=float(np.exp(rng.uniform(np.log(25), np.log(110)))),
        imprint=float(rng.uniform(-0.02, 0.02)),
        disorder=float(rng.uniform(0.02, 0.15)),
        relaxation_s=STILL_S,
    )
    return PfmConfig(
        field_of_view_nm=field_nm,
        resolution_nm=float(rng.uniform(8, 18)),
        offset_pm=(float(rng.normal(0, 1.2)), float(rng.normal(0, 1.2))),
        # Within a quarter turn, as an operator sets it: else up and down would change places.
        phase_offset_rad=float(rng.uniform(-1.2, 1.2)),
        noise_pm=float(np.exp(rng.uniform(np.log(0.6), np.log(5)))),
        seed=int(rng.integers(2**31)),
        film=film,
        distortion=JITTER,
    )


class Shown(NamedTuple):
    """What windows show: index into ``KINDS``, -1 where it is not clear, and angle."""

    kind_N: Int64
    angle_N: Float64


def shown(polar: NDArray[np.float32], places: Float64, edge: float) -> Shown:
    """Say what the polarisation in windows comes to.

    Parameters
    ----------
    polar
        Of the film, shape ``(rows, cols)``.
    places
        Middles ``(row, col)`` of the windows in it, shape ``(n, 2)``.
    edge
        Of a window, in its cells.
    """
    axis = np.linspace(-1, 1, SAMPLES)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    at = places[:, :, None, None] + np.stack([y, x]) * edge / 2
    seen = ndimage.map_coordinates(polar, at.transpose(1, 0, 2, 3), order=1, mode="nearest")
    inside = np.hypot(x, y) <= 1
    told = [_kind(one > 0, inside, x, y) for one in seen]
    return Shown(np.array([kind for kind, _ in told], np.int64), np.array([angle for _, angle in told]))


def _kind(is_up: NDArray[np.bool_], inside: NDArray[np.bool_], x: Float64, y: Float64) -> tuple[int, float]:
    share = float(is_up[inside].mean())
    if share in (0.0, 1.0):
        return (UP if share else DOWN), math.nan
    parts = [ndimage.label(which & inside)[1] for which in (is_up, ~is_up)]
    if parts == [1, 1]:
        return _one_wall(is_up, inside, x, y, share)
    if sorted(parts) == [1, 2]:  # of what there are two parts, that is on either side
        strip = is_up if parts[0] == 1 else ~is_up
        return _strip(strip, inside, x, y, STRIP if parts[0] == 1 else STRIP + 1)
    return UNKNOWN, math.nan


def _one_wall(
    is_up: NDArray[np.bool_], inside: NDArray[np.bool_], x: Float64, y: Float64, share: float
) -> tuple[int, float]:
    """Tell a straight wall from the end of a domain, and from a domain that is closed."""
    rare = is_up if share < 0.5 else ~is_up
    if not (rare & inside & (np.hypot(x, y) > 1 - 4 / SAMPLES)).any():
        is_middle = math.hypot(float(x[rare & inside].mean()), float(y[rare & inside].mean())) < MIDDLE
        return (ISLAND + (share > 0.5) if is_middle else UNKNOWN), math.nan
    design = np.stack([np.ones(int(inside.sum())), x[inside], y[inside]], axis=1)
    sign = np.where(is_up[inside], 1.0, -1.0)
    (level, right, down), *_ = np.linalg.lstsq(design, sign, rcond=None)
    wrong = float(((design @ [level, right, down] > 0) != (sign > 0)).mean())
    uphill = math.atan2(down, right)
    if abs(level) / math.hypot(right, down) < MIDDLE and wrong < STRAIGHT:
        return WALL, uphill
    if wrong > BENT and LEAST_SHARE < share < 1 - LEAST_SHARE:
        return END + (share > 0.5), uphill
    return UNKNOWN, math.nan


def _strip(
    strip: NDArray[np.bool_], inside: NDArray[np.bool_], x: Float64, y: Float64, kind: int
) -> tuple[int, float]:
    """Say along which way a strip runs; one that is bent or passes beside the middle has no class."""
    points = np.stack([x[strip & inside], y[strip & inside]])
    middle = points.mean(axis=1)
    spread = np.cov(points)
    angle = 0.5 * math.atan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1])
    across = points.T @ [-math.sin(angle), math.cos(angle)] - middle @ [-math.sin(angle), math.cos(angle)]
    is_thin = bool(np.abs(across).max() < 2 * math.sqrt(3) * across.std() * 0.75 + 0.15)
    if math.hypot(*middle) < MIDDLE and is_thin and LEAST_SHARE < len(points.T) / inside.sum() < 0.7:
        return kind, angle
    return UNKNOWN, math.nan


def cells_of(instrument: PfmInstrument, places_nm: Float64) -> Float64:
    """Say in which cells ``(row, col)`` of the film specimen points ``(x, y)`` are, shape ``(n, 2)``."""
    film = instrument.simulator.film
    middle = (film.field.polar.shape[0] - 1) / 2
    cells: Float64 = places_nm[:, ::-1] / film.cell_nm + middle
    return cells


def windows_at(instrument: PfmInstrument, sites: Atoms, places_nm: Float64, preset: Preset) -> Labelled:
    """Cut windows at places of a frame, and say what the film is there."""
    geometry = sites.frame.geometry
    patches, which = cut_at(sites, geometry.to_px(places_nm), preset)
    cell_nm = float(instrument.simulator.film.cell_nm)
    there = shown(
        instrument.simulator.film.field.polar,
        cells_of(instrument, places_nm[which]),
        preset.window_nm / cell_nm,
    )
    # The last one is for what is not clear; a preset has the kinds that windows of its size often show.
    class_of = [preset.classes.index(kind) if kind in preset.classes else UNKNOWN for kind in KINDS]
    return Labelled.of(
        patches.windows,
        class_N=np.array([*class_of, UNKNOWN])[there.kind_N],
        angle_N=there.angle_N - geometry.rotation_rad,
        same_N=which.astype(np.int64),
    )


def places_of(sites: Atoms, rng: np.random.Generator) -> Float64:
    """Give the sites found on walls, moved a little, and places anywhere beside them."""
    geometry = sites.frame.geometry
    found_nm = geometry.to_nm(sites.positions_px)
    found_nm += rng.normal(0.0, 0.3 * min(geometry.pixel_size_nm), found_nm.shape)
    count = max(20, round(len(found_nm) * FILL / (1 - FILL)))
    anywhere = geometry.to_nm(rng.uniform(0, np.array(geometry.shape) - 1, (count, 2)))
    return np.concatenate([found_nm, anywhere])


def simulate(preset: Preset, count: int, rng: np.random.Generator) -> Labelled:
    """Gather windows of many films until ``count``."""
    finder = FindSites(SitesConfig(step_nm=24.0))
    parts: list[Labelled] = []
    while sum(len(part.class_N) for part in parts) < 2 * count:
        instrument = PfmInstrument(varied_film(rng), started_at_s=0.0)
        sites = finder.process(instrument.acquire())
        parts.append(windows_at(instrument, sites, places_of(sites, rng), preset))
    return thinned(joined(parts), count, rng)._replace(same_N=np.full(count, UNKNOWN, np.int64))


def series(preset: Preset, rng: np.random.Generator) -> Labelled:
    """Turn the scan over two films."""
    parts = []
    for _ in range(2):
        config = varied_film(rng)
        instrument = PfmInstrument(config, started_at_s=0.0)
        finder = FindSites(SitesConfig(step_nm=48.0))
        # The square that is in the frame at every turn.
        first = finder.process(instrument.acquire())
        places_nm = first.frame.geometry.to_nm(first.positions_px)
        far_nm = config.field_of_view_nm / 2 - preset.window_nm / math.sqrt(2)
        places_nm = places_nm[np.hypot(*places_nm.T) < far_nm]
        anywhere = rng.uniform(-far_nm / 2, far_nm / 2, (40, 2))
        places_nm = np.concatenate([places_nm, anywhere])
        turned = [
            windows_at(
                instrument,
                finder.process(scanned(instrument.simulator, geometry, config.dwell_time_us, rng)),
                places_nm,
                preset,
            )
            for geometry in turned_geometries(config.geometry)
        ]
        parts.append(Labelled(*(np.concatenate(column) for column in zip(*turned, strict=True))))
    return joined(parts)


DATA = (
    "{count} windows of simulated ferroelectric and ferrielectric films, on their walls and anywhere; tip "
    "resolution 8 to 18 nm, noise 0.6 to 5 pm of some 50, contact offsets of 1.2 pm (sd), lock-in phase up "
    "to 1.2 rad off, pixels of 3.1 to 4.7 nm. Channels are the response along the frame's axis of phases and "
    "the amplitude. What a window shows is its label, where it is clear; drawn evenly"
)


def _preset(
    name: str,
    shows: str,
    window_nm: float,
    window_px: int,
    kinds: slice,
    architecture: RVAEConfig,
    windows: int,
) -> Preset:
    classes = tuple(KINDS)[kinds]
    named = msgspec.structs.replace(
        architecture, classes=len(classes), label_weight=100.0, class_tie=4.0, class_scatter=300.0
    )
    return Preset(
        name=name,
        shows=shows,
        channels=("amplitude", "phase"),
        window_nm=window_nm,
        window_px=window_px,
        normalisation="response",
        classes=classes,
        symmetry=tuple(KINDS[kind] for kind in classes),
        training=TrainingConfig(architecture=named, epochs=16),
        windows=windows,
        data=DATA,
        simulate=simulate,
        series=series,
    )


WALLS = _preset(
    "pfm-walls",
    "walls and domains of a ferroelectric film, amplitude and phase, in small windows",
    window_nm=100.0,
    window_px=24,
    kinds=slice(UP, STRIP),
    architecture=RVAEConfig(latent_dim=3, mixture=5),
    windows=8000,
)
PATHWAYS = _preset(
    "pfm-pathways",
    "how the walls of a ferroelectric film lie to each other, amplitude and phase, in large windows",
    window_nm=240.0,
    window_px=32,
    kinds=slice(WALL, ISLAND),
    architecture=RVAEConfig(latent_dim=4, mixture=10, filters=64, pooled=96, hidden=128),
    windows=13000,
)
