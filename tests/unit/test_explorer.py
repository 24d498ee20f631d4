"""The explorer in a world of 1,500 atoms, of which fifteen carry silicon and five carry most."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from agents.config import AgentConfig
from agents.explorer import Explorer
from agents.learner import ADOPTED_AFTER
from agents.objective import ObjectiveConfig
from agents.random import Random
from agents.site_agent import SiteAgent
from streamer.messages import Latents, Outcome, Registration, ScanGeometry, Suggestion
from tests.edge_spectra import outcome_of

FIELD_NM = 6.3
SIDE = 39  # 39² = 1521 atoms


class World:
    """Atoms on a grid; their latents say imperfectly what they are, a spectrum says it with shot noise.

    10 three-fold and 5 four-fold silicon atoms, 30 beside vacancies, 75 along a boundary, 60 freaks whose
    latents mean nothing, and carbon.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        n = SIDE * SIDE
        grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
        self.position_nm = (grid + 0.5) * FIELD_NM / SIDE - FIELD_NM / 2
        ids = self.rng.permutation(n)
        self.mean = np.zeros((n, 4))
        self.mean[ids[:10]] = [2.0, 0.0, 0.0, 0.0]
        self.mean[ids[10:15]] = [2.0, 1.5, 0.0, 0.0]
        self.mean[ids[15:45]] = [0.0, -3.0, 0.0, 0.0]
        self.mean[ids[45:120]] = [0.0, 0.0, 2.0, 0.0]
        self.mean[ids[120:180]] += self.rng.normal(0, 3.0, (60, 4))
        self.silicon = np.zeros(n)
        self.silicon[ids[:10]] = 0.75
        self.silicon[ids[10:15]] = 1.0

    def frame(self, number: int, **changes: object) -> Latents:
        """See the atoms, in another order each time, with the encoder's noise."""
        n = len(self.mean)
        order = self.rng.permutation(n)
        mean = (self.mean + self.rng.normal(0, 0.25, self.mean.shape))[order].astype(np.float32)
        position_nm = (self.position_nm + self.rng.normal(0, 0.003, (n, 2)))[order].astype(np.float32)
        latents = Latents(
            session="s",
            number=number,
            acquired_at_s=0.2 * number,
            mean=mean,
            sd=np.full_like(mean, 0.25),
            angle_rad=np.zeros(n, np.float32),
            angle_sd_rad=np.zeros(n, np.float32),
            offset_nm=np.zeros((n, 2), np.float32),
            offset_sd_nm=np.zeros((n, 2), np.float32),
            class_probability=np.zeros((n, 0), np.float32),
            novelty=np.zeros(n, np.float32),
            confidence=np.ones(n, np.float32),
            track=order.astype(np.int64),
            positions_px=((position_nm / FIELD_NM + 0.5) * 512)[:, ::-1].astype(np.float32),
            positions_nm=position_nm,
            model_revision="encoder",
            geometry=ScanGeometry(shape=(512, 512), field_of_view_nm=(FIELD_NM, FIELD_NM)),
            registration=Registration(),
        )
        return msgspec.structs.replace(latents, **changes)

    def outcome(self, suggestion: Suggestion) -> Outcome:
        """Take the spectrum of the atom aimed at."""
        return outcome_of(suggestion, float(self.silicon[suggestion.track]), self.rng)


def unlimited(**config: Any) -> AgentConfig:
    """Let the agent decide on one frame as often as it is asked."""
    return AgentConfig(max_per_frame=0, **config)


