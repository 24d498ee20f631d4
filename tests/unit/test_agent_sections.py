"""The report says why it was measured there, and how to read what it shows."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from agents.config import AgentConfig
from agents.objective import ObjectiveConfig
from deploy import agent_figures, agent_sections
from deploy.agent_sections import strongest_latents, why
from deploy.learning_section import learning
from deploy.local import app
from deploy.material import Material
from deploy.session import gather, read_session
from streamer.journal import read_messages
from streamer.messages import ModelRevision, Suggestion
from tests.contract.test_agents import latents
from tests.recorded_agent import RecordedAgent

MEASURED = 24


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedAgent:
    """Measure 24 times, one of them refused by a person; the goal changes after 16."""
    one = RecordedAgent(tmp_path_factory.mktemp("why"), initial_points=4, refit_every=4)
    one.join()
    for number in range(MEASURED):
        if number == 16:
            one.steer(goal="minimise")
        answer = {"status": "refused", "reason": "declined: at the <edge>"} if number == 10 else {}
        one.measure(latents(number=number), **answer)
    one.journal.close()
    return one


@pytest.fixture(scope="module")
def told(recorded: RecordedAgent) -> dict[str, str]:
    return parts(why(material(recorded)))


def material(recorded: RecordedAgent, **changes: object) -> Material:
    def no_weights() -> None:
        raise FileNotFoundError("there are no weights in this test")

    session = read_session(recorded.folder)
    return Material(session, AgentConfig(**changes) if changes else recorded.config, no_weights)  # type: ignore[arg-type]


def parts(text: str) -> dict[str, str]:
    """The content under each title."""
    _, *rest = re.split(r"<h3>(.*?)</h3>", text)
    return {html.unescape(name): content for name, content in zip(rest[::2], rest[1::2], strict=True)}


def test_the_section_has_a_picture_or_a_table_and_a_sentence_of_how_to_read_it_in_each_part(
    told: dict[str, str],
) -> None:
    assert list(told) == [
        "What it expected, and what came",
        "What it followed",
        "Its way",
        "What a person changed",
        "Each suggestion",
    ]
    for title in list(told)[:3]:
        assert "data:image/png" in told[title], title
        assert len(re.sub("<[^>]*>", "", told[title])) > 100, title
    assert "values that were forecast before they were measured" in told["What it expected, and what came"]


def test_each_suggestion_is_listed_with_the_five_that_came_next(
    recorded: RecordedAgent, told: dict[str, str]
) -> None:
    listed = told["Each suggestion"]
    assert all(one.id in listed for one in recorded.suggestions)
    forecast = [one for one in recorded.suggestions if np.isfinite(one.predicted_mean)]
    assert 15 < len(forecast) < MEASURED
    assert listed.count("<td>chosen</td>") == len(forecast)
    assert listed.count("<td>5.</td>") == len(forecast)
    assert "would now go elsewhere" not in listed


def test_what_a_person_changed_is_told_with_where_and_why_and_no_word_becomes_markup(
    told: dict[str, str],
) -> None:
    changed = told["What a person changed"]
    assert "<td>16</td><td>goal = minimise</td><td>a better &lt;idea&gt;</td>" in changed
    assert "1 declined" in changed
    assert "<edge>" not in told["Each suggestion"]


def test_suggestions_that_would_not_be_made_now_are_counted_and_still_listed(recorded: RecordedAgent) -> None:
    listed = parts(why(material(recorded, initial_points=6)))["Each suggestion"]
    assert "would now go elsewhere" in listed
    assert all(one.id in listed for one in recorded.suggestions)


def test_without_the_file_of_an_objective_the_suggestions_are_listed_and_the_reason_is_told(
    recorded: RecordedAgent,
) -> None:
    gone = ObjectiveConfig(kind="similarity", target="gone.npy")
    listed = parts(why(material(recorded, objective=gone)))["Each suggestion"]
    assert "What else was weighed is not known" in listed
    assert "gone.npy" in listed
    assert all(one.id in listed for one in recorded.suggestions)


def test_of_very_many_suggestions_the_list_has_a_row_each(
    recorded: RecordedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_sections, "WEIGHED_AGAIN", 5)
    listed = parts(why(material(recorded)))["Each suggestion"]
    assert listed.count("<tr>") == MEASURED + 1
    assert f"probeloop explain {recorded.folder} NUMBER" in listed


def test_the_command_that_the_report_names_explains_a_suggestion(told: dict[str, str]) -> None:
    (words,) = re.findall(r"probeloop (explain .*) NUMBER", told["Each suggestion"])
    done = CliRunner().invoke(app, [*shlex.split(html.unescape(words)), "3"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("3. ")


def test_a_session_without_an_agent_says_so(recorded: RecordedAgent) -> None:
    kept = [(at, one) for at, one in read_messages(recorded.folder) if not isinstance(one, Suggestion)]
    one = Material(gather(Path("s"), kept), recorded.config, lambda: None)  # type: ignore[arg-type, return-value]
    assert why(one) == '<p class="nothing">No agent suggested anything.</p>'


def test_the_way_is_drawn_through_the_latents_that_weigh_most(recorded: RecordedAgent) -> None:
    course = material(recorded).session.agent_course
    course.fits.append(
        (
            24,
            ModelRevision(
                session="s",
                policy="explorer",
                revision=99,
                told=0,
                observations=24,
                parameters={"latents variance": [1.0], "latents lengths": [2.0, 9.0, 1.0]},
            ),
        )
    )
    assert strongest_latents(course, 3) == (0, 2)
    course.fits.clear()
    assert strongest_latents(course, 3) == (0, 1)
    assert strongest_latents(course, 1) == (0, -1)


TRADE_OFF = {
    "goal": "trade_off",
    "second_objective": {"window_ev": [150.0, 200.0], "background_model": "none", "normalise": "none"},
    "trade_off": {"second": "minimise", "is_planned": False},
    "features": ["latents + position", "position"],
    "initial_points": 4,
    "refit_every": 4,
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> RecordedAgent:
    """Measure 14 times for a trade-off; both objectives grow to the right, and less is wanted of one."""
    one = RecordedAgent(tmp_path_factory.mktemp("two"), **TRADE_OFF)
    one.join()
    for number in range(14):
        one.measure(latents(number=number))
    one.journal.close()
    return one


def test_of_a_trade_off_the_features_and_models_of_both_objectives_are_shown(
    of_two: RecordedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    draw = agent_figures.weights_figure

    def noted(after: object, panels: dict[str, object], *rest: object) -> object:
        drawn.extend(panels)
        return draw(after, panels, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(agent_figures, "weights_figure", noted)
    followed = parts(why(material(of_two)))["What it followed"]
    assert drawn == [
        "what the forecasts follow",
        "which model is trusted",
        "what the forecasts of the second objective follow",
        "which model of the second objective is trusted",
    ]
    assert re.search(r"\d+% to [\w ]+ and \d+% to [\w ]+ by the second objective in the end", followed)
    assert re.search(r"\d+% to «[\w +]+» and \d+% to «[\w +]+» by the second objective", followed)


def test_of_a_trade_off_the_terminal_says_what_both_forecasts_follow(of_two: RecordedAgent) -> None:
    words = ["explain", str(of_two.folder), "14"]
    text = CliRunner().invoke(app, words, env={"COLUMNS": "200"}).output
    assert re.search(r"^follows: +\w.*%$", text, flags=re.MULTILINE)
    assert re.search(r"^second: +\w.*%$", text, flags=re.MULTILINE)
    facts = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert sum(facts["feature_weights"].values()) == pytest.approx(1.0)
    assert sum(facts["second_feature_weights"].values()) == pytest.approx(1.0)


def test_of_a_trade_off_the_front_is_shown_that_was_measured_by_both_objectives(
    of_two: RecordedAgent,
) -> None:
    one = material(of_two)
    found = np.array([(o.reading.value, o.second.value) for o in of_two.agent.observations])  # type: ignore[attr-defined]
    assert one.traded.tolist() == found.tolist()
    told = html.unescape(learning(one))
    turned = found * [1, -1]
    front = sum(not ((turned >= each).all(axis=1) & (turned > each).any(axis=1)).any() for each in turned)
    assert 1 < front < len(found)
    assert f"{front} of 14 measurements are on the front" in told
    assert f"more {one.objective_name} and less 150–200 eV" in told
    assert "data:image/png" in told
    off_the_axis = ObjectiveConfig(window_ev=(900.0, 950.0), background_model="none", normalise="none")
    assert "Fewer than two" in learning(material(of_two, goal="trade_off", second_objective=off_the_axis))


def test_features_that_hardly_weigh_are_summed_up() -> None:
    weights = [{f"latent {k}": 2.0**-k for k in range(1, 12)} | {"position": 2.0**-11}]
    names, layers = agent_figures._layers(weights)
    assert names == [*(f"latent {k}" for k in range(1, 8)), "5 others"]
    assert layers.sum() == pytest.approx(1.0)
    assert layers[0, 0] == 0.5
