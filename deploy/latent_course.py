"""What the latents of a session have come to so far: a few numbers a frame, and a fixed number of frames.

The live view and the report fold the same messages with the same class, so that both say the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.read_outs import (
    NOVEL,
    Order,
    class_counts,
    likely_class,
    order_parameter,
    transition_counts,
)
from streamer.channel_names import shows_height, shows_response
from streamer.messages import Latents

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

FRAMES_KEPT = 192  # whose latents are kept one by one; of a longer session every second, fourth, …
WINDOWS_KEPT = 16_384  # of those that a detector delivered: a scan of 128 × 128
Kind = Literal["columns", "walls", "particles", "grid", "patterns"]


@dataclass(frozen=True, slots=True)
class Words:
    """What windows are cut around, in the words of the field.

    Attributes
    ----------
    one, many
        Such as ``wall point`` and ``wall points``.
    symmetry
        Its angle is the same after a turn by ``2π / symmetry``.
    """

    one: str
    many: str
    symmetry: int

    def counted(self, number: int) -> str:
        """Write so many of them, such as ``1,200 atoms`` or ``1 rod``."""
        return f"{number:,} {self.one if number == 1 else self.many}"


WORDS: dict[Kind, Words] = {
    "columns": Words("atom", "atoms", 1),
    "walls": Words("wall point", "wall points", 2),
    "particles": Words("rod", "rods", 2),
    "grid": Words("place", "places", 2),
    "patterns": Words("pattern", "patterns", 1),
}


def kind_of_sites(channels: Sequence[str], configured: str = "auto") -> Kind:
    """Say what windows of a frame are cut around, by the configuration, else by the frame's channels."""
    for kind in WORDS:
        if kind == configured:
            return kind
    if shows_response(channels):
        return "walls"
    return "particles" if channels and shows_height(channels[0]) else "columns"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """One frame's latents in a few numbers.

    Attributes
    ----------
    number, acquired_at_s
        Those of the frame.
    windows
        How many were encoded.
    classes
        How many of each class, shape ``(k,)``.
    mean, sd
        Of the latents over the frame, shape ``(z,)``; NaN without any.
    order
        Of the angles on the specimen, for content that is the same after half a turn.
    novel
        How many are unlike what the encoder was trained on.
    """

    number: int
    acquired_at_s: float
    windows: int
    classes: Int64
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    order: Order
    novel: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """One frame's latents, one by one.

    Attributes
    ----------
    number, acquired_at_s
        Those of the frame.
    mean
        Shape ``(n, z)``.
    angle_rad
        On the specimen, shape ``(n,)``.
    track, class_
        Shape ``(n,)``.
    """

    number: int
    acquired_at_s: float
    mean: Float32
    angle_rad: Float32
    track: Int64
    class_: Int64


class LatentCourse:
    """Takes in the Latents of a session, in order.

    Latents of other weights cannot be compared with those before: then it begins anew. What encoders
    beside the main one say, and what belongs to sub-scans, is left out.

    Parameters
    ----------
    frames_kept
        How many frames are kept one by one, spread over the session; 0 for none, and then no more is known
        of frames before the last than their transitions.

    Attributes
    ----------
    model_revision
        Of the weights that frames are encoded with; empty before the first.
    seen
        Every frame since these weights came.
    transitions
        From class to class, of the same atoms from one frame to the next, shape ``(k, k)``.
    last_transitions
        Those of the last frame alone.
    kept
        Frames one by one, in order.
    delivered
        The last windows that a detector delivered, batch by batch; they have weights of their own.
    """

    def __init__(self, frames_kept: int = FRAMES_KEPT) -> None:
        self.model_revision = ""
        self.delivered: deque[Latents] = deque()
        self._frames_kept = frames_kept
        self._begin(0)

    def _begin(self, classes: int) -> None:
        self.seen: list[Seen] = []
        self.transitions: Int64 = np.zeros((classes, classes), dtype=np.int64)
        self.last_transitions: Int64 = self.transitions
        self.kept: list[Kept] = []
        self._stride = 1
        self._before: tuple[Int64, Int64] | None = None

    @property
    def classes(self) -> int:
        """How many classes the encoder tells apart."""
        return len(self.transitions)

    def add(self, latents: Latents) -> None:
        """Take in the next Latents."""
        if latents.request_id is not None or latents.is_beside:
            return
        if latents.is_delivered:
            self._add_delivered(latents)
            return
        classes = latents.class_probability.shape[1]
        if latents.model_revision != self.model_revision or classes != self.classes:
            self.model_revision = latents.model_revision
            self._begin(classes)
        self._add_frame(latents, likely_class(latents.class_probability))

    def _add_delivered(self, latents: Latents) -> None:
        if self.delivered and self.delivered[-1].model_revision != latents.model_revision:
            self.delivered.clear()
        self.delivered.append(latents)
        windows = sum(len(one.mean) for one in self.delivered)
        while windows > WINDOWS_KEPT and len(self.delivered) > 1:
            windows -= len(self.delivered.popleft().mean)

    def _add_frame(self, latents: Latents, class_: Int64) -> None:
        if not self._frames_kept:
            self.seen.clear()
        self.seen.append(_seen(latents, class_, self.classes))
        if self._before is not None:
            self.last_transitions = transition_counts(*self._before, latents.track, class_, self.classes)
            self.transitions = self.transitions + self.last_transitions
        self._before = (latents.track, class_)
        if not self._frames_kept:
            return
        if (len(self.seen) - 1) % self._stride == 0:
            self.kept.append(
                Kept(
                    number=latents.number,
                    acquired_at_s=latents.acquired_at_s,
                    mean=latents.mean,
                    angle_rad=latents.angle_rad,
                    track=latents.track,
                    class_=class_,
                )
            )
        if len(self.kept) > self._frames_kept:
            del self.kept[1::2]
            self._stride *= 2


