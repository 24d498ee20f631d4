"""Weights in the folder of a session: what encoded its frames can encode them again, whatever came since.

A session begins with copies of the weights that its configuration names, and keeps all that are put in their
place while it runs, each under its hash. Making new weights ready takes a fraction of a second, so it is done
beside the work; between which two frames they are then put in place stands in the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from streamer.encoders import MAIN, STAND_IN, Lane
from streamer.messages import Control
from streamer.stages.encode import EncodeConfig

if TYPE_CHECKING:  # torch takes seconds to import
    from models.checkpoint import ModelCard

FOLDER = "encoders"
_BEGUN_WITH = "begun_with.json"
_STAND_INS = (("pfm", "pfm_walls_rvae"), ("diffraction", "diffraction_rvae"), ("afm", "afm_rods_rvae"))


def revision_of(data: bytes | memoryview) -> str:
    """Name weights by their bytes: the first 12 hexadecimal digits of the SHA-256, as latents say it."""
    return hashlib.sha256(data).hexdigest()[:12]


def as_control(data: bytes, *, encoder: str = MAIN, reason: str = "") -> Control:
    """Word the wish that an encoder has these weights."""
    return Control(
        action="encoder",
        encoder=encoder,
        revision=revision_of(data),
        weights=np.frombuffer(data, dtype=np.uint8),
        reason=reason,
    )


def configured(config: EncodeConfig) -> dict[str, Path]:
    """Say where the weights of each encoder are.

    Where the main one is not named it is the shipped one for graphene, and other shipped ones stand in for it
    in frames, or patches, of channels that they were trained on and it was not.
    """
    from models.encoder import SHIPPED

    beside = {one.name: Path(one.weights) for one in config.beside}
    if config.weights:
        return {MAIN: Path(config.weights)} | beside
    others = {f"{STAND_IN}{name}": SHIPPED.with_name(f"{file}.safetensors") for name, file in _STAND_INS}
    return {MAIN: SHIPPED} | beside | {name: path for name, path in others.items() if path.exists()}


def adopt(config: EncodeConfig, session_folder: Path) -> dict[str, Path]:
    """Copy the weights that the configuration names into the session, and say where they are there.

    Those that an encoder of this name began with before stay: to change them there is ``probeloop control
    encoder``, which says from which frame on.

    Raises
    ------
    models.checkpoint.CheckpointError
        Naming the file of weights and the cure, if it cannot be read.
    OSError
        If they cannot be copied.
    """
    begun = _begun_with(session_folder)
    is_new = not begun
    for name, path in configured(config).items():
        if name not in begun and (is_new or not name.startswith(STAND_IN)):
            begun[name] = _keep(session_folder, _read(path)).stem
    note = session_folder / FOLDER / _BEGUN_WITH
    part = note.with_suffix(".part")
    part.write_text(json.dumps(begun, indent=2) + "\n", encoding="utf-8")
    part.replace(note)
    return of_session(config, session_folder)


def of_session(config: EncodeConfig, session_folder: Path) -> dict[str, Path]:
    """Say where the weights are that the session began with; those of the configuration where it has none."""
    own = {name: _place(session_folder, revision) for name, revision in _begun_with(session_folder).items()}
    if not own:
        return configured(config)
    # Of shipped ones that came with a later version an older session knows nothing.
    known = {name: path for name, path in configured(config).items() if not name.startswith(STAND_IN)}
    return known | own


def kept(session_folder: Path, revision: str) -> Path | None:
    """Say where a session keeps weights; None where it does not."""
    path = _place(session_folder, revision)
    return path if path.is_file() else None


class Ready(NamedTuple):
    """What came of weights that were asked for.

    Attributes
    ----------
    control
        That asked for them.
    lane
        To be put in place; None where they are refused.
    why_not
        In one line, naming the file or the encoder.
    """

    control: Control
    lane: Lane | None
    why_not: str = ""


class Shelf:
    """Takes weights into a session and makes them ready, in a thread of its own.

    Parameters
    ----------
    session_folder
        Where they are kept.
    cards
        Of the encoders at work, by their names: what else is put in their place must see the same channels.
    """

    def __init__(self, session_folder: Path, cards: Mapping[str, ModelCard]) -> None:
        self._folder = session_folder
        self._cards = dict(cards)
        self._pool = ThreadPoolExecutor(1, "weights", initializer=_be_modest)
        self._waiting: deque[tuple[Control, Future[Lane]]] = deque()

    def why_not(self, control: Control) -> str:
        """Say at once what is wrong with a request for weights; nothing where they must be tried."""
        if control.encoder in self._cards:
            return ""
        names = ", ".join(name or "the main one" for name in self._cards)
        return f"unknown encoder: {control.encoder!r}; this session has {names}"

    def begin(self, control: Control) -> None:
        """Begin to make weights ready; they come in the order in which they were asked for."""
        self._waiting.append((control, self._pool.submit(self._take_in, control)))

    def get(self) -> Ready | None:
        """Give the next that are ready, or refused; None while there are none."""
        if not self._waiting or not self._waiting[0][1].done():
            return None
        control, future = self._waiting.popleft()
        control = _without_bytes(control)
        try:
            return Ready(control, future.result())
        except (ValueError, OSError) as error:
            return Ready(control, None, str(error))

    def load(self, name: str, revision: str) -> Lane:
        """Make ready what the session has kept.

        Raises
        ------
        ValueError
            If it is not kept, damaged, or does not see what the encoder of this name does.
        """
        from models.encoder import Encoder

        path = kept(self._folder, revision)
        if path is None:
            raise ValueError(f"weights {revision} are not in {self._folder / FOLDER}; send their file")
        encoder = Encoder.load(path)
        if encoder.revision != revision:
            raise ValueError(
                f"{path}: its bytes are those of weights {encoder.revision}; send the file again"
            )
        why = _why_unlike(self._cards[name], encoder.card)
        if why:
            raise ValueError(f"weights {encoder.card.name} ({revision}): {why}")
        lane = Lane(name, encoder)
        lane.warm_up()
        return lane

    def close(self) -> None:
        """Make nothing more ready."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _take_in(self, control: Control) -> Lane:
        if control.weights is None:
            return self.load(control.encoder, control.revision)
        data = control.weights.tobytes()
        if revision_of(data) != control.revision:
            raise ValueError(
                f"weights {control.revision} came damaged: they are {revision_of(data)}; send them again"
            )
        is_new = kept(self._folder, control.revision) is None
        path = _keep(self._folder, data)
        try:
            return self.load(control.encoder, control.revision)
        except ValueError:
            if is_new:
                path.unlink()
            raise


