"""The configuration of a run joins the parts' own, refuses what it does not know, and can be written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.config import RunConfig, check, check_files, read_run_config
from deploy.run_session import complete_config
from deploy.tables import override, to_toml
from streamer.config_file import ConfigError

EXAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "examples").glob("*.toml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_everything_has_a_default() -> None:
    assert read_run_config(None) == RunConfig()


def test_every_process_finds_its_own_table(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.toml",
        "[streamer.experiment]\nmax_measurements = 7\n[agent]\nseed = 5\n[simulate.stem]\nrows = 128\n",
    )
    config = read_run_config(path)
    assert config.streamer.experiment.max_measurements == 7
    assert config.agent.seed == 5
    assert config.simulate.stem.rows == 128


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[strimmer]\n", "strimmer"),
        ("[streamer]\nhubb = 1\n", "hubb"),
        ("[streamer.hub]\nwindwo = 3\n", "windwo"),
        ("[agent]\nsede = 3\n", "sede"),
        ("[agent.objective]\nwindow = [1.0, 2.0]\n", "window"),
        ("[simulate.sem]\n", "sem"),
        ("[simulate.stem]\nfield_of_view = 3\n", "field_of_view"),
        ("[streamer.hub]\nwindow = 0\n", "window is 0"),
        ("[agent]\nmax_pending = 0\n", "max_pending is 0"),
        ("[agent]\npolicy = 'clever'\n", "clever"),
        ("[simulate.stem]\nrows = 3\n", "rows is 3"),
        ("[agent]\nseed = 'three'\n", "seed"),
        ("agent = 3\n", "agent"),
        ("[agent\n", "TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path / "run.toml", text)
    with pytest.raises(ConfigError) as refusal:
        read_run_config(path)
    words = str(refusal.value)
    assert "\n" not in words
    assert str(path) in words
    assert named in words


@pytest.mark.parametrize(
    ("text", "place", "takes"),
    [
        ("[streamer.pipeline.correct]\nmode = 'frozn'\n", "streamer.pipeline.correct.mode", "'frozen'"),
        ("[agent]\npolicy = 'clever'\n", "agent.policy", "'explorer'"),
        ("[streamer.pipeline.correct]\nmod = 'frozen'\n", "streamer.pipeline.correct", "hum_period_rows"),
        ("[streamer]\npipline = 3\n", "streamer", "pipeline"),
    ],
)
def test_a_wrong_word_is_refused_with_those_that_would_do(
    tmp_path: Path, text: str, place: str, takes: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_run_config(write(tmp_path / "run.toml", text))
    said, _, would_do = str(refusal.value).partition("; it takes ")
    assert f"{place}: " in said
    assert takes in would_do.split(", ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file"):
        read_run_config(tmp_path / "none.toml")


def test_the_command_line_goes_over_the_file_and_leaves_the_rest() -> None:
    tables = {"agent": {"seed": 1, "policy": "raster"}}
    changed = override(tables, {"agent.seed": 2, "agent.policy": None, "simulate.stem.seed": 2})
    assert changed == {"agent": {"seed": 2, "policy": "raster"}, "simulate": {"stem": {"seed": 2}}}
    assert tables == {"agent": {"seed": 1, "policy": "raster"}}


def test_a_configuration_written_as_toml_reads_the_same() -> None:
    config = check({"agent": {"seed": 9, "objective": {"window_ev": [90.0, 95.5]}}})
    assert check(tomllib.loads(to_toml(msgspec.to_builtins(config)))) == config


def test_tables_in_a_list_are_written_too() -> None:
    """Faults of an instrument, dopants of a specimen."""
    dopant = {"element": "W", "replaces": "Mo", "fraction": 0.1}
    fault = {"kind": "blank", "frame": 3}
    specimen = {"structure": "mos2", "crystal": {"dopants": [dopant, dopant]}}
    config = check({"simulate": {"stem": {"faults": [fault], "specimen": specimen}}})
    assert check(tomllib.loads(to_toml(msgspec.to_builtins(config)))) == config
    assert config.simulate.stem.specimen.crystal.dopants[1].element == "W"


def test_a_session_keeps_every_value_it_was_run_with(tmp_path: Path) -> None:
    path = write(tmp_path / "config.toml", "[agent]\nseed = 4\n")
    complete_config(path)
    tables = tomllib.loads(path.read_text())
    assert tables["agent"]["seed"] == 4
    assert tables["streamer"]["hub"]["window"] == RunConfig().streamer.hub.window
    assert tables["simulate"]["stem"]["rows"] == RunConfig().simulate.stem.rows


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)


@given(
    st.dictionaries(
        names, scalars | st.lists(scalars, max_size=3) | st.dictionaries(names, scalars, min_size=1)
    )
)
def test_any_tables_survive_being_written(tables: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(tables)) == tables


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes has no place"):
        to_toml({"key": b"raw"})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_configurations(path: Path) -> None:
    assert read_run_config(path) != RunConfig()


def test_files_of_an_objective_are_opened_before_anything_starts(tmp_path: Path) -> None:
    own = write(tmp_path / "own.py", "def value(spectrum, axis)\n    return 1\n")
    config = check({"agent": {"second_objective": {"kind": "file", "file": str(own)}}})
    with pytest.raises(
        ConfigError, match=r"run.toml: agent.second_objective.file: .*own.py, line 1: SyntaxError"
    ):
        check_files(config.agent, "run.toml: ")
    write(own, "def value(spectrum, axis):\n    return 1\n")
    check_files(config.agent)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


def test_windows_that_the_agent_looks_at_must_be_sent_by_its_encoder() -> None:
    beside = [{"name": "wide", "weights": "wide.safetensors"}]
    agent = {"features": ["latents", "windows"]}
    with pytest.raises(ConfigError, match=r"set streamer\.pipeline\.encode\.send_windows = true"):
        check({"agent": agent})
    streamer = {"pipeline": {"encode": {"send_windows": True, "beside": beside}}}
    assert check({"agent": agent, "streamer": streamer}).agent.sees_windows
    of_other = {"agent": agent | {"encoder": "wide"}, "streamer": streamer}
    with pytest.raises(ConfigError, match=r"encoder 'wide'; set .*encode\.beside\.send_windows = true"):
        check(of_other)
    beside[0]["send_windows"] = True  # type: ignore[assignment]
    assert check(of_other).streamer.pipeline.encode.sending == {"", "wide"}
