"""Encode every window: from pixels to latents on the specimen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamer.messages import Float32, Latents, Patches
from streamer.stage import Rejected

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    from models.encoder import Encoded


# A window may be so much wider or narrower than those that the encoder was trained on.
WIDTH_TOLERANCE = 0.02


class EncodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which encoder is used.

    Attributes
    ----------
    weights
        Path of a checkpoint; empty takes the one that is shipped.
    """

    weights: str = ""


class WindowEncoder(Protocol):
    """What this stage asks of a model: ``models.encoder.Encoder`` is one."""

    @property
    def revision(self) -> str:
        """Hash of the weights."""
        ...

    def encode(self, windows_NCHW: Float32, /) -> Encoded:
        """Encode normalised windows."""
        ...


class FitsEncoder:
    """Let patches pass that a detector delivered, where the encoder was trained on such windows.

    Parameters
    ----------
    channels, window_nm, window_px
        As on the encoder's card.
    """

    name = "fits"

    def __init__(self, channels: tuple[str, ...], window_nm: float, window_px: int) -> None:
        self._channels = channels
        self._window_nm = window_nm
        self._window_px = window_px

    def process(self, patches: Patches, /) -> Patches:
        """Return the patches themselves.

        Raises
        ------
        Rejected
            ``other channels`` or ``other window`` than the encoder knows: what it would say of them is
            worth nothing.
        """
        if patches.channels != self._channels:
            raise Rejected("other channels")
        is_as_wide = math.isclose(patches.window_nm, self._window_nm, rel_tol=WIDTH_TOLERANCE)
        if patches.windows.shape[2:] != (self._window_px, self._window_px) or not is_as_wide:
            raise Rejected("other window")
        return patches


class Encode:
    """Encode windows and say their angles and offsets on the specimen.

    The encoder speaks of its window: an angle from the column axis towards the row axis, an offset
    in window pixels ``(row, col)``. The latents speak of the specimen: the scan rotation is added to
    the angle and the offset is turned by it into nanometres ``(x, y)``.
    """

    name = "encode"

    def __init__(self, encoder: WindowEncoder) -> None:
        self.encoder = encoder

    def process(self, patches: Patches, /) -> Latents:
        """Return the latents, not yet linked.

        Raises
        ------
        Rejected
            ``not finite`` for windows with a NaN or an infinity, ``model not finite`` where the encoder
            answers good windows with one: no agent may decide by that.
        """
        if not np.isfinite(patches.windows).all():
            raise Rejected("not finite")
        # Windows that came over the wire are read-only, which torch does not take.
        seen = self.encoder.encode(np.require(patches.windows, requirements="W"))
        if not all(np.isfinite(answer).all() for answer in seen):
            raise Rejected("model not finite")
        rotation = patches.geometry.rotation_rad
        edge_nm = patches.window_nm / np.array(patches.windows.shape[2:], dtype=np.float32)
        return Latents(
            session=patches.session,
            number=patches.number,
            acquired_at_s=patches.acquired_at_s,
            mean=seen.mean,
            sd=seen.sd,
            angle_rad=_wrapped(seen.angle_rad + np.float32(rotation)),
            angle_sd_rad=seen.angle_sd_rad,
            offset_nm=_turned(seen.offset_px * edge_nm, rotation),
            offset_sd_nm=_turned_sd(seen.offset_sd_px * edge_nm, rotation),
            class_probability=seen.class_probability,
            novelty=seen.novelty,
            confidence=patches.confidence,
            track=np.full(len(patches.windows), -1, dtype=np.int64),
            positions_px=patches.positions_px,
            positions_nm=patches.positions_nm,
            model_revision=self.encoder.revision,
            geometry=patches.geometry,
            registration=patches.registration,
            position_covariance_nm2=patches.position_covariance_nm2,
        )


def _wrapped(angle_rad: Float32) -> Float32:
    """Bring angles into -π to π."""
    turn = np.float32(2 * math.pi)
    wrapped: Float32 = (angle_rad - turn * np.rint(angle_rad / turn)).astype(np.float32)
    return wrapped


def _turned(offset: NDArray[np.floating], rotation_rad: float) -> Float32:
    """Turn offsets ``(row, col)`` along the raster into ``(x, y)`` on the specimen."""
    cos, sin = math.cos(rotation_rad), math.sin(rotation_rad)
    across, along = offset[:, 0], offset[:, 1]
    return np.stack([cos * along - sin * across, sin * along + cos * across], axis=1).astype(np.float32)


def _turned_sd(sd: NDArray[np.floating], rotation_rad: float) -> Float32:
    """Turn standard deviations alike: their squares add, row and column being independent."""
    cos2, sin2 = math.cos(rotation_rad) ** 2, math.sin(rotation_rad) ** 2
    across2, along2 = sd[:, 0] ** 2, sd[:, 1] ** 2
    variance = np.stack([cos2 * along2 + sin2 * across2, sin2 * along2 + cos2 * across2], axis=1)
    turned: Float32 = np.sqrt(variance).astype(np.float32)
    return turned
