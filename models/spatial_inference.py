"""The spatial rVAE as it runs live: fixed blocks of windows, the four quarter turns read by one matrix.

Axes: N window, C channel, H row, W column, K quarter turn, F feature (pooled pixels), S novelty statistic.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.answers import Answers
from models.novelty import MOST_NOVEL, Calibration, SpatialNovelty
from models.spatial_rvae import Reading, SpatialRVAE, pool, pooled_px, unturned

Float32 = NDArray[np.float32]

# One block's shape for every call: a window's latents then do not depend on what else is encoded.
BLOCK = 256


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


class SpatialInference:
    """A spatial rVAE with its weights fixed; calls from one thread at a time.

    Parameters
    ----------
    model
        In evaluation mode.
    novelty, calibration
        Fitted to its training windows, and to others.
    device
        Where it runs.
    """

    def __init__(
        self, model: SpatialRVAE, novelty: SpatialNovelty, calibration: Calibration, device: torch.device
    ) -> None:
        self._device = device
        self._reader = TurnedReader(model).to(device)
        self._model = model.to(device).eval()
        self._novelty = SpatialNovelty(*(tensor.to(device) for tensor in novelty))
        self._center, self._unit = (torch.tensor(part, device=device) for part in calibration)
        self._row = torch.arange(BLOCK, device=device)
        self._block = torch.zeros(BLOCK, model.channels, model.window_px, model.window_px)
        self._filling: Float32 = self._block.numpy()

    def encode(self, windows_NCHW: Float32, threads: int = 1) -> Answers:
        """Say everything of windows ``(n, channel, h, w)``, in one thread; nothing is learnt."""
        answers = Answers.room(len(windows_NCHW), self._model.latent_dim, 0, 0)
        with torch.inference_mode():
            for at in range(0, len(windows_NCHW), BLOCK):
                self._encode_block(windows_NCHW[at : at + BLOCK], answers, at)
        return answers

    def statistics(self, windows_NCHW: Float32) -> Float32:
        """Say what the novelty is made of, ``(n, 2)``."""
        with torch.inference_mode():
            pooled = pool(torch.from_numpy(windows_NCHW).to(self._device)).flatten(1)
            told: Float32 = self._novelty.statistics(pooled).cpu().numpy()
        return told

    def _encode_block(self, windows_NCHW: Float32, answers: Answers, at: int) -> None:
        n = len(windows_NCHW)
        # Through NumPy, because what comes off the wire is read-only, which torch does not know.
        self._filling[:n] = windows_NCHW
        self._filling[n:] = 0
        is_whole_N = torch.isfinite(self._block.flatten(1).sum(1))  # NaN and infinity survive a sum
        if not is_whole_N.all():
            self._block[~is_whole_N] = 0
        pooled_NF = pool(self._block.to(self._device)).flatten(1)
        read_NKF = self._reader(pooled_NF)
        turn_N = self._model.choose(read_NKF)[..., 0].argmax(1)
        told = unturned(self._model.reading(read_NKF[self._row, turn_N]), turn_N)
        away = (self._novelty.statistics(pooled_NF) - self._center) / self._unit
        novelty_N = away.max(1).values.clamp(0, MOST_NOVEL)
        novelty_N[~is_whole_N.to(self._device)] = MOST_NOVEL
        for mine, theirs in zip(_columns(told, novelty_N), answers, strict=True):
            theirs[at : at + n] = mine[:n].cpu().numpy()


def _columns(told: Reading, novelty_N: Tensor) -> tuple[Tensor, ...]:
    """Put what was said of a block in the order of the answers."""
    none = told.mean_NZ[:, :0]
    return (
        told.mean_NZ,
        told.log_sd_NZ.exp(),
        torch.remainder(told.angle_N + math.pi, 2 * math.pi) - math.pi,
        told.angle_log_sd_N.exp(),
        told.shift_N2,
        told.shift_log_sd_N2.exp(),
        none,
        none,
        none,
        novelty_N,
    )
