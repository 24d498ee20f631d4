"""Instruments without atoms, live: films, patterns and rods become latents, judged against their truth."""

from __future__ import annotations

import math
from importlib import resources

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deploy.presets import pfm_domains
from deploy.presets.known import preset_of
from models.encoder import Encoder
from simulators.afm import AfmConfig, AfmInstrument
from simulators.diffraction import DiffractionConfig, DiffractionInstrument
from simulators.pfm import PfmConfig, PfmInstrument
from streamer.messages import Frame, Patches
from streamer.particles import particles
from streamer.pipeline import Pipeline, PipelineConfig, Processed
from streamer.stages.find_sites import SitesConfig


class NoMeter:
    """Nobody looks at the times here; a rejection would be a failure."""

    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        pytest.fail(f"{stage} rejected what a simulated instrument gave: {reason}")


def encoder(name: str) -> Encoder:
    """Load the shipped weights of a preset."""
    file = resources.files("models.weights") / preset_of(name).weights_name
    if not file.is_file():
        pytest.skip(
            f"{preset_of(name).weights_name} is not shipped yet: probeloop train rvae --preset {name}"
        )
    return Encoder.load(str(file))


def processed(line: Pipeline, item: Frame | Patches) -> Processed:
    result = line.process(replace(item, session="s"), NoMeter())
    assert result is not None
    return result


def off_rad(angle: NDArray[np.float64], true: NDArray[np.float64], folds: int) -> NDArray[np.float64]:
    """How far angles are off, up to one offset for all and turns that leave the content as it is."""
    away = np.exp(1j * folds * (angle - true))
    off: NDArray[np.float64] = np.abs(np.angle(away / away.mean())) / folds
    return off


def test_walls_of_a_film_are_followed_by_two_encoders_of_unlike_windows() -> None:
    line = Pipeline(
        PipelineConfig(sites=SitesConfig(step_nm=24.0)),
        encoder("pfm-walls"),
        beside={"pathways": encoder("pfm-pathways")},
    )
    instrument = PfmInstrument(PfmConfig(seed=5), started_at_s=0.0)
    tracks = []
    for number in range(3):
        result = processed(line, replace(instrument.acquire(), number=number))
        latents = result.latents
        assert result.corrected is not None
        assert result.corrected.channels == ("amplitude", "phase", "height")
        assert [one.encoder for one in result.beside] == ["pathways"]
        assert len(result.beside[0].mean) > 40
        tracks.append(set(latents.track.tolist()))
    film = instrument.simulator.film
    cells = pfm_domains.cells_of(instrument, latents.positions_nm.astype(np.float64))
    there = pfm_domains.shown(film.field.polar, cells, preset_of("pfm-walls").window_nm / film.cell_nm)
    walls = there.kind_N == pfm_domains.WALL
    assert walls.sum() > 15
    off = off_rad(latents.angle_rad[walls].astype(np.float64), there.angle_N[walls], 1)
    assert np.degrees(np.median(off)) < 5
    assert len(tracks[0] & tracks[2]) > 0.7 * len(tracks[0])


def test_rods_are_followed_and_their_angles_are_those_of_the_truth() -> None:
    line = Pipeline(PipelineConfig(), encoder("afm-rods"))
    instrument = AfmInstrument(AfmConfig(seed=5), started_at_s=0.0)
    tracks = []
    for number in range(4):
        result = processed(line, replace(instrument.acquire(), number=number))
        tracks.append(set(result.latents.track.tolist()))
    latents, truth = result.latents, instrument.truth()
    last = truth["rod_frame"] == 3
    apart, rod = cKDTree(truth["rod_place_px"][last]).query(latents.positions_px)
    assert (apart < 6).mean() > 0.9
    off = off_rad(latents.angle_rad.astype(np.float64), truth["rod_angle_rad"][last][rod], 2)
    assert np.degrees(np.median(off)) < 6
    assert len(tracks[0] & tracks[3]) > 0.5 * len(tracks[0])


def test_the_order_of_rods_is_read_from_their_axes() -> None:
    instrument = AfmInstrument(AfmConfig(seed=7), started_at_s=0.0)
    image = instrument.acquire().image[0]
    truth = instrument.truth()
    found = particles(image - np.percentile(image, 10))
    order = np.exp(2j * found.angle_rad[found.is_whole & (found.area_share < 1.8)]).mean()
    expected = truth["frame_order"][0] * np.exp(2j * truth["frame_director_rad"][0])
    assert abs(order - expected) < 0.12


def test_delivered_patterns_of_any_camera_are_encoded_where_the_probe_was() -> None:
    line = Pipeline(PipelineConfig(), Encoder.load(), beside={"patterns": encoder("diffraction")})
    config = DiffractionConfig(
        seed=5, rows=8, cols=16, field_of_view_nm=1.0, defocus_nm=4.0, beam_current_pa=20.0, camera_px=96
    )
    instrument = DiffractionInstrument(config, started_at_s=0.0)
    for number in range(2):
        batch = instrument.acquire()
        assert isinstance(batch, Patches)
        latents = processed(line, replace(batch, number=number)).latents
        assert latents.is_delivered
        assert latents.encoder == "patterns"
        assert len(latents.mean) == 64
        np.testing.assert_array_equal(latents.positions_nm, batch.positions_nm)
        assert (latents.novelty > 3).mean() < 0.1
        assert math.isfinite(float(latents.angle_sd_rad.max()))
