"""What every simulated specimen under a probe promises: physics, arrays in and arrays out, seeded.

A simulator knows no wire, no scan distortion and no requests; ``simulators.scanning`` puts it under a
scanner, ``simulators.instrument`` on the wire. What it is asked to acquire says where the probe really is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulators.scan_distortion import BeamPath
from streamer.messages import PairNm

Float32 = NDArray[np.float32]
Truth = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """A raster to be acquired.

    Attributes
    ----------
    path
        Where the probe really is at every pixel, and when.
    dwell_time_us
        Time at each pixel.
    faults
        Kinds of faults that are under way, such as ``blank`` or ``tip``; see ``simulators.faults``.
    """

    path: BeamPath
    dwell_time_us: float
    faults: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exposure:
    """A stay of the probe at one place, for a spectrum or a hysteresis loop.

    Attributes
    ----------
    position_nm
        Specimen point ``(x, y)`` that is really under the probe.
    dwell_time_us
        How long it stays.
    faults
        As of a ``Scan``.
    """

    position_nm: PairNm
    dwell_time_us: float
    faults: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """What a scan gave.

    Attributes
    ----------
    values
        Shape ``(channel, row, col)``, float32, noise included.
    channels
        A name for each.
    """

    values: Float32
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """What an exposure gave: a spectrum of energy losses, or a response against the tip's bias.

    Attributes
    ----------
    values
        Shape ``(n,)``, float32, noise included.
    energy_offset_ev, energy_step_ev
        Of a spectrum: energy loss of channel 0 and width of a channel.
    bias_v
        Of a hysteresis loop: the tip's bias at each value, in the order in which it was swept, shape
        ``(n,)``, float32. None for a spectrum.
    """

    values: Float32
    energy_offset_ev: float = 0.0
    energy_step_ev: float = 1.0
    bias_v: Float32 | None = None


class Simulator(Protocol):
    """A specimen and the probe that looks at it.

    The same seed and the same calls give the same bytes, on any number of threads.
    """

    @property
    def name(self) -> str:
        """What it is, such as ``simulated STEM``."""
        ...

    def step(self, seconds: float) -> None:
        """Let time pass with the probe away; ``seconds`` is 0 or above."""
        ...

    def acquire_image(self, scan: Scan) -> Image:
        """Scan a raster. Its time passes, and what the probe does to the specimen is done."""
        ...

    def acquire_curve(self, exposure: Exposure) -> Curve:
        """Stay at one place, likewise.

        Raises
        ------
        Refused
            With a reason for a person, where this instrument has no such data.
        """
        ...

    def truth(self) -> Truth:
        """Give everything that an analysis can be judged by, as arrays for ``truth.npz``."""
        ...


class Refused(Exception):
    """What was asked for cannot be done by this instrument; the text says why, for a person."""
