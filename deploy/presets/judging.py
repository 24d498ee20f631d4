"""How well an encoder does on what a preset shows, each figure against the simulated truth."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deploy.presets.groups import mixture_groups
from deploy.presets.preset import Labelled, Preset
from models.encoder import Encoded, Encoder
from simulators.scoring import adjusted_rand_index

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

JUDGED_WINDOWS = 1500
NEIGHBOURS = 15
LEAST_OF_A_GROUP = 15
# Of a normal distribution, within 1 and 1.96 sd.
COVERS = {"cover_68": 0.9945, "cover_95": 1.95996}
MEANINGS = {
    "ari": "agreement of a mixture fitted to the latents without labels with the true classes; 1 is the same",
    "knn": "how often the true classes of the 15 nearest latents tell the class; 1 is always",
    "class_ari": "agreement of the most probable classes with the true ones; 1 is the same",
    "class_accuracy": "how often the most probable class is the true one; 1 is always",
    "invariance": "variance of a place's latents over turns, by that of the classes' means; 0 is best",
    "r_mean": "how well angles follow the truth, |mean exp(i n error)|, mean over the classes; 1 is best",
    "r_min": "the same, of the worst class",
    "cover_68": "how often the angle is within the sd that is said; 0.68 is best",
    "cover_95": "how often it is within 1.96 sds; 0.95 is best",
    "turn_cover_68": "how often the turn between two views is within the sd of both; 0.68 and above",
    "turn_cover_95": "how often it is within 1.96 sds; 0.95 and above",
    "ari_haadf": "ari of windows of one detector: in each a kind of column has a group of its own",
    "ari_abf": "the same of the other",
    "knn_haadf": "knn of windows of one detector",
    "knn_abf": "the same of the other",
    "shift_rms_nm": "root mean square error of the shift along an axis",
    "novel_share": "windows of the preset's own kind that are called novel (above 3); about 0.003",
    "novel_noise_share": "windows of white noise that are called novel; 1 is best",
    "held_out_nats": "negative evidence bound of a held-out window; lower is better",
    "site_ari": "two groups, by what latents draw, against silicon and carbon; worst of three frames",
    "novel_share_default": "the same as novel_share, in frames of the simulated instrument",
}


class AngleErrors(NamedTuple):
    """Of the windows of one class: how far angles are off, the sds said, and |mean exp(i n error)|."""

    error_rad: Float64
    sd_rad: Float64
    concentration: float


def judged(preset: Preset, encoder: Encoder, seed: int) -> dict[str, float]:
    """Measure what all presets share, on windows of an odd seed that training never saw.

    Parameters
    ----------
    preset
        With the window of the encoder.
    seed
        Odd.

    Returns
    -------
    scores
        Named as in ``MEANINGS``; what cannot be known of this preset is left out.

    Raises
    ------
    ValueError
        If the seed is even.
    """
    if seed % 2 == 0:
        raise ValueError(f"seed is {seed}; figures are measured on odd ones")
    rng = np.random.default_rng(seed)
    part = preset.simulate(preset, JUDGED_WINDOWS, rng)
    seen = encoder.encode(part.windows_NCHW)
    told = class_scores(seen.mean, part.class_N)
    if encoder.card.classes:
        told |= class_agreement(seen, part.class_N)
    told |= angle_scores(preset, seen, part)
    told |= shift_scores(preset, seen, part)
    told |= novelty_scores(encoder, seen, part, rng)
    if preset.series is not None:
        shown = preset.series(preset, rng)
        seen = encoder.encode(shown.windows_NCHW)
        told["invariance"] = invariance(seen.mean, shown)
        told |= _covers(errors_between_turns(preset.symmetry, seen, shown), "turn_")
    return told | dict(preset.judge(preset, encoder) if preset.judge is not None else {})


def class_scores(mean_NZ: NDArray[np.float32], class_N: Int64) -> dict[str, float]:
    """Compare latents with classes, of windows that have one; needs two classes."""
    known = class_N >= 0
    mean_NZ, class_N = mean_NZ[known], class_N[known]
    kinds = len(np.unique(class_N))
    if kinds < 2:
        return {}
    ari = adjusted_rand_index(class_N, mixture_groups(mean_NZ, kinds))
    return {"ari": ari, "knn": nearest_agree(mean_NZ, class_N)}


def class_agreement(seen: Encoded, class_N: Int64) -> dict[str, float]:
    """Compare the most probable class of windows that have one with theirs."""
    known = class_N >= 0
    said, true = seen.class_probability.argmax(1)[known], class_N[known]
    return {"class_ari": adjusted_rand_index(true, said), "class_accuracy": float((said == true).mean())}


def nearest_agree(mean_NZ: NDArray[np.float32], class_N: Int64) -> float:
    """How often the majority of a latent's nearest others, each latent of unit sd, has its class."""
    scaled = mean_NZ / np.maximum(mean_NZ.std(0), 1e-12)
    _, near = cKDTree(scaled).query(scaled, k=NEIGHBOURS + 1)
    votes = np.eye(class_N.max() + 1)[class_N[near[:, 1:]]].sum(1)
    return float((votes.argmax(1) == class_N).mean())


