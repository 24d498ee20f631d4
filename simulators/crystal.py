"""Frames of a crystal that is known to the last atom, through a scan that is known to the last pixel.

It is what a correction of distortion is measured against: no sheet of graphene to grow, no clock and no
wire, only images or column positions and their truth. The unit is the pixel, ``(row, col)``; a frame
takes one second of simulated time, so that rates are per frame.

>>> stream = CrystalStream(preset("lowdose", seed=3))
>>> frame = stream.scan()
>>> frame.image.shape, frame.displacement_px().shape
((512, 512), (2, 512, 512))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from simulators.counting import poisson
from simulators.scan_distortion import BeamPath, ScanDistortion, ScanDistortionConfig
from simulators.stem import add_columns
from simulators.strain import inclusion, wall
from streamer.messages import PairNm, ScanGeometry

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
PairPx = tuple[float, float]

FRAME_S = 1.0
RIM_PX = 20  # defects keep so far from the edge of the field
# Of the field's edge: place (row, col) and radius of the inclusion, and half width of the wall.
INCLUSION_AT, INCLUSION_RADIUS, WALL_WIDTH = (0.44, 0.59), 0.11, 0.05
WALL_NORMAL_RAD = 0.97  # from the row direction towards the column direction: an oblique wall


class CrystalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Crystal, dose and distortion; positions are ``(row, col)`` in pixels.

    Attributes
    ----------
    size_px
        Edge of a frame.
    seed
        Of everything: the same seed gives the same frames, byte for byte.
    lattice
        ``square``: two sublattices, the second in the middle of the first's squares; ``graphene``.
    lattice_constant_px
        Length of a lattice vector.
    lattice_rotation_deg
        Angle from the fast axis to the first lattice vector, towards the slow axis.
    second_brightness
        Height of the second sublattice of ``square`` and of interstitials, the first being 1.
    column_sigma_px
        Sd of the Gaussian that a column is seen as.
    peak_counts, background_counts
        Expected counts at the middle of a bright column, and where there is none.
    vacancies, interstitials
        How many of each lie in the field.
    drift_px_per_frame
        Sd of the drift's velocity along each axis; it swings and does not run away.
    flyback_px, flyback_decay_px
        As in ``ScanDistortionConfig``; a quarter more returns six times as slowly, and a fifth of
        all is seen along the slow axis.
    settle_px, settle_decay_rows, coil_px
        As in ``ScanDistortionConfig``.
    hum_px, hum_period_rows
        Amplitude of the hum along the fast axis and its period; 0.35 of it along the slow axis.
    jitter_px
        Sd of the rows' jitter along ``(row, col)``.
    timescale_frames
        Period in which fly-back, settling and coils vary by about 12 %; 0 holds them still.
    scale
        Multiplies every distortion; 0 is an undistorted scan.
    strain_px, strain_kind
        Largest displacement of the atoms by real strain: an ``inclusion`` that is too large for its
        place, or a ``wall`` between two domains.
    atom_displacement_px
        Sd of a displacement that each atom has for itself, along each axis.
    rotations_deg
        Scan rotations, taken in turn by the frames.
    stage_px
        Commanded displacements ``(row, col)`` of the specimen, taken in turn by the frames.
    stage_error_px
        Sd of the error of a commanded displacement along each axis, drawn anew whenever rotation or
        displacement changes.
    margin_px
        How far the crystal goes beyond the field on each side.
    pixel_size_nm
        For the geometry of the frames; nothing else depends on it.
    """

    size_px: int = 512
    seed: int = 0
    lattice: Literal["square", "graphene"] = "square"
    lattice_constant_px: float = 16.0
    lattice_rotation_deg: float = 4.0
    second_brightness: float = 0.6
    column_sigma_px: float = 1.9
    peak_counts: float = 60.0
    background_counts: float = 6.0
    vacancies: int = 12
    interstitials: int = 4
    drift_px_per_frame: float = 0.08
    flyback_px: float = 3.0
    flyback_decay_px: float = 22.0
    settle_px: float = 1.2
    settle_decay_rows: float = 28.0
    coil_px: float = 1.0
    hum_px: float = 0.3
    hum_period_rows: float = 15.2
    jitter_px: PairPx = (0.10, 0.25)
    timescale_frames: float = 150.0
    scale: float = 1.0
    strain_px: float = 0.0
    strain_kind: Literal["inclusion", "wall"] = "inclusion"
    atom_displacement_px: float = 0.0
    rotations_deg: tuple[float, ...] = (0.0,)
    stage_px: tuple[PairPx, ...] = ((0.0, 0.0),)
    stage_error_px: float = 0.0
    margin_px: float = 240.0
    pixel_size_nm: float = 0.0125

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"crystal.{name} is {getattr(self, name)}; it takes {least:g} to {most:g}")
        for name in ("lattice", "strain_kind"):
            if getattr(self, name) not in _KINDS[name]:
                kinds = " or ".join(_KINDS[name])
                raise ValueError(f"crystal.{name} is {getattr(self, name)!r}; it takes {kinds}")
        for name in ("rotations_deg", "stage_px"):
            if not getattr(self, name):
                raise ValueError(f"crystal.{name} is empty; it takes at least one")

    @property
    def geometry(self) -> ScanGeometry:
        """The raster of a frame without rotation, around ``(0, 0)``."""
        edge_nm = self.size_px * self.pixel_size_nm
        return ScanGeometry(shape=(self.size_px, self.size_px), field_of_view_nm=(edge_nm, edge_nm))

    @property
    def distortion(self) -> ScanDistortionConfig:
        """The same in the terms of ``simulators/scan_distortion.py``."""
        k = self.scale
        return ScanDistortionConfig(
            drift_rate_nm_per_s=(0.0, 0.0),
            drift_wander_nm_per_sqrt_s=0.0,
            drift_swing_nm_per_s=k * self.drift_px_per_frame * self.pixel_size_nm / FRAME_S,
            row_jitter_px=k * self.jitter_px[1],
            row_jitter_across_px=k * self.jitter_px[0],
            flyback_px=k * self.flyback_px,
            flyback_decay_px=self.flyback_decay_px,
            flyback_slow_share=0.25,
            flyback_slow_decay_px=6 * self.flyback_decay_px,
            flyback_across=-0.2,
            settle_px=k * self.settle_px,
            settle_decay_rows=self.settle_decay_rows,
            coil_px=k * self.coil_px,
            hum_px=k * self.hum_px,
            hum_hz=self.size_px / (self.hum_period_rows * FRAME_S),
            variation=0.12 if self.timescale_frames else 0.0,
            variation_period_s=(self.timescale_frames or 1.0) * FRAME_S,
        )


