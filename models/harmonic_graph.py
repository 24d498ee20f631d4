"""The harmonic rVAE as tensors alone: the whole posterior of a block of windows, on any device.

It computes what ``models.harmonic_inference`` computes, with the same constants, so a GPU says what a CPU
says to float32. No shape depends on what the windows hold and no number comes back in between: CUDA can
record it once as a graph (``models.cuda_inference``) and replay it. Products of matrices are float32: with
the ten bits of TF32 or the seven of bfloat16 the latents would be off by more than 1e-4.

Axes: N window, C channel, H row, W column, F pixel, P component, D real coefficient, O orientation,
Q filter, R direction of the templates, S product of two of them, X template, T tangent, G turn, K fold,
M order or component of the mixture, Z content.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.harmonic_constants import FORGOTTEN_NATS, NEAR_RAD, Constants
from models.novelty import MOST_NOVEL, Calibration, HarmonicNovelty
from models.rvae import (
    _ALIKE_NATS,
    _ALIKE_SHARE,
    _LOG_SD,
    _MAX_SYMMETRY,
    _SAME_NATS,
    LEAST_SD,
    LOG_FACTOR,
    RVAE,
)

_LEAST = 1e-12


class HarmonicGraph(nn.Module):
    """Everything that is said of windows, as one function of tensors; nothing is learnt.

    Parameters
    ----------
    model
        Trained; later changes of it are not seen.
    novelty
        Fitted to its training windows.
    calibration
        Of the novelty, on other windows.
    """

    if TYPE_CHECKING:  # the constants are buffers, so that they move to a device together

        def __getattr__(self, name: str) -> Tensor: ...

    def __init__(self, model: RVAE, novelty: HarmonicNovelty, calibration: Calibration) -> None:
        super().__init__()
        const = Constants(model, novelty, calibration)
        self.latents, self.classes, self.nuisances = const.latents, const.classes, const.nuisances
        self._tangents, self._folds = len(const.precision_T), const.folds
        self._has_turn, self._has_shift = const.has_pose
        self._half_px = const.size / 2
        self._is_labelled = const.class_MK.shape[1] > 0
        self._orientations = const.orientations
        self._keep_front(model, const)
        self._keep_templates(const)
        self._keep_turns(const)
        self._keep_answers(const)

    def _keep(self, **arrays: NDArray[np.generic]) -> None:
        for name, array in arrays.items():
            kept = array.astype(np.float32) if array.dtype.kind == "f" else array
            self.register_buffer(name, torch.from_numpy(np.array(kept)))

    def _keep_front(self, model: RVAE, const: Constants) -> None:
        read_FD, alive_D, spread_D, middle_D, bias_Q = (
            part.detach().cpu().double().numpy()
            for part in (model.read_FD, model.alive_D, model.spread_D, model.middle_D, model.bias_Q)
        )
        filter_DQ = model.oriented_filters().detach().cpu().double().numpy()
        filter_DQ = filter_DQ * (alive_D / np.sqrt(spread_D))[:, None]
        self._keep(
            center_C11=const.center_C[:, None, None],
            gain_C11=const.gain_C[:, None, None],
            disc_F=np.tile(const.disc_F, const.channels),
            read_FD=read_FD / const.unit,
            unit_square=np.array(const.unit**2),
            filter_DQ=filter_DQ,
            filter_bias_Q=np.tile(bias_Q, const.orientations) - middle_D @ filter_DQ,
            ordered_D=const.ordered_D,
            scale_D=const.scale_D,
        )
        for name in ("combine", "think", "say"):
            weight, bias = getattr(const, name)
            self._keep(**{f"{name}_weight": weight, f"{name}_bias": bias})

    def _keep_templates(self, const: Constants) -> None:
        first, second = np.tril_indices(const.templates.weight.shape[1])
        row, column = np.tril_indices(self._tangents)
        pair_TT = np.zeros((self._tangents, self._tangents), dtype=np.int64)
        pair_TT[row, column] = pair_TT[column, row] = np.arange(len(row))
        for name, whole in (
            ("content", const.content),
            ("mix", const.mix),
            ("reduce", const.templates.reduce),
        ):
            self._keep(**{f"{name}_weight": whole[:, :-1].T, f"{name}_bias": whole[:, -1]})
        self._keep(
            told_HE=const.told_EH[:, :-1].T,
            told_bias=const.told_EH[:, -1],
            sd_course_22=const.sd_course_22,
            template_RD=const.templates.weight.T,
            first_S=first,
            second_S=second,
            own_SA=const.own.T,
            pair_A=pair_TT.ravel(),
            precision_TT=np.diag(const.precision_T),
            eye_TT=np.eye(self._tangents),
        )

    def _keep_turns(self, const: Constants) -> None:
        angle_PG = const.order_P[:, None] * const.turn_G.astype(np.float64)
        is_order_PM = (const.order_P[:, None] == const.layers.order_M).astype(float)
        self._keep(
            turn_G=const.turn_G,
            cos_G=np.cos(const.turn_G),
            sin_G=np.sin(const.turn_G),
            trig_DG=np.concatenate([np.cos(angle_PG), np.sin(angle_PG)]),
            order_DM=np.concatenate([is_order_PM, is_order_PM]),
            fold_K=np.arange(2, _MAX_SYMMETRY + 1, dtype=np.float64),
        )

    def _keep_answers(self, const: Constants) -> None:
        mean_MZ, variance_MZ, log_weight_M = const.mixture
        self._keep(
            mixture_mean_MZ=mean_MZ,
            mixture_variance_MZ=variance_MZ,
            mixture_log_weight_M=log_weight_M,
            class_MK=const.class_MK,
            count_M=const.count_M,
            novelty_mean_M=const.novelty_mean_M,
            whiten_MM=const.novelty_whiten_MM.T,
            center_S=const.center_S,
            unit_S=const.unit_S,
        )

    def widths(self) -> tuple[int, ...]:
        """Say how many columns of what ``forward`` returns each of the ``Answers`` takes, in their order."""
        return (self.latents, self.latents, 1, 1, 2, 2, self.classes, self.nuisances, self.nuisances, 1)

    def forward(self, windows_NCHW: Tensor) -> Tensor:
        """Say everything of windows; call it without gradients.

        Parameters
        ----------
        windows_NCHW
            Shape ``(n, channel, h, w)``, float32, on the device of this module.

        Returns
        -------
        told_NA
            The ``Answers`` side by side, ``(n, sum(widths()))``: one array is one copy to the host.
        """
        coefficient_ND, energy_N, is_whole_N = self._read(windows_NCHW)
        mean_NZ, log_sd_NZ = self._content(coefficient_ND)
        window_ND = coefficient_ND[:, self.ordered_D] * self.scale_D
        template_NXD, form_NA, weight_N, correction_NE = self._templates(mean_NZ)
        inverse_NTT = self._inverse_root(form_NA, weight_N)
        own_NX, every_NXG = self._matched(window_ND, template_NXD, form_NA)
        likely_NG, solved_NTG = _integrated(every_NXG, own_NX, weight_N, inverse_NTT)
        turns = len(self.turn_G)
        fold_N = self._fold_number(likely_NG[:, turns:], own_NX[:, 0] * weight_N)
        likely_NG, solved_NTG = likely_NG[:, :turns], solved_NTG[..., :turns]
        covariance_NTT = inverse_NTT.mT @ inverse_NTT
        amplitude_NTG = inverse_NTT.mT @ solved_NTG
        best_N = likely_NG.amax(1)
        share_NG = _shares(likely_NG, best_N)
        outside_N = energy_N - self.unit_square * coefficient_ND.square().sum(1)
        left_N = weight_N * (window_ND.square().sum(1) + own_NX[:, 0]) - 2 * best_N
        return torch.cat(
            [
                mean_NZ,
                log_sd_NZ.exp(),
                *self._corrected(
                    correction_NE,
                    self._angle(share_NG, amplitude_NTG, covariance_NTT, fold_N),
                    self._shift(share_NG, amplitude_NTG, covariance_NTT),
                ),
                self._class(mean_NZ, log_sd_NZ),
                *self._nuisance(share_NG, amplitude_NTG, covariance_NTT),
                self._novelty(window_ND, outside_N, left_N, is_whole_N)[:, None],
            ],
            1,
        )

    def _read(self, windows_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Say coefficients, energies in the disc, and which windows are finite; others are read as empty."""
        scaled_NF = ((windows_NCHW - self.center_C11) * self.gain_C11).flatten(1)
        is_whole_N = torch.isfinite(scaled_NF.square().sum(1))
        scaled_NF = scaled_NF.masked_fill(~is_whole_N[:, None], 0.0)
        return scaled_NF @ self.read_FD, scaled_NF.square() @ self.disc_F, is_whole_N

    def _content(self, coefficient_ND: Tensor) -> tuple[Tensor, Tensor]:
        read_NQ = torch.addmm(self.filter_bias_Q, coefficient_ND, self.filter_DQ).relu()
        read_OQ = read_NQ.view(-1, len(self.combine_weight))  # a window's orientations, then the next one's
        combined = torch.addmm(self.combine_bias, read_OQ, self.combine_weight).relu()
        pooled = combined.view(-1, self._orientations, combined.shape[1]).mean(1)
        thought = torch.addmm(self.think_bias, pooled, self.think_weight).relu()
        mean_NZ, log_sd_NZ = torch.addmm(self.say_bias, thought, self.say_weight).chunk(2, 1)
        return mean_NZ, log_sd_NZ.clamp(*_LOG_SD)

    def _templates(self, mean_NZ: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw upright content and tangents, say their products with each other, and how loud noise is.

        At the end, what is put right of the pose.
        """
        hidden = torch.addmm(self.content_bias, mean_NZ, self.content_weight).tanh()
        hidden = torch.addmm(self.mix_bias, hidden, self.mix_weight).tanh()
        said_NE = torch.addmm(self.told_bias, hidden, self.told_HE)
        weight_N = torch.exp(-2 * said_NE[:, 0])
        reduced_NR = torch.addmm(self.reduce_bias, hidden, self.reduce_weight)
        square_NS = reduced_NR[:, self.first_S] * reduced_NR[:, self.second_S]
        template_NXD = (reduced_NR @ self.template_RD).view(len(mean_NZ), 1 + self._tangents, -1)
        return template_NXD, square_NS @ self.own_SA, weight_N, said_NE[:, 1:]

    def _inverse_root(self, form_NA: Tensor, weight_N: Tensor) -> Tensor:
        """Invert the Cholesky factor of the tangents' precisions, by eliminating column after column.

        torch's own factorisation asks the device whether it went well, which no graph can record.
        """
        count = self._tangents
        below_NTT = form_NA[:, self.pair_A].view(len(form_NA), count, count)
        left_NTT = below_NTT * weight_N[:, None, None] + self.precision_TT
        both = torch.cat([left_NTT, self.eye_TT.expand_as(left_NTT)], 2)
        for k in range(count - 1):
            step = both[:, k + 1 :, k, None] / both[:, k, k].clamp(min=_LEAST)[:, None, None]
            both = torch.cat([both[:, : k + 1], both[:, k + 1 :] - step * both[:, k, None]], 1)
        pivot_NT1 = both.diagonal(dim1=1, dim2=2)[..., None].clamp(min=_LEAST)
        return both[..., count:] * pivot_NT1.rsqrt()

    def _matched(self, window_ND: Tensor, template_NXD: Tensor, form_NA: Tensor) -> tuple[Tensor, Tensor]:
        """Say the products of templates with the upright one, and with the window at each turn.

        After the turns of the grid follow those at which the upright content itself stands for the window.
        """
        start, templates = self._tangents * (self._tangents + 1) // 2, 1 + self._tangents
        own_NX, turned_NA = form_NA[:, start : start + templates], form_NA[:, start + templates :]
        turned_NXK = turned_NA.view(-1, self._folds, templates).mT
        real, imaginary = window_ND[:, None].chunk(2, 2)
        other_real, other_imaginary = template_NXD.chunk(2, 2)
        product_NXD = torch.cat(
            [
                real * other_real + imaginary * other_imaginary,
                imaginary * other_real - real * other_imaginary,
            ],
            2,
        )
        return own_NX, torch.cat([product_NXD @ self.trig_DG, turned_NXK], 2)

    def _fold_number(self, likely_NK: Tensor, upright_N: Tensor) -> Tensor:
        """Say in how many turns the upright contents look the same."""
        lost_NK = upright_N[:, None] - likely_NK
        most_N1 = lost_NK.amax(1, keepdim=True).clamp(min=0)
        is_same = (lost_NK < _SAME_NATS) | ((lost_NK < _ALIKE_NATS) & (lost_NK < _ALIKE_SHARE * most_N1))
        return self.fold_K.expand_as(lost_NK).masked_fill(~is_same, 1.0).amax(1)

    def _angle(
        self, share_NG: Tensor, amplitude_NTG: Tensor, covariance_NTT: Tensor, fold_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Average the angle near the most probable one; its circular sd among turns that look different."""
        if not self._has_turn:
            return share_NG[:, :1] * 0, share_NG[:, :1] * 0
        at, fold_N1 = 2 if self._has_shift else 0, fold_N[:, None]
        angle_NG = self.turn_G + amplitude_NTG[:, at]
        best_N1 = angle_NG.gather(1, share_NG.argmax(1, keepdim=True))
        away_NG = _wrapped(angle_NG - best_N1)
        near_NG = share_NG.masked_fill(away_NG.abs() >= NEAR_RAD, 0.0)
        angle_N1 = best_N1 + (near_NG * away_NG).sum(1, True) / near_NG.sum(1, True)
        narrowed_N1 = -0.5 * fold_N1.square() * covariance_NTT[:, at, at, None]
        half_NG = torch.sin(0.5 * fold_N1 * (angle_NG - angle_N1))
        short_NG = 2 * half_NG.square() * torch.exp(narrowed_N1) - torch.expm1(narrowed_N1)
        short_N1 = (share_NG * short_NG).sum(1, True).clamp(0.0, 1 - 1e-6)
        sd_N1 = torch.sqrt(-2 * torch.log1p(-short_N1)) / fold_N1
        return _wrapped(angle_N1), sd_N1

    def _shift(
        self, share_NG: Tensor, amplitude_NTG: Tensor, covariance_NTT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Turn the shifts of the upright content into the window and average over the turns."""
        if not self._has_shift:
            return share_NG[:, :1].expand(-1, 2) * 0, share_NG[:, :1].expand(-1, 2) * 0
        cos_G, sin_G, share_N1G = self.cos_G, self.sin_G, share_NG[:, None]
        x_NG, y_NG = amplitude_NTG[:, 0], amplitude_NTG[:, 1]
        along_N2G = torch.stack([x_NG * cos_G - y_NG * sin_G, x_NG * sin_G + y_NG * cos_G], 1)
        xx_N1, yy_N1, xy_N1 = (covariance_NTT[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 1)))
        both_NG = 2 * cos_G * sin_G * xy_N1
        narrow_N2G = torch.stack(
            [
                cos_G**2 * xx_N1 + sin_G**2 * yy_N1 - both_NG,
                sin_G**2 * xx_N1 + cos_G**2 * yy_N1 + both_NG,
            ],
            1,
        )
        mean_N2 = (share_N1G * along_N2G).sum(2)
        spread_N2G = (along_N2G - mean_N2[..., None]).square() + narrow_N2G
        sd_N2 = (share_N1G * spread_N2G).sum(2).clamp(min=0).sqrt()
        return mean_N2 / self._half_px, sd_N2 / self._half_px

    def _corrected(
        self, correction_NE: Tensor, angle: tuple[Tensor, Tensor], shift: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Put angle, shift and their sds right, by what the contents say of them."""
        (angle_N1, angle_sd_N1), (shift_N2, shift_sd_N2) = angle, shift
        log_factor_N2 = correction_NE[:, 3:].clamp(*LOG_FACTOR)
        if self._has_shift:
            x, y, cos, sin = correction_NE[:, :1], correction_NE[:, 1:2], angle_N1.cos(), angle_N1.sin()
            moved_N2 = torch.cat([x * cos - y * sin, x * sin + y * cos], 1)
            shift_N2, shift_sd_N2 = (
                shift_N2 + moved_N2 / self._half_px,
                self._believed(shift_sd_N2, log_factor_N2, 1),
            )
        if self._has_turn:
            angle_N1 = _wrapped(angle_N1 + correction_NE[:, 2:3])
            angle_sd_N1 = self._believed(angle_sd_N1, log_factor_N2, 0)
        return angle_N1, angle_sd_N1, shift_N2, shift_sd_N2

    def _believed(self, sd: Tensor, log_factor_N2: Tensor, which: int) -> Tensor:
        """Say how far sds can be believed, by what the contents say and by the sds themselves."""
        slope, level = self.sd_course_22[which]
        by_itself = slope * sd.clamp(min=LEAST_SD).log() + level
        believed: Tensor = sd * (log_factor_N2[:, which : which + 1] + by_itself).exp()
        return believed

    def _nuisance(
        self, share_NG: Tensor, amplitude_NTG: Tensor, covariance_NTT: Tensor
    ) -> tuple[Tensor, Tensor]:
        start, share_N1G = self._tangents - self.nuisances, share_NG[:, None]
        amplitude_NVG = amplitude_NTG[:, start:]
        mean_NV = (share_N1G * amplitude_NVG).sum(2)
        spread_NV = (share_N1G * (amplitude_NVG - mean_NV[..., None]).square()).sum(2)
        narrow_NV = covariance_NTT.diagonal(dim1=1, dim2=2)[:, start:]
        return mean_NV, (spread_NV + narrow_NV).clamp(min=0).sqrt()

    def _class(self, mean_NZ: Tensor, log_sd_NZ: Tensor) -> Tensor:
        """Share each content among the components of the mixture, and those among the labels' classes."""
        variance_NMZ = self.mixture_variance_MZ + torch.exp(2 * log_sd_NZ)[:, None]
        away_NMZ = (mean_NZ[:, None] - self.mixture_mean_MZ).square() / variance_NMZ
        density_NM = self.mixture_log_weight_M - 0.5 * (away_NMZ + variance_NMZ.log()).sum(2)
        share_NM = torch.softmax(density_NM, 1)
        return share_NM @ self.class_MK if self._is_labelled else share_NM

    def _novelty(self, window_ND: Tensor, outside_N: Tensor, left_N: Tensor, is_whole_N: Tensor) -> Tensor:
        """Say how far windows are from the training's: what is outside, unexplained, of unusual powers."""
        log_power_NM = torch.log(window_ND.square() @ self.order_DM + self.count_M)
        far_N = ((log_power_NM - self.novelty_mean_M) @ self.whiten_MM).square().sum(1)
        statistic_NS = 0.5 * torch.log(torch.stack([outside_N, left_N, far_N], 1).clamp(min=0) + _LEAST)
        away_N = ((statistic_NS - self.center_S) / self.unit_S).amax(1)
        return away_N.clamp(0, MOST_NOVEL).masked_fill(~is_whole_N, MOST_NOVEL)


def _integrated(
    every_NXG: Tensor, own_NX: Tensor, weight_N: Tensor, inverse_NTT: Tensor
) -> tuple[Tensor, Tensor]:
    """Integrate the tangents out at each turn: log likelihoods up to what no turn changes."""
    excess_NTG = weight_N[:, None, None] * (every_NXG[:, 1:] - own_NX[:, 1:, None])
    solved_NTG = inverse_NTT @ excess_NTG
    return weight_N[:, None] * every_NXG[:, 0] + 0.5 * solved_NTG.square().sum(1), solved_NTG


def _shares(likely_NG: Tensor, best_N: Tensor) -> Tensor:
    """Share a window among the turns that are not far less probable than the best, as the CPU does."""
    below_NG = likely_NG - best_N[:, None]
    share_NG = below_NG.exp().masked_fill(below_NG <= -FORGOTTEN_NATS, 0.0)
    return share_NG / share_NG.sum(1, keepdim=True)


def _wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
