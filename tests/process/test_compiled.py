"""The first process on a machine, which compiles, gives the same digits as the later ones, which load."""

import os
import subprocess
import sys
from pathlib import Path

ROWS = """
import hashlib, sys
import numpy as np
from simulators.crystal import CrystalStream, preset
from streamer.compiled import compiled_here, start_anew_if_compiled
from streamer.observers.row_fits import place_rows

stream = CrystalStream(preset("stem", seed=2, size_px=128))
first, second = stream.scan().image, stream.scan().image
found = place_rows(first, second, np.array([0.3, -0.2]), 4.0)
if "--anew" in sys.argv:
    start_anew_if_compiled()
print(len(compiled_here()) > 0, hashlib.sha256(np.stack(found).tobytes()).hexdigest())
"""


def run(script: Path, cache: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout.split()


def test_what_this_process_compiled_is_loaded_before_anything_is_computed_with_it(tmp_path):
    script = tmp_path / "rows.py"
    script.write_text(ROWS, encoding="utf-8")
    first = run(script, tmp_path / "cache", "--anew")
    later = run(script, tmp_path / "cache")
    assert later[0] == "False"
    assert first == later


def test_a_process_that_compiled_says_what(tmp_path):
    script = tmp_path / "one.py"
    (tmp_path / "room.py").write_text(
        "from numba import njit\n\n@njit(cache=True)\ndef add_one(x):\n    return x + 1\n", encoding="utf-8"
    )
    script.write_text(
        "from room import add_one\nfrom streamer.compiled import compiled_here\n"
        "add_one(1)\nprint(*compiled_here(('room',)))\n",
        encoding="utf-8",
    )
    assert run(script, tmp_path / "cache") == ["room.add_one"]
    assert run(script, tmp_path / "cache") == []
