"""What fast electrons lose to the plasmons of small doped particles, as coupled dipoles.

Left out: retardation in the particles and between them (at 0.7 eV light has a wavelength of 1.8 µm, so
that particles of up to some 20 nm are far smaller), the substrate, free electrons that screen over a depth
of their own, and the coupling of multipoles above the dipole, which each sphere has for itself: in gaps
below about ``a`` between two spheres of radius ``a`` the shifts are underestimated, and
``simulators.surface_modes`` has what is missing. The field of the beam itself is the retarded one in the
dipoles. They carry 89 % of the loss to a sphere at 1.5 a from its middle and 98 % at 3.3 a, and little of
it where the beam goes through. Such beams are treated exactly, for all multipoles and for the bulk.

Units: nm, eV, and probabilities per eV. A length over a speed of the beam is a length over ``ħv`` in eV nm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh, inv, solve
from scipy.sparse import csr_array
from scipy.spatial import cKDTree
from scipy.special import factorial, k0e, k1e, kv, lpmv

Float64 = NDArray[np.float64]
Complex128 = NDArray[np.complex128]

# CODATA 2018: e^2 / (4 pi eps0), hbar c and the electron's rest energy.
COULOMB_EV_NM = 1.4399645
HBAR_C_EV_NM = 197.3269804
REST_EV = 510998.95
# Tin-doped In2O3: high-frequency permittivity and effective mass over that of the electron. Values usual
# for its nanocrystals, recalled and not read: see Mendelsberg et al., J. Phys. Chem. C 116, 12224 (2012).
ITO_EPSILON_INF = 4.0
ITO_MASS = 0.4
NODES = 6  # energies at which the coupling of the beam is computed; between them it is interpolated
MIN_LOSS_EV = 1e-3
CHUNK = 4096  # beam positions at a time: bounds the memory


@dataclass(frozen=True, slots=True)
class Beam:
    """Fast electrons along z.

    Attributes
    ----------
    energy_kv
        Accelerating voltage in kV.
    collection_mrad
        Half angle that the spectrometer takes in; it counts in the bulk loss alone.
    """

    energy_kv: float = 60.0
    collection_mrad: float = 20.0

    @property
    def gamma(self) -> float:
        """Energy over the rest energy."""
        return 1 + self.energy_kv * 1e3 / REST_EV

    @property
    def hbar_v_ev_nm(self) -> float:
        """Speed times the reduced Planck constant, in eV nm."""
        return HBAR_C_EV_NM * math.sqrt(1 - 1 / self.gamma**2)

    @property
    def cutoff_per_nm(self) -> float:
        """Highest momentum that is collected, in radians per nm."""
        return self.collection_mrad * 1e-3 * REST_EV / HBAR_C_EV_NM * math.sqrt(self.gamma**2 - 1)


def plasma_energy_ev(carriers_per_cm3: ArrayLike, mass: float = ITO_MASS) -> Float64:
    """Plasma energy of free electrons, ``ħ sqrt(n e^2 / (eps0 m))``; mass over that of the electron.

    >>> round(float(plasma_energy_ev(9.2e20)), 2)
    1.78
    """
    per_nm3 = np.asarray(carriers_per_cm3, dtype=np.float64) * 1e-21
    squared = 4 * math.pi * COULOMB_EV_NM * HBAR_C_EV_NM**2 * per_nm3 / (mass * REST_EV)
    energy: Float64 = np.sqrt(squared)
    return energy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spheres:
    """Doped spheres in vacuum, with free electrons after Drude.

    ``eps(w) = epsilon_inf - plasma^2 / (w^2 + i damping w)``.

    Attributes
    ----------
    positions_nm
        Middles ``(x, y, z)``, shape ``(n, 3)``.
    radii_nm
        Shape ``(n,)``.
    plasma_ev
        Plasma energy of each, shape ``(n,)``; see ``plasma_energy_ev``.
    epsilon_inf
        Permittivity of the bound electrons.
    damping_ev
        Full width of the resonances.
    """

    positions_nm: Float64
    radii_nm: Float64
    plasma_ev: Float64
    epsilon_inf: float = ITO_EPSILON_INF
    damping_ev: float = 0.1

    def permittivity(self, loss_ev: ArrayLike) -> Complex128:
        """Permittivity of each at some energies, shape ``(energies, n)``."""
        return drude(np.asarray(loss_ev)[:, None], self.plasma_ev, self.epsilon_inf, self.damping_ev)


def drude(loss_ev: Float64, plasma_ev: ArrayLike, epsilon_inf: float, damping_ev: float) -> Complex128:
    """Permittivity of free electrons beside bound ones; the arrays broadcast."""
    squared = np.asarray(plasma_ev, dtype=np.float64) ** 2
    return np.asarray(epsilon_inf - squared / (loss_ev * (loss_ev + 1j * damping_ev)), dtype=np.complex128)


# -- the field of the beam ---------------------------------------------------------------------


def beam_field(
    distance_nm: Float64, radius_nm: ArrayLike, loss_ev: ArrayLike, beam: Beam
) -> tuple[Float64, Float64]:
    """Field of the beam, averaged over spheres, over the charge and without the phase ``exp(i w z / v)``.

    Outside it is that of the middle of the sphere (García de Abajo, Rev. Mod. Phys. 82, 209 (2010), eq. 5).
    A beam that goes through drives the uniform polarisation of the sphere by the mean of its field there,
    which is finite. Derived: what a charge ``q`` at ``r`` does on average over a sphere is ``q r / a^3``
    inside and ``q r / r^3`` outside; the way through the sphere is integrated in powers of ``w a / v``, up
    to the sixth.

    Parameters
    ----------
    distance_nm
        From the middles of spheres to the beam; the arrays broadcast.
    radius_nm
        Of the spheres.
    loss_ev
        Energy loss.
    beam
        The electrons.

    Returns
    -------
    across, along
        Field away from the beam, and along it with a factor ``-i``, in 1/(nm eV).
    """
    v = beam.hbar_v_ev_nm
    arrays = np.broadcast_arrays(distance_nm, radius_nm, np.asarray(loss_ev) / v)
    distance, radius, q = (np.array(array, dtype=np.float64).ravel() for array in arrays)
    across, along = _fields(distance, radius, q, beam.gamma, _TAIL_0, _TAIL_1)
    return across.reshape(arrays[0].shape) / v, along.reshape(arrays[0].shape) / v


def _tail(bessel: Callable[[Float64], Float64]) -> Float64:
    """Fit ``sqrt(x) exp(x) K(x)`` by a polynomial of ``2/x - 1`` for x above 2, to 1e-12."""
    inverse = np.cos(math.pi * (np.arange(40) + 0.5) / 40)
    x = 4 / (inverse + 1)
    return np.asarray(np.polynomial.polynomial.polyfit(inverse, np.sqrt(x) * bessel(x), 14), dtype=np.float64)


_TAIL_0, _TAIL_1 = _tail(k0e), _tail(k1e)


@njit(cache=True)
def _bessel(x: float, tail_0: Float64, tail_1: Float64) -> tuple[float, float]:
    """K0 and K1, four times faster than SciPy's: their series up to 2 (Abramowitz and Stegun 9.6.11-13)."""
    if x > 2:
        inverse = 4 / x - 1
        sum_0, sum_1 = 0.0, 0.0
        for k in range(len(tail_0) - 1, -1, -1):
            sum_0 = sum_0 * inverse + tail_0[k]
            sum_1 = sum_1 * inverse + tail_1[k]
        decay = np.exp(-x) / np.sqrt(x)
        return sum_0 * decay, sum_1 * decay
    logarithm = np.log(x / 2) + np.euler_gamma
    square = x * x / 4
    term, harmonic = 1.0, 0.0
    zero, one = -logarithm, 0.0
    for k in range(1, 12):
        # term = square^(k-1) / ((k-1)!)^2, harmonic = 1 + ... + 1/(k-1)
        one += term / k * (logarithm - harmonic - 0.5 / k)
        term *= square / (k * k)
        harmonic += 1.0 / k
        zero += term * (harmonic - logarithm)
    return zero, 1 / x + x / 2 * one


