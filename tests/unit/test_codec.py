"""What goes over the wire comes back as it was, and nothing else is believed."""

from __future__ import annotations

import struct
import zlib

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamer.codec import WireError, decode, encode
from streamer.messages import Atoms, Frame, Hello, Latents, Outcome, ScanGeometry
from tests.drawn_windows import sent, spots


def parts_of(message: dict, *buffers: bytes, version: int = 1, checksum: str = "crc32") -> list[bytes]:
    """Pack as a foreign client would."""
    payload = zlib.crc32(b"".join(buffers))
    head = {"version": version, "checksum": checksum, "payload": payload, "message": message}
    packed = msgpack.packb(head)
    return [struct.pack("<I", zlib.crc32(packed)) + packed, *buffers]


def frame_map(**fields: object) -> dict:
    return {
        "kind": "frame",
        "session": "s",
        "number": 0,
        "acquired_at_s": 1.0,
        "channels": ["HAADF"],
        "image": {"dtype": "<f4", "shape": [1, 4, 4], "part": 1},
        "geometry": {"shape": [4, 4], "field_of_view_nm": [1.0, 1.0]},
        "dwell_time_us": 1.0,
    } | fields


@given(
    image=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(width=32),
    ),
    number=st.integers(0, 2**40),
    rotation=st.floats(-7, 7),
)
def test_frame_comes_back_bit_for_bit(image, number, rotation):
    geometry = ScanGeometry(shape=image.shape[1:], field_of_view_nm=(2.0, 3.0), rotation_rad=rotation)
    frame = Frame(
        session="s",
        number=number,
        acquired_at_s=1.5,
        image=image,
        channels=tuple(f"c{i}" for i in range(image.shape[0])),
        geometry=geometry,
        dwell_time_us=2.0,
    )
    back = decode([bytes(part) for part in encode(frame)])
    assert isinstance(back, Frame)
    assert back.image.tobytes() == image.tobytes()
    assert back.geometry == geometry
    assert back.number == number


def test_latents_and_atoms_with_all_their_arrays_come_back(make_latents, make_atoms):
    latents = make_latents(n=7)
    back = decode(encode(latents))
    assert isinstance(back, Latents)
    for name in ("mean", "sd", "track", "positions_nm", "class_probability"):
        assert np.array_equal(getattr(back, name), getattr(latents, name))
    atoms = decode(encode(make_atoms()))
    assert isinstance(atoms, Atoms)
    assert np.array_equal(atoms.frame.image, make_atoms().frame.image)


def test_latents_of_a_journal_from_before_covariances_were_said_are_read(make_latents):
    latents = make_latents()
    parts = encode(latents)
    header = msgspec.msgpack.decode(bytes(parts[0])[4:])
    del header["message"]["position_covariance_nm2"]
    raw = msgspec.msgpack.encode(header)
    decoded = decode([zlib.crc32(raw).to_bytes(4, "little") + raw, *parts[1:]])
    assert decoded.position_covariance_nm2 is None
    np.testing.assert_array_equal(decoded.positions_nm, latents.positions_nm)


def test_latents_with_windows_come_back_and_those_of_a_journal_from_before_them_are_read(make_latents):
    sent_windows = sent(spots(np.arange(5.0)))
    back = decode(encode(make_latents(5, **sent_windows)))
    assert np.array_equal(back.windows, sent_windows["windows"])
    assert np.array_equal(back.window_range, sent_windows["window_range"])
    assert encode(back.without_windows()) == encode(make_latents(5))
    header, *arrays = encode(make_latents())
    before = msgspec.msgpack.decode(bytes(header)[4:])
    for name in ("windows", "window_range"):
        del before["message"][name]
    raw = msgspec.msgpack.encode(before)
    assert decode([zlib.crc32(raw).to_bytes(4, "little") + raw, *arrays]).windows is None


def test_received_arrays_are_read_only(make_frame):
    image = decode(encode(make_frame())).image
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 0


def test_array_that_is_not_contiguous_goes_over_the_wire(make_frame):
    image = np.arange(32, dtype=np.float32).reshape(1, 4, 8)[:, :, ::2]
    assert np.array_equal(decode(encode(make_frame(image=image))).image, image)


def test_message_of_a_foreign_packer_is_understood():
    frame = decode(parts_of(frame_map(), np.ones(16, "<f4").tobytes()))
    assert isinstance(frame, Frame)
    assert frame.image.sum() == 16


