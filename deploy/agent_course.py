"""What an agent expected and what came, what its model followed, and what a person changed.

A fold over the messages of a session, of a few numbers for each suggestion.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamer.admission import DECLINED
from streamer.messages import (
    AnyMessage,
    Control,
    Float32,
    Latents,
    ModelRevision,
    Outcome,
    Score,
    Suggestion,
)
from streamer.oversight import BY_A_PERSON

Float64 = NDArray[np.float64]
FRAMES_KEPT = 8  # among which the frame of a suggestion is looked for
# Sd to either side of the mean that hold so much of a normal distribution.
HALF_WIDTHS = {0.68: 0.99446, 0.90: 1.64485}


@dataclass(slots=True, kw_only=True)
class Decided:
    """One suggestion and what came of it.

    Attributes
    ----------
    order
        From 1, in the order of the suggestions.
    suggestion
        As recorded.
    latents
        What the encoder said of the site in the frame that was decided on, shape ``(d,)``; None if not known.
    objective
        What was looked for when it was made: the name in the last score before it.
    status, reason
        Of its outcome; empty before there is one.
    score
        The first, which is of what was looked for then; None where there is none.
    """

    order: int
    suggestion: Suggestion
    latents: Float32 | None
    objective: str
    status: str = ""
    reason: str = ""
    score: Score | None = None

    @property
    def surprise(self) -> float:
        """How far the value came from what was expected, in sd of both; NaN where nothing was expected."""
        if self.score is None or self.score.objective != self.objective:
            return math.nan
        return (self.score.value - self.suggestion.predicted_mean) / self.sd

    @property
    def sd(self) -> float:
        """How far the value may come from what was expected: doubt of the forecast and noise of the value."""
        noise = math.nan if self.score is None else math.sqrt(self.score.variance)
        return math.hypot(self.suggestion.predicted_sd, noise)


@dataclass(frozen=True, slots=True)
class Change:
    """What a person changed: after so many suggestions, what, and why."""

    after: int
    what: str
    reason: str


@dataclass(slots=True)
class AgentCourse:
    """What the messages of a session come to, for who asks why it was measured there.

    Attributes
    ----------
    decided
        Every suggestion of an agent by its id, in order.
    fits
        Each fit of an agent's model, with how many suggestions were made before it.
    changes
        What a person changed of how it is decided, in order.
    said
        How often a person approved, declined and vetoed a suggestion.
    """

    decided: dict[str, Decided] = field(default_factory=dict)
    fits: list[tuple[int, ModelRevision]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)
    _frames: dict[int, Latents] = field(default_factory=dict)
    _objective: str = ""

    def add(self, message: AnyMessage) -> None:
        """Take in the next message of the journal."""
        match message:
            case Latents(request_id=None, is_delivered=False, encoder=""):
                self._frames[message.number] = message
                while len(self._frames) > FRAMES_KEPT:
                    del self._frames[next(iter(self._frames))]
            case Suggestion() if message.policy != BY_A_PERSON:
                self._suggest(message)
            case Outcome() if message.id in self.decided:
                one = self.decided[message.id]
                one.status, one.reason = message.status, message.reason
                self.said["declined"] += message.reason.startswith(DECLINED)
            case Score():
                self._objective = message.objective
                if message.id in self.decided and self.decided[message.id].score is None:
                    self.decided[message.id].score = message
            case ModelRevision() if message.policy != "distortion":
                self.fits.append((len(self.decided), message))
            case Control():
                self._control(message)
            case _:
                pass

    def _suggest(self, suggestion: Suggestion) -> None:
        self.decided[suggestion.id] = Decided(
            order=len(self.decided) + 1,
            suggestion=suggestion,
            latents=_latents_at(self._frames.get(suggestion.number), suggestion),
            objective=self._objective,
        )

    def _control(self, control: Control) -> None:
        match control.action:
            case "approve":
                self.said[control.action] += 1
            case "veto":
                self.said[control.action] += 1
                self._changed(f"nothing more measured: {control.forbidden_in_words}", control)
            case "place" if control.shift_nm is not None:
                x, y = control.shift_nm
                wider = f", {control.radius_nm:g} nm wider" if control.radius_nm else ""
                self._changed(f"forbidden areas and vetoes placed by ({x:g}, {y:g}) nm{wider}", control)
            case "forget":
                self._changed("lost forbidden areas and vetoes forgotten", control)
            case "mode":
                self._changed(f"mode {control.mode}", control)
            case "steer":
                told = ", ".join(f"{name} = {value}" for name, value in control.settings.items())
                self._changed(told, control)
            case _:
                pass

    def _changed(self, what: str, control: Control) -> None:
        self.changes.append(Change(len(self.decided), what, control.reason))

    @property
    def foretold(self) -> list[Decided]:
        """The suggestions that came with a forecast and to a value of what was forecast, in order."""
        return [one for one in self.decided.values() if math.isfinite(one.surprise)]


def _latents_at(frame: Latents | None, suggestion: Suggestion) -> Float32 | None:
    if frame is None or not len(frame.track) or suggestion.action == "scan":
        return None
    away_nm = np.hypot(*(frame.positions_nm - np.array(suggestion.position_nm)).T)
    site: Float32 = frame.mean[int(away_nm.argmin())].copy()
    return site


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How good forecasts were that were made before each measurement.

    Attributes
    ----------
    count
        Of forecasts.
    coverage
        Share of the values within the interval that was to hold so much of them.
    surprise_rms
        Root mean square of value less forecast in sd of both; 1 where the forecasts know how sure they are.
    error, usual_error
        Root mean square of value less forecast, and less the mean of all values measured before, in the unit
        of the objective.
    nll, usual_nll
        Mean negative log-likelihood of the values, nat: as forecast, and as normal with the mean and the sd
        of the values before. The smaller, the better.
    """

    count: int
    coverage: dict[float, float]
    surprise_rms: float
    error: float
    usual_error: float
    nll: float
    usual_nll: float

    @classmethod
    def of(cls, decided: list[Decided]) -> Calibration | None:
        """Judge the forecasts of suggestions, given in order; None where there are fewer than three to judge.

        Those are judged that two different values of the same objective came before: else nothing is usual.
        """
        judged = _with_the_usual(decided)
        if len(judged) < 3:
            return None
        value, mean, sd, usual, spread = np.array(judged).T
        surprise = (value - mean) / sd
        return cls(
            count=len(judged),
            coverage={part: float(np.mean(np.abs(surprise) <= z)) for part, z in HALF_WIDTHS.items()},
            surprise_rms=_rms(surprise),
            error=_rms(value - mean),
            usual_error=_rms(value - usual),
            nll=_nll(surprise, sd),
            usual_nll=_nll((value - usual) / spread, spread),
        )


def _with_the_usual(decided: list[Decided]) -> list[tuple[float, float, float, float, float]]:
    """Give value, forecast, its sd with the noise of the value, and mean and sd of the values before."""
    judged: list[tuple[float, float, float, float, float]] = []
    before: dict[str, list[float]] = {}
    for one in decided:
        if one.score is None:
            continue
        values = before.setdefault(one.score.objective, [])
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        if spread > 0 and math.isfinite(one.surprise):
            expected, usual = one.suggestion.predicted_mean, float(np.mean(values))
            judged.append((one.score.value, expected, one.sd, usual, spread))
        values.append(one.score.value)
    return judged


def _rms(values: Float64) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _nll(surprise: Float64, sd: Float64) -> float:
    return float(np.mean(0.5 * surprise**2 + np.log(sd)) + 0.5 * math.log(2 * math.pi))
