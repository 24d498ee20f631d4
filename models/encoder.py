"""The low-latency encoder: a checkpoint of either rVAE family, ready to encode windows into latents.

It is immutable: another model is another encoder, loaded and warmed up beside the data path, and swapping is
replacing a reference between two frames. Any number of them can be resident.

Axes: N window, C channel, H row, W column, Z content, S novelty statistic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.answers import Answers
from models.checkpoint import CheckpointError, ModelCard, load, require_fit
from models.cuda_inference import DeviceInference
from models.harmonic_inference import HarmonicInference
from models.novelty import Calibration, HarmonicNovelty, SpatialNovelty, calibrated
from models.rvae import RVAE, RVAEConfig
from models.spatial_inference import SpatialInference
from models.spatial_rvae import SpatialConfig, SpatialRVAE

Float32 = NDArray[np.float32]
Device = Literal["auto", "cpu", "cuda"]
Model = RVAE | SpatialRVAE
Novelty = HarmonicNovelty | SpatialNovelty

SHIPPED = Path(__file__).parent / "weights" / "graphene_si_rvae.safetensors"
EXACT_BLOCK = 64
_MANIFOLD_REACH = 0.95  # of the prior's probability along each latent lies on the manifold


class Encoded(NamedTuple):
    """What the encoder says of each window; all float32.

    Attributes
    ----------
    mean, sd
        Content, shape ``(n, d)``.
    angle_rad, angle_sd_rad
        Turn of the content from columns towards rows and its circular sd, shape ``(n,)``. Of a content that
        some turns leave as it is, any of its angles, and the sd among them.
    offset_px, offset_sd_px
        Shift of the content ``(row, col)`` in window pixels, shape ``(n, 2)``.
    class_probability
        Shape ``(n, k)``; k is 0 for a family without classes.
    novelty
        How unlike the training windows, shape ``(n,)``; 0 is usual, above 3 is not.
    gain
        Brightness of the content against that of the training windows, shape ``(n,)``: 1 is the same. None
        from weights that do not say it.
    defocus
        Variance that a blur adds to its spots, in square window pixels, shape ``(n,)``: below 0 they are
        sharper than those of the training. None from weights that do not say it.
    """

    mean: Float32
    sd: Float32
    angle_rad: Float32
    angle_sd_rad: Float32
    offset_px: Float32
    offset_sd_px: Float32
    class_probability: Float32
    novelty: Float32
    gain: Float32 | None = None
    defocus: Float32 | None = None


class _Inference(Protocol):
    """A family's way to encode live."""

    def encode(self, windows_NCHW: Float32, threads: int = 1) -> Answers:
        """Say everything of windows."""
        ...


