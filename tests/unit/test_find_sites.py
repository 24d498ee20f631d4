from __future__ import annotations

import math

import numpy as np
import pytest

from simulators.pfm import PfmConfig, PfmInstrument
from simulators.stem import StemConfig, StemInstrument
from streamer.channel_names import shows_height, shows_response
from streamer.messages import Float32, Frame, ScanGeometry
from streamer.stage import Rejected
from streamer.stages.find_atoms import FindAtoms
from streamer.stages.find_sites import FindSites, SitesConfig, nodes_px

ROWS, COLS = np.mgrid[:96, :96].astype(np.float64)


def frame(image: np.ndarray, *channels: str, rotation_rad: float = 0.0, pixel_nm: float = 4.0) -> Frame:
    rows, cols = image.shape[1:]
    return Frame(
        session="",
        number=0,
        acquired_at_s=0.0,
        image=image.astype(np.float32),
        channels=channels,
        geometry=ScanGeometry(
            shape=(rows, cols), field_of_view_nm=(cols * pixel_nm, rows * pixel_nm), rotation_rad=rotation_rad
        ),
        dwell_time_us=1.0,
    )


def film(wall_at_px: float | None = 40.0, phase_rad: float = 0.3, seed: int = 1) -> Frame:
    """Amplitude and phase of a film with a wall along the columns' direction, or of one domain."""
    response = np.full(ROWS.shape, 50.0) if wall_at_px is None else 50 * np.tanh((COLS - wall_at_px) / 3)
    noise = np.random.default_rng(seed).standard_normal((2, *ROWS.shape))
    seen = response * np.exp(1j * phase_rad) + noise[0] + 1j * noise[1]
    return frame(np.stack([np.abs(seen), np.angle(seen)]), "amplitude", "phase")


def rods(seed: int = 1) -> Float32:
    image = 0.02 * np.random.default_rng(seed).standard_normal(ROWS.shape) + 0.01 * ROWS
    for row, col in ((20, 20), (20, 60), (60, 40), (80, 75)):
        image[row - 3 : row + 4, col - 10 : col + 11] += 2.5
    return image[None].astype(np.float32)


def test_a_wall_is_sampled_once_in_each_step_along_it() -> None:
    sites = FindSites(SitesConfig(step_nm=16)).process(film())
    assert sites.positions_px[:, 1] == pytest.approx(40.0, abs=0.5)
    assert len(sites.positions_px) == pytest.approx(96 * 4 / 16, abs=1)
    assert np.diff(np.sort(sites.positions_px[:, 0])).min() >= 2  # half a step
    assert sites.contrast == pytest.approx(50, abs=2)
    assert sites.background == 0.0


@pytest.mark.parametrize("phase_rad", [0.0, math.pi, 1.2])
def test_walls_are_found_at_any_phase_of_the_lock_in(phase_rad: float) -> None:
    sites = FindSites().process(film(phase_rad=phase_rad))
    assert sites.positions_px[:, 1] == pytest.approx(40.0, abs=0.5)


def test_a_wall_that_stays_gives_the_same_places_in_the_next_frame() -> None:
    first, second = (FindSites().process(film(seed=seed)).positions_px for seed in (1, 3))
    assert len(first) == len(second)
    assert np.abs(first - second).max() < 1.5


def test_a_place_on_a_wall_is_worse_known_across_than_along() -> None:
    covariance = FindSites().process(film()).position_covariance_px2
    assert covariance is not None
    assert (covariance[:, 1, 1] > covariance[:, 0, 0]).all()


def test_a_film_without_walls_is_looked_at_on_a_grid() -> None:
    sites = FindSites(SitesConfig(step_nm=32)).process(film(wall_at_px=None))
    assert len(sites.positions_px) > 100
    assert np.ptp(sites.positions_px[:, 1]) > 75


def test_a_film_without_walls_is_rejected_where_walls_are_asked_for() -> None:
    with pytest.raises(Rejected, match="no walls"):
        FindSites(SitesConfig(kind="walls")).process(film(wall_at_px=None))


