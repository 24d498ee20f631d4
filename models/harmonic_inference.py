"""The harmonic rVAE as it runs live on a CPU: the whole posterior of 64 windows in a quarter millisecond.

It computes what ``RVAE.posterior`` computes, in another order:

* A window is folded onto a quarter of itself first. Components are even or odd when rows and when columns are
  mirrored, so each meets one of four foldings only: a quarter of the products.
* At orientations that are half a turn apart, components of even order look the same and odd ones change
  sign: half of the products of the filters, the rest is sums and differences.
* The tangents are linear in the decoder's last hidden layer, and those layers of all contents lie close to
  few directions. The directions are found from contents drawn from the prior when the model is loaded; as
  many are kept as leave ``_TEMPLATE_ERROR`` of the learnt noise.
* The likelihood at all turns of the grid is a product with a table; the integral over the tangents is a
  Cholesky factor of a window's own seven numbers squared, not one for each turn.

Arrays are made once, for blocks of fixed sizes whose arithmetic is the same window by window, bit for bit:
what is said of a window does not depend on what else is encoded. That the sizes agree is tried when a model
is loaded.

Axes: N window, C channel, H row, W column, F folded pixel, P component, D real coefficient, O orientation,
Q filter, X template (the upright content and its tangents), M order, G turn on the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from models.answers import Answers
from models.novelty import MOST_NOVEL, Calibration, HarmonicNovelty
from models.rvae import _ALIKE_NATS, _ALIKE_SHARE, _LOG_NOISE, _LOG_SD, _MAX_SYMMETRY, _SAME_NATS, RVAE

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

SMALL, LARGE = 16, 64
_TEMPLATE_ERROR = 0.02  # rms over a component, in sds of its noise
_DRAWN_CONTENTS = 4096
_ASYMMETRY = 1e-4  # of a component whose columns have unit length, with 500 pixels: 2e-3 a pixel
_FORGOTTEN_NATS = 14.0
_NEAR_RAD = 0.4
_ROWS = 256
_NATIVE = {"contract", "reassoc"}


# -- what is fixed once a model is loaded ---------------------------------------------------------------


class _Fold(NamedTuple):
    """How windows become coefficients: a folding, and a matrix for each of its parts."""

    parts: int
    edge: int
    matrix: Float32  # (parts, F, D of a part)
    part_of_D: Int64
    column_of_D: Int64


def _fold_of(basis_FD: Float64, channels: int, size: int) -> _Fold:
    """Sort the components by their mirror symmetries; where one has none, nothing is folded."""
    pictures = basis_FD.reshape(channels, size, size, -1)
    half = (size + 1) // 2
    signs = ((1, 1), (-1, 1), (1, -1), (-1, -1))
    part_of_D = np.full(basis_FD.shape[1], -1)
    for part, (across, down) in enumerate(signs):
        is_such = (_differs(pictures, pictures[:, :, ::-1] * across) < _ASYMMETRY) & (
            _differs(pictures, pictures[:, ::-1] * down) < _ASYMMETRY
        )
        part_of_D[is_such & (part_of_D < 0)] = part
    if (part_of_D < 0).any():
        every = np.arange(basis_FD.shape[1])
        return _Fold(1, size, basis_FD[None].astype(np.float32), np.zeros_like(every), every)
    weight = np.ones(half)
    weight[half - 1] = 0.5 if size % 2 else 1.0  # the middle of an odd edge is its own mirror image
    quarter = pictures[:, :half, :half] * weight[:, None, None] * weight[:, None]
    column_of_D = np.array([int((part_of_D[:at] == part).sum()) for at, part in enumerate(part_of_D)])
    matrix = np.zeros((4, channels * half * half, int(column_of_D.max()) + 1), dtype=np.float32)
    for at, (part, column) in enumerate(zip(part_of_D, column_of_D, strict=True)):
        matrix[part, :, column] = quarter[..., at].ravel()
    return _Fold(4, half, matrix, part_of_D, column_of_D)


def _differs(one: Float64, other: Float64) -> Float64:
    apart: Float64 = np.sqrt(((one - other) ** 2).sum((0, 1, 2)))
    return apart


class _Order(NamedTuple):
    """Components in layers: of each order the first, then of each the second, and so on.

    The orders with most components come first, so a layer is the beginning of the list of orders and sums
    over the components of an order are sums of layers.
    """

    component_P: Int64  # where each is in the model
    layer_start: Int64  # one more than there are layers
    order_M: Int64


def _layers(order_P: Int64) -> _Order:
    orders, counts = np.unique(order_P, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    orders, counts = orders[by_count], counts[by_count]
    component, start = [], [0]
    for layer in range(int(counts.max())):
        component += [
            np.flatnonzero(order_P == m)[layer] for m, n in zip(orders, counts, strict=True) if n > layer
        ]
        start.append(len(component))
    return _Order(np.array(component), np.array(start), orders)


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
    """The filters at the orientations of half a turn, for coefficients of even and of odd order.

    With an odd number of orientations none are opposite, and all coefficients count as even.
    """

    even_D: Int64
    odd_D: Int64
    even: Float32  # (D even, O * Q)
    odd: Float32
    bias: Float32  # (O * Q,)


def _filters_of(model: RVAE) -> _Filters:
    halved = model.orientations % 2 == 0
    taken = model.orientations // 2 if halved else model.orientations
    alive, spread = _of(model.alive_D), _of(model.spread_D)
    is_odd_D = (np.tile(_of(model.order_P), 2) % 2 == 1) & halved
    filters = _of(model.oriented_filters())[:, : taken * len(model.bias_Q)] / np.sqrt(spread)[:, None]
    bias = np.tile(_of(model.bias_Q), taken) - _of(model.middle_D) @ filters
    even_D, odd_D = np.flatnonzero(~is_odd_D & (alive > 0)), np.flatnonzero(is_odd_D)
    return _Filters(even_D, odd_D, _f32(filters[even_D]), _f32(filters[odd_D]), _f32(bias))


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


# -- the loops ---------------------------------------------------------------------------------------------


@njit(cache=True, fastmath=_NATIVE)
def _fold(
    windows: Float32,
    count: int,
    center_C: Float32,
    gain_C: Float32,
    folded: Float32,
    energy_N: Float32,
    is_whole_N: NDArray[np.bool_],
) -> None:
    """Scale windows, say their energies, and fold them; one with NaN or infinity becomes an empty one."""
    channels, size = windows.shape[1], windows.shape[2]
    half = (size + 1) // 2
    last = np.uint64(size - 1)  # unsigned, because numba asks of every signed index whether it is negative
    for i in range(count):
        energy = np.float32(0)
        for c in range(channels):
            level, square = center_C[c], np.float32(0)
            flat = windows[i, c].ravel()
            for at in range(len(flat)):
                square += (flat[at] - level) * (flat[at] - level)
            energy += square * gain_C[c] * gain_C[c]
        is_whole_N[i] = math.isfinite(energy)
        energy_N[i] = energy if is_whole_N[i] else np.float32(0)
        if not is_whole_N[i]:
            folded[:, i] = 0
        elif folded.shape[0] == 1:
            for c in range(channels):
                for row in range(size):
                    at = (c * size + row) * size
                    for col in range(size):
                        folded[0, i, at + col] = (windows[i, c, row, col] - center_C[c]) * gain_C[c]
        else:
            for c in range(channels):
                gain, level = gain_C[c], np.float32(4) * center_C[c]
                for row in range(half):
                    upper, lower = windows[i, c, row], windows[i, c, size - 1 - row]
                    at = (c * half + row) * half
                    for col in range(half):
                        left, right = upper[col], upper[last - np.uint64(col)]
                        below, beside = lower[col], lower[last - np.uint64(col)]
                        folded[0, i, at + col] = (left + right + below + beside - level) * gain
                        folded[1, i, at + col] = (left - right + below - beside) * gain
                        folded[2, i, at + col] = (left + right - below - beside) * gain
                        folded[3, i, at + col] = (left - right - below + beside) * gain


@njit(cache=True, fastmath=_NATIVE)
def _arrange(
    coefficient: Float32,
    place_D: UInt64,
    even_D: UInt64,
    odd_D: UInt64,
    scale_D: Float32,
    even: Float32,
    odd: Float32,
    window_DN: Float32,
) -> None:
    """Hand the coefficients on: even and odd ones to the filters, all of them to the pose."""
    flat, step = coefficient.ravel(), np.uint64(coefficient.shape[2])
    for i in range(even.shape[0]):
        start = np.uint64(i) * step
        for at in range(even.shape[1]):
            even[i, at] = flat[start + even_D[at]]
        for at in range(odd.shape[1]):
            odd[i, at] = flat[start + odd_D[at]]
    for at in range(len(place_D)):
        line, place, scale = window_DN[at], place_D[at], scale_D[at]
        for i in range(len(line)):
            line[i] = flat[place + np.uint64(i) * step] * scale


@njit(cache=True, fastmath=_NATIVE)
def _inside(coefficient: Float32, unit: float, energy_N: Float32, outside_N: Float32) -> None:
    """Say how much of the windows' energy lies outside the components."""
    square = np.float32(unit * unit)
    for i in range(len(energy_N)):
        inside = np.float32(0)
        for part in range(coefficient.shape[0]):
            line = coefficient[part, i]
            for at in range(len(line)):
                inside += line[at] * line[at]
        outside_N[i] = max(energy_N[i] - square * inside, np.float32(0))


