"""The pictures of the report: each function takes numbers and draws one figure.

Colours are safe for the colour-blind (viridis, cividis, and the palette of Okabe and Ito); every
picture of the specimen has a scale bar. Nothing here touches pyplot or any other global state.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from streamer.messages import ScanGeometry

Array = NDArray[Any]
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
DPI = 110
SMOOTHING = 0.15  # sd in spacings between atoms: 0.02 nm in graphene, where a probe's is 0.05 nm
# Without its dark end, which cannot be told from a dark image.
BRIGHT_VIRIDIS = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.3, 1.0, 256)), "bright viridis")
STYLE: Any = {  # matplotlib's own type is the list of all its 300 names
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.edgecolor": "#444444",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a learning curve: best value so far after 1, 2, … measurements."""

    name: str
    values: Array
    colour: str
    low: Array | None = None
    high: Array | None = None


def new_figure(width_in: float, height_in: float) -> Figure:
    """Make an empty figure with our looks; use it inside ``mpl.rc_context(STYLE)``."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_data_uri(figure: Figure) -> str:
    """Write a figure as a PNG inside a ``data:`` address, so that the report is one file."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def limits_of(values: Array, low: float = 1.0, high: float = 99.0) -> tuple[float, float]:
    """Choose colour limits by percentiles, never empty ones."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    bottom, top = (float(v) for v in np.percentile(finite, [low, high]))
    return (bottom, top) if top > bottom else (bottom - 0.5, bottom + 0.5)


def scale_bar_nm(width_nm: float) -> float:
    """Choose a round length (1, 2 or 5 times a power of ten) of at most a quarter of the width."""
    longest = width_nm / 4
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))


def _length_text(length_nm: float) -> str:
    if length_nm >= 1000:
        return f"{length_nm / 1000:g} µm"
    return f"{length_nm:g} nm" if length_nm >= 0.1 else f"{length_nm * 1000:g} pm"


def draw_scale_bar(axes: Axes, geometry: ScanGeometry) -> None:
    """Draw a white bar of a round length into the lower left of an image in pixels."""
    rows, cols = geometry.shape
    length_nm = scale_bar_nm(geometry.field_of_view_nm[0])
    length_px = length_nm / geometry.pixel_size_nm[1]
    left, bottom, thick = 0.04 * cols, 0.955 * rows, 0.012 * rows
    axes.add_patch(
        Rectangle(
            (left, bottom - thick), length_px, thick, facecolor="white", edgecolor="black", linewidth=0.6
        )
    )
    text = axes.text(
        left + length_px / 2,
        bottom - 1.8 * thick,
        _length_text(length_nm),
        color="white",
        ha="center",
        va="bottom",
    )
    text.set_path_effects([withStroke(linewidth=2, foreground="black")])


def show_image(axes: Axes, image: Array, geometry: ScanGeometry, title: str, brightness: float = 1.0) -> None:
    """Draw an image of the specimen in grey with a scale bar; a smaller brightness leaves room for colour."""
    low, high = limits_of(image, 0.5, 99.7)
    high = low + (high - low) / brightness
    height_nm, width_nm = geometry.pixel_size_nm
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect=height_nm / width_nm)
    axes.set(title=title, xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    axes.set_axis_off()
    draw_scale_bar(axes, geometry)


def _ring_size(axes_width_in: float, cols: int, spacing_px: float) -> float:
    """Area, in points squared, of a ring as wide as the spacing between atoms."""
    diameter_points = spacing_px / cols * axes_width_in * 72
    return float(np.clip(diameter_points, 2.5, 30.0)) ** 2


def typical_spacing(positions: Array) -> float:
    """Take the median distance to the nearest neighbour; 0 for fewer than two points."""
    if len(positions) < 2:
        return 0.0
    distances, _ = cKDTree(positions).query(positions, k=2)
    return float(np.median(distances[:, 1]))


def smoothed(image: Array, atoms_px: Array) -> Array:
    """Quieten the noise for the eye, by much less than the width of an atom."""
    return np.asarray(gaussian_filter(image, SMOOTHING * typical_spacing(atoms_px)))


def frames_figure(
    raw: Array | None,
    raw_geometry: ScanGeometry | None,
    corrected: Array,
    geometry: ScanGeometry,
    atoms_px: Array,
    coloured_px: Array,
    colour_by: Array | None,
    many: str = "atoms",
) -> Figure:
    """Draw the raw and the corrected frame side by side, a ring on everything found in the corrected one.

    Parameters
    ----------
    raw, raw_geometry
        The frame as acquired, shape ``(row, col)``; None leaves it out.
    corrected, geometry
        The frame after the correction, shape ``(row, col)``.
    atoms_px
        All atoms found, ``(row, col)``, shape ``(n, 2)``.
    coloured_px, colour_by
        Those that the encoder has seen, and its first latent, shape ``(m,)``.
    many
        What they are called.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 5.4)
        left, right = figure.subplots(1, 2)
        if raw is None or raw_geometry is None:
            left.text(0.5, 0.5, "the raw frame is not in the journal", ha="center", va="center")
            left.set_axis_off()
        else:
            show_image(left, raw, raw_geometry, "as acquired")
        title = f"corrected, with {len(atoms_px):,} {many}"
        show_image(right, smoothed(corrected, atoms_px), geometry, title, brightness=0.6)
        size = _ring_size(4.6, corrected.shape[1], typical_spacing(atoms_px))
        _draw_rings(right, atoms_px, size, "#bbbbbb", 0.5)
        if colour_by is not None and len(colour_by):
            colours = ScalarMappable(Normalize(*limits_of(colour_by, 0.5, 99.5)), BRIGHT_VIRIDIS)
            _draw_rings(right, coloured_px, size, colours.to_rgba(colour_by), 0.9)
            figure.colorbar(colours, ax=right, label="first latent", shrink=0.75, pad=0.02)
        return figure


