"""The nouns of probeloop: what instrument, streamer, agent and viewers say to each other.

A message is never changed; ``msgspec.structs.replace`` makes the next one. Every noun on the data
path carries ``session``, ``number`` and ``acquired_at_s`` from the instrument to the agent, so that
latency and loss can be measured anywhere. Coordinates, handedness and the sign of a rotation are
fixed in ``docs/concepts.md``: image positions are ``(row, col)`` in pixels, specimen and scan
positions are ``(x, y)`` in nanometres with x to the right and y down.

All of them are imported from here; those with an idea of their own live beside: where things are in
``geometry.py``, the map of strain in ``strain_map.py``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from msgspec import field
from msgspec.structs import replace
from numpy.typing import NDArray

from streamer.areas import FURTHEST_NM, why_no_polygon
from streamer.geometry import Distortion as Distortion
from streamer.geometry import DistortionMode as DistortionMode
from streamer.geometry import Registration as Registration
from streamer.geometry import ScanGeometry as ScanGeometry
from streamer.message_base import Float32 as Float32
from streamer.message_base import Message as Message
from streamer.message_base import PairNm as PairNm
from streamer.message_base import (
    require_array,
    require_count,
    require_finite,
    require_positive,
    require_revision,
    require_time,
)
from streamer.strain_map import StrainMap as StrainMap

Role = Literal["instrument", "agent", "operator", "viewer"]
Action = Literal["spectrum", "scan"]
Mode = Literal["auto", "confirm", "advise"]
OutcomeStatus = Literal["ok", "failed", "refused", "skipped", "aborted", "withdrawn"]
MOST_WEIGHTS_BYTES = 64 << 20


class Frame(Message, frozen=True, kw_only=True, eq=False, tag="frame"):
    """One scan frame, as acquired or as corrected.

    Attributes
    ----------
    session
        Name of the session, given by the streamer in its Welcome.
    number
        Position in the session, from 0, never reused.
    acquired_at_s
        Instrument clock at the last pixel, seconds since the epoch.
    image
        Detector intensity, shape ``(channel, row, col)``, float32, in counts (or the unit of the
        channel).
    channels
        Name of each channel, such as ``("HAADF",)`` or ``("amplitude", "phase")``.
    geometry
        How the pixels lie on the scan coordinates.
    dwell_time_us
        Time the beam spends on one pixel.
    dose_e_per_nm2
        Electrons per square nanometre given by this frame; 0 where it is not known or not electrons.
    scan_path
        ``raster`` (with fly-back), ``serpentine`` or ``sinusoidal`` (resonant fast axis).
    request_id
        Id of the Request this frame answers (a sub-scan); None for the frames of the experiment.
    stage_nm
        Where the specimen stage was told to be, ``(x, y)``, against the first frame of the session: a
        specimen point moves by as much in scan coordinates. Commanded, not measured.
    registration
        Filled in by the streamer's correction: in a corrected frame ``geometry`` speaks specimen
        coordinates and ``registration`` says where the specimen then was.
    """

    session: str
    number: int
    acquired_at_s: float
    image: Float32
    channels: tuple[str, ...]
    geometry: ScanGeometry
    dwell_time_us: float
    dose_e_per_nm2: float = 0.0
    scan_path: Literal["raster", "serpentine", "sinusoidal"] = "raster"
    request_id: str | None = None
    stage_nm: PairNm = (0.0, 0.0)
    registration: Registration | None = None

    def __post_init__(self) -> None:
        require_array("frame", "image", self.image, (len(self.channels), *self.geometry.shape), "float32")
        if not self.channels:
            raise ValueError("frame.channels is empty; it takes one name for each channel")
        if not 0 <= self.number < 2**53:
            raise ValueError(f"frame.number is {self.number}; it takes 0 to 2**53 - 1")
        require_time("frame", "acquired_at_s", self.acquired_at_s)
        require_positive("frame", "dwell_time_us", self.dwell_time_us)
        if not (math.isfinite(self.dose_e_per_nm2) and self.dose_e_per_nm2 >= 0):
            raise ValueError(f"frame.dose_e_per_nm2 is {self.dose_e_per_nm2}; it takes 0 and above")


class Atoms(Message, frozen=True, kw_only=True, eq=False, tag="atoms"):
    """The atom columns found in one frame; it keeps the frame that they were found in.

    Attributes
    ----------
    frame
        The corrected frame.
    positions_px
        ``(row, col)`` in the corrected frame, shape ``(n, 2)``, float32.
    confidence
        Probability that the column is real, shape ``(n,)``, float32, 0 to 1.
    amplitude
        Height above the local background, shape ``(n,)``, float32, in the unit of the image.
    background
        Background level of the frame, in the unit of the image.
    contrast
        Height of a typical column above the background: the unit in which windows are cut.
    position_covariance_px2
        Of ``positions_px``, ``(row, col)``, shape ``(n, 2, 2)``, float32: the finder's own and that of
        the frame's correction; None in journals from before it was said.
    """

    frame: Frame
    positions_px: Float32
    confidence: Float32
    amplitude: Float32
    background: float
    contrast: float
    position_covariance_px2: Float32 | None = None

    def __post_init__(self) -> None:
        require_array("atoms", "positions_px", self.positions_px, (None, 2), "float32")
        n = self.positions_px.shape[0]
        require_array("atoms", "confidence", self.confidence, (n,), "float32")
        require_array("atoms", "amplitude", self.amplitude, (n,), "float32")
        if self.position_covariance_px2 is not None:
            require_array(
                "atoms", "position_covariance_px2", self.position_covariance_px2, (n, 2, 2), "float32"
            )


class Patches(Message, frozen=True, kw_only=True, eq=False, tag="patches"):
    """Windows with their positions: cut from a frame, or delivered as such by a detector.

    What a detector delivers, such as the diffraction patterns of a 4D-STEM, is a batch of a scan: it has a
    number of its own in the row of the frames, and fills the fields from ``channels`` on.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the frame; of a batch, its own, and the time of its last window.
    windows
        Shape ``(n, channel, h, w)``, float32; cut ones normalised as the encoder's card asks, delivered
        ones in counts.
    window_nm
        Edge of a window on the specimen.
    positions_px
        ``(row, col)`` in the corrected frame, shape ``(n, 2)``, float32.
    positions_nm
        Specimen position ``(x, y)``, shape ``(n, 2)``, float32.
    confidence
        Shape ``(n,)``, float32, 0 to 1.
    geometry, registration
        Those of the corrected frame; of a batch, the raster of its scan and where the stage was told to be.
    position_covariance_nm2
        Of ``positions_nm``, ``(x, y)``, shape ``(n, 2, 2)``, float32; None where it is not known.
    channels
        Name of each channel of a delivered window, such as ``("diffraction",)``; empty for cut ones.
    window_per_nm
        Edge of a window in reciprocal space, in 1/nm, where it is a diffraction pattern; 0 where it is an
        image.
    dwell_time_us
        Time that the beam spent on one delivered window; 0 for cut ones, whose frame says it.
    dose_e
        Electrons of the beam for one delivered window; 0 where it is not known, and for cut ones.
    request_id
        Id of the Request whose sub-scan a batch is of; None for the scans of the experiment.
    """

    session: str
    number: int
    acquired_at_s: float
    windows: Float32
    window_nm: float
    positions_px: Float32
    positions_nm: Float32
    confidence: Float32
    geometry: ScanGeometry
    registration: Registration
    position_covariance_nm2: Float32 | None = None
    channels: tuple[str, ...] = ()
    window_per_nm: float = 0.0
    dwell_time_us: float = 0.0
    dose_e: float = 0.0
    request_id: str | None = None

    def __post_init__(self) -> None:
        require_array("patches", "windows", self.windows, (None, None, None, None), "float32")
        n = self.windows.shape[0]
        require_array("patches", "positions_px", self.positions_px, (n, 2), "float32")
        require_array("patches", "positions_nm", self.positions_nm, (n, 2), "float32")
        require_array("patches", "confidence", self.confidence, (n,), "float32")
        if self.position_covariance_nm2 is not None:
            require_array(
                "patches", "position_covariance_nm2", self.position_covariance_nm2, (n, 2, 2), "float32"
            )
        if not 0 <= self.number < 2**53:
            raise ValueError(f"patches.number is {self.number}; it takes 0 to 2**53 - 1")
        require_time("patches", "acquired_at_s", self.acquired_at_s)
        require_positive("patches", "window_nm", self.window_nm)
        if self.channels and len(self.channels) != self.windows.shape[1]:
            have, named = self.windows.shape[1], len(self.channels)
            raise ValueError(f"patches.channels has {named} names for {have} channels; it takes one for each")
        for name in ("window_per_nm", "dwell_time_us", "dose_e"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"patches.{name} is {getattr(self, name)}; it takes 0 and above")


class Latents(Message, frozen=True, kw_only=True, eq=False, tag="latents"):
    """What the encoder says of each patch of one frame.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the frame.
    mean, sd
        Content latents and their standard deviations, shape ``(n, d)``, float32.
    angle_rad, angle_sd_rad
        Orientation of the content on the specimen (the scan rotation is in it) and its circular sd, shape
        ``(n,)``, float32.
    offset_nm, offset_sd_nm
        Shift ``(x, y)`` of the content from the window's centre, shape ``(n, 2)``, float32.
    class_probability
        Shape ``(n, k)``, float32; ``k`` is 0 for an encoder without classes.
    novelty
        How unlike the training data, shape ``(n,)``, float32; 0 is usual, above 3 is not.
    confidence
        That of the atom finder, shape ``(n,)``, float32, 0 to 1.
    track
        Id of the atom through the session, shape ``(n,)``, int64; -1 before linking.
    positions_px, positions_nm
        ``(row, col)`` in the corrected frame; ``(x, y)`` on the specimen; shape ``(n, 2)``, float32.
    model_revision
        Hash of the encoder's weights.
    geometry, registration
        Those of the corrected frame.
    request_id
        Id of the Request whose sub-scan this is; None for the frames of the experiment.
    position_covariance_nm2
        Of ``positions_nm``, ``(x, y)``, shape ``(n, 2, 2)``, float32: of the finder, of the displacement
        field with the drift, which all atoms of a frame share, and of the rows' offsets that are left.
        What the mode of the correction leaves for the specimen is not in it. None where it is not known,
        as in journals from before it was said.
    is_delivered
        Whether the windows were delivered by a detector and not cut from a frame: then these are a part
        of a scan, uncorrected and not linked.
    encoder
        Name of the encoder, as it is configured beside the main one, whose own name is empty.
    gain, defocus
        Brightness of the content against that of the training windows; and the variance that a blur adds to
        its spots, in square pixels of the window, below 0 where they are sharper; shape ``(n,)``, float32.
        None from an encoder that does not say it.
    windows, window_range
        What the encoder looked at, shape ``(n, channel, h, w)``, uint8, and the values of 0 and 255 in each,
        shape ``(n, channel, 2)``, float32; None where the streamer is not told to send them, and of
        sub-scans and of windows that a detector delivered.
    """

    session: str
    number: int
    acquired_at_s: float
    mean: Float32
    sd: Float32
    angle_rad: Float32
    angle_sd_rad: Float32
    offset_nm: Float32
    offset_sd_nm: Float32
    class_probability: Float32
    novelty: Float32
    confidence: Float32
    track: NDArray[np.int64]
    positions_px: Float32
    positions_nm: Float32
    model_revision: str
    geometry: ScanGeometry
    registration: Registration
    request_id: str | None = None
    position_covariance_nm2: Float32 | None = None
    is_delivered: bool = False
    encoder: str = ""
    gain: Float32 | None = None
    defocus: Float32 | None = None
    windows: NDArray[np.uint8] | None = None
    window_range: Float32 | None = None

    def __post_init__(self) -> None:
        require_array("latents", "mean", self.mean, (None, None), "float32")
        n, d = self.mean.shape
        require_array("latents", "sd", self.sd, (n, d), "float32")
        require_array("latents", "class_probability", self.class_probability, (n, None), "float32")
        for name in ("offset_nm", "offset_sd_nm", "positions_px", "positions_nm"):
            require_array("latents", name, getattr(self, name), (n, 2), "float32")
        for name in ("angle_rad", "angle_sd_rad", "novelty", "confidence"):
            require_array("latents", name, getattr(self, name), (n,), "float32")
        for name in ("gain", "defocus"):
            if getattr(self, name) is not None:
                require_array("latents", name, getattr(self, name), (n,), "float32")
        require_array("latents", "track", self.track, (n,), "int64")
        if self.position_covariance_nm2 is not None:
            require_array(
                "latents", "position_covariance_nm2", self.position_covariance_nm2, (n, 2, 2), "float32"
            )
        if (self.windows is None) != (self.window_range is None):
            raise ValueError("latents.windows and window_range go together; it takes both or none")
        if self.windows is not None and self.window_range is not None:
            require_array("latents", "windows", self.windows, (n, None, None, None), "uint8")
            channels = self.windows.shape[1]
            require_array("latents", "window_range", self.window_range, (n, channels, 2), "float32")

    @property
    def is_beside(self) -> bool:
        """Say whether they are a further view of a frame, beside the main encoder's, which are its answer."""
        return self.encoder != "" and not self.is_delivered

    def without_windows(self, **changes: Any) -> Latents:
        """The same without its windows, and with these changes of other fields."""
        return replace(self, windows=None, window_range=None, **changes)


