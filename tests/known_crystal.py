"""A simulated crystal as an instrument sends it, and as a user knows it who knows the specimen."""

from __future__ import annotations

import numpy as np

from simulators.crystal import CrystalFrame, CrystalStream
from streamer.messages import Frame
from streamer.observers.lattice import Lattice


def message(frame: CrystalFrame, number: int) -> Frame:
    """Make of a simulated frame what an instrument would send."""
    return Frame(
        session="s",
        number=number,
        acquired_at_s=float(number),
        image=frame.image[None],
        channels=("HAADF",),
        geometry=frame.geometry,
        dwell_time_us=1.0,
    )


def lattice_of(stream: CrystalStream) -> Lattice:
    """Give the lattice of a square crystal, as a user knows it who knows the specimen."""
    return Lattice(
        vectors_px=stream.basis_px,
        origin_px=stream.origin_px,
        basis=np.array([[0.0, 0.0], [0.5, 0.5]]),
        amplitude=np.array([1.0, stream.config.second_brightness]),
    )
