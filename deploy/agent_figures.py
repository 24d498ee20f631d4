"""Pictures of how an agent decided: its forecasts against what came, what they follow, and its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtr

from agents.pareto import dominated_by
from deploy.figures import BLUE, GREY, RED, STYLE, new_figure, show_image
from deploy.latent_figures import CLASS_COLOURS
from streamer.messages import ScanGeometry

Array = NDArray[Any]
NINETY = 1.64485  # sd to either side that hold 90 %
MOST_FEATURES = 7  # that are told apart; the others are summed up


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Background:
    """What a way is drawn on: a corrected frame, shape ``(row, col)``, and how its pixels lie."""

    image: Array
    geometry: ScanGeometry


def forecasts_figure(
    orders: Array, values: Array, expected: Array, sd: Array, changes: Sequence[int], objective: str
) -> Figure:
    """Draw each forecast with the value that came, and how often an interval held what it was to hold.

    Parameters
    ----------
    orders, values, expected, sd
        Number of the suggestion, what came, what was expected and how far it may be off, shape ``(n,)``.
    changes
        After how many suggestions a person changed something.
    objective
        Its name, with its unit.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 3.6)
        course, share = figure.subplots(1, 2, width_ratios=(2.6, 1))
        surprise = np.abs(values - expected) / sd
        is_inside = surprise <= NINETY
        course.vlines(
            orders, expected - NINETY * sd, expected + NINETY * sd, color="#b8b8b8", linewidth=2.2, zorder=1
        )
        course.scatter(orders, expected, marker="_", s=34, color="#666666", linewidths=1.2, zorder=2)
        for part, colour, name in ((is_inside, BLUE, "within"), (~is_inside, RED, "outside")):
            label = f"measured, {name} the 90 % interval"
            course.scatter(orders[part], values[part], s=15, color=colour, zorder=3, label=label)
        _mark_changes(course, changes)
        course.set(xlabel="suggestion", ylabel=objective, title="expected (bars) and measured (dots)")
        course.legend(fontsize=7.5)
        _draw_coverage(share, surprise)
        return figure


def _draw_coverage(axes: Axes, surprise: Array) -> None:
    """Draw which share of the values came within the interval that was to hold a share of them."""
    told = np.append(2 * ndtr(np.sort(surprise)) - 1, 1.0)
    came = np.append(np.arange(1, len(surprise) + 1) / len(surprise), 1.0)
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=0.9, linestyle=":")
    axes.step(np.append(0.0, told), np.append(0.0, came), where="post", color=BLUE, linewidth=1.5)
    for part in (0.68, 0.9):
        axes.axvline(part, color="#dddddd", linewidth=0.8, zorder=0)
    axes.set(xlabel="interval was to hold", ylabel="and held", title="calibration", xlim=(0, 1), ylim=(0, 1))
    axes.set_xticks((0, 0.5, 0.68, 0.9), ("0", "50 %", "68 %", "90 %"), fontsize=8)
    axes.set_yticks((0, 0.5, 0.68, 0.9, 1), ("0", "50 %", "68 %", "90 %", "100 %"), fontsize=8)


def _mark_changes(axes: Axes, changes: Sequence[int]) -> None:
    for number, after in enumerate(changes):
        label = "a person changed something" if number == 0 else None
        axes.axvline(after + 0.5, color="black", linestyle="--", linewidth=0.9, label=label)


def weights_figure(
    after: Array, panels: Mapping[str, Sequence[dict[str, float]]], last: int, changes: Sequence[int]
) -> Figure:
    """Draw from fit to fit what has how much weight, as layers that fill the height.

    Parameters
    ----------
    after
        After how many suggestions each fit was made, shape ``(fits,)``.
    panels
        By title, the weights of each fit by name; they sum to 1. One, or an even number of them.
    last
        Number of the last suggestion.
    changes
        After how many suggestions a person changed something.
    """
    with mpl.rc_context(STYLE):
        columns = min(len(panels), 2)
        rows = len(panels) // columns
        figure = new_figure(5.5 * columns + 1.0, 2.9 * rows)
        for axes, (title, weights) in zip(
            figure.subplots(rows, columns, squeeze=False).ravel(), panels.items(), strict=True
        ):
            _draw_layers(axes, after, weights, last)
            _mark_changes(axes, [one for one in changes if after[0] <= one < last])
            axes.set(title=title, xlabel="suggestions made", ylabel="share")
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(
                handles[::-1], labels[::-1], fontsize=7.5, loc="center left", bbox_to_anchor=(1.01, 0.5)
            )
        return figure