class Suggestion(Message, frozen=True, kw_only=True, eq=False, tag="suggestion"):
    """What the agent would measure next, and why.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the frame whose latents it was decided on.
    id
        Unique in the session; the Request and the Outcome echo it.
    action
        ``spectrum`` at a point or a sub-``scan`` around it.
    position_nm
        Specimen position ``(x, y)``.
    position_sd_nm
        Standard deviation of ``position_nm`` in the direction in which it is known worst; NaN where nobody
        says.
    registration_revision
        Revision of the registration that ``position_nm`` speaks of.
    dwell_time_us
        Exposure of the spectrum, or dwell time of a pixel of the sub-scan.
    track
        Id of the atom aimed at; -1 for none.
    field_of_view_nm, shape
        Extent ``(width, height)`` and raster ``(rows, cols)`` of a sub-scan; None for a spectrum.
    rotation_rad
        Scan rotation of a sub-scan; None leaves it as it is.
    stage_nm
        Where the specimen stage goes before, ``(x, y)`` as in ``Frame.stage_nm``; None leaves it.
    predicted_mean, predicted_sd
        The surrogate's forecast of the objective; NaN before there is one.
    acquisition
        Value of the acquisition function (log for LogEI); NaN before there is one.
    reason
        A few words for the operator.
    policy
        Name of the agent's policy: ``explorer``, ``raster``, ``random``.
    model_revision
        Counts the fits of the surrogate.
    told
        Number of the last journal record that the agent had been told when it decided.
    """

    session: str
    number: int
    acquired_at_s: float
    id: str
    action: Action = "spectrum"
    position_nm: PairNm
    position_sd_nm: float = math.nan
    registration_revision: int = 0
    dwell_time_us: float
    track: int = -1
    field_of_view_nm: PairNm | None = None
    shape: tuple[int, int] | None = None
    rotation_rad: float | None = None
    stage_nm: PairNm | None = None
    predicted_mean: float = math.nan
    predicted_sd: float = math.nan
    acquisition: float = math.nan
    reason: str = ""
    policy: str
    model_revision: int = 0
    told: int = 0

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("suggestion.id is empty; it takes a name unique in the session")
        if (self.action == "scan") != (self.field_of_view_nm is not None and self.shape is not None):
            raise ValueError("suggestion.field_of_view_nm and shape go with action 'scan', and only with it")
        for name, values in (("rotation_rad", (self.rotation_rad,)), ("stage_nm", self.stage_nm or ())):
            require_finite("suggestion", name, *(value for value in values if value is not None))


