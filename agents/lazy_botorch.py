"""BoTorch takes seconds to import: it is loaded here, once, while the first measurements are made."""

from __future__ import annotations

import importlib
import threading
import warnings

_lock = threading.Lock()
_is_loaded = False


def load() -> None:
    """Import BoTorch, or wait until another thread has; pin torch to one thread.

    Two OpenMP pools on one machine cost a factor of 100. One thread at a time imports, for
    Python hands out half-made modules where two threads import each other's parts.
    """
    global _is_loaded
    with _lock:
        if _is_loaded:
            return
        with warnings.catch_warnings():
            # Its own imports use what torch has deprecated: nothing that a user could do about.
            warnings.simplefilter("ignore", DeprecationWarning)
            for name in ("botorch.models", "botorch.acquisition.analytic", "botorch.optim.fit"):
                importlib.import_module(name)
        import torch

        torch.set_num_threads(1)
        _is_loaded = True
