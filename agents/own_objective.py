"""An objective of one's own: a Python file with a function ``value(spectrum, axis)``."""

from __future__ import annotations

import inspect
import math
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from importlib.abc import ExecutionLoader
from importlib.util import decode_source, module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import hadamard

from agents.likeness_objectives import fingerprint
from agents.loop_objectives import noise_sd
from agents.reading import Float64, Measured, Reader, Reading, UnreadableSpectrum

# Pairs of opposite noise that a variance is taken from, where the file gives none. A power of 2.
PAIRS = 128
SEED = 20240229


class OwnObjective(Reader):
    """Calls the function of a file.

    Parameters
    ----------
    path
        The file. Its ``value(spectrum, axis)`` is given float64 arrays that cannot be written to, counts and
        energy loss in eV (or the response and the tip's bias in V), and gives a number, or a number and its
        variance. The same arguments must give the same number.
    counts_per_electron
        Gain of the detector.

    Raises
    ------
    ValueError
        If the file cannot be loaded, or has no such function; the text names file and line.
    """

    unit = ""

    def __init__(self, path: Path, counts_per_electron: float) -> None:
        self._path, self._gain = path, counts_per_electron
        self._value, source = _load(path)
        self.what = path.stem
        # A verification of the session sees by it when the file was changed.
        self.origin = f"{path.name} {fingerprint(source)}"

    def read(self, measured: Measured) -> Reading:
        """Ask the file's function; take its noise by playing it where the file does not say it."""
        value, variance = self._ask(measured.values, measured.axis)
        if variance is None:
            variance = self._played(value, measured)
        return Reading(value, variance)

    def _ask(self, values: Float64, axis: Float64) -> tuple[float, float | None]:
        values, axis = values.copy(), axis.copy()
        values.flags.writeable = axis.flags.writeable = False
        try:
            given = self._value(values, axis)
        except Exception as error:  # somebody else's code raises whatever it likes
            raise UnreadableSpectrum(
                "own objective failed", f"{_place(self._path, error)}: {_said(error)}"
            ) from error
        return self._checked(given)

    def _checked(self, given: Any) -> tuple[float, float | None]:
        try:
            value, variance = given if isinstance(given, tuple) else (given, None)
            value, variance = float(value), None if variance is None else float(variance)
        except (TypeError, ValueError):
            raise self._wrong(given) from None
        if not math.isfinite(value) or not (variance is None or (math.isfinite(variance) and variance > 0)):
            raise self._wrong(given)
        return value, variance

    def _wrong(self, given: Any) -> UnreadableSpectrum:
        return UnreadableSpectrum(
            "own objective not finite",
            f"{self._path}: value() gave {repr(given)[:80]}; it takes a finite number, or one and its "
            "variance above 0",
        )

    def _played(self, value: float, measured: Measured) -> float:
        """Take the variance from the function itself, at values one sd of noise up or down.

        The mean over random signs of the squared half differences is ``Σ gradient² variance`` where the
        function is straight (Spall, IEEE Trans. Autom. Control 37, 332 (1992)): exact for up to ``PAIRS``
        channels, within 12 % (one sd) for many. A pair that the function fails for is left out.
        """
        noise = self._sd(measured) * _signs(measured.values.size)
        squares, failed = [], None
        for one in noise:
            try:
                up, down = (
                    self._ask(self._bounded(measured, sign * one), measured.axis)[0] for sign in (1, -1)
                )
            except UnreadableSpectrum as error:
                failed = error
                continue
            squares.append(((up - down) / 2) ** 2)
        if failed is not None and not squares:
            raise failed
        return max(math.fsum(squares) / len(squares), (1e-6 * value) ** 2, float(np.finfo(float).tiny))

    def _sd(self, measured: Measured) -> Float64:
        if measured.is_loop:
            return np.full(measured.values.size, noise_sd(measured.values, measured.axis))
        sd: Float64 = np.sqrt(self._gain * np.maximum(measured.values, 0.0))
        return sd

    @staticmethod
    def _bounded(measured: Measured, noise: Float64) -> Float64:
        """Add noise; counts stay 0 or above, as the function knows them."""
        values = measured.values + noise
        return values if measured.is_loop else np.maximum(values, np.minimum(measured.values, 0.0))


@lru_cache(maxsize=2)
def _signs(size: int) -> Float64:
    """Signs of the noise of each pair, shape ``(PAIRS, size)``: of near channels orthogonal to each other."""
    flipped = np.random.default_rng(SEED).choice([-1.0, 1.0], size)
    signs: Float64 = hadamard(PAIRS).astype(np.float64)[:, np.arange(size) % PAIRS] * flipped
    return signs


class _Loader(ExecutionLoader):
    """Loads a module from bytes that were read already: what is run is what is fingerprinted."""

    def __init__(self, path: Path, source: bytes) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_source(self, fullname: str) -> str:
        return decode_source(self._source)


def _load(path: Path) -> tuple[Callable[[Float64, Float64], Any], bytes]:
    """Run the file and take its function."""
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"objective.file: {path}: there is no such file") from None
    except OSError as error:
        raise ValueError(f"objective.file: {path}: cannot be read: {error.strerror}") from None
    name = f"own_objective_{fingerprint(source)}"
    loader = _Loader(path, source)
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # a dataclass in the file looks there for itself
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"objective.file: {_place(path, error)}: {_said(error)}") from None
    value = getattr(module, "value", None)
    if not callable(value):
        raise ValueError(f"objective.file: {path} has no function value(spectrum, axis); define one")
    _check_signature(path, value)
    return value, source


def _check_signature(path: Path, value: Callable[..., Any]) -> None:
    try:
        inspect.signature(value).bind(None, None)
    except TypeError:
        line = value.__code__.co_firstlineno if inspect.isfunction(value) else 1
        raise ValueError(
            f"objective.file: {path}, line {line}: value{inspect.signature(value)} does not take two "
            "arguments; define value(spectrum, axis)"
        ) from None
    except ValueError:  # of a built-in nothing is known
        return


def _place(path: Path, error: BaseException) -> str:
    """Name the line of the file where it went wrong."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{path}, line {error.lineno}"
    lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