def _draw_rings(axes: Axes, positions_px: Array, size: float, colours: Any, width: float) -> None:
    axes.scatter(
        positions_px[:, 1],
        positions_px[:, 0],
        s=size,
        facecolors="none",
        edgecolors=colours,
        linewidths=width,
    )


def draw_coloured_rings(
    figure: Figure, axes: Axes, positions_px: Array, values: Array, cols: int, width_in: float
) -> None:
    """Draw a ring on each place of an image of so many columns and inches, coloured by a value."""
    colours = ScalarMappable(Normalize(*limits_of(values, 0.5, 99.5)), BRIGHT_VIRIDIS)
    size = _ring_size(width_in, cols, typical_spacing(positions_px))
    _draw_rings(axes, positions_px, size, colours.to_rgba(values), 0.9)
    figure.colorbar(colours, ax=axes, shrink=0.75, pad=0.02)


def latents_figure(
    mean: Array, positions_px: Array, geometry: ScanGeometry, measured: Array, values: Array, objective: str
) -> Figure:
    """Draw the plane of the first two latents with what was measured in it, and both over the field.

    Parameters
    ----------
    mean
        Shape ``(n, d)``.
    positions_px
        ``(row, col)``, shape ``(n, 2)``.
    measured, values
        Index of each measured atom, and its objective, shape ``(k,)``.
    objective
        Its name, with its unit.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 3.9)
        plane, *fields = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        second = mean[:, 1] if mean.shape[1] > 1 else np.zeros(len(mean))
        plane.scatter(mean[:, 0], second, s=5, color="#b9b9b9", linewidths=0, label="not measured")
        if len(measured):
            dots = plane.scatter(
                mean[measured, 0],
                second[measured],
                c=values,
                s=34,
                cmap="viridis",
                edgecolors="black",
                linewidths=0.5,
                label="measured",
            )
            bar = figure.colorbar(dots, ax=plane, shrink=0.85)
            bar.set_label(objective, fontsize=7.5)
            plane.legend(loc="best", fontsize=7, handletextpad=0.2)
        plane.set(xlabel="first latent", ylabel="second latent", title="latent plane")
        for number, (axes, values_) in enumerate(zip(fields, (mean[:, 0], second), strict=True)):
            _draw_field(
                figure, axes, values_, positions_px, geometry, f"{('first', 'second')[number]} latent"
            )
        return figure


def _draw_field(
    figure: Figure, axes: Axes, values: Array, positions_px: Array, geometry: ScanGeometry, title: str
) -> None:
    low, high = limits_of(values)
    rows, cols = geometry.shape
    size = float(np.clip(0.7 * _ring_size(3.0, cols, typical_spacing(positions_px)), 4.0, 200.0))
    dots = axes.scatter(
        positions_px[:, 1],
        positions_px[:, 0],
        c=values,
        s=size,
        cmap="viridis",
        vmin=low,
        vmax=high,
        linewidths=0,
    )
    height_nm, width_nm = geometry.pixel_size_nm
    axes.set(xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5), title=title, xticks=[], yticks=[])
    axes.set_aspect(height_nm / width_nm)
    for spine in axes.spines.values():
        spine.set_visible(True)
    figure.colorbar(dots, ax=axes, shrink=0.7, pad=0.02)


def manifold_figure(tiles: Array, first: Array, second: Array) -> Figure:
    """Draw what the decoder makes of a grid of latents.

    Parameters
    ----------
    tiles
        Shape ``(len(second), len(first), h, w)``; the second latent grows upwards.
    first, second
        Values of the latents along the grid.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(6.4, 6.4 * max(0.3, len(second) / len(first)))
        draw_manifold(figure.subplots(), tiles, first, second)
        return figure


