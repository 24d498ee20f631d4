"""Trains the finder of columns, on simulated images only; the work behind ``probeloop train finder``.

Image ``i`` of a training is drawn from the seed and ``i`` alone: a training that was broken off goes on as if
it had not been. What is used in the end is a running mean of the weights, so a training that is cut short
leaves usable ones. Held-out images, those of calibration and of scores come from streams of their own.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import safetensors.torch
import torch
from numba import njit
from numpy.typing import NDArray
from rich.console import Console
from scipy.spatial import cKDTree
from torch import Tensor

from models.atom_finder import (
    AtomFinder,
    Calibration,
    ColumnNet,
    FinderConfig,
    columns_of,
    features,
    sure_around,
)
from models.checkpoint import ModelCard
from simulators.column_images import ColumnImage, ColumnImageConfig, Kind, column_image

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

TRAINING, HELD_OUT, CALIBRATION, SCORES = range(4)  # streams of images
CANONICAL_SIGMA_PX = 2.5
SIMULATOR = "column_images 2"
DATA = (
    "simulated images of {size} x {size} pixels, spots of sigma {low} to {high} px, {few:g} to {many:g} "
    "counts: lattices of seven kinds with dopants, vacancies, boundaries and dirt, single heavy atoms on "
    "textured supports, both together, and none; jitter, fly-back, afterglow, stripes, blanked and saturated "
    "parts; half of them resampled from coarser pixels"
)
_HEAT_SD = 0.7  # of the bump around a column on the map, in its cells
_AROUND = 2  # cells each way that a column has a say in
_NEAR = 1.3  # cells within which offset and variance are learnt
_BARELY_SNR = 1.5  # below which a peak on a column is no more than chance
_LEAST_LOGIT = -5.0  # of peaks that are calibrated: below there is nothing
_BANDS = ((3.0, 5.0), (5.0, 8.0), (8.0, 15.0), (15.0, math.inf))  # of signal-to-noise ratio, in the scores


class FinderTraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a finder is trained.

    Attributes
    ----------
    seed
        Of the first weights and of all images.
    images
        How many are drawn; each is seen once.
    minutes
        Wall-clock time in which training is to end even so; 0 sets no limit, and only then does a seed give
        the same weights again.
    batch, learning_rate
        AdamW, whose rate rises over the first 3 % of images or minutes, and falls as a cosine to a hundredth.
    weak_snr
        Columns below this signal-to-noise ratio are neither right nor wrong.
    memory
        Share of the running mean of the weights that a step leaves.
    check_every
        Images between two looks at the held-out loss, and two checkpoints.
    patience
        Looks without a better one after which training ends.
    held_out, calibrated
        Images to watch the training by, and to calibrate and score it on.
    net, drawn
        Size of the network, and what images are like.
    """

    seed: int = 0
    images: int = 48_000
    minutes: float = 0.0
    batch: int = 8
    learning_rate: float = 4e-3
    weak_snr: float = 3.5
    memory: float = 0.998
    check_every: int = 1600
    patience: int = 8
    held_out: int = 96
    calibrated: int = 400
    net: FinderConfig = FinderConfig()
    drawn: ColumnImageConfig = ColumnImageConfig()

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("batch", 1), ("check_every", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"finder.{name} is {getattr(self, name)}; it takes {least} and above")
        for name, least in (("held_out", 4), ("calibrated", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"finder.{name} is {getattr(self, name)}; it takes {least} and above")
        if not 0 <= self.minutes < math.inf:
            raise ValueError(f"finder.minutes is {self.minutes}; it takes 0 (no limit) and above")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"finder.learning_rate is {self.learning_rate}; it takes above 0 and below 1")
        if not 0 <= self.memory < 1:
            raise ValueError(f"finder.memory is {self.memory}; it takes 0 to below 1")
        if self.drawn.size_px % 8:
            raise ValueError(f"finder.drawn.size_px is {self.drawn.size_px}; it takes multiples of 8")


