"""The agent as a plain object."""

import doctest

import msgspec
import numpy as np
import pytest

import agents.notebook
from agents.config import AgentConfig
from agents.notebook import Chooser
from agents.objective import ObjectiveConfig
from agents.policies import make_agent
from streamer.messages import Latents, Outcome, ScanGeometry
from tests.contract.test_agents import latents as frame_of
from tests.drawn_windows import spots
from tests.edge_spectra import outcome_of

SIDE = 12


def places() -> np.ndarray:
    """Positions on a grid of 0.2 nm."""
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    return 0.2 * grid


def looks(seed: int = 0) -> np.ndarray:
    """Three latents of each place; the first is what makes it bright."""
    return np.random.default_rng(seed).normal(0, 1, (SIDE * SIDE, 3)).astype(np.float32)


def brightness(seed: int = 0) -> np.ndarray:
    return np.exp(looks(seed)[:, 0])


def chooser(**settings: object) -> Chooser:
    return Chooser(places(), looks(), **({"value_sd": 0.05} | settings))


def measure(one: Chooser, count: int, value: np.ndarray) -> list[int]:
    """Measure where it says, one after the other; return which."""
    taken = []
    for _ in range(count):
        (proposal,) = one.suggest()
        one.ingest(proposal.id, value[proposal.index])
        taken.append(proposal.index)
    return taken


def test_the_example_holds():
    found = doctest.testmod(agents.notebook)
    assert found.attempted > 5
    assert found.failed == 0


def test_it_suggests_bit_for_bit_what_the_agent_does_that_is_told_messages():
    offered = places().astype(np.float32)
    low, high = (end(axis=0).astype(float) for end in (offered.min, offered.max))
    width, middle = tuple((high - low).tolist()), tuple(((low + high) / 2).tolist())
    box = ScanGeometry(shape=(8, 8), field_of_view_nm=width, center_nm=middle)
    frame: Latents = frame_of(SIDE * SIDE)
    told = msgspec.structs.replace(
        frame,
        mean=looks(),
        sd=np.zeros_like(looks()),
        positions_nm=offered,
        geometry=box,
        track=np.full(SIDE * SIDE, -1),
    )
    config = AgentConfig(max_per_frame=0, max_pending=64, min_distance_nm=0.05, max_miss_nm=0.1, seed=7)
    agent = make_agent(config)
    agent.tell(told)
    one = Chooser(
        places(), looks(), objective=ObjectiveConfig(), min_distance_nm=0.05, max_miss_nm=0.1, seed=7
    )
    for step in range(30):
        suggestion = agent.ask()
        (proposal,) = one.suggest()
        assert (proposal.id, proposal.position_nm) == (suggestion.id, suggestion.position_nm)
        forecast = np.array([suggestion.predicted_mean, suggestion.predicted_sd])
        mine = np.array([proposal.predicted_mean, proposal.predicted_sd])
        assert forecast.tobytes() == mine.tobytes()
        assert proposal.reason == suggestion.reason
        outcome: Outcome = outcome_of(
            suggestion, float(brightness()[proposal.index]), np.random.default_rng([1, step])
        )
        agent.tell(outcome)
        agent.refit()
        reading = one.ingest(
            proposal.id,
            outcome.spectrum,
            energy_offset_ev=outcome.energy_offset_ev,
            energy_step_ev=outcome.energy_step_ev,
        )
        assert reading == agent.observations[-1].reading
    assert agent.model_revision > 0
    assert np.isfinite(mine).all()


def test_it_finds_the_brightest_of_144_places_by_what_they_look_like():
    for seed in (1, 3, 5):
        one = Chooser(places(), looks(seed), value_sd=0.05)
        measure(one, 30, brightness(seed))
        assert one.best().value == pytest.approx(brightness(seed).max(), rel=0.05)


def test_a_loop_is_read_with_its_bias():
    one = Chooser(places(), objective=ObjectiveConfig(kind="loop_area"))
    bias_v = 4 * np.sin(np.linspace(0, 2 * np.pi, 64, endpoint=False))
    lag = np.sin(np.linspace(0, 2 * np.pi, 64, endpoint=False) - 0.5)
    noise = np.random.default_rng(1).normal(0, 0.01, 64)
    (proposal,) = one.suggest()
    reading = one.ingest(proposal.id, lag + noise, bias_v=bias_v)
    assert reading.value == pytest.approx(4 * np.pi * np.sin(0.5), rel=0.05)
    with pytest.raises(ValueError, match=r"\S"):
        one.ingest(5, lag)
    assert len(one.measured) == 1


def test_the_smallest_is_best_where_that_is_looked_for():
    one = chooser(goal="minimise")
    measure(one, 25, brightness())
    assert one.best().value == min(known.value for known in one.measured)
    mean, _ = one.forecast()
    assert np.corrcoef(mean, brightness())[0, 1] > 0.5


def test_a_forecast_speaks_of_every_candidate_in_its_order():
    one = chooser(goal="map", site_weight="none")
    measure(one, 40, brightness())
    mean, sd = one.forecast()
    assert mean.shape == sd.shape == (SIDE * SIDE,)
    assert (sd > 0).all()
    assert np.corrcoef(mean, brightness())[0, 1] > 0.9
    with pytest.raises(LookupError, match="the goal map has no best value"):
        one.best()
    with pytest.raises(LookupError, match="the policy random makes no forecast"):
        chooser(policy="random").forecast()