def draw_manifold(axes: Axes, tiles: Array, first: Array, second: Array) -> None:
    """Draw a grid of decoded windows into axes that say their latents; see ``manifold_figure``."""
    low, high = limits_of(tiles, 0.5, 99.5)
    half_x = (first[1] - first[0]) / 2 if len(first) > 1 else 0.5
    half_y = (second[1] - second[0]) / 2 if len(second) > 1 else 0.5
    extent = (first[0] - half_x, first[-1] + half_x, second[0] - half_y, second[-1] + half_y)
    axes.imshow(
        mosaic(tiles[::-1]),
        extent=extent,
        cmap="cividis",
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set(xlabel="first latent", ylabel="second latent" if len(second) > 1 else "")
    if len(second) == 1:
        axes.set_yticks([])


def mosaic(tiles: Array) -> Array:
    """Lay tiles ``(rows, cols, h, w)`` side by side with a thin gap of NaN between them."""
    rows, cols, h, w = tiles.shape
    padded = np.full((rows, cols, h + 1, w + 1), np.nan, dtype=np.float32)
    padded[:, :, :h, :w] = tiles
    return padded.transpose(0, 2, 1, 3).reshape(rows * (h + 1), cols * (w + 1))[:-1, :-1]


def path_figure(
    corrected: Array,
    geometry: ScanGeometry,
    visited_px: Array,
    values: Array,
    orders: Sequence[int],
    refused_px: Array,
    objective: str,
    scanned_px: Sequence[tuple[int, Array]] = (),
) -> Figure:
    """Draw where it was measured, numbered in order and coloured by value, on the corrected frame.

    Parameters
    ----------
    visited_px, values, orders
        ``(row, col)`` shape ``(k, 2)``, the objective (NaN where there is none), and the number to write.
    refused_px
        Where it was suggested and refused or failed, ``(row, col)``, shape ``(r, 2)``.
    scanned_px
        Number and corners in turn, ``(row, col)``, shape ``(4, 2)``, of what was scanned again.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(7.2, 6.2)
        axes = figure.subplots()
        show_image(axes, corrected, geometry, "path of the measurements")
        # The more legs, the fainter: a hundred of them would hide what they lead to.
        faint = float(np.clip(15 / max(len(visited_px), 1), 0.12, 0.55))
        axes.plot(visited_px[:, 1], visited_px[:, 0], color="white", linewidth=0.6, alpha=faint)
        low, high = limits_of(values, 0, 100)
        if len(visited_px):
            dots = axes.scatter(
                visited_px[:, 1],
                visited_px[:, 0],
                c=np.where(np.isfinite(values), values, low),
                s=46,
                cmap="viridis",
                vmin=low,
                vmax=high,
                edgecolors="white",
                linewidths=0.8,
                zorder=3,
            )
            figure.colorbar(dots, ax=axes, label=objective, shrink=0.8, pad=0.02)
        if len(refused_px):
            axes.scatter(
                refused_px[:, 1],
                refused_px[:, 0],
                marker="x",
                s=26,
                color=RED,
                linewidths=1.3,
                label="refused or failed",
            )
            axes.legend(loc="upper right", facecolor="white", framealpha=0.85, frameon=True, fontsize=8)
        for (row, col), order in zip(visited_px, orders, strict=True):
            _number(axes, order, (col, row), "white")
        for order, corners in scanned_px:
            closed = np.concatenate([corners, corners[:1]])
            axes.plot(closed[:, 1], closed[:, 0], color=ORANGE, linewidth=1.2, alpha=0.8, zorder=2)
            _number(axes, order, (corners[0, 1], corners[0, 0]), ORANGE)
        return figure


def _number(axes: Axes, order: int, place: tuple[float, float], colour: str) -> None:
    """Write the number of a measurement beside its place ``(col, row)``."""
    text = axes.annotate(
        str(order), place, xytext=(4, 4), textcoords="offset points", fontsize=6.5, color=colour, zorder=4
    )
    text.set_clip_on(True)
    text.set_path_effects([withStroke(linewidth=1.6, foreground="black")])


def spectrum_figure(
    energy_ev: Array,
    best: Array,
    typical: Array | None,
    windows: Sequence[tuple[str, float, float, str]],
) -> Figure:
    """Draw the best spectrum, a typical one beside it, and the windows of the objective.

    Parameters
    ----------
    energy_ev
        Energy loss, shape ``(energy,)``.
    best, typical
        Counts, shape ``(energy,)``.
    windows
        ``(name, from_ev, to_ev, colour)``.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 3.2)
        whole, detail = figure.subplots(1, 2, width_ratios=(1.3, 1))
        for axes in (whole, detail):
            for name, start, stop, colour in windows:
                axes.axvspan(start, stop, color=colour, alpha=0.18, linewidth=0, label=name)
            if typical is not None:
                axes.step(
                    energy_ev, typical, where="mid", color=GREY, linewidth=0.9, label="median of the others"
                )
            axes.step(energy_ev, best, where="mid", color=BLUE, linewidth=1.1, label="best")
            axes.set(xlabel="energy loss / eV", ylabel="counts")
        positive = best[best > 0]
        if positive.size and positive.max() > 50 * np.median(positive):
            whole.set_yscale("log")
            whole.set_ylim(bottom=max(0.5, float(positive.min()) / 2))
        whole.set(title="whole spectrum", xlim=(energy_ev[0], energy_ev[-1]))
        _zoom(detail, energy_ev, [best] if typical is None else [best, typical], windows)
        handles, labels = whole.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        whole.legend(unique.values(), unique.keys(), fontsize=7.5)
        return figure


