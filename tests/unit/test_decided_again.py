"""Each suggestion of a recorded session is weighed again as it was weighed when it was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from deploy.agent_records import records_of_agent
from deploy.decided_again import WeighedAgain, weighed_again
from deploy.local import app
from streamer.codec import encode
from streamer.journal import Journal, JournalConfig, read_records
from streamer.messages import AnyMessage, Hello, Latents, Message, Suggestion
from tests.contract.test_agents import latents, outcome
from tests.recorded_agent import RecordedAgent

SETTINGS = {"initial_points": 4, "refit_every": 4}
MEASURED = 18


def night(folder: Path) -> RecordedAgent:
    """Measure 18 times: the agent comes after the first frame, is steered after 9 and restarted after 12.

    Another agent of its policy suggests something once.
    """
    folder.mkdir()
    one = RecordedAgent(folder, **SETTINGS)
    one.record(latents(number=100, seed=5))
    one.join()
    for number in range(MEASURED):
        if number == 9:
            one.steer(goal="minimise")
        if number == 12:
            one.restart()
        if number == 14:
            others = replace(one.suggestions[3], id="other-1", told=one.told)
            one.record(Hello(role="agent", name="agent other", instance="b1"))
            one.record(others, "b1")
            one.record(outcome(others))
        one.measure(latents(number=number), **({"status": "refused"} if number == 6 else {}))
    one.journal.close()
    return one


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedAgent:
    return night(tmp_path_factory.mktemp("recorded") / "night")


def again(recorded: RecordedAgent, folder: Path | None = None) -> list[WeighedAgain]:
    return list(weighed_again(folder or recorded.folder, recorded.config))


def rewritten(session: Path, folder: Path, change: Callable[[AnyMessage], Message], first: int = 1) -> Path:
    """Copy a journal from a record on, each message as ``change`` makes it."""
    journal = Journal(folder, JournalConfig())
    journal.next_record = first
    for record in read_records(session):
        numbered = record.numbered()
        message = change(numbered.message)
        if record.number >= first:
            parts = encode(message, sender=numbered.sender, sequence=numbered.sequence)
            journal.append(parts, 1e9, kind=record.kind, monotonic_s=50.0)
    journal.close()
    return folder


def test_an_agent_that_was_steered_before_its_first_suggestion_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "steered"
    folder.mkdir()
    one = RecordedAgent(folder, **SETTINGS)
    one.join()
    one.steer(policy="raster")
    one.measure(latents(number=1))
    one.journal.close()
    (found,) = again(one)
    assert found.suggestion.policy == "raster"


def test_every_suggestion_is_the_first_of_what_was_weighed_again(recorded: RecordedAgent) -> None:
    found = again(recorded)
    assert [one.suggestion.id for one in found] == [one.id for one in recorded.suggestions]
    ranked = 0
    for one in found:
        assert one.explanation is not None, one.suggestion.id
        assert one.explanation.reason == one.suggestion.reason
        if one.explanation.ranking:
            ranked += 1
            first = one.explanation.ranking[0]
            assert first.predicted_mean == one.suggestion.predicted_mean
            assert first.predicted_sd == one.suggestion.predicted_sd
            assert first.acquisition == one.suggestion.acquisition
            assert first.track == one.suggestion.track
    assert ranked == MEASURED - SETTINGS["initial_points"]


def test_frames_from_before_the_agent_came_are_not_told_to_it(recorded: RecordedAgent) -> None:
    told = [message for _, message in records_of_agent(recorded.folder, "explorer")]
    frames = [message.number for message in told if isinstance(message, Latents)]
    assert frames == list(range(MEASURED))


def test_a_suggestion_that_would_not_be_made_now_is_not_explained_and_those_after_it_are(
    recorded: RecordedAgent, tmp_path: Path
) -> None:
    other = recorded.suggestions[7]

    def change(message: AnyMessage) -> Message:
        if isinstance(message, Suggestion) and message.id == other.id:
            return replace(message, position_nm=(other.position_nm[0] + 0.01, other.position_nm[1]))
        return message

    found = again(recorded, rewritten(recorded.folder, tmp_path / "changed", change))
    unexplained = [one.suggestion.id for one in found if one.explanation is None]
    assert unexplained == [other.id]


def test_a_journal_without_its_beginning_is_gone_on_with_from_the_agents_checkpoint(
    recorded: RecordedAgent, tmp_path: Path
) -> None:
    kept = next(record.number for record in read_records(recorded.folder) if record.kind == "checkpoint")
    folder = rewritten(recorded.folder, tmp_path / "cut off", lambda message: message, first=kept)
    found = again(recorded, folder)
    assert [one.suggestion.id for one in found] == [one.id for one in recorded.suggestions[12:]]
    assert all(one.explanation is not None for one in found)


def test_a_scan_of_a_region_is_explained_by_its_reason_alone(tmp_path: Path) -> None:
    one = RecordedAgent(tmp_path, initial_points=4, scan={"every": 3, "min_atoms": 2})
    one.join()
    novel = np.where(np.arange(60) % 8 < 2, 9.0, 0.0).astype(np.float32)
    for number in range(9):
        one.measure(latents(number=number, novelty=novel))
    one.journal.close()
    found = again(one)
    scans = [each for each in found if each.suggestion.action == "scan"]
    assert scans
    for each in scans:
        assert each.explanation is not None
        assert each.explanation.reason == each.suggestion.reason
        assert each.explanation.ranking == ()
    assert all(each.explanation is not None for each in found)
    code, text = run(tmp_path, scans[-1].suggestion.id)
    assert code == 0
    assert "A scan of a region" in text


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["explain", *map(str, words)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_the_command_says_what_was_expected_what_came_and_what_came_next(recorded: RecordedAgent) -> None:
    code, text = run(recorded.folder, 8)
    said = recorded.suggestions[7]
    assert code == 0
    assert text.startswith(f"8. {said.id}: ")
    assert said.reason in text
    assert "sd from what was expected" in text
    assert text.count("│") == 6 * 7, "the chosen one and five more, in six columns"
    assert run(recorded.folder, said.id)[1] == text
    assert run(recorded.folder)[1].startswith(f"{MEASURED + 1}. ")
    assert "no model took part" in run(recorded.folder, 1)[1]


def test_the_command_prints_the_same_as_one_json_object(recorded: RecordedAgent) -> None:
    code, text = run(recorded.folder, 8, "--json", "--alternatives", 2)
    facts = json.loads(text)
    assert code == 0
    assert facts["suggestion"]["id"] == recorded.suggestions[7].id
    ranking = facts["explanation"]["ranking"]
    assert len(ranking) == 3
    assert ranking[0]["predicted_mean"] == recorded.suggestions[7].predicted_mean
    assert sum(facts["feature_weights"].values()) == pytest.approx(1.0)


def test_a_suggestion_that_is_not_there_is_refused_by_what_is(
    recorded: RecordedAgent, tmp_path: Path
) -> None:
    code, text = run(recorded.folder, "explorer-x")
    assert code == 2
    assert f"its number from 1 to {MEASURED + 1}" in text
    assert run(recorded.folder, 0)[0] == 2
    assert run(tmp_path / "nothing")[0] == 2
