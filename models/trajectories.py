"""Tell what all columns do together from what single ones do, by principal components.

Columns that are followed through the frames move for two reasons: the scan moves all of them, smoothly
over the field, and an atom moves by itself. The principal components of the trajectories separate the two
(Roccapriore, Creange, Ziatdinov and Kalinin, arXiv:2009.05635): a component that many columns share is the
scan, what is left of a single column is noise and its own motion. The same analysis before and after the
correction says how much of the scan was taken out, and whether anything else was.

The window holds ``T`` frames and ``n`` columns, and ``T`` is much smaller than ``2n``. Everything follows
from the ``T × T`` matrix of products of frames with frames: a new frame replaces one row and column of it,
columns that come or go add or take away their outer product. So a frame costs the same however long the
session is.

Axes: W frames of the window, T those of them in use, C slots for columns, N columns, K components.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Slots = NDArray[np.intp]

LEAST_FRAMES = 8  # fewer make no spectrum in which a noise level could be seen
LEAST_COLUMNS = 8
_MOST_COMMON = 24  # components that are looked at; a scan has about ten
_ABOVE_NOISE = 1.1  # the edge of the noise is known to a few per cent, and noise differs among columns
_SHARED_BY = 0.02  # of the columns: fly-back moves the left edge alone
_SURELY = 5.0  # standard deviations: of 2,000 still columns, none is called moving in a thousand frames


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Motion:
    """How the columns move, as two-dimensional vectors, about their means over the window.

    Attributes
    ----------
    explained_variance_ratio
        Part of the whole variance in each of the first components, shape ``(k,)``, largest first.
    common_px2
        Mean square displacement, in px², in components that many columns share, noise not counted.
    local_px2
        The rest, in px²: noise, jitter of single rows, and columns that move by themselves.
    common_components
        How many components are shared.
    """

    explained_variance_ratio: Float64
    common_px2: float
    local_px2: float
    common_components: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectorySummary:
    """The columns' motion where the raster has them and where the correction puts them.

    Attributes
    ----------
    before, after
        From raw and from corrected positions, of the same columns in the same frames.
    columns, frames
        How many of either the analysis rests on.
    """

    before: Motion
    after: Motion
    columns: int
    frames: int


class Trajectories:
    """Follow the columns over a sliding window of frames.

    Parameters
    ----------
    window_frames
        Frames that are compared with each other.
    components
        How many explained variances the summary gives.
    least_presence
        Part of the frames of the window in which a column must have been found to count. Where it was not
        found it is taken to have moved with all others.
    """

    def __init__(self, window_frames: int = 64, *, components: int = 5, least_presence: float = 0.8) -> None:
        if not LEAST_FRAMES <= window_frames <= 1024:
            raise ValueError(f"window_frames is {window_frames}; it takes {LEAST_FRAMES} to 1024")
        if not 1 <= components < window_frames:
            raise ValueError(f"components is {components}; it takes 1 to {window_frames - 1}")
        if not 0.5 <= least_presence <= 1:
            raise ValueError(f"least_presence is {least_presence}; it takes 0.5 to 1")
        self.window_frames, self.components, self.least_presence = window_frames, components, least_presence
        self.restart()

    def restart(self) -> None:
        """Forget all frames: after a new reference, positions cannot be compared with earlier ones."""
        window = self.window_frames
        self._observed = 0
        self._track = np.full(0, -1, dtype=np.int64)
        self._is_member = np.zeros(0, dtype=bool)
        self._is_seen = np.zeros((window, 0), dtype=bool)
        self._missed = np.zeros(0, dtype=np.int64)
        self._raw, self._corrected = _Paths.empty(window), _Paths.empty(window)
        self._analysed: tuple[_Components, _Components] | None = None

    @property
    def frames(self) -> int:
        """How many frames are in the window."""
        return min(self._observed, self.window_frames)

    @property
    def columns(self) -> int:
        """How many columns were found in enough of them."""
        return int(np.count_nonzero(self._is_member))

    # -- learning ------------------------------------------------------------------------------

    def observe(self, tracks: Int64, raw_px: Float64, corrected_px: Float64) -> None:
        """Take one frame in.

        A frame without columns is passed over; one in which no known column is found begins a new window.

        Parameters
        ----------
        tracks
            Id of each column through the session, shape ``(n,)``; negative ones are passed over.
        raw_px
            ``(row, col)`` on the raster, as seen, shape ``(n, 2)``.
        corrected_px
            ``(row, col)`` after the correction, shape ``(n, 2)``.

        Raises
        ------
        ValueError
            If shapes do not fit, a position is not finite, or a track occurs twice; nothing is learnt then.
        """
        tracks, raw, corrected = _checked(tracks, raw_px, corrected_px)
        if not len(tracks):
            return
        slots = self._slots_of(tracks)
        if self._observed and not (slots >= 0).any():
            self.restart()
            slots = self._slots_of(tracks)
        is_new = slots < 0
        slots[is_new] = self._settle(tracks[is_new])
        row = self._observed % self.window_frames
        self._observed += 1
        self._note_seen(row, slots)
        for paths, positions in ((self._raw, raw), (self._corrected, corrected)):
            paths.write(row, slots, positions, is_new, self._is_member)
        self._choose_members(row)
        for paths in (self._raw, self._corrected):
            paths.multiply(row, self._is_member)
        self._analysed = None

    def _slots_of(self, tracks: Int64) -> Slots:
        """Find the slot of each track; -1 for those that have none."""
        if not len(self._track):
            return np.full(len(tracks), -1, dtype=np.intp)
        order = np.argsort(self._track)
        place = np.minimum(np.searchsorted(self._track[order], tracks), len(order) - 1)
        slots = order[place]
        return np.where(self._track[slots] == tracks, slots, -1)

    def _settle(self, tracks: Int64) -> Slots:
        """Give new tracks free slots, making more where needed."""
        free = np.flatnonzero(self._track < 0)
        if len(free) < len(tracks):
            self._grow(max(len(tracks) - len(free), len(self._track) // 16))
            free = np.flatnonzero(self._track < 0)
        slots = free[: len(tracks)]
        self._track[slots] = tracks
        self._is_seen[:, slots] = False
        return slots

    def _grow(self, more: int) -> None:
        self._track = np.concatenate([self._track, np.full(more, -1, dtype=np.int64)])
        self._is_member = np.concatenate([self._is_member, np.zeros(more, dtype=bool)])
        self._missed = np.concatenate([self._missed, np.zeros(more, dtype=np.int64)])
        self._is_seen = np.concatenate(
            [self._is_seen, np.zeros((self.window_frames, more), dtype=bool)], axis=1
        )
        self._raw.grow(more)
        self._corrected.grow(more)

    def _note_seen(self, row: int, slots: Slots) -> None:
        self._is_seen[row] = False
        self._is_seen[row, slots] = True
        self._missed += 1
        self._missed[slots] = 0

    def _choose_members(self, row: int) -> None:
        """Let columns in that were found often enough, and out those that were not; fill their gaps."""
        seen = np.count_nonzero(self._is_seen, axis=0)
        is_enough = seen >= max(1, int(np.ceil(self.least_presence * self.frames)))
        entering = np.flatnonzero(is_enough & ~self._is_member)
        leaving = np.flatnonzero(self._is_member & ~is_enough)
        staying = np.flatnonzero(self._is_member & is_enough & ~self._is_seen[row])
        for paths in (self._raw, self._corrected):
            paths.take_away(leaving)
            paths.fill(entering, self._is_seen, slice(0, self.frames))
            paths.fill(staying, self._is_seen, slice(row, row + 1))
            paths.add(entering)
        self._is_member = is_enough
        # One that was missed for so long cannot count again before it is forgotten anyway.
        gone = self._missed > max(2.0, (1 - self.least_presence) * self.window_frames)
        self._track[gone & ~is_enough] = -1

    # -- answering -----------------------------------------------------------------------------

    def summary(self) -> TrajectorySummary | None:
        """Say how much of the motion all columns share, before and after the correction.

        Returns
        -------
        summary
            None before there are ``LEAST_FRAMES`` frames with ``LEAST_COLUMNS`` columns in most of them.
        """
        components = self._components()
        if components is None:
            return None
        before, after = (one.motion(self.columns, self.components) for one in components)
        return TrajectorySummary(before=before, after=after, columns=self.columns, frames=self.frames)

    def mobility(self) -> dict[int, float]:
        """Name the columns that surely move by themselves.

        Returns
        -------
        mobility
            By track, the root mean square displacement in pixels (both axes together) that is left after
            the common motion and the noise of a typical column.
        """
        mobile = self._mobility_px()
        return {int(self._track[slot]): float(mobile[slot]) for slot in np.flatnonzero(mobile)}

    def mobility_px(self, tracks: Int64) -> Float64:
        """Say the same of given tracks: shape ``(n,)``, in pixels, 0 for those that do not surely move."""
        slots = self._slots_of(np.asarray(tracks, dtype=np.int64))
        return np.where(slots >= 0, np.append(self._mobility_px(), 0.0)[slots], 0.0)

    def _components(self) -> tuple[_Components, _Components] | None:
        if self.frames < LEAST_FRAMES or self.columns < LEAST_COLUMNS:
            return None
        if self._analysed is None:
            before, after = (
                paths.components(self.frames, self._is_member) for paths in (self._raw, self._corrected)
            )
            self._analysed = before, after
        return self._analysed

    def _mobility_px(self) -> Float64:
        """Find columns that move more, and more lastingly, than most: shape ``(slots,)``, in px."""
        mobile = np.zeros(len(self._track))
        components = self._components()
        if components is None:
            return mobile
        squares, followed = self._corrected.left_over(components[1])
        seen = np.count_nonzero(self._is_seen, axis=0)[self._is_member]
        freedom = np.maximum(2.0 * (seen - 1 - len(components[1].common)), 2.0)
        variance = squares[self._is_member] / freedom
        lasting = followed[self._is_member] / freedom
        typical = _middle(variance)
        # Rows jitter unequally and columns are fitted unequally well, but neither lasts: by the variance
        # alone their columns would be said to move.
        correlation = lasting / np.where(variance > 0, variance, 1.0)
        above = _above_most(variance, typical * np.sqrt(2 / freedom))
        above += _above_most(correlation, np.sqrt(1 / freedom))
        moves = above > np.sqrt(2) * _SURELY
        own = np.maximum(np.maximum(variance - typical, lasting), 0.0)
        mobile[self._is_member] = np.sqrt(2 * np.where(moves, own, 0.0))
        return mobile

    # -- keeping -------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """Say all that the next answers depend on, as copies."""
        arrays: dict[str, NDArray[Any]] = {"observed": np.array(self._observed, dtype=np.int64)}
        arrays |= {name: getattr(self, f"_{name}").copy() for name in _OF_SLOTS}
        for which in ("raw", "corrected"):
            paths = getattr(self, f"_{which}")
            arrays |= {f"{which}.{field.name}": getattr(paths, field.name).copy() for field in fields(paths)}
        return arrays

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from what ``state`` said, bit for bit.

        Raises
        ------
        ValueError
            If it is the state of another window or of something else; nothing is changed then.
        """
        like = Trajectories(self.window_frames)
        like._grow(arrays["track"].size if "track" in arrays else 0)
        for name, array in like.state().items():
            have = arrays.get(name)
            if have is None or have.dtype != array.dtype or have.shape != array.shape:
                told = "missing" if have is None else f"{have.dtype} of shape {have.shape}"
                raise ValueError(
                    f"the state's array {name!r} is {told}; a window of {self.window_frames} frames takes "
                    f"{array.dtype} of shape {array.shape}; start without it"
                )
        # Copies, because what was read from a journal need not lie as the processor likes it.
        own = {name: np.array(arrays[name], order="C") for name in like.state()}
        self._observed = int(own["observed"])
        self._track, self._is_member, self._is_seen, self._missed = (own[name] for name in _OF_SLOTS)
        self._raw, self._corrected = (
            _Paths(**{field.name: own[f"{which}.{field.name}"] for field in fields(_Paths)})
            for which in ("raw", "corrected")
        )
        self._analysed = None