def test_what_is_under_way_is_not_suggested_again():
    one = chooser()
    proposals = one.suggest(5)
    assert len({proposal.index for proposal in proposals}) == 5
    assert not {p.index for p in one.suggest(3)} & {p.index for p in proposals}


def test_a_measurement_of_ones_own_teaches_and_its_place_is_left_alone():
    one = chooser()
    bright = int(brightness().argmax())
    reading = one.ingest(bright, float(brightness()[bright]), variance=0.01)
    assert reading.variance == pytest.approx(0.01)
    assert one.best().id == "own-0"
    assert bright not in measure(one, 30, brightness())


def test_an_index_answers_the_proposal_that_is_under_way_there():
    one = chooser()
    (proposal,) = one.suggest()
    one.ingest(proposal.index, 1.0)
    assert [known.id for known in one.measured] == [proposal.id]
    with pytest.raises(KeyError):
        one.ingest(proposal.id, 1.0)


def test_a_skipped_place_is_not_suggested_at_once():
    one = chooser()
    (proposal,) = one.suggest()
    one.skip(proposal.id)
    (following,) = one.suggest()
    assert following.index != proposal.index
    assert one.measured == []


def test_a_new_frame_keeps_what_was_measured_at_the_same_places():
    one = chooser()
    taken = measure(one, 20, brightness())
    order = np.random.default_rng(0).permutation(SIDE * SIDE)
    one.offer(places()[order], looks()[order])
    assert len(one.measured) == 20
    more = [int(order[proposal.index]) for proposal in one.suggest(60)]
    assert not set(more) & set(taken)


def test_all_places_are_measured_in_the_end_and_then_none_is_suggested():
    one = Chooser(places()[:20], value_sd=0.1, policy="raster")
    assert sorted(measure(one, 20, brightness())) == list(range(20))
    assert one.suggest() == []


def test_it_says_when_it_was_enough():
    one = chooser(stopping={"measurements": 3})
    measure(one, 3, brightness())
    assert one.suggest() == []
    assert "3" in one.stopped


def test_what_cannot_be_read_is_refused_and_nothing_is_lost():
    one = chooser()
    (proposal,) = one.suggest()
    for measured, text in (
        (float("nan"), "not finite"),
        (np.ones(5), "it takes a number"),
    ):
        with pytest.raises(ValueError, match=text):
            one.ingest(proposal.id, measured)
    one.ingest(proposal.id, 1.0)
    assert len(one.measured) == 1
    with pytest.raises(ValueError, match="value_sd"):
        Chooser(places()).ingest(0, 1.0)
    spectral = Chooser(places(), objective=ObjectiveConfig())
    with pytest.raises(ValueError, match="a spectrum"):
        spectral.ingest(0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "settings", "text"),
    [
        ((np.zeros((0, 2)),), {}, "positions_nm is empty"),
        ((np.zeros(4),), {}, r"positions_nm has the shape \(4,\); it takes \(any, 2\)"),
        ((places(), looks()[:5]), {}, r"latents has the shape \(5, 3\); it takes \(144, any\)"),
        ((places(), np.full((144, 2), np.inf)), {}, "latents is not finite"),
        ((places(),), {"goal": "level_set"}, "level_set takes a number"),
        ((places(),), {"initial_points": 0}, "initial_points is 0"),
        ((places(),), {"initial_point": 1}, "initial_point"),
        ((places(),), {"scan": {"every": 3}}, "scan.every is 3; in a notebook"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(arguments, settings, text):
    with pytest.raises(ValueError, match=text):
        Chooser(*arguments, **settings)


def test_a_place_far_from_all_candidates_is_refused():
    one = chooser()
    assert one.nearest((0.21, 0.01)) == 1
    with pytest.raises(ValueError, match=r"within max_miss_nm = 0\.1 nm"):
        one.nearest((9.0, 9.0))
    with pytest.raises(ValueError, match="index is 144"):
        one.ingest(144, 1.0)
    with pytest.raises(ValueError, match="numbers a place"):
        one.offer(places())


def test_it_learns_over_windows_and_takes_them_with_every_offer():
    bright = np.linspace(0, 2, SIDE * SIDE)[np.random.default_rng(1).permutation(SIDE * SIDE)]
    flat = np.zeros((SIDE * SIDE, 1), np.float32)
    with pytest.raises(ValueError, match="windows is missing; it takes what is seen around each place"):
        Chooser(places(), flat, features=["windows"], value_sd=0.02)
    with pytest.raises(ValueError, match="windows has the shape"):
        Chooser(places(), flat, features=["windows"], value_sd=0.02, windows=spots(bright)[1:])
    one = Chooser(places(), flat, features=["windows"], value_sd=0.02, windows=spots(bright))
    measure(one, 20, bright)
    assert one.best().value > 1.8
    with pytest.raises(ValueError, match="windows is missing"):
        one.offer(places(), flat)
    one.offer(places(), flat, windows=spots(bright, seed=1)[:, 0])
    mean, _ = one.forecast()
    assert np.corrcoef(mean, bright)[0, 1] > 0.9