_LIMITS = {
    "size_px": (32, 2048),
    "seed": (0, math.inf),
    "lattice_constant_px": (3.0, 200.0),
    "column_sigma_px": (0.3, 50.0),
    "peak_counts": (0.01, 1e5),
    "background_counts": (0.0, 1e5),
    "vacancies": (0, 1000),
    "interstitials": (0, 1000),
    "hum_period_rows": (0.5, 1e4),
    "timescale_frames": (0.0, 1e6),
    "scale": (0.0, 10.0),
    "strain_px": (-20.0, 20.0),
    "atom_displacement_px": (0.0, 5.0),
    "stage_error_px": (0.0, 50.0),
    "margin_px": (0.0, 2000.0),
    "pixel_size_nm": (1e-4, 10.0),
}
_KINDS = {"lattice": ("square", "graphene"), "strain_kind": ("inclusion", "wall")}

PRESETS: dict[str, dict[str, Any]] = {
    "stem": {},
    "lowdose": {"peak_counts": 12.0, "background_counts": 1.5},
    "clean": {"scale": 0.0},
    "pfm": {
        "flyback_px": 5.0,
        "flyback_decay_px": 60.0,
        "settle_px": 6.0,
        "settle_decay_rows": 120.0,
        "coil_px": 3.0,
        "hum_px": 0.1,
        "jitter_px": (0.05, 0.08),
        "drift_px_per_frame": 0.25,
        "column_sigma_px": 2.6,
        "timescale_frames": 60.0,
    },
}


