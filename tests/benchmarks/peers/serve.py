"""Runs AtomAI and pyroVED for the benchmarks, in an environment of their own, and answers by JSON lines.

One request a line on standard input, one answer a line on standard output, in the same order; what the
libraries print goes to standard error. ``ask.py`` starts this file; the requests are the functions under
«requests» below, named by ``"do"``, and their keyword arguments. A request that fails ends the process:
a peer half broken gives no figures.

At the top stands nothing but the standard library, so that the protocol runs under any Python. AtomAI
and pyroVED import torchvision and mendeleev for pictures and for graphs of molecules, which nothing here
times or draws: where these are not installed (they are large, and tied to one build of torch), empty
modules of their names take their places.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

Answer = dict[str, Any]
NOT_NEEDED = {
    "torchvision": (),
    "torchvision.models": ("mobilenet_v2", "resnet50", "vgg16"),
    "torchvision.utils": ("make_grid",),
    "mendeleev": ("element",),
}


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print must not come between two answers
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # AtomAI leaves a checkpoint where it stands
        for line in sys.stdin:
            request = json.loads(line)
            answers.write(json.dumps(REQUESTS[request.pop("do")](**request)) + "\n")
        os.chdir("/")


# -- the libraries -----------------------------------------------------------------------------------


@cache
def _atomai() -> Any:
    _stand_in()
    import atomai

    return atomai


@cache
def _pyroved() -> Any:
    _stand_in()
    import pyroved

    return pyroved


@cache
def _stand_in() -> None:
    """Put empty modules where libraries are missing that are imported, and never used here."""
    missing = [name for name in NOT_NEEDED if "." not in name and find_spec(name) is None]
    for name, members in NOT_NEEDED.items():
        if name.partition(".")[0] not in missing:
            continue
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module


@cache
def _encoder(peer: str, window_px: int) -> Callable[..., Any]:
    """Make an untrained encoder of the peer's default network: its time does not depend on its weights."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if peer == "atomai":
        model = _atomai().models.rVAE((window_px, window_px), latent_dim=2)
        model.encoder_net.eval()
        return model.encode
    model = _pyroved().models.iVAE((window_px, window_px), latent_dim=2, invariances=["r", "t"])
    model.eval()
    return lambda windows, **_: model.encode(torch.from_numpy(windows))


@cache
def _segmentor(network: str) -> Any:
    return _atomai().models.Segmentor(network, nb_classes=1)


def _timed(call: Callable[[], Any], repeats: int) -> Answer:
    """Call, and say how long each call took, in milliseconds of the clock and of the processor."""
    call()
    wall_ms, cpu_ms = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        wall_ms.append((time.perf_counter() - wall) * 1e3)
        cpu_ms.append((time.process_time() - cpu) * 1e3)
    return {"wall_ms": wall_ms, "cpu_ms": cpu_ms}


# -- requests ----------------------------------------------------------------------------------------


def echo(value: Any) -> Answer:
    """Give back what came, and which Python answers."""
    return {"value": value, "python": sys.executable}


def versions() -> Answer:
    """Say what is compared with."""
    from importlib.metadata import version

    return {name: version(name) for name in ("atomai", "pyroved", "torch", "numpy")}


def encode(
    peer: str = "atomai", batch: int = 64, window_px: int = 24, repeats: int = 50, one_call: bool = False
) -> Answer:
    """Time the public ``encode`` on random windows.

    Parameters
    ----------
    peer
        ``atomai`` (its rVAE) or ``pyroved`` (its iVAE with rotation and translation).
    one_call
        AtomAI only: ``num_batches=1``, so that the network is called once and not eleven times, as it is
        by default whatever the batch.
    """
    import numpy as np

    windows = np.random.default_rng(0).random((batch, window_px, window_px), dtype=np.float32)
    call, options = _encoder(peer, window_px), {"num_batches": 1} if one_call else {}
    return _timed(lambda: call(windows, **options), repeats)


