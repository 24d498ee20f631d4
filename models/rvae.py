"""The harmonic rVAE family: what a window shows, apart from how it is turned and where it sits.

After Kalinin, Ziatdinov et al. (arXiv:2006.10267, 2010.09196, 2104.10180) an autoencoder whose content
latents are free of the pose. Here both ends work on steerable components (``models.steerable``), where
turning is a phase, and the pose is not guessed by a network but integrated out:

* The **encoder** reads the coefficients with the same filters at evenly spaced orientations and takes the
  mean over them: its content does not change under those turns, and hardly between them.
* The **decoder** says the coefficients of the upright, centred content; no grid is resampled.
* The **likelihood** of a window given its content is a sum over a grid of the whole circle, and in closed
  form over small changes that are linear in the coefficients: the shift, the turn within a bin of the grid,
  and the nuisances (gain, background, scale, defocus). Their posterior comes out of the same formula, with
  its sd.
* The **noise** is learnt for each component, the same for its real and imaginary part, so that a turned
  window is as likely as an upright one; how loud it is follows the content. No scale is assumed: raw
  windows train as well as scaled ones.
* The **prior** of the content is a learnt mixture of normals. Its components are classes (jrVAE); how many
  there are is decided by held-out windows. Labels, where some exist, tie components to classes.

``rotation=True, shift=True`` is the rVAE, ``shift=False`` the rrVAE (diffraction), both False a plain VAE.

With w the coefficients of a window, d(z) those of the upright content, J(z) the tangents, s the noise and S
the prior variances of the tangents' amplitudes, everything divided by s, at the turn phi:

    c_i(phi) = Re sum_P exp(-i m phi) w conj(J_i), J_0 = d;  b_i = c_i - <d, J_i>;  A = J J' + 1/S = L L'
    log p(w | z, phi) = c_0 - |w|²/2 - |d|²/2 + |b' A^-1 b|/2 - log det L - log det S / 2 - sum log s

up to a constant; the amplitudes have the mean A^-1 b and the covariance A^-1 at that turn.

Axes: N window, C channel, H row, W column, F pixel of all channels, P component, D real coefficient (real
parts of all P, then imaginary ones), O orientation of the encoder, Q filter, G turn on the grid, T tangent,
V nuisance, Z content latent, M component of the mixture, K class, H number of the decoder's last hidden
layer and a 1, E what is put right of the pose (``Correction``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, relu

from models import steerable
from models.layers import linear, normal, usable_scale
from models.mixture import Mixture, fewest
from models.posterior import Posterior, Terms

NUISANCES = ("gain", "background", "scale", "defocus")
_UNKNOWN = -1
_FAR, _NEAR = 1e6, 1e-3  # squared, of latents: from itself, and what two classes are not nearer than
_BEFORE_LABELS = 0.05  # of a label, for each class of a component
_NEVER = -50.0  # logit of a component that was merged away
_LOG_SD = (-5.0, 2.0)  # of the content and of the mixture
_LOG_NOISE = (-5.0, 2.0)
LEAST_SD = 1e-6  # of pose: rad, half windows
LOG_FACTOR = (-1.6, 2.3)  # of the sds of pose: a fifth to ten times
_MAX_SYMMETRY = 6
# Turns of the content are one where the window would hardly tell them apart, or tells them much less well
# than others: what is left of the difference is then the accidents of the windows that were learnt from.
_SAME_NATS, _ALIKE_NATS, _ALIKE_SHARE = 3.0, 10.0, 0.1


class RVAEConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an RVAE is built as.

    Attributes
    ----------
    latent_dim
        Content latents.
    rotation, shift
        Whether the pose has an angle and a shift.
    components, max_order
        Steerable components of the front end (fewer in small windows), and the highest m among them.
    orientations, filters, pooled, hidden
        Of the encoder: orientations at which it reads, filters, features that are averaged over the
        orientations, and the width of the last layer; ``hidden`` is also that of the decoder's two.
    turns
        Turns of the grid on which the angle is integrated.
    nuisances
        Any of ``gain``, ``background`` (of each channel), ``scale`` and ``defocus``.
    shift_prior, gain_prior, background_prior, scale_prior, defocus_prior
        Prior sds: in windows; relative; in sds of the pixels; relative; in square pixels of half the
        variance that a blur adds.
    mixture
        Components of the mixture to begin with.
    classes
        Classes that labels may name; 0 without labels.
    label_weight
        Nats of a label count so many times: a label is one number beside hundreds of pixels.
    class_tie
        Logit with which components are given to the classes in turn before training. Where all windows have
        labels each class so has components of its own; a few labels find theirs better from 0.
    class_scatter
        Weight in nats of a term that draws the contents of a labelled class together: their squared distance
        from its middle, by that of the next class's. A class is then one cloud, and clouds lie apart.
    stress
        Weight in nats of a term that draws latents as far apart as the middles of what they decode to
        differ, whatever their turns; 0 leaves the distances to the ELBO.
    metric_focus
        Sd in half windows of the weight around the middle, for the stress.
    """

    latent_dim: int = 2
    rotation: bool = True
    shift: bool = True
    components: int = 60
    max_order: int = 16
    orientations: int = 16
    filters: int = 32
    pooled: int = 48
    hidden: int = 64
    turns: int = 60
    nuisances: tuple[str, ...] = NUISANCES
    shift_prior: float = 0.02
    gain_prior: float = 0.15
    background_prior: float = 0.5
    scale_prior: float = 0.03
    defocus_prior: float = 0.4
    mixture: int = 12
    classes: int = 0
    label_weight: float = 20.0
    class_tie: float = 0.0
    class_scatter: float = 0.0
    stress: float = 0.0
    metric_focus: float = 0.25

    def __post_init__(self) -> None:
        for name, low, high in (
            ("latent_dim", 1, 64),
            ("components", 4, 1000),
            ("max_order", 0, 64),
            ("orientations", 4, 128),
            ("filters", 1, 1024),
            ("pooled", 1, 1024),
            ("hidden", 1, 4096),
            ("turns", 8, 1024),
            ("mixture", 1, 100),
            ("classes", 0, 100),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"architecture.{name} is {getattr(self, name)}; it takes {low} to {high}")
        for name in ("shift_prior", "gain_prior", "background_prior", "scale_prior", "defocus_prior"):
            if not 0 < getattr(self, name) < 10:
                raise ValueError(
                    f"architecture.{name} is {getattr(self, name)}; it takes numbers above 0, below 10"
                )
        if not 0 < self.metric_focus < 100:
            raise ValueError(f"architecture.metric_focus is {self.metric_focus}; it takes numbers above 0")
        if not 0 <= self.class_tie <= 20:
            raise ValueError(f"architecture.class_tie is {self.class_tie}; it takes 0 to 20")
        if self.mixture < self.classes:
            raise ValueError(
                f"architecture.mixture is {self.mixture}; it takes one for each of {self.classes} classes, "
                "and more"
            )
        for name in ("class_scatter", "stress"):
            if not 0 <= getattr(self, name) <= 1e6:
                raise ValueError(f"architecture.{name} is {getattr(self, name)}; it takes 0 to 1000000")
        if self.class_scatter and not self.class_tie:
            raise ValueError(
                "architecture.class_scatter takes classes with components of their own: class_tie"
            )
        if not 0 < self.label_weight < 1e6:
            raise ValueError(f"architecture.label_weight is {self.label_weight}; it takes numbers above 0")
        unknown = set(self.nuisances) - set(NUISANCES)
        if unknown or len(set(self.nuisances)) < len(self.nuisances):
            raise ValueError(f"architecture.nuisances is {self.nuisances}; it takes each of {NUISANCES} once")


