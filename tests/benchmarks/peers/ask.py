"""Asks AtomAI and pyroVED, which live in an environment of their own (``make peers``), for timings and fits.

Used by a benchmark like this, so that peer and own code alternate within the same minute::

    from tests.benchmarks.peers.ask import Peers, why_absent

    if (reason := why_absent()) is None:
        with Peers(threads=1) as peers:
            for _ in range(20):
                theirs += peers.ask("encode", batch=64, window_px=24, repeats=10)["wall_ms"]
                ours += ...

The requests and their answers stand in ``serve.py``. A test asks ``pytest.skip(reason)`` where there is
one; a benchmark prints null for the figure, and the reason beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

_HERE = Path(__file__).resolve().parent
PYTHON = _HERE.parents[2] / ".peers" / "bin" / "python"
_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def why_absent(python: Path = PYTHON) -> str | None:
    """Say why the peers cannot be asked, and the cure; None if they can."""
    if python.exists():
        return None
    return f"AtomAI and pyroVED are not installed ({python} is missing): run `make peers`"


class Peers:
    """The peers' process: started on entering, ended on leaving.

    Parameters
    ----------
    threads
        Of torch and of the BLAS in that process.
    python
        Which Python runs it.
    """

    def __init__(self, threads: int = 1, python: Path = PYTHON) -> None:
        self._python, self._threads = python, threads
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Peers:
        if (reason := why_absent(self._python)) is not None:
            raise FileNotFoundError(reason)
        pools = dict.fromkeys(_POOLS, str(self._threads))
        self._process = subprocess.Popen(
            [str(self._python), str(_HERE / "serve.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | pools | {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"},
        )
        return self

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises
        ------
        RuntimeError
            If the process ended instead of answering; why it did stands on standard error.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peers' process ended ({self._process.wait()}) on the request {do!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
