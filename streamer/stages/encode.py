"""Encode every window: from pixels to latents on the specimen."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.normalisation import of_patterns
from streamer.messages import Float32, Latents, Patches
from streamer.stage import Rejected
from streamer.window_bytes import as_bytes

if TYPE_CHECKING:  # torch takes seconds to import, and the configuration is read without it
    from models.checkpoint import ModelCard
    from models.encoder import Encoded


# A window may be so much wider or narrower than those that the encoder was trained on.
WIDTH_TOLERANCE = 0.02


_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class BesideConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One more encoder, which looks at windows of its own around the same places.

    Attributes
    ----------
    name
        That its latents carry.
    weights
        Path of a checkpoint.
    send_windows
        As of ``EncodeConfig``, of its own windows.
    """

    name: str
    weights: str
    send_windows: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"encode.beside.name is {self.name!r}; it takes up to 32 small letters, digits, - and _"
            )
        if not self.weights:
            raise ValueError(f"encode.beside.weights of {self.name!r} is empty; it takes a .safetensors file")


class EncodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which encoders are used.

    Attributes
    ----------
    weights
        Path of a checkpoint; empty takes the shipped one for silicon in graphene.
    beside
        Further encoders, of other windows; agents are told what they say under their names.
    send_windows
        Send agents the windows themselves with the latents, for ``agent.features`` that look at them: a byte
        a pixel and channel, so 1,500 windows of 24 x 24 pixels are 0.9 MB a frame, which the journal keeps.
    fine_tune_after_frames
        When so many frames were analysed, and again whenever there are twice as many, the main encoder is
        trained further on windows of the session, at the lowest priority; what is better on windows held
        out takes its place. 0 leaves it as it is.
    """

    weights: str = ""
    beside: tuple[BesideConfig, ...] = ()
    send_windows: bool = False
    fine_tune_after_frames: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fine_tune_after_frames <= 10**9:
            raise ValueError(
                f"encode.fine_tune_after_frames is {self.fine_tune_after_frames}; it takes 0 and above"
            )
        names = [one.name for one in self.beside]
        if len(set(names)) < len(names):
            raise ValueError(f"encode.beside has the names {', '.join(names)}; it takes each once")

    @property
    def sending(self) -> frozenset[str]:
        """Names of the encoders whose windows are sent; that of the main one is empty."""
        beside = (one.name for one in self.beside if one.send_windows)
        return frozenset([*beside, *([""] if self.send_windows else [])])


class WindowEncoder(Protocol):
    """What this stage asks of a model: ``models.encoder.Encoder`` is one.

    Attributes
    ----------
    threads
        That the windows of a frame may take; what is said of them does not depend on it.
    """

    threads: int

    @property
    def revision(self) -> str:
        """Hash of the weights."""
        ...

    @property
    def card(self) -> ModelCard:
        """What its windows are."""
        ...

    def encode(self, windows_NCHW: Float32, /) -> Encoded:
        """Encode normalised windows."""
        ...


class FitsEncoder:
    """Let patches pass that a detector delivered, where the encoder was trained on such windows.

    Diffraction patterns leave it as the encoder sees them: the middle of each, at the card's size.

    Parameters
    ----------
    channels, window_nm, window_px, window_per_nm
        As on the encoder's card.
    """

    name = "fits"

    def __init__(
        self, channels: tuple[str, ...], window_nm: float, window_px: int, window_per_nm: float = 0.0
    ) -> None:
        self._channels = channels
        self._window_nm = window_nm
        self._window_px = window_px
        self._window_per_nm = window_per_nm

    @classmethod
    def of(cls, card: ModelCard) -> Self:
        """Make it from the encoder's card."""
        return cls(card.channels, card.window_nm, card.window_px, card.window_per_nm)

    def why_not(self, patches: Patches) -> str:
        """Say in a fixed word what the encoder does not know of these; nothing if it knows such windows."""
        if patches.channels != self._channels:
            return "other channels"
        height, width = patches.windows.shape[2:]
        if self._window_per_nm:
            is_enough = patches.window_per_nm >= self._window_per_nm * (1 - 1e-6)
            return "" if height == width and is_enough else "other window"
        is_as_wide = math.isclose(patches.window_nm, self._window_nm, rel_tol=WIDTH_TOLERANCE)
        is_known = (height, width) == (self._window_px, self._window_px) and patches.window_per_nm == 0
        return "" if is_known and is_as_wide else "other window"

    def process(self, patches: Patches, /) -> Patches:
        """Return the patches as the encoder takes them.

        Raises
        ------
        Rejected
            ``other channels`` or ``other window`` than the encoder knows: what it would say of them is
            worth nothing; ``not finite`` for patterns with a NaN or an infinity.
        """
        if why := self.why_not(patches):
            raise Rejected(why)
        if not self._window_per_nm:
            return patches
        if not np.isfinite(patches.windows).all():
            raise Rejected("not finite")
        seen = of_patterns(
            patches.windows, patches.window_per_nm, to_per_nm=self._window_per_nm, to_px=self._window_px
        )
        return msgspec.structs.replace(patches, windows=seen, window_per_nm=self._window_per_nm)


class Encode:
    """Encode windows and say their angles and offsets on the specimen.

    The encoder speaks of its window: an angle from the column axis towards the row axis, an offset
    in window pixels ``(row, col)``. The latents speak of the specimen: the scan rotation is added to
    the angle and the offset is turned by it into nanometres ``(x, y)``.

    Parameters
    ----------
    encoder
        A loaded model.
    called
        The name that the latents carry; empty for the main encoder.

    Attributes
    ----------
    sends_windows
        Whether the latents carry the windows, too.
    """

    def __init__(self, encoder: WindowEncoder, called: str = "") -> None:
        self.encoder = encoder
        self.called = called
        self.sends_windows = False
        self.name = f"encode {called}".rstrip()

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
        if not all(answer is None or np.isfinite(answer).all() for answer in seen):
            raise Rejected("model not finite")
        rotation = patches.geometry.rotation_rad
        windows, window_range = as_bytes(patches.windows) if self.sends_windows else (None, None)
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
            encoder=self.called,
            gain=seen.gain,
            defocus=seen.defocus,
            windows=windows,
            window_range=window_range,
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
