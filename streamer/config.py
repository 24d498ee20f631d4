"""The streamer's configuration: joins those of its parts, and reads them from a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from streamer.envelope import EnvelopeConfig
from streamer.journal import JournalConfig
from streamer.pipeline import PipelineConfig
from streamer.telemetry import TelemetryConfig

T = TypeVar("T")
TABLES = ("streamer", "agent", "simulate")


class ConfigError(ValueError):
    """A configuration that cannot be used; its text is one line for a person."""


class HubConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the streamer listens and how much may be on the way.

    Attributes
    ----------
    bind
        For instruments and agents; port 0 takes a free one.
    view_bind
        For viewers (lossy).
    window
        Frames that an instrument may send ahead of their acks.
    max_waiting
        Acks are held back while this many frames wait before the pipeline, so that an instrument
        that can wait does, and nothing is dropped.
    status_interval_s
        Time between two Status messages.
    last_words_s
        A session that ends waits until nobody has said anything for this long.
    """

    bind: str = "tcp://127.0.0.1:0"
    view_bind: str = "tcp://127.0.0.1:0"
    window: int = 4
    max_waiting: int = 2
    status_interval_s: float = 0.2
    last_words_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("window", "max_waiting"):
            if not 1 <= getattr(self, name) <= 1024:
                raise ValueError(f"hub.{name} is {getattr(self, name)}; it takes 1 to 1024")
        if not 0.01 <= self.status_interval_s <= 60:
            raise ValueError(f"hub.status_interval_s is {self.status_interval_s}; it takes 0.01 to 60")
        if not 0 <= self.last_words_s <= 60:
            raise ValueError(f"hub.last_words_s is {self.last_words_s}; it takes 0 to 60")


class ExperimentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the session ends by itself.

    Attributes
    ----------
    max_measurements
        Outcomes that count against the budget (ok and failed ones); 0 is without limit.
    max_duration_s
        0 is without limit.
    """

    max_measurements: int = 60
    max_duration_s: float = 0.0

    def __post_init__(self) -> None:
        if self.max_measurements < 0:
            raise ValueError(f"experiment.max_measurements is {self.max_measurements}; it takes 0 and above")
        if not self.max_duration_s >= 0:
            raise ValueError(f"experiment.max_duration_s is {self.max_duration_s}; it takes 0 and above")


class StreamerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of the streamer; each table is documented beside the part that it configures."""

    hub: HubConfig = HubConfig()
    experiment: ExperimentConfig = ExperimentConfig()
    envelope: EnvelopeConfig = EnvelopeConfig()
    journal: JournalConfig = JournalConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    pipeline: PipelineConfig = PipelineConfig()


def read_tables(path: Path | None) -> dict[str, Any]:
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
    for name in tables:
        if name not in TABLES:
            raise ConfigError(f"{path}: unknown table [{name}]; it takes {', '.join(TABLES)}")
    return tables


def convert(table: dict[str, Any], kind: type[T], name: str) -> T:
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
        place = name + where.rstrip("`")
        raise ConfigError(f"{place}: {text}") from None
