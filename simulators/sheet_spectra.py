"""Energy-loss spectra of the sheet at any position of the beam.

What is physics and what is assumed. The energies are those of free-standing graphene and of silicon: π
plasmon at 5 eV, π+σ plasmon at 15 eV (Eberlein et al., Phys. Rev. B 77, 233406 (2008)), Si L2,3 edge at
99 eV. Single silicon atoms in graphene show this edge, and its fine structure tells three-fold from
four-fold ones (Zhou et al., Phys. Rev. Lett. 109, 206803 (2012); Ramasse et al., Nano Lett. 13, 4989
(2013)). **Model assumptions**, chosen and not measured: how far the plasmon shifts at each kind of site, the
shapes and the heights of the fine structures (the four-fold one has the stronger resonance at the onset),
Gaussian delocalisation, the shares of the scattering, and a zero-loss tail that falls with the cube of the
energy. The zero-loss peak itself is left of the first channel. There is no plural scattering.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from simulators.counting import poisson
from simulators.specimen import (
    BESIDE_SI,
    BESIDE_VACANCY,
    FOUR_FOLD_SI,
    IN_ODD_RING,
    LATTICE_CONSTANT_NM,
    SITE_NAMES,
    THREE_FOLD_SI,
    Specimen,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

PI_PLASMON_EV, PI_WIDTH_EV = 5.0, 2.0
SIGMA_PLASMON_EV, SIGMA_WIDTH_EV = 15.0, 8.0
PI_SHARE = 0.3  # height of the π plasmon's peak over that of the π+σ plasmon
SI_EDGE_EV = 99.0
PLASMON_SHIFT_EV = {
    THREE_FOLD_SI: -1.2,
    FOUR_FOLD_SI: -2.4,
    BESIDE_SI: -0.4,
    BESIDE_VACANCY: -1.0,
    IN_ODD_RING: 0.5,
}
ATOMS_PER_NM2 = 4 / math.sqrt(3) / LATTICE_CONSTANT_NM**2


class SheetSpectraConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The spectrometer and the strength of the scattering.

    Attributes
    ----------
    channels
        Number of energy channels.
    energy_offset_ev, energy_step_ev
        Energy loss of channel 0 and width of a channel.
    plasmon_per_ev
        Share of the beam's electrons in 1 eV at the peak of the π+σ plasmon of the perfect sheet.
    si_edge_per_ev
        Share of the beam's electrons in 1 eV of the Si edge, with the beam on a silicon atom.
    zero_loss_tail_per_ev
        Share of the beam's electrons in 1 eV at 5 eV that lost no energy.
    plasmon_delocalisation_nm, edge_delocalisation_nm
        Gaussian sd of the distance at which an atom is still seen, the probe's width included.
    """

    channels: int = 256
    energy_offset_ev: float = 3.0
    energy_step_ev: float = 1.0
    plasmon_per_ev: float = 1e-3
    si_edge_per_ev: float = 2e-6
    zero_loss_tail_per_ev: float = 1e-4
    plasmon_delocalisation_nm: float = 0.15
    edge_delocalisation_nm: float = 0.08

    def __post_init__(self) -> None:
        if not 16 <= self.channels <= 8192:
            raise ValueError(f"eels.channels is {self.channels}; it takes 16 to 8192")
        if not 0.5 <= self.energy_offset_ev <= 1000:
            raise ValueError(
                f"eels.energy_offset_ev is {self.energy_offset_ev}; it takes 0.5 to 1000 (the zero-loss "
                "peak is not simulated)"
            )
        if not 0.001 <= self.energy_step_ev <= 20:
            raise ValueError(f"eels.energy_step_ev is {self.energy_step_ev}; it takes 0.001 to 20")
        for name in ("plasmon_per_ev", "si_edge_per_ev", "zero_loss_tail_per_ev"):
            if not 0 <= getattr(self, name) <= 0.1:
                raise ValueError(f"eels.{name} is {getattr(self, name)}; it takes 0 to 0.1")
        for name in ("plasmon_delocalisation_nm", "edge_delocalisation_nm"):
            if not 0.01 <= getattr(self, name) <= 1:
                raise ValueError(f"eels.{name} is {getattr(self, name)}; it takes 0.01 to 1")

    @property
    def energy_loss_ev(self) -> Float64:
        """Energy loss of each channel, shape ``(channels,)``."""
        channel: Float64 = np.arange(self.channels, dtype=np.float64)
        return self.energy_offset_ev + self.energy_step_ev * channel


