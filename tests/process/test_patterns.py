"""Diffraction patterns from an instrument: they travel, are kept, counted and replayed as frames are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
from msgspec.structs import replace

from simulators.instrument import serve
from simulators.replay import open_recording
from streamer.config import ExperimentConfig, HubConfig
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.finalise import finalise
from streamer.hub import Hub
from streamer.journal import Journal, JournalConfig, read_messages
from streamer.link import Link
from streamer.messages import Ack, Frame, Latents, Patches
from streamer.nexus import export_nexus
from streamer.pipeline import Processed
from streamer.progress import Progress
from streamer.recovery import recover
from streamer.stage import drive
from streamer.stages.encode import FitsEncoder
from streamer.telemetry import Telemetry
from streamer.wire import Publisher, Router

WAIT_S = 10.0
WINDOW_PER_NM = 8.0  # of the patterns of make_patches


class KnowsPatterns:
    """Analyses patterns that fit an encoder, and rejects frames as one that finds no atoms in them."""

    def __init__(self, make_latents: Callable[..., Latents], window_per_nm: float) -> None:
        self._make_latents = make_latents
        self._fits = FitsEncoder(("diffraction",), 0.0, 16, window_per_nm)

    def process(self, item: Frame | Patches, meter: Any) -> Processed | None:
        if isinstance(item, Frame):
            meter.stage_rejected("find", "no atoms")
            return None
        fitting = drive(self._fits, item, meter)
        if fitting is None:
            return None
        latents = self._make_latents(len(item.windows), number=item.number, is_delivered=True)
        return Processed(corrected=None, atoms=None, latents=latents)

    def state(self) -> None:
        return None


class Camera:
    """An instrument with scans of four batches, each followed by its frame."""

    name = "camera"
    batches_waiting = 0

    def __init__(self, make_patches: Callable[..., Patches], make_frame: Callable[..., Frame], scans: int):
        geometry = make_patches().geometry
        image = np.random.default_rng(1).poisson(9.0, (1, 4, 4)).astype(np.float32)
        self._items: list[Frame | Patches] = []
        for scan in range(scans):
            at_s = 1000.0 + 0.016 * scan
            self._items += [
                replace(make_patches(), session="", acquired_at_s=at_s + 0.004 * (k + 1)) for k in range(4)
            ]
            whole = make_frame(image, geometry=geometry, dwell_time_us=1000.0, acquired_at_s=at_s + 0.016)
            self._items.append(replace(whole, session="", dose_e_per_nm2=16 * 500.0 / 0.16))

    def acquire(self) -> Frame | Patches | None:
        return self._items.pop(0) if self._items else None

    def park(self) -> None:
        pass

    def go(self, parked_s: float) -> None:
        pass


@pytest.fixture
def run_camera(tmp_path, make_latents, make_patches, make_frame):
    """Play an instrument through a hub to the end; give the hub and the folder."""

    def run(instrument: Any = None, window_per_nm: float = WINDOW_PER_NM) -> Hub:
        router, publisher = Router("tcp://127.0.0.1:0"), Publisher("tcp://127.0.0.1:0")
        journal = Journal(tmp_path, JournalConfig())
        hub = Hub(
            session="s",
            router=router,
            publisher=publisher,
            journal=journal,
            envelope=Envelope(EnvelopeConfig(beam_current_pa=0.0)),
            telemetry=Telemetry(),
            processor=KnowsPatterns(make_latents, window_per_nm),
            hub_config=HubConfig(last_words_s=0.1, window=2),
            experiment=ExperimentConfig(max_measurements=0),
        )
        hub.recover()
        thread = threading.Thread(target=hub.run, args=(lambda: None,))
        thread.start()
        link = Link(router.address, role="instrument", name="camera", timeout_s=WAIT_S)
        serve(instrument or Camera(make_patches, make_frame, scans=2), link, speed=1e6, linger_s=0.05)
        thread.join(WAIT_S)
        assert not thread.is_alive()
        journal.close()
        router.close(0)
        publisher.close(0)
        return hub

    return run


def kept(folder, kind: type) -> list[Any]:
    return [message for _, message in read_messages(folder) if isinstance(message, kind)]


def test_patterns_are_numbered_with_the_frames_kept_and_counted(run_camera, tmp_path, make_patches):
    hub = run_camera()

    items = kept(tmp_path, Frame | Patches)
    assert [item.number for item in items] == list(range(10))
    assert [isinstance(item, Frame) for item in items] == [False] * 4 + [True] + [False] * 4 + [True]
    assert np.array_equal(items[0].windows, make_patches().windows)
    assert (items[0].dose_e, items[0].dwell_time_us) == (500.0, 1000.0)
    for tally in (hub.progress.tally, hub.telemetry.tally):
        assert tally["received"] == 10
        assert tally["published"] == 8
        assert tally["rejected"] == 2
        assert tally["received"] == tally["published"] + tally["rejected"] + tally["dropped"]
    assert [latents.number for latents in kept(tmp_path, Latents)] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_patterns_that_the_encoder_does_not_know_are_rejected_with_a_reason_that_is_kept(
    run_camera, tmp_path
):
    hub = run_camera(window_per_nm=2 * WINDOW_PER_NM)

    assert hub.telemetry.tally["rejected fits: other window"] == 8
    reasons = [m.detail for _, m in read_messages(tmp_path) if getattr(m, "what", "") == "frame rejected"]
    assert reasons.count("other window (fits)") == 8
    assert len(kept(tmp_path, Patches)) == 8


def test_the_dose_of_a_scan_is_counted_once_though_patterns_and_frame_carry_it(run_camera):
    hub = run_camera()

    assert hub.envelope.ledger.total_e == pytest.approx(2 * 16 * 500.0, rel=1e-6)


def test_a_session_with_patterns_replays_them_bit_for_bit(run_camera, tmp_path):
    run_camera()
    replayed = open_recording(tmp_path)

    played = []
    while (item := replayed.acquire()) is not None:
        played.append(item)
    recorded = kept(tmp_path, Frame | Patches)
    assert [type(item) for item in played] == [type(item) for item in recorded]
    for item, was in zip(played, recorded, strict=True):
        data = ("windows", "positions_nm") if isinstance(item, Patches) else ("image",)
        for name in data:
            assert getattr(item, name).tobytes() == getattr(was, name).tobytes()
        assert item.acquired_at_s == was.acquired_at_s


def test_a_restart_knows_the_patterns_that_were_kept(run_camera, tmp_path):
    before = run_camera()
    journal = Journal(tmp_path, JournalConfig())
    progress = Progress(Envelope(EnvelopeConfig(beam_current_pa=0.0)))
    found = recover(journal, progress)
    journal.close()

    assert progress.next_number == before.progress.next_number == 10
    assert progress.tally == before.progress.tally
    assert [item.number for item in found.frames] == list(range(10))
    assert found.first_unanswered is None
    assert progress.envelope.ledger.total_e == before.envelope.ledger.total_e


def test_patterns_are_exported_with_their_places_and_axes_in_reciprocal_nanometres(
    run_camera, tmp_path, make_patches
):
    run_camera()
    files = {path.name for path in finalise(tmp_path)}
    assert files == {"frames.hspy", "patterns.hspy"}

    with h5py.File(tmp_path / "patterns.hspy") as file:
        signal = file["Experiments/diffraction"]
        assert signal["data"].shape == (32, 16, 16)
        assert np.array_equal(signal["data"][4:8], make_patches().windows[:, 0])
        assert signal["position_px"][5].tolist() == [0.0, 1.0]
        assert np.array_equal(signal["number"][:], np.repeat([0, 1, 2, 3, 5, 6, 7, 8], 4))
        assert signal["dose_e"][0] == 500.0
        axis = signal["axis-2"].attrs
        assert (axis["units"], axis["scale"], axis["offset"]) == ("1/nm", 0.5, -4.0)
    with h5py.File(export_nexus(tmp_path, tmp_path / "session.nxs")) as file:
        stack = file["entry/diffraction"]
        assert stack["intensity"].shape == (32, 16, 16)
        assert stack["axis_i"][8] == 0.0
        assert stack["position_px"].attrs["units"] == "px"


def test_patterns_of_a_request_that_nobody_made_are_refused(run_camera, make_patches, make_frame):
    camera = Camera(make_patches, make_frame, scans=1)
    camera._items[1] = replace(camera._items[1], request_id="nobody")
    hub = run_camera(camera)

    assert hub.telemetry.tally["rejected hub: unknown id"] == 1
    assert hub.progress.tally["received"] == 5


def test_patterns_take_places_of_the_ack_window(run_camera, make_patches, make_frame, monkeypatch):
    most = 0
    send = Link.send

    def watched(link: Link, message: Any) -> None:
        nonlocal most
        send(link, message)
        most = max(most, link.unacked)

    monkeypatch.setattr(Link, "send", watched)
    run_camera()

    assert most == 2


def test_every_pattern_has_its_ack(run_camera, monkeypatch):
    acked: list[Ack] = []
    receive = Link.receive

    def watched(link: Link, timeout_s: float) -> Any:
        message = receive(link, timeout_s)
        acked.extend([message] if isinstance(message, Ack) else [])
        return message

    monkeypatch.setattr(Link, "receive", watched)
    run_camera()

    assert max(ack.sequence for ack in acked) >= 10
    assert {ack.status for ack in acked} == {"written"}
