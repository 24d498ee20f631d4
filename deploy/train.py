"""``probeloop train``: make an encoder from simulated frames, as the live service will see them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from models.checkpoint import ModelCard, save
from models.encoder import Encoder, NoveltyModel, calibrated, together
from models.spatial_rvae import SpatialRVAE
from models.training import Epoch, TrainingConfig, evaluate, split, train
from simulators.counting import poisson
from simulators.scan_distortion import ScanDistortion
from simulators.scoring import adjusted_rand_index
from simulators.specimen import BESIDE_SI, FOUR_FOLD_SI, THREE_FOLD_SI, SpecimenConfig
from simulators.stem import StemConfig, StemInstrument, add_columns, column_heights
from streamer.messages import Float32, Frame
from streamer.stage import Rejected
from streamer.stages.cut_windows import CutWindows
from streamer.stages.find_atoms import FindAtoms

app = typer.Typer(help="Train what the service has learnt, from simulated frames.", no_args_is_help=True)

MATCH_NM = 0.05
JITTER_NM = 0.01
CARBON_SITE = 0
SILICON_SITES = (THREE_FOLD_SI, FOUR_FOLD_SI)
TURNS = 12
HELD_OUT_SEEDS = (1, 3, 5)
WINDOW_PX = 24
DATA = (
    "{count} windows of simulated graphene with three- and four-fold silicon, vacancies and a grain "
    "boundary; 20 to 200 counts on a carbon, probe sigma 0.0425 to 0.0575 nm, pixels of 0.011 to 0.022 nm, "
    "HAADF and MAADF; cut 0.01 nm (sd) off the atoms; a third is perfect carbon. No label is used but to "
    "thin out perfect carbon"
)


class Labelled(NamedTuple):
    """Windows and the true site of each: the index into ``SITE_NAMES``."""

    windows_NCHW: Float32
    site_N: NDArray[np.int64]


@app.callback()
def _group() -> None:
    """Keep ``rvae`` a command of its own, so that others can stand beside it."""


def varied_microscope(rng: np.random.Generator) -> StemConfig:
    """Draw a microscope and a heavily doped specimen, wide around what the encoder will meet."""
    specimen = SpecimenConfig(
        orientation_deg=float(rng.uniform(0, 360)),
        three_fold_si_per_nm2=float(rng.uniform(0.1, 0.45)),
        four_fold_si_per_nm2=float(rng.uniform(0.1, 0.3)),
        vacancies_per_nm2=float(rng.uniform(0.0, 0.15)),
        defect_distance_nm=0.7,
        tilt_deg=float(rng.uniform(-30, 30)),
        boundary_distance_nm=float(rng.uniform(-1, 1)),
        boundary_direction_deg=float(rng.uniform(0, 360)),
    )
    size = int(rng.choice([256, 384, 512]))
    pixel_nm = float(rng.uniform(0.011, 0.022))
    return StemConfig(
        rows=size,
        cols=size,
        field_of_view_nm=size * pixel_nm,
        detector="HAADF" if rng.random() < 0.75 else "MAADF",
        carbon_counts=float(np.exp(rng.uniform(np.log(20), np.log(200)))),
        background_counts=float(rng.uniform(0, 10)),
        probe_sigma_nm=float(0.05 * rng.uniform(0.85, 1.15)),
        seed=int(rng.integers(2**31)),
        specimen=specimen,
    )


def windows_of(
    frame: Frame,
    instrument: StemInstrument,
    window_nm: float,
    window_px: int,
    jitter: np.random.Generator | None = None,
) -> Labelled:
    """Find, cut and normalise as live; name each window by the true site that it shows.

    With ``jitter`` the windows are cut up to a few hundredths of a nanometre beside their atoms: the
    finder is so exact that an encoder else never sees a shift, and cannot tell one.
    """
    atoms = FindAtoms().process(frame)
    if jitter is not None:
        off_px = jitter.normal(0.0, JITTER_NM, atoms.positions_px.shape) / frame.geometry.pixel_size_nm
        beside = (atoms.positions_px + off_px).astype(np.float32)
        atoms = msgspec.structs.replace(atoms, positions_px=beside)
    patches = CutWindows(window_nm, window_px).process(atoms)
    truth = instrument.truth()
    seen_nm = truth["positions_nm"] + truth["drift_nm"][-1]
    distance, nearest = cKDTree(seen_nm).query(patches.positions_nm)
    known = distance < MATCH_NM
    return Labelled(patches.windows[known], truth["site_class"][nearest[known]])


def simulate(count: int, window_nm: float, window_px: int, rng: np.random.Generator) -> Labelled:
    """Gather windows until ``count``; perfect carbon is thinned out to a third of them.

    In a field one atom in a hundred is silicon: as many windows of carbon as there are would be all
    that is learnt.
    """
    rare: list[Labelled] = []
    common: list[Labelled] = []
    while sum(len(part.site_N) for part in rare) < count * 2 // 3:
        instrument = StemInstrument(varied_microscope(rng), started_at_s=0.0)
        try:
            part = windows_of(instrument.acquire(), instrument, window_nm, window_px, rng)
        except Rejected:  # too few counts for this pixel size: no windows to learn from
            continue
        is_common = part.site_N == CARBON_SITE
        rare.append(Labelled(part.windows_NCHW[~is_common], part.site_N[~is_common]))
        common.append(Labelled(part.windows_NCHW[is_common], part.site_N[is_common]))
    return joined([drawn(joined(rare), count * 2 // 3, rng), drawn(joined(common), count // 3, rng)])


def joined(parts: list[Labelled]) -> Labelled:
    """Put the windows of many frames together."""
    return Labelled(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def drawn(part: Labelled, count: int, rng: np.random.Generator) -> Labelled:
    """Draw ``count`` windows without repeats, or all where there are fewer."""
    order = rng.permutation(len(part.site_N))[:count]
    return Labelled(part.windows_NCHW[order], part.site_N[order])


# -- how well it does, on specimens that training never saw ------------------------------------------


def two_groups(latents_NZ: Float32) -> NDArray[np.int64]:
    """Part latents into two by 2-means, the best of ten starts; no label is looked at."""
    best: tuple[float, NDArray[np.int64]] | None = None
    for start in range(10):
        centers, group = kmeans2(latents_NZ, 2, minit="++", rng=np.random.default_rng(start))
        spread = float(((latents_NZ - centers[group]) ** 2).sum())
        if best is None or spread < best[0]:
            best = spread, group.astype(np.int64)
    assert best is not None
    return best[1]


def site_ari(encoder: Encoder, part: Labelled) -> float:
    """Agreement of the two groups with silicon against carbon: 1 for the same, 0 for chance."""
    is_silicon = np.isin(part.site_N, SILICON_SITES).astype(np.int64)
    return adjusted_rand_index(is_silicon, two_groups(encoder.encode(part.windows_NCHW).mean))


def turned_frames(instrument: StemInstrument, seed: int) -> list[Frame]:
    """Scan one specimen at ``TURNS`` scan rotations, with fresh noise and distortion each time."""
    config, specimen, rng = instrument.config, instrument.specimen, np.random.default_rng(seed)
    heights = column_heights(config, specimen.numbers)
    frames = []
    for number in range(TURNS):
        # The turned square must stay inside the sheet: its diagonal fits the unturned edge.
        geometry = msgspec.structs.replace(
            config.geometry,
            shape=(config.rows * 2 // 3, config.cols * 2 // 3),
            field_of_view_nm=(config.field_of_view_nm * 2 / 3,) * 2,
            rotation_rad=2 * math.pi * number / TURNS,
        )
        still = msgspec.structs.replace(config.distortion, drift_rate_nm_per_s=(0.0, 0.0))
        path = ScanDistortion(still, rng).scan(geometry, config.dwell_time_us)
        expected = np.full(geometry.shape, config.background_counts, dtype=np.float32)
        add_columns(expected, specimen.positions_nm, heights, config.probe_sigma_nm, path)
        frames.append(
            Frame(
                session="",
                number=number,
                acquired_at_s=path.ended_s,
                image=poisson(expected, rng)[None],
                channels=(config.detector,),
                geometry=geometry,
                dwell_time_us=config.dwell_time_us,
            )
        )
    return frames


class Turned(NamedTuple):
    """How the encoder takes a turning scan.

    Attributes
    ----------
    invariance
        Mean variance of an atom's latents over the turns, by the variance of the sites' means; 0 is best.
    angle_r
        How well the angle of a carbon beside silicon follows the turns: |mean of exp(i error)|; 1 is best.
    """

    invariance: float
    angle_r: float


def turned_scores(encoder: Encoder, instrument: StemInstrument, seed: int) -> Turned:
    """Encode each atom at every turn and compare what is said of it."""
    specimen = instrument.specimen
    cut = CutWindows(encoder.card.window_nm, encoder.card.window_px)
    mean = np.full((TURNS, len(specimen.numbers), encoder.card.latent_dim), np.nan)
    direction = np.full((TURNS, len(specimen.numbers)), np.nan, dtype=np.complex128)
    for turn, frame in enumerate(turned_frames(instrument, seed)):
        patches = cut.process(FindAtoms().process(frame))
        distance, nearest = cKDTree(specimen.positions_nm).query(patches.positions_nm)
        known = distance < MATCH_NM
        seen = encoder.encode(patches.windows)
        mean[turn, nearest[known]] = seen.mean[known]
        upright = seen.angle_rad[known] + frame.geometry.rotation_rad
        direction[turn, nearest[known]] = np.exp(1j * upright)
    often = np.isfinite(mean[:, :, 0]).sum(0) >= TURNS * 3 // 4
    sites = specimen.site_class[often]
    within = np.nanvar(mean[:, often], axis=0).sum(1)
    middle = np.nanmean(mean[:, often], axis=0)
    between = np.array([middle[sites == site].mean(0) for site in np.unique(sites)]).var(0).sum()
    beside = often & (specimen.site_class == BESIDE_SI)
    return Turned(
        float(within.mean() / between),
        float(np.abs(np.nanmean(direction[:, beside], axis=0)).mean()),
    )


def scores(encoder: Encoder, model: SpatialRVAE, held_out_NCHW: torch.Tensor) -> dict[str, float]:
    """Judge the encoder on default microscopes of odd seeds and the bound on held-out windows."""
    terms = evaluate(model, held_out_NCHW)
    card = encoder.card
    frames = []
    for seed in HELD_OUT_SEEDS:
        instrument = StemInstrument(StemConfig(seed=seed), started_at_s=0.0)
        frames.append(windows_of(instrument.acquire(), instrument, card.window_nm, card.window_px))
    turned = turned_scores(encoder, StemInstrument(StemConfig(seed=7), started_at_s=0.0), seed=7)
    novelty = np.concatenate([encoder.encode(part.windows_NCHW).novelty for part in frames])
    told = {
        "site_ari": min(site_ari(encoder, part) for part in frames),
        "invariance": turned.invariance,
        "angle_r_beside_si": turned.angle_r,
        "novel_share": float((novelty > 3).mean()),
        "held_out_nats": float(terms.negative_elbo().mean()),
        "kl_angle_nats": float(terms.kl_angle_N.mean()),
        "kl_shift_nats": float(terms.kl_shift_N.mean()),
    }
    kl_content = terms.kl_content_NZ.mean(0).tolist()
    return told | {f"kl_content_{latent}_nats": value for latent, value in enumerate(kl_content)}


# -- the command -------------------------------------------------------------------------------------


class _Bar:
    """Draws the epochs as they come."""

    def __init__(self, progress: Progress, config: TrainingConfig) -> None:
        trials = min(config.trial_epochs, config.epochs)
        self._progress = progress
        self._task = progress.add_task(
            "training", total=config.epochs + (config.restarts - 1) * trials, said=""
        )

    def __call__(self, epoch: Epoch) -> None:
        said = f"loss {epoch.trained:8.1f}  held out {epoch.held_out:8.1f} nats"
        self._progress.update(self._task, advance=1, said=said)


def train_rvae(
    config: TrainingConfig, *, count: int, window_nm: float, window_px: int, made_by: str, console: Console
) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """Simulate, train and judge; the tensors and the card of a checkpoint."""
    with console.status(f"simulating {count} windows"):
        part = simulate(count, window_nm, window_px, np.random.default_rng(config.seed))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        model, _ = train(part.windows_NCHW, config, _Bar(progress, config))
    trained_on, held_out = split(torch.from_numpy(part.windows_NCHW), config)
    novelty = NoveltyModel.fit(trained_on)
    center, unit = calibrated(novelty, held_out)
    card = ModelCard(
        name="graphene-si",
        family="spatial",
        channels=("HAADF",),
        window_nm=window_nm,
        window_px=window_px,
        architecture=msgspec.to_builtins(config.architecture),
        calibration={"novelty_center": list(center), "novelty_unit": list(unit)},
        data=DATA.format(count=len(part.site_N)),
        made_by=made_by,
        seed=config.seed,
    )
    with console.status("judging it on specimens that it has not seen"):
        encoder = Encoder(model, novelty, card, "", torch.device("cpu"))
        judged = scores(encoder, model, held_out)
    return together(model, novelty), msgspec.structs.replace(card, scores=judged)


@app.command()
def rvae(
    output: Annotated[Path, typer.Option(help="Where the weights go; ends in .safetensors.")],
    preset: Annotated[
        Literal["graphene-si"], typer.Option(help="What is simulated: graphene with silicon dopants.")
    ] = "graphene-si",
    seed: Annotated[int, typer.Option(help="Of specimens, noise and first weights.", min=0)] = 0,
    epochs: Annotated[int, typer.Option(help="How often each window is looked at.", min=1)] = 24,
    windows: Annotated[int, typer.Option(help="How many windows are simulated.", min=300)] = 9000,
    window_nm: Annotated[float, typer.Option(help="Edge of a window on the specimen.", min=0.1)] = 0.6,
) -> None:
    """Train the encoder of atom neighbourhoods (rVAE) on simulated frames: a few minutes on two cores."""
    if output.suffix != ".safetensors":
        raise typer.BadParameter(f"{output} does not end in .safetensors", param_hint="--output")
    torch.set_num_threads(1)  # the same seed gives the same weights, and two threads gain nothing here
    console = Console()
    started_s = time.monotonic()
    made_by = (
        f"probeloop train rvae --preset {preset} --seed {seed} --epochs {epochs} --windows {windows} "
        f"--window-nm {window_nm:g} --output {output}"
    )
    tensors, card = train_rvae(
        TrainingConfig(seed=seed, epochs=epochs),
        count=windows,
        window_nm=window_nm,
        window_px=WINDOW_PX,
        made_by=made_by,
        console=console,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    save(output, tensors, card)
    table = Table("score", "value", title=f"{output} after {time.monotonic() - started_s:.0f} s")
    for name, value in card.scores.items():
        table.add_row(name, f"{value:.3f}")
    console.print(table)
