"""The agent as a plain object: candidates in, suggestions out, measurements in; no socket, no streamer.

It makes the messages that the streamer would send, and tells them to the very agent of the service: it learns
nothing of its own, and suggests bit for bit what that one suggests on the same data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from agents.config import AgentConfig, GoalName, direction_of
from agents.explorer import Explorer
from agents.objective import ObjectiveConfig, Reading
from agents.policies import make_agent
from streamer.messages import Latents, Outcome, PairNm, Registration, ScanGeometry, Suggestion
from streamer.oversight import BY_A_PERSON
from streamer.window_bytes import as_bytes

Float64 = NDArray[np.float64]
SESSION = "notebook"
MOST_PENDING = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A candidate to measure next, and why.

    Attributes
    ----------
    id
        Names it when its measurement is ingested.
    index
        Among the candidates on offer when it was suggested.
    position_nm
        Its ``(x, y)``.
    predicted_mean, predicted_sd
        Forecast in the unit of the objective; NaN before there is one.
    reason
        A few words.
    """

    id: str
    index: int
    position_nm: PairNm
    predicted_mean: float
    predicted_sd: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A measurement that gave a value.

    Attributes
    ----------
    id
        Of its suggestion, or ``own-0``, ``own-1`` and so on.
    position_nm
        Where it was, ``(x, y)``.
    value, variance
        In the unit of the objective.
    """

    id: str
    position_nm: PairNm
    value: float
    variance: float


class Chooser:
    """Chooses among candidates where to measure next, and learns from what is measured.

    Parameters
    ----------
    positions_nm
        Where one may measure, ``(x, y)``, shape ``(n, 2)``.
    latents
        What each place looks like, as numbers, shape ``(n, d)``: of an encoder, or any description of your
        own. None takes the positions.
    latents_sd
        Their standard deviations, shape ``(n, d)``; None for well known.
    novelty
        For the goal ``discover``: 0 is usual, above 3 is not, shape ``(n,)``.
    windows
        For ``features`` that look at the pictures themselves: what is seen around each place, shape
        ``(n, h, w)`` or ``(n, channel, h, w)``. They are kept to a byte a pixel.
    objective
        How a spectrum is read; None for measurements that are numbers already.
    goal
        What to look for: see ``docs/agents.md``.
    value_sd
        Standard deviation of each measured number, where ``ingest`` is not given a variance.
    seed
        Of every random choice.
    settings
        Any others of ``AgentConfig``, such as ``policy``, ``initial_points`` or ``level``. Two places nearer
        than ``min_distance_nm`` are one, and a point further than ``max_miss_nm`` from all candidates is
        refused: a quarter and a half of the usual distance between neighbours, if you do not say.

    Raises
    ------
    ValueError
        For arrays that do not fit together or are not finite, and for settings that cannot be.

    Examples
    --------
    A spot that a hundred places hide, found by measuring a few of them:

    >>> x, y = np.meshgrid(np.arange(10.0), np.arange(10.0))
    >>> places = np.stack([x.ravel(), y.ravel()], axis=1)
    >>> brightness = np.exp(-((places - [7, 2]) ** 2).sum(axis=1) / 8)
    >>> chooser = Chooser(places, goal="maximise", value_sd=0.01)
    >>> for _ in range(20):
    ...     (proposal,) = chooser.suggest()
    ...     reading = chooser.ingest(proposal.id, brightness[proposal.index])
    >>> chooser.best().position_nm
    (7.0, 2.0)

    A measurement of your own teaches it too:

    >>> chooser.ingest(chooser.nearest((0.1, 9.0)), 0.25).value
    0.25
    """

    def __init__(
        self,
        positions_nm: ArrayLike,
        latents: ArrayLike | None = None,
        latents_sd: ArrayLike | None = None,
        *,
        novelty: ArrayLike | None = None,
        windows: ArrayLike | None = None,
        objective: ObjectiveConfig | None = None,
        goal: GoalName = "maximise",
        value_sd: float | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        offer = _message(0, positions_nm, latents, latents_sd, novelty, windows)
        spacing_nm = _spacing_nm(offer.positions_nm)
        usual = {"min_distance_nm": spacing_nm / 4, "max_miss_nm": spacing_nm / 2}
        said = {
            "goal": goal,
            "seed": seed,
            "max_pending": MOST_PENDING,
            "max_per_frame": 0,
            "objective": ObjectiveConfig(kind="value") if objective is None else objective,
        }
        try:
            # Through builtins, so that each setting is checked as it is in a file.
            config = msgspec.convert(msgspec.to_builtins(usual | said | settings), AgentConfig)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None
        if config.scan.every:
            raise ValueError(
                f"agent.scan.every is {config.scan.every}; in a notebook there is nothing to scan"
            )
        _check_windows(config, offer)
        self.agent = make_agent(config)
        self._value_sd = value_sd
        self._open: dict[str, Proposal] = {}
        self._own = 0
        self._offer = offer
        self.agent.tell(offer)

    @property
    def stopped(self) -> str:
        """Why it suggests no more; empty while it goes on."""
        return self.agent.stopped

    @property
    def under_way(self) -> tuple[Proposal, ...]:
        """What was suggested or registered, and neither ingested nor skipped; oldest first."""
        return tuple(self._open.values())

    @property
    def positions_nm(self) -> Float64:
        """The candidates on offer, ``(x, y)``, shape ``(n, 2)``."""
        return self._offer.positions_nm.astype(np.float64)

    # -- ask -----------------------------------------------------------------------------------

    def suggest(self, n: int = 1) -> list[Proposal]:
        """Say where to measure next.

        What was suggested and neither ingested nor skipped is under way: it is not suggested again.

        Parameters
        ----------
        n
            How many places; at most 64 may be under way.

        Returns
        -------
        proposals
            Fewer where no more candidates are free, or enough was measured (``stopped`` says so).
        """
        made: list[Proposal] = []
        while len(made) < n and (suggestion := self.agent.ask()) is not None:
            made.append(self._note(suggestion))
        self.agent.think()
        return made

    def _note(self, suggestion: Suggestion) -> Proposal:
        proposal = Proposal(
            id=suggestion.id,
            index=self.nearest(suggestion.position_nm),
            position_nm=suggestion.position_nm,
            predicted_mean=suggestion.predicted_mean,
            predicted_sd=suggestion.predicted_sd,
            reason=suggestion.reason,
        )
        self._open[proposal.id] = proposal
        return proposal

    def nearest(self, position_nm: ArrayLike) -> int:
        """Find the candidate at a place, for ``ingest``.

        Raises
        ------
        ValueError
            If all candidates are further away than ``max_miss_nm``.
        """
        away_nm = np.hypot(*(self.positions_nm - _pair(position_nm)).T)
        index, most_nm = int(away_nm.argmin()), self.agent.config.max_miss_nm
        if away_nm[index] > most_nm:
            x, y = _pair(position_nm)
            raise ValueError(
                f"the nearest candidate to ({x:.6g}, {y:.6g}) nm is {away_nm[index]:.3g} nm away; it takes a "
                f"place within max_miss_nm = {most_nm:.3g} nm of one: offer that place, or allow more"
            )
        return index

    # -- tell ----------------------------------------------------------------------------------

    def ingest(
        self,
        which: str | int,
        measured: ArrayLike,
        variance: float | None = None,
        *,
        energy_offset_ev: float = 0.0,
        energy_step_ev: float = 1.0,
        bias_v: ArrayLike | None = None,
    ) -> Reading:
        """Take in what was measured at a candidate.

        Parameters
        ----------
        which
            Id of a proposal, or index of a candidate on offer: that of a proposal, or a place of your own.
        measured
            A number; or, with an objective, a spectrum, shape ``(energy,)``, or a loop, shape ``(bias,)``.
        variance
            Of the number; None takes ``value_sd``. That of a spectrum follows from its counts.
        energy_offset_ev, energy_step_ev
            Energy loss of channel 0 and width of a channel.
        bias_v
            Of a loop: the tip's bias at each response, in the order of the sweep.

        Returns
        -------
        reading
            What it is worth to the goal.

        Raises
        ------
        KeyError
            If no such proposal is under way.
        ValueError
            If it cannot be read; the proposal then stays under way, and nothing is learnt.
        """
        spectrum = self._spectrum(measured, variance)
        loop = None if bias_v is None else np.asarray(bias_v, dtype=np.float32)
        reading = self.agent.objective.read(spectrum, energy_offset_ev, energy_step_ev, loop)
        proposal = self._open[which] if isinstance(which, str) else self._at(int(which))
        self._close(
            proposal,
            status="ok",
            scan_position_nm=proposal.position_nm,
            spectrum=spectrum,
            energy_offset_ev=energy_offset_ev,
            energy_step_ev=energy_step_ev,
            bias_v=loop,
        )
        return reading

    def skip(self, identifier: str) -> None:
        """Give a proposal back that was not measured; its place is left alone for a while.

        Raises
        ------
        KeyError
            If no such proposal is under way.
        """
        self._close(self._open[identifier], status="skipped", reason="skipped")

    def register(self, index: int) -> Proposal:
        """Enter a measurement of your own at a candidate: it is under way, and ingested or skipped as others.

        Raises
        ------
        ValueError
            If there is no such candidate.
        """
        suggestion = Suggestion(
            session=SESSION,
            number=self._offer.number,
            acquired_at_s=self._offer.acquired_at_s,
            id=f"own-{self._own}",
            position_nm=self._place(index),
            dwell_time_us=self.agent.config.dwell_time_us,
            reason="your own",
            policy=BY_A_PERSON,
        )
        self._own += 1
        self.agent.tell(suggestion)
        return self._note(suggestion)

    def offer(
        self,
        positions_nm: ArrayLike,
        latents: ArrayLike | None = None,
        latents_sd: ArrayLike | None = None,
        *,
        novelty: ArrayLike | None = None,
        windows: ArrayLike | None = None,
    ) -> None:
        """Put a new frame's candidates in the place of the old; what was measured is kept.

        Parameters
        ----------
        positions_nm, latents, latents_sd, novelty, windows
            As at the beginning, with as many latents. A place that was measured is known by its position.

        Raises
        ------
        ValueError
            For arrays that do not fit together or are not finite; the old candidates stay.
        """
        offer = _message(self._offer.number + 1, positions_nm, latents, latents_sd, novelty, windows)
        _check_windows(self.agent.config, offer)
        before = self._offer.mean.shape[1]
        if offer.mean.shape[1] != before:
            raise ValueError(
                f"latents has {offer.mean.shape[1]} numbers a place; it takes {before}, as before"
            )
        self._offer = offer
        self.agent.tell(offer)

    def _spectrum(self, measured: ArrayLike, variance: float | None) -> NDArray[np.float32]:
        values = np.asarray(measured, dtype=np.float32)
        is_value = self.agent.objective.config.kind == "value"
        if is_value != (values.ndim == 0):
            takes = "a number" if is_value else "a spectrum, for that is what its objective reads"
            raise ValueError(f"measured has the shape {values.shape}; it takes {takes}")
        if not is_value:
            return values
        sd = self._value_sd if variance is None else math.sqrt(variance)
        if sd is None:
            raise ValueError(
                "how well the value is known is not said; give ingest(..., variance=...), or Chooser(..., "
                "value_sd=...) once for all"
            )
        return np.array([values, sd], dtype=np.float32)

    def _at(self, index: int) -> Proposal:
        """Find what is under way at a candidate, or register a measurement there."""
        place = self._place(index)
        here = (proposal for proposal in self._open.values() if proposal.position_nm == place)
        return next(here, None) or self.register(index)

    def _place(self, index: int) -> PairNm:
        most = len(self._offer.positions_nm) - 1
        if not 0 <= index <= most:
            raise ValueError(f"index is {index}; it takes 0 to {most}")
        x_nm, y_nm = self._offer.positions_nm[index].astype(np.float64).tolist()
        return (x_nm, y_nm)

    def _close(self, proposal: Proposal, **came: Any) -> None:
        """Tell the agent the outcome, and let it adopt the fits that are due, as the service does."""
        del self._open[proposal.id]
        self.agent.tell(Outcome(session=SESSION, id=proposal.id, **came))
        while self.agent.refit() is not None:
            pass

    # -- look ----------------------------------------------------------------------------------

    @property
    def measured(self) -> list[Known]:
        """All measurements that gave a value, oldest first."""
        return [
            Known(
                id=one.id,
                position_nm=(float(one.site.position_nm[0]), float(one.site.position_nm[1])),
                value=one.reading.value,
                variance=one.reading.variance,
            )
            for one in self.agent.observations
            if one.site is not None and one.reading is not None
        ]

    def best(self) -> Known:
        """The measurement with the best value.

        Raises
        ------
        LookupError
            Before the first, and for a goal that no value is best for.
        """
        goal, known = self.agent.config.goal, self.measured
        direction = direction_of(goal)
        if direction == "neither" or not known:
            why = f"the goal {goal} has no best value" if known else "nothing was measured yet"
            raise LookupError(f"there is no best measurement: {why}")
        return (max if direction == "maximise" else min)(known, key=lambda one: one.value)

    def forecast(self) -> tuple[Float64, Float64]:
        """Say what each candidate on offer would give, by what is known now.

        Returns
        -------
        mean, sd
            In the unit of the objective, shape ``(n,)``.

        Raises
        ------
        LookupError
            For a policy that learns no model.
        """
        if not isinstance(self.agent, Explorer):
            raise LookupError(f"the policy {self.agent.policy} makes no forecast; take policy='explorer'")
        sign = -1.0 if direction_of(self.agent.config.goal) == "minimise" else 1.0
        surrogate = self.agent.surrogate
        return sign * surrogate.mean, surrogate.sd.copy()


def _message(
    number: int,
    positions_nm: ArrayLike,
    latents: ArrayLike | None,
    latents_sd: ArrayLike | None,
    novelty: ArrayLike | None,
    windows: ArrayLike | None,
) -> Latents:
    """Word candidates as the streamer words the atoms of a frame."""
    places = _checked("positions_nm", positions_nm, (None, 2))
    n = len(places)
    if not n:
        raise ValueError("positions_nm is empty; it takes one place at least")
    mean = places if latents is None else _checked("latents", latents, (n, None))
    sd = np.zeros_like(mean) if latents_sd is None else _checked("latents_sd", latents_sd, mean.shape)
    zeros, twos = np.zeros(n, np.float32), np.zeros((n, 2), np.float32)
    geometry = _geometry(places)
    seen = (None, None) if windows is None else as_bytes(_windows(windows, n))
    return Latents(
        session=SESSION,
        number=number,
        acquired_at_s=float(number),
        mean=mean,
        sd=sd,
        angle_rad=zeros,
        angle_sd_rad=zeros,
        offset_nm=twos,
        offset_sd_nm=twos,
        class_probability=np.zeros((n, 0), np.float32),
        novelty=zeros if novelty is None else _checked("novelty", novelty, (n,)),
        confidence=np.ones(n, np.float32),
        track=np.full(n, -1),
        positions_px=geometry.to_px(places).astype(np.float32),
        positions_nm=places,
        model_revision=SESSION,
        geometry=geometry,
        registration=Registration(),
        windows=seen[0],
        window_range=seen[1],
    )


def _windows(windows: ArrayLike, n: int) -> NDArray[np.float32]:
    given = np.asarray(windows)
    of_one_channel = given[:, None] if given.ndim == 3 else given
    return _checked("windows", of_one_channel, (n, None, None, None))


def _check_windows(config: AgentConfig, offer: Latents) -> None:
    """Refuse candidates without the windows that the agent is to learn over."""
    if config.sees_windows and offer.windows is None:
        raise ValueError(
            f"windows is missing; it takes what is seen around each place, for {', '.join(config.features)}"
        )


def _geometry(places: NDArray[np.float32]) -> ScanGeometry:
    """Take the box around the candidates for the field of view."""
    low, high = places.min(axis=0).astype(np.float64), places.max(axis=0).astype(np.float64)
    width, height = np.maximum(high - low, 1e-3).tolist()
    x, y = ((low + high) / 2).tolist()
    return ScanGeometry(shape=(1024, 1024), field_of_view_nm=(width, height), center_nm=(x, y))


def _spacing_nm(places: NDArray[np.float32]) -> float:
    """Usual distance from a place to the one nearest to it."""
    if len(places) < 2:
        return 0.0
    distance_nm, _ = cKDTree(places.astype(np.float64)).query(places.astype(np.float64), k=2)
    return float(np.median(distance_nm[:, 1]))


def _checked(name: str, given: ArrayLike, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    array = np.array(given, dtype=np.float32)
    fits = array.ndim == len(shape) and all(a in (None, b) for a, b in zip(shape, array.shape, strict=True))
    if not fits:
        raise ValueError(f"{name} has the shape {array.shape}; it takes {shape}".replace("None", "any"))
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite everywhere; leave such places out")
    return array


def _pair(position_nm: ArrayLike) -> Float64:
    pair = np.asarray(position_nm, dtype=np.float64)
    if pair.shape != (2,) or not np.isfinite(pair).all():
        raise ValueError(f"a position is {pair.tolist()}; it takes two finite numbers, x and y")
    return pair
