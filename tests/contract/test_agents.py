"""What every agent promises; a new policy is tested by being listed in ``agents.policies``."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config import AgentConfig
from agents.explanation import feature_weights
from agents.policies import POLICIES, make_agent
from agents.protocol import UnknownOutcome
from agents.site_agent import SiteAgent
from streamer.messages import Latents, Outcome, Registration, ScanGeometry, Score, Suggestion

FIELD_NM = 4.0


def latents(n: int = 60, number: int = 0, seed: int = 0, **changes: object) -> Latents:
    """Make a frame of ``n`` atoms on a grid; the same atoms for the same seed, seen with noise."""
    rng, view = np.random.default_rng(seed), np.random.default_rng([seed, number])
    side = math.ceil(math.sqrt(n))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:n]
    position_nm = (grid + 0.5) * FIELD_NM / side - FIELD_NM / 2 + view.normal(0, 0.002, (n, 2))
    mean = rng.normal(0, 1, (n, 3)) + view.normal(0, 0.05, (n, 3))
    zeros = np.zeros(n, np.float32)
    made = Latents(
        session="s",
        number=number,
        acquired_at_s=10.0 + number,
        mean=mean.astype(np.float32),
        sd=np.full((n, 3), 0.05, np.float32),
        angle_rad=zeros,
        angle_sd_rad=zeros,
        offset_nm=np.zeros((n, 2), np.float32),
        offset_sd_nm=np.zeros((n, 2), np.float32),
        class_probability=np.zeros((n, 0), np.float32),
        novelty=zeros,
        confidence=np.ones(n, np.float32),
        track=np.arange(n),
        positions_px=((position_nm / FIELD_NM + 0.5) * 256)[:, ::-1].astype(np.float32),
        positions_nm=position_nm.astype(np.float32),
        model_revision="m",
        geometry=ScanGeometry(shape=(256, 256), field_of_view_nm=(FIELD_NM, FIELD_NM)),
        registration=Registration(),
    )
    return msgspec.structs.replace(made, **changes)


def positions_known_to(*sd_nm: float, turned_rad: float = 0.7) -> np.ndarray:
    """Covariances with these standard deviations along one direction, and half of them across."""
    cos, sin = math.cos(turned_rad), math.sin(turned_rad)
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.stack([turn @ np.diag([sd**2, sd**2 / 4]) @ turn.T for sd in sd_nm]).astype(np.float32)


def outcome(suggestion: Suggestion, **changes: object) -> Outcome:
    """Answer with a spectrum whose edge is stronger to the right, with shot noise of the id's own."""
    energy_ev = np.arange(256.0)
    edge = np.where(energy_ev >= 99, 100.0 * (suggestion.position_nm[0] + FIELD_NM), 0.0)
    rng = np.random.default_rng(list(suggestion.id.encode()))
    made = Outcome(
        session="s",
        id=suggestion.id,
        status="ok",
        scan_position_nm=suggestion.position_nm,
        position_nm=suggestion.position_nm,
        spectrum=rng.poisson(2e7 * np.maximum(energy_ev, 5) ** -2.5 + edge).astype(np.float32),
    )
    return msgspec.structs.replace(made, **changes)


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def agent(policy: str, **config: object) -> SiteAgent:
    return make_agent(AgentConfig(policy=policy, **({"max_per_frame": 0} | config)))


