"""How fast the best was found, as a section of the report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.goals import TradeOff
from agents.pareto import dominated_area, dominated_by, reference_of
from deploy import agent_figures, figures
from deploy.html_parts import counted, nothing, paragraph, picture
from deploy.learning_curve import best_so_far, chance, draws_to_find, measurements_to_reach, reading_order
from deploy.material import NEAR_NM, Material, nearest

Float64 = NDArray[np.float64]
GOOD_ENOUGH = 0.95


def learning(material: Material) -> str:
    """Show how fast the best was found, against the baselines where the truth is known."""
    measured = material.session.measured
    if not measured:
        return nothing("No measurement gave a value, so there is nothing to learn from.")
    values = np.array([m.value for m in measured])
    sites, sign = material.sites, material.sign
    if material.agent.goal == "trade_off":
        return _trade_off(material)
    if not material.has_best:
        return nothing(f"No best value was looked for: the goal was {material.agent.goal}.")
    if sites is None:
        curve = figures.Curve(
            name="best measured", values=sign * best_so_far(sign * values), colour=figures.BLUE
        )
        figure = figures.learning_figure(values, [curve], None, material.objective_name)
        return picture(figure, "Best value so far.") + nothing(
            "The truth is not known here, so there are no baselines to compare with."
        )
    on_site = nearest(sites.positions_nm, [m.position_nm for m in measured], NEAR_NM)
    true_values = np.where(on_site >= 0, sites.values[on_site], np.nan)
    curves = _curves(sign * true_values, sign * sites.values, sites.positions_nm)
    best_possible = float((sign * sites.values).max())
    signed = [
        figures.Curve(
            name=c.name,
            values=sign * c.values,
            colour=c.colour,
            low=None if c.low is None else sign * c.low,
            high=None if c.high is None else sign * c.high,
        )
        for c in curves
    ]
    figure = figures.learning_figure(values, signed, sign * best_possible, material.objective_name)
    caption = (
        f"Best true value so far, among the {len(sites.values):,} sites to choose from. "
        "Random: expectation over all orders, with the band from the tenth to the ninetieth percentile. "
        "Dots: values as measured, with their noise."
    )
    return picture(figure, caption) + paragraph(_verdict(curves[0].values, sign * sites.values))


def _trade_off(material: Material) -> str:
    """Show what was measured by both objectives, and how the front grew."""
    values, second = material.traded, material.second_objective
    if second is None or len(values) < 2:
        return nothing("Fewer than two measurements gave a value by both objectives of the trade-off.")
    signs = TradeOff(material.agent.trade_off).signs
    turned = values * signs
    reference = reference_of(turned)
    area = np.array([dominated_area(turned[: k + 1], reference) for k in range(len(turned))])
    on_front = int((dominated_by(turned) == 0).sum())
    names = (material.objective_name, second.name)
    less_or_more = ("less" if sign < 0 else "more" for sign in signs)
    wanted = " and ".join(f"{word} {name}" for word, name in zip(less_or_more, names, strict=True))
    early = measurements_to_reach(area, GOOD_ENOUGH * area[-1])
    assert early is not None
    figure = agent_figures.trade_off_figure(values, signs, area / area[-1], names)
    caption = (
        "Left: each measurement by both objectives, with its noise, the dark ones first; the line is the "
        f"front, which no measurement is beyond by both: {wanted}. Right: the area that the front dominates."
    )
    told = (
        f"{on_front:,} of {counted(len(values), 'measurement')} are on the front: none is better by one "
        f"objective and no worse by the other. {GOOD_ENOUGH:.0%} of the area that it dominates in the end "
        f"were dominated after {counted(early, 'measurement')}."
    )
    return picture(figure, caption) + paragraph(told)


def _curves(true_values: Float64, site_values: Float64, positions_nm: Float64) -> list[figures.Curve]:
    steps = len(true_values)
    random = chance(site_values, steps)
    raster = best_so_far(site_values[reading_order(positions_nm, steps)])
    return [
        figures.Curve(name="this session", values=best_so_far(true_values), colour=figures.BLUE),
        figures.Curve(
            name="random", values=random.mean, colour=figures.ORANGE, low=random.low, high=random.high
        ),
        figures.Curve(name="raster", values=raster, colour=figures.GREEN),
    ]


def _verdict(reached: Float64, site_values: Float64) -> str:
    """Compare the number of measurements to come near the best with chance."""
    best = float(site_values.max())
    span = best - float(np.median(site_values))
    level = best - (1 - GOOD_ENOUGH) * (abs(best) if best > 0 else span)
    good = int((site_values >= level).sum())
    by_chance = draws_to_find(len(site_values), good)
    count = measurements_to_reach(reached, level)
    how_near = f"within {1 - GOOD_ENOUGH:.0%} of the best possible"
    session = f"This session did not come {how_near}."
    if count is not None:
        session = f"This session came {how_near} after {counted(count, 'measurement')}."
    of = "is 1 site" if good == 1 else f"are {good:,} sites"
    return (
        f"{session} There {of} as good as that; random order finds the first "
        f"after {by_chance:,.0f} on average."
    )