@njit(cache=True)
def bessel_k0(x: float) -> float:
    """K0 of 1e-6 to 700, to 1e-12."""
    return _bessel(x, _TAIL_0, _TAIL_1)[0]


@njit(cache=True)
def _field(
    b: float, a: float, q: float, gamma: float, tail_0: Float64, tail_1: Float64
) -> tuple[float, float]:
    """Across and along as in ``beam_field``, times v."""
    b = max(b, 1e-6 * a)
    zero, one = _bessel(q * b / gamma, tail_0, tail_1)
    across = 2 * q / gamma * one
    along = 2 * q / gamma**2 * zero
    if b < a:
        more_across, more_along = _way_through(b, a, q)
        across += more_across
        along += more_along / gamma**2
    return across, along


@njit(cache=True)
def _way_through(b: float, a: float, q: float) -> tuple[float, float]:
    """What the part of the beam inside a sphere changes in the field of a beam past a point."""
    half = np.sqrt(a * a - b * b)
    # Integrals from 0 to half of z^k / r, and of z^k / r^3.
    l0 = np.arcsinh(half / b)
    l2 = (half * a - b * b * l0) / 2
    l4 = (half**3 * a - 3 * b * b * l2) / 4
    j2, j4, j6 = l0 - half / a, 3 * l2 - half**3 / a, 5 * l4 - half**5 / a
    one_less_cos = q**2 / 2 * j2 - q**4 / 24 * j4 + q**6 / 720 * j6
    sin_z = q * j2 - q**3 / 6 * j4 + q**5 / 120 * j6
    uniform = q * half**3 / 3 - q**3 * half**5 / 30 + q**5 * half**7 / 840
    across = -2 / b + 2 * b / (a * (a + half)) + 2 * b * one_less_cos
    across += 2 * b / a**3 * np.sin(q * half) / q
    return across, 2 * (uniform / a**3 - sin_z)


