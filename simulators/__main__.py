"""``python -m simulators``: a simulated or a replayed microscope that connects to a streamer."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from simulators.catalogue import CATALOGUE, Entry, explained
from simulators.faults import cuts_of
from simulators.formats import RecordingError
from simulators.instrument import GIVE_UP_S, QUEUE_LENGTH, Instrument, Served, serve
from streamer.config_file import read_config
from streamer.keys import KeysError, PeerKeys
from streamer.link import Link
from streamer.log import Lines

if TYPE_CHECKING:
    from simulators.scanning import ScanningConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Microscopes that need no microscope: simulated ones, or a recording played as if it were live.",
)
# A streamer on a cold disk takes a while to import its libraries.
CONNECT_S = 30.0
# Arrays of the truth with a row for each frame, beside those that are called frame_….
FRAME_BY_FRAME = (
    "drift_nm",
    "stage_nm",
    "stage_error_nm",
    "row_drift_nm",
    "row_offset_px",
    "column_offset_px",
    "coil_px",
    "retrace_row_offset_px",
    "retrace_column_offset_px",
)
# Arrays that say in which frame something happened or was met, counted by the process itself from 0; and
# those with a row for each of the same things.
IN_FRAMES = {
    "event_frame": (
        "event_kind",
        "event_place",
        "event_electrons",
        "event_dose_e_per_a2",
        "event_position_nm",
        "event_atom",
        "event_partner",
        "event_class_before",
        "event_class_after",
    ),
    "rod_frame": ("rod_id", "rod_position_nm", "rod_place_px", "rod_angle_rad"),
}
Address = Annotated[
    str, typer.Option("--connect", help="Address of the streamer, such as tcp://127.0.0.1:5555.")
]
Config = Annotated[
    Path | None,
    typer.Option(help="TOML file; its table, named at the end of this help, sets up the instrument."),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Another specimen, drift and noise; over the file's seed.")
]
TruthFile = Annotated[
    Path | None, typer.Option("--truth", help="Write here at the end what was really there (.npz).")
]
Key = Annotated[Path | None, typer.Option(help="This microscope's key file, for a streamer with keys.")]
Speed = Annotated[
    str,
    typer.Option(help="1: as fast as the microscope scans; 2: twice as fast; max: without waiting."),
]
MaxFrames = Annotated[
    int | None, typer.Option(min=1, help="Stop after so many frames; without it, go on until ended.")
]
GiveUp = Annotated[
    float,
    typer.Option(min=0, help="Seconds to wait for a streamer that went silent, with the beam parked."),
]


def _command(entry: Entry) -> Callable[..., None]:
    """Make the command of an instrument; they are all alike."""

    def simulate(
        connect: Address,
        config: Config = None,
        seed: Seed = None,
        truth: TruthFile = None,
        max_frames: MaxFrames = None,
        speed: Speed = "1",
        key: Key = None,
        give_up_s: GiveUp = GIVE_UP_S,
    ) -> None:
        rate = _speed(speed)
        said = {} if seed is None else {"seed": seed}
        try:
            settings = read_config(config, entry.table, entry.config_class(), said)
            instrument = entry.instrument_class()(settings)  # type: ignore[call-arg]
        except ValueError as error:
            raise _refusal(str(error)) from None
        _play(instrument, connect, key, rate, max_frames, truth, give_up_s, settings)

    simulate.__doc__ = f"{entry.what}\n\n{entry.more}"
    return simulate


for _entry in CATALOGUE.values():
    app.command(_entry.name, cls=explained(_entry))(_command(_entry))


@app.command()
def replay(
    path: Annotated[Path, typer.Argument(help="A session folder, a journal, or a file of the field.")],
    connect: Address,
    speed: Speed = "1",
    max_frames: MaxFrames = None,
    pixel_size_nm: Annotated[
        float | None, typer.Option(help="Edge of a pixel, for files that do not carry a scale.")
    ] = None,
    key: Key = None,
    give_up_s: GiveUp = GIVE_UP_S,
) -> None:
    """Play a recording as if its microscope were connected; what was not recorded is refused."""
    from simulators.replay import open_recording

    rate = _speed(speed)
    try:
        instrument = open_recording(path, pixel_size_nm=pixel_size_nm)
    except (ValueError, OSError) as error:
        raise _refusal(str(error)) from None
    _play(instrument, connect, key, rate, max_frames, None, give_up_s)


@app.command()
def pictures(
    folder: Annotated[Path, typer.Argument(help="Where they go, as PNG files; it is made.")],
    only: Annotated[str, typer.Option(help="Make this one, such as pfm.", show_default="all")] = "",
) -> None:
    """Draw what each instrument gives, as in docs/simulators.md; about half a minute."""
    from simulators.pictures import draw

    try:
        for path in draw(folder, only):
            typer.echo(str(path))
    except (ValueError, OSError) as error:
        raise _refusal(str(error)) from None


def _play(
    instrument: Instrument,
    address: str,
    key: Path | None,
    speed: float,
    max_frames: int | None,
    truth: Path | None,
    give_up_s: float,
    settings: ScanningConfig | None = None,
) -> None:
    try:
        keys = None if key is None else PeerKeys.read(key, "instrument")
        link = Link(address, role="instrument", name=instrument.name, timeout_s=CONNECT_S, keys=keys)
    except KeysError as error:
        raise _refusal(str(error)) from None
    except ConnectionError as error:
        raise _failure(str(error)) from None
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    first_number = link.welcome.next_number

    log = Lines()

    def say(text: str) -> None:
        log.say(f"{instrument.name}: {text}")

    say(f"connected to {address}, session {link.welcome.session}")
    try:
        served = serve(
            instrument,
            link,
            speed=speed,
            max_frames=max_frames,
            stop=stopped.is_set,
            say=say,
            give_up_s=give_up_s,
            queue_length=QUEUE_LENGTH if settings is None else settings.queue_length,
            cuts_s={} if settings is None else cuts_of(settings.faults),
        )
    except (ConnectionError, RecordingError) as error:
        raise _failure(str(error)) from None
    finally:
        if truth is not None:
            write_truth(truth, instrument.truth(), first_number)
    say(_account(served))


def _account(served: Served) -> str:
    batches = f", {served.batches} batches of patterns" if served.batches else ""
    return (
        f"{served.ended}; {served.frames} frames{batches} and {served.sub_scans} sub-scans sent, "
        f"{served.refused} refused, {served.broken_off} broken off, {served.outcomes} requests answered, "
        f"parked {served.parked} times"
    )


def write_truth(path: Path, arrays: Mapping[str, NDArray[Any]] | None, first_number: int) -> None:
    """Write what an instrument knows; the file is whole or not there.

    Parameters
    ----------
    path
        The ``.npz`` file.
    arrays
        As from ``Instrument.truth``; None writes nothing.
    first_number
        Number of the instrument's first frame: arrays with a row for each frame get that many rows in
        front, so that a row's index is the frame's number. They are those that an earlier process of
        this instrument wrote there, NaN where there are none. Batches of patterns have numbers and no
        rows: there ``frame_acquired_at_s`` tells which row is of which frame. What happened in a frame
        (``event_frame``, ``rod_frame``) says its number too, with what happened in earlier processes in
        front; each process begins with the specimen anew, so its atoms and rods count from 0 again.
    """
    if arrays is None:
        return
    earlier = _read_truth(path, arrays)
    by_number: dict[str, Any] = {
        name: _after(earlier.get(name), array, first_number)
        for name, array in arrays.items()
        if name in FRAME_BY_FRAME or name.startswith("frame_")
    }
    happened = _in_frames(earlier, arrays, first_number)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        np.savez(file, allow_pickle=False, **{**arrays, **by_number, **happened})
    os.replace(unfinished, path)


def _read_truth(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Read what an earlier process knew of the same specimen; empty where none did."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        earlier = {name: file[name] for name in file.files}
    is_same = "seed" in arrays and np.array_equal(earlier.get("seed", math.nan), arrays["seed"])
    return earlier if is_same else {}


def _after(earlier: NDArray[Any] | None, array: NDArray[Any], first_number: int) -> NDArray[Any]:
    """Put ``first_number`` rows before an array: the earlier ones as far as they go, then NaN."""
    before = np.full((first_number, *array.shape[1:]), math.nan, dtype=array.dtype)
    if earlier is not None and earlier.shape[1:] == array.shape[1:]:
        known = earlier[:first_number]
        before[: len(known)] = known
    return np.concatenate([before, array])


def _in_frames(
    earlier: Mapping[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]], first_number: int
) -> dict[str, NDArray[Any]]:
    """Say of what happened in which numbered frame it did, after what happened in earlier processes."""
    told: dict[str, NDArray[Any]] = {}
    for frame, others in IN_FRAMES.items():
        if frame not in arrays:
            continue
        told[frame] = arrays[frame] + first_number
        if frame in earlier:
            before = earlier[frame] < first_number
            told[frame] = np.concatenate([earlier[frame][before], told[frame]])
            told |= {name: np.concatenate([earlier[name][before], arrays[name]]) for name in others}
    return told


def _speed(text: str) -> float:
    if text == "max":
        return math.inf
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not (0 < speed < math.inf):
        raise _refusal(f"--speed is {text}; it takes 1, a number above 0, or max")
    return speed


def _refusal(text: str) -> typer.Exit:
    """Say what is wrong with what was asked for; exit code 2."""
    typer.echo(text, err=True)
    return typer.Exit(2)


def _failure(text: str) -> typer.Exit:
    """Say what went wrong; exit code 1."""
    typer.echo(text, err=True)
    return typer.Exit(1)


if __name__ == "__main__":
    app()
