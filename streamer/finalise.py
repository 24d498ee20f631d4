"""Turns the journal of a session into plain ``.hspy`` files, which HyperSpy and LiberTEM open unchanged.

The journal is read twice, once to know how large the arrays are and once to write them, a frame at a
time: the memory needed is that of one frame. A file appears under its name only when it is whole.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from streamer.journal import read_messages
from streamer.messages import Frame, Hello, Outcome, Patches, ScanGeometry

_HSPY_VERSION = "3.3"
# Of the images in the files: the corrected ones can be made from them, and not the other way round.
AS_ACQUIRED = "none, as acquired"
_KINDS = ("frame", "patches", "outcome", "other")  # of the records that may hold data
Item = Frame | Patches | Outcome


def finalise(session_folder: Path | str, to: Path | None = None) -> list[Path]:
    """Write the frames and spectra of a session beside its journal.

    ``frames.hspy`` holds the frames of the most frequent raster, one signal ``(n, row, col)`` for each
    channel; frames of another raster are in ``frames-2.hspy`` and so on, sub-scans in
    ``subscans-1.hspy`` and so on. ``spectra.hspy`` holds the spectra ``(n, energy)``, ``patterns.hspy`` the
    diffraction patterns ``(n, row, col)`` of a camera in the order in which they came, and
    ``subscan_patterns-1.hspy`` and so on those of sub-scans. Beside ``data`` each signal has, a value for
    each frame, pattern or spectrum: ``done`` (1), ``t_ns`` (end of its acquisition, of a pattern that of its
    batch, nanoseconds since the epoch), ``position_nm`` (``(x, y)``: centre of the raster, or where the beam
    was), and ``number`` or ``id``; a pattern has ``position_px`` (``(row, col)`` in its scan),
    ``dwell_time_us`` and ``dose_e`` too. Writing again replaces the files.

    Parameters
    ----------
    session_folder
        Folder with ``journal-*.plj``.
    to
        Existing folder for the files; None writes them beside the journal.

    Returns
    -------
    files
        What was written, the main files first; empty for a session without frames and spectra.

    Raises
    ------
    FileNotFoundError
        If the folder holds no journal.
    OSError
        If the files cannot be written; none of them is left half-written under its name.
    """
    folder = Path(session_folder)
    target = folder if to is None else to
    firsts, counts = survey(folder)
    names = {group: f"{name}.hspy" for group, name in name_groups(counts).items()}
    parts = {group: target / f"{name}.part" for group, name in names.items()}
    require_room(target, counts)
    told = _told(folder)
    try:
        with ExitStack() as stack:
            writers = {
                group: stack.enter_context(_Writer(parts[group], firsts[group], counts[group], told))
                for group in names
            }
            for group, item in items(folder):
                # what a running session adds between the two readings waits for the next time
                if group in writers and writers[group].has_room_for(item):
                    writers[group].append(item)
        return [parts[group].replace(target / name) for group, name in names.items()]
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _told(folder: Path) -> dict[str, str]:
    """What the instrument said of itself: its name, which says of a simulated one what its specimen is."""
    names = [
        message.name
        for _, message in read_messages(folder, ("hello",))
        if isinstance(message, Hello) and message.role == "instrument"
    ]
    return {"instrument": names[-1]} if names else {}


def require_room(target: Path, counts: dict[Group, int]) -> None:
    """Ask before HDF5 does: on a full disk its library can end the whole process.

    Raises
    ------
    OSError
        If the disk has no room for so many items.
    """
    needed = sum(group.item_bytes * count for group, count in counts.items()) + (1 << 20)
    free = shutil.disk_usage(target).free
    if free < needed:
        text = f"{os.strerror(errno.ENOSPC)}: the files take {needed >> 20} MiB, {free >> 20} MiB are free"
        raise OSError(errno.ENOSPC, text, str(target))


@dataclass(frozen=True)
class Group:
    """What can lie in one array: a kind, the channels of frames, and the shape and scale."""

    kind: str
    channels: tuple[str, ...]
    shape: tuple[int, ...]
    scale: tuple[float, ...]

    @property
    def item_bytes(self) -> int:
        """Size of the float32 data of one item."""
        return 4 * max(1, len(self.channels)) * math.prod(self.shape)


def items(folder: Path) -> Iterator[tuple[Group, Item]]:
    """Read the frames, patterns and spectra of a session, each with the group that it belongs to."""
    for _, message in read_messages(folder, _KINDS):
        if isinstance(message, Frame):
            kind = "frames" if message.request_id is None else "subscans"
            geometry = message.geometry
            scale = (*geometry.field_of_view_nm, geometry.rotation_rad)
            yield Group(kind, message.channels, geometry.shape, scale), message
        elif isinstance(message, Patches):
            kind = "patterns" if message.request_id is None else "subscan_patterns"
            geometry = message.geometry
            edges = (
                message.window_nm,
                message.window_per_nm,
                *geometry.field_of_view_nm,
                geometry.rotation_rad,
            )
            yield Group(kind, _channels_of(message), message.windows.shape[2:], edges), message
        elif isinstance(message, Outcome) and message.status == "ok" and message.spectrum is not None:
            energies = (message.energy_offset_ev, message.energy_step_ev)
            yield Group("spectra", (), message.spectrum.shape, energies), message


def _channels_of(patches: Patches) -> tuple[str, ...]:
    """Names of the channels of windows, also where nobody gave them."""
    return patches.channels or ("windows",) * patches.windows.shape[1]


def size_of(item: Item) -> int:
    """Say how many places of an array an item takes: one, and a batch one for each of its windows."""
    return len(item.windows) if isinstance(item, Patches) else 1


def survey(folder: Path) -> tuple[dict[Group, Item], dict[Group, int]]:
    """Read a session once: the first item of each group, and how many places they take."""
    firsts: dict[Group, Item] = {}
    counts: dict[Group, int] = {}
    for group, item in items(folder):
        firsts.setdefault(group, item)
        counts[group] = counts.get(group, 0) + size_of(item)
    return firsts, counts


def name_groups(counts: dict[Group, int]) -> dict[Group, str]:
    """Name each group, the main ones first; the most frequent of a kind has the plain name."""
    names: dict[Group, str] = {}
    for kind in ("frames", "patterns", "spectra", "subscans", "subscan_patterns"):
        groups = [group for group in counts if group.kind == kind]
        for place, group in enumerate(sorted(groups, key=lambda group: -counts[group]), start=1):
            is_plain = place == 1 and not kind.startswith("subscan")
            names[group] = kind if is_plain else f"{kind}-{place}"
    return names


class _Writer:
    """A file of one group, allocated for all its items and filled in one by one."""

    def __init__(self, path: Path, first: Item, count: int, told: dict[str, str]) -> None:
        self._path = path
        self._told = told
        self._first = first
        self._count = count
        self._next = 0

    def __enter__(self) -> _Writer:
        self._h5 = h5py.File(self._path, "w")
        self._h5.attrs["file_format"] = "HyperSpy"
        self._h5.attrs["file_format_version"] = _HSPY_VERSION
        experiments = self._h5.create_group("Experiments", track_order=True)  # channels in their order
        self._signals = [
            _create_signal(experiments, signal, self._count, self._told) for signal in _describe(self._first)
        ]
        return self

    def has_room_for(self, item: Item) -> bool:
        return self._next + size_of(item) <= self._count

    def append(self, item: Item) -> None:
        """Write the next frame or spectrum, or the patterns of the next batch."""
        places = slice(self._next, self._next + size_of(item))
        self._next = places.stop
        for signal, array in zip(self._signals, arrays_of(item), strict=True):
            signal["data"][places] = array
            for name, value in facts(item).items():
                signal[name][places] = value
            signal["done"][places] = 1  # the last, so that a file that was cut tells how far it goes

    def __exit__(self, *_: object) -> None:
        self._h5.flush()
        os.fsync(self._h5.id.get_vfd_handle())
        self._h5.close()


@dataclass(frozen=True)
class Axis:
    """One axis: the value at an index is ``offset + index * scale``, in ``units``."""

    name: str
    size: int
    scale: float
    offset: float
    units: str


@dataclass(frozen=True)
class _Description:
    """What HyperSpy wants to know of a signal."""

    title: str
    quantity: str
    signal_type: str
    item: str
    axes: Sequence[Axis]
    original: dict[str, Any]


def arrays_of(item: Item) -> list[Any]:
    """Give the data of each channel: an image, a spectrum, or a stack of windows."""
    if isinstance(item, Frame):
        return list(item.image)
    return [item.spectrum] if isinstance(item, Outcome) else list(item.windows.swapaxes(0, 1))


def _describe(first: Item) -> list[_Description]:
    if isinstance(first, Frame):
        return [_describe_channel(first, channel) for channel in distinct(first.channels)]
    if isinstance(first, Patches):
        return [_describe_patterns(first, channel) for channel in distinct(_channels_of(first))]
    assert first.spectrum is not None
    size, step_ev = first.spectrum.shape[0], first.energy_step_ev
    energy = Axis("Energy loss", size, step_ev, first.energy_offset_ev, "eV")
    return [_Description("spectra", "Counts", "EELS", "spectrum", [energy], {"session": first.session})]


def _describe_channel(first: Frame, channel: str) -> _Description:
    geometry = first.geometry
    original = {
        "session": first.session,
        "dwell_time_us": first.dwell_time_us,
        "dose_e_per_nm2": first.dose_e_per_nm2,
        "scan_path": first.scan_path,
        "rotation_rad": geometry.rotation_rad,
        "correction": AS_ACQUIRED,
    }
    return _Description(channel, "Intensity", "", "frame", raster_axes(geometry), original)


def _describe_patterns(first: Patches, channel: str) -> _Description:
    geometry = first.geometry
    original = {
        "session": first.session,
        "dwell_time_us": first.dwell_time_us,
        "dose_e": first.dose_e,
        "scan_shape": geometry.shape,
        "scan_field_of_view_nm": geometry.field_of_view_nm,
        "rotation_rad": geometry.rotation_rad,
    }
    return _Description(channel, "Counts", "", "pattern", window_axes(first), original)


def window_axes(patches: Patches) -> list[Axis]:
    """Axes of a window: 0 is its middle, of a diffraction pattern the pixel of the direct beam."""
    is_reciprocal = patches.window_per_nm > 0
    names, units = (("ky", "kx"), "1/nm") if is_reciprocal else (("y", "x"), "nm")
    edge = patches.window_per_nm if is_reciprocal else patches.window_nm
    axes = []
    for name, size in zip(names, patches.windows.shape[2:], strict=True):
        middle = size // 2 if is_reciprocal else (size - 1) / 2
        axes.append(Axis(name, size, edge / size, -middle * edge / size, units))
    return axes


def raster_axes(geometry: ScanGeometry) -> list[Axis]:
    """Axes along the raster; where it is not rotated, they are the scan's x and y."""
    cos, sin = math.cos(geometry.rotation_rad), math.sin(geometry.rotation_rad)
    x, y = geometry.center_nm
    centers_nm = (cos * y - sin * x, cos * x + sin * y)
    return [
        Axis(name, size, step_nm, center_nm - (size - 1) / 2 * step_nm, "nm")
        for name, size, step_nm, center_nm in zip(
            ("y", "x"), geometry.shape, geometry.pixel_size_nm, centers_nm, strict=True
        )
    ]


