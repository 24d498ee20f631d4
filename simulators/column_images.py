"""Images of atom columns at one scale, with their truth: what a finder of columns is taught and judged on.

A spot has a standard deviation of 1.5 to 4 pixels, whatever the microscope: that is the scale to which a
finder brings its frames. What else is on a frame varies more widely than on any one instrument: lattices and
single heavy atoms on an amorphous support, boundaries, dopants, vacancies, contamination, texture as the lens
shows it, jitter and gain of lines, fly-back, afterglow, streaks, blanked and saturated parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import fft

from simulators.counting import poisson
from simulators.scan_distortion import BeamPath
from simulators.stem import add_columns
from streamer.geometry import ScanGeometry

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
_Value = TypeVar("_Value", bound=np.generic)
Kind = Literal["lattice", "sparse", "mixed", "empty"]

KINDS: tuple[Kind, ...] = ("lattice", "sparse", "mixed", "empty")
HEAVY = 1.5  # times as bright as the columns that a frame has most of
_CALM = 0.7  # of supports: a thin clean film, chosen for single atoms, and a steady beam
_FILM_GRAIN = 0.7  # of the width of a heavy atom, which trembles under the beam
_RIM_PX = 8  # of a coarse image, that is cut off after resampling
_DETECTED = 0.4  # of a spot's height passes a difference of Gaussians that is matched to it


class ColumnImageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is drawn how often, and between which limits.

    Attributes
    ----------
    size_px
        Rows and columns of an image.
    sigma_px
        Limits of the standard deviation of a spot.
    counts
        Limits of the expected counts: of a typical column of a lattice, or of the support of single atoms.
    shares
        Of the kinds ``lattice``, ``sparse``, ``mixed`` (a lattice with atoms on it) and ``empty``.
    snr
        Limits of the signal-to-noise ratio of single atoms, behind the filter that is matched to them.
    is_plain
        True leaves out all that a lens, a scan and a detector spoil: shot noise alone, round spots.
    """

    size_px: int = 256
    sigma_px: tuple[float, float] = (1.5, 4.0)
    counts: tuple[float, float] = (2.0, 300.0)
    shares: tuple[float, float, float, float] = (0.46, 0.42, 0.09, 0.03)
    snr: tuple[float, float] = (2.0, 25.0)
    is_plain: bool = False

    def __post_init__(self) -> None:
        if not 32 <= self.size_px <= 4096:
            raise ValueError(f"column_images.size_px is {self.size_px}; it takes 32 to 4096")
        for name, least, most in (("sigma_px", 0.8, 20.0), ("counts", 0.1, 1e6), ("snr", 0.1, 1e4)):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"column_images.{name} is {low} to {high}; it takes {least:g} to {most:g}")
        if min(self.shares) < 0 or not math.isclose(sum(self.shares), 1.0):
            raise ValueError(f"column_images.shares is {self.shares}; it takes four shares that add up to 1")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnImage:
    """An image and what is on it.

    Attributes
    ----------
    image
        Shape ``(size, size)``, float32, in counts or an affine function of them.
    positions_px
        ``(row, col)`` of each column on the image, shape ``(n, 2)``, float64; the centre of the first pixel
        is ``(0, 0)``.
    snr
        Signal-to-noise ratio of each column's height behind the filter matched to it, its neighbours and its
        background known, against shot noise, readout and texture, shape ``(n,)``.
    is_heavy
        Whether a column is clearly brighter than those of which there are most, or a heavy atom on a
        support, shape ``(n,)``.
    sigma_px
        Standard deviation of a spot.
    kind
        One of ``KINDS``.
    """

    image: Float32
    positions_px: Float64
    snr: Float64
    is_heavy: Bool
    sigma_px: float
    kind: Kind


@dataclass(slots=True, kw_only=True, eq=False)
class _Columns:
    """Places in pixels, expected heights, and the class of each."""

    places: Float64
    heights: Float64
    is_heavy: Bool

    def only(self, keep: Bool) -> _Columns:
        return _Columns(places=self.places[keep], heights=self.heights[keep], is_heavy=self.is_heavy[keep])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Optics:
    """Of one image: its size and width of a spot in its own pixels, and its counts.

    A spot is ``stretch`` times as high as ``sigma`` says, and as much narrower: the mean is geometric. On a
    calm one film and beam are steady, and its grain, not the shot noise, hides faint atoms.
    """

    size: int
    sigma: float
    stretch: float
    counts: float
    readout: float
    is_calm: bool


def _no_columns() -> _Columns:
    return _Columns(places=np.zeros((0, 2)), heights=np.zeros(0), is_heavy=np.zeros(0, dtype=bool))


