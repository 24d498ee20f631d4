"""What goes wrong with an instrument, seen from the other end of the wire; and how it queues and refuses."""

from __future__ import annotations

import math
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulators.afm import AfmConfig, AfmInstrument
from simulators.diffraction import DiffractionConfig, DiffractionInstrument
from simulators.eels import EelsConfig, EelsInstrument
from simulators.faults import FaultConfig, cuts_of
from simulators.instrument import Instrument, Served, serve
from simulators.pfm import FilmConfig, PfmConfig, PfmInstrument
from simulators.scan_distortion import ScanDistortionConfig
from simulators.stem import StemConfig, StemInstrument
from streamer.config import ExperimentConfig, HubConfig
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.hub import Hub
from streamer.journal import Journal, JournalConfig, read_messages
from streamer.link import Link
from streamer.messages import Ack, Event, Frame, Message, Outcome, Patches, Request, Welcome
from streamer.telemetry import Telemetry
from streamer.wire import Publisher, Router

STILL = ScanDistortionConfig(
    drift_rate_nm_per_s=(0.0, 0.0), drift_wander_nm_per_sqrt_s=0.0, row_jitter_px=0.0, flyback_px=0.0
)


class Heard:
    """A streamer that acks everything, asks what it is told to after frame 0, and keeps what it heard."""

    def __init__(self, *asked: Request) -> None:
        self.welcome = Welcome(session="s", window=4, next_number=0, durability="written")
        self.credit, self.unacked, self.silent_s = 4, 0, 0.0
        self.refused: list[Ack] = []
        self.heard: list[Message] = []
        self.cuts_s: list[float] = []
        self._asked, self._inbox = list(asked), deque[Message]()

    def send(self, message: Message) -> None:
        self.heard.append(message)
        if isinstance(message, Frame | Patches) and self._asked:
            self._inbox.extend(self._asked)
            self._asked = []

    def receive(self, timeout_s: float) -> Message | None:
        return self._inbox.popleft() if self._inbox else None

    def cut(self, seconds: float) -> None:
        self.cuts_s.append(seconds)

    def close(self, *, reason: str = "", drain_s: float = 5.0) -> list[Message]:
        return []

    def frames(self) -> list[Frame]:
        return [message for message in self.heard if isinstance(message, Frame)]

    def outcomes(self) -> list[Outcome]:
        return [message for message in self.heard if isinstance(message, Outcome)]


def play(instrument: Instrument, link: Heard | None = None, **options: Any) -> tuple[Heard, Served]:
    link = link or Heard()
    served = serve(
        instrument,
        link,  # type: ignore[arg-type]
        **({"speed": math.inf, "linger_s": 0.0} | options),
    )
    return link, served


def stem(*faults: FaultConfig, **fields: Any) -> StemInstrument:
    config = StemConfig(
        **({"rows": 48, "cols": 48, "field_of_view_nm": 1.5, "seed": 3, "distortion": STILL} | fields),
        faults=faults,
    )
    return StemInstrument(config, started_at_s=1e9)


def pfm(*faults: FaultConfig) -> PfmInstrument:
    film = FilmConfig(cells=48, growth=40.0)
    tip = {"tip_radius_nm": 10.0, "resolution_nm": 12.0, "noise_pm": 0.1}
    fields = {"rows": 48, "cols": 48, "field_of_view_nm": 150.0, "seed": 1, "distortion": STILL}
    return PfmInstrument(PfmConfig(film=film, faults=faults, **tip, **fields), started_at_s=1e9)


def diffraction(*faults: FaultConfig) -> DiffractionInstrument:
    fields = {"rows": 12, "cols": 16, "field_of_view_nm": 1.0, "camera_px": 64, "seed": 1}
    return DiffractionInstrument(DiffractionConfig(faults=faults, **fields), started_at_s=1e9)


def eels(*faults: FaultConfig) -> EelsInstrument:
    config = EelsConfig(rows=24, cols=24, field_of_view_nm=30.0, seed=1, faults=faults)
    return EelsInstrument(config, started_at_s=1e9)


def afm(*faults: FaultConfig) -> AfmInstrument:
    config = AfmConfig(rows=64, cols=64, field_of_view_nm=100.0, seed=1, faults=faults)
    return AfmInstrument(config, started_at_s=1e9)


def ask(identifier: str, **fields: Any) -> Request:
    usual: dict[str, Any] = {
        "session": "s",
        "action": "spectrum",
        "scan_position_nm": (0.1, 0.0),
        "position_nm": (0.1, 0.0),
        "dwell_time_us": 1000.0,
    }
    return Request(id=identifier, **(usual | fields))


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [stem, pfm, diffraction, afm], ids=lambda make: make.__name__)
def test_a_blanked_beam_shows_nothing_for_as_long_as_it_lasts(make):
    link, _ = play(make(FaultConfig(frame=1, kind="blank")), max_frames=3)

    contrast = [float(frame.image[0].std()) for frame in link.frames()]
    assert contrast[1] < 0.35 * min(contrast[0], contrast[2])


