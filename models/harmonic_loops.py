"""The compiled loops of the live harmonic rVAE: from windows to answers in one call.

Windows are rows while they are read, where products of matrices do most of the work, and lanes of vectors
afterwards, where each step is the same small one for all of them. No step mixes windows.

Axes: N window, C channel, F folded pixel, D real coefficient, O orientation, Q filter, Z content latent,
X template (the upright content and its tangents), T tangent, R direction of templates or row of products,
M order or component of the mixture, L run of components, G turn on the grid, A turn that is probable, K fold
or class, V nuisance, S statistic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.experimental import structref
from numpy.typing import NDArray

from models.answers import Answers
from models.elementary import exp, log, sin_pi, tanh
from models.harmonic_constants import FORGOTTEN_NATS, NEAR_RAD
from models.novelty import MOST_NOVEL
from models.product import product
from models.rvae import _ALIKE_NATS, _ALIKE_SHARE, _LOG_SD, _SAME_NATS, LEAST_SD, LOG_FACTOR

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_TINY = np.float32(1e-12)
_LOG_SD_LEAST, _LOG_SD_MOST = np.float32(_LOG_SD[0]), np.float32(_LOG_SD[1])
_FORGOTTEN, _NEAR = np.float32(-FORGOTTEN_NATS), np.float32(NEAR_RAD)
_FULL_TURN, _PER_TURN = np.float32(2 * math.pi), np.float32(1 / (2 * math.pi))
_MOST_NOVEL = np.float32(MOST_NOVEL)
_LEAST_FACTOR, _MOST_FACTOR = np.float32(LOG_FACTOR[0]), np.float32(LOG_FACTOR[1])
_LEAST_SD = np.float32(LEAST_SD)
_LARGEST_SHORT = np.float32(1 - 1e-6)

# Sums may be taken in any order, the same one for every window. Python's own division would look for zeros,
# and a loop with such a look is not vectorised.
_loop = njit(cache=True, nogil=True, fastmath={"contract", "reassoc"}, error_model="numpy")
_exact_loop = njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")


class Weights(NamedTuple):
    """What the loops know of a model; the constants of the same names say what each is."""

    center_C: Float32
    gain_C: Float32
    disc_F: Float32
    fold: Float32
    width_K: Int64
    unit: float
    place_D: Int64
    scale_D: Float32
    even_filter: Float32
    odd_filter: Float32
    filter_bias: Float32
    combine: Float32
    combine_bias: Float32
    think: Float32
    think_bias: Float32
    say: Float32
    say_bias: Float32
    mixture_mean_MZ: Float32
    mixture_variance_MZ: Float32
    mixture_log_weight_M: Float32
    class_MK: Float32
    content: Float32
    mix: Float32
    told_EH: Float32
    sd_course_22: Float32
    reduce: Float32
    template: Float32
    own: Float32
    precision_T: Float32
    run_L3: Int64
    even_GR: Float32
    odd_GR: Float32
    turn_G: Float32
    cos_G: Float32
    sin_G: Float32
    has_turn: bool
    has_shift: bool
    half_px: float
    count_M: Float32
    novelty_mean_M: Float32
    novelty_whiten_MM: Float32
    center_S: Float32
    unit_S: Float32


class Room(NamedTuple):
    """Where a block of windows is worked on; nothing else is allocated."""

    folded: Float32
    seen: Float32
    energy_N: Float32
    outside_N: Float32
    is_whole_N: NDArray[np.bool_]
    even: Float32
    odd: Float32
    seen_even: Float32
    seen_odd: Float32
    read: Float32
    combined: Float32
    pooled: Float32
    thought: Float32
    said: Float32
    mean_ZN: Float32
    variance_ZN: Float32
    share_MN: Float32
    first_HN: Float32
    second_HN: Float32
    before_HN: Float32
    told_EN: Float32
    weight_N: Float32
    reduced_RN: Float32
    square_SN: Float32
    forms: Float32
    window_DN: Float32
    template_XDN: Float32
    product_XRN: Float32
    even_XGN: Float32
    odd_XGN: Float32
    root_TTN: Float32
    inverse_TTN: Float32
    solving_TTN: Float32
    excess_TN: Float32
    likely_KN: Float32
    fold_N: Float32
    likely_GN: Float32
    best_N: Float32
    turn_A: Int64
    share_AN: Float32
    total_N: Float32
    away_AN: Float32
    angle_N: Float32
    amplitude_TAN: Float32
    variance_TN: Float32
    mean_TN: Float32
    square_TN: Float32
    short_N: Float32
    unexplained_N: Float32
    log_power_MN: Float32
    centred_MN: Float32
    distance_MN: Float32
    statistics_SN: Float32


@structref.register
class _BenchType(types.StructRef):
    """Of a ``Bench`` in compiled code."""


class Bench(structref.StructRefProxy):
    """Weights and room as one argument: to hand over a hundred arrays takes as long as ten windows."""

    weights: Weights
    room: Room


structref.define_proxy(Bench, _BenchType, ["weights", "room"])  # type: ignore[no-untyped-call]


@njit(cache=True)
def bench(weights: Weights, room: Room) -> Bench:
    """Put weights and room together."""
    return Bench(weights, room)  # type: ignore[no-untyped-call]


@_loop
def say(windows: Float32, first: int, last: int, bench: Bench, answers: Answers) -> None:
    """Say everything of some windows, block after block."""
    weights, room = bench.weights, bench.room
    size = len(room.weight_N)
    for at in range(first, last, size):
        count = min(size, last - at)
        _read(windows, at, count, weights, room)
        _say_content(at, count, weights, room, answers)
        _classify(at, count, weights, room, answers.class_NK)
        _draw_templates(weights, room)
        _match_windows(weights, room)
        _conclude(at, count, weights, room, answers)
        _say_novelty(at, count, weights, room, answers.novelty_N)


# -- windows are rows ----------------------------------------------------------------------------------


@_loop
def _read(windows: Float32, first: int, count: int, w: Weights, r: Room) -> None:
    """Make coefficients of windows, and say how much of their energy lies outside the components."""
    _fold(windows, first, count, w.center_C, w.gain_C, w.disc_F, r.folded, r.energy_N, r.is_whole_N)
    pixels = r.folded.shape[2]
    begin, column = 0, 0
    for part in range(len(w.width_K)):
        width = w.width_K[part]
        matrix = w.fold[begin : begin + pixels * width].reshape(pixels, width)
        seen = r.seen[: count * width].reshape(count, width)
        product(r.folded[part, :count], matrix, seen)
        _put(seen, column, r.even, r.odd)
        begin, column = begin + pixels * width, column + width
    for i in range(count):
        inside = np.float32(w.unit * w.unit) * (_energy(r.even[i]) + _energy(r.odd[i]))
        r.outside_N[i] = max(r.energy_N[i] - inside, _ZERO)
    _turn_over(r.even, r.odd, count, w.place_D, w.scale_D, r.window_DN)


@_loop
def _energy(values: Float32) -> np.float32:
    total = _ZERO
    for at in range(len(values)):
        total += values[at] * values[at]
    return total


@_loop
def _fold(
    windows: Float32,
    first: int,
    count: int,
    center_C: Float32,
    gain_C: Float32,
    disc_F: Float32,
    folded: Float32,
    energy_N: Float32,
    is_whole_N: NDArray[np.bool_],
) -> None:
    """Scale windows, say their energies in the disc, and fold them; one with NaN or infinity is emptied."""
    channels, size = windows.shape[1], windows.shape[2]
    half = (size + 1) // 2
    last = np.uint64(size - 1)  # unsigned, because numba asks of every signed index whether it is negative
    for i in range(count):
        energy = _ZERO
        for c in range(channels):
            level, square, flat = center_C[c], _ZERO, windows[first + i, c].ravel()
            for at in range(len(flat)):
                square += disc_F[at] * (flat[at] - level) * (flat[at] - level)
            energy += square * gain_C[c] * gain_C[c]
        is_whole_N[i] = math.isfinite(energy)
        energy_N[i] = energy if is_whole_N[i] else _ZERO
        if not is_whole_N[i]:
            folded[:, i] = 0
        elif len(folded) == 1:
            for c in range(channels):
                gain, level, flat = gain_C[c], center_C[c], windows[first + i, c].ravel()
                out = folded[0, i, c * size * size : (c + 1) * size * size]
                for at in range(len(out)):
                    out[at] = (flat[at] - level) * gain
        else:
            for c in range(channels):
                gain, level = gain_C[c], np.float32(4) * center_C[c]
                for row in range(half):
                    upper, lower = windows[first + i, c, row], windows[first + i, c, size - 1 - row]
                    at = (c * half + row) * half
                    for col in range(half):
                        left, right = upper[col], upper[last - np.uint64(col)]
                        below, beside = lower[col], lower[last - np.uint64(col)]
                        folded[0, i, at + col] = (left + right + below + beside - level) * gain
                        folded[1, i, at + col] = (left - right - below + beside) * gain
                        folded[2, i, at + col] = (left - right + below - beside) * gain
                        folded[3, i, at + col] = (left + right - below - beside) * gain


@_loop
def _put(seen: Float32, column: int, even: Float32, odd: Float32) -> None:
    """Put the coefficients of a part beside those of the parts before: even ones first, then odd ones."""
    count, width = even.shape[1], seen.shape[1]
    own = min(max(count - column, 0), width)
    for i in range(len(seen)):
        even[i, column : column + own] = seen[i, :own]
        odd[i, max(column - count, 0) : max(column + width - count, 0)] = seen[i, own:]


@_loop
def _turn_over(
    even: Float32, odd: Float32, count: int, place_D: Int64, scale_D: Float32, window_DN: Float32
) -> None:
    """Make lanes of the windows, in units of the noise, for the pose."""
    for at in range(len(place_D)):
        place, scale, line = place_D[at], scale_D[at], window_DN[at]
        if place < even.shape[1]:
            for i in range(count):
                line[i] = even[i, place] * scale
        else:
            for i in range(count):
                line[i] = odd[i, place - even.shape[1]] * scale


@_loop
def _say_content(first: int, count: int, w: Weights, r: Room, answers: Answers) -> None:
    product(r.even[:count], w.even_filter, r.seen_even[:count])
    if len(w.odd_filter) > 0:
        product(r.odd[:count], w.odd_filter, r.seen_odd[:count])
    oriented = r.read.shape[1]
    orientations = oriented // len(w.combine)
    for at in range(0, count, len(r.read)):
        here = min(len(r.read), count - at)
        _orient(r.seen_even[at : at + here], r.seen_odd[at : at + here], w.filter_bias, r.read)
        read = r.read[:here].reshape(here * orientations, len(w.combine))
        product(read, w.combine, r.combined[: here * orientations])
        _average(r.combined, w.combine_bias, orientations, r.pooled[at : at + here])
    product(r.pooled[:count], w.think, r.thought[:count])
    for i in range(count):
        for q in range(len(w.think_bias)):
            r.thought[i, q] = max(r.thought[i, q] + w.think_bias[q], _ZERO)
    product(r.thought[:count], w.say, r.said[:count])
    latents = answers.mean_NZ.shape[1]
    for z in range(latents):
        for i in range(count):
            r.mean_ZN[z, i] = r.said[i, z] + w.say_bias[z]
            log_sd = r.said[i, latents + z] + w.say_bias[latents + z]
            r.variance_ZN[z, i] = exp(_TWO * min(max(log_sd, _LOG_SD_LEAST), _LOG_SD_MOST))
        for i in range(count):
            answers.mean_NZ[first + i, z] = r.mean_ZN[z, i]
            answers.sd_NZ[first + i, z] = math.sqrt(r.variance_ZN[z, i])


@_loop
def _orient(even: Float32, odd: Float32, bias: Float32, read: Float32) -> None:
    """Put together what the filters see at each orientation and half a turn from it: ``(N, O * Q)``."""
    taken = len(bias)
    for i in range(len(even)):
        same, changing, here, opposite = even[i], odd[i], read[i, :taken], read[i, taken:]
        if len(opposite) == taken:
            for q in range(taken):
                here[q] = max(same[q] + bias[q] + changing[q], _ZERO)
                opposite[q] = max(same[q] + bias[q] - changing[q], _ZERO)
        else:
            for q in range(taken):
                here[q] = max(same[q] + bias[q], _ZERO)


@_loop
def _average(combined: Float32, bias: Float32, orientations: int, pooled: Float32) -> None:
    """Average over the orientations what is above zero."""
    share = np.float32(1 / orientations)
    for i in range(len(pooled)):
        out = pooled[i]
        out[:] = 0
        for k in range(orientations):
            line = combined[i * orientations + k]
            for q in range(len(bias)):
                out[q] += max(line[q] + bias[q], _ZERO)
        for q in range(len(bias)):
            out[q] *= share


# -- windows are lanes -----------------------------------------------------------------------------------


@_loop
def _classify(first: int, count: int, w: Weights, r: Room, class_NK: Float32) -> None:
    """Share each content among the components of the mixture, and those among the labels' classes."""
    components, latents = w.mixture_mean_MZ.shape
    most_N, total_N = r.excess_TN[0], r.excess_TN[1]
    for m in range(components):
        share_N = r.share_MN[m]
        share_N[:] = w.mixture_log_weight_M[m]
        for z in range(latents):
            mean, own = w.mixture_mean_MZ[m, z], w.mixture_variance_MZ[m, z]
            mean_N, variance_N = r.mean_ZN[z], r.variance_ZN[z]
            for n in range(len(share_N)):
                variance, away = own + variance_N[n], mean_N[n] - mean
                share_N[n] -= _HALF * (away * away / variance + log(variance))
    most_N[:] = r.share_MN[0]
    for m in range(1, components):
        for n in range(len(most_N)):
            most_N[n] = max(most_N[n], r.share_MN[m, n])
    total_N[:] = 0
    for m in range(components):
        for n in range(len(most_N)):
            r.share_MN[m, n] = exp(r.share_MN[m, n] - most_N[n])
            total_N[n] += r.share_MN[m, n]
    for n in range(count):
        for k in range(class_NK.shape[1]):
            said = r.share_MN[k, n] if w.class_MK.shape[1] == 0 else _ZERO
            if w.class_MK.shape[1] > 0:
                for m in range(components):
                    said += r.share_MN[m, n] * w.class_MK[m, k]
            class_NK[first + n, k] = said / total_N[n]


