"""What a GPU would run says what the CPU says; what only a GPU can do is tested where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import harmonic_constants
from models.answers import Answers
from models.cuda_inference import DeviceInference, pieces
from models.harmonic_graph import HarmonicGraph
from models.harmonic_inference import HarmonicInference
from models.novelty import MOST_NOVEL, Calibration, HarmonicNovelty
from models.rvae import RVAE
from tests.unit.test_harmonic_inference import SHAPES, model, spots

Float32 = NDArray[np.float32]
CALIBRATION = Calibration((-0.5, 0.5, 1.0), (0.3, 0.4, 0.5))
CPU = torch.device("cpu")
SMALL_SIZES = (16, 64)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def novelty(made: RVAE) -> HarmonicNovelty:
    return HarmonicNovelty.blank(len(set(made.order_P.tolist())))


def on_device(made: RVAE, device: torch.device = CPU) -> DeviceInference:
    return DeviceInference(made, novelty(made), CALIBRATION, device, SMALL_SIZES)


def require_same(told: Answers, expected: Answers, tolerance: float = 1e-4) -> None:
    """Compare all fields; of an sd of the angle its circular length, which it is computed from."""
    for name, mine, theirs in zip(Answers._fields, told, expected, strict=True):
        if name == "angle_N":
            mine, theirs = np.angle(np.exp(1j * (mine - theirs))), np.zeros_like(theirs)
        if name == "angle_sd_N":
            mine, theirs = (np.exp(-0.5 * sd.astype(float) ** 2) for sd in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_what_a_gpu_would_compute_is_what_the_cpu_says(shape: str) -> None:
    made = model(**SHAPES[shape])
    windows = spots(150, made.window_px, made.channels, seed=9)
    expected = HarmonicInference(made, novelty(made), CALIBRATION).encode(windows)
    require_same(on_device(made).encode(windows), expected)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_with_all_directions_kept_it_is_the_posterior_of_the_model(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harmonic_constants, "_TEMPLATE_ERROR", 1e-7)
    made = model(**SHAPES[shape])
    windows = spots(150, made.window_px, made.channels, seed=9)
    told, said = on_device(made).encode(windows), made.posterior(torch.from_numpy(windows))
    expected = Answers(
        said.mean_NZ.numpy(),
        said.log_sd_NZ.exp().numpy(),
        said.angle_N.numpy(),
        said.angle_sd_N.numpy(),
        said.shift_N2.numpy(),
        said.shift_sd_N2.numpy(),
        said.class_probability_NK.numpy(),
        said.nuisance_NV.numpy(),
        said.nuisance_sd_NV.numpy(),
        told.novelty_N,  # the model has none
    )
    require_same(told, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_window_that_cannot_be_read_is_most_novel_and_touches_no_other(bad: float) -> None:
    engine, windows = on_device(model()), spots(3, 16)
    good = engine.encode(windows)
    windows[1, 0, 2, 2] = bad
    told = engine.encode(windows)
    assert told.novelty_N[1] == MOST_NOVEL
    assert all(np.isfinite(part).all() for part in told)
    for mine, theirs in zip(told, good, strict=True):
        assert np.array_equal(mine[[0, 2]], theirs[[0, 2]])


def test_answers_are_the_callers_own_and_any_number_of_windows_will_do() -> None:
    engine, windows = on_device(model()), spots(300, 16, seed=3)
    whole = engine.encode(windows)
    kept = whole.mean_NZ.copy()
    for count in (0, 1, 15, 16, 17, 64, 65, 200):
        few = engine.encode(windows[:count])
        assert len(few.mean_NZ) == count
        require_same(few, Answers(*(part[:count] for part in whole)), 1e-5)
    assert np.array_equal(whole.mean_NZ, kept)


def test_read_only_and_strided_windows_are_taken() -> None:
    engine, windows = on_device(model()), spots(40, 16, seed=3)
    strided = windows[::2]
    strided.flags.writeable = False
    require_same(engine.encode(strided), Answers(*(part[::2] for part in engine.encode(windows))), 1e-5)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [(0, 256)]),
        (256, [(0, 256)]),
        (1500, [(0, 1024), (1024, 256), (1280, 256)]),
        (5000, [(0, 4096), (4096, 256), (4352, 256), (4608, 256), (4864, 256)]),
    ],
)
def test_windows_are_cut_into_blocks_that_are_full_but_for_the_last(count: int, expected: Any) -> None:
    assert list(pieces(count, (256, 1024, 4096))) == expected


@pytest.mark.parametrize("shape", ["even window", "without rotation", "labelled classes"])
def test_nothing_depends_on_the_windows_and_nothing_lies_on_the_host(shape: str) -> None:
    """A graph can record neither a shape nor a number that is read back: tensors without values have none."""
    made = model(**SHAPES[shape])
    whole = HarmonicGraph(made, novelty(made), CALIBRATION).to("meta")
    with torch.no_grad():
        told = whole(torch.empty(8, made.channels, made.window_px, made.window_px, device="meta"))
    assert told.device.type == "meta"
    assert told.shape == (8, sum(whole.widths()))


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_gpu_says_what_the_cpu_says_and_says_it_again(shape: str) -> None:
    made = model(**SHAPES[shape])
    engine = on_device(made, torch.device("cuda"))
    windows = spots(300, made.window_px, made.channels, seed=9)
    expected = HarmonicInference(made, novelty(made), CALIBRATION).encode(windows)
    for _ in range(3):
        require_same(engine.encode(windows), expected)
        require_same(engine.encode(windows[::-1]), Answers(*(part[::-1] for part in expected)))
