"""Why it was measured there, as a section of the report: what was expected, what came, and what decided."""

from __future__ import annotations

import html
import shlex
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from agents.explanation import feature_weights, model_weights, of_objectives
from deploy import agent_figures, figures
from deploy.agent_course import AgentCourse, Calibration, Decided
from deploy.agent_figures import Background
from deploy.agent_words import (
    RANKED,
    calibration_in_words,
    feature_text,
    offered_in_words,
    outcome_in_words,
    ranking_rows,
    surprise_in_words,
    with_sd,
)
from deploy.decided_again import WeighedAgain, weighed_again
from deploy.html_parts import counted, folded, nothing, paragraph, picture, table
from deploy.live_view import number_text, position_text
from deploy.material import Material
from deploy.session import Session

Float64 = NDArray[np.float64]
WEIGHED_AGAIN = 400  # suggestions: of more, the alternatives are left to the command, which is asked for one


def why(material: Material) -> str:
    """Show what the agent expected and what came, what it followed, its way, and each suggestion."""
    course = material.session.agent_course
    if not course.decided:
        return nothing("No agent suggested anything.")
    parts = (
        ("What it expected, and what came", _forecasts(course)),
        ("What it followed", _features(course)),
        ("Its way", _way(material)),
        ("What a person changed", _people(course)),
        ("Each suggestion", _each(material)),
    )
    return "".join(f"<h3>{html.escape(title)}</h3>{content}" for title, content in parts if content)


# -- forecasts -------------------------------------------------------------------------------------


def _forecasts(course: AgentCourse) -> str:
    foretold = course.foretold
    calibration = Calibration.of(list(course.decided.values()))
    if calibration is None:
        return nothing(
            "Fewer than three values came with a forecast made before, so forecasts were not judged."
        )
    # Values of two objectives do not go on one axis.
    objective = foretold[-1].objective
    shown = [one for one in foretold if one.objective == objective]
    figure = agent_figures.forecasts_figure(
        np.array([one.order for one in shown]),
        np.array([0.0 if one.score is None else one.score.value for one in shown]),
        np.array([one.suggestion.predicted_mean for one in shown]),
        np.array([one.sd for one in shown]),
        [change.after for change in course.changes],
        objective,
    )
    return paragraph(calibration_in_words(calibration)) + picture(
        figure,
        "Each bar is what was expected of a site before it was measured, with 90 % probability and the noise "
        "of the measurement; each dot is what came. Right: a line along the diagonal is a forecast that "
        "knows how sure it is; below it the forecast is too sure, above it too cautious.",
    )


# -- features --------------------------------------------------------------------------------------


def _features(course: AgentCourse) -> str:
    fits = [(after, of_objectives(fit.parameters)) for after, fit in course.fits]
    known = [(after, each) for after, each in fits if feature_weights(each[0])]
    if not known:
        return nothing("The model was not fitted, so no feature has more weight than another.")
    # Where there was a second objective for a part of the session only, that part has none to show.
    objectives = min(len(each) for _, each in known)
    panels: dict[str, list[dict[str, float]]] = {}
    for index, of in enumerate(("", " of the second objective")[:objectives]):
        features = [feature_weights(each[index]) for _, each in known]
        models = [model_weights(each[index]) for _, each in known]
        named = [{feature_text(name): share for name, share in one.items()} for one in features]
        panels[f"what the forecasts{of} follow"] = named
        panels |= {f"which model{of} is trusted": models} if any(models) else {}
    figure = agent_figures.weights_figure(
        np.array([after for after, _ in known], dtype=np.float64),
        panels,
        len(course.decided),
        [change.after for change in course.changes],
    )
    return picture(figure, _features_caption(known[-1][1][:objectives]))


def _features_caption(each: list[dict[str, list[float]]]) -> str:
    of = ("", " by the second objective")
    strongest = " and ".join(
        f"{share:.0%} to {feature_text(name)}{of[index]}"
        for index, (name, share) in enumerate(_largest(feature_weights(one)) for one in each)
    )
    told = (
        "From fit to fit, which part of what may differ between two sites is put down to each feature: "
        f"{strongest} in the end. A thick layer of position says that "
        "neighbours are alike whatever they look like; of a latent, that what it shows decides (see what the "
        "encoder has learnt, above). Layers that jump from fit to fit are not yet known."
    )
    trusted = [model_weights(one) for one in each]
    if not all(trusted):
        return told
    best = " and ".join(
        f"{share:.0%} to «{name}»{of[index]}"
        for index, (name, share) in enumerate(_largest(one) for one in trusted)
    )
    return (
        f"{told} Right: each model is trusted by how well it foretold what was then measured; {best} in the "
        "end."
    )


def _largest(weights: dict[str, float]) -> tuple[str, float]:
    return max(weights.items(), key=lambda item: item[1])


# -- the way ---------------------------------------------------------------------------------------