class Request(Message, frozen=True, kw_only=True, eq=False, tag="request"):
    """A suggestion that the envelope approved: what the instrument is asked to do.

    Attributes
    ----------
    session, id, action, dwell_time_us, field_of_view_nm, shape, rotation_rad, stage_nm
        As in the Suggestion.
    scan_position_nm
        Where to send the beam, scan coordinates ``(x, y)``: the drift is already in it.
    position_nm
        The specimen position ``(x, y)`` that was meant.
    dose_e
        Electrons reserved for it in the dose ledger.
    """

    session: str
    id: str
    action: Action
    scan_position_nm: PairNm
    position_nm: PairNm
    dwell_time_us: float
    field_of_view_nm: PairNm | None = None
    shape: tuple[int, int] | None = None
    rotation_rad: float | None = None
    stage_nm: PairNm | None = None
    dose_e: float = 0.0


class Outcome(Message, frozen=True, kw_only=True, eq=False, tag="outcome"):
    """What came of a request; bound to it by ``id``.

    Attributes
    ----------
    session, id
        Those of the Request.
    status
        ``ok``; ``failed`` or ``aborted`` by the instrument; ``refused`` by the envelope or by an
        instrument that has no such data; ``skipped`` when time or budget ran out; ``withdrawn`` by the
        streamer when a suggestion waited for a person and nobody will decide on it any more.
    reason
        A few words where the status is not ``ok``.
    action
        As requested.
    scan_position_nm
        Where the beam really was, scan coordinates ``(x, y)``.
    position_nm
        The specimen position ``(x, y)``; filled in by the streamer, None from the instrument.
    dwell_time_us
        Exposure as it was.
    dose_e
        Electrons given, 0 where it is not known.
    started_at_s, ended_at_s
        Instrument clock, seconds since the epoch.
    spectrum
        Counts in each energy channel, shape ``(energy,)``, float32; None for a sub-scan or a failure.
    energy_offset_ev, energy_step_ev
        Energy loss of channel 0 and the width of a channel.
    bias_v
        For a hysteresis loop: ``spectrum`` is then the response at each of these biases of the tip, in the
        order in which they were swept, shape as ``spectrum``, float32; None for a spectrum of energies.
    frame_number
        Number of the Frame that answers a sub-scan.
    """

    session: str
    id: str
    status: OutcomeStatus
    reason: str = ""
    action: Action = "spectrum"
    scan_position_nm: PairNm | None = None
    position_nm: PairNm | None = None
    dwell_time_us: float = 0.0
    dose_e: float = 0.0
    started_at_s: float = 0.0
    ended_at_s: float = 0.0
    spectrum: Float32 | None = None
    energy_offset_ev: float = 0.0
    energy_step_ev: float = 1.0
    bias_v: Float32 | None = None
    frame_number: int | None = None

    def __post_init__(self) -> None:
        if self.spectrum is not None:
            require_array("outcome", "spectrum", self.spectrum, (None,), "float32")
            if self.spectrum.size == 0:
                raise ValueError("outcome.spectrum has no channel; it takes at least one")
        if self.bias_v is not None:
            if self.spectrum is None:
                raise ValueError("outcome.bias_v comes without a spectrum; it takes the response to it")
            require_array("outcome", "bias_v", self.bias_v, self.spectrum.shape, "float32")
        for name in ("started_at_s", "ended_at_s"):
            require_time("outcome", name, getattr(self, name))
        require_finite("outcome", "energy_offset_ev", self.energy_offset_ev)
        require_finite("outcome", "scan_position_nm", *(self.scan_position_nm or ()))
        for name in ("dose_e", "dwell_time_us"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"outcome.{name} is {getattr(self, name)}; it takes 0 and above")
        require_positive("outcome", "energy_step_ev", self.energy_step_ev)
        if self.status == "ok" and self.scan_position_nm is None:
            raise ValueError("outcome.scan_position_nm is missing; an 'ok' says where the beam was")


