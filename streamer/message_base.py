"""What every message is made of: a frozen base, and checks of its fields that name what is wrong."""

from __future__ import annotations

import math
import re

import msgspec
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
PairNm = tuple[float, float]
_REVISION = re.compile(r"[0-9a-f]{12}")


class Message(
    msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True, tag_field="kind"
):
    """What every message is: frozen, keyword-only, named by its ``kind`` on the wire."""


def require_array(
    owner: str, name: str, array: NDArray[np.generic], shape: tuple[int | None, ...], dtype: str
) -> None:
    """Raise ValueError naming the field unless the array has this dtype and shape (None: any)."""
    if array.dtype != np.dtype(dtype):
        raise ValueError(f"{owner}.{name} has dtype {array.dtype}; it takes {dtype}")
    fits = array.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise ValueError(f"{owner}.{name} has shape {array.shape}; it takes {wanted}")


def require_finite(owner: str, name: str, *values: float) -> None:
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{owner}.{name} is {values}; it takes finite numbers")


def require_count(owner: str, name: str, value: int) -> None:
    if not 0 <= value < 2**53:
        raise ValueError(f"{owner}.{name} is {value}; it takes 0 to 2**53 - 1")


def require_time(owner: str, name: str, value: float) -> None:
    if not abs(value) <= 1e11:  # also NaN
        raise ValueError(f"{owner}.{name} is {value}; it takes seconds since the epoch, up to 1e11")


def require_positive(owner: str, name: str, *values: float) -> None:
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"{owner}.{name} is {values}; it takes numbers above 0")


def require_revision(owner: str, revision: str) -> None:
    """Raise ValueError unless it is the hash of weights, which also names their file."""
    if not _REVISION.fullmatch(revision):
        raise ValueError(f"{owner}.revision is {revision[:20]!r}; it takes 12 hexadecimal digits")