def session(one: SiteAgent, count: int, n: int = 60) -> list[Suggestion]:
    """Measure so many times with a new frame after each second; refit after each answer."""
    made: list[Suggestion] = []
    for step in range(count):
        if step % 2 == 0:
            one.tell(latents(n, number=step // 2))
        suggestion = one.ask()
        assert suggestion is not None
        one.tell(outcome(suggestion))
        one.refit()
        made.append(suggestion)
    return made


def test_a_suggestion_says_how_well_its_position_is_known(policy):
    one, sd_nm = agent(policy), np.linspace(0.001, 0.06, 60)
    one.tell(latents(position_covariance_nm2=positions_known_to(*sd_nm)))
    suggestion = one.ask()
    assert suggestion.position_sd_nm == pytest.approx(sd_nm[suggestion.track], rel=1e-4)
    other = agent(policy)
    other.tell(latents())
    assert math.isnan(other.ask().position_sd_nm)


def test_a_suggestion_is_one_of_the_candidates_of_the_newest_frame(policy):
    one = agent(policy)
    for step in range(14):
        frame = latents(number=step)
        one.tell(frame)
        suggestion = one.ask()
        away_nm = np.hypot(*(frame.positions_nm - suggestion.position_nm).T)
        assert frame.track[away_nm.argmin()] == suggestion.track
        assert away_nm.min() < 1e-6
        assert (suggestion.session, suggestion.number) == ("s", step)
        assert suggestion.acquired_at_s == 10.0 + step
        assert suggestion.policy == one.policy == policy
        assert suggestion.reason
        one.tell(outcome(suggestion))
        one.refit()


def test_no_site_is_suggested_twice_and_all_are_in_the_end(policy):
    tracks = [suggestion.track for suggestion in session(agent(policy), 25, n=25)]
    assert sorted(tracks) == list(range(25))


def test_sites_without_a_track_are_told_apart_by_their_place(policy):
    one = agent(policy)
    positions = []
    for step in range(16):
        one.tell(latents(16, number=step, track=np.full(16, -1)))
        suggestion = one.ask()
        positions.append(suggestion.position_nm)
        one.tell(outcome(suggestion))
    apart_nm = [math.dist(a, b) for k, a in enumerate(positions) for b in positions[:k]]
    assert min(apart_nm) > 0.5
    one.tell(latents(16, number=16, track=np.full(16, -1)))
    assert one.ask() is None


def test_pending_sites_are_left_alone_and_their_number_is_bounded(policy):
    one = agent(policy, max_pending=4)
    one.tell(latents())
    made = [one.ask() for _ in range(5)]
    assert made[4] is None
    assert len({suggestion.track for suggestion in made[:4]}) == 4
    one.tell(latents(number=1))
    assert one.ask() is None
    one.tell(outcome(made[2]))
    assert one.ask().track not in {suggestion.track for suggestion in made[:4]}


def test_ids_are_unique_also_in_an_agent_that_was_restarted(policy):
    ids = [suggestion.id for suggestion in session(agent(policy), 12)]
    restarted = agent(policy)
    restarted.tell(latents(number=6))
    ids.append(restarted.ask().id)
    assert len(set(ids)) == 13


def test_an_outcome_nobody_waits_for_is_refused_and_changes_nothing(policy):
    one, other = agent(policy), agent(policy)
    for each in (one, other):
        each.tell(latents())
    suggestion = one.ask()
    assert other.ask().id == suggestion.id
    with pytest.raises(UnknownOutcome, match="no open suggestion has the id 'nobody'"):
        one.tell(outcome(suggestion, id="nobody"))
    for each in (one, other):
        each.tell(outcome(suggestion))
    with pytest.raises(UnknownOutcome):
        one.tell(outcome(suggestion))
    assert one.statistics() == other.statistics()
    assert same(one.ask(), other.ask())


def test_a_late_outcome_is_taken_once(policy):
    one = agent(policy, max_pending=2)
    one.tell(latents())
    late, soon = one.ask(), one.ask()
    one.tell(outcome(soon))
    for number in range(1, 5):
        one.tell(latents(number=number))
    assert one.tell(outcome(late)).id == late.id
    with pytest.raises(UnknownOutcome):
        one.tell(outcome(late))


def test_an_ok_outcome_is_scored_in_the_objectives_unit(policy):
    one = agent(policy)
    one.tell(latents())
    suggestion = one.ask()
    score = one.tell(outcome(suggestion))
    assert isinstance(score, Score)
    assert (score.session, score.id) == ("s", suggestion.id)
    assert score.objective == "Si L2,3 band integral (fraction of all counts)"
    assert score.value > 0
    assert score.variance > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "refused", "spectrum": None, "scan_position_nm": None, "position_nm": None},
        {"status": "failed", "spectrum": None},
        {"status": "aborted", "spectrum": None},
        {"status": "skipped", "spectrum": None},
        {"spectrum": np.full(256, np.nan, dtype=np.float32)},
        {"spectrum": np.zeros(1, dtype=np.float32)},
        {"energy_offset_ev": 1000.0},
        {"spectrum": None},
    ],
    ids=["refused", "failed", "aborted", "skipped", "nan", "one channel", "elsewhere", "no spectrum"],
)
def test_an_outcome_without_a_value_frees_its_place_and_is_not_tried_again_at_once(policy, changes):
    one = agent(policy, max_pending=1)
    one.tell(latents())
    suggestion = one.ask()
    assert one.ask() is None
    assert one.tell(outcome(suggestion, **changes)) is None
    following = one.ask()
    assert following.track != suggestion.track
    assert math.isfinite(one.tell(outcome(following)).value)


def test_a_refused_site_gets_another_chance_later(policy):
    one = agent(policy, retry_after_suggestions=3)
    one.tell(latents(4))
    refused = one.ask()
    one.tell(outcome(refused, status="refused", spectrum=None))
    tracks = []
    for number in range(1, 4):
        one.tell(latents(4, number=number))
        suggestion = one.ask()
        tracks.append(suggestion.track)
        one.tell(outcome(suggestion))
    assert refused.track not in tracks
    one.tell(latents(4, number=4))
    assert one.ask().track == refused.track