@_loop
def _draw_templates(w: Weights, r: Room) -> None:
    """Draw upright content and tangents, say their products with each other, and how loud noise is.

    Beside how loud, what is put right of the pose.
    """
    hidden, windows = r.before_HN.shape
    product(w.content, r.mean_ZN, r.before_HN)
    _tanh(r.before_HN, r.first_HN)
    product(w.mix, r.first_HN, r.before_HN)
    _tanh(r.before_HN, r.second_HN)
    # The noise of a window is that of the model times a factor: all templates are in its unit, squared.
    for e in range(len(w.told_EH)):
        r.told_EN[e] = w.told_EH[e, hidden]
        for h in range(hidden):
            for n in range(windows):
                r.told_EN[e, n] += w.told_EH[e, h] * r.second_HN[h, n]
    for n in range(windows):
        r.weight_N[n] = exp(-_TWO * r.told_EN[0, n])
    product(w.reduce, r.second_HN, r.reduced_RN)
    product(w.template, r.reduced_RN, r.template_XDN.reshape(len(w.template), windows))
    at = 0
    for i in range(len(r.reduced_RN)):
        for j in range(i + 1):
            for n in range(windows):
                r.square_SN[at, n] = r.reduced_RN[i, n] * r.reduced_RN[j, n]
            at += 1
    product(w.own, r.square_SN, r.forms)


