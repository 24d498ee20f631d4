"""What runs on a GPU says there what it says on a CPU, and keeps apart what lies here and what lies there.

Most machines that run this have no GPU. So the numbers of the device are float32 here and those of the
host float64, and ``Apart`` refuses every operation that takes both: on a GPU it would fail.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from models.distortion_gp import DistortionGP, Hyperparameters, Observations, ScanModel
from models.resampling import resampled
from models.scan_basis import ScanPath

Float64 = NDArray[np.float64]
SHAPE = (96, 128)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]
# These bring numbers from one side to the other, or ask for no numbers at all.
CROSSINGS = {"to", "cpu", "double", "type", "__set__", "__get__", "copy_", "__setitem__"}
FACTORIES = {"zeros", "ones", "empty", "full", "arange", "linspace", "eye", "tensor", "as_tensor"}


class Apart(TorchFunctionMode):
    """Refuses to mix float32, which stands for the device, with float64, which stands for the host."""

    def __init__(self) -> None:
        super().__init__()
        self._came: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self.operations = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = list(tensors((args, kwargs)))
        self.operations += 1
        if name not in CROSSINGS:
            kinds = {one.dtype for one in given if one.is_floating_point() and one.ndim}
            assert len(kinds) < 2, f"torch's {name} mixes what lies on the device with what lies on the host"
        if name == "numpy" and given[0].dtype == torch.float32:
            assert id(given[0]) in self._came, "numpy() of numbers that lie on the device: call cpu() first"
        found = func(*args, **kwargs)
        if name in FACTORIES and isinstance(found, torch.Tensor) and found.dtype == torch.float32:
            assert "device" in kwargs, f"torch's {name} makes numbers of the device without saying where"
        if name == "cpu":
            found = found.view_as(found)  # another object than the one that lies there
            self._came[id(found)] = found
        return found


def tensors(given: Any) -> Iterator[torch.Tensor]:
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, dict):
        yield from tensors(list(given.values()))
    elif isinstance(given, list | tuple):
        for one in given:
            yield from tensors(one)


def columns(seed: int, sigma_px: float) -> Observations:
    """Columns of a small field; seeds are those of the tests."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(3, np.array(SHAPE) - 4, (300, 2))
    row, col = positions.T / 100
    field = np.stack([0.5 * np.sin(3 * row + col), 0.4 * np.cos(2 * col) - np.exp(-col * 5)], axis=1)
    return Observations(
        positions_px=positions,
        displacement_px=field + rng.normal(0, 0.05, (300, 2)),
        variance_px2=np.full((300, 2), 0.05**2),
        column_sigma_px=sigma_px,
    )


def rows(seed: int) -> Observations:
    """Each row once, as the registration has it."""
    rng = np.random.default_rng(seed)
    positions = np.column_stack([np.arange(SHAPE[0], dtype=float), np.full(SHAPE[0], SHAPE[1] / 2)])
    return Observations(
        positions_px=positions,
        displacement_px=rng.normal(0.2, 0.1, (SHAPE[0], 2)),
        variance_px2=np.full((SHAPE[0], 2), 0.04**2),
    )


def all_said(gp: DistortionGP) -> dict[str, Float64]:
    """Ask a model all that it can be asked."""
    places = np.random.default_rng(3).uniform(0, 90, (20, 2))
    parts = gp.parts()
    displacement, sd = gp.displacement_px(places, with_sd=True)
    said: dict[str, Any] = {
        "displacement": displacement,
        "sd": sd,
        "raw": gp.to_raw_px(places),
        "grid": parts.grid_px,
        "rows": parts.rows_px,
        "cols": parts.cols_px,
        "field": gp.field(),
        "static field": gp.static_field(),
        "sd grid": gp.sd_grid(absorbed=(0.3, 0.5)),
        "hum": gp.hum_amplitude_px,
    }
    if parts.odd_cols_px is not None:
        said["odd"] = parts.odd_cols_px
    return {name: np.asarray(value, dtype=np.float64) for name, value in said.items()}


