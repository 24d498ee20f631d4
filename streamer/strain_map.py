"""What ``separate`` says of the specimen: a map of its strain, with standard deviations."""

from __future__ import annotations

from typing import Literal

from streamer.geometry import ScanGeometry
from streamer.message_base import Float32, Message, require_array


class StrainMap(Message, frozen=True, kw_only=True, eq=False, tag="strain_map"):
    """Strain of the specimen, told apart from the distortion of the scan.

    Displacement, strain and rotation are NaN where no column of the lattice was near: in another grain, in
    a hole.

    Attributes
    ----------
    session, number, acquired_at_s
        Those of the last frame that went into it.
    geometry
        How the nodes lie on the specimen: their raster.
    displacement_nm
        Of the specimen against the ideal lattice, ``(x, y)``, shape ``(2, n, m)``, float32; without
        translation, mean dilation and mean rotation: see ``gauge``.
    strain
        ``xx``, ``yy``, ``xy`` (symmetric, tensor shear), shape ``(3, n, m)``, float32.
    rotation_rad
        Of the lattice, from x to y, shape ``(n, m)``, float32.
    strain_sd, rotation_sd_rad
        Standard deviations, of the same shapes.
    gauge
        What the strain is relative to. ``specimen``, and nothing else yet: the mean of the field, whose own
        strain and rotation are taken for those of the scan.
    frames
        Number of frames that went into it.
    registration_revision
        Revision of the registration that the positions speak of.
    """

    session: str
    number: int
    acquired_at_s: float
    geometry: ScanGeometry
    displacement_nm: Float32
    strain: Float32
    rotation_rad: Float32
    strain_sd: Float32
    rotation_sd_rad: Float32
    gauge: Literal["specimen"] = "specimen"
    frames: int
    registration_revision: int = 0

    def __post_init__(self) -> None:
        nodes = self.geometry.shape
        require_array("strain_map", "displacement_nm", self.displacement_nm, (2, *nodes), "float32")
        for name in ("strain", "strain_sd"):
            require_array("strain_map", name, getattr(self, name), (3, *nodes), "float32")
        for name in ("rotation_rad", "rotation_sd_rad"):
            require_array("strain_map", name, getattr(self, name), nodes, "float32")
