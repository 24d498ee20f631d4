"""One self-contained page of a training: what was learnt, how well, and what it looks like.

Each section is a function from what was trained to HTML, and says in words when there is nothing to show.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deploy.figures import BLUE, GREY, ORANGE, STYLE, manifold_figure, mosaic, new_figure
from deploy.html_parts import counted, facts, folded, nothing, paragraph, picture, table
from deploy.presets.judging import MEANINGS, angle_errors
from deploy.presets.preset import UNKNOWN, Labelled
from models.checkpoint import ModelCard
from models.encoder import Encoded, Encoder
from models.training import Epoch

Float32 = NDArray[np.float32]

GRID = 9
EXAMPLES = 12
DOTS = 3000
CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 small { font-weight: normal; color: #777; }
img { max-width: 100%; } figure { margin: 1rem 0; } figcaption { color: #555; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; }
thead th { border-bottom: 1px solid #999; } td { vertical-align: top; } th { font-weight: 600; }
.nothing { color: #777; font-style: italic; }
"""


class Trained(NamedTuple):
    """What the page is about.

    Attributes
    ----------
    card, encoder
        As saved.
    shown
        Windows that training never saw, with what they truly show so far as it is known.
    seen
        What the encoder says of them.
    classes, symmetry
        As of ``Preset``; empty where nothing is known.
    history
        Every epoch of the training.
    """

    card: ModelCard
    encoder: Encoder
    shown: Labelled
    seen: Encoded
    classes: tuple[str, ...]
    symmetry: tuple[int, ...]
    history: list[Epoch]


def write_report(path: Path, trained: Trained) -> None:
    """Write the page; it is whole or not there."""
    part = path.with_name(path.name + ".part")
    part.write_text(page(trained), encoding="utf-8")
    part.replace(path)


def page(trained: Trained) -> str:
    """Write the whole page."""
    name = html.escape(trained.card.name)
    body = "".join(
        f"<section><h2>{html.escape(title)}</h2>{section(trained)}</section>" for title, section in SECTIONS
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>probeloop: training of {name}</title><style>{CSS}</style></head>"
        f"<body><h1>probeloop <small>training of {name}</small></h1>{body}</body></html>\n"
    )


# -- the sections ----------------------------------------------------------------------------------


def what(trained: Trained) -> str:
    """Say what was trained on what."""
    card = trained.card
    edge = f"{card.window_nm:g} nm" if card.window_nm else f"{card.window_per_nm:g} 1/nm"
    rows = [
        ("channels", ", ".join(card.channels)),
        ("window", f"{edge}, {card.window_px} pixels"),
        ("normalisation", card.normalisation),
        ("trained on", card.data),
        ("made again by", card.made_by),
        ("simulator", card.simulator or "none: recordings"),
    ]
    architecture = "".join(f"<li>{html.escape(f'{k} = {v}')}</li>" for k, v in card.architecture.items())
    return facts(rows) + folded("architecture and priors", f"<ul>{architecture}</ul>")


def scores(trained: Trained) -> str:
    """List the figures of the card with what each means."""
    rows = [(name, f"{value:.4g}", MEANINGS.get(name, "")) for name, value in trained.card.scores.items()]
    return table(("score", "value", "what it is"), rows) if rows else nothing("Nothing was measured.")


def learning(trained: Trained) -> str:
    """Draw the bound against the epochs."""
    if not trained.history:
        return nothing("No epoch was recorded.")
    said = "Loss per window in training, and of held-out windows; the best held-out weights are kept."
    return picture(learning_figure(trained.history), said)


def examples(trained: Trained) -> str:
    """Draw windows above what the model makes of their latents."""
    chosen = _spread(trained.shown.class_N, EXAMPLES)
    windows = trained.shown.windows_NCHW[chosen]
    drawn = trained.encoder.decode(trained.seen.mean[chosen], trained.seen.angle_rad[chosen])
    upright = trained.encoder.decode(trained.seen.mean[chosen])
    said = "Windows that training never saw; below each what is decoded at its angle, and upright."
    return picture(examples_figure(windows, drawn, upright), said)