class FinderStep(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training is, for a progress bar and the record.

    Attributes
    ----------
    images, of
        Seen, and planned.
    share
        How much of the training is done, by images or by time, 0 to 1.
    trained
        Running mean of the loss.
    held_out
        Loss on held-out images, NaN before the first look.
    seconds
        Spent on training.
    """

    images: int
    of: int
    share: float
    trained: float
    held_out: float
    seconds: float


Progress = Callable[[FinderStep], None]


def _ignore(_: FinderStep) -> None:
    return None


def _silent(_: str) -> None:
    return None


# -- what is to be learnt ------------------------------------------------------------------------------


class Targets(NamedTuple):
    """Maps that the network should give, of half resolution, float32.

    Attributes
    ----------
    heat
        1 in the cell of a column, falling around it; shape ``(H, W)``.
    offset
        ``(row, col)`` from the cell to the nearest column in pixels, shape ``(2, H, W)``.
    distance
        To that column, in cells.
    heavy
        1 where it is heavy, 0 where light.
    weight
        0 where a column is too weak to be asked for, else 1.
    """

    heat: Float32
    offset: Float32
    distance: Float32
    heavy: Float32
    weight: Float32


def targets(drawn: ColumnImage, weak_snr: float) -> Targets:
    """Turn the truth of an image into maps."""
    rows, cols = (n // 2 for n in drawn.image.shape)
    maps = Targets(
        heat=np.zeros((rows, cols), np.float32),
        offset=np.zeros((2, rows, cols), np.float32),
        distance=np.full((rows, cols), 9.0, np.float32),
        heavy=np.zeros((rows, cols), np.float32),
        weight=np.ones((rows, cols), np.float32),
    )
    _draw_targets(drawn.positions_px, drawn.snr >= weak_snr, drawn.is_heavy, *maps)
    return maps


@njit(cache=True)
def _draw_targets(
    positions: Float64,
    is_asked: Bool,
    is_heavy: Bool,
    heat: Float32,
    offset: Float32,
    distance: Float32,
    heavy: Float32,
    weight: Float32,
) -> None:
    rows, cols = heat.shape
    for asked in (False, True):  # what is asked for overrules what is not
        for n in range(len(positions)):
            if is_asked[n] != asked:
                continue
            row, col = positions[n]
            at_row, at_col = math.floor((row + 0.5) / 2), math.floor((col + 0.5) / 2)
            for i in range(max(at_row - _AROUND, 0), min(at_row + _AROUND + 1, rows)):
                for j in range(max(at_col - _AROUND, 0), min(at_col + _AROUND + 1, cols)):
                    down, right = row - (2 * i + 0.5), col - (2 * j + 0.5)
                    away = math.hypot(down, right) / 2
                    if not asked:
                        weight[i, j] = 0
                        continue
                    bump = math.exp(-(away**2) / (2 * _HEAT_SD**2))
                    if i == at_row and j == at_col:
                        bump = 1.0
                    heat[i, j] = max(heat[i, j], bump)
                    if bump > 0.05:
                        weight[i, j] = 1
                    if away < distance[i, j]:
                        distance[i, j] = away
                        offset[0, i, j], offset[1, i, j] = down, right
                        heavy[i, j] = is_heavy[n]


def loss(
    maps_NCHW: Tensor, heat: Tensor, offset: Tensor, distance: Tensor, heavy: Tensor, weight: Tensor
) -> Tensor:
    """How far maps are from their targets, mean over images.

    Columns by the penalty-reduced focal loss of CornerNet (arXiv:1808.01244, equation 1), offsets by the
    likelihood of a normal of the variance that the network says, the class by its cross entropy. Each image
    counts as much as any other, however few columns it has.
    """
    logit = maps_NCHW[:, 0]
    is_column = heat == 1
    chance = torch.sigmoid(logit)
    hit = (1 - chance) ** 2 * torch.nn.functional.softplus(-logit)
    miss = (1 - heat) ** 4 * chance**2 * torch.nn.functional.softplus(logit)
    columns = is_column.sum((1, 2)) + 4.0
    found = ((torch.where(is_column, hit, miss) * weight).sum((1, 2)) / columns).mean()
    near = (distance < _NEAR).float()
    log_variance = maps_NCHW[:, 3].clamp(-8.0, 4.0)
    error2 = ((maps_NCHW[:, 1:3] - offset) ** 2).sum(1)
    placed = (0.5 * error2 * torch.exp(-log_variance) + log_variance) * near
    classed = torch.nn.functional.binary_cross_entropy_with_logits(maps_NCHW[:, 4], heavy, reduction="none")
    per_image = near.sum((1, 2)) + 20.0
    other = (0.25 * placed + 0.1 * classed * near).sum((1, 2)) / per_image
    return found + other.mean()


class _Batch(NamedTuple):
    features: Tensor
    targets: list[Tensor]


def draw(config: FinderTraining, stream: int, index: int, kind: Kind | None = None) -> ColumnImage:
    """Draw an image of a stream; the same config, stream and index give the same image."""
    rng = np.random.default_rng([config.seed, stream, index])
    return column_image(rng, config.drawn, kind)


def _batch(config: FinderTraining, stream: int, indices: range, device: torch.device) -> _Batch:
    images = [draw(config, stream, i) for i in indices]
    seen = torch.from_numpy(np.stack([features(one.image) for one in images]))
    maps = [targets(one, config.weak_snr) for one in images]
    stacked = [torch.from_numpy(np.stack(part)).to(device) for part in zip(*maps, strict=True)]
    return _Batch(seen.to(device).contiguous(memory_format=torch.channels_last), stacked)


# -- training ------------------------------------------------------------------------------------------


class _Run:
    """Weights, their running mean and the optimiser, trained a batch at a time."""

    def __init__(self, config: FinderTraining) -> None:
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Layers draw their first weights from the global generator: it is set, and given back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = ColumnNet(config.net, norm=True)
        with torch.no_grad():
            net.head.get_parameter("bias")[0] = -4.0  # columns are rare
        self.net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = copy.deepcopy(self.net)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), config.learning_rate, weight_decay=1e-4)
        self.images, self.seconds, self.trained = 0, 0.0, math.nan
        self.best, self.best_loss, self.looks_since = copy.deepcopy(self.net.state_dict()), math.inf, 0
        held_out = range(config.held_out)
        self.held_out = [
            _batch(config, HELD_OUT, held_out[at : at + config.batch], self.device)
            for at in held_out[:: config.batch]
        ]

    def step(self) -> None:
        """Learn from the next batch."""
        config, started = self.config, time.monotonic()
        batch = _batch(config, TRAINING, range(self.images, self.images + config.batch), self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * _rate(self.share)
        self.net.train()
        value = self._loss(self.net, batch)
        self.optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimiser.step()
        self.images += config.batch
        now = float(value.detach())
        self.trained = now if math.isnan(self.trained) else 0.98 * self.trained + 0.02 * now
        self._remember()
        self.seconds += time.monotonic() - started

    @property
    def share(self) -> float:
        """How much of the training is done, by images or by time."""
        limit = 60 * self.config.minutes
        return max(self.images / self.config.images, self.seconds / limit if limit else 0.0)

    def _loss(self, net: ColumnNet, batch: _Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            maps = net(batch.features)
        return loss(maps, *batch.targets)

    def _remember(self) -> None:
        # The mean starts with what there is, and takes longer and longer to forget.
        steps = self.images / self.config.batch
        kept = min(self.config.memory, steps / (steps + 10))
        with torch.no_grad():
            for mean, new in zip(
                self.mean.state_dict().values(), self.net.state_dict().values(), strict=True
            ):
                if mean.is_floating_point():
                    mean.lerp_(new, 1 - kept)
                else:
                    mean.copy_(new)

    def look(self) -> float:
        """Measure the running mean's held-out loss, and keep it if it is the best."""
        self.mean.eval()
        with torch.inference_mode():
            held_out = float(torch.stack([self._loss(self.mean, batch) for batch in self.held_out]).mean())
        self.looks_since += 1
        if held_out < self.best_loss:
            self.best_loss, self.looks_since = held_out, 0
            self.best = copy.deepcopy(self.mean.state_dict())
        return held_out

    def folded(self) -> ColumnNet:
        """Return the best network so far, ready to be used."""
        net: ColumnNet = copy.deepcopy(self.mean).cpu()
        net.load_state_dict({name: tensor.cpu() for name, tensor in self.best.items()})
        return net.folded()


def _rate(share: float) -> float:
    """Rise over the first 3 %, fall as a cosine to a hundredth."""
    if share < 0.03:
        return 0.02 + 0.98 * share / 0.03
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - 0.03) / 0.97)))