def preset(name: str, **changes: Any) -> CrystalConfig:
    """Make the configuration of a kind of instrument, with changes to it.

    Parameters
    ----------
    name
        ``stem``, ``lowdose`` (12 counts a column), ``clean`` (an undistorted scan) or ``pfm`` (slow
        piezo scanner: large, slow distortions).
    changes
        Fields of ``CrystalConfig``.

    Raises
    ------
    ValueError
        If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; it takes {', '.join(PRESETS)}")
    return CrystalConfig(**{**PRESETS[name], **changes})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrystalFrame:
    """One frame and what is true of it.

    Attributes
    ----------
    number
        From 0.
    image
        Counts, shape ``(rows, cols)``, float32; empty, ``(0, 0)``, where only points were asked for.
    geometry
        Its raster, with its rotation.
    path
        Where the beam was; ``path.seen_px`` and ``path.jitter_px`` among others.
    rotation_deg
        Scan rotation.
    stage_px
        Displacement ``(row, col)`` of the specimen that was commanded.
    stage_error_px
        What it went beyond that, unknown to a corrector.
    drift_px
        Mean drift ``(row, col)`` along the axes of an unrotated frame.
    """

    number: int
    image: Float32
    geometry: ScanGeometry
    path: BeamPath
    rotation_deg: float
    stage_px: PairPx
    stage_error_px: PairPx
    drift_px: PairPx

    @property
    def jitter_px(self) -> Float64:
        """Jitter ``(row, col)`` of each row, shape ``(2, rows)``; it is a part of the displacement."""
        return self.path.jitter_px

    def displacement_px(self, *, jitter: bool = True) -> Float64:
        """Displacement ``D``: pixel ``p`` shows the raster place ``p + D(p)``, shape ``(2, rows, cols)``.

        Drift and stage error are in it; what the stage was told to do is not.
        """
        return self.path.displacement_px(jitter=jitter)

    def beam_offset_px(self) -> Float64:
        """The part of the displacement that is the scan's own, without drift, stage error and jitter."""
        return self.path.beam_offset_px(jitter=False)

    def expected_px(self, positions_px: Float64) -> Float64:
        """Say at which raster places specimen points are expected, from rotation and stage as commanded.

        Parameters
        ----------
        positions_px
            ``(row, col)`` in the crystal's own frame, shape ``(n, 2)``.
        """
        return self.path.places_px(_to_nm(positions_px, self.geometry))

    def seen_px(self, positions_px: Float64, *, jitter: bool = True) -> Float64:
        """Say where specimen points are seen in the frame, ``(row, col)``, shape ``(n, 2)``."""
        return self.path.seen_px(_to_nm(positions_px, self.geometry), jitter=jitter)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrystalPoints:
    """Columns of one frame as a finder would report them, each with the name of its site.

    Attributes
    ----------
    frame
        The frame, without an image.
    site
        Index into the stream's sites, shape ``(n,)``, int64.
    seen_px
        Where it was found, ``(row, col)``, shape ``(n, 2)``.
    true_px
        The same without noise and jitter: ``true + D(true)`` is the site's raster place.
    """

    frame: CrystalFrame
    site: Int64
    seen_px: Float64
    true_px: Float64


