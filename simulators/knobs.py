"""What can be set of an instrument, in the words of its docstrings: read from them, so that both stay one."""

from __future__ import annotations

import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import msgspec

# How units are written in names, and how a person writes them.
_UNITS = {
    "nm": "nm",
    "nm2": "nm²",
    "um": "µm",
    "pm": "pm",
    "us": "µs",
    "ns": "ns",
    "ms": "ms",
    "s": "s",
    "pa": "pA",
    "na": "nA",
    "kv": "kV",
    "v": "V",
    "ev": "eV",
    "kev": "keV",
    "deg": "°",
    "rad": "rad",
    "mrad": "mrad",
    "px": "px",
    "rows": "rows",
    "hz": "Hz",
    "khz": "kHz",
    "k": "K",
    "barn": "barn",
    "counts": "counts",
    "c": "C",
    "m2": "m²",
    "cm3": "cm⁻³",
    "e": "e",
    "percent": "%",
    "sqrt": "√",
}


@dataclass(frozen=True, slots=True)
class Knob:
    """One key of a configuration.

    Attributes
    ----------
    key
        With the tables that it lies in, such as ``film.length_nm``.
    unit
        As a person writes it; empty for a number without one.
    default
        As TOML writes it.
    meaning
        The first sentence of its docstring.
    """

    key: str
    unit: str
    default: str
    meaning: str


def knobs(config: type[msgspec.Struct], prefix: str = "") -> list[Knob]:
    """List the keys of a configuration: its own first, then those that every instrument has.

    Parameters
    ----------
    config
        Its class.
    prefix
        Put before each key.
    """
    found: list[Knob] = []
    meanings = _meanings(config)
    for field in _own_first(config):
        key, table = prefix + field.name, _table_of(field.type)
        if table is None:
            found.append(
                Knob(key, unit_of(field.name), _as_toml(_default(field)), meanings.get(field.name, ""))
            )
        elif get_origin(field.type) is tuple:
            found.append(Knob(key, "", "[]", meanings.get(field.name, "")))
            found += knobs(table, f"{key}[].")
        else:
            found += knobs(table, f"{key}.")
    return found


def unit_of(name: str) -> str:
    """Read the unit that a name ends in, such as ``nm/s`` of ``drift_rate_nm_per_s``; empty for none.

    Examples
    --------
    >>> unit_of("travel_um_per_s"), unit_of("vacancies_per_nm2"), unit_of("rows")
    ('µm/s', '1/nm²', '')
    """
    *words, last = name.split("_")
    if "per" not in words:
        return _UNITS.get(last, "") if words else ""
    at = len(words) - 1 - words[::-1].index("per")
    below = "".join(_UNITS.get(word, word) for word in [*words[at + 1 :], last])
    above = _UNITS.get(words[at - 1], "1") if at > 0 else "1"
    return f"{above}/{below}"


def as_text(config: type[msgspec.Struct], table: str, width: int = 100) -> str:
    """Explain the keys of a configuration to a person, in lines of at most ``width``."""
    lines = [f"Keys of [{table}] in the --config file, with their defaults:", ""]
    for meaning, alike in itertools.groupby(knobs(config), key=lambda knob: knob.meaning):
        lines += [f"  {knob.key} = {knob.default} {knob.unit}".rstrip() for knob in alike]
        lines += [f"      {line}" for line in textwrap.wrap(meaning, width - 6)]
    return "\n".join(lines) + "\n"


def _own_first(config: type[msgspec.Struct]) -> list[Any]:
    """Give the fields: plain ones before tables, and a class's own before those that it inherits."""
    bases = [
        one for one in config.__mro__[1:] if issubclass(one, msgspec.Struct) and one is not msgspec.Struct
    ]
    inherited = {name for base in bases for name in base.__struct_fields__}
    fields = msgspec.structs.fields(config)
    return sorted(fields, key=lambda one: (_table_of(one.type) is not None, one.name in inherited))


def _table_of(kind: Any) -> type[msgspec.Struct] | None:
    """Give the configuration that a field holds, alone or in a tuple or beside None."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            return one
    return None


def _default(field: Any) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return _REQUIRED


_REQUIRED = object()


def _as_toml(value: Any) -> str:
    if value is _REQUIRED:
        return "…"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(_as_toml(one) for one in value)}]"
    return "(none)" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _meanings(config: type) -> dict[str, str]:
    """Read the Attributes of the docstrings of a class and those that it is made from."""
    found: dict[str, str] = {}
    for one in reversed(config.__mro__):
        found |= dict(_attributes(inspect.getdoc(one) or "" if "__doc__" in vars(one) else ""))
    return found


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Give name and first sentence of what stands under «Attributes»."""
    _, _, section = docstring.partition("Attributes\n----------\n")
    section = re.split(r"\n\n\S[^\n]*\n-{3,}\n", section)[0]
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?:[ \t]+\S.*\n?|\n)+)", section, flags=re.MULTILINE):
        meaning = re.split(r"(?<=[.])\s+(?=[A-Z0-9])", " ".join(text.split()))[0].replace("``", "")
        for name in names.split(", "):
            yield name, meaning
