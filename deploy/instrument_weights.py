"""Which of the shipped encoders look at the frames and patterns of each simulated instrument."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

# The main encoder of an instrument, whose latents are linked, and those beside it by their names. A frame of
# the 4D-STEM is an image of columns; its patterns go to the encoder that was trained on such.
MAIN = {"pfm": "pfm_walls_rvae", "afm": "afm_rods_rvae"}
BESIDE = {"pfm": {"pathways": "pfm_pathways_rvae"}, "diffraction": {"patterns": "diffraction_rvae"}}


def with_weights(tables: Mapping[str, Any], instrument: str) -> dict[str, Any]:
    """Let the shipped encoders of an instrument look at what it gives, unless the tables name any.

    Parameters
    ----------
    tables
        Configuration of a run, as read; not changed.
    instrument
        Name of the simulated instrument; of others, the tables are given back as they are.
    """
    streamer = dict(tables.get("streamer", {}))
    pipeline = dict(streamer.get("pipeline", {}))
    encode = dict(pipeline.get("encode", {}))
    if encode.get("weights") or encode.get("beside"):
        return dict(tables)
    if main := _path(MAIN.get(instrument, "")):
        encode["weights"] = main
    others = {name: _path(file) for name, file in BESIDE.get(instrument, {}).items()}
    if beside := [{"name": name, "weights": path} for name, path in others.items() if path]:
        encode["beside"] = beside
    if not encode:
        return dict(tables)
    return {**tables, "streamer": {**streamer, "pipeline": {**pipeline, "encode": encode}}}


def _path(name: str) -> str:
    """Where the weights are; empty where this installation has none of that name."""
    file = resources.files("models.weights") / f"{name}.safetensors"
    return str(file) if name and file.is_file() else ""