@njit(cache=True)
def _fields(
    distance: Float64, radius: Float64, q: Float64, gamma: float, tail_0: Float64, tail_1: Float64
) -> tuple[Float64, Float64]:
    across, along = np.empty(len(q)), np.empty(len(q))
    for i in range(len(q)):
        across[i], along[i] = _field(distance[i], radius[i], q[i], gamma, tail_0, tail_1)
    return across, along


def _driven(spheres: Spheres, positions_nm: Float64, loss_ev: Float64, beam: Beam) -> tuple[Float64, Float64]:
    """Field at each sphere, real and imaginary part, times the root of its volume over 4π/3.

    Shape ``(positions, 3 n)`` each: all x, then all y, then all z. ``loss_ev`` is one energy, or one for
    each position. The phase is counted from the highest sphere.
    """
    v = beam.hbar_v_ev_nm
    height = spheres.positions_nm[:, 2] - spheres.positions_nm[:, 2].max()
    q = np.array(np.broadcast_to(loss_ev / v, len(positions_nm)))
    places = np.column_stack([spheres.positions_nm[:, :2], height, spheres.radii_nm, spheres.radii_nm**1.5])
    parts: Float64 = np.zeros((2, len(positions_nm), 3 * len(places)))
    _drive(np.ascontiguousarray(positions_nm), places, q, v, beam.gamma, _TAIL_0, _TAIL_1, parts)
    return parts[0], parts[1]


@njit(cache=True)
def _drive(
    beams: Float64,
    places: Float64,
    q: Float64,
    v: float,
    gamma: float,
    tail_0: Float64,
    tail_1: Float64,
    parts: Float64,
) -> None:
    """Fill in the parts; ``places`` has x, y, height, radius and root of the volume of each sphere."""
    n = len(places)
    for i in range(len(beams)):
        for j in range(n):
            x, y = places[j, 0] - beams[i, 0], places[j, 1] - beams[i, 1]
            distance = np.sqrt(x * x + y * y)
            across, along = _field(distance, places[j, 3], q[i], gamma, tail_0, tail_1)
            across *= places[j, 4] / v / max(distance, 1e-9)
            along *= places[j, 4] / v
            if places[j, 2] == 0:
                parts[0, i, j], parts[0, i, n + j] = across * x, across * y
                parts[1, i, 2 * n + j] = -along
            else:
                cos, sin = np.cos(q[i] * places[j, 2]), np.sin(q[i] * places[j, 2])
                parts[0, i, j], parts[0, i, n + j] = across * x * cos, across * y * cos
                parts[1, i, j], parts[1, i, n + j] = across * x * sin, across * y * sin
                parts[0, i, 2 * n + j], parts[1, i, 2 * n + j] = along * sin, -along * cos


