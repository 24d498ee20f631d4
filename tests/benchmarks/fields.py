"""Fields to search: a picture, and what a measurement at each of its pixels would give.

Two are caricatures of a physical field that leave out all that does not make the search hard; one is a real
map of hysteresis loops; and on one nothing was ever tuned. Each has a few pixels within 5 % of the largest
value, which nine tries in ten of a random search do not meet among 80 of 4,096.
"""

from __future__ import annotations

import runpy
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

Float64 = NDArray[np.float64]

SIDE = 64
NOISE = 0.03  # of the range of what is measured
LOOPS = "pfm_pzt_pto/BEPS_PTO_50x50.h5"
PROTOTYPE = "bench_sample_eff.py"
RINGS_DEG = 16
HARMONICS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A picture and a truth.

    Attributes
    ----------
    picture
        What is seen before anything is measured, shape ``(rows, cols)``.
    truth
        What a measurement gives but for its noise, same shape, from 0 to 1.
    noise_sd
        Of a measurement; 0 where the truth is a measurement itself.
    window_px
        Edge of what is seen of the surroundings of a pixel.
    """

    picture: Float64
    truth: Float64
    noise_sd: float = NOISE
    window_px: int = 15


def plasmon(seed: int) -> Field:
    """Discs of many sizes, some nearly touching: fields decay from their rims, strong in narrow gaps."""
    rng = np.random.default_rng([seed, 1])
    row, col = np.mgrid[:SIDE, :SIDE]
    discs: list[tuple[float, float, float]] = []
    for attempt in range(200):
        radius = rng.uniform(3.0, 7.0)
        r, c = rng.uniform(9.0, SIDE - 9.0, 2)
        if discs and attempt % 2:
            near = discs[rng.integers(len(discs))]
            turn, gap = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.5)
            away = near[2] + radius + gap
            r, c = near[0] + away * np.sin(turn), near[1] + away * np.cos(turn)
        is_free = all(np.hypot(r - a, c - b) > radius + s + 0.8 for a, b, s in discs)
        if is_free and min(r, c) > 8 and max(r, c) < SIDE - 8:
            discs.append((r, c, radius))
        if len(discs) == 9:
            break
    rim = np.array([np.hypot(row - r, col - c) - s for r, c, s in discs])
    size = np.array([s for *_, s in discs])[:, None, None]
    field = np.exp(-np.abs(rim) / np.where(rim > 0, 2.2, 1.0)) * (0.5 + 0.08 * size)
    strongest = np.sort(field, axis=0)
    truth = gaussian_filter(field.sum(axis=0) + 2.5 * strongest[-1] * strongest[-2], 0.7)
    picture = gaussian_filter((np.where(rim < 0, 0.3 + size / 12, 0.0)).sum(axis=0), 0.6)
    return Field(picture + NOISE * rng.normal(size=picture.shape), truth / truth.max())


def ferroelectric(seed: int) -> Field:
    """Stripes of up and down: bent walls answer most; and a slow trend that the picture does not show."""
    rng = np.random.default_rng([seed, 2])
    row, col = np.mgrid[:SIDE, :SIDE]
    bend = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 4.5, mode="wrap")
    turn = rng.uniform(0, np.pi)
    phase = 2 * np.pi * (row * np.sin(turn) + col * np.cos(turn)) / 15 + 1.5 * bend / bend.std()
    order = np.sin(phase)
    polar = np.tanh(3 * order)
    slope = np.stack(np.gradient(order))
    normal = slope / (np.hypot(*slope) + 1e-3)
    curvature = np.abs(np.gradient(normal[0])[0] + np.gradient(normal[1])[1])
    trend = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 14, mode="nearest")
    trend = (trend - trend.min()) / np.ptp(trend)
    wall = 1 - polar**2
    truth = wall * (0.4 + 3.0 * np.clip(gaussian_filter(curvature, 1), 0, 0.5)) + 0.35 * trend
    truth = gaussian_filter(truth, 0.8)
    return Field(0.9 * polar + 0.04 * rng.normal(size=polar.shape), (truth - truth.min()) / np.ptp(truth))


def grains(seed: int) -> Field:
    """Grains of an even brightness each: where three meet and differ most is the answer."""
    rng = np.random.default_rng([seed, 3])
    middles = rng.uniform(-6, SIDE + 6, (34, 2))
    bright = rng.uniform(0, 1, len(middles))
    places = np.stack(np.mgrid[:SIDE, :SIDE], axis=-1).reshape(-1, 2)
    distance, which = cKDTree(middles).query(places, k=3)
    boundary = np.exp(-((distance[:, 1] - distance[:, 0]) ** 2) / 4.0)
    junction = np.exp(-((distance[:, 2] - distance[:, 0]) ** 2) / 9.0)
    unlike = np.ptp(bright[which], axis=1)
    truth = boundary * (0.2 + 0.5 * np.abs(bright[which[:, 1]] - bright[which[:, 0]])) + junction * unlike
    truth = gaussian_filter(truth.reshape(SIDE, SIDE), 0.8)
    picture = gaussian_filter(bright[which[:, 0]].reshape(SIDE, SIDE), 0.8)
    noisy = picture + 0.04 * rng.normal(size=picture.shape)
    return Field(noisy, (truth - truth.min()) / np.ptp(truth))


def vacancies(seed: int) -> Field:
    """A lattice with sites missing: what is near two of them answers most. Nothing was ever tuned on it."""
    rng = np.random.default_rng([seed, 8])
    row, col = np.mgrid[:SIDE, :SIDE]
    pitch, turn = rng.uniform(5.5, 7.0), rng.uniform(0, np.pi / 2)
    steps = np.stack(np.mgrid[-12:13, -12:13], axis=-1).reshape(-1, 2) * pitch
    to = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    sites = steps @ to + SIDE / 2 + rng.uniform(0, pitch, 2)
    sites = sites[((sites > -4) & (sites < SIDE + 4)).all(axis=1)]
    is_missing = rng.uniform(size=len(sites)) < 0.12
    bright = rng.normal(1.0, 0.08, len(sites))
    picture, answer = np.zeros((SIDE, SIDE)), np.zeros((2, SIDE, SIDE))
    for (r, c), missing, height in zip(sites, is_missing, bright, strict=True):
        square = (row - r) ** 2 + (col - c) ** 2
        if not missing:
            picture += height * np.exp(-square / 3.0)
            continue
        here = rng.uniform(0.7, 1.0) * np.exp(-square / 12.0)
        answer = np.sort(np.concatenate([answer, here[None]]), axis=0)[1:]
    truth = answer.sum(axis=0) + 3.0 * answer[0] * answer[1] + 0.1 * picture
    truth = (truth - truth.min()) / np.ptp(truth)
    return Field(picture + 0.05 * rng.normal(size=picture.shape), truth)


def loops(folder: Path) -> Field:
    """A band-excitation map: root of the area of each hysteresis loop; the picture is the response at 0 V.

    Raises
    ------
    FileNotFoundError
        If the recording is not there.
    """
    import h5py

    if not (folder / LOOPS).is_file():
        raise FileNotFoundError(f"{folder / LOOPS} is not there")
    with h5py.File(folder / LOOPS) as file:
        response = np.asarray(file["Channel_000/generic/generic"], dtype=np.float64)
        bias_v = np.asarray(file["Channel_000/generic/Voltage"], dtype=np.float64)
    area = np.abs(np.trapezoid(response, bias_v, axis=2))
    truth = np.sqrt(np.minimum(area, np.quantile(area, 0.995)))
    at_rest = response[..., 0]
    picture = np.arcsinh(at_rest / np.quantile(np.abs(at_rest), 0.9))
    return Field(picture, (truth - truth.min()) / np.ptp(truth), noise_sd=0.0, window_px=9)


def part_of(field: Field, seed: int, side: int = 40) -> Field:
    """A part of a field, turned by quarters and mirrored: another start for who decides without chance."""
    rng = np.random.default_rng([seed, 4])
    row, col = (rng.integers(size - side + 1) for size in field.picture.shape)
    turns, is_mirrored = rng.integers(4), rng.integers(2)

    def part(of: Float64) -> Float64:
        cut = np.rot90(of[row : row + side, col : col + side], turns)
        return np.ascontiguousarray(cut[:, ::-1] if is_mirrored else cut)

    return Field(part(field.picture), part(field.truth), field.noise_sd, field.window_px)


def of_prototype(folder: Path, name: str) -> Any:
    """Make the fields of the script that the bars were measured with, by that script's own generator."""
    before, sys.argv = sys.argv, [PROTOTYPE, "--time-limit", "-1"]
    try:
        with redirect_stdout(StringIO()):
            found = runpy.run_path(str(folder / PROTOTYPE), run_name="fields")
    finally:
        sys.argv = before
    made = found["PROB"][name]

    def field(seed: int) -> Field:
        picture, truth, noise_sd, *_ = made(seed)
        return Field(picture, truth, noise_sd)

    return field


