"""Which simulated instruments there are: the names by which commands and configurations know them.

Nothing of an instrument is imported before it is asked for: numba alone takes a third of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer.core

if TYPE_CHECKING:
    from simulators.scanning import ScanningConfig, ScanningInstrument


@dataclass(frozen=True, slots=True)
class Entry:
    """One simulated instrument.

    Attributes
    ----------
    name
        Of its command and of its table, ``simulate.<name>``.
    module, prefix
        Where its classes are, and how their names begin: ``<prefix>Config`` and ``<prefix>Instrument``.
    what, more
        What it is, in a line; and what it does, in two.
    has_electrons
        Whether its probe is a beam that gives a dose.
    """

    name: str
    module: str
    prefix: str
    what: str
    more: str
    has_electrons: bool = True

    @property
    def table(self) -> str:
        """Name of its table in a configuration."""
        return f"simulate.{self.name}"

    def config_class(self) -> type[ScanningConfig]:
        """Import the class of its configuration."""
        found: type[ScanningConfig] = getattr(import_module(self.module), f"{self.prefix}Config")
        return found

    def instrument_class(self) -> type[ScanningInstrument[Any]]:
        """Import the class of the instrument; it takes the configuration."""
        found: type[ScanningInstrument[Any]] = getattr(import_module(self.module), f"{self.prefix}Instrument")
        return found


_ENTRIES = (
    Entry(
        "stem",
        "simulators.stem",
        "Stem",
        "Scan a simulated sheet of graphene with silicon atoms, vacancies and a grain boundary.",
        "It takes spectra and sub-scans when the streamer asks for them, and it drifts.",
    ),
    Entry(
        "pfm",
        "simulators.pfm",
        "Pfm",
        "Scan a simulated ferrielectric film with the tip of a PFM: amplitude, phase and height.",
        "Asked for a spectrum it sweeps the tip's bias: a hysteresis loop, which leaves its mark.",
        has_electrons=False,
    ),
    Entry(
        "diffraction",
        "simulators.diffraction",
        "Diffraction",
        "Scan graphene or zincblende with a simulated 4D-STEM: a diffraction pattern at every place.",
        "Patterns are sent in batches of 64, and after them the frame that virtual detectors make of them.",
    ),
    Entry(
        "eels",
        "simulators.eels",
        "Eels",
        "Scan simulated plasmonic nanoparticles of doped In2O3, and take their energy losses.",
        "Frames are HAADF; spectra hold plasmons, or core losses where the spectrometer is set to them.",
    ),
    Entry(
        "afm",
        "simulators.afm",
        "Afm",
        "Watch simulated protein rods adsorb, diffuse, turn and order under a fast AFM: height.",
        "The rods move while they are scanned; where each of them was is the truth. It takes no spectra.",
        has_electrons=False,
    ),
)
CATALOGUE = {entry.name: entry for entry in _ENTRIES}


def explained(entry: Entry) -> type[typer.core.TyperCommand]:
    """Make the class of an instrument's command: its help ends with the keys of the configuration."""

    class Explained(typer.core.TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            from simulators.knobs import as_text

            super().format_help(ctx, formatter)
            formatter.write(as_text(entry.config_class(), entry.table))

    return Explained
