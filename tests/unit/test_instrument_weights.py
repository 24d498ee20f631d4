from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy import instrument_weights
from deploy.instrument_weights import with_weights
from models.encoder import Encoder


def encode_of(tables: dict[str, Any]) -> dict[str, Any]:
    encode: dict[str, Any] = tables["streamer"]["pipeline"]["encode"]
    return encode


@pytest.mark.parametrize(("instrument", "channel"), [("pfm", "amplitude"), ("afm", "height")])
def test_an_instrument_without_atoms_gets_an_encoder_that_knows_its_channels(
    instrument: str, channel: str
) -> None:
    if not (shipped := with_weights({}, instrument)):
        pytest.skip(f"no weights for {instrument} are shipped yet: make them by probeloop train rvae")
    assert Encoder.load(encode_of(shipped)["weights"]).card.channels[0] == channel


def test_patterns_get_an_encoder_beside_that_of_the_columns() -> None:
    if not (shipped := with_weights({}, "diffraction")):
        pytest.skip("no weights for diffraction are shipped yet: make them by probeloop train rvae")
    encode = encode_of(shipped)
    assert "weights" not in encode
    assert Encoder.load(encode["beside"][0]["weights"]).card.channels == ("diffraction",)


def test_the_stem_keeps_its_own() -> None:
    assert with_weights({"agent": {"seed": 3}}, "stem") == {"agent": {"seed": 3}}


def test_weights_that_a_person_names_are_kept() -> None:
    tables = {"streamer": {"pipeline": {"encode": {"weights": "mine.safetensors"}}}}
    assert with_weights(tables, "pfm") == tables


def test_other_settings_stay_and_what_was_read_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(instrument_weights.MAIN, "afm", "graphene_si_rvae")  # any that is surely there
    tables = {"streamer": {"pipeline": {"sites": {"step_nm": 20.0}}, "hub": {"x": 1}}}
    told = with_weights(tables, "afm")
    assert Path(encode_of(told)["weights"]).is_file()
    assert told["streamer"]["pipeline"]["sites"] == {"step_nm": 20.0}
    assert told["streamer"]["hub"] == {"x": 1}
    assert "encode" not in tables["streamer"]["pipeline"]