class Pose(NamedTuple):
    """The pose and the nuisances of windows, given their content.

    Attributes
    ----------
    log_likelihood_NG
        Of the window at each turn of the grid, the tangents integrated out.
    amplitude_NTG, covariance_NTT
        Of the tangents at each turn; the covariance is the same at all turns.
    """

    log_likelihood_NG: Tensor
    amplitude_NTG: Tensor
    covariance_NTT: Tensor


class Correction(NamedTuple):
    """What is put right of the pose of windows, given their content: nothing before a calibration.

    Attributes
    ----------
    shift_px_N2
        Where the middle of the upright content is drawn, ``(x, y)`` beside that of the window.
    turn_N
        To be added to the angle, in rad.
    angle_factor_N, shift_factor_N
        By which the sds are to be multiplied.
    """

    shift_px_N2: Tensor
    turn_N: Tensor
    angle_factor_N: Tensor
    shift_factor_N: Tensor


class _Integral(NamedTuple):
    """The likelihood at each turn with what its formula went through: L of A = L L', and L^-1 b."""

    log_likelihood_NG: Tensor
    root_NTT: Tensor
    solved_NTG: Tensor


class RVAE(nn.Module):
    """Rotation- and shift-invariant variational autoencoder of windows, the pose integrated out.

    Parameters
    ----------
    channels, window_px
        Windows are ``(N, channels, window_px, window_px)``, float32.
    config
        Widths, pose and priors.
    generator
        Where the first weights come from; None: seed 0.
    """

    gradient_norm = 50.0  # above this a step of the training is shortened
    hasty = ("class_logit_MK",)  # only labelled windows speak of these

    order_P: Tensor
    alive_D: Tensor
    disc_F1: Tensor
    draw_FD: Tensor
    center_C: Tensor
    scale_C: Tensor
    unit: Tensor
    middle_D: Tensor
    spread_D: Tensor
    operator_TDD: Tensor
    constant_TD: Tensor
    amplitude_sd_T: Tensor
    metric_PP: Tensor
    mixture_size: Tensor
    correction_EH: Tensor
    sd_course_22: Tensor

    def __init__(
        self,
        channels: int,
        window_px: int,
        config: RVAEConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0) if generator is None else generator
        self.channels, self.window_px, self.latent_dim = channels, window_px, config.latent_dim
        self.config, self.rotation, self.shift = config, config.rotation, config.shift
        self.components = min(config.components, steerable.available(channels, window_px, config.max_order))
        self.orientations = config.orientations if config.rotation else 1
        self.turns = config.turns if config.rotation else 1
        self.tangents = _tangents(config, channels)
        self.nuisances = tuple(name for name in self.tangents if name not in ("x", "y", "turn"))
        self._add_buffers()
        self._add_weights(random)

    def _add_buffers(self) -> None:
        """Make room for what ``prepare`` fits."""
        coefficients, tangents = 2 * self.components, len(self.tangents)
        for name, value in {
            "order_P": torch.zeros(self.components),
            "alive_D": torch.ones(coefficients),
            "draw_FD": torch.zeros(self.channels * self.window_px**2, coefficients),
            "center_C": torch.zeros(self.channels),
            "scale_C": torch.ones(self.channels),
            "unit": torch.ones(()),
            "middle_D": torch.zeros(coefficients),
            "spread_D": torch.ones(coefficients),
            "operator_TDD": torch.zeros(tangents, coefficients, coefficients),
            "constant_TD": torch.zeros(tangents, coefficients),
            "amplitude_sd_T": torch.ones(tangents),
            "metric_PP": torch.eye(self.components),
            "mixture_size": torch.tensor(self.config.mixture),
            "correction_EH": torch.zeros(5, self.config.hidden + 1),
            "sd_course_22": torch.zeros(2, 2),
        }.items():
            self.register_buffer(name, value)
        disc = torch.from_numpy(steerable.disc(self.window_px)).float().flatten()
        self.register_buffer("disc_F1", disc.repeat(self.channels)[:, None], persistent=False)

    def _add_weights(self, random: torch.Generator) -> None:
        config, coefficients = self.config, 2 * self.components
        self.filter_QD = normal((config.filters, coefficients), 1.4 / math.sqrt(coefficients), random)
        self.bias_Q = nn.Parameter(torch.zeros(config.filters))
        self.combine = linear(config.filters, config.pooled, random)
        self.think = linear(config.pooled, config.hidden, random)
        self.say = linear(config.hidden, 2 * config.latent_dim, random, 0.5)
        self.content = linear(config.latent_dim, config.hidden, random)
        self.mix = linear(config.hidden, config.hidden, random)
        self.draw = linear(config.hidden, coefficients, random, 0.3)
        self.louder = linear(config.hidden, 1, random, 0.0)
        self.log_noise_P = nn.Parameter(torch.zeros(self.components))
        self.mixture_mean_MZ = normal((config.mixture, config.latent_dim), 1.0, random)
        self.mixture_log_sd_MZ = nn.Parameter(torch.full((config.mixture, config.latent_dim), -0.7))
        self.mixture_logit_M = nn.Parameter(torch.zeros(config.mixture))
        self.class_logit_MK = normal((config.mixture, config.classes), 0.1, random)
        if config.classes:
            self.class_logit_MK.data += config.class_tie * _own_class(config)

    # ---- the front end

    @torch.no_grad()
    def prepare(self, windows_NCHW: Tensor) -> None:
        """Fit components, scales and tangents to the training windows.

        Parameters
        ----------
        windows_NCHW
            Shape ``(N, C, H, W)``, float32, in any unit.
        """
        self.center_C.copy_(windows_NCHW.mean((0, 2, 3)))
        self.scale_C.copy_(usable_scale(windows_NCHW.std((0, 2, 3)), self.center_C))
        scaled = (windows_NCHW - self.center_C[:, None, None]) / self.scale_C[:, None, None]
        fitted = steerable.fit(scaled.numpy(), self.components, self.config.max_order)
        self.order_P.copy_(torch.from_numpy(fitted.order_P))
        self.alive_D.copy_(torch.cat([torch.ones(self.components), (self.order_P > 0).float()]))
        self.draw_FD.copy_(torch.from_numpy(fitted.draw_FD))
        self._fit_scales(windows_NCHW)
        self._fit_tangents(fitted)
        self.metric_PP.copy_(self._fit_metric())
        self.draw.bias.copy_(self.middle_D)

    def keep_prior(self) -> None:
        """Hold what fine-tuning leaves alone: the mixture, so that its classes stay the same."""
        for weight in (self.mixture_mean_MZ, self.mixture_log_sd_MZ, self.mixture_logit_M):
            weight.requires_grad_(False)

    @torch.no_grad()
    def settle(self, windows_NCHW: Tensor, held_NCHW: Tensor, label_N: Tensor | None = None) -> None:
        """Fit the mixture to where the contents are after training, and choose its size by evidence.

        Components are merged two by two, those first that cost the least, and as few are kept as held-out
        windows allow. Where there are labels all stay, given to the classes in turn: with ``class_tie`` they
        are fitted to the labelled windows alone, else to those and, as their classes may be, to all others.

        Parameters
        ----------
        windows_NCHW, held_NCHW
            Windows that were learnt from, and others; float32.
        label_N
            Classes of the former; -1 is not known.
        """
        config = self.config
        if label_N is not None and config.classes:
            self._settle_classes(windows_NCHW, label_N)
            return
        random = torch.Generator().manual_seed(0)
        drawn, held = (self._content_sample(part, random) for part in (windows_NCHW, held_NCHW))
        began = Mixture.of(self.mixture_logit_M, self.mixture_mean_MZ, self.mixture_log_sd_MZ)
        self._take(fewest(began, drawn, held))

    def _settle_classes(self, windows_NCHW: Tensor, label_N: Tensor) -> None:
        config, known_N = self.config, label_N != _UNKNOWN
        if not config.class_tie:
            mean_NZ, log_sd_NZ = self.content_of(self.read(windows_NCHW))
            variance_NZ = torch.exp(2 * log_sd_NZ)
            self._take(Mixture.of_some_classes(mean_NZ, variance_NZ, label_N, config.classes, config.mixture))
            self.class_logit_MK.copy_((int(known_N.sum()) * _own_class(config) + _BEFORE_LABELS).log())
            return
        drawn = self._content_sample(windows_NCHW, torch.Generator().manual_seed(0))[known_N]
        self._take(Mixture.of_classes(drawn, label_N[known_N], config.classes, config.mixture))
        share_NM = torch.softmax(self._log_mixture(drawn), 1)
        counted_MK = share_NM.T @ one_hot(label_N[known_N], config.classes).float()
        self.class_logit_MK.copy_((counted_MK + _BEFORE_LABELS).log())

    def _take(self, chosen: Mixture) -> None:
        size = len(chosen.weight_M)
        self.mixture_size.fill_(size)
        self.mixture_mean_MZ[:size] = chosen.mean_MZ.float()
        self.mixture_log_sd_MZ[:size] = chosen.variance_MZ.log().float() / 2
        self.mixture_logit_M[:size] = chosen.weight_M.log().float()
        self.mixture_logit_M[size:] = _NEVER

    def _content_sample(self, windows_NCHW: Tensor, random: torch.Generator) -> Tensor:
        """Draw the content of each window once from its posterior."""
        mean_NZ, log_sd_NZ = self.content_of(self.read(windows_NCHW))
        return mean_NZ + torch.exp(log_sd_NZ) * torch.randn(mean_NZ.shape, generator=random)

    def _fit_scales(self, windows_NCHW: Tensor) -> None:
        """Set the unit to the rms coefficient, and middle and spread of each, the same at every turn."""
        self.unit.fill_(1.0)
        coefficient_ND = self.read(windows_NCHW)
        is_upright_D = torch.cat([self.order_P == 0, torch.zeros(self.components, dtype=torch.bool)])
        middle_D = coefficient_ND.mean(0) * is_upright_D
        square_D = (coefficient_ND - middle_D).square().mean(0)
        # Scaled windows are of the order of 1, but for those of one constant.
        size = (square_D.sum() / self.alive_D.sum()).sqrt()
        self.unit.copy_(torch.where(size > 1e-4, size, 1.0))
        real_P, imaginary_P = square_D.chunk(2)
        spread_P = torch.where(self.order_P > 0, (real_P + imaginary_P) / 2, real_P).sqrt() / self.unit
        self.middle_D.copy_(middle_D / self.unit)
        self.spread_D.copy_(spread_P.clamp(min=1e-3).repeat(2))

    def _fit_tangents(self, fitted: steerable.Steerable) -> None:
        """Put the operators of the pose and of the nuisances in a row, with their prior sds."""
        config, eye = self.config, torch.eye(2 * self.components)
        turning = torch.diag(self.order_P)
        zero = torch.zeros_like(turning)
        operators = {
            "x": torch.from_numpy(fitted.shift_x_DD),
            "y": torch.from_numpy(fitted.shift_y_DD),
            "turn": torch.cat([torch.cat([zero, turning], 1), torch.cat([-turning, zero], 1)]),
            "gain": eye,
            "scale": torch.from_numpy(fitted.stretch_DD),
            "defocus": torch.from_numpy(fitted.blur_DD),
        }
        sds = {
            "x": config.shift_prior * self.window_px,
            "y": config.shift_prior * self.window_px,
            "turn": 2 * math.pi / config.turns / 3,
            "gain": config.gain_prior,
            "scale": config.scale_prior,
            "defocus": config.defocus_prior,
        }
        level_CD = self._levels()
        for at, name in enumerate(self.tangents):
            if name.startswith("background"):
                channel = int(name.removeprefix("background") or 0)
                self.constant_TD[at] = level_CD[channel] * config.background_prior
                self.amplitude_sd_T[at] = 1.0
            else:
                self.operator_TDD[at] = operators[name]
                self.amplitude_sd_T[at] = sds[name]
            if name == "gain":  # of the window as it came, not of its difference from the centre
                self.constant_TD[at] = (level_CD * (self.center_C / self.scale_C)[:, None]).sum(0)

    def _fit_metric(self) -> Tensor:
        """Make the matrix whose image of coefficients is as long as the middle of the picture is bright.

        Orders do not mix in it, so the lengths of its image do not change when the content is turned.
        """
        axis = (2 * torch.arange(self.window_px) + 1) / self.window_px - 1
        bell = torch.exp(-0.5 * (axis.square() + axis[:, None].square()) / self.config.metric_focus**2)
        real_FP, imaginary_FP = (self.draw_FD * bell.flatten().sqrt().repeat(self.channels)[:, None]).chunk(
            2, 1
        )
        # Over all turns of a picture orders do not overlap, and a wave is half as bright as its crests.
        same_PP = (self.order_P[:, None] == self.order_P) * torch.where(self.order_P > 0, 0.5, 1.0)
        value, vector = torch.linalg.eigh((real_FP.T @ real_FP + imaginary_FP.T @ imaginary_FP) * same_PP)
        metric_PP: Tensor = (vector * value.clamp(min=0.0).sqrt()) @ vector.T
        return metric_PP

    def _stress(self, mean_NZ: Tensor) -> Tensor:
        """Mean squared mismatch of each window's distances to the others, in latents and in pictures."""
        with torch.no_grad():
            real_NP, imaginary_NP = (part @ self.metric_PP for part in self.upright(mean_NZ).chunk(2, 1))
            length_NP = torch.where(self.order_P > 0, torch.hypot(real_NP, imaginary_NP), real_NP)
            apart = torch.cdist(length_NP, length_NP)
            apart *= math.sqrt(2 * self.latent_dim) / apart.square().mean().sqrt().clamp(min=1e-6)
        return (torch.cdist(mean_NZ, mean_NZ) - apart).square().mean(1)

    def _levels(self) -> Tensor:
        """Coefficients of windows that are 1 in one channel and 0 in the others: ``(C, D)``."""
        pixels = self.read_FD.view(self.channels, -1, 2 * self.components)
        return pixels.sum(1) / self.unit

    @property
    def read_FD(self) -> Tensor:
        """``scaled windows @ read_FD`` are coefficients, but for the unit: the components, in the disc."""
        return self.draw_FD * self.disc_F1

    def read(self, windows_NCHW: Tensor) -> Tensor:
        """Say the coefficients of windows: ``(N, D)``."""
        scaled = (windows_NCHW - self.center_C[:, None, None]) / self.scale_C[:, None, None]
        return scaled.flatten(1) @ self.read_FD / self.unit

    def inputs(self, windows_NCHW: Tensor) -> Tensor:
        """Say what ``terms_of`` takes: the coefficients."""
        return self.read(windows_NCHW)

    def picture(self, coefficient_ND: Tensor) -> Tensor:
        """Draw windows ``(N, C, H, W)`` from their coefficients."""
        flat = coefficient_ND @ self.draw_FD.T * self.unit
        scaled = flat.view(-1, self.channels, self.window_px, self.window_px)
        return scaled * self.scale_C[:, None, None] + self.center_C[:, None, None]

    def turned(self, coefficient_ND: Tensor, angle_N: Tensor) -> Tensor:
        """Turn the content that coefficients ``(N, D)`` stand for by angles ``(N,)`` in rad."""
        real, imaginary = coefficient_ND.chunk(2, 1)
        cos, sin = torch.cos(angle_N[:, None] * self.order_P), torch.sin(angle_N[:, None] * self.order_P)
        return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], 1)

    # ---- encoder

    def oriented_filters(self) -> Tensor:
        """Turn the filters to every orientation: ``(D, O * Q)``."""
        step = torch.arange(self.orientations) * (2 * math.pi / self.orientations)
        cos_PO, sin_PO = torch.cos(self.order_P[:, None] * step), torch.sin(self.order_P[:, None] * step)
        real_QP1, imaginary_QP1 = self.filter_QD[..., None].chunk(2, 1)
        real = real_QP1 * cos_PO - imaginary_QP1 * sin_PO
        imaginary = real_QP1 * sin_PO + imaginary_QP1 * cos_PO
        turned_QDO = torch.cat([real, imaginary], 1)
        return turned_QDO.permute(1, 2, 0).flatten(1)

    def whitened(self, coefficient_ND: Tensor) -> Tensor:
        """Centre coefficients, and bring weak and strong ones halfway together."""
        return (coefficient_ND - self.middle_D) * self.spread_D.rsqrt()

    def content_of(self, coefficient_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Say mean and log sd of the content: ``(N, Z)`` each."""
        seen = self.whitened(coefficient_ND) @ self.oriented_filters()
        read_NOQ = relu(seen.view(-1, self.orientations, self.config.filters) + self.bias_Q)
        pooled = relu(self.combine(read_NOQ)).mean(1)
        mean_NZ, log_sd_NZ = self.say(relu(self.think(pooled))).chunk(2, 1)
        return mean_NZ, log_sd_NZ.clamp(*_LOG_SD)

    # ---- decoder

    def upright(self, mean_NZ: Tensor) -> Tensor:
        """Say the coefficients of the upright, centred content: ``(N, D)``."""
        return self._upright_and_noise(mean_NZ)[0]

    def hidden_of(self, mean_NZ: Tensor) -> Tensor:
        """Say the last hidden layer of the decoder: ``(N, hidden)``."""
        return torch.tanh(self.mix(torch.tanh(self.content(mean_NZ))))

    def correction(self, mean_NZ: Tensor) -> Correction:
        """Say what is to be put right of the pose of contents."""
        told_NE = self.hidden_of(mean_NZ) @ self.correction_EH[:, :-1].T + self.correction_EH[:, -1]
        factor_N2 = told_NE[:, 3:].clamp(*LOG_FACTOR).exp()
        return Correction(told_NE[:, :2], told_NE[:, 2], factor_N2[:, 0], factor_N2[:, 1])

    def _by_itself(self, sd: Tensor, which: int) -> Tensor:
        """Say by what an sd is to be multiplied for its own size: those of the model vary too much."""
        slope, level = self.sd_course_22[which]
        return torch.exp(slope * sd.clamp(min=LEAST_SD).log() + level)

    def _upright_and_noise(self, mean_NZ: Tensor) -> tuple[Tensor, Tensor]:
        """Say the upright coefficients and the log sd of the noise around them: ``(N, D)`` each."""
        hidden = self.hidden_of(mean_NZ)
        log_noise_NP = (self.log_noise_P + self.louder(hidden)).clamp(*_LOG_NOISE)
        return self.draw(hidden) * self.alive_D, log_noise_NP.repeat(1, 2)

    def decode(
        self, mean_NZ: Tensor, angle_N: Tensor | None = None, shift_N2: Tensor | None = None
    ) -> Tensor:
        """Draw whole windows ``(N, C, H, W)``, upright and centred where no pose is given.

        Angle and shift mean what ``posterior`` says by them.

        Parameters
        ----------
        mean_NZ
            Content.
        angle_N
            In rad, from columns towards rows.
        shift_N2
            ``(x, y)`` in half windows; good to about two pixels.
        """
        drawn_ND, right = self.upright(mean_NZ), self.correction(mean_NZ)
        turn_N = torch.zeros(len(mean_NZ))
        if self.rotation:
            turn_N = -right.turn_N if angle_N is None else angle_N - right.turn_N
        if self.shift:  # as it lies before it is turned
            moved_N2 = torch.zeros(len(mean_NZ), 2) if shift_N2 is None else shift_N2 * (self.window_px / 2)
            drawn_ND = self.shifted(drawn_ND, _turned_points(moved_N2, -turn_N) - right.shift_px_N2)
        return self.picture(self.turned(drawn_ND, turn_N))

    def shifted(self, coefficient_ND: Tensor, shift_px_N2: Tensor) -> Tensor:
        """Shift what coefficients stand for, ``(x, y)`` in pixels: the exponential series to fourth order."""
        change, total = coefficient_ND, coefficient_ND
        for power in range(1, 5):
            along = (change @ self.operator_TDD[:2]).movedim(0, 1)
            change = (along * shift_px_N2[..., None]).sum(1) / power
            total = total + change
        return total

    # ---- likelihood

    def _grid(self) -> Tensor:
        return torch.arange(self.turns) * (2 * math.pi / self.turns)

    def pose(self, coefficient_ND: Tensor, mean_NZ: Tensor) -> Pose:
        """Say how likely windows are at each turn of their content, and what the tangents then are.

        Parameters
        ----------
        coefficient_ND
            What ``read`` said of the windows.
        mean_NZ
            Their content.
        """
        likely_NG, root_NTT, solved_NTG = self._integrated(coefficient_ND, mean_NZ)
        amplitude_NTG = torch.linalg.solve_triangular(root_NTT.mT, solved_NTG, upper=True)
        return Pose(likely_NG, amplitude_NTG, torch.cholesky_inverse(root_NTT))

    def _integrated(self, coefficient_ND: Tensor, mean_NZ: Tensor) -> _Integral:
        upright_ND, log_noise_ND = self._upright_and_noise(mean_NZ)
        inverse_ND = torch.exp(-log_noise_ND)
        tangent_NTD = (upright_ND @ self.operator_TDD).movedim(0, 1) + self.constant_TD
        every = torch.cat([upright_ND[:, None], tangent_NTD], 1) * inverse_ND[:, None]
        window_ND = coefficient_ND * inverse_ND
        upright_ND, tangent_NTD = every[:, 0], every[:, 1:]
        matched = self._matched(window_ND, every)
        excess_NTG = matched[:, 1:] - (tangent_NTD @ upright_ND[..., None])
        precision_NTT = tangent_NTD @ tangent_NTD.mT + torch.diag(self.amplitude_sd_T**-2)
        root_NTT = torch.linalg.cholesky(precision_NTT)
        solved_NTG = torch.linalg.solve_triangular(root_NTT, excess_NTG, upper=False)
        constant_N = (
            -0.5 * window_ND.square().sum(1)
            - 0.5 * upright_ND.square().sum(1)
            - root_NTT.diagonal(dim1=1, dim2=2).log().sum(1)
            - self.amplitude_sd_T.log().sum()
            - log_noise_ND @ self.alive_D
            - 0.5 * math.log(2 * math.pi) * self.alive_D.sum()
        )
        likely_NG = matched[:, 0] + 0.5 * solved_NTG.square().sum(1) + constant_N[:, None]
        return _Integral(likely_NG, root_NTT, solved_NTG)

    def _matched(self, window_ND: Tensor, template_NTD: Tensor) -> Tensor:
        """Inner products of windows with templates at every turn: ``(N, T, G)``."""
        window_re, window_im = window_ND[:, None].chunk(2, 2)
        template_re, template_im = template_NTD.chunk(2, 2)
        product = torch.cat(
            [
                window_re * template_re + window_im * template_im,
                window_im * template_re - window_re * template_im,
            ],
            2,
        )
        angle_PG = self.order_P[:, None] * self._grid()
        return product @ torch.cat([torch.cos(angle_PG), torch.sin(angle_PG)])

    # ---- prior

    def _log_mixture(self, content_NZ: Tensor, log_sd_NZ: Tensor | None = None) -> Tensor:
        """Log of weight times density of each component of the mixture, ``(N, M)``.

        With ``log_sd_NZ`` the density of a normal around the content, not of the content itself.
        """
        log_sd = self.mixture_log_sd_MZ.clamp(*_LOG_SD)
        if log_sd_NZ is not None:
            log_sd = torch.logaddexp(2 * log_sd, 2 * log_sd_NZ[:, None]) / 2
        away = (content_NZ[:, None] - self.mixture_mean_MZ) * torch.exp(-log_sd)
        density = (-0.5 * away.square() - log_sd - 0.5 * math.log(2 * math.pi)).sum(2)
        return density + torch.log_softmax(self.mixture_logit_M, 0)

    def class_probability(self, mean_NZ: Tensor, log_sd_NZ: Tensor) -> Tensor:
        """Say the class of contents: of the labels' classes, else of the components of the mixture."""
        share_NM = torch.softmax(self._log_mixture(mean_NZ, log_sd_NZ), 1)
        if self.config.classes:
            return share_NM @ torch.softmax(self.class_logit_MK, 1)
        return share_NM[:, : int(self.mixture_size)]

    def _label_nats(self, log_mixture_NM: Tensor, label_N: Tensor) -> Tensor:
        """Negative log probability of the labels given the content; 0 where there is none."""
        known_N = label_N != _UNKNOWN
        log_class_MK = torch.log_softmax(self.class_logit_MK, 1)
        log_label_NM = log_class_MK.T[label_N.clamp(min=0)]
        with_N, without_N = (log_mixture_NM + log_label_NM).logsumexp(1), log_mixture_NM.logsumexp(1)
        return (without_N - with_N) * known_N

    def _class_scatter(self, mean_NZ: Tensor, label_N: Tensor) -> Tensor:
        """Squared distance of contents from the middle of their class, by that of the next one's."""
        classes = self.config.classes
        middle_KZ = torch.stack([self.mixture_mean_MZ[kind::classes].mean(0) for kind in range(classes)])
        apart_KK = (middle_KZ[:, None] - middle_KZ).square().sum(2) + torch.diag(torch.full((classes,), _FAR))
        own_N = label_N.clamp(min=0)
        away_N = (mean_NZ - middle_KZ[own_N]).square().sum(1)
        return away_N / apart_KK.amin(1)[own_N].clamp(min=_NEAR) * (label_N != _UNKNOWN)

    # ---- the bound

    def terms_of(
        self,
        coefficient_ND: Tensor,
        generator: torch.Generator,
        label_N: Tensor | None = None,
        shown_N: Tensor | None = None,
    ) -> Terms:
        """Compute the negative ELBO from one sample of the content; the pose is integrated out.

        Parameters
        ----------
        coefficient_ND
            What ``inputs`` said of the windows.
        generator
            Draws the sample.
        label_N
            Class of each window, int64; -1 where it is not known.
        shown_N
            The content of that window stands for each, to see what its own is worth; None: its own.
        """
        mean_NZ, log_sd_NZ = self.content_of(coefficient_ND)
        away_NZ = torch.randn(mean_NZ.shape, generator=generator)
        content_NZ = mean_NZ + torch.exp(log_sd_NZ) * away_NZ
        shown_NZ = content_NZ if shown_N is None else content_NZ[shown_N]
        likely_NG = self._integrated(coefficient_ND, shown_NZ).log_likelihood_NG
        log_mixture_NM = self._log_mixture(content_NZ)
        entropy_N = (log_sd_NZ + 0.5 * away_NZ.square() + 0.5 * math.log(2 * math.pi)).sum(1)
        none = torch.zeros(len(mean_NZ))
        extra_N = none
        if label_N is not None and self.config.classes:
            extra_N = self._label_nats(log_mixture_NM, label_N) * self.config.label_weight
            if self.config.class_scatter:
                extra_N = extra_N + self.config.class_scatter * self._class_scatter(mean_NZ, label_N)
        if self.config.stress:
            extra_N = extra_N + self.config.stress * self._stress(mean_NZ)
        return Terms(
            math.log(self.turns) - likely_NG.logsumexp(1),
            -(entropy_N + log_mixture_NM.logsumexp(1))[:, None],
            none,
            none,
            extra_N,
        )

    # ---- the answer

    def posterior(self, windows_NCHW: Tensor) -> Posterior:
        """Say content, pose, class and nuisances of each window; nothing is learnt."""
        with torch.no_grad():
            coefficient_ND = self.read(windows_NCHW)
            mean_NZ, log_sd_NZ = self.content_of(coefficient_ND)
            pose = self.pose(coefficient_ND, mean_NZ)
            symmetry_N = self._symmetry(mean_NZ)
            share_NG = torch.softmax(pose.log_likelihood_NG, 1)
            angle_N, angle_sd_N = self._angle(pose, share_NG, symmetry_N)
            shift_N2, shift_sd_N2 = self._shift(pose, share_NG)
            right = self.correction(mean_NZ)
            if self.shift:
                shift_N2 = shift_N2 + _turned_points(right.shift_px_N2, angle_N) / (self.window_px / 2)
            if self.rotation:
                angle_N = torch.remainder(angle_N + right.turn_N + math.pi, 2 * math.pi) - math.pi
            nuisance_NV, nuisance_sd_NV = self._nuisances(pose, share_NG)
            return Posterior(
                mean_NZ,
                log_sd_NZ,
                angle_N,
                angle_sd_N * right.angle_factor_N * self._by_itself(angle_sd_N, 0),
                symmetry_N,
                shift_N2,
                shift_sd_N2 * right.shift_factor_N[:, None] * self._by_itself(shift_sd_N2, 1),
                self.class_probability(mean_NZ, log_sd_NZ),
                nuisance_NV,
                nuisance_sd_NV,
            )

    def _symmetry(self, mean_NZ: Tensor) -> Tensor:
        """Say in how many turns the content looks the same, judged by the learnt noise."""
        if not self.rotation:
            return torch.ones(len(mean_NZ), dtype=torch.long)
        likely_NG = self._integrated(self.upright(mean_NZ), mean_NZ).log_likelihood_NG
        fold = torch.arange(2, _MAX_SYMMETRY + 1)
        lost = likely_NG[:, :1] - likely_NG[:, (self.turns / fold).round().long()]
        most = lost.amax(1, keepdim=True)
        is_same = (lost < _SAME_NATS) | ((lost < _ALIKE_NATS) & (lost < _ALIKE_SHARE * most))
        return torch.where(is_same, fold, 1).amax(1)

    def _angle(self, pose: Pose, share_NG: Tensor, symmetry_N: Tensor) -> tuple[Tensor, Tensor]:
        """Say the best angle and the circular sd around it, among the turns that look different."""
        if not self.rotation:
            return torch.zeros(len(share_NG)), torch.zeros(len(share_NG))
        at = self.tangents.index("turn")
        angle_NG = self._grid() + pose.amplitude_NTG[:, at]
        narrow_N1 = pose.covariance_NTT[:, at, at, None]
        best_N1 = angle_NG.gather(1, pose.log_likelihood_NG.argmax(1, keepdim=True))
        away_NG = torch.remainder(angle_NG - best_N1 + math.pi, 2 * math.pi) - math.pi
        near_NG = share_NG * (away_NG.abs() < 0.4)
        angle_N = best_N1[:, 0] + (near_NG * away_NG).sum(1) / near_NG.sum(1)
        fold_N1 = symmetry_N[:, None]
        off_NG = fold_N1 * (angle_NG - angle_N[:, None])
        # 1 - cos(off) exp(-x) without the loss of digits, which are few where the angle is sharp.
        narrowed = -0.5 * fold_N1**2 * narrow_N1
        short_NG = 2 * torch.sin(off_NG / 2).square() * torch.exp(narrowed) - torch.expm1(narrowed)
        short_N = (share_NG * short_NG).sum(1).clamp(0.0, 1 - 1e-6)
        sd_N = torch.sqrt(-2 * torch.log1p(-short_N)) / symmetry_N
        return torch.remainder(angle_N + math.pi, 2 * math.pi) - math.pi, sd_N

    def _shift(self, pose: Pose, share_NG: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the shifts of the upright content into the window and average over the turns."""
        if not self.shift:
            return torch.zeros(len(share_NG), 2), torch.zeros(len(share_NG), 2)
        cos_G, sin_G = torch.cos(self._grid()), torch.sin(self._grid())
        x_NG, y_NG = pose.amplitude_NTG[:, 0], pose.amplitude_NTG[:, 1]
        along_N2G = torch.stack([x_NG * cos_G - y_NG * sin_G, x_NG * sin_G + y_NG * cos_G], 1)
        xx_N1, yy_N1, xy_N1 = (pose.covariance_NTT[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 1)))
        both = 2 * cos_G * sin_G * xy_N1
        variance_N2G = torch.stack(
            [
                cos_G**2 * xx_N1 + sin_G**2 * yy_N1 - both,
                sin_G**2 * xx_N1 + cos_G**2 * yy_N1 + both,
            ],
            1,
        )
        mean_N2 = (along_N2G * share_NG[:, None]).sum(2)
        spread_N2G = (along_N2G - mean_N2[..., None]).square() + variance_N2G
        sd_N2 = (spread_N2G * share_NG[:, None]).sum(2).sqrt()
        return mean_N2 / (self.window_px / 2), sd_N2 / (self.window_px / 2)

    def _nuisances(self, pose: Pose, share_NG: Tensor) -> tuple[Tensor, Tensor]:
        start = len(self.tangents) - len(self.nuisances)
        amplitude_NVG = pose.amplitude_NTG[:, start:]
        mean_NV = (amplitude_NVG * share_NG[:, None]).sum(2)
        spread_NV = ((amplitude_NVG - mean_NV[..., None]).square() * share_NG[:, None]).sum(2)
        narrow_NV = pose.covariance_NTT.diagonal(dim1=1, dim2=2)[:, start:]
        return mean_NV, (spread_NV + narrow_NV).sqrt()


def _own_class(config: RVAEConfig) -> Tensor:
    """Say which class a component is given to, in turn: 1 there, else 0, ``(M, K)``."""
    return one_hot(torch.arange(config.mixture) % config.classes, config.classes).float()


def _turned_points(points_N2: Tensor, angle_N: Tensor) -> Tensor:
    """Turn points ``(x, y)`` from x towards y."""
    (x, y), cos, sin = points_N2.T, torch.cos(angle_N), torch.sin(angle_N)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], 1)


def _tangents(config: RVAEConfig, channels: int) -> tuple[str, ...]:
    """Name what is integrated out beside the grid of turns; a background for each channel."""
    backgrounds = ("background", *(f"background{channel}" for channel in range(1, channels)))
    pose = (("x", "y") if config.shift else ()) + (("turn",) if config.rotation else ())
    rest = [backgrounds if name == "background" else (name,) for name in config.nuisances]
    return pose + tuple(name for names in rest for name in names)
