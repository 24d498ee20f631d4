"""Processes are killed at any moment, and the session goes on as if nothing had been."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.process.faults.lives import Nursery
from tests.process.faults.sessions import kill_at_random

# PROBELOOP_TRIALS=100 for the long form.
TRIALS = int(os.environ.get("PROBELOOP_TRIALS", "20"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.mark.timeout(60 + 5 * TRIALS)
def test_streamer_killed_at_any_moment_loses_and_doubles_nothing(nursery, tmp_path):
    verdict = kill_at_random(nursery, tmp_path / "session", trials=TRIALS, seed=1)
    assert verdict.acked >= TRIALS
    assert verdict.is_clean, verdict