@njit(cache=True, fastmath=_NATIVE)
def _orient(even: Float32, odd: Float32, bias: Float32, read: Float32) -> None:
    """Put together what the filters see at each orientation and half a turn from it: ``(N, O * Q)``."""
    taken, zero = len(bias), np.float32(0)
    for i in range(len(even)):
        same, changing, here, opposite = even[i], odd[i], read[i, :taken], read[i, taken:]
        if len(opposite) == taken:
            for q in range(taken):
                here[q] = max(same[q] + bias[q] + changing[q], zero)
                opposite[q] = max(same[q] + bias[q] - changing[q], zero)
        else:
            for q in range(taken):
                here[q] = max(same[q] + bias[q], zero)


@njit(cache=True, fastmath=_NATIVE)
def _average(combined: Float32, bias: Float32, pooled: Float32) -> None:
    """Average over the orientations what is above zero."""
    orientations = combined.shape[0] // pooled.shape[0]
    share = np.float32(1 / orientations)
    for i in range(pooled.shape[0]):
        out = pooled[i]
        out[:] = 0
        for k in range(orientations):
            line = combined[i * orientations + k]
            for q in range(len(bias)):
                out[q] += max(line[q] + bias[q], np.float32(0))
        for q in range(len(bias)):
            out[q] *= share


@njit(cache=True, fastmath=_NATIVE)
def _rectify(values: Float32, bias: Float32) -> None:
    for i in range(values.shape[0]):
        for q in range(len(bias)):
            values[i, q] = max(values[i, q] + bias[q], np.float32(0))


