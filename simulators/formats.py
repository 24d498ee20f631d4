"""Opens one file of the field: which format it is, how many frames, how to read one, what scale.

A file is recognised by its first bytes and by what is inside; its suffix is the last resort. Nothing
is loaded before it is asked for, and no file stays open between two frames. To read another format,
write one function that returns a ``Source`` and name it in ``_OPENERS_BY_MAGIC``, ``_HDF5_LAYOUTS``
or ``_ROSETTASCIIO``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from streamer.messages import Float32

ScanPath = Literal["raster", "serpentine", "sinusoidal"]

_NM_PER_UNIT = {
    "pm": 1e-3, "å": 0.1, "a": 0.1, "angstrom": 0.1, "nm": 1.0, "µm": 1e3, "μm": 1e3, "um": 1e3,
    "micron": 1e3, "mm": 1e6, "m": 1e9,
}  # fmt: skip
_GATAN_TAGS = (65003, 65004, 65009, 65010)  # units and scale along x and y
_EV_PER_UNIT = {"ev": 1.0, "kev": 1e3}


class RecordingError(ValueError):
    """A path that cannot be played; the text names it, says what is wrong and what would do."""


@dataclass(frozen=True, kw_only=True)
class SpectrumImage:
    """A spectrum for each pixel of an area, as recorded.

    Attributes
    ----------
    shape
        ``(rows, cols, energy)``.
    energy_offset_ev, energy_step_ev
        Energy loss of channel 0 and the width of a channel.
    spectrum
        Reads the spectrum at ``(row, col)``, shape ``(energy,)``, float32, in counts.
    """

    shape: tuple[int, int, int]
    energy_offset_ev: float
    energy_step_ev: float
    spectrum: Callable[[int, int], Float32]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The frames of one file: how many, how to read one, and what the file says of them."""

    kind: str
    count: int
    read: Callable[[int], NDArray[Any]]  # (channel, row, col), any real dtype
    channels: tuple[str, ...]
    pixel_size_nm: tuple[float, float] | None = None  # (height, width); None: the file does not say
    dwell_time_us: float | None = None
    ended_at_s: Sequence[float] | None = None
    scan_path: ScanPath = "raster"
    spectra: SpectrumImage | None = None
    is_sum_of_spectra: bool = False


# Which format: by the first bytes, then by the suffix.


def open_file(file: Path) -> Source:
    """Recognise one file and open it."""
    opener = opener_of(file)
    if opener is None:
        raise RecordingError(
            f"{file} is not a recording that is known here: it takes .hdf5, .hspy, .dm3, .dm4, .emd, .ser, "
            ".mrc, .tif, .npy or .png, or the folder of a session"
        )
    try:
        source = opener(file)
    except RecordingError:
        raise
    except Exception as error:  # a foreign parser on damaged bytes raises whatever it likes
        raise damaged(file, "it cannot be read", error) from error
    if source.count < 1:
        raise RecordingError(f"{file} holds no frames; give a recording with at least one")
    return source


def opener_of(file: Path) -> Callable[[Path], Source] | None:
    with file.open("rb") as stream:
        start = stream.read(16)
    for magic, opener in _OPENERS_BY_MAGIC:
        if start.startswith(magic):
            return opener
    suffix = file.suffix.lower()
    if suffix in _ROSETTASCIIO:
        return _open_with_rosettasciio
    if suffix in _SUFFIXES:
        return _open_misnamed
    return None


def _open_misnamed(file: Path) -> Source:
    size = file.stat().st_size
    what = "it is empty" if size == 0 else f"its first bytes are not those of a {file.suffix} file"
    raise RecordingError(f"{file}: {what}; copy it again, or give it the suffix of what it is")


def damaged(file: Path, what: str, error: Exception) -> RecordingError:
    detail = " ".join(str(error).split())[:200] or type(error).__name__
    return RecordingError(
        f"{file}: {what} ({detail}); the file is damaged, cut short or not what its name says: copy it again "
        "or export it as .tif or .npy"
    )


# HDF5: many layouts under one suffix.