def dipole_coupling(spheres: Spheres) -> Float64:
    """Field of unit dipoles at each other, ``(3 rr/r^2 - 1)/r^3``, scaled by the roots of both volumes.

    Shape ``(3 n, 3 n)``, all x, then all y, then all z; dimensionless, without self-interaction.
    """
    n = len(spheres.radii_nm)
    between = spheres.positions_nm[:, None] - spheres.positions_nm[None]
    r = np.sqrt((between**2).sum(axis=-1)) + np.eye(n)
    root = spheres.radii_nm**1.5
    strength = root[:, None] * root / r**3 * (1 - np.eye(n))
    coupling = np.empty((3, n, 3, n))
    for i in range(3):
        for j in range(3):
            angle = 3 * between[..., i] * between[..., j] / r**2 - (i == j)
            coupling[i, :, j] = strength * angle
    return coupling.reshape(3 * n, 3 * n)


# -- modes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class DipoleModes:
    """Plasmons that spheres have together: harmonic oscillators that the beam drives.

    A Drude sphere is a bound polarisation, which follows at once, and a cloud of electrons that swings at
    ``plasma / sqrt(epsilon_inf + 2)``; its polarisability is ``a^3 (c + f / (w0^2 - w^2 - i damping w))``.
    Coupled as dipoles, with the bound part eliminated, the clouds have real normal modes even if each
    sphere has a doping of its own, so that one decomposition serves all energies and all beams. Derived;
    ``direct_loss`` gives the same without it. The damping is the same for all.

    Attributes
    ----------
    spheres
        What swings.
    energies_ev
        Energy of each mode, shape ``(3 n,)``, ascending.
    """

    spheres: Spheres
    energies_ev: Float64 = field(init=False)
    _drives: Float64 = field(init=False)

    def __post_init__(self) -> None:
        eps = self.spheres.epsilon_inf
        coupling = dipole_coupling(self.spheres)
        bound = (eps - 1) / (eps + 2)
        screened = inv(np.eye(len(coupling)) - bound * coupling)
        cloud = np.tile(self.spheres.plasma_ev * math.sqrt(3) / (eps + 2), 3)
        stiffness = cloud[:, None] * ((eps + 2) / 3 * np.eye(len(coupling)) - coupling @ screened) * cloud
        squares, shapes = eigh(stiffness)
        if squares[0] <= 0:
            raise ValueError("spheres are too close to be coupled dipoles; they must not overlap")
        object.__setattr__(self, "energies_ev", np.sqrt(squares))
        object.__setattr__(self, "_drives", screened @ (cloud[:, None] * shapes))

    def loss(self, positions_nm: ArrayLike, loss_ev: ArrayLike, beam: Beam) -> Float64:
        """Probability per eV that a beam loses an energy to the plasmons.

        Many positions are done with the coupling interpolated in energy, to 1e-4 of the highest loss.

        Parameters
        ----------
        positions_nm
            Beams ``(x, y)``, shape ``(m, 2)``, beside the spheres or through them.
        loss_ev
            Energy losses, shape ``(energies,)``, ascending; below 1 meV nothing is lost.
        beam
            The electrons.

        Returns
        -------
        loss
            Shape ``(m, energies)``, in 1/eV, 0 and above.
        """
        positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
        energies = np.asarray(loss_ev, dtype=np.float64)
        loss = np.zeros((len(positions), len(energies)))
        is_loss = energies >= MIN_LOSS_EV
        if not is_loss.any():
            return loss
        few = len(positions) <= 2 * NODES
        for start in range(0, len(positions), CHUNK):
            some = slice(start, start + CHUNK)
            of = self._exact if few or is_loss.sum() <= NODES else self._interpolated
            loss[some, is_loss] = of(positions[some], energies[is_loss], beam)
        return loss

    def _weights(self, positions: Float64, loss_ev: Float64, beam: Beam) -> Float64:
        """How strongly beams drive each mode, shape ``(m, 3 n)``."""
        real, imaginary = _driven(self.spheres, positions, loss_ev, beam)
        flat = 2 * len(self.spheres.radii_nm)
        if np.ptp(self.spheres.positions_nm[:, 2]) == 0:  # half of both parts are zero
            one, other = real[:, :flat] @ self._drives[:flat], imaginary[:, flat:] @ self._drives[flat:]
        else:
            one, other = real @ self._drives, imaginary @ self._drives
        one *= one
        other *= other
        one += other
        return one

    def _response(self, energies: Float64) -> Float64:
        """Loss to each mode that is driven by 1, shape ``(3 n, energies)``."""
        width = self.spheres.damping_ev * energies
        apart = self.energies_ev[:, None] ** 2 - energies**2
        response: Float64 = COULOMB_EV_NM / math.pi * width / (apart**2 + width**2)
        return response

    def _exact(self, positions: Float64, energies: Float64, beam: Beam) -> Float64:
        response = self._response(energies)
        loss = np.empty((len(positions), len(energies)))
        for i, position in enumerate(positions):
            here = np.broadcast_to(position, (len(energies), 2))
            loss[i] = np.einsum("ek,ke->e", self._weights(here, energies, beam), response)
        return loss

    def _interpolated(self, positions: Float64, energies: Float64, beam: Beam) -> Float64:
        """Interpolate the weights between Chebyshev nodes, with their exponential decay taken out."""
        nodes, basis = chebyshev(energies, NODES)
        response = self._response(energies)
        offset = positions[:, None] - self.spheres.positions_nm[None, :, :2]
        nearest = np.sqrt((offset**2).sum(axis=-1)).min(axis=1)
        decay = 2 * nearest[:, None] / (beam.hbar_v_ev_nm * beam.gamma)
        loss = np.zeros((len(positions), len(energies)))
        for node, share in zip(nodes, basis, strict=True):
            weights = self._weights(positions, node, beam)
            weights *= np.exp(decay * node)
            loss += weights @ (response * share)
        loss *= np.exp(-decay * energies)
        # What is interpolated may be below zero by the error of the interpolation.
        return np.maximum(loss, 0.0, out=loss)


