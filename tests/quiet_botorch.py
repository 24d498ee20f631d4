"""BoTorch as the reference: imported without its warnings, and with one thread."""

from __future__ import annotations

import importlib
import warnings


def load() -> None:
    """Import what the tests compare with; pin torch to one thread."""
    with warnings.catch_warnings():
        # Its own imports use what torch has deprecated: nothing that a user could do about.
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in ("botorch.models", "botorch.acquisition.analytic"):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