class Hello(Message, frozen=True, kw_only=True, eq=False, tag="hello"):
    """First message of a peer: who it is, and where it stands after a lost link.

    Attributes
    ----------
    role
        ``instrument``, ``agent``, ``operator`` or ``viewer``.
    name
        For the log, such as ``simulated STEM``. An agent that comes back under its name is given
        the history that it needs to go on.
    instance
        Drawn at random once in each process; empty for a client that does not number its messages
        and keeps nothing to send again.
    resumes_from
        Sequence of the oldest message of this instance that has no ack yet.
    last_record
        Number of the last journal record that came to this instance in order; 0 for none.
    beats
        Whether it sends heartbeats, so that its silence means something.
    """

    role: Role
    name: str
    instance: str = ""
    resumes_from: int = 1
    last_record: int = 0
    beats: bool = False

    def __post_init__(self) -> None:
        for name, limit in (("name", 200), ("instance", 64)):
            if len(getattr(self, name)) > limit:
                raise ValueError(f"hello.{name} has {len(getattr(self, name))} letters; it takes {limit}")
        require_count("hello", "resumes_from", self.resumes_from)
        require_count("hello", "last_record", self.last_record)


class Welcome(Message, frozen=True, kw_only=True, eq=False, tag="welcome"):
    """The streamer's answer to Hello.

    Attributes
    ----------
    session
        Name that every message of this session carries.
    window
        How many frames may be sent ahead of their acks.
    next_number
        The first frame number that this session has not yet seen.
    durability
        What an ack means: ``written`` to the operating system or ``fsynced`` to the disk.
    received
        Sequence through which the messages of this instance are in the journal; 0 for none.
    last_record
        Number of the last journal record that is, or now will be, sent to this peer.
    history_record
        Records up to this number are history: what an earlier process of this agent was told and
        decided. 0 where there is none.
    """

    session: str
    window: int
    next_number: int
    durability: Literal["written", "fsynced"]
    received: int = 0
    last_record: int = 0
    history_record: int = 0