def _way(material: Material) -> str:
    session = material.session
    shown = _seen(session)
    latents = session.latents
    if latents is None or len(shown) < 2:
        return nothing("Fewer than two suggestions were of sites whose latents are known.")
    first, second = strongest_latents(session.agent_course, latents.mean.shape[1])
    sites = np.array([one.latents for one in shown])
    background = _background(session)
    places = np.array([one.suggestion.position_nm for one in shown])
    figure = agent_figures.way_figure(
        background,
        latents.geometry.to_px(places),
        _two(latents.mean, first, second),
        _two(sites, first, second),
        np.array([one.order for one in shown]),
        (f"latent {first + 1}", f"latent {second + 1}" if second >= 0 else ""),
    )
    return picture(
        figure,
        f"{'' if background is None else 'Left: over the field. Right: '}In the two latents that its model "
        f"followed most, grey: those of all sites of frame {latents.number}. Dark dots came first. Dots of "
        "one colour close together in the latents are a search that has found what it looks for, wherever "
        "these sites lie in the field; dots all over are one that looks for it, or has taken all there is.",
    )


def _seen(session: Session) -> list[Decided]:
    """The suggestions whose latents are known and are of the last encoder's number."""
    width = -1 if session.latents is None else session.latents.mean.shape[1]
    decided = session.agent_course.decided.values()
    return [one for one in decided if one.latents is not None and len(one.latents) == width]


def _two(mean: NDArray[np.floating], first: int, second: int) -> Float64:
    """Take two latents of many; where there is one only, the other is 0."""
    other = mean[:, second] if second >= 0 else np.zeros(len(mean))
    return np.stack([mean[:, first], other], axis=1).astype(np.float64)


def strongest_latents(course: AgentCourse, width: int) -> tuple[int, int]:
    """Say which two latents the last fit followed most, from 0; the first two where none did, -1 for none."""
    weights = feature_weights(of_objectives(course.fits[-1][1].parameters)[0]) if course.fits else {}
    by_weight = sorted(range(width), key=lambda index: -weights.get(f"latents {index + 1}", 0.0))
    first, second, *_ = (*by_weight[:2], -1, -1)
    return (first, second) if second < 0 else (min(first, second), max(first, second))


def _background(session: Session) -> Background | None:
    if session.atoms is None:
        return None
    frame = session.atoms.frame
    image = figures.smoothed(frame.image[0], session.atoms.positions_px)
    return Background(image=image, geometry=frame.geometry)


# -- people ----------------------------------------------------------------------------------------


def _people(course: AgentCourse) -> str:
    said = {word: course.said[word] for word in ("approve", "declined", "veto") if course.said[word]}
    ended = Counter(one.status for one in course.decided.values())
    told = ""
    if said or ended["withdrawn"]:
        words = {"approve": "approved", "declined": "declined", "veto": "vetoed"}
        counts = [f"{count:,} {words[word]}" for word, count in said.items()]
        counts += [f"{ended['withdrawn']:,} withdrawn before anybody decided"] if ended["withdrawn"] else []
        told = paragraph(f"Of {counted(len(course.decided), 'suggestion')}: {', '.join(counts)}.")
    if course.changes:
        rows = [(f"{one.after:,}", one.what, one.reason) for one in course.changes]
        told += table(("after suggestion", "what", "why"), rows)
        told += paragraph("What came before a change was looked for with what was set before it.")
    return told


# -- one by one ------------------------------------------------------------------------------------


def _each(material: Material) -> str:
    course = material.session.agent_course
    head = paragraph(
        "The score is what the sites were ranked by: the one with the largest was taken. It is a logarithm, "
        "so that a difference of 1 is a factor of 2.7 in what was hoped for: where those that came next have "
        "nearly the score of the chosen one, they would have done as well. In the terminal: "
        f"probeloop explain {shlex.quote(str(material.session.folder))} NUMBER."
    )
    if len(course.decided) > WEIGHED_AGAIN:
        rows = [_row(one) for one in course.decided.values()]
        listed = table(("", "place", "expected", "measured", "off by", "score", "why"), rows)
    else:
        again, note = _weighed_again(material)
        head += note
        listed = "".join(_one(one, again.get(identifier)) for identifier, one in course.decided.items())
    return head + folded(counted(len(course.decided), "suggestion"), listed)


def _weighed_again(material: Material) -> tuple[dict[str, WeighedAgain], str]:
    """Weigh each suggestion anew; say what cannot be known."""
    try:
        each = list(weighed_again(material.session.folder, material.agent))
    except (OSError, ValueError) as error:  # such as of an objective whose file is gone
        return {}, nothing(f"What else was weighed is not known: {error}")
    again = {one.suggestion.id: one for one in each}
    unlike = sum(one.explanation is None for one in each)
    if not unlike:
        return again, ""
    return again, paragraph(
        f"For {unlike:,} of them this version of the program would now go elsewhere, so what came next to "
        "these is not known."
    )


def _row(one: Decided) -> tuple[str, ...]:
    expected = one.suggestion
    return (
        f"{one.order:,}",
        position_text(expected.position_nm),
        with_sd(expected.predicted_mean, expected.predicted_sd),
        outcome_in_words(one),
        surprise_in_words(one),
        number_text(expected.acquisition),
        expected.reason,
    )


def _one(one: Decided, again: WeighedAgain | None) -> str:
    number, place, expected, came, off, _, reason = _row(one)
    title = f"{number}. {place}: expected {expected}, " if expected != "–" else f"{number}. {place}: "
    title += f"measured {came}" if one.score is not None else came
    title += f" ({off})" if off else ""
    content = paragraph(f"{one.suggestion.id}: {reason}.")
    explanation = None if again is None else again.explanation
    if explanation is not None:
        content += paragraph(offered_in_words(explanation))
        content += table(RANKED, ranking_rows(explanation.ranking)) if explanation.ranking else ""
    return folded(title, content)
