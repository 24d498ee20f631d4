"""The presets by their names on the command line."""

from __future__ import annotations

from importlib import import_module

from deploy.presets.preset import Preset

# A module and the name in it: presets are imported when they are asked for, each brings its simulator.
KNOWN = {
    "graphene-si": ("graphene_si", "PRESET"),
    "perovskite": ("lattice", "PRESET"),
    "mos2": ("mos2", "PRESET"),
    "pfm-walls": ("pfm_domains", "WALLS"),
    "pfm-pathways": ("pfm_domains", "PATHWAYS"),
    "diffraction": ("diffraction", "PRESET"),
    "afm-rods": ("afm_rods", "PRESET"),
}


def preset_of(name: str) -> Preset:
    """Give a preset.

    Raises
    ------
    ValueError
        If there is none of that name; the text lists those that there are.
    """
    if name not in KNOWN:
        raise ValueError(f"{name}: no such preset; it takes {', '.join(KNOWN)}")
    module, attribute = KNOWN[name]
    preset = getattr(import_module(f"deploy.presets.{module}"), attribute)
    assert isinstance(preset, Preset)
    return preset