class Ack(Message, frozen=True, kw_only=True, eq=False, tag="ack"):
    """A message is in the journal, or was refused; a frame's place in the window is free either way.

    Attributes
    ----------
    session, number
        Those of the frame; number -1 for other messages, and where the refused one could not be read.
    status
        ``written`` or ``fsynced``: kept; ``unrecorded``: used, and not kept, as configured for a full
        disk; ``refused``: neither, see ``reason``.
    reason
        A short fixed word and a cure, for a refused message.
    sequence
        Of the message, 0 where it had none. One that is not ``refused`` speaks of all up to it, but for
    refused
        the sequences of those among the last ones that were refused.
    """

    session: str
    number: int
    status: Literal["written", "fsynced", "unrecorded", "refused"]
    reason: str = ""
    sequence: int = 0
    refused: tuple[int, ...] = ()


class Heartbeat(Message, frozen=True, kw_only=True, eq=False, tag="heartbeat"):
    """A sign of life, both ways; never in the journal.

    Attributes
    ----------
    instance
        Of the peer that lives; empty from the streamer.
    idle_s
        From a peer: seconds since its program last sent or asked for a message.
    received
        From the streamer: sequence through which this peer's messages have come, in order; those
        beyond it may be lost on the way.
    is_missing
        From the streamer: whether a later message has come than the one after ``received``.
    last_record
        From the streamer: number of the last journal record sent to this peer; from a peer, of the
        last one that came in order.
    """

    instance: str = ""
    idle_s: float = 0.0
    received: int = 0
    is_missing: bool = False
    last_record: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.idle_s <= 1e9:
            raise ValueError(f"heartbeat.idle_s is {self.idle_s}; it takes 0 to 1e9 seconds")


