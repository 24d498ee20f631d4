"""The rVAE: what a window shows, apart from how it is turned and where it sits.

The family of Kalinin, Ziatdinov et al. (arXiv:2006.10267, 2010.09196) after spatial-VAE (Bepler et al.,
arXiv:1909.11663): an encoder MLP says content, angle and shift of a window; a spatial decoder draws the
content on the turned and shifted coordinate grid. ``rotation=True, shift=True`` is the rVAE with shift,
``shift=False`` the rVAE, both False a plain VAE. What differs from the published one differs because
the published one fails there:

* The angle lives on the circle: a direction ``(cos, sin)`` and a wrapped normal around it, against a
  uniform prior. A scalar angle must be cut somewhere, and an MLP fails at the cut.
* The encoder looks at the four exact quarter turns of a window and reads the one whose remaining turn
  is the easiest. Training takes the one that the decoder likes best, which frees it from the local
  optima of the angle; a small head learns to tell it from the window alone.
* The scale of the noise is learnt: with a fixed unit variance, raw windows carry too little likelihood
  to pay for a code, and the posterior collapses onto the prior.
* The decoder says the heights of a grid of Gaussian bumps once for a window and reads them at the
  turned and shifted pixels: a sixth of the training time of an MLP at every pixel (3 against 18 s an
  epoch of 5,100 windows), and a lower held-out bound.
* The atom in the middle matters most: the likelihood of a pixel is weighted by a Gaussian around the
  middle, and latents are drawn as far apart as the middles of the pictures that they decode to differ
  (the stress of multidimensional scaling). Else what lies at the rim takes over the latents.
* The encoder reads 2 × 2 pixel means, which a probe wider than two pixels loses nothing by.

Axes: N window, C channel, H row, W column, P pixel, K quarter turn, F feature, Z content.
Positions are ``(x, y)`` = (column, row) here, from -1 to 1 over the window; a positive angle turns the
content from x towards y, clockwise on the screen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.layers import linear, usable_scale
from models.posterior import Posterior, Terms

QUARTER = math.pi / 2
_MAX_LOG_SD = 6.0
_REACH = 1.2  # half windows that the bumps cover: the disc in a window and a shift of four prior sd


class Reading(NamedTuple):
    """What the encoder says of each window: independent normals, wrapped for the angle.

    Attributes
    ----------
    mean_NZ, log_sd_NZ
        Content; the prior is the standard normal.
    angle_N, angle_log_sd_N
        Turn of the content in rad; the prior is uniform on the circle.
    shift_N2, shift_log_sd_N2
        Shift ``(x, y)`` of the content in half windows.
    """

    mean_NZ: Tensor
    log_sd_NZ: Tensor
    angle_N: Tensor
    angle_log_sd_N: Tensor
    shift_N2: Tensor
    shift_log_sd_N2: Tensor


def turn(points: Tensor, angle: Tensor) -> Tensor:
    """Turn points ``(..., 2)`` as ``(x, y)`` by an angle ``(...)`` in rad from x towards y."""
    x, y = points.unbind(-1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def window_grid(size_px: int) -> Tensor:
    """Make the pixel positions ``(P, 2)`` as ``(x, y)``, -1 to 1 between the window's edges."""
    axis = (2 * torch.arange(size_px) + 1) / size_px - 1
    rows, cols = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([cols.flatten(), rows.flatten()], 1)


def kl_normal(mean: Tensor, log_sd: Tensor, prior_sd: float = 1.0) -> Tensor:
    """KL(N(mean, sd²) ‖ N(0, prior_sd²)) of each element."""
    ratio = log_sd - math.log(prior_sd)
    return 0.5 * ((mean / prior_sd) ** 2 + torch.exp(2 * ratio) - 1) - ratio


def kl_wrapped_normal(log_sd: Tensor) -> Tensor:
    """KL(wrapped normal ‖ uniform on the circle) of each element, within 0.025 nats.

    A narrow one has the entropy of the normal; of a wide one the first circular moment
    exp(-sd²/2) is left, whose square is the KL to second order. The two meet at sd = 1.2.
    """
    narrow = 0.5 * math.log(2 * math.pi / math.e) - log_sd
    wide = torch.exp(-torch.exp(2 * log_sd.clamp(min=0.0)))
    return torch.where(log_sd < math.log(1.2), narrow, wide)