@njit(cache=True, fastmath=_NATIVE)
def _say(
    said: Float32,
    bias: Float32,
    bounds: tuple[float, float],
    mean_NZ: Float32,
    mean_ZN: Float32,
    sd_NZ: Float32,
) -> None:
    latents = mean_NZ.shape[1]
    for i in range(said.shape[0]):
        for z in range(latents):
            mean_NZ[i, z] = said[i, z] + bias[z]
            mean_ZN[z, i] = mean_NZ[i, z]
            log_sd = said[i, latents + z] + bias[latents + z]
            sd_NZ[i, z] = math.exp(min(max(log_sd, bounds[0]), bounds[1]))


@njit(cache=True, fastmath=_NATIVE)
def _match(
    window_DN: Float32, template_XDN: Float32, layer_start: Int64, row_2M: Int64, product_RXN: Float32
) -> None:
    """Sum windows times templates over the components of each order, into the rows of its two parts."""
    components, windows = window_DN.shape[0] // 2, window_DN.shape[1]
    product_RXN[:] = 0
    for x in range(len(template_XDN)):
        for layer in range(len(layer_start) - 1):
            first = layer_start[layer]
            for re in range(first, layer_start[layer + 1]):
                im, above, below = components + re, row_2M[0, re - first], row_2M[1, re - first]
                for n in range(windows):
                    real, imaginary = window_DN[re, n], window_DN[im, n]
                    other_real, other_imaginary = template_XDN[x, re, n], template_XDN[x, im, n]
                    product_RXN[above, x, n] += real * other_real + imaginary * other_imaginary
                    product_RXN[below, x, n] += imaginary * other_real - real * other_imaginary


@njit(cache=True, fastmath=_NATIVE)
def _powers(window_DN: Float32, layer_start: Int64, power_MN: Float32) -> None:
    components = len(window_DN) // 2
    power_MN[:] = 0
    for layer in range(len(layer_start) - 1):
        first = layer_start[layer]
        for p in range(first, layer_start[layer + 1]):
            real, imaginary, out = window_DN[p], window_DN[components + p], power_MN[p - first]
            for n in range(len(out)):
                out[n] += real[n] * real[n] + imaginary[n] * imaginary[n]


@njit(cache=True, fastmath=_NATIVE)
def _square(reduced_RN: Float32, square_SN: Float32) -> None:
    """Multiply the directions with each other, row by row below the diagonal."""
    at = 0
    for i in range(reduced_RN.shape[0]):
        for j in range(i + 1):
            for n in range(reduced_RN.shape[1]):
                square_SN[at, n] = reduced_RN[i, n] * reduced_RN[j, n]
            at += 1


@njit(cache=True, fastmath=_NATIVE)
def _factor(
    below_SN: Float32, weight_N: Float32, precision_T: Float32, root_TTN: Float32, inverse_TTN: Float32
) -> None:
    """Factor the tangents' precisions, and invert the factors: ``inverse' inverse`` is their covariance."""
    tangents, windows = len(precision_T), len(weight_N)
    at = 0
    for i in range(tangents):
        for j in range(i + 1):
            own = precision_T[i] if i == j else np.float32(0)
            for n in range(windows):
                root_TTN[i, j, n] = below_SN[at, n] * weight_N[n] + own
            at += 1
            for k in range(j):
                for n in range(windows):
                    root_TTN[i, j, n] -= root_TTN[i, k, n] * root_TTN[j, k, n]
            if i == j:
                for n in range(windows):
                    root_TTN[i, i, n] = math.sqrt(max(root_TTN[i, i, n], np.float32(1e-12)))
                    inverse_TTN[i, i, n] = np.float32(1) / root_TTN[i, i, n]
            else:
                for n in range(windows):
                    root_TTN[i, j, n] *= inverse_TTN[j, j, n]
    for j in range(tangents):
        for i in range(j + 1, tangents):
            for n in range(windows):
                inverse_TTN[i, j, n] = -root_TTN[i, j, n] * inverse_TTN[j, j, n]
            for k in range(j + 1, i):
                for n in range(windows):
                    inverse_TTN[i, j, n] -= root_TTN[i, k, n] * inverse_TTN[k, j, n]
            for n in range(windows):
                inverse_TTN[i, j, n] *= inverse_TTN[i, i, n]


@njit(cache=True, fastmath=_NATIVE)
def _integrate(
    even_GXN: Float32,
    odd_GXN: Float32,
    own_XN: Float32,
    weight_N: Float32,
    inverse_TTN: Float32,
    likely_GN: Float32,
) -> None:
    """Integrate the tangents out at each turn: log likelihoods up to what no turn changes.

    Products of even and of odd orders come for the first turns of the grid; where there are twice as many,
    the others lie half a turn on, where the odd ones have changed sign.
    """
    windows, tangents, half = len(weight_N), len(inverse_TTN), np.float32(0.5)
    solved_N, excess_TN = np.empty(windows, dtype=np.float32), np.empty((tangents, windows), dtype=np.float32)
    for g in range(len(likely_GN)):
        at = g % len(even_GXN)
        sign = np.float32(1 if g == at else -1)
        for n in range(windows):
            likely_GN[g, n] = weight_N[n] * (even_GXN[at, 0, n] + sign * odd_GXN[at, 0, n])
        for t in range(tangents):  # what a tangent matches beyond what it does of the upright content
            for n in range(windows):
                beyond = even_GXN[at, 1 + t, n] + sign * odd_GXN[at, 1 + t, n] - own_XN[1 + t, n]
                excess_TN[t, n] = weight_N[n] * beyond
        for t in range(tangents):
            for n in range(windows):
                solved_N[n] = inverse_TTN[t, t, n] * excess_TN[t, n]
            for k in range(t):
                for n in range(windows):
                    solved_N[n] += inverse_TTN[t, k, n] * excess_TN[k, n]
            for n in range(windows):
                likely_GN[g, n] += half * solved_N[n] * solved_N[n]


