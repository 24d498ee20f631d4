"""Nouns ⇄ wire parts: what travels on a socket and what lies in the journal.

A message is ``[header, buffer…]``. The header is four bytes, the little-endian CRC-32 of what
follows, and a MessagePack map ``{version, checksum, payload, message}``: ``message`` is the noun with
its ``kind``, every array in it replaced by ``{dtype, shape, part}``; ``payload`` is the checksum of all
buffers, one after the other, by the named method. A numbered message also says ``sender``, ``sequence``
and ``after``, by which it is put in order. ``docs/protocol.md`` says it for other languages.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import xxhash

from streamer.messages import AnyMessage, Message

VERSION = 1
MAX_PART_BYTES = 256 * 1024 * 1024
MAX_PARTS = 64
DTYPES = frozenset({"<f4", "<f8", "<i8", "<i4", "<u2", "|u1"})
Parts = Sequence[bytes | bytearray | memoryview]
T = TypeVar("T")
_CRC = struct.Struct("<I")
# What a header that is not ours can make the decoder raise: also UnicodeDecodeError, a ValueError, and
# the limits on nesting and on the size of numbers.
_UNREADABLE = (ValueError, RecursionError, OverflowError)


class WireError(ValueError):
    """A message that must not be believed.

    Attributes
    ----------
    reason
        A short fixed word, the label of a counter: ``bad header``, ``bad checksum``,
        ``unknown version``, ``wrong size``, ``invalid message``.
    sender, sequence, after
        Its place in a row, where the message came whole and is wrong in itself; else empty and 0.
    """

    def __init__(
        self, reason: str, detail: str, *, sender: str = "", sequence: int = 0, after: int = 0
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.sender = sender
        self.sequence = sequence
        self.after = after


class Numbered(msgspec.Struct, frozen=True, eq=False):
    """A message and its place in a row of messages.

    Attributes
    ----------
    message
        The noun.
    sender
        Instance that sent it; empty from the streamer and from a client that does not number.
    sequence
        From a peer it counts from 1; from the streamer it is the number of the journal record. 0 for a
        message outside any row.
    after
        Sequence of the message before it in the row; 0 for the first.
    """

    message: AnyMessage
    sender: str = ""
    sequence: int = 0
    after: int = 0


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    version: int
    checksum: Literal["crc32", "xxh3_64"]
    payload: int
    message: msgspec.Raw
    sender: str = ""
    sequence: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.after <= self.sequence < 2**53 or len(self.sender) > 64:
            raise ValueError(
                f"sender {self.sender[:64]!r}, sequence {self.sequence}, after {self.after}: sequence takes "
                "0 to 2**53 - 1, after no more than it, sender 64 letters"
            )


class _ArrayRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    part: int


def _crc32(buffers: Iterable[Any]) -> int:
    crc = 0
    for buffer in buffers:
        crc = zlib.crc32(buffer, crc)
    return crc


def _xxh3_64(buffers: Iterable[Any]) -> int:
    digest = xxhash.xxh3_64()
    for buffer in buffers:
        digest.update(buffer)
    return digest.intdigest()


_CHECKSUMS: dict[str, Callable[[Iterable[Any]], int]] = {"crc32": _crc32, "xxh3_64": _xxh3_64}


class _Codec(threading.local):
    """Encoder and decoders of one thread: to make them for each message would cost more than their work."""

    def __init__(self) -> None:
        self.header = msgspec.msgpack.Decoder(_Header)
        self.message: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(
            AnyMessage,
            dec_hook=self._array_of,
        )
        self.encoder = msgspec.msgpack.Encoder(enc_hook=self._reference_to)
        self.buffers: list[Any] = []
        self.named: list[int] = []

    def _reference_to(self, value: Any) -> _ArrayRef:
        if not isinstance(value, np.ndarray):
            raise NotImplementedError(f"{type(value).__name__} has no place on the wire")
        array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        self.buffers.append(array.reshape(-1).view(np.uint8).data)
        return _ArrayRef(dtype=array.dtype.str, shape=list(value.shape), part=len(self.buffers))

    def _array_of(self, _: Any, value: Any) -> Any:
        ref = msgspec.convert(value, _ArrayRef)
        self.named.append(ref.part)
        return _array(ref, self.buffers)


_codec = _Codec()


def encode(
    message: Message, *, sender: str = "", sequence: int = 0, after: int = 0
) -> list[bytes | memoryview]:
    """Turn a message into wire parts; its arrays are referred to, not copied (if contiguous).

    Parameters
    ----------
    message
        The noun.
    sender, sequence, after
        Its place in a row, see ``Numbered``.

    Returns
    -------
    parts
        ``[header, buffer…]``, ready for a socket and for the journal.
    """
    buffers: list[memoryview] = []
    _codec.buffers = buffers
    body = _codec.encoder.encode(message)
    header = _codec.encoder.encode(
        _Header(VERSION, "xxh3_64", _xxh3_64(buffers), msgspec.Raw(body), sender, sequence, after)
    )
    _codec.buffers = []
    return [_CRC.pack(zlib.crc32(header)) + header, *buffers]


def pack(facts: Any, *, sort: bool = False) -> bytes:
    """Turn what a part of the streamer knows into bytes, for a checkpoint; small arrays lie in them.

    Parameters
    ----------
    facts
        A struct, or a dictionary of arrays.
    sort
        Equal facts then give equal bytes, whatever the order in which they were learnt.
    """
    return msgspec.msgpack.encode(facts, enc_hook=_packed, order="deterministic" if sort else None)


def unpack(data: bytes, kind: type[T]) -> T:
    """Turn bytes of ``pack`` back into something of this kind; its arrays are read-only.

    Raises
    ------
    ValueError
        If they are no such thing.
    """
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_unpacked)


def _packed(value: Any) -> tuple[str, list[int], bytes]:
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"{type(value).__name__} has no place in a checkpoint")
    array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    return (array.dtype.str, list(value.shape), array.tobytes())


def _unpacked(_: Any, value: Any) -> np.ndarray[Any, Any]:
    dtype, shape, data = msgspec.convert(value, tuple[str, list[int], bytes])
    return _array(_ArrayRef(dtype=dtype, shape=shape, part=1), [data])


def _array(ref: _ArrayRef, buffers: Parts) -> np.ndarray[Any, Any]:
    if ref.dtype not in DTYPES:
        raise ValueError(f"array dtype {ref.dtype!r} is not one of {', '.join(sorted(DTYPES))}")
    if not 1 <= ref.part <= len(buffers):
        raise ValueError(f"array part {ref.part} is named, but {len(buffers)} buffers came")
    if any(n < 0 for n in ref.shape) or len(ref.shape) > 4:
        raise ValueError(f"array shape {ref.shape} is not one of up to four sizes")
    buffer = buffers[ref.part - 1]
    dtype = np.dtype(ref.dtype)
    wanted = dtype.itemsize
    for n in ref.shape:
        wanted *= n
    if wanted != len(buffer):
        raise ValueError(f"array {ref.shape} of {ref.dtype} needs {wanted} bytes; {len(buffer)} came")
    array = np.frombuffer(buffer, dtype=dtype).reshape(ref.shape)
    array.flags.writeable = False
    return array


def decode(parts: Parts) -> AnyMessage:
    """Turn wire parts into a message; its arrays are read-only views of the buffers.

    Raises
    ------
    WireError
        For anything that is not exactly a message of this version: the reason is a fixed word, the
        detail names the field and what it takes.
    """
    return decode_numbered(parts).message


def decode_numbered(parts: Parts) -> Numbered:
    """Turn wire parts into a message with its place in the row; see ``decode``."""
    if len(parts) > MAX_PARTS:
        raise WireError("wrong size", f"{len(parts)} parts; a message has at most {MAX_PARTS}")
    if not parts or len(parts[0]) < _CRC.size:
        raise WireError("bad header", "there is no header; it starts with four bytes of CRC-32")
    head = memoryview(parts[0])
    (crc,) = _CRC.unpack(head[: _CRC.size])
    raw = head[_CRC.size :]
    if zlib.crc32(raw) != crc:
        raise WireError("bad checksum", "the header does not match its CRC-32; send it again")
    header = _header(raw)
    buffers = parts[1:]
    if _CHECKSUMS[header.checksum](buffers) != header.payload:
        raise WireError("bad checksum", f"the payload does not match its {header.checksum}")
    codec = _codec
    codec.buffers, codec.named = list(buffers), []
    try:
        message = codec.message.decode(header.message)
    except _UNREADABLE as error:
        reason = "wrong size" if "bytes;" in str(error) else "invalid message"
        raise _wrong(header, reason, str(error)) from None
    finally:
        codec.buffers = []
    if sorted(codec.named) != list(range(1, len(parts))):
        raise _wrong(
            header,
            "wrong size",
            f"{len(buffers)} buffers came; the message names parts {sorted(codec.named)}",
        )
    return Numbered(message, header.sender, header.sequence, header.after)


def _wrong(header: _Header, reason: str, detail: str) -> WireError:
    return WireError(reason, detail, sender=header.sender, sequence=header.sequence, after=header.after)


def _header(raw: memoryview) -> _Header:
    try:
        header = _codec.header.decode(raw)
    except _UNREADABLE as error:
        _refuse_version(raw)
        raise WireError("bad header", str(error)) from None
    if header.version != VERSION:
        _refuse_version(raw)
    return header


def _refuse_version(raw: memoryview) -> None:
    """Name the version of a header that may have other fields than ours."""
    try:
        version = msgspec.msgpack.decode(raw, type=dict[str, msgspec.Raw]).get("version")
        number = None if version is None else msgspec.msgpack.decode(version)
    except _UNREADABLE:
        return
    if number != VERSION:
        raise WireError("unknown version", f"version {number!r}; this streamer speaks {VERSION}")
