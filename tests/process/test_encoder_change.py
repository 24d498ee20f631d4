"""Other weights in a session that runs: from a frame on that the journal names, and after a kill the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from deploy.control_command import app
from deploy.supervise import free_address, read_endpoints
from deploy.verify import verify
from models.encoder import Encoder
from simulators.stem import StemConfig, StemInstrument
from streamer.journal import read_messages
from streamer.link import Link
from streamer.messages import Control, EncoderInUse, Event, Frame, Latents
from streamer.wire import Subscriber
from tests.other_weights import other_weights
from tests.process.whole_run import ENVIRONMENT

WAIT_S = 60.0


class Streamer:
    """A streamer in a process of its own, and an instrument that sends a frame when the test says so."""

    def __init__(self, folder: Path, wide: Path) -> None:
        self.folder = folder
        folder.mkdir()
        # A checkpoint is written after each third frame: a restart goes on from one in the middle.
        (folder / "config.toml").write_text(
            f"""[streamer.hub]
bind = "{free_address()}"
checkpoint_frames = 3
[streamer.experiment]
max_measurements = 0
[[streamer.pipeline.encode.beside]]
name = "wide"
weights = "{wide}"
""",
            encoding="utf-8",
        )
        self.process = self._start()
        self.instrument = Link(self._address(), role="instrument", name="STEM", timeout_s=WAIT_S)
        config = StemConfig(rows=160, cols=160, field_of_view_nm=2.4, carbon_counts=200.0, seed=8)
        self.microscope = StemInstrument(config, started_at_s=time.time())
        self.number = 0

    def _start(self) -> subprocess.Popen[bytes]:
        (self.folder / "endpoints.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "streamer", "--session-folder", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--config", str(self.folder / "config.toml")], stderr=log, env=ENVIRONMENT
            )

    def _address(self) -> str:
        deadline_s = time.monotonic() + WAIT_S
        while (found := read_endpoints(self.folder)) is None:
            assert self.process.poll() is None, (self.folder / "log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        self.view = Subscriber(found.view_address, ("status", "latents", "encoder_in_use", "event"))
        assert self.view.receive(WAIT_S) is not None
        return found.address

    def see(self, count: int) -> None:
        """Send frames, and wait for what is said of the last one."""
        for _ in range(count):
            frame = replace(
                self.microscope.acquire(), session=self.instrument.welcome.session, number=self.number
            )
            self.instrument.send(frame)
            self._await_both_latents()
            self.number += 1

    def _await_both_latents(self) -> None:
        deadline_s, told = time.monotonic() + WAIT_S, set()
        while told != {"", "wide"}:
            assert time.monotonic() < deadline_s, f"of frame {self.number} only {told} came"
            self.instrument.receive(0)
            message = self.view.receive(0.05)
            if isinstance(message, Latents) and message.number == self.number:
                told.add(message.encoder)

    def control(self, weights: Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["encoder", str(weights), "--session-folder", str(self.folder)])
        return done.exit_code, done.output.strip()

    def kill_and_start_again(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.view.close()
        self.process = self._start()
        self._address()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WAIT_S)

    def kept(self, kind: type) -> list:
        return [message for _, message in read_messages(self.folder) if isinstance(message, kind)]

    def close(self) -> None:
        self.view.close()
        self.instrument.abandon()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Streamer]:
    made = Streamer(tmp_path / "session", other_weights(tmp_path, "wide", window_nm=1.2))
    yield made
    made.close()


@pytest.mark.timeout(120)
def test_weights_are_changed_in_a_run_that_is_killed_and_gone_on_with(
    streamer: Streamer, tmp_path: Path
) -> None:
    finer = other_weights(tmp_path, "finer", window_nm=0.7)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(finer.read_bytes()[:-50])
    first, second = Encoder.load(None).revision, Encoder.load(finer).revision

    streamer.see(2)
    assert streamer.control(finer) == (0, f"finer ({second}) encodes from frame 2 on")
    streamer.see(2)
    code, said = streamer.control(broken)
    assert code == 1
    assert "not a whole safetensors file" in said
    streamer.see(1)
    streamer.kill_and_start_again()
    streamer.see(1)
    streamer.end()

    assert streamer.kept(Event)[-1].what == "session_ended"
    said_of = {one.number: one.model_revision for one in streamer.kept(Latents) if not one.is_beside}
    assert said_of == {0: first, 1: first} | dict.fromkeys(range(2, 6), second)
    (change,) = streamer.kept(EncoderInUse)
    assert (change.encoder, change.number, change.revision, change.name) == ("", 2, second, "finer")
    assert [one.what for one in streamer.kept(Event)].count("encoder refused") == 1
    assert "recovered differently" not in [one.what for one in streamer.kept(Event)]
    assert all(one.weights is None for one in streamer.kept(Control))
    assert len(streamer.kept(Frame)) == 6
    finer.unlink()  # the session has its own
    found = verify(streamer.folder)
    assert found.first is None
    assert (found.checks["frames"].checked, found.checks["latents"].equal) == (12, 12)
