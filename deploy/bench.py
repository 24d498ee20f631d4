"""Runs the benchmarks of a checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deploy.supervise import child_environment


def benchmark_folder() -> Path:
    """Find the benchmarks beside this package: they are in a checkout, not in an installed copy."""
    return Path(__file__).resolve().parent.parent / "tests" / "benchmarks"


def find_benchmarks(folder: Path, name: str | None) -> list[Path]:
    """Find the script of a benchmark, or all of them.

    Raises
    ------
    FileNotFoundError
        If there is none of that name, or none at all; the text says what there is.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: there is no such folder; the benchmarks come with a checkout (git clone), "
            "not with an installed copy"
        )
    scripts = {
        path.stem: path for path in sorted(folder.glob("*.py")) if path.stem not in ("__init__", "conftest")
    }
    if name is None:
        if not scripts:
            raise FileNotFoundError(f"{folder}: there is no benchmark in it")
        return list(scripts.values())
    if name not in scripts:
        known = ", ".join(scripts) or "none"
        raise FileNotFoundError(f"there is no benchmark {name}; there are: {known}")
    return [scripts[name]]


def run_benchmarks(scripts: list[Path], *, as_json: bool, is_quick: bool) -> int:
    """Run scripts one after the other; return the largest exit code."""
    flags = ["--json"] * as_json + ["--quick"] * is_quick
    codes = []
    for script in scripts:
        print(f"== {script.stem}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, str(script), *flags], env=child_environment(), check=False)
        codes.append(abs(done.returncode))
    return max(codes)