def loop_figure(bias_v: Array, best: Array, typical: Array | None, unit: str) -> Figure:
    """Draw the best hysteresis loop and a typical one, from the first point of the sweep (a dot).

    Parameters
    ----------
    bias_v
        Of the tip, in the order of the sweep, shape ``(n,)``.
    best, typical
        Response, shape ``(n,)``.
    unit
        Of the response.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(6.2, 3.6)
        axes = figure.subplots()
        if typical is not None:
            axes.plot(
                bias_v, typical, ".-", color=GREY, linewidth=0.9, markersize=3, label="median of the others"
            )
        axes.plot(bias_v, best, ".-", color=BLUE, linewidth=1.1, markersize=3, label="best")
        axes.plot(bias_v[:1], best[:1], "o", color=BLUE, markersize=6)
        axes.set(xlabel="bias of the tip / V", ylabel=f"response / {unit}")
        axes.legend(fontsize=7.5)
        return figure


def _zoom(
    axes: Axes, energy_ev: Array, spectra: Sequence[Array], windows: Sequence[tuple[str, float, float, str]]
) -> None:
    if not windows:
        axes.set_visible(False)
        return
    start, stop = min(w[1] for w in windows), max(w[2] for w in windows)
    room = 0.35 * (stop - start)
    inside = (energy_ev >= start - room) & (energy_ev <= stop + room)
    axes.set(title="the windows of the objective", xlim=(start - room, stop + room))
    if inside.any():
        top = max(float(s[inside].max()) for s in spectra)
        axes.set_ylim(0, 1.1 * top if top > 0 else 1.0)


def learning_figure(
    measured: Array, curves: Sequence[Curve], best_possible: float | None, objective: str
) -> Figure:
    """Draw the best value so far against the number of measurements.

    Parameters
    ----------
    measured
        Each value as the agent read it, shape ``(n,)``.
    curves
        The agent's and the baselines'.
    best_possible
        Of all sites, where the truth is known.
    objective
        Its name, with its unit.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(7.6, 4.0)
        axes = figure.subplots()
        axes.scatter(
            np.arange(1, len(measured) + 1),
            measured,
            s=12,
            color="#a0a0a0",
            linewidths=0,
            label="each measurement",
            zorder=1,
        )
        for curve in curves:
            steps = np.arange(1, len(curve.values) + 1)
            axes.step(steps, curve.values, where="post", color=curve.colour, linewidth=1.8, label=curve.name)
            if curve.low is not None and curve.high is not None:
                axes.fill_between(
                    steps, curve.low, curve.high, step="post", color=curve.colour, alpha=0.15, linewidth=0
                )
        if best_possible is not None:
            axes.axhline(best_possible, color="black", linestyle=":", linewidth=1.1, label="best possible")
        axes.set(xlabel="measurements", ylabel=objective, xlim=(0.5, max(2, len(measured)) + 0.5))
        axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return figure