def frame(path: str, window_px: int = 24, repeats: int = 3, network: str = "Unet") -> Answer:
    """Time AtomAI from a frame to latents: network, positions, windows, encoder.

    The network is not trained, which its time does not show. So that the later steps have as much to do as
    after a trained one, positions are then found in a clean map with a disc on each true atom.

    Parameters
    ----------
    path
        An ``.npz`` with ``image`` (height, width), float32, and ``positions_px`` (n, 2), as ``(row, col)``.

    Returns
    -------
    answer
        ``wall_ms`` and ``cpu_ms`` of each whole pass, ``parts_ms`` of each step, ``windows`` encoded.
    """
    import numpy as np

    encoder = _encoder("atomai", window_px)
    with np.load(path) as file:
        image, positions_px = file["image"].astype(np.float32), file["positions_px"]
    found = _clean_map(image.shape, positions_px)
    parts: dict[str, list[float]] = {"segment": [], "locate": [], "cut": [], "encode": []}

    def one_pass() -> int:
        start = time.perf_counter()
        _segmentor(network).predict(image, compute_coords=False, verbose=False)
        segmented = time.perf_counter()
        coordinates = _atomai().predictors.Locator(0.5).run(found)
        located = time.perf_counter()
        stack = _atomai().stat.imlocal(found, coordinates, window_px).imgstack[..., 0]
        cut = time.perf_counter()
        encoder(stack)
        steps = (segmented - start, located - segmented, cut - located, time.perf_counter() - cut)
        for times, step in zip(parts.values(), steps, strict=True):
            times.append(step * 1e3)
        return len(stack)

    windows = one_pass()
    answer = _timed(one_pass, repeats)
    return answer | {"parts_ms": {name: times[2:] for name, times in parts.items()}, "windows": windows}


def _clean_map(shape: tuple[int, int], positions_px: Any, radius_px: float = 2.0) -> Any:
    """Draw a disc on each atom, as a good network would, ``(1, height, width, 1)``."""
    import numpy as np

    drawn = np.zeros(shape, np.float32)
    rows, cols = np.indices(shape)
    reach = int(np.ceil(radius_px)) + 1
    for row, col in positions_px:
        near = (
            slice(max(int(row) - reach, 0), int(row) + reach + 1),
            slice(max(int(col) - reach, 0), int(col) + reach + 1),
        )
        drawn[near][np.hypot(rows[near] - row, cols[near] - col) <= radius_px] = 1.0
    return drawn[None, ..., None]


def fit(
    path: str,
    out: str,
    seed: int = 0,
    epochs: int = 6,
    batch: int = 25,
    learning_rate: float = 1e-3,
    rotation_prior: float = 3.141592653589793,
    latent_dim: int = 2,
    standardise: bool = True,
) -> Answer:
    """Train AtomAI's rVAE (with translation) on windows, and encode others.

    Parameters
    ----------
    path
        An ``.npz``: ``train`` (n, height, width), float32, and any number of other arrays of windows
        (…, height, width), which are encoded afterwards.
    out
        Where to write an ``.npz``: for each other array ``NAME`` of windows, ``NAME_mean`` (…, latents) and
        ``NAME_angle`` (…,) in radians.
    standardise
        To mean 0 and deviation 1 of the training set; AtomAI's loss takes unit noise for granted.

    Returns
    -------
    answer
        ``cpu_s`` and ``wall_s`` of the training alone.
    """
    import numpy as np
    import torch

    with np.load(path) as file:
        arrays = {name: file[name].astype(np.float32) for name in file.files}
    train = arrays.pop("train")
    centre, unit = (float(train.mean()), float(train.std())) if standardise else (0.0, 1.0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = _atomai().models.rVAE(train.shape[1:], latent_dim=latent_dim, seed=seed)
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit(
        (train - centre) / unit,
        training_cycles=epochs,
        batch_size=batch,
        rotation_prior=rotation_prior,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=learning_rate),
    )
    answer = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    model.encoder_net.eval()
    latents = {}
    for name, windows in arrays.items():
        flat = ((windows - centre) / unit).reshape(-1, *windows.shape[-2:])
        mean, _ = model.encode(flat)
        latents[f"{name}_mean"] = mean[:, 3:].reshape(*windows.shape[:-2], -1)
        latents[f"{name}_angle"] = mean[:, 0].reshape(windows.shape[:-2])
    np.savez(out, **latents)
    return answer


REQUESTS: dict[str, Callable[..., Answer]] = {
    request.__name__: request for request in (echo, versions, encode, frame, fit)
}

if __name__ == "__main__":
    main()
