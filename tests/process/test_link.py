"""A link and a streamer that the test plays: what the link does when words are lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from streamer.codec import decode_numbered
from streamer.link import Link
from streamer.messages import Ack, AnyMessage, Bye, Event, Heartbeat, Hello, Message, Resend, Score, Welcome
from streamer.wire import Router

WAIT_S = 5.0


class Played:
    """A streamer that says what the test wants and hears everything."""

    def __init__(self) -> None:
        self.router = Router("tcp://127.0.0.1:0")
        self.peer = b""
        self.heard: list[tuple[int, AnyMessage]] = []

    def hear(self, until: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not until():
            assert time.monotonic() < deadline_s, self.heard
            for peer, _, parts in self.router.receive(0.02):
                numbered = decode_numbered(parts)
                if isinstance(numbered.message, Heartbeat):
                    continue
                self.peer = peer
                self.heard.append((numbered.sequence, numbered.message))

    def say(self, message: Message, **numbers: int) -> None:
        assert self.router.send(self.peer, message, **numbers)

    def welcome(self, session: str = "s", **fields: int) -> None:
        self.say(Welcome(session=session, window=4, next_number=0, durability="written", **fields))

    def count(self, kind: type) -> int:
        return sum(isinstance(message, kind) for _, message in self.heard)


@pytest.fixture
def played() -> Iterator[Played]:
    made = Played()
    yield made
    made.router.close(0)


@pytest.fixture
def link(played: Played) -> Iterator[Link]:
    made: list[Link] = []
    address = played.router.address
    thread = threading.Thread(target=lambda: made.append(Link(address, role="agent", name="a")))
    thread.start()
    played.hear(lambda: played.count(Hello) == 1)
    played.welcome()
    thread.join(WAIT_S)
    yield made[0]
    made[0].abandon()


def score(identifier: str) -> Score:
    return Score(session="s", id=identifier, objective="counts", value=1.0, variance=1.0)


def receive(link: Link, kind: type) -> AnyMessage:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        message = link.receive(0.02)
        if isinstance(message, kind):
            return message
    raise AssertionError(f"no {kind.__name__} came")


def test_refusal_whose_ack_was_lost_is_learnt_from_the_next_ack(played, link):
    for identifier in ("a", "b", "c"):
        link.send(score(identifier))
    played.hear(lambda: played.count(Score) == 3)
    played.say(Ack(session="s", number=-1, status="written", sequence=3, refused=(2,)))
    refusal = receive(link, Ack)
    assert (refusal.status, refusal.sequence) == ("refused", 2)
    assert receive(link, Ack).status == "written"
    assert [ack.sequence for ack in link.refused] == [2]
    played.say(Ack(session="s", number=-1, status="written", sequence=3, refused=(2,)))
    played.say(Event(at_s=0.0, what="end"), sequence=1)
    receive(link, Event)
    assert len(link.refused) == 1  # said again, and known


def test_what_was_lost_is_asked_for_and_comes_in_order(played, link):
    played.say(Event(at_s=0.0, what="third"), sequence=9, after=7)
    thread = threading.Thread(target=lambda: said.extend(receive(link, Event) for _ in range(3)))
    said: list[AnyMessage] = []
    thread.start()
    played.hear(lambda: played.count(Resend) > 0)
    played.say(Event(at_s=0.0, what="first"), sequence=4)
    played.say(Event(at_s=0.0, what="second"), sequence=7, after=4)
    played.say(Event(at_s=0.0, what="third"), sequence=9, after=7)
    thread.join(WAIT_S)
    assert [event.what for event in said] == ["first", "second", "third"]
    assert link.last_record == 9


def test_streamer_that_was_restarted_is_told_who_we_are_and_what_it_lacks(played, link):
    for identifier in ("a", "b"):
        link.send(score(identifier))
    played.hear(lambda: played.count(Score) == 2)
    played.say(Ack(session="s", number=-1, status="refused", reason="hello first; say Hello"))
    listening = threading.Thread(target=lambda: link.receive(2.0))
    listening.start()
    played.hear(lambda: played.count(Hello) == 2)
    assert [m for _, m in played.heard if isinstance(m, Hello)][-1].resumes_from == 1
    played.heard.clear()
    played.welcome(received=1)
    played.hear(lambda: played.count(Score) == 1)
    assert [(n, m.id) for n, m in played.heard if isinstance(m, Score)] == [(2, "b")]
    listening.join(WAIT_S)


def test_another_session_at_the_address_is_not_gone_on_with(played, link):
    played.welcome(session="of another night")
    with pytest.raises(ConnectionError, match="there is now another session, of another night, not s"):
        receive(link, Bye)