def chebyshev(energies: Float64, count: int) -> tuple[Float64, Float64]:
    """Nodes between the first and the last energy, and the Lagrange polynomial of each, ``(count, n)``.

    Both are of the root of the energy: what is interpolated has a logarithm at zero.
    """
    x = np.sqrt(energies)
    middle, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2
    nodes = middle + half * np.cos(math.pi * (np.arange(count) + 0.5) / count)
    basis = np.ones((count, len(x)))
    for i in range(count):
        for j in range(count):
            if j != i:
                basis[i] *= (x - nodes[j]) / (nodes[i] - nodes[j])
    return nodes**2, basis


def direct_loss(
    spheres: Spheres, positions_nm: ArrayLike, loss_ev: ArrayLike, beam: Beam, permittivity: ArrayLike
) -> Float64:
    """Do what ``DipoleModes.loss`` does energy by energy, for any permittivity.

    Parameters
    ----------
    spheres
        Where and how large they are; their doping does not count here.
    positions_nm, loss_ev, beam
        As there; energies of 1 meV and above.
    permittivity
        Of each sphere at each energy, shape ``(energies, n)``, complex.

    Returns
    -------
    loss
        Shape ``(m, energies)``, in 1/eV.
    """
    positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
    eps = np.asarray(permittivity)
    coupling = dipole_coupling(spheres)
    energies = np.asarray(loss_ev, dtype=np.float64)
    loss = np.empty((len(positions), len(energies)))
    for i, energy in enumerate(energies):
        real, imaginary = _driven(spheres, positions, energy, beam)
        field_ = (real + 1j * imaginary).T
        stiffness = np.diag(np.tile((eps[i] + 2) / (eps[i] - 1), 3)) - coupling
        moment = solve(stiffness, field_, assume_a="sym")
        loss[:, i] = COULOMB_EV_NM / math.pi * (moment * field_.conj()).sum(axis=0).imag
    return loss


# -- beams through spheres ---------------------------------------------------------------------


