"""The tables of a configuration before any part has read them: changed from the command line, and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Tables = dict[str, Any]


def override(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> Tables:
    """Put values from the command line over those of a file.

    Parameters
    ----------
    tables
        As read from TOML; they are not changed.
    changes
        Dotted keys, such as ``{"agent.seed": 3}``; None leaves the file's value.
    """
    result = _copy(tables)
    for key, value in changes.items():
        if value is not None:
            *path, last = key.split(".")
            table = result
            for name in path:
                table = table.setdefault(name, {})
            table[last] = value
    return result


def _copy(table: Mapping[str, Any]) -> Tables:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def to_toml(tables: Mapping[str, Any]) -> str:
    """Write nested tables as TOML, which the standard library only reads.

    None has no word in TOML and is left out.

    Raises
    ------
    TypeError
        For a value that TOML cannot hold.

    Examples
    --------
    >>> print(to_toml({"agent": {"seed": 3, "objective": {"window_ev": [99.0, 120.0]}}}), end="")
    [agent]
    seed = 3
    <BLANKLINE>
    [agent.objective]
    window_ev = [99.0, 120.0]
    """
    lines = _table("", tables)
    return "\n".join(lines).strip() + "\n" if lines else ""


def _table(name: str, table: Mapping[str, Any]) -> list[str]:
    values = {k: v for k, v in table.items() if not isinstance(v, Mapping) and v is not None}
    lines = ["", f"[{name}]"] if name and values else []
    lines += [f"{key} = {_value(value)}" for key, value in values.items()]
    for key, inner in table.items():
        if isinstance(inner, Mapping):
            lines += _table(f"{name}.{key}" if name else key, inner)
    return lines


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):  # a JSON string is a TOML string, but for one control character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Mapping):  # of a list: faults, dopants
        inner = (f"{key} = {_value(one)}" for key, one in value.items() if one is not None)
        return "{ " + ", ".join(inner) + " }"
    if isinstance(value, int):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in a TOML file")
