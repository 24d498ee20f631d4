"""Weights that differ from the shipped ones and need no training, whatever family those are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from models.checkpoint import load, save
from models.encoder import SHIPPED


def other_weights(folder: Path, name: str, **card: Any) -> Path:
    """Write the shipped weights with another card: other windows, or only another name and revision.

    Parameters
    ----------
    folder
        Where to.
    name
        Of the file and on the card.
    card
        Fields that are otherwise, such as ``window_nm``.
    """
    tensors, shipped, _ = load(SHIPPED)
    path = folder / f"{name}.safetensors"
    save(path, tensors, replace(shipped, name=name, **card))
    return path
