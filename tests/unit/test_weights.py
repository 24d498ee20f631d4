"""A session keeps the weights that encode its frames, and takes in others only if they can be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from models.checkpoint import CheckpointError
from models.encoder import SHIPPED, Encoder
from streamer.encoders import MAIN, STAND_IN
from streamer.messages import Control
from streamer.stages.encode import BesideConfig, EncodeConfig
from streamer.weights import Ready, Shelf, adopt, as_control, kept, of_session, revision_of
from tests.other_weights import other_weights


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "session", {MAIN: Encoder.load(SHIPPED).card})
    yield made
    made.close()


def answer(shelf: Shelf, control: Control) -> Ready:
    shelf.begin(control)
    shelf._waiting[0][1].exception(timeout=30)
    ready = shelf.get()
    assert ready is not None
    return ready


def test_weights_are_named_by_the_hash_that_latents_carry() -> None:
    assert revision_of(SHIPPED.read_bytes()) == Encoder.load(SHIPPED).revision


def test_a_session_begins_with_copies_of_what_its_configuration_names(tmp_path: Path) -> None:
    wide = other_weights(tmp_path, "wide", window_nm=1.2)
    config = EncodeConfig(beside=(BesideConfig(name="wide", weights=str(wide)),))
    adopted = adopt(config, tmp_path / "session")
    assert [name for name in adopted if not name.startswith(STAND_IN)] == [MAIN, "wide"]
    assert adopted[MAIN].read_bytes() == SHIPPED.read_bytes()
    assert adopted["wide"].read_bytes() == wide.read_bytes()
    assert all(path.is_relative_to(tmp_path / "session") for path in adopted.values())


def test_weights_that_are_trained_anew_meanwhile_change_nothing_in_a_session(tmp_path: Path) -> None:
    path = other_weights(tmp_path, "mine")
    config, session = EncodeConfig(weights=str(path)), tmp_path / "session"
    before = Encoder.load(adopt(config, session)[MAIN]).revision
    other_weights(tmp_path, "mine", seed=99)
    assert Encoder.load(path).revision != before
    assert Encoder.load(adopt(config, session)[MAIN]).revision == before
    path.unlink()
    assert Encoder.load(of_session(config, session)[MAIN]).revision == before


def test_an_encoder_that_is_added_to_a_session_is_taken_in_too(tmp_path: Path) -> None:
    session, wide = tmp_path / "session", other_weights(tmp_path, "wide", window_nm=1.2)
    adopt(EncodeConfig(), session)
    adopted = adopt(EncodeConfig(beside=(BesideConfig(name="wide", weights=str(wide)),)), session)
    assert adopted["wide"].read_bytes() == wide.read_bytes()


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: there are no such weights"):
        adopt(EncodeConfig(weights=str(tmp_path / "nowhere.safetensors")), tmp_path / "session")


def test_weights_that_fit_are_kept_and_made_ready(shelf: Shelf, tmp_path: Path) -> None:
    data = other_weights(tmp_path, "finer", window_nm=0.8).read_bytes()
    ready = answer(shelf, as_control(data, reason="wider windows"))
    assert ready.lane is not None
    assert (ready.lane.name, ready.lane.encoder.revision) == (MAIN, revision_of(data))
    assert ready.lane.encoder.card.name == "finer"
    assert (ready.control.reason, ready.control.weights) == ("wider windows", None)
    path = kept(tmp_path / "session", revision_of(data))
    assert path is not None
    assert path.read_bytes() == data


def test_weights_that_the_session_had_can_be_put_back_by_their_revision(shelf: Shelf, tmp_path: Path) -> None:
    session = tmp_path / "session"
    adopt(EncodeConfig(), session)
    revision = revision_of(SHIPPED.read_bytes())
    assert answer(shelf, Control(action="encoder", revision=revision)).lane is not None
    unknown = answer(shelf, Control(action="encoder", revision="0" * 12))
    assert unknown.lane is None
    assert "weights 000000000000 are not in" in unknown.why_not


def test_a_damaged_file_is_refused_by_name_and_not_kept(shelf: Shelf, tmp_path: Path) -> None:
    data = other_weights(tmp_path, "broken").read_bytes()[:-100]
    ready = answer(shelf, as_control(data))
    assert ready.lane is None
    assert f"{revision_of(data)}.safetensors: not a whole safetensors file" in ready.why_not
    assert kept(tmp_path / "session", revision_of(data)) is None


def test_bytes_that_were_changed_on_the_way_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    data = other_weights(tmp_path, "good").read_bytes()
    ready = answer(shelf, replace(as_control(data), revision="abcdefabcdef"))
    assert ready.lane is None
    assert "weights abcdefabcdef came damaged" in ready.why_not


def test_weights_for_other_channels_are_refused_by_name(shelf: Shelf, tmp_path: Path) -> None:
    data = other_weights(tmp_path, "height", channels=("height",)).read_bytes()
    ready = answer(shelf, as_control(data))
    assert ready.lane is None
    assert "weights height" in ready.why_not
    assert "they look at height; the encoder in whose place they would be looks at HAADF" in ready.why_not


def test_an_encoder_that_the_session_lacks_is_named(shelf: Shelf, tmp_path: Path) -> None:
    control = as_control(b"any", encoder="wide")
    assert shelf.why_not(control) == "unknown encoder: 'wide'; this session has the main one"
    assert shelf.why_not(as_control(b"any")) == ""


def test_requests_are_answered_in_their_order(shelf: Shelf, tmp_path: Path) -> None:
    good = other_weights(tmp_path, "good").read_bytes()
    for data in (b"no weights", good, b"nor these"):
        shelf.begin(as_control(data))
    shelf._waiting[-1][1].exception(timeout=30)
    came = [shelf.get() for _ in range(3)]
    assert [one is not None and one.lane is not None for one in came] == [False, True, False]
    assert shelf.get() is None


@pytest.mark.parametrize("revision", ["", "../../etc/pas", "ABCDEF012345", "abcdef01234"])
def test_a_revision_that_could_name_another_file_is_no_message(revision: str) -> None:
    with pytest.raises(ValueError, match=r"control.revision"):
        Control(action="encoder", revision=revision)
