"""The client printed in docs/protocol.md runs as it stands there."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest

from streamer.config import ExperimentConfig, HubConfig
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.hub import Hub
from streamer.journal import Journal, JournalConfig, read_messages
from streamer.link import Link
from streamer.messages import Frame, Latents, Outcome
from streamer.pipeline import Processed
from streamer.telemetry import Telemetry
from streamer.wire import Publisher, Router

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.fixture
def client():
    """Compile the text of the documentation; it may import only pyzmq, msgpack and the standard library."""
    (source,) = re.findall(r"```python\n(.*?)```", PROTOCOL.read_text(encoding="utf-8"), re.DOTALL)
    assert re.findall(r"^import (.*)$", source, re.MULTILINE) == ["struct, time, zlib", "msgpack, zmq"]
    namespace: dict = {}
    exec(compile(source, str(PROTOCOL), "exec"), namespace)
    return namespace["run"]


def test_client_of_the_documentation_sends_a_frame_and_obeys_a_request(
    client, tmp_path, make_latents, make_atoms, make_suggestion
):
    class Instant:
        def process(self, frame, meter):
            return Processed(corrected=frame, atoms=make_atoms(frame), latents=make_latents(number=0))

        def state(self):
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
        processor=Instant(),
        hub_config=HubConfig(),
        experiment=ExperimentConfig(max_measurements=1),
    )
    serving = threading.Thread(target=hub.run, args=(lambda: None,))
    serving.start()
    image = np.random.default_rng(0).poisson(9, (64, 64)).astype("<f4")
    spectrum = np.arange(32, dtype="<f4")
    heard: list = []
    agent = Link(router.address, role="agent", name="test")
    instrument = threading.Thread(
        target=lambda: heard.extend(client(router.address, image.tobytes(), spectrum.tobytes()))
    )
    instrument.start()
    while not isinstance(agent.receive(5.0), Latents):
        pass
    agent.send(make_suggestion("a", position_nm=(0.5, 0.25)))
    while not isinstance(outcome := agent.receive(5.0), Outcome):
        pass
    instrument.join(5.0)
    serving.join(15.0)
    assert not serving.is_alive()
    agent.close()
    for part in (journal, router, publisher):
        part.close()
    assert sorted(message["kind"] for message in heard) == ["ack", "request"]
    assert outcome.position_nm == (0.5, 0.25)
    assert np.array_equal(outcome.spectrum, spectrum)
    kept = [message for _, message in read_messages(tmp_path) if isinstance(message, Frame)]
    assert np.array_equal(kept[0].image[0], image)