class Resend(Message, frozen=True, kw_only=True, eq=False, tag="resend"):
    """A peer lacks what followed a journal record: send it again.

    Attributes
    ----------
    after
        Number of the last record that came in order.
    """

    after: int

    def __post_init__(self) -> None:
        require_count("resend", "after", self.after)


class Control(Message, frozen=True, kw_only=True, eq=False, tag="control"):
    """What a person decides over the agent's head.

    Attributes
    ----------
    session
        Name of the session; empty for the one that runs.
    action
        ``pause`` (beam parked, no new requests) and ``resume``; ``stop`` ends the session in order;
        ``abort`` parks the beam at once, breaks off what is under way and holds until ``resume``;
        ``veto`` forbids a request under way (``id``), a place (``position_nm``) or an area
        (``polygon_nm``); ``place`` says where all that is forbidden lies since the specimen was lost
        (``shift_nm``), ``forget`` that it is not here any more; ``separate`` asks for
        the four scans that tell strain from distortion; ``encoder`` asks for other weights; ``mode`` says who
        decides; ``approve`` and ``decline`` answer a suggestion that waits (``id``); ``steer`` changes what
        the agent looks for.
    id
        Of the suggestion or request that is vetoed, approved or declined; empty for none.
    position_nm, radius_nm
        Specimen position ``(x, y)`` around which nothing more is measured.
    polygon_nm
        Corners ``(x, y)`` of an area where nothing more is measured, nor within ``radius_nm`` of it.
    shift_nm
        With ``place``: how far ``(x, y)`` the areas are from where they would be had the specimen stayed;
        each then reaches ``radius_nm`` further.
    reason
        For the journal.
    encoder
        With ``encoder``: which one, as in ``Latents.encoder``.
    revision
        With ``encoder``: of the weights wanted, the first 12 hexadecimal digits of the file's SHA-256.
    weights
        With ``encoder``: the bytes of that file, uint8; None for weights that the session has already, and
        in the journal, beside which they are kept.
    mode
        With ``mode``: ``auto`` measures what the agent suggests and the envelope allows, ``confirm`` waits
        for a person's word on each, ``advise`` only shows it.
    settings
        With ``steer``: what replaces the same keys of the configuration's ``[agent]`` table, such as
        ``{"goal": "map"}`` or ``{"objective": {...}}``.
    seen
        ``Status.revision`` that the person had before their eyes; -1 for whatever it is. Another one is
        refused: what was approved there is not what would happen.
    """

    session: str = ""
    action: Literal[
        "pause",
        "resume",
        "stop",
        "abort",
        "veto",
        "place",
        "forget",
        "separate",
        "encoder",
        "mode",
        "approve",
        "decline",
        "steer",
    ]
    id: str = ""
    position_nm: PairNm | None = None
    radius_nm: float = 0.0
    polygon_nm: tuple[PairNm, ...] = ()
    shift_nm: PairNm | None = None
    reason: str = ""
    encoder: str = ""
    revision: str = ""
    weights: NDArray[np.uint8] | None = None
    mode: Mode | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seen: int = -1

    def __post_init__(self) -> None:
        for name in ("position_nm", "shift_nm"):
            place = getattr(self, name)
            if place is not None and not all(abs(value) <= FURTHEST_NM for value in place):
                raise ValueError(f"control.{name} is {place}; it takes finite numbers of nanometres")
        if not 0 <= self.radius_nm <= FURTHEST_NM:
            raise ValueError(f"control.radius_nm is {self.radius_nm}; it takes 0 to {FURTHEST_NM:g}")
        self._check_what_is_forbidden()
        if self.mode not in (None, *get_args(Mode)):
            raise ValueError(f"control.mode is {self.mode}; it takes {', '.join(get_args(Mode))}")
        if self.action in ("approve", "decline") and not self.id:
            raise ValueError(f"control.id is missing; '{self.action}' takes that of a suggestion that waits")
        for name, action in (("mode", "mode"), ("settings", "steer"), ("shift_nm", "place")):
            if bool(getattr(self, name)) != (self.action == action):
                raise ValueError(f"control.{name} goes with action '{action}', and only with it")
        if (self.action == "encoder") != bool(self.revision):
            raise ValueError("control.revision goes with action 'encoder', and only with it")
        if self.revision:
            require_revision("control", self.revision)
        if self.weights is not None:
            require_array("control", "weights", self.weights, (None,), "uint8")
            if self.weights.size > MOST_WEIGHTS_BYTES:
                raise ValueError(
                    f"control.weights has {self.weights.size} bytes; it takes up to {MOST_WEIGHTS_BYTES}"
                )

    def _check_what_is_forbidden(self) -> None:
        if self.polygon_nm and self.action != "veto":
            raise ValueError("control.polygon_nm goes with action 'veto', and only with it")
        if self.polygon_nm and (why := why_no_polygon(self.polygon_nm)):
            raise ValueError(f"control.polygon_nm {why}")
        if self.action == "veto" and bool(self.polygon_nm) == bool(self.id or self.position_nm):
            raise ValueError("control.id, position_nm or polygon_nm: a veto takes one of them")

    @property
    def corners_nm(self) -> tuple[PairNm, ...]:
        """Of the area that is vetoed: those of the polygon, or the one place; none where an id names it."""
        return self.polygon_nm or (() if self.position_nm is None else (self.position_nm,))

    @property
    def forbidden_in_words(self) -> str:
        """Name what is vetoed for a person: the id, or where it is."""
        if not self.corners_nm:
            return self.id
        n, around = len(self.corners_nm), ""
        x, y = (sum(values) / n for values in zip(*self.corners_nm, strict=True))
        if self.polygon_nm:
            around = f" and within {self.radius_nm:g} nm of it" if self.radius_nm else ""
            return f"all in a polygon of {n} corners around ({x:g}, {y:g}) nm{around}"
        return f"all within {self.radius_nm:g} nm of ({x:g}, {y:g}) nm"


