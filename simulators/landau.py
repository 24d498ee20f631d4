"""How the polarisation of a layered ferrielectric orders, and how it moves: Landau theory on a grid.

Four copper sites (two layers of two) carry polarisations ``p1`` to ``p4``. In the modes of a Hadamard matrix
they are a polar one, ``P = (p1 + p2 + p3 + p4) / 2``, one that alternates between the layers,
``A = (p1 + p2 - p3 - p4) / 2``, and two that alternate in the layer, which are left at zero. The energy is

    f = a2/2 P^2 + a4/4 P^4 + a6/6 P^6 + a8/8 P^8 + b2/2 A^2 + b4/4 A^4 + b6/6 A^6 + eta/2 P^2 A^2
        + gP/2 |grad P|^2 + gA/2 |grad A|^2 - P E + D(k)/2 |P_k|^2

with ``D(k) = D0 (1 - exp(-k h)) / (k h)`` for the depolarisation of a film of thickness ``h``. This is a
reconstruction of the picture in arXiv:2009.06361 (ferroelectric, antiferroelectric and ferrielectric order in
CuInP2(S,Se)6 from four sublattices), not a transcription: its coefficients were not read. Units are scaled:
polarisation, length, energy density and time have a unit each, and the last is that of
``dP/dt = -dF/dP + noise``.

What moves is stepped by SBDF2 (Ascher, Ruuth and Wetton 1995): a first-order semi-implicit step is 20 to 40 %
wrong in how fast walls move at the same step, with statics and energy that look perfect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numba import njit
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy import fft

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Real = NDArray[Any]  # float32 or float64, as the field was made
Order = Literal["PE", "FE", "AFE", "FI"]

SUBLATTICES = 0.5 * np.array([[1, 1], [1, 1], [1, -1], [1, -1]])  # p1 to p4 from (P, A); its own inverse


class Landau(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Coefficients of the energy, scaled or in SI.

    The defaults are the ferrielectric working set: chosen, not published, so that all four variants are
    stable and the antipolar walls bright.

    Attributes
    ----------
    polar_2, polar_4, polar_6, polar_8
        Of the powers of ``P``.
    antipolar_2, antipolar_4, antipolar_6
        Of the powers of ``A``.
    coupling
        ``eta``, of ``P^2 A^2 / 2``. Were the quartic energy that of each site by itself, it would be three
        times ``polar_4`` and there would be no ferrielectric order.
    polar_gradient, antipolar_gradient
        Of the squared gradients.
    """

    polar_2: float = -1.0
    polar_4: float = 1.0
    polar_6: float = 0.0
    polar_8: float = 0.0
    antipolar_2: float = -0.9
    antipolar_4: float = 1.0
    antipolar_6: float = 0.0
    coupling: float = 0.45
    polar_gradient: float = 2.0
    antipolar_gradient: float = 2.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"landau.{name} is {getattr(self, name)}; it takes a finite number")
        for name in ("polar_gradient", "antipolar_gradient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"landau.{name} is {getattr(self, name)}; it takes a number above 0")
        for axis in ("polar", "antipolar"):
            powers = [getattr(self, f"{axis}_{n}", 0.0) for n in (4, 6, 8)]
            if not next((power for power in reversed(powers) if power), 0.0) > 0:
                raise ValueError(
                    f"landau.{axis}_4 and above are {powers}: the energy has no bottom; the highest power "
                    "takes a coefficient above 0"
                )
        quartic_only = not (self.polar_6 or self.polar_8 or self.antipolar_6)
        if quartic_only and self.coupling <= -math.sqrt(self.polar_4 * self.antipolar_4):
            raise ValueError(
                f"landau.coupling is {self.coupling}: the energy has no bottom; it takes above "
                f"{-math.sqrt(self.polar_4 * self.antipolar_4):g} with these quartic coefficients"
            )

    def density(self, polar: Real, antipolar: Real) -> Float64:
        """Energy density without gradients and fields, shape of the arguments."""
        x, y = np.square(polar, dtype=np.float64), np.square(antipolar, dtype=np.float64)
        own = x * (self.polar_2 / 2 + x * (self.polar_4 / 4 + x * (self.polar_6 / 6 + x * self.polar_8 / 8)))
        other = y * (self.antipolar_2 / 2 + y * (self.antipolar_4 / 4 + y * self.antipolar_6 / 6))
        total: Float64 = own + other + self.coupling / 2 * x * y
        return total

    def scaled(self, polarisation: float, energy_density: float, length: float) -> Landau:
        """Express the coefficients in other units: in how many of the present ones each new unit is.

        The antipolar order has the unit of the polar one.
        """

        def power(n: int) -> float:
            return polarisation**n / energy_density

        named = {f"{axis}_{n}": n for axis in ("polar", "antipolar") for n in (2, 4, 6, 8)}
        values = {
            name: getattr(self, name) * power(n)
            for name, n in named.items()
            if name in self.__struct_fields__
        }
        gradient = power(2) / length**2
        return Landau(
            **values,
            coupling=self.coupling * power(4),
            polar_gradient=self.polar_gradient * gradient,
            antipolar_gradient=self.antipolar_gradient * gradient,
        )


# -- published and chosen sets -----------------------------------------------------------------

FERRIELECTRIC = Landau()
FERROELECTRIC = Landau(antipolar_2=0.5)
# Close to polar order, so that the antipolar walls have a polar core in a matrix that does not respond; and
# three times as stiff as that takes, so that a built-in field hardly polarises the matrix.
ANTIFERROELECTRIC = Landau(
    polar_2=-1.2,
    polar_4=3.0,
    antipolar_2=-1.5,
    antipolar_4=3.0,
    coupling=3.0,
    polar_gradient=12.0,
    antipolar_gradient=12.0,
)


def cuinp2s6(temperature_k: float = 293.0) -> Landau:
    """Coefficients of CuInP2S6 in SI units, with polarisation in C/m^2.

    The polar ones are after Morozovska et al., arXiv:2103.14716, as recalled, not checked against its text;
    they are consistent with about 3 uC/cm^2 at room temperature. The gradient, 1e-9 J m^3/C^2, is in the
    middle of the range 0.5 to 2e-9 that is given for it. No antipolar set is known to us: the antipolar order
    here is stiff, as an assumption, so that it plays no part.
    """
    return Landau(
        polar_2=1.64067e7 * (temperature_k - 292.67),
        polar_4=3.148e12,
        polar_6=-1.0776e16,
        polar_8=7.6318e18,
        antipolar_2=3e9,
        antipolar_4=3.148e12,
        coupling=0.0,
        polar_gradient=1e-9,
        antipolar_gradient=1e-9,
    )


def electrostriction_q33(temperature_k: float) -> float:
    """``Q33`` of CuInP2S6 in m^4/C^2; source as of ``cuinp2s6``. It is negative: the phase is inverted."""
    return -5.622 + 0.0105 * temperature_k


def sublattices(polar: Real, antipolar: Real) -> Real:
    """Polarisations of the four copper sites, shape ``(4, ...)``."""
    return np.tensordot(SUBLATTICES, np.stack([polar, antipolar]), axes=1)


# -- the phases --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """An order in which a uniform film can stay; its sign variants count as one.

    Attributes
    ----------
    order
        ``PE`` without order, ``FE`` polar, ``AFE`` antipolar, ``FI`` both.
    polar, antipolar
        Their size, 0 or above.
    energy
        Energy density.
    """

    order: Order
    polar: float
    antipolar: float
    energy: float


def phases(energy: Landau) -> list[Phase]:
    """Find every uniform order that is stable or metastable, the deepest first."""
    own = Polynomial([energy.polar_2, energy.polar_4, energy.polar_6, energy.polar_8])
    other = Polynomial([energy.antipolar_2, energy.antipolar_4, energy.antipolar_6])
    squares = [(0.0, 0.0)]
    squares += [(x, 0.0) for x in _above_zero(own)] + [(0.0, y) for y in _above_zero(other)]
    if energy.coupling:
        polar_square = other / -energy.coupling  # where the antipolar force is zero, by A^2
        both = _above_zero(Polynomial([0.0, energy.coupling]) + own(polar_square))
        squares += [(float(polar_square(y)), y) for y in both if polar_square(y) > 0]
    else:
        squares += [(x, y) for x in _above_zero(own) for y in _above_zero(other)]
    found = [_phase(energy, x, y) for x, y in squares if _is_minimum(energy, x, y)]
    return sorted(found, key=lambda phase: phase.energy)


def _above_zero(polynomial: Polynomial) -> list[float]:
    trimmed = polynomial.trim()
    if trimmed.degree() < 1:
        return []
    roots = trimmed.roots()
    real = np.real(roots[np.abs(np.imag(roots)) <= 1e-7 * np.abs(roots)])
    return [float(root) for root in real if root > 0]


def _curvatures(energy: Landau, x: float, y: float) -> tuple[float, float]:
    """Curvature of the energy along ``P`` and along ``A`` at ``P^2 = x``, ``A^2 = y``."""
    e = energy
    polar = e.polar_2 + x * (3 * e.polar_4 + x * (5 * e.polar_6 + x * 7 * e.polar_8)) + e.coupling * y
    antipolar = e.antipolar_2 + y * (3 * e.antipolar_4 + y * 5 * e.antipolar_6) + e.coupling * x
    return polar, antipolar


def _is_minimum(energy: Landau, x: float, y: float) -> bool:
    """Whether the energy bends upwards every way."""
    polar, antipolar = _curvatures(energy, x, y)
    return polar > 0 and antipolar > 0 and polar * antipolar > 4 * energy.coupling**2 * x * y


def _phase(energy: Landau, x: float, y: float) -> Phase:
    orders: dict[tuple[bool, bool], Order] = {
        (False, False): "PE",
        (True, False): "FE",
        (False, True): "AFE",
        (True, True): "FI",
    }
    polar, antipolar = math.sqrt(x), math.sqrt(y)
    depth = float(energy.density(np.array(polar), np.array(antipolar)))
    return Phase(order=orders[x > 0, y > 0], polar=polar, antipolar=antipolar, energy=depth)


# -- a field that moves ------------------------------------------------------------------------


class LandauField:
    """``P`` and ``A`` on a periodic grid, with their energy and their kinetics.

    Parameters
    ----------
    energy
        Scaled coefficients.
    shape
        ``(rows, cols)``.
    cell
        Edge of a cell.
    time_step
        Of one ``step``.
    stabiliser
        A linear term that is taken implicitly and given back explicitly: 2 to 4 keep the working sets stable
        up to steps of 0.5. None takes what weak fields need.
    depolarisation, thickness
        ``D0`` and ``h`` of the depolarisation: the unscreened part of it.
    temperature
        Thermal energy in units of energy density times the square of the length.
    rng
        For the thermal noise; needed where the temperature is above 0.
    dtype
        float32 for speed, float64 where 1e-6 matters.

    Attributes
    ----------
    imprint
        Built-in field that acts on ``P``, shape ``(rows, cols)``.
    local_polar_2
        Coefficient of ``P^2`` in each cell, shape ``(rows, cols)``.
    tip
        Shape of the field that ``step`` is given the strength of, shape ``(rows, cols)``; 1 everywhere.
    time
        Passed since the start.
    """

    def __init__(
        self,
        energy: Landau,
        shape: tuple[int, int],
        *,
        cell: float = 1.0,
        time_step: float = 0.25,
        stabiliser: float | None = None,
        depolarisation: float = 0.0,
        thickness: float = 30.0,
        temperature: float = 0.0,
        rng: np.random.Generator | None = None,
        dtype: type[np.float32] | type[np.float64] = np.float32,
    ) -> None:
        if temperature > 0 and rng is None:
            raise ValueError("a field with a temperature takes an rng for its noise")
        self._energy, self.shape, self.cell, self.dtype = energy, shape, cell, dtype
        self._made_with = {
            "depolarisation": depolarisation,
            "thickness": thickness,
            "temperature": temperature,
            "stabiliser": _stabiliser(stiffest(energy, 0.0), time_step) if stabiliser is None else stabiliser,
        }
        self._rng = rng
        self.imprint: Real = np.zeros(shape, dtype)
        self.local_polar_2: Real = np.full(shape, energy.polar_2, dtype)
        self.tip: Real = np.ones(shape, dtype)
        self._base: Real = np.zeros((2, *shape), dtype)  # what is moved is what is added to it
        self._push: Real = np.zeros((2, *shape), dtype)  # a constant force beside the imprint
        self._mobility: Real | None = None  # where it is not 1
        self._moved: Real = np.zeros((2, *shape), dtype)
        self._before, self._slope_before = np.zeros_like(self._moved), np.zeros_like(self._moved)
        self._right = np.empty_like(self._moved)
        self._noise_before = np.zeros_like(self._moved)
        self._is_first = True
        self.time_step = time_step
        self.time = 0.0
        self._stiffness = _stiffness(energy, shape, cell, depolarisation, thickness)
        self._damping = {first: self._inverse(first) for first in (True, False)}

    def _inverse(self, is_first: bool) -> Real:
        """What the implicit part divides by, as a factor, shape ``(2, rows, cols // 2 + 1)``."""
        span = self.time_step if is_first else 2 * self.time_step / 3
        factor: Real = 1 / (1 + span * (self._made_with["stabiliser"] + self._stiffness))
        return factor.astype(self.dtype)

    @property
    def polar(self) -> Real:
        """``P`` in each cell, shape ``(rows, cols)``."""
        total: Real = self._base[0] + self._moved[0]
        return total

    @property
    def antipolar(self) -> Real:
        """``A`` in each cell, shape ``(rows, cols)``."""
        total: Real = self._base[1] + self._moved[1]
        return total

    def put(self, polar: Real, antipolar: Real) -> None:
        """Write both orders anew; what the stepping remembers of before is forgotten."""
        self._moved[0], self._moved[1] = polar - self._base[0], antipolar - self._base[1]
        self._is_first = True

    def step(self, field: float = 0.0) -> None:
        """Move on by one time step.

        Parameters
        ----------
        field
            Strength of the applied field at the end of the step, times ``tip`` in each cell.
        """
        step, made_with = self.time_step, self._made_with
        now, before, slope, slope_before = (1, 0, step, 0) if self._is_first else _SBDF2 * (1, 1, step, step)
        span = step if self._is_first else 2 * step / 3
        weights = np.array([now, before, slope, slope_before, span * field, made_with["stabiliser"]])
        _right_hand_side(
            self._moved.reshape(2, -1),
            self._base.reshape(2, -1),
            self._before.reshape(2, -1),
            self._slope_before.reshape(2, -1),
            self._push.reshape(2, -1),
            self.imprint.ravel(),
            self.local_polar_2.ravel(),
            self.tip.ravel(),
            _powers(self._energy).astype(self.dtype),
            weights.astype(self.dtype),
            self._right.reshape(2, -1),
        )
        if made_with["temperature"] > 0:
            self._add_noise()
        waves = fft.rfftn(self._right, axes=(1, 2), workers=1)
        waves *= self._damping[self._is_first]
        moved = fft.irfftn(waves, s=self.shape, axes=(1, 2), workers=1, overwrite_x=True)
        if self._mobility is not None:
            moved = self._moved + self._mobility * (moved - self._moved)
        self._moved = moved
        self._is_first = False
        self.time += step

    def _add_noise(self) -> None:
        """Kick each cell so that at rest its modes have the thermal energy each.

        The kicks are uniform, not Gaussian: a weak scheme needs their first moments only (Kloeden and
        Platen 1992, chapter 14), and they are drawn five times as fast.
        """
        assert self._rng is not None
        sd = math.sqrt(2 * self._made_with["temperature"] * self.time_step) / self.cell
        noise = self._rng.random(self._right.shape, dtype=self.dtype)
        less = 0.0 if self._is_first else 1 / 3
        scale = np.array([sd * math.sqrt(12), less], dtype=self.dtype)
        _kick(self._right.ravel(), noise.ravel(), self._noise_before.ravel(), scale)

    def energy(self, field: float = 0.0) -> float:
        """Energy of the whole grid, in an applied field of that strength times ``tip``."""
        orders = np.stack([self.polar, self.antipolar]).astype(np.float64)
        local = self._energy.density(orders[0], orders[1])
        local += (self.local_polar_2 - np.float64(self._energy.polar_2)) / 2 * orders[0] ** 2
        local -= (self.imprint + np.float64(field) * self.tip) * orders[0]
        waves = np.abs(fft.rfftn(orders, axes=(1, 2), workers=1)) ** 2
        twice = np.full(waves.shape[-1], 2.0)
        twice[0] = 1.0
        if self.shape[1] % 2 == 0:
            twice[-1] = 1.0
        bent = (twice * self._stiffness * waves).sum() / (2 * math.prod(self.shape))
        return float(local.sum() + bent) * self.cell**2

    def window(
        self,
        corner: tuple[int, int],
        size: int,
        mobility: Float64,
        time_step: float,
        strongest: float = 0.0,
    ) -> LandauField:
        """Cut out a square in which something is about to happen, with all that acts on it from outside.

        What is moved in it is what is added to the present state, so that its edges join where nothing
        moves.

        Parameters
        ----------
        corner
            Cell ``(row, col)`` of its first one; the grid is periodic.
        size
            Its edge in cells, no larger than the grid.
        mobility
            How fast each cell moves, from 0 to 1, shape ``(size, size)``; it should be 0 at the edges.
        time_step
            As of a new field.
        strongest
            Field that it will be driven with at most.
        """
        stabiliser = _stabiliser(stiffest(self._energy, strongest), time_step)
        cut = LandauField(
            self._energy,
            (size, size),
            cell=self.cell,
            time_step=time_step,
            rng=self._rng,
            dtype=self.dtype,
            **(self._made_with | {"stabiliser": stabiliser}),
        )
        at = np.ix_(*_cells(corner, (size, size), self.shape))
        cut._base = np.stack([self.polar[at], self.antipolar[at]])
        cut.imprint, cut.local_polar_2 = self.imprint[at], self.local_polar_2[at]
        cut._push = np.stack([force[at] for force in self._bending()])
        cut._mobility = mobility.astype(self.dtype)
        return cut

    def join(self, cut: LandauField, corner: tuple[int, int]) -> None:
        """Take over what a window moved."""
        rows, cols = _cells(corner, cut.shape, self.shape)
        self._moved[:, rows[:, None], cols] += cut.moved
        self._is_first = True

    @property
    def moved(self) -> Real:
        """What was added to ``P`` and ``A`` since a window was cut, shape ``(2, rows, cols)``."""
        return self._moved

    def _bending(self) -> Real:
        """Force of gradients and depolarisation, shape ``(2, rows, cols)``."""
        waves = fft.rfftn(np.stack([self.polar, self.antipolar]), axes=(1, 2), workers=1)
        force: Real = fft.irfftn(-self._stiffness * waves, s=self.shape, axes=(1, 2), workers=1)
        return force


def _cells(corner: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> list[NDArray[np.intp]]:
    """Rows and columns of a rectangle on a periodic grid."""
    return [np.arange(first, first + n) % of for first, n, of in zip(corner, size, grid, strict=True)]


_SBDF2 = np.array([4 / 3, -1 / 3, 4 / 3, -2 / 3])


def stiffest(energy: Landau, field: float) -> float:
    """Give the steepest curvature that a film meets in an applied field, with room for what overshoots."""
    reach = 1.5 * abs(field) + 0.5
    force = Polynomial([-reach, energy.polar_2, 0, energy.polar_4, 0, energy.polar_6, 0, energy.polar_8])
    polar = max(_above_zero(force))
    antipolar = max(phase.antipolar for phase in phases(energy))
    return max(_curvatures(energy, polar**2, antipolar**2))


def _stabiliser(stiffness: float, time_step: float) -> float:
    """Give what keeps SBDF2 stable at a curvature: derived, it is up to ``4 (1 + S dt) / (3 dt)``; or 2.5."""
    return max(2.5, 0.75 * stiffness - 1 / time_step)


def depolarising(k: Float64, thickness: float) -> Float64:
    """Share of the depolarisation that a wave of wave number ``k`` has in a film, 1 for ``k = 0``."""
    thick = k * thickness
    share: Float64 = np.where(thick > 1e-9, -np.expm1(-thick) / np.maximum(thick, 1e-9), 1.0)
    return share


def wave_numbers(shape: tuple[int, int], cell: float) -> Float64:
    """Size of the wave vectors of a real transform, shape ``(rows, cols // 2 + 1)``."""
    down, across = fft.fftfreq(shape[0], cell), fft.rfftfreq(shape[1], cell)
    k: Float64 = 2 * math.pi * np.hypot(down[:, None], across[None])
    return k


def _stiffness(
    energy: Landau, shape: tuple[int, int], cell: float, depolarisation: float, thickness: float
) -> Float64:
    k = wave_numbers(shape, cell)
    polar = energy.polar_gradient * k**2 + depolarisation * depolarising(k, thickness)
    return np.stack([polar, energy.antipolar_gradient * k**2])


def _powers(energy: Landau) -> Float64:
    e = energy
    return np.array(
        [e.polar_4, e.polar_6, e.polar_8, e.antipolar_2, e.antipolar_4, e.antipolar_6, e.coupling]
    )


@njit(cache=True)
def _right_hand_side(
    moved: Real,
    base: Real,
    before: Real,
    slope_before: Real,
    push: Real,
    imprint: Real,
    local_polar_2: Real,
    tip: Real,
    powers: Real,
    weights: Real,
    right: Real,
) -> None:
    """Write what the implicit part is to be divided into; ``before`` and its slope become those of now."""
    a4, a6, a8, b2, b4, b6, eta = powers
    now, earlier, slope, slope_earlier, field, stabiliser = weights
    for i in range(moved.shape[1]):
        u, v = moved[0, i], moved[1, i]
        p, a = base[0, i] + u, base[1, i] + v
        x, y = p * p, a * a
        polar = stabiliser * u - p * (local_polar_2[i] + x * (a4 + x * (a6 + x * a8)) + eta * y)
        polar += imprint[i] + push[0, i]
        other = stabiliser * v - a * (b2 + y * (b4 + y * b6) + eta * x) + push[1, i]
        right[0, i] = (
            now * u + earlier * before[0, i] + slope * polar + slope_earlier * slope_before[0, i]
        ) + field * tip[i]
        right[1, i] = now * v + earlier * before[1, i] + slope * other + slope_earlier * slope_before[1, i]
        before[0, i], before[1, i] = u, v
        slope_before[0, i], slope_before[1, i] = polar, other


@njit(cache=True)
def _kick(right: Real, noise: Real, noise_before: Real, scale: Real) -> None:
    """Add the noise of this step less a third of that of the last one, as SBDF2 weighs them."""
    sd, less = scale
    half = noise.dtype.type(0.5)
    for i in range(len(right)):
        kick = sd * (noise[i] - half)
        right[i] += kick - less * noise_before[i]
        noise_before[i] = kick