_OF_SLOTS = ("track", "is_member", "is_seen", "missed")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Components:
    """The principal components of one set of paths.

    Attributes
    ----------
    values
        Eigenvalues of the frames' products, largest first, in px², summed over columns.
    common
        Those components' courses through the frames that many columns share, shape ``(k, frames)``.
    common_px2
        The sum of their eigenvalues beyond the noise.
    """

    values: Float64
    common: Float64
    common_px2: float

    def motion(self, columns: int, count: int) -> Motion:
        """Give the figures, for one column."""
        whole = float(self.values.sum())
        degrees = columns * len(self.values)
        return Motion(
            explained_variance_ratio=self.values[:count] / (whole if whole > 0 else 1.0),
            common_px2=self.common_px2 / degrees,
            local_px2=max(0.0, whole - self.common_px2) / degrees,
            common_components=len(self.common),
        )


@dataclass(slots=True, kw_only=True, eq=False)
class _Paths:
    """Where the columns were, raw or corrected: ``W`` frames of the window, ``C`` slots for columns.

    The motion that all columns share as a whole, which may grow to many pixels, is kept apart from what
    each does beyond it: so single precision is enough for the latter.

    Attributes
    ----------
    off_W2C
        Displacement of each column from its start beyond the mean, in px.
    start_2C
        Where each column was first seen, less the mean motion then, in px.
    mean_W2
        Mean motion in px.
    products_WW
        Of frames with frames, summed over members: of ``off_W2C`` alone.
    """

    off_W2C: Float32
    start_2C: Float64
    mean_W2: Float64
    products_WW: Float64

    @classmethod
    def empty(cls, window: int) -> _Paths:
        """Make room for no column."""
        return cls(
            off_W2C=np.zeros((window, 2, 0), dtype=np.float32),
            start_2C=np.zeros((2, 0)),
            mean_W2=np.zeros((window, 2)),
            products_WW=np.zeros((window, window)),
        )

    def grow(self, more: int) -> None:
        """Add slots."""
        window = len(self.mean_W2)
        self.off_W2C = np.concatenate([self.off_W2C, np.zeros((window, 2, more), dtype=np.float32)], axis=2)
        self.start_2C = np.concatenate([self.start_2C, np.zeros((2, more))], axis=1)

    def write(
        self,
        row: int,
        slots: Slots,
        positions: Float64,
        is_new: Bool,
        is_member: Bool,
    ) -> None:
        """Write a frame's positions in; the mean motion is that of the members, else of all known."""
        places = positions.T
        known = ~is_new
        counted = known & is_member[slots]
        counted = counted if counted.any() else known
        mean = np.zeros(2)
        if counted.any():
            mean = (places[:, counted] - self.start_2C[:, slots[counted]]).mean(axis=1)
        self.mean_W2[row] = mean
        self.start_2C[:, slots[is_new]] = places[:, is_new] - mean[:, None]
        self.off_W2C[row] = 0
        self.off_W2C[row][:, slots] = places - self.start_2C[:, slots] - mean[:, None]

    def fill(self, slots: Slots, is_seen: Bool, rows: slice) -> None:
        """Put a column, in those of some rows where it was not seen, where it is on average."""
        if not len(slots):
            return
        seen_WC = is_seen[:, slots]
        off_W2C = self.off_W2C[:, :, slots]
        mean_2C = (off_W2C * seen_WC[:, None]).sum(axis=0) / seen_WC.sum(axis=0)
        filled = np.where(seen_WC[rows, None], off_W2C[rows], mean_2C.astype(np.float32))
        self.off_W2C[rows, :, slots] = filled

    def add(self, slots: Slots) -> None:
        """Count columns in."""
        self.products_WW += self._products(slots)

    def take_away(self, slots: Slots) -> None:
        """Count columns out; their places must be those with which they came in."""
        self.products_WW -= self._products(slots)

    def _products(self, slots: Slots) -> Float64:
        if not len(slots):
            return np.zeros_like(self.products_WW)
        off_WN = self.off_W2C[:, :, slots].reshape(len(self.mean_W2), -1).astype(np.float64)
        return off_WN @ off_WN.T

    def multiply(self, row: int, is_member: Bool) -> None:
        """Make the products of one frame with all others anew."""
        frame = (self.off_W2C[row] * is_member).reshape(-1)
        products = self.off_W2C.reshape(len(self.mean_W2), -1) @ frame
        self.products_WW[row], self.products_WW[:, row] = products, products

    def components(self, frames: int, is_member: Bool) -> _Components:
        """Find the principal components, and those that are above the noise and shared by many."""
        columns = int(np.count_nonzero(is_member))
        values, courses = _eigen(self._centred_products(frames, is_member))
        values = values[: min(frames - 1, 2 * columns)]
        noise, edge = _noise_and_edge(values, frames - 1, 2 * columns)
        above = int(np.count_nonzero(values[:_MOST_COMMON] > edge))
        courses = courses[:above]
        loadings = self._loadings(courses, frames) * is_member
        sharing = _shared_by(loadings, columns, noise / (2 * columns))
        is_common = sharing >= max(LEAST_COLUMNS, _SHARED_BY * columns)
        excess = float((values[:above][is_common] - noise).sum())
        return _Components(values=_padded(values, frames - 1), common=courses[is_common], common_px2=excess)

    def _centred_products(self, frames: int, is_member: Bool) -> Float64:
        """Add the mean motion to the products of the rest, and take the mean over time out."""
        mean_T2 = self._mean_about_zero(frames)
        off_TS = self.off_W2C[:frames].reshape(2 * frames, -1)
        sums_T2 = (off_TS @ is_member.astype(np.float32)).reshape(frames, 2).astype(np.float64)
        cross = sums_T2 @ mean_T2.T
        products = self.products_WW[:frames, :frames] + cross + cross.T
        products += np.count_nonzero(is_member) * (mean_T2 @ mean_T2.T)
        products -= products.mean(axis=0)
        centred: Float64 = products - products.mean(axis=1, keepdims=True)
        return (centred + centred.T) / 2

    def _mean_about_zero(self, frames: int) -> Float64:
        mean_T2 = self.mean_W2[:frames]
        return np.asarray(mean_T2 - mean_T2.mean(axis=0))

    def _loadings(self, courses: Float64, frames: int) -> Float32:
        """Say how much of each course each column does: shape ``(k, 2, slots)``."""
        off_TS = self.off_W2C[:frames].reshape(frames, -1)
        loadings = (courses.astype(np.float32) @ off_TS).reshape(len(courses), 2, off_TS.shape[1] // 2)
        mean_K2 = courses @ self._mean_about_zero(frames)
        return np.asarray(loadings + mean_K2[:, :, None].astype(np.float32))

    def left_over(self, components: _Components) -> tuple[Float64, Float64]:
        """Sum over each column's motion about its mean, outside the common components.

        Returns
        -------
        squares
            Of the displacements, shape ``(slots,)``.
        followed
            Products of the displacements in a frame and in the next, shape ``(slots,)``. The window's seam,
            where the newest frame lies before the oldest, is one pair of many.
        """
        frames = components.common.shape[1]
        # The mean over time goes as one more course, the same in all frames.
        steady = np.full((1, frames), frames**-0.5)
        courses = np.concatenate([components.common, steady])
        mean_T2 = self.mean_W2[:frames]
        mean_T2 = mean_T2 - courses.T @ (courses @ mean_T2)
        off_TS = self.off_W2C[:frames].reshape(frames, -1)
        left_TS = courses.T.astype(np.float32) @ (courses.astype(np.float32) @ off_TS)
        np.subtract(off_TS, left_TS, out=left_TS)
        left_TS.reshape(frames, 2, -1)[...] += mean_T2[:, :, None].astype(np.float32)
        squares, followed = (
            np.einsum("ts,ts->s", left_TS[: len(later)], later) for later in (left_TS, left_TS[1:])
        )
        return _over_axes(squares), _over_axes(followed)


def _over_axes(values_S: Float32) -> Float64:
    return np.asarray(values_S.reshape(2, -1).sum(axis=0), dtype=np.float64)


def _above_most(values: Float64, sd: Float64) -> Float64:
    """Say by how many standard deviations, theirs or the usual spread, values are above the median of all."""
    typical = _middle(values)
    spread = 1.4826 * _middle(np.abs(values - typical))
    return np.asarray((values - typical) / np.maximum(np.maximum(sd, spread), np.finfo(float).tiny))


def _middle(values: Float64) -> float:
    """Take the upper of the two values in the middle: among many as good as their mean, and quicker."""
    middle = len(values) // 2
    return float(np.partition(values, middle)[middle])


def _eigen(products: Float64) -> tuple[Float64, Float64]:
    """Give eigenvalues, largest first and none below 0, and their vectors as rows."""
    values, vectors = np.linalg.eigh(products)
    return np.maximum(values[::-1], 0.0), np.ascontiguousarray(vectors[:, ::-1].T)


def _padded(values: Float64, count: int) -> Float64:
    return np.pad(values, (0, count - len(values)))


def _noise_and_edge(values: Float64, rows: int, cols: int) -> tuple[float, float]:
    """Take the noise from the middle of the spectrum and its largest eigenvalue from Marchenko and Pastur.

    The eigenvalues of noise alone lie within ``s (1 ± sqrt(g))²``, ``g`` the smaller dimension over the
    larger; their median is close to ``s (1 - g/3)``, within 2 % for every ``g``.
    """
    g = min(rows, cols) / max(rows, cols)
    noise = float(np.median(values)) / (1 - g / 3)
    return noise, _ABOVE_NOISE * noise * (1 + np.sqrt(g)) ** 2


def _shared_by(loadings_K2C: Float32, columns: int, noise_px2: float) -> Float64:
    """Count the columns that a component effectively moves: 1 for one of them, n for all alike.

    That is the participation ratio ``(sum a²)² / sum a⁴`` of the lengths ``a`` of the loadings. Noise of
    variance ``v`` along each axis, which all seem to share, adds ``2v`` to the mean of ``a²`` and
    ``8 v a² + 8 v²`` to that of ``a⁴``.
    """
    seen = np.einsum("kac,kac->kc", loadings_K2C, loadings_K2C).astype(np.float64)
    squares = np.maximum(seen.sum(axis=1) - 2 * noise_px2 * columns, 0.0)
    fourths = np.einsum("kc,kc->k", seen, seen) - 8 * noise_px2 * squares - 8 * noise_px2**2 * columns
    shared: Float64 = squares**2 / np.maximum(fourths, squares**2 / columns + np.finfo(float).tiny)
    return shared


def _checked(tracks: Int64, raw_px: Float64, corrected_px: Float64) -> tuple[Int64, Float64, Float64]:
    """Refuse what is no frame of columns, and leave out what has no track."""
    tracks = np.asarray(tracks, dtype=np.int64)
    if tracks.ndim != 1:
        raise ValueError(f"tracks has shape {tracks.shape}; it takes (n,)")
    positions = []
    is_followed = tracks >= 0
    all_followed = bool(is_followed.all())
    for name, given in (("raw_px", raw_px), ("corrected_px", corrected_px)):
        array = np.asarray(given, dtype=np.float64)
        if array.shape != (len(tracks), 2):
            raise ValueError(f"{name} has shape {array.shape}; it takes {(len(tracks), 2)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds a number that is not finite; leave such columns out")
        positions.append(array if all_followed else array[is_followed])
    tracks = tracks[is_followed]
    if (np.diff(np.sort(tracks)) == 0).any():
        raise ValueError("a track occurs twice in tracks; one column has one place in a frame")
    return tracks, positions[0], positions[1]