class Command(Message, frozen=True, kw_only=True, eq=False, tag="command"):
    """What the streamer tells the instrument to do at once; it does not wait for a frame to end.

    Attributes
    ----------
    session
        Name of the session.
    action
        ``park``: blank or park the beam and take no frames; ``go``: take frames again; ``cancel``:
        break off the request ``id``, or every one where it is empty.
    id
        Of the request to be cancelled.
    reason
        For the log and the person at the instrument.
    """

    session: str
    action: Literal["park", "go", "cancel"]
    id: str = ""
    reason: str = ""


class ModelRevision(Message, frozen=True, kw_only=True, eq=False, tag="model_revision"):
    """An agent, or the correction of the distortion, has fitted its model anew.

    Attributes
    ----------
    session, policy
        Of the session; of the agent, or ``distortion``.
    revision
        Counts the fits, from 1: suggestions carry it as ``model_revision``, and so do frames.
    told
        Number of the last journal record that the agent had been told; ``distortion``: of the frame.
    observations
        Measurements that it was fitted to; ``distortion``: frames.
    parameters
        Every hyperparameter by name, as it was found: float64, bit for bit.
    """

    session: str
    policy: str
    revision: int
    told: int
    observations: int
    parameters: dict[str, list[float]]


class Enough(Message, frozen=True, kw_only=True, eq=False, tag="enough"):
    """An agent suggests no more: what it was to find is found, or what it was to spend is spent.

    Attributes
    ----------
    session, policy
        Of the session; of the agent.
    told
        Number of the last journal record that the agent had been told.
    reason
        A sentence for a person.
    """

    session: str
    policy: str
    told: int
    reason: str


class EncoderInUse(Message, frozen=True, kw_only=True, eq=False, tag="encoder_in_use"):
    """From one frame on an encoder has these weights; the session's folder keeps them by their revision.

    Attributes
    ----------
    session
        Name of the session.
    encoder
        Which encoder, as in ``Latents.encoder``.
    number
        Of the first frame, or batch of patches, that is encoded with them.
    revision
        What the latents say as ``model_revision``.
    name
        What the model card calls the weights.
    reason
        Who asked for them, and why.
    """

    session: str
    encoder: str
    number: int
    revision: str
    name: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        require_count("encoder_in_use", "number", self.number)
        require_revision("encoder_in_use", self.revision)