@njit(cache=True, fastmath=_NATIVE)
def _fold_numbers(likely_KN: Float32, own_N: Float32, weight_N: Float32, fold_N: Int64) -> None:
    """Say in how many turns the upright contents look the same, from their own likelihoods when turned."""
    for n in range(len(fold_N)):
        upright, most = weight_N[n] * own_N[n], 0.0
        for k in range(len(likely_KN)):
            most = max(most, upright - likely_KN[k, n])
        fold_N[n] = 1
        for k in range(len(likely_KN)):
            lost = upright - likely_KN[k, n]
            if lost < _SAME_NATS or (lost < _ALIKE_NATS and lost < _ALIKE_SHARE * most):
                fold_N[n] = k + 2


@njit(cache=True, fastmath=_NATIVE)
def _covariance(inverse_TTN: Float32, covariance_TTN: Float32) -> None:
    """Say the tangents' covariances, which are the same at all turns."""
    tangents, windows = inverse_TTN.shape[0], inverse_TTN.shape[2]
    for i in range(tangents):
        for j in range(i + 1):
            for n in range(windows):
                covariance_TTN[i, j, n] = inverse_TTN[i, i, n] * inverse_TTN[i, j, n]
            for k in range(i + 1, tangents):
                for n in range(windows):
                    covariance_TTN[i, j, n] += inverse_TTN[k, i, n] * inverse_TTN[k, j, n]
            for n in range(windows):
                covariance_TTN[j, i, n] = covariance_TTN[i, j, n]


@njit(cache=True, fastmath=_NATIVE)
def _amplitudes(
    even_GXN: Float32,
    odd_GXN: Float32,
    own_XN: Float32,
    weight_N: Float32,
    covariance_TTN: Float32,
    amplitude_GTN: Float32,
) -> None:
    """Say the tangents' mean amplitudes at each turn: their covariance times what they match."""
    tangents, windows = len(covariance_TTN), len(weight_N)
    excess_TN = np.empty((tangents, windows), dtype=np.float32)
    for g in range(len(amplitude_GTN)):
        at = g % len(even_GXN)
        sign = np.float32(1 if g == at else -1)
        for t in range(tangents):
            for n in range(windows):
                beyond = even_GXN[at, 1 + t, n] + sign * odd_GXN[at, 1 + t, n] - own_XN[1 + t, n]
                excess_TN[t, n] = weight_N[n] * beyond
        for t in range(tangents):
            for n in range(windows):
                amplitude_GTN[g, t, n] = covariance_TTN[0, t, n] * excess_TN[0, n]
            for k in range(1, tangents):
                for n in range(windows):
                    amplitude_GTN[g, t, n] += covariance_TTN[k, t, n] * excess_TN[k, n]


@njit(cache=True, fastmath=_NATIVE)
def _angle(
    angle_A: Float64, share_A: Float64, variance: float, fold: int, temperature: float, out: Float32
) -> None:
    """Average the angle near the most probable one, with the circular sd among turns that look different."""
    best = 0
    for a in range(len(share_A)):
        if share_A[a] > share_A[best]:
            best = a
    total, moved = 0.0, 0.0
    for a in range(len(share_A)):
        away = angle_A[a] - angle_A[best]
        away -= 2 * math.pi * math.floor(away / (2 * math.pi) + 0.5)
        if abs(away) < _NEAR_RAD:
            total += share_A[a]
            moved += share_A[a] * away
    angle = angle_A[best] + moved / total
    short, narrowed = 0.0, -0.5 * fold * fold * variance
    kept, lost = 2 * math.exp(narrowed), -math.expm1(narrowed)
    for a in range(len(share_A)):
        half = math.sin(0.5 * fold * (angle_A[a] - angle))
        short += share_A[a] * (half * half * kept + lost)
    out[0] = angle - 2 * math.pi * math.floor(angle / (2 * math.pi) + 0.5)
    out[1] = temperature * math.sqrt(-2 * math.log1p(-min(max(short, 0.0), 1 - 1e-6))) / fold


@njit(cache=True, fastmath=_NATIVE)
def _probable(likely_GN: Float32, n: int, best: float, turn_A: Int64, share_A: Float64) -> int:
    """List the turns that are not far less probable than the best, with their shares."""
    found, total = 0, 0.0
    for g in range(len(likely_GN)):
        below = likely_GN[g, n] - best
        if below > -_FORGOTTEN_NATS:
            turn_A[found], share_A[found] = g, math.exp(below)
            total += share_A[found]
            found += 1
    for a in range(found):
        share_A[a] /= total
    return found


