"""The computer's clock is stepped by an hour, forth and back, while a session runs."""

from __future__ import annotations

import itertools
import time

from streamer.codec import pack
from streamer.journal import read_records
from streamer.messages import Frame, Latents, Outcome, Suggestion
from streamer.segment import Record
from tests.process.faults.counting import SESSION
from tests.process.faults.running import await_message, await_true, run
from tests.process.faults.sessions import Feeder

__all__ = ["run"]  # a fixture


def test_clock_that_steps_an_hour_changes_no_order_no_latency_and_no_state(run, monkeypatch):
    now_s = time.time
    steps = itertools.cycle([0.0, 3600.0, -3600.0])
    monkeypatch.setattr("streamer.hub.time.time", lambda: now_s() + next(steps))
    first = run(hub={"window": 4, "max_waiting": 8, "checkpoint_frames": 7})
    agent, feeder = first.link("agent"), Feeder(first.link("instrument"))
    feeder.feed(lambda: feeder.acked >= 60)
    feeder.finish_acks()
    latents = await_message(agent, Latents, lambda one: one.number == feeder.sent - 1)
    agent.send(
        Suggestion(
            session=SESSION,
            number=latents.number,
            acquired_at_s=latents.acquired_at_s,
            id="a",
            position_nm=(0.0, 0.0),
            dwell_time_us=10.0,
            policy="test",
        )
    )
    await_true(lambda: first.tally("suggestions granted") == 1, "nothing was granted")
    feeder.link.send(Outcome(session=SESSION, id="a", status="failed"))
    await_message(agent, Outcome)
    first.close()
    records = [record for record in read_records(first.folder) if isinstance(record, Record)]
    wall_s = [record.received_at_s for record in records]
    assert max(wall_s) - min(wall_s) > 7000  # the clock was stepped indeed
    monotonic_s = [record.monotonic_s for record in records]
    assert monotonic_s == sorted(monotonic_s)
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    assert [one.number for one in first.kept(Frame)] == list(range(feeder.sent))
    for what in ("frame to latents", "frame to suggestion"):
        p50_ms, p99_ms = first.telemetry.quantiles_ms(what)
        assert 0 <= p50_ms <= p99_ms < 10_000, what
    stood = pack(first.hub.progress.state(), sort=True)
    second = run()
    assert second.state_before == stood