def lived(
    make: Callable[..., DistortionGP], path: ScanPath, **where: Any
) -> tuple[dict[str, Float64], list[float]]:
    """Lead a model through all that happens to one; give what it says at the end of each part of its life."""
    gp = make(ScanModel(shape=SHAPE, path=path), Hyperparameters(jitter_px=(0.05, 0.1)), **where)
    evidence, said = [], {}
    for seed in (2, 4, 6):
        gp.predict()
        evidence.append(gp.observe(columns(seed, 1.9)).log_evidence)
    gp.information(columns(8, 0.0))
    gp.condition(columns(10, 0.0))
    said |= {f"calibrated {name}": value for name, value in all_said(gp).items()}
    gp = gp.with_hyperparameters(Hyperparameters(timescale_frames=50.0)).with_hum(11.3)
    gp.predict(2.0)
    evidence.append(gp.observe(columns(12, 1.9)).log_evidence)
    facts, arrays = gp.state()
    heir = make(facts.scan, facts.hyperparameters, **where)
    heir.restore(facts, arrays)
    mean, covariance = heir.static()
    frozen = DistortionGP.frozen(heir.scan, heir.hyperparameters, mean, covariance, **where)
    frozen.jumped()
    for seed in (14, 16):
        frozen.predict()
        evidence.append(frozen.observe(rows(seed)).log_evidence)
    said |= {f"frozen {name}": value for name, value in all_said(frozen).items()}
    lean = make(ScanModel(shape=SHAPE, path=path, blocks=("hum", "drift")), **where).with_hum(11.3)
    lean.predict()
    evidence.append(lean.observe(rows(18)).log_evidence)
    said |= {f"drift-only {name}": value for name, value in all_said(lean).items()}
    return said, evidence


@pytest.mark.parametrize("path", ["raster", "serpentine", "sinusoidal"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_model_in_float32_on_any_device_says_what_one_in_float64_says(device: str, path: ScanPath) -> None:
    expected, usual = lived(DistortionGP, path)
    found, evidence = lived(DistortionGP, path, device=device, dtype=torch.float32)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=3e-3, err_msg=name)
    np.testing.assert_allclose(evidence, usual, atol=1e-2)


@pytest.mark.parametrize("path", ["raster", "serpentine", "sinusoidal"])
def test_no_step_of_a_model_mixes_numbers_of_the_device_with_those_of_the_host(path: ScanPath) -> None:
    with Apart() as apart:
        lived(DistortionGP, path, dtype=torch.float32)
    assert apart.operations > 1000


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: torch.ones(3, dtype=torch.float32, device="cpu") + torch.ones(3, dtype=torch.float64),
        lambda: torch.ones(3, dtype=torch.float32),
        lambda: torch.ones(3, dtype=torch.float32, device="cpu").numpy(),
    ],
)
def test_mistakes_that_only_a_gpu_would_show_are_seen_without_one(mistake: Callable[[], Any]) -> None:
    with Apart(), pytest.raises(AssertionError, match="device"):
        mistake()


@pytest.mark.parametrize("device", DEVICES)
def test_a_frame_is_resampled_on_any_device_as_on_the_cpu(device: str) -> None:
    image, field = frame_and_field()
    expected = resampled(image, field)
    found = resampled(image, field, device=device)
    assert found.shape == expected.shape
    assert np.abs(found - expected)[:, 4:-4, 4:-4].max() < 0.04 * expected.std()


def test_what_a_gpu_would_resample_is_what_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from models import resampling

    image, field = frame_and_field()
    expected = resampled(image, field)
    monkeypatch.setattr(resampling, "_is_here", lambda device: False)
    with Apart():
        found = resampled(image, field)
        flat = resampled(image[0], field)
    assert np.abs(found - expected)[:, 4:-4, 4:-4].max() < 0.04 * expected.std()
    np.testing.assert_array_equal(flat, found[0])


def frame_and_field() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A frame of two channels as it comes from the wire, which nobody may write to, and its field."""
    row, col = np.mgrid[0:96, 0:80].astype(np.float32)
    image = np.stack([np.sin(row / 2.5) * np.cos(col / 3), np.cos(row / 4 + col / 3)])
    field = np.stack([0.8 * np.sin(col / 30), 0.6 * np.cos(row / 25) - np.exp(-col / 20)])
    for array in (image, field):
        array.setflags(write=False)
    return image, field
