"""``probeloop explain SESSION [WHICH]``: why a session measured there, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from agents.config import load_agent_config
from agents.explanation import Explanation, feature_weights, of_objectives
from deploy.agent_course import AgentCourse, Calibration, Decided
from deploy.agent_words import (
    RANKED,
    calibration_in_words,
    offered_in_words,
    outcome_in_words,
    ranking_rows,
    surprise_in_words,
    weights_in_words,
    with_sd,
)
from deploy.decided_again import weighed_again
from deploy.live_view import position_text
from streamer.journal import read_messages

KINDS = ("latents", "suggestion", "outcome", "score", "model_revision", "control")


class NotSuggestedError(LookupError):
    """There is no such suggestion in the session."""


def read_course(folder: Path) -> AgentCourse:
    """Read what the agents of a session suggested and what came of it.

    Raises
    ------
    FileNotFoundError
        If the folder holds no journal.
    """
    course = AgentCourse()
    for _, message in read_messages(folder, KINDS):
        course.add(message)
    return course


def find(course: AgentCourse, which: str) -> Decided:
    """Find a suggestion by its id or its number, from 1; the last for an empty word.

    Raises
    ------
    NotSuggestedError
        With what there is instead.
    """
    decided = list(course.decided.values())
    if not decided:
        raise NotSuggestedError("no agent suggested anything in this session")
    if which in course.decided:
        return course.decided[which]
    if not which or (which.isdigit() and 1 <= int(which) <= len(decided)):
        return decided[int(which or len(decided)) - 1]
    last = decided[-1]
    raise NotSuggestedError(
        f"no suggestion is called {which!r}; say its id, or its number from 1 to {len(decided)}: "
        f"{last.order} is {last.suggestion.id}"
    )


def weigh(folder: Path, one: Decided, alternatives: int) -> Explanation | None:
    """Decide a session anew up to a suggestion, and say why it was made.

    Parameters
    ----------
    folder
        Of the session; the settings of its agent are read from its ``config.toml``.
    one
        The suggestion.
    alternatives
        As in ``SiteAgent.explain``.

    Raises
    ------
    ConfigError
        If the settings cannot be used.
    """
    path = folder / "config.toml"
    config = load_agent_config(path if path.exists() else None)
    again = weighed_again(folder, config, alternatives)
    return next((each.explanation for each in again if each.suggestion.id == one.suggestion.id), None)


def print_why(console: Console, course: AgentCourse, one: Decided, explanation: Explanation | None) -> None:
    """Write why a suggestion was made, for a person."""
    for line in (*_facts(one), *_reasons(course, one, explanation)):
        console.print(line, markup=False, soft_wrap=True)
    if explanation is not None and explanation.ranking:
        table = Table(*RANKED)
        for row in ranking_rows(explanation.ranking):
            table.add_row(*row)
        console.print(table)
        console.print(
            "The score is what the sites were ranked by, a logarithm: 1 more is 2.7 times the hope.",
            markup=False,
            soft_wrap=True,
        )


def _facts(one: Decided) -> list[str]:
    said = one.suggestion
    atom = f", atom {said.track}" if said.track >= 0 else ""
    expected = with_sd(said.predicted_mean, said.predicted_sd)
    off = surprise_in_words(one)
    came = f"measured {outcome_in_words(one)}" if one.score is not None else outcome_in_words(one)
    return [
        f"{one.order}. {said.id}: {position_text(said.position_nm)}{atom}, decided on frame {said.number}",
        f"why:      {said.reason}",
        f"expected: {expected if expected != '–' else 'nothing: no model took part'}",
        f"came:     {came}{f', {off} from what was expected' if off else ''}",
    ]


def _reasons(course: AgentCourse, one: Decided, explanation: Explanation | None) -> list[str]:
    parameters = of_objectives({} if explanation is None else explanation.parameters)
    each = zip(("follows:  ", "second:   "), map(feature_weights, parameters), strict=False)
    lines = [f"{head}{weights_in_words(weights)}" for head, weights in each if weights]
    before = [other for other in course.decided.values() if other.order < one.order]
    calibration = Calibration.of(before)
    if calibration is not None:
        lines.append(f"till then: {calibration_in_words(calibration)}")
    if explanation is None:
        lines.append("what else was weighed is not known: told the same, this version would go elsewhere now")
    else:
        lines.append(offered_in_words(explanation))
    return lines


def as_facts(one: Decided, explanation: Explanation | None) -> dict[str, Any]:
    """Say the same as plain values, for a program."""
    parameters = of_objectives({} if explanation is None else explanation.parameters)
    weights = [feature_weights(one) for one in parameters]
    return {
        "order": one.order,
        "suggestion": msgspec.to_builtins(one.suggestion),
        "status": one.status,
        "value": None if one.score is None else one.score.value,
        "surprise_sd": one.surprise,
        "explanation": None if explanation is None else msgspec.to_builtins(explanation),
        "feature_weights": weights[0],
        "second_feature_weights": weights[1] if len(weights) > 1 else {},
    }
