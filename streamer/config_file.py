"""One TOML file for all processes: each reads its own table, and a key that nobody knows is refused."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

T = TypeVar("T")
Tables = dict[str, Any]
INSTRUMENTS = ("stem", "pfm", "diffraction", "eels", "afm")  # that can be simulated
TABLES = ("streamer", "agent", *(f"simulate.{name}" for name in INSTRUMENTS))


class ConfigError(ValueError):
    """A configuration that cannot be used; its text is one line for a person."""


def read_tables(path: Path | None) -> Tables:
    """Read a TOML file; no path gives no tables.

    Raises
    ------
    ConfigError
        If there is no such file, it is not TOML, or it holds a table that no part reads.
    """
    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    _check_names(path, tables)
    return tables


def _check_names(path: Path, tables: Tables) -> None:
    """Refuse a table, or a value in the place of one, that no part reads."""
    for name in tables:
        inner = [known.partition(".")[2] for known in TABLES if known.partition(".")[0] == name]
        if not inner:
            raise ConfigError(f"{path}: unknown table [{name}]; it takes {_known(TABLES)}")
        if not isinstance(tables[name], dict):
            raise ConfigError(f"{path}: {name} is not a table; it takes {_known(TABLES)}")
        for key in tables[name] if inner != [""] else ():
            if key not in inner:
                raise ConfigError(f"{path}: unknown table [{name}.{key}]; it takes {_known(TABLES)}")
            if not isinstance(tables[name][key], dict):
                raise ConfigError(f"{path}: {name}.{key} is not a table; it takes [{name}.{key}]")


def _known(names: tuple[str, ...]) -> str:
    return ", ".join(f"[{name}]" for name in names)


def convert(table: Mapping[str, Any], kind: type[T], name: str) -> T:
    """Make a configuration from a table.

    Parameters
    ----------
    table
        As read from TOML.
    kind
        The configuration class.
    name
        Of the table, for the text of an error, such as ``agent``.

    Raises
    ------
    ConfigError
        Naming the key, what is wrong with it and what would do.
    """
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        place = where.rstrip("`")
        raise ConfigError(f"{name}{place}: {text}{_what_would_do(kind, place, text)}") from None


def _what_would_do(kind: type, place: str, text: str) -> str:
    """List what a place such as ``.correct.mode`` takes, where msgspec says only what it does not."""
    found: Any = kind
    for key, is_in_list in re.findall(r"\.(\w+)(\[)?", place):
        fields = (
            {} if not _is_struct(found) else {one.name: one.type for one in msgspec.structs.fields(found)}
        )
        found = fields.get(key)
        if is_in_list:
            found = next(iter(get_args(found)), None)
    if text.startswith("Invalid enum value") and get_origin(found) is Literal:
        return f"; it takes {', '.join(repr(value) for value in get_args(found))}"
    if text.startswith("Object contains unknown field") and _is_struct(found):
        return f"; it takes {', '.join(one.name for one in msgspec.structs.fields(found))}"
    return ""


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def read_config(path: Path | None, name: str, kind: type[T], said: Mapping[str, Any] | None = None) -> T:
    """Read one part's configuration.

    Parameters
    ----------
    path
        The TOML file; None takes the defaults.
    name
        Of the part's table, one of ``TABLES``.
    kind
        The configuration class.
    said
        Values from the command line, which go before those of the file.

    Raises
    ------
    ConfigError
        In one line: the file, the key, what is wrong with it and what would do.
    """
    table: Any = read_tables(path)
    for part in name.split("."):
        table = table.get(part, {})
    try:
        return convert(table | dict(said or {}), kind, name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path is not None else str(error)) from None