def _open_hdf5(file: Path) -> Source:
    with h5py.File(file) as h5:
        for is_layout, opener in _HDF5_LAYOUTS:
            if is_layout(h5):
                return opener(file, h5)
        inside = ", ".join(sorted(h5)[:6]) or "nothing"
    if file.suffix.lower() in _ROSETTASCIIO:
        return _open_with_rosettasciio(file)
    raise RecordingError(
        f"{file} is an HDF5 file of a layout that is not known here (it holds {inside}); "
        "save it from HyperSpy as .hspy"
    )


def _reads_hdf5(file: Path, dataset: str, arrange: Callable[[Any, int], Any]) -> Callable[[int], Any]:
    """Make a reader that opens the file for each frame: a recording holds no file open."""

    def read(index: int) -> Any:
        with h5py.File(file) as h5:
            return arrange(h5[dataset], index)

    return read


def _open_image_data(file: Path, h5: h5py.File) -> Source:
    """Open ``image_data`` with JSON ``metadata``: STEM images with the scan size in nm."""
    shape = h5["image_data"].shape
    metadata = _json(h5["metadata"][()]) if "metadata" in h5 else {}
    size_nm = _number(metadata.get("scan size"))
    dwell_time_us = None
    tags = metadata.get("all microscope parameters")
    for name, value in tags.items() if isinstance(tags, dict) else ():
        if name.endswith("PixelTime(us)"):
            dwell_time_us = _number(value)
    is_stack = len(shape) == 3
    channel = metadata.get("type of data")
    return Source(
        kind="HDF5 image",
        count=shape[0] if is_stack else 1,
        read=_reads_hdf5(file, "image_data", lambda data, i: (data[i] if is_stack else data[()])[None]),
        channels=(channel if isinstance(channel, str) else "image",),
        pixel_size_nm=None if size_nm is None else (size_nm / shape[-1], size_nm / shape[-1]),
        dwell_time_us=dwell_time_us,
    )


def _open_network_input(file: Path, h5: h5py.File) -> Source:
    """Open ``nn_input`` (n, row, col, 1): normalised STEM images, scan size in pm."""
    data = h5["nn_input"]
    size_pm = _number(data.attrs.get("scan size"))
    return Source(
        kind="HDF5 network input",
        count=data.shape[0],
        read=_reads_hdf5(file, "nn_input", lambda data, i: np.moveaxis(data[i], -1, 0)),
        channels=("HAADF",),
        pixel_size_nm=None if size_pm is None else (size_pm / 1000 / data.shape[2],) * 2,
    )


def _open_fast_stm(file: Path, h5: h5py.File) -> Source:
    """Open a video-rate STM movie: one stream of samples, up and down, forward and backward.

    A line is sampled forward and then backward, the lines go up and then down; the stream begins
    ``X_Phase`` samples before its first line. The upward, forward quarter of each scan is a frame;
    its fast axis moves as a sine of time.
    """
    attrs = h5["data"].attrs
    rows, cols = int(attrs["Scanner.Y_Points"]), int(attrs["Scanner.X_Points"])
    phase = int(attrs["Acquisiton.X_Phase"])  # spelt so in the files
    samples = 4 * rows * cols
    count = (h5["data"].shape[0] - phase) // samples
    period_s = 1.0 / float(attrs["Scanner.Y_Frequency"])
    started_at_s = _timestamp(attrs.get("ExperimentInfo.Time"))

    def arrange(data: Any, index: int) -> Any:
        start = phase + index * samples
        scan = data[start : start + samples].reshape(2 * rows, 2 * cols)
        return scan[None, :rows, :cols]

    return Source(
        kind="video-rate STM movie",
        count=count,
        read=_reads_hdf5(file, "data", arrange),
        channels=("current",),
        dwell_time_us=1e6 / float(attrs["Acquisition.ADC_SamplingRate"]),
        # the upward half ends in the middle of a period
        ended_at_s=[started_at_s + (i + 0.5) * period_s for i in range(count)],
        scan_path="sinusoidal",
    )


