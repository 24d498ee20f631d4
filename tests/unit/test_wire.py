"""The sockets by themselves: where they bind and connect, whom they let in, what a viewer can count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamer.codec import decode, decode_numbered, encode
from streamer.keys import KeysError, Peer, PeerKeys, ServerKeys, allow, revoke, write_pair
from streamer.messages import Bye, Event, Hello, Role
from streamer.wire import Dealer, Publisher, Router, Subscriber, new_pair

HERE = "tcp://127.0.0.1:0"
WAIT_S = 10.0
IDENTITY = b"i" * 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a streamer's key folder in which nobody is allowed yet."""
    folder = tmp_path / "keys"
    write_pair(folder / "streamer.key", name="streamer", role="streamer", pair=new_pair())
    return folder


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    """Close in the end what a test opened."""
    sockets: list[Any] = []

    def note(socket: Any) -> Any:
        sockets.append(socket)
        return socket

    yield note
    for socket in sockets:
        socket.close()


def client(folder: Path, name: str = "a", role: Role = "agent", *, is_allowed: bool = True) -> PeerKeys:
    """Draw a client's pair, and allow it unless told otherwise."""
    pair = new_pair()
    if is_allowed:
        allow(folder, Peer(name=name, role=role, public=pair.public))
    return PeerKeys(name, role, pair.public, pair.secret, ServerKeys(folder).public)


def wait_for(question: Callable[[], Any]) -> Any:
    """Ask until the answer is true, or time is up."""
    end_s = time.monotonic() + WAIT_S
    while not (answer := question()) and time.monotonic() < end_s:
        threading.Event().wait(0.01)
    return answer


def say(dealer: Dealer, parts: list[Any]) -> Dealer:
    """Send as soon as there is a connection."""
    assert wait_for(lambda: dealer.send(parts))
    return dealer


# -- where a socket binds and connects -------------------------------------------------------------


def test_port_in_use_is_named_with_a_cure(opened):
    first = opened(Router(HERE))
    with pytest.raises(OSError, match="choose another port"):
        Router(first.address)
    with pytest.raises(OSError, match="choose another port"):
        Publisher(first.address)


@pytest.mark.parametrize("make", [Router, Publisher])
@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.1", "[::]", "127.0.0.1.example.org", "eth0"])
def test_socket_off_this_machine_does_not_bind_without_keys_and_says_what_to_do(make, host):
    with pytest.raises(OSError, match=r"without keys .*`probeloop keys new .*--keys FOLDER"):
        make(f"tcp://{host}:0")


def test_socket_with_keys_binds_to_every_address_of_this_machine(opened, folder):
    assert opened(Router("tcp://0.0.0.0:0", ServerKeys(folder))).address.startswith("tcp://0.0.0.0:")
    assert opened(Publisher("tcp://0.0.0.0:0", ServerKeys(folder))).address.startswith("tcp://0.0.0.0:")


@pytest.mark.parametrize("connect", [lambda a: Dealer(a, IDENTITY), Subscriber])
def test_client_does_not_speak_in_the_clear_to_another_machine(connect):
    with pytest.raises(ConnectionError, match=r"without keys .* --key FILE"):
        connect("tcp://192.0.2.1:5555")


