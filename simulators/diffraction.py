"""A 4D-STEM: at every place of the scan a camera sees a whole diffraction pattern.

The patterns are those of ``simulators.multislice``: graphene with vacancies in one layer, or a slab of
zincblende along [110] layer by layer. The camera counts electrons. Patterns come as ``Patches`` in batches of
64, in the order in which the probe got to them, and after the last one the frame of the same scan with what
virtual detectors and the centre of mass make of them.

The scan is over, in the instrument's time, when its first batch is given: the rest waits in the camera's
memory, whatever is asked for or parked in between.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from simulators.counting import poisson
from simulators.faults import reach
from simulators.multislice import BAND, Beam, Diffraction, Layer, Slab, slab
from simulators.scanning import TORN_AT, ScanningConfig, ScanningInstrument
from simulators.scattering_factors import KNOWN, SCATTERING
from simulators.simulator import Curve, Exposure, Image, Refused, Scan, Truth
from simulators.specimen import SITE_NAMES, Specimen, SpecimenConfig, grow
from streamer.messages import Frame, PairNm, Patches, Registration, ScanGeometry

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

BATCH = 64  # patterns in a message: 4 MiB of 128 x 128
MOST_ASKED = 4096  # patterns of a sub-scan, which are all made before its frame
CHANNELS = ("HAADF", "BF", "CoM x", "CoM y")
# Up to here electrons are counted one by one as they come, in a time that goes with their number; beyond,
# pixel by pixel. Both are exact.
MOST_ARRIVALS = 20_000.0


class ZincblendeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A slab of zincblende, looked at along [110]: dumbbells of two elements.

    Attributes
    ----------
    cation, anion
        Atomic numbers; 31 and 33 is GaAs.
    lattice_constant_nm
        Edge of the cubic cell; 0.56533 is GaAs.
    layers
        Of atoms, each ``lattice_constant_nm / (2 √2)`` thick; 48 are 9.6 nm of GaAs.
    orientation_deg
        Angle from x to [-110]; [001], along which the dumbbells lie, is 90 degrees further.
    """

    cation: int = 31
    anion: int = 33
    lattice_constant_nm: float = 0.56533
    layers: int = 48
    orientation_deg: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cation", "anion"):
            if getattr(self, name) not in SCATTERING:
                raise ValueError(f"zincblende.{name} is {getattr(self, name)}; it takes {KNOWN}")
        if not 0.3 <= self.lattice_constant_nm <= 1:
            raise ValueError(
                f"zincblende.lattice_constant_nm is {self.lattice_constant_nm}; it takes 0.3 to 1"
            )
        if not 1 <= self.layers <= 1000:
            raise ValueError(f"zincblende.layers is {self.layers}; it takes 1 to 1000")
        if not math.isfinite(self.orientation_deg):
            raise ValueError(f"zincblende.orientation_deg is {self.orientation_deg}; it takes a number")


