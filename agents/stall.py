"""When the search has stopped finding anything better."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from agents.candidates import Float64


class StallConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When and how much the search widens.

    Attributes
    ----------
    after_measurements
        Without anything better, those of the first looks not counted; 0 never widens.
    every
        One suggestion in so many then goes where the model would not.
    """

    after_measurements: int = 12
    every: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.after_measurements <= 10**9:
            raise ValueError(
                f"agent.stall.after_measurements is {self.after_measurements}; it takes 0 to 1e9, 0 for never"
            )
        if not 1 <= self.every <= 10**6:
            raise ValueError(f"agent.stall.every is {self.every}; it takes 1 to 1e6")


def since_better(values: Sequence[float] | Float64, variances: Sequence[float] | Float64) -> int:
    """Count the measurements since the last that was better than all before it by more than its noise.

    Parameters
    ----------
    values, variances
        In the order of the measurements, turned so that the larger is the better, shape ``(n,)``.

    Returns
    -------
    count
        0 where the last one was; ``n`` is never reached: the first is better than none.
    """
    value, sd = np.asarray(values, dtype=np.float64), np.sqrt(np.asarray(variances, dtype=np.float64))
    if not value.size:
        return 0
    before = np.maximum.accumulate(np.concatenate([[-np.inf], value[:-1]]))
    return int(value.size - 1 - np.flatnonzero(value - sd > before)[-1])
