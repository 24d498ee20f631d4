"""Real silicon in graphene through finder, cutter and the shipped weights: is it told from carbon?

Each recorded frame of the library holds one silicon atom, three- or fourfold. There is no hand-made truth:
the silicon is taken to be the brightest spot of a frame. Two groups of latents are compared with that, no
label used. Three- and fourfold sites are told by the direction that separates simulated ones, and judged by
the area under the curve on the recorded ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from deploy.presets.graphene_si import PRESET
from deploy.presets.groups import drawn_groups
from models.encoder import Encoder
from simulators.recordings import read_recording
from simulators.scoring import adjusted_rand_index
from simulators.specimen import FOUR_FOLD_SI, THREE_FOLD_SI
from streamer.messages import Frame
from streamer.stage import Rejected
from streamer.stages.cut_windows import CutWindows
from streamer.stages.find_atoms import FindAtoms

Figures = dict[str, Any]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

LIBRARY = "stem_graphene_si_library_si1"
BONDS = ("Si1C3", "Si1C4")
NAMES = ("real_si_ari", "real_si_auc")
_SMOOTH_NM = 0.05
_BESIDE_NM = 0.08  # as far may the found atom be from the brightest spot
_SIMULATED = 3000
_SEED = 11


class _Seen(NamedTuple):
    """Latents of a frame's atoms, and which is the brightest spot."""

    mean_NZ: Float32
    is_silicon_N: NDArray[np.bool_]


def measure(folder: Path) -> Figures:
    """Measure both figures; null with a reason where the library is not there."""
    library = folder / LIBRARY
    if not library.is_dir():
        return dict.fromkeys(NAMES) | {f"{name}_reason": f"no {LIBRARY} in {folder}" for name in NAMES}
    encoder = Encoder.load(device="cpu")
    seen = {bond: [one for one in map(_looker(encoder), _frames(library / bond)) if one] for bond in BONDS}
    every = [one for bond in BONDS for one in seen[bond]]
    latents = np.concatenate([one.mean_NZ for one in every])
    is_silicon = np.concatenate([one.is_silicon_N for one in every])
    three, four = (np.concatenate([one.mean_NZ[one.is_silicon_N] for one in seen[bond]]) for bond in BONDS)
    direction = separating_direction(encoder)
    groups = drawn_groups(encoder, latents, 2)
    return {
        "real_si_ari": round(adjusted_rand_index(is_silicon.astype(np.int64), groups), 4),
        "real_si_auc": round(area_under_curve(three @ direction, four @ direction), 4),
        "real_si_frames": len(every),
        "real_si_three_fold": len(three),
        "real_si_four_fold": len(four),
    }


def _frames(folder: Path) -> list[Frame]:
    found = []
    for file in sorted(folder.iterdir()):
        found += [frame for frame in read_recording(file).frames() if isinstance(frame, Frame)]
    return found


def _looker(encoder: Encoder) -> Any:
    card, find = encoder.card, FindAtoms()
    cut = CutWindows(card.window_nm, card.window_px)

    def look(frame: Frame) -> _Seen | None:
        try:
            patches = cut.process(find.process(frame))
        except Rejected:
            return None
        away_nm = np.hypot(*(patches.positions_nm - brightest_nm(frame)).T)
        if away_nm.min() > _BESIDE_NM:  # too near the rim to be cut
            return None
        return _Seen(encoder.encode(patches.windows).mean, away_nm == away_nm.min())

    return look


def brightest_nm(frame: Frame) -> Float64:
    """Say where the brightest spot of a frame is, ``(x, y)``."""
    smooth = gaussian_filter(frame.image[0].astype(np.float64), _SMOOTH_NM / frame.geometry.pixel_size_nm[0])
    row, col = np.unravel_index(int(smooth.argmax()), smooth.shape)
    return frame.geometry.to_nm(np.array([[row, col]], dtype=np.float64))[0]


def separating_direction(encoder: Encoder) -> Float64:
    """Find the direction from three- to fourfold sites of simulated windows: Fisher's discriminant."""
    part = PRESET.simulate(PRESET, _SIMULATED, np.random.default_rng(_SEED))
    mean = encoder.encode(part.windows_NCHW).mean.astype(np.float64)
    three, four = mean[part.class_N == THREE_FOLD_SI], mean[part.class_N == FOUR_FOLD_SI]
    within = np.atleast_2d(np.cov(three.T) + np.cov(four.T))
    return np.linalg.solve(within + 1e-9 * np.eye(len(within)), four.mean(0) - three.mean(0))


def area_under_curve(lower_N: Float64, higher_N: Float64) -> float:
    """How often one of the higher is above one of the lower; ties count half."""
    away = higher_N[:, None] - lower_N
    return float((away > 0).mean() + 0.5 * (away == 0).mean())