def _open_nsid(file: Path, h5: h5py.File) -> Source:
    """Open the images of an NSID measurement (AFM, PFM), a channel each; its arrays lie as (x, y)."""
    images: list[h5py.Dataset] = []

    def collect(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and _text(item.attrs.get("data_type")) == "IMAGE":
            images.append(item)

    h5.visititems(collect)
    images = [image for image in images if image.ndim == 2 and image.shape == images[0].shape]
    if not images:
        raise RecordingError(f"{file} holds no images over x and y, only other measurements; give a scan")
    names = [image.name for image in images]

    def read(_: int) -> Any:
        with h5py.File(file) as again:
            return np.stack([again[name][()].T for name in names])

    parent = images[0].parent
    tags = parent["original_metadata"].attrs if "original_metadata" in parent else {}
    lines_per_s = _number(tags.get("ScanRate"))
    return Source(
        kind="NSID scan",
        count=1,
        read=read,
        channels=_distinct([_text(image.attrs.get("quantity", "image")) for image in images]),
        pixel_size_nm=_pair(_nsid_step_nm(parent, "y"), _nsid_step_nm(parent, "x")),
        # trace and retrace share the time of a line
        dwell_time_us=None if not lines_per_s else 1e6 / (2 * lines_per_s * images[0].shape[0]),
    )


def _nsid_step_nm(parent: h5py.Group, axis: str) -> float | None:
    if axis not in parent or parent[axis].shape[0] < 2:
        return None
    values = parent[axis]
    return _nm(float(values[1]) - float(values[0]), _text(values.attrs.get("units", "")))


# Signals: what HyperSpy and rosettasciio speak of.


@dataclass(frozen=True, kw_only=True)
class _Signal:
    """An array with named axes; ``read`` takes one index for each navigation axis."""

    title: str
    axes: list[dict[str, Any]]
    read: Callable[[tuple[int, ...]], NDArray[Any]]
    ended_at_s: Sequence[float] | None = None

    @property
    def navigation(self) -> list[dict[str, Any]]:
        return [axis for axis in self.axes if axis.get("navigate")]

    @property
    def signal(self) -> list[dict[str, Any]]:
        return [axis for axis in self.axes if not axis.get("navigate")]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(axis["size"]) for axis in self.axes)

    @property
    def is_images(self) -> bool:
        return len(self.signal) == 2 and len(self.navigation) <= 1

    @property
    def is_spectrum_image(self) -> bool:
        return (
            len(self.signal) == 1
            and len(self.navigation) == 2
            and _text(self.signal[0].get("units")).lower() in _EV_PER_UNIT
        )


def _open_hspy(file: Path, h5: h5py.File) -> Source:
    """Open HyperSpy's own layout; also what a session of ours was finalised to."""
    signals = []
    for title, group in h5["Experiments"].items():
        if not isinstance(group, h5py.Group) or "data" not in group:
            continue
        data = group["data"]
        axes: list[dict[str, Any]] = [dict(group[f"axis-{i}"].attrs) for i in range(data.ndim)]
        for axis, size in zip(axes, data.shape, strict=True):
            axis["size"] = size
        times = [float(t) * 1e-9 for t in group["t_ns"]] if "t_ns" in group else None
        signals.append(_Signal(title=title, axes=axes, read=_reads_hspy(file, data.name), ended_at_s=times))
    return _from_signals(file, "HyperSpy file", signals)


def _reads_hspy(file: Path, dataset: str) -> Callable[[tuple[int, ...]], NDArray[Any]]:
    def read(index: tuple[int, ...]) -> NDArray[Any]:
        with h5py.File(file) as h5:
            return np.asarray(h5[dataset][index])

    return read


def _open_with_rosettasciio(file: Path) -> Source:
    """Open what rosettasciio reads; each frame is read when it is asked for."""
    reader = importlib.import_module(f"rsciio.{_ROSETTASCIIO[file.suffix.lower()]}")
    signals = []
    for found in reader.file_reader(str(file), lazy=True):
        title = found.get("metadata", {}).get("General", {}).get("title") or file.stem
        signals.append(_Signal(title=title, axes=found["axes"], read=_reads_dask(found["data"])))
    return _from_signals(file, f"{file.suffix[1:].lower()} file", signals)