@njit(cache=True, fastmath=_NATIVE)
def _conclude(
    amplitude_GTN: Float32,
    covariance_TTN: Float32,
    count: int,
    likely_GN: Float32,
    best_N: Float32,
    fold_N: Int64,
    turn_G: Float32,
    has: tuple[bool, bool],
    temperatures: tuple[float, float],
    unit: float,
    angle_N2: Float32,
    shift_N4: Float32,
    nuisance_NV: Float32,
    nuisance_sd_NV: Float32,
) -> None:
    """Conclude on angle, shift and nuisances of the first windows, averaged over all turns of the grid.

    Windows are looked at one by one here, so what only fills a block is left out: of an empty window every
    turn is as probable, which takes longer than all else that is said of a single one.
    """
    tangents, turns = len(covariance_TTN), len(turn_G)
    has_turn, has_shift = has
    at_turn = 2 if has_shift else 0
    first = at_turn + (1 if has_turn else 0)
    turn_A, share_A, angle_A = np.empty(turns, dtype=np.int64), np.empty(turns), np.empty(turns)
    cos_G, sin_G = np.cos(turn_G), np.sin(turn_G)
    amplitude_T, sums = np.empty(tangents), np.empty((tangents + 2, 2))
    for n in range(count):
        found = _probable(likely_GN, n, best_N[n], turn_A, share_A)
        sums[:] = 0
        for a in range(found):
            g, share = turn_A[a], share_A[a]
            for t in range(tangents):
                amplitude_T[t] = amplitude_GTN[g, t, n]
            if has_turn:
                angle_A[a] = turn_G[g] + amplitude_T[at_turn]
            if has_shift:
                cos, sin, x, y = cos_G[g], sin_G[g], amplitude_T[0], amplitude_T[1]
                xx, yy, xy = covariance_TTN[0, 0, n], covariance_TTN[1, 1, n], covariance_TTN[0, 1, n]
                along_x, along_y = x * cos - y * sin, x * sin + y * cos
                both = 2 * cos * sin * xy
                sums[tangents, 0] += share * along_x
                sums[tangents + 1, 0] += share * along_y
                sums[tangents, 1] += share * (along_x**2 + cos**2 * xx + sin**2 * yy - both)
                sums[tangents + 1, 1] += share * (along_y**2 + sin**2 * xx + cos**2 * yy + both)
            for t in range(first, tangents):
                sums[t, 0] += share * amplitude_T[t]
                sums[t, 1] += share * amplitude_T[t] ** 2
        if has_turn:
            variance = float(covariance_TTN[at_turn, at_turn, n])
            _angle(angle_A[:found], share_A[:found], variance, fold_N[n], temperatures[0], angle_N2[n])
        for axis in range(2):
            mean = sums[tangents + axis, 0]
            variance = sums[tangents + axis, 1] - mean**2
            shift_N4[n, axis] = mean * unit
            shift_N4[n, 2 + axis] = math.sqrt(max(variance, 0.0)) * unit * temperatures[1]
        for v in range(nuisance_NV.shape[1]):
            mean = sums[first + v, 0]
            variance = sums[first + v, 1] - mean**2 + covariance_TTN[first + v, first + v, n]
            nuisance_NV[n, v] = mean
            nuisance_sd_NV[n, v] = math.sqrt(max(variance, 0.0))


@njit(cache=True, fastmath=_NATIVE)
def _best(likely_GN: Float32, best_N: Float32) -> None:
    best_N[:] = likely_GN[0]
    for g in range(1, likely_GN.shape[0]):
        for n in range(likely_GN.shape[1]):
            best_N[n] = max(best_N[n], likely_GN[g, n])


@njit(cache=True, fastmath=_NATIVE)
def _unexplained(
    window_DN: Float32, own_N: Float32, weight_N: Float32, best_N: Float32, out_N: Float32
) -> None:
    """Say how far windows are from what the decoder draws of them at best, in squared sds of the noise."""
    out_N[:] = 0
    for d in range(window_DN.shape[0]):
        for n in range(window_DN.shape[1]):
            out_N[n] += window_DN[d, n] * window_DN[d, n]
    for n in range(len(out_N)):
        out_N[n] = max(weight_N[n] * (out_N[n] + own_N[n]) - 2 * best_N[n], np.float32(0))


@njit(cache=True, fastmath=_NATIVE)
def _classify(
    mean_NZ: Float32,
    sd_NZ: Float32,
    center_MZ: Float32,
    variance_MZ: Float32,
    log_weight_M: Float32,
    class_MK: Float32,
    out_NK: Float32,
) -> None:
    """Share each content among the components of the mixture, and those among the labels' classes."""
    components, latents = center_MZ.shape
    log_share_M = np.empty(components)
    for i in range(len(mean_NZ)):
        most = -1e300
        for m in range(components):
            product, away = 1.0, 0.0
            for z in range(latents):
                variance = variance_MZ[m, z] + sd_NZ[i, z] ** 2
                product *= variance
                away += (mean_NZ[i, z] - center_MZ[m, z]) ** 2 / variance
            log_share_M[m] = log_weight_M[m] - 0.5 * away - 0.5 * math.log(product)
            most = max(most, log_share_M[m])
        total = 0.0
        for m in range(components):
            below = log_share_M[m] - most
            log_share_M[m] = math.exp(below) if below > -40 else 0.0
            total += log_share_M[m]
        if class_MK.shape[1] == 0:
            for m in range(components):
                out_NK[i, m] = log_share_M[m] / total
        else:
            for k in range(class_MK.shape[1]):
                said = 0.0
                for m in range(components):
                    said += log_share_M[m] * class_MK[m, k]
                out_NK[i, k] = said / total


@njit(cache=True, fastmath=_NATIVE)
def _log_powers(
    power_MN: Float32, count_M: Float32, mean_M: Float32, log_power_MN: Float32, centred_MN: Float32
) -> None:
    for m in range(len(count_M)):
        for n in range(power_MN.shape[1]):
            # Noise alone has the power count_M: weak orders then vary no more than strong ones.
            log_power_MN[m, n] = math.log(power_MN[m, n] + count_M[m])
            centred_MN[m, n] = log_power_MN[m, n] - mean_M[m]