def _together(one: _Columns, other: _Columns) -> _Columns:
    return _Columns(
        places=np.concatenate([one.places, other.places]),
        heights=np.concatenate([one.heights, other.heights]),
        is_heavy=np.concatenate([one.is_heavy, other.is_heavy]),
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _maybe(rng: np.random.Generator, chance: float, low: float, high: float) -> float:
    """Give 0, or with a chance a number between the limits."""
    value = float(rng.uniform(low, high))
    return value if rng.random() < chance else 0.0


# -- lattices ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cell:
    """Edges in nearest-neighbour distances, places in it as parts of the edges, and heights."""

    edges: list[list[float]]
    basis: list[list[float]]
    heights: list[float]


_HONEYCOMB = [[math.sqrt(3), 0.0], [math.sqrt(3) / 2, 1.5]]
_TWO_SITES = [[0.0, 0.0], [1 / 3, 1 / 3]]


def _honeycomb(rng: np.random.Generator) -> _Cell:
    return _Cell(_HONEYCOMB, _TWO_SITES, [1.0, 1.0])


def _two_sublattices(rng: np.random.Generator) -> _Cell:
    """MoS2, boron nitride: one site brighter than the other, up to ten times."""
    return _Cell(_HONEYCOMB, _TWO_SITES, [1.0, _log_uniform(rng, 0.1, 0.95)])


def _square(rng: np.random.Generator) -> _Cell:
    return _Cell([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]], [1.0])


def _triangular(rng: np.random.Generator) -> _Cell:
    return _Cell([[1.0, 0.0], [0.5, math.sqrt(0.75)]], [[0.0, 0.0]], [1.0])


def _perovskite(rng: np.random.Generator) -> _Cell:
    """A and B columns, and half of the time the light ones between B and B."""
    body = float(rng.uniform(0.25, 0.9))
    if rng.random() < 0.5:
        edge = math.sqrt(2)
        return _Cell([[edge, 0.0], [0.0, edge]], [[0.0, 0.0], [0.5, 0.5]], [1.0, body])
    light = float(rng.uniform(0.05, 0.7))
    basis = [[0.0, 0.0], [0.5, 0.5], [0.5, 0.0], [0.0, 0.5]]
    return _Cell([[2.0, 0.0], [0.0, 2.0]], basis, [1.0, body, light, light])


def _oblique(rng: np.random.Generator) -> _Cell:
    angle, ratio = math.radians(rng.uniform(60, 90)), float(rng.uniform(1, 1.8))
    edges = [[ratio, 0.0], [math.cos(angle), math.sin(angle)]]
    if ratio < 1.6:
        return _Cell(edges, [[0.0, 0.0]], [1.0])
    return _Cell(edges, [[0.0, 0.0], [0.5, 0.5]], [1.0, float(rng.uniform(0.3, 1))])


def _dumbbells(rng: np.random.Generator) -> _Cell:
    """Pairs of columns, as in diamond and zincblende along 110."""
    long, high = float(rng.uniform(2.4, 3.2)), float(rng.uniform(1.8, 2.4))
    basis = [[0.0, 0.0], [1 / long, 0.0], [0.5, 0.5], [0.5 + 1 / long, 0.5]]
    other = float(rng.uniform(0.4, 1))
    return _Cell([[long, 0.0], [0.0, 2 * high]], basis, [1.0, other, 1.0, other])


_LATTICES: tuple[tuple[Callable[[np.random.Generator], _Cell], float], ...] = (
    (_honeycomb, 0.26),
    (_two_sublattices, 0.26),
    (_square, 0.08),
    (_triangular, 0.1),
    (_perovskite, 0.18),
    (_oblique, 0.07),
    (_dumbbells, 0.05),
)


