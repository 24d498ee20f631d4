"""A log that cannot be written ends nothing, and what it lost is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from streamer.log import Lines

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_ends_no_process() -> None:
    program = (
        "import structlog; from streamer.log import log_to_stderr; log_to_stderr(); "
        "log = structlog.get_logger(); log.info('one', what=1); log.warning('two'); print('alive')"
    )
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert (done.returncode, done.stdout) == (0, "alive\n")


class Disk:
    """A standard error that takes lines only while there is room."""

    def __init__(self) -> None:
        self.has_room = True
        self.text = ""

    def write(self, text: str) -> None:
        if not self.has_room:
            raise OSError(28, "No space left on device")
        self.text += text

    def flush(self) -> None:
        pass


def test_lost_lines_are_counted_and_told_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, log = Disk(), Lines()
    monkeypatch.setattr(sys, "stderr", disk)
    for number, disk.has_room in enumerate([True, False, False, True, True]):
        log.say(f"line {number}")
    assert disk.text.splitlines() == [
        "line 0",
        "(2 lines of this log are lost: it could not be written)",
        "line 3",
        "line 4",
    ]