@_loop
def _tanh(before_HN: Float32, out_HN: Float32) -> None:
    for h in range(len(before_HN)):
        for n in range(before_HN.shape[1]):
            out_HN[h, n] = tanh(before_HN[h, n])


@_loop
def _match_windows(w: Weights, r: Room) -> None:
    """Say what windows match of the templates at each turn, and what the templates alone tell.

    Of the tangents it is what they match beyond the upright content, solved for what each does alone.
    """
    tangents, windows = len(w.precision_T), len(r.weight_N)
    pairs = tangents * (tangents + 1) // 2
    own_XN = r.forms[pairs : pairs + 1 + tangents]
    _factor(r.forms[:pairs], r.weight_N, w.precision_T, r.root_TTN, r.inverse_TTN)
    for i in range(tangents):
        for j in range(i + 1):
            for n in range(windows):
                r.solving_TTN[i, j, n] = r.weight_N[n] * r.inverse_TTN[i, j, n]
    _symmetries(r.forms[pairs:], r.weight_N, r.solving_TTN, r.excess_TN, r.likely_KN, r.fold_N)
    even = w.even_GR.shape[1]
    r.product_XRN[:] = 0
    for x in range(1 + tangents):
        _match(r.window_DN, r.template_XDN[x], w.run_L3, even, len(w.count_M), r.product_XRN[x])
        if x > 0:
            for n in range(windows):
                r.product_XRN[x, even - 1, n] = -own_XN[x, n]
    _solve(r.solving_TTN, r.product_XRN[1:])
    for n in range(windows):
        r.product_XRN[0, :, n] *= r.weight_N[n]
    for x in range(1 + tangents):
        product(w.even_GR, r.product_XRN[x, :even], r.even_XGN[x])
        if w.odd_GR.shape[1] > 0:
            product(w.odd_GR, r.product_XRN[x, even:], r.odd_XGN[x])


