"""What every goal promises to whoever restarts the agent: it goes on bit for bit where it was."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.config import AgentConfig, TradeOffConfig
from agents.objective import ObjectiveConfig
from agents.policies import make_agent
from agents.site_agent import SiteAgent
from agents.stall import StallConfig
from agents.stopping import StoppingConfig
from streamer.messages import Suggestion
from tests import quiet_botorch
from tests.contract.test_agents import latents, session
from tests.interrupted_sessions import (
    Turn,
    check_recalled_as_decided,
    decided,
    decided_otherwise,
    go_on,
    play,
)

# A spectrum with an edge, without noise: what ``outcome`` draws at every ninth atom.
TARGET = Path(tempfile.mkdtemp()) / "target.txt"
_EV = np.arange(256.0)
np.savetxt(TARGET, np.stack([_EV, 2e7 * np.maximum(_EV, 5) ** -2.5 + 200.0 * (_EV >= 99)], axis=1))

GOALS: dict[str, dict[str, Any]] = {
    "minimise": {"goal": "minimise"},
    "map": {"goal": "map"},
    "plain map": {"goal": "map", "site_weight": "none"},
    "level set": {"goal": "level_set", "level": 0.002, "stopping": StoppingConfig(classified_share=0)},
    "discover": {"goal": "discover"},
    "match": {
        "goal": "match",
        "objective": ObjectiveConfig(kind="similarity", target=str(TARGET), window_ev=(60.0, 250.0)),
    },
    "thompson": {"batch": "thompson"},
    "trade off": {
        "goal": "trade_off",
        "trade_off": TradeOffConfig(second="minimise"),
        "second_objective": ObjectiveConfig(
            label="zero loss", window_ev=(4.0, 8.0), background_model="none", normalise="none"
        ),
    },
    "stalled": {"stall": StallConfig(after_measurements=1, every=2)},
    "several models": {"features": ("latents + position", "position", "trend + position")},
    "several drawn": {"features": ("latents", "latents + angle"), "angle_fold": 3, "batch": "thompson"},
    "windows": {"features": ("windows",)},
    "windows beside": {"features": ("windows + position", "latents + position")},
    "stopped": {"stopping": StoppingConfig(improvement_below=0.5, improvement_in_a_row=6)},
}


def make(name: str) -> SiteAgent:
    if name == "trade off":
        quiet_botorch.load()
    return make_agent(AgentConfig(max_pending=3, max_per_frame=2, seed=5, **GOALS[name]))


@cache
def uninterrupted(name: str) -> list[Turn]:
    return play(make(name))


@pytest.fixture(params=sorted(GOALS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


WORDS: dict[str, str | tuple[str, ...]] = {
    "minimise": "expected to improve on",
    "map": "the map is least sure of what many",
    "plain map": "the map is least sure:",
    "level set": ("may lie on either side of", "lies nearest to"),
    "discover": "the least usual",
    "match": "expected to match the target",
    "thompson": "the best on one of the maps",
    "trade off": "expected to add most to the trade-off",
    "stalled": "nothing better in",
    "several models": "expected to improve on",
    "several drawn": "the best on one of the maps",
    "windows": "expected to improve on",
    "windows beside": "expected to improve on",
    "stopped": "expected to improve on",
}


def test_the_session_that_these_tests_interrupt_follows_its_goal(name):
    decisions = [d for turn in uninterrupted(name) for d in turn.decisions if isinstance(d, Suggestion)]
    assert sum(d.reason.startswith(WORDS[name]) for d in decisions) >= 4
    if name == "trade off":
        assert sum(d.reason.startswith("planned for the trade-off") for d in decisions) >= 4
    if name == "stopped":
        assert not any(turn.decisions for turn in uninterrupted(name)[-4:])


def test_after_a_checkpoint_the_rest_is_bit_equal(name):
    turns = uninterrupted(name)
    one = make(name)
    for done in range(len(turns)):
        go_on(one, turns[done : done + 1])
        if done % (8 if name == "trade off" else 3) == 1:  # its plans take time
            other = make(name)
            other.restore(*one.checkpoint())
            assert other.stopped == one.stopped
            assert go_on(other, turns[done + 1 : done + 5]) == decided(turns[done + 1 : done + 5])


def test_a_recalled_session_leaves_the_state_that_the_decided_one_did(name):
    check_recalled_as_decided(make(name), make(name), uninterrupted(name))


def test_asked_anew_at_every_decision_it_decides_the_same(name):
    assert decided_otherwise(make(name), uninterrupted(name)) == []


def test_another_seed_draws_other_maps_and_changes_nothing_else():
    config = AgentConfig(max_pending=3, max_per_frame=2, **GOALS["thompson"])
    tracks = [
        [
            d.track
            for turn in play(make_agent(config, seed=seed))
            for d in turn.decisions
            if isinstance(d, Suggestion)
        ]
        for seed in (5, 7)
    ]
    assert tracks[0][:6] == tracks[1][:6]  # the first looks are not drawn
    assert tracks[0] != tracks[1]


@pytest.mark.parametrize(("before", "after"), [("minimise", "trade off"), ("trade off", "minimise")])
def test_one_objective_more_or_less_in_the_configuration_teaches_all_measurements_anew(before, after):
    one = make(before)
    session(one, 10)
    other = make(after)
    other.restore(*one.checkpoint())
    other.tell(latents(number=99))
    assert [observation.id for observation in other.observations] == [o.id for o in one.observations]
    assert len(other.surrogate.known) == 10
    assert other.ask().reason.startswith(WORDS[after])
