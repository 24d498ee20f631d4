"""Real scans: what rows and drift are measured on some columns takes the others closer to each other.

The folder is ``$PROBELOOP_DATA``, else ``../shared/data`` beside the project. Blocks of columns that were
not used for measuring are compared, so noise that was fitted cannot look like success.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from simulators.recordings import read_recording
from streamer.observers.blocks import block_displacements, comparable, warped
from streamer.observers.image_filters import displaced
from streamer.observers.registration import Matcher, measure_rows
from streamer.observers.two_directions import fast_axis_lag, linearised
from streamer.stages.correct_distortion import CorrectConfig, CorrectDistortion

DATA = Path(os.environ.get("PROBELOOP_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
ABF = DATA / "stem_abf_stack" / "stem_abf_data_imagestack.hspy"
STM = DATA / "stm_movie_gr_ni111" / "20141003_24.h5"
PZT = DATA / "pfm_pzt_pto"
STRIPES = 5

Float32 = NDArray[np.float32]


def here(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def quarters() -> dict[str, Float32]:
    """Scans of the movie, ``(scan, 105, 105)``, by direction up or down and forward or backward."""
    side = 105
    with h5py.File(here(STM)) as h5:
        scans = np.roll(h5["data"][()], 35).reshape(-1, 2 * side, 2 * side).astype(np.float32)
    scans -= np.median(scans, axis=-1, keepdims=True)
    limit = 8 * 1.48 * np.median(np.abs(scans))
    scans = np.clip(scans, -limit, limit)
    return {
        "uf": scans[:, :side, :side],
        "ub": scans[:, :side, side:],
        "df": scans[:, side:, :side],
        "db": scans[:, side:, side:],
    }


def apart(image: Float32, reference: Float32, block_rows: int) -> tuple[float, float, float]:
    """Say how far features are apart, in pixels: as scanned, after the rigid match, after rows."""
    matcher = Matcher((image.shape[0], image.shape[1]))
    shift, _ = matcher.match(image, reference, np.zeros(2), 8.0)
    width = image.shape[1] // STRIPES
    stripes = [slice(width * i, width * (i + 1)) for i in range(STRIPES)]
    rigid = displaced(reference, -shift)
    measured = [np.concatenate([one[:, s] for s in stripes[::2]], axis=1) for one in (image, rigid)]
    rows = measure_rows(measured[0], measured[1], np.zeros(2), 4.0)
    field = np.zeros((2, *image.shape)) - (rows.offsets + rows.mean[:, None])[:, :, None]
    corrected = warped(rigid, field)
    moved = [
        np.concatenate(
            [
                block_displacements(
                    np.ascontiguousarray(image[:, s]),
                    np.ascontiguousarray(one[:, s]),
                    (block_rows, min(width, 64)),
                    reach_px=4.0,
                ).displacement_px
                for s in stripes[1::2]
            ]
        )
        for one in (rigid, corrected)
    ]
    before, after = (float(np.sqrt((one**2).sum(axis=1).mean())) for one in moved)
    as_scanned = float(np.sqrt(((moved[0] - shift) ** 2).sum(axis=1).mean()))
    return as_scanned, before, after


def test_an_atomic_stack_comes_together_on_columns_that_were_not_measured() -> None:
    images = [frame.image[0] for frame in read_recording(here(ABF))]
    figures = np.array([apart(image, images[0], 64) for image in images[1:]])
    print("\nABF, px as scanned, rigid, rows:", np.sqrt((figures**2).mean(axis=0)).round(2))
    assert np.sqrt((figures[:, 2] ** 2).mean()) < 0.7 * np.sqrt((figures[:, 1] ** 2).mean())
    assert (figures[:, 2] < figures[:, 1]).all()


def test_an_stm_movie_comes_together_on_columns_that_were_not_measured() -> None:
    images = linearised(quarters()["uf"])
    figures = np.array([apart(images[n], images[n - 1], 26) for n in range(9, 25, 2)])
    print("\nSTM, px as scanned, rigid, rows:", np.sqrt((figures**2).mean(axis=0)).round(2))
    assert np.sqrt((figures[:, 2] ** 2).mean()) < 0.7 * np.sqrt((figures[:, 0] ** 2).mean())
    assert np.sqrt((figures[:, 2] ** 2).mean()) < 0.9 * np.sqrt((figures[:, 1] ** 2).mean())


def test_an_stm_movie_is_sampled_evenly_in_time() -> None:
    """The lattice says so: its peak over its ground doubles when rows are made even in place."""

    def peak(images: Float32) -> float:
        window = np.outer(np.hanning(105), np.hanning(105))
        power = (np.abs(np.fft.fft2(np.clip(images, -limit, limit) * window)) ** 2).mean(axis=0)
        row, col = np.meshgrid(*[np.fft.fftfreq(105) * 105] * 2, indexing="ij")
        fine = (np.hypot(row, col) > 20) & (np.abs(col) > 8)
        return float(power[fine].max() / np.median(power[fine]))

    for images in quarters().values():
        limit = 3 * 1.48 * float(np.median(np.abs(images)))  # adsorbates are no lattice
        assert peak(linearised(images)) > 1.8 * peak(images)


def test_the_two_directions_of_an_stm_scan_differ_by_a_lag() -> None:
    movie = quarters()
    lags = []
    for number in (20, 30, 40):
        forward = linearised(movie["uf"][number])
        backward = linearised(np.ascontiguousarray(movie["ub"][number][:, ::-1]))
        lag = fast_axis_lag(forward, backward, (32, 32)).forward
        lags.append(2 * np.median(lag.displacement_px, axis=0))
        with pytest.raises(ValueError, match="flip its rows"):
            fast_axis_lag(movie["uf"][number], movie["ub"][number], (32, 32))
    print("\nSTM lag, px (row, col):", np.round(lags, 2).tolist())
    assert np.ptp(np.array(lags)[:, 1]) < 1.0


def test_scans_of_a_ferroelectric_drift_as_height_and_deflection_agree() -> None:
    frames = [next(iter(read_recording(here(PZT / f"PZT_final000{n}.h5")))) for n in (1, 2)]
    (before, names), (after, _) = (comparable(frame.image, frame.channels) for frame in frames)
    found = {}
    for channel in ("AmplitudeRetrace", "DeflectionRetrace"):
        index = names.index(channel)
        blocks = block_displacements(after[index], before[index], (48, 48), reach_px=8.0)
        found[channel] = np.median(blocks.displacement_px, axis=0)
        assert len(blocks) > 30
    print("\nPZT, D in px (row, col):", {name: one.round(1).tolist() for name, one in found.items()})
    np.testing.assert_allclose(found["AmplitudeRetrace"], found["DeflectionRetrace"], atol=1.0)
    np.testing.assert_allclose(found["DeflectionRetrace"], [-3.3, 2.1], atol=1.0)


def test_the_stage_brings_the_two_directions_of_an_stm_scan_together() -> None:
    recorded = list(read_recording(here(STM), 0.05))[8:20]
    movie = quarters()
    stage = CorrectDistortion(CorrectConfig(mode="drift-only"))
    left, before = [], []
    for frame in recorded:
        images = np.stack([movie["uf"][frame.number], movie["ub"][frame.number][:, ::-1]])
        corrected = stage.process(replace(frame, image=images, channels=("forward", "backward")))
        for found, pair in ((before, linearised(images)), (left, corrected.image)):
            found.append(2 * np.median(fast_axis_lag(*pair, (32, 32)).forward.displacement_px, axis=0))
    print("\nSTM lag through the stage, px:", np.array(before).mean(axis=0), np.array(left).mean(axis=0))
    assert np.linalg.norm(np.mean(before, axis=0)) > 1.5
    assert np.linalg.norm(np.mean(left, axis=0)) < 0.15
    assert max(np.linalg.norm(one) for one in left) < 0.4
