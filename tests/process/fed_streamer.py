"""A streamer in a process of its own, and an instrument that sends it a frame when a test says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from typer.testing import CliRunner

from deploy.control_command import app
from deploy.supervise import Endpoints, free_address, read_endpoints
from simulators.stem import StemConfig, StemInstrument
from streamer.journal import read_messages
from streamer.link import Link
from streamer.messages import Latents
from streamer.wire import Subscriber
from tests.process.whole_run import ENVIRONMENT

WAIT_S = 60.0


class FedStreamer:
    """The streamer, and all that a test wants to know of it.

    Parameters
    ----------
    folder
        Of the session.
    main
        Weights of the main encoder; None takes the shipped ones.
    beside
        Weights of further encoders, by name.
    """

    def __init__(self, folder: Path, main: Path | None = None, **beside: Path) -> None:
        self.folder = folder
        self.names = {"", *beside}
        folder.mkdir()
        # A checkpoint is written after each third frame: a restart goes on from one in the middle.
        text = f'[streamer.hub]\nbind = "{free_address()}"\ncheckpoint_frames = 3\n'
        text += "[streamer.experiment]\nmax_measurements = 0\n"
        if main is not None:
            text += f'[streamer.pipeline.encode]\nweights = "{main}"\n'
        for name, path in beside.items():
            text += f'[[streamer.pipeline.encode.beside]]\nname = "{name}"\nweights = "{path}"\n'
        (folder / "config.toml").write_text(text, encoding="utf-8")
        self.process = self._start()
        self.endpoints = self._await_endpoints()
        self.instrument = Link(self.endpoints.address, role="instrument", name="STEM", timeout_s=WAIT_S)
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

    def _await_endpoints(self) -> Endpoints:
        deadline_s = time.monotonic() + WAIT_S
        while (found := read_endpoints(self.folder)) is None:
            assert self.process.poll() is None, (self.folder / "log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        self.view = Subscriber(found.view_address, ("status", "latents", "encoder_in_use", "event"))
        assert self.view.receive(WAIT_S) is not None
        return found

    def see(self, count: int) -> None:
        """Send frames, and wait for what is said of the last one."""
        for _ in range(count):
            frame = replace(
                self.microscope.acquire(), session=self.instrument.welcome.session, number=self.number
            )
            self.instrument.send(frame)
            self._await_latents()
            self.number += 1

    def _await_latents(self) -> None:
        deadline_s, told = time.monotonic() + WAIT_S, set[str]()
        while told != self.names:
            assert time.monotonic() < deadline_s, f"of frame {self.number} only {told} came"
            self.instrument.receive(0)
            message = self.view.receive(0.05)
            if isinstance(message, Latents) and message.number == self.number:
                told.add(message.encoder)

    def change_encoder(self, weights: Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["encoder", str(weights), "--session-folder", str(self.folder)])
        return done.exit_code, done.output.strip()

    def kill_and_start_again(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.view.close()
        self.process = self._start()
        self.endpoints = self._await_endpoints()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WAIT_S)

    def kept(self, kind: type) -> list[Any]:
        return [message for _, message in read_messages(self.folder) if isinstance(message, kind)]

    def close(self) -> None:
        self.view.close()
        self.instrument.abandon()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
