"""Says whether this machine can run the service, and what to do where it cannot."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from deploy.supervise import ONE_THREAD, free_address

OLDEST_PYTHON = (3, 11)
ENOUGH_BYTES = 2_000_000_000  # a session of a few minutes at 512² and 6 frames a second
Verdict = Literal["ok", "note", "wrong"]
MARKS: dict[Verdict, tuple[str, str]] = {"ok": ("✓", "green"), "note": ("•", "yellow"), "wrong": ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    what
        What was looked at.
    verdict
        ``ok``; ``note`` for what works but is worth knowing; ``wrong`` for what must be mended.
    found
        In words.
    cure
        What would do; empty where nothing has to be done.
    """

    what: str
    verdict: Verdict
    found: str
    cure: str = ""


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """Check the version of Python."""
    text = ".".join(str(part) for part in version)
    if version[:2] < OLDEST_PYTHON:
        return Finding("Python", "wrong", text, "install Python 3.11 or newer")
    return Finding("Python", "ok", f"{text} on {platform.system()} {platform.machine()}")


def check_packages(distribution: str = "probeloop") -> Finding:
    """Check that every package that we need is there in a version that we can use."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in importlib.metadata.requires(distribution) or []]
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "wrong", f"{distribution} is not installed", "run: make venv")
    needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = [text for text in (_missing(requirement) for requirement in needed) if text]
    if wrong:
        return Finding("packages", "wrong", "; ".join(wrong), "run: make venv")
    return Finding("packages", "ok", f"all {len(needed)} there, in versions that fit")


def _missing(requirement: object) -> str:
    from packaging.requirements import Requirement

    assert isinstance(requirement, Requirement)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, needed is {requirement.specifier}"
    return ""


def check_torch() -> Finding:
    """Check that torch runs, and whether it sees a GPU."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "wrong", str(error), "run: make venv")
    if torch.cuda.is_available():
        return Finding("torch", "ok", f"{torch.__version__}, GPU {torch.cuda.get_device_name(0)}")
    return Finding("torch", "note", f"{torch.__version__}, no GPU: the CPU is used, which is enough")


def check_weights(weights: Path | None = None) -> Finding:
    """Check that the encoder's weights can be loaded."""
    try:
        from models.encoder import Encoder

        encoder = Encoder.load(weights)
    except (ImportError, OSError, ValueError) as error:
        return Finding(
            "weights", "wrong", str(error), "run: git checkout models/weights, or probeloop train rvae"
        )
    return Finding("weights", "ok", f"{encoder.card.name}, revision {encoder.revision}")


def check_port() -> Finding:
    """Check that a port on this machine can be opened."""
    try:
        address = free_address()
    except OSError as error:
        return Finding("port", "wrong", f"none can be opened on 127.0.0.1: {error}", "look at the firewall")
    return Finding("port", "ok", f"{address} is free")


def check_folder(folder: Path = Path("sessions")) -> Finding:
    """Check that sessions can be written here, and that there is room."""
    place = folder if folder.is_dir() else folder.absolute().parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding(
            "folder", "wrong", f"{place} cannot be written: {error.strerror}", "use --session-folder"
        )
    free = shutil.disk_usage(place).free
    if free < ENOUGH_BYTES:
        return Finding("folder", "note", f"{place}: {free / 1e9:.1f} GB free", "a minute takes about 0.4 GB")
    return Finding("folder", "ok", f"{place.resolve()}: {free / 1e9:.0f} GB free")


def check_threads() -> Finding:
    """Check how many threads the numerical libraries of a process would take."""
    set_here = {name: os.environ[name] for name in ONE_THREAD if name in os.environ}
    cores = os.cpu_count() or 1
    if all(set_here.get(name) == "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")):
        return Finding("threads", "ok", f"one for each numerical library, {cores} cores")
    return Finding(
        "threads",
        "note",
        f"{cores} cores; OMP_NUM_THREADS is {set_here.get('OMP_NUM_THREADS', 'not set')}",
        "probeloop sets it to 1 for what it starts; set it for programs of your own",
    )


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_packages,
    check_torch,
    check_weights,
    check_port,
    check_folder,
    check_threads,
)


def examine(checks: tuple[Callable[[], Finding], ...] = CHECKS) -> list[Finding]:
    """Make every check."""
    return [check() for check in checks]


def as_table(findings: list[Finding]) -> Table:
    """Draw what was found."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("", "what", "found", "what to do"):
        table.add_column(head, header_style="dim")
    for finding in findings:
        mark, style = MARKS[finding.verdict]
        table.add_row(Text(mark, style=style), finding.what, Text(finding.found), Text(finding.cure))
    return table


def is_fit(findings: list[Finding]) -> bool:
    """Say whether nothing is wrong."""
    return all(finding.verdict != "wrong" for finding in findings)
