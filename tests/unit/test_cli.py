"""The command line: quick to answer, clear when it refuses, and no process left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from deploy import local
from deploy.bench import find_benchmarks, run_benchmarks
from deploy.control_command import _Console, _settings_of, _what_came
from deploy.doctor import (
    Finding,
    as_table,
    check_folder,
    check_packages,
    check_port,
    check_python,
    is_fit,
)
from deploy.run_session import choose_addresses, prepare_folder
from deploy.supervise import Endpoints, Service
from simulators.stem import StemConfig
from streamer.config_file import ConfigError, convert
from streamer.messages import Outcome

COMMANDS = ("run", "replay", "simulate", "stream", "agent", "report", "explain", "doctor", "bench", "control")
LOADED_BY_NOBODY_WHO_ASKS_FOR_HELP = ("torch", "numpy", "zmq", "matplotlib", "botorch", "numba", "scipy")


@pytest.fixture
def cli() -> Callable[..., tuple[int, str]]:
    """Run the command line in this process; give the exit code and all it printed."""

    def call(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(local.app, list(words), env={"COLUMNS": "200"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return call


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what the command line would have become, instead of becoming it."""
    said: list[str] = []

    def note(_program: str, words: list[str], _environment: dict[str, str]) -> None:
        said.extend(words[1:])

    monkeypatch.setattr(os, "execve", note)
    return said


# -- commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(cli: Callable[..., tuple[int, str]], command: str) -> None:
    code, text = cli(command, "--help")
    assert code == 0
    assert "Usage" in text


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from deploy.local import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "typer" in loaded
    assert loaded.isdisjoint(LOADED_BY_NOBODY_WHO_ASKS_FOR_HELP)


