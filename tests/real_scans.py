"""Recordings of real microscopes through the stage, judged by what the stage was not shown.

Where a lattice is seen, every other cell of it is hidden while the scan is learnt, and only the hidden
columns are judged: found anew in the raw and in the corrected image, against the lattice that fits them best.
Where there is none, one channel is learnt from and another one of the same lines is judged: by how
far blocks of its features lie from where the frame before had them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
from numpy.typing import NDArray

from models.distortion_gp import Observations
from simulators.recordings import read_recording
from streamer.messages import Distortion, Frame
from streamer.observers.against_lattice import LatticeReference
from streamer.observers.blocks import block_displacements, comparable
from streamer.observers.lattice import ColumnsSeen, Lattice, LatticeObserver, find_columns, joined
from streamer.observers.two_directions import linearised
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

ABF = Path("stem_abf_stack") / "stem_abf_data_imagestack.hspy"
STM = Path("stm_movie_gr_ni111") / "20141003_24.h5"
PZT = Path("pfm_pzt_pto")
RIM_PX = 12.0  # of the field, where a corrected image may repeat its edge
_SAME_ROWS_PX, _OTHER_COLUMN_PX = 4.0, 8.0  # a column of the stack is about 10 px wide
_STM_SIDE = 105
_STM_PIXEL_NM = 0.05


def data_folder(given: Path | None = None) -> Path | None:
    """Find the folder of recordings: as given, or as ``$PROBELOOP_DATA`` says; None where there is none."""
    named = os.environ.get("PROBELOOP_DATA")
    folder = given or (Path(named) if named else None)
    return folder if folder is not None and folder.is_dir() else None


# -- against a lattice ---------------------------------------------------------------------------------


class HalfBlind(LatticeObserver):
    """Sees the columns of every other cell only; the rest is there to judge by.

    Parameters
    ----------
    hidden
        0 or 1: parity of the cells that it does not see; None sees all.
    """

    def __init__(self, hidden: int | None, *, is_dark: bool) -> None:
        super().__init__(is_dark=is_dark)
        self._hidden = hidden

    def observe(self, image: Float32, to_raw: Callable[[Float64], Float64]) -> Observations | None:
        """Say by how much each column that may be seen is displaced."""
        found = super().observe(image, to_raw)
        if found is None or self.seen is None or self._hidden is None:
            return found
        shown = parity(self.seen.index) != self._hidden
        # Where columns overlap, those hidden are drawn beside the others and tell nothing of their own.
        rest = self.seen.rest and joined(self.seen.rest, unusable(self.seen.part(~shown)))
        self.seen = replace(self.seen.part(shown), rest=rest)
        return Observations(
            positions_px=found.positions_px[shown],
            displacement_px=found.displacement_px[shown],
            variance_px2=found.variance_px2[shown],
            column_sigma_px=found.column_sigma_px,
        )


def unusable(seen: ColumnsSeen) -> ColumnsSeen:
    """Say of columns that none is good."""
    return replace(seen, fits=replace(seen.fits, good=np.zeros_like(seen.fits.good)))


def parity(index: Int64) -> Int64:
    """Colour of each site's cell on a chessboard, ``(n,)``, given indices ``(n, 3)``."""
    return np.asarray((index[:, 0] + index[:, 1]) % 2)


class OnHalf(CorrectDistortion):
    """The stage in ``calibrate``, its lattice observer half blind."""

    def __init__(self, config: CorrectConfig, hidden: int | None, *, is_dark: bool) -> None:
        super().__init__(config)
        self._hidden, self._is_dark = hidden, is_dark
        self.observer = HalfBlind(hidden, is_dark=is_dark)

    def _lattice_of(self, frame: Frame) -> LatticeReference:
        image = frame.image[0]
        self.observer = HalfBlind(self._hidden, is_dark=self._is_dark)
        self.observer.start(image)
        return LatticeReference(image, self.observer)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deviations:
    """Columns of one frame beside the lattice that fits them best, the same ones before and after.

    Attributes
    ----------
    raw, corrected
        The frame as it came and as it left the stage.
    places_px
        On the specimen, ``(row, col)`` in pixels, shape ``(n, 2)``.
    before_px, after_px
        Shape ``(n, 2)``.
    """

    raw: Frame
    corrected: Frame
    places_px: Float64
    before_px: Float64
    after_px: Float64