class CrystalStream:
    """A crystal, and a scan that goes over it again and again.

    Parameters
    ----------
    config
        Crystal, dose and distortion.

    Attributes
    ----------
    config
        As given.
    basis_px
        Lattice vectors as rows, ``(row, col)``, shape ``(2, 2)``.
    origin_px
        A site of the first sublattice, shape ``(2,)``.
    sites_px
        Ideal site of each column, shape ``(n, 2)``, in the frame of an unrotated, undrifted scan.
    real_px
        Where the column really is: strain and displacements of single atoms included.
    sublattice
        0 or 1, shape ``(n,)``.
    brightness
        Height of the column, the brightest being 1, shape ``(n,)``.
    is_present
        False for vacancies, shape ``(n,)``.
    interstitials_px
        Columns that have no site, shape ``(m, 2)``.
    """

    def __init__(self, config: CrystalConfig | None = None) -> None:
        self.config = CrystalConfig() if config is None else config
        seeds = np.random.SeedSequence(self.config.seed).spawn(4)
        crystal_rng, distortion_rng, self._noise_rng, self._stage_rng = map(np.random.default_rng, seeds)
        self.basis_px, self.origin_px, self.sites_px, self.sublattice, self.brightness = _lattice(self.config)
        self._make_defects(crystal_rng)
        scatter = crystal_rng.standard_normal(self.sites_px.shape)
        strained = self.sites_px + self.strain_px(self.sites_px)
        self.real_px: Float64 = strained + self.config.atom_displacement_px * scatter
        self._distortion = ScanDistortion(self.config.distortion, distortion_rng, self.config.geometry)
        self._turns = 0
        self._setting: tuple[float, PairPx] | None = None
        self._stage_error_px: PairPx = (0.0, 0.0)

    def strain_px(self, positions_px: Float64) -> Float64:
        """Displacement ``(row, col)`` of the specimen by its real strain, at any points ``(n, 2)``."""
        c = self.config
        points = np.asarray(positions_px, dtype=np.float64)
        if c.strain_kind == "inclusion":
            at = (INCLUSION_AT[0] * c.size_px, INCLUSION_AT[1] * c.size_px)
            return inclusion(points, c.strain_px, at, INCLUSION_RADIUS * c.size_px)
        middle = (c.size_px / 2, c.size_px / 2)
        return wall(points, c.strain_px, middle, WALL_WIDTH * c.size_px, WALL_NORMAL_RAD)

    def scan(self, *, rotation_deg: float | None = None, stage_px: PairPx | None = None) -> CrystalFrame:
        """Scan the next frame.

        Parameters
        ----------
        rotation_deg, stage_px
            Of this frame; None takes the next one of the configured turn.

        Raises
        ------
        ValueError
            If the field would go beyond the crystal.
        """
        frame = self._next(rotation_deg, stage_px)
        c, pixel_nm = self.config, self.config.pixel_size_nm
        expected = np.full(c.geometry.shape, c.background_counts, dtype=np.float32)
        columns = np.concatenate([self.real_px[self.is_present], self.interstitials_px])
        extra = np.full(len(self.interstitials_px), c.second_brightness)
        heights = c.peak_counts * np.concatenate([self.brightness[self.is_present], extra])
        add_columns(expected, _to_nm(columns, c.geometry), heights, c.column_sigma_px * pixel_nm, frame.path)
        return _with_image(frame, poisson(expected, self._noise_rng))

    def points(
        self,
        noise_px: float = 0.08,
        *,
        rotation_deg: float | None = None,
        stage_px: PairPx | None = None,
        rim_px: float = 5.0,
    ) -> CrystalPoints:
        """Scan the next frame and give its columns at once, without an image.

        Parameters
        ----------
        noise_px
            Sd of the error of each position, along each axis; the jitter of the nearest row comes on top.
        rotation_deg, stage_px
            As in ``scan``.
        rim_px
            Columns nearer to the edge of the frame are left out.

        Raises
        ------
        ValueError
            If the field would go beyond the crystal.
        """
        frame = self._next(rotation_deg, stage_px)
        true = frame.seen_px(self.real_px, jitter=False)
        is_inside = np.all((true > rim_px) & (true < self.config.size_px - 1 - rim_px), axis=1)
        site = np.flatnonzero(is_inside & self.is_present)
        true = true[site]
        noise = noise_px * self._noise_rng.standard_normal(true.shape)
        jitter = frame.jitter_px[:, np.rint(true[:, 0]).astype(np.int64)].T
        return CrystalPoints(frame=frame, site=site, seen_px=true - jitter + noise, true_px=true)

    # -- the crystal ---------------------------------------------------------------------------

    def _make_defects(self, rng: np.random.Generator) -> None:
        c = self.config
        inside = np.all((self.sites_px > RIM_PX) & (self.sites_px < c.size_px - RIM_PX), axis=1)
        sites = np.flatnonzero(inside)
        if c.vacancies + c.interstitials > len(sites):
            raise ValueError(
                f"crystal.vacancies and interstitials are {c.vacancies} and {c.interstitials}; the field "
                f"has only {len(sites)} columns"
            )
        chosen = rng.choice(sites, c.vacancies + c.interstitials, replace=False)
        self.is_present: Bool = np.ones(len(self.sites_px), dtype=bool)
        self.is_present[chosen[: c.vacancies]] = False
        beside = c.lattice_constant_px * np.array([0.02, 0.5])
        self.interstitials_px: Float64 = self.sites_px[chosen[c.vacancies :]] + beside

    # -- the scan ------------------------------------------------------------------------------

    def _next(self, rotation_deg: float | None, stage_px: PairPx | None) -> CrystalFrame:
        """Scan one frame without looking at the specimen."""
        c, number, pixel_nm = self.config, self._turns, self.config.pixel_size_nm
        rotation = c.rotations_deg[number % len(c.rotations_deg)] if rotation_deg is None else rotation_deg
        stage = c.stage_px[number % len(c.stage_px)] if stage_px is None else stage_px
        geometry = msgspec.structs.replace(c.geometry, rotation_rad=math.radians(rotation))
        self._move((rotation, stage), geometry)
        self._turns += 1
        dwell_time_us = 1e6 * FRAME_S / c.size_px**2
        path = self._distortion.scan(
            geometry, dwell_time_us, _xy_nm(stage, pixel_nm), _xy_nm(self._stage_error_px, pixel_nm)
        )
        return CrystalFrame(
            number=number,
            image=np.zeros((0, 0), dtype=np.float32),
            geometry=geometry,
            path=path,
            rotation_deg=rotation,
            stage_px=stage,
            stage_error_px=self._stage_error_px,
            drift_px=(path.drift_nm[1] / pixel_nm, path.drift_nm[0] / pixel_nm),
        )

    def _move(self, setting: tuple[float, PairPx], geometry: ScanGeometry) -> None:
        """Turn the scan and move the stage; the first setting is where everything is measured from."""
        c = self.config
        edge = c.size_px - 1.0
        corners = np.array([[0.0, 0.0], [0.0, edge], [edge, 0.0], [edge, edge]])
        looks_at = c.geometry.to_px(geometry.to_nm(corners)) - np.array(setting[1])
        beyond = max(-looks_at.min(), looks_at.max() - edge)
        if beyond > c.margin_px:
            raise ValueError(
                f"the field goes {beyond:.0f} px beyond the unmoved one and the crystal ends at "
                f"{c.margin_px:g}; take a larger crystal.margin_px"
            )
        if self._setting is not None and setting != self._setting:
            row, col = c.stage_error_px * self._stage_rng.standard_normal(2)
            self._stage_error_px = (float(row), float(col))
        self._setting = setting