def angle_errors(symmetry: tuple[int, ...], seen: Encoded, part: Labelled) -> dict[int, AngleErrors]:
    """Compare angles with the truth, by class: turns that leave a class as it is are no errors.

    Nor is one offset for each group of a class: the model's upright is any direction, another one for each
    component of its mixture.
    """
    errors = {}
    for kind, folds in enumerate(symmetry):
        known = (part.class_N == kind) & np.isfinite(part.angle_N)
        groups = [chosen for chosen in _groups(known, seen) if chosen.sum() >= LEAST_OF_A_GROUP]
        if folds == 0 or not groups:
            continue
        turned = np.exp(1j * folds * (seen.angle_rad - part.angle_N))
        away = np.concatenate([turned[chosen] / _direction(turned[chosen]) for chosen in groups])
        sd_rad = np.concatenate([seen.angle_sd_rad[chosen] for chosen in groups]).astype(np.float64)
        errors[kind] = AngleErrors(np.angle(away) / folds, sd_rad, float(away.mean().real))
    return errors


def _groups(known: NDArray[np.bool_], seen: Encoded) -> list[NDArray[np.bool_]]:
    """Part windows by the component that they most probably belong to; one group without a mixture."""
    if not seen.class_probability.shape[1]:
        return [known]
    component = seen.class_probability.argmax(1)
    return [known & (component == one) for one in np.unique(component[known])]


def _direction(turned: NDArray[np.complex128]) -> complex:
    mean = complex(turned.mean())
    return mean / max(abs(mean), 1e-12)


def angle_scores(preset: Preset, seen: Encoded, part: Labelled) -> dict[str, float]:
    """Say how well angles follow the truth, and whether their sds are true."""
    errors = angle_errors(preset.symmetry, seen, part)
    if not errors:
        return {}
    follow = [one.concentration for one in errors.values()]
    in_sd = np.concatenate([np.abs(one.error_rad) / one.sd_rad for one in errors.values()])
    return {"r_mean": float(np.mean(follow)), "r_min": float(min(follow))} | _covers(in_sd)


def _covers(in_sd: Float64, of: str = "") -> dict[str, float]:
    """Say how many errors, in sds, are within the intervals."""
    return {f"{of}{name}": float((in_sd < sds).mean()) for name, sds in COVERS.items()} if len(in_sd) else {}


def errors_between_turns(symmetry: tuple[int, ...], seen: Encoded, shown: Labelled) -> Float64:
    """How wrong the turn between two views of the same place is, in sds of the difference, shape ``(m,)``."""
    folds_N = np.where(shown.class_N < 0, 0, np.array(symmetry)[shown.class_N])
    known = np.flatnonzero((folds_N > 0) & np.isfinite(shown.angle_N) & (shown.same_N >= 0))
    order = known[np.argsort(shown.same_N[known], kind="stable")]
    first, second = order[:-1], order[1:]
    pairs = shown.same_N[first] == shown.same_N[second]
    first, second = first[pairs], second[pairs]
    away = seen.angle_rad - shown.angle_N
    folds = folds_N[first]
    error = np.angle(np.exp(1j * folds * (away[second] - away[first]))) / folds
    in_sd: Float64 = np.abs(error) / np.hypot(seen.angle_sd_rad[first], seen.angle_sd_rad[second])
    return in_sd


def shift_scores(preset: Preset, seen: Encoded, part: Labelled) -> dict[str, float]:
    """Compare shifts with the truth, each class up to the offset of what the model draws for it."""
    known = np.isfinite(part.shift_N2).all(1)
    if not known.any() or not preset.training.architecture.shift:
        return {}
    pixel_nm = (preset.window_nm or preset.window_per_nm) / preset.window_px
    error_nm = seen.offset_px[known, ::-1] * pixel_nm - part.shift_N2[known]
    return {"shift_rms_nm": float(np.sqrt((error_nm**2).mean()))}


def novelty_scores(
    encoder: Encoder, seen: Encoded, part: Labelled, rng: np.random.Generator
) -> dict[str, float]:
    """Count novel windows, of the preset's kind and of noise with the same mean and sd."""
    windows = part.windows_NCHW[:300]
    noise = rng.normal(windows.mean(), windows.std(), windows.shape).astype(np.float32)
    return {
        "novel_share": float((seen.novelty > 3).mean()),
        "novel_noise_share": float((encoder.encode(noise).novelty > 3).mean()),
    }


def invariance(mean_NZ: NDArray[np.float32], shown: Labelled) -> float:
    """Mean variance of a place's latents over its turns, by the variance of the classes' means."""
    within = []
    for place in np.unique(shown.same_N[shown.same_N >= 0]):
        turns = mean_NZ[shown.same_N == place]
        if len(turns) >= 6:
            within.append(turns.var(0).sum())
    known = shown.class_N >= 0
    kinds = np.unique(shown.class_N[known])
    middles = np.array([mean_NZ[known & (shown.class_N == kind)].mean(0) for kind in kinds])
    return float(np.mean(within) / max(middles.var(0).sum(), 1e-12)) if within else math.nan