def lattice_deviations(frames: Sequence[Frame], hidden: int | None, *, is_dark: bool) -> list[Deviations]:
    """Correct frames of a lattice, and say where the judged columns lie before and after."""
    stage = OnHalf(CorrectConfig(mode="calibrate", observer="lattice"), hidden, is_dark=is_dark)
    found = []
    for frame in frames:
        corrected = stage.process(frame)
        assert corrected.registration is not None
        assert corrected.registration.distortion is not None
        lattice, sigma_px = stage.observer.lattice, stage.observer.sigma_px
        assert lattice is not None
        sign = np.float32(-1 if is_dark else 1)
        raw = find_columns(sign * frame.image[0], sigma_px)[0].positions_px
        new = find_columns(sign * corrected.image[0], sigma_px)[0].positions_px
        new = _on_raster(new, corrected, frames[0])
        # Only to know which column is which: what is judged are the places themselves.
        about = raw + corrected.registration.distortion.at(raw) - _drift_px(corrected, frames[0])
        before, after = _by_site(lattice, about, raw, hidden), _by_site(lattice, new, new, hidden)
        sites = sorted(before.keys() & after.keys())
        sites = [site for site in sites if _is_inside(after[site], frame)]
        index = np.array(sites)
        places = np.array([after[site] for site in sites])
        found.append(
            Deviations(
                raw=frame,
                corrected=corrected,
                places_px=places,
                before_px=beside_best_lattice(np.array([before[site] for site in sites]), index),
                after_px=beside_best_lattice(places, index),
            )
        )
    return found


def _on_raster(positions_px: Float64, corrected: Frame, first: Frame) -> Float64:
    """Take places in a corrected image to the raster of the first frame."""
    return first.geometry.to_px(corrected.geometry.to_nm(positions_px))


def _drift_px(corrected: Frame, first: Frame) -> Float64:
    assert corrected.registration is not None
    x, y = corrected.registration.drift_nm
    height_nm, width_nm = first.geometry.pixel_size_nm
    return np.array([y / height_nm, x / width_nm])


Site = tuple[int, int, int]


def _by_site(
    lattice: Lattice, about_px: Float64, places_px: Float64, hidden: int | None
) -> dict[Site, Float64]:
    """Name columns by their sites; those far from all sites, and those that were shown, are left out."""
    index, distance = lattice.index_of(about_px)
    keep = distance < lattice.spacing_px / 3
    if hidden is not None:
        keep &= parity(index) == hidden
    named = {}
    for k in np.flatnonzero(keep)[np.argsort(-distance[keep], kind="stable")]:  # the nearest last: it stays
        row, col, which = index[k].tolist()
        named[row, col, which] = places_px[k]
    return named


def _is_inside(place_px: Float64, frame: Frame) -> bool:
    return bool(np.all((place_px > RIM_PX) & (place_px < np.array(frame.geometry.shape) - 1 - RIM_PX)))


def beside_best_lattice(places_px: Float64, index: Int64) -> Float64:
    """Take off the lattice that fits places ``(n, 2)`` best: vectors, origin, and where its basis lies."""
    shapes = np.column_stack([index[:, :2], index[:, 2, None] == np.unique(index[:, 2])]).astype(np.float64)
    return np.asarray(places_px - shapes @ np.linalg.lstsq(shapes, places_px, rcond=None)[0])


def abf_frames(folder: Path) -> list[Frame]:
    """Frames of the stack of strontium titanate; columns are dark."""
    return [msgspec.structs.replace(frame, channels=("ABF",)) for frame in read_recording(folder / ABF)]


# -- from one channel to another -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repeats:
    """How far features of a judged channel lie from where the frame before had them.

    Attributes
    ----------
    raw, corrected
        The frame as it came and as it left the stage.
    before_px, after_px
        In such frames, shape ``(n, 2)``.
    """

    raw: Frame
    corrected: Frame
    before_px: Float64
    after_px: Float64


def repeated_features(
    frames: Sequence[Frame], config: CorrectConfig, block_px: tuple[int, int], reach_px: float
) -> list[Repeats]:
    """Learn from the first channel of frames, and compare the last channel of each with the frame before.

    ``reach_px`` must stay below half a period where features lie on a lattice.
    """
    stage = CorrectDistortion(config)
    last: tuple[Frame, Frame] | None = None
    found = []
    for frame in frames:
        corrected = stage.process(frame)
        frame = _even_in_place(frame)
        if last is not None:
            before = _apart(frame, last[0], block_px, reach_px)
            after = _apart(corrected, last[1], block_px, reach_px)
            found.append(Repeats(raw=frame, corrected=corrected, before_px=before, after_px=after))
        last = (frame, corrected)
    return found


