"""The pictures of the report that show distortion, the columns' motion, and strain."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import msgspec
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deploy.figures import BLUE, GREEN, GREY, ORANGE, RED, STYLE, draw_scale_bar, limits_of, new_figure
from deploy.session import DistortionFigures
from models.trajectories import TrajectorySummary
from streamer.messages import Distortion, ScanGeometry, StrainMap

Float64 = NDArray[np.float64]
MAP_PX = 512  # every row of a usual frame, because odd ones may be scanned the other way
SIGNED, UNSIGNED = "PuOr", "cividis"


def distortion_figure(distortion: Distortion, raster: ScanGeometry) -> Figure:
    """Draw how far from its place each pixel was recorded, along both axes, with its sd.

    Parameters
    ----------
    distortion
        Of one frame; the offsets that rows have of their own are drawn beside the maps, not in them.
    raster
        Of the frame as acquired.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 3.1)
        along, across, sd, rows = figure.subplots(1, 4, width_ratios=(1, 1, 1.2, 0.8))
        (slow_px, fast_px), sd_px = _over_the_field(distortion)
        # Not its extremes: fly-back at the very edge would hide all else.
        most = max(float(np.percentile(np.abs((slow_px, fast_px)), 99)), 0.01)
        _show_map(along, fast_px, raster, "along the rows (fast axis)", SIGNED, (-most, most))
        drawn = _show_map(across, slow_px, raster, "across them (slow axis)", SIGNED, (-most, most))
        both = figure.colorbar(
            drawn, ax=(along, across), label="displacement / px", shrink=0.85, pad=0.02, extend="both"
        )
        both.minorticks_off()
        drawn = _show_map(sd, sd_px, raster, "standard deviation", UNSIGNED, (0, max(sd_px.max(), 0.01)))
        figure.colorbar(drawn, ax=sd, label="along one axis / px", shrink=0.85, pad=0.03)
        _draw_rows(rows, distortion)
        return figure


def _over_the_field(distortion: Distortion) -> tuple[Float64, Float64]:
    """Say the displacement without the rows' own offsets, ``(2, h, w)``, and its sd, ``(h, w)``."""
    smooth = msgspec.structs.replace(distortion, row_offset_px=np.zeros_like(distortion.row_offset_px))
    rows, cols = (np.linspace(0, size - 1, min(size, MAP_PX)).round() for size in distortion.shape)
    places = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    sd = np.sqrt((smooth.sd_at(places) ** 2).mean(axis=1))
    return smooth.at(places).T.reshape(2, len(rows), len(cols)), sd.reshape(len(rows), len(cols))


def _show_map(
    axes: Axes,
    values: Float64 | NDArray[np.float32],
    raster: ScanGeometry,
    title: str,
    colours: str,
    limits: tuple[float, float],
) -> ScalarMappable:
    """Draw values over the field of a raster, however coarse they are."""
    rows, cols = raster.shape
    height_nm, width_nm = raster.pixel_size_nm
    image = axes.imshow(
        values,
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=(-0.5, cols - 0.5, rows - 0.5, -0.5),
        interpolation="nearest",
        aspect=height_nm / width_nm,
    )
    axes.set_title(title)
    axes.set_axis_off()
    draw_scale_bar(axes, raster)
    return image


def _draw_rows(axes: Axes, distortion: Distortion) -> None:
    numbers = np.arange(distortion.shape[0])
    slow, fast = distortion.row_offset_px
    for offsets, name, colour in ((fast, "along", BLUE), (slow, "across", ORANGE)):
        axes.plot(offsets, numbers, color=colour, linewidth=0.6, label=name)
    # Room beside the lines, so that the legend hides none.
    most = 1.1 * max(float(np.abs(distortion.row_offset_px).max()), 0.01)
    axes.set(title="single rows", xlabel="offset / px", ylabel="row")
    axes.set(xlim=(-most, most), ylim=(numbers[-1] + 0.5, -0.5))
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, handlelength=1.0)


