"""``probeloop train`` makes weights that the encoder takes, with a card that says what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner, Result

from deploy.presets.known import preset_of
from deploy.presets.stem_windows import picture
from deploy.train import Asked, app, job_of
from deploy.train_rvae import Interrupted, begun, card_of, gather, kept_state, part_file, run_epochs
from models.checkpoint import CheckpointError, load, save
from models.encoder import Encoder
from models.rvae import RVAEConfig
from models.training import Epoch

QUICK = ["--preset", "mos2", "--windows", "200", "--epochs", "2", "--seed", "2"]


def trained(*options: str) -> Result:
    return CliRunner().invoke(app, ["rvae", *options], catch_exceptions=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a short training, with their report."""
    output = tmp_path_factory.mktemp("made") / "one.safetensors"
    ran = trained(*QUICK, "--output", str(output))
    assert ran.exit_code == 0, ran.output
    return output


# -- what a training leaves --------------------------------------------------------------------------


def test_the_same_command_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "two.safetensors"
    assert trained(*QUICK, "--output", str(again), "--no-report").exit_code == 0
    assert again.read_bytes() == made.read_bytes()
    assert not again.with_suffix(".html").exists()


def test_the_card_says_how_the_weights_are_made_again_and_what_they_are_for(made: Path) -> None:
    _, card, _ = load(made)
    preset = preset_of("mos2")
    assert card.made_by == "probeloop train rvae --preset mos2 --seed 2 --epochs 2 --windows 200"
    assert (card.window_nm, card.window_px) == (preset.window_nm, preset.window_px)
    assert (card.normalisation, card.channels, card.seed) == ("contrast", ("HAADF",), 2)
    assert card.data.startswith("200 windows of simulated molybdenum disulphide")
    assert "+" in card.simulator
    assert card.architecture["shift_prior"] > 0
    assert card.classes == preset.classes
    assert {
        "ari",
        "knn",
        "class_ari",
        "class_accuracy",
        "invariance",
        "r_mean",
        "cover_68",
        "novel_share",
        "held_out_nats",
    } <= set(card.scores)
    assert all(np.isfinite(score) for score in card.scores.values())


def test_the_encoder_takes_them(made: Path) -> None:
    encoder = Encoder.load(made)
    seen = encoder.encode(np.zeros((3, 1, 24, 24), np.float32))
    assert seen.mean.shape == (3, encoder.card.latent_dim)