@_loop
def _match(
    window_DN: Float32, template_DN: Float32, run_L3: Int64, even: int, orders: int, product_RN: Float32
) -> None:
    """Sum windows times a template over the components of each order, into the rows of its two parts."""
    windows, components = window_DN.shape[1], len(window_DN) // 2
    window, template, product = window_DN.ravel(), template_DN.ravel(), product_RN.ravel()
    apart, changing = components * windows, (even - 1) // 2
    for first, count, order in run_L3:
        is_even = order < changing
        row = order if is_even else even + order - changing
        down = changing if is_even else orders - changing
        here, there = slice(first * windows, (first + count) * windows), row * windows
        real, imaginary = window[here], window[apart:][here]
        other_real, other_imaginary = template[here], template[apart:][here]
        above, below = product[there:], product[there + down * windows :]
        for n in range(count * windows):
            above[n] += real[n] * other_real[n] + imaginary[n] * other_imaginary[n]
            below[n] += imaginary[n] * other_real[n] - real[n] * other_imaginary[n]


@_loop
def _solve(solving_TTN: Float32, product_TRN: Float32) -> None:
    """Multiply the rows of all tangents by a triangle, in their place: the last ones first."""
    tangents, rows, windows = product_TRN.shape
    for t in range(tangents - 1, -1, -1):
        for row in range(rows):
            for n in range(windows):
                product_TRN[t, row, n] *= solving_TTN[t, t, n]
        for k in range(t):
            for row in range(rows):
                for n in range(windows):
                    product_TRN[t, row, n] += solving_TTN[t, k, n] * product_TRN[k, row, n]