@njit(cache=True, fastmath=_NATIVE)
def _statistics(
    outside_N: Float32, unexplained_N: Float32, distance_MN: Float32, statistics_NS: Float32
) -> None:
    """Say the logs of what is outside, of what is unexplained, and of the distance of the powers."""
    for n in range(len(outside_N)):
        far = np.float32(0)
        for m in range(len(distance_MN)):
            far += distance_MN[m, n] * distance_MN[m, n]
        statistics_NS[n, 0] = 0.5 * math.log(outside_N[n] + 1e-12)
        statistics_NS[n, 1] = 0.5 * math.log(unexplained_N[n] + 1e-12)
        statistics_NS[n, 2] = 0.5 * math.log(far + 1e-12)


@njit(cache=True, fastmath=_NATIVE)
def _novelty(
    statistics_NS: Float32, is_whole_N: NDArray[np.bool_], center_S: Float32, unit_S: Float32, out_N: Float32
) -> None:
    for i in range(len(statistics_NS)):
        largest = np.float32(0)
        for s in range(len(center_S)):
            largest = max(largest, (statistics_NS[i, s] - center_S[s]) / unit_S[s])
        out_N[i] = min(largest, np.float32(MOST_NOVEL)) if is_whole_N[i] else np.float32(MOST_NOVEL)


# -- a model, ready to run -----------------------------------------------------------------------------------


class Constants:
    """Every constant of a model in the types and orders that the loops take."""

    @torch.no_grad()
    def __init__(self, model: RVAE, novelty: HarmonicNovelty, calibration: Calibration) -> None:
        order_P = _of(model.order_P).astype(np.int64)
        self.layers = _layers(order_P)
        self.unit = float(model.unit)
        self.size, self.channels = model.window_px, model.channels
        self.fold = _fold_of(_of(model.basis_FD) / self.unit, model.channels, model.window_px)
        self.center_C, self.gain_C = _f32(_of(model.center_C)), _f32(1 / _of(model.scale_C))
        self.filters = _filters_of(model)
        self.orientations = model.orientations
        self.combine, self.think, self.say = _layer(model.combine), _layer(model.think), _layer(model.say)
        self.content, self.mix = _with_bias(model.content), _with_bias(model.mix)
        self.louder_H = _with_bias(model.louder)[0]
        component_P = self.layers.component_P
        self.order_P = order_P[component_P]
        self.ordered_D = np.concatenate([component_P, component_P + len(order_P)])
        inverse_D = np.exp(-np.tile(_of(model.log_noise_P).clip(*_LOG_NOISE), 2)) * _of(model.alive_D)
        self.scale_D = _f32(inverse_D[self.ordered_D])
        self.templates = _templates_of(model, inverse_D, self.ordered_D)
        rank = self.templates.weight.shape[1]
        self.precision_T = _f32(_of(model.amplitude_sd_T) ** -2)
        self.has_pose = (model.rotation, model.shift)
        self.temperatures = (float(model.angle_temperature), float(model.shift_temperature))
        order_M = self.layers.order_M
        self.turn_G = _f32(np.arange(model.turns) * (2 * math.pi / model.turns))
        angle_MG = order_M[:, None] * np.arange(model.turns) * (2 * math.pi / model.turns)
        # Rows of the products: both parts of the even orders, then of the odd ones.
        halved = model.turns % 2 == 0
        is_odd_R = np.tile(order_M % 2 == 1, 2) & halved
        by_parity = np.argsort(is_odd_R, kind="stable")
        self.row_2M = np.argsort(by_parity).reshape(2, -1)
        self.even_rows = int((~is_odd_R).sum())
        trig_GR = np.concatenate([np.cos(angle_MG), np.sin(angle_MG)]).T[:, by_parity]
        taken = model.turns // 2 if halved else model.turns
        self.even_GR = _f32(trig_GR[:taken, : self.even_rows])
        self.odd_GR = _f32(trig_GR[:taken, self.even_rows :])
        folds = np.arange(2, _MAX_SYMMETRY + 1)
        turn_K = self.turn_G[np.rint(model.turns / folds).astype(int) % model.turns].astype(np.float64)
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