def distinct(channels: Sequence[str]) -> list[str]:
    """Make names of HDF5 groups: no slash, none twice."""
    plain = [channel.replace("/", "-") or "image" for channel in channels]
    return [name if plain.count(name) == 1 else f"{name} {i}" for i, name in enumerate(plain)]


def facts(item: Item) -> dict[str, Any]:
    """Say of a frame, a spectrum or the patterns of a batch what lies beside the data."""
    if isinstance(item, Patches):
        return {
            "t_ns": round(item.acquired_at_s * 1e9),
            "number": item.number,
            "position_nm": item.positions_nm.astype(np.float64),
            "position_px": item.positions_px.astype(np.float64),
            "dwell_time_us": item.dwell_time_us,
            "dose_e": item.dose_e,
        }
    if isinstance(item, Frame):
        return {
            "t_ns": round(item.acquired_at_s * 1e9),
            "number": item.number,
            "position_nm": item.geometry.center_nm,
        }
    return {
        "t_ns": round(item.ended_at_s * 1e9),
        "id": item.id,
        "position_nm": item.position_nm or (math.nan, math.nan),
        "scan_position_nm": item.scan_position_nm,
        "dwell_time_us": item.dwell_time_us,
    }


FACT_TYPES: dict[str, tuple[tuple[int, ...], Any]] = {
    "t_ns": ((), "i8"),
    "number": ((), "i8"),
    "id": ((), h5py.string_dtype()),
    "position_nm": ((2,), "f8"),
    "position_px": ((2,), "f8"),
    "scan_position_nm": ((2,), "f8"),
    "dwell_time_us": ((), "f8"),
    "dose_e": ((), "f8"),
    "done": ((), "u1"),
}
FACTS = {
    "frame": ("t_ns", "number", "position_nm", "done"),
    "pattern": ("t_ns", "number", "position_nm", "position_px", "dwell_time_us", "dose_e", "done"),
    "spectrum": ("t_ns", "id", "position_nm", "scan_position_nm", "dwell_time_us", "done"),
}