# -- what is seen of a pixel's surroundings -------------------------------------------------------------


def windows(field: Field) -> Float64:
    """The surroundings of every pixel, shape ``(n, window_px**2)``."""
    edge = field.window_px // 2
    padded = np.pad(_standard(field.picture), edge, mode="reflect")
    cut = np.lib.stride_tricks.sliding_window_view(padded, (field.window_px, field.window_px))
    return cut.reshape(field.picture.size, -1)


def latents(field: Field, count: int = 8) -> Float64:
    """Describe the surroundings of every pixel whatever their turn, shape ``(n, count)``.

    A stand-in for the latents of an rVAE, made in a tenth of a second: the moduli of the first harmonics of
    the picture on rings around the pixel, and their principal components, each of unit variance.
    """
    edge = field.window_px // 2
    padded = np.pad(_standard(field.picture), edge + 2, mode="reflect")
    row, col = (axis.ravel()[:, None] + edge + 2 for axis in np.indices(field.picture.shape))
    angle = 2 * np.pi * np.arange(RINGS_DEG) / RINGS_DEG
    found = [map_coordinates(padded, [row, col], order=1)]
    for radius in range(1, edge + 1):
        ring = map_coordinates(padded, [row + radius * np.sin(angle), col + radius * np.cos(angle)], order=1)
        harmonic = np.sqrt(radius) / RINGS_DEG * np.fft.fft(ring, axis=1)[:, : HARMONICS + 1]
        found += [harmonic[:, :1].real, np.sqrt(2) * np.abs(harmonic[:, 1:])]
    seen = np.concatenate(found, axis=1)
    left, size, _ = np.linalg.svd(seen - seen.mean(axis=0), full_matrices=False)
    scaled: Float64 = left[:, :count] * size[:count]
    return scaled / scaled.std(axis=0)


def _standard(picture: Float64) -> Float64:
    standard: Float64 = (picture - picture.mean()) / picture.std()
    return standard