class _Block:
    """Arrays for a fixed number of windows, and the steps through them."""

    def __init__(self, const: Constants, size: int) -> None:
        def room(*shape: int) -> Float32:
            return np.zeros(shape, dtype=np.float32)

        self.const, self.size = const, size
        parts, folded_px, columns = const.fold.matrix.shape
        filters, oriented = len(const.combine[0]), const.filters.even.shape[1]
        flat, rank = const.templates.weight.shape
        tangents, orders, turns = len(const.precision_T), len(const.count_M), len(const.turn_G)
        hidden, templates, folds = len(const.mix), 1 + tangents, const.folds
        self.windows = room(size, const.channels, const.size, const.size)
        self.folded, self.coefficient = room(parts, size, folded_px), room(parts, size, columns)
        self.energy_N, self.outside_N, self.unexplained_N = room(size), room(size), room(size)
        self.is_whole_N = np.zeros(size, dtype=np.bool_)
        part_D, column_D = const.fold.part_of_D, const.fold.column_of_D
        place_D = (part_D * size * columns + column_D).astype(np.uint64)
        self.place_D = place_D[const.ordered_D]
        self.even_D, self.odd_D = place_D[const.filters.even_D], place_D[const.filters.odd_D]
        self.even, self.odd = room(size, len(self.even_D)), room(size, len(self.odd_D))
        self.seen_even, self.seen_odd = room(size, oriented), room(size, oriented)
        self.read = room(size * const.orientations, filters)
        self.combined = room(size * const.orientations, len(const.combine[1]))
        # A product of more rows is done in another way, which takes a fifth longer.
        self.pieces = [
            (self.read[at : at + _ROWS], self.combined[at : at + _ROWS])
            for at in range(0, len(self.read), _ROWS)
        ]
        self.pooled, self.thought = room(size, len(const.combine[1])), room(size, len(const.think[1]))
        self.said = room(size, 2 * const.latents)
        self.mean_NZ, self.sd_NZ = room(size, const.latents), room(size, const.latents)
        # One more than there are: 1, which meets the bias.
        self.mean_ZN = np.ones((const.latents + 1, size), dtype=np.float32)
        self.first_HN, self.second_HN = np.ones((2, hidden + 1, size), dtype=np.float32)
        self.before_HN = room(hidden, size)
        self.weight_N, self.reduced_RN = room(size), room(rank, size)
        self.window_DN = room(len(const.scale_D), size)
        self.flat_template = room(flat, size)
        self.template_XDN = self.flat_template.reshape(templates, -1, size)
        self.product_RXN = room(2 * orders, templates, size)
        taken = len(const.even_GR)
        self.even_GXN, self.odd_GXN = room(taken, templates, size), room(taken, templates, size)
        self.none_KXN = room(folds, templates, size)
        self.square_SN, self.forms = room(const.own.shape[1], size), room(len(const.own), size)
        pairs = tangents * (tangents + 1) // 2
        self.below_SN, self.own_XN = self.forms[:pairs], self.forms[pairs : pairs + templates]
        self.turned_KXN = self.forms[pairs + templates :].reshape(folds, templates, size)
        self.covariance_TTN = room(tangents, tangents, size)
        self.root_TTN, self.inverse_TTN = room(tangents, tangents, size), room(tangents, tangents, size)
        self.amplitude_GTN = room(turns, tangents, size)
        self.likely_GN, self.likely_KN = room(turns, size), room(folds, size)
        self.best_N = room(size)
        self.fold_N = np.ones(size, dtype=np.int64)
        self.angle_N2, self.shift_N4 = room(size, 2), room(size, 4)
        self.nuisance_NV, self.nuisance_sd_NV = room(size, const.nuisances), room(size, const.nuisances)
        self.class_NK = room(size, const.classes)
        self.power_MN, self.log_power_MN = room(orders, size), room(orders, size)
        self.centred_MN, self.distance_MN = room(orders, size), room(orders, size)
        self.statistics_NS, self.novelty_N = room(size, 3), room(size)

    def run(self, windows_NCHW: Float32) -> None:
        """Say everything of up to a block of windows, in this block's arrays."""
        count = len(windows_NCHW)
        # Through a copy: what comes off the wire is read-only and may be strided.
        self.windows[:count] = windows_NCHW
        self._read(count)
        self._say_content()
        self._draw_templates()
        self._say_pose(count)
        self._say_novelty()

    def _read(self, count: int) -> None:
        const = self.const
        _fold(self.windows, count, const.center_C, const.gain_C, self.folded, self.energy_N, self.is_whole_N)
        for part in range(len(self.folded)):
            np.dot(self.folded[part], const.fold.matrix[part], out=self.coefficient[part])
        _arrange(
            self.coefficient,
            self.place_D,
            self.even_D,
            self.odd_D,
            const.scale_D,
            self.even,
            self.odd,
            self.window_DN,
        )
        _inside(self.coefficient, const.unit, self.energy_N, self.outside_N)

    def _say_content(self) -> None:
        const = self.const
        np.dot(self.even, const.filters.even, out=self.seen_even)
        if self.odd.shape[1] > 0:
            np.dot(self.odd, const.filters.odd, out=self.seen_odd)
        _orient(self.seen_even, self.seen_odd, const.filters.bias, self.read.reshape(self.size, -1))
        for piece, out in self.pieces:
            np.dot(piece, const.combine[0], out=out)
        _average(self.combined, const.combine[1], self.pooled)
        np.dot(self.pooled, const.think[0], out=self.thought)
        _rectify(self.thought, const.think[1])
        np.dot(self.thought, const.say[0], out=self.said)
        _say(self.said, const.say[1], _LOG_SD, self.mean_NZ, self.mean_ZN, self.sd_NZ)
        _classify(self.mean_NZ, self.sd_NZ, *const.mixture, const.class_MK, self.class_NK)

    def _draw_templates(self) -> None:
        const = self.const
        np.dot(const.content, self.mean_ZN, out=self.before_HN)
        np.tanh(self.before_HN, out=self.first_HN[:-1])
        np.dot(const.mix, self.first_HN, out=self.before_HN)
        np.tanh(self.before_HN, out=self.second_HN[:-1])
        # The noise of a window is that of the model times a factor: all templates are in its unit, squared.
        np.dot(const.louder_H, self.second_HN, out=self.weight_N)
        np.multiply(self.weight_N, np.float32(-2), out=self.weight_N)
        np.exp(self.weight_N, out=self.weight_N)
        np.dot(const.templates.reduce, self.second_HN, out=self.reduced_RN)
        np.dot(const.templates.weight, self.reduced_RN, out=self.flat_template)

    def _say_pose(self, count: int) -> None:
        const = self.const
        _square(self.reduced_RN, self.square_SN)
        np.dot(const.own, self.square_SN, out=self.forms)
        _factor(self.below_SN, self.weight_N, const.precision_T, self.root_TTN, self.inverse_TTN)
        layers = const.layers.layer_start
        _match(self.window_DN, self.template_XDN, layers, const.row_2M, self.product_RXN)
        _turn(const.even_GR, self.product_RXN[: const.even_rows], self.even_GXN)
        if const.odd_GR.size:
            _turn(const.odd_GR, self.product_RXN[const.even_rows :], self.odd_GXN)
        model = (self.own_XN, self.weight_N, self.inverse_TTN)
        _integrate(self.even_GXN, self.odd_GXN, *model, self.likely_GN)
        _integrate(self.turned_KXN, self.none_KXN, *model, self.likely_KN)
        _best(self.likely_GN, self.best_N)
        _fold_numbers(self.likely_KN, self.own_XN[0], self.weight_N, self.fold_N)
        _covariance(self.inverse_TTN, self.covariance_TTN)
        matched = (self.even_GXN, self.odd_GXN, self.own_XN, self.weight_N)
        _amplitudes(*matched, self.covariance_TTN, self.amplitude_GTN)
        _conclude(
            self.amplitude_GTN,
            self.covariance_TTN,
            count,
            self.likely_GN,
            self.best_N,
            self.fold_N,
            const.turn_G,
            const.has_pose,
            const.temperatures,
            2 / const.size,
            self.angle_N2,
            self.shift_N4,
            self.nuisance_NV,
            self.nuisance_sd_NV,
        )

    def _say_novelty(self) -> None:
        const = self.const
        _powers(self.window_DN, const.layers.layer_start, self.power_MN)
        _log_powers(self.power_MN, const.count_M, const.novelty_mean_M, self.log_power_MN, self.centred_MN)
        np.dot(const.novelty_whiten_MM, self.centred_MN, out=self.distance_MN)
        _unexplained(self.window_DN, self.own_XN[0], self.weight_N, self.best_N, self.unexplained_N)
        _statistics(self.outside_N, self.unexplained_N, self.distance_MN, self.statistics_NS)
        _novelty(self.statistics_NS, self.is_whole_N, const.center_S, const.unit_S, self.novelty_N)

    def deliver(self, answers: Answers, at: int, count: int) -> None:
        """Copy what was said of the first windows to where the caller keeps it."""
        until = at + count
        for mine, theirs in zip(
            (
                self.mean_NZ,
                self.sd_NZ,
                self.angle_N2[:, 0],
                self.angle_N2[:, 1],
                self.shift_N4[:, :2],
                self.shift_N4[:, 2:],
                self.class_NK,
                self.nuisance_NV,
                self.nuisance_sd_NV,
                self.novelty_N,
            ),
            answers,
            strict=True,
        ):
            theirs[at:until] = mine[:count]


