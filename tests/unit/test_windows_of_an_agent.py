"""An agent that learns over windows: by them alone, without them, and when they come back."""

from __future__ import annotations

import pytest
from msgspec.msgpack import encode

from agents.config import AgentConfig
from agents.explanation import feature_weights
from agents.explorer import NO_WINDOWS
from agents.features import FeatureScale
from agents.policies import make_agent
from agents.site_agent import SiteAgent
from agents.steering import gone_on_from, steered
from agents.windows import PER_CHANNEL
from streamer.messages import Latents, Suggestion
from tests.contract.test_agents import latents, outcome
from tests.drawn_windows import sent, spots

SENDING = "streamer.pipeline.encode.send_windows = true"


def make(*features: str) -> SiteAgent:
    return make_agent(AgentConfig(features=features, max_per_frame=0, seed=3))  # type: ignore[arg-type]


def frame(number: int, *, has_windows: bool = True) -> Latents:
    """Atoms whose windows alone say how far right they are; with their latents, or without windows."""
    made = latents(number=number)
    right = made.positions_nm[:, 0] + 2.0
    return latents(number=number, **(sent(spots(right, seed=number)) if has_windows else {}))


def measured(one: SiteAgent, frames: list[Latents]) -> list[Suggestion]:
    made: list[Suggestion] = []
    for seen in frames:
        one.tell(seen)
        suggestion = one.ask()
        assert suggestion is not None
        one.tell(outcome(suggestion))
        while one.refit() is not None:
            pass
        made.append(suggestion)
    return made


def names(one: SiteAgent) -> tuple[str, ...]:
    return one.surrogate.names  # type: ignore[attr-defined,no-any-return]


def test_by_windows_alone_it_goes_where_they_say_it_pays() -> None:
    one = make("windows")
    made = measured(one, [frame(number) for number in range(24)])
    right = sorted(latents().positions_nm[:, 0])[-8]
    first = one.config.initial_points
    after_first_looks = [suggestion.position_nm[0] for suggestion in made[first : first + 6]]
    assert min(after_first_looks) > right - 0.01, "the objective grows to the right, as only windows say"


@pytest.mark.parametrize(
    ("features", "left"),
    [
        (("windows + position", "position"), ("position",)),
        (("windows",), ("latents + position",)),
    ],
)
def test_without_windows_it_says_what_to_set_and_goes_on(
    features: tuple[str, ...], left: tuple[str, ...]
) -> None:
    one = make(*features)
    made = measured(one, [frame(number, has_windows=False) for number in range(14)])
    assert all(suggestion.reason.endswith(NO_WINDOWS) for suggestion in made)
    assert SENDING in NO_WINDOWS
    assert names(one) == left
    assert one.model_revision > 0


def test_windows_that_come_and_go_lose_no_measurement() -> None:
    one = make("windows", "position")
    measured(one, [frame(number, has_windows=False) for number in range(10)])
    assert len(one.surrogate.known) == 10  # type: ignore[attr-defined]
    measured(one, [frame(number) for number in range(10, 16)])
    assert names(one) == ("windows", "position")
    # In view again, the atoms of the first ten are known by their windows, too.
    assert len(one.surrogate.known) == 16  # type: ignore[attr-defined]
    (last,) = measured(one, [frame(16, has_windows=False)])
    assert names(one) == ("position",)
    assert len(one.surrogate.known) == 17  # type: ignore[attr-defined]
    assert last.reason.endswith(NO_WINDOWS)


def test_steered_to_windows_it_learns_over_them_from_the_next_frame_on() -> None:
    one = make("position")
    measured(one, [frame(number) for number in range(12)])
    assert all(site.harmonics is None for site in one._ledger._measured)
    other, _ = steered(one, {"features": ["windows"]})
    made = measured(other, [frame(number) for number in range(12, 20)])
    assert names(other) == ("windows",)
    assert not made[0].reason.endswith(NO_WINDOWS)
    assert other.model_revision > one.model_revision
    back = gone_on_from(make("position"), *other.checkpoint())
    later = [frame(number) for number in range(20, 26)]
    assert list(map(encode, measured(back, later))) == list(map(encode, measured(other, later)))


def test_it_says_how_far_its_forecasts_follow_the_windows() -> None:
    one = make("windows + position")
    measured(one, [frame(number) for number in range(12)])
    assert one.consider() is not None
    explanation = one.explain()
    assert explanation is not None
    weights = feature_weights(explanation.parameters)
    assert set(weights) == {"windows", "position"}
    assert weights["windows"] > 0.2


def test_one_who_does_not_look_at_windows_keeps_none() -> None:
    one, other = make("latents"), make("latents")
    measured(one, [frame(number) for number in range(10)])
    measured(other, [frame(number, has_windows=False) for number in range(10)])
    assert one.checkpoint()[0] == other.checkpoint()[0]


def test_the_scale_of_windows_leaves_a_turn_a_turn() -> None:
    one = make("windows")
    one.tell(frame(0))
    scale: FeatureScale = one._learner.scale  # type: ignore[attr-defined]
    assert scale.channels == 1
    assert scale.width == 3 + 4 + PER_CHANNEL
    unit, center = scale.window_unit[1:].reshape(8, 11), scale.window_center[1:].reshape(8, 11)
    assert (unit[:, 1::2] == unit[:, 2::2]).all()
    assert (center[:, 1:] == 0).all()
    assert (unit > 0).all()
