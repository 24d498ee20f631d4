"""Pictures of encoders and of recorded frames as encoders see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from deploy.local import app
from deploy.model_pictures import (
    LEAST_SHARE,
    TILES,
    draw_frame,
    draw_manifolds,
    prior_of,
    shipped_encoders,
    span,
)
from models.checkpoint import load
from tests.drawn_specimen import scan


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a frame of a square lattice whose columns are 16 px apart: 0.2 nm at 0.0125 nm a pixel."""
    path = tmp_path_factory.mktemp("recording") / "lattice.tif"
    tifffile.imwrite(path, scan(rng=np.random.default_rng(4)).astype(np.float32))
    return path


def mixture(shares: list[float]) -> dict[str, torch.Tensor]:
    return {
        "mixture_logit_M": torch.log(torch.tensor(shares)),
        "mixture_mean_MZ": torch.tensor([[float(n), 2.0 * n, 7.0] for n in range(len(shares))]),
        "mixture_log_sd_MZ": torch.full((len(shares), 3), -1.0),
    }


def test_every_shipped_encoder_is_drawn_under_the_name_on_its_card(tmp_path: Path) -> None:
    paths = draw_manifolds(tmp_path / "new")
    names = {load(path)[1].name for path in shipped_encoders()}
    assert {path.stem for path in paths} == names
    for path in paths:
        picture = imread(path)
        assert picture[..., :3].std() > 0.05, path  # not blank
        assert path.stat().st_size < 400_000


def test_components_that_are_not_in_use_are_left_out_of_the_prior() -> None:
    prior = prior_of(mixture([0.7, 0.3 - LEAST_SHARE / 2, LEAST_SHARE / 2]), latent_dim=3)
    assert prior.share == pytest.approx([0.7, 0.3], abs=0.01)
    assert prior.mean[:, 0].tolist() == [0.0, 1.0]
    assert prior.sd == pytest.approx(np.full((2, 3), np.exp(-1)))


def test_a_model_without_a_mixture_has_the_standard_normal() -> None:
    first, second, grid = span(prior_of({}, latent_dim=1))
    assert (first[0], first[-1]) == (-2.0, 2.0)
    assert len(second) == 1
    assert grid.shape == (TILES, 1)


def test_the_grid_reaches_beyond_every_component_and_other_latents_stay_at_their_mean() -> None:
    first, second, grid = span(prior_of(mixture([0.5, 0.5]), latent_dim=3))
    assert first[0] == pytest.approx(-2 * np.exp(-1))
    assert second[-1] == pytest.approx(2 + 2 * np.exp(-1))
    assert grid.shape == (TILES * TILES, 3)
    assert set(grid[:, 2]) == {7.0}
    assert grid[1, 0] > grid[0, 0]
    assert grid[TILES, 1] > grid[0, 1]


def test_a_recorded_frame_is_drawn_with_what_is_seen_in_it(tmp_path: Path, recording: Path) -> None:
    path = draw_frame(tmp_path / "frame.png", recording, pixel_size_nm=0.0125)
    picture = imread(path)[..., :3]
    is_coloured = np.ptp(picture, axis=-1) > 0.2
    assert is_coloured.mean() > 0.01


def test_a_frame_that_is_not_there_and_one_that_shows_nothing_are_told(
    tmp_path: Path, recording: Path
) -> None:
    with pytest.raises(ValueError, match="has no frame 3"):
        draw_frame(tmp_path / "frame.png", recording, 3, pixel_size_nm=0.0125)
    flat = tmp_path / "flat.tif"
    tifffile.imwrite(flat, np.ones((64, 64), np.float32))
    with pytest.raises(ValueError, match="nothing is seen in frame 0: "):
        draw_frame(tmp_path / "frame.png", flat, pixel_size_nm=0.0125)


def test_the_command_says_in_a_line_what_it_cannot_read(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"nothing of ours")
    for options in (["--weights", str(foreign)], ["--recording", str(tmp_path / "no such file")]):
        result = CliRunner().invoke(app, ["pictures", str(tmp_path), *options])
        assert result.exit_code != 0
        assert result.output.count("\n") == 1
        assert options[1] in result.output
