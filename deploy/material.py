"""What the sections of the report are made from: the session, its objective, and the truth if any.

The truth speaks the specimen coordinates of the simulation, the session those of the streamer, which
counts drift from its reference frame. Here, and only here, the one is put into the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from agents.config import AgentConfig, direction_of
from agents.objective import Objective, UnreadableSpectrum
from deploy.session import Measurement, Session, Truth
from streamer.messages import PairNm

if TYPE_CHECKING:
    from models.encoder import Encoder

Float64 = NDArray[np.float64]
NEAR_NM = 0.1  # less than a C–C bond (0.142 nm): a beam this near to a site was on it


@dataclass(frozen=True, slots=True)
class Sites:
    """The true sites that could have been measured, and what each was worth.

    Attributes
    ----------
    positions_nm
        In the streamer's specimen coordinates, ``(x, y)``, shape ``(n, 2)``.
    values
        True objective, shape ``(n,)``, finite.
    """

    positions_nm: Float64
    values: Float64


@dataclass(frozen=True)
class Material:
    """All that a section may need.

    Attributes
    ----------
    session
        As read from the folder.
    agent
        The agent's configuration; the defaults where the folder holds none.
    load_encoder
        Gives the encoder, or raises OSError or ValueError with words for a person.
    """

    session: Session
    agent: AgentConfig
    load_encoder: Callable[[], Encoder]

    @cached_property
    def objective(self) -> Objective | None:
        """What a spectrum was worth, as the agent was told; None where a file of it is gone or changed."""
        try:
            objective = Objective(self.agent.objective)
        except ValueError:
            return None
        is_of_a_file = self.agent.objective.kind in ("file", "similarity")
        return None if is_of_a_file and self._said not in ("", objective.name) else objective

    @cached_property
    def second_objective(self) -> Objective | None:
        """What else a spectrum was worth; None where there was no second one, or its file is gone."""
        try:
            return None if self.agent.second_objective is None else Objective(self.agent.second_objective)
        except ValueError:
            return None

    @cached_property
    def traded(self) -> Float64:
        """What measurements are worth by both objectives, shape ``(n, 2)``; those that give both."""
        second, both = self.second_objective, np.zeros((0, 2))
        if second is None:
            return both
        for one in self.session.measured:
            spectrum, outcome = one.outcome.spectrum, one.outcome
            if spectrum is None:
                continue
            said = (spectrum, outcome.energy_offset_ev, outcome.energy_step_ev, outcome.bias_v)
            with suppress(UnreadableSpectrum):
                both = np.append(both, [[one.value, second.read(*said).value]], axis=0)
            second.remember(*said)
        return both

    @property
    def objective_name(self) -> str:
        """The objective in words, as the agent said it with its scores."""
        if self._said or self.objective is None:
            return self._said or self.agent.objective.kind
        return self.objective.name

    @property
    def _said(self) -> str:
        scores = (m.score for m in self.session.measurements)
        return next((score.objective for score in scores if score is not None), "")

    @property
    def sign(self) -> float:
        """-1 where the smallest value was looked for, else 1."""
        return -1.0 if direction_of(self.agent.goal) == "minimise" else 1.0

    @property
    def has_best(self) -> bool:
        """Was a best value looked for, or something else?"""
        return direction_of(self.agent.goal) != "neither"

    @cached_property
    def best(self) -> Measurement | None:
        """The measurement with the best value, or else the largest; None if none gave one."""
        return max(self.session.measured, key=lambda m: self.sign * m.value, default=None)

    @cached_property
    def sites(self) -> Sites | None:
        """The true sites that the encoder saw in the last frame; None where the truth is not known."""
        session = self.session
        if session.truth is None or session.truth.spectra is None or session.latents is None:
            return None
        if self.objective is None:
            return None
        positions = session.truth.positions_nm + np.asarray(true_shift_nm(session))
        values = _true_values(session.truth, session.truth.spectra, self.objective, self.agent.dwell_time_us)
        usable = _near_any(positions, session.latents.positions_nm) & np.isfinite(values)
        return Sites(positions[usable], values[usable]) if usable.any() else None


def true_shift_nm(session: Session) -> PairNm:
    """Say where the specimen truly was in the frame that the session takes as its reference.

    The streamer counts drift from its reference frame, the simulation from its own zero.
    """
    truth = session.truth
    if truth is None or not session.drift:
        return 0.0, 0.0
    revision = session.drift[-1][2].revision
    reference = next(number for number, _, r in session.drift if r.revision == revision)
    if reference >= len(truth.drift_nm) or not np.isfinite(truth.drift_nm[reference]).all():
        return 0.0, 0.0
    x, y = truth.drift_nm[reference]
    return float(x), float(y)


def true_drift_nm(session: Session, numbers: NDArray[np.int_]) -> Float64 | None:
    """Take the true drift since the first of these frames, shape ``(frames, 2)``; None if not told."""
    if session.truth is None or not len(numbers) or numbers.max() >= len(session.truth.drift_nm):
        return None
    told = session.truth.drift_nm[numbers]
    return told - told[0] if np.isfinite(told).all() else None


def _true_values(
    truth: Truth, spectra: NDArray[np.float32], objective: Objective, dwell_time_us: float
) -> Float64:
    """Read the objective of every noiseless spectrum at the agent's exposure; NaN if it cannot be read."""
    exposure = dwell_time_us / truth.dwell_time_us if math.isfinite(truth.dwell_time_us) else 1.0

    def value(spectrum: NDArray[np.float32]) -> float:
        try:
            return objective.read(
                spectrum * exposure,
                energy_offset_ev=truth.energy_offset_ev,
                energy_step_ev=truth.energy_step_ev,
            ).value
        except UnreadableSpectrum:
            return math.nan

    return np.array([value(spectrum) for spectrum in spectra])


def _near_any(positions_nm: Float64, atoms_nm: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Say which sites were among the atoms to choose from; at the edge of the frame none is encoded."""
    if not len(atoms_nm):
        return np.zeros(len(positions_nm), dtype=np.bool_)
    distances, _ = cKDTree(atoms_nm).query(positions_nm)
    return np.asarray(distances <= NEAR_NM)


def nearest(positions_nm: Float64, to_nm: Sequence[PairNm | None], within_nm: float) -> NDArray[np.intp]:
    """Find the nearest position to each of some points; -1 where none is near enough."""
    result = np.full(len(to_nm), -1, dtype=np.intp)
    for place, point in enumerate(to_nm):
        if point is None or not len(positions_nm):
            continue
        distances = np.linalg.norm(positions_nm - np.asarray(point), axis=1)
        closest = int(distances.argmin())
        if distances[closest] <= within_nm:
            result[place] = closest
    return result
