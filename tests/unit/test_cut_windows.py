"""CutWindows samples what lies around an atom, at the scale of the encoder."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from streamer.messages import Atoms, Frame, Registration, ScanGeometry
from streamer.stage import Rejected
from streamer.stages.cut_windows import CutWindows

PIXEL_NM = 0.0125


def atoms(
    image: NDArray[np.floating],
    positions: list[tuple[float, float]],
    background: float = 0.0,
    contrast: float = 1.0,
    pixel_nm: tuple[float, float] = (PIXEL_NM, PIXEL_NM),
) -> Atoms:
    image = np.asarray(image, dtype=np.float32)
    image = image[None] if image.ndim == 2 else image
    rows, cols = image.shape[1:]
    n = len(positions)
    frame = Frame(
        session="s",
        number=5,
        acquired_at_s=2.0,
        image=image,
        channels=tuple(f"c{i}" for i in range(len(image))),
        geometry=ScanGeometry(
            shape=(rows, cols),
            field_of_view_nm=(cols * pixel_nm[1], rows * pixel_nm[0]),
            center_nm=(3.0, 4.0),
        ),
        dwell_time_us=1.0,
        registration=Registration(revision=2, drift_nm=(0.1, 0.2)),
    )
    return Atoms(
        frame=frame,
        positions_px=np.array(positions, dtype=np.float32).reshape(n, 2),
        confidence=np.linspace(0.5, 1, n, dtype=np.float32),
        amplitude=np.ones(n, dtype=np.float32),
        background=background,
        contrast=contrast,
    )


def plane(rows: int = 120, cols: int = 140) -> NDArray[np.float64]:
    """Every pixel tells where it is: 1000 · row + col."""
    return 1000.0 * np.arange(rows)[:, None] + np.arange(cols)[None, :]


def test_a_window_at_the_frame_scale_is_the_piece_of_the_frame() -> None:
    patches = CutWindows(5 * PIXEL_NM, 5).process(atoms(plane(), [(40, 70)]))
    np.testing.assert_allclose(patches.windows[0, 0], plane()[38:43, 68:73], rtol=1e-5)


def test_a_window_is_centred_on_the_atom_to_a_fraction_of_a_pixel() -> None:
    patches = CutWindows(0.6, 24).process(atoms(plane(), [(40.25, 70.75), (60.5, 61.0)]))
    middle = patches.windows[:, 0].mean(axis=(1, 2))
    np.testing.assert_allclose(middle, [40_250 + 70.75, 60_500 + 61], rtol=1e-5)


def test_rows_of_a_window_go_along_rows_of_the_frame_in_steps_of_the_window() -> None:
    window = CutWindows(0.6, 24).process(atoms(plane(), [(50.3, 70.1)])).windows[0, 0]
    step_px = 0.6 / 24 / PIXEL_NM
    np.testing.assert_allclose(np.diff(window, axis=0), 1000 * step_px, rtol=1e-3)
    np.testing.assert_allclose(np.diff(window, axis=1), step_px, atol=0.02)


def test_pixels_that_are_not_square_make_square_windows() -> None:
    found = atoms(plane(), [(50.0, 70.0)], pixel_nm=(PIXEL_NM, 2 * PIXEL_NM))
    window = CutWindows(0.6, 24).process(found).windows[0, 0]
    np.testing.assert_allclose(np.diff(window, axis=0), 2000, rtol=1e-3)
    np.testing.assert_allclose(np.diff(window, axis=1), 1.0, atol=0.02)


def test_background_is_0_and_a_typical_column_1() -> None:
    image = np.full((60, 60), 20.0)
    image[:, 30:] = 50.0
    window = CutWindows(0.2, 8).process(atoms(image, [(30, 30)], background=20.0, contrast=30.0)).windows
    np.testing.assert_allclose(window[0, 0, :, 0], 0.0, atol=1e-6)
    np.testing.assert_allclose(window[0, 0, :, -1], 1.0, atol=1e-6)


def test_dark_columns_become_positive() -> None:
    image = np.full((60, 60), 100.0)
    image[28:33, 28:33] = 40.0
    window = CutWindows(0.2, 9).process(atoms(image, [(30, 30)], background=100.0, contrast=-60.0)).windows
    assert window[0, 0, 4, 4] == pytest.approx(1.0, abs=0.05)


def test_shrinking_averages_the_noise_instead_of_picking_pixels() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (200, 200))
    coarse = CutWindows(96 * PIXEL_NM, 24).process(atoms(noise, [(100, 100)])).windows
    # A pixel of the window covers 16 of the frame.
    assert coarse.std() == pytest.approx(1 / 4, rel=0.3)


@pytest.mark.parametrize("pixel_nm", [(0.0125, 0.0125), (0.01, 0.04), (0.03, 0.02)])
def test_windows_are_what_scipy_says_in_double_precision(pixel_nm: tuple[float, float]) -> None:
    rng = np.random.default_rng(2)
    image = rng.normal(20, 5, (150, 170))
    found = atoms(image, [tuple(rng.uniform(40, 100, 2)) for _ in range(9)], 3.0, 17.0, pixel_nm)
    blur = [math.sqrt(max((0.025 / px) ** 2 - 1, 0) / 12) + 1e-12 for px in pixel_nm]
    level = (found.frame.image[0].astype(np.float64) - 3) / 17
    smooth = ndimage.gaussian_filter(level, blur, truncate=3, mode="nearest")
    step = ((np.arange(24) - 11.5) * 0.025)[:, None] / pixel_nm
    places = found.positions_px.astype(np.float64)[:, None] + step
    grids = [np.meshgrid(place[:, 0], place[:, 1], indexing="ij") for place in places]
    expected = [ndimage.map_coordinates(smooth, grid, order=1) for grid in grids]
    windows = CutWindows(0.6, 24).process(found).windows
    np.testing.assert_allclose(windows[:, 0], expected, atol=2e-6)


def test_atoms_whose_window_leaves_the_frame_have_none() -> None:
    cutter = CutWindows(9 * PIXEL_NM, 9)
    patches = cutter.process(atoms(plane(60, 80), [(3.9, 40), (4, 4), (55, 75), (55.1, 40), (30, 75.2)]))
    np.testing.assert_allclose(patches.positions_px, [[4, 4], [55, 75]])
    np.testing.assert_allclose(patches.confidence, np.linspace(0.5, 1, 5)[1:3], rtol=1e-6)


def test_patches_carry_the_frame_and_its_specimen_positions() -> None:
    found = atoms(plane(), [(59.5, 69.5), (59.5, 79.5)])
    patches = CutWindows(0.2, 8).process(found)
    assert (patches.session, patches.number, patches.acquired_at_s) == ("s", 5, 2.0)
    assert patches.geometry == found.frame.geometry
    assert patches.registration == found.frame.registration
    np.testing.assert_allclose(patches.positions_nm, [[3.0, 4.0], [3.0 + 10 * PIXEL_NM, 4.0]], rtol=1e-6)
    assert patches.window_nm == 0.2


def test_each_channel_is_cut_alike() -> None:
    image = np.stack([plane(), 2 * plane(), 3 * plane()])
    patches = CutWindows(0.2, 8, channels=2).process(atoms(image, [(50, 50)]))
    assert patches.windows.shape == (1, 2, 8, 8)
    np.testing.assert_allclose(patches.windows[0, 1], 2 * patches.windows[0, 0], rtol=1e-5)


def test_a_frame_with_too_few_channels_is_rejected() -> None:
    with pytest.raises(Rejected, match="too few channels"):
        CutWindows(0.2, 8, channels=2).process(atoms(plane(), [(50, 50)]))


def test_a_frame_smaller_than_a_window_is_rejected() -> None:
    with pytest.raises(Rejected, match="no windows"):
        CutWindows(5.0, 24).process(atoms(plane(), [(50, 50)]))


def test_heights_are_cut_from_the_levelled_face() -> None:
    tilted = plane() / 100
    tilted[50:53, 60:63] += 8.0
    found = atoms(tilted, [(51, 61)], background=0.0, contrast=8.0)
    window = CutWindows(9 * PIXEL_NM, 9, normalisation="height").process(found).windows[0, 0]
    assert window[4, 4] == pytest.approx(1.0, abs=0.05)
    assert window[0, 0] == pytest.approx(window[8, 8], abs=0.01)


def test_a_rule_that_is_not_for_pictures_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'pattern'; it takes contrast, response, height"):
        CutWindows(0.6, 24, normalisation="pattern")


@pytest.mark.parametrize(("window_nm", "window_px", "channels"), [(0.0, 24, 1), (0.6, 1, 1), (0.6, 24, 0)])
def test_an_impossible_window_is_refused_by_name(window_nm: float, window_px: int, channels: int) -> None:
    with pytest.raises(ValueError, match=r"windows\..* is .*; it takes"):
        CutWindows(window_nm, window_px, channels)


def test_an_atom_keeps_the_covariance_of_its_own_position_in_nanometres() -> None:
    seen = atoms(plane(), [(1, 1), (40, 70), (50, 60)])
    assert CutWindows(5 * PIXEL_NM, 5).process(seen).position_covariance_nm2 is None
    covariance = np.array([np.eye(2), [[4, 1], [1, 2]], 3 * np.eye(2)], dtype=np.float32)
    said = CutWindows(5 * PIXEL_NM, 5).process(
        msgspec.structs.replace(seen, position_covariance_px2=covariance)
    )
    # The atom in the corner has no window; (row, col) becomes (x, y).
    np.testing.assert_allclose(
        said.position_covariance_nm2, np.array([[[2, 1], [1, 4]], 3 * np.eye(2)]) * PIXEL_NM**2, rtol=1e-5
    )