def _with_image(frame: CrystalFrame, image: Float32) -> CrystalFrame:
    fields = {name: getattr(frame, name) for name in frame.__slots__}
    return CrystalFrame(**(fields | {"image": image}))


def _xy_nm(pair_px: PairPx, pixel_nm: float) -> PairNm:
    """Turn ``(row, col)`` of an unrotated frame into ``(x, y)``."""
    return (pair_px[1] * pixel_nm, pair_px[0] * pixel_nm)


def _to_nm(positions_px: Float64, geometry: ScanGeometry) -> Float64:
    """Turn places of the unrotated raster into specimen positions ``(x, y)``."""
    return msgspec.structs.replace(geometry, rotation_rad=0.0).to_nm(positions_px)


def _lattice(config: CrystalConfig) -> tuple[Float64, Float64, Float64, Int64, Float64]:
    """Lattice vectors, origin, sites, sublattices and brightnesses of a crystal."""
    c = config
    if c.lattice == "square":
        vectors, motif = np.eye(2)[::-1], ((0.0, 0.0), (0.5, 0.5))
        brightness = (1.0, c.second_brightness)
    else:
        vectors, motif = np.array([[0.0, 1.0], [math.sqrt(3) / 2, 0.5]]), ((0.0, 0.0), (1 / 3, 1 / 3))
        brightness = (1.0, 1.0)
    angle = math.radians(c.lattice_rotation_deg)
    # Row vectors (row, col): the turn takes the fast axis towards the slow one.
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    basis = c.lattice_constant_px * vectors @ turn
    origin = np.array([c.size_px / 2 - 2.1, c.size_px / 2 + 1.3])
    steps = int(2 * (c.size_px / 2 + c.margin_px) / (0.8 * c.lattice_constant_px)) + 2
    cells = np.mgrid[-steps : steps + 1, -steps : steps + 1].reshape(2, -1).T
    sites = np.concatenate([(cells + np.array(shift)) @ basis + origin for shift in motif])
    sublattice = np.repeat(np.arange(2), len(cells))
    within = c.margin_px + 3 * c.lattice_constant_px
    is_kept = np.all((sites > -within) & (sites < c.size_px - 1 + within), axis=1)
    sublattice = sublattice[is_kept]
    return basis, origin, sites[is_kept], sublattice, np.array(brightness)[sublattice]