def course_figure(frames: Sequence[DistortionFigures]) -> Figure:
    """Draw the distortion, and what is left of it, over the frames.

    Parameters
    ----------
    frames
        In order, at least one; crosses mark those with a flag.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 2.9)
        size, left = figure.subplots(1, 2)
        numbers = [one.number for one in frames]
        flagged = [one.number for one in frames if one.flags]
        few = "." if len(frames) < 20 else ""

        def draw(axes: Axes, values: list[float], name: str, colour: str) -> None:
            if not np.isfinite(values).any():  # a name without a line is looked for in vain
                return
            axes.plot(numbers, values, color=colour, linewidth=1.2, marker=few, label=name)

        draw(size, [one.rms_px for one in frames], "whole displacement", BLUE)
        draw(size, [one.row_offset_px for one in frames], "of single rows", GREEN)
        draw(left, [one.residual_px for one in frames], "left at places held out", ORANGE)
        draw(left, [one.sd_px for one in frames], "standard deviation", GREY)
        for axes, title in ((size, "distortion found"), (left, "what is left, along one axis")):
            if flagged:
                marks = np.zeros(len(flagged))
                axes.plot(flagged, marks, "x", color=RED, markersize=4, clip_on=False, label="flagged")
            axes.set(title=title, xlabel="frame", ylabel="root mean square / px")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def motion_figure(summary: TrajectorySummary) -> Figure:
    """Draw the columns' motion before and after the correction: by component, common and local."""
    with mpl.rc_context(STYLE):
        figure = new_figure(7.6, 2.7)
        ratios, parts = figure.subplots(1, 2, width_ratios=(1.5, 1))
        motions = (("before", summary.before, GREY), ("after", summary.after, BLUE))
        for place, (name, motion, colour) in enumerate(motions):
            numbers = np.arange(1, len(motion.explained_variance_ratio) + 1)
            ratios.bar(
                numbers + 0.38 * (place - 0.5),
                100 * motion.explained_variance_ratio,
                0.36,
                color=colour,
                label=name,
            )
            heights = np.sqrt([motion.common_px2, motion.local_px2])
            bars = parts.bar(np.arange(2) + 0.38 * (place - 0.5), heights, 0.36, color=colour)
            parts.bar_label(bars, fmt="%.2f", fontsize=7.5)
        ratios.set(title="principal components", xlabel="component", ylabel="explained variance / %")
        ratios.legend(fontsize=7.5)
        parts.set(title="the columns' motion", ylabel="root mean square / px")
        parts.set_xticks([0, 1], ["common to many", "of single ones"])
        return figure


def strain_figure(strain: StrainMap) -> Figure:
    """Draw the strain and the rotation of the specimen above their standard deviations."""
    with mpl.rc_context(STYLE):
        figure = new_figure(11.0, 5.0)
        upper, lower = figure.subplots(2, 4)
        values = (*(100 * strain.strain), 1000 * strain.rotation_rad)
        sds = (*(100 * strain.strain_sd), 1000 * strain.rotation_sd_rad)
        # One scale for the three components: what is large in one must look it beside the others.
        limits = [_about_zero(np.stack(values[:3]))] * 3 + [_about_zero(values[3])]
        highest = [max(float(np.nanmax(sds[:3])), 1e-6)] * 3 + [max(float(np.nanmax(sds[3])), 1e-6)]
        for place, name in enumerate(("strain xx", "strain yy", "strain xy", "rotation")):
            unit = "%" if place < 3 else "mrad"
            for axes, map_, title, colours, span in (
                (upper[place], values[place], name, SIGNED, limits[place]),
                (lower[place], sds[place], "its sd", UNSIGNED, (0.0, highest[place])),
            ):
                drawn = _show_map(axes, map_, strain.geometry, title, colours, span)
                if place >= 2:
                    figure.colorbar(drawn, ax=axes, label=unit, shrink=0.85, pad=0.03)
        return figure


def _about_zero(values: NDArray[np.float32]) -> tuple[float, float]:
    low, high = limits_of(values, 0.2, 99.8)
    most = max(abs(low), abs(high), 1e-6)
    return (-most, most)