@_loop
def _factor(
    below_SN: Float32, weight_N: Float32, precision_T: Float32, root_TTN: Float32, inverse_TTN: Float32
) -> None:
    """Factor the tangents' precisions, and invert the factors: ``inverse' inverse`` is their covariance."""
    tangents, windows = len(precision_T), len(weight_N)
    at = 0
    for i in range(tangents):
        for j in range(i + 1):
            own = precision_T[i] if i == j else _ZERO
            for n in range(windows):
                root_TTN[i, j, n] = below_SN[at, n] * weight_N[n] + own
            at += 1
            for k in range(j):
                for n in range(windows):
                    root_TTN[i, j, n] -= root_TTN[i, k, n] * root_TTN[j, k, n]
            if i == j:
                for n in range(windows):
                    root_TTN[i, i, n] = math.sqrt(max(root_TTN[i, i, n], _TINY))
                    inverse_TTN[i, i, n] = _ONE / root_TTN[i, i, n]
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


@_loop
def _symmetries(
    forms: Float32,
    weight_N: Float32,
    solving_TTN: Float32,
    excess_TN: Float32,
    likely_KN: Float32,
    fold_N: Float32,
) -> None:
    """Say in how many turns the upright contents look the same, from their own likelihoods when turned."""
    tangents, windows = len(solving_TTN), len(weight_N)
    solved_N = excess_TN[tangents]
    for k in range(len(likely_KN)):
        turned, likely_N = (1 + k) * (1 + tangents), likely_KN[k]
        for n in range(windows):
            likely_N[n] = weight_N[n] * forms[turned, n]
        for t in range(tangents):
            for n in range(windows):
                excess_TN[t, n] = forms[turned + 1 + t, n] - forms[1 + t, n]
            for n in range(windows):
                solved_N[n] = solving_TTN[t, t, n] * excess_TN[t, n]
            for j in range(t):
                for n in range(windows):
                    solved_N[n] += solving_TTN[t, j, n] * excess_TN[j, n]
            for n in range(windows):
                likely_N[n] += _HALF * solved_N[n] * solved_N[n]
    for n in range(windows):
        upright, most = weight_N[n] * forms[0, n], _ZERO
        for k in range(len(likely_KN)):
            most = max(most, upright - likely_KN[k, n])
        fold_N[n] = 1
        for k in range(len(likely_KN)):
            lost = upright - likely_KN[k, n]
            if lost < _SAME_NATS or (lost < _ALIKE_NATS and lost < _ALIKE_SHARE * most):
                fold_N[n] = k + 2


@_loop
def _integrate(even_XGN: Float32, odd_XGN: Float32, likely_GN: Float32) -> None:
    """Integrate the tangents out at each turn: log likelihoods up to what no turn changes.

    Products of even and of odd orders come for the first turns of the grid; where there are twice as many,
    the others lie half a turn on, where the odd ones have changed sign.
    """
    likely, taken = likely_GN.ravel(), even_XGN[0].size
    here, opposite = likely[:taken], likely[taken:]
    for x in range(len(even_XGN)):
        even, odd = even_XGN[x].ravel(), odd_XGN[x].ravel()
        if x == 0:
            for n in range(taken):
                here[n] = even[n] + odd[n]
            for n in range(len(opposite)):
                opposite[n] = even[n] - odd[n]
        else:
            for n in range(taken):
                here[n] += _HALF * (even[n] + odd[n]) * (even[n] + odd[n])
            for n in range(len(opposite)):
                opposite[n] += _HALF * (even[n] - odd[n]) * (even[n] - odd[n])