def _reads_dask(data: Any) -> Callable[[tuple[int, ...]], NDArray[Any]]:
    def read(index: tuple[int, ...]) -> NDArray[Any]:
        part = data[index]
        return np.asarray(part.compute(scheduler="synchronous") if hasattr(part, "compute") else part)

    return read


def _from_signals(file: Path, kind: str, signals: list[_Signal]) -> Source:
    """Choose what can be played: images of one shape, a channel each; else a spectrum image's sum."""
    images = [signal for signal in signals if signal.is_images]
    if images:
        largest = max(images, key=lambda signal: math.prod(signal.shape))
        return _from_images(kind, [signal for signal in images if signal.shape == largest.shape])
    for signal in signals:
        if signal.is_spectrum_image:
            return _from_spectrum_image(signal)
    shapes = ", ".join(f"{signal.title} {signal.shape}" for signal in signals) or "nothing"
    raise RecordingError(f"{file} holds no images but {shapes}; give a scan of two-dimensional frames")


def _from_images(kind: str, images: list[_Signal]) -> Source:
    first = images[0]
    frame_axis = first.navigation[0] if first.navigation else None
    count = 1 if frame_axis is None else int(frame_axis["size"])
    times = first.ended_at_s
    if times is None and frame_axis is not None and _text(frame_axis.get("units")) in ("s", "ms"):
        step_s = float(frame_axis["scale"]) * (1e-3 if _text(frame_axis["units"]) == "ms" else 1.0)
        times = [(index + 1) * step_s for index in range(count)] if step_s > 0 else None
    return Source(
        kind=kind,
        count=count,
        read=lambda index: np.stack([s.read((index,) if s.navigation else ()) for s in images]),
        channels=_distinct([signal.title for signal in images]),
        pixel_size_nm=_axes_nm(first.signal),
        ended_at_s=times,
    )


def _from_spectrum_image(signal: _Signal) -> Source:
    """Offer the spectra, and their sums as the only picture that such a file has."""
    rows, cols, energies = (int(axis["size"]) for axis in [*signal.navigation, *signal.signal])
    energy = signal.signal[0]
    ev = _EV_PER_UNIT[_text(energy["units"]).lower()]
    spectra = SpectrumImage(
        shape=(rows, cols, energies),
        energy_offset_ev=float(energy["offset"]) * ev,
        energy_step_ev=float(energy["scale"]) * ev,
        spectrum=lambda row, col: signal.read((row, col)).astype(np.float32),
    )
    return Source(
        kind="spectrum image",
        count=1,
        read=lambda _: np.stack([signal.read((row,)).sum(axis=-1, dtype=np.float64) for row in range(rows)])[
            None
        ],
        channels=("sum of spectra",),
        pixel_size_nm=_axes_nm(signal.navigation),
        spectra=spectra,
        is_sum_of_spectra=True,
    )


def _axes_nm(axes: list[dict[str, Any]]) -> tuple[float, float] | None:
    return _pair(*(_nm(_number(axis.get("scale")), _text(axis.get("units"))) for axis in axes))


# Plain images: TIFF, NumPy, PNG.


def _open_tiff(file: Path) -> Source:
    """Open the first series of a TIFF; its scale is that of ImageJ, OME, FEI or Gatan tags."""
    with _torn_page_list_raises(), tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        axes, shape = series.axes, series.shape
        scale = _tiff_pixel_nm(tiff)
        interval_s = _number((tiff.imagej_metadata or {}).get("finterval"))
    if not axes.endswith("YX") or len(shape) > 4 or (len(shape) == 4 and axes[1] != "C"):
        raise RecordingError(
            f"{file} is a TIFF with axes {axes} of shape {shape}; it takes grey frames, such as YX or TYX"
        )
    channels = tuple(f"channel {i}" for i in range(shape[-3])) if "C" in axes else ("image",)
    count = math.prod(shape[:-2]) // len(channels)
    return Source(
        kind="TIFF",
        count=count,
        read=lambda index: _read_tiff(file, index, (count, len(channels), *shape[-2:])),
        channels=channels,
        pixel_size_nm=scale,
        ended_at_s=[(i + 1) * interval_s for i in range(count)] if interval_s else None,
    )