def test_refusals_in_a_row_end_the_asking_until_the_next_frame(policy):
    one = agent(policy, max_refusals_per_frame=3)
    one.tell(latents())
    for _ in range(3):
        one.tell(outcome(one.ask(), status="refused", spectrum=None))
    assert one.ask() is None
    one.tell(latents(number=1))
    assert one.ask() is not None


def test_a_beam_that_missed_every_atom_is_scored_and_teaches_nothing_of_atoms(policy):
    one = agent(policy, max_miss_nm=0.1)
    one.tell(latents())
    suggestion = one.ask()
    x_nm, y_nm = suggestion.position_nm
    assert one.tell(outcome(suggestion, position_nm=(x_nm + 0.25, y_nm))) is not None
    assert one.observations[0].site is None
    assert one.statistics()["missed"] == 1
    assert one.ask() is not None


def test_the_atom_really_visited_is_the_one_learnt_from_and_left_alone(policy):
    one = agent(policy)
    frame = latents(4)
    one.tell(frame)
    aimed = one.ask()
    other = next(k for k in range(4) if k != aimed.track)
    one.tell(outcome(aimed, position_nm=tuple(frame.positions_nm[other].tolist())))
    assert one.observations[0].site.track == other
    assert one.observations[0].site.mean == pytest.approx(frame.mean[other])
    rest = [one.ask().track, one.ask().track]
    assert {aimed.track, other}.isdisjoint(rest)


def test_unsure_and_unreadable_atoms_are_no_candidates(policy):
    frame = latents(10)
    confidence, mean, positions = frame.confidence.copy(), frame.mean.copy(), frame.positions_nm.copy()
    confidence[:4] = 0.3
    mean[4:6] = np.nan
    positions[6:8] = np.inf
    one = agent(policy, max_pending=10)
    one.tell(msgspec.structs.replace(frame, confidence=confidence, mean=mean, positions_nm=positions))
    assert {one.ask().track, one.ask().track} == {8, 9}
    assert one.ask() is None


def test_without_candidates_there_is_no_answer(policy):
    one = agent(policy)
    assert one.ask() is None
    one.tell(latents(0))
    assert one.ask() is None
    one.tell(latents(5, number=1))
    assert one.ask() is not None


def test_the_budget_ends_the_asking(policy):
    one = agent(policy, max_suggestions=3)
    session(one, 3)
    one.tell(latents(number=9))
    assert one.ask() is None


def test_the_same_messages_and_seed_give_the_same_suggestions_bit_for_bit(policy):
    first, again = session(agent(policy, seed=4), 20), session(agent(policy, seed=4), 20)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


def test_counts_add_up(policy):
    one = agent(policy)
    made = session(one, 6)
    one.tell(latents(number=20))
    one.tell(outcome(one.ask(), status="failed", spectrum=None))
    one.ask()
    counts = one.statistics()
    assert counts["suggested"] == len(made) + 2
    assert counts["suggested"] == counts["ok"] + counts["failed"] + counts["pending"]


def same(a: Suggestion, b: Suggestion) -> bool:
    """Bit for bit, NaN included."""
    return msgspec.msgpack.encode(a) == msgspec.msgpack.encode(b)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["frame", "ask", "ok", "refused", "unknown", "nan"]), min_size=5, max_size=40
    ),
    policy=st.sampled_from(sorted(POLICIES)),
)
def test_in_any_order_of_events_pending_stays_bounded_and_no_site_is_measured_twice(steps, policy):
    one = agent(policy, max_pending=2)
    open_ones: list[Suggestion] = []
    measured: set[int] = set()
    for number, step in enumerate(steps):
        if step == "frame":
            one.tell(latents(12, number=number))
        elif step == "ask" and (suggestion := one.ask()) is not None:
            assert suggestion.track not in measured
            assert suggestion.track not in {other.track for other in open_ones}
            open_ones.append(suggestion)
            assert len(open_ones) <= 2
        elif step == "unknown":
            with pytest.raises(UnknownOutcome):
                one.tell(Outcome(session="s", id="nobody", status="refused"))
        elif step in ("ok", "refused", "nan") and open_ones:
            suggestion = open_ones.pop(0)
            if step == "refused":
                one.tell(outcome(suggestion, status="refused", spectrum=None))
                continue
            measured.add(suggestion.track)
            changes = {"spectrum": np.full(256, np.nan, np.float32)} if step == "nan" else {}
            one.tell(outcome(suggestion, **changes))
    assert one.statistics()["pending"] == len(open_ones)