@_loop
def _share(count: int, r: Room) -> int:
    """Share windows among the turns that are not far less probable than their best; list those turns."""
    windows, best_N, total_N = len(r.best_N), r.best_N, r.total_N
    best_N[:] = r.likely_GN[0]
    for g in range(1, len(r.likely_GN)):
        for n in range(windows):
            best_N[n] = max(best_N[n], r.likely_GN[g, n])
    best_N[count:] = np.inf  # where no window is no turn is probable
    total_N[:] = 0
    found = 0
    for g in range(len(r.likely_GN)):
        likely_N, share_N, here = r.likely_GN[g], r.share_AN[found], _ZERO
        for n in range(windows):
            below = likely_N[n] - best_N[n]
            share_N[n] = exp(below) if below > _FORGOTTEN else _ZERO
            total_N[n] += share_N[n]
            here += share_N[n]
        if here > _ZERO:
            r.turn_A[found] = g
            found += 1
    return found


@_loop
def _conclude(first: int, count: int, w: Weights, r: Room, answers: Answers) -> None:
    """Conclude on angle, shift and nuisances of windows, averaged over the turns of the grid."""
    tangents, windows = r.mean_TN.shape
    moving = (2 if w.has_shift else 0) + (1 if w.has_turn else 0)
    _integrate(r.even_XGN, r.odd_XGN, r.likely_GN)
    found = _share(count, r)
    turn_A, share_AN, amplitude_TAN = r.turn_A[:found], r.share_AN[:found], r.amplitude_TAN
    _amplitudes(turn_A, r.even_XGN, r.odd_XGN, r.inverse_TTN, amplitude_TAN)
    _covariances(r.inverse_TTN, r.variance_TN)
    r.mean_TN[:], r.square_TN[:] = 0, 0
    if w.has_turn:
        _say_angle(first, count, turn_A, share_AN, amplitude_TAN[moving - 1], w, r, answers)
    else:
        answers.angle_N[first : first + count], answers.angle_sd_N[first : first + count] = 0, 0
    if w.has_shift:
        _turn_shifts(turn_A, share_AN, w.cos_G, w.sin_G, r.variance_TN, amplitude_TAN, r.square_TN)
    for t in range(tangents):
        for a in range(found):
            for n in range(windows):
                weighted = share_AN[a, n] * amplitude_TAN[t, a, n]
                r.mean_TN[t, n] += weighted
                r.square_TN[t, n] += weighted * amplitude_TAN[t, a, n]
    _say_shift(first, count, w, r, answers)
    _correct(first, count, w, r.told_EN[1:], answers)
    for v in range(tangents - moving):
        mean_N, square_N = r.mean_TN[moving + v], r.square_TN[moving + v]
        for n in range(count):
            mean = mean_N[n] / r.total_N[n]
            variance = square_N[n] / r.total_N[n] - mean * mean + r.variance_TN[moving + v, n]
            answers.nuisance_NV[first + n, v] = mean
            answers.nuisance_sd_NV[first + n, v] = math.sqrt(max(variance, _ZERO))


@_loop
def _covariances(inverse_TTN: Float32, variance_TN: Float32) -> None:
    """Say the variances of the tangents, the same at all turns; last the covariance of the first two."""
    tangents, windows = inverse_TTN.shape[0], inverse_TTN.shape[2]
    variance_TN[:] = 0
    for t in range(tangents):
        for k in range(t, tangents):
            for n in range(windows):
                variance_TN[t, n] += inverse_TTN[k, t, n] * inverse_TTN[k, t, n]
    for k in range(1, tangents):
        for n in range(windows):
            variance_TN[tangents, n] += inverse_TTN[k, 0, n] * inverse_TTN[k, 1, n]


@_loop
def _amplitudes(
    turn_A: Int64, even_XGN: Float32, odd_XGN: Float32, inverse_TTN: Float32, amplitude_TAN: Float32
) -> None:
    """Say the tangents' mean amplitudes at the turns that are listed."""
    tangents, windows, taken, found = len(inverse_TTN), even_XGN.shape[2], even_XGN.shape[1], len(turn_A)
    for t in range(tangents):
        for a in range(found):
            at = turn_A[a] % taken
            sign = np.float32(1 if turn_A[a] == at else -1)
            for n in range(windows):
                amplitude_TAN[t, a, n] = even_XGN[1 + t, at, n] + sign * odd_XGN[1 + t, at, n]
    for t in range(tangents):
        for a in range(found):
            for n in range(windows):
                amplitude_TAN[t, a, n] *= inverse_TTN[t, t, n]
        for k in range(t + 1, tangents):
            for a in range(found):
                for n in range(windows):
                    amplitude_TAN[t, a, n] += inverse_TTN[k, t, n] * amplitude_TAN[k, a, n]