@contextlib.contextmanager
def _torn_page_list_raises() -> Iterator[None]:
    """Raise where a TIFF is cut short between two pages: tifffile only tells its log."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener, log = Listener(logging.ERROR), logging.getLogger("tifffile")
    log.addHandler(listener)
    try:
        yield
    finally:
        log.removeHandler(listener)
    if any("invalid page offset" in text for text in told):
        raise ValueError("its list of pages is torn")


def _read_tiff(file: Path, index: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read one frame ``(channel, row, col)``; ImageJ writes long stacks as one block with one page."""
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        if series.dataoffset is not None:
            dtype = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
            block = np.memmap(file, dtype, mode="r", offset=series.dataoffset, shape=shape)
            return np.array(block[index])
        first = index * shape[1]
        return np.stack([series.asarray(key=first + channel) for channel in range(shape[1])])


def _tiff_pixel_nm(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """Read the scale; the plain resolution tags are of no use, they speak of printing."""
    tags = tiff.pages.first.tags
    if tiff.is_imagej and "XResolution" in tags:
        units = _text((tiff.imagej_metadata or {}).get("unit")).replace("\\u00B5", "µ")
        per_unit = [tags[name].value for name in ("YResolution", "XResolution")]
        return _pair(*(_nm(denominator / n if n else None, units) for n, denominator in per_unit))
    if tiff.is_ome:
        pixels = ElementTree.fromstring(_text(tiff.ome_metadata)).find(".//{*}Pixels")
        facts = {} if pixels is None else pixels.attrib
        return _pair(
            *(
                _nm(_number(facts.get(f"PhysicalSize{a}")), facts.get(f"PhysicalSize{a}Unit", "µm"))
                for a in "YX"
            )
        )
    if tiff.is_fei:
        scan = (tiff.fei_metadata or {}).get("Scan", {})
        return _pair(_nm(_number(scan.get("PixelHeight")), "m"), _nm(_number(scan.get("PixelWidth")), "m"))
    if all(code in tags for code in _GATAN_TAGS):
        units_x, units_y, scale_x, scale_y = (tags[code].value for code in _GATAN_TAGS)
        return _pair(_nm(_number(scale_y), _text(units_y)), _nm(_number(scale_x), _text(units_x)))
    return None


def _open_npy(file: Path) -> Source:
    """Open an array (row, col), (frame, row, col) or (frame, channel, row, col) and its .json."""
    data = np.load(file, mmap_mode="r", allow_pickle=False)
    if not 2 <= data.ndim <= 4:
        raise RecordingError(
            f"{file} is an array of shape {data.shape}; it takes (row, col), (frame, row, col) or "
            "(frame, channel, row, col)"
        )
    stack = data.reshape((1,) * (4 - data.ndim) + data.shape) if data.ndim < 3 else data
    if stack.ndim == 3:
        stack = stack[:, None]
    beside = file.with_suffix(".json")
    facts = _json(beside.read_bytes(), beside) if beside.exists() else {}
    names = facts.get("channels")
    if not (isinstance(names, list) and len(names) == stack.shape[1]):
        names = [facts.get("experiment_type", "image")] if stack.shape[1] == 1 else []
        names = names or [f"channel {i}" for i in range(stack.shape[1])]
    return Source(
        kind="NumPy array",
        count=stack.shape[0],
        read=lambda index: np.array(stack[index]),
        channels=_distinct([str(name) for name in names]),
        pixel_size_nm=_scale_beside(facts, *stack.shape[-2:]),
        dwell_time_us=_number(facts.get("dwell_time_us")),
    )


def _scale_beside(facts: dict[str, Any], rows: int, cols: int) -> tuple[float, float] | None:
    """Read ``pixel_size_nm``, or a field of view wherever it stands in the file beside an array."""
    if (own := _number(facts.get("pixel_size_nm"))) is not None:
        return (own, own)
    if "field_of_view_x" in facts:
        units = _text(facts.get("field_of_view_units"))
        width = _nm(_number(facts["field_of_view_x"]), units)
        height = _nm(_number(facts.get("field_of_view_y", facts["field_of_view_x"])), units)
        return _pair(None if height is None else height / rows, None if width is None else width / cols)
    inner = (_scale_beside(value, rows, cols) for value in facts.values() if isinstance(value, dict))
    return next((scale for scale in inner if scale is not None), None)


def _open_picture(file: Path) -> Source:
    """Open a grey picture; it carries no scale."""
    with Image.open(file) as picture:
        mode, size = picture.mode, picture.size
        picture.load()
        colours = np.asarray(picture) if mode in ("RGB", "RGBA") else None
    if mode not in ("1", "L", "LA", "I", "I;16", "F", "RGB", "RGBA") or (
        colours is not None and np.ptp(colours[..., :3].astype(np.int16), axis=-1).any()
    ):
        raise RecordingError(
            f"{file} is a picture in colour ({mode}, {size[0]} × {size[1]}); give the detector's grey values"
        )

    def read(_: int) -> Any:
        with Image.open(file) as picture:
            pixels = np.asarray(picture)
        return (pixels if pixels.ndim == 2 else pixels[..., 0])[None]

    return Source(kind="picture", count=1, read=read, channels=("image",))


# What files say, in our words.


def _nm(value: float | None, units: str) -> float | None:
    factor = _NM_PER_UNIT.get(units.strip(" \0").lower())
    if value is None or factor is None or not math.isfinite(value) or value == 0:
        return None
    return abs(value) * factor


def _pair(height: float | None, width: float | None) -> tuple[float, float] | None:
    return None if height is None or width is None else (height, width)


def _number(value: Any) -> float | None:
    """Read a number that may be text; None for ``NA`` and for what is not above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else "" if value is None else str(value)


def _json(raw: Any, file: Path | None = None) -> dict[str, Any]:
    try:
        facts = json.loads(raw)
    except (TypeError, ValueError) as error:
        if file is None:
            return {}
        raise RecordingError(f"{file} is not JSON ({error}); mend it or take it away") from None
    return facts if isinstance(facts, dict) else {}


def _timestamp(value: Any) -> float:
    """Seconds since the epoch of an ISO time; 0 where there is none."""
    try:
        return datetime.fromisoformat(_text(value)).timestamp()
    except ValueError:
        return 0.0


def _distinct(names: list[str]) -> tuple[str, ...]:
    """Number the names that occur twice."""
    return tuple(
        f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    )


_OPENERS_BY_MAGIC: list[tuple[bytes, Callable[[Path], Source]]] = [
    (b"\x89HDF\r\n\x1a\n", _open_hdf5),
    (b"\x93NUMPY", _open_npy),
    (b"\x89PNG\r\n\x1a\n", _open_picture),
    (b"II*\x00", _open_tiff),
    (b"MM\x00*", _open_tiff),
    (b"II+\x00", _open_tiff),
    (b"MM\x00+", _open_tiff),
]
_HDF5_LAYOUTS: list[tuple[Callable[[h5py.File], bool], Callable[[Path, h5py.File], Source]]] = [
    (lambda h5: "Experiments" in h5, _open_hspy),
    (lambda h5: "image_data" in h5, _open_image_data),
    (lambda h5: "nn_input" in h5, _open_network_input),
    (lambda h5: "data" in h5 and "Scanner.X_Points" in h5["data"].attrs, _open_fast_stm),
    (lambda h5: any(name.startswith("Measurement_") for name in h5), _open_nsid),
]
# Suffix to the reader of rosettasciio: readers of images that need no package more.
_ROSETTASCIIO = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".ser": "tia",
    ".emi": "tia",
    ".mrc": "mrc",
    ".rpl": "ripple",
    ".unf": "semper",
    ".nxs": "nexus",
}
_SUFFIXES = {".hdf5", ".h5", ".hspy", ".npy", ".png", ".tif", ".tiff"}