def _even_in_place(frame: Frame) -> Frame:
    """Take a frame of a resonant axis to the raster of the corrected one, to compare pixels with pixels."""
    if frame.scan_path != "sinusoidal":
        return frame
    return msgspec.structs.replace(frame, image=linearised(frame.image))


def _apart(frame: Frame, before: Frame, block_px: tuple[int, int], reach_px: float) -> Float64:
    """Displacement of blocks of the last channel from one frame to the next, on the specimen, ``(n, 2)``."""
    corner = before.geometry.to_px(frame.geometry.to_nm(np.zeros((1, 2))))[0]
    rows, cols = np.rint(corner).astype(int)
    height, width = frame.geometry.shape
    here = (slice(max(-rows, 0), height - max(rows, 0)), slice(max(-cols, 0), width - max(cols, 0)))
    there = (slice(max(rows, 0), height - max(-rows, 0)), slice(max(cols, 0), width - max(-cols, 0)))
    images = (np.ascontiguousarray(frame.image[-1][here]), np.ascontiguousarray(before.image[-1][there]))
    return block_displacements(*images, block_px, reach_px=reach_px).displacement_px


def stm_frames(folder: Path, first: int = 8, count: int = 24) -> list[Frame]:
    """Forward and backward images of upward scans; each row without its median, adsorbates cut off."""
    side = _STM_SIDE
    with h5py.File(folder / STM) as h5:
        scans = np.roll(h5["data"][()], 35).reshape(-1, 2 * side, 2 * side).astype(np.float32)
    scans -= np.median(scans, axis=-1, keepdims=True)
    limit = 8 * 1.48 * np.median(np.abs(scans))
    scans = np.clip(scans, -limit, limit)
    pairs = np.stack([scans[:, :side, :side], scans[:, :side, side:][:, :, ::-1]], axis=1)
    recorded = list(read_recording(folder / STM, _STM_PIXEL_NM))[first : first + count]
    return [
        msgspec.structs.replace(
            frame, image=np.ascontiguousarray(pairs[frame.number]), channels=("forward", "backward")
        )
        for frame in recorded
    ]


def pzt_frames(
    folder: Path, learn: str = "AmplitudeRetrace", judge: str = "DeflectionRetrace"
) -> list[Frame]:
    """Three PFM scans of one area, each with the channel to learn from and the one to judge."""
    frames = [next(iter(read_recording(folder / PZT / f"PZT_final000{n}.h5"))) for n in (1, 2, 3)]
    chosen = []
    for number, frame in enumerate(frames):
        images, names = comparable(frame.image, frame.channels)
        picked = np.stack([images[names.index(learn)], images[names.index(judge)]])
        chosen.append(
            msgspec.structs.replace(
                frame, image=picked, channels=(learn, judge), number=number, geometry=frames[0].geometry
            )
        )
    return chosen


# -- figures and pictures ------------------------------------------------------------------------------

Figures = dict[str, Any]
NAMES = ("real_abf_ratio", "real_stm_ratio", "real_pzt_ratio")


def measure(folder: Path, pictures: Path | None = None) -> Figures:
    """Ratios after to before, of what was held out, all frames of a recording together.

    ``…_naive`` is judged by the very columns that were learnt from. ``…_beyond_rigid`` leaves out how far
    each frame lies from the one before as a whole. ``…_shared`` is that of what judged columns on the same
    rows have in common, ``…_part_shared`` how much of the square that is before: the rest belongs to
    single columns: noise of their pixels, and what rows out of order do to the shape of each. ``…_rises``
    counts frames that got worse.
    """
    figures: Figures = {}
    stack = abf_frames(folder)
    hidden = [one for half in (0, 1) for one in lattice_deviations(stack, half, is_dark=True)]
    everything = lattice_deviations(stack, None, is_dark=True)
    figures |= _ratios("real_abf", hidden)
    figures["real_abf_ratio_naive"] = _ratio(everything)
    before, after = (
        float(np.mean([_shared_px2(one, of) for one in hidden])) for of in ("before_px", "after_px")
    )
    figures["real_abf_part_shared"] = round(before / figures["real_abf_before_px"] ** 2, 3)
    figures["real_abf_ratio_shared"] = round(math.sqrt(max(after, 0.0) / before), 4)
    movie = repeated_features(stm_frames(folder), CorrectConfig(mode="drift-only"), (26, 21), 3.0)
    figures |= _ratios("real_stm", movie) | {"real_stm_ratio_beyond_rigid": _ratio(movie, _varying)}
    scans = repeated_features(pzt_frames(folder), CorrectConfig(mode="drift-only"), (48, 48), 8.0)
    figures |= _ratios("real_pzt", scans) | {"real_pzt_ratio_beyond_rigid": _ratio(scans, _varying)}
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        _draw(everything[1], pictures / "abf.png")
        _draw(movie[10], pictures / "stm.png")
        _draw(scans[0], pictures / "pzt.png")
    return figures