class HarmonicInference:
    """A harmonic rVAE with its weights fixed; calls from one thread at a time.

    Parameters
    ----------
    model
        Trained; later changes of it are not seen.
    novelty
        Fitted to its training windows.
    calibration
        Of the novelty, on other windows.
    """

    def __init__(self, model: RVAE, novelty: HarmonicNovelty, calibration: Calibration) -> None:
        self._const = Constants(model, novelty, calibration)
        small, large = _Block(self._const, SMALL), _Block(self._const, LARGE)
        self._large = large
        self._small = small if _agree(small, large) else large

    def encode(self, windows_NCHW: Float32) -> Answers:
        """Say everything of windows ``(n, channel, h, w)``; nothing is learnt."""
        const, count = self._const, len(windows_NCHW)
        answers = Answers.room(count, const.latents, const.classes, const.nuisances)
        for at, block in self._blocks(count):
            piece = windows_NCHW[at : at + block.size]
            block.run(piece)
            block.deliver(answers, at, len(piece))
        return answers

    def statistics(self, windows_NCHW: Float32) -> tuple[Float32, Float32]:
        """Say what the novelty is made of ``(n, 3)``, and the log powers ``(n, M)``, orders ascending."""
        statistics, powers = [], []
        for at, block in self._blocks(len(windows_NCHW)):
            piece = windows_NCHW[at : at + block.size]
            block.run(piece)
            statistics.append(block.statistics_NS[: len(piece)].copy())
            powers.append(block.log_power_MN[self._const.ascending_M, : len(piece)].T)
        return np.concatenate(statistics), np.concatenate(powers)

    def _blocks(self, count: int) -> Iterator[tuple[int, _Block]]:
        """Say which block takes the windows from where: small ones at the end, if few are left."""
        at = 0
        while at < count:
            block = self._small if count - at <= 2 * SMALL else self._large
            yield at, block
            at += block.size


def _turn(trig_GR: Float32, product_RXN: Float32, out: Float32) -> None:
    """Say products at each turn, from those of each order."""
    np.dot(trig_GR, product_RXN.reshape(len(product_RXN), -1), out=out.reshape(len(out), -1))


def _agree(small: _Block, large: _Block) -> bool:
    """Try whether two sizes of a block say the same of a window, bit for bit, wherever it stands in them."""
    random = np.random.default_rng(0)
    few = random.normal(size=small.windows.shape).astype(np.float32)
    large.run(np.concatenate([few[::-1]] * (large.size // small.size)))
    small.run(few)
    return all(
        np.array_equal(one, two[place : place + small.size][::-1])
        for one, two in (
            (getattr(small, name), getattr(large, name))
            for name in (
                "mean_NZ",
                "sd_NZ",
                "angle_N2",
                "shift_N4",
                "nuisance_NV",
                "statistics_NS",
                "class_NK",
            )
        )
        for place in range(0, large.size, small.size)
    )