@pytest.mark.parametrize("make", [stem, eels], ids=lambda make: make.__name__)
def test_a_blanked_beam_gives_no_spectrum(make):
    """What is asked before a frame is done with that frame's faults."""
    seen, _ = make().execute(ask("r", dwell_time_us=1e6))
    dark, _ = make(FaultConfig(frame=0, kind="blank")).execute(ask("r", dwell_time_us=1e6))

    assert seen.spectrum is not None
    assert seen.spectrum.sum() > 1000
    assert dark.spectrum is not None
    assert not dark.spectrum.any()


@pytest.mark.parametrize("make", [stem, eels, diffraction], ids=lambda make: make.__name__)
def test_a_beam_of_electrons_has_no_tip_that_could_change(make):
    with pytest.raises(
        ValueError, match=rf"{make.__name__}.faults: .* an electron beam has none: leave it out"
    ):
        make(FaultConfig(frame=1, kind="tip"))


def test_a_blanked_beam_shows_in_the_patterns_too():
    link, _ = play(diffraction(FaultConfig(frame=1, kind="blank")), max_frames=2)

    electrons = [m.windows.sum() for m in link.heard if isinstance(m, Patches)]
    assert min(electrons[:3]) > 0
    assert electrons[3:] == [0.0, 0.0, 0.0]


def test_a_torn_frame_holds_below_the_tear_what_the_last_one_had_there():
    link, _ = play(stem(FaultConfig(frame=1, kind="torn")), max_frames=3)

    first, torn, last = (frame.image[0] for frame in link.frames())
    tear = round(0.6 * 48)
    assert np.array_equal(torn[tear:], first[tear:])
    assert not np.array_equal(torn[:tear], first[:tear])
    assert not np.array_equal(last[tear:], first[tear:])


def test_a_stage_jump_moves_the_specimen_by_what_the_fault_says():
    """Expected by a phase correlation of the frames before and after, to a pixel of 0.031 nm."""
    step_nm = (0.25, -0.125)
    fault = FaultConfig(frame=1, kind="jump", step_nm=step_nm)
    link, _ = play(stem(fault, dwell_time_us=20.0), max_frames=2)

    before, after = (frame.image[0] - frame.image[0].mean() for frame in link.frames())
    crossed = np.fft.fft2(after) * np.fft.fft2(before).conj()
    found = np.unravel_index(np.argmax(np.fft.ifft2(crossed).real), before.shape)
    row, col = ((int(place) + 24) % 48 - 24 for place in found)
    assert (col * 1.5 / 48, row * 1.5 / 48) == pytest.approx(step_nm, abs=0.035)


def test_a_changed_tip_blurs_what_it_sees_from_then_on():
    """A wider and double tip passes less of what is fine: less of the phase changes from pixel to pixel."""
    link, _ = play(pfm(FaultConfig(frame=1, kind="tip", frames=2)), max_frames=3)

    fine = [float(np.abs(np.diff(frame.image[0], axis=1)).mean()) for frame in link.frames()]
    assert fine[1] < 0.8 * fine[0]
    assert fine[2] < 0.8 * fine[0]


def test_a_changed_tip_shows_each_rod_of_an_afm_wider():
    link, _ = play(afm(FaultConfig(frame=1, kind="tip", frames=2)), max_frames=2)

    covered = [float((frame.image[0] > frame.image[0].max() / 3).mean()) for frame in link.frames()]
    assert covered[1] > 1.15 * covered[0]


def test_a_lost_link_is_asked_for_before_the_frame_that_the_fault_names():
    faults = (FaultConfig(frame=2, kind="link", seconds=0.5),)
    link, served = play(stem(*faults), max_frames=4, cuts_s=cuts_of(faults))

    assert (link.cuts_s, served.frames) == ([0.5], 4)