def _same(vectors: Float64) -> Float64:
    return vectors


def _varying(vectors: Float64) -> Float64:
    return np.asarray(vectors - np.median(vectors, axis=0))


def _ratio(seen: Sequence[Deviations] | Sequence[Repeats], of: Callable[[Float64], Float64] = _same) -> float:
    before, after = [of(one.before_px) for one in seen], [of(one.after_px) for one in seen]
    return round(rms(np.concatenate(after)) / rms(np.concatenate(before)), 4)


def _ratios(name: str, seen: Sequence[Deviations] | Sequence[Repeats]) -> Figures:
    return {
        f"{name}_ratio": _ratio(seen),
        f"{name}_before_px": round(rms(np.concatenate([one.before_px for one in seen])), 3),
        f"{name}_after_px": round(rms(np.concatenate([one.after_px for one in seen])), 3),
        f"{name}_rises": sum(rms(one.after_px) > rms(one.before_px) for one in seen),
        f"{name}_frames": len(seen),
    }


def _shared_px2(one: Deviations, of: str) -> float:
    """Mean product of the deviations of two columns on about the same rows, px²."""
    vectors: Float64 = getattr(one, of)
    apart = np.abs(one.places_px[:, None] - one.places_px[None])
    first, second = np.nonzero((apart[..., 0] < _SAME_ROWS_PX) & (apart[..., 1] > _OTHER_COLUMN_PX))
    return float(np.mean(np.sum(vectors[first] * vectors[second], axis=1)))


def rms(vectors_px: Float64) -> float:
    """RMS length of vectors ``(n, 2)``."""
    return float(np.sqrt(np.mean(np.sum(vectors_px**2, axis=1))))


def _draw(one: Deviations | Repeats, path: Path) -> None:
    """Draw a frame before and after, what was taken out, and what is left of the lattice's deviations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(20, 5.4), constrained_layout=True)
    for axis, frame, title in ((axes[0], one.raw, "as recorded"), (axes[1], one.corrected, "corrected")):
        low, high = np.percentile(frame.image[-1], (1, 99))
        axis.imshow(frame.image[-1], cmap="gray", vmin=low, vmax=high)
        axis.set_title(title)
    assert one.corrected.registration is not None
    assert one.corrected.registration.distortion is not None
    _arrows(axes[2], one.corrected.registration.distortion)
    if isinstance(one, Deviations):
        _map_of(axes[3], one)
    else:
        axes[3].hist(
            [np.hypot(*one.before_px.T), np.hypot(*one.after_px.T)], bins=20, label=("before", "after")
        )
        axes[3].set(title="features against the frame before", xlabel="distance, px", ylabel="blocks")
        axes[3].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _arrows(axis: Any, distortion: Distortion) -> None:
    """Draw the displacement field without its mean, enlarged."""
    rows, cols = (np.linspace(0, size - 1, 18) for size in distortion.shape)
    places = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    field = distortion.at(places)
    field -= field.mean(axis=0)
    axis.quiver(places[:, 1], places[:, 0], field[:, 1], field[:, 0], angles="xy", width=0.003)
    axis.set(title=f"displacement, RMS {rms(field):.2f} px", aspect="equal")
    axis.set_xlim(0, distortion.shape[1])
    axis.set_ylim(distortion.shape[0], 0)


def _map_of(axis: Any, one: Deviations) -> None:
    """Draw how far columns lie from the best lattice, before and after, ten times enlarged."""
    for vectors, colour, label in ((one.before_px, "tab:red", "before"), (one.after_px, "tab:blue", "after")):
        axis.quiver(
            *one.places_px.T[::-1],
            *vectors.T[::-1],
            color=colour,
            angles="xy",
            scale_units="xy",
            scale=0.1,
            width=0.002,
            label=f"{label}, RMS {rms(vectors):.2f} px",
        )
    axis.set(title="columns beside the best lattice, x 10", aspect="equal")
    axis.invert_yaxis()
    axis.legend(loc="upper right")