class DiffractionConfig(ScanningConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The microscope and its camera; ``sheet``, ``zincblende`` and ``distortion`` are tables of their own.

    The defaults are for graphene at 60 kV; ``for_zincblende()`` has those for a slab at 200 kV. What is not
    listed here is in ``simulators.scanning.ScanningConfig``.

    Attributes
    ----------
    specimen
        ``graphene``, as ``sheet`` says, or ``zincblende``.
    voltage_kv, semi_angle_mrad, defocus_nm, spherical_um, astigmatism_nm, astigmatism_deg
        Of the beam; see ``simulators.multislice.Beam``.
    camera_px
        Edge of the camera.
    camera_mrad
        Half of the angle that the camera sees, to the middle of its edge. Of a thick specimen only two
        thirds of it have electrons: the rest is the room that the calculation needs.
    camera_rotation_deg
        Angle from the specimen's x to the camera's rows.
    dead_pixels
        How many of the camera's pixels always say 0.
    bright_mrad
        Half of the angle of the virtual bright-field detector.
    annular_mrad
        Inner and outer half angle of the virtual annular dark-field detector.
    thermal_sd_nm
        Sd of the atoms' thermal motion along each axis, which smears the potential; thermal diffuse
        scattering is not simulated. 0.005 nm in the plane of graphene and 0.0087 nm in GaAs at room
        temperature are assumptions.
    sheet
        Defects of the graphene.
    """

    table: ClassVar[str] = "diffraction"
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "beam_current_pa": (0.0, 1e5),
        "voltage_kv": (10.0, 1000.0),
        "semi_angle_mrad": (0.5, 100.0),
        "defocus_nm": (-1e4, 1e4),
        "spherical_um": (-1e5, 1e5),
        "astigmatism_nm": (0.0, 1e4),
        "astigmatism_deg": (-360.0, 360.0),
        "camera_px": (16, 512),
        "camera_mrad": (2.0, 400.0),
        "camera_rotation_deg": (-360.0, 360.0),
        "dead_pixels": (0, 10_000),
        "bright_mrad": (0.1, 400.0),
        "thermal_sd_nm": (0.0, 0.05),
    }

    rows: int = 64
    cols: int = 64
    field_of_view_nm: float = 2.0
    dwell_time_us: float = 1000.0
    beam_current_pa: float = 5.0
    specimen: Literal["graphene", "zincblende"] = "graphene"
    voltage_kv: float = 60.0
    semi_angle_mrad: float = 30.0
    defocus_nm: float = 0.0
    spherical_um: float = 0.0
    astigmatism_nm: float = 0.0
    astigmatism_deg: float = 0.0
    camera_px: int = 128
    camera_mrad: float = 120.0
    camera_rotation_deg: float = 0.0
    dead_pixels: int = 0
    bright_mrad: float = 30.0
    annular_mrad: tuple[float, float] = (80.0, 120.0)
    thermal_sd_nm: float = 0.005
    sheet: SpecimenConfig = SpecimenConfig(
        three_fold_si_per_nm2=0.0,
        four_fold_si_per_nm2=0.0,
        vacancies_per_nm2=0.3,
        has_grain_boundary=False,
    )
    zincblende: ZincblendeConfig = ZincblendeConfig()

    def __post_init__(self) -> None:
        ScanningConfig.__post_init__(self)
        inner, outer = self.annular_mrad
        if not 0 <= inner < outer <= 400:
            raise ValueError(f"diffraction.annular_mrad is {self.annular_mrad}; it takes 0 <= inner < outer")
        if self.camera_px % 2:
            raise ValueError(f"diffraction.camera_px is {self.camera_px}; it takes an even number")
        if self.semi_angle_mrad >= self.camera_mrad:
            raise ValueError(
                f"diffraction.semi_angle_mrad is {self.semi_angle_mrad} and camera_mrad {self.camera_mrad}; "
                "the camera must see more than the beam's cone"
            )
        is_thick = self.specimen == "zincblende" and self.zincblende.layers > 1
        if is_thick and self.semi_angle_mrad >= BAND * self.camera_mrad:
            raise ValueError(
                f"diffraction.semi_angle_mrad is {self.semi_angle_mrad} and camera_mrad {self.camera_mrad}; "
                "two thirds of it have electrons from a thick specimen, and the beam's cone must be within"
            )
        if self.camera_px < 8 * self.camera_mrad / self.semi_angle_mrad:
            raise ValueError(
                f"diffraction.camera_px is {self.camera_px}: the beam's cone is less than 8 pixels wide; "
                "take more pixels or a smaller camera_mrad"
            )
        if self.dead_pixels >= self.camera_px**2:
            raise ValueError(f"diffraction.dead_pixels is {self.dead_pixels}; the camera has no more pixels")

    @classmethod
    def for_zincblende(cls, **changes: Any) -> DiffractionConfig:
        """GaAs along [110] at 200 kV and 20 mrad, 9.6 nm thick."""
        usual: dict[str, Any] = {
            "specimen": "zincblende",
            "field_of_view_nm": 1.2,
            "voltage_kv": 200.0,
            "semi_angle_mrad": 20.0,
            "camera_mrad": 100.0,
            "bright_mrad": 20.0,
            "annular_mrad": (45.0, 66.0),
            "thermal_sd_nm": 0.0087,
        }
        return cls(**(usual | changes))

    @property
    def beam(self) -> Beam:
        """What the specimen is looked at with, as the camera sees it."""
        return Beam(
            voltage_kv=self.voltage_kv,
            semi_angle_mrad=self.semi_angle_mrad,
            defocus_nm=self.defocus_nm,
            spherical_um=self.spherical_um,
            astigmatism_nm=self.astigmatism_nm,
            astigmatism_rad=math.radians(self.astigmatism_deg - self.camera_rotation_deg),
        )

    @property
    def grid_nm(self) -> float:
        """Pixel of the specimen's grid: the camera's edge is its highest frequency."""
        return self.beam.wavelength_nm / (2e-3 * self.camera_mrad)

    @property
    def k_per_nm(self) -> Float64:
        """Frequency of each row and column of the camera, shape ``(camera_px,)``, in 1/nm."""
        step = 1 / (self.camera_px * self.grid_nm)
        k: Float64 = (np.arange(self.camera_px, dtype=np.float64) - self.camera_px // 2) * step
        return k

    @property
    def angle_mrad(self) -> Float64:
        """Scattering angle of each pixel of the camera, shape ``(camera_px, camera_px)``."""
        angle: Float64 = 1e3 * self.beam.wavelength_nm * np.hypot(self.k_per_nm[:, None], self.k_per_nm)
        return angle


# -- the specimen ----------------------------------------------------------------------------------


def zincblende_layers(config: ZincblendeConfig, lower_nm: PairNm, upper_nm: PairNm) -> tuple[Layer, Layer]:
    """Atoms of the two layers that a crystal along [110] is made of, in turn, in a rectangle.

    The cell is ``a / √2`` along [-110] and ``a`` along [001]. A cation at ``(0, 0)`` has two anions in its
    own layer, half a cell away along [-110] and a quarter back along [001], and two a quarter ahead in the
    layers before and behind it, which are half a cell off along both.
    """
    a = config.lattice_constant_nm
    turn = math.radians(config.orientation_deg)
    vectors = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    cell = np.array([a / math.sqrt(2), a])
    corners = np.array([[x, y] for x in (lower_nm[0], upper_nm[0]) for y in (lower_nm[1], upper_nm[1])])
    along = corners @ vectors.T / cell
    least, most = np.floor(along.min(axis=0)) - 1, np.ceil(along.max(axis=0)) + 1
    cells = np.stack(np.meshgrid(*(np.arange(s, e) for s, e in zip(least, most, strict=True))), -1)
    both = []
    for half in (0.0, 0.5):
        first = cells.reshape(-1, 2) + half
        sites = np.concatenate([first, first + [0.5, 0.75]])
        places = sites * cell @ vectors
        numbers = np.repeat([config.cation, config.anion], len(first))
        inside = np.all((places >= lower_nm) & (places <= upper_nm), axis=1)
        both.append(Layer(positions_nm=places[inside], numbers=numbers[inside]))
    return both[0], both[1]


def _extent(config: DiffractionConfig) -> tuple[PairNm, PairNm]:
    """Corners of what the probe will be over wherever scan, drift, stage and faults will take it."""
    distortion = config.distortion
    wider, slips = reach(config.faults)
    moves = -np.concatenate([slips, slips + np.array(distortion.drift_travel_nm)])
    rim_nm = wider * math.hypot(*config.geometry.field_of_view_nm) / 2
    rim_nm += 0.2 + 30 * distortion.drift_wander_nm_per_sqrt_s + 4 * distortion.drift_swing_nm
    rim_nm += config.stage_reach_nm + (4 * config.stage_error_nm if config.stage_reach_nm else 0.0)
    strong_px = 3 * distortion.coil_px + distortion.settle_px + distortion.flyback_px
    rim_nm += strong_px * max(config.geometry.pixel_size_nm)
    rim_nm += distortion.creep_share * max(config.geometry.field_of_view_nm)
    lower, upper = moves.min(axis=0) - rim_nm, moves.max(axis=0) + rim_nm
    return (float(lower[0]), float(lower[1])), (float(upper[0]), float(upper[1]))


# -- what a camera counts ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Events:
    """Electrons one by one, as a counting camera lists them: a few of them need less room than a pattern.

    Attributes
    ----------
    first
        Where the electrons of each pattern begin, and the last ones end, shape ``(n + 1,)``.
    pixel
        Pixel that each electron met, row by row, shape ``(electrons,)``, uint32.
    shape
        ``(rows, cols)`` of the camera.
    """

    first: Int64
    pixel: NDArray[np.uint32]
    shape: tuple[int, int]

    def counts(self) -> Float32:
        """Patterns of them, shape ``(n, rows, cols)``, float32."""
        size = math.prod(self.shape)
        pattern = np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
        flat = np.bincount(pattern * size + self.pixel, minlength=(len(self.first) - 1) * size)
        return flat.reshape(-1, *self.shape).astype(np.float32)


def events(counts: Float32) -> Events:
    """List the electrons of counted patterns, shape ``(n, rows, cols)``."""
    flat = counts.reshape(len(counts), -1).astype(np.int64)
    pixel = np.tile(np.arange(flat.shape[1], dtype=np.uint32), len(flat))
    return Events(
        first=np.concatenate([[0], np.cumsum(flat.sum(axis=1))]).astype(np.int64),
        pixel=np.repeat(pixel, flat.ravel()),
        shape=(counts.shape[1], counts.shape[2]),
    )


def count(patterns: Float32, electrons: float, rng: np.random.Generator) -> Float32:
    """Count patterns with shot noise.

    Parameters
    ----------
    patterns
        Share of the beam in each pixel, shape ``(n, rows, cols)``, float32.
    electrons
        Expected number of electrons in the whole beam.
    rng
        The same state gives the same counts.

    Returns
    -------
    counts
        Shape ``(n, rows, cols)``, float32.
    """
    if electrons > MOST_ARRIVALS:
        return poisson(patterns * np.float32(electrons), rng)
    counts = np.empty(patterns.shape, dtype=np.float32)
    _count_arrivals(patterns.reshape(-1), electrons, rng, counts.reshape(-1))
    return counts


@njit(cache=True)
def _count_arrivals(share: Float32, electrons: float, rng: np.random.Generator, counts: Float32) -> None:
    """Let electrons arrive on a line on which each pixel is as long as its expectation.

    The gaps of a Poisson process of unit rate are exponential; what falls on lengths of it is independent
    and Poisson.
    """
    reached = 0.0
    arrival = rng.standard_exponential()
    for i in range(len(share)):
        reached += electrons * share[i]
        met = 0
        while arrival < reached:
            met += 1
            arrival += rng.standard_exponential()
        counts[i] = met


# -- what is made of patterns --------------------------------------------------------------------------


def centre_of_mass(patterns: Float32, k_per_nm: Float64) -> Float64:
    """Mean deflection ``(x, y)`` of the electrons of each pattern, in 1/nm, shape ``(n, 2)``.

    A pattern without electrons has none: 0.
    """
    seen = patterns.astype(np.float64)
    along_x, along_y = seen.sum(axis=1), seen.sum(axis=2)
    total = np.maximum(along_x.sum(axis=1), 1e-12)
    # no matrix product: its last digits would depend on the number of threads
    moments = [(profile * k_per_nm).sum(axis=1) for profile in (along_x, along_y)]
    centre: Float64 = np.stack(moments, axis=1) / total[:, None]
    return centre


# -- the specimen under the beam -----------------------------------------------------------------------


class DiffractionSimulator:
    """A specimen under a beam and before a camera; see ``simulators.simulator.Simulator``.

    Parameters
    ----------
    config
        Microscope, camera and specimen.

    Attributes
    ----------
    is_dead
        The camera's pixels that always say 0, shape ``(camera_px, camera_px)``.
    """

    name = "simulated 4D-STEM"

    def __init__(self, config: DiffractionConfig) -> None:
        self._config = config
        self._specimen_rng, _, self._noise_rng, _, self._fault_rng = (
            np.random.default_rng(seed) for seed in config.seeds()
        )
        camera_rng, self._specimen_rng = self._specimen_rng.spawn(2)
        self.is_dead: Bool = np.zeros((config.camera_px, config.camera_px), dtype=bool)
        dead = camera_rng.choice(self.is_dead.size, config.dead_pixels, replace=False)
        self.is_dead.reshape(-1)[dead] = True
        self._annular, self._bright = _rings(config)
        self._lower_nm, self._upper_nm = _extent(config)
        self.layers, self._sheet = self._grown()
        turn = math.radians(config.camera_rotation_deg)
        self._to_camera = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        self._diffraction = Diffraction(self._slab(self.layers), config.beam, config.camera_px)

    def step(self, seconds: float) -> None:
        """Nothing happens to this specimen."""

    def acquire_image(self, scan: Scan) -> Image:
        """Scan, and give what the virtual detectors make of the patterns."""
        parts = [self.detected(self.counts(scan, places)) for places in batches(scan)]
        return _image(parts, scan)

    def acquire_curve(self, exposure: Exposure) -> Curve:
        """A camera has no spectrum."""
        raise Refused("this instrument takes diffraction patterns and no spectra; ask for a scan")

    def counts(self, scan: Scan, places: Int64) -> Float32:
        """Count the patterns at some places of a scan.

        Parameters
        ----------
        scan
            Where the probe is at each pixel of it.
        places
            Pixels, row by row, shape ``(n,)``.

        Returns
        -------
        counts
            Shape ``(n, camera_px, camera_px)``, float32, shot noise included.
        """
        probe_nm = scan.path.specimen_positions_nm().reshape(-1, 2)[places]
        diffraction = self._amorphous if "amorphous" in scan.faults else self._diffraction
        electrons = self._config.electrons(scan.dwell_time_us) * ("blank" not in scan.faults)
        seen = count(diffraction.patterns(probe_nm @ self._to_camera.T), electrons, self._noise_rng)
        seen[:, self.is_dead] = 0
        return seen

    def detected(self, counts: Float32) -> Float32:
        """Counts of the annular and the bright-field detector, centre of mass in mrad, ``(4, n)``."""
        mrad = 1e3 * self._config.beam.wavelength_nm
        x, y = mrad * centre_of_mass(counts, self._config.k_per_nm).T
        annular, bright = (counts[:, ring].sum(axis=1) for ring in (self._annular, self._bright))
        return np.stack([annular, bright, x, y]).astype(np.float32)

    def truth(self) -> Truth:
        """Give the atoms and the camera.

        Returns
        -------
        arrays
            ``positions_nm`` ``(n, 2)`` as ``(x, y)``, ``numbers``, ``layer`` and ``site_class`` ``(n,)``, the
            last one into ``site_names`` and -1 for zincblende; ``layer_order``, the layers as the beam
            meets them, and ``layer_nm``; ``k_per_nm`` ``(camera_px,)`` and ``camera_rotation_deg``;
            ``dead_px`` ``(camera_px, camera_px)``.
        """
        config = self._config
        sizes = [len(layer.numbers) for layer in self.layers]
        unknown = np.full(sum(sizes), -1, dtype=np.int64)
        return {
            "positions_nm": np.concatenate([layer.positions_nm for layer in self.layers]),
            "numbers": np.concatenate([layer.numbers for layer in self.layers]),
            "layer": np.repeat(np.arange(len(sizes)), sizes),
            "layer_order": np.array(self._diffraction.slab.order),
            "layer_nm": np.array(self._diffraction.slab.layer_nm),
            "site_class": unknown if self._sheet is None else self._sheet.site_class,
            "site_names": np.array(SITE_NAMES),
            "k_per_nm": config.k_per_nm,
            "camera_rotation_deg": np.array(config.camera_rotation_deg),
            "dead_px": self.is_dead,
        }

    @cached_property
    def _amorphous(self) -> Diffraction:
        """As many atoms as before, anywhere: what is left under a beam that destroyed the lattice."""
        lower, upper = np.array(self._lower_nm), np.array(self._upper_nm)
        anywhere = [
            Layer(
                positions_nm=self._fault_rng.uniform(lower, upper, layer.positions_nm.shape),
                numbers=layer.numbers,
            )
            for layer in self.layers
        ]
        return Diffraction(self._slab(anywhere), self._config.beam, self._config.camera_px)

    def _grown(self) -> tuple[list[Layer], Specimen | None]:
        config = self._config
        if config.specimen == "zincblende":
            return list(zincblende_layers(config.zincblende, self._lower_nm, self._upper_nm)), None
        sheet = grow(config.sheet, self._lower_nm, self._upper_nm, self._specimen_rng)
        if not sheet.is_sheet:
            raise ValueError(
                f"diffraction.sheet.structure is {config.sheet.structure!r}; it takes a flat sheet of carbon "
                "and silicon"
            )
        return [Layer(positions_nm=sheet.positions_nm, numbers=sheet.numbers)], sheet

    def _slab(self, layers: list[Layer]) -> Slab:
        """What the camera's axes make of the layers; half a window of vacuum is around them."""
        config = self._config
        order, layer_nm = [0], 0.0
        if config.specimen == "zincblende":
            order = [layer % 2 for layer in range(config.zincblende.layers)]
            layer_nm = config.zincblende.lattice_constant_nm / (2 * math.sqrt(2))
        turned = [
            Layer(positions_nm=layer.positions_nm @ self._to_camera.T, numbers=layer.numbers)
            for layer in layers
        ]
        places = np.concatenate([layer.positions_nm for layer in turned])
        rim_nm = config.camera_px * config.grid_nm / 2
        lower, upper = places.min(axis=0) - rim_nm, places.max(axis=0) + rim_nm
        return slab(
            turned,
            order,
            config.beam,
            lower_nm=(float(lower[0]), float(lower[1])),
            upper_nm=(float(upper[0]), float(upper[1])),
            pixel_nm=config.grid_nm,
            layer_nm=layer_nm,
            thermal_sd_nm=config.thermal_sd_nm,
        )


def _rings(config: DiffractionConfig) -> tuple[Bool, Bool]:
    """Pixels of the annular and of the bright-field detector."""
    inner, outer = config.annular_mrad
    angle = config.angle_mrad
    return (angle >= inner) & (angle <= outer), angle <= config.bright_mrad


def batches(scan: Scan) -> Iterator[Int64]:
    """Give the pixels of a scan in the order of time, row by row of the raster, 64 at once."""
    rows, cols = scan.path.geometry.shape
    order = np.arange(rows * cols).reshape(rows, cols)
    if scan.path.scan_path == "serpentine":
        order[1::2] = order[1::2, ::-1]
    for start in range(0, rows * cols, BATCH):
        yield order.reshape(-1)[start : start + BATCH]


def _image(parts: list[Float32], scan: Scan) -> Image:
    """Put together what was detected in each batch."""
    shape = scan.path.geometry.shape
    values = np.empty((len(CHANNELS), math.prod(shape)), dtype=np.float32)
    for places, part in zip(batches(scan), parts, strict=True):
        values[:, places] = part
    return Image(values=values.reshape(-1, *shape), channels=CHANNELS)


class DiffractionInstrument(ScanningInstrument[DiffractionSimulator]):
    """A simulated 4D-STEM.

    The patterns of a sub-scan come with the next calls of ``acquire``, before those of the scan under way.

    Parameters
    ----------
    config
        Microscope, camera, specimen and distortion.
    started_at_s
        As of a ``ScanningInstrument``.
    """

    config: DiffractionConfig

    def __init__(self, config: DiffractionConfig | None = None, *, started_at_s: float | None = None) -> None:
        config = DiffractionConfig() if config is None else config
        super().__init__(DiffractionSimulator(config), config, started_at_s=started_at_s)
        self._waiting: deque[Patches] = deque()
        self._under_way: Iterator[Frame | Patches] = iter(())

    @property
    def batches_waiting(self) -> int:
        """Batches of sub-scans that were asked for."""
        return len(self._waiting)

    def acquire(self) -> Frame | Patches:  # type: ignore[override]
        """Give the next batch of patterns, or the frame of a scan whose patterns were given.

        Raises
        ------
        RuntimeError
            While the beam is parked.
        """
        if self._is_parked:
            raise RuntimeError("the beam is parked; let it go first")
        if self._waiting:
            return self._waiting.popleft()
        part = next(self._under_way, None)
        if part is None:
            scan = self._begin(self._next_field(), self.config.dwell_time_us)
            self._full_frames += 1
            self._under_way = self._delivered(scan)
            part = next(self._under_way)
        return part

    def _scan(self, geometry: ScanGeometry, dwell_time_us: float, request_id: str | None) -> Frame:
        """Scan at once what was asked for, and keep its patterns."""
        if math.prod(geometry.shape) > MOST_ASKED:
            raise Refused(f"shape takes up to {MOST_ASKED} pixels: each of them is a pattern")
        *patterns, frame = self._delivered(self._begin(geometry, dwell_time_us), request_id)
        self._waiting.extend(part for part in patterns if isinstance(part, Patches))
        assert isinstance(frame, Frame)
        return frame

    def _delivered(self, scan: Scan, request_id: str | None = None) -> Iterator[Frame | Patches]:
        """Give the batches of a scan and its frame."""
        parts = []
        for places in batches(scan):
            counts = self.simulator.counts(scan, places)
            parts.append(self.simulator.detected(counts))
            yield self._patches(scan, places, counts, request_id)
        yield self._frame(scan, _image(parts, scan), request_id)

    def _patches(self, scan: Scan, places: Int64, counts: Float32, request_id: str | None) -> Patches:
        """Say of a batch what a microscope knows: where the probe was sent to, and when."""
        path, geometry = scan.path, scan.path.geometry
        row, col = np.divmod(places, geometry.shape[1])
        if "torn" in scan.faults:
            counts[row >= round(TORN_AT * geometry.shape[0])] = 0
        late = col if path.scan_path != "serpentine" else np.where(row % 2, geometry.shape[1] - 1 - col, col)
        last = int((row * geometry.shape[1] + late).max())
        taken_s = path.started_s + (last + 1) * scan.dwell_time_us * 1e-6
        at_s = self._started_at_s + min(taken_s, path.ended_s)  # sums of floats: never after the frame
        positions_px = np.stack([row, col], axis=1).astype(np.float32)
        return Patches(
            session="",
            number=0,
            acquired_at_s=at_s,
            windows=counts[:, None],
            window_nm=self.config.camera_px * self.config.grid_nm,
            positions_px=positions_px,
            positions_nm=(geometry.to_nm(positions_px) - np.array(path.stage_nm)).astype(np.float32),
            confidence=np.ones(len(places), dtype=np.float32),
            geometry=geometry,
            registration=Registration(drift_nm=path.stage_nm, at_s=at_s),
            channels=("diffraction",),
            window_per_nm=1 / self.config.grid_nm,
            dwell_time_us=scan.dwell_time_us,
            dose_e=self.config.electrons(scan.dwell_time_us),
            request_id=request_id,
        )
