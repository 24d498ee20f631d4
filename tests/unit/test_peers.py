"""Peers get their records in order, and acks as far as there is room; the router here is a list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamer.codec import Numbered, encode
from streamer.envelope import Envelope, EnvelopeConfig
from streamer.journal import Journal, JournalConfig, kind_of
from streamer.messages import Ack, Bye, Heartbeat, Hello, Message
from streamer.peers import FORGET_S, MOST_AHEAD, Peer, Peers
from streamer.progress import Progress
from streamer.telemetry import Telemetry


class Outbound:
    """What was sent to whom: ``(identity, message, record, after)``."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Message, int, int]] = []

    def send(self, peer: bytes, message: Message, *, sequence: int = 0, after: int = 0) -> bool:
        self.sent.append((peer, message, sequence, after))
        return True

    def new(self) -> list[tuple[bytes, Message, int, int]]:
        """Give what was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent


class Party:
    """Peers of one session, with its journal."""

    def __init__(self, folder: Path) -> None:
        self.outbound = Outbound()
        self.journal = Journal(folder, JournalConfig())
        self.progress = Progress(Envelope(EnvelopeConfig(beam_current_pa=0.0)))
        self.telemetry = Telemetry()
        self.peers = Peers(
            session="s",
            window=4,
            outlet=self.outbound,
            journal=self.journal,
            progress=self.progress,
            telemetry=self.telemetry,
        )

    def join(self, name: str = "a", *, instance: str = "i1", role: Any = "agent", beats: bool = True) -> Peer:
        """Let a peer say Hello, and keep it."""
        hello = Hello(role=role, name=name, instance=instance, beats=beats)
        peer, _ = self.peers.meet(instance.encode(), "", hello, 0.0)
        self.keep(hello)
        return peer

    def keep(self, message: Message) -> int:
        """Write to the journal, apply, and deliver, as the hub does."""
        record = self.journal.append(encode(message), 0.0, kind=kind_of(message), monotonic_s=0.0)
        names = self.progress.recipients(message)
        before = [self.progress.rows[name].last for name in names]
        self.progress.apply(record, Numbered(message))
        for name, after in zip(names, before, strict=True):
            self.peers.deliver(name, record, after, message)
        return record


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Party]:
    made = Party(tmp_path)
    yield made
    made.journal.close()


def ack(sequence: int, number: int = -1, status: Any = "written") -> Ack:
    return Ack(session="s", number=number, status=status, sequence=sequence)


def hello(**fields: Any) -> Hello:
    return Hello(**({"role": "agent", "name": "a", "instance": "i1"} | fields))


def unkept(beats: bool = True) -> Peer:
    return Peer(b"i", hello(beats=beats), "agent a", "", 0.0)


# -- credit ----------------------------------------------------------------------------------------


def test_one_ack_speaks_of_all_before_it_and_names_the_refused():
    peer = unkept()
    peer.acks.extend([ack(1), ack(2, status="refused"), ack(3)])
    due = peer.take_acks(waiting=0, most=4)
    assert [(one.sequence, one.status, one.refused) for one in due] == [
        (2, "refused", ()),
        (3, "written", (2,)),
    ]
    assert not peer.acks


def test_ack_of_a_frame_waits_while_too_many_frames_wait_for_the_analysis():
    peer = unkept()
    peer.acks.extend(ack(number + 1, number) for number in range(3))
    # Five frames wait, three of them without ack: two are ahead, and one more may be.
    assert [one.number for one in peer.take_acks(waiting=5, most=3)] == [0]
    assert peer.frames_ahead == 2
    assert peer.take_acks(waiting=5, most=3) == []
    assert [one.number for one in peer.take_acks(waiting=3, most=3)] == [2]


def test_ack_of_another_message_waits_for_those_of_the_frames_before_it():
    peer = unkept()
    peer.acks.extend([ack(1), ack(2, number=0), ack(3)])
    assert [one.sequence for one in peer.take_acks(waiting=1, most=0)] == [1]
    assert [one.sequence for one in peer.take_acks(waiting=0, most=1)] == [3]


def test_refused_frame_takes_no_room():
    peer = unkept()
    peer.acks.append(ack(1, number=0, status="refused"))
    assert [one.number for one in peer.take_acks(waiting=9, most=1)] == [0]


# -- records ---------------------------------------------------------------------------------------


def test_records_of_a_row_name_the_one_before(party, make_latents):
    party.join()
    records = [party.keep(make_latents(number=number)) for number in range(2)]
    assert [(number, after) for _, _, number, after in party.outbound.new()] == [
        (records[0], 1),
        (records[1], records[0]),
    ]


def test_peer_that_confirms_nothing_is_sent_a_few_records_and_the_rest_once_it_has_them(party, make_latents):
    peer = party.join()
    records = [party.keep(make_latents(n=1, number=number)) for number in range(MOST_AHEAD + 5)]
    assert [record for _, _, record, _ in party.outbound.new()] == records[:MOST_AHEAD]
    assert peer.is_behind
    beat = Heartbeat(instance="i1", last_record=records[MOST_AHEAD - 1])
    party.peers.hear(b"i1~", "", beat, now_s=1.0)
    assert [record for _, _, record, _ in party.outbound.new()] == records[MOST_AHEAD:]
    assert not peer.is_behind


def test_what_the_journal_does_not_have_is_sent_at_once_however_far_behind_a_peer_is(party, make_latents):
    party.join()
    for number in range(MOST_AHEAD):
        party.keep(make_latents(n=1, number=number))
    party.outbound.new()
    party.peers.deliver("agent a", 999, 998, make_latents(n=1), is_kept=False)
    assert [record for _, _, record, _ in party.outbound.new()] == [999]


def test_lost_record_is_sent_again_from_memory(party, make_latents):
    peer = party.join()
    records = [party.keep(make_latents(number=number)) for number in range(3)]
    party.outbound.new()
    party.peers.send_again(peer, records[0])
    assert [record for _, _, record, _ in party.outbound.new()] == records[1:]
    assert party.telemetry.tally["delivery: asked again"] == 1


def test_record_that_memory_has_no_more_is_sent_again_from_the_journal(party, make_latents):
    peer = party.join()
    records = [party.keep(make_latents(number=number)) for number in range(3)]
    peer.recent.clear()
    party.outbound.new()
    party.peers.send_again(peer, 1)
    found = party.outbound.new()
    assert [(record, after) for _, _, record, after in found] == [
        (records[0], 1),
        (records[1], records[0]),
        (records[2], records[1]),
    ]
    assert [message.number for _, message, _, _ in found] == [0, 1, 2]


def test_peer_that_has_everything_is_sent_nothing_again(party, make_latents):
    peer = party.join()
    last = party.keep(make_latents())
    party.outbound.new()
    party.peers.send_again(peer, last)
    assert party.outbound.new() == []


# -- who comes and goes ----------------------------------------------------------------------------


def test_newest_program_of_a_name_replaces_the_one_before(party):
    party.join(instance="i1")
    party.outbound.new()
    party.join(instance="i2")
    (identity, bye, _, _), *_ = party.outbound.new()
    assert identity == b"i1"
    assert isinstance(bye, Bye)
    assert party.peers.get(b"i1") is None
    assert party.peers.get(b"i2") is not None


def test_same_program_that_says_hello_again_is_met_with_what_is_known_of_it(party):
    peer = party.join()
    again, is_met = party.peers.meet(b"i1", "", hello(last_record=1), 5.0)
    assert again is peer
    assert is_met
    assert (peer.confirmed, peer.used_s) == (1, 5.0)


@pytest.mark.parametrize(
    ("identity", "key", "fields", "reason"),
    [
        (b"v", "", {"role": "viewer", "instance": "v"}, "a viewer listens"),
        (b"other", "", {"instance": "i9"}, "the routing id"),
        (b"i9", "", {"instance": "i9", "last_record": 1000}, "the journal lacks"),
        (b"i9", "another", {"instance": "i9"}, "somebody with another key"),
        (b"i1", "", {"name": "streamer"}, "nobody can be called 'streamer'"),
    ],
)
def test_peer_that_cannot_take_part_is_told_why(party, identity, key, fields, reason):
    party.join()
    assert party.peers.why_not_welcome(identity, key, hello(**fields)).startswith(reason)


def test_program_that_was_replaced_cannot_come_back(party):
    party.join(instance="i1")
    party.join(instance="i2")
    assert party.peers.why_not_welcome(b"i1", "", hello()) == "another program took this part over"


def test_another_key_takes_a_part_over_once_the_first_is_silent(party):
    peer = party.join()
    peer.is_silent = True
    assert party.peers.why_not_welcome(b"i9", "another", hello(instance="i9")) == ""


def test_silence_and_return_are_noticed_once(party):
    peer = party.join()
    assert party.peers.notice_silence(1.9, 2.0) == []
    assert party.peers.notice_silence(2.1, 2.0) == [peer]
    assert peer.is_silent
    assert party.peers.notice_silence(3.0, 2.0) == []
    party.peers.hear(b"i1~", "", Heartbeat(instance="i1"), now_s=3.1)
    assert party.peers.notice_silence(3.2, 2.0) == [peer]
    assert not peer.is_silent


def test_of_one_that_does_not_beat_silence_says_nothing(party):
    party.join(beats=False)
    assert party.peers.notice_silence(1e6, 2.0) == []


def test_heart_counts_only_on_the_connection_of_its_own(party):
    peer = party.join()
    party.peers.hear(b"i1", "", Heartbeat(instance="i1"), now_s=9.0)
    party.peers.hear(b"x~", "", Heartbeat(instance="i1"), now_s=9.0)
    party.peers.hear(b"i1~", "another key", Heartbeat(instance="i1"), now_s=9.0)
    assert peer.heard_s == 0.0


def test_silent_peers_are_forgotten_in_the_end_but_never_the_instrument(party):
    party.join()
    party.join("stem", instance="i2", role="instrument")
    party.peers.instrument = b"i2"
    party.peers.forget(FORGET_S)
    assert [peer.identity for peer in party.peers] == [b"i1", b"i2"]
    party.peers.forget(FORGET_S + 1)
    assert [peer.identity for peer in party.peers] == [b"i2"]


# -- what comes from them --------------------------------------------------------------------------


def test_messages_are_acted_on_in_order_and_a_gap_is_told_at_once(party):
    peer = party.join()
    party.outbound.new()
    second = Numbered(Bye(reason="second"), "i1", 2, 1)
    first = Numbered(Bye(reason="first"), "i1", 1, 0)
    assert party.peers.in_order(peer, second, [], "", now_s=1.0) == []
    ((_, beat, _, _),) = party.outbound.new()
    assert isinstance(beat, Heartbeat)
    assert (beat.received, beat.is_missing) == (0, True)
    turns = party.peers.in_order(peer, first, [], "", now_s=1.0)
    assert [turn.numbered for turn in turns] == [first, second]


def test_message_that_comes_again_is_not_acted_on_and_its_ack_is_said_again(party):
    peer = party.join()
    first = Numbered(Bye(), "i1", 1, 0)
    party.peers.in_order(peer, first, [], "", now_s=1.0)
    peer.acks.append(ack(1))
    party.peers.send_acks(waiting=0, most=1)
    party.outbound.new()
    assert party.peers.in_order(peer, first, [], "", now_s=1.0) == []
    ((_, again, _, _),) = party.outbound.new()
    assert isinstance(again, Ack)
    assert again.sequence == 1


def test_welcome_does_not_speak_of_what_has_no_ack_yet(party):
    peer = party.join("stem", role="instrument")
    peer.inbox.skip_to(5)
    assert party.peers.welcome(peer).received == 5
    peer.acks.append(ack(4, number=3))
    assert party.peers.welcome(peer).received == 3
