"""The report says why it was measured there, and how to read what it shows."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest

from agents.config import AgentConfig
from agents.objective import ObjectiveConfig
from deploy import agent_figures, agent_sections
from deploy.agent_sections import strongest_latents, why
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
    assert f"probeloop explain {recorded.folder.name} NUMBER" in listed


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


def test_features_that_hardly_weigh_are_summed_up() -> None:
    weights = [{f"latent {k}": 2.0**-k for k in range(1, 12)} | {"position": 2.0**-11}]
    names, layers = agent_figures._layers(weights)
    assert names == [*(f"latent {k}" for k in range(1, 8)), "5 others"]
    assert layers.sum() == pytest.approx(1.0)
    assert layers[0, 0] == 0.5