def _to_file(run: _Run, path: Path) -> None:
    """Write all that a training needs to go on; the file is whole or not there."""
    tensors = {f"net.{name}": tensor for name, tensor in run.net.state_dict().items()}
    tensors |= {f"mean.{name}": tensor for name, tensor in run.mean.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in run.best.items()}
    for index, state in run.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in state.items()}
    numbers = [float(run.images), run.seconds, run.trained, run.best_loss, float(run.looks_since)]
    tensors["numbers"] = torch.tensor(numbers, dtype=torch.float64)
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    part = path.with_name(path.name + ".part")
    part.write_bytes(safetensors.torch.save(whole, {"config": msgspec.json.encode(run.config).decode()}))
    part.replace(path)


def _from_file(run: _Run, path: Path) -> None:
    """Go on from where a file was written.

    Raises
    ------
    ValueError
        If it is of another training.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        config = (file.metadata() or {}).get("config", "")
    if config != msgspec.json.encode(run.config).decode():
        raise ValueError(f"{path}: the checkpoint of another training; remove it, or take the same settings")
    tensors = safetensors.torch.load(path.read_bytes())
    run.net.load_state_dict(_below(tensors, "net."))
    run.mean.load_state_dict(_below(tensors, "mean."))
    run.best = _below(tensors, "best.")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimiser.").items():
        index, field = name.split(".", 1)
        state.setdefault(int(index), {})[field] = tensor
    groups = run.optimiser.state_dict()["param_groups"]
    run.optimiser.load_state_dict({"state": state, "param_groups": groups})
    images, run.seconds, run.trained, run.best_loss, looks = tensors["numbers"].tolist()
    run.images, run.looks_since = int(images), int(looks)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _steps(run: _Run, checkpoint: Path | None) -> Iterator[FinderStep]:
    """Train to the end, and say where it is after each batch."""
    config, held_out = run.config, math.nan
    while run.share < 1 and run.looks_since <= config.patience:
        run.step()
        if run.images % config.check_every < config.batch or run.share >= 1:
            held_out = run.look()
            if checkpoint is not None:
                _to_file(run, checkpoint)
        yield FinderStep(
            images=run.images,
            of=config.images,
            share=run.share,
            trained=run.trained,
            held_out=held_out,
            seconds=run.seconds,
        )


def train_finder(
    config: FinderTraining,
    progress: Progress = _ignore,
    console: Console | None = None,
    *,
    name: str = "columns",
    made_by: str = "probeloop train finder",
    checkpoint: Path | None = None,
) -> tuple[dict[str, Tensor], ModelCard]:
    """Train a finder, calibrate it and score it, on simulated images alone.

    Parameters
    ----------
    config
        How; the same gives the same weights on one thread of one kind of processor.
    progress
        Told after each batch.
    console
        Told what happens, if given.
    name, made_by
        For the card.
    checkpoint
        Written at each look at the held-out loss; if it is there, training goes on from it.

    Returns
    -------
    tensors, card
        What ``models.checkpoint.save`` takes.

    Raises
    ------
    ValueError
        If the checkpoint is of another training.
    """
    say: Callable[[str], None] = _silent if console is None else console.print
    run = _Run(config)
    if checkpoint is not None and checkpoint.exists():
        _from_file(run, checkpoint)
        say(f"going on after {run.images} images")
    for step in _steps(run, checkpoint):
        progress(step)
    net = run.folded()
    say(f"trained on {run.images} images; calibrating and scoring on {config.calibrated} new ones")
    card = _card(config, name, made_by, run.images)
    card = msgspec.structs.replace(card, calibration=calibrated(AtomFinder(net, card), config))
    card = msgspec.structs.replace(card, scores=scores(AtomFinder(net, card), config))
    return dict(net.state_dict()), card


def _card(config: FinderTraining, name: str, made_by: str, images: int) -> ModelCard:
    drawn = config.drawn
    low, high = drawn.sigma_px
    few, many = drawn.counts
    architecture = msgspec.to_builtins(config.net)
    architecture |= {"canonical_sigma_px": CANONICAL_SIGMA_PX, "sigma_limits_px": [low, high]}
    data = DATA.format(size=drawn.size_px, low=low, high=high, few=few, many=many)
    return ModelCard(
        name=name,
        family="finder",
        channels=("image",),
        window_px=drawn.size_px,
        normalisation="columns",
        architecture=architecture,
        calibration=msgspec.to_builtins(Calibration()),
        data=f"{images} {data}",
        made_by=made_by,
        simulator=SIMULATOR,
        seed=config.seed,
    )


# -- what its numbers are worth ------------------------------------------------------------------------


class Judged(NamedTuple):
    """Peaks of many images against the truth.

    Attributes
    ----------
    logit, around, sd_px
        Of each peak that counts, and the sure ones around it, shape ``(n,)``; peaks on columns that only
        chance lets one see do not.
    is_right
        Whether there is a column.
    error_px
        ``(row, col)`` from the column, NaN where there is none, shape ``(n, 2)``.
    snr
        Of all columns that should be found, shape ``(m,)``.
    peak_of
        Logit of the peak on each of them, minus infinity where there is none, and the sure ones around it,
        shape ``(m, 2)``.
    """

    logit: Float32
    around: Float64
    sd_px: Float64
    is_right: Bool
    error_px: Float64
    snr: Float64
    peak_of: Float64


def match(found_px: Float64, true_px: Float64, reach_px: float) -> NDArray[np.int64]:
    """Give each found place, in their order, the nearest true one that is still free; -1 for none."""
    matched = np.full(len(found_px), -1, dtype=np.int64)
    if len(found_px) == 0 or len(true_px) == 0:
        return matched
    is_free = np.ones(len(true_px), dtype=bool)
    near = cKDTree(true_px).query_ball_point(found_px, reach_px)
    for n, candidates in enumerate(near):
        free = [c for c in candidates if is_free[c]]
        if free:
            away = np.hypot(*(true_px[free] - found_px[n]).T)
            matched[n] = free[int(np.argmin(away))]
            is_free[matched[n]] = False
    return matched


def judge(finder: AtomFinder, config: FinderTraining, stream: int, kind: Kind | None = None) -> Judged:
    """Run a finder over the images of a stream, all peaks however unsure."""
    parts = [_judged(finder, draw(config, stream, i, kind), config) for i in range(config.calibrated)]
    return Judged(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _judged(finder: AtomFinder, drawn: ColumnImage, config: FinderTraining) -> Judged:
    places, values = columns_of(finder.maps(drawn.image), _LEAST_LOGIT)
    surest_first = np.argsort(-values[:, 0], kind="stable")
    places, values = places[surest_first], values[surest_first]
    around = sure_around(places, values[:, 0], drawn.image.shape)
    matched = match(places, drawn.positions_px, max(1.5, 0.75 * drawn.sigma_px))
    is_right = matched >= 0
    error = np.full((len(places), 2), np.nan)
    error[is_right] = places[is_right] - drawn.positions_px[matched[is_right]]
    is_asked = drawn.snr >= config.weak_snr
    counts = ~is_right
    # A weak column is one all the same, where a peak is on it: else faint peaks would seem less likely ones.
    counts[is_right] = drawn.snr[matched[is_right]] >= _BARELY_SNR
    peak_of = np.tile([-np.inf, 0.0], (len(drawn.snr), 1))
    peak_of[matched[is_right]] = np.stack([values[is_right, 0], around[is_right]], axis=1)
    return Judged(
        values[counts, 0],
        around[counts],
        np.exp(0.5 * values[counts, 1].astype(np.float64)),
        is_right[counts],
        error[counts],
        drawn.snr[is_asked],
        peak_of[is_asked],
    )


def rising(values: NDArray[np.floating], weights: NDArray[np.floating]) -> Float64:
    """Fit a sequence that never falls, by least squares (pool adjacent violators), same shape."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, count = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, of, many = blocks.pop()
            mean = (mean * total + before * of) / (total + of)
            total, count = total + of, count + many
        blocks.append((mean, total, count))
    return np.repeat([mean for mean, _, _ in blocks], [count for _, _, count in blocks])


