"""What an agent decided and what came of it, in words: the same in the report and in the terminal."""

from __future__ import annotations

import math

from agents.explanation import Explanation, Prospect
from deploy.agent_course import Calibration, Decided
from deploy.live_view import number_text, position_text

RANKED = ("", "place", "atom", "expected", "score", "cost")
MOST_NAT = 20.0  # a factor of half a thousand million
MOST_DECIMALS = 6  # with more, a number is written with a power of ten


def calibration_in_words(calibration: Calibration) -> str:
    """Say how far forecasts could be believed."""
    c = calibration
    held = " and ".join(f"{came:.0%} lay within the {part:.0%} interval" for part, came in c.coverage.items())
    gain = c.usual_nll - c.nll
    verdict = "knew more than that" if gain > 0 else "knew no more than that"
    return (
        f"Of {c.count:,} values that were forecast before they were measured, {held}: they were "
        f"{_how_far_off(c)} ({c.surprise_rms:.2f} sd, root mean square). The forecasts made what came "
        f"{_times_text(gain)} times as probable as the mean and the spread of the values before "
        f"({gain:+.2f} nat each), so the model {verdict}; in the root mean square it was "
        f"{number_text(c.error, 2)} off, that mean {number_text(c.usual_error, 2)}."
    )


def _times_text(nat: float) -> str:
    """Write how many times so many nat are; where they are very many, their power of ten."""
    if abs(nat) < MOST_NAT:
        return number_text(math.exp(nat), 2)
    return f"10^{nat / math.log(10):,.0f}"


def _how_far_off(c: Calibration) -> str:
    # Of n values as normal as forecast, one in twenty has a root mean square this far from 1.
    by_chance = 1.96 / math.sqrt(2 * c.count)
    if c.surprise_rms > 1 + by_chance:
        return "further off than they said, so take their ± for too small"
    if c.surprise_rms < 1 - by_chance:
        return "nearer than they said, so take their ± for too large"
    return "about as far off as they said"


def weights_in_words(weights: dict[str, float], most: int = 4) -> str:
    """Name the features that forecasts follow most, with their shares."""
    named = sorted(weights.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{feature_text(name)} {weight:.0%}" for name, weight in named)


def feature_text(name: str) -> str:
    """Name a feature of ``feature_weights`` as a person does: ``latent 2``."""
    return name.replace("latents ", "latent ", 1)


def with_sd(value: float, sd: float) -> str:
    """Write a value and its sd to two digits of the sd; a dash where there is no value."""
    if not math.isfinite(value):
        return "–"
    if not (math.isfinite(sd) and sd > 0):
        return number_text(value)
    decimals = 1 - math.floor(math.log10(sd))
    if decimals > MOST_DECIMALS:
        power = math.floor(math.log10(max(abs(value), sd)))
        places = decimals + power
        return f"({value / 10**power:.{places}f} ± {sd / 10**power:.{places}f})e{power:+03d}"
    return f"{value:,.{max(decimals, 0)}f} ± {sd:,.{max(decimals, 0)}f}"


def outcome_in_words(one: Decided) -> str:
    """Write what came of a suggestion."""
    if one.score is not None:
        return with_sd(one.score.value, math.sqrt(one.score.variance))
    return ": ".join(word for word in (one.status or "no outcome", one.reason) if word)


def surprise_in_words(one: Decided) -> str:
    """Write how far the value came from its forecast; empty where there was none."""
    return f"{one.surprise:+.1f} sd" if math.isfinite(one.surprise) else ""


def offered_in_words(explanation: Explanation) -> str:
    """Say what a suggestion was chosen from."""
    if not explanation.offered:
        return "A scan of a region: no sites were weighed against each other."
    came_next = "those that came next:" if explanation.ranking else "not by a score."
    return f"Chosen among {explanation.offered:,} sites, {came_next}"


def ranking_rows(ranking: tuple[Prospect, ...]) -> list[tuple[str, ...]]:
    """Write the chosen site and those that came next, as rows under ``RANKED``."""
    return [
        (
            "chosen" if place == 0 else f"{place}.",
            position_text(one.position_nm),
            str(one.track) if one.track >= 0 else "–",
            with_sd(one.predicted_mean, one.predicted_sd),
            number_text(one.acquisition),
            number_text(one.cost, 3) if one.cost else "–",
        )
        for place, one in enumerate(ranking)
    ]
