"""Training an rVAE: windows in, the model with the best held-out bound out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.spatial_rvae import SpatialConfig, SpatialRVAE, Terms


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an rVAE is trained.

    Attributes
    ----------
    seed
        Of the first weights, the split, the batches and the samples.
    epochs, batch, learning_rate
        Adam with a one-cycle rate whose peak is ``learning_rate``.
    architecture
        What is trained.
    warm_up
        Share of the steps over which the KL terms come in.
    validation
        Share of the windows held out.
    patience
        Epochs without a better held-out bound after which training ends; counted after the warm-up.
    restarts
        How many first weights are tried; the best held-out bound after ``trial_epochs`` goes on.
    trial_epochs
        Epochs of a trial.
    """

    architecture: SpatialConfig = SpatialConfig()
    seed: int = 0
    epochs: int = 24
    batch: int = 100
    learning_rate: float = 2e-3
    warm_up: float = 0.3
    validation: float = 0.15
    patience: int = 10
    restarts: int = 2
    trial_epochs: int = 3

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 1, 100_000),
            ("batch", 1, 65_536),
            ("patience", 1, 100_000),
            ("restarts", 1, 100),
            ("trial_epochs", 1, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it takes {low} to {high}")
        for name, below in (("learning_rate", 1.0), ("validation", 0.9)):
            value = getattr(self, name)
            if not 0 < value < below:
                raise ValueError(f"training.{name} is {value}; it takes numbers above 0 and below {below:g}")
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"training.warm_up is {self.warm_up}; it takes 0 to 1")


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of training, for a progress bar and the record.

    Attributes
    ----------
    restart, number
        Which trial (the one that went on keeps its number), and the epoch in it, from 0.
    trained, held_out
        Negative ELBO per window in nats; ``held_out`` with all pixels and the full KL.
    kl_content, kl_angle, kl_shift
        Held-out KL in nats per window; ``kl_content`` has one for each latent.
    """

    restart: int
    number: int
    trained: float
    held_out: float
    kl_content: tuple[float, ...]
    kl_angle: float
    kl_shift: float


Progress = Callable[[Epoch], None]


class _Run:
    """One set of first weights with its optimiser, trained an epoch at a time."""

    def __init__(self, windows: Tensor, held_out: Tensor, config: TrainingConfig, restart: int) -> None:
        self.windows, self.held_out, self.config, self.restart = windows, held_out, config, restart
        self.random = torch.Generator().manual_seed(config.seed * 1009 + restart)
        self.model = SpatialRVAE(
            windows.shape[1], windows.shape[2], config.architecture, generator=self.random
        )
        self.model.fit_scale(windows)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        self.steps = config.epochs * math.ceil(windows.shape[0] / config.batch)
        self.step = 0
        self.number = 0

    def epoch(self) -> Epoch:
        self.model.train()
        order = torch.randperm(self.windows.shape[0], generator=self.random)
        losses = [self._learn(self.windows[part]) * len(part) for part in order.split(self.config.batch)]  # type: ignore[no-untyped-call]
        self.number += 1
        return self._report(sum(losses) / len(order))

    def _learn(self, batch: Tensor) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * _one_cycle(self.step / self.steps)
        warmed = self.step / max(1.0, self.config.warm_up * self.steps)
        terms = self.model.terms(batch, self.random, self.config.architecture.pixels or None)
        loss = terms.negative_elbo(min(1.0, warmed)).mean()
        self.optimiser.zero_grad()
        (loss + terms.turn_N.mean() + self.config.architecture.stress * terms.stress_N.mean()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1000.0)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def _report(self, trained: float) -> Epoch:
        terms = evaluate(self.model, self.held_out, seed=self.config.seed)
        return Epoch(
            restart=self.restart,
            number=self.number - 1,
            trained=trained,
            held_out=float(terms.negative_elbo().mean()),
            kl_content=tuple(terms.kl_content_NZ.mean(0).tolist()),
            kl_angle=float(terms.kl_angle_N.mean()),
            kl_shift=float(terms.kl_shift_N.mean()),
        )

    @property
    def is_warm(self) -> bool:
        return self.step >= self.config.warm_up * self.steps


def _one_cycle(share: float) -> float:
    """Rise linearly over the first tenth, fall as a cosine to a hundredth."""
    if share < 0.1:
        return 0.1 + 0.9 * share / 0.1
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))


def evaluate(model: SpatialRVAE, windows_NCHW: Tensor, *, seed: int = 0, batch: int = 256) -> Terms:
    """Compute the parts of the negative ELBO with all pixels; the model does not change.

    The sample is drawn from the written seed, so two evaluations of one model agree bit for bit.
    """
    model.eval()
    random = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        starts = range(0, len(windows_NCHW), batch)
        every = model.window_px**2
        parts = [model.terms(windows_NCHW[at : at + batch], random, trial_pixels=every) for at in starts]
    return Terms(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _checked(windows_NCHW: NDArray[np.float32]) -> Tensor:
    if windows_NCHW.ndim != 4 or windows_NCHW.shape[2] != windows_NCHW.shape[3]:
        raise ValueError(f"windows have shape {windows_NCHW.shape}; it takes (n, channel, h, w) with h = w")
    if windows_NCHW.shape[0] < 20:
        raise ValueError(f"{windows_NCHW.shape[0]} windows are too few to train on; it takes 20 and above")
    if not np.isfinite(windows_NCHW).all():
        raise ValueError("windows hold NaN or infinity; drop those windows before training")
    return torch.from_numpy(np.ascontiguousarray(windows_NCHW, dtype=np.float32))


def split(windows_NCHW: Tensor, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """Split into training and held-out windows by the written seed."""
    order = torch.randperm(windows_NCHW.shape[0], generator=torch.Generator().manual_seed(config.seed))
    held = max(1, round(config.validation * windows_NCHW.shape[0]))
    return windows_NCHW[order[held:]], windows_NCHW[order[:held]]


def _ignore(_: Epoch) -> None:
    return None


def train(
    windows_NCHW: NDArray[np.float32], config: TrainingConfig, progress: Progress = _ignore
) -> tuple[SpatialRVAE, list[Epoch]]:
    """Train an rVAE; the same windows and seed give the same weights on one thread of a CPU.

    Nothing outside is touched: no global seed, no file, no printing.

    Parameters
    ----------
    windows_NCHW
        Windows, shape ``(n, channel, h, h)``, float32, normalised as they will be when encoding.
    config
        How.
    progress
        Called after each epoch.

    Returns
    -------
    model, history
        The model at its best held-out negative ELBO, in evaluation mode, and every epoch.

    Raises
    ------
    ValueError
        If the windows are not square, not finite or too few.
    """
    trained_on, held_out = split(_checked(windows_NCHW), config)
    history: list[Epoch] = []

    def one(run: _Run) -> Epoch:
        epoch = run.epoch()
        history.append(epoch)
        progress(epoch)
        return epoch

    trial_epochs = min(config.trial_epochs, config.epochs)
    trials = []
    for restart in range(config.restarts):
        run = _Run(trained_on, held_out, config, restart)
        epochs = [one(run) for _ in range(trial_epochs)]
        trials.append((epochs[-1].held_out, restart, run))
    _, _, run = min(trials, key=lambda trial: trial[:2])
    best, weights, since = trials[run.restart][0], copy.deepcopy(run.model.state_dict()), 0
    while run.number < config.epochs and since < config.patience:
        epoch = one(run)
        better = epoch.held_out < best
        since = 0 if better or not run.is_warm else since + 1
        if better:
            best, weights = epoch.held_out, copy.deepcopy(run.model.state_dict())
    run.model.load_state_dict(weights)
    return run.model.eval(), history
