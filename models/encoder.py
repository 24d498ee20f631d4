"""The low-latency encoder: fixed blocks of windows through an rVAE, latents out as NumPy arrays.

Axes: N window, C channel, H row, W column, Z content, F feature (pooled pixels), S novelty statistic.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.checkpoint import CheckpointError, ModelCard, load, require_fit
from models.spatial_rvae import SpatialConfig, SpatialRVAE, pool, pooled_px, unturned

Float32 = NDArray[np.float32]
Device = Literal["auto", "cpu", "cuda"]

SHIPPED = Path(__file__).parent / "weights" / "graphene_si_rvae.safetensors"
# One block's shape for every call: a window's latents then do not depend on what else is encoded.
BLOCK = 256
COMPONENTS = 40
MOST_NOVEL = 100.0


class Encoded(NamedTuple):
    """What the encoder says of each window; all float32.

    Attributes
    ----------
    mean, sd
        Content, shape ``(n, d)``.
    angle_rad, angle_sd_rad
        Turn of the content from columns towards rows and its circular sd, shape ``(n,)``.
    offset_px, offset_sd_px
        Shift of the content ``(row, col)`` in window pixels, shape ``(n, 2)``.
    class_probability
        Shape ``(n, 0)``: this family has no classes.
    novelty
        How unlike the training windows, shape ``(n,)``; 0 is usual, above 3 is not.
    """

    mean: Float32
    sd: Float32
    angle_rad: Float32
    angle_sd_rad: Float32
    offset_px: Float32
    offset_sd_px: Float32
    class_probability: Float32
    novelty: Float32


class NoveltyModel(NamedTuple):
    """Principal components of the pooled training windows in all quarter turns.

    A window is novel when it does not lie in the space that they span, or lies far out in it.

    Attributes
    ----------
    mean_F, components_FS, sd_S
        Centre, directions and standard deviations.
    """

    mean_F: Tensor
    components_FS: Tensor
    sd_S: Tensor

    @classmethod
    def blank(cls, channels: int, window_px: int) -> NoveltyModel:
        """Make one of the right shapes that knows nothing."""
        features = channels * pooled_px(window_px) ** 2
        kept = min(COMPONENTS, features - 1)
        return cls(torch.zeros(features), torch.zeros(features, kept), torch.ones(kept))

    @classmethod
    def fit(cls, windows_NCHW: Tensor) -> NoveltyModel:
        """Fit to windows ``(N, C, H, W)``, float32."""
        pooled = pool(windows_NCHW)
        turned = torch.cat([torch.rot90(pooled, k, (2, 3)).flatten(1) for k in range(4)]).double()
        mean_F = turned.mean(0)
        _, variance, components = torch.linalg.svd((turned - mean_F).T @ (turned - mean_F) / len(turned))
        kept = min(COMPONENTS, len(variance) - 1)
        return cls(
            mean_F.float(), components[:kept].T.contiguous().float(), variance[:kept].sqrt().float() + 1e-6
        )

    def statistics(self, pooled_NF: Tensor) -> Tensor:
        """Log of the residual and of the mean square score of each pooled window, shape ``(N, 2)``."""
        centred_NF = pooled_NF - self.mean_F
        scores_NS = centred_NF @ self.components_FS
        left_N = (centred_NF.square().sum(1) - scores_NS.square().sum(1)).clamp(min=1e-12)
        far_N = (scores_NS / self.sd_S).square().mean(1)
        return torch.stack([left_N.log() / 2, (far_N + 1e-12).log() / 2], 1)


class TurnedReader:
    """The first layer of all quarter turns of a window as one matrix on the window as it came.

    Turning a window permutes its pixels; turning the weights instead, once, leaves one product for
    the four turns and no copies of the windows.
    """

    def __init__(self, model: SpatialRVAE) -> None:
        channels, edge, turns = model.channels, pooled_px(model.window_px), model.turns
        scale_F = model.scale_C.repeat_interleave(edge * edge)
        center_F = model.center_C.repeat_interleave(edge * edge)
        index = torch.arange(channels * edge * edge).view(channels, edge, edge)
        weight = torch.empty(turns, model.hidden, index.numel())
        for k in range(turns):
            weight[k][:, torch.rot90(index, k, (1, 2)).flatten()] = model.read.weight.detach()
        weight /= scale_F
        self._shape = (turns, model.hidden)
        self._weight_FG = weight.flatten(0, 1).T.contiguous()
        self._bias_G = model.read.bias.detach().repeat(turns) - center_F @ self._weight_FG

    def to(self, device: torch.device) -> Self:
        """Move to a device."""
        self._weight_FG, self._bias_G = self._weight_FG.to(device), self._bias_G.to(device)
        return self

    def __call__(self, pooled_NF: Tensor) -> Tensor:
        """Read pooled windows: what ``SpatialRVAE.read_turns`` says, ``(N, K, hidden)``."""
        return torch.addmm(self._bias_G, pooled_NF, self._weight_FG).tanh_().view(-1, *self._shape)


class Encoder:
    """A loaded model, ready to encode.

    Parameters
    ----------
    model
        In evaluation mode.
    novelty
        Fitted to its training windows.
    card, revision
        Of the checkpoint.
    device
        Where it runs.
    """

    def __init__(
        self, model: SpatialRVAE, novelty: NoveltyModel, card: ModelCard, revision: str, device: torch.device
    ) -> None:
        self.card = card
        self.revision = revision
        self.device = device
        self._reader = TurnedReader(model).to(device)
        self._model = model.to(device).eval()
        self._novelty = NoveltyModel(*(tensor.to(device) for tensor in novelty))
        self._center = torch.tensor(card.calibration["novelty_center"], device=device)
        self._unit = torch.tensor(card.calibration["novelty_unit"], device=device)
        self._row = torch.arange(BLOCK, device=device)
        self._block = torch.zeros(BLOCK, len(card.channels), card.window_px, card.window_px)
        self._filling: Float32 = self._block.numpy()

    @classmethod
    def load(cls, path: Path | str | None = None, *, device: Device = "auto") -> Self:
        """Load a checkpoint.

        Parameters
        ----------
        path
            None takes the shipped weights for silicon in graphene.
        device
            ``auto`` takes CUDA where there is one.

        Raises
        ------
        CheckpointError
            If the file is missing, foreign, damaged, or its tensors do not fit its card.
        ValueError
            If ``cuda`` is asked for where there is none.
        """
        file = SHIPPED if path is None else Path(path)
        tensors, card, revision = load(file)
        if card.family != "spatial":
            raise CheckpointError(f"{file}: weights of family {card.family!r}; the encoder takes 'spatial'")
        model = build(card)
        blank = NoveltyModel.blank(len(card.channels), card.window_px)
        require_fit(file, tensors, together(model, blank))
        novelty = NoveltyModel(*(tensors.pop(f"novelty.{name}") for name in NoveltyModel._fields))
        model.load_state_dict(tensors)
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("encoder.device is 'cuda', but torch sees no GPU; it takes 'cpu' or 'auto' here")
        is_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        return cls(model, novelty, card, revision, torch.device("cuda" if is_cuda else "cpu"))

    def encode(self, windows_NCHW: Float32) -> Encoded:
        """Encode windows normalised as the card says; the model does not change.

        Parameters
        ----------
        windows_NCHW
            Shape ``(n, channel, h, w)`` as the card has them, float32. A window with NaN or infinity
            is read as an empty one and has the novelty ``MOST_NOVEL``; the others are not touched by it.

        Raises
        ------
        ValueError
            If the shape is another; the text says which it takes.
        """
        channels, edge = len(self.card.channels), self.card.window_px
        if windows_NCHW.shape[1:] != (channels, edge, edge):
            raise ValueError(
                f"windows have shape {windows_NCHW.shape}; these weights take (n, {channels}, {edge}, {edge})"
            )
        if len(windows_NCHW) == 0:
            return self._encoded(torch.zeros(0, 2 * self.card.latent_dim + 7))
        with torch.inference_mode():
            rows = [
                self._encode_block(windows_NCHW[at : at + BLOCK]) for at in range(0, len(windows_NCHW), BLOCK)
            ]
            return self._encoded(torch.cat(rows))

    def _encode_block(self, windows_NCHW: Float32) -> Tensor:
        """Encode up to a block; all that is said of a window in one row."""
        n = len(windows_NCHW)
        # Through NumPy, because what comes off the wire is read-only, which torch does not know.
        self._filling[:n] = windows_NCHW
        self._filling[n:] = 0
        is_whole_N = torch.isfinite(self._block.flatten(1).sum(1))  # NaN and infinity survive a sum
        if not is_whole_N.all():
            self._block[~is_whole_N] = 0
        block = self._block.to(self.device)
        pooled_NF = pool(block).flatten(1)
        read_NKF = self._reader(pooled_NF)
        turn_N = self._model.choose(read_NKF)[..., 0].argmax(1)
        told = unturned(self._model.reading(read_NKF[self._row, turn_N]), turn_N)
        away = (self._novelty.statistics(pooled_NF) - self._center) / self._unit
        novelty = away.max(1).values.clamp(0, MOST_NOVEL)
        novelty[~is_whole_N.to(self.device)] = MOST_NOVEL
        columns = (
            told.mean_NZ,
            told.log_sd_NZ.exp(),
            told.angle_N[:, None],
            told.angle_log_sd_N.exp()[:, None],
            told.shift_N2,
            told.shift_log_sd_N2.exp(),
            novelty[:, None],
        )
        return torch.cat(columns, 1)[:n].cpu()

    def _encoded(self, rows: Tensor) -> Encoded:
        d = self.card.latent_dim
        mean, sd, angle, angle_sd, shift, shift_sd, novelty = (
            part.numpy()
            for part in rows.split([d, d, 1, 1, 2, 2, 1], 1)  # type: ignore[no-untyped-call]
        )
        half_px = np.float32(self.card.window_px / 2)
        turn = np.float32(2 * math.pi)
        return Encoded(
            mean=np.ascontiguousarray(mean),
            sd=np.ascontiguousarray(sd),
            angle_rad=(angle - turn * np.rint(angle / turn))[:, 0],
            angle_sd_rad=np.ascontiguousarray(angle_sd[:, 0]),
            offset_px=np.ascontiguousarray(shift[:, ::-1]) * half_px,
            offset_sd_px=np.ascontiguousarray(shift_sd[:, ::-1]) * half_px,
            class_probability=np.zeros((len(rows), 0), np.float32),
            novelty=np.ascontiguousarray(novelty[:, 0]),
        )

    def decode(self, latents_NZ: Float32, angle_rad: Float32 | None = None) -> Float32:
        """Draw windows from content, upright where no angle is given.

        Parameters
        ----------
        latents_NZ
            Shape ``(n, d)``.
        angle_rad
            Shape ``(n,)``.

        Returns
        -------
        windows_NCHW
            In the normalisation of the card, float32.
        """
        content = torch.from_numpy(np.ascontiguousarray(latents_NZ, dtype=np.float32)).to(self.device)
        angle = (
            None
            if angle_rad is None
            else torch.from_numpy(np.asarray(angle_rad, dtype=np.float32)).to(self.device)
        )
        with torch.inference_mode():
            drawn: Float32 = self._model.decode(content, angle).cpu().numpy()
        return drawn


def build(card: ModelCard) -> SpatialRVAE:
    """Make the model that a card describes, with fresh weights."""
    return SpatialRVAE(len(card.channels), card.window_px, msgspec.convert(card.architecture, SpatialConfig))


def together(model: SpatialRVAE, novelty: NoveltyModel) -> dict[str, Tensor]:
    """Name the tensors of both parts as a checkpoint keeps them."""
    return model.state_dict() | {f"novelty.{name}": part for name, part in novelty._asdict().items()}


def calibrated(
    novelty: NoveltyModel, windows_NCHW: Tensor
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Median and upper spread of the novelty statistics on held-out windows.

    The spread is a third of the way from the median to the 99.7th percentile, so that three windows
    in a thousand of the training's own kind are called novel by each statistic.
    """
    statistics = novelty.statistics(pool(windows_NCHW).flatten(1)).double()
    center = statistics.quantile(0.5, dim=0)
    unit = ((statistics.quantile(0.997, dim=0) - center) / 3).clamp(min=1e-6)
    return (float(center[0]), float(center[1])), (float(unit[0]), float(unit[1]))
