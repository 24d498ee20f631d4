"""Pictures of encoders: what each has learnt, and a recorded frame as it sees it.

``probeloop pictures FOLDER`` draws the manifold of every shipped model, or of others; with a recording, one
of its frames with everything that was found coloured by what the encoder says of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deploy import figures
from deploy.latent_figures import draw_angles
from models import weights as shipped_weights
from models.checkpoint import load
from models.encoder import Encoder
from simulators.formats import RecordingError
from simulators.recordings import read_recording
from streamer.messages import Frame, Latents
from streamer.pipeline import Pipeline, PipelineConfig
from streamer.stages.correct_distortion import CorrectConfig
from streamer.stages.encode import EncodeConfig

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

TILES = 9
LEAST_SHARE = 0.005  # a rarer component of the prior is not in use
MOST_COMPONENTS = 9
DPI = 90


def draw_manifolds(folder: Path, weights: Sequence[Path] = ()) -> list[Path]:
    """Draw what each encoder decodes over the plane of its first two latents.

    Parameters
    ----------
    folder
        Where the pictures go, as PNG, each by the name on its model's card; it is made.
    weights
        Checkpoints; without any, those that are shipped.

    Returns
    -------
    paths
        Of the pictures.

    Raises
    ------
    models.checkpoint.CheckpointError
        If a file is no encoder; the text names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for path in weights or shipped_encoders():
        encoder = Encoder.load(path, device="cpu")
        paths.append(folder / f"{encoder.card.name}.png")
        _save(learnt_figure(encoder, prior_of(load(path)[0], encoder.card.latent_dim)), paths[-1])
    return paths


def shipped_encoders() -> list[Path]:
    """List the encoders that are shipped, the finder of columns left out."""
    (folder,) = shipped_weights.__path__
    return sorted(path for path in Path(folder).glob("*.safetensors") if load(path)[1].family != "finder")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prior:
    """The mixture of normals that a model has learnt its contents to be.

    Attributes
    ----------
    share
        Of each component, shape ``(m,)``.
    mean, sd
        Shape ``(m, z)``.
    """

    share: Float64
    mean: Float64
    sd: Float64


def prior_of(tensors: Mapping[str, Any], latent_dim: int) -> Prior:
    """Read the prior from a model's tensors; one standard normal where it has no mixture."""
    if "mixture_mean_MZ" not in tensors:
        return Prior(share=np.ones(1), mean=np.zeros((1, latent_dim)), sd=np.ones((1, latent_dim)))
    logit = tensors["mixture_logit_M"].double().numpy()
    share = np.exp(logit - logit.max())
    used = share / share.sum() > LEAST_SHARE
    return Prior(
        share=share[used] / share[used].sum(),
        mean=tensors["mixture_mean_MZ"].double().numpy()[used],
        sd=np.exp(tensors["mixture_log_sd_MZ"].double().numpy()[used]),
    )


def span(prior: Prior) -> tuple[Float64, Float64, Float32]:
    """Lay a grid over the first two latents, two sds beyond every component; others at their mean.

    Returns
    -------
    first, second
        Values along the grid; ``second`` is one value where there is one latent.
    latents
        Shape ``(len(second) · len(first), z)``, float32.
    """
    low, high = (prior.mean - 2 * prior.sd).min(axis=0), (prior.mean + 2 * prior.sd).max(axis=0)
    first = np.linspace(low[0], high[0], TILES)
    second = np.linspace(low[1], high[1], TILES) if len(low) > 1 else np.zeros(1)
    grid = np.tile(prior.share @ prior.mean, (len(second) * TILES, 1)).astype(np.float32)
    grid[:, 0] = np.tile(first, len(second))
    if len(low) > 1:
        grid[:, 1] = np.repeat(second, TILES)
    return first, second, grid