def drift_figure(at_s: Array, drift_nm: Array, sd_nm: Array, truth_nm: Array | None) -> Figure:
    """Draw the drift that was found, against the true one where it is known.

    Parameters
    ----------
    at_s
        Since the first frame, shape ``(frames,)``.
    drift_nm
        As found, ``(x, y)``, shape ``(frames, 2)``.
    sd_nm
        Its standard deviation along one axis, shape ``(frames,)``.
    truth_nm
        As it was, ``(x, y)``, shape ``(frames, 2)``.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 3.0)
        over_time, plane = figure.subplots(1, 2, width_ratios=(2.2, 1))
        for axis, (name, colour) in enumerate((("x", BLUE), ("y", ORANGE))):
            if truth_nm is not None:
                over_time.plot(
                    at_s, truth_nm[:, axis], color="black", linewidth=2.6, alpha=0.25, label=f"true {name}"
                )
            over_time.plot(at_s, drift_nm[:, axis], color=colour, linewidth=1.2, label=f"found {name}")
            over_time.fill_between(
                at_s,
                drift_nm[:, axis] - sd_nm,
                drift_nm[:, axis] + sd_nm,
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
        over_time.set(xlabel="time / s", ylabel="drift / nm", title="drift over time")
        over_time.legend(fontsize=7.5, ncols=2)
        if truth_nm is not None:
            plane.plot(truth_nm[:, 0], truth_nm[:, 1], color="black", linewidth=2.6, alpha=0.25, label="true")
        plane.plot(drift_nm[:, 0], drift_nm[:, 1], color=GREEN, linewidth=1.2, label="found")
        plane.set(xlabel="x / nm", ylabel="y / nm (down)", title="its path")
        plane.set_aspect("equal", adjustable="datalim")
        plane.invert_yaxis()
        plane.legend(fontsize=7.5)
        return figure