def manifold(trained: Trained) -> str:
    """Draw what the decoder makes of the plane of the first two latents."""
    mean = trained.seen.mean
    ends = np.percentile(mean[:, :2], [2, 98], axis=0)
    axes = np.linspace(ends[0], ends[1], GRID).T
    second = axes[1] if len(axes) > 1 else np.zeros(1)
    grid = np.tile(np.median(mean, axis=0), (len(second) * GRID, 1)).astype(np.float32)
    grid[:, 0] = np.tile(axes[0], len(second))
    if len(axes) > 1:
        grid[:, 1] = np.repeat(second, GRID)
    tiles = _side_by_side(trained.encoder.decode(grid))
    tiles = tiles.reshape(len(second), GRID, *tiles.shape[1:])
    others = " Other latents are at their median." if mean.shape[1] > 2 else ""
    return picture(manifold_figure(tiles, axes[0], second), "Decoded over the first two latents." + others)


def latents(trained: Trained) -> str:
    """Draw the latents, coloured by what is truly there."""
    said = "Latents of windows that training never saw"
    known = "" if (trained.shown.class_N == UNKNOWN).all() else ", coloured by what is truly there"
    return picture(latents_figure(trained), f"{said}{known}.")


def angles(trained: Trained) -> str:
    """Draw how far angles are from the truth, in the sds that are said of them."""
    errors = angle_errors(trained.symmetry, trained.seen, trained.shown)
    if not errors:
        return nothing("No true angles are known of these windows.")
    rows = [
        (
            trained.classes[kind],
            f"{np.degrees(np.median(np.abs(one.error_rad))):.2f}°",
            f"{np.degrees(np.median(one.sd_rad)):.2f}°",
            f"{one.concentration:.3f}",
        )
        for kind, one in errors.items()
    ]
    in_sd = np.concatenate([np.abs(one.error_rad) / one.sd_rad for one in errors.values()])
    shown = picture(angle_figure(in_sd), "Angle errors by their sd, against a normal distribution.")
    return shown + table(("class", "median error", "median sd", "|mean exp(i n error)|"), rows)


def novelty(trained: Trained) -> str:
    """Draw the novelty of the preset's own windows against that of noise."""
    own = trained.shown.windows_NCHW
    rng = np.random.default_rng(0)
    noise = rng.normal(own.mean(), own.std(), own[:300].shape).astype(np.float32)
    figure = novelty_figure(trained.seen.novelty, trained.encoder.encode(noise).novelty)
    said = "Novelty of windows of the kind that was trained on, and of white noise; above 3 is called novel."
    return picture(figure, said) + paragraph(f"{counted(len(own), 'window')} of their own kind.")


SECTIONS = (
    ("What was trained", what),
    ("Scores", scores),
    ("Learning curve", learning),
    ("Windows and what is decoded", examples),
    ("Manifold", manifold),
    ("Latents", latents),
    ("Angles", angles),
    ("Novelty", novelty),
)


# -- the pictures ----------------------------------------------------------------------------------


def learning_figure(history: list[Epoch]) -> Figure:
    """Draw each restart's held-out bound and the loss in training."""
    with mpl.rc_context(STYLE):
        figure = new_figure(6.4, 3.0)
        axes = figure.subplots()
        for restart in sorted({epoch.restart for epoch in history}):
            run = [epoch for epoch in history if epoch.restart == restart]
            at = [epoch.number + 1 for epoch in run]
            names = ("", "") if restart else ("in training", "held out")
            axes.plot(at, [epoch.trained for epoch in run], color=GREY, lw=1, label=names[0] or None)
            axes.plot(at, [epoch.held_out for epoch in run], color=BLUE, marker=".", label=names[1] or None)
        axes.set(xlabel="epoch", ylabel="nats per window")
        axes.legend()
        return figure