def learnt_figure(encoder: Encoder, prior: Prior) -> Figure:
    """Draw the manifold, a panel a channel, and below what each component of the prior looks like."""
    first, second, grid = span(prior)
    tiles = encoder.decode(grid)
    # A response is learnt as its part in phase and its amplitude: a phase itself jumps.
    is_response = encoder.card.normalisation == "response"
    channels = ("response in phase", "amplitude") if is_response else encoder.card.channels
    with mpl.rc_context(figures.STYLE):
        has_parts = len(prior.share) > 1
        figure = figures.new_figure(4.8 * len(channels), 6.2 if has_parts else 5.0)
        heights = (4.4, 1.2) if has_parts else (1,)
        rows: Any = figure.subplots(len(heights), len(channels), height_ratios=heights, squeeze=False)
        for place, name in enumerate(channels):
            panel = tiles[:, place].reshape(len(second), len(first), *tiles.shape[2:])
            figures.draw_manifold(rows[0, place], panel, first, second)
            rows[0, place].set_title(name if place else f"{encoder.card.name}: {name}")
            if has_parts:
                _components(rows[1, place], encoder, prior, place)
        return figure


def _components(axes: Any, encoder: Encoder, prior: Prior, channel: int) -> None:
    order = np.argsort(-prior.share)[:MOST_COMPONENTS]
    drawn = encoder.decode(prior.mean[order].astype(np.float32))[:, channel]
    axes.imshow(figures.mosaic(drawn[None]), cmap="cividis", interpolation="nearest")
    edge = drawn.shape[-1] + 1
    names = [f"{100 * prior.share[one]:.0f} %" for one in order]
    axes.set_xticks([edge * (place + 0.5) - 1 for place in range(len(order))], names, fontsize=7)
    axes.set(yticks=[], title="contents that are learnt to be frequent, and their share")
    axes.title.set_fontsize(8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_frame(
    path: Path,
    recording: Path,
    number: int = 0,
    weights: Path | None = None,
    pixel_size_nm: float | None = None,
) -> Path:
    """Draw a frame of a recording with what was found in it, coloured by latents and angle.

    Parameters
    ----------
    path
        Where the picture goes, as PNG.
    recording
        Any that ``probeloop replay`` opens.
    number
        Which of its frames, from 0.
    weights
        A checkpoint; None takes the one that a session would.
    pixel_size_nm
        Where the recording says none.

    Raises
    ------
    ValueError
        If the recording cannot be read, has no such frame, or a stage refuses it; the text says why.
    """
    frame = _frame_of(recording, number, pixel_size_nm)
    latents, image = _seen(frame, weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(on_the_frame(image, latents), path)
    return path


def _frame_of(recording: Path, number: int, pixel_size_nm: float | None) -> Frame:
    try:
        recorded = read_recording(recording, pixel_size_nm)
        frame = next(islice((one for one in recorded if isinstance(one, Frame)), number, None), None)
    except RecordingError as error:
        raise ValueError(str(error)) from None
    if frame is None:
        raise ValueError(f"{recording} has no frame {number}; it counts from 0")
    return frame


class _Reasons:
    """Takes no times, and keeps the reason of a rejection."""

    reason = ""

    def stage_took(self, stage: str, seconds: float) -> None:
        pass

    def stage_rejected(self, stage: str, reason: str) -> None:
        self.reason = f"{stage}: {reason}"


def _seen(frame: Frame, weights: Path | None) -> tuple[Latents, Float32]:
    config = PipelineConfig(
        correct=CorrectConfig(mode="off"), encode=EncodeConfig(weights=str(weights) if weights else "")
    )
    reasons = _Reasons()
    processed = Pipeline.build(config).process(frame, reasons)
    if processed is None or processed.corrected is None:
        raise ValueError(f"nothing is seen in frame {frame.number}: {reasons.reason}")
    return processed.latents, processed.corrected.image[0]


def on_the_frame(image: Float32, latents: Latents) -> Figure:
    """Draw a frame three times, smoothed for the eye: windows coloured by either latent, and by angle."""
    image = figures.smoothed(image, latents.positions_px)
    with mpl.rc_context(figures.STYLE):
        figure = figures.new_figure(11.0, 3.9)
        panels: Any = figure.subplots(1, 3)
        for number in range(min(2, latents.mean.shape[1])):
            figures.show_image(
                panels[number], image, latents.geometry, f"latent {number + 1}", brightness=0.6
            )
            figures.draw_coloured_rings(
                figure, panels[number], latents.positions_px, latents.mean[:, number], image.shape[1], 3.2
            )
        figures.show_image(panels[-1], image, latents.geometry, "angle", brightness=0.6)
        draw_angles(figure, panels[-1], latents, symmetry=1)
        return figure


def _save(figure: Figure, path: Path) -> None:
    # no date and no version in it: the same picture is the same file
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
