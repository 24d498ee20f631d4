"""What a scan does to every frame, kept for the next time: one file for each way of scanning.

A calibration is learnt on a specimen known to be a perfect lattice, and is good for one raster, field of
view, dwell time, rotation and path. Files are safetensors: nothing in them can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from models.checkpoint import CheckpointError
from models.scan_basis import Float64, Hyperparameters, ScanBasis, ScanModel, ScanPath

FORMAT_VERSION = 1
_CARD = "probeloop-calibration"
_DIGITS = 4  # of a key's numbers: an instrument that reports 29.99998 nm means 30


class CalibrationError(CheckpointError):
    """A calibration that cannot be used; the text names the file and the cure."""


class ScanKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must be alike for a calibration to hold.

    Attributes
    ----------
    shape
        ``(rows, cols)`` of a frame.
    field_of_view_nm
        ``(x, y)``.
    dwell_time_us
        Of a pixel.
    rotation_rad
        Of the scan.
    path
        Of the beam.
    """

    shape: tuple[int, int]
    field_of_view_nm: tuple[float, float]
    dwell_time_us: float
    rotation_rad: float
    path: ScanPath = "raster"

    def __post_init__(self) -> None:
        numbers = {"field_of_view_nm": min(self.field_of_view_nm), "dwell_time_us": self.dwell_time_us}
        for name, value in numbers.items():
            if not 0 < value < math.inf:
                raise ValueError(f"key.{name} is {getattr(self, name)}; it takes numbers above 0")
        if not math.isfinite(self.rotation_rad):
            raise ValueError(f"key.rotation_rad is {self.rotation_rad}; it takes a number")

    @property
    def name(self) -> str:
        """Name of the file, without its folder: the same for all that is alike to four digits."""
        turn = round(math.remainder(self.rotation_rad, 2 * math.pi), _DIGITS) + 0.0  # no -0
        text = "_".join(
            [
                self.path,
                "x".join(str(n) for n in self.shape),
                "x".join(_rounded(value) for value in self.field_of_view_nm) + "nm",
                _rounded(self.dwell_time_us) + "us",
                f"{turn:.{_DIGITS}f}rad",
            ]
        )
        return f"{text}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """The static part of a scan's distortion.

    Attributes
    ----------
    key
        What it holds for.
    scan, hyperparameters
        Of the model that learnt it.
    mean_px, covariance_px2
        Of its static weights, as ``DistortionGP.static`` gives them and ``DistortionGP.frozen`` takes them:
        ``(2, k)`` and ``(2, k, k)``.
    frames
        Frames that it was learnt from.
    """

    key: ScanKey
    scan: ScanModel
    hyperparameters: Hyperparameters
    mean_px: Float64
    covariance_px2: Float64
    frames: int


class _Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: ScanKey
    scan: ScanModel
    hyperparameters: Hyperparameters
    frames: int
    format_version: int = FORMAT_VERSION


def save(folder: Path, calibration: Calibration) -> Path:
    """Keep a calibration in place of the last one with this key; the file is whole or not there.

    Returns
    -------
    path
        Of the file.

    Raises
    ------
    ValueError
        If the raster of its model is not the raster of its key.
    """
    if (calibration.scan.shape, calibration.scan.path) != (calibration.key.shape, calibration.key.path):
        raise ValueError(
            f"a calibration of {calibration.scan.shape} {calibration.scan.path} cannot be kept as "
            f"{calibration.key.shape} {calibration.key.path}"
        )
    arrays = {"mean": calibration.mean_px, "covariance": calibration.covariance_px2}
    whole = {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in arrays.items()}
    card = _Card(
        key=calibration.key,
        scan=calibration.scan,
        hyperparameters=calibration.hyperparameters,
        frames=calibration.frames,
    )
    text = msgspec.json.encode(card).decode()
    metadata = {_CARD: text, "sha256": _digest(text, whole)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / calibration.key.name
    part = path.with_name(path.name + ".part")
    part.write_bytes(safetensors.numpy.save(whole, metadata))
    part.replace(path)
    return path


def load(folder: Path, key: ScanKey) -> Calibration | None:
    """Find the calibration for a way of scanning; None where there is none.

    Raises
    ------
    CalibrationError
        If its file is damaged, or another version's.
    """
    path = folder / key.name
    return read(path) if path.exists() else None


def read(path: Path) -> Calibration:
    """Read a calibration and hold it to what it says of itself.

    Raises
    ------
    CalibrationError
        If the file cannot be read, is damaged, or another version's.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        arrays = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise CalibrationError(f"{path}: not a whole safetensors file ({error}); calibrate again") from None
    card = _card(path, data, arrays)
    static = ScanBasis(card.scan).dynamic_start
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != {"mean": (2, static), "covariance": (2, static, static)}:
        raise CalibrationError(f"{path}: arrays {shapes} are not those of its scan model; calibrate again")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise CalibrationError(f"{path}: holds NaN or infinity; calibrate again")
    return Calibration(
        key=card.key,
        scan=card.scan,
        hyperparameters=card.hyperparameters,
        mean_px=arrays["mean"],
        covariance_px2=arrays["covariance"],
        frames=card.frames,
    )


def _card(path: Path, data: bytes, arrays: dict[str, Float64]) -> _Card:
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    if _CARD not in metadata:
        raise CalibrationError(f"{path}: is no calibration of probeloop; move it away and calibrate again")
    if metadata.get("sha256") != _digest(metadata[_CARD], arrays):
        raise CalibrationError(f"{path}: its numbers are not those that were written; calibrate again")
    try:
        version = msgspec.json.decode(metadata[_CARD], type=dict).get("format_version")
        if version != FORMAT_VERSION:
            raise CalibrationError(
                f"{path}: has format {version}; this probeloop reads {FORMAT_VERSION}: calibrate again"
            )
        return msgspec.json.decode(metadata[_CARD], type=_Card)
    except msgspec.DecodeError as error:
        raise CalibrationError(f"{path}: damaged card: {error}; calibrate again") from None


def _digest(card: str, arrays: dict[str, Float64]) -> str:
    digest = hashlib.sha256(card.encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _rounded(value: float) -> str:
    return f"{value:.{_DIGITS}g}"
