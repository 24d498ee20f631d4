"""Factories of nouns that fill in what a test does not care about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, settings

from streamer.messages import Atoms, Frame, Latents, Patches, Registration, ScanGeometry, Suggestion

# How long an example takes says nothing on a machine that does other things too.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def plain_log() -> Iterator[None]:
    """Give every test the log as it comes: a command may have sent it to a stream that is closed by now."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def make_frame() -> Callable[..., Frame]:
    """Make a frame of seeded noise; any field can be given."""

    def make(image: np.ndarray | None = None, **fields: Any) -> Frame:
        if image is None:
            image = np.random.default_rng(0).poisson(20.0, (1, 16, 24)).astype(np.float32)
        shape = image.shape[1:]
        defaults: dict[str, Any] = {
            "session": "s",
            "number": 0,
            "acquired_at_s": 1000.0,
            "channels": tuple(f"c{i}" for i in range(image.shape[0])),
            "geometry": ScanGeometry(shape=shape, field_of_view_nm=(shape[1] * 0.1, shape[0] * 0.1)),
            "dwell_time_us": 1.0,
        }
        return Frame(image=image, **(defaults | fields))

    return make


@pytest.fixture
def make_patches() -> Callable[..., Patches]:
    """Make a batch of four patterns of a scan of 4 x 4; any field can be given."""

    def make(windows: np.ndarray | None = None, **fields: Any) -> Patches:
        if windows is None:
            windows = np.random.default_rng(0).poisson(2.0, (4, 1, 16, 16)).astype(np.float32)
        n = len(windows)
        geometry = ScanGeometry(shape=(4, 4), field_of_view_nm=(0.4, 0.4))
        places = np.stack(np.divmod(np.arange(n), 4), axis=1).astype(np.float32)
        defaults: dict[str, Any] = {
            "session": "s",
            "number": 0,
            "acquired_at_s": 1000.0,
            "window_nm": 2.0,
            "window_per_nm": 8.0,
            "positions_px": places,
            "positions_nm": geometry.to_nm(places).astype(np.float32),
            "confidence": np.ones(n, np.float32),
            "geometry": geometry,
            "registration": Registration(at_s=1000.0),
            "channels": ("diffraction",),
            "dwell_time_us": 1000.0,
            "dose_e": 500.0,
        }
        return Patches(windows=windows, **(defaults | fields))

    return make


@pytest.fixture
def make_latents() -> Callable[..., Latents]:
    """Make the latents of n atoms with two content latents each; any field can be given."""

    def make(n: int = 5, seed: int = 0, **fields: Any) -> Latents:
        rng = np.random.default_rng(seed)
        positions = rng.uniform(-0.5, 0.5, (n, 2)).astype(np.float32)
        one = np.ones(n, np.float32)
        defaults: dict[str, Any] = {
            "session": "s",
            "number": 0,
            "acquired_at_s": 1000.0,
            "mean": rng.normal(size=(n, 2)).astype(np.float32),
            "sd": np.full((n, 2), 0.1, np.float32),
            "angle_rad": 0 * one,
            "angle_sd_rad": one,
            "offset_nm": np.zeros((n, 2), np.float32),
            "offset_sd_nm": np.zeros((n, 2), np.float32),
            "class_probability": np.zeros((n, 0), np.float32),
            "novelty": 0 * one,
            "confidence": one,
            "track": np.arange(n),
            "positions_px": positions * 10,
            "positions_nm": positions,
            "model_revision": "test",
            "geometry": ScanGeometry(shape=(16, 24), field_of_view_nm=(2.4, 1.6)),
            "registration": Registration(),
        }
        return Latents(**(defaults | fields))

    return make


@pytest.fixture
def make_atoms(make_frame: Callable[..., Frame]) -> Callable[..., Atoms]:
    """Make three atoms in a frame."""

    def make(frame: Frame | None = None) -> Atoms:
        return Atoms(
            frame=frame or make_frame(),
            positions_px=np.array([[4, 4], [8, 8], [10, 15]], np.float32),
            confidence=np.ones(3, np.float32),
            amplitude=np.ones(3, np.float32),
            background=0.0,
            contrast=1.0,
        )

    return make


@pytest.fixture
def make_suggestion() -> Callable[..., Suggestion]:
    """Make a suggestion of a spectrum in the middle of the field."""

    def make(identifier: str = "a-1", **fields: Any) -> Suggestion:
        defaults: dict[str, Any] = {
            "session": "s",
            "number": 0,
            "acquired_at_s": 1000.0,
            "position_nm": (0.0, 0.0),
            "dwell_time_us": 1000.0,
            "policy": "test",
        }
        return Suggestion(id=identifier, **(defaults | fields))

    return make