@_loop
def _turn_shifts(
    turn_A: Int64,
    share_AN: Float32,
    cos_G: Float32,
    sin_G: Float32,
    variance_TN: Float32,
    amplitude_TAN: Float32,
    square_TN: Float32,
) -> None:
    """Turn the shifts of the upright content into the windows; their variances go to the squares."""
    xx_N, yy_N, xy_N = variance_TN[0], variance_TN[1], variance_TN[len(variance_TN) - 1]
    square_x, square_y = square_TN[0], square_TN[1]
    for a in range(len(turn_A)):
        cos, sin, share_N = cos_G[turn_A[a]], sin_G[turn_A[a]], share_AN[a]
        x_N, y_N = amplitude_TAN[0, a], amplitude_TAN[1, a]
        both, cos_square, sin_square = _TWO * cos * sin, cos * cos, sin * sin
        for n in range(len(share_N)):
            x, y = x_N[n], y_N[n]
            x_N[n], y_N[n] = x * cos - y * sin, x * sin + y * cos
            square_x[n] += share_N[n] * (cos_square * xx_N[n] + sin_square * yy_N[n] - both * xy_N[n])
            square_y[n] += share_N[n] * (sin_square * xx_N[n] + cos_square * yy_N[n] + both * xy_N[n])


@_loop
def _say_angle(
    first: int,
    count: int,
    turn_A: Int64,
    share_AN: Float32,
    turned_AN: Float32,
    w: Weights,
    r: Room,
    answers: Answers,
) -> None:
    """Average the angle near the most probable one, with the circular sd among turns that look different."""
    windows, near_N, moved_N, short_N = len(r.angle_N), r.excess_TN[0], r.excess_TN[1], r.short_N
    near_N[:], moved_N[:], short_N[:] = 0, 0, 0
    for a in range(len(turn_A)):
        turn, likely_N = w.turn_G[turn_A[a]], r.likely_GN[turn_A[a]]
        for n in range(windows):
            r.angle_N[n] = turn + turned_AN[a, n] if likely_N[n] == r.best_N[n] else r.angle_N[n]
    for a in range(len(turn_A)):
        turn = w.turn_G[turn_A[a]]
        for n in range(windows):
            away = turn + turned_AN[a, n] - r.angle_N[n]
            away -= _FULL_TURN * np.floor(away * _PER_TURN + _HALF)
            near = share_AN[a, n] if abs(away) < _NEAR else _ZERO
            r.away_AN[a, n] = away
            near_N[n] += near
            moved_N[n] += near * away
    for n in range(windows):
        moved_N[n] /= near_N[n]
    for a in range(len(turn_A)):
        for n in range(windows):
            turns = (r.away_AN[a, n] - moved_N[n]) * r.fold_N[n] * _PER_TURN
            half = sin_pi(turns - np.floor(turns + _HALF))
            short_N[n] += share_AN[a, n] * half * half
    variance_N = r.variance_TN[2 if w.has_shift else 0]
    for n in range(count):
        # From exp(x) and 1 - exp(x), where the former is nearly 1.
        narrow = tanh(np.float32(-0.25) * r.fold_N[n] * r.fold_N[n] * variance_N[n])
        short_N[n] = _TWO * (short_N[n] / r.total_N[n] * (_ONE + narrow) - narrow) / (_ONE - narrow)
        angle = r.angle_N[n] + moved_N[n]
        answers.angle_N[first + n] = angle - _FULL_TURN * np.floor(angle * _PER_TURN + _HALF)
    _circular_sds(short_N, r.fold_N, answers.angle_sd_N[first : first + count])


@_exact_loop
def _circular_sds(short_N: Float32, fold_N: Float32, out_N: Float32) -> None:
    """Say circular sds from how short resultants are of 1, exactly also where that is little."""
    for n in range(len(out_N)):
        short = min(max(short_N[n], _ZERO), _LARGEST_SHORT)
        left = _ONE - short
        rounded = _ONE - left
        minus_log = -log(left) * (short / rounded) if rounded > _ZERO else short
        out_N[n] = math.sqrt(_TWO * minus_log) / fold_N[n]


