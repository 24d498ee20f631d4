"""A picture of what each simulated instrument gives: ``python -m simulators pictures FOLDER`` makes them.

Colours are those of the field: grey for HAADF, a diverging map for what has a sign, a cyclic one for phases,
the logarithm for diffraction patterns, brown to white for heights. Scale bars say nanometres of the specimen,
of patterns mrad. Every seed is written down: the pictures are the same wherever they are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simulators.afm import AfmConfig, AfmInstrument
from simulators.diffraction import DiffractionConfig, DiffractionInstrument, DiffractionSimulator
from simulators.eels import EelsConfig, EelsInstrument
from simulators.kinetics import KineticsConfig
from simulators.pfm import FilmConfig, PfmConfig, PfmInstrument
from simulators.rods import RodsConfig
from simulators.scan_distortion import ScanDistortionConfig
from simulators.specimen import SpecimenConfig
from simulators.stem import StemConfig, StemInstrument
from simulators.structure_specimen import DopantConfig, StructureConfig, VacancyConfig
from streamer.messages import Frame, Patches, Request

Float32 = NDArray[np.float32]
Axes = Any

DPI = 90
INK, PAPER = "#222222", "white"
STILL = ScanDistortionConfig(
    drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0, row_jitter_px=0.0, flyback_px=0.0
)
NICE = (1.0, 2.0, 5.0)  # lengths of scale bars begin with these


def draw(folder: Path, only: str = "") -> list[Path]:
    """Make the pictures.

    Parameters
    ----------
    folder
        Where they go, as PNG; it is made.
    only
        Name of one of them; empty makes all.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if only and only not in PICTURES:
        raise ValueError(f"there is no picture {only!r}; there are {', '.join(PICTURES)}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, make in PICTURES.items():
        if only in ("", name):
            with matplotlib.rc_context({"font.size": 9, "axes.titlesize": 9, "font.family": "DejaVu Sans"}):
                figure = make()
                FigureCanvasAgg(figure)
                paths.append(folder / f"{name}.png")
                # no date and no version in it: the same picture is the same file
                figure.savefig(paths[-1], dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    return paths


# -- what they are made of -------------------------------------------------------------------------


def sheet(
    rows: int, cols: int, width: float = 9.6, height: float | None = None
) -> tuple[Figure, NDArray[Any]]:
    """Lay out panels; ``width`` in inches."""
    figure = Figure(figsize=(width, height or 0.92 * width / cols * rows), layout="constrained")
    axes: NDArray[Any] = figure.subplots(rows, cols, squeeze=False)
    return figure, axes


def show(
    axes: Axes,
    image: NDArray[Any],
    title: str,
    edge: float,
    unit: str = "nm",
    *,
    cmap: str = "gray",
    bar: str = "",
    clip: float = 0.3,
    limits: tuple[float, float] | None = None,
) -> Any:
    """Show an image with its scale bar, and a colour bar where it has a name.

    Parameters
    ----------
    edge
        Width of the image, in ``unit``.
    clip
        Per cent of the pixels beyond either end of the colours.
    """
    low, high = limits or tuple(np.percentile(image, (clip, 100 - clip)))
    shown = axes.imshow(image, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    scale_bar(axes, image.shape, edge, unit)
    if bar:
        axes.figure.colorbar(shown, ax=axes, label=bar, shrink=0.8, pad=0.02)
    return shown


def scale_bar(axes: Axes, shape: tuple[int, ...], edge: float, unit: str) -> None:
    """Draw a bar of about a fifth of the width, white on a dark ground."""
    length = nice_length(edge / 5)
    rows, cols = shape[:2]
    wide, x, y = length / edge * cols, 0.05 * cols, 0.94 * rows
    label = f"{length / 1000:g} µm" if unit == "nm" and length >= 1000 else f"{length:g} {unit}"
    ground = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 1.5}
    axes.plot([x, x + wide], [y, y], color="black", linewidth=5, alpha=0.55, solid_capstyle="butt")
    axes.plot([x, x + wide], [y, y], color="white", linewidth=2.5, solid_capstyle="butt")
    axes.text(x, y - 0.025 * rows, label, color="white", va="bottom", ha="left", fontsize=8, bbox=ground)
    axes.set_xlim(-0.5, cols - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)


def nice_length(about: float) -> float:
    """Give a round length near to one.

    Examples
    --------
    >>> nice_length(1.8), nice_length(0.07), nice_length(400)
    (2.0, 0.05, 500.0)
    """
    unit = 10.0 ** math.floor(math.log10(about))
    nearest = min((*NICE, 10.0), key=lambda step: abs(math.log(step * unit / about)))
    return float(f"{nearest * unit:.12g}")


def whole(instrument: Any) -> Frame:
    """Take the next full frame, past the patterns before it."""
    while not isinstance(item := instrument.acquire(), Frame):
        pass
    return item


def curve(instrument: Any, place_nm: tuple[float, float], dwell_time_us: float) -> tuple[Any, Any]:
    """Ask for a spectrum or a loop as an agent does; give its axis and its values."""
    request = Request(
        session="s",
        id="p",
        action="spectrum",
        scan_position_nm=place_nm,
        position_nm=place_nm,
        dwell_time_us=dwell_time_us,
    )
    outcome, _ = instrument.execute(request)
    if outcome.bias_v is not None:
        return outcome.bias_v, outcome.spectrum
    channels = np.arange(len(outcome.spectrum))
    return outcome.energy_offset_ev + outcome.energy_step_ev * channels, outcome.spectrum


# -- the pictures ----------------------------------------------------------------------------------


def stem() -> Figure:
    """HAADF of graphene with silicon atoms: with many electrons, with few, and badly scanned."""
    fields: dict[str, Any] = {
        "field_of_view_nm": 5.0,
        "seed": 7,
        "rows": 320,
        "cols": 320,
        "probe": "physical",
    }
    faults = ScanDistortionConfig(
        row_jitter_px=0.5,
        hum_px=1.0,
        flyback_px=3.0,
        drift_rate_nm_per_s=(0.5, 0.8),
        drift_settling_s=5.0,
        coil_px=3.0,
    )
    many = StemConfig(distortion=STILL, carbon_counts=200.0, **fields)
    few = StemConfig(distortion=STILL, carbon_counts=5.0, background_counts=0.5, **fields)
    bent = StemConfig(distortion=faults, carbon_counts=60.0, dwell_time_us=8.0, **fields)
    figure, axes = sheet(1, 3)
    titles = ("HAADF, 200 counts a carbon", "5 counts a carbon", "60 counts; drift, jitter, hum, fly-back")
    for panel, config, title in zip(axes[0], (many, few, bent), titles, strict=True):
        show(panel, whole(StemInstrument(config)).image[0], title, 5.0)
    return figure


def kinetics() -> Figure:
    """The same sheet before and after what the beam did to it, with the places of the events."""
    beam = KineticsConfig(is_on=True, rate_factor=5.0)
    config = StemConfig(
        rows=320,
        cols=320,
        field_of_view_nm=4.0,
        seed=11,
        probe="physical",
        carbon_counts=100.0,
        dwell_time_us=16.0,
        distortion=STILL,
        specimen=SpecimenConfig(has_grain_boundary=False, vacancies_per_nm2=0.1),
        kinetics=beam,
    )
    instrument = StemInstrument(config)
    frames = [whole(instrument) for _ in range(24)]
    truth = instrument.truth()
    figure, axes = sheet(1, 3, height=3.9)
    show(axes[0, 0], frames[0].image[0], "first frame", 4.0)
    show(axes[0, 1], frames[-1].image[0], f"frame 24, after {len(truth['event_kind'])} events", 4.0)
    show(axes[0, 2], frames[-1].image[0], "what happened where", 4.0)
    names, kinds = truth["event_names"], truth["event_kind"]
    places_px = config.geometry.to_px(np.asarray(truth["event_position_nm"], dtype=np.float64))
    for index, kind in enumerate(np.unique(kinds)):
        row, col = places_px[kinds == kind].T
        looks = {"s": 40, "facecolors": "none", "edgecolors": f"C{index}", "linewidths": 1.5}
        axes[0, 2].scatter(col, row, label=str(names[kind]), **looks)
    figure.legend(loc="outside lower right", fontsize=7, ncols=4, frameon=False)
    return figure


def structures() -> Figure:
    """Crystals that are not perfect: foreign and missing atoms, a grain boundary, bonds that are turned."""
    mos2 = StructureConfig(
        rotation_deg=7.0,
        dopants=(DopantConfig(element="W", replaces="Mo", fraction=0.1),),
        vacancies=(VacancyConfig(element="S", fraction=0.03),),
    )
    gaas = StructureConfig(
        zone_axis=(1, 1, 0), layers=4, has_grain_boundary=True, tilt_deg=16.0, boundary_distance_nm=0.2
    )
    graphene = StructureConfig(
        stone_wales_per_nm2=0.15, dopants=(DopantConfig(element="Si", replaces="C", fraction=0.006),)
    )
    views = (
        (crystal_view("mos2", mos2, 3.2), "MoS2 with W, some S missing; HAADF"),
        (crystal_view("gaas", gaas, 5.0, carbon_counts=4.0), "GaAs [110], grains 16° apart; HAADF"),
        (
            crystal_view("graphene", graphene, 3.2, detector="MAADF", carbon_counts=400.0),
            "graphene with Si, bonds turned; MAADF",
        ),
    )
    figure, axes = sheet(1, 3)
    for panel, (config, title) in zip(axes[0], views, strict=True):
        image = whole(StemInstrument(config)).image[0]
        low, high = np.percentile(image, (1, 99.5))  # a few heavy atoms may be white
        show(panel, image, title, config.field_of_view_nm, limits=(float(low), float(high)))
    return figure


def crystal_view(name: str, crystal: StructureConfig, edge_nm: float, **others: Any) -> StemConfig:
    """Look at a structure of ours; as many pixels as the page has, so that none is left out."""
    fields: dict[str, Any] = {"rows": 240, "cols": 240, "seed": 6, "probe": "physical", "distortion": STILL}
    specimen = SpecimenConfig(structure=name, crystal=crystal)
    return StemConfig(field_of_view_nm=edge_nm, specimen=specimen, **(fields | others))


def pfm() -> Figure:
    """A ferrielectric film: what the tip sees, the polarisation below, and a loop with the mark it leaves."""
    film = FilmConfig(growth=150.0)
    config = PfmConfig(seed=5, film=film, bias_v=10.0, distortion=STILL)
    instrument = PfmInstrument(config)
    frame = whole(instrument)
    amplitude, phase, height = frame.image
    figure, axes = sheet(2, 3)
    show(axes[0, 0], amplitude, "amplitude", 1000.0, cmap="inferno", bar="pm")
    show_phase(axes[0, 1], phase, "phase")
    show(axes[0, 2], height, "height", 1000.0, cmap="afmhot", bar="nm")
    polar = np.asarray(instrument.truth()["polar"])
    most = float(np.abs(polar).max())
    show(
        axes[1, 0],
        polar,
        "truth: polarisation (scaled)",
        1100.0,
        cmap="RdBu_r",
        bar="P",
        limits=(-most, most),
    )
    bias, response = curve(instrument, (0.0, 0.0), 2e6)
    axes[1, 1].plot(bias, response, color=INK, linewidth=1)
    axes[1, 1].plot(bias, response, ".", color="#b2182b", markersize=3)
    axes[1, 1].set(title="loop in the middle", xlabel="bias (V)", ylabel="in-phase response (pm)")
    axes[1, 1].axhline(0, color="0.8", zorder=0)
    axes[1, 1].axvline(0, color="0.8", zorder=0)
    axes[1, 1].set_box_aspect(1)
    show_phase(axes[1, 2], whole(instrument).image[1], "phase after it: the middle has switched")
    return figure


def show_phase(axes: Axes, phase_rad: Float32, title: str) -> None:
    """Show a phase so that the two directions of the polarisation lie on either side of white."""
    degrees = np.degrees(phase_rad - PfmConfig().phase_offset_rad)
    show(axes, (degrees + 90) % 360 - 90, title, 1000.0, cmap="RdBu_r", bar="degrees", limits=(-20.0, 200.0))


def diffraction() -> Figure:
    """Patterns of graphene and of GaAs on a logarithmic scale, and what virtual detectors make of a scan."""
    figure, axes = sheet(2, 3)
    graphene = DiffractionConfig(seed=2, rows=64, cols=64, field_of_view_nm=1.6, beam_current_pa=160.0)
    gaas = DiffractionConfig.for_zincblende(seed=2)
    sites = (
        (graphene, "graphene, 60 kV"),
        (gaas, "GaAs [110], 9.6 nm, 200 kV"),
    )
    for panel, (config, title) in zip(axes[0], sites, strict=False):
        exact = DiffractionSimulator(config)._diffraction.patterns(np.zeros((1, 2)))[0]  # before counting
        logarithm = np.log10(exact / exact.max() + 1e-7)
        show(panel, logarithm, title, 2 * config.camera_mrad, "mrad", cmap="magma", bar="log10 intensity",
             limits=(-6.0, 0.0))  # fmt: skip
    instrument = DiffractionInstrument(graphene)
    patterns: list[Float32] = []
    while not isinstance(item := instrument.acquire(), Frame):
        assert isinstance(item, Patches)
        patterns.append(item.windows[:, 0])
    one = patterns[0][0]
    show(axes[0, 2], np.log10(one + 1), f"one pattern, {one.sum():,.0f} electrons", 240.0, "mrad",
         cmap="magma", bar="log10 (counts + 1)", limits=(0.0, 3.0))  # fmt: skip
    haadf, _, along, across = item.image
    show(axes[1, 0], haadf, "virtual HAADF", 1.6)
    most = float(np.percentile(np.abs(item.image[2:]), 99.5))
    for panel, part, title in (
        (axes[1, 1], along, "centre of mass, x"),
        (axes[1, 2], across, "centre of mass, y"),
    ):
        show(panel, part, title, 1.6, cmap="RdBu_r", bar="mrad", limits=(-most, most))
    return figure


def eels() -> Figure:
    """Plasmonic particles: HAADF, maps of the loss at two energies, a spectrum, the modes of two cubes."""
    config = EelsConfig(seed=3, rows=96, cols=96, field_of_view_nm=90.0, distortion=STILL)
    instrument = EelsInstrument(config)
    frame, spectra = instrument.acquire_spectrum_image(20_000.0)
    energy = config.energy_offset_ev + config.energy_step_ev * np.arange(spectra.shape[2])
    figure, axes = sheet(2, 3)
    edge = config.field_of_view_nm
    show(axes[0, 0], frame.image[0], "HAADF", edge)
    total = spectra.sum(axis=2)
    for panel, (low, high) in zip(axes[0, 1:], ((0.45, 0.6), (0.7, 0.85)), strict=True):
        window = (energy >= low) & (energy < high)
        share = 1e3 * spectra[:, :, window].sum(axis=2) / total
        show(panel, share, f"loss, {low:g} to {high:g} eV", edge, cmap="inferno", bar="‰ of the counts")
    mean = spectra.reshape(-1, len(energy)).mean(axis=0)
    axes[1, 0].semilogy(energy, mean / mean.max(), color=INK, linewidth=1)
    axes[1, 0].set(title="mean spectrum", xlabel="energy loss (eV)", ylabel="counts, of the highest")
    axes[1, 0].set_box_aspect(1)
    pair = EelsConfig(
        seed=3, rows=64, cols=96, field_of_view_nm=48.0, arrangement="dimer", shape="cube", distortion=STILL
    )
    cubes = EelsInstrument(pair)
    grid = np.stack(np.meshgrid(np.linspace(-24, 24, 96), np.linspace(-16, 16, 64)), axis=-1).reshape(-1, 2)
    modes = np.sort(np.asarray(cubes.truth()["mode_energies_ev"], dtype=np.float64))
    chosen = modes[modes > 0.3][:1], modes[modes > 0.3][8:9]
    for panel, at in zip(axes[1, 1:], chosen, strict=True):
        loss = cubes.simulator.loss(grid, at).reshape(64, 96)
        show(panel, loss, f"two cubes, loss at {at[0]:.3f} eV", 48.0, cmap="inferno")
    return figure


def afm() -> Figure:
    """Rods that come, turn and order: heights at three times, and how their angles are spread."""
    config = AfmConfig(seed=4, rods=RodsConfig(), distortion=STILL)
    instrument = AfmInstrument(config)
    figure = Figure(figsize=(9.6, 3.1), layout="constrained")
    panels = [figure.add_subplot(1, 4, place) for place in (1, 2, 3)]
    taken = 0
    for panel, until in zip(panels, (1, 20, 120), strict=True):
        while taken < until:
            frame = whole(instrument)
            taken += 1
            if until - taken > 1:
                instrument.simulator.step(10.0)
        bar = "height (nm)" if until == 120 else ""
        show(panel, frame.image[0], f"frame {taken}", 200.0, cmap="afmhot", limits=(-0.5, 4.0), bar=bar)
    truth = instrument.truth()
    rose = figure.add_subplot(1, 4, 4, projection="polar")
    for frame_number, colour in ((0, "0.6"), (taken - 1, "#b2182b")):
        angle = np.asarray(truth["rod_angle_rad"])[np.asarray(truth["rod_frame"]) == frame_number]
        both = np.concatenate([angle, angle + math.pi])
        share, edges = np.histogram(both % (2 * math.pi), bins=36, range=(0, 2 * math.pi))
        rose.stairs(share / max(share.sum(), 1), edges, color=colour, label=f"frame {frame_number + 1}")
    rose.set_title("truth: angles of the rods")
    rose.set_yticklabels([])
    rose.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=7, ncols=2, frameon=False)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "stem": stem,
    "kinetics": kinetics,
    "structures": structures,
    "pfm": pfm,
    "diffraction": diffraction,
    "eels": eels,
    "afm": afm,
}