@pytest.mark.parametrize("policy", POLICIES)
def test_so_many_suggestions_are_decided_on_one_frame_and_no_more(policy, make_latents):
    agent = make_agent(AgentConfig(policy=policy, max_pending=8, max_per_frame=2))
    for number in range(2):
        agent.tell(make_latents(n=40, number=number))
        assert [agent.ask() is not None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sub_scan_does_not_take_the_place_of_the_frame(policy, make_latents):
    agent = make_agent(AgentConfig(policy=policy))
    agent.tell(make_latents(n=40, number=0))
    agent.tell(make_latents(n=3, number=1, request_id="x"))
    suggestion = agent.ask()
    assert suggestion is not None
    assert suggestion.number == 0


def test_an_agent_decides_on_the_latents_of_its_own_encoder_alone(policy):
    one, alike = agent(policy, encoder="wide"), agent(policy, encoder="wide")
    for other in ("", "narrow"):
        one.tell(latents(number=0, seed=5, encoder=other))
        assert one.ask() is None
    for step in range(10):
        for each in (one, alike):
            each.tell(latents(number=step, encoder="wide"))
        one.tell(latents(n=12, number=step, seed=5))
        suggestion, same = one.ask(), alike.ask()
        assert suggestion is not None
        assert (suggestion.id, suggestion.track) == (same.id, same.track)
        for each in (one, alike):
            each.tell(outcome(suggestion))
            each.refit()


def persons(one: SiteAgent, track: int, identifier: str = "operator-1") -> Suggestion:
    """Make a point that a person takes at an atom of the first frame."""
    place = latents().positions_nm[track]
    return Suggestion(
        session="s",
        number=0,
        acquired_at_s=10.0,
        id=identifier,
        position_nm=(float(place[0]), float(place[1])),
        dwell_time_us=1000.0,
        policy="operator",
    )


def test_what_a_person_measures_teaches_as_if_it_had_been_suggested(policy):
    one = agent(policy, max_pending=1)
    one.tell(latents())
    first = one.ask()
    point = persons(one, (first.track + 7) % 60)
    assert one.tell(point) is None
    score = one.tell(outcome(point))
    assert score.id == "operator-1"
    assert one.tell(outcome(first)) is not None
    assert [observation.site.track for observation in one.observations] == [
        (first.track + 7) % 60,
        first.track,
    ]
    tracks = {one.ask().track}
    for _ in range(57):
        following = one.ask()
        if following is not None:
            tracks.add(following.track)
            one.tell(outcome(following))
    assert (first.track + 7) % 60 not in tracks, "it was measured once more"


def test_what_a_person_measures_where_no_atom_is_teaches_nothing(policy):
    one = agent(policy)
    one.tell(latents())
    point = msgspec.structs.replace(persons(one, 0), position_nm=(30.0, 30.0))
    one.tell(point)
    with pytest.raises(UnknownOutcome):
        one.tell(outcome(point))


def test_a_persons_point_that_came_to_nothing_changes_nothing(policy):
    one, other = agent(policy), agent(policy)
    for each in (one, other):
        each.tell(latents())
    point = persons(one, 5)
    one.tell(point)
    assert one.tell(outcome(point, status="refused", spectrum=None)) is None
    assert one.ask().track == other.ask().track


def test_an_explanation_is_of_the_last_answer_and_asking_for_it_changes_nothing(policy):
    one, other = agent(policy), agent(policy)
    assert one.explain() is None
    for step in range(16):
        for each in (one, other):
            each.tell(latents(number=step))
        one.consider()
        suggestion, unasked = one.ask(), other.ask()
        assert msgspec.msgpack.encode(suggestion) == msgspec.msgpack.encode(unasked)
        why = one.explain()
        assert (why.reason, why.offered) == (suggestion.reason, 60 - step)
        for each in (one, other):
            each.tell(outcome(suggestion))
            each.refit()
        assert one.explain() == why


def test_an_explorer_explains_its_choice_by_the_sites_that_came_next():
    one = agent("explorer")
    session(one, 14)
    suggestion, why = one.ask(), one.explain()
    first, *rest = why.ranking
    assert (first.position_nm, first.track) == (suggestion.position_nm, suggestion.track)
    assert (first.predicted_mean, first.predicted_sd) == (suggestion.predicted_mean, suggestion.predicted_sd)
    assert first.acquisition == suggestion.acquisition
    assert len(rest) == 5
    assert sorted(rest, key=lambda site: -site.acquisition) == rest
    one.tell(outcome(suggestion, status="refused"))
    assert one.ask().track == rest[0].track, "the next best was not the next choice"
    assert sum(feature_weights(why.parameters).values()) == pytest.approx(1.0)


@pytest.mark.parametrize("policy", ["raster", "random"])
def test_an_agent_without_a_model_ranks_nothing(policy):
    one = agent(policy)
    one.tell(latents())
    one.ask()
    assert (one.explain().ranking, one.explain().parameters) == ((), {})
