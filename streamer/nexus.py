"""Writes a session as one NeXus file in the style of the application definition NXem.

Frames and spectra are NXdata groups right under the entry, named by their channel, with fields as in
``NXimage`` and ``NXspectrum``: ``intensity``, ``axis_j``, ``axis_i``, ``axis_energy``. Beside each lie, by
frame or spectrum, its time, number or request, position and drift. NXem also asks for what a session does
not know (the elements of the sample, its preparation, the maker of the microscope): that is left out
and not invented.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from streamer.finalise import (
    AS_ACQUIRED,
    FACT_TYPES,
    Axis,
    Group,
    Item,
    arrays_of,
    distinct,
    facts,
    items,
    name_groups,
    raster_axes,
    require_room,
    size_of,
    survey,
    window_axes,
)
from streamer.journal import read_messages
from streamer.messages import DistortionMode, Frame, Hello, Latents, Outcome, Patches, Registration

_FRAME_FACTS = ("t_ns", "number", "position_nm")
_PATTERN_FACTS = ("t_ns", "number", "position_nm", "position_px", "dwell_time_us", "dose_e")
_SPECTRUM_FACTS = ("t_ns", "id", "position_nm", "scan_position_nm", "dwell_time_us")
_UNITS = {
    "t_ns": "ns",
    "position_nm": "nm",
    "position_px": "px",
    "scan_position_nm": "nm",
    "dwell_time_us": "us",
    "drift_nm": "nm",
    "drift_sd_nm": "nm",
}


def export_nexus(session_folder: Path | str, to: Path) -> Path:
    """Write a session as a NeXus file.

    Parameters
    ----------
    session_folder
        Folder with ``journal-*.plj``.
    to
        The file, such as ``session.nxs``; it appears when it is whole.

    Raises
    ------
    FileNotFoundError
        If the folder holds no journal.
    ValueError
        If the session has neither frames nor spectra.
    OSError
        If the file cannot be written.
    """
    folder = Path(session_folder)
    firsts, counts = survey(folder)
    if not firsts:
        raise ValueError(f"{folder}: the session has neither frames nor spectra; there is nothing to export")
    about = _About.read(folder)
    part = to.with_name(to.name + ".part")
    require_room(to.parent, counts)
    try:
        with h5py.File(part, "w") as file:
            entry = _create_entry(file, about, folder.resolve().name)
            stacks = {
                group: _create_stacks(entry, name, firsts[group], counts[group])
                for group, name in name_groups(counts).items()
            }
            entry.attrs["default"] = next(iter(stacks.values()))[0].name.rpartition("/")[2]
            _fill(folder, stacks, counts, about)
            file.flush()
            os.fsync(file.id.get_vfd_handle())
        return part.replace(to)
    finally:
        part.unlink(missing_ok=True)


@dataclass
class _About:
    """What the rest of the journal says of the data.

    Attributes
    ----------
    instrument
        Name by which it said Hello; empty if that is not in the journal.
    first_s, last_s
        Streamer clock of the first and the last record, seconds since the epoch.
    registrations
        By the number of the frame, without the distortion: its arrays would be those of all frames at once.
    modes
        Of the distortion's correction, by the number of the frame.
    """

    instrument: str
    first_s: float
    last_s: float
    registrations: dict[int, Registration]
    modes: dict[int, DistortionMode]

    @classmethod
    def read(cls, folder: Path) -> _About:
        """Read it from the journal."""
        about = cls("", math.nan, math.nan, {}, {})
        for at_s, message in read_messages(folder):
            about.first_s = at_s if math.isnan(about.first_s) else about.first_s
            about.last_s = at_s
            if isinstance(message, Latents):
                registration = message.registration
                about.registrations[message.number] = msgspec.structs.replace(registration, distortion=None)
                about.modes[message.number] = (
                    "off" if registration.distortion is None else registration.distortion.mode
                )
            elif isinstance(message, Hello) and message.role == "instrument":
                about.instrument = message.name
        return about


def _group(parent: h5py.Group, name: str, nexus_class: str) -> h5py.Group:
    group = parent.create_group(name, track_order=True)
    group.attrs["NX_class"] = nexus_class
    return group


def _create_entry(file: h5py.File, about: _About, session: str) -> h5py.Group:
    file.attrs["NX_class"] = "NXroot"
    file.attrs["creator"] = "probeloop"
    file.attrs["default"] = "entry"
    entry = _group(file, "entry", "NXentry")
    entry["definition"] = "NXem"
    entry["title"] = session
    entry["experiment_alias"] = session
    entry["start_time"] = _iso(about.first_s)
    entry["end_time"] = _iso(about.last_s)
    program = _group(_group(entry, "profiling", "NXcs_profiling"), "program1", "NXprogram")
    program["program"] = "probeloop"
    program["program"].attrs["version"] = version("probeloop")
    instrument = _group(_group(entry, "measurement", "NXem_measurement"), "instrument", "NXem_instrument")
    if about.instrument:
        instrument["name"] = about.instrument
    return entry


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="microseconds")


def _create_stacks(entry: h5py.Group, name: str, first: Item, count: int) -> list[h5py.Group]:
    """Lay out a group of frames, an NXdata for each channel, or of spectra; allocated and empty."""
    kind, _, place = name.partition("-")
    suffix = f"_{place}" if place else ""
    if isinstance(first, Outcome):
        return [_create_stack(entry, f"spectra{suffix}", first, count)]
    prefix = "subscan_" if kind.startswith("subscan") else ""
    channels = first.channels or (kind,) * len(arrays_of(first))
    return [
        _create_stack(entry, re.sub(r"\W", "_", f"{prefix}{channel}{suffix}", flags=re.ASCII), first, count)
        for channel in distinct(channels)
    ]


def _create_stack(entry: h5py.Group, name: str, first: Item, count: int) -> h5py.Group:
    while name in entry:  # two channels, or a channel called "measurement"
        name += "_"
    group = _group(entry, name, "NXdata")
    axes = _stack_axes(first, count)
    group.attrs["signal"] = "intensity"
    group.attrs["axes"] = [axis.name for axis, _ in axes]
    group.attrs["interpretation"] = "spectrum" if isinstance(first, Outcome) else "image"
    shape = tuple(axis.size for axis, _ in axes)
    intensity = group.create_dataset("intensity", shape, "f4", chunks=(1, *shape[1:]))
    intensity.attrs["interpretation"] = group.attrs["interpretation"]
    intensity.attrs["units"] = "counts"
    if isinstance(first, Frame):
        intensity.attrs["correction"] = AS_ACQUIRED
    for place, (axis, long_name) in enumerate(axes):
        group.attrs[f"{axis.name}_indices"] = place
        group[axis.name] = axis.offset + axis.scale * np.arange(axis.size)
        group[axis.name].attrs.update({"units": axis.units, "long_name": long_name})
    for fact, (item_shape, dtype) in _fact_types(first).items():
        group.create_dataset(fact, (count, *item_shape), dtype)
        if fact in _UNITS:
            group[fact].attrs["units"] = _UNITS[fact]
    if isinstance(first, Frame):
        _describe_scan(group, first)
    return group


def _stack_axes(first: Item, count: int) -> list[tuple[Axis, str]]:
    """Give the axes of a stack with their names for a person."""
    what = "spectrum" if isinstance(first, Outcome) else "image"
    stack = Axis(f"indices_{what}", count, 1.0, 0.0, "")
    if not isinstance(first, Outcome):
        is_frame = isinstance(first, Frame)
        axes = raster_axes(first.geometry) if isinstance(first, Frame) else window_axes(first)
        down, along = axes
        return [
            (stack, "frame" if is_frame else "pattern"),
            (Axis("axis_j", down.size, down.scale, down.offset, down.units), f"{down.name} ({down.units})"),
            (
                Axis("axis_i", along.size, along.scale, along.offset, along.units),
                f"{along.name} ({along.units})",
            ),
        ]
    assert first.spectrum is not None
    energy = Axis("axis_energy", first.spectrum.size, first.energy_step_ev, first.energy_offset_ev, "eV")
    return [(stack, "spectrum"), (energy, "energy loss (eV)")]


def _describe_scan(group: h5py.Group, first: Frame) -> None:
    group["dwell_time"] = first.dwell_time_us
    group["dwell_time"].attrs["units"] = "us"
    group["rotation"] = first.geometry.rotation_rad
    group["rotation"].attrs["units"] = "rad"
    group["scan_path"] = first.scan_path


def _fact_types(first: Item) -> dict[str, tuple[tuple[int, ...], Any]]:
    names: Sequence[str] = _SPECTRUM_FACTS if isinstance(first, Outcome) else _FRAME_FACTS
    if isinstance(first, Patches):
        names = _PATTERN_FACTS
    types = {name: FACT_TYPES[name] for name in names}
    if isinstance(first, Frame):
        types |= {
            "drift_nm": ((2,), "f8"),
            "drift_sd_nm": ((), "f8"),
            "distortion_mode": ((), h5py.string_dtype()),
        }
        if first.request_id is not None:
            types["id"] = FACT_TYPES["id"]
    return types


def _fill(
    folder: Path, stacks: dict[Group, list[h5py.Group]], counts: dict[Group, int], about: _About
) -> None:
    """Write the items one by one; what a running session adds meanwhile waits for the next time."""
    places = dict.fromkeys(stacks, 0)
    for group, item in items(folder):
        first = places.get(group, 0)
        place = slice(first, first + size_of(item))
        if group not in stacks or place.stop > counts[group]:
            continue
        places[group] = place.stop
        for stack, array in zip(stacks[group], arrays_of(item), strict=True):
            stack["intensity"][place] = array
            for name, value in (facts(item) | _more_facts(item, about)).items():
                stack[name][place] = value


def _more_facts(item: Item, about: _About) -> dict[str, Any]:
    """Say the drift at a frame, NaN where it was not found, and the request that it answers.

    ``distortion_mode`` is what the session corrected; empty for a frame that did not come through.
    """
    if not isinstance(item, Frame):
        return {}
    registration = about.registrations.get(item.number)
    found: dict[str, Any] = {"drift_nm": (math.nan, math.nan), "drift_sd_nm": math.nan}
    if registration is not None:
        found = {"drift_nm": registration.drift_nm, "drift_sd_nm": registration.sd_nm}
    found["distortion_mode"] = about.modes.get(item.number, "")
    return found if item.request_id is None else found | {"id": item.request_id}