def _draw_layers(axes: Axes, after: Array, weights: Sequence[dict[str, float]], last: int) -> None:
    names, layers = _layers(weights)
    steps = np.append(after, max(float(last), after[-1] + 1.0))
    axes.stackplot(
        np.repeat(steps, 2)[1:-1],
        np.repeat(layers, 2, axis=1),
        labels=names,
        colors=CLASS_COLOURS[: len(names)],
        linewidth=0,
    )
    axes.set(xlim=(steps[0], steps[-1]), ylim=(0, 1))


def _layers(weights: Sequence[dict[str, float]]) -> tuple[list[str], Array]:
    """Give the features that matter most, the others summed up, and their weights, ``(features, fits)``."""
    names = list(dict.fromkeys(name for one in weights for name in one))
    shares = np.array([[one.get(name, 0.0) for one in weights] for name in names])
    order = np.argsort(-shares.mean(axis=1), kind="stable")
    shown, rest = order[:MOST_FEATURES], order[MOST_FEATURES:]
    told = [names[index] for index in shown]
    if not len(rest):
        return told, shares[shown]
    others = shares[rest].sum(axis=0)
    return [*told, f"{len(rest)} others"], np.concatenate([shares[shown], others[None]])


def way_figure(
    background: Background | None,
    positions_px: Array,
    cloud: Array,
    sites: Array,
    orders: Array,
    axes_names: tuple[str, str],
) -> Figure:
    """Draw the way of an agent over the field and through two latents, in the colours of its order.

    Parameters
    ----------
    background
        None draws the way through the latents alone.
    positions_px
        Of the suggestions in the frame, ``(row, col)``, shape ``(k, 2)``.
    cloud
        Two latents of all that could be chosen, shape ``(n, 2)``.
    sites
        Those of the suggestions, shape ``(k, 2)``.
    orders
        Numbers of the suggestions, shape ``(k,)``.
    axes_names
        What the two latents are called.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(6.2 if background is None else 11.0, 4.6)
        if background is None:
            plane = figure.subplots()
        else:
            field, plane = figure.subplots(1, 2, width_ratios=(1, 1.15))
            show_image(field, background.image, background.geometry, "over the field", brightness=0.5)
            _draw_way(field, positions_px[:, ::-1], orders)
        plane.scatter(cloud[:, 0], cloud[:, 1], s=5, color="#cccccc", linewidths=0)
        _draw_way(plane, sites, orders)
        plane.set(xlabel=axes_names[0], ylabel=axes_names[1], title="through the latents")
        colours = ScalarMappable(_norm(orders), "plasma")
        figure.colorbar(colours, ax=plane, label="suggestion", shrink=0.85, pad=0.02)
        return figure


def trade_off_figure(
    values: Array, signs: tuple[float, float], area: Array, names: tuple[str, str]
) -> Figure:
    """Draw what measurements are worth by two objectives, their front, and how it grew.

    Parameters
    ----------
    values
        By both objectives, in the order of the measurements, shape ``(n, 2)``.
    signs
        -1 where the smaller is the better, else 1.
    area
        That the front dominated after each measurement, as a part of that in the end, shape ``(n,)``.
    names
        Of the objectives, with their units.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 4.0)
        plane, course = figure.subplots(1, 2, width_ratios=(1.3, 1))
        orders = np.arange(1, len(values) + 1)
        plane.scatter(
            *values.T, c=orders, s=26, cmap="plasma", norm=_norm(orders), edgecolors="white", linewidths=0.5
        )
        front = values[dominated_by(values * signs) == 0]
        front = front[np.argsort(front[:, 0], kind="stable")]
        where = "pre" if signs[0] > 0 else "post"
        plane.step(*front.T, where=where, color="black", linewidth=1.2, label="front")
        plane.set(xlabel=names[0], ylabel=names[1], title="worth by both objectives")
        plane.legend(fontsize=7.5)
        figure.colorbar(ScalarMappable(_norm(orders), "plasma"), ax=plane, label="measurement", pad=0.02)
        course.step(orders, area, where="post", color=BLUE, linewidth=1.8)
        course.set(xlabel="measurements", ylabel="part of what is dominated in the end", ylim=(0, 1.05))
        return figure


def _norm(orders: Array) -> Normalize:
    return Normalize(float(orders.min()), max(float(orders.max()), float(orders.min()) + 1))


def _draw_way(axes: Axes, places: Array, orders: Array) -> None:
    faint = float(np.clip(20 / max(len(places), 1), 0.15, 0.7))
    axes.plot(places[:, 0], places[:, 1], color=GREY, linewidth=0.7, alpha=faint, zorder=2)
    axes.scatter(
        places[:, 0],
        places[:, 1],
        c=orders,
        s=26,
        cmap="plasma",
        norm=_norm(orders),
        edgecolors="white",
        linewidths=0.5,
        zorder=3,
    )
