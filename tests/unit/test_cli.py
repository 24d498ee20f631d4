"""The command line: quick to answer, clear when it refuses, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from deploy import local, supervise
from deploy.bench import find_benchmarks, run_benchmarks
from deploy.doctor import (
    Finding,
    as_table,
    check_folder,
    check_packages,
    check_port,
    check_python,
    is_fit,
)
from deploy.run_session import choose_address, prepare_folder
from deploy.supervise import Interrupts, Service, ServiceError, last_lines, read_endpoints, watch

COMMANDS = ("run", "replay", "simulate", "stream", "agent", "report", "doctor", "bench")
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
    fixed = {"streamer": {"hub": {"bind": "tcp://127.0.0.1:5123"}}}
    assert choose_address(fixed) == "tcp://127.0.0.1:5123"
    chosen = choose_address({})
    assert chosen.startswith("tcp://127.0.0.1:")
    assert not chosen.endswith(":0")


# -- benchmarks and doctor -----------------------------------------------------------------------


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


# -- supervision: real processes, small ones ---------------------------------------------------------

ORDERLY = """
import json, pathlib, signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
names = ("address", "view_address", "metrics_url", "session")
where = {name: "tcp://127.0.0.1:1" for name in names} | {"pid": 1}
pathlib.Path("endpoints.part").write_text(json.dumps(where))
pathlib.Path("endpoints.part").replace("endpoints.json")
signal.pause()
"""
STUBBORN = "from signal import *\nfor number in (SIGINT, SIGTERM): signal(number, SIG_IGN)\n"
WAITS = "import time\ntime.sleep(60)\n"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Give a service whose processes are all ended afterwards."""
    monkeypatch.chdir(tmp_path)
    made = Service(tmp_path)
    yield made
    made.kill()


def start(service: Service, name: str, program: str) -> supervise.Child:
    return service.start(name, (sys.executable, "-c", program))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_down(service: Service, interrupts: Interrupts, tick: Callable[[], None] | None = None) -> None:
    """Watch with a clock that runs a hundred times as fast as the wall's."""
    watch(service, interrupts, tick or (lambda: time.sleep(0.01)), lambda: 100 * time.monotonic())


def test_a_session_that_ends_well_is_no_error(service: Service) -> None:
    for name in ("streamer", "instrument", "agent"):
        start(service, name, f"print('{name} was here')")
    run_down(service, Interrupts())
    assert last_lines(service.session_folder / "logs" / "agent.log") == "agent was here"


def test_a_process_that_dies_ends_the_rest_and_shows_the_end_of_its_log(service: Service) -> None:
    streamer = start(service, "streamer", ORDERLY)
    wait_for(service.look_for_endpoints)
    start(service, "agent", "raise SystemExit('no such thing as a lattice')")
    with pytest.raises(ServiceError, match="no such thing as a lattice") as failure:
        run_down(service, Interrupts())
    assert "the agent ended with exit code 1" in str(failure.value)
    assert str(service.session_folder / "logs" / "agent.log") in str(failure.value)
    assert streamer.process.returncode == 0


def test_a_refused_file_or_setting_is_told_in_its_own_line(service: Service) -> None:
    start(service, "streamer", ORDERLY)
    wait_for(service.look_for_endpoints)
    refusing = (
        "print('settings …'); print('movie carries no scale; use --pixel-size-nm'); raise SystemExit(2)"
    )
    start(service, "instrument", refusing)
    with pytest.raises(ServiceError, match=r"^the instrument refused to start: movie carries no scale"):
        run_down(service, Interrupts())


def test_the_streamer_is_blamed_first(service: Service) -> None:
    start(service, "agent", "raise SystemExit(1)")
    start(service, "streamer", "raise SystemExit('a bug')")
    wait_for(lambda: not any(child.running() for child in service.children))
    with pytest.raises(ServiceError, match="the streamer ended with exit code 1"):
        run_down(service, Interrupts())


def test_the_first_interrupt_ends_in_order_and_is_no_error(service: Service) -> None:
    start(service, "streamer", ORDERLY)
    wait_for(service.look_for_endpoints)
    interrupts = Interrupts()
    interrupts.count = 1
    run_down(service, interrupts)
    assert [child.process.returncode for child in service.children] == [0]


def test_the_second_interrupt_kills_whoever_does_not_listen(service: Service) -> None:
    child = start(service, "streamer", STUBBORN + "print('deaf', flush=True)\n" + WAITS)
    wait_for(lambda: last_lines(child.log) == "deaf")
    interrupts = Interrupts()
    interrupts.count = 2
    with pytest.raises(ServiceError, match="stopped at once"):
        run_down(service, interrupts)
    assert child.process.returncode == -signal.SIGKILL


def test_whoever_outstays_the_streamer_is_ended(service: Service) -> None:
    start(service, "streamer", "print('done')")
    deaf = start(service, "agent", STUBBORN + "print('deaf', flush=True)\n" + WAITS)
    wait_for(lambda: last_lines(deaf.log) == "deaf")
    with pytest.raises(ServiceError, match="the agent was ended by SIGKILL"):
        run_down(service, Interrupts())


def test_stopping_before_the_streamer_is_ready_is_no_error(service: Service) -> None:
    for name in ("streamer", "agent"):
        start(service, name, WAITS)
    interrupts = Interrupts()
    interrupts.count = 1
    run_down(service, interrupts)
    assert all(child.process.returncode for child in service.children)


def test_who_gave_up_on_a_slow_streamer_is_started_again(service: Service, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    slow = "import pathlib, time\nwhile not pathlib.Path('gate').exists(): time.sleep(0.01)\n" + ORDERLY
    start(service, "streamer", slow)
    impatient = (
        "import pathlib, sys\n"
        "first = not pathlib.Path('tried').exists()\n"
        "pathlib.Path('tried').touch()\n"
        "if first: print('no streamer answers at x within 10 s'); sys.exit(1)\n"
        "pathlib.Path('gate').touch()\n"
    )
    start(service, "instrument", impatient)
    interrupts = Interrupts()

    def tick() -> None:
        interrupts.count = 1 if gate.exists() and service.look_for_endpoints() else 0
        time.sleep(0.01)

    watch(service, interrupts, tick)
    assert gate.exists()


def test_a_streamer_that_is_never_ready_is_given_up(service: Service) -> None:
    start(service, "streamer", "print('thinking', flush=True)\n" + WAITS)
    with pytest.raises(ServiceError, match="the streamer was not ready within"):
        watch(service, Interrupts(), lambda: time.sleep(0.01), lambda: 1000 * time.monotonic())


def test_a_bug_of_ours_leaves_no_process_behind(service: Service) -> None:
    child = start(service, "streamer", WAITS)

    def tick() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_down(service, Interrupts(), tick)
    assert child.process.returncode is not None


def test_processes_compute_on_one_thread_in_a_group_of_their_own(service: Service) -> None:
    child = start(
        service, "agent", "import os; print(os.environ['OMP_NUM_THREADS'], os.getpgid(0) == os.getpid())"
    )
    run_down(service, Interrupts())
    assert last_lines(child.log) == "1 True"


def test_interrupts_are_counted_while_they_are_watched_for() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: interrupts.count == 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_endpoints_that_are_half_written_are_not_read(tmp_path: Path) -> None:
    assert read_endpoints(tmp_path) is None
    (tmp_path / "endpoints.json").write_text('{"address": "tcp://127')
    assert read_endpoints(tmp_path) is None