def _crystal(rng: np.random.Generator, size: int, spacing: float) -> _Columns:
    """Fill the image and a rim around it with a random crystal; heights are relative to its brightest."""
    which = rng.choice(len(_LATTICES), p=[share for _, share in _LATTICES])
    cell = _LATTICES[which][0](rng)
    turn = float(rng.uniform(0, 2 * math.pi))
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    edges = np.array(cell.edges) * spacing @ rotation @ (np.eye(2) + rng.normal(0, 0.02, (2, 2)))
    rim = 3 * spacing
    reach = (size + 2 * rim) / math.sqrt(2)
    across = np.abs(np.linalg.inv(edges)).sum(axis=0)
    many = np.ceil(reach * across).astype(int) + 1
    steps = np.stack(np.meshgrid(np.arange(-many[0], many[0] + 1), np.arange(-many[1], many[1] + 1)), axis=-1)
    basis = np.array(cell.basis)
    places = ((steps.reshape(-1, 1, 2) + basis) @ edges).reshape(-1, 2)
    places += size / 2 + rng.uniform(-spacing, spacing, 2)
    heights = np.tile(cell.heights, steps.size // 2)
    inside = np.all((places > -rim) & (places < size + rim), axis=1)
    least = min(cell.heights)
    is_heavy = (heights > HEAVY * least) & (heights > 0.9)
    return _Columns(places=places, heights=heights, is_heavy=is_heavy).only(inside)


def _with_defects(columns: _Columns, rng: np.random.Generator, spacing: float) -> _Columns:
    """Take columns away, put brighter or darker ones in, and move all by a little and by slow waves."""
    count = len(columns.heights)
    columns = columns.only(rng.random(count) >= rng.choice([0.0, 0.01, 0.04]))
    count = len(columns.heights)
    is_other = rng.random(count) < rng.choice([0.0, 0.01, 0.03])
    factor = np.exp(rng.uniform(math.log(0.4), math.log(6.0), count))
    heights = np.where(is_other, columns.heights * factor, columns.heights)
    is_heavy = np.where(is_other, heights > HEAVY, columns.is_heavy)
    apart = _maybe(rng, 0.7, 0.0, 0.035) * spacing
    wave = 2 * np.pi * (columns.places[:, ::-1] / rng.uniform(80, 400) + rng.random())
    places = columns.places + rng.normal(0, 1, (count, 2)) * apart + _maybe(rng, 0.4, 0, 1.5) * np.sin(wave)
    return _Columns(places=places, heights=heights, is_heavy=is_heavy)


def _with_boundary(columns: _Columns, rng: np.random.Generator, size: int, spacing: float) -> _Columns:
    """Let another grain, or the edge of the crystal, begin at a line through the image."""
    turn = float(rng.uniform(0, 2 * math.pi))
    normal = np.array([math.cos(turn), math.sin(turn)])
    cut = float(rng.uniform(-0.35, 0.35)) * size
    columns = columns.only((columns.places - size / 2) @ normal > cut)
    if rng.random() < 0.3:
        return columns
    other = _crystal(rng, size, spacing * float(rng.uniform(0.92, 1.08)))
    gap = float(rng.uniform(0.6, 0.9)) * spacing
    return _together(columns, other.only((other.places - size / 2) @ normal < cut - gap))


def _lattice(rng: np.random.Generator, optics: _Optics) -> _Columns:
    size = optics.size
    spacing = optics.sigma * _log_uniform(rng, 2.3, 6.5)
    columns = _crystal(rng, size, spacing)
    if rng.random() < 0.3:
        columns = _with_boundary(columns, rng, size, spacing)
    columns = _with_defects(columns, rng, spacing)
    if rng.random() < 0.2:
        island = _clouds(rng, size, rng.uniform(0.1, 0.3) * size) > rng.uniform(-1, 0.5)
        columns = columns.only(_at(island, columns.places))
    if rng.random() < 0.35:
        columns.heights = columns.heights * (0.3 + 0.7 * _at(_ramp(rng, size), columns.places))
    columns.heights = columns.heights * optics.counts
    return columns


# -- backgrounds ---------------------------------------------------------------------------------------


def _clouds(rng: np.random.Generator, size: int, length: float) -> Float32:
    """Smooth random field of mean 0 and variance about 1, by Gaussian bumps a ``length`` wide."""
    count = max(3, math.ceil(1.3 * size / length) + 3)
    centres = np.linspace(-0.1 * size, 1.1 * size, count)
    bumps = np.exp(-(((np.arange(size)[:, None] - centres) / length) ** 2) / 2)
    bumps /= np.sqrt((bumps**2).sum(axis=1, keepdims=True))
    field: Float32 = (bumps @ rng.standard_normal((count, count)) @ bumps.T).astype(np.float32)
    return field


def _ramp(rng: np.random.Generator, size: int) -> Float32:
    """Plane through a random direction, 0 to 1."""
    turn = float(rng.uniform(0, 2 * math.pi))
    across = (np.arange(size) / (size - 1) - 0.5).astype(np.float32)
    plane = math.cos(turn) * across[:, None] + math.sin(turn) * across
    scaled: Float32 = (plane - plane.min()) / np.ptp(plane)
    return scaled


def _texture(rng: np.random.Generator, optics: _Optics, finest: float = 0.9) -> Float32:
    """Speckle of an amorphous film, seen by the same lens: a band of frequencies, astigmatic or not.

    Mean 0, variance 1. Mostly its grain is as wide as a spot, or from ``finest`` of that to a bit wider, and
    as much stretched: nothing but brightness tells an atom from it. The ring of an out-of-focus lens has the
    same form.
    """
    if rng.random() < 0.7:
        narrow, turn, ratio = float(rng.uniform(finest, finest + 0.6)), 0.0, optics.stretch**2
    else:
        narrow, turn = float(rng.uniform(0.7, 1.8)), float(rng.uniform(0, math.pi))
        ratio = float(rng.uniform(1, 1.8))
    narrow *= optics.sigma
    wide = narrow * float(rng.uniform(1.3, 5.0))
    size = optics.size
    down, right = fft.fftfreq(size)[:, None], fft.rfftfreq(size)[None, :]
    along = math.cos(turn) * down + math.sin(turn) * right
    across = math.cos(turn) * right - math.sin(turn) * down
    k2 = ((2 * np.pi) ** 2 * (along**2 * ratio + across**2 / ratio)).astype(np.float32)
    band = np.exp(-k2 * np.float32(narrow**2 / 2)) * (1 - np.exp(-k2 * np.float32(wide**2 / 2)))
    return _filtered_noise(rng, size, band)


def _stripes(rng: np.random.Generator, size: int) -> Float32:
    """Noise that is long along the rows and hardly wider than one of them; mean 0, variance 1."""
    long, high = float(rng.uniform(4, 30)), float(rng.uniform(0.3, 1.2))
    down, right = 2 * np.pi * fft.fftfreq(size)[:, None], 2 * np.pi * fft.rfftfreq(size)[None, :]
    band = np.exp(-((down * high) ** 2 + (right * long) ** 2) / 2).astype(np.float32)
    return _filtered_noise(rng, size, band)


def _filtered_noise(rng: np.random.Generator, size: int, band: Float32) -> Float32:
    white = rng.standard_normal((size, size), dtype=np.float32)
    field: Float32 = fft.irfft2(fft.rfft2(white) * band, s=(size, size))
    field -= field.mean()
    return field / np.float32(max(float(field.std()), 1e-9))


def _between_columns(rng: np.random.Generator, optics: _Optics, is_plain: bool) -> Float32:
    """Draw what lies under a lattice: vacuum or support, contamination, its texture."""
    level = np.full((optics.size, optics.size), float(rng.uniform(0.02, 0.6)), dtype=np.float32)
    if is_plain:
        return level * np.float32(optics.counts)
    if rng.random() < 0.6:
        dirt = np.maximum(0, _clouds(rng, optics.size, rng.uniform(0.05, 0.25) * optics.size))
        level += np.float32(rng.uniform(0.02, 0.6)) * dirt
    if rng.random() < 0.35:
        speckle = np.float32(rng.uniform(0.02, 0.3)) * _texture(rng, optics)
        level *= np.maximum(1 + speckle, 0.02)
    return level * np.float32(optics.counts)


def _support(rng: np.random.Generator, optics: _Optics, is_plain: bool) -> Float32:
    """Draw an amorphous film: clouds, a slope, holes, and the speckle of its own atoms."""
    level = np.ones((optics.size, optics.size), dtype=np.float32)
    if is_plain:
        return level * np.float32(optics.counts)
    level *= _unevenness(rng, optics.size, 0.2 if optics.is_calm else 1.0)
    if not optics.is_calm and rng.random() < 0.15:
        hole = _clouds(rng, optics.size, rng.uniform(20, 60)) / 0.15 + rng.uniform(0, 10)
        level *= 0.05 + 0.95 / (1 + np.exp(-np.clip(hole, -30, 30)))
    # The speckle is told against the shot noise: from nothing to twice of it.
    strength = float(rng.uniform(0.3, 1.4)) if optics.is_calm else _maybe(rng, 0.85, 0.1, 1.4)
    speckle = min(strength / math.sqrt(optics.counts), 0.35)
    level *= np.maximum(0.05, 1 + speckle * _skewed(rng, _texture(rng, optics, _FILM_GRAIN)))
    return level * np.float32(optics.counts)


def _unevenness(rng: np.random.Generator, size: int, share: float) -> Float32:
    """Draw by how much a film varies from place to place, by a share of what films ever do."""
    slope = share * _maybe(rng, 0.7, 0, 0.6)
    clouds = share * _maybe(rng, 0.8, 0.02, 0.3)
    level = np.maximum(0.1, 1 + slope * (_ramp(rng, size) - 0.5))
    varied: Float32 = level * np.maximum(0.1, 1 + clouds * _clouds(rng, size, rng.uniform(15, 90)))
    return varied


def _skewed(rng: np.random.Generator, grain: Float32) -> Float32:
    """Make a grain brighter where atoms of the film happen to overlap by more than darker where few do."""
    skew = np.float32(_maybe(rng, 0.6, 0.02, 0.25))
    return np.expm1(skew * grain) / skew if skew else grain


def _add_particles(level: Float32, rng: np.random.Generator, optics: _Optics) -> None:
    """Add what is brighter than its surroundings and larger than an atom: not to be found."""
    place = np.arange(optics.size, dtype=np.float32)
    for _ in range(rng.poisson(0.5)):
        row, col = rng.uniform(0, optics.size, 2)
        high, wide = optics.sigma * rng.uniform(3.5, 8.0, 2)
        bump = np.exp(-(((place - row) / high) ** 2) / 2)[:, None] * np.exp(
            -(((place - col) / wide) ** 2) / 2
        )
        level += np.float32(optics.counts * rng.uniform(0.3, 2.0)) * bump


def _add_ligands(level: Float32, rng: np.random.Generator, optics: _Optics, atoms: _Columns) -> None:
    """Add what holds the atoms, their molecules or thicker film: atoms are where it is brighter anyway."""
    share, width = _maybe(rng, 0.5, 0.05, 0.35), optics.sigma * float(rng.uniform(2.5, 7.0))
    place = np.arange(optics.size)
    down, right = (np.exp(-(((place - atoms.places[:, axis, None]) / width) ** 2) / 2) for axis in (0, 1))
    level += ((share * atoms.heights * down.T) @ right).astype(np.float32)


def _texture_noise(level: Float32, sigma: float) -> float:
    """Say the sd, relative to the level, that texture gives to the height of a spot."""
    size = level.shape[0]
    k2 = (2 * np.pi) ** 2 * (fft.fftfreq(size)[:, None] ** 2 + fft.rfftfreq(size)[None, :] ** 2)
    band = np.exp(-k2 * sigma**2 / 2) - np.exp(-k2 * (3 * sigma) ** 2 / 2)
    passed = fft.irfft2(fft.rfft2(level / level.mean()) * band.astype(np.float32), s=level.shape)
    return 1.4826 * float(np.median(np.abs(passed))) / _DETECTED


# -- single atoms --------------------------------------------------------------------------------------


def matched_snr(heights: Float64, background: Float64, sigma_px: float) -> Float64:
    """Signal-to-noise ratio of Gaussian spots in shot noise, behind the filter that is matched to them.

    The sum of ``(A g)² / (b + A g)`` over a spot is ``2π s² (A - b ln(1 + A / b))``.

    Parameters
    ----------
    heights, background
        Expected counts: ``A`` at the middle of a spot, and ``b`` beside it, each shape ``(n,)``.
    sigma_px
        Standard deviation ``s`` of a spot.

    Returns
    -------
    snr
        Shape ``(n,)``.
    """
    ground = np.maximum(background, 1e-3)
    squared = 2 * np.pi * sigma_px**2 * (heights - ground * np.log1p(heights / ground))
    ratio: Float64 = np.sqrt(np.maximum(squared, 0))
    return ratio


def _height_for(snr: Float64, variance: Float64, texture: Float64, sigma: float) -> Float64:
    """Turn ratios into heights: ``snr² (texture² + (variance + A / 2) / πs²) = A²``."""
    area = math.pi * sigma**2
    half = snr**2 / (4 * area)
    height: Float64 = half + np.sqrt(half**2 + snr**2 * (variance / area + texture**2))
    return height


def _single_atoms(
    rng: np.random.Generator, optics: _Optics, level: Float32, texture: float, config: ColumnImageConfig
) -> _Columns:
    """Scatter atoms of one kind, some in clusters, none on top of another."""
    # On a clean film there are as many as it was made for.
    count = int(_log_uniform(rng, 6, 120) if optics.is_calm else _log_uniform(rng, 1, 70))
    places = rng.uniform(-5, optics.size + 5, (count, 2))
    if rng.random() < 0.4:
        beside = places[rng.integers(0, count, count)] + rng.normal(0, 5 * optics.sigma, (count, 2))
        is_beside = rng.random(count) < rng.uniform(0.1, 0.7)
        places = np.where(is_beside[:, None], beside, places)
    places = _apart(places, 2.2 * optics.sigma)
    ground = _at(level, places).astype(np.float64)
    # Atoms of one element are about as bright as each other, two of them on top of each other twice: what
    # varies is the frame.
    spread = 0.2 if config.is_plain else 0.5
    low, high = config.snr
    highest = max(low, 0.32 * high) if optics.is_calm else high  # elsewhere nobody would see faint ones
    ratio = _log_uniform(rng, low, highest) * np.exp(rng.normal(0, rng.uniform(0.05, spread), len(places)))
    heights = _height_for(ratio, ground + optics.readout**2, texture * ground, optics.sigma)
    return _Columns(places=places, heights=heights, is_heavy=np.ones(len(places), dtype=bool))


def _apart(places: Float64, least: float) -> Float64:
    """Leave out what is nearer than this to one before it."""
    near = np.hypot(*(places[:, None] - places).transpose(2, 0, 1)) < least
    kept = np.ones(len(places), dtype=bool)
    for i in range(1, len(places)):
        kept[i] = not (near[i, :i] & kept[:i]).any()
    return places[kept]


# -- scan and detector ---------------------------------------------------------------------------------


def _scan(rng: np.random.Generator, optics: _Optics, is_plain: bool) -> BeamPath:
    """Jitter of the rows, slow drift and fly-back; pixels are nanometres, but for the stretch of a spot."""
    size, stretch = optics.size, optics.stretch
    jitter = np.zeros((2, size))
    fly_back = np.zeros((2, size))
    drift = np.zeros((size, 2))
    if not is_plain:
        jitter[1] = rng.normal(0, 1, size) * _maybe(rng, 0.5, 0.0, 0.15 * optics.sigma + 0.1)
        fly_back[1] = _maybe(rng, 0.25, 0, 4) * np.exp(-np.arange(size) / rng.uniform(4, 20))
        drift = np.outer(np.linspace(-0.5, 0.5, size), rng.normal(0, 1, 2)) * _maybe(rng, 0.3, 0, 0.03 * size)
    return BeamPath(
        geometry=ScanGeometry(shape=(size, size), field_of_view_nm=(size * stretch, size / stretch)),
        row_drift_nm=drift,
        row_offset_px=jitter,
        jitter_px=jitter,
        column_offset_px=fly_back,
        started_s=0.0,
        ended_s=1.0,
    )


@njit(cache=True)
def _shift_rows(image: Float32, offset_px: Float64) -> None:
    """Move each row to the left by its offset, interpolated linearly; the ends repeat."""
    rows, cols = image.shape
    for i in range(rows):
        row = image[i].copy()
        whole = math.floor(offset_px[i])
        part = np.float32(offset_px[i] - whole)
        for j in range(cols):
            left = min(max(j + whole, 0), cols - 1)
            right = min(max(j + whole + 1, 0), cols - 1)
            image[i, j] = row[left] + part * (row[right] - row[left])


def _add_restless(
    image: Float32, rng: np.random.Generator, columns: _Columns, optics: _Optics
) -> tuple[_Columns, _Columns]:
    """Add atoms that the beam moves away while it passes, and short dashes that were atoms for a row or two.

    Returns
    -------
    steady, restless
        Columns that stay, still to be drawn, and the others with the share of their height that was seen.
    """
    leaves = rng.random(len(columns.heights)) < _maybe(rng, 0.65, 0.1, 1.0)
    gone = columns.only(leaves)
    for n, (place, height) in enumerate(zip(gone.places, gone.heights, strict=True)):
        share, gone.places[n] = _add_flickering(image, rng, place, height, optics)
        gone.heights[n] *= share
    steady = columns.only(~leaves)
    return steady, _together(gone, _add_dashes(image, rng, columns, optics))


def _add_flickering(
    image: Float32, rng: np.random.Generator, place: Float64, height: float, optics: _Optics
) -> tuple[float, Float64]:
    """Add a spot as of an atom that comes and goes, leaves, or trembles while it is scanned.

    Returns
    -------
    seen, place
        Share of the light of a whole spot, and where its middle is.
    """
    wider = float(np.exp(rng.uniform(-0.15, 0.5)))
    smeared = float(np.exp(rng.uniform(0, 0.3)))  # along the row, while the beam passes
    high, wide = optics.sigma * optics.stretch * wider, optics.sigma / optics.stretch * wider * smeared
    top, left = math.ceil(place[0] - 4 * high), math.ceil(place[1] - 5 * wide)
    rows = np.arange(max(0, top), min(optics.size, int(place[0] + 4 * high) + 1))
    cols = np.arange(max(0, left), min(optics.size, int(place[1] + 5 * wide) + 1))
    if not rows.size or not cols.size:
        return 0.0, place
    down = np.exp(-(((rows - place[0]) / high) ** 2) / 2)
    aside = place[1] + np.cumsum(rng.normal(0, _maybe(rng, 0.6, 0, 0.35) * optics.sigma, len(rows)))
    right = np.exp(-(((cols - aside[:, None]) / wide) ** 2) / 2)
    light = down * _shown(rng, rows, place[0], high)
    patch = image[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    patch += (height * light[:, None] * right).astype(np.float32)
    middle = np.array([(light * rows).sum(), (light * aside).sum()]) / max(light.sum(), 1e-9)
    # A wider spot is as bright over more pixels: its filter gathers more.
    return float(light.sum() / down.sum() * wider * math.sqrt(smeared)), middle


def _shown(rng: np.random.Generator, rows: Int64, middle: float, high: float) -> Float64:
    """Say how much of an atom each row shows: all down to a row, or more and less by chance."""
    if rng.random() < 0.35:
        return (rows < middle + rng.uniform(-0.7, 2) * high).astype(np.float64)
    uneven: Float64 = np.clip(rng.uniform(0.5, 1) + rng.normal(0, rng.uniform(0.05, 0.6), len(rows)), 0, 1.5)
    return uneven


def _add_dashes(image: Float32, rng: np.random.Generator, columns: _Columns, optics: _Optics) -> _Columns:
    """Add what was an atom for a row or two.

    They are given back as columns of next to no height: nobody can say whether they count.
    """
    count = int(rng.poisson(4)) if rng.random() < 0.35 else 0
    places = rng.integers(0, optics.size, (count, 2))
    bright = max(float(columns.heights.mean()) if len(columns.heights) else 0.0, math.sqrt(optics.counts))
    for row, col in places:
        length = int(rng.uniform(2, 4) * optics.sigma)
        image[row : row + int(rng.integers(1, 3)), col : col + length] += np.float32(
            rng.uniform(0.7, 2) * bright
        )
    middle = places + np.array([0.5, 1.5 * optics.sigma])
    return _Columns(places=middle, heights=np.full(count, 1e-3), is_heavy=np.ones(count, dtype=bool))


def _uneven_beam(image: Float32, rng: np.random.Generator, optics: _Optics) -> None:
    """Let the beam's current go up and down from line to line, and stripes lie on the image."""
    gain = _maybe(rng, 0.25, 0.0, 0.08)
    if gain:
        image *= np.maximum(0.1, 1 + gain * rng.standard_normal((optics.size, 1), dtype=np.float32))
    strength = _maybe(rng, 0.3, 0.05, 0.5)
    if strength:
        image += np.float32(strength * math.sqrt(float(image.mean()))) * _stripes(rng, optics.size)
    np.maximum(image, 0, out=image)


@njit(cache=True)
def _afterglow(image: Float32, share: float) -> None:
    """Let each pixel keep a share of the one before it in its row."""
    kept, new = np.float32(share), np.float32(1 - share)
    for i in range(image.shape[0]):
        before = image[i, 0]
        for j in range(image.shape[1]):
            before = kept * before + new * image[i, j]
            image[i, j] = before


def _spoil(image: Float32, rng: np.random.Generator, columns: _Columns) -> _Columns:
    """Blank a part, or saturate what is bright; columns that are no longer seen are left out."""
    what = rng.random()
    if what < 0.04:
        first = int(rng.uniform(0.3, 0.95) * image.shape[0])
        image[first:] = float(rng.choice([0.0, float(image.mean())]))
        return columns.only(columns.places[:, 0] < first)
    if what < 0.07:
        wide = int(rng.uniform(0.1, 0.4) * image.shape[1])
        row, col = rng.integers(0, np.array(image.shape) - wide)
        image[row : row + wide, col : col + wide] = image.max()
        off = columns.places - np.array([row, col])
        return columns.only(~np.all((off >= 0) & (off < wide), axis=1))
    if what < 0.17:
        np.minimum(image, np.quantile(image, rng.uniform(0.96, 0.999)), out=image)
    if 0.12 < what < 0.25:  # as of a picture whose contrast was stretched
        np.maximum(image, np.quantile(image, rng.uniform(0.001, 0.04)), out=image)
    return columns


def _count(
    expected: Float32, rng: np.random.Generator, optics: _Optics, is_plain: bool
) -> tuple[Float32, float]:
    """Turn expectations into what the detector gives, and say by how many pixels it drags columns along."""
    image, dragged = poisson(expected, rng), 0.0
    if not is_plain:
        if rng.random() < 0.25:
            kept = float(rng.uniform(0.05, 0.5))
            _afterglow(image, kept)
            dragged = kept / (1 - kept)
        if optics.readout:
            image += np.float32(optics.readout) * rng.standard_normal(image.shape, dtype=np.float32)
    return image, dragged


def _resampled(image: Float32, zoom_size: int) -> Float32:
    """Bring a coarse image to a finer grid as a frame of coarse pixels is brought to this scale."""
    size = image.shape[0]
    half = fft.rfft2(image)
    fine = np.zeros((zoom_size, zoom_size // 2 + 1), dtype=half.dtype)
    top, width = (size + 1) // 2, (size + 1) // 2
    fine[:top, :width] = half[:top, :width]
    fine[-(size // 2) :, :width] = half[-(size // 2) :, :width]
    result: Float32 = fft.irfft2(fine, s=(zoom_size, zoom_size)) * np.float32((zoom_size / size) ** 2)
    return result


# -- the whole -----------------------------------------------------------------------------------------


def _at(field: NDArray[_Value], places: Float64) -> NDArray[_Value]:
    """Value of a field at the pixel nearest to each place."""
    row, col = np.clip(np.rint(places), 0, field.shape[0] - 1).astype(np.int64).T
    values: NDArray[_Value] = field[row, col]
    return values


def _coarse_size(size: int, zoom: float) -> int:
    """Pixels of the coarse image that has a rim to cut off."""
    return math.ceil(size / zoom) + 2 * _RIM_PX


def column_image(
    rng: np.random.Generator, config: ColumnImageConfig | None = None, kind: Kind | None = None
) -> ColumnImage:
    """Draw an image of columns and its truth.

    Parameters
    ----------
    rng
        Where all that varies comes from; the same state gives the same image.
    config
        Limits of what varies.
    kind
        One of ``KINDS``; None draws it.

    Returns
    -------
    image
        Columns whose middle lies outside the image are not in its truth.
    """
    config = config or ColumnImageConfig()
    chosen = kind or KINDS[int(rng.choice(len(KINDS), p=config.shares))]
    sigma = _log_uniform(rng, *config.sigma_px)
    # Half of all frames come from coarser pixels, down to 0.8 a spot: their noise has no high frequencies.
    finest = min(3.0, sigma / 0.8)
    zoom = float(rng.uniform(1, finest)) if rng.random() < 0.5 and not config.is_plain else 1.0
    if zoom < 1.05:
        return _drawn(rng, config, chosen, config.size_px, sigma)
    size = _coarse_size(config.size_px, zoom)
    fine_size = round(size * zoom)
    scale = fine_size / size
    coarse = _drawn(rng, config, chosen, size, sigma / scale)
    first = (fine_size - config.size_px) // 2
    image = _resampled(coarse.image, fine_size)[
        first : first + config.size_px, first : first + config.size_px
    ]
    places = coarse.positions_px * scale - first
    inside = _is_inside(places, config.size_px)
    return ColumnImage(
        image=np.ascontiguousarray(image),
        positions_px=places[inside],
        snr=coarse.snr[inside],
        is_heavy=coarse.is_heavy[inside],
        sigma_px=sigma,
        kind=chosen,
    )


def _drawn(
    rng: np.random.Generator, config: ColumnImageConfig, kind: Kind, size: int, sigma: float
) -> ColumnImage:
    """Draw an image on its own pixels."""
    counts = _log_uniform(rng, *config.counts)
    stretch = 1.0 if config.is_plain or rng.random() < 0.4 else float(np.exp(rng.normal(0, 0.11)))
    readout = 0.0 if config.is_plain else _maybe(rng, 0.4, 0.0, 0.5) * math.sqrt(counts)
    is_calm = kind in ("sparse", "empty") and rng.random() < _CALM
    optics = _Optics(size=size, sigma=sigma, stretch=stretch, counts=counts, readout=readout, is_calm=is_calm)
    columns, level, texture = _specimen(rng, optics, kind, config)
    path = _scan(rng, optics, config.is_plain)
    expected = level.copy()
    _shift_rows(expected, path.jitter_px[1])
    restless = _no_columns()
    if kind == "sparse" and not config.is_plain:
        columns, restless = _add_restless(expected, rng, columns, optics)
    _add_spots(expected, rng, columns, path, optics, config.is_plain)
    columns = _together(columns, restless)
    columns.places = path.seen_px(path.geometry.to_nm(columns.places), jitter=False)
    columns = columns.only(_is_inside(columns.places, size))
    if not config.is_plain and not is_calm:
        _uneven_beam(expected, rng, optics)
    ground = np.maximum(_at(expected, columns.places) - columns.heights, 1e-3)
    shot = matched_snr(columns.heights, ground + readout**2, sigma)
    grain = texture * _at(level, columns.places) / np.maximum(columns.heights, 1e-9)
    snr = 1 / np.sqrt(1 / np.maximum(shot, 1e-9) ** 2 + grain**2)
    image, dragged = _count(expected, rng, optics, config.is_plain)
    columns.places[:, 1] += dragged
    if not config.is_plain:
        seen = _spoil(image, rng, _Columns(places=columns.places, heights=snr, is_heavy=columns.is_heavy))
        columns, snr = seen, seen.heights
    inside = _is_inside(columns.places, size)
    return ColumnImage(
        image=image,
        positions_px=columns.places[inside],
        snr=snr[inside],
        is_heavy=columns.is_heavy[inside],
        sigma_px=sigma,
        kind=kind,
    )


def _specimen(
    rng: np.random.Generator, optics: _Optics, kind: Kind, config: ColumnImageConfig
) -> tuple[_Columns, Float32, float]:
    """Draw columns and background, and say what its texture does to the height of a column."""
    is_on_support = kind in ("sparse", "empty")
    draw = _support if is_on_support else _between_columns
    level = draw(rng, optics, config.is_plain)
    texture = 0.0 if config.is_plain else _texture_noise(level, optics.sigma)
    columns = _no_columns() if is_on_support else _lattice(rng, optics)
    if kind in ("sparse", "mixed"):
        atoms = _single_atoms(rng, optics, level, texture, config)
        if kind == "mixed":  # atoms that stick to a lattice have to be seen above it
            atoms.heights = np.maximum(atoms.heights, optics.counts * float(rng.uniform(0.7, 2)))
            atoms = atoms.only(_is_free(atoms.places, columns.places, 2.2 * optics.sigma))
        elif not config.is_plain:
            _add_ligands(level, rng, optics, atoms)
        columns = _together(columns, atoms)
    if not config.is_plain and not optics.is_calm:
        _add_particles(level, rng, optics)
    return columns, level, texture


def _is_inside(places: Float64, size: int) -> Bool:
    """Mark places on the pixels of an image."""
    inside: Bool = np.all((places >= -0.5) & (places < size - 0.5), axis=1)
    return inside


def _is_free(places: Float64, taken: Float64, least: float) -> Bool:
    """Mark places that are not nearer than this to any that is taken."""
    if len(taken) == 0:
        return np.ones(len(places), dtype=bool)
    away = np.hypot(*(places[:, None] - taken).transpose(2, 0, 1)).min(axis=1)
    free: Bool = away >= least
    return free


def _add_spots(
    expected: Float32,
    rng: np.random.Generator,
    columns: _Columns,
    path: BeamPath,
    optics: _Optics,
    is_plain: bool,
) -> None:
    """Add the columns' spots, some with the wide tails of a real probe."""
    places_nm = path.geometry.to_nm(columns.places)
    tail = 0.0 if is_plain else _maybe(rng, 0.5, 0.0, 0.25)
    add_columns(expected, places_nm, (1 - tail) * columns.heights, optics.sigma, path)
    if tail:
        add_columns(expected, places_nm, tail * columns.heights, 2.5 * optics.sigma, path)
