"""Functions compiled by numba: what is compiled in a process gives other last digits than what is loaded.

A function that calls another brings its own optimised copy of that along when it is loaded from the cache;
in the process that compiles both, it calls the first copy. Sums are taken in another order then, and a
session could neither go on after a restart nor be verified bit for bit. So nobody computes with what was
compiled a moment ago.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog

ROOMS = ("models", "streamer")
_STARTED_ANEW = "PROBELOOP_STARTED_ANEW"


def compiled_here(rooms: tuple[str, ...] = ROOMS) -> list[str]:
    """Name the functions of some top-level packages that this process had to compile.

    Returns
    -------
    names
        Such as ``streamer.observers.row_fits._fit_rows``, in order.
    """
    found = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in rooms:
            for value in list(vars(module).values()):
                if _cache_misses(value) and value.py_func.__module__ == name:
                    found.add(f"{name}.{value.py_func.__name__}")
    return sorted(found)


def start_anew_if_compiled(rooms: tuple[str, ...] = ROOMS) -> None:
    """Start this process anew, by the same command line, if it compiled something; once.

    Call it before anything is opened: nothing of the process but its number and its environment stays.
    """
    names = compiled_here(rooms)
    if not names:
        return
    if os.environ.get(_STARTED_ANEW) == str(os.getpid()):
        structlog.get_logger().warning("compiled functions cannot be kept on this machine", names=names)
        return
    os.environ[_STARTED_ANEW] = str(os.getpid())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)


def _cache_misses(value: Any) -> int:
    stats = getattr(value, "stats", None)
    return sum(getattr(stats, "cache_misses", {}).values()) if hasattr(value, "py_func") else 0