def pooled_px(window_px: int) -> int:
    """Edge of a window as the encoder reads it: halved, but for small and for odd ones."""
    return window_px // 2 if window_px % 2 == 0 and window_px >= 16 else window_px


def pool(windows_NCHW: Tensor) -> Tensor:
    """Average over 2 × 2 pixels where ``pooled_px`` halves (three times as fast as ``avg_pool2d``)."""
    size = windows_NCHW.shape[-1]
    if pooled_px(size) == size:
        return windows_NCHW
    upper, lower = windows_NCHW[..., ::2, :], windows_NCHW[..., 1::2, :]
    return (upper[..., ::2] + upper[..., 1::2] + lower[..., ::2] + lower[..., 1::2]) * 0.25


def _bell(points_P2: Tensor, width: float) -> Tensor:
    """Weight of window positions: a Gaussian around the middle, ``(P,)``."""
    return torch.exp(-0.5 * (points_P2.norm(dim=1) / width) ** 2)


class SpatialConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a SpatialRVAE is built as, and what it is trained for.

    Attributes
    ----------
    latent_dim
        Content latents.
    hidden
        Width of the two tanh layers each way; the papers take 128.
    rotation, shift
        Whether the pose has an angle and a shift.
    shift_prior
        Prior sd of the shift in windows. The papers' 0.1 counts half windows, which is 0.05 here; much
        more, and a neighbour can be explained as the middle atom, displaced by a bond.
    focus, metric_focus
        Sd in half windows of the weight around the middle, for the likelihood and for the stress.
    stress
        Weight of the stress in nats; 0 leaves the latents to the ELBO alone.
    pixels
        Pixels of a window that each step of the training looks at; 0 takes all.
    """

    latent_dim: int = 2
    hidden: int = 128
    rotation: bool = True
    shift: bool = True
    shift_prior: float = 0.05
    focus: float = 0.4
    metric_focus: float = 0.25
    stress: float = 300.0
    pixels: int = 192

    def __post_init__(self) -> None:
        for name, low, high in (("latent_dim", 1, 64), ("hidden", 1, 4096), ("pixels", 0, 1_000_000)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"architecture.{name} is {getattr(self, name)}; it takes {low} to {high}")
        for name, below in (("shift_prior", 1.0), ("focus", 100.0), ("metric_focus", 100.0)):
            value = getattr(self, name)
            if not 0 < value < below:
                raise ValueError(f"architecture.{name} is {value}; it takes numbers above 0, below {below:g}")
        if not 0 <= self.stress <= 1e6:
            raise ValueError(f"architecture.stress is {self.stress}; it takes 0 to 1000000")


class SpatialRVAE(nn.Module):
    """Rotation- and shift-invariant variational autoencoder of windows.

    Parameters
    ----------
    channels, window_px
        Windows are ``(N, channels, window_px, window_px)``, float32.
    config
        Widths and priors.
    generator
        Where the first weights come from; None: seed 0.
    """

    gradient_norm = 1000.0  # above this a step of the training is shortened
    hasty: tuple[str, ...] = ()

    grid_P2: Tensor
    disc_P: Tensor
    weight_P: Tensor
    metric_P: Tensor
    axis_B: Tensor
    inside_BB: Tensor
    center_C: Tensor
    scale_C: Tensor

    def __init__(
        self,
        channels: int,
        window_px: int,
        config: SpatialConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0) if generator is None else generator
        latent_dim, hidden = config.latent_dim, config.hidden
        self.channels, self.window_px, self.latent_dim, self.config = channels, window_px, latent_dim, config
        self.rotation, self.shift, self.hidden = config.rotation, config.shift, hidden
        self.shift_prior = config.shift_prior
        self.turns = 4 if self.rotation else 1
        self.nuisances: tuple[str, ...] = ()
        features = channels * pooled_px(window_px) ** 2
        self.read = linear(features, hidden, random)
        self.choose = linear(hidden, 1, random)
        self.think = linear(hidden, hidden, random)
        self.say = linear(hidden, 2 * latent_dim + 7, random, gain=0.5)
        self.content = linear(latent_dim, hidden, random)
        self.mix = linear(hidden, hidden, random)
        self.bumps = round(window_px * 2 / 3)
        self.draw = linear(hidden, channels * self.bumps**2, random, gain=0.2)
        self.log_noise_C = nn.Parameter(torch.zeros(channels))
        grid = window_grid(window_px)
        self.register_buffer("grid_P2", grid, persistent=False)
        self.register_buffer("disc_P", (grid.norm(dim=1) <= 1.0).nonzero()[:, 0], persistent=False)
        self.register_buffer("weight_P", _bell(grid, config.focus), persistent=False)
        self.register_buffer("metric_P", _bell(grid, config.metric_focus).sqrt(), persistent=False)
        axis = torch.linspace(-_REACH, _REACH, self.bumps)
        self.register_buffer("axis_B", axis, persistent=False)
        inside = torch.hypot(axis[:, None], axis[None]) <= _REACH + 1e-6
        self.register_buffer("inside_BB", inside.float(), persistent=False)
        self.register_buffer("center_C", torch.zeros(channels))
        self.register_buffer("scale_C", torch.ones(channels))

    @torch.no_grad()
    def prepare(self, windows_NCHW: Tensor) -> None:
        """Take centre and scale of each channel from the training windows."""
        self.center_C.copy_(windows_NCHW.mean((0, 2, 3)))
        self.scale_C.copy_(usable_scale(windows_NCHW.std((0, 2, 3)), self.center_C))

    def keep_prior(self) -> None:
        """Hold what fine-tuning leaves alone: nothing, as the prior is a fixed one."""

    def settle(self, windows_NCHW: Tensor, held_NCHW: Tensor, label_N: Tensor | None = None) -> None:
        """Finish after training: nothing, as the prior has no components to choose."""

    # ---- encoder

    def inputs(self, windows_NCHW: Tensor) -> Tensor:
        """Say what ``terms_of`` takes: the windows themselves."""
        return windows_NCHW

    def features(self, windows_NCHW: Tensor) -> Tensor:
        """Pool, scale and turn the windows: ``(N, K, F)``, turn k undoes k quarter turns of the content."""
        scaled = (pool(windows_NCHW) - self.center_C[:, None, None]) / self.scale_C[:, None, None]
        return torch.stack([torch.rot90(scaled, k, (2, 3)).flatten(1) for k in range(self.turns)], 1)

    def reading(self, read_NF: Tensor) -> Reading:
        """Say content and pose from the first hidden layer ``(..., hidden)`` of one turned window."""
        said = self.say(torch.tanh(self.think(read_NF)))
        mean, log_sd, direction, angle_log_sd, shift, shift_log_sd = said.split(
            [self.latent_dim, self.latent_dim, 2, 1, 2, 2], -1
        )
        # The first direction is (1, 0): every turned window starts upright.
        angle = torch.atan2(direction[..., 1], 1.0 + direction[..., 0])
        return Reading(
            mean,
            _bounded(log_sd),
            angle if self.rotation else torch.zeros_like(angle),
            _bounded(angle_log_sd[..., 0] - 1.0),
            self._half_windows(shift) if self.shift else torch.zeros_like(shift),
            _bounded(shift_log_sd) + math.log(2 * self.shift_prior),
        )

    def _half_windows(self, said: Tensor) -> Tensor:
        return 2 * self.shift_prior * said

    def read_turns(self, windows_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """First hidden layer of every turned window ``(N, K, hidden)`` and the head's logits ``(N, K)``."""
        read_NKF = torch.tanh(self.read(self.features(windows_NCHW)))
        return read_NKF, self.choose(read_NKF)[..., 0]

    def encode(self, windows_NCHW: Tensor) -> Reading:
        """Say content and pose of each window; the quarter turn is in the angle."""
        read_NKF, logits_NK = self.read_turns(windows_NCHW)
        turn_N = logits_NK.argmax(1)
        return unturned(self.reading(_pick(read_NKF, turn_N)), turn_N)

    def posterior(self, windows_NCHW: Tensor) -> Posterior:
        """Say content and pose of each window as every family does; there are no classes and no nuisances."""
        with torch.no_grad():
            told = self.encode(windows_NCHW)
        none = told.mean_NZ[:, :0]
        return Posterior(
            told.mean_NZ,
            told.log_sd_NZ,
            torch.remainder(told.angle_N + math.pi, 2 * math.pi) - math.pi,
            told.angle_log_sd_N.exp() * float(self.rotation),
            torch.ones(len(told.mean_NZ), dtype=torch.long),
            told.shift_N2,
            told.shift_log_sd_N2.exp() * float(self.shift),
            none,
            none,
            none,
        )

    # ---- decoder

    def canvas(self, mean_NZ: Tensor) -> Tensor:
        """Say the heights of the bumps ``(N, C, B, B)`` that draw the content upright, as (row, col)."""
        hidden = torch.tanh(self.mix(torch.tanh(self.content(mean_NZ))))
        heights: Tensor = self.draw(hidden).view(-1, self.channels, self.bumps, self.bumps)
        return heights * self.inside_BB

    def decode_at(self, points_P2: Tensor, mean_NZ: Tensor, angle_N: Tensor, shift_N2: Tensor) -> Tensor:
        """Draw the content at window positions ``(P, 2)``: ``(N, C, P)``."""
        upright_NP2 = turn(points_P2 - shift_N2[:, None], -angle_N[:, None])
        width = self.axis_B[1] - self.axis_B[0]
        across_NPB, down_NPB = (
            torch.exp(-0.5 * ((upright_NP2[..., axis, None] - self.axis_B) / width) ** 2) for axis in (0, 1)
        )
        rows_NCPB = down_NPB[:, None] @ self.canvas(mean_NZ)
        drawn_NCP = (rows_NCPB * across_NPB[:, None]).sum(-1)
        return drawn_NCP * self.scale_C[:, None] + self.center_C[:, None]

    def decode(
        self, mean_NZ: Tensor, angle_N: Tensor | None = None, shift_N2: Tensor | None = None
    ) -> Tensor:
        """Draw whole windows ``(N, C, H, W)``, upright and centred where no pose is given."""
        n = mean_NZ.shape[0]
        angle_N = mean_NZ.new_zeros(n) if angle_N is None else angle_N
        shift_N2 = mean_NZ.new_zeros(n, 2) if shift_N2 is None else shift_N2
        drawn = self.decode_at(self.grid_P2, mean_NZ, angle_N, shift_N2)
        return drawn.view(n, self.channels, self.window_px, self.window_px)

    # ---- the bound

    def terms_of(
        self,
        windows_NCHW: Tensor,
        generator: torch.Generator,
        label_N: Tensor | None = None,
        shown_N: Tensor | None = None,
    ) -> Terms:
        """Compute the negative ELBO from one sample of the posterior, at the best quarter turn.

        The likelihood is weighted by ``focus``: a bound of that, not of the evidence of all pixels. While
        training, ``pixels`` drawn anew each time stand for the window (an unbiased estimate at their share
        of the cost), and few of them decide which quarter turn is best.

        Parameters
        ----------
        windows_NCHW
            What ``inputs`` said of the windows: themselves, float32.
        generator
            Draws the sample and the pixels.
        label_N
            Not looked at: this family has no classes.
        shown_N
            The content of that window stands for each, to see what its own is worth; None: its own.
        """
        pixels, trial_pixels = (self.config.pixels or None, 96) if self.training else (None, None)
        read_NKF, logits_NK = self.read_turns(windows_NCHW)
        turn_N = self._best_turn(windows_NCHW, read_NKF, trial_pixels, generator)
        inner = self.reading(_pick(read_NKF, turn_N))
        sampled_NZ, *pose = self._sample(unturned(inner, turn_N), generator)
        shown_NZ = sampled_NZ if shown_N is None else sampled_NZ[shown_N]
        chosen_P = _some(self.disc_P, pixels, generator)
        drawn_NCP = self.decode_at(self.grid_P2[chosen_P], shown_NZ, *pose)
        error_N = self._error(windows_NCHW.flatten(2)[:, :, chosen_P], drawn_NCP, self.weight_P[chosen_P])
        return Terms(
            error_N * (self.disc_P.numel() / chosen_P.numel()),
            kl_normal(inner.mean_NZ, inner.log_sd_NZ),
            kl_wrapped_normal(inner.angle_log_sd_N) * float(self.rotation),
            kl_normal(inner.shift_N2, inner.shift_log_sd_N2, 2 * self.shift_prior).sum(1) * float(self.shift),
            cross_entropy(logits_NK, turn_N, reduction="none")
            + self.config.stress * self._stress(inner.mean_NZ),
        )

    def _stress(self, mean_NZ: Tensor) -> Tensor:
        """Mean squared mismatch of each window's distances to the others, in latents and in pictures."""
        with torch.no_grad():
            pictures = self.decode(mean_NZ).flatten(2) * self.metric_P
            apart = torch.cdist(pictures.flatten(1), pictures.flatten(1))
            apart *= math.sqrt(2 * self.latent_dim) / (apart**2).mean().sqrt().clamp(min=1e-6)
        return (torch.cdist(mean_NZ, mean_NZ) - apart).square().mean(1)

    def _error(self, true_NCP: Tensor, drawn_NCP: Tensor, weight_P: Tensor) -> Tensor:
        """Negative log likelihood of normal pixels with the learnt noise, summed over C and P."""
        log_sd_C1 = self.log_noise_C[:, None] + torch.log(self.scale_C[:, None])
        residual = (true_NCP - drawn_NCP) * torch.exp(-log_sd_C1)
        nats_NCP = 0.5 * residual**2 + log_sd_C1 + 0.5 * math.log(2 * math.pi)
        return (nats_NCP * weight_P).sum((1, 2))

    @torch.no_grad()
    def _best_turn(
        self, windows_NCHW: Tensor, read_NKF: Tensor, trial_pixels: int | None, generator: torch.Generator
    ) -> Tensor:
        """Try each quarter turn at the posterior's mean and name the one that explains the window best."""
        n, turns = read_NKF.shape[:2]
        if turns == 1:
            return torch.zeros(n, dtype=torch.long)
        inner = self.reading(read_NKF.flatten(0, 1))
        tried = unturned(inner, torch.arange(turns).repeat(n))
        chosen_P = _some(self.disc_P, trial_pixels, generator)
        drawn = self.decode_at(self.grid_P2[chosen_P], tried.mean_NZ, tried.angle_N, tried.shift_N2)
        true = windows_NCHW.flatten(2)[:, :, chosen_P].repeat_interleave(turns, 0)
        return self._error(true, drawn, self.weight_P[chosen_P]).view(n, turns).argmin(1)

    def _sample(self, told: Reading, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        def around(mean: Tensor, log_sd: Tensor) -> Tensor:
            return mean + torch.exp(log_sd) * torch.randn(mean.shape, generator=generator)

        return (
            around(told.mean_NZ, told.log_sd_NZ),
            around(told.angle_N, told.angle_log_sd_N) if self.rotation else told.angle_N,
            around(told.shift_N2, told.shift_log_sd_N2) if self.shift else told.shift_N2,
        )


def unturned(inner: Reading, turn_N: Tensor) -> Reading:
    """Turn a pose that was read from a turned window back: angle and shift of the window as it came."""
    back_N = turn_N * QUARTER
    odd_N1 = (turn_N % 2 == 1)[:, None]
    return inner._replace(
        angle_N=inner.angle_N + back_N,
        shift_N2=turn(inner.shift_N2, back_N),
        shift_log_sd_N2=torch.where(odd_N1, inner.shift_log_sd_N2.flip(1), inner.shift_log_sd_N2),
    )


def _bounded(log_sd: Tensor) -> Tensor:
    """Keep a log sd within ±6 without a dead gradient."""
    return _MAX_LOG_SD * torch.tanh(log_sd / _MAX_LOG_SD)


def _pick(read_NKF: Tensor, turn_N: Tensor) -> Tensor:
    return read_NKF[torch.arange(read_NKF.shape[0]), turn_N]


def _some(pixels_P: Tensor, wanted: int | None, generator: torch.Generator) -> Tensor:
    if wanted is None or wanted >= pixels_P.numel():
        return pixels_P
    return pixels_P[torch.randperm(pixels_P.numel(), generator=generator)[:wanted]]