def _seen(latents: Latents, class_: Int64, classes: int) -> Seen:
    nothing = np.full(latents.mean.shape[1], math.nan)
    has_any = len(latents.mean) > 0
    return Seen(
        number=latents.number,
        acquired_at_s=latents.acquired_at_s,
        windows=len(latents.mean),
        classes=class_counts(class_, classes),
        mean=latents.mean.mean(axis=0, dtype=np.float64) if has_any else nothing,
        sd=latents.mean.std(axis=0, dtype=np.float64) if has_any else nothing,
        order=order_parameter(latents.angle_rad),
        novel=int((latents.novelty > NOVEL).sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentLines:
    """The latest word of the latents, for a screen or a log: each is empty where there is nothing to say.

    Attributes
    ----------
    classes
        How many windows of each class, the most frequent first.
    changes
        Transitions of the last frame.
    order
        Order parameter and director.
    novel
        Share of windows that are unlike the training data.
    """

    classes: str = ""
    changes: str = ""
    order: str = ""
    novel: str = ""

    def in_one(self) -> str:
        """Join what there is."""
        return "  ".join(words for words in (self.classes, self.changes, self.order, self.novel) if words)


NOTHING_SEEN = LatentLines()
MOST_CLASSES_TOLD = 5


def latest(course: LatentCourse, kind: Kind) -> LatentLines:
    """Say in words what the last frame, or the last patterns, look like."""
    if course.delivered and kind == "patterns":
        probability = np.concatenate([one.class_probability for one in course.delivered])
        counts = class_counts(likely_class(probability), probability.shape[1])
        novelty = np.concatenate([one.novelty for one in course.delivered])
        return LatentLines(
            classes=_counts_text(counts), novel=_share_text(int((novelty > NOVEL).sum()), len(novelty))
        )
    if not course.seen:
        return NOTHING_SEEN
    last = course.seen[-1]
    turned = WORDS[kind].symmetry == 2 and math.isfinite(last.order.director_rad)
    director = f" at {math.degrees(last.order.director_rad):+.0f}°" if last.order.parameter > 0.05 else ""
    return LatentLines(
        classes=_counts_text(last.classes),
        changes=_changes_text(course.last_transitions),
        order=f"order {last.order.parameter:.2f}{director}" if turned else "",
        novel=_share_text(last.novel, last.windows),
    )


def _counts_text(counts: Int64) -> str:
    """Write the counts of classes, such as ``1: 812, 0: 23``; the rarest together."""
    order = [int(one) for one in np.argsort(-counts, kind="stable") if counts[one] > 0]
    told = [f"{one}: {counts[one]:,}" for one in order[:MOST_CLASSES_TOLD]]
    rest = int(counts[order[MOST_CLASSES_TOLD:]].sum())
    if not told:
        return ""
    return "classes " + ", ".join(told) + (f", others {rest:,}" if rest else "")


def _changes_text(counts: Int64) -> str:
    """Write how many changed class, and which change was the most frequent."""
    if not counts.sum():
        return ""
    moved = counts - np.diag(np.diag(counts))
    total = int(moved.sum())
    if not total:
        return "no change of class"
    before, after = np.unravel_index(int(moved.argmax()), moved.shape)
    return f"{total:,} changed, most {before}→{after}"


def _share_text(novel: int, windows: int) -> str:
    return f"novel {percent_text(novel, windows)}" if windows else ""


def percent_text(part: int, whole: int) -> str:
    """Write a part of a whole in per cent, such as ``0.23 %`` or ``47 %``."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
