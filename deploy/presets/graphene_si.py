"""Graphene with silicon dopants, vacancies and a grain boundary, in HAADF and MAADF."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deploy.presets.groups import drawn_groups
from deploy.presets.preset import Labelled, Preset, drawn, joined
from deploy.presets.stem_windows import (
    PER_FRAME,
    Columns,
    Microscope,
    directions,
    picture,
    turned_series,
    windows_beside,
    windows_found,
)
from models.encoder import Encoder
from models.rvae import RVAEConfig
from models.training import TrainingConfig
from simulators.scoring import adjusted_rand_index
from simulators.specimen import (
    FOUR_FOLD_SI,
    SITE_NAMES,
    THREE_FOLD_SI,
    Specimen,
    SpecimenConfig,
    grow,
)
from simulators.stem import StemConfig, StemInstrument, column_heights
from streamer.stage import Rejected

CARBON_SITE = 0
SILICON_SITES = (THREE_FOLD_SI, FOUR_FOLD_SI)
SYMMETRY = (3, 3, 2, 1, 1, 0)  # rings of five and seven come in too many kinds for one direction
HELD_OUT_SEEDS = (1, 3, 5)
RIM_NM = 1.0


def varied_specimen(rng: np.random.Generator) -> SpecimenConfig:
    """Draw a heavily doped sheet."""
    return SpecimenConfig(
        orientation_deg=float(rng.uniform(0, 360)),
        three_fold_si_per_nm2=float(rng.uniform(0.1, 0.45)),
        four_fold_si_per_nm2=float(rng.uniform(0.1, 0.3)),
        vacancies_per_nm2=float(rng.uniform(0.0, 0.15)),
        defect_distance_nm=0.7,
        tilt_deg=float(rng.uniform(-30, 30)),
        boundary_distance_nm=float(rng.uniform(-1, 1)),
        boundary_direction_deg=float(rng.uniform(0, 360)),
    )


def varied_microscope(rng: np.random.Generator) -> Microscope:
    """Draw a microscope, wide around what the encoder will meet."""
    return Microscope(
        detector="HAADF" if rng.random() < 0.75 else "MAADF",
        size_px=int(rng.choice([256, 384, 512])),
        pixel_nm=float(rng.uniform(0.011, 0.022)),
        counts=float(np.exp(rng.uniform(np.log(20), np.log(200)))),
        background_counts=float(rng.uniform(0, 10)),
        probe_sigma_nm=float(0.05 * rng.uniform(0.85, 1.15)),
    )


def columns_of(specimen: Specimen, detector: str) -> Columns:
    """Take every atom as one spot; carbon has height 1."""
    config = StemConfig(detector="MAADF" if detector == "MAADF" else "HAADF", carbon_counts=1.0)
    heights = column_heights(config, specimen.numbers)
    folds = np.array(SYMMETRY)[specimen.site_class]
    angle_N = directions(specimen.positions_nm, heights, folds, reach_nm=0.35, width_nm=0.12)
    return Columns(specimen.positions_nm, heights, specimen.site_class, angle_N, np.ones(len(heights), bool))


def simulate(preset: Preset, count: int, rng: np.random.Generator) -> Labelled:
    """Gather windows until ``count``; perfect carbon is thinned out to a third of them.

    In a field one atom in a hundred is silicon: as many windows of carbon as there are would be all
    that is learnt.
    """
    rare: list[Labelled] = []
    common: list[Labelled] = []
    while sum(len(part.class_N) for part in rare) < count * 2 // 3:
        microscope = varied_microscope(rng)
        far = microscope.size_px * microscope.pixel_nm / 2 + RIM_NM
        specimen = grow(varied_specimen(rng), (-far, -far), (far, far), rng)
        columns = columns_of(specimen, microscope.detector)
        frame, path = picture(columns, microscope, rng)
        try:
            part = windows_beside(frame, path, columns, preset, rng)
        except Rejected:  # too few counts for this pixel size: no windows to learn from
            continue
        is_common = part.class_N == CARBON_SITE
        rare.append(drawn(part.only(~is_common), PER_FRAME, rng))
        common.append(drawn(part.only(is_common), PER_FRAME, rng))
    return joined([drawn(joined(rare), count * 2 // 3, rng), drawn(joined(common), count // 3, rng)])


def series(preset: Preset, rng: np.random.Generator) -> Labelled:
    """Turn the scan over one sheet as an operator meets it."""
    microscope = Microscope(
        detector="HAADF",
        size_px=340,
        pixel_nm=8.0 / 512,
        counts=60.0,
        background_counts=3.0,
        probe_sigma_nm=0.05,
    )
    # The turned square must stay inside the sheet: half its diagonal.
    far = microscope.size_px * microscope.pixel_nm / math.sqrt(2) + RIM_NM
    columns = columns_of(grow(SpecimenConfig(), (-far, -far), (far, far), rng), microscope.detector)
    return turned_series(columns, microscope, preset, rng)


def default_frames(preset: Preset, seed: int) -> Labelled:
    """See what the instrument shows that ``probeloop run`` starts, with another seed."""
    instrument = StemInstrument(StemConfig(seed=seed), started_at_s=0.0)
    frame, path = instrument.acquire(), instrument.last_path
    assert path is not None
    return windows_found(frame, path, columns_of(instrument.specimen, "HAADF"), preset)


def site_ari(encoder: Encoder, latents_NZ: NDArray[np.float32], class_N: NDArray[np.int64]) -> float:
    """Agreement of two groups of latents with silicon against carbon: 1 for the same, 0 for chance."""
    is_silicon = np.isin(class_N, SILICON_SITES).astype(np.int64)
    return adjusted_rand_index(is_silicon, drawn_groups(encoder, latents_NZ, 2))


def judge(preset: Preset, encoder: Encoder) -> dict[str, float]:
    """Part default frames into two groups without labels; the agent's example needs silicon apart."""
    frames = [default_frames(preset, seed) for seed in HELD_OUT_SEEDS]
    seen = [encoder.encode(part.windows_NCHW) for part in frames]
    novelty = np.concatenate([one.novelty for one in seen])
    aris = [site_ari(encoder, one.mean, part.class_N) for one, part in zip(seen, frames, strict=True)]
    return {"site_ari": min(aris), "novel_share_default": float((novelty > 3).mean())}


PRESET = Preset(
    name="graphene-si",
    shows="graphene with three- and four-fold silicon, vacancies and a grain boundary",
    channels=("HAADF",),
    window_nm=0.6,
    window_px=24,
    classes=SITE_NAMES,
    symmetry=SYMMETRY,
    # Agents and operators group by how far apart latents lie: silicon must lie far from carbon.
    training=TrainingConfig(architecture=RVAEConfig(latent_dim=3, stress=30.0)),
    windows=9000,
    data=(
        "{count} windows of simulated graphene with three- and four-fold silicon, vacancies and a grain "
        "boundary; 20 to 200 counts on a carbon, probe sigma 0.0425 to 0.0575 nm, pixels of 0.011 to "
        "0.022 nm, HAADF and MAADF; cut 0.01 nm (sd) off the atoms; a third is perfect carbon. No label is "
        "used but to thin out perfect carbon"
    ),
    simulate=simulate,
    series=series,
    judge=judge,
)
