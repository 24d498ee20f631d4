"""What a finished session left behind, read into one place for the report."""

from __future__ import annotations

import json
import math
import tomllib
import zipfile
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.agent_course import AgentCourse
from deploy.latent_course import Kind, LatentCourse, kind_of_sites
from streamer.journal import read_messages
from streamer.messages import (
    AnyMessage,
    Atoms,
    Distortion,
    DistortionMode,
    Event,
    Frame,
    Hello,
    Latents,
    Outcome,
    PairNm,
    Patches,
    Registration,
    ScanGeometry,
    Score,
    StrainMap,
    Suggestion,
)

Float64 = NDArray[np.float64]
# Larger truths than this are not believed: a field of 10,000 atoms with 4,096 channels is 160 MB.
MAX_TRUTH_BYTES = 1 << 30
PLACES_KEPT = 64  # frames whose atoms are kept: the window of the trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What a simulated instrument knows, from ``truth.npz``.

    Attributes
    ----------
    positions_nm
        Of the atom sites, shape ``(n, 2)``, as ``(x, y)``.
    site_class
        Shape ``(n,)``; 0 is carbon.
    drift_nm
        By frame number, shape ``(frames, 2)``, as ``(x, y)``; NaN where it is not told.
    spectra
        What a noiseless spectrum at each site would be, shape ``(n, energy)``; None where it is not told.
    energy_offset_ev, energy_step_ev, dwell_time_us
        Of those spectra; the dwell time is NaN where it is not told.
    structure
        What is known of the structure that was loaded, such as its formula; empty where none was.
    """

    positions_nm: Float64
    site_class: NDArray[np.int64]
    drift_nm: Float64
    spectra: NDArray[np.float32] | None
    energy_offset_ev: float
    energy_step_ev: float
    dwell_time_us: float
    structure: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One request from its suggestion to its score; what did not happen is None.

    Attributes
    ----------
    order
        From 1, in the order of the outcomes.
    """

    order: int
    suggestion: Suggestion | None
    outcome: Outcome
    score: Score | None

    @property
    def value(self) -> float:
        """The objective as the agent read it; NaN where there is none."""
        return math.nan if self.score is None else self.score.value

    @property
    def position_nm(self) -> PairNm | None:
        """Specimen position ``(x, y)``: as visited, else as suggested."""
        if self.outcome.position_nm is not None:
            return self.outcome.position_nm
        return None if self.suggestion is None else self.suggestion.position_nm