def test_the_version_is_that_of_the_package(cli: Callable[..., tuple[int, str]]) -> None:
    code, text = cli("--version")
    assert (code, text.split()[0]) == (0, "probeloop")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("run", "--policy", "clever"), "clever"),
        (("run", "--measurements", "-3"), "measurements"),
        (("run", "--config", "none.toml"), "none.toml: there is no such file"),
        (("replay", "nowhere.hdf5"), "nowhere.hdf5: there is no such file"),
        (("report", "nowhere"), "nowhere holds no journal"),
        (("bench", "nonsense"), "there is no benchmark nonsense"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(
    cli: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = cli(*words)
    assert code == 2
    assert named in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_configuration_starts_nothing(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[agent]\nsede = 3\n")
    code, text = cli("run", "--config", str(config), "--session-folder", str(tmp_path / "session"))
    assert code == 2
    assert "sede" in text
    assert not (tmp_path / "session").exists()


def test_a_session_never_overwrites_another(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "journal-000001.plj").write_bytes(b"precious")
    code, text = cli("run", "--session-folder", str(tmp_path))
    assert code == 2
    assert "never overwrites another" in text
    assert [path.name for path in tmp_path.iterdir()] == ["journal-000001.plj"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(OSError, match="choose another --session-folder"):
        prepare_folder(path)


def test_stream_becomes_the_streamer(cli: Callable[..., tuple[int, str]], become: list[str]) -> None:
    cli("stream", "--session-folder", "here", "--bind", "tcp://127.0.0.1:0", "--measurements", "5")
    assert become == [
        *("-m", "streamer", "--session-folder", "here"),
        *("--bind", "tcp://127.0.0.1:0", "--max-measurements", "5"),
    ]


def test_agent_and_simulator_take_over_what_was_said(
    cli: Callable[..., tuple[int, str]], become: list[str]
) -> None:
    cli("agent", "--connect", "tcp://127.0.0.1:1", "--policy", "raster", "--seed", "3")
    assert become == ["-m", "agents", "--connect", "tcp://127.0.0.1:1", "--policy", "raster", "--seed", "3"]
    become.clear()
    cli("simulate", "stem", "--connect", "tcp://127.0.0.1:1", "--speed", "max")
    assert become == ["-m", "simulators", "stem", "--connect", "tcp://127.0.0.1:1", "--speed", "max"]


@pytest.mark.parametrize("module", ["streamer", "agents"])
def test_the_processes_know_the_options_that_they_are_given(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    given = {
        "streamer": ("--session-folder", "--config", "--bind", "--max-measurements"),
        "agents": ("--connect", "--config", "--policy", "--seed", "--timeout-s"),
    }
    for option in given[module]:
        assert option in done.stdout, option


def test_a_fixed_address_is_kept_and_port_0_becomes_a_free_one() -> None:
    fixed = {"bind": "tcp://127.0.0.1:5123", "view_bind": "tcp://127.0.0.1:5124"}
    assert choose_addresses({"streamer": {"hub": fixed}}) == tuple(fixed.values())
    address, view_address = choose_addresses({"streamer": {"hub": {"bind": "tcp://127.0.0.1:0"}}})
    assert address != view_address
    for chosen in (address, view_address):
        # Not one of those that the system gives away: the streamer must get it back after a restart.
        assert 20_000 <= int(chosen.removeprefix("tcp://127.0.0.1:")) < 30_000


# -- benchmarks and doctor -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "has_agent"),
    [
        ([], True),
        (["--instrument", "pfm"], False),
        (["--instrument", "pfm", "--policy", "random"], True),
    ],
)
def test_a_film_is_not_written_on_by_an_agent_that_nobody_named(
    cli: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    has_agent: bool,
) -> None:
    """What the analysis takes for atoms in a PFM's frames are walls, and a loop there writes a domain."""
    started: list[str] = []
    monkeypatch.setattr(Service, "start_module", lambda _, name, *words: started.append(name))
    monkeypatch.setattr("deploy.run_session.watch", lambda *_: None)
    monkeypatch.setattr("deploy.run_session._finish", lambda *_: None)
    code, _ = cli("run", *words, "--no-live", "--session-folder", str(tmp_path / "s"))

    assert code == 0
    assert started == ["streamer", "instrument", *(["agent"] if has_agent else [])]


@pytest.mark.parametrize(
    ("bias_v", "says"),
    [(None, ", 6 counts"), ([-6.0, 6.0, 0.0], ", a loop of 3 points from -6 to 6 V")],
)
def test_a_loop_is_not_told_in_counts(bias_v: list[float] | None, says: str) -> None:
    outcome = Outcome(
        session="s",
        id="r",
        status="ok",
        scan_position_nm=(0.0, 0.0),
        spectrum=np.array([1, 2, 3], dtype=np.float32),
        bias_v=None if bias_v is None else np.array(bias_v, dtype=np.float32),
    )

    assert _what_came(outcome) == says


def test_a_wrong_word_in_a_list_of_tables_is_told_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"stem.faults\[0\].kind: Invalid .*; it takes 'blank', .*'link'"):
        convert({"faults": [{"frame": 1, "kind": "explode"}]}, StemConfig, "stem")


def test_benchmarks_are_found_by_name_and_run_with_their_flags(tmp_path: Path) -> None:
    note = tmp_path / "said"
    (tmp_path / "one.py").write_text(f"import sys; open({str(note)!r}, 'a').write(' '.join(sys.argv[1:]))")
    (tmp_path / "two.py").write_text("raise SystemExit(3)")
    assert [path.stem for path in find_benchmarks(tmp_path, None)] == ["one", "two"]
    assert run_benchmarks(find_benchmarks(tmp_path, "one"), as_json=True, is_quick=True) == 0
    assert note.read_text() == "--json --quick"
    assert run_benchmarks(find_benchmarks(tmp_path, None), as_json=False, is_quick=False) == 3


def test_without_a_checkout_the_benchmarks_say_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="come with a checkout"):
        find_benchmarks(tmp_path / "nowhere", None)


def test_the_doctor_refuses_an_old_python() -> None:
    assert check_python((3, 10, 4)).verdict == "wrong"
    assert check_python((3, 12, 0)).verdict == "ok"


def test_the_doctor_finds_our_packages_and_misses_those_that_are_not_there() -> None:
    assert check_packages().verdict == "ok"
    assert check_packages("no-such-distribution").verdict == "wrong"


def test_the_doctor_finds_a_port_and_a_folder(tmp_path: Path) -> None:
    assert check_port().verdict == "ok"
    assert check_folder(tmp_path).verdict in ("ok", "note")
    assert check_folder(tmp_path / "nowhere" / "deeper").verdict == "wrong"


def test_the_doctor_fails_on_what_is_wrong_and_not_on_what_is_a_note() -> None:
    note, wrong = Finding("a", "note", "slow"), Finding("b", "wrong", "missing", "install it")
    assert is_fit([note])
    assert not is_fit([note, wrong])
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(as_table([note, wrong]))
    assert "install it" in capture.get()


def test_a_change_is_checked_against_the_configuration_of_the_session(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[agent.objective]\nkind = "loop_area"\n')
    endpoints = Endpoints(address="ipc://a", view_address="ipc://v", metrics_url="", session="s", pid=1)
    (tmp_path / "endpoints.json").write_bytes(msgspec.json.encode(endpoints))
    config = _Console(None, tmp_path, None).agent_config()
    assert _settings_of(["objective.response_unit=nm"], config) == {"objective": {"response_unit": "nm"}}
    with pytest.raises(typer.Exit):
        _settings_of(["objective.window_ev=[10,40]"], config)
