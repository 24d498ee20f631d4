"""What a preset of ``probeloop train`` is: how its windows are simulated, trained on and judged.

A preset is a value, ``PRESET = Preset(...)`` in a file of its own, listed in ``deploy.presets.known``.
Whoever trains simulates with even seeds; ``judge`` takes odd ones only, so no figure is measured on what was
tuned on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.encoder import Encoder
from models.training import TrainingConfig

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

UNKNOWN = -1


class Labelled(NamedTuple):
    """Windows and what they truly show, so far as the simulator knows.

    Attributes
    ----------
    windows_NCHW
        Normalised as live, float32.
    class_N
        Index into ``Preset.classes``; -1 is not known.
    angle_N
        How far the content is turned from columns (x) towards rows (y), in radians from any direction that is
        the same for all windows of a class; NaN is not known. Of a class that a turn by a full circle over n
        leaves as it is, any of its n angles.
    shift_N2
        How far the content is beside the middle of the window, ``(x, y)`` in nm (in 1/nm of a diffraction
        pattern); NaN is not known.
    same_N
        Windows with the same number show the same place at different turns; -1 is shown once.
    """

    windows_NCHW: Float32
    class_N: Int64
    angle_N: Float64
    shift_N2: Float64
    same_N: Int64

    @classmethod
    def of(
        cls,
        windows_NCHW: Float32,
        *,
        class_N: Int64 | None = None,
        angle_N: Float64 | None = None,
        shift_N2: Float64 | None = None,
        same_N: Int64 | None = None,
    ) -> Labelled:
        """Put together what is known; the rest is marked as not known."""
        n = len(windows_NCHW)
        return cls(
            windows_NCHW,
            np.full(n, UNKNOWN, np.int64) if class_N is None else class_N,
            np.full(n, np.nan) if angle_N is None else angle_N,
            np.full((n, 2), np.nan) if shift_N2 is None else shift_N2,
            np.full(n, UNKNOWN, np.int64) if same_N is None else same_N,
        )

    def only(self, which: NDArray[Any]) -> Labelled:
        """Keep some of the windows: a mask or indices, shape ``(m,)``."""
        return Labelled(*(column[which] for column in self))


def joined(parts: list[Labelled]) -> Labelled:
    """Put the windows of many frames together; the same place is not known across them."""
    first, same = 0, []
    for part in parts:
        same.append(np.where(part.same_N < 0, UNKNOWN, part.same_N + first))
        first += int(part.same_N.max(initial=UNKNOWN)) + 1
    together = Labelled(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return together._replace(same_N=np.concatenate(same))


def drawn(part: Labelled, count: int, rng: np.random.Generator) -> Labelled:
    """Draw ``count`` windows without repeats, or all where there are fewer."""
    return part.only(rng.permutation(len(part.class_N))[:count])


def thinned(part: Labelled, count: int, rng: np.random.Generator) -> Labelled:
    """Draw ``count`` windows, the classes as evenly as there are enough; what has no class counts as one.

    Perfect crystal is most of any frame: as many windows of it as there are would be all that is learnt.
    """
    order = rng.permutation(len(part.class_N))
    class_N = part.class_N[order]
    rank = np.zeros(len(order), dtype=np.int64)
    for kind in np.unique(class_N):
        rank[class_N == kind] = np.arange(np.count_nonzero(class_N == kind))
    chosen = np.argsort(rank, kind="stable")[:count]
    return part.only(order[rng.permutation(chosen)])


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of specimen under one kind of instrument.

    Attributes
    ----------
    name
        On the command line and on the card, such as ``graphene-si``.
    shows
        What the windows show, in words.
    channels, window_nm, window_per_nm, window_px, normalisation
        Of the card; one of ``window_nm`` and ``window_per_nm`` is 0.
    classes
        What ``Labelled.class_N`` counts, in words.
    symmetry
        For each class the turns that leave it as it is: 1 for none, 0 where its angle is not asked for.
    training
        How the encoder is trained; the command replaces seed and epochs.
    windows
        How many are simulated unless the command says otherwise.
    data
        What they are, in words, for the card; ``{count}`` is filled in.
    simulate
        ``simulate(preset, count, rng)`` makes windows to train on. ``preset`` is this one, with the window
        that the command asks for.
    series
        ``series(preset, rng)`` shows places of each class at many turns, ``same_N`` known.
    judge
        ``judge(preset, encoder)`` measures with odd seeds what only this preset asks for, such as the
        agreement with silicon; the scores that all presets share are measured anyway.
    """

    name: str
    shows: str
    channels: tuple[str, ...]
    window_nm: float = 0.0
    window_per_nm: float = 0.0
    window_px: int
    normalisation: str = "contrast"
    classes: tuple[str, ...]
    symmetry: tuple[int, ...]
    training: TrainingConfig = TrainingConfig()
    windows: int = 6000
    data: str
    simulate: Simulate
    series: Series | None = None
    judge: Judge | None = None

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.symmetry):
            raise ValueError(
                f"preset {self.name}: {len(self.classes)} classes, {len(self.symmetry)} symmetries"
            )
        if (self.window_nm > 0) == (self.window_per_nm > 0):
            raise ValueError(f"preset {self.name}: one of window_nm and window_per_nm is above 0")

    @property
    def weights_name(self) -> str:
        """Name of the file of weights that is shipped."""
        return self.name.replace("-", "_") + "_rvae.safetensors"


Simulate: TypeAlias = Callable[[Preset, int, np.random.Generator], Labelled]
Series: TypeAlias = Callable[[Preset, np.random.Generator], Labelled]
Judge: TypeAlias = Callable[[Preset, Encoder], Mapping[str, float]]