@pytest.mark.parametrize("address", ["5555", "udp://127.0.0.1:1", "http://127.0.0.1:80", ""])
def test_address_that_is_none_is_refused(address):
    for make in (Router, Publisher, Subscriber, lambda a: Dealer(a, IDENTITY)):
        with pytest.raises(OSError, match="it takes tcp://HOST:PORT"):
            make(address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:none", "tcp://127.0.0.1", "ipc://"])
def test_address_that_cannot_be_connected_to_is_refused_by_name(address):
    with pytest.raises(ConnectionError, match=f"cannot connect to {address}"):
        Dealer(address, IDENTITY)


def test_key_file_whose_two_keys_do_not_belong_together_is_refused(folder):
    good, other = client(folder), new_pair()
    with pytest.raises(KeysError, match="do not belong together"):
        Dealer(HERE, IDENTITY, PeerKeys("a", "agent", good.public, other.secret, good.streamer))


# -- who is heard ----------------------------------------------------------------------------------


def test_router_says_with_which_key_each_message_came(opened, folder):
    keys = [client(folder, "a"), client(folder, "b", "instrument")]
    router = opened(Router(HERE, ServerKeys(folder)))
    for number, key in enumerate(keys):
        say(opened(Dealer(router.address, bytes([number]) * 16, key)), encode(Bye()))
    came = {peer: key for _ in keys for peer, key, _ in router.receive(WAIT_S, most=1)}
    assert came == {b"\0" * 16: keys[0].public, b"\1" * 16: keys[1].public}


def test_router_without_keys_hears_whoever_is_on_this_machine(opened):
    router = opened(Router(HERE))
    say(opened(Dealer(router.address, IDENTITY)), encode(Bye()))
    ((peer, key, parts),) = router.receive(WAIT_S)
    assert (peer, key, type(decode(parts))) == (IDENTITY, "", Bye)


def test_stranger_is_not_heard_until_the_key_is_allowed_and_then_comes_in_by_itself(opened, folder):
    stranger = client(folder, is_allowed=False)
    router = opened(Router(HERE, ServerKeys(folder)))
    dealer = opened(Dealer(router.address, IDENTITY, stranger))
    assert wait_for(lambda: router.refused["unknown key"]) == 1
    assert dealer.send(encode(Bye())) is False
    allow(folder, Peer(name="a", role="agent", public=stranger.public))
    say(dealer, encode(Bye()))
    ((peer, key, _),) = router.receive(WAIT_S)
    assert (peer, key) == (IDENTITY, stranger.public)


def test_revoked_peer_is_neither_heard_nor_answered_on_its_open_connection(opened, folder):
    router = opened(Router(HERE, ServerKeys(folder)))
    dealer = opened(Dealer(router.address, IDENTITY, client(folder)))
    say(dealer, encode(Hello(role="agent", name="x")))
    assert len(router.receive(WAIT_S)) == 1
    assert router.send(IDENTITY, Bye(reason="before"))
    revoke(folder, "a")
    assert wait_for(lambda: not router.send(IDENTITY, Bye(reason="between")))
    say(dealer, encode(Bye()))
    assert router.receive(1.0) == []
    assert router.refused["revoked key"] == 1


def test_nobody_speaks_or_is_answered_under_the_identity_of_another_key(opened, folder):
    first, second = client(folder, "a"), client(folder, "b")
    router = opened(Router(HERE, ServerKeys(folder)))
    say(opened(Dealer(router.address, IDENTITY, first)), encode(Bye()))
    assert len(router.receive(WAIT_S)) == 1
    say(opened(Dealer(router.address, IDENTITY, second)), encode(Bye()))
    assert router.receive(1.0) == []
    assert router.refused["another's name"] == 1


def test_router_with_keys_does_not_answer_a_peer_that_it_never_heard(opened, folder):
    router = opened(Router(HERE, ServerKeys(folder)))
    assert router.send(b"nobody", Bye()) is False


def test_nobody_is_let_in_when_nobody_answers_at_the_door(opened, folder, monkeypatch):
    monkeypatch.setattr("streamer.wire._Door", lambda *_: None)
    router = opened(Router(HERE, ServerKeys(folder)))
    dealer = opened(Dealer(router.address, IDENTITY, client(folder)))
    assert router.receive(1.0) == []
    assert dealer.send(encode(Bye())) is False


def test_message_without_a_key_behind_it_is_not_delivered(opened, folder, monkeypatch):
    monkeypatch.setattr("streamer.wire._serve_with_keys", lambda *_: None)  # as if the socket let all in
    router = opened(Router(HERE, ServerKeys(folder)))
    say(opened(Dealer(router.address, IDENTITY)), encode(Bye()))
    assert router.receive(1.0) == []
    assert router.refused == {"no key": 1}


def test_part_over_the_limit_is_not_delivered(opened, folder):
    router = opened(Router(HERE, ServerKeys(folder), max_part_bytes=1 << 20))
    dealer = opened(Dealer(router.address, IDENTITY, client(folder)))
    say(dealer, [bytes((1 << 20) + 1)])
    assert router.receive(1.0) == []
    # the connection that sent too much was cut; the next one is heard
    received = wait_for(lambda: dealer.send([b"small"]) and router.receive(0.2))
    assert {len(part) for _, _, parts in received for part in parts} == {5}


def test_more_peers_than_are_remembered_are_all_heard(opened, folder, monkeypatch):
    monkeypatch.setattr("streamer.wire._MOST_PEERS", 2)
    keys = client(folder)
    router = opened(Router(HERE, ServerKeys(folder)))
    for number in range(4):
        say(opened(Dealer(router.address, bytes([number]) * 16, keys)), encode(Bye()))
        assert len(router.receive(WAIT_S)) == 1
    assert router.send(b"\0" * 16, Bye()) is False  # forgotten until it says a word again
    assert router.send(b"\3" * 16, Bye()) is True


def test_router_raises_the_limit_of_open_connections_to_the_highest(opened, folder):
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        opened(Router(HERE, ServerKeys(folder)))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_closing_leaves_no_thread_behind(folder):
    router, publisher = Router(HERE, ServerKeys(folder)), Publisher(HERE, ServerKeys(folder))
    assert [thread.name for thread in threading.enumerate()].count("door") == 2
    router.close()
    publisher.close()
    assert wait_for(lambda: "door" not in [thread.name for thread in threading.enumerate()])


# -- the lossy stream ------------------------------------------------------------------------------


class Show:
    """A publisher that says in each event how many it has published, and viewers that keep what they saw."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.published = 0

    def publish(self, image: str = "") -> None:
        self.published += 1
        self.publisher.publish(Event(at_s=0.0, what="test", detail=f"{self.published} {image}"))

    def until_seen_by(self, viewer: Subscriber) -> list[int]:
        """Publish until the viewer sees the latest; return the numbers of all that it saw."""
        seen: list[int] = []

        def is_seen() -> bool:
            self.publish()
            seen.extend(see(viewer, 0.05))
            return seen[-1:] == [self.published]

        assert wait_for(is_seen)
        return seen


def see(viewer: Subscriber, timeout_s: float = 0.5) -> list[int]:
    """Take what came, until nothing more does; return the numbers of it."""
    seen = []
    while (came := viewer.receive(timeout_s)) is not None:
        seen.append(int(came.detail.split()[0]))  # type: ignore[union-attr]
    return seen


def test_publisher_numbers_each_kind_from_one(opened):
    publisher = opened(Publisher(HERE))
    with zmq.Context() as context, context.socket(zmq.SUB) as raw:
        raw.subscribe(b"")
        raw.connect(publisher.address)
        assert wait_for(lambda: publisher.publish(Event(at_s=0.0, what="x")) or raw.poll(50))
        while raw.poll(50):
            raw.recv_multipart()
        for _ in range(2):
            publisher.publish(Bye())
        rows = [decode_numbered(raw.recv_multipart()[1:]) for _ in range(2)]
    assert [(row.sequence, row.after) for row in rows] == [(1, 0), (2, 1)]
    assert rows[0].sender == rows[1].sender != ""


def test_viewer_that_is_behind_counts_exactly_what_it_missed(opened):
    show = Show(opened(Publisher(HERE)))
    viewer = opened(Subscriber(show.publisher.address, ("event",)))
    seen = show.until_seen_by(viewer)
    assert viewer.missed.total() == 0
    for _ in range(1000):
        show.publish("x" * 300_000)  # together more than the buffers of a connection hold
    seen += see(viewer) + show.until_seen_by(viewer)
    assert len(seen) + viewer.missed["event"] == show.published - seen[0] + 1
    assert viewer.missed["event"] > 0


def test_viewer_counts_what_it_missed_of_a_streamer_that_was_started_again(opened):
    first = Show(Publisher(HERE))
    viewer = opened(Subscriber(first.publisher.address))
    first.until_seen_by(viewer)
    first.publisher.close()
    again = Show(opened(wait_for(lambda: _publisher_at(first.publisher.address))))
    seen = again.until_seen_by(viewer)
    assert len(seen) + viewer.missed["event"] == again.published


def _publisher_at(address: str) -> Publisher | None:
    try:
        return Publisher(address)
    except OSError:  # the port is free a moment after the first has closed
        return None


def test_every_role_may_look_on_and_a_stranger_may_not(opened, folder):
    show = Show(opened(Publisher(HERE, ServerKeys(folder))))
    address = show.publisher.address
    strangers = [
        opened(Subscriber(address, keys=client(folder, is_allowed=False))),
        opened(Subscriber(address)),
    ]
    for role in ("viewer", "agent", "operator", "instrument"):
        show.until_seen_by(opened(Subscriber(address, keys=client(folder, role, role))))
    assert [see(stranger, 0.0) for stranger in strangers] == [[], []]
    assert show.publisher.refused["unknown key"] >= 1


def test_revoked_viewer_sees_nothing_more_and_the_others_go_on_and_count(opened, folder):
    show = Show(opened(Publisher(HERE, ServerKeys(folder))))
    address = show.publisher.address
    good = opened(Subscriber(address, keys=client(folder, "good", "viewer")))
    bad = opened(Subscriber(address, keys=client(folder, "bad", "viewer")))
    show.until_seen_by(bad)
    seen = show.until_seen_by(good)
    revoke(folder, "bad")

    def is_refused() -> int:
        show.publish()
        see(bad, 0.0)  # one that does not read what came does not come again either
        seen.extend(see(good, 0.01))
        return show.publisher.refused["unknown key"]

    assert wait_for(is_refused)
    seen += show.until_seen_by(good)
    assert see(bad) == []
    assert len(seen) + good.missed["event"] == show.published - seen[0] + 1
    assert show.publisher.address == address


def test_waker_ends_a_wait_at_once_and_however_often(opened):
    router = opened(Router("tcp://127.0.0.1:0"))
    waker = router.waker()
    for _ in range(100_000):  # more than the pair holds
        waker.wake()
    started_s = time.monotonic()
    assert router.receive(20.0) == []
    assert time.monotonic() - started_s < 10.0
    waker.close()


def test_waker_does_no_harm_when_the_router_is_closed():
    router = Router("tcp://127.0.0.1:0")
    waker = router.waker()
    router.close()
    waker.wake()
    waker.close()


def test_router_waits_its_time_after_its_waker_is_closed(opened):
    router = opened(Router("tcp://127.0.0.1:0"))
    router.waker().close()
    router.receive(1.0)
    started_s = time.monotonic()
    router.receive(0.2)
    assert time.monotonic() - started_s >= 0.15