def confidence_knots(
    logit: Float32, is_right: Bool, for_alone: Float64, for_crowded: Float64, knots: int = 24
) -> tuple[list[float], list[float], list[float]]:
    """Fit how often there is a column at a peak of each logit, by lines that never fall.

    Parameters
    ----------
    logit, is_right
        Of peaks, shape ``(n,)``.
    for_alone, for_crowded
        How much each of them counts for the two lines, shape ``(n,)``.

    Returns
    -------
    logit, alone, crowded
        Knots of the lines, rising.
    """
    # As many knots where there is nothing but noise as where it is decided.
    at = np.unique(np.quantile(logit, np.linspace(0, 1, knots // 2)).round(4))
    at = np.unique(np.concatenate([at, np.linspace(logit.min(), logit.max(), knots // 2).round(4)]))
    edges = np.concatenate([[-np.inf], (at[1:] + at[:-1]) / 2, [np.inf]])
    group = np.searchsorted(edges, logit) - 1
    lines = []
    for weight in (for_alone, for_crowded):
        total = np.bincount(group, weights=weight, minlength=len(at))
        right = np.bincount(group, weights=weight * is_right, minlength=len(at))
        # Half a right one and half a wrong one more in each group: none is ever quite sure.
        lines.append(rising((right + 0.5) / (total + 1), total + 1e-3).tolist())
    return at.tolist(), lines[0], lines[1]


def calibrated(finder: AtomFinder, config: FinderTraining) -> dict[str, list[float]]:
    """Fit what the network's numbers are worth; see ``models.atom_finder.Calibration``."""
    judged = judge(finder, config, CALIBRATION)
    single = judge(finder, config, CALIBRATION, "sparse")
    crowdedness = finder.calibration.crowdedness
    # A lattice too weak to be sure of any column looks alone: it would make single atoms look likelier.
    for_alone = np.concatenate([np.zeros(len(judged.logit)), 1 - crowdedness(single.around)])
    logit, alone, crowded = confidence_knots(
        np.concatenate([judged.logit, single.logit]),
        np.concatenate([judged.is_right, single.is_right]),
        for_alone,
        crowdedness(np.concatenate([judged.around, single.around])),
    )
    factor, floor = _sd_of(judged)
    fitted = {
        "logit": logit,
        "alone": alone,
        "crowded": crowded,
        "crowd": list(finder.calibration.crowd),
        "sd_factor": [factor],
        "sd_floor_px": [floor],
    }
    threshold = _best_threshold((single, judged), msgspec.convert(fitted, Calibration))
    return fitted | {"threshold": [threshold]}


def _sd_of(judged: Judged) -> tuple[float, float]:
    """Fit ``error² = (factor sd)² + floor²`` to the sure ones, robustly, in ten groups of sd."""
    sure = judged.is_right & (judged.logit > 0)
    if sure.sum() < 20:
        return 1.0, 0.0
    sd, error2 = judged.sd_px[sure], (judged.error_px[sure] ** 2).mean(axis=1)
    groups = np.array_split(np.argsort(sd, kind="stable"), 10)
    claimed = np.array([(sd[part] ** 2).mean() for part in groups])
    seen = np.array([error2[part].mean() for part in groups])
    # Relative errors count: weights by 1 / seen², and neither term below 0.
    design = np.stack([claimed, np.ones_like(claimed)], axis=1) / seen[:, None]
    slope, offset = np.linalg.lstsq(design, np.ones_like(seen), rcond=None)[0]
    if offset < 0 or slope <= 0:
        slope, offset = float(np.median(seen / claimed)), 0.0
    return math.sqrt(slope), math.sqrt(offset)


def _best_threshold(sets: Sequence[Judged], calibration: Calibration) -> float:
    """Say from which confidence on peaks give the best F1, in the mean over sets of images."""
    levels = np.linspace(0.1, 0.9, 81)
    f1 = np.zeros(len(levels))
    for judged in sets:
        confidence = calibration.confidence(judged.logit, judged.around)
        order = np.sort(confidence), np.sort(confidence[judged.is_right])
        believed, right = (len(part) - np.searchsorted(part, levels) for part in order)
        f1 += 2 * right / np.maximum(believed + len(judged.snr), 1)
    return float(levels[int(np.argmax(f1))])


def scores(finder: AtomFinder, config: FinderTraining) -> dict[str, float]:
    """Measure a finder on images that neither training nor calibration saw.

    Returns
    -------
    scores
        For lattices and single atoms: precision and recall at the threshold; recall by signal-to-noise ratio;
        the mean gap between confidence and share of right ones, over tenths of confidence; the root mean
        square of errors over their sd, and the median error in pixels.
    """
    result: dict[str, float] = {}
    kinds: tuple[tuple[Kind, str], ...] = (("lattice", "lattice"), ("sparse", "single"))
    for kind, label in kinds:
        judged = judge(finder, config, SCORES, kind)
        result |= {f"{label}_{name}": value for name, value in _scores(finder, judged).items()}
    return {name: round(value, 4) for name, value in result.items() if math.isfinite(value)}


def _scores(finder: AtomFinder, judged: Judged) -> dict[str, float]:
    calibration = finder.calibration
    confidence = calibration.confidence(judged.logit, judged.around)
    believed = confidence >= finder.threshold
    is_found = np.isfinite(judged.peak_of[:, 0]) & (
        calibration.confidence(judged.peak_of[:, 0].astype(np.float32), judged.peak_of[:, 1])
        >= finder.threshold
    )
    sure = believed & judged.is_right
    result = {"confidence_gap": _gap(confidence, judged.is_right), "recall": float(is_found.mean())}
    for low, high in _BANDS:
        band = (judged.snr >= low) & (judged.snr < high)
        result[f"recall_snr_{low:g}"] = float(is_found[band].mean()) if band.any() else math.nan
    if sure.any():
        sd = np.hypot(judged.sd_px * calibration.sd_factor[0], calibration.sd_floor_px[0])
        result["precision"] = float(judged.is_right[believed].mean())
        result["z_rms"] = float(np.sqrt(((judged.error_px[sure] / sd[sure, None]) ** 2).mean()))
        result["error_px"] = float(np.median(np.abs(judged.error_px[sure])))
    return result


def _gap(confidence: Float64, is_right: Bool) -> float:
    """Mean difference between confidence and share of right ones in tenths of confidence, by their size."""
    tenth = np.minimum((confidence * 10).astype(int), 9)
    size = np.bincount(tenth, minlength=10)
    difference = np.bincount(tenth, weights=confidence - is_right, minlength=10)
    # Noise has most of the peaks: without the lowest tenth.
    return float(np.abs(difference[1:]).sum() / max(int(size[1:].sum()), 1))
