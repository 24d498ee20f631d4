"""Several encoders look at one frame, each at windows of its own; the main one's latents stay the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from models.encoder import Encoder
from simulators.stem import StemConfig, StemInstrument
from streamer.config_file import ConfigError, convert
from streamer.encoders import MAIN, STAND_IN, Lane
from streamer.messages import Frame, Patches
from streamer.pipeline import Pipeline, PipelineConfig, Processed
from streamer.stages.encode import EncodeConfig
from tests.other_weights import other_weights

WIDE_NM = 1.2


class Counting:
    """A meter that remembers what it was told."""

    def __init__(self) -> None:
        self.took: Counter[str] = Counter()
        self.rejected: list[tuple[str, str]] = []

    def stage_took(self, stage: str, seconds: float) -> None:
        self.took[stage] += 1

    def stage_rejected(self, stage: str, reason: str) -> None:
        self.rejected.append((stage, reason))


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """Two frames of graphene with silicon, 2.4 nm wide; seed 6."""
    config = StemConfig(rows=160, cols=160, field_of_view_nm=2.4, carbon_counts=200.0, seed=6)
    instrument = StemInstrument(config, started_at_s=0.0)
    return [replace(instrument.acquire(), session="s", number=number) for number in range(2)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return other_weights(tmp_path_factory.mktemp("weights"), "wide", window_nm=WIDE_NM)


def pipeline(**beside: Path) -> Pipeline:
    table = {"encode": {"beside": [{"name": name, "weights": str(path)} for name, path in beside.items()]}}
    return Pipeline.build(convert(table, PipelineConfig, "pipeline"))


def processed(line: Pipeline, frames: list[Frame]) -> list[Processed]:
    results = [line.process(frame, Counting()) for frame in frames]
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]


def test_another_encoder_says_what_it_would_say_alone(frames: list[Frame], wide: Path) -> None:
    both = processed(pipeline(wide=wide), frames)
    alone = processed(Pipeline(PipelineConfig(), Encoder.load(wide)), frames)
    for seen, by_itself in zip(both, alone, strict=True):
        (beside,) = seen.beside
        assert beside.encoder == "wide"
        assert beside.model_revision == by_itself.latents.model_revision != seen.latents.model_revision
        assert np.array_equal(beside.mean, by_itself.latents.mean)
        assert np.array_equal(beside.positions_px, by_itself.latents.positions_px)


def test_the_main_latents_do_not_know_of_encoders_beside_them(frames: list[Frame], wide: Path) -> None:
    with_others, without = processed(pipeline(wide=wide), frames), processed(pipeline(), frames)
    for one, other in zip(with_others, without, strict=True):
        assert one.latents.encoder == ""
        assert np.array_equal(one.latents.mean, other.latents.mean)
        assert np.array_equal(one.latents.track, other.latents.track)


def test_an_atom_has_one_track_whoever_looks_at_it(frames: list[Frame], wide: Path) -> None:
    """Wider windows lie within the frame for fewer atoms: what is left out must not shift the rest."""
    second = processed(pipeline(wide=wide), frames)[1]
    (beside,) = second.beside
    assert 0 < len(beside.track) < len(second.latents.track)
    place = dict(zip(second.latents.track.tolist(), second.latents.positions_px.tolist(), strict=True))
    assert [place[track] for track in beside.track.tolist()] == beside.positions_px.tolist()


def test_atoms_that_the_main_encoder_has_no_window_for_have_no_track(
    frames: list[Frame], wide: Path, tmp_path: Path
) -> None:
    narrow = other_weights(tmp_path, "narrow", window_nm=0.4)
    line = Pipeline(PipelineConfig(), Encoder.load(wide), beside={"narrow": Encoder.load(narrow)})
    first = processed(line, frames[:1])[0]
    (beside,) = first.beside
    known = {tuple(place) for place in first.latents.positions_px.tolist()}
    is_known = np.array([tuple(place) in known for place in beside.positions_px.tolist()])
    assert 0 < is_known.sum() < len(is_known)
    assert np.array_equal(beside.track >= 0, is_known)


def test_an_encoder_that_finds_no_window_costs_the_frame_nothing(frames: list[Frame], tmp_path: Path) -> None:
    line = pipeline(huge=other_weights(tmp_path, "huge", window_nm=5.0))
    meter = Counting()
    result = line.process(frames[0], meter)
    assert result is not None
    assert result.beside == ()
    assert [tuple(one) for one in result.missing] == [("huge", "no windows")]
    assert meter.rejected == []


def test_times_are_told_of_each_encoder_by_itself(frames: list[Frame], wide: Path) -> None:
    meter = Counting()
    pipeline(wide=wide).process(frames[0], meter)
    assert {"windows", "windows wide", "encode", "encode wide"} <= meter.took.keys()


def test_delivered_windows_go_to_the_encoder_that_knows_them(wide: Path, make_patches) -> None:
    card = Encoder.load(wide).card
    windows = np.random.default_rng(0).random((4, 1, card.window_px, card.window_px), dtype=np.float32)
    delivered: Patches = make_patches(
        windows, channels=card.channels, window_nm=WIDE_NM, window_per_nm=0.0, request_id="r"
    )
    result = pipeline(wide=wide).process(delivered, Counting())
    assert result is not None
    assert (result.latents.encoder, result.latents.is_delivered) == ("wide", True)
    assert not result.latents.is_beside
    assert result.latents.request_id == "r"
    meter = Counting()
    assert pipeline().process(delivered, meter) is None
    assert meter.rejected == [("fits", "other window")]


def test_a_pattern_is_brought_to_the_windows_that_its_encoder_knows(tmp_path: Path, make_patches) -> None:
    weights = other_weights(
        tmp_path,
        "patterns",
        channels=("diffraction",),
        window_nm=0.0,
        window_per_nm=6.0,
        normalisation="pattern",
    )
    line = pipeline(patterns=weights)
    counts = np.random.default_rng(3).poisson(5.0, (4, 1, 96, 96)).astype(np.float32)
    result = line.process(make_patches(counts), Counting())  # 8 per nm wide
    brighter = line.process(make_patches(4 * counts), Counting())
    assert result is not None
    assert brighter is not None
    assert result.latents.encoder == "patterns"
    assert np.allclose(result.latents.mean, brighter.latents.mean, atol=1e-4)  # the rule takes the dose out


@pytest.mark.parametrize(
    ("beside", "what"),
    [
        ([{"name": "Wide!", "weights": "w.safetensors"}], "encode.beside.name is 'Wide!'"),
        ([{"name": "", "weights": "w.safetensors"}], "encode.beside.name is ''"),
        ([{"name": "wide", "weights": ""}], "encode.beside.weights of 'wide' is empty"),
        ([{"name": "a", "weights": "w"}, {"name": "a", "weights": "v"}], "it takes each once"),
    ],
)
def test_a_name_that_says_nothing_is_refused(beside: list[dict[str, str]], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        convert({"beside": beside}, EncodeConfig, "encode")


def test_other_weights_take_over_between_two_frames(frames: list[Frame], wide: Path) -> None:
    """As if the pipeline had always had them: distortion and tracks are not known by the encoder."""
    line = pipeline()
    first = line.process(frames[0], Counting())
    line.use(Lane(MAIN, Encoder.load(wide)))
    second = line.process(frames[1], Counting())
    before = processed(pipeline(), frames)
    after = processed(Pipeline(PipelineConfig(), Encoder.load(wide)), frames)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.latents.mean, before[0].latents.mean)
    assert np.array_equal(second.latents.mean, after[1].latents.mean)
    assert second.latents.model_revision == after[1].latents.model_revision
    assert second.latents.registration.drift_nm == after[1].latents.registration.drift_nm
    known = np.isin(second.latents.track, first.latents.track)
    assert known.mean() > 0.9


def test_an_encoder_beside_is_changed_by_its_name_alone(
    frames: list[Frame], wide: Path, tmp_path: Path
) -> None:
    line = pipeline(wide=wide)
    other = Encoder.load(other_weights(tmp_path, "other", window_nm=1.0))
    line.use(Lane("wide", other))
    result = processed(line, frames[:1])[0]
    assert result.latents.model_revision != other.revision
    assert [one.model_revision for one in result.beside] == [other.revision]


def test_a_stand_in_answers_for_frames_of_channels_that_the_main_encoder_does_not_know(
    frames: list[Frame], tmp_path: Path
) -> None:
    other = Encoder.load(other_weights(tmp_path, "maadf", channels=("MAADF",), window_nm=0.8))
    line = Pipeline(PipelineConfig(), Encoder.load(None), beside={f"{STAND_IN}maadf": other})
    usual = line.process(frames[0], Counting())
    unusual = line.process(replace(frames[1], channels=("MAADF trace",)), Counting())
    assert usual is not None
    assert unusual is not None
    assert usual.latents.model_revision != other.revision
    assert unusual.latents.model_revision == other.revision
    assert (unusual.latents.encoder, unusual.beside, usual.beside) == ("", (), ())
    assert (unusual.latents.track >= 0).all()


def test_windows_go_with_the_latents_of_those_that_are_told_to_send_them(
    frames: list[Frame], wide: Path
) -> None:
    beside = {"name": "wide", "weights": str(wide), "send_windows": True}
    line = Pipeline.build(convert({"encode": {"beside": [beside]}}, PipelineConfig, "pipeline"))
    (first,) = processed(line, frames[:1])
    assert first.latents.windows is None
    (seen,) = first.beside
    assert seen.windows is not None
    assert seen.windows.shape[:2] == (len(seen.mean), 1)
    line.use(Lane("wide", Encoder.load(wide)))  # other weights in its place send them as well
    (second,) = processed(line, frames[1:])
    assert second.beside[0].windows is not None
    (closer,) = processed(line, [replace(frames[1], number=2, request_id="a-scan")])
    assert closer.beside[0].request_id == "a-scan"
    assert closer.beside[0].windows is None, "nobody decides on a sub-scan"