def clean_spectra(
    specimen: Specimen, positions_nm: ArrayLike, electrons: float, config: SheetSpectraConfig
) -> Float64:
    """Say what spectra would count on average.

    Parameters
    ----------
    specimen
        The sheet.
    positions_nm
        Specimen positions ``(x, y)`` of the beam, shape ``(n, 2)``: on atoms, between them or off the
        sheet, where only the zero-loss tail is left.
    electrons
        Electrons of the beam in each exposure.
    config
        Spectrometer and scattering.

    Returns
    -------
    expected
        Counts, shape ``(n, channels)``, float64.
    """
    positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
    loss_ev = config.energy_loss_ev
    density, shift_ev = _plasmon_at(specimen, positions, config.plasmon_delocalisation_nm)
    plasmon = _drude(loss_ev, SIGMA_PLASMON_EV + shift_ev[:, None], SIGMA_WIDTH_EV)
    plasmon += PI_SHARE * _drude(loss_ev, PI_PLASMON_EV + shift_ev[:, None] / 3, PI_WIDTH_EV)
    three, four = _silicon_at(specimen, positions, config.edge_delocalisation_nm)
    share_per_ev = (
        config.zero_loss_tail_per_ev * (5.0 / loss_ev) ** 3
        + config.plasmon_per_ev * density[:, None] * plasmon
        + config.si_edge_per_ev * three[:, None] * _three_fold_edge(loss_ev)
        + config.si_edge_per_ev * four[:, None] * _four_fold_edge(loss_ev)
    )
    expected: Float64 = electrons * config.energy_step_ev * share_per_ev
    return expected


def spectrum(
    specimen: Specimen,
    position_nm: tuple[float, float],
    electrons: float,
    config: SheetSpectraConfig,
    rng: np.random.Generator,
) -> Float32:
    """Take one spectrum with its shot noise, in counts, shape ``(channels,)``, float32."""
    return poisson(clean_spectra(specimen, [position_nm], electrons, config)[0].astype(np.float32), rng)


def _weights(
    specimen: Specimen, positions: Float64, sd_nm: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], Float64]:
    """Which atoms each position sees and how well: position, atom and weight of each pair."""
    pairs = cKDTree(positions).sparse_distance_matrix(
        cKDTree(specimen.positions_nm), 4 * sd_nm, output_type="ndarray"
    )
    return pairs["i"], pairs["j"], np.exp(-(pairs["v"] ** 2) / (2 * sd_nm**2))


def _sum_at(position: NDArray[np.intp], weight: Float64, count: int) -> Float64:
    """Sum of the weights at each position, shape ``(count,)``."""
    return np.bincount(position, weight, count).astype(np.float64)


def _plasmon_at(specimen: Specimen, positions: Float64, sd_nm: float) -> tuple[Float64, Float64]:
    """Density of atoms against the perfect sheet's, and the plasmon's shift in eV, each ``(n,)``."""
    position, atom, weight = _weights(specimen, positions, sd_nm)
    shift_ev = np.array([PLASMON_SHIFT_EV.get(site, 0.0) for site in range(len(SITE_NAMES))])
    total = _sum_at(position, weight, len(positions))
    shifts = _sum_at(position, weight * shift_ev[specimen.site_class[atom]], len(positions))
    return total / (2 * math.pi * sd_nm**2 * ATOMS_PER_NM2), shifts / np.maximum(total, 1e-9)


def _silicon_at(specimen: Specimen, positions: Float64, sd_nm: float) -> tuple[Float64, Float64]:
    """How much three-fold and how much four-fold silicon each position sees; 1 is on one atom."""
    position, atom, weight = _weights(specimen, positions, sd_nm)
    site = specimen.site_class[atom]
    three = _sum_at(position, weight * (site == THREE_FOLD_SI), len(positions))
    four = _sum_at(position, weight * (site == FOUR_FOLD_SI), len(positions))
    return three, four


def _drude(loss_ev: Float64, energy_ev: float | Float64, width_ev: float) -> Float64:
    """Loss function of free electrons, 1 at its energy: it falls as E**-3, as a background does.

    Egerton, Electron Energy-Loss Spectroscopy in the Electron Microscope (2011), eq. 3.43.
    """
    damping = loss_ev * width_ev
    shape: Float64 = energy_ev * width_ev * damping / ((loss_ev**2 - energy_ev**2) ** 2 + damping**2)
    return shape


def _three_fold_edge(loss_ev: Float64) -> Float64:
    """Rises slowly from the onset and falls with a long tail."""
    above = np.maximum(loss_ev - SI_EDGE_EV, 0.0)
    edge: Float64 = (1 - np.exp(-above / 3.0)) * np.exp(-above / 60.0)
    return edge


def _four_fold_edge(loss_ev: Float64) -> Float64:
    """The same with a resonance at the onset: the highest Si signal is at four-fold sites."""
    resonance = np.exp(-((loss_ev - SI_EDGE_EV - 5.0) ** 2) / (2 * 2.0**2))
    return _three_fold_edge(loss_ev) + 0.9 * resonance
