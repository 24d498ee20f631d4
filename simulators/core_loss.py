"""Core losses of doped indium oxide on a background: how much of each element the beam goes through.

The cross section is that of the dipole approximation (Egerton, Electron Energy-Loss Spectroscopy in the
Electron Microscope (2011), section 3.6), ``(4 pi a0^2 R^2 / (T E)) (df/dE) ln(1 + beta^2 / theta_E^2)``.
**Model assumptions**, chosen and not taken from tables: the shapes of the edges. A K edge has its full
height at the onset and falls as the third power of the energy, as hydrogen's nearly does, with the whole
oscillator strength ``2.1 - Z/27`` (Egerton, recalled); an M4,5 edge has its maximum 40 eV above the onset,
as those of indium and tin do, and the strength of its ten electrons. There is no fine structure and no
plural scattering, and each atom is seen by the beam that goes through it and by no other. Onsets are those
of the usual tables (In 443, Sn 485, O 532 eV, recalled).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulators.plasmons import HBAR_C_EV_NM, REST_EV, Beam

Float64 = NDArray[np.float64]

RYDBERG_EV = 13.605693
BOHR_NM = 0.0529177
DELAY_EV = 40.0  # of the maximum of an M4,5 edge, above its onset
IN2O3_CELL_NM3 = 1.0117**3  # bixbyite, 32 In and 48 O; lattice constant recalled
LEAST_EV = 150.0


@dataclass(frozen=True, slots=True)
class Edge:
    """An ionisation edge.

    Attributes
    ----------
    onset_ev
        Where it starts.
    strength
        Oscillator strength: electrons that take part.
    is_delayed
        Whether its maximum is above the onset.
    """

    onset_ev: float
    strength: float
    is_delayed: bool


EDGES = {
    "In": Edge(443.0, 10.0, True),
    "Sn": Edge(485.0, 10.0, True),
    "O": Edge(532.0, 2.1 - 8 / 27, False),
}
DENSITY_PER_NM3 = {"In": 32 / IN2O3_CELL_NM3, "O": 48 / IN2O3_CELL_NM3}


def strength_per_ev(edge: Edge, loss_ev: Float64) -> Float64:
    """Oscillator strength in 1 eV; its integral over all energies is ``edge.strength``."""
    above = np.maximum(loss_ev - edge.onset_ev, 0.0)
    if edge.is_delayed:
        scale = 3 * DELAY_EV
        shape = 6 * scale**2 * above / (above + scale) ** 4
    else:
        shape = 2 * edge.onset_ev**2 / (edge.onset_ev + above) ** 3
    return edge.strength * np.where(loss_ev >= edge.onset_ev, shape, 0.0)


def cross_section_nm2_per_ev(edge: Edge, loss_ev: Float64, beam: Beam) -> Float64:
    """Cross section of an atom for losing an energy, into the angle that is collected."""
    momentum = (beam.hbar_v_ev_nm / HBAR_C_EV_NM) ** 2 * REST_EV  # m v^2
    loss = np.maximum(loss_ev, LEAST_EV)
    angle = loss / (beam.gamma * momentum)
    collected = np.log1p((beam.collection_mrad * 1e-3 / angle) ** 2)
    scale = 4 * math.pi * BOHR_NM**2 * RYDBERG_EV**2 / (momentum / 2 * loss)
    return scale * collected * strength_per_ev(edge, loss_ev)


def core_spectra(
    atoms_per_nm2: Mapping[str, Float64],
    thickness_nm: Float64,
    loss_ev: Float64,
    beam: Beam,
    background_per_ev_nm: float,
) -> Float64:
    """Probability per eV of core losses and their background.

    Parameters
    ----------
    atoms_per_nm2
        Atoms of each element under each beam, shape ``(m,)``.
    thickness_nm
        Of the material under each beam, shape ``(m,)``.
    loss_ev
        Energy losses, shape ``(energies,)``.
    beam
        The electrons.
    background_per_ev_nm
        Background at 400 eV per nm of material; it falls with the third power of the energy.

    Returns
    -------
    probability
        Shape ``(m, energies)``, 0 below 150 eV.
    """
    is_core = loss_ev >= LEAST_EV
    background = background_per_ev_nm * (400.0 / np.maximum(loss_ev, LEAST_EV)) ** 3
    total = thickness_nm[:, None] * background
    for element, atoms in atoms_per_nm2.items():
        total += atoms[:, None] * cross_section_nm2_per_ev(EDGES[element], loss_ev, beam)
    probability: Float64 = np.where(is_core, total, 0.0)
    return probability