def examples_figure(windows: Float32, drawn: Float32, upright: Float32) -> Figure:
    """Draw three rows of windows ``(n, channel, h, w)``, each from dark to bright, channels side by side."""
    tiles = np.stack([_side_by_side(row) for row in (windows, drawn, upright)])
    low, high = np.percentile(tiles[0], [1, 99], axis=(1, 2))[:, None, :, None, None]
    tiles = (tiles - low) / np.maximum(high - low, 1e-12)
    with mpl.rc_context(STYLE):
        height, width = tiles.shape[2] * 3, tiles.shape[3] * tiles.shape[1]
        figure = new_figure(9.0, max(1.2, 9.0 * height / width))
        axes = figure.subplots()
        axes.imshow(mosaic(tiles), cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        return figure


def latents_figure(trained: Trained) -> Figure:
    """Draw the first two latents; of a single one its histogram."""
    mean, kinds = trained.seen.mean[:DOTS], trained.shown.class_N[:DOTS]
    colours = mpl.colormaps["tab10"]
    with mpl.rc_context(STYLE):
        figure = new_figure(6.4, 4.6)
        axes = figure.subplots()
        for kind in np.unique(kinds).tolist():
            here = mean[kinds == kind]
            name = "not known" if kind == UNKNOWN else trained.classes[kind]
            colour = GREY if kind == UNKNOWN else colours(kind % 10)
            if mean.shape[1] > 1:
                axes.scatter(here[:, 0], here[:, 1], s=5, color=colour, label=name, linewidths=0)
            else:
                axes.hist(here[:, 0], bins=60, color=colour, label=name, alpha=0.6)
        axes.set(xlabel="first latent", ylabel="second latent" if mean.shape[1] > 1 else "windows")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
        return figure


def angle_figure(errors_in_sd: NDArray[np.float64]) -> Figure:
    """Draw the share of errors within so many sds, against the normal distribution's."""
    from scipy.special import erf

    at = np.linspace(0, 4, 200)
    share = np.searchsorted(np.sort(errors_in_sd), at) / len(errors_in_sd)
    with mpl.rc_context(STYLE):
        figure = new_figure(6.4, 3.0)
        axes = figure.subplots()
        axes.plot(at, share, color=BLUE, label="found")
        axes.plot(at, erf(at / np.sqrt(2)), color=GREY, ls="--", label="as said")
        axes.set(xlabel="error, in sds that are said", ylabel="share of windows within", ylim=(0, 1.02))
        axes.legend()
        return figure


def novelty_figure(own: Float32, noise: Float32) -> Figure:
    """Draw two histograms and the limit of 3."""
    bins = np.linspace(0, 15, 61)
    with mpl.rc_context(STYLE):
        figure = new_figure(6.4, 3.0)
        axes = figure.subplots()
        for values, colour, label in ((own, BLUE, "own kind"), (noise, ORANGE, "noise")):
            share = np.full(len(values), 1 / max(len(values), 1))
            seen = values.clip(0, 15)
            axes.hist(seen, bins.tolist(), weights=share, color=colour, alpha=0.7, label=label)
        axes.axvline(3, color=GREY, ls="--")
        axes.set(xlabel="novelty (beyond 15 at 15)", ylabel="share of windows")
        axes.legend()
        return figure


def _side_by_side(windows_NCHW: Float32) -> Float32:
    """Put the channels of each window beside each other: ``(n, h, channel · w)``."""
    return np.concatenate(list(windows_NCHW.transpose(1, 0, 2, 3)), axis=2)


def _spread(class_N: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Choose windows of all classes by turns, in the order of the classes."""
    kinds = [np.flatnonzero(class_N == kind) for kind in np.unique(class_N)]
    each = -(-most // len(kinds))
    return np.concatenate([kind[:each] for kind in kinds])[:most]
