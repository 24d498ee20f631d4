"""What a process says to its log; a log that cannot be written ends nothing."""

from __future__ import annotations

import sys

import structlog


def log_to_stderr() -> None:
    """Let structlog write to the standard error, and go on when that is on a full disk."""
    lines = Lines()
    structlog.configure(logger_factory=lambda *_: _Logger(lines))


class Lines:
    """Writes lines to the standard error; those that it does not take are counted and told of later.

    Attributes
    ----------
    lost
        Lines that could not be written since the last one that could.
    """

    def __init__(self) -> None:
        self.lost = 0

    def say(self, text: str) -> None:
        """Write a line."""
        note = f"({self.lost} lines of this log are lost: it could not be written)\n" if self.lost else ""
        try:
            sys.stderr.write(f"{note}{text}\n")
            sys.stderr.flush()
        except OSError:  # the log lies on the disk that the session lies on
            self.lost += 1
        else:
            self.lost = 0


class _Logger:
    """What structlog asks of a logger."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def msg(self, text: str) -> None:
        self._lines.say(text)

    log = debug = info = warn = warning = error = critical = exception = msg