def bulk_loss(spheres: Spheres, positions_nm: ArrayLike, loss_ev: ArrayLike, beam: Beam) -> Float64:
    """Probability per eV of losing an energy to the bulk plasmon of the spheres that are gone through.

    It is less than in an endless solid, as charge at the surface screens it (Begrenzung). Derived: the
    fields inside a sphere that its surface charges cannot make are those of potentials that vanish on the
    surface; the beam drives them with the energy of its own charge there, taken with its image in the
    sphere. The beam's phase does not change on the way through a particle far smaller than ``v/w``. For
    the logarithm at short distances the momentum is cut off at the angle that is collected, so that in
    an endless solid ``(2 e^2 / pi v^2) Im(-1/eps) ln(q_c v / w)`` per length comes out (Egerton, Electron
    Energy-Loss Spectroscopy in the Electron Microscope (2011), eq. 3.32).

    Parameters
    ----------
    spheres, positions_nm, loss_ev, beam
        As of ``DipoleModes.loss``.

    Returns
    -------
    loss
        Shape ``(m, energies)``, in 1/eV, 0 and above.
    """
    positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
    energies = np.asarray(loss_ev, dtype=np.float64)
    loss = np.zeros((len(positions), len(energies)))
    offset = positions[:, None] - spheres.positions_nm[None, :, :2]
    distance = np.sqrt((offset**2).sum(axis=-1))
    where, which = np.nonzero(distance < spheres.radii_nm)
    if not len(where):
        return loss
    weight = _enclosed(distance[where, which], spheres.radii_nm[which], beam.cutoff_per_nm)
    is_loss = energies >= MIN_LOSS_EV
    lost = np.imag(-1 / spheres.permittivity(energies[is_loss])).T
    through = np.zeros((len(positions), len(spheres.radii_nm)))
    through[where, which] = weight * COULOMB_EV_NM / (math.pi * beam.hbar_v_ev_nm**2)
    loss[:, is_loss] = through @ lost
    return loss


_GAUSS = np.polynomial.legendre.leggauss(24)


def _enclosed(b: Float64, a: Float64, cutoff_per_nm: float) -> Float64:
    """Energy of a line of unit charge per length through a grounded sphere, in nm, shape ``(n,)``."""
    core = 2 * math.exp(-np.euler_gamma) / cutoff_per_nm  # 2 K0(w core / v) = 2 ln(q_c v / w)
    length = 2 * np.sqrt(a * a - b * b)
    own = 2 * (length * np.arcsinh(length / core) - np.hypot(length, core) + core)
    z = length[:, None] / 2 * _GAUSS[0]
    one, other = z[:, :, None], z[:, None, :]
    b, a = b[:, None, None], a[:, None, None]
    # In the sphere the image of a charge at r is as far from r' as r's from r'.
    squared = a**2 + (b * b + one**2) * (b * b + other**2) / a**2 - 2 * (b * b + one * other)
    image = np.einsum("nij,i,j->n", 1 / np.sqrt(squared), _GAUSS[1], _GAUSS[1]) * length**2 / 4
    enclosed: Float64 = np.maximum(own - image, 0.0)
    return enclosed


# -- multipoles ----------------------------------------------------------------------------------