class Checkpoint(Message, frozen=True, kw_only=True, eq=False, tag="checkpoint"):
    """The state of an agent or of the streamer, so that a restart need not read the whole journal.

    Attributes
    ----------
    session
        Name of the session.
    of
        ``streamer``, or the agent's name as it said Hello.
    told
        Number of the last journal record that is in this state.
    facts
        MessagePack of whatever the owner needs; nobody else reads it.
    arrays
        Its arrays by name.
    """

    session: str
    of: str
    told: int
    facts: bytes
    arrays: dict[str, NDArray[Any]]

    def __post_init__(self) -> None:
        require_count("checkpoint", "told", self.told)


class Bye(Message, frozen=True, kw_only=True, eq=False, tag="bye"):
    """A peer leaves (an instrument: no more frames), or the streamer ends the session.

    Attributes
    ----------
    reason
        Such as ``budget reached``, ``end of recording`` or ``operator``.
    """

    reason: str = ""


class Event(Message, frozen=True, kw_only=True, eq=False, tag="event"):
    """Something that happened, for the journal and the operator.

    Attributes
    ----------
    at_s
        Streamer clock, seconds since the epoch.
    what
        A short fixed word such as ``session_started``, ``held``, ``refused``.
    detail
        A sentence for a person.
    number
        Of the frame that it is about; -1 for none.
    """

    at_s: float
    what: str
    detail: str = ""
    number: int = -1


class Status(Message, frozen=True, kw_only=True, eq=False, tag="status"):
    """The streamer's state, published a few times a second for viewers; lossy by design.

    Attributes
    ----------
    session, at_s, state
        ``state`` is ``waiting``, ``running``, ``held`` (beam parked, no new requests), ``draining`` or
        ``ended``.
    held
        Why, in words; empty unless it is held.
    frames
        Counts: ``received``, ``published``, ``rejected``, ``dropped``, ``waiting``.
    stage_ms
        For each stage ``(p50, p99)`` over the last frames.
    frame_to_latents_ms, frame_to_suggestion_ms
        ``(p50, p99)``; NaN before the first.
    atoms
        Atoms in the latest frame.
    requests_granted, requests_refused, outcomes_ok, max_measurements
        Where the experiment stands; ``max_measurements`` 0 is without limit.
    dose_e, max_dose_e
        Electrons of the frames and the requested measurements, and the limit of the envelope.
    drift_nm
        The latest ``(x, y)``.
    distortion
        What was corrected in the latest frame, ``mode, residual (observer): what it means; flags``; empty
        before the first.
    best, best_position_nm
        Best objective that the agent reported; NaN before the first.
    suggestions
        The last few in words, newest first.
    mode
        Who decides: ``auto``, ``confirm`` or ``advise``, as in ``Control``.
    revision
        Counts what a person changed of how it is decided: mode, goal, objective, policy, weights.
    waiting
        Suggestions that wait for a person, in words, by their ids, oldest first.
    lost
        What is forbidden and was lost with the specimen, such as ``1 veto``: nothing is measured until a
        person says where it lies; empty where nothing is.
    """

    session: str
    at_s: float
    state: Literal["waiting", "running", "held", "draining", "ended"]
    held: tuple[str, ...] = ()
    frames: dict[str, int]
    stage_ms: dict[str, tuple[float, float]]
    frame_to_latents_ms: tuple[float, float]
    frame_to_suggestion_ms: tuple[float, float]
    atoms: int
    requests_granted: int
    requests_refused: int
    outcomes_ok: int
    max_measurements: int
    dose_e: float
    max_dose_e: float
    drift_nm: PairNm
    distortion: str = ""
    best: float
    best_position_nm: PairNm | None
    suggestions: tuple[str, ...]
    mode: Mode = "auto"
    revision: int = 0
    waiting: dict[str, str] = field(default_factory=dict)
    lost: str = ""


class Score(Message, frozen=True, kw_only=True, eq=False, tag="score"):
    """The agent's reading of an outcome: what the spectrum was worth to the objective.

    Attributes
    ----------
    session, id
        Those of the Outcome.
    objective
        Name of the objective, with its unit.
    value, variance
        In the unit of the objective.
    goal
        Whether a large or a small value is good; ``neither`` where what is looked for is no best value.
    """

    session: str
    id: str
    objective: str
    value: float
    variance: float
    goal: Literal["maximise", "minimise", "neither"] = "maximise"

    def __post_init__(self) -> None:
        require_finite("score", "value", self.value)
        if not self.variance >= 0:
            raise ValueError(f"score.variance is {self.variance}; it takes 0 and above")


AnyMessage = (
    Frame | Atoms | Patches | Latents | StrainMap | Suggestion | Request | Outcome | Score
    | Hello | Welcome | Ack | Heartbeat | Resend | Bye | Control | Command
    | ModelRevision | Enough | EncoderInUse | Checkpoint | Event | Status
)  # fmt: skip