@_loop
def _say_shift(first: int, count: int, w: Weights, r: Room, answers: Answers) -> None:
    if not w.has_shift:
        answers.shift_N2[first : first + count], answers.shift_sd_N2[first : first + count] = 0, 0
        return
    unit = np.float32(1 / w.half_px)
    for axis in range(2):
        for n in range(count):
            mean = r.mean_TN[axis, n] / r.total_N[n]
            variance = r.square_TN[axis, n] / r.total_N[n] - mean * mean
            answers.shift_N2[first + n, axis] = mean * unit
            answers.shift_sd_N2[first + n, axis] = math.sqrt(max(variance, _ZERO)) * unit


@_loop
def _correct(first: int, count: int, w: Weights, correction_EN: Float32, answers: Answers) -> None:
    """Put angle, shift and their sds right, by what the content says of them."""
    unit = np.float32(1 / w.half_px)
    for n in range(count):
        at, angle = first + n, answers.angle_N[first + n]
        if w.has_shift:
            x, y, cos, sin = correction_EN[0, n], correction_EN[1, n], math.cos(angle), math.sin(angle)
            answers.shift_N2[at, 0] += (x * cos - y * sin) * unit
            answers.shift_N2[at, 1] += (x * sin + y * cos) * unit
            for axis in range(2):
                sd = answers.shift_sd_N2[at, axis]
                answers.shift_sd_N2[at, axis] = _believed(sd, correction_EN[4, n], w.sd_course_22[1])
        if w.has_turn:
            angle += correction_EN[2, n]
            answers.angle_N[at] = angle - _FULL_TURN * np.floor(angle * _PER_TURN + _HALF)
            sd = answers.angle_sd_N[at]
            answers.angle_sd_N[at] = _believed(sd, correction_EN[3, n], w.sd_course_22[0])


@_loop
def _believed(sd: np.float32, log_factor: np.float32, course_2: Float32) -> np.float32:
    """Say how far an sd can be believed, by what the content says and by the sd itself."""
    # Calls: a loop that is vectorised rounds its last windows otherwise, and blocks would disagree.
    by_itself = course_2[0] * np.float32(math.log(max(sd, _LEAST_SD))) + course_2[1]
    return sd * np.float32(math.exp(min(max(log_factor, _LEAST_FACTOR), _MOST_FACTOR) + by_itself))


# -- novelty -------------------------------------------------------------------------------------------


@_loop
def _say_novelty(first: int, count: int, w: Weights, r: Room, novelty_N: Float32) -> None:
    """Say how far windows are from the training's: what is outside, unexplained, of unusual powers."""
    tangents, windows = len(w.precision_T), len(r.weight_N)
    own_N = r.forms[tangents * (tangents + 1) // 2]
    _powers(r.window_DN, w.run_L3, r.log_power_MN)
    r.unexplained_N[:] = 0
    for m in range(len(w.count_M)):
        for n in range(windows):
            power = r.log_power_MN[m, n]
            r.unexplained_N[n] += power
            # Noise alone has the power count_M: weak orders then vary no more than strong ones.
            r.log_power_MN[m, n] = log(power + w.count_M[m])
            r.centred_MN[m, n] = r.log_power_MN[m, n] - w.novelty_mean_M[m]
    product(w.novelty_whiten_MM, r.centred_MN, r.distance_MN)
    far_N = r.statistics_SN[2]
    far_N[:] = 0
    for m in range(len(r.distance_MN)):
        for n in range(windows):
            far_N[n] += r.distance_MN[m, n] * r.distance_MN[m, n]
    for n in range(windows):
        left = r.weight_N[n] * (r.unexplained_N[n] + own_N[n]) - _TWO * r.best_N[n]
        r.statistics_SN[0, n] = _HALF * log(r.outside_N[n] + _TINY)
        r.statistics_SN[1, n] = _HALF * log(max(left, _ZERO) + _TINY)
        r.statistics_SN[2, n] = _HALF * log(far_N[n] + _TINY)
    for n in range(count):
        largest = _ZERO
        for s in range(len(w.center_S)):
            largest = max(largest, (r.statistics_SN[s, n] - w.center_S[s]) / w.unit_S[s])
        novelty_N[first + n] = min(largest, _MOST_NOVEL) if r.is_whole_N[n] else _MOST_NOVEL


@_loop
def _powers(window_DN: Float32, run_L3: Int64, power_MN: Float32) -> None:
    components = len(window_DN) // 2
    power_MN[:] = 0
    for first, count, order in run_L3:
        for p in range(count):
            real, imaginary = window_DN[first + p], window_DN[components + first + p]
            out = power_MN[order + p]
            for n in range(len(out)):
                out[n] += real[n] * real[n] + imaginary[n] * imaginary[n]
