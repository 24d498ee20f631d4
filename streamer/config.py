"""The streamer's configuration: it only joins those of its parts."""

from __future__ import annotations

import msgspec

from streamer.envelope import EnvelopeConfig
from streamer.journal import JournalConfig
from streamer.messages import Mode
from streamer.pipeline import PipelineConfig
from streamer.telemetry import TelemetryConfig


class HubConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the streamer listens and how much may be on the way.

    Attributes
    ----------
    bind
        For instruments and agents; port 0 takes a free one.
    view_bind
        For viewers (lossy).
    keys
        Folder with the streamer's key pair and its allow-list (``probeloop keys``); empty for none, and then
        nothing binds off this machine.
    max_message_mb
        Whoever sends a larger array is cut off before it is allocated, in MiB.
    window
        Frames that an instrument may send ahead of their acks.
    max_waiting
        Acks are held back while this many frames wait before the pipeline, so that an instrument
        that can wait does, and nothing is dropped.
    status_interval_s
        Time between two Status messages.
    last_words_s
        A session that ends waits until nobody has said anything for this long.
    checkpoint_frames
        Frames between two states of the analysis in the journal: a restart analyses at most so many
        again.
    silent_after_s
        An instrument that has given no sign of life for this long is held to be gone: the beam is
        parked and nothing requested until it is back.
    agent_silent_after_s
        The same for the agents, when none of them gives a sign of life: frames that nobody decides on
        would only cost dose. Longer, because one that was killed is back by itself in seconds.
    stuck_after_s, give_up_after_s
        Time that the analysis of one frame may take before the loop is held, and before the streamer
        ends itself to be started anew; the first frame of a raster may take 2.5 s more.
    retry_model_s
        Time after a result that was not finite until one more frame is tried.
    """

    bind: str = "tcp://127.0.0.1:0"
    view_bind: str = "tcp://127.0.0.1:0"
    keys: str = ""
    max_message_mb: int = 256
    window: int = 4
    max_waiting: int = 2
    status_interval_s: float = 0.2
    last_words_s: float = 1.0
    checkpoint_frames: int = 16
    silent_after_s: float = 1.5
    agent_silent_after_s: float = 5.0
    stuck_after_s: float = 1.5
    give_up_after_s: float = 10.0
    retry_model_s: float = 5.0

    def __post_init__(self) -> None:
        times = (
            "silent_after_s",
            "agent_silent_after_s",
            "stuck_after_s",
            "give_up_after_s",
            "retry_model_s",
        )
        for name in times:
            if not 0.5 <= getattr(self, name) <= 3600:
                raise ValueError(f"hub.{name} is {getattr(self, name)}; it takes 0.5 to 3600")
        for name in ("window", "max_waiting", "checkpoint_frames"):
            if not 1 <= getattr(self, name) <= 1024:
                raise ValueError(f"hub.{name} is {getattr(self, name)}; it takes 1 to 1024")
        if not 1 <= self.max_message_mb <= 256:
            raise ValueError(f"hub.max_message_mb is {self.max_message_mb}; it takes 1 to 256")
        if not 0.01 <= self.status_interval_s <= 60:
            raise ValueError(f"hub.status_interval_s is {self.status_interval_s}; it takes 0.01 to 60")
        if not 0 <= self.last_words_s <= 60:
            raise ValueError(f"hub.last_words_s is {self.last_words_s}; it takes 0 to 60")


class ExperimentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who decides, and when the session ends by itself.

    Attributes
    ----------
    max_measurements
        Outcomes that count against the budget (ok, failed and aborted ones); 0 is without limit.
    max_duration_s
        From the start of the streamer, and anew when it is started again; 0 is without limit.
    mode
        ``auto``: what the agent suggests is measured if the envelope allows it; ``confirm``: a person has to
        approve each; ``advise``: it is only shown. ``probeloop control mode`` changes it.
    """

    max_measurements: int = 100
    max_duration_s: float = 0.0
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        if self.max_measurements < 0:
            raise ValueError(f"experiment.max_measurements is {self.max_measurements}; it takes 0 and above")
        if not self.max_duration_s >= 0:
            raise ValueError(f"experiment.max_duration_s is {self.max_duration_s}; it takes 0 and above")


class StreamerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of the streamer; each table is documented beside the part that it configures."""

    hub: HubConfig = HubConfig()
    experiment: ExperimentConfig = ExperimentConfig()
    envelope: EnvelopeConfig = EnvelopeConfig()
    journal: JournalConfig = JournalConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    pipeline: PipelineConfig = PipelineConfig()
