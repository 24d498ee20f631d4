"""The configuration of a whole run: it only joins those of the streamer, the agent and the simulator.

Importing this imports all three, so the command line does it only where it must.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agents.config import AgentConfig
from agents.objective import Objective
from simulators.afm import AfmConfig
from simulators.diffraction import DiffractionConfig
from simulators.eels import EelsConfig
from simulators.pfm import PfmConfig
from simulators.stem import StemConfig
from streamer.config import StreamerConfig
from streamer.config_file import ConfigError, convert, read_tables

Tables = dict[str, Any]


class SimulateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The simulated instruments; ``probeloop simulate NAME --help`` explains each.

    Attributes
    ----------
    stem
        The scanning transmission electron microscope and its specimen.
    pfm, diffraction, eels, afm
        The other instruments; None where the file says nothing of one, which then has its defaults.
    """

    stem: StemConfig = StemConfig()
    pfm: PfmConfig | None = None
    diffraction: DiffractionConfig | None = None
    eels: EelsConfig | None = None
    afm: AfmConfig | None = None


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a run, one table for each process; each is documented beside the part it configures."""

    streamer: StreamerConfig = StreamerConfig()
    agent: AgentConfig = AgentConfig()
    simulate: SimulateConfig = SimulateConfig()

    def __post_init__(self) -> None:
        names = ["", *(one.name for one in self.streamer.pipeline.encode.beside)]
        if self.agent.encoder not in names:
            raise ValueError(
                f"agent.encoder is {self.agent.encoder!r}; it takes the name of an encoder of "
                f"streamer.pipeline.encode: {', '.join(map(repr, names))}"
            )
        if self.agent.sees_windows and self.agent.encoder not in self.streamer.pipeline.encode.sending:
            of = f" of its encoder {self.agent.encoder!r}" if self.agent.encoder else ""
            raise ValueError(
                f"agent.features is {list(self.agent.features)}, which looks at windows{of}; set "
                f"streamer.pipeline.encode.{'beside.' if of else ''}send_windows = true"
            )


def read_run_config(path: Path | None) -> RunConfig:
    """Read the configuration of a run; no path gives the defaults.

    Raises
    ------
    ConfigError
        In one line: the file, the key, what is wrong with it and what would do.
    """
    return check(read_tables(path), "" if path is None else f"{path}: ")


def check_files(agent: AgentConfig, origin: str = "") -> None:
    """Open the files that an agent's objectives name, before anything is started.

    Raises
    ------
    ConfigError
        In one line: the file, its line if it has an error there, and what would do.
    """
    for name in ("objective", "second_objective"):
        try:
            if (config := getattr(agent, name)) is not None:
                Objective(config)
        except ValueError as error:
            raise ConfigError(f"{origin}agent.{name}{str(error).removeprefix('objective')}") from None


def check(tables: Tables, origin: str = "") -> RunConfig:
    """Make the configuration from tables as read from TOML.

    Parameters
    ----------
    tables
        ``streamer``, ``agent``, ``simulate``; a missing one takes its defaults.
    origin
        Put before the text of an error, such as ``run.toml: ``.

    Raises
    ------
    ConfigError
        In one line: the key, what is wrong with it and what would do.
    """
    try:
        return RunConfig(
            streamer=convert(tables.get("streamer", {}), StreamerConfig, "streamer"),
            agent=convert(tables.get("agent", {}), AgentConfig, "agent"),
            simulate=convert(tables.get("simulate", {}), SimulateConfig, "simulate"),
        )
    except ValueError as error:
        raise ConfigError(f"{origin}{error}") from None
