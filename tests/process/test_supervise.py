"""Watching over the processes of the service: who dies is started again, and none is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import supervise
from deploy.supervise import (
    Interrupts,
    Patience,
    Service,
    ServiceError,
    how_it_ended,
    last_lines,
    read_endpoints,
    watch,
)

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
    watch(service, interrupts, tick or nap, lambda: 100 * time.monotonic())


def nap() -> None:
    time.sleep(0.01)


def test_a_session_that_ends_well_is_no_error(service: Service) -> None:
    for name in ("streamer", "instrument", "agent"):
        start(service, name, f"print('{name} was here')")
    run_down(service, Interrupts())
    assert last_lines(service.session_folder / "logs" / "agent.log") == "agent was here"


def test_who_dies_again_and_again_ends_the_session_in_order_with_the_end_of_its_log(
    service: Service,
) -> None:
    streamer = start(service, "streamer", ORDERLY)
    wait_for(service.look_for_endpoints)
    start(service, "agent", "raise SystemExit('no such thing as a lattice')")
    with pytest.raises(ServiceError, match="no such thing as a lattice") as failure:
        watch(service, Interrupts(), nap)
    assert "the agent ended with exit code 1, after 5 restarts within 60 s" in str(failure.value)
    assert str(service.session_folder / "logs" / "agent.log") in str(failure.value)
    assert [str(restart) for restart in service.restarts] == ["restarted agent (exit code 1)"] * 5
    assert streamer.process.returncode == 0


# It notes that it was started, and waits for the test to end it: by a file, or by a signal.
UNTIL_TOLD = """
import pathlib, sys, time
with open(f"{sys.argv[1]}.starts", "a") as starts: print("started", file=starts, flush=True)
while not pathlib.Path("over").exists(): time.sleep(0.005)
"""
LONE_STREAMER = ORDERLY.replace("signal.pause()", UNTIL_TOLD)


def start_all(service: Service) -> None:
    for name, program in (("streamer", LONE_STREAMER), ("instrument", UNTIL_TOLD), ("agent", UNTIL_TOLD)):
        service.start(name, (sys.executable, "-c", program, name))


def starts(service: Service, name: str) -> int:
    path = service.session_folder / f"{name}.starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def child(service: Service, name: str) -> supervise.Child:
    return next(child for child in service.children if child.name == name)


@pytest.mark.parametrize("name", ["streamer", "instrument", "agent"])
def test_who_is_killed_is_started_again_and_a_session_that_then_ends_well_is_no_error(
    service: Service, name: str
) -> None:
    start_all(service)
    wait_for(lambda: service.look_for_endpoints() and all(starts(service, c.name) for c in service.children))
    first = child(service, name)

    def tick() -> None:
        if starts(service, name) == 1:
            first.process.kill()
        elif starts(service, name) == 2 and service.is_streamer_ready():
            (service.session_folder / "over").touch()
        nap()

    watch(service, Interrupts(), tick)
    assert [str(restart) for restart in service.restarts] == [f"restarted {name} (killed by SIGKILL)"]
    assert child(service, name).command == first.command
    assert {c.name: starts(service, c.name) for c in service.children} == {
        "streamer": 1,
        "instrument": 1,
        "agent": 1,
    } | {name: 2}
    (note,) = (service.session_folder / "logs" / "supervisor.log").read_text().splitlines()
    assert f"restarted {name} (killed by SIGKILL), process {first.process.pid} is now" in note


def test_who_ends_by_itself_is_not_started_again(service: Service) -> None:
    start(service, "streamer", ORDERLY)
    wait_for(service.look_for_endpoints)
    start(service, "instrument", "print('end of recording')")
    interrupts = Interrupts()

    def tick() -> None:
        interrupts.count = int(not child(service, "instrument").running())
        nap()

    watch(service, interrupts, tick)
    assert service.restarts == []


def test_a_streamer_that_died_is_not_taken_for_ready_by_the_file_that_it_left(service: Service) -> None:
    streamer = start(service, "streamer", ORDERLY)
    wait_for(service.look_for_endpoints)
    service.children[0].command = (sys.executable, "-c", WAITS)
    streamer.process.kill()
    streamer.process.wait()
    assert not service.is_over(0.0)
    assert not service.is_streamer_ready()
    assert service.endpoints is not None


def test_an_end_that_is_asked_for_while_the_streamer_comes_back_waits_for_it(service: Service) -> None:
    """A streamer that is interrupted while it reads its libraries would leave unsaid what others hold."""
    streamer = start(service, "streamer", ORDERLY)
    wait_for(service.look_for_endpoints)
    gated = "import pathlib, time\nwhile not pathlib.Path('gate').exists(): time.sleep(0.005)\n" + ORDERLY
    service.children[0].command = (sys.executable, "-c", gated)
    streamer.process.kill()
    streamer.process.wait()
    assert not service.is_over(0.0)
    service.interrupt(1.0)
    assert not service.is_over(2.0)
    (service.session_folder / "gate").touch()
    wait_for(lambda: service.is_over(3.0))
    assert child(service, "streamer").process.returncode == 0
    assert service.failure() is None


def test_after_the_end_was_asked_for_nobody_is_started_again(service: Service) -> None:
    start(service, "streamer", "import time; time.sleep(0.2)")
    agent = start(service, "agent", WAITS)
    service.interrupted_at_s = 0.0
    agent.process.kill()
    with pytest.raises(ServiceError, match="the agent was ended by SIGKILL"):
        watch(service, Interrupts(), nap, lambda: 0.0)
    assert service.restarts == []


def test_who_was_started_again_too_late_to_hear_of_the_end_is_not_blamed(service: Service) -> None:
    service.start("streamer", (sys.executable, "-c", LONE_STREAMER, "streamer"))
    wait_for(service.look_for_endpoints)
    agent = start(service, "agent", STUBBORN + WAITS)
    agent.process.kill()
    agent.process.wait()

    def tick() -> None:
        if service.restarts:
            (service.session_folder / "over").touch()
        nap()

    run_down(service, Interrupts(), tick)
    assert child(service, "agent").process.returncode in (-signal.SIGTERM, -signal.SIGKILL)


def test_a_streamer_that_dies_over_its_files_is_started_again_to_make_them(service: Service) -> None:
    """It has taken back ``endpoints.json`` then, and the others have left."""
    program = """