@dataclass(frozen=True, slots=True, kw_only=True)
class DistortionFigures:
    """The distortion of one frame in a few numbers, so that those of a long session fit in memory.

    Attributes
    ----------
    number, acquired_at_s
        Those of the frame.
    mode, observer, observations, residual_px, flags
        As in the Distortion.
    rms_px, sd_px, row_offset_px
        Root mean squares over the frame: of the displacement and of the rows' own offsets as vectors, and
        of the standard deviation along one axis.
    """

    number: int
    acquired_at_s: float
    mode: DistortionMode
    observer: str
    observations: int
    residual_px: float
    flags: tuple[str, ...]
    rms_px: float
    sd_px: float
    row_offset_px: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the atoms of one frame were.

    Attributes
    ----------
    track
        Shape ``(n,)``.
    positions_nm
        On the specimen, ``(x, y)``, shape ``(n, 2)``.
    raster
        Of the frame as acquired.
    registration
        With which it was corrected.
    """

    track: NDArray[np.int64]
    positions_nm: NDArray[np.float32]
    raster: ScanGeometry
    registration: Registration


@dataclass(slots=True, kw_only=True)
class Session:
    """A session folder, read.

    Attributes
    ----------
    folder
        Where it lies.
    summary
        The streamer's own account (``summary.json``); empty if it did not come to write one.
    configuration
        Text of ``config.toml``; empty if there is none.
    first_received_s, last_received_s
        Streamer clock of the first and the last record; NaN for an empty journal.
    frames
        How many frames of the experiment were journalled (sub-scans apart).
    subscans
        How many frames answered a request.
    patterns
        How many windows a detector delivered as such.
    last_raw
        The raw frame that belongs to ``atoms``, or the last one.
    atoms
        The last corrected frame with its atoms; None if no frame came through.
    latents
        Those of the frame of ``atoms``, or the last ones.
    drift
        ``(number, acquired_at_s, registration)`` of each frame that came through, without the distortion.
    distortions
        Of each frame that came through with one.
    last_distortion, distorted_raster
        The last of them whole, and the raster of its frame; None if there is none.
    places
        Where the atoms of the last frames were.
    strain
        The last map of the specimen's strain; None if there is none.
    latents_age_ms
        From the arrival of a frame to the journalling of its latents, shape ``(frames,)``.
    measurements
        Every outcome, in order.
    events
        In order.
    truth
        None where nothing is known.
    instrument
        The name by which it said Hello, the last one; empty if it is not in the journal.
    course
        What the latents of all frames came to.
    agent_course
        What the agents suggested and what came of it.
    beside
        The last latents of each encoder beside the main one, by its name.
    true_order
        Order parameter and director of the rods in each frame, shape ``(frames, 2)``; None where not known.
    """

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    configuration: str = ""
    first_received_s: float = math.nan
    last_received_s: float = math.nan
    frames: int = 0
    subscans: int = 0
    patterns: int = 0
    last_raw: Frame | None = None
    atoms: Atoms | None = None
    latents: Latents | None = None
    drift: list[tuple[int, float, Registration]] = field(default_factory=list)
    distortions: list[DistortionFigures] = field(default_factory=list)
    last_distortion: Distortion | None = None
    distorted_raster: ScanGeometry | None = None
    places: deque[Places] = field(default_factory=lambda: deque(maxlen=PLACES_KEPT))
    strain: StrainMap | None = None
    latents_age_ms: list[float] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    truth: Truth | None = None
    instrument: str = ""
    course: LatentCourse = field(default_factory=LatentCourse)
    agent_course: AgentCourse = field(default_factory=AgentCourse)
    beside: dict[str, Latents] = field(default_factory=dict)
    true_order: Float64 | None = None

    @property
    def kind(self) -> Kind:
        """What windows were cut around."""
        frame = self.last_raw if self.atoms is None else self.atoms.frame
        if self.course.delivered and not self.course.seen:
            return "patterns"
        return kind_of_sites(() if frame is None else frame.channels, _configured_sites(self.configuration))

    @property
    def duration_s(self) -> float:
        """Time from the first to the last record; 0 for an empty journal."""
        duration = self.last_received_s - self.first_received_s
        return duration if math.isfinite(duration) else 0.0

    @property
    def measured(self) -> list[Measurement]:
        """The measurements that gave a value."""
        return [m for m in self.measurements if m.outcome.status == "ok" and math.isfinite(m.value)]


def _configured_sites(configuration: str) -> str:
    """Read what the session was told to cut windows around; ``auto`` where that cannot be read."""
    try:
        table: Any = tomllib.loads(configuration)
    except tomllib.TOMLDecodeError:  # the report says so where it needs more of it
        return "auto"
    for name in ("streamer", "pipeline", "sites", "kind"):
        table = table.get(name) if isinstance(table, dict) else None
    return table if isinstance(table, str) else "auto"


@dataclass(slots=True)
class _Gathering:
    """What is kept of the messages while they pass; frames are large, so only the last are."""

    raw: dict[int, Frame] = field(default_factory=dict)
    received_s: dict[int, float] = field(default_factory=dict)
    rasters: dict[int, ScanGeometry] = field(default_factory=dict)
    latents: dict[int, Latents] = field(default_factory=dict)
    suggestions: dict[str, Suggestion] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)


_KEPT = 8


def _keep(store: dict[int, Any], number: int, message: Any) -> None:
    store[number] = message
    while len(store) > _KEPT:
        del store[next(iter(store))]


def gather(folder: Path, messages: Iterable[tuple[float, AnyMessage]]) -> Session:
    """Read the messages of a journal into a Session.

    Parameters
    ----------
    folder
        The session folder; it is only noted.
    messages
        ``(received_at_s, message)`` in order of arrival.
    """
    session, seen = Session(folder=folder), _Gathering()
    for received_s, message in messages:
        if isinstance(message, Latents):
            session.course.add(message)
        session.agent_course.add(message)
        if math.isnan(session.first_received_s):
            session.first_received_s = received_s
        session.last_received_s = received_s
        _take(session, seen, received_s, message)
    number = None if session.atoms is None else session.atoms.frame.number
    session.last_raw = seen.raw.get(-1 if number is None else number, _last(seen.raw))
    session.latents = seen.latents.get(-1 if number is None else number, _last(seen.latents))
    session.measurements = [
        Measurement(
            order=order, suggestion=seen.suggestions.get(id_), outcome=outcome, score=seen.scores.get(id_)
        )
        for order, (id_, outcome) in enumerate(seen.outcomes.items(), start=1)
    ]
    return session


def _last(store: dict[int, Any]) -> Any:
    return next(reversed(store.values()), None)


def _take(session: Session, seen: _Gathering, received_s: float, message: AnyMessage) -> None:
    match message:
        case Frame(request_id=None):
            session.frames += 1
            _keep(seen.raw, message.number, message)
            seen.received_s[message.number] = received_s
            seen.rasters[message.number] = message.geometry
        case Frame():
            session.subscans += 1
        case Atoms():
            session.atoms = message
        case Patches():
            session.patterns += len(message.windows)
        case Latents(request_id=None, is_delivered=False, encoder=""):
            _keep(seen.latents, message.number, message)
            _take_registration(session, message, seen.rasters.pop(message.number, message.geometry))
            if message.number in seen.received_s:
                session.latents_age_ms.append((received_s - seen.received_s[message.number]) * 1e3)
        case Latents(request_id=None, is_beside=True):
            session.beside[message.encoder] = message
        case Suggestion():
            seen.suggestions[message.id] = message
        case Outcome():
            seen.outcomes[message.id] = message
        case Score():
            seen.scores[message.id] = message
        case StrainMap():
            session.strain = message
        case Event():
            session.events.append(message)
        case Hello(role="instrument"):
            session.instrument = message.name
        case _:
            pass


def _take_registration(session: Session, latents: Latents, raster: ScanGeometry) -> None:
    """Note what a frame's registration says; its arrays are kept of the last frames only."""
    registration = latents.registration
    rigid = msgspec.structs.replace(registration, distortion=None)
    session.drift.append((latents.number, latents.acquired_at_s, rigid))
    session.places.append(
        Places(
            track=latents.track,
            positions_nm=latents.positions_nm,
            raster=raster,
            registration=registration,
        )
    )
    if registration.distortion is not None:
        session.last_distortion, session.distorted_raster = registration.distortion, raster
        session.distortions.append(_figures(latents, registration.distortion))


