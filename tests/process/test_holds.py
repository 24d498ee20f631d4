"""Whatever cannot be trusted parks the beam and stops the requests; a person's word is always heard."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from streamer.link import Link
from streamer.messages import (
    Ack,
    Bye,
    Command,
    Control,
    Distortion,
    Event,
    Frame,
    Latents,
    Outcome,
    Registration,
    Request,
    Suggestion,
)
from streamer.pipeline import Processed
from tests.process.faults.counting import SESSION, Counting, make_frame
from tests.process.faults.lives import Nursery
from tests.process.faults.running import Running, await_message, await_true, run

__all__ = ["run"]  # a fixture


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


class Moody(Counting):
    """Takes no frame while its gate is shut, and finds a frame of zeros not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def process(self, frame: Frame, meter: Any) -> Processed | None:
        assert self.gate.wait(20)
        if not np.any(frame.image):
            meter.stage_rejected("encode", "model not finite")
            return None
        return super().process(frame, meter)


def suggest(agent: Link, identifier: str, **fields: Any) -> None:
    agent.send(
        Suggestion(
            session=SESSION,
            number=0,
            acquired_at_s=1000.0,
            id=identifier,
            position_nm=fields.pop("position_nm", (0.0, 0.0)),
            dwell_time_us=10.0,
            policy="test",
            **fields,
        )
    )


def commands(link: Link, count: int) -> list[str]:
    return [await_message(link, Command).action for _ in range(count)]


def refused(agent: Link, identifier: str) -> str:
    return await_message(agent, Outcome, lambda outcome: outcome.id == identifier).reason


def begin(running: Running) -> tuple[Link, Link]:
    """Connect an agent and an instrument, and get as far as the first latents."""
    agent, instrument = running.link("agent"), running.link("instrument")
    instrument.send(make_frame(0))
    await_message(agent, Latents)
    return agent, instrument


def test_instrument_that_is_stopped_is_missed_within_two_seconds_and_so_is_its_return(nursery, run):
    running = run(hub={"max_waiting": 8})
    viewer = running.viewer("event")
    agent = running.link("agent")
    life = nursery.start("instrument", running.folder, connect=running.router.address)
    await_true(lambda: running.tally("published") > 10, "no frames came")
    life.signal(signal.SIGSTOP)
    took_s = await_true(lambda: "instrument silent" in running.hub.holds, "nobody missed it")
    assert took_s <= 2.0
    suggest(agent, "a")
    assert refused(agent, "a").startswith("held")
    published = running.tally("published")
    life.signal(signal.SIGCONT)
    assert await_true(lambda: not running.hub.holds, "its return was not seen") <= 2.0
    await_true(lambda: running.tally("published") > published, "no frames came again")
    life.kill()
    await_message(viewer, Event, lambda event: event.what == "released")
    assert running.tally("held: instrument silent") == 1
    actions = [command.action for command in running.kept(Command)]
    assert actions == ["park", "go"]
    assert [request.id for request in running.kept(Request)] == []


def test_agent_that_gives_no_sign_of_life_parks_the_beam_until_another_takes_its_place(run):
    running = run(hub={"agent_silent_after_s": 0.5})
    agent, instrument = begin(running)
    agent.abandon()
    await_true(lambda: list(running.hub.holds) == ["agent silent"], "nobody missed it")
    assert commands(instrument, 1) == ["park"]
    assert running.hub.status().held == ("agent silent",)
    agent = running.link("agent")
    suggest(agent, "a")
    assert await_message(instrument, Request).id == "a", "refused for the silence of the one before"
    assert not running.hub.holds
    agent.send(Bye(reason="done"))
    await_true(lambda: len(running.kept(Bye)) == 1, "it does not leave")
    time.sleep(0.8)
    assert not running.hub.holds, "one that left in order is not missed"


def test_analysis_that_hangs_holds_the_loop_within_two_seconds(run):
    running = run(processor=Moody(), hub={"stuck_after_s": 1.0})
    agent, instrument = begin(running)
    running.processor.gate.clear()
    instrument.send(make_frame(1))
    assert await_true(lambda: "analysis stuck" in running.hub.holds, "nobody noticed") <= 2.0
    assert commands(instrument, 1) == ["park"]
    suggest(agent, "a")
    assert refused(agent, "a").startswith("held")
    running.processor.gate.set()
    assert commands(instrument, 1) == ["go"]
    suggest(agent, "b")
    assert await_message(instrument, Request).id == "b"
    assert running.tally("held: analysis stuck") == 1


