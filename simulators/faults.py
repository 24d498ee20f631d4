"""What goes wrong with an instrument, when and how: on request, so that it can be shown and tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.messages import PairNm

FaultKind = Literal["blank", "amorphous", "jump", "magnify", "torn", "tip", "link"]


class FaultConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that goes wrong at a full frame.

    Attributes
    ----------
    frame
        Full frame before which it happens, counted from 0.
    kind
        ``blank``: the beam is blanked, or the tip withdrawn; ``amorphous``: no lattice is left in what is
        seen; ``jump``: the specimen slips; ``magnify``: the field of view changes, and the frames say so;
        ``torn``: the lower part of the frame was not written and holds what the last frame had there;
        ``tip``: a force microscope's tip is another one, wider and double; ``link``: the instrument loses its
        connection to the streamer and comes back.
    frames
        How many full frames a ``blank``, ``amorphous``, ``torn`` or ``tip`` lasts.
    step_nm
        Where a ``jump`` goes, ``(x, y)``.
    factor
        By how much the field of view grows with ``magnify``.
    seconds
        How long the ``link`` is lost, by the wall's clock.
    """

    frame: int
    kind: FaultKind
    frames: int = 1
    step_nm: PairNm = (0.0, 0.0)
    factor: float = 1.0
    seconds: float = 3.0

    def __post_init__(self) -> None:
        kinds = get_args(FaultKind)
        if self.kind not in kinds:
            raise ValueError(f"fault.kind is {self.kind!r}; it takes {', '.join(kinds[:-1])} or {kinds[-1]}")
        for name, least in (("frame", 0), ("frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"fault.{name} is {getattr(self, name)}; it takes {least} and above")
        if not all(abs(step) <= 1000 for step in self.step_nm):
            raise ValueError(f"fault.step_nm is {self.step_nm}; it takes -1000 to 1000")
        if not 0.1 <= self.factor <= 10:
            raise ValueError(f"fault.factor is {self.factor}; it takes 0.1 to 10")
        if not 0 < self.seconds <= 600:
            raise ValueError(f"fault.seconds is {self.seconds}; it takes above 0 to 600")


def under_way(faults: Sequence[FaultConfig], frame: int) -> frozenset[str]:
    """Kinds of faults that last at a full frame: sub-scans before it suffer them already."""
    return frozenset(
        fault.kind
        for fault in faults
        if fault.kind not in ("jump", "magnify", "link") and 0 <= frame - fault.frame < fault.frames
    )


def slips_at(faults: Sequence[FaultConfig], frame: int) -> list[PairNm]:
    """Say how the specimen slips before a full frame."""
    return [fault.step_nm for fault in faults if fault.kind == "jump" and fault.frame == frame]


def magnified_at(faults: Sequence[FaultConfig], frame: int) -> float:
    """Say by how much the field of view of a full frame is wider than the configured one."""
    return float(np.prod([f.factor for f in faults if f.kind == "magnify" and f.frame <= frame]))


def cuts_of(faults: Sequence[FaultConfig]) -> dict[int, float]:
    """Say before which full frames the link is lost, and for how many seconds."""
    return {fault.frame: fault.seconds for fault in faults if fault.kind == "link"}


def reach(faults: Sequence[FaultConfig]) -> tuple[float, NDArray[np.float64]]:
    """Say how wide the field becomes at most, and where the specimen slips to, ``(n, 2)``, first nowhere."""
    in_order = sorted(faults, key=lambda fault: fault.frame)
    wider = np.cumprod([1.0, *(fault.factor for fault in in_order if fault.kind == "magnify")])
    steps = [fault.step_nm for fault in in_order if fault.kind == "jump"]
    return max(1.0, *wider), np.cumsum([(0.0, 0.0), *steps], axis=0)
