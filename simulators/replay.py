"""Plays a recording as an instrument: the frames as they came, and only what was recorded besides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from simulators.recordings import Recording, read_recording
from streamer.messages import Frame, Outcome, OutcomeStatus, PairNm, Patches, Request, ScanGeometry

# Half the spacing of neighbours in graphene is 0.071 nm: an atom's spectrum is never its neighbour's.
DEFAULT_TOLERANCE_NM = 0.05

_NO_SPECTRUM = "no spectrum was recorded at this place; a replay never invents data"
_NO_SCAN = "the recording does not cover this sub-scan; a replay never invents data"


def open_recording(
    path: Path | str,
    *,
    pixel_size_nm: float | None = None,
    loop: bool = False,
    tolerance_nm: float = DEFAULT_TOLERANCE_NM,
) -> Replay:
    """Open a session, a file or a folder of frames as an instrument.

    Parameters
    ----------
    path, pixel_size_nm
        See ``read_recording``.
    loop
        Begin again after the last frame; the clock goes on.
    tolerance_nm
        How far from a recorded measurement a request may be and still be answered by it.

    Raises
    ------
    RecordingError
        If it cannot be played; the text says what would do.
    ValueError
        If the tolerance is not a number above 0.
    """
    return Replay(read_recording(path, pixel_size_nm), loop=loop, tolerance_nm=tolerance_nm)


class Replay:
    """An instrument that has only its recording.

    Attributes
    ----------
    name
        For the log, such as ``replay of G-Si-2nm.hdf5``.
    recording
        What it plays.
    """

    def __init__(
        self, recording: Recording, *, loop: bool = False, tolerance_nm: float = DEFAULT_TOLERANCE_NM
    ) -> None:
        if not (math.isfinite(tolerance_nm) and tolerance_nm > 0):
            raise ValueError(f"replay.tolerance_nm is {tolerance_nm}; it takes a number above 0")
        self.name = f"replay of {recording.path.name}"
        self.recording = recording
        self._loop = loop
        self._tolerance_nm = tolerance_nm
        self._frames: Iterator[Frame | Patches] = iter(recording)
        self._clock = _Clock()
        self._current: Frame | None = None
        self._is_parked = False

    @property
    def batches_waiting(self) -> int:
        """None: patterns of a recorded sub-scan are not played."""
        return 0

    def acquire(self) -> Frame | Patches | None:
        """Give the next frame, or batch of patches, at its recorded time; None after the last one.

        Returns
        -------
        frame
            ``session`` is empty and ``number`` 0: the session that it is played into gives them.

        Raises
        ------
        RuntimeError
            While the beam is parked.
        """
        if self._is_parked:
            raise RuntimeError("the beam is parked; let it go first")
        frame = next(self._frames, None)
        if frame is None and self._loop and self._current is not None:
            self._frames = iter(self.recording)
            self._clock.rewind()
            frame = next(self._frames, None)
        if frame is None:
            return None
        played = msgspec.structs.replace(frame, session="", number=0, acquired_at_s=self._clock.at(frame))
        if isinstance(played, Frame):
            self._current = played = msgspec.structs.replace(played, registration=None)
        return played

    def execute(self, request: Request) -> tuple[Outcome, Frame | None]:
        """Answer by what was recorded at that place, else refuse.

        A spectrum is answered by the recorded one nearest to the specimen position, or by the pixel of
        a spectrum image; a sub-scan by the recorded one, or by the part of the current frame under it.
        """
        if self._is_parked:
            return _answer(request, "aborted", "the beam is parked"), None
        if request.action == "spectrum":
            return self._spectrum(request), None
        return self._subscan(request)

    def park(self) -> None:
        """Hold the recording: no frames and no answers until ``go``."""
        self._is_parked = True

    def go(self, parked_s: float) -> None:
        """Go on with the frame after the last; its recorded time stands, however long it was held."""
        self._is_parked = False

    def truth(self) -> dict[str, NDArray[np.generic]] | None:
        """Give nothing: nobody knows the truth of a recording."""
        return None

    def _spectrum(self, request: Request) -> Outcome:
        recorded = self._nearest(request, [o for o in self.recording.outcomes if o.spectrum is not None])
        if recorded is not None:
            return _echo(request, recorded)
        return self._spectrum_of_pixel(request) or _answer(request, "refused", _NO_SPECTRUM)

    def _nearest(self, request: Request, recorded: list[Outcome]) -> Outcome | None:
        nearest = min(recorded, key=lambda outcome: _distance_nm(request, outcome), default=None)
        if nearest is None or _distance_nm(request, nearest) > self._tolerance_nm:
            return None
        return nearest

    def _spectrum_of_pixel(self, request: Request) -> Outcome | None:
        spectra, frame = self.recording.spectra, self._current
        if spectra is None or frame is None or spectra.shape[:2] != frame.geometry.shape:
            return None
        where_px = np.rint(frame.geometry.to_px(np.array([request.scan_position_nm])))
        row, col = (int(n) for n in where_px[0])
        if not (0 <= row < spectra.shape[0] and 0 <= col < spectra.shape[1]):
            return None
        return Outcome(
            session=request.session,
            id=request.id,
            status="ok",
            action="spectrum",
            scan_position_nm=_point(frame.geometry, row, col),
            started_at_s=frame.acquired_at_s,
            ended_at_s=frame.acquired_at_s,
            spectrum=spectra.spectrum(row, col),
            energy_offset_ev=spectra.energy_offset_ev,
            energy_step_ev=spectra.energy_step_ev,
        )

    def _subscan(self, request: Request) -> tuple[Outcome, Frame | None]:
        subscans = self.recording.subscans
        alike = [
            outcome
            for outcome in self.recording.outcomes
            if outcome.id in subscans
            and _is_same_raster(request, subscans[outcome.id].geometry)
            and _is_set_alike(request, subscans[outcome.id])
        ]
        recorded = self._nearest(request, alike)
        if recorded is not None:
            outcome = _echo(request, recorded)
            return outcome, _moved(subscans[recorded.id], outcome, recorded)
        is_there = self._current is not None and _is_set_alike(request, self._current)
        part = _part(self._current, request) if self._current is not None and is_there else None
        if part is None:
            return _answer(request, "refused", _NO_SCAN), None
        return _answer(request, "ok", "cut from the recorded frame, not measured anew", part), part


class _Clock:
    """The recorded time of each frame, going on when the recording begins again."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._first_s = math.nan
        self._last_s = math.nan
        self._step_s = 0.0

    def at(self, frame: Frame | Patches) -> float:
        """Say when a frame, or a batch, was acquired, in the time of the replay."""
        if math.isnan(self._first_s):
            self._first_s = frame.acquired_at_s
            self._step_s = math.prod(frame.geometry.shape) * frame.dwell_time_us * 1e-6
        else:
            self._step_s = frame.acquired_at_s - self._last_s
        self._last_s = frame.acquired_at_s
        return frame.acquired_at_s + self._ahead_s

    def rewind(self) -> None:
        """Let the next round begin one step after the end of this one."""
        self._ahead_s += self._last_s - self._first_s + max(0.0, self._step_s)
        self._first_s = math.nan


