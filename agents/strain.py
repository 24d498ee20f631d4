"""Measure where the specimen is strained most, and where its strain is known least."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from agents.candidates import Candidates, Float64
from agents.config import AgentConfig, StrainMeasure
from agents.raster import Raster
from agents.site_agent import Choice, SiteAgent, SiteAgentState
from agents.snapshot import Arrays, pack, unpack
from streamer.messages import Float32, ScanGeometry, Score, StrainMap

# Share of the nodes around a place that must have a value; not just half, which rounding would decide.
MIN_WEIGHT = 0.499


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownStrain:
    """What the last strain map says, in arrays of its own.

    Attributes
    ----------
    geometry
        How the nodes lie on the specimen.
    strain, strain_sd
        ``xx``, ``yy``, ``xy`` and their standard deviations, shape ``(3, n, m)``.
    registration_revision
        Which registration the nodes speak of.
    """

    geometry: ScanGeometry
    strain: Float32
    strain_sd: Float32
    registration_revision: int

    @classmethod
    def of(cls, strain: StrainMap) -> KnownStrain:
        """Take it from the message; copies, for the received arrays keep the whole buffer alive."""
        return cls(
            geometry=strain.geometry,
            strain=strain.strain.copy(),
            strain_sd=strain.strain_sd.copy(),
            registration_revision=strain.registration_revision,
        )

    def at(self, position_nm: Float64, measure: StrainMeasure) -> tuple[Float64, Float64]:
        """Say how large the strain is at specimen positions.

        Parameters
        ----------
        position_nm
            ``(x, y)``, shape ``(n, 2)``.
        measure
            As in ``amount_of``.

        Returns
        -------
        amount, sd
            Shape ``(n,)``; NaN where the nodes with a value have less than half of the weight, and off
            the map by a node's distance or more: up to there its edge speaks for the rim of the frame.
        """
        both = np.concatenate([self.strain, self.strain_sd]).astype(np.float64)
        has_value = np.isfinite(both.sum(axis=0))
        weighed = np.concatenate([np.where(has_value, both, 0.0), has_value[None]])
        nodes = tuple(np.arange(size, dtype=np.float64) for size in self.geometry.shape)
        # Components are interpolated, not their amount: two opposite shears have none between them.
        between = RegularGridInterpolator(nodes, np.moveaxis(weighed, 0, -1))
        place = self.geometry.to_px(position_nm)
        inside = np.clip(place, 0, np.array(self.geometry.shape) - 1)
        found = between(inside).T
        is_near: NDArray[np.bool_] = np.abs(place - inside).max(axis=1) < 1
        is_known = (found[6] >= MIN_WEIGHT) & is_near
        found = np.where(is_known, found / np.where(is_known, found[6], 1.0), np.nan)
        return amount_of(found[:3], found[3:6], measure)


def amount_of(strain: Float64, sd: Float64, measure: StrainMeasure) -> tuple[Float64, Float64]:
    """Make one number of a plane strain tensor, and its standard deviation to first order.

    ``shear`` is the largest shear, ``√(((xx - yy)/2)² + xy²)``, the radius of Mohr's circle: it does not
    change with the pixel size of the scan. ``principal`` is the larger principal strain by its size,
    ``|xx + yy|/2`` more.

    Parameters
    ----------
    strain, sd
        ``xx``, ``yy``, ``xy``, taken for independent, shape ``(3, n)``.
    measure
        ``shear`` or ``principal``.

    Returns
    -------
    amount, sd
        Shape ``(n,)``.
    """
    xx, yy, xy = strain
    half = (xx - yy) / 2
    shear = np.hypot(half, xy)
    # Along which of the two the radius grows; where it is 0, along none rather than the other.
    along = np.divide(half, shear, out=np.full_like(shear, np.sqrt(0.5)), where=shear > 0)
    across = np.divide(xy, shear, out=np.full_like(shear, np.sqrt(0.5)), where=shear > 0)
    dilation = 0.5 * np.sign(xx + yy) if measure == "principal" else np.zeros_like(shear)
    slopes = np.stack([along / 2 + dilation, -along / 2 + dilation, across])
    return shear + dilation * (xx + yy), np.sqrt(((slopes * sd) ** 2).sum(axis=0))


class StrainState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, eq=False):
    """Everything that decides what comes next."""

    site: SiteAgentState
    known: KnownStrain | None


class Strain(Raster):
    """Takes the free site with the largest upper confidence bound of the strain.

    Spectra teach nothing of the strain, so a forecast of the objective is not made. Until a map has come,
    and where none of the free sites lies on it, it goes the way of the raster, and says so.
    """

    policy = "strain"

    def __init__(self, config: AgentConfig | None = None, seed: int | None = None) -> None:
        super().__init__(config, seed)
        self._known: KnownStrain | None = None

    def _take_strain(self, strain: StrainMap) -> None:
        self._known = KnownStrain.of(strain)

    def _choose(self, candidates: Candidates, free: NDArray[np.int64]) -> Choice:
        known = self._known
        if known is None:
            return self._as_raster(candidates, free, "no strain map yet")
        if known.registration_revision != candidates.frame.registration_revision:
            return self._as_raster(candidates, free, "no strain map of this registration")
        config = self.config.strain
        amount, sd = known.at(candidates.position_nm[free], config.measure)
        bound = amount + config.sd_weight * sd
        is_known = np.isfinite(bound)
        if not is_known.any():
            return self._as_raster(candidates, free, "no free site on the strain map")
        top = int(np.where(is_known, bound, -np.inf).argmax())  # the first of equals
        return Choice(
            index=int(free[top]),
            reason=f"{config.measure} strain {100 * amount[top]:.2f} ± {100 * sd[top]:.2f} %",
            acquisition=float(bound[top]),
        )

    def _as_raster(self, candidates: Candidates, free: NDArray[np.int64], why: str) -> Choice:
        choice = super()._choose(candidates, free)
        return Choice(index=choice.index, reason=f"{why}; {choice.reason}")

    # -- live on -------------------------------------------------------------------------------

    def checkpoint(self) -> tuple[bytes, Arrays]:
        """Say everything that it knows, the last map too; see ``Agent``."""
        return pack(StrainState(site=self._state(), known=self._known), self.policy, self.settings)

    def restore(self, facts: bytes, arrays: Arrays) -> None:
        """Be as the agent was that made this checkpoint; see ``SiteAgent``."""
        state = unpack(facts, arrays, StrainState, self.policy)
        self._take(state.site)
        self._known = state.known
        self._follow_configuration(state.site)

    def take_over(self, earlier: SiteAgent) -> tuple[Score, ...]:
        """Go on from where another agent is; only one of this policy has kept the map."""
        if isinstance(earlier, Strain):
            self._known = earlier._known
        return super().take_over(earlier)
