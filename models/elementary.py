"""Elementary functions in float32 that a compiled loop computes for many numbers at once.

``math.exp`` and its like are calls, which keep a loop from being vectorised. These are sums and products, the
exponent taken from and put into the bits, and within a few units of the last place.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Python's own division would look for zeros, and a loop with such a look is not vectorised.
_NATIVE = {"contract"}
_LOG2_E = np.float32(1 / math.log(2))
# The logarithm of 2 in two parts, the first exact times any exponent.
_LN2_HIGH, _LN2_LOW = np.float32(0.693145751953125), np.float32(1.4286068203094173e-06)
_LEAST_EXP, _MOST_EXP = np.float32(-87), np.float32(88)
_ROOT_HALF_BITS = 0x3F3504F3
_MANTISSA_BITS, _EXPONENT_OF_1 = 23, 127
_HALF, _ONE, _TWO = np.float32(0.5), np.float32(1), np.float32(2)
_E2, _E3, _E4, _E5, _E6, _E7 = (np.float32(1 / math.factorial(n)) for n in range(2, 8))
_L3, _L5, _L7, _L9 = (np.float32(2 / n) for n in (3, 5, 7, 9))
_S1, _S3, _S5, _S7, _S9, _S11 = (
    np.float32((-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1)) for k in range(6)
)
# A quotient of polynomials that is the hyperbolic tangent up to where this is 1 in float32, as in Eigen.
_MOST_TANH = np.float32(7.90531110763549805)
_T1, _T3 = np.float32(4.89352455891786e-03), np.float32(6.37261928875436e-04)
_T5, _T7 = np.float32(1.48572235717979e-05), np.float32(5.12229709037114e-08)
_T9 = np.float32(-8.60467152213735e-11)
_T11, _T13 = np.float32(2.00018790482477e-13), np.float32(-2.76076847742355e-16)
_U0, _U2 = np.float32(4.89352518554385e-03), np.float32(2.26843463243900e-03)
_U4, _U6 = np.float32(1.18534705686654e-04), np.float32(1.19825839466702e-06)


@njit(cache=True, fastmath=_NATIVE, error_model="numpy")
def exp(x: np.float32) -> np.float32:
    """Say e to a power; one below -87 or above 88 counts as these."""
    bounded = min(max(x, _LEAST_EXP), _MOST_EXP)
    twos = np.floor(bounded * _LOG2_E + _HALF)
    y = bounded - twos * _LN2_HIGH - twos * _LN2_LOW
    series = ((((_E7 * y + _E6) * y + _E5) * y + _E4) * y + _E3) * y + _E2
    bits = np.int32((np.int32(twos) + _EXPONENT_OF_1) << _MANTISSA_BITS)
    power: np.float32 = ((series * y + _ONE) * y + _ONE) * bits.view(np.float32)
    return power


@njit(cache=True, fastmath=_NATIVE, error_model="numpy")
def log(x: np.float32) -> np.float32:
    """Say the natural logarithm of a number above 0 that is not subnormal."""
    bits = np.float32(x).view(np.int32)
    twos = np.int32((bits - _ROOT_HALF_BITS) >> _MANTISSA_BITS)
    y = np.int32(bits - (twos << _MANTISSA_BITS)).view(np.float32) - _ONE
    ratio = y / (_TWO + y)
    square = ratio * ratio
    series = ((_L9 * square + _L7) * square + _L5) * square + _L3
    exponent = np.float32(twos)
    return exponent * _LN2_HIGH + (exponent * _LN2_LOW + (_TWO * ratio + ratio * square * series))


@njit(cache=True, fastmath=_NATIVE, error_model="numpy")
def tanh(x: np.float32) -> np.float32:
    """Say the hyperbolic tangent."""
    y = min(max(x, -_MOST_TANH), _MOST_TANH)
    s = y * y
    odd = (((((_T13 * s + _T11) * s + _T9) * s + _T7) * s + _T5) * s + _T3) * s + _T1
    return y * odd / (((_U6 * s + _U4) * s + _U2) * s + _U0)


@njit(cache=True, fastmath=_NATIVE, error_model="numpy")
def sin_pi(x: np.float32) -> np.float32:
    """Say the sine of pi times a number from -1/2 to 1/2."""
    s = x * x
    return x * (((((_S11 * s + _S9) * s + _S7) * s + _S5) * s + _S3) * s + _S1)
