"""What a session's messages come to for who asks why it was measured there, by numbers known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploy.agent_course import AgentCourse, Calibration
from deploy.agent_words import calibration_in_words, weights_in_words, with_sd
from streamer.messages import Control, Message, ModelRevision, Outcome, Score, Suggestion
from tests.contract.test_agents import latents


def suggestion(name: str, mean: float = math.nan, sd: float = math.nan, **changes: object) -> Suggestion:
    known: dict[str, object] = {"number": 0, "position_nm": (0.0, 0.0), "policy": "explorer"}
    return Suggestion(  # type: ignore[arg-type]
        session="s",
        acquired_at_s=0.0,
        id=name,
        dwell_time_us=1.0,
        predicted_mean=mean,
        predicted_sd=sd,
        **(known | changes),
    )


def score(name: str, value: float, sd: float = 0.0, objective: str = "edge") -> Score:
    return Score(session="s", id=name, objective=objective, value=value, variance=sd * sd)


def course(*messages: Message) -> AgentCourse:
    one = AgentCourse()
    for message in messages:
        one.add(message)
    return one


def measured(*told: tuple[float, float, float, float]) -> AgentCourse:
    """Measure twice without a forecast, 1 and 3, then forecasts: mean, sd, value and its noise."""
    messages: list[Message] = [suggestion("a"), score("a", 1.0), suggestion("b"), score("b", 3.0)]
    for number, (mean, sd, value, noise) in enumerate(told):
        messages += [suggestion(f"{number}", mean, sd), score(f"{number}", value, noise)]
    return course(*messages)


def test_a_surprise_is_counted_in_sd_of_the_forecast_and_the_noise_together() -> None:
    one = measured((10.0, 3.0, 15.0, 4.0)).decided["0"]
    assert (one.order, one.sd, one.surprise) == (3, 5.0, 1.0)
    assert math.isnan(measured().decided["a"].surprise)


def test_calibration_is_that_of_forecasts_made_before_each_value() -> None:
    # off by 0.5, 1, 1.5 and -2 sd, of which each is 1
    told = measured((2.0, 1.0, 2.5, 0.0), (2.0, 1.0, 3.0, 0.0), (2.0, 1.0, 3.5, 0.0), (2.0, 1.0, 0.0, 0.0))
    found = Calibration.of(list(told.decided.values()))
    assert found is not None
    assert found.count == 4
    assert found.coverage == {0.68: 0.25, 0.90: 0.75}
    rms = math.sqrt((0.25 + 1 + 2.25 + 4) / 4)
    assert found.surprise_rms == pytest.approx(rms)
    assert found.error == pytest.approx(rms)
    assert found.nll == pytest.approx(rms**2 / 2 + math.log(2 * math.pi) / 2)


def test_what_is_usual_is_the_mean_and_the_spread_of_the_values_before() -> None:
    told = measured((2.0, 1.0, 2.0, 0.0), (2.0, 1.0, 6.0, 0.0), (2.0, 1.0, 3.0, 0.0))
    found = Calibration.of(list(told.decided.values()))
    assert found is not None
    # before the three: 1 3; 1 3 2; 1 3 2 6 with the means 2, 2, 3 and the variances 2, 1, 14 / 3
    assert found.usual_error == pytest.approx(4 / math.sqrt(3))
    constant = math.log(2 * math.pi) / 2
    logs = 0.5 * (math.log(2) + math.log(1) + math.log(14 / 3))
    assert found.usual_nll == pytest.approx(constant + (0 + 16 / 2 + 0 + logs) / 3)


def test_two_forecasts_are_too_few_to_judge() -> None:
    assert Calibration.of(list(measured((2.0, 1.0, 2.0, 0.0), (2.0, 1.0, 6.0, 0.0)).decided.values())) is None


def test_what_was_forecast_for_another_objective_is_not_judged() -> None:
    told = measured((2.0, 1.0, 2.0, 0.1))
    told.add(suggestion("before", 2.0, 1.0))
    for name, value in (("a", 100.0), ("b", 300.0), ("0", 200.0)):  # a person changes what is looked for
        told.add(score(name, value, objective="ratio"))
    told.add(score("before", 210.0, objective="ratio"))
    told.add(suggestion("after", 205.0, 5.0))
    told.add(score("after", 200.0, objective="ratio"))
    assert [one.suggestion.id for one in told.foretold] == ["0", "after"]
    first = told.decided["0"].score
    assert first is not None
    assert first.value == 2.0, "what was measured is scored anew, but it was forecast as it was"
    assert told.decided["after"].surprise == -1.0


def test_the_latents_are_those_of_the_site_in_the_frame_that_was_decided_on() -> None:
    frame, later = latents(number=4), latents(number=5, seed=3)
    place = tuple(float(v) for v in frame.positions_nm[17])
    told = course(frame, later, suggestion("a", number=4, position_nm=place), suggestion("b", number=2))
    seen = told.decided["a"].latents
    assert seen is not None
    assert np.array_equal(seen, frame.mean[17])
    assert told.decided["b"].latents is None


def test_what_a_person_said_and_changed_is_noted_with_where_it_came() -> None:
    told = course(
        suggestion("a"),
        Control(action="mode", mode="confirm"),
        Control(action="approve", id="a"),
        suggestion("b"),
        Outcome(session="s", id="b", status="refused", reason="declined: near the edge"),
        Control(action="steer", settings={"goal": "map"}, reason="seen enough"),
        suggestion("c"),
        Outcome(session="s", id="c", status="withdrawn", reason="the mode changed"),
        suggestion("mine", policy="operator"),
        Control(action="veto", polygon_nm=((0.0, 0.0), (2.0, 0.0), (1.0, 3.0)), reason="a hole"),
        Control(action="place", shift_nm=(0.5, -1.0), radius_nm=0.2),
        Control(action="forget", reason="another grain"),
    )
    assert [(one.after, one.what, one.reason) for one in told.changes] == [
        (1, "mode confirm", ""),
        (2, "goal = map", "seen enough"),
        (3, "nothing more measured: all in a polygon of 3 corners around (1, 1) nm", "a hole"),
        (3, "forbidden areas and vetoes placed by (0.5, -1) nm, 0.2 nm wider", ""),
        (3, "lost forbidden areas and vetoes forgotten", "another grain"),
    ]
    assert (told.said["approve"], told.said["declined"]) == (1, 1)
    assert [one.status for one in told.decided.values()] == ["", "refused", "withdrawn"]


def test_fits_of_the_agent_are_noted_and_those_of_the_distortion_are_not() -> None:
    def fit(policy: str) -> ModelRevision:
        return ModelRevision(session="s", policy=policy, revision=1, told=0, observations=9, parameters={})

    told = course(suggestion("a"), fit("distortion"), suggestion("b"), fit("explorer"))
    assert [(after, revision.policy) for after, revision in told.fits] == [(2, "explorer")]


@pytest.mark.parametrize(
    ("rms", "words"), [(1.0, "about as far off"), (1.6, "further off"), (0.4, "nearer than they said")]
)
def test_forecasts_are_called_too_sure_only_beyond_chance(rms: float, words: str) -> None:
    calibration = Calibration(
        count=20,
        coverage={0.68: 0.7, 0.9: 0.95},
        surprise_rms=rms,
        error=0.5,
        usual_error=1.0,
        nll=1.0,
        usual_nll=1.0 + math.log(3),
    )
    told = calibration_in_words(calibration)
    assert words in told
    assert "70% lay within the 68% interval and 95% lay within the 90% interval" in told
    assert "3 times as probable" in told


@pytest.mark.parametrize(("gain", "times"), [(1e4, "10^4,343"), (-1e4, "10^-4,343"), (25.0, "10^11")])
def test_forecasts_of_which_a_few_were_hopeless_are_compared_in_powers_of_ten(
    gain: float, times: str
) -> None:
    calibration = Calibration(
        count=20, coverage={0.9: 0.5}, surprise_rms=99.0, error=1.0, usual_error=1.0, nll=-gain, usual_nll=0.0
    )
    assert f"{times} times as probable" in calibration_in_words(calibration)


def test_a_value_is_written_to_two_digits_of_its_sd() -> None:
    assert with_sd(0.0031178, 0.000742) == "0.00312 ± 0.00074"
    assert with_sd(12345.6, 78.9) == "12,346 ± 79"
    assert with_sd(3.2e-9, 4.1e-11) == "(3.200 ± 0.041)e-09"
    assert with_sd(5.0, math.nan) == "5"
    assert with_sd(math.nan, 1.0) == "–"


def test_the_features_that_weigh_most_are_named_first() -> None:
    weights = {"position": 0.1, "latents 1": 0.6, "latents 2": 0.3}
    assert weights_in_words(weights, 2) == "latent 1 60%, latent 2 30%"