class Encoder:
    """A loaded model, ready to encode; calls from one thread at a time.

    Parameters
    ----------
    model
        With the weights and all that is fitted.
    novelty
        Fitted to its training windows.
    card, revision
        Of the checkpoint.
    device
        Where it runs.

    Attributes
    ----------
    threads
        That a frame's windows may take on a CPU; what is said of them does not depend on it.
    """

    def __init__(
        self, model: Model, novelty: Novelty, card: ModelCard, revision: str, device: torch.device
    ) -> None:
        self.card = card
        self.revision = revision
        self.device = device
        self.threads = 1
        self._inference = _inference(model, novelty, _calibration(card), device)
        # Of the harmonic family only what is live goes to a GPU; its pictures and exact answers stay here.
        self._model_device = device if isinstance(model, SpatialRVAE) else torch.device("cpu")
        self._model = model.to(self._model_device).eval()
        self._at = {
            name: model.nuisances.index(name) for name in ("gain", "defocus") if name in model.nuisances
        }
        self.encode(np.zeros((1, *self.window_shape), dtype=np.float32))  # a first call takes longer

    @property
    def window_shape(self) -> tuple[int, int, int]:
        """Shape of a window, ``(channel, h, w)``."""
        return len(self.card.channels), self.card.window_px, self.card.window_px

    @classmethod
    def load(cls, path: Path | str | None = None, *, device: Device = "auto") -> Self:
        """Load a checkpoint and warm it up.

        Parameters
        ----------
        path
            None takes the shipped weights for silicon in graphene.
        device
            ``auto`` takes CUDA where there is one. The path of the harmonic family on it has been checked
            on a CPU only: ``models.cuda_inference``.

        Raises
        ------
        CheckpointError
            If the file is missing, foreign, damaged, or its tensors do not fit its card.
        ValueError
            If ``cuda`` is asked for where there is none.
        """
        file = SHIPPED if path is None else Path(path)
        tensors, card, revision = load(file)
        if card.family not in ("harmonic", "spatial"):
            raise CheckpointError(
                f"{file}: weights of family {card.family!r}; the encoder takes 'harmonic' or 'spatial'"
            )
        model = build(card)
        novelty = _taken_novelty(file, card, model, tensors)
        model.load_state_dict(tensors)
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("encoder.device is 'cuda', but torch sees no GPU; it takes 'cpu' or 'auto' here")
        is_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        return cls(model, novelty, card, revision, torch.device("cuda" if is_cuda else "cpu"))

    def encode(self, windows_NCHW: Float32, *, exact: bool = False) -> Encoded:
        """Encode windows normalised as the card says; the model does not change.

        Parameters
        ----------
        windows_NCHW
            Shape ``(n, channel, h, w)`` as the card has them, float32. A window with NaN or infinity
            is read as an empty one and has the novelty ``MOST_NOVEL``; the others are not touched by it.
        exact
            Let the model itself say content and pose, several times as slowly: the live path rounds the
            tangents of the pose to a few directions.

        Raises
        ------
        ValueError
            If the shape is another; the text says which it takes.
        """
        if windows_NCHW.shape[1:] != self.window_shape:
            takes = ", ".join(map(str, self.window_shape))
            raise ValueError(f"windows have shape {windows_NCHW.shape}; these weights take (n, {takes})")
        answers = self._inference.encode(windows_NCHW, self.threads)
        return self._encoded(self._exact(windows_NCHW, answers) if exact else answers)

    def _exact(self, windows_NCHW: Float32, answers: Answers) -> Answers:
        """Replace all but the novelty by what the model itself says, in blocks of one shape."""
        whole = np.array(windows_NCHW, dtype=np.float32)
        whole[~np.isfinite(whole).all(axis=(1, 2, 3))] = 0
        block = torch.zeros(EXACT_BLOCK, *self.window_shape, device=self._model_device)
        with torch.inference_mode():
            for at in range(0, len(whole), EXACT_BLOCK):
                part = whole[at : at + EXACT_BLOCK]
                block[: len(part)] = torch.from_numpy(part)
                told = self._model.posterior(block)
                said = (
                    told.mean_NZ,
                    told.log_sd_NZ.exp(),
                    told.angle_N,
                    told.angle_sd_N,
                    told.shift_N2,
                    told.shift_sd_N2,
                    told.class_probability_NK,
                    told.nuisance_NV,
                    told.nuisance_sd_NV,
                )
                for mine, theirs in zip(said, answers, strict=False):
                    theirs[at : at + len(part)] = mine[: len(part)].cpu().numpy()
        return answers

    def _encoded(self, told: Answers) -> Encoded:
        half_px = np.float32(self.card.window_px / 2)
        gain, defocus = (
            told.nuisance_NV[:, self._at[name]] if name in self._at else None for name in ("gain", "defocus")
        )
        return Encoded(
            mean=told.mean_NZ,
            sd=told.sd_NZ,
            angle_rad=told.angle_N,
            angle_sd_rad=told.angle_sd_N,
            offset_px=told.shift_N2[:, ::-1] * half_px,
            offset_sd_px=told.shift_sd_N2[:, ::-1] * half_px,
            class_probability=told.class_NK,
            novelty=told.novelty_N,
            gain=None if gain is None else gain + np.float32(1),
            defocus=None if defocus is None else defocus * np.float32(2),
        )

    def decode(
        self, latents_NZ: Float32, angle_rad: Float32 | None = None, offset_px: Float32 | None = None
    ) -> Float32:
        """Draw windows from content, upright and centred where no pose is given.

        Parameters
        ----------
        latents_NZ
            Shape ``(n, d)``.
        angle_rad
            Shape ``(n,)``.
        offset_px
            Shape ``(n, 2)`` as ``(row, col)``, in window pixels.

        Returns
        -------
        windows_NCHW
            In the normalisation of the card, float32.
        """
        half_px = np.float32(self.card.window_px / 2)
        shift = None if offset_px is None else np.asarray(offset_px)[:, ::-1] / half_px
        content, angle, moved = (
            None
            if given is None
            else torch.from_numpy(np.ascontiguousarray(given, dtype=np.float32)).to(self._model_device)
            for given in (latents_NZ, angle_rad, shift)
        )
        assert content is not None
        with torch.inference_mode():
            drawn: Float32 = self._model.decode(content, angle, moved).cpu().numpy()
        return drawn

    def manifold(self, edge: int = 9, latents: tuple[int, int] = (0, 1)) -> Float32:
        """Draw what the latents mean: windows on a grid of quantiles of the prior, upright and centred.

        Parameters
        ----------
        edge
            Windows along a side.
        latents
            Which two latents vary, along rows and along columns; the others are at the prior's middle. Of
            the only latent of a model, all rows are alike.

        Returns
        -------
        windows_ECHW
            Shape ``(edge * edge, channel, h, w)``, row by row.
        """
        quantiles = self._quantiles(edge)
        content = np.repeat(quantiles[None, edge // 2], edge * edge, axis=0)
        rows, cols = np.divmod(np.arange(edge * edge), edge)
        for latent, place in zip(latents, (rows, cols), strict=True):
            if latent < quantiles.shape[1]:
                content[:, latent] = quantiles[place, latent]
        return self.decode(content)

    def _quantiles(self, count: int) -> Float32:
        """Say evenly spaced quantiles of the prior along each latent, ``(count, d)``."""
        probability = (1 + np.linspace(-1, 1, count) * _MANIFOLD_REACH) / 2
        drawn = np.quantile(self._prior_sample(), probability, axis=0)
        return drawn.astype(np.float32)

    def _prior_sample(self, count: int = 4096) -> Float32:
        random = torch.Generator().manual_seed(0)
        away = torch.randn(count, self._model.latent_dim, generator=random)
        if isinstance(self._model, SpatialRVAE):
            return away.numpy()
        with torch.inference_mode():
            share_M = torch.softmax(self._model.mixture_logit_M.cpu(), 0)
            which = torch.multinomial(share_M, count, replacement=True, generator=random)
            spread = torch.exp(self._model.mixture_log_sd_MZ.cpu()[which])
            sample: Float32 = (self._model.mixture_mean_MZ.cpu()[which] + away * spread).numpy()
        return sample


def build(card: ModelCard) -> Model:
    """Make the model that a card describes, with fresh weights."""
    if card.family == "harmonic":
        return RVAE(len(card.channels), card.window_px, msgspec.convert(card.architecture, RVAEConfig))
    return SpatialRVAE(len(card.channels), card.window_px, msgspec.convert(card.architecture, SpatialConfig))


def together(model: Model, novelty: Novelty) -> dict[str, Tensor]:
    """Name the tensors of both parts as a checkpoint keeps them."""
    return model.state_dict() | {f"novelty.{name}": part for name, part in novelty._asdict().items()}


def finished(
    model: Model, card: ModelCard, windows_NCHW: Float32, held_out_NCHW: Float32
) -> tuple[dict[str, Tensor], ModelCard]:
    """Make of a trained model what ``models.checkpoint.save`` keeps: with a novelty, calibrated.

    Parameters
    ----------
    model
        Trained.
    card
        That describes it.
    windows_NCHW
        Of its training, shape ``(n, channel, h, w)``, float32.
    held_out_NCHW
        Of the same kind, a thousand or more: three in a thousand of them will be called novel.
    """
    blank = Calibration((0.0,) * 3, (1.0,) * 3)
    if isinstance(model, SpatialRVAE):
        spatial = SpatialNovelty.fit(torch.from_numpy(np.array(windows_NCHW)))
        inference = SpatialInference(model, spatial, blank, torch.device("cpu"))
        novelty: Novelty = spatial
        statistics = inference.statistics(np.array(held_out_NCHW))
    else:
        orders = HarmonicNovelty.blank(_orders(model.order_P))
        _, powers = HarmonicInference(model, orders, blank).statistics(windows_NCHW)
        novelty = HarmonicNovelty.fit(torch.from_numpy(powers))
        statistics, _ = HarmonicInference(model, novelty, blank).statistics(held_out_NCHW)
    found = calibrated(statistics)
    said = {"novelty_center": list(found.center_S), "novelty_unit": list(found.unit_S)}
    return together(model, novelty), msgspec.structs.replace(card, calibration=card.calibration | said)


def _inference(model: Model, novelty: Novelty, calibration: Calibration, device: torch.device) -> _Inference:
    if isinstance(model, SpatialRVAE):
        assert isinstance(novelty, SpatialNovelty)
        return SpatialInference(model, novelty, calibration, device)
    assert isinstance(novelty, HarmonicNovelty)
    if device.type == "cuda":
        return DeviceInference(model, novelty, calibration, device)
    return HarmonicInference(model, novelty, calibration)


def _calibration(card: ModelCard) -> Calibration:
    return Calibration(*(tuple(card.calibration[f"novelty_{name}"]) for name in ("center", "unit")))


def _orders(order_P: Tensor) -> int:
    return len(set(order_P.tolist()))


def _taken_novelty(file: Path, card: ModelCard, model: Model, tensors: dict[str, Tensor]) -> Novelty:
    """Take the novelty's tensors out of those of a checkpoint, once all were found to fit the card."""
    kind: type[SpatialNovelty] | type[HarmonicNovelty]
    if isinstance(model, SpatialRVAE):
        kind, blank = SpatialNovelty, SpatialNovelty.blank(len(card.channels), card.window_px)
        require_fit(file, tensors, together(model, blank))
    else:
        orders = _orders(tensors.get("order_P", model.order_P))
        kind = HarmonicNovelty
        require_fit(file, tensors, together(model, HarmonicNovelty.blank(orders)))
    for name in ("novelty_center", "novelty_unit"):
        if len(card.calibration.get(name, ())) not in (2, 3):
            raise CheckpointError(f"{file}: its card has no {name}; train it again")
    return kind(*(tensors.pop(f"novelty.{name}") for name in kind._fields))
