"""Weights on disk: safetensors with a model card, and nothing that could run code."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

FORMAT_VERSION = 2
_CARD = "probeloop"


class CheckpointError(ValueError):
    """A file of weights that cannot be used; the text names the file and the cure."""


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is needed to use the weights, and to know what they may be trusted for.

    Attributes
    ----------
    name
        Such as ``graphene-si``.
    family
        ``harmonic`` (models/rvae.py), ``spatial`` (models/spatial_rvae.py) or ``finder``.
    channels
        Names of the channels of a window, in order.
    window_nm, window_px
        Edge of a window on the specimen, and its pixels; of a finder 0, and the edge of a training image.
    window_per_nm
        Edge of a diffraction pattern in 1/nm; 0 for windows of the specimen.
    normalisation
        Name of the rule that made the windows of brightness; see ``models.normalisation``.
    architecture
        The fields of the family's configuration, priors included.
    calibration
        What was fitted on held-out windows after training, such as the novelty's centre and unit.
    classes
        What the classes are, in words and in their order; empty where no labels named them.
    data
        What it was trained on, in words.
    made_by
        The command that makes it again.
    simulator
        Version of the simulators that drew the windows; empty for recordings.
    seed
        Of the training.
    scores
        Measured on data that training never saw.
    format_version
        Of this card.
    """

    name: str
    family: Literal["harmonic", "spatial", "finder"]
    channels: tuple[str, ...]
    window_nm: float = 0.0
    window_px: int
    window_per_nm: float = 0.0
    normalisation: str = "contrast"
    architecture: dict[str, Any]
    calibration: dict[str, list[float]] = {}
    classes: tuple[str, ...] = ()
    data: str = ""
    made_by: str = ""
    simulator: str = ""
    seed: int = 0
    scores: dict[str, float] = {}
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not 8 <= self.window_px <= 512:
            raise ValueError(f"card.window_px is {self.window_px}; it takes 8 to 512")
        for name in ("window_nm", "window_per_nm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"card.{name} is {getattr(self, name)}; it takes numbers from 0")
        if self.family != "finder" and (self.window_nm > 0) == (self.window_per_nm > 0):
            raise ValueError(
                "card has an edge of the window in nm or in 1/nm above 0; exactly one of the two"
            )
        if not 1 <= len(self.channels) <= 16:
            raise ValueError(f"card.channels has {len(self.channels)} names; it takes 1 to 16")
        for name, numbers in self.calibration.items():
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"card.calibration of {name!r} is {numbers}; it takes finite numbers")

    @property
    def latent_dim(self) -> int:
        """How many content latents there are; 0 for a family without any."""
        return int(self.architecture.get("latent_dim", 0))


def save(path: Path, tensors: dict[str, Tensor], card: ModelCard) -> None:
    """Write weights and card; the file is whole or not there.

    Parameters
    ----------
    path
        Ends in ``.safetensors``.
    tensors, card
        What ``load`` gives back, bit for bit.
    """
    part = path.with_name(path.name + ".part")
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    part.write_bytes(safetensors.torch.save(whole, {_CARD: msgspec.json.encode(card).decode()}))
    part.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], ModelCard, str]:
    """Read weights and card.

    Returns
    -------
    tensors, card, revision
        The revision is the beginning of the file's SHA-256: 12 hexadecimal digits.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or not weights of ours.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: there are no such weights; name a .safetensors file of 'probeloop train', "
            "or leave encode.weights empty for the shipped ones"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); other formats of weights can run code and "
            "are not read"
        ) from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {name} holds NaN or infinity; train it again")
    card = _card(path, data)
    if card.family == "harmonic":  # weights of before it was known have none
        tensors.setdefault("sd_course_22", torch.zeros(2, 2))
    return tensors, card, hashlib.sha256(data).hexdigest()[:12]


def require_fit(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse tensors whose names, shapes or dtypes are not those that the card asks for.

    Raises
    ------
    CheckpointError
        Naming the file and the first tensor that does not fit.
    """
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors or name not in expected:
            what = "is missing" if name not in tensors else "has no place in the model of its card"
            raise CheckpointError(f"{path}: tensor {name} {what}; train it again")
        have, want = tensors[name], expected[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise CheckpointError(
                f"{path}: tensor {name} is {tuple(have.shape)} {have.dtype}; its card asks for "
                f"{tuple(want.shape)} {want.dtype}: train it again"
            )


def _card(path: Path, data: bytes) -> ModelCard:
    size = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(_CARD)
    if text is None:
        raise CheckpointError(
            f"{path}: has no model card of probeloop; it takes weights of 'probeloop train'"
        )
    try:
        fields = json.loads(text)
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: card of format {version}; this probeloop reads {FORMAT_VERSION}: train it again"
            )
        return msgspec.json.decode(text, type=ModelCard)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged model card: {error}") from None
