"""Holds park the beam, tell why, and let it go when the last cause is gone; no sockets, no clock."""

from __future__ import annotations

import pytest

from streamer.config import HubConfig
from streamer.holds import AGENT, DISK, MODEL, SILENT, SLOW, STUCK, Holds
from streamer.messages import Hello
from streamer.peers import Peer

CONFIG = HubConfig(silent_after_s=2.0, stuck_after_s=10.0, give_up_after_s=60.0, retry_model_s=5.0)


class Told:
    """What the instrument and the operator were told, in order."""

    def __init__(self, has_instrument: bool = True) -> None:
        self.words: list[str] = []
        self.has_instrument = has_instrument
        self.holds = Holds(CONFIG, instruct=self._instruct, tell=self._tell, show=self._show)

    def _instruct(self, action: str, why: str) -> bool:
        if self.has_instrument:
            self.words.append(f"{action}: {why}")
        return self.has_instrument

    def _tell(self, what: str, reason: str, detail: str) -> None:
        self.words.append(f"{what} {reason} {detail}".rstrip())

    def _show(self) -> None:
        self.words.append("shown")

    def new(self) -> list[str]:
        """Give what was told since the last time."""
        words, self.words = self.words, []
        return words


def peer(*, beats: bool = True, is_silent: bool = False, used_s: float = 0.0) -> Peer:
    hello = Hello(role="instrument", name="x", instance="i", beats=beats)
    return Peer(b"i", hello, "instrument", "", 0.0, is_silent=is_silent, used_s=used_s)


def test_first_hold_is_told_parks_and_is_shown():
    told = Told()
    told.holds.hold(DISK, "no space")
    assert told.new() == ["held disk full no space", "park: disk full", "shown"]
    assert list(told.holds) == [DISK]


def test_second_hold_does_not_park_again_and_the_same_one_says_nothing():
    told = Told()
    told.holds.hold(DISK)
    told.new()
    told.holds.hold(SLOW)
    assert told.new() == ["held analysis stuck", "shown"]
    told.holds.hold(SLOW)
    assert told.new() == []


def test_beam_goes_on_with_the_last_release_only():
    told = Told()
    told.holds.hold(DISK)
    told.holds.hold(SLOW)
    told.new()
    told.holds.release(DISK)
    assert told.new() == ["released disk full", "shown"]
    told.holds.release(SLOW)
    assert told.new() == ["released analysis stuck", "go: no more analysis stuck", "shown"]
    assert not told.holds


def test_release_of_what_is_not_held_says_nothing():
    told = Told()
    told.holds.release(DISK)
    assert told.new() == []


def test_instrument_that_comes_during_a_hold_is_parked():
    told = Told(has_instrument=False)
    told.holds.hold(DISK)
    assert told.new() == ["held disk full", "shown"]
    told.has_instrument = True
    told.holds.hold(DISK)
    assert told.new() == ["park: disk full"]


def agent(heard_s: float, *, beats: bool = True) -> Peer:
    return Peer(b"a", Hello(role="agent", name="a", instance="a", beats=beats), "agent a", "", heard_s)


def test_agents_are_held_when_the_last_of_them_is_silent_and_until_one_is_heard():
    told = Told()
    told.holds.watch_agents([], 1e6)
    told.holds.watch_agents([agent(90.0), agent(97.0), agent(0.0, beats=False)], 100.0)
    assert list(told.holds) == []
    told.holds.watch_agents([agent(90.0), agent(97.0)], 102.1)
    assert list(told.holds) == [AGENT]
    told.holds.watch_agents([], 103.0)
    assert list(told.holds) == [AGENT], "one that is forgotten is no better than one that is silent"
    told.holds.watch_agents([agent(90.0), agent(103.0)], 103.1)
    assert list(told.holds) == []


def test_silent_instrument_is_held_until_it_is_heard():
    told = Told()
    told.holds.watch_instrument(peer(is_silent=True), 100.0, frame_s=0.5, request_s=0.0)
    assert list(told.holds) == [SILENT]  # not stuck as well: of a silent one that is not known
    told.holds.watch_instrument(peer(used_s=100.0), 100.0, frame_s=0.5, request_s=0.0)
    assert not told.holds


# Silence of 2 s, two frames of 0.5 s and a request of 4 s are allowed: 7 s.
@pytest.mark.parametrize(("idle_s", "is_stuck"), [(6.9, False), (7.1, True)])
def test_instrument_is_stuck_when_frames_and_request_should_long_be_done(idle_s, is_stuck):
    told = Told()
    told.holds.watch_instrument(peer(used_s=100.0), 100.0 + idle_s, frame_s=0.5, request_s=4.0)
    assert (STUCK in told.holds) is is_stuck


def test_before_its_first_frame_no_instrument_is_stuck():
    told = Told()
    told.holds.watch_instrument(peer(used_s=0.0), 1e6, frame_s=0.0, request_s=0.0)
    assert not told.holds


@pytest.mark.parametrize("instrument", [None, peer(beats=False)])
def test_instrument_that_left_or_does_not_beat_ends_the_holds_of_its_silence(instrument):
    told = Told()
    told.holds.hold(SILENT)
    told.holds.hold(STUCK)
    told.holds.watch_instrument(instrument, 1e6, frame_s=1.0, request_s=0.0)
    assert not told.holds


@pytest.mark.parametrize(("busy_s", "is_slow"), [(10.0, False), (10.1, True)])
def test_analysis_that_takes_too_long_holds(busy_s, is_slow):
    told = Told()
    told.holds.watch_analysis(busy_s)
    assert (SLOW in told.holds) is is_slow


def test_doubted_model_gets_a_frame_every_few_seconds_and_is_parked_again_when_it_fails():
    told = Told()
    told.holds.doubt_model("frame 7", now_s=100.0)
    assert told.new() == ["held model not finite frame 7", "park: model not finite", "shown"]
    told.holds.give_model_a_try(104.9)
    assert told.new() == []
    told.holds.give_model_a_try(105.0)
    assert told.new() == ["go: one more try"]
    assert MODEL in told.holds
    told.holds.doubt_model("frame 8", now_s=106.0)
    assert told.new() == ["park: model not finite"]
    told.holds.give_model_a_try(110.9)
    assert told.new() == []


def test_doubted_model_gets_no_frame_while_something_else_holds():
    told = Told()
    told.holds.doubt_model("frame 7", now_s=100.0)
    told.holds.hold(DISK)
    told.new()
    told.holds.give_model_a_try(200.0)
    assert told.new() == []