def _why_unlike(at_work: ModelCard, other: ModelCard) -> str:
    """Say why weights cannot take the place of others; their windows may be wider or finer."""
    if other.channels != at_work.channels:
        have, want = ", ".join(other.channels), ", ".join(at_work.channels)
        return f"they look at {have}; the encoder in whose place they would be looks at {want}"
    if (other.window_per_nm > 0) != (at_work.window_per_nm > 0):
        return "only one of the two looks at diffraction patterns"
    return ""


def _without_bytes(control: Control) -> Control:
    return msgspec.structs.replace(control, weights=None)


def _begun_with(session_folder: Path) -> dict[str, str]:
    """Say which revision each encoder of a session began with; nothing for one that is new or old."""
    try:
        text = (session_folder / FOLDER / _BEGUN_WITH).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return dict(json.loads(text))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        from models.checkpoint import load

        load(path)  # says what would do
        raise


def _place(session_folder: Path, revision: str) -> Path:
    return session_folder / FOLDER / f"{revision}.safetensors"


def _keep(session_folder: Path, data: bytes) -> Path:
    """Write weights to the disk, whole or not at all."""
    path = _place(session_folder, revision_of(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def _be_modest() -> None:
    """Torch counts its threads anew in each thread, and many of them would be in the way of the frames."""
    import torch

    torch.set_num_threads(1)
