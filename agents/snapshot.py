"""A state as a checkpoint carries it: MessagePack facts, and one flat array for each dtype.

The thousands of small arrays of an agent's memory (latents, positions, spectra) would be as many parts
of a message; one after the other in a flat array they are three.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

VERSION = 1
Arrays = dict[str, NDArray[Any]]
State = TypeVar("State", bound=msgspec.Struct)


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    of: str
    sizes: dict[str, int]
    state: msgspec.Raw
    settings: dict[str, Any] = msgspec.field(default_factory=dict)


class _Version(msgspec.Struct, frozen=True):
    version: int


class _Place(msgspec.Struct, frozen=True, array_like=True):
    """Where an array lies in the flat one of its dtype."""

    dtype: str
    start: int
    shape: tuple[int, ...]


def pack(state: msgspec.Struct, of: str, settings: dict[str, Any] | None = None) -> tuple[bytes, Arrays]:
    """Turn a state into facts and flat arrays, bit for bit.

    Parameters
    ----------
    state
        A Struct of plain values, dataclasses and arrays; an array that is in it twice is kept once.
    of
        Whose state it is; asked for again when it is read.
    settings
        What a person had changed of its configuration; see ``settings_of``.

    Returns
    -------
    facts, arrays
        MessagePack; one array of one axis for each dtype, by its name (``f8``, ``f4``, ``i8``).
    """
    packer = _Packer()
    body = msgspec.Raw(msgspec.msgpack.encode(state, enc_hook=packer.place))
    facts = msgspec.msgpack.encode(_Facts(VERSION, of, packer.sizes, body, settings or {}))
    return facts, {name: np.concatenate(pieces) for name, pieces in packer.pieces.items()}


def unpack(facts: bytes, arrays: Arrays, kind: type[State], of: str) -> State:
    """Make the state again; its arrays are copies of their own.

    Raises
    ------
    ValueError
        For another version, another owner's state, or facts and arrays that do not belong together.
    """
    try:
        _check_version(msgspec.msgpack.decode(facts, type=_Version).version)
        said = msgspec.msgpack.decode(facts, type=_Facts)
        if said.of != of:
            raise ValueError(f"it is of {said.of}, not of {of}")
        reader = _Reader(arrays, said.sizes)
        return msgspec.msgpack.decode(said.state, type=kind, dec_hook=reader.array_at)
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"the checkpoint cannot be used: {error}") from None


def settings_of(facts: bytes) -> dict[str, Any]:
    """Say what a person had changed of the configuration of whoever packed this.

    Raises
    ------
    ValueError
        If it is no checkpoint of this version.
    """
    try:
        _check_version(msgspec.msgpack.decode(facts, type=_Version).version)
        return msgspec.msgpack.decode(facts, type=_Facts).settings
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the checkpoint cannot be used: {error}") from None


def _check_version(version: int) -> None:
    if version != VERSION:
        raise ValueError(f"it has version {version}; this agent reads {VERSION}")


class _Packer:
    def __init__(self) -> None:
        self.pieces: dict[str, list[NDArray[Any]]] = {}
        self.sizes: dict[str, int] = {}
        self._places: dict[int, _Place] = {}

    def place(self, value: Any) -> _Place:
        if not isinstance(value, np.ndarray):
            raise NotImplementedError(f"{type(value).__name__} has no place in a checkpoint")
        # The state holds the arrays while it is packed, so an id is that of one array only.
        place = self._places.get(id(value))
        if place is None:
            name = value.dtype.str[1:]
            start = self.sizes.get(name, 0)
            self.pieces.setdefault(name, []).append(value.ravel())
            self.sizes[name] = start + value.size
            place = self._places[id(value)] = _Place(name, start, value.shape)
        return place


class _Reader:
    def __init__(self, arrays: Arrays, sizes: dict[str, int]) -> None:
        have = {name: array.shape for name, array in arrays.items()}
        wanted = {name: (size,) for name, size in sizes.items()}
        if have != wanted:
            raise ValueError(f"its arrays have the shapes {have}; its facts speak of {wanted}")
        for name, array in arrays.items():
            if array.dtype.str[1:] != name:
                raise ValueError(f"its array {name} has dtype {array.dtype}")
        self._arrays = arrays
        self._made: dict[_Place, NDArray[Any]] = {}

    def array_at(self, _: Any, value: Any) -> NDArray[Any]:
        place = msgspec.convert(value, _Place)
        if place not in self._made:
            self._made[place] = self._copy(place)
        return self._made[place]

    def _copy(self, place: _Place) -> NDArray[Any]:
        flat = self._arrays.get(place.dtype, np.zeros(0))
        size = 1
        for n in place.shape:
            size *= n
        if min(place.start, *place.shape, 0) < 0 or place.start + size > flat.size:
            raise ValueError(f"it names {place.shape} of {place.dtype} from {place.start} of {flat.size}")
        # An array of its own is aligned as the first one was: sums over it round in the same way.
        return flat[place.start : place.start + size].reshape(place.shape).copy()
