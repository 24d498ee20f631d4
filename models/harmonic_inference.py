"""The harmonic rVAE as it runs live on a CPU: the whole posterior of 64 windows in a quarter millisecond.

It computes what ``RVAE.posterior`` computes, in another order:

* Windows are folded and read at few orientations (``models.harmonic_constants`` says how).
* The likelihood at all turns of the grid is a product with a table; the integral over the tangents is a
  Cholesky factor of a window's own seven numbers squared, not one for each turn.
* All loops are one compiled call (``models.harmonic_loops``) over arrays that are made once, for blocks of
  two sizes whose arithmetic is the same window by window, bit for bit: what is said of a window does not
  depend on what else is encoded (``models.product`` says what that takes).

Axes: N window, C channel, H row, W column, D real coefficient, M order, S statistic.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.answers import Answers
from models.harmonic_constants import Constants
from models.harmonic_loops import Room, Weights, bench, say
from models.novelty import Calibration, HarmonicNovelty
from models.rvae import RVAE
from models.side_by_side import side_by_side

Float32 = NDArray[np.float32]

SMALL, LARGE = 16, 64
_HALVED = 4 * LARGE  # from so many windows on two threads gain more than they cost
_ROWS = 256  # that are read together: what is made of them stays in the cache


def _weights(const: Constants) -> Weights:
    turn_G = const.turn_G
    return Weights(
        center_C=const.center_C,
        gain_C=const.gain_C,
        disc_F=const.disc_F,
        fold=const.fold.matrix,
        width_K=const.fold.width_K,
        unit=const.unit,
        place_D=const.fold.place_D[const.ordered_D],
        scale_D=const.scale_D,
        even_filter=const.filters.even,
        odd_filter=const.filters.odd,
        filter_bias=const.filters.bias,
        combine=const.combine[0],
        combine_bias=const.combine[1],
        think=const.think[0],
        think_bias=const.think[1],
        say=const.say[0],
        say_bias=const.say[1],
        mixture_mean_MZ=const.mixture[0],
        mixture_variance_MZ=const.mixture[1],
        mixture_log_weight_M=const.mixture[2],
        class_MK=const.class_MK,
        content=const.content,
        mix=const.mix,
        told_EH=const.told_EH,
        sd_course_22=const.sd_course_22,
        reduce=const.templates.reduce,
        template=const.templates.weight,
        own=const.own,
        precision_T=const.precision_T,
        run_L3=const.layers.run_L3,
        even_GR=const.even_GR,
        odd_GR=const.odd_GR,
        turn_G=turn_G,
        cos_G=np.cos(turn_G),
        sin_G=np.sin(turn_G),
        has_turn=const.has_pose[0],
        has_shift=const.has_pose[1],
        half_px=const.size / 2,
        count_M=const.count_M,
        novelty_mean_M=const.novelty_mean_M,
        novelty_whiten_MM=const.novelty_whiten_MM,
        center_S=const.center_S,
        unit_S=const.unit_S,
    )


def _room(const: Constants, size: int) -> Room:
    """Make arrays for blocks of up to so many windows."""

    def room(*shape: int) -> Float32:
        return np.zeros(shape, dtype=np.float32)

    fold, filters = const.fold, const.filters
    oriented, read = filters.even.shape[1], len(const.combine[0]) * const.orientations
    flat, rank = const.templates.weight.shape
    tangents, orders, hidden = len(const.precision_T), len(const.count_M), len(const.mix)
    taken, turns, templates = len(const.even_GR), len(const.turn_G), 1 + tangents
    piece = min(size, max(1, _ROWS // const.orientations))
    pooled, thought = len(const.combine[1]), len(const.think[1])
    # One more than there are: 1, which meets the bias.
    hidden_HN = np.ones((2, hidden + 1, size), dtype=np.float32)
    return Room(
        folded=room(len(fold.width_K), size, const.channels * fold.edge**2),
        seen=room(size * int(fold.width_K.max())),
        energy_N=room(size),
        outside_N=room(size),
        is_whole_N=np.zeros(size, dtype=np.bool_),
        even=room(size, len(filters.even)),
        odd=room(size, len(filters.odd)),
        seen_even=room(size, oriented),
        seen_odd=room(size, oriented),
        read=room(piece, read),
        combined=room(piece * const.orientations, pooled),
        pooled=room(size, pooled),
        thought=room(size, thought),
        said=room(size, 2 * const.latents),
        mean_ZN=np.ones((const.latents + 1, size), dtype=np.float32),
        variance_ZN=np.ones((const.latents, size), dtype=np.float32),
        share_MN=room(len(const.mixture[0]), size),
        first_HN=hidden_HN[0],
        second_HN=hidden_HN[1],
        before_HN=room(hidden, size),
        told_EN=room(len(const.told_EH), size),
        weight_N=room(size),
        reduced_RN=room(rank, size),
        square_SN=room(const.own.shape[1], size),
        forms=room(len(const.own), size),
        window_DN=room(len(const.scale_D), size),
        template_XDN=room(templates, flat // templates, size),
        product_XRN=room(templates, 2 * orders + 1, size),
        even_XGN=room(templates, taken, size),
        odd_XGN=room(templates, taken, size),
        root_TTN=room(tangents, tangents, size),
        inverse_TTN=room(tangents, tangents, size),
        solving_TTN=room(tangents, tangents, size),
        excess_TN=room(tangents + 2, size),
        likely_KN=room(const.folds, size),
        fold_N=np.ones(size, dtype=np.float32),
        likely_GN=room(turns, size),
        best_N=room(size),
        turn_A=np.zeros(turns, dtype=np.int64),
        share_AN=room(turns, size),
        total_N=room(size),
        away_AN=room(turns, size),
        angle_N=room(size),
        amplitude_TAN=room(tangents, turns, size),
        variance_TN=room(templates, size),
        mean_TN=room(tangents, size),
        square_TN=room(tangents, size),
        short_N=room(size),
        unexplained_N=room(size),
        log_power_MN=room(orders, size),
        centred_MN=room(orders, size),
        distance_MN=room(orders, size),
        statistics_SN=room(3, size),
    )


class _Place:
    """What one thread needs to say something of windows: arrays for blocks of two sizes."""

    def __init__(self, const: Constants) -> None:
        weights, self.room = _weights(const), _room(const, LARGE)
        self.large, self.small = bench(weights, self.room), bench(weights, _room(const, SMALL))

    def say(self, windows: Float32, first: int, last: int, answers: Answers) -> None:
        """Say everything of some windows, of few at the end in small blocks."""
        rest = (last - first) % LARGE
        whole = last - rest if rest <= 2 * SMALL else last
        if first < whole:
            say(windows, first, whole, self.large, answers)
        if whole < last:
            say(windows, whole, last, self.small, answers)


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
        self._places = [_Place(self._const) for _ in range(2)]

    def encode(self, windows_NCHW: Float32, threads: int = 1) -> Answers:
        """Say everything of windows ``(n, channel, h, w)``; nothing is learnt.

        Halves of many windows may take threads of their own; what is said does not depend on it.
        """
        count = len(windows_NCHW)
        answers, windows = self._answers(count), np.require(windows_NCHW, np.float32, ["C", "W"])
        one, other = self._places
        if count < _HALVED:
            one.say(windows, 0, count, answers)
        else:
            half = count // 2 // LARGE * LARGE
            parts = [
                partial(one.say, windows, 0, half, answers),
                partial(other.say, windows, half, count, answers),
            ]
            side_by_side(parts, threads)
        return answers

    def statistics(self, windows_NCHW: Float32) -> tuple[Float32, Float32]:
        """Say what the novelty is made of ``(n, 3)``, and the log powers ``(n, M)``, orders ascending."""
        statistics, powers, place = [], [], self._places[0]
        for first in range(0, len(windows_NCHW), LARGE):
            part = np.require(windows_NCHW[first : first + LARGE], np.float32, ["C", "W"])
            say(part, 0, len(part), place.large, self._answers(len(part)))
            statistics.append(place.room.statistics_SN[:, : len(part)].T.copy())
            powers.append(place.room.log_power_MN[self._const.ascending_M, : len(part)].T)
        return np.concatenate(statistics), np.concatenate(powers)

    def _answers(self, count: int) -> Answers:
        return Answers.room(count, self._const.latents, self._const.classes, self._const.nuisances)