PIXELS = np.ones(16, "<f4").tobytes()
NOT_UTF8 = b"\x81\xa1\xff\x01"
NESTED: list = []
for _ in range(400):
    NESTED = [NESTED]
BAD = {
    "no parts": ([], "bad header"),
    "short header": ([b"ab"], "bad header"),
    "header that is no MessagePack": ([struct.pack("<I", zlib.crc32(b"\xc1")) + b"\xc1"], "bad header"),
    "unknown version": (parts_of(frame_map(), PIXELS, version=99), "unknown version"),
    "unknown checksum": (parts_of(frame_map(), PIXELS, checksum="md5"), "bad header"),
    "unknown kind": (parts_of({"kind": "gossip"}), "invalid message"),
    "unknown field": (parts_of(frame_map(colour="red"), PIXELS), "invalid message"),
    "missing field": (parts_of({"kind": "frame"}), "invalid message"),
    "wrong dtype": (
        parts_of(frame_map(image={"dtype": "<f8", "shape": [1, 2, 4], "part": 1}), PIXELS),
        "invalid message",
    ),
    "dtype that could run code": (
        parts_of(frame_map(image={"dtype": "|O", "shape": [1, 4, 4], "part": 1}), PIXELS),
        "invalid message",
    ),
    "wrong shape": (
        parts_of(frame_map(image={"dtype": "<f4", "shape": [1, 2, 8], "part": 1}), PIXELS),
        "invalid message",
    ),
    "wrong size": (parts_of(frame_map(), PIXELS[:-4]), "wrong size"),
    "negative shape": (
        parts_of(frame_map(image={"dtype": "<f4", "shape": [1, -4, -4], "part": 1}), PIXELS),
        "invalid message",
    ),
    "huge shape": (
        parts_of(frame_map(image={"dtype": "<f4", "shape": [1, 2**31, 2**31], "part": 1}), PIXELS),
        "wrong size",
    ),
    "buffer that nothing names": (parts_of(frame_map(), PIXELS, b"more"), "wrong size"),
    "too many parts": (parts_of(frame_map(), PIXELS, *[b""] * 70), "wrong size"),
    "nesting without end": (parts_of(frame_map(image=NESTED), PIXELS), "invalid message"),
    "missing buffer": (parts_of(frame_map()), "invalid message"),
    "text that is not UTF-8": (
        parts_of(frame_map())
        and [_ := struct.pack("<I", zlib.crc32(b"\x81\xa1\xff\x01")) + b"\x81\xa1\xff\x01"],
        "bad header",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_message_is_refused_with_a_fixed_reason(name):
    parts, reason = BAD[name]
    with pytest.raises(WireError) as caught:
        decode(parts)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_unknown_version_is_named():
    with pytest.raises(WireError, match="version 99; this streamer speaks 1"):
        decode(parts_of(frame_map(), PIXELS, version=99))


@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(data):
    outcome = Outcome(
        session="s",
        id="a",
        status="ok",
        scan_position_nm=(0.0, 1.0),
        spectrum=np.arange(8, dtype=np.float32),
    )
    parts = [bytearray(part) for part in encode(outcome)]
    part = data.draw(st.integers(0, len(parts) - 1))
    position = data.draw(st.integers(0, len(parts[part]) - 1))
    parts[part][position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError) as caught:
        decode(parts)
    assert caught.value.reason == "bad checksum"


def test_what_has_no_place_on_the_wire_is_a_bug_that_rises():
    class Odd(msgspec.Struct, tag_field="kind", tag="odd"):
        thing: object

    with pytest.raises(NotImplementedError, match="complex has no place on the wire"):
        encode(Odd(thing=1 + 1j))  # type: ignore[arg-type]


def test_hello_is_smaller_than_a_packet():
    assert len(encode(Hello(role="agent", name="x"))[0]) < 200


def test_header_nested_beyond_any_limit_is_refused_and_not_a_crash():
    body = b"\x91" * 100_000 + b"\xc0"
    head = b"\x85" + b"".join(
        msgpack.packb(key) + value
        for key, value in (
            ("version", msgpack.packb(1)),
            ("checksum", msgpack.packb("crc32")),
            ("payload", msgpack.packb(0)),
            ("message", msgpack.packb({"kind": "bye"})),
            ("extra", body),
        )
    )
    with pytest.raises(WireError) as caught:
        decode([struct.pack("<I", zlib.crc32(head)) + head])
    assert caught.value.reason == "bad header"