def multipoles_alone(
    spheres: Spheres, positions_nm: ArrayLike, loss_ev: ArrayLike, beam: Beam, l_max: int = 10
) -> Float64:
    """Probability per eV of losing an energy to what a sphere has above its dipole, each for itself.

    Above the quadrupole little of it reaches a neighbour. Derived: the beam drives a multipole by its
    potential ``(r/a)^l`` inside and ``(a/r)^(l+1)`` outside along its way; outside it is Ferrell and
    Echenique's sum (``multipole_loss``). How it depends on ``w a / v`` is taken at the dipole's energy of
    the mean sphere, as long as particles are far smaller than ``v/w`` to some per cent.

    Parameters
    ----------
    spheres, positions_nm, loss_ev, beam
        As of ``DipoleModes.loss``.
    l_max
        The last multipole.

    Returns
    -------
    loss
        Shape ``(m, energies)``, in 1/eV, 0 and above.
    """
    positions = np.asarray(positions_nm, dtype=np.float64).reshape(-1, 2)
    energies = np.asarray(loss_ev, dtype=np.float64)
    loss = np.zeros((len(positions), len(energies)))
    is_loss = energies >= MIN_LOSS_EV
    radii, v = spheres.radii_nm, beam.hbar_v_ev_nm
    dipole_ev = float(spheres.plasma_ev.mean()) / math.sqrt(spheres.epsilon_inf + 2)
    table = _multipole_table(round(dipole_ev * float(radii.mean()) / v, 3), l_max)
    pairs = cKDTree(positions).sparse_distance_matrix(
        cKDTree(spheres.positions_nm[:, :2]), MULTIPOLE_REACH * float(radii.max()), output_type="ndarray"
    )
    beta = pairs["v"] / radii[pairs["j"]]
    permittivity = spheres.permittivity(energies[is_loss]).T
    for order in range(2, l_max + 1):
        driven = np.interp(beta, _BETA, table[order - 2], right=0.0)
        seen = driven > 3e-4 * table[order - 2].max()
        weights = csr_array(
            (driven[seen], (pairs["i"][seen], pairs["j"][seen])), shape=(len(positions), len(radii))
        )
        lost = np.imag(order * (permittivity - 1) / (order * permittivity + order + 1))
        loss[:, is_loss] += weights @ (COULOMB_EV_NM / (math.pi * v * v) * radii[:, None] * lost)
    return loss


MULTIPOLE_REACH = 6.0  # in radii; there the quadrupole has 1 % of the dipole's loss
_BETA = np.concatenate([np.linspace(0, 0.9, 16), np.linspace(0.92, 1.2, 29), np.geomspace(1.22, 6.0, 60)])


@functools.cache
def _multipole_table(kappa: float, l_max: int) -> Float64:
    """How strongly beams at ``_BETA`` radii drive multipoles 2 to ``l_max`` at ``w a / v = kappa``.

    The share of order m is ``(2 - delta_m0) (l-m)!/(l+m)!`` times the square of the integral of the
    multipole's potential and the beam's phase along the beam; shape ``(l_max - 1, beams)``.
    """
    nodes, weights = np.polynomial.legendre.leggauss(48)
    s, ds = (nodes + 1) / 2, weights / 2
    inside = np.sqrt(np.maximum(1 - _BETA**2, 0))[:, None]
    scale = np.maximum(_BETA, 0.5)[:, None]
    t = np.concatenate([inside * s, inside + scale * s / (1 - s)], axis=1)
    dt = np.concatenate([inside * ds, scale * ds / (1 - s) ** 2], axis=1)
    r = np.hypot(_BETA[:, None], t)
    table = np.zeros((l_max - 1, len(_BETA)))
    for order in range(2, l_max + 1):
        radial = np.where(r < 1, np.minimum(r, 1) ** order, np.maximum(r, 1) ** -(order + 1.0)) * dt
        for m in range(order + 1):
            wave = np.cos(kappa * t) if (order + m) % 2 == 0 else np.sin(kappa * t)
            way = 2 * (radial * lpmv(m, order, t / r) * wave).sum(axis=1)
            share = (2 - (m == 0)) * factorial(order - m) / factorial(order + m)
            table[order - 2] += share * way**2
    return table


# -- theory to compare with --------------------------------------------------------------------


def multipole_loss(
    distance_nm: float,
    radius_nm: float,
    loss_ev: Float64,
    permittivity: Complex128,
    beam: Beam,
    l_max: int = 12,
) -> Float64:
    """Loss of a beam past one sphere with all its multipoles, quasi-static, per eV, ``(energies,)``.

    Ferrell and Echenique, Phys. Rev. Lett. 55, 1526 (1985), eq. 5.
    """
    x, y = loss_ev * radius_nm / beam.hbar_v_ev_nm, loss_ev * distance_nm / beam.hbar_v_ev_nm
    total = np.zeros_like(loss_ev)
    for order in range(1, l_max + 1):
        lost = np.imag(order * (permittivity - 1) / (order * permittivity + order + 1))
        for m in range(order + 1):
            share = (2 - (m == 0)) / (factorial(order + m) * factorial(order - m))
            total += share * x ** (2 * order) * kv(m, y) ** 2 * lost
    result: Float64 = 4 * COULOMB_EV_NM * radius_nm / (math.pi * beam.hbar_v_ev_nm**2) * total
    return result
