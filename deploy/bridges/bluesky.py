"""The agent in the words of bluesky: for plans of bluesky-adaptive and blop, and for its agents of runs.

Nothing of bluesky is imported: ``Optimizer`` has the methods of the protocols of bluesky-adaptive 1.0 and
blop 1.0 (``bluesky_adaptive.protocols``), ``RunAgent`` those of the agents of bluesky-adaptive 0.3 and 0.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agents.notebook import Chooser, Known, Proposal

ID = "_id"
Point = Mapping[str, Any]


class NothingLeft(RuntimeError):
    """There is no place to suggest any more; the text says why."""


def _suggested(chooser: Chooser, count: int) -> list[Proposal]:
    proposals = chooser.suggest(count)
    if not proposals and count:
        raise NothingLeft(chooser.stopped or "all candidates were measured or are under way; offer others")
    return proposals


class Optimizer:
    """What ``bluesky_adaptive.plans.optimize`` and those of blop take as ``optimizer``.

    Parameters
    ----------
    chooser
        Who chooses; its candidates are the only places where anything is measured.
    actuators
        Names of the motors of x and y.
    value, sd
        Keys of an outcome: the number, or the spectrum where the chooser has an objective; and the standard
        deviation of the number, where outcomes have one.
    unit_nm
        How many nanometres one unit of the motors is: 1000 for micrometres.

    Examples
    --------
    >>> x, y = np.meshgrid(np.arange(5.0), np.arange(5.0))
    >>> chooser = Chooser(np.stack([x.ravel(), y.ravel()], axis=1), value_sd=0.1)
    >>> optimizer = Optimizer(chooser, ("stage_x", "stage_y"), value="brightness")
    >>> optimizer.suggest(1)
    [{'_id': 'explorer-0-0-0', 'stage_x': 2.0, 'stage_y': 2.0}]
    >>> optimizer.ingest([{"_id": "explorer-0-0-0", "brightness": 3.0}])
    >>> optimizer.get_best_points()
    [('explorer-0-0-0', {'stage_x': 2.0, 'stage_y': 2.0}, {'brightness': 3.0})]
    """

    def __init__(
        self,
        chooser: Chooser,
        actuators: tuple[str, str] = ("x", "y"),
        *,
        value: str = "value",
        sd: str = "value_sd",
        unit_nm: float = 1.0,
    ) -> None:
        if not unit_nm > 0:
            raise ValueError(f"unit_nm is {unit_nm}; it takes a number above 0")
        self.chooser = chooser
        self._actuators = actuators
        self._value, self._sd = value, sd
        self._unit_nm = unit_nm

    # -- the protocol Optimizer ----------------------------------------------------------------

    def suggest(self, num_points: int | None = None) -> list[dict[str, Any]]:
        """Say where to measure next.

        Parameters
        ----------
        num_points
            How many; None takes one.

        Returns
        -------
        points
            Each with ``_id`` and the two motors' positions; fewer where no more are free.

        Raises
        ------
        NothingLeft
            If there is none.
        """
        proposals = _suggested(self.chooser, 1 if num_points is None else num_points)
        return [{ID: one.id, **self._parameters(one.position_nm)} for one in proposals]

    def ingest(self, points: Sequence[Point]) -> None:
        """Take in outcomes: each with the ``_id`` of a suggestion, or the motors' positions of one's own.

        Raises
        ------
        ValueError
            For an outcome without the value, of no suggestion and without a place, or of a place where there
            is no candidate. Outcomes before it were taken in; those after it were not.
        """
        for point in points:
            if self._value not in point:
                raise ValueError(f"the outcome {dict(point)} has no {self._value!r}; it takes the value")
            sd = point.get(self._sd)
            variance = None if sd is None else float(sd) ** 2
            self.chooser.ingest(self._which(point), point[self._value], variance)

    def get_best_points(self) -> list[tuple[str, dict[str, float], dict[str, float]]]:
        """Give the best measurement: id, motors' positions and outcome; none before the first.

        For a goal without a best value (``map``, ``level_set``, ``discover``) all measurements are given.
        """
        return [
            (one.id, self._parameters(one.position_nm), {self._value: one.value})
            for one in _best(self.chooser) or self.chooser.measured
        ]

    # -- the further protocols -----------------------------------------------------------------

    def register_suggestions(self, suggestions: Sequence[Point]) -> list[dict[str, Any]]:
        """Give points of one's own an ``_id``, so that they can be measured and ingested.

        Raises
        ------
        ValueError
            If one has no place, or there is no candidate; then none is registered.
        """
        indices = [self._index(point) for point in suggestions]
        return [
            {**point, ID: self.chooser.register(index).id}
            for point, index in zip(suggestions, indices, strict=True)
        ]

    def register_failures(self, suggestions: Sequence[Point]) -> None:
        """Give suggestions back that came to nothing; their places are left alone for a while."""
        failed = {point[ID] for point in suggestions}
        for proposal in self.chooser.under_way:
            if proposal.id in failed:
                self.chooser.skip(proposal.id)

    def should_stop(self) -> tuple[bool, str | None]:
        """Say whether enough was measured, and why."""
        return bool(self.chooser.stopped), self.chooser.stopped or None

    # -- places --------------------------------------------------------------------------------

    def _parameters(self, position_nm: tuple[float, float]) -> dict[str, float]:
        return {name: at_nm / self._unit_nm for name, at_nm in zip(self._actuators, position_nm, strict=True)}

    def _which(self, point: Point) -> str | int:
        identifier = str(point.get(ID, ""))
        is_under_way = any(proposal.id == identifier for proposal in self.chooser.under_way)
        return identifier if is_under_way else self._index(point)

    def _index(self, point: Point) -> int:
        missing = [name for name in self._actuators if name not in point]
        if missing:
            raise ValueError(
                f"the point {dict(point)} is of no suggestion under way and does not say {missing[0]!r}; it "
                f"takes the {ID!r} of one, or {self._actuators[0]!r} and {self._actuators[1]!r}"
            )
        return self.chooser.nearest([float(point[name]) * self._unit_nm for name in self._actuators])


class RunAgent:
    """The deciding half of an agent of bluesky-adaptive 0.3 or 0.4; the experiment's half is yours.

    Put it before their class, and say how a point is measured and a run is read::

        class Microscope(RunAgent, bluesky_adaptive.agents.base.Agent):
            def measurement_plan(self, point): ...
            def unpack_run(run): ...

        agent = Microscope(chooser=chooser, kafka_consumer=..., ...)

    Parameters
    ----------
    chooser
        Who chooses.
    unit_nm
        How many nanometres one unit of the motors is.
    theirs
        Goes to the class behind it.
    """

    name = "probeloop"

    def __init__(self, *, chooser: Chooser, unit_nm: float = 1.0, **theirs: Any) -> None:
        if not unit_nm > 0:
            raise ValueError(f"unit_nm is {unit_nm}; it takes a number above 0")
        self.chooser = chooser
        self.unit_nm = unit_nm
        super().__init__(**theirs)

    def suggest(self, batch_size: int = 1) -> tuple[list[dict[str, Any]], list[NDArray[np.float64]]]:
        """Say where to measure next.

        Returns
        -------
        documents, points
            For each point what was thought of it; its motors' positions ``(x, y)``, shape ``(2,)``.

        Raises
        ------
        NothingLeft
            If there is none.
        """
        proposals = _suggested(self.chooser, batch_size)
        documents = [
            {
                "candidate": one.index,
                "proposal_id": one.id,
                "predicted_mean": one.predicted_mean,
                "predicted_sd": one.predicted_sd,
                "reason": one.reason,
            }
            for one in proposals
        ]
        return documents, [np.array(one.position_nm) / self.unit_nm for one in proposals]

    def ingest(self, x: ArrayLike, y: ArrayLike) -> dict[str, Any]:
        """Take in what was measured at a place, suggested or not.

        Parameters
        ----------
        x
            The motors' positions, shape ``(2,)``.
        y
            A number; or a spectrum, where the chooser has an objective.

        Raises
        ------
        ValueError
            If there is no candidate, or the measurement cannot be read.
        """
        place = np.asarray(x, dtype=np.float64)
        index = self.chooser.nearest(place * self.unit_nm)
        reading = self.chooser.ingest(index, y)
        return {
            "candidate": index,
            "independent_variable": place,
            "value": reading.value,
            "variance": reading.variance,
            "measured": len(self.chooser.measured),
        }

    def ingest_many(self, xs: Sequence[ArrayLike], ys: Sequence[ArrayLike]) -> list[dict[str, Any]]:
        """Take in several; see ``ingest``."""
        return [self.ingest(x, y) for x, y in zip(xs, ys, strict=True)]

    def report(self, **_: Any) -> dict[str, Any]:
        """Say how far it has come: the best so far (NaN without one), and why it has stopped."""
        best = _best(self.chooser)
        place_nm, value = (best[0].position_nm, best[0].value) if best else ((np.nan, np.nan), np.nan)
        return {
            "measured": len(self.chooser.measured),
            "best_value": value,
            "best_position": np.array(place_nm) / self.unit_nm,
            "model_revision": self.chooser.agent.model_revision,
            "stopped": self.chooser.stopped,
        }


def _best(chooser: Chooser) -> list[Known]:
    """The best measurement, where there is one."""
    try:
        return [chooser.best()]
    except LookupError:
        return []