def _figures(latents: Latents, distortion: Distortion) -> DistortionFigures:
    return DistortionFigures(
        number=latents.number,
        acquired_at_s=latents.acquired_at_s,
        mode=distortion.mode,
        observer=distortion.observer,
        observations=distortion.observations,
        residual_px=distortion.residual_px,
        flags=distortion.flags,
        rms_px=distortion.rms_px,
        sd_px=_root_mean_square(distortion.sd_px),
        row_offset_px=math.sqrt(2) * _root_mean_square(distortion.row_offset_px),
    )


def _root_mean_square(values: NDArray[np.float32]) -> float:
    return float(np.sqrt((values.astype(np.float64) ** 2).mean()))


def read_session(folder: Path) -> Session:
    """Read a session folder.

    Parameters
    ----------
    folder
        With ``journal-*.plj``; ``summary.json``, ``config.toml`` and ``truth.npz`` are read if they
        are there.

    Raises
    ------
    FileNotFoundError
        If the folder holds no journal.
    ValueError
        If a file beside the journal is not what its name claims; the text names it.
    """
    session = gather(folder, read_messages(folder))
    session.summary = _read_summary(folder / "summary.json")
    session.configuration = _read_text(folder / "config.toml")
    session.truth = read_truth(folder / "truth.npz")
    session.true_order = _read_order(folder / "truth.npz")
    return session


def _read_order(path: Path) -> Float64 | None:
    """Read the true order of rods, which only a simulation of rods knows; the file was looked at before."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        if "frame_order" not in arrays.files or "frame_director_rad" not in arrays.files:
            return None
        return np.column_stack([arrays["frame_order"], arrays["frame_director_rad"]]).astype(np.float64)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _read_summary(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    if not text:
        return {}
    try:
        summary = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}; remove it to make a report without it") from None
    if not isinstance(summary, dict):
        raise ValueError(f"{path}: not a JSON object; remove it to make a report without it")
    return summary


def read_truth(path: Path) -> Truth | None:
    """Read what a simulated instrument wrote of its truth; None where there is no such file.

    Raises
    ------
    ValueError
        If it is not such a file; the text names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # before numpy allocates what a header claims
            if sum(info.file_size for info in archive.infolist()) > MAX_TRUTH_BYTES:
                raise ValueError(f"it holds more than {MAX_TRUTH_BYTES >> 20} MiB")
        with np.load(path, allow_pickle=False) as arrays:
            return _truth({name: arrays[name] for name in arrays.files})
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path}: not the truth of a simulation: {error}; remove it to report without"
        ) from None


def _way_of_specimen_nm(arrays: dict[str, NDArray[Any]]) -> Float64:
    """Where the specimen truly was in each frame, ``(frames, 2)``: it drifts, and the stage carries it."""
    way = np.asarray(arrays.get("drift_nm", np.zeros((0, 2))), dtype=np.float64).reshape(-1, 2)
    for name in ("stage_nm", "stage_error_nm"):
        moved = arrays.get(name)
        if moved is not None and np.shape(moved) == way.shape:
            way = way + moved
    return way


def _truth(arrays: dict[str, NDArray[Any]]) -> Truth | None:
    """Read where the atoms are; None where the truth is of something else, such as domains or particles."""
    if "positions_nm" not in arrays and "drift_nm" in arrays:
        return None
    positions = np.asarray(arrays["positions_nm"], dtype=np.float64).reshape(-1, 2)
    spectra = arrays.get("spectra")
    if spectra is not None and len(spectra) != len(positions):
        raise KeyError(f"{len(spectra)} spectra for {len(positions)} sites")
    return Truth(
        positions_nm=positions,
        site_class=np.asarray(arrays.get("site_class", np.zeros(len(positions))), dtype=np.int64),
        drift_nm=_way_of_specimen_nm(arrays),
        spectra=None if spectra is None or not len(spectra) else np.asarray(spectra, dtype=np.float32),
        energy_offset_ev=float(arrays.get("energy_offset_ev", np.float64(0.0))),
        energy_step_ev=float(arrays.get("energy_step_ev", np.float64(1.0))),
        dwell_time_us=float(arrays.get("spectra_dwell_time_us", np.float64(math.nan))),
        structure={
            name.removeprefix("structure_"): str(text)
            for name, text in arrays.items()
            if name.startswith("structure_")
        },
    )