import os, pathlib, time
if pathlib.Path("once").exists(): raise SystemExit(0)
pathlib.Path("once").touch()
""" + ORDERLY.replace("signal.pause()", "time.sleep(0.1); os.unlink('endpoints.json'); os.abort()")
    start(service, "streamer", program)
    start(service, "agent", "pass")
    watch(service, Interrupts(), nap)
    assert [str(restart) for restart in service.restarts] == ["restarted streamer (killed by SIGABRT)"]


def test_five_deaths_in_a_minute_are_mended_and_the_sixth_is_not() -> None:
    patience = Patience()
    assert [patience.allows(t) for t in (0, 10, 20, 30, 40, 50, 60)] == [True] * 5 + [False] * 2
    assert patience.allows(60.1)
    assert not patience.allows(69.9)
    assert patience.allows(70.1)


def test_deaths_far_apart_are_mended_for_ever() -> None:
    patience = Patience()
    assert all(patience.allows(15.1 * n) for n in range(100))


def test_how_a_process_ended_is_said_in_words() -> None:
    assert how_it_ended(-9) == "killed by SIGKILL"
    assert how_it_ended(-11) == "killed by SIGSEGV"
    assert how_it_ended(1) == "exit code 1"


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

    def tick() -> None:
        wait_for(lambda: not any(child.running() for child in service.children))

    tick()
    with pytest.raises(ServiceError, match="the streamer ended with exit code 1"):
        watch(service, Interrupts(), tick)


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


def test_a_session_goes_on_without_its_fine_tuner_and_does_not_wait_for_it(service: Service) -> None:
    failed = start(service, supervise.FINE_TUNER, "import sys; sys.exit(3)")
    streamer = start(service, supervise.STREAMER, ORDERLY)
    wait_for(lambda: service.look_for_endpoints() is not None and not failed.running())
    for now_s in (0.0, 1.0, 2.0):
        assert not service.is_over(now_s)
    assert (service.restarts, failed.died(), failed.failed()) == ([], False, False)
    slow = start(service, supervise.FINE_TUNER, WAITS)
    service.interrupt(3.0)
    streamer.process.wait(20)
    wait_for(lambda: service.is_over(3.0))
    assert not slow.running()
    assert service.failure() is None