def _distance_nm(request: Request, outcome: Outcome) -> float:
    """Distance on the specimen where it is known of both, else between beam positions."""
    if outcome.position_nm is not None:
        return math.dist(request.position_nm, outcome.position_nm)
    assert outcome.scan_position_nm is not None  # an 'ok' says where the beam was
    return math.dist(request.scan_position_nm, outcome.scan_position_nm)


def _is_same_raster(request: Request, geometry: ScanGeometry) -> bool:
    return (
        request.shape == geometry.shape
        and request.field_of_view_nm is not None
        and bool(np.allclose(request.field_of_view_nm, geometry.field_of_view_nm, rtol=0.01))
    )


def _is_set_alike(request: Request, frame: Frame) -> bool:
    """Whether a frame was taken at the scan rotation and stage that are asked for, if they are."""
    turn_rad = 0.0 if request.rotation_rad is None else request.rotation_rad - frame.geometry.rotation_rad
    off_nm = 0.0 if request.stage_nm is None else math.dist(request.stage_nm, frame.stage_nm)
    edge_nm = min(frame.geometry.pixel_size_nm)
    if not math.isfinite(turn_rad):
        return False
    return abs(math.remainder(turn_rad, 2 * math.pi)) < 1e-3 and off_nm < edge_nm


def _echo(request: Request, recorded: Outcome) -> Outcome:
    """Answer by a recorded outcome, at the specimen position where it was really taken.

    The beam position is told in the drift of the request: the recorded one belongs to another time.
    """
    where_nm = recorded.scan_position_nm
    if recorded.position_nm is not None:
        where_nm = (
            request.scan_position_nm[0] + recorded.position_nm[0] - request.position_nm[0],
            request.scan_position_nm[1] + recorded.position_nm[1] - request.position_nm[1],
        )
    return msgspec.structs.replace(
        recorded,
        session=request.session,
        id=request.id,
        scan_position_nm=where_nm,
        position_nm=None,
        frame_number=None,
    )