def _create_signal(
    experiments: h5py.Group, signal: _Description, count: int, told: dict[str, str]
) -> h5py.Group:
    """Lay out one signal as HyperSpy does, its arrays allocated and empty."""
    group = experiments.create_group(signal.title)
    # HyperSpy asks for the package that knows the signal's class; its own classes do.
    group.attrs.update({"package": "hyperspy", "package_version": ""})
    item_shape = tuple(axis.size for axis in signal.axes)
    group.create_dataset("data", (count, *item_shape), "f4", chunks=(1, *item_shape))
    for name in FACTS[signal.item]:
        shape, dtype = FACT_TYPES[name]
        group.create_dataset(name, (count, *shape), dtype)
    axes = [Axis(signal.item, count, 1.0, 0.0, ""), *signal.axes]
    for place, axis in enumerate(axes):
        group.create_group(f"axis-{place}").attrs.update(_axis_attributes(axis, navigate=place == 0))
    metadata = group.create_group("metadata")
    metadata.create_group("General").attrs["title"] = signal.title
    metadata.create_group("Signal").attrs.update(
        {"signal_type": signal.signal_type, "quantity": signal.quantity}
    )
    group.create_group("original_metadata").attrs.update(signal.original | told)
    group.create_group("attributes").attrs.update({"_lazy": False, "ragged": False})
    group.create_group("learning_results")
    return group


def _axis_attributes(axis: Axis, *, navigate: bool) -> dict[str, Any]:
    return {
        "_type": "UniformDataAxis",
        "name": axis.name,
        "size": axis.size,
        "scale": axis.scale,
        "offset": axis.offset,
        "units": axis.units,
        "navigate": navigate,
        "is_binned": axis.units == "eV",
    }
