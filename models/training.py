"""Training an rVAE of either family: windows in, the model with the best held-out bound out."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.posterior import Terms
from models.rvae import RVAE, RVAEConfig
from models.spatial_rvae import SpatialConfig, SpatialRVAE

Float32 = NDArray[np.float32]
Model = RVAE | SpatialRVAE

COLLAPSED_NATS = 1.0
_HASTE = 10.0  # times the rate, of what only the labelled windows speak of
_EXPLAINED_OF = 256  # windows
_FEWEST_EPOCHS = 5  # before which latents may still be on their way


class Collapsed(ValueError):
    """The latents say nothing of the windows; the text says what to do."""


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an rVAE is trained.

    Attributes
    ----------
    architecture
        What is trained: its type names the family.
    seed
        Of the first weights, the split, the batches and the samples.
    epochs, batch, learning_rate
        Adam with a one-cycle rate whose peak is ``learning_rate``.
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

    architecture: RVAEConfig | SpatialConfig = RVAEConfig()
    seed: int = 0
    epochs: int = 12
    batch: int = 64
    learning_rate: float = 3e-3
    warm_up: float = 0.6
    validation: float = 0.15
    patience: int = 10
    restarts: int = 3
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
        Held-out KL in nats per window. ``kl_content`` has one for each latent, or one in all of a model
        whose prior is a mixture; those of the pose are 0 where it is integrated out.
    explained
        By how many nats a held-out window is likelier given its own content than given that of another.
    """

    restart: int
    number: int
    trained: float
    held_out: float
    kl_content: tuple[float, ...]
    kl_angle: float
    kl_shift: float
    explained: float = 0.0


Progress = Callable[[Epoch], None]


class _Run:
    """One set of first weights with its optimiser, trained an epoch at a time."""

    def __init__(self, parts: _Parts, config: TrainingConfig, restart: int, start: Model | None) -> None:
        self.parts, self.config, self.restart = parts, config, restart
        self.random = torch.Generator().manual_seed(config.seed * 1009 + restart)
        self.is_fine_tuning = start is not None
        if start is None:
            self.model = fresh(config.architecture, *_shape(parts.windows_NCHW), self.random)
            self.model.prepare(parts.windows_NCHW)
        else:
            self.model = copy.deepcopy(start).requires_grad_(True)
            self.model.keep_prior()
        # The rate is reached where training begins: an optimiser of another rate would undo fine-tuning.
        self.peak = config.learning_rate * (0.1 if self.is_fine_tuning else 1.0)
        self.optimiser = torch.optim.Adam(_groups(self.model), lr=self.peak)
        with torch.no_grad():
            self.seen = self.model.inputs(parts.windows_NCHW)
        self.steps = config.epochs * math.ceil(len(self.seen) / config.batch)
        self.step = 0
        self.number = 0
        self.best = math.inf
        self.best_weights = _copied(self.model)
        self.since = 0
        self.empty = 0

    def epoch(self) -> Epoch:
        self.model.train()
        order = torch.randperm(len(self.seen), generator=self.random)
        losses = [self._learn(part) * len(part) for part in order.split(self.config.batch)]  # type: ignore[no-untyped-call]
        self.number += 1
        report = self._report(sum(losses) / len(order))
        self._remember(report.held_out)
        return report

    def _learn(self, chosen: Tensor) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.peak * _one_cycle(self.step / self.steps) * group["haste"]
        label_N = self.parts.label_N
        terms = self.model.terms_of(
            self.seen[chosen], self.random, None if label_N is None else label_N[chosen]
        )
        loss = terms.loss(self._kl_weight()).mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.model.gradient_norm)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def _kl_weight(self) -> float:
        if self.is_fine_tuning:
            return 1.0
        return min(1.0, (self.step + 1) / max(1.0, self.config.warm_up * self.steps))

    def _report(self, trained: float) -> Epoch:
        terms = evaluate(self.model, self.parts.held_NCHW, seed=self.config.seed)
        return Epoch(
            restart=self.restart,
            number=self.number - 1,
            trained=trained,
            held_out=float(terms.negative_elbo().mean()),
            kl_content=tuple(terms.kl_content_NZ.mean(0).tolist()),
            kl_angle=float(terms.kl_angle_N.mean()),
            kl_shift=float(terms.kl_shift_N.mean()),
            explained=explained(self.model, self.parts.held_NCHW),
        )

    def _remember(self, held_out: float) -> None:
        if held_out < self.best:
            self.best, self.best_weights, self.since = held_out, _copied(self.model), 0
        elif self.is_warm:
            self.since += 1

    @property
    def is_warm(self) -> bool:
        return self.is_fine_tuning or self.step >= self.config.warm_up * self.steps

    def state(self) -> dict[str, Tensor]:
        """All that the next epoch depends on, under plain names."""
        numbers = torch.tensor([self.step, self.number, self.since, self.empty])
        tensors = {"random": self.random.get_state(), "numbers": numbers, "best": torch.tensor(self.best)}
        tensors |= {f"model.{name}": one for name, one in _copied(self.model).items()}
        tensors |= {f"best.{name}": one for name, one in self.best_weights.items()}
        for at, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{at}.{name}": one.clone() for name, one in moments.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what ``state`` gave."""
        self.random.set_state(tensors["random"])
        self.step, self.number, self.since, self.empty = (int(number) for number in tensors["numbers"])
        self.best = float(tensors["best"])
        self.model.load_state_dict(_under("model.", tensors))
        self.best_weights = _under("best.", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, one in _under("adam.", tensors).items():
            at, name = key.split(".", 1)
            moments.setdefault(int(at), {})[name] = one.clone()
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})


