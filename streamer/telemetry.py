"""Every Prometheus metric, declared in one place, and the running figures behind Status."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections import defaultdict, deque
from collections.abc import Mapping
from threading import Lock

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from models.trajectories import TrajectorySummary
from streamer.messages import Distortion

# Of the flags of a Distortion, those that say that something went wrong.
FAULTS = ("blank", "jump", "lost")
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_RECENT = 256


class TelemetryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the metrics are served.

    Attributes
    ----------
    port
        Of ``http://127.0.0.1:<port>/metrics``; 0 takes a free one.
    """

    port: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"telemetry.port is {self.port}; it takes 0 to 65535")


class Telemetry:
    """Counters that add up: received = published + rejected + dropped + waiting.

    It is the Meter of the pipeline's thread and the book of the hub's; a lock keeps the two apart.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lock = Lock()
        self._recent_s: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))
        self.tally: Tally[str] = Tally()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"probeloop_{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"probeloop_{name}", text, labels, registry=self.registry, buckets=_BUCKETS_S)

        def level(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"probeloop_{name}", text, labels, registry=self.registry)

        self._received = counter("frames_received_total", "Frames that came, readable or not")
        self._published = counter("frames_published_total", "Frames whose latents were sent on")
        self._rejected = counter("frames_rejected_total", "Frames refused or unusable", "stage", "reason")
        self._dropped = counter("frames_dropped_total", "Frames kept but not analysed", "reason")
        self._not_encoded = counter(
            "frames_not_encoded_total",
            "Frames of which an encoder beside the main one had nothing to say",
            "encoder",
            "reason",
        )
        self._missed = counter("frames_missed_total", "Gaps in the numbering of the instrument")
        self._messages_refused = counter(
            "messages_refused_total", "Messages other than frames refused", "reason"
        )
        self._strangers = counter(
            "strangers_refused_total", "Connections and messages without a key that is allowed", "reason"
        )
        self._delivery = counter(
            "deliveries_total", "Messages that came twice, out of order or were asked for again", "what"
        )
        self._unreadable = counter(
            "messages_unreadable_total", "Messages that must not be believed", "reason"
        )
        self._holds = counter("holds_total", "Times that the beam was parked, by cause", "cause")
        self._suggestions = counter("suggestions_total", "Suggestions, by the envelope's verdict", "verdict")
        self._outcomes = counter("outcomes_total", "Outcomes, by their status", "status")
        self._stage = seconds("stage_seconds", "Time of one stage on one frame", "stage")
        self._to_latents = seconds("frame_to_latents_seconds", "From a frame's arrival to its latents")
        self._to_suggestion = seconds(
            "frame_to_suggestion_seconds", "From a frame's arrival to the first suggestion on it"
        )
        self._journal = counter("journal_bytes_total", "Bytes appended to the journal")
        self._dose = level("dose_electrons", "Electrons given or reserved")
        self._waiting = level("frames_waiting", "Frames before the pipeline")
        self._distortion_rms = level("distortion_rms_px", "Distortion of the latest frame, over its pixels")
        self._distortion_residual = level(
            "distortion_residual_px", "What was left of it at places held out, along one axis"
        )
        self._distortion_sd = level("distortion_sd_px", "Its standard deviation along one axis")
        self._distortion_faults = counter(
            "distortion_faults_total", "Frames whose distortion could not be followed", "fault"
        )
        self._explained = level(
            "distortion_explained_variance_ratio",
            "Part of the columns' motion in each principal component",
            "when",
            "component",
        )
        self._motion = level(
            "distortion_motion_px2",
            "Mean square motion of the columns, common to many and the rest",
            "when",
            "part",
        )
        self._server: object | None = None

    def serve(self, config: TelemetryConfig) -> str:
        """Serve the metrics on this machine and return their address.

        Raises
        ------
        OSError
            If the port is in use; the text says what would do.
        """
        try:
            server, _ = start_http_server(config.port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise OSError(
                f"cannot serve metrics at 127.0.0.1:{config.port}: {error.strerror}; "
                "choose another streamer.telemetry.port (0 takes a free one)"
            ) from None
        self._server = server
        return f"http://127.0.0.1:{server.server_port}/metrics"

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()  # type: ignore[attr-defined]
            self._server.server_close()  # type: ignore[attr-defined]
            self._server = None

    # -- the pipeline's side -------------------------------------------------------------------

    def stage_took(self, stage: str, seconds: float) -> None:
        """Note the time of one stage."""
        self._stage.labels(stage).observe(seconds)
        self._note(f"stage {stage}", seconds)

    def stage_rejected(self, stage: str, reason: str) -> None:
        """Count a frame that a stage could not use."""
        self.frame_rejected(stage, reason)

    def distortion_came(self, distortion: Distortion) -> None:
        """Set the figures of the latest frame's distortion, and count its faults."""
        self._distortion_rms.set(distortion.rms_px)
        self._distortion_residual.set(distortion.residual_px)
        self._distortion_sd.set(math.sqrt(float((distortion.sd_px.astype(np.float64) ** 2).mean())))
        for flag in distortion.flags:
            if flag in FAULTS:
                self.distortion_fault(flag)

    def distortion_fault(self, fault: str) -> None:
        """Count a frame whose distortion could not be followed, under a short fixed word."""
        self._distortion_faults.labels(fault).inc()
        self._count(f"distortion: {fault}")

    def columns_moved(self, summary: TrajectorySummary) -> None:
        """Set how the columns moved over the last frames, before and after the correction."""
        for when, motion in (("before", summary.before), ("after", summary.after)):
            for component, ratio in enumerate(motion.explained_variance_ratio, start=1):
                self._explained.labels(when, str(component)).set(ratio)
            self._motion.labels(when, "common").set(motion.common_px2)
            self._motion.labels(when, "local").set(motion.local_px2)

    # -- the hub's side ------------------------------------------------------------------------

    def frame_received(self) -> None:
        """Count a frame that came, readable or not."""
        self._received.inc()
        self._count("received")

    def frame_rejected(self, stage: str, reason: str) -> None:
        """Count a frame that was refused (stage ``wire`` or ``hub``) or unusable."""
        self._rejected.labels(stage, reason).inc()
        self._count("rejected", f"rejected {stage}: {reason}")

    def frame_dropped(self, reason: str) -> None:
        """Count a frame that is in the journal and was not analysed."""
        self._dropped.labels(reason).inc()
        self._count("dropped")

    def frames_missed(self, count: int) -> None:
        """Count a gap in the instrument's numbering."""
        self._missed.inc(count)
        self._count("missed", times=count)

    def encoder_missed(self, encoder: str, reason: str) -> None:
        """Count a frame of which an encoder beside the main one had nothing to say."""
        self._not_encoded.labels(encoder, reason).inc()
        self._count(f"not encoded {encoder}")

    def frame_published(self, age_s: float) -> None:
        """Count a frame whose latents were sent on, this long after it came."""
        self._published.inc()
        self._to_latents.observe(age_s)
        self._count("published")
        self._note("frame to latents", age_s)

    def suggestion_came(self, verdict: str, age_s: float | None) -> None:
        """Count a suggestion; the age of its frame where it is the first on that frame."""
        self._suggestions.labels(verdict).inc()
        if verdict != "waiting":  # it is counted when a person has decided on it
            self._count("suggestions granted" if verdict == "granted" else "suggestions refused")
        if age_s is not None:
            self._to_suggestion.observe(age_s)
            self._note("frame to suggestion", age_s)

    def outcome_came(self, status: str) -> None:
        """Count an outcome."""
        self._outcomes.labels(status).inc()
        self._count(f"outcomes {status}")

    def message_refused(self, reason: str) -> None:
        """Count a message, not a frame, that was not acted on."""
        self._messages_refused.labels(reason).inc()
        self._count("messages refused", f"message refused: {reason}")

    def strangers(self, refused: Mapping[str, int]) -> None:
        """Take over what the sockets have refused so far, by reason: how often since the start."""
        for reason, count in list(refused.items()):
            name = f"stranger refused: {reason}"
            with self._lock:
                more = count - self.tally[name]
                self.tally[name] = count
            self._strangers.labels(reason).inc(more)

    def delivery(self, what: str) -> None:
        """Count a ``duplicate``, a message ``reordered`` or ``too early``, or one ``asked again``."""
        self._delivery.labels(what).inc()
        self._count(f"delivery: {what}")

    def unreadable(self, reason: str) -> None:
        """Count a message that could not be read; what it was nobody knows."""
        self._unreadable.labels(reason).inc()
        self._count(f"unreadable: {reason}")

    def held(self, cause: str) -> None:
        """Count a hold of the loop."""
        self._holds.labels(cause).inc()
        self._count(f"held: {cause}")

    def recovered(self, tally: Mapping[str, int]) -> None:
        """Take over the counts of an earlier process of this session."""
        with self._lock:
            for name, count in tally.items():
                self.tally[name] += count

    def journal_grew(self, size_bytes: int) -> None:
        """Count bytes appended."""
        self._journal.inc(size_bytes)
        self._count("journal bytes", times=size_bytes)

    def stands_at(self, *, waiting: int, dose_e: float) -> None:
        """Set what is a level, not a count."""
        self._waiting.set(waiting)
        self._dose.set(dose_e)

    def quantiles_ms(self, what: str) -> tuple[float, float]:
        """Median and 99th percentile of the recent times of ``what``, in ms; NaN before the first."""
        with self._lock:
            recent = list(self._recent_s.get(what, ()))
        if not recent:
            return math.nan, math.nan
        p50, p99 = np.percentile(recent, (50, 99)) * 1e3
        return float(p50), float(p99)

    def stages(self) -> list[str]:
        """Name the stages that ran."""
        with self._lock:
            return [name.removeprefix("stage ") for name in self._recent_s if name.startswith("stage ")]

    def _note(self, what: str, seconds: float) -> None:
        with self._lock:
            self._recent_s[what].append(seconds)

    def _count(self, *names: str, times: int = 1) -> None:
        with self._lock:
            for name in names:
                self.tally[name] += times