def test_model_that_is_not_finite_holds_the_loop_until_a_frame_shows_that_it_is_again(run):
    running = run(processor=Moody(), hub={"retry_model_s": 0.5})
    agent, instrument = begin(running)
    frame = make_frame(1)
    instrument.send(msgspec.structs.replace(frame, image=0 * frame.image))
    assert commands(instrument, 1) == ["park"]
    suggest(agent, "a")
    assert refused(agent, "a").startswith("held: model not finite")
    go = await_message(instrument, Command)
    assert (go.action, go.reason) == ("go", "one more try")
    suggest(agent, "b")
    assert refused(agent, "b").startswith("held")  # nothing is requested before it has proved itself
    instrument.send(make_frame(2))
    assert await_message(agent, Latents).number == 2
    await_true(lambda: not running.hub.holds, "it is still held")
    suggest(agent, "c")
    assert await_message(instrument, Request).id == "c"
    assert running.tally("rejected encode: model not finite") == 1


def test_operator_pauses_points_and_resumes_and_all_of_it_is_in_the_journal(run):
    running = run()
    agent, instrument = begin(running)
    operator = running.link("operator")
    operator.send(Control(action="pause", reason="a look"))
    assert commands(instrument, 1) == ["park"]
    suggest(agent, "a")
    assert refused(agent, "a") == "held: paused by the operator"
    operator.send(Control(action="resume"))
    assert commands(instrument, 1) == ["go"]
    suggest(operator, "point-1", position_nm=(0.3, 0.2))
    assert await_message(instrument, Request).position_nm == (0.3, 0.2)
    instrument.send(Outcome(session=SESSION, id="point-1", status="failed"))
    suggest(agent, "b")
    assert await_message(instrument, Request).id == "b"
    running.close()
    assert [control.action for control in running.kept(Control)] == ["pause", "resume"]
    assert running.tally("held: paused by the operator") == 1


def test_veto_cancels_what_is_under_way_and_forbids_its_place(run):
    running = run()
    agent, instrument = begin(running)
    operator = running.link("operator")
    suggest(agent, "a", position_nm=(0.2, 0.1))
    await_message(instrument, Request)
    operator.send(Control(action="veto", id="a", radius_nm=0.3, reason="a hole"))
    cancel = await_message(instrument, Command)
    assert (cancel.action, cancel.id) == ("cancel", "a")
    instrument.send(Outcome(session=SESSION, id="a", status="aborted"))
    suggest(agent, "b", position_nm=(0.25, 0.1))
    assert "veto" in refused(agent, "b")
    suggest(agent, "c", position_nm=(-0.5, 0.1))
    assert await_message(instrument, Request).id == "c"


class Jumpy(Counting):
    """Finds nothing of what it knew in the third frame, as if the specimen had jumped."""

    def process(self, frame: Frame, meter: Any) -> Processed | None:
        done = super().process(frame, meter)
        flat, row = np.zeros((2, 2, 2), np.float32), np.zeros((2, 5), np.float32)
        lost = Distortion(
            mode="drift-only",
            grid_px=flat,
            sd_px=flat,
            rows_px=row,
            row_offset_px=row,
            cols_px=row,
            flags=("lost",) if frame.number == 2 else (),
        )
        now = Registration(revision=int(frame.number >= 2), at_s=frame.acquired_at_s, distortion=lost)
        return msgspec.structs.replace(done, latents=msgspec.structs.replace(done.latents, registration=now))


