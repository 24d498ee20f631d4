"""Observing frames that were turned and moved against one lattice: what strain is told from distortion by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.pose import Pose
from streamer.codec import pack, unpack
from streamer.messages import Float32
from streamer.observers.lattice import Lattice, LatticeObserver, LatticeState
from streamer.observers.reference import Rows

if TYPE_CHECKING:
    from models.distortion_gp import Observations

Float64 = NDArray[np.float64]

_OFF_SITE = 0.1  # in distances between neighbours


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SitesSeen:
    """Columns of a frame, each with its site on the specimen.

    Attributes
    ----------
    ideal_px
        Where the lattice has them on the specimen, shape ``(n, 2)``.
    seen_px, variance_px2
        Where they were seen on the raster, and the noise of that, shape ``(n, 2)``.
    """

    ideal_px: Float64
    seen_px: Float64
    variance_px2: Float64


class TurnedLattice:
    """One lattice, observed in any pose; what each site does by itself is remembered pose by pose.

    Parameters
    ----------
    shape
        Of the frames, ``(rows, cols)``.
    first
        Observer that was started on the first of them.
    """

    def __init__(self, shape: tuple[int, int], first: LatticeObserver) -> None:
        self._shape = shape
        self._observers: dict[Pose, LatticeObserver] = {Pose(): first}

    @property
    def centre_px(self) -> Float64:
        """Centre of the raster, ``(row, col)``."""
        return (np.array(self._shape) - 1) / 2

    def observe(self, image: Float32, pose: Pose, to_raw: Callable[[Float64], Float64]) -> SitesSeen | None:
        """Find the columns of a frame; None if they are not where the lattice has them.

        Parameters
        ----------
        image
            Shape ``(rows, cols)``.
        pose
            Of the frame.
        to_raw
            Takes places on the raster ``(n, 2)`` to where they are seen in the frame.

        Raises
        ------
        NoLattice
            If a frame of a new pose shows too few columns.
        """
        seen: Observations | None = self._observer_of(pose, image).observe(image, to_raw)
        if seen is None:
            return None
        places = seen.positions_px + seen.displacement_px
        return SitesSeen(
            ideal_px=pose.on_specimen(places, self.centre_px),
            seen_px=seen.positions_px,
            variance_px2=seen.variance_px2,
        )

    def known_sites_px(self) -> Float64:
        """Give the specimen places of all sites whose column was seen where it was expected, ``(n, 2)``.

        Columns of another grain come near a site by chance, and stay off it.
        """
        found = []
        for pose, observer in self._observers.items():
            known = observer.residuals()
            assert observer.lattice is not None
            there = np.hypot(*known.mean_px.T) < _OFF_SITE * observer.lattice.spacing_px
            found.append(pose.on_specimen(known.sites_px[there], self.centre_px))
        return np.concatenate(found)

    def rows(
        self, image: Float32, pose: Pose, to_raw: Callable[[Float64], Float64], rows_px: Float64
    ) -> Rows:
        """Say what each row has of its own beside a field of which ``rows_px`` ``(2, rows)`` is by rows."""
        return Rows.beside_lattice(self._observers[pose].rows(image, to_raw, rows_px))

    def _observer_of(self, pose: Pose, image: Float32) -> LatticeObserver:
        if pose not in self._observers:
            first = self._observers[Pose()]
            assert first.lattice is not None
            turned = LatticeObserver(
                _turned(first.lattice, pose, self.centre_px), first.sigma_px, is_dark=first.is_dark
            )
            turned.start(image)
            self._observers[pose] = turned
        return self._observers[pose]

    def state(self) -> tuple[list[tuple[Pose, LatticeState]], dict[str, NDArray[Any]]]:
        """Say all that it knows, pose by pose; arrays are never written to."""
        facts: list[tuple[Pose, LatticeState]] = []
        arrays: dict[str, NDArray[Any]] = {}
        for place, (pose, observer) in enumerate(self._observers.items()):
            fact, own = observer.state()
            facts.append((pose, fact))
            # One array a pose: a message has room for a few dozen.
            arrays[f"{place}"] = np.frombuffer(pack(own), dtype=np.uint8)
        arrays["shape"] = np.array(self._shape, dtype=np.int64)
        return facts, arrays

    @classmethod
    def restored(
        cls, facts: list[tuple[Pose, LatticeState]], arrays: dict[str, NDArray[Any]]
    ) -> TurnedLattice:
        """Make one that knows what another one knew."""
        made = cls.__new__(cls)
        made._shape = (int(arrays["shape"][0]), int(arrays["shape"][1]))
        made._observers = {}
        for place, (pose, fact) in enumerate(facts):
            own = unpack(arrays[f"{place}"].tobytes(), dict[str, NDArray[Any]])
            made._observers[pose] = LatticeObserver().restore(fact, own)
        return made


def _turned(lattice: Lattice, pose: Pose, centre_px: Float64) -> Lattice:
    """Give the lattice as it lies on the raster of a pose."""
    return Lattice(
        vectors_px=lattice.vectors_px @ pose.matrix(),
        origin_px=pose.on_raster(lattice.origin_px[None], centre_px)[0],
        basis=lattice.basis,
        amplitude=lattice.amplitude,
    )