def explore(agent: SiteAgent, world: World, most: int, *, until_best: bool = False) -> list[Suggestion]:
    """Let it measure one atom after the other, with a new frame after each third."""
    suggestions = []
    for count in range(most):
        if count % 3 == 0:
            agent.tell(world.frame(count // 3))
        suggestion = agent.ask()
        assert suggestion is not None
        agent.tell(world.outcome(suggestion))
        agent.refit()
        suggestions.append(suggestion)
        if until_best and world.silicon[suggestion.track] == 1.0:
            break
    return suggestions


def points_to_the_best(agent: SiteAgent, world: World, most: int) -> int:
    return len(explore(agent, world, most, until_best=True))


def test_the_explorer_needs_at_most_half_of_randoms_measurements():
    seeds = range(5)
    explorer = [points_to_the_best(Explorer(unlimited()), World(seed), 41) for seed in seeds]
    random = [points_to_the_best(Random(unlimited(), seed=seed), World(seed), 400) for seed in seeds]
    assert max(explorer) <= 40
    assert np.median(explorer) <= 0.5 * np.median(random)


def test_the_model_forecasts_what_is_then_measured():
    agent, world = Explorer(unlimited()), World(1)
    told = []
    for count in range(40):
        if count % 3 == 0:
            agent.tell(world.frame(count // 3))
        suggestion = agent.ask()
        score = agent.tell(world.outcome(suggestion))
        agent.refit()
        if suggestion.model_revision > 1:
            told.append((suggestion.predicted_mean, score.value))
    forecast, measured = np.array(told).T
    assert np.corrcoef(forecast, measured)[0, 1] > 0.5


def test_looking_for_the_smallest_is_looking_for_the_largest_of_the_negative():
    carbon = []
    for seed in (2, 4, 6, 8):
        world = World(seed)
        world.silicon = 1.0 - world.silicon  # silicon everywhere but there
        found = [world.silicon[s.track] for s in explore(Explorer(unlimited(goal="minimise")), world, 40)]
        assert min(found) == 0.0
        carbon.append(sum(found[found.index(0.0) + 1 :][:10]))
    assert np.mean(carbon) < 5.0  # of 10: having found it, it looks for more of it


def test_the_first_suggestions_need_no_fit_and_say_so():
    agent, world = Explorer(unlimited(max_pending=2)), World(3)
    agent.tell(world.frame(0))
    first, second = agent.ask(), agent.ask()
    assert first.reason == "first look: a usual site"
    assert second.reason.startswith("first look: ")
    assert np.isnan([first.predicted_mean, first.predicted_sd, first.acquisition]).all()
    assert first.model_revision == 0
    assert not agent.refit()


def test_later_suggestions_say_what_they_promise():
    agent, world = Explorer(unlimited()), World(0)
    last = explore(agent, world, 30)[-1]
    assert last.reason.startswith("expected to improve on ")
    assert np.isfinite([last.predicted_mean, last.predicted_sd, last.acquisition]).all()
    assert last.model_revision >= 1


def test_on_pure_noise_it_goes_on_looking_around():
    world = World(4)
    world.silicon[:] = 0.0
    agent = Explorer(unlimited())
    reasons = {s.reason.split(":")[0] for s in explore(agent, world, 20)}
    assert reasons == {"first look"}
    assert agent.model_revision == 0


def test_a_changed_objective_reads_every_spectrum_anew():
    agent, world = Explorer(unlimited()), World(0)
    explore(agent, world, 12)
    scores = agent.change_objective(
        ObjectiveConfig(kind="peak_position", label="tail", window_ev=(0.0, 12.0), peak_half_width_ev=4.0)
    )
    assert len(scores) == 12
    assert {score.objective for score in scores} == {"tail peak position (eV)"}
    assert all(0.0 < score.value < 12.0 for score in scores)
    assert agent.ask() is not None


def test_an_objective_that_no_spectrum_can_be_read_for_starts_anew():
    agent, world = Explorer(unlimited()), World(0)
    explore(agent, world, 12)
    assert (
        agent.change_objective(ObjectiveConfig(window_ev=(500.0, 520.0), background_ev=(470.0, 490.0))) == ()
    )
    assert agent.ask().reason.startswith("first look: ")


def test_a_new_encoder_gives_measured_atoms_their_new_latents():
    agent, world = Explorer(unlimited()), World(0)
    explore(agent, world, 24)
    turned = world.frame(8)
    turned = msgspec.structs.replace(
        turned,
        mean=np.ascontiguousarray(-turned.mean[:, ::-1][:, :3]),
        sd=turned.sd[:, :3].copy(),
        model_revision="new",
    )
    agent.tell(turned)
    sites = [observation.site for observation in agent.observations]
    assert {site.model_revision for site in sites} == {"new"}
    assert {site.mean.size for site in sites} == {3}
    assert agent.ask().reason.startswith("expected to improve on ")


def by_new_encoder(frame: Latents, kept: np.ndarray | None = None) -> Latents:
    """See a frame with another encoder, or only some of its atoms."""
    rows = np.arange(len(frame.mean)) if kept is None else kept
    arrays = {
        field: value[rows]
        for field in frame.__struct_fields__
        if isinstance(value := getattr(frame, field), np.ndarray)
    }
    arrays["mean"] = np.ascontiguousarray(-arrays["mean"][:, ::-1])
    return msgspec.structs.replace(frame, model_revision="new", **arrays)


def test_an_atom_that_a_new_encoder_has_not_seen_teaches_nothing_until_it_has():
    agent, world = Explorer(unlimited()), World(0)
    measured = {suggestion.track for suggestion in explore(agent, world, 24)}
    frame = world.frame(8)
    away = sorted(measured)[:5]
    agent.tell(by_new_encoder(frame, np.flatnonzero(~np.isin(frame.track, away))))
    assert len(agent.surrogate.known) == 24 - 5
    assert agent.ask().track not in measured  # what was measured stays measured
    agent.tell(by_new_encoder(world.frame(9)))
    assert len(agent.surrogate.known) == 24
    assert {one.site.model_revision for one in agent.observations} == {"new"}


def test_an_outcome_that_comes_after_a_change_of_the_encoder_is_not_lost():
    agent, world = Explorer(unlimited()), World(0)
    explore(agent, world, 24)
    agent.tell(world.frame(8))
    under_way = agent.ask()
    agent.tell(by_new_encoder(world.frame(9)))
    agent.tell(world.outcome(under_way))
    assert len(agent.surrogate.known) == 25
    site = agent.observations[-1].site
    assert (site.model_revision, site.track) == ("new", under_way.track)


def test_positions_of_another_registration_teach_nothing_about_places():
    agent, world = Explorer(unlimited()), World(0)
    explore(agent, world, 24)
    before = agent.ask()
    moved = world.frame(8, registration=Registration(revision=1))
    agent.tell(moved)
    after = agent.ask()
    assert after.registration_revision == 1
    assert after.track != before.track


@pytest.mark.parametrize("positions", [0, 1, 2])
def test_a_frame_with_hardly_an_atom_is_answered(positions):
    agent, world = Explorer(unlimited()), World(0)
    frame = world.frame(0)
    fields = {name: getattr(frame, name)[:positions] for name in per_atom_fields(frame)}
    agent.tell(msgspec.structs.replace(frame, **fields))
    assert (agent.ask() is None) == (positions == 0)
    agent.tell(world.frame(1))
    assert agent.ask() is not None


def per_atom_fields(latents: Latents) -> list[str]:
    arrays = {f: getattr(latents, f) for f in latents.__struct_fields__}
    return [name for name, value in arrays.items() if isinstance(value, np.ndarray)]


@pytest.mark.parametrize(
    "broken",
    [
        {"lengths": (np.full(4, np.nan), np.ones(1))},
        {"variance": np.array([-1.0, 0.1])},
        {"mean": np.inf},
    ],
)
def test_a_model_that_is_not_finite_decides_nothing_and_says_so(broken):
    agent, world = Explorer(unlimited()), World(0)
    explore(agent, world, 24)
    before = agent.statistics()["model not finite"]
    (model,) = agent.surrogate.models
    model.adopt(replace(model.hyperparameters, **broken), 24)
    suggestion = agent.ask()
    assert suggestion.reason.startswith("the model is not finite; first look: ")
    assert np.isnan([suggestion.predicted_mean, suggestion.predicted_sd, suggestion.acquisition]).all()
    assert agent.statistics()["model not finite"] == before + 1 == 1


@pytest.mark.parametrize("goal", ["map", "level_set"])
def test_a_model_that_is_not_finite_draws_no_first_site_either(goal):
    agent, world = Explorer(msgspec.structs.replace(unlimited(), goal=goal, level=0.0)), World(0)
    explore(agent, world, 3)
    (model,) = agent.surrogate.models
    model.adopt(replace(model.hyperparameters, lengths=(np.full(4, np.nan), np.ones(1))), 3)
    assert agent.ask().reason.startswith("the model is not finite; first look: ")


def test_a_fit_that_finds_no_number_leaves_the_last_one_and_is_counted(monkeypatch):
    agent, world = Explorer(unlimited()), World(0)
    explore(agent, world, 24)
    revision = agent.model_revision
    (model,) = agent.surrogate.models
    before = model.hyperparameters
    monkeypatch.setattr("agents.evidence.of_vector", lambda vector, parts: replace(before, mean=np.nan))
    explore(agent, world, 6)
    assert agent.model_revision > revision
    assert model.hyperparameters is before
    assert agent.statistics()["fits without result"] == agent.model_revision - revision
    assert agent.ask().reason.startswith(("expected", "hardly"))


def test_a_fit_says_what_it_found_and_on_how_much():
    agent, world = Explorer(unlimited(initial_points=8)), World(0)
    explore(agent, world, 7)
    agent.tell(world.frame(9))
    agent.tell(world.outcome(agent.ask()))
    assert agent.refit() is None  # due from the eighth on, and used from the ninth
    agent.think()
    agent.tell(world.outcome(agent.ask()))
    fit = agent.refit()
    assert (fit.policy, fit.session, fit.revision) == ("explorer", "s", 1)
    assert fit.observations == 8  # though a ninth is known: it became due at the eighth
    assert len(fit.parameters["latents lengths"]) == 4
    assert agent.refit() is None


def test_a_fit_that_was_made_beside_the_measuring_begins_nothing_anew_in_the_answer(monkeypatch):
    agent, world = Explorer(unlimited(initial_points=8)), World(0)
    explore(agent, world, 7)
    agent.tell(world.frame(9))
    agent.tell(world.outcome(agent.ask()))
    suggestion = agent.ask()
    agent.think()
    agent.tell(world.outcome(suggestion))
    assert agent.refit().revision == 1
    monkeypatch.delattr("agents.gaussian_process.GaussianProcess._forecast")
    assert agent.ask() is not None


def test_another_objective_in_the_configuration_wins_over_the_checkpoint():
    one, world = Explorer(unlimited()), World(0)
    explore(one, world, 12)
    tail = ObjectiveConfig(kind="peak_position", label="tail", window_ev=(0.0, 12.0), peak_half_width_ev=4.0)
    other = Explorer(unlimited(objective=tail))
    other.restore(*one.checkpoint())
    assert other.objective.name == "tail peak position (eV)"
    assert all(0.0 < o.reading.value < 12.0 for o in other.observations)
    one.change_objective(tail)
    again = Explorer(unlimited())
    again.restore(*one.checkpoint())
    assert again.objective.name == "tail peak position (eV)"
    frame = world.frame(9)
    suggestions = [msgspec.msgpack.encode(each.tell(frame) or each.ask()) for each in (one, again)]
    assert suggestions[0] == suggestions[1]


def test_what_is_under_way_makes_no_fit_due():
    agent, world = Explorer(unlimited(max_pending=4, initial_points=8)), World(0)
    agent.tell(world.frame(0))
    open_ones = [agent.ask() for _ in range(4)]
    known = 0
    while agent.refit() is None:
        agent.tell(world.outcome(open_ones.pop(0)))
        open_ones.append(agent.ask())
        known += 1
    assert known == agent.config.initial_points + ADOPTED_AFTER


def test_what_is_seen_beside_the_candidates_begins_nothing_anew():
    agent, world = Explorer(unlimited()), World(0)
    explore(agent, world, 24)
    agent.tell(world.frame(8))
    (model,) = agent.surrogate.models
    begun_with = model.begun_with
    agent.tell(world.outcome(agent.ask()))
    agent.tell(world.frame(8, encoder="beside"))
    assert (model.begun_with, len(model.known)) == (begun_with, begun_with + 1)