def test_a_specimen_that_is_lost_with_a_veto_stops_the_requests_until_a_person_places_it(run):
    running = run(processor=Jumpy())
    agent, instrument = begin(running)
    viewer = running.viewer("event")
    operator = running.link("operator")
    operator.send(Control(action="place", shift_nm=(0.1, 0.0)))
    nothing = await_message(operator, Ack, lambda ack: ack.sequence == 1)
    assert nothing.reason == "nothing lost: every forbidden area and veto lies where it lay"
    square = ((0.2, 0.0), (0.4, 0.0), (0.4, 0.2), (0.2, 0.2))
    operator.send(Control(action="veto", polygon_nm=square, reason="a hole"))
    await_message(operator, Ack, lambda ack: ack.sequence == 2 and ack.status != "refused")
    suggest(agent, "a", position_nm=(0.3, 0.1))
    assert refused(agent, "a").startswith("vetoed")
    suggest(agent, "under way", position_nm=(-0.5, 0.1))
    await_message(instrument, Request)
    for number in (1, 2):
        instrument.send(make_frame(number))
    told = await_message(viewer, Event, lambda event: event.what == "areas lost")
    assert "where 1 veto lie" in told.detail
    assert await_message(instrument, Command).action == "cancel"
    instrument.send(Outcome(session=SESSION, id="under way", status="aborted"))
    assert running.hub.status().lost == "1 veto"
    suggest(agent, "b", position_nm=(-0.5, 0.1), registration_revision=1)
    assert "probeloop control place" in refused(agent, "b")

    operator.send(Control(action="place", shift_nm=(-0.6, 0.0), reason="seen in the image"))
    await_message(operator, Ack, lambda ack: ack.sequence == 3 and ack.status != "refused")
    assert running.hub.status().lost == ""
    suggest(agent, "c", position_nm=(-0.3, 0.1), registration_revision=1)
    assert refused(agent, "c").startswith("vetoed")
    suggest(agent, "d", position_nm=(0.3, 0.1), registration_revision=1)
    assert await_message(instrument, Request).id == "d"


def test_a_veto_of_what_nobody_suggested_is_refused(run):
    running = run()
    begin(running)
    operator = running.link("operator")
    operator.send(Control(action="veto", id="explorer-12"))
    ack = await_message(operator, Ack)
    assert ack.reason == "unknown id: nothing was suggested as explorer-12; see the live view"


@pytest.mark.parametrize("state", ["before any frame", "running", "paused", "draining", "stuck"])
def test_abort_works_in_every_state_and_from_everybody(run, state):
    running = run(processor=Moody(), hub={"stuck_after_s": 0.5, "last_words_s": 2.0})
    agent, instrument = running.link("agent"), running.link("instrument")
    operator = running.link("operator")
    if state != "before any frame":
        instrument.send(make_frame(0))
        await_message(agent, Latents)
    if state == "paused":
        operator.send(Control(action="pause"))
        assert commands(instrument, 1) == ["park"]
    if state == "stuck":
        running.processor.gate.clear()
        instrument.send(make_frame(1))
        assert commands(instrument, 1) == ["park"]
    if state == "draining":
        operator.send(Control(action="stop"))
        await_true(lambda: running.hub.status().state == "draining", "it does not drain")
    agent.send(Control(action="abort", reason="it smokes"))
    assert {"park", "cancel"} <= set(commands(instrument, 3))
    await_true(lambda: "aborted by the operator" in running.hub.holds, "it is not held")
    if state != "draining":
        operator.send(Control(action="pause", reason="no way round an abort"))
        suggest(agent, "a")
        assert refused(agent, "a").startswith("held")
        running.processor.gate.set()
        operator.send(Control(action="resume"))
        await_true(lambda: not running.hub.holds, "it is still held")
    running.processor.gate.set()


def test_pause_outlives_a_kill(nursery, tmp_path):
    folder = tmp_path / SESSION
    life = nursery.start("streamer", folder)
    address = life.address()
    instrument = Link(address, role="instrument", name="test")
    operator = Link(address, role="operator", name="test")
    operator.send(Control(action="pause"))
    assert commands(instrument, 1) == ["park"]
    life.kill()
    life = nursery.start("streamer", folder, hub={"bind": address})
    await_true(lambda: instrument.receive(0.01) is None and instrument.reconnects == 1, "it is not back")
    agent = Link(address, role="agent", name="test")
    suggest(agent, "a")
    assert refused(agent, "a") == "held: paused by the operator"
    for link in (instrument, operator, agent):
        link.abandon()
    life.kill()
