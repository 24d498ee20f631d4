"""The hub over real sockets on this machine, with a processor that the test controls."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from streamer.codec import decode, encode
from streamer.config import ExperimentConfig, HubConfig
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.hub import Hub
from streamer.journal import Journal, JournalConfig, read_messages
from streamer.link import Link
from streamer.messages import (
    Ack,
    Atoms,
    Bye,
    Checkpoint,
    Command,
    Control,
    Distortion,
    Enough,
    Event,
    Frame,
    Hello,
    Latents,
    Outcome,
    Registration,
    Request,
    ScanGeometry,
    Score,
    Status,
    StrainMap,
    Welcome,
)
from streamer.pipeline import Processed
from streamer.telemetry import Telemetry, TelemetryConfig
from streamer.wire import Dealer, Publisher, Router, Subscriber
from tests.drawn_windows import sent, spots

WAIT_S = 5.0


@dataclass
class GatedProcessor:
    """Makes latents of any frame, but only while its gate is open; rejects constant frames."""

    make_latents: Callable[..., Latents]
    make_atoms: Callable[..., Atoms]
    gate: threading.Event = field(default_factory=threading.Event)
    fault: Exception | None = None
    rejection: str = ""
    also: tuple[StrainMap, ...] = ()
    registration: Registration = field(default_factory=Registration)

    def process(self, frame: Frame, meter: Any) -> Processed | None:
        assert self.gate.wait(WAIT_S)
        if self.fault is not None:
            raise self.fault
        if self.rejection or np.ptp(frame.image) == 0:
            meter.stage_rejected("check", self.rejection or "constant")
            return None
        latents = self.make_latents(
            session=frame.session, number=frame.number, registration=self.registration
        )
        return Processed(corrected=frame, atoms=self.make_atoms(frame), latents=latents, also=self.also)

    def state(self) -> None:
        return None


@dataclass
class PlainClient:
    """A client that numbers nothing and keeps nothing."""

    dealer: Dealer

    def send(self, parts: list[Any]) -> None:
        assert self.dealer.send(parts)

    def await_message(self, kind: type) -> Any:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            parts = self.dealer.receive(0.1)
            if parts is not None and isinstance(message := decode(parts), kind):
                return message
        raise AssertionError(f"no {kind.__name__} came")


@dataclass
class RunningHub:
    """A hub in a thread, and what the test wants to look at."""

    hub: Hub
    router: Router
    publisher: Publisher
    journal: Journal
    processor: GatedProcessor
    folder: Path
    ends: list[Any] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    plains: list[PlainClient] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    is_closed: bool = False

    def start(self) -> None:
        def serve() -> None:
            try:
                self.ends.append(self.hub.run(lambda: "stopped" if self.stopped.is_set() else None))
            except Exception as fault:
                self.ends.append(fault)

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def end(self) -> Any:
        self.stopped.set()
        return self.wait()

    def wait(self) -> Any:
        assert self.thread is not None
        self.thread.join(WAIT_S + 10)
        assert not self.thread.is_alive()
        if not self.is_closed:
            self.journal.close()
            self.is_closed = True
        return self.ends[0]

    def link(self, role: str, name: str = "test") -> Link:
        self.links.append(Link(self.router.address, role=role, name=name, timeout_s=WAIT_S))  # type: ignore[arg-type]
        return self.links[-1]

    def plain(self, role: str) -> PlainClient:
        """Connect as a client does that numbers nothing: the one of the documentation."""
        dealer = Dealer(self.router.address, b"plain")
        self.plains.append(PlainClient(dealer))
        deadline = time.monotonic() + WAIT_S
        while not dealer.send(encode(Hello(role=role, name="plain"))):  # type: ignore[arg-type]
            assert time.monotonic() < deadline
        self.plains[-1].await_message(Welcome)
        return self.plains[-1]

    def tally(self, name: str) -> int:
        return self.hub.telemetry.tally[name]

    def balance(self) -> None:
        for tally in (self.hub.progress.tally, self.hub.telemetry.tally):
            assert tally["received"] == tally["published"] + tally["rejected"] + tally["dropped"]

    def kept(self, kind: type) -> list[Any]:
        return [message for _, message in read_messages(self.folder) if isinstance(message, kind)]


@pytest.fixture
def start_hub(tmp_path, make_latents, make_atoms) -> Iterator[Callable[..., RunningHub]]:
    running: list[RunningHub] = []

    def start(
        *, envelope: dict | None = None, experiment: dict | None = None, is_open: bool = True, **hub: Any
    ) -> RunningHub:
        router = Router("tcp://127.0.0.1:0")
        publisher = Publisher("tcp://127.0.0.1:0")
        journal = Journal(tmp_path, JournalConfig())
        processor = GatedProcessor(make_latents, make_atoms)
        if is_open:
            processor.gate.set()
        made = Hub(
            session="s",
            router=router,
            publisher=publisher,
            journal=journal,
            envelope=Envelope(EnvelopeConfig(**(envelope or {}))),
            telemetry=Telemetry(),
            processor=processor,
            hub_config=HubConfig(**({"last_words_s": 0.2} | hub)),
            experiment=ExperimentConfig(**({"max_measurements": 0} | (experiment or {}))),
        )
        made.recover()
        running.append(RunningHub(made, router, publisher, journal, processor, tmp_path))
        running[-1].start()
        return running[-1]

    yield start
    for one in running:
        one.processor.gate.set()
        one.end()
        for link in one.links:
            link.abandon()
        for plain in one.plains:
            plain.dealer.close(0)
        one.router.close(0)
        one.publisher.close(0)


def await_message(link: Link, kind: type) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        message = link.receive(0.1)
        if isinstance(message, kind):
            return message
    raise AssertionError(f"no {kind.__name__} came")


def await_true(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not question():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.005)


def test_frame_is_acked_kept_and_its_latents_reach_the_agent(start_hub, make_frame):
    running = start_hub()
    agent, instrument = running.link("agent"), running.link("instrument")
    instrument.send(make_frame())
    ack = await_message(instrument, Ack)
    assert (ack.number, ack.status) == (0, "written")
    assert await_message(agent, Latents).number == 0
    running.end()
    (kept,) = running.kept(Frame)
    assert np.array_equal(kept.image, make_frame().image)
    assert [latents.number for latents in running.kept(Latents)] == [0]
    assert len(running.kept(Atoms)) == 1
    running.balance()


def test_windows_reach_the_agent_and_no_viewer(start_hub, make_frame, make_latents):
    running = start_hub()
    running.processor.make_latents = partial(make_latents, **sent(spots(np.ones(5))))
    agent, instrument = running.link("agent"), running.link("instrument")
    viewer, seen, number = Subscriber(running.publisher.address, ("latents",)), None, 0
    while seen is None:  # until it is connected a viewer misses what is said
        assert number < 50, "the viewer is told of no latents"
        instrument.send(make_frame(number=number))
        assert await_message(agent, Latents).windows is not None
        seen, number = viewer.receive(0.1), number + 1
    viewer.close()
    assert seen.windows is None
    assert len(seen.mean) == 5


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"session": "other"}, "wrong session"), ({"number": 0}, "out of order")],
)
def test_bad_frame_is_refused_with_a_reason_and_the_next_one_is_served(start_hub, make_frame, fields, reason):
    running = start_hub()
    instrument = running.link("instrument")
    instrument.send(make_frame(number=0))
    await_message(instrument, Ack)
    instrument.send(make_frame(**({"number": 1} | fields)))
    ack = await_message(instrument, Ack)
    assert ack.status == "refused"
    assert ack.reason.startswith(reason)
    instrument.send(make_frame(number=2))
    assert await_message(instrument, Ack).status == "written"
    running.end()
    assert running.tally(f"rejected hub: {reason}") == 1
    assert len(running.kept(Frame)) == 2
    running.balance()


def test_frame_before_hello_is_refused(start_hub, make_frame):
    running = start_hub()
    instrument = running.link("instrument")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.connect(running.router.address)
        stranger.send_multipart(encode(make_frame()))
        assert stranger.poll(1000 * WAIT_S)
        stranger.recv_multipart()
    instrument.send(make_frame())
    assert await_message(instrument, Ack).status == "written"
    running.end()
    assert running.tally("message refused: hello first") == 1
    running.balance()


def test_unreadable_message_is_answered_counted_and_costs_nothing_else(start_hub, make_frame):
    running = start_hub()
    plain = running.plain("instrument")
    damaged = [bytearray(part) for part in encode(make_frame())]
    damaged[1][5] ^= 1
    plain.send(damaged)
    ack = plain.await_message(Ack)
    assert ack.number == -1
    assert "bad checksum" in ack.reason
    plain.send(encode(make_frame()))
    assert plain.await_message(Ack).status == "written"
    running.end()
    assert running.tally("unreadable: bad checksum") == 1
    running.balance()


def test_frame_that_a_stage_rejects_is_kept_and_counted(start_hub, make_frame):
    running = start_hub()
    instrument = running.link("instrument")
    instrument.send(make_frame(image=np.zeros((1, 4, 4), np.float32)))
    assert await_message(instrument, Ack).status == "written"
    await_true(lambda: running.tally("rejected") == 1)
    running.end()
    assert len(running.kept(Frame)) == 1
    assert running.tally("rejected check: constant") == 1
    running.balance()


def test_gap_in_the_numbers_is_counted(start_hub, make_frame):
    running = start_hub()
    instrument = running.link("instrument")
    for number in (0, 3):
        instrument.send(make_frame(number=number))
        await_message(instrument, Ack)
    running.end()
    assert running.tally("missed") == 2


def ask_for(running, agent, instrument, make_frame, suggestion) -> None:
    instrument.send(make_frame())
    await_message(agent, Latents)
    agent.send(suggestion)


def test_suggestion_becomes_a_request_and_its_outcome_comes_back(start_hub, make_frame, make_suggestion):
    running = start_hub()
    agent, instrument = running.link("agent"), running.link("instrument")
    viewer = Subscriber(running.publisher.address, ("status",))
    ask_for(running, agent, instrument, make_frame, make_suggestion("a", position_nm=(0.2, 0.1)))
    request = await_message(instrument, Request)
    assert request.scan_position_nm == (0.2, 0.1)
    spectrum = np.arange(4, dtype=np.float32)
    instrument.send(
        Outcome(session="s", id="a", status="ok", scan_position_nm=(0.21, 0.1), spectrum=spectrum)
    )
    outcome = await_message(agent, Outcome)
    assert outcome.position_nm == (0.21, 0.1)
    assert np.array_equal(outcome.spectrum, spectrum)
    agent.send(Score(session="s", id="a", objective="counts", value=6.0, variance=6.0))
    await_true(lambda: running.hub.progress.best is not None)
    status = viewer.receive(WAIT_S)
    assert isinstance(status, Status)
    viewer.close()
    running.end()
    assert running.hub.status().best_position_nm == (0.2, 0.1)
    assert [m.id for kind in (Request, Outcome, Score) for m in running.kept(kind)] == ["a", "a", "a"]


def test_suggestion_outside_the_envelope_comes_back_refused(start_hub, make_frame, make_suggestion):
    running = start_hub()
    agent, instrument = running.link("agent"), running.link("instrument")
    ask_for(running, agent, instrument, make_frame, make_suggestion("far", position_nm=(9.0, 0.0)))
    outcome = await_message(agent, Outcome)
    assert outcome.status == "refused"
    assert "outside field" in outcome.reason
    running.end()
    assert running.kept(Request) == []
    assert running.tally("suggestions refused") == 1


def test_suggestion_without_an_instrument_is_refused(start_hub, make_suggestion):
    running = start_hub()
    agent = running.link("agent")
    agent.send(make_suggestion())
    assert "no instrument" in await_message(agent, Outcome).reason


def test_outcome_nobody_asked_for_is_counted_and_not_forwarded(start_hub, make_frame):
    running = start_hub()
    agent, instrument = running.link("agent"), running.link("instrument")
    instrument.send(Outcome(session="s", id="ghost", status="failed"))
    instrument.send(make_frame())
    assert isinstance(await_message(agent, (Latents, Outcome)), Latents)  # type: ignore[arg-type]
    running.end()
    assert running.tally("message refused: unknown id") == 1
    assert running.kept(Outcome) == []


def test_agent_cannot_play_the_instrument(start_hub, make_frame):
    running = start_hub()
    agent = running.link("agent")
    agent.send(Outcome(session="s", id="x", status="failed"))
    await_true(lambda: running.tally("messages refused") == 1)
    agent.send(make_frame())
    await_true(lambda: running.tally("message refused: not its part") == 2)
    running.end()
    assert running.kept(Frame) == []


def test_session_ends_when_the_budget_is_reached(start_hub, make_frame, make_suggestion):
    running = start_hub(experiment={"max_measurements": 1})
    agent, instrument = running.link("agent"), running.link("instrument")
    ask_for(running, agent, instrument, make_frame, make_suggestion("a"))
    await_message(instrument, Request)
    agent.send(make_suggestion("b"))
    assert "budget" in await_message(agent, Outcome).reason
    instrument.send(Outcome(session="s", id="a", status="failed"))
    assert await_message(instrument, Bye).reason == "budget reached"
    assert await_message(agent, Bye).reason == "budget reached"
    assert running.wait() == "budget reached"


def test_end_of_a_recording_ends_the_session_also_when_the_agent_goes_on_asking(
    start_hub, make_frame, make_suggestion
):
    running = start_hub()
    agent, instrument = running.link("agent"), running.link("instrument")
    ask_for(running, agent, instrument, make_frame, make_suggestion("0"))
    await_message(instrument, Request)
    instrument.close(reason="end of recording")
    count = 0
    while running.thread.is_alive():
        count += 1
        agent.send(make_suggestion(f"again-{count}"))
        time.sleep(0.01)
    assert running.wait() == "end of recording"
    assert [(o.id, o.status) for o in running.kept(Outcome) if o.id == "0"] == [("0", "skipped")]


def test_acks_are_held_back_while_the_analysis_is_behind(start_hub, make_frame):
    running = start_hub(is_open=False, window=3, max_waiting=2)
    instrument = running.link("instrument")
    sent = 0
    quiet_s = time.monotonic()
    while time.monotonic() - quiet_s < 1.0:
        if instrument.credit > 0:
            instrument.send(make_frame(number=sent))
            sent, quiet_s = sent + 1, time.monotonic()
        instrument.receive(0.01)
    assert sent == 5  # two acked while at most two waited, and a window of three
    with pytest.raises(RuntimeError, match="window is full"):
        instrument.send(make_frame(number=sent))
    running.processor.gate.set()
    await_true(lambda: instrument.receive(0.05) is not None and instrument.unacked == 0)
    running.end()
    assert running.tally("published") == 5
    running.balance()


def test_fault_in_the_pipeline_rises_and_the_beam_is_parked(start_hub, make_frame):
    running = start_hub()
    instrument = running.link("instrument")
    running.processor.fault = ZeroDivisionError("a bug")
    instrument.send(make_frame())
    assert isinstance(running.wait(), ZeroDivisionError)
    command = await_message(instrument, Command)
    assert (command.action, command.reason) == ("park", "streamer fails: ZeroDivisionError")


def test_restarted_streamer_goes_on_where_the_journal_ends(start_hub, make_frame, make_suggestion):
    first = start_hub(experiment={"max_measurements": 5})
    agent, instrument = first.link("agent"), first.link("instrument")
    ask_for(first, agent, instrument, make_frame, make_suggestion("a"))
    await_message(instrument, Request)
    instrument.send(Outcome(session="s", id="a", status="ok", scan_position_nm=(0.0, 0.0)))
    await_message(agent, Outcome)
    first.end()
    dose_e = first.hub.envelope.ledger.total_e
    second = start_hub()
    assert second.link("instrument").welcome.next_number == 1
    assert second.hub.progress.measured == 1
    assert second.hub.envelope.ledger.total_e == pytest.approx(dose_e)


def strain_map() -> StrainMap:
    return StrainMap(
        session="s",
        number=0,
        acquired_at_s=0.0,
        geometry=ScanGeometry(shape=(2, 3), field_of_view_nm=(3.0, 2.0)),
        displacement_nm=np.zeros((2, 2, 3), np.float32),
        strain=np.full((3, 2, 3), 0.01, np.float32),
        rotation_rad=np.zeros((2, 3), np.float32),
        strain_sd=np.full((3, 2, 3), 1e-3, np.float32),
        rotation_sd_rad=np.zeros((2, 3), np.float32),
        frames=4,
    )


def test_agent_that_comes_back_is_told_the_strain_map_again(start_hub, make_frame):
    first = start_hub()
    first.processor.also = (strain_map(),)
    agent, instrument = first.link("agent"), first.link("instrument")
    instrument.send(make_frame())
    await_message(agent, StrainMap)
    first.end()
    second = start_hub()
    instrument, again = second.link("instrument"), second.link("agent")
    assert await_message(again, Latents).number == 0
    assert await_message(again, StrainMap).frames == 4
    instrument.send(make_frame(number=1))  # a link holds back what follows a record that does not come
    assert await_message(again, Latents).number == 1


def separating() -> Registration:
    nodes = np.zeros((2, 2, 2), np.float32)
    distortion = Distortion(
        mode="separate",
        grid_px=nodes,
        sd_px=nodes,
        rows_px=np.zeros((2, 8), np.float32),
        cols_px=np.zeros((2, 8), np.float32),
        row_offset_px=np.zeros((2, 8), np.float32),
    )
    return Registration(distortion=distortion)


def test_status_and_events_say_how_far_strain_is_told_from_distortion(start_hub, make_frame):
    running = start_hub(envelope={"max_stage_move_nm": 1e3})
    running.processor.registration = separating()
    assert running.hub.status().distortion == ""
    instrument = running.link("instrument")
    image = np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32)
    square = {"image": image, "geometry": ScanGeometry(shape=(16, 16), field_of_view_nm=(2.0, 2.0))}
    instrument.send(make_frame(**square))
    request = await_message(instrument, Request)
    assert running.hub.status().distortion == "separate: no strain map after 0 of 4 scans"
    running.processor.also = (strain_map(),)
    for number in (1, 2):  # an event speaks of the first map only
        instrument.send(make_frame(number=number, **square))
    await_true(lambda: running.tally("published") == 3)
    assert running.hub.status().distortion == "separate: strain map after 0 of 4 scans"
    instrument.send(Outcome(session="s", id=request.id, status="failed", reason="stage stuck"))
    await_true(lambda: not running.hub.progress.separation.is_on)
    running.end()
    said = [(e.what, e.detail) for e in running.kept(Event) if e.what in ("strain map", "separation ended")]
    assert said == [
        ("strain map", "strain is told from distortion by 4 frames"),
        ("separation ended", "90° in place: failed stage stuck"),
    ]


def test_suggestion_that_names_a_frame_still_under_way_is_only_a_suggestion(
    start_hub, make_frame, make_suggestion
):
    running = start_hub(is_open=False)
    agent, instrument = running.link("agent"), running.link("instrument")
    instrument.send(make_frame())
    await_message(instrument, Ack)
    agent.send(make_suggestion("early", number=0))
    await_message(instrument, Request)
    running.processor.gate.set()
    assert await_message(agent, Latents).number == 0
    running.end()
    running.balance()


def test_instrument_that_comes_back_finds_no_old_requests_in_the_way(start_hub, make_frame, make_suggestion):
    running = start_hub(experiment={"max_measurements": 1})
    agent, instrument = running.link("agent"), running.link("instrument")
    ask_for(running, agent, instrument, make_frame, make_suggestion("a"))
    await_message(instrument, Request)
    back = running.link("instrument", name="restarted")
    assert await_message(agent, Outcome).status == "skipped"
    back.send(make_frame(number=1))
    await_message(agent, Latents)
    agent.send(make_suggestion("b"))
    assert await_message(back, Request).id == "b"


def test_request_to_an_instrument_that_was_killed_is_skipped_when_it_is_back(
    start_hub, make_frame, make_suggestion
):
    running = start_hub()
    agent, instrument = running.link("agent"), running.link("instrument")
    instrument.send(make_frame())
    await_message(agent, Latents)
    instrument.abandon()
    running.links.remove(instrument)
    agent.send(make_suggestion("a"))
    await_true(lambda: running.tally("suggestions granted") == 1)
    running.link("instrument", name="started again")
    assert await_message(agent, Outcome).status == "skipped"


def test_frames_beyond_the_window_are_refused(start_hub, make_frame):
    running = start_hub(is_open=False, window=2, max_waiting=1)
    plain = running.plain("instrument")
    for number in range(8):
        plain.send(encode(make_frame(number=number)))
    await_true(lambda: running.tally("received") == 8)
    running.processor.gate.set()
    running.end()
    assert running.tally("rejected hub: window full") > 0
    running.balance()


def test_sub_scan_that_nobody_asked_for_is_refused(start_hub, make_frame):
    running = start_hub()
    instrument = running.link("instrument")
    instrument.send(make_frame(request_id="ghost"))
    assert "unknown id" in await_message(instrument, Ack).reason


def test_score_of_nothing_is_not_the_best(start_hub):
    running = start_hub()
    agent = running.link("agent")
    agent.send(Score(session="s", id="ghost", objective="counts", value=1e9, variance=1.0))
    await_true(lambda: running.tally("messages refused") == 1)
    running.end()
    assert running.hub.progress.best is None
    assert running.kept(Score) == []


def test_second_suggestion_under_one_id_costs_the_first_nothing(start_hub, make_frame, make_suggestion):
    first = start_hub()
    agent, instrument = first.link("agent"), first.link("instrument")
    ask_for(first, agent, instrument, make_frame, make_suggestion("a"))
    await_message(instrument, Request)
    agent.send(make_suggestion("a"))
    await_true(lambda: agent.receive(0.01) is None and bool(agent.refused))
    assert "duplicate id" in agent.refused[0].reason
    instrument.send(Outcome(session="s", id="a", status="ok", scan_position_nm=(0.0, 0.0)))
    await_message(agent, Outcome)
    first.end()
    second = start_hub()
    assert second.hub.envelope.ledger.total_e == pytest.approx(first.hub.envelope.ledger.total_e)
    assert second.hub.progress.measured == 1


def test_events_tell_what_happened_in_words(start_hub, make_frame):
    running = start_hub()
    instrument = running.link("instrument", name="my microscope")
    instrument.close(reason="lunch")
    assert running.wait() == "lunch"
    said = [(event.what, event.detail) for event in running.kept(Event)]
    assert ("connected", "instrument my microscope") in said
    assert ("left", "instrument my microscope: lunch") in said
    assert said[-1] == ("session_ended", "lunch")


def test_link_to_nobody_names_the_address_and_the_cure():
    with pytest.raises(ConnectionError, match=r"no streamer answers at tcp://127.0.0.1:1 .*probeloop stream"):
        Link("tcp://127.0.0.1:1", role="agent", name="x", timeout_s=0.2)


def test_metrics_are_served_and_agree_with_the_counts(start_hub, make_frame):
    from urllib.request import urlopen

    running = start_hub()
    url = running.hub.telemetry.serve(TelemetryConfig())
    instrument = running.link("instrument")
    for number in (0, 1, 1):
        instrument.send(make_frame(number=number))
        await_message(instrument, Ack)
    await_true(lambda: running.tally("published") == 2)
    with urlopen(url) as page:
        text = page.read().decode()
    running.hub.telemetry.close()
    values = dict(re.findall(r"^(probeloop_frames_\w+?_total)(?:\{.*\})? (\S+)$", text, re.MULTILINE))
    assert float(values["probeloop_frames_received_total"]) == 3
    assert float(values["probeloop_frames_published_total"]) == 2
    assert float(values["probeloop_frames_rejected_total"]) == 1


def test_metrics_port_in_use_is_named_with_a_cure():
    first, second = Telemetry(), Telemetry()
    port = int(first.serve(TelemetryConfig()).split(":")[2].split("/")[0])
    with pytest.raises(OSError, match=r"choose another streamer.telemetry.port"):
        second.serve(TelemetryConfig(port=port))
    first.close()


def test_welcome_says_the_window_and_what_an_ack_means(start_hub):
    welcome = start_hub(window=7).link("instrument").welcome
    assert (welcome.session, welcome.window, welcome.next_number, welcome.durability) == (
        "s",
        7,
        0,
        "written",
    )
    assert isinstance(welcome, Welcome)


def test_try_that_fails_again_parks_the_beam_again(start_hub, make_frame):
    running = start_hub(retry_model_s=0.5)
    instrument = running.link("instrument")
    running.processor.rejection = "model not finite"
    said = []
    for number in range(3):
        instrument.send(make_frame(number=number))
        said += [await_message(instrument, Command).action, await_message(instrument, Command).action]
    assert said == ["park", "go"] * 3
    assert running.tally("held: model not finite") == 1  # one hold, three tries
    running.processor.rejection = ""
    instrument.send(make_frame(number=3))
    await_true(lambda: not running.hub.holds)


def test_program_that_was_replaced_does_not_take_its_part_back(start_hub, make_frame):
    running = start_hub()
    old = running.link("instrument", name="old")
    new = running.link("instrument", name="new")
    assert "took this part over" in await_message(old, Bye).reason
    old.send(make_frame())  # what it had under way
    assert "took this part over" in await_message(old, Bye).reason
    new.send(make_frame())
    assert await_message(new, Ack).status == "written"
    running.end()
    assert [hello.name for hello in running.kept(Hello)] == ["old", "new"]


def test_checkpoint_that_knows_more_than_the_journal_is_refused(start_hub):
    running = start_hub()
    agent = running.link("agent", name="a")
    agent.send(Checkpoint(session="s", of="a", told=2**52, facts=b"", arrays={}))
    await_true(lambda: agent.receive(0.01) is None and bool(agent.refused))
    assert agent.refused[0].reason.startswith("told: ")
    running.end()
    assert running.kept(Checkpoint) == []


def test_agent_that_has_enough_says_why_and_stays(start_hub):
    running = start_hub()
    agent = running.link("agent", name="explorer")
    agent.send(Enough(session="s", policy="explorer", told=0, reason="the map is known"))
    agent.send(Enough(session="s", policy="explorer", told=10_000, reason="of a later record"))
    await_true(lambda: running.tally("messages refused") == 1)
    assert running.hub.status().state != "ended"
    running.end()
    assert [enough.reason for enough in running.kept(Enough)] == ["the map is known"]
    said = [event.detail for event in running.kept(Event) if event.what == "enough"]
    assert said == ["the agent (explorer) suggests no more: the map is known"]


def test_nobody_speaks_in_the_streamers_name(start_hub):
    running = start_hub()
    with pytest.raises(ConnectionError, match="nobody can be called 'streamer'"):
        running.link("agent", name="streamer")


def test_peer_that_was_told_more_than_the_journal_has_is_told_to_start_again(start_hub):
    running = start_hub()
    dealer = Dealer(running.router.address, b"i" * 32)
    running.plains.append(PlainClient(dealer))
    hello = Hello(role="instrument", name="x", instance="i" * 32, last_record=10_000)
    await_true(lambda: dealer.send(encode(hello)))
    assert "lacks what this program was told" in running.plains[0].await_message(Bye).reason


@pytest.mark.parametrize("how", ["stop", "bye"])
def test_streamer_killed_while_it_ended_the_session_ends_it_after_the_restart(start_hub, make_frame, how):
    first = start_hub(is_open=False)
    instrument, operator = first.link("instrument"), first.link("operator")
    instrument.send(make_frame())
    await_true(lambda: first.tally("received") == 1)
    if how == "stop":
        operator.send(Control(action="stop"))
        await_message(operator, Ack)
    else:
        instrument.close(reason="end of recording")
    first.processor.fault = ZeroDivisionError("killed")
    first.processor.gate.set()
    assert isinstance(first.wait(), ZeroDivisionError)
    second = start_hub()
    assert second.wait() == ("stopped by the operator" if how == "stop" else "end of recording")


def test_frame_that_was_rejected_before_a_restart_is_not_rejected_anew(start_hub, make_frame):
    first = start_hub()
    instrument = first.link("instrument")
    instrument.send(make_frame(number=0, image=np.zeros((1, 4, 4), np.float32)))
    instrument.send(make_frame(number=1))
    await_true(lambda: first.tally("published") == 1)
    first.end()
    second = start_hub()
    second.link("instrument").send(make_frame(number=2))
    await_true(lambda: second.tally("published") == 2)
    second.end()
    tally = second.hub.progress.tally
    assert (tally["received"], tally["published"], tally["rejected"]) == (3, 2, 1)


def test_abort_does_not_wait_for_a_message_that_was_lost_before_it(start_hub):
    running = start_hub()
    instrument, agent = running.link("instrument"), running.link("agent")
    lost = agent._outbox.next_sequence
    agent._outbox.add([b"never sent"], is_frame=False, now_s=time.monotonic() + 60.0)
    agent.send(Control(action="abort"))
    assert agent._outbox.next_sequence == lost + 2
    commands = [await_message(instrument, Command).action for _ in range(2)]
    assert commands == ["park", "cancel"]
    assert not running.hub.holds  # its turn has not come


def test_message_in_anothers_name_is_refused(start_hub, make_frame):
    running = start_hub()
    instrument, agent = running.link("instrument"), running.link("agent")
    agent._dealer.send(encode(make_frame(), sender=instrument.instance, sequence=1))
    await_true(lambda: running.tally("message refused: another's name") == 1)
    instrument.send(make_frame())
    assert await_message(instrument, Ack).status == "written"


def test_what_could_not_be_written_has_not_happened(start_hub, make_frame, monkeypatch):
    running = start_hub()
    instrument = running.link("instrument")
    real = running.journal.append

    def failing(parts: Any, received_at_s: float, *, kind: str, monotonic_s: float) -> int:
        if kind == "frame":
            raise OSError(errno.EIO, "Input/output error")
        return real(parts, received_at_s, kind=kind, monotonic_s=monotonic_s)

    monkeypatch.setattr(running.journal, "append", failing)
    instrument.send(make_frame())
    assert isinstance(running.wait(), OSError)
    assert running.hub.progress.next_number == 0
    assert running.hub.progress.tally["received"] == 0
    assert instrument.unacked == 1
