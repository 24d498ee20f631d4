"""Spectra of atoms that have an edge or not, as the agent's tests and its benchmark measure them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.messages import Outcome, Suggestion


def outcome_of(suggestion: Suggestion, share: float, rng: np.random.Generator) -> Outcome:
    """Answer a suggestion by 256 eV of counts: a power law, and on it the Si L2,3 edge by this share."""
    energy_ev = np.arange(256.0)
    edge = np.where(energy_ev >= 99, 200 * np.exp(-(energy_ev - 99) / 60), 0.0)
    counts: NDArray[np.int64] = rng.poisson(2e7 * np.maximum(energy_ev, 5) ** -2.5 + share * edge)
    return Outcome(
        session="s",
        id=suggestion.id,
        status="ok",
        scan_position_nm=suggestion.position_nm,
        position_nm=suggestion.position_nm,
        spectrum=counts.astype(np.float32),
    )