def test_an_instrument_that_lost_its_link_comes_back_and_nothing_is_lost(tmp_path: Path):
    """For real: the streamer notices the silence and holds, and takes every frame once."""

    class Rejects:
        def process(self, frame: Frame | Patches, meter: Any) -> None:
            meter.stage_rejected("check", "constant")

        def state(self) -> None:
            return None

    router, publisher = Router("tcp://127.0.0.1:0"), Publisher("tcp://127.0.0.1:0")
    journal = Journal(tmp_path, JournalConfig())
    hub = Hub(
        session="s",
        router=router,
        publisher=publisher,
        journal=journal,
        envelope=Envelope(EnvelopeConfig()),
        telemetry=Telemetry(),
        processor=Rejects(),
        hub_config=HubConfig(last_words_s=0.1),
        experiment=ExperimentConfig(max_measurements=0),
    )
    hub.recover()
    thread = threading.Thread(target=hub.run, args=(lambda: None,))
    thread.start()
    link = Link(router.address, role="instrument", name="stem", timeout_s=10.0)
    faults = (FaultConfig(frame=3, kind="link", seconds=3.0),)
    served = serve(
        stem(*faults, rows=16, cols=16, dwell_time_us=200.0),
        link,
        cuts_s=cuts_of(faults),
        max_frames=12,
        linger_s=0.1,
    )
    thread.join(20.0)
    journal.close()
    router.close(0)
    publisher.close(0)

    messages = [message for _, message in read_messages(tmp_path)]
    events = [message.what for message in messages if isinstance(message, Event)]
    assert served.frames == 12
    assert served.parked >= 1  # nobody watches over it while the link is lost
    numbers = [message.number for message in messages if isinstance(message, Frame)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 12
    assert {"silent", "held", "heard again", "released"} <= set(events)


def test_a_fault_that_makes_no_sense_is_refused_with_what_would_do():
    with pytest.raises(ValueError, match=r"fault.seconds is 0; it takes above 0 to 600"):
        FaultConfig(frame=1, kind="link", seconds=0)
    with pytest.raises(ValueError, match=r"fault.kind is 'fire'; it takes blank, .* or link"):
        FaultConfig(frame=1, kind="fire")  # type: ignore[arg-type]


# -- the queue ---------------------------------------------------------------------------------


def test_requests_wait_and_are_answered_in_the_order_in_which_they_came():
    link, served = play(stem(), Heard(*(ask(f"r-{n}") for n in range(5))), max_frames=2)

    assert [outcome.id for outcome in link.outcomes()] == [f"r-{n}" for n in range(5)]
    assert served.outcomes == 5


def test_a_request_beyond_the_queue_is_refused_at_once_and_the_others_are_done():
    link, _ = play(stem(), Heard(*(ask(f"r-{n}") for n in range(5))), max_frames=2, queue_length=3)

    first, second, *done = link.outcomes()
    assert [(o.id, o.status) for o in (first, second)] == [("r-3", "refused"), ("r-4", "refused")]
    assert first.reason == "3 requests wait already; ask again when some are answered"
    assert [(o.id, o.status) for o in done] == [(f"r-{n}", "ok") for n in range(3)]


def test_requests_wait_until_the_scan_whose_patterns_are_under_way_is_over():
    scan = ask("z", action="scan", field_of_view_nm=(0.2, 0.2), shape=(8, 8))
    link, _ = play(diffraction(), Heard(scan), max_frames=2)

    kinds = [type(message).__name__ for message in link.heard]
    assert kinds[:5] == ["Patches", "Patches", "Patches", "Frame", "Outcome"]
    part = link.frames()[0]
    assert part.request_id == "z"


def test_the_way_to_a_place_and_the_settling_take_their_time():
    """2 mm/s over 1 um is 0.5 ms, and 20 ms of settling: derived from the configuration."""
    slow = stem(travel_um_per_s=2000.0, settle_s=0.02, reach_nm=2000.0)
    slow.acquire()
    before_s = slow.clock_s
    outcome, _ = slow.execute(ask("far", scan_position_nm=(1000.0, 0.0), dwell_time_us=1000.0))

    assert outcome.started_at_s - before_s == pytest.approx(0.0205, abs=1e-6)
    assert outcome.ended_at_s - outcome.started_at_s == pytest.approx(1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scan_position_nm": (5000.0, 0.0)}, "the scanner ends there"),
        ({"dwell_time_us": 0.001}, "dwell_time_us takes 0.01"),
        ({"dwell_time_us": 1e9}, "dwell_time_us takes"),
        ({"action": "scan", "field_of_view_nm": (400.0, 1.0), "shape": (8, 8)}, "field_of_view_nm takes"),
        ({"action": "scan", "field_of_view_nm": (1.0, 1.0), "shape": (9000, 9000)}, "shape takes"),
        ({"action": "scan", "field_of_view_nm": (60.0, 60.0), "shape": (8, 8), "scan_position_nm": (990, 0)},
         "the scan leaves"),
        ({"stage_nm": (5.0, 0.0)}, "the stage of this instrument does not move"),
    ],
)  # fmt: skip
def test_what_the_hardware_cannot_do_is_refused_with_the_reason(fields, reason):
    instrument = stem(reach_nm=1000.0)
    instrument.acquire()
    before_s = instrument.clock_s
    outcome, frame = instrument.execute(ask("x", **fields))

    assert (outcome.status, frame, outcome.dose_e) == ("failed", None, 0.0)
    assert reason in outcome.reason
    assert instrument.clock_s == before_s