def test_walls_need_a_phase() -> None:
    with pytest.raises(Rejected, match="too few channels"):
        FindSites(SitesConfig(kind="walls")).process(frame(rods(), "height"))


def test_particles_are_found_on_a_tilted_face() -> None:
    sites = FindSites().process(frame(rods(), "height"))
    assert len(sites.positions_px) == 4
    assert sites.contrast == pytest.approx(2.5, abs=0.1)
    assert (sites.confidence > 0.9).all()


def test_a_bare_face_has_no_particles() -> None:
    with pytest.raises(Rejected, match="no particles"):
        FindSites().process(frame(rods()[:, 40:44], "height"))


def test_columns_are_found_as_by_the_finder_of_columns() -> None:
    seen = StemInstrument(StemConfig(seed=1, rows=128, cols=128), started_at_s=0.0).acquire()
    np.testing.assert_array_equal(
        FindSites().process(seen).positions_px, FindAtoms().process(seen).positions_px
    )


@pytest.mark.parametrize("rotation_rad", [0.0, 0.7])
def test_the_grid_is_fixed_to_the_specimen_however_the_scan_is_turned(rotation_rad: float) -> None:
    seen = frame(rods(), "HAADF", rotation_rad=rotation_rad)
    sites = FindSites(SitesConfig(kind="grid", step_nm=30)).process(seen)
    nodes = seen.geometry.to_nm(sites.positions_px) / 30
    assert np.abs(nodes - np.rint(nodes)).max() < 1e-3
    assert len(nodes) == pytest.approx((96 * 4 / 30) ** 2, rel=0.15)
    assert len(np.unique(np.rint(nodes), axis=0)) == len(nodes)


def test_nodes_on_the_border_are_pixels() -> None:
    geometry = ScanGeometry(shape=(11, 11), field_of_view_nm=(11.0, 11.0))
    nodes = nodes_px(geometry, 5.0)
    assert len(nodes) == 9
    assert nodes.min() >= 0
    assert nodes.max() <= 10


def test_too_many_sites_are_refused() -> None:
    with pytest.raises(Rejected, match="too many sites"):
        FindSites(SitesConfig(kind="grid", step_nm=4.0, max_sites=100)).process(film())


def test_a_film_that_does_not_answer_has_no_sites() -> None:
    silent = frame(np.zeros((2, 32, 32)), "amplitude", "phase")
    with pytest.raises(Rejected, match="no sites"):
        FindSites().process(silent)


def test_channels_say_what_they_show() -> None:
    assert shows_response(("amplitude", "phase", "height"))
    assert shows_response(("Amplitude trace", "Phase trace"))
    assert not shows_response(("phase", "amplitude"))
    assert not shows_response(("amplitude",))
    assert shows_height("height trace")
    assert not shows_height("HAADF")


@pytest.mark.parametrize(
    ("name", "value"),
    [("step_nm", -1.0), ("threshold_sigma", 0.0), ("area_share", (2.0, 1.0)), ("max_sites", 0)],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"sites.{name} is"):
        SitesConfig(**{name: value})  # type: ignore[arg-type]


def test_walls_of_a_simulated_film_lie_where_its_polarisation_changes_sign() -> None:
    instrument = PfmInstrument(PfmConfig(seed=3), started_at_s=0.0)
    sites = FindSites().process(instrument.acquire())
    truth = instrument.truth()
    polar = truth["polar"]
    beside = (sites.frame.geometry.to_nm(sites.positions_px) - truth["film_corner_nm"]) / truth["cell_nm"]
    around = np.stack(np.meshgrid(np.arange(-2, 3), np.arange(-2, 3)), axis=-1).reshape(-1, 2)
    x, y = (np.rint(beside).astype(int)[:, None] + around).transpose(2, 0, 1)
    signs = np.sign(polar[np.clip(y, 0, 255), np.clip(x, 0, 255)])
    assert len(signs) > 80
    assert (np.ptp(signs, axis=1) > 0).mean() > 0.97
