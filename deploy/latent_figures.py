"""Pictures of what latents say of a session: over the field, through time, class by class, angle by angle.

Angles have a cyclic map of colours, and as many turns as their content has symmetry; where the encoder
does not know an angle, its point is small and grey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from numpy.typing import NDArray

from deploy import figures
from deploy.figures import BLUE, GREY, ORANGE, RED, STYLE, limits_of, new_figure, typical_spacing
from deploy.latent_course import Kept, Seen, Words
from models.read_outs import (
    NOVEL,
    Order,
    angle_density,
    density_against_time,
    kernel_width,
    transition_probability,
)
from streamer.messages import Latents, ScanGeometry

Array = NDArray[Any]

MOST_MAPS = 3  # latents that are shown one by one: more are seldom in use, and make the page long
# Of Okabe and Ito, in an order that keeps neighbours apart; a class beyond the eighth begins anew.
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#444444")
_CIRCLE = "twilight_shifted"
_KNOWN = 0.5  # rad: an angle whose sd is larger than this part of its period is not known


def over_the_field(latents: Latents, words: Words) -> Figure:
    """Draw each latent, the angle and the novelty where the windows lie.

    Parameters
    ----------
    latents
        Of one frame, or of the patterns of a scan put together, with at least one window.
    words
        What the windows are cut around; its symmetry is that of the angle.
    """
    shown = min(latents.mean.shape[1], MOST_MAPS)
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 11.0 / (shown + 2) - 0.05)
        panels = figure.subplots(1, shown + 2)
        for number in range(shown):
            dots = _field(panels[number], latents, latents.mean[:, number], "viridis")
            panels[number].set_title(f"latent {number + 1}")
            figure.colorbar(dots, ax=panels[number], shrink=0.75, pad=0.02)
        draw_angles(figure, panels[shown], latents, words.symmetry)
        _novelty(figure, panels[shown + 1], latents)
        return figure


def _field(axes: Axes, latents: Latents, values: Array, colours: Any, limits: Any = None) -> ScalarMappable:
    low, high = limits or limits_of(values)
    dots = axes.scatter(
        latents.positions_px[:, 1],
        latents.positions_px[:, 0],
        c=values,
        s=_size(latents),
        cmap=colours,
        vmin=low,
        vmax=high,
        linewidths=0,
    )
    _frame(axes, latents.geometry)
    return dots


def _size(latents: Latents) -> float:
    """Choose a size of dots that nearly touch, in points squared."""
    spacing = typical_spacing(latents.positions_px) / latents.geometry.shape[1] * 2.1 * 72
    return float(np.clip(0.8 * spacing, 1.5, 14.0)) ** 2


def _frame(axes: Axes, geometry: ScanGeometry) -> None:
    rows, cols = geometry.shape
    height_nm, width_nm = geometry.pixel_size_nm
    axes.set(xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[], facecolor="#f4f4f4")
    axes.set_aspect(height_nm / width_nm)
    figures.draw_scale_bar(axes, geometry)


def draw_angles(figure: Figure, axes: Axes, latents: Latents, symmetry: int) -> None:
    """Colour points by their angle; those whose angle is not known are small and grey."""
    period = 2 * math.pi / symmetry
    angle = np.mod(latents.angle_rad, period)
    known = latents.angle_sd_rad < _KNOWN * period / (2 * math.pi)
    rows, cols = latents.positions_px.T
    axes.scatter(cols[~known], rows[~known], color="#bbbbbb", s=_size(latents) / 8, linewidths=0)
    axes.scatter(
        cols[known],
        rows[known],
        c=angle[known],
        s=_size(latents),
        cmap=_CIRCLE,
        vmin=0,
        vmax=period,
        linewidths=0,
    )
    _frame(axes, latents.geometry)
    axes.set_title("angle")
    scale = ScalarMappable(Normalize(0, math.degrees(period)), _CIRCLE)
    bar = figure.colorbar(scale, ax=axes, shrink=0.75, pad=0.02, format="%g°")
    bar.set_ticks(list(np.linspace(0, math.degrees(period), 5)))


def _novelty(figure: Figure, axes: Axes, latents: Latents) -> None:
    dots = _field(axes, latents, np.clip(latents.novelty, 0, 2 * NOVEL), "magma_r", (0.0, 2 * NOVEL))
    axes.set_title(f"novelty (unusual above {NOVEL:g})")
    figure.colorbar(dots, ax=axes, shrink=0.75, pad=0.02)


# -- classes ---------------------------------------------------------------------------------------------


def classes_figure(
    latents: Latents, class_N: Array, seen: Sequence[Seen], transitions: Array, start_s: float
) -> Figure:
    """Draw the classes over the field, how many there were in time, and the transitions between them.

    Parameters
    ----------
    latents, class_N
        Of the last frame, and the class of each window, -1 for undecided.
    seen
        Every frame, for the counts in time.
    transitions
        Shape ``(k, k)``, from the row's class to the column's.
    start_s
        Clock at which time begins.
    """
    present = np.flatnonzero(
        sum(one.classes for one in seen) + np.bincount(class_N[class_N >= 0], minlength=len(transitions))
    )
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 3.6)
        field, course, matrix = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
        for one in (-1, *present):
            here = class_N == one
            field.scatter(
                latents.positions_px[here, 1],
                latents.positions_px[here, 0],
                color=_class_colour(int(one)),
                s=_size(latents),
                linewidths=0,
            )
        _frame(field, latents.geometry)
        field.set_title(f"classes in frame {latents.number}")
        _counts(course, seen, present, start_s)
        _transitions(figure, matrix, transitions, present)
        return figure


def _class_colour(one: int) -> str:
    return "#cfcfcf" if one < 0 else CLASS_COLOURS[one % len(CLASS_COLOURS)]


def _counts(axes: Axes, seen: Sequence[Seen], present: Array, start_s: float) -> None:
    at_s = np.array([one.acquired_at_s for one in seen]) - start_s
    counts = np.array([one.classes for one in seen])
    for one in present:
        style: Any = {"color": _class_colour(int(one)), "label": f"class {one}"}
        axes.plot(at_s, counts[:, one], linewidth=1.3, marker="." if len(at_s) < 30 else "", **style)
    axes.set(xlabel="time / s", ylabel="windows", title="how many of each")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, ncols=2)


def _transitions(figure: Figure, axes: Axes, transitions: Array, present: Array) -> None:
    """Colour by the probability from one frame to the next, and write how often it was seen."""
    counts = transitions[np.ix_(present, present)]
    probability = transition_probability(counts)
    low = 1e-4
    image = axes.imshow(
        np.where(probability > 0, np.maximum(probability, low), np.nan),
        cmap="cividis",
        norm=LogNorm(low, 1.0),
    )
    for row in range(len(present)):
        for col in range(len(present)):
            bright = probability[row, col] > 0.03
            axes.text(
                col,
                row,
                f"{counts[row, col]:,}",
                ha="center",
                va="center",
                fontsize=7 if len(present) < 7 else 5.5,
                color="black" if bright or not counts[row, col] else "white",
            )
    names = [str(one) for one in present]
    axes.set_xticks(range(len(present)), names)
    axes.set_yticks(range(len(present)), names)
    axes.set(xlabel="class in the next frame", ylabel="class in a frame", title="transitions")
    figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, label="probability a frame")


# -- through time ----------------------------------------------------------------------------------------

TIMES_SHOWN, VALUES_SHOWN = 160, 120


def densities_figure(kept: Sequence[Kept], start_s: float) -> Figure:
    """Draw the kernel density of each latent against time, with its mean.

    Parameters
    ----------
    kept
        At least two frames with windows.
    start_s
        Clock at which time begins.
    """
    at_s = np.array([one.acquired_at_s for one in kept]) - start_s
    shown = min(kept[0].mean.shape[1], MOST_MAPS)
    spread_s = max(float(np.median(np.diff(at_s))), float(np.ptp(at_s)) / TIMES_SHOWN, 1e-9)
    times = np.linspace(at_s[0], at_s[-1], TIMES_SHOWN)
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 2.9)
        for axes, number in zip(np.atleast_1d(figure.subplots(1, shown)), range(shown), strict=True):
            values = [one.mean[:, number] for one in kept]
            low, high = _grid_limits(np.concatenate(values))
            grid = np.linspace(low, high, VALUES_SHOWN)
            width = max(kernel_width(np.concatenate(values)), (high - low) / VALUES_SHOWN)
            density = density_against_time(at_s, values, times, grid, time_sd_s=spread_s, value_sd=width)
            image = axes.imshow(
                np.sqrt(density.T),
                origin="lower",
                aspect="auto",
                cmap="cividis",
                extent=(times[0], times[-1], low, high),
            )
            means = [float(one.mean()) if len(one) else math.nan for one in values]
            axes.plot(at_s, means, color="white", linewidth=1.0)
            axes.set(
                xlabel="time / s", ylabel=f"latent {number + 1}", title=f"latent {number + 1} against time"
            )
            axes.set_ylim(low, high)
            figure.colorbar(image, ax=axes, pad=0.02, label="root of the density")
        return figure


def _grid_limits(values: Array) -> tuple[float, float]:
    low, high = limits_of(values, 0.1, 99.9)
    room = 0.1 * (high - low)
    return low - room, high + room


def trajectories_figure(kept: Sequence[Kept], tracks: Sequence[int], start_s: float) -> Figure:
    """Draw the ways of single atoms through the plane of the first two latents, and against time.

    Parameters
    ----------
    kept
        Frames in order.
    tracks
        Of the atoms to be shown, at most five.
    start_s
        Clock at which time begins.
    """
    everything = np.concatenate([one.mean for one in kept])
    second = 1 if everything.shape[1] > 1 else 0
    at_s = np.array([one.acquired_at_s for one in kept]) - start_s
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 3.8)
        plane, course = figure.subplots(1, 2, width_ratios=(1, 1.6))
        plane.hexbin(everything[:, 0], everything[:, second], gridsize=50, cmap="Greys", bins="log", mincnt=1)
        for place, track in enumerate(tracks):
            way, when = way_of(kept, track)
            colour = CLASS_COLOURS[place % len(CLASS_COLOURS)]
            plane.plot(way[:, 0], way[:, second], color=colour, linewidth=1.0, marker=".", markersize=3)
            plane.plot(*way[0, [0, second]], color=colour, marker="o", markersize=6, markeredgecolor="black")
            course.plot(
                at_s[when], way[:, 0], color=colour, linewidth=1.2, marker=".", markersize=3, label=f"{track}"
            )
        plane.locator_params(nbins=5)
        plane.set(xlabel="latent 1", ylabel=f"latent {second + 1}", title="ways through the latent plane")
        course.set(xlabel="time / s", ylabel="latent 1", title="the same against time")
        course.legend(
            title="track", fontsize=7, title_fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5)
        )
        return figure


def way_of(kept: Sequence[Kept], track: int) -> tuple[Array, Array]:
    """Follow one track: its latents, shape ``(m, z)``, and in which of the frames it was seen, ``(m,)``."""
    rows, frames = [], []
    for place, one in enumerate(kept):
        here = np.flatnonzero(one.track == track)
        if len(here):
            rows.append(one.mean[here[0]])
            frames.append(place)
    return np.array(rows), np.array(frames)


def liveliest_tracks(kept: Sequence[Kept], most: int = 5, least_frames: int = 3) -> list[int]:
    """Choose the atoms whose latents wandered most, against how far those of all atoms lie apart.

    Wandering is the distance between the medians of the first and of the last third of the way: noise from
    frame to frame does not count.

    Returns
    -------
    tracks
        The liveliest first; of atoms that were seen in at least so many of the frames.
    """
    if not kept:
        return []
    frames = np.concatenate([np.full(len(one.track), place) for place, one in enumerate(kept)])
    tracks = np.concatenate([one.track for one in kept])
    mean = np.concatenate([one.mean for one in kept])
    scale = mean.std(axis=0) + 1e-12
    order = np.lexsort((frames, tracks))
    tracks, mean = tracks[order], mean[order] / scale
    names, starts, counts = np.unique(tracks, return_index=True, return_counts=True)
    wandered = []
    for name, start, count in zip(names, starts, counts, strict=True):
        if name >= 0 and count >= max(least_frames, len(kept) // 3):
            third = max(1, count // 3)
            way = mean[start : start + count]
            apart = np.median(way[-third:], axis=0) - np.median(way[:third], axis=0)
            wandered.append((float(np.linalg.norm(apart)), int(name)))
    return [name for _, name in sorted(wandered, reverse=True)[:most]]


# -- averages and angles ---------------------------------------------------------------------------------


def order_figure(
    at_s: Array, orders: Sequence[Order], seen: Sequence[Seen], start_s: float, truth: Array | None
) -> Figure:
    """Draw the order of rods or walls in time: parameter, director, and how many there were.

    Parameters
    ----------
    at_s, orders
        Clock and order of each frame that is shown, shape ``(frames,)``.
    seen
        Every frame, for how many there were.
    start_s
        Clock at which time begins.
    truth
        True order parameter and director of the frames that are shown, shape ``(frames, 2)``; None where
        not known.
    """
    at_s = at_s - start_s
    found = np.array([(one.parameter, one.director_rad) for one in orders])
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 2.7)
        parameter, director, number = figure.subplots(1, 3)
        if truth is not None:
            parameter.plot(at_s, truth[:, 0], color="black", linewidth=2.6, alpha=0.25, label="true")
            director.plot(at_s, _half_turn_deg(truth[:, 1]), ".", color="black", markersize=9, alpha=0.25)
        parameter.plot(at_s, found[:, 0], color=BLUE, linewidth=1.3, label="found")
        parameter.set(xlabel="time / s", ylabel="order parameter", ylim=(0, 1), title="order parameter")
        parameter.legend(fontsize=7.5)
        director.plot(at_s, _half_turn_deg(found[:, 1]), ".", color=ORANGE, markersize=4)
        director.set(xlabel="time / s", ylabel="angle / °", ylim=(-92, 92), title="director")
        director.set_yticks([-90, -45, 0, 45, 90])
        all_s = np.array([one.acquired_at_s for one in seen]) - start_s
        number.plot(all_s, [one.windows for one in seen], color=GREY, linewidth=1.3, label="encoded")
        number.plot(all_s, [one.novel for one in seen], color=RED, linewidth=1.0, label="novel")
        number.set(xlabel="time / s", ylabel="how many", title="how many")
        number.set_ylim(bottom=0)
        number.legend(fontsize=7.5)
        return figure


def _half_turn_deg(angle_rad: Array) -> Array:
    return np.asarray(np.rad2deg(np.mod(angle_rad + np.pi / 2, np.pi) - np.pi / 2))


def angles_figure(angle_rad: Array, first_rad: Array | None) -> Figure:
    """Draw how angles of walls or rods are spread, on the circle; both ends of a line count as one.

    Parameters
    ----------
    angle_rad
        Of the last frame, shape ``(n,)``; from x towards y, clockwise on the screen.
    first_rad
        Of the first frame; None to leave it out.
    """
    grid = np.linspace(0, 2 * np.pi, 361)
    with mpl.rc_context(STYLE):
        figure = new_figure(4.6, 4.2)
        axes = figure.add_subplot(projection="polar")
        assert isinstance(axes, PolarAxes)
        axes.set_theta_direction(-1)  # as on the screen: y grows downwards
        for angles, colour, name in ((first_rad, GREY, "first frame"), (angle_rad, BLUE, "last frame")):
            if angles is None or not len(angles):
                continue
            density = angle_density(angles, grid, sd_rad=np.deg2rad(4))
            axes.plot(grid, density, color=colour, linewidth=1.4, label=name)
        axes.set_rlabel_position(75)
        axes.tick_params(labelsize=7.5)
        axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(-0.15, -0.12))
        return figure
