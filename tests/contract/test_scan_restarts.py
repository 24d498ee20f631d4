"""What every policy promises that asks for scans too: few of them, bit for bit the same after a restart."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import pytest

from agents.config import AgentConfig
from agents.history import replay
from agents.next_scan import ScanConfig
from agents.policies import POLICIES, make_agent
from agents.protocol import UnknownOutcome
from agents.site_agent import SiteAgent
from streamer.messages import Suggestion
from tests.interrupted_sessions import (
    FIELD_NM,
    TURNS,
    Turn,
    bits,
    check_recalled_as_decided,
    decide,
    decided,
    go_on,
    journal_until,
    latents,
    outcome,
    play,
)

EVERY = 4


def make(policy: str) -> SiteAgent:
    """Make an agent that finds news in every frame: the noise of these is four times what they say."""
    scan = ScanConfig(every=EVERY, field_share=0.4)
    config = AgentConfig(policy=policy, max_pending=3, max_per_frame=2, seed=5, scan=scan)  # type: ignore[arg-type]
    return make_agent(config)


@cache
def uninterrupted(policy: str) -> list[Turn]:
    return play(make(policy))


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def suggested(turns: list[Turn]) -> list[Suggestion]:
    return [d for turn in turns for d in turn.decisions if isinstance(d, Suggestion)]


def test_scans_are_asked_for_and_at_most_one_in_so_many_suggestions_is_one(policy):
    made = suggested(uninterrupted(policy))
    at = [number for number, one in enumerate(made, start=1) if one.action == "scan"]
    assert len(at) >= 4
    assert at[0] >= EVERY
    assert min(np.diff(at)) >= EVERY
    assert len({one.id for one in made}) == len(made)
    for number in at:
        scan = made[number - 1]
        assert scan.field_of_view_nm == pytest.approx((0.4 * FIELD_NM, 0.4 * FIELD_NM))
        assert scan.shape == (256, 256)
        assert np.abs(scan.position_nm).max() + 0.2 * FIELD_NM <= FIELD_NM / 2
        assert "changed" in scan.reason
        assert "65.5 ms of beam" in scan.reason
        assert "the dose of 0.66 spectra" in scan.reason


def test_after_a_checkpoint_the_rest_is_bit_equal(policy):
    turns = uninterrupted(policy)
    one = make(policy)
    for done in range(TURNS):
        go_on(one, turns[done : done + 1])
        other = make(policy)
        other.restore(*one.checkpoint())
        assert other.statistics() == one.statistics()
        assert go_on(other, turns[done + 1 : done + 7]) == decided(turns[done + 1 : done + 7])


def test_a_recalled_session_leaves_the_state_that_the_decided_one_did(policy):
    check_recalled_as_decided(make(policy), make(policy), uninterrupted(policy))


def test_an_agent_that_is_told_its_history_goes_on_bit_equal(policy):
    turns = uninterrupted(policy)
    for done in range(1, TURNS + 1, 3):
        agent, last = make(policy), turns[done - 1]
        history = replay(agent, journal_until(turns[:done], 0))
        owed = [bits(decision) for decision in decide(agent, history.told)]
        assert owed == [bits(decision) for decision in last.decisions]
        assert go_on(agent, turns[done : done + 3]) == decided(turns[done : done + 3])


def test_counts_add_up_and_a_scan_ends_once(policy):
    one = make(policy)
    made = []
    for number in range(12):
        one.tell(latents(number))
        while (suggestion := one.ask()) is not None:
            made.append(suggestion)
            one.tell(outcome(suggestion, "refused" if number % 3 == 2 else "ok"))
    scans = [suggestion for suggestion in made if suggestion.action == "scan"]
    counts = one.statistics()
    assert counts["scans"] == len(scans) >= 2
    assert counts["suggested"] == len(made) == counts["ok"] + counts["refused"] + counts["pending"]
    assert all(observation.id not in {scan.id for scan in scans} for observation in one.observations)
    with pytest.raises(UnknownOutcome):
        one.tell(outcome(scans[0]))


def test_while_a_scan_is_under_way_no_other_is_asked_for(policy):
    one = make(policy)
    scans = 0
    for number in range(12):
        one.tell(latents(number))
        while (suggestion := one.ask()) is not None:
            scans += suggestion.action == "scan"
            if suggestion.action != "scan":
                one.tell(outcome(suggestion))
    assert scans == 1


def test_a_withdrawn_scan_is_news_again(policy):
    one = make(policy)
    scans: list[Suggestion] = []
    for number in range(8):
        one.tell(latents(number))
        while (suggestion := one.ask()) is not None:
            is_scan = suggestion.action == "scan"
            scans += [suggestion] * is_scan
            one.tell(outcome(suggestion, "withdrawn" if is_scan else "ok"))
    assert len(scans) >= 2
    gone = one._scans.state()
    assert gone is not None
    assert gone.looked_nm.shape == (0, 2)


def test_a_new_encoder_or_registration_begins_anew_and_knows_its_scans_still(policy):
    one = make(policy)
    scan = None
    for number in range(12):
        one.tell(latents(number))
        while scan is None and (suggestion := one.ask()) is not None:
            if suggestion.action == "scan":
                scan = suggestion
            else:
                one.tell(outcome(suggestion))
    assert scan is not None
    one.tell(latents(12, revision="new"))
    one.tell(outcome(scan))
    kept = one._scans.state()
    assert kept is not None
    assert kept.looked_nm.shape == (0, 2)
    assert not kept.known.changed.any()


def test_without_scans_in_the_configuration_none_is_asked_for(policy):
    one = make_agent(AgentConfig(policy=policy, max_per_frame=0))
    for number in range(10):
        one.tell(latents(number))
        suggestion = one.ask()
        assert suggestion.action == "spectrum"
        one.tell(outcome(suggestion))
    assert one._scans.state() is None
    assert "scans" not in one.statistics()
    assert msgspec.to_builtins(one.config.scan)["every"] == 0