def _moved(subscan: Frame, outcome: Outcome, recorded: Outcome) -> Frame:
    """Put a recorded sub-scan to where its new outcome says that the beam was."""
    assert outcome.scan_position_nm is not None  # an 'ok' says where the beam was
    assert recorded.scan_position_nm is not None
    x, y = subscan.geometry.center_nm
    center_nm = (
        x + outcome.scan_position_nm[0] - recorded.scan_position_nm[0],
        y + outcome.scan_position_nm[1] - recorded.scan_position_nm[1],
    )
    return msgspec.structs.replace(
        subscan,
        session="",
        number=0,
        geometry=msgspec.structs.replace(subscan.geometry, center_nm=center_nm),
        request_id=outcome.id,
        registration=None,
    )


def _answer(request: Request, status: OutcomeStatus, reason: str, frame: Frame | None = None) -> Outcome:
    at_s = 0.0 if frame is None else frame.acquired_at_s
    return Outcome(
        session=request.session,
        id=request.id,
        status=status,
        reason=reason,
        action=request.action,
        scan_position_nm=None if frame is None else frame.geometry.center_nm,
        dwell_time_us=0.0 if frame is None else frame.dwell_time_us,
        started_at_s=at_s,
        ended_at_s=at_s,
    )


def _part(frame: Frame, request: Request) -> Frame | None:
    """Cut the pixels under a sub-scan, with their own pixel size; None unless all of it is there."""
    if request.field_of_view_nm is None:
        return None
    geometry = frame.geometry
    height_nm, width_nm = geometry.pixel_size_nm
    rows = round(request.field_of_view_nm[1] / height_nm)
    cols = round(request.field_of_view_nm[0] / width_nm)
    center_px = geometry.to_px(np.array([request.scan_position_nm]))[0]
    row = round(center_px[0] - (rows - 1) / 2)
    col = round(center_px[1] - (cols - 1) / 2)
    is_inside = 0 <= row <= row + rows <= geometry.shape[0] and 0 <= col <= col + cols <= geometry.shape[1]
    if not is_inside or min(rows, cols) < 2:
        return None
    return msgspec.structs.replace(
        frame,
        image=np.ascontiguousarray(frame.image[:, row : row + rows, col : col + cols]),
        geometry=ScanGeometry(
            shape=(rows, cols),
            field_of_view_nm=(cols * width_nm, rows * height_nm),
            center_nm=_point(geometry, row + (rows - 1) / 2, col + (cols - 1) / 2),
            rotation_rad=geometry.rotation_rad,
        ),
        dose_e_per_nm2=0.0,
        request_id=request.id,
    )


def _point(geometry: ScanGeometry, row: float, col: float) -> PairNm:
    x, y = geometry.to_nm(np.array([[row, col]]))[0]
    return (float(x), float(y))
