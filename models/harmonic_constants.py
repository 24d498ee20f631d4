"""What is fixed once a harmonic rVAE is loaded, in the types and orders in which it is run.

* A window is folded onto a quarter of itself. Components are even or odd when rows and when columns are
  mirrored, so each meets one of four foldings only: a quarter of the products.
* At orientations that are half a turn apart, components of even order look the same and odd ones change
  sign: half of the products of the filters, the rest is sums and differences. So it is with the turns of
  the grid on which the angle is integrated.
* The tangents are linear in the decoder's last hidden layer, and those layers of all contents lie close to
  few directions. The directions are found from contents drawn from the prior; as many are kept as leave
  ``_TEMPLATE_ERROR`` of the learnt noise.

Axes: C channel, H row, W column, F folded pixel, P component, D real coefficient, O orientation, Q filter,
X template (the upright content and its tangents), T tangent, M order, G turn on the grid, R direction.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models import steerable
from models.novelty import Calibration, HarmonicNovelty
from models.rvae import _LOG_NOISE, _LOG_SD, _MAX_SYMMETRY, RVAE

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Turns that are less probable than the best by so much say nothing; and near it are those in so many radians.
FORGOTTEN_NATS, NEAR_RAD = 14.0, 0.4
_TEMPLATE_ERROR = 0.02  # rms over a component, in sds of its noise
_DRAWN_CONTENTS = 4096
_ASYMMETRY = 1e-4  # of a component whose columns have unit length, with 500 pixels: 2e-3 a pixel


class _Fold(NamedTuple):
    """How windows become coefficients: a folding, and a matrix for each of its parts.

    What the parts give, side by side, is all coefficients but those that are always 0: first those that
    are the same at opposite orientations, then those that change sign.
    """

    edge: int
    matrix: Float32  # those of all parts, each (F, its width), one after another
    width_K: Int64
    place_D: Int64  # of each coefficient among those side by side


def _fold_of(basis_FD: Float64, channels: int, size: int, is_odd_D: Bools, is_alive_D: Bools) -> _Fold:
    """Sort the components by their mirror symmetries; where one has none, nothing is folded."""
    pictures = basis_FD.reshape(channels, size, size, -1)
    half = (size + 1) // 2
    part_of_D = np.full(basis_FD.shape[1], -1)
    for part, (across, down) in enumerate(((1, 1), (-1, -1), (-1, 1), (1, -1))):
        is_such = (_differs(pictures, pictures[:, :, ::-1] * across) < _ASYMMETRY) & (
            _differs(pictures, pictures[:, ::-1] * down) < _ASYMMETRY
        )
        part_of_D[is_such & (part_of_D < 0)] = part
    by_part = np.lexsort((is_odd_D, part_of_D))
    if (part_of_D < 0).any() or (np.diff(is_odd_D[by_part].astype(int)) < 0).any():
        return _side_by_side(size, basis_FD[None], np.zeros_like(part_of_D), is_odd_D, is_alive_D)
    weight = np.ones(half)
    weight[half - 1] = 0.5 if size % 2 else 1.0  # the middle of an odd edge is its own mirror image
    quarter = pictures[:, :half, :half] * weight[:, None, None] * weight[:, None]
    return _side_by_side(half, np.stack([quarter] * 4), part_of_D, is_odd_D, is_alive_D)


def _side_by_side(
    edge: int, pictures_K: Float64, part_of_D: Int64, is_odd_D: Bools, is_alive_D: Bools
) -> _Fold:
    """Put the coefficients of all parts side by side, without those that are always 0."""
    parts = len(pictures_K)
    chosen = [np.flatnonzero((part_of_D == part) & is_alive_D) for part in range(parts)]
    chosen = [own[np.argsort(is_odd_D[own], kind="stable")] for own in chosen]
    flat = pictures_K.reshape(parts, -1, len(part_of_D))
    matrix = np.concatenate([flat[part][:, own].ravel() for part, own in enumerate(chosen)])
    place_D = np.zeros(len(part_of_D), dtype=np.int64)
    place_D[np.concatenate(chosen)] = np.arange(is_alive_D.sum())
    return _Fold(edge, _f32(matrix), np.array([len(own) for own in chosen]), place_D)


def _differs(one: Float64, other: Float64) -> Float64:
    apart: Float64 = np.sqrt(((one - other) ** 2).sum((0, 1, 2)))
    return apart


class _Order(NamedTuple):
    """Components in runs: of each order the first, then of each the second, and so on.

    Orders that change sign half a turn on come after those that do not, and among both those with most
    components first: a run is the beginning of a list of orders, and sums over the components of an order
    are sums of runs.
    """

    component_P: Int64  # where each is in the model
    order_M: Int64
    changing: int  # where the orders that change sign begin
    run_L3: Int64  # of each run the first component, how many, and its first order


def _runs(order_P: Int64, halved: bool) -> _Order:
    orders, counts = np.unique(order_P, return_counts=True)
    is_changing = (orders % 2 == 1) & halved
    ranked = np.lexsort((-counts, is_changing))
    orders, counts, is_changing = orders[ranked], counts[ranked], is_changing[ranked]
    component: list[int] = []
    runs = []
    for kind in (False, True):
        begin = int((~is_changing).sum()) if kind else 0
        of_kind = orders[is_changing == kind], counts[is_changing == kind]
        for layer in range(int(of_kind[1].max(initial=0))):
            taken = [m for m, n in zip(*of_kind, strict=True) if n > layer]
            runs.append((len(component), len(taken), begin))
            component += [int(np.flatnonzero(order_P == m)[layer]) for m in taken]
    return _Order(np.array(component), orders, int((~is_changing).sum()), np.array(runs))


def _of(tensor: torch.Tensor) -> Float64:
    return tensor.detach().cpu().double().numpy()


def _f32(array: NDArray[np.floating]) -> Float32:
    return np.ascontiguousarray(array, dtype=np.float32)


def _layer(linear: torch.nn.Linear) -> tuple[Float32, Float32]:
    return _f32(_of(linear.weight).T), _f32(_of(linear.bias))


def _with_bias(linear: torch.nn.Linear) -> Float32:
    """Weights ``(out, in + 1)`` for inputs whose last number is 1."""
    return _f32(np.column_stack([_of(linear.weight), _of(linear.bias)]))


class _Filters(NamedTuple):
    """The filters at the orientations of half a turn, for the coefficients in the order of the fold.

    With an odd number of orientations none are opposite, and all coefficients count as even.
    """

    even: Float32  # (D even, O * Q)
    odd: Float32
    bias: Float32  # (O * Q,)


def _filters_of(model: RVAE, is_odd_D: Bools, place_D: Int64) -> _Filters:
    taken = model.orientations // 2 if model.orientations % 2 == 0 else model.orientations
    spread, is_alive_D = _of(model.spread_D), _of(model.alive_D) > 0
    filters = _of(model.oriented_filters())[:, : taken * len(model.bias_Q)] / np.sqrt(spread)[:, None]
    bias = np.tile(_of(model.bias_Q), taken) - _of(model.middle_D) @ filters
    placed = np.zeros((is_alive_D.sum(), filters.shape[1]))
    placed[place_D[is_alive_D]] = filters[is_alive_D]
    even = int((~is_odd_D & is_alive_D).sum())
    return _Filters(_f32(placed[:even]), _f32(placed[even:]), _f32(bias))


class _Templates(NamedTuple):
    """Upright content and tangents, in units of the noise, from the decoder's last hidden layer.

    The last number of the layer and the last of the directions is 1, which carries what is constant.
    """

    reduce: Float32  # (R + 1, H + 1)
    weight: Float32  # (X * D, R + 1)


def _templates_of(model: RVAE, inverse_D: Float64, ordered_D: Int64) -> _Templates:
    """Keep those directions of the hidden layer that contents of the prior need."""
    operator_XDD = np.concatenate([np.eye(len(inverse_D))[None], _of(model.operator_TDD)])
    constant_XD = np.concatenate([np.zeros((1, len(inverse_D))), _of(model.constant_TD)])
    draw_HD, bias_D = _of(model.draw.weight).T * _of(model.alive_D), _of(model.draw.bias) * _of(model.alive_D)
    weight_HXD = np.einsum("hd,xde->hxe", draw_HD, operator_XDD) * inverse_D
    constant_XD = np.einsum("d,xde->xe", bias_D, operator_XDD) * inverse_D + constant_XD * inverse_D
    hidden_NH = _hidden(model, _contents(model))
    mean_H = hidden_NH.mean(0)
    # Directions in the order of what they change of the templates, each tangent at its prior sd.
    sds = np.concatenate([[1.0], _of(model.amplitude_sd_T)])
    change = (weight_HXD * sds[:, None]).reshape(len(draw_HD), -1)
    value, vector = np.linalg.eigh(change @ change.T)
    root = vector * np.sqrt(np.maximum(value, 0))
    _, size, direction = np.linalg.svd((hidden_NH - mean_H) @ root, full_matrices=False)
    left = np.append(np.cumsum((size**2)[::-1])[::-1], 0.0) / len(hidden_NH)
    rank = max(1, int(np.argmax(left <= _TEMPLATE_ERROR**2 * len(inverse_D) / 2)))
    inverse_root = vector / np.sqrt(np.maximum(value, value.max() * 1e-12))
    reduce_HR, expand_RH = root @ direction[:rank].T, direction[:rank] @ inverse_root.T
    constant_XD += np.einsum("h,hxd->xd", mean_H, weight_HXD)
    weight_RXD = np.einsum("rh,hxd->rxd", expand_RH, weight_HXD)
    reduce = np.zeros((len(mean_H) + 1, rank + 1))
    reduce[:-1, :-1], reduce[-1, :-1], reduce[-1, -1] = reduce_HR, -mean_H @ reduce_HR, 1
    weight = np.concatenate([weight_RXD, constant_XD[None]])[:, :, ordered_D]
    return _Templates(_f32(reduce.T), _f32(weight.reshape(rank + 1, -1).T))


def _own_products(template_XDR: Float64, order_P: Int64, turn_K: Float64) -> Float32:
    """Say what the templates' products with each other are of the products of the few directions.

    Returns
    -------
    forms
        Shape ``(T (T + 1) / 2 + X + K X, R (R + 1) / 2)``: the tangents with each other, row by row below the
        diagonal; the upright content with every template; and so at every one of some turns.
    """
    count, _, rank = template_XDR.shape
    every = np.einsum("xda,ydb->xyab", template_XDR, template_XDR, optimize=True)
    angle_KP = turn_K[:, None] * order_P
    real, imaginary = np.split(template_XDR[0], 2)
    cos, sin = np.cos(angle_KP)[..., None], np.sin(angle_KP)[..., None]
    turned_KDR = np.concatenate([cos * real + sin * imaginary, cos * imaginary - sin * real], axis=1)
    own = np.einsum("kda,xdb->kxab", turned_KDR, template_XDR, optimize=True).reshape(-1, rank, rank)
    below = [every[1 + i, 1 + j] for i in range(count - 1) for j in range(i + 1)]
    forms = np.concatenate([np.array(below).reshape(-1, rank, rank), every[0], own])
    both = forms + forms.transpose(0, 2, 1) * (1 - np.eye(rank))
    first, second = np.tril_indices(rank)
    return _f32(both[:, first, second])


def _contents(model: RVAE) -> torch.Tensor:
    """Draw contents from the prior, wider than it is so that rare ones are drawn as well."""
    random = torch.Generator().manual_seed(0)
    share_M = torch.softmax(model.mixture_logit_M, 0).double()
    which = torch.multinomial(share_M, _DRAWN_CONTENTS, replacement=True, generator=random)
    away = 1.5 * torch.randn(_DRAWN_CONTENTS, model.latent_dim, generator=random)
    return model.mixture_mean_MZ[which] + away * torch.exp(model.mixture_log_sd_MZ[which])


def _hidden(model: RVAE, mean_NZ: torch.Tensor) -> Float64:
    return _of(torch.tanh(model.mix(torch.tanh(model.content(mean_NZ)))))


class Constants:
    """Every constant of a model in the types and orders that the loops take."""

    @torch.no_grad()
    def __init__(self, model: RVAE, novelty: HarmonicNovelty, calibration: Calibration) -> None:
        order_P = _of(model.order_P).astype(np.int64)
        halved = model.turns % 2 == 0
        self.layers = _runs(order_P, halved)
        self.unit = float(model.unit)
        self.size, self.channels = model.window_px, model.channels
        is_alive_D = _of(model.alive_D) > 0
        is_odd_D = (np.tile(order_P, 2) % 2 == 1) & (model.orientations % 2 == 0)
        read_FD = _of(model.read_FD) / self.unit
        self.fold = _fold_of(read_FD, model.channels, model.window_px, is_odd_D, is_alive_D)
        self.disc_F = _f32(steerable.disc(model.window_px).ravel())
        self.center_C, self.gain_C = _f32(_of(model.center_C)), _f32(1 / _of(model.scale_C))
        self.filters = _filters_of(model, is_odd_D, self.fold.place_D)
        self.orientations = model.orientations
        self.combine, self.think, self.say = _layer(model.combine), _layer(model.think), _layer(model.say)
        self.content, self.mix = _with_bias(model.content), _with_bias(model.mix)
        # How loud the noise is, and what is put right of the pose.
        self.told_EH = np.concatenate([_with_bias(model.louder), _f32(_of(model.correction_EH))])
        self.sd_course_22 = _f32(_of(model.sd_course_22))
        component_P = self.layers.component_P
        self.order_P = order_P[component_P]
        self.ordered_D = np.concatenate([component_P, component_P + len(order_P)])
        inverse_D = np.exp(-np.tile(_of(model.log_noise_P).clip(*_LOG_NOISE), 2)) * _of(model.alive_D)
        self.scale_D = _f32(inverse_D[self.ordered_D])
        self.templates = _templates_of(model, inverse_D, self.ordered_D)
        rank = self.templates.weight.shape[1]
        self.precision_T = _f32(_of(model.amplitude_sd_T) ** -2)
        self.has_pose = (model.rotation, model.shift)
        order_M = self.layers.order_M
        turn_G = np.arange(model.turns) * (2 * math.pi / model.turns)
        self.turn_G = _f32(turn_G)
        # Of a grid that opposite turns share, half is enough: what changes sign there is apart.
        taken = model.turns // 2 if halved else model.turns
        angle_GM = turn_G[:taken, None] * order_M
        same, changing = np.split(angle_GM, [self.layers.changing], axis=1)
        # The last row is what a tangent matches of the upright content, the same at all turns.
        self.even_GR = _f32(np.column_stack([np.cos(same), np.sin(same), np.ones(taken)]))
        self.odd_GR = _f32(np.column_stack([np.cos(changing), np.sin(changing)]))
        folds = np.arange(2, _MAX_SYMMETRY + 1)
        turn_K = turn_G[np.rint(model.turns / folds).astype(int) % model.turns]
        template_XDR = self.templates.weight.astype(np.float64).reshape(1 + len(model.tangents), -1, rank)
        self.own = _own_products(template_XDR, self.order_P, turn_K)
        self.folds = len(folds)
        kept = int(model.mixture_size)
        self.mixture = (
            _f32(_of(model.mixture_mean_MZ)[:kept]),
            _f32(np.exp(2 * _of(model.mixture_log_sd_MZ).clip(*_LOG_SD))[:kept]),
            _f32(_of(torch.log_softmax(model.mixture_logit_M, 0))[:kept]),
        )
        self.class_MK = _f32(_of(torch.softmax(model.class_logit_MK, 1))[:kept])
        self.classes = self.class_MK.shape[1] or kept
        self.latents, self.nuisances = model.latent_dim, len(model.nuisances)
        counts = np.array([(order_P == m).sum() for m in order_M])
        self.count_M = _f32(counts * np.where(order_M > 0, 2, 1))
        at = np.argsort(np.argsort(order_M))  # the novelty has its orders ascending
        self.novelty_mean_M = _f32(_of(novelty.mean_M)[at])
        self.novelty_whiten_MM = _f32(_of(novelty.whiten_MM)[at].T)
        self.ascending_M = np.argsort(order_M)
        self.center_S, self.unit_S = (_f32(np.array(part)) for part in calibration)
