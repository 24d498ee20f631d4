"""States in, facts and flat arrays out, and back bit for bit."""

from contextlib import suppress
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from agents.snapshot import pack, unpack
from streamer.codec import decode, encode
from streamer.messages import Checkpoint


@dataclass(frozen=True, eq=False)
class Place:
    position: NDArray[np.float64]
    name: str


class Memory(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    places: list[Place]
    counts: NDArray[np.int64]
    spectrum: NDArray[np.float32] | None = None
    doubt: float = 0.0


def memory(**changes: object) -> Memory:
    made = Memory(
        places=[Place(np.array([1.5, -0.0]), "a"), Place(np.array([np.nan, np.inf]), "b")],
        counts=np.arange(6).reshape(2, 3),
        spectrum=np.arange(4, dtype=np.float32),
        doubt=float("nan"),
    )
    return msgspec.structs.replace(made, **changes)


def test_a_state_comes_back_bit_for_bit_also_over_the_wire():
    facts, flat = pack(memory(), "me")
    assert sorted(flat) == ["f4", "f8", "i8"]
    sent = Checkpoint(session="s", of="me", told=1, facts=facts, arrays=flat)
    came = decode(encode(sent))
    again = unpack(came.facts, came.arrays, Memory, "me")
    assert [place.name for place in again.places] == ["a", "b"]
    assert again.places[0].position.tobytes() == np.array([1.5, -0.0]).tobytes()
    assert again.places[1].position.tobytes() == np.array([np.nan, np.inf]).tobytes()
    assert again.counts.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert again.spectrum.dtype == np.float32
    assert np.isnan(again.doubt)


@given(st.lists(arrays(np.float64, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)), max_size=6))
def test_arrays_of_any_shape_come_back(positions):
    facts, flat = pack(memory(places=[Place(each, "") for each in positions]), "me")
    again = unpack(facts, flat, Memory, "me")
    assert [p.position.shape for p in again.places] == [each.shape for each in positions]
    assert [p.position.tobytes() for p in again.places] == [each.tobytes() for each in positions]


def test_an_array_that_is_there_twice_is_kept_once_and_shared_again():
    position = np.arange(1000.0)
    facts, flat = pack(memory(places=[Place(position, "a"), Place(position, "b")]), "me")
    assert flat["f8"].size == 1000
    one, other = unpack(facts, flat, Memory, "me").places
    assert one.position is other.position


def test_a_view_into_a_larger_array_is_kept_as_what_it_shows():
    table = np.arange(12.0).reshape(3, 4)
    facts, flat = pack(memory(places=[Place(table[:, 1], "a"), Place(table.T, "b")]), "me")
    one, other = unpack(facts, flat, Memory, "me").places
    assert one.position.tolist() == [1.0, 5.0, 9.0]
    assert other.position.tolist() == table.T.tolist()
    assert other.position.flags.c_contiguous


def test_what_comes_back_is_its_own_and_may_be_written_to():
    facts, flat = pack(memory(), "me")
    for array in flat.values():
        array.flags.writeable = False
    again = unpack(facts, flat, Memory, "me")
    again.counts[0, 0] = 7
    assert flat["i8"][0] == 0


def bad_checkpoints() -> list[tuple[str, object, object, str]]:
    facts, flat = pack(memory(), "me")
    whole = msgspec.msgpack.decode(facts)
    outside = whole | {"state": whole["state"] | {"counts": ["i8", 4, [2, 3]]}}
    negative = whole | {"state": whole["state"] | {"counts": ["i8", -2, [2]]}}
    unknown = whole | {"state": whole["state"] | {"counts": ["f2", 0, [1]]}}
    extra = whole | {"state": whole["state"] | {"counts": "none"}}
    longer = flat | {"f4": np.zeros(5, np.float32)}
    other_type = flat | {"f4": np.zeros(4, np.int32)}
    pack_again = msgspec.msgpack.encode
    return [
        ("version", pack_again(whole | {"version": 9}), flat, "it has version 9; this agent reads 1"),
        ("field of a later version", pack_again({"version": 9, "new": 1}), flat, "it has version 9"),
        ("owner", pack_again(whole | {"of": "you"}), flat, "it is of you, not of me"),
        ("missing array", facts, {"f8": flat["f8"]}, "its arrays have the shapes"),
        ("longer array", facts, longer, "its arrays have the shapes"),
        ("other type", facts, other_type, "its array f4 has dtype int32"),
        ("outside", pack_again(outside), flat, r"it names \(2, 3\) of i8 from 4 of 6"),
        ("negative", pack_again(negative), flat, "it names"),
        ("unknown type", pack_again(unknown), flat, r"it names \(1,\) of f2 from 0 of 0"),
        ("no array", pack_again(extra), flat, "the checkpoint cannot be used"),
        ("cut", facts[:-1], flat, "the checkpoint cannot be used"),
        ("nothing", b"", flat, "the checkpoint cannot be used"),
        ("text", b"\xa4oops", flat, "the checkpoint cannot be used"),
    ]


@pytest.mark.parametrize(
    ("facts", "flat", "reason"), [c[1:] for c in bad_checkpoints()], ids=[c[0] for c in bad_checkpoints()]
)
def test_what_cannot_be_used_is_refused_with_the_reason(facts, flat, reason):
    with pytest.raises(ValueError, match=reason):
        unpack(facts, flat, Memory, "me")


@given(st.data())
def test_damaged_facts_are_refused_or_read_but_nothing_else_happens(data):
    facts, flat = pack(memory(), "me")
    damaged = bytearray(facts)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(facts) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        unpack(bytes(damaged), flat, Memory, "me")


def test_what_is_no_array_has_no_place_in_it():
    with pytest.raises(NotImplementedError, match="generator has no place in a checkpoint"):
        pack(memory(places=(x for x in "no")), "me")