def _groups(model: Model) -> list[dict[str, Any]]:
    """Part the weights into those of the usual rate and those that few windows speak of."""
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    usual = [one for name, one in named if name not in model.hasty]
    hasty = [one for name, one in named if name in model.hasty]
    groups = [{"params": usual, "haste": 1.0}, {"params": hasty, "haste": _HASTE}]
    return [group for group in groups if group["params"]]


def _shape(windows_NCHW: Tensor) -> tuple[int, int]:
    return windows_NCHW.shape[1], windows_NCHW.shape[2]


def _copied(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def _one_cycle(share: float) -> float:
    """Rise linearly over the first tenth, fall as a cosine to a hundredth."""
    if share < 0.1:
        return 0.1 + 0.9 * share / 0.1
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))


def fresh(
    architecture: RVAEConfig | SpatialConfig, channels: int, window_px: int, generator: torch.Generator
) -> Model:
    """Make an untrained model of the family that the architecture belongs to."""
    if isinstance(architecture, RVAEConfig):
        return RVAE(channels, window_px, architecture, generator=generator)
    return SpatialRVAE(channels, window_px, architecture, generator=generator)


def evaluate(model: Model, windows_NCHW: Tensor, *, seed: int = 0, batch: int = 256) -> Terms:
    """Compute the parts of the negative ELBO with all pixels; the model does not change.

    The sample is drawn from the written seed, so two evaluations of one model agree bit for bit.
    """
    model.eval()
    random = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        starts = range(0, len(windows_NCHW), batch)
        parts = [model.terms_of(model.inputs(windows_NCHW[at : at + batch]), random) for at in starts]
    return Terms(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def explained(model: Model, windows_NCHW: Tensor) -> float:
    """Say by how many nats windows are likelier given their own content than given that of others.

    The KL does not tell whether latents have collapsed: it is above 0 where they learn the noise by heart.
    """
    model.eval()
    few = windows_NCHW[:_EXPLAINED_OF]
    with torch.inference_mode():
        seen = model.inputs(few)
        own, others = (
            model.terms_of(seen, torch.Generator().manual_seed(0), shown_N=shown_N).error_N.mean()
            for shown_N in (torch.arange(len(few)), torch.arange(len(few)).roll(1))
        )
    return float(others - own)


def _checked(windows_NCHW: Float32) -> Tensor:
    if windows_NCHW.ndim != 4 or windows_NCHW.shape[2] != windows_NCHW.shape[3]:
        raise ValueError(f"windows have shape {windows_NCHW.shape}; it takes (n, channel, h, w) with h = w")
    if windows_NCHW.shape[0] < 20:
        raise ValueError(f"{windows_NCHW.shape[0]} windows are too few to train on; it takes 20 and above")
    if not np.isfinite(windows_NCHW).all():
        raise ValueError("windows hold NaN or infinity; drop those windows before training")
    return torch.from_numpy(np.ascontiguousarray(windows_NCHW, dtype=np.float32))


def _checked_labels(label_N: NDArray[np.int64], count: int, config: TrainingConfig) -> Tensor:
    classes = config.architecture.classes if isinstance(config.architecture, RVAEConfig) else 0
    if classes == 0:
        raise ValueError("labels are given, but architecture.classes is 0; it takes the number of classes")
    if label_N.shape != (count,):
        raise ValueError(f"labels have shape {label_N.shape}; {count} windows take ({count},)")
    if label_N.min() < -1 or label_N.max() >= classes:
        raise ValueError(
            f"labels run from {label_N.min()} to {label_N.max()}; of {classes} classes they run from 0 to "
            f"{classes - 1}, and -1 says not known"
        )
    return torch.from_numpy(np.ascontiguousarray(label_N, dtype=np.int64))


class _Parts(msgspec.Struct, frozen=True):
    """Windows to learn from, windows that are held out, and the labels of the former."""

    windows_NCHW: Tensor
    held_NCHW: Tensor
    label_N: Tensor | None


def split(windows_NCHW: Tensor, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    """Split into training and held-out windows by the written seed."""
    kept, held = _split_order(windows_NCHW.shape[0], config)
    return windows_NCHW[kept], windows_NCHW[held]


def _split_order(count: int, config: TrainingConfig) -> tuple[Tensor, Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    held = max(1, round(config.validation * count))
    return order[held:], order[:held]


class Training:
    """A training that is taken an epoch at a time, and can be put down and taken up again.

    Several first weights are tried for a few epochs each; the best goes on. The same windows and seed give
    the same weights on one thread of a CPU, put down or not. Nothing outside is touched: no global seed, no
    file, no printing.

    Parameters
    ----------
    windows_NCHW
        Shape ``(n, channel, h, h)``, float32, normalised as they will be when encoding.
    config
        How.
    label_N
        Class of each window where it is known, int64, else -1; for an RVAE whose ``classes`` is above 0.
    start
        A model to go on from instead of first weights: its components, scales and classes stay, the rest
        is trained at a tenth of the rate. The architecture of ``config`` is not looked at.

    Raises
    ------
    ValueError
        If the windows are not square, not finite or too few, or the labels are not those of the classes.
    """

    def __init__(
        self,
        windows_NCHW: Float32,
        config: TrainingConfig,
        *,
        label_N: NDArray[np.int64] | None = None,
        start: torch.nn.Module | None = None,
    ) -> None:
        checked = _checked(windows_NCHW)
        if start is not None and not isinstance(start, RVAE | SpatialRVAE):
            raise ValueError(f"training cannot start from a {type(start).__name__}; it takes an rVAE")
        labels = None if label_N is None else _checked_labels(label_N, len(checked), config)
        kept, held = _split_order(len(checked), config)
        parts = _Parts(checked[kept], checked[held], None if labels is None else labels[kept])
        self.config = config
        self.history: list[Epoch] = []
        self._fingerprint = zlib.crc32(checked.numpy().tobytes(), zlib.crc32(repr(config).encode()))
        restarts = 1 if start is not None else config.restarts
        self._runs = [_Run(parts, config, restart, start) for restart in range(restarts)]
        self._trial_epochs = min(config.trial_epochs, config.epochs) if restarts > 1 else 0

    @property
    def most_epochs(self) -> int:
        """How many epochs there are if none is saved by stopping early."""
        return self.config.epochs + (len(self._runs) - 1) * self._trial_epochs

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train."""
        return self._next() is None

    def epoch(self) -> Epoch:
        """Train for one epoch.

        Raises
        ------
        Collapsed
            If with the KL terms at full weight the latents say nothing of the windows.
        RuntimeError
            If the training is over.
        """
        run = self._next()
        if run is None:
            raise RuntimeError("this training is over; ask is_over first")
        epoch = run.epoch()
        self.history.append(epoch)
        self._require_content(run, epoch)
        return epoch

    def _require_content(self, run: _Run, epoch: Epoch) -> None:
        """Refuse to go on when for three epochs at full weight, or at the end, the latents are empty."""
        run.empty = run.empty + 1 if run.is_warm and epoch.explained < COLLAPSED_NATS else 0
        if run.empty and run.number >= _FEWEST_EPOCHS and (run.empty >= 3 or self.is_over):
            raise Collapsed(
                f"the latents collapsed: they explain {max(0.0, epoch.explained):.2g} nats of a window, and "
                f"ones worth keeping {COLLAPSED_NATS:g} and more. The windows are all alike or show nothing "
                "above their noise: look at a few of them, cut larger ones, take frames of more counts or "
                "average some"
            )

    def _next(self) -> _Run | None:
        """Name the run whose turn it is: all trials, then the best of them."""
        for run in self._runs:
            if run.number < self._trial_epochs:
                return run
        run = self._best()
        is_over = run.number >= self.config.epochs or run.since >= self.config.patience
        return None if is_over else run

    def _best(self) -> _Run:
        if len(self._runs) == 1:
            return self._runs[0]
        last = self._trial_epochs - 1
        after_trial = {epoch.restart: epoch.held_out for epoch in self.history if epoch.number == last}
        return self._runs[min(after_trial, key=lambda restart: (after_trial[restart], restart))]

    def result(self) -> Model:
        """Give the model at its best held-out bound, settled and in evaluation mode."""
        run = self._best()
        model = fresh(run.model.config, run.model.channels, run.model.window_px, torch.Generator())
        model.load_state_dict(run.best_weights)
        model.eval()
        if not run.is_fine_tuning:
            model.settle(run.parts.windows_NCHW, run.parts.held_NCHW, run.parts.label_N)
        return model

    def state(self) -> dict[str, Tensor]:
        """All that the rest of the training depends on, but the windows; fit for safetensors."""
        history = torch.frombuffer(bytearray(msgspec.json.encode(self.history)), dtype=torch.uint8)
        tensors = {"history": history, "fingerprint": torch.tensor(self._fingerprint)}
        for run in self._runs:
            tensors |= {f"{run.restart}.{name}": one for name, one in run.state().items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on where ``state`` was taken, with the same windows and configuration.

        Raises
        ------
        ValueError
            If the state is that of other windows or of another configuration.
        """
        if "fingerprint" not in tensors or int(tensors["fingerprint"]) != self._fingerprint:
            raise ValueError(
                "the training to resume had other windows or another configuration; begin it anew"
            )
        self.history = msgspec.json.decode(tensors["history"].numpy().tobytes(), type=list[Epoch])
        for run in self._runs:
            run.restore(_under(f"{run.restart}.", tensors))


def _ignore(_: Epoch) -> None:
    return None


def train(
    windows_NCHW: Float32,
    config: TrainingConfig,
    progress: Progress = _ignore,
    *,
    label_N: NDArray[np.int64] | None = None,
    start: torch.nn.Module | None = None,
) -> tuple[Model, list[Epoch]]:
    """Train an rVAE in one go; see ``Training`` for what is taken and raised.

    Returns
    -------
    model, history
        The model at its best held-out negative ELBO, in evaluation mode, and every epoch.
    """
    training = Training(windows_NCHW, config, label_N=label_N, start=start)
    while not training.is_over:
        progress(training.epoch())
    return training.result(), training.history