def test_the_report_is_one_page_with_its_pictures_inside(made: Path) -> None:
    page = made.with_suffix(".html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page
    assert "molybdenum beside one missing sulphur" in page


def test_nothing_unfinished_is_left_beside_the_weights(made: Path) -> None:
    assert sorted(file.name for file in made.parent.iterdir()) == ["one.html", "one.safetensors"]


# -- stopped and taken up again ----------------------------------------------------------------------


def test_a_training_that_is_stopped_goes_on_to_the_same_weights(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "one.safetensors"
    job = job_of(Asked("mos2", seed=2, epochs=2, windows=200))
    gathered = gather(job)

    def stop(epoch: Epoch) -> None:
        if epoch.restart == 1:
            raise KeyboardInterrupt

    training = begun(job, gathered, part_file(output), resume=False)
    with pytest.raises(Interrupted, match=r"stopped after 3 epochs; .* repeat with --resume"):
        run_epochs(training, part_file(output), card_of(job, gathered), stop)
    assert trained(*QUICK, "--output", str(output), "--no-report", "--resume").exit_code == 0
    assert output.read_bytes() == made.read_bytes()
    assert not part_file(output).exists()


def test_a_training_with_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    output = tmp_path / "one.safetensors"
    job = job_of(Asked("mos2", seed=4, epochs=2, windows=200))
    gathered = gather(job)
    training = begun(job, gathered, part_file(output), resume=False)
    save(part_file(output), kept_state(training), card_of(job, gathered))
    other = job_of(Asked("mos2", seed=4, epochs=5, windows=200))
    with pytest.raises(CheckpointError, match=r"begun by 'probeloop train rvae --preset mos2 --seed 4"):
        begun(other, gathered, part_file(output), resume=True)


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    ran = trained(*QUICK, "--output", str(tmp_path / "one.safetensors"), "--resume")
    assert ran.exit_code == 2
    assert "one.part.safetensors" in ran.output


# -- recordings and other weights ----------------------------------------------------------------------


def recording(folder: Path) -> Path:
    """Two frames of a sheet in a TIFF with its scale beside it."""
    from deploy.presets import mos2

    rng = np.random.default_rng(8)
    microscope = mos2.varied_microscope(rng)
    columns = mos2.columns_of(mos2.sheet(mos2.varied_crystal(rng), 5.0, rng))
    frames = np.stack([picture(columns, microscope, rng)[0].image[0] for _ in range(2)])
    file = folder / "sheet.tif"
    tifffile.imwrite(file, frames)
    (folder / "scale.json").write_text(json.dumps({"pixel_size_nm": microscope.pixel_nm}))
    return file


def test_weights_are_tuned_to_a_recording_of_ones_own(made: Path, tmp_path: Path) -> None:
    file = recording(tmp_path)
    scale = json.loads((tmp_path / "scale.json").read_text())["pixel_size_nm"]
    output = tmp_path / "tuned.safetensors"
    options = ["--from", str(file), "--preset", "mos2", "--pixel-size-nm", f"{scale:.6f}", "--epochs", "2"]
    ran = trained(*options, "--start", str(made), "--output", str(output))
    assert ran.exit_code == 0, ran.output
    (before, _, _), (tensors, card, _) = load(made), load(output)
    assert (card.name, card.simulator) == ("sheet", "")
    assert "2 recorded frames" in card.data
    assert f"--start {made}" in card.made_by
    assert tensors["draw_FD"].equal(before["draw_FD"])
    assert not tensors["draw.weight"].equal(before["draw.weight"])
    assert output.with_suffix(".html").exists()


def test_of_a_recording_no_labels_are_known(tmp_path: Path) -> None:
    job = job_of(Asked("mos2", recording=recording(tmp_path), pixel_size_nm=0.018, windows=200))
    assert isinstance(job.training.architecture, RVAEConfig)
    assert (job.training.architecture.classes, job.training.architecture.mixture) == (0, 12)
    assert gather(job).class_N is None


def test_a_recording_without_columns_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "flat.tif"
    tifffile.imwrite(file, np.full((2, 128, 128), 7.0, np.float32))
    options = ["--from", str(file), "--pixel-size-nm", "0.02", "--output", str(tmp_path / "w.safetensors")]
    ran = trained(*options)
    assert ran.exit_code == 2
    assert "has 0 windows" in ran.output
    assert not list(tmp_path.glob("*.safetensors"))


def test_weights_of_other_windows_are_no_start(made: Path, tmp_path: Path) -> None:
    ran = trained("--preset", "pfm-walls", "--windows", "200", "--start", str(made))
    assert ran.exit_code == 2
    assert "one.safetensors: knows 1 channels of 24 pixels" in ran.output


# -- wrong options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "weights.pt"], "weights.pt does not end in .safetensors"),
        (["--preset", "diamond"], "diamond: no such preset; it takes graphene-si"),
        (["--preset", "diffraction", "--window-nm", "1"], "diffraction takes diffraction patterns"),
        (["--from", "nowhere.tif"], "nowhere.tif does not exist"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = trained(*options)
    assert ran.exit_code == 2
    assert said in ran.output
    assert not list(tmp_path.iterdir())


def test_the_finder_takes_only_its_own_preset(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["finder", "--preset", "mos2", "--output", str(tmp_path / "f.safetensors")])
    assert ran.exit_code == 2
    assert "mos2 is none of the finder's; it takes columns" in ran.output
